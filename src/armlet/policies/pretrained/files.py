"""Tensors on disk → a network, loudly: each tensor of the files has a place, is known to be of no
use, or is an error; and so is each place that no tensor fills.

Headers first: `Tensors` knows names, shapes and types of all files before a number is read, and
what is cut short, missing, a pointer of Git LFS, or absurdly long is refused there. Numbers are
then read one tensor at a time, so that a network of 15 GB is in memory once.
"""

import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from armlet.data.bounded import HEADER, TENSORS, safetensors_header
from armlet.data.files import check_is_here, read_json
from armlet.policies.precisions import IN_HEADERS, long_name
from armlet.robot.tables import read_once

DEEPEST = 16  # dictionaries within one another
SHOWN = 12  # names in an error
COPY = "copy the checkpoint's files again, whole"


@dataclass(frozen=True)
class Header:
    """What a file says of one of its tensors; `key` is its name there."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path
    key: str

    @property
    def numel(self) -> int:
        count = 1
        for side in self.shape:
            count *= side
        return count

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


class Tensors(Mapping[str, Header]):
    """The tensors of one or several files: name → `Header`; `read` gives the numbers of one."""

    def __init__(
        self, headers: dict[str, Header], pickled: dict[Path, dict[str, Tensor]] | None = None
    ) -> None:
        self._headers = headers
        # Of `.pt` files: mapped, so that their numbers stay on disk until they are touched.
        self._pickled = pickled or {}

    def __getitem__(self, name: str) -> Header:
        return self._headers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def __len__(self) -> int:
        return len(self._headers)

    @property
    def files(self) -> list[Path]:
        return sorted({header.file for header in self._headers.values()})

    def read(self, name: str) -> Tensor:
        """A tensor's numbers, in memory of its own, in the precision that they have on disk."""
        header = self._headers[name]
        if header.file in self._pickled:
            return self._pickled[header.file][header.key].clone()
        try:
            with safe_open(header.file, "pt") as file:
                tensor: Tensor = file.get_tensor(header.key)
        except (SafetensorError, RuntimeError, OSError) as error:
            raise ValueError(f"{header.file}: {name} cannot be read ({error}); {COPY}") from error
        # Where a file happens to begin a tensor, products may round otherwise than in memory that
        # torch gives: a copy answers the same as what is saved of it and read again.
        return tensor.clone()

    def part(self, prefix: str) -> "Tensors":
        """Those whose names begin so, without that beginning."""
        headers = {}
        for name, header in self._headers.items():
            if name.startswith(prefix):
                headers[name.removeprefix(prefix)] = header
        return Tensors(headers, self._pickled)

    def without(self, prefix: str) -> "Tensors":
        """Those whose names begin otherwise."""
        headers = {}
        for name, header in self._headers.items():
            if not name.startswith(prefix):
                headers[name] = header
        return Tensors(headers, self._pickled)

    def under(self, prefix: str) -> "Tensors":
        """The same, with names that begin so."""
        headers = {prefix + name: header for name, header in self._headers.items()}
        return Tensors(headers, self._pickled)

    def and_those(self, others: "Tensors") -> "Tensors":
        """Both together; the others' stand for ours of the same name."""
        headers = {**self._headers, **others._headers}
        return Tensors(headers, {**self._pickled, **others._pickled})


def open_safetensors(*paths: Path) -> Tensors:
    """The tensors of some safetensors files.

    Raises FileNotFoundError or ValueError naming the file that is missing, cut short, a pointer of
    Git LFS, or whose header is no header or too long to be one.
    """
    headers: dict[str, Header] = {}
    for path in paths:
        for name, header in _read_header(path).items():
            if name in headers:
                raise ValueError(
                    f"{path} holds {name!r}, and {headers[name].file} does, too: expected each "
                    f"tensor once; {COPY}"
                )
            headers[name] = header
    return Tensors(headers)


