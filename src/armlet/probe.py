"""probe: episodes + teacher → traces, one row per (episode, step).

Fits the heads that read every layer on the frozen, unrouted teacher (ActDistill stage 1), then runs the teacher
over the whole data set once and stores what it answers. `distil` needs the store, never the teacher's own code.
"""

from pathlib import Path

import numpy as np
import torch

from armlet.checkpoint import load_policy
from armlet.data.episodes import EpisodeDataset
from armlet.data.frames import BatchMaker, load_frames
from armlet.data.traces import StoreIdentity, TraceWriter
from armlet.learner import Learner, watch
from armlet.progress import Progress
from armlet.recipe import Recipe
from armlet.supervision import heads_file, identity, load_heads, make_heads, save_heads
from armlet.training import Trainer, make_batches

ROWS = 128  # a forward pass


def main(recipe: Recipe) -> Path:
    """Fit the heads, store the traces; returns the store's folder. Resumes where an earlier run was killed."""
    data = EpisodeDataset(recipe.episodes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher = load_policy(recipe.teacher, device=device)
    learner = Learner(teacher)
    batches = make_batches(teacher, load_frames(data))
    if recipe.probe:
        torch.manual_seed(recipe.seed)
        learner.probe = make_heads(teacher, recipe.probe).to(device)
        _fit(recipe, learner, batches)
    _store(recipe, learner, batches, identity(recipe, data.fingerprint))
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


def _store(recipe: Recipe, learner: Learner, batches: BatchMaker, store: StoreIdentity) -> None:
    learner.eval()
    want = ["actions", "condition", *(["semantics", "layer_actions"] if learner.probe else [])]
    sample = watch(learner, batches.batch(np.arange(2)), want)
    columns = {name: (tuple(tensor.shape[1:]), "float16") for name, tensor in sample.items()}
    with TraceWriter(recipe.traces, store, columns) as writer:
        done = {tuple(key) for key in writer.done().tolist()}
        keys = batches.keys(np.arange(len(batches))).tolist()
        rows = np.array([row for row, key in enumerate(keys) if tuple(key) not in done], np.int64)
        progress = Progress(f"traces {recipe.name}", total=len(batches), start=len(done), unit="row")
        for start in range(0, len(rows), ROWS):
            batch = batches.batch(rows[start : start + ROWS])
            assert batch.keys is not None
            writer.append(batch.keys, watch(learner, batch, want))
            progress.advance(len(batch))
        progress.close()
