"""What the folders of π0 and π0.5 say beside their weights, LeRobot's and openpi's, in the same
words.

(openpi 15a9616: training/checkpoints, transforms, models/tokenizer; LeRobot 0.4.4 and 0.6.1.)
"""

from pathlib import Path

import numpy as np

from armlet.data.files import read_json
from armlet.policies.pretrained.card import Choice
from armlet.policies.pretrained.fields import Fields
from armlet.policies.pretrained.files import COPY, open_safetensors
from armlet.policies.pretrained.lerobot import (
    ACTION,
    AFTER,
    BEFORE,
    CONFIG,
    STATE,
    WEIGHTS,
    Folder,
    Tokens,
)
from armlet.policies.pretrained.pi_files import OLD_PADDING, Checkpoint, PiOptions
from armlet.policies.pretrained.pi_tokenizer import PALIGEMMA
from armlet.policies.pretrained.said import Said
from armlet.robot.normalise import Mode, Normaliser
from armlet.robot.reading.paligemma import Wording

ASSETS = "assets"
NORM_STATS = "norm_stats.json"
# openpi's names of its three cameras, in the order of its tokens.
OPENPI_CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
TOKENS = {"pi0": 48, "pi05": 200}  # openpi's longest prompts
PREPARE = "pi05_prepare_state_tokenizer_processor_step"
VERSION = Choice(
    "padding",
    (-1.0, OLD_PADDING),
    -1.0,
    "LeRobot 0.4 boxed pictures that are not square with -3, and no file says which version "
    "trained this one",
)
OPENPI_CHOICES = (
    Choice(
        "missing",
        OPENPI_CAMERAS,
        (),
        "cameras of the checkpoint that the robot does not have: they are masked",
    ),
    Choice(
        "relative",
        ("dimensions",),
        (),
        "openpi's training config says which actions were made relative to the state "
        "(DeltaActions), and the checkpoint does not",
    ),
)


def read(said: Said, design: str, options: PiOptions) -> Checkpoint:
    """A checkpoint's files but the numbers of its weights. Raises FileNotFoundError or ValueError
    naming the file or field."""
    config = read_json(said.checkpoint / CONFIG, fix=COPY)
    reader = _read_lerobot if "type" in config else _read_openpi
    return reader(said, design, options)


def _read_lerobot(said: Said, design: str, options: PiOptions) -> Checkpoint:
    folder = Folder.read(said.checkpoint)
    old = folder.before is None
    _check_lerobot(folder, said, design, options)
    config = folder.config
    fields = folder.fields
    tokens = _tokens(folder)
    cameras: dict[str, tuple[int, int] | None] = {}
    for name, size in folder.cameras.items():
        if not name.startswith("empty_camera"):  # stands for none, and is masked
            cameras[name] = size
    files = [folder.root / name for name in (CONFIG, WEIGHTS, *(() if old else (BEFORE, AFTER)))]
    for step in (*(folder.before or ()), *(folder.after or ())):
        files += [step.state_file] if step.state_file else []
    dims = folder.size(ACTION)
    wording, remarks = _lerobots_wording(folder, design)
    names = fields.texts_or_none("action_feature_names")
    return Checkpoint(
        root=folder.root,
        layout="LeRobot before 0.4" if old else "LeRobot",
        tensors=folder.tensors,
        config=config,
        files=tuple(dict.fromkeys(files)),
        cameras=cameras,
        usual=folder.robots_cameras,
        state=folder.normaliser(STATE) if folder.size(STATE) else Normaliser(*_nothing()),
        actions=folder.normaliser(ACTION),
        action_names=names if names and len(names) == dims else None,
        relative=folder.relative_dims,
        chunk=fields.whole("chunk_size"),
        execute=fields.whole("n_action_steps"),
        steps=fields.whole("num_steps" if old else "num_inference_steps"),
        slots=(fields.whole("max_state_dim"), fields.whole("max_action_dim")),
        image=fields.wholes(_resolution(folder), count=2)[0],
        wording=wording,
        tokens=tokens.longest,
        tokenizer=tokens.name,
        fit="any",
        box="corner" if old else "middle",
        choices=() if old else (VERSION,),
        remarks=remarks,
    )


def _check_lerobot(folder: Folder, said: Said, design: str, options: PiOptions) -> None:
    """Raises ValueError where a folder is of two versions, or says what these networks are not."""
    config = folder.config
    place = folder.root / CONFIG
    if folder.before is None:
        _check_old(folder, said, design, options)
    if config.get("use_peft"):
        raise ValueError(
            f"{place}: its weights are a LoRA beside another model's; merge them first"
        )
    for name in ("norm_stats", "relative"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"{said.source}: [options] {name} has no effect here: LeRobot's folder says it"
            )
    field = _resolution(folder)
    height, width = folder.fields.wholes(field, count=2)
    if height != width:
        raise ValueError(f"{place}: {field} is {height}×{width}, expected a square")
    for key in folder.camera_keys.values():
        if not np.array_equal(folder.normaliser(key).apply(np.ones(3)), np.ones(3)):
            raise ValueError(
                f"{place}: pictures of {key} are normalised by statistics, which these networks "
                "were never taught with; expected VISUAL: IDENTITY"
            )


