"""A network's graph in a runtime, as a function of arrays: ONNX Runtime, or OpenVINO. Knows arrays
and files; knows no policy and no torch.

A graph is of one moment none of whose words is padding. Its inputs are named:

    image.<camera>    (1, 3, h, w) float32 in [0, 1]; with a history (1, o, 3, h, w)
    text              (1, t) int64, t words, as many as there are
    state             (1, s) float32, normalised; with a history (1, o, s)
    previous_action   (1, a) float32, normalised

those among them that the network looks at; its one output is `actions` (1, k, a), normalised. Of a
network in parts (`robot/segments.py`) each takes states beside, and leaves some.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from armlet.robot.inputs import Arrays

Runtime = Literal["onnx", "openvino"]
IMAGE = "image."
NUMBERS = ("text", "state", "previous_action")
OUTPUT = "actions"
GATES = "gates"  # which layers run, of a network whose router decides for every observation
STATE = "state."  # of a part: what the parts before it left
AFTER = "after."  # and what it leaves for the next
# What is installed for each, and what it is imported as.
LIBRARIES = {"onnx": "onnxruntime", "openvino": "openvino"}


class MissingRuntimeError(ImportError):
    """The library that runs a graph is not installed."""


class Graph(Protocol):
    """A graph that has been loaded. Not to be called by two threads at the same time."""

    def __call__(self, fed: Mapping[str, np.ndarray]) -> np.ndarray:
        """`feeds` of one moment → (1, k, a) normalised actions, of the caller's own."""
        ...

    def run(self, fed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All that it answers, by name; of the caller's own."""
        ...


def feeds(arrays: Arrays) -> dict[str, np.ndarray]:
    """One moment by the names of a graph's inputs, without padding and without what is empty.
    Raises ValueError where it is not one moment."""
    if len(arrays.text) != 1:
        raise ValueError(f"found {len(arrays.text)} moments, expected 1: a graph is of one")
    found = {IMAGE + name: image for name, image in arrays.images().items()}
    found["text"] = arrays.text[:, arrays.text_mask[0]]
    found["state"] = arrays.state
    found["previous_action"] = arrays.previous_action
    return {name: values for name, values in found.items() if values.size}


def load_graph(path: Path, runtime: Runtime, precision: str, *, threads: int = 1) -> Graph:
    """A graph on disk, ready to be called, on so many threads of the CPU. Raises
    MissingRuntimeError where its library is not installed, and ValueError naming the file where
    that does not read it."""
    if runtime not in get_args(Runtime):
        raise ValueError(
            f"{path}: runtime is {runtime!r}, expected {' or '.join(get_args(Runtime))}"
        )
    library = _library(runtime)
    try:
        if runtime == "onnx":
            return OnnxGraph(path, library, threads=threads)
        return OpenVINOGraph(path, library, precision, threads=threads)
    except Exception as error:  # both libraries raise classes of their own
        raise ValueError(
            f"{path} cannot be read by {LIBRARIES[runtime]} {library.__version__} "
            f"({type(error).__name__}: {' '.join(str(error).split()):.400}); copy the folder "
            "again, or install the version that its requirements.txt names"
        ) from error


def _library(runtime: Runtime) -> Any:
    name = LIBRARIES[runtime]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingRuntimeError(
            f"{name} is not installed, and this policy was exported for it: pip install -r "
            "FOLDER/requirements.txt, which names the version it was measured with"
        ) from error


def _named(names: set[str]) -> str:
    """Which of a tensor's names is that of what is fed, or answered."""
    for name in sorted(names):
        if name.startswith((IMAGE, STATE, AFTER)) or name in (*NUMBERS, GATES, OUTPUT):
            return name
    raise ValueError(f"a tensor is named {', '.join(sorted(names))}, and nothing is fed so")


class OnnxGraph:
    """By ONNX Runtime, on the CPU."""

    def __init__(self, path: Path, library: Any, *, threads: int) -> None:
        options = library.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; what they say of its own optimiser helps nobody
        self._session = library.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self.names = tuple(each.name for each in self._session.get_inputs())
        self.answers = [each.name for each in self._session.get_outputs()]

    def __call__(self, fed: Mapping[str, np.ndarray]) -> np.ndarray:
        return self.run(fed)[OUTPUT]

    def run(self, fed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        own = {name: fed[name] for name in self.names}
        return dict(zip(self.answers, self._session.run(self.answers, own), strict=True))


class OpenVINOGraph:
    """By OpenVINO, on the CPU. It computes in bfloat16 on its own account where the processor can,
    so that its precision is always said: `bf16`, or single."""

    def __init__(self, path: Path, library: Any, precision: str, *, threads: int) -> None:
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # who else runs on this computer is not its business
        }
        compiled = library.Core().compile_model(str(path), "CPU", options)
        self._request = compiled.create_infer_request()
        # An input may have names of what is computed of it at once, too.
        self.names = tuple(_named(each.names) for each in compiled.inputs)
        self.answers = tuple(_named(each.names) for each in compiled.outputs)

    def __call__(self, fed: Mapping[str, np.ndarray]) -> np.ndarray:
        return self.run(fed)[OUTPUT]

    def run(self, fed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        own = {name: fed[name] for name in self.names}
        answered = self._request.infer(own, share_inputs=True)
        found = {}
        for at, name in enumerate(self.answers):
            # Copied: it is the request's own memory, which the next call writes over.
            found[name] = np.array(answered[at])
        return found
