"""What is crashed: an area is one command on a small world, the folder it starts from, and what a
reader must find afterwards.

To add one, write the function that does the work in a folder, and an entry in `AREAS`: where it
starts (`after`: the area whose finished folder is its beginning), and who reads what it makes
(`reads`). Everything runs in one process, so that a point costs a second.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from outside import Dots, reaching

from armlet import (
    audit,
    calibrate,
    collect,
    distil,
    evaluate,
    export,
    probe,
    recompute,
    report,
    teach,
)
from armlet.annotators.motion_rules import MotionRules
from armlet.data.episodes import EpisodeDataset
from armlet.data.files import read_json
from armlet.data.traces import TraceStore
from armlet.deploy.exporting import How
from armlet.lineage import digest_weights
from armlet.measuring import Calibration
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.policies.facts import TeacherFacts
from armlet.recipe import Evaluation, Recipe
from armlet.robot.exported import read_description
from armlet.training.supervision import annotate

Items = frozenset[str]  # what a reader found, each a name and a hash


@dataclass(frozen=True)
class Area:
    """One command. `work` runs it in a folder; `reads` are its readers, each a function of the
    folder that says what it finds there, or raises."""

    name: str
    work: Callable[[Path], object]
    after: str = ""  # the area before it; none: an empty folder
    reads: tuple[str, ...] = ()
    share: int = 10  # of the points, in relation to the other areas


def recipe(root: Path, **changes: object) -> Recipe:
    """ActDistill end to end on a dot, in seconds."""
    made = reaching()
    often = {"steps": 6, "checkpoint_every": 2, "log_every": 1, "batch_size": 4, "warmup": 1}
    quick = dataclasses.replace(
        made,
        episodes=root / "episodes",
        teacher=root / "teacher",
        out=root,
        teach=dataclasses.replace(made.teach, **often),
        probe=dataclasses.replace(made.probe, stage=dataclasses.replace(made.probe.stage, **often)),
        stages=tuple(dataclasses.replace(stage, **often) for stage in made.stages),
        evaluation=Evaluation(episodes=4, workers=1, latency_calls=2),
        calibration=Calibration(episodes=4, workers=1),
    )
    return dataclasses.replace(quick, **changes)


# --- the work


def _collect(root: Path) -> object:
    return collect.main(recipe(root))


def _more(root: Path) -> object:
    """The data set exists, and episodes are added to it."""
    asked = recipe(root)
    more = dataclasses.replace(asked.collection, episodes=9)
    return collect.main(dataclasses.replace(asked, collection=more))


def _teach(root: Path) -> object:
    return teach.main(recipe(root))


def _probe(root: Path) -> object:
    return probe.main(recipe(root))


def _annotate(root: Path) -> object:
    rules = MotionRules(robot=Dots().action_spec)
    return annotate(EpisodeDataset(root / "episodes"), rules, root / "labels")


def _distil(root: Path) -> object:
    return distil.main(recipe(root))


def _evaluate(root: Path) -> object:
    return evaluate.main(recipe(root))


def _calibrate(root: Path) -> object:
    return calibrate.main(recipe(root))


def _audit(root: Path) -> object:
    return audit.main(
        (str(root / "teacher"),),
        benchmark="outside:Dots",
        count=3,
        workers=1,
        out=root / "audit",
    )


def _report(root: Path) -> object:
    return report.main((root / "evaluation",))


def _export(root: Path) -> object:
    out = root / "exported"
    if out.exists():  # it refuses what stands there, and is not asked twice
        return out
    how = How(closed_loop=2, calls=10, slower=True, margin=0.9)
    return export.main(str(root / "teacher"), out=out, benchmark="outside:Dots", how=how)


def _pack(root: Path) -> object:
    """As LeRobot keeps a policy, which is what `publish --lerobot` sends."""
    out = root / "packed"
    return out if out.exists() else export.main(str(root / "student"), out=out, lerobot=True)


def _replace(root: Path) -> object:
    """A policy is saved where another one stands, and replaces it."""
    return save_policy(load_policy(root / "student"), root / "teacher")


# --- who reads what was made


def _items(found: dict[str, bytes]) -> Items:
    return frozenset(
        f"{name} {hashlib.sha256(value).hexdigest()[:16]}" for name, value in found.items()
    )


def _read_episodes(root: Path) -> Items:
    data = EpisodeDataset(root / "episodes")
    columns = data.columns()
    found = {}
    for number in range(len(data.episodes)):
        made = hashlib.sha256()
        span = slice(data.starts[number], data.starts[number + 1])
        for name, values in sorted(columns.items()):
            made.update(name.encode())
            made.update(np.ascontiguousarray(values[span]).tobytes())
        for name, pictures in sorted(data.images(number).items()):
            made.update(name.encode())
            made.update(np.ascontiguousarray(pictures).tobytes())
        found[f"episode {number}"] = made.digest()
    return _items(found)


def _policy(folder: Path) -> Items:
    policy = load_policy(folder)
    said = json.dumps(policy.to_json(), sort_keys=True) + policy.body.tokenizer.to_str()
    return _items({"policy": (digest_weights(policy.state_dict()) + said).encode()})


def _read_teacher(root: Path) -> Items:
    return _policy(root / "teacher")


def _read_student(root: Path) -> Items:
    return _policy(root / "student")


def _rows(folder: Path) -> Items:
    store = TraceStore(folder)
    found = {}
    for key in store.keys.tolist():
        values = store.read(np.array([key]))
        made = hashlib.sha256()
        for name in sorted(values):
            made.update(values[name].numpy().tobytes())
        found[f"row {key}"] = made.digest()
    return _items(found)


def _read_traces(root: Path) -> Items:
    return _rows(root / "traces")


def _read_facts(root: Path) -> Items:
    return _items({"facts": TeacherFacts.read(root / "traces").fingerprint.encode()})


def _read_labels(root: Path) -> Items:
    return _rows(root / "labels")


def _read_report(root: Path) -> Items:
    folder = root / "evaluation"
    recompute.main((folder,))
    said = json.loads((folder / "report.json").read_text())
    return _items({"outcomes": json.dumps(said["outcomes"], sort_keys=True).encode()})


def _read_audit(root: Path) -> Items:
    recompute.main((root / "audit/audit.json",))
    return _items({"audit": (root / "audit/audit.json").read_bytes()})


def _read_calibration(root: Path) -> Items:
    said = read_json(root / "calibration.json", fix="run `armlet calibrate` again")
    return _items({"calibration": json.dumps(said["policies"], sort_keys=True).encode()})


def _read_exported(root: Path) -> Items:
    read_description(root / "exported")
    return _items({"exported": b"whole"})


def _read_packed(root: Path) -> Items:
    return _policy(root / "packed")


READERS: dict[str, Callable[[Path], Items]] = {
    "episodes": _read_episodes,
    "teacher": _read_teacher,
    "student": _read_student,
    "traces": _read_traces,
    "facts": _read_facts,
    "labels": _read_labels,
    "report": _read_report,
    "audit": _read_audit,
    "calibration": _read_calibration,
    "exported": _read_exported,
    "packed": _read_packed,
}
AREAS = {
    area.name: area
    for area in (
        Area("collect", _collect, reads=("episodes",), share=20),
        Area("append", _more, "collect", ("episodes",), share=20),
        Area("teach", _teach, "collect", ("teacher",)),
        Area("probe", _probe, "teach", ("traces", "facts"), share=20),
        Area("annotate", _annotate, "collect", ("labels",)),
        Area("distil", _distil, "probe", ("student",), share=30),
        Area("evaluate", _evaluate, "distil", ("report",), share=20),
        Area("calibrate", _calibrate, "distil", ("calibration",)),
        Area("audit", _audit, "teach", ("audit",)),
        Area("report", _report, "evaluate", ("report",), share=3),
        Area("replace", _replace, "distil", ("teacher",)),
        Area("pack", _pack, "distil", ("packed",)),
        Area("export", _export, "teach", ("exported",), share=4),
    )
}
