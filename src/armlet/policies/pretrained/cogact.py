"""CogACT's run folders: `config.json`, `dataset_statistics.json`, `checkpoints/….pt`, in which
`["model"]` holds a module each of towers, projector, language model and action model.

Neither words nor sizes of the language model are in the folder; both come from Llama-2's own, which
`tokenizer` of `policy.toml` names: `tokenizer.json` and, where it is there, `config.json`. The config
of a run is read, and the checkpoint's shapes are asked whether it is true (the original's loader
ignores it, and whoever calls it must pass `action_model_type` and `use_ema` again).
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from armlet.data.files import read_json
from armlet.policies.contract import Backbone, Body, rebuild
from armlet.policies.pretrained.action_dit import Sampler, visited
from armlet.policies.pretrained.card import Card, Choice, dtypes_of, parts_of
from armlet.policies.pretrained.cogact_network import GRIPPER
from armlet.policies.pretrained.dino_siglip import Sizes
from armlet.policies.pretrained.files import COPY, Names, Tensors, fill, open_pickled
from armlet.policies.pretrained.openvla_files import (
    RUN_FOLDER,
    STATISTICS,
    LlamaFacts,
    Statistics,
    action_normaliser,
    depth_of,
    read_statistics,
)
from armlet.policies.pretrained.openvla_prompt import FILE, LONGEST, read_tokenizer, words_of
from armlet.policies.pretrained.said import Said
from armlet.robot.description import Described
from armlet.robot.normalise import Normaliser
from armlet.robot.spec import RobotSpec

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
CAMERA = "image"  # what the policy's only camera is called, where `[cameras]` says nothing else
BASE = "prism-dinosiglip-224px"  # how names of vision-language models begin that are read here
EPS = 1e-5  # of RMSNorm in Llama-2 (transformers' folders of OpenVLA have 1e-6)
HEAD_SIZE = 128  # of Llama-2
PADDED = 64  # to a multiple of which the word table was padded, one more word among it
# What a module in the file must be, and where its numbers go.
MODULES = ("vision_backbone", "projector", "llm_backbone", "action_model")
EMA = "ema_diffusion"
# Name → (depth, width, heads) of an action model.
SIZES = {"DiT-S": (6, 384, 4), "DiT-B": (12, 768, 12), "DiT-L": (24, 1024, 16)}
NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
# As the data sets of Open X-Embodiment were brought to one form: a change of place and of Euler
# angles, and a gripper.
MEANT = Described(
    mode="delta", rotation="euler", grippers=(GRIPPER,), gripper_open=1.0, gripper_closed=0.0
)


@dataclass(frozen=True)
class Options:
    """`unnorm_key`: the data set by whose statistics actions become the robot's numbers; `weights`:
    which file of `checkpoints`; `use_ema`: the averaged action model, where the file has one (None:
    not, and it is said); `action_model_type`: DiT-S, DiT-B or DiT-L, where neither shapes nor config
    say it; `llm_heads`: of the language model, where no config does.

    `sampler` ddim or ddpm, `steps` of ddim, `guidance` (at 1 or below none): as its evaluation.
    `seed`: of the noise that sampling starts from. `repeated` and `dropout`: of the loss, how many
    steps of the diffusion are drawn a sample, and the share that is told nothing.
    """

    unnorm_key: str | None = None
    weights: str | None = None
    use_ema: bool | None = None
    action_model_type: str | None = None
    llm_heads: int | None = None
    sampler: Sampler = "ddim"
    steps: int | None = None
    guidance: float = 1.5
    seed: int = 0
    repeated: int | None = None
    dropout: float = 0.1

    def __post_init__(self) -> None:
        visited(self.sampler, self.steps)
        if self.repeated is not None and self.repeated < 1:
            raise ValueError(f"repeated is {self.repeated}, expected 1 or more")
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout is {self.dropout}, expected a share, 0 to 1")
        if self.action_model_type not in (None, *SIZES):
            raise ValueError(
                f"action_model_type is {self.action_model_type!r}, expected {', '.join(SIZES)}"
            )


def recognises(folder: Path) -> bool:
    """A run folder whose config speaks of an action model."""
    if not (folder / CONFIG).is_file() or not (folder / CHECKPOINTS).is_dir():
        return False
    try:
        config = read_json(folder / CONFIG, fix=COPY)
    except ValueError:
        return False
    run = config.get("vla")
    if not isinstance(run, dict):
        return False
    named = f"{run.get('vla_id')} {run.get('type')}"
    return "action_model_type" in config or "diffusion" in named


@dataclass(frozen=True)
class Run:
    """What a run folder holds, from headers and small files. `ema`: whether the averaged action
    model is taken."""

    said: Said
    options: Options
    config: dict[str, Any]
    path: Path
    tensors: Tensors  # of `["model"]`
    ema: bool
    statistics: Statistics
    facts: LlamaFacts
    sizes: Sizes
    head: dict[str, Any]  # sizes of the action model: arguments of DiffusionHead

    @property
    def names(self) -> Names:
        """Where each tensor goes. The language model's words as answers, and the action model that
        is not taken, are of no use."""
        found = RUN_FOLDER.names(self.tensors)
        taken = EMA if self.ema else "action_model"
        other = "action_model" if self.ema else EMA
        unused = ("llm_backbone.llm.lm_head.*", f"{other}.*", "*.history_embedder.*")
        return Names(
            renamed=(*found.renamed, (rf"^{taken}\.net\.", "head.net.")),
            unused=(*found.unused, *unused),
        )


def read(said: Said) -> Run:
    """Raises FileNotFoundError or ValueError naming the file, field or module that will not do."""
    options = said.as_options(Options)
    folder = said.checkpoint
    config = read_json(folder / CONFIG, fix=COPY)
    base = str(config.get("vla", {}).get("base_vlm"))
    if not base.startswith(BASE):
        raise ValueError(
            f"{folder / CONFIG}: base_vlm is {base!r}, and only those that begin with {BASE!r} "
            "(DINOv2 and SigLIP at 224 px, Llama-2) are read here"
        )
    path = weights_file(folder, options.weights)
    tensors = open_pickled(path).part("model.")
    modules = _check_modules(tensors, path)
    if options.use_ema and EMA not in modules:
        raise ValueError(
            f"{said.source}: use_ema asks for the averaged action model, and {path} has none "
            f"(there are {', '.join(modules)}); leave it out"
        )
    facts = _llama(said, options, tensors, path)
    taken = f"{EMA if options.use_ema else 'action_model'}.net."
    return Run(
        said=said,
        options=options,
        config=config,
        path=path,
        tensors=tensors,
        ema=bool(options.use_ema),
        statistics=read_statistics(folder, config),
        facts=facts,
        sizes=RUN_FOLDER.sizes(tensors, facts),
        head=_head(tensors.part(taken), options, config, path),
    )


def weights_file(folder: Path, chosen: str | None) -> Path:
    """The file of weights in `checkpoints`: the only one, or the one that is chosen. A trainer's
    state beside it (`.optimizer`) is nobody's concern. Raises FileNotFoundError, or ValueError
    where there are several."""
    there = sorted((folder / CHECKPOINTS).glob("*.pt"))
    names = [path.name for path in there]
    listed = ", ".join(names) or "none"
    if chosen is not None:
        if chosen not in names:
            raise FileNotFoundError(
                f"{folder / CHECKPOINTS} has no {chosen!r} (`weights` in [options] of policy.toml); "
                f"there are {listed}"
            )
        return folder / CHECKPOINTS / chosen
    if not there:
        raise FileNotFoundError(f"{folder / CHECKPOINTS} holds no .pt file; {COPY}")
    if len(there) > 1:
        raise ValueError(
            f"{folder / CHECKPOINTS} holds {len(there)} files of weights; say which, as `weights` in "
            f"[options] of policy.toml: {listed}"
        )
    return there[0]


def _check_modules(tensors: Tensors, path: Path) -> list[str]:
    """The modules that a file holds. Raises ValueError naming one that is missing or unknown."""
    modules = sorted({name.partition(".")[0] for name in tensors})
    missing = [name for name in MODULES if name not in modules]
    if "vision_backbone" in missing and "llm_backbone" in modules:
        raise ValueError(
            f"{path} has no `vision_backbone`: it was saved with what had been trained alone, and "
            "the image towers it was trained with are in another file (the original would take "
            "timm's pretrained ones without a word); save the whole model"
        )
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(missing)} in ['model'] (there are "
            f"{', '.join(modules) or 'no tensors'}): it is no checkpoint of CogACT; {COPY}"
        )
    unknown = sorted(set(modules) - {*MODULES, EMA})
    if unknown:
        raise ValueError(
            f"{path} holds {', '.join(unknown)} in ['model'], of which nothing is known here; known "
            f"are {', '.join((*MODULES, EMA))}"
        )
    return modules


def _llama(said: Said, options: Options, tensors: Tensors, path: Path) -> LlamaFacts:
    """What no shape tells of the language model: from the config beside the tokenizer or, where
    there is none, as Llama-2 is."""
    table = "llm_backbone.llm.model.embed_tokens.weight"
    if table not in tensors:
        raise ValueError(f"{path} has no {table}; {COPY}")
    rows, width = tensors[table].shape
    place = None if said.tokenizer is None else Path(said.tokenizer) / CONFIG
    if place is not None and place.is_file():
        return _llama_config(place, options, width)
    heads = options.llm_heads
    if heads is None:
        if width % HEAD_SIZE:
            raise ValueError(
                f"{path}: a language model of width {width} is not Llama-2's, and how many heads it "
                f"has is said nowhere; put its {CONFIG} beside the tokenizer, or give `llm_heads` "
                "in [options] of policy.toml"
            )
        heads = width // HEAD_SIZE
    # The table was padded; the tokenizer says how many words there are, and is asked for below.
    vocabulary = _words(said, rows)
    return LlamaFacts(heads=heads, kv_heads=heads, eps=EPS, vocabulary=vocabulary)


def _llama_config(place: Path, options: Options, width: int) -> LlamaFacts:
    found = read_json(place, fix="copy Llama-2's files again")
    if options.llm_heads is not None:
        raise ValueError(
            f"llm_heads is {options.llm_heads}, and {place} says it, too; leave the option out"
        )
    try:
        heads = int(found["num_attention_heads"])
        facts = LlamaFacts(
            heads=heads,
            kv_heads=int(found.get("num_key_value_heads", heads)),
            eps=float(found["rms_norm_eps"]),
            vocabulary=int(found["vocab_size"]),
            theta=float(found.get("rope_theta", 10000.0)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{place} does not describe a language model ({type(error).__name__}: {error}); expected "
            "num_attention_heads, rms_norm_eps and vocab_size; copy Llama-2's files again"
        ) from error
    if found.get("hidden_size") != width:
        raise ValueError(
            f"{place}: hidden_size is {found.get('hidden_size')}, and the checkpoint's language "
            f"model has {width}: they are of two models; `tokenizer` in policy.toml names another"
        )
    return facts


def _words(said: Said, rows: int) -> int:
    """How many words the tokenizer has. Raises ValueError where a table of so many rows is not of
    its words."""
    found = words_of(read_tokenizer(said.checkpoint, said.tokenizer))
    if rows != (found + 1 + PADDED - 1) // PADDED * PADDED:  # one word of padding was added
        raise ValueError(
            f"the tokenizer of {said.tokenizer or said.checkpoint} has {found} words, and the "
            f"network's table {rows} rows, expected a multiple of {PADDED} with room for one more; "
            "it is another model's: give Llama-2's as `tokenizer` in policy.toml"
        )
    return found


def _head(tensors: Tensors, options: Options, config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Sizes of an action model, of whose `net` these are the tensors."""
    shapes = {name: header.shape for name, header in tensors.items()}
    try:
        places, width = shapes["positional_embedding"]
        dims = shapes["x_embedder.linear.weight"][1]
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"{path}: its action model has no whole positional_embedding and x_embedder; {COPY}"
        ) from error
    if dims != len(NAMES):
        raise ValueError(
            f"{path}: its action model makes actions of {dims} numbers, expected {len(NAMES)} "
            f"({', '.join(NAMES)})"
        )
    depth = depth_of(shapes, "blocks.")
    chunk = places - 1  # one place is that of the feature
    window = config.get("future_action_window_size")
    if window is not None and window + 1 != chunk:
        raise ValueError(
            f"{path.parent.parent / CONFIG}: future_action_window_size is {window}, and the action "
            f"model makes chunks of {chunk} actions, expected {chunk - 1}; {COPY}"
        )
    heads = SIZES[_type(depth, width, options, config, path)][2]
    return {"chunk": chunk, "dims": dims, "hidden": width, "depth": depth, "heads": heads}


