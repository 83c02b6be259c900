"""Policies against held-out episodes of robots that nobody simulates: what is asked, what is said of
it, and what a policy has seen before."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from robots import BLIND_TO_ITSELF, ROBOTS, SEVEN, WORDS, Robot

from armlet import evaluate as armlet_evaluate
from armlet import recipes, recompute
from armlet import report as report_page
from armlet.data.episodes import EpisodeDataset
from armlet.data.layout import Columns
from armlet.data.pictures import Pictures
from armlet.data.splits import parts
from armlet.data.text import train_tokenizer
from armlet.evaluation import offline, offline_report
from armlet.evaluation.action_errors import MEAN, REPEAT, THIRDS, Recording
from armlet.evaluation.asking import Asker
from armlet.evaluation.offline import Known, Labelled, seen_in_training
from armlet.evaluation.offline_report import OfflineReport, Seen
from armlet.evaluation.runtimes import Refused
from armlet.policies.checkpoint import save_policy
from armlet.policies.contract import Backbone, Body, Policy
from armlet.policies.students import FirstK
from armlet.policies.vla import VLANetwork
from armlet.recipe import Evaluation
from armlet.robot.normalise import Normaliser
from armlet.robot.observation import Observation
from armlet.robot.outputs import Decision
from armlet.robot.spec import ActionSpec, ObservationSpec, RobotSpec

EPISODES, CHUNK = 6, 4


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> EpisodeDataset:
    return SEVEN.write(tmp_path_factory.mktemp("seven"), episodes=EPISODES)


def spec_of(robot: Robot) -> ActionSpec:
    dims = len(robot.action)
    return ActionSpec(
        names=robot.action,
        mode=robot.mode,
        rotation=robot.rotation,
        low=(-1e4,) * dims,
        high=(1e4,) * dims,
        grippers=robot.grippers,
        gripper_open=robot.gripper_open,
        gripper_closed=robot.gripper_closed,
        control_hz=robot.hz,
        translation_scale=1.0,
    )


def body_of(robot: Robot) -> Body:
    def plain(dims: int) -> Normaliser:
        return Normaliser(np.zeros(dims, np.float32), np.ones(dims, np.float32))

    words = train_tokenizer(WORDS)
    return Body(spec_of(robot), plain(len(robot.state)), plain(len(robot.action)), words)


def robot_of(robot: Robot, cameras: dict[str, tuple[int, int]]) -> RobotSpec:
    seen = ObservationSpec.of(cameras, state_names=robot.state, state_dims=len(robot.state))
    return RobotSpec(spec_of(robot), seen)


@dataclass
class Scripted:
    """A policy that is no network: the expert's own chunk, found by what the robot feels and does,
    plus what `off` adds."""

    data: EpisodeDataset
    off: Callable[[np.ndarray], np.ndarray] = lambda chunk: chunk
    of: Robot = SEVEN
    chunk: int = CHUNK
    execute: int = 2
    asked: list[Observation] = field(default_factory=list)

    def __post_init__(self) -> None:
        columns = self.data.columns()
        self.robot = robot_of(self.of, dict(self.data.cameras))
        self._state, self._actions = columns["observation.state"], columns["action"]

    def decide(self, observation: Observation) -> Decision:
        self.asked.append(observation)
        same = (self._state == observation.state).all(1)
        (rows,) = np.nonzero(same)
        first = {tuple(self._actions[row]): row for row in rows}
        assert first, "no row of the data looks like this"
        # At rest several rows feel alike: the first of them, whose previous action differs.
        row = rows[0]
        ends = self.data.starts[np.searchsorted(self.data.starts, row, side="right")]
        steps = np.minimum(row + np.arange(self.chunk), ends - 1)
        return Decision(self.off(self._actions[steps]).astype(np.float32), ())

    def reset(self) -> None:
        pass


def compare(data: EpisodeDataset, policies: dict, **options) -> OfflineReport:
    split = parts(data, "last", 0.5)
    return offline.evaluate(policies, data, split.held_out, shown=split.train, calls=0, **options)


def row(report: OfflineReport, name: str):
    return next(each for each in report.policies if each.name == name)


def test_the_expert_errs_by_nothing_and_a_constant_by_itself(data) -> None:
    """At every step of the chunk, in every dimension, in the robot's units."""
    off = np.array([0.1, -0.2, 0.3, 0.0, 2.0, 0.05, 0.25], np.float32)
    shifted = Scripted(data, lambda chunk: chunk + off)
    report = compare(data, {"teacher": Scripted(data), "shifted": shifted}, frames=12)
    oracle, wrong = row(report, "teacher"), row(report, "shifted")
    assert max(oracle.expert.by_dimension) < 1e-6 and oracle.expert.share.mean < 1e-6
    assert oracle.teacher is None and oracle.cost is None
    for reference in (wrong.expert, wrong.teacher):
        np.testing.assert_allclose(reference.by_step, np.tile(np.abs(off), (CHUNK, 1)), atol=1e-6)
        np.testing.assert_allclose(reference.by_dimension, np.abs(off), atol=1e-6)
        assert list(reference.by_third) == list(THIRDS)
        for found in reference.by_third.values():
            np.testing.assert_allclose(found, np.abs(off), atol=1e-6)
    moving, scale = report.compared.moving, np.array(report.compared.scale)
    assert moving == (0, 1, 2, 3, 4, 5)  # the gripper is counted apart
    share = (np.abs(off) / scale)[list(moving)].mean()
    assert wrong.expert.share.mean == pytest.approx(share, rel=1e-5)
    assert row(report, MEAN).expert.share.mean == pytest.approx(1)


