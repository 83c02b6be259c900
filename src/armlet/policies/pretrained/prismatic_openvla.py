"""OpenVLA as its own trainer saves it, a run folder: `config.json` with a table `vla`,
`dataset_statistics.json`, `checkpoints/*.pt`.

Neither the tokenizer nor the sizes of the language model stand in it: the original takes both from
Llama-2's folder on the hub. So does `tokenizer` here, where that folder has a `config.json`, too.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from armlet.data.files import read_json
from armlet.policies.contract import Backbone
from armlet.policies.pretrained.card import Card, Choice
from armlet.policies.pretrained.llama_tokenizer import read_tokenizer, tokenizer_file, words_of
from armlet.policies.pretrained.openvla_body import Checkpoint, assemble, card
from armlet.policies.pretrained.openvla_files import VISION_HEADS
from armlet.policies.pretrained.openvla_folders import (
    BINS,
    CHECKPOINTS,
    CONFIG,
    RunFolder,
    checkpoints_of,
    language_model_said,
)
from armlet.policies.pretrained.openvla_hf import check_option
from armlet.policies.pretrained.said import Said
from armlet.robot.spec import RobotSpec

KIND = "prismatic_openvla"


@dataclass(frozen=True)
class Options:
    """`unnorm_key`: the data set by whose statistics actions become the robot's numbers; needed
    where there are several. `weights`: the name of a checkpoint; needed where there are several.
    `llm_heads`, `llm_kv_heads` and `rms_norm_eps`: of the language model, where it is not Llama-2's
    7 or 13 billion. `vision_heads`: of both image towers."""

    unnorm_key: str | None = None
    weights: str | None = None
    llm_heads: int | None = None
    llm_kv_heads: int | None = None
    rms_norm_eps: float | None = None
    vision_heads: int = VISION_HEADS

    def __post_init__(self) -> None:
        for name in ("unnorm_key", "weights"):
            check_option(name, getattr(self, name), str)
        for name in ("llm_heads", "llm_kv_heads", "vision_heads"):
            check_option(name, getattr(self, name), int)
        check_option("rms_norm_eps", self.rms_norm_eps, float)


def recognises(folder: Path) -> bool:
    config = folder / CONFIG
    if not config.is_file() or not (folder / CHECKPOINTS).is_dir():
        return False
    try:
        said = read_json(config, fix="")
    except ValueError:  # no JSON: it is nothing that is known here
        return False
    # CogACT's runs have an action model besides, and are another kind.
    return isinstance(said.get("vla"), dict) and "action_model_type" not in said


def files(said: Said) -> list[Path]:
    folder = _folder(said)
    return [*folder.files(), tokenizer_file(folder.root, said.tokenizer)]


def describe(said: Said) -> Card:
    folder = RunFolder.read(
        said.checkpoint,
        _described_weights(said),
        language_model_said(said.tokenizer, _options(said)),
        _options(said).vision_heads,
    )
    options = _options(said)
    remarks = []
    if said.tokenizer is None:
        remarks.append("a run folder has no tokenizer: give Llama-2's as `tokenizer`")
    several = [path.name for path in checkpoints_of(said.checkpoint)]
    choices: tuple[Choice, ...] = ()
    if len(several) > 1:
        choices = (Choice("weights", tuple(several), None, "which step of the run it is"),)
    heads = folder.heads
    if heads is None:  # whatever divides will do to look at it
        folder = replace(folder, llama={**folder.llama, "num_attention_heads": 1})
        why = "attention heads of the language model, which no file of a run says"
        choices = (*choices, Choice("llm_heads", (), None, why))
    return card(
        KIND,
        folder.root,
        folder.sizes(),
        folder.tensors,
        folder.names,
        folder.statistics,
        key=options.unnorm_key,
        choices=choices,
        remarks=remarks,
        files=folder.files(),
        heads="?" if heads is None else str(heads),
    )


def load(said: Said, robot: RobotSpec | None) -> Backbone:
    folder = _folder(said)
    statistics = folder.statistics
    key, stats = statistics.chosen(_options(said).unnorm_key)
    tokenizer = read_tokenizer(folder.root, said.tokenizer)
    sizes = folder.sizes(words_of(tokenizer))
    found = Checkpoint(folder.tensors, folder.names, sizes, BINS, key, stats, statistics.source)
    return assemble(said, robot, found, tokenizer)


def _options(said: Said) -> Options:
    return said.as_options(Options)


def _folder(said: Said) -> RunFolder:
    options = _options(said)
    return RunFolder.read(
        said.checkpoint,
        options.weights,
        language_model_said(said.tokenizer, _options(said)),
        options.vision_heads,
    )


def _described_weights(said: Said) -> str | None:
    """The checkpoint that is looked at: the chosen one or, while nobody has chosen, the last."""
    chosen = _options(said).weights
    if chosen is not None:
        return chosen
    there = checkpoints_of(said.checkpoint)
    return there[-1].name if there else None
