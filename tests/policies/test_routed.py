"""The dial, the random router and the frozen route, against counting what ran."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_frames, make_policy

from armlet.layers.router import hard_gates
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.policies.routed import BUDGETS, Routed, Routing, _threshold
from armlet.training.losses import keep_ratio
from armlet.training.trainer import make_batches
from armlet.types import Batch


def routed(**options) -> Routed:
    """A router whose logits differ from layer to layer and from moment to moment."""
    policy = Routing(**options).build(make_policy(depth=8))
    assert isinstance(policy, Routed)
    torch.manual_seed(1)
    if options.get("chooser") != "random":
        torch.nn.init.normal_(policy.router.leave.weight, std=2.0)
        torch.nn.init.normal_(policy.router.leave.bias, std=1.0)
    return policy.eval()


def batch_for(policy: Routed, rows: int = 40) -> Batch:
    return make_batches(policy, make_frames(episodes=12)).batch(np.arange(rows))


@torch.no_grad()
def spent(policy: Routed, batch: Batch) -> float:
    told = replace(batch, budget=policy.routing.budget) if policy.routing.dial else batch
    return float(
        keep_ratio(policy.run_layers(policy.embed(told), told).gates, policy.layer_costs()).mean()
    )


@pytest.mark.parametrize("dial", [False, True])
def test_a_calibrated_budget_is_kept_and_used(dial: bool) -> None:
    policy = routed(dial=dial, budget=0.5)
    batch = batch_for(policy)
    policy.calibrate(batch)
    for budget in BUDGETS:
        share = spent(policy.at(budget), batch)
        assert budget - 0.06 <= share <= budget + 1e-6, "as much as may be spent, and no more"
    assert spent(policy.at(1.0), batch) == 1
    costs = [spent(policy.at(budget), batch) for budget in np.linspace(0.125, 1, 15)]
    assert dial or costs == sorted(costs), "with one set of logits, more budget never runs less"


@given(
    st.lists(
        st.lists(st.integers(-20, 20).map(lambda n: n / 4), min_size=3, max_size=3),
        min_size=1,
        max_size=6,
    ),
    st.lists(st.floats(0.1, 3), min_size=3, max_size=3),
    st.floats(0.01, 1),
)
@settings(max_examples=200, deadline=None)
def test_no_threshold_below_the_one_found_can_be_paid(
    rows: list, costs: list, budget: float
) -> None:
    logits, prices = (
        torch.tensor(rows, dtype=torch.float64),
        torch.tensor(costs, dtype=torch.float64),
    )

    def share(threshold: float) -> float:
        return float(keep_ratio(hard_gates(logits, threshold), prices).mean())

    found = _threshold(logits, prices, budget)
    assert share(found) <= budget + 1e-5
    lower = logits[logits < found]
    assert not len(lower) or share(float(lower.max())) > budget - 1e-5


def test_a_dial_turned_is_another_setting_of_the_same_weights(tmp_path) -> None:
    policy = routed(dial=True, budget=0.5)
    policy.calibrate(batch_for(policy))
    other = policy.at(0.25)
    assert other.measured != policy.measured and policy.routing.budget == 0.5
    assert all(a is b for a, b in zip(other.parameters(), policy.parameters(), strict=True))
    save_policy(policy, tmp_path)
    again = load_policy(tmp_path)
    batch = batch_for(policy)
    assert again.at(0.4).measured == policy.at(0.4).measured and spent(
        again.at(0.4), batch
    ) == spent(policy.at(0.4), batch)


def test_budgets_that_cannot_be_had_are_refused() -> None:
    policy = routed()
    with pytest.raises(ValueError, match="has not been calibrated"):
        policy.at(0.5)
    policy.calibrate(batch_for(policy))
    with pytest.raises(ValueError, match=r"calibrated from 0\.125 to 1"):
        policy.at(0.05)
    with pytest.raises(ValueError, match="'vla' with a RegressionHead has no budget dial"):
        policy.inner.at(0.5)
    told = routed(dial=True, budget=0.5)
    with pytest.raises(ValueError, match="uses budget"):
        told(batch_for(told))


def test_the_budget_changes_what_a_told_router_runs() -> None:
    policy = routed(dial=True, budget=0.5)
    batch = batch_for(policy)
    logits = [
        policy.route(policy.embed(batch), replace(batch, budget=budget)) for budget in (0.1, 0.9)
    ]
    assert (logits[0] - logits[1]).abs().max() > 0.01


def test_a_static_route_is_the_commonest_one() -> None:
    policy = routed()
    batch = batch_for(policy)
    static = policy.static(batch)
    with torch.no_grad():
        gates = policy.run_layers(policy.embed(batch), batch).gates
        routes, counts = gates.unique(dim=0, return_counts=True)
        same = (gates == routes[counts.argmax()]).all(1)
        assert 0 < same.sum() < len(same)
        torch.testing.assert_close(static(batch)[same], policy(batch)[same], atol=1e-5, rtol=1e-5)
    assert len(static.layers) == int(routes[counts.argmax()].sum())


def test_a_random_router_runs_the_same_number_everywhere_and_repeats() -> None:
    policy = routed(chooser="random", initial_keep=3 / 8)
    batch = batch_for(policy)
    with torch.no_grad():
        gates = policy.run_layers(policy.embed(batch), batch).gates
    assert (gates.sum(1) == 3).all()
    assert len(gates.unique(dim=0)) > 15, "56 routes there are"
    assert (gates.mean(0) - 3 / 8).abs().max() < 0.35
    trained = policy.train().run_layers(policy.embed(batch), batch, exploration=1.0).gates
    assert torch.equal(trained, gates), "training draws what deployment does"


def test_the_published_router_trains_what_it_deploys_and_survives_saving(tmp_path) -> None:
    blind = {"use_state": False, "use_previous_action": False}
    policy = routed(chooser="published", budget=0.5, **blind)
    batch = batch_for(policy)
    policy.calibrate(batch)
    assert 0.4 < spent(policy, batch) <= 0.5 + 1e-6
    with torch.no_grad():
        acted = policy(batch)
    run = policy.train().run_layers(policy.embed(batch), batch)
    assert run.gates.requires_grad, "the router learns from what would have run"
    torch.testing.assert_close(policy.decode(run, batch), acted, atol=1e-5, rtol=1e-5)
    robot = replace(batch, state=batch.state + 1, previous_action=batch.previous_action + 1)
    start = policy.embed(batch)
    assert torch.equal(policy.route(start, batch), policy.route(start, robot))
    save_policy(policy.eval(), tmp_path)
    with torch.no_grad():
        assert torch.equal(load_policy(tmp_path)(batch), acted)
    with pytest.raises(ValueError, match="use_state, use_previous_action true"):
        Routing(chooser="published")


def test_a_random_router_survives_saving(tmp_path) -> None:
    policy = routed(chooser="random", initial_keep=0.5)
    save_policy(policy, tmp_path)
    batch = batch_for(policy)
    with torch.no_grad():
        assert torch.equal(load_policy(tmp_path)(batch), policy(batch))


def test_a_router_with_a_budget_sets_its_own_threshold() -> None:
    """Logits that all lie below 0, as after little training, would run nothing: the budget says
    what runs."""
    policy = routed(budget=0.375)
    torch.nn.init.normal_(policy.router.leave.bias, mean=-9.0, std=0.5)
    batch = batch_for(policy)
    assert spent(policy, batch) < 0.05
    policy.calibrate(batch)
    assert 0.3 < spent(policy, batch) <= 0.375 + 1e-6
    with pytest.raises(ValueError, match="needs a `budget`"):
        Routing(dial=True)


def test_a_router_that_always_says_the_same_is_left_behind(tmp_path) -> None:
    several = routed(budget=0.5)
    several.calibrate(batch_for(several))
    assert several.measured.only is None and several.deployed() is several
    one = routed(budget=0.5)
    torch.nn.init.zeros_(one.router.leave.weight)
    one.router.leave.bias.data = torch.tensor([3.0, -1, 2, -1, -1, 1, -1, 2.5])
    batch = batch_for(one)
    one.calibrate(batch)
    assert one.measured.only == (0, 2, 5, 7) and one.at(0.25).measured.only is None
    save_policy(one, tmp_path)
    plain = load_policy(tmp_path).deployed()
    assert (
        plain.layer_numbers == (0, 2, 5, 7)
        and len(plain.layers) == 4
        and not hasattr(plain, "router")
    )
    with torch.no_grad():
        torch.testing.assert_close(plain(batch), one(batch))
