"""Files that promise what they do not hold, one of every format that is read: each is refused by its
name, before memory is taken for it. A process that took it would be killed here: its address space
ends eight gigabytes above what it has."""

import gzip
import io
import json
import resource
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from armlet.data import bounded, files, lines, opening, video
from armlet.data.bounded import check_film, check_parquet, read_arrays, unpacked
from armlet.data.opening import EpisodeError
from armlet.data.traces import StoreIdentity, TraceError, TraceStore, TraceWriter
from armlet.data.video import Film, VideoError, write_video
from armlet.evaluation import listens, offline_report, outcomes, report
from armlet.policies.checkpoint import read_tensors
from armlet.policies.pretrained.files import open_safetensors
from armlet.robot.tables import read_once, read_table, read_toml

ROOM = 2**33  # libraries reserve room that they do not use
DEEP = b"[" * 100_000
DIGITS = b"1" * 5000  # Python converts no more than 4,300


@pytest.fixture(autouse=True)
def little_room() -> Iterator[None]:
    """No more than that beyond what this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def refused(read: Callable[[], object], path: Path, *words: str, of: type = ValueError) -> None:
    with pytest.raises(of) as found:
        read()
    for each in (str(path), *words):
        assert each in str(found.value)


# Weights


@pytest.mark.parametrize("read", [lambda path: read_tensors(path, fix="x"), open_safetensors])
def test_safetensors(read: Callable, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"

    def write(header: bytes, *, length: int | None = None, rest: bytes = b"") -> None:
        path.write_bytes(
            struct.pack("<Q", len(header) if length is None else length) + header + rest
        )

    entry = '{"dtype":"F32","shape":[%s],"data_offsets":[0,%d]}'
    write(b"{}", length=2**60)
    refused(lambda: read(path), path, "no whole safetensors file")
    write(b" " * (bounded.HEADER + 1))
    refused(lambda: read(path), path, "its header has 8388609 bytes, expected 8388608 at most")
    many = ",".join(f'"{index}":{entry % (0, 0)}' for index in range(bounded.TENSORS + 1))
    write(f"{{{many}}}".encode())
    refused(lambda: read(path), path, "names 50001 tensors, expected 50000 at most")
    write(f'{{"a":{entry % ("1152921504606846976,16", 8)}}}'.encode(), rest=b"\0" * 8)
    refused(lambda: read(path), path)
    write(b'{"a":' + DEEP)
    refused(lambda: read(path), path)
    # What is whole is read, of as many tensors as may be.
    write(f'{{"a":{entry % (2, 8)}}}'.encode(), rest=np.float32([1, 2]).tobytes())
    assert list(read(path)) == ["a"]


# JSON and TOML


@pytest.mark.parametrize("content", [DEEP, b'{"a":' + DEEP, b'{"a":' + DIGITS + b"}"])
def test_json_without_end(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    refused(lambda: files.read_json(path, fix="x"), path)
    refused(lambda: opening.read_object(path), path, of=EpisodeError)
    refused(lambda: opening.read_lines(path), path, "line 1", of=EpisodeError)
    refused(lambda: report.read(path), path)
    refused(lambda: outcomes.from_bytes(gzip.compress(content), source=str(path)), path)
    assert not offline_report.is_offline(path) and not listens.is_audit(path)
    with pytest.raises(ValueError, match=r"brackets|digits"):
        read_once(content)
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"a": 1}\n' + content + b"\n")
    refused(lambda: lines.whole_lines(log), log, "line 2 of 2")


def test_toml_without_end(tmp_path: Path) -> None:
    path = tmp_path / "robot.toml"
    for content in (b"a = " + DEEP, b"a = " + b"{b=" * 50_000):
        path.write_bytes(content)
        refused(lambda: read_table(path, called="x", made_by="x", repair="x"), path, "is not TOML")
    assert read_toml("a = [[1]]") == {"a": [[1]]}


def test_what_gzip_packs(tmp_path: Path) -> None:
    small = gzip.compress(b"0123456789")
    assert unpacked(small, 10) == b"0123456789"
    with pytest.raises(ValueError, match="more than 9 bytes are packed into"):
        unpacked(small, 9)
    for broken in (small[:-9], small[:12], b"", b"plain", small + b"x"):
        with pytest.raises(ValueError, match=r"cut short|not packed|behind its end"):
            unpacked(broken)
    bomb = gzip.compress(bytes(2**21))
    with pytest.raises(ValueError, match="more than 1048576"):
        unpacked(bomb, 2**20)


# Arrays


def stored(path: Path, shape: tuple[int, ...], *, packed: bool = False, descr: str = "<f8") -> None:
    """An .npz whose only array says that it is of this shape, and has 16 bytes."""
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive, archive.open("a.npy", "w") as file:
        about = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, about)
        file.write(bytes(16))


def test_arrays_that_are_larger_than_their_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for shape in ((2**57,), (2**40, 0, 2**40), (3,), (2**32, 2**32)):
        stored(path, shape)
        refused(lambda: read_arrays(path, fix="copy it"), path, "of shape", "copy it")
    stored(path, (2,), packed=True)
    refused(lambda: read_arrays(path, fix="copy it"), path, "is packed")
    stored(path, (2,), descr="|O")  # it would be unpickled
    refused(lambda: read_arrays(path, fix="copy it"), path, "of shape (2,) and type object")
    path.write_bytes(b"PK\3\4")
    refused(lambda: read_arrays(path, fix="copy it"), path)
    np.savez(path, a=np.arange(3), b=np.float32([[1, 2]]), question="why", none=np.zeros((0, 4)))
    with np.load(path) as file:
        wanted = dict(file)
    found = read_arrays(path, fix="x")
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert np.array_equal(found[name], array) and found[name].dtype == array.dtype


# Traces

WHOLE = {"columns": {"a": [[4], "float16"]}, "rows_per_shard": 10}


@pytest.mark.parametrize(
    "said",
    [
        {"columns": {"a": [[1], "O"]}},  # bytes of a file would be places in memory
        {"columns": {"a": [[1], "V9"]}},
        {"columns": {"a": [[1], "(3,)i4"]}},
        {"columns": {"a": [[1], ["float16"]]}},
        {"columns": {"a": [[2**60], "float16"]}},
        {"columns": {"a": [[2**16, 2**16], "float16"]}},
        {"columns": {"a": [[-1], "float16"]}},
        {"columns": {"a": [[True], "float16"]}},
        {"columns": {}},
        {"columns": {"a": [[0], "float16"]}},
        {"columns": {"": [[4], "float16"]}},
        {"columns": {"a": [[2**30], "float64"]}},  # as bytes more than a row may have
        {"columns": {"a": [[2**29], "int16"], "b": [[2**29], "int16"]}},
        {"rows_per_shard": 0},
        {"rows_per_shard": -3},
        {"rows_per_shard": 2**62},
        {"rows_per_shard": "10"},
    ],
    ids=str,
)
def test_a_trace_store_of_objects_and_without_measure(said: dict, tmp_path: Path) -> None:
    identity = StoreIdentity("data", "teacher", "how")
    with TraceWriter(tmp_path, identity, {"a": ((4,), "float16")}) as writer:
        writer.append(np.array([[0, 0]]), {"a": np.ones((1, 4))})
    path = tmp_path / "header.json"
    about = json.loads(path.read_text()) | WHOLE
    path.write_text(json.dumps(about))
    assert TraceStore(tmp_path, identity).read(torch.tensor([[0, 0]]))["a"].tolist() == [[1.0] * 4]
    path.write_text(json.dumps(about | said))
    refused(lambda: TraceStore(tmp_path, identity), path, "does not describe", of=TraceError)
    with pytest.raises(TraceError, match="does not describe"):
        TraceWriter(tmp_path, identity, {"a": ((4,), "float16")})


# Tables


def promising(rows: int, promised: int) -> bytes:
    """A parquet file of so many rows that says it has `promised`."""

    def varint(number: int) -> bytes:
        zigzag = number << 1
        out = b""
        while zigzag > 127:
            out += bytes([zigzag & 127 | 128])
            zigzag >>= 7
        return out + bytes([zigzag])

    buffer = io.BytesIO()
    pq.write_table(pa.table({"a": np.zeros(rows, np.int64)}), buffer)
    content = buffer.getvalue()
    (length,) = struct.unpack("<I", content[-8:-4])
    footer = content[-8 - length : -8].replace(varint(rows), varint(promised))
    return content[: -8 - length] + footer + struct.pack("<I", len(footer)) + b"PAR1"


@pytest.mark.parametrize("promised", [2**27, 2**40, 2**60])
def test_a_table_of_more_rows_than_anybody_has(promised: int, tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    path.write_bytes(promising(12_345, promised))
    for read in (opening.read_table, opening.count_rows, opening.column_names):
        refused(lambda read=read: read(path), path, f"{promised} rows", of=EpisodeError)
    path.write_bytes(promising(12_345, 12_345))
    assert opening.count_rows(path) == 12_345 == opening.read_table(path).num_rows


def test_a_table_that_unpacks_into_more_than_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.parquet"
    noise = np.random.default_rng(0).integers(0, 2**62, 50_000)
    table = pa.table({"a": np.zeros(50_000, np.int64), "b": noise})
    pq.write_table(table, path, use_dictionary=False, compression="zstd")
    monkeypatch.setattr(bounded, "SPARE", 2**18)
    monkeypatch.setattr(bounded, "PACKED", 0)
    refused(lambda: opening.read_table(path), path, "bytes promise", of=EpisodeError)
    refused(lambda: opening.read_table(path, ["b"]), path, "bytes promise", of=EpisodeError)
    assert opening.count_rows(path) == 50_000
    monkeypatch.setattr(bounded, "PACKED", 1)
    assert opening.read_table(path, ["b"]).num_rows == 50_000  # as much as the file has
    refused(lambda: opening.read_table(path), path, "bytes promise", of=EpisodeError)
    check_parquet(pq.read_metadata(path), path.stat().st_size, ["b"])


# Films


def film(path: Path) -> bytes:
    write_video(path, np.zeros((5, 32, 48, 3), np.uint8), fps=10)
    return path.read_bytes()


def test_a_film_of_more_frames_than_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    content = film(path)
    check_film(path)
    assert len(Film(path).times) == 5
    at = content.index(b"stsz") + 8  # behind its name, version and flags
    for each, count in ((0, 2**32 - 1), (1, 2**28), (1, len(content) + 1), (2**31, 2**31)):
        path.write_bytes(content[:at] + struct.pack(">II", each, count) + content[at + 8 :])
        refused(lambda: Film(path), path, f"promises {count} frames", of=VideoError)
    # In a box whose length takes eight bytes, it is found as well; without an end, nothing is.
    path.write_bytes(struct.pack(">I4sQ", 1, b"free", 20) + b"1234" + content)
    check_film(path)
    broken = content[:at] + struct.pack(">II", 1, 2**28) + content[at + 8 :]
    path.write_bytes(struct.pack(">I4sQ", 1, b"free", 20) + b"1234" + broken)
    with pytest.raises(ValueError, match="promises 268435456 frames"):
        check_film(path)
    start = broken.index(b"moov") - 4  # a box that holds boxes, with such a length
    (length,) = struct.unpack(">I", broken[start : start + 4])
    wide = struct.pack(">I4sQ", 1, b"moov", length + 8)
    path.write_bytes(broken[:start] + wide + broken[start + 8 :])
    with pytest.raises(ValueError, match="promises 268435456 frames"):
        check_film(path)
    for junk in (b"", b"\0" * 7, b"\0" * 64, struct.pack(">I4s", 4, b"moov") * 9, b"\xff" * 99):
        path.write_bytes(junk)
        check_film(path)
        refused(lambda: Film(path), path, of=VideoError)


def test_a_film_of_pictures_without_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mp4"
    film(path)
    monkeypatch.setattr(video, "PIXELS", 48 * 32)
    assert len(Film(path).times) == 5
    monkeypatch.setattr(video, "PIXELS", 48 * 32 - 1)
    refused(lambda: Film(path), path, "pictures of 48 × 32", of=VideoError)


def test_the_bounds_are_above_what_there_is() -> None:
    """The largest of what ships, and of what teachers have: they are read."""
    root = Path(__file__).parents[2]
    for path in root.glob("checkpoints/*/model.safetensors"):
        assert len(json.loads(bounded.safetensors_header(path, fix=""))) < bounded.TENSORS / 10
    for path in root.glob("docs/reproductions/*/outcomes.json.gz"):
        assert len(unpacked(path.read_bytes())) < bounded.UNPACKED / 10
