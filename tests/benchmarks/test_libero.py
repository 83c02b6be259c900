"""LIBERO itself: every task that is named is there, worlds are the same to the bit, pictures and
numbers are those that its policies know, and the expert brings things where they should be.

Needs the extra (`make test-libero`), about 15 minutes on two cores; what needs it not is tested in
`test_libero_expert.py`.
"""

import dataclasses
import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import mujoco
import numpy as np
import pytest

from armlet.benchmarks.libero import Libero, LiberoWorld
from armlet.benchmarks.libero.suites import FILES, VARIANTS, folder
from armlet.benchmarks.rendering import probe_egl
from armlet.rollout.actors import run_expert
from armlet.rollout.disturbance import Perturbation

pytestmark = [
    pytest.mark.libero,
    pytest.mark.skipif(
        importlib.util.find_spec("libero") is None,
        reason="the libero extra is not installed: pip install -e '.[libero]'",
    ),
    pytest.mark.timeout(1200),  # the first world of a process compiles for a minute
]
OBJECT = Libero()
SPATIAL = Libero(suite="libero_spatial")
GOAL = Libero(suite="libero_goal")


def world_of(
    name: str, number: int = 0, benchmark: Libero = OBJECT, split: str = "official"
) -> LiberoWorld:
    """The world of an official state, or of a seed."""
    task = {task.name: task for task in benchmark.tasks(split)}[name]
    seed = number if split == "seen" else number * len(benchmark.tasks())
    return benchmark.make(task, seed)


def digest(name: str, split: str = "official") -> str:
    """Of the state and of each picture of two observations of an episode that its expert moves, by
    name, so that a difference says where it is."""
    world = world_of(name, 3, split=split)
    parts = []
    for number in range(2):
        seen = world.observe()
        for what, values in {"state": seen.state, **seen.images}.items():
            parts.append(f"{number}:{what}:{hashlib.sha256(values.tobytes()).hexdigest()[:12]}")
        for _ in range(3):
            world.step(world.expert_action())
    world.close()
    return ",".join(parts)


def test_every_task_and_its_official_states_are_in_the_package() -> None:
    from armlet.benchmarks.libero.stage import paths

    places = paths()
    for suite, files in FILES.items():
        for split in ("official", *VARIANTS):
            for file in files.values():
                below = folder(suite, split)
                assert (Path(places["bddl_files"]) / below / f"{file}.bddl").is_file()
                states = Path(places["init_states"]) / below / f"{file}.pruned_init.npz"
                with np.load(states) as found:
                    assert len(found["states"]) >= 10


def test_a_users_own_configuration_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from armlet.benchmarks.libero.stage import paths

    (tmp_path / "config.yaml").write_text("assets: elsewhere\nbddl_files: elsewhere\n")
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    assert "elsewhere" not in str(paths())
    import libero.libero

    assert libero.libero.get_libero_path("assets") == paths()["assets"]


@pytest.mark.parametrize("split", ["official", "seen"])
def test_a_world_is_the_same_to_the_bit_after_others_and_in_another_process(split: str) -> None:
    here = Path(__file__).parent
    code = (
        f"import sys; sys.path.insert(0, {str(here)!r}); from test_libero import digest; "
        f"print(digest('milk', {split!r}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    world_of("milk", 7, split=split).close()
    first = digest("milk", split)
    assert digest("milk", split) == first == found.stdout.split()[-1]


def test_seeds_that_come_in_turn_meet_one_official_state_after_the_other() -> None:
    tasks = OBJECT.tasks("official")
    middles = []
    for number in (0, 1, 49, 50):
        world = OBJECT.make(tasks[3], 500_000_000 + 3 + number * len(tasks))
        middles.append(world.privileged()["subject"])
        world.close()
    assert np.array_equal(middles[0], middles[3])
    assert not np.allclose(middles[0], middles[1], atol=1e-4)
    assert not np.allclose(middles[0], middles[2], atol=1e-4)


def test_words_are_those_of_the_description_and_change_with_the_split() -> None:
    words = {}
    for split in ("official", "unseen_wordings", "unseen_tasks"):
        world = world_of("alphabet_soup", split=split)
        words[split] = world.instruction
        world.close()
    assert words["official"] == "pick the alphabet soup and place it in the basket"
    assert words["unseen_wordings"] == "grab alphabet soup and put it into basket"
    assert words["unseen_tasks"] == "pick the cream cheese and place it in the basket"


def test_pictures_and_numbers_are_those_that_liberos_policies_know() -> None:
    if not probe_egl():
        pytest.skip("EGL, in which LIBERO draws, does not work on this machine")
    from robosuite.utils.transform_utils import quat2axisangle

    world = world_of("alphabet_soup")
    stage = world.stage
    seen = world.observe()
    for name, view in (("scene", "agentview"), ("wrist", "robot0_eye_in_hand")):
        ours = seen.images[name].astype(float).mean(2)
        # As LIBERO draws it, in full: OpenGL's rows begin at the bottom, and all its policies turn
        # that by half a turn.
        from mujoco.egl import GLContext

        size = len(ours)
        context = GLContext(size, size)
        context.make_current()
        model = mujoco.MjModel.from_xml_string(stage.env.model.get_xml())
        data = mujoco.MjData(model)
        model.body_pos[:] = stage.model.body_pos
        model.body_quat[:] = stage.model.body_quat
        data.qpos[:] = stage.data.qpos
        mujoco.mj_forward(model, data)
        render = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, render)
        camera = mujoco.MjvCamera()
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = model.camera(view).id
        options = mujoco.MjvOption()
        options.geomgroup[0] = 0
        scene = mujoco.MjvScene(model, maxgeom=2000)
        mask = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(model, data, options, None, camera, mask, scene)
        rectangle = mujoco.MjrRect(0, 0, size, size)
        mujoco.mjr_render(rectangle, scene, render)
        raw = np.zeros((size, size, 3), np.uint8)
        mujoco.mjr_readPixels(raw, None, rectangle, render)
        # In this order: freed later, it would take things of the next context's that are numbered
        # alike.
        render.free()
        context.free()
        theirs = raw[::-1, ::-1].astype(float).mean(2)
        same = np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]
        mirrored = np.corrcoef(ours[:, ::-1].ravel(), theirs.ravel())[0, 1]
        assert same > 0.35 and same > mirrored + 0.2, name
    for observable in stage.env._observables.values():
        observable.set_active(True)
        observable.set_enabled(True)
    own = stage.env._get_observations(force_update=True)
    parts = [
        own["robot0_eef_pos"],
        quat2axisangle(own["robot0_eef_quat"]),
        own["robot0_gripper_qpos"],
    ]
    assert np.concatenate(parts) == pytest.approx(stage.state(), abs=1e-5)
    for observable in stage.env._observables.values():
        observable.set_active(False)
        observable.set_enabled(False)
    world.close()


