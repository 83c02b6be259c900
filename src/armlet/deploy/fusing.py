"""An ONNX graph in operators that ONNX Runtime has of its own: a norm with the sum before it,
attention, and rotary positions are one operator each, where the standard has a dozen.

Products of matrices take half of a small network's decision on a CPU; the rest are these small
operators. The patterns of norms and attention are onnxscript's; that of rotary positions is here,
as theirs does not know graphs whose number of words is free. What is not recognised stays as it
is. Only ONNX Runtime reads the result.
"""

import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from armlet.deploy.onnx import DATA, library, silent

DOMAIN = "com.microsoft"


def fuse(source: Path, path: Path, *, doubled: Collection[str] = ()) -> None:
    """The same graph in fewer operators; one whose weights stand in a file of their own is copied as
    it is, as among large products small operators cost nothing. `doubled`: inputs (1, n, c) the
    second half of whose last axis repeats the first, as cosines and sines of positions do: where a
    graph is given those, it does not show that they are."""
    if source.with_name(source.name + DATA).exists():
        shutil.copy(source, path)
        shutil.copy(source.with_name(source.name + DATA), path.with_name(source.name + DATA))
        return
    onnx = library("onnx")
    ir = library("onnx_ir")
    # Not its `optimize_for_ort`, which goes on to products of factors of unequal axes and to group
    # norms that ONNX Runtime has no kernel for on a CPU; what it gains, ONNX Runtime does itself.
    fusions = library("onnxscript.rewriter.ort_fusions._core")
    with silent():
        model = ir.load(source)
        fusions.fuse_xformers(model)
        ir.save(model, path)
    fused = onnx.load(path)
    _Graph(fused.graph, doubled).shorten()
    onnx.save(fused, path)


