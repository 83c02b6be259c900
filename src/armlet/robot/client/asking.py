"""An observation as a policy's server is shown it, and the actions that it answers.

Where each thing stands in a message is a `Path`; a user writes one as a key, `a.b` for `b` in the
map `a`. Knows observations and messages; opens no connection.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Any

import numpy as np

from armlet.robot.client.dialects import Dialect, DialectError, Path, put
from armlet.robot.fit import Fit, fit_picture
from armlet.robot.observation import Observation

LAYOUTS = ("hwc", "chw")


@dataclass(frozen=True)
class Question:
    """How observations become a message.

    `cameras`: where the picture of each of the robot's cameras stands; `state`: where numbers of
    the state stand, and which (None: all). `previous_action`: None where it is not told. `layout`
    of pictures: `hwc`, channels last, or `chw`. `sizes`: (height, width) that a camera's pictures
    are fitted to, by `fit`; left out: they are sent as they are. `drawn`: arrays that are told with
    every observation, `once`: what is told once a message. `stacked`: a message holds several
    observations, each entry with an axis in front.
    """

    cameras: Mapping[str, Path]
    state: Mapping[Path, tuple[int, ...] | None]
    prompt: Path
    previous_action: Path | None = None
    layout: str = "hwc"
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    fit: Fit = "any"
    drawn: Mapping[Path, np.ndarray] = field(default_factory=dict)
    once: Mapping[Path, Any] = field(default_factory=dict)
    stacked: bool = False

    def message(self, some: Sequence[Observation]) -> dict[str, Any]:
        """One observation as the server reads it, or, `stacked`, some. Raises ValueError naming a
        camera that is missing, and what `fit_picture` does."""
        entries: list[tuple[Path, list[Any]]] = []
        for name, path in self.cameras.items():
            entries.append((path, [self._picture(seen, name) for seen in some]))
        for path, numbers in self.state.items():
            states = [np.asarray(seen.state, np.float32) for seen in some]
            if numbers is not None:
                states = [each[list(numbers)] for each in states]
            entries.append((path, states))
        entries.append((self.prompt, [seen.instruction for seen in some]))
        if self.previous_action is not None:
            before = [np.asarray(seen.previous_action, np.float32) for seen in some]
            entries.append((self.previous_action, before))
        for path, values in self.drawn.items():
            entries.append((path, [values] * len(some)))
        message: dict[str, Any] = {}
        for path, told in entries:
            if not self.stacked:
                put(message, path, told[0])
            else:
                put(message, path, told if isinstance(told[0], str) else np.stack(told))
        for path, value in self.once.items():
            put(message, path, value)
        return message

    def _picture(self, seen: Observation, name: str) -> np.ndarray:
        if name not in seen.images:
            there = ", ".join(seen.images) or "none"
            raise ValueError(f"the observation lacks camera {name!r}; it has {there}")
        size = self.sizes.get(name, (1, 1))  # says nothing where the fit is `any`
        image = fit_picture(np.asarray(seen.images[name]), size, self.fit, camera=name)
        return image.transpose(2, 0, 1) if self.layout == "chw" else image


def path_of(key: str) -> Path:
    """A key as a user writes it: `a.b` is `b` in the map `a`."""
    return tuple(key.split("."))


def named_cameras(
    said: Mapping[str, str], cameras: Sequence[str], dialect: Dialect, *, whose: str
) -> dict[str, Path]:
    """The robot's cameras that the server is shown → where each stands in a message. `said`: the
    server's key → the robot's camera; empty: all `cameras`, where the protocol has them. `whose`
    table that is goes into the message of the ValueError for a camera that the robot has not, or
    that is named twice."""
    if not said:
        return {name: dialect.image(name) for name in cameras}
    found: dict[str, Path] = {}
    for key, name in said.items():
        if name not in cameras:
            there = ", ".join(cameras) or "none"
            raise ValueError(f"{whose} gives {key} the robot's camera {name!r}, and it has {there}")
        if name in found:
            raise ValueError(f"{whose} names {name!r} twice; name it once")
        found[name] = dialect.named_image(key)
    return found


def actions_in(reply: Mapping[str, Any], dims: int | None, *, rows: int | None) -> np.ndarray:
    """(m, k, a) float32 of an answer to `rows` stacked observations, or to one, None; `dims`: a,
    None where nobody knows. Raises DialectError where the answer is anything else."""
    if "actions" not in reply:
        there = ", ".join(map(str, reply)) or "nothing"
        raise DialectError(f"answers without `actions`; its answer has {there:.200}")
    actions = reply["actions"]
    if isinstance(actions, list):  # of a server that knows no arrays
        actions = _listed(actions)
    if not isinstance(actions, np.ndarray) or actions.dtype.kind not in "fiu":
        kind = actions.dtype if isinstance(actions, np.ndarray) else type(actions).__name__
        raise DialectError(f"answers with actions of type {kind}, expected numbers")
    if rows is None:
        actions = actions[None, None] if actions.ndim == 1 else actions[None]
    shape = actions.shape
    wanted = shape[-1] if dims is None else dims
    if len(shape) != 3 or shape[0] != (rows or 1) or shape[2] != wanted or not shape[1]:
        first = "" if rows is None else f"{rows}, "
        found = shape[1:] if rows is None else shape
        last = "a" if dims is None else dims
        raise DialectError(f"answers with actions of shape {found}, expected ({first}k, {last})")
    return actions.astype(np.float32)


def check_finite(actions: np.ndarray, names: Sequence[str]) -> None:
    """Raises DialectError where actions (…, a) hold NaN or infinity, by the name of the first such
    number; by its index where nobody has named them."""
    bad = np.argwhere(~np.isfinite(actions))
    if not len(bad):
        return
    index = int(bad[0][-1])
    name = repr(names[index]) if index < len(names) else f"number {index}"
    raise DialectError(f"answers with NaN or infinity, first in {name}")


def read_key(path: File, *, whose: str, what: str) -> str:
    """The one line of text that a file of a server's key holds. `whose` field names the file, and
    `what` it is, goes into the ValueError where it holds anything else; the key never does."""
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{whose} names {path}, which cannot be read ({type(error).__name__}); it is a file in "
            f"which {what} stands"
        ) from error
    if not key or not key.isprintable():
        raise ValueError(f"{path}, the file of {whose}, does not hold one line of text")
    return key


def _listed(actions: list[Any]) -> np.ndarray | list[Any]:
    """Lists in one another as an array, where they are of one length."""
    try:
        return np.array(actions)
    except ValueError:
        return actions