def test_minus_one_opens_and_commands_go_where_they_say() -> None:
    world = world_of("butter")
    before = world.observe().state
    assert before[6] - before[7] > 0.07  # open, for things have come to rest
    for _ in range(10):
        world.step(np.array([0, 0.5, 0, 0, 0, 0, 1.0]))
    after = world.observe().state
    assert after[6] - after[7] < 0.01
    assert after[1] - before[1] > 0.03
    assert np.allclose(after[[0, 2]], before[[0, 2]], atol=0.015)
    turned = world.stage.scenery.turned
    for _ in range(6):
        world.step(np.array([0, 0, 0, 0, 0, 0.5, -1.0]))
    from armlet.benchmarks.libero.expert import yaw_of

    assert yaw_of(world.stage.scenery.turned) - yaw_of(turned) > 0.2
    with pytest.raises(ValueError, match="finite action"):
        world.step(np.zeros(4))
    with pytest.raises(ValueError, match="finite action"):
        world.step(np.full(7, np.nan))
    world.close()
    with pytest.raises(RuntimeError, match="closed"):
        world.observe()


def test_a_stage_is_used_again_and_the_copy_is_light_and_follows() -> None:
    world = world_of("butter")
    stage = world.stage
    for _ in range(15):
        world.step(world.expert_action())
    world.observe()
    copy = stage._copy()
    assert copy.model.nmeshface < 60_000 < stage.model.nmeshface
    mujoco.mj_kinematics(stage.model, stage.data)
    assert np.allclose(copy.data.xpos, stage.data.xpos, atol=1e-6)
    world.close()
    other = world_of("butter", 5)
    assert other.stage is stage
    other.close()


@pytest.mark.parametrize(
    ("benchmark", "name"),
    [
        (OBJECT, "alphabet_soup"),
        (OBJECT, "butter"),
        (SPATIAL, "between_plate_ramekin"),
        (SPATIAL, "next_to_ramekin"),
        (GOAL, "open_middle_drawer"),
        (GOAL, "turn_on_stove"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.suite,
)
def test_expert_succeeds(benchmark: Libero, name: str) -> None:
    outcomes = []
    for number in range(4):
        world = world_of(name, number, benchmark)
        outcomes.append(any(world.step(world.expert_action()) for _ in range(benchmark.max_steps)))
        world.close()
    assert sum(outcomes) >= 3


def test_disturbed_experts_are_recorded_for_a_data_set() -> None:
    benchmark = dataclasses.replace(OBJECT, scene_pixels=48, wrist_pixels=32)
    task = benchmark.tasks()[0]
    episode = run_expert(benchmark, task, 10_000_000, Perturbation(share=1.0, distracted=1.0))
    assert episode.recorded is not None
    assert episode.recorded.images["scene"].shape[1:] == (48, 48, 3)
    assert episode.recorded.action.shape == (episode.steps, 7)
    assert episode.recorded.state.shape == (episode.steps, 8)


def test_an_expert_that_cannot_says_so() -> None:
    world = world_of("bowl_in_drawer", benchmark=Libero(suite="libero_10"))
    assert world.privileged()["subject"].shape == (3,)
    with pytest.raises(NotImplementedError, match=r"'close white_cabinet_1.*leave the task out"):
        world.expert_action()
    world.close()
