"""How SmolVLA reads: the instruction as it is, with a line break behind it; whatever is longer than
the policy takes is cut there, as in LeRobot."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from tokenizers import Tokenizer


@dataclass(frozen=True)
class SmolPrompt:
    """`longest`: tokens, where a text is cut; `pad`: the id of padding; `padded`: all texts are
    filled up to `longest`; `new_line`: a line break behind a text that has none."""

    kind: ClassVar[str] = "smolvla"

    tokenizer: Tokenizer
    longest: int
    pad: int
    padded: bool
    new_line: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "longest": self.longest,
            "pad": self.pad,
            "padded": self.padded,
            "new_line": self.new_line,
        }

    @classmethod
    def from_json(cls, said: dict[str, Any], tokenizer: Tokenizer) -> Self:
        return cls(tokenizer, **said)

    def __call__(
        self, texts: Sequence[str], *, any_length: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """n texts → ids (n, t) int64 and which are real (n, t) bool; no text is too long. Raises
        ValueError for one without a token."""
        rows = []
        for text in texts:
            said = f"{text}\n" if self.new_line and not text.endswith("\n") else text
            row = self.tokenizer.encode(said).ids[: self.longest]
            if not row:
                raise ValueError(
                    f"the instruction is empty: {text!r}; say what the robot should do"
                )
            rows.append(row)
        wide = self.longest if self.padded else max(map(len, rows), default=1)
        ids = np.full((len(rows), wide), self.pad, np.int64)
        real = np.zeros((len(rows), wide), bool)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            real[index, : len(row)] = True
        return ids, real
