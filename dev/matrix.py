"""Does the wheel work where people install it? On each Python that pyproject.toml allows, with the lowest
libraries it allows, with those of the lock and with the newest: an environment each, the wheel in it, and
the checks of dev/installed.py with some tests, run outside the repository. `make test-matrix` calls it.

    python dev/matrix.py [--only 3.11-lowest 3.13-current] [--checks line teacher modules]
                         [--find-links FOLDER]

    lowest    of every direct dependency the lowest version that pyproject.toml allows and that has a
              wheel for this Python. On the oldest Python each must be the one that is written there.
    lock      torch as in requirements.lock, locks/core.txt with its hashes, nothing else (docs/safety.md)
    current   the newest of everything

The wheel is built once. An environment is kept, in .venv-matrix/NAME; build/matrix/NAME/ has what is
installed, a log, and what each check found. A check that passed is not run again as long as the wheel, all
that is installed and the check are the same: a run that was stopped goes on. docs/machinery/installed.json
and a page beside it have those of this wheel. Nothing is built but armlet: where a library has no wheel,
that is a failure. uv finds the Pythons, on the path too, and brings none; torch brings CUDA, 3 GB to load
and 6 on disk for each version of it, unless `--find-links` has a build for CPUs.

Knows neither armlet nor torch: it runs other Pythons.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OLDEST = "3.11"
KEPT = ROOT / "docs/machinery/installed.json"
ENVIRONMENTS = ROOT / ".venv-matrix"
WORK = ROOT / "build/matrix"
INSTALLED = ROOT / "dev/installed.py"
ANSWERS = ROOT / "tests/answers/shipped_teachers.npz"
LIMIT = 7200  # seconds that a command may take
CHECKS = ("line", "teacher", "modules", "tests")
# Of each library whose lowest version is written down, some tests that use it.
TESTS = (
    "tests/data/test_video.py",  # av
    "tests/data/test_writer.py",  # pyarrow
    "tests/data/test_pictures.py",  # pillow
    "tests/test_gym.py",  # gymnasium
    "tests/test_options.py",  # tyro
    "tests/test_report_pictures.py",  # matplotlib
    "tests/test_shipped_teacher.py",  # mujoco, torch
    "tests/policies/test_facts.py",  # tokenizers
    "tests/layers/test_pretrained.py",  # transformers
    "tests/policies/test_building.py",  # peft
    "tests/pretrained/test_weight_files.py",  # safetensors
    "tests/test_big.py",  # torch's optimisers, adapters
)
TOOLS = ("pytest", "pytest-timeout", "hypothesis")
# What is shown of all that is installed.
SHOWN = ("torch", "transformers", "numpy", "peft", "huggingface-hub")


@dataclass(frozen=True)
class Combination:
    python: str
    libraries: str  # lowest, lock, current

    @property
    def name(self) -> str:
        return f"{self.python}-{self.libraries}"

    @property
    def folder(self) -> Path:
        return WORK / self.name

    @property
    def interpreter(self) -> Path:
        return ENVIRONMENTS / self.name / "bin/python"


COMBINATIONS = (
    Combination("3.11", "lowest"),
    Combination("3.11", "lock"),
    Combination("3.12", "current"),
    Combination("3.13", "current"),
    Combination("3.12", "lowest"),
    Combination("3.13", "lowest"),
    Combination("3.11", "current"),
)


class FailedError(Exception):
    """A command of a combination failed; the last line that it said."""


class Commands:
    """Runs commands for one combination; what they say goes into its log."""

    def __init__(self, uv: str, links: list[str], log: Path) -> None:
        self._uv = uv
        self._links: list[str | Path] = []
        for folder in links:
            self._links += ["--find-links", folder]
        self._log = log

    def uv(self, *words: str | Path) -> str:
        """Runs `uv pip` with these words."""
        return self.run([self._uv, "pip", *words])

    def uv_with_links(self, *words: str | Path) -> str:
        """The same, of what chooses versions."""
        return self.uv(*words, *self._links)

    def environment(self, python: str, folder: Path) -> None:
        self.run([self._uv, "venv", "--quiet", "--no-python-downloads", "--python", python, folder])

    def run(self, command: list[str | Path], *, path: Path | None = None) -> str:
        """What the command printed, run in an empty folder without what this shell's Python is told. Raises
        FailedError."""
        told = dict(os.environ)
        for name in ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"):
            told.pop(name, None)
        told |= {"PYTHONNOUSERSITE": "1", "HF_HUB_OFFLINE": "1"}
        if path is not None:
            told["PYTHONPATH"] = str(path)
        words = [str(word) for word in command]
        with self._log.open("a+") as log, tempfile.TemporaryDirectory() as empty:
            log.write(f"\n$ {' '.join(words)}\n")
            log.flush()
            begun = log.tell()
            try:
                ran = subprocess.run(
                    words,
                    cwd=empty,
                    env=told,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=LIMIT,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise FailedError(f"{words[0]}: not done after {LIMIT} s") from error
            log.seek(begun)
            said = log.read()
        if ran.returncode != 0:
            said = said.replace(f"{ROOT}/", "")  # no machine's folders in a document
            lines = [line.strip() for line in said.splitlines() if line.strip()]
            raise FailedError(lines[-1] if lines else f"exit status {ran.returncode}")
        return said


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [each.name for each in COMBINATIONS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument(
        "--find-links", nargs="+", default=[], metavar="FOLDER", help="wheels beside the registry's"
    )
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=CHECKS, metavar="NAME")
    parser.add_argument("--uv", default="uv", help="the program; uv if not given")
    asked = parser.parse_args()
    uv = shutil.which(asked.uv)
    if uv is None:
        sys.exit(f"{asked.uv}: no such program; pip install uv")
    uv = str(Path(uv).absolute())  # commands run in another folder
    links = [str(Path(folder).absolute()) for folder in asked.find_links]
    wheel = built(uv)
    failed = []
    for number, each in enumerate(COMBINATIONS):
        if each.name not in asked.only:
            continue
        say(f"{each.name} ({number + 1} of {len(COMBINATIONS)}; {each.folder / 'log.txt'})")
        row = tried(each, wheel, list(asked.checks), Commands(uv, links, log_of(each)))
        (each.folder / "row.json").write_text(json.dumps(row, indent=1) + "\n")
        if row["failed"]:
            failed.append(each.name)
        write_table(wheel)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def say(line: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stdout.flush()


def log_of(each: Combination) -> Path:
    each.folder.mkdir(parents=True, exist_ok=True)
    return each.folder / "log.txt"


def digest(*parts: bytes) -> str:
    made = hashlib.sha256()
    for part in parts:
        made.update(hashlib.sha256(part).digest())
    return made.hexdigest()


def built(uv: str) -> Path:
    """The wheel of this checkout. The same files make the same wheel."""
    folder = WORK / "wheel"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    subprocess.run(
        [uv, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT],
        check=True,
        env=os.environ | {"SOURCE_DATE_EPOCH": "1700000000"},
    )
    (wheel,) = folder.glob("*.whl")
    say(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")
    return wheel


def tried(each: Combination, wheel: Path, checks: list[str], commands: Commands) -> dict[str, Any]:
    """What came of one combination: what is installed, seconds and finding of each check, and what
    failed, in words."""
    begun = time.monotonic()
    row: dict[str, Any] = {
        "python": each.python, "libraries": each.libraries, "wheel": digest(wheel.read_bytes()), "failed": {},
    }  # fmt: skip
    try:
        install(each, wheel, commands)
        installed = versions(commands.uv("freeze", "--python", each.interpreter))
        row["installed"] = installed
        row["python"] = commands.run(
            [each.interpreter, "-c", "import platform; print(platform.python_version())"]
        )
        row["python"] = row["python"].strip()
    except FailedError as error:
        row["failed"]["install"] = str(error)
        say(f"  install: FAILED: {error}")
        return row
    row["install_seconds"] = round(time.monotonic() - begun)
    say(f"  installed: torch {installed['torch']}, transformers {installed['transformers']}")
    row["above"] = above_the_bounds(installed) if each.libraries == "lowest" else {}
    if row["above"] and each.python == OLDEST:
        row["failed"]["bounds"] = "raise in pyproject.toml: " + listed(row["above"])
        say(f"  bounds: FAILED: {row['failed']['bounds']}")
    question = [
        wheel.read_bytes(),
        json.dumps(installed, sort_keys=True).encode(),
        row["python"].encode(),
    ]
    row["checks"] = {}
    for found in checked(each, digest(*question), checks, commands):
        row["checks"] |= found
    for name, found in row["checks"].items():
        if "failed" in found:
            row["failed"][name] = found["failed"]
        say(f"  {name}: {found.get('failed') or 'passed'} ({found['seconds']} s)")
    return row


def install(each: Combination, wheel: Path, commands: Commands) -> None:
    """The environment, as it is to be: other packages in it are removed, and what is there stays."""
    if not each.interpreter.exists():
        commands.environment(each.python, ENVIRONMENTS / each.name)
    at = ["--python", each.interpreter, "--no-build", "--quiet"]
    if each.libraries == "lock":
        pins = (ROOT / "requirements.lock").read_text()
        torch = re.search(r"^torch==\S+$", pins, re.MULTILINE)
        assert torch, "requirements.lock has a torch"
        commands.uv_with_links("install", *at, "--constraint", ROOT / "requirements.lock", torch[0])
        commands.uv("install", *at, "--require-hashes", "--no-deps", "-r", ROOT / "locks/core.txt")
        commands.uv("install", *at, "--no-deps", "--reinstall", wheel)
    else:
        wanted = each.folder / "versions.txt"
        which = "lowest-direct" if each.libraries == "lowest" else "highest"
        commands.uv_with_links(
            "compile", ROOT / "pyproject.toml", *at, "--resolution", which, "--upgrade", "--no-header",
            "--no-annotate", "--output-file", wanted,
        )  # fmt: skip
        commands.uv_with_links("sync", *at, wanted)
        # With its own bounds, as it says them: they must allow what was found.
        commands.uv_with_links(
            "install", *at, "--constraint", wanted, "--reinstall-package", "armlet", wheel
        )
    commands.uv("check", "--python", each.interpreter)


def versions(frozen: str) -> dict[str, str]:
    """Package → version, of `uv pip freeze`, without armlet."""
    found = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)$", frozen, re.MULTILINE))
    return {canonicalize_name(name): version for name, version in sorted(found.items())}


def above_the_bounds(installed: dict[str, str]) -> dict[str, list[str]]:
    """Direct dependencies that are newer than the lowest version that pyproject.toml allows: that, and
    what is installed."""
    found = {}
    for line in PROJECT["dependencies"]:
        wanted = Requirement(line)
        (bound,) = [each.version for each in wanted.specifier if each.operator in (">=", "==")]
        version = installed[canonicalize_name(wanted.name)]
        if Version(version) != Version(bound):
            found[wanted.name] = [bound, version]
    return found


def listed(above: dict[str, list[str]]) -> str:
    return ", ".join(f"{name} {bound} → {version}" for name, (bound, version) in above.items())


def checked(
    each: Combination, question: str, names: list[str], commands: Commands
) -> Iterator[dict[str, dict[str, Any]]]:
    """What each check found; as it was kept, if it passed and was asked the same. Those of
    dev/installed.py after the first that failed are left out."""
    ours = [name for name in names if name != "tests"]
    places = {}
    for name in names:
        key = digest(question.encode(), *(path.read_bytes() for path in asked_by(name)))
        places[name] = each.folder / "found" / key[:16] / f"{name}.json"
        places[name].parent.mkdir(parents=True, exist_ok=True)
    missing = [name for name in ours if not places[name].exists()]
    said = None
    begun = time.monotonic()
    if missing:
        try:
            commands.run([each.interpreter, INSTALLED, places[missing[0]].parent, *missing])
        except FailedError as error:
            said = str(error)
    for name in ours:
        if places[name].exists():
            yield {name: json.loads(places[name].read_text())}
        else:
            yield {name: {"failed": said, "seconds": round(time.monotonic() - begun)}}
            break
    if "tests" in names:
        if not places["tests"].exists():
            begun = time.monotonic()
            try:
                found = tests(each, commands)
            except FailedError as error:
                yield {"tests": {"failed": str(error), "seconds": round(time.monotonic() - begun)}}
                return
            found["seconds"] = round(time.monotonic() - begun)
            places["tests"].write_text(json.dumps(found, indent=1) + "\n")
        yield {"tests": json.loads(places["tests"].read_text())}


def asked_by(name: str) -> list[Path]:
    """Files of the repository that a check is made of, beside the wheel."""
    if name == "tests":
        return sorted((ROOT / "tests").rglob("*.py"))
    return [INSTALLED, ANSWERS]


def tests(each: Combination, commands: Commands) -> dict[str, Any]:
    """Tests of the repository against the wheel: its own source is on no path. pytest lies beside the
    environment, in versions that go with it."""
    tools = each.folder / "pytest"
    frozen = each.folder / "frozen.txt"
    installed = versions(commands.uv("freeze", "--python", each.interpreter))
    frozen.write_text("".join(f"{name}=={version}\n" for name, version in installed.items()))
    commands.uv_with_links(
        "install", "--quiet", "--no-build", "--python", each.interpreter, "--target", tools, "--constraint", frozen,
        *TOOLS,
    )  # fmt: skip
    files = [ROOT / name for name in TESTS]
    said = commands.run(
        [each.interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml",
         "--rootdir", ROOT, *files],
        path=tools,
    )  # fmt: skip
    last = said.strip().splitlines()[-1]
    passed = re.search(r"(\d+) passed", last)
    skipped = re.search(r"(\d+) skipped", last)
    if passed is None:
        raise FailedError(f"no test passed: {last}")
    return {"passed": int(passed[1]), "skipped": int(skipped[1]) if skipped else 0}


def write_table(wheel: Path) -> None:
    """Every combination that was tried with this wheel."""
    mine = digest(wheel.read_bytes())
    rows = []
    for each in COMBINATIONS:
        place = each.folder / "row.json"
        if place.exists():
            row = json.loads(place.read_text())
            if row["wheel"] == mine:
                rows.append(row)
    found = {"system": f"{platform.system()} {platform.machine()}", "combinations": rows}
    KEPT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    KEPT.with_suffix(".md").write_text(page(found))


HEAD = """\
# The wheel, where it was installed

