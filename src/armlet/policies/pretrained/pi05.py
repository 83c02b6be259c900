"""π0.5 (arXiv 2504.16054), as LeRobot and openpi's PyTorch code save it. What is read and how
stands in `pi_layouts` and `pi_loading`, the network in `pi_network`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from armlet.policies.contract import Backbone
from armlet.policies.pretrained import pi_files, pi_loading
from armlet.policies.pretrained.card import Card, Choice
from armlet.policies.pretrained.pi_files import Checkpoint, PiOptions
from armlet.policies.pretrained.said import Said
from armlet.robot.reading.paligemma import Wording
from armlet.robot.spec import RobotSpec

if TYPE_CHECKING:  # it brings transformers
    from armlet.policies.pretrained.pi_network import Pi

DESIGN = "pi05"
CHOICES = (
    Choice(
        "padded_state",
        (False, True),
        False,
        "LeRobot 0.4 filled the state up with zeros before it wrote it into the prompt, and no "
        "file says which version trained this one",
    ),
    Choice(
        "state_in_prompt",
        (True, False),
        True,
        "openpi's training config may leave the state out (discrete_state_input, as for LIBERO), "
        "and its checkpoint does not say",
    ),
)


@dataclass(frozen=True)
class Options(PiOptions):
    """`[options]` of a `policy.toml`."""

    padded_state: bool = False
    """The prompt holds as many numbers as the network has places for: LeRobot 0.4."""
    state_in_prompt: bool = True
    """The prompt holds the state; an openpi checkpoint may have been trained without."""


def recognises(folder: Path) -> bool:
    """Whether a folder holds one."""
    return pi_files.recognises(folder, DESIGN)


def files(said: Said) -> list[Path]:
    """All that decides its answers."""
    return pi_loading.files(said, DESIGN, said.as_options(Options))


def describe(said: Said) -> Card:
    """From headers and small files alone."""
    return pi_loading.describe(said, DESIGN, said.as_options(Options), CHOICES)


def load(said: Said, robot: RobotSpec | None) -> Backbone:
    """The policy, on the CPU."""
    options = said.as_options(Options)

    def wanted(found: Checkpoint) -> tuple[Wording, int]:
        slots = found.slots[0] if options.padded_state else 0
        if options.state_in_prompt:
            return found.wording, slots
        if found.layout != "openpi" or options.padded_state:
            raise ValueError(
                f"{said.source}: [options] state_in_prompt = false is for checkpoints of openpi's, "
                "and without padded_state: LeRobot writes the state into every prompt"
            )
        return "cleaned", 0

    return pi_loading.load(said, robot, DESIGN, options, wanted)


def from_json(description: dict[str, Any], tokenizer: Tokenizer) -> "Pi":
    """The network that `to_json` described, with fresh weights."""
    from armlet.policies.pretrained import pi_network

    return pi_network.from_json(description, tokenizer)
