"""Two towers: a ViT for pictures and a RoBERTa for words (transformers' own), cross-attention from
one to the other, a goal code that modulates what the action head is told. The student and the
teacher of `aed` (recipes.md §2).

    pictures, state → ViT ─┐                              ┌─ goal code over sub-tasks ─┐
                           ├─ fusion layers ── pool ──────┤                            FiLM ──
                           condition ── head
    words ───────→ RoBERTa ┘   (`layers`)                 └────────────────────────────┘

Tokens stand in the order [patches of each camera, class token, robot state, words]; all but the
words ask, and the words answer. Vision tokens are the patches alone, so that a map over them is a
map over the picture. From 1 M to 0.7 B parameters by configuration: the sizes are at the end. Knows
no benchmark, no recipe and no loss.

Ours, and not in the published system: several cameras, which go through one ViT together, side by
side; the robot's state, a token of the ViT and a part of the goal code (`use_state`);
`early_words`, for small networks: a few convolutions embed the patches, and the instruction scales
and shifts what they found before the ViT begins, so that "red" singles out what is red.
"""

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from armlet import limits
from armlet.data.text import load_tokenizer, marks
from armlet.layers.fusion import AttentionPool, FiLM, FusionLayer, Goal, GoalCode, Question
from armlet.layers.heads import HEADS, Kind
from armlet.layers.named import Named, state_layer
from armlet.layers.vision import ConvEncoder, on_grid, word_mean
from armlet.policies.contract import (
    Backbone,
    Body,
    Network,
    Pass,
    Student,
    check_cameras,
    sides_of,
    sizes_of,
    tuples,
)
from armlet.policies.cutting import weights_of, with_weights
from armlet.policies.tokens import TokenPolicy, TokenState
from armlet.robot.normalise import normalised
from armlet.types import Batch, Trace

if TYPE_CHECKING:  # slow to import, and of use only where a network is built
    from transformers import PreTrainedModel, RobertaConfig, ViTConfig


