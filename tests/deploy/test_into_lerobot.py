"""A student in LeRobot's layout is the same student; what LeRobot says in a batch is what armlet's
own loader says; and one action at a time is what the closed loop carries out."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_frames, make_policy

from armlet.benchmarks.tabletop import Tabletop
from armlet.data.frames import BatchMaker
from armlet.deploy.lerobot import (
    action_steps,
    lerobot_fields,
    pictures_of,
    save_lerobot,
    training_batch,
    write_lerobot,
)
from armlet.policies.checkpoint import (
    load_policy,
    policy_fingerprint,
    read_provenance,
    save_policy,
)
from armlet.policies.contract import Decision
from armlet.policies.pretrained.lerobot import MODES
from armlet.robot.ensemble import Adaptive, Ensemble, Exponential
from armlet.robot.observation import Observation, recent
from armlet.robot.spec import ObservationSpec, RobotSpec
from armlet.rollout.loop import run_task
from armlet.rollout.player import Player

PROVENANCE = {"recipe": {"name": "tiny", "teacher": "checkpoints/tabletop-teacher"}}


@pytest.fixture
def student(tmp_path) -> Path:
    save_policy(make_policy(), tmp_path / "student", provenance=PROVENANCE)
    return tmp_path / "student"


def as_lerobot(maker: BatchMaker, rows: np.ndarray, history: int) -> dict:
    """Rows of frames as LeRobot's data set and loader give them (`_get_query_indices`: what lies
    beyond an episode is its first or last frame, and marked)."""
    frames = maker.frames
    episode = np.searchsorted(frames.starts, rows, side="right") - 1
    first = frames.starts[episode][:, None]
    last = frames.starts[episode + 1][:, None] - 1
    wanted = rows[:, None] + np.array(action_steps(history, maker.chunk))
    seen = rows if history == 1 else rows[:, None] + np.arange(1 - history, 1)
    if history > 1:
        seen = np.maximum(seen, first)
    batch = {
        "observation.state": torch.from_numpy(frames.state[seen]),
        "action": torch.from_numpy(frames.actions[np.clip(wanted, first, last)]),
        "action_is_pad": torch.from_numpy((wanted < first) | (wanted > last)),
        "task": [frames.texts[frames.asked[row]] for row in rows],
    }
    for name, pictures in frames.images.items():
        shown = torch.from_numpy(pictures[seen.ravel()].reshape(*seen.shape, *pictures.shape[1:]))
        batch[f"observation.images.{name}"] = shown.movedim(-1, -3).float() / 255
    return batch


def test_the_folder_is_the_same_policy_and_says_what_lerobot_reads(student: Path, tmp_path) -> None:
    out = write_lerobot(student, tmp_path / "out")
    assert policy_fingerprint(out) == policy_fingerprint(student)
    assert read_provenance(out) == PROVENANCE
    rng = np.random.default_rng(0)
    pictures = {
        name: rng.integers(0, 256, (side, side, 3), np.uint8)
        for name, side in (("scene", 24), ("wrist", 16))
    }
    seen = Observation(pictures, np.zeros(4, np.float32), "touch it", np.zeros(4, np.float32))
    assert np.array_equal(load_policy(out).infer(seen), load_policy(student).infer(seen))
    config = json.loads((out / "config.json").read_text())
    assert config["type"] == "armlet" and config["provenance"] == {}
    assert (config["chunk_size"], config["n_action_steps"], config["n_obs_steps"]) == (3, 3, 1)
    assert config["input_features"]["observation.images.wrist"]["shape"] == [3, 16, 16]
    assert config["output_features"] == {"action": {"type": "ACTION", "shape": [4]}}
    steps = json.loads((out / "policy_preprocessor.json").read_text())["steps"]
    assert [step["registry_name"] for step in steps] == [
        "rename_observations_processor",
        "to_batch_processor",
        "device_processor",
        "normalizer_processor",
    ]
    # A student normalises itself: twice would be wrong, and silently so.
    assert {MODES[mode] for mode in steps[-1]["config"]["norm_map"].values()} == {"identity"}
    with pytest.raises(FileExistsError):
        write_lerobot(student, out)


def test_a_checkpoint_of_another_project_is_not_rewritten(tmp_path) -> None:
    golden = Path(__file__).parents[1] / "pretrained/golden/act/plain/pretrained_model"
    with pytest.raises(ValueError, match="checkpoint of another project"):
        write_lerobot(golden, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_save_by_lerobot_is_read_here(student: Path, tmp_path) -> None:
    """As the plugin saves what LeRobot fine-tuned: with LeRobot's own entries beside."""
    out = write_lerobot(student, tmp_path / "out")
    policy = load_policy(out)
    with torch.no_grad():
        next(policy.parameters()).add_(1e-3)
    fields = {**lerobot_fields(policy), "optimizer_lr": 1e-5, "fingerprint": "stale", "policy": {}}
    found = save_lerobot(policy, out, fields, {**PROVENANCE, "fine_tuned_from": "x"})
    assert policy_fingerprint(out) == found != policy_fingerprint(student)
    assert read_provenance(out)["fine_tuned_from"] == "x"
    config = json.loads((out / "config.json").read_text())
    assert config["optimizer_lr"] == 1e-5 and config["fingerprint"] == found
    assert torch.equal(next(load_policy(out).parameters()), next(policy.parameters()))


