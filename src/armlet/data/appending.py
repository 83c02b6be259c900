"""What an append adds to a LeRobotDataset v3.0 folder, prepared whole beside it and then moved in,
file by file.

A data set is many files, and no disk renames several at once. So all new files are written into
`.append/ready`, which appears whole; it is the decision, and whoever opens the data set to write
next carries out what a killed run left of it. A file that is still in there has not been moved, so
nothing is done twice, and what is moved is ours for certain. The order keeps every reader right:
videos, which nobody looks at before the list of episodes names them; then rows, tasks, that list,
statistics; and `meta/info.json`, which counts what there is. Before that rename the data set is
what it was (the list then has more episodes than are counted, and lerobot's reader more rows than
it uses); after it everything is there. Last comes the list of what all files are (`manifest`), which
is looked for here as well until then. Knows no episode's content.
"""

import errno
import filecmp
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from armlet.data.digests import cache_folder, digest_of, digests
from armlet.data.episodes import EpisodeError, Features
from armlet.data.files import atomic_file, make_durable, make_folder, read_json
from armlet.data.info import read_info
from armlet.data.layout import INFO, STATS, TASKS, info_json, task_texts
from armlet.data.manifest import MANIFEST, Manifest, listing
from armlet.data.opening import count_rows, open_parquet, read_table

APPEND = ".append"
READY = ".append/ready"
PLAN = "plan.json"
ARMLET = "meta/armlet.json"
LISTED = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
REPLACED = (TASKS, STATS, INFO, MANIFEST)  # all other files are new
# Of the list of episodes.
NEEDED = ("episode_index", "length", "data/chunk_index", "data/file_index")
FIX = "copy the data set again"
ELSEWHERE = "choose another folder"


@dataclass(frozen=True)
class Existing:
    """A finished data set: meta/info.json, the texts of its tasks by their numbers, the rows of its
    list of episodes, and its data files, relative to its folder, in order."""

    info: dict[str, Any]
    tasks: list[str]
    rows: list[dict[str, Any]]
    data: list[str]

    @property
    def frames(self) -> int:
        return _frames(self.rows)


def check_agrees(root: Path, features: Features, *, fps: int, robot: str) -> None:
    """Raises EpisodeError where a folder holds something to which armlet may not add such episodes;
    touches nothing."""
    # First, as what is damaged would be taken for episodes of another kind.
    Manifest.of(root).check_tables(keep=False)
    if root.exists() and not root.is_dir():
        raise EpisodeError(f"{root} is a file, expected a folder; {ELSEWHERE}")
    if not (root / INFO).exists():
        if not (root / ARMLET).exists():
            _refuse_others_files(root)
        return
    info = read_json(root / INFO, fix=FIX)
    wanted = info_json(features, fps, robot, episodes=0, frames=0, tasks=0)
    where = f"{root / INFO}: episodes cannot be added here"
    if info.get("codebase_version") != wanted["codebase_version"]:
        raise EpisodeError(
            f"{where}: codebase_version is {info.get('codebase_version')!r}, and armlet writes "
            f"{wanted['codebase_version']!r}; convert the data set with lerobot, or {ELSEWHERE}"
        )
    counts = ("total_episodes", "total_frames", "chunks_size")
    for name in counts:
        count = info.get(name)
        if not isinstance(count, int) or isinstance(count, bool) or count < (name == "chunks_size"):
            raise EpisodeError(f"{where}: {name} is {count!r}, expected a whole number; {FIX}")
    features_there = read_info(root)["features"]  # refuses by name what nobody could read
    differing = []
    for name in ("fps", "robot_type", "data_path", "video_path"):
        if info.get(name) != wanted[name]:
            differing.append(f"{name} is {info.get(name)!r} there and {wanted[name]!r} here")
    differing += _feature_differences(features_there, wanted["features"])
    if differing:
        raise EpisodeError(
            f"{where}: {'; '.join(differing)}. Data of two kinds are not mixed; {ELSEWHERE}"
        )
    if not (root / ARMLET).exists():
        raise EpisodeError(
            f"{where}: {ARMLET} is missing, so another program laid this data set out, and armlet "
            f"does not write into others' files; {ELSEWHERE}, and merge the two with lerobot"
        )
    if info.get("splits") != {"train": f"0:{info.get('total_episodes')}"}:
        raise EpisodeError(
            f"{where}: splits is {info.get('splits')!r}, which does not say to what new episodes "
            "belong; "
            f'write {{"train": "0:{info.get("total_episodes")}"}} there, or {ELSEWHERE}'
        )


