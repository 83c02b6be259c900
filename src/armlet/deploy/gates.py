"""What an exported policy must show before its folder is written: that it answers as the policy in
PyTorch does, that it succeeds as often, and that it is faster.

    routes        where a router decides for every observation: on how many frames both let the same
                  layers run
    parity        on real frames, over every number of words there is: how far its actions lie from
                  those of the same network in PyTorch
    closed loop   the same episodes by both, outcomes counted both ways: rounding alone changes an
                  episode now and then (1e-6 in an action, one outcome of 300), so that only a count
                  says something. Without a world: how far both lie from the actions of held-out
                  episodes
    speed         both on the same frames, in turn, on as many threads

Each says what it found, and whether that will do. Knows policies and worlds; knows no file.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from armlet.benchmarks import Benchmark
from armlet.evaluation.measure import in_turn, percentiles
from armlet.evaluation.stats import compare_paired
from armlet.policies.contract import Backbone, Policy
from armlet.progress import Progress
from armlet.robot.observation import Observation
from armlet.robot.outputs import Decision
from armlet.rollout.loop import plan, run_task

Infer = Callable[[Observation], np.ndarray]
Decide = Callable[[Observation], Decision]
FEWEST = 100  # frames on which parity is measured
# How far a number of an action may lie from PyTorch's, as a share of the robot's range: rounding in
# single precision; of coarser numbers what a closed loop is still worth running for.
APART = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 0.1, "int8": 0.5, "int8_static": 0.5}
# The mean of the same, where single numbers say little.
MEAN_APART = {"fp32": 1e-5, "fp16": 1e-3, "bf16": 0.02, "int8": 0.05, "int8_static": 0.05}
# Of the numbers, how many may lie further apart. A share, and not none, of coarser numbers: a gripper
# that closes where the other opens is a whole range away, and the more frames are looked at, the
# surer one of them is near the edge between both. What that costs, the closed loop says.
STRAY = {"fp32": 0.0, "fp16": 1e-3, "bf16": 1e-3, "int8": 1e-3, "int8_static": 1e-3}
CHOSEN = 0.02  # of the numbers of a policy that chooses among a few: a tie may fall either way
# Of the frames, how many may take another route: ties in single precision; of coarser numbers what a
# closed loop is still worth running for.
OTHER_ROUTES = {"fp32": CHOSEN, "fp16": CHOSEN, "bf16": 0.2, "int8": 0.2, "int8_static": 0.2}

SEED = 950_000_000  # of the first episode: a range of worlds that nothing else runs in


class GateError(ValueError):
    """An exported policy that did not show what it must; nothing was written. `found`: what was
    measured all the same."""

    def __init__(self, said: str, found: "Found") -> None:
        super().__init__(said)
        self.found = found


@dataclass(frozen=True)
class Parity:
    """`words`: number of words → on how many frames; `furthest` and `mean`: of the differences, as
    shares of the robot's range (see `spans`); `apart`: the share of numbers beyond `limit`."""

    frames: int
    words: dict[int, int]
    furthest: float
    mean: float
    limit: float
    apart: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Routes:
    """Of the frames: `same` (n,), on which both take one route; `routes`, how many different ones
    PyTorch takes; `layers`, how many run in the mean."""

    same: tuple[bool, ...]
    routes: int
    layers: float

    @property
    def share(self) -> float:
        return sum(self.same) / len(self.same)

    def to_json(self) -> dict[str, Any]:
        return {
            "frames": len(self.same),
            "routes": self.routes,
            "layers": self.layers,
            "same": self.share,
        }


@dataclass(frozen=True)
class ClosedLoop:
    """Of n episodes, in how many both succeed, PyTorch alone, the exported one alone, neither;
    `difference` of the rates, exported − PyTorch, with its 95 % interval; exact McNemar p. It is no
    worse where the interval's lower end lies above −`margin`."""

    benchmark: str
    episodes: int
    seed: int
    both: int
    only_pytorch: int
    only_exported: int
    neither: int
    difference: float
    ci95: tuple[float, float]
    mcnemar_p: float
    margin: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class HeldOut:
    """On frames of episodes: the mean absolute error of the first action, as a share of the robot's
    range, of both; their `difference`, exported − PyTorch, with its 95 % interval over frames. It
    is no worse where the interval's upper end lies below `margin` times PyTorch's error."""

    frames: int
    pytorch: float
    exported: float
    difference: float
    ci95: tuple[float, float]
    margin: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Speed:
    """Milliseconds of a decision, from observation to action, and how many times faster the median
    is."""

    calls: int
    threads: int
    pytorch_ms: dict[str, float]
    exported_ms: dict[str, float]
    times_faster: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


