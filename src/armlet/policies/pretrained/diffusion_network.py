"""The network of Diffusion Policy (arXiv 2303.04137), as LeRobot builds it.

What is seen at the last moments, pictures as keypoints, becomes one vector, the condition; a U-Net
over time, which is told it, carries noise to actions in many steps, each a pass.

Its layers are the blocks of the U-Net that keep their shape: the second of each level down, the two
in the middle, the second of each level up. What stands between them, which changes widths and
lengths, belongs to the layer that follows and runs whether that does or not (`skip_layer`). A pass
(`run_layers`) is the first denoising step from the noise that the policy always starts with; `decode`
goes on from there with the steps that follow, in which the same layers run as in the first.

The horizon of actions begins at the first of the moments that are looked at; what is decided begins
at the present one.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armlet.layers.action_head import masked_mean
from armlet.layers.draws import by_sample, normal_like, shared
from armlet.layers.frozen import RestsWhenFrozen
from armlet.layers.resnet import Norm, ResNet
from armlet.layers.schedule import Schedule
from armlet.layers.unet import ConvBlock, SpatialSoftmax, StepEncoder, ToldBlock
from armlet.policies.contract import Body, Features, Loop, Pass, State, tuples
from armlet.policies.cutting import weights_of, with_weights
from armlet.policies.pretrained import lerobot_body
from armlet.policies.pretrained.lerobot_body import Wordless
from armlet.robot.normalise import Normaliser
from armlet.types import Batch, Trace

MIDDLE = 2  # blocks between the way down and the way up
LAST_GROUPS = 8  # of the last convolution's normalisation, whatever the config says of the others


@dataclass(frozen=True)
class Sizes:
    """Sizes and options. `resize` and `crop`, (height, width) in pixels, are done to pictures in
    this order; `crops_at_random` while it is trained. `state` and `environment`: numbers of each in
    the state, in this order. `masks`: actions past an episode's end do not count in the loss."""

    backbone: str
    backbone_width: int
    group_norm: bool
    keypoints: int
    separate: bool
    resize: tuple[int, int] | None
    crop: tuple[int, int] | None
    crops_at_random: bool
    moments: int
    horizon: int
    execute: int
    widths: tuple[int, ...]
    kernel: int
    groups: int
    step_width: int
    scales: bool
    masks: bool
    state: int
    environment: int

    @property
    def features(self) -> int:
        """Numbers that a picture becomes."""
        return 2 * self.keypoints


@dataclass(frozen=True)
class UNetState(State):
    """`hidden` (b, c, t): what the last layer left, and before the first the noise; `across`: what
    was left on the way down for the way up; `condition` (b, c), all that is seen; `told` (b, ·), the
    level of noise and the condition."""

    changing: ClassVar[tuple[str, ...]] = ("hidden", "across")

    hidden: Tensor
    condition: Tensor
    told: Tensor
    across: tuple[Tensor, ...] = ()


class Level(nn.Module):
    """What stands around a layer: `enter` changes the width before it, `leave` the length behind
    it."""

    def __init__(self, enter: nn.Module, leave: nn.Module) -> None:
        super().__init__()
        self.enter = enter
        self.leave = leave


def _level(levels: nn.ModuleList, index: int) -> Level:
    found = levels[index]
    assert isinstance(found, Level)  # for the checker of types
    return found


