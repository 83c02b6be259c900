"""Controls of a dynamic route, against counting and against the network cut by hand."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from outside import Dots, reaching
from test_evaluate import dots_policy

from armlet import evaluate
from armlet.data.lines import read_lines
from armlet.evaluation import measure
from armlet.evaluation.routes import commonest, per_task, shuffled
from armlet.policies.checkpoint import save_policy
from armlet.policies.routed import Routed, Routing
from armlet.recipe import Evaluation, Recipe
from armlet.robot.observation import Observation
from armlet.rollout.loop import plan, run_task
from armlet.rollout.routes import Guided, Routes, place_of

ROUTES = st.lists(st.text("01", min_size=2, max_size=2), min_size=1, max_size=7)


def rows_of(split: str, episodes: list[list[str]], task: str = "red") -> list[dict]:
    return [
        {"split": split, "task": task, "seed": seed, "gates": gates}
        for seed, gates in enumerate(episodes)
    ]


@given(st.lists(ROUTES, min_size=1, max_size=6), st.lists(ROUTES, max_size=3), st.integers(0, 99))
def test_shuffled_routes_are_the_same_routes_and_each_is_anothers(seen, unseen, seed) -> None:
    # Numbered, so that it can be told whose each is.
    number = iter(range(1000))
    marked = [[f"{next(number)}" for _ in each] for each in seen]
    found = dict(shuffled(rows_of("seen", marked) + rows_of("unseen", unseen), seed))
    dealt = []
    for episode, own in enumerate(marked):
        given = found["seen", "red", episode]
        assert len(given) == len(own)
        dealt += given
        if sum(map(len, marked)) > 1:
            assert all(mine != theirs for mine, theirs in zip(own, given, strict=True))
    assert Counter(dealt) == Counter(route for each in marked for route in each)
    # Of each split its own.
    others = [route for episode in range(len(unseen)) for route in found["unseen", "red", episode]]
    assert Counter(others) == Counter(route for each in unseen for route in each)


def test_another_seed_deals_otherwise_and_the_same_deals_the_same() -> None:
    rows = rows_of("seen", [[f"{3 * n + i}" for i in range(3)] for n in range(9)])
    assert shuffled(rows, 1) == shuffled(rows, 1) != shuffled(rows, 2)


def test_the_commonest_route_of_all_and_of_each_task() -> None:
    red = rows_of("seen", [["10", "10", "11"], ["01", "10"]], "red")
    blue = rows_of("seen", [["11", "11", "01"], ["11"]], "blue")
    assert commonest(red) == "10" and commonest(red + blue) == "11"
    assert commonest(rows_of("seen", [["11", "01"]])) == "01", "of two alike, by the text"
    benchmark = Dots()
    planned = plan(benchmark, "seen", 4, 7)
    found = dict(per_task(red + blue, planned))
    for task, seed in planned:
        assert found[place_of(task, seed)] == ("10" if "red" in task.name else "11",)
    with pytest.raises(ValueError, match=r"no episode of '.*blue.*'.*route-episodes"):
        per_task(red, planned)
    assert commonest(rows_of("seen", [["00", "00", "01"]])) == "00", "none at all is a route"


def student(bias: float = 0.0) -> Routed:
    """A router that goes by what it sees, or one whose `bias` decides alone."""
    policy = Routing(budget=0.5).build(dots_policy(0))
    assert isinstance(policy, Routed)
    torch.manual_seed(2)
    torch.nn.init.normal_(policy.router.leave.weight, std=0.0 if bias else 5.0)
    with torch.no_grad():
        policy.router.leave.bias.copy_(torch.tensor([bias, -bias]))
    return policy.eval()


def observations(count: int = 6) -> list[Observation]:
    seen: list[Observation] = []
    for task, seed in plan(Dots(), "seen", 9, 3):
        run_task(dots_policy(0), Dots(), task, seed, on_look=seen.append)
    return seen[:count]


@torch.no_grad()
def test_a_route_that_is_told_is_the_network_cut_to_it() -> None:
    policy = student()
    for route, kept in (("10", (0,)), ("01", (1,)), ("11", (0, 1))):
        for observation in observations():
            found = policy.along(route).decide(observation)
            cut = policy.keep_layers(kept).decide(observation)
            assert np.array_equal(found.actions, cut.actions)
            assert (
                found.gates == tuple(map(int, route)) == policy.along(route).layers_for(observation)
            )
    assert policy.told is None, "the student itself still asks its router"
    for wrong in ("1", "111", "1x"):
        with pytest.raises(ValueError, match=f"the route is '{wrong}', expected 2 characters"):
            policy.along(wrong)


def test_decisions_take_their_routes_in_turn_and_begin_anew_with_an_episode() -> None:
    guided = Guided(student(), ("10", "01", "11"))
    moments = observations(5)
    for _ in range(2):
        guided.reset()
        ran = ["".join(map(str, guided.decide(each).gates)) for each in moments]
        assert ran == ["10", "01", "11", "10", "01"]
    assert (guided.execute, guided.robot) == (student().execute, student().robot)


def test_what_no_router_decides_is_refused() -> None:
    task, seed = plan(Dots(), "seen", 1, 3)[0]
    routes = Routes("shuffled", episodes=((place_of(task, seed), ("10",)),))
    with pytest.raises(ValueError, match="has no router"):
        routes.told(dots_policy(0), task, seed)
    with pytest.raises(ValueError, match=f"no routes are known of '.*', seed {seed + 1}"):
        routes.told(student(), task, seed + 1)


# --- in an evaluation


ALL = ("static", "static_per_task", "searched", "shuffled")


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Recipe:
    monkeypatch.setattr(measure, "peak_memory_mb", lambda *asked: 1.0)
    save_policy(dots_policy(0), tmp_path / "teacher")
    setting = Evaluation(
        episodes=6, workers=1, latency_calls=4, videos=0, routes=ALL, route_episodes=4
    )
    return dataclasses.replace(
        reaching(), teacher=tmp_path / "teacher", out=tmp_path, evaluation=setting
    )


def logged(recipe: Recipe) -> list[dict]:
    return list(map(json.loads, read_lines(recipe.out / "evaluation" / "episodes.jsonl")))


def test_a_router_that_ignores_what_it_sees_is_the_same_under_every_control(recipe) -> None:
    save_policy(student(bias=1.0), recipe.student_folder)
    report = json.loads(evaluate.main(recipe).read_text())
    labels = [f"{recipe.name}{what}" for what in ("", " static", " static per task", " shuffled")]
    rows = {row["name"]: row for row in report["policies"]}
    assert list(rows) == ["teacher", *labels[:3], f"{recipe.name} searched", labels[3]]
    by_conditions: dict[str, list] = {}
    for row in logged(recipe):
        if row["made_from"]["policy"] == rows[recipe.name]["fingerprint"]:
            told = json.dumps(row.pop("made_from").get("routes"))
            by_conditions.setdefault(told, []).append(sorted(row.items()))
    assert len(by_conditions) >= 4
    as_it_is = by_conditions["null"]
    assert all(dict(row)["gates"] == ["10"] * len(dict(row)["gates"]) for row in as_it_is)
    same = [each for each in by_conditions.values() if each == as_it_is]
    assert len(same) >= 4, "as it is, static, of each task, shuffled"
    before = len(logged(recipe))
    evaluate.main(recipe)
    assert len(logged(recipe)) == before, "nothing was run again"


def test_shuffled_in_an_evaluation_takes_the_routes_of_its_own_episodes(recipe) -> None:
    setting = dataclasses.replace(recipe.evaluation, routes=("shuffled",), route_episodes=140)
    recipe = dataclasses.replace(recipe, evaluation=setting)
    save_policy(student(), recipe.student_folder)
    report = json.loads(evaluate.main(recipe).read_text())
    fingerprint = report["policies"][1]["fingerprint"]
    rows = [row for row in logged(recipe) if row["made_from"]["policy"] == fingerprint]
    own = [row for row in rows if "routes" not in row["made_from"]]
    assert len(own) == 6 and len(rows) == 12
    assert len({route for row in own for route in row["gates"]}) > 1, "it goes by what it sees"
    own.sort(key=lambda row: row["seed"])  # the order of the plan
    dealt = dict(shuffled(own, own[0]["seed"]))
    for row in rows:
        if "routes" not in row["made_from"]:
            continue
        given = dealt[row["split"], row["task"], row["seed"]]
        assert row["gates"] == [given[n % len(given)] for n in range(len(row["gates"]))]


def test_static_routes_are_chosen_where_no_report_is_about(recipe) -> None:
    save_policy(student(), recipe.student_folder)
    evaluate.main(recipe)
    lines = (recipe.out / "evaluation" / "routes" / "episodes.jsonl").read_text().splitlines()
    seeds = {json.loads(line)["seed"] for line in lines}
    first = recipe.calibration.seed
    assert seeds == set(range(first, first + 4))


def test_controls_of_nobody_are_an_error(recipe) -> None:
    with pytest.raises(ValueError, match="none of teacher has one"):
        evaluate.main(recipe)
    setting = dataclasses.replace(recipe.evaluation, routes=())
    with pytest.raises(ValueError, match="route-episodes is about routes"):
        evaluate.main(dataclasses.replace(recipe, evaluation=setting))
