"""A large data set's pictures on their way into training: how fast, how much memory, and what a
second start costs.

    python bench/pictures.py [--frames 100000] [--place FOLDER] [--out docs/machinery/pictures.json]

Makes a data set as lerobot's recorder lays it out (AV1 films with a key frame every other frame,
5,000 frames a file) of two cameras of 640×480, and draws shuffled batches of it as training does,
letterboxed to 224 pixels: from the file of decoded pictures, which is made by the first start, and
streamed. One film is made a camera, and stands there under every film's name: what is decoded is no
less. Every row below is a process of its own; its memory is counted above what the process held
with everything imported. Needs Linux, and room for what is decoded: 30 GB for 100,000 frames.
"""

import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro

from armlet.data.episodes import EpisodeDataset
from armlet.data.frames import BatchMaker, draw, load_frames
from armlet.data.pictures import Pictures
from armlet.data.text import train_tokenizer
from armlet.progress import Progress
from armlet.robot.fit import View
from armlet.robot.inputs import Inputs
from armlet.robot.normalise import Normaliser
from armlet.robot.reading.own import Words

CAMERAS, HEIGHT, WIDTH, FPS = ("front", "wrist"), 480, 640, 30
SIDE, BATCH, STEPS = 224, 64, 100
EPISODE, FILE = 200, 5_000  # frames of each
DIMS = 7


@dataclasses.dataclass
class Arguments:
    frames: int = 100_000
    place: Path | None = None  # for the data set and what is decoded of it; removed afterwards
    out: Path = Path("docs/machinery/pictures.json")


def main(arguments: Arguments) -> None:
    folder = Path(tempfile.mkdtemp(prefix="armlet-pictures-", dir=arguments.place))
    try:
        result = measure(folder, arguments.frames)
    finally:
        shutil.rmtree(folder)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def measure(folder: Path, frames: int) -> dict[str, Any]:
    root = folder / "episodes"
    write_data_set(root, frames)
    kept = Pictures("letterbox", SIDE)
    streamed = Pictures("letterbox", SIDE, cache_gb=0)
    first = alone(root, kept)
    return {
        "frames": frames,
        "cameras": len(CAMERAS),
        "pixels": f"{WIDTH}x{HEIGHT}",
        "side": SIDE,
        "threads": kept.threads,
        "first_start": {
            **first,
            "decoded_frames_a_second": len(CAMERAS) * frames / first["seconds_to_first_batch"],
        },
        "second_start": alone(root, kept),
        "streamed": alone(root, streamed),
        "gigabytes_at_full_size": len(CAMERAS) * frames * HEIGHT * WIDTH * 3 / 1e9,
        "gigabytes_decoded": len(CAMERAS) * frames * SIDE * SIDE * 3 / 1e9,
    }