def test_pairs_are_differences_at_the_same_frames(data) -> None:
    off = np.array([0.1, 0, 0, 0, 0, 0, 0], np.float32)
    shifted = Scripted(data, lambda chunk: chunk + off)
    report = compare(data, {"teacher": Scripted(data), "shifted": shifted})
    pairs = {(pair.a, pair.b): pair for pair in report.pairs}
    found = pairs["shifted", "teacher"]
    assert found.by_dimension[0].mean == pytest.approx(0.1, rel=1e-5)
    assert found.by_dimension[0].ci95 == pytest.approx((0.1, 0.1), rel=1e-4)  # the same everywhere
    assert found.by_dimension[1].mean == pytest.approx(0, abs=1e-6)
    assert "teacher is nearer" in offline_report.sentence(found)
    assert pairs["teacher", MEAN].share.mean == pytest.approx(-1, abs=1e-5)
    low, high = pairs["teacher", MEAN].share.ci95
    assert low < -1 < high < 0
    swapped = dataclasses.replace(
        pairs["teacher", MEAN], share=dataclasses.replace(found.share, ci95=(-1, 1))
    )
    assert "no difference" in offline_report.sentence(swapped)


def test_a_policy_is_told_what_a_robot_would_know(data) -> None:
    policy = Scripted(data)
    report = compare(data, {"teacher": policy}, frames=10_000)
    held_out = parts(data, "last", 0.5).held_out
    rows = np.arange(data.starts[held_out[0]], data.starts[-1])
    assert report.compared.frames == report.compared.of_frames == len(rows) == len(policy.asked)
    columns = data.columns()
    for place in (0, 1, 5, len(rows) - 1):
        seen, number = policy.asked[place], rows[place]
        np.testing.assert_array_equal(seen.state, columns["observation.state"][number])
        before = columns["action"][number - 1] * (number not in data.starts)
        np.testing.assert_array_equal(seen.previous_action, before)
        assert seen.instruction == data.tasks[data.asked[number]]
        for camera in data.cameras:
            (picture,) = data.read_pictures(camera, number, number + 1)
            np.testing.assert_array_equal(seen.images[camera], picture)


