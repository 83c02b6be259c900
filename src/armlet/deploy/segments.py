"""A graph with the states between its layers among its outputs → a graph a part, as
`robot/segments.py` runs them. Knows no policy.

The whole is captured once and cut, as capturing takes the longest. What a part needs and no state
holds (how many words there are, say) it computes from the moment, anew.
"""

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from armlet.deploy.onnx import LARGEST, library
from armlet.robot.runtimes import AFTER, GATES, OUTPUT, STATE

START = "start"
END = "end"
HEAVY = ("MatMul", "Gemm", "Conv")  # what two parts must not both compute
FILE = "boundaries.json"


class CutError(ValueError):
    """A graph that cannot be cut between its layers."""


@dataclass(frozen=True)
class Boundaries:
    """What lies between the layers of a captured policy. `start`: the tensors of a state, by name;
    `changing`: those of them that layers change; `doubled`: those whose last axis repeats its first
    half, as cosines and sines of positions do; `last`: whether its last layer may compute less."""

    layers: int
    start: tuple[str, ...]
    changing: tuple[str, ...]
    doubled: tuple[str, ...]
    last: bool

    @property
    def parts(self) -> tuple[str, ...]:
        """Their names, in the order in which `Parts` has them."""
        names = [START]
        names += [f"layer-{index}" for index in range(self.layers)]
        if self.last:
            names += [f"last-{index}" for index in range(self.layers)]
        return (*names, END)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Of the whole graph, in order."""
        names = [GATES, OUTPUT, *self.before(0)]
        for index in range(self.layers):
            names += self.made(f"layer-{index}")
            if self.last:
                names += self.made(f"last-{index}")
        return tuple(names)

    def before(self, index: int) -> dict[str, str]:
        """What the whole graph calls the state before layer `index`, or behind the last one → what
        a part calls it."""
        found = {}
        for name in self.start:
            at = index if name in self.changing else 0
            found[f"{name}@{at}"] = STATE + name
        return found

    def made(self, part: str) -> dict[str, str]:
        """What the whole graph calls that which a part leaves → what the part calls it."""
        if part == END:
            return {OUTPUT: OUTPUT}
        if part == START:
            found = {GATES: GATES}
            for name in self.start:
                found[f"{name}@0"] = (AFTER if name in self.changing else STATE) + name
            return found
        kind, index = part.split("-")
        behind = f"last-{index}" if kind == "last" else str(int(index) + 1)
        return {f"{name}@{behind}": AFTER + name for name in self.changing}

    def entering(self, part: str) -> dict[str, str]:
        """What the whole graph calls that which enters a part → what the part calls it."""
        if part == START:
            return {}
        return self.before(self.layers if part == END else int(part.split("-")[1]))

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        said = json.loads((folder / FILE).read_text(encoding="utf-8"))
        for name in ("start", "changing", "doubled"):
            said[name] = tuple(said[name])
        return cls(**said)


def cut(source: Path, folder: Path, between: Boundaries, *, stem: str) -> None:
    """The parts of a graph as files `<stem>-<part>.onnx`. Raises CutError where two parts would
    compute the same products, and where one is too large for a file."""
    onnx = library("onnx")
    model = onnx.load(source)
    whole = _Whole(model)
    needed: set[str] = set()  # of what `start` leaves: what another part reads
    taken: dict[int, str] = {}  # by a node's identity: the part that computes it
    for part in reversed(between.parts):  # the first last, when it is known what is needed of it
        leaving = between.made(part)
        if part == START:
            kept = {GATES, *(f"{name}@0" for name in needed)}
            leaving = {name: own for name, own in leaving.items() if name in kept}
        entering = between.entering(part)
        nodes, read = whole.behind(leaving, entering)
        needed.update(name.partition("@")[0] for name in read if name in entering)
        where = part.replace("last-", "layer-")  # these two share what they begin with
        for node in nodes:
            if node.op_type in HEAVY and taken.setdefault(id(node), where) != where:
                raise CutError(
                    f"its graph cannot be cut between its layers: {part} would compute again what "
                    f"{taken[id(node)]} does ({node.op_type})"
                )
        names = {**entering, **leaving}
        made = whole.part(nodes, read, list(leaving), names)
        size = sum(each.ByteSize() for each in made.graph.initializer)
        if size > LARGEST:
            raise CutError(
                f"{part} has {size / 1e9:.1f} GB of weights, more than a file of a part holds"
            )
        onnx.save(made, folder / f"{stem}-{part}.onnx")
    between.save(folder)


class _Whole:
    """A graph that is cut."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.order = list(model.graph.node)
        self.said = {each.name: each for each in (*model.graph.input, *model.graph.output)}
        self.makers: dict[str, Any] = {}
        for node in self.order:
            for output in node.output:
                self.makers[output] = node

    def behind(self, wanted: Iterable[str], known: Collection[str]) -> tuple[list[Any], set[str]]:
        """The nodes that make what is wanted out of what is known, in order, and the names that they
        read and none of them makes."""
        chosen = set()
        read = set()
        left = list(wanted)
        seen = set(left)
        while left:
            name = left.pop()
            node = self.makers.get(name)
            if node is None or name in known:
                read.add(name)  # an input, a constant, or a state
                continue
            chosen.add(id(node))
            for entering in _reads(node):
                if entering not in seen:
                    seen.add(entering)
                    left.append(entering)
        return [node for node in self.order if id(node) in chosen], read

    def part(
        self, nodes: list[Any], read: Collection[str], leaving: list[str], names: dict[str, str]
    ) -> Any:
        """These nodes as a graph of its own; what enters and leaves is called as `names` say, and
        the rest is numbered, so that parts that are alike are so byte for byte."""
        onnx = library("onnx")
        called = {"": "", **{each.name: each.name for each in self.model.graph.input}, **names}
        copies: list[Any] = []
        for node in nodes:
            for name in (*_reads(node), *node.output):
                called.setdefault(name, f"n{len(called)}")
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"n{len(copies)}"
            _rename(copy, called)
            copies.append(copy)
        weights = {each.name: each for each in self.model.graph.initializer}
        constants = []
        for name, own in called.items():  # in the order in which they are read
            if name in read and name in weights:
                constant = onnx.TensorProto()
                constant.CopyFrom(weights[name])
                constant.name = own
                constants.append(constant)
        inputs = [_called(onnx, each, names) for key, each in self.said.items() if key in read]
        outputs = [_called(onnx, self.said[name], names) for name in leaving]
        graph = onnx.helper.make_graph(copies, "part", inputs, outputs, constants)
        return onnx.helper.make_model(
            graph,
            opset_imports=self.model.opset_import,
            functions=self.model.functions,
            ir_version=self.model.ir_version,
        )


def _rename(node: Any, names: dict[str, str]) -> None:
    """What a node reads and makes, its branches included."""
    for side in (node.input, node.output):
        for at, name in enumerate(side):
            side[at] = names.get(name, name)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            _rename(inner, names)


def _called(onnx: Any, said: Any, names: dict[str, str]) -> Any:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(said)
    copy.name = names.get(said.name, said.name)
    return copy


def _reads(node: Any) -> list[str]:
    """What a node reads, its branches included."""
    found = [name for name in node.input if name]
    for attribute in node.attribute:
        for inner in attribute.g.node:
            found += _reads(inner)
    return found
