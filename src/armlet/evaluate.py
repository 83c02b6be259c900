"""evaluate: policies × benchmark → report.json, outcomes.json.gz, a table, a picture and videos.

Every policy meets the same episodes, fixed in advance as task × seed. What the report says of
episodes is computed from `outcomes.json.gz`, which lies beside it (`armlet.evaluation.outcomes`);
what decisions cost is measured here. A killed evaluation goes on where it stopped
(`armlet.evaluation.episodes`).
"""

import functools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from armlet.benchmarks import Benchmark, Task, benchmark_robot
from armlet.data.episodes import EpisodeDataset
from armlet.data.files import write_atomically
from armlet.data.hub import is_name
from armlet.data.packing import pack, unpack
from armlet.evaluation import eval_info, figures, listening, measure, offline, planning, reaching
from armlet.evaluation import outcomes as kept
from armlet.evaluation.episodes import (
    LOG,
    Row,
    conditions,
    run_delayed,
    run_episodes,
    run_of,
)
from armlet.evaluation.field import Field, in_runtimes, load
from armlet.evaluation.films import make_film, sample_observations
from armlet.evaluation.guiding import guided, guided_latency
from armlet.evaluation.listening import Heard
from armlet.evaluation.outcomes import DelayedRun, Outcomes, Planned, PolicyRun, Section
from armlet.evaluation.planning import Plan
from armlet.evaluation.provenance import Curves, curves, gripper_noise, seeds_of
from armlet.evaluation.report import Latency, Measured, OutcomesFile, Report
from armlet.evaluation.routes import with_routes
from armlet.evaluation.runtimes import frames_of_world
from armlet.evaluation.settings import beside_eager, check, planned, seeds
from armlet.evaluation.verdicts import check_baselines, verdicts, verdicts_by_split
from armlet.lineage import Question
from armlet.logs import RunLog
from armlet.measuring import PARTS, Runtime
from armlet.policies.contract import Backbone, Policy
from armlet.recipe import Recipe, at_hand, check_episodes, robot_of_episodes, suited, to_json
from armlet.robot.exported import is_exported, read_description
from armlet.robot.observation import Observation
from armlet.robot.spec import RobotSpec
from armlet.rollout.door import check_world
from armlet.rollout.loop import plan
from armlet.rollout.pool import THREADS, Contender, threads
from armlet.rollout.together import Together, once, to_bytes

SHARDS = "shards"  # where processes meet that share an evaluation
OUTCOMES = "outcomes.json.gz"
TIMED = 20  # decisions by which an export sees how fast it is; the table's are timed all together


