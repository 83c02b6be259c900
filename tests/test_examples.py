"""The examples run, in their order, each on what the one before left."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("0*.py"))


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, out: Path, monkeypatch, capsys) -> None:
    """As `python PATH OUT` runs it, in this process: torch is imported already."""
    assert 20 <= len(path.read_text().splitlines()) <= 50
    monkeypatch.setattr(sys, "argv", [str(path), str(out)])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()
