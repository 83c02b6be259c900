"""The door between a policy and a world: whether what one says is what the other means.

`check_world` stands before the first episode of everything that has a policy act: `evaluate`,
`collect` by a teacher, `practise`. A policy whose gripper is the other way round, whose moves are
centimetres, or whose cameras are others, acts without complaint and fails; so it is asked first.
"""

import math
from collections.abc import Sequence

from armlet.benchmarks import Benchmark
from armlet.policies.contract import Policy
from armlet.robot.fit import View
from armlet.robot.spec import ActionSpec

TOLERANCE = 0.01  # of a rate, and of a scale: rounding, never another unit
BEYOND = 0.1  # of the world's range: how far a policy's may reach beyond it
NARROW = 0.05  # of the world's range: less than this in every dimension is another unit
PLAIN = ("delta_", "d_", "d")  # before a direction, means the same as nothing
DIRECTIONS = ("x", "y", "z", "roll", "pitch", "yaw", "rx", "ry", "rz")


def check_world(policy: Policy, benchmark: Benchmark, *, whose: str = "the policy") -> None:
    """Raises ValueError naming everything in which a policy and a world differ, with a fix each.
    What one of them does not know (state names, metres a command) is not compared.

    (The one call site of the world's door: `robot.agree(policy.robot, …)` takes its place.)
    """
    found = action_differences(policy.body.action_spec, benchmark.action_spec)
    found += _state(policy, benchmark)
    found += camera_differences(policy.view, benchmark)
    if found:
        listed = "; ".join(f"({number}) {each}" for number, each in enumerate(found, 1))
        raise ValueError(
            f"{whose} and benchmark {benchmark.name!r} do not agree, and no episode was run: "
            f"{listed}"
        )


def action_differences(ours: ActionSpec, world: ActionSpec) -> list[str]:
    """In what the policy's actions do not mean what the world's do, a line each."""
    if ours.dims != world.dims:
        return [
            f"action: the policy says {ours.dims} numbers ({', '.join(ours.names)}) and the world "
            f"takes {world.dims} ({', '.join(world.names)}); it was taught of another robot"
        ]
    found = _moved("action", ours.names, world.names)
    for field in ("mode", "rotation", "grippers"):
        mine, theirs = getattr(ours, field), getattr(world, field)
        if mine != theirs:
            found.append(
                f"{field}: the policy's is {mine!r} and the world's {theirs!r}; teach it with "
                f"`--robot.{field}` as the world has it, or convert (armlet.robot.conventions)"
            )
    found += _gripper_ends(ours, world)
    # Data sets keep a whole number of frames a second, so a rate may stand there rounded.
    close = math.isclose(ours.control_hz, world.control_hz, rel_tol=TOLERANCE)
    if not close and ours.control_hz != round(world.control_hz):
        found.append(
            f"control_hz: the policy decides {ours.control_hz:g} actions a second and the "
            f"world executes {world.control_hz:g}; retime its actions "
            "(armlet.robot.conventions.retime), or teach it from episodes of that rate"
        )
    scales = (ours.translation_scale, world.translation_scale)
    if None not in scales and not math.isclose(*scales, rel_tol=TOLERANCE):
        found.append(
            f"translation_scale: a command of 1 is {scales[0]:g} m to the policy and {scales[1]:g} "
            "m in the world; convert its actions (armlet.robot.conventions.convert)"
        )
    found += _ranges(ours, world)
    return found


def camera_differences(view: View, benchmark: Benchmark) -> list[str]:
    """Which cameras the world lacks, or has in a size that the policy does not take."""
    return view.differences(benchmark.camera_sizes)


def _gripper_ends(ours: ActionSpec, world: ActionSpec) -> list[str]:
    if not ours.grippers or not world.grippers:
        return []
    mine = (ours.gripper_open, ours.gripper_closed)
    theirs = (world.gripper_open, world.gripper_closed)
    if mine == theirs:
        return []
    turned = " (the other way round)" if mine == theirs[::-1] else ""
    return [
        f"gripper: the policy opens it with {mine[0]:g} and closes it with {mine[1]:g}, the world "
        f"with {theirs[0]:g} and {theirs[1]:g}{turned}; convert its actions "
        "(armlet.robot.conventions.convert), or teach it with the world's ends"
    ]


def _ranges(ours: ActionSpec, world: ActionSpec) -> list[str]:
    """Where the numbers are in another unit: the policy's reach far beyond what the world takes, or
    all are a small part of it. Recordings seldom reach both ends, so narrower alone says
    nothing."""
    outside = []
    shares = []
    for index, name in enumerate(world.names):
        low, high = world.low[index], world.high[index]
        width = high - low
        if not 0 < width < math.inf:
            continue
        if index not in world.grippers:
            shares.append((ours.high[index] - ours.low[index]) / width)
        beyond = max(low - ours.low[index], ours.high[index] - high)
        if beyond > BEYOND * width:
            outside.append(
                f"{name} {ours.low[index]:g} to {ours.high[index]:g} where it takes {low:g} to "
                f"{high:g}"
            )
    if outside:
        return [f"range: the policy may answer {', '.join(outside)}; are these other units?"]
    if shares and max(shares) < NARROW:
        return [
            f"range: the policy answers within {max(shares):.1g} of what the world takes, in every "
            "dimension; are these other units?"
        ]
    return []


def _state(policy: Policy, benchmark: Benchmark) -> list[str]:
    """Whether the world's state is the one that the policy was taught to read."""
    body = policy.body
    count = len(body.state.offset)
    wanted = benchmark.state_names
    if count == 0:  # it was taught without a state, and looks at none
        return []
    if count != len(wanted):
        return [
            f"state: the policy was taught with {count} numbers and the world says {len(wanted)} "
            f"({', '.join(wanted)}); it was taught of another robot"
        ]
    return _moved("state", body.state_names, wanted)


def _moved(what: str, ours: Sequence[str], world: Sequence[str]) -> list[str]:
    """Names that are the same and stand in another order. Names are free text, so another name
    alone proves nothing, and neither does none."""
    mine = [_plain(name) for name in ours]
    theirs = [_plain(name) for name in world]
    moved = [name for index, name in enumerate(mine) if name in theirs and theirs[index] != name]
    if not moved:
        return []
    return [
        f"{what} names: the policy's are {', '.join(ours)} and the world's {', '.join(world)}: "
        f"{', '.join(moved)} stand in another order; teach it from episodes in the world's"
    ]


def _plain(name: str) -> str:
    """A name without what people write differently: capitals, and a `d` or `delta_` before a
    direction."""
    plain = name.strip().casefold().removesuffix(".pos").replace("-", "_").replace(" ", "_")
    for prefix in PLAIN:
        rest = plain.removeprefix(prefix)
        if rest != plain and rest in DIRECTIONS:
            return rest
    return plain
