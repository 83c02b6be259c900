"""A contact sheet: what each camera of a data set saw at the beginning, in the middle and at the
end of a few episodes, as one small picture; and what such a look finds wrong with a camera.

Knows a data set's pictures; knows no policy.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from armlet.data.episodes import EpisodeDataset

EPISODES = 3  # that are looked at: the first, the middle and the last
SIDE = 160  # pixels of the longer side of a picture on the sheet
MARGIN = 6  # pixels between pictures
LINE = 14  # pixels of a line of text
FLAT = 2.0  # grey levels: a picture that varies less shows nothing
SAME = 0.5  # grey levels: pictures that differ less on average are the same


@dataclass(frozen=True)
class Look:
    """Some pictures of every camera, (n, h, w, 3) uint8, of these `rows` (n,) of a data set, each
    with its `label`."""

    rows: np.ndarray
    labels: tuple[str, ...]
    pictures: dict[str, np.ndarray]


def look(data: EpisodeDataset) -> Look:
    """The first, middle and last frame of a few episodes, by every camera."""
    count = len(data.episodes)
    chosen = sorted({0, count // 2, count - 1})[:EPISODES]  # a set: one or two, of as few
    rows = []
    labels = []
    for episode in chosen:
        first = int(data.starts[episode])
        last = int(data.starts[episode + 1]) - 1
        for row in sorted({first, (first + last) // 2, last}):
            rows.append(row)
            labels.append(f"episode {data.episodes[episode].index}, frame {row - first}")
    wanted = np.array(rows)
    pictures = {camera: np.stack(list(data.pictures_of(camera, wanted))) for camera in data.cameras}
    return Look(wanted, tuple(labels), pictures)


def warnings(seen: Look) -> list[str]:
    """A line for every camera that shows nothing, never changes, or shows what another does."""
    lines = []
    means: dict[str, np.ndarray] = {}
    for camera, pictures in seen.pictures.items():
        wide = pictures.astype(np.float32)
        if float(wide.std(axis=(1, 2)).mean()) < FLAT:
            lines.append(f"camera {camera}: one flat colour; is it plugged in?")
        elif len(pictures) > 1 and float(np.abs(wide[1:] - wide[0]).mean()) < SAME:
            lines.append(
                f"camera {camera}: the same picture in all {len(pictures)} frames that were looked "
                "at"
            )
        for other, theirs in means.items():
            same = theirs.shape == wide.shape and float(np.abs(theirs - wide).mean()) < SAME
            if same:
                lines.append(f"camera {camera}: shows the same as {other}")
        means[camera] = wide
    return lines


def draw(seen: Look) -> Image.Image:
    """The sheet: a row a camera, a column a frame."""
    sizes = {camera: _thumbnail(pictures[0]) for camera, pictures in seen.pictures.items()}
    column = max(width for width, _ in sizes.values()) + MARGIN
    width = MARGIN + column * len(seen.rows)
    height = LINE + sum(high + LINE + MARGIN for _, high in sizes.values()) + MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    for index, label in enumerate(seen.labels):
        pen.text((MARGIN + index * column, 1), _short(label, column), fill="black")
    top = LINE
    for camera, pictures in seen.pictures.items():
        shape = pictures.shape
        pen.text((MARGIN, top), f"{camera}: {shape[1]} x {shape[2]} (height x width)", fill="black")
        top += LINE
        for index, picture in enumerate(pictures):
            small = Image.fromarray(picture).resize(sizes[camera], Image.Resampling.BILINEAR)
            sheet.paste(small, (MARGIN + index * column, top))
        top += sizes[camera][1] + MARGIN
    return sheet


def _thumbnail(picture: np.ndarray) -> tuple[int, int]:
    """Width and height at which a picture is shown, its shape kept."""
    height, width = picture.shape[:2]
    scale = SIDE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _short(label: str, width: int) -> str:
    """A label that fits into so many pixels of a column: Pillow's own letters are 6 wide."""
    if 6 * len(label) <= width:
        return label
    return label.replace("episode ", "e").replace("frame ", "f")
