"""distil: episodes + traces → a student. Runs the recipe's stages on the one training loop; names no recipe."""

from pathlib import Path

import torch

from armlet.checkpoint import load_policy, save_policy
from armlet.data.episodes import EpisodeDataset
from armlet.data.frames import load_frames
from armlet.data.traces import TraceStore
from armlet.learner import Learner
from armlet.policies import Policy
from armlet.recipe import Recipe, to_json
from armlet.supervision import heads_file, identity, load_heads, make_heads
from armlet.training import TeacherTraces, Trainer, make_batches


def main(recipe: Recipe) -> Path:
    """Train the recipe's student; returns its folder."""
    if recipe.student is None or not recipe.stages:
        raise ValueError(f"recipe {recipe.name!r} has no student and stages to distil")
    data = EpisodeDataset(recipe.episodes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(recipe.seed)
    student = recipe.student.build(load_policy(recipe.teacher)).to(device)
    learner = _learner(recipe, student).to(device)
    batches = make_batches(student, load_frames(data))
    traces = _traces(recipe, data, device)
    for index, stage in enumerate(recipe.stages):
        title = f"distil {recipe.name} {index + 1}/{len(recipe.stages)}"
        folder = recipe.out / f"distil-{index}"
        Trainer(learner, stage, batches, folder=folder, seed=recipe.seed + index, title=title, teacher=traces).run()
    save_policy(student, recipe.student_folder, provenance={"recipe": to_json(recipe), "data": data.fingerprint})
    return recipe.student_folder


def _learner(recipe: Recipe, student: Policy) -> Learner:
    """The student with the heads its objectives read, which start as the teacher's."""
    wanted = {name for stage in recipe.stages for name in stage.objective.wants}
    if not {"semantics", "layer_actions"} & wanted:
        return Learner(student)
    assert recipe.probe is not None  # building the recipe has checked it
    heads = make_heads(student, recipe.probe)
    load_heads(heads, heads_file(recipe))
    return Learner(student, probe=heads)


def _traces(recipe: Recipe, data: EpisodeDataset, device: str) -> TeacherTraces | None:
    """The teacher's answers by (episode, step), where an objective needs any."""
    needed = sorted({name for stage in recipe.stages for name in stage.objective.needs})
    if not needed:
        return None
    store = TraceStore(recipe.traces, identity(recipe, data.fingerprint))
    return lambda keys: {name: tensor.to(device).float() for name, tensor in store.read(keys.cpu(), want=needed).items()}
