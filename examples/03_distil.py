"""Probe the teacher of 02_teach.py and distil a student whose router skips layers.

python examples/03_distil.py out/example
"""

import dataclasses
import sys
from pathlib import Path

from armlet import distil, probe, recipes
from armlet.data.traces import TraceStore
from armlet.recipe import Recipe


def recipe_in(out: Path, *, steps: int = 30) -> Recipe:
    base = recipes.make("actdistill_tabletop")
    short = {"steps": steps, "batch_size": 32, "warmup": 5, "compile": False}
    heads = dataclasses.replace(base.probe.stage, **short)
    stages = tuple(dataclasses.replace(stage, **short) for stage in base.stages)
    return dataclasses.replace(
        base,
        name="example",
        episodes=out / "episodes",
        teacher=out / "teacher",
        out=out,
        shared=None,
        probe=dataclasses.replace(base.probe, stage=heads),
        stages=stages,
    )


def main(out: Path) -> None:
    recipe = recipe_in(out)
    store = TraceStore(probe.main(recipe))
    print(f"{len(store)} traces of {', '.join(store.columns)}")
    print(f"the student lies in {distil.main(recipe)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/example"))