def _refuse_others_files(root: Path) -> None:
    """Raises EpisodeError where a folder that armlet has not begun has files where ours would be;
    empty folders do no harm."""
    there = [name for name in ("meta", "data", "videos") if os.path.lexists(root / name)]
    for name in there:
        if next((root / name).rglob("*"), None) is not None:
            raise EpisodeError(
                f"{root} holds {', '.join(there)} and no {INFO}: this is no data set that "
                f"armlet laid out, and it is left as it is; {ELSEWHERE}"
            )


def _feature_differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    # What is missing on either side first: it explains most of what else differs.
    differing = []
    for name in found:
        if name not in wanted:
            differing.append(f"the data set has {name!r}, these episodes do not")
    for name in wanted:
        if name not in found:
            differing.append(f"these episodes have {name!r}, the data set does not")
    for name, feature in wanted.items():
        if name not in found:
            continue
        there = _described(found[name])
        here = _described(feature)
        if there != here:
            differing.append(f"{name!r} is {there} there and {here} here")
    return differing


def _described(feature: dict[str, Any]) -> str:
    """What must agree of a feature: not how its film was encoded, which may change."""
    names = f" {feature.get('names')}" if feature.get("names") is not None else ""
    return f"{feature.get('dtype')} {list(feature.get('shape') or [])}{names}"


def read_existing(root: Path, cameras: list[str]) -> Existing | None:
    """What stands in a folder that `check_agrees` has passed and in which no append is half done;
    None where nothing does.

    Raises EpisodeError where its parts contradict one another, so that adding to it would make that
    worse. `cameras`: the features that are videos.
    """
    listed = _numbered(root / "meta/episodes")
    data = [f"data/{path.parent.name}/{path.name}" for path in _numbered(root / "data")]
    if not (root / INFO).exists():
        left = [name for name in (TASKS, STATS) if (root / name).exists()]
        left += data
        left += map(str, listed)
        if left:
            raise EpisodeError(
                f"{root} has {left[0]} and no {INFO}: what a run of an older armlet left when it "
                f"was killed, or a copy that was cut short. Delete {', '.join(left)} to write the "
                "staged episodes anew"
            )
        return None
    info = read_json(root / INFO, fix=FIX)
    rows = _read_list(listed)
    numbers = [row["episode_index"] for row in rows]
    if numbers != list(range(info["total_episodes"])):
        raise EpisodeError(
            f"{root / 'meta/episodes'} lists {len(rows)} episodes, and {INFO} counts "
            f"{info['total_episodes']}, from 0 on; files that it does not count may be left of a "
            "run that was killed: move them away"
        )
    _refuse_stray(root, data, info["data_path"], rows)
    frames = sum(count_rows(root / name) for name in data)
    if frames != info["total_frames"] or _frames(rows) != frames:
        raise EpisodeError(
            f"{root}: the data files hold {frames} frames, {INFO} counts {info['total_frames']} "
            f"and the list of episodes {_frames(rows)}; {FIX}"
        )
    # The columns are the same in all rows, so the first one's are enough.
    for name in cameras:
        if rows and f"videos/{name}/file_index" not in rows[0]:
            raise EpisodeError(
                f"{root / 'meta/episodes'} does not say where the videos of {name!r} are; {FIX}"
            )
    return Existing(info, _tasks(root / TASKS), rows, data)


