"""On-policy rounds: the student of this moment acts, its teacher labels what it met, and a trial
says whether it may stay.

Which frames a round adds, how often they are drawn, and who is promoted. Knows recipes by their
fields, none by name.
"""

import json
import sys
from pathlib import Path

import numpy as np

from armlet.data.corpus import Part
from armlet.data.episodes import EpisodeDataset
from armlet.data.files import read_json, write_atomically
from armlet.data.frames import Frames, load_frames
from armlet.data.traces import StoreIdentity, TraceStore
from armlet.lineage import as_json, claim, digest_text, digest_weights, set_aside, short
from armlet.policies.checkpoint import policy_fingerprint, save_policy
from armlet.policies.contract import Backbone, Policy
from armlet.policies.remote.policy import SocketPolicy
from armlet.progress import Progress
from armlet.recipe import Recipe, Round, to_json
from armlet.rollout.actors import StudentActs
from armlet.rollout.door import check_world
from armlet.rollout.loop import plan
from armlet.rollout.pool import Attempt, Contender, run_all
from armlet.rollout.recording import acted_on, record
from armlet.training.black_box import frames_for, how_asked, store_answers
from armlet.training.learner import Learner
from armlet.training.masters import halve
from armlet.training.supervision import (
    annotate,
    how_watched,
    labelled,
    load_heads,
    make_heads,
    store_traces,
)
from armlet.training.trainer import make_batches

ROUND = "round.json"
TRIAL_FILE = "trial.json"
# Distances of seeds: episodes of one round, of the next, and of a trial must never be the same.
TRIAL = 5_000_000  # between the seeds of a round's own episodes and those of its trial
NEXT = 10_000  # between those of one round and of the next


def identity_of(policy: Backbone) -> str:
    """A hash of what decides a policy's answers, before it is saved: weights, network, words."""
    described = json.dumps(policy.to_json(), sort_keys=True)
    words = policy.body.tokenizer.to_str()
    return f"{digest_weights(policy.state_dict())} {digest_text([described, words])}"


def round_folder(recipe: Recipe, number: int) -> Path:
    """Where round `number` keeps its episodes, their traces, the student that acted and the
    trial."""
    return recipe.out / f"round-{number}"


def first_seed(recipe: Recipe, number: int) -> int:
    """Of round `number`'s episodes: rounds that are otherwise alike practise in other episodes."""
    return recipe.rounds[number].seed + NEXT * number


def practise(
    recipe: Recipe,
    number: int,
    student: Backbone,
    teacher: Backbone | SocketPolicy,
    fingerprint: str,
) -> tuple[Part, np.ndarray]:
    """Round `number`: the student acts, its teacher, who has this fingerprint, labels what it met.
    Returns the episodes with their traces, and which of their frames (n,) are worth learning from.

    A round of another student, teacher or world that is there already is moved beside: its episodes
    are not what this student met.
    """
    # The teacher never acts here: in its own episodes a student's mistakes do not occur (DAgger,
    # arXiv 1011.0686).
    data = _act(recipe, number, student, teacher, fingerprint)
    folder = round_folder(recipe, number)
    title = f"traces {recipe.name} {number + 1}"
    if isinstance(teacher, Backbone):
        frames = load_frames(data, teacher.view, recipe.pictures)
        store = _watch(recipe, data, frames, teacher, fingerprint, folder / "traces", title)
        if student.view != teacher.view:  # it has eyes of its own
            frames = load_frames(data, student.view, recipe.pictures)
    else:
        # Students see as the stand-in does that they are built from, and the teacher as it is asked.
        frames = load_frames(data, student.view, recipe.pictures)
        asked = frames_for(teacher, data, recipe)
        store = StoreIdentity(data.fingerprint, fingerprint, how_asked(student.body))
        store_answers(folder / "traces", store, teacher, asked, student.body, title=title)
    traces = TraceStore(folder / "traces", store)
    annotate(data, recipe.annotator, folder / "labels")
    frames = labelled(frames, data, recipe.annotator, folder / "labels")
    worth = worth_learning(data, frames, recipe.rounds[number].replay)
    return Part(frames, data.fingerprint, traces), worth


def _watch(
    recipe: Recipe,
    data: EpisodeDataset,
    frames: Frames,
    teacher: Backbone,
    fingerprint: str,
    folder: Path,
    title: str,
) -> StoreIdentity:
    """The teacher's traces of the frames, into the store at `folder`; returns what they are of."""
    if recipe.teacher_precision == "bf16":  # as `probe` watched it
        halve(teacher)
    watched = Learner(teacher)
    if recipe.probe:  # the heads that were fitted to this teacher, as for the first traces
        watched.probe = make_heads(teacher, recipe.probe).to(teacher.device)
        load_heads(watched.probe, recipe.heads_file)
    how = how_watched(recipe)
    store = StoreIdentity(data.fingerprint, fingerprint, how)
    store_traces(
        folder,
        store,
        watched,
        make_batches(teacher, frames),
        traced=recipe.traced,
        precision=recipe.trace_precision,
        title=title,
    )
    return store


