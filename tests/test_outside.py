"""Modules that somebody names, and that a file names: code that came with a policy's weights is not
run because the policy says so."""

import sys
from pathlib import Path

import pytest

from armlet import outside
from armlet.policies.building import rebuild

RUN = "from pathlib import Path\nPath({mark!r}).write_text('run')\n"


@pytest.mark.parametrize(
    ("lies", "said", "policy"),
    [
        ("stowaway_a.py", "stowaway_a", "."),  # armlet is called in the policy's folder
        ("stowaway_b/inside.py", "stowaway_b.inside", "stowaway_b"),  # or in the one above it
        ("stowaway_c/__init__.py", "stowaway_c", "stowaway_c"),
        ("stowaway_d/of/inside.py", "stowaway_d.of.inside", "stowaway_d/of"),
        ("stowaway_e/of/inside.py", "stowaway_e.of.inside", "."),
    ],
)
def test_code_beside_weights_is_not_run(
    lies: str, said: str, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    here = tmp_path / "here"
    module = here / lies
    module.parent.mkdir(parents=True)
    module.write_text(RUN.format(mark=str(mark)))
    weights = here / policy / "model.safetensors"
    (here / policy / "config.json").write_text("{}")
    weights.write_bytes(b"")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ValueError, match=r"beside the weights of a policy; code that comes"):
        rebuild({"type": f"{said}:Policy"}, None)  # type: ignore[arg-type]
    assert not mark.exists()
    # What is typed is meant, and so is what lies elsewhere.
    weights.unlink()
    with pytest.raises(ValueError, match="expected a Backbone"):
        rebuild({"type": f"{said}:Path"}, None)  # type: ignore[arg-type]
    assert mark.exists()
    weights.write_bytes(b"")
    assert outside.module(said, whose="a recipe").__name__ == said


def test_what_is_installed_is_no_stowaway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert outside.module("armlet.seeds", whose="a policy", named_by_file=True)
    for nothing in ("no_such_module", "no_such.module", ""):
        with pytest.raises(ValueError, match=r"no module"):
            outside.module(nothing, whose="a policy", named_by_file=True)
