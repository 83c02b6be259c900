"""VITA-VLA's student (arXiv 2510.09607): a vision-language model that learns to act in the place of
a small expert.

    paper                                       here
    VLM, a causal language model with eyes      `language`, a transformers configuration; `vision`,
                                                another, or our own eyes
    state → one token, arm and gripper apart    `state`; `gripper_state` says which numbers of the
                                                state are the gripper's
    one action query, repeated, last in order   `query`, as often as the chunk has steps
    a 3-layer MLP, q → D of the expert          `mapper`, of hidden width 2 D, with which stage 1
                                                trains 29.4 M at the paper's size
    the expert's own decoder                    `head`, an ArmGripperHead, made a copy of the
                                                expert's to the bit by `ReuseDecoder`

The expert is any policy whose head is an ArmGripperHead: `VLANetwork(head="arm_gripper")`. The
condition of both, (b, k · D), is what that decoder reads, so stage 1 is
`losses.condition_mse(student["condition"], teacher["condition"])` with `ALIGN` as what trains;
stage 2 is the head's own loss, `imitation`, with `FINETUNE` as what does not. A model that starts
from nothing has nothing to keep: there stage 1 trains `(*ALIGN, *SCRATCH)`, and stage 2 freezes
nothing.

Tokens stand in the order [cameras, words, state, queries], each seeing itself and those before it,
as a language model was trained. Knows no benchmark and no recipe.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from armlet.layers.heads import ArmGripperHead
from armlet.layers.named import Named, NoState
from armlet.layers.pretrained import fetch, fetch_tokenizer, pixels
from armlet.layers.vision import ConvEncoder, ordered_mean
from armlet.policies.contract import (
    Backbone,
    Body,
    Network,
    Student,
    check_cameras,
    sides_of,
    sizes_of,
    tuples,
)
from armlet.policies.cutting import weights_of, with_weights
from armlet.policies.tokens import TokenPolicy, TokenState
from armlet.robot.normalise import normalised
from armlet.types import Batch

if TYPE_CHECKING:  # slow to import, and of use only where a network is built
    from transformers import PreTrainedModel

ALIGN = ("policy.state.*", "policy.query", "policy.mapper.*")  # what stage 1 trains
FINETUNE = ("policy.vision.*",)  # what stage 2 freezes, where it is pretrained
LANGUAGE = ("words.", "layers.", "norm.")  # the parts that are the language model's
# What stage 1 trains besides, of a model that starts from nothing.
SCRATCH = (
    "policy.vision.*",
    "policy.order",
    "policy.asked.*",
    "policy.words.*",
    "policy.layers.*",
    "policy.norm.*",
)


def llama(width: int = 128, depth: int = 8, heads: int = 4) -> dict[str, Any]:
    """A small language model, to be taught from nothing."""
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": int(width * 8 / 3) // 32 * 32,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
    }


QWEN2_7B = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
SIGLIP_SO400M = {  # 256 tokens an image, as many as the paper's own eyes give
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "vision_use_head": False,
}


@dataclass(frozen=True)
class ActionQueryNetwork(Network):
    """A language model, eyes, and the decoder of an expert, which `ReuseDecoder` takes from the
    expert."""

    language: dict[str, Any] = field(default_factory=llama)
    """A configuration of transformers: `model_type` and sizes."""
    vision: dict[str, Any] | None = None
    """Another, of an image tower; none: each camera has a ConvEncoder that is told what is
    asked."""
    pretrained: str = ""
    """A language model on the hub, or a folder, whose configuration, weights and words are taken
    instead."""
    pretrained_vision: str = ""
    """The same for an image tower."""
    scratch: bool | None = None
    """Whether language model and eyes start from nothing; none: those that no name above brings do.
    Where they do not, stage 1 leaves them as they are."""
    expert_width: int = 128
    """Numbers that the decoder reads for each step of a chunk."""
    chunk: int = 3
    """Actions decided at a time."""
    execute: int = 3
    """Actions of a chunk that are carried out before the policy looks again."""
    text_tokens: int = 32
    """Tokens of the longest instruction."""
    gripper_state: tuple[int, ...] = (-1,)
    """Indices of the gripper's numbers in the robot's state; the rest is the arm's."""
    strides: dict[str, int] = field(default_factory=dict)
    """Camera → pixels a token, a side; 12 where nothing is said."""
    channels: int = 32
    """Channels of the eyes' first convolution."""
    head_options: dict[str, Any] = field(default_factory=dict)
    """More of the head, by the names of its arguments (armlet/layers/heads.py)."""

    def build(self, body: Body, cameras: dict[str, int]) -> "ActionQuery":
        """Fresh weights, or those that are named. Raises OSError where these cannot be had."""
        from transformers import AutoModel

        seen = normalised(body.action_spec, body.actions)
        options = ArmGripperHead.fitted(seen, self.head_options)
        network = replace(self, head_options=options)
        language = None
        tower = None
        if self.pretrained:
            language = fetch(AutoModel, self.pretrained).float()  # bf16, as published
            body = replace(body, tokenizer=fetch_tokenizer(self.pretrained))
            language.set_attn_implementation("eager")  # as it will be when it is loaded again
            network = replace(network, language=language.config.to_dict())
        if self.pretrained_vision:
            tower = fetch(AutoModel, self.pretrained_vision).float()
            # Of a model of pictures and words, the eyes.
            tower = getattr(tower, "vision_model", tower)
            network = replace(network, vision=tower.config.to_dict())
        return ActionQuery(network, cameras, body, language=language, tower=tower)


