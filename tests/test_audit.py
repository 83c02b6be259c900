"""What a policy listens to: a policy that by construction hears one input only changes under that
change alone; a change without effect is said, and not run; and a result answers one question."""

import dataclasses
import gzip
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from outside import Dots, reaching
from test_evaluate import dots_policy

from armlet import audit, evaluate, recompute
from armlet.benchmarks import Benchmark, Task, World, benchmark_robot
from armlet.benchmarks.tabletop import Tabletop
from armlet.benchmarks.tabletop.layouts import spoken
from armlet.evaluation import episodes, listening, listens, outcomes, report, stats
from armlet.evaluation.episodes import conditions
from armlet.evaluation.listens import AS_IS, ListenRun
from armlet.policies.checkpoint import save_policy
from armlet.policies.contract import Policy
from armlet.recipe import Evaluation, to_json
from armlet.robot.normalise import Normaliser
from armlet.robot.observation import Observation
from armlet.robot.spec import ActionSpec, RobotSpec
from armlet.rollout import pool
from armlet.rollout.changes import GREY, Change, Changed, changed, said_instead, shuffled
from armlet.rollout.loop import plan
from armlet.rollout.pool import Contender

# --- a world in which every input alone says what to do

SIDES = {"left": -1, "right": 1}
TOLD = {"left": "go left then right", "right": "go right then left"}


class WayWorld(World):
    """A dot that has to touch one wall, and then the other. Each camera is bright on the side of
    the wall that comes next; state and previous action say that side, too."""

    def __init__(self, benchmark: "Way", task: str) -> None:
        self.benchmark = benchmark
        self.task = task
        self.instruction = TOLD[task]
        self.at = 0.0
        self.next = SIDES[task]
        self.walls = 0

    def observe(self) -> Observation:
        picture = np.zeros((4, 8, 3), np.uint8)
        picture[:, 4 if self.next > 0 else 0 : 8 if self.next > 0 else 4] = 200
        side = np.array([self.next], np.float32)
        images = {"eye": picture, "hand": picture.copy()}
        return Observation(images, side, self.instruction, side.copy())

    def other_instruction(self, number: int) -> str | None:
        return TOLD["right" if self.task == "left" else "left"] if self.benchmark.names else None

    def step(self, action: np.ndarray) -> bool:
        self.at = float(np.clip(self.at + 0.2 * np.clip(action[0], -1, 1), -0.6, 0.6))
        if self.at * self.next > 0.59:
            self.walls += 1
            self.next = -self.next
        return self.walls == 2


@dataclass(frozen=True)
class Way(Benchmark):
    """`names`: whether its worlds can say their task for another thing."""

    name: ClassVar[str] = "way"
    sides: tuple[str, ...] = ("left", "right")
    names: bool = True

    @property
    def action_spec(self) -> ActionSpec:
        return ActionSpec(
            ("dx",), "delta", "none", (-1.0,), (1.0,), (), 0.0, 0.0, control_hz=5,
            translation_scale=0.2,
        )  # fmt: skip

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("side",)

    @property
    def cameras(self) -> dict[str, int]:
        return {"eye": 8, "hand": 8}

    @property
    def camera_sizes(self) -> dict[str, tuple[int, int]]:
        return {"eye": (4, 8), "hand": (4, 8)}

    @property
    def max_steps(self) -> int:
        return 14

    def tasks(self, split: str = "seen") -> tuple[Task, ...]:
        return tuple(Task(side, "way", split) for side in self.sides)

    def make(self, task: Task, seed: int) -> WayWorld:
        return WayWorld(self, task.name)

    def fingerprint(self) -> dict[str, Any]:
        return {"benchmark": self.name, **dataclasses.asdict(self)}


