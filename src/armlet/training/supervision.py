"""What `probe` writes and `distil` reads: the heads that watch every layer, the traces, what a
student must know of the teacher, and what an annotator said.

The teacher is known here by its fingerprint: where its folder is gone, that is what `probe` kept.
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.torch import save_file

from armlet.annotators import Annotator
from armlet.annotators.store import load_labels, store_labels
from armlet.annotators.vlm import confirm_on_terminal
from armlet.data.episodes import EpisodeDataset
from armlet.data.files import atomic_file, read_json
from armlet.data.frames import BatchMaker, Frames
from armlet.data.traces import (
    Columns,
    StaleTraceError,
    StoreIdentity,
    TraceStore,
    TraceWriter,
    read_identity,
)
from armlet.layers.graph import ProbeHeads
from armlet.lineage import Question, as_json, differences, digest_weights, summary
from armlet.policies.checkpoint import load_weights, read_tensors
from armlet.policies.contract import Backbone
from armlet.progress import Progress
from armlet.recipe import Probe, Recipe, Stage, settings, to_json
from armlet.training.learner import Learner, watch
from armlet.training.trainer import ABOUT
from armlet.types import Batch, Precision, Trace

ROWS = 128  # of a forward pass
DIGEST = "digest"  # in the heads' metadata: of their weights
STORED = "float16"  # as which the teacher's answers are kept
HEADS_FIX = (
    "delete the folder and the traces beside it and run `armlet probe` again, or copy the file "
    "again"
)


def make_heads(policy: Backbone, probe: Probe) -> ProbeHeads:
    """Fresh heads for every layer of a policy."""
    return ProbeHeads(
        len(policy.layers),
        policy.width,
        chunk=policy.chunk,
        dims=policy.dims,
        graph_width=probe.graph_width,
        semantic_width=probe.semantic_width,
        neighbours=probe.neighbours,
        heads=probe.heads,
        graph_layers=probe.graph_layers,
        queries=probe.queries,
        hidden=probe.hidden,
    )


def save_heads(heads: ProbeHeads, path: Path) -> None:
    """Whole or not at all."""
    weights = {}
    for name, tensor in heads.state_dict().items():
        weights[name] = tensor.detach().cpu().contiguous()  # safetensors writes no views
    with atomic_file(path, apart=True) as part:
        save_file(weights, part, metadata={DIGEST: digest_weights(weights)})


def load_heads(heads: ProbeHeads, path: Path) -> None:
    """Fitted weights into fresh heads. Raises FileNotFoundError where `probe` has not run,
    ValueError where it ran with other heads."""
    _check_fitted(path)
    weights = read_tensors(path, fix=HEADS_FIX)
    with safe_open(path, "pt") as file:
        said = (file.metadata() or {}).get(DIGEST)
    # Those of before say nothing.
    if said not in (None, digest_weights(weights)):
        raise ValueError(
            f"{path} is damaged: its weights are {digest_weights(weights)}, and were saved as "
            f"{said}; {HEADS_FIX}"
        )
    try:
        load_weights(heads, weights, source=path)
    except ValueError as error:
        raise ValueError(
            f"{error}\nThese heads were fitted with another `probe` (its widths, queries or "
            f"layers), or by an older armlet. Delete {path.parent} and the traces beside it and "
            "run `armlet probe` again, or keep them and give another `--shared`"
        ) from error


def _check_fitted(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the probe heads have not been fitted; run `armlet probe` first"
        )


def heads_question(recipe: Recipe, data: str, teacher: str) -> Question:
    """What heads must have been fitted on, and how, to be used with this recipe: `data` and
    `teacher` are fingerprints. The seed may be another's, whose traces are shared."""
    assert recipe.probe is not None
    shape = to_json(recipe.probe)
    del shape["stage"]  # who asks adds it as `settings` has it, without what changes nothing
    asked: Question = {"data": data, "teacher": teacher, "probe": shape}
    if recipe.benchmark is None:  # then they are fitted on what is not held out
        asked |= {"split": recipe.split, "held_out": recipe.held_out}
    return as_json(asked)


