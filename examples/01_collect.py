"""Collect a handful of tabletop episodes with the scripted expert, and look at what is on disk.

python examples/01_collect.py out/example
"""

import dataclasses
import sys
from pathlib import Path

from armlet import collect, recipes
from armlet.data.episodes import EpisodeDataset
from armlet.recipe import Collection


def main(out: Path) -> None:
    recipe = dataclasses.replace(
        recipes.make("actdistill_tabletop"),
        episodes=out / "episodes",
        collection=Collection(episodes=14, workers=2),
    )
    collect.main(recipe)
    data = EpisodeDataset(recipe.episodes)
    print(f"{len(data.episodes)} episodes, {len(data)} frames, cameras {data.cameras}")
    for episode in data.episodes[:3]:
        print(f"  {episode.length} frames: {episode.task!r} ({episode.info['family']})")
    print(
        f"  the first frame of the first episode: {data.images(0)['scene'].shape} {data.images(0)['scene'].dtype}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/example"))