def _read_list(paths: list[Path]) -> list[dict[str, Any]]:
    """The rows of the list of episodes."""
    rows: list[dict[str, Any]] = []
    for path in paths:
        table = read_table(path)
        for name in NEEDED:
            if name not in table.column_names:
                raise EpisodeError(f"{path} lacks column {name!r}; {FIX}")
        rows += table.to_pylist()
    return rows


def _refuse_stray(root: Path, data: list[str], data_path: str, rows: list[dict[str, Any]]) -> None:
    """Raises EpisodeError where there is a file of rows that no episode is in: a reader that takes
    all files of the folder, as lerobot's, would find rows of nobody."""
    named = set()
    for row in rows:
        place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        named.add(data_path.format(**place))
    for name in data:
        if name not in named:
            raise EpisodeError(
                f"{root / name} belongs to no episode of the data set; move it away, then add to it"
            )


def _frames(rows: list[dict[str, Any]]) -> int:
    return sum(row["length"] for row in rows)


def _tasks(path: Path) -> list[str]:
    """The texts by their numbers, which must be 0, 1, 2 …: new ones are numbered after them."""
    texts = task_texts(path)
    if sorted(texts) != list(range(len(texts))):
        raise EpisodeError(
            f"{path}: the tasks are numbered {sorted(texts)}, expected 0 to {len(texts) - 1}; {FIX}"
        )
    return [text for _, text in sorted(texts.items())]


def _numbered(folder: Path) -> list[Path]:
    """The parquet files chunk-…/file-… of a folder in the order of their numbers."""
    return sorted(folder.glob("chunk-*/file-*.parquet"), key=_numbers)


def _numbers(path: Path) -> tuple[int, int]:
    # As numbers: file-1000 comes after file-999. (-1, -1): not called as ours are.
    found = re.fullmatch(r"chunk-(\d+)/file-(\d+)\..*", f"{path.parent.name}/{path.name}")
    return (int(found[1]), int(found[2])) if found else (-1, -1)


def next_place(folder: Path, chunks_size: int) -> dict[str, int]:
    """The numbers that the next file in `folder` takes: after those of every file that is there,
    whoever wrote it and whether anything refers to it."""
    chunk, file = max(map(_numbers, folder.glob("chunk-*/file-*")), default=(-1, -1))
    if chunk < 0:
        return {"chunk_index": 0, "file_index": 0}
    if file + 1 < chunks_size:
        return {"chunk_index": chunk, "file_index": file + 1}
    return {"chunk_index": chunk + 1, "file_index": 0}


def check_schema(root: Path, files: list[str], table: pa.Table) -> None:
    """Raises EpisodeError where the newest of the files has other columns than a table that is to
    stand beside it."""
    if not files:
        return
    with open_parquet(root / files[-1]) as file:
        there = _types(file.schema_arrow)
    here = _types(table.schema)
    # As pairs of name and type: what only one of the two has.
    differing = sorted(dict(there.items() ^ here.items()))
    if differing:
        raise EpisodeError(
            f"{root / files[-1]} has other columns than armlet writes ({', '.join(differing)}): "
            f"another program changed it, and nothing is added; {ELSEWHERE}"
        )


def _types(schema: pa.Schema) -> dict[str, str]:
    """Column → its type. What a list holds has another name in memory (item) than in a file
    (element)."""
    found = {}
    for field in schema:
        found[field.name] = str(field.type).replace("element: ", "item: ")
    return found


