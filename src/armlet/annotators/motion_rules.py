"""Phases of any robot, by rule, from what every robot has: how its commands move it, and its
grippers. For robots with one arm whose state says where the hand is in metres, `phase_rules` sees
more.

The words are VLA-AD's (arXiv 2605.16241), coarser: nothing here knows whether fingers hold a thing.

    idle          has not begun to move             completed     moves no more
    approaching   moves with all grippers open      transporting  moves with one closed
    grasping      one has just closed               regrasping    and had been open for a moment only
    holding       keeps still on the way            placing       one is about to open, or just has
    operating     moves, of a robot without grippers

Lengths are shares of a dimension's range, so metres, degrees and ticks are treated alike. It names
no direction and no element. What it says has not been compared with anybody's labels.
"""

from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any

import numpy as np

from armlet import limits
from armlet.annotators import Annotator, Labels, stretches
from armlet.data.episodes import EpisodeFrames
from armlet.limits import ABOVE_0
from armlet.robot.spec import ActionSpec


@dataclass(frozen=True)
class MotionRules(Annotator):
    """See the module's docstring."""

    robot: ActionSpec | None = None
    """What the commands mean; None: what the teacher says of its robot."""
    still: float = 0.1
    """Slower than this share of the episode's usual speed is keeping still."""
    pause: float = 0.3
    """Seconds for which it must keep still, to count as that."""
    grasp: float = 0.5
    """Seconds from when a gripper closes that are grasping."""
    release: float = 0.5
    """Seconds before and after a gripper opens that are placing."""
    again: float = 1.0
    """Seconds: a gripper that was open for less is regrasping."""

    def __post_init__(self) -> None:
        limits.check(self, still=(ABOVE_0, 1))
        limits.check(self, pause=(0, inf), grasp=(0, inf), release=(0, inf), again=(0, inf))

    def suited(self, robot: ActionSpec) -> "MotionRules":
        return self if self.robot else replace(self, robot=robot)

    def fingerprint(self) -> dict[str, Any]:
        return {"rules": 1, **asdict(self)}

    def annotate(self, episode: EpisodeFrames, fps: float) -> Labels:
        if self.robot is None:
            raise ValueError("MotionRules does not know whose commands these are; call suited()")
        actions = np.asarray(episode.action, np.float64)
        moving = ~self._still(actions, fps)  # (T,)
        closed = self._closed(actions)
        if self.robot.grippers:
            phases = ["transporting" if shut else "approaching" for shut in closed]
            self._grippers(phases, closed, fps)
        else:
            phases = ["operating"] * len(actions)
        self._rest(phases, moving)
        return Labels.named(phases)

    def _still(self, actions: np.ndarray, fps: float) -> np.ndarray:
        """(T,) bool: in a stretch of at least `pause` in which no command moves the robot."""
        assert self.robot is not None
        arm = [index for index in range(self.robot.dims) if index not in self.robot.grippers]
        reach = np.array(self.robot.high) - np.array(self.robot.low)
        # A dimension without a known range, or that has none, is measured in its own unit.
        scale = np.where(np.isfinite(reach) & (reach > 0), reach, 1.0)[arm]
        steps = actions[:, arm]
        if self.robot.mode == "absolute":  # a place that is commanded again moves nothing
            steps = np.diff(steps, axis=0, prepend=steps[:1])
        speed = np.linalg.norm(steps / scale, axis=1)
        # Not the highest: a single jerk would make all else look still.
        usual = np.quantile(speed, 0.9)
        slow = np.asarray(speed <= self.still * usual)
        for start, stop in stretches(slow.tolist()):
            if slow[start] and stop - start < self.pause * fps:
                slow[start:stop] = False
        return slow

    def _closed(self, actions: np.ndarray) -> np.ndarray:
        """(T,) bool: whether a gripper is told to be nearer to closed than to open."""
        assert self.robot is not None
        opened = self.robot.gripper_open
        shut = self.robot.gripper_closed
        places = actions[:, list(self.robot.grippers)]
        return np.any(np.abs(places - shut) < np.abs(places - opened), axis=1)

    def _grippers(self, phases: list[str], closed: np.ndarray, fps: float) -> None:
        """Name the steps about every change of a gripper."""
        parts = stretches(closed.tolist())
        # In two goes, so that where both are near a step, closing has the last word.
        for number, (start, stop) in enumerate(parts):
            if number == 0:  # how it begins is no change
                continue
            if not closed[start]:  # it opens here
                before = max(parts[number - 1][0], start - round(self.release * fps))
                after = min(stop, start + round(self.release * fps))
                phases[before:after] = ["placing"] * (after - before)
        for number, (start, stop) in enumerate(parts):
            if number and closed[start]:
                was_open, opened = parts[number - 1]
                after = min(stop, start + round(self.grasp * fps))
                again = number > 1 and opened - was_open < self.again * fps
                phases[start:after] = ["regrasping" if again else "grasping"] * (after - start)

    def _rest(self, phases: list[str], moving: np.ndarray) -> None:
        """Name the stretches without motion: before everything, on the way, after everything."""
        for start, stop in stretches(moving.tolist()):
            if moving[start]:
                continue
            name = "holding"
            if start == 0:
                name = "idle"
            elif stop == len(phases):
                name = "completed"
            for step in range(start, stop):
                # A gripper may work while the arm keeps still: what it does says more.
                if phases[step] in ("transporting", "approaching", "operating"):
                    phases[step] = name
