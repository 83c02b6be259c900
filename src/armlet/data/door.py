"""Data at a robot's door: which robot some episodes are of, and whether a policy may learn from
them, or be watched on them.

What is known of the robot comes from options, from `robot.toml` beside the data, from a benchmark
where the data say that they are its own, and from the data set (`robot.description`). Where that is
too little, what the data suggest goes into the message that asks for it. A policy that exists knows
its robot: what nobody says of the data is taken to be as the policy has it, unless the data say
clearly otherwise.

The range of a robot that nobody described is what its data have, from the lowest to the highest
command of all frames, without a margin: a policy must not be cut short of what the expert did, and
nothing beyond it was ever tried on the robot.

Range of frames. Robots clip what lies outside theirs, and a policy that was taught such actions
says them. It is remarked on as soon as one action lies outside by more than 1 % of the range, and
is an error where most do (`Recipe.outside_range`): then the numbers are in another unit. Less is
not refused: real recordings overshoot, and what they lose by it is in the remark.

Size of a state. A robot's state has no range; what a policy knows of it are the statistics that it
was taught with. Another unit shows in most numbers at once (see `_another_size`).
"""

import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from math import inf

import numpy as np

from armlet.data.description import Suggestion, suggest
from armlet.data.episodes import ACTION, STATE, EpisodeDataset
from armlet.robot.agree import (
    Difference,
    DisagreementError,
    differences,
    is_named,
    outside_range,
    remarks,
    shares,
)
from armlet.robot.description import Described, RobotOptions, UnknownRobotError, completed, option
from armlet.robot.naming import against_names
from armlet.robot.normalise import Normaliser
from armlet.robot.spec import ActionSpec, ObservationSpec, RobotSpec, Rotation

FAR = 0.5  # of the way from closed to open: a command this far beyond an end is no gripper's
NARROW = 0.05  # of a robot's range: where all dimensions move less, the unit is another
# In deviations of what a policy was taught: most frames of another place of the same robot lie
# nearer, and of degrees for radians (57 times as much) or centimetres for metres most lie further.
AWAY = 20.0
# Of the size, and of the deviation, of what it was taught: degrees for radians are 1/57.
TINY = 0.03
SHOWN = 4  # dimensions that a message tells of, of however many


def robot_of(
    data: EpisodeDataset, options: RobotOptions, *, native: RobotSpec | None = None
) -> RobotSpec:
    """The robot of some episodes, complete: its cameras in their own size. `native`: the robot of
    the benchmark that the data say they are of.

    Raises UnknownRobotError asking for what nobody said, DisagreementError where what was said is
    not of these data, and ValueError where it contradicts itself.
    """
    said = _said(data, options, native)
    _check_said(data, said)
    if said.low is None or said.high is None:  # the range is what the data have: see above
        measured = data.measured(ACTION)
        found = Described(low=tuple(measured["min"]), high=tuple(measured["max"]))
        said = said.over(found)
    try:
        action = completed(said, whose=str(data.root))
    except UnknownRobotError:
        # Only who must ask looks at the statistics, which takes a while.
        action = completed(said, suggestions=suggest(data).asking, whose=str(data.root))
    return RobotSpec(action, _observed(data, said))


def check_described(data: EpisodeDataset, options: RobotOptions) -> None:
    """Raises ValueError where what is said of the robot of some episodes contradicts itself, or
    them; what is not said yet is no contradiction."""
    said = _said(data, options, None)
    _check_said(data, said)
    count = len(data.action_names)
    whole = said.over(Described(low=(-inf,) * count, high=(inf,) * count))
    try:
        completed(whole, whose=str(data.root))
    except UnknownRobotError:
        return