class Eye(RestsWhenFrozen):
    """Pictures (n, 3, h, w) → (n, features)."""

    def __init__(self, sizes: Sizes, size: tuple[int, int]) -> None:
        super().__init__()
        self.sizes = sizes
        norm: Norm = "group" if sizes.group_norm else "batch"
        self.backbone = ResNet(sizes.backbone, width=sizes.backbone_width, norm=norm)
        height, width = sizes.crop or sizes.resize or size
        grid = self.backbone.grid(height, width)
        self.pool = SpatialSoftmax(self.backbone.channels, sizes.keypoints, *grid)
        self.out = nn.Linear(sizes.features, sizes.features)

    def forward(self, image: Tensor) -> Tensor:
        keypoints = self.pool(self.backbone(self.cropped(image)))
        return F.relu(self.out(keypoints.flatten(1)))

    def cropped(self, image: Tensor) -> Tensor:
        if self.sizes.resize is not None:
            image = F.interpolate(
                image, self.sizes.resize, mode="bilinear", align_corners=False, antialias=True
            )
        if self.sizes.crop is None:
            return image
        height, width = self.sizes.crop
        room = image.shape[-2] - height, image.shape[-1] - width
        if min(room) < 0:
            raise ValueError(
                f"pictures of {tuple(image.shape[-2:])} pixels are cropped to {self.sizes.crop}; "
                "are they of another camera?"
            )
        if self.training and self.sizes.crops_at_random:
            # One place for all pictures of a batch, as in LeRobot.
            top, left = (int(shared(partial(torch.randint, each + 1, ()))) for each in room)
        else:
            top, left = round(room[0] / 2), round(room[1] / 2)
        return image[..., top : top + height, left : left + width]


