"""From a checkpoint of π0 or π0.5 to a student of its own layers, by command line: probe, distil,
evaluate."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens.pi import Variant

from armlet import __main__ as command_line
from armlet import inspect
from armlet.data.episodes import EpisodeDataset, EpisodeFrames, Features
from armlet.data.frames import BatchMaker, load_frames
from armlet.data.writer import EpisodeWriter
from armlet.evaluation import offline_report
from armlet.policies.checkpoint import load_policy
from armlet.policies.pretrained.pi_network import Pi
from armlet.policies.routed import Routed
from armlet.robot.observation import Observation

GOLDEN = Path(__file__).parent / "golden"
STATE = ("a", "b", "c", "d", "e", "f")
ACTION = (*STATE, "jaw")
TASKS = ("pick up the red cube", "open_the drawer")


def write_episodes(root: Path, policy: Pi) -> EpisodeDataset:
    """Four of the policy's robot, with numbers as its statistics have them."""
    cameras = dict(policy.view.cameras)
    writer = EpisodeWriter(root, Features(STATE, ACTION, cameras), fps=10, robot="x", metadata={})
    for number in range(4):
        rng = np.random.default_rng(number)
        images = {}
        for name, size in cameras.items():
            images[name] = rng.integers(0, 255, (6, *size, 3), np.uint8)
        state = policy.body.state.invert(rng.uniform(-1, 1, (6, 6)).astype(np.float32))
        action = policy.body.actions.invert(rng.uniform(-1, 1, (6, 7)).astype(np.float32))
        task = TASKS[number % 2]
        writer.add(EpisodeFrames(images, state, action, {}, task, {"length": 6}))
    return writer.finalise()


@pytest.fixture(params=["pi0", "pi05"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with episodes and a checkpoint, and what is to be said of it."""
    variant = Variant.read(request.param, GOLDEN / request.param / "A")
    shutil.copytree(variant.folder, tmp_path / "checkpoint")
    write_episodes(tmp_path / "episodes", variant.load())
    names = ", ".join(f'"{name}"' for name in ACTION)
    (tmp_path / "policy.toml").write_text(
        'checkpoint = "checkpoint/pretrained_model"\ntokenizer = "checkpoint/tokenizer"\n'
        "[options]\nvision_heads = 2\nsteps = 3\n"
        '[robot]\nmode = "absolute"\nrotation = "none"\ngrippers = []\ncontrol_hz = 10\n'
        f"names = [{names}]\n"
    )
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, verb: str, recipe: str, options: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["armlet", verb, recipe, *options])
    try:
        command_line.main()
    except SystemExit as left:
        pytest.fail(f"armlet {verb} {recipe}: {left.code}")


def short(stage: str) -> list[str]:
    return [
        *(f"--{stage}.steps", "2", f"--{stage}.batch-size", "4", f"--{stage}.warmup", "1"),
        *(f"--{stage}.ema", "None", f"--{stage}.no-compile"),
    ]


def test_from_the_checkpoint_to_a_student_that_is_evaluated(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = inspect.main(str(place / "policy.toml"), episodes=place / "episodes")
    assert "a checkpoint of kind pi0" in page and "nothing speaks against it" in page
    described = ["--robot.mode", "absolute", "--robot.rotation", "none", "--robot.grippers"]
    places = ["--episodes", str(place / "episodes"), "--teacher", str(place / "policy.toml")]
    common = [*places, *described, "--held-out", "0.3", "--evaluation.latency-calls", "2"]
    routed = [*short("probe.stage"), *short("stages.0"), *short("stages.1")]
    cut = ["--student.layers", "2", *short("probe.stage"), *short("stages.0")]
    for recipe, options in (("actdistill", routed), ("first_k", cut)):
        out = place / recipe
        for verb in ("probe", "distil", "evaluate"):
            run(monkeypatch, verb, recipe, [*common, "--out", str(out), *options])
        report = offline_report.read(out / "evaluation" / "report.json")
        assert [row.name for row in report.policies][:2] == ["teacher", recipe]
        for row in report.policies[:2]:
            said = [value for step in row.expert.by_step for value in step if value is not None]
            assert said and np.isfinite(said).all()
        student = load_policy(out / "student")
        inner = student.inner if isinstance(student, Routed) else student
        assert isinstance(inner, Pi) and len(inner.layers) <= 3
        check_trained_as_deployed(student, EpisodeDataset(place / "episodes"))
    assert load_policy(place / "first_k" / "student").kept_layers == (0, 1)
    config = json.loads((place / "first_k" / "student" / "config.json").read_text())
    assert config["policy"]["type"].startswith("pretrained.pi0")


def check_trained_as_deployed(policy: Pi, data: EpisodeDataset) -> None:
    """What a policy makes of a row of the data, and of the same observation on a robot: the same
    bits, words and state among them."""
    frames = load_frames(data, policy.view)
    batches = BatchMaker(frames, policy.inputs, device=torch.device("cpu"))
    for row in (1, 8, 20):
        observation = Observation(
            images={name: pictures[np.array([row])][0] for name, pictures in frames.images.items()},
            state=frames.state[row],
            instruction=frames.texts[frames.asked[row]],
            previous_action=frames.executed[row - 1],
        )
        taught = batches.batch(np.array([row]))
        told = policy.prepare([observation])
        for name in ("text", "text_mask", "state", "previous_action"):
            assert torch.equal(getattr(taught, name), getattr(told, name)), name
        taught = dataclasses.replace(taught, budget=told.budget)
        with torch.inference_mode():
            assert torch.equal(policy(taught), policy(told))
