"""Meta-World: reproducible to the bit, solved by its experts, seen the right way up, and refused in
one sentence
where its packages are missing."""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import subprocess
import sys

import mujoco
import numpy as np
import pytest

from armlet import recipes
from armlet.benchmarks.metaworld import (
    BARE_GOALS,
    HELD_OUT,
    MT10,
    Metaworld,
    MetaworldWorld,
    require_extra,
)
from armlet.benchmarks.metaworld.language import WORDINGS
from armlet.benchmarks.rendering import probe_egl
from armlet.evaluation.settings import planned
from armlet.rollout.actors import run_expert
from armlet.rollout.disturbance import Perturbation

BENCHMARK = Metaworld()
TASKS = {task.name: task for task in BENCHMARK.tasks()}
missing = (
    importlib.util.find_spec("metaworld") is None
    or importlib.util.find_spec("fast_simplification") is None
)


def needs_extra(test):
    skip = pytest.mark.skipif(
        missing, reason="the metaworld extra is not installed: pip install -e '.[metaworld]'"
    )
    return pytest.mark.metaworld(skip(test))


def world_of(name: str, seed: int = 5, benchmark: Metaworld = BENCHMARK) -> MetaworldWorld:
    return benchmark.make(dataclasses.replace(TASKS["reach-v3"], name=name), seed)


def digest(name: str, seed: int = 5) -> str:
    """Of two observations of an episode that its expert moves."""
    world, parts = world_of(name, seed), []
    for _ in range(2):
        seen = world.observe()
        parts += [
            seen.images["scene"].tobytes(),
            seen.images["wrist"].tobytes(),
            seen.state.tobytes(),
        ]
        for _ in range(3):
            world.step(world.expert_action())
    world.close()
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_every_task_has_words_of_its_own_and_others_for_generalisation() -> None:
    assert len(WORDINGS) == 50 and WORDINGS.keys() > BARE_GOALS
    seen = [wording for wordings, _ in WORDINGS.values() for wording in wordings]
    unseen = [wording for _, wordings in WORDINGS.values() for wording in wordings]
    assert len(set(seen + unseen)) == len(seen + unseen)
    assert all(len(wordings) >= 3 and len(others) >= 2 for wordings, others in WORDINGS.values())


def test_what_cannot_be_run_is_refused() -> None:
    with pytest.raises(ValueError, match="no task"):
        Metaworld(task_names=("make-tea-v3",))
    with pytest.raises(ValueError, match="longest episode"):
        Metaworld(action_repeat=5, step_limit=101)
    with pytest.raises(ValueError, match="no split"):
        BENCHMARK.tasks("unseen_scenes")