class DiffusionPolicy(Wordless[UNetState]):
    """See the module's docstring. Signals: `condition` (b, d), the mean over the horizon of what the first step
    of denoising leaves."""

    noise: Tensor
    step_noise: Tensor

    def __init__(
        self,
        sizes: Sizes,
        schedule: Schedule,
        cameras: dict[str, tuple[int, int]],
        pictures: dict[str, Normaliser],
        body: Body,
        *,
        seed: int = 0,
        kept_layers: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(sizes, cameras, pictures, body, kept_layers)
        self.sizes = sizes
        self.schedule = schedule
        self.seed = seed
        self.history = sizes.moments
        self.chunk = sizes.horizon - sizes.moments + 1
        self.width = max(*sizes.widths, sizes.features)
        self.vision_tokens = sizes.moments * len(cameras)
        moment = sizes.state + sizes.environment + sizes.features * len(cameras)
        self.seen_width: int = sizes.moments * moment  # of all that is seen
        self.condition_width: int = self.width
        self._draw(seed)
        eyes = 0
        if cameras:
            eyes = len(cameras) if sizes.separate else 1
        self.vision = nn.ModuleList()
        for _ in range(eyes):
            self.vision.append(Eye(sizes, next(iter(cameras.values()))))
        self._build_unet()

    def _draw(self, seed: int) -> None:
        """The noise that every decision starts from, and that of the steps: the same for all."""
        # A generator of its own, on the CPU: how a policy answers must not hang on what was drawn
        # before it was made, nor on the device. No file holds it.
        generator = torch.Generator().manual_seed(seed)
        shape = (self.sizes.horizon, self.dims)
        noise = torch.randn(1, *shape, generator=generator)
        steps = torch.randn(self.schedule.steps - 1, 1, *shape, generator=generator)
        self.register_buffer("noise", noise, persistent=False)
        self.register_buffer("step_noise", steps, persistent=False)

    def _build_unet(self) -> None:
        sizes = self.sizes
        step = sizes.step_width
        self.step_encoder = StepEncoder(step)
        told = step + self.seen_width

        def block(enters: int, leaves: int) -> ToldBlock:
            return ToldBlock(
                enters, leaves, told, kernel=sizes.kernel, groups=sizes.groups, scales=sizes.scales
            )

        widths = sizes.widths
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        blocks = []
        for index, (enters, width) in enumerate(zip((self.dims, *widths), widths, strict=False)):
            last = index == len(widths) - 1
            leave = nn.Identity() if last else nn.Conv1d(width, width, 3, 2, 1)
            self.down.append(Level(block(enters, width), leave))
            blocks.append(block(width, width))
        for _ in range(MIDDLE):
            blocks.append(block(widths[-1], widths[-1]))
        for index in reversed(range(len(widths) - 1)):
            width = widths[index]
            rise = nn.ConvTranspose1d(width, width, 4, 2, 1)
            self.up.append(Level(block(2 * widths[index + 1], width), rise))
            blocks.append(block(width, width))
        self.final_conv = nn.Sequential(
            ConvBlock(widths[0], widths[0], sizes.kernel, LAST_GROUPS),
            nn.Conv1d(widths[0], self.dims, 1),
        )
        numbers = self.kept_layers or range(len(blocks))
        self.places = tuple(numbers)  # of each layer, among all blocks that keep their shape
        self.ends = len(blocks)
        self.layers = nn.ModuleList(blocks[number] for number in numbers)

    @property
    def loop(self) -> Loop:
        return Loop("denoising step", len(self.schedule.timesteps))

    @property
    def dtype(self) -> torch.dtype:
        """In which its weights are."""
        return self.final_conv[1].weight.dtype  # type: ignore[return-value]

    def see(self, batch: Batch) -> list[Tensor]:
        """The pictures (b, o, 3, h, w) of each camera as the network reads them, before they are
        resized and cropped."""
        found = []
        for number, name in enumerate(self.seen):
            image = batch.images[name].contiguous()
            if self.history == 1:
                image = image.unsqueeze(1)
            seen = lerobot_body.normalised(image, self.statistics[number])
            found.append(seen.to(self.dtype))
        return found

    def observe(self, batch: Batch) -> Tensor:
        """The condition (b, o · moment): of each moment, the oldest first, the state, what each
        camera's picture became, and the environment's state."""
        state = batch.state if self.history > 1 else batch.state.unsqueeze(1)
        state = state.to(self.dtype)
        robot, environment = state.split([self.sizes.state, self.sizes.environment], -1)
        images = self.see(batch)
        seen = []
        if images and self.sizes.separate:
            for eye, image in zip(self.vision, images, strict=True):
                seen.append(eye(image.flatten(0, 1)).unflatten(0, image.shape[:2]))
        elif images:
            # As one batch, so that one place is cropped for all: (b, o, cameras, 3, h, w).
            together = torch.stack(images, 2)
            features = self.vision[0](together.flatten(0, 2))
            seen.append(features.unflatten(0, together.shape[:3]).flatten(2))
        return torch.cat([robot, *seen, environment], -1).flatten(1)

    def embed(self, batch: Batch) -> UNetState:
        condition = self.observe(batch)
        noise = self.noise.expand(len(batch), -1, -1)
        return self._noisy(condition, noise, self.schedule.timesteps[0])

    def _noisy(self, condition: Tensor, actions: Tensor, level: int | Tensor) -> UNetState:
        """What enters the U-Net: actions (b, horizon, a) at a level of noise, or one each (b,)."""
        if isinstance(level, int):
            # One row for all, so that a batch is told the same as one alone, to the bit.
            levels = torch.full((1,), level, device=condition.device)
        else:
            levels = level
        step = self.step_encoder(levels).expand(len(condition), -1)
        told = torch.cat([step, condition], -1)
        return UNetState(actions.to(self.dtype).transpose(1, 2), condition, told)

    def run_layer(self, index: int, state: UNetState) -> UNetState:
        state = self.skip_layer(index, state)
        return replace(state, hidden=self.layers[index](state.hidden, state.told))

    def skip_layer(self, index: int, state: UNetState) -> UNetState:
        first = self.places[index - 1] + 1 if index else 0
        for place in range(first, self.places[index] + 1):
            state = self._lead(place, state)
        return state

    def _lead(self, place: int, state: UNetState) -> UNetState:
        """What stands between the block before number `place` and that block."""
        hidden = state.hidden
        across = state.across
        levels = len(self.down)
        if place < levels:
            if place:
                # Of the first level nothing is left for the way up, which ends before it.
                across = (*across, hidden) if place > 1 else across
                hidden = _level(self.down, place - 1).leave(hidden)
            hidden = _level(self.down, place).enter(hidden, state.told)
        elif place == levels:
            across = (*across, hidden) if levels > 1 else across
        elif place >= levels + MIDDLE:
            rise = place - levels - MIDDLE
            if rise:
                hidden = _level(self.up, rise - 1).leave(hidden)
            hidden = torch.cat([hidden, across[-1 - rise]], 1)
            hidden = _level(self.up, rise).enter(hidden, state.told)
        return replace(state, hidden=hidden, across=across)

    def predict(self, condition: Tensor) -> Tensor:
        """What all its layers say in the first step, (b, horizon, a), of one who sees `condition`
        (b, c)."""
        noise = self.noise.expand(len(condition), -1, -1)
        state = self._noisy(condition, noise, self.schedule.timesteps[0])
        for index in range(len(self.layers)):
            state = self.run_layer(index, state)
        return self._leave(state)

    def _leave(self, state: UNetState) -> Tensor:
        """What the U-Net says at the end, (b, horizon, a)."""
        for place in range(self.places[-1] + 1, self.ends):
            state = self._lead(place, state)
        hidden = state.hidden
        if self.up:
            hidden = _level(self.up, -1).leave(hidden)
        said: Tensor = self.final_conv(hidden).transpose(1, 2)
        return said.float()

    def _again(self, run: Pass[UNetState], actions: Tensor, level: int | Tensor) -> Tensor:
        """What the U-Net says of other actions and levels, by the layers that ran in a pass."""
        state = self._noisy(run.start.condition, actions, level)
        for index, layer in enumerate(self.layers):
            state = self.skip_layer(index, state)
            if run.skips(index):
                continue
            ran = layer(state.hidden, state.told)
            state = replace(state, hidden=run.gated(index, state.hidden, ran))
        return self._leave(state)

    def decode(self, run: Pass[UNetState], batch: Batch) -> Tensor:
        return self.denoise(run)[:, self.history - 1 :]

    def denoise(self, run: Pass[UNetState]) -> Tensor:
        """(b, horizon, a): the whole horizon, from the noise that the pass began with."""
        actions = self.noise.expand(len(run.start.hidden), -1, -1)
        said = self._leave(run.state)
        for index, level in enumerate(self.schedule.timesteps):
            if index:
                said = self._again(run, actions, level)
            noise = self.step_noise[index] if index < len(self.step_noise) else None
            actions = self.schedule.step(said, index, actions, noise)
        return actions

    def loss(self, run: Pass[UNetState], batch: Batch) -> Tensor:
        actions, valid = self.horizon(batch)
        count = len(actions)
        if self.training:
            noise = normal_like(actions)
            most = self.schedule.train_steps
            device = actions.device
            levels = by_sample(
                lambda samples: torch.randint(most, (samples,), device=device), count
            )
        else:
            # Watched, it says the same of the same: with its own noise, half of it.
            noise = self.noise.expand(actions.shape)
            half = self.schedule.train_steps // 2
            levels = torch.full((count,), half, device=actions.device)
        error = self.errors(run, actions, noise, levels)
        # Where its config does not mask them, actions past the end count: the last one, repeated.
        counted = valid if self.sizes.masks else torch.ones_like(valid)
        return masked_mean(error, counted.float())

    def errors(
        self, run: Pass[UNetState], actions: Tensor, noise: Tensor, levels: Tensor
    ) -> Tensor:
        """(b, horizon, a): the squared error of what the network says of actions (b, horizon, a) at
        levels (b,) of noise."""
        said = self._again(run, self.schedule.noisy(actions, noise, levels), levels)
        return (said - self.schedule.target(actions, noise)).square()

    def horizon(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The actions (b, horizon, a) from the first moment that is looked at on, and which of them
        the episode has (b, horizon); past its end its last one is repeated."""
        actions, valid = batch.targets()
        last = (valid.sum(1) - 1).clamp(min=0)[:, None, None].expand(-1, 1, self.dims)
        actions = torch.where(valid[..., None], actions, actions.gather(1, last))
        if self.history == 1:
            return actions, valid
        if batch.earlier_actions is None or batch.earlier_valid is None:
            raise ValueError(
                "this batch lacks the actions of the moments before, which this policy's loss "
                "reads; it was made for a policy that looks at one moment"
            )
        together = torch.cat([batch.earlier_actions, actions], 1)
        return together, torch.cat([batch.earlier_valid, valid], 1)

    def features(self, state: UNetState) -> Features:
        """A token for each picture of each moment, and one for each step of the horizon: a block's
        channels, filled up with zeros, the same for all steps that it sees as one."""
        sizes = self.sizes
        hidden = state.hidden
        stretched = hidden.repeat_interleave(sizes.horizon // hidden.shape[-1], -1)
        steps = stretched.transpose(1, 2)
        moments = state.condition.unflatten(1, (sizes.moments, -1))  # (b, o, moment)
        seen = moments[..., sizes.state : moments.shape[-1] - sizes.environment]
        eyes = seen.reshape(len(hidden), -1, sizes.features)
        tokens = [F.pad(each, (0, self.width - each.shape[-1])) for each in (eyes, steps)]
        together = torch.cat(tokens, 1)
        every = torch.ones(together.shape[:2], dtype=torch.bool, device=together.device)
        vision = every.clone()
        vision[:, self.vision_tokens :] = False
        return Features(together, every, vision, torch.zeros_like(every))

    def signals(self, names: Collection[str], batch: Batch, run: Pass[UNetState]) -> Trace:
        if "condition" not in names:
            return {}
        # What the blocks make of the first step, and not what they are told: that is the same
        # whatever runs, and taught to no layer.
        steps = self.features(run.state).hidden[:, self.vision_tokens :]  # (b, n, d)
        return {"condition": steps.float().mean(1)}

    def layer_costs(self) -> Tensor:
        """(l,): multiplications; a convolution's are its weights' as often as time has steps."""
        levels = len(self.sizes.widths)
        costs = []
        for layer, place in zip(self.layers, self.places, strict=True):
            # Down each level halves the length of time, up each doubles it.
            depth = min(place, levels - 1)
            if place >= levels + MIDDLE:
                depth = levels - 1 - (place - levels - MIDDLE)
            steps = self.sizes.horizon // 2**depth
            cost = 0
            for name, parameter in layer.named_parameters():
                cost += parameter.numel() * (1 if name.startswith("cond_encoder") else steps)
            costs.append(cost)
        return torch.tensor(costs, dtype=torch.float32)

    def keep_layers(self, kept: tuple[int, ...]) -> "DiffusionPolicy":
        weights = weights_of(self, kept)
        numbers = tuple(self.places[index] for index in kept)
        student = DiffusionPolicy(
            self.sizes,
            self.schedule,
            self.seen,
            self.pictures,
            self.body,
            seed=self.seed,
            kept_layers=numbers,
        )
        return with_weights(student, weights, self.device)

    def to_json(self) -> dict[str, Any]:
        network = {
            **asdict(self.sizes),
            "schedule": asdict(self.schedule),
            "seed": self.seed,
            "cameras": {name: list(size) for name, size in self.seen.items()},
            "pictures": lerobot_body.as_json(self.pictures),
            "kept_layers": self.kept_layers,
        }
        return {"type": "pretrained.diffusion", "network": network, **self.body.to_json()}


def build(description: dict[str, Any], body: Body) -> DiffusionPolicy:
    """The network that `to_json` described, with fresh weights."""
    network = dict(description["network"])
    schedule = Schedule(**network.pop("schedule"))
    cameras = {name: tuple(size) for name, size in network.pop("cameras").items()}
    pictures = lerobot_body.from_json(network.pop("pictures"))
    seed = network.pop("seed")
    kept = network.pop("kept_layers", None)
    sizes = Sizes(**tuples(network))
    return DiffusionPolicy(
        sizes,
        schedule,
        cameras,
        pictures,
        body,
        seed=seed,
        kept_layers=tuple(kept) if kept else None,
    )