class Hears(Policy):
    """A policy that by construction hears one input only."""

    def __init__(self, hears: str) -> None:
        self.hears = hears
        # Words do not change on the way, so that all is decided at once.
        self.execute = 9 if hears == "words" else 1

    @property
    def robot(self) -> RobotSpec:
        return benchmark_robot(Way())

    def infer(self, observation: Observation) -> np.ndarray:
        if self.hears == "words":
            side = {said: SIDES[name] for name, said in TOLD.items()}
            first = side.get(observation.instruction, 0)
            return np.array([[first]] * 3 + [[-first]] * 6, np.float32)
        if self.hears == "state":
            return observation.state[None]
        if self.hears == "previous action":
            return observation.previous_action[None]
        picture = observation.images[self.hears.removeprefix("camera ")].astype(np.float32)
        return np.sign([[picture[:, 4:].mean() - picture[:, :4].mean()]]).astype(np.float32)


INPUTS = ("words", "camera eye", "camera hand", "state", "previous action")
MEAN = Normaliser(np.zeros(1, np.float32), np.full(1, 0.5, np.float32))
CHANGES = {
    "words": (
        "words of another task",
        "words for another thing",
        "words in another order",
        "no words",
    ),
    "camera eye": ("camera eye grey", "camera eye frozen at its first picture"),
    "camera hand": ("camera hand grey", "camera hand frozen at its first picture"),
    "state": ("state at its mean",),
    "previous action": ("previous action zero",),
}


@pytest.fixture
def known(monkeypatch) -> None:
    """Policies of this file are found by the name of their folder, and say their statistics."""
    monkeypatch.setattr(pool, "load_actor", lambda place, **_: Hears(place.name))
    monkeypatch.setattr(pool, "actor_fingerprint", lambda place, known=None: place.name)
    monkeypatch.setattr(listening, "state_normaliser", lambda policy: MEAN)


def heard(hears: str, out: Path, benchmark: Benchmark | None = None, count: int = 6):
    benchmark = benchmark or Way()
    planned = plan(benchmark, "seen", count, listening.SEEDS.start)
    return listening.listen(
        hears, Contender(Path(hears)), Hears(hears), benchmark, planned, out, title="audit"
    )


@pytest.mark.parametrize("hears", INPUTS)
def test_only_what_is_listened_to_costs_success(hears, known, tmp_path, monkeypatch) -> None:
    """Every change is run, whatever a trial says of it."""
    monkeypatch.setattr(listening._Moments, "why_not", lambda *_: "")
    found = heard(hears, tmp_path)
    assert not found.left_out
    assert [run.change for run in found.runs] == [AS_IS, *sum(CHANGES.values(), ())]
    for run in found.runs:
        assert run.of == next((of for of, names in CHANGES.items() if run.change in names), "")
        assert run.episodes == tuple(range(6))
        assert set(run.success) == {run.of != hears}, run.change


@pytest.mark.parametrize("hears", INPUTS)
def test_what_is_not_heard_is_said_and_not_run(hears, known, tmp_path) -> None:
    found = heard(hears, tmp_path)
    assert [run.change for run in found.runs] == [AS_IS, *CHANGES[hears]]
    assert {each.of for each in found.left_out} == set(INPUTS) - {hears}
    for each in found.left_out:
        assert "the same to the bit at" in each.why
    ran = (tmp_path / episodes.LOG).read_text().splitlines()
    assert len(ran) == 6 * (1 + len(CHANGES[hears]))


def test_a_policy_that_changes_late_is_not_taken_for_deaf(known, tmp_path, monkeypatch) -> None:
    """Its first answers are the same under a frozen camera: only later ones differ."""
    found = heard("camera eye", tmp_path, count=1)
    [frozen] = [run for run in found.runs if "frozen" in run.change]
    assert frozen.success == (False,)


