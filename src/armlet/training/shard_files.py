"""What lies where in the files of a state in shards, as JSON, and whether it is what was written.

torch's distributed checkpoint writes tensors, and a list of them that it pickles, which whoever reads
it would run; its place is taken by `layout.json`. torch looks at no checksum: every chunk's is in that
list, computed by the process that wrote the chunk, and looked at by each that reads it, a piece of the
file at a time. Knows no stage. Slow to import: torch.distributed.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from armlet.data.files import read_json, write_atomically
from armlet.policies.precisions import IN_HEADERS, long_name

LAYOUT = "layout.json"
PIECE = 2**20  # bytes of a file in memory, where it is only looked at
TYPES = {long_name(dtype): dtype for dtype in IN_HEADERS.values()}


class Place(NamedTuple):
    """Of a chunk: its file, from which byte on, and how many; by the names that torch reads. And
    its SHA-256; None where an armlet wrote it that kept none."""

    relative_path: str
    offset: int
    length: int
    digest: str | None
    transform_descriptors: None = None  # nothing is packed


class DamagedError(ValueError):
    """A chunk that is not what was written."""


class ShardWriter(FileSystemWriter):
    """torch's, but for the list of what it wrote."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """What this process wrote, and what it is: read again where the system still has it in
        memory, for torch's pickler hands nobody its bytes."""
        found = []
        for result in super().write_data(plan, planner).wait():
            at = result.storage_data
            digest = _digest(Path(self.path) / at.relative_path, at.offset, at.length)
            place = Place(at.relative_path, at.offset, at.length, digest)
            found.append(dataclasses.replace(result, storage_data=place))
        done: Future[list[WriteResult]] = Future()
        done.set_result(found)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """One process is told what all wrote, and lists it; durable when it returns."""
        stored = {}
        for each in results:
            stored.update({result.index: result.storage_data for result in each})
        tensors = {}
        for name, about in metadata.state_dict_metadata.items():
            assert isinstance(about, TensorStorageMetadata)  # nothing else is saved
            chunks = []
            for chunk in about.chunks:
                part = stored[MetadataIndex(name, chunk.offsets)]
                place = [part.relative_path, part.offset, part.length, part.digest]
                chunks.append([list(chunk.offsets), list(chunk.sizes), *place])
            dtype = long_name(about.properties.dtype)
            tensors[name] = {"dtype": dtype, "size": list(about.size), "chunks": chunks}
        said = json.dumps({"tensors": tensors}, separators=(",", ":"))
        write_atomically(Path(self.path) / LAYOUT, said.encode())


class ShardReader(FileSystemReader):
    """torch's, of files that lie as `metadata` (`read_layout`) says."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Raises DamagedError, before anything is loaded, naming the file where it is not what was
        written."""
        for index in dict.fromkeys(item.storage_index for item in plan.items):
            place = self.storage_data[index]
            path = Path(self.path) / place.relative_path
            if place.digest is None:
                continue
            if _digest(path, place.offset, place.length) != place.digest:
                raise DamagedError(
                    f"{path} is damaged: {index.fqn}, {place.length} bytes from byte "
                    f"{place.offset} on, is not what was written"
                )
        return super().read_data(plan, planner)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata


def read_layout(folder: Path, *, fix: str) -> Metadata:
    """What `ShardWriter` wrote into a folder. Raises FileNotFoundError, or ValueError naming the
    file."""
    path = folder / LAYOUT
    said = read_json(path, fix=fix)
    tensors: dict[str, TensorStorageMetadata] = {}
    stored: dict[MetadataIndex, Place] = {}
    try:
        for name, about in said["tensors"].items():
            tensors[name] = _tensor(name, about, stored)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} does not say what lies where ({type(error).__name__}: {error}); {fix}"
        ) from error
    return Metadata(
        dict(tensors),
        planner_data={},
        storage_data=stored,
        storage_meta=StorageMeta(),
        version=CURRENT_DCP_VERSION,
    )


def _tensor(
    name: str, about: Mapping[str, Any], stored: dict[MetadataIndex, Place]
) -> TensorStorageMetadata:
    """What is said of one tensor; the places of its chunks go into `stored`."""
    size = _numbers(about["size"])
    chunks = []
    for offsets, sizes, file, begin, length, *digest in about["chunks"]:
        chunk = ChunkStorageMetadata(_numbers(offsets), _numbers(sizes))
        begin, length = _numbers([begin, length])
        ends = [at + side for at, side in zip(chunk.offsets, chunk.sizes, strict=True)]
        inside = all(end <= side for end, side in zip(ends, size, strict=True))
        if not inside or Path(file).name != file:
            raise ValueError(
                f"{name} of {tuple(size)} has a chunk {tuple(chunk.sizes)} at "
                f"{tuple(chunk.offsets)} in {file!r}, expected one within it, in a file beside"
            )
        chunks.append(chunk)
        if digest and not isinstance(digest[0], str):
            raise ValueError(f"{name} has the checksum {digest[0]!r}, expected a text")
        place = Place(file, begin, length, digest[0] if digest else None)
        stored[MetadataIndex(name, chunk.offsets)] = place
    return TensorStorageMetadata(TensorProperties(TYPES[about["dtype"]]), size, chunks)


def _digest(path: Path, begin: int, length: int) -> str:
    """The SHA-256 of so many bytes of a file, or of as many as there are."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(begin)
        while length > 0:
            piece = file.read(min(length, PIECE))
            if not piece:
                break
            found.update(piece)
            length -= len(piece)
    return found.hexdigest()


def _numbers(said: Any) -> torch.Size:
    if not all(type(each) is int and 0 <= each < 2**63 for each in said):
        raise ValueError(f"found {said}, expected numbers that are not negative")
    return torch.Size(said)