def test_only_held_out_episodes_are_asked_for_and_no_more_than_frames(data) -> None:
    policy = Scripted(data)
    report = compare(data, {"teacher": policy}, frames=5)
    assert report.compared.episodes == (3, 4, 5) and report.compared.frames == 5
    assert len(policy.asked) == 5 and report.compared.of_frames > 20


def test_chunks_of_different_lengths_are_compared_where_both_have_steps(data) -> None:
    """An error in the steps that only the longer one has changes its curve and no mean."""
    late = np.array([0, 0, 1, 1])[:, None] * np.ones(7)
    long = Scripted(data, lambda chunk: chunk + late)
    report = compare(data, {"teacher": Scripted(data, chunk=2), "long": long})
    found = row(report, "long")
    assert report.compared.steps == 2 and found.chunk == 4 and len(found.expert.by_step) == 4
    assert max(found.expert.by_dimension) < 1e-6
    np.testing.assert_allclose(found.expert.by_step[3], 1, atol=1e-6)
    assert len(found.teacher.by_step) == 2


def test_phases_of_an_annotator_are_kept_apart(data) -> None:
    groups = np.arange(len(data)) % 2
    off = Scripted(data, lambda chunk: chunk + 1)
    labelled = Labelled(("idle", "grasping", "placing"), groups)
    report = compare(data, {"teacher": off}, labelled=labelled)
    phases = row(report, "teacher").expert.by_phase
    assert list(phases) == ["idle", "grasping"]
    np.testing.assert_allclose(phases["idle"], 1, atol=1e-6)
    assert "grasping" in offline_report.table(report)


def test_the_gripper_is_told_apart_from_the_arm(data) -> None:
    def never_closes(chunk: np.ndarray) -> np.ndarray:
        chunk = chunk.copy()
        chunk[:, 6] = SEVEN.gripper_open
        return chunk

    report = compare(data, {"teacher": Scripted(data), "open": Scripted(data, never_closes)})
    (right,), (wrong,) = row(report, "teacher").grippers, row(report, "open").grippers
    assert (right.name, right.agreement, right.at_changes) == ("gripper", 1.0, 1.0)
    assert wrong.agreement < 1 and wrong.at_changes == 0 and wrong.changes > 0
    assert row(report, "open").expert.share.mean < 1e-6
    assert row(report, REPEAT).grippers[0].at_changes == 0
    assert "same side as the expert" in offline_report.table(report)


def test_nan_is_refused_with_the_policy_and_the_row(data) -> None:
    bad = Scripted(data, lambda chunk: chunk * np.nan)
    with pytest.raises(ValueError, match=r"evaluate, student: .* NaN .* at row \d+"):
        compare(data, {"teacher": Scripted(data), "student": bad})


def test_a_policy_that_lacks_a_camera_is_refused_by_name(data) -> None:
    policy = Scripted(data)
    policy.robot = robot_of(SEVEN, {"front": (48, 64), "overhead": (48, 48)})
    with pytest.raises(ValueError, match=r"policy 'teacher' .*camera 'overhead'"):
        compare(data, {"teacher": policy})
    other = Scripted(data)
    other.robot = robot_of(BLIND_TO_ITSELF, dict(other.data.cameras))
    with pytest.raises(ValueError, match="action: the episodes have 7 numbers, the policy 3"):
        compare(data, {"teacher": Scripted(data), "student": other})
    assert not policy.asked


