"""The runtimes in which a policy can be timed here before anybody exports it for good."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from armlet.deploy.exporting import How, assemble
from armlet.measuring import EAGER, PARTS, Runtime
from armlet.policies.contract import Backbone, Policy
from armlet.policies.exported import ExportedPolicy
from armlet.robot.exported import load_exported
from armlet.robot.observation import Observation
from armlet.robot.runtimes import LIBRARIES

USUAL: tuple[Runtime, ...] = ("onnx", "onnx_int8", "openvino")  # of those that are installed


def parts(name: Runtime) -> tuple[str, str]:
    """`onnx_int8` → runtime and precision."""
    return (EAGER, "fp32") if name == EAGER else PARTS[name]


def at_hand() -> tuple[Runtime, ...]:
    """The usual runtimes whose libraries are installed; none where nothing can be exported."""
    if importlib.util.find_spec("onnx") is None:
        return ()
    found = []
    for name in USUAL:
        library, _ = PARTS[name]
        if importlib.util.find_spec(LIBRARIES[library]) is not None:
            found.append(name)
    return tuple(found)


def exported(
    policy: Backbone,
    name: Runtime,
    observations: Sequence[Observation],
    folder: Path,
    *,
    threads: int,
) -> Policy:
    """The policy in another runtime, written into `folder` without the gates of `armlet export`: to
    be timed, and not to act. Raises what exporting it does."""
    runtime, precision = PARTS[name]
    how = How(runtime=runtime, precision=precision, threads=threads)
    folder.mkdir(parents=True)
    assemble(policy, how, list(observations), folder, {})
    return ExportedPolicy(load_exported(folder, threads=threads))
