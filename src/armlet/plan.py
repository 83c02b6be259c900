"""plan: a teacher and a time → what would bring its decisions below that time, before anybody trains.

    armlet plan POLICY --target-ms 20                      what there is, and how it is made
    armlet plan POLICY --target-ms 20 --benchmark tabletop the commands for that world's recipes
    armlet plan POLICY --check STUDENT …                   what was predicted of them, and is

The teacher is profiled (`armlet profile`), exported to the runtimes that are installed, and cut
without training, which costs minutes at most; deploy/planning.py says how times are predicted.
Writes plan.json and plan.md; `--check` reads them again and adds the table.
"""

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import tyro

from armlet.data.files import read_json, write_atomically
from armlet.data.hub import pinned
from armlet.deploy import plan_page, planning, ways
from armlet.deploy.meter import seconds
from armlet.deploy.moments import Met, Where, meet, name_of
from armlet.deploy.plan_page import Checked
from armlet.deploy.planning import EAGER, Choice, Plan, Way
from armlet.deploy.profiling import Profile, Setting, profile
from armlet.evaluation.measure import latency
from armlet.measuring import Runtime
from armlet.policies.acting import load_actor
from armlet.policies.contract import Backbone, Policy
from armlet.policies.pretrained import kinds
from armlet.policies.routed import Routed
from armlet.rollout.pool import threads as with_threads

PLANS = Path("out/plan")
FILE = "plan.json"
WORLDS = ("tabletop", "metaworld")  # for which there are recipes of their own
ANYWHERE = Where()


def main(
    policy: Annotated[str, tyro.conf.Positional],
    /,
    *,
    target_ms: float | None = None,
    runtimes: tuple[Runtime, ...] | None = None,
    check: tuple[str, ...] = (),
    where: Annotated[Where, tyro.conf.arg(name="")] = ANYWHERE,
    calls: int = 200,
    threads: int = 1,
    out: Path | None = None,
) -> str:
    """Say what would reach a time, or how well that was said.

    Args:
        policy: The teacher: its folder, its name on the hub, or a policy.toml.
        target_ms: Milliseconds that a decision may take.
        runtimes: In which it is timed beside PyTorch: onnx, onnx_int8, openvino, openvino_bf16 …;
            if not given, those that are installed.
        check: Students, exported or not, that are timed beside the teacher and compared with the
            plan that is in `out`.
        where: Where it decides, and what about.
        calls: Timed decisions.
        threads: Of torch and of other runtimes.
        out: The folder that is written to; out/plan/NAME if not given.
    """
    out = out or PLANS / name_of(policy)
    if bool(check) == (target_ms is not None):
        raise ValueError("give either --target-ms, to plan, or --check, to compare with a plan")
    if check and runtimes:
        raise ValueError(
            "--runtimes would have no effect: with --check students are timed as they are"
        )
    if EAGER in (runtimes or ()):
        raise ValueError(
            "--runtimes eager: PyTorch is timed in any case; name what stands beside it"
        )
    if len(set(runtimes or ())) < len(runtimes or ()):
        raise ValueError(f"--runtimes says a value twice: {' '.join(runtimes or ())}")
    if threads < 1:
        raise ValueError(f"--threads {threads}: expected at least 1")
    with with_threads(threads):
        if check:
            return _check(policy, check, where, out, calls)
        assert target_ms is not None  # one of the two is given
        if not 0 < target_ms < float("inf"):
            raise ValueError(f"--target-ms {target_ms:g}: expected more than 0")
        asked = ways.at_hand() if runtimes is None else runtimes
        return _plan(policy, target_ms, where, asked, out, calls, threads)


