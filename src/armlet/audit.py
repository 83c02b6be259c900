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
from armlet.benchmarks import Benchmark, benchmark_robot
from armlet.data.files import write_atomically
from armlet.data.hub import pinned
from armlet.deploy.frames import world_of
from armlet.deploy.moments import name_of
from armlet.evaluation import listening, listens, measure
from armlet.evaluation.listening import EPISODES, SEEDS, Heard
from armlet.evaluation.listens import Section
from armlet.policies.acting import actor_provenance, behind_socket
from armlet.robot.client.address import is_address
from armlet.rollout.door import check_world
from armlet.rollout.loop import plan
from armlet.rollout.pool import THREADS, Contender

AUDITS = Path("out/audit")
FILE = "audit.json"
VERSION = 1


def main(
    policies: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    *,
    benchmark: str | None = None,
    count: int = EPISODES,
    split: str | None = None,
    seed: int = SEEDS.start,
    workers: int = 2,
    device: str = "cpu",
    out: Path | None = None,
) -> str:
    """Say what policies listen to.

    Args:
        policies: Folders, names on the hub, policy.toml files, or addresses of servers.
        benchmark: A world to act in: tabletop, package.module:Name, or gym:ENV_ID.
        count: Paired episodes, the tasks in turn, in each of which every policy is run once for
            every change.
        split: The benchmark's condition; its first if not given.
        seed: Of the first episode, within the range that is kept for audits.
        workers: Processes at the same time.
        device: Where policies act: cpu, cuda …
        out: The folder that is written to; out/audit/NAME of the first policy if not given.
    """
    if not policies:
        raise ValueError("name at least one policy: armlet audit POLICY")
    if count < 1:
        raise ValueError(f"--count {count}: expected at least 1")
    out = out or AUDITS / name_of(policies[0])
    places = named(policies)
    listening.check_seeds(seed, count)
    world = _world(benchmark, places)
    split = split or world.splits[0]
    world.check_split(split)
    planned = plan(world, split, count, seed)
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
    runs, left_out = listening.all_heard(found)
    said = {
        "kind": "audit",
        "version": VERSION,
        "benchmark": world.fingerprint(),
        "split": split,
        "policies": fingerprints,
        "listens": listens.rows(runs),
        "left_out": [asdict(each) for each in left_out],
        "episodes": [[task.family, task.name, its_seed] for task, its_seed in planned],
        "outcomes": _outcomes(runs),
        "fingerprint": {**measure.environment(), "device": device, "threads": THREADS},
    }
    head = (
        f"Each policy in {count} episodes of {world.name} ({split}), seeds {seed:,} to "
        f"{seed + count - 1:,}, as it is and with one input changed at a time."
    )
    return write(out, said, f"{head}\n\n{listens.table(said['listens'], left_out)}")


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
    out.mkdir(parents=True, exist_ok=True)
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


def _outcomes(runs: list[listens.ListenRun]) -> list[Section]:
    """What happened in every single episode, from which the rows follow: `success` is a text of 1
    and 0, one an episode."""
    found = []
    for run in runs:
        row: Section = {"policy": run.policy, "of": run.of, "change": run.change}
        row["episodes"] = list(run.episodes)
        row["success"] = "".join(map(str, map(int, run.success)))
        found.append(row)
    return found
