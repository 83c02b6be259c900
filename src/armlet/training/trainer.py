"""THE training loop, the only one: `teach`, `probe` and `distil` pass it different values.

Knows objectives, batches and traces by their contracts; knows no recipe by name. Ctrl-C waits for
the step that runs, and what was trained is saved. A killed run resumes to the same result: weights,
optimisers and the step, from which random numbers and the position in the data follow, are saved
together, with what they were made from (`lineage`). What was made from something else is never
continued: it is moved beside, and the stage starts anew.
"""

import contextlib
import dataclasses
import difflib
import fnmatch
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from armlet.data.corpus import Corpus
from armlet.data.files import (
    appending,
    hold,
    make_durable,
    read_json,
    whole_lines,
    write_atomically,
)
from armlet.data.frames import BatchMaker, Frames, draw
from armlet.data.transforms import Moment
from armlet.layers.ema import SelfTeacher
from armlet.lineage import (
    Question,
    as_json,
    differences,
    digest_arrays,
    digest_text,
    digest_weights,
    set_aside,
    short,
    summary,
)
from armlet.logs import RunLog
from armlet.policies.contract import Backbone
from armlet.progress import Progress
from armlet.recipe import Objective, Stage, settings
from armlet.robot.inputs import beyond, looked_at
from armlet.robot.normalise import check_sane
from armlet.training.learner import Learner, chooses, watch
from armlet.training.lora import FACTORS, add_lora, merge_lora
from armlet.training.masters import Masters
from armlet.training.state import load_state, save_state
from armlet.training.stopping import waiting_stop
from armlet.types import Trace

TeacherTraces = Callable[[Tensor], Trace]  # keys (b, 2) -> the teacher's trace
LOCK = "training.lock"
STATE = "state.pt"
ABOUT = "stage.json"
LINES = "metrics.jsonl"


