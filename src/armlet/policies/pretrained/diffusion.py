"""Diffusion Policy, as LeRobot saves it (0.3.3 to 0.6.1; `policies/diffusion/`): a checkpoint's
folder → `diffusion_network.DiffusionPolicy`.

Traps: LeRobot's defaults changed (horizon, which normalisation, one encoder or several), so nothing
is assumed that the config says; normalisations are called `bn` whichever they are; the chunk begins
at the present moment, not at the horizon's first.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from tokenizers import Tokenizer
from torch import nn

from armlet.layers.resnet import DEPTHS
from armlet.layers.schedule import Kind, Schedule
from armlet.policies.building import rebuild
from armlet.policies.contract import Body
from armlet.policies.pretrained import lerobot_body
from armlet.policies.pretrained.card import (
    Card,
    Choice,
    Work,
    dtypes_of,
    parts_of,
    relative_remarks,
)
from armlet.policies.pretrained.diffusion_network import (
    MIDDLE,
    DiffusionPolicy,
    Sizes,
    build,
)
from armlet.policies.pretrained.fields import Fields, sizes_from
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
from armlet.robot.fit import Fit
from armlet.robot.spec import RobotSpec

ROOMS = {
    "diffusion.rgb_encoder": "eyes",
    "diffusion.unet.": "U-Net",
}


@dataclass(frozen=True)
class Options:
    """`[options]` of a `policy.toml`."""

    steps: int | None = None
    """From noise to actions; else the checkpoint's, or as many as it was trained with."""
    scheduler: Kind | None = None
    """DDPM or DDIM; else the checkpoint's. DDIM needs few steps, and no noise in between."""
    seed: int = 0
    """Of the noise that each decision starts from, and of that of DDPM's steps."""


def recognises(folder: Path) -> bool:
    """By the config's `type`."""
    return says_kind(folder, "diffusion")


def files(said: Said) -> list[Path]:
    """All that decides its answers."""
    return list(Folder.read(said.checkpoint).files)


def describe(said: Said) -> Card:
    """From headers and small files alone."""
    folder = Folder.read(said.checkpoint)
    schedule = schedule_of(folder, said)
    sizes = sizes_of(folder, said)
    state = lerobot_body.state_of(folder)
    action = folder.normaliser(ACTION)
    body = lerobot_body.nobodys(folder, fit_of(sizes))
    with sizes_from(folder.root / CONFIG):
        network = rebuild(_description(folder, said, body), body.tokenizer, empty=True)
    assert isinstance(network, DiffusionPolicy)
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = match(own, folder.tensors, names_of(sizes))
    remarks = relative_remarks(folder.relative_dims)
    if sizes.moments > 1:
        remarks.append(f"it looks at the last {sizes.moments} moments, one a control step")
    if sizes.environment:
        remarks.append(
            f"of the state's numbers the last {sizes.environment} are the environment's "
            f"({ENVIRONMENT})"
        )
    normalised = "group" if sizes.group_norm else "batch"
    return Card(
        kind="diffusion",
        root=folder.root,
        sizes={
            "U-Net": f"widths {', '.join(map(str, sizes.widths))}, horizon {sizes.horizon}",
            "eyes": f"{sizes.backbone}, width {sizes.backbone_width}, {normalised} normalisation, "
            f"{'one a camera' if sizes.separate else 'one for all cameras'}",
            "denoising": f"{schedule.kind}, {schedule.steps} of {schedule.train_steps} steps",
        },
        cameras=folder.cameras,
        called=lerobot_body.robots_names(folder, said),
        work=_work(network.to("meta")),
        state_dims=len(state.offset),
        action_dims=len(action.offset),
        chunk=sizes.horizon - sizes.moments + 1,
        execute=sizes.execute,
        steps=schedule.steps,
        layers=2 * len(sizes.widths) - 1 + MIDDLE,
        parts=parts_of(folder.tensors, ROOMS),
        dtypes=dtypes_of(folder.tensors),
        files=folder.files,
        state=state,
        action=action,
        choices=(
            Choice("steps", (), schedule.steps, "time grows with it; DDIM needs 10 or so"),
            Choice("scheduler", ("DDPM", "DDIM"), schedule.kind, "DDIM bears few steps"),
            Choice("seed", (), 0, "of the noise that a decision starts from"),
        ),
        remarks=tuple(remarks),
        words="none: it is not told what to do",
        unused=found.unused,
    )


