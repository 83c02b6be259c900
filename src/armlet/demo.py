"""demo: the teacher and the student that come with armlet, in PyTorch and exported, on the same
episodes: a first result in two minutes, and no training.

    armlet demo

Writes a report, a table, a picture, films and a page, as `armlet evaluate` does; so few episodes
show how it works, and no small difference. `make demo`, in a clone, makes a student from nothing.
"""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

from armlet import evaluate, recipes, report
from armlet.measuring import EAGER, Runtime
from armlet.recipe import Evaluation
from armlet.shipped import shipped

OUT = Path("out/armlet-demo")
NEEDED = ("onnx", "onnxruntime", "onnxscript")  # of the extra `export`
SEED = 590_000_000  # of the first episode: nothing was chosen on these


def main(*, out: Path = OUT, episodes: int = 28, workers: int = 2) -> str:
    """Compare the shipped teacher with its shipped student, in PyTorch and in ONNX Runtime.

    Args:
        out: The folder that is written to; a demo that was killed goes on there.
        episodes: Paired episodes, of seven tasks in turn.
        workers: Processes that run episodes, one thread each.
    """
    base = recipes.make("tabletop")
    recipe = replace(
        base,
        name="demo",
        out=out,
        shared=out,
        teacher=shipped("tabletop-teacher"),
        policies=(shipped("tabletop-student"),),
        evaluation=Evaluation(
            episodes=episodes,
            seed=SEED,
            runtimes=_runtimes(),
            videos=1,
            latency_calls=100,
            workers=workers,
        ),
    )
    made = evaluate.main(recipe)
    page = report.main((made,), out=out / "report.html")
    return f"{page}\nfilms, picture and table: {made.parent}"


def _runtimes() -> tuple[Runtime, ...]:
    """PyTorch, and ONNX Runtime where its extra is installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return (EAGER, "onnx")
    sys.stderr.write(
        f"armlet demo: {', '.join(missing)} not installed, so nothing is exported; with `pip install "
        "'armlet[export]'` both are run in ONNX Runtime as well\n"
    )
    return (EAGER,)
