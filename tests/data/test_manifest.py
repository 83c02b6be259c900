"""A finished data set says what its files are, and whoever reads one that is another now says so by
name: each flipped bit and each file cut short. What was changed on purpose can be accepted."""

import hashlib
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_writer import EYE, add, check, contents, writer

from armlet.data.episodes import EpisodeDataset, EpisodeError
from armlet.data.language import remark, write_persistent
from armlet.data.manifest import MANIFEST, NEXT, Manifest
from armlet.robot.tables import read_once

FILM = f"{EYE}/chunk-000/file-000.mp4"
TABLES = (
    "meta/armlet.json",
    "meta/info.json",
    "meta/stats.json",
    "meta/tasks.parquet",
    "meta/episodes/chunk-000/file-000.parquet",
    "data/chunk-000/file-000.parquet",
)


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("manifest") / "three"
    add(root, 0, 1, 2)
    return root


@pytest.fixture
def root(three: Path, tmp_path) -> Path:
    shutil.copytree(three, tmp_path / "set")
    return tmp_path / "set"


def listed(root: Path) -> dict[str, str]:
    """As anybody reads it who knows sha256sum."""
    found = {}
    for line in (root / MANIFEST).read_text().splitlines():
        digest, name = line.split("  ")
        found[name] = digest
    return found


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << at % 8
    path.write_bytes(content)


def without_line(root: Path, name: str) -> None:
    lines = (root / MANIFEST).read_text().splitlines(keepends=True)
    kept = [line for line in lines if name not in line]
    assert len(kept) == len(lines) - 1
    (root / MANIFEST).write_text("".join(kept))


def test_it_lists_every_file_and_what_that_is(root: Path) -> None:
    assert set(listed(root)) == {*TABLES, FILM}
    add(root, 3)
    said = listed(root)
    assert len(said) == len(TABLES) + 1 + 3  # a table, a film and a list of episodes are new
    for name, digest in said.items():
        assert hashlib.sha256((root / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize("name", TABLES)
def test_no_flipped_bit_of_a_table_is_read(root: Path, name: str) -> None:
    whole = (root / name).read_bytes()
    rng = random.Random(name)
    places = [0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(6))]
    said = f"{root / name} is not what was written: .* delete its line in {root / MANIFEST}"
    for at in places:
        flip(root / name, at)
        with pytest.raises(EpisodeError, match=said):
            EpisodeDataset(root)
        before = contents(root)
        with pytest.raises(EpisodeError, match=said):
            writer(root)
        assert contents(root) == before
        (root / name).write_bytes(whole)
    (root / name).write_bytes(whole[:-1])
    with pytest.raises(EpisodeError, match=said):
        EpisodeDataset(root)
    (root / name).write_bytes(whole)
    check(root, 3)


def test_no_flipped_bit_of_a_film_is_seen(root: Path) -> None:
    """Bits of pictures decode to other pictures, without an error; some bits say nothing at all."""
    whole = (root / FILM).read_bytes()
    rng = random.Random(1)
    said = f"{root / FILM} is not what was written"
    for _ in range(8):
        flip(root / FILM, rng.randrange(len(whole)))
        data = EpisodeDataset(root)  # whose numbers can be had
        assert np.isfinite(data.columns()["action"]).all()
        with pytest.raises(EpisodeError, match=said):
            data.images(0)
        with pytest.raises(EpisodeError, match=said):
            _ = data.fingerprint
        (root / FILM).write_bytes(whole)


def test_what_is_added_takes_no_damage_for_what_was_written(root: Path) -> None:
    flip(root / FILM, 3000)
    add(root, 3)
    data = EpisodeDataset(root)
    assert data.images(3)["eye"].shape == (5, 32, 32, 3)
    with pytest.raises(EpisodeError, match=f"{FILM} is not what was written"):
        data.images(0)


def test_a_change_on_purpose_is_accepted_and_what_follows_it_is_noticed_again(root: Path) -> None:
    tasks = root / "meta/tasks.parquet"
    pq.write_table(pq.read_table(tasks), tasks, compression="none")
    with pytest.raises(EpisodeError, match=r"tasks\.parquet is not what was written"):
        EpisodeDataset(root)
    without_line(root, "meta/tasks.parquet")
    check(root, 3)
    film = (root / FILM).read_bytes()
    flip(root / FILM, 3000)
    without_line(root, FILM)
    EpisodeDataset(root).images(0)
    add(root, 3)  # lists what had no line
    (root / FILM).write_bytes(film)
    with pytest.raises(EpisodeError, match=f"{FILM} is not what was written"):
        EpisodeDataset(root).images(0)


def test_a_data_set_without_a_list_is_read_and_gets_one_when_episodes_are_added(
    root: Path,
) -> None:
    (root / MANIFEST).unlink()
    tasks = root / "meta/tasks.parquet"
    pq.write_table(pq.read_table(tasks), tasks, compression="none")
    check(root, 3)
    add(root, 3)
    check(root, 4)
    for name, digest in listed(root).items():
        assert hashlib.sha256((root / name).read_bytes()).hexdigest() == digest, name
    assert FILM in listed(root)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("  ", " "), "line 1 is no digest and name"),
        (lambda text: "x" + text[1:], "line 1 is no digest and name"),
        (lambda text: text[:-3] + "\n" + text.splitlines()[0], "line 8 names a file a second time"),
        (lambda text: text.replace("  data", "  /data"), "line 1 is no digest and name"),
    ],
)
def test_a_list_that_is_none_is_named(root: Path, change, said: str) -> None:
    path = root / MANIFEST
    path.write_text(change(path.read_text()))
    with pytest.raises(EpisodeError, match=f"{path}, {said}.*delete it to take the data set as"):
        EpisodeDataset(root)


def test_a_file_is_what_it_was_or_will_be_while_episodes_are_added(root: Path, tmp_path) -> None:
    """As `carry_out` leaves it where it dies between two files."""
    more = tmp_path / "more"
    shutil.copytree(root, more)
    add(more, 3)
    (root / NEXT).parent.mkdir(parents=True)
    shutil.copy(more / MANIFEST, root / NEXT)
    shutil.copy(more / "meta/tasks.parquet", root / "meta/tasks.parquet")
    check(root, 3)
    flip(root / "meta/tasks.parquet", 20)
    with pytest.raises(EpisodeError, match=f"{MANIFEST} and in {root / NEXT}"):
        EpisodeDataset(root)


def test_a_copy_with_language_lists_its_own_tables(root: Path, tmp_path) -> None:
    said = [[remark("subtask", "go", 0.0)]] * 3
    copy = write_persistent(EpisodeDataset(root), tmp_path / "copy", said)
    assert set(listed(copy.root)) == {*TABLES, FILM}
    assert read_once((copy.root / "meta/info.json").read_text())["features"]["language_persistent"]
    for name, digest in listed(copy.root).items():
        assert hashlib.sha256((copy.root / name).read_bytes()).hexdigest() == digest, name
    flip(copy.root / "data/chunk-000/file-000.parquet", 500)
    with pytest.raises(EpisodeError, match="is not what was written"):
        EpisodeDataset(copy.root)


def test_it_is_read_once_and_not_again(root: Path, monkeypatch) -> None:
    """Of files that are no longer young: another process finds what was kept."""
    read = []
    monkeypatch.setattr("armlet.data.digests.YOUNG", -1e9)
    EpisodeDataset(root).images(0)
    monkeypatch.setattr("armlet.data.digests.digest_of", lambda path: read.append(path) or b"")
    EpisodeDataset(root).images(0)
    assert read == []
    assert Manifest.of(root).coming == {}
