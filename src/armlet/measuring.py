"""Values about measuring that stand in a recipe: in which runtimes policies are run, what an
evaluation is for and by which rule it is judged, under which controls, and how the longest `execute`
is looked for. Nothing here runs anything."""

from dataclasses import dataclass, field
from math import inf
from typing import Literal

from armlet import limits, seeds
from armlet.limits import ABOVE_0
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

Control = Literal["static", "static_per_task", "searched", "shuffled"]


@dataclass(frozen=True)
class Controls:
    """What a router's choice is compared with, of an evaluation."""

    routes: tuple[Control, ...] = field(default=(), metadata={"quiet": True})
    """Every policy with a router is run as well on other routes than its router's: static, the
    commonest; static_per_task, its task's; searched, the layers that answer most alike; shuffled,
    those of other moments (armlet/evaluation/routes.py)."""
    route_episodes: int = field(default=140, metadata={"quiet": True})
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
        limits.check(self, seed=(0, inf), margin=(ABOVE_0, limits.BELOW_1))
        if len(set(self.execute)) < len(self.execute):
            said = " ".join(map(str, self.execute))
            raise ValueError(f"--calibration.execute says a value twice: {said}")
        seeds.check_calibration(range(self.seed, self.seed + self.episodes))