def _act(
    recipe: Recipe, number: int, student: Backbone, teacher: Policy, fingerprint: str
) -> EpisodeDataset:
    """The episodes in which the student acts, as its teacher labels them."""
    world = recipe.world("practise")
    each = recipe.rounds[number]
    folder = round_folder(recipe, number)
    seed = first_seed(recipe, number)
    title = f"practise {recipe.name} {number + 1}/{len(recipe.rounds)}"
    # All that decides which episodes come out; where one differs, `claim` moves the old beside.
    question = {
        "student": identity_of(student),
        "teacher": fingerprint,
        "benchmark": {**to_json(world), "fingerprint": world.fingerprint()},
        "episodes": each.episodes,
        "split": each.split,
        "seed": seed,
    }
    # Before the folder is claimed: a world that does not fit must not move good episodes away.
    check_world(student, world, whose="the student")
    check_world(teacher, world, whose=f"the teacher {recipe.teacher}")
    claim(folder, ROUND, question, title=title)
    if not (folder / "student" / "config.json").exists():  # one that is there has acted already
        save_policy(student, folder / "student")
    record(
        folder / "episodes",
        world,
        StudentActs(
            world,
            folder / "student",
            recipe.teacher,
            seed,
            each.split,
            recipe.acting_device,
        ),
        episodes=each.episodes,
        workers=each.workers,
        metadata={
            "benchmark": world.fingerprint(),
            "student": policy_fingerprint(folder / "student"),
            "seed": seed,
            "split": each.split,
            **acted_on(recipe.acting_device),
        },
        title=title,
    )
    return EpisodeDataset(folder / "episodes", recipe.own_columns)


def worth_learning(data: EpisodeDataset, frames: Frames, limit: int | None) -> np.ndarray:
    """The rows (n,) that a round keeps: all, or at most `limit`, those of failed episodes first,
    then those where what the student did lies furthest (mean absolute difference) from what its
    teacher would have done."""
    if limit is None or limit >= len(frames):
        return np.arange(len(frames))
    failed = np.array([not episode.info["success"] for episode in data.episodes])
    distance = np.abs(frames.executed - frames.actions).mean(1)  # (n, a) → (n,)
    # lexsort sorts by its last key first; False comes before True, so failed episodes lead.
    order = np.lexsort((-distance, ~failed.repeat(np.diff(frames.starts))))
    return np.sort(order[:limit])  # again in the order of the data


def mixed(base: np.ndarray, practised: np.ndarray, share: float) -> np.ndarray:
    """The rows `base` once, and those that were practised so often that they are about `share` of
    all (at least once)."""
    # Repeated so that r of them stand beside len(base): r / (r + len(base)) = share.
    times = max(1, round(share / (1 - share) * len(base) / max(len(practised), 1)))
    return np.concatenate([base, np.tile(practised, times)])


def is_promoted(recipe: Recipe, number: int, student: Backbone) -> bool:
    """Whether the student that a round made succeeds as often as before it, on episodes that it did
    not practise on. The verdict is kept in `trial.json`, and read there by a run that is
    resumed."""
    each = recipe.rounds[number]
    folder = round_folder(recipe, number)
    if not each.trial:
        return True
    path = folder / TRIAL_FILE
    question = as_json(
        {
            "student": identity_of(student),
            "episodes": each.trial,
            "split": each.split,
            "seed": _trial_seed(recipe, number),
        }
    )
    if path.exists():
        found = read_json(path, fix="delete it to run the trial again")
        if found.get("made_from") == question:
            return bool(found["promoted"])
        # The candidate ahead of the verdict: killed in between, all of this is done again.
        if (folder / "candidate").exists():
            set_aside(folder / "candidate", short(question))
        aside = set_aside(path, short(question))
        sys.stderr.write(
            f"trial {recipe.name} {number + 1}: {path} is of another student or other episodes; it "
            f"is kept as {aside.name}, and the trial is run anew\n"
        )
    save_policy(student, folder / "candidate")
    # Both in the same episodes: the comparison is paired, so luck with the episodes cancels.
    before, after = _successes(recipe, each, [folder / "student", folder / "candidate"], number)
    verdict = {
        "episodes": each.trial,
        "split": each.split,
        "before": before,
        "after": after,
        "promoted": after >= before,
    }
    write_atomically(path, json.dumps({**verdict, "made_from": question}, indent=1).encode())
    # A tie promotes: the new student has seen more, and did no harm.
    return after >= before


def _trial_seed(recipe: Recipe, number: int) -> int:
    return first_seed(recipe, number) + TRIAL


def _successes(recipe: Recipe, each: Round, folders: list[Path], number: int) -> list[int]:
    """How often each policy succeeds in the same episodes."""
    field = {folder.name: Contender(folder) for folder in folders}
    world = recipe.world("practise")
    held_out = plan(world, each.split, each.trial, _trial_seed(recipe, number))
    jobs = []
    for task, seed in held_out:
        for name in field:  # one after the other in an episode, so that both have equal progress
            jobs.append(Attempt(name, task, seed))
    progress = Progress(
        f"trial {recipe.name} {number + 1}/{len(recipe.rounds)}", total=len(jobs), unit="episode"
    )
    found = dict.fromkeys(field, 0)
    episodes = run_all(field, world, jobs, workers=each.workers, device=recipe.acting_device)
    for attempt, episode in episodes:
        found[attempt.name] += episode.success
        progress.advance()
    progress.close()
    return list(found.values())  # in the order of `folders`
