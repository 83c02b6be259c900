"""The network of ACT (Action Chunking with Transformers, arXiv 2304.13705), as LeRobot builds it.

A ResNet's last map of each camera, a token a pixel, beside tokens of a latent and of the robot's
numbers; an encoder over them; a decoder with a query for each action of the chunk. A second encoder
reads, while it is trained only, the actions themselves and says the latent that explains them (a
variational autoencoder); when it acts the latent is 0.

Its layers are the encoder's. The decoder reads what the last of them leaves, in `decode`.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from armlet.layers.action_head import masked_mean
from armlet.layers.detr import DecoderLayer, EncoderLayer, line_positions, map_positions
from armlet.layers.draws import normal_like
from armlet.layers.resnet import ResNet
from armlet.policies.contract import Body, Features, Pass, State, tuples
from armlet.policies.cutting import weights_of, with_weights
from armlet.policies.pretrained import lerobot_body
from armlet.policies.pretrained.lerobot_body import Wordless
from armlet.robot.ensemble import Ensemble, Exponential
from armlet.robot.normalise import Normaliser
from armlet.types import Batch, Trace


@dataclass(frozen=True)
class Sizes:
    """Sizes and options of an ACT. `state` and `environment`: numbers of each in the state, in this
    order. `ensemble`: the coefficient by which overlapping chunks are weighed; None: they are
    not."""

    backbone: str
    backbone_width: int
    dilated: bool
    width: int
    heads: int
    feedforward: int
    activation: str
    pre_norm: bool
    encoder_layers: int
    decoder_layers: int
    vae: bool
    latent: int
    vae_layers: int
    dropout: float
    kl_weight: float
    chunk: int
    execute: int
    state: int
    environment: int
    ensemble: float | None = None


@dataclass(frozen=True)
class ActState(State):
    """`hidden` (b, n, d): tokens [latent, state, environment, pixels …]; `positions` (b, n, d),
    which every layer adds to queries and keys; `vision` (b, n) bool."""

    changing: ClassVar[tuple[str, ...]] = ("hidden",)

    hidden: Tensor
    positions: Tensor
    vision: Tensor


class _Layers(nn.Module):
    """Encoder or decoder layers in a row."""

    def __init__(self, layers: list[nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm


class ACT(Wordless[ActState]):
    """See the module's docstring. Signals: `condition` (b, d), the mean of what the decoder
    reads."""

    def __init__(
        self,
        sizes: Sizes,
        cameras: dict[str, tuple[int, int]],
        pictures: dict[str, Normaliser],
        body: Body,
        *,
        kept_layers: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(sizes, cameras, pictures, body, kept_layers)
        self.sizes = sizes
        self.width = width = sizes.width
        self.condition_width = width
        self.chunk = sizes.chunk
        self.layers = nn.ModuleList(self._encoder(sizes.encoder_layers))
        self.encoder_norm = self._last_norm()
        if cameras:
            self.vision = ResNet(
                sizes.backbone, width=sizes.backbone_width, norm="frozen", dilated=sizes.dilated
            )
            self.encoder_img_feat_input_proj = nn.Conv2d(self.vision.channels, width, 1)
            for height, breadth in cameras.values():
                rows, columns = self.vision.grid(height, breadth)
                self.vision_tokens += rows * columns
        self.encoder_latent_input_proj = nn.Linear(sizes.latent, width)
        if sizes.state:
            self.encoder_robot_state_input_proj = nn.Linear(sizes.state, width)
        if sizes.environment:
            self.encoder_env_state_input_proj = nn.Linear(sizes.environment, width)
        self.encoder_1d_feature_pos_embed = nn.Embedding(self.singles, width)
        if sizes.vae:
            self._build_vae()
        decoder: list[nn.Module] = []
        for _ in range(sizes.decoder_layers):
            decoder.append(DecoderLayer(width, sizes.heads, sizes.feedforward, **self._options))
        self.decoder = _Layers(decoder, nn.LayerNorm(width))
        self.decoder_pos_embed = nn.Embedding(sizes.chunk, width)
        self.action_head = nn.Linear(width, self.dims)

    def _build_vae(self) -> None:
        """What reads the actions while it is trained."""
        sizes = self.sizes
        width = sizes.width
        self.vae_encoder = _Layers(self._encoder(sizes.vae_layers), self._last_norm())
        self.vae_encoder_cls_embed = nn.Embedding(1, width)
        if sizes.state:
            self.vae_encoder_robot_state_input_proj = nn.Linear(sizes.state, width)
        self.vae_encoder_action_input_proj = nn.Linear(self.dims, width)
        self.vae_encoder_latent_output_proj = nn.Linear(width, 2 * sizes.latent)
        # The class, the state, the actions. Checkpoints hold it, so it stays in the weights.
        read = 1 + bool(sizes.state) + sizes.chunk
        self.register_buffer("vae_encoder_pos_enc", line_positions(read, width)[None])

    @property
    def _options(self) -> dict[str, Any]:
        """Of every transformer layer."""
        sizes = self.sizes
        return {
            "pre_norm": sizes.pre_norm,
            "activation": sizes.activation,
            "dropout": sizes.dropout,
        }

    def _encoder(self, depth: int) -> list[nn.Module]:
        sizes = self.sizes
        made: list[nn.Module] = []
        for _ in range(depth):
            made.append(EncoderLayer(sizes.width, sizes.heads, sizes.feedforward, **self._options))
        return made

    def _last_norm(self) -> nn.Module:
        return nn.LayerNorm(self.sizes.width) if self.sizes.pre_norm else nn.Identity()

    @property
    def ensemble(self) -> Ensemble | None:  # type: ignore[override]
        coefficient = self.sizes.ensemble
        return None if coefficient is None else Exponential(coefficient)

    @property
    def dtype(self) -> torch.dtype:
        """In which its weights are."""
        return self.action_head.weight.dtype

    def see(self, batch: Batch) -> list[Tensor]:
        """The pictures (b, 3, h, w) of each camera as the network reads them."""
        found = []
        for number, name in enumerate(self.seen):
            # In the layout that LeRobot's pictures have: with another, convolutions round otherwise.
            image = batch.images[name].contiguous()
            seen = lerobot_body.normalised(image, self.statistics[number])
            found.append(seen.to(self.dtype))
        return found

    @property
    def singles(self) -> int:
        """Tokens beside those of pictures."""
        return 1 + bool(self.sizes.state) + bool(self.sizes.environment)

    def embed(self, batch: Batch) -> ActState:
        # The latent of one who acts, 0: what remains of its map is the bias.
        state = batch.state.to(self.dtype)
        latent = state.new_zeros(len(batch), self.sizes.latent)
        singles = [self.encoder_latent_input_proj(latent)]
        robot, environment = state.split([self.sizes.state, self.sizes.environment], -1)
        if self.sizes.state:
            singles.append(self.encoder_robot_state_input_proj(robot))
        if self.sizes.environment:
            singles.append(self.encoder_env_state_input_proj(environment))
        tokens = [torch.stack(singles, 1)]
        positions = [self.encoder_1d_feature_pos_embed.weight]
        for image in self.see(batch):
            features = self.vision(image)
            rows, columns = features.shape[-2:]
            tokens.append(self.encoder_img_feat_input_proj(features).flatten(2).transpose(1, 2))
            positions.append(map_positions(rows, columns, self.width, image.device))
        hidden = torch.cat(tokens, 1)
        vision = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        vision[:, : len(singles)] = False
        where = torch.cat(positions).to(hidden.dtype).expand(hidden.shape)
        return ActState(hidden, where, vision)

    def run_layer(self, index: int, state: ActState) -> ActState:
        return replace(state, hidden=self.layers[index](state.hidden, state.positions))

    def features(self, state: ActState) -> Features:
        every = torch.ones_like(state.vision)
        return Features(state.hidden, every, state.vision, torch.zeros_like(every))

    def decode(self, run: Pass[ActState], batch: Batch) -> Tensor:
        return self._decided(run.state)

    def _decided(self, state: ActState) -> Tensor:
        """(b, k, a)"""
        memory = self.encoder_norm(state.hidden)
        queries = self.decoder_pos_embed.weight
        x = memory.new_zeros(len(memory), self.chunk, self.width)
        for layer in self.decoder.layers:
            x = layer(x, queries, memory, state.positions)
        decided: Tensor = self.action_head(self.decoder.norm(x))
        return decided.float()

    def signals(self, names: Collection[str], batch: Batch, run: Pass[ActState]) -> Trace:
        if "condition" not in names:
            return {}
        told = run.once("condition", lambda: self.encoder_norm(run.state.hidden).mean(1).float())
        return {"condition": told}

    def loss(self, run: Pass[ActState], batch: Batch) -> Tensor:
        error, divergence = self.losses(run, batch)
        return error + self.sizes.kl_weight * divergence

    def losses(
        self, run: Pass[ActState], batch: Batch, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(b,) each: the L1 error of the actions that are valid, and how far the latent is from
        standard noise, 0 without one. `noise` (b, latent) is what the latent is drawn with; None:
        drawn anew, and none at rest."""
        actions, valid = batch.targets()
        if not self.sizes.vae:
            divergence = actions.new_zeros(len(actions))
            return masked_mean((self.decode(run, batch) - actions).abs(), valid.float()), divergence
        mean, spread = self.explain(batch)
        if noise is None:
            noise = normal_like(mean) if self.training else torch.zeros_like(mean)
        told = self._told(run, mean + (spread / 2).exp() * noise)
        error = masked_mean((self._decided(told) - actions).abs(), valid.float())
        divergence = -0.5 * (1 + spread - mean.square() - spread.exp()).sum(-1)
        return error, divergence

    def explain(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the actions of a batch say of the latent: its mean and the logarithm of its variance,
        (b, latent) each."""
        actions, valid = batch.targets()
        tokens = [self.vae_encoder_cls_embed.weight.expand(len(actions), 1, -1)]
        if self.sizes.state:
            robot = batch.state[:, : self.sizes.state].to(self.dtype)
            tokens.append(self.vae_encoder_robot_state_input_proj(robot).unsqueeze(1))
        known = valid.new_ones(len(actions), len(tokens))
        tokens.append(self.vae_encoder_action_input_proj(actions.to(self.dtype)))
        padded = ~torch.cat([known, valid], 1)
        x = torch.cat(tokens, 1)
        for layer in self.vae_encoder.layers:
            x = layer(x, self.vae_encoder_pos_enc, padded)
        said = self.vae_encoder_latent_output_proj(self.vae_encoder.norm(x)[:, 0])
        mean, spread = said.float().chunk(2, -1)
        return mean, spread

    def _told(self, run: Pass[ActState], latent: Tensor) -> ActState:
        """The last state of a pass that is told a latent, through the layers that the pass ran."""
        first = self.encoder_latent_input_proj(latent.to(self.dtype)).unsqueeze(1)
        state = replace(run.start, hidden=torch.cat([first, run.start.hidden[:, 1:]], 1))
        for index in range(len(self.layers)):
            if run.skips(index):
                continue
            ran = self.run_layer(index, state)
            state = replace(state, hidden=run.gated(index, state.hidden, ran.hidden))
        return state

    def keep_layers(self, kept: tuple[int, ...]) -> "ACT":
        weights = weights_of(self, kept)
        sizes = replace(self.sizes, encoder_layers=len(kept))
        numbers = tuple(self.layer_numbers[index] for index in kept)
        student = ACT(sizes, self.seen, self.pictures, self.body, kept_layers=numbers)
        return with_weights(student, weights, self.device)

    def to_json(self) -> dict[str, Any]:
        network = {
            **asdict(self.sizes),
            "cameras": {name: list(size) for name, size in self.seen.items()},
            "pictures": lerobot_body.as_json(self.pictures),
            "kept_layers": self.kept_layers,
        }
        return {"type": "pretrained.act", "network": network, **self.body.to_json()}


def build(description: dict[str, Any], body: Body) -> ACT:
    """The network that `to_json` described, with fresh weights."""
    network = dict(description["network"])
    cameras = {name: tuple(size) for name, size in network.pop("cameras").items()}
    pictures = lerobot_body.from_json(network.pop("pictures"))
    kept = network.pop("kept_layers", None)
    sizes = Sizes(**tuples(network))
    return ACT(sizes, cameras, pictures, body, kept_layers=tuple(kept) if kept else None)
