"""An exported folder as a policy: it acts wherever a policy does, and has no layers and no weights
that anybody could watch, route or train. Its runtime computes on the CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from armlet.policies.contract import Policy
from armlet.robot import exported
from armlet.robot.ensemble import Ensemble
from armlet.robot.exported import Exported, load_exported
from armlet.robot.observation import Observation
from armlet.robot.outputs import Decision
from armlet.robot.spec import RobotSpec


class ExportedPolicy(Policy):
    """Around `robot.exported.Exported`."""

    def __init__(self, acting: Exported) -> None:
        self.acting = acting

    @property
    def execute(self) -> int:  # type: ignore[override]
        return self.acting.execute

    @property
    def history(self) -> int:  # type: ignore[override]
        return self.acting.history

    @property
    def ensemble(self) -> Ensemble | None:  # type: ignore[override]
        return self.acting.ensemble

    @property
    def robot(self) -> RobotSpec:
        return self.acting.robot

    @property
    def kind(self) -> str:
        acting = self.acting
        return f"a policy exported to {acting.runtime} ({acting.precision})"

    @property
    def why_unguided(self) -> str:
        return exported.UNGUIDED

    def infer(self, observation: Observation) -> np.ndarray:
        return self.acting.infer(observation)

    def decide(self, observation: Observation) -> Decision:
        return self.acting.decide(observation)

    def decide_all(self, observations: Sequence[Observation]) -> list[Decision]:
        return [self.acting.decide(observation) for observation in observations]

    def at(self, budget: float) -> Self:
        return type(self)(self.acting.at(budget))


def load(folder: Path) -> tuple[ExportedPolicy, str]:
    """An exported folder, on one thread, and its fingerprint. Raises what `load_exported` does."""
    policy = ExportedPolicy(load_exported(folder))
    return policy, exported.fingerprint(folder)


def provenance(folder: Path) -> dict[str, Any]:
    """What it was made from and with, and what was measured before it was written."""
    said = exported.read_description(folder)
    return {name: said.get(name, {}) for name in ("policy", "made_with", "gates")}
