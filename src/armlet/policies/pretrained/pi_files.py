"""Checkpoints of π0 and π0.5 on disk, in both layouts: LeRobot's folders, and those of openpi's
PyTorch code (`config.json`, `model.safetensors`, `assets/…/norm_stats.json`).

Which sizes the two Gemmas and the eyes have no file says: they are read off the tensors' shapes. What
shapes do not tell either, and which version of LeRobot wrote a folder, are options.

(openpi 15a9616, LeRobot 0.4.4 and 0.6.1.)
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from armlet.data.files import read_json
from armlet.policies.contract import Backbone, Body, rebuild
from armlet.policies.pretrained.card import Card, Choice, dtypes_of, parts_of
from armlet.policies.pretrained.files import (
    COPY,
    Header,
    Names,
    Tensors,
    fill,
    match,
    open_safetensors,
)
from armlet.policies.pretrained.lerobot import (
    ACTION,
    AFTER,
    BEFORE,
    CONFIG,
    STATE,
    WEIGHTS,
    Folder,
)
from armlet.policies.pretrained.pi_words import PALIGEMMA, Prompts, TooLong, Wording, open_tokenizer
from armlet.policies.pretrained.said import Said
from armlet.robot.fit import Fit
from armlet.robot.normalise import Mode, Normaliser
from armlet.robot.spec import RobotSpec

ASSETS = "assets"
NORM_STATS = "norm_stats.json"
REAL_WIDTH = 1152  # of PaliGemma's eyes, SigLIP So400m, which have
REAL_HEADS = 16
HEADS = 8  # of both Gemmas, in every published checkpoint and in LeRobot's code
# openpi's names of its three cameras, in the order of its tokens.
OPENPI_CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
TOKENS = {"pi0": 48, "pi05": 200}  # openpi's longest prompts
OLD_PADDING = -3.0
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
    """What either layout says, in the same words. `cameras`: the checkpoint's name → (height, width),
    None where any; `usual` the robot's name of each, by the checkpoint. `relative`: which action
    dimensions are, of how many numbers and names."""

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
    choices: tuple[Choice, ...] = ()
    remarks: tuple[str, ...] = ()


def recognises(folder: Path, design: str) -> bool:
    """Whether a folder holds this design, in either layout. Of openpi's only the names of its tensors
    tell, so that their header is read."""
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
                f"{_where(tensors)} has no tensor for {name}, by which the network's size is known; "
                f"it has {shown}, …; {COPY}"
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
            f"{_where(tensors)}: {queries} numbers of queries in the prefix and {expert_queries} in "
            f"the expert, expected as many in both, of {HEADS} heads; {COPY}"
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
    """One more than the highest number of a layer; gaps are missing tensors, which are found later."""
    found = [re.match(pattern, name) for name in names]
    return 1 + max((int(each[1]) for each in found if each), default=-1)


def _where(tensors: Tensors) -> str:
    return ", ".join(map(str, tensors.files[:2])) or "the checkpoint"


def read(said: Said, design: str, options: PiOptions) -> Checkpoint:
    """A checkpoint's files but the numbers of its weights. Raises FileNotFoundError or ValueError
    naming the file or field."""
    config = read_json(said.checkpoint / CONFIG, fix=COPY)
    reader = _read_lerobot if "type" in config else _read_openpi
    return reader(said, design, options)


def _read_lerobot(said: Said, design: str, options: PiOptions) -> Checkpoint:
    folder = Folder.read(said.checkpoint)
    _check_lerobot(folder, said, design, options)
    config = folder.config
    tokens = folder.tokens
    if tokens is None or tokens.padding != "right":
        raise ValueError(
            f"{folder.root / BEFORE} has no tokenizer_processor that pads right, and these networks "
            f"were never taught otherwise; {COPY}"
        )
    cameras: dict[str, tuple[int, int] | None] = {}
    for name, size in folder.cameras.items():
        if not name.startswith("empty_camera"):  # stands for none, and is masked
            cameras[name] = size
    files = [folder.root / name for name in (CONFIG, WEIGHTS, BEFORE, AFTER)]
    for step in (*(folder.before or ()), *(folder.after or ())):
        files += [step.state_file] if step.state_file else []
    dims = folder.size(ACTION)
    wording, remarks = _lerobots_wording(folder, design)
    names = config.get("action_feature_names")
    return Checkpoint(
        root=folder.root,
        layout="LeRobot",
        tensors=folder.tensors,
        config=config,
        files=tuple(dict.fromkeys(files)),
        cameras=cameras,
        usual=folder.robots_cameras,
        state=folder.normaliser(STATE) if folder.size(STATE) else Normaliser(*_nothing()),
        actions=folder.normaliser(ACTION),
        action_names=tuple(names) if names and len(names) == dims else None,
        relative=folder.relative.dims(dims) if folder.relative else (),
        chunk=int(folder.needed("chunk_size")),
        execute=int(folder.needed("n_action_steps")),
        steps=int(folder.needed("num_inference_steps")),
        slots=(int(folder.needed("max_state_dim")), int(folder.needed("max_action_dim"))),
        image=int(folder.needed("image_resolution")[0]),
        wording=wording,
        tokens=tokens.longest,
        tokenizer=tokens.name,
        fit="any",
        choices=(
            Choice(
                "padding",
                ("-1", "-3"),
                "-1",
                "LeRobot 0.4 boxed pictures that are not square with -3, and no file says which "
                "version trained this one",
            ),
        ),
        remarks=remarks,
    )


def _check_lerobot(folder: Folder, said: Said, design: str, options: PiOptions) -> None:
    """Raises ValueError where a folder is of another version, or says what these networks are not."""
    config = folder.config
    place = folder.root / CONFIG
    if folder.before is None or "image_resolution" not in config:
        raise ValueError(
            f"{place} is of LeRobot before 0.4, whose {design} boxed pictures and scaled what is "
            "seen otherwise; have LeRobot bring it to the new layout, or save it there again"
        )
    if config.get("use_peft"):
        raise ValueError(
            f"{place}: its weights are a LoRA beside another model's; merge them first"
        )
    for name in ("norm_stats", "relative"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"{said.source}: [options] {name} has no effect here: LeRobot's folder says it"
            )
    height, width = folder.needed("image_resolution")
    if height != width:
        raise ValueError(f"{place}: image_resolution is {height}×{width}, expected a square")
    for key in folder.camera_keys.values():
        if not np.array_equal(folder.normaliser(key).apply(np.ones(3)), np.ones(3)):
            raise ValueError(
                f"{place}: pictures of {key} are normalised by statistics, which these networks "
                "were never taught with; expected VISUAL: IDENTITY"
            )


def _nothing() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(0, np.float32), np.ones(0, np.float32)


def _lerobots_wording(folder: Folder, design: str) -> tuple[Wording, tuple[str, ...]]:
    """How a prompt is made, by the steps that are there, and what is odd about them."""
    prepares = bool(folder.steps("pi05_prepare_state_tokenizer_processor_step"))
    if design == "pi05" and prepares:
        return "state", ()
    if prepares:
        raise ValueError(f"{folder.root / BEFORE}: π0 reads no state in its prompt; {COPY}")
    if folder.has_new_line:
        return "new_line", ()
    return "as_is", (
        f"{BEFORE} has no step that makes a prompt of an instruction: it is read as it is",
    )


def _read_openpi(said: Said, design: str, options: PiOptions) -> Checkpoint:
    root = said.checkpoint
    config = read_json(root / CONFIG, fix=COPY)
    tensors = open_safetensors(root / WEIGHTS)
    file = _norm_stats(root, options)
    statistics = read_json(file, fix=COPY).get("norm_stats")
    mode: Mode = "mean_std" if design == "pi0" else "quantiles"
    found = {}
    for name in ("state", "actions"):
        values = statistics.get(name) if isinstance(statistics, dict) else None
        if not isinstance(values, dict) or not isinstance(values.get("mean"), list):
            raise ValueError(f"{file} has no norm_stats.{name} with a `mean`; {COPY}")
        known = {key: each for key, each in values.items() if each is not None}
        found[name] = Normaliser.from_statistics(
            known, mode, what=f"{file}: {name}", dims=len(values["mean"]), variant="openpi"
        )
    chunk = int(config["action_horizon"])
    dims = len(found["actions"].offset)
    relative = options.relative or ()
    if options.padding == OLD_PADDING or getattr(options, "padded_state", False):
        raise ValueError(
            f"{said.source}: [options] padding -3 and padded_state are for checkpoints of LeRobot's, "
            "and have no effect on openpi's"
        )
    if any(not 0 <= index < min(dims, len(found["state"].offset)) for index in relative):
        raise ValueError(
            f"{said.source}: [options] relative is {list(relative)}, expected dimensions that "
            f"actions ({dims}) and state ({len(found['state'].offset)}) both have"
        )
    spare = "camera of the checkpoint that the robot does not have; it is masked"
    return Checkpoint(
        root=root,
        layout="openpi",
        tensors=tensors,
        config=config,
        files=(root / CONFIG, root / WEIGHTS, file),
        cameras=dict.fromkeys(OPENPI_CAMERAS),
        usual={name: name for name in OPENPI_CAMERAS},
        state=found["state"],
        actions=found["actions"],
        action_names=None,
        relative=relative,
        chunk=chunk,
        execute=chunk,
        steps=10,
        slots=(int(config["action_dim"]), int(config["action_dim"])),
        image=None,
        wording="cleaned" if design == "pi0" else "state",
        tokens=TOKENS[design],
        tokenizer=PALIGEMMA,
        fit="openpi",
        choices=(
            Choice("missing", OPENPI_CAMERAS, "none", spare),
            Choice(
                "relative",
                ("dimensions",),
                "none",
                "openpi's training config says which actions were made relative to the state "
                "(DeltaActions), and the checkpoint does not",
            ),
        ),
        remarks=(
            "openpi's folder says neither how many actions of a chunk are carried out (`execute`) "
            "nor what its data transforms did: units and signs are those of its training config",
        ),
    )


def _norm_stats(root: Path, options: PiOptions) -> Path:
    """The file of statistics, chosen where there are several."""
    files = sorted((root / ASSETS).rglob(NORM_STATS))
    names = [file.parent.relative_to(root / ASSETS).as_posix() for file in files]
    if not files:
        raise FileNotFoundError(
            f"{root / ASSETS} holds no {NORM_STATS}, by which state and actions are normalised; {COPY}"
        )
    chosen = options.norm_stats
    if chosen is None and len(files) > 1:
        raise ValueError(
            f"{root / ASSETS} holds statistics of {', '.join(names)}; say whose are to be used: "
            "`norm_stats` in [options] of policy.toml"
        )
    if chosen is not None and chosen not in names:
        raise ValueError(
            f"{root / ASSETS} has no statistics {chosen!r}; it has {', '.join(names)}; correct "
            "`norm_stats` in [options] of policy.toml"
        )
    return files[names.index(chosen)] if chosen is not None else files[0]


def files(said: Said, design: str, options: PiOptions) -> list[Path]:
    """All that decides a checkpoint's answers."""
    found = list(read(said, design, options).files)
    words = Path(said.tokenizer or "") / "tokenizer.json"
    return [*found, words] if said.tokenizer and words.is_file() else found


