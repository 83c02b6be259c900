"""The page: every number from its report, nothing from the network; and, in a real browser (`make
test-page`), its clicks."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from armlet import report
from armlet.data.video import write_video
from armlet.evaluation import figures

REPRODUCTIONS = Path(__file__).parents[1] / "docs" / "reproductions"
EVIL = "</script><script>window.broken = 1</script>"


def policy(name: str, successes: int, milliseconds: float, budget: float | None = None) -> dict:
    share = {
        "successes": successes,
        "episodes": 100,
        "ci95": [successes / 100 - 0.05, min(1, successes / 100 + 0.03)],
    }
    times = {"p50": milliseconds, "p95": 2 * milliseconds, "p99": 3 * milliseconds}
    return {
        "name": name,
        **share,
        "mean_steps": 11.5,
        "latency_ms": {"policy": times, "threads": 1, "device": "cpu"},
        "ms_per_second_of_motion": 7 * milliseconds,
        "flops": {"total": 2e8, "backbone": milliseconds * 1e7},
        "params": {"total": 1_234_567, "backbone": 1_000_000},
        "keep_ratio": 0.375,
        "policy": name,
        "runtime": "eager",
        "precision": "fp32",
        "exported_from": None,
        "budget": budget,
        "routing": {
            "activation": [1.0, 0.5, 0.25],
            "patterns": 3,
            "commonest_pattern": "110",
            "commonest_share": 0.6,
        },
        "peak_memory_mb": 321.0,
        "by_family": {"tool": share},
        "by_task": {"rake": share},
        "by_split": {"seen": share, "unseen_objects": share},
    }


@pytest.fixture
def written(tmp_path) -> Path:
    """A report with a film of 21 frames, beside it."""
    frames = np.zeros((21, 64, 128, 3), np.uint8)
    frames[np.arange(21), :, np.arange(21) * 6] = 255
    write_video(tmp_path / "rake-7.mp4", frames, fps=10)
    policies = [
        policy("teacher", 99, 5.5),
        policy("student", 98, 2.5),
        policy("dial at 0.5", 97, 3.0, 0.5),
        policy("dial at 0.25", 90, 2.0, 0.25),
        policy("cut", 89, 2.0),
    ]
    policies[-1]["gripper_toggles"] = {"per_episode": 1.87, "per_100_steps": 9.5}
    policies[-1]["routing"] |= {"activation": [1.0, 1.0], "layers": [0, 2]}
    seen = [
        {"name": name, "execute": 2, "success": True, "steps": 20, "gates": [gates] * 10}
        for name, gates in (("teacher", "111"), ("student", "101"), ("cut", "11"))
    ]
    pair = {
        "a": "student",
        "b": "teacher",
        "difference": -0.01,
        "ci95": [-0.028, 0.01],
        "mcnemar_p": 1.0,
        "non_inferior_3pp": True,
        "n": 100,
    }
    film = {"task": "rake", "seed": 7, "video": "rake-7.mp4", "fps": 10, "policies": seen}
    curve = {
        "step": [50, 100],
        "loss": [2.0, 1.0],
        "budget": [0.5, 0.1],
        "seconds": [1, 1],
        "learning_rate": [1, 1],
        "grad_norm": [1, 1],
    }
    value = {
        "policies": policies,
        "pairs": [pair],
        "pairs_by_split": {
            "unseen_objects": [{**pair, "difference": -0.04, "non_inferior_3pp": False}]
        },
        "seeds": {
            "policies": [
                {"name": "first", "seeds": 3, "success": 0.961, "each": [0.95, 0.96, 0.973]}
            ],
            "pairs": [
                {
                    "a": "first",
                    "b": "other",
                    "difference": 0.02,
                    "ci95": [0.01, 0.03],
                    "non_inferior_3pp": True,
                    "n": 100,
                }
            ],
        },
        "rollouts": [film, {**film, "task": "push"}],
        "training": {"student": [curve, {**curve, "loss": [0.5, 0.4]}]},
        "fingerprint": {
            "benchmark": {"benchmark": "tabletop"},
            "recipe": {"name": "mine"},
            "note": EVIL,
        },
    }
    path = tmp_path / "report.json"
    path.write_text(json.dumps(value))
    return path


def test_the_page_is_whole_and_asks_nothing_of_a_network(written: Path, tmp_path) -> None:
    page = report.main((written,), out=tmp_path / "page.html").read_text()
    own = re.sub(
        r"<script>.*?</script>", "", page, flags=re.S
    )  # plotly's own code names places that it does not visit
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", own)
    for shown in (
        "99/100",
        "2.50",
        "1.23 M",
        "unseen_objects",
        "321",
        "student ≥ teacher − 3 pp: shown (n = 100)",
        "<h4>unseen objects</h4>",
        "student − teacher: -4.0 pp",
        "97.3 %",
        "1.87",
    ):
        assert shown in page
    assert "first − other: +2.0 pp (95 % interval of students and episodes +1.0 to +3.0)" in page
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert data is not None
    restored = json.loads(data.group(1))
    assert restored[0]["fingerprint"]["note"] == EVIL and restored[0]["rollouts"][0][
        "source"
    ].startswith("data:video/mp4;base64,")
    assert EVIL not in own


def test_many_reports_make_one_page_and_a_folder_is_enough(written: Path) -> None:
    page = report.main((written.parent, written))
    assert (
        page == written.with_name("report.html")
        and page.read_text().count('<section id="report-') == 2
    )


def test_a_cut_students_layers_stand_under_their_teachers_numbers(written: Path) -> None:
    page = report.main((written,)).read_text()
    table = page[page.index("<h3>What runs</h3>") :]
    rows = [
        re.findall(r"<td>(.*?)</td>", row)
        for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    ]
    assert re.findall(r"<th>(.*?)</th>", table)[:5] == ["policy", "0", "1", "2", "routes"]
    assert [row[:4] for row in rows if row[:1] == ["teacher"]] == [
        ["teacher", "1.00", "0.50", "0.25"]
    ]
    assert [row[:4] for row in rows if row[:1] == ["cut"]] == [["cut", "1.00", "", "1.00"]]


def test_a_report_without_films_or_curves_is_shown_too(written: Path) -> None:
    value = json.loads(written.read_text())
    del value["rollouts"], value["training"]
    for row in value["policies"]:
        del row["budget"]
    written.write_text(json.dumps(value))
    assert "Watch it decide" not in report.main((written,)).read_text()


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


def late_row(name: str, lag: int, **more) -> dict:
    return {
        "name": name,
        "slower": 20.0,
        "delay_ms": 110.0,
        "lag_steps": lag,
        "successes": 61,
        "episodes": 100,
        "ci95": [0.5, 0.7],
        **more,
    }


def test_by_which_rule_policies_act_late_is_said_and_how_long_they_took(written: Path) -> None:
    value = json.loads(written.read_text())
    seconds = {"successes": 2.25, "restricted": 3.75, "limit": 8.0}
    value["version"] = 2
    value["delayed"] = [
        late_row(name, 2, late="run_on", seconds_to_success=seconds)
        for name in ("teacher", "student")
    ]
    value["delayed_pairs"] = [{**value["pairs"][0], "slower": 20.0, "late": "run_on"}]
    written.write_text(json.dumps(value))
    page = report.main((written,)).read_text()
    table = page[page.index("<h3>On slower computers") : page.index("<h3>Pairs</h3>")]
    rows = [
        re.findall(r"<td>(.*?)</td>", row)
        for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    ]
    assert rows[1] == [
        "teacher",
        "20",
        "run_on",
        "110",
        "2",
        "61/100",
        "50.0 % – 70.0 %",
        "2.25",
        "3.75",
    ]
    assert (
        "<li>20× slower, run_on: student − teacher: -1.0 pp" in table
        and "no longer offered" not in table
    )
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
    written.write_text(json.dumps(value))
    words = figures.table(value).splitlines()
    start = words.index("| policy, by task | rake | push |")
    assert words[start + 1] == "|---|---|---|"
    assert words[start + 2 : start + 7] == [
        f"| {row['name']} | 41/43 | 42/43 |" for row in value["policies"]
    ]
    page = report.main((written,)).read_text()
    table = page[page.index("By task, on the first split") :]
    assert re.findall(r"<th>(.*?)</th>", table)[:3] == ["policy", "rake", "push"]
    assert re.findall(r"<td.*?>(.*?)</td>", table)[:3] == ["teacher", "41/43", "42/43"]


def test_speed_is_said_for_a_second_of_motion(written: Path) -> None:
    value = json.loads(written.read_text())
    assert (
        "| teacher | 99/100 = 99.0 % | 94.0–100.0 | 11.5 | 5.50 | 1.00× | 38.5 |"
        in figures.table(value)
    )
    del value["policies"][0]["ms_per_second_of_motion"]
    assert "| 5.50 | 1.00× | – |" in figures.table(value)


@pytest.mark.parametrize(
    "path",
    sorted(REPRODUCTIONS.rglob("*.json")),
    ids=lambda path: path.relative_to(REPRODUCTIONS).as_posix(),
)
def test_reports_from_before_are_read_still(path: Path) -> None:
    """Those that stand in the docs, of every version: as a page and as a table."""
    if not {"policies", "fingerprint"} <= json.loads(path.read_text()).keys():
        pytest.skip("no report")
    found = report.read(path)
    assert found["version"] in (1, 2, 3, 4)
    if found["version"] < 4:
        assert (found["plan"], found["verdicts"], found["listens"]) == (None, [], [])
    assert all(row["late"] == "skip" for row in found["delayed"]) or found["version"] > 1
    page, words = report.render([found]), figures.table(found)
    for policy in found["policies"]:
        name = re.escape(policy["name"])
        outcome = f"{policy['successes']}/{policy['episodes']}"
        assert re.search(f"<td>{name}</td>(<td>[a-z0-9 ]+</td>)?<td>{outcome}</td>", page)
        assert re.search(rf"\| {name} \|( [a-z0-9 ]+ \|)? {outcome} = ", words)


def test_what_a_report_from_before_was_for_is_known_by_its_seeds() -> None:
    """Recipes were chosen on those from 500,000,000 on."""
    found: dict[int, set[str | None]] = {}
    for path in sorted(REPRODUCTIONS.rglob("*.json")):
        if not {"policies", "fingerprint"} <= json.loads(path.read_text()).keys():
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


# --- in a browser
# -------------------------------------------------------------------------------------------


@pytest.fixture
def page(written: Path) -> Iterator:
    """The page in Chromium, offline; any error on its console fails the test."""
    playwright = pytest.importorskip("playwright.sync_api")
    path, errors = report.main((written,)), []
    with playwright.sync_playwright() as driver:
        quiet = [
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-sync",
        ]
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=quiet)
        context = browser.new_context(offline=True, viewport={"width": 1100, "height": 900})
        shown = context.new_page()
        shown.on(
            "console",
            lambda message: errors.append(message.text) if message.type == "error" else None,
        )
        shown.on("pageerror", lambda error: errors.append(str(error)))
        shown.goto(path.as_uri())
        yield shown
        assert not errors
        browser.close()


@pytest.mark.page
def test_the_charts_are_drawn_and_nothing_is_wider_than_a_telephone(page) -> None:
    assert page.locator(".main-svg").count() >= 4
    assert page.evaluate("window.broken") is None
    page.set_viewport_size({"width": 375, "height": 700})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


@pytest.mark.page
def test_the_map_and_the_film_move_together(page) -> None:
    chart = page.locator('[data-chart="routing"]')
    page.wait_for_function("document.querySelector('video').readyState >= 2")
    chart.focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(80)
    page.wait_for_function("document.querySelector('[data-chart=routing]').dataset.step === '6'")
    assert page.evaluate("document.querySelector('video').currentTime") == pytest.approx(
        0.6, abs=0.02
    )
    box = chart.locator(".nsewdrag").first.bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2)
    page.wait_for_function("document.querySelector('video').currentTime > 1.4")


@pytest.mark.page
def test_the_map_leaves_blank_what_was_cut_away(page) -> None:
    first = page.evaluate(
        "charts.routing(reports[0], 0)[0].map((trace) => trace.z.map((layer) => layer[0]))"
    )
    assert first == [[1, 1, 1], [1, 0, 1], [1, None, 1]]


@pytest.mark.page
def test_buttons_change_what_is_shown(page) -> None:
    page.get_by_role("button", name="push, seed 7").click()
    assert page.get_by_role("button", name="push, seed 7").get_attribute("aria-pressed") == "true"
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="switch between light and dark").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
