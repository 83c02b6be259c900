"""The numbers in README and docs, held to the reports that they come from.

    make numbers             # prints what differs, and exits with 1 if anything does
    make numbers WRITE=1     # puts every number and table right

Four things are compared: every report under docs/ with its own counts and outcomes (`armlet
recompute`); every page `table.md` beside a report with that report; every table between `<!--
table: … -->` and `<!-- /table -->` and section likewise; and every number that a comment behind it
names:

    <!-- report: vla_ad/report.json -->                                      the report that the
    comments below are about
    … succeeds in 97.6 %<!-- rate vla_ad_tabletop -->, its teacher …         one number before the
    comment
    … (+5.7, +3.7 to +7.8)<!-- minus vla_ad_action_kd − vla_ad_bc -->        the three numbers
    before it
    … 77.0 %<!-- rate aed_tabletop in unseen_scenes @ aed/generalisation.json -->     another split,
    another report
    … 334×<!-- json times_faster_than_files @ store.json -->                 a field of any JSON
    file

The words in `NUMBERS` below are all there are. A number is right if it is what the report says,
rounded to the digits that are printed. Paths are relative to the page, as in links. A table is
written so, one line of columns and one a row; `{label}` and `{1}` stand for what its row says, and
a column is a word of `CELLS`, with the policy it is about where that is not the row's, and its
heading:

    <!-- table: aed/report.json
    policy | {1}: terms | rated: seen | minus teacher: against its teacher
    aed_tabletop = `aed_tabletop` | all
    aed_bc @ aed/other.json | none
    -->

A section of a report, as it is (`SECTIONS` below), for some of its policies or all:

    <!-- section: splits actdistill/generalisation.json | teacher, actdistill-0 -->
    <!-- /section -->

A paragraph with numbers of another origin says which: `<!-- source: arXiv 2511.18082 -->`, `<!--
source: tests/test_x.py -->`, `<!-- source: setting -->`. Numbers that look like results and have
neither are reported. `<!-- run -->` and `<!-- not run: why -->` before a block of code are for
tests/test_documents.py. Knows the documents and their reports; what a report's numbers mean is in
docs/report-format.md.
"""

import argparse
import functools
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from armlet import recompute, report
from armlet.evaluation import figures, listens, speeds
from armlet.evaluation import report as evaluation_report

ROOT = Path(__file__).parent.parent
Report = dict[str, Any]

TABLE = re.compile(r"<!-- table:(?P<spec>.*?)-->\n(?P<body>.*?)<!-- /table -->", re.DOTALL)
SECTION = re.compile(r"<!-- section: (?P<spec>.*?) -->\n(?P<body>.*?)<!-- /section -->", re.DOTALL)
COMMENT = re.compile(r"<!--\s*(?P<word>[a-z-]+):?\s+(?P<rest>.*?)\s*-->", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.,])[+−-]?\d[\d,]*(?:\.\d+)?")
LOOKS_LIKE_A_RESULT = re.compile(
    r"(?<![\w.])[+−]?\d[\d,.]*\d?(?= ?%| ?×| ms\b| points?\b| of \d)|(?<![\w.])\d+/\d+(?!\w)|(?<![\w.])[+−]\d+\.\d+|\bp [=<] 0\.\d+"
)
NOT_A_RESULT = re.compile(r"95 % intervals?|to 3 points")
NOT_PROSE = re.compile(r"```.*?```|`[^`\n]*`|\]\([^)\n]*\)|https?://\S+", re.DOTALL)
BLOCK = re.compile(r"\n[ \t]*\n|\n(?=[ \t]*- )")


class NotThereError(ValueError):
    """A comment or a table that asks for what is not there."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as the reports say."""

    file: str
    line: int
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: found {self.found}, expected {self.expected}"


@dataclass(frozen=True)
class Asked:
    """What a comment asks: a policy, or two, of a report, in one of its splits (None: its first);
    `more` is what follows a slash."""

    file: Path
    policy: str
    against: str = ""
    more: str = ""
    split: str | None = None

    @property
    def report(self) -> Report:
        return load(self.file)


@functools.cache
def load(file: Path) -> Report:
    """A JSON file."""
    if not file.is_file():
        raise NotThereError(f"a JSON file at {file}, which is missing")
    return json.loads(file.read_text())


@functools.cache
def whole(file: Path) -> Report:
    """A report with all that `armlet report` makes of it."""
    return report.read(file)


