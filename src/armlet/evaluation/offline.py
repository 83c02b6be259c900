"""Policies against held-out episodes, for robots without a simulator: how far their actions lie from
the expert's, and from the teacher's.

Every policy is asked at the same frames of episodes that were not trained on, and says what it
would do from there on. Nothing is executed, so no error of a policy leads it astray, and none of
its answers is a success: the report says so. What explains a small error without any skill is
measured beside it: to say the last action again, the mean action, the mean of each step of a chunk,
the mean episode.

Answers are kept (`asking`), and a killed evaluation asks only the policies that had not been asked.
Knows no benchmark and no world.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from armlet.annotators import PHASES
from armlet.annotators.store import load_labels
from armlet.data.episodes import EpisodeDataset
from armlet.data.files import hold, write_atomically
from armlet.data.pictures import Pictures
from armlet.data.splits import Parts, parts
from armlet.evaluation import listening_offline, measure, speeds
from armlet.evaluation import offline_report as said
from armlet.evaluation.action_errors import (
    MEAN,
    THIRDS,
    Estimate,
    Moments,
    Recording,
    absolute,
    baselines,
    by_dimension,
    by_group,
    by_step,
    choose_rows,
    gripper_agreement,
    moments_at,
    over_episodes,
    share,
    thirds,
)
from armlet.evaluation.asking import Answers, Asker, answers_of
from armlet.evaluation.field import Field
from armlet.evaluation.listening_offline import Judge
from armlet.evaluation.offline_report import (
    Compared,
    Cost,
    Errors,
    OfflineReport,
    Pair,
    PolicyRow,
    Seen,
    numbers,
    said_of,
)
from armlet.evaluation.runtimes import FRAMES, Refused
from armlet.evaluation.settings import check_runtimes
from armlet.lineage import PROVENANCE, digest_text
from armlet.logs import RunLog
from armlet.measuring import EAGER
from armlet.policies.acting import actor_provenance
from armlet.policies.contract import Backbone, Policy
from armlet.recipe import Evaluation, Recipe, to_json
from armlet.robot.observation import Observation, history_of
from armlet.robot.spec import ActionSpec
from armlet.rollout.pool import THREADS, threads

TIMED = 16  # frames whose decisions are timed and counted, in turn
# A dimension does not move where even the mean action errs by less than this share of its largest
# action: dividing by such an error would make rounding the largest error of all.
STILL = 1e-6
NEEDLESS = Seen("unseen", "it is no policy")
# Settings of `Evaluation` that are about a simulator.
IN_A_WORLD = (
    "purpose", "margin", "baselines", "look", "episodes", "splits", "seed", "execute",
    "ensemble", "slower", "late", "guard", "videos", "rerun", "routes", "route_episodes",
)  # fmt: skip


class Contender(Protocol):
    """What is known of a policy on disk: `rollout.pool.Contender`."""

    @property
    def folder(self) -> Path: ...

    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Labelled:
    """An annotator's phases."""

    names: tuple[str, ...]
    groups: np.ndarray  # (N,) int: in which of `names` each row of the data set is


@dataclass(frozen=True)
class Known:
    """What a report says of policies beside their answers, by their names; any may be missing, for
    policies that were never on disk."""

    folders: Mapping[str, str] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    seen: Mapping[str, Seen] = field(default_factory=dict)
    # Of what was exported: the name of the same policy in eager.
    exported_from: Mapping[str, str] = field(default_factory=dict)
    runtimes: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    refused: tuple[Refused, ...] = ()


