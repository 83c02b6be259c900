"""The closed loop with a policy that thinks while the world goes on: which action is carried out at
which step, against timetables
written by hand, and in a world whose place is the sum of all moves."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from armlet.benchmarks import Task, World
from armlet.benchmarks.tabletop import Tabletop
from armlet.evaluation import episodes
from armlet.robot.bounds import Bounds, Wall
from armlet.robot.guard import ActionGuard
from armlet.robot.observation import Observation
from armlet.robot.outputs import Decision
from armlet.robot.spec import ActionSpec
from armlet.rollout import pool
from armlet.rollout.actors import Expert
from armlet.rollout.loop import Episode, gripper_toggles, plan, run, steps_late
from armlet.rollout.recording import acted_on


def spec(mode: str = "delta") -> ActionSpec:
    return ActionSpec(
        ("x", "gripper"), mode, "none", (-99.0,) * 2, (99.0,) * 2, (1,), -1.0, 1.0, 10, 0.05
    )


class Line(World):
    """A place on a line, the sum of all moves; done where it is at `goal`. Remembers what it was
    told."""

    def __init__(self, goal: float) -> None:
        self.goal = goal
        self.told: list[np.ndarray] = []
        self.looks: list[int] = []

    @property
    def place(self) -> float:
        return float(sum(action[0] for action in self.told))

    def observe(self) -> float:
        self.looks.append(len(self.told))
        return self.place

    def step(self, action: np.ndarray) -> bool:
        self.told.append(np.array(action))
        return self.place == self.goal


class Names:
    """Answers with actions that name themselves: the number of the decision times 100, and the
    action's place in its chunk."""

    def __init__(self, chunk: int, execute: int) -> None:
        self.chunk, self.execute, self.asked = chunk, execute, 0

    def decide(self, observation: float) -> Decision:
        self.asked += 1
        return Decision(
            np.array([(100 * self.asked + place, 0.5) for place in range(self.chunk)], np.float32),
            (1,),
        )

    def reset(self) -> None:
        pass


class Walks:
    """Goes to `goal` by moves of at most 1, and knows when it will be there."""

    def __init__(self, goal: float, chunk: int, execute: int) -> None:
        self.goal, self.chunk, self.execute = goal, chunk, execute

    def decide(self, seen: float | Observation) -> Decision:
        place = seen.state[0] if isinstance(seen, Observation) else seen
        moves = np.clip(self.goal - place - np.arange(self.chunk), 0, 1)
        return Decision(np.stack([moves, np.zeros(self.chunk)], 1).astype(np.float32), (1,))

    def reset(self) -> None:
        pass


def episode(policy, world: World, *, steps: int, mode: str = "delta", **settings) -> Episode:
    return run(world, policy, spec=spec(mode), limit=steps, **settings)


