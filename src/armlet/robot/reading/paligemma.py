"""How π0 and π0.5 read: their prompts, as LeRobot and as openpi make them, in PaliGemma's words.

    π0    LeRobot   the instruction as it is, and a line break unless it ends with one
          openpi    stripped, `_` and line breaks as spaces; a line break read by itself
    π0.5  both      `Task: …, State: 109 186 …;\\nAction: `, the instruction cleaned as openpi's

The state's numbers are those of 256 bins of −1 … 1 (openpi's models/tokenizer.py; LeRobot 0.6.1's
policies/pi05/processor_pi05.py).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from tokenizers import Tokenizer

Wording = Literal["as_is", "new_line", "cleaned", "state"]
TooLong = Literal["refuse", "cut"]
BEGIN = "<bos>"
BINS = 256


@dataclass(frozen=True)
class Prompts:
    """What is made of an instruction. `wording`: `as_is`; `new_line`, LeRobot's π0; `cleaned`,
    openpi's π0; `state`, π0.5's, with the state in it. `longest`: tokens of a prompt, filled up to
    that with 0. `too_long`: whether one that is longer is refused or cut, as LeRobot and openpi do,
    which loses its end. `slots`: how many numbers of the state are written, filled up with 0; 0: as
    many as there are."""

    wording: Wording
    longest: int
    too_long: TooLong = "refuse"
    slots: int = 0

    def reader(self, tokenizer: Tokenizer) -> "PiWords":
        return PiWords(self, tokenizer)


@dataclass(frozen=True)
class PiWords:
    """A `Reader`, and a `StateReader` where the prompt holds the state."""

    kind: ClassVar[str] = "paligemma"

    prompts: Prompts
    tokenizer: Tokenizer

    def to_json(self) -> dict[str, Any]:
        return asdict(self.prompts)

    @classmethod
    def from_json(cls, said: dict[str, Any], tokenizer: Tokenizer) -> Self:
        return cls(Prompts(**said), tokenizer)

    @property
    def reads_state(self) -> bool:
        return self.prompts.wording == "state"

    def __call__(
        self, texts: Sequence[str], *, any_length: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """n texts → ids (n, t) int64, t the longest prompt that is taken, and which are real.
        Raises ValueError naming a text that is empty or too long."""
        return self._padded([self._ids(text, None) for text in texts], texts, any_length)

    def with_state(self, texts: Sequence[str], states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """n texts and normalised states (n, s): the same."""
        numbers = states_as_bins(filled(states, self.prompts.slots))
        rows = [self._ids(text, row) for text, row in zip(texts, numbers.tolist(), strict=True)]
        return self._padded(rows, texts, any_length=False)

    def prompt(self, text: str, numbers: Sequence[int] | None) -> str:
        """What is read for an instruction, and the state's numbers where there are any."""
        wording = self.prompts.wording
        if wording == "new_line":
            return text if text.endswith("\n") else f"{text}\n"
        if wording == "as_is":
            return text
        text = text.strip().replace("_", " ").replace("\n", " ")
        if wording == "state" and numbers is not None:
            return f"Task: {text}, State: {' '.join(map(str, numbers))};\nAction: "
        return text

    def _ids(self, text: str, numbers: Sequence[int] | None) -> list[int]:
        if not text.strip():
            raise ValueError(f"the instruction is empty: {text!r}; say what the robot should do")
        begin = self.tokenizer.token_to_id(BEGIN)
        assert begin is not None  # `open_tokenizer` has looked
        # Its own way of beginning a text is left out: not every tokenizer file has one.
        ids = self.tokenizer.encode(self.prompt(text, numbers), add_special_tokens=False).ids
        if (
            self.prompts.wording == "cleaned"
        ):  # openpi reads it by itself: pieces do not run into it
            ids = ids + self.tokenizer.encode("\n", add_special_tokens=False).ids
        return [begin, *ids]

    def _padded(
        self, rows: list[list[int]], texts: Sequence[str], any_length: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        longest = self.prompts.longest
        width = max(longest, *map(len, rows)) if any_length and rows else longest
        ids = np.zeros((len(rows), width), np.int64)
        real = np.zeros((len(rows), width), bool)
        for index, row in enumerate(rows):
            if len(row) > width:
                self._check_length(row, texts[index])
            row = row[:width]
            ids[index, : len(row)] = row
            real[index, : len(row)] = True
        return ids, real

    def _check_length(self, row: list[int], text: str) -> None:
        if self.prompts.too_long == "cut":
            return
        raise ValueError(
            f"the prompt of {text[:80]!r} has {len(row)} tokens and the policy reads "
            f"{self.prompts.longest}: its end would be lost; shorten the instruction, or give "
            '`too_long = "cut"` in [options] of policy.toml, to have it cut as it was in training'
        )


def filled(states: np.ndarray, slots: int) -> np.ndarray:
    """States (n, s) with zeros behind, up to so many numbers."""
    more = max(0, slots - states.shape[1])
    return np.pad(states, ((0, 0), (0, more)))


def states_as_bins(states: np.ndarray) -> np.ndarray:
    """Normalised states (n, s) → the number of the bin of −1 … 1 in which each lies, int64: −1
    below −1, and the last one from there on up."""
    return np.digitize(states, np.linspace(-1, 1, BINS + 1)[:-1]) - 1
