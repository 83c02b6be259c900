"""Five robots that armlet has never heard of, as small data sets: what a stranger would bring.

Each has its own number of dimensions, rate, cameras and units, and one structure that can be seen:
two dots, and words that say to which of them the hand goes. The red dot lies in the left half and
the blue one in the right half, so that a tiny network learns the way in seconds, and where in its
half a dot lies only the picture tells.

    python tests/robots.py FOLDER        # writes all five, with the options each needs

`lerobot_side.py robot NAME` has the real lerobot write one of them (make test-lerobot). Knows no
policy and no recipe.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from armlet.data.episodes import EpisodeDataset, EpisodeFrames, Features
from armlet.data.writer import EpisodeWriter

WORDS = ("go to the red dot", "go to the blue dot")
COLOURS = ((220, 30, 30), (40, 60, 230))


@dataclass(frozen=True)
class Robot:
    """A robot as its data set shows it. The hand's place on the table, (x, y) in 0 to 1, is what its
    numbers are made from: an absolute command is `across` · place + `offset`, a relative one
    `across` · the change of place. `grippers`: dimensions that close at the dot.

    `options`: what its data cannot say, as a user says it on the command line.
    """

    name: str
    hz: int
    mode: str
    action: tuple[str, ...]
    state: tuple[str, ...]
    cameras: dict[str, tuple[int, int]]
    across: tuple[tuple[float, float], ...]  # (a, 2)
    offset: tuple[float, ...] = ()
    grippers: tuple[int, ...] = ()
    gripper_open: float = 0.0
    gripper_closed: float = 0.0
    rotation: str = "none"
    speed: float = 0.07  # of the table's width a step
    options: dict[str, str] = field(default_factory=dict)

    @property
    def features(self) -> Features:
        return Features(self.state, self.action, self.cameras)

    @property
    def arguments(self) -> list[str]:
        """Command-line options that describe the robot."""
        found = ["--robot.mode", self.mode, "--robot.rotation", self.rotation]
        if not self.grippers:
            found += ["--robot.grippers"]  # none
        else:
            found += ["--robot.grippers", *map(str, self.grippers)]
            found += ["--robot.gripper-open", f"{self.gripper_open:g}"]
            found += ["--robot.gripper-closed", f"{self.gripper_closed:g}"]
        for name, value in self.options.items():
            found += [name, *value.split()]
        return found

    def episode(self, number: int) -> EpisodeFrames:
        """One demonstration; the same number, the same numbers."""
        rng = np.random.default_rng([len(self.action), self.hz, number])
        which = number % 2
        dots = np.stack(
            [rng.uniform([0.1, 0.15], [0.4, 0.85]), rng.uniform([0.6, 0.15], [0.9, 0.85])]
        )
        start = np.array([0.5, 0.5]) + rng.uniform(-0.05, 0.05, 2)
        places = way(start, dots[which], self.speed)
        length = len(places) - 1
        closed = np.linalg.norm(places[1:] - dots[which], axis=1) < 1e-9
        return EpisodeFrames(
            images={
                name: self._film(places[:-1], dots, size, follow=number_ > 0)
                for number_, (name, size) in enumerate(self.cameras.items())
            },
            state=self._state(places[:-1], closed),
            action=self._actions(places, closed),
            extra={},
            task=WORDS[which],
            info={"length": length},
        )

    def write(self, root: Path, *, episodes: int = 16) -> EpisodeDataset:
        """The data set at `root`, as armlet writes one."""
        writer = EpisodeWriter(root, self.features, fps=self.hz, robot=self.name, metadata={})
        for number in range(episodes):
            writer.add(self.episode(number))
        return writer.finalise()

    def _actions(self, places: np.ndarray, closed: np.ndarray) -> np.ndarray:
        """(T, a) of T + 1 places."""
        gains = np.array(self.across)
        told = np.diff(places, axis=0) if self.mode == "delta" else places[1:]
        actions = told @ gains.T + (np.array(self.offset) if self.offset else 0.0)
        for index in self.grippers:
            actions[:, index] = np.where(closed, self.gripper_closed, self.gripper_open)
        return actions.astype(np.float32)

    def _state(self, places: np.ndarray, closed: np.ndarray) -> np.ndarray:
        """(T, s): the place through the robot's own numbers, as far as it has room for them."""
        gains = np.array(self.across)
        values = places @ gains.T + (np.array(self.offset) if self.offset else 0.0)
        if self.mode == "delta":  # a relative robot measures where it is in metres
            values = places @ (gains / np.abs(gains).max()).T * 0.5
        for index in self.grippers:
            values[:, index] = np.where(closed, 0.0, 0.08)
        wide = np.concatenate([values, np.zeros((len(values), len(self.state)))], 1)
        return wide[:, : len(self.state)].astype(np.float32)

    def _film(
        self, places: np.ndarray, dots: np.ndarray, size: tuple[int, int], *, follow: bool
    ) -> np.ndarray:
        """(T, h, w, 3): the table from above or, with `follow`, from the hand."""
        return np.stack([picture(place, dots, size, follow=follow) for place in places])


