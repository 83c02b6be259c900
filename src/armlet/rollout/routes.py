"""Routes that a routed student takes in the place of its router's: what a route that changes with
what is seen is worth, is what is lost without that.

A route is a text of l characters, 1: the layer runs, as `Episode.gates` has them. Knows routed
policies; chooses no route (evaluation.routes does).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from armlet.benchmarks import Task
from armlet.measuring import Control
from armlet.policies.contract import Policy
from armlet.policies.routed import Routed
from armlet.robot.observation import Observation
from armlet.robot.outputs import Decision
from armlet.robot.spec import RobotSpec

Route = str
Place = tuple[str, str, int]  # an episode: split, task, seed


def place_of(task: Task, seed: int) -> Place:
    """Of the episode of a task and a seed."""
    return task.split, task.name, seed


@dataclass(frozen=True)
class Routes:
    """What a routed student is told to run. `kind`: how they were chosen. `always`: the route of
    every decision; None: of each episode those in `episodes`, one a decision, over again from the
    first where it takes more."""

    kind: Control
    always: Route | None = None
    episodes: tuple[tuple[Place, tuple[Route, ...]], ...] = ()

    def told(self, policy: Policy, task: Task, seed: int) -> Policy:
        """The policy as it acts in the episode of a task and a seed. Raises ValueError where it has
        no router, or nothing is said of that episode."""
        if self.always is not None:
            return self.fixed(policy)
        wanted = place_of(task, seed)
        for place, routes in self.episodes:
            if place == wanted:
                return Guided(_routed(policy), routes)
        raise ValueError(
            f"no routes are known of {task.name!r}, seed {seed}, split {task.split!r}: they are "
            "those of the episodes that were planned"
        )

    def fixed(self, policy: Policy) -> Policy:
        """The policy with one route for all decisions, where it has one."""
        return policy if self.always is None else _routed(policy).along(self.always)


class Guided(Policy):
    """A routed student whose decisions take the routes they are given, one after the other."""

    def __init__(self, student: Routed, routes: Sequence[Route]) -> None:
        self.execute = student.execute
        self.history = student.history
        self.ensemble = student.ensemble
        self._student = student
        self._routes = routes
        self._decided = 0

    @property
    def robot(self) -> RobotSpec:
        return self._student.robot

    def reset(self) -> None:
        self._student.reset()
        self._decided = 0

    def infer(self, observation: Observation) -> np.ndarray:
        return self.decide(observation).actions

    def decide(self, observation: Observation) -> Decision:
        route = self._routes[self._decided % len(self._routes)]
        self._decided += 1
        return self._student.along(route).decide(observation)


def _routed(policy: Policy) -> Routed:
    if not isinstance(policy, Routed):
        raise ValueError(f"{policy.kind} has no router, so no route can be given to it")
    return policy
