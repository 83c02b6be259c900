"""Policies of two reports: paired episode by episode where they met the same ones, and not
comparable, saying why, where they did not."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from test_outcomes import policy

from armlet import compare
from armlet.evaluation import eval_info, stats
from armlet.evaluation import outcomes as kept
from armlet.evaluation.outcomes import Outcomes, Planned

WORLD = {"benchmark": "dots", "limit": 12}
GOLDEN = Path(__file__).parent / "goldens" / "eval_info_lerobot_061.json"


def outcomes_of(seeds: list[int], **successes: str) -> Outcomes:
    episodes = tuple(Planned("seen", "hand", f"task {seed % 3}", seed) for seed in seeds)
    runs = []
    for name, success in successes.items():
        runs.append(policy(name.replace("_", "-"), success, [5] * len(seeds)))
    return Outcomes(10.0, 40, episodes, tuple(runs))


def report(folder: Path, outcomes: Outcomes, world: dict = WORLD, **changes) -> Path:
    """As much of a report as comparing needs."""
    value = {
        "version": 4,
        **kept.recompute(outcomes),
        "outcomes": {
            "file": "outcomes.json.gz",
            "sha256": kept.write(folder / "outcomes.json.gz", outcomes),
        },
        "fingerprint": {"benchmark": world},
        **changes,
    }
    path = folder / "report.json"
    path.write_text(json.dumps(value))
    return path


@pytest.fixture
def one(tmp_path) -> Path:
    (tmp_path / "a").mkdir()
    return report(tmp_path / "a", outcomes_of([1, 2, 3, 4], teacher="1111", cut="1100"))


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    folder = tmp_path / "b"
    folder.mkdir()
    return folder


def verdicts_of(one: Path, other: Path, **asked) -> list:
    asked = {"policy": None, "versus": None} | asked
    return compare.compare(compare.read(one), compare.read(other), **asked)


def test_episodes_are_paired_by_what_they_are_and_not_by_their_place(one, elsewhere) -> None:
    other = report(elsewhere, outcomes_of([4, 3, 2, 1], teacher="1111", ours="0111"))
    (found,) = verdicts_of(one, other)
    # cut 1 1 0 0 and ours, in the first's order, 1 1 1 0.
    pair = stats.compare_paired(np.array([1, 1, 0, 0]), np.array([1, 1, 1, 0]))
    assert pair.both == 2 and pair.only_b == 1
    assert (found.difference, found.low, found.high) == (-0.25, *pair.ci95)
    assert found.policy == f"cut ({one})" and found.versus == f"ours ({other})"
    assert compare.main(one.parent, other) == found.sentence
    assert found.sentence.startswith(f"cut ({one}) against ours ({other}) is undecided: -25.0 pp")


def test_a_report_with_more_of_the_same_episodes_is_compared_in_those_of_both(
    one, elsewhere
) -> None:
    other = report(elsewhere, outcomes_of([1, 2, 3, 4, 5, 6], teacher="111111", ours="111010"))
    (found,) = verdicts_of(one, other)
    assert (found.episodes, found.difference) == (4, -0.25)


def test_who_is_compared_can_be_said_and_several_seeds_are_one(one, elsewhere) -> None:
    runs = {"teacher": "1111", "ours_0": "1110", "ours_1": "1101", "first_k": "0000"}
    other = report(elsewhere, outcomes_of([1, 2, 3, 4], **runs))
    found = verdicts_of(one, other)
    assert [(each.versus.split()[0], each.versus_seeds) for each in found] == [
        ("ours", 2),
        ("first-k", 1),
    ]
    (found,) = verdicts_of(one, other, policy="teacher", versus="first-k", margin=0.5)
    assert (found.verdict, found.difference, found.margin) == ("better", 1, 0.5)
    with pytest.raises(
        ValueError, match=r"--versus who: .*report\.json has teacher, ours, first-k"
    ):
        verdicts_of(one, other, versus="who")
    with pytest.raises(ValueError, match="margin is 3, expected a share above 0 and below 1"):
        compare.main(one, other, margin=3)


SAME = outcomes_of([1, 2, 3, 4], teacher="1111", ours="1111")
WRONG = {
    r"they share 0 of 4 episodes: seeds 1 to 4 and 11 to 14": (
        outcomes_of([11, 12, 13, 14], teacher="1111", ours="1111"),
        WORLD,
    ),
    r"they share 3 of 4 episodes: seeds 1 to 4 and 2 to 5": (
        outcomes_of([2, 3, 4, 5], teacher="1111", ours="1111"),
        WORLD,
    ),
    r"they were run in other worlds \(limit: 12 → 13\)": (SAME, {**WORLD, "limit": 13}),
    r"ends after 40 steps at 10 Hz in one, and after 41 at 10 Hz": (
        dataclasses.replace(SAME, limit=41),
        WORLD,
    ),
    r"one is about the split seen, the other about unseen": (
        dataclasses.replace(
            SAME,
            episodes=tuple(dataclasses.replace(each, split="unseen") for each in SAME.episodes),
        ),
        WORLD,
    ),
}


@pytest.mark.parametrize("why", WRONG)
def test_what_met_other_episodes_is_not_comparable(one, elsewhere, why: str) -> None:
    (found,) = verdicts_of(one, report(elsewhere, *WRONG[why]))
    assert found.verdict == "not comparable" and found.difference is None
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(found.sentence)


def test_without_outcomes_or_of_another_kind_nothing_is_compared(one, elsewhere) -> None:
    other = report(elsewhere, SAME)
    value = json.loads(other.read_text())
    del value["outcomes"]
    other.write_text(json.dumps({**value, "version": 1}))
    (found,) = verdicts_of(one, other)
    assert found.verdict == "not comparable" and "keeps no outcomes" in found.sentence
    other.write_text(json.dumps({**value, "kind": "offline"}))
    with pytest.raises(ValueError, match="compares with held-out episodes"):
        compare.read(other)


# --- as LeRobot writes them


def test_eval_info_is_what_lerobots_own_code_makes_of_the_same_outcomes(tmp_path) -> None:
    """The golden file is of `lerobot_eval.eval_policy_all`, LeRobot 0.6.1, told these successes of
    these tasks, but for the time that it took."""
    episodes = []
    plan = [("seen", "a"), ("seen", "b"), ("seen", "c"), ("seen", "a"), ("unseen", "a")]
    for number, (split, task) in enumerate([*plan, ("unseen", "c")]):
        episodes.append(Planned(split, "hand", task, number))
    own = policy("a/b execute 4", "110110", [5] * 6)
    outcomes = Outcomes(10.0, 40, tuple(episodes), (own, policy("a_b_execute_4", "1" * 6, [5] * 6)))
    files = eval_info.write(outcomes, tmp_path)
    assert files["a/b execute 4"] == tmp_path / "lerobot" / "a_b_execute_4" / "eval_info.json"
    assert files["a_b_execute_4"] == tmp_path / "lerobot" / "a_b_execute_4-1" / "eval_info.json"
    found = json.loads(files["a/b execute 4"].read_text())
    expected = json.loads(GOLDEN.read_text())
    # Whose place in its split is the third is the second here: no episode asks for what is between.
    assert [each.pop("task") for each in found["per_task"]] == ["a", "b", "c", "a", "c"]
    assert expected["per_task"][4]["task_id"] == 2
    expected["per_task"][4]["task_id"] = 1
    for timed in ("eval_s", "eval_ep_s"):
        assert found["overall"][timed] is None and expected["overall"].pop(timed) > 0
        del found["overall"][timed]
    assert found == expected
