"""What a policy wants to be told, and how: its pictures, words and numbers, in numpy.

A policy says it (`Backbone.inputs`); whoever makes a batch, from episodes (`frames.BatchMaker`) or
from a robot's observations (`Inputs.arrays`), asks it. Knows no network, no data set and no torch.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from tokenizers import Tokenizer

from armlet.robot import reading
from armlet.robot.fit import View, fit_picture, known_fit
from armlet.robot.normalise import Normaliser
from armlet.robot.observation import Observation, recent


class Reader(Protocol):
    """How a policy reads: its prompt, case, tokenizer and padding are its own business. One that
    can be written into an exported folder is of `robot.reading`."""

    def __call__(
        self, texts: Sequence[str], *, any_length: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """n texts → ids (n, t) int64, padded, and which are real (n, t) bool. Raises ValueError
        naming a text that is not taken; with `any_length` none is too long."""
        ...


class StateReader(Protocol):
    """How a policy reads whose prompt holds the state as well."""

    def __call__(self, texts: Sequence[str], states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """n texts and normalised states (n, s) → as a `Reader`, always of the same width t."""
        ...


@dataclass(frozen=True)
class Arrays:
    """What a network is told of b moments. With a history of o > 1 observations `pictures` are
    (b, o, h, w, 3) and `state` (b, o, s), the oldest first."""

    pictures: dict[str, np.ndarray]  # camera → (b, h, w, 3) uint8
    text: np.ndarray  # (b, t) int64
    text_mask: np.ndarray  # (b, t) bool, True where there is a token
    state: np.ndarray  # (b, s) float32, normalised
    previous_action: np.ndarray  # (b, a) float32, normalised

    def images(self) -> dict[str, np.ndarray]:
        """Camera → (b[, o], 3, h, w) float32 in [0, 1]: the bits that a batch of torch has on a
        CPU."""
        found = {}
        for name, pictures in self.pictures.items():
            channels_first = np.ascontiguousarray(np.moveaxis(pictures, -1, -3))
            found[name] = channels_first.astype(np.float32) / np.float32(255)
        return found


@dataclass(frozen=True)
class Inputs:
    """`view`: the pictures that are looked at; `words`: how texts are read; `state` and `actions`:
    how these are normalised; `chunk`: how many actions are decided at a time; `relative`: action
    dimensions that are, before normalising, what they are beyond the state's numbers of the same
    index; `prompt`: what reads an instruction with the state, in place of `words`; `history`: how
    many observations are looked at."""

    view: View
    words: Reader
    state: Normaliser
    actions: Normaliser
    chunk: int
    relative: tuple[int, ...] = ()
    prompt: StateReader | None = None
    history: int = 1

    def to_json(self) -> dict[str, Any]:
        """Everything but the tokenizer. Raises TypeError for a way of reading that `robot.reading`
        does not have."""
        cameras = {name: list(size) for name, size in self.view.cameras.items()}
        return {
            "cameras": cameras,
            "fit": self.view.fit,
            "words": reading.to_json(self.words),
            "prompt_has_state": self.prompt is not None,
            "state": self.state.to_json(),
            "actions": self.actions.to_json(),
            "chunk": self.chunk,
            "relative": list(self.relative),
            "history": self.history,
        }

    @classmethod
    def from_json(cls, said: dict[str, Any], tokenizer: Tokenizer | None) -> Self:
        """The inverse of `to_json`; `tokenizer`: None of a policy that is told nothing. Raises
        ValueError naming what is not known, KeyError for what is missing."""
        cameras = {name: (int(size[0]), int(size[1])) for name, size in said["cameras"].items()}
        words = reading.from_json(said["words"], tokenizer)
        prompt = None
        if said["prompt_has_state"]:
            prompt = reading.with_state(words)
        return cls(
            view=View(cameras, known_fit(said["fit"])),
            words=words,
            state=Normaliser.from_json(said["state"]),
            actions=Normaliser.from_json(said["actions"]),
            chunk=said["chunk"],
            relative=tuple(said["relative"]),
            prompt=prompt,
            history=said["history"],
        )

    def normalised(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Actions (…, a) in the robot's numbers, of moments whose state (…, s) is that →
        normalised, float32."""
        return self.actions.apply(beyond(actions, state, self.relative)).astype(np.float32)

    def state_of(self, seen: Observation) -> np.ndarray:
        """(s,) float32, in the robot's own numbers. Raises ValueError where they are not the
        robot's."""
        if not len(self.state.offset):  # taught without one: what the robot says is not looked at
            return np.zeros(0, np.float32)
        return _numbers("state", seen.state, self.state)

    def arrays(self, observations: Sequence[Observation]) -> Arrays:
        """What a robot observes, at b moments, as a network is told it.

        Raises ValueError naming a camera that is missing or whose pictures are not taken, an
        instruction that the policy does not read, or numbers that are not the robot's.
        """
        if not observations:
            raise ValueError("found no observation, expected at least one")
        # Of b moments the o observations that end there, in a row: (b · o).
        row: list[Observation] = []
        for seen in observations:
            row += recent(seen, self.history)
        for seen in row:
            _check_told(seen, self.view.cameras)
        images = {}
        for name, size in self.view.cameras.items():
            pictures = []
            for seen in row:
                picture = np.asarray(seen.images[name])
                pictures.append(fit_picture(picture, size, self.view.fit, camera=name))
            images[name] = self._grouped(np.stack(pictures))
        every = [self.state_of(seen) for seen in row]
        state = np.stack([self.state.apply(each) for each in every])  # (b · o, s)
        last = self.history - 1
        raw = every[last :: self.history]  # of the b moments themselves
        texts = [seen.instruction for seen in observations]
        if self.prompt:
            ids, real = self.prompt(texts, state[last :: self.history])
        else:
            ids, real = self.words(texts)
        previous = []
        for seen, now in zip(observations, raw, strict=True):
            action = _numbers("previous_action", seen.previous_action, self.actions)
            previous.append(self.normalised(action, now))
        return Arrays(
            pictures=images,
            text=ids,
            text_mask=real,
            state=self._grouped(state),
            previous_action=np.stack(previous),
        )

    def _grouped(self, values: np.ndarray) -> np.ndarray:
        """(b · o, …) → (b, o, …); where one observation is looked at, as it is."""
        if self.history == 1:
            return values
        return values.reshape(-1, self.history, *values.shape[1:])


