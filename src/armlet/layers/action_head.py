"""What every action head is: a condition vector (b, d) → a chunk of normalised actions (b, k, a).
The kinds are in heads.py and action_dit.py."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from armlet.robot.spec import ActionSpec


class ActionHead(nn.Module, ABC):
    """`loss` is per sample; `forward` decides."""

    chunk: int
    dims: int
    vectors: int = 1  # of a token's width, side by side in the condition

    @classmethod
    def fitted(cls, spec: ActionSpec, options: dict[str, Any]) -> dict[str, Any]:
        """Its options with what it must know of the robot's actions; what `options` say themselves
        stands."""
        return options

    @abstractmethod
    def forward(self, condition: Tensor) -> Tensor:
        """(b, d) → (b, k, a), the actions to execute."""

    def classes(self, actions: Tensor) -> Tensor | None:
        """(…, a) normalised actions → (…,) which of a few each is nearest to, for a head that
        chooses among a few; else None."""
        return None

    @abstractmethod
    def loss(self, condition: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        """(b,): how far from `actions` (b, k, a), counting the steps where `valid` (b, k)."""

    def weights_for(self, other: "ActionHead") -> dict[str, Tensor]:
        """Weights of this head's with which a lighter one of its kind begins. Raises ValueError where
        the two have nothing in common."""
        mine = self.state_dict()
        theirs = {name: tensor.shape for name, tensor in other.state_dict().items()}
        if theirs != {name: tensor.shape for name, tensor in mine.items()}:
            raise ValueError(
                f"a {type(self).__name__} cannot be made narrower, only a FlowHead can; leave "
                "`--student.hidden` and `--student.blocks` out"
            )
        return mine

    def logits(self, condition: Tensor) -> Tensor | None:
        """(b, k, …, n), the logits of the classes it chooses among; None where it names numbers
        outright."""
        return None


def masked_mean(error: Tensor, valid: Tensor) -> Tensor:
    """(b, k, …) averaged over valid steps and whatever follows them → (b,)."""
    per_step = error.flatten(2).mean(-1)  # (b, k)
    # clamp: a sample without a valid step has error 0, and not 0 / 0.
    return (per_step * valid).sum(1) / valid.sum(1).clamp(min=1)