class _Graph:
    """A graph whose nodes can be looked up by what they make."""

    def __init__(self, graph: Any, doubled: Collection[str] = ()) -> None:
        self.graph = graph
        self.doubled = frozenset(doubled) & {each.name for each in graph.input}
        self.constants = {each.name: each for each in graph.initializer}
        self.makers: dict[str, Any] = {}
        for node in graph.node:
            for output in node.output:
                self.makers[output] = node
        self.made = 0  # names that were given here
        self.caches: dict[str, tuple[str, str]] = {}
        self.ahead: list[Any] = []  # nodes that stand before all that read them

    def shorten(self) -> None:
        """Everything that is known here."""
        for node in list(self.graph.node):
            if node.op_type == "MultiHeadAttention":
                for index in (0, 1):
                    found = self._turned(node.input[index])
                    if found is not None:
                        node.input[index] = found
        for node in self.graph.node:
            for index, name in enumerate(node.input):
                node.input[index] = self._as_it_was(name)
        self._drop()

    def _maker(self, name: str, kind: str) -> Any | None:
        """The node that makes this, where it is of this kind."""
        node = self.makers.get(name)
        return node if node is not None and node.op_type == kind else None

    def _chain(self, name: str, kinds: Iterable[str]) -> str | None:
        """What enters a row of nodes of these kinds, the last first, that makes `name`."""
        for kind in kinds:
            node = self._maker(name, kind)
            if node is None:
                return None
            name = node.input[0]
        return name

    def _turned(self, name: str) -> str | None:
        """Where queries or keys (1, n, h · c), `name`, are turned by rotary positions: the same by
        one operator. None where they are not.

        They come as  x · cos + (−second half of x, first half of x) · sin,  heads in front."""
        summed = self._chain(name, ("Reshape", "Transpose"))
        total = None if summed is None else self._maker(summed, "Add")
        if total is None:
            return None
        straight = self._maker(total.input[0], "Mul")
        crossed = self._maker(total.input[1], "Mul")
        if straight is None or crossed is None:
            return None
        heads = straight.input[0]
        halves = self._maker(crossed.input[0], "Concat")
        if halves is None or not self._are_halves(halves, heads):
            return None
        plain = self._chain(heads, ("Transpose", "Reshape"))
        caches = self._caches(straight.input[1], crossed.input[1])
        if plain is None or caches is None:
            return None
        onnx = library("onnx")
        start = self._new("start")
        self.graph.initializer.append(
            onnx.helper.make_tensor(start, onnx.TensorProto.INT64, [1], [0])
        )
        turned = self._new("turned")
        node = onnx.helper.make_node(
            "RotaryEmbedding", [plain, start, *caches], [turned], domain=DOMAIN, name=turned
        )
        # Before the node whose place it takes.
        at = next(i for i, each in enumerate(self.graph.node) if each is self.makers[name])
        self.graph.node.insert(at, node)
        return turned

    def _are_halves(self, halves: Any, heads: str) -> bool:
        """Whether a Concat is (−second half, first half) of `heads`."""
        negative = self._maker(halves.input[0], "Neg")
        first = self._maker(halves.input[1], "Slice")
        second = None if negative is None else self._maker(negative.input[0], "Slice")
        if first is None or second is None or len(halves.input) != 2:
            return False
        if first.input[0] != heads or second.input[0] != heads:
            return False
        begins = self._numbers(first.input[1])
        middle = self._numbers(first.input[2])
        return begins == [0] and middle is not None and middle == self._numbers(second.input[1])

    def _caches(self, cos: str, sin: str) -> tuple[str, str] | None:
        """Tables (n, c / 2) of one half of the cosines and sines, whose other half is the same;
        None where it is another."""
        if cos not in self.caches:
            given = [self._chain(name, ("Unsqueeze",)) for name in (cos, sin)]
            if self.doubled.issuperset(given):
                self.caches[cos] = (self._half(given[0]), self._half(given[1]))
                return self.caches[cos]
            angles = []
            for name, kind in ((cos, "Cos"), (sin, "Sin")):
                doubled = self._chain(name, ("Unsqueeze", kind))
                both = None if doubled is None else self._maker(doubled, "Concat")
                if both is None or len(set(both.input)) != 1:
                    return None
                angles.append(both.input[0])
            if angles[0] != angles[1]:
                return None
            self.caches[cos] = (self._table("Cos", angles[0]), self._table("Sin", angles[0]))
        return self.caches[cos]

    def _table(self, kind: str, angles: str) -> str:
        """(1, n, c / 2) angles → their cosines or sines (n, c / 2)."""
        onnx = library("onnx")
        axis = self._new("axis")
        self.graph.initializer.append(
            onnx.helper.make_tensor(axis, onnx.TensorProto.INT64, [1], [0])
        )
        wide = self._new("wide")
        flat = self._new("flat")
        at = next(i for i, each in enumerate(self.graph.node) if each is self.makers[angles]) + 1
        self.graph.node.insert(at, onnx.helper.make_node(kind, [angles], [wide], name=wide))
        squeezed = onnx.helper.make_node("Squeeze", [wide, axis], [flat], name=flat)
        self.graph.node.insert(at + 1, squeezed)
        return flat

    def _half(self, name: str | None) -> str:
        """An input (1, n, c) whose halves are alike → its first half (n, c / 2)."""
        onnx = library("onnx")
        shape = next(each for each in self.graph.input if each.name == name).type.tensor_type.shape
        middle = shape.dim[2].dim_value // 2
        bounds = []
        for what, number in (("begin", 0), ("end", middle), ("along", 2), ("axis", 0)):
            bounds.append(self._new(what))
            number_as_tensor = onnx.helper.make_tensor(
                bounds[-1], onnx.TensorProto.INT64, [1], [number]
            )
            self.graph.initializer.append(number_as_tensor)
        begin, end, along, axis = bounds
        half = self._new("half")
        flat = self._new("flat")
        sliced = onnx.helper.make_node("Slice", [name, begin, end, along], [half], name=half)
        self.graph.node.insert(0, sliced)
        squeezed = onnx.helper.make_node("Squeeze", [half, axis], [flat], name=flat)
        self.graph.node.insert(1, squeezed)
        return flat

    def _numbers(self, name: str) -> list[int] | None:
        found = self.constants.get(name)
        if found is None:
            return None
        return [int(each) for each in library("onnx").numpy_helper.to_array(found).reshape(-1)]

    def _as_it_was(self, name: str) -> str:
        """What entered two reshapes, the second of which undoes the first: heads apart, and side by
        side again."""
        outer = self._maker(name, "Reshape")
        inner = None if outer is None else self._maker(outer.input[0], "Reshape")
        if outer is None or inner is None:
            return name
        apart = self._numbers(inner.input[1])
        together = self._numbers(outer.input[1])
        if apart is None or together is None or (len(apart), len(together)) != (4, 3):
            return name
        source = self.makers.get(inner.input[0])
        # Of a product or of attention it is known that it is (1, n, width).
        known = source is not None and source.op_type in ("MatMul", "MultiHeadAttention")
        whole = together[2] in (-1, apart[2] * apart[3]) or (apart[3] == -1 and together[0] == 1)
        return inner.input[0] if known and whole else name

    def _new(self, name: str) -> str:
        self.made += 1
        return f"armlet_{name}_{self.made}"

    def _drop(self) -> None:
        """Takes out what nothing reads any more."""
        wanted = {each.name for each in self.graph.output}
        kept = []
        for node in reversed(self.graph.node):
            if wanted & set(node.output):
                kept.append(node)
                wanted |= set(node.input)
        del self.graph.node[:]
        self.graph.node.extend(reversed(kept))
        constants = [each for each in self.graph.initializer if each.name in wanted]
        del self.graph.initializer[:]
        self.graph.initializer.extend(constants)
        del self.graph.value_info[:]  # of what is no longer made; the runtime infers them
