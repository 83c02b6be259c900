"""An OpenVLA-OFT checkpoint on disk: which files hold which part, and what in them says how it
acts.

    model*.safetensors, config.json     OpenVLA's folder, with the adapter merged
    lora_adapter/                       the adapter alone, where it was not: it needs a `base`
    action_head--N_checkpoint.pt        L1 regression; without it the policy is discrete
    proprio_projector--N_checkpoint.pt  the robot's state; without it the policy is not told any
    vision_backbone--N_checkpoint.pt    FiLM: the towers with adapters that were never merged; those
                                        in model.safetensors are then the base's, of no use
    dataset_statistics.json             of the data that it was fine-tuned on; those in config.json
                                        are the base's

How many actions a chunk has, by which statistics numbers are normalised and which pictures are seen
stands in none of them: the project chooses among three platforms by words of its command line. Here
they are chosen by numbers and names that agree with one platform alone, or must be said.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np

from armlet.data.files import read_json
from armlet.data.hub import local_folder
from armlet.policies.pretrained.fields import Fields
from armlet.policies.pretrained.files import COPY, Names, Tensors, open_pickled
from armlet.policies.pretrained.llama_tokenizer import FILE as TOKENIZER
from armlet.policies.pretrained.lora import CONFIG as ADAPTER_CONFIG
from armlet.policies.pretrained.lora import Adapter
from armlet.policies.pretrained.openvla_files import (
    HUGGING_FACE,
    STATISTICS,
    VISION_HEADS,
    Layout,
    Statistics,
    read_statistics,
)
from armlet.policies.pretrained.openvla_folders import HuggingFaceFolder
from armlet.policies.pretrained.said import Said
from armlet.robot.fit import Fit
from armlet.robot.normalise import Normaliser

HEAD = "action_head"
PROPRIO = "proprio_projector"
VISION = "vision_backbone"
NOISY = "noisy_action_projector"  # of diffusion
ADAPTER = "lora_adapter"
EPSILON = 1e-8
Bounds = Literal["q01_q99", "min_max"]
Preparation = Literal["center_crop", "no_crop", "processor"]
FITS: dict[Preparation, Fit] = {
    "center_crop": "oft",
    "no_crop": "oft_whole",
    "processor": "bicubic",
}

FILM = Layout(
    dino=HUGGING_FACE.dino,
    siglip=HUGGING_FACE.siglip,
    renamed=(
        (r"^action_head\.(module\.)?model\.", "head."),
        (r"^proprio_projector\.(module\.)?", "proprio."),
        (r"^vision_backbone\.featurizer\.blocks\.(\d+)\.(scale|shift)\.", r"film.dino.\1.\2."),
        (
            r"^vision_backbone\.fused_featurizer\.blocks\.(\d+)\.(scale|shift)\.",
            r"film.siglip.\1.\2.",
        ),
        # FiLM's wrapper around a block, and peft's around a layer.
        (r"^(vision_backbone\..*\.blocks\.\d+)\.block\.", r"\1."),
        (r"^(vision_backbone\..*)\.base_layer\.", r"\1."),
        *HUGGING_FACE.renamed,
    ),
)


@dataclass(frozen=True)
class Platform:
    """What the project's `constants.py` says of one; `views` are its names of the pictures, in the
    order in which the network sees them."""

    name: str
    chunk: int
    dims: int
    proprio: int
    bounds: Bounds
    views: tuple[str, ...]


PLATFORMS = (
    Platform("libero", 8, 7, 8, "q01_q99", ("full_image", "wrist_image")),
    Platform(
        "aloha", 25, 14, 14, "min_max", ("full_image", "left_wrist_image", "right_wrist_image")
    ),
    Platform("bridge", 5, 7, 7, "q01_q99", ("full_image",)),
)
NAMES = tuple(platform.name for platform in PLATFORMS)


@dataclass(frozen=True)
class Options:
    """`[options]` of a `policy.toml`."""

    base: str | None = None
    """The OpenVLA that an adapter was trained beside: a folder, or hf:user/name."""
    unnorm_key: str | None = None
    """The data set whose statistics count, where there are several."""
    platform: str | None = None
    """libero, aloha or bridge: chunk, bounds and views in one word."""
    chunk: int | None = None
    """Actions decided at a time."""
    bounds: Bounds | None = None
    """By which statistics state and actions are normalised: q01_q99 or min_max."""
    views: tuple[str, ...] = ()
    """Its pictures, in the order in which the network sees them: the main one first."""
    preparation: Preparation = "center_crop"
    """How pictures are prepared: center_crop as the project's evaluation does for a policy that was
    trained on random crops (as usual), no_crop as for another; processor: by OpenVLA's own
    processor alone, for whoever calls the network without that evaluation."""
    vision_heads: int = VISION_HEADS
    """Of both image towers, which no file says."""

    def __post_init__(self) -> None:
        if self.platform not in (None, *NAMES):
            raise ValueError(f"platform is {self.platform!r}, expected {', '.join(NAMES)}")
        if self.bounds not in (None, *get_args(Bounds)):
            raise ValueError(f"bounds is {self.bounds!r}, expected {' or '.join(get_args(Bounds))}")
        for name in ("chunk", "vision_heads"):
            value = getattr(self, name)
            if value is not None and not (type(value) is int and value >= 1):
                raise ValueError(f"{name} is {value!r}, expected 1 or more")
        if self.preparation not in FITS:
            raise ValueError(f"preparation is {self.preparation!r}, expected {', '.join(FITS)}")
        texts = isinstance(self.views, tuple) and all(isinstance(each, str) for each in self.views)
        if not texts or len(set(self.views)) != len(self.views):
            raise ValueError(f"views is {self.views!r:.80}, expected a list of different names")
        for name in ("base", "unnorm_key"):
            if not isinstance(getattr(self, name), str | None):
                raise ValueError(f"{name} is {getattr(self, name)!r:.80}, expected a text")


@dataclass(frozen=True)
class Told:
    """What is known of what the checkpoint does not say, None and none where nothing is, and `why`
    it is taken."""

    chunk: int | None
    bounds: Bounds | None
    views: tuple[str, ...]
    why: str

    @property
    def missing(self) -> list[str]:
        """The options that nobody gave."""
        found = [name for name in ("chunk", "bounds") if getattr(self, name) is None]
        return found if self.views else [*found, "views"]


def component(folder: Path, name: str) -> Path | None:
    """The one file of a part (`action_head--150000_checkpoint.pt`, `…--latest_checkpoint.pt`), or
    None. Raises ValueError where there are several."""
    found = sorted(folder.glob(f"*{name}*checkpoint*"))
    if name == VISION:  # that name is part of no other
        found = [path for path in found if path.name.startswith(name)]
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise ValueError(
            f"{folder} holds {len(found)} files of {name}: {listed}; expected one: move those of "
            "other steps away"
        )
    return found[0] if found else None


def has_model(folder: Path) -> bool:
    return (folder / "model.safetensors").is_file() or (
        folder / "model.safetensors.index.json"
    ).is_file()


@dataclass(frozen=True)
class Parts:
    """A checkpoint's files, and the tensors of all of them, by the names of `FILM`. `model`: the
    folder of OpenVLA's own part, the checkpoint or its base; `adapter` where it must be merged;
    `beside` adapters that never were."""

    said: Said
    options: Options
    model: HuggingFaceFolder
    tensors: Tensors
    adapter: Adapter | None
    beside: Adapter | None
    head: Path | None
    proprio: Path | None
    vision: Path | None

    @classmethod
    def read(cls, said: Said) -> Self:
        """Raises FileNotFoundError or ValueError naming the file that is missing, twice there, or
        not what it should be."""
        folder = said.checkpoint
        options = said.as_options(Options)
        head = component(folder, HEAD)
        proprio = component(folder, PROPRIO)
        vision = component(folder, VISION)
        model = HuggingFaceFolder.read(_model(said, options), options.vision_heads)
        tensors = model.tensors
        adapter = None
        beside = None
        if model.root != folder and (folder / ADAPTER).is_dir():
            adapter = Adapter.read(folder / ADAPTER)
            # With FiLM the towers' own are in the side file, whole.
            adapter.check(tensors, apart=("vision_backbone.vision_backbone.",) if vision else ())
        if vision is not None:
            towers = _plain(open_pickled(vision))
            beside = Adapter.of(towers, _scale(folder, towers), ".default.weight")
            tensors = tensors.without("vision_backbone.").and_those(towers)
        if head is not None:
            tensors = tensors.and_those(_head(head).under("action_head."))
        if proprio is not None:
            tensors = tensors.and_those(open_pickled(proprio).under("proprio_projector."))
        return cls(said, options, model, tensors, adapter, beside, head, proprio, vision)

    @property
    def folder(self) -> Path:
        return self.said.checkpoint

    @property
    def names(self) -> Names:
        """From the files' names to ours, and what is not used."""
        found = FILM.names(self.tensors)
        unused = [*found.unused, "vision_backbone.*.lora_[AB].*"]
        if self.head is not None:
            unused.append("language_model.lm_head.*")  # the head speaks for it
        return Names(found.renamed, tuple(unused))

    @property
    def statistics(self) -> Statistics:
        """Of the fine-tuning data; where the checkpoint has none of its own, of the base."""
        own = self.folder if (self.folder / STATISTICS).is_file() else self.model.root
        return read_statistics(own, self.model.config)

    @property
    def words(self) -> Path:
        """The folder that has its tokenizer: its own, or its base."""
        return self.folder if (self.folder / TOKENIZER).is_file() else self.model.root

    @property
    def files(self) -> list[Path]:
        """All that decides how it acts, but the tokenizer."""
        found = {*self.model.files(), *self.tensors.files, self.statistics.source}
        if self.adapter is not None:
            found.update(self.adapter.tensors.files)
        config = self.folder / ADAPTER / ADAPTER_CONFIG
        if config.is_file():
            found.add(config)
        return sorted(found)

    @property
    def proprio_dims(self) -> int:
        """Numbers of the state that it is told; 0: none."""
        return self._shape(PROPRIO, "fc1.weight")[1] if self.proprio is not None else 0

    @property
    def width(self) -> int:
        return self.tensors["language_model.model.embed_tokens.weight"].shape[1]

    def dims(self, statistics: Mapping[str, Any]) -> int:
        """Numbers of an action: as the head has them, and else the statistics."""
        known = len(statistics["action"].get("q01", statistics["action"].get("min", ())))
        if self.head is None:
            return known
        dims = self._shape(HEAD, "model.fc2.weight")[0]
        if dims != known:
            raise ValueError(
                f"{self.head} decides {dims} numbers, and {self.statistics.source} has statistics "
                f"of {known}: are they of another robot? {COPY}"
            )
        return dims

    def _shape(self, part: str, name: str) -> tuple[int, ...]:
        for beginning in ("", "module."):
            full = f"{part}.{beginning}{name}"
            if full in self.tensors:
                return self.tensors[full].shape
        path = self.head if part == HEAD else self.proprio
        raise ValueError(f"{path} has no {name}: is it of another kind? {COPY}")

    def told(self, key: str, dims: int) -> Told:
        """What is chosen by platform, as far as it is known. Raises ValueError where what is said
        fits no checkpoint of these sizes."""
        options = self.options
        platform, why = _platform(options, key, dims, self.proprio_dims)
        views = options.views or tuple(self.said.cameras)
        if platform is None:
            return Told(options.chunk, options.bounds, views, why)
        return Told(
            options.chunk or platform.chunk,
            options.bounds or platform.bounds,
            views or platform.views,
            why,
        )