Found = Routes | Parity | ClosedLoop | HeldOut | Speed


def over_every_length(
    frames: Sequence[Observation], texts: Sequence[str], count: Callable[[Observation], int]
) -> list[Observation]:
    """The frames, and for every number of words that `texts` have and no frame has, frames that are
    told one of these. `count`: how many words the policy reads of a frame."""
    there = {count(frame) for frame in frames}
    found = list(frames)
    for place, text in enumerate(texts):
        told = replace(frames[place % len(frames)], instruction=text)
        words = count(told)
        if words not in there:
            there.add(words)
            found.append(told)
    return found


def spans(policy: Backbone) -> np.ndarray:
    """(a,): what differences of actions are shares of, in the robot's own numbers: its range, and
    where it has none, as checkpoints of others, what -1 to 1 are to the network."""
    spec = policy.robot.action
    ranges = np.asarray(spec.high, np.float64) - np.asarray(spec.low, np.float64)
    ones = np.ones(spec.dims, np.float32)
    own = np.abs(policy.body.actions.invert(ones) - policy.body.actions.invert(-ones))
    found = np.where(np.isfinite(ranges), ranges, own.astype(np.float64))
    # A number that never changes is to be met in its own unit.
    return np.where(found > 0, found, 1.0)


def same_routes(
    pytorch: Decide, exported: Decide, frames: Sequence[Observation], *, precision: str
) -> Routes:
    """Which layers both let run on all frames. Raises GateError where it is others too often."""
    ours = [pytorch(frame).gates for frame in frames]
    theirs = [exported(frame).gates for frame in frames]
    same = tuple(mine == other for mine, other in zip(ours, theirs, strict=True))
    layers = float(np.mean([sum(route) for route in ours]))
    found = Routes(same, len(set(ours)), layers)
    limit = OTHER_ROUTES[precision]
    others = len(same) - sum(same)
    if others > limit * len(same):
        worst = same.index(False)
        raise GateError(
            f"routes: on {others} of {len(frames)} frames other layers run than in "
            f"PyTorch (on frame {worst} {_route(theirs[worst])} for {_route(ours[worst])}), expected "
            f"{limit:.0%} at most with {precision}; export it with another precision or runtime, or "
            "with `--route fixed`",
            found,
        )
    return found


def _route(gates: Sequence[int]) -> str:
    """The layers that run, in words."""
    return ", ".join(str(index) for index, ran in enumerate(gates) if ran) or "none"


def parity(
    pytorch: Infer,
    exported: Infer,
    frames: Sequence[Observation],
    *,
    count: Callable[[Observation], int],
    spans: np.ndarray,
    precision: str,
    chooses: bool,
) -> Parity:
    """How both answer on all frames, as shares of `spans` (a,). Raises GateError where the exported one is too far off."""
    limit = APART[precision]
    words: dict[int, int] = {}
    differences = []
    for frame in frames:
        length = count(frame)
        words[length] = words.get(length, 0) + 1
        differences.append(np.abs(exported(frame) - pytorch(frame)) / spans)  # (k, a)
    every = np.stack(differences)
    found = Parity(
        frames=len(frames),
        words=dict(sorted(words.items())),
        furthest=float(every.max()),
        mean=float(every.mean()),
        limit=limit,
        apart=float((every > limit).mean()),
    )
    mean_limit = np.inf if chooses else MEAN_APART[precision]
    stray = CHOSEN if chooses else STRAY[precision]
    if found.apart > stray or found.mean > mean_limit:
        worst = int(every.max((1, 2)).argmax())
        raise GateError(
            f"parity: on frame {worst} of {len(frames)} ({count(frames[worst])} words) an action "
            f"is {found.furthest:.2g} of its range away from PyTorch's (mean {found.mean:.2g}; "
            f"{found.apart:.2%} of the numbers are beyond {limit:g}), expected {limit:g} at most in all "
            f"but {stray:g} of them (mean {mean_limit:g}) with {precision}; export it with another "
            "precision or runtime",
            found,
        )
    return found


