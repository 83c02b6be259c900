"""The published systems, each through all its verbs on a handful of episodes: its own teacher,
traces, stages and student."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import identity, tiny_recipe

from armlet import collect, distil, evaluate, probe, recipes, teach
from armlet.annotators.store import load_labels
from armlet.data.episodes import EpisodeDataset
from armlet.data.splits import Parts
from armlet.data.text import train_tokenizer
from armlet.data.transforms import ShuffledTeacher
from armlet.evaluation import offline
from armlet.policies.action_query import llama
from armlet.policies.checkpoint import load_policy
from armlet.policies.contract import Body
from armlet.policies.two_tower import TwoTowerNetwork
from armlet.recipe import Evaluation, OwnAverage, Recipe
from armlet.types import Batch

SMALL_LANGUAGE = llama(width=32, depth=3, heads=2)
SHORT = {"steps": 3, "batch_size": 8, "warmup": 1, "log_every": 1, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def episodes(tmp_path_factory) -> Recipe:
    made = tiny_recipe(tmp_path_factory.mktemp("systems"))
    collect.main(made)
    return made


def shrunk(network, **changes):
    """The recipe's own network, a fraction of its size, for the tiny cameras."""
    if isinstance(network, TwoTowerNetwork):
        sizes = {
            "width": 24,
            "heads": 2,
            "vision_layers": 1,
            "text_layers": 1,
            "patch": 16,
            "channels": 8,
            "chunk": 3,
        }
        return dataclasses.replace(network, **sizes, **changes)
    return dataclasses.replace(network, strides={"scene": 16, "wrist": 16}, **changes)


def tiny(recipe: Recipe, episodes: Recipe, out: Path, **student) -> Recipe:
    """A recipe of the package over tiny episodes."""

    def short(stage):
        objective = stage.objective
        if hasattr(objective, "grids"):
            theirs = (4, 4) if objective.teacher_grids else ()
            own = (8, 8) if objective.teacher_grids else (4, 4)
            objective = dataclasses.replace(objective, grids=own, teacher_grids=theirs)
        return dataclasses.replace(stage, objective=objective, compile=False, **SHORT)

    chosen = recipe.student
    if hasattr(chosen, "network"):
        chosen = dataclasses.replace(chosen, network=shrunk(chosen.network, **student))
    return dataclasses.replace(
        recipe,
        benchmark=episodes.benchmark,
        episodes=episodes.episodes,
        teacher=out / "teacher",
        out=out / recipe.name,
        shared=out,
        teach=short(recipe.teach),
        student=chosen,
        split="last",  # six episodes are too few for parts by task
        stages=tuple(map(short, recipe.stages)),
        rounds=tuple(
            dataclasses.replace(
                each, stage=short(each.stage), episodes=2, workers=1, trial=2, replay=5
            )
            for each in recipe.rounds
        ),
        evaluation=episodes.evaluation,
    )


def brief(recipe: Recipe) -> Recipe:
    """The same in a world in which episodes end early: what was hardly trained fails in any case."""
    return dataclasses.replace(
        recipe, benchmark=dataclasses.replace(recipe.benchmark, step_limit=9)
    )


@pytest.fixture(scope="module")
def aed(episodes: Recipe, tmp_path_factory) -> Recipe:
    out = tmp_path_factory.mktemp("aed")
    made = tiny(recipes.make("aed_tabletop"), episodes, out)
    made = dataclasses.replace(made, network=shrunk(made.network, fusion_layers=2))
    made = dataclasses.replace(made, network=dataclasses.replace(made.network, width=32))
    for verb in (teach, probe):
        verb.main(made)
    return made


def test_aed_goes_from_episodes_to_a_report(aed: Recipe) -> None:
    distil.main(aed)
    report = json.loads(evaluate.main(brief(aed)).read_text())
    assert [policy["name"] for policy in report["policies"]] == ["teacher", "aed_tabletop"]
    columns = report["training"]["aed_tabletop"][0]
    assert {"action", "imitation", "attention", "representation", "contrastive"} <= columns.keys()
    assert all(
        np.isfinite(columns[name]).all()
        for name in ("action", "attention", "representation", "contrastive")
    )
    student = load_policy(aed.student_folder)
    gripper = student.infer(episodes_observation(aed))[:, 3]
    assert set(np.round(gripper, 5)) <= {-1.0, 1.0}, (
        "what is chosen is one of 24 primitives, the gripper open or closed"
    )


