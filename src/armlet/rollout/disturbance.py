"""What keeps an arm from doing as it is told, so that a policy cloned from its episodes has seen
mistakes and how they are corrected (DART, Laskey et al. 2017).

One `Disturbance` belongs to one episode: it draws from the episode's own seed, and counts its
steps. Knows worlds; knows no policy and no file.
"""

from dataclasses import dataclass

import numpy as np

from armlet.benchmarks import World
from armlet.robot.spec import ActionSpec


@dataclass(frozen=True)
class Perturbation:
    """How a share of the episodes is disturbed.

    `share` of episodes; in them `probability` per step of starting a disturbance that lasts 1–3
    steps and adds a constant of up to `size` (in units of a full command) to every dimension but
    the gripper, which flips with probability `flip` instead.

    A share of `distracted` episodes has the hand go to another thing for up to `longest` steps,
    from the first step in half of them and from a later one in the others, if the world has such a
    thing.
    """

    share: float = 0.6
    probability: float = 0.25
    size: float = 0.7
    flip: float = 0.08
    distracted: float = 0.5
    longest: int = 8


class Disturbance:
    """The action that was wanted → the one that is carried out, for one episode of `world`."""

    def __init__(
        self, perturbation: Perturbation, world: World, spec: ActionSpec, seed: int
    ) -> None:
        self.perturbation = perturbation
        self.world = world
        self.spec = spec
        # A stream of its own: the world draws from the seed as well.
        self.rng = np.random.default_rng([seed, 1])
        # The order of the draws is part of the data: an episode of a seed stays what it was.
        self.disturbed = self.rng.random() < perturbation.share
        self.first, self.last, self.elsewhere = self._detour()
        self.step = 0
        self.left = 0  # steps that the present offset still lasts
        self.offset = np.zeros(spec.dims, np.float32)

    def __call__(self, action: np.ndarray) -> np.ndarray:
        """`action` (a,) is the expert's; a detour takes its place before an offset is added."""
        begins = self.disturbed and self.left == 0
        if begins and self.rng.random() < self.perturbation.probability:
            self.left = int(self.rng.integers(1, 4))  # 1 to 3 steps
            self.offset = self._draw_offset(action)
        away = None
        if self.first <= self.step < self.last:
            # None in a world that has no other thing to go to.
            away = self.world.distraction(self.elsewhere)
        self.step += 1
        wanted = action if away is None else away
        if self.left == 0:
            return wanted
        self.left -= 1
        # The expert's commands go from −1 to 1.
        return np.clip(wanted + self.offset, -1, 1).astype(np.float32)

    def _detour(self) -> tuple[int, int, int]:
        """First and last (exclusive) step of a distraction, and the number of the thing; (0, 0, …)
        where there is none."""
        if self.rng.random() >= self.perturbation.distracted:
            return 0, 0, 0
        first = 0 if self.rng.random() < 0.5 else int(self.rng.integers(1, 8))
        last = first + int(self.rng.integers(2, self.perturbation.longest + 1))
        return first, last, int(self.rng.integers(1000))

    def _draw_offset(self, action: np.ndarray) -> np.ndarray:
        size = self.perturbation.size
        offset = self.rng.uniform(-size, size, self.spec.dims).astype(np.float32)
        for index in self.spec.grippers:
            flips = self.rng.random() < self.perturbation.flip
            # −2 x added to x is −x: open becomes closed.
            offset[index] = -2 * action[index] if flips else 0.0
        return offset
