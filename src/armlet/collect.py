"""collect: a benchmark and its expert → episodes.

Many episodes are perturbed while they run: for a few steps the hand does not go where the expert said, and what
is recorded as the action is still what the expert answers in the state that results (DART, Laskey et al. 2017).
A policy cloned from such data has seen its own mistakes corrected. In others the hand is led to a wrong thing for a while;
without that, a hand near a thing always means that thing, and a policy learns to look at the hand and not at the words.
Only episodes that succeed are kept.
"""

from pathlib import Path

from armlet.recipe import Collection, Recipe
from armlet.recording import ExpertActs, record


def main(recipe: Recipe) -> Path:
    """Run the benchmark's expert; returns the folder of the episodes."""
    benchmark, collection = recipe.benchmark, recipe.collection
    return record(
        recipe.episodes,
        benchmark,
        ExpertActs(benchmark, collection),
        episodes=collection.episodes,
        workers=collection.workers,
        metadata={"benchmark": benchmark.fingerprint(), **_how(collection)},
        title=f"collect {benchmark.name}",
    )


def _how(collection: Collection) -> dict[str, float]:
    """What makes episodes of one collection differ from those of another."""
    return {"disturbed": collection.disturbed_share, "distracted": collection.distracted_share, "seed": collection.seed}
