"""ACT, as LeRobot saves it (0.3.3 to 0.6.1; `policies/act/modeling_act.py`): a checkpoint's folder →
`act_network.ACT`.

Traps: the statistics of pictures stand in the processor's file only (ImageNet's, or the data's); a
number that never moved is divided by 1e-8; the order of the cameras changes no answer, for nothing
tells them apart.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from armlet.layers.detr import ACTIVATIONS
from armlet.layers.resnet import DEPTHS
from armlet.policies.building import rebuild
from armlet.policies.contract import Body
from armlet.policies.pretrained import lerobot_body
from armlet.policies.pretrained.act_network import ACT, Sizes, build
from armlet.policies.pretrained.card import Card, Work, dtypes_of, parts_of, relative_remarks
from armlet.policies.pretrained.fields import sizes_from
from armlet.policies.pretrained.files import COPY, Names, fill, match
from armlet.policies.pretrained.lerobot import (
    ACTION,
    CONFIG,
    ENVIRONMENT,
    STATE,
    Folder,
    says_kind,
)
from armlet.policies.pretrained.said import Said
from armlet.robot.spec import RobotSpec

NAMES = Names(
    renamed=(
        (r"^model\.encoder\.layers\.", "layers."),
        (r"^model\.encoder\.norm\.", "encoder_norm."),
        (r"^model\.backbone\.", "vision."),
        (r"^model\.", ""),
    ),
    # A frozen normalisation counts no batches; some versions saved the count all the same.
    unused=("*.num_batches_tracked",),
)
ROOMS = {
    "model.backbone.": "eyes",
    "model.encoder_img_feat_input_proj.": "eyes",
    "model.encoder.": "encoder",
    "model.decoder.layers.*.multihead_attn.": "decoder (encoder's tokens)",
    "model.decoder.": "decoder",
    "model.vae_encoder": "encoder of actions, of training only",
}


@dataclass(frozen=True)
class Options:
    """There is nothing to choose."""


def recognises(folder: Path) -> bool:
    """By the config's `type`."""
    return says_kind(folder, "act")


def files(said: Said) -> list[Path]:
    """All that decides its answers."""
    return list(Folder.read(said.checkpoint).files)


def describe(said: Said) -> Card:
    """From headers and small files alone."""
    said.as_options(Options)
    folder = Folder.read(said.checkpoint)
    sizes = sizes_of(folder, said)
    cameras = lerobot_body.cameras_of(folder, said)
    state = lerobot_body.state_of(folder)
    action = folder.normaliser(ACTION)
    body = lerobot_body.nobodys(folder, "any")
    with sizes_from(folder.root / CONFIG):
        network = rebuild(_description(folder, said, body), body.tokenizer, empty=True)
    assert isinstance(network, ACT)
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = match(own, folder.tensors, NAMES)
    remarks = relative_remarks(folder.relative_dims)
    if sizes.ensemble is not None:
        remarks.append(
            f"it looks again after every action, and chunks that overlap are weighed by exp(-"
            f"{sizes.ensemble:g} i), the oldest most"
        )
    if sizes.environment:
        remarks.append(
            f"of the state's numbers the last {sizes.environment} are the environment's "
            f"({ENVIRONMENT})"
        )
    return Card(
        kind="act",
        root=folder.root,
        sizes={
            "encoder": f"{sizes.encoder_layers} layers of width {sizes.width}, {sizes.heads} heads",
            "decoder": f"{sizes.decoder_layers} layers",
            "eyes": f"{sizes.backbone}, width {sizes.backbone_width}",
            "latent": str(sizes.latent) if sizes.vae else "none",
        },
        cameras=folder.cameras,
        called=lerobot_body.robots_names(folder, said),
        work=_work(network, cameras),
        state_dims=len(state.offset),
        action_dims=len(action.offset),
        chunk=sizes.chunk,
        execute=sizes.execute,
        steps=0,
        layers=sizes.encoder_layers,
        parts=parts_of(folder.tensors, ROOMS),
        dtypes=dtypes_of(folder.tensors),
        files=folder.files,
        state=state,
        action=action,
        remarks=tuple(remarks),
        words="none: it is not told what to do",
        unused=found.unused,
    )


