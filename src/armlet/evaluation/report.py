"""What an evaluation says, as `report.json`: one dataclass a part, and a version for all.

Sections that follow from the outcomes of single episodes are computed by
`armlet.evaluation.outcomes`, and stand here as they are there; what was measured beside (time,
operations, memory) is `Measured`. `read` takes reports of every version and completes what an older
one does not say. Knows no policy and no world.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from armlet.evaluation import outcomes, speeds
from armlet.evaluation.films import Film
from armlet.evaluation.listens import LeftOut
from armlet.evaluation.outcomes import Section
from armlet.evaluation.planning import Plan
from armlet.evaluation.provenance import Curves
from armlet.evaluation.runtimes import Refused
from armlet.evaluation.verdicts import Verdict
from armlet.measuring import EAGER
from armlet.robot.tables import read_once
from armlet.seeds import Purpose, purpose_of

# 1 had no outcomes beside it, 2 knew no runtime but eager, 3 had neither plan nor verdicts.
VERSION = outcomes.REPORT
VERSIONS = (1, 2, 3, VERSION)
NEEDED = ("policies", "pairs", "fingerprint")


@dataclass(frozen=True)
class Latency:
    """How long a decision takes, and where that was measured."""

    policy: dict[str, float]  # p50, p95 and p99 in milliseconds, batch 1
    threads: int
    device: str  # cpu, cuda …; of a policy behind a socket, that


@dataclass(frozen=True)
class Measured:
    """What a policy's row says beside its outcomes: what was measured, and what it says itself."""

    policy: str  # whose row it is: `teacher` for `teacher execute 4 onnx`
    runtime: str  # what carries its network out: eager, onnx, openvino; server: nobody knows
    precision: str | None  # of its matrix products; None: nobody knows
    exported_from: str | None  # the row of the same policy in eager; None: this one is
    layers: tuple[int, ...]  # their numbers in the network it was cut from
    # The share of decisions whose route changes when that input does; None: there is only one
    # route.
    changes_with: dict[str, float] | None
    latency_ms: Latency
    # p50 × decisions in a second in which the arm moves: a long chunk makes a slow network cheap.
    ms_per_second_of_motion: float | None
    # None from here to `bytes_on_disk` of a policy behind a socket, of which nobody knows them.
    flops: Mapping[str, float | None]  # a decision's, `total` and `backbone`
    params: Mapping[str, int | None]  # `total` and `backbone`
    peak_memory_mb: float | None
    bytes_on_disk: int | None
    gripper_noise: float | None  # the share of gripper labels that it was told wrong
    budget: float | None  # of a policy with a dial, else None

    def completes(self, row: Section) -> Section:
        """A policy's row of the outcomes, with this beside it."""
        said = asdict(self)
        # Two of these stand with what the outcomes say of routing, as in version 1.
        routing = {**row["routing"], "layers": list(said.pop("layers"))}
        changes = said.pop("changes_with")
        if changes is not None:
            routing["changes_with"] = changes
        return {**row, "routing": routing, **said}


@dataclass(frozen=True)
class OutcomesFile:
    """The file beside a report from which its counts and intervals follow."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Report:
    """A whole report."""

    outcomes: OutcomesFile
    sections: Section  # as `outcomes.recompute` gives them
    measured: dict[str, Measured]  # by the policy's name, as is `training`
    films: tuple[Film, ...]
    refused: tuple[Refused, ...]  # rows that were asked for and are not there
    training: dict[str, list[Curves]]  # of each student its stages
    fingerprint: dict[str, Any]  # versions, machine, recipe
    purpose: Purpose = "tuning"  # what it may be used for
    plan: Plan | None = None  # what was going to be run; None where it is for tuning
    verdicts: tuple[Verdict, ...] = ()  # on the first split
    verdicts_by_split: Mapping[str, Sequence[Verdict]] = field(default_factory=dict)  # on others
    # Of what policies listen to, what was not run; what was is in `sections`.
    listens_left_out: tuple[LeftOut, ...] = ()
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """As it stands in the file."""
        rows = []
        for row in self.sections["policies"]:
            rows.append(self.measured[row["name"]].completes(row))
        for row in rows:
            row["speed"] = speeds.speed(row, rows)
        films = []
        for film in self.films:
            films.append({**asdict(film), "policies": list(film.policies)})
        return {
            "version": self.version,
            "purpose": self.purpose,
            "plan": None if self.plan is None else self.plan.to_json(),
            "verdicts": [each.to_json() for each in self.verdicts],
            "verdicts_by_split": _by_split(self.verdicts_by_split),
            "outcomes": asdict(self.outcomes),
            **self.sections,
            "policies": rows,
            "listens_left_out": [asdict(each) for each in self.listens_left_out],
            "refused": [asdict(each) for each in self.refused],
            "rollouts": films,
            "training": self.training,
            "fingerprint": self.fingerprint,
        }


def _by_split(verdicts: Mapping[str, Sequence[Verdict]]) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for split, said in verdicts.items():
        found[split] = [each.to_json() for each in said]
    return found


def read(path: Path) -> dict[str, Any]:
    """A report's JSON, whole: what its version did not say yet is filled in. Raises
    FileNotFoundError or ValueError naming the file and the field."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; `armlet evaluate` writes it")
    try:
        report = read_once(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is not JSON ({error}); was it cut short? Run `armlet evaluate` again"
        ) from error
    missing = [name for name in NEEDED if not isinstance(report, dict) or name not in report]
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}; it was not written by `armlet evaluate`"
        )
    _complete(report, path)
    return dict(report)


