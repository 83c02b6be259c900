"""How attempts at episodes become a data set.

Workers write what they made themselves; a killed run goes on with the attempts that are missing. Of
an attempt that gave nothing to keep a mark is left, and it is not made again, nor are those that were
kept: a data set that is there stays as it is, whatever a newer armlet would do.
Where processes share the work, workers pack what they made, and one process lays all of it out.
Who acts is an argument (`actors`).
"""

import contextlib
import re
import sys
import tempfile
from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from armlet import source
from armlet.benchmarks import Benchmark
from armlet.data.appending import ARMLET, check_agrees
from armlet.data.digests import CACHE
from armlet.data.episodes import Features
from armlet.data.files import atomic_folder, hold, write_atomically
from armlet.data.layout import INFO
from armlet.data.packing import pack, unpack
from armlet.data.writer import STAGING, EpisodeWriter, stage_episode
from armlet.progress import Progress
from armlet.robot.description import FILE as ROBOT_FILE
from armlet.robot.description import recorded_toml
from armlet.rollout.actors import Acts
from armlet.rollout.pool import work_through
from armlet.rollout.together import SharedWork, Together, sharded

FAILED = "failed"  # the folder of marks
OLDER = re.compile(rf"{FAILED}-[0-9a-f]{{16}}")


def record(
    root: Path,
    benchmark: Benchmark,
    acts: Acts,
    *,
    episodes: int,
    workers: int,
    metadata: dict[str, Any],
    title: str,
    together: Together | None = None,
) -> Path:
    """Attempts 0 to `episodes` that are not in the data set at `root` yet, in `workers` processes;
    returns `root`. `together`: where other processes share the work; one of them lays the data set
    out."""
    marks = root / CACHE / FAILED
    if marks.is_file():
        raise ValueError(
            f"{marks} is a file, and the attempts that give nothing are marked in a folder of that "
            "name: move it away"
        )
    if together is not None:
        _share(root, benchmark, acts, together, episodes, workers, metadata=metadata, title=title)
        return root
    with hold(root / CACHE / "recording.lock", "recording episodes"):
        features = features_of(benchmark)
        hz = round(benchmark.action_spec.control_hz)  # a data set keeps a whole number
        writer = EpisodeWriter(root, features, fps=hz, robot=benchmark.name, metadata=metadata)
        describe_robot(root, benchmark)
        # By attempt and not by count: those that were not kept leave gaps.
        finished = {info["attempt"] for info in writer.finished()}
        marks.mkdir(exist_ok=True)
        failed = _marked(root) - finished
        missing = [n for n in range(episodes) if n not in finished and n not in failed]
        done = sum(n < episodes for n in finished | failed)
        _say_left_alone(root, failed, episodes, title)
        progress = Progress(title, total=episodes, start=done, unit="episode")
        kept = sum(n < episodes for n in finished)
        attempt_at = _Attempt(root, acts, features, hz, marks)
        # Never in this process: whoever acts must not draw from the random numbers of a training.
        for made in work_through(attempt_at, missing, workers=workers, here=False):
            kept += made  # True counts 1
            progress.advance(kept=kept / (progress.done + 1))
        progress.close()
        if episodes and not finished and not kept:
            raise ValueError(
                f"{title}: none of {episodes} attempts gave anything to keep, so there is no data set; "
                "look why the expert fails (a world's `expert_action`, its step limit), then delete "
                f"{root} and collect again"
            )
        writer.finalise()
    return root


def _folders_of_marks(root: Path) -> list[Path]:
    """Of failed attempts, those that are there. Older data sets have one for each state of the code."""
    cache = root / CACHE
    older = [each for each in sorted(cache.glob(f"{FAILED}-*")) if OLDER.fullmatch(each.name)]
    return [each for each in (cache / FAILED, *older) if each.is_dir()]


def _marked(root: Path) -> set[int]:
    """The attempts that are marked to have given nothing."""
    found = set()
    for folder in _folders_of_marks(root):
        found |= {int(mark.name) for mark in folder.iterdir() if mark.name.isdecimal()}
    return found


def _say_left_alone(root: Path, failed: Set[int], episodes: int, title: str) -> None:
    count = sum(n < episodes for n in failed)
    if count:
        folders = " and ".join(map(str, _folders_of_marks(root)))
        sys.stderr.write(
            f"{title}: {count} of {episodes} attempts gave nothing to keep when they were made, and are "
            f"not made again; delete {folders} to have them made by what is here now\n"
        )


