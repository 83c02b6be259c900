"""Phases by rule: plain motions have the names they should, and the scripted expert mostly
agrees."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from motions import (
    APPROACH,
    CARRY,
    CLOSED,
    DESCEND_AND_PUSH,
    GRASP,
    LIFT,
    LOWER,
    NOTHING,
    OPEN,
    PICK_AND_PLACE,
    PULL_A_DRAWER,
    RELEASE,
    THING,
    WIDE,
    play,
)

from armlet.annotators import DIRECTIONS, PHASES, Labels
from armlet.annotators.phase_rules import METAWORLD, TABLETOP, PhaseRules
from armlet.data.episodes import EpisodeFrames

RULES = PhaseRules(TABLETOP)


def names(labels: Labels) -> list[str]:
    return [PHASES[phase] for phase in labels.phase]


def directions(labels: Labels) -> set[str]:
    return {
        DIRECTIONS[way]
        for way, phase in zip(labels.direction, names(labels), strict=True)
        if phase == "operating"
    }


@pytest.mark.parametrize(
    "parts", [PICK_AND_PLACE, PULL_A_DRAWER, DESCEND_AND_PUSH], ids=["place", "drawer", "push"]
)
def test_plain_motions(parts) -> None:
    episode, wanted = play(*parts)
    labels = RULES.annotate(episode, 10)
    assert names(labels) == wanted
    assert set(labels.element) == {""} and labels.description[-1].startswith(wanted[-1])


def test_directions_are_those_of_the_robots_axes() -> None:
    assert directions(RULES.annotate(play(*PULL_A_DRAWER)[0], 10)) == {"pull"}
    assert directions(RULES.annotate(play(*DESCEND_AND_PUSH)[0], 10)) == {"left"}
    assert set(RULES.annotate(play(*PICK_AND_PLACE)[0], 10).direction) == {DIRECTIONS.index("none")}


def test_rest_has_its_names() -> None:
    wait = ("idle", 4, (0, 0, 0), OPEN, WIDE)
    keep = ("holding", 4, (0, 0, 0), CLOSED, THING)
    stop = ("completed", 4, (0, 0, 0), OPEN, WIDE)
    episode, wanted = play(wait, APPROACH, GRASP, LIFT, keep, CARRY, LOWER, RELEASE, stop)
    assert names(RULES.annotate(episode, 10)) == wanted


def test_what_is_dropped_is_grasped_again() -> None:
    """A thing let go is being placed, unless the fingers close there again: then it had been
    lost."""
    dropped = ("transporting", 2, (0, 0, 1), CLOSED, THING)
    back = ("approaching", 2, (0, 0, -1), OPEN, WIDE)
    again = ("regrasping", 1, (0, 0, 0), CLOSED, WIDE)
    episode, wanted = play(APPROACH, GRASP, dropped, back, again, LIFT, CARRY, LOWER, RELEASE)
    assert names(RULES.annotate(episode, 10)) == wanted


def test_fingers_that_close_on_nothing_have_failed() -> None:
    empty = ("grasping", 1, (0, 0, 0), CLOSED, NOTHING)
    opens = ("approaching", 1, (0, 0, 0), OPEN, NOTHING)
    again = ("regrasping", 1, (0, 0, 0), CLOSED, WIDE)
    episode, wanted = play(APPROACH, GRASP, empty, opens, again, LIFT, CARRY)
    found = names(RULES.annotate(episode, 10))
    assert found[3] == wanted[3] == "grasping" and found[6:] == wanted[6:]


@settings(max_examples=40, deadline=None)
@given(
    x=st.floats(-0.3, 0.3),
    y=st.floats(-0.3, 0.3),
    angle=st.floats(0, 2 * np.pi),
    parts=st.sampled_from([PICK_AND_PLACE, PULL_A_DRAWER, DESCEND_AND_PUSH]),
)
def test_phases_do_not_depend_on_where_it_happens_or_which_way(x, y, angle, parts) -> None:
    episode, wanted = play(*parts)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    state, action = episode.state.copy(), episode.action.copy()
    state[:, :2] = state[:, :2] @ turn.T + [x, y]
    action[:, :2] = (
        0.7 * action[:, :2] @ turn.T
    )  # a diagonal command of full length would be clipped
    assert names(RULES.annotate(EpisodeFrames({}, state, action, {}, "", {}), 10)) == wanted


def test_another_robots_numbers_mean_the_same() -> None:
    """The gripper command's sign, the places of the numbers, and absolute commands are values of
    the embodiment."""
    episode, wanted = play(*PICK_AND_PLACE)
    state = np.concatenate([episode.state[:, 3:], episode.state[:, :3]], 1)
    action = np.concatenate(
        [episode.state[:, :3], -episode.action[:, 3:]], 1
    )  # where to be, and how far to open
    other = dataclasses.replace(
        TABLETOP,
        position=(1, 2, 3),
        opening=0,
        closes_above=False,
        metres_per_command=None,
        clear=0.04,
    )
    found = names(PhaseRules(other).annotate(EpisodeFrames({}, state, action, {}, "", {}), 10))
    assert found == wanted


def test_short_interruptions_belong_to_what_they_interrupt() -> None:
    episode, wanted = play(*DESCEND_AND_PUSH)
    episode.action[5] = [0, 0, 1, CLOSED]
    assert names(RULES.annotate(episode, 10))[5] == "approaching"
    patient = PhaseRules(dataclasses.replace(TABLETOP, shortest=0.2))
    assert names(patient.annotate(episode, 10)) == wanted


def test_a_fingerprint_holds_every_threshold() -> None:
    assert PhaseRules(TABLETOP).fingerprint() != PhaseRules(METAWORLD).fingerprint()
    assert PhaseRules(dataclasses.replace(TABLETOP, near=0.1)).fingerprint() != RULES.fingerprint()


def test_a_single_frame_has_a_phase() -> None:
    assert len(RULES.annotate(play(("approaching", 1, (1, 0, 0), OPEN, WIDE))[0], 10)) == 1


def test_the_expert_agrees(monkeypatch) -> None:
    """bench/phases.py measures it on 700 episodes; this is a smaller one, on other seeds."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    sys.modules.pop("phases", None)
    import phases

    recorded = phases.record(28, 800_000_000)
    steps = [step for step in phases.label(recorded) if not step[-1]]
    assert phases.agreement(steps) > 0.93
    assert phases.agreement([step for step in steps if not step[1]]) > 0.98
    assert phases.agreement(phases.label(recorded, flipped=0.05)) > 0.8
