"""Where marks stand: against the numbers they stand for, and against what any picture must keep."""

import itertools
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_page import REPRODUCTIONS
from statsmodels.duration.survfunc import SurvfuncRight

from armlet import report
from armlet.evaluation import outcomes, reaching, speeds
from armlet.evaluation.page import curves, findings, pictures
from armlet.evaluation.page.reaching import reached

PLACES = st.lists(st.floats(-50, 500, allow_nan=False), min_size=1, max_size=30)


@given(PLACES)
def test_labels_keep_their_order_and_do_not_overlap(places: list[float]) -> None:
    found = pictures.spread(places, 18, 300)
    order = sorted(range(len(places)), key=places.__getitem__)
    for above, below in itertools.pairwise(order):
        assert found[below] - found[above] >= 18 - 1e-6
    assert min(found) >= -1e-6
    assert max(found) <= max(300, 18 * (len(places) - 1)) + 1e-6


@given(st.lists(st.integers(0, 15), min_size=1, max_size=15, unique=True))
def test_labels_that_have_room_stay_where_they_are(slots: list[int]) -> None:
    places = [20.0 * slot for slot in slots]
    assert pictures.spread(places, 18, 300) == places


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4), st.integers(3, 8))
def test_axes_have_round_numbers_and_few(low: float, span: float, most: int) -> None:
    found = pictures.round_numbers(low, low + span, most)
    assert 1 <= len(found) <= most + 1
    assert min(found) >= low - 1e-6 * span and max(found) <= low + span * (1 + 1e-6)
    for a, b in itertools.pairwise(found):
        mantissa = (b - a) / 10 ** math.floor(math.log10(b - a) + 1e-6)
        assert any(mantissa == pytest.approx(round_one, rel=1e-5) for round_one in (1, 2, 5))


def test_a_forest_has_all_on_one_axis() -> None:
    """Places are a straight line through zero and the margin, so any other number follows."""
    found = report.read(REPRODUCTIONS / "vla_ad" / "report.json")
    [forest] = pictures.forests(found)
    across = (forest.zero - forest.rows[0].margin) / 3  # % of the width a point
    pairs = {pair["a"]: pair for pair in found["pairs"] if pair["b"] == "teacher"}
    for row in forest.rows:
        pair = pairs[row.finding.policy]
        told = (pair["difference"], *pair["ci95"])
        for place, share in zip((row.at, row.low, row.high), told, strict=True):
            assert place == pytest.approx(forest.zero + 100 * share * across, abs=0.05)
            assert 0 < place < 100
    assert [row.finding.difference for row in forest.rows] == sorted(
        (pair["difference"] for pair in pairs.values()), reverse=True
    )


@pytest.mark.parametrize("name", ["tabletop_fresh", "actdistill"])
def test_success_stands_against_what_is_computed(name: str) -> None:
    """Of a report that says a second of motion, and of one that does not."""
    found = report.read(REPRODUCTIONS / name / "report.json")
    plot = pictures.front(found)
    rows = {row["name"]: row for row in found["policies"]}
    motion = name == "tabletop_fresh"
    assert ("motion" in plot.title) == motion
    ticks = {float(tick.label): tick.at for tick in plot.across}
    step = (ticks[max(ticks)] - ticks[0]) / max(ticks)
    percent = {float(tick.label): tick.at for tick in plot.down}
    high, low = max(percent), min(percent)
    for dot in plot.dots:
        members = [row for each, row in rows.items() if each.rpartition("-")[0] == dot.name]
        members = [rows[dot.name]] if dot.name in rows else members
        x = [
            row["ms_per_second_of_motion"] if motion else row["latency_ms"]["policy"]["p50"]
            for row in members
        ]
        rate = sum(row["successes"] / row["episodes"] for row in members) / len(members)
        assert dot.x == pytest.approx(sum(x) / len(x) * step, abs=0.05)
        share = (high - 100 * rate) / (high - low)
        assert dot.y == pytest.approx(
            percent[high] + share * (percent[low] - percent[high]), abs=0.5
        )


def test_seeds_are_counted_together_in_a_map() -> None:
    found = report.read(REPRODUCTIONS / "tabletop_fresh" / "report.json")
    picture = pictures.tasks(found)
    column = picture.columns.index("first_k")
    seeds = [row for row in found["policies"] if row["name"].startswith("first_k-")]
    assert len(seeds) == 3
    for task, cells in picture.rows:
        cell = cells[column]
        right = sum(row["by_task"][task]["successes"] for row in seeds)
        of = sum(row["by_task"][task]["episodes"] for row in seeds)
        assert cell.told == f"first_k, {task}: {right} of {of}"
        assert (cell.shade == 0) == (right == of)


