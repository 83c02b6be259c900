"""What of a folder may be published, and why the rest may not: its layout, its files, and a look at
what is in them.

A folder is published whole or not at all, and only what its layout knows: weights are safetensors
or an exported graph, never a pickle, which can run what it likes where it is loaded. Texts and
graphs are searched for paths of the machine that they were made on. Knows files; asks no server.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from armlet.data.files import read_json
from armlet.policies.checkpoint import CONFIG, load_with_fingerprint, read_provenance
from armlet.policies.pretrained import kinds
from armlet.policies.pretrained.lerobot import AFTER, BEFORE
from armlet.robot.exported import GraphFile
from armlet.robot.exported import fingerprint as exported_fingerprint

Layout = Literal["armlet", "lerobot", "exported"]
EXPORTED = "exported.json"
FIX = "a folder that armlet wrote is expected: make it anew, or copy it again"
# By layout the files that there may be, as patterns.
KNOWN: dict[Layout, tuple[str, ...]] = {
    "armlet": ("config.json", "model.safetensors", "tokenizer.json"),
    "lerobot": (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        BEFORE,
        AFTER,
        "policy_*processor_step_*.safetensors",  # LeRobot writes them where its steps have a state
        "distill_manifest.json",
        "train_config.json",
    ),
    "exported": (
        EXPORTED,
        "tokenizer.json",
        "requirements.txt",
        "*.onnx",
        "*.onnx.data",
        "*.xml",
        "*.bin",
    ),
}
PICKLES = (".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth")
# Words may be anything; a path among them is nobody's.
UNSEARCHED = ("tokenizer.json",)
GRAPHS = (".onnx", ".xml")
HOMES = "home|root|Users|mnt|media|data|work|workspace|tmp|var|opt|srv|private|scratch|content"
# Absolute paths: of several parts, under a folder where people or machines keep things; of Windows;
# or an address of a file.
_PATH = re.compile(
    rf"(?<![\w.:/-])(?:~?/(?:{HOMES})(?:/[^\s\"'<>,;:)]+)+|[A-Za-z]:[\\/][^\s\"'<>,;)]+)"
    r"|file://[^\s\"'<>,;)]+"
)
_IN_GRAPH = re.compile(rb"/(?:home|root|Users|work|workspace|mnt|tmp)/[\w.-]+/[\w./-]+")


@dataclass(frozen=True)
class Contents:
    """A folder that may be published. `files`: name → where it is, or what stands in its place;
    `kind`: the type of the network; `said`: its exported.json, where it is exported; `shortened`: a
    line for each path that was shortened."""

    layout: Layout
    fingerprint: str
    kind: str
    files: dict[str, Path | bytes]
    provenance: dict[str, Any]
    said: dict[str, Any]
    shortened: tuple[str, ...] = ()

    @property
    def library(self) -> str:
        """As the hub names what loads it."""
        return "lerobot" if self.layout == "lerobot" else "armlet"


def look(folder: Path, *, leave_out: Sequence[str] = (), shorten_paths: bool = False) -> Contents:
    """What of a folder is published. `leave_out`: names of files that are not; `shorten_paths`:
    paths of this machine in what says how a policy was made become their last part.

    Raises FileNotFoundError where it is no folder of a policy, ValueError naming each file that is
    not to be published, each path of this machine, and what `load_policy` finds wrong.
    """
    layout = _layout(folder)
    names = _names(folder, layout, leave_out)
    said = read_json(folder / EXPORTED, fix=FIX) if layout == "exported" else {}
    if layout == "exported":
        about = said.get("policy")
        if not isinstance(about, dict):
            raise ValueError(f"{folder / EXPORTED} says no `policy`; {FIX}")
        _check_graphs(folder, said)
        fingerprint = exported_fingerprint(folder)  # as a report has it, and not its origin's
        # `a policy of type 'vla'`, as an error would call it.
        kind = str(about.get("kind", "policy")).strip("'").rpartition("'")[2]
        provenance = said.get("provenance", {})
    else:
        policy, fingerprint = load_with_fingerprint(folder)  # whole, or this says what is wrong
        kind = policy.to_json()["type"]
        provenance = read_provenance(folder)
    files: dict[str, Path | bytes] = {}
    found: list[str] = []
    for name in names:
        content, places = _searched(folder / name, shorten=shorten_paths)
        files[name] = folder / name if content is None else content
        found += [f"{name}, {place}" for place in places]
    if found and not shorten_paths:
        shown = "; ".join(found[:6])
        more = f" and {len(found) - 6} more" if len(found) > 6 else ""
        raise ValueError(
            f"{folder} names places on this machine: {shown}{more}; with --shorten-paths their "
            "last part is published in their place"
        )
    return Contents(layout, fingerprint, kind, files, provenance, said, tuple(found))


def _check_graphs(folder: Path, said: dict[str, Any]) -> None:
    """Raises ValueError naming a graph's file that is missing, was cut short, or is not in the
    folder."""
    for graph in said.get("graphs", ()):
        try:
            files = GraphFile.from_json(graph).files
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder / EXPORTED} describes no graph ({type(error).__name__}: {error}); {FIX}"
            ) from error
        for name, size in files.items():
            path = folder / name
            found = path.stat().st_size if path.is_file() else 0
            if found != size:
                raise ValueError(f"{path} has {found} bytes, expected {size}; {FIX}")


def _layout(folder: Path) -> Layout:
    if (folder / EXPORTED).is_file():
        return "exported"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder")
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"{folder} holds neither {CONFIG} nor {EXPORTED}: a policy that armlet distilled or "
            "exported is published"
        )
    if kinds.is_pretrained(folder):
        raise ValueError(
            f"{folder} is a checkpoint of another project, which its makers publish; publish the "
            "student that was distilled from it"
        )
    return "lerobot" if (folder / BEFORE).is_file() else "armlet"


def _names(folder: Path, layout: Layout, leave_out: Sequence[str]) -> list[str]:
    """The files to publish, by their paths in the folder. Raises ValueError naming those that are
    none of its layout's."""
    there = []
    for path in sorted(folder.rglob("*")):
        if not path.is_dir():
            there.append(path.relative_to(folder).as_posix())
    missing = [name for name in leave_out if name not in there]
    if missing:
        raise ValueError(f"--leave-out {' '.join(missing)}: {folder} has no such file")
    chosen = [name for name in there if name not in leave_out]
    wrong = []
    for name in chosen:
        path = folder / name
        if "/" not in name and any(fnmatchcase(name, known) for known in KNOWN[layout]):
            if layout == "exported" and name.endswith(".bin") and not _of_openvino(path):
                wrong.append(f"{name} ({_size(path)}, beside no .xml)")
            continue
        why = ", a pickle can run what it likes" if path.suffix in PICKLES else ""
        wrong.append(f"{name} ({_size(path)}{why})")
    if wrong:
        raise ValueError(
            f"{folder} holds what is no part of a policy: {', '.join(wrong)}; move it away, or leave "
            f"it out: --leave-out {' '.join(each.split(' (')[0] for each in wrong)}"
        )
    return chosen


