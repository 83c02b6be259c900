"""probe: episodes + teacher → traces, one row per (episode, step).

Fits the heads that read every layer on the frozen, unrouted teacher (ActDistill stage 1), then runs the teacher
over the whole data set once and stores what it answers. `distil` needs the store, never the teacher's own code.
An annotator, a teacher that answers in words, is asked last; its labels are stored beside the traces.
"""

from pathlib import Path

import torch

from armlet.checkpoint import load_policy
from armlet.data.episodes import EpisodeDataset
from armlet.data.frames import BatchMaker, load_frames
from armlet.learner import Learner
from armlet.recipe import Recipe
from armlet.supervision import annotate, heads_file, identity, load_heads, make_heads, save_heads, store_traces
from armlet.training import Trainer, make_batches


def main(recipe: Recipe) -> Path:
    """Fit the heads, store the traces; returns the store's folder. Resumes where an earlier run was killed."""
    data = EpisodeDataset(recipe.episodes, recipe.columns)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher = load_policy(recipe.teacher, device=device)
    learner = Learner(teacher)
    batches = make_batches(teacher, load_frames(data))
    if recipe.probe:
        torch.manual_seed(recipe.seed)
        learner.probe = make_heads(teacher, recipe.probe).to(device)
        _fit(recipe, learner, batches)
    store = identity(recipe, data.fingerprint)
    store_traces(recipe, recipe.traces, learner, batches, store, title=f"traces {recipe.name}")
    annotate(recipe, data, recipe.labels)
    return recipe.traces


def _fit(recipe: Recipe, learner: Learner, batches: BatchMaker) -> None:
    assert recipe.probe is not None and learner.probe is not None
    path = heads_file(recipe)
    if path.exists():
        load_heads(learner.probe, path)
        return
    title = f"probe {recipe.name}"
    Trainer(learner, recipe.probe.stage, batches, folder=path.parent, seed=recipe.seed, title=title).run()
    save_heads(learner.probe, path)
