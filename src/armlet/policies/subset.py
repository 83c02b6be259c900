"""A policy that keeps some layers of another, always the same ones: first-k truncation and static layer dropping."""

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from armlet.policies import Policy, Student


def keep_layers(teacher: Policy, kept: tuple[int, ...]) -> Policy:
    """A copy of `teacher` whose backbone has only the layers `kept`, in order."""
    depth = len(teacher.layers)
    if not kept or sorted(set(kept)) != list(kept) or kept[-1] >= depth or kept[0] < 0:
        raise ValueError(f"layers to keep must be increasing numbers from 0 to {depth - 1}, found {kept}")
    student = copy.deepcopy(teacher)
    student.layers = nn.ModuleList(student.layers[index] for index in kept)
    for index, layer in enumerate(student.layers):
        layer.self_attn.layer_idx = index
    student.kept_layers = kept
    return student


@dataclass(frozen=True)
class FirstK(Student):
    """The first `layers` layers: the simplest way to half a network, and the baseline to beat (recipes.md §1, 3)."""

    layers: int

    def build(self, teacher: Policy) -> Policy:
        return keep_layers(teacher, tuple(range(self.layers)))


@dataclass(frozen=True)
class Kept(Student):
    """Layers chosen by hand."""

    layers: tuple[int, ...]

    def build(self, teacher: Policy) -> Policy:
        return keep_layers(teacher, self.layers)


@dataclass(frozen=True)
class Whole(Student):
    """The teacher's own network, all of it: plain fine-tuning."""

    def build(self, teacher: Policy) -> Policy:
        return copy.deepcopy(teacher)


def describe(policy: Policy) -> dict[str, Any]:
    """Which layers of the original network remain."""
    return {"kept_layers": list(getattr(policy, "kept_layers", range(len(policy.layers))))}
