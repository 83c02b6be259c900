"""The tables that are folded below the pictures: every number of a report, as words. Knows reports;
writes no HTML."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from armlet.evaluation import speeds
from armlet.evaluation.figures import millions, multiple, number, of_teacher
from armlet.evaluation.page.findings import Group, groups, mean_milliseconds
from armlet.evaluation.page.pictures import signed

Report = dict[str, Any]
Row = dict[str, Any]  # of one policy
Column = tuple[str, Callable[[Row], str]]


@dataclass(frozen=True)
class Table:
    """A table: the first cell of a row is its name."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def all_tables(report: Report) -> list[Table]:
    """All of a report that is not empty, in the order in which they are told."""
    policies = report["policies"]
    found = [recipes(report)]
    found.append(_of_columns("Success of every policy", _success_columns(policies), policies))
    found.append(_of_columns(_times_caption(policies), _time_columns(policies), policies))
    found.append(_of_columns("Computation and size", _size_columns(policies), policies))
    for field, caption in (
        ("by_task", "By task, on the first split"),
        ("by_family", "By family of tasks, on the first split"),
        ("by_split", "By split: the first, and conditions that were not trained on"),
    ):
        found.append(_by(policies, field, caption))
    routed = [row for row in policies if "changes_with" in row["routing"]]
    found += [delayed(report), _routes(policies), _changes(routed), listens(report)]
    return [table for table in found if table.rows]


def percent(share: float) -> str:
    """One digit after the point, as outcomes of a thousand episodes allow."""
    return f"{100 * share:.1f} %"


def interval(ends: Sequence[float]) -> str:
    """Both ends of an interval."""
    return f"{percent(ends[0])} – {percent(ends[1])}"


def recipes(report: Report) -> Table:
    """What stands in the picture of success against time: one row a recipe."""
    rows = []
    for group in groups(report):
        rates = [each["successes"] / each["episodes"] for each in group.rows]
        rows.append(
            (
                group.name,
                str(len(group.rows)),
                percent(group.success),
                ", ".join(percent(rate) for rate in rates),
                f"{_mean(group, speeds.p50):.2f}",
                f"{mean_milliseconds(report, group):.2f}"
                if speeds.counts_motion(report["policies"])
                else "–",
            )
        )
    heads = ("recipe", "policies", "mean success", "each", "p50 ms", "ms per s of motion")
    return Table("Recipes, with the means of their seeds", heads, tuple(rows))


def _mean(group: Group, value: Callable[[Row], float]) -> float:
    return sum(map(value, group.rows)) / len(group.rows)


def _of_columns(caption: str, columns: Sequence[Column], policies: Sequence[Row]) -> Table:
    rows = []
    for policy in policies:
        rows.append(tuple(value(policy) for _, value in columns))
    return Table(caption, tuple(head for head, _ in columns), tuple(rows))


def _success_columns(policies: Sequence[Row]) -> list[Column]:
    def seconds(which: str) -> Callable[[Row], str]:
        return lambda row: number((row["seconds_to_success"] or {}).get(which), 2)

    def toggles(row: Row) -> str:
        found = row["gripper_toggles"]
        return "–" if not found else f"{found['per_episode']:.2f}"

    columns: list[Column] = [
        ("policy", lambda row: str(row["name"])),
        ("success", lambda row: f"{row['successes']}/{row['episodes']}"),
        ("share", lambda row: percent(row["successes"] / row["episodes"])),
        ("95 % interval", lambda row: interval(row["ci95"])),
        ("steps", lambda row: number(row["mean_steps"], 1)),
        *_looks_columns(policies),
        ("s to success", seconds("successes")),
        ("… failures as the limit", seconds("restricted")),
        ("gripper toggles", toggles),
    ]
    return columns


def _looks_columns(policies: Sequence[Row]) -> list[Column]:
    """How often a policy looks; reports before version 4 do not say it."""
    if "looks_per_episode" not in policies[0]:
        return []
    return [
        ("looks", lambda row: number(row["looks_per_episode"], 1)),
        ("looks a second", lambda row: number(row["decisions_per_second"], 2)),
    ]


def _times_caption(policies: Sequence[Row]) -> str:
    latency = policies[0]["latency_ms"]
    caption = f"Time: one decision, batch 1, {latency['threads']} thread(s), {latency['device']}"
    if speeds.several_runtimes(policies):
        caption += f"; speed against {policies[0]['name']}, and against it in the same runtime"
    return caption


