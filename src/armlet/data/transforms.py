"""What a stage of training does to its batches, as values: noise, balance, budgets, exploration.

A stage lists its transforms. The training loop asks each of them which frames are drawn, once, and
hands each the batch and the teacher's answer of every step, in the order of the list; it knows none
by name. A transform is a frozen dataclass whose fields are its options. `Augment`, which changes
pictures, is in augment.py. Knows batches and a robot's actions; knows no network.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from armlet import limits
from armlet.data.noise import flip_grippers
from armlet.limits import ABOVE_0, MOST
from armlet.robot.normalise import Normaliser
from armlet.robot.spec import ActionSpec
from armlet.types import Batch, Trace

Classes = Callable[[], Tensor | None]  # asked only by a transform that needs them: see `choose`
MOST_OFTEN = 20  # times that a frame of a rare action is drawn in an epoch, at most


@dataclass(frozen=True)
class Moment:
    """One step of a stage: its number (from 0) and how many there are, the numbers drawn for it
    (the same whenever it is run), and the robot whose normalised actions a batch holds.

    `pictures`: where a batch is divided over processes, the moments of it whose pictures it has,
    those of this process; all else is of the whole batch. None: it has all.
    """

    step: int
    steps: int
    rng: np.random.Generator
    spec: ActionSpec
    actions: Normaliser
    pictures: slice | None = None


@dataclass(frozen=True)
class BatchTransform:
    """One thing that is done to batches; this one does nothing. A subclass overrides what it
    needs."""

    needs: ClassVar[frozenset[str]] = frozenset()  # what it reads of the teacher's trace

    def __call__(self, batch: Batch, teacher: Trace, moment: Moment) -> tuple[Batch, Trace]:
        """The batch, and the teacher's answer to it, as the student is to see them. Neither is
        changed in place. What changes pictures draws for the whole batch, and heeds
        `moment.pictures`."""
        return batch, teacher

    def choose(self, rows: np.ndarray, classes: Classes) -> np.ndarray:
        """The frames of an epoch (n,), some perhaps several times, out of `rows` (m,).

        `classes()` answers (N,) for all N frames of the data: which of a few actions the policy's
        head would have to choose at each; None where it chooses among none.
        """
        return rows

    @property
    def depends_on_steps(self) -> bool:
        """Whether what it does at a step depends on how many steps there are: such a stage cannot
        go on where it is given more of them."""
        return False


@dataclass(frozen=True)
class Balance(BatchTransform):
    """Frames of rare actions are drawn more often, where the head chooses among a few: (frames of
    the commonest action / frames of its own) ** power times, rounded and at most 20."""

    power: float = 0.5
    """0: frames are drawn as they come; 1: all actions about equally often."""

    def __post_init__(self) -> None:
        limits.check(self, power=(0, MOST))

    def choose(self, rows: np.ndarray, classes: Classes) -> np.ndarray:
        if not self.power:  # ahead of asking the policy, which need not choose among a few then
            return rows
        found = classes()
        if found is None:
            raise ValueError(
                f"{self}: the policy's action head does not choose among a few actions, so none is "
                "rare; leave Balance out of the stage's transforms, or set its power to 0"
            )
        mine = found.cpu().numpy()[rows]
        counts = np.bincount(mine)[mine]  # (m,): how many frames have the same action as each
        times = np.clip(np.round((counts.max() / counts) ** self.power), 1, MOST_OFTEN)
        return np.repeat(rows, times.astype(np.int64))


@dataclass(frozen=True)
class Explore(BatchTransform):
    """Noise in what a network decides while it trains: a router's draws. Without it, it decides as
    it will when it is deployed."""

    first: float = 1.0
    """Scale of the noise at the first step: 1, a full Gumbel draw; 0, none."""
    last: float = 0.0
    """Scale of the noise towards the last step; in between it changes in a straight line."""

    def __post_init__(self) -> None:
        limits.check(self, first=(0, MOST), last=(0, MOST))

    def __call__(self, batch: Batch, teacher: Trace, moment: Moment) -> tuple[Batch, Trace]:
        scale = self.first + (self.last - self.first) * moment.step / moment.steps
        return replace(batch, exploration=scale), teacher

    @property
    def depends_on_steps(self) -> bool:
        return self.first != self.last


@dataclass(frozen=True)
class DrawBudget(BatchTransform):
    """Each step has a budget of its own, for a student with a dial that is told what a decision may
    cost."""

    lowest: float = 0.1
    """The smallest share of the backbone that is drawn, above 0."""
    highest: float = 1.0
    """The largest, at most 1."""

    def __post_init__(self) -> None:
        limits.check(self, lowest=(ABOVE_0, 1), highest=(ABOVE_0, 1))
        limits.check(self, lowest=(ABOVE_0, self.highest))

    def __call__(self, batch: Batch, teacher: Trace, moment: Moment) -> tuple[Batch, Trace]:
        budget = float(moment.rng.uniform(self.lowest, self.highest))
        return replace(batch, budget=budget), teacher


@dataclass(frozen=True)
class TeacherTells(BatchTransform):
    """In some of the frames the teacher's actions stand in place of the expert's, as those to
    imitate: so an action head learns from any teacher by its own loss, also one that chooses."""

    needs: ClassVar[frozenset[str]] = frozenset({"actions"})
    share: float = 0.5
    """The share of the frames, drawn anew at every step."""

    def __post_init__(self) -> None:
        limits.check(self, share=(ABOVE_0, 1))

    def __call__(self, batch: Batch, teacher: Trace, moment: Moment) -> tuple[Batch, Trace]:
        expert, _ = batch.targets()
        drawn = moment.rng.random(len(batch)) < self.share
        theirs = torch.from_numpy(drawn).to(expert.device)[:, None, None]  # (b, 1, 1)
        told = torch.where(theirs, teacher["actions"].to(expert.dtype), expert)
        return replace(batch, actions=told), teacher


def _to_another(who: BatchTransform, count: int, moment: Moment) -> int:
    """By how many places a batch of `count` frames is turned round, so that no frame stays where it
    was; drawn at every step. Raises ValueError where there is no other frame."""
    if count < 2:
        raise ValueError(f"{who}: a batch of {count} has no other frame; give more at a step")
    return int(moment.rng.integers(1, count))


@dataclass(frozen=True)
class ShuffledTeacher(BatchTransform):
    """A control: every frame is compared with what the teacher answered to another frame of its
    batch, all of it. What a student still gains is no knowledge of the teacher's."""

    def __call__(self, batch: Batch, teacher: Trace, moment: Moment) -> tuple[Batch, Trace]:
        by = _to_another(self, len(batch), moment)
        answers = {}
        for name, answer in teacher.items():
            answers[name] = answer.roll(by, 0)
        return batch, answers


