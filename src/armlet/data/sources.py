"""Where the pictures of rows are, and how they are had: in films, by the films' own clocks, or in
the tables, or in files beside them.

Knows rows and features by their keys; knows no camera's name, and checks no size.
"""

import io
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from armlet.data.layout import StoredEpisode
from armlet.data.manifest import Manifest
from armlet.data.opening import BROKEN, EpisodeError, checked, open_parquet
from armlet.data.rows import Rows
from armlet.data.video import Film, VideoError

# Row groups of pictures that are kept: one, and the next where threads have gone on to it.
GROUPS = 2


@dataclass(frozen=True)
class PictureSources:
    """The picture features of the data set at `root`; several threads may read. Films whose clocks
    were read are remembered."""

    root: Path
    rows: Rows
    stored: Sequence[StoredEpisode]
    features: dict[str, dict[str, Any]]
    # None: of another layout, whose films nobody listed.
    manifest: Manifest | None = None
    _films: dict[str, Film] = field(default_factory=dict)
    # Those used last, at the end.
    _groups: dict[tuple[Path, int, str], pa.ChunkedArray] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def pictures(self, key: str, wanted: np.ndarray) -> Iterator[np.ndarray]:
        """Pictures (h, w, 3) uint8 of the rows `wanted` (n,), in their order; those that increase
        are had fastest."""
        if self.features[key]["dtype"] == "video":
            return self.video_frames(key, wanted, pixels="rgb24")
        return self._table_pictures(key, wanted)

    def video_frames(
        self, key: str, wanted: np.ndarray, *, pixels: str | None
    ) -> Iterator[np.ndarray]:
        """Frames of the films of a feature, as arrays of the pixel format `pixels` (None: the
        film's own); each film is opened once for the rows that follow one another in it."""
        # `clip_of` (n,): which of the few episodes each row belongs to, and so which clip.
        episodes, clip_of = np.unique(self.rows.episode[wanted], return_inverse=True)
        clips = [self.stored[number].videos[key] for number in episodes.tolist()]
        begins = np.array([clip.begins for clip in clips])
        ends = np.array([np.inf if clip.ends is None else clip.ends for clip in clips])
        # Not sorted first: the pictures are wanted in this order, and a film is opened again where
        # it comes up again.
        for name, run in groupby(range(len(wanted)), key=lambda index: clips[clip_of[index]].file):
            indices = np.array(list(run))
            rows = wanted[indices]
            clip = clip_of[indices]
            film = self._film(name)
            # A row's time counts from its episode's start, the film's clock from the film's.
            frames, near = film.nearest(
                begins[clip] + self.rows.time[rows], begins[clip], ends[clip]
            )
            if not near.all():
                first = int(np.argmin(near))
                row = int(rows[first])
                at = clip[first]
                raise VideoError(
                    f"no picture belongs to {self.rows.place_of(row)}, at "
                    f"{begins[at] + self.rows.time[row]:.6g} s of its film, where the episode "
                    f"lies from {begins[at]:.6g} s to {ends[at]:.6g} s: {film}. Is the film "
                    "truncated, or are the times others than the film's? Copy or record it again"
                )
            yield from film.frames(frames, pixels=pixels)

    def _film(self, name: str) -> Film:
        # Without the lock: two threads may read one clock twice, which is harmless.
        if name not in self._films:
            if self.manifest is not None:
                self.manifest.check([name])
            self._films[name] = Film(self.root / name)
        return self._films[name]

    def _table_pictures(self, key: str, wanted: np.ndarray) -> Iterator[np.ndarray]:
        """Pictures that the tables hold, a row group in memory at a time, and the last ones kept:
        those who read in parallel read near one another."""
        rows = self.rows
        for number, run in groupby(wanted.tolist(), key=lambda row: int(rows.file[row])):
            path = self.root / self.rows.files[number]
            with open_parquet(path) as parquet:
                if key not in parquet.schema_arrow.names:
                    raise EpisodeError(
                        f"{path} lacks column {key!r}, which meta/info.json promises"
                    )
                firsts = _first_rows(parquet)
                held = -1  # the group whose pictures are in `column`
                column = None
                for row in run:
                    place = int(rows.place[row])
                    group = int(np.searchsorted(firsts, place, "right")) - 1
                    if group != held:
                        held = group
                        column = self._group(parquet, group, key, path)
                    assert column is not None
                    where = f"{path}: {key} of {self.rows.place_of(row)}"
                    kept = column[place - int(firsts[group])].as_py()
                    yield _picture(kept, self.root, where)

    def _group(self, parquet: Any, group: int, key: str, path: Path) -> pa.ChunkedArray:
        with self._lock:  # read once, and not by every thread that wants a row of it
            # Taken out and put in again, so that it stands last: a dict keeps the order.
            kept = self._groups.pop((path, group, key), None)
            column = _group(parquet, group, key, path) if kept is None else kept
            self._groups[path, group, key] = column
            while len(self._groups) > GROUPS:
                del self._groups[next(iter(self._groups))]
            return column

    def picture_files(self, key: str) -> set[str]:
        """The names of picture files beside the tables."""
        found: set[str] = set()
        for name in self.rows.files:
            with open_parquet(self.root / name) as parquet:
                if key not in parquet.schema_arrow.names:
                    continue
                kind = parquet.schema_arrow.field(key).type
                if not pa.types.is_struct(kind):
                    # A column of texts holds paths; one of bytes or of lists, the pictures.
                    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
                        texts = parquet.read(columns=[key]).column(key)
                        found |= set(texts.drop_null().to_pylist())
                    continue
                # Where every row has its bytes, gigabytes need not be read to find no path.
                if not _without_bytes(parquet, f"{key}.bytes"):
                    continue
                for kept in parquet.read(columns=[key]).column(key).to_pylist():
                    if kept and not kept.get("bytes") and kept.get("path"):
                        found.add(kept["path"])
        return found