def describe(said: Said, design: str, options: PiOptions, choices: tuple[Choice, ...]) -> Card:
    """From headers and small files alone."""
    found = read(said, design, options)
    names = names_of(found.tensors)
    eyes = options.vision_heads or REAL_HEADS  # of no matter for what is said here
    sizes = sizes_of(found.tensors, design, eyes, found.slots[0])
    remarks = list(found.remarks)
    vision = sizes["vision_width"]
    if options.vision_heads is None and vision != REAL_WIDTH:
        remarks.append(
            f"its eyes are {vision} wide, and not {REAL_WIDTH} as PaliGemma's: say `vision_heads`"
        )
    if found.relative:
        shown = ", ".join(map(str, found.relative))
        remarks.append(f"actions {shown} are relative to the state at the chunk's beginning")
    gemma = f"{sizes['width']} wide, MLP {sizes['mlp']}"
    expert = f"{sizes['expert_width']} wide, MLP {sizes['expert_mlp']}"
    unused = [name for name in found.tensors if names.is_unused(name)]
    rooms = {
        "vision.": "eyes (SigLIP)",
        "projector.": "eyes (SigLIP)",
        "words.": "words",
        "layers.": "layers",
    }
    renamed = Tensors(
        {names.ours(n): found.tensors[n] for n in found.tensors if not names.is_unused(n)}
    )
    return Card(
        kind=design,
        root=found.root,
        sizes={
            "layout": found.layout,
            "prefix (Gemma)": gemma,
            "expert (Gemma)": expert,
            "layers": f"{sizes['depth']} pairs, {HEADS} heads of {sizes['head_dim']}",
            "eyes (SigLIP)": f"{sizes['vision_depth']} layers, {vision} wide, patches of "
            f"{sizes['patch']}, pictures of {sizes['image']}",
            "vocabulary": str(sizes["vocabulary"]),
        },
        cameras=dict(found.cameras),
        state_dims=len(found.state.offset),
        action_dims=len(found.actions.offset),
        chunk=found.chunk,
        execute=said.execute or found.execute,
        steps=options.steps or found.steps,
        layers=sizes["depth"],
        parts=parts_of(renamed, rooms),
        dtypes=dtypes_of(found.tensors),
        files=found.files,
        state=found.state,
        action=found.actions,
        action_names=found.action_names or (),
        choices=(*found.choices, *choices),
        remarks=tuple(remarks),
        words=f"{found.wording}, {found.tokens} tokens at most, tokenizer "
        f"{said.tokenizer or found.tokenizer}",
        unused=tuple(unused),
    )