@dataclass(frozen=True)
class TwoTowerNetwork(Network):
    """Sizes of two towers that are as wide as each other; every MLP is four times as wide."""

    width: int = 96
    """Numbers a token has, in both towers."""
    heads: int = 4
    """Attention heads of a layer; they divide the width."""
    vision_layers: int = 4
    """Layers of the ViT."""
    text_layers: int = 2
    """Layers of the RoBERTa."""
    fusion_layers: int = 2
    """Layers in which pictures ask words."""
    patch: int = 12
    """Pixels of a patch, a side."""
    channels: int = 24
    """Channels of the first convolution of eyes that hear `early_words`."""
    text_tokens: int = 32
    """Tokens of the longest instruction."""
    chunk: int = 6
    """Actions decided at a time."""
    execute: int = 2
    """Actions of a chunk that are carried out before the policy looks again."""
    goal: int = 128
    """Numbers of the goal code."""
    prototypes: int = 16
    """How many sub-tasks the goal code is made of."""
    embedding: int = 64
    """The width in which pictures and words are compared while it learns."""
    use_state: bool = True
    """The robot's state is a token of the ViT and a part of the goal code."""
    early_words: bool = True
    """The instruction scales and shifts what a few convolutions find before the ViT begins."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """What images are normalised by, per channel: subtracted."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """The same: divided by."""
    dropout: float = 0.0
    """Of the text tower, in training."""
    attention: Literal["eager", "sdpa"] = "eager"
    """sdpa is slower among tens of tokens on a CPU."""
    checkpointing: bool = False
    """Compute activations again on the way back: less memory, more time."""
    head: Kind = "regression"
    """How actions are decided (armlet/layers/heads.py)."""
    head_options: dict[str, Any] = field(default_factory=dict)
    """More of the head, by the names of its arguments (armlet/layers/heads.py)."""
    vocabulary: int | None = None
    """Entries of the word table; none: as many as the tokenizer has."""
    hub_tokenizer: str | None = None
    """The RoBERTa BPE to use in place of the data's own, by its name on the hub."""
    pretrained_vision: str | None = None
    """Weights of exactly these sizes, on the hub or in a folder; looked at only where a network is
    built."""
    pretrained_text: str | None = None
    """The same for the text tower."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.early_words and self.pretrained_vision:
            raise ValueError(
                "early_words=True embeds patches in its own way, and pretrained_vision="
                f"{self.pretrained_vision!r} brings another; choose one: early_words=False, or "
                "pretrained_vision=None"
            )

    def build(self, body: Body, cameras: dict[str, int]) -> "TwoTower":
        if self.hub_tokenizer:
            body = replace(body, tokenizer=load_tokenizer(self.hub_tokenizer))
        return self.assemble(body, cameras)

    def assemble(
        self, body: Body, cameras: dict[str, int], *, teacher_width: int | None = None
    ) -> "TwoTower":
        """A policy that speaks the tokens of `body` and, given its teacher's width, can be compared
        with it while it learns."""
        policy = TwoTower(TwoTowerConfig(self, cameras, teacher_width), body)
        if self.pretrained_vision:
            _load_pretrained(policy.vision, "pretrained_vision", self.pretrained_vision)
        if self.pretrained_text:
            _load_pretrained(policy.words, "pretrained_text", self.pretrained_text)
        return policy

    def vit(self, size: int) -> "ViTConfig":
        from transformers import ViTConfig

        return ViTConfig(
            hidden_size=self.width,
            num_hidden_layers=self.vision_layers,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.width,
            image_size=size,
            patch_size=self.patch,
            initializer_range=self._spread,
            attn_implementation=self.attention,  # type: ignore[call-arg]
        )

    def roberta(self, tokenizer: Tokenizer) -> "RobertaConfig":
        from transformers import RobertaConfig

        return RobertaConfig(
            vocab_size=self.vocabulary or tokenizer.get_vocab_size(),
            hidden_size=self.width,
            num_hidden_layers=self.text_layers,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.width,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            # Two marks around the text; and positions begin at the padding's id + 1, which is 2.
            max_position_embeddings=self.text_tokens + 4,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            pad_token_id=(marks(tokenizer) or (0,))[0],
            initializer_range=self._spread,
            attn_implementation=self.attention,  # type: ignore[call-arg]
        )

    @property
    def _spread(self) -> float:
        """The deviation of fresh weights: BERT's and ViT's 0.02 at their width of 768, wider where
        a network is narrower."""
        return (3 * self.width) ** -0.5


@dataclass(frozen=True)
class TwoTowerConfig:
    """The sizes, and what depends on data and teacher: `cameras` name → side in pixels;
    `teacher_width` that of the hidden states with which its own are compared while it learns (None:
    with nobody's)."""

    network: TwoTowerNetwork
    cameras: dict[str, int]
    teacher_width: int | None = None

    def __post_init__(self) -> None:
        uneven = {name: size for name, size in self.cameras.items() if size % self.network.patch}
        if uneven:
            raise ValueError(
                f"patches of {self.network.patch} px do not divide images of {uneven} px; choose "
                "another `patch`"
            )
        if self.network.head not in HEADS:
            raise ValueError(
                f"there is no action head {self.network.head!r}; there are {', '.join(HEADS)}"
            )


class TwoTower(TokenPolicy):
    """See the module's docstring. `grids`: the side of each camera's grid of vision tokens, in the
    order of the tokens.

    `taught` holds what only training reads: projections of picture and words for a contrastive
    loss, and of hidden states to a teacher's width. They are the student's own, so that the loop
    that trains, saves and resumes it needs to know nothing of them; acting never runs them.

    Signals beside those of `Learner`: `attention.<i>` (b, n, t), to which words fusion layer i
    listens from each vision token, the mean of its heads, 0 on padding (RoBERTa's two marks, where
    it has them, are words too); `fused` (b, n, d), vision tokens after the last layer, and
    `projected` (b, n, e), the same at the teacher's width; `fused.<i>` and `projected.<i>`, after
    fusion layer i, through the one projection that there is; `image` and `text` (b, c), of length 1,
    neither of which has seen the other; `goal` (b, g) and `prototypes` (b, p), the goal code and
    its soft assignment; `logits`, where the head has them.
    """

    of_layers = ("hidden.", "attention.", "fused.", "projected.")

    def __init__(
        self, config: TwoTowerConfig, body: Body, *, kept_layers: tuple[int, ...] | None = None
    ) -> None:
        from transformers import RobertaModel, ViTModel

        super().__init__()
        network = config.network
        self.config = config
        self.network = network
        self.body = body
        self.cameras = config.cameras
        self.text_tokens = network.text_tokens
        self.execute = network.execute
        self.kept_layers = kept_layers
        self.grids = tuple(size // network.patch for size in config.cameras.values())
        self.vision_tokens = sum(side**2 for side in self.grids)
        self._marks = marks(body.tokenizer)  # (padding, start, end), where the tokenizer has them
        self.width = width = network.width
        size = max(config.cameras.values())  # others' positions are interpolated from its grid
        self.vision = ViTModel(network.vit(size), add_pooling_layer=False)
        self.words = RobertaModel(network.roberta(body.tokenizer), add_pooling_layer=False)
        self.camera = nn.Parameter(torch.zeros(len(config.cameras), width))  # which camera it is
        self.state = state_layer(len(body.state.offset), width) if network.use_state else None
        self.ask = Question(width, network.text_tokens) if network.early_words else None
        self.eyes = Named()
        if network.early_words:
            for name, side in config.cameras.items():
                self.eyes[name] = ConvEncoder(
                    side, width, stride=network.patch, channels=network.channels
                )
            # The eyes embed patches in its place, and what is never called must not be saved.
            self.vision.embeddings.patch_embeddings = nn.Identity()  # type: ignore[assignment]
        self.layers = nn.ModuleList()
        for _ in range(network.fusion_layers):
            self.layers.append(FusionLayer(width, network.heads))
        self.pool = AttentionPool(width, network.heads)
        read = 2 * width if network.use_state else width  # the summary, and the state's token
        self.goal = GoalCode(read, network.goal, network.prototypes)
        self.abstraction = FiLM(network.goal, width)
        self.norm = nn.LayerNorm(width)
        head = HEADS[network.head]
        options = head.fitted(normalised(body.action_spec, body.actions), network.head_options)
        self.head = head(width, network.chunk, body.action_spec.dims, **options)
        taught = {
            "image": nn.Linear(width, network.embedding),
            "text": nn.Linear(width, network.embedding),
        }
        if config.teacher_width is not None:
            taught["teacher"] = nn.Linear(width, config.teacher_width)
        self.taught = nn.ModuleDict(taught)
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", network.mean), ("std", network.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.vision.layers, *self.words.encoder.layer, *self.layers]

    def read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The words as RoBERTa understands them (b, t, d), and which are real (b, t)."""
        ids = batch.text
        real = batch.text_mask
        if self._marks:
            pad, start, end = self._marks
            ids = F.pad(ids.masked_fill(~real, pad), (1, 1), value=pad)  # (b, t) → (b, t + 2)
            # Padding stands behind the words, so two more that are real at the front are two more
            # in all.
            real = F.pad(real, (2, 0), value=True)
            ids[:, 0] = start
            # Behind the last word of each, and not in the last column, where the padding is.
            ids[torch.arange(len(ids), device=ids.device), real.sum(1) - 1] = end
        hidden = self.words.embeddings(ids)
        # As RoBERTa's layers take a mask: added to the scores, (b, 1, 1, t).
        lowest = torch.finfo(hidden.dtype).min
        mask = hidden.new_zeros(real.shape).masked_fill(~real, lowest)[:, None, None]
        for layer in self.words.encoder.layer:
            hidden = self._run(layer, hidden, mask)
        return hidden, real

    def see(self, batch: Batch, asked: Tensor | None = None) -> Tensor:
        """What the ViT makes of all cameras and the state: (b, n, d) in the order [patches, class
        token, state].

        `asked` (b, d) says what to look for, if words speak to the eyes.
        """
        embeddings = self.vision.embeddings
        scale = 0.5 / self.std
        parts = []
        asked = batch.state.new_zeros(len(batch), self.width) if asked is None else asked
        for index, name in enumerate(self.cameras):
            image = batch.images[name]  # (b, 3, h, w)
            if name in self.eyes:  # a ConvEncoder takes images around 0.5
                found = self.eyes[name](torch.addcmul(0.5 - self.mean * scale, image, scale), asked)
            else:
                found = embeddings.patch_embeddings((image - self.mean) / self.std)
            # ViT's first position is the class token's.
            places = on_grid(embeddings.position_embeddings[:, 1:], self.grids[index])
            parts.append(found + places + self.camera[index])  # (b, side², d)
        whole = embeddings.cls_token + embeddings.position_embeddings[:, :1]
        parts.append(whole.expand(len(batch), -1, -1))
        if self.state is not None:
            parts.append(self.state(batch.state).unsqueeze(1))
        hidden = torch.cat(parts, 1)
        for layer in self.vision.layers:
            hidden = self._run(layer, hidden)
        return self.vision.layernorm(hidden)

    def embed(self, batch: Batch) -> TokenState:
        words, real = self.read(batch)
        asked = None
        if self.ask:
            # Of the word table and not of RoBERTa's output: the eyes need not wait for the text
            # tower, and its marks are not among the words that an order is learned for.
            table = self.words.embeddings.word_embeddings(batch.text)
            asked = self.ask(table, batch.text_mask)
        seen = self.see(batch, asked)
        hidden = torch.cat([seen, words], 1)  # (b, n, d)
        mask = torch.cat([real.new_ones(seen.shape[:2]), real], 1)
        vision = torch.zeros_like(mask)
        text = torch.zeros_like(mask)
        vision[:, : self.vision_tokens] = True
        text[:, seen.shape[1] :] = real
        # The mask that a fusion layer takes, (b, 1, 1, t): over the words alone, which answer.
        return TokenState(hidden, mask, vision, text, real[:, None, None])

    @property
    def _asking(self) -> int:
        """How many tokens are no words: patches, the class token, the state."""
        return self.vision_tokens + 1 + self.network.use_state

    def run_layer(self, index: int, state: TokenState) -> TokenState:
        seen = state.hidden[:, : self._asking]
        words = state.hidden[:, self._asking :]
        seen = self._run(self.layers[index], seen, words, state.attention)
        return replace(state, hidden=torch.cat([seen, words], 1))

    def _run(self, layer: nn.Module, *inputs: Any) -> Tensor:
        # Elsewhere nothing is kept for a way back, and computing again would only take time.
        if self.network.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)

    def abstract(self, hidden: Tensor) -> tuple[Tensor, Goal]:
        """Hidden states → what was seen (b, d) and the goal read from it."""
        summary = self.pool(hidden[:, : self._asking])
        if not self.network.use_state:
            return summary, self.goal(summary)
        # The state's token is the last of those that ask.
        return summary, self.goal(torch.cat([summary, hidden[:, self._asking - 1]], -1))

    def condition(self, state: TokenState) -> Tensor:
        summary, goal = self.abstract(state.hidden)
        return self.norm(self.abstraction(summary, goal.code))

    def signals(self, names: Collection[str], batch: Batch, run: Pass[TokenState]) -> Trace:
        start = run.start
        hidden = run.state.hidden
        fused = hidden[:, : self.vision_tokens]
        # How each is made; only those that are asked for are.
        known: dict[str, Callable[[], Tensor]] = {
            "fused": lambda: fused,
            "image": lambda: self._image(batch, start),
            "text": lambda: self._text(start),
            "goal": lambda: self.abstract(hidden)[1].code,
            "prototypes": lambda: self.abstract(hidden)[1].assignment,
        }
        for index in range(len(self.layers)):
            known[f"attention.{index}"] = partial(self._map, index, run)
            known[f"fused.{index}"] = partial(self._fused, index, run)
        if "teacher" in self.taught:
            known["projected"] = lambda: self.taught["teacher"](fused)
            for index in range(len(self.layers)):
                known[f"projected.{index}"] = partial(self._projected, index, run)
        found = {name: known[name]() for name in names if name in known}
        return super().signals(names, batch, run) | found

    def _fused(self, index: int, run: Pass[TokenState]) -> Tensor:
        """(b, n, d): vision tokens after fusion layer `index`."""
        return run.states[index].hidden[:, : self.vision_tokens]

    def _projected(self, index: int, run: Pass[TokenState]) -> Tensor:
        """(b, n, e): the same at the teacher's width."""
        return self.taught["teacher"](self._fused(index, run))

    def _image(self, batch: Batch, start: TokenState) -> Tensor:
        """The picture alone, (b, c): where words speak to the eyes it is looked at again without,
        or they would tell."""
        seen = self.see(batch) if self.ask else start.hidden
        return self._unit("image", seen[:, : self.vision_tokens].mean(1))

    def _text(self, start: TokenState) -> Tensor:
        """The words alone, (b, c), before they meet the picture."""
        words = start.hidden[:, self._asking :]
        return self._unit("text", word_mean(words, start.text[:, self._asking :]))

    def _unit(self, kind: str, feature: Tensor) -> Tensor:
        return F.normalize(self.taught[kind](feature).float(), dim=-1)

    def _map(self, index: int, run: Pass[TokenState]) -> Tensor:
        """(b, n, t): from each vision token, how much fusion layer `index` listens to each word."""
        before = run.states[index - 1] if index else run.start  # what went into layer `index`
        layer = self.layers[index]
        assert isinstance(layer, FusionLayer) and before.attention is not None  # made so here
        hidden = before.hidden
        return layer.weights(
            hidden[:, : self.vision_tokens], hidden[:, self._asking :], before.attention
        )

    def keep_layers(self, kept: tuple[int, ...]) -> "TwoTower":
        weights = weights_of(self, kept)
        network = replace(self.network, fusion_layers=len(kept))
        config = replace(self.config, network=network)
        student = TwoTower(config, self.body, kept_layers=tuple(kept))
        return with_weights(student, weights, self.device)

    def to_json(self) -> dict[str, Any]:
        """Everything but the weights and the tokenizer."""
        config = {**asdict(self.config), "kept_layers": self.kept_layers}
        return {"type": "two_tower", "config": config, **self.body.to_json()}


def from_json(description: dict[str, Any], tokenizer: Tokenizer) -> TwoTower:
    """The network that `to_json` described, with fresh weights."""
    config = dict(description["config"])
    config["network"] = sizes_of(TwoTowerNetwork, config["network"])
    kept = tuples({"kept": config.pop("kept_layers")})["kept"]
    body = Body.from_json(description, tokenizer)
    check_cameras(config["cameras"])
    made = TwoTowerConfig(**config)
    limits.typed(made)
    return TwoTower(made, body, kept_layers=kept)


@dataclass(frozen=True)
class TwoTowerStudent(Student):
    """Two towers of other sizes than the teacher's, made afresh: the same robot, words, cameras and
    chunk, so that both answer the same batch. Here the teacher's width is known, and with it the
    projection in which hidden states are compared."""

    needs_teacher: ClassVar[bool] = False
    own_eyes: ClassVar[bool] = True
    network: TwoTowerNetwork
    """Its sizes."""

    def build(self, teacher: Backbone, sample: Batch | None = None) -> Backbone:
        if sample is None:
            raise ValueError(
                "TwoTowerStudent sees through the data's cameras; pass build() a sample batch"
            )
        for name, wanted in (("chunk", teacher.chunk), ("text_tokens", teacher.text_tokens)):
            found = getattr(self.network, name)
            if found != wanted:
                raise ValueError(
                    f"{name} is {found} in the student and {wanted} in its teacher; both answer "
                    "one batch: make them equal"
                )
        return self.network.assemble(teacher.body, sides_of(sample), teacher_width=teacher.width)


def _load_pretrained(tower: "PreTrainedModel", what: str, name: str) -> None:
    """Copy published weights into a tower. Raises ValueError where they cannot be had or have other
    sizes."""
    try:
        weights = type(tower).from_pretrained(name, add_pooling_layer=False).state_dict()
    except OSError as error:
        raise ValueError(
            f"{what}={name!r} cannot be had from the Hugging Face hub here. On a machine that "
            "reaches it build the network once, and its files are cached; or name a local folder; "
            f"or start from nothing: {what}=None"
        ) from error
    try:
        tower.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{what}={name!r} has other sizes than this network, or images are not of its size: "
            f"{error}"
        ) from error


def small_student() -> TwoTowerNetwork:
    """About 1 M parameters; tabletop's two cameras (72 and 48 px) make 52 vision tokens."""
    return TwoTowerNetwork(vision_layers=3)


def small_teacher() -> TwoTowerNetwork:
    """Twice as wide, and a layer more: about 4 M parameters."""
    return TwoTowerNetwork(width=192, heads=6)


def student_base() -> TwoTowerNetwork:
    """The published student: ViT-B/16 ‖ RoBERTa-base for one camera of 224 px, about 225 M
    parameters. One action a frame."""
    return TwoTowerNetwork(
        width=768,
        heads=12,
        vision_layers=12,
        text_layers=12,
        patch=16,
        text_tokens=510,  # 514 positions, as published, with the marks and the offset
        chunk=1,
        execute=1,
        embedding=256,
        use_state=False,
        early_words=False,
        dropout=0.1,
        attention="sdpa",
        checkpointing=True,
        vocabulary=50265,  # RoBERTa's table has this many rows
        hub_tokenizer="FacebookAI/roberta-base",
        pretrained_vision="google/vit-base-patch16-224-in21k",
        pretrained_text="FacebookAI/roberta-base",
    )


def teacher_large() -> TwoTowerNetwork:
    """The published teacher: ViT-L/14 ‖ RoBERTa-large, about 0.68 B parameters, told in the
    student's BPE.

    Its eyes start from nothing: no ViT-L/14 of this architecture is known on the hub (CLIP's and
    DINOv2's are others). With `patch=16` there is google/vit-large-patch16-224-in21k.
    """
    return replace(
        student_base(),
        width=1024,
        heads=16,
        vision_layers=24,
        text_layers=24,
        patch=14,
        pretrained_vision=None,
        pretrained_text="FacebookAI/roberta-large",
    )
