"""How far chunks of actions lie from those that an expert carried out: pure functions of arrays.

Errors are absolute differences in the robot's own units, one number a dimension. A chunk's step is
counted only where the episode has an action for it: not past its end, and not past a gap in it.
Angles are not wrapped: an error of a full turn is counted as one, so a robot whose angles pass ±π
should say them otherwise. Intervals are about other episodes of the same kind.

Letters as in `armlet/types.py`; n moments of E episodes. Knows no policy, no picture and no file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

THIRDS = ("first third", "middle third", "last third")
# The baselines: predictors that see neither picture nor instruction (`baselines` says how each is
# made). A policy that is not better than these has learnt nothing that it was shown.
REPEAT = "repeat previous"
MEAN = "mean action"
CHUNK = "mean chunk"
EPISODE = "mean episode"


@dataclass(frozen=True)
class Recording:
    """The numbers of a data set: its N rows in order, of E episodes."""

    actions: np.ndarray  # (N, a) what the expert commanded
    executed: np.ndarray  # (N, a) what was carried out before the next row; `actions` if not known
    starts: np.ndarray  # (E + 1,) first row of each episode, then N
    runs: np.ndarray  # (R,) first row of each stretch without a gap, those of episodes among them

    @property
    def ends(self) -> np.ndarray:
        """(N,): of each row, where its stretch without a gap ends."""
        stops = np.append(self.runs[1:], len(self.actions))
        return np.repeat(stops, stops - self.runs)

    @property
    def begins(self) -> np.ndarray:
        """(N,): of each row, where its stretch without a gap begins."""
        stops = np.append(self.runs[1:], len(self.actions))
        return np.repeat(self.runs, stops - self.runs)

    def rows_of(self, episodes: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n,): the rows of some episodes, in order."""
        # Of no episodes too: concatenate refuses an empty list.
        parts = [np.zeros(0, np.int64)]
        for each in episodes:
            parts.append(np.arange(self.starts[each], self.starts[each + 1]))
        return np.concatenate(parts)


@dataclass(frozen=True)
class Moments:
    """The n moments at which policies are asked, and what the expert did from there on. `previous`
    is what had just been carried out; where nothing had (`known` False), it is zeros, as a policy
    is told at an episode's start."""

    rows: np.ndarray  # (n,) int64, of the data set
    episode: np.ndarray  # (n,) int64, the number of its episode
    step: np.ndarray  # (n,) int64, rows since the episode's start
    length: np.ndarray  # (n,) int64, rows of the episode
    actions: np.ndarray  # (n, k, a) float64; zeros where not valid
    valid: np.ndarray  # (n, k) bool
    previous: np.ndarray  # (n, a) float64
    known: np.ndarray  # (n,) bool

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Estimate:
    """A mean over moments, with its 95 % interval; None of fewer than two episodes."""

    mean: float
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class Agreement:
    """One gripper: how often a policy commands the side (open or closed) that the expert did.
    `at_changes`: of the `changes` steps only in which the expert's side is not that of the last
    action carried out; whoever repeats what the gripper does already has 0 there. None of none."""

    name: str
    agreement: float
    at_changes: float | None
    changes: int


def choose_rows(
    recording: Recording, episodes: Sequence[int] | np.ndarray, most: int
) -> np.ndarray:
    """(n,) at most `most` rows of these episodes, evenly over all of them; all where they are no
    more."""
    rows = recording.rows_of(episodes)
    if len(rows) <= most:
        return rows
    # The middles of `most` equal stretches: neither all first frames nor all last ones.
    places = (np.arange(most) + 0.5) * len(rows) / most
    return rows[places.astype(np.int64)]


def moments_at(recording: Recording, rows: np.ndarray, chunk: int) -> Moments:
    """What an expert did from each of `rows` (n,) on, in chunks of `chunk` steps."""
    episode = np.searchsorted(recording.starts, rows, side="right") - 1
    wanted = rows[:, None] + np.arange(chunk)
    valid = wanted < recording.ends[rows][:, None]
    # Steps past the data set's end read its last row, and are zeroed with all that is not valid.
    last = len(recording.actions) - 1
    actions = recording.actions[np.minimum(wanted, last)].astype(np.float64)
    actions[~valid] = 0
    known = ~np.isin(rows, recording.runs)
    previous = recording.executed[np.maximum(rows - 1, 0)].astype(np.float64)
    previous[~known] = 0
    begins = recording.starts[episode]
    lengths = recording.starts[episode + 1] - begins
    return Moments(rows, episode, rows - begins, lengths, actions, valid, previous, known)


def thirds(moments: Moments) -> np.ndarray:
    """(n,) int64: in which third of its episode each moment lies, 0, 1 or 2."""
    return 3 * moments.step // moments.length


