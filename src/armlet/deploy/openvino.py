"""An ONNX file → OpenVINO's own format, two files. Knows no policy."""

from pathlib import Path
from typing import Any

from armlet.deploy.onnx import library


def write(source: Path, path: Path, *, half: bool) -> None:
    """The graph of an ONNX file at `path`, `….xml`, and its weights beside it, `….bin`; `half`:
    these in half precision."""
    onnx = library("onnx")
    openvino = library("openvino")
    model = onnx.load(source, load_external_data=False)
    given = source
    if _columns(model.graph):
        given = source.with_name(f"{source.stem}-columns.onnx")
        onnx.save(model, given)
    try:
        made = openvino.convert_model(str(given))
        openvino.save_model(made, str(path), compress_to_fp16=half)
    finally:
        if given != source:
            given.unlink()


def _columns(graph: Any) -> bool:
    """Makes of every product with a vector (d,) one with a column (d, 1), the axis taken away
    behind it; whether there were any. OpenVINO 2026.4 joins a product with the scale behind it, and
    fails where the product is with a vector."""
    onnx = library("onnx")
    vectors = {each.name: each for each in graph.initializer if len(each.dims) == 1}
    changed = False
    for index, node in reversed(list(enumerate(graph.node))):
        vector = vectors.get(node.input[1]) if node.op_type == "MatMul" else None
        if vector is None:
            continue
        changed = True
        column = onnx.TensorProto()
        column.CopyFrom(vector)
        column.name = f"{node.output[0]}_column"
        column.dims.append(1)
        axis = onnx.helper.make_tensor(f"{column.name}_axis", onnx.TensorProto.INT64, [1], [-1])
        graph.initializer.extend([column, axis])
        product = f"{column.name}_product"
        squeeze = onnx.helper.make_node(
            "Squeeze", [product, axis.name], [node.output[0]], name=product
        )
        node.input[1] = column.name
        node.output[0] = product
        graph.node.insert(index + 1, squeeze)
    return changed