def outcomes_of(report: Mapping[str, Any], path: Path) -> outcomes.Outcomes | None:
    """What happened in the single episodes of the report that was read from `path`; None: of version
    1, which kept none. Raises FileNotFoundError where they do not lie beside it, ValueError where
    others do, or the report names no file."""
    if "outcomes" not in report:
        return None
    named = report["outcomes"]
    if not isinstance(named, dict) or not all(
        isinstance(named.get(key), str) for key in ("file", "sha256")
    ):
        raise ValueError(
            f"{path}: outcomes is {json.dumps(named)}, expected {{file, sha256}}, as `armlet evaluate` "
            "writes it"
        )
    if Path(named["file"]).name != named["file"]:
        raise ValueError(
            f"{path}: outcomes.file is {named['file']!r}, expected the name of a file beside it"
        )
    return outcomes.read(_outcomes_beside(path, named["file"]), sha256=named["sha256"])


def _outcomes_beside(path: Path, name: str) -> Path:
    """The file of outcomes. A report that was put elsewhere as `x.json` may have it beside it as
    `x.outcomes.json.gz`, so that several reports can lie in one folder; whichever it is, its sha256
    has to be the one that the report names."""
    own = path.with_name(f"{path.stem}.{name}")
    return own if own.is_file() else path.with_name(name)


def _complete(report: dict[str, Any], path: Path) -> None:
    """Into a report of an older version goes what readers ask for and such a report does not say.
    Raises ValueError for a version that is not known."""
    version = report.setdefault("version", 1)
    if version not in VERSIONS:
        raise ValueError(
            f"{path} has version {version!r}, expected one of {VERSIONS}; a newer armlet wrote it"
        )
    for policy in report["policies"]:
        policy.setdefault("gripper_toggles", None)
        policy.setdefault("ms_per_second_of_motion", None)
        policy.setdefault("seconds_to_success", None)
        layers = list(range(len(policy["routing"]["activation"])))
        policy["routing"].setdefault("layers", layers)  # counted as its own
        if version < 3:
            _complete_runtime(policy)
    report.setdefault("purpose", _purpose(report))
    report.setdefault("plan", None)
    report.setdefault("verdicts", [])
    report.setdefault("verdicts_by_split", {})
    report.setdefault("listens", [])
    report.setdefault("refused", [])
    report.setdefault("pairs_by_split", {})
    report.setdefault("delayed_pairs", [])
    report.setdefault("listens", [])
    report.setdefault("listens_left_out", [])
    for row in report.setdefault("delayed", []):
        # The rule of that time: an action left out for every step late, whether or not one was made.
        row.setdefault("late", "skip")
        row.setdefault("seconds_to_success", {"successes": None, "restricted": None, "limit": None})


def _purpose(report: dict[str, Any]) -> Purpose | None:
    """Of a report from before it was said: by its seeds, as recipes were chosen on those from
    500,000,000 on. None: on others, or nobody knows which."""
    mark = report["fingerprint"]
    episodes = mark.get("seeds", {}).get("episodes")
    if episodes is None:
        # Version 1 says where they begin among its settings.
        begin = mark.get("evaluation", {}).get("seed")
        if begin is None or not report["policies"]:
            return None
        episodes = [begin, begin + report["policies"][0]["episodes"] - 1]
    first, last = episodes
    return purpose_of(range(first, last + 1))


def _complete_runtime(policy: dict[str, Any]) -> None:
    """Of a row from before there were others: it was run in eager, and who it was is its name."""
    policy.setdefault("policy", policy["name"])
    policy.setdefault("runtime", EAGER)
    policy.setdefault("precision", None)  # not said, and fp32 but for teachers of other projects
    policy.setdefault("exported_from", None)