def _work(network: DiffusionPolicy) -> dict[str, tuple[Work, ...]]:
    """What the parts of a network on the meta device do for a decision: eyes look once at every
    moment's pictures, the U-Net runs in each step."""
    condition = torch.empty(1, network.seen_width, device="meta")
    unet = nn.ModuleDict(dict(network.named_children()))
    del unet["vision"]
    tokens = lerobot_body.tokens_of(unet, lambda: network.predict(condition))
    found: dict[str, tuple[Work, ...]] = {"U-Net": (Work(tokens, network.schedule.steps),)}
    if network.seen:
        size = next(iter(network.seen.values()))  # the same of all
        pictures = torch.empty(network.history, 3, *size, device="meta")

        def look() -> None:
            for number in range(len(network.seen)):
                network.vision[number % len(network.vision)](pictures)

        found["eyes"] = (Work(lerobot_body.tokens_of(network.vision, look)),)
    return found


def load(said: Said, robot: RobotSpec | None) -> DiffusionPolicy:
    """The policy, on the CPU. Raises ValueError naming the file, field or tensor that will not
    do."""
    folder = Folder.read(said.checkpoint)
    sizes = sizes_of(folder, said)
    body = lerobot_body.body_of(folder, said, robot, fit_of(sizes))
    with sizes_from(folder.root / CONFIG):
        policy = rebuild(_description(folder, said, body), body.tokenizer, empty=True)
    assert isinstance(policy, DiffusionPolicy)
    fill(policy, folder.tensors, names_of(sizes), dtype=said.dtype)
    return policy


def from_json(description: dict[str, Any], tokenizer: Tokenizer) -> DiffusionPolicy:
    """The network that `to_json` described, with fresh weights."""
    return build(description, Body.from_json(description, tokenizer))


def fit_of(sizes: Sizes) -> Fit:
    """It resizes pictures itself, or takes those of one size."""
    return "any" if sizes.resize else "exact"


def names_of(sizes: Sizes) -> Names:
    """How the checkpoint's tensors are called here."""
    renamed = [(r"^diffusion\.", "")]
    renamed.append((r"^rgb_encoder\.", "vision." if sizes.separate else "vision.0."))
    # torchvision's network as a row of its parts, in which two have no weights.
    renamed += [(r"\.backbone\.0\.", ".backbone.conv1."), (r"\.backbone\.1\.", ".backbone.bn1.")]
    for stage in range(1, 5):
        renamed.append((rf"\.backbone\.{stage + 3}\.", f".backbone.layer{stage}."))
    renamed.append((r"^unet\.diffusion_step_encoder\.", "step_encoder."))
    levels = len(sizes.widths)
    layer = 0
    for room, count in (("down", levels), ("mid", MIDDLE), ("up", levels - 1)):
        for index in range(count):
            place = rf"^unet\.{room}_modules\.{index}\."
            if room != "mid":
                renamed.append((place + r"0\.", f"{room}.{index}.enter."))
                renamed.append((place + r"2\.", f"{room}.{index}.leave."))
                place += r"1\."
            renamed.append((place, f"layers.{layer}."))
            layer += 1
    renamed.append((r"^unet\.", ""))
    return Names(renamed=tuple(renamed))


def schedule_of(folder: Folder, said: Said) -> Schedule:
    """How noise becomes actions, by the config and as is said."""
    options = said.as_options(Options)
    fields = folder.fields
    trained = fields.whole("num_train_timesteps")
    kind = fields.text("noise_scheduler_type", known=get_args(Kind))
    try:
        return Schedule(
            train_steps=trained,
            betas=fields.text("beta_schedule"),  # type: ignore[arg-type]  # it looks
            start=fields.real("beta_start", above=0, most=1),
            end=fields.real("beta_end", above=0, most=1),
            prediction=fields.text("prediction_type"),  # type: ignore[arg-type]
            clip=fields.real("clip_sample_range", above=0) if fields.flag("clip_sample") else None,
            kind=options.scheduler or kind,  # type: ignore[arg-type]
            steps=options.steps or fields.whole_or_none("num_inference_steps") or trained,
        )
    except ValueError as error:
        if str(folder.root / CONFIG) in str(error):
            raise
        raise ValueError(
            f"{folder.root / CONFIG} or [options] of {said.source}: {error}"
        ) from error


