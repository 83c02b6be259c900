"""How policies read words: a file a way, each of which can be written into an exported folder and
read there, with a tokenizer beside it. Knows texts, numbers and tokenizers; knows no network and no
torch.

A way is a frozen dataclass: `kind`, its name in a file; `to_json`, all but the tokenizer;
`from_json(said, tokenizer)`; and a call, texts → ids and which are real. One whose prompt holds the
state has `with_state`, too.
"""

from typing import Any

from tokenizers import Tokenizer

from armlet.robot.reading.llama import LlamaPrompt
from armlet.robot.reading.own import NoWords, Words
from armlet.robot.reading.paligemma import PiWords
from armlet.robot.reading.smolvla import SmolPrompt

KINDS: dict[str, Any] = {
    each.kind: each for each in (Words, NoWords, LlamaPrompt, PiWords, SmolPrompt)
}


def to_json(words: Any) -> dict[str, Any]:
    """A way of reading as JSON, without its tokenizer. Raises TypeError for one that is not of this
    room: what reads it elsewhere would not know how."""
    if KINDS.get(getattr(words, "kind", "")) is not type(words):
        raise TypeError(
            f"a {type(words).__name__} reads this policy's words, and cannot be written into an "
            f"exported folder: known are {', '.join(KINDS)} (armlet/robot/reading)"
        )
    return {"kind": words.kind, **words.to_json()}


def from_json(said: dict[str, Any], tokenizer: Tokenizer | None) -> Any:
    """The inverse of `to_json`; `tokenizer`: None where there is none. Raises ValueError for a way
    that is not known, or without its tokenizer."""
    kind = said.get("kind")
    if kind not in KINDS:
        raise ValueError(f"words are read as {kind!r}, expected {', '.join(KINDS)}")
    if tokenizer is None and KINDS[kind] is not NoWords:
        raise ValueError(f"words are read as {kind!r}, and there is no tokenizer.json")
    options = {name: value for name, value in said.items() if name != "kind"}
    return KINDS[kind].from_json(options, tokenizer)


def with_state(words: Any) -> Any:
    """What reads an instruction together with the state. Raises ValueError for a way that reads
    none."""
    if not getattr(words, "reads_state", False):
        raise ValueError(f"words that are read as {words.kind!r} have no place for the state")
    return words.with_state
