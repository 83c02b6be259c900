"""`armlet recompute`: what it says of a report is right if every report that is right passes and
every number that is changed is named.

The report is made here from outcomes that are written down in full, small enough to count by hand:
three seeds, two splits, policies that act late. Every single number of it is changed in turn.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armlet import recompute
from armlet.evaluation import outcomes as kept
from armlet.evaluation import verdicts
from armlet.evaluation.outcomes import DelayedRun, Outcomes, Planned, PolicyRun, Run

TASKS = (("hand", "touch"), ("hand", "push"), ("tool", "rake"))
SECTIONS = ("policies", "pairs", "pairs_by_split", "seeds", "delayed", "delayed_pairs")


def run(rng: np.random.Generator, count: int, rate: float) -> Run:
    success = tuple(bool(value) for value in rng.random(count) < rate)
    steps = tuple(
        int(value) if good else 40
        for value, good in zip(rng.integers(5, 40, count), success, strict=True)
    )
    return Run(
        success=success,
        steps=steps,
        decisions=tuple(step // 2 for step in steps),
        waited=tuple(step // 5 for step in steps),
        toggles=tuple(int(value) for value in rng.integers(0, 3, count)),
    )


def made() -> Outcomes:
    """Twelve episodes of two splits each, six policies, of which three are one recipe with three
    seeds, and two that act late."""
    rng = np.random.default_rng(0)
    episodes = tuple(
        Planned(split, *TASKS[index % 3], 100 + index)
        for split in ("seen", "unseen_scenes")
        for index in range(12)
    )
    rates = {"teacher": 0.9, "student-0": 0.7, "student-1": 0.8, "student-2": 0.6, "cut": 0.5}
    policies = tuple(
        PolicyRun(name, f"print-{name}", 2, (1.0, 2.0), {"11": 5, "10": 2}, run(rng, 24, rate))
        for name, rate in rates.items()
    )
    delayed = tuple(
        DelayedRun(name, slower, rule, 7.0 * slower, 2, run(rng, 12, 0.6))
        for slower in (20.0, 50.0)
        for rule in ("wait", "run_on")
        for name in ("teacher", "cut")
    )
    return Outcomes(hz=10.0, limit=40, episodes=episodes, policies=policies, delayed=delayed)


MADE = made()


def report(folder: Path, outcomes: Outcomes = MADE, *, keep: bool = True) -> Path:
    """A report of these outcomes, with what else a report needs; without `keep` as before outcomes
    were stored, with Wilson's intervals."""
    sections = kept.recompute(outcomes, version=4 if keep else 1)
    value: dict[str, Any] = {
        "version": 4,
        **sections,
        "verdicts": [each.to_json() for each in verdicts.verdicts(outcomes, (), 0.03)],
        "rollouts": [],
        "training": {},
        "fingerprint": {},
    }
    for policy in value["policies"]:
        policy["latency_ms"] = {
            "policy": {"p50": 5.0, "p95": 6.0, "p99": 7.0},
            "threads": 1,
            "device": "cpu",
        }
        policy["routing"]["layers"] = [0, 1]
        policy |= {"policy": policy["name"], "runtime": "eager", "precision": "fp32"}
        policy["exported_from"] = None
    folder.mkdir(parents=True, exist_ok=True)
    if keep:
        value["outcomes"] = {
            "file": "outcomes.json.gz",
            "sha256": kept.write(folder / "outcomes.json.gz", outcomes),
        }
    else:
        value["version"] = 1
        for tally in tallies(value):
            tally["ci95"] = wilson(tally["successes"], tally["episodes"])
    path = folder / "report.json"
    path.write_text(json.dumps(value))
    return path


