"""What `distil` trains on, against what the teacher says when it is asked frame by frame: rows,
stages, stores and rounds.

The world is outside.py's dot on a line, so that episodes, teacher, heads and traces are made in
seconds; nothing trains.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from outside import Dots, reaching

from armlet import collect, distil, probe
from armlet.annotators import Labels
from armlet.data.episodes import EpisodeDataset
from armlet.data.frames import BatchMaker, Frames, load_frames
from armlet.data.traces import StoreIdentity, TraceStore, TraceWriter
from armlet.policies.checkpoint import load_policy, policy_fingerprint, save_policy
from armlet.policies.contract import Policy
from armlet.policies.routed import Routed
from armlet.policies.students import Kept
from armlet.recipe import OwnAverage, Recipe, Round
from armlet.recipes.bases import MatchOutput
from armlet.robot.description import RobotOptions
from armlet.rollout import recording
from armlet.teach import new_policy
from armlet.training import practice, supervision
from armlet.training.learner import Learner, watch
from armlet.training.own_average import SelfAnswers
from armlet.training.supervision import load_heads, make_heads
from armlet.training.trainer import Trainer, make_batches
from armlet.types import Trace

SIGNALS = ("actions", "condition", "semantics", "layer_actions")


def in_this_process(work: Callable, jobs: Iterable, **settings: Any) -> Iterator:
    """A pool of processes that is this process."""
    return map(work, jobs)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Iterator[Recipe]:
    """Episodes, a teacher of fresh weights (it need not be able to do anything), heads and
    traces."""
    out = tmp_path_factory.mktemp("join")
    made = dataclasses.replace(
        reaching(),
        episodes=out / "episodes",
        teacher=out / "teacher",
        out=out,
        held_out=0.3,
        collection=dataclasses.replace(reaching().collection, episodes=10),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "work_through", in_this_process)
        collect.main(made)
        teacher = new_policy(made, EpisodeDataset(made.episodes))
        for parameter in teacher.parameters():
            parameter.data.mul_(1.5)  # so that neighbours are answered differently
        save_policy(teacher, made.teacher)
        probe.main(made)
        yield made


def asked(recipe: Recipe, frames: Frames, rows: np.ndarray) -> Trace:
    """What the teacher, watched by its heads, says of these rows."""
    teacher = load_policy(recipe.teacher)
    heads = make_heads(teacher, recipe.probe)
    load_heads(heads, recipe.heads_file)
    return watch(
        Learner(teacher, probe=heads).eval(), make_batches(teacher, frames).batch(rows), SIGNALS
    )


def agree(found: Trace, expected: Trace) -> bool:
    """To the last digit of half precision."""
    return all(
        torch.allclose(found[name].float(), expected[name], rtol=2e-3, atol=2e-3) for name in found
    )


class Watched:
    """Stands for the trainer: remembers what it was given, and moves one weight instead of
    training."""

    calls: list["Watched"]

    def __init__(self, learner: Learner, stage: Any, batches: BatchMaker, **options: Any) -> None:
        self.learner, self.stage, self.batches = learner, stage, batches
        self.teacher, self.rows, self.seed = options["teacher"], options["rows"], options["seed"]
        self.before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
        Watched.calls.append(self)

    def run(self) -> None:
        self.learner.policy.head.net[0].bias.data += 1
        self.learner.eval()


@pytest.fixture
def distilled(monkeypatch) -> Callable[[Recipe], list[Watched]]:
    """Run `distil` with that trainer."""

    def run(recipe: Recipe) -> list[Watched]:
        Watched.calls = []
        monkeypatch.setattr(distil, "Trainer", Watched)
        distil.main(recipe)
        return Watched.calls

    return run


@pytest.fixture
def here(recipe: Recipe, tmp_path: Path) -> Recipe:
    """The recipe with a place of its own for the student, and the traces that are there."""
    return dataclasses.replace(recipe, out=tmp_path, shared=recipe.out)


def test_every_frame_is_joined_with_the_teachers_answer_to_it(here: Recipe, distilled) -> None:
    calls = distilled(here)
    frames = load_frames(EpisodeDataset(here.episodes))
    rows = np.random.default_rng(0).permutation(len(frames))
    for call in calls:
        batch = call.batches.batch(rows)
        np.testing.assert_allclose(batch.actions[:, 0].numpy(), frames.actions[rows], atol=1e-6)
        answer = call.teacher(batch.keys)
        assert agree(answer, asked(here, frames, rows)) and answer.keys() == set(SIGNALS)
        assert not agree(answer, asked(here, frames, np.maximum(rows - 1, 0))), (
            "a step off would be another answer"
        )
    assert [call.seed for call in calls] == [0, 1], "each stage draws its own"


def test_what_is_held_out_is_not_trained_on_and_calibrates(
    here: Recipe, distilled, monkeypatch
) -> None:
    measured: list[np.ndarray] = []
    monkeypatch.setattr(
        Routed, "calibrate", lambda policy, batch: measured.append(batch.keys.numpy())
    )
    calls = distilled(here)
    episodes = len(EpisodeDataset(here.episodes).episodes)
    held_out = set(range(episodes - int(np.ceil(0.3 * episodes)), episodes))
    for call in calls:
        trained = call.batches.keys(call.rows)
        assert set(trained[:, 0]) == set(range(episodes)) - held_out
        assert len(np.unique(call.rows)) == len(call.rows)
    assert len(measured) == len(calls), "after every stage"
    assert all(set(keys[:, 0]) <= held_out for keys in measured)


def test_without_a_world_nothing_is_fitted_or_chosen_on_what_the_report_is_about(
    here: Recipe, distilled, monkeypatch
) -> None:
    """Neither heads nor a router's threshold: the last episodes are those of the report."""
    own = dataclasses.replace(here, benchmark=None, shared=here.out / "own")
    measured: list[np.ndarray] = []
    monkeypatch.setattr(
        Routed, "calibrate", lambda policy, batch: measured.append(batch.keys.numpy())
    )
    fitted: list[Trainer] = []
    run = Trainer.run

    def watched(trainer: Trainer) -> None:
        fitted.append(trainer)
        run(trainer)

    monkeypatch.setattr(Trainer, "run", watched)
    probe.main(own)
    episodes = len(EpisodeDataset(own.episodes).episodes)
    shown = set(range(episodes - int(np.ceil(0.3 * episodes))))
    assert [set(each.batches.keys(each.rows)[:, 0]) for each in fitted] == [shown]
    calls = distilled(own)
    assert len(measured) == len(calls)
    for keys in measured:
        assert set(keys[:, 0]) == shown
    with pytest.raises(ValueError, match=r"give this verb --held-out 0\.3 as"):
        distil.main(dataclasses.replace(own, held_out=0.2, out=own.out / "another"))


