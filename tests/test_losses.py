"""Every loss against its closed form, or a loop in numpy that follows the equations of
recipes.md."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from armlet.training import losses

BATCH, LAYERS, CHUNK, DIMS, WIDTH = 5, 4, 3, 2, 6


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def chunks(*lead, dtype=torch.float64):
    return torch.randn(*(lead or (BATCH,)), CHUNK, DIMS, dtype=dtype)


def vectors(*lead, dtype=torch.float64):
    return torch.randn(*(lead or (BATCH, LAYERS)), WIDTH, dtype=dtype)


def some_valid():
    """From all steps of a chunk down to none."""
    return torch.arange(CHUNK) < torch.tensor([3, 2, 1, 0, 3])[:, None]


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


# --- properties that all distances share
# --------------------------------------------------------------------

DISTANCES = {
    losses.action_mse: chunks,
    losses.action_l1: chunks,
    losses.condition_mse: lambda: vectors(BATCH),
    losses.condition_cosine: lambda: vectors(BATCH),
    losses.text_cosine: lambda: vectors(BATCH),
    losses.cosine_gap: vectors,
    losses.structure_gap: vectors,
    losses.semantic_loss: vectors,
    losses.action_distribution_kl: chunks,
    losses.representation_mse: vectors,
}
every_distance = pytest.mark.parametrize(
    "distance", DISTANCES, ids=lambda distance: distance.__name__
)


@every_distance
def test_nothing_is_at_no_distance_from_itself_and_other_things_are(distance):
    x, y = DISTANCES[distance](), DISTANCES[distance]()
    torch.testing.assert_close(distance(x, x), torch.zeros_like(distance(x, x)), atol=1e-12, rtol=0)
    assert (distance(x, y) > 0).all()


@every_distance
def test_the_order_of_samples_does_not_matter(distance):
    x, y, order = DISTANCES[distance](), DISTANCES[distance](), torch.randperm(BATCH)
    torch.testing.assert_close(distance(x[order], y[order]), distance(x, y)[order])


@every_distance
def test_gradients_are_the_derivatives(distance):
    x, y = DISTANCES[distance]().requires_grad_(), DISTANCES[distance]()
    assert torch.autograd.gradcheck(distance, (x, y))


@every_distance
@pytest.mark.parametrize("size", [0.0, 1e-3, 100.0])
def test_finite_in_bfloat16_at_any_size(distance, size):
    x = (size * DISTANCES[distance]()).bfloat16().requires_grad_()
    loss = distance(x, DISTANCES[distance]().bfloat16())
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert x.grad.isfinite().all()


# --- actions
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distance", "of"),
    [(losses.action_mse, np.square), (losses.action_l1, np.abs)],
    ids=["mse", "l1"],
)
def test_action_distances_average_the_valid_steps(distance, of):
    student, target, valid = chunks(), chunks(), some_valid()
    expected = [
        of((s[v] - t[v]).numpy()).mean() if v.any() else 0.0
        for s, t, v in zip(student, target, valid, strict=True)
    ]
    np.testing.assert_allclose(distance(student, target, valid), expected)
    np.testing.assert_allclose(
        distance(student, target), of((student - target).numpy()).mean((1, 2))
    )


@pytest.mark.parametrize("distance", [losses.action_mse, losses.action_l1])
def test_what_lies_past_the_end_of_an_episode_has_no_effect(distance):
    student, target, valid = chunks().requires_grad_(), chunks(), some_valid()
    expected = distance(student, target, valid)
    spoiled = target.masked_fill(~valid[..., None], torch.nan)
    loss = distance(student, spoiled, valid)
    assert torch.equal(loss, expected)
    loss.sum().backward()
    assert (student.grad[~valid] == 0).all()
    assert student.grad.isfinite().all()


def test_action_cross_entropy_is_minus_the_log_of_the_right_bin():
    logits, valid = torch.randn(BATCH, CHUNK, DIMS, 7, dtype=torch.float64), some_valid()
    target = torch.randint(0, 7, (BATCH, CHUNK, DIMS))
    odds = np.exp(logits.numpy())
    log_probability = np.log(odds / odds.sum(-1, keepdims=True))
    entropy = -np.take_along_axis(log_probability, target.numpy()[..., None], -1)[..., 0].mean(-1)
    np.testing.assert_allclose(losses.action_cross_entropy(logits, target), entropy.mean(-1))
    expected = [
        e[v].mean() if v.any() else 0.0 for e, v in zip(entropy, valid.numpy(), strict=True)
    ]
    np.testing.assert_allclose(losses.action_cross_entropy(logits, target, valid), expected)
    ignored = target.masked_fill(~valid[..., None], 999)
    np.testing.assert_allclose(losses.action_cross_entropy(logits, ignored, valid), expected)


def test_action_cross_entropy_to_shares_is_the_mean_of_that_to_each_bin():
    logits, valid = torch.randn(BATCH, CHUNK, DIMS, 7, dtype=torch.float64), some_valid()
    shares = torch.rand(BATCH, CHUNK, DIMS, 7, dtype=torch.float64)
    shares /= shares.sum(-1, keepdim=True)
    expected = -(shares * logits.log_softmax(-1)).sum(-1).mean(-1)
    torch.testing.assert_close(losses.action_cross_entropy(logits, shares), expected.mean(-1))
    ignored = shares.masked_fill(~valid[..., None, None], torch.nan)
    torch.testing.assert_close(
        losses.action_cross_entropy(logits, ignored, valid),
        losses.action_cross_entropy(logits, shares, valid),
    )
    target = torch.randint(0, 7, (BATCH, CHUNK, DIMS))
    certain = torch.nn.functional.one_hot(target, 7).double()
    torch.testing.assert_close(
        losses.action_cross_entropy(logits, certain), losses.action_cross_entropy(logits, target)
    )


def test_action_cross_entropy_of_ignorance_is_the_log_of_256():
    target = torch.randint(0, 256, (BATCH, CHUNK, DIMS))
    entropy = losses.action_cross_entropy(torch.zeros(BATCH, CHUNK, DIMS, 256), target)
    torch.testing.assert_close(entropy, torch.full((BATCH,), 256.0).log())


def test_weighted_action_cross_entropy_is_the_sum_of_the_paper_divided_by_its_weights():
    logits, target = (
        torch.randn(BATCH, CHUNK, DIMS, 7, dtype=torch.float64),
        torch.randint(0, 7, (BATCH, CHUNK, DIMS)),
    )
    weights = torch.tensor([1.0, 2.0])
    total = np.zeros(BATCH)
    for b, k, j in np.ndindex(BATCH, CHUNK, DIMS):
        total[b] -= weights[j] * torch.log_softmax(logits[b, k, j], -1)[target[b, k, j]]
    found = losses.action_cross_entropy(logits, target, weights=weights)
    np.testing.assert_allclose(CHUNK * 3.0 * found, total, rtol=1e-6)
    equal = losses.action_cross_entropy(logits, target, some_valid(), torch.full((DIMS,), 4.0))
    torch.testing.assert_close(equal, losses.action_cross_entropy(logits, target, some_valid()))


def test_what_an_annotator_did_not_name_costs_nothing():
    logits, label = torch.randn(BATCH, 9, requires_grad=True), torch.tensor([3, -1, 0, 8, -1])
    loss = losses.label_cross_entropy(logits, label)
    named = label >= 0
    expected = -torch.log_softmax(logits, -1)[named].gather(1, label[named, None])[:, 0]
    torch.testing.assert_close(loss[named], expected)
    assert (loss[~named] == 0).all()
    loss.sum().backward()
    assert (logits.grad[~named] == 0).all()
    said, text = vectors(BATCH).requires_grad_(), vectors(BATCH).requires_grad_()
    gap = losses.text_cosine(said, text, label)
    np.testing.assert_allclose(
        gap[named].detach(),
        [
            1 - cosine(a, b)
            for a, b in zip(said[named].detach().numpy(), text[named].detach().numpy(), strict=True)
        ],
    )
    assert (gap[~named] == 0).all()
    gap.sum().backward()
    assert text.grad is None and (said.grad[~named] == 0).all()


# --- semantics
# ----------------------------------------------------------------------------------------------


def test_conditions_are_compared_by_squares_or_by_direction():
    student, teacher = (
        torch.tensor([[3.0, 4.0], [1.0, 0.0]]),
        torch.tensor([[0.0, 0.0], [1.0, 1.0]]),
    )
    assert losses.condition_mse(student, teacher).tolist() == [12.5, 0.5]
    found = losses.condition_cosine(student[1:], teacher[1:])
    assert found.tolist() == [pytest.approx(1 - 0.5**0.5)]
    assert losses.condition_cosine(student, -2 * student).tolist() == [2.0, 2.0]


def test_cosine_gap_knows_directions_only():
    x = vectors()
    torch.testing.assert_close(
        losses.cosine_gap(3 * x, x), torch.zeros(BATCH, LAYERS).double(), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(losses.cosine_gap(-x, x), torch.full((BATCH, LAYERS), 2.0).double())
    basis = torch.eye(WIDTH)[:2, None]
    torch.testing.assert_close(losses.cosine_gap(basis, basis.flip(0)), torch.ones(2, 1))


def test_structure_gap_is_the_mse_of_the_cosine_matrices():
    student, teacher = vectors(), vectors()
    gap = losses.structure_gap(student, teacher)
    for layer in range(LAYERS):
        s, t = student[:, layer].numpy(), teacher[:, layer].numpy()
        matrix = [
            [(cosine(s[i], s[j]) - cosine(t[i], t[j])) ** 2 for j in range(BATCH)]
            for i in range(BATCH)
        ]
        np.testing.assert_allclose(gap[:, layer], np.mean(matrix, axis=1), atol=1e-12)
        np.testing.assert_allclose(gap[:, layer].mean(), np.mean(matrix), atol=1e-12)


def test_structure_gap_does_not_see_a_common_rotation():
    teacher = vectors()
    rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64)).Q
    gap = losses.structure_gap(teacher @ rotation, teacher)
    torch.testing.assert_close(gap, torch.zeros_like(gap), atol=1e-12, rtol=0)


def test_a_batch_of_one_has_no_structure():
    student = vectors(1, LAYERS).requires_grad_()
    gap = losses.structure_gap(student, vectors(1, LAYERS))
    gap.sum().backward()
    assert (gap == 0).all()
    assert (student.grad == 0).all()


def test_semantic_loss_weighs_structure_with_eta():
    student, teacher = vectors(), vectors()
    align, struct = losses.cosine_gap(student, teacher), losses.structure_gap(student, teacher)
    torch.testing.assert_close(losses.semantic_loss(student, teacher), align + 0.5 * struct)
    torch.testing.assert_close(losses.semantic_loss(student, teacher, eta=0.0), align)


# --- actions by layer
# ---------------------------------------------------------------------------------------


def layer_action_reference(student, teacher, expert):
    """(b, l, k, a), (b, l, k, a), (b, k, a) -> (b, l), one number after another."""
    student, teacher, expert = student.detach().numpy(), teacher.numpy(), expert.numpy()
    loss = np.zeros(student.shape[:2])
    for b, layer in np.ndindex(*loss.shape):
        before = student[b, layer - 1] if layer > 0 else np.zeros_like(student[b, 0])
        for target in (expert[b], teacher[b, layer], before):
            loss[b, layer] += np.mean((student[b, layer] - target) ** 2)
    return loss


def test_layer_action_loss_is_its_three_terms():
    student, teacher, expert = chunks(BATCH, LAYERS), chunks(BATCH, LAYERS), chunks()
    loss = losses.layer_action_loss(student, teacher, expert)
    np.testing.assert_allclose(loss, layer_action_reference(student, teacher, expert))


@pytest.mark.parametrize(("steps", "which"), [("current", slice(0, 1)), ("last", slice(-1, None))])
def test_layer_action_loss_of_one_step(steps, which):
    student, teacher, expert = chunks(BATCH, LAYERS), chunks(BATCH, LAYERS), chunks()
    one = [actions[..., which, :] for actions in (student, teacher, expert)]
    expected = layer_action_reference(*one)
    np.testing.assert_allclose(
        losses.layer_action_loss(student, teacher, expert, steps=steps), expected
    )
    single_action_heads = losses.layer_action_loss(one[0], one[1], expert, steps=steps)
    np.testing.assert_allclose(single_action_heads, expected)


def test_layer_action_loss_of_the_valid_steps():
    student, teacher, expert, valid = (
        chunks(BATCH, LAYERS),
        chunks(BATCH, LAYERS),
        chunks(),
        some_valid(),
    )
    loss = losses.layer_action_loss(
        student, teacher, expert.masked_fill(~valid[..., None], torch.nan), valid
    )
    for b in range(BATCH):
        kept = [actions[b : b + 1, ..., valid[b], :] for actions in (student, teacher, expert)]
        expected = layer_action_reference(*kept) if valid[b].any() else np.zeros((1, LAYERS))
        np.testing.assert_allclose(loss[b : b + 1], expected)


def test_a_layer_is_not_pulled_by_the_one_behind_it():
    """The consistency term moves a layer towards the one before it and never the other way
    round."""
    student = chunks(BATCH, LAYERS).requires_grad_()
    loss = losses.layer_action_loss(student, chunks(BATCH, LAYERS), chunks())
    gradient = torch.autograd.grad(loss[:, 2].sum(), student)[0].abs().sum((0, 2, 3)) > 0
    assert gradient.tolist() == [False, False, True, False]


def test_heads_for_one_action_cannot_be_compared_with_a_chunk():
    one = torch.zeros(BATCH, LAYERS, 1, DIMS)
    with pytest.raises(ValueError, match="whole chunk"):
        losses.layer_action_loss(one, one, torch.zeros(BATCH, CHUNK, DIMS))


# --- depth and budget
# ---------------------------------------------------------------------------------------


@given(st.integers(2, 64), st.floats(0.1, 4))
def test_depth_weights_have_their_closed_form(layers, gamma):
    expected = (np.arange(layers) / (layers - 1)) ** gamma
    weights = losses.depth_weights(layers, gamma)
    np.testing.assert_allclose(weights, expected / expected.mean(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(weights.mean(), 1, rtol=1e-5)


def test_depth_weights_at_the_edges():
    assert losses.depth_weights(1).tolist() == [1.0]
    assert losses.depth_weights(4, gamma=0.0).tolist() == [1.0] * 4
    assert losses.depth_weights(3).tolist() == pytest.approx([0.0, 0.6, 2.4])


def test_keep_ratio_counts_the_cost_of_what_runs():
    gates = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    costs = torch.tensor([1.0, 2.0, 5.0])
    torch.testing.assert_close(losses.keep_ratio(gates, costs), torch.tensor([1.0, 0.0, 0.75]))


def test_budget_gap_for_every_sample_or_for_the_batch():
    gates, costs = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]), torch.tensor([3.0, 1.0])
    squared = torch.tensor([0.5, 0.25, -0.5]).square()
    torch.testing.assert_close(losses.budget_gap(gates, costs, 0.5), squared)
    each = losses.budget_gap(gates, costs, torch.tensor([1.0, 0.75, 0.5]))
    torch.testing.assert_close(each, torch.tensor([0.0, 0.0, 0.25]))
    mean = (1 + 0.75 + 0) / 3 - 0.5
    torch.testing.assert_close(
        losses.budget_gap(gates, costs, 0.5, over="batch"), torch.full((3,), mean**2)
    )
    with pytest.raises((ValueError, TypeError), match="sample"):
        losses.budget_gap(gates, costs, 0.5, over="layer")


def test_a_budget_pulls_from_both_sides_and_the_dear_layers_most():
    costs = torch.tensor([1.0, 3.0])
    for kept, sign in ((1.0, 1.0), (0.0, -1.0)):
        gates = torch.full((1, 2), kept, requires_grad=True)
        losses.budget_gap(gates, costs, 0.5).sum().backward()
        assert (gates.grad.sign() == sign).all()
        assert gates.grad[0, 1].abs() > gates.grad[0, 0].abs()


# --- as published
# -------------------------------------------------------------------------------------------


def test_published_balance_is_the_variance_of_the_mean_gates():
    gates = torch.rand(BATCH, LAYERS)
    np.testing.assert_allclose(
        losses.published_balance(gates), np.var(gates.numpy().mean(0)), rtol=1e-5
    )


@pytest.mark.parametrize("everywhere", [0.0, 0.5, 1.0])
def test_published_balance_does_not_ask_for_sparsity(everywhere):
    """Running everything is as good as running nothing; our budget tells them apart."""
    gates = torch.full((BATCH, LAYERS), everywhere)
    assert losses.published_balance(gates) == 0
    gap = losses.budget_gap(gates, torch.ones(LAYERS), 0.25)
    torch.testing.assert_close(gap, torch.full((BATCH,), (everywhere - 0.25) ** 2))


def test_published_total_is_the_sum_over_layers_it_is_written_as():
    semantics, layer_actions, expert = (
        (vectors(), vectors()),
        (chunks(BATCH, LAYERS), chunks(BATCH, LAYERS)),
        chunks(),
    )
    weights = np.array([(layer / (LAYERS - 1)) ** 2 for layer in range(LAYERS)])
    weights /= weights.mean()
    last = [actions[..., -1:, :] for actions in (*layer_actions, expert)]
    action = layer_action_reference(*last).mean(0)
    total = 0.0
    for layer in range(LAYERS):
        s, t = (x[:, layer].numpy() for x in semantics)
        pairs = list(zip(s, t, strict=True))
        align = np.mean([1 - cosine(a, b) for a, b in pairs])
        struct = np.mean([[(cosine(a, b) - cosine(c, d)) ** 2 for b, d in pairs] for a, c in pairs])
        total += weights[layer] * (0.7 * (align + 0.5 * struct) + 1.3 * action[layer])
    ours = losses.published_distillation(semantics, layer_actions, expert, alpha=0.7, beta=1.3)
    np.testing.assert_allclose(ours, total)


# --- distributions over actions (aed)
# -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(BATCH, CHUNK, 24), (BATCH, CHUNK, DIMS, 7)], ids=["codebook", "bins"]
)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_action_distribution_kl_is_torchs(shape, temperature):
    student, teacher, valid = torch.randn(shape).double(), torch.randn(shape).double(), some_valid()
    logs = [F.log_softmax(logits / temperature, -1) for logits in (student, teacher)]
    steps = (
        F.kl_div(*logs, reduction="none", log_target=True).sum(-1).view(BATCH, CHUNK, -1).mean(-1)
    )
    gap = losses.action_distribution_kl(student, teacher, temperature=temperature)
    torch.testing.assert_close(gap, temperature**2 * steps.mean(1))
    spoiled = teacher.masked_fill(~valid.view(BATCH, CHUNK, *(1,) * (len(shape) - 2)), torch.nan)
    expected = [
        temperature**2 * row[v].mean() if v.any() else row.new_zeros(())
        for row, v in zip(steps, valid, strict=True)
    ]
    masked = losses.action_distribution_kl(student, spoiled, valid, temperature=temperature)
    torch.testing.assert_close(masked, torch.stack(expected))


def test_temperature_leaves_the_gradient_its_size():
    """Softened a lot, T² KL becomes half the squared difference of the (centred) logits over their
    number: no T is left."""
    student, teacher = torch.randn(BATCH, 1, 24).double(), torch.randn(BATCH, 1, 24).double()
    centred = [logits - logits.mean(-1, keepdim=True) for logits in (student, teacher)]
    limit = (centred[0] - centred[1]).square().sum((1, 2)) / (2 * 24)
    torch.testing.assert_close(
        losses.action_distribution_kl(student, teacher, temperature=1e4), limit, rtol=1e-3, atol=0
    )


def test_a_mixture_is_the_cross_entropy_to_both():
    student, teacher = (
        torch.randn(BATCH, CHUNK, 24).double(),
        torch.randn(BATCH, CHUNK, 24).double(),
    )
    expert, valid = torch.randint(24, (BATCH, CHUNK)), some_valid()

    def mixed(share, teacher=teacher, **options):
        return losses.mixed_action_loss(student, teacher, expert, share=share, **options)

    torch.testing.assert_close(
        mixed(0.0, valid=valid), losses.action_cross_entropy(student, expert, valid)
    )
    softened = losses.action_distribution_kl(student, teacher, valid, temperature=2.0)
    torch.testing.assert_close(mixed(1.0, valid=valid, temperature=2.0), softened)
    probability = teacher.softmax(-1)
    target = 0.3 * probability + 0.7 * F.one_hot(expert, 24)
    entropy = -(probability * probability.log()).sum(-1)
    reference = (
        F.cross_entropy(student.transpose(1, 2), target.transpose(1, 2), reduction="none")
        - 0.3 * entropy
    )
    torch.testing.assert_close(mixed(0.3), reference.mean(1))
    with pytest.raises(ValueError, match=r"from 0 to 1; found 1\.5"):
        mixed(1.5)


# --- what looks at what (aed)
# -------------------------------------------------------------------------------


def maps(places, words=6):
    return torch.randn(BATCH, places, words, dtype=torch.float64).softmax(-1)


def some_words(words=6):
    return torch.arange(words) < torch.tensor([6, 4, 3, 1, 5])[:, None]


def test_attention_kl_is_torchs_over_the_real_words():
    student, teacher, words = maps(9), maps(9), some_words()
    gap = losses.attention_kl(student, teacher, words)
    for b in range(BATCH):
        mine, theirs = (
            rows[b][:, words[b]] / rows[b][:, words[b]].sum(-1, keepdim=True)
            for rows in (student, teacher)
        )
        torch.testing.assert_close(gap[b], F.kl_div(mine.log(), theirs, reduction="batchmean"))
    torch.testing.assert_close(
        losses.attention_kl(teacher, teacher, words), torch.zeros(BATCH).double()
    )
    spoiled = teacher.masked_fill(~words[:, None], 0.9)
    torch.testing.assert_close(losses.attention_kl(student, spoiled, words), gap)
    silent = [rows.masked_fill(~words[:, None], 0) for rows in (student, teacher)]
    torch.testing.assert_close(losses.attention_kl(*silent), gap)
    order = torch.randperm(6)
    torch.testing.assert_close(
        losses.attention_kl(student[..., order], teacher[..., order], words[:, order]), gap
    )
    order = torch.randperm(BATCH)
    torch.testing.assert_close(
        losses.attention_kl(student[order], teacher[order], words[order]), gap[order]
    )


def test_attention_kl_of_half_precision_and_of_certainty_is_finite():
    words = some_words().fill_(True)
    certain = F.one_hot(torch.arange(9) % 6, 6).expand(BATCH, -1, -1).double()
    student = maps(9).requires_grad_()
    loss = losses.attention_kl(student, certain, words)
    torch.testing.assert_close(loss, -(certain * student.log()).sum(-1).mean(-1))
    wrong = certain.roll(1, dims=-1).half().requires_grad_()
    loss = losses.attention_kl(wrong, certain.half(), words)
    loss.sum().backward()
    assert loss.dtype == torch.float32 and loss.isfinite().all() and wrong.grad.isfinite().all()
    torch.testing.assert_close(
        losses.attention_kl(maps(9).half(), maps(9).half(), words).min() > 0, torch.tensor(True)
    )


def test_a_map_over_another_grid_is_resized_camera_by_camera():
    """Attention that is linear in the place is the same on any grid, inside; and rows still sum to
    1."""
    student, teacher = maps(14**2 + 4**2), maps(16**2 + 6**2)
    words, grids = some_words(), {"student_grids": (14, 4), "teacher_grids": (16, 6)}
    resized = losses.resize_grids(teacher, (16, 6), (14, 4), wanted=212)
    torch.testing.assert_close(resized.sum(-1), torch.ones(BATCH, 212).double())
    scene = teacher[:, :256].transpose(1, 2).reshape(BATCH, 6, 16, 16)
    reference = F.interpolate(scene, (14, 14), mode="bilinear", align_corners=False)
    torch.testing.assert_close(
        resized[:, :196].transpose(1, 2).reshape(BATCH, 6, 14, 14), reference
    )
    torch.testing.assert_close(
        losses.attention_kl(student, teacher, words, **grids),
        losses.attention_kl(student, resized, words),
    )
    everywhere = teacher[:, :1].expand(-1, 292, -1)
    gap = losses.attention_kl(teacher[:, :1].expand(-1, 212, -1), everywhere, words, **grids)
    torch.testing.assert_close(gap, torch.zeros(BATCH).double(), atol=1e-12, rtol=0)
    ramp = (torch.arange(16.0).double() + 0.5).repeat(16, 1).view(1, 256, 1)
    inside = losses.resize_grids(ramp, (16,), (14,), wanted=196).view(14, 14)[:, 1:-1] * 14 / 16
    torch.testing.assert_close(inside, (torch.arange(14.0).double() + 0.5).repeat(14, 1)[:, 1:-1])


def test_grids_that_cannot_be_are_named():
    words = some_words()
    with pytest.raises(ValueError, match="sees 16 places and the student 9; say in which grids"):
        losses.attention_kl(maps(9), maps(16), words)
    with pytest.raises(ValueError, match=r"teacher_grids=\(5,\) have 25 places, and there are 16"):
        losses.attention_kl(maps(9), maps(16), words, student_grids=(3,), teacher_grids=(5,))
    with pytest.raises(ValueError, match="through 1 cameras and the student through 2"):
        losses.attention_kl(maps(8), maps(16), words, student_grids=(2, 2), teacher_grids=(4,))
    with pytest.raises(ValueError, match="listens to 6 words and the teacher to 7"):
        losses.attention_kl(maps(9), maps(9, words=7), words)
    with pytest.raises(ValueError, match=f"{WIDTH} wide and the teacher's 8"):
        losses.representation_mse(vectors(), torch.zeros(BATCH, LAYERS, 8))


def test_representations_are_compared_in_direction_alone():
    student, teacher = vectors(), vectors()
    gap = losses.representation_mse(student, teacher)
    torch.testing.assert_close(
        losses.representation_mse(7 * student + 3, teacher), gap, rtol=1e-3, atol=1e-4
    )
    mine, theirs = (
        (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, correction=0)
        for x in (student, teacher)
    )
    torch.testing.assert_close(gap, (mine - theirs).square().mean((1, 2)), rtol=1e-3, atol=1e-4)
    wide = torch.randn(BATCH, 25, WIDTH).double()
    resized = losses.resize_grids(wide, (5,), (2,), wanted=4)
    torch.testing.assert_close(
        losses.representation_mse(student, wide, student_grids=(2,), teacher_grids=(5,)),
        losses.representation_mse(student, resized),
    )


# --- pictures beside words (aed)
# ----------------------------------------------------------------------------


def embeddings():
    return F.normalize(vectors(BATCH), dim=-1), F.normalize(vectors(BATCH), dim=-1)


def test_info_nce_with_one_right_answer_is_cross_entropy():
    (image, text), alone = embeddings(), torch.arange(BATCH)
    scores = image @ text.T / 0.07
    reference = (
        F.cross_entropy(scores, alone, reduction="none")
        + F.cross_entropy(scores.T, alone, reduction="none")
    ) / 2
    torch.testing.assert_close(
        losses.info_nce(image, text, torch.eye(BATCH, dtype=torch.bool)), reference
    )


def test_info_nce_counts_every_sample_with_the_same_instruction_as_right():
    image, text = embeddings()
    same = losses.same_instruction(
        torch.tensor([[4, 5, 0], [7, 0, 0], [4, 5, 0], [4, 5, 6], [7, 0, 0]])
    )
    assert same.tolist() == [
        [True, False, True, False, False],
        [False, True, False, False, True],
        [True, False, True, False, False],
        [False, False, False, True, False],
        [False, True, False, False, True],
    ]
    logs = [F.log_softmax(scores / 0.2, -1) for scores in (image @ text.T, text @ image.T)]
    expected = [
        -(logs[0][i][same[i]].mean() + logs[1][i][same[i]].mean()) / 2 for i in range(BATCH)
    ]
    loss = losses.info_nce(image, text, same, temperature=0.2)
    torch.testing.assert_close(loss, torch.stack(expected))
    order = torch.randperm(BATCH)
    torch.testing.assert_close(
        losses.info_nce(image[order], text[order], same[order][:, order], 0.2), loss[order]
    )
    torch.testing.assert_close(losses.info_nce(text, image, same, 0.2), loss)


def test_the_least_info_nce_is_the_log_of_how_many_are_right():
    code = torch.tensor([0, 1, 0, 2, 1])
    perfect = F.one_hot(code, WIDTH).double()
    same = code[:, None] == code
    torch.testing.assert_close(
        losses.info_nce(perfect, perfect, same, 0.01), same.sum(1).double().log()
    )
    gradient = torch.randn(BATCH, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: losses.info_nce(F.normalize(x, dim=-1), perfect, same), (gradient,)
    )
