"""Tensors and statistics of OpenVLA and of what was built from it (OpenVLA-OFT, CogACT), as the two
layouts on disk have them: Hugging Face folders, and the run folders of the project's own trainer.

Sizes are read from shapes; what shapes do not tell (heads, RMSNorm's eps) comes from whoever asks.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from armlet.data.files import read_json
from armlet.layers.timm_vit import ViTSizes
from armlet.policies.pretrained.dino_siglip import MEANS, STDS, LlamaSizes, Sizes
from armlet.policies.pretrained.files import COPY, Header, Names, Tensors
from armlet.robot.normalise import Normaliser

STATISTICS = "dataset_statistics.json"
VISION_HEADS = 16  # of both towers: vit_large_patch14_reg4_dinov2, vit_so400m_patch14_siglip
Means = tuple[tuple[float, ...], ...]
T = TypeVar("T")


@dataclass(frozen=True)
class LlamaFacts:
    """What no shape tells of the language model; `vocabulary` words it was taught with."""

    heads: int
    kv_heads: int
    eps: float
    vocabulary: int
    theta: float = 10000.0


@dataclass(frozen=True)
class Layout:
    """How names begin in one layout, and how they become ours."""

    dino: str
    siglip: str
    renamed: tuple[tuple[str, str], ...]

    def names(self, tensors: Tensors) -> Names:
        """Names with what the network has no use for: the last block of each tower, its final norm
        and its pooling, and what old versions of transformers saved of rotary positions."""
        unused = ["*rotary_emb.inv_freq"]
        for tower in (self.dino, self.siglip):
            last = depth_of(tensors, f"{tower}blocks.") - 1
            unused += [f"{tower}blocks.{last}.*", f"{tower}norm.*", f"{tower}attn_pool.*"]
        return Names(renamed=self.renamed, unused=tuple(unused))

    def sizes(
        self,
        tensors: Tensors,
        facts: LlamaFacts,
        *,
        heads: int = VISION_HEADS,
        means: Means = MEANS,
        stds: Means = STDS,
    ) -> Sizes:
        """Of the network whose tensors these are; `heads`: of both towers. Raises ValueError naming
        the tensor that is missing or whose shape contradicts the rest."""
        ours = Names(renamed=self.renamed)
        found = _Shapes({ours.ours(name): header for name, header in tensors.items()}, tensors)
        rows, width = found.of("words.weight", 2)
        kv_width = found.of("layers.0.self_attn.k_proj.weight", 2)[0]
        if width % facts.heads or kv_width != width // facts.heads * facts.kv_heads:
            raise ValueError(
                f"{found.source}: a language model of width {width}, whose keys have {kv_width}, "
                f"cannot have {facts.heads} heads of which {facts.kv_heads} have keys and values "
                "of their own; correct the number of heads"
            )
        llama = found.made(
            LlamaSizes,
            width=width,
            mlp=found.of("layers.0.mlp.gate_proj.weight", 2)[0],
            depth=depth_of(found.headers, "layers."),
            heads=facts.heads,
            kv_heads=facts.kv_heads,
            rows=rows,
            vocabulary=facts.vocabulary,
            eps=facts.eps,
            theta=facts.theta,
        )
        return found.made(
            Sizes,
            dino=found.tower("vision.dino.", heads),
            siglip=found.tower("vision.siglip.", heads),
            llama=llama,
            inner=found.of("projector.fc1.weight", 2)[0],
            means=means,
            stds=stds,
        )


HUGGING_FACE = Layout(
    dino="vision_backbone.featurizer.",
    siglip="vision_backbone.fused_featurizer.",
    renamed=(
        (r"^vision_backbone\.featurizer\.", "vision.dino."),
        (r"^vision_backbone\.fused_featurizer\.", "vision.siglip."),
        # transformers renames timm's parameter on loading, and saves it so.
        (r"\.(ls[12])\.scale_factor$", r".\1.gamma"),
        (r"^language_model\.model\.embed_tokens\.", "words."),
        (r"^language_model\.model\.(layers|norm)\.", r"\1."),
        (r"^language_model\.lm_head\.", "lm_head."),
    ),
)
# Of the modules within `["model"]`.
RUN_FOLDER = Layout(
    dino="vision_backbone.dino_featurizer.",
    siglip="vision_backbone.siglip_featurizer.",
    renamed=(
        (r"^vision_backbone\.dino_featurizer\.", "vision.dino."),
        (r"^vision_backbone\.siglip_featurizer\.", "vision.siglip."),
        # An nn.Sequential with a GELU between.
        (r"^projector\.projector\.0\.", "projector.fc1."),
        (r"^projector\.projector\.2\.", "projector.fc2."),
        (r"^projector\.projector\.4\.", "projector.fc3."),
        (r"^llm_backbone\.llm\.model\.embed_tokens\.", "words."),
        (r"^llm_backbone\.llm\.model\.(layers|norm)\.", r"\1."),
        (r"^llm_backbone\.llm\.lm_head\.", "lm_head."),
    ),
)


def depth_of(names: Mapping[str, Any], prefix: str) -> int:
    """How many numbered modules there are under a name: one more than the highest number."""
    highest = -1
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    for name in names:
        found = pattern.match(name)
        if found:
            highest = max(highest, int(found[1]))
    return highest + 1


@dataclass(frozen=True)
class _Shapes:
    """Shapes by our names."""

    headers: Mapping[str, Header]
    tensors: Tensors

    @property
    def source(self) -> str:
        return ", ".join(map(str, self.tensors.files[:3]))

    def of(self, name: str, axes: int) -> tuple[int, ...]:
        header = self.headers.get(name)
        if header is None:
            raise ValueError(
                f"{self.source}: there is no tensor for {name}; is it of another kind, or are "
                f"files missing? {COPY}"
            )
        if len(header.shape) != axes:
            raise ValueError(
                f"{self.source}: {header.key} has shape {header.shape}, expected {axes} axes"
            )
        return header.shape

    def made(self, kind: type[T], **sizes: Any) -> T:
        """Sizes of a part. Raises ValueError naming the files where they contradict each other."""
        try:
            return kind(**sizes)
        except ValueError as error:
            raise ValueError(f"{self.source}: {error}") from error

    def tower(self, prefix: str, heads: int) -> ViTSizes:
        width, _, patch, _ = self.of(f"{prefix}patch_embed.proj.weight", 4)
        patches = self.of(f"{prefix}pos_embed", 3)[1]
        grid = round(patches**0.5)
        if grid**2 != patches:
            raise ValueError(
                f"{self.source}: {prefix}pos_embed has {patches} rows, expected a square: one a "
                "patch, none for other tokens"
            )
        registers = 0
        if f"{prefix}reg_token" in self.headers:
            registers = self.of(f"{prefix}reg_token", 3)[1]
        return self.made(
            ViTSizes,
            width=width,
            depth=depth_of(self.headers, f"{prefix}blocks."),
            heads=heads,
            mlp=self.of(f"{prefix}blocks.0.mlp.fc1.weight", 2)[0],
            grid=grid,
            patch=patch,
            prefix=int(f"{prefix}cls_token" in self.headers) + registers,
            layer_scale=f"{prefix}blocks.0.ls1.gamma" in self.headers,
        )


@dataclass(frozen=True)
class Statistics:
    """Those of the data sets that a checkpoint was taught with: name → `action` and more; `source`,
    the file."""

    sets: Mapping[str, Any]
    source: Path

    def chosen(self, key: str | None) -> tuple[str, dict[str, Any]]:
        """The data set of this name, with its statistics; without one the only one that there is.
        Raises ValueError where there are several, or none of that name."""
        known = ", ".join(sorted(self.sets)) or "none"
        if key is None:
            if len(self.sets) != 1:
                raise ValueError(
                    f"{self.source} has statistics of {len(self.sets)} data sets, and by which "
                    "actions are turned into the robot's numbers must be said: `unnorm_key` in "
                    f"[options] of policy.toml. There are {known}"
                )
            key = next(iter(self.sets))
        if key not in self.sets:
            near = difflib.get_close_matches(key, list(self.sets), 1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"unnorm_key is {key!r}, and {self.source} has no statistics of it{meant}; there "
                f"are {known}"
            )
        found = self.sets[key]
        if not isinstance(found, dict) or not isinstance(found.get("action"), dict):
            raise ValueError(f"{self.source}: {key} has no `action` statistics; {COPY}")
        return key, found


def read_statistics(folder: Path, config: Mapping[str, Any]) -> Statistics:
    """Of `dataset_statistics.json` where it is there, which a fine-tuned folder has of its own
    data, and else of the config's `norm_stats`. Raises ValueError where there are none."""
    file = folder / STATISTICS
    sets: Any
    if file.is_file():
        sets = read_json(file, fix=COPY)
    else:
        file = folder / "config.json"
        sets = config.get("norm_stats")
    if not isinstance(sets, dict) or not sets:
        raise ValueError(
            f"{folder}: there are no statistics of actions, neither in {STATISTICS} nor as "
            f"`norm_stats` in config.json; {COPY}"
        )
    return Statistics(sets, file)