def check_heads(path: Path, question: Question, stage: Stage) -> None:
    """Raises FileNotFoundError where there are no fitted heads at `path`, ValueError where they
    were fitted on other data, another teacher or in another way than `heads_question` and this
    stage say; where options say it, by these options."""
    _check_fitted(path)
    about = path.with_name(ABOUT)
    anew = (
        "run `armlet probe` again with these options, with another `--shared` or after deleting "
        f"{path.parent} and the traces beside it"
    )
    if not about.is_file():
        raise ValueError(
            f"{path} does not say what the heads were fitted on: {about} is missing (an older "
            f"armlet made none); {anew}"
        )
    wanted = {**question, "stage": settings(stage)}
    said = read_json(about, fix=anew)
    found = {name: said.get(name) for name in wanted}  # it says more: a seed, rows, start weights
    differing = differences(found, wanted)
    if not differing:
        return
    # Of the same data and teacher: then the command line differs, and options can say how.
    if found["data"] == wanted["data"] and found["teacher"] == wanted["teacher"]:
        options = options_for(_probe_of(found), _probe_of(wanted), at="probe")
        for name in ("split", "held_out"):
            if found.get(name) not in (None, wanted.get(name)):
                options.append(_option(name, found[name]))
        same = " ".join(options) or "the same --probe options"
        fix = f"give this verb {same} as `armlet probe` was given; or {anew}"
    else:
        fix = anew
    raise ValueError(
        f"{path}: these heads were fitted otherwise than this recipe says ({summary(differing)}); "
        f"{fix}"
    )


def _probe_of(question: Question) -> dict[str, Any]:
    """The settings of a probe, as they are nested in a recipe."""
    return {**(question["probe"] or {}), "stage": question["stage"] or {}}


def options_for(found: Any, wanted: Any, *, at: str) -> list[str]:
    """The options of a command line that make the settings `wanted` those that were `found`; `at`
    is the field of the recipe that they are in. A setting that no option says, such as which
    objective a stage has, is left out."""
    options: list[str] = []
    if not isinstance(found, dict):
        return options
    for name in sorted(found.keys() & wanted.keys()):
        there = found[name]
        here = wanted[name]
        place = f"{at}.{name}"
        if there == here:
            continue
        # tyro numbers the parts of a tuple: --probe.stage.transforms.0.share
        if isinstance(there, list) and any(isinstance(each, dict) for each in there):
            there = _numbered(there)
            here = _numbered(here)
        if isinstance(there, dict) and isinstance(here, dict):
            options += options_for(there, here, at=place)
        elif name != "class" and not isinstance(there, dict):  # no option chooses a class
            options.append(_option(place, there))
    return options


def _numbered(values: list[Any]) -> dict[str, Any]:
    """A list as a dict by position."""
    return dict(zip(map(str, range(len(values))), values, strict=True))


def _option(place: str, value: Any) -> str:
    """A setting as tyro reads it."""
    place = place.replace("_", "-")
    if isinstance(value, bool):  # a flag: --a.b or --a.no-b
        parent, _, name = place.rpartition(".")
        return f"--{place}" if value else f"--{parent}.no-{name}"
    values = value if isinstance(value, list) else [value]
    return " ".join([f"--{place}", *(shlex.quote(str(each)) for each in values)])


def how_watched(recipe: Recipe) -> str:
    """How a teacher is watched, for the `preprocessing` of a store's identity: through which heads,
    and in which precision. Raises FileNotFoundError where `probe` has not fitted them."""
    probe = recipe.probe
    heads = recipe.heads_file
    said = "no probe heads"
    if probe is not None:
        _check_fitted(heads)
        # Heads' answers are in the store, so a store of other heads is another store.
        digest = digest_weights(read_tensors(heads, fix=HEADS_FIX))
        said = f"{probe.graph_width}-{probe.semantic_width}-{probe.neighbours}, heads {digest}"
    # Nothing is added for fp32: stores of before there was a choice stay good.
    if recipe.teacher_precision == "bf16":
        said += ", bf16 weights"
    return said if recipe.trace_precision == "fp32" else f"{said}, {recipe.trace_precision}"