def _share(
    root: Path,
    benchmark: Benchmark,
    acts: Acts,
    together: Together,
    episodes: int,
    workers: int,
    *,
    metadata: dict[str, Any],
    title: str,
) -> None:
    features = features_of(benchmark)
    hz = round(benchmark.action_spec.control_hz)

    def opened() -> EpisodeWriter:
        # Refuses, here and before the first episode, a folder of other episodes.
        writer = EpisodeWriter(root, features, fps=hz, robot=benchmark.name, metadata=metadata)
        describe_robot(root, benchmark)
        return writer

    question = {
        "made_from": metadata,
        "features": asdict(features),
        "episodes": episodes,
        "size": together.size,
        # Episodes of two states of the code are two kinds of episodes.
        "armlet": source.identity(),
        "numpy": np.__version__,
    }
    work = SharedWork(together, "attempts", question, sharded(range(episodes), together.size))
    if work.was_used:
        return
    check_agrees(root, features, fps=hz, robot=benchmark.name)
    lock = root / CACHE / "recording.lock"
    finished: frozenset[int] = frozenset()
    if (root / ARMLET).exists():
        with hold(lock, "recording episodes", wait=True):
            kept = {info["attempt"] for info in opened().finished()}
        failed = _marked(root) - kept
        _say_left_alone(root, failed, episodes, title)
        finished = frozenset(kept | failed)

    def lay_out() -> bytes:
        with hold(lock, "recording episodes", wait=True):
            writer = opened()
            have = {info["attempt"] for info in writer.finished()}
            marks = root / CACHE / FAILED
            marks.mkdir(exist_ok=True)
            for content in work.results():
                for attempt in _stage(writer, content, have):
                    (marks / str(attempt)).touch()
            writer.finalise()
        return b""

    acting = _Packed(acts, features, hz, finished)
    # Never in this process: see `record`.
    work.run(acting, workers=workers, title=title, here=False)
    together.once("laid-out", question, lay_out)
    work.end()
    if not (root / INFO).exists():
        sys.stderr.write(f"{title}: laid out by a process that has another disk, not in {root}\n")


@dataclass(frozen=True)
class _Packed:
    """What a worker makes of a shard: the episodes of its attempts that are kept, packed. Those
    that this machine's data set has already (`finished`) are not made again."""

    acts: Acts
    features: Features
    hz: int
    finished: frozenset[int]

    def __call__(self, shard: Sequence[int]) -> bytes:
        files = {}
        with tempfile.TemporaryDirectory() as folder:
            make = _Attempt(Path(folder), self.acts, self.features, self.hz)
            for attempt in shard:
                if attempt not in self.finished and not make(attempt):
                    files[f"{attempt}/{FAILED}"] = b""  # whoever lays it out marks it
            staging = Path(folder, STAGING)
            for path in staging.rglob("*"):
                if path.is_file():
                    files[path.relative_to(staging).as_posix()] = path.read_bytes()
        return pack(files)


def _stage(writer: EpisodeWriter, content: bytes, have: Set[int]) -> set[int]:
    """The episodes of a shard into the data set's staging, but for attempts that it has; returns
    which attempts gave nothing. Raises ValueError where there is anything else in it."""
    episodes: dict[str, dict[str, bytes]] = {}
    for name, file in unpack(content).items():
        number, _, inside = name.partition("/")
        if not number.isdigit() or not inside or "/" in inside:
            raise ValueError(f"a shard of episodes has a file {name!r}, expected NUMBER/FILE")
        episodes.setdefault(number, {})[inside] = file
    failed = set()
    for number, files in episodes.items():
        if FAILED in files:
            failed.add(int(number))
        if FAILED in files or int(number) in have:
            continue
        with atomic_folder(writer.root / STAGING / number) as part:
            for inside, file in files.items():
                (part / inside).write_bytes(file)
    return failed


def acted_on(device: str) -> dict[str, str]:
    """What a data set says of the device that its policies acted on. One that says nothing was
    made on the CPU: so were all before this was said, and they can be added to."""
    return {} if device == "cpu" else {"device": device}


def describe_robot(root: Path, benchmark: Benchmark) -> None:
    """Write what robot the episodes at `root` are of beside them, as `robot.toml`."""
    path = root / ROBOT_FILE
    if path.exists():  # it may have been corrected by hand
        return
    described = recorded_toml(benchmark.action_spec, benchmark.state_names)
    write_atomically(path, described.encode())


@dataclass(frozen=True)
class _Attempt:
    """One attempt, in a worker process; True where there is something to keep and it was
    written. `marks`: the folder where a failure is marked."""

    root: Path
    acts: Acts
    features: Features
    hz: int
    marks: Path | None = None

    def __call__(self, attempt: int) -> bool:
        episode = self.acts(attempt)
        if episode is None:
            if self.marks is not None:
                (self.marks / str(attempt)).touch()
            return False
        stage_episode(self.root, attempt, episode, self.features, fps=self.hz)
        return True


def features_of(benchmark: Benchmark) -> Features:
    """What a frame of this benchmark's episodes holds."""
    names = benchmark.action_spec.names
    extra = {"executed": len(names)}
    # Facts have the same names and sizes in all of a benchmark's tasks.
    with contextlib.closing(benchmark.make(benchmark.tasks()[0], 0)) as world:
        for name, values in world.privileged().items():
            extra[f"privileged.{name}"] = len(values)
    return Features(benchmark.state_names, names, benchmark.camera_sizes, extra)
