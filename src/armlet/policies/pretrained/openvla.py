"""OpenVLA (arXiv 2406.09246): an action is written, one token a dimension, by the language model
itself. The network of both layouts on disk (`openvla_hf`, `prismatic_openvla`).

The last 256 words of the vocabulary are the bins of [−1, 1], from the last word downwards: word
V − 1 is the lowest. 256 edges enclose 255 intervals, so the lowest word of all (V − 256), written for
exactly 1, means the same as its neighbour. Nothing keeps the network from writing another word: rows
of the table behind the vocabulary count as the lowest bin, ordinary words as the highest.

A token is written through the layers that ran for the prompt, over the keys and values that they
left; those that a router skipped are skipped there, too.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from armlet.layers.action_head import masked_mean
from armlet.policies.contract import Body, Loop, Pass
from armlet.policies.pretrained.dino_siglip import (
    DinoSigLIPPolicy,
    Kept,
    SequenceState,
    Sizes,
    network_from_json,
    positions_of,
)
from armlet.robot.inputs import Inputs
from armlet.robot.reading.llama import EOS, LlamaPrompt, token
from armlet.types import Batch, Trace

BINS = 256


class OpenVLA(DinoSigLIPPolicy):
    """See the module's docstring. Signals: `condition` (b, d), the last token of the prompt after the
    final norm, from which the first word is written; `logits` (b, 1, a, 255) of the intervals, lowest first,
    given the batch's own actions as the tokens before, where it has actions, so that a student is
    asked what its teacher was; at a robot, given those that it wrote. `step_logits` (b, a, rows) of
    all words while it writes, and `tokens` (b, a), what it wrote."""

    keeps_cache: ClassVar[bool] = True
    chunk = 1
    execute = 1

    def __init__(
        self,
        sizes: Sizes,
        cameras: dict[str, int],
        body: Body,
        *,
        text_tokens: int,
        bins: int = BINS,
        dtype: torch.dtype = torch.float32,
        kept_layers: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(
            sizes, cameras, body, text_tokens=text_tokens, dtype=dtype, kept_layers=kept_layers
        )
        llama = sizes.llama
        if not 1 < bins <= llama.vocabulary:
            raise ValueError(
                f"{bins} bins in a vocabulary of {llama.vocabulary} words: expected 2 to as many"
            )
        self.bins = bins
        self.stop = token(body.tokenizer, EOS)
        self.lm_head = nn.Linear(llama.width, llama.rows, bias=False, dtype=dtype)
        self.edges: Tensor
        # numpy's, in double precision: torch's own differ in the last digit, and an action that lies
        # on an edge would be on its other side.
        edges = torch.from_numpy(np.linspace(-1, 1, bins))
        self.register_buffer("edges", edges, persistent=False)

    @property
    def loop(self) -> Loop:
        return Loop("token", self.dims)

    @property
    def inputs(self) -> Inputs:
        words = LlamaPrompt(self.body.tokenizer, self.text_tokens)
        return replace(super().inputs, words=words)

    @property
    def condition_width(self) -> int:  # type: ignore[override]
        return self.width

    # Words and actions

    def as_words(self, actions: Tensor) -> Tensor:
        """Normalised actions (…, a) → the words for them (…, a) int64."""
        inside = actions.double().clamp(-1, 1).contiguous()
        return self.sizes.llama.vocabulary - torch.bucketize(inside, self.edges, right=True)

    def intervals(self, words: Tensor) -> Tensor:
        """Words (…, a) → which interval each means, 0 the lowest."""
        return (self.sizes.llama.vocabulary - 1 - words).clamp(0, self.bins - 2)

    def as_actions(self, words: Tensor) -> Tensor:
        """Words (…, a) → normalised actions (…, a)."""
        centres = (self.edges[:-1] + self.edges[1:]) / 2
        return centres[self.intervals(words)].float()

    # Writing

    def decode(self, run: Pass[SequenceState], batch: Batch) -> Tensor:
        return self.as_actions(self._written(run, batch)).unsqueeze(1)  # (b, 1, a)

    def _written(self, run: Pass[SequenceState], batch: Batch) -> Tensor:
        if "tokens" not in run.extras:  # once a pass: actions and logits read it
            read = self._read(run)  # with its gradient: the loss reads it, too
            with torch.no_grad():
                self._write(run, batch, read)
        return run.extras["tokens"]

    def _write(self, run: Pass[SequenceState], batch: Batch, read: Tensor) -> None:
        """The likeliest word, one after the other, as many as an action has dimensions."""
        caches = self._caches(run)
        steps = [self.lm_head(read)]  # (b, rows) each
        words = [steps[0].argmax(-1)]
        while len(words) < self.dims:
            new = self.words(words[-1]).unsqueeze(1)  # (b, 1, d)
            hidden = self._on(run, new, caches, before=len(words) - 1)
            steps.append(self.lm_head(hidden[:, 0]))
            words.append(steps[-1].argmax(-1))
        run.extras["step_logits"] = torch.stack(steps, 1).float()  # (b, a, rows)
        run.extras["tokens"] = self._as_sliced(torch.stack(words, 1), batch)

    def _as_sliced(self, words: Tensor, batch: Batch) -> Tensor:
        """(b, a): what the published code takes for an action. It stops writing at the end token,
        takes the last `a` of prompt and answer together, and so begins with words of the prompt
        where the answer is too short."""
        dims = words.shape[1]
        stopped = words == self.stop
        first = stopped.long().argmax(1)
        length = torch.where(stopped.any(1), first + 1, dims)  # (b,) words that it has written
        ends = batch.text_mask.sum(1, keepdim=True)
        places = (ends - dims + torch.arange(dims, device=words.device)).clamp(min=0)  # (b, a)
        whole = torch.cat([batch.text.gather(1, places), words], 1)  # (b, 2 a)
        return whole.gather(1, length[:, None] + torch.arange(dims, device=words.device))

    def _told(self, run: Pass[SequenceState], words: Tensor) -> Tensor:
        """Logits (b, a + 1, rows) where `words` (b, a) are written, whatever it would have written:
        all at once."""
        first = self._read(run).unsqueeze(1)
        rest = self._on(run, self.words(words), self._caches(run), before=0)
        return self.lm_head(torch.cat([first, rest], 1)).float()

    def _read(self, run: Pass[SequenceState]) -> Tensor:
        """(b, d): what the first word is written from."""
        return run.once("read", lambda: self.last(run.state))

    def _caches(self, run: Pass[SequenceState]) -> list[Kept | None]:
        """Of each layer; None of one that ran for nobody."""
        caches: list[Kept | None] = []
        for keys, values in zip(run.state.keys, run.state.values, strict=True):
            caches.append(None if keys is None else Kept(keys, values))
        return caches

    def _on(
        self, run: Pass[SequenceState], hidden: Tensor, caches: list[Kept | None], *, before: int
    ) -> Tensor:
        """m more tokens (b, m, d) through the layers, after the prompt and `before` that were
        written already, whose keys and values are in the caches, where theirs are added. After the
        final norm."""
        mask = run.state.mask
        count = hidden.shape[1]
        new = torch.ones(len(mask), before + count, dtype=torch.bool, device=mask.device)
        real = torch.cat([mask, new], 1)  # (b, n + before + m)
        rotary = self.rotary(hidden, positions_of(real)[:, -count:])
        attention = None
        if run.state.attention is not None or count > 1:
            seen = real[:, None, None, :].expand(-1, -1, count, -1)
            attention = seen.tril(real.shape[1] - count)  # of the new ones, those behind are hidden
        for index, layer in enumerate(self.layers):
            cache = caches[index]
            if cache is None:
                continue
            after = layer(
                hidden,
                attention_mask=attention,
                position_embeddings=rotary,
                past_key_values=cache,
            )
            hidden = run.gated(index, hidden, after)
        return self.norm(hidden)

    # Training

    def loss(self, run: Pass[SequenceState], batch: Batch) -> Tensor:
        """Cross-entropy over all words, of those for the action and of the end token behind them, as
        published."""
        actions, valid = batch.targets()
        logits = self._of_targets(run, actions)  # (b, a + 1, rows)
        words = self.as_words(actions[:, 0])
        target = F.pad(words, (0, 1), value=self.stop)  # (b, a + 1)
        error = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        return masked_mean(error.view(len(words), 1, -1), valid.float())

    def _of_targets(self, run: Pass[SequenceState], actions: Tensor) -> Tensor:
        words = self.as_words(actions[:, 0])
        return run.once("told_logits", lambda: self._told(run, words))

    def signals(self, names: Collection[str], batch: Batch, run: Pass[SequenceState]) -> Trace:
        found: Trace = {}
        if "condition" in names:
            # In single precision, whatever the network runs in.
            found["condition"] = run.once("condition", lambda: self._read(run).float())
        if "logits" in names:
            if batch.actions is None:
                self._written(run, batch)
                every = run.extras["step_logits"]
            else:
                every = self._of_targets(run, batch.actions)[:, :-1]
            found["logits"] = self._of_intervals(every).unsqueeze(1)
        if "tokens" in names:
            found["tokens"] = self._written(run, batch)
        if "step_logits" in names:
            self._written(run, batch)
            found["step_logits"] = run.extras["step_logits"]
        return found

    def _of_intervals(self, logits: Tensor) -> Tensor:
        """Logits of all words (…, rows) → of the intervals (…, bins − 1)."""
        end = self.sizes.llama.vocabulary
        bins = logits[..., end - self.bins : end].flip(-1)  # the last word is the lowest
        # Two words mean the highest: how likely it is is the sum of both.
        highest = bins[..., -2:].logsumexp(-1, keepdim=True)
        return torch.cat([bins[..., :-2], highest], -1)

    def to_json(self) -> dict[str, Any]:
        network = {**self.network_json(), "bins": self.bins}
        return {"type": "pretrained.openvla", "network": network, **self.body.to_json()}


def from_json(description: dict[str, Any], tokenizer: Tokenizer) -> OpenVLA:
    """The network that `to_json` described, with fresh weights."""
    body = Body.from_json(description, tokenizer)
    return OpenVLA(body=body, **network_from_json(description["network"]))
