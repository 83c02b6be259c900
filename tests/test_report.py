"""The page: every number from its report, one verdict a recipe, nothing from the network, and no name
that could break it. In a browser: test_report_browser.py."""

import json
import re
from pathlib import Path

import pytest
from report_page import EVIL, REPRODUCTIONS, Tables, late_row, write_report

from armlet import report
from armlet.evaluation import figures

FOREST = "Difference in success against teacher, on the same episodes"


@pytest.fixture
def written(tmp_path) -> Path:
    """A report with a film of 21 frames, beside it."""
    return write_report(tmp_path)


def change(path: Path, **fields) -> str:
    """A report with other fields, and its page."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return report.main((path,)).read_text()


def test_the_page_is_whole_and_asks_nothing_of_a_network(written: Path, tmp_path) -> None:
    page = report.main((written,), out=tmp_path / "page.html").read_text()
    assert not re.findall(
        r"""(?:src|href)=["'](?!#|data:)|url\(|@import|https?://(?!www.w3)""", page
    )
    for shown in (
        "unseen_objects",
        "student ≥ teacher − 3 pp: shown (n = 100)",
        "<h4>unseen objects</h4>",
        "student − teacher: -4.0 pp",
        "tabletop: mine",
    ):
        assert shown in page
    assert "first − other: +2.0 pp (95 % interval of students and episodes +1.0 to +3.0)" in page
    tables = Tables(page).found
    assert tables["Success of every policy"][1] == [
        "teacher", "99/100", "99.0 %", "94.0 % – 100.0 %", "11.5", "–", "–", "–",
    ]  # fmt: skip
    assert tables["Success of every policy"][5][-1] == "1.87"
    assert tables["Time: one decision, batch 1, 1 thread(s), cpu"][2] == [
        "student", "2.50", "5.00", "7.50", "2.20×", "17.5", "2.20×",
    ]  # fmt: skip
    assert tables["Computation and size"][2] == ["student", "45 %", "37.5 %", "1.23 M", "321"]
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert data is not None
    restored = json.loads(data.group(1))
    assert restored[0]["fingerprint"]["note"] == EVIL
    assert restored[0]["rollouts"][0]["source"].startswith("data:video/mp4;base64,")


def test_no_name_is_ever_markup(written: Path) -> None:
    """Policies, tasks, changes, terms of a loss, reasons: all are other people's text."""
    value = json.loads(written.read_text())
    hostile = json.loads(json.dumps(value).replace('"student"', json.dumps(EVIL + '"student')))
    for row in hostile["policies"]:
        row["by_task"] = {EVIL: row["by_task"]["rake"]}
    hostile["training"] = {EVIL: [{"step": [1, 2], EVIL: [2.0, 1.0]}]}
    hostile["refused"] = [
        {"name": EVIL, "policy": EVIL, "runtime": "onnx", "precision": "fp32", "why": EVIL}
    ]
    share = {"successes": 1, "episodes": 2, "low": 0.1, "high": 0.9}
    hostile["listens"] = [{"policy": EVIL, "change": EVIL, **share}]
    hostile["plan"] = {EVIL: EVIL}
    hostile["verdicts"] = [verdict("student", sentence=EVIL)]
    page = change(written, **hostile)
    assert page.count("<script") == page.count("</script>") == 2  # the data, and the page's own
    assert "window.broken" in page and "<script>window.broken" not in page
    assert '"student"' not in re.sub(r"<script.*?</script>", "", page, flags=re.S)


def test_many_reports_make_one_page_and_a_folder_is_enough(written: Path) -> None:
    page = report.main((written.parent, written))
    text = page.read_text()
    assert page == written.with_name("report.html")
    assert text.count('<section id="report-') == 2 and 'href="#report-1"' in text


def verdict(name: str, **more) -> dict:
    row = {
        "policy": name,
        "versus": "teacher",
        "verdict": "undecided",
        "difference": -0.012,
        "low": -0.04,
        "high": 0.016,
        "margin": 0.02,
        "episodes": 100,
        "seeds": 5,
        "episodes_to_decide": 300,
        "sentence": f"{name}: words of its own",
    }
    return row | more


def test_verdicts_are_the_reports_own(written: Path) -> None:
    """All five, with their margin; none is made of the numbers beside it."""
    told = ("better", "as good", "worse", "undecided", "not comparable")
    rows = []
    for index, word in enumerate(told):
        rows.append(verdict(f"r{index}", verdict=word, difference=-index / 100))
    rows.append(verdict("r0", versus="r1", verdict="worse"))
    rows[4] |= {"difference": None, "low": None, "high": None}
    page = change(written, verdicts=rows)
    tables = Tables(page).found
    shown = tables[FOREST]
    assert [row[:2] for row in shown[1:6]] == [
        [f"r{index} 5 seeds", word] for index, word in enumerate(told)
    ]
    assert "dashed: −2 points" in shown[0][2] and shown[4][3] == "−3.0 −4.0 to +1.6"
    assert shown[5][3] == "–"
    assert tables["Other comparisons"][1][:2] == ["r0 against r1 5 seeds", "worse"]
    assert "As good as teacher, within 2 points:" in page and "Worse than teacher:" in page
    assert "<li>r3: words of its own</li>" in page


