"""What a model that errs nowhere would say, against motions whose thing is known; and words that
cannot help."""

import dataclasses

import numpy as np
import pytest
from motions import PICK_AND_PLACE, PULL_A_DRAWER, data_of, play

from armlet.annotators import DIRECTIONS, PHASES, LabelError
from armlet.annotators.controls import ConstantWords, PhaseCodes
from armlet.annotators.phase_rules import PhaseRules
from armlet.annotators.store import load_labels, store_labels
from armlet.annotators.truth import SUBJECT, SimulatorWords
from armlet.data.episodes import EpisodeFrames

WORDINGS = (
    ("place", "put the {object} {relation} the {target}"),
    ("open", "pull the {object} open"),
    ("open", "pull out the {object}"),
    ("rake", "use the rake to pull the {object} closer"),
)
WORDS = SimulatorWords(WORDINGS)


def told(parts, task: str, text: str) -> EpisodeFrames:
    """A motion in which the thing is where the hand is, from the grasp on."""
    episode, names = play(*parts)
    places = episode.state[:, :3].copy()
    grasped = names.index("grasping") + 1
    places[:grasped] = places[grasped]
    extra = {**episode.extra, SUBJECT: places}
    return dataclasses.replace(episode, extra=extra, task=text, info={"task": task})


def test_things_and_directions_are_those_of_the_simulator() -> None:
    episode = told(PICK_AND_PLACE, "place", "put the blue cylinder into the white box")
    labels = WORDS.annotate(episode, 10)
    assert set(labels.element) == {"blue cylinder"}, "in every frame, and not the box"
    found = {}
    for phase, way in zip(labels.phase, labels.direction, strict=True):
        found.setdefault(PHASES[phase], DIRECTIONS[way])
    assert found["approaching"] == "none" == found["grasping"]
    # Two steps up and three to the left (+y), 5 cm each: the longer way is the stretch's name.
    assert found["transporting"] == "left"
    assert "transporting: left the blue cylinder" in labels.description
    drawer = WORDS.annotate(told(PULL_A_DRAWER, "open", "pull out the red drawer"), 10)
    assert drawer.description[-1] == "operating: pull the red drawer"
    rules = PhaseRules().annotate(told(PULL_A_DRAWER, "open", "pull out the red drawer"), 10)
    assert np.array_equal(drawer.phase, rules.phase), "phases are the rules'"


def test_a_thing_that_hardly_moves_has_no_direction() -> None:
    episode = told(PULL_A_DRAWER, "open", "pull the red drawer open")
    places = episode.extra[SUBJECT] * 0.05  # 4 steps of 2.5 mm
    still = dataclasses.replace(episode, extra={**episode.extra, SUBJECT: places})
    assert not WORDS.annotate(still, 10).direction.any()
    finer = dataclasses.replace(WORDS, still=0.001)
    assert finer.annotate(still, 10).direction.any()


def test_only_operating_where_it_says_so() -> None:
    episode = told(PULL_A_DRAWER, "open", "pull the red drawer open")
    labels = dataclasses.replace(WORDS, everywhere=False).annotate(episode, 10)
    for phase, element in zip(labels.phase, labels.element, strict=True):
        assert (element == "red drawer") == (PHASES[phase] == "operating")


def test_the_thing_is_read_from_the_wording_of_its_own_task() -> None:
    assert WORDS.element("rake", "use the rake to pull the green ball closer") == "green ball"
    with pytest.raises(LabelError, match="is in none of the 2 wordings of the task 'open'"):
        WORDS.element("open", "the red drawer should be open")
    episode = told(PULL_A_DRAWER, "open", "pull the red drawer open")
    with pytest.raises(LabelError, match=r"has no privileged\.subject.*take another annotator"):
        WORDS.annotate(dataclasses.replace(episode, extra={}), 10)


def test_the_fingerprint_is_of_all_that_decides() -> None:
    others = [
        dataclasses.replace(WORDS, wordings=WORDINGS[:2]),
        dataclasses.replace(WORDS, everywhere=False),
        dataclasses.replace(WORDS, still=0.02),
    ]
    prints = [str(each.fingerprint()) for each in (WORDS, *others)]
    assert len(set(prints)) == 4


def test_controls_say_nothing_or_the_phase_and_no_word(tmp_path) -> None:
    data = data_of(tmp_path / "data", PICK_AND_PLACE, PULL_A_DRAWER)
    rules = load_labels(store_labels(tmp_path / "r", PhaseRules(), data), data)
    codes = load_labels(store_labels(tmp_path / "p", PhaseCodes(), data), data)
    pairs = set(zip(rules.phase.tolist(), codes.description, strict=True))
    assert len(pairs) == len({code for _, code in pairs}) == len({phase for phase, _ in pairs})
    assert all(len(code) == 1 for _, code in pairs) and not codes.direction.any()
    assert np.array_equal(codes.phase, rules.phase)
    same = load_labels(store_labels(tmp_path / "c", ConstantWords("stirring"), data), data)
    assert set(same.description) == {"stirring"} and not same.phase.any()
