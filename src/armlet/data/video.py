"""Frames ↔ mp4 files, on PyAV: pictures are found by the film's own clock, never by counting. Knows
no data set.

Small pictures with saturated colours lose most to chroma subsampling, so data uses 4:4:4; films for
people 4:2:0.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from armlet.data.bounded import PIXELS, check_film
from armlet.data.opening import fault


class VideoError(ValueError):
    """A video that cannot be read as its metadata says."""


def write_video(
    path: Path, frames: np.ndarray, *, fps: int, pixels: str = "yuv420p", quality: int = 18
) -> None:
    """(T, h, w, 3) uint8 → H.264; every second frame is a key frame and none is reordered, so any
    span decodes fast."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        # g: a key frame every second frame; bf: no frames that need later ones. One thread, since
        # with several the bytes of a film depend on the machine.
        stream.options = {"crf": str(quality), "g": "2", "bf": "0", "threads": "1"}
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())  # what the encoder still holds


def concatenate(sources: list[Path], target: Path) -> None:
    """Join videos of one encoder setting without encoding again; frame i of the result is at i /
    fps."""
    with av.open(str(target), "w", format="mp4") as output:
        stream = None
        position = 0
        for source in sources:
            with av.open(str(source)) as container:
                inside = container.streams.video[0]
                if stream is None:
                    stream = output.add_stream_from_template(inside)
                if inside.average_rate is None or inside.time_base is None:
                    raise VideoError(
                        f"{source} does not say its frame rate; was it written by `write_video`?"
                    )
                # A frame's duration in units of the film's clock: at 10 fps and 1/10240 s, 1024.
                tick = round(1 / (inside.average_rate * inside.time_base))
                for packet in container.demux(inside):
                    if packet.dts is None:  # the empty packet that ends a film
                        continue
                    # No frame is reordered (bf = 0), so it is shown when it is decoded.
                    packet.pts = packet.dts = position * tick
                    packet.stream = stream
                    output.mux(packet)
                    position += 1


# Seconds: of two frames as near as this the earlier is taken, so that rounding does not choose.
TIE = 1e-6
SLACK = 1e-4  # seconds that rounding may add to a time: rows keep theirs in single precision
SEEK = 16  # frames decoded on, rather than jumped over: a jump costs about as many


