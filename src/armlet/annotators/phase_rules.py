"""Phases by rule, from kinematics alone: gripper command and opening, where the hand is told to go,
and where it is.

The rules read a whole episode, so what a step is may depend on what comes of it: fingers that close
are grasping only if something is then between them, and a hand with a thing is placing where it
will let go. They know no simulator, no expert and no words of the instruction, so they name no
element. Nine phases as in VLA-AD (arXiv 2605.16241):

    idle          has not begun to move              completed    moves no more
    approaching   moves with nothing in hand         transporting moves with a thing in hand
    grasping      closes on a thing                  regrasping   closes again, after a grasp that
                  failed or was lost
    holding       keeps still with a thing in hand   placing      over the place where it lets go,
                  until it has left it
    operating     moves level and low: slides a thing that it pushes (closed, nothing in hand) or
                  holds (not lifted)
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from armlet.annotators import Annotator, Labels, stretches
from armlet.data.episodes import EpisodeFrames


@dataclass(frozen=True)
class Embodiment:
    """What a robot's numbers mean and where its phases begin. Lengths in metres, speeds in metres a
    second, times in seconds."""

    position: tuple[int, int, int]
    """Indices into the state of the tool centre: x, y, z up."""
    opening: int
    """Index into the state of the fingers' opening."""
    gripper: int
    """Index of the gripper command."""
    closes_from: float
    """The gripper command above which it closes."""
    metres_per_command: float | None
    """What a translation command of 1.0 (the action's first three numbers) moves in one step;
    none: commands are no displacements, and the motion measured is used."""
    empty: float
    """Fingers opened less than this hold nothing."""
    opened: float
    """Nor do fingers opened more than this."""
    settled: float
    """Fingers that move less than this a step have come to rest."""
    low: float
    """A closed hand that holds nothing and moves level below this height is operating."""
    lift: float
    """A thing is lifted when it is so much higher than where it was grasped."""
    near: float
    """Within this of where it will let go a hand is placing."""
    clear: float
    """Having let go, it has left when it is so far away."""
    again: float
    """Closing again within this of where a thing was lost is the same thing."""
    still: float
    """Slower than this, in metres a second, is keeping still …"""
    pause: float
    """… where it lasts for so many seconds."""
    shortest: float
    """Interruptions of a phase shorter than this, in seconds, are part of it."""
    axes: tuple[str, str, str, str, str, str]
    """What moving along +x, −x, +y, −y, +z, −z is called."""
    closes_above: bool = True
    """False: the gripper closes below `closes_from`."""
    hooks: bool = False
    """An open hand that moves level and low is operating, too."""


TABLETOP = Embodiment(
    position=(0, 1, 2),
    opening=3,
    gripper=3,
    closes_from=0.0,
    metres_per_command=0.05,
    empty=0.006,
    opened=0.055,
    settled=0.012,
    low=0.035,
    lift=0.027,
    near=0.022,
    clear=0.03,
    again=0.05,
    still=0.03,
    pause=0.2,
    shortest=0.1,
    axes=("push", "pull", "left", "right", "lift", "lower"),
)
# Meta-World's opening is 1 open, 0.3 closed on nothing and 0.45 on an object; many of its experts
# operate with an open hand. Set by looking at episodes of six tasks; its experts name no phases, so
# how well it does has not been measured. Buttons pressed from above and doors, which are not low,
# are called approaching.
METAWORLD = Embodiment(
    position=(0, 1, 2),
    opening=3,
    gripper=3,
    closes_from=0.3,
    metres_per_command=0.04,
    empty=0.35,
    opened=0.9,
    settled=0.15,
    low=0.11,
    lift=0.04,
    near=0.03,
    clear=0.04,
    again=0.05,
    still=0.03,
    pause=0.2,
    shortest=0.15,
    axes=("right", "left", "push", "pull", "lift", "lower"),
    hooks=True,
)