def _type(depth: int, width: int, options: Options, config: dict[str, Any], path: Path) -> str:
    """Which of the action models it is: heads are in no shape. By its shapes, and else as the
    option or the config says. Raises ValueError where these contradict one another, or say
    nothing."""
    named = options.action_model_type or config.get("action_model_type")
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
    """Config, statistics, weights, and words where they are in a folder here."""
    folder = said.checkpoint
    found = [
        folder / CONFIG,
        folder / STATISTICS,
        weights_file(folder, said.as_options(Options).weights),
    ]
    beside = folder if said.tokenizer is None else Path(said.tokenizer)
    for name in (FILE, CONFIG):
        if (beside / name).is_file() and beside / name not in found:
            found.append(beside / name)
    return [path for path in found if path.is_file()]


def describe(said: Said) -> Card:
    """From headers and small files."""
    run = read(said)
    key, statistics = _chosen_or_first(run)
    llama = run.sizes.llama
    head = run.head
    rooms = {
        "vision_backbone.dino": "DINOv2",
        "vision_backbone.siglip": "SigLIP",
        "projector.": "projector",
        "llm_backbone.": "language model",
        f"{EMA if run.ema else 'action_model'}.": "action model",
        f"{'action_model' if run.ema else EMA}.": "action model that is not taken",
    }
    names = run.names
    return Card(
        kind="cogact",
        root=said.checkpoint,
        sizes={
            "towers": f"{run.sizes.dino.depth} + {run.sizes.siglip.depth} blocks, of which the last "
            f"is not run, {run.sizes.dino.tokens} patches",
            "language model": f"{llama.depth} layers of width {llama.width}, {llama.heads} heads",
            "action model": f"{head['depth']} blocks of width {head['hidden']}, {head['heads']} "
            "heads",
        },
        cameras={said.camera(CAMERA): (run.sizes.dino.side, run.sizes.dino.side)},
        state_dims=0,
        action_dims=head["dims"],
        chunk=head["chunk"],
        execute=said.execute or 1,
        steps=len(visited(run.options.sampler, run.options.steps)),
        layers=llama.depth,
        parts=parts_of(run.tensors, rooms),
        dtypes=dtypes_of(run.tensors),
        files=tuple(files(said)),
        action=action_normaliser(statistics["action"], key),
        action_names=NAMES,
        choices=_choices(run),
        remarks=_remarks(run),
        words="In: What action should the robot take to …?\\nOut: (lower case), an empty token and "
        "the end token",
        unused=tuple(name for name in run.tensors if names.is_unused(name)),
    )