def looks_like(data: EpisodeDataset, robot: RobotSpec, *, limit: float) -> bool:
    """Whether all that some episodes say of their actions is as this robot has it: their number,
    the order of names, the rate, the range, and, where it can be seen, whether they are moves or
    places. Then a recipe's robot may complete what they cannot say."""
    spec = robot.action
    if len(data.action_names) != spec.dims:
        return False
    # Cheapest first: names and rate stand in the header, ranges in the columns, and what the data
    # suggest takes a fit.
    itself = RobotSpec(_plain_spec(tuple(data.action_names), data.fps), ObservationSpec({}))
    there = RobotSpec(_plain_spec(spec.names, spec.control_hz), ObservationSpec({}))
    if differences(there, itself):
        return False
    actions = data.columns()[ACTION]
    beyond, _ = _in_range(actions, spec, limit)
    if beyond or _too_small(actions, spec, limit):
        return False
    return not _against_the_data(suggest(data), spec)


def check_taught(data: EpisodeDataset, robot: RobotSpec, *, limit: float, title: str) -> None:
    """The episodes that a policy of `robot` is to be taught from; `limit`: the largest share of
    frames that may lie outside its range. Raises DisagreementError naming all that differs; what
    may differ is a line on stderr."""
    actions = data.columns()[ACTION]
    problems, said = _in_range(actions, robot.action, limit)
    more, others = _at_ends(actions, robot.action, limit)
    lines = [*data.name_remarks, *said, *others, *_doubts(data, robot.action, limit)]
    _conclude(data, problems + more, lines, title=title, whose="the robot")


def _doubts(data: EpisodeDataset, spec: ActionSpec, limit: float) -> list[str]:
    """Lines on what is said of a robot where its data speak against it. Whoever said it may know
    better, so that it is no error."""
    found = suggest(data)
    lines = []
    mode = found.mode
    if mode.confidence == "sure" and mode.value != spec.mode:
        lines.append(
            f"its actions are said to be {spec.mode}, and look {mode.value} ({mode.why}); is "
            f"{option('mode')} (or robot.toml) right?"
        )
    called = found.grippers
    if called.confidence == "sure" and not set(called.value) <= set(spec.grippers):
        left_out = [index for index in called.value if index not in spec.grippers]
        shown = ", ".join(f"{index} ({data.action_names[index]})" for index in left_out)
        lines.append(
            f"{shown} is called a gripper, and not said to be one; is {option('grippers')} (or "
            "robot.toml) right?"
        )
    for difference in _too_small(data.columns()[ACTION], spec, limit):
        lines.append(f"{difference.found}, a small part of the {difference.expected}")
    return lines


def check_policy(
    data: EpisodeDataset,
    policy: RobotSpec,
    options: RobotOptions,
    *,
    native: RobotSpec | None = None,
    state: Normaliser | None = None,
    limit: float,
    title: str,
    whose: str = "the policy",
) -> None:
    """The episodes on which a policy of this robot is to be watched, distilled or measured. Raises
    DisagreementError naming all that differs; what may differ is a line on stderr. `state`: the
    statistics of the state that the policy was taught with, where it has them. `whose`: what
    messages call the policy."""
    said = _said(data, options, native)
    _check_said(data, said)
    robot = _as_described(data, said, policy)
    both = (whose, "the data set")
    problems = differences(policy, robot, whose=both)
    lines = [*data.name_remarks, *remarks(policy, robot, whose=both)]
    count = len(data.state_names)
    if count and policy.observation.state_dims == 0:  # a rule, and no contradiction
        lines.append(f"its state of {count} numbers is not read: {whose} looks at none")
    if count and state is not None and len(state.offset) == count:
        more, others = _another_size(data.columns()[STATE], data.state_names, state, limit)
        problems += more
        lines += others
    if robot.action.dims == policy.action.dims:
        # What its own names contradict too, the policy was taught with all the same.
        if said.rotation is None and robot.action.names != policy.action.names:
            problems += _against_names(
                policy.action.rotation, robot.action.names, "the policy's actions have"
            )
        if said.mode is None:  # nobody said it, so the data are asked whether they look otherwise
            problems += _against_the_data(suggest(data), policy.action)
        actions = data.columns()[ACTION]
        more, others = _in_range(actions, policy.action, limit)
        more = more or _too_small(actions, policy.action, limit)  # one mistake, one line
        lines += others
        if not more:
            lines += _small_parts(actions, policy.action)
        problems += more
        more, others = _at_ends(actions, robot.action, limit)
        problems += more
        lines += others
    _conclude(data, problems, lines, title=title, whose=whose)