def parse(rest: str, folder: Path, default: Path | None) -> Asked:
    """`POLICY [− POLICY] [/ MORE] [in SPLIT] [@ FILE]`."""
    rest, _, file = rest.partition(" @ ")
    rest, _, split = rest.partition(" in ")
    rest, _, more = rest.partition(" / ")
    policy, _, against = rest.partition(" − ")
    if not file and default is None:
        raise NotThereError(
            "the name of a report: `@ FILE` in the comment, or `<!-- report: FILE -->` above"
        )
    path = folder / file.strip() if file else default
    assert path is not None
    return Asked(path, policy.strip(), against.strip(), more.strip(), split.strip() or None)


# --- what a report says
# -------------------------------------------------------------------------------------


def row(asked: Asked, name: str | None = None) -> Report:
    """A policy's row."""
    name = asked.policy if name is None else name
    for policy in asked.report["policies"]:
        if policy["name"] == name:
            return policy
    raise NotThereError(
        f"a policy {name!r} in {asked.file.name}; there are {', '.join(p['name'] for p in asked.report['policies'])}"
    )


def tally(asked: Asked, name: str | None = None) -> Report:
    """A policy's successes and episodes in the split."""
    own = row(asked, name)
    if asked.split is None:
        return own
    if asked.split not in own["by_split"]:
        raise NotThereError(
            f"a split {asked.split!r} in {asked.file.name}; there are {', '.join(own['by_split'])}"
        )
    return own["by_split"][asked.split]


def pair(asked: Asked, policy: str | None = None, against: str | None = None) -> Report:
    """The comparison of two policies in the split, turned round where the report has it the other
    way."""
    a, b = policy or asked.policy, against or asked.against
    pairs = asked.report["pairs"]
    if asked.split is not None and asked.split != next(
        iter(asked.report["policies"][0]["by_split"])
    ):
        pairs = asked.report.get("pairs_by_split", {}).get(asked.split, [])
    return turned(pairs, a, b, asked.file)


def turned(pairs: list[Report], a: str, b: str, file: Path) -> Report:
    """The pair of these names, turned round where it is there the other way."""
    for found in pairs:
        if (found["a"], found["b"]) == (a, b):
            return found
        if (found["a"], found["b"]) == (b, a):
            low, high = found["ci95"]
            other = {"a": a, "b": b, "difference": -found["difference"], "ci95": [-high, -low]}
            if "seconds" in found:  # of two that act late
                early, late = found["seconds"]["ci95"]
                seconds = -found["seconds"]["difference"]
                other["seconds"] = {"difference": seconds, "ci95": [-late, -early]}
            return {**found, **other, "non_inferior_3pp": -high > -recompute.stats.MARGIN}
    raise NotThereError(f"a comparison {a} − {b} in {file.name}, which has none in that split")


def over_seeds(asked: Asked) -> Report:
    """Students of several seeds taken together."""
    for group in (asked.report.get("seeds") or {"policies": []})["policies"]:
        if group["name"] == asked.policy:
            return group
    raise NotThereError(f"students of several seeds named {asked.policy!r} in {asked.file.name}")


def seed_pair(asked: Asked) -> Report:
    """A comparison over seeds; only where outcomes are stored, from which its interval can be
    computed again."""
    if "outcomes" not in asked.report:
        raise NotThereError(
            f"no interval over seeds from {asked.file.name}: outcomes of single episodes were not kept, so it cannot be recomputed"
        )
    return turned(asked.report["seeds"]["pairs"], asked.policy, asked.against, asked.file)


def acting_late(asked: Asked) -> Report:
    """A policy on a slower computer (`/ 50 wait`: fifty times slower, by that rule)."""
    for found in asked.report["delayed"]:
        if found["name"] == asked.policy and _late(found) == asked.more:
            return found
    raise NotThereError(f"{asked.policy!r} acting late by {asked.more!r} in {asked.file.name}")


def late_pair(asked: Asked) -> Report:
    """Two policies acting late by the same rule on the same computer."""
    pairs = [found for found in asked.report["delayed_pairs"] if _late(found) == asked.more]
    return turned(pairs, asked.policy, asked.against, asked.file)


def late_seconds(asked: Asked) -> list[float]:
    """By how many seconds a policy that acts late is behind another (before it: less than 0), failures as
    the limit, and the interval."""
    found = late_pair(asked)
    if "seconds" not in found:
        raise NotThereError(f"seconds between policies that act late in {asked.file.name}")
    return [found["seconds"]["difference"], *found["seconds"]["ci95"]]


def _late(found: Report) -> str:
    return f"{found['slower']:g} {found['late']}"


def rate(counts: Report) -> float:
    return 100 * counts["successes"] / counts["episodes"]


def interval(counts: Report) -> list[float]:
    return [100 * bound for bound in counts["ci95"]]


def difference(found: Report) -> list[float]:
    return [100 * found["difference"], *interval(found)]


def p50(policy: Report) -> float:
    return policy["latency_ms"]["policy"]["p50"]