Wanted = Callable[[Checkpoint], tuple[Wording, int]]  # the wording, and numbers of a state in it


def load(
    said: Said, robot: RobotSpec | None, design: str, options: PiOptions, wanted: Wanted
) -> Backbone:
    """The policy, on the CPU. Raises FileNotFoundError or ValueError naming file, field or tensor."""
    found = read(said, design, options)
    description = described(said, robot, design, options, found, wanted)
    tokenizer = open_tokenizer(said.tokenizer or found.tokenizer)
    rows = description["network"]["sizes"]["vocabulary"]
    if tokenizer.get_vocab_size() > rows:
        raise ValueError(
            f"the tokenizer {said.tokenizer or found.tokenizer} has {tokenizer.get_vocab_size()} "
            f"words and {found.root / WEIGHTS} {rows}: it is another network's; name PaliGemma's in "
            "`tokenizer` in policy.toml"
        )
    policy = rebuild(description, tokenizer, empty=True)
    dtypes = {name: tensor.dtype for name, tensor in policy.state_dict().items()}

    def in_place(name: str, tensor: Tensor) -> Tensor:
        return tensor.to(dtypes[name])

    fill(policy, found.tensors, names_of(found.tensors), dtype=None, change=in_place)
    return policy.eval()


def described(
    said: Said,
    robot: RobotSpec | None,
    design: str,
    options: PiOptions,
    found: Checkpoint,
    wanted: Wanted,
) -> dict[str, Any]:
    """The network as its `to_json` says it."""
    sizes = sizes_of(found.tensors, design, options.vision_heads, found.slots[0])
    _check_sizes(found, sizes)
    state, actions = _cut_to(found, robot)
    dims = len(actions.offset)
    wording, slots = wanted(found)
    execute = said.execute or found.execute
    if execute > found.chunk:
        raise ValueError(
            f"{said.source}: execute is {execute}, and a chunk has {found.chunk} actions"
        )
    body = Body(
        action_spec=said.action_spec(dims, robot, names=found.action_names),
        state=state,
        actions=actions,
        tokenizer=None,  # type: ignore[arg-type]  # not described here
        state_names=said.state_names(len(state.offset), robot),
        fit=found.fit,
        relative=found.relative,
    )
    network = {
        "design": design,
        "sizes": sizes,
        "prompts": asdict(Prompts(wording, found.tokens, options.too_long, slots)),
        "cameras": _cameras(said, options, found, sizes["image"]),
        "chunk": found.chunk,
        "execute": execute,
        "steps": options.steps or found.steps,
        "padding": options.padding,
        "count_padding": options.count_padding,
        "min_period": found.config.get("min_period", 0.004),
        "max_period": found.config.get("max_period", 4.0),
        "beta": (
            found.config.get("time_sampling_beta_alpha", 1.5),
            found.config.get("time_sampling_beta_beta", 1.0),
        ),
        "time_scale": found.config.get("time_sampling_scale", 0.999),
        "time_offset": found.config.get("time_sampling_offset", 0.001),
        "seed": options.seed,
        "half": _half(said, found.tensors),
    }
    return {
        "type": f"pretrained.{design}",
        "network": network,
        "kept_layers": None,
        **body.to_json(),
    }


