"""Break the code in one place at a time, and see that a test notices: `make test-mutants`, or
`tests/mutants/run.py --help`.

The places stand in `*.toml` beside this file, one table an area:

    [[mutant]]
    name = "labels shifted by a step"     # what is wrong then, in words
    file = "src/armlet/data/frames.py"
    find = "rows[:, None] + steps"        # stands exactly once in the file, however its lines are
                                          broken
    replace = "rows[:, None] + 1 + steps"
    tests = ["tests/data/test_frames.py"] # files, or single tests as pytest names them
    named = true                          # optional: found unnoticed by an audit (`--named`)
    hangs = true                          # optional: a test that never ends counts as caught

A mutant is *caught* where one of its tests fails, and *survives* where all pass. It is an *error*
where it does not apply, or where the tests could not even be read (a mutant that breaks an import
says nothing about the tests). Anything but caught makes this program end with 1. What was found is
kept in `build/mutants.json`.

Each mutant is tried in a copy of the repository and in a process of its own. These are forked from
one that has imported torch and the like but nothing of armlet, which saves the seconds that these
imports take and changes nothing that the tests see: no bytecode is written, and where `armlet` was
imported from is checked. Of pytest's plugins only those are loaded that tests use: looking for
others takes longer than most tests. What caught a mutant the last time is tried first. Knows no
test and no line of armlet.
"""

import argparse
import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
LEFT_OUT = (
    "build",
    "out",
    "dist",
    "__pycache__",
    "checkpoints",
    ".git",
    ".venv*",
    ".*_cache",
    ".hypothesis",
    "*.egg-info",
)  # of the copies; checkpoints are linked, as they are large
PLUGINS = ("pytest_timeout", "_hypothesis_pytestplugin")
NOT_A_FINDING = (
    "ImportError",
    "ModuleNotFoundError",
    "SyntaxError",
    "IndentationError",
    "NameError",
)
# What armlet and its tests import, and takes long to.
HEAVY = (
    "torch",
    "torch._dynamo",
    "numpy",
    "scipy.stats",
    "pyarrow.parquet",
    "mujoco",
    "av",
    "PIL.Image",
    "einops",
    "jaxtyping",
    "beartype",
    "hypothesis",
    "tokenizers",
    "safetensors.torch",
    "transformers.models.vit.modeling_vit",
    "transformers.models.roberta.modeling_roberta",
    "transformers.models.clip.modeling_clip",
    "transformers.models.siglip.modeling_siglip",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.auto.modeling_auto",
    "peft",
    "matplotlib.pyplot",
    "tyro",
    "jinja2",
    "gymnasium",
    "statsmodels.stats.proportion",
)


@dataclass(frozen=True)
class Mutant:
    """One place to break. `area` is the name of the table that it stands in."""

    name: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]
    area: str
    named: bool = False
    hangs: bool = False


@dataclass
class Outcome:
    """How the tests took it. `verdict`: caught, survived, broken, timeout or inapplicable; `by` the
    test that failed first; `why` its
    last line; `failed` how many failed (one, unless all were run)."""

    verdict: str
    by: str = ""
    why: str = ""
    seconds: float = 0.0
    failed: int = 0


def read_tables(folder: Path) -> list[Mutant]:
    """All mutants, area by area. Raises ValueError with the table and the entry where one is not as
    it should be."""
    found: list[Mutant] = []
    known = {field.name for field in fields(Mutant)} - {"area"}
    for path in sorted(folder.glob("*.toml")):
        for number, entry in enumerate(tomllib.loads(path.read_text()).get("mutant", []), 1):
            missing, extra = (
                {"name", "file", "find", "replace", "tests"} - entry.keys(),
                entry.keys() - known,
            )
            if missing or extra or not entry["tests"]:
                raise ValueError(
                    f"{path}, entry {number}: missing {sorted(missing)}, unknown {sorted(extra)}; it needs at least one test"
                )
            found.append(Mutant(**{**entry, "tests": tuple(entry["tests"])}, area=path.stem))
    twice = [
        name
        for name, count in Counter((mutant.area, mutant.name) for mutant in found).items()
        if count > 1
    ]
    if twice:
        raise ValueError(f"mutants of the same name in one table: {twice}")
    return found


