"""Episodes made by acting, in a world that counts: what was asked, what was done, who is kept, and
in which worlds."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from armlet.benchmarks import Task
from armlet.recipe import Collection
from armlet.robot.observation import Observation
from armlet.robot.outputs import Decision
from armlet.robot.spec import ActionSpec
from armlet.rollout import actors
from armlet.rollout.actors import ExpertActs, StudentActs, TeacherActs, run_expert
from armlet.rollout.disturbance import Perturbation

NOBODY = Perturbation(share=0, distracted=0)
SPEC = ActionSpec(
    ("dx", "dy", "gripper"), "delta", "none", (-1.0,) * 3, (1.0,) * 3, (2,), -1.0, 1.0, 10, 0.05
)


class Counting:
    """Everything that is seen says which step it is; done after `ends` steps, if ever."""

    instruction = "count"
    over = False

    def __init__(self, ends: int | None) -> None:
        self.step_number, self.ends, self.done = 0, ends, []

    def observe(self) -> Observation:
        image = np.full((4, 4, 3), self.step_number, np.uint8)
        return Observation(
            {"eye": image},
            np.array([self.step_number], np.float32),
            self.instruction,
            np.zeros(3, np.float32),
        )

    def privileged(self) -> dict[str, np.ndarray]:
        return {"subject": np.array([10 + self.step_number], np.float32)}

    def expert_action(self) -> np.ndarray:
        return np.array(
            [self.step_number / 100, 0.3, -1.0 if self.step_number < 4 else 1.0], np.float32
        )

    def distraction(self, number: int) -> np.ndarray:
        return np.array([-0.9, -0.9, 1.0], np.float32)

    def step(self, action: np.ndarray) -> bool:
        self.done.append(np.asarray(action))
        self.step_number += 1
        return self.ends is not None and self.step_number >= self.ends

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Counter:
    """A benchmark of two tasks in two splits; worlds of seeds that `fails` divides never
    succeed."""

    ends: int | None = 12
    fails: int = 10**9
    max_steps: int = 30
    made: list = dataclasses.field(default_factory=list, compare=False)
    action_spec = SPEC

    def tasks(self, split: str = "seen") -> tuple[Task, ...]:
        return tuple(Task(name, "counting", split) for name in ("one", "two"))

    def make(self, task: Task, seed: int) -> Counting:
        self.made.append((task, seed))
        return Counting(self.ends if seed % self.fails else None)


def test_what_is_seen_and_what_is_said_of_it_belong_to_one_moment() -> None:
    """And two steps are recorded after success, so that a policy learns to stay."""
    episode = run_expert(Counter(), Task("one", "counting"), 1, NOBODY)
    made = episode.recorded
    steps = np.arange(14)
    assert episode.success and made.state[:, 0].tolist() == steps.tolist()
    assert made.images["eye"][:, 0, 0, 0].tolist() == steps.tolist()
    assert made.extra["privileged.subject"][:, 0].tolist() == (10 + steps).tolist()
    np.testing.assert_allclose(made.action[:, 0], steps / 100, atol=1e-6)
    np.testing.assert_array_equal(made.action, episode.executed)
    assert not run_expert(Counter(ends=None), Task("one", "counting"), 1, NOBODY).success


def test_the_disturbed_are_told_what_the_expert_says_and_do_another_thing() -> None:
    """Label: always the expert's. Done: the expert's and a constant for one to three steps; a
    gripper as said, or the other way."""
    lengths, flips, shifted, large = [], [], 0, []
    for seed in range(60):
        world = run_expert(
            Counter(ends=None), Task("one", "counting"), seed, Perturbation(share=1, distracted=0)
        )
        np.testing.assert_allclose(world.recorded.action[:, 0], np.arange(30) / 100, atol=1e-6)
        gap = world.executed - world.recorded.action
        assert np.abs(world.executed).max() <= 1
        moved = np.abs(gap[:, :2]).max(1) > 1e-6
        shifted += moved.sum()
        large.extend(np.abs(gap[moved, 1]))
        gripper = world.executed[:, 2]
        assert set(np.unique(gripper)) <= {-1.0, 1.0}, "open or closed, never between"
        flips.extend(gripper[moved] != world.recorded.action[moved, 2])
        assert (gripper[~moved] == world.recorded.action[~moved, 2]).all()
        runs = np.flatnonzero(np.diff(np.concatenate([[0], np.round(gap[:, 1], 5), [0]])))
        lengths.extend(np.diff(runs)[np.abs(gap[runs[:-1].clip(max=29), 1]) > 1e-6])
    assert max(lengths) <= 3 and set(lengths) == {1, 2, 3}
    assert 0.2 < shifted / (60 * 30) < 0.5, "between disturbances the arm does what it is told"
    assert 0.03 < np.mean(flips) < 0.15 and 0.6 < max(large) <= 0.71


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_as_many_episodes_are_disturbed_or_distracted_as_asked(share: float) -> None:
    for perturbation in (
        Perturbation(share=share, distracted=0, probability=0.5),
        Perturbation(share=0, distracted=share),
    ):
        made = [
            run_expert(Counter(), Task("one", "counting"), seed, perturbation)
            for seed in range(150)
        ]
        changed = np.mean(
            [np.abs(each.executed - each.recorded.action).max() > 1e-6 for each in made]
        )
        assert changed == pytest.approx(share, abs=0.1 if 0 < share < 1 else 1e-9)


def test_the_distracted_go_elsewhere_for_a_while_and_are_told_what_was_right() -> None:
    firsts, lengths = [], []
    for seed in range(100):
        made = run_expert(
            Counter(ends=None), Task("one", "counting"), seed, Perturbation(share=0, distracted=1)
        )
        away = np.abs(made.executed - [-0.9, -0.9, 1.0]).max(1) < 1e-6
        np.testing.assert_array_equal(made.executed[~away], made.recorded.action[~away])
        np.testing.assert_allclose(made.recorded.action[:, 0], np.arange(30) / 100, atol=1e-6)
        where = np.flatnonzero(away)
        assert (np.diff(where) == 1).all()
        firsts.append(where[0])
        lengths.append(len(where))
    assert min(lengths) == 2 and max(lengths) == 8 and max(firsts) == 7
    assert np.mean(np.array(firsts) == 0) == pytest.approx(0.5, abs=0.15)


def test_each_attempt_of_the_expert_is_in_a_world_of_its_own_and_failures_are_not_kept() -> None:
    benchmark = Counter(fails=3)
    acts = ExpertActs(benchmark, Collection(seed=600, disturbed_share=0.6, distracted_share=0.0))
    episodes = [acts(attempt) for attempt in range(12)]
    assert [seed for _, seed in benchmark.made] == list(range(600, 612))
    assert [task.name for task, _ in benchmark.made] == ["one", "two"] * 6
    assert [episode is None for episode in episodes] == [
        (600 + attempt) % 3 == 0 for attempt in range(12)
    ]
    kept = [episode for episode in episodes if episode]
    assert [each.info["seed"] for each in kept] == [seed for seed in range(600, 612) if seed % 3]
    assert [each.info["attempt"] for each in kept] == [
        attempt for attempt in range(12) if (600 + attempt) % 3
    ]
    assert all(
        each.info["success"] and each.extra.keys() == {"executed", "privileged.subject"}
        for each in kept
    )
    gaps = [each.extra["executed"] - each.action for each in kept]
    disturbed = [gap for gap in gaps if np.abs(gap).max() > 1e-6]
    assert 2 <= len(disturbed) < len(kept) and not np.array_equal(disturbed[0], disturbed[1]), (
        "each in its own way"
    )


class Speaker:
    """Answers a chunk of four in which each number says who speaks, when it looked and which action
    of the chunk it is."""

    def __init__(self, who: float, execute: int) -> None:
        self.who, self.execute, self.looks = who, execute, []

    def infer(self, observation: Observation) -> np.ndarray:
        self.looks.append(float(observation.state[0]))
        return np.array([[self.who, self.looks[-1], ahead] for ahead in range(4)], np.float32)

    def decide(self, observation: Observation) -> Decision:
        return Decision(self.infer(observation), (1,))

    def reset(self) -> None:
        pass


@pytest.fixture
def speakers(monkeypatch) -> dict[str, Speaker]:
    found = {"student": Speaker(1, 3), "teacher": Speaker(2, 2)}
    monkeypatch.setattr(actors, "loaded", lambda folder, device, known=None: found[folder.name])
    return found


def test_the_student_acts_and_its_teacher_says_at_every_step_what_it_would_have_done(
    speakers,
) -> None:
    """Three of a chunk are carried out before it looks again. A student's failures are kept; its
    world is the split's."""
    benchmark = Counter(fails=2)
    acts = StudentActs(benchmark, Path("student"), Path("teacher"), 40, "unseen")
    failed, succeeded = acts(0), acts(1)
    assert benchmark.made == [
        (Task("one", "counting", "unseen"), 40),
        (Task("two", "counting", "unseen"), 41),
    ]
    assert not failed.info["success"] and succeeded.info["success"]
    assert len(failed.state) == 30 and len(succeeded.state) == 12
    assert succeeded.action.tolist() == [[2, step, 0] for step in range(12)]
    assert succeeded.extra["executed"].tolist() == [
        [1, step // 3 * 3, step % 3] for step in range(12)
    ]


def test_the_teacher_acts_as_it_does_when_deployed_and_only_its_successes_are_kept(
    speakers,
) -> None:
    benchmark = Counter(fails=2)
    acts = TeacherActs(benchmark, Path("teacher"), 70)
    failed, succeeded = acts(0), acts(1)
    assert (
        failed is None
        and succeeded.info["seed"] == 71
        and [seed for _, seed in benchmark.made] == [70, 71]
    )
    assert succeeded.action.tolist() == [[2, step, 0] for step in range(12)]
    assert succeeded.extra["executed"].tolist() == [
        [2, step // 2 * 2, step % 2] for step in range(12)
    ]
