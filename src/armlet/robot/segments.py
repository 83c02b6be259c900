"""A network whose router decides for every observation, as a graph a part, of which those run that
the router chooses. Knows arrays and graphs; knows no file and no network.

    start       one moment (`runtimes.feeds`) → `gates` (1, l), 1 for each layer that runs, and the
                state before layer 0
    layers      a graph a layer: a state → the state behind it
    last        the same where no layer runs after it, which may compute less; or none
    end         a state → `actions` (1, k, a)

A part takes `state.<name>` and leaves `after.<name>`, which the next part takes as `state.<name>`; so
a layer that is skipped costs nothing. What no layer changes `start` gives as `state.<name>` itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from armlet.robot.runtimes import AFTER, GATES, STATE, Graph


@dataclass(frozen=True)
class Parts:
    """The files of the parts, by name. `last` is empty where a last layer is as any other."""

    start: str
    layers: tuple[str, ...]
    last: tuple[str, ...]
    end: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.start, *self.layers, *self.last, self.end)

    def renamed(self, names: Mapping[str, str]) -> Self:
        """The same of other files."""
        return type(self)(
            start=names[self.start],
            layers=tuple(names[each] for each in self.layers),
            last=tuple(names[each] for each in self.last),
            end=names[self.end],
        )

    def to_json(self) -> dict[str, Any]:
        layers = list(self.layers)
        return {"start": self.start, "layers": layers, "last": list(self.last), "end": self.end}

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Self:
        """The inverse of `to_json`. Raises KeyError or ValueError for what it did not write."""
        layers = tuple(said["layers"])
        last = tuple(said["last"])
        if not layers or len(last) not in (0, len(layers)):
            raise ValueError(
                f"`parts` names {len(layers)} layers and {len(last)} last ones, expected as many or none"
            )
        return cls(said["start"], layers, last, said["end"])


class Segments:
    """Parts that have been loaded. As `runtimes.Graph`, not to be called by two threads at once."""

    def __init__(self, parts: Parts, load: Callable[[str], Graph]) -> None:
        self._start = load(parts.start)
        self._layers = [load(name) for name in parts.layers]
        self._last = [load(name) for name in parts.last] or self._layers
        self._end = load(parts.end)

    def run(self, fed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Actions and gates of one moment. Raises ValueError where the router answers for another
        number of layers than there are."""
        known = dict(fed)
        _hand_on(self._start.run(known), known)
        gates = known[GATES]
        if gates.shape != (1, len(self._layers)):
            raise ValueError(
                f"gates are {gates.shape}, expected (1, {len(self._layers)}), one a layer; the graphs "
                "of this folder are not of one policy"
            )
        chosen = np.flatnonzero(gates[0] > 0.5)
        for index in chosen:
            layers = self._last if index == chosen[-1] else self._layers
            _hand_on(layers[index].run(known), known)
        return {**self._end.run(known), GATES: gates}


def _hand_on(made: Mapping[str, np.ndarray], known: dict[str, np.ndarray]) -> None:
    """What a part made, as the next one takes it."""
    for name, values in made.items():
        known[STATE + name.removeprefix(AFTER) if name.startswith(AFTER) else name] = values
