"""Actions ↔ classes: equal bins of every dimension (`Bins`), or one of a few primitives
(`Codebook`).

Knows what an ActionSpec says of an action; knows no policy, no benchmark and no file. Functions of
`Array` use only operators that numpy and torch share, so that what a data set is encoded with and
what an action head computes is one arithmetic.
"""

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from armlet.robot.spec import ActionSpec, within

Array = TypeVar("Array", np.ndarray, Tensor)
# Larger than any real distance (a range of 1 is a few units), and small enough that a float32 sum
# with it is still finite.
FAR = 1e9  # added to the squared distance of a primitive whose gripper does something else


def bin_numbers(values: Array, low: Array | float, high: Array | float, intervals: int) -> Array:
    """Which of `intervals` equal parts of low…high each value lies in: a whole number, still
    floating, not clipped."""
    return (values - low) / (high - low) * intervals // 1


def bin_centres(numbers: Array, low: Array | float, high: Array | float, intervals: int) -> Array:
    """The middle of part `numbers` of low…high."""
    return (numbers + 0.5) * ((high - low) / intervals) + low


def squared_distances(
    actions: Array,
    primitives: Array,
    grippers: Sequence[int],
    scale: Sequence[float] | None = None,
) -> Array:
    """(…, a), (n, a) → (…, n): how far each action is from each primitive.

    Grippers decide first: a primitive on the other side of one is `FAR`. Then the sum over the
    other dimensions of the squared difference, in units of `scale` (a,), 1 where nothing is said.
    Sides part in the middle between the lowest and the highest gripper of the primitives; the
    middle itself counts as the higher.
    """
    units = (1.0,) * primitives.shape[-1] if scale is None else scale
    # A sum over dimensions one by one: numpy and torch add along an axis in different orders, and
    # both must come to the same bits.
    terms = []  # each (…, n)
    for index, unit in enumerate(units):
        if index not in grippers:
            terms.append(((actions[..., index, None] - primitives[:, index]) / unit) ** 2)
    for gripper in grippers:
        ends = primitives[:, gripper]
        middle = (ends.min() + ends.max()) / 2
        terms.append(((actions[..., gripper, None] >= middle) != (ends >= middle)) * FAR)
    return sum(terms[1:], terms[0])


def soft_primitives(
    actions: Tensor,
    primitives: Tensor,
    grippers: Sequence[int],
    *,
    temperature: float,
    scale: Sequence[float] | None = None,
) -> Tensor:
    """(…, a), (n, a) → (…, n): the softmax of −distance²/temperature. None of it lies on the other
    side of the gripper."""
    # What lies `FAR` away has a share of exp(−1e9/temperature), which is exactly 0.
    return (
        -squared_distances(actions, primitives, grippers, scale) / _positive(temperature)
    ).softmax(-1)


