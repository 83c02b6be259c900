"""Students without a router: fewer layers of their teacher, always the same ones; the same network
made afresh; another network."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from armlet import limits
from armlet.policies.building import rebuild
from armlet.policies.contract import Backbone, Network, Student, sides_of
from armlet.types import Batch


@dataclass(frozen=True)
class FirstK(Student):
    """The first `layers` layers: the simplest way to halve a network, and the baseline to beat
    (recipes.md §1, 3)."""

    layers: int
    """How many are kept."""

    def __post_init__(self) -> None:
        limits.positive(self, "layers")

    def build(self, teacher: Backbone, sample: Batch | None = None) -> Backbone:
        return teacher.keep_layers(tuple(range(self.layers)))


@dataclass(frozen=True)
class Kept(Student):
    """Layers chosen by hand."""

    layers: tuple[int, ...]
    """Their numbers, from 0."""

    def build(self, teacher: Backbone, sample: Batch | None = None) -> Backbone:
        return teacher.keep_layers(self.layers)


@dataclass(frozen=True)
class Whole(Student):
    """All layers of its teacher, with its weights."""

    def build(self, teacher: Backbone, sample: Batch | None = None) -> Backbone:
        return teacher.keep_layers(tuple(range(len(teacher.layers))))


@dataclass(frozen=True)
class LayerDrop(Student):
    """The `layers` layers that change their input most on the data (block influence, ShortGPT,
    arXiv 2403.03853)."""

    layers: int
    """How many are kept."""

    def __post_init__(self) -> None:
        limits.positive(self, "layers")

    def build(self, teacher: Backbone, sample: Batch | None = None) -> Backbone:
        if sample is None:
            raise ValueError(
                "LayerDrop looks at the data to choose layers; pass build() a sample batch"
            )
        depth = len(teacher.layers)
        if self.layers > depth:
            raise ValueError(
                f"{self.layers} layers are to be kept, and the teacher has {depth}; give a smaller "
                "`--student.layers`"
            )
        strongest = influence(teacher, sample).topk(self.layers).indices
        return teacher.keep_layers(tuple(sorted(strongest.tolist())))  # topk: strongest first


@torch.no_grad()
def influence(policy: Backbone, batch: Batch) -> Float[Tensor, " l"]:
    """1 − the cosine of what enters a layer and what leaves it, mean over real tokens: near 0, a
    layer does little."""
    state = policy.embed(batch)
    found = []
    for index in range(len(policy.layers)):
        # What would stand there without the layer, which in most networks is what entered it.
        before = policy.features(policy.skip_layer(index, state))
        state = policy.run_layer(index, state)
        after = policy.features(state)
        likeness = torch.cosine_similarity(before.hidden, after.hidden, dim=-1)  # (b, n)
        # Which tokens are real does not change on the way, so either mask will do.
        found.append(1 - likeness[before.mask].mean())
    return torch.stack(found)


@dataclass(frozen=True)
class Fresh(Student):
    """The network that `student` would make, with weights that owe the teacher nothing."""

    student: Student
    """What makes the network."""

    @property
    def needs_teacher(self) -> bool:  # type: ignore[override]  # it follows from `student`
        # Which layers these two keep is said; another may look at the weights to choose, unless it
        # says that it can do without.
        said = isinstance(self.student, FirstK | Kept) or self.student.from_nothing() is not None
        return self.student.needs_teacher and not said

    @property
    def own_eyes(self) -> bool:  # type: ignore[override]  # as above
        return self.student.own_eyes

    def build(self, teacher: Backbone, sample: Batch | None = None) -> Backbone:
        # Built for its sizes alone, and once more from these: what it copied is left behind.
        return rebuild(self.student.build(teacher, sample).to_json(), teacher.body.tokenizer)


@dataclass(frozen=True)
class OtherNetwork(Student):
    """Another kind of network than the teacher's, from nothing, for the same robot: its words,
    statistics and cameras."""

    needs_teacher: ClassVar[bool] = False
    own_eyes: ClassVar[bool] = True
    network: Network
    """Which."""

    def build(self, teacher: Backbone, sample: Batch | None = None) -> Backbone:
        if sample is None:
            raise ValueError("OtherNetwork fits its eyes to the data; pass build() a sample batch")
        return self.network.build(teacher.body, sides_of(sample))