def open_traces(root: Path, wanted: StoreIdentity, precision: Precision) -> TraceStore:
    """The store at `root`, stored in this precision. Raises StaleTraceError where it was made from
    something else than `wanted`, naming the option where one would do."""
    stored = "bf16" if read_identity(root).preprocessing.endswith(", bf16") else "fp32"
    if stored != precision:
        raise StaleTraceError(
            f"the traces in {root} were stored in {stored}, and this recipe's are in {precision}: "
            f"give this verb `--trace-precision {stored}`, as `armlet probe` was given, or run "
            "`armlet probe` into another `--shared`"
        )
    return TraceStore(root, wanted)


def watching(
    learner: Learner, batches: BatchMaker, *, traced: Sequence[str], precision: Precision
) -> tuple[Callable[[Batch], Trace], Columns]:
    """What asks a teacher for the signals `traced`, and for those of its probe's heads; and the
    columns of a store of its answers."""
    learner.eval()
    want = [*traced, *(["semantics", "layer_actions"] if learner.probe else [])]

    def answers(batch: Batch) -> Trace:
        with learner.autocast(precision):
            return watch(learner, batch, want)

    # Asked of two rows first, only to learn the shapes that the store is laid out for.
    sample = answers(batches.batch(np.arange(2)))
    columns = {}
    for name, tensor in sample.items():
        columns[name] = (tuple(tensor.shape[1:]), STORED)
    return answers, columns


def store_traces(
    root: Path,
    store: StoreIdentity,
    learner: Learner,
    batches: BatchMaker,
    *,
    traced: Sequence[str],
    precision: Precision,
    title: str,
) -> None:
    """What a teacher answers to every frame, into the store at `root`: the signals `traced`, and
    those of its probe's heads; rows that are there already stay."""
    answers, columns = watching(learner, batches, traced=traced, precision=precision)
    with TraceWriter(root, store, columns) as writer:
        done = set(map(tuple, writer.done().tolist()))  # (episode, frame) of a run that was killed
        keys = map(tuple, batches.keys(np.arange(len(batches))).tolist())
        rows = np.array([row for row, key in enumerate(keys) if key not in done], np.int64)
        progress = Progress(title, total=len(batches), start=len(done), unit="row")
        for start in range(0, len(rows), ROWS):
            batch = batches.batch(rows[start : start + ROWS])
            batches.expect(rows[start + ROWS : start + 2 * ROWS])  # read while these are computed
            assert batch.keys is not None
            writer.append(batch.keys, answers(batch))
            progress.advance(len(batch))
        progress.close()


def annotate(data: EpisodeDataset, annotator: Annotator | None, folder: Path) -> None:
    """What the annotator, if there is one, says of every frame, into the store at `folder`. Where
    that costs money, somebody at the terminal must agree first."""
    if annotator is not None:
        store_labels(folder, annotator, data, confirm=confirm_on_terminal)


def labelled(
    frames: Frames, data: EpisodeDataset, annotator: Annotator | None, folder: Path
) -> Frames:
    """The frames of a data set with the labels that `annotate` stored at `folder`, if there is an
    annotator."""
    if annotator is None:
        return frames
    labels = load_labels(folder, data, annotator)
    # Few texts describe many frames: each is kept once, and frames number them.
    texts, described = np.unique(np.array(labels.description), return_inverse=True)
    numbers = {"phase": labels.phase, "direction": labels.direction}
    return replace(frames, labels=numbers, descriptions=tuple(map(str, texts)), described=described)
