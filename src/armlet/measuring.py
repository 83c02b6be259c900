"""Values about measuring that stand in a recipe: in which runtimes policies are run, what an
evaluation is for and by which rule it is judged, under which controls, and how the longest `execute`
is looked for. Nothing here runs anything."""

from dataclasses import dataclass, field
from math import inf
from typing import Literal

from armlet import limits, seeds
from armlet.limits import ABOVE_0, BELOW_1, MOST
from armlet.robot.chunks import Late
from armlet.seeds import Purpose

# What carries out a policy's network, and the precision of its matrix products behind an underscore:
# `eager` is torch as the policy was trained with, the others are graphs that it was exported to.
Runtime = Literal[
    "eager",
    "onnx",
    "onnx_int8",
    "onnx_int8_static",
    "openvino",
    "openvino_bf16",
    "openvino_fp16",
    "openvino_int8_static",
]
Library = Literal["onnx", "openvino"]
Kept = Literal["fp32", "fp16", "bf16", "int8", "int8_static"]  # weights, or products, as these
PARTS: dict[Runtime, tuple[Library, Kept]] = {
    "onnx": ("onnx", "fp32"),
    "onnx_int8": ("onnx", "int8"),
    "onnx_int8_static": ("onnx", "int8_static"),
    "openvino": ("openvino", "fp32"),
    "openvino_bf16": ("openvino", "bf16"),
    "openvino_fp16": ("openvino", "fp16"),
    "openvino_int8_static": ("openvino", "int8_static"),
}
EAGER: Runtime = "eager"
SERVER = "server"  # of a policy behind a socket: whatever runs there

# Of a field added later: left out of JSON at its default, so that what was made before it was there
# still answers the same question.
QUIET = {"quiet": True}
Control = Literal["static", "static_per_task", "searched", "shuffled"]


@dataclass(frozen=True)
class Controls:
    """What a router's choice is compared with, of an evaluation."""

    routes: tuple[Control, ...] = field(default=(), metadata=QUIET)
    """Every policy with a router is run as well on other routes than its router's: static, the
    commonest; static_per_task, its task's; searched, the layers that answer most alike; shuffled,
    those of other moments (armlet/evaluation/routes.py)."""
    route_episodes: int = field(default=140, metadata=QUIET)
    """Episodes a split, from `calibration.seed` on, in which static routes are chosen."""


@dataclass(frozen=True)
class Evidence:
    """What an evaluation is for, in which episodes, and by which rule it is judged."""

    purpose: Purpose = "tuning"
    """tuning: recipes, budgets and steps may be chosen by what it says; report: what is said of
    policies that were chosen before, on episodes on which nothing was."""
    seed: int | None = None
    """Of the first episode; none: the first of the range that is kept for the purpose
    (armlet/seeds.py)."""

    margin: float = 0.03
    """A policy is as good as another that is no better by more than this: a share, below 1."""
    baselines: tuple[str, ...] = ()
    """Policies, or recipes of several seeds, by their names in the report, with which every other is
    compared as it is with the teacher."""
    look: int = 1
    """Of a report: the how-manieth look at these policies it is. Another plan for the same folder is
    another look, and its report says so (armlet/evaluation/planning.py)."""

    @property
    def first_seed(self) -> int:
        """Of the first episode."""
        return seeds.FIRST[self.purpose] if self.seed is None else self.seed


