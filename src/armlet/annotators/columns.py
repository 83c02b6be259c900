"""Labels ↔ the language columns of a LeRobotDataset (`armlet.data.language` says what these are).

Of every stretch in which nothing changes, two rows hold from its first frame on: a `subtask`, whose
content is the description, which is what lerobot's own recipes train on; and a `motion`, whose
content is phase, direction and element in this order with commas between them, `operating, pull,
red drawer`. A motion in these words is how our rows are told from those of others. lerobot takes a
row as true until the next one of its style, whoever wrote it, so two producers of subtasks or
motions cannot share a data set; rows of all other styles, and events, are left as they are.
"""

from pathlib import Path

import numpy as np

from armlet.annotators import DIRECTIONS, PHASES, LabelError, Labels, describe
from armlet.data.episodes import EpisodeDataset
from armlet.data.language import Remark, frame_times, read_persistent, remark, write_persistent

SUBTASK = "subtask"
MOTION = "motion"


def write_language(
    data: EpisodeDataset, labels: Labels, target: Path | str, *, replace: bool = False
) -> EpisodeDataset:
    """A copy of a data set at `target`, with labels of its N frames as language. Labels that it has
    of ours are replaced.

    Raises LabelError where labels and frames differ in number, or somebody else's subtasks or
    motions stand there, unless `replace` says to drop these.
    """
    if len(labels) != len(data):
        raise LabelError(
            f"{data.root} has {len(data)} frames, and there are labels of {len(labels)}"
        )
    times = frame_times(data)
    remarks = []
    for number, there in enumerate(read_persistent(data)):
        ours = _ours(there)
        rows = []
        clashing = []
        for row in there:
            if row in ours:  # written anew below: labels may have changed
                continue
            # lerobot cannot tell two producers' rows of one style apart.
            if row["style"] in (SUBTASK, MOTION):
                clashing.append(row)
            else:
                rows.append(row)
        if clashing and not replace:
            raise LabelError(
                f"{data.root}: somebody else wrote the {clashing[0]['style']} "
                f"{clashing[0]['content']!r} of episode {number}, and only one producer's can "
                "hold at a time; say replace=True to drop theirs"
            )
        start = data.starts[number]
        stop = data.starts[number + 1]
        rows += _remarks(labels.part(start, stop), times[start:stop])
        remarks.append(sorted(rows, key=_by_time))
    return write_persistent(data, target, remarks)


def read_language(data: EpisodeDataset) -> Labels:
    """Labels of all N frames, from rows that `write_language` wrote, or that say the same in the
    same way. Raises LabelError naming an episode without."""
    times = frame_times(data)
    frames = []
    for number, there in enumerate(read_persistent(data)):
        start = data.starts[number]
        stop = data.starts[number + 1]
        frames += _words(there, times[start:stop], f"{data.root}, episode {number}")
    # From a row a frame to a column a field.
    phases, directions, elements, descriptions = zip(*frames, strict=True)
    return Labels.named(phases, directions, elements, descriptions)


def _by_time(row: Remark) -> tuple[float, str, str]:
    """By time as lerobot expects them, then so that the same labels make the same bytes."""
    return row["timestamp"], row["style"] or "", row["role"]


def _remarks(labels: Labels, times: np.ndarray) -> list[Remark]:
    rows = []
    # The pair only where something changes: lerobot takes a row as true until the next of its
    # style.
    for first, _ in labels.segments():
        *named, description = labels.words(first)
        time = float(times[first])
        rows += [remark(MOTION, ", ".join(named), time), remark(SUBTASK, description, time)]
    return rows


def _words(rows: list[Remark], times: np.ndarray, where: str) -> list[tuple[str, str, str, str]]:
    """Phase, direction, element and description of every frame of an episode."""
    motions: dict[float, tuple[str, str, str]] = {}  # by the second at which they begin
    described: dict[float, str] = {}
    for row in rows:
        named = _parse(row)
        if named is not None:
            motions[row["timestamp"]] = named
        elif row["style"] == SUBTASK and row["content"] is not None:
            described[row["timestamp"]] = row["content"]
    begins = np.array(sorted(motions))
    # Which motion holds at each frame: the last that has begun. Times are compared exactly, as both
    # come from the same float32 column.
    place = np.searchsorted(begins, times, "right") - 1
    if not len(begins) or place[0] < 0:
        raise LabelError(
            f"{where}: no motion of the form 'phase, direction, element' holds at its start; "
            "write_language makes them"
        )
    words = []
    for time in begins.tolist():
        named = motions[time]
        words.append((*named, described.get(time, describe(*named))))
    return [words[index] for index in place]  # a row a frame


def _parse(row: Remark) -> tuple[str, str, str] | None:
    """Phase, direction and element of a motion in our words; None for all other rows."""
    if row["style"] != MOTION or (row["content"] or "").count(", ") != 2:
        return None
    phase, direction, element = row["content"].split(", ")
    # Another producer's motion, such as "arm, left, fast", has other words.
    if phase not in PHASES or direction not in DIRECTIONS:
        return None
    return phase, direction, element


def _ours(rows: list[Remark]) -> list[Remark]:
    """Motions in our words, and the subtasks that begin with them."""
    motions = list(filter(_parse, rows))
    begins = {row["timestamp"] for row in motions}
    # A subtask is in anybody's words; ours is told by the motion that stands beside it.
    subtasks = [row for row in rows if row["style"] == SUBTASK and row["timestamp"] in begins]
    return motions + subtasks