def test_importing_is_cheap_and_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, armlet.benchmarks.metaworld; sys.exit('metaworld' in sys.modules or 'gymnasium' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def version(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    for call in (require_extra, BENCHMARK.fingerprint, lambda: world_of("push-v3")):
        with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[metaworld\]'"):
            call()


def test_action_spec_follows_the_repeat() -> None:
    spec, native = BENCHMARK.action_spec, Metaworld(action_repeat=1).action_spec
    assert (spec.control_hz, spec.translation_scale) == (20.0, 0.04)
    assert (native.control_hz, native.translation_scale) == (80.0, 0.01)


@needs_extra
def test_the_words_cover_metaworlds_tasks() -> None:
    import metaworld

    assert WORDINGS.keys() == metaworld.ALL_V3_ENVIRONMENTS.keys()


@needs_extra
def test_the_tasks_of_a_benchmark_are_metaworlds() -> None:
    from metaworld import env_dict

    assert set(MT10) == env_dict.MT10_V3.keys()
    assert set(HELD_OUT) == env_dict.ML45_V3["test"].keys()


def test_tasks_that_are_held_out_are_those_that_nobody_is_taught() -> None:
    unseen = Metaworld(task_names=("reach-v3", "door-lock-v3")).tasks("unseen_tasks")
    assert [task.name for task in unseen] == [name for name in HELD_OUT if name != "door-lock-v3"]
    assert {task.split for task in unseen} == {"unseen_tasks"}
    recipe = recipes.make("mt50")
    assert recipe.benchmark is not None
    with pytest.raises(ValueError, match="unseen_tasks, and metaworld has no task in it"):
        planned(recipe.benchmark, dataclasses.replace(recipe.evaluation, splits=("unseen_tasks",)))


@pytest.mark.parametrize(
    ("name", "tasks", "unseen"), [("mt50", 50, 0), ("ml45", 45, 5), ("mt10", 10, 5)]
)
def test_recipes_of_many_tasks(name: str, tasks: int, unseen: int) -> None:
    benchmark = recipes.make(name).benchmark
    assert isinstance(benchmark, Metaworld)
    taught = benchmark.tasks()
    assert len(taught) == len(set(taught)) == tasks
    held_out = {task.name for task in benchmark.tasks("unseen_tasks")}
    assert len(held_out) == unseen and not held_out & {task.name for task in taught}


@needs_extra
@pytest.mark.parametrize("name", TASKS)
def test_expert_succeeds(name: str) -> None:
    outcomes = []
    for seed in range(20):
        world = world_of(name, 7000 + seed)
        outcomes.append(any(world.step(world.expert_action()) for _ in range(BENCHMARK.max_steps)))
        world.close()
    assert np.mean(outcomes) >= 0.98


@needs_extra
@pytest.mark.parametrize("name", [*TASKS, "window-close-v3"])
def test_a_world_is_the_same_to_the_bit(name: str) -> None:
    first, second = world_of(name), world_of(name)
    assert first.stage is not second.stage
    for _ in range(3):
        a, b = first.observe(), second.observe()
        assert all(np.array_equal(a.images[camera], b.images[camera]) for camera in a.images)
        assert np.array_equal(a.state, b.state) and a.instruction == b.instruction
        assert all(
            np.array_equal(value, second.privileged()[fact])
            for fact, value in first.privileged().items()
        )
        action = first.expert_action()
        assert np.array_equal(action, second.expert_action())
        first.step(action)
        second.step(action)


@needs_extra
def test_a_world_is_the_same_after_others_and_in_another_process() -> None:
    code = f"import sys; sys.path.insert(0, {__file__.rsplit('/', 1)[0]!r}); from test_metaworld import digest; print(digest('drawer-open-v3'))"
    elsewhere = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    for seed in range(3):
        digest("drawer-open-v3", seed)
    assert digest("drawer-open-v3") == elsewhere != digest("drawer-open-v3", 6)


@needs_extra
def test_stages_are_given_back_and_a_closed_world_stays_closed() -> None:
    world = world_of("push-v3")
    stage = world.stage
    world.close()
    with pytest.raises(RuntimeError, match="closed"):
        world.step(np.zeros(4))
    forgotten = world_of("push-v3")
    assert forgotten.stage is stage
    del forgotten
    assert world_of("push-v3").stage is stage


@needs_extra
def test_wordings_change_with_the_split_and_the_scene_does_not() -> None:
    unseen = BENCHMARK.make(dataclasses.replace(TASKS["reach-v3"], split="unseen_wordings"), 5)
    seen = world_of("reach-v3")
    assert (
        seen.instruction in WORDINGS["reach-v3"][0]
        and unseen.instruction in WORDINGS["reach-v3"][1]
    )
    assert np.array_equal(seen.observe().images["scene"], unseen.observe().images["scene"])


@needs_extra
def test_a_repeated_command_is_the_native_one_several_times_over() -> None:
    slow, native = (
        world_of("drawer-open-v3"),
        world_of("drawer-open-v3", benchmark=Metaworld(action_repeat=1)),
    )
    action = np.array([0.3, -0.2, 0.5, 1.0])
    slow.step(action)
    for _ in range(BENCHMARK.action_repeat):
        native.step(action)
    assert np.array_equal(slow.observe().state, native.observe().state)


@needs_extra
def test_plus_one_closes_the_gripper_and_commands_go_where_they_say() -> None:
    world = world_of("reach-v3")
    before = world.observe().state
    for _ in range(5):
        world.step(np.array([1.0, 0.0, 0.0, 1.0]))
    after = world.observe().state
    assert after[3] < 0.6 * before[3]
    assert after[0] - before[0] == pytest.approx(
        5 * BENCHMARK.action_spec.translation_scale, abs=0.08
    )
    assert np.allclose(after[1:3], before[1:3], atol=0.02)
    with pytest.raises(ValueError, match="finite action"):
        world.step(np.zeros(7))
    with pytest.raises(ValueError, match="finite action"):
        world.step(np.array([0, np.nan, 0, 0]))


@needs_extra
def test_the_state_says_nothing_of_the_goal_and_privileged_facts_do() -> None:
    first, second = world_of("reach-v3", 1), world_of("reach-v3", 2)
    assert np.allclose(first.observe().state, second.observe().state, atol=1e-4)
    assert not np.allclose(first.privileged()["target"], second.privileged()["target"], atol=1e-3)
    assert all(
        fact.shape == (3,) and fact.dtype == np.float32 for fact in first.privileged().values()
    )
    while not first.step(first.expert_action()):
        pass
    assert np.linalg.norm(first.observe().state[:3] - first.privileged()["target"]) < 0.12


@needs_extra
def test_the_visual_copy_is_light_follows_the_simulation_and_stands_upright() -> None:
    world = world_of("drawer-open-v3")
    for _ in range(20):
        world.step(world.expert_action())
    world.observe()
    visual, running = world.stage._copy(), world.stage.env
    assert visual.model.nmeshface < 10_000 < running.model.nmeshface
    assert np.allclose(visual.data.xpos, running.data.xpos, atol=1e-6)
    for view in ("corner", "corner2", "corner3", "corner4"):
        assert visual.data.cam_xmat[visual.model.camera(view).id].reshape(3, 3)[2, 1] > 0
    hands = [model.camera("gripperPOV").id for model in (visual.model, running.model)]
    assert np.allclose(visual.data.cam_xmat[hands[0]], running.data.cam_xmat[hands[1]], atol=1e-6)


def blue(image: np.ndarray) -> int:
    red, green, blue = np.moveaxis(image.astype(int), -1, 0)
    return int(((blue > 2 * red) & (blue > 2 * green)).sum())


@needs_extra
@pytest.mark.parametrize("renderer", ["ray", "egl"])
def test_a_bare_goal_is_seen_and_nothing_blue_elsewhere(renderer: str) -> None:
    if renderer == "egl" and not probe_egl():
        pytest.skip("EGL does not work on this machine")
    benchmark = Metaworld(renderer=renderer)
    seen = [world_of("reach-v3", seed, benchmark).observe().images["scene"] for seed in range(6)]
    assert min(blue(image) for image in seen) >= 3
    assert blue(world_of("drawer-open-v3", 0, benchmark).observe().images["scene"]) == 0
    assert benchmark.fingerprint()["renderer"] == renderer


@needs_extra
def test_pixels_are_a_choice() -> None:
    world = world_of(
        "button-press-topdown-v3", benchmark=Metaworld(scene_pixels=96, wrist_pixels=32)
    )
    images = world.observe().images
    assert images["scene"].shape == (96, 96, 3) and images["wrist"].shape == (32, 32, 3)
    assert world.render(40).shape == (40, 40, 3) and world.render(40).dtype == np.uint8
    assert BENCHMARK.fingerprint()["mujoco"] == mujoco.__version__


@needs_extra
@pytest.mark.parametrize("name", TASKS)
def test_disturbed_experts_recover(name: str) -> None:
    rollouts = [
        run_expert(BENCHMARK, TASKS[name], 100 + seed, Perturbation(share=1.0)) for seed in range(5)
    ]
    assert all(rollout.success for rollout in rollouts)
    assert len(rollouts[0].recorded.images["scene"]) == rollouts[0].steps