def _check_sizes(found: Checkpoint, sizes: Mapping[str, int]) -> None:
    """Raises ValueError where the config says another size than the weights have."""
    place = found.root / CONFIG
    states, actions = found.slots
    if (states, actions) != (sizes["state_slots"], sizes["action_slots"]):
        raise ValueError(
            f"{place} says {states} numbers of state and {actions} of actions, and the weights have "
            f"{sizes['state_slots']} and {sizes['action_slots']}; {COPY}"
        )
    if found.image is not None and found.image != sizes["image"]:
        raise ValueError(
            f"{place}: image_resolution is {found.image}, and the weights have places for pictures "
            f"of {sizes['image']}; {COPY}"
        )
    if sizes["vision_width"] % sizes["vision_heads"]:
        raise ValueError(
            f"vision_heads is {sizes['vision_heads']}, expected a divisor of the eyes' width, "
            f"{sizes['vision_width']}"
        )
    for what, has, most in (
        ("state", len(found.state.offset), states),
        ("actions", len(found.actions.offset), actions),
    ):
        if has > most:
            raise ValueError(f"{place}: {what} have {has} numbers, and the network takes {most}")


def _cut_to(found: Checkpoint, robot: RobotSpec | None) -> tuple[Normaliser, Normaliser]:
    """The normalisers of state and actions. openpi's statistics may be of more numbers than the robot
    has, filled up with zeros, of which it takes the first; so are they here."""
    if found.layout != "openpi" or robot is None:
        return found.state, found.actions
    cut = []
    for normaliser, dims in (
        (found.state, robot.observation.state_dims),
        (found.actions, robot.action.dims),
    ):
        many = len(normaliser.offset)
        parts = (normaliser.offset, normaliser.scale, normaliser.shift, normaliser.back)
        count = dims if dims is not None and 0 < dims < many else many
        cut.append(Normaliser(*(part[:count] for part in parts)))
    return cut[0], cut[1]


