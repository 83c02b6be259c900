"""The runtimes in which a policy can be timed here before anybody exports it for good."""

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from armlet.policies.contract import Backbone, Policy
from armlet.robot.observation import Observation

EAGER = "eager"
USUAL = ("onnx", "onnx_int8", "openvino")  # of those that are installed
LIBRARIES = {"onnx": "onnxruntime", "openvino": "openvino"}
EXPORTING = "armlet.deploy.exporting"


def parts(name: str) -> tuple[str, str]:
    """`onnx_int8` → runtime and precision; what says none is in single precision."""
    runtime, _, precision = name.partition("_")
    return runtime, precision or "fp32"


def at_hand() -> tuple[str, ...]:
    """The usual runtimes whose libraries are installed; none where nothing can be exported."""
    if importlib.util.find_spec(EXPORTING) is None or importlib.util.find_spec("onnx") is None:
        return ()
    found = []
    for name in USUAL:
        if importlib.util.find_spec(LIBRARIES[parts(name)[0]]) is not None:
            found.append(name)
    return tuple(found)


def exported(
    policy: Backbone, name: str, observations: Sequence[Observation], folder: Path, *, threads: int
) -> Policy:
    """The policy in another runtime, written into `folder` without the gates of `armlet export`: to
    be timed, and not to act. Raises what exporting it does."""
    exporting: Any = importlib.import_module(EXPORTING)
    policies: Any = importlib.import_module("armlet.policies.exported")
    robot: Any = importlib.import_module("armlet.robot.exported")
    runtime, precision = parts(name)
    how = exporting.How(runtime=runtime, precision=precision, threads=threads)
    folder.mkdir(parents=True)
    exporting.assemble(policy, how, list(observations), folder, {})
    policy_: Policy = policies.ExportedPolicy(robot.load_exported(folder, threads=threads))
    return policy_
