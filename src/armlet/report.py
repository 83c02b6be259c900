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
from armlet.evaluation import report as evaluation
from armlet.evaluation.figures import delayed_sentence, number, seed_sentence, sentence
from armlet.evaluation.offline_report import is_offline

Report = dict[str, Any]
TEMPLATE = Path(__file__).with_name("report.html")


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
    """A report, the films it names, and what the page asks for beside. Raises FileNotFoundError or
    ValueError naming the file and the field."""
    report = evaluation.read(path)
    layers = [max(policy["routing"]["layers"]) for policy in report["policies"]]
    report["depth"] = 1 + max(layers, default=-1)
    for rollout in report.get("rollouts", []):
        film = path.parent / rollout["video"]
        rollout["source"] = None
        if film.is_file():
            content = base64.b64encode(film.read_bytes()).decode()
            rollout["source"] = f"data:video/mp4;base64,{content}"
    return {**report, "path": path.as_posix()}


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
