"""Students that keep some layers of their teacher, always the same ones: truncation and static dropping."""

from dataclasses import dataclass

from armlet.policies import Policy, Student


@dataclass(frozen=True)
class FirstK(Student):
    """The first `layers` layers: the simplest way to halve a network, and the baseline to beat (recipes.md §1, 3)."""

    layers: int

    def build(self, teacher: Policy) -> Policy:
        return teacher.keep_layers(tuple(range(self.layers)))


@dataclass(frozen=True)
class Kept(Student):
    """Layers chosen by hand."""

    layers: tuple[int, ...]

    def build(self, teacher: Policy) -> Policy:
        return teacher.keep_layers(self.layers)
