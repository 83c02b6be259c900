"""distil: episodes + traces → a student. Runs the recipe's stages and rounds on the one training
loop; names no recipe.

The teacher itself is read only where its weights are needed (training/teacher.py).
"""

import copy
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from armlet.annotators import annotator_fingerprint
from armlet.data.corpus import Corpus, Part
from armlet.data.door import check_facts
from armlet.data.episodes import EpisodeDataset
from armlet.data.frames import BatchMaker, load_frames
from armlet.data.splits import parts, rows_of
from armlet.data.traces import StoreIdentity
from armlet.evaluation.settings import choose_elsewhere
from armlet.layers.ema import SelfTeacher
from armlet.lineage import PROVENANCE, Question, as_json, claim, digest_text, is_finished
from armlet.logs import RunLog
from armlet.policies.checkpoint import save_policy
from armlet.policies.contract import Backbone, Student
from armlet.policies.facts import TeacherFacts
from armlet.recipe import (
    Recipe,
    Stage,
    at_hand,
    check_episodes,
    robot_of_episodes,
    settings,
    suited,
    to_json,
)
from armlet.robot.agree import agree
from armlet.robot.fit import View
from armlet.training.black_box import how_asked
from armlet.training.distributed import held, log_of, refuse_several, world
from armlet.training.learner import Learner, chooses, with_logits
from armlet.training.own_average import SelfAnswers
from armlet.training.practice import is_promoted, mixed, practise, round_folder
from armlet.training.supervision import (
    check_heads,
    heads_question,
    how_watched,
    labelled,
    load_heads,
    make_heads,
    open_traces,
)
from armlet.training.teacher import fetched, meet_teacher
from armlet.training.trainer import TeacherTraces, Trainer, make_batches
from armlet.types import LAYERS, Batch

TRAINING = (
    "stages",
    "rounds",
    "benchmark",
    "weights",
)  # of a question: how it is trained, and kept
SAMPLE = 512  # frames that a student is cut to fit, or calibrated on


def main(recipe: Recipe) -> Path:
    """Train the recipe's student; returns its folder. One that is there and was made by this
    question stays as it is."""
    if recipe.student is None or not recipe.stages:
        raise ValueError(f"recipe {recipe.name!r} has no student and stages to distil")
    # Before the stages, which take hours: a trial decides which round's student is kept.
    choose_elsewhere(recipe)
    _check_several(recipe)
    recipe = fetched(at_hand(recipe, reads=("episodes", "shared")))
    # The folders of stages and rounds are moved where they answer another question.
    log = RunLog(log_of(recipe.log), recipe.out, recipe.name, to_json(recipe))
    with held(recipe.out / "distil.lock", "distilling"), log:
        return _distil(recipe, log)


def _check_several(recipe: Recipe) -> None:
    """Raises RankError for what several processes that train together cannot do, by name."""
    assert recipe.student is not None
    alone = "run `armlet distil` without torchrun"
    if recipe.rounds:
        refuse_several(
            "rounds: a student acts in them, which one process does",
            fix=f"{alone}; or leave the rounds out, and distil once more with them: finished stages "
            "are not trained again",
        )
    if recipe.student.reads:
        refuse_several(
            f"student: {type(recipe.student).__name__} is chosen by what its teacher answered",
            fix=alone,
        )


