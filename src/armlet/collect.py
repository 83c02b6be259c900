"""collect: a benchmark and its expert, or a teacher, → episodes.

Many episodes are perturbed while they run: for a few steps the hand does not go where the expert
said, and what is recorded as the action is still what the expert answers in the state that results
(DART, Laskey et al. 2017). A policy cloned from such data has seen its own mistakes corrected. In
others the hand is led to a wrong thing for a while; without that, a hand near a thing always means
that thing, and a policy learns to look at the hand and not at the words. Only episodes that succeed
are kept.
"""

from pathlib import Path
from typing import Any

from armlet.benchmarks import Benchmark, benchmark_robot
from armlet.data.digests import CACHE
from armlet.policies.acting import actor_fingerprint, load_actor
from armlet.recipe import Recipe, at_hand
from armlet.rollout.actors import Acts, ExpertActs, TeacherActs
from armlet.rollout.door import check_world
from armlet.rollout.recording import acted_on, record
from armlet.rollout.together import Together
from armlet.seeds import check_selection


def main(recipe: Recipe) -> Path:
    """Run who acts; returns the folder of the episodes. Raises ValueError where a teacher that
    should act is one of another robot."""
    benchmark = recipe.world("collect")
    first = recipe.collection.seed
    check_selection("collection", range(first, first + recipe.collection.episodes))
    by_teacher = recipe.collection.actor == "teacher"
    recipe = at_hand(recipe, reads=("teacher",) if by_teacher else (), writes=("episodes",))
    # Loaded here only to be asked: each worker loads its own.
    if by_teacher:
        whose = f"the teacher {recipe.teacher}"
        robot = benchmark_robot(benchmark)
        check_world(load_actor(recipe.teacher, known=lambda: robot), benchmark, whose=whose)
    return record(
        recipe.episodes,
        benchmark,
        _actor(recipe, benchmark),
        episodes=recipe.collection.episodes,
        workers=recipe.collection.workers,
        # What a folder of half the episodes must agree with, to be continued.
        metadata={"benchmark": benchmark.fingerprint(), **_how(recipe, benchmark)},
        title=f"collect {benchmark.name}",
        together=Together.of(recipe.shards, recipe.episodes / CACHE / "shards"),
    )


def _actor(recipe: Recipe, benchmark: Benchmark) -> Acts:
    """Who acts: the benchmark's expert, who knows the simulator's state, or a policy, which sees
    pictures."""
    if recipe.collection.actor == "expert":
        return ExpertActs(benchmark, recipe.collection)
    return TeacherActs(benchmark, recipe.teacher, recipe.collection.seed, recipe.acting_device)


def _how(recipe: Recipe, benchmark: Benchmark) -> dict[str, Any]:
    """What makes episodes of one collection differ from those of another."""
    collection = recipe.collection
    # Every episode is of the next of them.
    tasks = [task.name for task in benchmark.tasks()]
    if collection.actor == "expert":
        return {
            "tasks": tasks,
            "disturbed": collection.disturbed_share,
            "distracted": collection.distracted_share,
            "seed": collection.seed,
        }
    # A teacher acts undisturbed, so the shares are none of its own; the device may round otherwise.
    return {
        "tasks": tasks,
        "teacher": actor_fingerprint(recipe.teacher, lambda: benchmark_robot(benchmark)),
        "seed": collection.seed,
        **acted_on(recipe.acting_device),
    }
