"""Numbers of a robot ↔ numbers of a network, by the statistics of a data set. Knows no file and no network."""

from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

Mode = Literal["identity", "mean_std", "quantiles"]

CONSTANT = 1e-5
"""A dimension that spreads by less than this share of its own magnitude, or by nothing, is constant: that is float32's noise."""


def _scale(spread: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """What to divide by (x,): the spread; 1 where a dimension is constant, which then passes through, shifted only."""
    return np.where(spread <= CONSTANT * np.abs(offset), 1.0, spread)


@dataclass(frozen=True)
class Normaliser:
    """`normalised = (value − offset) / scale`, a dimension at a time; arrays (x,) float32."""

    offset: np.ndarray
    scale: np.ndarray

    @classmethod
    def from_statistics(cls, statistics: dict[str, Any], mode: Mode, *, what: str, dims: int, keep: tuple[int, ...] = ()) -> Self:
        """`mean_std` divides by the deviation, `quantiles` takes q01…q99 to −1…1; dimensions in `keep` pass as they are.

        Raises ValueError where statistics are missing or belong to another robot (a different number of dimensions).
        """
        needed = {"identity": (), "mean_std": ("mean", "std"), "quantiles": ("q01", "q99")}[mode]
        for name in needed:
            if name not in statistics:
                raise ValueError(f"statistics of {what!r} lack {name!r}, which normalisation {mode!r} needs")
            if np.asarray(statistics[name]).shape != (dims,):
                raise ValueError(
                    f"statistics of {what!r}: {name} has shape {np.asarray(statistics[name]).shape}, expected ({dims},); "
                    "are they of another robot?"
                )
        offset, scale = np.zeros(dims), np.ones(dims)
        if mode == "mean_std":
            offset = np.array(statistics["mean"], np.float64)
            scale = _scale(np.asarray(statistics["std"], np.float64), offset)
        elif mode == "quantiles":
            low = np.asarray(statistics["q01"], np.float64)
            high = np.asarray(statistics["q99"], np.float64)
            offset = (low + high) / 2
            scale = _scale((high - low) / 2, offset)
        offset[list(keep)] = 0.0
        scale[list(keep)] = 1.0
        return cls(offset.astype(np.float32), scale.astype(np.float32))

    def apply(self, values: np.ndarray) -> np.ndarray:
        return (values - self.offset) / self.scale

    def invert(self, values: np.ndarray) -> np.ndarray:
        return values * self.scale + self.offset

    def to_json(self) -> dict[str, list[float]]:
        return {"offset": self.offset.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_json(cls, value: dict[str, list[float]]) -> Self:
        return cls(np.array(value["offset"], np.float32), np.array(value["scale"], np.float32))
