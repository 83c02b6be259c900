"""Words ↔ numbers: 0 pads and is no word, case says nothing, and what is too long is refused, not
cut."""

import pytest

from armlet.data.text import train_tokenizer
from armlet.robot.reading.own import encode

TEXTS = ("touch the red cube", "open the green drawer")


def test_every_text_comes_back_and_no_word_is_padding() -> None:
    tokenizer = train_tokenizer(TEXTS)
    for text in (*TEXTS, "a word never seen: żółw"):
        ids = encode(tokenizer, text, longest=64)
        assert 0 not in ids and tokenizer.decode(ids).strip() == text
    assert tokenizer.token_to_id("<pad>") == 0


def test_case_says_nothing() -> None:
    tokenizer = train_tokenizer(TEXTS)
    assert encode(tokenizer, "Touch the RED cube", longest=32) == encode(
        tokenizer, TEXTS[0], longest=32
    )


def test_what_is_too_long_or_empty_is_refused() -> None:
    tokenizer = train_tokenizer(TEXTS)
    length = len(encode(tokenizer, TEXTS[0], longest=64))
    assert len(encode(tokenizer, TEXTS[0], longest=length)) == length
    with pytest.raises(ValueError, match=f"has {length} tokens and the policy takes {length - 1}"):
        encode(tokenizer, TEXTS[0], longest=length - 1)
    with pytest.raises(ValueError, match="empty"):
        encode(tokenizer, "", longest=4)