def check_facts(data: EpisodeDataset, wanted: Collection[str], *, option: str) -> None:
    """The facts of a simulator that a network guesses while it learns, `wanted` by what it reads
    (`privileged.subject`). Raises ValueError where the episodes do not have them, as those of a
    real robot do not."""
    facts = set()
    for name in wanted:
        kind, _, fact = name.partition(".")
        if kind in ("privileged", "pointed"):  # other signals are no guesses
            facts.add(fact)
    missing = sorted(facts - set(data.privileged))
    if missing:
        columns = ", ".join(f"privileged.{name}" for name in missing)
        raise ValueError(
            f"{data.root}: the objective has a network guess {', '.join(missing)}, facts of a "
            f"simulator that these episodes do not have (columns {columns}); leave them out with "
            f"`{option}`, and no name behind it"
        )


def _said(data: EpisodeDataset, options: RobotOptions, native: RobotSpec | None) -> Described:
    """All that anybody says, each over the next; names, rate and state names are always there."""
    said = options.with_file(data.root)
    # A benchmark's own words next, as `native` is given where the data say that they are its own.
    if native is not None:
        said = said.over(Described.of(native.action, native.observation.state_names))
    itself = Described(
        names=tuple(data.action_names),
        control_hz=data.fps,
        state_names=tuple(data.state_names) if is_named(data.state_names) else None,
    )
    said = said.over(data.described).over(itself)
    if not data.state_names:  # there is none, or it is not to be read
        said = replace(said, state_names=None)
    return said


def _check_said(data: EpisodeDataset, said: Described) -> None:
    """Raises DisagreementError where what is said of names and rate is not what the data say."""
    assert said.names is not None and said.control_hz is not None
    described = RobotSpec(
        _plain_spec(said.names, said.control_hz),
        ObservationSpec(
            state_names=said.state_names or (),
            state_dims=len(said.state_names or data.state_names),
        ),
    )
    itself = RobotSpec(
        _plain_spec(tuple(data.action_names), data.fps),
        ObservationSpec.of({}, state_names=data.state_names),
    )
    whose = ("the robot as it is described", "the data set")
    problems = differences(described, itself, whose=whose)
    if said.rotation is not None:
        problems += _against_names(said.rotation, said.names, "it is said to be")
    if problems:
        raise DisagreementError((f"{data.root}: {whose[0]}", whose[1]), problems)


def _against_names(rotation: Rotation, names: Sequence[str], whose: str) -> list[Difference]:
    """Where names of actions contradict a form of rotation."""
    found = against_names(rotation, names)
    if not found:
        return []
    fix = (
        f"correct {option('rotation')} (or robot.toml), or {option('names')} where those are wrong"
    )
    return [Difference("rotation", found, f"{whose} {rotation!r}", fix)]


def _plain_spec(names: tuple[str, ...], hz: float) -> ActionSpec:
    """Names and a rate, and nothing else to differ in."""
    ends = (-inf,) * len(names), (inf,) * len(names)  # a range that nobody knows is not compared
    return ActionSpec(names, "absolute", "none", *ends, (), 0.0, 0.0, hz)


