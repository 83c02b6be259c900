"""How OpenVLA, OpenVLA-OFT and CogACT read an instruction: Llama's tokenizer, a question around the
instruction in lower case, and what the prompt must end with. Knows no network.

The prompt was taught with a lone `▁` behind `Out:`, a token that the tokenizer itself does not give
there; its number is asked of the tokenizer (29871 in Llama-2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from armlet.data.files import check_is_here
from armlet.layers.pretrained import fetch_tokenizer_file
from armlet.policies.pretrained.files import COPY

PROMPT = "In: What action should the robot take to {}?\nOut:"
LONGEST = 512  # tokens of a prompt; Llama-2 was taught with 2048 of everything
BOS = "<s>"
EOS = "</s>"
EMPTY = "▁"
FILE = "tokenizer.json"


@dataclass(frozen=True)
class Prompt:
    """Instructions → prompts as ids, BOS first. `ending`: tokens that follow; with `always` in any
    case, and else where the prompt does not end with the first of them by itself."""

    tokenizer: Tokenizer
    longest: int = LONGEST
    ending: tuple[str, ...] = (EMPTY,)
    always: bool = False

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


def tokenizer_file(folder: Path, named: str | None) -> Path:
    """Where the tokenizer's file is: that of `named`, a folder or a name on the hub, or the
    checkpoint folder's own. Raises FileNotFoundError saying what to do where there is none, and
    OSError where the hub does not give it."""
    if named is not None and not Path(named).is_dir():
        return fetch_tokenizer_file(named)
    place = folder if named is None else Path(named)
    path = place / FILE
    if path.is_file():
        return path
    why = ""
    if (place / "tokenizer.model").is_file():
        why = " (tokenizer.model alone is not read: transformers saves the other from it)"
    raise FileNotFoundError(
        f"{place} has no {FILE}{why}; give the folder of Llama-2's, or its name on the hub, as "
        '`tokenizer` in policy.toml: tokenizer = "meta-llama/Llama-2-7b-hf"'
    )


def read_tokenizer(folder: Path, named: str | None, vocabulary: int | None = None) -> Tokenizer:
    """Llama's tokenizer, as `tokenizer_file` finds it. `vocabulary`: how many words the network was
    taught with.

    Raises ValueError naming the file where it is no tokenizer, or that of another network.
    """
    path = tokenizer_file(folder, named)
    check_is_here(path, fix=COPY)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        raise ValueError(f"{path} is not a tokenizer ({error}); {COPY}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for name in (BOS, EOS, EMPTY):
        token(tokenizer, name)
    found = words_of(tokenizer)
    if vocabulary is not None and found != vocabulary:
        raise ValueError(
            f"{path} has {found} words, and the network was taught with {vocabulary}: it is "
            "another model's; give its own as `tokenizer` in policy.toml"
        )
    return tokenizer


def words_of(tokenizer: Tokenizer) -> int:
    """How many words a tokenizer has by itself, without those that were added later (`<PAD>`)."""
    size: int = tokenizer.get_vocab_size(with_added_tokens=False)
    return size
