"""What README and docs say: every number is what its report says, and one digit that is changed is
noticed; links lead somewhere; Python blocks run; commands, recipes and options that stand there are
those there are; and what stands beside them (changes, citation, hooks, help) agrees with the code.
"""

import functools
import importlib
import importlib.resources
import inspect
import json
import os
import pkgutil
import random
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tyro
import yaml

from armlet import recipes
from armlet.__main__ import OF_PLACES, VERBS
from armlet.evaluation import outcomes
from armlet.options import override

ROOT = Path(__file__).parents[1]
BOUND = re.compile(
    r"\d(?=(?: ?%| ?×| ms| points|\*\*|\))*<!-- (?!report|source|table|section|verdict|seeds-verdict|late-verdict))"
)
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
NOT_RUN = re.compile(
    r"^<!-- not run: (?P<why>.+?) -->\n\n?(?:```.*?^```|.+?(?=\n\n|\Z))", re.DOTALL | re.MULTILINE
)  # the mark, and the block of code or the paragraph behind it
RUN = re.compile(r"^<!-- run -->\n```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)
LANGUAGES = ("bash", "python", "toml", "text")
BESIDES = ("cd", "git", "pip", "sed", "source")  # programs of the shell that a page may call
INLINE = re.compile(r"`([^`\n]+)`")
PLACEHOLDER = re.compile(r"[…|\[]|\bRECIPE\b|\bREPORT\b|\b(my)?package\.")


def recounting() -> ModuleType:
    """docs/recount.py, which is no part of the package."""
    specification = importlib.util.spec_from_file_location("recount", ROOT / "docs" / "recount.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules["recount"] = module  # dataclasses look their module up there
    specification.loader.exec_module(module)
    return module


recount = recounting()


@functools.cache  # to know them, every report is read
def pages() -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in recount.pages(ROOT)]


def copy_to(folder: Path) -> Path:
    """README and docs, to be changed; what they name as sources lies beside them."""
    shutil.copytree(
        ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("*.png", "__pycache__")
    )
    shutil.copy(ROOT / "README.md", folder)
    for name in ("bench", "dev", "src", "tests"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return copy_to(tmp_path)


@pytest.fixture(scope="module")
def shared_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy for tests that put back what they change, so that reports are read once for all."""
    return copy_to(tmp_path_factory.mktemp("copied"))


@pytest.fixture
def to_change(shared_copy: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    page = shared_copy / request.param
    text = page.read_text()
    yield page
    page.write_text(text)


def findings_of(page: Path) -> list[Any]:
    return recount.check_page(page, page.name)[0]


# --- numbers
# ------------------------------------------------------------------------------------------------


def test_every_number_is_what_its_report_says() -> None:
    """The repository as it is: reports by their outcomes and counts, pages beside them, and every
    page that people wrote."""
    assert [str(finding) for finding in recount.check(ROOT)] == []


@pytest.mark.parametrize("to_change", pages(), indirect=True)
def test_a_changed_digit_of_a_page_is_noticed(to_change: Path, shared_copy: Path) -> None:
    """Every number that a comment stands behind, and of every table three, with the last digit
    changed; as many at once as are noticed apart, one of a line and one of a table."""
    page = to_change
    text = page.read_text()
    assert findings_of(page) == []
    chosen = random.Random(0)
    # What a finding can be about → the places of digits in it.
    places: dict[int, list[int]] = {}
    made = [*recount.TABLE.finditer(text), *recount.SECTION.finditer(text)]
    for found in BOUND.finditer(text):
        if not any(each.start() <= found.start() < each.end() for each in made):
            places.setdefault(text.count("\n", 0, found.start()), []).append(found.start())
    for each in made:
        digits = [
            found.end() - 1 + each.start("body")
            for found in re.finditer(r"\d+(?:[.,]\d+)*", each["body"])
        ]
        places[text.count("\n", 0, each.start())] = chosen.sample(digits, min(3, len(digits)))
    silent = []
    for turn in range(max(map(len, places.values()), default=0)):
        changed = list(text)
        lines = {}
        for place in (own[turn] for own in places.values() if turn < len(own)):
            changed[place] = str((int(text[place]) + 5) % 10)
            lines[text.count("\n", 0, place) + 1] = place
        page.write_text("".join(changed))
        noticed = {finding.line for finding in findings_of(page)}
        assert noticed <= lines.keys(), "what was not changed is as it was"
        for line in lines.keys() - noticed:
            place = lines[line]
            silent.append(f"line {line}: {text[place - 20 : place + 20]!r}")
    assert silent == []
    name = page.relative_to(shared_copy).as_posix()
    with_results = name == "README.md" or name.startswith(("docs/results", "docs/reproductions"))
    assert places or not with_results, "a page with results is bound to reports"


@pytest.fixture
def small(tmp_path) -> Path:
    """A repository of two reports, one of them with outcomes, and two pages; nothing differs."""
    for name in ("demo", "tabletop_execute"):
        shutil.copytree(
            ROOT / "docs/reproductions" / name,
            tmp_path / "docs" / name,
            ignore=shutil.ignore_patterns("*.png"),
        )
    rate = "93.0 %<!-- rate actdistill_demo @ {} -->\n"
    (tmp_path / "README.md").write_text(rate.format("docs/demo/report.json"))
    (tmp_path / "docs/page.md").write_text(
        "<!-- section: tasks demo/report.json -->\n<!-- /section -->\n"
    )
    recount.check(tmp_path, write=True)
    assert recount.check(tmp_path) == []
    return tmp_path


def test_a_changed_number_of_a_report_is_noticed_where_it_is_shown(small: Path) -> None:
    """In the report itself, in the page beside it, and in the pages that speak of it."""
    report = small / "docs/demo/report.json"
    value = json.loads(report.read_text())
    value["policies"][1]["successes"] -= 1
    value["policies"][1]["by_task"]["rake"]["successes"] -= 1
    report.write_text(json.dumps(value))
    found = {finding.file for finding in recount.check(small)}
    assert found == {"README.md", "docs/page.md", "docs/demo/report.json", "docs/demo/table.md"}


@pytest.mark.parametrize("change", ["a bit", "missing"])
def test_outcomes_that_are_not_the_reports_own_are_noticed(small: Path, change: str) -> None:
    path = small / "docs/tabletop_execute/outcomes.json.gz"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    if change == "a bit":
        path.write_bytes(content)
    [finding] = recount.check(small)
    assert finding.file == "docs/tabletop_execute/report.json"
    assert (
        f"outcomes.json.gz is {'missing' if change == 'missing' else 'not the one its report was made from'}"
        in finding.expected
    )


def test_an_outcome_that_is_changed_with_its_sum_is_noticed(small: Path) -> None:
    """The file of outcomes made again with one success turned round, and its sha256 written into
    the report: the counts tell."""
    folder = small / "docs/tabletop_execute"
    kept = outcomes.read(folder / "outcomes.json.gz")
    last = kept.policies[-1]
    run = replace(last.run, success=(not last.run.success[0], *last.run.success[1:]))
    sha256 = outcomes.write(
        folder / "outcomes.json.gz",
        replace(kept, policies=(*kept.policies[:-1], replace(last, run=run))),
    )
    value = json.loads((folder / "report.json").read_text())
    value["outcomes"]["sha256"] = sha256
    (folder / "report.json").write_text(json.dumps(value))
    found = recount.check(small)
    assert {finding.file for finding in found} == {"docs/tabletop_execute/report.json"}
    assert any(f"{last.name}.successes: 913" in finding.found for finding in found)


def test_what_policies_listen_to_is_held_to_its_audit(tmp_path) -> None:
    """The audit to its outcomes, the page beside it to the audit, and what is said elsewhere."""
    folder = tmp_path / "docs/tabletop_listens"
    shutil.copytree(ROOT / "docs/reproductions/tabletop_listens", folder)
    (tmp_path / "README.md").write_text("")
    value = json.loads((folder / "audit.json").read_text())
    row = value["listens"][1]
    said = f"<!-- heard {row['policy']} / {row['change']} @ tabletop_listens/audit.json -->"
    page = tmp_path / "docs/page.md"
    page.write_text(
        f"1.5 %{said}\n\n<!-- section: listens tabletop_listens/audit.json -->\n<!-- /section -->\n"
    )
    recount.check(tmp_path, write=True)
    assert recount.check(tmp_path) == []
    assert page.read_text().startswith(f"{100 * row['success']:.1f} %")
    assert f"| {row['change']} | " in page.read_text()
    row["successes"] += 1
    row["success"] = row["successes"] / row["episodes"]
    (folder / "audit.json").write_text(json.dumps(value))
    found = {finding.file for finding in recount.check(tmp_path)}
    assert found == {f"docs/{name}" for name in
                     ("page.md", "tabletop_listens/audit.json", "tabletop_listens/audit.md")}  # fmt: skip


def test_a_changed_page_beside_a_report_is_noticed_and_put_right(small: Path) -> None:
    page = small / "docs/demo/table.md"
    right = page.read_text()
    page.write_text(right.replace("93.0", "94.0", 1))
    assert [finding.file for finding in recount.check(small)] == ["docs/demo/table.md"]
    recount.check(small, write=True)
    assert page.read_text() == right


def page_of(copied: Path, text: str) -> tuple[list[str], str]:
    """What is found in a page of this text, and the text put right."""
    page = copied / "docs" / "page.md"
    page.write_text("<!-- report: reproductions/demo/report.json -->\n" + text)
    recount.load.cache_clear()
    found, right = recount.check_page(page, "page.md")
    return [finding.found for finding in found], right.partition("\n")[2]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It succeeds in 93.0 %<!-- rate actdistill_demo -->.", []),
        ("It succeeds in 93 %<!-- rate actdistill_demo -->.", []),  # rounded
        ("It succeeds in 93.1 %<!-- rate actdistill_demo -->.", ["93.1"]),
        ("It has 93/100<!-- count actdistill_demo -->.", []),
        ("It has 93/101<!-- count actdistill_demo -->.", ["101"]),
        ("It has 93 % of all.", ["93"]),  # and nothing says where that is from
        ("Twice, +3.5 and 12/13.", ["+3.5", "12/13"]),
        ("It has 93 % of all. <!-- source: setting -->", []),
        ("It has 93 % of all. <!-- source: nowhere.json -->", ["the source nowhere.json"]),
        ("- 93.0 %<!-- rate actdistill_demo -->\n- 93.0 %", ["93.0"]),
        ("`93 %` and [93 %](a%20b) and\n\n```\n93 %\n```", ["93"]),
        ("93.0 %<!-- rate nobody -->", ["<!-- rate nobody -->", "93.0"]),
        ("93.0 %<!-- rates actdistill_demo -->", ["<!-- rates actdistill_demo -->", "93.0"]),
        (
            "93.0 %<!-- rate actdistill_demo @ nowhere.json -->",
            ["<!-- rate actdistill_demo @ nowhere.json -->", "93.0"],
        ),
        ("shown<!-- verdict actdistill_demo − teacher -->", ["shown"]),
        ("not shown<!-- verdict actdistill_demo − teacher -->", []),
        ("<!-- rate actdistill_demo -->", ["0 numbers before `rate`"]),
    ],
)
def test_what_is_found_in_prose(copied: Path, text: str, found: list[str]) -> None:
    told = page_of(copied, text)[0]
    assert sorted(entry.partition(" in ")[0] for entry in told) == sorted(found)


def test_numbers_are_put_right_as_they_are_printed(copied: Path) -> None:
    text = "-7.1, 12 % to 1,000.00<!-- minus actdistill_demo − teacher -->; shown<!-- verdict actdistill_demo − teacher -->"
    found = json.loads((copied / "docs/reproductions/demo/report.json").read_text())
    pair = next(
        pair for pair in found["pairs"] if (pair["a"], pair["b"]) == ("actdistill_demo", "teacher")
    )
    middle, low, high = (100 * value for value in (pair["difference"], *pair["ci95"]))
    right = f"{middle:+.1f}, {low:.0f} % to {high:,.2f}".replace("-", "−")
    assert page_of(copied, text)[1].startswith(right + "<!-- minus")
    assert "not shown<!-- verdict" in page_of(copied, text)[1]


def test_a_pair_is_turned_round_where_it_is_asked_for_so(copied: Path) -> None:
    """a − b is −(b − a), with the bounds of its interval changed over."""
    path = copied / "docs/reproductions/vla_ad/report.json"
    ours = recount.Asked(path, "vla_ad_tabletop", "vla_ad_bc")
    theirs = recount.Asked(path, "vla_ad_bc", "vla_ad_tabletop")
    middle, low, high = recount.difference(recount.pair(ours))
    assert recount.difference(recount.pair(theirs)) == [-middle, -high, -low]
    assert (
        low > 0
        and recount.pair(ours)["non_inferior_3pp"]
        and not recount.pair(theirs)["non_inferior_3pp"]
    )


def test_no_interval_over_seeds_is_shown_that_cannot_be_computed_again(copied: Path) -> None:
    name = "reproductions/actdistill/report.json"
    comment = f"<!-- seeds-minus actdistill − teacher @ {name} -->"
    assert page_of(copied, f"−1.0, −1.6 to −0.4{comment}")[0][0] == comment
    with pytest.raises(recount.NotThereError, match="interval"):
        recount.seed_pair(recount.Asked(copied / "docs" / name, "actdistill", "teacher"))
    assert "−" in recount.section("seeds reproductions/tabletop_fresh/report.json", copied / "docs")
    assert "interval of students" not in recount.section(f"seeds {name}", copied / "docs")


def test_no_path_of_a_machine_stands_in_what_is_published() -> None:
    found = []
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*")]:
        if path.suffix in (".md", ".json") and re.search(
            r"[\"(`\s]/(?:work|root|home|tmp|Users)/", path.read_text()
        ):
            found.append(path.relative_to(ROOT).as_posix())
    assert found == []


def test_the_first_page_is_short() -> None:
    """Under 900 words, tables included, without what only recount.py reads."""
    text = re.sub(r"<!--.*?-->", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(text.split()) < 900


# --- links
# --------------------------------------------------------------------------------------------------


def texts() -> list[Path]:
    return [*(ROOT / page for page in pages()), ROOT / "CONTRIBUTING.md"]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives headings: small letters, no punctuation, hyphens for spaces."""
    text = FENCE.sub("", page.read_text())
    found = set()
    for heading in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE):
        plain = re.sub(r"<!--.*?-->|`", "", heading).strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", texts(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = INLINE.sub("", FENCE.sub("", page.read_text()))
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or ROOT not in (path, *path.parents):
            broken.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(path):
            broken.append(f"{target}: no such heading")
    assert broken == []


# --- commands
# -----------------------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[list[str]]:
    """What stands on a page to be typed: lines of code blocks and whole pieces of inline code, a
    command a list of words."""
    text = NOT_RUN.sub("", page.read_text())
    lines = []
    for language, block in FENCE.findall(text):
        if language not in ("", "bash"):
            continue
        lines += block.replace("\\\n", " ").splitlines()
    lines += INLINE.findall(FENCE.sub("", text))
    for line in lines:
        for part in re.split(r"&&|;", line):
            words = part.strip().split(maxsplit=1)
            while words and re.fullmatch(
                r"[A-Z_]+=\S*", words[0]
            ):  # a variable of the shell before the command
                words = words[1].split(maxsplit=1) if len(words) > 1 else []
            if (
                words
                and words[0] in ("armlet", "bash", "make", "python")
                and not PLACEHOLDER.search(part.partition(" #")[0])
            ):
                yield shlex.split(" ".join(words), comments=True)


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of code of a page in one language, without those that are marked."""
    text = NOT_RUN.sub("", page.read_text())
    return [block for found, block in FENCE.findall(text) if found == language]


def written(page: Path) -> list[str]:
    return [" ".join(command) for command in commands(page)]


@pytest.fixture
def mine(tmp_path, monkeypatch) -> ModuleType:
    """The module that docs/adding-a-recipe.md writes, in a folder as a user has it."""
    [source] = blocks(ROOT / "docs/adding-a-recipe.md", "python")
    (tmp_path / "mine.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return importlib.import_module("mine")


@pytest.mark.parametrize(
    "page",
    [*texts(), ROOT / "src/armlet/__main__.py"],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_commands_are_those_there_are(page: Path, mine: ModuleType, capsys) -> None:
    """Verbs, recipes, options and their values are parsed; scripts and make's targets exist.
    Nothing is run."""
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wrong = []
    for program, *words in commands(page):
        try:
            if program == "armlet":
                parse(*words)
            elif program == "make":
                assert {word for word in words if "=" not in word} <= targets, "no such target"
            else:
                assert (ROOT / words[0]).is_file(), "no such script"
        except (AssertionError, ValueError, SystemExit) as error:
            wrong.append(f"{program} {' '.join(words)}: {error} {capsys.readouterr().err}")
    assert wrong == []


@functools.cache  # most commands stand on several pages
def parse(*words: str) -> None:
    """Read a command as `armlet` does, to the end of its options. Raises AssertionError, ValueError
    or SystemExit."""
    verb, *rest = words or [""]
    if verb in ("--help", ""):
        return
    assert verb in VERBS, "no such verb"
    if not rest:
        return  # a verb that is only spoken of
    if verb in OF_PLACES:
        tyro.cli(unrun(importlib.import_module(f"armlet.{verb}").main), args=rest)
    elif not {"--help", "--help-all"} & set(rest):
        override(recipes.find(rest[0])(), rest[1:], f"armlet {verb} {rest[0]}")


def unrun(work: Callable[..., object]) -> Callable[..., object]:
    """A function of the same signature that does nothing."""

    @functools.wraps(work)
    def nothing(*arguments: Any, **options: Any) -> None:
        inspect.signature(work).bind(*arguments, **options)

    return nothing


@pytest.mark.parametrize("page", texts(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_is_checked_or_says_why_not(page: Path) -> None:
    """Its language is said; each line of a shell block is a command that the tests read."""
    wrong = []
    for language, _ in FENCE.findall(page.read_text()):
        if language not in LANGUAGES and not language.startswith(("{toctree}", "{reference} ")):
            wrong.append(f"a block in {language!r}, expected {', '.join(LANGUAGES)}")
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.partition("#")[0]
            words = re.sub(r"^(\s*[A-Z_]+=\S+)*", "", command).split()
            known = ("armlet", "bash", "make", "python", *BESIDES)
            if words and words[0] not in known:
                wrong.append(f"{line!r}: expected {', '.join(known)}, or `<!-- not run: why -->`")
            elif words and words[0] not in BESIDES and PLACEHOLDER.search(command):
                wrong.append(f"{line!r}: a placeholder in what is to be typed")
    for block in blocks(page, "toml"):
        assert tomllib.loads(block), "a block of TOML says something"
    assert wrong == []


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A folder that looks like a fresh clone, to work in."""
    for name in ("checkpoints", "docs", "examples", "runs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


WITH_PYTHON = [page for page in texts() if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_blocks_run(page: Path, clone: Path, monkeypatch) -> None:
    """In their order, each with the names of those before it."""
    module = ModuleType(page.stem)
    monkeypatch.setitem(sys.modules, page.stem, module)  # dataclasses look their module up there
    for source in blocks(page, "python"):
        exec(compile(source, page.name, "exec"), module.__dict__)


TO_RUN = [(page, block) for page in texts() for block in RUN.findall(page.read_text())]


@pytest.mark.parametrize(("page", "block"), TO_RUN, ids=lambda value: getattr(value, "stem", ""))
def test_blocks_that_are_marked_run(page: Path, block: str, clone: Path) -> None:
    assert shell(block).strip()


def shell(lines: str) -> str:
    """What lines of a shell print, run in this folder with this armlet; the first that fails fails
    them all."""
    programs = [f'armlet() {{ "{sys.executable}" -m armlet "$@"; }}']
    programs += [f'python() {{ "{sys.executable}" "$@"; }}']
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join([*programs, lines])],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_your_robot_is_followed(clone: Path) -> None:
    """Every command of the page, as a newcomer would give them, one after the other."""
    (clone / "tests").symlink_to(ROOT / "tests")
    typed = blocks(ROOT / "docs/your-robot.md", "bash")
    if not typed:
        pytest.skip("the page's commands are marked as not run")
    shell("".join(typed))
    assert (clone / "out/actdistill/evaluation/report.json").is_file()


def test_robot_toml_is_as_it_is_read(clone: Path) -> None:
    description = pytest.importorskip("armlet.robot.description")
    [written] = blocks(ROOT / "docs/your-robot.md", "toml")
    path = clone / "robot.toml"
    path.write_text(written)
    assert description.Described.read(path).grippers == (6,)


def test_marks_reach_as_far_as_their_block(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- not run: later -->\n```bash\narmlet one\n\narmlet two\n```\n\n`armlet three` and\n\n"
        "<!-- not run: later -->\n`armlet four`\nor `armlet five`\n\n`armlet six`\n\n"
        "<!-- run -->\n```bash\narmlet seven\n```\n"
    )
    assert written(page) == ["armlet seven", "armlet three", "armlet six"]
    assert RUN.findall(page.read_text()) == ["armlet seven\n"]


def test_commands_are_found_and_wrong_ones_are_noticed(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`armlet collect tabletop`\n\n```\nA=1 armlet distil \\\n  tabletop --seed 1   # said\narmlet probe demo && make demo\n```\n"
    )
    assert written(page) == [
        "armlet distil tabletop --seed 1",
        "armlet probe demo",
        "make demo",
        "armlet collect tabletop",
    ]
    assert len(written(ROOT / "README.md")) > 8
    for words in (
        "distill tabletop",
        "distil tabletop_",
        "distil tabletop --sead 1",
        "distil tabletop --seed one",
        "report --into a",
    ):
        with pytest.raises((AssertionError, ValueError, SystemExit)):
            parse(*words.split())
    parse("distil", "tabletop", "--seed", "1")
    parse("recompute", "a", "b")


# --- what stands beside the documents
# -----------------------------------------------------------------------------------------------


def test_every_page_is_in_the_sites_contents() -> None:
    """docs/index.md lists every page that people wrote; tables of reports are listed by docs/tables.md."""
    index = (ROOT / "docs/index.md").read_text()
    listed = [
        f"docs/{line}.md"
        for language, block in FENCE.findall(index)
        if language == "{toctree}"
        for line in block.splitlines()
        if line and not line.startswith(":")
    ]
    people_wrote = set(pages()) - {"README.md", "docs/index.md"}
    assert sorted(listed) == sorted(people_wrote)


def test_documents_that_the_source_names_exist() -> None:
    missing = []
    for folder in ("src", "bench", "runs", "tests", "examples"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix not in (".py", ".sh", ".bash", ".toml") or not path.is_file():
                continue
            for name in re.findall(r"\bdocs/[\w./-]+\.md\b", path.read_text()):
                if not (ROOT / name).is_file() and path != Path(__file__):
                    missing.append(f"{path.relative_to(ROOT)}: {name}")
    assert missing == []


@pytest.mark.parametrize("page", texts(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_names_of_the_package_are_those_there_are(page: Path) -> None:
    """`armlet.robot.conventions.convert` in a text is a function that can be imported."""
    text = NOT_RUN.sub("", page.read_text())
    wrong = []
    for code in INLINE.findall(FENCE.sub("", text)):
        for name in re.findall(r"(?<![\w/.])armlet(?:\.[A-Za-z_]\w*)+", code):
            try:
                pkgutil.resolve_name(name)
            except (ImportError, AttributeError) as error:
                wrong.append(f"{name}: {error}")
    assert wrong == []


def test_errors_that_are_explained_are_raised() -> None:
    """Every message in the table of docs/errors.md stands in the source."""
    source = "\n".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))
    plain = re.sub(r'"\s*f?"', "", source)  # texts that are broken over lines
    explained = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)
    assert len(explained) > 10
    assert [message for message in explained if message not in plain] == []


def test_papers_that_the_first_page_names_can_be_cited() -> None:
    readme = (ROOT / "README.md").read_text()
    citation = (ROOT / "CITATION.cff").read_text()
    named = re.findall(r"\b\d{4}\.\d{5}\b", readme)
    assert len(named) >= 3
    assert [number for number in named if f"arXiv:{number}" not in citation] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"version: {project['version']}\n" in citation
    assert f"license: {project['license']}\n" in citation


def test_changes_have_the_current_version_and_the_known_headings() -> None:
    """Keep a Changelog: versions, newest first, each with a date but the one that is being made."""
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", each) for each in versions[1:])
    known = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= known


def test_hooks_run_what_make_check_runs() -> None:
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe is not None
    checked = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"] for repository in hooks for hook in repository["hooks"]] == checked


def test_make_alone_says_what_there_is() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    # Below `make test`, make would also say which folder it enters.
    command = ["make", "--no-print-directory"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    said = [line.split()[0] for line in ran.stdout.splitlines()[1:]]
    assert sorted(said) == sorted(phony[1].split())


def test_types_travel_with_the_package() -> None:
    """An editor takes the types of a package that has this file, which must be empty and installed."""
    assert (importlib.resources.files("armlet") / "py.typed").read_text() == ""


def test_speeds_in_a_runtime_are_words_of_a_page(copied: Path) -> None:
    """A report in which a second runtime is three times as fast for both of two policies."""
    path = copied / "docs/reproductions/tabletop_fresh/report.json"
    value = json.loads(path.read_text())
    teacher, student = value["policies"][:2]
    for row in (teacher, student):
        times = row["latency_ms"]["policy"]["p50"]
        exported = json.loads(json.dumps(row))
        exported |= {"name": f"{row['name']} onnx", "policy": row["name"], "runtime": "onnx"}
        exported |= {"precision": "int8", "exported_from": row["name"], "speed": None}
        exported["latency_ms"]["policy"]["p50"] = times / (3 if row is teacher else 6)
        value["policies"].append(exported)
    path.write_text(json.dumps(value))
    recount.load.cache_clear()
    recount.whole.cache_clear()
    eager = teacher["latency_ms"]["policy"]["p50"] / student["latency_ms"]["policy"]["p50"]
    name = student["name"]
    spec = f"reproductions/tabletop_fresh/report.json\npolicy | runtime | speed | speed-in-runtime\n{name} onnx"
    made = recount.table(spec, copied / "docs").splitlines()
    assert made[0] == "| policy | runtime | speed | × teacher, same runtime |"
    assert made[2] == f"| {name} onnx | onnx int8 | {6 * eager:.2f}× | {2 * eager:.2f}× |"
