"""OpenVLA-OFT checkpoints (openvla-oft 213c5ff): OpenVLA's folder, fine-tuned, and what stands
beside it. `oft_files` says which file is what, `oft_network` what is computed.

A discrete policy that was merged, without a state, is a folder like OpenVLA's own: of such a one a
`policy.toml` must say `kind = "openvla_oft"`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor

from armlet.data.files import read_json
from armlet.policies.building import rebuild
from armlet.policies.contract import Backbone, Body
from armlet.policies.precisions import long_name
from armlet.policies.pretrained.card import (
    PROMPT_TOKENS,
    Card,
    Choice,
    Work,
    dtypes_of,
    parts_of,
)
from armlet.policies.pretrained.dino_siglip import network_from_json
from armlet.policies.pretrained.fields import sizes_from
from armlet.policies.pretrained.files import COPY, Change, fill
from armlet.policies.pretrained.llama_tokenizer import (
    FILE as TOKENIZER,
)
from armlet.policies.pretrained.llama_tokenizer import (
    read_tokenizer,
    tokenizer_file,
)
from armlet.policies.pretrained.lora import by_our_names
from armlet.policies.pretrained.oft_files import (
    ADAPTER,
    FITS,
    HEAD,
    NAMES,
    NOISY,
    PROPRIO,
    Bounds,
    Options,
    Parts,
    Told,
    action_normaliser,
    component,
    has_model,
    state_normaliser,
)
from armlet.policies.pretrained.oft_network import TYPE, OpenVLAOFT
from armlet.policies.pretrained.openvla_body import (
    check_execute,
    no_state,
    renamed,
    robots_camera,
)
from armlet.policies.pretrained.openvla_folders import CONFIG
from armlet.policies.pretrained.said import Said
from armlet.robot.normalise import Normaliser
from armlet.robot.reading.llama import LONGEST, PROMPT
from armlet.robot.spec import RobotSpec

__all__ = ["Options", "accepts", "describe", "files", "from_json", "load", "recognises"]


def recognises(folder: Path) -> bool:
    """Whether OpenVLA-OFT alone writes such a folder."""
    sides = any(list(folder.glob(f"*{name}*checkpoint*.pt")) for name in (HEAD, PROPRIO, NOISY))
    return sides or (folder / ADAPTER).is_dir()


def accepts(folder: Path) -> bool:
    """Whether a folder can be of this kind, where somebody says so."""
    if recognises(folder):
        return True
    config = folder / CONFIG
    return (
        has_model(folder)
        and config.is_file()
        and read_json(config, fix=COPY).get("model_type") == "openvla"
    )


def files(said: Said) -> list[Path]:
    parts = _read(said)
    return [*parts.files, tokenizer_file(parts.words, said.tokenizer)]


class _Facts:
    """All that a checkpoint and what is said of it come to for one data set's statistics, before a
    weight is read; what nobody says is None, or none."""

    def __init__(self, parts: Parts, key: str) -> None:
        self.parts = parts
        self.key, statistics = parts.statistics.chosen(key)
        self.dims = parts.dims(statistics)
        self.told = told = parts.told(self.key, self.dims)
        self.action: Normaliser | None = None
        self.state: Normaliser | None = None
        if told.bounds is not None:
            where = f"{parts.statistics.source}: {self.key}"
            self.action = action_normaliser(statistics, told.bounds, where)
            self.state = _state(parts, statistics, told.bounds, where)
        if told.chunk is not None:
            check_execute(parts.said, told.chunk)
        self.execute = parts.said.execute or told.chunk or 0


def _state(parts: Parts, statistics: Mapping[str, Any], bounds: Bounds, where: str) -> Normaliser:
    """Raises ValueError where the statistics are of another robot."""
    if not parts.proprio_dims:
        return no_state()
    found = state_normaliser(statistics, bounds, where)
    if len(found.offset) != parts.proprio_dims:
        raise ValueError(
            f"{parts.proprio} takes a state of {parts.proprio_dims} numbers, and {where} has "
            f"statistics of {len(found.offset)}: are they of another robot? {COPY}"
        )
    return found


def _read(said: Said) -> Parts:
    _refuse_diffusion(said.checkpoint)
    return Parts.read(said)


def describe(said: Said) -> Card:
    parts = _read(said)
    statistics = parts.statistics
    key = parts.options.unnorm_key
    if key is None and len(statistics.sets) == 1:
        key = next(iter(statistics.sets))
    facts = None if key is None else _Facts(parts, key)
    told = Told(None, None, (), "its data set is not chosen") if facts is None else facts.told
    sizes = parts.model.sizes
    llama = sizes.llama
    side = sizes.dino.side
    names = parts.names
    rooms = {
        "vision.": "image towers",
        "film.": "FiLM",
        "projector.": "projector",
        "words.": "word table",
        "layers.": "layers",
        "norm.": "layers",
        "lm_head.": "word scores",
        "head.": "action head",
        "proprio.": "state",
    }
    return Card(
        kind="openvla_oft",
        root=said.checkpoint,
        sizes={
            "DINOv2": f"{sizes.dino.width} wide, {sizes.dino.depth} blocks, {side} px",
            "SigLIP": f"{sizes.siglip.width} wide, {sizes.siglip.depth} blocks, {side} px",
            "language model": f"Llama, {llama.width} wide, {llama.depth} layers of {llama.heads} "
            f"heads, RMSNorm eps {llama.eps:g}",
            "decides": "by a head of L1 regression" if parts.head else "by words, all at once",
            "FiLM": "words are told to the towers" if parts.vision else "none",
        },
        cameras=dict.fromkeys(told.views),  # of any size
        called={view: said.camera(view) for view in told.views},
        state_dims=parts.proprio_dims,
        action_dims=0 if facts is None else facts.dims,
        chunk=told.chunk or 0,
        execute=0 if facts is None else facts.execute,
        steps=0,
        layers=llama.depth,
        parts=parts_of(renamed(parts.tensors, names), rooms),
        dtypes=dtypes_of(parts.tensors),
        files=tuple(parts.files),
        state=None if facts is None or not parts.proprio_dims else facts.state,
        action=None if facts is None else facts.action,
        choices=_choices(parts, key, told),
        remarks=tuple(_remarks(parts, key, told)),
        work=_work(parts, facts),
        words=f"{PROMPT.format('<instruction in lower case>')!r}, then the token '▁'",
        unused=tuple(name for name in parts.tensors if names.is_unused(name)),
    )


def _work(parts: Parts, facts: _Facts | None) -> dict[str, tuple[Work, ...]]:
    """What its parts do for a decision; nothing while nobody has said how many actions and pictures
    there are."""
    if facts is None or facts.told.chunk is None or not facts.told.views:
        return {}
    views = len(facts.told.views)
    patches = views * parts.model.sizes.dino.grid**2
    chunk = facts.told.chunk
    proprio = 1 if parts.proprio_dims else 0
    # All actions are decided at once, a token for each of their numbers, and the end token.
    asked = chunk * facts.dims
    found: dict[str, tuple[Work, ...]] = {
        "image towers": (Work(patches),),
        "projector": (Work(patches),),
        "layers": (Work(patches + proprio + PROMPT_TOKENS + asked + 1),),
    }
    if parts.vision is not None:
        found["FiLM"] = (Work(views),)  # by one token of words, for the pictures of each camera
    if proprio:
        found["state"] = (Work(1),)
    if parts.head:
        found["action head"] = (Work(chunk),)
    else:
        found["word scores"] = (Work(asked),)
    return found


def _choices(parts: Parts, key: str | None, told: Told) -> tuple[Choice, ...]:
    keys = tuple(sorted(parts.statistics.sets))
    views = told.views or None
    pictures = "how pictures are prepared: as usual where it was trained on random crops"
    return (
        Choice("unnorm_key", keys, key, "by whose statistics actions become the robot's numbers"),
        Choice("chunk", (), told.chunk, f"actions decided at a time ({told.why})"),
        Choice("bounds", ("q01_q99", "min_max"), told.bounds, f"what is −1 and 1 ({told.why})"),
        Choice("views", (), views, f"its pictures, the main one first ({told.why})"),
        Choice("preparation", tuple(FITS), parts.options.preparation, pictures),
    )


def _remarks(parts: Parts, key: str | None, told: Told) -> Iterator[str]:
    if not told.missing:
        yield (
            "a checkpoint does not say how many actions it decides at a time, nor which pictures "
            f"it sees: taken are {told.chunk} and {', '.join(told.views)} ({told.why}); `platform` "
            f"({', '.join(NAMES)}) in [options] of policy.toml says all of it in one word"
        )
    if parts.adapter is not None:
        yield f"its adapter is merged into {parts.model.root} when it is loaded, in bf16"
    if parts.vision is not None:
        yield f"the towers are those of {parts.vision.name}; the model's own are the base's"
    if not (parts.words / TOKENIZER).is_file() and parts.said.tokenizer is None:
        yield "it has no tokenizer: give Llama-2's as `tokenizer` in policy.toml"
    if key is not None and key.startswith("libero"):
        yield (
            "LIBERO's evaluation turns pictures by 180° before, and afterwards makes the gripper's "
            "0 … 1 (1: open) its environment's 1 … −1 (−1: open): neither is done here"
        )


def load(said: Said, robot: RobotSpec | None) -> Backbone:
    parts = _read(said)
    key, _ = parts.statistics.chosen(parts.options.unnorm_key)
    facts = _Facts(parts, key)
    told = facts.told
    if told.missing or facts.action is None or facts.state is None:
        raise ValueError(
            f"{said.checkpoint}: {told.why}, and a checkpoint does not say its "
            f"{', '.join(told.missing)}; give {' and '.join(told.missing)}, or `platform` "
            f"({', '.join(NAMES)}), in [options] of policy.toml"
        )
    tokenizer = read_tokenizer(parts.words, said.tokenizer, parts.model.vocabulary)
    names = said.state_names(parts.proprio_dims, robot) if parts.proprio_dims else ()
    fit = FITS[parts.options.preparation]
    spec = said.action_spec(facts.dims, robot)
    body = Body(spec, facts.state, facts.action, tokenizer, names, fit)
    # In one precision, as the project runs it: as saved is that of the language model.
    words = parts.tensors["language_model.model.embed_tokens.weight"].dtype
    dtype = said.dtype or words
    network = {
        "sizes": parts.model.sizes.to_json(),
        "cameras": dict.fromkeys(_cameras(parts, told.views, robot), parts.model.sizes.dino.side),
        "text_tokens": LONGEST,
        "dtype": long_name(dtype),
        "kept_layers": None,
        "chunk": told.chunk,
        "execute": facts.execute,
        "proprio": parts.proprio_dims,
        "bins": 0 if parts.head is not None else parts.model.bins,
        "film": parts.vision is not None,
    }
    if parts.adapter is not None:
        parts.adapter.check_copies(parts.tensors)
    description = {"type": TYPE, "network": network, **body.to_json()}
    with sizes_from(parts.model.root):
        policy = rebuild(description, tokenizer, empty=True)
    fill(policy, parts.tensors, parts.names, dtype=dtype, change=_change(parts))
    return policy


def _cameras(parts: Parts, views: tuple[str, ...], robot: RobotSpec | None) -> list[str]:
    """The robot's names of its pictures, in their order. Raises ValueError where the robot lacks
    one."""
    said = parts.said
    if len(views) == 1:
        return [robots_camera(said, robot, views[0])]
    said.check_cameras(list(views))
    found = [said.camera(view) for view in views]
    there = found if robot is None else sorted(robot.observation.cameras)
    missing = [view for view, name in zip(views, found, strict=True) if name not in there]
    if missing:
        raise ValueError(
            f"{said.checkpoint} sees {', '.join(views)}, and the robot has "
            f"{', '.join(there) or 'no camera'}: say which of them is {' and '.join(missing)} in "
            f'[cameras] of policy.toml: {missing[0]} = "…"; or, where it was trained on fewer '
            "pictures, give `views` in [options]"
        )
    return found


def _change(parts: Parts) -> Change:
    """What adapters add to weights, by our names."""
    names = parts.names
    merged: Mapping[str, str] = {}
    beside: Mapping[str, str] = {}
    if parts.adapter is not None:
        merged = by_our_names(parts.adapter, names)
    if parts.beside is not None:
        beside = by_our_names(parts.beside, names)

    def change(ours: str, weight: Tensor) -> Tensor:
        if ours in beside:  # the towers with FiLM, where the adapter has the same layers' too
            assert parts.beside is not None
            return parts.beside.beside(beside[ours], weight)
        if ours in merged:
            assert parts.adapter is not None
            return parts.adapter.merged(merged[ours], weight)
        return weight

    return change


def from_json(description: dict[str, Any], tokenizer: Tokenizer) -> OpenVLAOFT:
    """The network that `to_json` described, with fresh weights."""
    body = Body.from_json(description, tokenizer)
    return OpenVLAOFT(body=body, **network_from_json(description["network"]))


def _refuse_diffusion(folder: Path) -> None:
    noisy = component(folder, NOISY)
    if noisy is not None:
        raise ValueError(
            f"{noisy}: a policy of diffusion, and only L1 regression and words are read here; it "
            "can teach through a socket (--teacher ws://host:port)"
        )
