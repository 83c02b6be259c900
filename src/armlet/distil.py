"""distil: episodes + traces → a student. Runs the recipe's stages on the one training loop; names no recipe."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from armlet.checkpoint import load_policy, save_policy
from armlet.data.episodes import EpisodeDataset
from armlet.data.frames import BatchMaker, Frames, join_frames
from armlet.data.splits import by_task, last, rows_of
from armlet.data.traces import TraceStore
from armlet.layers.ema import SelfTeacher
from armlet.learner import Learner
from armlet.policies import Policy
from armlet.practice import mixed, practise, round_folder, stays, worth_learning
from armlet.recipe import Recipe, Stage, to_json
from armlet.supervision import heads_file, identity, labelled_frames, load_heads, make_heads
from armlet.training import SelfAnswers, TeacherTraces, Trainer, make_batches
from armlet.types import Batch, Trace

SAMPLE = 512  # frames that a student is cut to fit, or calibrated on


def main(recipe: Recipe) -> Path:
    """Train the recipe's student; returns its folder."""
    if recipe.student is None or not recipe.stages:
        raise ValueError(f"recipe {recipe.name!r} has no student and stages to distil")
    data = EpisodeDataset(recipe.episodes, recipe.columns)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    whole = labelled_frames(recipe, data, recipe.labels)
    train, held_out = (rows_of(whole.starts, part) for part in _parts(recipe, data))
    teacher = load_policy(recipe.teacher, device=device)
    torch.manual_seed(recipe.seed)
    student = recipe.student.build(teacher, _sample(make_batches(teacher, whole), train, recipe.seed)).to(device)
    if student.head.chunk != teacher.head.chunk:
        raise ValueError(
            f"the student decides {student.head.chunk} actions at a time and its teacher {teacher.head.chunk}; give the student's "
            "network the teacher's `chunk`"
        )
    batches = make_batches(student, whole)
    learner = _learner(recipe, student, data).to(device)
    unseen = _sample(batches, held_out, recipe.seed)
    frames, stores = [whole], _stores(recipe, data)
    practised: list[np.ndarray] = []  # rows of what the rounds added, among all frames
    for index, stage in enumerate(recipe.all_stages):
        number, rows, before = index - len(recipe.stages), train, {}
        if number >= 0:
            more = practise(recipe, student, teacher, number)
            met, known = labelled_frames(recipe, more, round_folder(recipe, number) / "labels"), sum(map(len, frames))
            practised.append(known + worth_learning(more, met, recipe.rounds[number].replay))
            frames.append(met)
            stores += _stores(recipe, more, round_folder(recipe, number) / "traces")
            batches = make_batches(student, join_frames(frames))
            rows = mixed(train, np.concatenate(practised), recipe.rounds[number].share)
            before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
        trainer = Trainer(
            learner,
            stage,
            batches,
            folder=recipe.out / f"distil-{index}",
            seed=recipe.seed + index,
            title=f"distil {recipe.name} {index + 1}/{len(recipe.all_stages)}",
            teacher=_teacher(stage, None if index else teacher, student, batches) or _answers(recipe, stores, frames, device),
            rows=rows,
        )
        trainer.run()
        student.calibrate(unseen)
        if number >= 0 and not stays(recipe, number, student):
            learner.load_state_dict(before)
            student.calibrate(unseen)
    provenance = {"recipe": to_json(recipe), "data": data.fingerprint}
    save_policy(student.deployed(), recipe.student_folder, provenance=provenance, weights=recipe.weights)
    return recipe.student_folder


def _parts(recipe: Recipe, data: EpisodeDataset) -> tuple[np.ndarray, np.ndarray]:
    """The episodes to train on, and those to calibrate on."""
    return last(data, recipe.held_out) if recipe.split == "last" else by_task(data)[:2]


def _sample(batches: BatchMaker, rows: np.ndarray, seed: int) -> Batch:
    """Up to `SAMPLE` of these frames, from all over."""
    chosen = np.random.default_rng([seed, 2]).choice(len(rows), min(SAMPLE, len(rows)), replace=False)
    return batches.batch(rows[np.sort(chosen)])


def _learner(recipe: Recipe, student: Policy, data: EpisodeDataset) -> Learner:
    """The student with the heads its objectives read; the probe's start as the teacher's."""
    wanted = {name for stage in recipe.all_stages for name in stage.objective.wants}
    heads = None
    if {"semantics", "layer_actions"} & wanted:
        assert recipe.probe is not None  # building the recipe has checked it
        heads = make_heads(student, recipe.probe)
        load_heads(heads, heads_file(recipe))
    facts = {name: size for name, size in data.privileged.items() if {f"privileged.{name}", f"pointed.{name}"} & wanted}
    return Learner(student, probe=heads, privileged=facts)


def _teacher(stage: Stage, start: Policy | None, student: Policy, batches: BatchMaker) -> SelfAnswers | None:
    """The student's own average, where a stage wants it for a teacher; it starts from `start`, or from the student as it is."""
    if stage.teacher == "frozen":
        return None
    average = SelfTeacher(student, decay=stage.teacher_decay, start=start)
    return SelfAnswers(average, batches, stage.objective.needs)


def _needed(recipe: Recipe) -> list[str]:
    return sorted({name for stage in recipe.all_stages if stage.teacher == "frozen" for name in stage.objective.needs})


def _stores(recipe: Recipe, data: EpisodeDataset, folder: Path | None = None) -> list[TraceStore]:
    """The teacher's answers to these episodes, where an objective needs any."""
    return [TraceStore(folder or recipe.traces, identity(recipe, data.fingerprint))] if _needed(recipe) else []


def _answers(recipe: Recipe, stores: list[TraceStore], frames: list[Frames], device: str) -> TeacherTraces | None:
    """The teacher's trace by key; the episodes of the n-th data set are numbered after those of the sets before it."""
    if not stores:
        return None
    needed, firsts = _needed(recipe), np.cumsum([0, *(part.episodes for part in frames[:-1])])
    # A map over words is as wide as the longest text of its data set: what is missing in a narrower one is padding, 0.
    shapes = [{name: store.columns[name][0] for name in needed if name in store.columns} for store in stores]
    rooms: dict[str, list[int]] = {name: np.max([shape[name] for shape in shapes], axis=0).tolist() for name in shapes[0]}

    def answer(keys: Tensor) -> Trace:
        found, part = keys.cpu().numpy(), np.searchsorted(firsts, keys[:, 0].cpu().numpy(), side="right") - 1
        rows: dict[str, Tensor] = {}
        for number in np.unique(part):
            mine = np.flatnonzero(part == number)
            answers = stores[number].read(found[mine] - [firsts[number], 0], want=needed)
            for name, values in answers.items():
                whole = rows.setdefault(name, values.new_zeros(len(found), *rooms[name]))
                at: tuple[Tensor | slice, ...] = (torch.from_numpy(mine), *(slice(size) for size in values.shape[1:]))
                whole[at] = values
        return {name: values.to(device).float() for name, values in rows.items()}

    return answer