def run(recipe: Recipe, data: EpisodeDataset, compared: Field) -> Path:
    """Compare the recipe's policies, the teacher first, with its held-out episodes; returns the
    report's path. Writes report.json, table.md and error-by-step.png under `out`/evaluation, or
    `out`/untouched where the recipe has a benchmark."""
    check(recipe.evaluation)
    # Beside the report on episodes that were acted, where there is a world to act in.
    out = recipe.out / ("evaluation" if recipe.benchmark is None else "untouched")
    split = parts(data, recipe.split, recipe.held_out, reported=True)
    folders = {}
    fingerprints = {}
    runtimes = {}
    trained = {}
    for name, contender in compared.contenders.items():
        folders[name] = contender.folder.as_posix()
        fingerprints[name] = contender.fingerprint
        runtimes[name] = compared.runtime(name)
        if name not in compared.exported_from:
            trained[name] = contender
    seen = _provenances(trained, data, split)
    for name, eager in compared.exported_from.items():
        seen[name] = seen[eager]
    known = Known(folders, fingerprints, seen, compared.exported_from, runtimes, compared.refused)
    with hold(out / "evaluating.lock", "evaluating"):
        report = evaluate(
            compared.policies,
            data,
            split.held_out,
            shown=split.train,
            frames=recipe.evaluation.frames,
            calls=recipe.evaluation.latency_calls,
            pictures=recipe.pictures,
            labelled=_labels(recipe, data),
            known=known,
            kept=out / "answers",
            made_with=_fingerprint(recipe),
            listens=recipe.evaluation.listens,
            title=f"evaluate {recipe.name}",
        )
        # NaN is no JSON, and a browser refuses it; `numbers` has made None of it.
        content = json.dumps(report.to_json(), indent=1, allow_nan=False)
        write_atomically(out / "report.json", content.encode())
        table = said.table(report)
        write_atomically(out / "table.md", table.encode())
        said.error_by_step(report, out / "error-by-step.png")
    with RunLog(recipe.log, recipe.out, recipe.name, to_json(recipe)) as log:
        log.series(out).result(digest_text([content]), said.results(report))
    print(table)  # noqa: T201 - the verdict, for the person who ran it
    return out / "report.json"


def frames_of_episodes(
    recipe: Recipe, data: EpisodeDataset, policies: Mapping[str, Policy]
) -> list[Observation]:
    """Moments of episodes that were trained on, at which what is exported is compared with what it
    was made from: on those that are held out, nothing may be chosen."""
    split = parts(data, recipe.split, recipe.held_out, reported=True)
    asked = _asker(data, recipe.pictures)
    rows = choose_rows(asked.recording, split.train, FRAMES)
    return asked.raw(rows, max(map(history_of, policies.values())))


def check(setting: Evaluation) -> None:
    """Raises ValueError for settings of episodes in a simulator: there is none, and they would have
    no effect."""
    usual = Evaluation()
    changed = []
    for name in IN_A_WORLD:
        if getattr(setting, name) != getattr(usual, name):
            changed.append(f"--evaluation.{name}")
    if changed:
        options = ", ".join(changed)
        raise ValueError(
            f"{options}: this recipe has no benchmark, so policies are compared with held-out "
            "episodes and nothing is executed; leave these options out, or give a recipe with a "
            "benchmark"
        )
    if EAGER not in setting.runtimes:
        raise ValueError(
            f"--evaluation.runtimes {' '.join(setting.runtimes)}: name eager as well; with no "
            "episodes to run it costs little, and exported policies are compared with it"
        )
    check_runtimes(setting)


def evaluate(
    policies: Mapping[str, Policy],
    data: EpisodeDataset,
    held_out: np.ndarray,
    *,
    shown: np.ndarray,
    frames: int = 2000,
    calls: int = 200,
    pictures: Pictures | None = None,
    labelled: Labelled | None = None,
    known: Known | None = None,
    kept: Path | None = None,
    made_with: dict[str, Any] | None = None,
    title: str = "evaluate",
    listens: int = 0,
) -> OfflineReport:
    """Policies by name, the first of them the reference (a teacher), at up to `frames` frames of
    the episodes `held_out`; baselines are means of the episodes `shown`.

    `calls`: decisions that are timed, 0: none. `kept`: a folder in which answers are kept.
    `listens`: at most so many frames at which policies are asked once more for each input that is
    changed, 0: none. Raises ValueError where a policy does not fit the data, naming it and the
    camera or number it lacks, or where it answers NaN.
    """
    known = known or Known()
    for name, policy in policies.items():
        check_fits(name, policy, data)
    asked = _asker(data, pictures or Pictures())
    recording = asked.recording
    rows = choose_rows(recording, held_out, frames)
    answers = {}
    for name, policy in policies.items():
        fingerprint = known.fingerprints.get(name)
        answers[name] = answers_of(asked, policy, rows, fingerprint, kept, f"{title}, {name}")
    reference = next(iter(policies))
    spec = policies[reference].robot.action
    comparison = Comparison(recording, rows, shown, answers, reference, spec, labelled)
    costs = _costs(policies, asked, rows, answers, calls, known.exported_from)
    compared = _compared(asked, comparison, held_out, len(shown))
    made = []
    for name in comparison.names:  # policies first, then baselines, which are in no `policies`
        made.append(_row(name, comparison, known, policies.get(name), costs))
    heard, left_out = listening_offline.listen_all(
        policies if listens else {},
        asked,
        choose_rows(recording, held_out, listens or 1),
        Judge(comparison.scale, comparison.moving, comparison.steps),
        known,
        kept=kept,
        title=title,
    )
    pairs = comparison.pairs(tuple(policies)) + comparison.pairs_of(_in_their_runtime(made))
    return OfflineReport(
        compared=compared,
        policies=tuple(made),
        pairs=pairs,
        remarks=_remarks(compared, made),
        refused=known.refused,
        fingerprint=made_with or {},
        listens=heard,
        listens_left_out=left_out,
    )


