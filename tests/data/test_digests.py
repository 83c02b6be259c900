"""A data set's fingerprint sees everything that is read, and reads what has not changed no second
time."""

import io
import json
import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import EYE, SIDE, Made, film, grey
from PIL import Image

import armlet.data.digests as module
from armlet.data.digests import cache_folder, digests
from armlet.data.episodes import EpisodeDataset, EpisodeError

LONG_AGO = time.time_ns() - 10**12


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch):
    """A quarter of an hour later: no file is young."""
    now = time.time_ns
    monkeypatch.setattr(module.time, "time_ns", lambda: now() + 10**12)


def print_of(root: Path) -> str:
    return EpisodeDataset(root).fingerprint


@pytest.fixture
def root(tmp_path) -> Path:
    root = Made().save(tmp_path / "d")
    (root / "meta/stats.json").write_text(json.dumps({"action": {"mean": [1.0]}}))
    return root


@pytest.mark.parametrize(
    "name",
    [
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-000.parquet",
        f"videos/{EYE}/chunk-000/file-000.mp4",
    ],
)
def test_a_change_of_any_file_is_seen(root: Path, later, name: str) -> None:
    before = print_of(root)
    assert print_of(root) == before
    path = root / name
    if name.endswith(".parquet"):
        table = pq.read_table(path)
        pq.write_table(table.append_column("more", pa.array(range(len(table)))), path)
    elif name.endswith(".mp4"):
        film(path, [(place, 200) for place in range(12)])
    else:
        path.write_text(path.read_text() + " ")
    assert print_of(root) != before


def test_version_2_1_and_what_nobody_reads(tmp_path, later) -> None:
    root = Made().save_v21(tmp_path / "d")
    before = print_of(root)
    (root / "data/chunk-000/notes.txt").write_text("x")
    (root / "videos/chunk-000/extra.mp4").write_text("x")
    assert print_of(root) == before
    lines = root / "meta/tasks.jsonl"
    lines.write_text(lines.read_text().replace("pick it", "pick  it"))
    assert print_of(root) != before
    (root / f"videos/chunk-000/{EYE}/episode_000001.mp4").unlink()
    with pytest.raises(EpisodeError, match=r"episode_000001\.mp4 is missing"):
        print_of(root)


def test_files_behind_links(root: Path, tmp_path, later) -> None:
    (root / "videos").rename(tmp_path / "store")
    (root / "videos").symlink_to(tmp_path / "store")
    before = print_of(root)
    film(tmp_path / "store" / EYE / "chunk-000/file-000.mp4", [(place, 200) for place in range(12)])
    assert print_of(root) != before


def test_pictures_in_files_of_their_own(tmp_path, later) -> None:
    """As a table names them, beside those whose bytes are in it; grey, palettes and transparency
    become colours, depth does not."""
    made = Made(lengths=(4,))
    made.info["features"]["observation.images.side"] = {
        "dtype": "image",
        "shape": [SIDE, SIDE, 3],
        "names": None,
    }
    modes = ["RGB", "L", "RGBA", "P"]
    for row, mode in zip(made.rows, modes, strict=True):
        level = grey(0, row["frame_index"])
        picture = Image.fromarray(np.full((SIDE, SIDE, 3), level, np.uint8)).convert(mode)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        inside = mode in ("RGB", "L")
        row["observation.images.side"] = {
            "bytes": buffer.getvalue() if inside else None,
            "path": f"pictures/{mode}.png",
        }
        if not inside:
            (tmp_path / "d/pictures").mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "d/pictures" / f"{mode}.png")
    (tmp_path / "d/pictures").rename(tmp_path / "pictures")
    root = made.save(tmp_path / "e")
    (tmp_path / "pictures").rename(root / "pictures")
    data = EpisodeDataset(root)
    assert [int(picture.mean().round()) for picture in data.read_pictures("side", 0, 4)] == [
        grey(0, frame) for frame in range(4)
    ]
    before = data.fingerprint
    path = root / "pictures/RGBA.png"
    Image.fromarray(np.zeros((SIDE, SIDE, 4), np.uint8)).save(path)
    assert print_of(root) != before
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint16)).save(path)
    with pytest.raises(
        EpisodeError, match=r"episode 0, frame 2 has pixels of mode I;16, more than 8 bits"
    ):
        list(EpisodeDataset(root).read_pictures("side", 0, 4))
    path.write_bytes(b"")
    with pytest.raises(EpisodeError, match=r"RGBA\.png is empty"):
        list(EpisodeDataset(root).read_pictures("side", 0, 4))


