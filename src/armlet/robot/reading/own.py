"""How our own networks read: lower case, no prompt, and 0 pads. Their tokenizers are trained on the
instructions of a data set (data/text.py)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from tokenizers import Tokenizer


def encode(tokenizer: Tokenizer, text: str, *, longest: int) -> list[int]:
    """Ids of a text. Raises ValueError where it has none or more than `longest` tokens."""
    ids = tokenizer.encode(text.lower()).ids
    if not ids:
        raise ValueError(f"the instruction is empty: {text!r}; say what the robot should do")
    if len(ids) > longest:
        raise ValueError(
            f"the instruction has {len(ids)} tokens and the policy takes {longest} at most: "
            f"{text[:80]!r}; shorten it, or teach a policy with a larger `text_tokens`"
        )
    return ids


@dataclass(frozen=True)
class Words:
    """How our own networks read: lower case, nothing added, 0 pads. At most `longest` tokens."""

    kind: ClassVar[str] = "own"

    tokenizer: Tokenizer
    longest: int

    def to_json(self) -> dict[str, Any]:
        return {"longest": self.longest}

    @classmethod
    def from_json(cls, said: dict[str, Any], tokenizer: Tokenizer) -> Self:
        return cls(tokenizer, **said)

    def __call__(
        self, texts: Sequence[str], *, any_length: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """n texts → their ids (n, t) int64, padded to the longest of them, and which are real
        (n, t) bool. `any_length`: also those that are longer than what a robot may be told.

        Raises ValueError naming the text that is empty or too long.
        """
        longest = 2**31 if any_length else self.longest
        rows = [encode(self.tokenizer, text, longest=longest) for text in texts]
        ids = np.zeros((len(rows), max(map(len, rows), default=1)), np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
        return ids, ids != 0  # 0 pads, so no word has it


@dataclass(frozen=True)
class NoWords:
    """How a policy reads that is told nothing: every text is no tokens."""

    kind: ClassVar[str] = "none"

    def to_json(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_json(cls, said: dict[str, Any], tokenizer: Tokenizer | None) -> Self:
        return cls(**said)

    def __call__(
        self, texts: Sequence[str], *, any_length: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """n texts → ids (n, 0) int64 and which are real (n, 0) bool."""
        return np.zeros((len(texts), 0), np.int64), np.zeros((len(texts), 0), bool)