def _asker(data: EpisodeDataset, pictures: Pictures) -> Asker:
    columns = data.columns()
    actions = columns["action"]  # (N, a)
    # Episodes that armlet recorded also say what was carried out, where a policy was disturbed.
    recording = Recording(actions, columns.get("executed", actions), data.starts, data.runs)
    return Asker(data, recording, columns["observation.state"], pictures)


def _compared(asked: Asker, comparison: "Comparison", held_out: np.ndarray, shown: int) -> Compared:
    data = asked.data
    return Compared(
        data=str(data.root),
        data_fingerprint=data.fingerprint,
        robot=comparison.spec,
        hz=data.fps,
        episodes=tuple(map(int, held_out)),
        shown=shown,
        frames=len(comparison.moments),
        of_frames=len(asked.recording.rows_of(held_out)),
        steps=comparison.steps,
        moving=comparison.moving,
        scale=tuple(map(float, comparison.scale)),
    )


def check_fits(name: str, policy: Policy, data: EpisodeDataset) -> None:
    """Raises ValueError naming the policy and all of the data that it lacks or cannot take."""
    robot = policy.robot
    problems = robot.observation.view.differences(data.cameras)
    counted = (
        ("action", len(data.action_names), robot.action.dims),
        ("observation.state", len(data.state_names), robot.observation.state_dims or 0),
    )
    for what, found, wanted in counted:
        # A policy that was taught without a state does not look at one that is there.
        if found != wanted and (wanted or what == "action"):
            problems.append(f"{what}: the episodes have {found} numbers, the policy {wanted}")
    if problems:
        raise ValueError(
            f"policy {name!r} cannot be compared with {data.root}: {'; '.join(problems)}"
        )


# --- what is said of their answers