def baselines(
    recording: Recording, shown: Sequence[int] | np.ndarray, moments: Moments
) -> dict[str, np.ndarray]:
    """What needs no policy: name → chunks (n, k, a) that are said without looking at a picture.

    Means are of the episodes `shown`, never of those that are compared with. `repeat previous` says
    the last action again, and the mean action where there was none; `mean chunk` the mean of each
    step of a chunk; `mean episode` the mean of all episodes at the same step after their start, an
    average replayed blindly, and after the longest of them the mean action.
    """
    rows = recording.rows_of(shown)
    if not len(rows):
        raise ValueError("no episode is left from which the mean action could be taken")
    chunk = moments.valid.shape[1]
    actions = recording.actions.astype(np.float64)
    mean = actions[rows].mean(0)

    by_step = np.tile(mean, (chunk, 1))  # (k, a); steps that no episode reaches keep the mean
    for step in range(chunk):
        there = rows[rows + step < recording.ends[rows]] + step
        if len(there):
            by_step[step] = actions[there].mean(0)

    begun = np.searchsorted(recording.starts, rows, side="right") - 1  # each row's episode
    place = rows - recording.starts[begun]  # each row's step in it
    # A chunk asked for at a held-out episode's last step may end past the longest one shown.
    longest = int(max(place.max(), moments.step.max() + chunk)) + 1
    count = np.bincount(place, minlength=longest)
    course = np.tile(mean, (longest, 1))  # (longest, a)
    for index in range(actions.shape[1]):
        total = np.bincount(place, weights=actions[rows, index], minlength=longest)
        course[count > 0, index] = total[count > 0] / count[count > 0]

    whole = (len(moments), chunk, actions.shape[1])
    before = np.where(moments.known[:, None], moments.previous, mean)
    return {
        REPEAT: np.broadcast_to(before[:, None], whole),
        MEAN: np.broadcast_to(mean, whole),
        CHUNK: np.broadcast_to(by_step, whole),
        EPISODE: course[moments.step[:, None] + np.arange(chunk)],
    }


def absolute(answers: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """|answers − wanted|, both (n, k, a). Raises ValueError where shapes differ, or an answer is NaN
    or infinite."""
    if answers.shape != wanted.shape:
        raise ValueError(f"chunks have shape {answers.shape}, expected {wanted.shape}")
    bad = np.argwhere(~np.isfinite(answers))
    if len(bad):
        moment, step, dimension = map(int, bad[0])
        raise ValueError(
            f"NaN or infinite in dimension {dimension} of step {step} of the chunk, "
            f"at moment {moment}"
        )
    return np.abs(answers.astype(np.float64) - wanted)


def by_dimension(errors: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(a,): the mean of `errors` (n, k, a) over what is `valid` (n, k); NaN where nothing is."""
    if not valid.any():
        return np.full(errors.shape[-1], np.nan)
    return errors[valid].mean(0)


def by_step(errors: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(k, a): the same of every step of the chunk on its own."""
    found = []
    for step in range(errors.shape[1]):
        # [step] and not step: the axis of the chunk stays, as by_dimension expects.
        found.append(by_dimension(errors[:, [step]], valid[:, [step]]))
    return np.stack(found)


def by_group(
    errors: np.ndarray, valid: np.ndarray, names: Sequence[str], groups: np.ndarray
) -> dict[str, np.ndarray]:
    """Name → (a,): the same of the moments of every group; `groups` (n,) are numbers of names.
    Groups in which no moment lies are left out."""
    found: dict[str, np.ndarray] = {}
    for number, name in enumerate(names):
        mine = groups == number
        if valid[mine].any():
            found[name] = by_dimension(errors[mine], valid[mine])
    return found


def share(errors: np.ndarray, scale: np.ndarray, dims: Sequence[int]) -> np.ndarray:
    """(n, k): errors without units. Each dimension's is divided by its `scale` (a,), then the mean
    over `dims` is taken."""
    chosen = list(dims)
    return (errors[..., chosen] / scale[chosen]).mean(-1)


def over_episodes(values: np.ndarray, valid: np.ndarray, episode: np.ndarray) -> Estimate:
    """The mean of `values` (n, k) over what is valid (n, k), and how well it is known: another
    sample would have other episodes, and what lies in one episode hangs together.

    The mean is a ratio, Σ sums / Σ counts over episodes, so its variance is that of the residuals
    sum − mean · count (the linearised ratio estimator; Cochran 1977, Sampling Techniques, 6.3), and
    Student's t has one degree less than there are episodes. With as many values in each it is the t
    interval of their means. None where fewer than two episodes have a value.
    """
    if not valid.any():
        return Estimate(float("nan"), None)
    _, number = np.unique(episode, return_inverse=True)
    sums = np.bincount(number, weights=np.where(valid, values, 0).sum(1))
    counts = np.bincount(number, weights=valid.sum(1))
    has_value = counts > 0
    sums = sums[has_value]
    counts = counts[has_value]
    mean = float(sums.sum() / counts.sum())
    episodes = len(sums)
    if episodes < 2:
        return Estimate(mean, None)
    residuals = sums - mean * counts
    variance = episodes / (episodes - 1) * float((residuals**2).sum()) / float(counts.sum()) ** 2
    half = float(scipy.stats.t.ppf(0.975, episodes - 1)) * variance**0.5
    return Estimate(mean, (mean - half, mean + half))


def gripper_agreement(
    answers: np.ndarray, moments: Moments, grippers: Mapping[int, str], ends: tuple[float, float]
) -> tuple[Agreement, ...]:
    """One entry a gripper, `grippers` dimension → name, whose (open, closed) are `ends`; over the
    steps of the chunk that are valid. Sides are told apart in the middle between the ends."""
    opened, closed = ends
    middle = (opened + closed) / 2
    found = []
    for index, name in grippers.items():
        # All (n, k). "Greater" may be open or closed: only that two sides are the same counts.
        same = (answers[..., index] > middle) == (moments.actions[..., index] > middle)
        before = (moments.previous[:, [index]] > middle) & moments.known[:, None]
        turned = (moments.actions[..., index] > middle) != before
        # Where nothing is known of before, a command is no change.
        turned &= moments.valid & moments.known[:, None]
        changes = int(turned.sum())
        agreed = float(same[moments.valid].mean())
        agreed_at_changes = float(same[turned].mean()) if changes else None
        found.append(Agreement(name, agreed, agreed_at_changes, changes))
    return tuple(found)
