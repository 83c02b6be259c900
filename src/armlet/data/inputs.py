"""What a policy wants to be told, and how: its pictures, words and numbers.

A policy says it (`Backbone.inputs`); whoever makes a batch, from episodes (`frames.BatchMaker`) or
from a robot's observations (`Inputs.batch`), asks it. Knows no network and no data set.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from armlet.robot.fit import View, fit_picture
from armlet.robot.normalise import Normaliser
from armlet.robot.observation import Observation, recent
from armlet.types import Batch


class Reader(Protocol):
    """How a policy reads: its prompt, case, tokenizer and padding are its own business."""

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

    def batch(self, observations: Sequence[Observation], *, device: torch.device) -> Batch:
        """What a robot observes, at b moments, as a batch.

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
            stacked = torch.from_numpy(np.stack(pictures)).to(device)
            # (b, 3, h, w), [0, 1]; with a history (b, o, 3, h, w)
            images[name] = self._grouped(stacked.permute(0, 3, 1, 2).float().div_(255))
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
        return Batch(
            images=images,
            text=torch.from_numpy(ids).to(device),
            text_mask=torch.from_numpy(real).to(device),
            state=self._grouped(torch.from_numpy(state).to(device)),
            previous_action=torch.from_numpy(np.stack(previous)).to(device),
        )

    def _grouped(self, values: Tensor) -> Tensor:
        """(b · o, …) → (b, o, …); where one observation is looked at, as it is."""
        return values if self.history == 1 else values.unflatten(0, (-1, self.history))


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
    if isinstance(values, Tensor):
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