def speed(asked: Asked) -> float:
    """Against the report's first policy."""
    return p50(asked.report["policies"][0]) / p50(row(asked))


def times(asked: Asked, against: str) -> float:
    """How much faster than the teacher: `teacher`, in eager; `teacher_in_runtime`; `motion` and
    `motion_in_runtime`, of a second in which the arm moves."""
    rows = whole(asked.file)["policies"]
    [own] = [each for each in rows if each["name"] == row(asked)["name"]]
    found = speeds.speed(own, rows)[against]
    if found is None:
        raise NotThereError(
            f"a speed of {asked.policy!r} in {asked.file.name}, whose teacher was not run in "
            f"{speeds.runtime_of(own)}, or which never moved"
        )
    return found


def runtime(asked: Asked) -> str:
    """In which runtime a row was run: `eager`, `onnx int8`."""
    rows = whole(asked.file)["policies"]
    [own] = [each for each in rows if each["name"] == row(asked)["name"]]
    return speeds.runtime_of(own)


def backbone(asked: Asked) -> float:
    """Its share of the first policy's operations in the backbone, %."""
    return 100 * row(asked)["flops"]["backbone"] / asked.report["policies"][0]["flops"]["backbone"]


def without(asked: Asked) -> Report:
    """Successes of all tasks but one (`/ TASK`)."""
    own, left = row(asked), row(asked)["by_task"]
    if asked.more not in left:
        raise NotThereError(
            f"a task {asked.more!r} in {asked.file.name}; there are {', '.join(left)}"
        )
    return {count: own[count] - left[asked.more][count] for count in ("successes", "episodes")}


def task(asked: Asked) -> Report:
    """Successes of one task (`/ TASK`)."""
    tallies = row(asked)["by_task"]
    if asked.more not in tallies:
        raise NotThereError(
            f"a task {asked.more!r} in {asked.file.name}; there are {', '.join(tallies)}"
        )
    return tallies[asked.more]


def heard(asked: Asked) -> Report:
    """A policy with one input changed (`/ CHANGE`), of a report or an audit.json."""
    # There are no splits here, and a change may have that word in it: words in another order.
    change = asked.more if asked.split is None else f"{asked.more} in {asked.split}"
    for found in asked.report["listens"]:
        if (found["policy"], found["change"]) == (asked.policy, change):
            return found
    raise NotThereError(f"{asked.policy!r} with {change!r} in {asked.file.name}")


def fall(asked: Asked) -> float:
    """How much more often it succeeds in the split (`in SPLIT`) than in the one after the slash."""
    return rate(tally(asked)) - rate(tally(replace(asked, split=asked.more)))


def entry(asked: Asked) -> float:
    """A field of any JSON file, named by its keys with dots between; a key may be the number in a
    list, and may have dots itself."""
    value: Any = asked.report
    rest = asked.policy
    while rest:
        keys = (
            value
            if isinstance(value, dict)
            else {str(index): item for index, item in enumerate(value)}
        )
        fitting = [key for key in keys if rest == key or rest.startswith(f"{key}.")]
        if not fitting:
            raise NotThereError(
                f"a field {asked.policy!r} in {asked.file.name}, which has no {rest!r}"
            )
        key = max(fitting, key=len)
        value, rest = keys[key], rest[len(key) + 1 :]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NotThereError(
            f"a number at {asked.policy!r} in {asked.file.name}, found {type(value).__name__}"
        )
    return float(value)


def size(asked: Asked, name: str | None = None) -> float:
    return row(asked, name)["params"]["total"]


