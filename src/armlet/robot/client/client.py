"""A policy's server as a robot asks it: one connection, an observation out, a chunk of actions in.

It speaks openpi's protocol, in which an answer is a chunk; vla-eval's hands out an action at a time
and is what its harness speaks. To a server of armlet's (`armlet serve`), which says so in its
first message, it also tells the action before and where an episode begins; others are told neither
unless they are asked to be. Knows no network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path as File
from typing import Any, Self

import numpy as np

from armlet.robot.client.address import address_of
from armlet.robot.client.asking import (
    LAYOUTS,
    Question,
    actions_in,
    check_finite,
    named_cameras,
    path_of,
    read_key,
)
from armlet.robot.client.dialects import DialectError, Openpi, Path
from armlet.robot.client.line import AnswerError, Calling, Line
from armlet.robot.observation import Observation, Underway

FIELDS = "Client(…)"  # where its user says how it calls
TAKES = (
    "takes"  # entry of a server's first message: what it may be told beside the usual, and where
)
PREVIOUS_ACTION = "previous_action"
RESET = "reset"
UNDERWAY = "underway"
LATE = "late"
UNGUIDED = "unguided"  # entry of the first message: why it takes no actions under way


class Client:
    """A policy behind a socket. Not for two threads at once."""

    def __init__(
        self,
        address: str,
        *,
        cameras: Mapping[str, str] | None = None,
        state: str | Mapping[str, Sequence[int]] = "",
        prompt: str = "",
        previous_action: str = "",
        layout: str = "hwc",
        actions: Sequence[str] = (),
        api_key: File | str | None = None,
        timeout: float = 10.0,
        retries: int = 0,
        wait: float = 1.0,
        largest: int = 2**24,
    ) -> None:
        """The server at `address`, `ws://host:port`, is called when it is first asked.

        `cameras`: the server's key → the robot's camera (None: all of an observation, each as
        `observation/<camera>`). `state`: its key, or keys with the numbers of the state under each;
        `prompt`, `previous_action`: theirs. `layout` of pictures: `hwc` or `chw`. `actions`: names
        of an action's numbers, where an answer of any other number of them should be refused.
        `api_key`: a file in which the server's key stands. `timeout`: seconds for an answer;
        `retries`: further calls where the server is not there, the first after `wait` seconds, each
        later one after twice as long; `largest`: bytes of an answer. Raises ValueError naming what
        cannot be.
        """
        if layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}, expected {' or '.join(LAYOUTS)}")
        self._names = tuple(actions)
        self._cameras = dict(cameras or {})
        self._state: dict[tuple[str, ...], tuple[int, ...] | None]
        if isinstance(state, Mapping):
            self._state = {path_of(key): tuple(numbers) for key, numbers in state.items()}
        else:
            self._state = {path_of(state) if state else Openpi.state: None}
        self._prompt = path_of(prompt) if prompt else Openpi.prompt
        self._previous_action = path_of(previous_action) if previous_action else None
        self._layout = layout
        key = None
        if api_key is not None:
            key = read_key(File(api_key), whose="api_key", what="the server's key")
        url = address_of(address)
        self._calling = Calling(url, timeout, retries, wait, largest, key, FIELDS)
        self._line = Line(self._calling, Openpi(), self._greeted)
        self._begins = True
        self.metadata: dict[str, Any] = {}
        """What the server says of itself; empty until it is called."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def reset(self) -> None:
        """An episode begins with the next observation."""
        self._begins = True

    def infer(self, observation: Observation) -> np.ndarray:
        """(k, a) float32 actions in the robot's own numbers, the first of them for now.

        Raises `ServerError` where the server is not there or does not answer, and `AnswerError`
        where what it answers cannot be used, NaN among it; ValueError where the observation lacks a
        camera, or says what is under way to a server that does not take it.
        """
        if not self.metadata:
            self._line.open()  # what it may be told is known then
        reply = self._line.ask(self._message(observation), about="an observation")
        self._begins = False
        try:
            actions = actions_in(reply, len(self._names) or None, rows=None)
            check_finite(actions, self._names)
        except DialectError as error:
            self._line.close()
            raise AnswerError(f"{self._calling.url} {error}") from error
        return actions[0]

    def close(self) -> None:
        """Hang up; whoever asks again calls again."""
        self._line.close()

    def _greeted(self, metadata: dict[str, Any]) -> None:
        self.metadata = metadata

    def _message(self, seen: Observation) -> dict[str, Any]:
        takes = self.metadata.get(TAKES)
        takes = takes if isinstance(takes, dict) else {}
        asked = Question(
            cameras=named_cameras(
                self._cameras, tuple(seen.images), Openpi(), whose=f"{FIELDS}: cameras"
            ),
            state=self._state if len(seen.state) else {},
            prompt=self._prompt,
            previous_action=self._previous_action,
            layout=self._layout,
        )
        if self._previous_action is None and isinstance(takes.get(PREVIOUS_ACTION), str):
            asked = replace(asked, previous_action=path_of(takes[PREVIOUS_ACTION]))
        once: dict[Path, Any] = {}
        if self._begins and isinstance(takes.get(RESET), str):
            once[path_of(takes[RESET])] = True
        if seen.underway is not None:
            once |= self._underway(seen.underway, takes)
        return replace(asked, once=once).message([seen])

    def _underway(self, underway: Underway, takes: Mapping[str, Any]) -> dict[Path, Any]:
        """What the robot carries out meanwhile, for a policy that is guided by it."""
        keys = (takes.get(UNDERWAY), takes.get(LATE))
        actions, late = keys
        if not isinstance(actions, str) or not isinstance(late, str):
            why = self.metadata.get(UNGUIDED) or "it does not say that it takes actions under way"
            raise ValueError(f"late = 'guided': {self._calling.url}: {why}; take run_on or blend")
        return {
            path_of(actions): np.asarray(underway.actions, np.float32),
            path_of(late): underway.late,
        }
