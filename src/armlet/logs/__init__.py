"""A run's numbers where people watch them: TensorBoard, W&B or trackio, beside the files that a run
writes anyway.

A run is what all verbs write under one `out`: a series of points a stage, one of rounds, one of
evaluations. It keeps its name when it is killed and resumed, and no point stands twice: beside
each series' own lines lies a mark, how far every place has been told, which is moved *before* a
point is sent (a kill in between loses that point there, and never doubles it). What a series had
before somebody asked for a place is sent when it is opened again. A series that begins anew,
because its folder was set aside, begins a new run.

A place is a module of this folder with `opened`, by the name that a recipe says; its library is
imported there and nowhere else. Knows names and numbers; knows no recipe and no training.
"""

import importlib
import importlib.util
import json
import sys
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from armlet.data.files import read_json, write_atomically

To = Literal["tensorboard", "wandb", "trackio"]
RUN = "logging.json"  # of a run, in its `out`
MARK = "logged.json"  # of a series, beside its lines
FIX = "delete it to begin a new run in the logs"


@dataclass(frozen=True)
class Logging:
    """Where a run is logged beside its own files."""

    to: tuple[To, ...] = ()
    """Where losses, rates, rounds and results are logged as well: tensorboard, wandb, trackio, each
    an extra of armlet."""
    project: str = "armlet"
    """The project of W&B and trackio that the run is in."""
    name: str | None = None
    """What the run is called there; none: as the recipe."""
    offline: bool = False
    """W&B keeps the run on this disk, under `out`, until `wandb sync`."""

    def __post_init__(self) -> None:
        if len(set(self.to)) < len(self.to):
            raise ValueError(f"log.to names a place twice: {' '.join(self.to)}")
        unknown = set(self.to) - set(get_args(To))
        if unknown:
            raise ValueError(
                f"log.to: {', '.join(sorted(unknown))} is not known, expected some of "
                f"{', '.join(get_args(To))}"
            )
        if self.offline and "wandb" not in self.to:
            raise ValueError("log.offline has no effect without wandb among log.to")
        if not self.to and (self.project != "armlet" or self.name is not None):
            raise ValueError("log.project and log.name have no effect without log.to")


@dataclass(frozen=True)
class Run:
    """What a place is told of a run: `id` its own for ever, `folder` where it may write."""

    id: str
    name: str
    project: str
    folder: Path
    config: dict[str, Any]
    offline: bool = False


class Place(Protocol):
    """Where points go."""

    def point(self, series: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a series at a step; steps of a series only grow."""

    def close(self) -> None:
        """All that was sent is kept."""


def check(asked: Logging) -> None:
    """Raises ModuleNotFoundError naming the extra where a library is not installed: ahead of the
    work, and not in the middle of it."""
    for to in asked.to:
        if importlib.util.find_spec(to) is None:
            raise ModuleNotFoundError(
                f"--log.to {to}: {to} is not installed; pip install 'armlet[{to}]', or leave the "
                "option out"
            )


@dataclass
class RunLog:
    """One run's points, in every place that is asked for. `out`: the run's folder; `config`: what
    it was started with, as JSON."""

    asked: Logging
    out: Path
    name: str
    config: dict[str, Any]
    _places: dict[str, Place] = field(default_factory=dict)
    _failed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        check(self.asked)

    def series(self, folder: Path) -> "Series":
        """The points of what is written in a folder, by whose name they are called."""
        if not self.asked.to:
            return Series(self, folder, "")
        run = self._run()
        mark = _read(folder / MARK)
        if mark.get("run") != run["id"]:
            # The run has such a series, and it is not this one: that was set aside.
            if not mark and folder.name in run["series"]:
                self.close()
                run = {"id": _new(), "series": []}
            if folder.name not in run["series"]:
                run["series"].append(folder.name)
            _write(self.out / RUN, run)
            _write(folder / MARK, {"run": run["id"], "sent": {}})
        return Series(self, folder, run["id"])

    def send(self, to: str, run: str, series: str, step: int, values: Mapping[str, float]) -> None:
        """A point to one place, opened when it is first needed. A place that fails is left out from
        then on: no training ends for it."""
        if to in self._failed:
            return
        if to not in self._places:
            self._places[to] = self._opened(to, run)
        try:
            self._places[to].point(series, step, values)
        except Exception as error:  # of a library that is not ours: the run's own files have it all
            self._failed.add(to)
            sys.stderr.write(
                f"log {self.name}: {to} failed ({type(error).__name__}: {error}); the run goes on "
                "without it\n"
            )

    def close(self) -> None:
        while self._places:
            to, place = self._places.popitem()
            try:
                place.close()
            except Exception as error:  # as above
                sys.stderr.write(f"log {self.name}: {to} did not close ({error})\n")

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _opened(self, to: str, run: str) -> Place:
        told = Run(
            id=run,
            name=self.asked.name or self.name,
            project=self.asked.project,
            folder=self.out,
            config=self.config,
            offline=self.asked.offline,
        )
        place: Place = importlib.import_module(f"armlet.logs.{to}_place").opened(told)
        return place

    def _run(self) -> dict[str, Any]:
        return _read(self.out / RUN) or {"id": _new(), "series": []}


@dataclass
class Series:
    """The points of one stage, of the rounds, or of the evaluations."""

    log: RunLog
    folder: Path
    run: str

    def point(self, step: int, values: Mapping[str, Any]) -> None:
        """To every place that has not been told of this step: the numbers among `values`."""
        if not self.log.asked.to:
            return
        numbers = _numbers(values)
        mark = _read(self.folder / MARK)
        for to in self.log.asked.to:
            if step <= mark["sent"].get(to, -1):
                continue
            mark["sent"][to] = step
            _write(self.folder / MARK, mark)  # ahead of the point: see the module's docstring
            self.log.send(to, self.run, self.folder.name, step, numbers)

    def catch_up(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Points that stand in the run's own files, each with its `step`."""
        for row in rows:
            self.point(row["step"], row)

    def result(self, of: str, values: Mapping[str, Any]) -> None:
        """A point for what has no steps: one more, unless the last one was `of` the same."""
        if not self.log.asked.to:
            return
        mark = _read(self.folder / MARK)
        last = mark.get("last", {"of": None, "step": -1})
        step = last["step"] if last["of"] == of else last["step"] + 1
        _write(self.folder / MARK, {**mark, "last": {"of": of, "step": step}})
        self.point(step, values)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, value in values.items():
        if name != "step" and isinstance(value, int | float):
            found[name] = float(value)
    return found


def _new() -> str:
    """A run's name that no other has. It changes no result."""
    return uuid.uuid4().hex[:8]


def _read(path: Path) -> dict[str, Any]:
    """What stands in a file of ours; nothing where there is none."""
    return read_json(path, fix=FIX) if path.exists() else {}


def _write(path: Path, value: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(value, indent=1).encode())
