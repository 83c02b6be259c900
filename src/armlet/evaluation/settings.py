"""Which episodes an evaluation runs and which policies meet in them; and whether what is asked
makes sense. Runs nothing.
"""

import sys
from dataclasses import replace
from pathlib import Path

from armlet.benchmarks import Benchmark, Task
from armlet.data.hub import is_name, without_revision
from armlet.data.mirror import told
from armlet.evaluation import rerun_file
from armlet.measuring import EAGER
from armlet.recipe import Evaluation, Recipe
from armlet.robot.bounds import Bounds
from armlet.rollout.loop import plan
from armlet.rollout.pool import Contender
from armlet.seeds import check_evaluation, check_selection, meet
from armlet.training.practice import TRIAL, first_seed


def check(recipe: Recipe) -> None:
    """Raises ValueError for settings that contradict each other or would have no effect."""
    setting = recipe.evaluation
    if not setting.splits:
        raise ValueError(
            "--evaluation.splits is empty; name at least one split, the benchmark's are "
            + ", ".join(recipe.world("evaluate").splits)
        )
    ranges = seeds(recipe)
    check_evaluation(setting.purpose, ranges["evaluation"])
    apart("evaluation", ranges)
    choose_elsewhere(recipe)
    check_states(recipe, setting)
    check_runtimes(setting)
    alone_in_eager(setting)
    if setting.look > 1 and setting.purpose != "report":
        raise ValueError(
            "--evaluation.look is about plans, and only a report has one: --evaluation.purpose report"
        )
    if setting.slower and not setting.late:
        raise ValueError(
            "--evaluation.slower needs a rule for acting late: --evaluation.late wait run_on blend"
        )
    if setting.late != ("wait",) and not setting.slower:
        raise ValueError(
            "--evaluation.late is about policies on a slower computer, and none is asked for: "
            "--evaluation.slower 20"
        )
    if setting.route_episodes != Evaluation().route_episodes and not setting.routes:
        raise ValueError(
            "--evaluation.route-episodes is about routes in the place of a router's, and none are "
            "asked for: --evaluation.routes static shuffled"
        )
    if setting.rerun:
        if not setting.videos:
            raise ValueError(
                "--evaluation.rerun is about films, and none is asked for: --evaluation.videos 1"
            )
        rerun_file.check()
    # A value twice would be run twice under one name, and one row would be lost.
    several = (
        "splits", "budgets", "execute", "ensemble", "slower", "late", "routes", "baselines",
    )  # fmt: skip
    for name in several:
        values = getattr(setting, name)
        if len(set(values)) < len(values):
            raise ValueError(
                f"--evaluation.{name} says a value twice: {' '.join(map(str, values))}"
            )


def check_states(recipe: Recipe, setting: Evaluation) -> None:
    """Raises ValueError where a split has few initial states, which all ranges of seeds share, and
    its episodes would be chosen on, or be the same twice."""
    world = recipe.world("evaluate")
    for split in setting.splits:
        states = world.states(split)
        if states is None:
            continue
        if setting.purpose != "report":
            raise ValueError(f"--evaluation.splits {split}: {_shared(split, states)}")
        if setting.routes:
            raise ValueError(
                f"--evaluation.routes on {split}, where static routes are chosen on the calibration's "
                f"seeds: {_shared(split, states)}"
            )
        most = states * len(world.tasks(split))
        if setting.episodes > most:
            raise ValueError(
                f"--evaluation.episodes {setting.episodes}: {split} has {states} initial states a "
                f"task, {most} episodes in all; more would be the same again, and intervals would "
                f"take them for new ones; give at most {most}"
            )


def check_calibration_states(recipe: Recipe) -> None:
    """The same of the split in which the longest `execute` is chosen."""
    split = recipe.evaluation.splits[0]
    states = recipe.world("calibrate").states(split)
    if states is not None:
        raise ValueError(f"--evaluation.splits {split}, to calibrate on: {_shared(split, states)}")


def _shared(split: str, states: int) -> str:
    return (
        f"{split} has {states} initial states a task, the same for every seed, and reports are on "
        "them: nothing may be chosen there; choose on drawn ones (--evaluation.splits seen), or "
        "report (--evaluation.purpose report)"
    )


def check_runtimes(setting: Evaluation) -> None:
    """Raises ValueError for runtimes from which no table can be made."""
    said = " ".join(setting.runtimes)
    if len(set(setting.runtimes)) < len(setting.runtimes):
        raise ValueError(f"--evaluation.runtimes says a value twice: {said}")
    if not setting.runtimes:
        raise ValueError("--evaluation.runtimes is empty; name at least one, such as eager")
    # Speed is stated against the eager teacher.
    anyway = (EAGER, *setting.runtimes)
    for runtime in setting.teacher_runtimes:
        if runtime in anyway or setting.teacher_runtimes.count(runtime) > 1:
            raise ValueError(
                f"--evaluation.teacher-runtimes {runtime} has no effect: the teacher is run there "
                "anyway; leave it out"
            )


def alone_in_eager(setting: Evaluation) -> None:
    """Raises ValueError for what is done with policies as they are in eager, where they are not run
    in it."""
    if EAGER in setting.runtimes:
        return
    for name in ("routes", "listens"):
        if getattr(setting, name):
            raise ValueError(
                f"--evaluation.{name} is about policies in eager, and --evaluation.runtimes "
                f"{' '.join(setting.runtimes)} leaves it out; name eager as well"
            )


