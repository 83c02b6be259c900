"""distil: episodes + traces → a student. Runs the recipe's stages on the one training loop; names
no recipe."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from armlet.annotators import annotator_fingerprint
from armlet.benchmarks import native_robot
from armlet.data.door import check_facts, check_policy
from armlet.data.episodes import EpisodeDataset
from armlet.data.files import hold
from armlet.data.frames import BatchMaker, Frames, join_frames
from armlet.data.splits import by_task, last, rows_of
from armlet.data.traces import TraceStore
from armlet.layers.ema import SelfTeacher
from armlet.lineage import PROVENANCE, Question, as_json, digest_text, is_finished
from armlet.policies.checkpoint import load_policy, policy_fingerprint, save_policy
from armlet.policies.contract import Policy
from armlet.recipe import Recipe, Stage, at_hand, to_json
from armlet.robot.agree import agree
from armlet.training.learner import Learner
from armlet.training.practice import mixed, practise, round_folder, stays, worth_learning
from armlet.training.supervision import (
    check_heads,
    heads_file,
    identity,
    labelled_frames,
    load_heads,
    make_heads,
)
from armlet.training.trainer import SelfAnswers, TeacherTraces, Trainer, make_batches, settings
from armlet.types import Batch, Trace

SAMPLE = 512  # frames that a student is cut to fit, or calibrated on


def main(recipe: Recipe) -> Path:
    """Train the recipe's student; returns its folder. One that is there and was made by this
    question stays as it is."""
    if recipe.student is None or not recipe.stages:
        raise ValueError(f"recipe {recipe.name!r} has no student and stages to distil")
    recipe = at_hand(recipe, reads=("episodes", "teacher"))
    # The folders of stages and rounds are moved where they answer another question.
    with hold(recipe.out / "distil.lock", "distilling"):
        return _main(recipe)


def _main(recipe: Recipe) -> Path:
    data, title = EpisodeDataset(recipe.episodes, recipe.columns), f"distil {recipe.name}"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher = load_policy(recipe.teacher, device=device)
    recipe.pictures.agree(teacher.view)
    wanted = question(recipe, data)
    if is_finished(recipe.student_folder, wanted, fixes="give another folder with `--out`"):
        sys.stderr.write(f"{title}: {recipe.student_folder} was distilled exactly so already\n")
        return recipe.student_folder
    _check_episodes(recipe, data, teacher, title=title)
    whole = labelled_frames(recipe, data, teacher.view, recipe.labels)
    train, held_out = (rows_of(whole.starts, part) for part in _parts(recipe, data))
    torch.manual_seed(recipe.seed)
    assert recipe.student is not None
    student = recipe.student.build(
        teacher, _sample(make_batches(teacher, whole), train, recipe.seed)
    ).to(device)
    agree(student.robot, teacher.robot, whose=("the student", "its teacher"))
    if student.head.chunk != teacher.head.chunk:
        raise ValueError(
            f"the student decides {student.head.chunk} actions at a time and its teacher {teacher.head.chunk}; give the student's "
            "network the teacher's `chunk`"
        )
    batches = make_batches(student, whole)
    learner = _learner(recipe, student, data).to(device)
    unseen = _sample(batches, held_out, recipe.seed)
    frames, stores = [whole], _stores(recipe, data)
    sets = [data.fingerprint]
    practised: list[np.ndarray] = []  # rows of what the rounds added, among all frames
    for index, stage in enumerate(recipe.all_stages):
        number, rows, before = index - len(recipe.stages), train, {}
        if number >= 0:
            more = practise(recipe, student, teacher, number)
            met, known = (
                labelled_frames(
                    recipe, more, teacher.view, round_folder(recipe, number) / "labels"
                ),
                sum(map(len, frames)),
            )
            practised.append(known + worth_learning(more, met, recipe.rounds[number].replay))
            frames.append(met)
            sets.append(more.fingerprint)
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
            title=f"{title} {index + 1}/{len(recipe.all_stages)}",
            teacher=_teacher(stage, None if index else teacher, student, batches)
            or _answers(recipe, stores, frames, device),
            rows=rows,
            made_from=_made_from(wanted, sets, stores, student),
        )
        trainer.run()
        student.calibrate(unseen)
        if number >= 0 and not stays(recipe, number, student):
            learner.load_state_dict(before)
            student.calibrate(unseen)
    provenance = {"recipe": to_json(recipe), "data": data.fingerprint, PROVENANCE: wanted}
    save_policy(
        student.deployed(), recipe.student_folder, provenance=provenance, weights=recipe.weights
    )
    return recipe.student_folder


def _check_episodes(recipe: Recipe, data: EpisodeDataset, teacher: Policy, *, title: str) -> None:
    """Raises ValueError where the episodes are not the teacher's robot's, or lack what an objective
    reads."""
    check_policy(
        data,
        teacher.robot,
        recipe.robot,
        native=native_robot(recipe.benchmark, data.robot_type),
        limit=recipe.outside_range,
        title=title,
    )
    for index, stage in enumerate(recipe.stages):
        check_facts(data, stage.objective.wants, option=f"--stages.{index}.objective.facts")


def _made_from(
    wanted: Question, sets: list[str], stores: list[TraceStore], student: Policy
) -> dict[str, Any]:
    """What a stage is made from beside its own settings: the data sets so far, the teacher and its
    answers, and the student's kind."""
    return {
        "data": list(sets),
        "teacher": wanted["teacher"],
        "traces": [store.header.identity for store in stores],
        "labels": wanted["labels"],
        "student": student.to_json(),
        "words": digest_text([student.body.tokenizer.to_str()]),
    }