def action_normaliser(statistics: Mapping[str, Any], where: str) -> Normaliser:
    """By q01 and q99, in the dimensions that `mask` names (all, where there is none); the others
    pass as they are, in −1 … 1. Raises ValueError where one lacks or does not fit the others."""
    lowest = statistics.get("q01")
    if not isinstance(lowest, list) or not lowest:
        raise ValueError(f"{where}: `action` has no q01, one number a dimension; {COPY}")
    dims = len(lowest)
    for name in ("q01", "q99"):
        values = statistics.get(name, [])
        if not isinstance(values, list) or any(type(each) not in (int, float) for each in values):
            raise ValueError(
                f"{where}: {name} of `action` is {values!r:.80}, expected {dims} numbers; {COPY}"
            )
    mask = statistics.get("mask")
    kept: tuple[int, ...] = ()
    if mask is not None:
        if (
            not isinstance(mask, list)
            or len(mask) != dims
            or any(each not in (True, False) for each in mask)
        ):
            raise ValueError(
                f"{where}: the mask of `action` is {mask!r:.80}, expected {dims} of true or false"
            )
        kept = tuple(np.flatnonzero(~np.array(mask, bool)).tolist())
    what = f"action of {where}"
    return Normaliser.from_statistics(
        dict(statistics), "quantiles", what=what, dims=dims, keep=kept, variant="openvla"
    )
