"""The teachers that ship: they succeed in every family, they listen, and they are what their
reports say they are."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from armlet.benchmarks.tabletop import Tabletop
from armlet.policies.checkpoint import load_policy, policy_fingerprint, read_provenance
from armlet.policies.contract import Policy
from armlet.robot.observation import Observation
from armlet.robot.outputs import Decision
from armlet.rollout.loop import plan, run_task

HOME = Path(__file__).parent.parent
TEACHERS = {
    "tabletop-teacher": HOME / "docs/reproductions/tabletop_fresh/report.json",
    "aed-teacher": HOME / "docs/reproductions/aed/report.json",
}
EPISODES = 21


class Deaf:
    """A policy that is told the same whatever was asked."""

    def __init__(self, policy: Policy, hears: str) -> None:
        self.policy, self.hears, self.execute = policy, hears, policy.execute

    def decide(self, seen: Observation) -> Decision:
        return self.policy.decide(dataclasses.replace(seen, instruction=self.hears))

    def reset(self) -> None:
        pass


@pytest.fixture(scope="module", params=TEACHERS)
def folder(request) -> Path:
    return HOME / "checkpoints" / request.param


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Policy:
    return load_policy(folder)


def successes(policy: Policy | Deaf, episodes: int) -> dict[str, list[bool]]:
    benchmark, found = Tabletop(), {}
    for task, seed in plan(benchmark, "seen", episodes, seed=640_000_000):
        found.setdefault(task.name, []).append(run_task(policy, benchmark, task, seed).success)
    return found


def test_it_succeeds_and_a_deaf_one_does_not(teacher: Policy) -> None:
    """16 of 21: a teacher of 90 % has fewer in 1 % of such lists (binomial), and no policy that
    cannot hear comes near."""
    hearing = successes(teacher, EPISODES)
    assert sum(map(sum, hearing.values())) >= 16, hearing
    deaf = successes(Deaf(teacher, "touch the red cube"), EPISODES)
    assert sum(map(sum, deaf.values())) <= EPISODES // 3, deaf
    assert sum(deaf["stack"]) + sum(deaf["place"]) <= 1, (
        "a policy that does not know what to put where succeeds by accident"
    )


def test_it_answers_as_it_did_before_the_house_was_rebuilt(folder: Path, teacher: Policy) -> None:
    """What both teachers answered at commit 3c850fe, in four moments of each of seven tasks: on the machine where that was
    kept the bits are equal; another's matrix products round otherwise."""
    kept = np.load(HOME / "tests" / "answers" / "shipped_teachers.npz")[folder.name]
    benchmark = Tabletop()
    found = []
    for number, task in enumerate(benchmark.tasks()):
        world = benchmark.make(task, 77 + number)
        for _ in range(4):
            found.append(teacher.infer(world.observe()))
            world.step(world.expert_action())
    np.testing.assert_allclose(np.stack(found), kept, atol=2e-5)


def test_the_report_is_about_it(folder: Path, teacher: Policy) -> None:
    report = json.loads(TEACHERS[folder.name].read_text())
    shown = report["policies"][0]
    assert (shown["name"], shown["fingerprint"]) == ("teacher", policy_fingerprint(folder))
    assert shown["episodes"] >= 400
    assert shown["successes"] >= 0.9 * shown["episodes"]
    assert (
        shown["params"]["total"]
        == sum(parameter.numel() for parameter in teacher.parameters())
        <= 5_000_000
    )
    fingerprint = json.loads(json.dumps(Tabletop().fingerprint()))
    assert report["fingerprint"]["benchmark"] == fingerprint


def test_the_flagship_that_ships_is_what_its_page_says() -> None:
    """Half of its teacher's layers, its eyes, one step, and looking after eight actions."""
    whole, student = (
        load_policy(HOME / "checkpoints" / f"mt50-{name}") for name in ("teacher", "flagship")
    )
    assert (len(whole.layers), len(student.layers)) == (16, 8)
    assert (whole.loop.times, student.loop.times) == (10, 1)
    assert (whole.execute, student.execute) == (4, 8)
    theirs = whole.vision.state_dict()
    for name, tensor in student.vision.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    told = read_provenance(HOME / "checkpoints/mt50-flagship")
    assert told["question"]["teacher"] == policy_fingerprint(HOME / "checkpoints/mt50-teacher")
    assert [each["execute"] for each in told["shortened"]] == [8]
