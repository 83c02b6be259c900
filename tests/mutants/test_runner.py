"""The runner of mutants, on a project of two functions: what must be caught is, and nothing else is
said to be."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).with_name("run.py")
SOURCE = """\
def double(x):
    return 2 * x


def triple(x):
    return 3 * x
"""
TESTS = """\
import os
import subprocess
import sys
import time

from armlet import double


def test_double():
    assert double(2) == 4


def test_a_process_of_ones_own_has_the_same_code():
    code = "from armlet import double; print(double(2))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "4"
"""
MUTANT = """
[[mutant]]
name = {name!r}
file = "src/armlet/__init__.py"
find = {find!r}
replace = {replace!r}
tests = ["tests/test_double.py{test}"]
"""


def verdicts(
    root: Path, *mutants: tuple[str, str, str, str], options: tuple[str, ...] = ()
) -> tuple[int, dict[str, dict], str]:
    """Write the project and its table, run; (exit status, name → what was found, what was
    printed)."""
    for path, text in (
        ("src/armlet/__init__.py", SOURCE),
        ("tests/test_double.py", TESTS),
        ("pyproject.toml", ""),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    (root / "tests" / "mutants").mkdir()
    table = "".join(
        MUTANT.format(name=name, find=find, replace=new, test=test)
        for name, find, new, test in mutants
    )
    (root / "tests" / "mutants" / "double.toml").write_text(table)
    command = [sys.executable, RUNNER, "--cold", "--root", root, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    results = root / "build" / "mutants.json"
    found = json.loads(results.read_text())["mutants"] if results.exists() else []
    assert (root / "src/armlet/__init__.py").read_text() == SOURCE
    return done.returncode, {entry["name"]: entry for entry in found}, done.stdout + done.stderr


def test_what_a_test_notices_is_caught_in_this_process_and_in_one_it_starts(tmp_path: Path) -> None:
    wrong = ("return 2 * x", "return 3 * x")
    status, found, _ = verdicts(
        tmp_path,
        ("here", *wrong, "::test_double"),
        ("there", *wrong, "::test_a_process_of_ones_own_has_the_same_code"),
    )
    assert status == 0
    assert [entry["verdict"] for entry in found.values()] == ["caught", "caught"]
    assert found["here"]["by"] == "tests/test_double.py::test_double"


def test_what_changes_nothing_or_what_nobody_tests_survives(tmp_path: Path) -> None:
    status, found, printed = verdicts(
        tmp_path,
        ("nothing", "2 * x", "x * 2", ""),
        ("untested", "3 * x", "4 * x", ""),
        ("double", "2 * x", "2 + x + 1", ""),
    )
    assert status == 1
    assert {name: entry["verdict"] for name, entry in found.items()} == {
        "nothing": "survived",
        "untested": "survived",
        "double": "caught",
    }
    assert "survived: double: nothing" in printed and "3 mutants, 1 caught" in printed


def test_a_stopped_run_goes_on_with_what_was_not_caught(tmp_path: Path) -> None:
    """Results are kept after each mutant; those of before stay, and `--left` tries the others."""
    caught = {"area": "double", "name": "caught before", "verdict": "caught", "by": "a test"}
    survived = {"area": "double", "name": "survived before", "verdict": "survived", "by": ""}
    (tmp_path / "build").mkdir()
    kept = json.dumps({"seconds": 1.0, "mutants": [caught, survived]})
    (tmp_path / "build" / "mutants.json").write_text(kept)
    wrong = ("2 * x", "3 * x", "")
    mutants = [(name, *wrong) for name in ("caught before", "survived before", "never tried")]
    status, found, printed = verdicts(tmp_path, *mutants, options=("--left", "--unchecked"))
    assert status == 0 and "2 mutants, 2 caught" in printed
    assert found["caught before"] == caught
    assert {entry["verdict"] for entry in found.values()} == {"caught"}


def test_what_does_not_apply_or_breaks_the_import_is_no_catch(tmp_path: Path) -> None:
    status, found, _ = verdicts(
        tmp_path,
        ("gone", "5 * x", "6 * x", ""),
        ("twice", "return", "raise", ""),
        ("syntax", "2 * x", "2 *", ""),
        ("import", "def double(x)", "def halve(x)", ""),
        ("unknown name", "2 * x", "y", ""),
        ("no such test", "2 * x", "3 * x", "::test_gone"),
        options=("--unchecked",),
    )
    assert status == 1
    assert {name: entry["verdict"] for name, entry in found.items()} == {
        "gone": "inapplicable",
        "twice": "inapplicable",
        "syntax": "broken",
        "import": "broken",
        "unknown name": "broken",
        "no such test": "broken",
    }


def test_a_test_that_never_ends_is_not_waited_for(tmp_path: Path) -> None:
    status, found, _ = verdicts(
        tmp_path,
        ("hangs", "return 2 * x", "import time; time.sleep(60)", "::test_double"),
        options=("--limit", "1", "--unchecked"),
    )
    assert status == 1 and found["hangs"]["verdict"] == "timeout"


def test_where_the_tests_fail_anyway_nothing_is_tried(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "def pytest_itemcollected(item):\n    item.obj = lambda: 1 / 0\n"
    )
    status, found, printed = verdicts(tmp_path, ("here", "2 * x", "3 * x", ""))
    assert status == 1 and not found and "fail without any mutant" in printed


@pytest.mark.parametrize("broken", ['name = "a"', 'nmae = "a"'])
def test_a_table_that_is_not_as_it_should_be_is_named(tmp_path: Path, broken: str) -> None:
    (tmp_path / "bad.toml").write_text(f"[[mutant]]\n{broken}\n")
    command = [sys.executable, RUNNER, "--cold", "--tables", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "bad.toml, entry 1" in done.stderr


def test_every_mutant_of_this_repository_applies_and_names_a_test_that_is_there() -> None:
    sys.path.insert(0, str(RUNNER.parent))
    import run

    root = RUNNER.parents[2]
    for mutant in run.read_tables(RUNNER.parent):
        assert run.broken_text(root, mutant) != (root / mutant.file).read_text(), mutant.name
        for test in mutant.tests:
            path, _, function = test.partition("::")
            assert f"def {function.partition('[')[0]}" in (root / path).read_text(), (
                f"{mutant.name}: {test}"
            )


def test_no_mutant_uses_a_name_that_its_file_does_not_know(tmp_path: Path) -> None:
    """It would raise NameError, which says nothing about the tests: so it is when an import goes
    that only the mutant had needed."""
    sys.path.insert(0, str(RUNNER.parent))
    import run

    root = RUNNER.parents[2]
    mutants = [each for each in run.read_tables(RUNNER.parent) if each.file.endswith(".py")]
    for number, mutant in enumerate(mutants):
        (tmp_path / f"{number}.py").write_text(run.broken_text(root, mutant))
    found = undefined_names(tmp_path)
    sources = undefined_names(root / "src")  # letters of shapes, such as "b k a"
    wrong = []
    for number, mutant in enumerate(mutants):
        names = found.get(tmp_path / f"{number}.py", set())
        unknown = names - sources.get(root / mutant.file, set())
        wrong += [f"{mutant.area}: {mutant.name}: {name}" for name in sorted(unknown)]
    assert wrong == []


def undefined_names(folder: Path) -> dict[Path, set[str]]:
    """What ruff's rule F821 says of the files below a folder."""
    options = ["--isolated", "--no-cache", "--select", "F821", "--output-format", "json"]
    command = [sys.executable, "-m", "ruff", "check", *options, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    names: dict[Path, set[str]] = {}
    for each in json.loads(done.stdout):
        names.setdefault(Path(each["filename"]), set()).add(each["message"])
    return names
