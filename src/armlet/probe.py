"""probe: episodes + teacher → traces, one row per (episode, step).

Fits the heads that read every layer on the frozen, unrouted teacher (ActDistill stage 1), then runs
the teacher over the whole data set once and stores what it answers, and beside it what a student
must know of the teacher. A student that takes none of the teacher's weights is distilled from the
store alone. An annotator, a teacher that answers in words, is asked last; its labels are stored
beside the traces.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from armlet import source
from armlet.annotators import Annotator
from armlet.annotators.store import Labelling
from armlet.data.claims import ShardError
from armlet.data.episodes import EpisodeDataset
from armlet.data.files import write_atomically
from armlet.data.frames import BatchMaker, load_frames
from armlet.data.packing import pack, unpack
from armlet.data.splits import parts, rows_of
from armlet.data.traces import HEADER, StoreIdentity
from armlet.logs import RunLog
from armlet.policies.acting import behind_socket, socket_policy
from armlet.policies.checkpoint import load_with_fingerprint
from armlet.policies.contract import Backbone
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
from armlet.rollout.together import Together
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
from armlet.training.sharing import Asked, Elsewhere, Probing, Watched
from armlet.training.supervision import (
    annotate,
    heads_question,
    how_watched,
    load_heads,
    make_heads,
    save_heads,
    store_traces,
    watching,
)
from armlet.training.trainer import ABOUT as STAGE
from armlet.training.trainer import Trainer, make_batches


def main(recipe: Recipe) -> Path:
    """Fit the heads, store the traces; returns the store's folder. Resumes where an earlier run was
    killed."""
    asked_for = recipe
    recipe = at_hand(recipe, reads=("episodes", "teacher"))
    said = behind_socket(recipe.teacher)
    check_shared(recipe, said)
    if said is not None:
        data = EpisodeDataset(recipe.episodes, recipe.columns)
        return _ask(of_black_box(recipe, address_of(said.checkpoint)), data, said)
    if recipe.shards.on is not None:
        refuse_several("--shards.on is given", fix="give one of the two")
    together = Together.of(recipe.shards, recipe.traces.with_name("shards"))
    loaded = load(recipe)
    recipe = loaded.recipe
    if recipe.probe:
        _fit_once(loaded, together)
    if not world().first:  # the fitting is divided; a store has one that writes
        return recipe.traces
    title = f"traces {recipe.name}"
    if together is not None:
        _share(loaded, together, asked_for, title=title)
        return recipe.traces
    store_traces(
        recipe.traces,
        loaded.store,
        loaded.learner,
        loaded.batches,
        traced=recipe.traced,
        precision=recipe.trace_precision,
        title=title,
    )
    loaded.write_facts()
    annotate(loaded.data, recipe.annotator, recipe.labels)
    return recipe.traces


@dataclass(frozen=True)
class Loaded:
    """A teacher before a data set, and the recipe as it suits both."""

    recipe: Recipe
    data: EpisodeDataset
    teacher: Backbone
    fingerprint: str  # the teacher's
    learner: Learner  # with fresh heads, where there is a probe
    batches: BatchMaker
    device: str

    @property
    def store(self) -> StoreIdentity:
        """What the traces are made from; once the heads are fitted, where there are any."""
        return StoreIdentity(self.data.fingerprint, self.fingerprint, how_watched(self.recipe))

    @property
    def title(self) -> str:
        return f"probe {self.recipe.name}"

    def watched(self) -> Watched:
        """What makes shards of traces of it."""
        answers, columns = watching(
            self.learner,
            self.batches,
            traced=self.recipe.traced,
            precision=self.recipe.trace_precision,
        )
        return Watched(self.batches, answers, columns)

    def write_facts(self) -> None:
        # What `distil` must know of the teacher where its weights are not on that machine.
        TeacherFacts.of(self.teacher, self.fingerprint).write(self.recipe.traces)


def load(recipe: Recipe) -> Loaded:
    """The teacher and the episodes of a recipe, which are at hand."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = EpisodeDataset(recipe.episodes, recipe.columns)
    teacher, fingerprint = load_with_fingerprint(
        recipe.teacher, device=device, known=lambda: robot_of_episodes(recipe, data)
    )
    # The teacher decides how pictures are fitted: traces of others would be of other inputs.
    recipe.agree_on_pictures(teacher.view)
    recipe = suited(recipe, teacher.body.action_spec)
    state = teacher.body.state
    check_episodes(recipe, data, teacher.robot, state=state, title=f"probe {recipe.name}")
    if recipe.teacher_precision == "bf16":
        halve(teacher)
    learner = Learner(teacher)
    batches = make_batches(teacher, load_frames(data, teacher.view, recipe.pictures))
    recipe = with_logits(recipe, teacher, batches)
    if recipe.probe:
        torch.manual_seed(recipe.seed)  # the heads' first weights
        learner.probe = make_heads(teacher, recipe.probe).to(device)
    return Loaded(recipe, data, teacher, fingerprint, learner, batches, device)


def check_shared(recipe: Recipe, said: Said | None) -> None:
    """Raises ValueError where processes are to share what they cannot. `said`: of a teacher behind
    a socket."""
    if recipe.shards.on is not None and said is not None:
        raise ValueError(
            f"--shards.on {recipe.shards.on}: a teacher behind a socket is asked by one process, "
            "about many frames at once; leave it out"
        )
    if recipe.shards.on == "ray" and recipe.shards.tasks is None:
        raise ValueError(
            "--shards.on ray: probe has no workers that would say how many tasks are wanted; give "
            "--shards.tasks as well"
        )


