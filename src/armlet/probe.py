"""probe: episodes + teacher → traces, one row per (episode, step).

Fits the heads that read every layer on the frozen, unrouted teacher (ActDistill stage 1), then runs
the teacher over the whole data set once and stores what it answers, and beside it what a student
must know of the teacher. A student that takes none of the teacher's weights is distilled from the
store alone. An annotator, a teacher that answers in words, is asked last; its labels are stored
beside the traces.
"""

from pathlib import Path

import torch

from armlet import source
from armlet.data.episodes import EpisodeDataset
from armlet.data.files import write_atomically
from armlet.data.frames import BatchMaker, load_frames
from armlet.data.splits import parts, rows_of
from armlet.data.traces import HEADER, StoreIdentity
from armlet.lineage import Question
from armlet.logs import RunLog
from armlet.policies.acting import behind_socket, socket_policy
from armlet.policies.checkpoint import load_with_fingerprint
from armlet.policies.facts import TeacherFacts
from armlet.policies.pretrained.said import Said
from armlet.recipe import (
    Recipe,
    at_hand,
    check_episodes,
    robot_of_episodes,
    settings,
    suited,
    to_json,
)
from armlet.robot.client.address import address_of
from armlet.rollout.together import Together, once
from armlet.training.black_box import (
    facts_of_server,
    frames_for,
    how_asked,
    of_black_box,
    store_answers,
)
from armlet.training.distributed import log_of, refuse_several, world
from armlet.training.learner import Learner, with_logits
from armlet.training.masters import halve
from armlet.training.supervision import (
    annotate,
    heads_question,
    how_watched,
    load_heads,
    make_heads,
    save_heads,
    store_traces,
)
from armlet.training.trainer import Trainer, make_batches