def test_a_network_is_asked_about_many_frames_at_once_and_answers_the_same(tmp_path) -> None:
    """A robot without a state, pictures of a size that is not the policy's."""
    robot = BLIND_TO_ITSELF
    robot.write(tmp_path, episodes=4)
    data = EpisodeDataset(tmp_path, Columns(state=None))
    torch.manual_seed(0)
    body = dataclasses.replace(body_of(robot), fit="stretch")
    sizes = VLANetwork(width=32, depth=2, heads=2, chunk=3, vision_channels=8)
    policy = sizes.build(body, {"top": 32}).eval()
    split = parts(data, "last", 0.5)
    report = offline.evaluate({"teacher": policy}, data, split.held_out, shown=split.train, calls=3)
    recording = Recording(*(data.columns()["action"],) * 2, data.starts, data.runs)
    asker = Asker(data, recording, data.columns()["observation.state"], Pictures())
    rows = recording.rows_of(split.held_out)
    together = asker.ask(policy, rows, "together")
    one = np.stack([policy.infer(each) for each in asker.raw(rows)])
    np.testing.assert_allclose(together.actions, one, atol=1e-5)
    assert together.gates.shape == (len(rows), 2)
    cost = row(report, "teacher").cost
    assert cost.keep_ratio == 1 and cost.activation == (1.0, 1.0) and cost.threads == 1
    assert cost.latency_ms["p50"] > 0 and cost.flops["total"] > cost.flops["backbone"] > 0


def test_a_student_with_half_of_the_layers_runs_half_of_its_teachers(tmp_path) -> None:
    """It runs all of its own, which says nothing of what it saves."""
    robot = BLIND_TO_ITSELF
    robot.write(tmp_path, episodes=3)
    data = EpisodeDataset(tmp_path, Columns(state=None))
    torch.manual_seed(0)
    body = dataclasses.replace(body_of(robot), fit="stretch")
    sizes = VLANetwork(width=32, depth=4, heads=2, chunk=3, vision_channels=8)
    teacher = sizes.build(body, {"top": 32}).eval()
    policies = {"teacher": teacher, "first_k": FirstK(2).build(teacher).eval()}
    split = parts(data, "last", 0.5)
    report = offline.evaluate(policies, data, split.held_out, shown=split.train, calls=2)
    header, _, *rows = offline_report.main_lines(report.policies)
    assert "of its own layers run | backbone FLOPs (teacher = 100 %)" in header
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0][-3:-1] == ["100 % of 4", "100 %"]
    assert cells[1][0] == "first_k" and cells[1][-3:-1] == ["100 % of 2", "50 %"]
    assert cells[2][-3:-1] == ["–", "–"] and len({len(each) for each in cells}) == 1


class InAGraph(Policy):
    """A network as if it had been exported: it acts, and nobody sees its layers."""

    def __init__(self, network: Backbone) -> None:
        self.network = network
        self.execute = network.execute

    @property
    def robot(self) -> RobotSpec:
        return self.network.robot

    def infer(self, observation: Observation) -> np.ndarray:
        return self.network.infer(observation)