def _platform(options: Options, key: str, dims: int, proprio: int) -> tuple[Platform | None, str]:
    """The platform that a checkpoint is of, if one can be told, and why in words."""
    told = f"actions of {dims} numbers" + (f", a state of {proprio}" if proprio else "")
    fitting = []
    named = []
    for each in PLATFORMS:
        if each.dims == dims and proprio in (0, each.proprio):
            fitting.append(each)
        if each.name in key.lower():
            named.append(each)
    if options.platform is not None:
        (chosen,) = (each for each in PLATFORMS if each.name == options.platform)
        if chosen not in fitting:
            raise ValueError(
                f"platform {chosen.name!r} has actions of {chosen.dims} numbers and a state of "
                f"{chosen.proprio}, and the checkpoint {told}; give `chunk`, `bounds` and `views` "
                "instead"
            )
        return chosen, f"platform {chosen.name}, as said"
    agreed = [each for each in fitting if each in named or not named]
    if len(agreed) == 1:
        chosen = agreed[0]
        by = f"{told}, data set {key!r}" if named else told
        return chosen, f"{chosen.name}'s, by {by}"
    fits = ", ".join(each.name for each in fitting) or "no platform"
    return None, f"{told} and the data set {key!r} fit {fits}"


def _model(said: Said, options: Options) -> Path:
    """The folder with OpenVLA's own part: the checkpoint's, or its base's."""
    folder = said.checkpoint
    if has_model(folder):
        if options.base is not None:
            raise ValueError(
                f"{said.source}: `base` is {options.base!r}, and {folder} holds a whole model, so "
                "it would have no effect; leave it out"
            )
        return folder
    if options.base is None:
        config = folder / ADAPTER / ADAPTER_CONFIG
        name = ""
        if config.is_file():
            named = read_json(config, fix=COPY).get("base_model_name_or_path")
            name = f" (its adapter names {named!r})" if named else ""
        raise ValueError(
            f"{folder} holds no model.safetensors: its adapter was not merged, and the OpenVLA "
            f"that it was trained beside is needed{name}; give its folder, or its name on the hub "
            "(hf:user/name), as `base` in [options] of policy.toml"
        )
    beside = said.source.parent if said.source.is_file() else said.source
    place = Path(options.base) if options.base.startswith("hf:") else beside / options.base
    return local_folder(place, kind="model")