def alone(root: Path, pictures: Pictures) -> dict[str, float]:
    """What `train` answers, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(train, root, pictures).result()


def train(root: Path, pictures: Pictures) -> dict[str, float]:
    """Opens the data set and draws shuffled batches, as a training stage does but for its
    network."""
    before = peak_memory()
    started = time.perf_counter()
    data = EpisodeDataset(root)
    fingerprint = data.fingerprint
    read = time.perf_counter() - started
    frames = load_frames(data, pictures.view(data.cameras, whose=str(root)), pictures)
    unit = Normaliser(np.zeros(DIMS, np.float32), np.ones(DIMS, np.float32))
    tokenizer = train_tokenizer(sorted(data.tasks))
    inputs = Inputs(View(data.cameras), Words(tokenizer, 8), unit, unit, chunk=16)
    batches = BatchMaker(frames, inputs, device=torch.device("cpu"))
    batches.batch(draw(len(batches), BATCH, 0, 0))
    opened = time.perf_counter() - started
    progress = Progress(f"batches of {fingerprint}", total=STEPS, unit="step")
    drawing = time.perf_counter()
    for step in range(1, STEPS + 1):
        batches.batch(draw(len(batches), BATCH, step, 0))
        batches.expect(draw(len(batches), BATCH, step + 1, 0))
        progress.advance()
    seconds = time.perf_counter() - drawing
    progress.close()
    return {
        "seconds_to_fingerprint": read,
        "seconds_to_first_batch": opened,
        "pictures_a_second": len(CAMERAS) * BATCH * STEPS / seconds,
        "batch_ms": 1e3 * seconds / STEPS,
        "peak_memory_gb": (peak_memory() - before) / 1e9,
    }


def peak_memory() -> int:
    """The most bytes that this process has held so far. The kernel's own count, as getrusage's
    includes the parent's."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def write_data_set(root: Path, frames: int) -> None:
    """LeRobotDataset v3.0, episodes of `EPISODE` frames."""
    for camera in CAMERAS:
        film = root / f"videos/observation.images.{camera}/chunk-000/file-000.mp4"
        write_film(film, min(frames, FILE), camera)
        for number in range(1, -(-frames // FILE)):
            os.link(film, film.with_name(f"file-{number:03d}.mp4"))
    rng = np.random.default_rng(0)
    numbers = {"dtype": "float32", "shape": [DIMS], "names": None}
    picture = {
        "dtype": "video",
        "shape": [HEIGHT, WIDTH, 3],
        "names": ["height", "width", "channels"],
    }
    index = np.arange(frames)
    step = index % EPISODE
    columns: dict[str, Any] = {
        "episode_index": index // EPISODE,
        "frame_index": step,
        "index": index,
        "task_index": np.zeros(frames, np.int64),
        "timestamp": (step / FPS).astype(np.float32),
        "observation.state": list(rng.uniform(-1, 1, (frames, DIMS)).astype(np.float32)),
        "action": list(rng.uniform(-1, 1, (frames, DIMS)).astype(np.float32)),
    }
    listed = [episode_line(number, frames) for number in range(-(-frames // EPISODE))]
    save(pa.table(columns), root / "data/chunk-000/file-000.parquet")
    save(pa.Table.from_pylist(listed), root / "meta/episodes/chunk-000/file-000.parquet")
    save(pa.table({"task_index": [0], "task": ["fold the towel"]}), root / "meta/tasks.parquet")
    info = {
        "codebase_version": "v3.0",
        "fps": FPS,
        "total_episodes": len(listed),
        "total_frames": frames,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {
            **{f"observation.images.{camera}": picture for camera in CAMERAS},
            "observation.state": numbers,
            "action": numbers,
        },
    }
    (root / "meta/info.json").write_text(json.dumps(info))


def episode_line(number: int, frames: int) -> dict[str, Any]:
    first = number * EPISODE
    last = min(first + EPISODE, frames)
    line = {
        "episode_index": number,
        "tasks": ["fold the towel"],
        "length": last - first,
        "data/chunk_index": 0,
        "data/file_index": 0,
        "dataset_from_index": first,
        "dataset_to_index": last,
    }
    for camera in CAMERAS:
        key = f"videos/observation.images.{camera}"
        line[f"{key}/chunk_index"] = 0
        line[f"{key}/file_index"] = first // FILE
        line[f"{key}/from_timestamp"] = first % FILE / FPS
        line[f"{key}/to_timestamp"] = (first % FILE + last - first) / FPS
    return line


def save(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def write_film(path: Path, frames: int, camera: str) -> None:
    """A noisy picture that wanders, so that frames differ and compress about as a camera's do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(camera))
    coarse = (
        rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
        .repeat(16, 0)
        .repeat(16, 1)
    )
    grain = rng.integers(0, 12, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    progress = Progress(f"film of {camera}", total=frames, unit="frame")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libsvtav1", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, FPS)
        stream.options = {"g": "2", "crf": "30", "preset": "12"}
        for number in range(frames):
            down, right = number % HEIGHT, 2 * number % WIDTH
            picture = coarse[down : down + HEIGHT, right : right + WIDTH] // 2 + grain
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
            progress.advance()
        container.mux(stream.encode())
    progress.close()


if __name__ == "__main__":
    main(tyro.cli(Arguments))