NUMBERS: dict[str, Callable[[Asked], list[float]]] = {
    "rate": lambda asked: [rate(tally(asked))],
    "count": lambda asked: [tally(asked)["successes"], tally(asked)["episodes"]],
    "interval": lambda asked: interval(tally(asked)),
    "rated": lambda asked: [rate(tally(asked)), *interval(tally(asked))],
    "minus": lambda asked: difference(pair(asked)),
    "test": lambda asked: [*difference(pair(asked)), pair(asked)["mcnemar_p"]],
    "p": lambda asked: [pair(asked)["mcnemar_p"]],
    "apart": lambda asked: [rate(tally(asked)) - rate(tally(asked, asked.against))],
    "fall": lambda asked: [fall(asked)],
    "heard": lambda asked: [rate(heard(asked))],
    "heard-count": lambda asked: [heard(asked)["successes"], heard(asked)["episodes"]],
    "task": lambda asked: [rate(task(asked))],
    "task-count": lambda asked: [task(asked)["successes"], task(asked)["episodes"]],
    "except-task": lambda asked: [rate(without(asked))],
    "episodes-except-task": lambda asked: [without(asked)["episodes"]],
    "seeds": lambda asked: [100 * over_seeds(asked)["success"]],
    "each-seed": lambda asked: [100 * each for each in over_seeds(asked)["each"]],
    "seeds-apart": lambda asked: [
        100
        * (
            over_seeds(asked)["success"]
            - over_seeds(replace(asked, policy=asked.against))["success"]
        )
    ],
    "seeds-minus": lambda asked: difference(seed_pair(asked)),
    "late": lambda asked: [rate(acting_late(asked))],
    "late-minus": lambda asked: difference(late_pair(asked)),
    "late-seconds": lambda asked: [acting_late(asked)["seconds_to_success"]["restricted"]],
    "late-seconds-minus": late_seconds,
    "late-steps": lambda asked: [acting_late(asked)["lag_steps"]],
    "steps": lambda asked: [row(asked)["mean_steps"]],
    "toggles": lambda asked: [row(asked)["gripper_toggles"]["per_100_steps"]],
    "ms": lambda asked: [p50(row(asked))],
    "motion": lambda asked: [row(asked)["ms_per_second_of_motion"]],
    "speed": lambda asked: [speed(asked)],
    "speed-in-runtime": lambda asked: [times(asked, "teacher_in_runtime")],
    "motion-speed": lambda asked: [times(asked, "motion")],
    "motion-in-runtime": lambda asked: [times(asked, "motion_in_runtime")],
    "flops": lambda asked: [backbone(asked)],
    "parameters": lambda asked: [size(asked)],
    "size": lambda asked: [100 * size(asked) / size(asked, asked.against)],
    "times-smaller": lambda asked: [size(asked, asked.against) / size(asked)],
    "json": lambda asked: [entry(asked)],
    "percent": lambda asked: [100 * entry(asked)],
}
"""The numbers that each word of a comment stands for, as they are printed: rates and differences in %, or points."""
VERDICTS: dict[str, Callable[[Asked], Report]] = {
    "verdict": pair,
    "seeds-verdict": seed_pair,
    "late-verdict": late_pair,
}
"""Words whose comment stands behind `shown` or `not shown`: whether the first is as good as the second to 3 points."""
READ_ELSEWHERE = ("table", "section", "run", "not")
"""Words of comments that no number stands before: `run` and `not run` tell tests/test_documents.py of a block."""


# --- numbers in prose
# ---------------------------------------------------------------------------------------