def _chosen_or_first(run: Run) -> tuple[str, dict[str, Any]]:
    """The data set that is chosen; where it must be and is not, the first, to show something."""
    if run.options.unnorm_key is None and len(run.statistics.sets) > 1:
        return run.statistics.chosen(min(run.statistics.sets))
    return run.statistics.chosen(run.options.unnorm_key)


def _choices(run: Run) -> tuple[Choice, ...]:
    sets = tuple(sorted(run.statistics.sets))
    found = [
        Choice(
            "unnorm_key",
            sets,
            sets[0] if len(sets) == 1 else None,
            "by whose statistics actions become the robot's numbers",
        ),
        Choice("sampler", ("ddim", "ddpm"), "ddim", "ddpm takes all 100 steps"),
        Choice("steps", ("1 … 100",), "10", "of ddim"),
        Choice("guidance", ("1 (none) …",), "1.5", "how far beyond the plain answer it goes"),
    ]
    if _has_ema(run):
        found.append(Choice("use_ema", ("false", "true"), "false", EMA_SAID))
    return tuple(found)


EMA_SAID = (
    "the file has the action model's averaged weights as well, and nothing in it says which are "
    "meant; the original takes the plain ones where nobody says `use_ema`, and the two answer "
    "differently"
)


def _has_ema(run: Run) -> bool:
    return any(name.startswith(f"{EMA}.") for name in run.tensors)