@pytest.mark.parametrize(
    ("right", "said"), [(2000, "100"), (1999, "99"), (1, "1"), (0, "0"), (1190, "60")]
)
def test_no_share_is_rounded_to_all_or_nothing(right: int, said: str) -> None:
    picture = pictures.successes(("policy", "task"), ["t"], [("p", [(right, 2000)])])
    assert picture.rows[0][1][0].text == said


def test_a_map_is_longer_than_it_is_wide_and_comes_in_parts() -> None:
    columns = [f"task {index}" for index in range(50)]
    cells = [(index, 100) for index in range(50)]
    picture = pictures.successes(("policy", "task"), columns, [("a", cells), ("b", cells)])
    assert picture.corner == "task" and picture.columns == ("a", "b")
    parts = pictures.parts(picture)
    assert [len(part.rows) for part in parts] == [17, 17, 16]
    assert [row for part in parts for row in part.rows] == list(picture.rows)
    assert picture.rows[7] == ("task 7", (picture.rows[7][1][0], picture.rows[7][1][1]))
    assert picture.rows[7][1][1].told == "b, task 7: 7 of 100"


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (
            ["teacher", "vla_ad_tiny_offline@0", "vla_ad_tiny_offline_aux@0.2"],
            ["teacher", "…@0", "…_aux@0.2"],
        ),
        (["teacher", "abcdefgh_first", "abcdefgh_second"], None),  # short enough
        (["teacher", "tabletop-student onnx", "teacher onnx"], ["teacher", "tablet…tudent onnx", None]),
        (["a", "x" * 30, "x" * 6 + "y" + "x" * 23], None),  # would be the same
        (["teacher", "a_long_prefix_of_left", "a_long_prefix_of_lower"], ["teacher", "…left", "…lower"]),
    ],
)  # fmt: skip
def test_long_names_are_shortened_where_they_still_differ(names, short) -> None:
    found = findings.short_names(names)
    expected = short or names
    assert [found[name] for name in names] == [
        want or name for want, name in zip(expected, names, strict=True)
    ]


def test_losses_are_drawn_on_a_logarithm_one_stage_after_the_other() -> None:
    stages = [
        {"step": [0, 100], "loss": [100.0, 1.0], "off": [0.0, 0.0], "seconds": [1, 2]},
        {"step": [50, 100], "loss": [10.0, None]},
    ]
    [found] = curves.training({"training": {"student": stages}})
    assert found.left_out == ("off",)
    [line] = found.lines
    # 0 to 200 steps across, 100 down to 1: two decades.
    assert line.paths == ("M0 0L500 1000", "M750 500")
    assert (line.first, line.last) == (100.0, 10.0)
    assert {tick.label: tick.at for tick in found.down} == {
        "1": found.height,
        "10": found.height / 2,
        "100": 0,
    }


def test_the_map_of_a_film_leaves_blank_what_was_cut_away() -> None:
    seen = {"execute": 2, "success": True, "steps": 3, "gates": ["10", "01"]}
    film = {
        "task": "t",
        "seed": 1,
        "video": "t.mp4",
        "fps": 10,
        "policies": [{"name": "a", **seen}],
    }
    row = {"name": "a", "routing": {"layers": [0, 3]}}
    [episode] = curves.episodes({"policies": [row], "rollouts": [film], "depth": 4})
    [lane] = episode.lanes
    squares = re.findall(r"M(\d+) (\d+)h(\d+)", lane.runs)
    # Layer 0 is the lowest of four; the second chunk was cut short after one step of two.
    assert squares == [("0", "3", "2"), ("2", "0", "1")]
    assert re.findall(r"M(\d+) (\d+)h(\d+)", lane.idle) == [("0", "0", "2"), ("2", "3", "1")]


def test_the_fastest_is_one_that_is_proved() -> None:
    found = report.read(REPRODUCTIONS / "vla_ad" / "report.json")
    best = findings.fastest(found, findings.findings(found))
    assert best is not None and best.policy == "vla_ad_tabletop"  # vla_ad_bc is faster, and worse
    rows = {row["name"]: row for row in found["policies"]}
    assert best.times_less == pytest.approx(
        speeds.p50(rows["teacher"]) / speeds.p50(rows["vla_ad_tabletop"])
    )
    slow = report.read(REPRODUCTIONS / "vita_vla" / "report.json")
    assert findings.fastest(slow, findings.findings(slow)) is None  # all take longer


# --- how soon they succeed
# ------------------------------------------------------------------------------------------

BELT = REPRODUCTIONS / "tabletop_belt"