@dataclass(frozen=True)
class PhaseRules(Annotator):
    """Phases, and the direction of every operating segment, of a robot with one arm and a
    two-finger gripper."""

    embodiment: Embodiment = TABLETOP
    """What the robot's numbers mean, and where its phases begin."""

    def fingerprint(self) -> dict[str, Any]:
        return {"rules": 1, **dataclasses.asdict(self.embodiment)}

    def annotate(self, episode: EpisodeFrames, fps: float) -> Labels:
        motion = Motion.of(self.embodiment, episode, fps)
        phases = motion.phases()
        directions = ["none"] * len(phases)
        for start, stop in stretches(phases):
            if phases[start] == "operating":
                directions[start:stop] = [motion.direction(start, stop)] * (stop - start)
        return Labels.named(phases, directions)


@dataclass(frozen=True)
class Motion:
    """An episode of T steps as the rules see it: `place` (T, 3) metres, `wanted` (T, 3) metres a
    second, `closed` (T,) whether the command is to close, `gap` (T,) the fingers' opening."""

    embodiment: Embodiment
    fps: float
    place: np.ndarray
    wanted: np.ndarray
    closed: np.ndarray
    gap: np.ndarray

    @classmethod
    def of(cls, embodiment: Embodiment, episode: EpisodeFrames, fps: float) -> "Motion":
        place = episode.state[:, list(embodiment.position)].astype(np.float64)
        # Where the hand is told to go tells phases earlier than where it is: it lags behind, and is
        # stopped by what it pushes.
        if embodiment.metres_per_command is None:
            wanted = np.diff(place, axis=0, append=place[-1:]) * fps
        else:
            wanted = np.clip(episode.action[:, :3], -1, 1) * embodiment.metres_per_command * fps
        closed = (
            episode.action[:, embodiment.gripper] > embodiment.closes_from
        ) == embodiment.closes_above
        return cls(embodiment, fps, place, wanted, closed, episode.state[:, embodiment.opening])

    def phases(self) -> list[str]:
        # From the middle out: first what the fingers do, then rest over it, then what is too short.
        found = ["approaching"] * len(self.closed)
        held = self.held()
        lost = False  # the last grasp failed, or what it held was lost
        for start, stop in stretches(list(self.closed)):
            if self.closed[start]:
                lost = self._closed(found, held, start, stop, lost=lost)
            elif self.embodiment.hooks and found[start] != "placing":
                self._empty(found, start, stop)
        return self._smooth(self._rest(found, held))

    def held(self) -> np.ndarray:
        """(T,) bool: closed, the fingers at rest, and apart."""
        robot = self.embodiment
        # (T + 1,): how far the fingers moved before each step, and after the last.
        steps = np.abs(np.diff(self.gap, prepend=self.gap[:1], append=self.gap[-1:]))
        # Since the step before, or until the next.
        resting = np.minimum(steps[:-1], steps[1:]) < robot.settled
        apart = (self.gap > robot.empty) & (self.gap < robot.opened)
        # Fingers that are about to close on nothing pass through every width.
        after = np.append(self.gap[1:], self.gap[-1])
        return self.closed & resting & apart & (after > robot.empty)

    def direction(self, start: int, stop: int) -> str:
        """The name of the axis along which these steps move most."""
        moved = self.wanted[start:stop].sum(0)  # (3,): there and back again cancel out
        axis = int(np.abs(moved).argmax())
        return self.embodiment.axes[2 * axis + int(moved[axis] < 0)]

    def _level(self, step: int) -> bool:
        """Moving, and more sideways than up or down."""
        along = np.linalg.norm(self.wanted[step, :2])
        up = abs(self.wanted[step, 2])
        return bool(along > max(up, self.embodiment.still))

    def _closed(
        self, found: list[str], held: np.ndarray, start: int, stop: int, *, lost: bool
    ) -> bool:
        """Name the steps from `start` to `stop`, in which the command is to close. Returns whether
        they end in a loss."""
        for offset, end in stretches(list(held[start:stop])):
            first = start + offset
            last = start + end
            if held[first]:
                self._carry(found, first, last, height=self.place[max(first - 1, start), 2])
                lost = True  # if it comes to a grasp again before the fingers open
            else:
                self._empty(found, first, last)
                if last < stop:
                    self._grasp(found, first, last, again=lost)
        if held[start:stop].any():
            # A thing that is let go on purpose is not grasped again at the same place.
            lost = self._comes_back(stop)
            if not lost:
                self._place(found, held, start, stop)
            return lost
        # Closed on nothing and opened again. Only at a standstill was it an attempt to grasp: a
        # hand that moves closed may be pushing.
        failed = stop < len(found) and all(map(self._slow, range(start, stop)))
        if failed:
            found[start:stop] = ["regrasping" if lost else "grasping"] * (stop - start)
        return failed

    def _grasp(self, found: list[str], start: int, stop: int, *, again: bool) -> None:
        """Fingers that come to rest at `stop`: grasping, from when they were last empty on."""
        for step in range(stop - 1, start - 1, -1):
            if self.gap[step] < self.embodiment.empty:
                break
            found[step] = "regrasping" if again else "grasping"

    def _carry(self, found: list[str], start: int, stop: int, *, height: float) -> None:
        """With a thing in hand that was grasped at `height`: it is slid, or it is lifted and
        carried."""
        for step in range(start, stop):
            lifted = self.place[step, 2] - height > self.embodiment.lift
            # A slide that pauses goes on being one.
            sliding = self._level(step) or (self._slow(step) and found[step - 1] == "operating")
            found[step] = "operating" if sliding and not lifted else "transporting"

    def _empty(self, found: list[str], start: int, stop: int) -> None:
        """With nothing in hand: it travels, or it pushes or pulls."""
        for step in range(start, stop):
            low = self.place[step, 2] < self.embodiment.low
            found[step] = "operating" if low and self._level(step) else "approaching"

    def _slow(self, step: int) -> bool:
        return bool(np.linalg.norm(self.wanted[step]) < self.embodiment.still)

    def _comes_back(self, stop: int) -> bool:
        """Whether fingers that open at `stop` close again about there."""
        later = np.flatnonzero(self.closed[stop:])
        if not len(later):  # they stay open to the end
            return False
        return self._apart(stop, stop + int(later[0])) < self.embodiment.again

    def _apart(self, one: int, other: int) -> float:
        """Metres between two steps' places, seen from above."""
        return float(np.linalg.norm(self.place[one, :2] - self.place[other, :2]))

    def _place(self, found: list[str], held: np.ndarray, start: int, stop: int) -> None:
        """Placing, before and after fingers open at `stop`; an episode that ends with a thing in
        hand places nothing."""
        if stop == len(found):
            return
        for step in range(start, stop):
            if held[step] and self._apart(step, stop) < self.embodiment.near:
                found[step] = "placing"
        for step in range(stop, len(found)):
            has_left = self._level(step) and self._apart(step, stop) > self.embodiment.clear
            if self.closed[step] or has_left:
                break
            found[step] = "placing"

    def _rest(self, found: list[str], held: np.ndarray) -> list[str]:
        """Stretches without motion get the names of rest: before everything, with a thing in hand,
        after everything."""
        moved = np.diff(self.place, axis=0, append=self.place[-1:])  # (T, 3)
        speed = np.linalg.norm(moved, axis=1) * self.fps
        # Both: a hand that is told nothing may swing on, and one that is held may be told to go.
        is_told_to_rest = np.linalg.norm(self.wanted, axis=1) < self.embodiment.still
        still = is_told_to_rest & (speed < self.embodiment.still)
        for start, stop in stretches(list(still)):
            if not still[start] or stop - start < self.embodiment.pause * self.fps:
                continue
            for step in range(start, stop):
                if found[step] in ("grasping", "regrasping"):
                    continue
                if stop == len(found):
                    found[step] = "completed"
                elif start == 0:
                    found[step] = "idle"
                elif held[step]:
                    found[step] = "holding"
        return found

    def _smooth(self, found: list[str]) -> list[str]:
        """A short interruption of a phase belongs to it. Grasping is short by nature."""
        shortest = self.embodiment.shortest * self.fps
        parts = stretches(found)  # as they were before: one that has grown swallows no other
        for index in range(1, len(parts) - 1):
            start, stop = parts[index]
            before = found[parts[index - 1][0]]
            after = found[parts[index + 1][0]]
            is_short = stop - start < shortest and found[start] not in ("grasping", "regrasping")
            if is_short and before == after:
                found[start:stop] = [before] * (stop - start)
        return found
