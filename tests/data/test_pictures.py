"""A data set's pictures at a policy's size, read by rows: kept in a file or streamed, the same to
the bit; killed, crowded, out of room."""

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armlet.data import decoding
from armlet.data.decoding import blocks
from armlet.data.files import FullDiskError, hold
from armlet.data.pictures import (
    FEWEST,
    Cached,
    Joined,
    Pictures,
    Streamed,
    expect,
    open_pictures,
    shares,
)
from armlet.robot.fit import FitError, View, fit_picture

LENGTHS = (5, 700, 1, 30)
VIEW = View({"eye": (8, 8)}, "letterbox")
KEPT = Pictures("letterbox", 8, workers=2)
STREAMED = Pictures("letterbox", 8, cache_gb=0, workers=2)


class Episodes:
    """A data set of random pictures in memory, which notes the rows that it was asked for and can
    break at one of them."""

    def __init__(
        self,
        root: Path,
        cameras: tuple[str, ...] = ("eye",),
        seed: int = 0,
        lengths: tuple[int, ...] = LENGTHS,
    ) -> None:
        self.root, self.cache = root, root / ".cache"
        self.pictures_fingerprint = f"{seed:016x}"
        self.starts = np.cumsum([0, *lengths])
        rng = np.random.default_rng(seed)
        self.all = {
            name: rng.integers(0, 256, (len(self), 6, 10, 3), dtype=np.uint8) for name in cameras
        }
        self.cameras = dict.fromkeys(cameras, (6, 10))
        self.asked: list[int] = []
        self.breaks: int | None = None
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def pictures_of(self, camera: str, rows: np.ndarray) -> Iterator[np.ndarray]:
        for row in rows.tolist():
            if row == self.breaks:
                raise ValueError(f"row {row} is damaged")
            with self.lock:
                self.asked.append(row)
            yield self.all[camera][row]

    def expected(self, camera: str = "eye", fit: str = "letterbox", size: int = 8) -> np.ndarray:
        return np.stack([fit_picture(picture, size, fit) for picture in self.all[camera]])


@pytest.fixture
def data(tmp_path: Path) -> Episodes:
    return Episodes(tmp_path)


ROWS = (np.array([700, 3, 3, 735, 0, 4, 5]), np.array([], np.int64), np.arange(690, 720), slice(3, 20, 4), 735, -1, np.array([[1, 2], [9, 8]]))  # fmt: skip


@pytest.mark.parametrize("how", [KEPT, STREAMED], ids=["kept", "streamed"])
def test_rows_in_their_order_to_the_bit(data: Episodes, how: Pictures) -> None:
    pictures = open_pictures(data, VIEW, how)["eye"]
    expected = data.expected()
    assert len(pictures) == len(expected)
    for rows in ROWS:
        found = pictures[rows]
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected[rows])
    for wrong in (736, np.array([0, 736]), -737):
        with pytest.raises(IndexError):
            pictures[wrong]


@pytest.mark.parametrize("fit", ["letterbox", "crop", "stretch"])
def test_another_view_of_the_same_pictures_is_another_file(data: Episodes, fit: str) -> None:
    open_pictures(data, VIEW, KEPT)
    for size in (8, 5):
        found = open_pictures(data, View({"eye": (size, size)}, fit), Pictures(fit, size))["eye"]
        np.testing.assert_array_equal(found[:], data.expected(fit=fit, size=size))
    assert len(list(data.cache.glob("*.npy"))) == (2 if fit == "letterbox" else 3), (
        "what was decoded before is kept"
    )


def test_decoded_once_and_readable_by_anybody(data: Episodes) -> None:
    open_pictures(data, VIEW, KEPT)
    assert sorted(data.asked) == list(range(len(data)))
    again = open_pictures(data, VIEW, KEPT)["eye"]
    assert len(data.asked) == len(data), "a second start decodes nothing"
    assert isinstance(again, Cached)
    np.testing.assert_array_equal(np.load(again.path), data.expected())
    assert not list(data.cache.glob("*.part")) + list(data.cache.glob("*.done"))


def test_only_cameras_that_are_looked_through_are_decoded(tmp_path: Path) -> None:
    data = Episodes(tmp_path, cameras=("eye", "hand"))
    assert set(open_pictures(data, View({"hand": (8, 8)}, "crop"), Pictures("crop", 8))) == {"hand"}
    assert len(data.asked) == len(data)
    assert open_pictures(data, View({}), Pictures()) == {}
    with pytest.raises(FitError, match=r"camera 'wrist': .* there is eye, hand"):
        open_pictures(data, View({"wrist": (8, 8)}, "crop"), Pictures("crop", 8))
    with pytest.raises(FitError, match=r"camera 'eye': found \(6, 10, 3\), expected \(8, 8, 3\)"):
        open_pictures(data, View({"eye": (8, 8)}), Pictures())


