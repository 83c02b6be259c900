"""OpenVLA's robot, its card, and its network with weights: what both layouts on disk do alike. It
looks through one camera, at no state, and decides one action at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from armlet.policies.building import rebuild
from armlet.policies.contract import Body
from armlet.policies.precisions import long_name
from armlet.policies.pretrained.card import (
    PROMPT_TOKENS,
    Card,
    Choice,
    Work,
    dtypes_of,
    parts_of,
)
from armlet.policies.pretrained.dino_siglip import Sizes
from armlet.policies.pretrained.fields import sizes_from
from armlet.policies.pretrained.files import Names, Tensors, fill
from armlet.policies.pretrained.openvla import OpenVLA
from armlet.policies.pretrained.openvla_files import Statistics, action_normaliser
from armlet.policies.pretrained.said import Said
from armlet.robot.normalise import Normaliser
from armlet.robot.reading.llama import LONGEST, PROMPT
from armlet.robot.spec import RobotSpec

CAMERA = "image"
DIMS = 7  # of an action, while nobody has said of which data set
FAR = 1e3  # a quantile beyond this is in no robot's unit


@dataclass(frozen=True)
class Checkpoint:
    """What was found on disk: `key` is the data set by whose statistics actions are turned into the
    robot's numbers."""

    tensors: Tensors
    names: Names
    sizes: Sizes
    bins: int
    key: str
    statistics: Mapping[str, Any]
    source: Path  # of the statistics


def no_state() -> Normaliser:
    """Of a policy that looks at none."""
    return Normaliser(np.zeros(0, np.float32), np.ones(0, np.float32))


def robots_camera(said: Said, robot: RobotSpec | None, name: str = CAMERA) -> str:
    """What the robot calls the one camera of a checkpoint that looks through one. Raises ValueError
    where it has several and nobody says which is meant."""
    said.check_cameras([name])
    if robot is None or name in said.cameras or name in robot.observation.cameras:
        return said.camera(name)
    there = sorted(robot.observation.cameras)
    if len(there) == 1:
        return there[0]
    raise ValueError(
        f"{said.checkpoint} looks through one camera, and the robot has "
        f"{', '.join(there) or 'none'}: say which it is in [cameras] of policy.toml: "
        f'{name} = "…"'
    )


def check_execute(said: Said, chunk: int) -> None:
    """Raises ValueError where more actions are to be carried out than are decided at a time."""
    if said.execute is not None and said.execute > chunk:
        raise ValueError(
            f"{said.source}: execute is {said.execute}, and the policy decides {chunk} action(s) "
            "at a time"
        )


def assemble(
    said: Said, robot: RobotSpec | None, found: Checkpoint, tokenizer: Tokenizer
) -> OpenVLA:
    """The policy, with the weights of the files. Raises as `files.fill` and `Said.action_spec`
    do."""
    check_execute(said, OpenVLA.chunk)
    where = f"{found.source}: {found.key}"
    actions = action_normaliser(found.statistics["action"], where)
    body = Body(
        action_spec=said.action_spec(len(actions.offset), robot),
        state=no_state(),
        actions=actions,
        tokenizer=tokenizer,
        fit="bicubic",
    )
    described = {
        "type": "pretrained.openvla",
        "network": {
            "sizes": found.sizes.to_json(),
            "cameras": {robots_camera(said, robot): found.sizes.dino.side},
            "text_tokens": LONGEST,
            "bins": found.bins,
            "dtype": long_name(weights_dtype(said, found)),
            "kept_layers": None,
        },
        **body.to_json(),
    }
    with sizes_from(", ".join(map(str, found.tensors.files[:3]))):
        network = rebuild(described, tokenizer, empty=True)
    assert isinstance(network, OpenVLA)
    fill(network, found.tensors, found.names, dtype=network.dtype)
    return network.eval()


def weights_dtype(said: Said, found: Checkpoint) -> torch.dtype:
    """Of all weights in memory. As saved: as most numbers of the files are."""
    if said.dtype is not None:
        return said.dtype
    counts: dict[torch.dtype, int] = {}
    for header in found.tensors.values():
        counts[header.dtype] = counts.get(header.dtype, 0) + header.numel
    return max(counts, key=lambda dtype: counts[dtype])


