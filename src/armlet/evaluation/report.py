"""What an evaluation says, as `report.json`: one dataclass a part, and a version for all.

Sections that follow from the outcomes of single episodes are computed by
`armlet.evaluation.outcomes`, and stand here as they are there; what was measured beside (time,
operations, memory) is `Measured`. `read` takes reports of every version and completes what an older
one does not say. Knows no policy and no world.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from armlet.evaluation.films import Film
from armlet.evaluation.outcomes import Section
from armlet.evaluation.provenance import Curves

VERSION = 2  # 1 had no outcomes beside it
VERSIONS = (1, 2)
NEEDED = ("policies", "pairs", "fingerprint")


@dataclass(frozen=True)
class Latency:
    """Milliseconds a decision, batch 1: `policy` p50, p95 and p99; with how many threads, on which
    device."""

    policy: dict[str, float]
    threads: int
    device: str


@dataclass(frozen=True)
class Measured:
    """What a policy's row says beside its outcomes.

    `layers`: its layers' numbers in the network it was cut from; `changes_with`: the share of
    decisions whose route changes with what (None where there is only one route).
    `ms_per_second_of_motion`: p50 × how often it is asked in a second in which the arm moves.
    `flops` a decision, of all and of the backbone; `params` of both. `gripper_noise`: the share of
    gripper labels that were told wrong. `budget`: of a policy with a dial, else None.
    """

    layers: tuple[int, ...]
    changes_with: dict[str, float] | None
    latency_ms: Latency
    ms_per_second_of_motion: float | None
    flops: dict[str, float]
    params: dict[str, int]
    peak_memory_mb: float
    bytes_on_disk: int
    gripper_noise: float | None
    budget: float | None

    def completes(self, row: Section) -> Section:
        """A policy's row of the outcomes, with this beside it."""
        said = asdict(self)
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
    """A whole report. `sections` as `outcomes.recompute` gives them; `measured` and `training` by
    policy."""

    outcomes: OutcomesFile
    sections: Section
    measured: dict[str, Measured]
    films: tuple[Film, ...]
    training: dict[str, list[Curves]]
    fingerprint: dict[str, Any]
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """As it stands in the file."""
        rows = [self.measured[row["name"]].completes(row) for row in self.sections["policies"]]
        films = []
        for film in self.films:
            films.append({**asdict(film), "policies": list(film.policies)})
        return {
            "version": self.version,
            "outcomes": asdict(self.outcomes),
            **self.sections,
            "policies": rows,
            "rollouts": films,
            "training": self.training,
            "fingerprint": self.fingerprint,
        }


def read(path: Path) -> dict[str, Any]:
    """A report's JSON, whole: what its version did not say yet is filled in. Raises
    FileNotFoundError or ValueError naming the file and the field."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; `armlet evaluate` writes it")
    try:
        report = json.loads(path.read_text())
    except json.JSONDecodeError as error:
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


def _complete(report: dict[str, Any], path: Path) -> None:
    """Into a report of version 1 goes what readers ask for and such a report does not say. Raises
    ValueError for a version that is not known."""
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
    report.setdefault("pairs_by_split", {})
    report.setdefault("delayed_pairs", [])
    for row in report.setdefault("delayed", []):
        # The rule of that time: an action left out for every step late, whether or not one was made.
        row.setdefault("late", "skip")
        row.setdefault("seconds_to_success", {"successes": None, "restricted": None, "limit": None})
