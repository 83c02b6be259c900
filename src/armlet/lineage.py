"""What a result was made from, its *question*: kept beside it, and compared before the result is
used again.

A question is a JSON value: fingerprints of data and teacher, the settings of a stage, its seed, a
digest of the weights that it starts from. A result that answers another question is never
continued, never used and never overwritten: half a result is moved beside, under a name that says
so; a finished policy is refused. Knows folders and digests; knows no recipe.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from armlet.data.files import read_json, write_atomically
from armlet.policies.checkpoint import CONFIG, policy_fingerprint, read_provenance, settle

Question = dict[str, Any]
SHOWN = 6  # differences that an error names; the rest are counted
HALF = (".part", ".next")  # endings of what a save leaves that was killed
PROVENANCE = "question"  # under this name a policy's question stands in its provenance
SHORTENED = (
    "shortened"  # and under this, what was changed of it since, untrained (armlet/shorten.py)
)
PLAIN = {  # entries of questions whose names say too little to a reader
    "start": "the weights it starts from",
    "frames": "the frames",
    "rows": "the rows it trains on",
    "data": "the data",
    "teacher": "the teacher",
}


def shortenings(made: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    """What was changed of the policy at `place` since it was trained, by its provenance, command by
    command. Raises ValueError where it says something else there."""
    found = made.get(SHORTENED, [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise ValueError(
            f"{place}: provenance.{SHORTENED} of {CONFIG} is {json.dumps(found)}, expected a list of "
            "what `armlet shorten` changed; copy the policy again, or make it anew"
        )
    return found


def shortened_to(made: Mapping[str, Any], place: str) -> dict[str, Any]:
    """What a policy came to be by these, in however many commands: `steps`, `execute`, `weights`, those
    that were changed. Rounded once, weights stay rounded."""
    found: dict[str, Any] = {}
    for each in shortenings(made, place):
        found |= {key: each[key] for key in ("steps", "execute") if key in each}
        if each.get("weights") == "fp16":
            found["weights"] = "fp16"
    return found


def digest_weights(tensors: Mapping[str, Tensor]) -> str:
    """A hash of named tensors, to the bit: names, types, shapes and values."""
    made = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        # The header tells apart tensors whose bytes are the same: (2, 3) from (3, 2), ints from
        # floats.
        made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        # As bytes: numpy has no bfloat16.
        made.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return made.hexdigest()[:16]  # 64 bits: enough to tell results apart, which nobody forges


def digest_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """The same of arrays of numbers."""
    made = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        made.update(f"{name} {array.dtype} {array.shape};".encode())
        made.update(array.tobytes())
    return made.hexdigest()[:16]


def digest_text(texts: Iterable[str]) -> str:
    """The same of texts, in their order."""
    # As JSON, which keeps ["ab", "c"] and ["a", "bc"] apart.
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]


def as_json(question: Question) -> Question:
    """The question as it is when it has been written and read again: lists for tuples."""
    read: Question = json.loads(json.dumps(question))
    return read


def short(question: Question) -> str:
    """Eight digits for a question, the same for the same question."""
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:8]


def differences(before: Question, now: Question) -> list[str]:
    """Where two questions differ, an entry a line: `learning_rate: 1e+12 → 0.001`. Empty where they
    are the same."""
    old = _flat(as_json(before))
    new = _flat(as_json(now))
    found = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            found.append(f"{_plain(name)}: nothing → {_value(new[name])}")
        elif name not in new:
            found.append(f"{_plain(name)}: {_value(old[name])} → nothing")
        elif old[name] != new[name]:
            found.append(f"{_plain(name)}: {_value(old[name])} → {_value(new[name])}")
    return found


def summary(found: list[str]) -> str:
    """Differences in one line."""
    shown = ", ".join(found[:SHOWN])
    return shown if len(found) <= SHOWN else f"{shown} and {len(found) - SHOWN} more"


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested JSON → its leaves by dotted name. An empty list or object is a leaf."""
    if isinstance(value, dict) and value:
        items = list(value.items())
    elif isinstance(value, list) and value:
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        # Empty lists and objects too: something that became empty is a difference.
        return {name: value}
    leaves: dict[str, Any] = {}
    for key, item in items:
        leaves |= _flat(item, f"{name}.{key}" if name else key)
    return leaves


def _plain(name: str) -> str:
    name = name.removeprefix("stage.")
    return PLAIN.get(name, name)


def _value(value: Any) -> str:
    # Short where nothing is lost by it: two values that differ must not be shown as the same.
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


def set_aside(path: Path, mark: str) -> Path:
    """Rename a file or folder to `<name>.before-<mark>`, or with a number behind it where that is
    taken; returns the new path."""
    target = path.with_name(f"{path.name}.before-{mark}")
    number = 2
    # A link to nothing does not exist, and a rename would replace it.
    while target.exists() or target.is_symlink():
        target = path.with_name(f"{path.name}.before-{mark}-{number}")
        number += 1
    return path.rename(target)


def claim(folder: Path, file: str, question: Question, *, title: str) -> None:
    """Make `folder` that of this question, which is kept in it as `file`. What stands there and
    answers another question, or does not say which, is moved beside, and a line says so."""
    path = folder / file
    wanted = as_json(question)
    if path.is_file():
        found = differences(read_json(path, fix=f"delete {folder} to have this made anew"), wanted)
        if not found:
            return
        why = f"was made from something else ({summary(found)})"
    elif folder.is_dir() and any(folder.iterdir()):
        why = "does not say what it was made from"
    else:
        why = ""
    # Moved and not deleted: it may be days of somebody's training.
    if why:
        aside = set_aside(folder, short(wanted))
        sys.stderr.write(
            f"{title}: {folder} {why}; it is kept as {aside.name}, and this starts anew\n"
        )
    write_atomically(path, json.dumps(wanted, indent=1).encode())


def is_finished(folder: Path, question: Question, *, fixes: str) -> bool:
    """Whether the policy at `folder` answers this question already; False where there is none yet.

    To be asked before anything is trained. Raises ValueError where a policy, or anything else,
    stands there that was made otherwise: it is never overwritten. `fixes`: the options that choose
    another folder.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    advice = (
        f"Nothing was trained, and it stays as it is: {fixes}, or delete {folder} to have it made "
        "anew"
    )
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is a file, and a policy would be written there as a folder. {advice}"
        )
    if not (folder / CONFIG).is_file():
        for path in sorted(folder.iterdir()):
            # What a save leaves that was killed may be written over; so may hidden files.
            if path.name.startswith(".") or path.suffix in HALF:
                continue
            raise ValueError(
                f"{folder} holds {path.name} and no {CONFIG}: it is no policy of armlet's. {advice}"
            )
        return False
    made = read_provenance(folder)
    if SHORTENED in made:
        raise ValueError(
            f"{folder} holds a policy that `armlet shorten` changed since it was trained. {advice}"
        )
    found = made.get(PROVENANCE)
    if found is None:
        raise ValueError(
            f"{folder} holds a policy that does not say what it was made from: it ships with "
            f"armlet, was copied here, or was made by an older armlet. {advice}"
        )
    differing = differences(found, question)
    if differing:
        raise ValueError(
            f"{folder} holds a policy that was made from something else ({summary(differing)}). "
            f"{advice}"
        )
    policy_fingerprint(folder)  # raises where weights or words are missing or cut short
    settle(folder)
    return True