def published() -> ActionQueryNetwork:
    """The paper's size, 7.7 B: a Qwen2 of 7 B as in VITA-1.5, and an expert 384 wide. The eyes are
    SigLIP's, where the paper's are InternViT, whose code is not transformers'."""
    return ActionQueryNetwork(
        language=QWEN2_7B,
        vision=SIGLIP_SO400M,
        expert_width=384,
        text_tokens=128,
        gripper_state=(-2, -1),
        scratch=False,
    )


class StateToken(nn.Module):
    """The robot's state (b, s) → one token (b, width): arm and gripper each through a map of their
    own, then joined. Where no number is the gripper's, all are the arm's."""

    def __init__(self, dims: int, gripper: tuple[int, ...], width: int) -> None:
        super().__init__()
        outside = [index for index in gripper if not -dims <= index < dims]
        own = sorted({index % dims for index in gripper})
        rest = [index for index in range(dims) if index not in own]
        if outside or not rest:
            raise ValueError(
                f"gripper_state={gripper}: the state has {dims} dimensions, of which those of the "
                "gripper must be some, and some the arm's; give () where it has no gripper"
            )
        self.own = own
        self.rest = rest
        self.arm = nn.Linear(len(rest), width)
        self.gripper = nn.Linear(len(own), width) if own else None
        self.join = nn.Linear(2 * width if own else width, width)

    def forward(self, state: Tensor) -> Tensor:
        parts = [self.arm(state[:, self.rest])]
        if self.gripper is not None:
            parts.append(self.gripper(state[:, self.own]))
        return self.join(torch.cat(parts, -1))


