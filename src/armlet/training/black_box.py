"""A teacher of whom nothing but actions is known: what a student must know of it, and its answers to
every frame, as traces.

Its actions come in the robot's own numbers; students, and so traces, have them as the data's
statistics normalise them. What a network of ours would say of itself (sizes, words, cameras) is said
by a stand-in: the network that `armlet teach` would make for these episodes, with the teacher's
chunk, whose weights nobody reads.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from armlet.data.episodes import EpisodeDataset
from armlet.data.frames import Frames, load_frames
from armlet.data.observing import keys_of, observations
from armlet.data.traces import Columns, StoreIdentity, TraceStore, TraceWriter
from armlet.lineage import digest_text
from armlet.policies.contract import Body
from armlet.policies.facts import TeacherFacts
from armlet.policies.fitting import FitsRobot, fitted
from armlet.policies.remote.policy import SocketPolicy
from armlet.progress import Progress
from armlet.recipe import Recipe
from armlet.robot.client.line import AnswerError
from armlet.robot.normalise import check_sane
from armlet.robot.spec import ActionSpec
from armlet.training.body import ACTION, body_of
from armlet.types import LAYERS

ROWS = 128  # whose pictures are read at a time
KEPT = 32  # answers that wait to be written, at most
PATIENCE = 2.0  # seconds that they wait, at most: a kill loses no more
AGAIN = 8  # frames that are asked about a second time
ROUNDING = 2.0**-9  # of float16, in which answers are kept: two of its last digits


def facts_of(
    recipe: Recipe,
    data: EpisodeDataset,
    spec: ActionSpec,
    state_names: tuple[str, ...],
    *,
    chunk: int,
    execute: int,
    fingerprint: str,
) -> TeacherFacts:
    """What a student of a teacher of this robot, chunk and fingerprint must know, by the recipe's
    network and the statistics of these episodes."""
    network = recipe.network
    if network is None:
        raise ValueError(
            f"recipe {recipe.name!r} has no `network`, in whose shape students of a teacher behind a "
            "socket are made; give it one"
        )
    body = body_of(recipe, data, spec, state_names)
    network = network.suited(body, data.columns()[ACTION])
    if isinstance(network, FitsRobot):  # its chunk is a time, and the teacher's is a number
        network = network.network
    sizes = {}
    for name, (height, _) in recipe.pictures.view(
        data.cameras, whose=str(data.root)
    ).cameras.items():
        sizes[name] = height  # a view is square
    named = fitted(network, sizes, chunk=chunk, execute=execute)
    return replace(TeacherFacts.of(named.build(body, sizes), fingerprint), black_box=True)


def how_asked(body: Body) -> str:
    """How a teacher was asked, for the `preprocessing` of a store's identity: its answers are kept
    normalised."""
    return f"answers, normalised by {digest_text([json.dumps(body.actions.to_json())])}"


def facts_of_server(recipe: Recipe, data: EpisodeDataset, server: SocketPolicy) -> TeacherFacts:
    """The same, of a server that answers."""
    robot = server.robot
    return facts_of(
        recipe,
        data,
        robot.action,
        robot.observation.state_names,
        chunk=server.chunk,
        execute=server.execute,
        fingerprint=server.fingerprint,
    )


def frames_for(teacher: SocketPolicy, data: EpisodeDataset, recipe: Recipe) -> Frames:
    """The episodes as the teacher is shown them."""
    return load_frames(data, teacher.robot.observation.view, recipe.pictures)


def store_answers(
    root: Path,
    store: StoreIdentity,
    teacher: SocketPolicy,
    frames: Frames,
    body: Body,
    *,
    title: str,
) -> None:
    """What the teacher answers to every frame, into the store at `root`: `actions` (k, a), normalised
    as `body` says. Rows that are there already are not asked again, and what was answered before an
    error, or a kill, is kept.

    Raises ServerError and AnswerError naming the server, the episode and the step; AnswerError, too,
    where it answers some of the frames differently when they are asked about again.
    """
    columns: Columns = {"actions": ((teacher.chunk, body.action_spec.dims), "float16")}
    with TraceWriter(root, store, columns) as writer:
        done = set(map(tuple, writer.done().tolist()))  # (episode, step) of a run that was killed
        keys = keys_of(frames, np.arange(len(frames)))
        missing = [row for row, key in enumerate(map(tuple, keys.tolist())) if key not in done]
        rows = np.array(missing, np.int64)
        progress = Progress(title, total=len(frames), start=len(done), unit="row")
        for start in range(0, len(rows), ROWS):
            some = rows[start : start + ROWS]
            _ask_and_keep(writer, teacher, frames, body, some, progress)
        progress.close()
    _ask_again(root, store, teacher, frames, body, title=title)


def _ask_and_keep(
    writer: TraceWriter,
    teacher: SocketPolicy,
    frames: Frames,
    body: Body,
    rows: np.ndarray,
    progress: Progress,
) -> None:
    keys = keys_of(frames, rows)
    waiting: list[np.ndarray] = []  # (m, k, a) each
    first = 0  # of those that wait, among `rows`
    since = time.monotonic()

    def keep() -> None:
        nonlocal first, since
        since = time.monotonic()
        if not waiting:
            return
        answers = np.concatenate(waiting)
        waiting.clear()
        _check_scale(teacher, answers, body)
        normalised = body.actions.apply(answers).astype(np.float32)
        writer.append(keys[first : first + len(answers)], {"actions": normalised})
        progress.advance(len(answers))
        first += len(answers)

    try:
        for answers in teacher.answers(observations(frames, rows), _names(keys)):
            waiting.append(answers)
            if sum(map(len, waiting)) >= KEPT or time.monotonic() - since > PATIENCE:
                keep()
    finally:
        keep()


def _names(keys: np.ndarray) -> Sequence[str]:
    return [f"episode {episode}, step {step}" for episode, step in keys.tolist()]


def _check_scale(teacher: SocketPolicy, answers: np.ndarray, body: Body) -> None:
    """Raises AnswerError where the numbers cannot be this robot's."""
    spec = body.action_spec
    try:
        check_sane("actions", answers.reshape(-1, spec.dims), body.actions, spec.names)
    except ValueError as error:
        raise AnswerError(
            f"{teacher.url} answers in other numbers than the robot's: {error}"
        ) from error


