"""The adaptive ensemble: against its formula worked out by hand, in the closed loop, and from the
command line's option."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from outside import Dots
from test_rollout import Line, spec

from armlet.evaluation.episodes import conditions
from armlet.evaluation.settings import contenders
from armlet.policies.contract import Policy
from armlet.recipe import Evaluation
from armlet.recipes import make
from armlet.robot.ensemble import Adaptive
from armlet.robot.observation import Observation
from armlet.robot.outputs import Decision
from armlet.robot.spec import ObservationSpec, RobotSpec
from armlet.rollout.loop import run
from armlet.rollout.pool import Contender


class Says(Policy):
    """Chunks that were thought out before; its robot moves along x and has a gripper that is open
    at −1 and closed at 1."""

    execute = 3

    def __init__(self, *chunks: list[tuple[float, float]]) -> None:
        self.chunks = list(chunks)
        self.asked = 0
        self.resets = 0

    @property
    def robot(self) -> RobotSpec:
        return RobotSpec(spec(), ObservationSpec())

    def infer(self, observation: Observation) -> np.ndarray:
        self.asked += 1
        return np.array(self.chunks[(self.asked - 1) % len(self.chunks)], np.float32)

    def decide(self, observation: Observation) -> Decision:
        return Decision(self.infer(observation), (1, 0))

    def reset(self) -> None:
        self.resets += 1


def carried_out(policy: Says, ensemble: Adaptive, steps: int) -> np.ndarray:
    """What an episode is told at each of so many steps, (steps, a)."""
    world = Line(goal=np.inf)
    run(world, policy, spec=spec(), limit=steps, execute=1, ensemble=ensemble)
    return np.stack(world.told)


def test_against_the_formula_by_hand() -> None:
    policy = Says([(3, 4), (0, 2), (9, 9)], [(1, 0), (0, 5), (9, 9)], [(0, 1), (9, 9), (9, 9)])
    told = carried_out(policy, Adaptive(horizon=2, alpha=0.7), 3)
    # Then (1, 0) is newest and the chunk before says (0, 2): at a right angle, cosine 0. At last
    # (0, 1) and (0, 5) are alike, and the first chunk has left the window of two.
    newest = math.exp(0.7) / (math.exp(0.7) + 1)
    expected = [(3, 4), (newest, 2 * (1 - newest)), (0, 3)]
    np.testing.assert_allclose(told, expected, rtol=1e-6)


def test_weights() -> None:
    said = np.random.default_rng(0).normal(size=(5, 7))  # the newest last
    np.testing.assert_allclose(Adaptive(5, 0.0).weights(said), 1.0)
    found = Adaptive(5, 2.0).weights(said)
    lengths = np.linalg.norm(said, axis=1)
    cosines = said @ said[-1] / (lengths * lengths[-1])
    np.testing.assert_allclose(np.log(found), 2 * cosines, atol=1e-6)
    assert np.isfinite(Adaptive(3, 0.1).weights(np.zeros((3, 2)))).all()


@pytest.mark.parametrize(("grippers", "expected"), [((1, 1), 1), ((1, -1), 1), ((-1, 1), 1)])
def test_a_gripper_is_decided(grippers: tuple[float, float], expected: float) -> None:
    """Of two decisions that differ the mean is nearly the middle; exactly there it closes."""
    before, now = grippers
    chunks = [(0, 0), (0, before)], [(0, now), (0, 0)]
    told = carried_out(Says(*chunks), Adaptive(2, 0.0, gripper="decided"), 2)
    assert told[1, 1] == expected
    # With weights the newest, which is most like itself, decides.
    told = carried_out(Says(*chunks), Adaptive(2, 0.1, gripper="decided"), 2)
    assert told[1, 1] == now


def test_one_decision_is_the_policy_itself_at_every_step() -> None:
    policy = Says([(0.25, 1), (5, 5)], [(-0.5, -1), (5, 5)])
    told = carried_out(policy, Adaptive(1), 2)
    np.testing.assert_array_equal(told, np.array([(0.25, 1), (-0.5, -1)], np.float32))


def test_an_episode_remembers_nothing_of_the_one_before() -> None:
    policy = Says([(0.5, 1), (1.0, 1), (0, 1)])
    told = [carried_out(policy, Adaptive(3, 0.3), 4) for _ in range(2)]
    np.testing.assert_array_equal(told[0], told[1])
    assert told[0][0, 0] == 0.5 and 0.5 < told[0][1, 0] < 1.0
    assert policy.asked == 8 and policy.resets == 2  # it is asked at every step


def test_chunks_that_are_too_short_are_refused() -> None:
    with pytest.raises(ValueError, match=r"decides 2 actions at a time.*take at most 2"):
        carried_out(Says([(0, 0), (0, 0)]), Adaptive(3), 1)
    with pytest.raises(ValueError, match="expected 1 or more"):
        Adaptive(0)


def test_as_an_option_of_evaluate(tmp_path: Path) -> None:
    recipe = replace(make("first_k_tabletop"), out=tmp_path, evaluation=Evaluation(ensemble=(4,)))
    found = contenders(recipe)
    assert found["teacher ensemble 4"] == replace(found["teacher"], ensemble=4)
    plain, averaged = Contender(recipe.teacher), Contender(recipe.teacher, ensemble=4)
    assert conditions(averaged, Dots()) == {**conditions(plain, Dots()), "ensemble": 4}
    assert plain.joined is None and plain.looks_after is None
    assert averaged.joined == Adaptive(4, gripper="decided") and averaged.looks_after == 1
    with pytest.raises(ValueError, match="ensemble"):
        Evaluation(ensemble=(0,))
