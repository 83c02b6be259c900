"""The plan of a report: what will be run and by which rule it will be judged, written before the first
of its episodes.

    plan.json     the first look, plan-2.json the second …, beside report.json

Who stops when the numbers please, adds episodes until they do, or leaves out a policy afterwards, has
intervals that say 95 % and hold less often. So an evaluation that continues holds to the plan that
is there, and one with another plan is another look, which its report says. Knows recipes, fields of
policies and files; runs nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from armlet.data.files import read_json, write_atomically
from armlet.evaluation.episodes import LOG, read_log
from armlet.lineage import as_json, differences, summary
from armlet.recipe import Recipe
from armlet.rollout.pool import Contender
from armlet.rollout.together import Together, to_bytes

VERSION = 1
TESTS = (
    "a rate: Clopper and Pearson's exact 95 % interval where Wilson's reaches beyond 5 to 95 %, "
    "else Wilson's",
    "a difference of two policies: Newcombe's 95 % interval of paired proportions (method 10)",
    "a difference over training seeds: 95 % interval of seeds and episodes (MOVER)",
    "a pair: McNemar's exact test, two-sided",
)
STOPPING = "every planned episode is run; nothing is judged before the last"
# Of a plan's fields, those that are not asked for: when it was written, and what was before.
NOT_ASKED = ("written", "earlier")


@dataclass(frozen=True)
class Plan:
    """What a report was going to say before anything was run."""

    look: int  # 1: the first
    benchmark: dict[str, Any]  # its fingerprint
    splits: tuple[str, ...]
    episodes: int  # paired, a split
    seeds: tuple[int, int]  # of the first episode and of the last
    policies: dict[str, str]  # name → fingerprint; the first is who others are compared with
    baselines: tuple[str, ...]  # with whom they are compared as well
    margin: float  # of "as good as", a share
    slower: tuple[float, ...]  # computers so many times slower on which policies are run again
    late: tuple[str, ...]  # by these rules
    tests: tuple[str, ...]
    stopping: str
    written: str  # when, UTC
    earlier: tuple[str, ...]  # of another look: in what each look before it differed from it
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        return as_json(asdict(self))


def commit(recipe: Recipe, field: Mapping[str, Contender], out: Path) -> Plan | None:
    """The plan of this report, written now or found as it is asked for; None where an evaluation is
    for tuning. Raises ValueError, saying what differs, where another plan was written for this look,
    where episodes of it were run without one, or where there was no look before."""
    setting = recipe.evaluation
    if setting.purpose != "report":
        return None
    asked = _asked(recipe, field)
    path = path_of(out, setting.look)
    earlier = _earlier(asked, out)
    if path.is_file():
        said = _read(path)
        differing = differences(_compared(said), _compared(asked.to_json()))
        if differing:
            raise ValueError(
                f"{path} was written before the first episode and plans something else "
                f"({summary(differing)}); ask for what it says, give another folder with --out, or "
                f"say that this is another look: --evaluation.look {_next(out)}"
            )
        return _from_json(said)
    if setting.look == 1:
        _check_unseen(asked, out / LOG)
    plan = _asked(
        recipe, field, written=datetime.now(UTC).isoformat("T", "seconds"), earlier=earlier
    )
    write_atomically(path, json.dumps(plan.to_json(), indent=1).encode())
    return plan


def commit_together(
    recipe: Recipe, field: Mapping[str, Contender], out: Path, together: Together | None
) -> Plan | None:
    """The same, where several processes evaluate: one of them writes the plan, and all have it."""
    if together is None or recipe.evaluation.purpose != "report":
        return commit(recipe, field, out)

    def make() -> bytes:
        plan = commit(recipe, field, out)
        assert plan is not None
        return to_bytes(plan.to_json())

    asked = {"plan": _compared(_asked(recipe, field).to_json())}
    return _from_json(json.loads(together.once("plan", asked, make)))


def path_of(out: Path, look: int) -> Path:
    """The file of a look's plan."""
    return out / ("plan.json" if look == 1 else f"plan-{look}.json")


def _asked(
    recipe: Recipe,
    field: Mapping[str, Contender],
    *,
    written: str = "",
    earlier: tuple[str, ...] = (),
) -> Plan:
    setting = recipe.evaluation
    policies = {}
    for name, contender in field.items():
        policies[name] = contender.fingerprint
    first = setting.first_seed
    return Plan(
        look=setting.look,
        benchmark=as_json(recipe.world("evaluate").fingerprint()),
        splits=setting.splits,
        episodes=setting.episodes,
        seeds=(first, first + setting.episodes - 1),
        policies=policies,
        baselines=setting.baselines,
        margin=setting.margin,
        slower=setting.slower,
        late=setting.late,
        tests=TESTS,
        stopping=STOPPING,
        written=written,
        earlier=earlier,
    )


def _earlier(asked: Plan, out: Path) -> tuple[str, ...]:
    """In what each look before this one differed from it."""
    found = []
    for look in range(1, asked.look):
        path = path_of(out, look)
        if not path.is_file():
            raise ValueError(
                f"--evaluation.look {asked.look}: {path} is missing, so there was no look {look} in "
                f"this folder; the next is --evaluation.look {_next(out)}"
            )
        before = _compared(_read(path))
        now = _compared(asked.to_json())
        del before["look"], now["look"]
        differing = differences(before, now)
        if not differing:
            raise ValueError(
                f"--evaluation.look {asked.look} has no effect: {path} plans the same; "
                f"--evaluation.look {look} continues it"
            )
        found.append(f"look {look}: {summary(differing)}")
    return tuple(found)


def _next(out: Path) -> int:
    """The number of the first look that has no plan yet."""
    look = 1
    while path_of(out, look).is_file():
        look += 1
    return look


def _check_unseen(asked: Plan, log: Path) -> None:
    """Raises ValueError where planned episodes stand in the log already: a plan is written before
    them."""
    if not log.is_file():
        return
    first, last = asked.seeds
    for row in read_log(log).values():
        if first <= row["seed"] <= last and row["split"] in asked.splits:
            raise ValueError(
                f"{log} has episodes of the seeds {first:,} to {last:,}, and no plan was written "
                "before them; give another folder with --out, or other seeds with "
                "--evaluation.seed"
            )


def _compared(said: dict[str, Any]) -> dict[str, Any]:
    """What two plans are compared by."""
    return {name: value for name, value in said.items() if name not in NOT_ASKED}


def _read(path: Path) -> dict[str, Any]:
    said = read_json(path, fix="give another folder with --out")
    if not isinstance(said, dict) or said.get("version") != VERSION:
        raise ValueError(
            f"{path} is no plan of version {VERSION}; was it written by another armlet? Give "
            "another folder with --out"
        )
    missing = [name for name in Plan.__dataclass_fields__ if name not in said]
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}; was it edited? Give another folder with --out"
        )
    return said


def _from_json(said: dict[str, Any]) -> Plan:
    """The inverse of `Plan.to_json`: JSON knows lists only."""
    fields: dict[str, Any] = {}
    for name, value in said.items():
        fields[name] = tuple(value) if isinstance(value, list) else value
    return Plan(**fields)