def printed(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


def digits(text: str) -> int:
    return len(text.partition(".")[2])


def agrees(text: str, value: float) -> bool:
    """Whether a printed number is the value, rounded to the digits that it has."""
    return abs(printed(text) - value) <= 0.5 * 10.0 ** -digits(text) + 1e-9


def like(text: str, value: float) -> str:
    """The value as the printed number has it: as many digits, a sign where there was one,
    commas."""
    signed = "+" if text[0] in "+−-" else ""
    commas = "," if "," in text else ""
    return f"{value:{signed}{commas}.{digits(text)}f}".replace("-", "−")


def verdict(found: Report) -> str:
    return "shown" if found["non_inferior_3pp"] else "not shown"


@dataclass
class Page:
    """A page while it is compared: what was found, and its text put right."""

    path: Path
    name: str
    text: str
    findings: list[Finding]

    def line(self, position: int) -> int:
        return self.text.count("\n", 0, position) + 1

    def find(self, position: int, found: str, expected: str) -> None:
        self.findings.append(Finding(self.name, self.line(position), found, expected))


def check_page(path: Path, name: str) -> tuple[list[Finding], str]:
    """What differs on a page, and the page put right."""
    page = Page(path, name, path.read_text(), [])
    edits: list[tuple[int, int, str]] = []
    covered = list(_tables(page, edits))
    inside = [found.span() for found in NOT_PROSE.finditer(page.text)] + covered
    covered += _comments(page, inside, edits)
    _uncovered(page, inside, covered)
    text = page.text
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return sorted(page.findings, key=lambda finding: finding.line), text


def _tables(page: Page, edits: list[tuple[int, int, str]]) -> Iterator[tuple[int, int]]:
    """Compare every table and section that is made from reports; yields where it stands."""
    for kind, make in ((TABLE, table), (SECTION, section)):
        for found in kind.finditer(page.text):
            yield found.span()
            try:
                expected = make(found["spec"], page.path.parent)
            except NotThereError as error:
                page.find(found.start(), found[0].partition("\n")[0], str(error))
                continue
            if found["body"] != expected:
                _first_line_apart(page, found, expected)
                edits.append((*found.span("body"), expected))


def _first_line_apart(page: Page, found: re.Match[str], expected: str) -> None:
    """Note where something made from a report begins to differ from what stands on the page."""
    own, right = found["body"].splitlines(), expected.splitlines()
    differs = [
        index for index, pair in enumerate(zip(own, right, strict=False)) if pair[0] != pair[1]
    ]
    index = differs[0] if differs else min(len(own), len(right))
    place = found.start("body") + sum(len(line) + 1 for line in own[:index])
    page.find(place, (own + ["the end"])[index], (right + ["the end"])[index])


def _comments(
    page: Page, inside: list[tuple[int, int]], edits: list[tuple[int, int, str]]
) -> list[tuple[int, int]]:
    """Compare the numbers before every comment; returns where those that a comment speaks of stand,
    and the paragraphs that name
    another source."""
    default: Path | None = None
    covered: list[tuple[int, int]] = []
    last = 0
    for found in COMMENT.finditer(page.text):
        word, rest = found["word"], found["rest"]
        if any(start <= found.start() < end for start, end in inside):
            continue
        before = max(last, _block(page.text, found.start())[0])
        last = found.end()
        if word == "report":
            default = page.path.parent / rest
        elif word == "source":
            covered.append(_block(page.text, found.start()))
            _source(page, found)
        elif word in VERDICTS or word in NUMBERS:
            try:
                asked = parse(rest, page.path.parent, default)
                covered += _number(page, word, asked, before, found.start(), edits)
            except NotThereError as error:
                page.find(found.start(), found[0], str(error))
        elif word not in READ_ELSEWHERE:
            page.find(
                found.start(),
                found[0],
                f"one of the words {', '.join([*NUMBERS, *VERDICTS])}, report, source, {', '.join(READ_ELSEWHERE)}",
            )
    return covered


def _number(
    page: Page, word: str, asked: Asked, before: int, end: int, edits: list[tuple[int, int, str]]
) -> list[tuple[int, int]]:
    """Compare the numbers that stand last between `before` and `end`; returns their places."""
    text = page.text[before:end]
    if word in VERDICTS:
        expected, said = (
            verdict(VERDICTS[word](asked)),
            re.search(r"(not )?shown(?!.*shown)", text, re.DOTALL),
        )
        if said is None or said[0] != expected:
            page.find(end, "no verdict" if said is None else said[0], expected)
            if said is not None:
                edits.append((before + said.start(), before + said.end(), expected))
        return []
    values = NUMBERS[word](asked)
    numbers = list(NUMBER.finditer(text))[-len(values) :]
    if len(numbers) < len(values):
        page.find(end, f"{len(numbers)} numbers before `{word}`", f"{len(values)}")
        return []
    for number, value in zip(numbers, values, strict=True):
        if not agrees(number[0], value):
            right = like(number[0], value)
            page.find(
                before + number.start(),
                number[0],
                f"{right} ({word} {asked.policy}, {asked.file.name})",
            )
            edits.append((before + number.start(), before + number.end(), right))
    return [(before + number.start(), before + number.end()) for number in numbers]


def _source(page: Page, found: re.Match[str]) -> None:
    """What is named as a source exists."""
    named = found["rest"]
    if named == "setting" or named.startswith("arXiv "):
        return
    if not (page.path.parent / named).exists():
        page.find(
            found.start(),
            f"the source {named}",
            "an arXiv number, `setting`, or a file, relative to the page",
        )


def _block(text: str, position: int) -> tuple[int, int]:
    """Where the paragraph or list item around a position begins and ends."""
    start, end = 0, len(text)
    for found in BLOCK.finditer(text):
        if found.end() <= position:
            start = found.end()
        elif found.start() >= position:
            end = found.start()
            break
    return start, end


def _uncovered(page: Page, inside: list[tuple[int, int]], covered: list[tuple[int, int]]) -> None:
    """Numbers that look like results and that nothing speaks of."""
    hidden = (
        inside
        + covered
        + [found.span() for found in re.finditer(r"<!--.*?-->", page.text, re.DOTALL)]
    )
    hidden += [found.span() for found in NOT_A_RESULT.finditer(page.text)]
    for found in LOOKS_LIKE_A_RESULT.finditer(page.text):
        if not any(start < found.end() and found.start() < end for start, end in hidden):
            page.find(
                found.start(),
                f"{found[0]} in {page.text[found.start() : found.end() + 12]!r}",
                "a comment that says where it is from",
            )


# --- tables
# -------------------------------------------------------------------------------------------------


def signed(found: Report) -> str:
    middle, low, high = difference(found)
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})".replace("-", "−")


def over_seeds_apart(asked: Asked) -> str:
    """The difference over seeds, with its interval where that can be computed again."""
    if "outcomes" in asked.report:
        return signed(seed_pair(asked))
    return f"{NUMBERS['seeds-apart'](asked)[0]:+.1f} (interval: not stored)".replace("-", "−")


