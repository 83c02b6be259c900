"""What policies say of how they were made: which of them differ in their seed alone, which training
logs are theirs, what a study did to their labels.

Everything is read from a policy's own provenance, never from what its folder is called. Knows
provenances; loads no policy.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from armlet.data.files import read_json
from armlet.data.lines import read_lines
from armlet.lineage import PROVENANCE, shortened_to
from armlet.rollout.pool import Contender

Provenance = dict[str, Any]  # as `checkpoint.read_provenance` gives it
Curves = dict[str, list[Any]]  # a column of a training log → its values


def seeds_of(field: Mapping[str, Contender], made: Mapping[str, Provenance]) -> dict[str, str]:
    """Name of a policy → the name of the students that it is one seed of: those that were made by
    the same question (lineage.py: data, teacher, stages …) but for the seed, and are evaluated in
    the same way. One that is alone stands under its own name where its name alone would put it with
    others, else not at all; nor does one that does not say how it was made."""
    # What was made and is run in one way but for the seed: question as JSON → names.
    groups: dict[str, list[str]] = {}
    for name, contender in field.items():
        question = dict(made[name].get(PROVENANCE) or {})
        if question.pop("seed", None) is None:
            continue
        # Of which policy it was shortened differs with the seed; to what does not.
        shortened = shortened_to(made[name], name)
        way = [
            question,
            shortened,
            contender.budget,
            contender.execute,
            contender.ensemble,
            contender.runtime,
            None if contender.routes is None else contender.routes.kind,
        ]
        groups.setdefault(json.dumps(way, sort_keys=True), []).append(name)
    found: dict[str, str] = {}
    taken = set(field)
    for members in groups.values():
        drawn = [made[name][PROVENANCE]["seed"] for name in members]
        # Two of the same seed are one student twice: no sample of seeds.
        if len(members) < 2 or len(set(drawn)) < len(drawn):
            continue
        stems = set(map(_stem, members))
        called = _stem(members[0]) if len(stems) == 1 else " + ".join(members)
        if called in taken:  # another group, or a policy, is called so
            called = f"{called} ({', '.join(members)})"
        taken.add(called)
        found |= dict.fromkeys(members, called)
    alike = Counter(map(_stem, field))
    for members in groups.values():
        for name in members:
            if name not in found and alike[_stem(name)] > 1:
                found[name] = name  # its name is like another's, and it says that it is alone
    return found


def _stem(name: str) -> str:
    """What the students of several seeds have in common: `x-0 execute 4` → `x execute 4`."""
    return re.sub(r"-\d+(?= |$)", "", name, count=1)


def curves(folder: Path, made: Provenance) -> list[Curves]:
    """The stages of a student's training, column by column to five digits, from the logs beside its
    folder. A log is taken only where its stage is the one that the student says it was made by:
    what lies there may be of a later run. Empty where there is none, or the student says
    nothing."""
    question = made.get(PROVENANCE) or {}
    found = []
    for index, stage in enumerate(_all_stages(question)):
        # The folders that `armlet distil` leaves beside the student, numbered through.
        place = folder.parent / f"distil-{index}"
        log = place / "metrics.jsonl"
        about = place / "stage.json"
        if not (log.is_file() and about.is_file()):
            continue
        said = read_json(about, fix=f"delete {place} where it is of no use any more")
        if said.get("stage") != stage or said.get("teacher") != question.get("teacher"):
            continue
        rows = list(map(json.loads, read_lines(log)))
        if not rows:
            continue
        if rows[-1].get("step") != stage.get("steps"):
            raise ValueError(
                f"{log} ends at step {rows[-1].get('step')}, and the stage had "
                f"{stage.get('steps')}: it was cut. Put it back, or delete it for a report without "
                "this curve"
            )
        found.append(_columns(rows))
    return found


def _all_stages(made: dict[str, Any]) -> list[dict[str, Any]]:
    """The stages of a recipe or a question, then those of its on-policy rounds, as they are run."""
    stages = list(made.get("stages", ()))
    for each in made.get("rounds", ()):
        stages.append(each["stage"])
    return stages


def _columns(rows: list[dict[str, Any]]) -> Curves:
    """Rows of a log as its columns, those of the first row; at least one row."""
    columns: Curves = {}
    for key in rows[0]:
        columns[key] = [_short(row[key]) for row in rows]
    return columns


def _short(value: Any) -> Any:
    # Five digits are more than a page can draw, and keep a report of many stages small.
    return float(f"{value:.5g}") if isinstance(value, float) else value


def gripper_noise(made: Provenance) -> float | None:
    """The share of gripper commands that were flipped for a student, by the recipe that made it:
    the largest of its stages and rounds. None of a policy that does not say how it was made."""
    shares = []
    for stage in _all_stages(made.get("recipe") or {}):
        # A field of the stage before there were transforms.
        shares.append(stage.get("gripper_noise", 0.0))
        for transform in stage.get("transforms", ()):
            if transform["class"] == "GripperNoise":
                shares.append(transform["share"])
    return max(shares, default=None)