def main(recipe: Recipe) -> Path:
    """Evaluate the recipe's teacher, its student and `policies`; returns the report's path."""
    benchmark = recipe.benchmark
    if benchmark is None or recipe.evaluation.untouched:
        return compare_with_held_out(recipe)
    # Everything that can be refused is refused before the first episode: hours come after it.
    check(recipe)
    check_shared(recipe)
    if recipe.evaluation.listens:
        listening.check_apart(recipe.evaluation.listens, seeds(recipe))
    log = RunLog(recipe.log, recipe.out, recipe.name, to_json(recipe))
    recipe = at_hand(recipe, reads=("teacher", "policies"))
    field = load(recipe, known=lambda: benchmark_robot(benchmark))
    teacher = field.policies["teacher"]
    # The world draws pictures as the policies want them; whoever asks for others is told so.
    if recipe.pictures.asked and isinstance(teacher, Backbone):
        recipe.agree_on_pictures(teacher.view)
    for name, policy in field.policies.items():
        check_world(policy, benchmark, whose=f"policy {name!r}")
    field = _in_runtimes_of_world(recipe, field, benchmark)
    can_be_guided = guided(field, recipe.evaluation)
    out = recipe.out / "evaluation"
    together = Together.of(recipe.shards, out / SHARDS)
    episodes = planned(benchmark, recipe.evaluation)
    field = with_routes(recipe, field, benchmark, episodes, out, together)
    check_baselines(recipe.evaluation.baselines, recipes_of(field))
    plan_of_report = planning.commit_together(recipe, field.contenders, out, together)
    rows = run_episodes(
        field.contenders,
        benchmark,
        episodes,
        out,
        title=f"evaluate {recipe.name}",
        workers=recipe.evaluation.workers,
        device=recipe.acting_device,
        together=together,
    )

    @functools.cache
    def seen() -> list[Observation]:
        # The teacher's episodes, and each policy timed and measured on them all: on their own
        # episodes policies would be measured on different pictures. Of every task one, so run once.
        whose = field.policies["teacher"]
        return sample_observations(whose, benchmark, recipe.evaluation.first_seed)

    # As many threads as episodes were run with, whatever this process was started with: times
    # depend on it.
    with threads(THREADS):
        further = run_further(recipe, field, episodes, out, seen, can_be_guided, together)

    def report() -> None:
        with threads(THREADS):
            made = summarise(recipe, field, episodes, rows, out, plan_of_report, seen(), further)
        write(made, out)
        with log:
            log.series(out).result(made.outcomes.sha256, numbers(made))

    def packed_report() -> bytes:
        report()
        return packed(out)

    if together is None:
        report()
    else:
        # By one of all processes, and whoever does not share its disk gets a copy.
        lay_out(together.once("report", _question(recipe, field), packed_report), out)
    return out / "report.json"


def check_shared(recipe: Recipe) -> None:
    """Raises ValueError for what several processes cannot share."""
    if recipe.shards.on is not None and beside_eager(recipe.evaluation):
        raise ValueError(
            "--evaluation.runtimes exports policies into one folder, which several processes would "
            "do at once: run it without --shards.on"
        )


def _question(recipe: Recipe, field: Field) -> Question:
    """What processes that share an evaluation must agree in, beside its episodes."""
    made_from = {}
    for name, contender in field.contenders.items():
        world = recipe.world("evaluate")
        made_from[name] = conditions(contender, world, recipe.acting_device)
    # Not all of the recipe: each may have as many workers as its machine has cores.
    setting = replace(recipe.evaluation, workers=1)
    return {"made_from": made_from, "evaluation": to_json(setting), "seed": recipe.seed}


def numbers(report: Report) -> dict[str, float]:
    """What a run's logs are told of an evaluation: of every policy its success, and what a decision
    costs."""
    found = {}
    for row in report.sections["policies"]:
        name = row["name"]
        found[f"{name}/success"] = row["successes"] / row["episodes"]
        measured = report.measured[name]
        found[f"{name}/p50_ms"] = measured.latency_ms.policy["p50"]
        if measured.ms_per_second_of_motion is not None:
            found[f"{name}/ms_per_second_of_motion"] = measured.ms_per_second_of_motion
    return found


def compare_with_held_out(recipe: Recipe) -> Path:
    """The same policies where there is no world to act in, or none is wanted: against the episodes
    that nobody was trained on."""
    offline.check(recipe.evaluation)
    if recipe.benchmark is not None and recipe.split != "tasks":
        raise ValueError(
            f"--evaluation.untouched with split {recipe.split!r}: recipe {recipe.name!r} calibrates "
            "its students on the episodes that it holds out, so none are untouched; it takes a "
            "recipe with split tasks, as aed_tabletop"
        )
    recipe = at_hand(recipe, reads=("episodes", "teacher", "policies"))
    data = EpisodeDataset(recipe.episodes, recipe.columns)
    field = load(recipe, known=lambda: robot_of_episodes(recipe, data))
    for name, policy in field.policies.items():
        # Of another robot's policy an error would be a number without meaning.
        title = f"evaluate {name}"
        check_episodes(
            recipe,
            data,
            policy.robot,
            state=policy.body.state if isinstance(policy, Backbone) else None,
            title=title,
            whose=f"policy {name!r}",
        )
    recipe = suited(recipe, field.policies["teacher"].robot.action)
    if beside_eager(recipe.evaluation):
        field = in_runtimes(
            recipe,
            field,
            functools.partial(export_one, robot=field.policies["teacher"].robot),
            lambda: offline.frames_of_episodes(recipe, data, field.policies),
            {"data": data.fingerprint, "columns": asdict(data.roles)},
        )
    return offline.run(recipe, data, field)