def _cameras(
    said: Said, options: PiOptions, found: Checkpoint, side: int
) -> dict[str, tuple[int, int]]:
    """The robot's name of each camera that is looked through → the size of its pictures."""
    known = list(found.cameras)
    said.check_cameras(known)
    unknown = sorted(set(options.missing) - set(known))
    if unknown:
        raise ValueError(
            f"{said.source}: [options] missing names {', '.join(unknown)}, and the checkpoint looks "
            f"through {', '.join(known)}"
        )
    cameras = {}
    for name, size in found.cameras.items():
        if name not in options.missing:
            ours = said.cameras.get(name, found.usual.get(name, name))
            cameras[ours] = size or (side, side)
    if not cameras:
        raise ValueError(f"{said.source}: no camera is left to look through; expected one at least")
    return cameras


def _half(said: Said, tensors: Tensors) -> bool:
    """Whether the two Gemmas are in bfloat16."""
    if said.dtype is not None:
        return said.dtype == torch.bfloat16
    kinds = {each.dtype for name, each in tensors.items() if name.endswith("q_proj.weight")}
    return torch.bfloat16 in kinds


def check_names(shapes: Mapping[str, tuple[int, ...]], policy: Backbone) -> None:
    """Raises ValueError where tensors of these names and shapes are not those of a network."""
    headers = {}
    for name, shape in shapes.items():
        headers[name] = Header(shape, torch.float32, Path(name), name)
    tensors = Tensors(headers)
    own = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    match(own, tensors, names_of(tensors))
