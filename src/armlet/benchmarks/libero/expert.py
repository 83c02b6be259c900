"""The scripted expert of pick-and-place tasks: an action from what is true now, with no memory,
timer or hidden phase.

As tabletop's: every motion is a funnel, so that the action is a continuous function of the state.
What is added: the hand turns, things are seized where their shape allows it (`grasps`), and a hand
that closed on nothing lets go, rises and tries again. Whether it tries the same place is the
world's decision, which chooses among `grasps` by what stands around. Positions are metres in the
world frame, turns radians. Knows shapes as points; knows no simulator.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.spatial.transform import Rotation

from armlet.benchmarks.motions import funnel

OPEN = -1.0
CLOSED = 1.0
STEP = 0.05  # metres that a command of 1.0 asks for
TURN = 0.5  # radians that a command of 1.0 asks for
# Friction in the joints swallows small commands, so that more is asked for than is wanted: of a
# full command the hand makes about a quarter in its step.
GAIN = 2.0
WIDEST = 0.072  # metres between the fingers, 0.08 when fully open, that a thing may fill
FINGER = 0.030  # how deep below the top of a thing its grasp is, at most
RIM = 0.014  # the same, for the wall of a bowl between the fingers
NOTHING = 0.003  # metres between fingers that hold nothing
LEAN = np.radians(75)  # of the hand that seizes a drawer's bar: there is no room above it
UPRIGHT = np.cos(np.radians(35))  # a hand that leans less has let a bar go
ABOVE = 0.12  # over a drawer's bar, where a hand that has let it go turns upright
STANDOFF = 0.10  # before a bar, where the hand turns
BEYOND = 0.008  # behind the middle of a bar, to where the fingertips reach
HOVER = 0.09  # above a grasp the hand turns and opens
# The hand that points down, its fingers opening along y: columns are the grip site's axes.
DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])


@dataclass(frozen=True)
class Grasp:
    """Where the point between the fingertips should be (3,), and how far the hand is turned about
    the vertical; 0: its fingers open along y."""

    point: np.ndarray
    yaw: float

    def moved(
        self, before: tuple[np.ndarray, np.ndarray], now: tuple[np.ndarray, np.ndarray]
    ) -> "Grasp":
        """The same grasp of a thing that has moved from one pose, position (3,) and rotation
        (3, 3), to another."""
        turn = now[1] @ before[1].T
        point = now[0] + turn @ (self.point - before[0])
        return Grasp(point, half_turn(self.yaw + np.arctan2(turn[1, 0], turn[0, 0])))


@dataclass(frozen=True)
class Place:
    """Where a thing should come to rest: the middle of it (2,) within `radius`, its lowest point at
    `height` when it is let go."""

    middle: np.ndarray
    height: float
    radius: float


@dataclass(frozen=True)
class Facts:
    """What the expert reads off the simulator.

    `hand` (3,) the point between the fingertips and `turned` (3, 3) the hand's rotation; `gap`
    between the fingers; `at_rest` whether these move; `held` whether both touch the thing;
    `middle` (3,) of the thing and `lowest`, the height of its lowest point; `ceiling`: the height
    that a carried thing's lowest point must keep until it is above its place.
    """

    hand: np.ndarray
    turned: np.ndarray
    gap: float
    at_rest: bool
    held: bool
    middle: np.ndarray
    lowest: float
    ceiling: float


@dataclass(frozen=True)
class Move:
    """Where the hand should go, how it should be turned, what the gripper does, and what that is
    called. `lean` (3,): by how much, axis times angle, a hand that points down is leant over when
    it has been turned."""

    point: np.ndarray
    yaw: float
    gripper: float
    phase: str
    lean: np.ndarray = field(default_factory=lambda: np.zeros(3))

    @property
    def turned(self) -> np.ndarray:
        """(3, 3): the rotation of the hand that is wanted."""
        upright = _about_vertical(self.yaw) @ DOWN
        if not self.lean.any():
            return upright
        return Rotation.from_rotvec(self.lean).as_matrix() @ upright


def half_turn(yaw: float) -> float:
    """The same grasp of two fingers, turned by at most a quarter: −π/2 to π/2."""
    return float((yaw + np.pi / 2) % np.pi - np.pi / 2)


def command(hand: np.ndarray, turned: np.ndarray, move: Move) -> np.ndarray:
    """The action (7,) float32 that makes a move: where to, which way to turn (axis times angle,
    world frame), and the gripper."""
    turn = rotation_vector(move.turned @ turned.T)
    action = [
        *np.clip(GAIN * (move.point - hand) / STEP, -1, 1),
        *np.clip(GAIN * turn / TURN, -1, 1),
        move.gripper,
    ]
    return np.array(action, np.float32)


def pick_place(facts: Facts, grasp: Grasp, place: Place) -> Move:
    """Seize a thing by its grasp, and let it go at its place."""
    away = float(np.linalg.norm(facts.middle[:2] - place.middle))
    settled = away < place.radius and facts.lowest < place.height + 0.012
    if settled and not facts.held:  # let go of: rise
        return Move(facts.hand + [0, 0, 0.05], yaw_of(facts.turned), OPEN, "placing")
    if not facts.held:
        return _seize(facts, grasp)
    if not facts.at_rest and not settled:  # the fingers are still closing
        return Move(facts.hand, yaw_of(facts.turned), CLOSED, "grasping")
    # The thing is what must arrive, and the hand holds it where it happens to: so the funnel is the
    # thing's, and the hand keeps its distance from it.
    thing = np.array([*facts.middle[:2], facts.lowest])
    goal = np.array([*place.middle, place.height])
    rise = max(facts.ceiling - place.height, 0.04)
    wanted = funnel(thing, goal, rise=rise, slope=8.0, throat=0.75 * place.radius)
    gripper = OPEN if settled else CLOSED
    phase = "transporting" if away > 0.03 else "placing"
    return Move(facts.hand + wanted - thing, yaw_of(facts.turned), gripper, phase)


@dataclass(frozen=True)
class Handle:
    """The bar of a drawer: its middle (3,) metres, and the way it moves when the drawer opens
    (3,), a level unit vector."""

    point: np.ndarray
    opens: np.ndarray


@dataclass(frozen=True)
class Lever:
    """What turns about an upright axis: the end (3,) metres that is pushed, at the height of the
    fingertips; `out` (3,), from the axis to the end, and `way` (3,), where the end is to go, both
    level unit vectors; `thick`: metres from its middle to its side."""

    end: np.ndarray
    out: np.ndarray
    way: np.ndarray
    thick: float


def push_lever(facts: Facts, lever: Lever, yaw: float) -> Move:
    """Go down behind the end of a lever with closed fingers, and push it round."""
    offset = facts.hand - lever.end
    behind = -float(offset @ lever.way)  # metres
    beside = float(offset @ lever.out)
    low = abs(float(offset[2])) < 0.015
    if low and abs(beside) < 0.025 and -lever.thick < behind < lever.thick + 0.05:
        # Along with it: the end moves on a circle, and so must the fingers.
        point = facts.hand + STEP * lever.way - 0.5 * beside * lever.out
        return Move(np.array([*point[:2], lever.end[2]]), yaw, CLOSED, "operating")
    start = lever.end - (lever.thick + 0.03) * lever.way
    return Move(funnel(facts.hand, start, rise=HOVER), yaw, CLOSED, "approaching")


def let_go(facts: Facts, handle: Handle) -> Move | None:
    """Off a drawer's bar: backwards, then up over all that stands there, and only then upright; None
    where the hand is upright."""
    forwards = facts.turned[:, 2]
    if forwards[2] < -UPRIGHT:
        return None
    yaw, lean = _before(handle)
    offset = facts.hand - handle.point
    depth = float(offset @ forwards)
    beside = float(np.linalg.norm(offset - depth * forwards))
    if beside < 0.04 and depth > 0.03 - STANDOFF:
        return Move(facts.hand - STEP * forwards, yaw, OPEN, "placing", lean)
    if offset[2] < ABOVE:
        return Move(facts.hand + [0, 0, STEP], yaw, OPEN, "approaching", lean)
    return Move(facts.hand, yaw, OPEN, "approaching")


def _before(handle: Handle) -> tuple[float, np.ndarray]:
    """Yaw and lean of a hand before a drawer's bar, one finger above it and one below."""
    opens = handle.opens
    yaw = half_turn(float(np.arctan2(-opens[0], opens[1])))
    return yaw, LEAN * np.cross([0.0, 0.0, 1.0], opens)


