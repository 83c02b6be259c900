"""A teacher behind a socket: the same traces as in process, kept through kills and faults, and every
recipe that learns from actions alone distilled from it; those that need more are refused."""

import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from outside import Dots, reaching
from policies.test_socket import toml
from policy_server import serving, started
from test_join import in_this_process

from armlet import collect, distil, evaluate, probe, recipes
from armlet.data.episodes import EpisodeDataset
from armlet.data.frames import load_frames
from armlet.data.traces import KEY, KEYS, StaleTraceError, TraceError, TraceStore
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.policies.contract import Network
from armlet.policies.facts import FACTS, TeacherFacts
from armlet.policies.fitting import Alike, Choosing, FitsRobot, SameChoices
from armlet.policies.students import FirstK, Fresh
from armlet.policies.two_tower import TwoTowerNetwork
from armlet.policies.vla import VLANetwork
from armlet.recipe import Evaluation, Recipe, Round
from armlet.robot.client.line import AnswerError, ServerError
from armlet.rollout import recording
from armlet.teach import new_policy

TEACHER = Path("checkpoints/tabletop-teacher")
SHORT = {"steps": 2, "batch_size": 8, "compile": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Iterator[Recipe]:
    """Episodes of a dot on a line, and a teacher of fresh weights."""
    out = tmp_path_factory.mktemp("socket")
    made = dataclasses.replace(
        reaching(),
        episodes=out / "episodes",
        teacher=out / "teacher",
        out=out,
        held_out=0.3,
        probe=None,
        traced=("actions",),
        collection=dataclasses.replace(reaching().collection, episodes=6),
        student=None,
        stages=(),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "work_through", in_this_process)
        collect.main(made)
        save_policy(new_policy(made, EpisodeDataset(made.episodes)), made.teacher)
        probe.main(made)
        yield made


def smaller(recipe: Recipe) -> Recipe:
    """Its networks a fraction of their size, and half of the layers kept where some are."""
    network = recipe.network
    assert isinstance(network, FitsRobot)
    made = dataclasses.replace(network, network=shrunk(network.network))
    student = recipe.student
    if isinstance(student, Alike | SameChoices):
        student = dataclasses.replace(student, network=shrunk(student.network))
    elif isinstance(student, Fresh) and isinstance(student.student, FirstK):
        student = dataclasses.replace(student, student=FirstK(2))
    return dataclasses.replace(recipe, network=made, student=student)


def shrunk(network: Network) -> Network:
    if isinstance(network, TwoTowerNetwork):
        return dataclasses.replace(
            network, width=24, heads=2, vision_layers=1, text_layers=1, channels=8
        )
    if isinstance(network, VLANetwork):
        return dataclasses.replace(network, width=32, depth=4, heads=2, vision_channels=8)
    return network


def of(base: Recipe, name: str, teacher: Path, out: Path, **changes) -> Recipe:
    """A recipe for one's own robot, on the dot's episodes, in few steps of small networks."""
    recipe = smaller(recipes.make(name))
    stages = tuple(dataclasses.replace(stage, **SHORT) for stage in recipe.stages)
    return dataclasses.replace(
        recipe,
        episodes=base.episodes,
        teacher=teacher,
        out=out,
        stages=stages,
        held_out=0.3,
        benchmark=Dots(),
        **changes,
    )


def read(recipe: Recipe) -> dict[str, torch.Tensor]:
    store = TraceStore(recipe.traces)
    return store.read(store.keys)


def asked_of(log: Path) -> int:
    return len(log.read_text().splitlines())


# --- the same traces


@pytest.mark.parametrize("protocol", ["openpi", "vla_eval"])
def test_traces_through_a_socket_are_those_of_the_process(base, tmp_path, protocol: str) -> None:
    """Of one observation at a time, as the server answers, to the bit; of the batches that `probe`
    asks in process to a rounding of float16, as matrix products of other sizes add up otherwise."""
    previous = "observation/previous_action" if protocol == "openpi" else "previous_action"
    with serving(protocol=protocol, policy=base.teacher) as address:
        place = toml(tmp_path, address, protocol=protocol, previous_action=previous)
        # The dot's range is -1 to 1 as it is: by this it is another.
        out = tmp_path / "out"
        recipe = of(base, "action_kd", place, out, normalise_actions="mean_std")
        probe.main(recipe)
    found = read(recipe)
    assert set(found) == {"actions"}
    teacher = load_policy(base.teacher)
    data = EpisodeDataset(base.episodes)
    frames = load_frames(data, teacher.view)
    facts = TeacherFacts.read(recipe.traces)
    from armlet.data.observing import observations

    alone = [teacher.infer(each) for each in observations(frames, np.arange(len(frames)))]
    normalised = facts.body.actions.apply(np.stack(alone)).astype(np.float16)
    np.testing.assert_array_equal(found["actions"].numpy(), normalised)
    assert np.abs(facts.body.actions.scale - 1).min() > 0.01
    # The base's teacher does not normalise at all.
    inside = read(base)["actions"].float().numpy()
    back = facts.body.actions.invert(found["actions"].float().numpy())
    np.testing.assert_allclose(back, np.clip(inside, -1, 1), atol=2e-3)


def test_batches_through_a_socket_are_those_of_the_process(base, tmp_path: Path) -> None:
    """Batches of the same size are to the bit what `probe` stores in process."""
    with serving(policy=base.teacher) as address:
        place = toml(tmp_path, address, batch=128)
        recipe = dataclasses.replace(base, teacher=place, out=tmp_path / "out")
        probe.main(recipe)
    inside = read(base)["actions"]
    through = read(recipe)["actions"]
    within = inside.abs() < 1  # what acts keeps to the robot's range, and what is watched does not
    assert within.float().mean() > 0.5
    assert torch.equal(inside[within], through[within])
    assert torch.equal(inside.clamp(-1, 1), through)


# --- kills and faults


def test_a_killed_probe_goes_on_where_it_was(base, tmp_path: Path) -> None:
    log = tmp_path / "log"
    frames = len(EpisodeDataset(base.episodes))
    with serving(delay=0.05, log=log) as address:
        place = toml(tmp_path, address)
        recipe = of(base, "action_kd", place, tmp_path / "out")
        script = (
            "import sys, pickle; from armlet import probe; "
            "probe.main(pickle.load(open(sys.argv[1], 'rb')))"
        )
        import pickle

        (tmp_path / "recipe").write_bytes(pickle.dumps(recipe))
        running = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "recipe")],
            stderr=subprocess.DEVNULL,
            env={**__import__("os").environ, "PYTHONPATH": ":".join(sys.path)},
        )
        keys = recipe.traces / KEYS  # looked at from outside: a reader is refused meanwhile
        while not keys.exists() or keys.stat().st_size < KEY.itemsize:
            time.sleep(0.05)
            assert running.poll() is None
        running.send_signal(signal.SIGKILL)
        running.wait()
        kept = keys.stat().st_size // KEY.itemsize
        assert 0 < kept < frames
        before = asked_of(log)
        probe.main(recipe)
        # Eight questions twice (who it is: when it is met, and on the line that asks), what was not
        # there, and a few again.
        assert asked_of(log) - before == 8 + 4 + (frames - kept) + 8
        assert len(TraceStore(recipe.traces)) == frames