def beyond(actions: np.ndarray, state: np.ndarray, dims: Sequence[int]) -> np.ndarray:
    """Actions (…, a) whose dimensions `dims` say how far they are from the state (…, s); the others
    as they are."""
    if not dims:
        return actions
    found = np.array(actions)
    found[..., dims] -= state[..., dims]
    return found


def looked_at(state: np.ndarray, normaliser: Normaliser) -> np.ndarray:
    """Of states (N, s) what a policy looks at whose statistics of them these are: all or, where it
    was taught without a state, whatever the data have, nothing, (N, 0)."""
    return state if len(normaliser.offset) else state[:, :0]


def _check_told(seen: Observation, cameras: Collection[str]) -> None:
    """Raises ValueError naming the camera that an observation lacks, or the field that is of
    another kind."""
    if not isinstance(seen.images, Mapping):
        raise ValueError(
            f"images: found a {type(seen.images).__name__}, expected a dictionary of camera → "
            "picture"
        )
    missing = [name for name in cameras if name not in seen.images]
    if missing:
        raise ValueError(
            f"the observation lacks camera(s) {missing}; it has {sorted(map(str, seen.images))}"
        )
    if not isinstance(seen.instruction, str):
        raise ValueError(
            f"instruction: found a {type(seen.instruction).__name__}, expected a text (str)"
        )


def as_array(values: Any) -> np.ndarray:
    """Numbers of an observation, whatever holds them. Raises ValueError for rows of different
    lengths."""
    if hasattr(values, "detach"):  # a tensor of torch, which this room does not import
        values = values.detach().float().cpu()  # numpy knows no bfloat16
    return np.asarray(values)


def _numbers(field: str, values: Any, normaliser: Normaliser) -> np.ndarray:
    """A field of an observation as (x,) float32: lists, tensors and other kinds of numbers are
    taken as well. Raises ValueError naming the field where they are not as many as the policy was
    taught with, not finite, or no numbers."""
    dims = len(normaliser.offset)
    try:
        found = as_array(values)
    except ValueError as error:  # rows of different lengths
        raise ValueError(
            f"{field}: found {values!r:.60}, expected {dims} numbers in a row"
        ) from error
    if found.dtype.kind not in "fiu":  # float, int, unsigned; booleans and texts are no numbers
        raise ValueError(f"{field}: found {found.dtype} ({values!r:.60}), expected {dims} numbers")
    if found.shape != (dims,):
        raise ValueError(
            f"{field}: found shape {found.shape}, expected ({dims},); the policy was taught with "
            f"{dims} numbers, in the order of its data set"
        )
    if not np.isfinite(found).all():
        raise ValueError(
            f"{field}: NaN or infinite at {np.flatnonzero(~np.isfinite(found)).tolist()}, expected "
            "finite numbers"
        )
    return found.astype(np.float32)