def carried_out(
    chunk: int, execute: int, lag: int, late: str, *, steps: int, mode: str = "delta"
) -> str:
    """The episode as text: a0 a1 … of the first chunk, b0 … of the second; a dash where the arm
    held still."""
    world = Line(goal=np.inf)
    result = episode(Names(chunk, execute), world, steps=steps, mode=mode, lag=lag, late=late)
    assert result.steps == steps == len(world.told) and not result.success
    moved = [(int(x) // 100, int(x) % 100) for x, _ in world.told]
    words = [
        "–" if number == 0 else f"{'abcdefghij'[number - 1]}{place}" for number, place in moved
    ]
    assert result.waited == words.count("–")
    return " ".join(words)


TIMETABLES = [
    # chunk, execute, lag, rule, what is carried out
    (6, 2, 0, "wait", "a0 a1 b0 b1 c0 c1"),
    (6, 2, 0, "run_on", "a0 a1 b0 b1 c0 c1"),
    (6, 2, 1, "wait", "– a0 a1 – b0 b1 – c0 c1"),
    (6, 2, 1, "run_on", "– a0 a1 a2 b1 b2 b3 c1 c2 c3"),
    (6, 2, 3, "wait", "– – – a0 a1 – – – b0 b1 – – –"),
    (
        6,
        2,
        3,
        "run_on",
        "– – – a0 a1 a2 a3 a4 b3 b4 b5 – – c1 c2 c3 c4 c5 d3 d4",
    ),  # b5 alone is left: two steps of holding still
    (6, 4, 2, "wait", "– – a0 a1 a2 a3 – – b0 b1 b2 b3"),
    (6, 4, 2, "run_on", "– – a0 a1 a2 a3 a4 a5 b2 b3 b4 b5 – – c0 c1 c2 c3 c4 c5 d2"),
    (
        6,
        6,
        2,
        "run_on",
        "– – a0 a1 a2 a3 a4 a5 – – b0 b1 b2 b3 b4 b5",
    ),  # nothing is ever left: as if it waited
    (1, 1, 1, "run_on", "– a0 – b0 – c0"),
    (3, 2, 7, "run_on", "– – – – – – – a0 a1 a2 – – – – – – b1 b2 – – – – – – – c0 c1 c2 – – –"),
]


@pytest.mark.parametrize(("chunk", "execute", "lag", "late", "timetable"), TIMETABLES)
def test_which_action_is_carried_out_at_which_step(
    chunk: int, execute: int, lag: int, late: str, timetable: str
) -> None:
    assert carried_out(chunk, execute, lag, late, steps=len(timetable.split())) == timetable
    if lag == 0:
        assert carried_out(chunk, execute, lag, late, steps=6, mode="absolute") == timetable


@pytest.mark.parametrize("late", ["wait", "run_on", "blend"])
@pytest.mark.parametrize("lag", range(6))
@pytest.mark.parametrize("execute", range(1, 6))
@pytest.mark.parametrize("goal", [1, 2, 7, 12])
def test_relative_moves_are_made_once_each(goal: int, execute: int, lag: int, late: str) -> None:
    """Whoever plans rightly arrives: no move is lost, and none made twice, however late the plan
    comes. What waiting costs is time."""
    world = Line(goal)
    result = episode(Walks(goal, 5, execute), world, steps=200, lag=lag, late=late)
    assert result.success and world.place == goal
    assert result.steps == goal + result.waited
    looks = len(result.gates)
    assert world.looks[0] == 0 and looks == len(world.looks)
    if late == "wait":
        assert looks == -(-goal // execute) and result.waited == lag * looks
    else:
        assert lag <= result.waited <= lag * looks


def test_an_arm_that_runs_on_is_never_slower_than_one_that_waits() -> None:
    for lag in range(1, 6):
        for execute in (1, 2, 4):
            steps = [
                episode(Walks(30, 6, execute), Line(30), steps=900, lag=lag, late=late).steps
                for late in ("wait", "run_on")
            ]
            assert steps[1] < steps[0]


def test_while_it_waits_the_world_goes_on_and_may_end_the_episode() -> None:
    class Comes(Line):
        def step(self, action: np.ndarray) -> bool:
            self.told.append(np.array(action))
            return len(self.told) == 4

    result = episode(Names(6, 2), Comes(0), steps=50, lag=3)
    assert (result.success, result.steps, result.waited, len(result.gates)) == (True, 4, 3, 1)
    late = episode(Names(6, 2), Line(np.inf), steps=4, lag=9)
    assert (late.success, late.steps, late.waited, late.toggles) == (False, 4, 4, 0)


def test_an_arm_that_waits_keeps_its_gripper_and_its_place() -> None:
    world = Line(np.inf)
    episode(Names(2, 2), world, steps=5, lag=1)
    assert [tuple(action) for action in world.told] == [
        (0, -1),
        (100, 0.5),
        (101, 0.5),
        (0, 0.5),
        (200, 0.5),
    ]
    told = Line(np.inf)
    told.holding_action = lambda: np.array([7.0, 1.0], np.float32)
    episode(Names(2, 2), told, steps=5, lag=1, mode="absolute")
    assert [tuple(action) for action in told.told] == [
        (7, 1),
        (100, 0.5),
        (101, 0.5),
        (101, 0.5),
        (200, 0.5),
    ]
    with pytest.raises(
        ValueError, match=r"Line takes absolute positions .* give it `holding_action`"
    ):
        episode(Names(2, 2), Line(np.inf), steps=5, lag=1, mode="absolute")


def test_how_many_actions_are_carried_out_is_a_setting() -> None:
    for execute, looks in ((1, 12), (2, 6), (3, 4), (6, 2), (None, 6)):
        world = Line(np.inf)
        result = episode(Names(6, 2), world, steps=12, execute=execute)
        assert len(result.gates) == looks and world.looks == list(range(0, 12, execute or 2))
    for execute in (7, 0):
        with pytest.raises(
            ValueError,
            match=f"{execute} actions of each chunk should be carried out, and this policy's have 6",
        ):
            episode(Names(6, 2), Line(np.inf), steps=12, execute=execute)


@pytest.mark.parametrize(
    ("milliseconds", "hz", "steps"),
    [
        (0, 10, 0),
        (1e-3, 10, 1),
        (99.9, 10, 1),
        (100, 10, 1),
        (100.1, 10, 2),
        (300, 10, 3),
        (1000 / 30 * 3, 30, 3),
        (2.4, 400, 1),
        (2.6, 400, 2),
    ],
)
def test_a_decision_is_ready_at_the_first_tick_that_is_not_too_early(
    milliseconds: float, hz: float, steps: int
) -> None:
    assert steps_late(milliseconds, hz) == steps
    with pytest.raises(ValueError, match="0 ms or more, found -1"):
        steps_late(-1, hz)


def test_every_episode_of_a_plan_has_a_seed_of_its_own_and_tasks_come_in_turn() -> None:
    benchmark = Tabletop()
    tasks = benchmark.tasks("unseen_scenes")
    planned = plan(benchmark, "unseen_scenes", 16, seed=900)
    assert [seed for _, seed in planned] == list(range(900, 916))
    assert [task for task, _ in planned] == [*tasks, *tasks, *tasks[:2]]


@pytest.mark.parametrize(
    ("commands", "toggles"),
    [
        ([-1, -1, 1, 1], 1),
        ([-1, 1, -1, 1], 3),
        ([-1, 0, -1, 0, 1], 1),
        ([0, 0, 0], 0),
        ([0.2, 0.9, 0.1], 0),
        ([1], 0),
    ],
)
def test_a_gripper_toggles_when_it_is_sent_across_the_middle(
    commands: list[float], toggles: int
) -> None:
    tabletop = Tabletop().action_spec
    actions = np.zeros((len(commands), tabletop.dims), np.float32)
    actions[:, tabletop.grippers[0]] = commands
    assert gripper_toggles(tabletop, actions) == toggles
    assert gripper_toggles(replace(tabletop, grippers=()), actions) is None
    turned = replace(
        tabletop, gripper_open=tabletop.gripper_closed, gripper_closed=tabletop.gripper_open
    )
    assert gripper_toggles(turned, actions) == toggles


def test_the_grippers_of_two_arms_are_counted_together() -> None:
    spec = replace(Tabletop().action_spec, grippers=(0, 3))
    actions = np.zeros((4, spec.dims), np.float32)
    actions[:, 0] = (-1, 1, 1, -1)
    actions[:, 3] = (1, 1, -1, -1)
    assert gripper_toggles(spec, actions) == 3


# --- one loop, whatever is asked of it


class Seen(Line):
    """The same, as a robot would see it: the place is the state, and the picture its shade."""

    instruction = "go"

    def observe(self) -> Observation:
        place = super().observe()
        image = np.full((2, 2, 3), len(self.told), np.uint8)
        state = np.array([place], np.float32)
        return Observation({"eye": image}, state, self.instruction, np.zeros(2, np.float32))

    def privileged(self) -> dict[str, np.ndarray]:
        return {"told": np.array([len(self.told)], np.float32)}

    def expert_action(self) -> np.ndarray:
        return np.array([self.goal - self.place, -1.0], np.float32)


class Answers(Names):
    def infer(self, observation: Observation) -> np.ndarray:
        return self.decide(observation).actions


@pytest.mark.parametrize(("lag", "late"), [(0, "wait"), (2, "wait"), (2, "run_on"), (2, "blend")])
def test_what_is_recorded_changes_nothing_that_is_done(lag: int, late: str) -> None:
    settings = {"steps": 11, "lag": lag, "late": late}
    bare, kept = (
        episode(Names(4, 2), Seen(np.inf), record=record, **settings) for record in (False, True)
    )
    np.testing.assert_array_equal(bare.executed, kept.executed)
    assert (bare.waited, bare.gates, bare.recorded) == (kept.waited, kept.gates, None)
    frames = kept.frames({"attempt": 1})
    np.testing.assert_array_equal(frames.extra["executed"], kept.executed)
    np.testing.assert_array_equal(frames.action, kept.executed)
    steps = np.arange(11)
    assert frames.extra["privileged.told"][:, 0].tolist() == steps.tolist()
    assert frames.images["eye"][:, 0, 0, 0].tolist() == steps.tolist()
    travelled = np.cumsum([0, *kept.executed[:-1, 0]])
    np.testing.assert_allclose(frames.state[:, 0], travelled)
    assert frames.info == {"attempt": 1} and frames.task == "go"
    with pytest.raises(ValueError, match="run without `record=True`"):
        bare.frames({})


def test_an_expert_may_label_what_a_policy_meets() -> None:
    """DAgger with the world's own expert: its answers are recorded, the policy's are done."""
    world = Seen(50.0)
    made = episode(Walks(9, 4, 2), world, steps=12, label=Expert(world), record=True)
    frames = made.frames({})
    np.testing.assert_allclose(frames.action[:, 0], 50 - frames.state[:, 0])
    assert frames.state[-1, 0] == 9 and made.executed[:, 0].max() == 1
    assert np.abs(frames.action - made.executed).max() > 1


def test_who_labels_is_asked_at_every_step_and_only_where_it_is_kept() -> None:
    labels = Answers(3, 1)
    episode(Names(4, 2), Seen(np.inf), steps=7, label=labels, record=True)
    assert labels.asked == 7
    episode(Names(4, 2), Seen(np.inf), steps=7, label=labels)
    assert labels.asked == 7


def test_an_expert_is_a_policy_of_one_action() -> None:
    world = Seen(3.0)
    made = episode(Expert(world), world, steps=9, record=True)
    assert made.success and made.steps == 1 and made.gates == ((),)
    np.testing.assert_array_equal(made.executed, [[3.0, -1.0]])


@pytest.mark.parametrize(("tail", "steps"), [(0, 5), (2, 7), (9, 8)])
def test_a_tail_follows_success_as_far_as_the_limit(tail: int, steps: int) -> None:
    made = episode(Walks(5, 4, 1), Line(5), steps=8, tail=tail)
    assert (made.success, made.steps) == (True, steps)


def test_what_once_succeeded_has_succeeded() -> None:
    class Touches(Line):
        def step(self, action: np.ndarray) -> bool:
            super().step(action)
            return len(self.told) == 3  # and leaves again

    made = episode(Names(6, 6), Touches(0), steps=9, tail=2)
    assert (made.success, made.steps) == (True, 5)


def test_a_world_that_is_over_takes_no_further_step() -> None:
    class Falls(Line):
        def step(self, action: np.ndarray) -> bool:
            self.over = len(self.told) == 3
            return super().step(action)

    made = episode(Names(6, 6), Falls(np.inf), steps=50)
    assert (made.success, made.steps, len(made.gates)) == (False, 4, 1)


def test_a_world_is_closed_whatever_happens() -> None:
    class Closes(Line):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    fine, broken = Closes(2), Closes(2)
    episode(Walks(2, 2, 1), fine, steps=5)
    with pytest.raises(ValueError, match="9 actions of each chunk"):
        episode(Names(6, 2), broken, steps=5, execute=9)
    assert fine.closed == broken.closed == 1


# --- processes


def test_the_threads_of_whoever_asks_stay_as_they_are(monkeypatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        seen = []
        for made in pool.work_through(threads_here, [1, 2], workers=1):
            seen.append((made, torch.get_num_threads()))
        assert seen == [(1, 2), (1, 2)], "one in a job, as before between two"
        with pytest.raises(ZeroDivisionError):
            list(pool.work_through(fails, [1], workers=1))
        assert torch.get_num_threads() == 2
        made = list(pool.work_through(threads_here, [1, 2], workers=1, here=False))
        assert made == [1, 1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def threads_here(job: int) -> int:
    return torch.get_num_threads()


def fails(job: int) -> float:
    return job / 0


def test_policies_act_on_the_device_that_is_asked_for(monkeypatch) -> None:
    asked: list[str] = []

    def load_actor(folder: Path, *, device: str, known: object) -> Names:
        asked.append(device)
        return Names(4, 2)

    monkeypatch.setattr(pool, "load_actor", load_actor)
    world = SimpleNamespace(
        make=lambda task, seed: Line(np.inf), max_steps=3, action_spec=spec(), name="line"
    )
    jobs = [pool.Attempt("it", Task("walk", "line"), seed) for seed in (1, 2)]
    field = {"it": pool.Contender(Path("somewhere"))}
    for _ in range(2):
        made = list(pool.run_all(field, world, jobs, workers=1, device="meta"))
        assert [attempt.seed for attempt, _ in made] == [1, 2]
    assert asked == ["meta", "meta"], "loaded once a run, however many episodes"
    conditions = episodes.conditions
    monkeypatch.setattr(pool, "actor_fingerprint", lambda folder, known: "print")
    world.fingerprint = dict
    assert conditions(field["it"], world, "cuda") != conditions(field["it"], world)


def test_a_data_set_says_on_which_device_its_policies_acted() -> None:
    assert acted_on("cuda:1") == {"device": "cuda:1"}
    assert acted_on("cpu") == {}, "as those before it"


# --- behind a guard


def guarded(policy, world: World, *, steps: int, bounds: Bounds, **settings) -> Episode:
    guard = partial(ActionGuard, spec(), bounds, state_names=("x",))
    return episode(policy, world, steps=steps, guard=guard, **settings)


def test_behind_a_guard_that_has_nothing_to_say_all_is_as_without() -> None:
    for settings in ({}, {"lag": 2, "late": "run_on"}, {"lag": 2, "late": "blend"}):
        bare = episode(Walks(12, 4, 2), Seen(12), steps=40, **settings)
        safe = guarded(Walks(12, 4, 2), Seen(12), steps=40, bounds=Bounds.of(spec()), **settings)
        np.testing.assert_array_equal(bare.executed, safe.executed)
        assert (safe.guarded, bare.guarded, safe.waited) == (0, None, bare.waited)


def test_what_a_guard_lets_pass_is_what_is_carried_out() -> None:
    # 5 a second at 10 Hz is half a move a step: it takes twice as long.
    slow = Bounds.of(spec(), velocity=(5.0, np.inf))
    found = guarded(Walks(6, 4, 1), Seen(6), steps=40, bounds=slow)
    assert found.success and found.steps == 12 and found.guarded == 11  # its last move is of 0.5
    wall = Bounds.of(spec(), walls=(Wall(0, -1, 2.5, 0, 1.0),))
    world = Seen(6)
    stopped = guarded(Walks(6, 4, 4), world, steps=10, bounds=wall)
    assert not stopped.success and world.place == pytest.approx(2.5) and stopped.guarded == 8


def test_a_policy_of_nonsense_or_one_too_slow_is_held() -> None:
    class Nonsense(Names):
        def decide(self, seen: Observation) -> Decision:
            return Decision(np.full((2, 2), np.nan, np.float32), (1,))

    world = Seen(np.inf)
    found = guarded(Nonsense(2, 2), world, steps=6, bounds=Bounds.of(spec()))
    assert world.place == 0 and found.guarded == 6 and found.waited == 0
    late = Bounds.of(spec(), silence_s=0.35, on_silence="stop")
    found = guarded(Names(2, 2), Seen(np.inf), steps=20, bounds=late, lag=5)
    assert not found.executed[:, 0].any() and found.guarded >= 1