def _check_old(folder: Folder, said: Said, design: str, options: PiOptions) -> None:
    """Raises ValueError where a folder without processors is none of LeRobot's π0 before 0.4, or
    asks for what is not done here."""
    place = folder.root / CONFIG
    if design != "pi0" or "image_resolution" in folder.config:
        raise ValueError(
            f"{place} is of LeRobot 0.4 or later, and has no {BEFORE} beside it; {COPY}"
        )
    for name in ("adapt_to_pi_aloha", "use_delta_joint_actions_aloha"):
        if folder.config.get(name, False) is not False:
            raise ValueError(
                f"{place}: {name} is {folder.config[name]!r:.60}, expected false: its numbers are "
                "turned into those of another robot's software, which is not done here; such a "
                "policy can teach through a socket (--teacher ws://host:port)"
            )
    if options.padding == OLD_PADDING:
        raise ValueError(
            f"{said.source}: [options] padding -3 is for checkpoints of LeRobot 0.4, and has no "
            f"effect on those from before, as {folder.root} is one"
        )


def _resolution(folder: Folder) -> str:
    """The field that says the size of pictures."""
    return "resize_imgs_with_padding" if folder.before is None else "image_resolution"


def _tokens(folder: Folder) -> Tokens:
    """How a prompt becomes tokens: by its processor or, before 0.4, by LeRobot's code."""
    if folder.before is None:
        return Tokens(PALIGEMMA, folder.fields.whole("tokenizer_max_length"))
    found = folder.tokens
    if found is None or found.padding != "right":
        raise ValueError(
            f"{folder.root / BEFORE} has no tokenizer_processor that pads right, and these "
            f"networks were never taught otherwise; {COPY}"
        )
    return found


def _nothing() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(0, np.float32), np.ones(0, np.float32)


def _lerobots_wording(folder: Folder, design: str) -> tuple[Wording, tuple[str, ...]]:
    """How a prompt is made, by the steps that are there, and what is odd about them."""
    if folder.before is None:
        return "new_line", (
            "from before LeRobot 0.4: statistics are among the weights; that a picture lies at the "
            "right and the bottom of its square, the line break behind an instruction and the "
            "tokenizer were in its code",
        )
    prepares = bool(folder.steps(PREPARE))
    if design == "pi05" and prepares:
        order = [step.name for step in folder.before or ()]
        if order.index(PREPARE) < order.index("normalizer_processor"):
            raise ValueError(
                f"{folder.root / BEFORE}: the prompt is made before the state is normalised, and "
                f"would hold other numbers than these networks were taught with; {COPY}"
            )
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
    fields = Fields(config, root / CONFIG)
    tensors = open_safetensors(root / WEIGHTS)
    file = _norm_stats(root, options)
    mode: Mode = "mean_std" if design == "pi0" else "quantiles"
    state = _openpis_normaliser(file, "state", mode)
    actions = _openpis_normaliser(file, "actions", mode)
    chunk = fields.whole("action_horizon")
    if options.padding == OLD_PADDING or getattr(options, "padded_state", False):
        raise ValueError(
            f"{said.source}: [options] padding -3 and padded_state are for checkpoints of "
            "LeRobot's, and have no effect on openpi's"
        )
    return Checkpoint(
        root=root,
        layout="openpi",
        tensors=tensors,
        config=config,
        files=(root / CONFIG, root / WEIGHTS, file),
        cameras=dict.fromkeys(OPENPI_CAMERAS),
        usual={name: name for name in OPENPI_CAMERAS},
        state=state,
        actions=actions,
        action_names=None,
        relative=options.relative or (),
        chunk=chunk,
        execute=chunk,
        steps=10,
        slots=(fields.whole("action_dim"), fields.whole("action_dim")),
        image=None,
        wording="cleaned" if design == "pi0" else "state",
        tokens=TOKENS[design],
        tokenizer=PALIGEMMA,
        fit="openpi",
        box="middle",
        choices=OPENPI_CHOICES,
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
            f"{root / ASSETS} holds no {NORM_STATS}, by which state and actions are normalised; "
            f"{COPY}"
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


def _openpis_normaliser(file: Path, name: str, mode: Mode) -> Normaliser:
    statistics = read_json(file, fix=COPY).get("norm_stats")
    values = statistics.get(name) if isinstance(statistics, dict) else None
    if not isinstance(values, dict) or not isinstance(values.get("mean"), list):
        raise ValueError(f"{file} has no norm_stats.{name} with a `mean`; {COPY}")
    known = {key: each for key, each in values.items() if each is not None}
    dims = len(values["mean"])
    return Normaliser.from_statistics(
        known, mode, what=f"{file}: {name}", dims=dims, variant="openpi"
    )
