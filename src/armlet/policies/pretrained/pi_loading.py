"""A checkpoint of π0 or π0.5 as a card, from its headers, and as a policy."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from armlet.policies.building import rebuild
from armlet.policies.contract import Backbone, Body
from armlet.policies.pretrained.card import (
    Card,
    Choice,
    Work,
    dtypes_of,
    parts_of,
    relative_remarks,
)
from armlet.policies.pretrained.fields import Fields, sizes_from
from armlet.policies.pretrained.files import COPY, Tensors, fill
from armlet.policies.pretrained.lerobot import CONFIG, WEIGHTS
from armlet.policies.pretrained.pi_files import (
    HEADS,
    REAL_HEADS,
    REAL_WIDTH,
    Checkpoint,
    PiOptions,
    names_of,
    sizes_of,
)
from armlet.policies.pretrained.pi_layouts import read
from armlet.policies.pretrained.pi_tokenizer import open_tokenizer
from armlet.policies.pretrained.said import Said
from armlet.robot.normalise import Normaliser
from armlet.robot.reading.paligemma import Prompts, Wording
from armlet.robot.spec import RobotSpec

# Parts of a network, for a card: how names begin.
ROOMS = {
    "vision.": "eyes (SigLIP)",
    "projector.": "eyes (SigLIP)",
    "words.": "words",
    "layers.*.prefix.": "layers of the prefix",
    "layers.*.expert.*layernorm.dense.": "modulation of the expert",  # by the time: π0.5
    "layers.*.expert.": "layers of the expert",
}


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
    remarks += relative_remarks(found.relative)
    unused = [name for name in found.tensors if names.is_unused(name)]
    renamed = Tensors(
        {names.ours(n): found.tensors[n] for n in found.tensors if not names.is_unused(n)}
    )
    return Card(
        kind=design,
        root=found.root,
        sizes=_in_words(found, sizes),
        cameras=dict(found.cameras),
        state_dims=len(found.state.offset),
        action_dims=len(found.actions.offset),
        chunk=found.chunk,
        execute=said.execute or found.execute,
        steps=options.steps or found.steps,
        layers=sizes["depth"],
        parts=parts_of(renamed, ROOMS),
        dtypes=dtypes_of(found.tensors),
        work=_work(found, sizes, design, options),
        called={
            name: said.cameras.get(name, found.usual.get(name, name)) for name in found.cameras
        },
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


def _work(
    found: Checkpoint, sizes: Mapping[str, int], design: str, options: PiOptions
) -> dict[str, tuple[Work, ...]]:
    """What its parts do for a decision: all but the expert once."""
    eyes = (len(found.cameras) - len(options.missing)) * (sizes["image"] // sizes["patch"]) ** 2
    steps = options.steps or found.steps
    ahead = 1 if design == "pi0" else 0  # the state's token
    work: dict[str, tuple[Work, ...]] = {
        "eyes (SigLIP)": (Work(eyes),),
        "layers of the prefix": (Work(eyes + found.tokens),),  # prompts are filled up
        "layers of the expert": (Work(ahead + found.chunk, steps),),
        "the rest": (Work(found.chunk, steps),),  # what actions and their time enter and leave by
    }
    if design == "pi05":
        work["modulation of the expert"] = (Work(1, steps),)
    return work


def _in_words(found: Checkpoint, sizes: Mapping[str, int]) -> dict[str, str]:
    return {
        "layout": found.layout,
        "prefix (Gemma)": f"{sizes['width']} wide, MLP {sizes['mlp']}",
        "expert (Gemma)": f"{sizes['expert_width']} wide, MLP {sizes['expert_mlp']}",
        "layers": f"{sizes['depth']} pairs, {HEADS} heads of {sizes['head_dim']}",
        "eyes (SigLIP)": f"{sizes['vision_depth']} layers, {sizes['vision_width']} wide, patches "
        f"of {sizes['patch']}, pictures of {sizes['image']}",
        "vocabulary": str(sizes["vocabulary"]),
    }


Wanted = Callable[[Checkpoint], tuple[Wording, int]]  # the wording, and numbers of a state in it


def load(
    said: Said, robot: RobotSpec | None, design: str, options: PiOptions, wanted: Wanted
) -> Backbone:
    """The policy, on the CPU. Raises FileNotFoundError or ValueError naming file, field or
    tensor."""
    found = read(said, design, options)
    description = described(said, robot, design, options, found, wanted)
    tokenizer = open_tokenizer(said.tokenizer or found.tokenizer)
    rows = description["network"]["sizes"]["vocabulary"]
    if tokenizer.get_vocab_size() > rows:
        raise ValueError(
            f"the tokenizer {said.tokenizer or found.tokenizer} has {tokenizer.get_vocab_size()} "
            f"words and {found.root / WEIGHTS} {rows}: it is another network's; name PaliGemma's "
            "in `tokenizer` in policy.toml"
        )
    with sizes_from(found.root / CONFIG):
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
    most = min(dims, len(state.offset))
    if any(not 0 <= index < most for index in found.relative):
        raise ValueError(
            f"{found.root}: actions {', '.join(map(str, found.relative))} are relative to the "
            f"state, which has {len(state.offset)} numbers, and actions {dims}: expected "
            "dimensions that both have"
        )
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
    fields = Fields(found.config, found.root / CONFIG)
    network = {
        "design": design,
        "sizes": sizes,
        "prompts": asdict(Prompts(wording, found.tokens, options.too_long, slots)),
        "cameras": _cameras(said, options, found, sizes["image"]),
        "chunk": found.chunk,
        "execute": execute,
        "steps": options.steps or found.steps,
        "padding": options.padding,
        "box": found.box,
        "count_padding": options.count_padding,
        "min_period": fields.real("min_period", 0.004, above=0),
        "max_period": fields.real("max_period", 4.0, above=0),
        "beta": (
            fields.real("time_sampling_beta_alpha", 1.5, above=0),
            fields.real("time_sampling_beta_beta", 1.0, above=0),
        ),
        "time_scale": fields.real("time_sampling_scale", 0.999),
        "time_offset": fields.real("time_sampling_offset", 0.001),
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
            f"{place} says {states} numbers of state and {actions} of actions, and the weights "
            f"have {sizes['state_slots']} and {sizes['action_slots']}; {COPY}"
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
    """The normalisers of state and actions. openpi's statistics may be of more numbers than the
    robot has, filled up with zeros, of which it takes the first; so are they here."""
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
            f"{said.source}: [options] missing names {', '.join(unknown)}, and the checkpoint "
            f"looks through {', '.join(known)}"
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