def _distil(recipe: Recipe, log: RunLog) -> Path:
    title = f"distil {recipe.name}"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = EpisodeDataset(recipe.episodes, recipe.columns)
    met = meet_teacher(recipe, data, device, lambda: robot_of_episodes(recipe, data))
    facts = met.facts
    teacher = met.network  # it has the teacher's weights only if something in the recipe reads them
    recipe = suited(met.recipe, facts.body.action_spec)
    recipe.agree_on_pictures(facts.view)
    shown, view = _as_students_see(recipe, data, teacher)
    store = _store(recipe, data.fingerprint, facts)
    wanted = question(recipe, data.fingerprint, facts.fingerprint, store)
    wanted |= {} if view == teacher.view else {"pictures": as_json(asdict(view))}
    if is_finished(recipe.student_folder, wanted, fixes="give another folder with `--out`"):
        sys.stderr.write(f"{title}: {recipe.student_folder} was distilled exactly so already\n")
        return recipe.student_folder
    _check_episodes(recipe, data, teacher, title)

    episodes = _episodes(recipe, data, view, store)
    train, calibrate = _rows(recipe, data)
    chosen, found = _chosen(recipe, wanted, shown, episodes, calibrate, device)
    student = _student(chosen, recipe.seed, shown, teacher, episodes, train, device)
    recipe = _for_student(recipe, teacher, student, episodes, train)
    _check_chunk(student, facts.chunk)
    learner = _learner(recipe, student, data, teacher, device)
    corpus = Corpus([episodes], lambda frames: make_batches(student, frames), needs=recipe.needs)
    measured_on = _sample(corpus, calibrate, recipe.seed)

    held = teacher if recipe.stages[0].teacher is not None else None
    labels = met.labels if recipe.rounds else None
    del teacher, shown, met  # where nobody asks: half of the memory

    def fit(stage: Stage, index: int, corpus: Corpus, rows: np.ndarray) -> None:
        """Stage number `index` of all, on these rows of the corpus."""
        Trainer(
            learner,
            stage,
            corpus,
            folder=recipe.out / f"distil-{index}",
            seed=recipe.seed + index,  # a stage that drew as the last did would see no new order
            title=f"{title} {index + 1}/{len(recipe.all_stages)}",
            teacher=_answers(stage, corpus, student, held if index == 0 else None),
            rows=rows,
            made_from=_made_from(wanted, corpus, student),
            log=log,
        ).run()
        student.calibrate(measured_on)  # not trained on: there a router's scores are honest

    for index, stage in enumerate(recipe.stages):
        fit(stage, index, corpus, train)
    practised = np.zeros(0, np.int64)  # rows that the rounds added
    for number, each in enumerate(recipe.rounds):
        assert labels is not None  # there are rounds
        part, worth = practise(recipe, number, student, labels, facts.fingerprint)
        # `worth` counts the rows that this round added; in the corpus they come after all others.
        practised = np.concatenate([practised, len(corpus) + worth])
        corpus = corpus.with_more(part)
        before = _copied(learner)
        rows = mixed(train, practised, each.share)
        fit(each.stage, len(recipe.stages) + number, corpus, rows)
        # A round that makes the student worse is undone; the episodes that it added stay.
        if not _promoted(recipe, number, student, len(worth), log):
            learner.load_state_dict(before)
            student.calibrate(measured_on)

    provenance = {"recipe": to_json(recipe), "data": data.fingerprint, PROVENANCE: wanted, **found}
    folder = recipe.student_folder  # it is saved without what only training reads
    if world().first:
        save_policy(student.deployed(), folder, provenance=provenance, weights=recipe.weights)
    return folder


def _as_students_see(
    recipe: Recipe, data: EpisodeDataset, teacher: Backbone
) -> tuple[Backbone, View]:
    """The teacher as a student is built from it, and how that sees the episodes: as its teacher or,
    with eyes of its own beside a teacher that brings pictures of any size to its own itself, as the
    recipe says."""
    assert recipe.student is not None
    if teacher.view.fit != "any" or not recipe.student.own_eyes:
        return teacher, teacher.view
    cameras = {name: data.cameras[name] for name in teacher.view.cameras if name in data.cameras}
    view = recipe.pictures.view(cameras, whose=str(data.root))
    shown = copy.copy(teacher)  # it shares the weights, and has a body of its own
    shown.body = replace(teacher.body, fit=view.fit)
    return shown, view


def _chosen(
    recipe: Recipe,
    wanted: Question,
    shown: Backbone,
    episodes: Part,
    rows: np.ndarray,
    device: str,
) -> tuple[Student, dict[str, Any]]:
    """The recipe's student with everything chosen that it chooses by what the teacher answered to
    some of these frames, on which it is not trained; and what was found. `wanted`: what the student
    is made from."""
    assert recipe.student is not None  # `main` has seen to it
    if not recipe.student.reads:
        return recipe.student, {}
    # How it is trained afterwards changes nothing of what it finds.
    asked = {name: value for name, value in wanted.items() if name not in TRAINING}
    folder = recipe.out / "search"
    claim(folder, "search.json", asked, title=f"search {recipe.name}")
    batches = make_batches(shown, episodes.frames, torch.device(device))
    sample = _sample(batches, rows, recipe.seed, count=recipe.student.looks_at)
    assert episodes.traces is not None and sample.keys is not None  # `Recipe.needs` names them
    answers = episodes.traces.read(sample.keys.cpu(), ["actions"])["actions"]
    sample = replace(sample, taught=answers.float().to(device))
    student, found = recipe.student.choose(shown, sample, folder / "scores.jsonl")
    return student, {"search": found}


