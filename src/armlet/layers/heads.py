"""Action heads: a condition vector (b, d) → a chunk of normalised actions (b, k, a). One contract
(action_head.py), six kinds.

    RegressionHead   one MLP, L1 loss (OpenVLA-OFT, arXiv 2502.19645)
    BinHead          256 bins a dimension, cross-entropy (OpenVLA, arXiv 2406.09246)
    CodebookHead     one of a few primitives, cross-entropy, and an offset from it (BeT, arXiv
                     2206.11251)
    FlowHead         a small DiT that carries noise to actions in a few Euler steps (π0, arXiv
                     2410.24164)
    DiffusionHead    a small DiT that takes noise out of actions in 10 steps of DDIM, told the
                     condition as a token (CogACT, arXiv 2411.19650; action_dit.py)
    ArmGripperHead   one vector a step; the arm by L1 loss, the gripper open or closed (VITA-VLA,
                     arXiv 2510.09607)

None knows a backbone, a benchmark or a unit: actions are normalised to about [−1, 1].
"""

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armlet.data.codec import bin_centres, bin_numbers, squared_distances
from armlet.layers.action_dit import DiffusionHead
from armlet.layers.action_head import ActionHead, masked_mean
from armlet.layers.draws import normal_like, uniform
from armlet.layers.guidance import Guide, guided_flow
from armlet.layers.narrowing import narrowed
from armlet.layers.shortcut import by_halves, check_steps, draw_spans, told
from armlet.robot.spec import ActionSpec

Kind = Literal["regression", "bins", "codebook", "flow", "diffusion", "arm_gripper"]
WAVES = 64  # numbers that a time, or a span of it, becomes
BOOTSTRAPPED = 0.25  # share of samples that learn long steps, of the paper on shortcut models


