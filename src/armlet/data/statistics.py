"""Statistics of columns and images, an episode at a time and together, as LeRobotDataset keeps
them. Knows the files that hold them; knows no column's meaning."""

from pathlib import Path
from typing import Any

import numpy as np

from armlet.data.opening import EpisodeError, read_lines, read_object

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
# Frames near one another are alike, and lerobot samples them too.
SAMPLED_FRAMES = 20
Statistics = dict[str, Any]


def of_values(values: np.ndarray) -> Statistics:
    """(T,) or (T, x) → lists of x numbers for min, max, mean, std and quantiles, and the count."""
    # (T, x), in double precision: the sum of 10^6 float32 has lost its last digits.
    wide = values.reshape(len(values), -1).astype(np.float64)
    found = {
        "min": wide.min(0),
        "max": wide.max(0),
        "mean": wide.mean(0),
        "std": wide.std(0),
    }
    for name, q in QUANTILES.items():
        found[name] = np.quantile(wide, q, axis=0)
    return _with_count(found, len(values))


def of_images(frames: np.ndarray) -> Statistics:
    """(T, h, w, 3) uint8 → per channel (3, 1, 1), in 0…1, over at most 20 frames spread over the
    episode."""
    sampled = np.linspace(0, len(frames) - 1, min(len(frames), SAMPLED_FRAMES))
    chosen = frames[sampled.round().astype(int)]
    per_channel = of_values(chosen.reshape(-1, 3) / 255.0)
    found = {}
    for name, value in per_channel.items():
        if name != "count":  # counts frames, as lerobot's does, and not the pixels seen here
            found[name] = np.reshape(value, (3, 1, 1))
    return _with_count(found, len(chosen))


def combine(parts: list[Statistics]) -> Statistics:
    """Statistics of several episodes → of all. Quantiles are averaged by count, as lerobot does."""
    count = np.array([part["count"][0] for part in parts], np.float64)
    stacked = {}  # name → (episodes, …): (x,) of a column, (3, 1, 1) of a camera
    for name in parts[0]:
        if name != "count":
            stacked[name] = np.array([part[name] for part in parts], np.float64)
    share = (count / count.sum()).reshape(-1, *[1] * (stacked["mean"].ndim - 1))
    mean = (share * stacked["mean"]).sum(0)
    # The variance of all is E[x²] − E[x]², and E[x²] of an episode is its std² + mean². Rounding
    # may leave it a little below 0 where a column never changes.
    square = (share * (stacked["std"] ** 2 + stacked["mean"] ** 2)).sum(0)
    together = {
        "min": stacked["min"].min(0),
        "max": stacked["max"].max(0),
        "mean": mean,
        "std": np.sqrt(np.maximum(square - mean**2, 0)),
    }
    for name in QUANTILES:
        if name in stacked:  # older versions of lerobot wrote none
            together[name] = (share * stacked[name]).sum(0)
    return _with_count(together, int(count.sum()))


def _with_count(found: dict[str, np.ndarray], count: int) -> Statistics:
    """As JSON has them, the count last and in a list, as lerobot writes it."""
    written: Statistics = {}
    for name, value in found.items():
        written[name] = value.tolist()
    written["count"] = [count]
    return written


def read_statistics(path: Path) -> Statistics:
    """Feature → statistics, of meta/stats.json or, put together, of the lines an episode that v2.1
    has. Raises EpisodeError naming the file."""
    if path.suffix != ".jsonl":
        return read_object(path)
    try:
        return _of_lines(path)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, EpisodeError):  # a ValueError that already says what is wrong
            raise
        raise EpisodeError(
            f"{path} cannot be understood ({error!r}); copy it again, or delete it"
        ) from error


def _of_lines(path: Path) -> Statistics:
    parts = [row["stats"] for row in read_lines(path)]
    together: Statistics = {}
    for name in parts[0]:
        # What one episode lacks nobody can say of all.
        if all(name in part for part in parts):
            together[name] = combine([part[name] for part in parts])
    return together


def check_statistics(path: Path, statistics: Statistics, name: str, dims: int) -> None:
    """Raises EpisodeError where what a file says of feature `name` is not about `dims` numbers: the
    usual cause is a file that was copied from another robot's data set."""
    kinds = statistics.get(name)
    if kinds is None:
        return
    if not isinstance(kinds, dict):
        raise EpisodeError(
            f"{path}: {name} is {kinds!r}, expected an object of min, max, mean …; copy it "
            "again, or delete it"
        )
    for kind, values in kinds.items():
        if kind == "count" or values is None:
            continue
        try:
            size = np.asarray(values, np.float64).size
        except (TypeError, ValueError) as error:
            raise EpisodeError(
                f"{path}: {name} {kind} is {values!r}, expected {dims} numbers; copy it "
                "again, or delete it"
            ) from error
        if size != dims:
            raise EpisodeError(
                f"{path}: {name} {kind} has {size} values and the feature has {dims} "
                "dimensions; these are the statistics of another robot"
            )