def test_a_run_that_broke_off_goes_on_from_what_is_on_the_disk(
    data: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "SAVED_EVERY", 0.0)
    one = Pictures("letterbox", 8, workers=1)
    data.breaks = 720  # in the second block
    with pytest.raises(ValueError, match="row 720 is damaged"):
        open_pictures(data, VIEW, one)
    assert not list(data.cache.glob("*.npy")), "nothing that is not whole bears the name"
    data.breaks, before = None, len(data.asked)
    found = open_pictures(data, VIEW, one)["eye"]
    first_block = blocks(data.starts)[0]
    assert sorted(data.asked[before:]) == list(range(first_block[1], len(data))), (
        "the first block was there already"
    )
    np.testing.assert_array_equal(found[:], data.expected())


def test_half_a_line_of_what_was_done_is_not_believed(data: Episodes) -> None:
    place = open_pictures(data, VIEW, KEPT)["eye"].path
    part = place.rename(place.with_name(place.name + ".part"))
    os.truncate(part, part.stat().st_size)
    first, last = blocks(data.starts)[0]
    with part.open(
        "r+b"
    ) as file:  # everything but the first block is rubbish, as after a crash before it was written
        header = part.stat().st_size - len(data) * 8 * 8 * 3
        file.seek(header + last * 8 * 8 * 3)
        file.write(b"\xff" * ((len(data) - last) * 8 * 8 * 3))
    place.with_name(place.name + ".done").write_text(
        f'{{"first": {first}, "last": {last}}}\n{{"first": {last}, "last": {len(data)}'
    )
    data.asked.clear()
    np.testing.assert_array_equal(open_pictures(data, VIEW, KEPT)["eye"][:], data.expected())
    assert sorted(data.asked) == list(range(last, len(data)))


