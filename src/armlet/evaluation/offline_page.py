"""A report of a comparison with held-out episodes as a part of the web page that `armlet report`
writes: the lines of its table in HTML, and its picture in the page itself. Knows such reports; runs
nothing."""

import base64
import html
import json
import re
from pathlib import Path

from armlet.evaluation import offline_report as said
from armlet.evaluation.offline_report import OfflineReport

PICTURE = "error-by-step.png"  # as `offline.run` calls it, beside report.json


def section(report: OfflineReport, path: Path) -> str:
    """HTML of one report, which lies at `path` with its picture beside it; without that, where it
    is not there."""
    name = str(report.fingerprint.get("recipe", {}).get("name", ""))
    fingerprint = json.dumps(report.fingerprint, indent=1, ensure_ascii=False)
    parts = [
        f"<h2>held-out episodes: {html.escape(name)}</h2>",
        f'<p class="soft">From <code>{html.escape(path.as_posix())}</code>.</p>',
        *_prose(said.header_lines(report)),
        "<h3>Error at each step of the chunk</h3>",
        _picture(path.with_name(PICTURE)),
        "<h3>The numbers</h3>",
        _table(said.main_lines(report.policies)),
        _table(said.speed_lines(report)),
        *_prose(said.refused_lines(report)),
        _table(said.dimension_lines(report)),
        _table(said.gripper_lines(report.policies)),
        _table(said.group_lines(report, "by_third")),
        _table(said.group_lines(report, "by_phase")),
        "<h3>Pairs</h3>",
        *_prose(said.pair_lines(report)),
        "<h3>What each was trained on</h3>",
        *_prose(said.seen_lines(report)),
        "<details><summary>Fingerprint: versions, seeds, the recipe</summary>"
        f"<pre>{html.escape(fingerprint)}</pre></details>",
    ]
    # A robot without grippers, or episodes without phases, leave their tables empty.
    return "\n".join(part for part in parts if part)


def _prose(lines: list[str]) -> list[str]:
    """Paragraphs, then one list of the lines that begin with a dash."""
    found = []
    items = ""
    for line in lines:
        if line.startswith("- "):
            items += f"<li>{_inline(line.removeprefix('- '))}</li>"
        else:
            found.append(f"<p>{_inline(line)}</p>")
    if items:
        found.append(f"<ul>{items}</ul>")
    return found


def _table(lines: list[str]) -> str:
    """A table of Markdown as HTML; nothing of none."""
    if not lines:
        return ""
    header, _, *rows = lines  # _ is the line of dashes
    head = _cells(header, "th")
    body = ""
    for row in rows:
        body += f"<tr>{_cells(row, 'td')}</tr>"
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="numbers">'
        f"<table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _cells(line: str, tag: str) -> str:
    """One line of a Markdown table, each cell within `tag`."""
    found = ""
    for cell in line.strip("|").split("|"):
        found += f"<{tag}>{_inline(cell.strip())}</{tag}>"
    return found


def _inline(text: str) -> str:
    """Bold, emphasis and code; everything else as it is."""
    # Escaped first: the names of policies and robots are other people's text.
    escaped = html.escape(text)
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escaped)
    escaped = re.sub(r"^\*(.+)\*$", r"<i>\1</i>", escaped)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", escaped)


def _picture(path: Path) -> str:
    if not path.is_file():
        return f'<p class="soft">{html.escape(path.name)} does not lie beside the report.</p>'
    # Within the page, which is one file that can be sent to somebody.
    content = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<img style="max-width:100%;background:#fff" src="data:image/png;base64,{content}" '
        'alt="mean absolute error of every policy at each step of its chunk; the numbers stand in '
        'the tables below">'
    )
