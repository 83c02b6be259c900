"""The parts of a policy whose router decides (`robot/segments.py`) as one ONNX graph, in which each
layer stands behind an `If`: what `bench/routes.py` compares parts with. Knows no policy."""

from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from armlet.robot.runtimes import AFTER, GATES, STATE
from armlet.robot.segments import Parts


def join(folder: Path, parts: Parts, path: Path) -> None:
    """One graph of a moment → `actions` and `gates`. A layer that is skipped hands on the state that
    it met."""
    joined = _Joined(folder, parts)
    onnx.save(joined.model(), path)


class _Joined:
    def __init__(self, folder: Path, parts: Parts) -> None:
        self.parts = parts
        self.read = {name: onnx.load(folder / name) for name in parts.names}
        self.layers = len(parts.layers)
        outputs = self.read[parts.start].graph.output
        kinds = {each.name: each.type.tensor_type.elem_type for each in outputs}
        self.changing = {  # name in a state → type of its numbers
            name.removeprefix(AFTER): kind for name, kind in kinds.items() if name.startswith(AFTER)
        }
        self.constants: dict[bytes, Any] = {}  # by type and bytes, so that none is there twice

    def model(self) -> Any:
        parts = self.parts
        first = {AFTER + name: self.at(name, 0) for name in self.changing}
        nodes = self.placed(parts.start, first)
        nodes += self.choices()
        nodes += [self.layer(index) for index in range(self.layers)]
        nodes += self.placed(parts.end, self.entering(self.layers))
        told: dict[str, Any] = {}
        versions: dict[str, int] = {}
        for model in self.read.values():
            for each in model.graph.input:
                if not each.name.startswith(STATE):
                    told.setdefault(each.name, each)
            for opset in model.opset_import:
                versions[opset.domain] = max(opset.version, versions.get(opset.domain, 0))
        answers = list(self.read[parts.end].graph.output)
        answers += [each for each in self.read[parts.start].graph.output if each.name == GATES]
        graph = helper.make_graph(
            nodes, "joined", list(told.values()), answers, list(self.constants.values())
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(*each) for each in versions.items()],
            ir_version=max(model.ir_version for model in self.read.values()),
        )

    def at(self, name: str, index: int) -> str:
        """What of a state is called before layer `index`, or behind the last."""
        return f"{name}@{index}"

    def entering(self, index: int) -> dict[str, str]:
        return {STATE + name: self.at(name, index) for name in self.changing}

    def placed(self, part: str, names: dict[str, str]) -> list[Any]:
        """A part's nodes; what is in `names` is called so, inputs and outputs keep their names, and
        the rest has names that no other part has."""
        model = self.read[part]
        known = {"": ""}
        for each in (*model.graph.input, *model.graph.output):
            known[each.name] = each.name
        known |= names
        for constant in model.graph.initializer:
            copy = onnx.TensorProto()
            copy.CopyFrom(constant)
            copy.name = ""
            key = copy.SerializeToString()
            copy.name = f"{part}/{constant.name}"
            known[constant.name] = self.constants.setdefault(key, copy).name
        found = []
        for node in model.graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{part}/{node.name}"
            for side in (copy.input, copy.output):
                for place, name in enumerate(side):
                    side[place] = known.get(name, f"{part}/{name}")
            found.append(copy)
        return found

    def choices(self) -> list[Any]:
        """`runs.<i>`, and `ends.<i>`: no later layer runs."""
        after = []
        for row in range(self.layers):
            after += [float(row > column) for column in range(self.layers)]
        for name, shape, values in (("half", [], [0.5]), ("after", [self.layers] * 2, after)):
            self.constants[name.encode()] = helper.make_tensor(
                name, onnx.TensorProto.FLOAT, shape, values
            )
        runs = [f"runs.{index}" for index in range(self.layers)]
        ends = [f"ends.{index}" for index in range(self.layers)]
        return [
            helper.make_node("Greater", [GATES, "half"], ["runs"]),
            helper.make_node("Split", ["runs"], runs, axis=1, num_outputs=self.layers),
            helper.make_node("MatMul", [GATES, "after"], ["come"]),
            helper.make_node("Less", ["come", "half"], ["ends"]),
            helper.make_node("Split", ["ends"], ends, axis=1, num_outputs=self.layers),
        ]

    def layer(self, index: int) -> Any:
        ran = self.branch(self.parts.layers[index], index)
        if self.parts.last:
            short = self.branch(self.parts.last[index], index)
            chosen = [f"chosen.{index}/{name}" for name in self.changing]
            node = helper.make_node(
                "If", [f"ends.{index}"], chosen, then_branch=short, else_branch=ran
            )
            ran = self.graph(f"chosen.{index}", [node], chosen)
        kept = [f"kept.{index}/{name}" for name in self.changing]
        same = []
        for name, own in zip(self.changing, kept, strict=True):
            same.append(helper.make_node("Identity", [self.at(name, index)], [own]))
        skipped = self.graph(f"kept.{index}", same, kept)
        made = [self.at(name, index + 1) for name in self.changing]
        return helper.make_node("If", [f"runs.{index}"], made, then_branch=ran, else_branch=skipped)

    def branch(self, part: str, index: int) -> Any:
        names = self.entering(index)
        made = [f"{part}/made/{name}" for name in self.changing]
        for name, own in zip(self.changing, made, strict=True):
            names[AFTER + name] = own
        return self.graph(part, self.placed(part, names), made)

    def graph(self, name: str, nodes: list[Any], outputs: list[str]) -> Any:
        """A branch; of its results no shape is said, as the last layer leaves fewer tokens."""
        said = []
        for kind, output in zip(self.changing.values(), outputs, strict=True):
            said.append(helper.make_tensor_value_info(output, kind, None))
        return helper.make_graph(nodes, name, [], said)
