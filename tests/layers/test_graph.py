"""The probe heads against a dense numpy version of their docstring, and against PyTorch
Geometric."""

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch import nn

from armlet.layers.graph import (
    Edges,
    GraphAttention,
    LayerActionHead,
    ProbeHeads,
    SemanticHead,
    nearest,
)

WIDTH = 12
SMALL = {
    "graph_width": 8,
    "semantic_width": 6,
    "neighbours": 3,
    "heads": 2,
    "graph_layers": 2,
    "queries": 3,
    "hidden": 5,
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def ragged(batch=3, length=9, width=WIDTH, dtype=torch.float64):
    """Hidden states and a mask whose samples have different numbers of real tokens, not all at the
    front."""
    hidden = torch.randn(batch, length, width, dtype=dtype)
    mask = torch.arange(length) < torch.linspace(2, length, batch).long()[:, None]
    mask[0] = mask[0].flip(0)
    return hidden, mask


def roughen(module: nn.Module) -> nn.Module:
    """Random values in every parameter, so that biases and gains are tested too."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


# --- the reference: one sample, one layer, dense matrices, numpy
# --------------------------------------------


def layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def dense_attention(x, weight, receiver, sender, bias, edge_weight):
    """Graph attention from (n, n) edge weights: row i hears column j, 0 where there is no edge."""
    out = np.zeros_like(x)
    for head, matrix in enumerate(weight):
        message = x @ matrix
        score = (message @ receiver[head])[:, None] + (message @ sender[head])[None, :]
        attention = edge_weight * np.exp(np.where(score > 0, score, 0.2 * score))
        out += attention / attention.sum(1, keepdims=True) @ message
    return out / len(weight) + bias


def semantic_vector(parameters, tokens, neighbours):
    """The docstring of `SemanticHeads`, for the real tokens (n, d) of one sample."""
    p = {name.removeprefix("stack."): value.numpy() for name, value in parameters.items()}
    normal = layer_norm(tokens)
    x = normal @ p["project.0.weight"].T + p["project.0.bias"]
    affinity = (
        (x @ p["query.weight"][0]) @ (x @ p["key.weight"][0]).T / np.sqrt(p["key.weight"].shape[-1])
    )
    edge_weight = np.zeros_like(affinity)
    for i, row in enumerate(affinity):
        kept = np.argsort(-row)[:neighbours]
        edge_weight[i, kept] = softmax(row[kept])
    layer = 0
    while f"attention.{layer}.weight" in p:
        arguments = [
            p[f"attention.{layer}.{name}"][0] for name in ("weight", "receiver", "sender", "bias")
        ]
        update = dense_attention(x, *arguments, edge_weight)
        update = np.where(update > 0, update, np.expm1(update))
        x = layer_norm(x + update) * p[f"norm.{layer}.gain"][0] + p[f"norm.{layer}.shift"][0]
        layer += 1
    seen = np.concatenate([x, normal], -1)
    pooled = np.concatenate([softmax(score) @ seen for score in (x @ p["pool.weight"][0]).T])
    entered = pooled @ p["read.enter.weight"][0] + p["read.enter.bias"][0, 0]
    gelu = entered * 0.5 * (1 + erf(entered / np.sqrt(2)))
    return gelu @ p["read.leave.weight"][0] + p["read.leave.bias"][0, 0]


@pytest.mark.parametrize("neighbours", [1, 3, 8, 50])
@pytest.mark.parametrize("graph_layers", [0, 1, 2])
def test_equals_the_dense_reference(neighbours, graph_layers):
    head = SemanticHead(
        WIDTH, **SMALL | {"neighbours": neighbours, "graph_layers": graph_layers}
    ).double()
    roughen(head)
    hidden, mask = ragged()
    expected = [
        semantic_vector(head.state_dict(), tokens[real].numpy(), neighbours)
        for tokens, real in zip(hidden, mask, strict=True)
    ]
    np.testing.assert_allclose(head(hidden, mask).detach().numpy(), expected, atol=1e-10)


def test_layer_action_head_is_a_plain_mlp():
    head = roughen(LayerActionHead(6, 5, chunk=4, dims=3).double())
    semantic = torch.randn(2, 6, dtype=torch.float64)
    enter, leave = head.stack.read.enter, head.stack.read.leave
    gelu = nn.functional.gelu(semantic @ enter.weight[0] + enter.bias[0])
    expected = (gelu @ leave.weight[0] + leave.bias[0]).view(2, 4, 3)
    torch.testing.assert_close(head(semantic), expected)


# --- all layers at once
# -------------------------------------------------------------------------------------


def single(heads: ProbeHeads, layer: int) -> tuple[SemanticHead, LayerActionHead]:
    """The heads of one layer as modules of their own, with that layer's weights."""
    chunk, width = heads.action.chunk, heads.semantic.project[0].weight.shape[1]
    semantic = SemanticHead(width, **SMALL).double()
    action = LayerActionHead(6, 5, chunk=chunk, dims=2).double()
    for module, source in ((semantic.stack, heads.semantic), (action.stack, heads.action)):
        weights = {}
        for name, value in source.state_dict().items():
            if not name.startswith("project."):
                weights[name] = value[layer : layer + 1]
            elif name.startswith(f"project.{layer}."):
                weights[name.replace(f"project.{layer}.", "project.0.")] = value
        module.load_state_dict(weights)
    return semantic, action


def probe(layers=4):
    return roughen(ProbeHeads(layers, WIDTH, chunk=3, dims=2, **SMALL).double())


def test_all_layers_at_once_equal_one_after_another():
    heads = probe()
    _, mask = ragged()
    hiddens = [ragged()[0].requires_grad_() for _ in range(4)]
    semantics, actions = heads(hiddens, mask)
    assert semantics.shape == (3, 4, 6)
    assert actions.shape == (3, 4, 3, 2)
    together = torch.autograd.grad(actions.square().sum(), hiddens)
    for layer, hidden in enumerate(hiddens):
        semantic, action = single(heads, layer)
        alone = semantic(hidden, mask)
        torch.testing.assert_close(semantics[:, layer], alone)
        torch.testing.assert_close(actions[:, layer], action(alone))
        torch.testing.assert_close(
            together[layer], torch.autograd.grad(action(alone).square().sum(), hidden)[0]
        )


@pytest.mark.parametrize("chosen", [[2], [0, 3], [3, 1, 0]])
def test_a_subset_of_layers_equals_its_rows_of_all(chosen):
    heads = probe()
    _, mask = ragged()
    hiddens = [ragged()[0] for _ in range(4)]
    semantics, actions = heads(hiddens, mask)
    some_semantics, some_actions = heads([hiddens[layer] for layer in chosen], mask, chosen)
    torch.testing.assert_close(some_semantics, semantics[:, chosen])
    torch.testing.assert_close(some_actions, actions[:, chosen])


def test_a_subset_leaves_the_other_layers_heads_alone():
    heads = probe()
    hidden, mask = ragged()
    heads([hidden, hidden], mask, [1, 3])[1].square().sum().backward()
    assert heads.semantic.project[0].weight.grad is None
    gradient = heads.semantic.attention[0].weight.grad.flatten(1).norm(dim=1)
    assert (gradient > 0).tolist() == [False, True, False, True]


def test_says_what_is_wrong_with_the_call():
    heads = probe()
    hidden, mask = ragged()
    with pytest.raises(ValueError, match="2 hidden states for 4 layers"):
        heads([hidden, hidden], mask)
    mask[1] = False
    with pytest.raises(ValueError, match="without a single real token"):
        heads([hidden] * 4, mask)


# --- what must not matter
# -----------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [1, 7, 40])
@pytest.mark.parametrize("garbage", [0.0, 1.0, 1e4])
def test_padding_does_not_change_the_result(extra, garbage):
    head = SemanticHead(WIDTH, **SMALL)
    hidden, mask = ragged(dtype=torch.float32)
    padding = garbage * torch.randn(3, extra, WIDTH)
    padded = torch.cat([hidden, padding], dim=1), torch.nn.functional.pad(mask, (0, extra))
    torch.testing.assert_close(head(*padded), head(hidden, mask), atol=1e-5, rtol=1e-5)


def test_padding_gets_no_gradient():
    head = SemanticHead(WIDTH, **SMALL)
    hidden, mask = ragged(dtype=torch.float32)
    head(hidden.requires_grad_(), mask).sum().backward()
    assert (hidden.grad[~mask] == 0).all()
    assert (hidden.grad[mask].abs().sum(-1) > 0).all()


def test_order_of_tokens_and_of_samples_does_not_matter():
    head = SemanticHead(WIDTH, **SMALL).double()
    hidden, mask = ragged()
    expected = head(hidden, mask)
    order = torch.randperm(hidden.shape[1])
    torch.testing.assert_close(head(hidden[:, order], mask[:, order]), expected)
    samples = torch.randperm(len(hidden))
    torch.testing.assert_close(head(hidden[samples], mask[samples]), expected[samples])


def test_a_sample_does_not_see_the_others():
    head = SemanticHead(WIDTH, **SMALL).double()
    hidden, mask = ragged()
    alone = torch.cat([head(hidden[i : i + 1], mask[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, head(hidden, mask))


def test_asked_twice_it_answers_the_same():
    heads = probe()
    hidden, mask = ragged()
    first, second = (heads([hidden] * 4, mask) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_one_real_token_and_more_neighbours_than_tokens():
    head = SemanticHead(WIDTH, **SMALL | {"neighbours": 99}).double()
    one = torch.randn(1, 1, WIDTH, dtype=torch.float64)
    expected = head(one, torch.ones(1, 1, dtype=torch.bool))
    padded = torch.cat([one, torch.randn(1, 4, WIDTH, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(head(padded, torch.tensor([[True] + [False] * 4])), expected)


# --- numbers stay finite
# ------------------------------------------------------------------------------------

PRECISIONS = {
    "float32": (torch.float32, torch.float32, False),
    "hidden states in bfloat16": (torch.bfloat16, torch.float32, False),
    "all in bfloat16": (torch.bfloat16, torch.bfloat16, False),
    "autocast": (torch.float32, torch.float32, True),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rms", [1e-3, 1.0, 10.0, 100.0])
def test_finite_at_any_size_and_precision(rms, precision):
    hidden_dtype, head_dtype, autocast = PRECISIONS[precision]
    heads = ProbeHeads(2, 64, chunk=3, dims=2, graph_width=32, semantic_width=16).to(head_dtype)
    hidden = (rms * torch.randn(2, 20, 64)).to(hidden_dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        semantics, actions = heads([hidden, hidden], torch.ones(2, 20, dtype=torch.bool))
    (semantics.float().square().mean() + actions.float().square().mean()).backward()
    assert semantics.isfinite().all()
    assert actions.isfinite().all()
    assert hidden.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in heads.parameters())


def test_size_of_the_hidden_states_does_not_matter():
    head = SemanticHead(WIDTH, **SMALL).double()
    hidden, mask = ragged()
    torch.testing.assert_close(head(100 * hidden, mask), head(hidden, mask), atol=1e-4, rtol=1e-4)


def test_half_the_precision_gives_nearly_the_same_vector():
    head = SemanticHead(64, 32, 16)
    hidden, mask = torch.randn(4, 30, 64), torch.ones(4, 30, dtype=torch.bool)
    gap = 1 - torch.cosine_similarity(head(hidden.bfloat16(), mask), head(hidden, mask), dim=-1)
    assert gap.max() < 0.02


# --- gradients
# ----------------------------------------------------------------------------------------------


def test_gradients_are_the_derivatives():
    head = roughen(SemanticHead(5, 4, 3, neighbours=2, heads=2, graph_layers=1).double())
    hidden = torch.randn(2, 5, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    names = [name for name, _ in head.named_parameters()]

    def by_parameters(hidden, *values):
        return torch.func.functional_call(
            head, dict(zip(names, values, strict=True)), (hidden, mask)
        )

    values = [parameter.detach().requires_grad_() for parameter in head.parameters()]
    # Along directions at random instead of number by number, which takes half a minute.
    assert torch.autograd.gradcheck(by_parameters, (hidden, *values), fast_mode=True)


def test_every_parameter_learns():
    heads = probe()
    hidden, mask = ragged()
    heads([hidden] * 4, mask)[1].square().sum().backward()
    still = [
        name for name, parameter in heads.named_parameters() if parameter.grad.abs().max() == 0
    ]
    assert still == []


# --- the graph
# ----------------------------------------------------------------------------------------------


def test_nearest_keeps_the_highest_real_affinities():
    query, key = torch.randn(4, 10, 3), torch.randn(4, 10, 3)
    mask = torch.rand(4, 10) < 0.6
    mask[:, :3] = True
    for sample, token in enumerate(nearest(query, key, mask, 3)):
        affinity = (query[sample] @ key[sample].T).masked_fill(~mask[sample], -torch.inf)
        expected = affinity.argsort(dim=-1, descending=True)[:, :3]
        assert torch.equal(token.sort(dim=-1).values, expected.sort(dim=-1).values)


def test_messages_run_from_neighbour_to_node():
    """Node i hears i + 1 only; so a change of node 3 is heard by node 2 and by nobody else."""
    attention = GraphAttention(1, 4, heads=2).double()
    edges = Edges.of(((torch.arange(6) + 1) % 6)[:, None])
    nodes, affinity = (
        torch.randn(1, 6, 4, dtype=torch.float64),
        torch.zeros(1, 6, 1, dtype=torch.float64),
    )
    before = attention(nodes, edges, affinity)
    nodes[0, 3] += 1
    changed = (attention(nodes, edges, affinity) - before)[0].abs().sum(-1) > 1e-9
    assert changed.tolist() == [False, False, True, False, False, False]


def test_no_node_is_left_without_a_message():
    """Even where all listen to the same few: the published code leaves all but those few at
    zero."""
    attention = GraphAttention(1, 8, heads=4)
    edges = Edges.of(torch.tensor([[0, 1]] * 50))
    out = attention(torch.randn(1, 50, 8), edges, torch.randn(1, 50, 2))
    assert (out.abs().sum(-1) > 0).all()


def test_a_surplus_edge_weighs_nothing():
    attention = GraphAttention(1, 4, heads=2).double()
    nodes = torch.randn(1, 5, 4, dtype=torch.float64)
    kept = torch.randint(0, 5, (5, 2))
    affinity = torch.randn(1, 5, 2, dtype=torch.float64)
    surplus = torch.full((1, 5, 1), -torch.inf, dtype=torch.float64)
    with_surplus = attention(
        nodes,
        Edges.of(torch.cat([kept, kept[:, :1]], dim=1)),
        torch.cat([affinity, surplus], dim=-1),
    )
    torch.testing.assert_close(with_surplus, attention(nodes, Edges.of(kept), affinity))


# --- sizes
# --------------------------------------------------------------------------------------------------


def test_three_million_parameters_a_layer_at_width_4096():
    with torch.device("meta"):
        heads = ProbeHeads(32, 4096, chunk=8, dims=7)
    assert 2.5e6 < sum(parameter.numel() for parameter in heads.parameters()) / 32 < 3.2e6


# --- PyTorch Geometric
# --------------------------------------------------------------------------------------


def geometric_layer(attention: GraphAttention, conv):
    """PyTorch Geometric's layer with our weights: it keeps all heads in one (heads * out, in)
    matrix."""
    _, heads, width, _ = attention.weight.shape
    with torch.no_grad():
        conv.lin.weight.copy_(attention.weight[0].transpose(1, 2).reshape(heads * width, width))
        conv.att_src.copy_(attention.sender)
        conv.att_dst.copy_(attention.receiver)
        conv.bias.copy_(attention.bias[0, 0])
    return conv


@pytest.mark.reference
@pytest.mark.parametrize("heads", [1, 4])
def test_equals_pytorch_geometric(heads):
    """With equal affinities, in value and in the gradients of nodes and weights."""
    geometric = pytest.importorskip("torch_geometric.nn")
    attention = roughen(GraphAttention(1, 6, heads).double())
    conv = geometric.GATConv(6, 6, heads=heads, concat=False, add_self_loops=False).double()
    geometric_layer(attention, conv)
    nodes = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    heard = torch.stack([torch.randperm(20)[:5] for _ in range(20)])
    source_to_target = torch.stack([heard.flatten(), torch.arange(20).repeat_interleave(5)])

    ours = attention(nodes[None], Edges.of(heard), torch.zeros(1, 20, 5, dtype=torch.float64))[0]
    theirs = conv(nodes, source_to_target)
    torch.testing.assert_close(ours, theirs)
    probe_vector = torch.randn_like(ours)
    our_gradients = torch.autograd.grad((ours * probe_vector).sum(), [nodes, attention.weight])
    their_gradients = torch.autograd.grad((theirs * probe_vector).sum(), [nodes, conv.lin.weight])
    torch.testing.assert_close(our_gradients[0], their_gradients[0])
    torch.testing.assert_close(
        our_gradients[1][0], their_gradients[1].view(heads, 6, 6).transpose(1, 2)
    )


@pytest.mark.reference
def test_affinity_is_a_prior_on_geometric_attention():
    """alpha is proportional to w_ij exp(e_ij), with PyTorch Geometric's own attention and segment
    softmax."""
    geometric = pytest.importorskip("torch_geometric.nn")
    utils = pytest.importorskip("torch_geometric.utils")
    attention = roughen(GraphAttention(1, 6, 1).double())
    conv = geometric.GATConv(6, 6, heads=1, concat=False, add_self_loops=False).double()
    geometric_layer(attention, conv)
    nodes = torch.randn(20, 6, dtype=torch.float64)
    heard = torch.stack([torch.randperm(20)[:5] for _ in range(20)])
    target = torch.arange(20).repeat_interleave(5)
    affinity = torch.randn(20, 5, dtype=torch.float64)

    _, (_, alpha) = conv(
        nodes, torch.stack([heard.flatten(), target]), return_attention_weights=True
    )
    weight = alpha[:, 0] * utils.softmax(affinity.flatten(), target, num_nodes=20)
    weight = weight / utils.scatter(weight, target, dim_size=20)[target]
    message = weight[:, None] * (nodes @ attention.weight[0, 0])[heard.flatten()]
    expected = utils.scatter(message, target, dim_size=20) + attention.bias[0, 0]
    torch.testing.assert_close(attention(nodes[None], Edges.of(heard), affinity[None])[0], expected)
