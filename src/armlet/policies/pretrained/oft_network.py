"""OpenVLA-OFT (arXiv 2502.19645): OpenVLA's network, asked for all actions of a chunk at once.

    BOS · patches of every picture · proprio · prompt · a · k placeholders · EOS   → layers → norm

Every token sees every other. The placeholders are embedded as zeros; what becomes of action number
i is read one place before its placeholder, where a language model predicts its next token, so that
the first is read at the prompt's last token. An *L1* policy has a head on a step's tokens side by
side; a *discrete* one chooses a word for each number, of which the last 256 of the vocabulary are
its bins, as in OpenVLA.

With FiLM (arXiv 1709.07871) each block of the image towers is told the mean of all words, between
attention and MLP. (openvla-oft 213c5ff: `modeling_prismatic.py`, `action_heads.py`,
`projectors.py`, `film_vit_wrapper.py`.)
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armlet.layers.action_head import masked_mean
from armlet.policies.contract import Body, Pass
from armlet.policies.pretrained.dino_siglip import DinoSigLIPPolicy, SequenceState, Sizes
from armlet.robot.inputs import Inputs
from armlet.robot.reading.llama import EOS, LlamaPrompt, token
from armlet.types import Batch, Trace

TYPE = "pretrained.openvla_oft"


class Residual(nn.Module):
    """x + ReLU(Linear(LayerNorm x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)


class L1Head(nn.Module):
    """A step's tokens side by side (b, k, a · d) → its action (b, k, a); nothing bounds it."""

    def __init__(self, width: int, dims: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width * dims)
        self.fc1 = nn.Linear(width * dims, width)
        self.mlp_resnet_blocks = nn.ModuleList([Residual(width), Residual(width)])
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, dims)

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.relu(self.fc1(self.layer_norm1(tokens)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class ProprioProjector(nn.Module):
    """The robot's state as a token: (b, s) → (b, d)."""

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dims, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, state: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(state)))


class Modulation(nn.Module):
    """x · (1 + scale(words)) + shift(words), of all tokens (b, n, d)."""

    def __init__(self, told: int, width: int) -> None:
        super().__init__()
        self.scale = nn.Linear(told, width)
        self.shift = nn.Linear(told, width)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        return x * (1 + self.scale(words)[:, None]) + self.shift(words)[:, None]


