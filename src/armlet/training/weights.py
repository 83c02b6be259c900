"""Which weights a stage trains, by patterns of their names. Knows modules and stages; no loop."""

import difflib
import fnmatch
from collections.abc import Iterable

from torch import nn

from armlet.policies.contract import Backbone
from armlet.recipe import Stage


def trainable(
    learner: nn.Module, stage: Stage, factors: frozenset[str] = frozenset()
) -> dict[str, nn.Parameter]:
    """Parameters that a stage trains, by name. `factors`: those of its low-rank additions, beside
    which only `lora.whole` trains. Raises ValueError where one of its patterns matches none, or all
    leave none."""
    parameters = dict(learner.named_parameters())
    _check_patterns([name for name in parameters if name not in factors], stage)
    kept: set[str] = set()
    pretrained: set[str] = set()
    policy = getattr(learner, "policy", None)
    if isinstance(policy, Backbone):
        kept = {f"policy.{name}" for name in policy.kept_weights}
        pretrained = {f"policy.{name}" for name in policy.pretrained_weights}
    chosen = {}
    for name, parameter in parameters.items():
        if name in factors:
            chosen[name] = parameter
            continue
        if factors and not _matches(name, stage.lora.whole):
            continue
        if name in kept or (name in pretrained and _matches(name, stage.freeze_pretrained)):
            continue
        if _matches(name, stage.train) and not _matches(name, stage.freeze):
            chosen[name] = parameter
    if not chosen:
        names = ", ".join(list(parameters)[:4])
        also = f"; the network itself keeps {len(kept)} of its weights" if kept else ""
        raise ValueError(
            f"train={stage.train} freeze={stage.freeze} leaves nothing to train; names look like "
            f"{names} …{also}"
        )
    return chosen


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _check_patterns(names: list[str], stage: Stage) -> None:
    """Raises ValueError for a pattern of `train` or `freeze` that matches no parameter: it was
    meant to do something."""
    patterns = {"train": stage.train, "freeze": stage.freeze}
    if stage.lora.rank:
        patterns["lora.whole"] = stage.lora.whole
    for field, said in patterns.items():
        for pattern in said:
            # Of a network that is pretrained some parts are other than those of one that is not.
            if fnmatch.filter(names, pattern) or pattern in stage.freeze_pretrained:
                continue
            known = sorted({*names, *_parts(names)})
            near = difflib.get_close_matches(pattern, known, 3, cutoff=0.5)
            if near:
                hint = f"did you mean {' or '.join(map(repr, near))}?"
            else:
                hint = f"names look like {', '.join(names[:4])} …"
            raise ValueError(f"{field}={said}: {pattern!r} matches no parameter; {hint}")


def _parts(names: Iterable[str]) -> set[str]:
    """A pattern for each module that has parameters of these names: a.b.c → a.b.*, a.*"""
    found = set()
    for name in names:
        while "." in name:
            name = name.rpartition(".")[0]
            found.add(f"{name}.*")
    return found
