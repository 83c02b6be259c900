"""The scripted expert: an action from what is true now, with no memory, timer or hidden phase.

Every motion is a *funnel*: far from a point the hand travels high, near it the hand comes down, so
that the action is a continuous function of the state and a policy can learn it from pictures. Each
skill returns the point the tool centre should go to, the gripper command, and the name of what it
is doing. Positions are in metres, world frame; the gripper command is −1 open, +1 closed.
"""

from dataclasses import dataclass

import numpy as np

from armlet.benchmarks.motions import funnel
from armlet.benchmarks.tabletop.scene import (
    DRAWER_TRAVEL,
    OBJECT_HALF,
    RAKE_BAR,
    RAKE_DROP,
    RAKE_GRIP,
)

OPEN = -1.0
CLOSED = 1.0
GRASP_TOLERANCE = 0.012  # lateral distance at which the fingers may close
CARRY = 0.075  # height of a carried object's centre above the table
PUSH_BEHIND = 0.058  # where a push starts, behind the object's centre


@dataclass(frozen=True)
class Move:
    """Where the tool centre should go, what the gripper does, and what that is called."""

    point: np.ndarray
    gripper: float
    phase: str


@dataclass(frozen=True)
class Facts:
    """What the expert reads off the simulator. Points (3,) in metres; `held` whether both fingers
    touch `subject`."""

    tcp: np.ndarray
    gap: float
    subject: np.ndarray
    held: bool
    goal: np.ndarray
    axis: np.ndarray
    opening: float = 0.0


def touch(facts: Facts) -> Move:
    top = facts.subject + [0, 0, OBJECT_HALF]
    return Move(funnel(facts.tcp, top, rise=0.05), OPEN, "approaching")


def push(facts: Facts) -> Move:
    """`axis` is the direction of the push, a unit vector along y."""
    tcp = facts.tcp
    thing = facts.subject
    along = float((tcp - thing) @ facts.axis)
    across = abs(float(tcp[0] - thing[0]))
    # Behind the thing (2.4 to 8.5 cm), in line with it, and low: push. The point lies ahead of the
    # thing, so the hand never arrives and goes on pushing.
    if along < -0.024 and along > -0.085 and across < 0.018 and tcp[2] < 0.035:
        ahead = thing + facts.axis * 0.02
        return Move(np.array([thing[0], ahead[1], 0.018]), CLOSED, "operating")
    behind = thing - facts.axis * PUSH_BEHIND
    start = np.array([behind[0], behind[1], 0.018])
    return Move(funnel(tcp, start, rise=0.065), CLOSED, "approaching")


def grasp(tcp: np.ndarray, point: np.ndarray, *, rise: float) -> Move:
    """Go to `point` with open fingers and close them there."""
    lateral = float(np.linalg.norm(tcp[:2] - point[:2]))
    if lateral < GRASP_TOLERANCE and abs(tcp[2] - point[2]) < 0.010:
        return Move(point, CLOSED, "grasping")
    return Move(funnel(tcp, point, rise=rise), OPEN, "approaching")


def place(facts: Facts) -> Move:
    """`goal` is where the centre of the object should come to rest."""
    tcp = facts.tcp
    thing = facts.subject
    settled = (
        np.linalg.norm(thing[:2] - facts.goal[:2]) < 0.017 and thing[2] - facts.goal[2] < 0.010
    )
    if settled:  # let go and rise, whatever else is true: the thing is where it should be
        return Move(np.array([tcp[0], tcp[1], tcp[2] + 0.05]), OPEN, "placing")
    if not facts.held:
        return grasp(tcp, np.array([thing[0], thing[1], max(thing[2] - 0.004, 0.010)]), rise=0.07)
    # The thing is what must arrive, and the hand holds it where it happens to: so the funnel is the
    # thing's, and the hand keeps its distance from it.
    offset = tcp - thing
    wanted = funnel(thing, facts.goal + [0, 0, 0.004], rise=CARRY, slope=4.0, throat=0.010)
    far = np.linalg.norm(thing[:2] - facts.goal[:2]) > 0.02
    return Move(wanted + offset, CLOSED, "transporting" if far else "placing")


def slide(facts: Facts) -> Move:
    """Grasp a drawer's handle (`subject`) and take it to where the drawer is open or closed
    (`goal`)."""
    if not facts.held:
        return grasp(facts.tcp, facts.subject, rise=0.06)
    # Along x, the drawer's own axis; sideways and up the hand stays on the handle.
    step = facts.tcp + np.clip(facts.goal - facts.subject, -0.04, 0.04) * [1, 1, 0]
    return Move(np.array([step[0], facts.subject[1], facts.subject[2]]), CLOSED, "operating")


def rake(facts: Facts, far_thing: np.ndarray) -> Move:
    """Hold the rake (`subject` is its handle's middle), bring its crossbar behind `far_thing`, and
    pull."""
    if not facts.held:
        return grasp(facts.tcp, facts.subject + facts.axis * RAKE_GRIP, rise=0.05)
    bar = facts.subject + facts.axis * RAKE_BAR - [0, 0, RAKE_DROP]
    offset = facts.tcp - bar
    ahead = float(bar[0] - far_thing[0])
    across = abs(float(bar[1] - far_thing[1]))
    # The crossbar is behind the thing (further from the operator), in line with it, and low: pull.
    if 0.015 < ahead < 0.075 and across < 0.025 and bar[2] < 0.040:
        return Move(np.array([bar[0] - 0.035, far_thing[1], 0.026]) + offset, CLOSED, "operating")
    behind = np.array([far_thing[0] + 0.046, far_thing[1], 0.026])
    return Move(funnel(bar, behind, rise=0.060, throat=0.012) + offset, CLOSED, "transporting")


def drawer_goal(handle: np.ndarray, opening: float, *, opened: bool) -> np.ndarray:
    """Where a handle stands when its drawer is fully open or closed (the drawer opens towards
    −x)."""
    wanted = DRAWER_TRAVEL if opened else 0.0
    return handle + np.array([opening - wanted, 0.0, 0.0])
