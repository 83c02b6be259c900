"""Verbs as several real processes run them, one of which is killed in the middle of a shard: plain
ones on a folder (`make test-slow`), on S3 (`make test-s3`), and as tasks of Ray (`make test-ray`).
What comes out is what one process makes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_evaluate import dots_policy
from test_object_storage import bucket, server  # noqa: F401 - fixtures
from test_together import files_of, said

from armlet.data.objects import Objects, open_objects
from armlet.policies.checkpoint import save_policy
from armlet.rollout.together import SharedWork, Together, sharded

TESTS = Path(__file__).parent
EPISODES = 40
# Ray's own patience, with processes of its own that start slowly.
RAY_ON_A_BUSY_MACHINE = {
    "RAY_agent_register_timeout_ms": "900000",
    "RAY_worker_register_timeout_seconds": "900",
}
PATIENCE = 900  # seconds, of a machine that does other things


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("policies")
    for seed in (0, 1):
        save_policy(dots_policy(seed), folder / f"policy-{seed}")
    return [folder / "policy-0", folder / "policy-1"]


def start(verb: str, *options: str) -> subprocess.Popen:
    environment = dict(os.environ)
    environment |= RAY_ON_A_BUSY_MACHINE
    environment["PYTHONPATH"] = f"{TESTS}:{environment.get('PYTHONPATH', '')}"
    command = [sys.executable, "-m", "armlet", verb, "outside:reaching", *options, "--debug"]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> str:
    """What it said, when it has ended well."""
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said[-3000:]
    return said


def evaluating(policies: list[Path], out: Path, *more: str) -> list[str]:
    return [
        "--teacher", str(policies[0]), "--policies", str(policies[1]), "--out", str(out),
        "--evaluation.episodes", str(EPISODES), "--evaluation.workers", "2",
        "--evaluation.latency-calls", "2", "--evaluation.videos", "0", *more,
    ]  # fmt: skip


def collecting(out: Path, *more: str) -> list[str]:
    return [
        "--episodes", str(out), "--collection.episodes", str(EPISODES),
        "--collection.workers", "2", *more,
    ]  # fmt: skip


def kill_one_at_work(place: str, name: str, running: list[subprocess.Popen]) -> str:
    """Kill one of these processes, or of their children, while it makes a shard of the work of this
    name; returns the worker's name."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for job in _jobs(place, name):
            objects = open_objects(f"{place}/{job}")
            results = set(objects.names("results"))
            for claim in objects.names("claims"):
                worker = (objects.read(f"claims/{claim}") or b"").decode()
                if claim.partition(".")[0] in results or not worker:
                    continue
                pid = int(worker.rsplit("-", 2)[1])
                if pid in descendants(*(process.pid for process in running)):
                    os.kill(pid, signal.SIGKILL)
                    return worker
        for process in running:
            if process.poll():
                ended(process)  # says why
        time.sleep(0.005)
    raise AssertionError(f"nobody worked at {name} in {place}")


def _jobs(place: str, name: str) -> list[str]:
    if "://" not in place:
        return [path.name for path in Path(place).glob(f"{name}-*")]
    return _listed(place, name)


def _listed(place: str, name: str) -> list[str]:
    import s3fs

    files = s3fs.S3FileSystem(use_listings_cache=False)
    try:
        found = files.ls(place.removeprefix("s3://"))
    except FileNotFoundError:
        return []
    return [path.rpartition("/")[2] for path in found if f"/{name}-" in path]