def test_without_a_world_runtimes_are_compared_too(tmp_path, monkeypatch) -> None:
    robot = BLIND_TO_ITSELF
    robot.write(tmp_path, episodes=3)
    data = EpisodeDataset(tmp_path, Columns(state=None))
    torch.manual_seed(0)
    body = dataclasses.replace(body_of(robot), fit="stretch")
    sizes = VLANetwork(width=32, depth=4, heads=2, chunk=3, vision_channels=8)
    teacher = sizes.build(body, {"top": 32}).eval()
    student = FirstK(2).build(teacher).eval()
    policies = {"teacher": teacher, "first_k": student}
    policies["teacher onnx"] = InAGraph(teacher)
    policies["first_k onnx"] = InAGraph(student)
    times = {"teacher": 8.0, "first_k": 4.0, "teacher onnx": 3.0, "first_k onnx": 1.0}
    found = {name: dict.fromkeys(("p50", "p95", "p99"), value) for name, value in times.items()}
    monkeypatch.setattr(offline.measure, "latency", lambda *asked, **more: found)
    known = Known(
        exported_from={"teacher onnx": "teacher", "first_k onnx": "first_k"},
        runtimes={name: ("onnx" if "onnx" in name else "eager", "fp32") for name in policies},
        refused=(Refused("first_k onnx_int8", "first_k", "onnx", "int8", "parity: far off"),),
    )
    split = parts(data, "last", 0.5)
    report = offline.evaluate(
        policies, data, split.held_out, shown=split.train, calls=2, known=known
    )
    exported = row(report, "first_k onnx")
    assert exported.expert.by_dimension == pytest.approx(row(report, "first_k").expert.by_dimension)
    assert exported.cost.flops == row(report, "first_k").cost.flops is not None
    # 1 ms a decision, and `execute` of the robot's steps are carried out after each.
    assert exported.cost.ms_per_second_of_motion == pytest.approx(data.fps / student.execute)
    lines = offline_report.speed_lines(report)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells[3][:5] == ["first_k onnx", "onnx", "1.00", "3.00×", "8.00×"]
    assert cells[1][3:5] == ["2.00×", "2.00×"], "against the teacher in eager, its own runtime"
    pairs = {(pair.a, pair.b) for pair in report.pairs}
    assert {("first_k onnx", "teacher onnx"), ("first_k onnx", "first_k")} <= pairs
    said = offline_report.table(report)
    assert "- first_k onnx_int8 was not run: parity: far off" in said
    assert "first_k onnx − teacher onnx" in said
    assert offline_report.from_json(report.to_json(), source="it") == report


def test_a_report_from_before_there_were_runtimes_is_read(data) -> None:
    value = compare(data, {"teacher": Scripted(data)}).to_json()
    value["version"] = 1
    del value["refused"]
    for each in value["policies"]:
        for name in ("policy", "runtime", "precision", "exported_from"):
            del each[name]
    found = offline_report.from_json(value, source="it")
    assert found.refused == () and row(found, "teacher").runtime == "eager"
    assert row(found, "teacher").policy == "teacher" and not offline_report.speed_lines(found)


def test_an_evaluation_without_a_world_exports(tmp_path) -> None:
    """Nothing replaced: exported by armlet, at frames of episodes that it was shown."""
    robot = BLIND_TO_ITSELF
    robot.write(tmp_path / "episodes", episodes=24)
    torch.manual_seed(0)
    body = dataclasses.replace(body_of(robot), fit="stretch")
    sizes = VLANetwork(width=32, depth=2, heads=2, chunk=3, vision_channels=8)
    save_policy(sizes.build(body, {"top": 32}).eval(), tmp_path / "teacher")
    recipe = recipes.make("actdistill")
    recipe = dataclasses.replace(
        recipe,
        episodes=tmp_path / "episodes",
        columns=Columns(state=None),
        teacher=tmp_path / "teacher",
        out=tmp_path / "out",
        held_out=0.2,
        outside_range=1.0,
        evaluation=Evaluation(frames=20, latency_calls=3, runtimes=("eager", "onnx")),
    )
    path = armlet_evaluate.main(recipe)
    report = offline_report.read(path)
    exported = row(report, "teacher onnx")
    assert report.refused == () and (exported.runtime, exported.policy) == ("onnx", "teacher")
    assert exported.seen == row(report, "teacher").seen
    assert exported.expert.by_dimension == pytest.approx(
        row(report, "teacher").expert.by_dimension, rel=1e-3
    )
    assert "| teacher onnx | onnx |" in path.with_name("table.md").read_text()


def test_answers_are_kept_under_what_they_were_made_from(data, tmp_path) -> None:
    first = Scripted(data)
    known = Known(fingerprints={"teacher": "one"})
    before = compare(data, {"teacher": first}, known=known, kept=tmp_path)
    again = Scripted(data)
    after = compare(data, {"teacher": again}, known=known, kept=tmp_path)
    assert first.asked and not again.asked and before == after
    for changed, options in (
        ({"fingerprints": {"teacher": "two"}}, {}),
        ({"fingerprints": {"teacher": "one"}}, {"frames": 7}),
    ):
        policy = Scripted(data)
        compare(data, {"teacher": policy}, known=Known(**changed), kept=tmp_path, **options)
        assert policy.asked


