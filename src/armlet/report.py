"""report: report.json files → one web page that works from a file, without a network.

    armlet report out/actdistill_tabletop/evaluation/report.json [more …] [--out page.html]

Every number on the page is in a report.json, and each section says in which. Films lie beside their
report and are put into the page. Knows reports; runs no policy.
"""

import base64
import json
from pathlib import Path
from typing import Any

from armlet.data.files import write_atomically
from armlet.evaluation import offline_page, offline_report
from armlet.evaluation.figures import delayed_sentence, number, seed_sentence, sentence
from armlet.evaluation.offline_report import is_offline

Report = dict[str, Any]
TEMPLATE = Path(__file__).with_name("report.html")
VERSIONS = (1, 2)
NEEDED = ("policies", "pairs", "fingerprint")


def main(reports: tuple[Path, ...], /, *, out: Path | None = None) -> Path:
    """Write the page; returns its path. `reports`: files, or folders that hold a report.json.
    `out`: where the page goes,
    beside the first report if not given."""
    if not reports:
        raise ValueError("name at least one report.json (made by `armlet evaluate`)")
    paths = [path / "report.json" if path.is_dir() else path for path in reports]
    sections = [_offline(path) if is_offline(path) else read(path) for path in paths]
    out = out or paths[0].with_name("report.html")
    write_atomically(out, render(sections).encode())
    return out


def _offline(path: Path) -> Report:
    """A comparison with held-out episodes, which is no evaluation in a world, as the page has it."""
    report = offline_report.read(path)
    named = {"recipe": {"name": report.fingerprint.get("recipe", {}).get("name", path.parent.name)}}
    return {"fingerprint": named, "section": offline_page.section(report, path)}


def read(path: Path) -> Report:
    """A report and the films it names. Raises FileNotFoundError or ValueError naming the file and
    the field."""
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
    report["depth"] = 1 + max(
        (max(policy["routing"]["layers"]) for policy in report["policies"]), default=-1
    )
    for rollout in report.get("rollouts", []):
        film = path.parent / rollout["video"]
        found = film.is_file()
        rollout["source"] = (
            "data:video/mp4;base64," + base64.b64encode(film.read_bytes()).decode()
            if found
            else None
        )
    return {**report, "path": path.as_posix()}


def _complete(report: Report, path: Path) -> None:
    """Into a report of version 1 goes what the page asks for and such a report does not say. Raises
    ValueError for a version that is
    not known."""
    version = report.setdefault("version", 1)
    if version not in VERSIONS:
        raise ValueError(
            f"{path} has version {version!r}, expected one of {VERSIONS}; a newer armlet wrote it"
        )
    for policy in report["policies"]:
        policy.setdefault("gripper_toggles", None)
        policy.setdefault("ms_per_second_of_motion", None)
        policy.setdefault("seconds_to_success", None)
        policy["routing"].setdefault(
            "layers", list(range(len(policy["routing"]["activation"])))
        )  # counted as its own
    report.setdefault("pairs_by_split", {})
    report.setdefault("delayed_pairs", [])
    for row in report.setdefault("delayed", []):
        row.setdefault(
            "late", "skip"
        )  # the rule of that time: an action left out for every step late, whether or not one was made
        row.setdefault("seconds_to_success", {"successes": None, "restricted": None, "limit": None})


def render(reports: list[Report]) -> str:
    """The page as text."""
    from jinja2 import Environment, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        percent=lambda value: f"{100 * value:.1f} %", pretty=_pretty, number=number
    )
    template = environment.from_string(TEMPLATE.read_text())
    drawn = [{key: value for key, value in each.items() if key != "section"} for each in reports]
    data = json.dumps(drawn).replace(
        "<", "\\u003c"
    )  # nothing in it can end the script element that holds it
    said = {
        "sentence": lambda pair: sentence(pair).removeprefix("- "),
        "delayed_sentence": lambda pair: delayed_sentence(pair).removeprefix("- "),
        "seed_sentence": lambda pair: seed_sentence(pair).removeprefix("- over seeds, "),
    }
    return template.render(reports=reports, data=data, plotly=get_plotlyjs(), **said)


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)
