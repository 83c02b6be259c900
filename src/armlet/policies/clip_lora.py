"""VLA-AD's student (arXiv 2605.16241): CLIP's two towers, and an MLP on the embeddings of image,
instruction and description.

    paper                                    here
    LongCLIP-B/16, 149.7 M, frozen           `published()`; 248 text positions; weights by name:
                                             `pretrained`
    LoRA of rank 8, on what it does not say  on q and v of both towers (`lora_rank`, `lora_alpha`)
    3 × 512 → MLP → 5·7·256 logits           the condition (b, (cameras + 2) · embed), and a BinHead
                                             of 768 hidden units
    the description, masked at run time      `masked`, a learned embedding in its place

The backbone that is watched and routed is the image tower; words and image meet after it, so a
router knows no words. Each camera's image is resized to the one tower's size and gives one
embedding; cameras do not see one another. A description is read only for the signals of training,
from `Batch.description`: what `forward` and `decide` answer cannot depend on it, since they never
look at it.

Ours, off in the paper's preset: `fusion="early"`. A small network that learns from little data
binds words to things only where the words modulate what is seen early, so here the eyes are
convolutional and modulated by what is asked (FiLM), words and robot state stand beside the image's
tokens through all layers, and an image's embedding is a few soft-argmaxes over its tokens.

Not done: the published LongCLIP file, which is in OpenAI's own format; a CLIP in transformers'
format is taken, and its 77 text positions are stretched to 248 as LongCLIP does before it trains
on. Knows no benchmark, no recipe and no annotator.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from armlet.layers.heads import HEADS, BinHead
from armlet.layers.named import Named, state_layer
from armlet.layers.pretrained import fetch, fetch_tokenizer, pixels, stretch
from armlet.layers.vision import ConvEncoder, Pointers, ordered_mean
from armlet.policies.contract import Body, Network, Pass, check_cameras, sizes_of, tuples
from armlet.policies.cutting import weights_of, with_weights
from armlet.policies.tokens import TokenPolicy, TokenState
from armlet.types import Batch, Trace

if TYPE_CHECKING:  # slow to import, and of use only where a network is built
    from transformers import CLIPModel, CLIPTextConfig, CLIPVisionConfig

# What a stage trains of `published()`: the paper's towers stand still but for LoRA.
TRAINED = (
    "policy.*lora_*",
    "policy.masked",
    "policy.state.*",
    "policy.head.*",
    "policy.phase.*",
    "policy.direction.*",
)

# The parts that are CLIP's own.
TOWERS = ("text", "say", "patches", "enter", "leave", "see", "layers")


@dataclass(frozen=True)
class ClipLoraNetwork(Network):
    """Sizes of the two towers and what stands on them; see the module's docstring."""

    image: int = 224
    """Pixels a side to which pictures are brought, for late fusion."""
    patch: int = 16
    """Pixels of a patch, a side, for late fusion."""
    width: int = 768
    """Numbers a token has in the image tower."""
    depth: int = 12
    """Layers of the image tower."""
    heads: int = 12
    """Attention heads of its layers."""
    text_width: int = 512
    """Numbers a token has in the text tower."""
    text_depth: int = 12
    """Layers of the text tower."""
    text_heads: int = 8
    """Attention heads of its layers."""
    text_tokens: int = 248
    """Tokens of the longest text, instruction or description."""
    vocabulary: int | None = None
    """The text tower's, where it is not the tokenizer's."""
    mlp: int = 4
    """How many times wider the towers' MLPs are."""
    embed: int = 512
    """Numbers of an embedding of an image or a text."""
    chunk: int = 5
    """Actions decided at a time."""
    execute: int = 5
    """Actions of a chunk that are carried out before the policy looks again."""
    head: Literal["regression", "bins", "flow", "diffusion"] = "bins"
    """How actions are decided (armlet/layers/heads.py)."""
    head_options: dict[str, Any] = field(default_factory=lambda: {"hidden": 768})
    """More of the head, by the names of its arguments (armlet/layers/heads.py)."""
    fusion: Literal["late", "early"] = "late"
    """late: CLIP's own; early: words stand beside the image's tokens, for small networks."""
    strides: dict[str, int] = field(default_factory=dict)
    """Camera → pixels a token, a side, for early fusion; 12 where nothing is said."""
    channels: int = 24
    """Channels of the eyes' first convolution, for early fusion."""
    pointers: int = 4
    """Soft-argmaxes that make an image's embedding, for early fusion."""
    use_state: bool = False
    """The robot's state is a token, for early fusion."""
    lora_rank: int = 0
    """Rank of LoRA on q and v of both towers; 0: none, all weights train."""
    lora_alpha: int = 16
    """LoRA's scale, over its rank."""
    aux_heads: bool = False
    """Guess phase and direction while it learns."""
    phases: int = 9
    """How many phases there are to guess."""
    directions: tuple[str, ...] = ()
    """The words of each direction's label."""
    pretrained: str = ""
    """A CLIP by its name on the hub, with its own tokenizer."""

    def build(self, body: Body, cameras: dict[str, int]) -> "ClipLora":
        """Fresh weights, or those of `pretrained`. Raises OSError where these cannot be had."""
        if not self.pretrained:
            return ClipLora(self, cameras, body)
        from transformers import CLIPModel

        policy = ClipLora(self, cameras, replace(body, tokenizer=fetch_tokenizer(self.pretrained)))
        _take_clip(policy, fetch(CLIPModel, self.pretrained))
        return policy

    def tower(self) -> "CLIPVisionConfig":
        from transformers import CLIPVisionConfig

        return CLIPVisionConfig(
            hidden_size=self.width,
            intermediate_size=self.mlp * self.width,
            projection_dim=self.embed,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            image_size=self.image,
            patch_size=self.patch,
            # As in vla.py: fused only among the many tokens of the published size.
            attn_implementation="sdpa" if self.fusion == "late" else "eager",  # type: ignore[call-arg]
        )

    def text_tower(self, vocabulary: int) -> "CLIPTextConfig":
        from transformers import CLIPTextConfig

        return CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=self.text_width,
            intermediate_size=self.mlp * self.text_width,
            projection_dim=self.embed,
            num_hidden_layers=self.text_depth,
            num_attention_heads=self.text_heads,
            max_position_embeddings=self.text_tokens,
            # Never read: a text's embedding is that of its last word, whichever that is.
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )


