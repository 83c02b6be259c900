"""What is kept of single episodes: read back as it was, refused where it is not, and every section
of a report computed from it, against
numbers counted by hand."""

import dataclasses
import gzip
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from armlet.evaluation import outcomes as kept
from armlet.evaluation import stats
from armlet.evaluation.outcomes import DelayedRun, Outcomes, Planned, PolicyRun, Run, recompute

EPISODES = (
    Planned("seen", "hand", "touch", 10),
    Planned("seen", "hand", "push", 11),
    Planned("seen", "tool", "rake", 12),
    Planned("seen", "hand", "touch", 13),
    Planned("unseen", "hand", "touch", 10),
    Planned("unseen", "tool", "rake", 11),
)


def run(
    success: str,
    steps: list[int],
    *,
    decisions: list[int] | None = None,
    waited: list[int] | None = None,
    toggles=None,
) -> Run:
    count = len(success)
    return Run(
        success=tuple(bit == "1" for bit in success),
        steps=tuple(steps),
        decisions=tuple(decisions or [1] * count),
        waited=tuple(waited or [0] * count),
        toggles=toggles,
    )


def policy(
    name: str, success: str, steps: list[int], *, seeds_of: str | None = None, **more
) -> PolicyRun:
    own = run(success, steps, **more)
    return PolicyRun(name, f"print-{name}", 2, (1.0, 3.0), {"11": 3, "10": 1}, own, seeds_of)


OUTCOMES = Outcomes(
    hz=10.0,
    limit=40,
    episodes=EPISODES,
    policies=(
        policy(
            "teacher",
            "110110",
            [10, 20, 40, 30, 8, 40],
            decisions=[5, 10, 20, 15, 4, 20],
            toggles=(1, 0, 2, 1, 9, 9),
        ),
        policy("student", "111100", [12, 20, 28, 30, 40, 40]),
    ),
    delayed=(
        DelayedRun(
            "teacher",
            20.0,
            "wait",
            110.0,
            2,
            run("1001", [20, 40, 40, 34], waited=[8, 10, 20, 12], decisions=[4, 5, 10, 6]),
        ),
        DelayedRun("student", 20.0, "wait", 40.0, 1, run("1101", [15, 26, 40, 34])),
        DelayedRun("teacher", 20.0, "run_on", 110.0, 2, run("0001", [40, 40, 40, 34])),
        DelayedRun("student", 20.0, "run_on", 40.0, 1, run("0001", [40, 40, 40, 34])),
    ),
)


def test_what_is_read_back_is_what_was_written_and_its_bytes_do_not_hang_on_the_day(
    tmp_path, monkeypatch
) -> None:
    path = tmp_path / "evaluation" / "outcomes.json.gz"
    sha256 = kept.write(path, OUTCOMES)
    assert kept.read(path) == OUTCOMES == kept.read(path, sha256=sha256)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(time, "time", lambda: 1e9)
    assert kept.to_bytes(OUTCOMES) == path.read_bytes()


def test_anybody_can_read_it() -> None:
    value = json.loads(gzip.decompress(kept.to_bytes(OUTCOMES)))
    assert value["version"] == 1 and value["episodes"][2] == ["seen", "tool", "rake", 12]
    assert value["policies"][0]["success"] == "110110" and value["policies"][0]["toggles"] == [
        1,
        0,
        2,
        1,
        9,
        9,
    ]
    assert [entry["name"] for entry in value["policies"]] == ["teacher", "student"], (
        "the first is who others are compared with"
    )


def test_what_a_guard_did_is_kept_only_where_there_was_one(tmp_path) -> None:
    """A file without one is byte for byte what it was before there were any."""
    assert b"guarded" not in gzip.decompress(kept.to_bytes(OUTCOMES))
    teacher = OUTCOMES.policies[0]
    safe = dataclasses.replace(
        teacher, run=dataclasses.replace(teacher.run, guarded=(1, 0, 4, 0, 0, 5))
    )
    outcomes = dataclasses.replace(OUTCOMES, policies=(teacher, safe), delayed=())
    assert kept.from_bytes(kept.to_bytes(outcomes)) == outcomes
    bare, row = kept.recompute(outcomes)["policies"]
    assert "guarded_share" not in bare
    assert row["guarded_share"] == pytest.approx(5 / 100)  # of the first split's control steps
    short = dataclasses.replace(teacher.run, guarded=(1,))
    with pytest.raises(ValueError, match="guarded has 1 entries, expected 6"):
        dataclasses.replace(OUTCOMES, policies=(dataclasses.replace(teacher, run=short),))


