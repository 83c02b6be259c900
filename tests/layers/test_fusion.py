"""Pictures and words: against torch's own attention, and what padding, order and a fresh FiLM must
not do."""

import pytest
import torch
from torch import Tensor, nn

from armlet.layers.fusion import (
    AttentionPool,
    CrossAttention,
    FiLM,
    FusionLayer,
    GoalCode,
    Question,
)

BATCH, SEEN, WORDS, WIDTH, HEADS = 3, 7, 5, 24, 4


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What asks, words, which of them are real, the same as a mask."""
    real = torch.arange(WORDS) < torch.tensor([5, 3, 1])[:, None]
    return (
        torch.randn(BATCH, SEEN, WIDTH),
        torch.randn(BATCH, WORDS, WIDTH),
        real,
        real[:, None, None],
    )


@torch.no_grad()
def test_cross_attention_is_torchs() -> None:
    attention, reference = (
        CrossAttention(WIDTH, HEADS),
        nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
    )
    reference.in_proj_weight.copy_(
        torch.cat([attention.query.weight, attention.key.weight, attention.value.weight])
    )
    reference.in_proj_bias.copy_(
        torch.cat([attention.query.bias, attention.key.bias, attention.value.bias])
    )
    reference.out_proj.load_state_dict(attention.out.state_dict())
    seen, words, real, mask = inputs()
    answer, weights = reference(seen, words, words, key_padding_mask=~real)
    torch.testing.assert_close(attention(seen, words, mask), answer, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(attention.weights(seen, words, mask), weights, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_each_row_of_a_map_sums_to_one_over_real_words() -> None:
    layer = FusionLayer(WIDTH, HEADS)
    seen, words, real, mask = inputs()
    weights = layer.weights(100 * seen, words, mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(BATCH, SEEN))
    assert (weights.transpose(1, 2)[~real] == 0).all() and (
        weights[real[:, None].expand_as(weights)] > 0
    ).all()


@torch.no_grad()
def test_padding_changes_nothing_and_the_order_of_words_is_theirs_to_say() -> None:
    layer = FusionLayer(WIDTH, HEADS)
    seen, words, real, mask = inputs()
    together = layer(seen, words, mask)
    spoiled = layer(seen, words.masked_fill(~real[..., None], 1e6), mask)
    assert torch.equal(together, spoiled)
    for index in range(BATCH):
        alone = layer(
            seen[index : index + 1],
            words[index : index + 1, real[index]],
            mask[index : index + 1, ..., real[index]],
        )
        torch.testing.assert_close(alone[0], together[index], atol=1e-6, rtol=1e-5)
    order = torch.randperm(WORDS)
    torch.testing.assert_close(
        layer(seen, words[:, order], mask[..., order]), together, atol=1e-6, rtol=1e-5
    )


@torch.no_grad()
def test_a_layer_adds_what_it_heard_and_then_what_it_makes_of_it() -> None:
    """Pre-LN, as written; and the map is that of the attention inside, on the same normalised
    input."""
    layer = FusionLayer(WIDTH, HEADS)
    for norm in (layer.norm_seen, layer.norm_words, layer.norm_mlp):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    seen, words, _, mask = inputs()
    words = 3 * words + 1
    heard = seen + layer.attention(layer.norm_seen(seen), layer.norm_words(words), mask)
    torch.testing.assert_close(layer(seen, words, mask), heard + layer.mlp(layer.norm_mlp(heard)))
    expected = layer.attention.weights(layer.norm_seen(seen), layer.norm_words(words), mask)
    torch.testing.assert_close(layer.weights(seen, words, mask), expected)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="24 does not divide into 5 heads"):
        CrossAttention(WIDTH, 5)


@torch.no_grad()
def test_pooling_is_a_weighted_mean_whatever_the_order() -> None:
    pool, (seen, *_) = AttentionPool(WIDTH, HEADS), inputs()
    torch.testing.assert_close(
        pool(seen[:, torch.randperm(SEEN)]), pool(seen), atol=1e-6, rtol=1e-5
    )
    same = seen[:, :1].expand(-1, SEEN, -1)
    torch.testing.assert_close(
        pool(same), pool.out(pool.value(pool.norm(seen[:, 0]))), atol=1e-6, rtol=1e-5
    )


def test_a_goal_is_its_code_and_the_prototypes_it_is_like() -> None:
    goals, features = (
        GoalCode(WIDTH, goal=8, prototypes=5),
        torch.randn(BATCH, WIDTH, requires_grad=True),
    )
    goal = goals(features)
    assert goal.code.shape == (BATCH, 8) and goal.assignment.shape == (BATCH, 5)
    torch.testing.assert_close(goal.assignment.sum(1), torch.ones(BATCH))
    own = goals.norm(goals.enter(features))
    likeness = torch.cosine_similarity(own[:, None], goals.prototypes[None], dim=-1)
    torch.testing.assert_close(goal.assignment, (likeness / 0.1).softmax(1))
    torch.testing.assert_close(goal.code, own + goal.assignment @ goals.prototypes)
    goal.code.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in goals.parameters())
    with torch.no_grad():
        goals.prototypes.zero_()
        assert torch.equal(goals(features).code, own), "prototypes of nothing say nothing"


def test_film_begins_as_the_identity_and_learns_to_scale() -> None:
    film, tokens, meaning = FiLM(6, WIDTH), torch.randn(BATCH, SEEN, WIDTH), torch.randn(BATCH, 6)
    assert torch.equal(film(tokens, meaning), tokens)
    with torch.no_grad():
        film.film.bias[:WIDTH] = 1.0
        film.film.bias[WIDTH:] = 3.0
    torch.testing.assert_close(film(tokens, meaning), 2 * tokens + 3)
    torch.testing.assert_close(film(tokens[:, 0], meaning), 2 * tokens[:, 0] + 3)


@torch.no_grad()
def test_a_question_depends_on_the_order_of_the_words_and_not_on_padding() -> None:
    ask, (_, words, real, _) = Question(WIDTH, WORDS + 2), inputs()
    asked = ask(words, real)
    assert (asked[0] - ask(words.flip(1), real)[0]).norm() > 0.1 * asked[0].norm(), (
        "'a on b' is not 'b on a'"
    )
    for index in range(BATCH):
        alone = ask(words[index : index + 1, real[index]], real[index : index + 1, real[index]])
        torch.testing.assert_close(alone[0], asked[index], atol=1e-6, rtol=1e-5)
