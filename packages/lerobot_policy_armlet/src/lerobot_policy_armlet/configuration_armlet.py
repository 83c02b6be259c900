"""The config of a student in LeRobot: LeRobot's fields, and beneath them what armlet says of the
network, which nobody sets by hand. Written by `armlet.deploy.lerobot`.
"""

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.optim.optimizers import AdamWConfig

from armlet.deploy.lerobot import LEFT_ALONE, TYPE, action_steps


def _left_alone() -> dict[str, NormalizationMode]:
    return {kind: NormalizationMode(mode) for kind, mode in LEFT_ALONE.items()}


@PreTrainedConfig.register_subclass(TYPE)
@dataclass
class ArmletConfig(PreTrainedConfig):
    """`chunk_size`: actions that are decided at a time; `n_action_steps`: of these, how many are
    carried out before the student looks again; `budget`: the share of the backbone that a decision
    may cost, for routed students (None: as it was distilled)."""

    chunk_size: int = 1
    n_action_steps: int = 1
    budget: float | None = None
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=_left_alone)
    # For lerobot-train.
    optimizer_lr: float = 1e-4
    optimizer_weight_decay: float = 0.01
    optimizer_grad_clip_norm: float = 1.0
    # What armlet reads of the same file: see armlet/policies/checkpoint.py.
    armlet: int = 1
    fingerprint: str = ""
    tokenizer: str = ""
    policy: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(
                f"n_action_steps is {self.n_action_steps}, and this student decides "
                f"{self.chunk_size} actions at a time: expected 1 to {self.chunk_size}"
            )

    def validate_features(self) -> None:
        """Nothing: the features were written from the student itself, which names a camera or a state
        that is missing when it is asked."""

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(
            lr=self.optimizer_lr,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> None:
        return None

    @property
    def observation_delta_indices(self) -> list[int] | None:
        return None if self.n_obs_steps == 1 else list(range(1 - self.n_obs_steps, 1))

    @property
    def action_delta_indices(self) -> list[int]:
        return action_steps(self.n_obs_steps, self.chunk_size)

    @property
    def reward_delta_indices(self) -> None:
        return None
