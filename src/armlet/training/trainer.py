"""THE training loop, the only one: `teach`, `probe` and `distil` pass it different values.

Knows objectives, batches and traces by their contracts; knows no recipe by name. Ctrl-C waits for
the step that runs, and what was trained is saved. A killed run resumes to the same result: weights,
optimisers and the step, from which random numbers and the position in the data follow, are saved
together, with what they were made from (`lineage`). What was made from something else is never
continued: it is moved beside, and the stage starts anew.
"""

import contextlib
import dataclasses
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from armlet.data.corpus import Corpus
from armlet.data.files import make_durable, read_json, write_atomically
from armlet.data.frames import BatchMaker, Frames, draw
from armlet.data.lines import appending, check_count, sealed, whole_lines
from armlet.data.transforms import Moment
from armlet.layers import draws
from armlet.lineage import (
    Question,
    as_json,
    differences,
    digest_arrays,
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
from armlet.training.distributed import RankError, held, is_of_others, world
from armlet.training.division import Divided, Division, places, told
from armlet.training.learner import Learner, chooses
from armlet.training.lora import add_lora, merge_lora
from armlet.training.masters import Masters
from armlet.training.optimisers import make_optimisers, rate
from armlet.training.rows import digest_frames
from armlet.training.spread import Spread, placed, spread_over, whole
from armlet.training.state import (
    STATE,
    SavedShards,
    found_state,
    load_shards,
    save_shards,
    save_state,
)
from armlet.training.stopping import Stop, waiting_stop
from armlet.training.weights import trainable
from armlet.types import LAYERS, Batch, Trace

TeacherTraces = Callable[[Tensor], Trace]  # keys (b, 2) -> the teacher's trace
LOCK = "training.lock"
ABOUT = "stage.json"
LINES = "metrics.jsonl"


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
        self.lines = 0  # of the log, up to this step
        self.promised: int | None = None  # so many there were when the state was saved
        self._kept: int | None = None  # the step whose state the folder holds
        self.world = world()
        # What the folder holds, once it has been looked at.
        self._state: dict[str, Any] | SavedShards | None = None
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
        self._trained = tuple(trained)
        # Of several processes each has a part only once they train; `run` begins with it.
        if self.world.size == 1 and stage.parallel == "ddp":
            self._train(Spread(learner))
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

    def _train(self, spread: Spread) -> None:
        """What lies so over the processes is what is trained: its masters, optimisers, average."""
        self.spread = spread
        parameters = dict(spread.network.named_parameters())
        self.masters = Masters(
            spread.network,
            {name: parameters[name] for name in self._trained},
            halve=self.stage.weights_precision == "bf16",
            at_once=spread.complete_at_once,
        )
        spread.begin()  # after the masters, which may halve weights
        self.parameters = self.masters.weights  # as optimisers see them
        self.optimisers = make_optimisers(self.parameters, self.stage)
        self.average: dict[str, Tensor] = {}  # the running average of what is trained
        if self.stage.ema:
            for name, parameter in self.parameters.items():
                self.average[name] = parameter.detach().clone()

    def run(self) -> None:
        """Train to the end of the stage, then leave the averaged weights (if any) in the learner,
        in eval mode. Of several processes the first writes; raises RankError where they do not
        agree on what to train, or lose each other."""
        self._check_division()
        # Twice where something is moved away: its lock goes with it, and the new folder's is taken.
        while True:
            with held(self.folder / LOCK, "training"):
                why = self.obstacle()
                step = self._state["step"] if self._state else 0
                self.world.agree(
                    f"{self.title}: what {self.folder} holds and what is asked",
                    [short(self.question), why, step],
                    fix="every machine must see the same folders, data, teacher and recipe",
                )
                if not why:
                    self._run()
                    return
                if self.world.first:
                    aside = set_aside(self.folder, short(self.question))
                    sys.stderr.write(
                        f"{self.title}: {self.folder} {why}; it is kept as {aside.name}, and the "
                        "stage starts anew\n"
                    )
            self.world.wait()

    def _check_division(self) -> None:
        """Raises ValueError for what cannot be divided over processes or passes, by name."""
        stage = self.stage
        if stage.parallel == "fsdp" and not self.world.launched:
            raise ValueError(
                f"{self.title}: parallel is fsdp, which takes torchrun: torchrun --nproc-per-node N "
                "-m armlet …; one process alone has nothing to shard over"
            )
        if stage.offload and self.learner.policy.device.type == "cpu":
            raise ValueError(
                f"{self.title}: offload is set, and the network is on the CPU already; leave it out"
            )
        pieces = self.world.size * stage.accumulate
        if pieces == 1:
            return
        every = stage.objective.every
        if not all(each.stop > each.start for each in places(stage.batch_size, pieces, every)):
            raise ValueError(
                f"{self.title}: batch_size {stage.batch_size} is divided into {pieces} parts "
                f"({self.world.size} processes, accumulate {stage.accumulate}) that begin at every "
                f"{every}th sample, and some would be empty; give more samples, or fewer parts"
            )
        self.learner.train()
        why = draws.why_undividable(self.learner)
        if why:
            raise ValueError(
                f"{self.title}: a batch in {pieces} parts is not the whole batch for this network: "
                f"{why}; train it in one process, without `accumulate`"
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
        self._state = found_state(self.folder)
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
        if self.world.size > 1 or self.stage.parallel == "fsdp":
            self._train(
                spread_over(
                    self.learner, self.world, self.stage.parallel, offload=self.stage.offload
                )
            )
        self._resume()
        if self.world.first:
            write_atomically(self.folder / ABOUT, json.dumps(self.question, indent=1).encode())
        progress = Progress(self.title, total=self.stage.steps, start=self.step)
        network = self.spread.network
        network.train()
        if self.stage.recompute:
            network.policy.recompute = True
        with self._log() as write, self._compiled() as update, self._stop() as stop:
            while self.step < self.stage.steps and not stop.asked:
                started = time.perf_counter()
                terms = update()  # counts the step
                progress.advance(loss=terms["loss"])
                done = self.step == self.stage.steps
                if done or self.step % self.stage.log_every == 0:
                    self._check_together(terms)
                    write({"step": self.step, "seconds": time.perf_counter() - started, **terms})
                if done or self.step % self.stage.checkpoint_every == 0:
                    self._save()
            if stop.asked and self._kept != self.step:
                self._save()
        progress.close()
        # After the last save: what is saved goes on from the weights, not from their average.
        for name, value in self.average.items():
            self.parameters[name].data.copy_(value)
        self.masters.restore()
        self.spread.gather()
        if self.stage.recompute:
            network.policy.recompute = False
        if self.stage.lora.rank:
            merge_lora(self.learner)
        self.learner.eval()

    def _rows_of(self, step: int) -> np.ndarray:
        """(b,) int64: the frames of a step, in the order of the data."""
        # Sorted: frames of one video are then read forwards.
        return np.sort(self.rows[draw(len(self.rows), self.stage.batch_size, step, self.seed)])

    def _division(self, rows: np.ndarray) -> Division | None:
        """How a batch of these frames is divided; None: it is not."""
        stage = self.stage
        if self.world.size * stage.accumulate == 1:
            return None
        return Division.of(
            len(rows), self.world, passes=stage.accumulate, every=stage.objective.every
        )

    def _batch(self, step: int, division: Division | None) -> Batch:
        """The batch of a step, with the pictures of this process's part of it; those of the next
        step are decoded during this one."""
        rows = self._rows_of(step)
        if division is None:
            batch = self.batches.batch(rows)
        else:
            batch = self.batches.batch(rows, pictures=division.seen)
        if step + 1 < self.stage.steps:
            ahead = self._rows_of(step + 1)
            later = self._division(ahead)
            self.batches.expect(ahead if later is None else ahead[later.seen])
        return batch

    def _told(self, keys: Tensor, division: Division | None) -> Trace:
        """What the teacher answers to a batch; each process asks for its own part."""
        if not self.teacher or not self.stage.needs:
            return {}
        if division is None:
            return self.teacher(keys)
        return told(division, self.world, self.teacher, keys)

    def _answers(
        self, batch: Batch, division: Division | None
    ) -> tuple[Trace, Callable[[Tensor], None]]:
        """The student's answers to a batch, and the way back from a loss of them."""
        objective = self.stage.objective

        def run(part: Batch) -> Trace:
            with self.learner.autocast(self.stage.precision):
                trace: Trace = self.spread.forward(
                    part,
                    objective.wants,
                    exploration=batch.exploration,
                    every=objective.every,
                )
            return trace

        def seed() -> None:
            # More than a stage has steps, so that no two seeds share a step's stream.
            torch.manual_seed(self.seed * 1_000_003 + self.step)

        if division is None:
            seed()
            return run(batch), Tensor.backward

        def run_part(samples: slice) -> Trace:
            seed()  # before each pass: all draw the whole batch's numbers
            with draws.divided(samples, division.whole, batch.state.device):
                return run(division.batch_of(batch, samples))

        divided = Divided(division, self.world, run_part, self.spread.exchange, layered=LAYERS)
        return divided.trace(), divided.backward

    def _update(self) -> dict[str, float]:
        stage = self.stage
        self.world.reached(self.step)
        rows = self._rows_of(self.step)
        division = self._division(rows)
        batch = self._batch(self.step, division)
        assert batch.keys is not None  # a batch made from episodes has them
        teacher = self._told(batch.keys, division)
        body = self.learner.policy.body
        # From seed and step alone, as torch's below: a resumed run draws what this one does.
        rng = np.random.default_rng([self.seed, self.step, 1])
        here = None if division is None else division.seen
        moment = Moment(self.step, stage.steps, rng, body.action_spec, body.actions, here)
        for transform in stage.transforms:
            batch, teacher = transform(batch, teacher, moment)
        if "imitation.teacher" in stage.objective.wants:
            batch = dataclasses.replace(batch, taught=teacher["actions"])
        if "imitation.velocity" in stage.objective.wants:
            batch = dataclasses.replace(batch, taught_condition=teacher["condition"])
        student, backward = self._answers(batch, division)
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
        backward(loss)
        if not self.spread.complete_at_once:
            self.masters.take()
        norm = whole(nn.utils.clip_grad_norm_(self.parameters.values(), stage.clip))
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
        layers = self.spread.network.policy.blocks if self.stage.compile else []
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

    def _save(self) -> None:
        # No RNG: every step seeds its own. A teacher that is a module is the student's own average,
        # which changes as it learns; any other stands still.
        teacher = self.teacher.state_dict() if isinstance(self.teacher, nn.Module) else {}
        # What stands still is what it was at the start, which the question knows.
        network = self.spread.network
        still = {name for name, each in network.named_parameters() if not each.requires_grad}
        learner = network.state_dict()
        state = {
            "question": self.question,
            "step": self.step,
            "learner": {name: each for name, each in learner.items() if name not in still},
            "masters": self.masters.state(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "average": self.average,
            "teacher": teacher,
            "lines": self.lines,
        }
        if self.world.first:
            # A state promises the lines of its steps, which are not written again.
            make_durable(self.folder / LINES)
        if self.spread.sharded:
            save_shards(self.folder, state, self.world)
        elif self.world.first:
            save_state(self.folder / STATE, state)
        self._kept = self.step

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
        self.promised = state.get("lines")
        # As the optimisers see them, in the order in which they number them.
        numbered = [list(_parameters(optimiser)) for optimiser in self.optimisers]
        network = self.spread.network.state_dict()
        if isinstance(state, SavedShards):
            state = load_shards(state, network, self.parameters, numbered)
        # A state of before also holds what stands still.
        learner = {name: placed(each, network[name]) for name, each in state["learner"].items()}
        self.spread.network.load_state_dict({**network, **learner})
        masters = state.get("masters", {})
        self.masters.load(
            {name: placed(each, self.parameters[name]) for name, each in masters.items()}
        )
        for optimiser, saved, parameters in zip(
            self.optimisers, state["optimisers"], numbered, strict=True
        ):
            for number, kept in saved["state"].items():
                for name, each in kept.items():
                    kept[name] = placed(each, parameters[number])
            optimiser.load_state_dict({**optimiser.state_dict(), "state": saved["state"]})
        self.average = {
            name: placed(each, self.parameters[name]) for name, each in state["average"].items()
        }
        self.step = state["step"]
        self._kept = self.step
        if isinstance(self.teacher, nn.Module):
            self.teacher.load_state_dict(state["teacher"])

    @contextlib.contextmanager
    def _stop(self) -> Iterator[Stop]:
        """Ctrl-C waits for the step that runs, where one process trains; of several each would end
        another step. Raises RankError where the others are gone."""
        if self.world.size == 1:
            with waiting_stop(self.title) as stop:
                yield stop
            return
        try:
            yield Stop()
        except RuntimeError as error:
            if not is_of_others(error):
                raise
            kept = f"The last saved state is in {self.folder}"
            raise self.world.lost(self.title, self.step, error, kept=kept) from error

    def _check_together(self, terms: dict[str, float]) -> None:
        """Raises RankError where the processes have come apart: they compute the same loss."""
        found = self.world.said([terms["loss"], terms["grad_norm"]])
        for rank, each in enumerate(found):
            if not np.allclose(each, found[0], rtol=1e-3):
                raise RankError(
                    f"{self.title}: step {self.step}: rank 0 has loss and norm of the gradient "
                    f"{found[0]} and rank {rank} {each}; they compute the same of the same numbers, "
                    "so a device or a library of that machine computes otherwise"
                )

    @contextlib.contextmanager
    def _log(self) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Lines of metrics.jsonl; those past the resumed step are dropped, so no step stands there
        twice, and so is half a line."""
        if not self.world.first:
            yield lambda row: None
            return
        path = self.folder / LINES
        kept = ""
        rows = []
        for line in whole_lines(path):
            row = json.loads(line)
            if row["step"] <= self.step:
                kept += sealed(line) + "\n"
                rows.append(row)
        check_count(path, len(rows), self.promised, until=f"step {self.step}")
        self.lines = len(rows)
        write_atomically(path, kept.encode())  # killed here, the log of before still stands
        series = None if self.log is None else self.log.series(self.folder)
        if series is not None:
            series.catch_up(rows)
        with appending(path) as add:

            def write(row: dict[str, Any]) -> None:
                add(json.dumps(row))
                self.lines += 1
                if series is not None:
                    series.point(row["step"], row)

            yield write


def _parameters(optimiser: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    for group in optimiser.param_groups:
        yield from group["params"]
