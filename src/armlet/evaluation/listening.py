"""Finding out what policies listen to in a world: each in the same episodes as it is, and with one
input changed at a time.

Before the episodes every change is tried at the moments of a few of them: one to which a policy
answers the same to the bit at each would make the same episodes again, and is not run but said. So is
one that cannot be made: another task's words where there is one task, a state that a policy does not
look at. Episodes are kept as those of an evaluation are (`episodes`), each with the change that it was
made under, so a killed audit goes on where it stopped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from armlet.benchmarks import Benchmark, Task
from armlet.evaluation.episodes import run_episodes
from armlet.evaluation.listens import AS_IS, LeftOut, ListenRun
from armlet.policies.contract import Backbone, Policy
from armlet.policies.exported import ExportedPolicy
from armlet.robot.normalise import Normaliser
from armlet.robot.observation import Observation
from armlet.rollout.changes import OF_A_CAMERA, OF_WORDS, Change, in_episode, said_instead
from armlet.rollout.loop import run_task
from armlet.rollout.pool import THREADS, Contender, threads
from armlet.rollout.together import Together

# Worlds in which nothing is trained, calibrated, tuned or reported.
SEEDS = range(400_000_000, 500_000_000)
EPISODES = 105  # an audit's: a rate of 90 % is known to within 4 to 7 points
TRIED = 8  # episodes, of as many tasks where there are, at whose moments changes are tried

Episodes = Sequence[tuple[Task, int]]


@dataclass(frozen=True)
class Asked:
    """A change that is run, and in which episodes: their numbers in the plan."""

    change: Change
    episodes: tuple[int, ...]


@dataclass(frozen=True)
class Heard:
    """What was found of one policy."""

    runs: tuple[ListenRun, ...]  # as it is, then a change each
    left_out: tuple[LeftOut, ...]


def check_seeds(first: int, episodes: int) -> None:
    """Raises ValueError where an audit's seeds are not those that are kept for it."""
    if first not in SEEDS or first + episodes - 1 not in SEEDS:
        raise ValueError(
            f"an audit on the seeds {first:,} to {first + episodes - 1:,}: expected seeds within "
            f"{SEEDS.start:,} to {SEEDS.stop - 1:,}, worlds in which nothing is trained, chosen or "
            "reported; leave the seed out"
        )


def check_apart(episodes: int, others: Mapping[str, range]) -> None:
    """Raises ValueError where the seeds of so many episodes of an audit meet those of anything
    else."""
    check_seeds(SEEDS.start, episodes)
    for what, theirs in others.items():
        # Two half-open ranges meet where each begins before the other ends.
        if SEEDS.start < theirs.stop and theirs.start < SEEDS.start + episodes:
            raise ValueError(
                f"--evaluation.listens {episodes} has the seeds {SEEDS.start} to "
                f"{SEEDS.start + episodes - 1}, and {what} has {theirs.start} to "
                f"{theirs.stop - 1}; give --{what}.seed another range"
            )


def listen(
    name: str,
    contender: Contender,
    policy: Policy,
    benchmark: Benchmark,
    planned: Episodes,
    out: Path,
    *,
    title: str,
    workers: int = 1,
    device: str = "cpu",
    together: Together | None = None,
) -> Heard:
    """One policy in every planned episode, as it is and with one input changed at a time; `policy`
    is the contender loaded."""
    with threads(THREADS):
        asked, left_out = worth_running(name, policy, benchmark, planned)
    # Changes that can be made in the same episodes are run together, episode by episode.
    groups: dict[tuple[int, ...], dict[str, Contender]] = {}
    every = tuple(range(len(planned)))
    groups[every] = {AS_IS: contender}
    for each in asked:
        group = groups.setdefault(each.episodes, {})
        group[each.change.words] = replace(contender, change=each.change)
    of = {each.change.words: each.change.of for each in asked}
    runs: dict[str, ListenRun] = {}
    for numbers, field in groups.items():
        found = run_episodes(
            field,
            benchmark,
            [planned[number] for number in numbers],
            out,
            title=f"{title}, {name}",
            workers=workers,
            device=device,
            together=together,
        )
        for change, rows in found.items():
            success = tuple(bool(row["success"]) for row in rows)
            runs[change] = ListenRun(name, of.get(change, ""), change, numbers, success)
    in_order = [runs[AS_IS]] + [runs[each.change.words] for each in asked]
    return Heard(tuple(in_order), tuple(left_out))


