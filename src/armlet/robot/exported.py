"""An exported policy: a folder that acts with numpy and a runtime, without torch.

    policy = load_exported("out/exported")
    actions = policy.infer(observation)            # (k, a) float32, in the robot's own numbers

`armlet export` writes such folders (deploy/exporting.py):

    exported.json     what the policy is told and how its numbers are read, which graph is of which
                      budget, what it was made with, and what was measured before it was written
    tokenizer.json    where it reads words
    model.onnx, …     its graphs; of a router that decides for every observation one a part
    requirements.txt  what must be installed to run it

Knows arrays and files; knows no network.
"""

import copy
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from tokenizers import Tokenizer

from armlet import limits
from armlet.robot.ensemble import Ensemble, ensemble_from_json
from armlet.robot.inputs import Inputs
from armlet.robot.observation import Observation
from armlet.robot.outputs import Decision, Outputs
from armlet.robot.runtimes import GATES, OUTPUT, Graph, Runtime, feeds, load_graph
from armlet.robot.segments import Parts, Segments
from armlet.robot.spec import RobotSpec
from armlet.robot.tables import TwiceError, read_once

FILE = "exported.json"
TOKENIZER = "tokenizer.json"
REQUIREMENTS = "requirements.txt"
VERSION = 1
FIX = "copy the whole folder again, or make it anew with `armlet export`"
# Entries of exported.json that decide answers; the others say where it comes from.
DECIDING = ("runtime", "precision", "robot", "inputs", "outputs", "execute", "ensemble", "graphs")
UNGUIDED = (
    "an exported graph has no derivative, by which real-time chunking guides a flow; only the policy "
    "that it was exported from can be guided"
)
BLOCK = 2**20  # bytes read at a time


@dataclass(frozen=True)
class GraphFile:
    """A graph of the folder. `budget`: the share of the backbone that it costs, None where the
    policy has no dial; `gates` (l,): which layers of the policy it was made from are in it, None
    where its router decides that for every observation; `files`: name → size in bytes, the one that
    is loaded first; `parts`: which of them is which part, where the router decides."""

    budget: float | None
    gates: tuple[int, ...] | None
    files: dict[str, int]
    parts: Parts | None = None

    def __post_init__(self) -> None:
        if (self.gates is None) == (self.parts is None):
            raise ValueError("a graph has `gates`, which are fixed, or `parts`, and not both")
        missing = set(self.parts.names if self.parts else ()) - set(self.files)
        if missing:
            raise ValueError(f"`parts` names {', '.join(sorted(missing))}, not among `files`")

    @property
    def name(self) -> str:
        return next(iter(self.files))

    def to_json(self) -> dict[str, Any]:
        gates = None if self.gates is None else list(self.gates)
        found = {"budget": self.budget, "gates": gates, "files": self.files}
        return found if self.parts is None else {**found, "parts": self.parts.to_json()}

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Self:
        gates = None if said["gates"] is None else tuple(said["gates"])
        parts = Parts.from_json(said["parts"]) if "parts" in said else None
        made = cls(said["budget"], gates, dict(said["files"]), parts)
        limits.typed(made)
        # A folder may be a stranger's: it names what is in it, and nothing else of this machine.
        outside = [name for name in made.files if Path(name).name != name]
        if outside or not made.files:
            raise ValueError(f"files are {list(made.files)!r:.80}, expected names in the folder")
        return made