def test_the_share_that_has_succeeded_is_one_minus_kaplan_and_meiers() -> None:
    """statsmodels' estimate, with failures as cut off at the limit."""
    kept = outcomes.read(BELT / "outcomes.json.gz")
    for late in kept.delayed:
        times, share = reaching.shares([late.run])
        survival = SurvfuncRight(np.array(late.run.steps), np.array(late.run.success))
        reference = dict(zip(survival.surv_times, survival.surv_prob, strict=True))
        for time, found in zip(times, share, strict=True):
            assert found == pytest.approx(1 - reference[time], abs=1e-12)
        assert share[-1] == np.mean(late.run.success)


def above(path: str) -> float:
    """The area above a path of steps, as a share of its square."""
    assert path.startswith("M0 1000") and path.endswith("H1000")
    x = height = 0.0
    area = 0.0
    for across, down in re.findall(r"H(\d+)(?:V(\d+))?", path):
        area += (float(across) - x) * (1000 - height)
        x = float(across)
        height = 1000 - float(down or 0)
    return area / 1e6


@pytest.mark.parametrize("name", ["tabletop_belt", "tabletop_splits"])
def test_the_area_above_a_line_is_the_mean_time_with_failures_as_the_limit(name: str) -> None:
    """Of the report's own numbers, which are the first split's: the restricted mean is the integral of
    the survival function."""
    told = report.read(REPRODUCTIONS / name / "report.json")
    kept = outcomes.read(REPRODUCTIONS / name / "outcomes.json.gz")
    drawn = reached(told, kept)
    rows = {}
    for row in told["delayed"]:
        title = f"computer {row['slower']:g}× slower, {row['late']}"
        rows[title, row["name"]] = row["seconds_to_success"]
    for row in told["policies"]:
        rows[reaching.AT_ONCE, row["name"]] = row["seconds_to_success"]
    shown = [
        (picture.title, course.name, course.path) for picture in drawn for course in picture.courses
    ]
    assert len(shown) == len(rows)
    for title, name, path in shown:
        seconds = rows[title, name]
        assert seconds["limit"] * above(path) == pytest.approx(seconds["restricted"], abs=0.02)


def test_seeds_of_a_recipe_are_one_line_of_one_colour() -> None:
    path = REPRODUCTIONS / "tabletop_fresh" / "report.json"
    [drawn] = reached(report.read(path), outcomes.read(path.with_name("outcomes.json.gz")))
    names = [course.name for course in drawn.courses]
    assert names == ["teacher", "actdistill", "first_k", "layer_drop"]
    assert len({course.mark for course in drawn.courses}) == 4


def test_a_policy_that_never_succeeds_is_a_line_at_the_bottom() -> None:
    never = outcomes.Run((False, False), (80, 80), (9, 9), (0, 0), None)
    times, share = reaching.shares([never])
    assert len(times) == len(share) == 0


def test_the_lines_need_the_outcomes_beside_the_report(tmp_path) -> None:
    for name in ("report.json", "outcomes.json.gz"):
        shutil.copy(BELT / name, tmp_path / name)
    heading = "How soon they succeed"
    assert heading in report.main((tmp_path,)).read_text()
    other = REPRODUCTIONS / "tabletop_fresh" / "outcomes.json.gz"
    shutil.copy(other, tmp_path / "outcomes.json.gz")
    with pytest.raises(ValueError, match=r"outcomes\.json\.gz"):
        report.main((tmp_path,))
    (tmp_path / "outcomes.json.gz").unlink()
    assert heading not in report.main((tmp_path,)).read_text()


def test_no_two_of_many_lines_look_alike() -> None:
    marks = [curves.line_mark(index) for index in range(24)]
    assert len(set(marks)) == 24
    sheet = (Path(curves.__file__).parent / "page.css").read_text()
    for word in {word for mark in marks for word in mark.split()}:
        assert f".{word} {{" in sheet


def test_outcomes_without_episodes_are_no_picture() -> None:
    policy = outcomes.PolicyRun("teacher", "f", 1, (), {}, outcomes.Run((), (), (), (), None))
    told = report.read(BELT / "report.json")
    assert reached(told, outcomes.Outcomes(10.0, 80, (), (policy,))) == []


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("none", 'outcomes is "none", expected {file, sha256}'),
        ({"file": "outcomes.json.gz"}, "expected {file, sha256}"),
        ({"file": 5, "sha256": "a"}, "expected {file, sha256}"),
        (
            {"file": "/etc/passwd", "sha256": "a"},
            "outcomes.file is '/etc/passwd', expected the name",
        ),
    ],
)
def test_what_names_no_outcomes_is_an_error_with_the_field(tmp_path, said, why: str) -> None:
    told = json.loads((BELT / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps({**told, "outcomes": said}))
    with pytest.raises(ValueError, match=re.escape(why)):
        report.main((tmp_path,))