@dataclass(frozen=True)
class Bins:
    """Every dimension by itself ↔ `bins` equal parts of low…high. What comes back differs by at
    most `half_bin`.

    `digitised`: the last number stands for exactly `high` and the others for bins − 1 parts, as
    np.digitize counts and OpenVLA's tokens are numbered.
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    bins: int = 256
    digitised: bool = False

    def __post_init__(self) -> None:
        sizes = {"names": len(self.names), "low": len(self.low), "high": len(self.high)}
        if len(set(sizes.values())) != 1:
            raise ValueError(
                f"Bins: names, low and high must have one entry a dimension, found {sizes}"
            )
        if self.intervals < 2:
            raise ValueError(
                f"Bins: bins is {self.bins}, which makes {self.intervals} interval(s); expected 2 "
                "or more"
            )
        for name, low, high in zip(self.names, self.low, self.high, strict=True):
            if not low < high:
                raise ValueError(
                    f"Bins: dimension {name!r} has the range {low:g} … {high:g}, expected low < "
                    "high; if it never changes in the data, give it a range by hand"
                )

    @classmethod
    def from_statistics(
        cls,
        statistics: dict[str, Any],
        names: tuple[str, ...],
        *,
        ends: tuple[str, str] = ("q01", "q99"),
        bins: int = 256,
    ) -> Self:
        """Ranges from a data set's statistics of its actions: `ends` ("q01", "q99"), beyond which
        two in a hundred lie, or ("min", "max"). Raises ValueError where one is missing or has
        another number of dimensions."""
        for end in ends:
            if end not in statistics:
                raise ValueError(
                    f"the statistics lack {end!r}, one end of the bins; they have "
                    f"{sorted(statistics)}"
                )
            if np.shape(statistics[end]) != (len(names),):
                raise ValueError(
                    f"the statistics' {end} has shape {np.shape(statistics[end])}, expected "
                    f"({len(names)},) for {', '.join(names)}; are they of another robot?"
                )
        low = tuple(map(float, statistics[ends[0]]))
        high = tuple(map(float, statistics[ends[1]]))
        return cls(names, low, high, bins)

    @classmethod
    def from_spec(cls, spec: ActionSpec, *, bins: int = 256) -> Self:
        """The range that the robot accepts."""
        return cls(spec.names, spec.low, spec.high, bins)

    @classmethod
    def openvla(cls, names: tuple[str, ...]) -> Self:
        """OpenVLA's numbers (arXiv 2406.09246) of actions normalised to [−1, 1]; its token is
        vocabulary − 1 − number."""
        return cls(names, (-1.0,) * len(names), (1.0,) * len(names), 256, digitised=True)

    @property
    def intervals(self) -> int:
        return self.bins - self.digitised

    @property
    def half_bin(self) -> np.ndarray:
        """(a,): the largest error of a value within the range, up to rounding."""
        return (np.array(self.high) - np.array(self.low)) / (2 * self.intervals)

    def encode(self, actions: np.ndarray, *, clip: bool = False) -> np.ndarray:
        """(…, a) → (…, a) int64. Outside the range: ValueError (see `within`), or with `clip` the
        outermost bin."""
        low = np.array(self.low)
        high = np.array(self.high)
        values = within(actions, self.names, self.low, self.high, clip=clip)
        numbers = bin_numbers(values, low, high, self.intervals)
        # Exactly `high` begins an interval too many: it belongs to the last bin, unless digitised,
        # where it has a number of its own.
        return numbers.clip(0, self.bins - 1).astype(np.int64)

    def decode(self, numbers: np.ndarray) -> np.ndarray:
        """(…, a) int → (…, a) float32, the middles of the bins. Raises ValueError for a number that
        is none of them."""
        found = np.asarray(numbers)
        if found.size and (found.min() < 0 or found.max() >= self.bins):
            raise ValueError(
                f"bins are numbered 0 to {self.bins - 1}, found {found.min()} to {found.max()}"
            )
        # Digitised, the last number is decoded as the one before it, as OpenVLA does.
        inside = np.minimum(found, self.intervals - 1).astype(np.float64)
        low = np.array(self.low)
        high = np.array(self.high)
        return bin_centres(inside, low, high, self.intervals).astype(np.float32)

    def two_hot(self, actions: Tensor) -> Tensor:
        """(…, a) → (…, a, bins): the two bins whose middles a value lies between share it, so that
        `expectation` is the value.

        Beyond the outermost middles all of it is in the outermost bin, as where `encode` clips.
        """
        position = self._position(actions).clamp(0, self.intervals - 1)
        # At most the last but one, so that there is a bin above; its share is then 1.
        below = position.floor().clamp(max=self.intervals - 2)
        above = (position - below).unsqueeze(-1)  # (…, a, 1)
        shares = position.new_zeros(*position.shape, self.bins)
        shares.scatter_(-1, below.long().unsqueeze(-1), 1 - above)
        return shares.scatter_(-1, below.long().unsqueeze(-1) + 1, above)

    def gaussian(self, actions: Tensor, *, temperature: float) -> Tensor:
        """(…, a) → (…, a, bins): the softmax of −distance²/temperature, the distance to each bin's
        middle in bins."""
        numbers = torch.arange(self.intervals, device=actions.device)
        position = self._position(actions).clamp(0, self.intervals - 1)
        shares = (-((position.unsqueeze(-1) - numbers) ** 2) / _positive(temperature)).softmax(-1)
        # Digitised, the last number stands for one value only, and has no share.
        return torch.nn.functional.pad(shares, (0, self.bins - self.intervals))

    def expectation(self, probabilities: Tensor) -> Tensor:
        """(…, a, bins) → (…, a): the mean of the bins' middles."""
        low, high = self._ends(probabilities)
        numbers = torch.arange(self.bins).clamp(max=self.intervals - 1).to(probabilities)
        centres = bin_centres(numbers, low[:, None], high[:, None], self.intervals)  # (a, bins)
        return (probabilities * centres).sum(-1)

    def _position(self, actions: Tensor) -> Tensor:
        """Where values stand in the row of middles: 0 on the first, 1 on the second."""
        low, high = self._ends(actions)
        return (actions - low) / (high - low) * self.intervals - 0.5

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.low).to(like), torch.tensor(self.high).to(like)