def open_sharded(folder: Path, stem: str = "model") -> Tensors:
    """`<stem>.safetensors` in a folder or, in several files, what `<stem>.safetensors.index.json`
    names. Raises as `open_safetensors` does, and ValueError where index and files differ."""
    index = folder / f"{stem}.safetensors.index.json"
    whole = folder / f"{stem}.safetensors"
    if not index.is_file():
        return open_safetensors(whole)
    if whole.exists():
        raise ValueError(
            f"{folder} holds {whole.name}, and {index.name} with several files: which of the two "
            "is meant is not guessed; remove one of them"
        )
    if index.stat().st_size > HEADER:
        raise ValueError(
            f"{index} has {index.stat().st_size} bytes, expected {HEADER} at most; {COPY}"
        )
    places = read_json(index, fix=COPY).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(each, str) for each in places.values()):
        raise ValueError(f"{index} has no `weight_map` of tensor → file; {COPY}")
    names = sorted(set(places.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:  # a file of the folder, or somebody reads what they should not
        raise ValueError(f"{index} names {outside[0]!r}, expected files of its own folder; {COPY}")
    found = open_safetensors(*(folder / name for name in names))
    wrong = []
    for name, place in places.items():
        if name not in found:
            wrong.append(f"{name} is not in {place}")
        elif found[name].file.name != place:
            wrong.append(f"{name} is in {found[name].file.name}, and not in {place}")
    for name, header in found.items():
        if name not in places:
            wrong.append(f"{name} is in {header.file.name}, and not in the index")
    if wrong:
        raise ValueError(f"{index} and its files differ: {_listed(wrong)}; {COPY}")
    return found


def _read_header(path: Path) -> dict[str, Header]:
    # Not the library's own: it would read a header of any length, and say neither file nor fix.
    content = safetensors_header(path, fix=COPY)
    size = path.stat().st_size
    length = len(content)
    headers = {}
    spans = []
    for name, entry in _parse_header(content, path).items():
        if name != "__metadata__":
            headers[name], span = _described(name, entry, path)
            spans.append((*span, name))
    end = 0
    for begins, ends, name in sorted(spans):
        if begins != end:
            raise ValueError(
                f"{path}: {name!r} begins at byte {begins}, expected {end}, where the tensor "
                f"before it ends; {COPY}"
            )
        end = ends
    if size != 8 + length + end:
        raise ValueError(
            f"{path} holds {size - 8 - length} bytes of tensors, and its header promises {end}: it "
            f"was cut short, or is mixed of two; {COPY}"
        )
    return headers


def _parse_header(content: bytes, path: Path) -> dict[str, Any]:
    try:
        found = read_once(content.decode())
    except ValueError as error:
        raise ValueError(
            f"{path}: its header of {len(content)} bytes is none of a safetensors file "
            f"({error!s:.200}); {COPY}"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{path}: its header holds a JSON {type(found).__name__}, expected an object; {COPY}"
        )
    return found


def _described(name: str, entry: Any, path: Path) -> tuple[Header, tuple[int, int]]:
    """A tensor by its entry in a header, and where its bytes begin and end."""
    try:
        shape = tuple(entry["shape"])
        dtype = IN_HEADERS[entry["dtype"]]
        begins, ends = entry["data_offsets"]
        whole = all(type(each) is int and each >= 0 for each in (*shape, begins, ends))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(
            f"{path}: {name!r:.80} is described by {entry!r:.120}, expected `shape`, "
            f"`data_offsets` and a `dtype` of {', '.join(IN_HEADERS)}; {COPY}"
        )
    header = Header(shape, dtype, path, name)
    if header.nbytes != ends - begins:
        raise ValueError(
            f"{path}: {name!r:.80} of shape {shape} has {ends - begins} bytes, expected "
            f"{header.nbytes}; {COPY}"
        )
    return header, (begins, ends)


def open_pickled(path: Path) -> Tensors:
    """The tensors of a `.pt` file, of dictionaries within dictionaries: their names are joined by
    dots. Their numbers stay in the file until they are read; what is no tensor is left out.

    Raises FileNotFoundError or ValueError naming the file that is missing, cut short, or holds more
    than tensors and plain values: nothing in it is run.
    """
    check_is_here(path, fix=COPY)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is no whole file of torch.save, which is a zip "
            f"archive: it was cut short, or is older than torch 1.6, which can save it anew; {COPY}"
        ) from error
    if len(entries) > TENSORS:
        raise ValueError(
            f"{path} holds {len(entries)} records, expected {TENSORS} at most; this is no file of a "
            "policy's weights"
        )
    for entry in entries:
        pickled = entry.filename.endswith(".pkl")
        # Torch packs nothing: what is small in a file and large in memory is somebody's trap.
        if entry.compress_type != zipfile.ZIP_STORED or (pickled and entry.file_size > HEADER):
            raise ValueError(
                f"{path}: its record {entry.filename!r:.80} has {entry.file_size} bytes, packed "
                f"into {entry.compress_size}: torch.save packs none, and a pickle has {HEADER} at "
                "most; this is no file of a policy's weights"
            )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        # Not torch's own words, which tell how to run such a file all the same.
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"{named[1]}, which it names," if named else "what it names"
        raise ValueError(
            f"{path} holds more than tensors and plain values, and {what} is not run; save its "
            "weights alone: torch.save(model.state_dict(), …), or as safetensors"
        ) from error
    except Exception as error:  # a damaged pickle fails in every way there is
        first = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} cannot be read ({first:.200}); {COPY}") from error
    tensors = _tensors_in(content, path)
    headers = {}
    for name, tensor in tensors.items():
        headers[name] = Header(tuple(tensor.shape), tensor.dtype, path, name)
    return Tensors(headers, {path: tensors})


