"""From a SmolVLA folder to a measured student, by command line; and what is refused on the way in,
each in a sentence."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_robots import few_steps, run

from armlet import inspect
from armlet.data.episodes import EpisodeDataset, EpisodeFrames, Features
from armlet.data.frames import BatchMaker, load_frames
from armlet.data.pictures import Pictures
from armlet.data.traces import TraceStore
from armlet.data.writer import EpisodeWriter
from armlet.evaluation import offline_report
from armlet.policies.checkpoint import load_policy, policy_fingerprint
from armlet.policies.contract import Backbone
from armlet.policies.pretrained import kinds, smolvla
from armlet.policies.pretrained.said import read_said
from armlet.policies.pretrained.smolvla_network import SmolVLA
from armlet.policies.routed import Routed
from armlet.robot.description import UnknownRobotError
from armlet.robot.observation import Observation

HERE = Path(__file__).parent / "golden" / "smolvla"
NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "jaw")
ROBOT = [
    *("--robot.mode", "delta", "--robot.rotation", "euler", "--robot.grippers"),
    *("--held-out", "0.4", "--evaluation.frames", "6"),
]


ROBOT_SAID = f"""
[robot]
names = {list(NAMES)}
mode = "delta"
rotation = "euler"
grippers = []
control_hz = 10.0
"""


def write_episodes(root: Path) -> None:
    """Three episodes of the robot that the checkpoint is for."""
    features = Features(NAMES[:6], NAMES, {"front": (72, 96), "wrist": (64, 64)})
    writer = EpisodeWriter(root, features, fps=10, robot="arm", metadata={})
    (file,) = (HERE / "pretrained_model").glob("*unnormalizer_processor.safetensors")
    measured = {name: tensor.numpy() for name, tensor in load_file(file).items()}

    def drawn(rng: np.random.Generator, key: str) -> np.ndarray:
        """Eight rows of numbers as the checkpoint's data had them."""
        mean = measured[f"{key}.mean"]
        values = mean + measured[f"{key}.std"] * rng.normal(size=(8, len(mean)))
        return values.astype(np.float32)

    for number in range(3):
        rng = np.random.default_rng(number)
        images = {}
        for name, size in features.cameras.items():
            images[name] = rng.integers(0, 255, (8, *size, 3), np.uint8)
        state = drawn(rng, "observation.state")
        action = drawn(rng, "action")
        writer.add(EpisodeFrames(images, state, action, {}, f"pick up cube {number}"))
    writer.finalise()


def write_said(place: Path, **changed: object) -> Path:
    """A policy.toml beside a copy of the checkpoint, whose config has other entries."""
    shutil.copytree(HERE / "pretrained_model", place / "smolvla", dirs_exist_ok=True)
    config = place / "smolvla" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    file = place / "policy.toml"
    file.write_text(f'checkpoint = "smolvla"\n[options]\nvlm = "{HERE / "vlm"}"\nsteps = 2\n')
    return file


@pytest.fixture(scope="module")
def episodes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("smolvla") / "episodes"
    write_episodes(root)
    return root


@pytest.mark.parametrize("recipe", ["actdistill", "first_k"])
def test_from_a_folder_of_lerobot_to_a_measured_student(
    recipe: str, episodes: Path, monkeypatch, tmp_path
) -> None:
    said = write_said(tmp_path)
    said.write_text(said.read_text() + ROBOT_SAID)
    page = inspect.main(str(said), episodes=episodes)
    assert "4 layers can be watched" in page and "decides 10 actions at a time" in page
    assert "action, 7 numbers" in page and "state, 6 numbers" in page
    assert "cameras: the checkpoint looks" not in page
    options = ["--episodes", str(episodes), "--out", str(tmp_path), "--teacher", str(said)]
    for verb in ("probe", "distil", "evaluate"):
        run(monkeypatch, verb, recipe, [*options, *ROBOT, *few_steps(recipe)])
    report = offline_report.read(tmp_path / "evaluation" / "report.json")
    assert [row.name for row in report.policies][:2] == ["teacher", recipe]
    student = load_policy(tmp_path / "student")
    teacher = load_policy(tmp_path / "policy.toml", robot=student.robot)
    assert isinstance(teacher, SmolVLA) and teacher.sizes.steps == 2
    assert teacher.robot.action.names == NAMES and teacher.robot.action.control_hz == 10
    inner = student.inner if isinstance(student, Routed) else student
    assert isinstance(inner, SmolVLA)
    assert not any("probe" in name or "semantic" in name for name, _ in student.named_parameters())
    if recipe == "first_k":
        assert student.layer_numbers == (0, 1)
    same_in_training(student, tmp_path, episodes)


