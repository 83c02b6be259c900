"""What is fetched by name, and what is said where it cannot be."""

import pytest
import torch

from armlet.data.text import train_tokenizer
from armlet.layers import pretrained
from armlet.layers.pretrained import fetch_tokenizer, stretch


def test_text_positions_are_stretched_as_longclip_does() -> None:
    """Where its code puts each of 248: every old one at 20 + 4 i, the three behind it at quarters of
    the way, and the last three as far beyond the last as those before it are apart."""
    old = torch.randn(77, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    long = stretch(old, 248)
    assert long.shape == (248, 3) and torch.equal(long[:20], old[:20])
    for place in range(20, 77):
        here = old[place]
        ahead = old[place + 1] - here if place < 76 else here - old[place - 1]
        for quarter in range(4):
            expected = here + quarter / 4 * ahead
            found = long[20 + 4 * (place - 20) + quarter]
            torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_positions_on_a_line_stay_on_it_whatever_the_length() -> None:
    line = torch.arange(30.0)[:, None]
    for length in (31, 40, 47):
        long = stretch(line, length)[:, 0]
        share = 10 / (length - 20)
        expected = torch.cat([torch.arange(20.0), 20 + share * torch.arange(length - 20.0)])
        torch.testing.assert_close(long, expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="21 text positions cannot be stretched"):
        stretch(line[:21], 40)


def test_a_tokenizer_comes_from_a_folder_or_it_is_said_what_is_missing(
    tmp_path, monkeypatch
) -> None:
    tokenizer = train_tokenizer(["touch the red cube"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert fetch_tokenizer(str(tmp_path)).get_vocab() == tokenizer.get_vocab()

    def unreachable(name: str, file: str) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(pretrained, "hf_hub_download", unreachable)
    with pytest.raises(
        OSError,
        match=r"the words of 'someone/clip' are not in the cache .*no route to host.* save the model",
    ):
        fetch_tokenizer("someone/clip")
