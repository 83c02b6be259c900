"""The trace store against one file per layer and signal, memory bandwidth and the disk.

    python bench/store.py [--rows 20000] [--out docs/machinery/store.json]

One row is a 32-layer teacher's: 32 × (512 + 7) numbers in half precision. Reads are from a warm
page cache.
"""

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
import tyro
from torch.utils.benchmark import Timer

from armlet.data.traces import StoreIdentity, TraceStore, TraceWriter
from armlet.progress import Progress

LAYERS, SEMANTIC, ACTION, BATCH = 32, 512, 7, 64
IDENTITY = StoreIdentity("bench", "bench", "bench")
COLUMNS = {
    "semantics": ((LAYERS, SEMANTIC), "float16"),
    "layer_actions": ((LAYERS, ACTION), "float16"),
}


@dataclasses.dataclass
class Arguments:
    rows: int = 20_000
    out: Path = Path("docs/machinery/store.json")


def main(arguments: Arguments) -> None:
    folder = Path(tempfile.mkdtemp(prefix="armlet-store-"))
    try:
        result = measure(folder, arguments.rows)
    finally:
        shutil.rmtree(folder)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def measure(folder: Path, rows: int) -> dict[str, float]:
    write_store(folder / "store", rows)
    write_files(folder / "files")
    stores = {
        verified: TraceStore(folder / "store", IDENTITY, verify=verified)
        for verified in (True, False)
    }
    order = np.random.default_rng(0).permutation(rows)
    keys = np.stack([order // 100, order % 100], 1)
    on_disk = sum(path.stat().st_size for path in (folder / "store").iterdir()) / rows
    stores[False].read(keys[:: max(1, rows // 4000)])  # warm
    position = iter(range(10**9))

    def one(store: TraceStore) -> dict[str, torch.Tensor]:
        return store.read(keys[[next(position) % rows]])

    def batch(store: TraceStore) -> dict[str, torch.Tensor]:
        first = next(position) * BATCH % (rows - BATCH)
        return store.read(keys[first : first + BATCH])

    def from_files() -> list[torch.Tensor]:
        row = next(position) % BATCH
        return [torch.load(path)[row] for path in sorted((folder / "files").iterdir())]

    def time(function, *values) -> float:
        return (
            Timer("f(*v)", globals={"f": function, "v": values})
            .blocked_autorange(min_run_time=2)
            .median
        )

    for path in (folder / "store").glob("rows-*.bin"):
        path.read_bytes()
    source = np.random.default_rng(0).integers(0, 255, 2**28, dtype=np.uint8)
    target = np.empty_like(source)
    copied = 2 * len(source) / time(np.copyto, target, source)  # read and written
    row_bytes = sum(int(np.prod(shape)) * 2 for shape, _ in COLUMNS.values())
    seconds = {
        "row": time(one, stores[True]),
        "files": time(from_files),
        "batch": time(batch, stores[True]),
        "unverified": time(batch, stores[False]),
    }
    bandwidth = {name: 2 * BATCH * row_bytes / seconds[name] for name in ("batch", "unverified")}
    return {
        "rows": rows,
        "bytes_a_row_on_disk": on_disk,
        "row_ms": 1e3 * seconds["row"],
        "row_from_files_ms": 1e3 * seconds["files"],
        "times_faster_than_files": seconds["files"] / seconds["row"],
        "memory_gb_s": copied / 1e9,
        "batch_of_64_gb_s": bandwidth["batch"] / 1e9,
        "batch_of_64_unverified_gb_s": bandwidth["unverified"] / 1e9,
        "batch_share_of_bandwidth": bandwidth["batch"] / copied,
        "batch_unverified_share_of_bandwidth": bandwidth["unverified"] / copied,
    }


def write_store(root: Path, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    progress = Progress("writing rows", total=rows, unit="row")
    with TraceWriter(root, IDENTITY, COLUMNS) as writer:
        for start in range(0, rows, 1000):
            index = np.arange(start, min(start + 1000, rows))
            values = {
                name: torch.randn(len(index), *shape, generator=generator)
                for name, (shape, _) in COLUMNS.items()
            }
            writer.append(np.stack([index // 100, index % 100], 1), values)
            progress.advance(len(index))
    progress.close()


def write_files(root: Path) -> None:
    """As the public code stores a batch of 64: one file a layer and signal, each with the whole
    batch."""
    root.mkdir()
    for layer in range(LAYERS):
        for name, width in (("semantic", SEMANTIC), ("action", ACTION)):
            torch.save(torch.randn(BATCH, width).half(), root / f"{name}-{layer}.pt")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