def test_what_is_no_outcomes_file_is_named(tmp_path) -> None:
    path = tmp_path / "outcomes.json.gz"
    with pytest.raises(FileNotFoundError, match=r"outcomes\.json\.gz is missing"):
        kept.read(path)
    content = kept.to_bytes(OUTCOMES)
    path.write_bytes(content[:-20])
    with pytest.raises(ValueError, match=r"outcomes\.json\.gz is not compressed JSON"):
        kept.read(path)
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"not the one its report was made from: sha256 \w+…, expected 0000"
    ):
        kept.read(path, sha256="0" * 64)

    def changed(**fields) -> bytes:
        return gzip.compress(json.dumps(json.loads(gzip.decompress(content)) | fields).encode())

    with pytest.raises(ValueError, match=r"version 7, expected one of \(1, 2, 3\)"):
        kept.from_bytes(changed(version=7))
    value = json.loads(gzip.decompress(content))
    del value["hz"]
    lacking = gzip.compress(json.dumps(value).encode())
    with pytest.raises(ValueError, match=r"lacks or garbles a field \('hz'\)"):
        kept.from_bytes(lacking)
    for name, value in (("hz", 0), ("limit", -3), ("limit", "40")):
        with pytest.raises(ValueError, match=f"{name} is {value!r}, expected more than 0"):
            kept.from_bytes(changed(**{name: value}))
    value = json.loads(gzip.decompress(content))
    value["delayed"][0]["policy"] = "stranger"
    with pytest.raises(ValueError, match="'stranger' acted late, and is none of the policies"):
        kept.from_bytes(changed(delayed=value["delayed"]))
    for steps in ("123456", [1, 2, 3, 4, 5, None], [1, 2, 3, 4, 5, -6]):
        value["policies"][0]["steps"] = steps
        with pytest.raises(ValueError, match=r"garbles a field .expected counts, found"):
            kept.from_bytes(changed(policies=value["policies"]))
    with pytest.raises(ValueError, match="'teacher': success has 6 entries, expected 5"):
        kept.from_bytes(
            changed(episodes=[list(dataclasses.astuple(each)) for each in EPISODES[:5]])
        )
    late = OUTCOMES.delayed[3]
    short = dataclasses.replace(late, run=dataclasses.replace(late.run, steps=(1, 2, 3)))
    with pytest.raises(
        ValueError, match="student 20× slower, run_on': steps has 3 entries, expected 4"
    ):
        dataclasses.replace(OUTCOMES, delayed=(short,))


def test_a_policys_row_is_about_the_first_split_and_tallies_all() -> None:
    teacher, student = recompute(OUTCOMES)["policies"]
    assert (teacher["name"], teacher["fingerprint"], teacher["execute"]) == (
        "teacher",
        "print-teacher",
        2,
    )
    assert (teacher["successes"], teacher["episodes"], teacher["ci95"]) == (
        3,
        4,
        stats.rate_ci95(3, 4),
    )
    assert teacher["mean_steps"] == pytest.approx((10 + 20 + 30) / 3)
    counted = {
        name: (cell["successes"], cell["episodes"]) for name, cell in teacher["by_task"].items()
    }
    assert counted == {"touch": (2, 2), "push": (1, 1), "rake": (0, 1)}
    assert teacher["by_family"]["hand"]["successes"] == 3 and teacher["by_family"][
        "tool"
    ] == kept.tally([False])
    assert (
        teacher["by_split"]["unseen"]["successes"] == 1
        and student["by_split"]["unseen"]["successes"] == 0
    )
    assert (
        teacher["decisions_per_second"]
        == pytest.approx(10 * (5 + 10 + 20 + 15) / (10 + 20 + 40 + 30))
        == 5
    )
    assert (
        teacher["gripper_toggles"]["per_episode"] == 1
        and teacher["gripper_toggles"]["per_100_steps"] == 4
    )
    assert student["gripper_toggles"] is None


def test_seconds_to_success_with_and_without_failures() -> None:
    teacher = recompute(OUTCOMES)["policies"][0]["seconds_to_success"]
    assert teacher == {
        "successes": pytest.approx(2.0),
        "restricted": pytest.approx((1 + 2 + 4 + 3) / 4),
        "limit": 4.0,
    }
    never = dataclasses.replace(
        OUTCOMES, policies=(policy("none", "000000", [40] * 6),), delayed=()
    )
    assert recompute(never)["policies"][0]["seconds_to_success"] == {
        "successes": None,
        "restricted": 4.0,
        "limit": 4.0,
    }
    assert recompute(never)["policies"][0]["mean_steps"] is None


def test_routes_and_the_share_of_the_backbone_that_ran() -> None:
    """Three of four decisions ran both layers, which cost 1 and 3; one the first only."""
    row = recompute(OUTCOMES)["policies"][0]
    assert row["keep_ratio"] == pytest.approx((3 * 4 + 1) / (4 * 4))
    assert row["routing"] == {
        "activation": [1.0, 0.75],
        "patterns": 2,
        "commonest_pattern": "11",
        "commonest_share": 0.75,
    }


