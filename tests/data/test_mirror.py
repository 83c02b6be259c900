"""Folders behind a URL: what stands here for them, what is fetched when, and what is noticed."""

import dataclasses
import hashlib
import pickle
from pathlib import Path

import fsspec
import numpy as np
import pytest
from tiny import tiny_recipe

from armlet.data import mirror
from armlet.data.files import write_atomically
from armlet.data.mirror import InBlocks, is_stored, mirrored
from armlet.data.object_storage import StorageError, StoredObjects
from armlet.data.traces import StoreIdentity, TraceError, TraceStore, TraceWriter
from armlet.data.upload import Upload
from armlet.recipe import at_hand

COLUMNS = {"answer": ((25,), "float16"), "other": ((3,), "float16")}  # 56 bytes a row
ROWS = 400


def write_store(root: Path, *, seed: int = 0) -> np.ndarray:
    """Rows in several files; returns their keys."""
    rng = np.random.default_rng(seed)
    keys = np.stack([np.repeat(np.arange(20), 20), np.tile(np.arange(20), 20)], 1)
    values = {name: rng.normal(size=(ROWS, *shape)) for name, (shape, _) in COLUMNS.items()}
    with TraceWriter(root, StoreIdentity("d", "t", "p"), COLUMNS, shard_bytes=56 * 150) as writer:
        writer.append(keys, values)
    return keys


def upload(folder: Path, place: str) -> None:
    """As any tool copies a folder into a store."""
    files = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".lock":
            name = path.relative_to(folder).as_posix()
            files.pipe_file(f"{place}/{name}", path.read_bytes())


@pytest.fixture
def stored(tmp_path: Path, request, monkeypatch) -> tuple[Path, Path, np.ndarray]:
    """A local store; the same behind a URL, as an option has it; its keys."""
    monkeypatch.setattr(mirror, "BLOCK", 1000)
    keys = write_store(tmp_path / "local/traces")
    place = f"/store-{abs(hash(request.node.name))}"
    upload(tmp_path / "local", place)
    return tmp_path / "local/traces", Path(f"memory:/{place}"), keys


def test_what_is_a_url_here() -> None:
    for place in ("s3://bucket/a/b", Path("s3://bucket/a/b"), Path("memory://x")):
        assert is_stored(place)
    for place in ("a/b", "hf:user/name", "/s3/bucket", Path("s3-local/x"), "gs://bucket/x"):
        assert not is_stored(place)
    assert mirrored("some/folder") == Path("some/folder")


def test_rows_behind_a_url_are_those_of_the_store(stored, tmp_path, monkeypatch) -> None:
    local, url, keys = stored
    root = mirrored(url, cache=tmp_path / "cache") / "traces"
    fetched = []
    ranges = StoredObjects.ranges

    def counted(self, name, starts, ends):
        fetched.append((name, sum(ends) - sum(starts)))
        return ranges(self, name, starts, ends)

    monkeypatch.setattr(StoredObjects, "ranges", counted)
    here, there = TraceStore(local), TraceStore(root)
    rng = np.random.default_rng(1)
    few = keys[rng.integers(0, ROWS, 3)]
    found = there.read(few)
    assert 1 <= len(fetched) <= 3 and sum(count for _, count in fetched) <= 3 * 2 * 1000
    for epoch in range(3):
        for batch in np.array_split(rng.permutation(ROWS), 10):
            found, wanted = there.read(keys[batch]), here.read(keys[batch])
            for name in COLUMNS:
                assert (found[name] == wanted[name]).all()
        if epoch == 0:
            assert sum(count for _, count in fetched) == 56 * ROWS, "each byte once"
            once = len(fetched)
    assert len(fetched) == once, "after the first epoch nothing is asked for"
    again = TraceStore(mirrored(url, cache=tmp_path / "cache") / "traces")
    again.read(keys)
    pickle.loads(pickle.dumps(again)).read(keys)
    assert len(fetched) == once, "nor by another process"


def test_small_files_are_checked_and_a_change_is_another_folder(stored, tmp_path) -> None:
    local, url, _ = stored
    cache = tmp_path / "cache"
    first = mirrored(url, cache=cache)
    assert mirrored(url, cache=cache) == first
    for name in ("header.json", "keys.bin"):
        assert (first / "traces" / name).read_bytes() == (local / name).read_bytes()
    fsspec.filesystem("memory").pipe_file(f"{url.as_posix()[8:]}/traces/more.json", b"{}")
    second = mirrored(url, cache=cache)
    assert second != first and (second / "traces/more.json").read_bytes() == b"{}"
    objects = StoredObjects("memory://checked")
    objects.write("a", b"content")
    md5 = "9a0364b9e99bb480dd25e1f0284c8555"
    assert mirror.fetched(objects, "a", 7, f'"{md5}"') == b"content"
    with pytest.raises(StorageError, match=r"memory://checked/a: 7 bytes arrived and 8 are listed"):
        mirror.fetched(objects, "a", 8, "")
    with pytest.raises(StorageError, match="checksum differs"):
        mirror.fetched(objects, "a", 7, f'"{md5[::-1]}"')
    with pytest.raises(FileNotFoundError, match=r"nothing is at memory://nowhere"):
        mirrored(Path("memory://nowhere"), cache=cache)