def _remarks(run: Run) -> tuple[str, ...]:
    found = []
    if run.options.use_ema is None and _has_ema(run):
        asked = run.config.get("use_ema")
        found.append(f"{EMA_SAID} (its config says {asked}); say it in [options]: use_ema = false")
    return tuple(found)


def load(said: Said, robot: RobotSpec | None) -> Backbone:
    """The policy, on the CPU in eval mode. Raises as `read` does, and where actions cannot be turned
    into the robot's numbers, or the tokenizer is another model's."""
    run = read(said)
    key, statistics = run.statistics.chosen(run.options.unnorm_key)
    actions = action_normaliser(statistics["action"], key)
    dims = run.head["dims"]
    if len(actions.offset) != dims:
        raise ValueError(
            f"{run.statistics.source}: {key} has actions of {len(actions.offset)} numbers, and the "
            f"action model makes {dims}; are the statistics of another checkpoint's? {COPY}"
        )
    said.check_cameras([CAMERA])
    body = Body(
        action_spec=said.action_spec(dims, robot, names=NAMES, itself=MEANT),
        state=Normaliser(np.zeros(0, np.float32), np.ones(0, np.float32)),  # it looks at none
        actions=actions,
        tokenizer=read_tokenizer(said.checkpoint, said.tokenizer, run.facts.vocabulary),
        fit="bicubic",
    )
    network = _empty(run, body)

    def kept(ours: str, tensor: Tensor) -> Tensor:
        # The action model runs in single precision, whatever the rest does.
        return tensor.float() if ours.startswith("head.") else tensor.to(said.dtype or tensor.dtype)

    fill(network, run.tensors, run.names, dtype=None, change=kept)
    for line in _remarks(run):
        sys.stderr.write(f"{run.path}: {line}\n")
    return network.eval()


def _empty(run: Run, body: Body) -> Backbone:
    """The network without weights."""
    options = run.options
    repeated = options.repeated
    if repeated is None:
        repeated = int(run.config.get("repeated_diffusion_steps") or 8)
    head = {
        **run.head,
        "sampler": options.sampler,
        "steps": options.steps,
        "guidance": float(options.guidance),
        "repeated": repeated,
        "dropout": float(options.dropout),
        "seed": options.seed,
    }
    execute = run.said.execute or 1  # its evaluation looks again at every step
    if execute > head["chunk"]:
        raise ValueError(
            f"{run.said.source}: execute is {execute}, and a chunk has {head['chunk']} actions"
        )
    table = run.tensors["llm_backbone.llm.model.embed_tokens.weight"]
    dtype = run.said.dtype or table.dtype
    network = {
        "sizes": run.sizes.to_json(),
        "cameras": {run.said.camera(CAMERA): run.sizes.dino.side},
        "text_tokens": LONGEST,
        "dtype": str(dtype).removeprefix("torch."),
        "head": head,
        "execute": execute,
    }
    made = {"type": "pretrained.cogact_network", "network": network, **body.to_json()}
    return rebuild(made, body.tokenizer, empty=True)
