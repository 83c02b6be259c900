"""What ACT and Diffusion Policy have in common on disk: pictures by statistics of their channels, a
state that may be followed by one of the environment, no words.

A robot's state here is `observation.state` and, behind it, `observation.environment_state` where the
checkpoint looks at one: whoever acts gives both in a row.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from armlet.data.text import no_words
from armlet.layers.frozen import RestsWhenFrozen
from armlet.policies.contract import Backbone, Body, State
from armlet.policies.pretrained.lerobot import ACTION, ENVIRONMENT, STATE, Folder
from armlet.policies.pretrained.said import Said
from armlet.robot.fit import Fit, View
from armlet.robot.inputs import Inputs
from armlet.robot.normalise import Normaliser
from armlet.robot.reading.own import NoWords
from armlet.robot.spec import ActionSpec, RobotSpec

S = TypeVar("S", bound=State)
NO_NUMBERS = Normaliser(np.zeros(0, np.float32), np.ones(0, np.float32))


def robots_names(folder: Folder, said: Said) -> dict[str, str]:
    """The checkpoint's camera → what the robot calls it: as is said, or else as its own processor
    renames."""
    said.check_cameras(list(folder.cameras))
    names = {}
    for name, renamed in folder.robots_cameras.items():
        names[name] = said.cameras.get(name, renamed)
    return names


def cameras_of(folder: Folder, said: Said) -> dict[str, tuple[int, int]]:
    """The robot's name of each camera → (height, width), in the checkpoint's order."""
    names = robots_names(folder, said)
    return {names[name]: size for name, size in folder.cameras.items()}


def pictures_of(folder: Folder, said: Said) -> dict[str, Normaliser]:
    """The robot's name of each camera → how its channels (3,) are normalised. Statistics may be the
    data set's or ImageNet's: they are what the processor's file holds."""
    names = robots_names(folder, said)
    return {names[name]: folder.normaliser(key) for name, key in folder.camera_keys.items()}


def state_of(folder: Folder) -> Normaliser:
    """Of the robot's state and, behind it, the environment's."""
    parts = [NO_NUMBERS]
    for key in (STATE, ENVIRONMENT):
        if folder.size(key):
            parts.append(folder.normaliser(key))
    joined = {}
    for name in ("offset", "scale", "shift", "back"):
        joined[name] = np.concatenate([getattr(part, name) for part in parts])
    return Normaliser(**joined)


def body_of(folder: Folder, said: Said, robot: RobotSpec | None, fit: Fit) -> Body:
    """What the folder says of the robot, with what it does not say from elsewhere. Raises ValueError
    where its weights are an adapter's, which is not read here."""
    if folder.config.get("use_peft"):
        raise ValueError(
            f"{folder.root}: its weights are those of an adapter (use_peft); merge it into its base "
            "with peft, and save that"
        )
    actions = folder.normaliser(ACTION)
    state = state_of(folder)
    return Body(
        action_spec=said.action_spec(len(actions.offset), robot),
        state=state,
        actions=actions,
        tokenizer=no_words(),
        state_names=said.state_names(len(state.offset), robot),
        fit=fit,
        relative=folder.relative_dims,
    )


def nobodys(folder: Folder, fit: Fit) -> Body:
    """The same of a robot that nobody has described: to know a network's tensors by."""
    actions = folder.normaliser(ACTION)
    dims = len(actions.offset)
    infinite = (float("inf"),) * dims
    spec = ActionSpec(
        names=tuple(map(str, range(dims))),
        mode="absolute",
        rotation="none",
        low=tuple(-each for each in infinite),
        high=infinite,
        grippers=(),
        gripper_open=1.0,
        gripper_closed=0.0,
        control_hz=1.0,
    )
    return Body(spec, state_of(folder), actions, no_words(), fit=fit)


class Parts(Protocol):
    """Sizes of a network, as far as both kinds have the same."""

    @property
    def state(self) -> int: ...

    @property
    def environment(self) -> int: ...

    @property
    def execute(self) -> int: ...


class Wordless(RestsWhenFrozen, Backbone[S]):
    """A network that is told nothing: cameras, name → (height, width), each of whose pictures are
    normalised by statistics of their channels (`statistics` (cameras, 3, 3, 1, 1)), and a state in
    two parts."""

    text_tokens = 0
    statistics: Tensor

    def __init__(
        self,
        sizes: Parts,
        cameras: dict[str, tuple[int, int]],
        pictures: dict[str, Normaliser],
        body: Body,
        kept_layers: tuple[int, ...] | None,
    ) -> None:
        super().__init__()
        if sizes.state + sizes.environment != len(body.state.offset):
            raise ValueError(
                f"network: its states have {sizes.state} and {sizes.environment} numbers, and "
                f"their statistics {len(body.state.offset)}"
            )
        self.seen = cameras
        self.pictures = pictures
        self.body = body
        self.kept_layers = kept_layers
        self.execute = sizes.execute
        self.register_buffer("statistics", as_tensor(pictures), persistent=False)

    @property
    def view(self) -> View:
        return View(dict(self.seen), self.body.fit)

    @property
    def inputs(self) -> Inputs:
        return replace(super().inputs, words=NoWords())


@torch.no_grad()
def tokens_of(network: nn.Module, run: Callable[[], object]) -> int:
    """To how many places in a picture, or in time, a network's parameters are applied when `run`
    runs it once: on average over its parameters, for convolutions see fewer the deeper they are.
    It needs no numbers: a network on the meta device will do."""
    parameters = 0
    applied = 0

    def count(layer: nn.Module, entered: tuple[Tensor, ...], left: Tensor) -> None:
        nonlocal applied
        own = sum(each.numel() for each in layer.parameters())
        if isinstance(layer, nn.Linear):
            places = left.numel() // left.shape[-1]
        else:  # a transposed convolution is applied to what enters
            seen = entered[0] if isinstance(layer, nn.ConvTranspose1d) else left
            places = seen.numel() // seen.shape[1]
        applied += own * places

    hooks = []
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d):
            parameters += sum(each.numel() for each in layer.parameters())
            hooks.append(layer.register_forward_hook(count))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return round(applied / max(parameters, 1))


def as_json(pictures: Mapping[str, Normaliser]) -> dict[str, Any]:
    return {name: normaliser.to_json() for name, normaliser in pictures.items()}


def from_json(said: Mapping[str, Any]) -> dict[str, Normaliser]:
    return {name: Normaliser.from_json(each) for name, each in said.items()}


def as_tensor(pictures: Mapping[str, Normaliser]) -> Tensor:
    """(cameras, 3, 3, 1, 1): offset, scale and shift of each camera's channels."""
    rows = [np.zeros((0, 3, 3), np.float32)]
    for each in pictures.values():
        rows.append(np.stack([each.offset, each.scale, each.shift])[None])
    return torch.from_numpy(np.concatenate(rows).astype(np.float32))[..., None, None]


def normalised(image: Tensor, statistics: Tensor) -> Tensor:
    """A camera's pictures (…, 3, h, w) in [0, 1] by its statistics (3, 3, 1, 1)."""
    offset, scale, shift = statistics
    return (image - offset) / scale + shift