def test_changes_that_cannot_be_made_are_said(known, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(listening, "state_normaliser", lambda policy: None)
    found = heard("words", tmp_path, Way(sides=("left",), names=False))
    why = {each.change: each.why for each in found.left_out}
    assert "no other task" in why["words of another task"]
    assert "cannot say a task for another thing" in why["words for another thing"]
    assert "does not say the statistics" in why["state at its mean"]
    assert [run.change for run in found.runs] == [AS_IS, *CHANGES["words"][2:]]


def test_another_task_that_is_said_in_the_same_words_is_none(monkeypatch) -> None:
    monkeypatch.setitem(TOLD, "right", TOLD["left"])
    asked, left_out = listening.worth_running("p", Hears("words"), Way(), plan(Way(), "seen", 2, 0))
    assert "other_task" not in [each.change.what for each in asked]
    assert any("said in other words" in each.why for each in left_out)


def test_a_policy_without_a_state_and_one_without_statistics(monkeypatch) -> None:
    policy = dots_policy(0)
    assert "no statistics" in listening.mean_state(policy)
    # Of a range or of quantiles the middle is what becomes 0.
    body = dataclasses.replace(
        policy.body,
        state=Normaliser(*(np.array([value], np.float32) for value in (2, 4, -1, 5))),
    )
    policy.body = body
    assert listening.mean_state(policy) == (2 + 1 * 5,)
    policy.body = dataclasses.replace(
        body, state=Normaliser(np.zeros(0, np.float32), np.ones(0, np.float32))
    )
    assert "no state" in listening.mean_state(policy)


def test_a_refusal_is_told_and_not_run(known, tmp_path, monkeypatch) -> None:
    class Strict(Hears):
        def infer(self, observation: Observation) -> np.ndarray:
            if observation.instruction not in TOLD.values():
                raise ValueError(f"unknown words {observation.instruction!r}")
            return super().infer(observation)

    asked, left_out = listening.worth_running(
        "strict", Strict("words"), Way(), plan(Way(), "seen", 2, 0)
    )
    assert [each.change.what for each in asked] == ["other_task", "other_thing"]
    [empty] = [each for each in left_out if each.change == "no words"]
    assert empty.why == "the policy refuses it: unknown words '.'"


# --- episodes are kept under their change


def test_what_was_run_is_not_run_again_and_never_for_another_change(
    known, tmp_path, monkeypatch
) -> None:
    ran: list[tuple[str, int]] = []
    run_all = episodes.run_all

    def counted(field, benchmark, attempts, **settings):
        ran.extend((field[each.name].change, each.seed) for each in attempts)
        return run_all(field, benchmark, attempts, **settings)

    monkeypatch.setattr(episodes, "run_all", counted)
    first = heard("words", tmp_path)
    assert len(ran) == len(set(ran)) == 6 * 5
    # Killed: the last lines are missing, and only they are run again.
    log = tmp_path / episodes.LOG
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-3]))
    ran.clear()
    assert heard("words", tmp_path) == first
    assert len(ran) == 3


def test_a_change_is_part_of_what_an_episode_was_made_from(known) -> None:
    contender = Contender(Path("words"))
    plain = conditions(contender, Way())
    assert "change" not in plain  # rows of before there were changes stay good
    changes = [Change("other_task"), Change("blank", camera="eye"), Change("blank", camera="hand")]
    changes += [Change("mean_state", state=(1.0,)), Change("mean_state", state=(2.0,))]
    made_from = [conditions(dataclasses.replace(contender, change=each), Way()) for each in changes]
    keys = {episodes.key(each, "seen", "left", 0) for each in (plain, *made_from)}
    assert len(keys) == len(changes) + 1
    for each in made_from:
        again = json.loads(json.dumps(each))
        assert episodes.key(again, "seen", "left", 0) == episodes.key(each, "seen", "left", 0)


# --- one observation


def seen(value: int, *past: Observation) -> Observation:
    images = {name: np.full((2, 3, 3), value + index, np.uint8) for index, name in enumerate("ab")}
    return Observation(
        images, np.array([value, 1.0]), f"words {value}", np.array([value, 0.5]), past
    )