def _as_described(data: EpisodeDataset, said: Described, policy: RobotSpec) -> RobotSpec:
    """The data's robot as far as anybody described it, and else as the policy has it; a range that
    nobody gave is not known, and so infinite."""
    assert said.names is not None and said.control_hz is not None
    count = len(said.names)
    unknown = Described(low=(-inf,) * count, high=(inf,) * count)
    if count != policy.action.dims:  # which is all that there is to say
        return RobotSpec(_plain_spec(said.names, said.control_hz), _observed(data, said))
    known = replace(Described.of(policy.action), low=None, high=None)
    if not policy.action.grippers and said.grippers:
        # The policy has no ends to compare with, and the data's need not be known to say so.
        known = replace(known, gripper_open=1.0, gripper_closed=0.0)
    action = completed(said.over(known).over(unknown), whose=str(data.root))
    # The policy's scale is no word about the data: where nobody gives theirs, none is compared.
    if said.translation_scale is None:
        action = replace(action, translation_scale=None)
    return RobotSpec(action, _observed(data, said))


def _observed(data: EpisodeDataset, said: Described) -> ObservationSpec:
    return ObservationSpec.of(
        data.cameras, state_names=said.state_names or (), state_dims=len(data.state_names)
    )


def _against_the_data(found: Suggestion, policy: ActionSpec) -> list[Difference]:
    """Where the data say clearly that their actions are not the policy's, and nobody said what they
    are."""
    guess = found.mode
    if guess.confidence != "sure" or guess.value == policy.mode:
        return []
    fix = (
        "are they of another robot? Where the policy is right, say so: "
        f"{option('mode')} {policy.mode}"
    )
    return [
        Difference(
            "mode",
            f"the data set looks {guess.value} ({guess.why})",
            f"the policy's actions are {policy.mode}",
            fix,
        )
    ]


def _in_range(
    actions: np.ndarray, spec: ActionSpec, limit: float
) -> tuple[list[Difference], list[str]]:
    """What is to be said of frames outside the robot's range: an error, a remark or nothing."""
    out = outside_range(actions, spec)
    if not out:
        return [], []
    told = "; ".join(map(str, out))
    if not any(each.share > limit for each in out):
        return [], [f"actions outside the robot's range, where it clips them: {told}"]
    fix = (
        "are these actions in another unit? Convert them, or describe the robot's own low and high "
        "(to take them all the same: --outside-range 1)"
    )
    return [Difference("range", told, f"at most {limit:g} of the frames may be outside", fix)], []


def _too_small(actions: np.ndarray, spec: ActionSpec, limit: float) -> list[Difference]:
    """Frames that use next to nothing of the range in any dimension: radians for degrees."""
    if limit >= 1 or not len(actions):  # 1: whoever asks takes them whatever their range
        return []
    low = tuple(map(float, actions.min(0)))
    high = tuple(map(float, actions.max(0)))
    moving = []  # what stands still in these data says nothing of a unit
    for index in range(spec.dims):
        if index not in spec.grippers and low[index] < high[index]:
            moving.append(index)
    used = shares(replace(spec, low=low, high=high), spec)[moving]
    if not moving or not (used < NARROW).all():
        return []
    index = moving[int(used.argmax())]
    fix = (
        "are these actions in another unit? Convert them (to take them all the same: "
        "--outside-range 1)"
    )
    return [
        Difference(
            "range",
            f"{spec.names[index]} goes from {low[index]:g} to {high[index]:g} in the data set",
            f"range of {spec.low[index]:g} to {spec.high[index]:g} is over twenty times as much in "
            "every dimension",
            fix,
        )
    ]


def _small_parts(actions: np.ndarray, spec: ActionSpec) -> list[str]:
    """A line on the dimensions that move, and in next to nothing of the policy's range: where only
    the rotations are in another unit, say."""
    if not len(actions):
        return []
    low = tuple(map(float, actions.min(0)))
    high = tuple(map(float, actions.max(0)))
    used = shares(replace(spec, low=low, high=high), spec)
    found = []
    for index, name in enumerate(spec.names):
        if index not in spec.grippers and used[index] < NARROW:
            found.append(f"{name} ({used[index]:.2g} of it)")
    if not found:
        return []
    return [
        "the data set uses under a twentieth of the policy's range of "
        f"{', '.join(found)}; are these in another unit?"
    ]