def _in_runtimes_of_world(recipe: Recipe, field: Field, benchmark: Benchmark) -> Field:
    """The field with every policy in every runtime that is asked for."""
    if not beside_eager(recipe.evaluation):
        return field
    splits = recipe.evaluation.splits
    # Neither trained on nor reported: see `Calibration.seed`.
    seed = recipe.calibration.seed
    return in_runtimes(
        recipe,
        field,
        functools.partial(export_one, world=benchmark, robot=benchmark_robot(benchmark)),
        lambda: frames_of_world(field.policies["teacher"], benchmark, splits, seed),
        {"benchmark": benchmark.fingerprint(), "splits": splits, "seed": seed},
    )


def export_one(
    place: Path,
    out: Path,
    runtime: Runtime,
    budgets: tuple[float, ...],
    frames: Sequence[Observation],
    *,
    world: Benchmark | None = None,
    robot: RobotSpec,
) -> str | None:
    """Export one policy, of this robot, by the gates of `armlet export`; returns why it is refused.
    Of the gates parity alone refuses: closed loop and speed are what an evaluation measures, and
    says."""
    # Here and not above: the libraries are an extra, which a run in eager alone does not need.
    from armlet.deploy.exporting import How, export
    from armlet.deploy.gates import GateError
    from armlet.deploy.graph import GraphError

    library, precision = PARTS[runtime]
    how = How(library, precision, budgets, threads=THREADS, calls=TIMED, slower=True)
    try:
        export(place, out, how, frames, world, robot=robot, measured_elsewhere=True)
    except (GateError, GraphError) as error:
        return str(error)
    return None


def _filmed(field: Field) -> dict[str, Policy]:
    """Each in the first runtime that it is run in, on its own routes: in another it does the same,
    and a film has room for few."""
    found = {}
    shown = set()
    for name, who in field.contenders.items():
        network = field.exported_from.get(name, name)
        if who.routes is None and network not in shown:
            shown.add(network)
            found[name] = field.policies[name]
    return found


def summarise(
    recipe: Recipe,
    field: Field,
    episodes: list[tuple[Task, int]],
    rows: dict[str, list[Row]],
    out: Path,
    plan_of_report: Plan | None,
    observations: list[Observation],
    further: "Further",
) -> Report:
    """The report: policies are measured and filmed, and all is put together. `rows`: what each did
    in the episodes; `observations`: what each is measured on; `further`: what was run beside these
    episodes."""
    benchmark = recipe.world("evaluate")
    setting = recipe.evaluation
    timings = further.timings
    heard = further.heard
    outcomes = Outcomes(
        hz=benchmark.action_spec.control_hz,
        limit=benchmark.max_steps,
        episodes=_as_planned(episodes),
        policies=policy_runs(field, rows),
        delayed=further.delayed,
        listened=_as_planned(_listened(recipe)) if heard.runs else (),
        listens=heard.runs,
    )
    # The same function that recomputes a report from the file: the two cannot disagree.
    sections = kept.recompute(outcomes)

    @functools.cache
    def counts(network: str) -> Counts:
        # Of fifty tasks there are a thousand observations: once a network, however it is run.
        return _counts(field.policies[network], observations)

    measurements: dict[str, Measured] = {}
    for row in sections["policies"]:
        name = row["name"]
        found = measured(row, field, observations, timings[name], measurements, counts)
        measurements[name] = found
    # The first episodes of the first split, not the best ones.
    filmed = _filmed(field)
    films = []
    for task, seed in plan(benchmark, setting.splits[0], setting.videos, setting.first_seed):
        made = make_film(filmed, field.contenders, benchmark, task, seed, out, rerun=setting.rerun)
        films.append(made)
    eval_info.write(outcomes, out)
    return Report(
        outcomes=OutcomesFile(OUTCOMES, kept.write(out / OUTCOMES, outcomes)),
        sections=sections,
        measured=measurements,
        films=tuple(films),
        refused=field.refused,
        training=training(field),
        fingerprint=fingerprint(recipe, field),
        purpose=setting.purpose,
        plan=plan_of_report,
        verdicts=tuple(verdicts(outcomes, setting.baselines, setting.margin)),
        verdicts_by_split=verdicts_by_split(outcomes, setting.baselines, setting.margin),
        listens_left_out=heard.left_out,
    )


