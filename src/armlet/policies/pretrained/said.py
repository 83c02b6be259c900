"""What a checkpoint does not say of itself, in a `policy.toml`: beside the checkpoint, or anywhere,
naming it. `--teacher` takes the folder or the file.

    checkpoint = "../openvla-7b"     # a folder, hf:user/name; left out: the file's own folder;
                                     # or ws://host:port, a server (policies/remote/policy.py)
    kind = "openvla_hf"              # left out: found by looking at the files
    execute = 1                      # actions of a chunk that are carried out; left out: its own
    precision = "fp32"               # of the weights in memory: fp32, bf16 or as_saved
    tokenizer = "../llama-2"         # a folder or a name on the hub; left out: what it names itself
    [cameras]                        # the checkpoint's name of a camera = the robot's
    image = "front"
    [options]                        # what only this kind has
    unnorm_key = "bridge_orig"
    [robot]                          # as robot.toml: over what the episodes' robot says
    mode = "delta"

What nobody says is taken from the robot that the policy is loaded for, and asked for by name where
there is none. Knows no kind.
"""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch

from armlet import limits
from armlet.policies.precisions import SHORT
from armlet.robot.client.address import is_address
from armlet.robot.description import Described, UnknownRobotError, completed, from_table
from armlet.robot.spec import ActionSpec, RobotSpec
from armlet.robot.tables import read_toml

FILE = "policy.toml"
Kept = Literal["fp32", "bf16", "as_saved"]
T = TypeVar("T")


@dataclass(frozen=True)
class Said:
    """See the module's docstring; `source` is the file, or the checkpoint's folder where there is
    none, for errors."""

    checkpoint: Path
    source: Path
    kind: str | None = None
    execute: int | None = None
    precision: Kept = "fp32"
    tokenizer: str | None = None
    cameras: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    robot: Described = field(default_factory=Described)

    @property
    def dtype(self) -> torch.dtype | None:
        """Of weights in memory; None: as on disk."""
        return None if self.precision == "as_saved" else SHORT[self.precision]

    def camera(self, name: str) -> str:
        """What the robot calls the checkpoint's camera of this name."""
        return self.cameras.get(name, name)

    def check_cameras(self, known: list[str]) -> None:
        """Raises ValueError where a camera is named that the checkpoint does not have, or two of
        them are the robot's one."""
        unknown = sorted(set(self.cameras) - set(known))
        if unknown:
            raise ValueError(
                f"{self.source}: [cameras] names {', '.join(unknown)}, and the checkpoint looks "
                f"through {', '.join(known) or 'none'}"
            )
        ours = [self.camera(name) for name in known]
        twice = sorted({name for name in ours if ours.count(name) > 1})
        if twice:
            raise ValueError(
                f"{self.source}: [cameras] gives {', '.join(twice)} to two cameras of the "
                "checkpoint; give each its own"
            )

    def as_options(self, kind: type[T]) -> T:
        """`[options]` as the dataclass of a kind. Raises ValueError naming one that it does not
        have, or whose value is of another type."""
        known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
        unknown = sorted(set(self.options) - set(known))
        if unknown:
            raise ValueError(
                f"{self.source}: [options] has {', '.join(unknown)}, which has no effect here; "
                f"there {'are' if known else 'is'} {', '.join(known) or 'none'}"
            )
        values = {}
        for name, value in self.options.items():
            values[name] = _as_tuple(value)
        try:
            found = kind(**values)
            limits.typed(found)
            return found
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.source}: [options]: {error}") from error

    def action_spec(
        self,
        dims: int,
        robot: RobotSpec | None,
        *,
        names: tuple[str, ...] | None = None,
        itself: Described | None = None,
    ) -> ActionSpec:
        """What an action of `dims` numbers means: as said here, over what the checkpoint says of
        itself (`names`, `itself`), over the robot that it is loaded for. A range that nobody knows
        is infinite.

        Raises UnknownRobotError asking for what nobody says, and ValueError where what is said is
        of another number of dimensions.
        """
        known = self.robot.over(itself or Described()).over(Described(names=names))
        if robot is not None and robot.action.dims == dims:
            known = known.over(Described.of(robot.action))
        infinite = (float("inf"),) * dims
        counted = tuple(map(str, range(dims)))  # names that nobody gave
        lowest = tuple(-each for each in infinite)
        known = known.over(Described(names=counted, low=lowest, high=infinite))
        assert known.names is not None
        if len(known.names) != dims:
            raise ValueError(
                f"{self.source}: the policy's actions have {dims} numbers and {len(known.names)} "
                f"names ({', '.join(known.names)}); is it of another robot?"
            )
        if known.control_hz is None:
            raise UnknownRobotError(
                f"{self.checkpoint}: at which rate its actions are carried out is said nowhere; "
                f"give `control_hz` in [robot] of {FILE}, or the robot's own description",
                ["control_hz"],
            )
        return completed(known, whose=str(self.checkpoint))

    def state_names(self, dims: int, robot: RobotSpec | None) -> tuple[str, ...]:
        """One a number of the state, or none where nobody knows them. Raises ValueError where they
        are not as many."""
        names = self.robot.state_names
        if names is None and robot is not None and robot.observation.state_dims == dims:
            names = robot.observation.state_names
        if names and len(names) != dims:
            raise ValueError(
                f"{self.source}: the policy's state has {dims} numbers and {len(names)} names "
                f"({', '.join(names)})"
            )
        return names or ()


