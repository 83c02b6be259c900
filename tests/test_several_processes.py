"""Verbs as several real processes share them, one of which is killed in the middle of a shard: plain
ones that meet in a folder (`make test-slow`) or on S3 (`make test-s3`), and tasks of Ray
(`make test-ray`). What comes out is what one process makes."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from outside import COLOURS, Dots, DotWorld, reaching
from test_evaluate import dots_policy
from test_object_storage import bucket, server  # noqa: F401 - fixtures
from test_together import files_of, said

from armlet import collect, evaluate, probe
from armlet.annotators.motion_rules import MotionRules
from armlet.annotators.store import load_labels
from armlet.data.episodes import EpisodeDataset, EpisodeFrames
from armlet.data.objects import Objects, open_objects
from armlet.data.writer import EpisodeWriter
from armlet.policies.checkpoint import save_policy
from armlet.recipe import Collection, Evaluation, Recipe
from armlet.rollout.recording import describe_robot, features_of
from armlet.rollout.together import SharedWork, Together, sharded
from armlet.shards import Shards

TESTS = Path(__file__).parent
EPISODES = 12
MAINS: dict[str, Callable[[Recipe], Path]] = {
    "collect": collect.main,
    "probe": probe.main,
    "evaluate": evaluate.main,
}
WORKS = {"collect": "attempts", "probe": "traces", "evaluate": "episodes"}
STORE = ("traces/rows-000.bin", "traces/keys.bin", "traces/header.json", "traces/teacher.json")
HEADS = ("probe/heads.safetensors", "probe/stage.json")
# Ray's own patience, with processes of its own that start slowly.
RAY_ON_A_BUSY_MACHINE = {
    "RAY_agent_register_timeout_ms": "900000",
    "RAY_worker_register_timeout_seconds": "900",
}
PATIENCE = 1500  # seconds, of a machine that does other things


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("policies")
    for seed in (0, 1):
        save_policy(dots_policy(seed), folder / f"policy-{seed}")
    return folder / "policy-0", folder / "policy-1"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """Twelve episodes of 60 frames, in which a dot wanders: six batches of traces."""
    root = tmp_path_factory.mktemp("recorded") / "episodes"
    world = Dots()
    writer = EpisodeWriter(root, features_of(world), fps=5, robot=world.name, metadata={})
    describe_robot(root, world)
    for number in range(12):
        colour = list(COLOURS)[number % 2]
        writer.add(wandering(DotWorld(colour, number), np.random.default_rng(number)))
    writer.finalise()
    return root


def wandering(world: DotWorld, rng: np.random.Generator) -> EpisodeFrames:
    images = []
    states = []
    actions = rng.uniform(-1, 1, (60, 1)).astype(np.float32)
    for action in actions:
        images.append(world.render(32))
        states.append([world.at])
        world.step(action)
    state = np.array(states, np.float32)
    extra = {"executed": actions}
    return EpisodeFrames({"eye": np.stack(images)}, state, actions, extra, world.instruction, {})


@dataclass(frozen=True)
class Asked:
    """A verb on small things, for one process or for several."""

    verb: str
    policies: tuple[Path, Path]
    recorded: Path

    def recipe(self, out: Path, shards: Shards) -> Recipe:
        base = dataclasses.replace(reaching(), out=out, shards=shards, teacher=self.policies[0])
        if self.verb == "collect":
            collection = Collection(episodes=EPISODES, workers=1)
            return dataclasses.replace(base, episodes=out / "episodes", collection=collection)
        if self.verb == "probe":
            return dataclasses.replace(base, episodes=self.recorded, annotator=MotionRules())
        setting = Evaluation(episodes=EPISODES, workers=1, latency_calls=2, videos=0)
        return dataclasses.replace(base, policies=self.policies[1:], evaluation=setting)

    def check(self, one: Path, alone: Path) -> None:
        """What lies in these folders is the same."""
        {"collect": same_episodes, "probe": self.same_store, "evaluate": same_report}[self.verb](
            one, alone
        )

    def same_store(self, one: Path, alone: Path) -> None:
        for name in (*STORE, *HEADS):
            assert (one / name).read_bytes() == (alone / name).read_bytes(), name
        data = EpisodeDataset(self.recorded)
        found = load_labels(one / "labels-motionrules", data)
        wanted = load_labels(alone / "labels-motionrules", data)
        assert np.array_equal(found.phase, wanted.phase)
        assert np.array_equal(found.direction, wanted.direction)
        assert found.description == wanted.description and len(found) == 720


def same_episodes(one: Path, alone: Path) -> None:
    found = files_of(one / "episodes")
    assert found == files_of(alone / "episodes") and len(found) > 5


def same_report(one: Path, alone: Path) -> None:
    outcomes = "evaluation/outcomes.json.gz"
    assert (one / outcomes).read_bytes() == (alone / outcomes).read_bytes()
    for mine, theirs in zip(said(one)["policies"], said(alone)["policies"], strict=True):
        assert mine["successes"] == theirs["successes"] and mine["ci95"] == theirs["ci95"]
    assert said(one)["pairs"] == said(alone)["pairs"]
    rows = sorted((one / "evaluation/episodes.jsonl").read_text().splitlines())
    assert rows == sorted((alone / "evaluation/episodes.jsonl").read_text().splitlines())
    assert len(rows) == 2 * EPISODES


def run(verb: str, recipe: Recipe, environment: dict[str, str]) -> None:
    """A process of its own, as `armlet VERB` runs it."""
    os.environ.update(environment)
    # A fresh process for each policy, which takes long, and of which no other test here asks.
    evaluate.measure.peak_memory_mb = lambda *asked: 1.0
    MAINS[verb](recipe)


def shared_by_two(asked: Asked, folder: Path, place: str) -> None:
    """One process alone, then two of which one is killed, with one result."""
    run(asked.verb, asked.recipe(folder / "alone", Shards()), {})
    shards = Shards(on="processes", at=place, size=1, lease=20.0)
    recipe = asked.recipe(folder / "shared", shards)
    store = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    context = multiprocessing.get_context("spawn")
    running = []
    for _ in range(2):
        process = context.Process(target=run, args=(asked.verb, recipe, store))
        process.start()
        running.append(process)
    killed = kill_one_at_work(place, WORKS[asked.verb], [each.pid for each in running])
    for process in running:
        if process.pid == killed:  # with its worker, which may have been itself
            process.kill()
    for process in running:
        process.join(PATIENCE)
        assert process.exitcode == (-signal.SIGKILL if process.pid == killed else 0)
    asked.check(folder / "shared", folder / "alone")


def kill_one_at_work(place: str, name: str, among: Sequence[int]) -> int:
    """Kill one of these processes, or of their children, while it makes a shard of the work of this
    name; returns which of these it was, or whose child."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for job in _jobs(place, name):
            objects = open_objects(f"{place}/{job}")
            for shard, pid in at_work(objects).items():
                for root in among:
                    if pid in descendants(root) and killed_over(objects, shard, pid):
                        return root
        time.sleep(0.005)
    raise AssertionError(f"nobody worked at {name} in {place}")