class Eyes(nn.Module):
    """A pretrained image tower and a projector, shared by all cameras: (b, 3, h, w) in [0, 1] → (b,
    n, width)."""

    def __init__(
        self, vision: dict[str, Any], width: int, tower: "PreTrainedModel | None" = None
    ) -> None:
        from transformers import AutoConfig, AutoModel

        super().__init__()
        self.tower = (
            AutoModel.from_config(AutoConfig.for_model(**vision)) if tower is None else tower
        )
        config = self.tower.config
        self.kind = config.model_type
        self.size = int(config.image_size)
        self.tokens = (self.size // int(config.patch_size)) ** 2
        self.project = nn.Sequential(
            nn.Linear(config.hidden_size, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, image: Tensor) -> Tensor:
        seen = self.tower(pixel_values=pixels(image, self.size, self.kind)).last_hidden_state
        return self.project(seen[:, -self.tokens :])  # without a class token, which comes first


class ActionQuery(TokenPolicy):
    """See the module's docstring."""

    def __init__(
        self,
        network: ActionQueryNetwork,
        cameras: dict[str, int],
        body: Body,
        *,
        kept_layers: tuple[int, ...] | None = None,
        language: "PreTrainedModel | None" = None,
        tower: "PreTrainedModel | None" = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.cameras = cameras
        self.body = body
        self.text_tokens = network.text_tokens
        self.execute = network.execute
        self.kept_layers = kept_layers
        self._take(language or _language_model(network.language, body.tokenizer.get_vocab_size()))
        width = self.width = int(self.words.embedding_dim)
        if network.vision is None:
            eyes = Named()
            self.vision_tokens = 0
            for name, size in cameras.items():
                stride = network.strides.get(name, 12)
                eye = ConvEncoder(size, width, stride=stride, channels=network.channels)
                eyes[name] = eye
                self.vision_tokens += eye.tokens
            self.vision: nn.Module = eyes
            self.order = nn.Parameter(1 + 0.5 * torch.randn(network.text_tokens, width))
            self.asked = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        else:
            self.vision = shared = Eyes(network.vision, width, tower)
            self.vision_tokens = shared.tokens * len(cameras)
        dims = len(body.state.offset)
        self.state: nn.Module = (
            StateToken(dims, network.gripper_state, width) if dims else NoState(width)
        )
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        between = 2 * network.expert_width  # the paper's hidden width, 2 D
        self.mapper = nn.Sequential(
            nn.Linear(width, between),
            nn.GELU(),
            nn.Linear(between, between),
            nn.GELU(),
            nn.Linear(between, network.expert_width),
        )
        self.head = ArmGripperHead(
            network.expert_width, network.chunk, body.action_spec.dims, **network.head_options
        )

    @property
    def pretrained_weights(self) -> frozenset[str]:
        """The language model's and the image tower's, where they are."""
        network = self.network
        parts: list[str] = []
        if network.scratch is False:
            parts += ["vision.", *LANGUAGE]  # the projector too, as in a model that sees already
        elif network.scratch is None:
            parts += LANGUAGE if network.pretrained else ()
            parts += ["vision.tower."] if network.pretrained_vision else ()
        names = [name for name, _ in self.named_parameters()]
        return frozenset(name for name in names if name.startswith(tuple(parts)))

    def _take(self, model: "PreTrainedModel") -> None:
        """The parts of a language model, which become the policy's own. Raises ValueError where it
        is of another build."""
        parts = ("embed_tokens", "layers", "rotary_emb", "norm")
        missing = [name for name in parts if not hasattr(model, name)]
        if missing:
            raise ValueError(
                f"a language model of type {model.config.model_type!r} has no "
                f"{', '.join(missing)}; one with rotary positions is needed, such as llama, "
                "mistral, qwen2, qwen3 or smollm3"
            )
        found: Any = model  # transformers' models have no common type with these
        self.words = found.embed_tokens
        self.layers = found.layers
        self.rotary = found.rotary_emb
        self.norm = found.norm

    @property
    def condition_width(self) -> int:  # type: ignore[override]
        return self.network.expert_width * self.network.chunk

    def embed(self, batch: Batch) -> TokenState:
        words = self.words(batch.text)  # (b, t, d)
        state = self.state(batch.state).unsqueeze(1)
        query = self.query.expand(len(batch), self.network.chunk, -1)  # one a step of the chunk
        hidden = torch.cat([*self._see(batch, words), words, state, query], 1)  # (b, n, d)
        text = F.pad(batch.text_mask, (self.vision_tokens, 1 + self.network.chunk))
        vision = torch.zeros_like(text)
        vision[:, : self.vision_tokens] = True
        mask = text | vision
        mask[:, self.vision_tokens + words.shape[1] :] = True
        length = hidden.shape[1]
        before = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()
        unseen = ~(before & mask[:, None, None, :])  # (b, 1, n, n): later, or padding
        attention = torch.zeros(unseen.shape, device=hidden.device, dtype=hidden.dtype)
        # Finite, and far enough down to be exactly 0 behind the softmax.
        attention.masked_fill_(unseen, -1e9)
        # Padding takes no position, so that state and queries stand where they would without.
        rotary = self.rotary(hidden, mask.long().cumsum(1) - 1)
        return TokenState(hidden, mask, vision, text, attention, rotary)

    def _see(self, batch: Batch, words: Tensor) -> list[Tensor]:
        if isinstance(self.vision, Eyes):  # pretrained towers take no question
            return [self.vision(batch.images[name]) for name in self.cameras]
        assert isinstance(self.vision, Named)
        asked = self.asked(ordered_mean(words, batch.text_mask, self.order))
        return [self.vision[name](batch.images[name], asked) for name in self.cameras]

    def run_layer(self, index: int, state: TokenState) -> TokenState:
        hidden = self.layers[index](
            state.hidden, attention_mask=state.attention, position_embeddings=state.rotary
        )
        return replace(state, hidden=hidden)

    def condition(self, state: TokenState) -> Tensor:
        queries = self.norm(state.hidden[:, -self.network.chunk :])
        return self.mapper(queries).flatten(1)  # (b, k, D) → (b, k · D)

    def keep_layers(self, kept: tuple[int, ...]) -> "ActionQuery":
        weights = weights_of(self, kept)
        language = {**self.network.language, "num_hidden_layers": len(kept)}
        if language.get("layer_types"):  # of models whose layers attend in different ways
            language["layer_types"] = [language["layer_types"][index] for index in kept]
        network = replace(self.network, language=language)
        student = ActionQuery(network, self.cameras, self.body, kept_layers=tuple(kept))
        return with_weights(student, weights, self.device)

    def to_json(self) -> dict[str, Any]:
        network = asdict(self.network)
        # Left out where it says nothing: what was saved before it was there still hashes alike.
        if network["scratch"] is None:
            del network["scratch"]
        return {
            "type": "action_query",
            "network": {**network, "kept_layers": self.kept_layers},
            "cameras": self.cameras,
            **self.body.to_json(),
        }


def from_json(description: dict[str, Any], tokenizer: Tokenizer) -> ActionQuery:
    """The network that `to_json` described, with fresh weights."""
    network = tuples(description["network"])
    kept = network.pop("kept_layers", None)
    body = Body.from_json(description, tokenizer)
    check_cameras(description["cameras"])
    sizes = sizes_of(ActionQueryNetwork, network)
    return ActionQuery(sizes, description["cameras"], body, kept_layers=kept)


@dataclass(frozen=True)
class ReuseDecoder(Student):
    """A vision-language model in front of a trained expert's own decoder, whose weights it starts
    from, to the bit."""

    network: ActionQueryNetwork = field(default_factory=ActionQueryNetwork)
    """Its sizes; those of the decoder are the expert's."""

    def build(self, teacher: Backbone, sample: Batch | None = None) -> ActionQuery:
        head = getattr(teacher, "head", None)
        if not isinstance(head, ArmGripperHead):
            raise ValueError(
                f"the expert's head is {type(head).__name__}, and what is reused is the decoder of "
                "an "
                'ArmGripperHead; teach the expert with VLANetwork(head="arm_gripper")'
            )
        if sample is None:
            raise ValueError(
                "ReuseDecoder reads from the data which cameras there are; pass build() a sample "
                "batch"
            )
        network = replace(
            self.network,
            expert_width=head.width,
            chunk=head.chunk,
            head_options=head.options,
            execute=teacher.execute,
        )
        student = network.build(teacher.body, sides_of(sample))
        student.head.load_state_dict(head.state_dict())
        return student.to(teacher.device)


def _language_model(language: dict[str, Any], vocabulary: int) -> "PreTrainedModel":
    """Without its output layer, which would name words; its vocabulary fits the tokenizer where the
    configuration names none."""
    from transformers import AutoConfig, AutoModel

    fixed = {
        "vocab_size": vocabulary,
        "pad_token_id": 0,
        "bos_token_id": None,  # those of the usual configuration may lie outside a small vocabulary
        "eos_token_id": None,
        **language,
    }
    if fixed["vocab_size"] < vocabulary:
        raise ValueError(
            f"the language model knows {fixed['vocab_size']} words and the tokenizer has "
            f"{vocabulary}; they belong to different models"
        )
    config = AutoConfig.for_model(**fixed)
    config._attn_implementation = "eager"  # a mask of our own, and few tokens
    return AutoModel.from_config(config)