def test_answers_before_a_fault_are_kept_and_not_asked_again(base, tmp_path: Path) -> None:
    with serving(fault="nan", after=12 + 10) as address:
        recipe = of(base, "action_kd", toml(tmp_path, address), tmp_path / "out")
        with pytest.raises(AnswerError, match=r"NaN or infinity.*episode \d, step \d"):
            probe.main(recipe)
    assert len(TraceStore(recipe.traces)) == 10
    log = tmp_path / "log"
    with serving(log=log) as address:
        toml(tmp_path, address)
        probe.main(recipe)
    assert asked_of(log) == 12 + len(EpisodeDataset(base.episodes)) - 10 + 8


def test_a_server_that_dies_for_good_leaves_what_it_said(base, tmp_path: Path) -> None:
    with serving(fault="dies", after=12 + 10) as address:
        place = toml(tmp_path, address, retries=2, wait=0.05)
        recipe = of(base, "action_kd", place, tmp_path / "out")
        with pytest.raises(ServerError, match=r"cannot be reached.*called 3 times.*is lost"):
            probe.main(recipe)
    assert len(TraceStore(recipe.traces)) == 10


def test_another_policy_does_not_go_on_with_the_traces_of_one(base, tmp_path: Path) -> None:
    with serving() as address:
        recipe = of(base, "action_kd", toml(tmp_path, address), tmp_path / "out")
        probe.main(recipe)
    with serving(fault="other") as address:
        toml(tmp_path, address)
        with pytest.raises(StaleTraceError, match="the teacher changed"):
            probe.main(recipe)
        with pytest.raises(StaleTraceError, match="the teacher changed"):
            distil.main(recipe)


