"""Which row of which file is frame f of episode e: rows found by their own keys, never by where
they stand.

Knows the key columns of a LeRobotDataset; knows no other column, and no picture.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from armlet.data.layout import StoredEpisode
from armlet.data.opening import EpisodeError, read_present, read_table
from armlet.data.values import Place, flatten

EPISODE = "episode_index"
FRAME = "frame_index"
TIME = "timestamp"
TASK = "task_index"
# Rows this much faster or slower than fps are of another rate; less may be a robot's own clock.
OTHER_RATE = 0.05
UNEVEN_RATE = 0.01  # this much faster or slower is said on stderr


@dataclass(frozen=True)
class Rows:
    """N rows of E episodes, in order of episode and frame. `starts` (E + 1,): where each episode
    begins; `runs` (R,): where each stretch of rows begins that follow one another without a gap,
    episodes among them.

    Of each row (N,): `file`, into `files`, and `place` there; `episode`, its position among the
    episodes; `frame`, its frame_index; `time`, its second in the episode; `task`, its task_index,
    None where a file has none. `sizes`: how many rows each file has; `numbers` (E,): the episodes'
    own numbers.
    """

    files: tuple[str, ...]
    sizes: tuple[int, ...]
    numbers: np.ndarray
    starts: np.ndarray
    runs: np.ndarray
    file: np.ndarray
    place: np.ndarray
    episode: np.ndarray
    frame: np.ndarray
    time: np.ndarray
    task: np.ndarray | None

    @classmethod
    def of_whole_files(
        cls,
        files: Sequence[str],
        sizes: Sequence[int],
        lengths: Sequence[int],
        task: np.ndarray,
        hz: float,
        **more: Any,
    ) -> Self:
        """Rows of files that hold whole episodes, one after the other, of `lengths` rows at `hz`.
        `more`: what a kind of rows knows besides."""
        starts = np.cumsum([0, *lengths])
        frame = np.concatenate([np.arange(length) for length in lengths])
        return cls(
            files=tuple(files),
            sizes=tuple(sizes),
            numbers=np.arange(len(lengths)),
            starts=starts,
            runs=starts[:-1],
            file=np.repeat(np.arange(len(files)), sizes),
            place=np.concatenate([np.arange(size) for size in sizes]),
            episode=np.repeat(np.arange(len(lengths)), lengths),
            frame=frame,
            time=frame / hz,
            task=task,
            **more,
        )

    def __len__(self) -> int:
        return len(self.file)

    def place_of(self, row: int) -> str:
        """A row in words."""
        return f"episode {self.numbers[self.episode[row]]}, frame {self.frame[row]}"

    def place_in(self, number: int, place: int) -> str:
        """A row of file `number`, by its place there, in words."""
        row = int(self.of_file(number)[place])
        return f"row {place}, which is of no episode," if row < 0 else self.place_of(row)

    def file_of(self, row: int) -> str:
        return self.files[self.file[row]]

    @property
    def order(self) -> np.ndarray:
        """(N,) int64: where each row stands when all files are laid one after the other."""
        firsts = np.cumsum([0, *self.sizes[:-1]])
        return firsts[self.file] + self.place

    def of_file(self, number: int) -> np.ndarray:
        """The number of each row of a file among the N, in the order of the file; -1 where it is
        none of them."""
        found = np.full(self.sizes[number], -1, np.int64)
        mine = np.flatnonzero(self.file == number)
        found[self.place[mine]] = mine
        return found

    def columns(self, root: Path, names: Sequence[str]) -> Iterator[tuple[Path, pa.Table, Place]]:
        """Some columns, file by file, as they stand there, and what their rows are called. Raises
        EpisodeError where a file lacks one, or has other rows than when the data set was opened."""
        for number, (file, size) in enumerate(zip(self.files, self.sizes, strict=True)):
            table = read_table(root / file, names)
            if len(table) != size:
                raise EpisodeError(
                    f"{root / file} has changed since the data set was opened; open it again"
                )
            yield root / file, table, partial(self.place_in, number)


def read_rows(
    root: Path,
    files: Sequence[str],
    stored: Sequence[StoredEpisode],
    fps: float,
    *,
    file_per_episode: bool,
    has_videos: bool,
) -> Rows:
    """The rows of these episodes in these files.

    Rows of other episodes are left out, in one line on stderr. Raises EpisodeError naming file,
    episode and first frame where a row is there twice, is missing, or is one more than the metadata
    say, and where times are missing, NaN, do not increase, or run at another rate than `fps`. Where
    there are no videos (`has_videos`), times that all are the same are taken as not said. With
    `file_per_episode`, a file holds one episode (v2.x): one whose frames are numbered without a gap
    is then taken as it is, however many frames its metadata say it has, again with a word on
    stderr.
    """
    found = _read_keys(root, files, fps)
    # Episodes are numbered as they like, (E,), with gaps and in any order: each row's number is
    # looked up among the sorted ones.
    numbers = np.array([each.index for each in stored], np.int64)
    order = np.argsort(numbers, kind="stable")  # positions in order of their numbers
    at = np.searchsorted(numbers[order], found.episode).clip(max=len(order) - 1)
    known = numbers[order][at] == found.episode
    if not known.all():
        foreign = np.unique(found.episode[~known])
        shown = ", ".join(map(str, foreign[:5].tolist()))
        more = ", …" if len(foreign) > 5 else ""
        sys.stderr.write(
            f"{root}: {int((~known).sum())} rows belong to no episode that the metadata list "
            f"(episode_index {shown}{more}); they are left out\n"
        )
    found = replace(found, episode=order[at], numbers=numbers)
    chosen = np.flatnonzero(known)
    # lexsort sorts by its last key first: by episode, then by frame.
    chosen = chosen[np.lexsort((found.frame[chosen], found.episode[chosen]))]
    found = _taken(found, chosen)
    _refuse_twice(root, found)
    starts = np.searchsorted(found.episode, np.arange(len(stored) + 1))
    found = replace(found, starts=starts)
    _check_lengths(root, found, stored, file_per_episode=file_per_episode)
    # Films have clocks, so there the times must be right; pictures in tables need none.
    if not has_videos and _untimed(found):
        sys.stderr.write(
            f"{root}: {TIME} is the same in all rows; times are taken from {FRAME} and fps\n"
        )
        found = replace(found, time=found.frame / fps)
    _check_times(root, found)
    return replace(found, runs=_runs(root, found, fps))


def _read_keys(root: Path, files: Sequence[str], fps: float) -> Rows:
    """The key columns of all files, one after the other; `episode` is the number that a row has
    itself."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (EPISODE, FRAME, TIME, TASK)}
    sizes = []
    for name in files:
        path = root / name
        table = read_present(path, list(parts))  # those of them that the file has
        names = table.column_names
        missing = sorted({EPISODE, FRAME} - set(names))
        if missing:
            raise EpisodeError(
                f"{path} lacks column {missing[0]!r}, by which its rows are found; convert it "
                "with lerobot"
            )
        sizes.append(len(table))
        for key, part in parts.items():
            if key in names:
                part.append(_numbers(table.column(key), path, key))
        if TIME not in names:
            parts[TIME].append(parts[FRAME][-1] / fps)
    joined = {}
    for key, values in parts.items():
        # task_index may be in some files only; then it says nothing of all rows, and is left out.
        if len(values) == len(files):
            joined[key] = np.concatenate(values)
    return Rows(
        files=tuple(files),
        sizes=tuple(sizes),
        numbers=np.zeros(0, np.int64),
        starts=np.zeros(1, np.int64),
        runs=np.zeros(0, np.int64),
        file=np.repeat(np.arange(len(files)), sizes),
        place=np.concatenate([np.arange(size) for size in sizes]),
        episode=joined[EPISODE],
        frame=joined[FRAME],
        time=joined[TIME].astype(np.float64),
        task=joined.get(TASK),
    )


