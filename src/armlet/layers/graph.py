"""Heads that read a backbone layer: its tokens as a graph, one semantic vector, and the action it
would take.

ActDistill (arXiv 2511.18082), stage 1. The heads exist while training only. All layers are read in
one go: every parameter behind the first projection carries a leading layer axis, so thirty small
layers cost a few large matrix products, not thirty small ones. This file knows hidden states and a
mask; it knows no policy, no loss, no trace.

Beside the axes of `types`: `g` width of the graph, `e` neighbours kept by a node (edges), `h`
attention heads (no images here), `q` queries of the pooling, `m` the nodes of all samples of one
layer in one row of `b * n`.

Not done, because a teacher's answer must be the same each time it is asked: dropout (0.1 in the
published code).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Of the leaky ReLU inside graph attention, as in the GAT paper (arXiv 1710.10903).
_NEGATIVE_SLOPE = 0.2


class SemanticHead(nn.Module):
    """One layer's hidden states (b, n, d) and token mask (b, n) -> its semantic vector (b,
    semantic_width).

    The single-layer form of `SemanticHeads`, which documents the mathematics and the sizes.
    """

    def __init__(
        self,
        width: int,
        graph_width: int = 256,
        semantic_width: int = 512,
        neighbours: int = 8,
        heads: int = 4,
        graph_layers: int = 2,
        queries: int = 2,
        hidden: int = 128,
    ) -> None:
        super().__init__()
        self.stack = SemanticHeads(
            1, width, graph_width, semantic_width, neighbours, heads, graph_layers, queries, hidden
        )

    def forward(
        self, hidden: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b s"]:
        return self.stack([hidden], mask)[:, 0]


class LayerActionHead(nn.Module):
    """One layer's semantic vector (b, semantic_width) -> the action chunk (b, k, a) that layer
    would take."""

    def __init__(
        self, semantic_width: int = 512, hidden: int = 256, *, chunk: int, dims: int
    ) -> None:
        super().__init__()
        self.stack = LayerActionHeads(1, semantic_width, hidden, chunk=chunk, dims=dims)

    def forward(self, semantic: Float[Tensor, "b s"]) -> Float[Tensor, "b k a"]:
        return self.stack(semantic[:, None])[:, 0]


class ProbeHeads(nn.Module):
    """A semantic head and an action head for each of `layers` backbone layers.

    The defaults are for a 7B backbone; the paper's, but for `graph_width`, `queries` and `hidden`,
    which are ours: 3 M parameters a layer at width 4096 where the public code has 177 M. For a
    narrow backbone shrink the three widths.
    """

    def __init__(
        self,
        layers: int,
        width: int,
        *,
        chunk: int,
        dims: int,
        graph_width: int = 256,
        semantic_width: int = 512,
        neighbours: int = 8,
        heads: int = 4,
        graph_layers: int = 2,
        queries: int = 2,
        hidden: int = 128,
    ) -> None:
        super().__init__()
        self.semantic = SemanticHeads(
            layers,
            width,
            graph_width,
            semantic_width,
            neighbours,
            heads,
            graph_layers,
            queries,
            hidden,
        )
        self.action = LayerActionHeads(layers, semantic_width, hidden, chunk=chunk, dims=dims)

    def forward(
        self,
        hiddens: Sequence[Float[Tensor, "b n d"]],
        mask: Bool[Tensor, "b n"],
        layers: Sequence[int] | None = None,
    ) -> tuple[Float[Tensor, "b l s"], Float[Tensor, "b l k a"]]:
        """Hidden states after each layer -> semantics (b, l, s) and layer actions (b, l, k, a).

        `mask` is True on real tokens. `layers` names the layers that `hiddens` come from, in the
        same order, when they are not all: a student that skips layers, or a teacher read in pieces
        to save memory.
        """
        semantics = self.semantic(hiddens, mask, layers)
        return semantics, self.action(semantics, layers)


class SemanticHeads(nn.Module):
    """The graph-structured encapsulation of the paper, for `layers` layers at once.

    For the tokens h_i of one layer of one sample:

    1. x_i = P LayerNorm(h_i), at `graph_width`. Ahead of the graph, so that the graph is cheap
       (recipes section 1, error 7) and affinities are finite whatever the size of the hidden states
       (error 6).
    2. S_ij = (W_phi x_i) . (W_psi x_j) / sqrt(d'), d' = graph_width / 4. Each node keeps the
       `neighbours` highest S_ij among the real tokens and may keep itself. Edge weight w_ij =
       softmax over the kept.
    3. `graph_layers` times x <- LayerNorm(x + ELU(GraphAttention(x))): neighbour j speaks, node i
       hears. With `graph_layers` 0 there is no graph: what an ablation needs to show what the graph
       is worth.
    4. Pooling by `queries` vectors w_q, p_q = sum_i alpha_qi [x_i, LayerNorm(h_i)], alpha_q =
       softmax(w_q . x) over the real tokens, then s = MLP([p_1, ..., p_q]) with `hidden` units.

    Padding is never a neighbour and never pooled, so it does not change the result.

    The paper pools once, and what it pools is the nodes, which are as wide as the backbone there.
    Where they are narrow that loses what the action is read from: the graph says where to look, at
    its own width, and what is seen there is read at the backbone's, for one more product a sample
    instead of one a token (docs/machinery).
    """

    def __init__(
        self,
        layers: int,
        width: int,
        graph_width: int = 256,
        semantic_width: int = 512,
        neighbours: int = 8,
        heads: int = 4,
        graph_layers: int = 2,
        queries: int = 2,
        hidden: int = 128,
    ) -> None:
        super().__init__()
        affinity_width = max(graph_width // 4, 1)
        self.neighbours = neighbours
        self.project = nn.ModuleList(_Projection(width, graph_width) for _ in range(layers))
        self.query = _StackedLinear(layers, graph_width, affinity_width, bias=False)
        self.key = _StackedLinear(layers, graph_width, affinity_width, bias=False)
        self.attention = nn.ModuleList(
            GraphAttention(layers, graph_width, heads) for _ in range(graph_layers)
        )
        self.norm = nn.ModuleList(
            _StackedLayerNorm(layers, graph_width) for _ in range(graph_layers)
        )
        self.pool = _StackedLinear(layers, graph_width, queries, bias=False)
        self.read = _StackedMLP(layers, queries * (graph_width + width), hidden, semantic_width)

    def forward(
        self,
        hiddens: Sequence[Float[Tensor, "b n d"]],
        mask: Bool[Tensor, "b n"],
        layers: Sequence[int] | None = None,
    ) -> Float[Tensor, "b l s"]:
        """Semantic vectors of the layers `hiddens` come from; `layers` names them when they are not
        all.

        Raises ValueError if a sample has no real token (this reads one boolean back from the
        device).
        """
        project = self.project if layers is None else [self.project[index] for index in layers]
        if len(hiddens) != len(project):
            raise ValueError(
                f"{len(hiddens)} hidden states for {len(project)} layers; name which in `layers`"
            )
        if not mask.any(dim=1).all():
            raise ValueError(
                "mask has a sample without a single real token: there is nothing to pool"
            )
        normal = [F.layer_norm(hidden, hidden.shape[-1:]) for hidden in hiddens]
        # Each layer on its own, as its hidden states come: stacked they would all be there twice.
        narrow = [layer(wide) for layer, wide in zip(project, normal, strict=True)]
        nodes = rearrange(torch.stack(narrow), "l b n g -> l (b n) g")
        pick = _index(layers, nodes.device)
        # Found once, from what enters the graph; all its layers use the same edges.
        if len(self.attention):
            edges, affinity = self._edges(nodes, mask, pick)
            for attention, norm in zip(self.attention, self.norm, strict=True):
                nodes = norm(nodes + F.elu(attention(nodes, edges, affinity, pick)), pick)
        return rearrange(self.read(self._pool(nodes, normal, mask, pick), pick), "l b s -> b l s")

    def _edges(self, nodes: Tensor, mask: Tensor, pick: Tensor | None) -> tuple["Edges", Tensor]:
        """The kept edges of all layers and their affinities (l, m, e), -inf for a surplus edge to
        padding."""
        batch, length = mask.shape
        query = self.query(nodes, pick)  # (l, m, c)
        key = self.key(nodes, pick)
        scale = query.shape[-1] ** -0.5
        mask = mask.repeat(len(nodes), 1)  # (l * b, n)
        with torch.no_grad():  # which are kept is not differentiable; what they weigh is, below
            asks = rearrange(query, "l (b n) c -> (l b) n c", b=batch)
            answers = rearrange(key, "l (b n) c -> (l b) n c", b=batch)
            token = nearest(asks, answers, mask, self.neighbours)  # (l * b, n, e), within a sample
            # All layers and samples as one graph of l * b * n nodes that fall into separate parts.
            first = torch.arange(0, len(token) * length, length, device=token.device)
            edges = Edges.of((token + first[:, None, None]).flatten(0, 1))
        heard = key.flatten(0, 1).index_select(0, edges.sender.flatten())
        heard = heard.view(*edges.sender.shape, -1)  # (l * m, e, c)
        # The kept ones once more: all n² of them with a gradient would be most of the memory.
        affinity = (query.flatten(0, 1)[:, None] * heard).sum(dim=-1) * scale  # (l * m, e)
        affinity = affinity.masked_fill(~mask.flatten()[edges.sender], -torch.inf)
        return edges, affinity.view(len(nodes), batch * length, -1)

    def _pool(
        self, nodes: Tensor, normal: list[Tensor], mask: Tensor, pick: Tensor | None
    ) -> Tensor:
        """Attention pooling over the real tokens, of nodes (l, m, g) and of what they stand for, l
        of (b, n, d): (l, b, q * (g + d))."""
        score = rearrange(self.pool(nodes, pick), "l (b n) q -> l b q n", b=len(mask))
        alpha = score.masked_fill(~mask[:, None], -torch.inf).softmax(dim=-1)
        # The wide product runs in the precision of the hidden states, as in `_Projection`.
        seen = [weight.to(wide.dtype) @ wide for weight, wide in zip(alpha, normal, strict=True)]
        pooled = alpha @ rearrange(nodes, "l (b n) g -> l b n g", b=len(mask))  # (l, b, q, g)
        pooled = torch.cat([pooled, torch.stack(seen).to(alpha.dtype)], dim=-1)
        return pooled.flatten(2)  # (l, b, q * (g + d))


def nearest(
    query: Float[Tensor, "b n c"],
    key: Float[Tensor, "b n c"],
    mask: Bool[Tensor, "b n"],
    neighbours: int,
) -> Int[Tensor, "b n e"]:
    """Of each token i, the e = min(neighbours, n) real tokens j with the highest query_i . key_j,
    unordered.

    Where a sample has fewer real tokens than e, the surplus points to padding.
    """
    # In place: this (b, n, n) is the largest tensor here, and nobody needs its gradient.
    affinity = (query @ key.transpose(1, 2)).masked_fill_(~mask[:, None], -torch.inf)
    return affinity.topk(min(neighbours, mask.shape[1]), dim=-1, sorted=False).indices


class GraphAttention(nn.Module):
    """Graph attention (GAT, arXiv 1710.10903) with averaged heads, for `layers` graphs' worth of
    parameters.

    Node i receives from its kept neighbours j, for each head with matrix W and vectors a_recv,
    a_send:

        out_i = bias + mean over heads of sum_j alpha_ij W x_j
        alpha_ij = softmax over j of ( LeakyReLU(a_recv . W x_i + a_send . W x_j) + S_ij )

    Adding the affinity S_ij is multiplying by the edge weight w_ij, whose normaliser cancels:
    alpha_ij is proportional to w_ij exp(LeakyReLU(...)). The x_j are summed before W is applied,
    which is the same number without a message of the full width for each edge and head.
    """

    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_glorot(layers, heads, width, width))  # (l, h, in, out)
        self.receiver = nn.Parameter(_glorot(layers, heads, width, 1).squeeze(-1))  # (l, h, out)
        self.sender = nn.Parameter(_glorot(layers, heads, width, 1).squeeze(-1))
        self.bias = nn.Parameter(torch.zeros(layers, 1, width))

    def forward(
        self,
        nodes: Float[Tensor, "l m g"],
        edges: "Edges",
        affinity: Float[Tensor, "l m e"],
        pick: Int[Tensor, " l"] | None = None,
    ) -> Float[Tensor, "l m g"]:
        """`edges` are those of the flattened (l * m) nodes, `affinity[l, i]` the S_ij of node
        i's."""
        weight = _pick(self.weight, pick)  # (l, h, g, g)
        heads = weight.shape[1]
        receiver = _per_head(nodes, weight, _pick(self.receiver, pick))
        sender = _per_head(nodes, weight, _pick(self.sender, pick)).flatten(0, 1)
        heard = sender.index_select(0, edges.sender.flatten()).view(*affinity.shape, heads)
        score = F.leaky_relu(receiver[:, :, None] + heard, _NEGATIVE_SLOPE)  # (l, m, e, h)
        alpha = (score + affinity[..., None]).softmax(dim=2).to(nodes.dtype)
        received = _WeightedSum.apply(nodes.flatten(0, 1), alpha.flatten(0, 1), edges)
        received = received.reshape(*nodes.shape[:2], -1)  # (l * m, h, g) → (l, m, h * g)
        # One product applies W of every head and sums over the heads.
        return received @ weight.flatten(1, 2) / heads + _pick(self.bias, pick)


class Edges(NamedTuple):
    """Who listens to whom among `r` nodes, and the same edges sorted by who is heard.

    `sender` (r, e): the rows j that node i listens to. `order` (r * e,): edges, as positions in
    `sender`, sorted by sender. `start` (r,): where the edges of sender j begin in `order`.
    """

    sender: Int[Tensor, "r e"]
    order: Int[Tensor, " re"]
    start: Int[Tensor, " r"]

    @classmethod
    def of(cls, sender: Int[Tensor, "r e"]) -> "Edges":
        by_sender, order = sender.flatten().sort()
        nodes = torch.arange(len(sender), device=sender.device)
        # searchsorted: also a node that nobody listens to has a start, that of the next.
        return cls(sender, order, torch.searchsorted(by_sender, nodes))


class _WeightedSum(torch.autograd.Function):
    """out[i, h] = sum over e of alpha[i, e, h] * table[sender[i, e]]: (r, g), (r, e, h) -> (r, h,
    g).

    The same as a gather and a product, without the (r, e, g) copy that autograd would keep of the
    gather, and with a backward that adds up each sender's edges where they lie instead of
    scattering them.
    """

    @staticmethod
    def forward(ctx, table: Tensor, alpha: Tensor, edges: Edges) -> Tensor:
        ctx.save_for_backward(table, alpha)
        ctx.edges = edges
        rows, kept, heads = alpha.shape
        # A bag is what one node hears in one head: (r * h, e) rows of the table, and their weights.
        senders = edges.sender[:, None].expand(rows, heads, kept).reshape(-1, kept)
        weights = alpha.transpose(1, 2).reshape(-1, kept)
        out = F.embedding_bag(senders, table, mode="sum", per_sample_weights=weights)
        return out.view(rows, heads, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        table, alpha = ctx.saved_tensors
        edges: Edges = ctx.edges
        rows, kept, heads = alpha.shape
        gathered = table.index_select(0, edges.sender.flatten()).view(rows, kept, -1)
        to_alpha = gathered @ gradient.transpose(1, 2)  # (r, e, h)
        # To a sender comes the gradient of every node and head that heard it: bags of the edges
        # sorted by sender, so each sum is over one stretch, in one order (a scatter's changes).
        head = torch.arange(heads, device=table.device)
        receivers = (edges.order // kept)[:, None] * heads + head  # (r * e, h)
        to_table = F.embedding_bag(
            receivers.flatten(),
            gradient.reshape(rows * heads, -1),
            edges.start * heads,
            mode="sum",
            per_sample_weights=alpha.reshape(-1, heads).index_select(0, edges.order).flatten(),
        )
        return to_table, to_alpha, None


def _per_head(nodes: Tensor, weight: Tensor, vector: Tensor) -> Tensor:
    """vector . (W node), one number a head: (l, m, g), (l, h, g, o), (l, h, o) -> (l, m, h)."""
    # W and the vector first: a map (g) → (h) instead of the messages (m, h, o) that it would read.
    return nodes @ (weight @ vector[..., None]).squeeze(-1).transpose(1, 2)


class LayerActionHeads(nn.Module):
    """Semantic vectors (b, l, s) -> the chunk that each layer would execute (b, l, k, a): an MLP a
    layer."""

    def __init__(
        self, layers: int, semantic_width: int = 512, hidden: int = 256, *, chunk: int, dims: int
    ) -> None:
        super().__init__()
        self.chunk = chunk
        self.read = _StackedMLP(layers, semantic_width, hidden, chunk * dims)

    def forward(
        self, semantics: Float[Tensor, "b l s"], layers: Sequence[int] | None = None
    ) -> Float[Tensor, "b l k a"]:
        rows = rearrange(semantics, "b l s -> l b s")
        actions = self.read(rows, _index(layers, rows.device))
        return rearrange(actions, "l b (k a) -> b l k a", k=self.chunk)


class _Projection(nn.Module):
    """A linear map of normalised hidden states, (b, n, d) -> (b, n, g), for one layer.

    The wide product runs in the precision of the hidden states, everything behind it in that of the
    parameters. The LayerNorm before it has no gain or shift: this map would absorb them.
    """

    def __init__(self, width: int, graph_width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_glorot(graph_width, width))
        self.bias = nn.Parameter(torch.zeros(graph_width))

    def forward(self, normal: Tensor) -> Tensor:
        narrow = F.linear(normal, self.weight.to(normal.dtype), self.bias.to(normal.dtype))
        return narrow.to(self.weight.dtype)


class _StackedLinear(nn.Module):
    """(l, m, in) -> (l, m, out), a matrix for each layer."""

    def __init__(self, layers: int, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(_glorot(layers, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(layers, 1, outputs)) if bias else None

    def forward(self, x: Tensor, pick: Tensor | None) -> Tensor:
        product = x @ _pick(self.weight, pick)
        return product if self.bias is None else product + _pick(self.bias, pick)


class _StackedMLP(nn.Module):
    """(l, m, in) -> (l, m, out) through one hidden GELU layer."""

    def __init__(self, layers: int, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.enter = _StackedLinear(layers, inputs, hidden)
        self.leave = _StackedLinear(layers, hidden, outputs)

    def forward(self, x: Tensor, pick: Tensor | None) -> Tensor:
        return self.leave(F.gelu(self.enter(x, pick)), pick)


class _StackedLayerNorm(nn.Module):
    """LayerNorm over the last axis of (l, m, g), a gain and a shift for each layer."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(layers, 1, width))
        self.shift = nn.Parameter(torch.zeros(layers, 1, width))

    def forward(self, x: Tensor, pick: Tensor | None) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * _pick(self.gain, pick) + _pick(self.shift, pick)


def _index(layers: Sequence[int] | None, device: torch.device) -> Tensor | None:
    return None if layers is None else torch.tensor(list(layers), device=device)


def _pick(parameter: Tensor, pick: Tensor | None) -> Tensor:
    """The rows of a stacked parameter that belong to the layers evaluated."""
    return parameter if pick is None else parameter.index_select(0, pick)


def _glorot(*shape: int) -> Tensor:
    """Uniform Glorot over the last two axes, each leading index a matrix of its own."""
    bound = (6 / (shape[-2] + shape[-1])) ** 0.5
    return torch.empty(shape).uniform_(-bound, bound)