class SelfAnswers(nn.Module):
    """What the student's own running average answers, for `Stage(teacher=OwnAverage())`: asked once
    a step, it first takes a step towards the student. It sees frames as they are, where the
    student's are brighter or darker."""

    def __init__(
        self, teacher: SelfTeacher, batches: BatchMaker | Corpus, needs: frozenset[str]
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.needs = needs
        # In tuples, so that torch does not count them among this module's parts: the state that is
        # saved would hold the teacher's weights twice.
        self._batches = (batches,)
        self._watched = (Learner(cast(Backbone, teacher.module)).eval(),)

    def forward(self, keys: Tensor) -> Trace:
        self.teacher.update()
        (batches,) = self._batches
        (watched,) = self._watched
        found = keys.cpu().numpy()  # (b, 2): episode, frame in it
        # The same frames read again, ahead of the transforms that the student's batch went through.
        rows = batches.frames.starts[found[:, 0]] + found[:, 1]
        return watch(watched, batches.batch(rows), self.needs)


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


def digest_frames(frames: Frames) -> str:
    """A hash of every column of some frames; of pictures, which a data set's fingerprint covers,
    the number."""
    arrays: dict[str, np.ndarray] = {}
    texts: list[str] = []
    for field in dataclasses.fields(frames):
        value = getattr(frames, field.name)
        if field.name == "images":  # gigabytes: hashing them would take longer than a stage
            texts += [f"{name} {len(pictures)}" for name, pictures in sorted(value.items())]
        elif isinstance(value, np.ndarray):
            arrays[field.name] = value
        elif isinstance(value, dict):
            for name, array in value.items():
                arrays[f"{field.name}.{name}"] = array
        elif value is not None:
            texts += [field.name, *map(str, value)]
    return f"{digest_arrays(arrays)} {digest_text(texts)}"


def make_optimisers(
    parameters: dict[str, nn.Parameter], stage: Stage
) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon for the backbone's matrices and AdamW for the rest (Jordan et al. 2024, with
    AdamW's step size)."""
    matrices = []
    rest = []
    for name, parameter in parameters.items():
        # Muon makes an update orthogonal, which means something for a map between hidden states;
        # embeddings, heads, gains and biases stay with AdamW, as Jordan et al. have it.
        # So do the factors of low-rank additions: neither is a map between hidden states.
        inside = parameter.ndim == 2 and ".layers." in name
        if stage.optimiser == "muon" and inside and not (stage.lora.rank and FACTORS in name):
            matrices.append(parameter)
        else:
            rest.append(parameter)
    step = stage.learning_rate
    decay = stage.weight_decay
    optimisers: list[torch.optim.Optimizer] = []
    if matrices:
        # match_rms_adamw scales Muon's step to be as large as AdamW's: one learning rate for both.
        optimisers.append(
            torch.optim.Muon(matrices, lr=step, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        )
    if rest:
        optimisers.append(
            torch.optim.AdamW(rest, lr=step, weight_decay=decay, betas=(0.9, 0.95), fused=True)
        )
    return optimisers


def rate(stage: Stage, step: int) -> float:
    """The factor on the learning rate at a step: linear warm-up, then constant or a half cosine
    down to 2 %."""
    warm = min(1.0, (step + 1) / max(stage.warmup, 1))
    if stage.schedule == "constant":
        return warm
    return warm * max(0.02, 0.5 * (1 + math.cos(math.pi * step / max(stage.steps, 1))))


def check_teaches(
    terms: dict[str, Tensor], objective: Objective, policy: nn.Module, *, title: str
) -> None:
    """Raises ValueError for a term of a loss from which no gradient reaches what trains. One of
    weight 0 was not meant to teach."""
    for name, value in terms.items():
        if value.requires_grad or not value.detach().any():
            continue
        kind = getattr(policy, "kind", type(policy).__name__)
        raise ValueError(
            f"{title}: {name!r} of {type(objective).__name__} cannot teach {kind}: no gradient "
            "reaches a weight that trains. What it reads is made by frozen weights (name them in "
            "`train`, or leave them out of `freeze`), or is chosen among classes, which has no "
            "gradient: a network that chooses needs a signal `logits`, and the objective to read "
            "it. Or give the term the weight 0"
        )


def make_batches(
    policy: Backbone, frames: Frames, device: torch.device | None = None
) -> BatchMaker:
    """Batches as this policy takes them, on its device, or on another. Raises ValueError where the
    episodes are of another robot, or hold values that its statistics make absurd of."""
    batches = BatchMaker(frames, policy.inputs, device=device or policy.device)
    body = policy.body
    # A policy of before names were kept does not know those of its state: numbers stand for them.
    seen = looked_at(frames.state, body.state)
    states = body.state_names or list(map(str, range(seen.shape[1])))
    actions = body.action_spec.names
    check_sane("observation.state", seen, body.state, states)
    for name, values in (("action", frames.actions), ("executed", frames.executed)):
        shown = beyond(values, frames.state, body.relative)
        check_sane(name, shown, body.actions, actions)
    return batches


class Trainer:
    """Runs one stage on one learner. `folder` gets `metrics.jsonl`, `state.pt` and `stage.json`; a
    finished stage stays finished.

    `rows`: the frames of an epoch, some perhaps several times; all of them once where nothing is
    said. `made_from`: what the caller knows of where the result comes from (fingerprints of data
    sets, of the teacher and its traces; the network), as JSON. `log`: who else is told of the lines of
    metrics.jsonl.

    `question` is that and what is known here: the stage's settings, seed, frames and rows, and the
    weights that the learner has when the trainer is made. Where `folder` holds the state of another
    question, it is moved beside, a line says what differs, and the stage starts anew. A stage whose
    rate and transforms do not depend on the number of steps may be given more of them: it goes on.
    """

    def __init__(
        self,
        learner: Learner,
        stage: Stage,
        batches: BatchMaker | Corpus,
        *,
        folder: Path,
        seed: int,
        title: str,
        teacher: TeacherTraces | None = None,
        rows: np.ndarray | None = None,
        made_from: dict[str, Any] | None = None,
        log: RunLog | None = None,
    ) -> None:
        self.rows = np.arange(len(batches)) if rows is None else rows
        for transform in stage.transforms:
            self.rows = transform.choose(
                self.rows, lambda: learner.policy.classes(batches.first_actions())
            )
        if stage.objective.reads_logits:
            # Whoever knows that the teacher's logits are there has said so: `Recipe.for_student`.
            choosing, _ = chooses(learner.policy, batches.batch(self.rows[:2]))
            objective = stage.objective.suited(chooses=choosing, logits=False)
            stage = dataclasses.replace(stage, objective=objective)
        self.learner = learner
        self.stage = stage
        self.batches = batches
        self.teacher = teacher
        self.folder = folder
        self.seed = seed
        self.title = title
        self.log = log
        self.step = 0
        # What the folder holds, once it has been looked at.
        self._state: dict[str, Any] | None = None
        start = digest_weights(learner.state_dict())  # of a stage before, or of `probe`
        factors: frozenset[str] = frozenset()
        if stage.lora.rank:
            torch.manual_seed(seed)  # of the additions' first weights
            factors = add_lora(learner, stage.lora)
        for parameter in learner.parameters():
            parameter.requires_grad_(False)
        trained = trainable(learner, stage, factors)
        for parameter in trained.values():
            parameter.requires_grad_(True)
        self.masters = Masters(learner, trained, halve=stage.weights_precision == "bf16")
        self.parameters = self.masters.weights  # as optimisers see them
        self.optimisers = make_optimisers(self.parameters, stage)
        self.average: dict[str, Tensor] = {}  # the running average of what is trained
        if stage.ema:
            for name, parameter in self.parameters.items():
                self.average[name] = parameter.detach().clone()
        self.question: Question = as_json(
            {
                **(made_from or {}),
                "stage": settings(stage),
                "seed": seed,
                "frames": digest_frames(batches.frames),
                "rows": digest_arrays({"rows": self.rows}),
                "start": start,
            }
        )

    def run(self) -> None:
        """Train to the end of the stage, then leave the averaged weights (if any) in the learner,
        in eval mode."""
        # Twice where something is moved away: its lock goes with it, and the new folder's is taken.
        while True:
            with hold(self.folder / LOCK, "training"):
                why = self.obstacle()
                if not why:
                    self._run()
                    return
                aside = set_aside(self.folder, short(self.question))
            sys.stderr.write(
                f"{self.title}: {self.folder} {why}; it is kept as {aside.name}, and the stage "
                "starts anew\n"
            )

    def obstacle(self) -> str:
        """Why this stage cannot go on from what its folder holds; empty where it can, or where
        there is nothing."""
        found = self._found()
        if found is None:
            return ""
        if not found:
            return "does not say what it was made from (an older armlet made it)"
        differing = differences(found, self.question)
        if not differing or self._only_longer(found):
            return ""
        return f"was made from something else ({summary(differing)})"

    def _found(self) -> Question | None:
        """The question that the folder answers, empty where it does not say; None where nobody has
        trained there."""
        self._state = load_state(self._state_file) if self._state_file.exists() else None
        if self._state is not None:
            question: Question = self._state.get("question", {})
            return question
        # No state: killed ahead of the first save, or somebody removed it.
        about = self.folder / ABOUT
        if about.exists():
            return read_json(
                about,
                fix=f"delete {self.folder} to train this stage from its start, or copy it again",
            )
        return {} if (self.folder / LINES).exists() else None

    def _only_longer(self, found: Question) -> bool:
        """Whether the question differs in the number of steps alone, no step depends on it, and
        there is nothing to undo."""
        stage = self.stage
        if stage.schedule != "constant":  # a cosine's rate at a step depends on how many there are
            return False
        if any(transform.depends_on_steps for transform in stage.transforms):
            return False
        longer = {**found, "stage": {**found.get("stage", {}), "steps": stage.steps}}
        trained = self._state["step"] if self._state else 0
        # A stage that was trained further than is wanted cannot be taken back.
        return not differences(longer, self.question) and trained <= stage.steps

    def _run(self) -> None:
        self._resume()
        write_atomically(self.folder / ABOUT, json.dumps(self.question, indent=1).encode())
        progress = Progress(self.title, total=self.stage.steps, start=self.step)
        self.learner.train()
        if self.stage.recompute:
            self.learner.policy.recompute = True
        with self._log() as write, self._compiled() as update, waiting_stop(self.title) as stop:
            while self.step < self.stage.steps and not stop.asked:
                started = time.perf_counter()
                terms = update()  # counts the step
                progress.advance(loss=terms["loss"])
                done = self.step == self.stage.steps
                if done or self.step % self.stage.log_every == 0:
                    write({"step": self.step, "seconds": time.perf_counter() - started, **terms})
                if done or self.step % self.stage.checkpoint_every == 0:
                    self._save()
            if stop.asked:
                self._save()
        progress.close()
        # After the last save: what is saved goes on from the weights, not from their average.
        for name, value in self.average.items():
            self.parameters[name].data.copy_(value)
        self.masters.restore()
        if self.stage.recompute:
            self.learner.policy.recompute = False
        if self.stage.lora.rank:
            merge_lora(self.learner)
        self.learner.eval()

    def _rows_of(self, step: int) -> np.ndarray:
        """(b,) int64: the frames of a step, in the order of the data."""
        # Sorted: frames of one video are then read forwards.
        return np.sort(self.rows[draw(len(self.rows), self.stage.batch_size, step, self.seed)])

    def _update(self) -> dict[str, float]:
        stage = self.stage
        rows = self._rows_of(self.step)
        batch = self.batches.batch(rows)
        if self.step + 1 < stage.steps:  # pictures of the next step are decoded during this one
            self.batches.expect(self._rows_of(self.step + 1))
        assert batch.keys is not None  # a batch made from episodes has them
        teacher = self.teacher(batch.keys) if self.teacher and stage.needs else {}
        body = self.learner.policy.body
        # From seed and step alone, as torch's below: a resumed run draws what this one does.
        rng = np.random.default_rng([self.seed, self.step, 1])
        moment = Moment(self.step, stage.steps, rng, body.action_spec, body.actions)
        for transform in stage.transforms:
            batch, teacher = transform(batch, teacher, moment)
        if "imitation.teacher" in stage.objective.wants:
            batch = dataclasses.replace(batch, taught=teacher["actions"])
        # More than a stage has steps, so that no two seeds share a step's stream.
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        with self.learner.autocast(self.stage.precision):
            student = self.learner(
                batch,
                stage.objective.wants,
                exploration=batch.exploration,
                every=stage.objective.every,
            )
        terms = stage.objective(student, teacher, batch)  # weighted, name → a number
        check_teaches(terms, stage.objective, self.learner.policy, title=self.title)
        loss = torch.stack(list(terms.values())).sum()
        values = {name: float(value.detach()) for name, value in terms.items()}
        # Ahead of backward: the weights, and the state saved last, are still good.
        if not math.isfinite(sum(values.values())):
            raise FloatingPointError(
                f"{self.title}: the loss is {sum(values.values())} at step {self.step}: {values}; "
                f"frames {rows[:4]}… . The last saved state is in {self.folder}; lower "
                "learning_rate, or look for NaN in the data"
            )
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), stage.clip)
        factor = rate(stage, self.step)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = stage.learning_rate * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.masters.show()
        self.step += 1
        if stage.ema:
            # Shorter at first, as with TensorFlow's `num_updates`, or fresh weights would linger.
            decay = min(stage.ema, (1 + self.step) / (10 + self.step))
            for name, parameter in self.parameters.items():
                self.average[name].lerp_(parameter.detach(), 1 - decay)
        return {
            "loss": sum(values.values()),
            **values,
            "grad_norm": float(norm),
            "learning_rate": stage.learning_rate * factor,
        }

    @contextlib.contextmanager
    def _compiled(self) -> Iterator[Callable[[], dict[str, float]]]:
        """The layers compiled one by one while it lasts: they share their code, so the first
        compilation serves all. On a CPU that takes a C++ compiler; without one the same arithmetic
        runs uncompiled, and a line says so.

        Compiled code is cached outside the run, and a process killed while compiling leaves half a
        library there, on which every later run would fail: then this run compiles once more, into a
        cache of its own.
        """
        layers = self.learner.policy.blocks if self.stage.compile else []
        on_cpu = self.learner.policy.device.type == "cpu"
        if layers and on_cpu and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            sys.stderr.write(
                f"{self.title}: no C++ compiler (g++ or clang++) was found; the layers run "
                "uncompiled, and slower\n"
            )
            layers = []
        for layer in layers:
            # An epoch's smaller last batch is compiled once more, not made dynamic.
            layer.compile(dynamic=False)
        with contextlib.ExitStack() as own_cache:

            def update() -> dict[str, float]:
                try:
                    return self._update()
                except torch._dynamo.exc.BackendCompilerFailed as error:
                    sys.stderr.write(
                        f"{self.title}: compiled again in a fresh cache, the shared one is damaged "
                        f"({error.inner_exception})\n"
                    )
                from torch._inductor.utils import fresh_cache  # slow to import, and seldom needed

                own_cache.enter_context(fresh_cache())
                torch._dynamo.reset()
                # It failed before the step was counted, so the same step is taken from its start.
                for optimiser in self.optimisers:
                    optimiser.zero_grad(set_to_none=True)
                return self._update()

            try:
                yield update
            finally:
                for layer in layers:
                    # torch has no public way back from `Module.compile`, and evaluation, whose
                    # batches have other shapes, would compile everything anew.
                    layer._compiled_call_impl = None

    @property
    def _state_file(self) -> Path:
        return self.folder / STATE

    def _save(self) -> None:
        # No RNG: every step seeds its own. A teacher that is a module is the student's own average,
        # which changes as it learns; any other stands still.
        teacher = self.teacher.state_dict() if isinstance(self.teacher, nn.Module) else {}
        # What stands still is what it was at the start, which the question knows.
        still = {name for name, each in self.learner.named_parameters() if not each.requires_grad}
        learner = self.learner.state_dict()
        state = {
            "question": self.question,
            "step": self.step,
            "learner": {name: each for name, each in learner.items() if name not in still},
            "masters": self.masters.state(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "average": self.average,
            "teacher": teacher,
        }
        # A state promises the lines of its steps, which are not written again.
        make_durable(self.folder / LINES)
        save_state(self._state_file, state)

    def _resume(self) -> None:
        state = self._state
        self._state = None  # it may be as large as the network: not kept while that trains
        if state is None:
            return
        before = state["question"]["stage"]["steps"]
        if before != self.stage.steps:
            sys.stderr.write(
                f"{self.title}: steps: {before} → {self.stage.steps}; it goes on from step "
                f"{state['step']}\n"
            )
        # A state of before also holds what stands still.
        self.learner.load_state_dict({**self.learner.state_dict(), **state["learner"]})
        self.masters.load(state.get("masters", {}))
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.average = state["average"]
        self.step = state["step"]
        if isinstance(self.teacher, nn.Module):
            self.teacher.load_state_dict(state["teacher"])

    @contextlib.contextmanager
    def _log(self) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Lines of metrics.jsonl; those past the resumed step are dropped, so no step stands there
        twice, and so is half a line."""
        path = self.folder / LINES
        kept = ""
        rows = []
        for line in whole_lines(path):
            row = json.loads(line)
            if row["step"] <= self.step:
                kept += line + "\n"
                rows.append(row)
        write_atomically(path, kept.encode())  # killed here, the log of before still stands
        series = None if self.log is None else self.log.series(self.folder)
        if series is not None:
            series.catch_up(rows)
        with appending(path) as add:

            def write(row: dict[str, Any]) -> None:
                add(json.dumps(row))
                if series is not None:
                    series.point(row["step"], row)

            yield write