def _first_rows(parquet: Any) -> np.ndarray:
    """(groups + 1,): the row of the file at which each row group begins."""
    sizes = []
    for group in range(parquet.num_row_groups):
        sizes.append(parquet.metadata.row_group(group).num_rows)
    return np.cumsum([0, *sizes])


def _group(parquet: Any, group: int, key: str, path: Path) -> pa.ChunkedArray:
    try:
        return parquet.read_row_group(group, columns=[key]).column(key)
    except BROKEN as error:
        raise EpisodeError(
            f"{path}: {key} is damaged ({str(error)[:160]}); copy it again"
        ) from error


def _without_bytes(parquet: Any, leaf: str) -> bool:
    """Whether some row of the column `leaf` is null, or might be: only the statistics of the file
    are looked at."""
    for group in range(parquet.num_row_groups):
        for number in range(parquet.metadata.num_columns):
            column = parquet.metadata.row_group(group).column(number)
            if column.path_in_schema != leaf:
                continue
            # A writer need not keep statistics: then it is not known, and so it might be.
            if column.statistics is None or column.statistics.null_count is None:
                return True
            if column.statistics.null_count > 0:
                return True
    return False


def _picture(kept: Any, root: Path, where: str) -> np.ndarray:
    """A picture as the `datasets` library keeps one: its bytes, or the path of a file; or its
    pixels, in lists. (h, w, 3) uint8, grey and palettes as colours, without what is transparent."""
    # Not every converter writes the library's {"bytes", "path"}.
    if isinstance(kept, bytes):
        kept = {"bytes": kept}
    elif isinstance(kept, str):
        kept = {"path": kept}
    elif isinstance(kept, list):
        return _pixels(kept, where)
    if not kept:
        raise EpisodeError(f"{where} is empty; write the pictures again")
    if not isinstance(kept, dict):
        raise EpisodeError(
            f"{where} is {type(kept).__name__}, expected a picture's bytes or path; write the "
            "pictures again"
        )
    if not (kept.get("bytes") or kept.get("path")):
        raise EpisodeError(f"{where} is empty; write the pictures again")
    source = io.BytesIO(kept["bytes"]) if kept.get("bytes") else checked(root / kept["path"])
    try:
        with Image.open(source) as image:
            # Pillow would cut 16 bits at 255 without a word: a white picture.
            if image.mode.startswith(("I", "F")):
                raise EpisodeError(
                    f"{where} has pixels of mode {image.mode}, more than 8 bits: no colours. Is "
                    "it a depth camera?"
                )
            return np.asarray(image.convert("RGB"))
    # Pillow raises a SyntaxError for a broken PNG.
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise EpisodeError(
            f"{where} cannot be read as a picture ({error}); write it again"
        ) from error


def _pixels(kept: list[Any], where: str) -> np.ndarray:
    """A picture from lists of lists of whole numbers, 0 to 255, height first or channels first."""
    try:
        found = np.asarray(kept)
    except ValueError as error:
        raise EpisodeError(
            f"{where} holds lists of several lengths; write the pictures again"
        ) from error
    if found.ndim == 3 and found.shape[2] != 3 and found.shape[0] == 3:
        found = found.transpose(1, 2, 0)  # (3, h, w) → (h, w, 3)
    whole = found.dtype.kind in "iu" and found.size and found.min() >= 0 and found.max() <= 255
    if found.ndim != 3 or found.shape[2] != 3 or not whole:
        raise EpisodeError(
            f"{where} holds numbers {found.dtype} of shape {found.shape}, expected (height, "
            "width, 3) whole numbers from 0 to 255; write the pictures again"
        )
    return np.ascontiguousarray(found, np.uint8)
