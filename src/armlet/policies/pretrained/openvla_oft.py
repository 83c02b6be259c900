"""OpenVLA-OFT checkpoints (openvla-oft 213c5ff): OpenVLA's folder, fine-tuned, and what stands beside
it. `oft_files` says which file is what, `oft_network` what is computed.

A discrete policy that was merged, without a state, is a folder like OpenVLA's own: of such a one a
`policy.toml` must say `kind = "openvla_oft"`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor

from armlet.data.files import read_json
from armlet.policies.contract import Backbone, Body, rebuild
from armlet.policies.pretrained.card import Card, Choice, dtypes_of, parts_of
from armlet.policies.pretrained.dino_siglip import network_from_json
from armlet.policies.pretrained.files import COPY, Change, fill
from armlet.policies.pretrained.lora import by_our_names
from armlet.policies.pretrained.oft_files import (
    ADAPTER,
    FITS,
    HEAD,
    NAMES,
    NOISY,
    PROPRIO,
    Constants,
    Options,
    Parts,
    action_normaliser,
    component,
    has_model,
    state_normaliser,
)
from armlet.policies.pretrained.oft_network import TYPE, OpenVLAOFT
from armlet.policies.pretrained.openvla_body import no_state
from armlet.policies.pretrained.openvla_folders import CONFIG
from armlet.policies.pretrained.openvla_prompt import (
    LONGEST,
    PROMPT,
    read_tokenizer,
    tokenizer_file,
)
from armlet.policies.pretrained.said import Said
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
    parts = Parts.read(said)
    return [*parts.files, tokenizer_file(parts.words, said.tokenizer)]


class _Facts:
    """All that a checkpoint and what is said of it come to, before a weight is read."""

    def __init__(self, said: Said) -> None:
        self.said = said
        self.parts = parts = Parts.read(said)
        _refuse_diffusion(said.checkpoint)
        self.sizes = parts.model.sizes
        self.key, statistics = parts.statistics.chosen(parts.options.unnorm_key)
        self.dims = parts.dims(statistics)
        self.constants = parts.constants(self.key, self.dims)
        said.check_cameras(list(self.constants.views))
        where = f"{parts.statistics.source}: {self.key}"
        self.action = action_normaliser(statistics, self.constants.bounds, where)
        self.state = no_state()
        if parts.proprio_dims:
            self.state = state_normaliser(statistics, self.constants.bounds, where)
        if len(self.state.offset) != parts.proprio_dims:
            raise ValueError(
                f"{parts.proprio} takes a state of {parts.proprio_dims} numbers, and {where} has "
                f"statistics of {len(self.state.offset)}: are they of another robot? {COPY}"
            )
        self.bins = 0 if parts.head is not None else parts.model.bins
        chunk = self.constants.chunk
        self.execute = said.execute or chunk
        if self.execute > chunk:
            raise ValueError(
                f"{said.source}: execute is {self.execute}, and a chunk has {chunk} actions"
            )

    @property
    def cameras(self) -> dict[str, int]:
        """The robot's names → side, in the order in which they are seen."""
        return {self.said.camera(view): self.sizes.dino.side for view in self.constants.views}


def describe(said: Said) -> Card:
    facts = _Facts(said)
    parts = facts.parts
    constants = facts.constants
    sizes = facts.sizes
    llama = sizes.llama
    layer = sum(
        header.numel
        for name, header in parts.tensors.items()
        if name.startswith("language_model.model.layers.0.")
    )
    names = parts.names
    return Card(
        kind="openvla_oft",
        root=said.checkpoint,
        sizes={
            "DINOv2": f"{sizes.dino.depth} blocks of {sizes.dino.width}",
            "SigLIP": f"{sizes.siglip.depth} blocks of {sizes.siglip.width}",
            "Llama": f"{llama.depth} layers of {llama.width}, {layer / 1e6:.3g} M parameters each",
            "decides": "256 words, all at once" if facts.bins else "a head of L1 regression",
            "FiLM": "words are told to the towers" if parts.vision else "none",
        },
        cameras=dict.fromkeys(facts.cameras),
        state_dims=parts.proprio_dims,
        action_dims=facts.dims,
        chunk=constants.chunk,
        execute=facts.execute,
        steps=0,
        layers=llama.depth,
        parts=parts_of(
            parts.tensors,
            {
                "vision_backbone.": "image towers",
                "projector.": "projector",
                "language_model.": "language model",
                "action_head.": "action head",
                "proprio_projector.": "state",
            },
        ),
        dtypes=dtypes_of(parts.tensors),
        files=tuple(parts.files),
        state=facts.state if parts.proprio_dims else None,
        action=facts.action,
        choices=_choices(facts),
        remarks=_remarks(parts, constants, facts.key),
        words=f"{PROMPT.format('…')!r}, in lower case",
        unused=tuple(name for name in parts.tensors if names.is_unused(name)),
    )


def _choices(facts: _Facts) -> tuple[Choice, ...]:
    constants = facts.constants
    known = tuple(sorted(facts.parts.statistics.sets))
    return (
        Choice("unnorm_key", known, facts.key, "whose statistics the numbers have"),
        Choice("platform", NAMES, None, f"chunk, bounds and views; taken are {constants.why}"),
        Choice("chunk", (), str(constants.chunk), "actions decided at a time"),
        Choice("bounds", ("q01_q99", "min_max"), constants.bounds, "what becomes −1 and 1"),
        Choice("views", (), ", ".join(constants.views), "its pictures, in their order"),
        Choice(
            "preparation",
            tuple(FITS),
            facts.parts.options.preparation,
            "how pictures are prepared: as usual where it was trained on random crops",
        ),
    )


def _remarks(parts: Parts, constants: Constants, key: str) -> tuple[str, ...]:
    said = [
        f"how many actions and which pictures it sees is said nowhere in the checkpoint: taken are "
        f"{constants.chunk} and {', '.join(constants.views)} ({constants.why})"
    ]
    if parts.adapter is not None:
        said.append(f"its adapter is merged into {parts.model.root} when it is loaded, in bf16")
    if parts.vision is not None:
        said.append(f"the towers are those of {parts.vision.name}; the model's own are the base's")
    if key.startswith("libero"):
        said.append(
            "LIBERO's environment turns pictures by 180° and flips the gripper's sign (1 = open here, "
            "−1 there): both are the robot's side, and not done here"
        )
    return tuple(said)


def load(said: Said, robot: RobotSpec | None) -> Backbone:
    facts = _Facts(said)
    parts = facts.parts
    tokenizer = read_tokenizer(parts.words, said.tokenizer, parts.model.vocabulary)
    body = Body(
        said.action_spec(facts.dims, robot),
        facts.state,
        facts.action,
        tokenizer,
        said.state_names(parts.proprio_dims, robot) if parts.proprio_dims else (),
        FITS[parts.options.preparation],
    )
    # In one precision, as the project runs it: as saved is that of the language model.
    words = parts.tensors["language_model.model.embed_tokens.weight"].dtype
    dtype = said.dtype or words
    network = {
        "sizes": facts.sizes.to_json(),
        "cameras": facts.cameras,
        "text_tokens": LONGEST,
        "dtype": str(dtype).removeprefix("torch."),
        "kept_layers": None,
        "chunk": facts.constants.chunk,
        "execute": facts.execute,
        "proprio": parts.proprio_dims,
        "bins": facts.bins,
        "film": parts.vision is not None,
    }
    policy = rebuild({"type": TYPE, "network": network, **body.to_json()}, tokenizer, empty=True)
    fill(policy, parts.tensors, parts.names, dtype=dtype, change=_change(parts))
    return policy


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
