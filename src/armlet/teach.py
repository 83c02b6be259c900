"""teach: episodes → a teacher, by behaviour cloning, for teachers we train ourselves.

The network's sizes come from the recipe; cameras, state, actions, words and statistics come from
the episodes, measured over all rows. Where there is no benchmark, the held-out episodes are not
trained on. Where simulator facts stand beside the episodes, linear heads guess them while it learns
and are thrown away.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armlet.benchmarks import benchmark_robot, native_robot
from armlet.data.door import check_facts, check_taught, looks_like, robot_of
from armlet.data.episodes import EpisodeDataset
from armlet.data.frames import load_frames
from armlet.data.splits import parts, rows_of
from armlet.lineage import PROVENANCE, digest_text, is_finished
from armlet.logs import RunLog
from armlet.policies.checkpoint import save_policy
from armlet.policies.contract import Backbone
from armlet.recipe import Recipe, at_hand, settings, to_json
from armlet.robot.agree import differences, listed
from armlet.robot.description import Described
from armlet.robot.normalise import steady
from armlet.robot.spec import ActionSpec, RobotSpec
from armlet.training.body import ACTION, STATE, body_of
from armlet.training.distributed import log_of, world
from armlet.training.learner import Learner
from armlet.training.trainer import Trainer, make_batches

# Normalised actions should be about -1 … 1. A remark is made where one reaches LARGE, and where
# 98 % of a dimension's lie within SMALL.
LARGE = 10.0
SMALL = 0.02


def main(recipe: Recipe) -> Path:
    """Train the recipe's teacher; returns its folder. One that is there and was made by this
    question stays as it is."""
    if recipe.teach is None or recipe.network is None:
        raise ValueError(
            f"recipe {recipe.name!r} has no `teach` stage and `network`; "
            "it distils a teacher that exists"
        )
    recipe = at_hand(recipe, reads=("episodes",), writes=("teacher",))
    assert recipe.teach is not None  # as before
    log = RunLog(log_of(recipe.log), recipe.out, recipe.name, to_json(recipe))
    title = f"teach {recipe.name}"
    data = EpisodeDataset(recipe.episodes, recipe.columns)
    check_facts(data, recipe.teach.objective.wants, option="--teach.objective.facts")
    policy = new_policy(recipe, data)
    check_taught(data, policy.robot, limit=recipe.outside_range, title=title)
    # Of the stage: what it cannot be continued without. The policy's question has more, and is
    # compared before anything is trained (lineage.py).
    made_from = {
        "data": data.fingerprint,
        "network": policy.to_json(),
        "words": digest_text([policy.body.tokenizer.to_str()]),
    }
    question: dict[str, Any] = made_from | {
        "stage": settings(recipe.teach),
        "seed": recipe.seed,
        "weights": recipe.weights,
    }
    rows = None  # all
    if recipe.benchmark is None:
        # There is no world to test it in: it is compared with episodes that it must not know.
        rows = rows_of(data.starts, parts(data, recipe.split, recipe.held_out).train)
        question |= {"split": recipe.split, "held_out": recipe.held_out}
    if is_finished(recipe.teacher, question, fixes="give another folder with `--teacher`"):
        sys.stderr.write(f"{title}: {recipe.teacher} was taught exactly this already\n")
        return recipe.teacher
    for line in _remarks(recipe, data, policy):
        sys.stderr.write(f"{title}: {line}\n")
    torch.manual_seed(recipe.seed)  # of the heads that guess simulator facts
    learner = Learner(policy, privileged=data.privileged)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    learner.to(device)
    trainer = Trainer(
        learner,
        recipe.teach,
        make_batches(policy, load_frames(data, policy.view, recipe.pictures)),
        folder=recipe.out / "teach",
        seed=recipe.seed,
        title=title,
        rows=rows,
        made_from=made_from,
        log=log,
    )
    with log:
        trainer.run()
    provenance: dict[str, Any] = {
        "recipe": to_json(recipe),
        "data": data.fingerprint,
        PROVENANCE: question,
    }
    if world().first:
        save_policy(policy, recipe.teacher, provenance=provenance, weights=recipe.weights)
    return recipe.teacher


def new_policy(recipe: Recipe, data: EpisodeDataset) -> Backbone:
    """A fresh network for the robot of the episodes, normalised by their statistics."""
    network = recipe.network
    assert network is not None
    robot = robot_of(data, recipe.robot, native=_completing(recipe, data))
    view = recipe.pictures.view(data.cameras, whose=str(data.root))
    body = body_of(recipe, data, robot.action, robot.observation.state_names)
    network = network.suited(body, data.columns()[ACTION])
    sizes = {}
    for name, (height, _) in view.cameras.items():
        sizes[name] = height  # a view is square
    # Right before the weights are drawn, whatever else has drawn numbers.
    torch.manual_seed(recipe.seed)
    return network.build(body, sizes)


def _completing(recipe: Recipe, data: EpisodeDataset) -> RobotSpec | None:
    """The benchmark's robot, where it says what the episodes leave unsaid: they are its own, or
    nobody described them and nothing in them speaks against it."""
    if recipe.benchmark is None:
        return None
    native = native_robot(recipe.benchmark, data.robot_type)
    # The episodes are the benchmark's own, or somebody has described them: nothing is assumed.
    if native is not None or recipe.robot.with_file(data.root) != Described():
        return native
    world = benchmark_robot(recipe.benchmark)
    if not looks_like(data, world, limit=recipe.outside_range):
        return None
    spec = world.action
    sys.stderr.write(
        f"teach {recipe.name}: nobody says what the actions of {data.root} mean; they are taken to "
        f"be those of benchmark {recipe.benchmark.name!r} ({spec.mode}, {spec.control_hz:g} Hz), "
        "which nothing in them speaks against; say otherwise with --robot.mode and the like\n"
    )
    # Its actions, and not its state: what the state's numbers are, the episodes say.
    return RobotSpec(spec, replace(world.observation, state_names=()))


def _remarks(recipe: Recipe, data: EpisodeDataset, policy: Backbone) -> list[str]:
    """Lines on what was asked for and is of no use, or not as it should be; none where all is
    well."""
    lines = [
        *standing_still(recipe, data, policy.robot.action),
        *off_scale(recipe, data, policy),
        *without_effect(recipe, data),
        *too_long(data, policy),
    ]
    if recipe.benchmark is not None:
        found = differences(
            policy.robot, benchmark_robot(recipe.benchmark), whose=("it", "the world")
        )
        # A remark and no error: to be taught, a policy needs no world.
        if found:
            lines.append(
                f"what is taught here cannot act in benchmark {recipe.benchmark.name!r}: "
                f"{listed(found)}"
            )
    return lines


def standing_still(recipe: Recipe, data: EpisodeDataset, spec: ActionSpec) -> list[str]:
    """Lines that name the dimensions that hardly moved in the data, and what is done with them;
    none where all moved."""
    lines = []
    dims = len(data.state_names)
    state = steady(data.measured(STATE), "mean_std", what=STATE, dims=dims) if dims else {}
    action = steady(data.measured(ACTION), recipe.normalise_actions, what=ACTION, dims=spec.dims)
    # A gripper stands still most of the time: that is no fault of the data.
    for index in spec.grippers:
        action.pop(index, None)
    for what, names, found in ((STATE, data.state_names, state), (ACTION, spec.names, action)):
        if found:
            told = "; ".join(f"{names[index]} {how}" for index, how in found.items())
            lines.append(f"{what}: {told} (armlet/robot/normalise.py)")
    return lines


def off_scale(recipe: Recipe, data: EpisodeDataset, policy: Backbone) -> list[str]:
    """A line where a network would be shown actions far from -1 … 1: of a large dimension it learns
    little else, and of a tiny one nothing."""
    measured = data.measured(ACTION)
    apply = policy.body.actions.apply
    ends = np.array([measured["min"], measured["max"]], np.float64)  # (2, a)
    quantiles = np.array([measured["q01"], measured["q99"]], np.float64)  # (2, a)
    size = np.abs(apply(ends)).max(0)  # (a,)
    # By quantiles and not by the ends: one outlier would hide that nothing else moves.
    spread = np.ptp(apply(quantiles), axis=0)  # (a,)
    moves = ends[0] < ends[1]
    names = policy.body.action_spec.names
    large = [names[index] for index in np.flatnonzero(size > LARGE)]
    small = [names[index] for index in np.flatnonzero(moves & (spread < SMALL))]
    lines = []
    mode = recipe.normalise_actions
    fix = "min_max" if mode == "identity" else "quantiles, or repair the rows (armlet inspect)"
    if large:
        most = names[int(size.argmax())]
        lines.append(
            f"action: the network is shown {', '.join(large)} far outside -1 … 1 ({most} up to "
            f"{size.max():.3g}) with --normalise-actions {mode}; choose {fix}"
        )
    if small:
        lines.append(
            f"action: the network is shown next to no motion of {', '.join(small)} (98 % of the "
            f"frames within {SMALL:g}) with --normalise-actions {mode}; choose {fix}"
        )
    return lines


def without_effect(recipe: Recipe, data: EpisodeDataset) -> list[str]:
    """A line for what the network is told of cameras that the episodes do not have; none where
    there is no such thing. No error: a recipe may speak of its own robot's cameras, and be used for
    another's."""
    # Not every network has strides by camera.
    told = getattr(recipe.network, "strides", {})
    unknown = sorted(set(told) - set(data.cameras))
    if not unknown:
        return []
    there = ", ".join(data.cameras) or "none"
    return [
        f"network.strides of {', '.join(unknown)} has no effect: the episodes have no such camera "
        f"(they have {there})"
    ]


def too_long(data: EpisodeDataset, policy: Backbone) -> list[str]:
    """A line where a chunk is longer than every episode: nothing shows what its last actions are to
    be."""
    longest = int(np.diff(data.starts).max())
    if policy.chunk <= longest:
        return []
    return [
        f"a chunk has {policy.chunk} actions, and the longest episode {longest} frames: the last "
        f"{policy.chunk - longest} are never shown what to be; give a smaller `chunk` "
        "(`--network.chunk-seconds`)"
    ]
