"""From a LeRobot folder of ACT or Diffusion Policy to a measured student, by command line; and the
student in the closed loop, where it sees what it was trained on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens.lerobot_kinds import drive
from pretrained.seeded import checkpoint
from safetensors.torch import load_file
from test_robots import few_steps, run

from armlet import inspect, recipes
from armlet.data.episodes import EpisodeDataset, EpisodeFrames, Features
from armlet.data.frames import BatchMaker, load_frames
from armlet.data.pictures import Pictures
from armlet.data.traces import TraceStore
from armlet.data.writer import EpisodeWriter
from armlet.evaluation import offline_report
from armlet.evaluation.action_errors import Recording
from armlet.evaluation.asking import Asker
from armlet.policies.checkpoint import load_policy
from armlet.policies.contract import Backbone
from armlet.policies.routed import Routed
from armlet.robot.fit import FitError, View

SIZES = {
    "act": {"top": (40, 48), "image": (32, 32)},
    "diffusion": {"top": (36, 36), "image": (36, 36)},
}
HISTORY = {"act": 1, "diffusion": 2}
LENGTH = 9
ROBOT = [
    *("--robot.mode", "delta", "--robot.rotation", "none", "--robot.grippers"),
    *("--held-out", "0.4", "--evaluation.frames", "6"),
]
SAID = """
[robot]
names = ["x", "y", "z"]
mode = "delta"
rotation = "none"
grippers = []
control_hz = 10.0
"""


def write_episodes(kind: str, folder: Path, root: Path) -> None:
    """Three episodes of the robot that a checkpoint is for, with numbers as its data had them."""
    features = Features(tuple("abcd"), tuple("xyz"), SIZES[kind])
    writer = EpisodeWriter(root, features, fps=10, robot="arm", metadata={})
    (file,) = (folder / "pretrained_model").glob("*_normalizer_processor.safetensors")
    measured = {name: tensor.numpy() for name, tensor in load_file(file).items()}
    for number in range(3):
        rng = np.random.default_rng(number)
        numbers = []
        for key in ("observation.state", "action"):
            mean = measured[f"{key}.mean"]
            drawn = mean + 0.5 * measured[f"{key}.std"] * rng.normal(size=(LENGTH, len(mean)))
            numbers.append(drawn.astype(np.float32))
        images = {}
        for name, size in features.cameras.items():
            images[name] = rng.integers(0, 255, (LENGTH, *size, 3), np.uint8)
        writer.add(EpisodeFrames(images, *numbers, {}, "do what you do"))
    writer.finalise()


@pytest.fixture(scope="module", params=["act", "diffusion"])
def made(request: pytest.FixtureRequest, tmp_path_factory) -> tuple[str, Path, Path]:
    """A kind, its `policy.toml` and episodes of its robot."""
    kind = request.param
    root = tmp_path_factory.mktemp(kind)
    folder = checkpoint(kind, "plain", root)
    said = root / "policy.toml"
    said.write_text(f'checkpoint = "{folder / "pretrained_model"}"\n{SAID}')
    write_episodes(kind, folder, root / "episodes")
    return kind, said, root / "episodes"


@pytest.mark.parametrize("recipe", ["actdistill", pytest.param("first_k", marks=pytest.mark.slow)])
def test_from_a_folder_of_lerobot_to_a_measured_student(
    recipe: str, made: tuple[str, Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kind, said, episodes = made
    page = inspect.main(str(said), episodes=episodes)
    assert f"a checkpoint of kind {kind}" in page and "nothing speaks against it" in page
    assert "action, 3 numbers" in page and "state, 4 numbers" in page
    options = ["--episodes", str(episodes), "--out", str(tmp_path), "--teacher", str(said)]
    for verb in ("probe", "distil", "evaluate"):
        run(monkeypatch, verb, recipe, [*options, *ROBOT, *few_steps(recipe)])
    report = offline_report.read(tmp_path / "evaluation" / "report.json")
    assert [row.name for row in report.policies][:2] == ["teacher", recipe]
    student = load_policy(tmp_path / "student")
    teacher = load_policy(said)
    assert student.history == teacher.history == HISTORY[kind]
    inner = student.inner if isinstance(student, Routed) else student
    assert type(inner) is type(teacher)
    assert not any("probe" in name or "semantic" in name for name, _ in student.named_parameters())
    if recipe == "first_k":
        assert student.layer_numbers == (0, 1)
    same_in_training(student, teacher, tmp_path, episodes)


def same_in_training(student: Backbone, teacher: Backbone, place: Path, episodes: Path) -> None:
    """A frame in the middle of an episode as it was trained on, as a data set is asked and as the
    closed loop shows it: the same batch and the same answer, to the bit; the teacher's is the one in
    the store, as exactly as that keeps it."""
    data = EpisodeDataset(episodes)
    frames = load_frames(data, student.view, Pictures())
    batches = BatchMaker(frames, student.inputs, device=torch.device("cpu"))
    recording = Recording(frames.actions, frames.executed, frames.starts, frames.begins)
    asker = Asker(data, recording, frames.state, Pictures())
    row = np.array([3])
    made = batches.batch(row)
    (seen,) = asker.raw(row, student.history)
    assert len(seen.past) == student.history - 1
    asked = student.prepare([seen])
    assert torch.equal(made.state, asked.state)
    assert torch.equal(made.previous_action, asked.previous_action)
    for name, images in made.images.items():
        assert torch.equal(images, asked.images[name]), name
    with torch.inference_mode():
        trained = student.denormalise(student(made)[0].numpy())
        answered = teacher(made)[0].numpy()
    assert np.array_equal(trained, student.infer(seen))
    # In the closed loop at every step: the first actions of what a data set is answered with.
    shown = asker.raw(np.arange(LENGTH), 1)
    told = drive(student, shown, student.robot.action, execute=1)
    for step, observation in enumerate(asker.raw(np.arange(LENGTH), student.history)):
        assert np.array_equal(student.infer(observation)[0], told[step])
    kept = TraceStore(place / "traces").read(np.array([[0, 3]]))["actions"][0]
    assert np.allclose(kept, answered, atol=2e-3)


@pytest.mark.parametrize("recipe", ["bc", "action_kd", "vla_ad"])
def test_a_student_with_eyes_of_its_own_beside_a_teacher_that_takes_any_picture(
    recipe: str, made: tuple[str, Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kind, said, episodes = made
    if kind != "act":
        pytest.skip("its pictures are square")
    options = ["--episodes", str(episodes), "--out", str(tmp_path), "--teacher", str(said)]
    options += [*ROBOT, *few_steps(recipe)]
    for verb in ("probe", "distil", "evaluate"):
        run(monkeypatch, verb, recipe, options)
    student = load_policy(tmp_path / "student")
    data = EpisodeDataset(episodes)
    assert set(student.view.cameras) == set(data.cameras)
    if recipe != "vla_ad":
        assert student.view.fit == "any"  # a network of the teacher's kind, with its eyes
        return
    assert student.view.fit == "letterbox" and set(student.view.cameras.values()) == {(96, 96)}
    seen = Asker(data, *asked(data), Pictures()).raw(np.array([3]), 1)[0]
    assert seen.images["top"].shape == (40, 48, 3)
    batch = BatchMaker(
        load_frames(data, student.view, Pictures()), student.inputs, device=torch.device("cpu")
    ).batch(np.array([3]))
    with torch.inference_mode():
        trained = student.denormalise(student(batch)[0].numpy())
    assert np.array_equal(trained, student.infer(seen))


def asked(data: EpisodeDataset) -> tuple[Recording, np.ndarray]:
    frames = load_frames(data, None, Pictures())
    recording = Recording(frames.actions, frames.executed, frames.starts, frames.begins)
    return recording, frames.state


def test_pictures_are_asked_for_only_where_somebody_sees_them_so() -> None:
    taught = View({"top": (40, 48)}, "any")
    asked_for = Pictures(fit="letterbox", size=48)
    own = replace(recipes.make("vla_ad"), pictures=asked_for)
    own.agree_on_pictures(taught)
    with pytest.raises(FitError, match="would have no effect"):
        own.agree_on_pictures(View({"top": (24, 24)}, "crop"))
    cut = replace(recipes.make("first_k"), pictures=asked_for)
    with pytest.raises(FitError, match="would have no effect"):
        cut.agree_on_pictures(taught)