def rated(counts: Report) -> str:
    low, high = interval(counts)
    return f"{rate(counts):.1f} % ({low:.1f}–{high:.1f})"


def layers(asked: Asked) -> str:
    """The numbers of its layers in the network it was cut from, or `all`."""
    numbers = row(asked)["routing"].get("layers")
    whole = len(asked.report["policies"][0]["routing"]["activation"])
    if numbers is None:
        raise NotThereError(f"numbers of layers in {asked.file.name}, which does not say them")
    return "all" if len(numbers) == whole else ", ".join(map(str, numbers))


CELLS: dict[str, tuple[str, Callable[[Asked], str]]] = {
    "success": (
        "success",
        lambda asked: (
            f"{tally(asked)['successes']}/{tally(asked)['episodes']} = {rate(tally(asked)):.1f} %"
        ),
    ),
    "interval": ("95 % interval", lambda asked: "{:.1f}–{:.1f}".format(*interval(tally(asked)))),
    "rate": ("success", lambda asked: f"{rate(tally(asked)):.1f} %"),
    "rated": ("success", lambda asked: rated(tally(asked))),
    "task": ("success", lambda asked: f"{rate(task(asked)):.1f}"),
    "except-task": ("success", lambda asked: f"{rate(without(asked)):.1f}"),
    "minus": ("difference", lambda asked: signed(pair(asked))),
    "late": ("success, acting late", lambda asked: rated(acting_late(asked))),
    "late-seconds": (
        "seconds to success, failures as the limit",
        lambda asked: f"{acting_late(asked)['seconds_to_success']['restricted']:.2f}",
    ),
    "p": ("McNemar p", lambda asked: f"{pair(asked)['mcnemar_p']:.2g}"),
    "verdict": ("to 3 points", lambda asked: verdict(pair(asked))),
    "steps": ("steps", lambda asked: f"{row(asked)['mean_steps']:.1f}"),
    "ms": ("p50 ms", lambda asked: f"{p50(row(asked)):.2f}"),
    "motion": (
        "ms per second of motion",
        lambda asked: f"{row(asked)['ms_per_second_of_motion']:.1f}",
    ),
    "speed": ("speed", lambda asked: f"{speed(asked):.2f}×"),
    "speed-in-runtime": (
        "× teacher, same runtime",
        lambda asked: f"{times(asked, 'teacher_in_runtime'):.2f}×",
    ),
    "motion-speed": (
        "× eager teacher, of motion",
        lambda asked: f"{times(asked, 'motion'):.2f}×",
    ),
    "motion-in-runtime": (
        "× teacher, same runtime, of motion",
        lambda asked: f"{times(asked, 'motion_in_runtime'):.2f}×",
    ),
    "runtime": ("runtime", runtime),
    "flops": ("backbone FLOPs", lambda asked: f"{backbone(asked):.0f} %"),
    "run": ("layers run", lambda asked: f"{100 * row(asked)['keep_ratio']:.0f} %"),
    "parameters": ("parameters", lambda asked: f"{size(asked) / 1e6:.2f} M"),
    "weights": ("parameters", lambda asked: f"{size(asked):,}"),
    "layers": ("layers", layers),
    "toggles": (
        "toggles in 100 steps",
        lambda asked: f"{row(asked)['gripper_toggles']['per_100_steps']:.1f}",
    ),
    "seeds": ("mean over seeds", lambda asked: f"{100 * over_seeds(asked)['success']:.1f} %"),
    "each-seed": (
        "each",
        lambda asked: ", ".join(f"{100 * each:.1f}" for each in over_seeds(asked)["each"]),
    ),
    "seeds-minus": ("difference over seeds", lambda asked: over_seeds_apart(asked)),
    "seeds-verdict": ("to 3 points", lambda asked: verdict(seed_pair(asked))),
}
"""What a column's word writes, and its heading where the table gives none."""