def test_seeds_of_a_recipe_are_one_verdict_and_one_mean() -> None:
    path = REPRODUCTIONS / "actdistill" / "report.json"
    found = report.read(path)
    page = report.render([found])
    tables = Tables(page).found
    against = {pair["a"]: pair for pair in found["seeds"]["pairs"] if pair["b"] == "teacher"}
    rows = {row[0].removesuffix(" 3 seeds"): row for row in tables[FOREST][1:-1]}
    assert rows.keys() == against.keys() and len(rows) == 6  # of 18 students
    for name, pair in against.items():
        assert rows[name][1] == ("as good" if pair["non_inferior_3pp"] else "not shown")
        assert rows[name][3].startswith(f"{100 * pair['difference']:+.1f}".replace("-", "−"))
    means = {row["name"]: row["success"] for row in found["seeds"]["policies"]}
    for row in tables["Recipes, with the means of their seeds"][1:]:
        assert row[2] == f"{100 * means[row[0]]:.1f} %"
    # 18 faint dots around six means, and the teacher.
    plot = page[page.index("Success against computing time") :]
    plot = plot[: plot.index("</figure>")]
    assert plot.count('class="at faint"') == 18 and plot.count('class="at"') == 7


def test_a_verdict_of_one_seed_is_not_shown_beside_its_recipes(tmp_path) -> None:
    path = REPRODUCTIONS / "actdistill" / "report.json"
    found = report.read(path)
    found["verdicts"] = [verdict("actdistill"), verdict("actdistill-0"), verdict("dense")]
    rows = Tables(report.render([found])).found[FOREST][1:-1]
    assert [row[0] for row in rows] == ["actdistill 5 seeds", "dense 5 seeds"]


def test_what_is_fast_in_a_runtime_is_told_against_the_teacher_in_it() -> None:
    found = report.read(REPRODUCTIONS / "tabletop_runtimes" / "report.json")
    tables = Tables(report.render([found])).found
    assert len(tables[FOREST]) == 1 + 7 + 1  # header, rows, axis
    same = tables["In the same runtime, and other comparisons"]
    assert {row[0] for row in same[1:-1]} == {
        f"tabletop-student {runtime} against teacher {runtime}"
        for runtime in ("onnx", "onnx_int8", "openvino")
    }


def test_an_interval_of_seeds_is_drawn_where_a_report_has_one() -> None:
    found = report.read(REPRODUCTIONS / "actdistill" / "report.json")
    plot = report.render([found]).partition("Success against computing time")[2]
    without = plot[: plot.index("</figure>")].count('class="interval"')
    for row in found["seeds"]["policies"]:
        row["ci95"] = [row["success"] - 0.01, row["success"] + 0.01]
    plot = report.render([found]).partition("Success against computing time")[2]
    assert plot[: plot.index("</figure>")].count('class="interval"') == without + 6


def test_runtimes_are_compared_beside_verdicts_too() -> None:
    """Verdicts are against the first policy; what a student is worth is said in its runtime."""
    found = report.read(REPRODUCTIONS / "tabletop_runtimes" / "report.json")
    found["verdicts"] = [verdict("tabletop-student onnx", seeds=1)]
    tables = Tables(report.render([found])).found
    assert [row[:2] for row in tables[FOREST][1:-1]] == [["tabletop-student onnx", "undecided"]]
    assert len(tables["In the same runtime, and other comparisons"][1:-1]) == 3


def test_what_policies_listen_to_is_a_map_and_a_table(written: Path) -> None:
    rows = []
    for name in ("teacher", "student"):
        for changed, right in (("as is", 100), ("words of another task", 37)):
            share = {"successes": right, "episodes": 100, "low": 0.3, "high": 0.7}
            rows.append({"policy": name, "change": changed, **share})
    rows[1] |= {"difference": -0.63, "difference_low": -0.7, "difference_high": -0.5}
    left = {"policy": "teacher", "of": "state", "change": "state at its mean", "why": "no state"}
    page = change(written, listens=rows, listens_left_out=[left])
    tables = Tables(page).found
    assert tables["Success, %, by what was changed"] == [
        ["policy", "as is", "words of another task"],
        ["teacher", "100", "37"],
        ["student", "100", "37"],
    ]
    told = tables["What a policy listens to"][2]
    assert told[:3] == ["teacher", "words of another task", "37/100"]
    assert told[4] == "−63.0 (−70.0 to −50.0)"
    assert "teacher, state at its mean: not run, no state" in page
    assert "What they listen to" not in change(written, listens=[], listens_left_out=[])


