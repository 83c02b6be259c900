"""CogACT's run folders: as those of OpenVLA's trainer (`prismatic_openvla`), with an action model, or
two, among the modules in `["model"]`.

Neither words nor sizes of the language model are in the folder; both come from Llama-2's own, which
`tokenizer` of `policy.toml` names. The config of a run is read, and the checkpoint's shapes are asked
whether it is true (the original's loader ignores it: whoever calls it must pass `action_model_type`
and `use_ema` again, and a wrong `use_ema` is silent).
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from armlet.data.files import read_json
from armlet.layers.action_dit import Sampler, visited
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
from armlet.policies.pretrained.cogact_network import GRIPPER
from armlet.policies.pretrained.fields import Fields, sizes_from
from armlet.policies.pretrained.files import COPY, Names, Tensors, fill
from armlet.policies.pretrained.llama_tokenizer import (
    read_tokenizer,
    tokenizer_file,
    words_of,
)
from armlet.policies.pretrained.openvla_body import (
    CAMERA,
    check_execute,
    no_state,
    renamed,
    robots_camera,
)
from armlet.policies.pretrained.openvla_files import (
    VISION_HEADS,
    action_normaliser,
    depth_of,
)
from armlet.policies.pretrained.openvla_folders import (
    CHECKPOINTS,
    CONFIG,
    RunFolder,
    checkpoints_of,
    language_model_said,
)
from armlet.policies.pretrained.openvla_hf import check_option
from armlet.policies.pretrained.said import Said
from armlet.robot.description import Described
from armlet.robot.reading.llama import LONGEST, PROMPT
from armlet.robot.spec import RobotSpec

KIND = "cogact"
MODULES = ("vision_backbone", "projector", "llm_backbone", "action_model")
EMA = "ema_diffusion"
# Name → (depth, width, heads) of an action model.
SIZES = {"DiT-S": (6, 384, 4), "DiT-B": (12, 768, 12), "DiT-L": (24, 1024, 16)}
DIMS = 7  # of an action: the gripper's place among them stands in the original's code
REPEATED = 8  # as its trainer, where a config does not say
# What the network itself decides; the rest of an action's meaning is its data set's.
MEANT = Described(grippers=(GRIPPER,), gripper_open=1.0, gripper_closed=0.0)
EMA_SAID = (
    "the file has averaged weights of the action model beside the plain ones, and nothing in it says "
    "which are meant; the plain ones are taken where nobody says, as by the original, and the two "
    "answer differently"
)


@dataclass(frozen=True)
class Options:
    """`unnorm_key`: the data set by whose statistics actions become the robot's numbers; needed
    where there are several. `weights`: the name of a checkpoint; needed where there are several.
    `use_ema`: the averaged action model (None: the plain one, and it is said where there are two).
    `action_model_type`: DiT-S, DiT-B or DiT-L, where neither shapes nor config say it. `llm_heads`,
    `llm_kv_heads` and `rms_norm_eps`: of the language model, where it is not Llama-2's.
    `vision_heads`: of both image towers.

    `sampler` ddim or ddpm, `steps` of ddim (None: 10), `guidance` (at 1 or below none): as its
    published evaluation. `seed`: of the noise from which sampling starts. `repeated` and `dropout`:
    of the loss, how many steps of the diffusion are drawn a sample (None: as the run's config), and
    the share of these that are told nothing.
    """

    unnorm_key: str | None = None
    weights: str | None = None
    use_ema: bool | None = None
    action_model_type: str | None = None
    llm_heads: int | None = None
    llm_kv_heads: int | None = None
    rms_norm_eps: float | None = None
    vision_heads: int = VISION_HEADS
    sampler: Sampler = "ddim"
    steps: int | None = None
    guidance: float = 1.5
    seed: int = 0
    repeated: int | None = None
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("unnorm_key", "weights"):
            check_option(name, getattr(self, name), str)
        for name in ("llm_heads", "llm_kv_heads", "vision_heads", "steps", "repeated"):
            check_option(name, getattr(self, name), int)
        check_option("rms_norm_eps", self.rms_norm_eps, float)
        visited(self.sampler, self.steps)
        if self.use_ema not in (None, True, False):
            raise ValueError(f"use_ema is {self.use_ema!r}, expected true or false")
        if isinstance(self.guidance, bool) or not 0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance is {self.guidance!r}, expected a number, 0 or more")
        if isinstance(self.dropout, bool) or not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout is {self.dropout!r}, expected a share, 0 to 1")
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(f"seed is {self.seed!r}, expected a whole number, 0 or more")
        if self.action_model_type not in (None, *SIZES):
            raise ValueError(
                f"action_model_type is {self.action_model_type!r}, expected {', '.join(SIZES)}"
            )


def recognises(folder: Path) -> bool:
    """A run folder whose config speaks of an action model."""
    if not (folder / CONFIG).is_file() or not (folder / CHECKPOINTS).is_dir():
        return False
    try:
        config = read_json(folder / CONFIG, fix="")
    except ValueError:  # no JSON: it is nothing that is known here
        return False
    run = config.get("vla")
    if not isinstance(run, dict):
        return False
    return "action_model_type" in config or "diffusion" in f"{run.get('vla_id')} {run.get('type')}"


@dataclass(frozen=True)
class Run:
    """What a run folder holds, from headers and small files. `modules`: of the file; `head`: sizes
    of the action model, arguments of `DiffusionHead`."""

    said: Said
    options: Options
    folder: RunFolder
    modules: tuple[str, ...]
    head: dict[str, int]

    @property
    def tensors(self) -> Tensors:
        return self.folder.tensors

    @property
    def taken(self) -> str:
        """The module whose action model acts."""
        return EMA if self.options.use_ema else "action_model"

    @property
    def names(self) -> Names:
        """Where each tensor goes. The language model's scores of words, the history that the action
        model was never told, and the action model that is not taken are of no use."""
        found = self.folder.names
        other = "action_model" if self.options.use_ema else EMA
        unused = (
            "llm_backbone.llm.lm_head.*",
            f"{other}.*",
            f"{self.taken}.net.history_embedder.*",
        )
        return Names(
            renamed=(*found.renamed, (rf"^{self.taken}\.net\.", "head.net.")),
            unused=(*found.unused, *unused),
        )

    @property
    def remarks(self) -> list[str]:
        if self.options.use_ema is not None or EMA not in self.modules:
            return []
        asked = self.folder.config.get("use_ema")
        return [f"{EMA_SAID}; its config has use_ema {asked}. Say it in [options]: use_ema = false"]


def read(said: Said, weights: str | None = None) -> Run:
    """What is said, with what the folder holds; `weights`: see `RunFolder`. Raises
    FileNotFoundError or ValueError naming the file, field or module that will not do."""
    options = said.as_options(Options)
    chosen = weights or options.weights
    folder = RunFolder.read(
        said.checkpoint, chosen, language_model_said(said.tokenizer, options), options.vision_heads
    )
    modules = _modules(folder)
    if options.use_ema and EMA not in modules:
        raise ValueError(
            f"{said.source}: use_ema asks for an averaged action model, and {folder.weights} has "
            f"none (there are {', '.join(modules)}); leave it out"
        )
    taken = EMA if options.use_ema else "action_model"
    head = _head(folder.tensors.part(f"{taken}.net."), options, folder)
    return Run(said, options, folder, modules, head)


def _modules(folder: RunFolder) -> tuple[str, ...]:
    """The modules that a file holds. Raises ValueError naming one that is missing or unknown."""
    path = folder.weights
    modules = tuple(sorted({name.partition(".")[0] for name in folder.tensors}))
    missing = [name for name in MODULES if name not in modules]
    if missing == ["vision_backbone"]:
        raise ValueError(
            f"{path} has no `vision_backbone`: it was saved with what had been trained alone, and "
            "the image towers are in another file (the original would take timm's pretrained ones "
            "without a word); save the whole model"
        )
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(missing)} in ['model'] (there are {', '.join(modules)}): it "
            f"is no checkpoint of CogACT; {COPY}"
        )
    unknown = sorted(set(modules) - {*MODULES, EMA})
    if unknown:
        raise ValueError(
            f"{path} holds {', '.join(unknown)} in ['model'], of which nothing is known here; known "
            f"are {', '.join((*MODULES, EMA))}"
        )
    return modules


def _head(tensors: Tensors, options: Options, folder: RunFolder) -> dict[str, int]:
    """Sizes of an action model, of whose `net` these are the tensors. Raises ValueError where they,
    the config and the options contradict one another."""
    path = folder.weights
    config = folder.config
    shapes = {name: header.shape for name, header in tensors.items()}
    try:
        places, width = shapes["positional_embedding"]
        dims = shapes["x_embedder.linear.weight"][1]
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"{path}: its action model has no whole positional_embedding and x_embedder; {COPY}"
        ) from error
    if dims != DIMS:
        raise ValueError(
            f"{path}: its action model makes actions of {dims} numbers, expected {DIMS}: of these "
            f"number {GRIPPER} is the gripper"
        )
    depth = depth_of(shapes, "blocks.")
    chunk = places - 1  # one place is that of the feature
    if config.get("past_action_window_size", 0) != 0:
        raise ValueError(
            f"{folder.root / CONFIG}: past_action_window_size is "
            f"{config['past_action_window_size']}, expected 0: an action model that is told of "
            "actions before is not read here"
        )
    fields = Fields(config, folder.root / CONFIG)
    window = fields.whole_or_none("future_action_window_size", least=0)
    if window is not None and window + 1 != chunk:
        raise ValueError(
            f"{folder.root / CONFIG}: future_action_window_size is {window}, and the action "
            f"model makes chunks of {chunk} actions, expected {chunk - 1}; {COPY}"
        )
    heads = SIZES[_type(depth, width, options, config, path)][2]
    return {"chunk": chunk, "dims": dims, "hidden": width, "depth": depth, "heads": heads}


def _type(depth: int, width: int, options: Options, config: dict[str, Any], path: Path) -> str:
    """Which of the action models it is: heads are in no shape. By its shapes, and else as the
    option or the config says. Raises ValueError where these contradict one another, or say
    nothing."""
    named = options.action_model_type
    if named is None and config.get("action_model_type") is not None:
        named = Fields(config, path.parent.parent / CONFIG).text("action_model_type")
    place = "action_model_type"
    for name, (known_depth, known_width, _) in SIZES.items():
        if (depth, width) == (known_depth, known_width):
            if named not in (None, name):
                raise ValueError(
                    f"{path}: its action model has {depth} blocks of width {width}, as {name}, and "
                    f"{place} says {named!r}; correct it"
                )
            return name
    if named not in SIZES:
        raise ValueError(
            f"{path}: its action model has {depth} blocks of width {width}, as none that was "
            f"published, and {place} is {named!r}; how many heads it has follows from it: give "
            f"{', '.join(SIZES)} as `{place}` in [options] of policy.toml"
        )
    return str(named)


def files(said: Said) -> list[Path]:
    options = said.as_options(Options)
    folder = RunFolder.read(said.checkpoint, options.weights)
    found = [*folder.files(), tokenizer_file(folder.root, said.tokenizer)]
    beside = Path(said.tokenizer or "") / CONFIG  # heads and eps of the language model
    if said.tokenizer is not None and beside.is_file():
        found.append(beside)
    return found


def describe(said: Said) -> Card:
    """From headers and small files. Of several checkpoints, while nobody has chosen, the last."""
    there = checkpoints_of(said.checkpoint)
    chosen = said.as_options(Options).weights
    run = read(said, chosen or (there[-1].name if there else None))
    sizes = run.folder.sizes()
    head = run.head
    choices = _choices(run)
    if len(there) > 1:
        listed = tuple(path.name for path in there)
        choices.append(Choice("weights", listed, None, "which step of the run it is"))
    remarks = list(run.remarks)
    if said.tokenizer is None:
        remarks.append("a run folder has no tokenizer: give Llama-2's as `tokenizer`")
    statistics = run.folder.statistics
    action = None
    if run.options.unnorm_key is not None or len(statistics.sets) == 1:
        key, found = statistics.chosen(run.options.unnorm_key)
        action = action_normaliser(found["action"], f"{statistics.source}: {key}")
    rooms = {
        "vision.": "image towers",
        "projector.": "projector",
        "words.": "word table",
        "layers.": "layers",
        "norm.": "layers",
        "head.": "action model",
    }
    names = run.names
    llama = sizes.llama
    patches = sizes.dino.grid**2
    steps = len(visited(run.options.sampler, run.options.steps))
    # With guidance each step asks twice, told the feature and told nothing, side by side.
    answers = 2 if run.options.guidance > 1 else 1
    work = {
        "image towers": (Work(patches),),
        "projector": (Work(patches),),
        "layers": (Work(patches + PROMPT_TOKENS + 1),),  # the end token, too
        "action model": (Work(answers * (1 + head["chunk"]), steps),),
    }
    return Card(
        kind=KIND,
        root=said.checkpoint,
        sizes={
            "DINOv2": f"{sizes.dino.width} wide, {sizes.dino.depth} blocks, {sizes.dino.side} px",
            "SigLIP": f"{sizes.siglip.width} wide, {sizes.siglip.depth} blocks, "
            f"{sizes.siglip.side} px",
            "language model": f"Llama, {llama.width} wide, {llama.depth} layers of {llama.heads} "
            f"heads, RMSNorm eps {llama.eps:g}",
            "action model": f"{head['hidden']} wide, {head['depth']} blocks of {head['heads']} "
            "heads",
        },
        cameras={CAMERA: (sizes.dino.side, sizes.dino.side)},
        state_dims=0,
        action_dims=head["dims"],
        chunk=head["chunk"],
        execute=said.execute or 1,
        steps=steps,
        layers=llama.depth,
        parts=parts_of(renamed(run.tensors, names), rooms),
        work=work,
        dtypes=dtypes_of(run.tensors),
        files=tuple(run.folder.files()),
        action=action,
        choices=tuple(choices),
        remarks=tuple(remarks),
        words=f"{PROMPT.format('<instruction in lower case>')!r}, then the token '▁' and the end "
        "token",
        unused=tuple(name for name in run.tensors if names.is_unused(name)),
    )


def _choices(run: Run) -> list[Choice]:
    sets = tuple(sorted(run.folder.statistics.sets))
    found = [
        Choice("sampler", ("ddim", "ddpm"), "ddim", "ddpm takes all 100 steps"),
        Choice("steps", ("1 … 100",), 10, "of ddim: each asks the action model once or twice"),
        Choice("guidance", ("1 (none) …",), 1.5, "how far it goes beyond the plain answer"),
    ]
    if len(sets) > 1:
        why = "by whose statistics actions become the robot's numbers"
        found.insert(0, Choice("unnorm_key", sets, None, why))
    if EMA in run.modules:
        found.insert(0, Choice("use_ema", (False, True), False, EMA_SAID))
    return found


def load(said: Said, robot: RobotSpec | None) -> Backbone:
    """The policy, on the CPU in eval mode. Raises as `read` does, and where actions cannot be turned
    into the robot's numbers, or the tokenizer is another model's."""
    run = read(said)
    statistics = run.folder.statistics
    key, found = statistics.chosen(run.options.unnorm_key)
    where = f"{statistics.source}: {key}"
    actions = action_normaliser(found["action"], where)
    dims = run.head["dims"]
    if len(actions.offset) != dims:
        raise ValueError(
            f"{where} has actions of {len(actions.offset)} numbers, and the action model makes "
            f"{dims}: are they of another checkpoint? {COPY}"
        )
    check_execute(said, run.head["chunk"])
    body = Body(
        action_spec=said.action_spec(dims, robot, itself=MEANT),
        state=no_state(),
        actions=actions,
        tokenizer=read_tokenizer(said.checkpoint, said.tokenizer),
        fit="bicubic",
    )
    description = _described(run, body, robot)
    with sizes_from(run.folder.weights):
        network = rebuild(description, body.tokenizer, empty=True)

    def kept(ours: str, tensor: Tensor) -> Tensor:
        # The action model runs in single precision, whatever the rest does.
        return tensor.float() if ours.startswith("head.") else tensor.to(said.dtype or tensor.dtype)

    fill(network, run.tensors, run.names, dtype=None, change=kept)
    for line in run.remarks:
        sys.stderr.write(f"{run.folder.weights}: {line}\n")
    return network.eval()


def _described(run: Run, body: Body, robot: RobotSpec | None) -> dict[str, Any]:
    """The network as its `to_json` has it."""
    options = run.options
    repeated = options.repeated
    if repeated is None:
        fields = Fields(run.folder.config, run.folder.root / CONFIG)
        repeated = fields.whole("repeated_diffusion_steps", REPEATED)
    sizes = run.folder.sizes(words_of(body.tokenizer))
    dtype = run.said.dtype or run.tensors["llm_backbone.llm.model.embed_tokens.weight"].dtype
    network = {
        "sizes": sizes.to_json(),
        "cameras": {robots_camera(run.said, robot): sizes.dino.side},
        "text_tokens": LONGEST,
        "dtype": long_name(dtype),
        "head": {
            **run.head,
            "sampler": options.sampler,
            "steps": options.steps,
            "guidance": float(options.guidance),
            "repeated": repeated,
            "dropout": float(options.dropout),
            "seed": options.seed,
        },
        # Its evaluation looks again at every step.
        "execute": run.said.execute or 1,
    }
    return {"type": "pretrained.cogact_network", "network": network, **body.to_json()}
