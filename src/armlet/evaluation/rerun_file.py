"""A film's episode for the Rerun viewer (`rerun FILE.rrd`): what the policies' cameras saw when they
looked, what was done at every step, which layers ran. A tree a policy:

    NAME/world           the picture of the film, at every step
    NAME/camera/CAMERA   what it looked at, when it looked
    NAME/action/NAME     what the robot was told, a number a dimension, at every step
    NAME/layers          1 for each layer that ran for that look, 0 for one that was skipped
    NAME/instruction     the words

on two timelines: `step`, and `time` in seconds of the robot. Its library is an extra, and imported
here when a file is written. Knows episodes; runs none.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from armlet.data.files import atomic_file
from armlet.policies.contract import Decision, Policy
from armlet.robot.ensemble import Ensemble
from armlet.robot.observation import Observation, history_of
from armlet.robot.spec import ActionSpec


def check() -> None:
    """Raises ModuleNotFoundError where the library is not installed."""
    if importlib.util.find_spec("rerun") is None:
        raise ModuleNotFoundError(
            "--evaluation.rerun: rerun is not installed; pip install 'armlet[rerun]', or leave the "
            "option out"
        )


@dataclass
class Watched:
    """A policy whose looks are kept."""

    policy: Policy
    looks: list[tuple[Observation, Decision]] = field(default_factory=list)

    @property
    def execute(self) -> int:
        return self.policy.execute

    @property
    def history(self) -> int:
        return history_of(self.policy)

    @property
    def ensemble(self) -> Ensemble | None:
        return self.policy.ensemble

    def decide(self, observation: Observation) -> Decision:
        decision = self.policy.decide(observation)
        self.looks.append((observation, decision))
        return decision

    def infer(self, observation: Observation) -> np.ndarray:
        return self.decide(observation).actions

    def reset(self) -> None:
        self.policy.reset()


@dataclass(frozen=True)
class Told:
    """One policy's episode: `frames` (T + 1, h, w, 3), `executed` (T, a), and its `looks`, one
    every `execute` steps."""

    name: str
    frames: np.ndarray
    executed: np.ndarray
    looks: Sequence[tuple[Observation, Decision]]
    execute: int


def write(path: Path, title: str, spec: ActionSpec, told: Sequence[Told]) -> None:
    """The whole file, or none."""
    import rerun

    with atomic_file(path) as part:
        stream = rerun.RecordingStream("armlet", recording_id=title)
        stream.save(str(part))
        for each in told:
            _write_one(stream, rerun, spec, each)
        stream.flush()
        stream.disconnect()


def _write_one(stream: Any, rerun: Any, spec: ActionSpec, told: Told) -> None:
    # A slash would make another branch of the tree.
    root = told.name.replace("/", "-")

    def at(step: int) -> None:
        stream.set_time("step", sequence=step)
        stream.set_time("time", duration=step / spec.control_hz)

    for step, frame in enumerate(told.frames):
        at(step)
        stream.log([root, "world"], rerun.Image(frame).compress())
    for step, action in enumerate(told.executed):
        at(step)
        for name, value in zip(spec.names, action, strict=True):
            stream.log([root, "action", name], rerun.Scalars(float(value)))
    for number, (seen, decision) in enumerate(told.looks):
        at(number * told.execute)
        for camera, picture in seen.images.items():
            stream.log([root, "camera", camera], rerun.Image(np.asarray(picture)).compress())
        if decision.gates:  # of a policy whose layers nobody knows there are none
            stream.log([root, "layers"], rerun.BarChart(np.array(decision.gates)))
    if told.looks:
        words = rerun.TextDocument(told.looks[0][0].instruction)
        stream.log([root, "instruction"], words, static=True)