def tallies(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from value["delayed"]
    for policy in value["policies"]:
        yield policy
        for grouping in ("by_family", "by_task", "by_split"):
            yield from policy[grouping].values()


def wilson(successes: int, episodes: int) -> list[float]:
    """Wilson's interval as the textbook writes it."""
    z, p = 1.959963984540054, successes / episodes
    middle = (p + z * z / (2 * episodes)) / (1 + z * z / episodes)
    half = z * np.sqrt(p * (1 - p) / episodes + z * z / (4 * episodes**2)) / (1 + z * z / episodes)
    return [max(0.0, float(middle - half)), min(1.0, float(middle + half))]


def numbers(value: Any, keys: tuple = ()) -> Iterator[tuple]:
    """Where the numbers of a JSON value are."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(item, (*keys, key))
    elif isinstance(value, int | float):
        yield keys


def changed(value: Any, keys: tuple) -> Any:
    """A copy with one number changed as little as a reader could see."""
    value = copy.deepcopy(value)
    inside = value
    for key in keys[:-1]:
        inside = inside[key]
    old = inside[keys[-1]]
    if isinstance(old, bool):
        inside[keys[-1]] = not old
    else:
        inside[keys[-1]] = old + (1 if isinstance(old, int) else 1e-6)
    return value


def unnoticed(path: Path, places: Iterator[tuple]) -> list[tuple]:
    """The places whose number can be changed without a word."""
    value = json.loads(path.read_text())
    found = []
    for keys in places:
        path.write_text(json.dumps(changed(value, keys)))
        if not recompute.check(path).differences:
            found.append(keys)
    path.write_text(json.dumps(value))
    return found


def test_a_report_with_outcomes_is_what_they_say_and_every_changed_number_of_it_is_found(
    tmp_path, monkeypatch
) -> None:
    path = report(tmp_path)
    account = recompute.check(path)
    assert account.differences == [] and account.not_stored == []
    value = json.loads(path.read_text())
    followed = [keys for keys in numbers(value) if keys[0] in SECTIONS]
    measured = [keys for keys in followed if "latency_ms" in keys or keys[-2:-1] == ("layers",)]
    assert len(followed) > 600 and len(measured) == 5 * (4 + 2)
    again = kept.recompute(MADE)
    monkeypatch.setattr(
        kept, "recompute", lambda outcomes, version: again
    )  # the same for every change
    assert unnoticed(path, iter(set(followed) - set(measured))) == []


def test_a_row_a_pair_or_a_group_that_outcomes_do_not_have_is_found(tmp_path) -> None:
    path = report(tmp_path)
    right = json.loads(path.read_text())
    ((split, said),) = verdicts.verdicts_by_split(MADE, (), 0.03).items()
    right["verdicts_by_split"] = {split: [each.to_json() for each in said]}

    def with_(change) -> list:
        value = copy.deepcopy(right)
        change(value)
        path.write_text(json.dumps(value))
        return recompute.check(path).differences

    assert not with_(lambda value: None)
    tally = {"successes": 0, "episodes": 0, "ci95": [0.0, 1.0]}
    assert with_(lambda value: value["policies"][1]["by_task"].update(place=tally))
    assert with_(lambda value: value["policies"][1]["by_task"].pop("rake"))
    assert with_(lambda value: value["pairs_by_split"].update(seen_shapes=[]))
    assert with_(lambda value: value["pairs"].pop())
    assert with_(lambda value: value["delayed"].pop())
    assert with_(lambda value: value["delayed_pairs"].append(value["delayed_pairs"][0]))
    assert with_(lambda value: value["seeds"]["pairs"].pop())
    assert with_(lambda value: value["verdicts"].pop())
    assert with_(lambda value: value["verdicts"][0].update(verdict="better"))
    assert with_(lambda value: value["verdicts"][0].update(sentence="It is better."))
    assert with_(lambda value: value["verdicts"][-1].update(margin=0.05))
    assert with_(lambda value: value["verdicts_by_split"][split].pop())
    assert with_(lambda value: value["verdicts_by_split"][split][0].update(verdict="better"))
    assert with_(lambda value: value["verdicts_by_split"].update(elsewhere=[]))
    assert not with_(lambda value: value.pop("verdicts_by_split")), "as reports of before have none"


def test_every_outcome_counts(tmp_path) -> None:
    """One bit of one policy turned round in the file, its sha256 put right: the report no longer
    says what the file does."""
    path = report(tmp_path)
    value = json.loads(path.read_text())
    content = kept.to_bytes(MADE)
    for number, policy in enumerate(MADE.policies):
        for row in (0, 11, 12, 23):
            bits = list(policy.run.success)
            bits[row] = not bits[row]
            other = [*MADE.policies]
            other[number] = PolicyRun(
                policy.name,
                policy.fingerprint,
                2,
                policy.layer_costs,
                policy.routes,
                with_success(policy.run, bits),
            )
            turned = Outcomes(MADE.hz, MADE.limit, MADE.episodes, tuple(other), MADE.delayed)
            sha256 = kept.write(tmp_path / "outcomes.json.gz", turned)
            path.write_text(
                json.dumps({**value, "outcomes": {**value["outcomes"], "sha256": sha256}})
            )
            found = "\n".join(map(str, recompute.check(path).differences))
            assert policy.name in found, (policy.name, row)
    (tmp_path / "outcomes.json.gz").write_bytes(content)
    path.write_text(json.dumps(value))
    assert not recompute.check(path).differences


def with_success(run: Run, success: list[bool]) -> Run:
    return Run(tuple(success), run.steps, run.decisions, run.waited, run.toggles)


def test_other_outcomes_than_the_reports_own_are_refused(tmp_path) -> None:
    path = report(tmp_path)
    report(tmp_path / "other", Outcomes(10.0, 40, MADE.episodes, MADE.policies))
    (tmp_path / "other" / "outcomes.json.gz").rename(tmp_path / "outcomes.json.gz")
    with pytest.raises(ValueError, match="not the one its report was made from"):
        recompute.check(path)
    (tmp_path / "outcomes.json.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"outcomes\.json\.gz is missing"):
        recompute.check(path)


def test_without_outcomes_every_count_interval_and_comparison_is_found_and_the_rest_is_named(
    tmp_path,
) -> None:
    path = report(tmp_path, keep=False)
    account = recompute.check(path)
    assert account.differences == []
    assert account.not_stored == ["mean steps", "gripper toggles", "intervals over seeds"]
    value = json.loads(path.read_text())
    counted = (
        "successes",
        "episodes",
        "ci95",
        "both",
        "only_a",
        "only_b",
        "neither",
        "n",
        "difference",
        "mcnemar_p",
    )
    places = [
        keys
        for keys in numbers(value)
        if keys[0] in ("policies", "pairs", "pairs_by_split")
        and any(name in counted for name in keys)
        and not {"gripper_toggles", "seconds_to_success"} & set(keys)
    ]
    places = [
        keys
        for keys in places
        if keys[1] in (0, 1, 2, "unseen_scenes")
        and keys[2] in (*range(2), *value["policies"][0], *value["pairs"][0])
    ]
    places += [
        keys
        for keys in numbers(value["seeds"], ("seeds",))
        if keys[-1] in ("success", "seeds", "difference", "n")
    ]
    places += [keys for keys in numbers(value["seeds"], ("seeds",)) if keys[-2] == "each"]
    assert len(places) > 100
    assert unnoticed(path, iter(places)) == []


def test_counts_that_agree_with_their_interval_and_not_with_each_other_are_found(tmp_path) -> None:
    """One success more, its interval put right: of a task, of a split that only pairs speak of, and
    of a policy in all."""
    path = report(tmp_path, keep=False)
    right = json.loads(path.read_text())
    policy = right["policies"][1]
    for tally in (policy["by_task"]["rake"], policy["by_split"]["unseen_scenes"], policy):
        before = dict(tally)
        tally["successes"] += 1
        tally["ci95"] = wilson(tally["successes"], tally["episodes"])
        path.write_text(json.dumps(right))
        assert recompute.check(path).differences
        tally.update(before)
    path.write_text(json.dumps(right))
    assert not recompute.check(path).differences


def test_counts_that_cannot_be_are_found_and_no_error_of_a_library(tmp_path) -> None:
    path = report(tmp_path, keep=False)
    right = json.loads(path.read_text())
    for change in (
        lambda value: value["policies"][0].update(successes=13),
        lambda value: value["policies"][0].update(successes=-1),
        lambda value: value["policies"][0]["by_task"]["rake"].update(successes=0, episodes=0),
        lambda value: value["pairs"][0].update(neither=-1),
    ):
        value = copy.deepcopy(right)
        change(value)
        path.write_text(json.dumps(value))
        assert recompute.check(path).differences


def test_the_verb_says_what_differs_or_what_was_compared(tmp_path) -> None:
    path = report(tmp_path)
    assert recompute.main((tmp_path,)) == recompute.main((path,))
    assert recompute.main((path,)).endswith("numbers recomputed, none differs")
    value = json.loads(path.read_text())
    value["pairs"][0]["ci95"][0] -= 0.001
    path.write_text(json.dumps(value))
    with pytest.raises(
        ValueError,
        match=r"1 of \d+ numbers .*\n.*pairs, student-0 − teacher\.ci95\[0\]: found -0\.\d+, expected",
    ):
        recompute.main((path,))
    with pytest.raises(ValueError, match="at least one"):
        recompute.main(())
    del value["policies"][0]["by_task"]
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match="by_task"):
        recompute.main((path,))


def test_several_reports_in_one_folder_have_their_outcomes_beside_them(tmp_path) -> None:
    path = report(tmp_path)
    path.rename(tmp_path / "belt.json")
    (tmp_path / "outcomes.json.gz").rename(tmp_path / "belt.outcomes.json.gz")
    assert not recompute.check(tmp_path / "belt.json").differences
