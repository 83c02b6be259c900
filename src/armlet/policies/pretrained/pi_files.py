"""The tensors of π0 and π0.5 on disk, in both layouts: LeRobot's folders, and those of openpi's
PyTorch code (`config.json`, `model.safetensors`, `assets/…/norm_stats.json`).

Which sizes the two Gemmas and the eyes have no file says: they are read off the tensors' shapes.
What shapes do not tell either, and which version of LeRobot wrote a folder, are options.

(openpi 15a9616, LeRobot 0.4.4 and 0.6.1.)
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from armlet.data.files import read_json
from armlet.policies.pretrained.card import Choice
from armlet.policies.pretrained.files import COPY, Header, Names, Tensors, open_safetensors
from armlet.policies.pretrained.lerobot import CONFIG, WEIGHTS
from armlet.robot.fit import Fit
from armlet.robot.normalise import Normaliser
from armlet.robot.reading.paligemma import TooLong, Wording

REAL_WIDTH = 1152  # of PaliGemma's eyes, SigLIP So400m, which have
REAL_HEADS = 16
HEADS = 8  # of both Gemmas, in every published checkpoint and in LeRobot's code
OLD_PADDING = -3.0
Box = Literal["middle", "corner"]  # the right and lower one, as LeRobot before 0.4 has it
VISION = "vision.embeddings."
PREFIX = "layers.0.prefix."
EXPERT = "layers.0.expert."


@dataclass(frozen=True)
class PiOptions:
    """What `[options]` of a `policy.toml` may say of either."""

    steps: int | None = None
    """From noise to actions; else the checkpoint's, or 10."""
    seed: int = 0
    """Of the noise that each decision starts from."""
    padding: float = -1.0
    """Beside pictures that are not square: −1, or −3 where LeRobot 0.4 trained it."""
    vision_heads: int | None = None
    """Attention heads of the eyes, where they are not PaliGemma's."""
    missing: tuple[str, ...] = ()
    """The checkpoint's cameras that the robot does not have: they are masked."""
    too_long: TooLong = "refuse"
    """Whether a prompt that is too long is refused or cut."""
    count_padding: bool = False
    """Whether actions past the end of an episode count in the loss, as they do where these
    networks come from."""
    norm_stats: str | None = None
    """The folder of statistics under `assets`, where an openpi checkpoint has several."""
    relative: tuple[int, ...] | None = None
    """Of an openpi checkpoint: the action dimensions that its data made relative to the state."""

    def __post_init__(self) -> None:
        if self.padding not in (-1.0, OLD_PADDING):
            raise ValueError(f"padding is {self.padding!r}, expected -1 or -3")
        if self.too_long not in ("refuse", "cut"):
            raise ValueError(f"too_long is {self.too_long!r}, expected 'refuse' or 'cut'")
        for name in ("steps", "vision_heads"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value!r}, expected a number from 1 on")
        for name in ("missing", "relative"):
            if isinstance(getattr(self, name), str | int):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected a list")


@dataclass(frozen=True)
class Checkpoint:
    """What either layout says, in the same words. `cameras`: the checkpoint's name → (height,
    width), None where any; `usual` the robot's name of each, by the checkpoint. `relative`: which
    action dimensions are, of how many numbers and names."""

    root: Path
    layout: str
    tensors: Tensors
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    cameras: Mapping[str, tuple[int, int] | None]
    usual: Mapping[str, str]
    state: Normaliser
    actions: Normaliser
    action_names: tuple[str, ...] | None
    relative: tuple[int, ...]
    chunk: int
    execute: int
    steps: int
    slots: tuple[int, int]  # of state and actions
    image: int | None
    wording: Wording
    tokens: int
    tokenizer: str
    fit: Fit
    box: Box  # where a picture lies that is not square
    choices: tuple[Choice, ...] = ()
    remarks: tuple[str, ...] = ()


def recognises(folder: Path, design: str) -> bool:
    """Whether a folder holds this design, in either layout. Of openpi's only the names of its
    tensors tell, so that their header is read."""
    try:
        config = read_json(folder / CONFIG, fix=COPY)
    except (FileNotFoundError, ValueError):
        return False
    if "type" in config:
        return config["type"] == design and "input_features" in config
    if not {"action_horizon", "action_dim", "paligemma_variant"} <= set(config):
        return False
    try:
        there = open_safetensors(folder / WEIGHTS)
    except (FileNotFoundError, ValueError):
        return design == "pi0"  # whoever loads it says what is wrong with the file
    return ("time_mlp_in.weight" in there) == (design == "pi05")


