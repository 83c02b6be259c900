"""The crash campaign: faults at drawn places of every command, and whether what is left is the same
to the bit, or refused by name.

    python tests/crash/crashing.py                            all points, about an hour on two cores
    python tests/crash/crashing.py --area distil --points 20 --kind kill --seed 7
    python tests/crash/crashing.py --write                    all points, and the table in docs/crash.md

Points are kept in build/crash/points.jsonl as they are made, and are not made again; `--anew`
makes them again. `docs/crash.md` says what the faults are. Ends with 1 where an outcome is a defect.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import points as crash
from areas import AREAS
from points import KINDS, OUTCOMES, Campaign, Point
from watch import supported

from armlet import source

REPOSITORY = HERE.parent.parent
KEPT = REPOSITORY / "build/crash/points.jsonl"
TABLE = REPOSITORY / "docs/machinery/crash.json"
PAGE = REPOSITORY / "docs/crash.md"
BEGIN, END = "## What came out\n", "## What counts\n"


def main() -> int:
    asked = _asked()
    why = supported()
    if why:
        sys.exit(f"the crash campaign {why}")
    todo = planned(asked.area or list(AREAS), asked.kind or list(KINDS), asked.points, asked.seed)
    if asked.anew and KEPT.exists():
        _keep([point for point in read(KEPT) if point.key not in set(todo)])
    done = {point.key for point in read(KEPT)}
    left = [each for each in todo if each not in done]
    print(f"{len(todo)} points, {len(todo) - len(left)} made before", flush=True)
    if left and not asked.made:
        crash.warm()
        _in_processes(left, asked.jobs)
    made = [point for point in read(KEPT) if point.key in set(todo)]
    for point in made:
        if not point.good:
            print(f"{point.outcome}: {point.area}, {point.kind} {point.number}: {point.where}")
            print(f"    {point.said}")
    print(table(made))
    if asked.write:
        write(made, asked.seed, planned=len(todo))
    lacking = len(todo) - len(made)
    if lacking:
        print(f"{lacking} points were not made")
    return int(lacking > 0 or not all(point.good for point in made))


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--area", action="append", choices=list(AREAS))
    parser.add_argument("--kind", action="append", choices=list(KINDS))
    parser.add_argument(
        "--points", type=int, help="of each kind, over all areas that are asked for"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes at the same time")
    parser.add_argument("--anew", action="store_true", help="make these points again")
    parser.add_argument("--made", action="store_true", help="make none: look at those there are")
    parser.add_argument("--write", action="store_true", help="keep the table in docs/")
    return parser.parse_args()


def planned(
    areas: list[str], kinds: list[str], count: int | None, seed: int
) -> list[tuple[str, str, int, int]]:
    """(area, kind, number, seed) of every point: each kind's number, shared out by the areas'
    shares, at least one each."""
    shares = {name: AREAS[name].share for name in areas}
    if not count:  # of a part of the areas as many as there are among all
        part = sum(shares.values()) / sum(area.share for area in AREAS.values())
    found = []
    for kind in kinds:
        wanted = count or max(1, round(KINDS[kind] * part))
        for name, number in _shared_out(wanted, shares).items():
            found += [(name, kind, each, seed) for each in range(number)]
    return found


def _shared_out(wanted: int, shares: dict[str, int]) -> dict[str, int]:
    """`wanted` in whole numbers by shares, largest remainders first; one each where it suffices."""
    left = wanted - len(shares)
    if left < 0:
        names = sorted(shares, key=lambda name: -shares[name])[:wanted]
        return dict.fromkeys(names, 1)
    exact = {name: left * share / sum(shares.values()) for name, share in shares.items()}
    found = {name: 1 + int(value) for name, value in exact.items()}
    rest = sorted(exact, key=lambda name: int(exact[name]) - exact[name])
    for name in rest[: wanted - sum(found.values())]:
        found[name] += 1
    return found


def _in_processes(left: list[tuple[str, str, int, int]], jobs: int) -> None:
    """Make the points, each area in one process: an area's undisturbed run is made once there."""
    by_area: dict[str, list[tuple[str, str, int, int]]] = {}
    for each in left:
        by_area.setdefault(each[0], []).append(each)
    shares: list[list[tuple[str, str, int, int]]] = [[] for _ in range(jobs)]
    for name in sorted(by_area, key=lambda name: -len(by_area[name])):
        min(shares, key=len).extend(by_area[name])
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    children = []
    for share in shares:
        if not share:
            continue
        child = os.fork()
        if child == 0:
            try:
                _make(share)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(1)
        children.append(child)
    for child in children:
        if os.waitpid(child, 0)[1]:
            print("a process of the campaign ended early; the same command goes on", flush=True)


