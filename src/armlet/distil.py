"""distil: episodes + traces → a student. Runs the recipe's stages on the one training loop; names no recipe."""

from pathlib import Path

import numpy as np
import torch

from armlet.checkpoint import load_policy, save_policy
from armlet.data.episodes import EpisodeDataset
from armlet.data.frames import BatchMaker, load_frames, split_frames
from armlet.data.traces import TraceStore
from armlet.learner import Learner
from armlet.policies import Policy
from armlet.recipe import Recipe, to_json
from armlet.supervision import heads_file, identity, load_heads, make_heads
from armlet.training import TeacherTraces, Trainer, make_batches
from armlet.types import Batch

SAMPLE = 512  # frames that a student is cut to fit, or calibrated on


def main(recipe: Recipe) -> Path:
    """Train the recipe's student; returns its folder."""
    if recipe.student is None or not recipe.stages:
        raise ValueError(f"recipe {recipe.name!r} has no student and stages to distil")
    data = EpisodeDataset(recipe.episodes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, held_out = split_frames(load_frames(data), recipe.held_out)
    teacher = load_policy(recipe.teacher, device=device)
    batches = make_batches(teacher, train)
    torch.manual_seed(recipe.seed)
    student = recipe.student.build(teacher, _sample(batches, recipe.seed)).to(device)
    learner = _learner(recipe, student, data).to(device)
    traces = _traces(recipe, data, device)
    unseen = _sample(make_batches(teacher, held_out), recipe.seed)
    for index, stage in enumerate(recipe.stages):
        title = f"distil {recipe.name} {index + 1}/{len(recipe.stages)}"
        folder = recipe.out / f"distil-{index}"
        Trainer(learner, stage, batches, folder=folder, seed=recipe.seed + index, title=title, teacher=traces).run()
        student.calibrate(unseen)
    save_policy(student, recipe.student_folder, provenance={"recipe": to_json(recipe), "data": data.fingerprint})
    return recipe.student_folder


def _sample(batches: BatchMaker, seed: int) -> Batch:
    """Up to `SAMPLE` frames from all over."""
    rows = np.random.default_rng([seed, 2]).choice(len(batches), min(SAMPLE, len(batches)), replace=False)
    return batches.batch(np.sort(rows))


def _learner(recipe: Recipe, student: Policy, data: EpisodeDataset) -> Learner:
    """The student with the heads its objectives read; the probe's start as the teacher's."""
    wanted = {name for stage in recipe.stages for name in stage.objective.wants}
    heads = None
    if {"semantics", "layer_actions"} & wanted:
        assert recipe.probe is not None  # building the recipe has checked it
        heads = make_heads(student, recipe.probe)
        load_heads(heads, heads_file(recipe))
    facts = {name: size for name, size in data.privileged.items() if {f"privileged.{name}", f"pointed.{name}"} & wanted}
    return Learner(student, probe=heads, privileged=facts)


def _traces(recipe: Recipe, data: EpisodeDataset, device: str) -> TeacherTraces | None:
    """The teacher's answers by (episode, step), where an objective needs any."""
    needed = sorted({name for stage in recipe.stages for name in stage.objective.needs})
    if not needed:
        return None
    store = TraceStore(recipe.traces, identity(recipe, data.fingerprint))
    return lambda keys: {name: tensor.to(device).float() for name, tensor in store.read(keys.cpu(), want=needed).items()}