class OpenVLAOFT(DinoSigLIPPolicy):
    """See the module's docstring. `proprio`: numbers of the state that it is told, 0: none; `bins`
    of a discrete policy, 0: it has a head.

    Signals: `condition` (b, d), the mean over what the head reads, or the words are chosen from;
    `logits` (b, k, a, bins − 1) of a discrete policy's intervals, lowest first."""

    causal = False

    def __init__(
        self,
        sizes: Sizes,
        cameras: dict[str, int],
        body: Body,
        *,
        text_tokens: int,
        chunk: int,
        execute: int,
        proprio: int,
        bins: int,
        film: bool,
        dtype: torch.dtype = torch.float32,
        kept_layers: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(
            sizes, cameras, body, text_tokens=text_tokens, dtype=dtype, kept_layers=kept_layers
        )
        width = sizes.llama.width
        self.chunk = chunk
        self.execute = execute
        self.bins = bins
        self.stop = token(body.tokenizer, EOS)
        self.condition_width = width
        self.proprio = ProprioProjector(proprio, width) if proprio else None
        self.lm_head = nn.Linear(width, sizes.llama.rows, bias=False) if bins else None
        self.head = None if bins else L1Head(width, self.dims)
        self.film: nn.ModuleDict | None = None
        if film:
            self.film = nn.ModuleDict()
            for name, tower in (("dino", sizes.dino), ("siglip", sizes.siglip)):
                blocks = range(tower.depth - 1)  # the last is not run
                self.film[name] = nn.ModuleList(Modulation(width, tower.width) for _ in blocks)
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)
        self.edges: Tensor
        # In double precision: in single, an action that lies on an edge might be on its other side.
        edges = torch.linspace(-1, 1, max(bins, 2), dtype=torch.float64)
        self.register_buffer("edges", edges, persistent=False)

    @property
    def inputs(self) -> Inputs:
        words = LlamaPrompt(self.body.tokenizer, self.text_tokens)
        return replace(super().inputs, words=words)

    def told(self, batch: Batch) -> Tensor:
        """The mean of all words' embeddings, EOS among them, (b, d): what FiLM tells the towers."""
        real = batch.text_mask[..., None].to(self.dtype)
        words = (self.words(batch.text) * real).sum(1) + self._stop(len(batch))[:, 0]
        return words / (real.sum(1) + 1)

    def embed(self, batch: Batch) -> SequenceState:
        if self.film is None:
            seen = self.pictures(batch)
        else:
            told = self.told(batch)
            seen = self.pictures(
                batch, lambda tower, index, tokens: self._modulated(tower, index, tokens, told)
            )
        if self.proprio is not None:
            # As the original's evaluation: what lies beyond the statistics is cut off.
            state = batch.state.clamp(-1, 1).to(self.dtype)
            seen = torch.cat([seen, self.proprio(state)[:, None]], 1)
        empty = seen.new_zeros(len(seen), self.chunk * self.dims, self.width)
        return self.sequence(batch, seen, after=torch.cat([empty, self._stop(len(seen))], 1))

    def _modulated(self, tower: str, index: int, tokens: Tensor, told: Tensor) -> Tensor:
        assert self.film is not None
        blocks = self.film[tower]
        assert isinstance(blocks, nn.ModuleList)
        return blocks[index](tokens, told)

    def _stop(self, samples: int) -> Tensor:
        """EOS (b, 1, d)."""
        return self.words.weight[self.stop].expand(samples, 1, -1)

    def answered(self, run: Pass[SequenceState]) -> Tensor:
        """(b, k · a + 1, d): where each number of the chunk is read, and EOS behind them, after the
        final norm."""
        return run.once("answered", lambda: self._answered(run.state))

    def _answered(self, state: SequenceState) -> Tensor:
        count = self.chunk * self.dims
        first = state.mask.shape[1] - count - 1  # of the placeholders, behind which is EOS alone
        # The last token of each prompt, behind which there may be padding.
        last = first - 1 - state.mask[:, :first].flip(1).long().argmax(1)  # (b,)
        before = state.hidden[torch.arange(len(last), device=last.device), last][:, None]
        return self.norm(torch.cat([before, state.hidden[:, first:-1]], 1))

    def _all_logits(self, run: Pass[SequenceState]) -> Tensor:
        """(b, k · a + 1, rows) of a discrete policy, in single precision."""
        assert self.lm_head is not None
        lm_head = self.lm_head
        return run.once("every_logit", lambda: lm_head(self.answered(run)).float())

    def decode(self, run: Pass[SequenceState], batch: Batch) -> Tensor:
        if self.head is not None:
            tokens = self.answered(run)[:, :-1].unflatten(1, (self.chunk, self.dims))
            return self.head(tokens.flatten(2)).float()
        words = self._all_logits(run)[:, :-1].argmax(-1)
        return self.as_actions(words).unflatten(1, (self.chunk, self.dims))

    def loss(self, run: Pass[SequenceState], batch: Batch) -> Tensor:
        """Of a head the mean absolute error; of words the cross-entropy over all words, of those
        for the actions and of EOS behind them, as published."""
        actions, valid = batch.targets()
        if self.head is not None:
            return masked_mean((self.decode(run, batch) - actions).abs(), valid.float())
        logits = self._all_logits(run)  # (b, k · a + 1, rows)
        target = F.pad(self.as_words(actions).flatten(1), (0, 1), value=self.stop)
        error = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        # Past the end of an episode nothing was done; EOS always counts.
        counted = F.pad(valid.repeat_interleave(self.dims, 1), (0, 1), value=True)
        return masked_mean(error.view(*target.shape, 1), counted.float())

    # Words and actions of a discrete policy, as OpenVLA has them.

    def as_words(self, actions: Tensor) -> Tensor:
        """Normalised actions (…, a) → the words for them (…, a) int64: the last of the vocabulary
        is the lowest bin."""
        inside = actions.double().clamp(-1, 1).contiguous()
        return self.sizes.llama.vocabulary - torch.bucketize(inside, self.edges, right=True)

    def as_actions(self, words: Tensor) -> Tensor:
        """Words → the middles of their intervals. Any word may be chosen: one that is no bin counts
        as the nearest."""
        centres = (self.edges[:-1] + self.edges[1:]) / 2
        index = (self.sizes.llama.vocabulary - 1 - words).clamp(0, self.bins - 2)
        return centres[index].float()

    def signals(self, names: Collection[str], batch: Batch, run: Pass[SequenceState]) -> Trace:
        found: Trace = {}
        if "condition" in names:
            found["condition"] = run.once(
                "condition", lambda: self.answered(run)[:, :-1].float().mean(1)
            )
        if "logits" in names and self.lm_head is not None:
            end = self.sizes.llama.vocabulary
            every = self._all_logits(run)[:, :-1].unflatten(1, (self.chunk, self.dims))
            bins = every[..., end - self.bins : end].flip(-1)  # the last word is the lowest
            # Two words mean the highest: how likely it is is the sum of both.
            highest = bins[..., -2:].logsumexp(-1, keepdim=True)
            found["logits"] = torch.cat([bins[..., :-2], highest], -1)
        return found

    def to_json(self) -> dict[str, Any]:
        network = {
            **self.network_json(),
            "chunk": self.chunk,
            "execute": self.execute,
            "proprio": 0 if self.proprio is None else self.proprio.fc1.in_features,
            "bins": self.bins,
            "film": self.film is not None,
        }
        return {"type": TYPE, "network": network, **self.body.to_json()}