@dataclass(frozen=True)
class Evaluation(Controls, Evidence):
    """How policies are measured."""

    # Of 400 episodes a success rate's 95 % interval is 3 to 10 points wide.
    episodes: int = 400
    """Paired episodes a split, spread evenly over its tasks."""
    splits: tuple[str, ...] = ("seen",)
    """The benchmark's conditions."""
    workers: int = 2
    """Processes at the same time."""
    latency_calls: int = 200
    """Timed decisions."""
    runtimes: tuple[Runtime, ...] = field(default=(EAGER,), metadata=QUIET)
    """Every policy is run and timed in each of these; what is not eager is exported first
    (docs/evaluate.md). Without eager the teacher alone is run there as well."""
    teacher_runtimes: tuple[Runtime, ...] = field(default=(), metadata=QUIET)
    """The teacher alone is run and timed in these as well: what it could have without a student."""
    budgets: tuple[float, ...] = ()
    """Shares of its backbone at which the recipe's student is run as well; it must have been
    calibrated."""
    execute: tuple[int, ...] = ()
    """Every policy is run as well carrying out this many actions of a chunk before it looks
    again."""
    ensemble: tuple[int, ...] = ()
    """Every policy is run as well looking again at every step and averaging what its last so many
    decisions say of it (CogACT's adaptive ensemble: armlet/robot/ensemble.py)."""
    slower: tuple[float, ...] = ()
    """How many times slower a robot's computer is than this one, for runs in which the world goes
    on while a policy thinks."""
    late: tuple[Late, ...] = ("wait",)
    """What the arm does meanwhile: wait holds still, run_on carries out what is left of the chunk
    before, blend goes over from it to the new one, guided has a flow policy go on from it
    (armlet/robot/chunks.py)."""
    listens: int = field(default=0, metadata=QUIET)
    """Episodes, of seeds of their own, in which each policy is run once more for every input that is
    changed, to see what it listens to; without a benchmark: frames (docs/audit.md). 0: none."""
    guard: str | None = None
    """A file, guard.toml: every policy is run as well behind a guard with these limits
    (armlet/robot/bounds.py)."""
    videos: int = 1
    """Films of each policy."""
    rerun: bool = field(default=False, metadata=QUIET)
    """Write each film for the Rerun viewer as well: pictures, actions, layers that ran (an extra,
    armlet[rerun])."""
    frames: int = 2000
    """Without a benchmark: frames of held-out episodes at which policies are compared, at most
    (armlet/evaluation/offline.py)."""
    untouched: bool = field(default=False, metadata=QUIET)
    """With a benchmark and `--split tasks`: policies do not act, but are compared with the 15 % of
    episodes that nobody trained or was calibrated on, as where there is no benchmark; the report is
    in `untouched`, beside `evaluation`."""

    def __post_init__(self) -> None:
        limits.positive(
            self, "episodes", "workers", "latency_calls", "execute", "ensemble", "frames", "look"
        )
        limits.positive(self, "route_episodes")
        limits.check(self, margin=(ABOVE_0, BELOW_1))
        limits.check(
            self,
            seed=(0, inf),
            videos=(0, inf),
            budgets=(ABOVE_0, 1),
            slower=(ABOVE_0, MOST),
            listens=(0, inf),
        )


@dataclass(frozen=True)
class Calibration:
    """How `armlet calibrate` looks for the longest `execute` of a policy that is non-inferior to
    its own."""

    episodes: int = 1000
    """Paired episodes in which each number of actions meets the policy's own."""
    # Neither what was trained on, nor what is reported: a choice made on the episodes of a report
    # would flatter what was chosen.
    seed: int = seeds.CALIBRATION.start
    """Of the first episode."""
    workers: int = 2
    """Processes at the same time."""
    margin: float = 0.03
    """How much less often it may succeed than with the policy's own number; a share, below 1."""
    execute: tuple[int, ...] = ()
    """Numbers of actions that are tried; none: all from the policy's own to its whole chunk."""
    order: Literal["sequential", "all"] = "sequential"
    """sequential: one after the other from the shortest, until one is not shown to be
    non-inferior; all: every one, with intervals that hold for all of them together."""

    def __post_init__(self) -> None:
        limits.positive(self, "episodes", "workers", "execute")
        limits.check(self, seed=(0, inf), margin=(ABOVE_0, BELOW_1))
        if len(set(self.execute)) < len(self.execute):
            said = " ".join(map(str, self.execute))
            raise ValueError(f"--calibration.execute says a value twice: {said}")
        seeds.check_calibration(range(self.seed, self.seed + self.episodes))
