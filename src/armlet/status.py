"""status: OUT → how the runs under it are doing: how far, how fast, whether one has stalled or died.

    armlet status out                        a table of every run under the folder
    armlet status out --watch                again every few seconds, until Ctrl-C
    armlet status out --page status.html     the same as a page for a browser
    armlet status out --json                 for machines

Reads the files that running verbs keep in OUT/status (`armlet.logs.beats`), and writes nothing but the
page. Leaves with 3 where a run has failed, was killed, has fallen silent or stalled, so that a cron job
can tell somebody.
"""

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from armlet.data.files import write_atomically
from armlet.evaluation.page import templates
from armlet.logs.standing import FOLDER, Eye, Phase, Standing, Status, duration, read

AGAIN = 5.0  # seconds between two looks, while watching
ALARM = 3  # the exit status where somebody is needed; 1 is an error, 2 a wrong option
CLEAR = "\033[H\033[2J"


@dataclass(frozen=True)
class Run:
    """A status file, and how its run stands; `status` is None where the file cannot be read."""

    path: Path
    standing: Standing
    status: Status | None

    @property
    def alarming(self) -> bool:
        return self.status is None or self.standing.alarming


def main(
    out: Path,
    /,
    *,
    json: bool = False,
    watch: bool = False,
    page: Path | None = None,
    after: float | None = None,
    twice: float = 0.0,
) -> str:
    """Say how the runs under a folder are doing.

    Args:
        out: The folder of one run, or one that holds those of many.
        json: As JSON.
        watch: Again every five seconds, until Ctrl-C.
        page: A file that is written: the same as a page for a browser.
        after: Seconds without a step after which a run has stalled; 300, and ten times the longest
            between two steps before, if not given.
        twice: Look once more after so many seconds, at least 70, and count the beats of runs on
            other machines, whose clocks may differ from this one's.
    """
    if not out.is_dir():
        raise FileNotFoundError(
            f"{out} is no folder; name the --out of a run, or a folder above it"
        )
    if after is not None and after <= 0:
        raise ValueError(f"--after {after:g}: expected seconds, more than 0")
    if twice and (twice < 70 or watch):
        raise ValueError(
            f"--twice {twice:g}: expected at least 70 seconds, as a beat may stay away for 60"
            + ("; it has no effect with --watch, which looks often" if watch else "")
        )
    eye = Eye(after)
    if watch:
        _watch(out, eye, as_json=json, page=page)
    runs = look(out, eye)
    if twice:
        time.sleep(twice)
        runs = look(out, eye)
    if not runs:
        raise FileNotFoundError(
            f"no run under {out} has kept a status: collect, teach, probe, distil, calibrate, "
            f"evaluate, audit and export do so, in a folder {FOLDER!r} of what they write"
        )
    said = _said(out, runs, as_json=json, page=page, again=None)
    if not any(run.alarming for run in runs):
        return said
    sys.stdout.write(f"{said}\n")
    sys.exit(ALARM)


def _watch(out: Path, eye: Eye, *, as_json: bool, page: Path | None) -> None:
    """Until Ctrl-C."""
    while True:
        said = _said(out, look(out, eye), as_json=as_json, page=page, again=AGAIN)
        sys.stdout.write(f"{CLEAR if sys.stdout.isatty() else ''}{said}\n")
        sys.stdout.flush()
        time.sleep(AGAIN)


def _said(
    out: Path, runs: list[Run], *, as_json: bool, page: Path | None, again: float | None
) -> str:
    if page is not None:
        # Half of a pair of surrogates, which JSON may hold, is no text of UTF-8.
        write_atomically(page, render(out, runs, again=again).encode(errors="replace"))
    return json.dumps([to_json(run) for run in runs], indent=1) if as_json else table(runs)


def look(out: Path, eye: Eye) -> list[Run]:
    """Every run under a folder, those that need somebody first, then those that run."""
    runs = []
    for path in _files(out):
        try:
            said = read(path)
        except FileNotFoundError:
            continue  # another run has taken its place meanwhile
        except (OSError, ValueError) as error:
            runs.append(Run(path, Standing("silent", 0.0, 0.0, str(error)), None))
            continue
        runs.append(Run(path, eye.standing(path, said), said))
    return sorted(runs, key=_order)