def list_files(root: Path, ready: Path) -> None:
    """Say in `ready` what all files of the data set will be. Of those that stay, what was said of
    them stays, so that damage is never taken for what was written; one of which nothing was said is
    taken as it is."""
    written = Manifest.of(root).written
    said = {}
    unsaid = []
    for path in _laid_out(root):
        name = path.relative_to(root).as_posix()
        if name in written:
            said[name] = written[name]
        elif not (ready / name).exists():
            unsaid.append(name)
    # Of older armlets' data sets; or accepted by hand, after a change on purpose.
    found = digests([root / name for name in unsaid], cache_folder(root))
    for name, digest in zip(unsaid, found, strict=True):
        said[name] = digest.hex()
    for path in _laid_out(ready):
        said[path.relative_to(ready).as_posix()] = digest_of(path).hex()
    (ready / MANIFEST).write_text(listing(said))


def _laid_out(root: Path) -> list[Path]:
    """The files of a data set, or of a part of one, but for the list of them."""
    names = [ARMLET, TASKS, STATS, INFO]
    found = [root / name for name in names if (root / name).exists()]
    for pattern in ("meta/episodes/*/*.parquet", "data/*/*.parquet", "videos/*/*/*.mp4"):
        found += root.glob(pattern)
    return found


def plan(root: Path, ready: Path, staged: list[str], files: list[str]) -> None:
    """Say in `ready`, which holds `files` by the names that they will have, what to move, in this
    order, and which staged episodes are done then."""
    # The hash says which data set this was prepared for: None where there was none yet.
    content = {"staged": staged, "files": files, "info": _hash(root / INFO)}
    (ready / PLAN).write_text(json.dumps(content))


def _hash(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def carry_out(root: Path, staging: Path) -> None:
    """Move in what was prepared, from the file on at which a killed run stopped; does nothing where
    nothing was.

    Raises EpisodeError where the data set was changed since by somebody else and a part is moved
    already.
    """
    ready = root / READY
    if not ready.exists():
        return
    decided = read_json(
        ready / PLAN, fix=f"move {ready} away, and see which of its files are missing"
    )
    left = []
    moved = []
    for name in decided["files"]:
        if (ready / name).exists():
            left.append(name)
        elif name not in REPLACED:
            moved.append(name)
    # INFO is moved last, so while it is left the one in the data set is still the one that was
    # there.
    if INFO in left and decided["info"] != _hash(root / INFO):
        if len(left) < len(decided["files"]):
            raise EpisodeError(
                f"{root / INFO} was changed while episodes were being added and the run was "
                f"killed. Move {', '.join(moved)} and {ready} away, then run the same command "
                "again: the episodes are still staged"
            )
        # Nothing of it is in the data set, which is another now: the staged episodes are laid out
        # anew.
        _remove(ready)
        return
    for name in left:
        _move(ready / name, root / name, replace=name in REPLACED)
    # Only now: until the last file is in its place the staged episodes could still be needed.
    for name in decided["staged"]:
        if (staging / name).exists():
            shutil.rmtree(staging / name)
    if staging.exists():
        make_durable(staging)  # else a power cut may bring half of one back, without the decision
    _remove(ready)


def _remove(ready: Path) -> None:
    # Renamed first, for a folder is not deleted at once, and half of it is no decision.
    gone = ready.with_name("done")
    if gone.exists():
        shutil.rmtree(gone, ignore_errors=True)
    ready.rename(gone)
    make_durable(ready.parent)
    shutil.rmtree(gone, ignore_errors=True)


def _move(source: Path, target: Path, *, replace: bool) -> None:
    make_folder(target.parent)
    if not replace and os.path.lexists(target):
        # Not shallow: two files of one size and time would count as the same unread.
        if not (target.is_file() and filecmp.cmp(source, target, shallow=False)):
            raise EpisodeError(
                f"{target} is there, and was not when this file was prepared: another program "
                "writes here too. It is left as it is; move it away and run the same command again"
            )
        source.unlink()  # copied from another disk, and killed before it was removed here
        return
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # The folder is a link to another disk.
        with atomic_file(target, size=source.stat().st_size) as part:
            shutil.copyfile(source, part)
        source.unlink()
        return
    make_durable(target.parent)
