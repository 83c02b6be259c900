"""What a policy listens to where there is no world: on recorded frames, one input changed at a time."""

import json
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from robots import SEVEN, WORDS
from test_offline import body_of, spec_of

from armlet import audit
from armlet.data.episodes import EpisodeDataset
from armlet.data.pictures import Pictures
from armlet.evaluation import listening, offline, offline_report
from armlet.evaluation.action_errors import Recording
from armlet.evaluation.asking import Asker
from armlet.evaluation.listens import AS_IS
from armlet.policies.checkpoint import save_policy
from armlet.policies.contract import Policy
from armlet.policies.vla import VLANetwork
from armlet.robot.normalise import Normaliser
from armlet.robot.observation import Observation
from armlet.robot.spec import ObservationSpec, RobotSpec
from armlet.rollout.changes import Change

HELD_OUT = np.array([4, 5])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> EpisodeDataset:
    return SEVEN.write(tmp_path_factory.mktemp("seven"), episodes=6)


class Hears(Policy):
    """A policy whose answer is decided by one input alone, and by all of its bits."""

    execute = 1

    def __init__(self, data: EpisodeDataset, hears: str) -> None:
        self.hears = hears
        sizes = dict(data.cameras)
        dims = len(SEVEN.state)
        seen = ObservationSpec.of(sizes, state_names=SEVEN.state, state_dims=dims)
        self._robot = RobotSpec(spec_of(SEVEN), seen)
        self._mean = data.columns()["action"].mean(0)

    @property
    def robot(self) -> RobotSpec:
        return self._robot

    def infer(self, observation: Observation) -> np.ndarray:
        heard: Any = observation.images.get(self.hears.removeprefix("camera "))
        if self.hears == "words":
            heard = np.frombuffer(observation.instruction.encode(), np.uint8)
        if self.hears == "state":
            heard = observation.state
        if self.hears == "previous action":
            heard = observation.previous_action
        rng = np.random.default_rng(zlib.crc32(np.ascontiguousarray(heard).tobytes()))
        return self._mean + 0.1 * rng.normal(size=(2, len(self._mean)))


def compare(data: EpisodeDataset, policy: Policy, **options):
    return offline.evaluate({"p": policy}, data, HELD_OUT, shown=np.arange(4), calls=0, **options)


INPUTS = ("words", "state", "previous action", *(f"camera {name}" for name in SEVEN.cameras))


@pytest.mark.parametrize("hears", INPUTS)
def test_only_what_is_listened_to_moves_an_answer(hears, data, monkeypatch) -> None:
    dims = len(SEVEN.state)
    mean = Normaliser(np.zeros(dims, np.float32), np.full(dims, 0.5, np.float32))
    monkeypatch.setattr(listening, "state_normaliser", lambda policy: mean)
    report = compare(data, Hears(data, hears), listens=12)
    first, *others = report.listens
    assert (first.change, first.difference, first.moved) == (AS_IS, None, None)
    assert {row.of for row in others} == {hears}
    assert all(row.moved.mean > 0 for row in others)
    # As a difference at the same frames: what is said of both is what is between them.
    for row in others:
        if row.frames == first.frames:
            apart = row.error.mean - first.error.mean
            assert row.difference.mean == pytest.approx(apart, abs=1e-12)
    deaf = {each.of for each in report.listens_left_out if "to the bit" in each.why}
    assert deaf == set(INPUTS) - {hears}
    table = offline_report.table(report)
    assert f"| p | {others[0].change} | {others[0].frames} |" in table
    # It is read again as it was written.
    said = json.loads(json.dumps(report.to_json()))
    assert offline_report.from_json(said, source="x") == report


def test_as_it_is_it_errs_by_what_the_comparison_says(data) -> None:
    report = compare(data, Hears(data, "words"), listens=2000)
    [own] = [row for row in report.policies if row.name == "p"]
    assert report.listens[0].error == own.expert.share
    assert report.listens[0].frames == report.compared.frames
    # Nobody asked: nothing is said, and reports of before are read.
    plain = compare(data, Hears(data, "words"))
    assert plain.listens == plain.listens_left_out == ()
    before = plain.to_json()
    del before["listens"], before["listens_left_out"]
    assert offline_report.from_json({**before, "version": 2}, source="x").listens == ()


def test_what_is_shown_is_changed_as_the_episode_has_it(data) -> None:
    columns = data.columns()
    recording = Recording(columns["action"], columns["action"], data.starts, data.runs)
    asker = Asker(data, recording, columns["observation.state"], Pictures())
    images = asker.pictures_as(Hears(data, "words").robot.observation.view)
    rows = np.array([int(data.starts[1]), int(data.starts[1]) + 3, int(data.starts[4]) + 2])
    seen = asker.observations(rows, images)
    camera = next(iter(SEVEN.cameras))
    frozen = asker.changed(Change("frozen", camera=camera), rows, seen, images)
    for found, start in zip(frozen, data.starts[[1, 1, 4]], strict=True):
        assert np.array_equal(found.images[camera], images[camera][np.array([start])][0])
    others = asker.changed(Change("other_task"), rows, seen, images)
    for before, now in zip(seen, others, strict=True):
        assert {before.instruction, now.instruction} == set(WORDS)
    mixed = asker.changed(Change("shuffled"), rows, seen, images)
    for before, now in zip(seen, mixed, strict=True):
        assert now.instruction != before.instruction
        assert Counter(now.instruction.split()) == Counter(before.instruction.split())
    assert asker.said_instead(Change("other_thing"), 0) is None


def test_answers_are_never_reused_for_another_change(data, tmp_path) -> None:
    asked: list[str] = []

    class Counted(Hears):
        def infer(self, observation: Observation) -> np.ndarray:
            asked.append(observation.instruction)
            return super().infer(observation)

    known = offline.Known(fingerprints={"p": "a"})
    options = {"listens": 8, "kept": tmp_path, "known": known}
    first = compare(data, Counted(data, "words"), **options)
    assert len(first.listens) > 3
    assert len({row.error.mean for row in first.listens}) == len(first.listens)
    asked.clear()
    assert compare(data, Counted(data, "words"), **options) == first
    assert not asked


def test_the_verb_on_recorded_frames(data, tmp_path) -> None:
    network = VLANetwork(width=32, depth=2, heads=2, chunk=4, vision_channels=8)
    body = replace(body_of(SEVEN), fit="letterbox")
    policy = network.build(body, dict.fromkeys(SEVEN.cameras, 32)).eval()
    save_policy(policy, tmp_path / "mine", provenance={})
    out = tmp_path / "out"
    place = (str(tmp_path / "mine"),)
    page = audit.main(place, episodes=Path(data.root), count=6, held_out=0.4, out=out)
    said = json.loads((out / "audit.json").read_text())
    assert said["kind"] == "audit of frames"
    assert said["listens"][0]["change"] == AS_IS
    assert said["listens"][0]["frames"] == 6
    assert "no success rate" in page
    assert "does not say what it was trained on" in page
    # Its state has no statistics (identity), so that no mean can be taken.
    [state] = [each for each in said["left_out"] if each["of"] == "state"]
    assert "no statistics" in state["why"]
