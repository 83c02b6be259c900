"""Llama's tokenizer beside a checkpoint of OpenVLA, OpenVLA-OFT or CogACT, or on the hub (how they
read with it: robot/reading/llama.py)."""

from pathlib import Path

from tokenizers import Tokenizer

from armlet.data.files import check_is_here
from armlet.layers.pretrained import fetch_tokenizer_file
from armlet.policies.pretrained.files import COPY
from armlet.robot.reading.llama import BOS, EMPTY, EOS, token

FILE = "tokenizer.json"


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
