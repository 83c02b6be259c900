"""Data against robot: whether the numbers of some episodes mean what a robot, or a policy of it,
takes them to mean.

Compared are how many numbers there are, their names and order, the rate, and the range. All that
differs is one error with a fix each; what may differ without harm is one line on stderr.

Names. LeRobot's names are free text, so another name alone proves nothing: it is remarked on, and
taken. Names that are the same and stand in another order are an error, and so is a number of them
that differs; a data set without names is taken as it is. `dx`, `delta_x` and `x` are one name here,
and capitals do not count.

Range. Robots clip what lies outside theirs, and a policy that was taught such actions says them. It
is remarked on as soon as one action lies outside by more than 1 % of the range, and is an error
where most do (`Recipe.outside_range`): then the numbers are in another unit. Less is not refused:
real recordings overshoot, and what they lose by it is in the remark.
"""

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from armlet.data.episodes import EpisodeDataset
from armlet.policies.contract import Backbone
from armlet.robot.spec import ActionSpec

TOLERANCE = 0.01  # of a dimension's range: rounding, and video-rate interpolation, stay within


@dataclass(frozen=True)
class Outside:
    """One dimension of some actions: which `share` of the frames lies outside the robot's range,
    and the value furthest out."""

    name: str
    share: float
    worst: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.name} in {self.share:.2g} of the frames, at worst {self.worst:g}, where it takes {self.low:g} to {self.high:g}"


def outside_range(actions: np.ndarray, spec: ActionSpec) -> list[Outside]:
    """The dimensions of `actions` (N, a) that leave the robot's range by more than 1 % of it."""
    found = []
    for index, name in enumerate(spec.names):
        low, high = spec.low[index], spec.high[index]
        values = actions[:, index].astype(np.float64)
        width = high - low if np.isfinite(high - low) else 1.0
        beyond = np.maximum(low - values, values - high)
        out = beyond > TOLERANCE * width
        if out.any():
            found.append(
                Outside(name, float(out.mean()), float(values[beyond.argmax()]), low, high)
            )
    return found


def check_taught(
    data: EpisodeDataset, actions: np.ndarray, robot: ActionSpec, *, limit: float, title: str
) -> None:
    """The episodes that a policy of `robot` is to be taught from; `actions` (N, a) are theirs,
    `limit` the largest share of frames
    that may lie outside the range. Raises ValueError naming all that differs."""
    problems, remarks = _actions(data, actions, robot, limit)
    _conclude(data, problems, remarks, title=title, whose="the robot")


def check_policy(
    data: EpisodeDataset, actions: np.ndarray, policy: Backbone, *, limit: float, title: str
) -> None:
    """The episodes on which a policy is to be watched or distilled. Raises ValueError naming all
    that differs."""
    body = policy.body
    problems, remarks = _actions(data, actions, body.action_spec, limit)
    problems += policy.view.differences(data.cameras)
    _names(
        "observation.state",
        data.state_names,
        body.state_names,
        len(body.state.offset),
        problems,
        remarks,
    )
    _conclude(data, problems, remarks, title=title, whose="the policy")


def remark_on_benchmark(
    data: EpisodeDataset,
    state: Sequence[str],
    cameras: Mapping[str, int],
    *,
    benchmark: str,
    title: str,
) -> None:
    """A line on stderr where a policy taught from these episodes could not act in the recipe's
    benchmark: it would be asked for
    other state or other cameras than that has. It is no error: who brings episodes may have no
    benchmark."""
    lacking = []
    if len(data.state_names) not in (0, len(state)):
        lacking.append(f"{len(data.state_names)} state numbers and the benchmark has {len(state)}")
    missing = sorted(data.cameras.keys() - cameras.keys())
    if missing:
        lacking.append(
            f"cameras {', '.join(missing)} and the benchmark has {', '.join(sorted(cameras))}"
        )
    if lacking:
        sys.stderr.write(
            f"{title}: the episodes have {'; '.join(lacking)}: what is taught from them cannot act in benchmark {benchmark!r}\n"
        )