def same_in_training(student: Backbone, place: Path, episodes: Path) -> None:
    """A frame as it was trained on and as a robot shows it: the same batch and the same answer, to
    the bit; the teacher's is the one in the store, as exactly as that keeps it."""
    teacher = load_policy(place / "policy.toml")
    frames = load_frames(EpisodeDataset(episodes), student.view, Pictures())
    made = BatchMaker(frames, student.inputs, device=torch.device("cpu")).batch(np.array([0]))
    seen = Observation(
        images={name: rows[np.array([0])][0] for name, rows in frames.images.items()},
        state=frames.state[0],
        instruction=frames.texts[frames.asked[0]],
        previous_action=np.zeros(7, np.float32),
    )
    asked = student.prepare([seen])
    for name in ("text", "text_mask", "state", "previous_action"):
        assert torch.equal(getattr(made, name), getattr(asked, name)), name
    for name, images in made.images.items():
        assert torch.equal(images, asked.images[name]), name
    with torch.inference_mode():
        trained = student(made)[0].numpy()
        answered = teacher(made)[0].numpy()
    assert np.array_equal(student.denormalise(trained), student.infer(seen))
    kept = TraceStore(place / "traces").read(np.array([[0, 0]]))["actions"][0]
    assert np.allclose(kept, answered, atol=2e-3)


# What is refused


def refused(place: Path, *expected: str, error: type[Exception] = ValueError) -> None:
    """Loading and describing say why, in one sentence that holds all of `expected`."""
    with pytest.raises(error) as raised:
        load_policy(place)
    said = str(raised.value)
    assert "\n" not in said and len(said) < 2000, said
    for each in expected:
        assert each in said, said


SAID = "[robot]\nmode='delta'\nrotation='none'\ngrippers=[]\ncontrol_hz=10.0\n"


def complete(place: Path, **changed: object) -> Path:
    """As `write_said`, with a robot."""
    file = write_said(place, **changed)
    file.write_text(file.read_text() + SAID)
    return file


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"n_obs_steps": 2}, "n_obs_steps is 2, expected 1"),
        ({"adapt_to_pi_aloha": True}, "adapt_to_pi_aloha is True, expected False"),
        ({"use_peft": True}, "merge its adapter"),
        ({"attention_mode": "both"}, "attention_mode is 'both', expected cross_attn, self_attn"),
        ({"resize_imgs_with_padding": 64}, "resize_imgs_with_padding is 64, expected a list of 2"),
        ({"num_vlm_layers": 9}, "num_vlm_layers is 9, and its VLM has 6"),
        ({"num_vlm_layers": 3}, "unexpected model.vlm_with_expert"),
        ({"num_expert_layers": 2}, "LeRobot cannot run it either"),
        ({"self_attn_every_n_layers": 3}, "k_proj.weight has shape (16, 36), expected (16, 16)"),
        ({"attention_mode": "self_attn"}, "has shape (16, 16), expected (16, 36)"),
        ({"expert_width_multiplier": 0.5}, "tensors differ"),
        ({"max_state_dim": 16}, "model.state_proj.weight has shape (48, 32), expected (48, 16)"),
        ({"max_action_dim": 5}, "max_action_dim is 5, and its features have 7 numbers"),
        ({"n_action_steps": 11}, "11 actions of a chunk are to be carried out, expected 1 to 10"),
        ({"chunk_size": None}, "chunk_size is None, expected a whole number"),
        ({"min_period": 0}, "min_period is 0, expected a finite number above 0"),
        ({"output_features": {}}, "has no 'action'"),
        ({"input_features": {}}, "has no 'observation.state'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changed: dict, said: str, tmp_path) -> None:
    refused(complete(tmp_path, **changed), said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("steps = 0", "steps is 0, expected a whole number from 1 on"),
        ('vision_positions = "left"', "vision_positions is 'left', expected right or shifted"),
        ('loss = "l1"', "loss is 'l1', expected masked or padded"),
        ('missing = ["top"]', "missing names top, and the checkpoint looks through front, wrist"),
        ('missing = ["front", "wrist"]', "all cameras are missing"),
        ("guidance = 1.5", "[options] has guidance, which has no effect here"),
        ('vlm = "nowhere"', "nowhere"),
    ],
)
def test_options_that_say_nothing_are_refused(options: str, said: str, tmp_path) -> None:
    file = complete(tmp_path)
    name = options.partition(" ")[0]
    kept = [line for line in file.read_text().splitlines() if not line.startswith(f"{name} ")]
    kept.insert(kept.index("[options]") + 1, options)
    file.write_text("\n".join(kept))
    refused(file, said, error=FileNotFoundError if name == "vlm" else ValueError)


