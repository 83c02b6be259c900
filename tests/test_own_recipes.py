"""Recipes for one's own robot through all verbs, on episodes that they know nothing of."""

import dataclasses
from pathlib import Path

import pytest
from tiny import tiny_recipe

from armlet import collect, distil, probe, recipes, teach
from armlet.policies.checkpoint import load_policy
from armlet.policies.fitting import FitsRobot
from armlet.policies.vla import VLANetwork
from armlet.recipe import Recipe, Stage

NAMES = [name for name in recipes.available() if recipes.make(name).benchmark is None]
SHORT = {"steps": 2, "batch_size": 4, "warmup": 1, "log_every": 1, "compile": False}


def short(stage: Stage) -> Stage:
    return dataclasses.replace(stage, **SHORT)


@pytest.fixture(scope="module")
def episodes(tmp_path_factory) -> Recipe:
    made = tiny_recipe(tmp_path_factory.mktemp("own"))
    collect.main(made)
    return made


def shrunk(recipe: Recipe, episodes: Recipe, out: Path) -> Recipe:
    """The recipe on a handful of episodes, with few steps and a smaller teacher."""
    network = recipe.network
    assert isinstance(network, FitsRobot)
    if isinstance(network.network, VLANetwork):
        sizes = dataclasses.replace(network.network, width=32, heads=2, vision_channels=8)
        network = dataclasses.replace(network, network=sizes)
    else:
        sizes = dataclasses.replace(network.network, width=24, heads=2, vision_layers=1)
        network = dataclasses.replace(network, network=sizes, primitives=8)
    fitted = recipe.probe and dataclasses.replace(recipe.probe, stage=short(recipe.probe.stage))
    return dataclasses.replace(
        recipe,
        benchmark=episodes.benchmark,  # a robot of whom nothing but this is known
        episodes=episodes.episodes,
        out=out,
        teacher=out / "teacher",
        network=network,
        teach=short(recipe.teach),
        probe=fitted,
        stages=tuple(map(short, recipe.stages)),
        held_out=0.2,
    )


def test_there_is_one_of_every_system() -> None:
    systems = {"actdistill", "dial", "action_kd", "first_k", "layer_drop", "random_skip", "bc",
               "vla_ad", "aed", "aed_actions", "vita_vla", "own", "published", "faithful",
               "published_budget", "layer_search", "bc_warm", "bc_long", "flagship"}  # fmt: skip
    assert set(NAMES) == systems


@pytest.mark.parametrize("name", NAMES)
def test_it_names_no_world_no_fact_and_no_camera(name: str) -> None:
    recipe = recipes.make(name)
    stages = [*recipe.all_stages, recipe.teach]
    wanted = {each for stage in stages for each in stage.objective.wants}
    assert not {each for each in wanted if each.startswith(("privileged", "pointed"))}
    assert not recipe.rounds
    assert not getattr(recipe.network.network, "strides", {})
    assert recipe.teacher == recipe.out / "teacher" and recipe.traces == recipe.out / "traces"


@pytest.mark.parametrize("name", ["actdistill", "aed", "vla_ad", "vita_vla", "bc", "dial",
                                  "faithful", "published_budget"])  # fmt: skip
def test_it_goes_from_episodes_to_a_student(name: str, episodes: Recipe, tmp_path) -> None:
    recipe = shrunk(recipes.make(name), episodes, tmp_path)
    teacher = load_policy(teach.main(recipe))
    probe.main(recipe)
    student = load_policy(distil.main(recipe))
    assert (student.chunk, student.execute) == (6, 2) == (teacher.chunk, teacher.execute)
    assert student.body.action_spec == teacher.body.action_spec
