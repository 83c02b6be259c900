"""audit: policies → what they listen to: success with the words of another task or thing, words in
another order, no words, each camera grey or frozen, the state at its mean, no previous action.

    armlet audit POLICY [POLICY …]                       in the world that the first says it was made in
    armlet audit POLICY --benchmark tabletop             in this world: package.module:Name, gym:ENV_ID
    armlet audit POLICY --episodes DIR                   on recorded frames, for a robot without a world

A POLICY is a folder, a name on the hub, a `policy.toml`, or an address. In a world it acts, in the same
episodes each time; on recorded frames its actions are compared with those of the recording, and nothing
is executed. Writes audit.json and audit.md; a killed audit goes on where it stopped.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from armlet import benchmarks
from armlet.benchmarks import Benchmark, Task, benchmark_robot
from armlet.data.door import robot_of
from armlet.data.episodes import EpisodeDataset
from armlet.data.files import write_atomically
from armlet.data.hub import pinned
from armlet.data.layout import Columns
from armlet.data.splits import parts
from armlet.deploy.frames import HELD_OUT, world_of
from armlet.deploy.moments import name_of
from armlet.evaluation import listening, listens, measure, offline
from armlet.evaluation.listening import EPISODES, SEEDS, Heard
from armlet.evaluation.listening_offline import table_lines
from armlet.evaluation.listens import Section
from armlet.evaluation.offline_report import header_lines
from armlet.lineage import PROVENANCE
from armlet.logs.beats import beating
from armlet.policies.acting import actor_provenance, actor_with_fingerprint, behind_socket
from armlet.robot.client.address import is_address
from armlet.robot.description import RobotOptions
from armlet.rollout.door import check_world
from armlet.rollout.loop import plan
from armlet.rollout.pool import THREADS, Contender

AUDITS = Path("out/audit")
FILE = "audit.json"
FRAMES = 500  # of recorded episodes, at most
OWN_COLUMNS = Columns()


def main(
    policies: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    *,
    benchmark: str | None = None,
    episodes: Path | None = None,
    count: int | None = None,
    split: str | None = None,
    seed: int | None = None,
    workers: int = 2,
    held_out: float | None = None,
    columns: Columns = OWN_COLUMNS,
    device: str = "cpu",
    out: Path | None = None,
) -> str:
    """Say what policies listen to.

    Args:
        policies: Folders, names on the hub, policy.toml files, or addresses of servers.
        benchmark: A world to act in: tabletop, package.module:Name, or gym:ENV_ID.
        episodes: Recorded episodes in place of a world: a folder, or hf:user/name.
        count: Paired episodes, the tasks in turn, 105 if not given; of recorded episodes frames,
            at most, 500 if not given. Each is met once more for every change.
        split: The benchmark's condition; its first if not given.
        seed: Of the first episode, within the range that is kept for audits.
        workers: Processes at the same time.
        held_out: The share of the recorded episodes that is asked about, from the end; 0.1 if not
            given.
        columns: Which of the episodes' columns hold state and action.
        device: Where policies act: cpu, cuda …
        out: The folder that is written to; out/audit/NAME of the first policy if not given.
    """
    if not policies:
        raise ValueError("name at least one policy: armlet audit POLICY")
    if count is not None and count < 1:
        raise ValueError(f"--count {count}: expected at least 1")
    idle = {"--held-out": held_out is not None, "--columns": columns != OWN_COLUMNS}
    if episodes is not None:
        given = (benchmark, split, seed)
        names = ("--benchmark", "--split", "--seed")
        idle = {name: value is not None for name, value in zip(names, given, strict=True)}
    for name, was_given in idle.items():
        if was_given:
            other = "with" if episodes is not None else "without"
            raise ValueError(f"{name} has no effect {other} --episodes; leave it out")
    out = out or AUDITS / name_of(policies[0])
    places = named(policies)
    with beating(out, "audit", name_of(policies[0])):
        if episodes is not None:
            share = HELD_OUT if held_out is None else held_out
            data = EpisodeDataset(pinned(episodes, kind="dataset"), columns)
            said, page = on_frames(places, data, count or FRAMES, share, device, out)
        else:
            world = _world(benchmark, places)
            first = SEEDS.start if seed is None else seed
            listening.check_seeds(first, count or EPISODES)
            split = split or world.splits[0]
            world.check_split(split)
            planned = plan(world, split, count or EPISODES, first)
            said, page = in_world(places, world, planned, out, workers=workers, device=device)
    return write(out, said, page)


def in_world(
    places: dict[str, Path],
    world: Benchmark,
    planned: list[tuple[Task, int]],
    out: Path,
    *,
    workers: int,
    device: str,
) -> tuple[Section, str]:
    """Policies act in the planned episodes; what is kept, and the page."""
    found: dict[str, Heard] = {}
    fingerprints = {}
    for name, contender in _contenders(places, world).items():
        policy = contender.load(device, lambda: benchmark_robot(world))
        check_world(policy, world, whose=f"policy {name!r}")
        fingerprints[name] = contender.fingerprint
        found[name] = listening.listen(
            name, contender, policy, world, planned, out,
            title="audit", workers=workers, device=device,
        )  # fmt: skip
    heard = listening.all_heard(found)
    said = {
        "kind": listens.KIND,
        "version": listens.VERSION,
        "world": world.name,
        "benchmark": world.fingerprint(),
        "split": planned[0][0].split,
        "policies": fingerprints,
        "listens": listens.rows(heard.runs),
        "left_out": [asdict(each) for each in heard.left_out],
        "episodes": [[task.family, task.name, seed] for task, seed in planned],
        "outcomes": [run.to_json() for run in heard.runs],
        "fingerprint": {**measure.environment(), "device": device, "threads": THREADS},
    }
    return said, listens.page(said)


def on_frames(
    places: dict[str, Path],
    data: EpisodeDataset,
    count: int,
    held_out: float,
    device: str,
    out: Path,
) -> tuple[Section, str]:
    """Policies answer at frames of recorded episodes, the last ones; what is kept, and the page."""
    episodes = parts(data, "last", held_out, reported=True)
    policies = {}
    fingerprints = {}
    seen = {}
    for name, place in places.items():
        policies[name], fingerprints[name] = actor_with_fingerprint(
            place, device=device, known=lambda: robot_of(data, RobotOptions())
        )
        question = actor_provenance(place).get(PROVENANCE)
        seen[name] = offline.seen_in_training(question, data, episodes.held_out)
    report = offline.evaluate(
        policies,
        data,
        episodes.held_out,
        shown=episodes.train,
        frames=count,
        calls=0,
        known=offline.Known(fingerprints=fingerprints, seen=seen),
        kept=out / "answers",
        title="audit",
        listens=count,
    )
    found = report.to_json()
    said = {
        "kind": "audit of frames",
        "version": listens.VERSION,
        "compared": found["compared"],
        "policies": fingerprints,
        "listens": found["listens"],
        "left_out": found["listens_left_out"],
        "remarks": found["remarks"],
        "note": found["note"],
        "fingerprint": {**measure.environment(), "device": device, "held_out": held_out},
    }
    lines = [*header_lines(report), "", *table_lines(report.listens, report.listens_left_out)]
    return said, "\n".join(lines) + "\n"


def named(policies: tuple[str, ...]) -> dict[str, Path]:
    """What policies are called → where they are, those on the hub fetched. Raises ValueError for
    two of one name."""
    found: dict[str, Path] = {}
    for place in policies:
        name = name_of(place)
        if name in found:
            raise ValueError(
                f"two policies are called {name!r}: {found[name]} and {place}; audit them one at a "
                "time, or in folders of other names"
            )
        found[name] = Path(place) if is_address(place) else pinned(place, kind="model")
    return found


def write(out: Path, said: Section, page: str) -> str:
    """The two files; returns the page, and where they are."""
    content = json.dumps(said, indent=1, allow_nan=False)
    write_atomically(out / FILE, content.encode())
    write_atomically((out / FILE).with_suffix(".md"), page.encode())
    return f"{page}\n{out / FILE}"


def _world(benchmark: str | None, places: dict[str, Path]) -> Benchmark:
    """The world that is named, or the one in which the first policy says it was made."""
    if benchmark is not None:
        return benchmarks.find(benchmark)
    name, place = next(iter(places.items()))
    world = world_of(_provenance(place))
    if world is None:
        raise ValueError(
            f"policy {name!r} does not say in which world it was made: name one with --benchmark, "
            "or recorded episodes with --episodes"
        )
    return world


def _provenance(place: Path) -> dict[str, Any]:
    """How a policy was made; of one that was exported, what it was made from says it."""
    said = actor_provenance(place)
    inner = said.get("policy")
    return inner.get("provenance", inner) if isinstance(inner, dict) else said


def _contenders(places: dict[str, Path], world: Benchmark) -> dict[str, Contender]:
    found = {}
    for name, place in places.items():
        found[name] = Contender(place)
        if behind_socket(place) is not None:
            found[name] = replace(found[name], robot=benchmark_robot(world))
    return found