class RegressionHead(ActionHead):
    """An MLP that names the chunk outright."""

    def __init__(self, width: int, chunk: int, dims: int, *, hidden: int = 256) -> None:
        super().__init__()
        self.chunk = chunk
        self.dims = dims
        self.net = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, chunk * dims)
        )

    def forward(self, condition: Tensor) -> Tensor:
        return self.net(condition).unflatten(-1, (self.chunk, self.dims))

    def loss(self, condition: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        return masked_mean((self(condition) - actions).abs(), valid)


def to_bins(actions: Tensor, bins: int = 256) -> Tensor:
    """The number of the bin of [−1, 1] in which each action lies, int64; what lies outside is in
    the first or the last."""
    return bin_numbers(actions, -1.0, 1.0, bins).clamp(0, bins - 1).long()


class BinHead(ActionHead):
    """Logits over equal bins of [−1, 1]; the decision is the centre of the likeliest bin."""

    def __init__(
        self, width: int, chunk: int, dims: int, *, bins: int = 256, hidden: int = 256
    ) -> None:
        super().__init__()
        self.chunk = chunk
        self.dims = dims
        self.bins = bins
        self.net = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, chunk * dims * bins)
        )

    def logits(self, condition: Tensor) -> Tensor:
        return self.net(condition).unflatten(-1, (self.chunk, self.dims, self.bins))

    def forward(self, condition: Tensor) -> Tensor:
        return bin_centres(self.logits(condition).argmax(-1), -1.0, 1.0, self.bins)

    def loss(self, condition: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        target = to_bins(actions, self.bins)  # (b, k, a)
        error = F.cross_entropy(
            self.logits(condition).flatten(0, 2), target.flatten(), reduction="none"
        )
        return masked_mean(error.view(target.shape), valid)


class CodebookHead(ActionHead):
    """Logits over `primitives` (n, a), in normalised actions; the decision is the likeliest,
    refined where that is asked for.

    With `refine` every primitive has an offset of its own for every step of the chunk, of at most
    `reach` in each dimension, so the offset is conditioned on the primitive that is chosen. The
    gripper (dimension `gripper`) is refined where `refine_gripper` says so, for fingers whose opening
    is a number: by at most half of the way to its other end, so that the primitive that is chosen
    still says whether it is open or closed. Offsets begin at 0. Which primitive is nearest,
    and that the gripper decides first, is said in `data.codec.squared_distances`. Primitives live
    in the options that the network is described with, not in its weights.
    """

    primitives: Tensor
    moving: Tensor
    furthest: Tensor

    def __init__(
        self,
        width: int,
        chunk: int,
        dims: int,
        *,
        primitives: Sequence[Sequence[float]],
        gripper: int | Sequence[int] | None = None,
        refine: bool = False,
        refine_gripper: bool = False,
        reach: float = 1.0,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        book = torch.tensor(primitives, dtype=torch.float32)
        if book.ndim != 2 or book.shape[1] != dims:
            raise ValueError(
                f"head_options: primitives have shape {tuple(book.shape)}, expected (n, {dims}), "
                "one row a primitive"
            )
        grippers = gripper_dims(gripper, dims)
        if refine_gripper and not (refine and grippers):
            raise ValueError(
                "head_options: refine_gripper has no effect without refine and a gripper; found "
                f"refine={refine}, gripper={gripper}"
            )
        moving = torch.ones(dims)  # 1 for a dimension that is refined, 0 for one that is not
        furthest = torch.full((dims,), float(reach))
        for index in grippers:
            ends = book[:, index].unique().tolist()
            if len(ends) != 2:
                raise ValueError(
                    f"head_options: dimension {index} of the primitives, the gripper, has the "
                    f"values {ends}, expected two, open and closed; is gripper the right dimension?"
                )
            moving[index] = float(refine_gripper)
            furthest[index] = min(reach, abs(ends[1] - ends[0]) / 2) * moving[index]
        self.chunk = chunk
        self.dims = dims
        self.grippers = grippers
        # Not in the weights: all are made anew from the options that are saved with the network.
        self.register_buffer("primitives", book, persistent=False)
        self.register_buffer("moving", moving, persistent=False)
        self.register_buffer("furthest", furthest, persistent=False)
        self.trunk = nn.Sequential(nn.Linear(width, hidden), nn.GELU())
        self.choose = nn.Linear(hidden, chunk * len(book))
        self.offset = nn.Linear(hidden, chunk * len(book) * dims) if refine else None
        if self.offset is not None:
            nn.init.zeros_(self.offset.weight)
            nn.init.zeros_(self.offset.bias)

    @classmethod
    def fitted(cls, spec: ActionSpec, options: dict[str, Any]) -> dict[str, Any]:
        return {"gripper": list(spec.grippers), **options}

    def logits(self, condition: Tensor) -> Tensor:
        return self.choose(self.trunk(condition)).unflatten(-1, (self.chunk, len(self.primitives)))

    def forward(self, condition: Tensor) -> Tensor:
        return self._act(condition, self.logits(condition).argmax(-1))

    def classes(self, actions: Tensor) -> Tensor:
        return squared_distances(actions, self.primitives, self.grippers).argmin(-1)

    def loss(self, condition: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        """Cross-entropy to the nearest primitive; with `refine` also the L1 error of that
        primitive, refined."""
        nearest = self.classes(actions)  # (b, k)
        error = F.cross_entropy(
            self.logits(condition).flatten(0, 1), nearest.flatten(), reduction="none"
        )
        error = error.view(*nearest.shape, 1)  # (b, k, 1)
        if self.offset is not None:
            # Of the right primitive, not of the one that is chosen: only its offset can be judged.
            missed = (self._act(condition, nearest) - actions) * self.moving  # (b, k, a)
            error = error + missed.abs().mean(-1, keepdim=True)
        return masked_mean(error, valid)

    def _act(self, condition: Tensor, chosen: Tensor) -> Tensor:
        """Primitives `chosen` (b, k), each with its own offset where there is one → (b, k, a)."""
        actions = self.primitives[chosen]  # (b, k, a)
        if self.offset is None:
            return actions
        sizes = (self.chunk, len(self.primitives), self.dims)
        offsets = self.offset(self.trunk(condition)).unflatten(-1, sizes)  # (b, k, n, a)
        own = offsets.take_along_dim(chosen[..., None, None], 2).squeeze(2)  # (b, k, a)
        return actions + self.furthest * own.tanh()


class _Block(nn.Module):
    """A DiT block: attention over the chunk, then an MLP, each modulated by the condition
    (adaLN)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width)
        # adaLN-Zero (DiT, arXiv 2212.09748): gates start at 0, so a fresh block passes x unchanged.
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor, valid: Tensor | None = None) -> Tensor:
        """(b, k, d), (b, d) → (b, k, d). `valid` (b, k) bool: which steps the others may attend to;
        None: all."""
        modulation = self.modulation(condition).unsqueeze(1)  # (b, 1, 6 d): the same at all steps
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, -1)
        query, key, value = self.qkv(self.norm(x) * (1 + scale_a) + shift_a).chunk(3, -1)
        attended = F.scaled_dot_product_attention(
            self._split(query),
            self._split(key),
            self._split(value),
            attn_mask=None if valid is None else valid[:, None, None, :],
        )
        x = x + gate_a * self.out(attended.transpose(1, 2).flatten(2))
        return x + gate_m * self.mlp(self.norm(x) * (1 + scale_m) + shift_m)

    def _split(self, x: Tensor) -> Tensor:
        """(b, k, d) → (b, h, k, c)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FlowHead(ActionHead):
    """Rectified flow: learns the velocity from noise (t = 0) to actions (t = 1), integrates it in
    `steps`.

    Sampling starts from fixed noise drawn from `seed`, so a policy answers the same observation the
    same way.

    `shortcut`: how long a step is, is told as well, and its loss teaches steps of 1, 1/2 and 1/4 by
    two of half of it (`shortcut.py`), so that the same weights decide in 1, 2, 4 or 8 and more
    `steps`. What is told is read by a map that begins at nothing: weights of a head without it
    answer as they did.
    """

    noise: Tensor
    frequencies: Tensor

    def __init__(
        self,
        width: int,
        chunk: int,
        dims: int,
        *,
        hidden: int = 128,
        blocks: int = 2,
        steps: int = 4,
        seed: int = 0,
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.chunk = chunk
        self.dims = dims
        self.steps = steps
        self.enter = nn.Linear(dims, hidden)
        self.position = nn.Parameter(torch.randn(chunk, hidden) * 0.02)
        self.condition = nn.Linear(width, hidden)
        self.time = nn.Sequential(nn.Linear(WAVES, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.blocks = nn.ModuleList(_Block(hidden, heads=hidden // 32) for _ in range(blocks))
        self.leave = nn.Linear(hidden, dims)
        # A generator of its own: how a policy answers must not hang on what was drawn before it was
        # made. The noise is saved with the weights.
        noise = torch.randn(chunk, dims, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("noise", noise)
        frequencies = torch.exp(torch.linspace(0, 6, WAVES // 2))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.span: nn.Linear | None = None
        if shortcut:
            check_steps(steps)
            self.span = nn.Linear(WAVES, hidden)
            nn.init.zeros_(self.span.weight)
            nn.init.zeros_(self.span.bias)

    def velocity(
        self,
        noisy: Tensor,
        t: Tensor,
        condition: Tensor,
        valid: Tensor | None = None,
        span: Tensor | None = None,
    ) -> Tensor:
        """(b, k, a), (b,), (b, d) → (b, k, a). `valid` (b, k) bool: steps that are no padding;
        None: all. `span` (b,): over how long the velocity is the mean, as it is told; None: over
        one of the head's own steps. Only a head with `shortcut` listens to it."""
        time = self.time(self._waves(t))
        embedded = time + self.condition(condition)  # (b, hidden)
        if self.span is not None:
            if span is None:
                span = told(torch.full_like(t, 1 / self.steps))
            embedded = embedded + self.span(self._waves(span))
        x = self.enter(noisy) + self.position
        for block in self.blocks:
            x = block(x, F.silu(embedded), valid)
        return self.leave(x)

    def forward(self, condition: Tensor) -> Tensor:
        x = self.noise.expand(len(condition), -1, -1)
        for step in range(self.steps):
            t = torch.full((len(condition),), step / self.steps, device=x.device, dtype=x.dtype)
            x = x + self.velocity(x, t, condition) / self.steps  # a step of Euler's method
        return x

    def _waves(self, t: Tensor) -> Tensor:
        """(b,) → (b, 64)."""
        angles = t[:, None] * self.frequencies  # (b, 32)
        return torch.cat([angles.sin(), angles.cos()], -1)

    def guided(self, condition: Tensor, guide: Guide) -> Tensor:
        """(b, k, a): `forward`, guided towards actions that are under way."""

        def velocity(x: Tensor, time: float) -> Tensor:
            return self.velocity(x, x.new_full((len(x),), time), condition)

        noise = self.noise.expand(len(condition), -1, -1)
        return guided_flow(velocity, noise, self.steps, guide)

    def loss(self, condition: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        noise = normal_like(actions)
        t = uniform(actions)
        mixed = noise + t[:, None, None] * (actions - noise)  # straight from noise to actions
        # What stands past the end of an episode is no action, so the steps that count may not
        # attend to it. Where nothing is valid, all is attended to: a softmax over nothing is NaN,
        # and that sample's loss is 0 anyway.
        real = valid.bool()
        seen = real | ~real.any(1, keepdim=True)
        if self.span is not None:
            return self._shortcut_loss(condition, actions, noise, t, seen, valid)
        # On a straight path the velocity is the same at every t.
        error = self.velocity(mixed, t, condition, seen) - (actions - noise)
        return masked_mean(error.square(), valid)

    def distance(
        self, condition: Tensor, other: "FlowHead", theirs: Tensor, actions: Tensor, valid: Tensor
    ) -> Tensor:
        """(b,): the squared distance of this head's velocities from those of `other`, which is told
        `theirs` (b, d'), at one noise and time a sample, drawn on straight paths to `actions`. `other`
        gets no gradient.

        It is 0 where both flows are the same, and in expectation `loss` with the other's velocities
        in the place of the path's: what diffusion models are distilled by (arXiv 2305.15798, eq. 7),
        one pass through each head where decoded actions take `steps` of them, and back.
        """
        start = normal_like(actions)
        time = uniform(actions)
        on_path = torch.lerp(start, actions, time[:, None, None])
        counted = valid.bool()
        heard = counted | ~counted.any(1, keepdim=True)  # as in `loss`
        now = torch.zeros_like(time)  # for a head that is told a span: the velocity itself, no mean
        with torch.no_grad():
            target = other.velocity(on_path, time, theirs, heard, now)
        error = self.velocity(on_path, time, condition, heard, now) - target
        return masked_mean(error.square(), valid)

    def _shortcut_loss(
        self,
        condition: Tensor,
        actions: Tensor,
        noise: Tensor,
        t: Tensor,
        seen: Tensor,
        valid: Tensor,
    ) -> Tensor:
        """(b,): of most samples the same, told a span of 0; of some the distance of a long step from
        two of half of it."""
        begins, span = draw_spans(actions)
        long = uniform(t) < BOOTSTRAPPED  # (b,)
        t = torch.where(long, begins, t)
        mixed = torch.lerp(noise, actions, t[:, None, None])

        def mean_velocity(x: Tensor, at: Tensor, over: Tensor) -> Tensor:
            return self.velocity(x, at, condition, seen, over)

        # Two short steps teach the long one, and never the reverse.
        with torch.no_grad():
            halves = by_halves(mean_velocity, mixed, t, span)
        target = torch.where(long[:, None, None], halves, actions - noise)
        error = mean_velocity(mixed, t, torch.where(long, span, 0.0)) - target
        return masked_mean(error.square(), valid)

    def weights_for(self, other: ActionHead) -> dict[str, Tensor]:
        if not isinstance(other, FlowHead):
            return super().weights_for(other)
        found = narrowed(self.state_dict(), other.enter.out_features, len(other.blocks))
        if other.span is not None and self.span is None:  # begins at nothing
            found |= {"span.weight": other.span.weight, "span.bias": other.span.bias}
        return found


class ArmGripperHead(ActionHead):
    """The decoder of VITA-VLA's small expert (arXiv 2510.09607, after Seer, arXiv 2412.15109),
    which its large student reuses.

    The condition (b, k · width) is one vector for each step of the chunk, side by side, and all
    steps share one MLP: width → width/2, ReLU, width/2, ReLU; then the arm through tanh and the
    gripper through a sigmoid, which is how likely it is to be closed. One vector a step, and not
    one for all, because what a student must learn to say in the expert's place is then all that the
    decoder reads, with nothing in between that only the expert had learned.

    `gripper` says which dimensions are grippers (an index, several, or None: all are the arm),
    `gripper_open` and `gripper_closed` are their two ends as they are in normalised actions. What is
    decided is one of these two, as BinHead decides for a bin: only the loss, MAE(arm) +
    `gripper_weight` · BCE(gripper), has a gradient for the gripper. A published figure swaps the
    two labels.
    """

    def __init__(
        self,
        width: int,
        chunk: int,
        dims: int,
        *,
        gripper: int | Sequence[int] | None = -1,
        gripper_open: float = -1.0,
        gripper_closed: float = 1.0,
        gripper_weight: float = 0.01,
    ) -> None:
        super().__init__()
        grippers = gripper_dims(gripper, dims)
        if grippers and gripper_open == gripper_closed:
            raise ValueError(
                f"gripper_open and gripper_closed are both {gripper_open}; they must differ to be "
                "told apart"
            )
        self.width = width
        self.chunk = chunk
        self.dims = dims
        self.vectors = chunk  # one a step
        self.options: dict[str, Any] = {
            "gripper": list(grippers),
            "gripper_open": gripper_open,
            "gripper_closed": gripper_closed,
            "gripper_weight": gripper_weight,
        }
        half = width // 2
        self.net = nn.Sequential(
            nn.Linear(width, half), nn.ReLU(), nn.Linear(half, half), nn.ReLU()
        )
        self.grippers = list(grippers)
        self.moving = [index for index in range(dims) if index not in grippers]
        # The two maps give the arm first, then the grippers: `order` brings them to their places.
        places = [*self.moving, *self.grippers]
        self.order = list(map(places.index, range(dims)))
        self.arm = nn.Linear(half, len(self.moving))
        self.gripper = nn.Linear(half, len(grippers)) if grippers else None

    @classmethod
    def fitted(cls, spec: ActionSpec, options: dict[str, Any]) -> dict[str, Any]:
        robot = {
            "gripper": list(spec.grippers),
            "gripper_open": spec.gripper_open,
            "gripper_closed": spec.gripper_closed,
        }
        return {**robot, **options}

    def _decode(self, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        """The arm (b, k, a − g) in [−1, 1] and the logits of g closed grippers (b, k, g)."""
        if condition.shape[-1] != self.chunk * self.width:
            raise ValueError(
                f"condition of width {condition.shape[-1]}: this head reads {self.chunk} steps of "
                f"{self.width} each, {self.chunk * self.width} in all"
            )
        hidden = self.net(condition.unflatten(-1, (self.chunk, self.width)))  # (b, k, width / 2)
        logits = None if self.gripper is None else self.gripper(hidden)
        return torch.tanh(self.arm(hidden)), logits

    def forward(self, condition: Tensor) -> Tensor:
        arm, logit = self._decode(condition)
        if logit is None:
            return arm
        closed = self.options["gripper_closed"]
        decided = torch.where(logit >= 0, closed, self.options["gripper_open"]).to(arm.dtype)
        return torch.cat([arm, decided], -1)[..., self.order]

    def loss(self, condition: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        arm, logit = self._decode(condition)
        if logit is None:
            return masked_mean((arm - actions).abs(), valid)
        opened = self.options["gripper_open"]
        width = self.options["gripper_closed"] - opened
        # How closed each gripper is, 0 to 1, whichever of its ends is the larger number.
        shut = ((actions[..., self.grippers] - opened) / width).clamp(0, 1)  # (b, k, g)
        entropy = F.binary_cross_entropy_with_logits(logit, shut, reduction="none")
        arm_error = masked_mean((arm - actions[..., self.moving]).abs(), valid)
        return arm_error + self.options["gripper_weight"] * masked_mean(entropy, valid)


def gripper_dims(gripper: int | Sequence[int] | None, dims: int) -> tuple[int, ...]:
    """The indices of the gripper dimensions, from 0, however they are said: one, several, or None.
    Raises ValueError for one that is not there."""
    if gripper is None:
        return ()
    said = (gripper,) if isinstance(gripper, int) else tuple(gripper)
    for index in said:
        if not -dims <= index < dims:
            raise ValueError(
                f"gripper={gripper}: there are {dims} action dimensions; give the indices of some, "
                "or None"
            )
    return tuple(sorted(index % dims for index in said))  # -1 is the last


HEADS: dict[str, type[ActionHead]] = {
    "regression": RegressionHead,
    "bins": BinHead,
    "codebook": CodebookHead,
    "flow": FlowHead,
    "diffusion": DiffusionHead,
    "arm_gripper": ArmGripperHead,
}


def check_options(head: str, options: dict[str, Any]) -> None:
    """Raises ValueError for options that a head of this kind does not have."""
    if head not in HEADS:
        raise ValueError(f"there is no action head {head!r}; there are {', '.join(HEADS)}")
    known = inspect.signature(HEADS[head]).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"a head {head!r} has no {', '.join(unknown)}: its options are "
            f"{', '.join(list(known)[3:])}"
        )
