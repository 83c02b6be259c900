"""What OpenVLA, OpenVLA-OFT and CogACT have in common, and all of it that can be watched, routed and
cut: two image towers (DINOv2 with registers, SigLIP), a projector, and Llama (transformers' own
layers).

    picture → DINOv2 ─┐
                      ├─ side by side ─ projector ─┐
    picture → SigLIP ─┘                            │
                          words: BOS ── patches ── rest of the prompt ── … → `layers` → norm

Tokens stand in the order [BOS, patches of each picture, more that a kind sees, rest of the prompt,
padding, more that a kind appends]; what is padding is hidden from all others and takes no position,
so that a sample of a batch is answered as it is alone.

A kind subclasses `DinoSigLIPPolicy`. What its pictures are, what its sequence holds beside words and
patches (`sequence`), whether attention is `causal`, whether layers leave their keys and values
(`keeps_cache`), and what is decided at the end are its own.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armlet.layers.timm_vit import TimmViT, ViTSizes
from armlet.policies.building import rebuild_with
from armlet.policies.contract import Backbone, Body, Features, tuples
from armlet.policies.cutting import weights_of
from armlet.policies.precisions import LONG, long_name
from armlet.policies.tokens import TokenState
from armlet.types import Batch

if TYPE_CHECKING:  # slow to import, and of use only where a network is built
    from transformers import LlamaConfig

# Mean and deviation of pixels, DINOv2's and SigLIP's.
MEANS = ((0.485, 0.456, 0.406), (0.5, 0.5, 0.5))
STDS = ((0.229, 0.224, 0.225), (0.5, 0.5, 0.5))
Between = Callable[[str, int, Tensor], Tensor]  # tower, a block's number, tokens → tokens


@dataclass(frozen=True)
class LlamaSizes:
    """`rows` of the word table, of which the first `vocabulary` are words and the rest padding;
    `eps` of RMSNorm, `theta` of the rotary positions."""

    width: int
    mlp: int
    depth: int
    heads: int
    kv_heads: int
    rows: int
    vocabulary: int
    eps: float
    theta: float = 10000.0

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(
                f"a language model of width {self.width} cannot have {self.heads} heads: expected "
                "a divisor of its width"
            )
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ValueError(
                f"a language model of {self.heads} heads cannot have keys and values of "
                f"{self.kv_heads}: expected a divisor"
            )
        if not 0 < self.vocabulary <= self.rows:
            raise ValueError(
                f"a vocabulary of {self.vocabulary} in a word table of {self.rows} rows: expected "
                "1 to as many as there are rows"
            )

    def config(self) -> "LlamaConfig":
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.rows,
            hidden_size=self.width,
            intermediate_size=self.mlp,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            rms_norm_eps=self.eps,
            rope_parameters={"rope_type": "default", "rope_theta": self.theta},
            attn_implementation="sdpa",  # type: ignore[call-arg]
        )


@dataclass(frozen=True)
class Sizes:
    """Of the whole network. `means` and `stds`: of pixels, DINOv2's and SigLIP's; `inner`: width
    inside the projector."""

    dino: ViTSizes
    siglip: ViTSizes
    llama: LlamaSizes
    inner: int
    means: tuple[tuple[float, ...], ...] = MEANS
    stds: tuple[tuple[float, ...], ...] = STDS

    def __post_init__(self) -> None:
        if self.dino.side != self.siglip.side or self.dino.grid != self.siglip.grid:
            raise ValueError(
                f"DINOv2 sees {self.dino.grid} patches a side of {self.dino.side} px, and SigLIP "
                f"{self.siglip.grid} of {self.siglip.side} px: expected the same of both, which "
                "are read side by side"
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_json`, from JSON, which has no tuples."""
        return cls(
            dino=ViTSizes(**value["dino"]),
            siglip=ViTSizes(**value["siglip"]),
            llama=LlamaSizes(**value["llama"]),
            inner=value["inner"],
            means=tuple(map(tuple, value["means"])),
            stds=tuple(map(tuple, value["stds"])),
        )