def at_work(objects: Objects) -> dict[str, int]:
    """Shard without a result → the process that claimed it last."""
    results = set(objects.names("results"))
    found = {}
    for claim in objects.names("claims"):
        shard = claim.partition(".")[0]
        worker = (objects.read(f"claims/{claim}") or b"").decode()
        if worker and shard not in results:
            found[shard] = int(worker.rsplit("-", 2)[1])
    return found


def killed_over(objects: Objects, shard: str, pid: int) -> bool:
    """Whether the process was killed before the shard had a result: it is stopped first, so that it
    cannot finish between the look and the kill."""
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.1)  # a request that was sent already
    if shard in objects.names("results"):
        os.kill(pid, signal.SIGCONT)
        return False
    os.kill(pid, signal.SIGKILL)
    return True


def _jobs(place: str, name: str) -> list[str]:
    if "://" not in place:
        return [path.name for path in Path(place).glob(f"{name}-*")]
    import s3fs

    files = s3fs.S3FileSystem(use_listings_cache=False)
    try:
        found = files.ls(place.removeprefix("s3://"))
    except FileNotFoundError:
        return []
    return [path.rpartition("/")[2] for path in found if f"/{name}-" in path]


def descendants(root: int) -> set[int]:
    """A process and those below it, from /proc."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = {root}
    for _ in range(12):  # deeper than anything here
        found |= {pid for pid, parent in parents.items() if parent in found}
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("verb", MAINS)
def test_plain_processes_make_what_one_does(verb, policies, recorded, tmp_path) -> None:
    shared_by_two(Asked(verb, policies, recorded), tmp_path, str(tmp_path / "meeting"))


@pytest.mark.s3
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("verb", MAINS)
def test_processes_that_meet_on_s3_make_what_one_does(
    verb,
    policies,
    recorded,
    tmp_path,
    bucket,  # noqa: F811
) -> None:
    shared_by_two(Asked(verb, policies, recorded), tmp_path, bucket)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster of this machine, of which this process is a job."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY_ON_A_BUSY_MACHINE.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", f"{TESTS}:{os.environ.get('PYTHONPATH', '')}")
        ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
        yield
        ray.shutdown()


@pytest.mark.ray
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("cluster", "no_fresh_process")
@pytest.mark.parametrize("verb", MAINS)
def test_two_tasks_of_ray_make_what_one_process_does(verb, policies, recorded, tmp_path) -> None:
    asked = Asked(verb, policies, recorded)
    MAINS[verb](asked.recipe(tmp_path / "alone", Shards()))
    place = str(tmp_path / "meeting")
    shards = Shards(on="ray", at=place, size=1, lease=20.0, tasks=2)
    killed = []

    def kill() -> None:
        killed.append(kill_one_at_work(place, WORKS[verb], [os.getpid()]))

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    MAINS[verb](asked.recipe(tmp_path / "shared", shards))
    killer.join(60)
    assert killed == [os.getpid()]  # a task's process, below this one
    asked.check(tmp_path / "shared", tmp_path / "alone")


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
@pytest.mark.usefixtures("cluster")
def test_a_task_of_ray_that_dies_is_replaced(tmp_path) -> None:
    together = Together(str(tmp_path / "meeting"), 2, 20.0, "ray", tasks=2)
    work = SharedWork(together, "squares", {"of": "numbers"}, sharded(range(12), 2))
    work.run(DiesOnce(tmp_path / "died"), workers=1, title="squares")
    made = []
    for content in work.results():
        made += json.loads(content)
    assert made == [job**2 for job in range(12)]
    claims = work.objects.names("claims")
    assert (tmp_path / "died").exists() and any(not claim.endswith(".00") for claim in claims)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_commands_started_twice_share_the_work(policies, tmp_path) -> None:
    """As a shell starts them, into one folder."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = f"{TESTS}:{environment.get('PYTHONPATH', '')}"
    command = [
        sys.executable, "-m", "armlet", "evaluate", "outside:reaching", "--debug",
        "--teacher", str(policies[0]), "--policies", str(policies[1]), "--out", str(tmp_path),
        "--evaluation.episodes", "4", "--evaluation.workers", "2", "--evaluation.videos", "0",
        "--evaluation.latency-calls", "2", "--shards.on", "processes", "--shards.size", "1",
    ]  # fmt: skip
    running = []
    for _ in range(2):
        running.append(
            subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        )
    for process in running:
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors[-3000:]
    assert said(tmp_path)["policies"][0]["episodes"] == 4