def table(spec: str, folder: Path) -> str:
    """A table in Markdown from what stands in its comment."""
    first, *rest = [line.strip() for line in spec.strip().splitlines()]
    if not rest:
        raise NotThereError("a line of columns under the name of the report")
    file = folder / first
    columns = [column(text) for text in rest[0].split(" | ")]
    rows = rest[1:] or [policy["name"] for policy in load(file)["policies"]]
    lines = [
        "| " + " | ".join(heading for _, _, heading in columns) + " |",
        "|---" * len(columns) + "|",
    ]
    for text in rows:
        key, *more = text.split(" | ")
        key, _, label = key.partition(" = ")
        key, _, own = key.partition(" @ ")
        names = {"label": label or key, **{str(index): cell for index, cell in enumerate(more, 1)}}
        cells = [
            _cell(word, of, key.strip(), names, folder, folder / own if own else file)
            for word, of, _ in columns
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def column(text: str) -> tuple[str, str, str]:
    """`WORD [what it is about][: heading]` → word, what it is about, heading; the word is empty for
    text with names in braces."""
    text, colon, heading = text.strip().partition(":")
    word, _, of = text.partition(" ")
    if word == "policy":
        return "", "{label}", heading.strip() or "policy"
    if word not in CELLS:
        if not text.startswith("{"):
            raise NotThereError(
                f"a column of {', '.join(CELLS)}, or text in braces, found {text!r}"
            )
        return "", text, heading.strip()
    return word, of.strip(), heading.strip() if colon else CELLS[word][0]


def _cell(word: str, of: str, key: str, names: dict[str, str], folder: Path, file: Path) -> str:
    """One cell. `{}` in what a column is about is the row's policy; without it, it goes with that:
    `minus teacher` is the row's
    policy against the teacher."""
    for name, value in {"": key, **names}.items():
        of = of.replace("{" + name + "}", value)
    if not word:
        if "{" in of:
            raise NotThereError(
                f"texts for every {{…}} of the columns, found {of} in the row of {key}"
            )
        return of
    asked = parse(of, folder, file)
    if word in ("minus", "p", "verdict", "seeds-minus", "seeds-verdict"):
        asked = replace(
            asked,
            policy=asked.policy if asked.against else key,
            against=asked.against or asked.policy,
        )
        if asked.policy == asked.against:
            return ""
    elif not asked.policy:
        asked = replace(asked, policy=key)
    return CELLS[word][1](asked)


# --- sections
# -----------------------------------------------------------------------------------------------


def section(spec: str, folder: Path) -> str:
    """`NAME FILE [| POLICY, …]` as Markdown."""
    first, _, listed = spec.partition(" | ")
    name, _, file = first.strip().partition(" ")
    if name not in (*SECTIONS, LISTENS):
        raise NotThereError(f"a section of {', '.join((*SECTIONS, LISTENS))}, found {name!r}")
    path = folder / file.strip()
    if not path.is_file():
        raise NotThereError(f"a report at {path}, which is missing")
    if name == LISTENS:
        return "\n".join(listens.success_lines(load(path)["listens"])) + "\n"
    found = whole(path)
    names = (
        [policy.strip() for policy in listed.split(",")]
        if listed
        else [policy["name"] for policy in found["policies"]]
    )
    rows = {policy["name"]: policy for policy in found["policies"]}
    missing = [policy for policy in names if policy not in rows]
    if missing:
        raise NotThereError(
            f"policies of {path.name} ({', '.join(rows)}), found {', '.join(missing)}"
        )
    return "\n".join(SECTIONS[name](found, [rows[policy] for policy in names])) + "\n"


def every_split(found: Report, policies: list[Report]) -> list[str]:
    """Success of each policy in each split of the report."""
    splits = list(found["policies"][0]["by_split"])
    lines = [
        "| policy | " + " | ".join(split.replace("_", " ") for split in splits) + " |",
        "|---" * (len(splits) + 1) + "|",
    ]
    for policy in policies:
        cells = [rated(policy["by_split"][split]) for split in splits]
        lines.append(f"| {policy['name']} | " + " | ".join(cells) + " |")
    return lines


def seeds_together(found: Report, policies: list[Report]) -> list[str]:
    """Students over seeds; intervals only where outcomes were kept."""
    seeds = found.get("seeds")
    if not seeds:
        return ["No policy of this report has several seeds."]
    if "outcomes" in found:
        return figures.seed_lines(seeds)
    return [*figures.seed_lines({**seeds, "pairs": []}), NO_INTERVALS]


def late(found: Report, policies: list[Report]) -> list[str]:
    """Policies that act late, and how they compare."""
    if not found["delayed"]:
        return ["Nothing was run late in this report."]
    return [
        *figures.delayed_lines(found["delayed"]),
        "",
        *map(figures.delayed_sentence, found["delayed_pairs"]),
    ]


def pairs_among(found: Report, policies: list[Report]) -> list[str]:
    """Comparisons of the policies with each other, in the first split."""
    names = {policy["name"] for policy in policies}
    pairs = [pair for pair in found["pairs"] if {pair["a"], pair["b"]} <= names]
    return list(map(figures.sentence, speeds.told(found["policies"], pairs)))


def provenance(found: Report, policies: list[Report]) -> list[str]:
    """Where a report comes from, and what a reader has to know of it."""
    mark = found["fingerprint"]
    seed = (mark.get("evaluation") or mark["recipe"]["evaluation"])["seed"]
    dirty = ", with changes that were not committed" if mark.get("dirty") else ""
    episodes = found["policies"][0]["episodes"]
    lines = [
        f"{episodes:,} paired episodes a split from seed {seed:,} on, run at commit {str(mark['commit'])[:7]}{dirty}."
    ]
    if seed == CHOSEN_ON:
        lines.append("Recipes and budgets were chosen on the first of these episodes.")
    lines.append(
        "Outcomes of single episodes are kept beside it." if "outcomes" in found else NO_INTERVALS
    )
    return [" ".join(lines)]


CHOSEN_ON = 500_000_000
"""Where all reports before version 2 begin: recipes were compared on the same list."""
NO_INTERVALS = "Outcomes of single episodes were not kept, so intervals over seeds and of gripper toggles cannot be recomputed, and are not given."
SECTIONS: dict[str, Callable[[Report, list[Report]], list[str]]] = {
    "main": lambda found, policies: figures.main_lines(policies),
    "refused": lambda found, policies: [f"- {figures.refusal(each)}" for each in found["refused"]],
    "tasks": lambda found, policies: figures.group_lines(policies, "by_task", "task"),
    "splits": every_split,
    "seeds": seeds_together,
    "pairs": pairs_among,
    "late": late,
    "provenance": provenance,
}
"""The parts of a report that a page can show whole."""
LISTENS = "listens"
"""What policies listen to, of a report or an audit.json, for all of its policies."""


# --- reports, and all of it
# ---------------------------------------------------------------------------------


def whole_table(path: Path) -> str:
    """The page `table.md` of a report: as `armlet evaluate` writes it, but for intervals over seeds
    where no outcomes were kept."""
    if listens.is_audit(path):
        return listens.page(load(path))
    found = whole(path)
    seeds = found.get("seeds")
    if "outcomes" in found or not seeds:
        return figures.table(found)
    return (
        figures.table({**found, "seeds": {}}) + "\n" + "\n".join(seeds_together(found, [])) + "\n"
    )


def reports(root: Path) -> list[Path]:
    """Every report under docs/, and every audit."""
    found = []
    for path in sorted((root / "docs").rglob("*.json")):
        content = json.loads(path.read_text())
        if (
            isinstance(content, dict) and all(name in content for name in evaluation_report.NEEDED)
        ) or listens.is_audit(path):
            found.append(path)
    return found


def companion(path: Path) -> Path:
    """The page with all rows and pairs of a report: `table.md` beside report.json, `x.md` beside
    x.json."""
    return path.with_name("table.md") if path.name == "report.json" else path.with_suffix(".md")


def pages(root: Path) -> list[Path]:
    """What people wrote: README and docs, without the pages that are a report's."""
    made = {companion(path) for path in reports(root)}
    return [
        root / "README.md",
        *(path for path in sorted((root / "docs").rglob("*.md")) if path not in made),
    ]


def check(root: Path, *, write: bool = False) -> list[Finding]:
    """Everything that differs under a repository's root; with `write`, what documents say wrongly
    is put right."""
    load.cache_clear()
    whole.cache_clear()
    findings = []
    for path in reports(root):
        name = path.relative_to(root).as_posix()
        try:
            differences = recompute.check(path).differences
        except (ValueError, OSError) as error:
            findings.append(Finding(name, 1, "a report that cannot be recomputed", str(error)))
            continue
        for found in differences:
            findings.append(Finding(name, 1, f"{found.where}: {found.found}", str(found.expected)))
        page = companion(path)
        if page.is_file() and page.read_text() != (expected := whole_table(path)):
            findings.append(
                _first_difference(page.relative_to(root).as_posix(), page.read_text(), expected)
            )
            if write:
                page.write_text(expected)
    for path in pages(root):
        found, text = check_page(path, path.relative_to(root).as_posix())
        findings += found
        if write and text != path.read_text():
            path.write_text(text)
    return findings


def _first_difference(name: str, found: str, expected: str) -> Finding:
    """The first line in which two texts differ."""
    ours, theirs = [*found.splitlines(), "the end"], [*expected.splitlines(), "the end"]
    for number, (one, other) in enumerate(zip(ours, theirs, strict=False), 1):
        if one != other:
            return Finding(name, number, one, other)
    return Finding(name, len(ours), "the end", "another line")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put numbers and tables right")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository")
    arguments = parser.parse_args()
    findings = check(arguments.root, write=arguments.write)
    if arguments.write and findings:
        print(f"{len(findings)} put right where it could be")
        findings = check(arguments.root)
    for finding in findings:
        print(finding)
    counted = f"{len(reports(arguments.root))} reports and {len(pages(arguments.root))} pages"
    print(
        f"{len(findings)} differ, in {counted}"
        if findings
        else f"{counted}: every number is what its report says"
    )
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
