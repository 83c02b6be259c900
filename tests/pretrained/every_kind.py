"""A tiny checkpoint of each kind, with a `policy.toml` that says what it does not, for tests that
hold of all of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cogact_run
import openvla_oft_tiny
import openvla_tiny
from goldens.pi import Variant
from pi_copies import as_openpi
from pretrained.seeded import checkpoint

GOLDEN = Path(__file__).parent / "golden"
ROBOT = '[robot]\nmode = "absolute"\nrotation = "none"\ngrippers = []\ncontrol_hz = 10\n'


def said(file: Path, folder: Path, more: str = "", **options: Any) -> Path:
    """A `policy.toml` that names a folder; `more`: lines above `[options]`."""
    lines = [f"checkpoint = {json.dumps(str(folder))}", more, "[options]"]
    for name, value in options.items():
        lines.append(f"{name} = {json.dumps(value)}")
    file.write_text("\n".join([*lines, ROBOT]))
    return file


def _openvla(place: Path) -> Path:
    return openvla_tiny.toml(place, openvla_tiny.copied(place / "c"), unnorm_key=openvla_tiny.KEY)


def _prismatic(place: Path) -> Path:
    openvla_tiny.llama_hub(place / "hub")
    run = openvla_tiny.as_run(place / "run")
    words = 'tokenizer = "hub"'
    return openvla_tiny.toml(place, run, more=words, unnorm_key=openvla_tiny.KEY)


def _oft(place: Path) -> Path:
    folder = Path(shutil.copytree(openvla_oft_tiny.CHECKPOINT, place / "c"))
    return openvla_oft_tiny.toml(place, folder, base=str(openvla_oft_tiny.BASE))


def _oft_in_words(place: Path) -> Path:
    told = {"unnorm_key": "bridge_orig", "platform": "bridge"}
    folder = Path(shutil.copytree(openvla_oft_tiny.BASE, place / "c"))
    return openvla_oft_tiny.toml(place, folder, more='kind = "openvla_oft"', **told)


def _cogact(options: str) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        folder = cogact_run.write_run(place / "run")
        return cogact_run.say(folder, f'unnorm_key = "bridge_orig"\n{options}')

    return make


def _pi(kind: str, *, openpi: bool = False) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        folder = Path(shutil.copytree(GOLDEN / kind / "A", place / "A"))
        root = as_openpi(Variant.read(kind, folder)) if openpi else folder / "pretrained_model"
        words = f'tokenizer = "{folder / "tokenizer"}"'
        return said(place / "policy.toml", root, words, vision_heads=2)

    return make


def _smolvla(place: Path) -> Path:
    folder = Path(shutil.copytree(GOLDEN / "smolvla" / "pretrained_model", place / "smolvla"))
    return said(place / "policy.toml", folder, vlm=str(GOLDEN / "smolvla" / "vlm"))


def _lerobot(kind: str, variant: str) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        folder = checkpoint(kind, variant, place)
        return said(place / "policy.toml", folder / "pretrained_model")

    return make


# Name → what writes one into an empty folder, and returns its `policy.toml`.
MAKE: dict[str, Callable[[Path], Path]] = {
    "openvla_hf": _openvla,
    "prismatic_openvla": _prismatic,
    "openvla_oft": _oft,
    "openvla_oft in words": _oft_in_words,
    "cogact": _cogact(""),
    "cogact without guidance": _cogact("guidance = 1.0\nsteps = 5"),
    "pi0": _pi("pi0"),
    "pi0 of openpi": _pi("pi0", openpi=True),
    "pi05": _pi("pi05"),
    "smolvla": _smolvla,
    "act": _lerobot("act", "plain"),
    "act, rare options": _lerobot("act", "rare"),
    "diffusion": _lerobot("diffusion", "plain"),
    "diffusion, rare options": _lerobot("diffusion", "rare"),
}
