"""Frames ↔ mp4 files, on PyAV. Knows no data set.

Small pictures with saturated colours lose most to chroma subsampling, so data uses 4:4:4; films for people 4:2:0.
"""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np


class VideoError(ValueError):
    """A video that cannot be read as its metadata says."""


def write_video(path: Path, frames: np.ndarray, *, fps: int, pixels: str = "yuv420p", quality: int = 18) -> None:
    """(T, h, w, 3) uint8 → H.264; every second frame is a key frame and none is reordered, so any span decodes fast."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        stream.options = {"crf": str(quality), "g": "2", "bf": "0", "threads": "1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def concatenate(sources: list[Path], target: Path) -> None:
    """Join videos of one encoder setting without encoding again; frame i of the result is at i / fps."""
    with av.open(str(target), "w", format="mp4") as output:
        stream, position = None, 0
        for source in sources:
            with av.open(str(source)) as container:
                inside = container.streams.video[0]
                if stream is None:
                    stream = output.add_stream_from_template(inside)
                if inside.average_rate is None or inside.time_base is None:
                    raise VideoError(f"{source} does not say its frame rate; was it written by `write_video`?")
                tick = round(1 / (inside.average_rate * inside.time_base))
                for packet in container.demux(inside):
                    if packet.dts is None:
                        continue
                    packet.pts = packet.dts = position * tick
                    packet.stream = stream
                    output.mux(packet)
                    position += 1


def read_frames(path: Path, start: int, count: int, *, fps: float) -> Iterator[np.ndarray]:
    """`count` frames (h, w, 3) uint8 from frame number `start`. Raises VideoError naming the file."""
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"{path} cannot be opened as a video ({error}); was it truncated? Copy or record it again") from error
    with container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        if stream.time_base is None:
            raise VideoError(f"{path} does not say in which unit its times are; copy or record it again")
        if start:
            container.seek(int(start / fps / stream.time_base), stream=stream)
        given = 0
        try:
            for frame in container.decode(stream):
                if frame.pts is None:
                    raise VideoError(f"{path}: a frame after number {start + given} has no time; copy or record it again")
                number = round(float(frame.pts * stream.time_base) * fps)
                if number < start:
                    continue
                if given == count:
                    return
                yield frame.to_ndarray(format="rgb24")
                given += 1
        except av.error.FFmpegError as error:
            raise VideoError(f"{path}: frame {start + given} cannot be decoded ({error}); the file is damaged") from error
    if given < count:
        raise VideoError(
            f"{path} ends after frame {start + given}, and the metadata promise frames {start} to {start + count}; "
            "the video is truncated: copy or record it again"
        )
