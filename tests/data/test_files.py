"""Files and folders that are whole or not there, against processes that die and disks that are
full; logs that were cut short;
locks against real processes: one that writes, one that waits, one that is killed."""

import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from kills import killed_everywhere
from safetensors.torch import save_file

from armlet.data import files
from armlet.data.files import (
    BusyError,
    FullDiskError,
    atomic_file,
    atomic_folder,
    hold,
    write_atomically,
)
from armlet.data.lines import appending, whole_lines

HOLDS = """
import sys, time
from pathlib import Path
from armlet.data.files import hold
with hold(Path(sys.argv[1]), "baking"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_one_process_at_a_time_and_a_dead_one_holds_nothing(tmp_path, holder) -> None:
    with pytest.raises(BusyError, match="another process is baking here; wait for it, or stop it"):
        hold(tmp_path / "lock", "baking")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with hold(tmp_path / "lock", "baking"), pytest.raises(BusyError):
        hold(tmp_path / "lock", "baking")  # nor twice in one process
    hold(tmp_path / "lock", "baking").lock.release()


def test_one_that_waits_goes_on_when_the_other_ends(tmp_path, holder, capfd) -> None:
    killer = subprocess.Popen(
        [sys.executable, "-c", f"import os, time; time.sleep(1); os.kill({holder.pid}, 9)"]
    )
    started = time.monotonic()
    with hold(tmp_path / "lock", "baking", wait=True):
        assert time.monotonic() - started > 0.5
    killer.wait()
    assert "waiting for it" in capfd.readouterr().err


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_killed_write_leaves_the_old_or_the_new_and_the_next_one_sweeps_up(tmp_path) -> None:
    path, seen = tmp_path / "new" / "deep" / "file", set()

    def prepare() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"old")

    for _ in killed_everywhere(prepare, lambda: write_atomically(path, b"new")):
        seen.add((path.read_bytes(), len(names(path.parent))))
    assert {content for content, _ in seen} == {b"old", b"new"}
    (path.parent / f"file.{files._host()}-{2**22 + 1}-0.part").write_bytes(
        b"of a process that is gone"
    )
    (path.parent / "theirs.part").write_bytes(b"not ours")
    files._swept.clear()
    write_atomically(path, b"newer")
    assert path.read_bytes() == b"newer" and names(path.parent) == ["file", "theirs.part"]


def test_what_a_living_process_writes_is_not_swept(tmp_path) -> None:
    with atomic_file(tmp_path / "a") as mine:
        mine.write_bytes(b"slowly")
        code = f"from armlet.data.files import *; write_atomically(Path({str(tmp_path / 'a')!r}), b'theirs')"
        subprocess.run([sys.executable, "-c", code], check=True)
        files._swept.clear()
        write_atomically(tmp_path / "b", b"")
    assert (tmp_path / "a").read_bytes() == b"slowly" and names(tmp_path) == ["a", "b"]


def test_what_another_container_of_this_hostname_writes_is_not_swept(tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as there:
        there.setattr(files, "pid_namespace", lambda: "1")
        # Of a process that has our number there: here it would be one of ours that died.
        theirs = files._beside(tmp_path / "a")
    theirs.write_bytes(b"slowly")
    ours = files._beside(tmp_path / "a")
    ours.write_bytes(b"of an earlier process of our number")
    write_atomically(tmp_path / "b", b"")
    assert names(tmp_path) == [theirs.name, "b"] and files.PART.search(theirs.name)


def test_a_container_is_told_apart_from_the_one_it_runs_in() -> None:
    code = "from armlet.data.files import _host, pid_namespace; print(_host(), pid_namespace())"
    found = subprocess.run(
        ["unshare", "-rpf", sys.executable, "-c", code], capture_output=True, text=True
    )
    if "unshare" in found.stderr:
        pytest.skip(f"this system makes no namespaces: {found.stderr.strip()}")
    host, namespace = found.stdout.split()
    assert host != files._host() and namespace != files.pid_namespace() and namespace.isdigit()


def test_many_threads_write_one_file_and_none_mixes(tmp_path) -> None:
    contents = [bytes([number]) * 100_000 for number in range(8)]
    threads = [
        threading.Thread(target=write_atomically, args=(tmp_path / "f", content))
        for content in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "f").read_bytes() in contents and names(tmp_path) == ["f"]


def test_the_disk_has_the_content_before_the_name_and_then_the_name(tmp_path, monkeypatch) -> None:
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        done.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))))
        fsync(handle)

    def renamed(self: Path, target: Path) -> Path:
        done.append(("rename", Path(target).name))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_atomically(tmp_path / "new" / "f", b"content")
    assert [(what, "part" if name.endswith(".part") else name) for what, name in done] == [
        ("fsync", tmp_path.name),  # that there is a folder "new"
        ("fsync", "part"),
        ("rename", "f"),
        ("fsync", "new"),
    ]


def test_a_killed_folder_is_not_there_or_whole(tmp_path) -> None:
    place, seen = tmp_path / "place", set()

    def work() -> None:
        with atomic_folder(place) as part:
            for name in ("a", "b"):
                (part / name).mkdir()
                (part / name / "f").write_text(name)

    for _ in killed_everywhere(lambda: None, work):
        seen.add(place.exists())
        if place.exists():
            assert {str(path.relative_to(place)) for path in place.rglob("*")} == {
                "a",
                "b",
                "a/f",
                "b/f",
            }
    assert seen == {False, True}
    files._swept.clear()
    write_atomically(tmp_path / "other", b"")
    assert names(tmp_path) == ["other", "place"]


@pytest.mark.parametrize("what", ["file", "folder", "dangling link"])
def test_a_folder_takes_no_others_place(tmp_path, what: str) -> None:
    place = tmp_path / "place"
    {
        "file": place.touch,
        "folder": place.mkdir,
        "dangling link": lambda: place.symlink_to("nowhere"),
    }[what]()
    with pytest.raises(FileExistsError, match="place"), atomic_folder(place):
        raise AssertionError("the block must not start")
    assert names(tmp_path) == ["place"]


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path) -> None:
    write_atomically(tmp_path / "f", b"old")

    def fail(file: Path) -> None:
        file.write_bytes(b"half")
        raise KeyError("f")

    with pytest.raises(KeyError), atomic_file(tmp_path / "f") as part:
        fail(part)
    with pytest.raises(KeyError), atomic_folder(tmp_path / "d") as part:
        fail(part / "f")
    assert names(tmp_path) == ["f"] and (tmp_path / "f").read_bytes() == b"old"


def array(part: Path) -> None:
    with part.open("wb") as file:
        np.save(file, np.zeros(100_000))


WRITERS = {
    "bytes": lambda part: part.write_bytes(bytes(800_000)),
    "torch": lambda part: torch.save({"a": torch.zeros(100_000)}, part),
    "safetensors": lambda part: save_file({"a": torch.zeros(100_000)}, part),
    "parquet": lambda part: pq.write_table(
        pa.table({"a": np.random.default_rng(0).normal(size=100_000)}), part
    ),
    "numpy": array,
}


def _fill(root: str) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    for name, write in WRITERS.items():
        path = Path(root, name)
        write_atomically(path, b"old")
        said = rf"{name} could not be written.*files may not grow.* MB free"
        with pytest.raises(FullDiskError, match=said) as caught, atomic_file(path) as part:
            write(part)
        assert caught.value.errno == errno.EFBIG and path.read_bytes() == b"old"
    with pytest.raises(FullDiskError, match=r"whole could not be written; 0\.8 MB are needed"):
        write_atomically(Path(root, "whole"), bytes(800_000))
    with (
        pytest.raises(FullDiskError, match=r"folder could not be written"),
        atomic_folder(Path(root, "folder")) as folder,
    ):
        array(folder / "a")

    def long_log(add: Callable[[str], None]) -> None:
        for number in range(100_000):
            add(f'{{"n": {number}}}')

    with (
        pytest.raises(FullDiskError, match=r"log could not be written"),
        appending(Path(root, "log")) as add,
    ):
        long_log(add)
    os._exit(7)


def test_no_room_is_one_error_whoever_writes(tmp_path) -> None:
    """The libraries say it as RuntimeError about positions, SafetensorError, OSError with and
    without a number."""
    process = multiprocessing.get_context("spawn").Process(target=_fill, args=(str(tmp_path),))
    process.start()
    process.join(120)
    assert process.exitcode == 7
    assert names(tmp_path) == sorted([*WRITERS, "log"])
    lines = whole_lines(tmp_path / "log")
    assert len(lines) > 2500 and lines[-1] == f'{{"n": {len(lines) - 1}}}'


def test_a_mistake_is_not_called_a_full_disk_and_other_errors_name_the_file(
    tmp_path, monkeypatch
) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), atomic_file(tmp_path / "f"):
        raise RuntimeError("shapes differ")
    with pytest.raises(OSError, match=r"Input/output error: '.*/f'"), atomic_file(tmp_path / "f"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(FileNotFoundError, match="nowhere"), atomic_file(tmp_path / "f"):
        Path("nowhere").read_bytes()
    assert names(tmp_path) == []
