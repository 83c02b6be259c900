"""Teach a very small policy from the episodes of 01_collect.py: the real path, far too few steps to succeed.

python examples/02_teach.py out/example
"""

import dataclasses
import sys
from pathlib import Path

from armlet import load_policy, recipes, teach
from armlet.benchmarks.tabletop import Tabletop


def main(out: Path, *, steps: int = 30) -> None:
    recipe = recipes.make("actdistill_tabletop")
    recipe = dataclasses.replace(
        recipe,
        episodes=out / "episodes",
        teacher=out / "teacher",
        out=out,
        network=dataclasses.replace(recipe.network, width=64, depth=4, heads=2),
        teach=dataclasses.replace(
            recipe.teach, steps=steps, batch_size=32, warmup=5, compile=False
        ),
    )
    policy = load_policy(teach.main(recipe))
    world = Tabletop().make(Tabletop().tasks()[0], seed=0)
    print(
        f"{sum(p.numel() for p in policy.parameters()) / 1e6:.2f} M parameters; asked to {world.instruction!r}"
    )
    print(policy.infer(world.observe()).round(2))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/example"))
