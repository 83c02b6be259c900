"""Networks and students for a robot that no recipe knows: how many actions a chunk has, which
patches divide the pictures and which primitives there are follows from its episodes, or from its
teacher. Knows no data set.

A chunk is a time: 0.6 s are 30 actions at 50 Hz and 3 at 5 Hz. What a robot meets while it carries
them out blindly is as far away either way.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from armlet import limits
from armlet.data.codec import Codebook
from armlet.limits import ABOVE_0
from armlet.policies.action_query import ActionQueryNetwork, ReuseDecoder
from armlet.policies.contract import Backbone, Body, Network, Student, sides_of
from armlet.policies.two_tower import TwoTower, TwoTowerNetwork, TwoTowerStudent
from armlet.types import Batch

PATCHES = (16, 12, 8)  # pixels, those that our eyes can have, from few tokens to many
# Of a chunk. A robot that does not look for a minute is blind, whatever its rate; and a network
# that decides a thousand actions at a time learns the mean of all that may happen meanwhile.
LONGEST_SECONDS = 60.0
LONGEST_CHUNK = 1000  # actions
MOST_PRIMITIVES = 4096  # to choose among: each must stand for many actions of the data


def patch_for(sizes: Iterable[int]) -> int:
    """The largest patch that divides pictures of all these sizes. Raises ValueError where none
    does."""
    sides = sorted(set(sizes))
    for patch in PATCHES:
        if not any(side % patch for side in sides):
            return patch
    raise ValueError(
        f"pictures of {', '.join(map(str, sides))} pixels a side: no patch of {PATCHES} divides "
        "them all; give `--pictures.fit letterbox --pictures.size` a multiple of 8, such as 96"
    )


@dataclass(frozen=True)
class FitsRobot(Network):
    """A network whose chunk, and patches, fit the robot it is made for."""

    settles: ClassVar[tuple[str, ...]] = ("chunk", "execute")  # fields of `network` without effect
    network: Network
    """Its other sizes; it has a chunk, and `strides` or one `patch`."""
    chunk_seconds: float = 0.6
    """Seconds that a chunk of actions lasts."""
    execute_seconds: float = 0.2
    """Seconds of it that are carried out before the policy looks again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        limits.check(self, chunk_seconds=(ABOVE_0, LONGEST_SECONDS))
        limits.check(self, execute_seconds=(ABOVE_0, self.chunk_seconds))

    def build(self, body: Body, cameras: dict[str, int]) -> Backbone:
        hz = body.action_spec.control_hz
        # At least one action, and one carried out, however slow the robot.
        chunk = max(1, round(self.chunk_seconds * hz))
        if chunk > LONGEST_CHUNK:
            raise ValueError(
                f"{type(self).__name__}.chunk_seconds is {self.chunk_seconds:g}: a chunk of {chunk} "
                f"actions at {hz:g} Hz, expected at most {LONGEST_CHUNK}; give "
                f"`--network.chunk-seconds` of at most {LONGEST_CHUNK / hz:g}, or correct the rate"
            )
        execute = min(chunk, max(1, round(self.execute_seconds * hz)))
        return fitted(self.network, cameras, chunk=chunk, execute=execute).build(body, cameras)


def fitted(network: Network, cameras: dict[str, int], **sizes: Any) -> Network:
    """The network with other sizes, and with patches that divide the pictures of these cameras,
    name → side; those that it names itself stay. Raises ValueError where it names another camera."""
    if hasattr(network, "strides"):  # eyes of its own for each camera; else one ViT for all
        unknown = sorted(set(network.strides) - set(cameras))
        if unknown and cameras:
            raise ValueError(
                f"`strides` name {', '.join(unknown)}, and the policy looks through "
                f"{', '.join(cameras)}; name one of these"
            )
        fitting = {name: patch_for([side]) for name, side in cameras.items()}
        sizes["strides"] = fitting | network.strides
    elif cameras:
        sizes["patch"] = patch_for(cameras.values())
    return replace(network, **sizes)


@dataclass(frozen=True)
class Choosing(FitsRobot):
    """Two towers that choose among primitives which k-means finds in the robot's own actions, and
    refine what they chose."""

    settles: ClassVar[tuple[str, ...]] = ("chunk", "execute", "patch", "head")
    primitives: int = 24
    """How many actions there are to choose among."""

    def __post_init__(self) -> None:
        super().__post_init__()
        limits.check(self, primitives=(2, MOST_PRIMITIVES))

    def suited(self, body: Body, actions: np.ndarray) -> Network:
        # Primitives depend on actions, the chunk on the robot alone: that is left to FitsRobot.
        options = {"primitives": primitives(body, actions, self.primitives), "refine": True}
        network = fitted(self.network, {}, head="codebook", head_options=options)
        return FitsRobot(network, self.chunk_seconds, self.execute_seconds)

    def build(self, body: Body, cameras: dict[str, int]) -> Backbone:
        raise ValueError("Choosing finds its primitives in actions; call suited() with them first")