class DinoSigLIP(nn.Module):
    """Pictures (b, 3, h, w) in [0, 1] → (b, n, d): of each patch what DINOv2 and SigLIP say, DINOv2
    first."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.dino = TimmViT(sizes.dino)
        self.siglip = TimmViT(sizes.siglip)
        self.means: Tensor
        self.stds: Tensor
        for name, values in (("means", sizes.means), ("stds", sizes.stds)):
            self.register_buffer(name, torch.tensor(values)[..., None, None], persistent=False)

    def pixels(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As each tower was taught to see them."""
        images = images.to(self.means.dtype)
        dino = (images - self.means[0]) / self.stds[0]
        return dino, (images - self.means[1]) / self.stds[1]

    def forward(self, images: Tensor, between: Between | None = None) -> Tensor:
        """`between` is called in every block of both towers (`dino`, `siglip`) between attention
        and MLP."""
        found = []
        pixels = self.pixels(images)
        for name, seen in zip(("dino", "siglip"), pixels, strict=True):
            tower = getattr(self, name)
            inside = None if between is None else _inside(between, name)
            found.append(tower(seen.to(tower.pos_embed.dtype), inside))
        return torch.cat(found, -1)


def _inside(between: Between, name: str) -> Callable[[int, Tensor], Tensor]:
    return lambda index, tokens: between(name, index, tokens)


class Projector(nn.Module):
    """From the towers' width to the language model's: three linear maps, exact GELU between."""

    def __init__(self, seen: int, inner: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(seen, inner)
        self.fc2 = nn.Linear(inner, width)
        self.fc3 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))


@dataclass(frozen=True)
class SequenceState(TokenState):
    """Tokens, and what each layer that ran has left of them: `keys` and `values`, one (b, h, n, c)
    a layer, None where it has not run (yet, or at all); empty where nobody reads them."""

    changing: ClassVar[tuple[str, ...]] = ("hidden", "keys", "values")

    keys: tuple[Tensor | None, ...] = ()
    values: tuple[Tensor | None, ...] = ()

    def left(self, index: int, keys: Tensor, values: Tensor, hidden: Tensor) -> "SequenceState":
        """The state after layer `index`, which left these."""
        return replace(
            self,
            hidden=hidden,
            keys=(*self.keys[:index], keys, *self.keys[index + 1 :]),
            values=(*self.values[:index], values, *self.values[index + 1 :]),
        )


class Kept:
    """What one of transformers' layers takes for a cache: `keys` and `values` (b, h, n, c) of the
    tokens before, to which it adds those of its own."""

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        self.keys = keys
        self.values = values

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if self.keys is not None and self.values is not None:
            keys = torch.cat([self.keys, keys], 2)
            values = torch.cat([self.values, values], 2)
        self.keys = keys
        self.values = values
        return keys, values