def names_of(tensors: Tensors) -> Names:
    """How the tensors of either layout, and of older transformers, are called here."""
    renamed = [
        (r"^model\.", ""),
        # As transformers before 4.52 called PaliGemma's parts.
        (r"\.paligemma\.language_model\.lm_head\.", ".paligemma.lm_head."),
        (r"\.paligemma\.language_model\.model\.", ".paligemma.model.language_model."),
        (r"\.paligemma\.(vision_tower|multi_modal_projector)\.", r".paligemma.model.\1."),
        (r"^paligemma_with_expert\.paligemma\.model\.language_model\.embed_tokens\.", "words."),
        (
            r"^paligemma_with_expert\.paligemma\.model\.language_model\.layers\.(\d+)\.",
            r"layers.\1.prefix.",
        ),
        (r"^paligemma_with_expert\.paligemma\.model\.language_model\.norm\.", "norm."),
        (r"^paligemma_with_expert\.paligemma\.model\.vision_tower\.(vision_model\.)?", "vision."),
        (
            r"^paligemma_with_expert\.paligemma\.model\.multi_modal_projector\.linear\.",
            "projector.",
        ),
        (r"^paligemma_with_expert\.gemma_expert\.model\.layers\.(\d+)\.", r"layers.\1.expert."),
        (r"^paligemma_with_expert\.gemma_expert\.model\.norm\.", "expert_norm."),
    ]
    # The expert's words are nobody's: it reads none.
    unused = ["*gemma_expert.lm_head.weight", "*gemma_expert.model.embed_tokens.weight"]
    if any(name.endswith("embed_tokens.weight") and "paligemma." in name for name in tensors):
        # Both are there, and may differ: fine-tuned, only the embedding is what is read.
        unused += ["*paligemma.lm_head.weight", "*paligemma.language_model.lm_head.weight"]
    else:  # tied, and saved once, under the other name
        renamed.append((r"^paligemma_with_expert\.paligemma\.lm_head\.", "words."))
    return Names(renamed=tuple(renamed), unused=tuple(unused))


def sizes_of(tensors: Tensors, design: str, vision_heads: int | None, slots: int) -> dict[str, int]:
    """The sizes of a network, by the shapes of its tensors; `slots` of a state, where no tensor
    reads one. Raises ValueError naming a tensor that is missing, or a size that no shape tells."""
    names = names_of(tensors)
    ours: dict[str, Header] = {}
    for name, header in tensors.items():
        ours[names.ours(name)] = header

    def shape(name: str) -> tuple[int, ...]:
        if name not in ours:
            shown = ", ".join(list(tensors)[:3])
            raise ValueError(
                f"{_where(tensors)} has no tensor for {name}, by which the network's size is "
                f"known; it has {shown}, …; {COPY}"
            )
        return ours[name].shape

    queries, width = shape(f"{PREFIX}self_attn.q_proj.weight")
    patches, vision_width = shape(f"{VISION}position_embedding.weight")
    patch = shape(f"{VISION}patch_embedding.weight")[-1]
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(
            f"{_where(tensors)}: pictures have {patches} patches, expected a square; {COPY}"
        )
    if vision_heads is None and vision_width != REAL_WIDTH:
        raise ValueError(
            f"{_where(tensors)}: its eyes are {vision_width} wide, and not {REAL_WIDTH} as "
            "PaliGemma's, so that no file says how many attention heads they have; give "
            "`vision_heads` in [options] of policy.toml"
        )
    expert_queries, expert_width = shape(f"{EXPERT}self_attn.q_proj.weight")
    if expert_queries != queries or queries % HEADS:
        raise ValueError(
            f"{_where(tensors)}: {queries} numbers of queries in the prefix and {expert_queries} "
            f"in the expert, expected as many in both, of {HEADS} heads; {COPY}"
        )
    return {
        "width": width,
        "mlp": shape(f"{PREFIX}mlp.gate_proj.weight")[0],
        "expert_width": expert_width,
        "expert_mlp": shape(f"{EXPERT}mlp.gate_proj.weight")[0],
        "depth": _count(ours, r"layers\.(\d+)\.prefix\."),
        "head_dim": queries // HEADS,
        "vocabulary": shape("words.weight")[0],
        "vision_width": vision_width,
        "vision_depth": _count(ours, r"vision\.encoder\.layers\.(\d+)\."),
        "vision_mlp": shape("vision.encoder.layers.0.mlp.fc1.weight")[0],
        "vision_heads": vision_heads or REAL_HEADS,
        "patch": patch,
        "image": side * patch,
        "state_slots": shape("state_proj.weight")[1] if design == "pi0" else slots,
        "action_slots": shape("action_in_proj.weight")[1],
        "heads": HEADS,
    }


def _count(names: Mapping[str, Header], pattern: str) -> int:
    """One more than the highest number of a layer; gaps are missing tensors, which are found
    later."""
    found = [re.match(pattern, name) for name in names]
    return 1 + max((int(each[1]) for each in found if each), default=-1)


def _where(tensors: Tensors) -> str:
    return ", ".join(map(str, tensors.files[:2])) or "the checkpoint"