def question(recipe: Recipe, data: EpisodeDataset) -> Question:
    """What a recipe's student is made from: everything that can change it, and nothing that cannot.
    Raises FileNotFoundError or
    ValueError where the probe heads that its objectives read have not been fitted, or were fitted
    otherwise."""
    if _layers_read(recipe):
        check_heads(recipe, data.fingerprint)
    rounds = [
        {**to_json(each), "stage": settings(each.stage), "workers": None} for each in recipe.rounds
    ]
    return as_json(
        {
            "data": data.fingerprint,
            "teacher": policy_fingerprint(recipe.teacher),
            "traces": asdict(identity(recipe, data.fingerprint))
            if _needed(recipe) or _layers_read(recipe)
            else None,
            "labels": None if recipe.annotator is None else annotator_fingerprint(recipe.annotator),
            "student": to_json(recipe.student),
            "stages": [settings(stage) for stage in recipe.stages],
            "rounds": rounds,
            "benchmark": to_json(recipe.benchmark) if rounds else None,
            "split": recipe.split,
            "held_out": recipe.held_out,
            "seed": recipe.seed,
            "weights": recipe.weights,
        }
    )


def _parts(recipe: Recipe, data: EpisodeDataset) -> tuple[np.ndarray, np.ndarray]:
    """The episodes to train on, and those to calibrate on."""
    return last(data, recipe.held_out) if recipe.split == "last" else by_task(data)[:2]


def _sample(batches: BatchMaker, rows: np.ndarray, seed: int) -> Batch:
    """Up to `SAMPLE` of these frames, from all over."""
    chosen = np.random.default_rng([seed, 2]).choice(
        len(rows), min(SAMPLE, len(rows)), replace=False
    )
    return batches.batch(rows[np.sort(chosen)])


def _learner(recipe: Recipe, student: Policy, data: EpisodeDataset) -> Learner:
    """The student with the heads its objectives read; the probe's start as the teacher's."""
    wanted = {name for stage in recipe.all_stages for name in stage.objective.wants}
    heads = None
    if _layers_read(recipe):
        assert recipe.probe is not None  # building the recipe has checked it
        heads = make_heads(student, recipe.probe)
        load_heads(heads, heads_file(recipe))
    facts = {
        name: size
        for name, size in data.privileged.items()
        if {f"privileged.{name}", f"pointed.{name}"} & wanted
    }
    return Learner(student, probe=heads, privileged=facts)


def _teacher(
    stage: Stage, start: Policy | None, student: Policy, batches: BatchMaker
) -> SelfAnswers | None:
    """The student's own average, where a stage wants it for a teacher; it starts from `start`, or
    from the student as it is."""
    if stage.teacher == "frozen":
        return None
    average = SelfTeacher(student, decay=stage.teacher_decay, start=start)
    return SelfAnswers(average, batches, stage.objective.needs)


def _layers_read(recipe: Recipe) -> bool:
    """Whether an objective reads the layers of the student, through the probe's heads."""
    return any(
        {"semantics", "layer_actions"} & stage.objective.wants for stage in recipe.all_stages
    )


def _needed(recipe: Recipe) -> list[str]:
    return sorted(
        {
            name
            for stage in recipe.all_stages
            if stage.teacher == "frozen"
            for name in stage.objective.needs
        }
    )


def _stores(recipe: Recipe, data: EpisodeDataset, folder: Path | None = None) -> list[TraceStore]:
    """The teacher's answers to these episodes, where an objective needs any."""
    return (
        [TraceStore(folder or recipe.traces, identity(recipe, data.fingerprint))]
        if _needed(recipe)
        else []
    )


def _answers(
    recipe: Recipe, stores: list[TraceStore], frames: list[Frames], device: str
) -> TeacherTraces | None:
    """The teacher's trace by key; the episodes of the n-th data set are numbered after those of the
    sets before it."""
    if not stores:
        return None
    needed, firsts = _needed(recipe), np.cumsum([0, *(part.episodes for part in frames[:-1])])
    # A map over words is as wide as the longest text of its data set: what is missing in a narrower
    # one is padding, 0.
    shapes = [
        {name: store.columns[name][0] for name in needed if name in store.columns}
        for store in stores
    ]
    rooms: dict[str, list[int]] = {
        name: np.max([shape[name] for shape in shapes], axis=0).tolist() for name in shapes[0]
    }

    def answer(keys: Tensor) -> Trace:
        found, part = (
            keys.cpu().numpy(),
            np.searchsorted(firsts, keys[:, 0].cpu().numpy(), side="right") - 1,
        )
        rows: dict[str, Tensor] = {}
        for number in np.unique(part):
            mine = np.flatnonzero(part == number)
            answers = stores[number].read(found[mine] - [firsts[number], 0], want=needed)
            for name, values in answers.items():
                whole = rows.setdefault(name, values.new_zeros(len(found), *rooms[name]))
                at: tuple[Tensor | slice, ...] = (
                    torch.from_numpy(mine),
                    *(slice(size) for size in values.shape[1:]),
                )
                whole[at] = values
        return {name: values.to(device).float() for name, values in rows.items()}

    return answer