class Film:
    """A film's own clock, read without decoding anything: when each frame is shown, and where
    decoding can begin.

    `times` (n,) float64 in seconds, increasing; `period`: seconds from one frame to the next, the
    median. Frames are numbered in the order in which they are shown. Frames that an edit list cuts
    away are none.

    Raises VideoError naming the file where it is missing, no video, or cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        shown: list[int] = []
        keys: list[bool] = []
        with _opened(path) as container:
            stream = _stream(container, path)
            unit = stream.time_base
            rate = stream.average_rate or stream.guessed_rate
            try:
                for packet in container.demux(stream):
                    # The end of the film; what an edit list cuts away.
                    if packet.size == 0 or packet.is_discard:
                        continue
                    if packet.is_corrupt:
                        raise VideoError(
                            f"{path} is damaged or truncated after frame {len(shown)}; copy or "
                            "record it again"
                        )
                    if packet.pts is None:
                        raise VideoError(
                            f"{path}: frame {len(shown)} has no time; copy or record it again"
                        )
                    shown.append(packet.pts)
                    keys.append(bool(packet.is_keyframe))
            except av.error.FFmpegError as error:
                raise VideoError(
                    f"{path} is damaged or truncated after frame {len(shown)} ({error}); copy or "
                    "record it again"
                ) from error
        if not shown:
            raise VideoError(f"{path} has no frames; was it truncated? Copy or record it again")
        # Packets come in the order of decoding; films of others reorder frames, so they are sorted
        # by when they are shown.
        self._shown, first = np.unique(np.array(shown, np.int64), return_index=True)
        self._keys = np.flatnonzero(np.array(keys)[first])
        self.times = self._shown * float(unit)
        if len(self.times) > 1:
            self.period = float(np.median(np.diff(self.times)))
        else:
            self.period = 1 / float(rate) if rate else math.inf

    def nearest(
        self,
        times: np.ndarray,
        begins: np.ndarray | float = -math.inf,
        ends: np.ndarray | float = math.inf,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of each of the `times` (b,), in seconds: the number of the frame nearest to it, and
        whether that frame is within half of a frame's period. Only frames from `begins` up to, and
        without, `ends` count: what else is in the film is another episode's."""
        # All arrays (b,): the frames around each time, the later one if it is nearer, kept within
        # the frames of the episode's own span.
        last = len(self.times) - 1
        after = np.searchsorted(self.times, times).clip(max=last)
        before = np.maximum(after - 1, 0)
        later = np.abs(self.times[after] - times) < np.abs(self.times[before] - times) - TIE
        half = self.period / 2
        # Half a period early, as a clip's bounds are rounded, and its first frame belongs to it.
        first_own = np.searchsorted(self.times, np.subtract(begins, half)).clip(max=last)
        last_own = np.maximum(np.searchsorted(self.times, np.subtract(ends, half)) - 1, 0)
        numbers = np.minimum(np.maximum(np.where(later, after, before), first_own), last_own)
        return numbers, np.abs(self.times[numbers] - times) <= half + SLACK

    def __str__(self) -> str:
        return (
            f"{self.path} has {len(self.times)} frames from {self.times[0]:.6g} s to "
            f"{self.times[-1]:.6g} s, one every {self.period:.4g} s"
        )

    def frames(self, numbers: np.ndarray, *, pixels: str | None = "rgb24") -> Iterator[np.ndarray]:
        """The frames of these `numbers` in their order, whatever it is, as arrays of the pixel
        format `pixels`: (h, w, 3) uint8 for rgb24; None: the film's own, as a depth camera's film
        needs.

        One pass over numbers that follow one another closely; a jump goes to the nearest key frame.
        Raises VideoError naming file and frame where one cannot be decoded.
        """
        with _opened(self.path) as container:
            stream = _stream(container, self.path)
            stream.thread_type = "AUTO"  # frames side by side, not only slices of one
            decoder = container.decode(stream)
            # The number of the frame that was decoded last.
            at = -1
            picture = None
            for number in numbers.tolist():
                key = self._key(number)
                if number < at or key > at + SEEK:
                    decoder, frame = self._jump(container, stream, number, key)
                    at = number
                    picture = _array(frame, pixels)
                elif number > at:
                    frame = self._decode_to(decoder, number)
                    at = number
                    picture = _array(frame, pixels)
                assert picture is not None  # number is at, and something was decoded
                yield picture

    def _key(self, number: int) -> int:
        """The number of the last key frame up to frame `number`; 0 where there is none: decoding
        then begins with the film."""
        place = int(np.searchsorted(self._keys, number, "right")) - 1
        return int(self._keys[place]) if place >= 0 else 0

    def _jump(
        self, container: Any, stream: Any, number: int, key: int
    ) -> tuple[Iterator[Any], Any]:
        """A decoder that stands just behind frame `number`, and this frame. Seeking goes by the
        times of decoding, which lie before those of showing, so it may land behind the key frame
        that was meant: then it goes further back."""
        while True:
            container.seek(int(self._shown[key]), stream=stream, backward=True)
            decoder = container.decode(stream)
            frame = self._decode_to(decoder, number, missed=key > 0)
            if frame is not None:
                return decoder, frame
            # One key frame further back; at the first, decoding begins with the film, which is
            # never missed.
            key = self._key(key - 1)

    def _decode_to(self, decoder: Iterator[Any], number: int, *, missed: bool = False) -> Any:
        """The frame, decoded on to it; with `missed`, None where decoding began behind it."""
        wanted = int(self._shown[number])
        place = f"{self.path}: frame {number}, at {self.times[number]:.6g} s,"
        try:
            for frame in decoder:
                if frame.pts is None:
                    raise VideoError(
                        f"{self.path}: a frame before number {number} has no time; copy or record "
                        "it again"
                    )
                if frame.pts < wanted:
                    continue
                if frame.pts == wanted and not frame.is_corrupt:
                    return frame
                if missed and frame.pts > wanted:
                    return None
                break
        except av.error.FFmpegError as error:
            raise VideoError(
                f"{place} cannot be decoded ({error}); the file is damaged: copy or record it again"
            ) from error
        raise VideoError(
            f"{place} cannot be decoded; the file is damaged or truncated: copy or record it again"
        )


def read_frames(path: Path, start: int, count: int, *, fps: float) -> Iterator[np.ndarray]:
    """`count` pictures (h, w, 3) uint8 of a table that has `fps` rows a second, from row `start`
    on: at each row's time, the film's nearest frame. Raises VideoError naming the file and the
    first row without a frame."""
    film = Film(path)
    numbers, near = film.nearest((start + np.arange(count)) / fps)
    if not near.all():
        row = start + int(np.argmin(near))
        raise VideoError(
            f"no frame of the film belongs to row {row}, at {row / fps:.6g} s: {film}; is it "
            "truncated?"
        )
    return film.frames(numbers)


def _opened(path: Path) -> Any:
    # Asked here, as ffmpeg says "Invalid data" of a Git LFS pointer.
    wrong = fault(path)
    if wrong is not None:
        raise VideoError(wrong)
    try:
        check_film(path)
        return av.open(str(path))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{path} cannot be opened as a video ({error}); was it truncated? Copy or record it "
            "again"
        ) from error


def _stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise VideoError(f"{path} holds no video; copy or record it again")
    stream = container.streams.video[0]
    if stream.width * stream.height > PIXELS:
        raise VideoError(
            f"{path} has pictures of {stream.width} × {stream.height}, expected {PIXELS} pixels at "
            "most; record it smaller"
        )
    if stream.time_base is None:
        raise VideoError(
            f"{path} does not say in which unit its times are; copy or record it again"
        )
    return stream


def _array(frame: Any, pixels: str | None) -> np.ndarray:
    return frame.to_ndarray(format=pixels or frame.format.name)
