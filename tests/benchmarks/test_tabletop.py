"""Tabletop: reproducible to the bit, solved by its expert, and not solvable without reading the words."""

import dataclasses
import re

import numpy as np
import pytest

from armlet.benchmarks.tabletop import FAMILIES, Tabletop
from armlet.benchmarks.tabletop.language import SEEN, UNSEEN
from armlet.benchmarks.tabletop.scene import HELD_OUT, TABLES, UNSEEN_TABLES
from armlet.recording import Perturbation, roll_out

BENCHMARK = Tabletop()
TASKS = {task.name: task for task in BENCHMARK.tasks()}


def run_expert(task_name: str, seed: int, benchmark: Tabletop = BENCHMARK) -> bool:
    world = benchmark.make(TASKS[task_name], seed)
    return any(world.step(world.expert_action()) for _ in range(benchmark.max_steps))


@pytest.mark.parametrize("family", FAMILIES)
def test_expert_succeeds(family: str) -> None:
    outcomes = [run_expert(skill, 7000 + seed) for skill in FAMILIES[family] for seed in range(60 // len(FAMILIES[family]))]
    assert np.mean(outcomes) >= 0.98, f"{family}: {np.mean(outcomes):.3f}"


@pytest.mark.parametrize("name", TASKS)
def test_a_world_is_the_same_to_the_bit(name: str) -> None:
    first, second = (BENCHMARK.make(TASKS[name], 5) for _ in range(2))
    for _ in range(4):
        a, b = first.observe(), second.observe()
        assert all(np.array_equal(a.images[camera], b.images[camera]) for camera in a.images)
        assert np.array_equal(a.state, b.state) and a.instruction == b.instruction
        action = first.expert_action()
        assert np.array_equal(action, second.expert_action())
        first.step(action)
        second.step(action)


def test_seeds_and_splits_differ() -> None:
    task = TASKS["place"]
    pictures = [BENCHMARK.make(task, seed).observe().images["scene"] for seed in (0, 1)]
    assert not np.array_equal(*pictures)
    unseen = dataclasses.replace(task, split="unseen_scenes")
    assert not np.array_equal(pictures[0], BENCHMARK.make(unseen, 0).observe().images["scene"])


def test_held_out_objects_stay_out_of_seen_scenes_and_are_asked_for_in_unseen_ones() -> None:
    held_out = {f"{colour} {shape}" for colour, shape in HELD_OUT}
    for name in ("touch", "push", "place", "stack", "rake"):
        for seed in range(20):
            seen = BENCHMARK.make(TASKS[name], seed)
            names = {thing.name.replace("_", " ") for thing in seen._layout.things}
            assert not names & held_out
            unseen = BENCHMARK.make(dataclasses.replace(TASKS[name], split="unseen_objects"), seed)
            assert any(words in unseen.instruction for words in held_out)


def wording(instruction: str, skill: str) -> str | None:
    """The template, of all there are, that an instruction was made from; None where it is none's. Longer templates are tried first,
    since "put the a on top of the b" is also "put the a on the b" of a thing named "top of the b"."""
    for template in sorted((*SEEN[skill], *UNSEEN[skill]), key=len, reverse=True):
        if re.fullmatch(re.sub(r"\\{\w+\\}", r"[\\w ]+", re.escape(template)), instruction):
            return template
    return None


@pytest.mark.parametrize("name", TASKS)
def test_each_split_is_told_in_its_own_words_and_all_of_them(name: str) -> None:
    assert not set(SEEN[name]) & set(UNSEEN[name])
    for split, known in (("seen", SEEN), ("unseen_objects", SEEN), ("unseen_scenes", SEEN), ("unseen_wordings", UNSEEN)):
        task = dataclasses.replace(TASKS[name], split=split)
        found = {wording(BENCHMARK.make(task, seed).instruction, name) for seed in range(14)}
        assert found <= set(known[name]) and len(found) > 1, split


def test_unseen_scenes_have_another_table_and_light_and_no_other_split_has() -> None:
    for split in BENCHMARK.splits:
        looks = [BENCHMARK.make(dataclasses.replace(TASKS["touch"], split=split), seed)._layout.look for seed in range(16)]
        unseen = split == "unseen_scenes"
        assert {look.table for look in looks} == set(UNSEEN_TABLES if unseen else TABLES), split
        assert all((look.light[0] < 0) == unseen and (look.ambient < 0.41) == unseen for look in looks), split
        shift = np.abs([look.camera_shift for look in looks]).max()
        assert 0.02 < shift <= 0.035 if unseen else shift <= 0.006, split
    assert not set(TABLES) & set(UNSEEN_TABLES)


def test_no_split_draws_the_worlds_of_another() -> None:
    """The same task and seed: other things in other places, whatever the split changes besides."""
    for name in ("touch", "open"):
        made = [BENCHMARK.make(dataclasses.replace(TASKS[name], split=split), 3)._layout for split in BENCHMARK.splits]
        assert len({tuple(thing.position for thing in layout.things) for layout in made}) == len(made)


def test_the_instruction_is_needed() -> None:
    """An expert that acts on another scene's words (the right skill, the wrong thing) fails nearly always."""
    wins, episodes = 0, 0
    for name in ("touch", "push", "place", "open", "rake"):
        for seed in range(6):
            world = BENCHMARK.make(TASKS[name], seed)
            goal = world.goal
            others = [
                thing.name
                for thing in world._layout.things
                if thing.kind == ("drawer" if name == "open" else "object") and thing.name != goal.subject
            ]
            asked = dataclasses.replace(goal, subject=others[0])
            success = False
            for _ in range(40):
                world.goal = asked
                action = world.expert_action()
                world.goal = goal
                success = world.step(action)
                if success:
                    break
            wins, episodes = wins + success, episodes + 1
    assert wins / episodes <= 0.1


def beside_a_wrong_thing(distracted: float) -> float:
    """The share of frames of touching whose hand is over something that was not asked for, and no success is lost."""
    near = []
    for seed in range(12):
        rollout = roll_out(BENCHMARK, TASKS["touch"], 300 + seed, Perturbation(share=0, distracted=distracted))
        assert rollout.success
        world = BENCHMARK.make(TASKS["touch"], 300 + seed)
        others = [world.position(thing.name) for thing in world._layout.things if thing.name != world.goal.subject]
        lateral = [np.linalg.norm(rollout.state[:, :2] - place[:2], axis=1) for place in others]
        near.extend((np.min(lateral, 0) < 0.03) & (rollout.state[:, 2] < 0.1))
    return float(np.mean(near))


def test_distracted_hands_go_to_wrong_things_and_come_back() -> None:
    assert beside_a_wrong_thing(1.0) > 2 * beside_a_wrong_thing(0.0)
    rollouts = [
        roll_out(BENCHMARK, task, 40 + seed, Perturbation(share=0, distracted=1)) for task in TASKS.values() for seed in range(3)
    ]
    assert np.mean([rollout.success for rollout in rollouts]) >= 0.9


def test_recovery_data_still_succeeds_and_labels_are_the_experts() -> None:
    strong = Perturbation(share=1.0)
    rollouts = [roll_out(BENCHMARK, TASKS["stack"], 100 + seed, strong) for seed in range(20)]
    assert np.mean([rollout.success for rollout in rollouts]) >= 0.8
    changed = np.concatenate([np.abs(r.action - r.executed).max(1) for r in rollouts]) > 1e-6
    assert 0.1 < changed.mean() < 0.9
    first = rollouts[0]
    assert len(first.state) == len(first.action) == len(first.executed) == len(first.images["scene"])


def test_bad_actions_are_refused() -> None:
    world = BENCHMARK.make(TASKS["touch"], 0)
    with pytest.raises(ValueError, match="shape \\(4,\\)"):
        world.step(np.zeros(7))
    with pytest.raises(ValueError, match="finite"):
        world.step(np.array([0, np.nan, 0, 0]))


def test_pixels_are_a_choice() -> None:
    benchmark = Tabletop(scene_pixels=224, wrist_pixels=64)
    images = benchmark.make(TASKS["touch"], 0).observe().images
    assert images["scene"].shape == (224, 224, 3) and images["wrist"].shape == (64, 64, 3)
    with pytest.raises(ValueError, match="no family"):
        Tabletop(families=("cooking",)).tasks()
    with pytest.raises(ValueError, match="no split"):
        BENCHMARK.tasks("unseen")
