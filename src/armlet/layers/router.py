"""Which layers run: a small network that decides, and the arithmetic that makes training what is
deployed.

ActDistill (arXiv 2511.18082), stage 2. A gate is 1 (the layer runs) or 0 (it is skipped), in
training as at deployment; what is soft is only the gradient. The published rule, which multiplies
whole hidden states by soft gates while training, is kept as `published_soft_gate` for comparison.
This file knows tokens, logits and gates; it knows no backbone, no loss and no budget.

Two sources of gradient for the router: `mix`, through which every loss on the network's output
speaks, and `Gates.straight_through`, through which a budget on the gates speaks.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from armlet.layers.draws import by_sample

GateMode = Literal["straight_through", "gumbel", "soft_residual", "published_soft"]
Mixer = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # before, after, hard, soft → one

# The logit of a layer that always runs; finite, so that logits can be stored and averaged.
FORCED = 1e4


class Router(nn.Module):
    """What is seen and asked -> one logit a layer; a layer runs where its logit reaches the
    threshold.

    Reads the tokens that enter layer 0, pooled by mean and by maximum, vision and text apart; and,
    which the published router does not, the robot's state and its previous action (AC2-VLA gains
    from them). Padding changes nothing. A kind of token that a sample lacks altogether reads as
    zeros.

    `initial_keep`: the probability with which every layer runs before training; the last linear map
    starts at zero. `dial`: the router is told the budget, too. `always_on`: layers that run
    whatever is decided, negative indices counting from the end; their logit is `FORCED`.
    """

    stays_single = True  # a route must not hang on rounding: its weights are never halved to train

    def __init__(
        self,
        width: int,
        state_dims: int,
        action_dims: int,
        layers: int,
        *,
        hidden: int = 64,
        use_state: bool = True,
        use_previous_action: bool = True,
        dial: bool = False,
        initial_keep: float = 0.9,
        always_on: Sequence[int] = (),
    ) -> None:
        super().__init__()
        bias = _keep_logit(initial_keep)
        self.use_state = use_state
        self.use_previous_action = use_previous_action
        self.dial = dial
        facts = state_dims * use_state + action_dims * use_previous_action + dial
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Linear(4 * width + facts, hidden)
        self.leave = nn.Linear(hidden, layers)
        # Before training every layer runs with the same probability, whatever is seen:
        # sigmoid(bias) = initial_keep.
        nn.init.zeros_(self.leave.weight)
        nn.init.constant_(self.leave.bias, bias)
        self.register_buffer("forced", _layer_mask(always_on, layers), persistent=False)

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        vision_mask: Bool[Tensor, "b n"],
        text_mask: Bool[Tensor, "b n"],
        state: Float[Tensor, "b s"] | None = None,
        previous_action: Float[Tensor, "b a"] | None = None,
        budget: float | None = None,
    ) -> Float[Tensor, "b l"]:
        """Logits (b, l) from the tokens that enter layer 0 and their two masks.

        `state` and `previous_action` are normalised; `budget` is a share of the backbone, 0 to 1.
        Raises ValueError when one that this router was built to use is not given.
        """
        kinds = torch.stack([vision_mask, text_mask], dim=1)  # (b, 2, n)
        pooled = pool(tokens, kinds).to(self.norm.weight.dtype)  # (b, 4, d)
        features = [self.norm(pooled).flatten(1)]  # (b, 4 d)
        if self.use_state:
            features.append(_given("state", state, off="use_state").to(pooled.dtype))
        if self.use_previous_action:
            before = _given("previous_action", previous_action, off="use_previous_action")
            features.append(before.to(pooled.dtype))
        if self.dial:
            share = None if budget is None else pooled.new_full((len(pooled), 1), budget)
            features.append(_given("budget", share, off="dial"))
        logits = self.leave(F.gelu(self.enter(torch.cat(features, dim=1))))
        return logits.masked_fill(self.forced, FORCED)


def _given(name: str, fact: Tensor | None, *, off: str) -> Tensor:
    """What a router reads beside the tokens. Raises ValueError where it was not given; `off` is the
    argument without which it is not read."""
    if fact is None:
        raise ValueError(f"this router uses {name}: pass it, or build it with {off}=False")
    return fact


class PublishedRouter(nn.Module):
    """The router of the public code (recipes section 1): it sees what is shown and what is asked,
    and no robot.

    Vision and text tokens each go through a linear map of their own to `hidden` (512 there) and a
    LayerNorm; then they are pooled, by mean and by maximum; and one linear map a layer, without
    anything in between, makes a logit of all four. Unlike there, padding is left out (recipes
    section 1, error 6), as in `Router`, which also says what `initial_keep` and `always_on` are;
    the public code starts at about 0.5. Its dropout (0.1 of what is pooled) is not done: it would
    draw the routes of a router that stands still while the layers learn them.
    """

    stays_single = True  # as above

    def __init__(
        self,
        width: int,
        layers: int,
        *,
        hidden: int = 512,
        initial_keep: float = 0.5,
        always_on: Sequence[int] = (),
    ) -> None:
        super().__init__()
        bias = _keep_logit(initial_keep)
        self.see = nn.Linear(width, hidden)
        self.read = nn.Linear(width, hidden)
        self.see_norm = nn.LayerNorm(hidden)
        self.read_norm = nn.LayerNorm(hidden)
        # One map of `layers` rows: the same numbers as a map a layer.
        self.leave = nn.Linear(4 * hidden, layers)
        nn.init.constant_(self.leave.bias, bias)
        self.register_buffer("forced", _layer_mask(always_on, layers), persistent=False)

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        vision_mask: Bool[Tensor, "b n"],
        text_mask: Bool[Tensor, "b n"],
    ) -> Float[Tensor, "b l"]:
        """Logits (b, l) from the tokens that enter layer 0 and their two masks."""
        tokens = tokens.to(self.see.weight.dtype)
        shown = pool(self.see_norm(self.see(tokens)), vision_mask[:, None])  # (b, 2, h)
        said = pool(self.read_norm(self.read(tokens)), text_mask[:, None])
        decided = self.leave(torch.cat([shown, said], dim=1).flatten(1))
        return decided.masked_fill(self.forced, FORCED)


class RandomRouter(nn.Module):
    """As many layers as a router would run, chosen at random: the baseline that shows what
    choosing is worth.

    Exactly `count` logits are 1 and the others -1, drawn anew at every decision from a hash of the
    robot's state and previous action, so that an episode repeats and training draws what deployment
    does.
    """

    def __init__(self, state_dims: int, action_dims: int, layers: int, *, count: int) -> None:
        super().__init__()
        self.count = count
        generator = torch.Generator().manual_seed(0)
        self.mixing: Tensor
        # Large, so that sin() of the product changes altogether with the last digits of a state: a
        # hash made of tensor operations alone.
        self.register_buffer(
            "mixing", 1e3 * torch.randn(state_dims + action_dims, layers, generator=generator)
        )

    def forward(
        self, state: Float[Tensor, "b s"], previous_action: Float[Tensor, "b a"]
    ) -> Float[Tensor, "b l"]:
        noise = torch.sin(torch.cat([state, previous_action], dim=1) @ self.mixing)
        chosen = noise.topk(self.count, dim=1).indices
        return torch.full_like(noise, -1.0).scatter(1, chosen, 1.0)


def pool(tokens: Float[Tensor, "b n d"], masks: Bool[Tensor, "b m n"]) -> Float[Tensor, "b 2*m d"]:
    """Mean and maximum of the tokens under each of `m` masks: all means, then all maxima.

    Zeros under an empty mask.
    """
    count = masks.sum(dim=-1, keepdim=True)
    mean = (masks.to(tokens.dtype) @ tokens) / count.clamp(min=1)  # (b, m, d)
    # Finite, so that no NaN can come of an empty mask before it is set to 0 below.
    lowest = torch.finfo(tokens.dtype).min
    maxima = []
    for mask in masks.unbind(dim=1):  # one at a time: (b, m, n, d) is m times what comes in
        maxima.append(tokens.masked_fill(~mask[..., None], lowest).amax(dim=1))
    maximum = torch.stack(maxima, dim=1).masked_fill(count == 0, 0.0)
    return torch.cat([mean, maximum], dim=1)


def hard_gates(logits: Float[Tensor, "b l"], threshold: float = 0.0) -> Float[Tensor, "b l"]:
    """1 where a layer runs, 0 where it is skipped: what is deployed. `threshold` is the dial, in
    logits."""
    return (logits >= threshold).to(logits.dtype)


def active_layers(gates: Float[Tensor, "b l"]) -> tuple[int, ...]:
    """The layers that any sample runs, in order. The one read from the device that a decision
    needs."""
    runs = (gates > 0).any(dim=0).tolist()
    return tuple(index for index, used in enumerate(runs) if used)


class Gates(NamedTuple):
    """The gates of a training step, (b, l): `hard` is 1 where a layer runs, `soft` carries the
    gradient."""

    hard: Tensor
    soft: Tensor

    @property
    def straight_through(self) -> Tensor:
        """Value exactly `hard`, gradient that of `soft`: what a budget on the gates should read."""
        # soft − soft is exactly 0, so nothing is rounded into the value.
        return self.hard + (self.soft - self.soft.detach())


def gate_sample(
    logits: Float[Tensor, "b l"],
    mode: GateMode = "straight_through",
    *,
    threshold: float = 0.0,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Gates:
    """The gates of a training step; `mixer(mode)` says how they act on hidden states.

    `soft` is sigmoid((logits - threshold) / temperature), and `hard` is what `hard_gates` deploys.
    In mode `gumbel` logistic noise is added to the logits first (binary Gumbel-softmax, arXiv
    1611.00712): a layer runs with its probability, and the route drawn computes exactly what that
    route computes when deployed. `soft_residual` and `published_soft` are for comparison: their
    mixers act on the hidden states with `soft`.
    """
    if mode not in _MIXERS:
        raise ValueError(f"no gate mode {mode!r}; there are {', '.join(_MIXERS)}")
    # Logistic noise, with which P(logit + noise > 0) = sigmoid(logit).
    noisy = logits + _logistic_noise(logits, generator) if mode == "gumbel" else logits
    return Gates(hard_gates(noisy, threshold), ((noisy - threshold) / temperature).sigmoid())


def mixer(mode: GateMode) -> Mixer:
    """The function (hidden, layer_out, hard, soft) -> hidden that belongs to a mode of
    `gate_sample`."""
    if mode not in _MIXERS:
        raise ValueError(f"no gate mode {mode!r}; there are {', '.join(_MIXERS)}")
    return _MIXERS[mode]


def mix(
    hidden: Float[Tensor, "b *x"],
    layer_out: Float[Tensor, "b *x"],
    hard: Float[Tensor, " b"],
    soft: Float[Tensor, " b"],
) -> Float[Tensor, "b *x"]:
    """h + m (layer(h) - h) with a hard gate m: bit for bit `layer_out` where m = 1 and `hidden`
    where m = 0.

    Selected, not computed: nothing is rounded in any precision, and nothing that a skipped layer
    produced (NaN included) gets through. Backward: the gradient goes to the chosen branch, and
    <gradient, layer_out - hidden> to `soft`, as if m were soft.
    """
    return _Mix.apply(hidden, layer_out, hard, soft)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, layer_out: Tensor, hard: Tensor, soft: Tensor) -> Tensor:
        runs = _beside(hard > 0.5, hidden)  # (b, 1, …); hard is 0 or 1, in any precision
        ctx.save_for_backward(hidden, layer_out, runs)
        ctx.soft_dtype = soft.dtype
        return torch.where(runs, layer_out, hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, Tensor | None]:
        hidden, layer_out, runs = ctx.saved_tensors
        # At rest or with frozen layers most of these are not asked for, and none of them is small.
        to_hidden, to_layer, _, to_soft = ctx.needs_input_grad
        return (
            gradient.masked_fill(runs, 0) if to_hidden else None,
            gradient.masked_fill(~runs, 0) if to_layer else None,
            None,
            _inner(gradient, layer_out - hidden).to(ctx.soft_dtype) if to_soft else None,
        )


def soft_mix(
    hidden: Float[Tensor, "b *x"],
    layer_out: Float[Tensor, "b *x"],
    hard: Float[Tensor, " b"],
    soft: Float[Tensor, " b"],
) -> Float[Tensor, "b *x"]:
    """h + p (layer(h) - h) with a soft gate p: the published idea without its error; not what is
    deployed."""
    return hidden + _beside(soft.to(hidden.dtype), hidden) * (layer_out - hidden)


def published_soft_gate(
    hidden: Float[Tensor, "b *x"],
    layer_out: Float[Tensor, "b *x"],
    hard: Float[Tensor, " b"],
    soft: Float[Tensor, " b"],
) -> Float[Tensor, "b *x"]:
    """p layer(h), as the public code trains: the residual stream is scaled too, over L layers by p
    ** L.

    At deployment that code runs a layer unscaled or skips it, which is another network (recipes
    section 1, error 1).
    """
    return layer_out * _beside(soft.to(layer_out.dtype), layer_out)


_MIXERS: dict[str, Mixer] = {
    "straight_through": mix,
    "gumbel": mix,
    "soft_residual": soft_mix,
    "published_soft": published_soft_gate,
}


def _beside(gate: Tensor, x: Tensor) -> Tensor:
    """A gate (b,) with as many axes as x (b, …)."""
    return gate.view(-1, *(1,) * (x.ndim - 1))


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """Inner product over all axes but the first, summed in float32 at least: (b, n, d) twice ->
    (b,)."""
    wide = torch.promote_types(left.dtype, torch.float32)
    return (left * right).flatten(1).sum(dim=1, dtype=wide)


def _logistic_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """The difference of two Gumbel variables."""
    tiny = torch.finfo(torch.float32).tiny
    # rand gives 0 now and then, whose logarithm is -inf; it never gives 1.
    layers = like.shape[1:]

    def make(count: int) -> Tensor:
        return torch.rand((count, *layers), generator=generator, device=like.device)

    uniform = by_sample(make, len(like)).clamp(min=tiny)
    return (uniform.log() - torch.log1p(-uniform)).to(like.dtype)


def _keep_logit(initial_keep: float) -> float:
    """The bias at which every layer runs with this probability. Raises ValueError for one that no
    bias gives."""
    if not 0 < initial_keep < 1:
        raise ValueError(f"initial_keep lies between 0 and 1, both excluded; found {initial_keep}")
    return math.log(initial_keep / (1 - initial_keep))


def _layer_mask(indices: Sequence[int], layers: int) -> Tensor:
    wrong = [index for index in indices if not -layers <= index < layers]
    if wrong:
        raise ValueError(f"always_on names layers {wrong}, but there are {layers}")
    mask = torch.zeros(layers, dtype=torch.bool)
    mask[list(indices)] = True
    return mask
