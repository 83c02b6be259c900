"""Who is compared: policies loaded where they act, with what each says of how it was made, and the
same policies in further runtimes. Runs nothing but the episodes whose moments exports are compared
at."""

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from armlet import source
from armlet.evaluation.calibration import longest_rows
from armlet.evaluation.provenance import Provenance
from armlet.evaluation.runtimes import (
    Export,
    Exporting,
    Refused,
    exported_contenders,
)
from armlet.evaluation.settings import contenders
from armlet.measuring import EAGER, PARTS, SERVER
from armlet.policies.acting import Known, actor_provenance, behind_socket
from armlet.policies.contract import Backbone, Policy
from armlet.policies.precisions import NAMES, most_of
from armlet.policies.remote.policy import SocketPolicy
from armlet.recipe import Recipe
from armlet.robot.exported import is_exported, read_description
from armlet.robot.observation import Observation
from armlet.rollout.pool import Contender


@dataclass(frozen=True)
class Field:
    """Who is compared, by name; the teacher first."""

    contenders: Mapping[str, Contender]  # where each is on disk, and how it is run
    policies: Mapping[str, Policy]  # the same, loaded where policies act
    made: Mapping[str, Provenance]  # what each says of how it was made
    exported_from: Mapping[str, str]  # of what was exported: its name as it is run in eager
    refused: tuple[Refused, ...] = ()  # what was asked for and could not be exported

    def whose(self, name: str) -> str:
        """The policy that is run under this name: `teacher` for `teacher execute 4 onnx`."""
        eager = self.contenders[self.exported_from.get(name, name)]
        for other, contender in self.contenders.items():
            if contender.folder == eager.folder:
                return other
        raise AssertionError(f"{name} is in no folder of this field")

    def runtime(self, name: str) -> tuple[str, str | None]:
        """What carries its network out, and in which precision (None: nobody knows)."""
        contender = self.contenders[name]
        if contender.runtime != EAGER:
            return PARTS[contender.runtime]
        if is_exported(contender.folder):
            said = read_description(contender.folder)
            return said["runtime"], said["precision"]
        policy = self.policies[name]
        if isinstance(policy, SocketPolicy):
            return SERVER, None
        if not isinstance(policy, Backbone):
            return EAGER, None
        return EAGER, NAMES.get(most_of(policy))


def load(recipe: Recipe, known: Known) -> Field:
    """The contenders, where policies act; `known`: see `load_policy`."""
    found = contenders(recipe)
    for name, contender in found.items():
        if behind_socket(contender.folder) is not None:
            found[name] = replace(contender, robot=known())
    found |= longest_rows(recipe, found)
    policies = {}
    made = {}
    for name, contender in found.items():
        policies[name] = contender.load(recipe.acting_device, known)
        made[name] = actor_provenance(contender.folder)
    return Field(found, policies, made, {})


def in_runtimes(
    recipe: Recipe,
    field: Field,
    export: Export,
    frames: Callable[[], Sequence[Observation]],
    frames_from: Mapping[str, Any],
) -> Field:
    """The same policies and, after them, every one in each of the runtimes that are asked for
    beside eager. `frames`: the moments at which they are compared, `frames_from` says whose."""
    how = Exporting(
        export=export,
        out=recipe.out / "evaluation" / "exported",
        frames=frames,
        made_with={
            "frames": dict(frames_from),
            "armlet": source.identity(),
            "torch": torch.__version__,
            "libraries": _versions(),
        },
        title=f"export {recipe.name}",
    )
    setting = recipe.evaluation
    found, refused = exported_contenders(field.contenders, setting.runtimes, how)
    if setting.teacher_runtimes:
        teacher = {}
        for name, contender in field.contenders.items():
            if contender.folder == field.contenders["teacher"].folder:
                teacher[name] = contender
        more, also = exported_contenders(teacher, setting.teacher_runtimes, how)
        found |= more
        refused += also
    policies = dict(field.policies)
    made = dict(field.made)
    exported_from = {}
    for name, contender in found.items():
        policies[name] = contender.load(recipe.acting_device)
        exported_from[name] = name.removesuffix(f" {contender.runtime}")
        # An exported folder says of what it was exported; how that was made, its origin says.
        made[name] = field.made[exported_from[name]]
    return Field({**field.contenders, **found}, policies, made, exported_from, refused)


def _versions() -> dict[str, str]:
    """Of what graphs are made with, as far as it is installed."""
    found = {}
    for name in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # whoever exports says that it is missing, where it is needed
    return found
