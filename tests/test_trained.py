"""What each stage of every recipe trains, and at full size how many numbers that are, against the
papers' (recipes.md)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import TEXTS, identity

from armlet import recipes
from armlet.benchmarks.tabletop import Tabletop
from armlet.data.text import train_tokenizer
from armlet.policies import action_query, clip_lora
from armlet.policies.contract import Backbone, Body, Network, Student
from armlet.policies.fitting import Choosing
from armlet.policies.layer_search import LayerSearch
from armlet.policies.lighter import LighterHead
from armlet.policies.routed import Routing
from armlet.policies.students import FirstK, LayerDrop, Whole
from armlet.recipe import Recipe, Stage
from armlet.robot.spec import ActionSpec
from armlet.training.learner import Learner
from armlet.training.trainer import trainable
from armlet.types import Batch

CAMERAS = {"scene": 72, "wrist": 48}
NAMES = [name for name in recipes.available() if recipes.make(name).student]
# A camera of the papers' size, and an arm with a gripper.
ARM = ActionSpec(
    tuple("xyzabcg"), "delta", "euler", (-1.0,) * 7, (1.0,) * 7, (6,), -1.0, 1.0, 10.0, 0.05
)


def body(spec: ActionSpec) -> Body:
    return Body(spec, identity(spec.dims + 1), identity(spec.dims), train_tokenizer(TEXTS))


def pictures(cameras: dict[str, int]) -> Batch:
    images = {name: torch.zeros(2, 3, side, side) for name, side in cameras.items()}
    words = torch.ones(2, 4, dtype=torch.int64)
    numbers = torch.zeros(2, 4)
    return Batch(images, words, words.bool(), numbers, numbers)


def searched_nothing(student: Student) -> Student:
    """The student without a search: which layers are kept is nothing here."""
    return FirstK(student.layers) if isinstance(student, LayerDrop | LayerSearch) else student


def student_of(recipe: Recipe) -> Backbone:
    """The recipe's student for a robot with these cameras."""
    world = recipe.benchmark
    spec = Tabletop().action_spec if world is None else world.action_spec
    cameras = CAMERAS if world is None else world.cameras
    network = recipe.network
    if isinstance(network, Choosing):
        actions = np.random.default_rng(0).uniform(-1, 1, (300, spec.dims)).astype(np.float32)
        network = network.suited(body(spec), actions)
    student = recipe.student
    if isinstance(student, LighterHead):
        lighter = replace(student, student=searched_nothing(student.student))
        return lighter.build(network.build(body(spec), cameras), pictures(cameras))
    return searched_nothing(student).build(network.build(body(spec), cameras), pictures(cameras))


def still(student: Backbone, stage: Stage) -> set[str]:
    """The parts of which something does not train, as patterns."""
    learner = Learner(student)
    known = (".privileged", ".pointers", "privileged", "pointers", "probe")
    asked = tuple(each for each in stage.train if not each.startswith(known))
    chosen = trainable(learner, replace(stage, train=asked))
    left = {name for name, _ in learner.named_parameters()} - set(chosen)
    parts = {"vision", "router", "head"}
    return {next((part for part in parts if f".{part}." in name), name) for name in left}


def papers(recipe: Recipe, stage: int) -> set[str]:
    """What stands still in a stage, as recipes.md and the recipes' own pages say it."""
    student = recipe.student
    lighter = isinstance(student, LighterHead)
    if isinstance(student, LighterHead):
        student = student.student
    kind = type(student)
    if kind is Whole and lighter:
        return {"vision"}  # the flagship's teacher goes on seeing with its own eyes
    if kind is Routing and student.chooser == "random":
        return {"vision"}
    if kind is Routing:
        later = stage > 0  # the router stands still once it is found
        return {"vision", "router"} if later else {"vision"}
    if kind in (FirstK, LayerDrop, LayerSearch) or recipe.name.startswith("bc_whole"):
        return {"vision"}
    if "vita_vla" in recipe.name and len(recipe.stages) == 2 and stage == 0:
        return {"head"}  # the expert's own decoder
    return set()


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_still_in_each_stage(name: str) -> None:
    recipe = recipes.make(name)
    student = student_of(recipe)
    for index, stage in enumerate(recipe.all_stages):
        assert still(student, stage) == papers(recipe, index), index


def full_size(network: Network) -> Backbone:
    with torch.device("meta"):
        return network.build(body(ARM), {"scene": 224})


def count(student: Backbone, stage: Stage) -> int:
    chosen = trainable(Learner(student), stage)
    return sum(each.numel() for each in chosen.values())


def test_vla_ad_at_full_size_trains_8_6_million_of_158() -> None:
    (stage,) = recipes.make("vla_ad").stages
    network = replace(clip_lora.published(), aux_heads=False)
    student = full_size(network)
    assert count(student, stage) == 8_562_688
    assert sum(each.numel() for each in student.parameters()) == 158_270_976
    # However it is asked for: the towers beneath low-rank additions never train.
    named = replace(stage, train=("policy.layers.*", "policy.head.*"))
    assert count(student, named) < 8_562_688
    with pytest.raises(ValueError, match=r"nothing to train;.* network itself keeps 397 of its"):
        trainable(Learner(student), replace(stage, train=("policy.patches.*",)))
    routed = Routing().build(student)
    router = sum(each.numel() for each in routed.router.parameters())
    assert count(routed, stage) == 8_562_688 + router


def test_vita_vla_at_full_size_aligns_29_million_and_then_leaves_its_eyes() -> None:
    align, finetune = recipes.make("vita_vla").stages
    student = full_size(action_query.published())
    everything = sum(each.numel() for each in student.parameters())
    eyes = sum(each.numel() for each in student.vision.parameters())
    assert everything == 7_529_527_095
    assert count(student, align) == 29_372_288, "the paper says about 30 M"
    assert count(student, finetune) == everything - eyes


@pytest.mark.parametrize("named", ["pretrained", "pretrained_vision"])
def test_only_what_is_pretrained_stands_still(named: str) -> None:
    align, finetune = recipes.make("vita_vla").stages
    network = replace(action_query.published(), scratch=None)
    student = full_size(network)
    student.network = replace(network, **{named: "somewhere"})  # as it is once it was fetched
    learns = set(trainable(Learner(student), align))
    language = {name for name in learns if name.startswith(("policy.layers.", "policy.words."))}
    tower = {name for name in learns if name.startswith("policy.vision.tower.")}
    assert bool(language) == (named == "pretrained_vision")
    assert bool(tower) == (named == "pretrained")
    assert any(name.startswith("policy.vision.project.") for name in learns), "it is new"
    eyes = {name for name in trainable(Learner(student), finetune) if ".vision.tower." in name}
    assert bool(eyes) == (named == "pretrained")


def test_a_network_from_before_says_nothing_of_it() -> None:
    made = replace(action_query.ActionQueryNetwork(), text_tokens=9)
    with torch.device("meta"):
        student = made.build(body(ARM), {"scene": 24})
    assert "scratch" not in student.to_json()["network"]
    assert not student.pretrained_weights and not student.kept_weights