def primitives(body: Body, actions: np.ndarray, size: int) -> list[list[float]]:
    """`size` actions (as a network sees them) that `actions` (N, a) of a data set lie close to.

    Raises ValueError where on one side of a gripper there are fewer different ones than its share.
    """
    spec = body.action_spec
    values = body.actions.apply(np.asarray(actions, np.float64))  # normalised, about [−1, 1]
    ends = np.full((2, spec.dims), ((spec.gripper_open,), (spec.gripper_closed,)))
    opened, closed = body.actions.apply(ends)[:, spec.grippers[0]] if spec.grippers else (-1, 1)
    low = values.min(0)
    high = values.max(0)
    still = high - low < 1e-6  # a dimension that never moves has no range to measure distance in
    low[still] -= 1
    high[still] += 1
    # Data in which a gripper never opens still know where open is.
    for gripper in spec.grippers:
        low[gripper] = min(low[gripper], opened, closed)
        high[gripper] = max(high[gripper], opened, closed)
    # The robot as the network sees it: the codebook measures distance in shares of these ranges.
    seen = replace(
        spec,
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        gripper_open=float(opened),
        gripper_closed=float(closed),
    )
    return Codebook.fit(values, seen, size=size).array.tolist()


@dataclass(frozen=True)
class Alike(Student):
    """Another kind of network than the teacher's, from nothing, that decides as many actions at a
    time as its teacher and sees its pictures in patches that divide them."""

    own_eyes: ClassVar[bool] = True
    settles: ClassVar[tuple[str, ...]] = ("chunk", "execute")
    network: Network
    """Its other sizes; chunk and execute are the teacher's."""

    def from_nothing(self) -> Student:
        return self  # of the teacher it asks its numbers, and of these a stand-in has the same

    def build(self, teacher: Backbone, sample: Batch | None = None) -> Backbone:
        if sample is None:
            raise ValueError("Alike sees through the data's cameras; pass build() a sample batch")
        cameras = sides_of(sample)
        sizes = {"chunk": teacher.chunk, "execute": teacher.execute}
        return fitted(self.network, cameras, **sizes).build(teacher.body, cameras)


@dataclass(frozen=True)
class SameChoices(Student):
    """Two towers of other sizes than the teacher's, that choose among the same primitives, as often
    and in the same patches."""

    settles: ClassVar[tuple[str, ...]] = ("chunk", "execute", "patch", "head", "text-tokens")
    network: TwoTowerNetwork
    """Its other sizes."""

    def from_nothing(self) -> Student:
        return self  # as `Alike`: a stand-in has primitives of its own

    def build(self, teacher: Backbone, sample: Batch | None = None) -> Backbone:
        if not isinstance(teacher, TwoTower) or teacher.network.head != "codebook":
            raise ValueError(
                f"the teacher is a {type(teacher).__name__} that does not choose among primitives, "
                "and this student learns which it chooses; make one with `armlet teach` of the "
                "same recipe, and leave `--teacher` out"
            )
        theirs = teacher.network
        network = replace(
            self.network,
            head=theirs.head,
            head_options=theirs.head_options,
            patch=theirs.patch,
            chunk=theirs.chunk,
            execute=theirs.execute,
            text_tokens=theirs.text_tokens,
        )
        return TwoTowerStudent(network).build(teacher, sample)


@dataclass(frozen=True)
class FitsPictures(Student):
    """A student whose network sees the data's pictures in patches that divide them, and takes those
    numbers of the state for the gripper's that are named as a gripper's command is."""

    settles: ClassVar[tuple[str, ...]] = ("gripper-state",)
    student: ReuseDecoder
    """All else of it."""

    def build(self, teacher: Backbone, sample: Batch | None = None) -> Backbone:
        if sample is None:
            raise ValueError("FitsPictures looks at the data; pass build() a sample batch")
        sizes = {"gripper_state": gripper_state(teacher.body)}
        network = fitted(self.student.network, sides_of(sample), **sizes)
        assert isinstance(network, ActionQueryNetwork)  # `fitted` changes sizes, not kinds
        return replace(self.student, network=network).build(teacher, sample)


def gripper_state(body: Body) -> tuple[int, ...]:
    """The numbers of a robot's state that are named as one of its gripper's commands; none where
    that would be all of it."""
    commands = {body.action_spec.names[index].casefold() for index in body.action_spec.grippers}
    names = body.state_names
    found = [index for index, name in enumerate(names) if name.casefold() in commands]
    return () if len(found) == len(names) else tuple(found)