def _ask_again(
    root: Path,
    store: StoreIdentity,
    teacher: SocketPolicy,
    frames: Frames,
    body: Body,
    *,
    title: str,
) -> None:
    """A few frames from all over, whose answers must be what is stored, to a rounding."""
    rows = np.unique(np.linspace(0, len(frames) - 1, AGAIN).astype(np.int64))
    keys = keys_of(frames, rows)
    kept = TraceStore(root, store).read(keys)["actions"].float().numpy()  # (n, k, a)
    answers = teacher.ask(observations(frames, rows), _names(keys))
    again = body.actions.apply(answers).astype(np.float16).astype(np.float32)
    gap = np.abs(again - kept)
    room = ROUNDING * np.maximum(np.abs(kept), 1.0)
    if (gap <= room).all():
        return
    row = int(np.argmax((gap - room).max((1, 2))))
    said = (
        f"{teacher.url} answers frames differently when they are asked about again: by up to "
        f"{gap.max():.3g}, normalised, at {_names(keys)[row]}"
    )
    if not teacher.options.identity:
        raise AnswerError(
            f"{said}. It draws noise, or remembers what it was asked before. Make it repeatable and "
            f"delete {root}; or say who it is (`identity` in [options] of a policy.toml), and what "
            "it draws is learnt as it comes"
        )
    sys.stderr.write(f"{title}: {said}; it draws, and what it drew is what is learnt\n")


def of_black_box(recipe: Recipe, whose: str) -> Recipe:
    """The recipe where of its teacher actions alone are known: a student that would take layers
    from it, and can start from nothing, does; what all stages would leave as the teacher had it is
    trained; layers that count for nothing are not read. `whose`: the teacher, for an error.

    Raises ValueError, one sentence, where the recipe needs more of its teacher than actions.
    """
    reasons = []
    student = recipe.student
    fresh = student
    if student is not None and student.needs_teacher:
        fresh = student.from_nothing()
        if fresh is None:
            reasons.append(
                f"its student ({type(student).__name__}) is made from the teacher's weights"
            )
    stages = recipe.all_stages
    if stages and stages[0].teacher is not None:
        reasons.append("the average that teaches its first stage starts from the teacher's weights")
    told = [replace(stage, objective=stage.objective.without_layers()) for stage in stages]
    # Weights that no stage trains are the teacher's: of a fresh network they would stay random.
    if fresh != student:
        never = frozenset.intersection(*(frozenset(stage.freeze) for stage in told))
        for index, stage in enumerate(told):
            kept = tuple(pattern for pattern in stage.freeze if pattern not in never)
            told[index] = replace(stage, freeze=kept)
    first = len(recipe.stages)
    rounds = []
    for each, stage in zip(recipe.rounds, told[first:], strict=True):
        rounds.append(replace(each, stage=stage))
    read: set[str] = set()
    for stage in told:
        if stage.teacher is None:
            read |= stage.needs - {"actions"}
        read |= stage.objective.wants & LAYERS
    if read:
        reasons.append(f"its objectives read {', '.join(sorted(read))}")
    if reasons:
        raise ValueError(
            f"of {whose} nothing but actions is known, and recipe {recipe.name!r} needs more: "
            f"{'; '.join(reasons)}. Recipes that learn from actions alone are action_kd, vla_ad, "
            "aed_actions and bc"
        )
    return replace(
        recipe,
        student=fresh,
        stages=tuple(told[:first]),
        rounds=tuple(rounds),
        probe=None,
        traced=("actions",),
        trace_precision="fp32",  # nobody here multiplies
    )