def _make(todo: list[tuple[str, str, int, int]]) -> None:
    commit = _commit()
    with tempfile.TemporaryDirectory(prefix="crash-") as base:
        campaign = Campaign(Path(base))
        for area, kind, number, seed in todo:
            begun = time.monotonic()
            point = campaign.point(area, kind, number, seed)
            # One write of a whole line, so that processes do not mix theirs.
            line = json.dumps(asdict(replace(point, commit=commit))) + "\n"
            with KEPT.open("ab", buffering=0) as file:
                file.write(line.encode())
            mark = " " if point.good else "!"
            took = time.monotonic() - begun
            print(f"{mark} {area}, {kind} {number}: {point.outcome} ({took:.1f} s)", flush=True)


def _keep(points: list[Point]) -> None:
    lines = [json.dumps(asdict(point)) + "\n" for point in points]
    KEPT.write_text("".join(lines))


def _commit() -> str:
    """Of armlet, with a + where it was changed since; "" where that is not known."""
    found = source.identity()
    if found["commit"] is None:
        return ""
    return found["commit"][:7] + ("+" if found["dirty"] else "")


def read(path: Path) -> list[Point]:
    if not path.exists():
        return []
    found = []
    for line in path.read_text().split("\n"):
        if line.endswith("}"):
            found.append(Point(**json.loads(line)))
    return found


def table(points: list[Point]) -> str:
    """Kinds of faults × outcomes, as Markdown."""
    lines = [
        f"| fault | points | {' | '.join(OUTCOMES)} |",
        "|---" * (2 + len(OUTCOMES)) + "|",
    ]
    for kind in (*KINDS, "all"):
        counted = Counter(point.outcome for point in points if kind in (point.kind, "all"))
        if counted:
            shown = " | ".join(str(counted[outcome]) for outcome in OUTCOMES)
            lines.append(f"| {kind} | {sum(counted.values())} | {shown} |")
    return "\n".join(lines)


def by_area(points: list[Point]) -> str:
    """Areas × whether all is well, as Markdown."""
    lines = [
        "| command | points | same bits | refused by name | defects |",
        "|---|---|---|---|---|",
    ]
    for name in AREAS:
        counted = Counter(point.outcome for point in points if point.area == name)
        if counted:
            good = [counted[outcome] for outcome in OUTCOMES[:2]]
            all_of_it = sum(counted.values())
            lines.append(
                f"| {name} | {all_of_it} | {good[0]} | {good[1]} | {all_of_it - sum(good)} |"
            )
    return "\n".join(lines)


def write(points: list[Point], seed: int, *, planned: int) -> None:
    """The table in docs/: every point in JSON, the counts on the page."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for point in points:
        row = counts.setdefault(point.area, {}).setdefault(point.kind, {})
        row[point.outcome] = row.get(point.outcome, 0) + 1
    defects = [asdict(point) for point in points if not point.good]
    said = {
        "command": f"make test-crash (seed {seed})",
        "made_at": dict(Counter(point.commit or "not known" for point in points)),
        "points": len(points),
        "planned": planned,
        "counts": counts,
        "defects": defects,
    }
    TABLE.write_text(json.dumps(said, indent=1) + "\n")
    page = PAGE.read_text()
    head, rest = page.split(BEGIN)
    tail = rest.split(END)[1]
    how_many = f"{len(points)} of {planned} points ([crash.json](machinery/crash.json)):"
    commits = {point.commit for point in points}
    if len(commits) > 1:
        how_many += f" made at {len(commits)} commits, so no result of one version yet."
    elif commits != {""}:
        how_many += f" all of them of commit {commits.pop()}."
    how_many += "<!-- source: ../tests/crash/crashing.py -->"
    said_here = f"{how_many}\n\n{table(points)}\n\n{by_area(points)}"
    PAGE.write_text(f"{head}{BEGIN}\n{said_here}\n\n{END}{tail}")


if __name__ == "__main__":
    sys.exit(main())