<!-- source: installed.json -->
Made by `make test-matrix` (`dev/matrix.py`, which says what is installed, and `dev/installed.py`, what is checked) from [installed.json](installed.json), on {system}.
*modules*: all that were imported, and those that want a library of an extra, or a newer one for names on the hub, and say so. *teacher*: the largest difference of a decision of the shipped teacher from the repository's. *line*: collect, probe, distil and
evaluate, a few episodes and steps. *tests*: of the repository's, {files} files, against the wheel. Seconds by the clock. –: not run.

<!-- source: installed.json -->
| Python | libraries | {shown} | modules | teacher | line | tests | seconds | |
|---|---|{rules}---|---|---|---|---|---|
"""


def page(found: dict[str, Any]) -> str:
    said = HEAD.format(
        system=found["system"], files=len(TESTS), shown=" | ".join(SHOWN), rules="---|" * len(SHOWN)
    )
    notes = []
    if not found["combinations"]:
        said += "\nNone was tried with this wheel yet.\n"
    for row in found["combinations"]:
        said += "| " + " | ".join(cells(row)) + " |\n"
        for check, why in row["failed"].items():
            notes.append(f"- {row['python']}, {row['libraries']}, {check}: {why}")
        if row.get("above"):
            notes.append(
                f"- {row['python']}, {row['libraries']}: the lowest version allowed has no wheel, or another "
                f"library wants a newer one: {listed(row['above'])}"
            )
    if notes:
        said += "\n<!-- source: installed.json -->\n" + "\n".join(notes) + "\n"
    return said


def cells(row: dict[str, Any]) -> list[str]:
    installed = row.get("installed", {})
    made = [row["python"], row["libraries"], *(installed.get(name, "–") for name in SHOWN)]
    checks = row.get("checks", {})
    for name, how in CELLS.items():
        found = checks.get(name)
        if found is None:
            made.append("–")
        elif "failed" in found:
            made.append("failed")
        else:
            made.append(how(found))
    seconds = row.get("install_seconds", 0) + sum(each["seconds"] for each in checks.values())
    made.append(str(seconds))
    made.append("**failed**" if row["failed"] else "passed")
    return made


CELLS: dict[str, Callable[[dict[str, Any]], str]] = {
    "modules": lambda found: f"{found['imported']} + {len(found['want_extras'])}",
    "teacher": lambda found: f"{found['farthest']:.0e}",
    "line": lambda found: "passed",
    "tests": lambda found: f"{found['passed']} passed",
}


if __name__ == "__main__":
    main()
