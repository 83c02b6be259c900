"""What the comparisons of LeRobot's ACT and Diffusion Policy have in common: a fixture's arrays, its
checkpoint in every form that the folder holds, and its inputs as a robot's observations."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden import Golden, Line, near
from safetensors.numpy import load_file
from torch import Tensor, nn

from armlet.benchmarks import World
from armlet.policies.checkpoint import load_policy
from armlet.policies.contract import Backbone
from armlet.policies.pretrained.lerobot import camera_name
from armlet.robot.observation import Observation
from armlet.robot.spec import ActionSpec, ObservationSpec, RobotSpec
from armlet.rollout.loop import run

CHECKPOINT = "pretrained_model"
STATE = "observation.state"
ENVIRONMENT = "observation.environment_state"
NUMBERS = (STATE, ENVIRONMENT)
OLD = "_layout_before_0.4"


@dataclass(frozen=True)
class Fixture:
    """A variant's folder: `checkpoint`, and the arrays of its inputs and outputs; those of a folder
    in an older layout are those of the variant that it is made of. `differing` are answers of other
    versions."""

    folder: Path
    checkpoint: Path
    inputs: dict[str, np.ndarray]
    outputs: Golden
    differing: dict[str, Golden]

    @classmethod
    def open(cls, folder: Path) -> "Fixture":
        arrays = folder
        checkpoint = folder / CHECKPOINT
        if folder.name.endswith(OLD) or not checkpoint.is_dir():
            arrays = folder.with_name(folder.name.removesuffix(OLD))
            checkpoint = folder
        differing = {}
        for path in sorted(arrays.glob("outputs_differing_in_*.safetensors")):
            version = path.stem.removeprefix("outputs_differing_in_")
            differing[version] = Golden(load_file(path))
        return cls(
            folder,
            checkpoint,
            load_file(arrays / "inputs.safetensors"),
            Golden(load_file(arrays / "outputs.safetensors")),
            differing,
        )

    def robot(self) -> RobotSpec:
        """A robot that says nothing but how many numbers its actions have: ranges are infinite."""
        dims = self.inputs["action"].shape[-1]
        ends = (float("inf"),) * dims
        names = tuple(map(str, range(dims)))
        spec = ActionSpec(
            names, "absolute", "none", tuple(-x for x in ends), ends, (), 1.0, 0.0, 10.0
        )
        return RobotSpec(spec, ObservationSpec())

    def load(self, checkpoint: Path | None = None) -> Backbone:
        return load_policy(checkpoint or self.checkpoint, known=self.robot)

    @contextmanager
    def rewritten(self, name: str) -> Iterator[Path]:
        """The checkpoint with the config and processors of another version's folder `name`."""
        with tempfile.TemporaryDirectory() as place:
            root = Path(place) / "checkpoint"
            shutil.copytree(self.folder / name, root)
            (root / "model.safetensors").symlink_to(
                (self.checkpoint / "model.safetensors").resolve()
            )
            yield root

    def rewrites(self) -> list[str]:
        """Folders with what another version wrote of the same checkpoint."""
        return sorted(each.name for each in self.folder.glob("written_by_*") if each.is_dir())

    def observations(self, prefix: str = "") -> list[Observation]:
        """Inputs (b, …) as what b robots observe; those of several moments (b, o, …) with the
        earlier ones as the past."""
        chosen = {}
        for name, values in self.inputs.items():
            if name.startswith(f"{prefix}observation."):
                chosen[name.removeprefix(prefix)] = values
        return [self._observation(chosen, row) for row in range(len(next(iter(chosen.values()))))]

    def _observation(self, chosen: dict[str, np.ndarray], row: int) -> Observation:
        several = chosen[next(iter(set(NUMBERS) & set(chosen)))].ndim == 3
        moments = next(iter(chosen.values())).shape[1] if several else 1
        past: tuple[Observation, ...] = ()
        for moment in range(moments):
            at = (row, moment) if several else (row,)
            numbers = [chosen[name][at] for name in NUMBERS if name in chosen]
            images = {}
            for name, values in chosen.items():
                if name not in NUMBERS:
                    images[camera_name(name)] = values[at]
            state = np.concatenate(numbers).astype(np.float32)
            previous = np.zeros(self.inputs["action"].shape[-1], np.float32)
            seen = Observation(images, state, "", previous, past)
            past = (*past, Observation(images, state, "", previous))
        return seen


class Film(World):
    """Shows observations one after the other, whatever it is told."""

    over = False
    instruction = ""

    def __init__(self, seen: list[Observation]) -> None:
        self.seen = seen
        self.told: list[np.ndarray] = []

    def observe(self) -> Observation:
        return self.seen[len(self.told)]

    def step(self, action: np.ndarray) -> bool:
        self.told.append(np.array(action))
        return False

    def close(self) -> None:
        pass


def drive(
    policy: Backbone, seen: list[Observation], spec: ActionSpec, execute: int | None = None
) -> np.ndarray:
    """(T, a): what the closed loop carries out where these observations follow one another."""
    world = Film(seen)
    run(world, policy, spec=spec, limit=len(seen), execute=execute)
    return np.stack(world.told)


@contextmanager
def hearing(network: nn.Module, places: dict[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """What some modules give while it lasts, each time they run."""
    heard: dict[str, list[Tensor]] = {name: [] for name in places}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            heard[name].append(output.detach())

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in places.items()]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def training(policy: nn.Module) -> Iterator[None]:
    """In training mode without dropout while it lasts, statistics of batches as they were after."""
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    dropped = []
    for module in policy.modules():
        if isinstance(module, nn.Dropout):
            dropped.append((module, "p", module.p))
        elif isinstance(module, nn.MultiheadAttention):
            dropped.append((module, "dropout", module.dropout))
    policy.train()
    for module, name, _ in dropped:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in dropped:
            setattr(module, name, value)
        policy.eval()
        policy.load_state_dict(before)


def held(
    golden: Golden,
    name: str,
    found: Any,
    bound: float,
    *,
    relative: bool = False,
    like: bool = False,
) -> Iterator[Line]:
    """A line for a quantity, where the fixture has it. `like`: the bound grows with the numbers
    expected, where these are larger than 1; `relative`: the error is over the largest of them."""
    if name not in golden:
        return
    expected = golden[name]
    if like:
        bound *= max(1.0, float(np.abs(expected).max(initial=0.0)))
    yield near(name, found, expected, bound, relative=relative)


def tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(values))