def _plan(
    policy: str,
    target: float,
    where: Where,
    runtimes: tuple[Runtime, ...],
    out: Path,
    calls: int,
    threads: int,
) -> str:
    met = meet(policy, where)
    teacher = _teacher(met)
    setting = Setting(policy, met.fingerprint, met.words, calls, threads)
    found = profile(teacher, met.observations, setting)
    router = planning.router_ms(teacher, met.observations, seconds(teacher.device))
    eager = planning.eager_way(found, router=router)
    cut = planning.cut_of(teacher)
    there = [eager, *_others(met, runtimes, cut, eager, found, calls)]
    steps = 0 if found.steps is None else found.steps.times
    can_step = found.steps is not None and found.steps.what == "denoising step"
    made = Plan(
        policy=policy,
        fingerprint=met.fingerprint,
        target_ms=target,
        layers=found.layers,
        steps=steps,
        loop=None if found.steps is None else found.steps.what,
        chunk=found.chunk,
        execute=found.execute,
        hz=found.hz,
        moments=met.words,
        threads=threads,
        device=found.device,
        machine=found.machine,
        ways=tuple(there),
        trial=planning.tried(teacher, cut, eager, met.observations, calls=calls),
        choices=planning.enumerate_choices(there, found, target=target, can_step=can_step),
        least_ms=planning.least(there, steps, can_step=can_step),
    )
    made = planning.with_commands(made, lambda choice: commands(made, choice, where))
    page = plan_page.page(made)
    write_atomically(out / FILE, json.dumps(made.to_json(), indent=1).encode())
    write_atomically(out / "plan.md", page.encode())
    return f"{page}\n{out / FILE}"


def _teacher(met: Met) -> Backbone:
    """Raises ValueError for a policy that nothing can be cut from."""
    if not isinstance(met.policy, Backbone):
        raise ValueError(
            f"{met.policy.kind} has no layers that could be cut here; a plan is about a policy "
            "whose weights are at hand"
        )
    if isinstance(met.policy, Routed):
        raise ValueError(
            "this policy is a student with a router; plan from its teacher, or time it at other "
            "budgets: armlet profile STUDENT --budget 0.25"
        )
    return met.policy


def _others(
    met: Met, runtimes: tuple[Runtime, ...], cut: Backbone, eager: Way, found: Profile, calls: int
) -> list[Way]:
    """The lines of other runtimes: the policy and its cut in each, timed in one run beside
    PyTorch's. Of a policy of one layer there is no cut, and no line."""
    teacher = _teacher(met)
    depth = len(teacher.layers)
    few = planning.few_layers(depth)
    if not runtimes or depth == few:
        return []
    with TemporaryDirectory() as folder:
        field: dict[str, Policy] = {EAGER: teacher}
        for name in runtimes:
            for what, network in (("whole", teacher), ("cut", cut)):
                place = Path(folder) / f"{name}-{what}"
                field[f"{name} {what}"] = ways.exported(
                    network, name, met.observations, place, threads=found.threads
                )
        times = latency(field, met.observations, calls=calls)
    steps = 0 if found.steps is None else found.steps.times
    # As fast as the machine was when the profile was made: what else it does changes with time.
    now = times[EAGER]["p50"] / eager.ms(depth, steps)
    made = []
    for name in runtimes:
        whole = times[f"{name} whole"]["p50"] / now
        less = times[f"{name} cut"]["p50"] / now
        runtime, precision = ways.parts(name)
        way = planning.other_way(
            eager, runtime, precision, whole=(depth, whole), cut=(few, less), steps=steps
        )
        made.append(way)
    return made


# How a choice is made


def commands(plan: Plan, choice: Choice, where: Where) -> tuple[str, ...]:
    """What makes a choice, in order. Recipes are those of a robot of one's own, or of the world
    that was named where it has some."""
    lines = []
    student = plan.policy
    if choice.layers < plan.layers:
        recipe = "actdistill" if choice.routed else "first_k"
        asked = f"--teacher {plan.policy}"
        if where.benchmark in WORLDS:
            recipe = f"{recipe}_{where.benchmark}"
        else:
            asked += f" --episodes {where.episodes or 'DIR'}"
        lines.append(f"armlet probe {recipe} {asked}")
        lines.append(f"armlet distil {recipe} {asked} {_size(plan, choice)}")
        student = f"out/{recipe}/student"
    if choice.steps < plan.steps:
        lines.append(_fewer_steps(plan, choice))
    if choice.runtime != EAGER:
        lines.append(
            f"armlet export {student} --runtime {choice.runtime} --precision {choice.precision}"
        )
    return tuple(lines)


