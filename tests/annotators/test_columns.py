"""Labels in the language columns of a data set come back as they were, and make room for nobody
else's by accident."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from motions import DESCEND_AND_PUSH, PICK_AND_PLACE, PULL_A_DRAWER, data_of

from armlet.annotators import DIRECTIONS, PHASES, LabelError, Labels
from armlet.annotators.columns import read_language, write_language
from armlet.annotators.phase_rules import PhaseRules
from armlet.annotators.store import load_labels, store_labels
from armlet.data.language import read_persistent, remark, write_persistent


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_of(
        tmp_path_factory.mktemp("data") / "d", PICK_AND_PLACE, PULL_A_DRAWER, DESCEND_AND_PUSH
    )


def same(one: Labels, other: Labels) -> bool:
    numbers = np.array_equal(one.phase, other.phase) and np.array_equal(
        one.direction, other.direction
    )
    return numbers and one.element == other.element and one.description == other.description


def test_what_rules_say_comes_back(data, tmp_path) -> None:
    labels = load_labels(store_labels(tmp_path / "s", PhaseRules(), data), data)
    copy = write_language(data, labels, tmp_path / "copy")
    assert same(read_language(copy), labels)
    rows = read_persistent(copy)[1]
    assert [(row["style"], row["content"]) for row in rows][-2:] == [
        ("motion", "operating, pull, "),
        ("subtask", "operating: pull"),
    ]
    assert all(row["camera"] is None and row["role"] == "assistant" for row in rows)


words = st.tuples(
    st.sampled_from(PHASES),
    st.sampled_from(DIRECTIONS),
    st.sampled_from(["", "red drawer", "grüner würfel", "立方", "a-b c"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30),
)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_labels_come_back(data, tmp_path_factory, draw) -> None:
    labels = Labels.named(*zip(*[draw.draw(words) for _ in range(len(data))], strict=True))
    assert same(
        read_language(write_language(data, labels, tmp_path_factory.mktemp("c") / "copy")), labels
    )


def test_ours_are_replaced_and_others_are_kept(data, tmp_path) -> None:
    rules = load_labels(store_labels(tmp_path / "s", PhaseRules(), data), data)
    theirs = [
        [remark("plan", f"plan {number}", 0.0), remark("memory", "seen", 0.0)]
        for number in range(3)
    ]
    first = write_language(
        write_persistent(data, tmp_path / "theirs", theirs), rules, tmp_path / "first"
    )
    other = Labels.named(["holding"] * len(data), None, ["cup"] * len(data))
    second = write_language(first, other, tmp_path / "second")
    assert same(read_language(second), other)
    for number, rows in enumerate(read_persistent(second)):
        assert [row["content"] for row in rows] == [
            "seen",
            "holding, none, cup",
            f"plan {number}",
            "holding the cup",
        ]


def test_another_producers_subtasks_are_not_mixed_with_ours(data, tmp_path) -> None:
    theirs = write_persistent(
        data, tmp_path / "theirs", [[remark("subtask", "reach, then pull", 0.0)]] * 3
    )
    with pytest.raises(LabelError, match="no motion of the form"):
        read_language(theirs)
    labels = Labels.named(["idle"] * len(data))
    with pytest.raises(
        LabelError, match="somebody else wrote the subtask 'reach, then pull' of episode 0"
    ):
        write_language(theirs, labels, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert same(
        read_language(write_language(theirs, labels, tmp_path / "copy", replace=True)), labels
    )


def test_motions_in_other_words_are_not_ours(data, tmp_path) -> None:
    for content in ("move, left, fast", "move forward", "operating, sideways, cup", None):
        target = tmp_path / f"copy-{content}"
        copy = write_persistent(data, target, [[remark("motion", content, 0.0)]] * 3)
        with pytest.raises(LabelError, match="episode 0: no motion of the form"):
            read_language(copy)


def test_labels_of_other_episodes_do_not_fit(data, tmp_path) -> None:
    with pytest.raises(LabelError, match="and there are labels of 2"):
        write_language(data, Labels.named(["idle"] * 2), tmp_path / "copy")
    with pytest.raises(LabelError, match="episode 0: no motion"):
        read_language(data)