def copy_repository(root: Path, folder: Path) -> None:
    """What tests may read: everything but large and made things, which are linked or left out."""
    left_out = shutil.ignore_patterns(*LEFT_OUT)
    shutil.copytree(root, folder, ignore=left_out)
    if (root / "checkpoints").exists():
        (folder / "checkpoints").symlink_to((root / "checkpoints").resolve())


def broken_text(root: Path, mutant: Mutant) -> str:
    """The file as the mutant leaves it. Raises ValueError where the mutant does not apply (any
    more)."""
    path = root / mutant.file
    if not path.is_file() or not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"no longer applies: there is no {mutant.file} that may be broken")
    text = path.read_text()
    found = places(text, mutant.find)
    if len(found) != 1:
        raise ValueError(
            f"no longer applies: {mutant.find!r} stands {len(found)} times in {mutant.file}, expected once"
        )
    first, last = found[0]
    broken = text[:first] + mutant.replace + text[last:]
    if path.suffix == ".py":
        compile(broken, mutant.file, "exec")
    return broken


def places(text: str, wanted: str) -> list[tuple[int, int]]:
    """Where `wanted` stands in a text, from and to: as it is written, or else with its lines broken
    otherwise, as a formatter breaks
    them, which puts a comma behind the last of several lines."""
    exact = [(match.start(), match.end()) for match in re.finditer(re.escape(wanted), text)]
    if exact:
        return exact
    pieces = []
    for piece in re.findall(r"\w+|\S", wanted):
        if piece in ")]}" and pieces:
            pieces.append(r"(?:,\s*)?")
        pieces.append(re.escape(piece) + r"\s*")
    pattern = "".join(pieces).removesuffix(r"\s*")
    return [(match.start(), match.end()) for match in re.finditer(pattern, text)]


class Watch:
    """A pytest plugin: which tests failed and of what; those named in `first` are run before all
    others."""

    def __init__(self, first: tuple[str, ...] = ()) -> None:
        self.first = first
        self.failures: list[tuple[str, str]] = []
        self.unreadable = ""
        self.ran = 0

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: item.nodeid not in self.first)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.unreadable:
            self.unreadable = f"{report.nodeid} could not be collected: {str(report.longrepr).strip().splitlines()[-1]}"

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
        result = yield
        report = result.get_result()
        self.ran += report.when == "call" and not report.skipped
        if not report.failed:
            return
        kind = type(call.excinfo.value).__name__ if call.excinfo else ""
        line = str(call.excinfo.value).strip().splitlines()[:1] if call.excinfo else []
        if kind in NOT_A_FINDING and not self.unreadable:
            self.unreadable = f"{report.nodeid}: {kind}: {' '.join(line)}"
        self.failures.append((report.nodeid, f"{kind}: {' '.join(line)}"))