CASES = [
    (Change("other_task"), {"instruction": "others"}),
    (Change("blank", camera="b"), {"images": ("b", GREY)}),
    (Change("frozen", camera="a"), {"images": ("a", 77)}),
    (Change("mean_state", state=(3.0, 4.0)), {"state": [3, 4]}),
    (Change("no_previous_action"), {"previous_action": [0, 0]}),
]


@pytest.mark.parametrize(("change", "expected"), CASES, ids=lambda case: str(case)[:30])
def test_one_input_is_changed_now_and_before_and_all_others_are_kept(change, expected) -> None:
    observation = seen(9, seen(5), seen(7))
    picture = np.full((2, 3, 3), 77, np.uint8)
    found = changed(observation, change, text="others", picture=picture)
    assert len(found.past) == 2
    for was, now in zip((*observation.past, observation), (*found.past, found), strict=True):
        for field in ("state", "previous_action", "instruction"):
            wanted = expected.get(field, getattr(was, field))
            assert np.array_equal(getattr(now, field), wanted), field
        for name in "ab":
            camera, value = expected.get("images", ("", 0))
            wanted = np.full((2, 3, 3), value) if name == camera else was.images[name]
            assert np.array_equal(now.images[name], wanted)
            assert now.images[name].dtype == np.uint8
    assert observation.images["a"][0, 0, 0] == 9  # nothing of the observation itself is changed


class Shown(Hears):
    def infer(self, observation: Observation) -> np.ndarray:
        self.got = observation
        return np.zeros((1, 1), np.float32)


def test_a_camera_is_frozen_at_the_first_picture_of_each_episode() -> None:
    policy = Shown("state")
    acting = Changed(policy, Change("frozen", camera="a"))
    memory = np.full((2, 3, 3), 10, np.uint8)
    for start in (10, 50):
        acting.reset()
        for value in (start, start + 1, start + 2):
            memory[:] = value  # a world may draw all of its pictures into one place
            acting.decide(dataclasses.replace(seen(0), images={"a": memory}))
            assert policy.got.images["a"].tolist() == np.full((2, 3, 3), start).tolist()
    # An episode begins with each.
    kept: list[Observation] = []
    policy.decide_all = lambda observations: kept.extend(observations)  # type: ignore[assignment]
    acting.decide_all([seen(1), seen(2)])
    assert [each.images["a"][0, 0, 0] for each in kept] == [1, 2]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"what": "deaf"}, "no change 'deaf'"),
        ({"what": "blank"}, "a camera is named"),
        ({"what": "empty", "camera": "eye"}, "a camera is named"),
        ({"what": "mean_state"}, "numbers of a state"),
        ({"what": "frozen", "camera": "eye", "state": (1.0,)}, "numbers of a state"),
    ],
)
def test_a_change_that_contradicts_itself_is_an_error(fields, words) -> None:
    with pytest.raises(ValueError, match=words):
        Change(**fields)


def test_a_change_that_lacks_what_it_needs_is_an_error() -> None:
    with pytest.raises(ValueError, match="no camera 'c'; it has a, b"):
        changed(seen(1), Change("blank", camera="c"))
    with pytest.raises(ValueError, match="needs the text"):
        changed(seen(1), Change("shuffled"))
    one = Way(sides=("left",))
    contender = Contender(Path("words"), change=Change("other_task"))
    with pytest.raises(ValueError, match="would have no effect"):
        contender.run(Hears("words"), one, one.tasks()[0], 0)


# --- what is said


def test_words_in_another_order_are_the_same_words() -> None:
    text = "put the red cube on the red plate"
    orders = {shuffled(text, seed) for seed in range(40)}
    assert len(orders) > 30
    assert text not in orders
    for order in orders:
        assert Counter(order.split()) == Counter(text.split())
    assert shuffled(text, 3) == shuffled(text, 3)
    # Of two words there is one other order; of one, or the same twice, there is none.
    assert {shuffled("go left", seed) for seed in range(9)} == {"left go"}
    assert shuffled("go", 0) is shuffled("go go", 0) is None


