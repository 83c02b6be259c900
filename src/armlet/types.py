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
    imitation      (b,)        its action head's own loss against the episodes' actions
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

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Trace = dict[str, Tensor]
Precision = Literal["bf16", "fp32"]  # of matrix products


@dataclass(frozen=True)
class Batch:
    """Model-ready tensors for `b` moments, all on one device.

    `images`: camera -> (b, 3, h, w) float in [0, 1]; `text` (b, t) int64 and `text_mask` (b, t)
    bool; `state` (b, s) and `previous_action` (b, a) normalised; `actions` (b, k, a) normalised
    targets and `actions_valid` (b, k) bool (False past the end of the episode), both None at
    inference; `keys` (b, 2) int64 (episode, step); `budget` the share of the backbone that each
    decision may cost, for a student that can be told; `exploration` the scale of the noise in what a
    network decides while it trains (0: none); `description` (b, u) int64, real where
    `description_mask` (b, u), an annotator's words about the moment, and `labels`, name → (b,) int64, what it named (phase,
    element, direction): privileged, for training only; `privileged`: simulator facts for auxiliary
    losses while a teacher trains.
    """

    images: dict[str, Tensor]
    text: Tensor
    text_mask: Tensor
    state: Tensor
    previous_action: Tensor
    actions: Tensor | None = None
    actions_valid: Tensor | None = None
    keys: Tensor | None = None
    budget: float | None = None
    exploration: float = 0.0
    description: Tensor | None = None
    description_mask: Tensor | None = None
    labels: dict[str, Tensor] = field(default_factory=dict)
    privileged: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.state)

    def targets(self) -> tuple[Tensor, Tensor]:
        """`actions` and `actions_valid`. Raises ValueError where there are none: at inference."""
        if self.actions is None or self.actions_valid is None:
            raise ValueError(
                "this batch has no actions to compare with; it was made from observations, not from episodes"
            )
        return self.actions, self.actions_valid