class Comparison:
    """Chunks of several policies, and of baselines, at the same n moments. Means over steps are of
    the shortest chunk's, so that all are compared in the same ones."""

    def __init__(
        self,
        recording: Recording,
        rows: np.ndarray,
        shown: np.ndarray,
        answers: Mapping[str, Answers],
        reference: str,
        spec: ActionSpec,
        labelled: Labelled | None,
    ) -> None:
        self.spec = spec
        self.reference = reference
        self.labelled = labelled
        lengths = [each.actions.shape[1] for each in answers.values()]
        self.steps = min(lengths)
        self.moments = moments_at(recording, rows, max(lengths))
        # Name → (n, k, a): policies of their own k, baselines of the longest.
        self.chunks: dict[str, np.ndarray] = {}
        for name, each in answers.items():
            self.chunks[name] = each.actions.astype(np.float64)
        self.chunks |= baselines(recording, shown, self.moments)
        self.names = tuple(self.chunks)
        self.errors = {name: self._errors(chunk) for name, chunk in self.chunks.items()}
        self.valid = self.moments.valid[:, : self.steps]  # (n, steps)
        # (a,) what the mean action errs: by this an error loses its unit, so that radians and
        # metres may be averaged. As the mean absolute scaled error does with a naive forecast
        # (Hyndman and Koehler 2006).
        self.scale = by_dimension(self.errors[MEAN][:, : self.steps], self.valid)
        size = np.maximum(np.abs(self.moments.actions).max((0, 1)), 1e-12)  # (a,)
        moves = self.scale > STILL * size
        arm = [index for index in range(spec.dims) if moves[index] and index not in spec.grippers]
        # Where nothing but grippers moves, they are what errors are about.
        self.moving = tuple(arm) or tuple(np.flatnonzero(moves).tolist())

    def _errors(self, chunk: np.ndarray) -> np.ndarray:
        """(n, k, a), of one policy's own number of steps."""
        return absolute(chunk, self.moments.actions[:, : chunk.shape[1]])

    def share(self, errors: np.ndarray) -> np.ndarray:
        """(n, k) of errors (n, k, a), without units."""
        # A recording in which nothing moves has no scale: 0, and a remark says so.
        if not self.moving:
            return np.zeros(errors.shape[:2])
        return share(errors, self.scale, self.moving)

    def against_expert(self, name: str) -> Errors:
        return self._summary(self.errors[name])

    def against_teacher(self, name: str) -> Errors | None:
        """None of the teacher itself. Steps that the teacher's chunks do not have are left out."""
        if name == self.reference:
            return None
        theirs = self.chunks[self.reference]
        mine = self.chunks[name]
        common = min(mine.shape[1], theirs.shape[1])
        # The teacher's chunk stands where the expert's stands elsewhere.
        return self._summary(absolute(mine[:, :common], theirs[:, :common]))

    def _summary(self, errors: np.ndarray) -> Errors:
        """Errors (n, k, a) of one policy in every way that a report tells them."""
        moments = self.moments
        valid = moments.valid[:, : errors.shape[1]]  # (n, k)
        common = errors[:, : self.steps]  # (n, steps, a)
        shares = self.share(errors)  # (n, k)
        phases: dict[str, np.ndarray] = {}
        if self.labelled is not None:
            groups = self.labelled.groups[moments.rows]  # (n,)
            phases = by_group(common, self.valid, self.labelled.names, groups)
        by_third = by_group(common, self.valid, THIRDS, thirds(moments))
        return Errors(
            share=over_episodes(shares[:, : self.steps], self.valid, moments.episode),
            by_dimension=numbers(by_dimension(common, self.valid)),
            # Of the policy's whole chunk: how errors grow with the step is what chunks trade.
            by_step=tuple(map(numbers, by_step(errors, valid))),
            share_by_step=numbers(by_step(shares[..., None], valid)[:, 0]),
            by_third=_numbers_of(by_third),
            by_phase=_numbers_of(phases),
        )

    def pairs(self, policies: Sequence[str]) -> tuple[Pair, ...]:
        """Each policy against the reference, then each against everything that needs no policy."""
        others = [name for name in self.names if name not in policies]
        found = []
        for name in policies:
            if name != self.reference:
                found.append(self._pair(name, self.reference))
        for name in policies:
            for other in others:
                found.append(self._pair(name, other))
        return tuple(found)

    def pairs_of(self, named: Sequence[tuple[str, str]]) -> tuple[Pair, ...]:
        """These pairs, but for those against the reference, which `pairs` has."""
        return tuple(self._pair(a, b) for a, b in named if b != self.reference)

    def _pair(self, a: str, b: str) -> Pair:
        # (n, steps, a). The interval is of the difference at the same moments, which is narrower
        # than two intervals side by side: what makes a moment hard falls on both.
        difference = self.errors[a][:, : self.steps] - self.errors[b][:, : self.steps]
        episode = self.moments.episode
        dimensions: list[Estimate] = []
        for index in range(self.spec.dims):
            dimensions.append(over_episodes(difference[..., index], self.valid, episode))
        whole = over_episodes(self.share(difference), self.valid, episode)
        return Pair(a, b, whole, tuple(dimensions))


def _numbers_of(groups: Mapping[str, np.ndarray]) -> dict[str, tuple[float | None, ...]]:
    """Name → (a,), as a report has it."""
    found = {}
    for name, values in groups.items():
        found[name] = numbers(values)
    return found