def pull(facts: Facts, handle: Handle) -> Move:
    """Seize the bar of a drawer from the front, and pull."""
    opens = handle.opens
    yaw, lean = _before(handle)
    wanted = Move(handle.point, yaw, OPEN, "approaching", lean).turned
    forwards = wanted[:, 2]  # where such a hand points
    off = rotation_vector(wanted @ facts.turned.T)
    if facts.held and facts.at_rest:
        return Move(facts.hand + STEP * opens, yaw, CLOSED, "operating", lean)
    depth = float((facts.hand - handle.point) @ forwards)  # negative: before the bar
    beside = facts.hand - handle.point - depth * forwards
    away = float(np.linalg.norm(beside))
    closing = facts.gap < 0.07
    slack = 2.0 if closing else 1.0
    turned = float(np.linalg.norm(off)) < 0.15 * slack
    around = turned and away < 0.012 * slack and abs(depth - BEYOND) < 0.012 * slack
    if around and not _empty(facts):
        return Move(handle.point + BEYOND * forwards, yaw, CLOSED, "grasping", lean)
    if closing:  # it closed on nothing: open, and back
        return Move(handle.point - STANDOFF * forwards, yaw, OPEN, "approaching", lean)
    # Back before it is turned and in line with the bar, by degrees: the fingers come from the front.
    ready = float(np.clip(2 - away / 0.012, 0.0, 1.0)) if turned else 0.0
    reach = ready * BEYOND - (1 - ready) * STANDOFF
    return Move(handle.point + reach * forwards, yaw, OPEN, "approaching", lean)