@pytest.mark.parametrize("history", [1, 3])
def test_lerobots_batch_is_ours(history: int) -> None:
    policy = make_policy()
    policy.history = history
    frames = make_frames()
    maker = BatchMaker(frames, policy.inputs, device=torch.device("cpu"))
    rows = np.arange(len(frames))  # beginnings and ends of episodes among them
    ours = maker.batch(rows)
    theirs = training_batch(policy, as_lerobot(maker, rows, history))
    for name in ("text", "text_mask", "actions", "actions_valid", "previous_action", "state"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    for name, pictures in ours.images.items():
        assert torch.equal(pictures, theirs.images[name])
    if history > 1:
        assert torch.equal(ours.earlier_actions, theirs.earlier_actions)
        assert torch.equal(ours.earlier_valid, theirs.earlier_valid)


def test_every_byte_of_a_picture_survives_the_way_through_floats() -> None:
    bytes_ = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    floats = bytes_.float()
    floats /= 255
    assert np.array_equal(pictures_of(floats, "x"), bytes_.movedim(1, -1).numpy())
    # And so does what a decoder leaves a little beside.
    assert np.array_equal(pictures_of(floats - 1e-6, "x"), bytes_.movedim(1, -1).numpy())
    assert np.array_equal(pictures_of(bytes_, "x"), bytes_.movedim(1, -1).numpy())
    with pytest.raises(ValueError, match="normalises pictures itself"):
        pictures_of(floats * 2 - 1, "x")


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("observation.images.wrist", "looks through observation.images.wrist"),
        ("observation.state", "reads observation.state"),
        ("task", "`task` is None"),
    ],
)
def test_what_a_batch_lacks_is_named(key: str, what: str) -> None:
    policy = make_policy()
    maker = BatchMaker(make_frames(), policy.inputs, device=torch.device("cpu"))
    batch = as_lerobot(maker, np.arange(3), 1)
    del batch[key]
    with pytest.raises(ValueError, match=what):
        training_batch(policy, batch)


class Remembers:
    """A policy that answers from all that it is shown: its past, the action before, the picture."""

    execute = 2

    def __init__(self, history: int, ensemble: Ensemble | None) -> None:
        self.history = history
        self.ensemble = ensemble
        world = Tabletop()
        self.robot = RobotSpec(world.action_spec, ObservationSpec.of(world.camera_sizes))

    def reset(self) -> None:
        """Remembers nothing itself."""

    def decide(self, seen: Observation) -> Decision:
        moments = recent(seen, self.history)
        told = np.concatenate([[each.state.sum()] for each in moments])
        ahead = np.arange(1, 5)[:, None] * np.array([0.3, -0.2, 0.1, 1.0])
        chunk = np.sin(ahead * (1 + told.sum()) + 0.5 * seen.previous_action + len(seen.past))
        return Decision(chunk.astype(np.float32), ())


@pytest.mark.parametrize("history", [1, 3])
@pytest.mark.parametrize("ensemble", [None, Exponential(0.1), Adaptive(2)])
def test_one_action_at_a_time_is_the_closed_loop(history: int, ensemble: Ensemble | None) -> None:
    benchmark = Tabletop(scene_pixels=64, wrist_pixels=64, step_limit=7)
    task = benchmark.tasks()[0]
    policy = Remembers(history, ensemble)
    whole = run_task(policy, benchmark, task, 3)
    player = Player(policy)
    for _ in range(2):  # and a reset forgets everything
        world = benchmark.make(task, 3)
        player.reset()
        for step in range(whole.steps):
            seen = world.observe()
            asked = player.observation(seen.images, seen.state, seen.instruction)
            action = player.act(seen.images, seen.state, seen.instruction)
            assert np.array_equal(asked.previous_action, seen.previous_action)
            assert np.array_equal(action, whole.executed[step])
            world.step(action)


def test_more_actions_than_a_chunk_has_are_refused() -> None:
    policy = Remembers(1, None)
    player = Player(policy, execute=5)
    with pytest.raises(ValueError, match="5 actions of each chunk"):
        player.act({}, np.zeros(4, np.float32), "")


def test_an_older_hub_library_does_for_folders_and_is_named_for_names() -> None:
    """As in LeRobot's environments."""
    older = "import huggingface_hub.errors as e; del e.CachedRepoTreeNotFoundError\n"
    for code, needed in (
        ("import armlet.deploy.lerobot", False),
        ("import armlet.data.download", True),
    ):
        done = subprocess.run(
            [sys.executable, "-c", older + code], capture_output=True, text=True, check=False
        )
        assert (done.returncode != 0) is needed, done.stderr
        assert ("need huggingface_hub 2.4 or newer" in done.stderr) is needed
