"""teach: episodes → a teacher, by behaviour cloning, for teachers we train ourselves.

The network's sizes come from the recipe; cameras, state, actions, words and statistics come from the episodes.
Where simulator facts stand beside the episodes, linear heads guess them while it learns and are thrown away.
"""

from pathlib import Path

import numpy as np
import torch

from armlet.checkpoint import save_policy
from armlet.data.episodes import EpisodeDataset
from armlet.data.frames import load_frames
from armlet.data.normalise import Normaliser
from armlet.data.text import train_tokenizer
from armlet.learner import Learner
from armlet.policies import Body, Policy
from armlet.recipe import Recipe, to_json
from armlet.training import Trainer, make_batches


def main(recipe: Recipe) -> Path:
    """Train the recipe's teacher; returns its folder."""
    if recipe.teach is None or recipe.network is None:
        raise ValueError(f"recipe {recipe.name!r} has no `teach` stage and `network`; it distils a teacher that exists")
    data = EpisodeDataset(recipe.episodes, recipe.columns)
    policy = new_policy(recipe, data)
    torch.manual_seed(recipe.seed)
    learner = Learner(policy, privileged=data.privileged)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    learner.to(device)
    batches = make_batches(policy, load_frames(data))
    trainer = Trainer(learner, recipe.teach, batches, folder=recipe.out / "teach", seed=recipe.seed, title=f"teach {recipe.name}")
    trainer.run()
    provenance = {"recipe": to_json(recipe), "data": data.fingerprint}
    save_policy(policy, recipe.teacher, provenance=provenance, weights=recipe.weights)
    return recipe.teacher


def new_policy(recipe: Recipe, data: EpisodeDataset) -> Policy:
    """A fresh network that fits the episodes."""
    network, benchmark = recipe.network, recipe.benchmark
    assert network is not None
    spec = benchmark.action_spec
    tokenizer = train_tokenizer(sorted(data.tasks))
    body = Body(
        action_spec=spec,
        state=_state_normaliser(data),
        actions=Normaliser.from_statistics(
            data.measured("action"),
            recipe.normalise_actions,
            what="action",
            dims=spec.dims,
            keep=() if spec.gripper is None else (spec.gripper,),
        ),
        tokenizer=tokenizer,
    )
    oblong = {name: size for name, size in data.cameras.items() if size[0] != size[1]}
    if oblong:
        raise ValueError(f"policies taught here take square images, and the episodes have {oblong}; crop or pad them first")
    torch.manual_seed(recipe.seed)
    return network.build(body, {name: height for name, (height, _) in data.cameras.items()})


def _state_normaliser(data: EpisodeDataset) -> Normaliser:
    dims = len(data.state_names)
    if not dims:
        return Normaliser(np.zeros(0, np.float32), np.ones(0, np.float32))
    return Normaliser.from_statistics(data.measured("observation.state"), "mean_std", what="observation.state", dims=dims)