def _share(loaded: Loaded, together: Together, asked_for: Recipe, *, title: str) -> None:
    """The traces and labels, with whoever else was started with the same command; `asked_for`: the
    recipe with whose names others find episodes and teacher on their own disks."""
    recipe = loaded.recipe
    asked = None
    if recipe.annotator is not None:
        asked = Asked(recipe.annotator, loaded.data, recipe.labels)
    probing = Probing(
        together,
        recipe.traces,
        loaded.store,
        loaded.watched(),
        loaded.device,
        beside=loaded.write_facts,
        asked=asked,
    )
    traces = TracesElsewhere(asked_for, together, loaded.store, loaded.device)
    labels = LabelsElsewhere(asked_for, recipe.annotator, loaded.data.fingerprint)
    probing.run(Elsewhere(traces, labels), title=title)


@dataclass(frozen=True)
class TracesElsewhere:
    """Shards of traces, by a process that has loaded nothing yet. Raises ShardError where what it
    loads is not what was loaded by whoever sent it."""

    recipe: Recipe
    together: Together
    store: StoreIdentity
    device: str

    @cached_property
    def _watched(self) -> Watched:
        loaded = load(at_hand(self.recipe, reads=("episodes", "teacher")))
        _check_same("device", loaded.device, self.device)
        _check_same("teacher", loaded.fingerprint, self.store.teacher)
        _check_same("episodes", loaded.data.fingerprint, self.store.data)
        if loaded.recipe.probe:
            _fit_once(loaded, self.together)  # they are fitted: this takes them
        _check_same("probe", loaded.store.preprocessing, self.store.preprocessing)
        return loaded.watched()

    def __call__(self, starts: Sequence[int]) -> bytes:
        return self._watched(starts)


@dataclass(frozen=True)
class LabelsElsewhere:
    """The same of labels."""

    recipe: Recipe
    annotator: Annotator | None
    episodes: str  # the data set's fingerprint

    @cached_property
    def _labelling(self) -> Labelling:
        assert self.annotator is not None
        recipe = at_hand(self.recipe, reads=("episodes",))
        data = EpisodeDataset(recipe.episodes, recipe.columns)
        _check_same("episodes", data.fingerprint, self.episodes)
        return Labelling(self.annotator, data)

    def __call__(self, numbers: Sequence[int]) -> bytes:
        return self._labelling(numbers)


def _check_same(what: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise ShardError(
            f"the {what} of a worker: {found!r}, and {wanted!r} where it was started; every "
            "machine must reach the same teacher and episodes and have the same devices (of tasks "
            "of Ray: --shards.gpus)"
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


def _fit_once(loaded: Loaded, together: Together | None) -> None:
    """Heads that are fitted by this process, or by another of those that share the work: what it is
    shared into are answers of one set of heads."""
    recipe = loaded.recipe
    assert recipe.probe is not None and loaded.learner.probe is not None
    path = recipe.heads_file
    beside = path.with_name(STAGE)  # what they were fitted on, which `distil` reads

    def fit() -> bytes:
        with RunLog(log_of(recipe.log), recipe.out, recipe.name, to_json(recipe)) as log:
            _fit(loaded, log)
        if together is None:
            return b""
        # An older armlet wrote nothing beside them.
        there = [each for each in (path, beside) if each.is_file()]
        return pack({each.name: each.read_bytes() for each in there})

    if together is None:
        fit()
        return
    question = {
        **heads_question(recipe, loaded.data.fingerprint, loaded.fingerprint),
        "stage": settings(recipe.probe.stage),
        "seed": recipe.seed,
        "armlet": source.identity(),
    }
    for name, content in unpack(together.once("heads", question, fit)).items():
        each = path.with_name(name)
        if not each.is_file() or each.read_bytes() != content:
            _refuse_stored(recipe, "is not what was fitted by the process that did it for all")
            write_atomically(each, content)
    load_heads(loaded.learner.probe, path)


def _refuse_stored(recipe: Recipe, why: str) -> None:
    """Raises ValueError where traces were stored with other heads than would be there from now on:
    other students may be learning from them."""
    if (recipe.traces / HEADER).is_file():
        raise ValueError(
            f"{recipe.heads_file.parent}, with whose heads the traces in {recipe.traces} were stored, "
            f"{why}. Nothing was fitted: give another `--shared` (or `--out`), or delete both folders"
        )


def _fit(loaded: Loaded, log: RunLog) -> None:
    """Fitted heads, or those that were fitted by this question before, into the learner. Where
    there is no benchmark, the held-out episodes, which the report is about, are left out of it.

    Where traces were stored with heads of another question, they are refused before anything is
    fitted."""
    recipe = loaded.recipe
    data = loaded.data
    assert recipe.probe is not None and loaded.learner.probe is not None
    path = recipe.heads_file
    rows = None
    if recipe.benchmark is None:
        rows = rows_of(data.starts, parts(data, recipe.split, recipe.held_out, reported=True).train)
    trainer = Trainer(
        loaded.learner,
        recipe.probe.stage,
        loaded.batches,
        folder=path.parent,
        seed=recipe.seed,
        title=loaded.title,
        rows=rows,
        made_from=heads_question(recipe, data.fingerprint, loaded.fingerprint),
        log=log,
    )
    why = trainer.obstacle()  # why what stands in the folder cannot be continued; empty if it can
    if why:
        _refuse_stored(recipe, why)
    # Written last: where the heads are, they are whole.
    if path.exists() and not why:
        load_heads(loaded.learner.probe, path)
        return
    trainer.run()
    if world().first:
        save_heads(loaded.learner.probe, path)
