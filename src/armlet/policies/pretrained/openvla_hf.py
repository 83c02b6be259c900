"""OpenVLA as Hugging Face folders have it: `config.json` (`model_type` openvla) with `norm_stats`,
sharded safetensors, `preprocessor_config.json`, the tokenizer."""

from dataclasses import dataclass
from pathlib import Path

from armlet.data.files import read_json
from armlet.policies.contract import Backbone
from armlet.policies.pretrained.card import Card
from armlet.policies.pretrained.llama_tokenizer import read_tokenizer, tokenizer_file
from armlet.policies.pretrained.openvla_body import Checkpoint, assemble, card
from armlet.policies.pretrained.openvla_files import VISION_HEADS
from armlet.policies.pretrained.openvla_folders import CONFIG, HuggingFaceFolder
from armlet.policies.pretrained.said import Said
from armlet.robot.spec import RobotSpec

KIND = "openvla_hf"


@dataclass(frozen=True)
class Options:
    """`unnorm_key`: the data set by whose statistics actions become the robot's numbers; needed
    where there are several. `vision_heads`: of both image towers, which no file says."""

    unnorm_key: str | None = None
    vision_heads: int = VISION_HEADS

    def __post_init__(self) -> None:
        check_option("unnorm_key", self.unnorm_key, str)
        check_option("vision_heads", self.vision_heads, int)


def check_option(name: str, value: object, kind: type) -> None:
    """Raises ValueError where an option that was given is of another type, or below 1."""
    if value is None:
        return
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, expected {kind.__name__}")
    if isinstance(value, (int, float)) and value <= 0:
        raise ValueError(f"{name} is {value!r}, expected more than 0")


def recognises(folder: Path) -> bool:
    config = folder / CONFIG
    if not config.is_file():
        return False
    try:
        said = read_json(config, fix="")
    except ValueError:  # no JSON: it is nothing that is known here
        return False
    return said.get("model_type") == "openvla"


def files(said: Said) -> list[Path]:
    folder = _folder(said)
    return [*folder.files(), tokenizer_file(folder.root, said.tokenizer)]


def describe(said: Said) -> Card:
    options = said.as_options(Options)
    folder = _folder(said)
    remarks = folder.remarks
    if said.tokenizer is None and not (folder.root / "tokenizer.json").is_file():
        remarks = [*remarks, "it has no tokenizer: give Llama-2's as `tokenizer` in policy.toml"]
    return card(
        KIND,
        folder.root,
        folder.sizes,
        folder.tensors,
        folder.names,
        folder.statistics,
        key=options.unnorm_key,
        choices=(),
        remarks=remarks,
        files=folder.files(),
    )


def load(said: Said, robot: RobotSpec | None) -> Backbone:
    folder = _folder(said)
    statistics = folder.statistics
    key, stats = statistics.chosen(said.as_options(Options).unnorm_key)
    sizes = folder.sizes  # first: whether config and tensors fit one another
    tokenizer = read_tokenizer(folder.root, said.tokenizer, sizes.llama.vocabulary)
    found = Checkpoint(
        folder.tensors, folder.names, sizes, folder.bins, key, stats, statistics.source
    )
    return assemble(said, robot, found, tokenizer)


def _folder(said: Said) -> HuggingFaceFolder:
    return HuggingFaceFolder.read(said.checkpoint, said.as_options(Options).vision_heads)