def closed_loop(
    pytorch: Policy, exported: Policy, world: Benchmark, *, episodes: int, margin: float
) -> ClosedLoop:
    """Both in the same episodes. Raises GateError where it is not shown that the exported one is no
    worse."""
    outcomes: dict[str, list[bool]] = {"pytorch": [], "exported": []}
    progress = Progress("export, closed loop", total=2 * episodes, unit="episode")
    for task, seed in plan(world, world.splits[0], episodes, SEED):
        for name, policy in (("pytorch", pytorch), ("exported", exported)):
            outcomes[name].append(run_task(policy, world, task, seed).success)
            progress.advance()
    progress.close()
    compared = compare_paired(np.array(outcomes["exported"]), np.array(outcomes["pytorch"]))
    found = ClosedLoop(
        benchmark=world.name,
        episodes=episodes,
        seed=SEED,
        both=compared.both,
        only_pytorch=compared.only_b,
        only_exported=compared.only_a,
        neither=compared.neither,
        difference=compared.difference,
        ci95=compared.ci95,
        mcnemar_p=compared.mcnemar_p,
        margin=margin,
    )
    if compared.ci95[0] <= -margin:
        raise GateError(
            f"closed loop: of {episodes} episodes PyTorch alone succeeds in {found.only_pytorch} "
            f"and the exported policy alone in {found.only_exported}: {100 * found.difference:+.1f} "
            f"pp [{100 * found.ci95[0]:+.1f}, {100 * found.ci95[1]:+.1f}], and it is not shown that "
            f"it is no more than {100 * margin:g} pp worse; run more episodes (--closed-loop), "
            "or export it with another precision",
            found,
        )
    return found


def held_out(
    pytorch: Infer,
    exported: Infer,
    frames: Sequence[Observation],
    expert: np.ndarray,
    *,
    spans: np.ndarray,
    margin: float,
) -> HeldOut:
    """Both against the actions `expert` (n, a) of the frames, as shares of `spans` (a,). Raises
    GateError where it is not shown that the exported one is no worse."""
    errors = []
    for frame, right in zip(frames, expert, strict=True):
        both = [np.abs(infer(frame)[0] - right) / spans for infer in (pytorch, exported)]
        errors.append([float(each.mean()) for each in both])
    mine, theirs = np.array(errors).T  # (n,) each: PyTorch's, the exported one's
    apart = theirs - mine
    half = 1.96 * float(apart.std(ddof=1)) / len(apart) ** 0.5
    difference = float(apart.mean())
    found = HeldOut(
        frames=len(frames),
        pytorch=float(mine.mean()),
        exported=float(theirs.mean()),
        difference=difference,
        ci95=(difference - half, difference + half),
        margin=margin,
    )
    if found.ci95[1] > margin * found.pytorch + 1e-6:
        raise GateError(
            f"held-out frames: the error of the first action is {found.exported:.4g} of its range, "
            f"and PyTorch's {found.pytorch:.4g}: up to {found.ci95[1]:.2g} more, expected "
            f"{100 * margin:g} % of it at most; export it with another precision or runtime",
            found,
        )
    return found


def speed(
    pytorch: Infer,
    exported: Infer,
    frames: Sequence[Observation],
    *,
    calls: int,
    threads: int,
    slower: bool,
) -> Speed:
    """Both in turn on the same frames, in an order drawn anew. Raises GateError where the exported
    one is slower, unless `slower` is taken. The threads of both are the caller's to set."""
    times = in_turn({"pytorch": pytorch, "exported": exported}, frames, calls=calls)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    found = Speed(
        calls=calls,
        threads=threads,
        pytorch_ms=percentiles(times["pytorch"]),
        exported_ms=percentiles(times["exported"]),
        times_faster=medians["pytorch"] / medians["exported"],
    )
    if found.times_faster < 1 and not slower:
        raise GateError(
            f"speed: a decision takes {medians['exported']:.2f} ms exported and "
            f"{medians['pytorch']:.2f} ms in PyTorch, on {threads} thread(s): it is slower; export "
            "it for another runtime, or give --slower to have it all the same",
            found,
        )
    return found


def chooses(policy: Backbone) -> bool:
    """Whether its actions are chosen among a few, so that rounding may choose another."""
    import torch

    some = torch.zeros(1, policy.chunk, policy.dims, device=policy.device)
    head = getattr(policy, "head", None)
    return policy.classes(some) is not None or hasattr(head, "bins") or hasattr(policy, "bins")
