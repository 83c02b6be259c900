"""The router's pooling against a loop, its gates against their definition, training against
deployment."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from armlet.layers.router import (
    FORCED,
    Gates,
    PublishedRouter,
    Router,
    active_layers,
    gate_sample,
    hard_gates,
    mix,
    mixer,
    pool,
    published_soft_gate,
    soft_mix,
)

LAYERS = 6


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def trained(**options) -> Router:
    """A router whose decisions depend on what it sees: a fresh one says the same to everything."""
    router = Router(8, 3, 2, LAYERS, **options)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return router


def seen(batch=4, dtype=torch.float32):
    """Tokens of which the first five show, the next four say (some are padding), and the last is
    neither."""
    tokens = torch.randn(batch, 10, 8, dtype=dtype)
    vision = torch.zeros(batch, 10, dtype=torch.bool)
    vision[:, :5] = True
    text = torch.zeros(batch, 10, dtype=torch.bool)
    text[:, 5:9] = torch.arange(4) < torch.arange(1, batch + 1)[:, None]
    return tokens, vision, text, torch.randn(batch, 3), torch.randn(batch, 2)


# --- the network that decides
# -------------------------------------------------------------------------------


def test_pools_what_the_masks_say():
    tokens, vision, text, *_ = seen()
    pooled = pool(tokens, torch.stack([vision, text], dim=1))
    for sample in range(len(tokens)):
        shown, said = tokens[sample][vision[sample]], tokens[sample][text[sample]]
        expected = torch.stack(
            [shown.mean(0), said.mean(0), shown.max(0).values, said.max(0).values]
        )
        torch.testing.assert_close(pooled[sample], expected)


def test_logits_are_an_mlps_of_what_was_seen_said_felt_and_done():
    """In this order: means and maxima of pictures and words, each normalised; the state; the
    previous action; the budget."""
    router = trained(dial=True)
    tokens, vision, text, state, action = seen()
    four = [
        tokens[0][vision[0]].mean(0),
        tokens[0][text[0]].mean(0),
        tokens[0][vision[0]].amax(0),
        tokens[0][text[0]].amax(0),
    ]
    features = torch.cat(
        [*(router.norm(each) for each in four), state[0], action[0], torch.tensor([0.3])]
    )
    expected = router.leave(F.gelu(router.enter(features)))
    torch.testing.assert_close(router(tokens, vision, text, state, action, 0.3)[0], expected)


@pytest.mark.parametrize("garbage", [0.0, 1.0, 1e4])
def test_padding_does_not_change_the_logits(garbage):
    router = trained()
    tokens, vision, text, state, action = seen()
    padded = torch.cat([tokens, garbage * torch.randn(4, 13, 8)], dim=1)
    longer = router(padded, F.pad(vision, (0, 13)), F.pad(text, (0, 13)), state, action)
    torch.testing.assert_close(longer, router(tokens, vision, text, state, action))
    tokens[~(vision | text)] = garbage
    torch.testing.assert_close(router(tokens, vision, text, state, action), longer)


def test_order_of_tokens_does_not_matter():
    router = trained()
    tokens, vision, text, state, action = seen()
    order = torch.randperm(10)
    shuffled = router(tokens[:, order], vision[:, order], text[:, order], state, action)
    torch.testing.assert_close(shuffled, router(tokens, vision, text, state, action))


def test_image_and_words_and_state_and_action_all_matter():
    router = trained()
    tokens, vision, text, state, action = seen()
    facts = [tokens.requires_grad_(), state.requires_grad_(), action.requires_grad_()]
    to_tokens, to_state, to_action = torch.autograd.grad(
        router(tokens, vision, text, state, action).sum(), facts
    )
    assert (to_tokens[vision].abs().sum(-1) > 0).all()
    assert (to_tokens[text].abs().sum(-1) > 0).all()
    assert (to_tokens[~(vision | text)] == 0).all()
    assert (to_state.abs().sum(-1) > 0).all()
    assert (to_action.abs().sum(-1) > 0).all()


def test_a_router_without_state_and_action_does_not_read_them():
    router = trained(use_state=False, use_previous_action=False)
    tokens, vision, text, state, action = seen()
    assert torch.equal(router(tokens, vision, text), router(tokens, vision, text, state, action))


@pytest.mark.parametrize("name", ["state", "previous_action"])
def test_a_missing_fact_is_an_error_with_its_name(name):
    tokens, vision, text, state, action = seen()
    facts = {"state": state, "previous_action": action} | {name: None}
    with pytest.raises(ValueError, match=f"uses {name}"):
        trained()(tokens, vision, text, **facts)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_a_fresh_router_keeps_every_layer_with_the_probability_asked_for(keep):
    logits = Router(8, 3, 2, LAYERS, initial_keep=keep)(*seen())
    torch.testing.assert_close(logits.sigmoid(), torch.full((4, LAYERS), keep))


@pytest.mark.parametrize("keep", [0.0, 1.0, 1.2])
def test_refuses_a_probability_that_cannot_be_learned_away_from(keep):
    with pytest.raises(ValueError, match="initial_keep"):
        Router(8, 3, 2, LAYERS, initial_keep=keep)


def published(**options) -> PublishedRouter:
    router = PublishedRouter(8, LAYERS, hidden=5, **options)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return router


def test_the_published_router_pools_projected_tokens_and_has_a_linear_map_a_layer():
    """Sample by sample, as recipes section 1 says: project, LayerNorm, mean and maximum of
    pictures, then of words, one linear map a layer."""
    router = published()
    tokens, vision, text, *_ = seen()
    logits = router(tokens, vision, text)
    for sample in range(len(tokens)):
        shown = F.linear(tokens[sample][vision[sample]], router.see.weight, router.see.bias)
        said = F.linear(tokens[sample][text[sample]], router.read.weight, router.read.bias)
        shown = F.layer_norm(shown, (5,), router.see_norm.weight, router.see_norm.bias)
        said = F.layer_norm(said, (5,), router.read_norm.weight, router.read_norm.bias)
        summary = [shown.mean(0), shown.amax(0), said.mean(0), said.amax(0)]
        features = torch.cat(summary)  # (20,)
        for layer in range(LAYERS):
            expected = features @ router.leave.weight[layer] + router.leave.bias[layer]
            torch.testing.assert_close(logits[sample, layer], expected)


def test_padding_does_not_move_the_published_router():
    router = published()
    tokens, vision, text, *_ = seen()
    before = router(tokens, vision, text)
    other = torch.where((vision | text)[..., None], tokens, 1e3)
    assert torch.equal(router(other, vision, text), before)
    assert not torch.allclose(router(tokens * (1 + text[..., None]), vision, text), before)


def test_the_published_router_begins_near_its_initial_keep_and_keeps_what_is_always_on():
    router = PublishedRouter(8, LAYERS, initial_keep=0.8, always_on=(-1,))
    logits = router(*seen()[:3])
    assert bool((logits[:, -1] == FORCED).all())
    assert 0.6 < float(logits[:, :-1].detach().sigmoid().mean()) < 0.95
    with pytest.raises(ValueError, match="initial_keep"):
        PublishedRouter(8, LAYERS, initial_keep=1.0)


def test_layers_that_are_always_on():
    logits = trained(initial_keep=0.01, always_on=(0, -1))(*seen())
    assert (logits[:, [0, -1]] == FORCED).all()
    assert (logits[:, [0, -1]].sigmoid() == 1).all()
    assert (hard_gates(logits, threshold=100.0) == torch.tensor([1, 0, 0, 0, 0, 1])).all()
    generator = torch.Generator().manual_seed(0)
    assert (gate_sample(logits, "gumbel", generator=generator).hard[:, [0, -1]] == 1).all()
    with pytest.raises(ValueError, match=r"layers \[6\]"):
        Router(8, 3, 2, LAYERS, always_on=(0, 6))


def test_a_sample_without_words_is_decided_too():
    tokens, vision, text, state, action = seen()
    assert trained()(tokens, vision, torch.zeros_like(text), state, action).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rms", [1e-3, 1.0, 100.0])
def test_logits_and_gradients_are_finite(rms, dtype):
    router = trained()
    tokens, vision, text, state, action = seen()
    tokens = (rms * tokens).to(dtype).requires_grad_()
    logits = router(tokens, vision, text, state, action)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert tokens.grad.isfinite().all()


# --- gates
# --------------------------------------------------------------------------------------------------


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_a_higher_threshold_never_runs_more(first, second):
    logits = torch.linspace(-4, 4, 17)[None]
    low, high = sorted([first, second])
    assert (hard_gates(logits, high) <= hard_gates(logits, low)).all()


def test_a_layer_runs_from_its_threshold_on():
    assert hard_gates(torch.tensor([[-0.1, 0.0, 0.1]])).tolist() == [[0, 1, 1]]
    assert hard_gates(torch.tensor([[0.4, 0.5, 0.6]]), 0.5).tolist() == [[0, 1, 1]]


def test_active_layers_are_those_that_any_sample_runs():
    assert active_layers(torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 1.0, 0]])) == (0, 2)


@pytest.mark.parametrize("mode", ["straight_through", "gumbel"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_straight_through_is_hard_in_value_and_soft_in_gradient(mode, temperature, dtype):
    logits = (2 * torch.randn(50, LAYERS)).to(dtype).requires_grad_()
    generator = torch.Generator().manual_seed(1)
    gates = gate_sample(logits, mode, threshold=0.3, temperature=temperature, generator=generator)
    assert set(gates.straight_through.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(gates.straight_through, gates.hard)
    assert (gates.hard[gates.soft > 0.5] == 1).all()
    assert (gates.hard[gates.soft < 0.5] == 0).all()
    gradient = torch.autograd.grad(gates.straight_through.sum(), logits)[0]
    torch.testing.assert_close(
        gradient, (gates.soft * (1 - gates.soft) / temperature), atol=2e-2, rtol=2e-2
    )


@pytest.mark.parametrize("mode", ["straight_through", "soft_residual", "published_soft"])
def test_hard_gates_of_training_are_those_deployed(mode):
    logits = torch.randn(50, LAYERS)
    assert torch.equal(gate_sample(logits, mode, threshold=0.2).hard, hard_gates(logits, 0.2))


def test_gumbel_runs_a_layer_with_its_probability():
    logits = torch.tensor([-2.0, 0.0, 1.0]).expand(20_000, 3)
    drawn = gate_sample(logits, "gumbel", generator=torch.Generator().manual_seed(0)).hard.mean(0)
    torch.testing.assert_close(drawn, logits[0].sigmoid(), atol=0.015, rtol=0)


def test_gumbel_repeats_with_its_generator():
    logits = torch.randn(20, LAYERS)
    first, second, other = (
        gate_sample(logits, "gumbel", generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4)
    )
    assert torch.equal(first.soft, second.soft)
    assert not torch.equal(first.soft, other.soft)


def test_an_unknown_mode_is_an_error():
    with pytest.raises((ValueError, TypeError), match="straight_through"):
        mixer("hard")
    with pytest.raises((ValueError, TypeError), match="straight_through"):
        gate_sample(torch.zeros(1, 1), "hard")


# --- what a gate does
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_mix_is_one_branch_or_the_other_bit_for_bit(dtype):
    hidden, layer_out = (1e3 * torch.randn(2, 4, 5, 6)).to(dtype)
    hidden[0, 0], layer_out[1, 0] = -0.0, -0.0
    hard = torch.tensor([1.0, 0.0, 1.0, 0.0])
    out = mix(hidden, layer_out, hard, torch.rand(4))
    expected = torch.where(hard.bool()[:, None, None], layer_out, hidden)
    assert out.dtype == dtype
    assert torch.equal(out, expected)
    assert torch.equal(out.signbit(), expected.signbit())


def test_a_skipped_layer_cannot_spoil_what_is_kept():
    hidden, layer_out = torch.randn(2, 3, 4), torch.full((2, 3, 4), torch.nan)
    assert torch.equal(mix(hidden, layer_out, torch.zeros(2), torch.rand(2)), hidden)


def test_gradients_of_mix_are_those_of_the_written_formula():
    hidden, layer_out = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    hard = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    soft = torch.rand(4, dtype=torch.float64)
    weight = torch.randn(4, 5, 6, dtype=torch.float64)
    variables = [x.requires_grad_() for x in (hidden, layer_out, soft)]

    gate = (hard + soft - soft.detach())[:, None, None]
    written = hidden + gate * (layer_out - hidden)
    expected = torch.autograd.grad((written * weight).sum(), variables)
    ours = torch.autograd.grad((mix(hidden, layer_out, hard, soft) * weight).sum(), variables)
    for gradient, reference in zip(ours, expected, strict=True):
        torch.testing.assert_close(gradient, reference)


def test_the_gate_learns_from_layers_that_are_frozen():
    soft = torch.rand(2, requires_grad=True)
    mix(torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.zeros(2), soft).sum().backward()
    assert (soft.grad != 0).all()


def test_soft_mix_and_the_published_gate_are_what_they_say():
    hidden, layer_out, hard, soft = (
        torch.randn(2, 3, 4),
        torch.randn(2, 3, 4),
        torch.ones(2),
        torch.rand(2),
    )
    p = soft[:, None, None]
    torch.testing.assert_close(
        soft_mix(hidden, layer_out, hard, soft), (1 - p) * hidden + p * layer_out
    )
    assert torch.equal(published_soft_gate(hidden, layer_out, hard, soft), p * layer_out)


# --- training is deployment
# ---------------------------------------------------------------------------------


class RandomNetwork:
    """Pre-norm residual layers with random weights: a language backbone without its attention."""

    def __init__(self, layers=32, width=64, dtype=torch.float32):
        self.weights = [
            (
                (torch.randn(width, 4 * width) / width**0.5).to(dtype),
                (torch.randn(4 * width, width) / 16).to(dtype),
            )
            for _ in range(layers)
        ]

    def layer(self, index, hidden):
        enter, leave = self.weights[index]
        return hidden + 0.25 * F.gelu(F.layer_norm(hidden, hidden.shape[-1:]) @ enter) @ leave

    def trained(self, hidden, gates: Gates, mode):
        for index in range(len(self.weights)):
            out = self.layer(index, hidden)
            hidden = mixer(mode)(hidden, out, gates.hard[:, index], gates.soft[:, index])
        return hidden

    def deployed(self, hidden, hard):
        """One sample; a layer runs, unscaled, or it does not."""
        for index in active_layers(hard):
            hidden = self.layer(index, hidden)
        return hidden


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["straight_through", "gumbel"])
def test_training_is_deployment_bit_for_bit(mode, dtype):
    network, hidden = RandomNetwork(dtype=dtype), torch.randn(1, 16, 64).to(dtype)
    for _ in range(5):
        gates = gate_sample(torch.randn(1, 32), mode)
        assert torch.equal(
            network.trained(hidden, gates, mode), network.deployed(hidden, gates.hard)
        )


def test_samples_of_a_batch_may_take_different_routes():
    """In the published code a batch of which some samples skip crashes."""
    network, hidden = (
        RandomNetwork(dtype=torch.float64),
        torch.randn(4, 16, 64, dtype=torch.float64),
    )
    gates = gate_sample(torch.randn(4, 32))
    together = network.trained(hidden, gates, "straight_through")
    alone = [network.deployed(hidden[i : i + 1], gates.hard[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_the_published_training_is_another_network_than_the_one_deployed():
    """32 layers, all gates 0.8: nothing is skipped, and yet the final features point elsewhere."""
    network, hidden = RandomNetwork(), torch.randn(1, 16, 64)
    gates = gate_sample(torch.full((1, 32), 0.8).logit(), "published_soft")
    deployed = network.deployed(hidden, gates.hard)
    published = network.trained(hidden, gates, "published_soft")
    assert torch.cosine_similarity(published.flatten(), deployed.flatten(), dim=0).abs() < 0.2
    assert torch.equal(network.trained(hidden, gates, "straight_through"), deployed)


def test_a_router_learns_to_skip_the_layers_that_hurt():
    """Of six layers three add noise; the task's gradient alone, through `mix`, turns exactly those
    off."""
    torch.manual_seed(0)
    harmful = torch.tensor([False, True, False, True, True, False])
    logits = torch.full((LAYERS,), 1.0, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.1)
    for _ in range(60):
        hidden = target = torch.randn(8, 5, 4)
        gates = gate_sample(logits.expand(8, LAYERS))
        for index in range(LAYERS):
            change = 0.5 * torch.randn_like(hidden) if harmful[index] else torch.zeros_like(hidden)
            out = hidden + change + 0.1 if not harmful[index] else hidden + change
            target = target + 0.1 if not harmful[index] else target
            hidden = mix(hidden, out, gates.hard[:, index], gates.soft[:, index])
        optimiser.zero_grad()
        (hidden - target).square().mean().backward()
        optimiser.step()
    assert torch.equal(hard_gates(logits[None])[0] == 0, harmful)