def _numbers(column: pa.ChunkedArray, path: Path, name: str) -> np.ndarray:
    """A key column as (n,) int64, or float64 where it holds seconds."""
    if not len(column):
        return np.zeros(0, np.int64)
    # A number a row may be kept as a list of one.
    values, _ = flatten(column, 1, f"{path}: {name}", "row {}".format)
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise EpisodeError(
            f"{path}: {name} is {column.type}, expected a number a row; convert it with lerobot"
        )
    if values.null_count:  # as numbers, arrow would make NaN of them
        row = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
        raise EpisodeError(f"{path}: {name} is empty in row {row}; write the file again")
    if name == TIME:
        return values.to_numpy(zero_copy_only=False).astype(np.float64)
    # pandas writes whole numbers as floating ones where a column was joined or had gaps.
    try:
        return pc.cast(values, pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise EpisodeError(
            f"{path}: {name} is not a whole number everywhere ({error}); write the file again"
        ) from error


def _taken(rows: Rows, chosen: np.ndarray) -> Rows:
    return replace(
        rows,
        file=rows.file[chosen],
        place=rows.place[chosen],
        episode=rows.episode[chosen],
        frame=rows.frame[chosen],
        time=rows.time[chosen],
        task=None if rows.task is None else rows.task[chosen],
    )


def _refuse_twice(root: Path, rows: Rows) -> None:
    # Rows are in order by now, so two of the same frame stand side by side.
    same = (np.diff(rows.episode) == 0) & (np.diff(rows.frame) == 0)
    if not same.any():
        return
    first = int(np.argmax(same))
    places = []
    for row in (first, first + 1):
        places.append(f"{root / rows.file_of(row)}, row {rows.place[row]}")
    raise EpisodeError(
        f"frame {rows.frame[first]} of episode {rows.numbers[rows.episode[first]]} is there "
        f"twice: {places[0]}, and {places[1]}; were files merged or appended without new numbers?"
    )


def _check_lengths(
    root: Path, rows: Rows, stored: Sequence[StoredEpisode], *, file_per_episode: bool
) -> None:
    """As many rows as the metadata promise, episode by episode."""
    counts = np.diff(rows.starts).tolist()
    for position, (each, count) in enumerate(zip(stored, counts, strict=True)):
        if count == 0:
            where = f"{root / each.data} has" if each.data else f"the files in {root / 'data'} have"
            raise EpisodeError(
                f"{where} no row of episode {each.index}, which the metadata list; copy the data "
                "set again"
            )
        if each.length is None or count == each.length:
            continue
        span = slice(rows.starts[position], rows.starts[position + 1])
        frames = rows.frame[span]
        path = root / rows.files[rows.file[rows.starts[position]]]
        whole = np.array_equal(frames, np.arange(count))
        # In a file of its own, more rows than promised can be nobody else's: the metadata were
        # written before the last of them. In a file of many, they may be the next episode's.
        if file_per_episode and whole and count > each.length:
            sys.stderr.write(
                f"{path} has {count} rows of episode {each.index} and the metadata say "
                f"{each.length}; the rows are taken\n"
            )
            continue
        if count < each.length:
            gaps = np.flatnonzero(frames != np.arange(count))
            first = int(gaps[0]) if len(gaps) else count
            what = f"frame {first} is the first that is missing"
        else:
            what = f"frame {frames[each.length]} is the first too many"
        raise EpisodeError(
            f"{path}: episode {each.index} has {count} rows and the metadata say {each.length}; "
            f"{what}. Convert the data set again, or put its metadata right"
        )


def _check_times(root: Path, rows: Rows) -> None:
    bad = ~np.isfinite(rows.time)
    inside = np.diff(rows.episode) == 0  # (N - 1,): whether a row and the next are of one episode
    # Not `<= 0`: a NaN among the two compares as false either way, and must count as bad.
    bad[1:] |= inside & ~(np.diff(rows.time) > 0)
    if not bad.any():
        return
    row = int(np.argmax(bad))
    before = f", after {rows.time[row - 1]:.6g}" if row > rows.starts[rows.episode[row]] else ""
    raise EpisodeError(
        f"{root / rows.file_of(row)}: {TIME} of {rows.place_of(row)} is "
        f"{rows.time[row]:.6g}{before}; expected seconds that increase from frame to frame. Write "
        "the times again"
    )


def _untimed(rows: Rows) -> bool:
    """Whether some converter wrote one number for all times, as where there were none."""
    inside = np.diff(rows.episode) == 0
    return bool(inside.any()) and not np.diff(rows.time)[inside].any()


def _runs(root: Path, rows: Rows, fps: float) -> np.ndarray:
    """Where each stretch of rows begins that follow one another at the rate `fps`, by their times
    and by their frame_index.

    A gap within an episode, as where rows without motion were dropped, is said on stderr: what was
    done there is not known, so no chunk of actions may run over it. Raises EpisodeError where the
    rows run at another rate.
    """
    # (N - 1,), of each row but the last: whether the next is of the same episode.
    inside = np.diff(rows.episode) == 0
    if not inside.any():
        return rows.starts[:-1]
    frames = np.diff(rows.frame)
    times = np.diff(rows.time)
    # Frames may be numbered by twos or tens, as where a recording was thinned out.
    least = int(frames[inside].min())
    step = _usual(times[inside & (frames == least)])  # seconds
    unit = least
    if least > 1 and abs(step * fps - least) <= OTHER_RATE * least:
        # Thinned out, and the times still say so: of the rows at fps no two follow one another.
        unit = 1
    elif abs(step * fps - 1) > OTHER_RATE:
        first = int(np.argmax(inside & (frames == least)))
        raise EpisodeError(
            f"{root / rows.file_of(first)}: rows are {step:.4g} s apart by their {TIME}, which "
            f"are {1 / step:.4g} a second (first from {rows.place_of(first)} on), and "
            f"meta/info.json says fps {fps:g}; write the right fps there, or the times again, in "
            "seconds"
        )
    elif abs(step * fps - 1) > UNEVEN_RATE:
        sys.stderr.write(
            f"{root}: rows are {1 / step:.4g} a second by their {TIME}, and meta/info.json says "
            f"fps {fps:g}; they are taken as of that rate\n"
        )
    # Half a step late is still the next row; a clock that jitters more has lost one.
    gap = inside & ((frames != unit) | (times > 1.5 * step * unit / least))
    if gap.any():
        first = int(np.argmax(gap))
        doubt = ""
        if gap.sum() == inside.sum():
            doubt = ": no two rows follow one another. Is fps that of the rows?"
        sys.stderr.write(
            f"{root}: {int(gap.sum())} gaps within episodes, the first after "
            f"{rows.place_of(first)}, {times[first]:.3g} s long where {1 / fps:.3g} s is a step; "
            f"no chunk of actions runs over them{doubt}\n"
        )
    return np.union1d(rows.starts[:-1], np.flatnonzero(gap) + 1)


def _usual(steps: np.ndarray) -> float:
    """The mean of those near the median: a few gaps do not count, and rounded times, such as 0.03,
    0.07, 0.1, average out."""
    median = np.median(steps)
    return float(steps[np.abs(steps - median) <= 0.5 * median].mean())