def test_the_report_is_read_again_as_it_was_written(data, tmp_path) -> None:
    off = Scripted(data, lambda chunk: chunk + 0.1)
    known = Known(seen={"teacher": Seen("unseen", "it was not")})
    report = compare(data, {"teacher": off}, known=known)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report.to_json()))
    assert offline_report.read(path) == report
    for key, value, said in (("version", 99, "newer armlet"), ("kind", "else", "no report")):
        path.write_text(json.dumps(report.to_json() | {key: value}))
        with pytest.raises(ValueError, match=said):
            offline_report.read(path)
    cut = report.to_json()
    del cut["policies"][0]["expert"]
    path.write_text(json.dumps(cut))
    with pytest.raises(ValueError, match=r"policies\[0\] lacks 'expert'"):
        offline_report.read(path)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("policies", 0, "expert", "by_third"), "text", "by_third is 'text', expected an object"),
        (("policies", 0, "chunk"), 1.5, r"policies\[0\].chunk is 1.5, expected a whole number"),
        (("policies", 0, "kind"), "else", "kind is 'else', expected 'policy' or 'baseline'"),
        (("compared", "scale"), 3, "compared.scale is 3, expected a list"),
        (("compared", "robot", "control_hz"), "5", "control_hz is '5', expected a number"),
        (("compared", "robot", "mode"), "both", "mode is 'both', expected"),
        (("note",), None, "note is None, expected a text"),
    ],
)
def test_a_report_that_was_changed_by_hand_is_refused_by_its_field(
    place, value, said, data, tmp_path
) -> None:
    changed = compare(data, {"teacher": Scripted(data)}).to_json()
    there = changed
    for key in place[:-1]:
        there = there[key]
    there[place[-1]] = value
    path = tmp_path / "report.json"
    path.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=said) as raised:
        offline_report.read(path)
    assert str(path) in str(raised.value)
    with pytest.raises(ValueError, match="nothing was executed, so it stores no outcomes"):
        recompute.main((path,))