def test_heads_are_never_guessed(tmp_path) -> None:
    """A VLM that is named and not there, one of other sizes, and one that nobody knows."""
    shutil.copytree(HERE / "pretrained_model", tmp_path / "smolvla")
    file = tmp_path / "policy.toml"
    file.write_text('checkpoint = "smolvla"\n' + SAID)
    refused(file, "SmolVLM2-500M-Video-Instruct", "of another VLM", "`vlm` in [options]")
    refused(
        complete(tmp_path / "unknown", vlm_model_name="user/other").with_name("smolvla"),
        "'user/other', whose sizes and heads are not in the checkpoint",
    )
    other = tmp_path / "vlm"
    shutil.copytree(HERE / "vlm", other)
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["num_attention_heads"] = 4
    (other / "config.json").write_text(json.dumps(config))
    file.write_text(f'checkpoint = "smolvla"\n[options]\nvlm = "vlm"\n{SAID}')
    refused(file, "is of another VLM than", "q_proj.weight has shape (48, 48), expected (64, 48)")
    del config["text_config"]["num_attention_heads"]
    (other / "config.json").write_text(json.dumps(config))
    refused(file, "vlm/config.json", "has no 'text_config.num_attention_heads'")
    (other / "config.json").write_text("{}")
    refused(file, "has no `text_config`")


def test_what_can_be_said_without_the_vlm(tmp_path) -> None:
    """Heads cannot: they are asked for, as a choice without a usual answer."""
    card = smolvla.describe(read_said(HERE / "pretrained_model"))
    assert card.sizes == {"language model": "4 layers, 48 wide"} and card.layers == 4
    (asked,) = [choice for choice in card.choices if choice.usual is None]
    assert asked.option == "vlm" and "are of another VLM" in asked.why