@dataclass(frozen=True)
class Codebook:
    """A whole action ↔ the number of the nearest of n primitives; takes every action that `spec`
    accepts.

    Nearest: the gripper's side first, then the Euclidean distance of the other dimensions, each in
    half its range. Every primitive holds the gripper exactly open or exactly closed, so it is never
    rounded to the wrong side; how far open it is gets lost.
    """

    spec: ActionSpec
    primitives: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        spec = self.spec
        found = self.array
        if found.ndim != 2:
            raise ValueError("Codebook: there are no primitives")
        within(found, spec.names, spec.low, spec.high)
        if len(np.unique(found, axis=0)) != len(found):
            raise ValueError(
                f"Codebook: {len(found) - len(np.unique(found, axis=0))} of {len(found)} "
                "primitives are repeated"
            )
        for gripper in spec.grippers:
            ends = set(found[:, gripper].tolist())
            if ends != {spec.gripper_open, spec.gripper_closed}:
                raise ValueError(
                    f"Codebook: grippers of primitives are {sorted(ends)}, expected both of "
                    f"{spec.gripper_open:g} (open) and {spec.gripper_closed:g} (closed) and "
                    "nothing else"
                )

    @property
    def array(self) -> np.ndarray:
        """(n, a) float64."""
        return np.array(self.primitives, np.float64)

    @property
    def scale(self) -> tuple[float, ...]:
        """(a,): half the range of each dimension, the unit of distances."""
        halves = []
        for low, high in zip(self.spec.low, self.spec.high, strict=True):
            halves.append((high - low) / 2)
        return tuple(halves)

    def encode(self, actions: np.ndarray, *, clip: bool = False) -> np.ndarray:
        """(…, a) → (…) int64. Outside the spec's range: ValueError (see `within`), or with `clip`
        what its nearest end gets."""
        values = within(actions, self.spec.names, self.spec.low, self.spec.high, clip=clip)
        return squared_distances(values, self.array, self.spec.grippers, self.scale).argmin(-1)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """(…) int → (…, a) float32. Raises ValueError for a number that is no primitive's."""
        found = np.asarray(codes)
        if found.size and (found.min() < 0 or found.max() >= len(self.primitives)):
            raise ValueError(
                f"primitives are numbered 0 to {len(self.primitives) - 1}, found {found.min()} to "
                f"{found.max()}"
            )
        return self.array[found].astype(np.float32)

    def error(self, actions: np.ndarray, *, clip: bool = False) -> dict[str, Any]:
        """What is lost on the way there and back, see `codec_error`."""
        return codec_error(actions, self.decode(self.encode(actions, clip=clip)), self.spec)

    def soft(self, actions: Tensor, *, temperature: float) -> Tensor:
        """(…, a) → (…, n), see `soft_primitives`; distances are those of `encode`."""
        primitives = torch.from_numpy(self.array).to(actions)
        return soft_primitives(
            actions, primitives, self.spec.grippers, temperature=temperature, scale=self.scale
        )

    def expectation(self, probabilities: Tensor) -> Tensor:
        """(…, n) → (…, a): the mean primitive. The gripper's is between its ends where both sides
        are likely."""
        return probabilities @ torch.from_numpy(self.array).to(probabilities)

    @classmethod
    def axes(cls, spec: ActionSpec, steps: Sequence[float] = (1.0, 0.25)) -> Self:
        """Primitives that move one dimension each, either way, by each of `steps` (shares of its
        range from 0), with the gripper open and closed: 24 for three dimensions, a gripper and two
        steps, or for six, a gripper and one.

        None stands still: in closed loop an action that is rounded to rest stays at rest, and never
        arrives. Policies that carry out several actions between two looks want episodes of an
        expert that acted through the codebook (bench/codebook.py). Raises ValueError for absolute
        actions, where 0 is a place.
        """
        if spec.mode != "delta":
            raise ValueError(
                f"axes needs actions in which 0 is no motion: mode is {spec.mode!r}, expected "
                "'delta'; use fit"
            )
        moving = _moving(spec)
        still = []  # names of dimensions that could not move both ways
        for index in moving:
            if not spec.low[index] < 0 < spec.high[index]:
                still.append(spec.names[index])
        if still:
            raise ValueError(f"axes needs ranges with 0 inside; it is not in that of {still}")
        rows = []
        ends = (spec.gripper_open, spec.gripper_closed)
        for held in itertools.product(ends, repeat=len(spec.grippers)):
            for step in steps:
                for index in moving:
                    # Each way by its own end: ranges need not be the same on both sides of 0.
                    for end in (spec.low[index], spec.high[index]):
                        row = [0.0] * spec.dims
                        row[index] = step * end
                        for gripper, place in zip(spec.grippers, held, strict=True):
                            row[gripper] = place
                        rows.append(tuple(row))
        return cls(spec, tuple(rows))

    @classmethod
    def fit(cls, actions: np.ndarray, spec: ActionSpec, *, size: int = 24, seed: int = 0) -> Self:
        """k-means of `actions` (N, a) in the distance of `encode`, each side of the gripper by
        itself with its share of `size`.

        Closest on average, which is not best in closed loop (bench/codebook.py). Raises ValueError
        where a side has fewer different actions than its share of primitives.
        """
        values = within(actions, spec.names, spec.low, spec.high).reshape(-1, spec.dims)
        moving = _moving(spec)
        scale = np.array([(spec.high[index] - spec.low[index]) / 2 for index in moving])
        grippers = list(spec.grippers)
        # Lower end first, whichever of them is open.
        ends = np.array(sorted((spec.gripper_open, spec.gripper_closed)))
        upper = values[:, grippers] >= ends.mean()  # (N, grippers)
        # (2 ** grippers, grippers): two grippers have four sides between them, no gripper has one.
        sides = np.array(list(itertools.product((False, True), repeat=len(grippers))), bool)
        members = [(upper == side).all(1) for side in sides]  # of each side: (N,) bool
        counts = _shares(size, members)
        found: list[tuple[float, ...]] = []
        for side, mine, count in zip(sides, members, counts, strict=True):
            # In units of `scale`, so that k-means measures distance as `encode` does.
            row = np.zeros((count, spec.dims))
            row[:, moving] = _centres(values[mine][:, moving] / scale, count, seed) * scale
            row[:, grippers] = ends[side.astype(int)]
            found.extend(map(tuple, row.tolist()))
        return cls(spec, tuple(found))

    def to_json(self) -> dict[str, Any]:
        return {"spec": self.spec.to_json(), "primitives": list(map(list, self.primitives))}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(ActionSpec.from_json(value["spec"]), tuple(map(tuple, value["primitives"])))