def _work(network: ACT, cameras: dict[str, tuple[int, int]]) -> dict[str, tuple[Work, ...]]:
    """What its parts do for a decision."""
    tokens = network.singles + network.vision_tokens
    chunk = network.chunk
    found: dict[str, tuple[Work, ...]] = {
        "encoder": (Work(tokens),),
        "decoder": (Work(chunk),),
        # Of its four matrices two are applied to the encoder's tokens, and two to the actions'.
        "decoder (encoder's tokens)": (Work((tokens + chunk) // 2),),
    }
    if cameras:
        eyes = nn.ModuleList([network.vision, network.encoder_img_feat_input_proj]).to("meta")

        def look() -> None:
            for size in cameras.values():
                seen = network.vision(torch.empty(1, 3, *size, device="meta"))
                network.encoder_img_feat_input_proj(seen)

        found["eyes"] = (Work(lerobot_body.tokens_of(eyes, look)),)
    return found


def load(said: Said, robot: RobotSpec | None) -> ACT:
    """The policy, on the CPU. Raises ValueError naming the file, field or tensor that will not
    do."""
    said.as_options(Options)
    folder = Folder.read(said.checkpoint)
    body = lerobot_body.body_of(folder, said, robot, "any")
    with sizes_from(folder.root / CONFIG):
        policy = rebuild(_description(folder, said, body), body.tokenizer, empty=True)
    assert isinstance(policy, ACT)
    fill(policy, folder.tensors, NAMES, dtype=said.dtype)
    return policy


def from_json(description: dict[str, Any], tokenizer: Tokenizer) -> ACT:
    """The network that `to_json` described, with fresh weights."""
    return build(description, Body.from_json(description, tokenizer))


def sizes_of(folder: Folder, said: Said) -> Sizes:
    """The network's sizes, by its config; how wide the eyes are, by their first tensor. Raises
    ValueError naming what is not there, or not known."""
    fields = folder.fields
    config = folder.root / CONFIG
    if fields.whole("n_obs_steps") != 1:
        raise fields.wrong("n_obs_steps", fields.whole("n_obs_steps"), "1: ACT looks at one moment")
    chunk = fields.whole("chunk_size")
    execute = said.execute or fields.whole("n_action_steps")
    if execute > chunk:
        raise ValueError(
            f"{said.source if said.execute else config}: {execute} actions of a chunk are carried "
            f"out, and it has {chunk}"
        )
    ensemble = None
    if fields.values.get("temporal_ensemble_coeff") is not None:
        ensemble = fields.real("temporal_ensemble_coeff")
    if ensemble is not None and folder.relative is not None:
        raise ValueError(
            f"{config}: temporal_ensemble_coeff is {ensemble} and actions are relative to the state "
            "(relative_actions_processor): LeRobot's policy weighs offsets from the states of several "
            "moments as if they were from one, which is not done here; expected one of the two. Such "
            "a policy can teach through a socket (--teacher ws://host:port)"
        )
    if not folder.cameras and not folder.size(ENVIRONMENT):
        raise ValueError(f"{config}: it looks at neither a picture nor {ENVIRONMENT}; {COPY}")
    first = folder.tensors.get("model.backbone.conv1.weight")
    most = len(folder.tensors)  # layers: each has tensors
    return Sizes(
        backbone=fields.text("vision_backbone", known=DEPTHS),
        backbone_width=first.shape[0] if first else 64,
        dilated=fields.flag("replace_final_stride_with_dilation"),
        width=fields.whole("dim_model"),
        heads=fields.whole("n_heads"),
        feedforward=fields.whole("dim_feedforward"),
        activation=fields.text("feedforward_activation", known=ACTIVATIONS),
        pre_norm=fields.flag("pre_norm"),
        encoder_layers=fields.whole("n_encoder_layers", most=most),
        decoder_layers=fields.whole("n_decoder_layers", most=most),
        vae=fields.flag("use_vae"),
        latent=fields.whole("latent_dim"),
        vae_layers=fields.whole("n_vae_encoder_layers", most=most),
        dropout=fields.real("dropout", least=0, most=1),
        kl_weight=fields.real("kl_weight", least=0),
        chunk=chunk,
        execute=execute,
        state=folder.size(STATE),
        environment=folder.size(ENVIRONMENT),
        ensemble=ensemble,
    )


def _description(folder: Folder, said: Said, body: Body) -> dict[str, Any]:
    cameras = lerobot_body.cameras_of(folder, said)
    network = {
        **asdict(sizes_of(folder, said)),
        "cameras": {name: list(size) for name, size in cameras.items()},
        "pictures": lerobot_body.as_json(lerobot_body.pictures_of(folder, said)),
    }
    return {"type": "pretrained.act", "network": network, **body.to_json()}