class DinoSigLIPPolicy(Backbone[SequenceState]):
    """See the module's docstring. `cameras`: name → side of its pictures, in the order in which they
    are seen."""

    causal: ClassVar[bool] = True  # no token sees those behind it
    keeps_cache: ClassVar[bool] = False

    def __init__(
        self,
        sizes: Sizes,
        cameras: dict[str, int],
        body: Body,
        *,
        text_tokens: int,
        dtype: torch.dtype = torch.float32,
        kept_layers: tuple[int, ...] | None = None,
    ) -> None:
        from transformers.models.llama import modeling_llama

        super().__init__()
        llama = sizes.llama
        self.sizes = sizes
        self.cameras = cameras
        self.body = body
        self.text_tokens = text_tokens
        self.kept_layers = kept_layers
        self.width = llama.width
        self.vision_tokens = sizes.dino.tokens * len(cameras)
        self.vision = DinoSigLIP(sizes)
        seen = sizes.dino.width + sizes.siglip.width
        self.projector = Projector(seen, sizes.inner, llama.width)
        self.words = nn.Embedding(llama.rows, llama.width)
        config = llama.config()
        self.layers = nn.ModuleList()
        for index in range(llama.depth):
            layer = modeling_llama.LlamaDecoderLayer(config, index)
            layer.self_attn.is_causal = self.causal
            self.layers.append(layer)
        self.norm = modeling_llama.LlamaRMSNorm(llama.width, eps=llama.eps)
        self.rotary = modeling_llama.LlamaRotaryEmbedding(config)
        for parameter in self.parameters():  # buffers stay in single precision
            parameter.data = parameter.data.to(dtype)

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.vision.dino.blocks, *self.vision.siglip.blocks, *self.layers]

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights, and of the tokens between layers."""
        return self.words.weight.dtype

    def see(self, images: Tensor, between: Between | None = None) -> Tensor:
        """A picture each of b samples (b, 3, h, w) in [0, 1] → its patches as tokens of the
        language model (b, n, d)."""
        return self.projector(self.vision(images, between))

    def pictures(self, batch: Batch, between: Between | None = None) -> Tensor:
        """The tokens of all its cameras, one camera after the other (b, n, d)."""
        return torch.cat([self.see(batch.images[name], between) for name in self.cameras], 1)

    def sequence(self, batch: Batch, seen: Tensor, *, after: Tensor | None = None) -> SequenceState:
        """What enters layer 0: BOS, `seen` (b, v, d), the rest of the prompt with its padding, and
        `after` (b, m, d), which is never padding. `seen` begins with the patches of all cameras."""
        words = self.words(batch.text)  # (b, t, d)
        behind = [] if after is None else [after]
        hidden = torch.cat([words[:, :1], seen, words[:, 1:], *behind], 1)  # (b, n, d)
        start = 1 + seen.shape[1]  # where the rest of the prompt begins
        end = start + words.shape[1] - 1
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        mask[:, start:end] = batch.text_mask[:, 1:]
        vision = torch.zeros_like(mask)
        vision[:, 1 : 1 + self.vision_tokens] = True
        text = torch.zeros_like(mask)
        text[:, start:end] = batch.text_mask[:, 1:]
        empty = (None,) * len(self.layers) if self.keeps_cache else ()
        if _unpadded(batch):  # no mask to build, and positions just count up
            positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
            rotary = self.rotary(hidden, positions)
            return SequenceState(hidden, mask, vision, text, None, rotary, empty, empty)
        rotary = self.rotary(hidden, positions_of(mask))
        seen_by = mask[:, None, None, :].expand(-1, -1, mask.shape[1], -1)  # (b, 1, n, n)
        if self.causal:
            seen_by = seen_by.tril()
        return SequenceState(hidden, mask, vision, text, seen_by, rotary, empty, empty)

    def embed(self, batch: Batch) -> SequenceState:
        return self.sequence(batch, self.pictures(batch))

    def run_layer(self, index: int, state: SequenceState) -> SequenceState:
        kept = Kept() if self.keeps_cache else None
        hidden = self.layers[index](
            state.hidden,
            attention_mask=state.attention,
            position_embeddings=state.rotary,
            past_key_values=kept,
        )
        if kept is None:
            return replace(state, hidden=hidden)
        assert kept.keys is not None and kept.values is not None  # a layer that ran leaves them
        return state.left(index, kept.keys, kept.values, hidden)

    def features(self, state: SequenceState) -> Features:
        return Features(state.hidden, state.mask, state.vision, state.text)

    def last(self, state: SequenceState) -> Tensor:
        """The last real token of each sample, after the final norm (b, d)."""
        places = state.mask.shape[1] - 1 - state.mask.flip(1).long().argmax(1)  # (b,)
        return self.norm(state.hidden[torch.arange(len(places), device=places.device), places])

    def network_json(self) -> dict[str, Any]:
        """What `from_json` of a kind needs beside what is the kind's own: arguments of
        `__init__`."""
        return {
            "sizes": self.sizes.to_json(),
            "cameras": self.cameras,
            "text_tokens": self.text_tokens,
            "dtype": long_name(self.dtype),
            "kept_layers": self.kept_layers,
        }

    def keep_layers(self, kept: tuple[int, ...]) -> Backbone:
        weights = weights_of(self, kept)
        description = self.to_json()
        llama = replace(self.sizes.llama, depth=len(kept))
        changed = {"sizes": replace(self.sizes, llama=llama).to_json(), "kept_layers": kept}
        description["network"] = {**description["network"], **changed}
        student = rebuild_with(description, self.body.tokenizer, weights)
        return student.to(self.device)


def network_from_json(value: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `DinoSigLIPPolicy.network_json`, and whatever else stands in it: arguments."""
    found = tuples(value)
    found["sizes"] = Sizes.from_json(value["sizes"])
    found["dtype"] = LONG[value["dtype"]]
    return found


def positions_of(mask: Tensor) -> Tensor:
    """(b, n) bool → positions (b, n): padding takes none, so that what follows stands where it
    would without."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def _unpadded(batch: Batch) -> bool:
    """Whether this is one observation none of whose words is padding. A graph that is compiled
    or recorded (CUDA) cannot ask: where nobody has said it, every batch is treated there as one that may be padded,
    which gives the same."""
    if batch.unpadded:
        return True
    if len(batch) > 1 or torch.compiler.is_compiling():
        return False
    if batch.text_mask.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return bool(batch.text_mask.all())