def beside_eager(setting: Evaluation) -> bool:
    """Whether anything has to be exported."""
    return any(runtime != EAGER for runtime in (*setting.runtimes, *setting.teacher_runtimes))


def apart(ours: str, ranges: dict[str, range]) -> None:
    """Raises ValueError where the seeds of `ours` meet any others; both are said by what they are
    for."""
    mine = ranges[ours]
    for what, theirs in ranges.items():
        if what != ours and meet(mine, theirs):
            raise ValueError(
                f"{ours} has the seeds {mine.start} to {mine.stop - 1}, and {what} has "
                f"{theirs.start} to {theirs.stop - 1}: policies would be tested on worlds that "
                f"they were trained on, or chosen by; give --{ours}.seed another range"
            )


def choose_elsewhere(recipe: Recipe) -> None:
    """Raises ValueError where a recipe collects, practises, tries or calibrates on seeds that are
    kept for reports: whatever acts there is trained or chosen by what comes of it."""
    for what, theirs in seeds(recipe).items():
        if what != "evaluation":
            check_selection(what, theirs)


def seeds(recipe: Recipe) -> dict[str, range]:
    """Whose worlds are made from which seeds, by what they are for. A world belongs to its task,
    split and seed."""
    setting = recipe.evaluation
    first = recipe.collection.seed
    found = {"collection": range(first, first + recipe.collection.episodes)}
    for number, each in enumerate(recipe.rounds):
        first = first_seed(recipe, number)
        found[f"rounds.{number}"] = range(first, first + each.episodes)
        # A trial decides whether a round's student is kept: a choice made on these worlds.
        found[f"rounds.{number}, its trial"] = range(first + TRIAL, first + TRIAL + each.trial)
    first = recipe.calibration.seed
    # Static routes are chosen in the first of these.
    routes = setting.route_episodes if setting.routes else 0
    found["calibration"] = range(first, first + max(recipe.calibration.episodes, routes))
    found["evaluation"] = range(setting.first_seed, setting.first_seed + setting.episodes)
    return found


def planned(benchmark: Benchmark, setting: Evaluation) -> list[tuple[Task, int]]:
    """Every episode of every split, in order."""
    # Fixed before any policy is run, and the same for all: that is what pairs them.
    found = []
    for split in setting.splits:
        if not benchmark.tasks(split):
            raise ValueError(
                f"evaluation.splits names {split}, and {benchmark.name} has no task in it: all that "
                "it could be are among those that are taught"
            )
        found += plan(benchmark, split, setting.episodes, setting.first_seed)
    return found


def contenders(recipe: Recipe) -> dict[str, Contender]:
    """Name → policy: the teacher first, then the recipe's student, then `policies`. Two students of
    one name are told apart by their folder, or the whole name on the hub. After them the same
    policies again, once for each number of actions that `execute` asks for, for each `ensemble` of
    decisions, and behind a `guard`."""
    found = {"teacher": Contender(recipe.teacher), **_student(recipe)}
    for folder in recipe.policies:
        # As it was asked for: a folder that stands for a URL is called anyhow.
        called = Path(told(without_revision(folder).as_posix()))
        # A recipe's student is in OUT/student, and OUT is what tells it from others.
        name = called.parent.name if called.name == "student" else called.name
        if name in found:
            name = told(folder.as_posix())
        # A policy against itself would be paired with itself, and differ in nothing.
        for twin, contender in found.items():
            if _same_place(contender.folder, folder):
                raise ValueError(
                    f"--policies names {folder}, which is evaluated already, as {twin!r}: each "
                    "policy is run once"
                )
        found[name] = Contender(folder)
    again = {}
    # Beside their own numbers, so that what comes of the number alone can be seen.
    for execute in recipe.evaluation.execute:
        for name, contender in found.items():
            again[f"{name} execute {execute}"] = replace(contender, execute=execute)
    for window in recipe.evaluation.ensemble:
        for name, contender in found.items():
            again[f"{name} ensemble {window}"] = replace(contender, ensemble=window)
    if recipe.evaluation.guard is not None:
        world = recipe.world("evaluate")
        path = Path(recipe.evaluation.guard)
        bounds = Bounds.read(path, world.action_spec, world.state_names)
        for name, contender in found.items():
            again[f"{name} guarded"] = replace(contender, guard=bounds)
    return found | again


def _student(recipe: Recipe) -> dict[str, Contender]:
    """The recipe's student, where it has been made, and at every budget that is asked for."""
    folder = recipe.student_folder
    budgets = recipe.evaluation.budgets
    # config.json is what makes a folder a policy (policies/checkpoint.py).
    if (folder / "config.json").exists():
        found = {recipe.name: Contender(folder)}
        for budget in budgets:
            found[f"{recipe.name} at {budget:g}"] = Contender(folder, budget)
        return found
    if budgets:
        raise ValueError(
            f"--evaluation.budgets are those of the recipe's student, and there is none in "
            f"{folder}; run `armlet distil` first, or leave the option out"
        )
    if recipe.student is not None:
        sys.stderr.write(
            f"{recipe.name}: there is no student in {folder} yet (`armlet distil` makes "
            "it); only the teacher and `--policies` are run\n"
        )
    return {}


def _same_place(one: Path, other: Path) -> bool:
    """Whether two places are one folder, or one name on the hub."""
    # A name on the hub is no path: nothing may be resolved in it.
    if is_name(one) or is_name(other):
        return one == other
    return one.resolve() == other.resolve()