def _time_columns(policies: Sequence[Row]) -> list[Column]:
    def quantile(which: str) -> Callable[[Row], str]:
        return lambda row: f"{row['latency_ms']['policy'][which]:.2f}"

    def times(which: str) -> Callable[[Row], str]:
        return lambda row: multiple(speeds.speed(row, policies)[which])

    columns: list[Column] = [("policy", lambda row: str(row["name"]))]
    several = speeds.several_runtimes(policies)
    if several:
        columns.append(("runtime", speeds.runtime_of))
    columns += [(f"{which} ms", quantile(which)) for which in ("p50", "p95", "p99")]
    columns.append(("speed", times("teacher")))
    if several:
        columns.append(("… in its runtime", times("teacher_in_runtime")))
    columns.append(("ms per s of motion", lambda row: number(row["ms_per_second_of_motion"], 1)))
    columns.append(("… times less", times("motion")))
    if several:
        columns.append(("… less in its runtime", times("motion_in_runtime")))
    return columns


def _size_columns(policies: Sequence[Row]) -> list[Column]:
    def layers_run(row: Row) -> str:
        return "–" if row["keep_ratio"] is None else percent(row["keep_ratio"])

    columns: list[Column] = [
        ("policy", lambda row: str(row["name"])),
        ("backbone FLOPs", lambda row: of_teacher(row, list(policies))),
        ("layers run", layers_run),
        ("parameters", lambda row: millions(row["params"]["total"])),
        ("peak MB", lambda row: number(row["peak_memory_mb"], 0)),
    ]
    return columns


def _by(policies: Sequence[Row], field: str, caption: str) -> Table:
    """Successes of episodes; groups down, where there are more of them than policies."""
    names = list(policies[0][field])

    def cell(row: Row, name: str) -> str:
        tally = row[field].get(name)
        return "–" if tally is None else f"{tally['successes']}/{tally['episodes']}"

    rows = []
    if len(names) > len(policies):
        for name in names:
            rows.append((name, *(cell(row, name) for row in policies)))
        heads = tuple(str(row["name"]) for row in policies)
        return Table(caption, ("", *heads), tuple(rows))
    for row in policies:
        rows.append((row["name"], *(cell(row, name) for name in names)))
    return Table(caption, ("policy", *names), tuple(rows))


def delayed(report: Report) -> Table:
    """Policies that act late."""
    columns: list[Column] = [
        ("policy", lambda row: str(row["name"])),
        ("times slower", lambda row: f"{row['slower']:g}"),
        ("rule", lambda row: str(row["late"])),
        ("delay, ms", lambda row: f"{row['delay_ms']:.0f}"),
        ("steps late", lambda row: str(row["lag_steps"])),
        ("success", lambda row: f"{row['successes']}/{row['episodes']}"),
        ("95 % interval", lambda row: interval(row["ci95"])),
        ("s to success", lambda row: number(row["seconds_to_success"]["successes"], 2)),
        (
            "… failures as the limit",
            lambda row: number(row["seconds_to_success"]["restricted"], 2),
        ),
    ]
    caption = "Acting late; with failures as the limit, every episode counts"
    return _of_columns(caption, columns, report["delayed"])


def listens(report: Report) -> Table:
    """What a policy listens to, with intervals."""
    columns: list[Column] = [
        ("policy", lambda row: str(row["policy"])),
        ("what was changed", lambda row: str(row["change"])),
        ("success", lambda row: f"{row['successes']}/{row['episodes']}"),
        ("95 % interval", lambda row: interval((row["low"], row["high"]))),
        ("against as it is, points", _lost),
    ]
    return _of_columns("What a policy listens to", columns, report.get("listens", []))


def _lost(row: Row) -> str:
    """How far a changed input is from the policy as it is, where the report compares them."""
    if "difference" not in row:
        return "–"
    ends = f"{signed(100 * row['difference_low'], 1)} to {signed(100 * row['difference_high'], 1)}"
    return f"{signed(100 * row['difference'], 1)} ({ends})"


def _routes(policies: Sequence[Row]) -> Table:
    columns: list[Column] = [
        ("policy", lambda row: str(row["name"])),
        ("routes", lambda row: str(row["routing"]["patterns"])),
        ("share of the commonest", lambda row: percent(row["routing"]["commonest_share"])),
    ]
    return _of_columns("How many routes there are through the layers", columns, policies)


def _changes(routed: Sequence[Row]) -> Table:
    caption = "What the route depends on: how often it changes when one thing is taken from another moment"
    if not routed:
        return Table(caption, (), ())
    names = list(routed[0]["routing"]["changes_with"])
    rows = []
    for row in routed:
        shares = row["routing"]["changes_with"]
        rows.append((row["name"], *(percent(shares[name]) for name in names)))
    return Table(caption, ("policy", *(name.replace("_", " ") for name in names)), tuple(rows))
