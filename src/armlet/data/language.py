"""The language columns of a LeRobotDataset ("v3.1"): what was said about an episode, beside its
frames.

Found in huggingface/lerobot at 7427f318 (version 0.6.2): `src/lerobot/datasets/language.py` (the
schema), `src/lerobot/annotations/steerable_pipeline/writer.py` (who fills it),
`docs/source/language_and_recipes.mdx`, and pull requests #3467 and #3471, which brought them:

- two columns of `data/*/*.parquet`, each a list of rows: `language_persistent`, the same list on
  every frame of an episode, and `language_events`, only on the frame at which something happened;
- a row is a struct of role (never null), content, style, timestamp (float32 seconds into the
  episode; persistent rows only), camera, and tool_calls (a list of JSON); persistent styles are
  subtask, plan, memory, motion and task_aug, and what a row says holds from its timestamp, which is
  a frame's own, until the next row of that style; the camera is null for all of these;
- `meta/info.json` declares both as `{"dtype": "language", "shape": [1], "names": null}`, without
  which lerobot refuses to read them; its `codebase_version` stays "v3.0", although the
  documentation speaks of v3.1.

lerobot 0.4.4 does not know the type and cannot open a data set that declares it. This file knows no
annotator and no style's meaning.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from armlet.data.appending import APPEND
from armlet.data.digests import CACHE, digest_of
from armlet.data.episodes import EpisodeDataset, EpisodeError, is_demonstrations
from armlet.data.files import atomic_folder
from armlet.data.hub import refuse_writing
from armlet.data.layout import INFO
from armlet.data.manifest import FILMS, MANIFEST, Manifest, listing
from armlet.data.writer import STAGING
from armlet.progress import Progress

PERSISTENT = "language_persistent"
EVENTS = "language_events"
DECLARED = {"dtype": "language", "shape": [1], "names": None}
Remark = dict[str, Any]


def remark(style: str, content: str, time: float) -> Remark:
    """A persistent row: what holds from `time`, in seconds, on."""
    return {
        "role": "assistant",
        "content": content,
        "style": style,
        "timestamp": time,
        "camera": None,
        "tool_calls": None,
    }


def frame_times(data: EpisodeDataset) -> np.ndarray:
    """(N,) float32: the second of each frame in its episode, as the files have it."""
    return data.timestamps.astype(np.float32)


def read_persistent(data: EpisodeDataset) -> list[list[Remark]]:
    """The persistent rows of every episode, empty lists where the data set has no such column.
    Raises EpisodeError where it has one in some files only."""
    have = [PERSISTENT in pq.read_schema(data.root / name).names for name in data.data_files]
    found: list[list[Remark]] = [[] for _ in data.episodes]
    if not any(have):
        return found
    if not all(have):
        lacks = data.data_files[have.index(False)]
        raise EpisodeError(
            f"{data.root / lacks} lacks column {PERSISTENT!r}, which other files of the data set "
            "have; write it anew"
        )
    positions = {int(start): position for position, start in enumerate(data.starts[:-1])}
    for name in data.data_files:
        # Every row of an episode has the same list, so the first one's is enough: to turn all of
        # them into Python's lists would take minutes.
        rows = data.rows_of(name)
        firsts = np.flatnonzero(np.isin(rows, data.starts[:-1]))
        column = pq.read_table(data.root / name, columns=[PERSISTENT]).column(0)
        lists = column.take(pa.array(firsts, pa.int64())).to_pylist()
        for place, said in zip(firsts.tolist(), lists, strict=True):
            found[positions[int(rows[place])]] = said or []
    return found


def write_persistent(
    data: EpisodeDataset, target: Path | str, remarks: Sequence[Sequence[Remark]]
) -> EpisodeDataset:
    """A copy of a data set at `target` in which these are the persistent rows of every episode;
    rows of events stay as they are.

    The copy appears whole or not at all; videos are linked where the disk can, as nothing writes to
    them. Not done in place, because the fingerprint of the episodes would change, and with it every
    trace and label made from them would be stale. Add episodes first: `EpisodeWriter` declares no
    language. Raises EpisodeError where `target` exists.
    """
    target = Path(target)
    refuse_writing(target)
    if target.exists():
        raise EpisodeError(
            f"{target} exists already; choose another folder for the copy, or delete this one"
        )
    if is_demonstrations(data.root):
        raise EpisodeError(
            f"{data.root} is no LeRobotDataset, and has no place for language; convert it with lerobot"
        )
    if len(remarks) != len(data.episodes):
        raise EpisodeError(
            f"{data.root} has {len(data.episodes)} episodes, and there are remarks about "
            f"{len(remarks)}"
        )
    rewritten = set(map(data.root.joinpath, data.data_files))
    with atomic_folder(target) as part:
        for path in _files(data.root):
            inside = path.relative_to(data.root)
            if inside.parts[0] not in (CACHE, STAGING, APPEND) and path not in rewritten:
                _copy(path, part / inside, link=inside.parts[0] == "videos")
        _write_tables(data, part, remarks)
        info = json.loads((data.root / INFO).read_text())
        info["features"] |= {PERSISTENT: DECLARED, EVENTS: DECLARED}
        # Not written over: the copy of a file that is read-only is read-only, too.
        (part / INFO).unlink()
        (part / INFO).write_text(json.dumps(info, indent=1))
        _list_files(data, part)
    return EpisodeDataset(target)


def _list_files(data: EpisodeDataset, part: Path) -> None:
    """What is said of the files of a data set, for its copy. Tables are as they are there now: some
    were written anew, and the others were looked at when the data set was opened."""
    said = Manifest.of(data.root).written
    if not said:  # nothing is known of its films
        return
    for name in said:
        if not name.startswith(FILMS) and (part / name).is_file():
            said[name] = digest_of(part / name).hex()
    (part / MANIFEST).unlink()
    (part / MANIFEST).write_text(listing(said))


def _write_tables(data: EpisodeDataset, part: Path, remarks: Sequence[Sequence[Remark]]) -> None:
    progress = Progress(f"language of {data.root.name}", total=len(data.data_files), unit="file")
    for name in data.data_files:
        table = pq.read_table(data.root / name)
        rows = data.rows_of(name)
        # (n,): which episode each row of the file is of. Frames of none are what a killed run left
        # behind, number -1; nothing is said about them.
        episode = np.where(rows < 0, -1, np.searchsorted(data.starts, rows, "right") - 1)
        present, which = np.unique(episode, return_inverse=True)
        said: list[list[Remark]] = []
        for number in present.tolist():
            said.append(list(remarks[number]) if number >= 0 else [])
        # One list an episode, then repeated by Arrow for each of its rows.
        lists = pa.array(said, _rows_type(table, PERSISTENT, timed=True))
        columns = {PERSISTENT: lists.take(pa.array(which))}
        if EVENTS not in table.column_names:
            # meta/info.json declares both, so both must be there.
            events = _rows_type(table, EVENTS, timed=False)
            columns[EVENTS] = pa.array([[]] * len(table), events)
        for key, values in columns.items():
            if key in table.column_names:
                table = table.drop_columns([key])
            table = table.append_column(key, values)
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, part / name)
        progress.advance()
    progress.close()


def _rows_type(table: pa.Table, name: str, *, timed: bool) -> pa.DataType:
    """The type of a language column; tool calls keep the form in which a table has them already."""
    calls = pa.list_(pa.string())
    if name in table.column_names:
        row = table.schema.field(name).type.value_type
        kept = row.field("tool_calls").type
        # JSON, which is text underneath.
        plain = pa.types.is_list(kept) and isinstance(kept.value_type, pa.BaseExtensionType)
        calls = pa.list_(kept.value_type.storage_type) if plain else kept
    # In lerobot's order: fields of a struct are compared by their places.
    fields = [
        pa.field("role", pa.string(), nullable=False),
        pa.field("content", pa.string()),
        pa.field("style", pa.string()),
    ]
    if timed:
        fields.append(pa.field("timestamp", pa.float32(), nullable=False))
    fields.append(pa.field("camera", pa.string()))
    fields.append(pa.field("tool_calls", calls))
    return pa.list_(pa.struct(fields))


def _files(root: Path) -> list[Path]:
    """Every file of a folder, in folders that are links as well."""
    found: list[Path] = []
    for folder, _, names in os.walk(root, followlinks=True):
        found += map(Path(folder).joinpath, names)
    return sorted(found)


def _copy(source: Path, target: Path, *, link: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # The hub's cache holds relative links, which lead to its files from there only.
    real = source.resolve()
    if link:
        try:
            os.link(real, target)
        except OSError:  # another disk, or one that cannot link
            shutil.copy2(real, target)
    else:
        shutil.copy2(real, target)
