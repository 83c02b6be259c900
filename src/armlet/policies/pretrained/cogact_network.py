"""CogACT (arXiv 2411.19650): OpenVLA's towers and language model read the picture and the words into
one *cognition feature*, the last token after the final norm, and a diffusion transformer makes a
chunk of actions of it.

The prompt ends with two tokens that no tokenizer adds, an empty one and the end token, and it is at
the end token that the feature is read. Of a normalised action all but the gripper are clipped to
[−1, 1]; the gripper is decided, 1 (open) from a half on, and is not scaled.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from armlet.layers.action_dit import DiffusionHead
from armlet.policies.contract import Body, Loop, Pass
from armlet.policies.pretrained.dino_siglip import (
    DinoSigLIPPolicy,
    SequenceState,
    Sizes,
    network_from_json,
)
from armlet.robot.inputs import Inputs
from armlet.robot.outputs import Outputs
from armlet.robot.reading.llama import EMPTY, EOS, LlamaPrompt
from armlet.types import Batch, Trace

GRIPPER = 6  # the dimension of an action that is decided


class CogACT(DinoSigLIPPolicy):
    """See the module's docstring. `head`: arguments of `DiffusionHead` beside the feature's width.
    The head is kept in single precision whatever the rest is in, as in the original. Signals:
    `condition` (b, d), the cognition feature."""

    def __init__(
        self,
        sizes: Sizes,
        cameras: dict[str, int],
        body: Body,
        *,
        text_tokens: int,
        head: dict[str, Any],
        execute: int = 1,
        dtype: torch.dtype = torch.float32,
        kept_layers: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(
            sizes, cameras, body, text_tokens=text_tokens, dtype=dtype, kept_layers=kept_layers
        )
        self.head_options = head
        self.head = DiffusionHead(sizes.llama.width, **head)
        self.chunk = self.head.chunk
        self.execute = execute
        self.condition_width = sizes.llama.width

    @property
    def loop(self) -> Loop:
        return Loop("denoising step", len(self.head.visited))

    @property
    def blocks(self) -> list[nn.Module]:
        return [*super().blocks, *self.head.net.blocks]

    @property
    def inputs(self) -> Inputs:
        words = LlamaPrompt(self.body.tokenizer, self.text_tokens, ending=(EMPTY, EOS), always=True)
        return replace(super().inputs, words=words)

    def _condition(self, run: Pass[SequenceState]) -> Tensor:
        return run.once("condition", lambda: self.last(run.state).float())

    def decode(self, run: Pass[SequenceState], batch: Batch) -> Tensor:
        """As sampled; `outputs` clips them and decides the gripper."""
        return self.head(self._condition(run))

    def loss(self, run: Pass[SequenceState], batch: Batch) -> Tensor:
        actions, valid = batch.targets()
        return self.head.loss(self._condition(run), actions, valid.float())

    def signals(self, names: Collection[str], batch: Batch, run: Pass[SequenceState]) -> Trace:
        return {"condition": self._condition(run)} if "condition" in names else {}

    @property
    def outputs(self) -> Outputs:
        return replace(super().outputs, gripper=GRIPPER)

    def to_json(self) -> dict[str, Any]:
        own = {"head": self.head_options, "execute": self.execute}
        network = {**self.network_json(), **own}
        return {"type": "pretrained.cogact_network", "network": network, **self.body.to_json()}


def from_json(description: dict[str, Any], tokenizer: Tokenizer) -> CogACT:
    """The network that `to_json` described, with fresh weights."""
    body = Body.from_json(description, tokenizer)
    return CogACT(body=body, **network_from_json(description["network"]))