def _tensors_in(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of dictionaries within dictionaries, under dotted names. A dictionary may stand
    in itself, or in another a thousand times, so what is looked at is counted."""
    found: dict[str, Tensor] = {}
    waiting = [("", 0, content)]
    looked = 0
    while waiting:
        name, depth, value = waiting.pop()
        looked += 1
        if looked > 20 * TENSORS or len(found) > TENSORS or depth > DEEPEST:
            raise ValueError(
                f"{path} holds dictionaries without end, or more than {TENSORS} tensors; this is no "
                "file of a policy's weights"
            )
        if isinstance(value, Tensor):
            _check_whole(name, value, path)
            found[name] = value
        elif isinstance(value, Mapping):
            items = list(value.items())
            for key, item in reversed(items):  # the first is looked at first
                waiting.append((f"{name}.{key}" if name else str(key), depth + 1, item))
    return found


def _check_whole(name: str, tensor: Tensor, path: Path) -> None:
    """Raises ValueError for a tensor that is larger than what the file holds of it."""
    dense = tensor.layout == torch.strided and not tensor.is_quantized
    if not dense or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise ValueError(
            f"{path}: {name} of shape {tuple(tensor.shape)} is sparse, quantised, or repeats fewer "
            "numbers than it has; save it as a plain tensor (`.contiguous()`)"
        )


@dataclass(frozen=True)
class Names:
    """How names in the files become names of a network.

    `renamed`: (pattern, replacement), regular expressions that are tried in order on the whole name
    (`re.sub`), every one of them. `unused`: patterns (`fnmatch`) of names in the files that the
    network has no use for. `tied`: a name of the network that no file need have → the one whose
    tensor stands for it.
    """

    renamed: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()
    tied: Mapping[str, str] = ()  # type: ignore[assignment]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tied", dict(self.tied))

    def ours(self, name: str) -> str:
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name

    def is_unused(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.unused)


@dataclass(frozen=True)
class Loaded:
    """What became of the tensors: `matched` (file's name, ours), `unused` names of the files,
    `tied` (ours, whose tensor it has), and how many tensors were of which type on disk."""

    matched: tuple[tuple[str, str], ...]
    unused: tuple[str, ...]
    tied: tuple[tuple[str, str], ...]
    dtypes: Mapping[str, int]


Change = Callable[[str, Tensor], Tensor]  # our name and a tensor of the file → as we have it


def match(own: Mapping[str, tuple[int, ...]], tensors: Tensors, names: Names) -> Loaded:
    """Which tensor of the files goes where; `own`: shapes of the network's tensors by name.

    Raises ValueError naming all that are missing, unexpected, twice there or of another shape.
    """
    matched: dict[str, str] = {}  # our name → the file's
    misshapen = set()
    unused = []
    wrong = []
    dtypes: dict[str, int] = {}
    for name, header in tensors.items():
        if names.is_unused(name):
            unused.append(name)
            continue
        ours = names.ours(name)
        if ours not in own:
            wrong.append(f"unexpected {name} {header.shape}" + _as(ours, name))
        elif ours in matched:
            wrong.append(f"{name} and {matched[ours]} are both {ours}")
        elif own[ours] != header.shape:
            misshapen.add(ours)  # there, and not missing
            wrong.append(f"{name} has shape {header.shape}, expected {own[ours]}" + _as(ours, name))
        else:
            matched[ours] = name
            kind = long_name(header.dtype)
            dtypes[kind] = dtypes.get(kind, 0) + 1
    tied = []
    for name, shape in own.items():
        if name in matched or name in misshapen:
            continue
        other = names.tied.get(name)
        if other is not None and other in matched:
            tied.append((name, other))
        else:
            wrong.append(f"missing {name} {shape}")
    if wrong:
        shown = ", ".join(map(str, tensors.files[:3]))
        raise ValueError(
            f"{shown} does not fit the network that its config describes ({len(wrong)} tensors "
            f"differ): {_listed(sorted(wrong))}"
        )
    pairs = tuple((theirs, ours) for ours, theirs in matched.items())
    return Loaded(pairs, tuple(unused), tuple(tied), dtypes)


def fill(
    network: nn.Module,
    tensors: Tensors,
    names: Names,
    *,
    dtype: torch.dtype | None = torch.float32,
    change: Change | None = None,
) -> Loaded:
    """Give a network that was built without weights (`contract.rebuild(…, empty=True)`) those of
    the files, each tensor read once. Floating-point ones become `dtype`; None: as on disk. `change`
    is what a tensor needs beside another name, of the same shape.

    Raises as `match` does, before a number is read, and for weights that are NaN or infinite.
    """
    own = network.state_dict()
    found = match({name: tuple(each.shape) for name, each in own.items()}, tensors, names)
    taken: dict[str, Tensor] = {}
    for theirs, ours in found.matched:
        tensor = tensors.read(theirs)
        if tensor.is_floating_point():
            if not bool(tensor.isfinite().all()):
                raise ValueError(
                    f"{tensors[theirs].file}: {theirs} holds NaN or infinite weights; the file is "
                    f"damaged, or its training failed; {COPY}"
                )
            tensor = tensor.to(dtype or tensor.dtype)
        taken[ours] = tensor if change is None else change(ours, tensor)
    for ours, other in found.tied:
        taken[ours] = taken[other]  # one tensor under both names
    network.load_state_dict(taken, assign=True)
    return found


def _as(ours: str, name: str) -> str:
    return "" if ours == name else f" (here {ours})"


def _listed(lines: Sequence[str]) -> str:
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more
