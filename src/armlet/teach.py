"""teach: episodes → a teacher, by behaviour cloning, for teachers we train ourselves.

The network's sizes come from the recipe; cameras, state, actions, words and statistics come from
the episodes, measured over all rows. Where simulator facts stand beside the episodes, linear heads
guess them while it learns and are thrown away.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armlet.agreement import check_facts, check_taught, remark_on_benchmark
from armlet.data.episodes import EpisodeDataset
from armlet.data.frames import load_frames
from armlet.data.text import train_tokenizer
from armlet.lineage import PROVENANCE, digest_text, is_finished
from armlet.policies.checkpoint import save_policy
from armlet.policies.contract import Body, Policy
from armlet.recipe import Recipe, at_hand, to_json
from armlet.robot.normalise import Normaliser, steady
from armlet.training.learner import Learner
from armlet.training.trainer import Trainer, make_batches, settings

STATE, ACTION = "observation.state", "action"


def main(recipe: Recipe) -> Path:
    """Train the recipe's teacher; returns its folder. One that is there and was made by this
    question stays as it is."""
    if recipe.teach is None or recipe.network is None:
        raise ValueError(
            f"recipe {recipe.name!r} has no `teach` stage and `network`; it distils a teacher that exists"
        )
    recipe = at_hand(recipe, reads=("episodes",), writes=("teacher",))
    assert recipe.teach is not None  # as before
    data, title, robot = (
        EpisodeDataset(recipe.episodes, recipe.columns),
        f"teach {recipe.name}",
        recipe.benchmark,
    )
    check_taught(
        data, data.columns()[ACTION], robot.action_spec, limit=recipe.outside_range, title=title
    )
    check_facts(data, recipe.teach.objective.wants, option="--teach.objective.facts")
    remark_on_benchmark(data, robot.state_names, robot.cameras, benchmark=robot.name, title=title)
    policy = new_policy(recipe, data)
    made_from = {
        "data": data.fingerprint,
        "network": policy.to_json(),
        "words": digest_text([policy.body.tokenizer.to_str()]),
    }
    question = made_from | {
        "stage": settings(recipe.teach),
        "seed": recipe.seed,
        "weights": recipe.weights,
    }
    if is_finished(recipe.teacher, question, fixes="give another folder with `--teacher`"):
        sys.stderr.write(f"{title}: {recipe.teacher} was taught exactly this already\n")
        return recipe.teacher
    for line in [*standing_still(recipe, data), *without_effect(recipe, data)]:
        sys.stderr.write(f"{title}: {line}\n")
    torch.manual_seed(recipe.seed)
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
        made_from=made_from,
    )
    trainer.run()
    provenance: dict[str, Any] = {
        "recipe": to_json(recipe),
        "data": data.fingerprint,
        PROVENANCE: question,
    }
    save_policy(policy, recipe.teacher, provenance=provenance, weights=recipe.weights)
    return recipe.teacher


def new_policy(recipe: Recipe, data: EpisodeDataset) -> Policy:
    """A fresh network that fits the episodes."""
    network, spec = recipe.network, recipe.benchmark.action_spec
    assert network is not None
    tokenizer = train_tokenizer(sorted(data.tasks))
    view = recipe.pictures.view(data.cameras, whose=str(data.root))
    body = Body(
        action_spec=spec,
        state=_state_normaliser(data),
        actions=Normaliser.from_statistics(
            data.measured(ACTION),
            recipe.normalise_actions,
            what=ACTION,
            dims=spec.dims,
            keep=spec.grippers,
        ),
        tokenizer=tokenizer,
        state_names=() if all(name.isdigit() for name in data.state_names) else data.state_names,
        fit=view.fit,
    )
    network = network.suited(body, data.columns()[ACTION])
    torch.manual_seed(recipe.seed)
    return network.build(body, {name: height for name, (height, _) in view.cameras.items()})


def _state_normaliser(data: EpisodeDataset) -> Normaliser:
    dims = len(data.state_names)
    if not dims:
        return Normaliser(np.zeros(0, np.float32), np.ones(0, np.float32))
    return Normaliser.from_statistics(data.measured(STATE), "mean_std", what=STATE, dims=dims)


def standing_still(recipe: Recipe, data: EpisodeDataset) -> list[str]:
    """Lines that name the dimensions that hardly moved in the data, and what is done with them;
    none where all moved."""
    spec, lines = recipe.benchmark.action_spec, []
    dims = len(data.state_names)
    state = steady(data.measured(STATE), "mean_std", what=STATE, dims=dims) if dims else {}
    action = steady(data.measured(ACTION), recipe.normalise_actions, what=ACTION, dims=spec.dims)
    for index in spec.grippers:
        action.pop(index, None)
    for what, names, found in ((STATE, data.state_names, state), (ACTION, spec.names, action)):
        if found:
            told = "; ".join(f"{names[index]} {how}" for index, how in found.items())
            lines.append(f"{what}: {told} (armlet/robot/normalise.py)")
    return lines


def without_effect(recipe: Recipe, data: EpisodeDataset) -> list[str]:
    """A line for what the network is told of cameras that the episodes do not have; none where
    there is no such thing. No error: a recipe
    may speak of its own robot's cameras, and be used for another's."""
    told = getattr(recipe.network, "strides", {})
    unknown = sorted(set(told) - set(data.cameras))
    if not unknown:
        return []
    there = ", ".join(data.cameras) or "none"
    return [
        f"network.strides of {', '.join(unknown)} has no effect: the episodes have no such camera (they have {there})"
    ]