def test_pairs_are_compared_within_each_split() -> None:
    sections = recompute(OUTCOMES)
    (seen,), (unseen,) = sections["pairs"], sections["pairs_by_split"]["unseen"]
    assert (seen["a"], seen["b"], seen["n"], seen["both"], seen["only_a"], seen["only_b"]) == (
        "student",
        "teacher",
        4,
        3,
        1,
        0,
    )
    assert (unseen["n"], unseen["only_a"], unseen["only_b"], unseen["difference"]) == (
        2,
        0,
        1,
        -0.5,
    )


def test_policies_that_act_late_are_told_apart_by_computer_and_rule() -> None:
    sections = recompute(OUTCOMES)
    first = sections["delayed"][0]
    assert (
        first["name"],
        first["slower"],
        first["late"],
        first["delay_ms"],
        first["lag_steps"],
    ) == (
        "teacher",
        20.0,
        "wait",
        110.0,
        2,
    )
    assert (first["successes"], first["episodes"]) == (2, 4) and first["mean_steps"] == 27
    assert first["seconds_to_success"] == {
        "successes": pytest.approx(2.7),
        "restricted": pytest.approx(3.35),
        "limit": 4.0,
    }
    assert first["waiting_share"] == pytest.approx(50 / 134)
    assert first["decisions_per_second"] == pytest.approx(25 / 8.4), (
        "of the seconds in which the arm moved"
    )
    compared = [
        (pair["late"], pair["a"], pair["b"], pair["only_a"], pair["only_b"])
        for pair in sections["delayed_pairs"]
    ]
    assert compared == [
        ("wait", "student", "teacher", 1, 0),
        ("run_on", "student", "teacher", 0, 0),
    ]
    # By hand: each episode's seconds, a failure the limit's, and the paired t of their differences.
    late = OUTCOMES.delayed
    both = [each.run for each in late if (each.late, each.slower) == ("wait", 20.0)]
    teacher, student = (np.where(each.success, np.array(each.steps) / 10, 4.0) for each in both)
    expected = scipy_stats.ttest_rel(student, teacher)
    pair = sections["delayed_pairs"][0]
    low, high = expected.confidence_interval()
    assert pair["seconds"]["difference"] == pytest.approx((student - teacher).mean())
    assert pair["seconds"]["ci95"] == pytest.approx((low, high)) and low < high
    older = recompute(OUTCOMES, version=3)["delayed_pairs"]
    assert not any("seconds" in each for each in older), "as those reports were written"


def of(rows: dict[str, np.ndarray]) -> Outcomes:
    """Outcomes in as many seen episodes as each row has, followed by as many unseen ones in which
    all fail."""
    n = len(next(iter(rows.values())))
    episodes = tuple(
        Planned(split, "hand", "touch", seed) for split in ("seen", "unseen") for seed in range(n)
    )
    policies = []
    for name, values in rows.items():
        policies.append(
            policy(name, "".join(str(int(value)) for value in values) + "0" * n, [5] * 2 * n)
        )
    return Outcomes(10.0, 40, episodes, tuple(policies))


def test_students_that_differ_in_their_seed_are_taken_together() -> None:
    rng = np.random.default_rng(0)
    names = ("teacher", "first-0", "first-1", "alone-0", "other-0", "other-1", "other-2")
    rows = {name: rng.random(20) < 0.8 for name in names}
    found = kept.over_seeds(of(rows), "seen")
    assert [(row["name"], row["seeds"]) for row in found["policies"]] == [
        ("teacher", 1),
        ("first", 2),
        ("other", 3),
    ]
    each = [rows[name].mean() for name in ("other-0", "other-1", "other-2")]
    assert found["policies"][2]["each"] == pytest.approx(each) and found["policies"][2][
        "success"
    ] == pytest.approx(np.mean(each))
    assert (
        found["policies"][2]["sd"] == pytest.approx(np.std(each, ddof=1))
        and found["policies"][0]["sd"] is None
    )
    assert [(pair["a"], pair["b"]) for pair in found["pairs"]] == [
        ("first", "teacher"),
        ("other", "teacher"),
        ("other", "first"),
    ]
    others = np.stack([rows[name] for name in ("other-0", "other-1", "other-2")])
    expected = stats.compare_seeds(others, np.stack([rows["first-0"], rows["first-1"]])).to_json()
    assert found["pairs"][2] == {"a": "other", "b": "first", **expected}
    assert kept.over_seeds(of({name: rows[name] for name in ("teacher", "first-0")}), "seen") == {}


def test_recomputing_gives_the_same_numbers_again(tmp_path) -> None:
    """Those of a bootstrap, too: a reader of the file gets the report's own."""
    path = Path(tmp_path) / "outcomes.json.gz"
    kept.write(path, OUTCOMES)
    assert json.dumps(recompute(OUTCOMES)) == json.dumps(recompute(kept.read(path)))
