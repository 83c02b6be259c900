"""Words that cannot help, or not by what they mean: what an annotator must beat before its words are
said to be worth anything. (Words of other frames are `data.transforms.ShuffledWords`.)"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from armlet.annotators import DESCRIPTION_BYTES, PHASES, Annotator, Labels, encode_text
from armlet.annotators.phase_rules import PhaseRules
from armlet.data.episodes import EpisodeFrames


@dataclass(frozen=True)
class ConstantWords(Annotator):
    """The same words for every frame: a description that says nothing. Phases are `idle`."""

    text: str = "moving"
    """The words."""

    def __post_init__(self) -> None:
        encode_text(self.text, DESCRIPTION_BYTES, "description")

    def fingerprint(self) -> dict[str, Any]:
        return {"text": self.text}

    def annotate(self, episode: EpisodeFrames, fps: float) -> Labels:
        count = len(episode.state)
        return Labels.named(["idle"] * count, descriptions=[self.text] * count)


@dataclass(frozen=True)
class PhaseCodes(Annotator):
    """The phases of `rules` as one letter each, `a` to `i`: all that a phase can tell, and no word of
    it. No directions, no things."""

    rules: PhaseRules = field(default_factory=PhaseRules)
    """Who says the phases."""

    def fingerprint(self) -> dict[str, Any]:
        return {"rules": self.rules.fingerprint()}

    def annotate(self, episode: EpisodeFrames, fps: float) -> Labels:
        phase = self.rules.annotate(episode, fps).phase
        words = [PHASES[number] for number in phase]
        codes = [chr(ord("a") + number) for number in np.asarray(phase).tolist()]
        return Labels.named(words, descriptions=codes)
