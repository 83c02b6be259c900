"""Options reach every field of a recipe, and the scripts under runs/ call verbs, recipes and
options that exist."""

import ast
import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from armlet import recipes, shards
from armlet.__main__ import OF_PLACES, VERBS
from armlet.options import override, read_fields
from armlet.recipe import Recipe, to_json

ROOT = Path(__file__).parent.parent
RUNS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "runs").glob("*.sh"))
RUNS.remove("runs/gpu.sh")  # it calls a bench, and no verb
# Of a recipe itself: each has others.
FOLDERS = (".class", ".name", ".episodes", ".teacher", ".out", ".shared")


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every number and word of a recipe as JSON, with the place where it stands."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from leaves(each, f"{place}.{name}")
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for number, each in enumerate(value):
            yield from leaves(each, f"{place}.{number}")
    else:
        yield place, repr(value)


def test_a_recipe_without_options_is_itself() -> None:
    """Recipes enough that every value of every field of every recipe, but for names of folders, is
    read back by the parser of options at least once."""
    seen: set[tuple[str, str]] = set()
    for name in recipes.available():
        recipe = recipes.find(name)()
        own = {leaf for leaf in leaves(to_json(recipe)) if leaf[0] not in FOLDERS} - seen
        if not own:
            continue
        seen |= own
        fields = {place.split(".")[1] for place, _ in own}
        assert read_fields(recipe, fields, [], "armlet") == {
            field: getattr(recipe, field) for field in fields
        }, name


@pytest.mark.parametrize("name", recipes.available())
def test_an_option_of_a_recipe_changes_its_field_alone(name: str) -> None:
    recipe = recipes.find(name)()
    options = ["--seed", "7"]
    if recipe.benchmark is None:  # one's own robot, whose episodes have to be named
        options += ["--episodes", "here"]
        recipe = dataclasses.replace(recipe, episodes=Path("here"))
    assert override(recipe, options, "armlet") == dataclasses.replace(recipe, seed=7)


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("first_k_tabletop", ["--student.layers", "5"], {"student": {"layers": 5}}),
        ("actdistill_tabletop", ["--student.budget", "0.5"], {"student": {"budget": 0.5}}),
        ("actdistill_tabletop", ["--student.no-use-state"], {"student": {"use_state": False}}),
        ("bc_tabletop", ["--student.student.layers", "3"], {"student": {"student": {"layers": 3}}}),
        ("tabletop", ["--network.depth", "12"], {"network": {"depth": 12}}),
        (
            "vla_ad_tabletop",
            ["--student.network.width", "48"],
            {"student": {"network": {"width": 48}}},
        ),
        (
            "vla_ad_tabletop",
            ["--annotator.embodiment.lift", "0.05"],
            {"annotator": {"embodiment": {"lift": 0.05}}},
        ),
        (
            "actdistill_tabletop",
            ["--stages.1.objective.action", "0"],
            {"stages": {1: {"objective": {"action": 0}}}},
        ),
        # Levers of the flagship, left out or added.
        ("flagship_mt50", ["--student.steps", "2"], {"student": {"steps": 2}}),
        ("flagship_mt50", ["--student.hidden", "64"], {"student": {"hidden": 64}}),
        (
            "flagship_mt50",
            ["--student.student.layers", "16"],
            {"student": {"student": {"layers": 16}}},
        ),
        ("tabletop", ["--benchmark.scene-pixels", "96"], {"benchmark": {"scene_pixels": 96}}),
    ],
)
def test_an_option_reaches_its_field_and_no_other(
    name: str, options: list[str], found: dict
) -> None:
    recipe = recipes.find(name)()
    before, after = to_json(recipe), to_json(override(recipe, options, "armlet"))

    def merge(old: object, new: object) -> object:
        if isinstance(old, list) and isinstance(new, dict):
            return [
                merge(item, new[index]) if index in new else item for index, item in enumerate(old)
            ]
        if isinstance(old, dict) and isinstance(new, dict):
            assert new.keys() <= old.keys()
            return old | {key: merge(old[key], value) for key, value in new.items()}
        return new

    assert after == merge(before, found) != before