def descendants(*roots: int) -> set[int]:
    """Processes below these, from /proc."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = set(roots)
    for _ in range(12):  # deeper than anything here
        found |= {pid for pid, parent in parents.items() if parent in found}
    return found


def taken_over(objects: Objects) -> list[str]:
    return [claim for claim in objects.names("claims") if not claim.endswith(".00")]


def check_evaluation(policies: list[Path], folder: Path, place: str, *, ray: bool = False) -> None:
    ended(start("evaluate", *evaluating(policies, folder / "alone")))
    how = ("--shards.at", place, "--shards.size", "4", "--shards.lease", "3")
    engine = ("--shards.on", "ray" if ray else "processes", *how)
    outs = [folder / "one"] if ray else [folder / "one", folder / "other"]
    running = [start("evaluate", *evaluating(policies, out, *engine)) for out in outs]
    kill_one_at_work(place, "episodes", running)
    for process in running:
        ended(process)
    for out in outs:
        assert (
            said(out)["policies"][0]["successes"]
            == said(folder / "alone")["policies"][0]["successes"]
        )
        name = "evaluation/outcomes.json.gz"
        assert (out / name).read_bytes() == (folder / "alone" / name).read_bytes()
        rows = sorted((out / "evaluation/episodes.jsonl").read_text().splitlines())
        alone = folder / "alone/evaluation/episodes.jsonl"
        assert rows == sorted(alone.read_text().splitlines())
    (job,) = _jobs(place, "episodes")
    assert taken_over(open_objects(f"{place}/{job}")), "the killed one's shard was taken over"
    about = json.loads(open_objects(f"{place}/{job}").read("about.json") or b"")
    assert about["shards"] == 2 * EPISODES / 4


def check_collection(folder: Path, place: str, *, ray: bool = False) -> None:
    ended(start("collect", *collecting(folder / "alone")))
    how = ("--shards.at", place, "--shards.size", "4", "--shards.lease", "3")
    engine = ("--shards.on", "ray" if ray else "processes", *how)
    count = 1 if ray else 2
    running = [start("collect", *collecting(folder / "shared", *engine)) for _ in range(count)]
    kill_one_at_work(place, "attempts", running)
    for process in running:
        ended(process)
    found = files_of(folder / "shared")
    assert found == files_of(folder / "alone") and len(found) > 5


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_plain_processes_evaluate_as_one_does(policies, tmp_path) -> None:
    check_evaluation(policies, tmp_path, str(tmp_path / "meeting"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_plain_processes_collect_as_one_does(tmp_path) -> None:
    check_collection(tmp_path, str(tmp_path / "meeting"))


@pytest.mark.s3
@pytest.mark.timeout(3600)
def test_processes_that_meet_on_s3_evaluate_as_one_does(policies, tmp_path, bucket) -> None:  # noqa: F811
    check_evaluation(policies, tmp_path, bucket)


@pytest.mark.s3
@pytest.mark.timeout(3600)
def test_processes_that_meet_on_s3_collect_as_one_does(tmp_path, bucket) -> None:  # noqa: F811
    check_collection(tmp_path, bucket)


@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_tasks_of_ray_evaluate_as_one_process_does(policies, tmp_path) -> None:
    check_evaluation(policies, tmp_path, str(tmp_path / "meeting"), ray=True)


@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_tasks_of_ray_collect_as_one_process_does(tmp_path) -> None:
    check_collection(tmp_path, str(tmp_path / "meeting"), ray=True)


@dataclass(frozen=True)
class DiesOnce:
    """Work whose process dies in the middle of one shard, the first time that it is made."""

    died: Path

    def __call__(self, jobs: Sequence[int]) -> bytes:
        if 5 in jobs and not self.died.exists():
            self.died.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return json.dumps([job**2 for job in jobs]).encode()


@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_tasks_of_ray_share_work_and_one_that_dies_is_replaced(tmp_path, monkeypatch) -> None:
    for name, value in RAY_ON_A_BUSY_MACHINE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", f"{TESTS}:{os.environ.get('PYTHONPATH', '')}")
    together = Together(str(tmp_path / "meeting"), 2, 3.0, "ray")
    work = SharedWork(together, "squares", {"of": "numbers"}, sharded(range(12), 2))
    work.run(DiesOnce(tmp_path / "died"), workers=2, title="squares")
    made = []
    for content in work.results():
        made += json.loads(content)
    assert made == [job**2 for job in range(12)]
    assert (tmp_path / "died").exists() and taken_over(work.objects)