def _seize(facts: Facts, grasp: Grasp) -> Move:
    lateral = float(np.linalg.norm(facts.hand[:2] - grasp.point[:2]))
    above = float(facts.hand[2] - grasp.point[2])
    off = abs(half_turn(yaw_of(facts.turned) - grasp.yaw))
    # Fingers that have begun to close go on, also where the thing has shifted between them.
    slack = 1.0 if facts.gap > 0.07 else 2.0
    there = lateral < 0.008 * slack and abs(above) < 0.010 * slack and off < 0.12 * slack
    if there and not _empty(facts):
        return Move(grasp.point, grasp.yaw, CLOSED, "grasping")
    hover = grasp.point + [0, 0, HOVER]  # (3,)
    # Turn and open where there is room.
    if facts.gap < 0.07 or (off > 0.25 and above < HOVER):
        up = np.array([*facts.hand[:2], max(hover[2], facts.hand[2])])
        return Move(up, grasp.yaw, OPEN, "approaching")
    wanted = funnel(facts.hand, grasp.point, rise=HOVER)
    return Move(wanted, grasp.yaw, OPEN, "approaching")


def _empty(facts: Facts) -> bool:
    """Whether the fingers closed and hold nothing."""
    return facts.gap < NOTHING and not facts.held


def grasps(points: np.ndarray) -> list[Grasp]:
    """Ways to seize a thing of which `points` (n, 3) are known, the best first: across its
    narrowest side, or, if that is too wide, its rim from any side."""
    lowest = points.min(0)
    highest = points.max(0)
    middle = (lowest + highest) / 2
    yaws = np.radians(np.arange(-90, 90, 5))
    across = np.stack([-np.sin(yaws), np.cos(yaws)])  # (2, yaws): the way the fingers open
    spread = points[:, :2] @ across
    low = spread.min(0)
    high = spread.max(0)
    widths = high - low
    if widths.min() > WIDEST:
        return _rim(points)
    height = max(highest[2] - FINGER, lowest[2] + 0.010)
    found = []
    # Little turned where the width allows it: 1 mm counts as much as 15 degrees.
    for index in np.argsort(widths + 0.004 * np.abs(yaws)):
        if widths[index] > min(WIDEST, widths.min() + 0.012):
            continue
        centre = middle[:2] + across[:, index] * (
            (low + high)[index] / 2 - middle[:2] @ across[:, index]
        )
        found.append(Grasp(np.array([*centre, height]), float(yaws[index])))
    return found


def _rim(points: np.ndarray) -> list[Grasp]:
    """One finger inside and one outside of the wall, at eight places around."""
    highest = points[:, 2].max()
    wall = points[points[:, 2] > highest - 0.01]  # the rim itself
    middle = (wall.min(0) + wall.max(0)) / 2
    found = []
    for angle in np.radians([90, -90, 0, 180, 45, -45, 135, -135]):
        outwards = np.array([np.cos(angle), np.sin(angle)])
        reach = float(((wall - middle)[:, :2] @ outwards).max())
        point = np.array([*(middle[:2] + outwards * (reach - 0.004)), highest - RIM])
        found.append(Grasp(point, half_turn(angle - np.pi / 2)))
    return found


def yaw_of(turned: np.ndarray) -> float:
    """How far a hand that points down is turned about the vertical, −π to π."""
    axis = (turned @ DOWN.T)[:, 0]  # where the world's x axis went
    return float(np.arctan2(axis[1], axis[0]))


def _about_vertical(yaw: float) -> np.ndarray:
    c = np.cos(yaw)
    s = np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle (3,) of a rotation (3, 3), the angle from 0 to π."""
    return Rotation.from_matrix(rotation).as_rotvec()
