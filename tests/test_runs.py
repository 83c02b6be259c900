"""Options reach every field of a recipe, and the scripts under runs/ call verbs, recipes and
options that exist."""

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from armlet import recipes
from armlet.__main__ import OF_PLACES, VERBS
from armlet.options import override
from armlet.recipe import to_json

ROOT = Path(__file__).parent.parent
RUNS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "runs").glob("*.sh"))
RUNS.remove("runs/gpu.sh")  # it calls a bench, and no verb


@pytest.mark.parametrize("name", recipes.available())
def test_a_recipe_without_options_is_itself(name: str) -> None:
    recipe = recipes.find(name)()
    options = []
    if recipe.benchmark is None:  # one's own robot, whose episodes have to be named
        options = ["--episodes", "here"]
        recipe = dataclasses.replace(recipe, episodes=Path("here"))
    assert override(recipe, options, "armlet") == recipe


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
        # A lever of the flagship each, left out.
        ("flagship_mt50", ["--student.steps", "None"], {"student": {"steps": None}}),
        ("flagship_mt50", ["--student.hidden", "None"], {"student": {"hidden": None}}),
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