def test_words_that_cannot_be_had_are_asked_for(tmp_path, monkeypatch) -> None:
    place = tmp_path / "vlm"
    shutil.copytree(HERE / "vlm", place)
    (place / "tokenizer.json").unlink()
    file = complete(tmp_path)
    file.write_text(file.read_text().replace(str(HERE / "vlm"), str(place)))

    def away(*_: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr("armlet.layers.pretrained.hf_hub_download", away)
    refused(file, "cannot be had from the hub", "`tokenizer` in policy.toml")
    (place / "tokenizer.json").write_text("{}")
    refused(file, "is no tokenizer")


def test_a_tokenizer_of_more_words_than_the_network_has(tmp_path) -> None:
    weights = load_file(HERE / "pretrained_model" / "model.safetensors")
    place = tmp_path / "vlm"
    shutil.copytree(HERE / "vlm", place)
    config = json.loads((place / "config.json").read_text())
    config["text_config"]["vocab_size"] = 300
    (place / "config.json").write_text(json.dumps(config))
    file = complete(tmp_path)
    words = "model.vlm_with_expert.vlm.model.text_model.embed_tokens.weight"
    weights[words] = weights[words][:300].clone()
    save_file(weights, tmp_path / "smolvla" / "model.safetensors")
    file.write_text(file.read_text().replace(str(HERE / "vlm"), str(place)))
    refused(file, "the tokenizer has", "and the network 300: it is of another VLM")


def test_the_rate_of_its_actions_is_asked_for(tmp_path) -> None:
    refused(write_said(tmp_path), "control_hz", error=UnknownRobotError)


def test_a_camera_that_the_robot_lacks_is_named(tmp_path) -> None:
    file = complete(tmp_path)
    robot = load_policy(file).robot
    file.write_text(file.read_text() + "[cameras]\nwrist = 'hand'\n")
    assert list(load_policy(file).view.cameras) == ["front", "hand"]
    with pytest.raises(ValueError, match=r"looks through hand, and the robot has front, wrist"):
        load_policy(file, robot=robot)
    file.write_text(file.read_text().replace("'hand'", "'front'"))
    refused(file, "gives front to two cameras")


def test_words_tied_to_the_output_and_a_name_from_a_compiled_model(tmp_path) -> None:
    """A file may hold the one tensor under the other's name, and a prefix of torch's compiler."""
    file = complete(tmp_path)
    fingerprint = policy_fingerprint(file)
    path = tmp_path / "smolvla" / "model.safetensors"
    weights = load_file(path)
    words = "model.vlm_with_expert.vlm.model.text_model.embed_tokens.weight"
    head = "model.vlm_with_expert.vlm.lm_head.weight"
    weights[head] = weights.pop(words)
    compiled = {}
    for name, tensor in weights.items():
        compiled[name.replace("model.", "model._orig_mod.", 1)] = tensor
    right = load_policy(file).state_dict()
    save_file(weights, path)
    for name, tensor in load_policy(file).state_dict().items():
        assert torch.equal(tensor, right[name]), name
    assert policy_fingerprint(file) != fingerprint
    save_file(compiled, path)
    for name, tensor in load_policy(file).state_dict().items():
        assert torch.equal(tensor, right[name]), name


def test_a_step_that_is_not_smolvlas_is_refused(tmp_path) -> None:
    file = complete(tmp_path)
    place = tmp_path / "smolvla" / "policy_preprocessor.json"
    said = json.loads(place.read_text())
    step = {"registry_name": "relative_actions_processor", "config": {"enabled": True}}
    said["steps"].insert(0, step)
    place.write_text(json.dumps(said))
    refused(file, "relative_actions_processor", "policy_preprocessor.json: step 0")


def test_it_is_described_in_a_moment_without_a_weight(tmp_path, monkeypatch) -> None:
    file = complete(tmp_path)
    monkeypatch.setattr("armlet.policies.pretrained.files.Tensors.read", None)
    kinds.find(file)
    begun = time.perf_counter()
    # Statistics are read, a few numbers; weights are not.
    monkeypatch.undo()
    card = smolvla.describe(read_said(file))
    assert time.perf_counter() - begun < 1
    assert card.parameters == sum(
        tensor.numel() for tensor in load_file(tmp_path / "smolvla/model.safetensors").values()
    )
    assert card.dtypes == {"float32": 124} and card.steps == 2 and card.execute == 10
    assert {choice.option for choice in card.choices} == {"vision_positions", "loss", "steps"}
    assert any("not in the checkpoint" in line for line in card.remarks)
    assert [path.name for path in card.files][:2] == ["config.json", "model.safetensors"]
    assert sorted(card.unused)[0].endswith("lm_head.weight") and len(card.unused) == 2