def _another_size(
    values: np.ndarray, names: Sequence[str], taught: Normaliser, limit: float
) -> tuple[list[Difference], list[str]]:
    """Whether a state (N, s) is as large as what a policy was taught with: an error where most of
    its numbers are far larger or smaller, a remark where some are.

    Left out is what says nothing of a unit: numbers without statistics, those that stood still
    while the policy was taught, and those that are 0 in all these frames. A robot that merely
    stands elsewhere has another mean, and one that hardly moves another deviation; only another
    unit makes both small in most numbers at once.
    """
    if limit >= 1 or not len(values):  # 1: whoever asks takes them whatever their size
        return [], []
    wide = values.astype(np.float64)
    centre = taught.invert(np.zeros(len(names)))  # (s,)
    spread = taught.scale.astype(np.float64)
    judged = np.flatnonzero(taught.moved & (wide != 0).any(0))
    away = (np.abs(taught.apply(wide)) > AWAY).mean(0) > limit  # (s,)
    # Root mean squares: for the same motions in another unit their ratio is that of the units.
    size = np.sqrt((wide**2).mean(0)) / np.sqrt(centre**2 + spread**2)
    tiny = (size < TINY) & (wide.std(0) < TINY * spread)
    odd = [int(index) for index in judged if away[index] or tiny[index]]
    if not odd:
        return [], []
    told = []
    for index in odd[:SHOWN]:
        told.append(
            f"{names[index]} goes from {wide[:, index].min():g} to {wide[:, index].max():g}, where "
            f"it was taught {centre[index]:g} ± {spread[index]:g}"
        )
    if len(odd) > SHOWN:
        told.append(f"and so do {len(odd) - SHOWN} more")
    found = f"in the data set {'; '.join(told)}"
    if 2 * len(odd) <= len(judged):
        return [], [f"state: {found}; are these in another unit?"]
    difference = Difference(
        "state",
        found,
        "most of its numbers are expected within twenty deviations, and no thirtieth, of that",
        "is the state in another unit (degrees, centimetres)? Convert it (to take it all the same: "
        "--outside-range 1)",
    )
    return [difference], []


def _at_ends(
    actions: np.ndarray, spec: ActionSpec, limit: float
) -> tuple[list[Difference], list[str]]:
    """Whether the commands of the grippers go with the ends that they are said to have: an error
    where most lie far from both, a remark where they are never nearer to one of them."""
    problems = []
    lines = []
    ends = {"gripper_open": spec.gripper_open, "gripper_closed": spec.gripper_closed}
    low, high = sorted(ends.values())
    room = FAR * (high - low)
    for index in spec.grippers if len(actions) else ():
        values = actions[:, index].astype(np.float64)
        there = (
            f"{spec.names[index]} goes from {values.min():g} to {values.max():g} in the data set"
        )
        said = (
            f"it is said to be open at {spec.gripper_open:g} and closed at {spec.gripper_closed:g}"
        )
        fix = f"correct {option('gripper_open')} and {option('gripper_closed')}, or robot.toml"
        far = (values < low - room) | (values > high + room)
        if far.mean() > limit:
            problems.append(Difference("gripper ends", there, said, fix))
            continue
        for name, end in ends.items():
            other = low + high - end
            if not (abs(values - end) < abs(values - other)).any():
                lines.append(
                    f"{there}, never nearer to its {name} {end:g} than to {other:g}; if it does "
                    f"get there, {fix}"
                )
    return problems, lines


def _conclude(
    data: EpisodeDataset,
    problems: list[Difference],
    lines: list[str],
    *,
    title: str,
    whose: str,
) -> None:
    if problems:
        raise DisagreementError((f"{data.root}: these episodes", whose), problems)
    if lines:
        sys.stderr.write(f"{title}: {'; '.join(lines)}\n")
