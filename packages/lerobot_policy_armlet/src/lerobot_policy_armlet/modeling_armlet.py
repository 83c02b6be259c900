"""A student of armlet as a policy of LeRobot: a thin coat around `armlet.load_policy`.

Whoever drives a student keeps what it needs of an episode (`armlet.rollout.player`); here it is one
player a row of the batch, so that several environments are played side by side, each as if alone.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor, nn

from armlet.deploy.lerobot import (
    rows_in,
    save_lerobot,
    seen_of,
    states_of,
    tasks_of,
    training_batch,
)
from armlet.policies.checkpoint import (
    CONFIG,
    MANIFEST,
    TOKENIZER,
    WEIGHTS,
    load_with_fingerprint,
    read_provenance,
)
from armlet.policies.contract import Backbone
from armlet.rollout.player import Player

from .configuration_armlet import ArmletConfig

FILES = [CONFIG, WEIGHTS, TOKENIZER, MANIFEST]


class ArmletPolicy(PreTrainedPolicy):
    """`student` is armlet's own policy; it is read with `from_pretrained`, and never made anew here."""

    config_class = ArmletConfig
    name = "armlet"

    def __init__(
        self, config: ArmletConfig, student: Backbone | None = None, **kwargs: Any
    ) -> None:
        super().__init__(config)
        if student is None:
            raise ValueError(
                "a student of armlet is distilled by armlet, not made anew by LeRobot: give its "
                "folder, --policy.path=FOLDER, in place of --policy.type=armlet"
            )
        self.student = student
        self.provenance: dict[str, Any] = {}
        self.read_as = ""  # the fingerprint of the student that was read
        # What no stage of armlet trains, LeRobot does not train either.
        for name, parameter in student.named_parameters():
            if name in student.kept_weights:
                parameter.requires_grad_(False)
        self._acting = student if config.budget is None else student.at(config.budget)
        self._players: list[Player] = []

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: ArmletConfig | None = None,
        revision: str | None = None,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> Self:
        """A student from a folder, or by its name on the hub, in eval mode. Raises ValueError where a
        weight is missing, unexpected or of another shape: none is left as it was drawn."""
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            found = snapshot_download(
                str(pretrained_name_or_path),
                revision=revision,
                allow_patterns=FILES,
                force_download=force_download,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
            folder = Path(found)
        if config is None:
            config = ArmletConfig.from_pretrained(folder)
        student, fingerprint = load_with_fingerprint(folder, device=str(config.device))
        policy = cls(config, student)
        policy.read_as = fingerprint
        policy.provenance = read_provenance(folder)
        policy.to(config.device)
        policy.eval()
        return policy

    def _save_pretrained(self, save_directory: Path, **kwargs: Any) -> None:
        # LeRobot's own writing of its fields, whatever this version has.
        with tempfile.TemporaryDirectory() as scratch:
            self.config._save_pretrained(Path(scratch))
            fields = json.loads((Path(scratch) / CONFIG).read_text())
        fields["type"] = self.name
        # A config of 0.6.1 that says this is not read by 0.4.4; and where it came from is no more.
        for left_out in ("pretrained_revision", "pretrained_path"):
            fields.pop(left_out, None)
        provenance = self.provenance
        if self.read_as and not provenance.get("fine_tuned_from"):
            provenance = {**provenance, "fine_tuned_from": self.read_as}
        weights = kwargs.get("state_dict")
        if weights is not None:
            self.load_state_dict(weights)
        save_lerobot(self.student, save_directory, fields, provenance)

    def get_optim_params(self) -> Iterator[nn.Parameter]:
        return (each for each in self.student.parameters() if each.requires_grad)

    def reset(self) -> None:
        """An episode begins in every environment."""
        self._players = []

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """One action (b, a) for each environment, in the robot's own numbers. It has to be asked every
        control step; `reset` when episodes begin."""
        rows = rows_in(batch)
        if not self._players:
            self._players = [self._player() for _ in range(rows)]
        if len(self._players) != rows:
            raise ValueError(
                f"the batch is of {rows} environments, and the episodes began with "
                f"{len(self._players)}; reset the policy when their number changes"
            )
        actions = []
        for player, (images, state, task) in zip(self._players, self._seen(batch), strict=True):
            actions.append(player.act(images, state, task))
        return torch.from_numpy(np.stack(actions)).to(self._device)

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """(b, k, a): what would be decided now, in the robot's own numbers. Nothing is remembered of
        it; the action before is the one that `select_action` gave last, or zeros."""
        players = self._players or [self._player() for _ in range(rows_in(batch))]
        chunks = []
        for player, (images, state, task) in zip(players, self._seen(batch), strict=True):
            seen = player.observation(images, state, task)
            chunks.append(self._acting.decide(seen).actions)
        return torch.from_numpy(np.stack(chunks)).to(self._device)

    def forward(
        self, batch: dict[str, Any], reduction: str = "mean", **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """The student's own loss against the actions of the batch: its mean, or with `reduction`
        "none" one a sample, (b,)."""
        made = training_batch(self.student, batch)
        run = self.student.run_layers(self.student.embed(made), made)
        losses = self.student.loss(run, made)
        loss = losses.mean()
        return losses if reduction == "none" else loss, {"imitation": loss.item()}

    @property
    def _device(self) -> torch.device:
        return self.student.device

    def _player(self) -> Player:
        return Player(self._acting, execute=self.config.n_action_steps)

    def _seen(
        self, batch: dict[str, Any]
    ) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, str]]:
        """Pictures, state and words of each environment."""
        rows = rows_in(batch)
        images = seen_of(self.student, batch)
        states = states_of(self.student, batch, rows)
        tasks = tasks_of(batch, rows)
        for row in range(rows):
            shown = {camera: each[row] for camera, each in images.items()}
            yield shown, states[row], tasks[row]
