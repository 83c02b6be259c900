"""The plan of a report: written before the first episode, held to by whoever continues, and another
for another look."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from outside import reaching

from armlet.evaluation import episodes, planning
from armlet.evaluation.planning import commit
from armlet.evaluation.settings import planned
from armlet.recipe import Evaluation, Recipe
from armlet.rollout.loop import Episode
from armlet.rollout.pool import Contender

FIRST = 800_000_000


@dataclasses.dataclass(frozen=True)
class Named:
    """A contender that is no folder: a plan asks for its fingerprint."""

    fingerprint: str


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    setting = Evaluation(purpose="report", episodes=4, workers=1, baselines=("cut",))
    return dataclasses.replace(reaching(), out=tmp_path, evaluation=setting)


@pytest.fixture
def field() -> dict:
    return {"teacher": Named("a"), "cut": Named("b"), "student": Named("c")}


def asked(recipe: Recipe, **setting) -> Recipe:
    return dataclasses.replace(recipe, evaluation=dataclasses.replace(recipe.evaluation, **setting))


def test_a_plan_says_what_will_be_run_and_by_which_rule(recipe, field, tmp_path) -> None:
    plan = commit(recipe, field, tmp_path)
    said = json.loads((tmp_path / "plan.json").read_text())
    assert plan is not None and said == plan.to_json()
    assert said["policies"] == {"teacher": "a", "cut": "b", "student": "c"}
    assert (said["look"], said["episodes"], said["seeds"]) == (1, 4, [FIRST, FIRST + 3])
    assert (said["splits"], said["baselines"], said["margin"]) == (["seen"], ["cut"], 0.03)
    assert said["benchmark"] == {"benchmark": "dots"}
    assert any("McNemar" in test for test in said["tests"]) and "every planned" in said["stopping"]
    assert said["written"].endswith("+00:00") and said["earlier"] == []


def test_a_run_that_continues_has_the_plan_that_is_there(recipe, field, tmp_path) -> None:
    first = commit(recipe, field, tmp_path)
    content = (tmp_path / "plan.json").read_bytes()
    assert commit(recipe, field, tmp_path) == first
    assert (tmp_path / "plan.json").read_bytes() == content


CHANGES = {
    "episodes: 4 → 5": lambda recipe, field: (asked(recipe, episodes=5), field),
    "margin: 0.03 → 0.05": lambda recipe, field: (asked(recipe, margin=0.05), field),
    "seeds.0: 800000000 → 700000000": lambda recipe, field: (
        asked(recipe, seed=700_000_000),
        field,
    ),
    "policies.student: c → other": lambda recipe, field: (
        recipe,
        {**field, "student": Named("other")},
    ),
    "policies.more: nothing → d": lambda recipe, field: (recipe, {**field, "more": Named("d")}),
    "policies.student: c → nothing": lambda recipe, field: (
        recipe,
        {"teacher": Named("a"), "cut": Named("b")},
    ),
    "baselines.0: cut → nothing": lambda recipe, field: (asked(recipe, baselines=()), field),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_plan_is_refused_by_name_and_is_another_look(
    recipe, field, tmp_path, what: str
) -> None:
    commit(recipe, field, tmp_path)
    content = (tmp_path / "plan.json").read_bytes()
    other, others = CHANGES[what](recipe, field)
    with pytest.raises(
        ValueError, match=r"plan\.json was written before .*evaluation\.look 2"
    ) as e:
        commit(other, others, tmp_path)
    assert what in str(e.value)
    second = commit(asked(other, look=2), others, tmp_path)
    assert second is not None and second.look == 2 and what in second.earlier[0]
    assert second.earlier[0].startswith("look 1: ")
    assert (tmp_path / "plan.json").read_bytes() == content
    assert json.loads((tmp_path / "plan-2.json").read_text()) == second.to_json()
    assert commit(asked(other, look=2), others, tmp_path) == second


def test_a_look_that_is_none_is_refused(recipe, field, tmp_path) -> None:
    with pytest.raises(
        ValueError, match=r"plan\.json is missing.*the next is --evaluation\.look 1"
    ):
        commit(asked(recipe, look=2), field, tmp_path)
    commit(recipe, field, tmp_path)
    with pytest.raises(ValueError, match=r"look 2 has no effect: .*look 1 continues it"):
        commit(asked(recipe, look=2), field, tmp_path)
    with pytest.raises(
        ValueError, match=r"look 3: .*plan-2\.json is missing.*--evaluation\.look 2"
    ):
        commit(asked(recipe, look=3, episodes=9), field, tmp_path)


def test_for_tuning_there_is_no_plan(recipe, field, tmp_path) -> None:
    assert commit(asked(recipe, purpose="tuning"), field, tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_plan_after_the_episodes_is_none(recipe, field, tmp_path, monkeypatch) -> None:
    def run_all(field, benchmark, attempts, **settings):
        for each in attempts:
            yield each, Episode(True, np.zeros((7, 1)), 0, None, ((1, 1),))

    monkeypatch.setattr(episodes, "run_all", run_all)
    monkeypatch.setattr(Contender, "fingerprint", property(lambda self: "a"))
    met = planned(recipe.benchmark, recipe.evaluation)
    contenders = {"teacher": Contender(Path("teacher"))}
    episodes.run_episodes(contenders, recipe.benchmark, met, tmp_path, title="test")
    with pytest.raises(
        ValueError, match=r"episodes\.jsonl has episodes of the seeds 800,000,000 to"
    ):
        commit(recipe, field, tmp_path)
    # Another process may be writing the last line, and holds the lock: whoever plans cuts nothing.
    log = tmp_path / episodes.LOG
    with log.open("ab") as file:
        file.write(b'{"half')
    content = log.read_bytes()
    with pytest.raises(ValueError, match=r"episodes\.jsonl has episodes"):
        commit(recipe, field, tmp_path)
    assert log.read_bytes() == content
    # Those of tuning are no part of it.
    commit(asked(recipe, seed=FIRST + 4), field, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, r"plan\.json is no plan of version 1"),
        ({"stopping": None}, r"plan\.json lacks stopping; was it edited"),
    ],
)
def test_a_plan_that_is_none_is_named(recipe, field, tmp_path, change, message) -> None:
    commit(recipe, field, tmp_path)
    path = tmp_path / "plan.json"
    said = json.loads(path.read_text()) | change
    path.write_text(json.dumps({name: value for name, value in said.items() if value is not None}))
    with pytest.raises(ValueError, match=message):
        commit(recipe, field, tmp_path)


def test_what_a_plan_compares_is_all_but_when_it_was_written() -> None:
    fields = set(planning.Plan.__dataclass_fields__)
    assert set(planning.NOT_ASKED) < fields