def test_actions_in_other_numbers_are_refused(base, tmp_path: Path) -> None:
    with serving(fault="scale") as address:
        recipe = of(base, "action_kd", toml(tmp_path, address), tmp_path / "out")
        with pytest.raises(AnswerError, match="in other numbers than the robot's"):
            probe.main(recipe)


def test_what_draws_is_noticed_on_frames_too(base, tmp_path: Path, capfd) -> None:
    """Answers that change after the questions that say who it is: here another policy takes over."""
    with serving(fault="other", after=12 + 20) as address:
        recipe = of(base, "action_kd", toml(tmp_path, address), tmp_path / "out")
        with pytest.raises(AnswerError, match="differently when they are asked about again"):
            probe.main(recipe)
    with serving(fault="draws") as address:
        place = toml(tmp_path, address, identity="one that draws")
        recipe = of(base, "action_kd", place, tmp_path / "out-2")
        probe.main(recipe)
        assert "what it drew is what is learnt" in capfd.readouterr().err
        probe.main(recipe)  # it is known by its name


# --- students


STUDENTS = ("action_kd", "vla_ad", "aed_actions", "bc")


@pytest.mark.parametrize("name", STUDENTS)
def test_recipes_that_learn_from_actions_alone(base, tmp_path: Path, name: str, capfd) -> None:
    with serving() as address:
        place = toml(tmp_path, address)
        recipe = of(base, name, place, tmp_path / "out")
        if name == "aed_actions":  # the dot makes few different moves
            assert isinstance(recipe.network, Choosing)
            fewer = dataclasses.replace(recipe.network, primitives=4)
            recipe = dataclasses.replace(recipe, network=fewer)
        probe.main(recipe)
        student = load_policy(distil.main(recipe))
    assert student.chunk == 3
    assert student.robot.action.names == ("dx",)
    # The server has gone: what is kept is enough, and the student the same.
    again = dataclasses.replace(recipe, out=tmp_path / "again", shared=recipe.out)
    other = load_policy(distil.main(again))
    assert "what `probe` kept of the teacher" in capfd.readouterr().err
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    assert distil.main(recipe) == recipe.student_folder, "it is finished"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("actdistill", "its objectives read condition, layer_actions, semantics"),
        ("first_k", r"its student \(FirstK\) is made from the teacher's weights"),
        ("layer_drop", "LayerDrop"),
        ("aed", "read attention.1, fused, logits"),
        ("vita_vla", "is made from the teacher's weights"),
    ],
)
def test_recipes_that_need_more_are_refused(base, tmp_path: Path, name: str, why: str) -> None:
    """Before the server is called: there is none."""
    recipe = of(base, name, Path("ws://127.0.0.1:9"), tmp_path / "out")
    for verb in (probe, distil):
        with pytest.raises(ValueError, match=f"nothing but actions is known.*{why}") as raised:
            verb.main(recipe)
        assert "action_kd, vla_ad, aed_actions and bc" in str(raised.value)


def test_nothing_of_a_fresh_student_stays_as_it_was_drawn(base, tmp_path: Path) -> None:
    """action_kd freezes its teacher's eyes, which a student from nothing has not."""
    from armlet.training.black_box import of_black_box

    recipe = of_black_box(recipes.make("action_kd"), "x")
    assert [stage.freeze for stage in recipe.stages] == [(), ("policy.router.*",)]
    # And with a teacher that is at hand nothing has changed.
    usual = recipes.make("action_kd")
    assert usual.why_teacher_is_needed and usual.probe is not None


