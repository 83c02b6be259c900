"""The page in a real browser (`make test-page`): fits a telephone and a desk, in both schemes, for
every report that stands in the docs; its clicks and its keys. And its colours, without one."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from report_page import REPRODUCTIONS, write_report

from armlet import report
from armlet.evaluation import page as page_files

REPORTS = sorted(REPRODUCTIONS.glob("*/report.json"))
SHEET = Path(page_files.__file__).with_name("page.css")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
)
# What a page looks like, as numbers. A canvas turns any way to write a colour into bytes.
LOOK = """() => {
  const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
    .getContext("2d", { willReadFrequently: true });
  const seen = new Map();
  function bytes(colour) {
    if (!seen.has(colour)) {
      pen.clearRect(0, 0, 1, 1);
      pen.fillStyle = colour;
      pen.fillRect(0, 0, 1, 1);
      seen.set(colour, [...pen.getImageData(0, 0, 1, 1).data]);
    }
    return seen.get(colour);
  }
  function light(colour) {
    const [r, g, b] = bytes(colour).slice(0, 3).map((byte) => {
      const part = byte / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }
  function behind(element) {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (bytes(colour)[3] === 255) return colour;
    }
    throw new Error("nothing opaque behind " + element.outerHTML);
  }
  const pale = [];
  const walk = document.createTreeWalker(document.querySelector("body"), NodeFilter.SHOW_TEXT);
  let texts = 0;
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (["SCRIPT", "STYLE", "TITLE", "title"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const drawn = element instanceof SVGElement;
    const a = light(drawn ? style.fill : style.color), b = light(behind(element));
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    texts += 1;
    if (contrast < 4.5) pale.push([walk.currentNode.data.trim(), contrast]);
  }
  const colours = new Set();
  for (const shape of document.querySelectorAll("svg use, svg path, svg circle, svg rect, svg line")) {
    if (shape.closest("defs") || !shape.checkVisibility()) continue;
    const style = getComputedStyle(shape);
    for (const colour of [style.fill, style.stroke]) {
      if (colour !== "none") colours.add(bytes(colour).slice(0, 3).join());
    }
  }
  // Where zero is in every row of a forest, and the tick that says so: one axis.
  const crooked = [];
  for (const forest of document.querySelectorAll(".forest")) {
    const middle = (each) => { const box = each.getBoundingClientRect(); return (box.left + box.right) / 2; };
    const tick = [...forest.querySelectorAll(".ticks text")].find((each) => each.textContent === "0");
    const zeros = [...forest.querySelectorAll(".zero"), ...(tick ? [tick] : [])].map(middle);
    if (Math.max(...zeros) - Math.min(...zeros) > 1) crooked.push(zeros);
  }
  const unnamed = [...document.querySelectorAll("svg[role=img], video, [role=slider], [role=region]")]
    .filter((each) => !each.getAttribute("aria-label"));
  const levels = [...document.querySelectorAll("h1, h2, h3, h4")].map((each) => +each.tagName[1]);
  return {
    crooked, wide: document.documentElement.scrollWidth, pale, texts, colours: [...colours],
    unnamed: unnamed.map((each) => each.outerHTML.slice(0, 100)),
    jumps: levels.filter((level, i) => i && level > levels[i - 1] + 1),
    unlabelled: [...document.querySelectorAll("select")].filter((each) => !each.labels.length).length,
  };
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Chromium, without a network."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path="/usr/bin/chromium", args=list(QUIET))
        yield started
        started.close()


def shown(browser, path: Path, width: int, scheme: str, errors: list[str]):
    """A page that is open; what its console complains of goes to `errors`."""
    context = browser.new_context(
        offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    found = context.new_page()
    found.on(
        "console",
        lambda message: errors.append(message.text) if message.type == "error" else None,
    )
    found.on("pageerror", lambda error: errors.append(str(error)))
    found.on("request", lambda asked: errors.append(asked.url) if asked.url[:4] == "http" else None)
    found.goto(path.as_uri())
    return found


@pytest.fixture
def page(browser, tmp_path: Path) -> Iterator:
    """The page of a report with everything; any error on its console fails the test."""
    errors: list[str] = []
    opened = shown(browser, report.main((write_report(tmp_path),)), 1100, "light", errors)
    yield opened
    assert not errors
    opened.context.close()


def check(browser, path: Path) -> None:
    """A page at both widths and in both schemes, first as it opens, then with everything open."""
    errors: list[str] = []
    for width, scheme in itertools.product((390, 1280), ("light", "dark")):
        opened = shown(browser, path, width, scheme, errors)
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        # What is read first is on the first screen: every verdict, and most of the picture.
        # A teacher alone is compared with nobody, and has no forest.
        first = "document.querySelector('.forest, .plot').getBoundingClientRect().top"
        assert opened.evaluate(first) < 450
        opened.evaluate("document.querySelectorAll('details').forEach((each) => each.open = true)")
        opened.evaluate(
            "document.querySelectorAll('[hidden]').forEach((each) => each.hidden = false)"
        )
        look = opened.evaluate(LOOK)
        assert look["wide"] <= width, scheme
        assert not look["crooked"], (width, look["crooked"])
        assert look["texts"] > 50 and not look["pale"], (scheme, look["pale"][:5])
        assert not look["unnamed"] and not look["jumps"] and not look["unlabelled"]
        coloured = set()
        for colour in look["colours"]:
            parts = [int(part) for part in colour.split(",")]
            if max(parts) - min(parts) > 40:  # else it is a grey: an axis, a line, the teacher
                coloured.add(colour)
        assert 1 <= len(coloured) <= 8, coloured
        # And those that the sheet names, whose distances are tested below.
        named = {",".join(str(part) for part in _bytes(code)) for code in _sheet(scheme).values()}
        assert coloured <= named
        opened.context.close()
    assert not errors


@pytest.mark.page
@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.parent.name)
def test_every_report_fits_and_can_be_read(browser, path: Path, tmp_path: Path) -> None:
    check(browser, report.main((path,), out=tmp_path / "page.html"))


@pytest.mark.page
def test_so_does_one_with_everything_and_many_on_a_page(browser, tmp_path: Path) -> None:
    written = write_report(tmp_path)
    check(browser, report.main((written,), out=tmp_path / "page.html"))
    check(browser, report.main((written, *REPORTS[:2]), out=tmp_path / "pages.html"))


@pytest.mark.page
def test_the_map_and_the_film_move_together(page) -> None:
    chart = page.get_by_role("slider")
    page.wait_for_function("document.querySelector('video').readyState >= 2")
    chart.focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(80)
    page.wait_for_function("document.querySelector('.map').ariaValueNow === '6'")
    assert chart.get_attribute("aria-valuetext") == "step 6 of 20"
    assert page.evaluate("document.querySelector('video').currentTime") == pytest.approx(
        0.6, abs=0.02
    )
    box = page.locator(".cursor").first.bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2)
    page.wait_for_function("document.querySelector('video').currentTime > 1.7")
    page.wait_for_function("document.querySelector('.map').ariaValueNow === '18'")
    left = page.locator(".cursor i").first.bounding_box()["x"]
    assert left == pytest.approx(box["x"] + 0.9 * box["width"], abs=3)


@pytest.mark.page
def test_a_map_without_its_film_moves_too(browser, tmp_path: Path) -> None:
    written = write_report(tmp_path)
    (tmp_path / "rake-7.mp4").unlink()
    errors: list[str] = []
    opened = shown(browser, report.main((written,)), 1100, "light", errors)
    opened.get_by_role("slider").focus()
    opened.keyboard.press("End")
    opened.keyboard.press("ArrowLeft")
    assert opened.get_by_role("slider").get_attribute("aria-valuenow") == "19"
    opened.keyboard.press(" ")
    assert not errors
    opened.context.close()


@pytest.mark.page
def test_the_choosers_and_the_schemes_change_what_is_shown(page) -> None:
    assert page.evaluate("window.broken") is None
    films = page.locator(".film")
    assert films.nth(0).is_visible() and not films.nth(1).is_visible()
    page.get_by_role("combobox", name="Episode").select_option("push, seed 7")
    assert films.nth(1).is_visible() and not films.nth(0).is_visible()
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="light / dark").click()
    after = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (before, after) == ("rgb(255, 255, 255)", "rgb(20, 23, 27)")


# --- colours


def _sheet(scheme: str) -> dict[str, str]:
    """The names of the style sheet's colours, and what they are in a scheme."""
    found = {}
    for name, code in re.findall(r"--(\w+): (light-dark\(.*?\)|#\w+);", SHEET.read_text()):
        codes = re.findall(r"#\w{6}", code)
        found[name] = codes[-1] if scheme == "dark" else codes[0]
    return found


def _bytes(code: str) -> list[int]:
    return [int(code[at : at + 2], 16) for at in (1, 3, 5)]


# Machado, Oliveira and Fernandes (2009), severity 1: linear RGB as they see it who lack one cone.
BLIND = {
    "nobody": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}  # fmt: skip


def lab(code: str, eyes: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of an sRGB colour as somebody sees it."""
    share = np.array(_bytes(code)) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    seen = np.clip(eyes @ linear, 0, 1)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    x, y, z = to_xyz @ seen / np.array([0.9505, 1.0, 1.089])
    fx, fy, fz = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("who", BLIND)
@pytest.mark.parametrize(
    "together",
    [
        ("blue", "green", "orange", "vermillion", "grey", "ink"),  # marks of policies
        ("ink", "blue", "orange", "green", "vermillion", "purple"),  # curves
    ],
)
def test_colours_that_stand_together_are_told_apart_by_everybody(scheme, who, together) -> None:
    """ΔE of two colours is about 2 where they can just be told apart side by side."""
    codes = _sheet(scheme)
    for a, b in itertools.combinations(together, 2):
        apart = np.linalg.norm(lab(codes[a], BLIND[who]) - lab(codes[b], BLIND[who]))
        assert apart > 15, (a, b)