def check_facts(data: EpisodeDataset, wanted: Collection[str], *, option: str) -> None:
    """The facts of a simulator that a network guesses while it learns, `wanted` by what it reads
    (`privileged.subject`). Raises ValueError
    where the episodes do not have them, as those of a real robot do not."""
    facts = {
        name.partition(".")[2] for name in wanted if name.startswith(("privileged.", "pointed."))
    }
    missing = sorted(facts - set(data.privileged))
    if missing:
        raise ValueError(
            f"{data.root}: the objective has a network guess {', '.join(missing)}, facts of a simulator that these episodes do not have (columns "
            f"{', '.join(f'privileged.{name}' for name in missing)}); leave them out with `{option}`, and no name behind it"
        )


def _actions(
    data: EpisodeDataset, actions: np.ndarray, spec: ActionSpec, limit: float
) -> tuple[list[str], list[str]]:
    """What differs and must not, and what may."""
    problems: list[str] = []
    remarks: list[str] = []
    _names("action", data.action_names, spec.names, spec.dims, problems, remarks)
    if not _same_rate(data.fps, spec.control_hz):
        problems.append(
            f"rate: the episodes have {data.fps:g} actions a second (fps) and {spec.control_hz:g} are executed (control_hz); "
            "record or convert the episodes at that rate, or give a benchmark whose action_spec has theirs (docs/adding-a-benchmark.md)"
        )
    if actions.shape[1] == spec.dims:
        out = outside_range(actions, spec)
        told = "; ".join(map(str, out))
        if any(each.share > limit for each in out):
            problems.append(
                f"range: {told}; more than {limit:g} of the frames: are these actions in another unit? Convert them, or describe "
                "the robot's own low and high (to take them all the same: --outside-range 1)"
            )
        elif out:
            remarks.append(f"actions outside the robot's range, where it clips them: {told}")
    return problems, remarks


def _same_rate(fps: float, hz: float) -> bool:
    """Data sets keep a whole number of frames a second, so a robot's rate may stand there
    rounded."""
    return fps == round(hz) or abs(fps - hz) <= 0.01 * hz


def _names(
    what: str,
    found: Sequence[str],
    wanted: Sequence[str],
    dims: int,
    problems: list[str],
    remarks: list[str],
) -> None:
    """Adds what is to be said of names; `wanted` may be unknown (empty), their number `dims` is
    not."""
    if len(found) != dims:
        problems.append(
            f"{what}: the episodes have {len(found)} numbers and {dims} are expected; are they of another robot?"
        )
        return
    mine, theirs = [_plain(name) for name in found], [_plain(name) for name in wanted]
    if mine == theirs or not wanted or not _named(found):
        return
    moved = [
        found[index] for index, name in enumerate(mine) if name in theirs and theirs[index] != name
    ]
    if moved and len(set(mine)) == len(mine) and len(set(theirs)) == len(theirs):
        problems.append(
            f"{what}: {', '.join(moved)} stand in another order: the episodes have {', '.join(found)} and "
            f"{', '.join(wanted)} is expected; put the columns in that order, or describe a robot of theirs"
        )
    else:
        remarks.append(
            f"{what}: the episodes call it {', '.join(found)}, taken as {', '.join(wanted)} in this order"
        )


def _plain(name: str) -> str:
    """A name without what people write differently: capitals, and a `d` or `delta_` before a
    direction."""
    plain = name.strip().casefold().removesuffix(".pos").replace("-", "_").replace(" ", "_")
    for prefix in ("delta_", "d_", "d"):
        rest = plain.removeprefix(prefix)
        if rest != plain and rest in ("x", "y", "z", "roll", "pitch", "yaw", "rx", "ry", "rz"):
            return rest
    return plain


def _named(names: Sequence[str]) -> bool:
    """Whether a data set has names of its own: where it has none, the reader counts."""
    return not all(name.isdigit() for name in names)


def _conclude(
    data: EpisodeDataset, problems: list[str], remarks: list[str], *, title: str, whose: str
) -> None:
    if problems:
        said = (
            problems[0]
            if len(problems) == 1
            else "; ".join(f"({number}) {each}" for number, each in enumerate(problems, 1))
        )
        raise ValueError(f"{data.root}: these episodes and {whose} do not agree: {said}")
    if remarks:
        sys.stderr.write(f"{title}: {'; '.join(remarks)}\n")