def _row(
    name: str,
    comparison: Comparison,
    known: Known,
    policy: Policy | None,
    costs: Mapping[str, Cost],
) -> PolicyRow:
    spec = comparison.spec
    chunk = comparison.chunks[name]
    ends = (spec.gripper_open, spec.gripper_closed)
    untold = Seen("unknown", "nobody said what it was trained on")
    grippers = {index: spec.names[index] for index in spec.grippers}
    # Grippers too are compared over the steps that all chunks have.
    first = chunk[:, : comparison.steps]
    cut = _first_steps(comparison.moments, comparison.steps)
    library, precision = known.runtimes.get(name, (EAGER, None))
    exported_from = known.exported_from.get(name)
    return PolicyRow(
        name=name,
        # Without a world nothing but the runtime makes two rows of one policy.
        policy=exported_from or name,
        runtime=library,
        precision=precision,
        exported_from=exported_from,
        kind="baseline" if policy is None else "policy",
        chunk=chunk.shape[1],
        execute=None if policy is None else policy.execute,
        folder=known.folders.get(name),
        fingerprint=known.fingerprints.get(name),
        seen=NEEDLESS if policy is None else known.seen.get(name, untold),
        expert=comparison.against_expert(name),
        teacher=comparison.against_teacher(name),
        grippers=gripper_agreement(first, cut, grippers, ends),
        cost=costs.get(name),
    )


def _first_steps(moments: Moments, steps: int) -> Moments:
    """The same moments, with chunks of the first `steps` steps."""
    return Moments(
        rows=moments.rows,
        episode=moments.episode,
        step=moments.step,
        length=moments.length,
        actions=moments.actions[:, :steps],
        valid=moments.valid[:, :steps],
        previous=moments.previous,
        known=moments.known,
    )


def _costs(
    policies: Mapping[str, Policy],
    asked: Asker,
    rows: np.ndarray,
    answers: Mapping[str, Answers],
    calls: int,
    exported_from: Mapping[str, str],
) -> dict[str, Cost]:
    """Of networks: milliseconds on one thread, operations, and which layers ran; of a policy behind
    a socket milliseconds alone, those of the network among them; of one that was exported its own
    milliseconds, and the operations of its network."""
    # Of a policy from elsewhere neither layers nor operations are known.
    networks = {name: p for name, p in policies.items() if isinstance(p, Backbone)}
    timed = {name: p for name, p in policies.items() if isinstance(p, Policy)}
    if not calls or not timed:
        return {}
    # Evenly over all frames; pictures as a camera gives them, so that fitting them is in the time.
    places = np.linspace(0, len(rows) - 1, min(TIMED, len(rows))).astype(np.int64)
    history = max(map(history_of, timed.values()))
    observations = asked.raw(rows[np.unique(places)], history)
    with threads(THREADS):
        timings = measure.latency(timed, observations, calls=calls)
        flops = {}
        for name, policy in networks.items():
            flops[name] = measure.compute(policy, observations)
    found = {}
    for name, other in timed.items():
        # As if every chunk were carried out to its `execute`: nothing is, here.
        per_second = timings[name]["p50"] * asked.data.fps / other.execute
        found[name] = Cost(timings[name], measure.device_of(other), 1, per_second)
    for name, policy in networks.items():
        ran = answers[name].gates.mean(0)  # (l,) how often each layer ran, over all frames
        weights = policy.layer_costs().cpu().numpy()  # (l,)
        found[name] = replace(
            found[name],
            flops=flops[name],
            params=measure.parameters(policy),
            layers=tuple(map(int, policy.layer_numbers)),
            activation=tuple(map(float, ran)),
            keep_ratio=float((ran * weights).sum() / weights.sum()),
        )
    for name, eager in exported_from.items():
        network = found[eager]
        # The same numbers are multiplied, in another place.
        found[name] = replace(found[name], flops=network.flops, params=network.params)
    return found


def _in_their_runtime(rows: Sequence[PolicyRow]) -> list[tuple[str, str]]:
    """Of what was exported: each against the teacher in the same runtime, and against itself in
    eager."""
    said = list(map(said_of, rows))
    found = []
    for row in said:
        if row["exported_from"] is None:
            continue
        teacher = speeds.teacher_beside(row, said)
        if teacher is not None and teacher is not row:
            found.append((row["name"], teacher["name"]))
        found.append((row["name"], row["exported_from"]))
    return found


