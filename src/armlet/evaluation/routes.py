"""Controls of a dynamic route: the student beside itself with routes that no longer follow what it
sees (`--evaluation.routes`).

    static           every decision takes the commonest route
    static_per_task  the commonest of its task
    searched         of all sets of as many layers as the commonest route has, the one with which
                     its actions are nearest to what it answers as it is (policies/layer_search.py)
    shuffled         each decision takes the route that its router chose at another moment: of the
                     decisions of its own run in the same episodes, in which each route stands as
                     often as before

The first three are chosen in episodes from `calibration.seed` on, which no report is about;
`shuffled` chooses nothing. An episode that takes more decisions than the student's own did goes
through its routes again.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from armlet.benchmarks import Benchmark, Task
from armlet.evaluation.episodes import Row, conditions, run_episodes
from armlet.evaluation.field import Field
from armlet.lineage import Question
from armlet.measuring import EAGER, Control
from armlet.policies.layer_search import search
from armlet.policies.routed import Routed
from armlet.recipe import Recipe
from armlet.robot.observation import Observation
from armlet.rollout.loop import plan, run_task
from armlet.rollout.pool import THREADS, Contender, threads
from armlet.rollout.routes import Place, Route, Routes, place_of
from armlet.rollout.together import Together, once

MOMENTS = 512  # by which sets of layers are compared, at most


def with_routes(
    recipe: Recipe,
    field: Field,
    benchmark: Benchmark,
    planned: Sequence[tuple[Task, int]],
    out: Path,
    together: Together | None = None,
) -> Field:
    """The field and, after it, every policy with a router once more under each of the controls that
    are asked for. `planned`: the report's episodes. Raises ValueError where nobody has a router."""
    kinds = recipe.evaluation.routes
    if not kinds:
        return field
    students = _routed(field)
    if not students:
        raise ValueError(
            f"--evaluation.routes {' '.join(kinds)}: these are of students with a router, and none "
            f"of {', '.join(field.contenders)} has one (a router that always said the same was left "
            "out when it was distilled)"
        )
    contenders = dict(field.contenders)
    policies = dict(field.policies)
    made = dict(field.made)
    for name, student in students.items():
        control = _Control(
            recipe, benchmark, planned, out, name, field.contenders[name], student, together
        )
        for kind in kinds:
            routes = control.routes(kind)
            label = f"{name} {kind.replace('_', ' ')}"
            contenders[label] = replace(field.contenders[name], routes=routes)
            policies[label] = routes.fixed(student)
            made[label] = field.made[name]
    return replace(field, contenders=contenders, policies=policies, made=made)


def _routed(field: Field) -> dict[str, Routed]:
    """Those with a router, as they are: at their own number of actions, without a guard."""
    found = {}
    for name, policy in field.policies.items():
        contender = field.contenders[name]
        plain = contender == Contender(contender.folder, contender.budget)
        if plain and contender.runtime == EAGER and isinstance(policy, Routed):
            found[name] = policy
    return found


@dataclass(frozen=True)
class _Control:
    """One student, whose routes are looked for."""

    recipe: Recipe
    benchmark: Benchmark
    planned: Sequence[tuple[Task, int]]
    out: Path
    name: str
    contender: Contender
    student: Routed
    together: Together | None

    def routes(self, kind: Control) -> Routes:
        if kind == "shuffled":
            own = self._run(self.planned, self.out)
            return Routes(kind, episodes=shuffled(own, self.planned[0][1]))
        before = self._run(self._calibrating(), self.out / "routes")
        if kind == "static_per_task":
            return Routes(kind, episodes=per_task(before, self.planned))
        route = commonest(before)
        if kind == "searched":
            route = self._found(route)
        return Routes(kind, always=route)

    def _calibrating(self) -> list[tuple[Task, int]]:
        """Episodes that no report is about, of each split."""
        setting = self.recipe.evaluation
        found = []
        for split in setting.splits:
            seed = self.recipe.calibration.seed
            found += plan(self.benchmark, split, setting.route_episodes, seed)
        return found

    def _run(self, episodes: Sequence[tuple[Task, int]], out: Path) -> list[Row]:
        rows = run_episodes(
            {self.name: self.contender},
            self.benchmark,
            episodes,
            out,
            title=f"routes of {self.name}",
            workers=self.recipe.evaluation.workers,
            device=self.recipe.acting_device,
            together=self.together,
        )
        return rows[self.name]

    def _found(self, route: Route) -> Route:
        """By one of all processes: where machines compute otherwise, they must not disagree."""

        def question() -> Question:
            asked = conditions(self.contender, self.benchmark, self.recipe.acting_device)
            return {"made_from": asked, "route": route, "seed": self.recipe.calibration.seed}

        make = lambda: self._searched(route).encode()  # noqa: E731
        return once(self.together, "searched", question, make).decode()

    def _searched(self, route: Route) -> Route:
        seen: list[Observation] = []
        with threads(THREADS):
            for task, seed in self._calibrating():
                run_task(self.student, self.benchmark, task, seed, on_look=seen.append)
                if len(seen) >= MOMENTS:
                    break
            batch = self.student.prepare(seen[:MOMENTS])
            with torch.inference_mode():
                batch = replace(batch, taught=self.student(batch))
            found = search(
                self.student.inner, batch, route.count("1"), title=f"layers of {self.name}"
            )
        kept = found.best[0].layers
        return "".join(str(int(index in kept)) for index in range(len(route)))


def commonest(rows: Sequence[Row]) -> Route:
    """Of all decisions; of equally common routes the first in the order of their texts."""
    counted = Counter(route for row in rows for route in row["gates"])
    return min(counted, key=lambda each: (-counted[each], each))


def per_task(
    rows: Sequence[Row], planned: Sequence[tuple[Task, int]]
) -> tuple[tuple[Place, tuple[Route, ...]], ...]:
    """The commonest route of each planned episode's task, as `rows` of other episodes show it.
    Raises ValueError naming a task that none of these is of."""
    tasks: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        tasks[row["split"], row["task"]].append(row)
    found = []
    for task, seed in planned:
        if (task.split, task.name) not in tasks:
            raise ValueError(
                f"no episode of {task.name!r}, split {task.split!r}, shows its commonest route; give "
                "a larger --evaluation.route-episodes"
            )
        found.append((place_of(task, seed), (commonest(tasks[task.split, task.name]),)))
    return tuple(found)


def shuffled(rows: Sequence[Row], seed: int) -> tuple[tuple[Place, tuple[Route, ...]], ...]:
    """The routes of all decisions of each split, dealt out anew: each decision has that of another,
    and each route is there as often as before. `rows`: a student's own episodes."""
    places: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        places[row["split"]].append(row)
    found = []
    for number, own in enumerate(places.values()):
        routes = [route for row in own for route in row["gates"]]
        dealt = _dealt(routes, np.random.default_rng([seed, number]))
        for row in own:
            count = len(row["gates"])
            place = row["split"], row["task"], row["seed"]
            found.append((place, tuple(dealt[:count])))
            del dealt[:count]
    return tuple(found)


def _dealt(routes: Sequence[Route], rng: np.random.Generator) -> list[Route]:
    """Each place has what stood at another: along one ring through all of them, in random order, so
    that none keeps its own, as some do in a shuffle that is only random."""
    order = rng.permutation(len(routes))
    dealt = list(routes)
    for place, donor in zip(order, np.roll(order, 1), strict=True):
        dealt[place] = routes[donor]
    return dealt
