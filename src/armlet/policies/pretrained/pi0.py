"""π0 (arXiv 2410.24164), as LeRobot and openpi's PyTorch code save it. What is read and how stands
in `pi_layouts` and `pi_loading`, the network in `pi_network`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from armlet.policies.contract import Backbone
from armlet.policies.pretrained import pi_files, pi_loading
from armlet.policies.pretrained.card import Card
from armlet.policies.pretrained.pi_files import Checkpoint, PiOptions
from armlet.policies.pretrained.said import Said
from armlet.robot.reading.paligemma import Wording
from armlet.robot.spec import RobotSpec

if TYPE_CHECKING:  # it brings transformers
    from armlet.policies.pretrained.pi_network import Pi

DESIGN = "pi0"


@dataclass(frozen=True)
class Options(PiOptions):
    """`[options]` of a `policy.toml`."""


def recognises(folder: Path) -> bool:
    """Whether a folder holds one."""
    return pi_files.recognises(folder, DESIGN)


def files(said: Said) -> list[Path]:
    """All that decides its answers."""
    return pi_loading.files(said, DESIGN, said.as_options(Options))


def describe(said: Said) -> Card:
    """From headers and small files alone."""
    return pi_loading.describe(said, DESIGN, said.as_options(Options), ())


def load(said: Said, robot: RobotSpec | None) -> Backbone:
    """The policy, on the CPU."""
    return pi_loading.load(said, robot, DESIGN, said.as_options(Options), _wanted)


def _wanted(found: Checkpoint) -> tuple[Wording, int]:
    return found.wording, 0


def from_json(description: dict[str, Any], tokenizer: Tokenizer) -> "Pi":
    """The network that `to_json` described, with fresh weights."""
    from armlet.policies.pretrained import pi_network

    return pi_network.from_json(description, tokenizer)
