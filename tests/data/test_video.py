"""A film's own clock: pictures are those nearest in time, in any order, whatever the encoder did,
or the first without one is named."""

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from made import SIDE, film

from armlet.data.video import Film, VideoError, read_frames

B_FRAMES = {"crf": "2", "bf": "3", "g": "12", "x264-params": "b-adapt=0:scenecut=0"}


def greys(path: Path, numbers: list[int]) -> list[int]:
    return [int(picture.mean().round()) for picture in Film(path).frames(np.array(numbers))]


@pytest.fixture(scope="module")
def reordered(tmp_path_factory) -> Path:
    """60 frames at 25 a second with B frames, a key frame every 12: what is decoded is not what is
    shown next."""
    path = tmp_path_factory.mktemp("film") / "b.mp4"
    film(path, [(number, 4 * number) for number in range(60)], tick=Fraction(1, 25), **B_FRAMES)
    with av.open(str(path)) as container:
        decoding = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert decoding != sorted(decoding), "the film has no B frames"
    return path


def test_a_film_shows_its_frames_by_time(reordered) -> None:
    seen = Film(reordered)
    np.testing.assert_allclose(seen.times - seen.times[0], np.arange(60) / 25, atol=1e-9)
    assert seen.period == pytest.approx(1 / 25)
    assert np.abs(np.subtract(greys(reordered, list(range(60))), 4 * np.arange(60))).max() <= 1


def test_any_order_gives_what_one_pass_gives(reordered) -> None:
    seen = Film(reordered)
    whole = list(seen.frames(np.arange(60)))
    rng = np.random.default_rng(0)
    for numbers in (
        rng.permutation(60),
        np.arange(59, -1, -1),
        np.array([0, 40, 41, 2, 2, 59]),
        rng.integers(0, 60, 20),
    ):
        for number, picture in zip(numbers, seen.frames(numbers), strict=True):
            assert np.array_equal(picture, whole[number])


def test_one_pass_decodes_each_frame_once(reordered, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near rows are read on, and far ones are jumped to: rows 0 … 9 and 50 … 59 of 60 are not a
    pass over all."""
    seen, decoded = Film(reordered), []
    import armlet.data.video as video

    kept = video._array
    monkeypatch.setattr(
        video, "_array", lambda frame, pixels: decoded.append(frame.pts) or kept(frame, pixels)
    )
    jumps = []
    jump = Film._jump
    monkeypatch.setattr(Film, "_jump", lambda *inputs: jumps.append(inputs[3]) or jump(*inputs))
    list(seen.frames(np.array([*range(10), *range(50, 60)])))
    assert len(decoded) == 20 and jumps == [50]
    list(seen.frames(np.array([3, 3, 3, 15])))
    assert len(decoded) == 22 and jumps == [50], (
        "a picture asked for again is not decoded again, and 12 frames are no jump"
    )


def test_nearest_within_half_a_period(tmp_path) -> None:
    """10 frames a second from 0 to 0.9 s; what the earlier of two equally near frames has is
    taken."""
    film(tmp_path / "f.mp4", [(number, 10 * number) for number in range(10)], tick=Fraction(1, 10))
    numbers, near = Film(tmp_path / "f.mp4").nearest(
        np.array([0.0, 0.04, 0.06, 0.05, 0.9, 0.94, 0.96, -0.04, -0.06])
    )
    assert numbers.tolist() == [0, 0, 1, 0, 9, 9, 9, 0, 0]
    assert near.tolist() == [True] * 6 + [False, True, False]
    numbers, near = Film(tmp_path / "f.mp4").nearest(np.array([0.29, 0.44, 0.5, 0.6]), 0.3, 0.5)
    assert numbers.tolist() == [3, 4, 4, 4] and near.tolist() == [True, True, False, False]


def test_a_film_that_begins_late(tmp_path) -> None:
    """Its first frame is shown at 0.4 s: rows from then on are right, and the first before is
    named."""
    path = tmp_path / "f.mp4"
    film(path, [(4 + number, 10 * number) for number in range(8)], tick=Fraction(1, 10))
    assert Film(path).times[0] == pytest.approx(0.4)
    assert (
        np.abs(
            np.subtract([p.mean() for p in read_frames(path, 4, 8, fps=10)], 10 * np.arange(8))
        ).max()
        <= 1
    )
    with pytest.raises(
        VideoError, match=r"row 2, at 0\.2 s: .*f\.mp4 has 8 frames from 0\.4 s to 1\.1 s"
    ):
        next(read_frames(path, 2, 8, fps=10))


def test_a_film_that_an_edit_list_cuts(tmp_path) -> None:
    """Copied from the middle of a group: the frames before the cut are in the file, and none of the
    film."""
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    film(
        whole,
        [(number, 8 * number) for number in range(24)],
        tick=Fraction(1, 10),
        g="12",
        **{"x264-params": "scenecut=0"},
    )
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        inside = source.streams.video[0]
        stream = target.add_stream_from_template(inside)
        tick = round(1 / (10 * inside.time_base))
        for packet in source.demux(inside):
            if packet.dts is None:
                continue
            packet.pts -= 5 * tick
            packet.dts -= 5 * tick
            packet.stream = stream
            target.mux(packet)
    seen = Film(cut)
    first = round((seen.times[0]) * 10)
    found = greys(cut, list(range(len(seen.times))))
    shown = [8 * (5 + first + place) for place in range(len(found))]
    assert np.abs(np.subtract(found, shown)).max() <= 1, "each frame at its own time"


def test_a_film_of_variable_rate(tmp_path) -> None:
    """Frames at 0, 1, 2, 3, 7, 8 tenths: row 5 of ten a second has none near, the others have their
    own."""
    path, ticks = tmp_path / "f.mp4", [0, 1, 2, 3, 7, 8]
    film(path, [(tick, 10 * tick) for tick in ticks], tick=Fraction(1, 10))
    for tick in ticks:
        assert abs(next(read_frames(path, tick, 1, fps=10)).mean() - 10 * tick) <= 1
    with pytest.raises(VideoError, match=r"row 4, at 0\.4 s"):
        next(read_frames(path, 0, 8, fps=10))


def test_damaged_films_are_named(tmp_path) -> None:
    """Cut short with its index in front, overwritten in the middle, without pictures, no film at
    all."""
    path = tmp_path / "f.mp4"
    levels = np.random.default_rng(0).integers(0, 255, (40, SIDE, SIDE, 3), dtype=np.uint8)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = SIDE
        stream.options = {"g": "2", "bf": "0"}
        for level in levels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(level, format="rgb24")))
        container.mux(stream.encode())
    whole = path.read_bytes()
    assert len(list(read_frames(path, 0, 40, fps=10))) == 40
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VideoError, match=r"f\.mp4.*truncated"):
        list(read_frames(path, 0, 40, fps=10))
    path.write_bytes(b"\0" * len(whole))
    with pytest.raises(VideoError, match=r"f\.mp4 cannot be opened as a video"):
        Film(path)
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    with pytest.raises(VideoError, match=r"f\.mp4 holds no video"):
        Film(path)
    with pytest.raises(VideoError, match=r"nothing\.mp4 is missing"):
        Film(tmp_path / "nothing.mp4")


def test_a_film_of_one_frame(tmp_path) -> None:
    film(tmp_path / "f.mp4", [(0, 77)], tick=Fraction(1, 10))
    assert greys(tmp_path / "f.mp4", [0, 0]) == [77, 77]
    assert Film(tmp_path / "f.mp4").period == pytest.approx(0.1)