def test_tabletop_names_another_thing_of_the_scene_and_another_task() -> None:
    benchmark = Tabletop()
    tasks = benchmark.tasks()
    named = set()
    for number, task in enumerate([*tasks, *tasks]):
        seed = 400_000_000 + number
        world = benchmark.make(task, seed)
        said = world.instruction
        other = said_instead(Change("other_thing"), benchmark, task, seed)
        # Exactly one thing of the scene, and of the same kind, stands in the place of the one that
        # is meant; where it goes is as it was.
        kinds = {thing.name: thing.kind for thing in world._layout.things}
        meant = world.goal.subject
        fitting = []
        for name, kind in kinds.items():
            swapped = said.replace(spoken(meant), spoken(name))
            if name != meant and kind == kinds[meant] and other == swapped:
                fitting.append(name)
        assert len(fitting) == 1, (said, other)
        # Never the thing that it should be put on: of all that are named in turn.
        named_in_turn = {world.other_instruction(each) for each in range(len(kinds))}
        if world.goal.target:
            onto_itself = said.replace(spoken(meant), spoken(world.goal.target))
            assert onto_itself not in named_in_turn
        named.update(fitting)
        another = said_instead(Change("other_task"), benchmark, task, seed)
        theirs = [benchmark.make(each, seed).instruction for each in tasks if each != task]
        assert another in theirs
        assert another != said
    assert len(named) > 5


# --- numbers and words

RUNS = [
    ListenRun("p", "", AS_IS, (0, 1, 2, 3), (True, True, True, False)),
    ListenRun("p", "words", "no words", (1, 3), (False, False)),
    ListenRun("p", "state", "state at its mean", (0, 1, 2, 3), (True, True, False, True)),
]


def test_rows_are_paired_with_the_policy_as_it_is_in_the_same_episodes() -> None:
    first, words, state = listens.rows(RUNS)
    low, high = stats.rate_ci95(3, 4)
    assert first == {
        "policy": "p", "of": "", "change": AS_IS, "successes": 3, "episodes": 4, "success": 0.75,
        "low": low, "high": high,
    }  # fmt: skip
    pair = stats.compare_paired(np.array([False, False]), np.array([True, False]))
    assert (words["successes"], words["episodes"], words["difference"]) == (0, 2, -0.5)
    assert (words["difference_low"], words["difference_high"]) == pair.ci95
    assert state["difference"] == 0
    assert state["mcnemar_p"] == stats.mcnemar(1, 1)
    with pytest.raises(ValueError, match="not as it is"):
        listens.rows(RUNS[1:])
    with pytest.raises(ValueError, match="2 outcomes of 1 episodes"):
        ListenRun("p", "", AS_IS, (0,), (True, True))


def test_words_say_what_is_heard_what_is_not_shown_and_what_was_not_run() -> None:
    many = tuple(range(50))
    runs = [
        ListenRun("p", "", AS_IS, many, (True,) * 40 + (False,) * 10),
        ListenRun("p", "words", "no words", many, (False,) * 50),
        ListenRun("p", "state", "state at its mean", many, (True,) * 41 + (False,) * 9),
        ListenRun("p", "camera a", "camera a grey", many, (True,) * 50),
    ]
    left_out = [listens.LeftOut("p", "words", "words for another thing", "none\ncan be said")]
    text = listens.table(listens.rows(runs), left_out)
    lines = text.splitlines()
    assert lines[0] == "| changed | p: success of 50 (95 %) |"
    assert lines[2].startswith("| as is | 80 % (")
    assert "| no words | 0 % (0–7) |" in lines
    [loses] = [line for line in lines if "listens to" in line]
    assert "no words (−80 points, −89 to −65)" in loses
    assert "state" not in loses
    [same] = [line for line in lines if "no loss is shown" in line]
    assert "state at its mean (+2 points" in same
    [better] = [line for line in lines if "better without" in line]
    assert "camera a grey (+20 points" in better
    assert lines[-1] == "- p, words for another thing: not run, none can be said"