def _remarks(compared: Compared, rows: Sequence[PolicyRow]) -> tuple[str, ...]:
    """What a reader of the table should know before the numbers."""
    found = []
    if len(compared.episodes) < 2:
        found.append(
            "One episode is held out, so there are no intervals: give --held-out a larger share."
        )
    still = []
    for index, name in enumerate(compared.robot.names):
        if compared.scale[index] <= STILL and index not in compared.robot.grippers:
            still.append(name)
    if still:
        found.append(f"Hardly moves in these episodes, and is not counted: {', '.join(still)}.")
    best = said.best_baseline(rows)
    for row in rows:
        if row.kind == "policy" and row.expert.share.mean >= best.expert.share.mean:
            found.append(
                f"{row.name} is no nearer to the expert than `{best.name}`, which looks at nothing."
            )
    for row in rows:
        if row.cost is not None and "network included" in row.cost.device:
            found.append(f"{row.name} is {row.cost.device} in its milliseconds.")
    # An error on episodes that were trained on is a training error.
    for row in rows:
        if row.kind == "policy" and row.seen.verdict != "unseen":
            found.append(f"{row.name}: {row.seen.why}; its error may be that of episodes it knows.")
    return tuple(found)


# --- what policies were trained on


def _provenances(
    contenders: Mapping[str, Contender], data: EpisodeDataset, split: Parts
) -> dict[str, Seen]:
    """Of each policy on disk, whether it was trained on the held-out episodes. A student that was
    not has still met them through a teacher that was: that is said of it."""
    teacher = next(iter(contenders))
    found: dict[str, Seen] = {}
    for name, contender in contenders.items():
        question = actor_provenance(contender.folder).get(PROVENANCE)
        own = seen_in_training(question, data, split.held_out)
        # By fingerprint: a student of another teacher owes this one nothing.
        of_teacher = (question or {}).get("teacher") == contenders[teacher].fingerprint
        if own.verdict == "unseen" and of_teacher and found[teacher].verdict != "unseen":
            why = (
                f"it was not trained on these episodes itself; of its teacher: {found[teacher].why}"
            )
            own = Seen("through teacher", why)
        found[name] = own
    return found


def seen_in_training(
    question: dict[str, Any] | None, data: EpisodeDataset, held_out: np.ndarray
) -> Seen:
    """Whether a policy that answers `question` (what it was made from, of its provenance) was
    trained on the episodes `held_out` of this data set."""
    if question is None:
        return Seen("unknown", "its folder does not say what it was trained on")
    if question.get("data") != data.fingerprint:
        return Seen(
            "unknown", "it was trained on another data set, and these episodes may be part of it"
        )
    if question.get("held_out") is None:
        return Seen("seen", "it was trained on all episodes of this data set")
    theirs = parts(
        data,
        question.get("split", "last"),
        question["held_out"],
        reported=question.get("reported", False),
    )
    both = np.intersect1d(theirs.train, held_out)
    if len(both):
        return Seen("seen", f"it was trained on {len(both)} of these {len(held_out)} episodes")
    why = "it was not trained on these episodes"
    chosen = np.intersect1d(theirs.calibrate, held_out)
    if len(chosen) and "student" in question:  # a teacher is calibrated on nothing
        why += f", and a router's threshold was chosen on {len(chosen)} of them"
    return Seen("unseen", f"{why} (statistics for normalising, and words, are of all episodes)")


def _labels(recipe: Recipe, data: EpisodeDataset) -> Labelled | None:
    """An annotator's phases, where it has been asked already; a line on stderr where not."""
    if recipe.annotator is None:
        return None
    if not recipe.labels.is_dir():
        sys.stderr.write(
            f"evaluate {recipe.name}: nobody annotated these episodes yet (`armlet probe` does, "
            f"into {recipe.labels}): errors are told by thirds of an episode, not by phase\n"
        )
        return None
    labels = load_labels(recipe.labels, data, recipe.annotator)
    return Labelled(PHASES, np.asarray(labels.phase))


def _fingerprint(recipe: Recipe) -> dict[str, Any]:
    """What this report was made with."""
    return {
        **measure.environment(),
        "recipe": to_json(recipe),
        "split": recipe.split,
        "held_out": recipe.held_out,
    }
