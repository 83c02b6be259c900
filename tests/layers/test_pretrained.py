"""What is fetched by name, and what is said where it cannot be."""

import pytest
import torch

from armlet.data.text import train_tokenizer
from armlet.layers import pretrained
from armlet.layers.pretrained import fetch_tokenizer, stretch


def test_text_positions_are_stretched_as_longclip_does() -> None:
    line = torch.arange(77.0)[:, None].expand(-1, 3)
    long = stretch(line, 248)
    assert long.shape == (248, 3) and torch.equal(long[:20], line[:20])
    assert (long[1:] - long[:-1] >= 0).all() and long[-1, 0] == 76
    torch.testing.assert_close(
        long[100:110].diff(dim=0), torch.full((9, 3), 0.25), atol=1e-4, rtol=0
    )


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