# --- the verb


@pytest.fixture
def teacher(tmp_path) -> Path:
    return save_folder(tmp_path / "teacher")


def save_folder(folder: Path) -> Path:
    save_policy(dots_policy(0), folder, provenance={})
    return folder


def test_the_verb_writes_what_its_rows_follow_from(teacher, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    page = audit.main((str(teacher),), benchmark="outside:Dots", count=4, workers=1, out=out)
    said = json.loads((out / "audit.json").read_text())
    assert page == f"{(out / 'audit.md').read_text()}\n{out / 'audit.json'}"
    assert "Each policy in 4 episodes of dots (seen), seeds 400,000,000 to 400,000,003" in page
    # Every row follows from the outcomes beside it.
    runs = []
    for each in said["outcomes"]:
        success = tuple(bit == "1" for bit in each["success"])
        numbers = tuple(each["episodes"])
        runs.append(ListenRun(each["policy"], each["of"], each["change"], numbers, success))
    assert listens.rows(runs) == said["listens"]
    assert said["episodes"][1] == ["dots", "blue", 400_000_001]
    changes = {row["change"] for row in said["listens"]} | {
        row["change"] for row in said["left_out"]
    }
    assert {"camera eye grey", "words of another task", "words for another thing"} <= changes
    assert said["fingerprint"]["armlet"]
    # As it is, it does what an evaluation of it does.
    successes = [pool.Contender(teacher).run(dots_policy(0), Dots(), task, seed).success
                 for task, seed in plan(Dots(), "seen", 4, 400_000_000)]  # fmt: skip
    assert said["outcomes"][0]["success"] == "".join(map(str, map(int, successes)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 500_000_000}, "expected seeds within 400,000,000 to 499,999,999"),
        ({"seed": 499_999_999, "count": 2}, "expected seeds within"),
        ({"count": 0}, "--count 0"),
        ({"benchmark": None}, "does not say in which world it was made"),
        ({"split": "unseen"}, "no split 'unseen'"),
        ({"held_out": 0.5}, "--held-out has no effect without --episodes"),
        ({"episodes": Path("e"), "seed": 1, "benchmark": None}, "--seed has no effect with --ep"),
        ({"episodes": Path("e")}, "--benchmark has no effect with --episodes"),
    ],
)
def test_the_verb_refuses_before_anything_is_run(options, words, teacher, tmp_path) -> None:
    asked = {"benchmark": "outside:Dots", "out": tmp_path / "out", **options}
    with pytest.raises(ValueError, match=words):
        audit.main((str(teacher),), **asked)
    assert not (tmp_path / "out").exists()


def test_two_policies_of_one_name_are_an_error(teacher, tmp_path) -> None:
    other = save_folder(tmp_path / "elsewhere" / "teacher")
    with pytest.raises(ValueError, match="two policies are called 'teacher'"):
        audit.main((str(teacher), str(other)), benchmark="outside:Dots")
    with pytest.raises(ValueError, match="name at least one policy"):
        audit.main(())


# --- as a section of a report