@pytest.mark.parametrize("script", RUNS)
def test_what_a_script_calls_exists(script: str, tmp_path) -> None:
    """The script runs with an armlet that only writes down what it is asked; then each call is
    parsed as armlet would."""
    log, fake = tmp_path / "calls", tmp_path / "armlet"
    fake.write_text(
        f"#!/usr/bin/env bash\nprintf '%s\\t' \"$@\" >> {log}.$$\nmv {log}.$$ {log}.$$.done\n"
    )
    fake.chmod(0o755)
    subprocess.run(
        ["bash", ROOT / script],
        check=True,
        env=os.environ | {"ARMLET": str(fake)},
        timeout=60,
        capture_output=True,
    )
    calls = [path.read_text().rstrip("\t").split("\t") for path in tmp_path.glob("calls.*.done")]
    assert len(calls) > 3
    for verb, recipe, *options in calls:
        assert verb in VERBS
        if verb not in OF_PLACES:
            override(recipes.find(recipe)(), options, f"armlet {verb} {recipe}")


# A launcher in whose place a test stands: it writes down what it was to start.
LAUNCHER = """#!/usr/bin/env bash
printf '%s\\n' "$@" > {said}
"""
# So much of submitit as the script calls: jobs run where they are submitted.
SUBMITIT = """
class Job:
    def result(self): pass
class AutoExecutor:
    def __init__(self, folder, cluster): assert cluster in ("local", "slurm")
    def update_parameters(self, timeout_min, cpus_per_task): pass
    def submit(self, work, *arguments):
        work(*arguments)
        return Job()
"""


def parsed(words: list[str]) -> Recipe:
    """The recipe that a command of armlet, without its name, is about."""
    verb, name, *options = words
    assert verb in VERBS
    return override(recipes.find(name)(), options, f"armlet {verb} {name}", verb)


@pytest.mark.parametrize("verb", shards.VERBS)
def test_slurm_starts_tasks_that_share_a_verb(verb: str, tmp_path: Path) -> None:
    said = tmp_path / "said"
    srun = tmp_path / "srun"
    srun.write_text(LAUNCHER.format(said=said))
    srun.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_CPUS_PER_TASK": "16",
    }
    command = ["bash", ROOT / "runs/several.slurm", verb, "actdistill_tabletop", "--out", "here"]
    subprocess.run(command, check=True, env=environment, timeout=60)
    program, *words = said.read_text().splitlines()
    recipe = parsed(words)
    assert (program, recipe.shards.on, recipe.out) == ("armlet", "processes", Path("here"))
    workers = {
        "collect": recipe.collection.workers,
        "calibrate": recipe.calibration.workers,
        "evaluate": recipe.evaluation.workers,
    }
    assert workers.get(verb, 16) == 16


def test_submitit_starts_tasks_that_share_a_verb(tmp_path: Path) -> None:
    (tmp_path / "submitit.py").write_text(SUBMITIT)
    package = tmp_path / "armlet"
    package.mkdir()
    (package / "__init__.py").touch()
    written = f"import sys; open({str(tmp_path / 'said')!r}, 'a').write(repr(sys.argv[1:]) + '\\n')"
    (package / "__main__.py").write_text(written)
    script = ROOT / "runs/several_submitit.py"
    words = ["--tasks", "3", "--cluster", "slurm", "--", "evaluate", "actdistill_tabletop"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, script, *words], check=True, env=environment, timeout=60)
    lines = (tmp_path / "said").read_text().splitlines()
    assert len(lines) == 3
    assert parsed(ast.literal_eval(lines[0])).shards.on == "processes"


def test_kubernetes_starts_pods_that_share_a_verb() -> None:
    job = yaml.safe_load((ROOT / "runs/several.k8s.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    # What Kubernetes asks for where failures are counted by index, and evictions are none.
    assert spec["completionMode"] == "Indexed" and spec["backoffLimitPerIndex"] > 0
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    (container,) = spec["template"]["spec"]["containers"]
    program, *words = container["command"]
    recipe = parsed(words)
    assert (program, recipe.shards.on) == ("armlet", "processes")
    assert recipe.evaluation.workers == int(container["resources"]["requests"]["cpu"])
    volumes = {each["name"] for each in spec["template"]["spec"]["volumes"]}
    (mounted,) = container["volumeMounts"]
    assert mounted["name"] in volumes and recipe.out == Path(mounted["mountPath"])


def test_skypilot_starts_tasks_that_share_a_verb(tmp_path: Path) -> None:
    task = yaml.safe_load((ROOT / "runs/several.sky.yaml").read_text())
    assert task.keys() <= {"name", "resources", "envs", "workdir", "setup", "run"}
    said = tmp_path / "said"
    fake = tmp_path / "armlet"
    fake.write_text(LAUNCHER.format(said=said))
    fake.chmod(0o755)
    environment = os.environ | task["envs"] | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-euc", task["run"]], check=True, env=environment, timeout=60)
    recipe = parsed(said.read_text().splitlines())
    assert (recipe.shards.on, recipe.shards.at) == ("processes", task["envs"]["PLACE"])
