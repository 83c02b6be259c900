"""One report as the page's template asks for it. Knows reports and the page's other files; writes no
HTML."""

from dataclasses import dataclass
from typing import Any

from armlet.evaluation.outcomes import Outcomes
from armlet.evaluation.page import curves, findings, pictures, reaching
from armlet.evaluation.page.tables import Table, all_tables

Report = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A part of the page. `html`: of a report of another kind, which is written already; then there
    is nothing but a title beside it."""

    title: str
    html: str | None = None
    report: Report | None = None
    headlines: tuple[findings.Headline, ...] = ()
    compared: int = 0  # policies with a verdict against the teacher
    fastest: findings.Finding | None = None
    forests: tuple[pictures.Forest, ...] = ()
    front: pictures.Plot | None = None
    has_seeds: bool = False
    runtimes: str = ""
    tasks: tuple[pictures.Heat, ...] = ()
    splits: pictures.Heat | None = None
    listens: pictures.Heat | None = None
    left_out: tuple[Report, ...] = ()  # changes that were not run, and why
    late: pictures.Heat | None = None
    reached: tuple[reaching.Reached, ...] = ()
    layers: pictures.Heat | None = None
    dial: pictures.Plot | None = None
    episodes: tuple[curves.Episode, ...] = ()
    training: tuple[curves.Curves, ...] = ()
    sentences: tuple[str, ...] = ()
    plan: dict[str, Any] | None = None
    tables: tuple[Table, ...] = ()

    @property
    def marks(self) -> dict[str, str]:
        """Verdict → mark, for the headlines."""
        return pictures.MARKS


def section(report: Report, outcomes: Outcomes | None = None) -> Section:
    """Of a report as `armlet.report.read` gives it. `outcomes`: of its single episodes, where they
    lie beside it."""
    found = findings.findings(report)
    lines = findings.headlines(report, found)
    benchmark = report["fingerprint"]["benchmark"]["benchmark"]
    recipe = report["fingerprint"]["recipe"]["name"]
    return Section(
        title=f"{benchmark}: {recipe}",
        report=report,
        headlines=tuple(lines),
        compared=sum(line.count for line in lines),
        fastest=findings.fastest(report, found),
        forests=tuple(pictures.forests(report)),
        front=pictures.front(report),
        has_seeds=any(len(group.rows) > 1 for group in findings.groups(report)),
        runtimes=pictures.runtimes(report),
        tasks=tuple(pictures.parts(pictures.tasks(report))),
        splits=pictures.splits(report),
        listens=pictures.listens(report),
        left_out=tuple(report.get("listens_left_out", [])),
        late=pictures.late(report),
        reached=() if outcomes is None else tuple(reaching.reached(report, outcomes)),
        layers=pictures.layers(report),
        dial=pictures.dial(report),
        episodes=tuple(curves.episodes(report)),
        training=tuple(curves.training(report)),
        sentences=tuple(row["sentence"] for row in report.get("verdicts", [])),
        plan=report.get("plan"),
        tables=tuple(all_tables(report)),
    )