def _as_tuple(value: Any) -> Any:
    """Lists of TOML, also in one another, as a frozen dataclass has them."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def read_said(place: Path) -> Said:
    """What is said of a checkpoint: `place` is a `policy.toml`, or a checkpoint's folder, with one
    in it or without. Raises FileNotFoundError, and ValueError naming the file and what in it will
    not do."""
    file = place / FILE if place.is_dir() else place
    if file.is_dir():
        raise ValueError(f"{file} is a folder, expected a file; remove it, or put the file there")
    if not file.is_file():
        if place.is_dir():
            return Said(place, place)
        raise FileNotFoundError(f"{place}: there is no such folder or file")
    try:
        table = read_toml(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not TOML: {error}; repair it there") from error
    _check_table(table, file)
    robot = from_table(table.pop("robot", {}), file)
    checkpoint = _beside(file, table.pop("checkpoint", "."))
    said = Said(checkpoint, file, robot=robot, **table)
    if said.tokenizer is not None:  # a folder beside the file, or a name on the hub
        local = file.parent / said.tokenizer
        if local.exists():
            said = replace(said, tokenizer=str(local))
    return said


def _check_table(table: dict[str, Any], file: Path) -> None:
    """Raises ValueError naming the entry that there is not, or that is of another type."""
    known = [each.name for each in fields(Said) if each.name != "source"]
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ValueError(
            f"{file}: {', '.join(unknown)} says nothing of a policy; it may hold {', '.join(known)}"
        )
    for name in ("cameras", "options", "robot"):
        if not isinstance(table.get(name, {}), dict):
            raise ValueError(f"{file}: {name} is {table[name]!r:.60}, expected a table, [{name}]")
    for name in ("checkpoint", "kind", "tokenizer", "precision"):
        if not isinstance(table.get(name, ""), str):
            raise ValueError(f"{file}: {name} is {table[name]!r:.60}, expected a text")
        if table.get(name) == "":
            raise ValueError(f"{file}: {name} is empty; say it, or leave it out")
    if type(table.get("execute", 1)) is not int:  # true is an int, too
        raise ValueError(f"{file}: execute is {table['execute']!r:.60}, expected a whole number")
    if not all(isinstance(each, str) for each in table.get("cameras", {}).values()):
        raise ValueError(f"{file}: [cameras] holds more than names: {table['cameras']!r:.120}")
    if table.get("precision", "fp32") not in get_args(Kept):
        raise ValueError(
            f"{file}: precision is {table['precision']!r}, expected {', '.join(get_args(Kept))}"
        )
    if table.get("execute", 1) < 1:
        raise ValueError(f"{file}: execute is {table['execute']}, expected 1 or more")


def _beside(file: Path, name: str) -> Path:
    """A place that a file names: from the file's own folder, unless it is on the hub or behind a
    socket."""
    if name.startswith("hf:") or is_address(name):
        return Path(name)
    return file.parent / name if name != "." else file.parent
