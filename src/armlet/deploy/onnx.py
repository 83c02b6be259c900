"""A captured graph → an ONNX file, and its precision: single, or int8. Knows no policy.

`int8` quantises weights once and what goes into each matrix product at every call (dynamic);
`int8_static` measures that on real frames beforehand (calibrated), in the QDQ form that ONNX
Runtime and OpenVINO both read. `fp16` keeps weights in half the bytes and computes in single
precision: a processor without half-precision products has nothing faster to offer.
"""

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armlet.robot.runtimes import OUTPUT

INSTALL = "pip install 'armlet[export]'"
PRODUCTS = ("MatMul", "Gemm")  # what is quantised: the rest of a decision's work is small
LARGEST = 1_500_000_000  # bytes of weights in one file: protobuf holds 2 GiB
DATA = ".data"  # what the file of larger weights is called beside the graph's


class MissingExporterError(ImportError):
    """A library that export needs is not installed."""


def library(name: str) -> Any:
    """A library of the extra `export`. Raises MissingExporterError saying how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExporterError(
            f"{name} is not installed, and export needs it: {INSTALL}"
        ) from error


def write(
    program: torch.export.ExportedProgram,
    names: Sequence[str],
    path: Path,
    *,
    outputs: Sequence[str] = (OUTPUT,),
) -> None:
    """A captured graph as an ONNX file, in single precision, with the inputs that it reads and the
    outputs, named so. Weights of more than 1.5 GB stand in a file beside it."""
    onnx = library("onnx")
    library("onnxscript")  # torch's exporter needs it, and says so only in the middle of the work
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    with silent():
        made = torch.onnx.export(
            program,
            input_names=list(names),
            output_names=list(outputs),
            dynamo=True,
            verbose=False,
        )
    assert made is not None  # with `dynamo` it is always given
    made.save(path, external_data=size > LARGEST)
    model = onnx.load(path, load_external_data=False)
    _tidy(model)
    onnx.save(model, path)


def _tidy(model: Any) -> None:
    """Takes out the inputs that nothing reads, and what torch wrote of the sources it was made from:
    their places on this computer are nobody else's business."""
    graph = model.graph
    read = {name for node in graph.node for name in node.input}
    kept = [each for each in graph.input if each.name in read]
    del graph.input[:]
    graph.input.extend(kept)
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del item.metadata_props[:]
        item.doc_string = ""
    for item in graph.initializer:
        item.doc_string = ""
    for function in model.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]
            node.doc_string = ""


def inputs_of(path: Path) -> tuple[str, ...]:
    """The names of what a graph reads."""
    model = library("onnx").load(path, load_external_data=False)
    return tuple(each.name for each in model.graph.input)


def quantise(source: Path, path: Path) -> None:
    """A graph in single precision → one in int8, dynamic."""
    quantization = _quantization()
    with _prepared(source, path) as prepared, silent():
        quantization.quantize_dynamic(
            prepared,
            path,
            op_types_to_quantize=list(PRODUCTS),
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            extra_options=_options(),
        )


def calibrate(source: Path, path: Path, frames: Sequence[Mapping[str, np.ndarray]]) -> None:
    """A graph in single precision → one in int8 whose ranges were measured on `frames`, real
    moments by the names of the graph's inputs."""
    quantization = _quantization()
    with _prepared(source, path) as prepared, silent():
        _say_types(prepared)
        quantization.quantize_static(
            prepared,
            path,
            _Frames(frames, inputs_of(source)),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(PRODUCTS),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options=_options(),
        )


def _say_types(path: Path) -> None:
    """Says of every product's operands and result that they are single precision. Behind an operator
    of a runtime's own nobody knows, and quantising fails there on a bias."""
    onnx = library("onnx")
    model = onnx.load(path)
    graph = model.graph
    known = set()
    for each in (*graph.value_info, *graph.input, *graph.output, *graph.initializer):
        known.add(each.name)
    for node in graph.node:
        if node.op_type not in PRODUCTS:
            continue
        for name in (*node.input[:2], *node.output):
            if name not in known:
                known.add(name)
                said = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
                graph.value_info.append(said)
    onnx.save(model, path)


class _Frames:
    """Moments, one after the other: what `quantize_static` asks for."""

    def __init__(self, frames: Sequence[Mapping[str, np.ndarray]], names: Sequence[str]) -> None:
        self._left = iter(frames)
        self._names = names

    def get_next(self) -> dict[str, np.ndarray] | None:
        fed = next(self._left, None)
        return None if fed is None else {name: fed[name] for name in self._names}


def _options() -> dict[str, Any]:
    # Products of two computed matrices, as in attention, stay; and where a runtime's own operators
    # stand before a product, nobody says of what type it is.
    return {"MatMulConstBOnly": True, "DefaultTensorType": library("onnx").TensorProto.FLOAT}


def _quantization() -> Any:
    library("onnx")
    library("onnxruntime")
    return library("onnxruntime.quantization")


@contextlib.contextmanager
def _prepared(source: Path, path: Path) -> Iterator[Path]:
    """The graph with the shapes of all it computes, as quantising wants it."""
    prepared = path.with_name(path.name + ".prepared")
    try:
        with silent():
            library("onnxruntime.quantization.shape_inference").quant_pre_process(
                source, prepared, skip_symbolic_shape=True
            )
        yield prepared
    finally:
        prepared.unlink(missing_ok=True)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without what these libraries say of themselves while they work: none of it is about the
    policy."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