def test_two_who_want_the_same_decode_it_once(data: Episodes) -> None:
    found: list[np.ndarray] = []
    both = [
        threading.Thread(target=lambda: found.append(open_pictures(data, VIEW, KEPT)["eye"][:]))
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(data.asked) == len(data) and len(found) == 2
    for pictures in found:
        np.testing.assert_array_equal(pictures, data.expected())


def test_what_belongs_to_earlier_episodes_goes_and_what_somebody_decodes_stays(
    tmp_path: Path, capsys
) -> None:
    old, new = Episodes(tmp_path, seed=1), Episodes(tmp_path, seed=2)
    gone = open_pictures(old, VIEW, KEPT)["eye"].path
    busy = tmp_path / ".cache" / f"{3:016x}-eye-8x8-crop-1.npy.part"
    busy.write_bytes(b"x")
    (tmp_path / ".cache/mine.npy").write_bytes(b"x")
    with hold(busy.with_name(busy.name.removesuffix(".npy.part") + ".lock"), "decoding"):
        open_pictures(new, VIEW, KEPT)
    assert not gone.exists() and busy.exists() and (tmp_path / ".cache/mine.npy").exists()
    assert "decoded pictures that belonged to earlier episodes" in capsys.readouterr().err
    np.testing.assert_array_equal(open_pictures(new, VIEW, KEPT)["eye"][:], new.expected())


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_a_file_that_was_damaged_is_made_again(data: Episodes, damage: str) -> None:
    place = open_pictures(data, VIEW, KEPT)["eye"].path
    if damage == "cut":
        os.truncate(place, place.stat().st_size - 1)
    else:
        content = place.read_bytes()
        place.write_bytes(b"x" + content[1:])
    np.testing.assert_array_equal(open_pictures(data, VIEW, KEPT)["eye"][:], data.expected())


def test_no_room_is_said_before_and_while_writing(
    data: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(data.root)
    monkeypatch.setattr(decoding.shutil, "disk_usage", lambda place: usage._replace(free=1000))
    with pytest.raises(
        FullDiskError,
        match=r"the disk has 1e-06 GB free; free some, or give --pictures\.cache_gb 0",
    ):
        open_pictures(data, VIEW, KEPT)
    assert not data.asked, "nothing was decoded in vain"
    monkeypatch.undo()

    def full(*_) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(decoding.os, "pwrite", full)
    with pytest.raises(FullDiskError, match=r"could not be written.*--pictures\.cache_gb 0"):
        open_pictures(data, VIEW, KEPT)
    assert not list(data.cache.glob("*.npy*")), (
        "a full disk hurts everybody: what was written is gone"
    )


def test_what_lies_in_a_read_only_data_set_is_used(data: Episodes, tmp_path: Path) -> None:
    open_pictures(data, VIEW, KEPT)
    data.asked.clear()
    data.cache = tmp_path / "elsewhere"
    np.testing.assert_array_equal(open_pictures(data, VIEW, KEPT)["eye"][:], data.expected())
    assert not data.asked


# Streamed


def test_a_set_larger_than_the_limit_is_streamed_and_says_so(data: Episodes, capsys) -> None:
    size = len(data) * 8 * 8 * 3 / 1e9
    assert isinstance(
        open_pictures(data, VIEW, Pictures("letterbox", 8, cache_gb=size))["eye"], Cached
    )
    assert "streamed" not in capsys.readouterr().err
    assert isinstance(
        open_pictures(data, VIEW, Pictures("letterbox", 8, cache_gb=size * 0.999))["eye"], Streamed
    )
    assert "pictures are streamed" in capsys.readouterr().err


def test_what_was_expected_is_decoded_once_and_in_time(data: Episodes) -> None:
    pictures = open_pictures(data, VIEW, STREAMED)["eye"]
    rows = np.array([9, 2, 700, 2])
    expect(pictures, rows)
    np.testing.assert_array_equal(pictures[rows], data.expected()[rows])
    assert sorted(data.asked) == [2, 9, 700], "each once, those of the batch only"
    np.testing.assert_array_equal(pictures[rows], data.expected()[rows])
    assert len(data.asked) == 3, "and they are still in memory"
    expect(pictures, np.array([11]))
    expect(pictures, np.array([12]))  # 11 is not wanted any more, and may be asked for all the same
    np.testing.assert_array_equal(pictures[np.array([11, 12])], data.expected()[[11, 12]])


def test_memory_stays_within_its_bound(data: Episodes) -> None:
    one = 8 * 8 * 3
    pictures = open_pictures(
        data, VIEW, Pictures("letterbox", 8, cache_gb=0, memory_gb=10 * one / 1e9, workers=2)
    )["eye"]
    expected = data.expected()
    for first in range(0, 700, 30):
        rows = np.arange(first, first + 30)
        expect(pictures, np.minimum(rows + 30, 735))
        np.testing.assert_array_equal(pictures[rows], expected[rows])
        assert pictures._store.used <= 10 * one


def test_pictures_used_last_stay_in_memory(data: Episodes) -> None:
    one = 8 * 8 * 3
    pictures = open_pictures(
        data, VIEW, Pictures("letterbox", 8, cache_gb=0, memory_gb=10.5 * one / 1e9, workers=1)
    )["eye"]
    pictures[np.arange(10)]
    pictures[np.arange(5)]
    pictures[np.arange(20, 25)]  # in place of 5 to 9, which were used before the others
    data.asked.clear()
    pictures[np.array([0, 1, 2, 3, 4, 20, 21, 22, 23, 24])]
    assert data.asked == []
    pictures[np.arange(5, 8)]
    assert data.asked == [5, 6, 7]


def test_a_damaged_picture_is_an_error_where_it_is_asked_for(data: Episodes) -> None:
    data.breaks = 40
    pictures = open_pictures(data, VIEW, STREAMED)["eye"]
    expect(pictures, np.arange(38, 42))
    np.testing.assert_array_equal(pictures[np.array([1, 2])], data.expected()[[1, 2]])
    with pytest.raises(ValueError, match="row 40 is damaged"):
        pictures[np.arange(38, 42)]


# Joined, blocks, shares


def test_several_data_sets_are_read_as_one(tmp_path: Path) -> None:
    several = [Episodes(tmp_path / str(seed), seed=seed, lengths=(735 + seed,)) for seed in (1, 2)]
    for each in several:
        each.root.mkdir()
    joined = Joined(
        [
            open_pictures(each, VIEW, how)["eye"]
            for each, how in zip(several, (KEPT, STREAMED), strict=True)
        ]
    )
    whole = np.concatenate([each.expected() for each in several])
    for rows in (np.array([740, 3, 736, 735, 1400, 3]), slice(730, 745), np.array([], np.int64)):
        expect(joined, np.arange(len(joined))[rows])
        np.testing.assert_array_equal(joined[rows], whole[rows])


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=12))
def test_blocks_are_all_rows_once_and_none_is_long(lengths: list[int]) -> None:
    starts = np.cumsum([0, *lengths])
    found = blocks(starts)
    assert [row for first, last in found for row in (first, last)][1:-1:2] == [
        first for first, _ in found[1:]
    ]
    assert found[0][0] == 0 and found[-1][1] == starts[-1]
    assert all(0 < last - first <= decoding.LONGEST + decoding.BLOCK for first, last in found)


