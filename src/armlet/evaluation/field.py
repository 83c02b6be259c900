"""Who is compared: policies loaded where they act, with what each says of how it was made, and the
same policies in further runtimes. Runs nothing but the episodes whose moments exports are compared
at."""

import importlib.metadata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from armlet.recipe import Evaluation, Recipe
from armlet.robot.exported import is_exported, read_description
from armlet.robot.observation import Observation
from armlet.rollout.pool import Contender


@dataclass(frozen=True)
class Field:
    """Who is compared, by name; the teacher first."""

    contenders: Mapping[str, Contender]  # where each is on disk, and how it is run
    policies: Mapping[str, Policy]  # the same and `unplayed`, loaded where policies act
    made: Mapping[str, Provenance]  # what each says of how it was made
    exported_from: Mapping[str, str]  # of what was exported: its name as it is run in eager
    refused: tuple[Refused, ...] = ()  # what was asked for and could not be exported
    # Run only as what they were exported to: their layers and weights are counted, no more.
    unplayed: Mapping[str, Contender] = field(default_factory=dict)

    @property
    def everyone(self) -> dict[str, Contender]:
        """Who is run, and behind them who is run only as what they were exported to."""
        return {**self.contenders, **self.unplayed}

    @property
    def played(self) -> dict[str, Policy]:
        """The policies of `contenders`, in their order."""
        return {name: self.policies[name] for name in self.contenders}

    def whose(self, name: str) -> str:
        """The policy that is run under this name: `teacher` for `teacher execute 4 onnx`."""
        everyone = self.everyone
        eager = everyone[self.exported_from.get(name, name)]
        for other, contender in everyone.items():
            if contender.folder == eager.folder:
                return other
        raise AssertionError(f"{name} is in no folder of this field")

    def network(self, name: str) -> str:
        """The policy in eager that runs the same layers of the same weights, how often it looks and
        in which runtime aside: `x at 0.5` for `x at 0.5 execute 4 onnx`."""
        everyone = self.everyone
        eager = everyone[self.exported_from.get(name, name)]
        for other, contender in everyone.items():
            same = contender.budget == eager.budget and contender.routes == eager.routes
            if contender.folder == eager.folder and same:
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
    beside eager. `frames`: the moments at which they are compared, `frames_from` says whose. Where
    eager is not asked for, whoever was exported is not run in it; the teacher is in any case."""
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
    unplayed = _unplayed(field.contenders, set(exported_from.values()), setting)
    contenders = {}
    for name, contender in {**field.contenders, **found}.items():
        if name not in unplayed:
            contenders[name] = contender
    return Field(contenders, policies, made, exported_from, refused, unplayed)


def _unplayed(
    contenders: Mapping[str, Contender], exported: Collection[str], setting: Evaluation
) -> dict[str, Contender]:
    """Who is not run in eager: of all but the teacher those that were `exported`, where eager is
    not asked for. Whoever could not be exported is run as it is."""
    if EAGER in setting.runtimes:
        return {}
    found = {}
    for name, contender in contenders.items():
        if name in exported and contender.folder != contenders["teacher"].folder:
            found[name] = contender
    return found


def _versions() -> dict[str, str]:
    """Of what graphs are made with, as far as it is installed."""
    found = {}
    for name in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # whoever exports says that it is missing, where it is needed
    return found