def published(pretrained: str = "") -> ClipLoraNetwork:
    """The paper's student: 158.3 M parameters with one camera and 7 action dimensions, of which
    `TRAINED` are 8.6 M."""
    return ClipLoraNetwork(vocabulary=49408, lora_rank=8, pretrained=pretrained)


def small() -> ClipLoraNetwork:
    """One that learns tabletop on a CPU from nothing: about 1 M parameters, all of which train."""
    return ClipLoraNetwork(
        width=96,
        depth=4,
        heads=4,
        text_width=64,
        text_depth=2,
        text_heads=2,
        text_tokens=64,
        mlp=2,
        embed=64,
        chunk=6,
        execute=2,
        head_options={"hidden": 48},
        fusion="early",
        strides={"scene": 12, "wrist": 16},
        use_state=True,
    )


def tiny() -> ClipLoraNetwork:
    """A tenth of `small()`: about 100,000 parameters, actions in 32 bins a dimension."""
    eyes_and_words = replace(small(), channels=8, pointers=2, text_width=24, text_depth=1)
    return replace(
        eyes_and_words,
        width=40,
        depth=2,
        heads=2,
        embed=32,
        head_options={"hidden": 18, "bins": 32},
    )


@dataclass(frozen=True, kw_only=True)
class ClipState(TokenState):
    """The image tower's tokens, and what joins them behind it: `said` (b, embed), the instruction;
    `felt` (b, s), the robot's state."""

    said: Tensor
    felt: Tensor