def worth_running(
    name: str, policy: Policy, benchmark: Benchmark, planned: Episodes
) -> tuple[list[Asked], list[LeftOut]]:
    """The changes that are run, and those that are not, with the reason."""
    changes, left_out = changes_of(name, policy)
    moments = _Moments(policy, benchmark, planned)
    asked = []
    for change in changes:
        episodes, why = _episodes_of(change, benchmark, planned)
        if episodes:
            why = moments.why_not(change, episodes)
        if why:
            left_out.append(LeftOut(name, change.of, change.words, why))
        else:
            asked.append(Asked(change, episodes))
    return asked, left_out


def changes_of(name: str, policy: Policy) -> tuple[list[Change], list[LeftOut]]:
    """Every change that can be thought of for a policy, by what it says of itself; and those that
    by this cannot be made."""
    changes = [Change(what) for what in OF_WORDS]
    for camera in policy.robot.observation.cameras:
        changes += [Change(what, camera=camera) for what in OF_A_CAMERA]
    left_out = []
    mean = mean_state(policy)
    if isinstance(mean, str):
        left_out.append(LeftOut(name, "state", "state at its mean", mean))
    else:
        changes.append(Change("mean_state", state=mean))
    changes.append(Change("no_previous_action"))
    return changes, left_out


def mean_state(policy: Policy) -> tuple[float, ...] | str:
    """The state (s,) that a policy's normaliser makes zeros of: the mean of its data or, where it
    normalises by a range or by quantiles, the middle of that; or why there is none, in words."""
    if policy.robot.observation.state_dims == 0:
        return "the policy looks at no state"
    statistics = state_normaliser(policy)
    if statistics is None:
        return f"{policy.kind} does not say the statistics of its state"
    if not len(statistics.offset):
        return "the policy looks at no state"
    if not statistics.moved.any():
        return "the policy takes its state as it is, and has no statistics of it"
    middle = statistics.invert(np.zeros(len(statistics.offset), np.float32))
    return tuple(float(value) for value in middle)


def state_normaliser(policy: Policy) -> Normaliser | None:
    """By which statistics a policy sees its state; None where nobody knows."""
    if isinstance(policy, Backbone):
        return policy.body.state
    if isinstance(policy, ExportedPolicy):
        return policy.acting.description.inputs.state
    return None


def _episodes_of(
    change: Change, benchmark: Benchmark, planned: Episodes
) -> tuple[tuple[int, ...], str]:
    """In which episodes a change can be made; where in none, why."""
    if change.what not in OF_WORDS:
        return tuple(range(len(planned))), ""
    numbers = []
    for number, (task, seed) in enumerate(planned):
        if said_instead(change, benchmark, task, seed) is not None:
            numbers.append(number)
    if numbers:
        return tuple(numbers), ""
    whys = {
        "other_task": f"{benchmark.name} has no other task that is said in other words",
        "other_thing": f"{benchmark.name} cannot say a task for another thing",
        "shuffled": "no instruction has two different words",
        "empty": "every instruction is empty already",
    }
    return (), whys[change.what]


class _Moments:
    """A policy's own moments in a few of the planned episodes, at which changes are tried."""

    def __init__(self, policy: Policy, benchmark: Benchmark, planned: Episodes) -> None:
        self.policy = policy
        self.benchmark = benchmark
        self.planned = planned
        # By the episode's number: what the policy saw at each of its looks, and answered.
        self._seen: dict[int, list[tuple[Observation, np.ndarray]]] = {}

    def why_not(self, change: Change, episodes: Sequence[int]) -> str:
        """Why a change need not be run; empty where it must be."""
        looks = 0
        tried = episodes[:TRIED]
        for number in tried:
            task, seed = self.planned[number]
            acting = in_episode(self.policy, change, self.benchmark, task, seed)
            acting.reset()
            for observation, answered in self._moments(number):
                try:
                    answer = acting.infer(observation)
                # A policy says so what it does not take: a text too long, say.
                except ValueError as error:
                    return f"the policy refuses it: {error}"
                if not np.array_equal(answer, answered):
                    return ""
                looks += 1
        return (
            f"the policy answers the same to the bit at {looks} moments of {len(tried)} episodes, "
            "so the episodes would be the same"
        )

    def _moments(self, number: int) -> list[tuple[Observation, np.ndarray]]:
        if number not in self._seen:
            task, seed = self.planned[number]
            looks: list[Observation] = []
            run_task(self.policy, self.benchmark, task, seed, on_look=looks.append)
            self.policy.reset()
            self._seen[number] = [(seen, self.policy.infer(seen)) for seen in looks]
        return self._seen[number]


def all_heard(found: Mapping[str, Heard]) -> Heard:
    """What was found of several policies, together."""
    runs: list[ListenRun] = []
    left_out: list[LeftOut] = []
    for heard in found.values():
        runs += heard.runs
        left_out += heard.left_out
    return Heard(tuple(runs), tuple(left_out))
