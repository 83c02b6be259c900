"""Words → token ids: a byte-level BPE (the `tokenizers` library), trained on the instructions of a data set.

Bytes make every text encodable, also words that were never seen. This file knows no network.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PAD = "<pad>"


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
    tokenizer.train_from_iterator((text.lower() for text in texts), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, text: str, *, longest: int) -> list[int]:
    """Ids of a text. Raises ValueError where it has none or more than `longest` tokens."""
    ids = tokenizer.encode(text.lower()).ids
    if not ids:
        raise ValueError(f"the instruction is empty: {text!r}; say what the robot should do")
    if len(ids) > longest:
        raise ValueError(
            f"the instruction has {len(ids)} tokens and the policy takes {longest} at most: {text[:80]!r}; "
            "shorten it, or teach a policy with a larger `text_tokens`"
        )
    return ids