def run_tests(
    copy: Path, tests: tuple[str, ...], first: tuple[str, ...], stop: bool, answer: Path
) -> None:
    """In a process of its own: pytest on the copy. Writes what it found to `answer`, as JSON."""
    os.setsid()
    log = os.open(answer.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(copy)
    early = [name for name in sys.modules if name == "armlet" or name.startswith("armlet.")]
    assert not early, f"imported before the code was broken: {early}"
    # What is installed as armlet is somebody else's; what pytest finds in the working folder must
    # not stand before the copy. Beside other libraries an editable install lays the checkpoints
    # that come with armlet, in a folder of its name without code.
    sys.path[:] = [
        str(copy / "src"),
        *(
            entry
            for entry in sys.path
            if entry != str(HERE) and not (Path(entry) / "armlet/__init__.py").exists()
        ),
    ]
    sys.dont_write_bytecode = True
    os.environ.update(
        PYTHONPATH=str(copy / "src"),
        PYTHONDONTWRITEBYTECODE="1",
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
    )
    importlib.invalidate_caches()
    shutil.rmtree(
        copy / ".hypothesis", ignore_errors=True
    )  # an example that one mutant failed must not catch the next
    watch = Watch(first)
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        f"--basetemp={copy.parent / 'tmp'}",
        *(["-x"] if stop else []),
    ]
    if "hypothesis" in sys.modules:
        options += [word for plugin in PLUGINS for word in ("-p", plugin)] + ["--hypothesis-seed=0"]
    code = int(pytest.main([*options, *tests], plugins=[watch]))
    strays = [
        name
        for name, module in sys.modules.items()
        if name.split(".")[0] == "armlet"
        and not str(getattr(module, "__file__", None) or "").startswith(str(copy))
    ]
    assert not strays, f"not imported from the copy: {strays}"
    answer.write_text(
        json.dumps(
            {
                "code": code,
                "unreadable": watch.unreadable,
                "failures": watch.failures,
                "ran": watch.ran,
            }
        )
    )
    sys.stdout.flush()
    os._exit(0)


