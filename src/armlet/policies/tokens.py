"""Networks of tokens with an action head: what all of ours have in common.

The state is hidden tokens with their masks; one feature, read from the last of them, conditions an
`ActionHead`. A subclass says how a batch becomes tokens (`embed`), what a layer does to them
(`run_layer`) and what the head is told (`condition`). Knows no network.
"""

from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from armlet.layers.action_head import ActionHead
from armlet.layers.guidance import Guide
from armlet.layers.heads import FlowHead
from armlet.policies.contract import Backbone, Features, Loop, Pass, State
from armlet.types import Batch, Trace


@dataclass(frozen=True)
class TokenState(State):
    """`hidden` (b, n, d); `mask`, `vision`, `text` (b, n) bool: real, image and word tokens;
    `attention` what a layer needs as its mask (None: everything sees everything); `rotary` (cos,
    sin), where positions turn; one row of it serves all samples."""

    changing: ClassVar[tuple[str, ...]] = ("hidden",)

    hidden: Tensor
    mask: Tensor
    vision: Tensor
    text: Tensor
    attention: Tensor | None = None
    rotary: tuple[Tensor, Tensor] | None = None

    def select(self, rows: Tensor) -> Self:
        if self.rotary is None or len(self.rotary[0]) > 1:
            return super().select(rows)
        # One row for all samples: taken out and put back, or selecting would look for more.
        return replace(replace(self, rotary=None).select(rows), rotary=self.rotary)


class TokenPolicy(Backbone[TokenState]):
    """See the module's docstring. Signals: `condition` (b, d), and `logits` where its head has
    them."""

    head: ActionHead

    @abstractmethod
    def condition(self, state: TokenState) -> Tensor:
        """The last state → the feature (b, d) that conditions the action head."""

    @property
    def chunk(self) -> int:  # type: ignore[override]
        return self.head.chunk

    @property
    def condition_width(self) -> int:  # type: ignore[override]
        """Where a policy says nothing else, the tokens that its head reads, side by side."""
        return self.width * self.head.vectors

    @property
    def loop(self) -> Loop | None:
        steps = getattr(self.head, "steps", None)  # a head that denoises has them
        return None if steps is None else Loop("denoising step", steps)

    @property
    def kind(self) -> str:
        return f"{super().kind} with a {type(self.head).__name__}"

    def features(self, state: TokenState) -> Features:
        return Features(state.hidden, state.mask, state.vision, state.text)

    def _condition(self, run: Pass[TokenState]) -> Tensor:
        """In single precision, whatever the network ran in."""
        # Once a pass: actions, loss and logits read it, and each would pool and project again.
        return run.once("condition", lambda: self.condition(run.state).float())

    def decode(self, run: Pass[TokenState], batch: Batch) -> Tensor:
        return self.head(self._condition(run))

    @property
    def why_unguided(self) -> str:
        return "" if isinstance(self.head, FlowHead) else super().why_unguided

    def decode_guided(self, run: Pass[TokenState], batch: Batch, guide: Guide) -> Tensor:
        if not isinstance(self.head, FlowHead):
            return super().decode_guided(run, batch, guide)
        return self.head.guided(self._condition(run), guide)

    def loss(self, run: Pass[TokenState], batch: Batch) -> Tensor:
        actions, valid = batch.targets()
        return self.head.loss(self._condition(run), actions, valid.float())

    def classes(self, actions: Tensor) -> Tensor | None:
        return self.head.classes(actions)

    def signals(self, names: Collection[str], batch: Batch, run: Pass[TokenState]) -> Trace:
        found: Trace = {}
        if "condition" in names:
            found["condition"] = self._condition(run)
        if "logits" in names:
            logits = self.head.logits(self._condition(run))
            if logits is not None:  # a head that names numbers outright has none
                found["logits"] = logits
        return found
