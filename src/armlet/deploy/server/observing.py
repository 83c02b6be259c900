"""What a robot's client sends → what a policy is shown: which entry of a message is which camera's
picture, the state, the words.

By name where names fit: an entry whose name ends as the camera is called (`observation/wrist` and
`images.wrist` are camera `wrist`), `state`, `prompt`. Else as the user says (`Keys`). Nothing is
guessed: two entries that fit are an error, and one that is missing, too. Knows no socket.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from armlet.robot.client.client import LATE, PREVIOUS_ACTION, RESET, UNDERWAY
from armlet.robot.observation import Underway
from armlet.robot.spec import ActionSpec, ObservationSpec

LONGEST = 4096  # letters of an instruction
MOST = 4096  # actions under way
SMALLEST = 1  # pixels a side
STATES = ("state", "states")  # as benchmarks of vla-eval call it
PROMPTS = ("prompt", "task_description")  # openpi's word, and vla-eval's


class ObservationError(ValueError):
    """A message that is none that the policy can be asked about."""


@dataclass(frozen=True)
class Keys:
    """Under which keys a client says what, where the policy's own names do not fit."""

    cameras: dict[str, str] = field(default_factory=dict)
    """Camera of the policy and the client's key of its picture: base observation/image. Others are
    found by name."""
    state: tuple[str, ...] = ()
    """The client's keys of the state's numbers, one after the other; left out: found by name."""
    prompt: str = ""
    """The client's key of the instruction; left out: prompt or task_description."""


@dataclass(frozen=True)
class Told:
    """What a message says. `previous_action`: None where it does not say it; `begins`: an episode
    does; `underway`: what the robot carries out meanwhile, where it is to be guided by that;
    `ignored`: keys that the policy takes no notice of."""

    images: dict[str, np.ndarray]
    state: np.ndarray
    instruction: str
    previous_action: np.ndarray | None
    begins: bool
    ignored: tuple[str, ...]
    underway: Underway | None = None


class Reader:
    """How messages are read for one policy."""

    def __init__(
        self, seen: ObservationSpec, action: ActionSpec, keys: Keys, *, unguided: str = ""
    ) -> None:
        """`unguided`: why the policy cannot be guided by actions under way; empty: it can. Raises
        ValueError where a key is given for a camera that the policy does not have, or for a state
        that it does not read."""
        self.unguided = unguided
        self.seen = seen
        self.action = action
        self.keys = keys
        for camera in keys.cameras:
            if camera not in seen.cameras:
                there = ", ".join(seen.cameras) or "none"
                raise ValueError(
                    f"--cameras: the policy has no camera {camera!r}; it looks through {there}"
                )
        if keys.state and seen.state_dims == 0:
            raise ValueError("--state has no effect: the policy reads no state")

    def read(self, message: Any) -> Told:
        """What a message says, in the policy's own names. Raises ObservationError naming what is
        missing, there twice, or of another kind."""
        if not isinstance(message, dict):
            raise ObservationError(f"found {_kind(message)}, expected a map of an observation")
        entries = _Entries(message)
        images = {}
        for name in self.seen.cameras:
            images[name] = self._picture(entries, name)
        sizes = {}
        for name, image in images.items():
            sizes[name] = (image.shape[0], image.shape[1])
        lines = self.seen.view.differences(sizes)
        if lines:
            raise ObservationError("; ".join(lines))
        return Told(
            images=images,
            state=self._state(entries),
            instruction=self._words(entries),
            previous_action=self._previous_action(entries),
            begins=_begins(entries),
            underway=self._underway(entries),
            ignored=entries.unused,
        )

    def _picture(self, entries: "_Entries", name: str) -> np.ndarray:
        key = self.keys.cameras.get(name)
        found = entries.at(key) if key else entries.named((name.replace("/", "."),))
        if found is None:
            how = f"none is called {key}" if key else "none is called so"
            raise ObservationError(
                f"camera {name!r}: {how} among {entries.said}; say which it is with `--cameras "
                f"{name} KEY` of armlet serve"
            )
        key, value = found
        if not isinstance(value, np.ndarray) or value.ndim != 3 or value.dtype != np.uint8:
            raise ObservationError(
                f"{key}, camera {name!r}: found {_kind(value)}, expected a picture of uint8, "
                "(h, w, 3) or (3, h, w)"
            )
        # Channels first, as LeRobot and ALOHA have them. One of 3 rows or columns is none.
        if value.shape[0] == 3 and value.shape[2] != 3:
            value = value.transpose(1, 2, 0)
        if value.shape[2] != 3 or min(value.shape) < SMALLEST:
            raise ObservationError(
                f"{key}, camera {name!r}: found shape {value.shape}, expected (h, w, 3) or (3, h, w)"
            )
        return value

    def _state(self, entries: "_Entries") -> np.ndarray:
        """(s,) float32."""
        wanted = self.seen.state_dims
        if wanted == 0:
            return np.zeros(0, np.float32)
        parts = []
        for key in self.keys.state:
            found = entries.at(key)
            if found is None:
                raise ObservationError(
                    f"state: none is called {key} among {entries.said}; `--state KEY …` of armlet "
                    "serve says which it is"
                )
            parts.append(_numbers(*found))
        if not self.keys.state:
            found = entries.named(STATES)
            if found is None:
                raise ObservationError(
                    f"state: none is called {' or '.join(STATES)} among {entries.said}; say which "
                    "it is with `--state KEY …` of armlet serve"
                )
            parts.append(_numbers(*found))
        state = np.concatenate(parts)
        if wanted is not None and len(state) != wanted:
            names = ", ".join(self.seen.state_names) or "its names are not known"
            raise ObservationError(
                f"state: found {len(state)} numbers, expected {wanted} ({names})"
            )
        return state

    def _words(self, entries: "_Entries") -> str:
        key = self.keys.prompt
        found = entries.at(key) if key else entries.named(PROMPTS)
        if found is None:
            raise ObservationError(
                f"instruction: none is called {key or ' or '.join(PROMPTS)} among {entries.said}; "
                "say which it is with `--prompt KEY` of armlet serve"
            )
        key, words = found
        if not isinstance(words, str) or len(words) > LONGEST:
            raise ObservationError(
                f"{key}: found {_kind(words)}, expected a text of at most {LONGEST} letters"
            )
        return words

    def _previous_action(self, entries: "_Entries") -> np.ndarray | None:
        found = entries.named((PREVIOUS_ACTION,))
        if found is None:
            return None
        numbers = _numbers(*found)
        if len(numbers) != self.action.dims:
            raise ObservationError(
                f"{found[0]}: found {len(numbers)} numbers, expected {self.action.dims} "
                f"({', '.join(self.action.names)})"
            )
        return numbers

    def _underway(self, entries: "_Entries") -> Underway | None:
        found = entries.at(UNDERWAY)
        if found is None:
            return None
        if self.unguided:
            raise ObservationError(f"{UNDERWAY}: {self.unguided}")
        late = entries.at(LATE)
        if late is None:
            raise ObservationError(f"{UNDERWAY} without {LATE}, how many of them are carried out")
        value = found[1]
        dims = self.action.dims
        if not isinstance(value, np.ndarray) or value.ndim != 2 or value.dtype.kind not in "fiu":
            raise ObservationError(
                f"{UNDERWAY}: found {_kind(value)}, expected numbers (m, {dims})"
            )
        if value.shape[1] != dims or len(value) > MOST or not np.isfinite(value).all():
            raise ObservationError(
                f"{UNDERWAY}: found {_kind(value)}, NaN or infinity, expected at most {MOST} "
                f"actions of {dims} numbers ({', '.join(self.action.names)})"
            )
        steps = late[1]
        if type(steps) is not int or not 0 <= steps <= len(value):
            raise ObservationError(
                f"{LATE}: found {steps!r:.60}, expected how many of the {len(value)} actions under "
                "way are carried out meanwhile"
            )
        return Underway(value.astype(np.float32), steps)


