"""Tokenizers for words: a byte-level BPE (the `tokenizers` library), trained on the instructions of a
data set, or RoBERTa's.

Bytes make every text encodable, also words that were never seen. How a network reads with one is
`robot.reading`'s. This file knows no network.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

PAD = "<pad>"
# Only where a network was trained with them around every text.
START = "<s>"
END = "</s>"


def train_tokenizer(texts: Iterable[str], *, vocabulary: int = 1024) -> Tokenizer:
    """A tokenizer whose id 0 pads. `vocabulary` is the most entries it may have (256 are bytes)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(str.lower, texts), trainer)
    return tokenizer


def no_words() -> Tokenizer:
    """The tokenizer of a policy that is told nothing: all it knows is padding."""
    return Tokenizer(models.WordLevel({PAD: 0}, unk_token=PAD))


def marks(tokenizer: Tokenizer) -> tuple[int, int, int] | None:
    """The ids of RoBERTa's padding, start and end; None for a tokenizer without such marks, as the
    data's own."""
    pad, start, end = map(tokenizer.token_to_id, (PAD, START, END))
    return None if pad is None or start is None or end is None else (pad, start, end)


def load_tokenizer(name: str) -> Tokenizer:
    """RoBERTa's BPE, from the Hugging Face hub or a local folder, without the marks that it puts
    around a text: a network that wants them adds them, so that what stands in a batch is words, and
    0 pads. Raises ValueError where it cannot be had, or is of another kind."""
    from huggingface_hub import hf_hub_download  # only where a name is not a folder

    local = Path(name) / "tokenizer.json"
    try:
        path = local if local.is_file() else hf_hub_download(name, local.name)
    except OSError as error:
        raise ValueError(
            f"the tokenizer {name!r} cannot be had from the Hugging Face hub here. On a machine "
            "that reaches it build the network once, and its files are cached; or name a local "
            "folder; or take the data's own: hub_tokenizer=None"
        ) from error
    tokenizer = Tokenizer.from_file(str(path))
    # Without the step that adds the marks; and texts are padded and measured here, not there.
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if marks(tokenizer) is None:
        raise ValueError(
            f"the tokenizer {name!r} is not RoBERTa's: it lacks one of the tokens {PAD}, {START}, "
            f"{END}"
        )
    return tokenizer