def test_blocks_that_are_short_or_damaged_are_never_rows(stored, tmp_path, monkeypatch) -> None:
    _, url, keys = stored
    root = mirrored(url, cache=tmp_path / "cache") / "traces"
    ranges = StoredObjects.ranges

    def cut(self, name, starts, ends):
        return [content[:-1] for content in ranges(self, name, starts, ends)]

    def flipped(self, name, starts, ends):
        return [
            bytes([content[0] ^ 1]) + content[1:] for content in ranges(self, name, starts, ends)
        ]

    monkeypatch.setattr(StoredObjects, "ranges", cut)
    with pytest.raises(StorageError, match=r"rows-000\.bin: 999 bytes arrived of the 1000 from 0"):
        TraceStore(root).read(keys[:5])
    assert not (root / "rows-000.bin.blocks").read_bytes().strip(b"\0"), "it is asked for again"
    monkeypatch.setattr(StoredObjects, "ranges", flipped)
    with pytest.raises(TraceError, match="episode 0, step 0 is damaged"):
        TraceStore(root).read(keys[:5])


def test_rows_that_were_damaged_here_are_fetched_again(stored, tmp_path, monkeypatch) -> None:
    local, url, keys = stored
    root = mirrored(url, cache=tmp_path / "cache") / "traces"
    wanted = TraceStore(local).read(keys)
    TraceStore(root).read(keys)
    fetched = []
    ranges = StoredObjects.ranges

    def counted(self, name, starts, ends):
        fetched.extend(starts)
        return ranges(self, name, starts, ends)

    def check() -> None:
        again = mirrored(url, cache=tmp_path / "cache") / "traces"
        found = TraceStore(again).read(keys)
        assert again == root and all((found[name] == wanted[name]).all() for name in COLUMNS)

    monkeypatch.setattr(StoredObjects, "ranges", counted)
    rows = root / "rows-000.bin"
    content = rows.read_bytes()
    # As a power cut leaves what was not on the disk yet.
    rows.write_bytes(bytes(len(content)))
    check()
    assert sorted(fetched) == list(range(0, len(content), 1000)) and rows.read_bytes() == content
    fetched.clear()
    rows.write_bytes(content[:5000] + bytes([content[5000] ^ 4]) + content[5001:])
    check()
    assert set(fetched) <= {4000, 5000}, "and no more than its blocks"
    fetched.clear()
    rows.write_bytes(b"")
    (root / "rows-001.bin.blocks").write_bytes(b"")
    check()
    # What is damaged in the store is so after that, too.
    place = f"{url.as_posix()[8:]}/traces/rows-000.bin"
    rows.write_bytes(bytes(len(content)))
    fsspec.filesystem("memory").pipe_file(place, bytes(len(content)))
    with pytest.raises(TraceError, match="episode 0, step 0 is damaged"):
        TraceStore(root).read(keys)


def test_whole_files_that_were_damaged_here_are_fetched_again(tmp_path, monkeypatch) -> None:
    wanted = {"one": b"1" * 50, "two": b"2" * 50, "large": b"3" * 200}
    monkeypatch.setattr(mirror, "HASHED", 100)
    with Upload("memory://damaged/ours", title="test", cache=tmp_path / "writer") as run:
        for name, content in wanted.items():
            write_atomically(run.folder / name, content)
    others = StoredObjects("memory://damaged/others")
    for name, content in wanted.items():
        others.write(name, content)
    entries = StoredObjects.entries

    def as_s3(objects):
        found = entries(objects)
        for name, (size, _) in found.items():
            md5 = hashlib.md5(objects.read(name), usedforsecurity=False).hexdigest()
            found[name] = (size, f'"{md5}"')
        return found

    monkeypatch.setattr(StoredObjects, "entries", as_s3)
    for url in ("memory://damaged/ours", "memory://damaged/others"):
        folder = mirrored(url, cache=tmp_path)
        (folder / "one").write_bytes(b"1" * 49 + b"3")
        (folder / "two").write_bytes(b"")
        (folder / "large").write_bytes(b"3" * 100)
        assert mirrored(url, cache=tmp_path) == folder
        assert {name: (folder / name).read_bytes() for name in wanted} == wanted


def test_a_verb_reads_a_url_and_says_how_one_is_written(stored, tmp_path, monkeypatch) -> None:
    _, url, _ = stored
    monkeypatch.setattr(mirror, "HOME", tmp_path / "cache")
    monkeypatch.setattr(mirror.mirrored, "__kwdefaults__", {"cache": tmp_path / "cache"})
    recipe = dataclasses.replace(tiny_recipe(tmp_path / "out"), shared=url)
    found = at_hand(recipe, reads=("shared",))
    assert InBlocks.of(found.traces) is not None and len(TraceStore(found.traces)) == ROWS
    with pytest.raises(ValueError, match=r"--shared memory:/.*: this is written to"):
        at_hand(recipe, reads=())
    with pytest.raises(ValueError, match=r"--out s3:/b/c: this is written to; .*stores\.written"):
        at_hand(dataclasses.replace(recipe, out=Path("s3://b/c")), reads=("shared",))
