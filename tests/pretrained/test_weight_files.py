"""Tensors on disk → a network, loudly: whatever is wrong with a file is one sentence that names it,
costs little memory, and runs nothing."""

import json
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from armlet.policies.pretrained import files
from armlet.policies.pretrained.files import (
    Header,
    Names,
    Tensors,
    fill,
    match,
    open_pickled,
    open_safetensors,
    open_sharded,
)

MEGABYTE = 2**20


def tensors() -> dict[str, torch.Tensor]:
    return {
        "a.weight": torch.arange(6.0).view(2, 3),
        "a.bias": torch.ones(2, dtype=torch.bfloat16),
        "count": torch.tensor(3),
    }


def refused(read: Any, *expected: str, error: type[Exception] = ValueError) -> str:
    """One sentence with all of `expected` in it, of bounded length, made of little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(error) as raised:
            read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    said = str(raised.value)
    assert "\n" not in said and len(said) < 1500, said
    assert peak < 64 * MEGABYTE
    for each in expected:
        assert each in said, said
    return said


def raw(path: Path, header: bytes, body: bytes = b"", *, length: int | None = None) -> Path:
    """A safetensors file, byte by byte."""
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + body)
    return path


def entry(*shape: int, begins: int = 0, dtype: str = "F32", **changed: Any) -> dict[str, Any]:
    count = 1
    for side in shape:
        count *= side
    offsets = [begins, begins + 4 * count]
    return {"dtype": dtype, "shape": list(shape), "data_offsets": offsets, **changed}


# Safetensors


def test_headers_say_all_and_numbers_are_read_one_at_a_time(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tensors(), path, metadata={"format": "pt"})
    found = open_safetensors(path)
    assert dict(found) == {
        "a.weight": Header((2, 3), torch.float32, path, "a.weight"),
        "a.bias": Header((2,), torch.bfloat16, path, "a.bias"),
        "count": Header((), torch.int64, path, "count"),
    }
    for name, tensor in tensors().items():
        assert torch.equal(found.read(name), tensor) and found.read(name).dtype == tensor.dtype
        assert found[name].nbytes == tensor.nbytes
    assert set(found.part("a.")) == {"bias", "weight"}
    assert torch.equal(found.part("a.").read("bias"), tensors()["a.bias"])
    assert set(found.without("a.")) == {"count"} and found.files == [path]
    both = found.without("a.").and_those(found.part("a."))
    assert set(both) == {"count", "weight", "bias"}


def test_a_file_that_is_not_there_not_whole_or_not_itself(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    refused(lambda: open_safetensors(path), str(path), "is missing", error=FileNotFoundError)
    path.mkdir()
    refused(lambda: open_safetensors(path), "is a folder")
    path.rmdir()
    save_file(tensors(), path)
    whole = path.read_bytes()
    for length in (0, 3, 8, 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(lambda: open_safetensors(path), str(path), "copy the checkpoint's files again")
    path.write_bytes(whole + b"x")
    refused(lambda: open_safetensors(path), "its header promises")
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    refused(lambda: open_safetensors(path), "is a pointer of Git LFS", "git lfs pull")
    path.write_text("<html>404: not found</html>")
    refused(lambda: open_safetensors(path), "no whole safetensors file")
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    refused(lambda: open_safetensors(path), "is a link to nothing", error=FileNotFoundError)


def test_a_file_that_shrinks_after_it_was_opened(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tensors(), path)
    found = open_safetensors(path)
    path.write_bytes(path.read_bytes()[:-3])
    refused(lambda: found.read("a.weight"), str(path), "a.weight cannot be read")


def test_a_header_of_any_length_is_not_read(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:  # a hole: a gigabyte long, and nothing on the disk
        file.write(struct.pack("<Q", 2**30))
        file.truncate(2**30 + 8)
    refused(lambda: open_safetensors(path), "its header has 1073741824 bytes, expected 8388608")


def test_a_hundred_thousand_tensors(tmp_path) -> None:
    """In a header that is short enough, and one that is not."""
    short = {f"{number}": entry(0) for number in range(100_000)}
    path = raw(tmp_path / "a.safetensors", json.dumps(short, separators=(",", ":")).encode())
    refused(lambda: open_safetensors(path), "names 100000 tensors, expected 50000 at most")
    long = {f"model.layers.{number}.self_attn.q_proj.weight": entry(0) for number in range(100_000)}
    path = raw(tmp_path / "b.safetensors", json.dumps(long).encode())
    refused(lambda: open_safetensors(path), "its header has", "expected 8388608 at most")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"[" * 1_000_000, "none of a safetensors file"),
        (b"[]", "holds a JSON list, expected an object"),
        (b"{", "none of a safetensors file"),
        (b"\xff\xfe", "none of a safetensors file"),
        (b'{"a": {}, "a": {}}', "'a' stands there twice"),
        (b'{"a": 3}', "'a' is described by 3"),
        (b'{"a": {"shape": [1]}}', "'a' is described by"),
    ],
)
def test_headers_that_are_none(header: bytes, said: str, tmp_path) -> None:
    path = raw(tmp_path / "model.safetensors", header)
    refused(lambda: open_safetensors(path), str(path), said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "F8_E4M3"}, "and a `dtype` of F64, F32"),
        ({"dtype": ["F32"]}, "is described by"),
        ({"shape": [2, 4]}, "of shape (2, 4) has 24 bytes, expected 32"),
        ({"shape": [-2, -3]}, "is described by"),
        ({"shape": [2, "3"]}, "is described by"),
        ({"shape": [2.0, 3]}, "is described by"),
        ({"shape": [True, 6]}, "is described by"),
        ({"shape": [2**40, 2**40]}, "has 24 bytes, expected"),
        ({"data_offsets": [0, 20]}, "has 20 bytes, expected 24"),
        ({"data_offsets": ["0", "24"]}, "is described by"),
        ({"data_offsets": [0]}, "is described by"),
        ({"data_offsets": [8, 32]}, "begins at byte 8, expected 0"),
    ],
)
def test_entries_that_do_not_hold(change: dict[str, Any], said: str, tmp_path) -> None:
    header = json.dumps({"a": entry(2, 3, **change)}).encode()
    path = raw(tmp_path / "model.safetensors", header, bytes(24))
    refused(lambda: open_safetensors(path), str(path), "'a'", said)


def test_tensors_that_lie_over_one_another(tmp_path) -> None:
    header = {"a": entry(2, 3), "b": entry(2, 3, begins=12)}
    path = raw(tmp_path / "model.safetensors", json.dumps(header).encode(), bytes(36))
    refused(lambda: open_safetensors(path), "'b' begins at byte 12, expected 24")


def test_a_tensor_in_two_files(tmp_path) -> None:
    for name in ("a", "b"):
        save_file(tensors(), tmp_path / f"{name}.safetensors")
    both = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    refused(lambda: open_safetensors(*both), "b.safetensors holds", "a.safetensors does, too")


# In several files


def sharded(place: Path) -> dict[str, str]:
    """Two files and their index, which is returned."""
    places = {}
    for number, name in enumerate(tensors()):
        file = f"model-0000{1 + number % 2}-of-00002.safetensors"
        places[name] = file
    for file in set(places.values()):
        part = {name: tensor for name, tensor in tensors().items() if places[name] == file}
        save_file(part, place / file)
    write_index(place, places)
    return places


def write_index(place: Path, places: Any) -> None:
    said = {"metadata": {"total_size": 1}, "weight_map": places}
    (place / "model.safetensors.index.json").write_text(json.dumps(said))


def test_several_files_are_one(tmp_path) -> None:
    places = sharded(tmp_path)
    found = open_sharded(tmp_path)
    assert {name: header.file.name for name, header in found.items()} == places
    assert torch.equal(found.read("a.weight"), tensors()["a.weight"])


def test_several_files_and_an_index_that_differ(tmp_path) -> None:
    places = sharded(tmp_path)
    first, second = sorted(set(places.values()))
    (tmp_path / second).rename(tmp_path / "away")
    refused(lambda: open_sharded(tmp_path), f"{second} is missing", error=FileNotFoundError)
    (tmp_path / "away").rename(tmp_path / second)
    write_index(tmp_path, {**places, "b": first})
    refused(lambda: open_sharded(tmp_path), f"b is not in {first}")
    write_index(tmp_path, {**places, "count": second})
    refused(lambda: open_sharded(tmp_path), f"count is in {first}, and not in {second}")
    write_index(tmp_path, {name: file for name, file in places.items() if name != "count"})
    refused(lambda: open_sharded(tmp_path), f"count is in {first}, and not in the index")
    write_index(tmp_path, {**places, "b": "../outside.safetensors"})
    refused(lambda: open_sharded(tmp_path), "'../outside.safetensors', expected files of its own")
    for wrong in (None, [], {"a": 3}):
        write_index(tmp_path, wrong)
        refused(lambda: open_sharded(tmp_path), "has no `weight_map`")
    (tmp_path / "model.safetensors.index.json").write_text("{")
    refused(lambda: open_sharded(tmp_path), "is not JSON")
    (tmp_path / "model.safetensors.index.json").write_text(" " * 9 * MEGABYTE)
    refused(lambda: open_sharded(tmp_path), "has 9437184 bytes, expected 8388608 at most")
    save_file(tensors(), tmp_path / "model.safetensors")
    refused(lambda: open_sharded(tmp_path), "which of the two is meant is not guessed")
    (tmp_path / "model.safetensors.index.json").unlink()
    assert len(open_sharded(tmp_path)) == 3


# Pickles


def test_a_pickle_of_dictionaries(tmp_path) -> None:
    path = tmp_path / "model.pt"
    nested = {"model": {"llm": tensors(), "step": 3, "name": "x"}, "optimizer": [torch.ones(1)]}
    torch.save(nested, path)
    found = open_pickled(path)
    assert set(found) == {f"model.llm.{name}" for name in tensors()}
    part = found.part("model.llm.")
    for name, tensor in tensors().items():
        assert torch.equal(part.read(name), tensor) and part[name].dtype == tensor.dtype
    part.read("a.weight").zero_()  # memory of its own
    assert part.read("a.weight").any()


class Code:
    """What runs when it is unpickled."""

    def __init__(self, told: str) -> None:
        self.told = told

    def __reduce__(self) -> Any:
        return (exec, (self.told,))


def test_code_in_a_pickle_does_not_run(tmp_path) -> None:
    told = f"open({str(tmp_path / 'ran')!r}, 'w').close()"
    path = tmp_path / "model.pt"
    torch.save({"a": torch.ones(2), "code": Code(told)}, path)
    said = refused(lambda: open_pickled(path), str(path), "and exec, which it names, is not run")
    assert "weights_only" not in said, "no advice to run it all the same"
    assert not (tmp_path / "ran").exists()
    # Before torch 1.6, and by nobody in particular: a bare pickle.
    path.write_bytes(pickle.dumps(Code(told)))
    refused(lambda: open_pickled(path), "no whole file of torch.save")
    assert not (tmp_path / "ran").exists()


def test_a_whole_module_is_not_unpickled(tmp_path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    refused(lambda: open_pickled(tmp_path / "model.pt"), "torch.nn.modules.linear.Linear")


def test_pickles_that_are_cut_short_or_none(tmp_path) -> None:
    path = tmp_path / "model.pt"
    refused(lambda: open_pickled(path), "is missing", error=FileNotFoundError)
    torch.save(tensors(), path)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(lambda: open_pickled(path), str(path), "cut short")
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    refused(lambda: open_pickled(path), "is a pointer of Git LFS")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("note.txt", "no weights")
    refused(lambda: open_pickled(path), "cannot be read")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02garbage")
        archive.writestr("x/version", b"3\n")
        archive.writestr("x/byteorder", b"little")
    refused(lambda: open_pickled(path), str(path))


def test_pickles_that_are_large_in_memory_alone(tmp_path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(100 * MEGABYTE))
    refused(lambda: open_pickled(path), "'x/data.pkl' has 104857600 bytes, packed into")
    torch.save(tensors(), tmp_path / "plain.pt")
    records = {}
    with zipfile.ZipFile(tmp_path / "plain.pt") as archive:
        for each in archive.namelist():
            records[each] = archive.read(each)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for each, content in records.items():
            archive.writestr(each, content)
    refused(lambda: open_pickled(path), "packed into", "torch.save packs none")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", bytes(9 * MEGABYTE))
    refused(lambda: open_pickled(path), "a pickle has 8388608 at most")
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(60_000):
            archive.writestr(f"x/data/{number}", b"")
    with pytest.raises(ValueError, match="holds 60000 records, expected 50000 at most"):
        open_pickled(path)
    torch.save({"a": torch.ones(1).expand(10**12)}, path)
    refused(lambda: open_pickled(path), "a of shape (1000000000000,)", "repeats fewer numbers")
    torch.save({"a": torch.ones(2, 2).to_sparse()}, path)
    refused(lambda: open_pickled(path), "is sparse")


def test_dictionaries_without_end(tmp_path) -> None:
    path = tmp_path / "model.pt"
    around: dict[str, Any] = {"a": torch.ones(1)}
    around["itself"] = around
    torch.save(around, path)
    refused(lambda: open_pickled(path), "dictionaries without end")
    doubled: dict[str, Any] = {}
    for _ in range(40):  # forty dictionaries, and 2 ** 40 ways through them
        doubled = {"left": doubled, "right": doubled}
    torch.save(doubled, path)
    refused(lambda: open_pickled(path), "dictionaries without end")


# Into a network


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2)
        self.last = nn.Linear(3, 2, bias=False)


def opened(tmp_path: Path, **named: torch.Tensor) -> Tensors:
    save_file(
        {name.replace("__", "."): each for name, each in named.items()}, tmp_path / "x.safetensors"
    )
    return open_safetensors(tmp_path / "x.safetensors")


OWN = {"first.weight": (2, 3), "first.bias": (2,), "last.weight": (2, 3)}


def test_every_tensor_has_a_place_or_is_named(tmp_path) -> None:
    network = Small().to("meta")
    found = opened(
        tmp_path,
        old__one__weight=torch.ones(2, 3),
        old__one__bias=torch.ones(2, dtype=torch.bfloat16),
        old__head=torch.ones(9),
    )
    names = Names(
        renamed=((r"^old\.", ""), (r"^one\.", "first.")),
        unused=("*.head",),
        tied={"last.weight": "first.weight"},
    )
    loaded = fill(network, found, names)
    assert set(loaded.matched) == {
        ("old.one.weight", "first.weight"),
        ("old.one.bias", "first.bias"),
    }
    assert loaded.unused == ("old.head",) and loaded.tied == (("last.weight", "first.weight"),)
    assert loaded.dtypes == {"float32": 1, "bfloat16": 1}
    assert network.first.bias.dtype == torch.float32 and network.first.bias.tolist() == [1, 1]
    assert torch.equal(network.last.weight, torch.ones(2, 3))
    as_saved = Small().to("meta")
    fill(as_saved, found, names, dtype=None)
    assert as_saved.first.bias.dtype == torch.bfloat16


def test_all_that_does_not_fit_is_said_at_once(tmp_path) -> None:
    found = opened(
        tmp_path, first__weight=torch.ones(3, 2), other=torch.ones(1), last__weight=torch.ones(2, 3)
    )
    said = refused(
        lambda: match(OWN, found, Names()),
        "(3 tensors differ)",
        "first.weight has shape (3, 2), expected (2, 3)",
        "unexpected other (1,)",
        "missing first.bias (2,)",
    )
    assert "missing first.weight" not in said  # it is there, of another shape
    twice = opened(tmp_path, a=torch.ones(2, 3), b=torch.ones(2, 3))
    names = Names(renamed=((r"^[ab]$", "last.weight"),))
    refused(lambda: match({"last.weight": (2, 3)}, twice, names), "b and a are both last.weight")
    many = {f"layers.{number}.weight": (9,) for number in range(99)}
    refused(lambda: match(many, twice, Names()), "(101 tensors differ)", "and 89 more")
    untied = Names(tied={"last.weight": "first.weight"})
    refused(lambda: match({"last.weight": (2, 3)}, Tensors({}), untied), "missing last.weight")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value: float, tmp_path) -> None:
    damaged = torch.ones(2, 3)
    damaged[1, 1] = value
    found = opened(
        tmp_path, first__weight=torch.ones(2, 3), first__bias=torch.ones(2), last__weight=damaged
    )
    network = Small().to("meta")
    refused(
        lambda: fill(network, found, Names()), "x.safetensors", "last.weight holds NaN or infinite"
    )


def test_a_tensor_may_be_changed_on_its_way(tmp_path) -> None:
    found = opened(
        tmp_path,
        first__weight=torch.ones(2, 3),
        first__bias=torch.ones(2),
        last__weight=torch.ones(2, 3),
    )
    network = Small().to("meta")
    fill(network, found, Names(), change=lambda name, tensor: tensor * (2 if name[0] == "l" else 1))
    assert network.last.weight.sum() == 12 and network.first.weight.sum() == 6


def test_a_file_is_in_memory_once(tmp_path) -> None:
    """Sixteen tensors of four megabytes: headers cost nothing, and reading one costs that one."""
    save_file({f"{n}": torch.zeros(MEGABYTE) for n in range(16)}, tmp_path / "x.safetensors")
    tracemalloc.start()
    found = open_safetensors(tmp_path / "x.safetensors")
    assert tracemalloc.get_traced_memory()[1] < MEGABYTE
    tracemalloc.stop()
    assert sum(header.nbytes for header in found.values()) == 64 * MEGABYTE
    assert files.HEADER < 64 * MEGABYTE