def way(start: np.ndarray, goal: np.ndarray, speed: float) -> np.ndarray:
    """(T + 1, 2): from start straight to the goal at one speed, and three steps of rest there."""
    found = [start]
    while np.linalg.norm(goal - found[-1]) > 0:
        step = goal - found[-1]
        far = np.linalg.norm(step)
        found.append(goal if far <= speed else found[-1] + step * speed / far)
    return np.stack([*found, goal, goal, goal])


def picture(
    place: np.ndarray, dots: np.ndarray, size: tuple[int, int], *, follow: bool
) -> np.ndarray:
    """(h, w, 3) uint8: two dots and, from above, the hand as a white cross."""
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    scale = np.array([width - 1, height - 1])
    image = np.full((height, width, 3), 70, np.uint8)
    for dot, colour in zip(dots, COLOURS, strict=True):
        column, row = (dot - place + 0.5 if follow else dot) * scale
        near = (rows - row) ** 2 + (columns - column) ** 2 <= (0.08 * min(size)) ** 2
        image[near] = colour
    if not follow:
        column, row = place * scale
        cross = (np.abs(rows - row) < 1) | (np.abs(columns - column) < 1)
        image[cross & (np.hypot(rows - row, columns - column) < 0.09 * min(size))] = 250
    return image


JOINTS = ((80.0, 10.0), (-20.0, 60.0), (35.0, -45.0), (5.0, 90.0))  # degrees across the table

SEVEN = Robot(
    name="seven",
    hz=15,
    mode="delta",
    action=("dx", "dy", "dz", "drx", "dry", "drz", "gripper"),
    state=("x", "y", "z", "rx", "ry", "rz", "gap", "load"),
    cameras={"front": (48, 64), "hand": (36, 64)},
    across=((12, 0), (0, 12), (3, 3), (2, 0), (0, 2), (1, -1), (0, 0)),
    grippers=(6,),
    gripper_open=1.0,
    gripper_closed=0.0,
    rotation="axis_angle",
)
TWO_ARMS = Robot(
    name="two_arms",
    hz=30,
    mode="absolute",
    action=tuple(f"{side}_joint_{n}" for side in ("left", "right") for n in range(1, 8)),
    state=tuple(f"{side}_joint_{n}" for side in ("left", "right") for n in range(1, 8)),
    cameras={"top": (48, 48), "left_wrist": (32, 48), "right_wrist": (48, 36)},
    across=tuple((np.cos(n), np.sin(2 * n)) for n in range(14)),
    offset=tuple(0.3 * n - 2 for n in range(14)),
)
DEGREES = Robot(
    name="degrees",
    hz=50,
    mode="absolute",
    action=tuple(f"{name}.pos" for name in ("base", "shoulder", "elbow", "wrist")),
    state=tuple(f"{name}.pos" for name in ("base", "shoulder", "elbow", "wrist")),
    cameras={"side": (48, 48)},
    across=JOINTS,
    speed=0.025,
    offset=(-40.0, 90.0, 15.0, -120.0),
)
BLIND_TO_ITSELF = Robot(
    name="blind_to_itself",
    hz=10,
    mode="delta",
    action=("vx", "vy", "jaw"),
    state=(),
    cameras={"top": (48, 48)},
    across=((10, 0), (0, 10), (0, 0)),
    grippers=(2,),
    gripper_open=-1.0,
    gripper_closed=1.0,
    options={"--columns.state": "None"},
)
PUSHER = Robot(
    name="pusher",
    hz=10,
    mode="absolute",
    action=("x", "y"),
    state=("x", "y"),
    cameras={"image": (96, 96)},
    across=((512, 0), (0, 512)),
)
ROBOTS = {each.name: each for each in (SEVEN, TWO_ARMS, DEGREES, BLIND_TO_ITSELF, PUSHER)}


if __name__ == "__main__":
    for robot in ROBOTS.values():
        robot.write(Path(sys.argv[1]) / robot.name)
        sys.stdout.write(f"{robot.name}: {' '.join(robot.arguments)}\n")