def _moving(spec: ActionSpec) -> list[int]:
    """The dimensions that are no gripper."""
    return [index for index in range(spec.dims) if index not in spec.grippers]


def _shares(size: int, members: Sequence[np.ndarray]) -> list[int]:
    """How many of `size` primitives each side gets, by how many actions lie there: one or more."""
    counts = []
    for mine in members[1:]:
        counts.append(max(1, round(size * mine.mean())))
    counts.insert(0, size - sum(counts))
    if counts[0] < 1:  # rounding gave all to the others
        counts[int(np.argmax(counts))] -= 1 - counts[0]
        counts[0] = 1
    return counts


def codec_error(actions: np.ndarray, decoded: np.ndarray, spec: ActionSpec) -> dict[str, Any]:
    """What a codec made of `actions` (…, a): mean, 95th percentile and largest error of every
    dimension, in its own units; of the hand's motion in metres, where the spec has dimensions that
    move it; and the share of grippers on the wrong side."""
    gap = (np.asarray(decoded, np.float64) - np.asarray(actions, np.float64)).reshape(-1, spec.dims)
    dimensions = {}
    for index, name in enumerate(spec.names):
        dimensions[name] = _summary(np.abs(gap[:, index]))
    found: dict[str, Any] = {"dimensions": dimensions}
    if spec.translation:
        found["metres"] = _summary(
            np.linalg.norm(gap[:, list(spec.translation)], axis=1) * spec.translation_scale
        )
    if spec.grippers:
        middle = (spec.gripper_open + spec.gripper_closed) / 2
        grippers = list(spec.grippers)
        meant = np.asarray(actions)[..., grippers] >= middle
        made = np.asarray(decoded)[..., grippers] >= middle
        found["grippers_flipped"] = float((meant != made).mean())
    return found


def _summary(errors: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(errors.mean()),
        "p95": float(np.quantile(errors, 0.95)),
        "max": float(errors.max()),
    }


def _centres(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(N, x) → (count, x), the best of a few starts of k-means."""
    from scipy.cluster.vq import kmeans2  # a quarter of a second, for what few recipes do

    different = len(np.unique(points, axis=0))
    if different < count:
        raise ValueError(
            f"{count} primitives are to be found among {different} different actions on one side "
            "of the gripper; bring more episodes, or lower size"
        )
    best = points[:count]
    least = np.inf
    rng = np.random.default_rng(seed)
    with warnings.catch_warnings():
        # scipy warns of an emptied cluster; it stays the action that it began as, a primitive like
        # any other.
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(3):
            centres, labels = kmeans2(points, count, iter=30, minit="++", seed=rng)
            spread = float(((points - centres[labels]) ** 2).sum())
            if spread < least:
                best = centres
                least = spread
    return best


def _positive(temperature: float) -> float:
    if not temperature > 0:
        raise ValueError(
            f"temperature is {temperature}, expected more than 0; the nearest alone is what "
            "encode gives"
        )
    return temperature
