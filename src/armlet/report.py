"""report: report.json files → one web page that works from a file, without a network.

    armlet report out/actdistill_tabletop/evaluation/report.json [more …] [--out page.html]

Every number on the page is in a report.json, and each section says in which. Films lie beside their
report and are put into the page. What is drawn, and where, is in `armlet.evaluation.page`. Knows
reports; runs no policy.
"""

import base64
import contextlib
import json
from pathlib import Path
from typing import Any

from armlet.data.files import write_atomically
from armlet.evaluation import offline_page, offline_report, page
from armlet.evaluation import report as evaluation
from armlet.evaluation.figures import delayed_sentence, refusal, seed_sentence, sentence
from armlet.evaluation.offline_report import is_offline
from armlet.evaluation.page.pictures import signed
from armlet.evaluation.page.section import Section, section
from armlet.evaluation.speeds import told

Report = dict[str, Any]


def main(reports: tuple[Path, ...], /, *, out: Path | None = None) -> Path:
    """Write the page; returns its path. `reports`: files, or folders that hold a report.json.
    `out`: where the page goes, beside the first report if not given."""
    if not reports:
        raise ValueError("name at least one report.json (made by `armlet evaluate`)")
    paths = [path / "report.json" if path.is_dir() else path for path in reports]
    sections = []
    for path in paths:
        # A robot without a simulator has reports of another kind: there is no success in them.
        sections.append(_offline(path) if is_offline(path) else read(path))
    out = out or paths[0].with_name("report.html")
    write_atomically(out, render(sections).encode())
    return out


def _offline(path: Path) -> Report:
    """A comparison with held-out episodes, which is no evaluation in a world, as the page has it."""
    report = offline_report.read(path)
    recipe = report.fingerprint.get("recipe", {})
    # As much as the page's contents ask for; the rest of it is HTML already.
    named = {"recipe": {"name": recipe.get("name", path.parent.name)}}
    return {"fingerprint": named, "html": offline_page.section(report, path)}


def read(path: Path) -> Report:
    """A report, the films it names, and what the page asks for beside. Raises FileNotFoundError or
    ValueError naming the file and the field."""
    report = evaluation.read(path)
    # Layers of the deepest network, by their numbers there: students are drawn beside it.
    report["depth"] = 0
    for policy in report["policies"]:
        report["depth"] = max(report["depth"], 1 + max(policy["routing"]["layers"], default=-1))
    for rollout in report.get("rollouts", []):
        film = path.parent / rollout["video"]
        rollout["source"] = None  # the page says that the film is missing
        if film.is_file():
            content = base64.b64encode(film.read_bytes()).decode()
            rollout["source"] = f"data:video/mp4;base64,{content}"
    return {**report, "path": path.as_posix()}


def render(reports: list[Report]) -> str:
    """The page as text."""
    environment = page.templates()
    environment.filters["pretty"] = _pretty
    sections = []
    embedded = []
    for report in reports:
        kept = dict(report)
        html = kept.pop("html", None)  # of no use to the script
        embedded.append(kept)
        if html is None:
            outcomes = None  # they need not lie beside it
            with contextlib.suppress(FileNotFoundError):
                outcomes = evaluation.outcomes_of(report, Path(report["path"]))
            sections.append(section(report, outcomes))
        else:
            sections.append(Section(title=report["fingerprint"]["recipe"]["name"], html=html))
    # As in table.md, without the dash that makes a list of them there.
    words: dict[str, Any] = {
        "sentence": lambda pair: sentence(pair).removeprefix("- "),
        "delayed_sentence": lambda pair: delayed_sentence(pair).removeprefix("- "),
        "seed_sentence": lambda pair: seed_sentence(pair).removeprefix("- over seeds, "),
        "refusal": refusal,
        "signed": signed,
        "told": told,
    }
    # Escaped, so that no name in it can end the script element that holds it.
    data = json.dumps(embedded).replace("<", "\\u003c")
    return environment.get_template("page.html").render(sections=sections, data=data, **words)


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)
