"""Values about measuring that stand in a recipe: in which runtimes policies are run, under which
controls, and how their longest `execute` is looked for. Nothing here runs anything."""

from dataclasses import dataclass, field
from math import inf
from typing import Literal

from armlet import limits
from armlet.limits import ABOVE_0

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
class Calibration:
    """How `armlet calibrate` looks for the longest `execute` of a policy that is non-inferior to
    its own."""

    episodes: int = 1000
    """Paired episodes in which each number of actions meets the policy's own."""
    # Neither what was trained on, nor what is reported: a choice made on the episodes of a report
    # would flatter what was chosen.
    seed: int = 300_000_000
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
