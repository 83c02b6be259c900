"""Statistics of columns and images, an episode at a time and together, as LeRobotDataset keeps
them."""

from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
Statistics = dict[str, Any]


def of_values(values: np.ndarray) -> Statistics:
    """(T,) or (T, x) → lists of x numbers for min, max, mean, std and quantiles, and the count."""
    wide = values.reshape(len(values), -1).astype(np.float64)
    found = {"min": wide.min(0), "max": wide.max(0), "mean": wide.mean(0), "std": wide.std(0)}
    found |= {name: np.quantile(wide, q, axis=0) for name, q in QUANTILES.items()}
    return {**{name: value.tolist() for name, value in found.items()}, "count": [len(values)]}


def of_images(frames: np.ndarray) -> Statistics:
    """(T, h, w, 3) uint8 → per channel (3, 1, 1), in 0…1, over at most 20 frames spread over the
    episode."""
    chosen = frames[np.linspace(0, len(frames) - 1, min(len(frames), 20)).round().astype(int)]
    found = of_values(chosen.reshape(-1, 3) / 255.0)
    shaped = {
        name: np.reshape(value, (3, 1, 1)).tolist()
        for name, value in found.items()
        if name != "count"
    }
    return {**shaped, "count": [len(chosen)]}


def combine(parts: list[Statistics]) -> Statistics:
    """Statistics of several episodes → of all. Quantiles are averaged by count, as lerobot does."""
    count = np.array([part["count"][0] for part in parts], np.float64)
    stacked = {
        name: np.array([part[name] for part in parts], np.float64)
        for name in parts[0]
        if name != "count"
    }
    share = (count / count.sum()).reshape(-1, *[1] * (stacked["mean"].ndim - 1))
    mean = (share * stacked["mean"]).sum(0)
    square = (share * (stacked["std"] ** 2 + stacked["mean"] ** 2)).sum(0)
    together = {"min": stacked["min"].min(0), "max": stacked["max"].max(0), "mean": mean}
    together["std"] = np.sqrt(np.maximum(square - mean**2, 0))
    together |= {name: (share * stacked[name]).sum(0) for name in QUANTILES if name in stacked}
    return {
        **{name: value.tolist() for name, value in together.items()},
        "count": [int(count.sum())],
    }