def _size(plan: Plan, choice: Choice) -> str:
    if not choice.routed:
        return f"--student.layers {choice.layers}"
    share = f"{choice.layers / plan.layers:.4g}"
    return f"--student.budget {share} --stages.0.objective.keep {share}"


def _fewer_steps(plan: Plan, choice: Choice) -> str:
    """Of a checkpoint of another project it is an option; of ours the head is taught with it."""
    place = pinned(plan.policy, kind="model")
    if place.suffix == ".toml" or kinds.is_pretrained(place):
        return f"steps = {choice.steps} under [options] of policy.toml"
    return f"armlet teach RECIPE --network.head-options steps {choice.steps}"


# Predicted against measured


def _check(policy: str, students: tuple[str, ...], where: Where, out: Path, calls: int) -> str:
    path = out / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; make the plan first: armlet plan {policy} --target-ms N"
        )
    said = read_json(path, fix="make the plan again with --target-ms")
    plan = Plan.from_json(said)
    met = meet(policy, where)
    if met.fingerprint != plan.fingerprint:
        raise ValueError(
            f"{path} is about another policy than {policy} ({plan.fingerprint}, and this one is "
            f"{met.fingerprint}); give its --out, or make the plan again"
        )
    found = compared(plan, met, {place: load_actor(Path(place)) for place in students}, calls)
    kept = [{**asdict(each), "error": each.error} for each in found]
    write_atomically(path, json.dumps({**said, "checked": kept}, indent=1).encode())
    table = plan_page.checked(plan, found)
    write_atomically(out / "checked.md", table.encode())
    return f"{table}\n{path}"


def compared(plan: Plan, met: Met, students: dict[str, Policy], calls: int) -> list[Checked]:
    """The teacher and the students timed in turn, and what the plan says of each, by how fast this
    machine is now against then."""
    field: dict[str, Policy] = {"": met.policy, **students}
    times = latency(field, met.observations, calls=calls)
    now = times[""]["p50"] / plan.way(EAGER, "fp32").ms(plan.layers, plan.steps)
    found = []
    for name, student in students.items():
        runtime, precision = _runtime(student)
        ran = [sum(student.decide(seen).gates) for seen in met.observations]
        steps = plan.steps
        if isinstance(student, Backbone):
            steps = 0 if student.loop is None else student.loop.times
        layers = float(np.mean(ran))
        predicted = None
        if _is_cut_from(student, met.policy):
            way = plan.way(runtime, precision)
            extra = way.router if isinstance(student, Routed) else 0.0
            predicted = now * (way.ms(layers, steps) + extra)
        found.append(
            Checked(name, runtime, precision, layers, steps, predicted, times[name]["p50"])
        )
    return found


def _runtime(policy: Policy) -> tuple[str, str]:
    """In which it decides; what does not say so is a network of torch."""
    if isinstance(policy, Backbone):
        return EAGER, "fp32"
    acting: Any = getattr(policy, "acting", None)  # of an exported folder
    if acting is None:
        raise ValueError(
            f"--check: {policy.kind} is neither a student's folder nor an exported one"
        )
    return str(acting.runtime), str(acting.precision)


def _is_cut_from(student: Policy, teacher: Policy) -> bool:
    """Whether a student can have been made of the teacher's layers, as far as can be seen."""
    if not isinstance(student, Backbone):
        return True  # what was exported does not say what it was made of
    network: Backbone = student.inner if isinstance(student, Routed) else student
    return type(network) is type(teacher)