@given(st.integers(0, 400), st.integers(1, 9))
def test_shares_are_all_rows_once_of_neighbours(count: int, threads: int) -> None:
    rows = np.arange(count) * 3
    found = shares(rows, threads)
    assert (
        len(found) <= threads
        and (np.concatenate(found) if found else rows).tolist() == rows.tolist()
    )
    assert all(len(share) for share in found) and (
        len(found) <= 1 or min(map(len, found)) >= FEWEST // 2
    )


# What may be asked for


def test_a_policy_is_taught_on_squares_of_a_stated_size() -> None:
    cameras = {"eye": (48, 64), "hand": (32, 32)}
    assert Pictures("crop", 24).view(cameras, whose="d") == View(
        {"eye": (24, 24), "hand": (24, 24)}, "crop"
    )
    assert Pictures().view({"hand": (32, 32)}, whose="d") == View({"hand": (32, 32)})
    with pytest.raises(
        FitError,
        match=r"d: camera 'eye' has pictures of 48 × 64 pixels.*--pictures\.fit letterbox.*--pictures\.size 48",
    ):
        Pictures().view(cameras, whose="d")
    with pytest.raises(
        FitError, match=r"camera 'hand' has pictures of 32 × 32 pixels, and pictures\.size is 24"
    ):
        Pictures(size=24).view({"hand": (32, 32)}, whose="d")


def test_what_would_have_no_effect_on_a_taught_policy_is_refused() -> None:
    view = View({"eye": (24, 24)}, "crop")
    for same in (
        Pictures(),
        Pictures("crop", 24),
        Pictures(size=24),
        Pictures(cache_gb=0, workers=1),
    ):
        same.agree(view)
    for other, said in (
        (Pictures("stretch", 24), "pictures.fit 'stretch'"),
        (Pictures("crop", 25), "pictures.size 25"),
    ):
        with pytest.raises(FitError, match=rf"{said} would have no effect.*fit crop, 24 × 24"):
            other.agree(view)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"fit": "crop"}, "pictures.size is not given"),
        ({"size": 0}, "pictures.size is 0"),
        ({"size": 9000}, "pictures.size is 9000"),
        ({"cache_gb": -1}, "cache_gb is -1"),
        ({"memory_gb": -1}, "memory_gb -1"),
        ({"workers": 0}, "pictures.workers is 0"),
    ],
)
def test_fields_that_make_no_sense_are_named(fields: dict, said: str) -> None:
    with pytest.raises(FitError, match=said):
        Pictures(**fields)


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [(50, 60, 48), (48, 64, 48), (4, 7, 48), (120, 160, 144), (480, 640, 192)],
)
def test_the_size_that_is_suggested_can_be_cut_into_patches(
    height: int, width: int, side: int
) -> None:
    with pytest.raises(FitError, match=f"`--pictures.size {side}`"):
        Pictures().view({"eye": (height, width)}, whose="d")


@pytest.mark.parametrize(
    ("cameras", "side", "fit"),
    [
        ({"a": (96, 96), "b": (48, 48)}, None, "exact"),
        ({"a": (192, 192)}, None, "exact"),
        ({"a": (480, 640)}, 96, "letterbox"),
        ({"a": (96, 96), "b": (480, 640)}, 96, "letterbox"),
        ({"a": (240, 240)}, 96, "letterbox"),  # large
        ({"a": (100, 100)}, 96, "letterbox"),  # no patch divides it
    ],
)
def test_auto_takes_small_squares_as_they_are_and_letterboxes_the_rest(
    cameras: dict, side: int | None, fit: str
) -> None:
    wanted = cameras if side is None else dict.fromkeys(cameras, (side, side))
    assert Pictures("auto").view(cameras, whose="d") == View(wanted, fit)
    named = Pictures("auto", 128).view(cameras, whose="d")
    assert named == View(dict.fromkeys(cameras, (128, 128)), "letterbox")


def test_auto_asks_nothing_of_a_teacher_that_exists() -> None:
    view = View({"a": (224, 224)}, "crop")
    Pictures("auto").agree(view)
    assert not Pictures("auto").asked and Pictures("auto", 96).asked
    with pytest.raises(FitError, match=r"pictures\.size 96 would have no effect"):
        Pictures("auto", 96).agree(view)