@dataclass(frozen=True)
class Description:
    """What exported.json says of how a policy answers."""

    runtime: Runtime
    precision: str
    robot: RobotSpec
    inputs: Inputs
    outputs: Outputs
    execute: int
    ensemble: Ensemble | None
    graphs: tuple[GraphFile, ...]  # the first is the one that is used where nobody asks for another

    def to_json(self) -> dict[str, Any]:
        return {
            "runtime": self.runtime,
            "precision": self.precision,
            "robot": self.robot.to_json(),
            "inputs": self.inputs.to_json(),
            "outputs": self.outputs.to_json(),
            "execute": self.execute,
            "ensemble": None if self.ensemble is None else self.ensemble.to_json(),
            "graphs": [each.to_json() for each in self.graphs],
        }

    @classmethod
    def from_json(cls, said: dict[str, Any], tokenizer: Tokenizer | None) -> Self:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for what it did not
        write."""
        ensemble = said["ensemble"]
        graphs = tuple(map(GraphFile.from_json, said["graphs"]))
        if not graphs:
            raise ValueError("`graphs` is empty, expected one at least")
        made = cls(
            runtime=said["runtime"],
            precision=said["precision"],
            robot=RobotSpec.from_json(said["robot"]),
            inputs=Inputs.from_json(said["inputs"], tokenizer),
            outputs=Outputs.from_json(said["outputs"]),
            execute=said["execute"],
            ensemble=None if ensemble is None else ensemble_from_json(ensemble),
            graphs=graphs,
        )
        limits.typed(made)
        limits.positive(made, "execute")
        return made


class Exported:
    """See the module's docstring. It remembers nothing from one observation to the next."""

    def __init__(self, folder: Path, description: Description, *, threads: int) -> None:
        self.folder = folder
        self.description = description
        self.threads = threads
        self._loaded: dict[str, Graph] = {}  # by file: budgets of one route share a graph
        self._graph = description.graphs[0]
        self._running = self._load()

    @property
    def robot(self) -> RobotSpec:
        """The robot that it acts for."""
        return self.description.robot

    @property
    def execute(self) -> int:
        """Actions of a chunk carried out before it looks again."""
        return self.description.execute

    @property
    def chunk(self) -> int:
        """Actions that are decided at a time."""
        return self.description.inputs.chunk

    @property
    def history(self) -> int:
        """Observations it looks at, one a control step (`Observation.past`)."""
        return self.description.inputs.history

    @property
    def ensemble(self) -> Ensemble | None:
        """How the chunks of an episode that overlap become one; None: each stands alone."""
        return self.description.ensemble

    @property
    def runtime(self) -> Runtime:
        return self.description.runtime

    @property
    def precision(self) -> str:
        return self.description.precision

    @property
    def budget(self) -> float | None:
        """Of the graph that is used."""
        return self._graph.budget

    @property
    def gates(self) -> tuple[int, ...] | None:
        """(l,): 1 for each layer of the policy it was made from that is in the graph; None where its
        router decides that for every observation (`decide`)."""
        return self._graph.gates

    def infer(self, observation: Observation) -> np.ndarray:
        """One observation → (k, a) float32 actions in the robot's own numbers. Raises ValueError
        naming what of the observation is not the robot's, FloatingPointError where the network
        answers NaN."""
        return self.decide(observation).actions

    def decide(self, observation: Observation) -> Decision:
        """The same, and which layers ran to find it."""
        if observation.underway is not None:
            raise ValueError(f"late = 'guided': {UNGUIDED}")
        inputs = self.description.inputs
        found = self._running.run(feeds(inputs.arrays([observation])))
        actions = found[OUTPUT][0]
        if not np.isfinite(actions).all():  # clipped, NaN would stay NaN and infinity be full speed
            raise FloatingPointError("the policy answered with NaN or infinite actions")
        state = inputs.state_of(observation)
        gates = self.gates
        if gates is None:
            gates = tuple(map(int, found[GATES][0]))
        return Decision(self.description.outputs.denormalise(actions, state), gates)

    def normalised(self, fed: dict[str, np.ndarray]) -> np.ndarray:
        """What the graph says of `runtimes.feeds` of one moment: (k, a), normalised."""
        found: np.ndarray = self._running.run(fed)[OUTPUT][0]
        return found

    def reset(self) -> None:
        """An episode begins: there is nothing to forget."""

    def at(self, budget: float) -> Self:
        """The same policy at another budget, one of those that were exported. Raises ValueError
        naming them."""
        for graph in self.description.graphs:
            if graph.budget == budget:
                other = copy.copy(self)  # what has been loaded is shared
                other._graph = graph
                other._running = other._load()
                return other
        there = [f"{each.budget:g}" for each in self.description.graphs if each.budget is not None]
        raise ValueError(
            f"{self.folder} has no graph of budget {budget:g}; it has {', '.join(there) or 'none'}; "
            f"armlet export --budget {budget:g} makes one"
        )

    def _load(self) -> Graph | Segments:
        parts = self._graph.parts
        return self._file(self._graph.name) if parts is None else Segments(parts, self._file)

    def _file(self, name: str) -> Graph:
        if name not in self._loaded:
            self._loaded[name] = load_graph(
                self.folder / name, self.runtime, self.precision, threads=self.threads
            )
        return self._loaded[name]


def is_exported(folder: Path) -> bool:
    """Whether this is a folder that `armlet export` wrote."""
    return (folder / FILE).is_file()


def load_exported(folder: Path | str, *, threads: int = 1) -> Exported:
    """An exported policy, on so many threads of the CPU.

    Raises FileNotFoundError or ValueError naming the file that is missing, cut short or not
    understood, and `runtimes.MissingRuntimeError`.
    """
    folder = Path(folder)
    if threads < 1:
        raise ValueError(f"threads is {threads}, expected 1 or more")
    said = read_description(folder)
    tokenizer = _tokenizer(folder / TOKENIZER)
    try:
        description = Description.from_json(said, tokenizer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{folder / FILE} does not describe an exported policy ({type(error).__name__}: "
            f"{error}); it was changed by hand; {FIX}"
        ) from error
    for graph in description.graphs:
        for name, size in graph.files.items():
            _check_file(folder / name, size)
    return Exported(folder, description, threads=threads)


def read_description(folder: Path) -> dict[str, Any]:
    """The whole of exported.json. Raises FileNotFoundError or ValueError naming it."""
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: {folder} is no exported policy; {FIX}")
    content = path.read_bytes()
    try:
        said = read_once(content)
    except TwiceError as error:
        raise ValueError(f"{path}: {error}, or {FIX}") from error
    except ValueError as error:
        raise ValueError(f"{path} ({len(content)} bytes) is not JSON ({error}); {FIX}") from error
    if not isinstance(said, dict) or said.get("version") != VERSION:
        found = said.get("version") if isinstance(said, dict) else type(said).__name__
        raise ValueError(
            f"{path}: version is {found!r}, expected {VERSION}: another version of armlet wrote "
            "it, which can read it"
        )
    return said


def fingerprint(folder: Path) -> str:
    """A hash of all that decides an exported policy's answers. Raises as `read_description`."""
    said = read_description(folder)
    deciding = {name: said.get(name) for name in DECIDING}
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode())
    names = [TOKENIZER] if (folder / TOKENIZER).is_file() else []
    for graph in said["graphs"]:
        names += [name for name in graph["files"] if name not in names]
    for name in names:
        digest.update(name.encode())
        with (folder / name).open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()[:16]


def _tokenizer(path: Path) -> Tokenizer | None:
    if not path.is_file():
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        raise ValueError(f"{path} is not a tokenizer ({error}); {FIX}") from error


def _check_file(path: Path, size: int) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {FIX}")
    found = path.stat().st_size
    if found != size:
        raise ValueError(f"{path} has {found} bytes, expected {size}: it was cut short; {FIX}")