@dataclass(frozen=True)
class Further:
    """What is run beside the episodes that policies are compared in. `timings`: of each policy, as
    `measure.latency` has them."""

    timings: dict[str, dict[str, float]]
    delayed: tuple[DelayedRun, ...]
    heard: Heard


def run_further(
    recipe: Recipe,
    field: Field,
    episodes: list[tuple[Task, int]],
    out: Path,
    seen: Callable[[], list[Observation]],
    can_be_guided: Sequence[str],
    together: Together | None,
) -> Further:
    """Policies timed, run late by these times, and with one input changed at a time. `seen`: gives
    the observations that they are timed on; `can_be_guided`: who is also run late so."""
    benchmark = recipe.world("evaluate")
    setting = recipe.evaluation

    def measured_here() -> bytes:
        plain = measure.latency(field.played, seen(), calls=setting.latency_calls)
        guided_too = guided_latency(field, can_be_guided, seen(), calls=setting.latency_calls)
        return to_bytes([plain, guided_too])

    # How late somebody acts hangs on these times, so all must have those of one machine.
    said = once(together, "times", lambda: _question(recipe, field), measured_here)
    timings, guided_timings = json.loads(said)
    delayed = run_delayed(
        field.contenders,
        benchmark,
        episodes,
        out,
        setting=setting,
        # A policy acts late by its median time: what it needs most of the time.
        milliseconds={name: times["p50"] for name, times in timings.items()},
        guided_milliseconds={name: times["p50"] for name, times in guided_timings.items()},
        title=f"evaluate {recipe.name}",
        device=recipe.acting_device,
        together=together,
    )
    return Further(timings, delayed, _heard(recipe, field, out, together))


def packed(out: Path) -> bytes:
    """All files of an evaluation but what it was run by."""
    files = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out)
        by_the_way = name.name == LOG or name.suffix == ".lock" or name.parts[0] == SHARDS
        if path.is_file() and not by_the_way:
            files[name.as_posix()] = path.read_bytes()
    return pack(files)


def lay_out(content: bytes, out: Path) -> None:
    """What `packed` has, where it is missing."""
    for name, file in unpack(content).items():
        if not (out / name).exists():
            write_atomically(out / name, file)


def _as_planned(episodes: list[tuple[Task, int]]) -> tuple[Planned, ...]:
    return tuple(Planned(task.split, task.family, task.name, seed) for task, seed in episodes)


def _listened(recipe: Recipe) -> list[tuple[Task, int]]:
    """The episodes in which it is found out what policies listen to, of the first split."""
    setting = recipe.evaluation
    world = recipe.world("evaluate")
    return plan(world, setting.splits[0], setting.listens, listening.SEEDS.start)