@dataclass(frozen=True)
class ShuffledWords(BatchTransform):
    """A control: every frame has an annotator's words and labels of another frame of its batch. They
    are as many and as often as before, and say nothing of the frame."""

    def __call__(self, batch: Batch, teacher: Trace, moment: Moment) -> tuple[Batch, Trace]:
        if batch.description is None or batch.description_mask is None:
            raise ValueError(f"{self}: this batch has no words; give the recipe an `annotator`")
        by = _to_another(self, len(batch), moment)
        labels = {}
        for name, label in batch.labels.items():
            labels[name] = label.roll(by, 0)
        told = replace(
            batch,
            description=batch.description.roll(by, 0),
            description_mask=batch.description_mask.roll(by, 0),
            labels=labels,
        )
        return told, teacher


@dataclass(frozen=True)
class GripperNoise(BatchTransform):
    """Gripper commands told wrong on purpose, the expert's and the teacher's final ones alike
    (data/noise.py)."""

    share: float = 0.0
    """The share of all gripper commands that say the opposite, from 0 to 1."""

    def __post_init__(self) -> None:
        limits.check(self, share=(0, 1))

    def __call__(self, batch: Batch, teacher: Trace, moment: Moment) -> tuple[Batch, Trace]:
        if not self.share:
            return batch, teacher
        spec = moment.spec
        if not spec.grippers:
            raise ValueError(f"{self}: this robot's actions have no gripper; set the share to 0")
        assert batch.keys is not None  # a batch made from episodes has them
        # Half way between open and closed, as a network sees it.
        halves = np.full(spec.dims, (spec.gripper_open + spec.gripper_closed) / 2, np.float32)
        middles = moment.actions.apply(halves)
        told, _ = batch.targets()
        answered = teacher.get("actions")
        for index in spec.grippers:
            middle = float(middles[index])
            told = flip_grippers(told, batch.keys, index, self.share, middle=middle)
            if answered is not None:
                answered = flip_grippers(answered, batch.keys, index, self.share, middle=middle)
        # The expert's and the teacher's at the same steps: both go by the keys.
        batch = replace(batch, actions=told)
        if answered is not None:
            teacher = {**teacher, "actions": answered}
        return batch, teacher