class ClipLora(TokenPolicy):
    """See the module's docstring."""

    def __init__(
        self,
        network: ClipLoraNetwork,
        cameras: dict[str, int],
        body: Body,
        *,
        kept_layers: tuple[int, ...] | None = None,
    ) -> None:
        from transformers import CLIPTextModel, CLIPVisionModel

        super().__init__()
        self.network = network
        self.cameras = cameras
        self.body = body
        self.width = network.width
        self.text_tokens = network.text_tokens
        self.execute = network.execute
        self.kept_layers = kept_layers
        own = body.tokenizer.get_vocab_size()
        if network.vocabulary is not None and own > network.vocabulary:
            raise ValueError(
                f"vocabulary is {network.vocabulary} and the tokenizer has {own} entries; raise "
                "it, or leave it None to fit"
            )
        self.text = CLIPTextModel(network.text_tower(network.vocabulary or own))
        self.say = nn.Linear(network.text_width, network.embed, bias=False)
        tower = CLIPVisionModel(network.tower())
        # The tower taken apart: what is watched, routed and cut are its layers.
        self.layers = tower.encoder.layers
        self.leave = tower.post_layernorm
        if network.fusion == "late":
            self.patches = tower.embeddings
            self.enter = tower.pre_layrnorm  # transformers' own spelling
            self.see = nn.Linear(network.width, network.embed, bias=False)
            # Tokens of each camera, the class token among them.
            self.grids = dict.fromkeys(cameras, int(self.patches.num_positions))
        else:
            self.grids = self._add_early_parts()
        self.vision_tokens = sum(self.grids.values())
        self.masked = nn.Parameter(torch.randn(network.embed) * 0.02)
        if network.use_state:
            early = network.fusion == "early"
            # Early it is a token, late an embedding that joins the others behind the tower.
            self.state = state_layer(
                len(body.state.offset), network.width if early else network.embed
            )
        self.head = HEADS[network.head](
            self.condition_width, network.chunk, body.action_spec.dims, **network.head_options
        )
        if network.aux_heads:
            self.phase = nn.Linear(self.condition_width, network.phases)
            self.direction = nn.Linear(self.condition_width, network.embed)
        # Last: it renames the weights of the maps that it wraps (`.base_layer.`).
        if network.lora_rank:
            self._add_lora()

    def _add_early_parts(self) -> dict[str, int]:
        """What modulates, joins and pools; returns how many tokens each camera gives."""
        network = self.network
        width = network.width
        self.order = nn.Parameter(1 + 0.5 * torch.randn(network.text_tokens, network.text_width))
        self.asked = nn.Sequential(
            nn.LayerNorm(network.text_width), nn.Linear(network.text_width, width), nn.GELU()
        )
        self.words = nn.Linear(network.text_width, width)
        if network.use_state:
            self.felt = nn.Linear(width, network.embed)
        tokens = {}
        self.eyes = Named()
        for name, size in self.cameras.items():
            stride = network.strides.get(name, 12)
            eye = ConvEncoder(size, width, stride=stride, channels=network.channels)
            self.eyes[name] = eye
            tokens[name] = eye.tokens
        # A loop of its own: fresh weights are drawn in the order in which parts are made.
        self.pointers = Named()
        for name, count in tokens.items():
            self.pointers[name] = Pointers(width, count, network.embed, count=network.pointers)
        return tokens

    def _add_lora(self) -> None:
        """Low-rank additions, which start at zero, to the query and value maps of both towers,
        whose own weights stand still."""
        from peft import LoraConfig, inject_adapter_in_model  # slow to import, and of use only here

        lora = LoraConfig(
            r=self.network.lora_rank,
            lora_alpha=self.network.lora_alpha,
            lora_dropout=0.0,
            target_modules=["q_proj", "v_proj"],
        )
        for tower in (self.text, self.layers):
            inject_adapter_in_model(lora, tower)
        for name in self.kept_weights:
            self.get_parameter(name).requires_grad_(False)

    @property
    def kept_weights(self) -> frozenset[str]:
        """Both towers', where they have LoRA, which alone trains there."""
        if not self.network.lora_rank:
            return frozenset()
        kept = []
        for name, _ in self.named_parameters():
            if name.partition(".")[0] in TOWERS and "lora_" not in name:
                kept.append(name)
        return frozenset(kept)

    @property
    def condition_width(self) -> int:  # type: ignore[override]
        return (len(self.cameras) + 2 + self.network.use_state) * self.network.embed

    def read(self, ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Words (b, t) int64, real where `real` (b, t) → the text tower's states (b, t, text width)
        and the text's embedding (b, embed).

        A text's embedding is that of its last word, which has seen the others (in CLIP that word is
        the end of the text), and depends on nothing but the text: each different text of a batch is
        read once, and while the tower is frozen it may be kept. A graph that is exported reads all:
        how many differ, it cannot ask. Raises ValueError where the texts are longer than the tower
        takes.
        """
        if ids.shape[1] > self.text_tokens:
            raise ValueError(
                f"texts of {ids.shape[1]} tokens, and the text tower takes {self.text_tokens} at "
                "most; shorten the descriptions, or build the network with a larger `text_tokens`"
            )
        if torch.compiler.is_compiling():
            return self._read(ids, real)
        # Texts that differ, in words or in what is padding: (2, b, t) → (2, u, t), and for each
        # sample which of them is its own, (b,).
        distinct, which = torch.stack([ids, real.long()]).unique(dim=1, return_inverse=True)
        states, embedding = self._read(distinct[0], distinct[1].bool())
        return states[which], embedding[which]

    def _read(self, ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        # No mask: CLIP reads forwards only, so words never see the padding behind them.
        states = self.text(input_ids=ids).last_hidden_state  # (b, t, text width)
        last = (real * torch.arange(1, ids.shape[1] + 1, device=ids.device)).argmax(1)
        return states, self.say(states[torch.arange(len(states), device=ids.device), last])

    def embed(self, batch: Batch) -> ClipState:
        words, said = self.read(batch.text, batch.text_mask)
        if self.network.fusion == "late":
            seen = []
            for name in self.cameras:
                image = pixels(batch.images[name], self.network.image, "clip_vision_model")
                seen.append(self.enter(self.patches(image)))
            hidden = torch.cat(seen, 1)  # (b, n, d): nothing but vision tokens
            mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
            text = torch.zeros_like(mask)
            return self._tokens(batch, hidden, mask, text, self._apart(hidden), said)
        asked = self.asked(ordered_mean(words, batch.text_mask, self.order))
        parts = [self.eyes[name](batch.images[name], asked) for name in self.cameras]
        parts.append(self.words(words))
        if self.network.use_state:
            parts.append(self.state(batch.state).unsqueeze(1))
        hidden = torch.cat(parts, 1)
        text = F.pad(batch.text_mask, (self.vision_tokens, int(self.network.use_state)))
        mask = text.clone()
        mask[:, : self.vision_tokens] = True
        mask[:, self.vision_tokens + words.shape[1] :] = True
        if batch.unpadded:
            return self._tokens(batch, hidden, mask, text, None, said)
        attention = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill_(~mask, -1e9)
        return self._tokens(batch, hidden, mask, text, attention[:, None, None, :], said)

    def _tokens(
        self,
        batch: Batch,
        hidden: Tensor,
        mask: Tensor,
        text: Tensor,
        attention: Tensor | None,
        said: Tensor,
    ) -> ClipState:
        vision = torch.zeros_like(mask)
        vision[:, : self.vision_tokens] = True
        return ClipState(hidden, mask, vision, text, attention, said=said, felt=batch.state)

    def _apart(self, hidden: Tensor) -> Tensor | None:
        """The mask under which each camera's tokens see their own kind only; None where there is
        one camera."""
        if len(self.grids) == 1:
            return None
        # A list, as ONNX has no operator for numbers that are repeated unequally often.
        numbers: list[int] = []
        for number, tokens in enumerate(self.grids.values()):
            numbers += [number] * tokens
        camera = torch.tensor(numbers)  # (n,): which camera each token is of
        other = (camera[:, None] != camera[None]).to(hidden.device)  # (n, n)
        apart = torch.zeros(other.shape, dtype=hidden.dtype, device=hidden.device)
        apart.masked_fill_(other, -1e9)
        return apart.expand(len(hidden), 1, -1, -1)

    def run_layer(self, index: int, state: TokenState) -> TokenState:
        return replace(state, hidden=self.layers[index](state.hidden, state.attention))

    def condition(self, state: TokenState) -> Tensor:
        # Always masked: a robot is told no description, and training must see what is deployed.
        return self._join(state, self.masked.expand(len(state.hidden), -1))

    def _join(self, tokens: TokenState, description: Tensor) -> Tensor:
        """One embedding for each camera, the instruction's, the description's, the state's: (b,
        condition width)."""
        assert isinstance(tokens, ClipState)  # made so here
        hidden = tokens.hidden
        late = self.network.fusion == "late"
        each = hidden[:, : self.vision_tokens].split(list(self.grids.values()), 1)
        parts = []
        for name, seen in zip(self.grids, each, strict=True):  # (b, tokens of the camera, d)
            if late:  # CLIP's embedding: that of the class token, its first
                parts.append(self.see(self.leave(seen[:, 0])))
            else:
                parts.append(self.pointers[name](self.leave(seen)))
        parts += [tokens.said, description]
        if self.network.use_state:  # early: the last token, which has been through the layers
            felt = self.state(tokens.felt) if late else self.felt(self.leave(hidden[:, -1]))
            parts.append(felt)
        return torch.cat(parts, -1)

    def signals(self, names: Collection[str], batch: Batch, run: Pass[TokenState]) -> Trace:
        """For training; nothing of it is computed while the policy acts.

        logits         (b, k, a, 256)  of the masked path, which is the one deployed
        logits.told    (b, k, a, 256)  of the path that is told the description, where there is one
        phase          (b, phases)     logits, from the masked path, with `aux_heads`
        direction      (b, embed)      a guess of the embedding of the direction's words, with
                       `aux_heads`
        direction.text (b, embed)      that embedding, by `batch.labels["direction"]`; zeros for a
                                       label below 0
        """
        found = super().signals(names, batch, run)
        guessed = [name for name in ("phase", "direction") if name in names]
        # Ahead of what is told: in another order gradients are summed, and rounded, otherwise.
        masked = self.condition(run.state).float() if guessed else None
        if isinstance(self.head, BinHead) and "logits.told" in names:
            told = self._join(run.state, self.described(batch)).float()
            found["logits.told"] = self.head.logits(told)
        if self.network.aux_heads and masked is not None:
            for name in guessed:
                found[name] = getattr(self, name)(masked)
        if "direction.text" in names:
            found["direction.text"] = self._directions(batch)
        return found

    def described(self, batch: Batch) -> Tensor:
        """(b, embed): the embedding of each description; the learned `masked` one where there is
        none."""
        masked = self.masked.expand(len(batch), -1)
        if batch.description is None or batch.description_mask is None:
            return masked
        _, embedding = self.read(batch.description, batch.description_mask)
        # A description without a word is none.
        return torch.where(batch.description_mask.any(1, keepdim=True), embedding, masked)

    def _directions(self, batch: Batch) -> Tensor:
        if "direction" not in batch.labels or not self.network.directions:
            raise KeyError(
                "direction.text needs `directions` in the network, the words of each label, and a "
                f"label named 'direction' in the batch; found {self.network.directions} and the "
                f"labels {sorted(batch.labels)}"
            )
        ids, real = map(torch.from_numpy, self.inputs.words(self.network.directions))
        with torch.no_grad():  # a target: the text tower must not move to meet the guess
            _, embedding = self.read(ids.to(self.device), real.to(self.device))
        label = batch.labels["direction"]
        return embedding[label.clamp(min=0)].masked_fill((label < 0)[:, None], 0)

    def deployed(self) -> "ClipLora":
        """The policy to deploy: LoRA folded into the towers, and the heads that only training needs
        left behind.

        They stay in what training saves, so that a later stage goes on with them.
        """
        network = replace(self.network, lora_rank=0, aux_heads=False)
        plain = ClipLora(network, self.cameras, self.body, kept_layers=self.kept_layers)
        weights = {}
        for name, tensor in self.state_dict().items():
            weights[name.replace(".base_layer.", ".")] = tensor  # peft's name for what it wraps
        if self.network.lora_rank:
            from peft.tuners.lora import Linear  # slow to import, and of use only here

            for name, module in self.named_modules():
                if isinstance(module, Linear):
                    added = module.get_delta_weight("default")  # B A · alpha / rank
                    weights[f"{name}.weight"] = weights[f"{name}.weight"] + added
        # By the names of the plain network: LoRA's own and the training heads' stay behind.
        plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
        return plain.to(self.device).train(self.training)

    def keep_layers(self, kept: tuple[int, ...]) -> "ClipLora":
        weights = weights_of(self, kept)
        network = replace(self.network, depth=len(kept))
        student = ClipLora(network, self.cameras, self.body, kept_layers=tuple(kept))
        return with_weights(student, weights, self.device)

    def to_json(self) -> dict[str, Any]:
        return {
            "type": "clip_lora",
            "network": {**asdict(self.network), "kept_layers": self.kept_layers},
            "cameras": self.cameras,
            **self.body.to_json(),
        }


def from_json(description: dict[str, Any], tokenizer: Tokenizer) -> ClipLora:
    """The network that `to_json` described, with fresh weights."""
    network = tuples(description["network"])
    kept = network.pop("kept_layers", None)
    body = Body.from_json(description, tokenizer)
    check_cameras(description["cameras"])
    sizes = sizes_of(ClipLoraNetwork, network)
    return ClipLora(sizes, description["cameras"], body, kept_layers=kept)


def _take_clip(policy: ClipLora, clip: "CLIPModel") -> None:
    """The weights of a transformers CLIPModel. Raises ValueError where the network has other sizes
    or none of its parts."""
    if policy.network.fusion == "early":
        raise ValueError(
            "fusion='early' has eyes of its own and takes no pretrained CLIP; use fusion='late', "
            "as `published()`"
        )
    vision = clip.vision_model
    parts = {
        "text": clip.text_model,
        "say": clip.text_projection,
        "patches": vision.embeddings,
        "enter": vision.pre_layrnorm,
        "layers": vision.encoder.layers,
        "leave": vision.post_layernorm,
        "see": clip.visual_projection,
    }
    found = {}
    for part, module in parts.items():
        for name, tensor in module.state_dict().items():
            found[f"{part}.{name}"] = tensor
    places = "text.embeddings.position_embedding.weight"
    if len(found[places]) < policy.text_tokens:
        found[places] = stretch(found[places], policy.text_tokens)
    weights = policy.state_dict()
    for name, own in weights.items():
        source = name.replace(".base_layer.", ".")
        if source not in found:  # ours alone: the head, `masked`, LoRA
            continue
        if found[source].shape != own.shape:
            raise ValueError(
                f"pretrained {policy.network.pretrained!r}: {source} has shape "
                f"{tuple(found[source].shape)}, and the network wants {tuple(own.shape)}; give the "
                "network the sizes of that model"
            )
        weights[name] = found[source]
    policy.load_state_dict(weights)