def _student(
    chosen: Student,
    seed: int,
    shown: Backbone,
    teacher: Backbone,
    episodes: Part,
    train: np.ndarray,
    device: str,
) -> Backbone:
    """The recipe's student, as it was `chosen`, before its first step, on `device`, cut to fit some
    of these frames. `shown`: the teacher as the student is built from it."""
    torch.manual_seed(seed)  # of the student's new weights, before it is built
    # Not on the device of the teacher: a stand-in has no weights, and is nowhere.
    batches = make_batches(shown, episodes.frames, torch.device(device))
    student = chosen.build(shown, _sample(batches, train, seed)).to(device)
    agree(student.robot, teacher.robot, whose=("the student", "its teacher"))
    return student


def _promoted(recipe: Recipe, number: int, student: Backbone, added: int, log: RunLog) -> bool:
    """Whether a round's student stays; the logs are told."""
    promoted = is_promoted(recipe, number, student)
    series = log.series(round_folder(recipe, number))
    series.point(0, {"frames_added": added, "promoted": promoted})
    return promoted


def _for_student(
    recipe: Recipe, teacher: Backbone, student: Backbone, episodes: Part, rows: np.ndarray
) -> Recipe:
    """The recipe with objectives for this student of this teacher."""
    recipe = with_logits(recipe, teacher, make_batches(teacher, episodes.frames, student.device))
    choosing, logits = chooses(student, make_batches(student, episodes.frames).batch(rows[:2]))
    return recipe.for_student(chooses=choosing, logits=logits)


def _check_episodes(recipe: Recipe, data: EpisodeDataset, teacher: Backbone, title: str) -> None:
    """Raises ValueError where the episodes are not of the teacher's robot, or lack facts that an
    objective reads."""
    check_episodes(recipe, data, teacher.robot, state=teacher.body.state, title=title)
    for index, stage in enumerate(recipe.stages):
        check_facts(data, stage.objective.wants, option=f"--stages.{index}.objective.facts")


def _check_chunk(student: Backbone, chunk: int) -> None:
    """Raises ValueError where answers of teacher and student could not be compared step by step."""
    if student.chunk != chunk:
        raise ValueError(
            f"the student decides {student.chunk} actions at a time and its teacher {chunk}; "
            "give the student's network the teacher's `chunk`"
        )


def _store(recipe: Recipe, data: str, facts: TeacherFacts) -> StoreIdentity | None:
    """What the traces must have been made from, of the data of this fingerprint and the teacher;
    None where nothing is read of them or of their heads. Raises FileNotFoundError or ValueError
    where probe heads that the objectives read have not been fitted, or were fitted otherwise."""
    if recipe.wants & LAYERS:
        assert recipe.probe is not None  # building the recipe has checked it
        asked = heads_question(recipe, data, facts.fingerprint)
        check_heads(recipe.heads_file, asked, recipe.probe.stage)
    elif not recipe.needs:
        return None
    if facts.black_box:
        return StoreIdentity(data, facts.fingerprint, how_asked(facts.body))
    return StoreIdentity(data, facts.fingerprint, how_watched(recipe))


def _episodes(
    recipe: Recipe, data: EpisodeDataset, view: View, store: StoreIdentity | None
) -> Part:
    """The recipe's episodes as `view` sees them, with what the teacher answered to them, where an
    objective needs that."""
    frames = load_frames(data, view, recipe.pictures)
    frames = labelled(frames, data, recipe.annotator, recipe.labels)
    if store is None or not recipe.needs:
        return Part(frames, data.fingerprint)
    traces = open_traces(recipe.traces, store, recipe.trace_precision)
    return Part(frames, data.fingerprint, traces)