def _plain(tensors: Tensors) -> Tensors:
    """Without the beginning that a wrapper for several processes leaves."""
    whole = tensors.part("module.")
    return whole if len(whole) == len(tensors) else tensors


def _head(path: Path) -> Tensors:
    """Raises ValueError for a head of another kind."""
    tensors = open_pickled(path)
    if any("noise_predictor." in name for name in tensors):
        raise ValueError(
            f"{path} is a diffusion head, and only heads of L1 regression are read here; the "
            "policy can teach through a socket (--teacher ws://host:port)"
        )
    return tensors


def _scale(folder: Path, towers: Tensors) -> float:
    """By how much the towers' adapters count: as the folder's own adapter, which was trained with
    them, says, and else by the project's rule."""
    config = folder / ADAPTER / ADAPTER_CONFIG
    if config.is_file():
        found = Fields(read_json(config, fix=COPY), config)
        return found.real("lora_alpha", above=0) / found.whole("r")
    ranks = {header.shape[0] for name, header in towers.items() if ".lora_A." in name}
    rank = ranks.pop() if len(ranks) == 1 else 0
    if not rank:
        return 0.0  # no adapters, or ranks that `Adapter.of` or the sum will refuse
    return min(rank, 16) / rank


def state_normaliser(statistics: Mapping[str, Any], bounds: Bounds, where: str) -> Normaliser:
    """Of the state, by the project's evaluation: lowest and highest become −1 and 1, and 1e-8 more
    is divided by. A number that never moved says −1, as there: it is cut off after. Raises
    ValueError where statistics are missing or do not fit."""
    low, high = _both(statistics.get("proprio"), bounds, f"`proprio` of {where}")
    scale = (high - low + EPSILON) / 2
    parts = (low, scale, np.full_like(low, -1))
    return Normaliser(*(np.array(values, np.float32) for values in parts))


