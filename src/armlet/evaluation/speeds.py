"""How much faster a policy is, than whom: against the teacher in the same runtime, against the eager
teacher, and per second in which the arm moves.

One number hides two different things: a student in a fast runtime against an eager teacher is fast
for its few layers and for the runtime, and the teacher could have had the second for nothing. Knows
rows of a report, by the names that docs/report-format.md gives; runs nothing.
"""

from collections.abc import Sequence
from typing import Any

from armlet.measuring import EAGER

Row = dict[str, Any]  # of one policy in one runtime
Pair = dict[str, Any]


def runtime_of(row: Row) -> str:
    """A row's runtime and, where it was exported, the precision: `eager`, `onnx int8`."""
    library: str = row["runtime"]
    if library == EAGER or row["precision"] in (None, "fp32"):
        return library
    return f"{library} {row['precision']}"


def several_runtimes(policies: Sequence[Row]) -> bool:
    """Whether policies were run in more than one."""
    return len(set(map(runtime_of, policies))) > 1


def teacher_beside(row: Row, policies: Sequence[Row]) -> Row | None:
    """The teacher (the first policy) in this row's runtime, carrying out its own number of actions;
    None where it was not run there."""
    for other in policies:
        # The first of the teacher's rows in a runtime is the one without another `execute`.
        if other["policy"] == policies[0]["policy"] and runtime_of(other) == runtime_of(row):
            return other
    return None


def p50(row: Row) -> float:
    """Milliseconds a decision."""
    median: float = row["latency_ms"]["policy"]["p50"]
    return median


def counts_motion(policies: Sequence[Row]) -> bool:
    """Whether every row says what a second of motion costs; of older reports, and of policies that
    never moved, only what a decision takes is known."""
    return all(row.get("ms_per_second_of_motion") for row in policies)


def computing(row: Row, policies: Sequence[Row]) -> float:
    """Milliseconds for a second of motion, or else for a decision: what pictures of all `policies`
    are drawn against."""
    if not counts_motion(policies):
        return p50(row)
    motion: float = row["ms_per_second_of_motion"]
    return motion


def against_teacher(row: Row, policies: Sequence[Row]) -> float:
    """How many times faster a decision is than one of the first policy, the eager teacher."""
    return p50(policies[0]) / p50(row)


def against_teacher_in_runtime(row: Row, policies: Sequence[Row]) -> float | None:
    """The same against the teacher in the same runtime; None where it was not run there."""
    teacher = teacher_beside(row, policies)
    return None if teacher is None else p50(teacher) / p50(row)


def motion_against_teacher(row: Row, policies: Sequence[Row]) -> float | None:
    """How many times less a second of motion costs than with the eager teacher: faster decisions
    and rarer ones together. None where either never moved."""
    return _motion(policies[0], row)


def motion_against_teacher_in_runtime(row: Row, policies: Sequence[Row]) -> float | None:
    """The same against the teacher in the same runtime, carrying out its own number of actions;
    None where it was not run there."""
    teacher = teacher_beside(row, policies)
    return None if teacher is None else _motion(teacher, row)


def _motion(whole: Row, row: Row) -> float | None:
    theirs = whole.get("ms_per_second_of_motion")
    mine = row.get("ms_per_second_of_motion")
    return None if not theirs or not mine else theirs / mine


def speed(row: Row, policies: Sequence[Row]) -> dict[str, float | None]:
    """All four, as they stand in a report's row."""
    return {
        "teacher": against_teacher(row, policies),
        "teacher_in_runtime": against_teacher_in_runtime(row, policies),
        "motion": motion_against_teacher(row, policies),
        "motion_in_runtime": motion_against_teacher_in_runtime(row, policies),
    }


def told(policies: Sequence[Row], pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that a page tells in words, of several runtimes: each row against the eager
    teacher, against the teacher in its runtime, and against the same policy as it is run in eager.
    All pairs where there is one runtime."""
    if not several_runtimes(policies):
        return list(pairs)
    rows = {row["name"]: row for row in policies}
    found = []
    for pair in pairs:
        a = rows[pair["a"]]
        b = rows[pair["b"]]
        if b is policies[0] or is_headline(pair, policies) or _exported(a, b):
            found.append(pair)
    return found


def is_headline(pair: Pair, policies: Sequence[Row]) -> bool:
    """Whether a pair is one that speed is stated with: another policy against the teacher in the
    same runtime, or anything against the eager teacher."""
    if pair["b"] == policies[0]["name"]:
        return True
    a = next(row for row in policies if row["name"] == pair["a"])
    teacher = teacher_beside(a, policies)
    return teacher is not None and teacher is not a and pair["b"] == teacher["name"]


def _exported(a: Row, b: Row) -> bool:
    """Whether a is what b was exported to, run as b is."""
    return a.get("exported_from") == b["name"]