def test_rounds_are_labelled_through_the_socket(base, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(recording, "work_through", in_this_process)
    log = tmp_path / "log"
    with serving(policy=base.teacher, log=log) as address:
        recipe = of(base, "action_kd", toml(tmp_path, address), tmp_path / "out")
        lesson = dataclasses.replace(recipe.stages[1], **SHORT)
        recipe = dataclasses.replace(recipe, rounds=(Round(lesson, episodes=2, workers=1),))
        probe.main(recipe)
        before = asked_of(log)
        distil.main(recipe)
    met = EpisodeDataset(recipe.out / "round-0" / "episodes")
    traces = TraceStore(recipe.out / "round-0" / "traces")
    assert len(traces) == len(met)
    # In every step of every episode, and once more for the traces.
    assert asked_of(log) - before >= 2 * len(met)
    facts = TeacherFacts.read(recipe.traces)
    first = facts.body.actions.invert(traces.read(traces.keys)["actions"].float().numpy())[:, 0]
    np.testing.assert_allclose(first, met.columns()["action"], atol=2e-3)


def test_it_is_evaluated_beside_its_student(base, tmp_path, no_fresh_process, capsys) -> None:
    import json

    with serving() as address:
        recipe = of(base, "action_kd", toml(tmp_path, address), tmp_path / "out")
        setting = Evaluation(episodes=2, workers=1, latency_calls=2, videos=1)
        recipe = dataclasses.replace(recipe, evaluation=setting)
        probe.main(recipe)
        distil.main(recipe)
        report = json.loads(evaluate.main(recipe).read_text())
        teacher, student = report["policies"]
        assert "the network included" in teacher["latency_ms"]["device"]
        assert teacher["flops"]["total"] is None and student["flops"]["total"] > 0
        table = capsys.readouterr().out
        assert "the network included in its milliseconds" in table
        # Without a world, against held-out episodes.
        usual = Evaluation(latency_calls=2)
        offline = dataclasses.replace(recipe, benchmark=None, evaluation=usual)
        report = json.loads(evaluate.main(offline).read_text())
    teacher = report["policies"][0]
    assert teacher["cost"]["latency_ms"]["p50"] > 0 and teacher["cost"]["params"] is None
    assert any("the network included" in line for line in report["remarks"])


def test_a_store_of_another_normalisation_is_stale(base, tmp_path: Path) -> None:
    with serving() as address:
        recipe = of(base, "action_kd", toml(tmp_path, address), tmp_path / "out")
        probe.main(recipe)
        other = dataclasses.replace(recipe, normalise_actions="mean_std")
        with pytest.raises((StaleTraceError, TraceError), match="preprocessing changed"):
            distil.main(other)


# --- the shipped teacher


def test_the_shipped_teacher_through_a_socket(tmp_path: Path, monkeypatch) -> None:
    """The traces of tabletop's teacher through openpi's protocol are those of the process, and a
    student is distilled from them."""
    monkeypatch.setattr(recording, "work_through", in_this_process)
    base = recipes.make("action_kd_tabletop")
    stages = tuple(dataclasses.replace(stage, **SHORT) for stage in base.stages)
    base = dataclasses.replace(
        base,
        episodes=tmp_path / "episodes",
        collection=dataclasses.replace(base.collection, episodes=4, workers=1),
        stages=stages,
        held_out=0.3,
    )
    collect.main(base)
    inside = dataclasses.replace(
        base, shared=tmp_path / "inside", out=tmp_path / "inside", probe=None, stages=(),
        student=None, traced=("actions",), trace_precision="fp32",
    )  # fmt: skip
    probe.main(inside)
    with serving(policy=TEACHER.absolute()) as address:
        place = toml(tmp_path, address, batch=128)
        through = dataclasses.replace(
            base, teacher=place, shared=tmp_path / "through", out=tmp_path / "through"
        )
        probe.main(through)
        student = load_policy(distil.main(through))
    mine = read(inside)["actions"]
    theirs = read(through)["actions"]
    spec = base.world("probe").action_spec
    low, high = (torch.tensor(each, dtype=mine.dtype) for each in (spec.low, spec.high))
    assert torch.equal(mine.clamp(low, high), theirs)
    assert student.chunk == load_policy(TEACHER).chunk
    assert (through.traces / FACTS).is_file()


def test_the_address_itself_is_a_teacher(base, tmp_path: Path) -> None:
    """With the keys that are usual, the robot's camera names behind `observation/`."""
    process, address = started()
    try:
        recipe = of(base, "bc", Path(address), tmp_path / "out")
        probe.main(recipe)
    finally:
        process.kill()
        process.wait()
    assert len(TraceStore(recipe.traces)) == len(EpisodeDataset(base.episodes))