def test_what_has_not_changed_is_not_read_again(
    root: Path, later, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    hashed = module.hashlib.file_digest
    monkeypatch.setattr(
        module.hashlib,
        "file_digest",
        lambda file, name: read.append(Path(file.name).name) or hashed(file, name),
    )
    before = print_of(root)
    assert len(read) == 6
    read.clear()
    assert print_of(root) == before and not read
    (root / "meta/stats.json").write_text(json.dumps({"action": {"mean": [2.0]}}))
    assert print_of(root) != before and read == ["stats.json"]
    data = EpisodeDataset(root)
    kept = data.fingerprint
    (root / "meta/stats.json").write_text("{}")
    assert data.fingerprint == kept, "looked at once"


def test_a_young_file_is_read_again(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that changes without its size and times doing so, as within a tick of the file system's
    clock."""
    path, cache = tmp_path / "f", tmp_path / "cache"
    stamp = [1, time.time_ns(), 3, time.time_ns()]
    monkeypatch.setattr(module, "_stamp", lambda path: stamp)
    path.write_bytes(b"a")
    before = digests([path], cache)
    path.write_bytes(b"b")
    assert digests([path], cache) != before
    stamp = [1, LONG_AGO, 3, LONG_AGO]
    before = digests([path], cache)
    path.write_bytes(b"c")
    assert digests([path], cache) == before, "an old one is trusted"


@pytest.mark.parametrize("changed", range(4))
def test_size_times_and_inode_all_count(
    tmp_path, monkeypatch: pytest.MonkeyPatch, changed: int
) -> None:
    path, cache = tmp_path / "f", tmp_path / "cache"
    stamp = [1, LONG_AGO, 3, LONG_AGO]
    monkeypatch.setattr(module, "_stamp", lambda path: stamp)
    path.write_bytes(b"a")
    before = digests([path], cache)
    path.write_bytes(b"b")
    stamp = [value + (place == changed) for place, value in enumerate(stamp)]
    assert digests([path], cache) != before


def test_a_damaged_record_is_no_harm(root: Path, later) -> None:
    before = print_of(root)
    for content in ("", "[1]", '{"x": 3}', "{"):
        (root / ".cache/digests.json").write_text(content)
        assert print_of(root) == before


def test_a_folder_that_cannot_be_written_to(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Then the cache is the user's, a folder for each data set; where nobody is at home, the
    machine's."""
    allowed = os.access
    locked = {str(tmp_path / "d")}
    monkeypatch.setattr(
        os, "access", lambda path, mode: str(path) not in locked and allowed(path, mode)
    )
    monkeypatch.setattr(module, "HOME", tmp_path / "home/armlet")
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.setattr(module, "_said", set())
    root = Made().save(tmp_path / "d")
    (tmp_path / "link").symlink_to(root)
    place = cache_folder(root)
    assert place.parent == tmp_path / "home/armlet"
    assert capsys.readouterr().err.count("is read-only; what is derived from it is kept in") == 1
    locked.add(str(tmp_path / "link"))
    assert cache_folder(tmp_path / "link") == place, "the same data set by another name"
    assert not capsys.readouterr().err, "said once"
    pictures = EpisodeDataset(root).all_images("eye")
    assert (
        len(pictures) == 12
        and not (root / ".cache").exists()
        and any(place.glob("*-eye-32x32-exact-*.npy"))
    )
    locked.add(str(tmp_path / "home"))
    locked.add(str(tmp_path / "home/armlet"))
    (tmp_path / "tmp").mkdir()
    assert cache_folder(root).parent.parent == tmp_path / "tmp"