def test_table_and_picture_say_that_it_is_no_success_rate(data, tmp_path) -> None:
    far = Scripted(data, lambda chunk: chunk * 0 + 5)
    report = compare(data, {"teacher": Scripted(data), "far": far})
    table = offline_report.table(report)
    assert offline_report.NO_SUCCESS_RATE in table and "success |" not in table
    for name in (*SEVEN.action, "teacher", "far", MEAN, *THIRDS):
        assert name in table
    assert "far is no nearer to the expert than" in table
    assert "nobody said what it was trained on" in table
    offline_report.error_by_step(report, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_the_page_shows_it_and_tells_it_from_an_evaluation_in_a_world(data, tmp_path) -> None:
    folder = tmp_path / "a<b"
    folder.mkdir()
    report = compare(data, {"teacher": Scripted(data)}, made_with={"recipe": {"name": "<mine>"}})
    (folder / "report.json").write_text(json.dumps(report.to_json()))
    offline_report.error_by_step(report, folder / "error-by-step.png")
    page = report_page.main((folder,)).read_text()
    body = page[: page.index("<script")]
    for said in ("no success rate", "data:image/png;base64", "first third", "<td>dx</td>"):
        assert said in body
    assert "&lt;mine&gt;" in body and "<mine>" not in body and "a<b" not in body
    assert "success, %" not in body and "| " not in body.replace("<pre>", "")[:2000]
    (folder / "error-by-step.png").unlink()
    assert "does not lie beside" in report_page.main((folder,)).read_text()


def test_one_held_out_episode_has_no_interval_and_the_report_says_so(data) -> None:
    split = parts(data, "last", 0.01)
    report = offline.evaluate(
        {"teacher": Scripted(data)}, data, split.held_out, shown=split.train, calls=0
    )
    assert row(report, MEAN).expert.share.ci95 is None
    assert "--held-out" in offline_report.table(report)


def test_what_never_moves_is_named_and_not_counted(tmp_path) -> None:
    still = dataclasses.replace(SEVEN, across=((12, 0), (0, 0), *SEVEN.across[2:]))
    data = still.write(tmp_path, episodes=4)
    far = Scripted(data, lambda chunk: chunk + np.array([0, 9, 0, 0, 0, 0, 0]), of=still)
    report = compare(data, {"teacher": far})
    assert 1 not in report.compared.moving
    assert row(report, "teacher").expert.share.mean < 1e-6
    assert any("dy" in remark for remark in report.remarks)


# --- what a policy has seen


def test_who_was_trained_on_which_episodes(data) -> None:
    held_out = parts(data, "last", 0.3).held_out
    question = {"data": data.fingerprint, "split": "last", "held_out": 0.3}

    def verdict(**changes) -> Seen:
        return seen_in_training(question | changes, data, held_out)

    assert verdict().verdict == "unseen"
    assert verdict(held_out=0.5).verdict == "unseen"  # it left out more
    part = verdict(held_out=0.1)
    assert part.verdict == "seen" and "1 of these 2 episodes" in part.why
    assert verdict(held_out=None).verdict == "seen"
    assert verdict(data="another").verdict == "unknown"
    assert seen_in_training(None, data, held_out).verdict == "unknown"
    chosen = "a router's threshold was chosen on 2 of them"
    assert chosen in verdict(student={}).why, "of a recipe with a world"
    assert chosen not in verdict(student={}, reported=True).why and chosen not in verdict().why


def test_a_student_of_a_teacher_that_knew_them_is_not_called_unseen(data, monkeypatch) -> None:
    split = parts(data, "last", 0.3)
    left_out = {"data": data.fingerprint, "split": "last", "held_out": 0.3}
    questions = {
        "teacher": {"data": data.fingerprint},
        "student": left_out | {"teacher": "fingerprint of teacher"},
        "stranger": left_out | {"teacher": "another"},
    }
    monkeypatch.setattr(
        offline, "actor_provenance", lambda folder: {"question": questions[folder.name]}
    )
    contenders = {
        name: SimpleNamespace(folder=Path(name), fingerprint=f"fingerprint of {name}")
        for name in questions
    }
    found = offline._provenances(contenders, data, split)
    assert {name: seen.verdict for name, seen in found.items()} == {
        "teacher": "seen",
        "student": "through teacher",
        "stranger": "unseen",
    }


@pytest.mark.parametrize(
    ("field", "value"), [("execute", (2,)), ("episodes", 7), ("slower", (5.0,))]
)
def test_options_of_a_simulator_are_refused_where_there_is_none(field, value) -> None:
    with pytest.raises(ValueError, match=rf"--evaluation\.{field}: this recipe has no benchmark"):
        offline.check(Evaluation(**{field: value}))
    offline.check(Evaluation(frames=100, latency_calls=3, budgets=(0.5,)))


@pytest.mark.parametrize("name", list(ROBOTS))
def test_strange_robots_are_what_they_say(name: str) -> None:
    """Each demonstration reaches its dot, and no two episodes are alike."""
    robot = ROBOTS[name]
    one, other = robot.episode(0), robot.episode(2)
    assert one.task == other.task == WORDS[0] and robot.episode(1).task == WORDS[1]
    assert one.action.shape[1] == len(robot.action) and one.state.shape[1] == len(robot.state)
    np.testing.assert_array_equal(one.action, robot.episode(0).action)
    assert not np.array_equal(one.action[:3], other.action[:3])
    one.check(robot.features)
    for index in robot.grippers:
        assert set(one.action[:, index].tolist()) == {robot.gripper_open, robot.gripper_closed}
