"""An ONNX file → OpenVINO's own format, two files. Knows no policy."""

from pathlib import Path

from armlet.deploy.onnx import library


def write(source: Path, path: Path, *, half: bool) -> None:
    """The graph of an ONNX file at `path`, `….xml`, and its weights beside it, `….bin`; `half`:
    these in half precision."""
    openvino = library("openvino")
    model = openvino.convert_model(str(source))
    openvino.save_model(model, str(path), compress_to_fp16=half)
