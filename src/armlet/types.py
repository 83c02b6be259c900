"""The vocabulary every other file speaks; it knows no model, no data format and no benchmark.

Axes, used in every signature and comment:

    b  batch        k  actions in a chunk     l  layers of the backbone
    n  tokens       a  action dimensions      d  width
    t  text tokens  s  robot-state dimensions h, w  image rows, columns

A *trace* is what a policy answers when it is watched: plain named tensors. The teacher's answer, a
row of the trace store and the student's answer are the same type, so a loss reads two of them and a
missing signal is a `KeyError` with its name:

    actions        (b, k, a)   the chunk it would execute, normalised
    condition      (b, d)      the feature that conditions its action head
    semantics      (b, l, d)   one semantic vector per layer, from the probe's graph heads
    layer_actions  (b, l, k, a) the action each layer would take, from the probe's action heads
    gates          (b, l)      how much of each layer ran: 1 ran, 0 skipped
    logits         (b, k, n)   of its action head's n primitives; (b, k, a, bins) of a head with
                   bins
    costs          (l,)        what each layer costs, relative to the others
    imitation      (b,)        its action head's own loss against the episodes' actions;
                   `imitation.teacher`: against those of its teacher; `imitation.velocity`: of
                   a flow head, how far its velocities are from those of its teacher's head
    privileged.x   (b, x)      what it guesses of simulator fact x, while a teacher is taught
    pointed.x      (b, x)      the same, guessed from the vision tokens alone
    hidden.6       (b, n, d)   hidden states after layer 6
    attention.1    (b, n, t)   what each vision token of two towers listens to in fusion layer 1
    fused          (b, n, d)   their vision tokens after the last fusion layer; `projected`: the
                   same, in the teacher's width
    image, text    (b, d)      unit vectors of picture and words, to be compared
    logits.told    …           what `logits` would be, were the annotator's description heard
    phase          (b, c)      logits of an annotator's phases; `direction`, `direction.text`:
                   embeddings of what it says is done
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from torch import Tensor

Trace = dict[str, Tensor]  # by the names above; a policy answers with those that it has
Precision = Literal["bf16", "fp32"]  # of matrix products
LAYERS = frozenset({"semantics", "layer_actions"})  # what a probe's heads read of every layer


@dataclass(frozen=True)
class Batch:
    """Model-ready tensors for `b` moments, all on one device."""

    # Of a policy that looks at o > 1 moments, images are (b, o, 3, h, w) and state (b, o, s), the
    # oldest first; at an episode's beginning the first is repeated.
    images: dict[str, Tensor]  # camera → (b, 3, h, w) float in [0, 1]
    text: Tensor  # (b, t) int64, the instruction's tokens
    text_mask: Tensor  # (b, t) bool, True where there is a token
    state: Tensor  # (b, s) normalised
    previous_action: Tensor  # (b, a) normalised
    # Targets; None at inference.
    actions: Tensor | None = None  # (b, k, a) normalised
    actions_valid: Tensor | None = None  # (b, k) bool, False past the end of the episode
    # The actions at the o − 1 moments before, where a policy looks at them; valid as above.
    earlier_actions: Tensor | None = None  # (b, o − 1, a) normalised
    earlier_valid: Tensor | None = None  # (b, o − 1) bool, False before the episode's beginning
    keys: Tensor | None = None  # (b, 2) int64: episode, step
    taught: Tensor | None = None  # (b, k, a) normalised, the teacher's
    taught_condition: Tensor | None = None  # (b, d), what the teacher's head reads
    budget: float | None = None  # share of the backbone that each decision may cost
    exploration: float = 0.0  # scale of the noise in what a network decides while it trains
    # One moment none of whose words is padding: said by who makes a graph of a network, as a graph
    # cannot look at its mask.
    unpadded: bool = False
    # Privileged, for training only: a robot has none of these.
    description: Tensor | None = None  # (b, u) int64, an annotator's words about the moment
    description_mask: Tensor | None = None  # (b, u) bool
    labels: dict[str, Tensor] = field(default_factory=dict)  # phase, element … → (b,) int64
    privileged: dict[str, Tensor] = field(default_factory=dict)  # simulator fact → (b, x)

    def __len__(self) -> int:
        return len(self.state)

    def part(self, rows: slice) -> "Batch":
        """Some of its moments."""
        chosen: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Tensor):
                chosen[each.name] = value[rows]
            elif isinstance(value, dict):
                chosen[each.name] = {name: tensor[rows] for name, tensor in value.items()}
        return replace(self, **chosen)

    @property
    def present(self) -> Tensor:
        """(b, s): the state now."""
        return self.state if self.state.ndim == 2 else self.state[:, -1]

    def targets(self) -> tuple[Tensor, Tensor]:
        """`actions` and `actions_valid`. Raises ValueError where there are none: at inference."""
        if self.actions is None or self.actions_valid is None:
            raise ValueError(
                "this batch has no actions to compare with; it was made from observations, not "
                "from episodes"
            )
        return self.actions, self.actions_valid
