"""Low-rank adapters (LoRA, arXiv 2106.09685) as peft saves them, added to the weights that they
were trained beside: W + scale · B A, a layer at a time.

*Merged* as the projects merge: in bf16, rounded after the product, after the scale and after the
sum. In single precision it would differ by up to 4e-3 from what their checkpoints hold. *Beside* is
what a layer computes whose adapter was never merged: the same sum, not rounded.

Knows tensors and peft's `adapter_config.json`; knows no network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from armlet.data.files import read_json
from armlet.policies.pretrained.files import COPY, SHOWN, Names, Tensors, open_safetensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of peft's names, before those of the model
# What would make an adapter do more than is done here, and the value at which it does not.
PLAIN: dict[str, Any] = {
    "use_dora": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layer_replication": None,
}


@dataclass(frozen=True)
class Pair:
    """The names of A and B, and by how much their product counts."""

    a: str
    b: str
    scale: float


@dataclass(frozen=True)
class Adapter:
    """`pairs`: the name of a weight in the model's files → what is added to it; `tensors`: where A
    and B are; `frozen`: weights of the model that the adapter holds a copy of."""

    tensors: Tensors
    pairs: Mapping[str, Pair]
    frozen: Mapping[str, str]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """peft's folder. Raises FileNotFoundError, or ValueError naming the file and what in it is
        not understood."""
        config = read_json(folder / CONFIG, fix=COPY)
        for name, plain in PLAIN.items():
            if config.get(name, plain) not in (plain, None):
                raise ValueError(
                    f"{folder / CONFIG}: {name} is {config[name]!r:.80}, of which nothing is known "
                    f"here; expected {plain!r}. Merge the adapter with peft, and bring the result"
                )
        rank = config.get("r")
        alpha = config.get("lora_alpha")
        if not (isinstance(rank, int) and rank > 0 and isinstance(alpha, int | float)):
            raise ValueError(
                f"{folder / CONFIG}: r is {rank!r} and lora_alpha {alpha!r}, expected numbers; "
                f"{COPY}"
            )
        scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
        tensors = open_safetensors(folder / WEIGHTS)
        found = cls.of(tensors, scale, ".weight", PREFIX)
        for pair in found.pairs.values():
            own = tensors[pair.a].shape[0]
            if own != rank:
                raise ValueError(
                    f"{folder / WEIGHTS}: {pair.a} has rank {own}, and {CONFIG} says {rank}: are "
                    f"the two of one adapter? {COPY}"
                )
        return found

    @classmethod
    def of(cls, tensors: Tensors, scale: float, ending: str, prefix: str = "") -> Self:
        """The adapters among some tensors, whose A and B are named `….lora_A` and `….lora_B`, and
        then `ending`. Raises ValueError where one lacks the other, or they do not fit."""
        pairs = {}
        frozen = {}
        for name in tensors:
            ours = name.removeprefix(prefix)
            if name.endswith(f".lora_A{ending}"):
                stem = name.removesuffix(f".lora_A{ending}")
                other = f"{stem}.lora_B{ending}"
                rank = tensors[name].shape[0]
                if other not in tensors or tensors[other].shape[1] != rank:
                    found = tensors[other].shape if other in tensors else "none"
                    raise ValueError(
                        f"{tensors[name].file}: {name} has rank {rank}, and {other} is of shape "
                        f"{found}; {COPY}"
                    )
                pairs[f"{stem.removeprefix(prefix)}.weight"] = Pair(name, other, scale)
            elif name.endswith(".base_layer.weight"):
                frozen[ours.replace(".base_layer.weight", ".weight")] = name
            elif prefix and not name.endswith(f".lora_B{ending}"):
                raise ValueError(
                    f"{tensors[name].file}: {name} is no part of an adapter that is known here"
                )
        return cls(tensors, pairs, frozen)

    def check(self, model: Tensors, *, apart: tuple[str, ...] = ()) -> None:
        """Raises ValueError where the adapter was not trained beside a model of these shapes: a
        weight is not there, or is of another. Names that begin as one of `apart` are somebody
        else's. Reads no numbers."""
        wrong = []
        for name, pair in self.pairs.items():
            if name.startswith(apart):
                continue
            a = self.tensors[pair.a].shape
            b = self.tensors[pair.b].shape
            shape = (b[0], *a[1:])
            if name not in model:
                wrong.append(f"there is no {name}")
            elif model[name].shape != shape:
                wrong.append(f"{name} has shape {model[name].shape}, expected {shape}")
        for name, copy in self.frozen.items():
            if name not in model:
                wrong.append(f"there is no {name}")
            elif model[name].shape != self.tensors[copy].shape:
                shape = self.tensors[copy].shape
                wrong.append(f"{name} has shape {model[name].shape}, expected {shape}")
        self._refuse(model, wrong)

    def check_copies(self, model: Tensors) -> None:
        """Raises ValueError where a weight of the model is not the copy that the adapter holds of
        what it was trained beside: then all others are another model's, too."""
        wrong = []
        for name, copy in self.frozen.items():
            if not torch.equal(model.read(name).float(), self.tensors.read(copy).float()):
                wrong.append(f"{name} is not what the adapter was trained beside ({copy})")
        self._refuse(model, wrong)

    def _refuse(self, model: Tensors, wrong: list[str]) -> None:
        if not wrong:
            return
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(
            f"the adapter {', '.join(map(str, self.tensors.files))} was trained beside another "
            f"model than {model.files[0].parent} ({len(wrong)} weights differ): "
            f"{'; '.join(wrong[:SHOWN])}{more}. Name its own as `base` in [options] of "
            "policy.toml"
        )

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """A weight of the model's with what was learned beside it, in bf16 all the way; one that
        has no adapter as it is."""
        if name not in self.pairs:
            return weight
        change = self._product(self.pairs[name], torch.bfloat16)
        return (weight.bfloat16() + change * self.pairs[name].scale).to(weight.dtype)

    def beside(self, name: str, weight: Tensor) -> Tensor:
        """The same without rounding, in the weight's own precision or fp32, whichever is more."""
        if name not in self.pairs:
            return weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        change = self._product(self.pairs[name], wide)
        return (weight.to(wide) + change * self.pairs[name].scale).to(weight.dtype)

    def _product(self, pair: Pair, dtype: torch.dtype) -> Tensor:
        # Summed in single precision at least and rounded once, as processors with products in bf16
        # do; a convolution without them rounds every sum.
        wide = torch.promote_types(dtype, torch.float32)
        a = self.tensors.read(pair.a).to(dtype).to(wide)
        b = self.tensors.read(pair.b).to(dtype).to(wide)
        if a.ndim == 2:
            return (b @ a).to(dtype)
        # Convolutions: B is one of 1 × 1 pixels behind A.
        return F.conv2d(a.transpose(0, 1), b).transpose(0, 1).to(dtype)


def by_our_names(adapter: Adapter, names: Names) -> dict[str, str]:
    """Our name of a weight → that in the model's files, for `files.fill`'s `change`."""
    return {names.ours(name): name for name in adapter.pairs}
