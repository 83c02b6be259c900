"""What a policy decides about while it is timed: moments of a world, of episodes, or drawn at random.

Most networks take the same time over noise as over a table of cubes. One that routes does not, and
neither does a tokenizer whose words it never saw: whoever has a world or episodes gives them.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from armlet import benchmarks
from armlet.benchmarks import Benchmark, benchmark_robot
from armlet.data.episodes import EpisodeDataset
from armlet.data.frames import load_frames
from armlet.data.hub import pinned
from armlet.data.layout import Columns
from armlet.data.observing import observations
from armlet.data.pictures import Pictures
from armlet.evaluation.films import sample_observations
from armlet.policies.acting import actor_with_fingerprint
from armlet.policies.contract import Backbone, Policy
from armlet.robot.client.address import is_address
from armlet.robot.observation import Observation
from armlet.rollout.door import check_world

INSTRUCTION = "pick up the red block and put it into the bowl"
RANDOM = 16  # moments that are drawn
FRAMES = 64  # of recorded episodes


@dataclass(frozen=True)
class Where:
    """Where a policy decides, and what about."""

    benchmark: str | None = None
    """A world whose moments it decides about, in its own episodes: tabletop, package.module:Name, or
    gym:ENV_ID. Without world and episodes: pictures of noise."""
    episodes: Path | None = None
    """Recorded episodes whose frames it decides about."""
    columns: Columns = field(default_factory=Columns)
    """Which of the episodes' columns hold state and action."""
    budget: float | None = None
    """The share of its backbone at which a routed student decides; its own if not given."""
    device: str = "cpu"
    """Of this machine: cpu, cuda …"""
    seed: int = 0
    """Of the moments."""

    def __post_init__(self) -> None:
        if self.benchmark is not None and self.episodes is not None:
            raise ValueError("--benchmark and --episodes: give one, whose moments are meant")
        if self.episodes is None and self.columns != Columns():
            raise ValueError("--columns has no effect without --episodes")


@dataclass(frozen=True)
class Met:
    """A policy, who it is, and what it decides about, in words too."""

    policy: Policy
    fingerprint: str
    observations: list[Observation]
    words: str


def meet(place: str, where: Where) -> Met:
    """The policy at a folder, a name on the hub, a `policy.toml` or an address, with the moments.
    Raises what loading it, and reading episodes, does."""
    world = None if where.benchmark is None else benchmarks.find(where.benchmark)
    named = Path(place) if is_address(place) else pinned(place, kind="model")
    known = None if world is None else lambda: benchmark_robot(world)
    policy, fingerprint = actor_with_fingerprint(named, device=where.device, known=known)
    if where.budget is not None:
        policy = policy.at(where.budget)
    if world is not None:
        check_world(policy, world, whose="the policy")
        found, words = of_world(policy, world, where.seed)
    elif where.episodes is not None:
        found, words = of_episodes(policy, where.episodes, where.columns, where.seed)
    else:
        found, words = at_random(policy, where.seed)
    return Met(policy, fingerprint, found, words)


def of_world(policy: Policy, benchmark: Benchmark, seed: int) -> tuple[list[Observation], str]:
    """Every moment at which the policy looks in one episode of each task, and what they are in
    words."""
    found = sample_observations(policy, benchmark, seed)
    return found, f"{len(found)} moments of its own episodes in {benchmark.name}, one a task"


def of_episodes(
    policy: Policy, place: Path, columns: Columns, seed: int
) -> tuple[list[Observation], str]:
    """Frames of recorded episodes, from all over, as the policy sees them."""
    data = EpisodeDataset(place, columns)
    view = policy.view if isinstance(policy, Backbone) else None
    # Streamed: a few frames are not worth decoding all.
    frames = load_frames(data, view, Pictures(cache_gb=0))
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(frames), min(FRAMES, len(frames)), replace=False))
    return observations(frames, rows), f"{len(rows)} frames of {place}"


def at_random(policy: Policy, seed: int) -> tuple[list[Observation], str]:
    """Pictures of noise, states as the policy's own statistics have them, one instruction. Where the
    policy is behind a socket its statistics are not known, and the state is 0."""
    rng = np.random.default_rng(seed)
    robot = policy.robot
    seen = robot.observation
    found = []
    for _ in range(RANDOM):
        images = {}
        for name, camera in seen.cameras.items():
            shape = (camera.height, camera.width, 3)
            images[name] = rng.integers(0, 256, shape, dtype=np.uint8)
        state = np.zeros(seen.state_dims or 0, np.float32)
        if isinstance(policy, Backbone):
            normal = rng.normal(size=len(policy.body.state.offset)).clip(-2, 2)
            state = policy.body.state.invert(normal).astype(np.float32)
        still = np.zeros(robot.action.dims, np.float32)
        found.append(Observation(images, state, INSTRUCTION, still))
    words = f'{RANDOM} moments drawn at random: pictures of noise, "{INSTRUCTION}"'
    return found, words


def name_of(place: str) -> str:
    """What a policy is called: OUT/student is OUT's."""
    path = Path(place.rpartition(":")[2])
    if path.suffix == ".toml" or path.name == "student":
        path = path.parent
    return path.name or "policy"
