"""SmolVLA as LeRobot writes it: a policy folder, and the VLM that it names, whose sizes, heads and
words the folder does not hold.

    [options]                       # of policy.toml, all of them optional
    vlm = "../SmolVLM2-500M"        # a folder with config.json and tokenizer.json
    steps = 10                      # of denoising; left out: the checkpoint's own
    vision_positions = "shifted"    # trained in single precision under transformers 4.55.1 to 4.57
    loss = "padded"                 # of LeRobot 0.4.4: over all dimensions, padding among them
    missing = ["camera3"]           # cameras that the robot does not have
    seed = 0                        # of the noise

Folders from before LeRobot 0.4 are read, too. (LeRobot 0.3.3, 0.4.4 and 0.6.1; the network is in
`smolvla_network`, its sizes in `smolvla_sizes`.)
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from armlet.data.files import read_json
from armlet.policies.building import rebuild
from armlet.policies.contract import Backbone, Body
from armlet.policies.precisions import LONG, SHORT, long_name
from armlet.policies.pretrained.card import (
    Card,
    Choice,
    Work,
    dtypes_of,
    parts_of,
    relative_remarks,
)
from armlet.policies.pretrained.fields import sizes_from
from armlet.policies.pretrained.files import COPY, Names, Tensors, fill
from armlet.policies.pretrained.lerobot import (
    ACTION,
    CONFIG,
    NEW_LINE,
    PLAIN,
    STATE,
    WEIGHTS,
    Folder,
    Tokens,
)
from armlet.policies.pretrained.said import FILE, Said
from armlet.policies.pretrained.smolvla_network import described, from_json, is_vlm
from armlet.policies.pretrained.smolvla_sizes import (
    Loss,
    Positions,
    Sizes,
    Vlm,
    reads_of,
    text_of,
)
from armlet.policies.pretrained.smolvla_vlm import (
    VLM,
    UnknownVlmError,
    find_vlm,
    layers_of,
    read_words,
    vlm_folder,
    width_of,
    words_folder,
)
from armlet.robot.spec import RobotSpec

__all__ = ["Options", "describe", "files", "from_json", "load", "recognises"]

EXPERT = "model.vlm_with_expert.lm_expert."
# What its processors may hold, beside the steps that armlet does on its own.
STEPS = (
    *PLAIN,
    *NEW_LINE,
    "rename_observations_processor",
    "tokenizer_processor",
    "normalizer_processor",
    "unnormalizer_processor",
    "relative_actions_processor",
    "absolute_actions_processor",
)
EMPTY = re.compile(r"empty_camera_\d+")  # what LeRobot calls cameras that nobody has
ROOMS = {
    f"{VLM}vision_model.": "vision transformer",
    f"{VLM}connector.": "connector",
    f"{VLM}text_model.embed_tokens.": "words",
    f"{VLM}text_model.": "language model",
    "model.vlm_with_expert.vlm.lm_head.": "output words (unused)",
    EXPERT: "action expert",
    "model.": "projections",
}


@dataclass(frozen=True)
class Options:
    """See the module's docstring."""

    vlm: str | None = None
    steps: int | None = None
    vision_positions: Positions = "right"
    loss: Loss = "masked"
    missing: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.vlm is not None and not isinstance(self.vlm, str):
            raise ValueError(f"vlm is {self.vlm!r}, expected the folder of a VLM")
        for name, known in (
            ("vision_positions", get_args(Positions)),
            ("loss", get_args(Loss)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, expected {' or '.join(known)}"
                )
        for name, least in (("steps", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is None and name == "steps":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}, expected a whole number from {least} on")
        if not isinstance(self.missing, tuple):
            raise ValueError(f"missing is {self.missing!r}, expected a list of cameras")


def recognises(folder: Path) -> bool:
    config = folder / CONFIG
    if not config.is_file():
        return False
    try:
        return read_json(config, fix=COPY).get("type") == "smolvla"
    except ValueError:
        return False


def files(said: Said) -> list[Path]:
    folder = Folder.read(said.checkpoint)
    found = [said.checkpoint / CONFIG, said.checkpoint / WEIGHTS]
    found += sorted(said.checkpoint.glob("policy_*processor*"))
    for place in (vlm_folder(said), words_folder(said)):
        if place is not None:
            found += [place / name for name in ("config.json", "tokenizer.json")]
            found.append(place / "tokenizer_config.json")
    _check(folder)
    return [path for path in dict.fromkeys(found) if path.is_file()]


def describe(said: Said) -> Card:
    folder = Folder.read(said.checkpoint)
    _check(folder)
    options = said.as_options(Options)
    _, blank = _cameras(said, options, folder, None)
    choices = _choices(folder)
    try:
        vlm, whence = find_vlm(said, folder)
    except UnknownVlmError as error:
        # All but heads and layers' reading can be said without it.
        reads: tuple[str, ...] = ("cross",) * layers_of(folder.tensors)
        sizes = {"language model": f"{len(reads)} layers, {width_of(folder.tensors)} wide"}
        work = {}  # which patches there are follows from the VLM
        choices = (Choice("vlm", (), None, str(error)), *choices)
        remarks = _remarks(folder, reads, blank)
    else:
        reads = _reads(folder, vlm)
        sizes = _in_words(folder, vlm, reads)
        work = _work(replace(said, precision="fp32"), folder, vlm)
        taken = f"heads and sizes of its VLM are not in the checkpoint: taken from {whence}"
        remarks = (taken, *_remarks(folder, reads, blank))
    tokens = _tokens(folder)
    return Card(
        kind="smolvla",
        root=folder.root,
        sizes=sizes,
        cameras={name: folder.cameras[name] for name in folder.cameras if name not in blank},
        called={name: _called(said, folder, name) for name in folder.cameras},
        work=work,
        state_dims=folder.size(STATE),
        action_dims=folder.size(ACTION),
        chunk=folder.fields.whole("chunk_size"),
        execute=_execute(said, folder),
        steps=options.steps or folder.fields.whole("num_steps"),
        layers=len(reads),
        parts=parts_of(folder.tensors, ROOMS),
        dtypes=dtypes_of(folder.tensors),
        files=tuple(files(said)),
        state=folder.normaliser(STATE),
        action=folder.normaliser(ACTION),
        choices=choices,
        remarks=remarks,
        words=f"the instruction as it is{_new_line(folder) * ', and a line break'}, of "
        f"{tokens.longest} tokens at most, by the tokenizer of {said.tokenizer or tokens.name}",
        unused=tuple(name for name in folder.tensors if _names(reads, {}).is_unused(name)),
    )


def _in_words(folder: Folder, vlm: Vlm, reads: tuple[str, ...]) -> dict[str, str]:
    text = text_of(vlm, folder.fields.real("expert_width_multiplier", above=0, most=16))
    return {
        "language model": f"{len(reads)} layers, {text.width} wide, {text.heads} heads of "
        f"{text.head}, {text.kv_heads} of keys and values",
        "expert": f"{len(reads) - reads.count('nothing')} layers, {text.expert_width} wide; "
        f"{reads.count('self')} attend to actions, {reads.count('cross')} to the language model "
        "alone",
        "vision transformer": f"{vlm.eye.layers} layers, {vlm.eye.width} wide, pictures of "
        f"{vlm.eye.image} × {vlm.eye.image}, patches of {vlm.eye.patch}",
    }


def _work(said: Said, folder: Folder, vlm: Vlm) -> dict[str, tuple[Work, ...]]:
    """What its parts do for a decision. Patches of a picture are looked at all, and a square of
    them makes a token."""
    sizes = _sizes(said, folder, vlm, None)
    each = list(sizes.picture_tokens.values())
    looked = sum(each) + (each[-1] if sizes.blanks else 0)  # one black picture stands for all
    actions = (Work(sizes.chunk, sizes.steps),)
    return {
        "vision transformer": (Work(looked * sizes.shuffle**2),),
        "connector": (Work(looked),),
        "language model": (Work(sizes.prefix_tokens),),
        "action expert": actions,
        "projections": actions,
    }


def load(said: Said, robot: RobotSpec | None) -> Backbone:
    folder = Folder.read(said.checkpoint)
    _check(folder)
    vlm, _ = find_vlm(said, folder)
    tokenizer, pad, marks = read_words(said, folder, vlm, _tokens(folder).name)
    body = Body(
        action_spec=said.action_spec(folder.size(ACTION), robot),
        state=folder.normaliser(STATE),
        actions=folder.normaliser(ACTION),
        tokenizer=tokenizer,
        state_names=said.state_names(folder.size(STATE), robot),
        fit="any",
        relative=folder.relative_dims,
    )
    sizes = replace(_sizes(said, folder, vlm, robot), pad=pad, marks=marks)
    _check_rooms(folder, sizes, body)
    with sizes_from(folder.root / CONFIG):
        policy = rebuild(described(sizes, body), tokenizer, empty=True)
    fill(policy, folder.tensors, _names(sizes.layers, folder.tensors), dtype=said.dtype)
    return policy.eval()


def _sizes(said: Said, folder: Folder, vlm: Vlm, robot: RobotSpec | None) -> Sizes:
    """The network, but for what its tokenizer says."""
    options = said.as_options(Options)
    reads = _reads(folder, vlm)
    cameras, blanks = _cameras(said, options, folder, robot)
    precisions = _precisions(said, folder.tensors, reads)
    return Sizes(
        text=text_of(vlm, folder.fields.real("expert_width_multiplier", above=0, most=16)),
        eye=vlm.eye,
        shuffle=vlm.shuffle,
        cameras=cameras,
        layers=reads,
        chunk=folder.fields.whole("chunk_size"),
        execute=_execute(said, folder),
        steps=options.steps or folder.fields.whole("num_steps"),
        text_tokens=_tokens(folder).longest,
        state_room=folder.fields.whole("max_state_dim"),
        action_room=folder.fields.whole("max_action_dim"),
        picture=_picture(folder),
        min_period=folder.fields.real("min_period", above=0),
        max_period=folder.fields.real("max_period", above=0),
        pad=vlm.pad,
        padded=_tokens(folder).one_length,
        new_line=_new_line(folder),
        blanks=min(len(blanks), folder.fields.whole("empty_cameras", 0, least=0, most=64)),
        prefix_length=folder.fields.whole("prefix_length", 0, least=-1),
        vision_positions=options.vision_positions,
        loss=options.loss,
        seed=options.seed,
        pixels=_pixels(said, folder, blanks) or None,
        vlm_precision=precisions[0],
        expert_precision=precisions[1],
    )


def _pixels(said: Said, folder: Folder, blanks: list[str]) -> dict[str, dict[str, list[float]]]:
    """How the pictures of each camera are normalised, where they are, by the robot's name."""
    found = {}
    for name, key in folder.camera_keys.items():
        normaliser = folder.normaliser(key)
        if name not in blanks and (normaliser.offset.any() or (normaliser.scale != 1).any()):
            found[_called(said, folder, name)] = normaliser.to_json()
    return found


# What its config says


def _check(folder: Folder) -> None:
    """Raises ValueError for what a folder asks for and armlet does not do."""
    place = folder.root / CONFIG
    for step in (*(folder.before or ()), *(folder.after or ())):
        if step.name not in STEPS:
            raise ValueError(
                f"{step.place}: no SmolVLA of LeRobot has this step, and what it does to its "
                f"answers is not known; expected {', '.join(STEPS)}"
            )
    unlike = {
        "n_obs_steps": 1,
        "adapt_to_pi_aloha": False,
        "use_delta_joint_actions_aloha": False,
        "use_peft": False,
    }
    for name, expected in unlike.items():
        if folder.config.get(name, expected) != expected:
            fix = (
                "merge its adapter into the weights first"
                if name == "use_peft"
                else ("such a policy can teach through a socket (--teacher ws://host:port)")
            )
            raise ValueError(
                f"{place}: {name} is {folder.config[name]!r}, expected {expected!r}: armlet does "
                f"not do this; {fix}"
            )
    if not folder.size(STATE):
        raise ValueError(f"{place} has no {STATE!r} among its input_features, expected one; {COPY}")
    if not folder.cameras:
        raise ValueError(f"{place} has no camera among its input_features, expected one; {COPY}")
    if not folder.size(ACTION):
        raise ValueError(f"{place} has no {ACTION!r} among its output_features; {COPY}")
    _picture(folder)


def _picture(folder: Folder) -> tuple[int, int] | None:
    """(width, height) that pictures are brought to; None: they are taken as they are."""
    name = "resize_imgs_with_padding"
    if folder.fields.values.get(name) is None:
        if name not in folder.fields:
            raise ValueError(f"{folder.root / CONFIG} has no {name!r}; {COPY}")
        return None
    width, height = folder.fields.wholes(name, count=2)
    return width, height


def _check_rooms(folder: Folder, sizes: Sizes, body: Body) -> None:
    for what, dims, room in (
        ("max_state_dim", len(body.state.offset), sizes.state_room),
        ("max_action_dim", body.action_spec.dims, sizes.action_room),
    ):
        if dims > room:
            raise ValueError(
                f"{folder.root / CONFIG}: {what} is {room}, and its features have {dims} numbers"
            )
    for name, count in sizes.picture_tokens.items():
        if count < 1:
            raise ValueError(
                f"{folder.root / CONFIG}: pictures of {name!r} have no token left behind patches "
                f"of {sizes.eye.patch} pixels and a pixel shuffle of {sizes.shuffle}"
            )


def _execute(said: Said, folder: Folder) -> int:
    execute = said.execute or folder.fields.whole("n_action_steps")
    chunk = folder.fields.whole("chunk_size")
    if not 1 <= execute <= chunk:
        raise ValueError(
            f"{said.source if said.execute else folder.root / CONFIG}: {execute} actions of a "
            f"chunk are to be carried out, expected 1 to {chunk}"
        )
    return execute


def _tokens(folder: Folder) -> Tokens:
    """How a prompt becomes tokens: by its processor or, before 0.4, by its config."""
    found = folder.tokens
    if found is None and folder.before is not None:
        raise ValueError(
            f"{folder.root}: no step of its preprocessor reads words (tokenizer_processor); {COPY}"
        )
    if found is None:
        fields = folder.fields
        pads = fields.text("pad_language_to", "longest", known=("longest", "max_length"))
        found = Tokens(
            fields.text("vlm_model_name"), fields.whole("tokenizer_max_length"), padded=pads
        )
    if found.padding != "right":
        raise ValueError(f"{folder.root}: words are padded on the {found.padding}, expected right")
    return found


def _new_line(folder: Folder) -> bool:
    return folder.before is None or folder.has_new_line  # before 0.4 its code added one


def _layers(folder: Folder, vlm: Vlm) -> int:
    """Of the language model: the first of the VLM's."""
    asked = folder.fields.whole("num_vlm_layers", least=-1)
    if asked > vlm.layers:
        raise ValueError(
            f"{folder.root / CONFIG}: num_vlm_layers is {asked}, and its VLM has {vlm.layers}"
        )
    return asked if asked > 0 else vlm.layers


def _reads(folder: Folder, vlm: Vlm) -> tuple[str, ...]:
    layers = _layers(folder, vlm)
    experts = folder.fields.whole("num_expert_layers", 0, least=-1)
    return reads_of(
        layers,
        experts if experts > 0 else layers,
        folder.fields.whole("self_attn_every_n_layers", -1, least=-1),
        folder.fields.text("attention_mode", "cross_attn", known=("cross_attn", "self_attn")),
        folder.root / CONFIG,
    )


def _called(said: Said, folder: Folder, name: str) -> str:
    """What the robot calls a camera of the checkpoint: as said, or as its processor renames."""
    return said.cameras.get(name, folder.robots_cameras[name])


def _cameras(
    said: Said, options: Options, folder: Folder, robot: RobotSpec | None
) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """The robot's name of each camera → (height, width) as the config has it, and the checkpoint's
    names of those that nobody has."""
    said.check_cameras(list(folder.cameras))
    unknown = sorted(set(options.missing) - set(folder.cameras))
    if unknown:
        raise ValueError(
            f"{said.source}: [options] missing names {', '.join(unknown)}, and the checkpoint "
            f"looks through {', '.join(folder.cameras)}"
        )
    found = {}
    blanks = []
    for name, size in folder.cameras.items():
        if name in options.missing or (EMPTY.fullmatch(name) and name not in said.cameras):
            blanks.append(name)
        else:
            found[_called(said, folder, name)] = size
    if not found:
        raise ValueError(f"{said.source}: all cameras are missing, expected one at least")
    if len(found) + len(blanks) < len(folder.cameras):
        raise ValueError(f"{said.source}: two cameras of the checkpoint have one name: {found}")
    there = None if robot is None else robot.observation.cameras
    lacking = [name for name in found if there and name not in there]
    if lacking:
        raise ValueError(
            f"{said.source}: the checkpoint looks through {', '.join(lacking)}, and the robot has "
            f"{', '.join(there or ())}; say in [cameras] of {FILE} which is which, or name those "
            "that it does not have in [options] missing"
        )
    return found, blanks


# Its tensors


def _names(reads: tuple[str, ...], tensors: Any) -> Names:
    """A file's names → the network's."""
    language = re.escape(f"{VLM}text_model.")
    renamed = [
        (r"^model\._orig_mod\.", "model."),  # saved while it was compiled
        (rf"^{language}layers\.(\d+)\.", r"layers.\1.prefix."),
        (rf"^{language}embed_tokens\.", "words."),
        (rf"^{re.escape(VLM)}vision_model\.", "vision.tower."),
        (rf"^{re.escape(VLM)}connector\.modality_projection\.proj\.", "connector.proj."),
        (rf"^{re.escape(EXPERT)}norm\.", "norm."),
    ]
    beside = [index for index, each in enumerate(reads) if each != "nothing"]
    for number, index in enumerate(beside):
        own = rf"^{re.escape(EXPERT)}layers\.{number}\."
        renamed.append((own, f"layers.{index}.expert."))
    unused = ["*.text_model.norm.weight", "*.lm_expert.lm_head.weight"]
    head = "model.vlm_with_expert.vlm.lm_head.weight"
    if f"{VLM}text_model.embed_tokens.weight" in tensors or not tensors:
        unused.append("*.vlm.lm_head.weight")
    else:  # the two were one tensor, of which a file holds one
        renamed.append((rf"^{re.escape(head)}$", "words.weight"))
    renamed.append((r"^model\.(?=state_proj|action_)", ""))
    return Names(tuple(renamed), tuple(unused))


def _precisions(said: Said, tensors: Tensors, reads: tuple[str, ...]) -> tuple[str, str]:
    """Of the VLM's weights in memory, and of those beside it."""
    if said.precision != "as_saved":
        return said.precision, said.precision
    names = _names(reads, tensors)
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for name, header in tensors.items():
        if not names.is_unused(name):
            found[is_vlm(names.ours(name))].add(long_name(header.dtype))
    kinds = []
    short = {dtype: name for name, dtype in SHORT.items()}
    for part in (True, False):
        if len(found[part]) != 1 or not found[part] <= set(LONG):
            raise ValueError(
                f"{said.checkpoint / WEIGHTS} holds numbers of {', '.join(sorted(found[part]))} in "
                "one part of the network; choose `precision` fp32 or bf16 instead of as_saved"
            )
        kinds.append(short[LONG[found[part].pop()]])
    return kinds[0], kinds[1]


# What is said of it


def _choices(folder: Folder) -> tuple[Choice, ...]:
    return (
        Choice(
            "vision_positions",
            get_args(Positions),
            "right",
            "trained in single precision under transformers 4.55.1 to 4.57 (as by LeRobot 0.4), it "
            "saw rows and columns of patches shifted by one; nothing in the checkpoint tells",
        ),
        Choice(
            "loss",
            get_args(Loss),
            "masked",
            "LeRobot 0.4.4 trained on all dimensions and steps, padding among them",
        ),
        Choice(
            "steps",
            (1, 10),
            folder.fields.whole("num_steps"),
            "of denoising: how long it takes",
        ),
    )


def _remarks(folder: Folder, reads: tuple[str, ...], blank: list[str]) -> tuple[str, ...]:
    found = relative_remarks(folder.relative_dims)
    alone = [str(index) for index, each in enumerate(reads) if each == "nothing"]
    if alone:
        found.append(
            f"the expert has no layer beside layers {', '.join(alone)} of the language model: "
            "these are routed and cut alone, and cheaper"
        )
    if blank:
        found.append(f"nobody has {', '.join(blank)}: taken as black, and not attended to")
    if folder.before is None:
        found.append(
            "from before LeRobot 0.4: statistics are among the weights; the line break behind an "
            "instruction and the tokenizer were in its code"
        )
    if folder.config.get("rtc_config") is not None:
        found.append(
            "its real-time chunking (rtc_config) is not done here: a chunk is decided alone"
        )
    for key in (STATE, ACTION):
        normaliser = folder.normaliser(key)
        if not normaliser.offset.any() and (normaliser.scale == 1).all():
            found.append(
                f"{key} has no statistics, or is not normalised: its numbers pass as they are"
            )
    return tuple(found)