def _rows(recipe: Recipe, data: EpisodeDataset) -> tuple[np.ndarray, np.ndarray]:
    """The frames to train on, and those to calibrate on."""
    cut = parts(data, recipe.split, recipe.held_out, reported=recipe.benchmark is None)
    return rows_of(data.starts, cut.train), rows_of(data.starts, cut.calibrate)


def _sample(
    batches: BatchMaker | Corpus, rows: np.ndarray, seed: int, *, count: int = SAMPLE
) -> Batch:
    """Up to `count` of these frames, from all over."""
    # A stream of its own, [seed, 2]: it must not depend on what else draws numbers.
    chosen = np.random.default_rng([seed, 2]).choice(
        len(rows), min(count, len(rows)), replace=False
    )
    # In order, since neighbouring frames are read from disk together.
    return batches.batch(rows[np.sort(chosen)])


def _learner(
    recipe: Recipe, student: Backbone, data: EpisodeDataset, teacher: Backbone, device: str
) -> Learner:
    """The student with what its objectives read: heads, of which the probe's start as the
    teacher's, and the teacher's velocities."""
    heads = None
    if recipe.wants & LAYERS:
        assert recipe.probe is not None  # building the recipe has checked it
        heads = make_heads(student, recipe.probe)
        load_heads(heads, recipe.heads_file)
    # Simulator facts that an objective makes the student guess: name → how many numbers.
    facts = {}
    for name, size in data.privileged.items():
        if {f"privileged.{name}", f"pointed.{name}"} & recipe.wants:
            facts[name] = size
    learner = Learner(student, probe=heads, privileged=facts).to(device)
    if "imitation.velocity" in recipe.wants:
        learner.compare_velocities_with(teacher)
    return learner


def _answers(
    stage: Stage, corpus: Corpus, student: Backbone, start: Backbone | None
) -> TeacherTraces | None:
    """What a stage's student is compared with: the traces, or its own average, which starts from
    `start`, or from the student as it is; None where nothing is stored."""
    if stage.teacher is None:
        return corpus.traces if corpus.stores else None
    average = SelfTeacher(student, decay=stage.teacher.decay, start=start)
    return SelfAnswers(average, corpus, stage.needs)


def _copied(learner: Learner) -> dict[str, Tensor]:
    """Its weights as they are now: state_dict alone would follow the training."""
    copied = {}
    for name, tensor in learner.state_dict().items():
        copied[name] = tensor.clone()
    return copied


def _made_from(wanted: Question, corpus: Corpus, student: Backbone) -> dict[str, Any]:
    """What a stage is made from beside its own settings: the data sets so far, the teacher and its
    answers, and the student's kind."""
    return {
        "data": corpus.fingerprints,
        "teacher": wanted["teacher"],
        "traces": [store.header.identity for store in corpus.stores],
        "labels": wanted["labels"],
        "student": student.to_json(),
        # A number means a word only by its tokenizer.
        "words": digest_text([student.body.tokenizer.to_str()]),
    }


def question(recipe: Recipe, data: str, teacher: str, traces: StoreIdentity | None) -> Question:
    """What a recipe's student is made from: everything that can change it, and nothing that cannot;
    `data` and `teacher` are fingerprints, and `traces` is what the store was made from, where one
    is read."""
    rounds = []
    for each in recipe.rounds:
        # How many processes act changes nothing but the time that it takes.
        rounds.append({**to_json(each), "stage": settings(each.stage), "workers": None})
    wanted = as_json(
        {
            "data": data,
            "teacher": teacher,
            "traces": None if traces is None else asdict(traces),
            "labels": None if recipe.annotator is None else annotator_fingerprint(recipe.annotator),
            "student": to_json(recipe.student),
            "stages": [settings(stage) for stage in recipe.stages],
            "rounds": rounds,
            # The world matters to students that act in it.
            "benchmark": to_json(recipe.benchmark) if rounds else None,
            "split": recipe.split,
            "held_out": recipe.held_out,
            "seed": recipe.seed,
            "weights": recipe.weights,
        }
    )
    # What a student that chooses is taught hangs on it; said only where an objective asks, so that
    # what was made before still answers.
    if recipe.may_read_logits and "logits" in recipe.traced:
        wanted["logits"] = True
    if recipe.benchmark is None:
        wanted["reported"] = True  # see `data.splits.parts`: what was calibrated on what
    return wanted
