"""A run that is killed and resumed in the real TensorBoard, W&B (offline) and trackio: read back by
their own readers, every point stands once (`make test-logs`)."""

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.logs
BLOCK = 2**15  # bytes, of W&B's file

RUN = """
import os, sys, time
from pathlib import Path
from armlet.logs import Logging, RunLog

to, out, first, last, kill = sys.argv[1:]
asked = Logging(to=(to,), project="armlet-test", offline=to == "wandb")
log = RunLog(asked, Path(out), "run", {"width": 8})
series = log.series(Path(out) / "distil-0")
for step in range(int(first), int(last) + 1):
    series.point(step, {"step": step, "loss": 1.0 / step})
if kill == "stop":
    sys.exit(9)  # an error, or Ctrl-C: what Python does at its end is done
if kill == "kill":
    time.sleep(5 if to == "trackio" else 0)  # it writes a little later, on its own
    os._exit(9)
log.series(Path(out) / "evaluation").result("r", {"teacher/success": 0.5})
log.close()
"""


def run(to: str, out: Path, first: int, last: int, kill: str, home: Path) -> None:
    """In a process of its own, as verbs are; it prints nothing of its own on stdout."""
    # Only what a process needs, and a home in which trackio and W&B keep what they keep.
    kept = {"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    kept |= {"TRACKIO_DIR": str(home / "trackio"), "WANDB_SILENT": "true"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, to, str(out), str(first), str(last), kill],
        capture_output=True,
        text=True,
        timeout=240,
        env=kept,
        check=False,
    )
    assert done.returncode == (9 if kill else 0), done.stderr
    assert done.stdout == "", done.stdout


def killed_and_resumed(to: str, tmp_path: Path, kill: str = "kill") -> Path:
    pytest.importorskip(to)
    out = tmp_path / "out"
    run(to, out, 1, 5, kill, tmp_path)
    run(to, out, 3, 8, "", tmp_path)  # it goes on from its last saved state, at step 3
    return out


EXPECTED = {step: 1.0 / step for step in range(1, 9)}


def test_tensorboard(tmp_path: Path) -> None:
    out = killed_and_resumed("tensorboard", tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (out / "tensorboard").iterdir()
    read = EventAccumulator(str(folder)).Reload()
    found = [(event.step, event.value) for event in read.Scalars("distil-0/loss")]
    assert [step for step, _ in found] == list(EXPECTED)
    assert dict(found) == pytest.approx(EXPECTED)
    assert [event.value for event in read.Scalars("evaluation/teacher/success")] == [0.5]
    assert "recipe/text_summary" in read.Tags()["tensors"]


def records(content: bytes) -> Iterator[bytes]:
    """What is in a file that W&B keeps offline: LevelDB's log behind 7 bytes; pieces of (crc 4,
    length 2, kind 1) in blocks of 32 KiB, where kind 1 is whole, and 2, 3, 4 its first, a middle
    and its last piece."""
    at = 7
    whole = b""
    while at + 7 <= len(content):
        left = BLOCK - at % BLOCK
        if left < 7:  # filled up with zeros
            at += left
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


@pytest.mark.parametrize("kill", ["stop", "kill"])
def test_wandb(kill: str, tmp_path: Path) -> None:
    """Offline it keeps points in memory for a while: whoever kills the process outright loses these,
    and still has none twice."""
    out = killed_and_resumed("wandb", tmp_path, kill)
    from wandb.proto import wandb_internal_pb2

    found = []
    ids = set()
    for path in sorted((out / "wandb").glob("offline-run-*/*.wandb")):
        for data in records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("history"):
                row = {}
                for item in record.history.item:
                    row[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
                if "distil-0/loss" in row:
                    found.append((row["distil-0/step"], row["distil-0/loss"]))
    assert len(ids) == 1, "the same run in both processes"
    steps = [step for step, _ in found]
    assert steps == sorted(set(steps)) and steps[-3:] == [6, 7, 8]
    if kill == "stop":
        assert dict(found) == pytest.approx(EXPECTED)


def test_trackio(tmp_path: Path) -> None:
    killed_and_resumed("trackio", tmp_path)
    import sqlite3

    found = []
    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as database:
        for name, metrics in database.execute("SELECT run_name, metrics FROM metrics ORDER BY id"):
            row = json.loads(metrics)
            if "distil-0/loss" in row:
                found.append((name, row["distil-0/step"], row["distil-0/loss"]))
    assert len({name for name, _, _ in found}) == 1
    assert [step for _, step, _ in found] == list(EXPECTED)