def _files(out: Path) -> Iterator[Path]:
    for folder, inner, names in os.walk(out):
        # Caches and data sets hold very many files, and no runs of ours in hidden folders.
        inner[:] = sorted(each for each in inner if not each.startswith("."))
        if Path(folder).name == FOLDER:
            inner.clear()
            for name in sorted(names):
                if name.endswith(".json"):
                    yield Path(folder, name)


def _order(run: Run) -> tuple[bool, bool, float]:
    running = run.standing.state == "running"
    return not run.alarming, not running, -run.status.started_unix if run.status else 0.0


def to_json(run: Run) -> dict[str, Any]:
    """A run for machines: its file, how it stands, and what it said."""
    return {
        "file": run.path.as_posix(),
        "alarming": run.alarming,
        **asdict(run.standing),
        "status": None if run.status is None else asdict(run.status),
    }


# --- for people

COLUMNS = ("", "verb", "recipe", "at", "rate", "left", "loss", "step", "disk", "memory")


def table(runs: list[Run]) -> str:
    """A line a run, and below those that need somebody what is wrong, where the log is and what
    resumes it."""
    rows: list[tuple[str, ...]] = [COLUMNS]
    for run in runs:
        rows.append(tuple(cells(run).values()))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for index, row in enumerate(rows):
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
        if index:
            for name, text in notes(runs[index - 1]):
                lines.append(f"    {name:<8} {text}")
    if any(run.alarming for run in runs):
        lines.append("    (to hear no more of a run, delete its file)")
    return "\n".join(lines)


def cells(run: Run) -> dict[str, str]:
    """Column → what stands there."""
    said = run.status
    if said is None:
        return dict.fromkeys(COLUMNS, "") | {"": "UNREADABLE"}
    phase = shown(said)
    state = run.standing.state
    live = state in ("running", "stalled", "silent")
    found = {
        "": state.upper() if run.alarming else state,
        "verb": said.verb if said.rank is None else f"{said.verb} {said.rank[0]}/{said.rank[1]}",
        "recipe": said.recipe,
        "at": _at(phase) if phase or not live else "begins",
        "rate": f"{phase.rate:.3g}/s" if phase else "",
        "left": duration(phase.left_s) if live and phase and phase.left_s is not None else "",
        "loss": f"{phase.values['loss']:.4g}" if phase and "loss" in phase.values else "",
        "step": f"{duration(run.standing.idle)} ago" if live else "",
        "disk": "" if said.free_disk is None else f"{said.free_disk / 1e9:.3g} GB",
        "memory": ", ".join(f"{gpu.held / 1e9:.3g}/{gpu.total / 1e9:.3g} GB" for gpu in said.gpus),
    }
    return {name: plain(text) for name, text in found.items()}


def plain(text: str) -> str:
    """A text of a file's in one line, for a terminal: a space for each control character, by which
    it could clear the screen or forge a line."""
    return "".join(each if each.isprintable() else " " for each in text)


def shown(said: Status) -> Phase | None:
    """What is counted now; between two phases, the one before."""
    return said.phase or (said.phases[-1] if said.phases else None)


def _at(phase: Phase | None) -> str:
    if phase is None:
        return ""
    share = f" {phase.done / phase.total:.0%}" if phase.total else ""
    return f"{phase.title}: {phase.done:,}/{phase.total:,} {phase.unit}s{share}"


def notes(run: Run) -> list[tuple[str, str]]:
    """Of a run that needs somebody: what is wrong, and what helps; of others nothing."""
    if not run.alarming:
        return []
    found = [("why", run.standing.why)]
    said = run.status
    if said is not None:
        found += [
            (
                "log",
                said.log or f"none: it wrote to a terminal or a pipe; {run.path.parent.parent}",
            ),
            ("resume", f"cd {shlex.quote(said.folder)} && {said.command}"),
        ]
    found.append(("file", f"{run.path}"))
    return [(name, plain(text)) for name, text in found]


def when(unix: float) -> str:
    return datetime.fromtimestamp(unix).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def render(out: Path, runs: list[Run], *, again: float | None) -> str:
    """The page as text, one file without scripts. `again`: seconds after which a browser reads it
    anew; None: never."""
    words: dict[str, Any] = {
        "cells": cells, "notes": notes, "shown": shown, "duration": duration, "when": when,
    }  # fmt: skip
    alarms = sum(run.alarming for run in runs)
    page = templates(Path(__file__).parent / "logs").get_template("status.html")
    return page.render(
        out=out.as_posix(), runs=runs, alarms=alarms, again=again, now=when(time.time()), **words
    )