def _heard(recipe: Recipe, field: Field, out: Path, together: Together | None = None) -> Heard:
    """What each policy listens to, run as it is made: at its own budget, in eager."""
    found = {}
    for name, contender in field.contenders.items():
        if not recipe.evaluation.listens or contender != Contender(contender.folder):
            continue
        found[name] = listening.listen(
            name,
            contender,
            field.policies[name],
            recipe.world("evaluate"),
            _listened(recipe),
            out,
            title=f"evaluate {recipe.name}, what it listens to",
            workers=recipe.evaluation.workers,
            device=recipe.acting_device,
            together=together,
        )
    return listening.all_heard(found)


def write(report: Report, out: Path) -> Path:
    """The report as JSON, as a table, which is printed, and as pictures; returns its path."""
    said = report.to_json()
    write_atomically(out / "report.json", json.dumps(said, indent=1).encode())
    table = figures.table(said)
    write_atomically(out / "table.md", table.encode())
    figures.success_against_latency(said, out / "success-latency.png")
    if any(each.budget is not None for each in report.measured.values()):
        figures.success_against_budget(said, out / "success-budget.png")
    if any(policy["gripper_noise"] for policy in said["policies"][1:]):
        figures.success_against_noise(said, out / "success-noise.png")
    if said["delayed"]:
        reaching.picture(said, kept.read(out / OUTCOMES), out / "how-soon.png")
    print(table)  # noqa: T201 - the verdict, for the person who ran it
    return out / "report.json"


# --- what the report says


def policy_runs(field: Field, rows: dict[str, list[Row]]) -> tuple[PolicyRun, ...]:
    """The policies' outcomes; their routes are counted in the first split."""
    together = seeds_of(field.contenders, field.made)
    found = []
    for name, contender in field.contenders.items():
        # A decision's route is a text of l characters, 1: the layer ran.
        routes: Counter[str] = Counter()
        for row in rows[name]:
            if row["split"] == rows[name][0]["split"]:
                routes.update(row["gates"])
        policy = field.policies[name]
        run = PolicyRun(
            name=name,
            fingerprint=contender.fingerprint,
            execute=contender.looks_after or policy.execute,
            layer_costs=_layer_costs(field, name, routes),
            routes=dict(sorted(routes.items())),  # sorted: the file's sha256 is compared
            run=run_of(rows[name]),
            seeds_of=together.get(name),
        )
        found.append(run)
    return tuple(found)


def recipes_of(field: Field) -> dict[str, list[str]]:
    """What verdicts will be about, before anything was run: the name of a recipe with the names of
    its students of several seeds, or of a policy that stands alone."""
    called = seeds_of(field.contenders, field.made)
    names = [(name, called.get(name)) for name in field.contenders]
    return kept.grouped(names)


def _layer_costs(field: Field, name: str, routes: Counter[str]) -> tuple[float, ...]:
    """What each layer costs; none of a policy whose layers nobody knows, or that does not say which
    of them ran."""
    policy = field.policies[field.exported_from.get(name, name)]
    if not isinstance(policy, Backbone):
        return ()
    costs = tuple(policy.layer_costs().tolist())
    # An exported policy has its network's layers, where it says their route.
    return costs if all(len(route) == len(costs) for route in routes) else ()


