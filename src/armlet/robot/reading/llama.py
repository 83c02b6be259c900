"""How OpenVLA, OpenVLA-OFT and CogACT read an instruction: Llama's tokenizer, a question around the
instruction in lower case, and what the prompt must end with.

The prompt was taught with a lone `▁` behind `Out:`, a token that the tokenizer itself does not give
there; its number is asked of the tokenizer (29871 in Llama-2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from tokenizers import Tokenizer

PROMPT = "In: What action should the robot take to {}?\nOut:"
LONGEST = 512  # tokens of a prompt; Llama-2 was taught with 2048 of everything
BOS = "<s>"
EOS = "</s>"
EMPTY = "▁"


@dataclass(frozen=True)
class LlamaPrompt:
    """Instructions → prompts as ids, BOS first. `ending`: tokens that follow; with `always` in any
    case, and else where the prompt does not end with the first of them by itself."""

    kind: ClassVar[str] = "llama"

    tokenizer: Tokenizer
    longest: int = LONGEST
    ending: tuple[str, ...] = (EMPTY,)
    always: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"longest": self.longest, "ending": list(self.ending), "always": self.always}

    @classmethod
    def from_json(cls, said: dict[str, Any], tokenizer: Tokenizer) -> Self:
        return cls(tokenizer, **{**said, "ending": tuple(said["ending"])})

    def __call__(
        self, texts: Sequence[str], *, any_length: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """n instructions → ids (n, t) int64, padded behind, and which are real (n, t) bool. Raises
        ValueError naming one that is empty or too long."""
        rows = [self.encode(text) for text in texts]
        lengths = np.array([len(row) for row in rows], np.int64)
        for text, length in zip(texts, lengths, strict=True):
            if length > self.longest and not any_length:
                raise ValueError(
                    f"the instruction and its prompt have {length} tokens and the policy takes "
                    f"{self.longest} at most: {text[:80]!r}; shorten it"
                )
        longest = int(lengths.max(initial=1))
        ids = np.zeros((len(rows), longest), np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
        return ids, np.arange(longest) < lengths[:, None]

    def encode(self, text: str) -> list[int]:
        """The ids of one instruction's prompt."""
        if not text.strip():
            raise ValueError(f"the instruction is empty: {text!r}; say what the robot should do")
        ids = self.tokenizer.encode(PROMPT.format(text.lower())).ids
        first = token(self.tokenizer, BOS)
        if ids[:1] != [first]:  # some files leave it to whoever reads them
            ids = [first, *ids]
        ending = [token(self.tokenizer, name) for name in self.ending]
        if self.always or ids[-1] != ending[0]:
            ids = [*ids, *ending]
        return ids


def token(tokenizer: Tokenizer, name: str) -> int:
    """The number of a token. Raises ValueError where there is none of this name."""
    found = tokenizer.token_to_id(name)
    if found is None:
        raise ValueError(
            f"the tokenizer has no {name!r}: it is not Llama's; give the folder of another, "
            "`tokenizer` in policy.toml"
        )
    return int(found)