def card(
    kind: str,
    root: Path,
    sizes: Sizes,
    tensors: Tensors,
    names: Names,
    statistics: Statistics,
    *,
    key: str | None,
    choices: tuple[Choice, ...],
    remarks: list[str],
    files: list[Path],
    heads: str | None = None,
) -> Card:
    """Of either layout; `key` is the `unnorm_key` that was said, `heads` those of the language
    model in words, where its sizes do not say."""
    llama = sizes.llama
    action = None
    lines = list(remarks)
    several = len(statistics.sets) > 1
    if key is not None or not several:
        name, stats = statistics.chosen(key)
        action = action_normaliser(stats["action"], f"{statistics.source}: {name}")
        lines += _odd(stats["action"], action, name)
    keys = Choice(
        "unnorm_key",
        tuple(sorted(statistics.sets)),
        key if several else next(iter(statistics.sets)),
        "by whose statistics actions become the robot's numbers",
    )
    side = sizes.dino.side
    parts = parts_of(
        renamed(tensors, names),
        {
            "vision.": "image towers",
            "projector.": "projector",
            "words.": "word table",
            "layers.": "layers",
            "norm.": "layers",
            "lm_head.": "word scores",
        },
    )
    return Card(
        kind=kind,
        root=root,
        sizes={
            "DINOv2": f"{sizes.dino.width} wide, {sizes.dino.depth} blocks, {side} px",
            "SigLIP": f"{sizes.siglip.width} wide, {sizes.siglip.depth} blocks, {side} px",
            "language model": f"Llama, {llama.width} wide, {llama.depth} layers of "
            f"{heads or llama.heads} heads, RMSNorm eps {llama.eps:g}",
            "words": f"{llama.vocabulary}, in a table of {llama.rows}",
        },
        cameras={CAMERA: (side, side)},
        state_dims=0,
        action_dims=0 if action is None else len(action.offset),
        chunk=1,
        execute=1,
        steps=0,
        layers=llama.depth,
        parts=parts,
        dtypes=dtypes_of(tensors),
        files=tuple(files),
        action=action,
        choices=(keys, *choices) if several else choices,
        remarks=tuple(lines),
        words=f"{PROMPT.format('<instruction in lower case>')!r}, then the token '▁'",
        work=_work(sizes, DIMS if action is None else len(action.offset)),
        unused=tuple(name for name in tensors if names.is_unused(name)),
    )


def _work(sizes: Sizes, dims: int) -> dict[str, tuple[Work, ...]]:
    """What its parts do for an action of `dims` numbers."""
    patches = sizes.dino.grid**2
    return {
        "image towers": (Work(patches),),
        "projector": (Work(patches),),
        # The first word is scored where the prompt ends, and the last is read by nobody.
        "layers": (Work(patches + PROMPT_TOKENS), Work(1, dims - 1)),
        "word scores": (Work(1, dims),),
    }


def renamed(tensors: Tensors, names: Names) -> Tensors:
    """Headers of what is used, by our names."""
    headers = {}
    for name, header in tensors.items():
        if not names.is_unused(name):
            headers[names.ours(name)] = header
    return Tensors(headers)


def _odd(statistics: Mapping[str, Any], action: Normaliser, name: str) -> list[str]:
    """What is odd in the statistics of an action."""
    lines = []
    still = np.flatnonzero(action.back == 0).tolist()
    if still:
        lines.append(
            f"{name}: dimension(s) {', '.join(map(str, still))} never moved in its data (q01 = "
            "q99): whatever is decided, they stay there"
        )
    far = np.abs(np.array([statistics["q01"], statistics["q99"]], np.float64)).max(0) > FAR
    if far.any():
        lines.append(
            f"{name}: dimension(s) {', '.join(map(str, np.flatnonzero(far).tolist()))} go beyond "
            f"{FAR:g}, which is in no robot's unit"
        )
    if statistics.get("mask") is None:
        lines.append(
            f"{name}: its statistics have no `mask`, so every dimension, a gripper as well, is "
            "turned into the robot's numbers by its quantiles"
        )
    return lines