class Worker:
    """One copy of the repository, in which one thing at a time is broken and tried."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.copy = folder / "copy"
        self.answer = folder / "answer.json"
        copy_repository(root, self.copy)
        self.process: Any = None
        self.job: Any = None
        self._restore: dict[Path, str] = {}

    def start(
        self,
        job: Any,
        mutants: list[Mutant],
        tests: tuple[str, ...],
        first: tuple[str, ...],
        *,
        stop: bool = True,
    ) -> None:
        """Break the copy and begin. Raises ValueError where a mutant does not apply; the copy is
        whole then."""
        self.job, self.begun = job, time.monotonic()
        try:
            for mutant in mutants:
                text = broken_text(self.copy, mutant)
                path = self.copy / mutant.file
                self._restore.setdefault(path, path.read_text())
                path.write_text(text)
        except (ValueError, SyntaxError):
            self.mend()
            raise
        self.answer.unlink(missing_ok=True)
        arguments = (self.copy, tests, first, stop, self.answer)
        self.process = multiprocessing.get_context("fork").Process(target=run_tests, args=arguments)
        self.process.start()

    def end(self, *, late: bool) -> Outcome:
        """What came of it. `late`: the time was up."""
        with contextlib.suppress(
            ProcessLookupError
        ):  # itself, where it hangs, and what it left running
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        self.process = None
        self.mend()
        seconds = time.monotonic() - self.begun
        if late:
            return Outcome("timeout", why=f"not ended after {seconds:.0f} s", seconds=seconds)
        if not self.answer.exists():
            lines = self.answer.with_suffix(".log").read_text().strip().splitlines()
            return Outcome(
                "broken",
                why=f"the tests' process died: {(lines or ['nothing was printed'])[-1]}",
                seconds=seconds,
            )
        said = json.loads(self.answer.read_text())
        failures = said["failures"]
        by, why = failures[0] if failures else ("", "")
        if said["code"] == 1 and failures and not said["unreadable"]:
            return Outcome("caught", by, why, seconds, len(failures))
        if said["code"] == 0 and said["ran"]:
            return Outcome("survived", seconds=seconds)
        why = (
            said["unreadable"] or f"pytest ended with {said['code']}, {said['ran']} tests were run"
        )
        return Outcome("broken", by, why, seconds, len(failures))

    def mend(self) -> None:
        for path, text in self._restore.items():
            path.write_text(text)
        self._restore.clear()


def try_all(
    workers: list[Worker],
    jobs: list[tuple[Any, list[Mutant], tuple[str, ...], tuple[str, ...]]],
    limit: float,
) -> Iterator:
    """(job, outcome), as they end."""
    waiting = list(reversed(jobs))
    while waiting or any(worker.process for worker in workers):
        for worker in workers:
            while waiting and worker.process is None:
                job, mutants, tests, first = waiting.pop()
                try:
                    worker.start(job, mutants, tests, first)
                except (ValueError, SyntaxError) as error:
                    yield (
                        job,
                        Outcome(
                            "broken" if isinstance(error, SyntaxError) else "inapplicable",
                            why=str(error),
                        ),
                    )
        busy = [worker for worker in workers if worker.process]
        wait([worker.process.sentinel for worker in busy], timeout=1)
        for worker in busy:
            late = time.monotonic() - worker.begun > limit
            if late or not worker.process.is_alive():
                yield worker.job, worker.end(late=late and worker.process.is_alive())


def say(line: str) -> None:
    print(line, flush=True)


def chosen(mutants: list[Mutant], options: argparse.Namespace) -> list[Mutant]:
    """Those asked for. Raises ValueError where there are none."""
    caught = set()
    if options.left:
        for entry in earlier(options.results):
            if entry["verdict"] == "caught":
                caught.add((entry["area"], entry["name"]))
    found = [
        mutant
        for mutant in mutants
        if (mutant.area, mutant.name) not in caught
        and (not options.only or any(text in mutant.name for text in options.only))
        and (not options.area or mutant.area in options.area)
        and (mutant.named or not options.named)
    ]
    if not found:
        areas = sorted({mutant.area for mutant in mutants})
        raise ValueError(
            f"no such mutant: only={options.only}, area={options.area}; the areas are {', '.join(areas)}"
        )
    return found


def check_whole(workers: list[Worker], mutants: list[Mutant], limit: float) -> bool:
    """Whether all named tests pass where nothing is broken: else they would catch anything."""
    files = sorted({test.partition("::")[0] for mutant in mutants for test in mutant.tests})
    named = {
        file: sorted(
            {test for mutant in mutants for test in mutant.tests if test.startswith(f"{file}::")}
        )
        for file in files
    }
    whole = {file for mutant in mutants for file in mutant.tests if "::" not in file}
    jobs = [(file, [], (file,) if file in whole else tuple(named[file]), ()) for file in files]
    good = True
    for file, outcome in try_all(workers, jobs, limit):
        passed = outcome.verdict == "survived"
        good &= passed
        say(
            f"  {outcome.seconds:5.1f} s  {'passes' if passed else f'{outcome.verdict}: {outcome.by} {outcome.why}'}  {file}"
        )
    return good


def together(worker: Worker, mutants: list[Mutant], limit: float) -> int:
    """All of them broken at once and all their tests run to the end. Returns how many failed."""
    tests = tuple(sorted({test for mutant in mutants for test in mutant.tests}))
    worker.start(None, mutants, tests, (), stop=False)
    worker.process.join(limit)
    outcome = worker.end(late=worker.process.is_alive())
    say(
        f"{len(mutants)} at once: {outcome.verdict}, {outcome.failed} tests fail in {outcome.seconds:.0f} s {outcome.why}"
    )
    return outcome.failed


def run_mutants(
    workers: list[Worker], mutants: list[Mutant], options: argparse.Namespace
) -> dict[Mutant, Outcome]:
    """One after the other, each worker its own; a line for each."""
    before = {f"{entry['area']}/{entry['name']}": entry["by"] for entry in earlier(options.results)}
    jobs = [
        (mutant, [mutant], mutant.tests, (before.get(f"{mutant.area}/{mutant.name}", ""),))
        for mutant in mutants
    ]
    outcomes: dict[Mutant, Outcome] = {}
    begun = time.monotonic()
    for mutant, outcome in try_all(workers, jobs, options.limit):
        if outcome.verdict == "timeout" and mutant.hangs:
            outcome.verdict = "caught"
        outcomes[mutant] = outcome
        keep(options.results, {mutant: outcome}, time.monotonic() - begun)
        said = outcome.by if outcome.verdict == "caught" else f"{outcome.by} {outcome.why}".strip()
        say(
            f"{len(outcomes):4d}/{len(jobs)}  {outcome.seconds:5.1f} s  {outcome.verdict:12s}  {mutant.area}: {mutant.name}  {said}"
        )
    return outcomes


def earlier(path: Path) -> list[dict[str, Any]]:
    """What was found before, mutant by mutant."""
    return json.loads(path.read_text())["mutants"] if path.exists() else []


def keep(path: Path, outcomes: dict[Mutant, Outcome], seconds: float) -> None:
    """In place of what was known of these mutants; what is known of others stays. Called after
    each mutant, so that a run that is stopped can go on (`--left`)."""
    ours = {(mutant.area, mutant.name) for mutant in outcomes}
    entries = [entry for entry in earlier(path) if (entry["area"], entry["name"]) not in ours]
    entries += [
        {"area": mutant.area, "name": mutant.name, "file": mutant.file, **asdict(outcome)}
        for mutant, outcome in outcomes.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps({"seconds": seconds, "mutants": entries}, indent=1))
    partial.replace(path)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", help="mutants whose name contains this (may be repeated)"
    )
    parser.add_argument(
        "--area", action="append", help="the mutants of this table (may be repeated)"
    )
    parser.add_argument("--named", action="store_true", help="those that an audit found unnoticed")
    parser.add_argument(
        "--left",
        action="store_true",
        help="those that the results so far do not call caught: a stopped run goes on",
    )
    parser.add_argument(
        "--together",
        action="store_true",
        help="break all chosen places at once, and count the tests that fail",
    )
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (2)")
    parser.add_argument("--limit", type=float, default=180, help="seconds a mutant may take (180)")
    parser.add_argument(
        "--unchecked",
        action="store_true",
        help="do not first see that the tests pass where nothing is broken",
    )
    parser.add_argument(
        "--root", type=Path, default=HERE.parent.parent, help="the repository (this one)"
    )
    parser.add_argument(
        "--tables", type=Path, default=None, help="the folder of the tables (tests/mutants)"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=None,
        help="where what was found is kept (build/mutants.json)",
    )
    parser.add_argument("--cold", action="store_true", help="import nothing in advance")
    return parser.parse_args()


def main() -> int:
    options = parse()
    options.tables = options.tables or options.root / "tests" / "mutants"
    options.results = options.results or options.root / "build" / "mutants.json"
    begun = time.monotonic()
    try:
        mutants = chosen(read_tables(options.tables), options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in () if options.cold else HEAVY:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is shared with the processes to come stays shared: none of them goes through it
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        workers = [
            Worker(options.root, Path(folder) / str(number))
            for number in range(1 if options.together else options.jobs)
        ]
        if options.together:
            return 0 if together(workers[0], mutants, 10 * options.limit) else 1
        say(f"{len(mutants)} mutants; first their tests, with nothing broken:")
        if not options.unchecked and not check_whole(workers, mutants, 10 * options.limit):
            say("these tests fail without any mutant; nothing was tried")
            return 1
        outcomes = run_mutants(workers, mutants, options)
    return report(outcomes, time.monotonic() - begun)


def report(outcomes: dict[Mutant, Outcome], seconds: float) -> int:
    """A table by area, and once more what was not caught. Returns the program's exit status."""
    verdicts = ("caught", "survived", "broken", "timeout", "inapplicable")
    say("\n" + "".join(f"{name:>14s}" for name in ("area", *verdicts)))
    areas = sorted({mutant.area for mutant in outcomes})
    for area in [*areas, "all"]:
        count = Counter(
            outcome.verdict for mutant, outcome in outcomes.items() if area in (mutant.area, "all")
        )
        say(f"{area:>14s}" + "".join(f"{count[verdict]:>14d}" for verdict in verdicts))
    wrong = {mutant: outcome for mutant, outcome in outcomes.items() if outcome.verdict != "caught"}
    for mutant, outcome in wrong.items():
        say(f"{outcome.verdict}: {mutant.area}: {mutant.name} ({mutant.file}) {outcome.why}")
    say(f"{len(outcomes)} mutants, {len(outcomes) - len(wrong)} caught, in {seconds:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
