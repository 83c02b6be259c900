"""OpenVLA, Hugging Face layout: `checkpoint/` of a fixture, with or without a tokenizer."""

from collections.abc import Iterator
from pathlib import Path

from golden import Line

from goldens.openvla_cases import Variant, lines


def compare(folder: Path) -> Iterator[Line]:
    return lines(Variant(folder, folder / "checkpoint", "openvla_hf"))