def _of_openvino(path: Path) -> bool:
    """Whether this .bin holds the weights of an OpenVINO graph, not a pickle of PyTorch's."""
    return path.with_suffix(".xml").is_file()


def _size(path: Path) -> str:
    size = path.stat().st_size if path.exists() else 0
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size} bytes"


def _searched(path: Path, *, shorten: bool) -> tuple[bytes | None, list[str]]:
    """What is published in a file's place (None: the file), and where it names this machine. Raises
    ValueError for a graph that does, or a text of no kind that is known."""
    if path.name in UNSEARCHED or path.suffix == ".safetensors":
        return None, []
    if path.suffix == ".bin" or path.name.endswith(".onnx.data"):  # numbers alone
        return None, []
    if path.suffix in GRAPHS:
        hit = _IN_GRAPH.search(path.read_bytes())
        if hit is not None:
            raise ValueError(
                f"{path} names {hit.group().decode()!r}, a place on the machine that exported it; "
                "export it anew (`armlet export`), which leaves such traces out"
            )
        return None, []
    if path.suffix == ".json":
        return shortened_json(path, shorten=shorten)
    check_text(path.read_text(), path)
    return None, []


def shortened_json(path: Path, *, shorten: bool) -> tuple[bytes | None, list[str]]:
    """The places that a JSON file names on this machine and, with `shorten`, what is published in the
    file's place (None: the file)."""
    value = read_json(path, fix=FIX)
    places = [f"{where}: {text}" for where, text in machine_paths(value)]
    if places and shorten:
        return json.dumps(_shortened(value), indent=1).encode(), places
    return None, places


def check_text(text: str, path: Path) -> None:
    """Raises ValueError where a text of people names a place on this machine."""
    for number, line in enumerate(text.splitlines(), 1):
        hit = _PATH.search(line)
        if hit is not None:
            raise ValueError(
                f"{path}, line {number}, names a place on this machine: {hit.group()}; change the line"
            )


def machine_paths(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(field, path) of every path of a machine in a JSON value: `provenance.recipe.teacher`."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from machine_paths(each, f"{where}.{name}" if where else str(name))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from machine_paths(each, f"{where}[{number}]")
    elif isinstance(value, str):
        for hit in _PATH.finditer(value):
            yield where, hit.group()


def _shortened(value: Any) -> Any:
    """The same with each such path cut to its last part."""
    if isinstance(value, dict):
        return {name: _shortened(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_shortened(each) for each in value]
    if isinstance(value, str):
        return _PATH.sub(lambda hit: re.split(r"[\\/]", hit.group().rstrip("\\/"))[-1], value)
    return value
