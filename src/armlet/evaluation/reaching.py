"""How soon policies succeed: the share of the first split's episodes in which each had succeeded after
so many seconds of the world, where the world waits for its answers and on slower computers, and a
picture of it. One minus the Kaplan–Meier curve: no episode is cut off before its limit. Knows outcomes
and reports."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from armlet.data.files import atomic_file
from armlet.evaluation.figures import COLOURS, called_together
from armlet.evaluation.outcomes import Outcomes, Run

Report = dict[str, Any]
AT_ONCE = "the world waits"  # a policy's time is none of the world's
STROKES = ("-", "--", ":", "-.")


def computers(report: Report, outcomes: Outcomes) -> dict[str, dict[str, list[Run]]]:
    """Computer and rule → recipe → the runs of its seeds, in the first split; of policies that answer
    at once first, then slower and slower as the report has them."""
    together = called_together(report)
    rows = outcomes.rows_of(outcomes.splits[0]) if outcomes.episodes else []
    found: dict[str, dict[str, list[Run]]] = {AT_ONCE: {}}
    for policy in outcomes.policies:
        name = together.get(policy.name, policy.name)
        found[AT_ONCE].setdefault(name, []).append(policy.run.only(rows))
    for late in outcomes.delayed:
        name = together.get(late.policy, late.policy)
        here = found.setdefault(f"computer {late.slower:g}× slower, {late.late}", {})
        here.setdefault(name, []).append(late.run)
    return found


def shares(runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray]:
    """Control steps at which an episode succeeded, rising, and the share of all episodes of the runs
    that had succeeded by then, both (n,)."""
    steps = np.concatenate([np.array(run.steps)[np.array(run.success, bool)] for run in runs])
    times, counts = np.unique(steps, return_counts=True)
    return times, counts.cumsum() / sum(map(len, runs))


def picture(report: Report, outcomes: Outcomes, path: Path) -> None:
    """Panels beside each other, one a computer; a recipe has one colour in all."""
    from matplotlib.figure import Figure

    found = computers(report, outcomes)
    names = list(found[AT_ONCE])
    limit = outcomes.limit / outcomes.hz
    figure = Figure(figsize=(3.3 * len(found), 3.6), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for panel, (title, runs) in zip(panels, found.items(), strict=True):
        for index, name in enumerate(names):
            if name not in runs:
                continue
            times, share = shares(runs[name])
            seconds = np.concatenate([[0.0], times / outcomes.hz, [limit]])
            done = np.concatenate([[0.0], 100 * share, 100 * share[-1:] if len(share) else [0.0]])
            stroke = STROKES[index // len(COLOURS) % len(STROKES)]
            colour = COLOURS[index % len(COLOURS)]
            panel.step(seconds, done, stroke, where="post", color=colour, label=name)
        panel.set_title(title, fontsize="medium")
        panel.set_xlabel("seconds of the world")
        panel.set_xlim(0, limit)
        panel.set_ylim(0, 100)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("episodes done, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    with atomic_file(path) as part:
        figure.savefig(part, dpi=130, format="png")