def main(recipe: Recipe) -> Path:
    """Fit the heads, store the traces; returns the store's folder. Resumes where an earlier run was
    killed."""
    recipe = at_hand(recipe, reads=("episodes", "teacher"))
    data = EpisodeDataset(recipe.episodes, recipe.columns)
    said = behind_socket(recipe.teacher)
    check_shared(recipe, said)
    if said is not None:
        return _ask(of_black_box(recipe, address_of(said.checkpoint)), data, said)
    title = f"probe {recipe.name}"
    if recipe.shards.on is not None:
        refuse_several("--shards.on is given", fix="give one of the two")
    together = Together.of(recipe.shards, recipe.traces.with_name("shards"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher, fingerprint = load_with_fingerprint(
        recipe.teacher, device=device, known=lambda: robot_of_episodes(recipe, data)
    )
    # The teacher decides how pictures are fitted: traces of others would be of other inputs.
    recipe.agree_on_pictures(teacher.view)
    recipe = suited(recipe, teacher.body.action_spec)
    check_episodes(recipe, data, teacher.robot, state=teacher.body.state, title=title)
    if recipe.teacher_precision == "bf16":
        halve(teacher)
    learner = Learner(teacher)
    batches = make_batches(teacher, load_frames(data, teacher.view, recipe.pictures))
    recipe = with_logits(recipe, teacher, batches)
    if recipe.probe:
        torch.manual_seed(recipe.seed)  # the heads' first weights
        learner.probe = make_heads(teacher, recipe.probe).to(device)
        _fit_once(recipe, learner, batches, data, fingerprint, together, title=title)
    if not world().first:  # the fitting is divided; a store has one that writes
        return recipe.traces
    how = how_watched(recipe)
    store_traces(
        recipe.traces,
        StoreIdentity(data.fingerprint, fingerprint, how),
        learner,
        batches,
        traced=recipe.traced,
        precision=recipe.trace_precision,
        title=f"traces {recipe.name}",
        together=together,
    )

    def beside() -> bytes:
        # What `distil` must know of the teacher where its weights are not on that machine.
        TeacherFacts.of(teacher, fingerprint).write(recipe.traces)
        annotate(data, recipe.annotator, recipe.labels)
        return b""

    def question() -> Question:
        return {
            "teacher": fingerprint,
            "data": data.fingerprint,
            "how": how,
            "annotator": to_json(recipe.annotator),
            "armlet": source.identity(),
        }

    once(together, "beside", question, beside)
    return recipe.traces


def check_shared(recipe: Recipe, said: Said | None) -> None:
    """Raises ValueError where processes are to share what they cannot. `said`: of a teacher behind
    a socket."""
    if recipe.shards.on == "ray" or (recipe.shards.on is not None and said is not None):
        raise ValueError(
            f"--shards.on {recipe.shards.on}: probe is shared by plain processes (--shards.on "
            "processes), and that of a teacher behind a socket by none: it answers many at once "
            "already"
        )


def _ask(recipe: Recipe, data: EpisodeDataset, said: Said) -> Path:
    """The same of a teacher behind a socket: its answers to every frame, and no layers."""
    title = f"probe {recipe.name}"
    refuse_several("a teacher behind a socket is asked", fix="run `armlet probe` without torchrun")
    teacher = socket_policy(said, lambda: robot_of_episodes(recipe, data))
    robot = teacher.robot
    recipe = suited(recipe, robot.action)
    check_episodes(recipe, data, robot, title=title)
    facts = facts_of_server(recipe, data, teacher)
    store_answers(
        recipe.traces,
        StoreIdentity(data.fingerprint, teacher.fingerprint, how_asked(facts.body)),
        teacher,
        frames_for(teacher, data, recipe),
        facts.body,
        title=f"traces {recipe.name}",
    )
    teacher.close()
    facts.write(recipe.traces)
    annotate(data, recipe.annotator, recipe.labels)
    return recipe.traces


def _fit_once(
    recipe: Recipe,
    learner: Learner,
    batches: BatchMaker,
    data: EpisodeDataset,
    teacher: str,
    together: Together | None,
    *,
    title: str,
) -> None:
    """Heads that are fitted by this process, or by another of those that share the work: what it is
    shared into are answers of one set of heads."""
    assert recipe.probe is not None and learner.probe is not None

    def fit() -> bytes:
        with RunLog(log_of(recipe.log), recipe.out, recipe.name, to_json(recipe)) as log:
            _fit(recipe, learner, batches, data, teacher, log, title=title)
        return recipe.heads_file.read_bytes()

    if together is None:
        fit()
        return
    question = {
        **heads_question(recipe, data.fingerprint, teacher),
        "stage": settings(recipe.probe.stage),
        "seed": recipe.seed,
        "armlet": source.identity(),
    }
    fitted = together.once("heads", question, fit)
    if not recipe.heads_file.exists():
        write_atomically(recipe.heads_file, fitted)
    load_heads(learner.probe, recipe.heads_file)


def _fit(
    recipe: Recipe,
    learner: Learner,
    batches: BatchMaker,
    data: EpisodeDataset,
    teacher: str,
    log: RunLog,
    *,
    title: str,
) -> None:
    """Fitted heads, or those that were fitted by this question before, into the learner. Where
    there is no benchmark, the held-out episodes, which the report is about, are left out of it.

    Where traces were stored with heads of another question, they are refused before anything is
    fitted: other students may be learning from them. `teacher` is a fingerprint."""
    assert recipe.probe is not None and learner.probe is not None
    path = recipe.heads_file
    rows = None
    if recipe.benchmark is None:
        rows = rows_of(data.starts, parts(data, recipe.split, recipe.held_out, reported=True).train)
    trainer = Trainer(
        learner,
        recipe.probe.stage,
        batches,
        folder=path.parent,
        seed=recipe.seed,
        title=title,
        rows=rows,
        made_from=heads_question(recipe, data.fingerprint, teacher),
        log=log,
    )
    why = trainer.obstacle()  # why what stands in the folder cannot be continued; empty if it can
    if why and (recipe.traces / HEADER).is_file():
        raise ValueError(
            f"{path.parent}, with whose heads the traces in {recipe.traces} were stored, {why}. "
            "Nothing was fitted: give another `--shared` (or `--out`), or delete both folders"
        )
    # Written last: where the heads are, they are whole.
    if path.exists() and not why:
        load_heads(learner.probe, path)
        return
    trainer.run()
    if world().first:
        save_heads(learner.probe, path)