def action_normaliser(statistics: Mapping[str, Any], bounds: Bounds, where: str) -> Normaliser:
    """Of actions: the same, in the dimensions that `mask` names, and all where there is none."""
    found = statistics["action"]
    low, _ = _both(found, bounds, f"`action` of {where}")
    mask = found.get("mask")
    if mask is None:
        mask = [True] * len(low)
    if not isinstance(mask, list) or len(mask) != len(low):
        raise ValueError(
            f"{where}: the mask of `action` is {mask!r:.80}, expected {len(low)} of true or false"
        )
    kept = tuple(np.flatnonzero(~np.array(mask, bool)).tolist())
    return Normaliser.from_statistics(
        dict(found),
        "quantiles" if bounds == "q01_q99" else "min_max",
        what=f"action of {where}",
        dims=len(low),
        keep=kept,
        variant="openvla_oft",
    )


def _both(found: Any, bounds: Bounds, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest, float64."""
    arrays = []
    for name in bounds.split("_"):
        values = found.get(name) if isinstance(found, dict) else None
        if not isinstance(values, list) or not values:
            raise ValueError(f"statistics: {what} has no {name}, one number a dimension; {COPY}")
        if any(type(each) not in (int, float) for each in values):
            raise ValueError(
                f"statistics: {what} has {name} {values!r:.80}, expected a number a dimension; {COPY}"
            )
        arrays.append(np.array(values, np.float64))
    if arrays[0].shape != arrays[1].shape or not np.isfinite(np.stack(arrays)).all():
        raise ValueError(f"statistics: {what} is not finite, or of several lengths; {COPY}")
    return arrays[0], arrays[1]