def sizes_of(folder: Folder, said: Said) -> Sizes:
    """The network's sizes, by its config; how wide the eyes are, by their first tensor. Raises
    ValueError naming what is not there, or not known."""
    fields = folder.fields
    config = folder.root / CONFIG
    moments = fields.whole("n_obs_steps")
    horizon = fields.whole("horizon")
    execute = said.execute or fields.whole("n_action_steps")
    if execute > horizon - moments + 1:
        raise ValueError(
            f"{said.source if said.execute else config}: {execute} actions are carried out, and the "
            f"horizon of {horizon} has {horizon - moments + 1} from the present on"
        )
    if moments > 1 and folder.relative is not None:
        raise ValueError(
            f"{config}: n_obs_steps is {moments} and actions are relative to the state "
            "(relative_actions_processor): LeRobot takes off the state of the oldest of these moments "
            "when it trains and adds that of the newest when it acts, and which is meant is not "
            "guessed; expected n_obs_steps 1. Such a policy can teach through a socket (--teacher "
            "ws://host:port)"
        )
    shapes = set(folder.cameras.values())
    if len(shapes) > 1:
        raise ValueError(f"{config}: cameras of {sorted(shapes)} pixels, expected one size; {COPY}")
    if not folder.size(STATE):
        raise ValueError(f"{config}: it looks at no {STATE}, which every such policy does; {COPY}")
    widths = fields.wholes("down_dims")
    if horizon % 2 ** (len(widths) - 1):
        raise ValueError(
            f"{config}: horizon is {horizon}, expected a multiple of {2 ** (len(widths) - 1)}, for "
            f"it is halved {len(widths) - 1} times"
        )
    # LeRobot 0.4.0 and those before did not resize.
    resize = _side(fields, "resize_shape")
    first = next((name for name in folder.tensors if name.endswith("backbone.0.weight")), None)
    return Sizes(
        backbone=fields.text("vision_backbone", known=DEPTHS),
        backbone_width=folder.tensors[first].shape[0] if first else 64,
        group_norm=fields.flag("use_group_norm"),
        keypoints=fields.whole("spatial_softmax_num_keypoints"),
        separate=fields.flag("use_separate_rgb_encoder_per_camera"),
        resize=resize,
        crop=_crop(fields, resize),
        crops_at_random=fields.flag("crop_is_random"),
        moments=moments,
        horizon=horizon,
        execute=execute,
        widths=widths,
        kernel=fields.whole("kernel_size", most=99),
        groups=fields.whole("n_groups"),
        step_width=fields.whole("diffusion_step_embed_dim"),
        scales=fields.flag("use_film_scale_modulation"),
        masks=fields.flag("do_mask_loss_for_padding"),
        state=folder.size(STATE),
        environment=folder.size(ENVIRONMENT),
    )


def _side(fields: Fields, name: str) -> tuple[int, int] | None:
    """(height, width); None where it is null, or is not there."""
    if fields.values.get(name) is None:
        return None
    height, width = fields.wholes(name, count=2)
    return height, width


def _crop(fields: Fields, resize: tuple[int, int] | None) -> tuple[int, int] | None:
    """What pictures are cropped to; where they are resized a share decides, and not the field."""
    if resize is None:
        return _side(fields, "crop_shape")
    share = fields.real("crop_ratio", 1.0, above=0, most=1)
    return (int(resize[0] * share), int(resize[1] * share)) if share < 1 else None


def _description(folder: Folder, said: Said, body: Body) -> dict[str, Any]:
    cameras = lerobot_body.cameras_of(folder, said)
    network = {
        **asdict(sizes_of(folder, said)),
        "schedule": asdict(schedule_of(folder, said)),
        "seed": said.as_options(Options).seed,
        "cameras": {name: list(size) for name, size in cameras.items()},
        "pictures": lerobot_body.as_json(lerobot_body.pictures_of(folder, said)),
    }
    return {"type": "pretrained.diffusion", "network": network, **body.to_json()}