def test_a_sample_is_from_all_over(here: Recipe) -> None:
    teacher = load_policy(here.teacher)
    batches = make_batches(teacher, load_frames(EpisodeDataset(here.episodes)))
    rows = np.arange(len(batches))
    drawn = [distil._sample(batches, rows, seed, count=20).keys for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert (
        len(drawn[0]) == 20
        and len(drawn[0].unique(dim=0)) == 20
        and len(drawn[0][:, 0].unique()) > 3
    )


def test_the_students_heads_start_as_the_teachers(here: Recipe, distilled) -> None:
    (first, *_) = distilled(here)
    fitted = make_heads(load_policy(here.teacher), here.probe)
    load_heads(fitted, here.heads_file)
    for name, tensor in fitted.state_dict().items():
        assert torch.equal(first.before[f"probe.{name}"], tensor), name


def rounds(here: Recipe, count: int, **changes: Any) -> Recipe:
    stage = dataclasses.replace(here.stages[0], objective=here.stages[0].objective)
    each = Round(stage, episodes=4, workers=1, **changes)
    return dataclasses.replace(here, rounds=(each,) * count)


def test_rounds_are_joined_with_the_teachers_answers_to_what_the_student_met(
    here: Recipe, distilled
) -> None:
    calls = distilled(rounds(here, 2, share=0.5))
    base = len(load_frames(EpisodeDataset(here.episodes)))
    for number, call in enumerate(calls[-2:]):
        parts = [
            EpisodeDataset(here.out / f"round-{each}" / "episodes") for each in range(number + 1)
        ]
        frames = call.batches.frames
        assert len(frames) == base + sum(len(part) for part in parts)
        rows = np.random.default_rng(number).permutation(len(frames))
        batch = call.batches.batch(rows)
        answer, expected = call.teacher(batch.keys), asked(here, frames, rows)
        assert agree(answer, expected)
        for name in SIGNALS:
            assert len(answer[name].unique(dim=0)) > 10, (
                "answers differ, so that those of other frames would be noticed"
            )
        met = rows >= base
        first = expected["actions"][met, 0].numpy()
        assert np.abs(frames.actions[rows[met]] - first).mean() < 0.02, (
            "the label is the teacher's, but for the video's loss"
        )
        assert np.abs(frames.executed[rows[met]] - first).mean() > 0.05, (
            "and what was done the student's"
        )
        counts = np.bincount(call.rows, minlength=len(frames))
        assert (counts[base:] > 0).all() and len(set(counts[base:])) == 1
        assert set(np.unique(call.rows[call.rows < base])) == set(calls[0].rows)


@pytest.mark.parametrize("kept", [True, False])
def test_a_round_that_is_not_kept_leaves_the_student_as_it_was(
    here: Recipe, distilled, monkeypatch, kept: bool
) -> None:
    measured: list[float] = []
    monkeypatch.setattr(distil, "is_promoted", lambda recipe, number, student: kept)
    monkeypatch.setattr(
        Routed,
        "calibrate",
        lambda policy, batch: measured.append(float(policy.head.net[0].bias[0].detach())),
    )
    calls = distilled(rounds(here, 1))
    made, start = (load_policy(folder) for folder in (here.student_folder, here.teacher))
    moved = float((made.head.net[0].bias - start.head.net[0].bias)[0].detach())
    assert moved == pytest.approx(len(here.stages) + kept)
    assert len(calls) == len(here.stages) + 1
    assert measured[-1] == pytest.approx(float(made.head.net[0].bias[0].detach())), (
        "the last calibration is of what is saved"
    )


def test_a_student_that_is_its_own_teacher_starts_from_the_teacher_and_later_from_itself(
    here: Recipe, distilled
) -> None:
    stages = tuple(
        dataclasses.replace(stage, objective=MatchOutput(), teacher=OwnAverage())
        for stage in here.stages
    )
    start = load_policy(here.teacher)
    # Nothing was probed there: who learns from their own average reads no store.
    alone = dataclasses.replace(here, shared=here.out / "nothing-probed")
    calls = distilled(dataclasses.replace(alone, student=_shaken(start), stages=stages))
    averages = [
        call.teacher.teacher.module.state_dict()
        for call in calls
        if isinstance(call.teacher, SelfAnswers)
    ]
    assert len(averages) == 2
    for name, tensor in start.state_dict().items():
        assert torch.equal(averages[0][name], tensor), name
        assert torch.equal(averages[1][name], calls[1].before[f"policy.{name}"]), name
    assert not torch.equal(
        averages[0]["head.net.0.bias"], calls[0].before["policy.head.net.0.bias"]
    )


@dataclasses.dataclass(frozen=True)
class _Shaken(Kept):
    def build(self, teacher: Policy, sample=None) -> Policy:
        student = super().build(teacher, sample)
        student.head.net[0].bias.data += 0.25
        return student


def _shaken(teacher: Policy) -> _Shaken:
    return _Shaken(tuple(range(len(teacher.layers))))


def test_what_is_missing_in_a_store_is_added_under_its_own_key(
    here: Recipe, tmp_path: Path
) -> None:
    """Whatever rows are there already, from the end or from the middle."""
    full = TraceStore(here.traces)
    done = full.keys[[7, 3, len(full) - 1, 12]]
    identity = StoreIdentity(**full.header.identity)
    with TraceWriter(tmp_path / "some", identity, full.columns) as writer:
        writer.append(done, full.read(done))
    learner = Learner(load_policy(here.teacher))
    learner.probe = make_heads(learner.policy, here.probe)
    load_heads(learner.probe, here.heads_file)
    batches = make_batches(learner.policy, load_frames(EpisodeDataset(here.episodes)))
    supervision.store_traces(
        tmp_path / "some",
        identity,
        learner,
        batches,
        traced=here.traced,
        precision=here.trace_precision,
        title="the rest",
    )
    again = TraceStore(tmp_path / "some")
    np.testing.assert_array_equal(again.keys, full.keys)
    for name, values in full.read(full.keys).items():
        torch.testing.assert_close(again.read(full.keys)[name], values, rtol=2e-3, atol=2e-3)


def test_labels_stand_at_their_own_frames(here: Recipe, monkeypatch) -> None:
    data = EpisodeDataset(here.episodes)
    rng = np.random.default_rng(0)
    phases, directions = rng.integers(0, 9, len(data)), rng.integers(0, 5, len(data))
    said = Labels(
        phases,
        directions,
        ("",) * len(data),
        tuple(f"words {number % 7}" for number in rng.integers(0, 99, len(data))),
    )
    monkeypatch.setattr(supervision, "load_labels", lambda folder, data, annotator: said)
    frames = supervision.labelled(load_frames(data), data, object(), here.labels)
    np.testing.assert_array_equal(frames.labels["phase"], phases)
    np.testing.assert_array_equal(frames.labels["direction"], directions)
    assert tuple(frames.descriptions[number] for number in frames.described) == said.description


def test_frames_hold_what_was_done_beside_what_was_asked(here: Recipe) -> None:
    """In disturbed episodes these differ, and the action before is the one that was carried out."""
    data = EpisodeDataset(here.episodes)
    frames = load_frames(data)
    columns = data.columns()
    assert np.abs(columns["executed"] - columns["action"]).max() > 0.1, "somebody was disturbed"
    np.testing.assert_array_equal(frames.executed, columns["executed"])
    np.testing.assert_array_equal(frames.actions, columns["action"])
    batches = make_batches(load_policy(here.teacher), frames)
    inside = np.setdiff1d(np.arange(len(frames)), frames.starts)
    np.testing.assert_allclose(
        batches.batch(inside).previous_action.numpy(), frames.executed[inside - 1], atol=1e-6
    )


def test_practice_and_trial_are_in_worlds_of_their_own(here: Recipe, monkeypatch) -> None:
    """Which episodes a round runs, who is tried in which, and who may stay."""
    tried = rounds(here, 2, trial=6, seed=777, split="far")
    assert len({practice.first_seed(tried, number) for number in (0, 1)}) == 2
    jobs: list[tuple[str, Any, int]] = []

    def run_all(field: dict, benchmark: Dots, attempts: list, **settings: Any) -> Iterator:
        jobs.extend((each.name, each.task, each.seed) for each in attempts)
        for each in attempts:
            won = each.name == "candidate" or each.seed % 3 == 0
            yield each, SimpleNamespace(success=won)

    monkeypatch.setattr(practice, "run_all", run_all)
    folders = [here.out / "round-1" / name for name in ("student", "candidate")]
    before, after = practice._successes(tried, tried.rounds[1], folders, 1)
    seeds = {
        name: [seed for who, _, seed in jobs if who == name] for name in ("student", "candidate")
    }
    assert seeds["student"] == seeds["candidate"] and len(set(seeds["student"])) == 6, (
        "both in the same episodes"
    )
    assert (before, after) == (2, 6)
    practised = {
        practice.first_seed(tried, number) + attempt for number in (0, 1) for attempt in range(4)
    }
    assert not practised & set(seeds["student"])
    asked_for = [task.split for _, task, _ in jobs]
    assert set(asked_for) == {"far"} and len({task.name for _, task, _ in jobs}) == 2


@pytest.mark.parametrize(
    ("before", "after", "promoted"), [(3, 2, False), (3, 3, True), (2, 3, True)]
)
def test_a_student_stays_where_it_succeeds_as_often(
    here: Recipe, monkeypatch, before: int, after: int, promoted: bool
) -> None:
    counts = {"student": before, "candidate": after}
    monkeypatch.setattr(
        practice,
        "_successes",
        lambda recipe, each, folders, number: [counts[folder.name] for folder in folders],
    )
    tried = rounds(here, 1, trial=6)
    assert practice.is_promoted(tried, 0, load_policy(here.teacher)) == promoted
    monkeypatch.setattr(practice, "_successes", None)
    assert practice.is_promoted(tried, 0, load_policy(here.teacher)) == promoted, (
        "the verdict is read again, not run again"
    )
    assert practice.is_promoted(rounds(here, 1), 0, load_policy(here.teacher)), (
        "without a trial it stays"
    )


def test_a_round_is_practised_where_it_says(here: Recipe, monkeypatch) -> None:
    """Who acts, on which seeds and in which split, as the round says and as its episodes are
    labelled."""
    told: list[tuple[Any, dict]] = []

    class Enough(Exception):  # noqa: N818 - not an error
        pass

    def record(root: Path, benchmark: Dots, acts: Any, **options: Any) -> None:
        told.append((acts, options["metadata"]))
        raise Enough

    monkeypatch.setattr(practice, "record", record)
    tried = rounds(here, 2, seed=900, split="far")
    teacher = load_policy(here.teacher)
    with pytest.raises(Enough):
        practice.practise(tried, 1, teacher, teacher, policy_fingerprint(here.teacher))
    ((acts, metadata),) = told
    assert (acts.split, acts.seed, acts.teacher) == (
        "far",
        practice.first_seed(tried, 1),
        tried.teacher,
    )
    assert (metadata["split"], metadata["seed"]) == ("far", acts.seed)


def test_a_new_teacher_knows_its_robot_by_the_episodes(here: Recipe) -> None:
    """Statistics, words and cameras are the data's; the gripper, if there is one, is told as it
    is."""
    data = EpisodeDataset(here.episodes)
    columns = data.columns()
    policy = new_policy(dataclasses.replace(here, normalise_actions="quantiles"), data)
    np.testing.assert_allclose(
        policy.body.state.offset, columns["observation.state"].mean(0), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        policy.body.state.scale, columns["observation.state"].std(0), rtol=1e-4
    )
    low, high = np.quantile(columns["action"], [0.01, 0.99], axis=0)
    np.testing.assert_allclose(
        policy.body.actions.apply(np.stack([low, high])), [[-1], [1]], atol=1e-5
    )
    assert policy.body.action_spec == here.benchmark.action_spec and policy.cameras == {"eye": 32}
    words = policy.body.tokenizer.encode("go to the red dot")
    assert len(words.ids) < len("go to the red dot") / 2, "the words of these episodes are its own"
    gripped = RobotOptions(grippers=(0,), gripper_open=-1.0, gripper_closed=1.0)
    assert abs(columns["action"].mean()) > 0.01 and abs(columns["action"].std() - 1) > 0.01
    policy = new_policy(
        dataclasses.replace(here, normalise_actions="mean_std", robot=gripped), data
    )
    assert policy.body.actions.offset.tolist() == [0] and policy.body.actions.scale.tolist() == [1]
    again = new_policy(here, data)
    same = [
        torch.equal(a, b)
        for a, b in zip(again.parameters(), new_policy(here, data).parameters(), strict=True)
    ]
    other = new_policy(dataclasses.replace(here, seed=1), data)
    assert all(same) and not torch.equal(other.query, again.query)


def test_this_trainer_is_asked_as_the_real_one(here: Recipe) -> None:
    """What stands for the trainer takes what the trainer takes."""
    import inspect

    assert {"teacher", "rows", "seed"} <= inspect.signature(Trainer).parameters.keys()
