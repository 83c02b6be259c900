"""Which kind of checkpoint a folder holds, and what reads it.

A kind is a module of this folder, with

    recognises(folder) -> bool      by names of files and a config's words; opens no weights
    files(said) -> list[Path]       all that decides its answers, for the fingerprint
    describe(said) -> Card          from headers and small files, in a second for 15 GB
    load(said, robot) -> Backbone   on the CPU, in eval mode; `robot` fills in what is said nowhere

and the dataclass `Options` of what `[options]` in a `policy.toml` may say for it.
"""

import functools
import hashlib
import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

from armlet.data.files import read_json
from armlet.data.hub import local_folder
from armlet.policies.contract import Backbone
from armlet.policies.pretrained.card import Card
from armlet.policies.pretrained.files import COPY
from armlet.policies.pretrained.said import FILE, Said, read_said
from armlet.robot.client.address import address_of, is_address
from armlet.robot.spec import RobotSpec

# In the order in which they are asked: a folder of OpenVLA-OFT is one of OpenVLA with side files.
KINDS: tuple[str, ...] = (
    "cogact",
    "openvla_oft",
    "prismatic_openvla",
    "openvla_hf",
    "pi0",
    "pi05",
    "smolvla",
    "act",
    "diffusion",
)
CONFIG = "config.json"
BLOCK = 2**20  # bytes read at a time


class Kind(Protocol):
    """See the module's docstring."""

    Options: type[Any]

    def recognises(self, folder: Path) -> bool: ...

    def files(self, said: Said) -> list[Path]: ...

    def describe(self, said: Said) -> Card: ...

    def load(self, said: Said, robot: RobotSpec | None) -> Backbone: ...


def is_pretrained(place: Path) -> bool:
    """Whether this is a checkpoint of another project, or a `policy.toml` that names one: not a
    policy that armlet saved, whose config says `policy`."""
    if place.suffix == ".toml" and place.is_file():
        return True
    if not place.is_dir():
        return False
    if (place / FILE).is_file():
        return True
    config = place / CONFIG
    if config.is_file():
        try:
            if "policy" in read_json(config, fix=""):
                return False
        except ValueError:  # whoever reads it as a policy of armlet says what is wrong
            return False
    return _recognised(place) is not None


def find(place: Path) -> tuple[Said, Kind]:
    """What is said of a checkpoint, its files at hand, and what reads it. Raises ValueError where
    it is of no kind that is known here, or of another than is said."""
    said = read_said(place)
    if is_address(said.checkpoint):
        raise ValueError(
            f"{said.source}: {address_of(said.checkpoint)} is a policy behind a socket, of which "
            "nobody here has weights or layers; it can teach by its actions, and be evaluated"
        )
    said = _here(said)
    name = said.kind or _recognised(said.checkpoint)
    if name is None or name not in KINDS:
        found = f"kind {name!r}" if name else f"{said.checkpoint} {_unlike_all(said.checkpoint)}"
        raise ValueError(
            f"{said.source}: {found}; known are {', '.join(KINDS)}. A policy of another kind can "
            "teach through a socket (--teacher ws://host:port)"
        )
    kind = _kind(name)
    # A kind that other kinds' folders may be of says so where it is named (`accepts`).
    accepts = getattr(kind, "accepts", kind.recognises) if said.kind else kind.recognises
    if not accepts(said.checkpoint):
        there = _recognised(said.checkpoint)
        raise ValueError(
            f"{said.checkpoint} is said to be of kind {name}, and looks like "
            f"{there or 'none that is known here'}; correct `kind` in {said.source}, or copy the "
            "checkpoint's files again"
        )
    return replace(said, kind=name), kind


def load(place: Path, known: Callable[[], RobotSpec] | None = None) -> Backbone:
    """A checkpoint as a policy, in eval mode. `known` gives the robot from which is taken what the
    checkpoint does not say; it is asked only here."""
    said, kind = find(place)
    return kind.load(said, known() if known else None).eval()


def fingerprint(place: Path) -> str:
    """A hash of all files that decide a checkpoint's answers, and of what was said of it."""
    said, kind = find(place)
    digest = hashlib.sha256()
    told = {
        "kind": said.kind,
        "precision": said.precision,
        "cameras": said.cameras,
        "options": said.options,
        "execute": said.execute,
    }
    digest.update(json.dumps(told, sort_keys=True).encode())
    for path in kind.files(said):
        found = path.stat()
        digest.update(path.name.encode())
        digest.update(_hashed(path, found.st_size, found.st_mtime_ns).encode())
    return digest.hexdigest()[:16]


def _here(said: Said) -> Said:
    """The same with its files at hand, where it names something on the hub."""
    return replace(said, checkpoint=local_folder(said.checkpoint, kind="model"))


def _recognised(folder: Path) -> str | None:
    for name in KINDS:
        if _kind(name).recognises(folder):
            return name
    return None


def _unlike_all(folder: Path) -> str:
    """Why a folder is of no kind that is known here. Raises FileNotFoundError or ValueError where
    there is no folder, or its config is no JSON."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder; correct `checkpoint`")
    if not (folder / CONFIG).exists():
        there = ", ".join(sorted(each.name for each in folder.iterdir())[:6]) or "nothing"
        return f"has no {CONFIG} (there is {there}), and every checkpoint that is read here does"
    config = read_json(folder / CONFIG, fix=COPY)
    says = []
    for field in ("type", "model_type", "architectures", "vla"):
        if field in config:
            says.append(f"{field} {config[field]!r:.40}")
    return f"is a checkpoint of no known kind: its {CONFIG} says {', '.join(says) or 'none'}"


def _kind(name: str) -> Kind:
    # Modules are loaded when they are asked for: some bring transformers.
    return cast(Kind, importlib.import_module(f"armlet.policies.pretrained.{name}"))


@functools.lru_cache(maxsize=256)
def _hashed(path: Path, size: int, changed: int) -> str:
    """The hash of a file, read once as long as it does not change."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
