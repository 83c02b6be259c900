"""What policies listen to where there is no world to act in: how much further their actions lie from the
recorded ones, and how far from what they answer as they are, with one input changed at a time.

Errors are those of a comparison with held-out episodes, without units: 1 is that of the mean action
(`offline`). A change under which a policy answers the same to the bit at every frame is said, and has
no row. Knows recorded episodes; knows no world.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from armlet.evaluation.action_errors import Estimate, absolute, moments_at, over_episodes, share
from armlet.evaluation.asking import Answers, Asker, answers_of
from armlet.evaluation.listening import changes_of
from armlet.evaluation.listens import AS_IS, LeftOut
from armlet.policies.contract import Policy
from armlet.rollout.changes import OF_WORDS, Change


@dataclass(frozen=True)
class Listened:
    """One policy with one input changed, or as it is."""

    policy: str
    of: str  # which input; empty: none, as it is
    change: str
    frames: int
    error: Estimate  # from the recorded actions, without units
    # More error than as it is, at the same frames; None of the policy as it is.
    difference: Estimate | None
    moved: Estimate | None  # from its own answers as it is, without units


class Known(Protocol):
    """What is known of policies by their names: `offline.Known`."""

    @property
    def fingerprints(self) -> Mapping[str, str]: ...

    @property
    def exported_from(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class Judge:
    """How errors lose their units: divided by `scale` (a,), over the dimensions `moving`, in the
    first `steps` of a chunk."""

    scale: np.ndarray
    moving: tuple[int, ...]
    steps: int


@dataclass(frozen=True)
class Question:
    """Who is asked, at which rows (n,) of the episodes, and where answers are kept (None: they are
    not)."""

    name: str
    policy: Policy
    fingerprint: str | None
    rows: np.ndarray
    kept: Path | None
    title: str


def listen_all(
    policies: Mapping[str, Policy],
    asked: Asker,
    rows: np.ndarray,
    judge: Judge,
    known: Known,
    *,
    kept: Path | None,
    title: str,
) -> tuple[tuple[Listened, ...], tuple[LeftOut, ...]]:
    """Several policies, each at `rows` (n,) of the episodes; see `listen`."""
    fingerprints = known.fingerprints
    found: list[Listened] = []
    left_out: list[LeftOut] = []
    for name, policy in policies.items():
        # What was exported answers as its network does.
        if name in known.exported_from:
            continue
        question = Question(name, policy, fingerprints.get(name), rows, kept, title)
        its, out = listen(question, asked, judge)
        found += its
        left_out += out
    return tuple(found), tuple(left_out)


def listen(
    question: Question, asked: Asker, judge: Judge
) -> tuple[tuple[Listened, ...], tuple[LeftOut, ...]]:
    """One policy as it is and with one input changed at a time; and what was left out."""
    name = question.name
    as_it_is = _answers(question, asked, question.rows, None)
    found = [_row(name, None, asked, question.rows, as_it_is, as_it_is, judge)]
    changes, left_out = changes_of(name, question.policy)
    for change in changes:
        rows, why = _rows_of(change, asked, question.rows)
        if not why:
            mine = np.isin(question.rows, rows)
            before = Answers(as_it_is.actions[mine], as_it_is.gates[mine])
            try:
                answers = _answers(question, asked, rows, change)
            # A policy says so what it does not take: a text too long, say.
            except ValueError as error:
                why = f"the policy refuses it: {error}"
            else:
                if np.array_equal(answers.actions, before.actions):
                    why = f"the policy answers the same to the bit at {len(rows)} frames"
        if why:
            left_out.append(LeftOut(name, change.of, change.words, why))
        else:
            found.append(_row(name, change, asked, rows, answers, before, judge))
    return tuple(found), tuple(left_out)


def _answers(question: Question, asked: Asker, rows: np.ndarray, change: Change | None) -> Answers:
    what = AS_IS if change is None else change.words
    return answers_of(
        asked,
        question.policy,
        rows,
        question.fingerprint,
        question.kept,
        f"{question.title}, {question.name}, {what}",
        change=change,
    )


def _rows_of(change: Change, asked: Asker, rows: np.ndarray) -> tuple[np.ndarray, str]:
    """At which of the rows (n,) a change can be made; where at none, why."""
    if change.what not in OF_WORDS:
        return rows, ""
    possible = np.array([asked.said_instead(change, row) is not None for row in rows.tolist()])
    if possible.any():
        return rows[possible], ""
    whys = {
        "other_task": "the episodes have one instruction only",
        "other_thing": "recorded episodes do not say what else could have been asked for",
        "shuffled": "no instruction has two different words",
        "empty": "every instruction is empty already",
    }
    return rows[possible], whys[change.what]


def _row(
    name: str,
    change: Change | None,
    asked: Asker,
    rows: np.ndarray,
    answers: Answers,
    before: Answers,
    judge: Judge,
) -> Listened:
    """`before`: its answers as it is at the same rows (n,)."""
    moments = moments_at(asked.recording, rows, judge.steps)

    def estimate(errors: np.ndarray) -> Estimate:
        """Of errors (n, steps, a) in the robot's units."""
        shares = share(errors, judge.scale, judge.moving)
        return over_episodes(shares, moments.valid, moments.episode)

    own = answers.actions[:, : judge.steps]
    its = before.actions[:, : judge.steps].astype(np.float64)
    errors = absolute(own, moments.actions)
    if change is None:
        return Listened(name, "", AS_IS, len(rows), estimate(errors), None, None)
    return Listened(
        policy=name,
        of=change.of,
        change=change.words,
        frames=len(rows),
        error=estimate(errors),
        difference=estimate(errors - absolute(its, moments.actions)),
        moved=estimate(absolute(own, its)),
    )


# --- in words


def table_lines(listened: Sequence[Listened], left_out: Sequence[LeftOut]) -> list[str]:
    """One row a policy and change, what each policy listens to, and what was left out; none where
    nobody asked."""
    if not listened:
        return []
    lines = [
        "| policy | changed | frames | error (mean action = 1) | more than as it is "
        "| away from its own answers |",
        "|---|---|---|---|---|---|",
    ]
    for row in listened:
        cells = [
            row.policy,
            row.change,
            str(row.frames),
            _said(row.error, signed=False),
            _said(row.difference, signed=True),
            _said(row.moved, signed=False),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for policy in dict.fromkeys(row.policy for row in listened):
        lines += _sentences(policy, listened)
    for each in left_out:
        why = " ".join(each.why.split())
        lines.append(f"- {each.policy}, {each.change}: no row, {why}")
    return lines


def _sentences(policy: str, listened: Sequence[Listened]) -> list[str]:
    heard = []
    unheard = []
    for row in listened:
        if row.policy != policy or row.difference is None:
            continue
        ends = row.difference.ci95
        if ends is not None and ends[0] > 0:
            heard.append(row.change)
        else:
            unheard.append(row.change)
    lines = []
    if heard:
        lines.append(f"- **{policy} listens to** what makes its error larger: {'; '.join(heard)}.")
    if unheard:
        lines.append(f"- {policy}: no larger error is shown with {'; '.join(unheard)}.")
    return lines


def _said(estimate: Estimate | None, *, signed: bool) -> str:
    if estimate is None:
        return "–"
    kind = "+.3f" if signed else ".3f"
    text = f"{estimate.mean:{kind}}"
    if estimate.ci95 is not None:
        text += f" ({estimate.ci95[0]:{kind}} to {estimate.ci95[1]:{kind}})"
    return text.replace("-", "−")
