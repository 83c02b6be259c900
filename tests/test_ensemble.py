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
from armlet.policies.contract import Decision, Policy
from armlet.recipe import Evaluation
from armlet.recipes import make
from armlet.robot.observation import Observation
from armlet.robot.spec import ObservationSpec, RobotSpec
from armlet.rollout.ensemble import AdaptiveEnsemble, weights
from armlet.rollout.loop import run
from armlet.rollout.pool import Contender

SEEN = Observation({}, np.zeros(0), "go", np.zeros(2))


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


def test_against_the_formula_by_hand() -> None:
    policy = Says([(3, 4), (0, 2), (9, 9)], [(1, 0), (0, 5), (9, 9)], [(0, 1), (9, 9), (9, 9)])
    ensemble = AdaptiveEnsemble(policy, window=2, alpha=0.7, gripper="averaged")
    np.testing.assert_allclose(ensemble.infer(SEEN), [(3, 4)])
    # Now (1, 0) is newest and the chunk before says (0, 2): at a right angle, cosine 0.
    newest = math.exp(0.7) / (math.exp(0.7) + 1)
    np.testing.assert_allclose(ensemble.infer(SEEN), [(newest, 2 * (1 - newest))], rtol=1e-6)
    # (0, 1) and (0, 5) are alike; the first chunk has left the window of two.
    np.testing.assert_allclose(ensemble.infer(SEEN), [(0, 3)], rtol=1e-6)


def test_weights() -> None:
    rng = np.random.default_rng(0)
    said = rng.normal(size=(5, 7))
    plain = weights(said, 0.0)
    np.testing.assert_allclose(plain, 0.2)
    found = weights(said, 2.0)
    assert found.sum() == pytest.approx(1)
    cosines = [
        float(a @ said[0]) / float(np.linalg.norm(a) * np.linalg.norm(said[0])) for a in said
    ]
    np.testing.assert_allclose(np.log(found / found[0]), 2 * (np.array(cosines) - 1), atol=1e-6)
    assert np.isfinite(weights(np.zeros((3, 2)), 0.1)).all()


@pytest.mark.parametrize(("grippers", "expected"), [((1, 1), 1), ((1, -1), 1), ((-1, 1), 1)])
def test_a_gripper_is_decided(grippers: tuple[float, float], expected: float) -> None:
    """Of two decisions that differ the average is nearly the middle; exactly there it closes."""
    before, now = grippers
    policy = Says([(0, 0), (0, before)], [(0, now), (0, 0)])
    ensemble = AdaptiveEnsemble(policy, window=2, alpha=0.0)
    ensemble.infer(SEEN)
    assert ensemble.infer(SEEN)[0, 1] == expected
    # With weights the newest, which is most like itself, decides.
    policy = Says([(0, 0), (0, before)], [(0, now), (0, 0)])
    ensemble = AdaptiveEnsemble(policy, window=2, alpha=0.1)
    ensemble.infer(SEEN)
    assert ensemble.infer(SEEN)[0, 1] == now


def test_one_decision_is_the_policy_itself_at_every_step() -> None:
    policy = Says([(0.25, 1), (5, 5)], [(-0.5, -1), (5, 5)])
    decision = AdaptiveEnsemble(policy, window=1).decide(SEEN)
    np.testing.assert_array_equal(decision.actions, np.array([(0.25, 1)], np.float32))
    assert decision.gates == (1, 0)


def test_an_episode_remembers_nothing_of_the_one_before() -> None:
    policy = Says([(0.5, 1), (1.0, 1), (0, 1)])
    ensemble = AdaptiveEnsemble(policy, window=3, alpha=0.3)
    told = []
    for _ in range(2):
        world = Line(goal=np.inf)
        run(world, ensemble, spec=spec(), limit=4)
        told.append(np.stack(world.told))
    np.testing.assert_array_equal(told[0], told[1])
    assert told[0][0, 0] == 0.5 and 0.5 < told[0][1, 0] < 1.0
    assert policy.asked == 8 and policy.resets == 2  # it is asked at every step


def test_chunks_that_are_too_short_are_refused() -> None:
    ensemble = AdaptiveEnsemble(Says([(0, 0), (0, 0)]), window=3)
    with pytest.raises(ValueError, match=r"decides 2 actions at a time.*take at most 2"):
        ensemble.infer(SEEN)
    with pytest.raises(ValueError, match="expected 1 or more"):
        AdaptiveEnsemble(Says(), window=0)


def test_as_an_option_of_evaluate(tmp_path: Path) -> None:
    recipe = replace(make("first_k_tabletop"), out=tmp_path, evaluation=Evaluation(ensemble=(4,)))
    found = contenders(recipe)
    assert found["teacher ensemble 4"] == replace(found["teacher"], ensemble=4)
    plain, averaged = Contender(recipe.teacher), Contender(recipe.teacher, ensemble=4)
    assert conditions(averaged, Dots()) == {**conditions(plain, Dots()), "ensemble": 4}
    policy = Says([(0, 0)] * 4)
    assert plain.acting(policy) is policy
    assert isinstance(averaged.acting(policy), AdaptiveEnsemble)
    with pytest.raises(ValueError, match="ensemble"):
        Evaluation(ensemble=(0,))