def test_a_cut_students_layers_stand_under_their_teachers_numbers(written: Path) -> None:
    page = report.main((written,)).read_text()
    caption = next(name for name in Tables(page).found if name.startswith("Share of decisions"))
    rows = Tables(page).found[caption]
    assert rows[0] == ["policy", "0", "1", "2"]
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["teacher"] == ["1", "0.50", "0.25"]
    assert by_name["cut"] == ["1", "none", "1"]


def test_a_report_without_films_or_curves_is_shown_too(written: Path) -> None:
    value = json.loads(written.read_text())
    del value["rollouts"], value["training"]
    for row in value["policies"]:
        del row["budget"]
    written.write_text(json.dumps(value))
    page = report.main((written,)).read_text()
    assert "Watch them decide" not in page and "<h3>Training" not in page


def test_a_film_that_is_not_there_is_said(written: Path) -> None:
    (written.parent / "rake-7.mp4").unlink()
    page = report.main((written,)).read_text()
    assert "<code>rake-7.mp4</code> does not lie beside the report" in page
    assert "<video" not in page and 'role="slider"' in page


def test_what_is_no_report_is_named(written: Path, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent/report\.json is missing"):
        report.main((tmp_path / "absent" / "report.json",))
    with pytest.raises(ValueError, match="at least one"):
        report.main(())
    written.write_text(written.read_text()[:100])
    with pytest.raises(ValueError, match=r"report\.json is not JSON"):
        report.main((written,))
    written.write_text("[]")
    with pytest.raises(ValueError, match="lacks policies, pairs, fingerprint"):
        report.main((written,))


def test_by_which_rule_policies_act_late_is_said_and_how_long_they_took(written: Path) -> None:
    value = json.loads(written.read_text())
    seconds = {"successes": 2.25, "restricted": 3.75, "limit": 8.0}
    value["version"] = 2
    value["delayed"] = [
        late_row(name, 2, late="run_on", seconds_to_success=seconds)
        for name in ("teacher", "student")
    ]
    value["delayed_pairs"] = [{**value["pairs"][0], "slower": 20.0, "late": "run_on"}]
    page = change(written, **value)
    tables = Tables(page).found
    assert tables["Acting late; with failures as the limit, every episode counts"][1] == [
        "teacher", "20", "run_on", "110", "2", "61/100", "50.0 % – 70.0 %", "2.25", "3.75",
    ]  # fmt: skip
    [caption] = [name for name in tables if name.startswith("Success, %, so many times slower")]
    assert tables[caption] == [["policy", "20×, run_on"], ["teacher", "61"], ["student", "61"]]
    assert "<li>20× slower, run_on: student − teacher: -1.0 pp" in page
    assert "no longer offered" not in page
    words = figures.table(value)
    assert (
        "| teacher | 20× slower | run_on | 2 | 61/100 = 61.0 % | 50.0–70.0 | 2.25 | 3.75 |" in words
    )
    assert "- 20× slower, run_on: student − teacher: -1.0 pp" in words


def test_every_average_has_its_tasks_beside_it(written: Path) -> None:
    value = json.loads(written.read_text())
    cells = {"successes": 41, "episodes": 43, "ci95": [0.9, 1.0]}
    for row in value["policies"]:
        row["by_task"] = {"rake": cells, "push": {**cells, "successes": 42}}
    words = figures.table(value).splitlines()
    start = words.index("| policy, by task | rake | push |")
    assert words[start + 1] == "|---|---|---|"
    assert words[start + 2 : start + 7] == [
        f"| {row['name']} | 41/43 | 42/43 |" for row in value["policies"]
    ]
    tables = Tables(change(written, policies=value["policies"])).found
    assert tables["By task, on the first split"][:2] == [
        ["policy", "rake", "push"],
        ["teacher", "41/43", "42/43"],
    ]
    assert tables["Success by task, %"][:2] == [["policy", "rake", "push"], ["teacher", "95", "98"]]


def test_speed_is_said_for_a_second_of_motion(written: Path) -> None:
    value = json.loads(written.read_text())
    assert (
        "| teacher | 99/100 = 99.0 % | 94.0–100.0 | 11.5 | 5.50 | 1.00× | 38.5 |"
        in figures.table(value)
    )
    assert "milliseconds of computing per second of motion" in report.main((written,)).read_text()
    del value["policies"][0]["ms_per_second_of_motion"]
    assert "| 5.50 | 1.00× | – |" in figures.table(value)
    # One that does not say it, and all are drawn by what all say.
    page = change(written, policies=value["policies"])
    assert "milliseconds a decision (p50)" in page and "computing per second" not in page


def is_report(path: Path) -> bool:
    """Whether `armlet evaluate` wrote it; audits lie beside reports."""
    found = json.loads(path.read_text())
    return {"policies", "fingerprint"} <= found.keys() and found.get("kind") != "audit"


@pytest.mark.parametrize(
    "path",
    sorted(REPRODUCTIONS.rglob("*.json")),
    ids=lambda path: path.relative_to(REPRODUCTIONS).as_posix(),
)
def test_reports_from_before_are_read_still(path: Path) -> None:
    """Those that stand in the docs, of every version: as a page and as a table."""
    if not is_report(path):
        pytest.skip("no report")
    found = report.read(path)
    assert found["version"] in (1, 2, 3, 4)
    if found["version"] < 4:
        assert (found["plan"], found["verdicts"], found["listens"]) == (None, [], [])
    assert all(row["late"] == "skip" for row in found["delayed"]) or found["version"] > 1
    tables, words = Tables(report.render([found])).found, figures.table(found)
    rows = {row[0]: row for row in tables["Success of every policy"]}
    for policy in found["policies"]:
        name = re.escape(policy["name"])
        outcome = f"{policy['successes']}/{policy['episodes']}"
        assert rows[policy["name"]][1] == outcome
        assert re.search(rf"\| {name} \|( [a-z0-9 ]+ \|)? {outcome} = ", words)


def test_what_a_report_from_before_was_for_is_known_by_its_seeds() -> None:
    """Recipes were chosen on those from 500,000,000 on."""
    found: dict[int, set[str | None]] = {}
    for path in sorted(REPRODUCTIONS.rglob("*.json")):
        if not is_report(path):
            continue
        read = report.read(path)
        if read["version"] < 4:
            begin = read["fingerprint"]["evaluation"]["seed"]
            found.setdefault(begin, set()).add(read["purpose"])
    assert found[500_000_000] == {"tuning"} and found[700_000_000] == {"report"}
    for begin, purposes in found.items():
        assert purposes == {"report" if begin >= 700_000_000 else "tuning"}


def test_a_report_has_one_verdict_a_recipe_and_says_how_often_policies_look(written: Path) -> None:
    value = json.loads(written.read_text())
    value["version"] = 4
    value["verdicts"] = [{"sentence": "first is as good as teacher within 3 points: …."}]
    for row in value["policies"]:
        row["seconds_to_success"] = {"successes": 1.15, "restricted": 1.2, "limit": 8.0}
        row["looks_per_episode"] = 6.25
        row["decisions_per_second"] = 5.1234
    value["seeds"]["policies"][0] |= {"ci95": [0.94, 0.98], "sd": 0.0117}
    words = figures.table(value)
    assert words.count("as good as teacher within 3 points") == 1
    assert "McNemar" not in words.partition("| unseen objects |")[0] and "≥" not in words[:900]
    titles, _, row = words.splitlines()[:3]
    assert titles.startswith(
        "| policy | success | 95 % interval (Clopper–Pearson beyond 5–95 %, else Wilson) | steps "
        "| seconds | looks | looks a second | p50 ms |"
    )
    assert row.startswith(
        "| teacher | 99/100 = 99.0 % | 94.0–100.0 | 11.5 | 1.15 | 6.2 | 5.12 | 5.50 |"
    )
    assert len(row.split("|")) == len(titles.split("|"))
    assert "| first | 3 | 96.1 % | 94.0–98.0 | 1.2 | 95.0, 96.0, 97.3 |" in words


def test_a_report_of_a_later_version_is_refused(written: Path) -> None:
    written.write_text(json.dumps(json.loads(written.read_text()) | {"version": 5}))
    with pytest.raises(ValueError, match=r"version 5, expected one of \(1, 2, 3, 4\)"):
        report.main((written,))


def test_of_many_tasks_a_row_is_a_task() -> None:
    """Fifty columns are no table; the numbers are those of the other way round."""
    tasks = [f"task {number}" for number in range(50)]
    policies = []
    for name, most in (("teacher", 50), ("student", 55)):
        tallies = {task: {"successes": most - at, "episodes": 60} for at, task in enumerate(tasks)}
        policies.append({"name": name, "by_task": tallies})
    lines = figures.group_lines(policies, "by_task", "task")
    assert lines[0] == "| task | teacher | student |"
    assert lines[2] == "| task 0 | 50/60 | 55/60 |"
    assert lines[-1] == "| task 49 | 1/60 | 6/60 |"
    assert len(lines) == 2 + len(tasks)
    for policy in policies:
        policy["by_task"] = {task: policy["by_task"][task] for task in tasks[:2]}
    assert figures.group_lines(policies, "by_task", "task")[2:] == [
        "| teacher | 50/60 | 49/60 |",
        "| student | 55/60 | 54/60 |",
    ]