def test_a_report_says_what_its_policies_listen_to(teacher, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(listening, "TRIED", 1)
    setting = Evaluation(episodes=2, workers=1, latency_calls=2, videos=0, execute=(1,), listens=3)
    recipe = dataclasses.replace(reaching(), teacher=teacher, out=tmp_path, evaluation=setting)
    path = evaluate.main(recipe)
    said = report.read(path)
    rows = said["listens"]
    # Policies as they are made: not once more for each number of actions that is tried.
    assert {row["policy"] for row in rows} == {"teacher"}
    assert rows[0]["change"] == AS_IS
    assert len(rows) + len(said["listens_left_out"]) == 1 + 4 + 2 + 1 + 1
    assert all(row["episodes"] == 3 for row in rows)
    # Counts and intervals follow from the outcomes that are kept beside it.
    kept = outcomes.read(tmp_path / "evaluation" / said["outcomes"]["file"])
    assert outcomes.recompute(kept)["listens"] == rows
    assert [each.seed for each in kept.listened] == [400_000_000, 400_000_001, 400_000_002]
    assert outcomes.from_bytes(outcomes.to_bytes(kept)) == kept
    assert "none differs" in recompute.main((path,))
    changed_by_hand = json.loads(path.read_text())
    changed_by_hand["listens"][0]["successes"] += 1
    path.write_text(json.dumps(changed_by_hand))
    with pytest.raises(ValueError, match=r"listens, teacher with as is.successes"):
        recompute.main((path,))
    assert "| changed | teacher: success of 3" in (path.with_name("table.md")).read_text()


def test_a_file_without_listening_is_what_it_was(teacher, tmp_path) -> None:
    setting = Evaluation(episodes=2, workers=1, latency_calls=2, videos=0)
    recipe = dataclasses.replace(reaching(), teacher=teacher, out=tmp_path, evaluation=setting)
    said = report.read(evaluate.main(recipe))
    assert said["listens"] == said["listens_left_out"] == []
    content = gzip.decompress((tmp_path / "evaluation/outcomes.json.gz").read_bytes())
    assert json.loads(content)["version"] == 1
    assert b"listen" not in content
    assert "listens" not in to_json(setting)


def test_seeds_that_something_else_has_are_refused(tmp_path) -> None:
    collection = dataclasses.replace(reaching().collection, seed=400_000_002, episodes=5)
    recipe = dataclasses.replace(
        reaching(), out=tmp_path, collection=collection, evaluation=Evaluation(listens=3)
    )
    with pytest.raises(ValueError, match="collection has 400000002 to 400000006; give --coll"):
        evaluate.main(recipe)
    listening.check_apart(2, {"collection": range(400_000_002, 400_000_007)})


def test_outcomes_of_episodes_that_nobody_planned_are_an_error() -> None:
    run = ListenRun("p", "", AS_IS, (0, 2), (True, False))
    planned = (outcomes.Planned("seen", "f", "t", 1),) * 2
    with pytest.raises(ValueError, match="no episode 2, 2 were planned"):
        outcomes.Outcomes(10.0, 5, (), (), (), planned, (run,))
    with pytest.raises(TypeError, match="text of 0 and 1"):
        ListenRun.from_json({**run.to_json(), "success": "1x"})


def test_an_audit_is_recomputed_and_its_page_follows_from_it(tmp_path) -> None:
    said = {
        "kind": "audit",
        "version": 1,
        "world": "way",
        "split": "seen",
        "listens": listens.rows(RUNS),
        "left_out": [],
        "episodes": [["way", "left", number] for number in range(4)],
        "outcomes": [run.to_json() for run in RUNS],
    }
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(said))
    assert "none differs" in recompute.main((path,))
    page = listens.page(listens.read(path))
    assert page.startswith("Each policy in 4 episodes of way (seen), seeds 0 to 3, ")
    # Not all of as many episodes: how many is said of each.
    assert "| no words | 0 % of 2 (" in page
    said["listens"][1]["successes"] = 1
    path.write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"p with no words\.successes"):
        recompute.main((path,))
    lacking = {name: value for name, value in said.items() if name != "outcomes"}
    path.write_text(json.dumps(lacking))
    with pytest.raises(ValueError, match="lacks outcomes"):
        listens.read(path)
    path.write_text(json.dumps({**said, "version": 2}))
    with pytest.raises(ValueError, match="version 2, expected 'audit' and 1"):
        listens.read(path)