def measured(
    row: Section,
    field: Field,
    observations: list[Observation],
    timing: dict[str, float],
    before: Mapping[str, Measured],
    counts: Callable[[str], "Counts"],
) -> Measured:
    """What a policy costs. `row`: what its outcomes say; `before`: what the policies before it do;
    `counts`: what is counted of a network, by its name (`Field.network`)."""
    name = row["name"]
    contender = field.contenders[name]
    policy = field.policies[name]
    asked = row["decisions_per_second"]  # None: the arm never moved
    library, precision = field.runtime(name)
    counted = counts(field.network(name))
    layers = counted.layers
    changes = None
    if name in field.exported_from:
        # One that does not say its route has no layers in the tables of what ran.
        if len(row["routing"]["activation"]) != len(layers):
            layers = ()
    # A policy that always runs the same layers depends on nothing, and need not be asked; nor can
    # one that is told which to run.
    elif (
        isinstance(policy, Backbone) and row["routing"]["patterns"] > 1 and contender.routes is None
    ):
        changes = measure.what_routes_depend_on(policy, observations)
    memory = None
    size = None
    if is_exported(contender.folder) or isinstance(policy, Backbone):
        memory = _peak_memory(name, field, observations[0], before)
        size = measure.bytes_on_disk(contender.folder)
    return Measured(
        policy=field.whose(name),
        runtime=library,
        precision=precision,
        exported_from=field.exported_from.get(name),
        layers=layers,
        changes_with=changes,
        latency_ms=Latency(timing, THREADS, measure.device_of(policy)),
        ms_per_second_of_motion=None if asked is None else timing["p50"] * asked,
        flops=counted.flops,
        params=counted.params,
        peak_memory_mb=memory,
        bytes_on_disk=size,
        gripper_noise=gripper_noise(field.made[name]),
        budget=contender.budget,
    )


@dataclass(frozen=True)
class Counts:
    """What is counted of a network: its layers, by their numbers in the one that it was cut from,
    operations of a decision and weights."""

    layers: tuple[int, ...]
    flops: Mapping[str, float | None]  # `total` and `backbone`, as those of `params`
    params: Mapping[str, int | None]


def _counts(policy: Policy, observations: list[Observation]) -> Counts:
    if not isinstance(policy, Backbone):
        # What it is made of nobody here knows, and its time is that of its machine and the network.
        unknown = dict.fromkeys(("total", "backbone"))
        return Counts((), unknown, unknown)
    return Counts(
        tuple(policy.layer_numbers),
        measure.compute(policy, observations),
        measure.parameters(policy),
    )


def _peak_memory(
    name: str, field: Field, observation: Observation, before: Mapping[str, Measured]
) -> float | None:
    """Once a folder: how many actions are carried out changes nothing."""
    folder = field.contenders[name].folder
    for other, its in before.items():
        if field.contenders[other].folder == folder:
            return its.peak_memory_mb
    return measure.peak_memory_mb(folder, observation, field.policies[name].robot)


def training(field: Field) -> dict[str, list[Curves]]:
    """Backbone → its stages' loss curves, once a policy however often it is run."""
    found: dict[str, list[Curves]] = {}
    for name, contender in field.everyone.items():
        once = contender == Contender(contender.folder)
        # The hub keeps policies, not the logs beside them.
        if once and not is_name(contender.folder):
            stages = curves(contender.folder, field.made[name])
            if stages:
                found[name] = stages
    return found


def fingerprint(recipe: Recipe, field: Field) -> dict[str, Any]:
    """What this report was made with. `recipe` is the one that was given to `evaluate`; `evaluated`
    holds each policy's folder and the recipe that it was made by, where it says so."""
    setting = recipe.evaluation
    evaluated = {}
    for name, contender in field.everyone.items():
        about: dict[str, Any] = {"folder": to_json(contender.folder)}
        if name in field.exported_from:
            # Of its gates and the runtime's version; how it was made, its origin says.
            about["exported_from"] = field.exported_from[name]
            about["exported"] = _exported(contender)
        else:
            about["recipe"] = field.made[name].get("recipe")
        evaluated[name] = about
    return {
        **measure.environment(),
        "device": recipe.acting_device,
        "threads": THREADS,
        "workers": setting.workers,
        "seeds": {
            "recipe": recipe.seed,
            "episodes": [setting.first_seed, setting.first_seed + setting.episodes - 1],
        },
        "benchmark": recipe.world("evaluate").fingerprint(),
        "recipe": to_json(recipe),
        "evaluation": asdict(setting),
        "evaluated": evaluated,
    }


def _exported(contender: Contender) -> dict[str, Any] | None:
    """What an exported policy says of itself."""
    if not is_exported(contender.folder):
        return None
    return read_description(contender.folder)