def test_aed_with_other_patches_and_every_layer(aed: Recipe, episodes: Recipe, tmp_path) -> None:
    """The rows that differ in what is compared, at once: smaller patches than the teacher's, both
    fusion layers, and fingers whose opening is a number."""
    finer, deep = recipes.make("aed_finer_tabletop"), recipes.make("aed_layers_tabletop")
    stages = []
    for stage in finer.stages:
        said = dataclasses.replace(stage.objective, layers=(0, 1))
        stages.append(dataclasses.replace(stage, objective=said))
    made = dataclasses.replace(finer, traced=deep.traced, stages=tuple(stages))
    made = tiny(made, episodes, tmp_path, fusion_layers=2)
    network = dataclasses.replace(
        made.student.network,
        patch=8,
        head_options={**made.student.network.head_options, "refine_gripper": True},
    )
    student = dataclasses.replace(made.student, network=network)
    made = dataclasses.replace(made, student=student, teacher=aed.teacher, network=aed.network)
    probe.main(made)
    distil.main(made)
    policy = load_policy(made.student_folder)
    assert policy.grids == (8, 8) and policy.head.moving.tolist() == [1, 1, 1, 1]
    lines = (made.out / "distil-1" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert all(np.isfinite(last[name]) for name in ("attention", "representation", "imitation"))


def test_the_part_that_nobody_saw_is_scored_beside_the_episodes(
    aed: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    distil.main(aed)
    asked = Evaluation(untouched=True, frames=20, latency_calls=8)
    recipe = dataclasses.replace(aed, evaluation=asked)
    with pytest.raises(ValueError, match="calibrates its students on the episodes"):
        evaluate.main(recipe)
    # Six episodes are too few for parts by task: the last one stands for the third of these.
    cut = Parts(np.arange(4), np.array([4]), np.array([5]))
    monkeypatch.setattr(offline, "parts", lambda *_, **__: cut)
    # The student was made with another split, and is only asked here.
    path = evaluate.main(dataclasses.replace(recipe, split="tasks"))
    assert path == aed.out / "untouched" / "report.json"
    report = json.loads(path.read_text())
    assert [row["name"] for row in report["policies"]][:2] == ["teacher", "aed_tabletop"]
    assert report["compared"]["episodes"] == [5] and 0 < report["compared"]["frames"] <= 20


def episodes_observation(recipe: Recipe):
    benchmark = recipe.benchmark
    return benchmark.make(benchmark.tasks()[0], 1).observe()


def test_a_teacher_that_averages_its_student_resumes_to_the_same_end(
    aed: Recipe, episodes: Recipe, monkeypatch
) -> None:
    from armlet.training import trainer as training

    whole = dataclasses.replace(
        tiny(recipes.make("aed_self"), episodes, aed.out.parent), teacher=aed.teacher
    )
    killed = dataclasses.replace(whole, out=whole.out.with_name("killed"))
    update = training.Trainer._update

    def dies(trainer):
        if trainer.step == 2 and trainer.folder.name == "distil-1":
            raise KeyboardInterrupt
        return update(trainer)

    monkeypatch.setattr(training.Trainer, "_update", dies)
    with pytest.raises(KeyboardInterrupt):
        distil.main(killed)
    monkeypatch.undo()
    ends = [load_policy(distil.main(each)).state_dict() for each in (whole, killed)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    start = load_policy(aed.teacher).state_dict()
    assert any(not torch.equal(start[name], ends[0][name]) for name in start)


def test_an_average_of_another_shape_is_refused(aed: Recipe) -> None:
    stages = tuple(dataclasses.replace(stage, teacher=OwnAverage()) for stage in aed.stages)
    wrong = dataclasses.replace(aed, out=aed.out.with_name("wrong"), stages=stages)
    with pytest.raises(ValueError, match="must be the same network"):
        distil.main(wrong)


def test_the_feedback_loop_promotes_or_rolls_back(aed: Recipe, episodes: Recipe) -> None:
    online = tiny(recipes.make("aed_online"), episodes, aed.out.parent)
    distil.main(online)
    verdicts = [
        json.loads((online.out / f"round-{number}" / "trial.json").read_text())
        for number in range(len(online.rounds))
    ]
    assert all(
        verdict["promoted"] == (verdict["after"] >= verdict["before"]) for verdict in verdicts
    )
    assert {verdict["split"] for verdict in verdicts} == {"unseen_wordings"}


@pytest.fixture(scope="module")
def vita(episodes: Recipe, tmp_path_factory) -> Recipe:
    made = tiny(
        recipes.make("vita_vla_tabletop"),
        episodes,
        tmp_path_factory.mktemp("vita"),
        channels=8,
        language=SMALL_LANGUAGE,
    )
    made = dataclasses.replace(
        made, network=shrunk(made.network, width=32, depth=2, heads=2, vision_channels=8)
    )
    for verb in (teach, probe):
        verb.main(made)
    return made


def test_vita_vla_goes_from_episodes_to_a_report(vita: Recipe, episodes: Recipe) -> None:
    distil.main(vita)
    alone = tiny(
        recipes.make("vita_vla_finetune"),
        episodes,
        vita.out.parent,
        channels=8,
        language=SMALL_LANGUAGE,
    )
    folder = distil.main(alone)
    compared = dataclasses.replace(brief(vita), policies=(folder,))
    report = json.loads(evaluate.main(compared).read_text())
    assert [policy["name"] for policy in report["policies"]] == [
        "teacher",
        "vita_vla_tabletop",
        "vita_vla_finetune",
    ]
    assert (
        list(report["training"]["vita_vla_tabletop"][0])
        and "align" in report["training"]["vita_vla_tabletop"][0]
    )


@pytest.mark.parametrize("name", ["vita_vla_large", "vita_vla_shuffled"])
def test_the_rows_of_vita_vlas_claim_train(
    name: str, vita: Recipe, episodes: Recipe, tmp_path
) -> None:
    language = llama(width=48, depth=3, heads=2)
    made = tiny(recipes.make(name), episodes, tmp_path)
    student = dataclasses.replace(
        vita.student, network=dataclasses.replace(vita.student.network, language=language)
    )
    made = dataclasses.replace(made, teacher=vita.teacher, shared=vita.shared, student=student)
    distil.main(made)
    assert load_policy(made.student_folder).chunk == 3
    shuffled = [ShuffledTeacher() in stage.transforms for stage in made.stages]
    assert shuffled == [name == "vita_vla_shuffled", False]


def test_the_large_model_is_five_to_ten_times_its_expert() -> None:
    recipe = recipes.make("vita_vla_large")
    tokenizer = train_tokenizer(["touch the red cube"])
    body = Body(recipe.benchmark.action_spec, identity(4), identity(4), tokenizer)
    cameras = recipe.benchmark.cameras
    counts = []
    for network in (recipe.student.network, recipe.network):
        with torch.device("meta"):
            policy = network.build(body, cameras)
        counts.append(sum(each.numel() for each in policy.parameters()))
    assert 5 <= counts[0] / counts[1] <= 10


def test_the_alignment_leaves_the_experts_decoder_alone(vita: Recipe) -> None:
    aligned = dataclasses.replace(vita, out=vita.out.with_name("aligned"), stages=vita.stages[:1])
    student, expert = load_policy(distil.main(aligned)), load_policy(vita.teacher)
    for name, tensor in expert.head.state_dict().items():
        assert torch.equal(student.head.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    "recipe",
    [
        recipes.make("aed_tabletop"),
        recipes.make("aed_metaworld"),
        recipes.make("aed_families"),
        recipes.make("aed_self"),
    ],
    ids=lambda recipe: recipe.name,
)
def test_the_grids_that_losses_resize_are_those_that_the_networks_see(recipe: Recipe) -> None:
    body = Body(
        recipe.benchmark.action_spec,
        identity(len(recipe.benchmark.state_names)),
        identity(4),
        train_tokenizer(["push it"]),
    )
    teacher = recipe.network.build(body, recipe.benchmark.cameras)
    sample = Batch(
        {name: torch.zeros(1, 3, size, size) for name, size in recipe.benchmark.cameras.items()},
        *[torch.zeros(1, 1)] * 4,
    )
    student = recipe.student.build(teacher, sample)
    assert all(stage.objective.grids == teacher.grids == student.grids for stage in recipe.stages)


@pytest.mark.parametrize(
    "name", ["vla_ad_truth_both", "vla_ad_truth_shuffled", "vla_ad_constant", "vla_ad_phase_codes"]
)
def test_words_of_every_kind_are_told_to_a_student(
    name: str, aed: Recipe, episodes: Recipe, tmp_path
) -> None:
    """Labels of tabletop's own episodes, with the things that their instructions name."""
    made = tiny(recipes.make(name), episodes, tmp_path)
    network = dataclasses.replace(made.student.network, chunk=3, execute=2)
    made = dataclasses.replace(
        made,
        student=dataclasses.replace(made.student, network=network),
        teacher=aed.teacher,
        network=aed.network,
        probe=None,
        traced=("actions",),
    )
    probe.main(made)
    data = EpisodeDataset(made.episodes)
    labels = load_labels(made.labels, data, made.annotator)
    if name.startswith("vla_ad_truth"):
        for number, episode in enumerate(data.episodes):
            (element,) = set(labels.element[data.starts[number] : data.starts[number + 1]])
            assert element and element in episode.task
        assert labels.direction.any() and len(set(labels.description)) > 10
    distil.main(made)
    assert load_policy(made.student_folder).chunk == 3
