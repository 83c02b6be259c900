"""The report of a comparison with held-out episodes: what stands in it; as JSON, as a table in words
and as a picture.

Version 3, told apart from a report of episodes in a simulator by its `kind`; version 1 knew no
runtime but eager, version 2 not what policies listen to. Knows no policy and no data set.
"""

import json
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from armlet.data.files import atomic_file, read_json
from armlet.evaluation import listening_offline
from armlet.evaluation.action_errors import Agreement, Estimate
from armlet.evaluation.figures import millions, multiple, refusal
from armlet.evaluation.listening_offline import Listened
from armlet.evaluation.listens import LeftOut
from armlet.evaluation.runtimes import Refused
from armlet.evaluation.speeds import p50, runtime_of, several_runtimes, speed
from armlet.measuring import EAGER
from armlet.robot.spec import ActionSpec
from armlet.robot.tables import read_once

VERSION = 3
VERSIONS = (1, 2, 3)
KIND = "offline"
NO_SUCCESS_RATE = (
    "This is no success rate: nothing was executed. It says how near the actions lie to those that were "
    "recorded, along the way that was recorded; a policy that is near can still fail where its own "
    "errors lead it, and one that is far can succeed in another way."
)
PANELS = 15  # dimensions that are drawn, those that move most in units of their range
SAID_AS = {  # type of a field → the types that JSON gives it, and what an error calls them
    str: ((str,), "a text"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    bool: ((bool,), "true or false"),
}
Numbers = tuple[float | None, ...]  # one a dimension; None where nothing could be counted


@dataclass(frozen=True)
class Errors:
    """Mean absolute errors against one reference, the expert or the teacher."""

    # Without units: 1 is as far from the expert as the mean action is. Over all dimensions that
    # move and are no gripper.
    share: Estimate
    by_dimension: Numbers  # (a,) in the robot's units, as are the next and the last two
    by_step: tuple[Numbers, ...]  # of the policy's whole chunk, the first step first
    share_by_step: Numbers  # `share`, a number a step
    by_third: dict[str, Numbers]  # of the episode
    by_phase: dict[str, Numbers]  # an annotator's; empty where nobody annotated


@dataclass(frozen=True)
class Seen:
    """Whether a policy was trained on the episodes that it is compared with, by its provenance."""

    # through teacher: not itself, but the teacher it learned from was, or may have been.
    verdict: Literal["unseen", "seen", "through teacher", "unknown"]
    why: str  # half a sentence, for the table


@dataclass(frozen=True)
class Cost:
    """What a decision costs."""

    latency_ms: dict[str, float]  # p50, p95, p99: batch 1, observation in, actions out
    device: str
    threads: int
    # p50 × decisions in a second, were every chunk carried out to its `execute`.
    ms_per_second_of_motion: float | None = None
    # Nothing further is known of a policy behind a socket, whose times have the network in them.
    flops: dict[str, float] | None = None  # `total` and `backbone`, as `params`
    params: dict[str, int] | None = None
    layers: tuple[int, ...] = ()  # their numbers in the network that the policy was cut from
    activation: tuple[float, ...] = ()  # how often each of them ran
    keep_ratio: float | None = None  # the share of the layers' cost that ran


@dataclass(frozen=True)
class PolicyRow:
    """One policy, or one thing that needs none (`baseline`)."""

    name: str
    kind: Literal["policy", "baseline"]
    policy: str  # whose row it is: `teacher` for `teacher onnx`
    runtime: str  # what carries its network out
    precision: str | None  # None: nobody knows
    exported_from: str | None  # the row of the same policy in eager
    chunk: int  # steps that it decides at a time
    execute: int | None  # steps carried out before it looks again; None of baselines
    folder: str | None
    fingerprint: str | None
    seen: Seen
    expert: Errors
    teacher: Errors | None  # against the teacher's chunks; None of the teacher itself
    grippers: tuple[Agreement, ...]
    cost: Cost | None  # None of baselines, and of policies that are no network


@dataclass(frozen=True)
class Pair:
    """a − b at the same moments. Negative: a is nearer to the expert."""

    a: str
    b: str
    share: Estimate  # without units, as `Errors.share`
    by_dimension: tuple[Estimate, ...]  # in the robot's units


@dataclass(frozen=True)
class Compared:
    """With what policies are compared."""

    data: str
    data_fingerprint: str
    robot: ActionSpec
    hz: float
    episodes: tuple[int, ...]  # held out, by their number
    shown: int  # episodes of which the baselines are means
    frames: int  # at which policies were asked
    of_frames: int  # that the held-out episodes have
    steps: int  # of a chunk that are compared: the shortest chunk's
    moving: tuple[int, ...]  # the dimensions that are counted in `share`
    scale: tuple[float, ...]  # (a,) the mean action's error, by which errors are divided there


@dataclass(frozen=True)
class OfflineReport:
    """See the module's docstring. `policies`: the reference first, baselines last."""

    compared: Compared
    policies: tuple[PolicyRow, ...]
    pairs: tuple[Pair, ...]
    remarks: tuple[str, ...]
    fingerprint: dict[str, Any]
    refused: tuple[Refused, ...] = ()  # rows that were asked for and could not be exported
    # What policies listen to, where that was asked; and what of it was not run.
    listens: tuple[Listened, ...] = ()
    listens_left_out: tuple[LeftOut, ...] = ()
    note: str = NO_SUCCESS_RATE
    kind: str = KIND
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """As it stands in report.json."""
        said: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return said


def from_json(value: dict[str, Any], *, source: str) -> OfflineReport:
    """The inverse of `to_json`. Raises ValueError naming `source` and the field that is missing or
    of another kind."""
    if value.get("kind") != KIND:
        raise ValueError(
            f"{source} is no report of a comparison with held-out episodes "
            f"(kind {value.get('kind')!r})"
        )
    if value.get("version") not in VERSIONS:
        raise ValueError(
            f"{source} has version {value.get('version')!r}, expected one of {VERSIONS}; "
            "a newer armlet wrote it"
        )
    if value["version"] == 1:
        value = _completed(value)
    if value["version"] < 3:
        value = {**value, "listens": [], "listens_left_out": []}
    report = _built(OfflineReport, value, source)
    assert isinstance(report, OfflineReport)
    return report


def _completed(value: dict[str, Any]) -> dict[str, Any]:
    """A report of version 1 with what it does not say of runtimes: there was one."""
    rows = []
    for row in value.get("policies", []):
        cost = row.get("cost")
        if cost is not None:
            cost = {**cost, "ms_per_second_of_motion": None}
        unsaid = {"policy": row.get("name"), "runtime": EAGER, "precision": None}
        rows.append({**row, **unsaid, "exported_from": None, "cost": cost})
    return {**value, "policies": rows, "refused": []}


def said_of(row: PolicyRow) -> dict[str, Any]:
    """What `evaluation.speeds` asks of a row; a baseline has no milliseconds."""
    cost = row.cost
    return {
        "name": row.name,
        "policy": row.policy,
        "runtime": row.runtime,
        "precision": row.precision,
        "exported_from": row.exported_from,
        "latency_ms": None if cost is None else {"policy": cost.latency_ms},
        "ms_per_second_of_motion": None if cost is None else cost.ms_per_second_of_motion,
    }


def is_offline(path: Path) -> bool:
    """Whether a report.json is one of these; what is wrong with a file is said by who reads it."""
    try:
        said = read_once(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.get("kind") == KIND


def read(path: Path) -> OfflineReport:
    """A report.json that `armlet evaluate` wrote of a robot without a benchmark."""
    return from_json(read_json(path, fix="run `armlet evaluate` again"), source=str(path))


def _built(kind: Any, value: Any, where: str) -> Any:
    """`value`, of JSON, as the type `kind`: a dataclass of these, tuples for lists."""
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    # Every union of these dataclasses is `something | None`.
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        first, second = arguments
        return _built(second if first is type(None) else first, value, where)
    if is_dataclass(kind):
        return _built_dataclass(kind, value, where)
    if origin is tuple:
        # Of one kind throughout, `tuple[float, float]` too.
        _expect(isinstance(value, list), value, "a list", where)
        items = []
        for index, item in enumerate(value):
            items.append(_built(arguments[0], item, f"{where}[{index}]"))
        return tuple(items)
    if origin is dict:
        _expect(isinstance(value, dict), value, "an object", where)
        if arguments[1] is Any:
            return value
        found = {}
        for key, item in value.items():
            found[key] = _built(arguments[1], item, f"{where}.{key}")
        return found
    if origin is Literal:
        _expect(value in arguments, value, " or ".join(map(repr, arguments)), where)
    if kind in SAID_AS:
        allowed, words = SAID_AS[kind]
        _expect(type(value) in allowed, value, words, where)
    return value


def _expect(good: bool, value: Any, words: str, where: str) -> None:
    """Raises ValueError where a value is not what the words say."""
    if not good:
        raise ValueError(f"{where} is {value!r:.60}, expected {words}; was it changed by hand?")


def _built_dataclass(kind: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), value, "an object", where)
    hints = typing.get_type_hints(kind)
    found = {}
    for field in fields(kind):
        if field.name not in value:
            raise ValueError(f"{where} lacks {field.name!r}; was it changed by hand?")
        found[field.name] = _built(hints[field.name], value[field.name], f"{where}.{field.name}")
    try:
        return kind(**found)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; was it changed by hand?") from error


# --- in words


def results(report: OfflineReport) -> dict[str, float]:
    """What a run's logs are told: of every policy its error, and what a decision costs."""
    found = {}
    for row in report.policies:
        found[f"{row.name}/error"] = row.expert.share.mean
        if row.cost is not None:
            found[f"{row.name}/p50_ms"] = row.cost.latency_ms["p50"]
    return found


def table(report: OfflineReport) -> str:
    """Markdown: what was compared, one row a policy, one a dimension, the phases, the pairs."""
    parts = [
        header_lines(report),
        main_lines(report.policies),
        speed_lines(report),
        refused_lines(report),
        dimension_lines(report),
        gripper_lines(report.policies),
        group_lines(report, "by_third"),
        group_lines(report, "by_phase"),
        pair_lines(report),
        listening_offline.table_lines(report.listens, report.listens_left_out),
        seen_lines(report),
    ]
    # An empty line ends a table of Markdown; parts that say nothing are left out.
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def header_lines(report: OfflineReport) -> list[str]:
    """With what policies were compared, what that is not, and what else is to be known."""
    compared = report.compared
    count = len(compared.episodes)
    episodes = "1 held-out episode" if count == 1 else f"{count} held-out episodes"
    lines = [
        f"Compared with {episodes} of {compared.data} at "
        f"{compared.frames} of their {compared.of_frames} frames; errors are mean absolute ones "
        f"over the first {compared.steps} steps of a chunk ({compared.hz:g} a second). "
        f"**{report.note}**"
    ]
    for remark in report.remarks:
        lines.append(f"- {remark}")
    return lines


def _head(about: str, policies: Sequence[PolicyRow]) -> list[str]:
    """The first two lines of a table with one column a policy."""
    cells = [about]
    for row in policies:
        cells.append(row.name)
    return ["| " + " | ".join(cells) + " |", "|---" * len(cells) + "|"]


def main_lines(policies: tuple[PolicyRow, ...]) -> list[str]:
    """One row a policy. `error` is without units: 1 is that of the mean action.

    What a policy runs is said twice. A student that was cut to half of its teacher's layers, and
    runs them all, runs 100 % of its own, and half of the teacher's multiplications.
    """
    base = policies[0].cost  # the teacher's, to which speeds are relative
    lines = [
        "| policy | trained on these episodes? | error (mean action = 1) | 95 % interval "
        "| first step | last step | against the teacher | p50 ms | speed "
        f"| of its own layers run | backbone FLOPs ({policies[0].name} = 100 %) | parameters |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in policies:
        # A chunk may be longer than any held-out episode: nothing is known of its last steps then.
        steps: Numbers = tuple(each for each in row.expert.share_by_step if each is not None)
        steps = steps or (None,)
        theirs = None if row.teacher is None else row.teacher.share.mean
        cost = ["–"] * 5
        if row.cost is not None:
            p50 = row.cost.latency_ms["p50"]
            speed = "–" if base is None else f"{base.latency_ms['p50'] / p50:.2f}×"
            cost = [
                f"{p50:.2f}",
                speed,
                _layers_run(row.cost),
                _of_the_teachers(row.cost, base),
                millions(row.cost.params["total"] if row.cost.params else None),
            ]
        cells = [
            row.name if row.kind == "policy" else f"*{row.name}*",
            {"unseen": "no", "seen": "yes"}.get(row.seen.verdict, row.seen.verdict),
            number(row.expert.share.mean, 3),
            interval(row.expert.share.ci95, 3),
            number(steps[0], 3),
            number(steps[-1], 3),
            number(theirs, 3),
            *cost,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def speed_lines(report: OfflineReport) -> list[str]:
    """One row a policy and runtime: how much faster, than whom; none where all are run in one."""
    rows = [said_of(row) for row in report.policies if row.cost is not None]
    if not rows or rows[0]["name"] != report.policies[0].name or not several_runtimes(rows):
        return []
    lines = [
        "| policy | runtime | p50 ms | × teacher, same runtime | × eager teacher "
        "| ms per second of motion | × eager teacher, of motion |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        found = speed(row, rows)
        cells = [
            row["name"],
            runtime_of(row),
            f"{p50(row):.2f}",
            multiple(found["teacher_in_runtime"]),
            multiple(found["teacher"]),
            number(row["ms_per_second_of_motion"], 1),
            multiple(found["motion"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def refused_lines(report: OfflineReport) -> list[str]:
    """What was asked for and is not there."""
    return [f"- {refusal(asdict(row))}" for row in report.refused]


def _layers_run(cost: Cost) -> str:
    """The share of its own layers that a policy runs, and how many it has."""
    if cost.keep_ratio is None:  # nobody knows the layers of a policy behind a socket
        return "–"
    return f"{100 * cost.keep_ratio:.0f} % of {len(cost.layers)}"


def _of_the_teachers(cost: Cost, base: Cost | None) -> str:
    """What a backbone multiplies in a decision, as a share of what the teacher's does."""
    # A teacher that is no network of ours has no operations that were counted.
    if base is None or not base.flops or not base.flops["backbone"] or not cost.flops:
        return "–"
    return f"{100 * cost.flops['backbone'] / base.flops['backbone']:.0f} %"


def dimension_lines(report: OfflineReport) -> list[str]:
    """One row a dimension: each policy's error in the robot's own units."""
    lines = _head("error, in the robot's units", report.policies)
    for index, name in enumerate(report.compared.robot.names):
        cells = [name]
        for row in report.policies:
            cells.append(number(row.expert.by_dimension[index], 4))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def gripper_lines(policies: tuple[PolicyRow, ...]) -> list[str]:
    """One row a gripper: how often each policy commands the expert's side; none without a
    gripper."""
    if not policies[0].grippers:
        return []
    lines = _head("gripper: same side as the expert (at the changes only)", policies)
    for index, gripper in enumerate(policies[0].grippers):
        cells = []
        for row in policies:
            mine = row.grippers[index]
            # An episode has few changes: 99 % agreement may be a gripper that never closes.
            turned = "–" if mine.at_changes is None else f"{100 * mine.at_changes:.0f} %"
            cells.append(f"{100 * mine.agreement:.1f} % ({turned})")
        changes = f"{gripper.name}, {gripper.changes} steps that change it"
        lines.append(f"| {changes} | " + " | ".join(cells) + " |")
    return lines


def group_lines(report: OfflineReport, field: Literal["by_third", "by_phase"]) -> list[str]:
    """One row a part of the episode: each policy's error there without units; none where there are
    no such parts."""
    groups: list[str] = list(getattr(report.policies[0].expert, field))
    if not groups:
        return []
    lines = _head(f"error (mean action = 1), {field.replace('_', ' ')}", report.policies)
    compared = report.compared
    for group in groups:
        cells = []
        for row in report.policies:
            found = getattr(row.expert, field)[group]  # (a,) in the robot's units
            shares = [found[index] / compared.scale[index] for index in compared.moving]
            cells.append(number(sum(shares) / len(shares) if shares else None, 3))
        lines.append(f"| {group} | " + " | ".join(cells) + " |")
    return lines


def seen_lines(report: OfflineReport) -> list[str]:
    """What the provenance of each policy says of the episodes it is compared with."""
    lines = []
    for row in report.policies:
        if row.kind == "policy":
            lines.append(f"- {row.name}: {row.seen.why}")
    return lines


def pair_lines(report: OfflineReport) -> list[str]:
    """A sentence for each policy against the first, and against the best of what needs none; the
    other pairs are in report.json."""
    shown = {best_baseline(report.policies).name}
    for row in report.policies:
        if row.kind == "policy":
            shown.add(row.name)
    lines = []
    for pair in report.pairs:
        if pair.b in shown:
            lines.append(sentence(pair))
    return lines


def best_baseline(policies: Sequence[PolicyRow]) -> PolicyRow:
    """The one that is nearest to the expert."""
    found = [row for row in policies if row.kind == "baseline"]
    return min(found, key=lambda row: row.expert.share.mean)


def sentence(pair: Pair) -> str:
    """A paired comparison in words."""
    found = pair.share
    if found.ci95 is None:
        return f"- {pair.a} − {pair.b}: {found.mean:+.3f} (one episode: no interval)"
    low, high = found.ci95
    # The sign of an interval that leaves out 0 tells which is nearer.
    if high < 0:
        said = f"{pair.a} is nearer to the expert"
    elif low > 0:
        said = f"{pair.b} is nearer to the expert"
    else:
        said = "no difference is shown"
    ends = f"{low:+.3f} to {high:+.3f}"
    return f"- {pair.a} − {pair.b}: {found.mean:+.3f} (95 % interval {ends}); {said}"


def number(value: float | None, digits: int) -> str:
    """A dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def interval(ends: tuple[float, float] | None, digits: int) -> str:
    """A dash where there is none."""
    return "–" if ends is None else f"{ends[0]:.{digits}f}–{ends[1]:.{digits}f}"


def numbers(values: Any) -> Numbers:
    """An array as a report has it: None for NaN, which JSON does not know."""
    return tuple(None if math.isnan(value) else float(value) for value in values)


# --- as a picture


def error_by_step(report: OfflineReport, path: Path) -> None:
    """A picture: every policy's error at each step of its chunk, without units and then a dimension
    at a time; baselines dashed. Of more dimensions than have room those are drawn on which the mean
    action errs most, measured by the range."""
    from matplotlib.figure import Figure

    compared = report.compared
    drawn = _drawn(report)
    panels = len(drawn) + 1
    columns = min(4, panels)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows + 1.2), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    _draw(axes[0], report, None)
    for panel, index in zip(axes[1:], drawn, strict=False):
        _draw(panel, report, index)
    for panel in axes[:panels]:
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.tick_params(labelsize=8)
    for panel in axes[panels:]:
        panel.set_axis_off()
    # Of the whole figure such a label would lie behind the legend.
    for panel in axes[max(panels - columns, 0) : panels]:
        panel.set_xlabel("step of the chunk, 1 is next", fontsize=8)
    figure.supylabel("mean absolute error, in the robot's units", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=8
    )
    hidden = len(compared.robot.names) - len(drawn)
    left_out = f"; {hidden} more dimensions are in the table" if hidden else ""
    about = f"{compared.frames} frames of {len(compared.episodes)} held-out episodes"
    figure.suptitle(f"{about}{left_out}; no success rate", fontsize=10)
    with atomic_file(path) as part:
        figure.savefig(part, dpi=110, format="png")


def _drawn(report: OfflineReport) -> list[int]:
    """The dimensions that have a panel, in their order."""
    compared = report.compared
    low = compared.robot.low
    high = compared.robot.high

    def in_range(index: int) -> float:
        # A robot may say no range: ±∞, or the same number twice.
        width = high[index] - low[index]
        return compared.scale[index] / width if 0 < width < math.inf else compared.scale[index]

    order = sorted(range(len(compared.robot.names)), key=in_range, reverse=True)
    return sorted(order[:PANELS])


def _draw(axes: Any, report: OfflineReport, dimension: int | None) -> None:
    """A line a policy; `dimension` None: all that moves, without units."""
    axes.set_title("all that moves (mean action = 1)", fontsize=9)
    if dimension is not None:
        axes.set_title(report.compared.robot.names[dimension], fontsize=9)
    for place, row in enumerate(report.policies):
        values = row.expert.share_by_step
        if dimension is not None:
            values = tuple(step[dimension] for step in row.expert.by_step)
        # NaN: the line has a gap there.
        found = [math.nan if value is None else value for value in values]
        style: dict[str, Any] = {"linestyle": "-", "color": f"C{place}", "marker": "."}
        if row.kind == "baseline":
            style = {"linestyle": ("--", ":", "-.", (0, (1, 3)))[place % 4], "color": "grey"}
        axes.plot(range(1, len(found) + 1), found, label=row.name, **style)