class _Entries:
    """A message's entries by their names, `a.b` for `b` in the map `a`; `a/b` is the same name."""

    def __init__(self, message: Mapping[Any, Any]) -> None:
        self._values: dict[str, Any] = {}
        self._used: set[str] = set()
        self._add(message, "")

    def _add(self, message: Mapping[Any, Any], within: str) -> None:
        for key, value in message.items():
            name = f"{within}{key}".replace("/", ".")
            if isinstance(value, dict):
                self._add(value, f"{name}.")
                continue
            if name in self._values:
                raise ObservationError(f"two entries of the message are called {name:.80}")
            self._values[name] = value

    @property
    def said(self) -> str:
        """Their names, for an error."""
        return f"{', '.join(self._values):.300}" or "no entries"

    @property
    def unused(self) -> tuple[str, ...]:
        return tuple(name for name in self._values if name not in self._used)

    def at(self, key: str) -> tuple[str, Any] | None:
        """What a key names, and its name."""
        name = key.replace("/", ".")
        if name not in self._values:
            return None
        self._used.add(name)
        return name, self._values[name]

    def named(self, words: tuple[str, ...]) -> tuple[str, Any] | None:
        """The one entry whose name is or ends with one of these words. Raises ObservationError
        where several do."""
        fitting = []
        for name in self._values:
            if any(name == word or name.endswith(f".{word}") for word in words):
                fitting.append(name)
        if len(fitting) > 1:
            raise ObservationError(
                f"{' and '.join(fitting):.200} might both be {words[0]!r}; send one, or say which "
                "it is (armlet serve --help: cameras, state, prompt)"
            )
        return self.at(fitting[0]) if fitting else None


def _begins(entries: _Entries) -> bool:
    found = entries.at(RESET)
    if found is None:
        return False
    if not isinstance(found[1], bool | np.bool_):
        raise ObservationError(f"{RESET}: found {_kind(found[1])}, expected true or false")
    return bool(found[1])


def _numbers(key: str, value: Any) -> np.ndarray:
    """(n,) float32: numbers as an array, a list, or one alone."""
    try:
        found = np.asarray(value)
    except ValueError:  # lists of different lengths
        found = np.asarray(None)
    if found.dtype.kind not in "fiu" or found.ndim > 1:
        raise ObservationError(f"{key}: found {_kind(value)}, expected numbers in a row")
    with np.errstate(over="ignore"):  # what float32 does not hold is infinite, and refused
        numbers = np.atleast_1d(found).astype(np.float32)
    if not np.isfinite(numbers).all():
        raise ObservationError(f"{key}: NaN or infinite, expected finite numbers")
    return numbers


def _kind(value: Any) -> str:
    """A value of a message, in a few words."""
    if isinstance(value, np.ndarray):
        return f"an array {value.shape} of {value.dtype}"
    if isinstance(value, str):
        return f"a text of {len(value)} letters"
    return f"a {type(value).__name__}"
