"""collect: a benchmark and its expert, or a teacher, → episodes.

Many episodes are perturbed while they run: for a few steps the hand does not go where the expert
said, and what is recorded as the action is still what the expert answers in the state that results
(DART, Laskey et al. 2017). A policy cloned from such data has seen its own mistakes corrected. In
others the hand is led to a wrong thing for a while; without that, a hand near a thing always means
that thing, and a policy learns to look at the hand and not at the words. Only episodes that succeed
are kept.
"""

from pathlib import Path

from armlet.policies.checkpoint import policy_fingerprint
from armlet.recipe import Recipe, at_hand
from armlet.rollout.recording import Acts, ExpertActs, TeacherActs, record


def main(recipe: Recipe) -> Path:
    """Run who acts; returns the folder of the episodes."""
    recipe.world("collect")  # before anything is fetched
    recipe = at_hand(
        recipe,
        reads=("teacher",) if recipe.collection.actor == "teacher" else (),
        writes=("episodes",),
    )
    benchmark = recipe.world("collect")
    collection = recipe.collection
    return record(
        recipe.episodes,
        benchmark,
        _actor(recipe),
        episodes=collection.episodes,
        workers=collection.workers,
        metadata={"benchmark": benchmark.fingerprint(), **_how(recipe)},
        title=f"collect {benchmark.name}",
    )


def _actor(recipe: Recipe) -> Acts:
    benchmark = recipe.world("collect")
    if recipe.collection.actor == "teacher":
        return TeacherActs(benchmark, recipe.teacher, recipe.collection.seed)
    return ExpertActs(benchmark, recipe.collection)


def _how(recipe: Recipe) -> dict[str, float | str]:
    """What makes episodes of one collection differ from those of another."""
    collection = recipe.collection
    if collection.actor == "teacher":
        return {"teacher": policy_fingerprint(recipe.teacher), "seed": collection.seed}
    return {
        "disturbed": collection.disturbed_share,
        "distracted": collection.distracted_share,
        "seed": collection.seed,
    }
