"""What lies where in the files of a state in shards, as JSON.

torch's distributed checkpoint writes tensors, and a list of them that it pickles, which whoever reads
it would run; its place is taken by `layout.json`. Knows no stage. Slow to import: torch.distributed.
"""

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
from torch.distributed.checkpoint.storage import WriteResult

from armlet.data.files import read_json, write_atomically
from armlet.policies.precisions import IN_HEADERS, long_name

LAYOUT = "layout.json"
TYPES = {long_name(dtype): dtype for dtype in IN_HEADERS.values()}


class Place(NamedTuple):
    """Of a chunk: its file, from which byte on, and how many; by the names that torch reads."""

    relative_path: str
    offset: int
    length: int
    transform_descriptors: None = None  # nothing is packed


class ShardWriter(FileSystemWriter):
    """torch's, but for the list of what it wrote."""

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
                place = [part.relative_path, part.offset, part.length]
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
    for offsets, sizes, file, begin, length in about["chunks"]:
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
        stored[MetadataIndex(name, chunk.offsets)] = Place(file, begin, length)
    return TensorStorageMetadata(TensorProperties(TYPES[about["dtype"]]), size, chunks)


def _numbers(said: Any) -> torch.Size:
    if not all(type(each) is int and 0 <= each < 2**63 for each in said):
        raise ValueError(f"found {said}, expected numbers that are not negative")
    return torch.Size(said)
