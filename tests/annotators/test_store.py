"""Labels as values and on disk: exact, joined to their episodes, resumed, and never cut."""

import dataclasses
import json
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from motions import DESCEND_AND_PUSH, PICK_AND_PLACE, PULL_A_DRAWER, data_of

from armlet.annotators import (
    DESCRIPTION_BYTES,
    DIRECTIONS,
    PHASES,
    AnnotationError,
    Annotator,
    Cost,
    LabelError,
    Labels,
    NotConfirmedError,
    annotator_fingerprint,
    describe,
    element_name,
)
from armlet.annotators.phase_rules import TABLETOP, PhaseRules
from armlet.annotators.store import FAILED, load_labels, store_labels
from armlet.data.episodes import EpisodeFrames

texts = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=40)


@dataclass(frozen=True)
class Says(Annotator):
    """Answers what it is told to, counts how often it is asked, and fails where it should."""

    words: tuple[str, str] = ("roter würfel 立方", "der Arm schiebt den Würfel nach links ←")
    fails: frozenset[int] = frozenset()
    price: float = 0.0
    yes: bool = False
    asked: list = field(default_factory=list)

    def fingerprint(self) -> dict:
        return {"words": list(self.words)}

    def estimate(self, episodes, sizes, fps) -> Cost | None:
        return Cost(len(list(episodes)), 0, 0, 0, self.price) if self.price else None

    def confirmed(self) -> "Says":
        return dataclasses.replace(self, yes=True)

    def annotate(self, episode: EpisodeFrames, fps: float) -> Labels:
        assert self.yes or not self.price
        number = episode.info["attempt"]
        self.asked.append(number)
        if number in self.fails:
            time.sleep(0.05)
            raise AnnotationError([(2, 5, "no words for it")])
        length = len(episode.state)
        return Labels.named(
            ["idle"] * length,
            None,
            [self.words[0]] * length,
            [f"{self.words[1]} {s}" for s in range(length)],
        )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_of(
        tmp_path_factory.mktemp("data") / "d",
        PICK_AND_PLACE,
        PULL_A_DRAWER,
        DESCEND_AND_PUSH,
        PULL_A_DRAWER,
    )


def test_labels_come_back_as_they_were(data, tmp_path) -> None:
    rules = PhaseRules(TABLETOP)
    labels = load_labels(store_labels(tmp_path / "rules", rules, data), data, rules)
    assert len(labels) == len(data)
    columns = data.columns()
    for number, (start, stop) in enumerate(zip(data.starts[:-1], data.starts[1:], strict=True)):
        alone = EpisodeFrames(
            {}, columns["observation.state"][start:stop], columns["action"][start:stop], {}, "", {}
        )
        wanted = rules.annotate(alone, data.fps)
        mine = labels.part(start, stop)
        assert np.array_equal(mine.phase, wanted.phase) and np.array_equal(
            mine.direction, wanted.direction
        )
        assert (mine.element, mine.description) == (wanted.element, wanted.description), number


def test_words_of_any_script_come_back(data, tmp_path) -> None:
    says = Says()
    labels = load_labels(store_labels(tmp_path / "says", says, data), data)
    assert set(labels.element) == {says.words[0]}
    assert labels.description[int(data.starts[1])] == f"{says.words[1]} 0"
    assert labels.elements()[0] == (says.words[0],) and not labels.elements()[1].any()


def test_rules_do_not_decode_pictures(data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(type(data), "images", lambda *_: pytest.fail("decoded a video for nothing"))
    store_labels(tmp_path / "rules", PhaseRules(), data)


def test_only_what_is_missing_is_asked_again(data, tmp_path) -> None:
    says = Says(fails=frozenset({1, 3}))
    with pytest.raises(
        LabelError,
        match=r"2 of 4 episodes have no labels(.|\n)*episode 1, steps 2 to 4: no words for it",
    ):
        store_labels(tmp_path / "s", says, data)
    assert [each["episode"] for each in json.loads((tmp_path / "s" / FAILED).read_text())] == [1, 3]
    with pytest.raises(LabelError, match="`armlet probe` again adds the missing ones"):
        load_labels(tmp_path / "s", data)
    again = Says()
    labels = load_labels(store_labels(tmp_path / "s", again, data), data)
    assert (
        sorted(again.asked) == [1, 3]
        and len(labels) == len(data)
        and not (tmp_path / "s" / FAILED).exists()
    )
    third = Says()
    store_labels(tmp_path / "s", third, data)
    assert third.asked == []


def test_an_annotator_that_stops_loses_nothing(data, tmp_path) -> None:
    class Stops(Says):
        def annotate(self, episode, fps):
            if episode.info["attempt"] == 2:
                raise KeyboardInterrupt
            return super().annotate(episode, fps)

        def fingerprint(self):
            return Says().fingerprint()

    Stops.__name__ = "Says"
    with pytest.raises(KeyboardInterrupt):
        store_labels(tmp_path / "s", Stops(), data)
    again = Says()
    store_labels(tmp_path / "s", again, data)
    assert 0 not in again.asked and 2 in again.asked


def test_it_gives_up_when_nothing_works(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("armlet.annotators.store.GIVE_UP", 2)
    data = data_of(tmp_path / "d", *[PULL_A_DRAWER] * 6)
    says = Says(fails=frozenset(range(6)))
    with pytest.raises(LabelError, match=r"6 of 6 episodes have no labels(.|\n)*not tried"):
        store_labels(tmp_path / "s", says, data)
    assert len(says.asked) < 6


def test_nothing_is_spent_unconfirmed(data, tmp_path) -> None:
    says, shown = Says(price=7.0), []
    for confirm in (None, lambda cost: bool(shown.append(cost))):
        with pytest.raises(NotConfirmedError, match=r"4 questions.*\$7.00"):
            store_labels(tmp_path / "s", says, data, confirm=confirm)
    assert says.asked == [] and shown[0].price == 7
    store_labels(tmp_path / "s", says, data, confirm=lambda _: True)
    assert sorted(says.asked) == [0, 1, 2, 3]


def test_labels_of_others_are_refused(data, tmp_path) -> None:
    store_labels(tmp_path / "s", Says(), data)
    others = data_of(tmp_path / "d", PICK_AND_PLACE)
    with pytest.raises(LabelError, match="belong to other episodes"):
        load_labels(tmp_path / "s", others)
    with pytest.raises(LabelError, match="belong to another annotator"):
        load_labels(tmp_path / "s", data, Says(("box", "x")))
    with pytest.raises(LabelError, match="belong to another annotator"):
        store_labels(tmp_path / "s", PhaseRules(), data)
    with pytest.raises(LabelError, match=r"holds no labels .* `armlet probe` of the recipe"):
        load_labels(tmp_path / "nothing", data)
    assert annotator_fingerprint(Says()) != annotator_fingerprint(Says(("box", "x")))


def test_too_few_labels_are_refused(data, tmp_path) -> None:
    class Short(Says):
        def annotate(self, episode, fps):
            return super().annotate(episode, fps).part(0, 3)

    with pytest.raises(LabelError, match=r"episode 0 has \d+ frames, and the annotator labelled 3"):
        store_labels(tmp_path / "s", Short(), data)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(PHASES), st.sampled_from(DIRECTIONS), texts),
        min_size=1,
        max_size=12,
    )
)
def test_any_words_survive_the_row(entries) -> None:
    from armlet.annotators.store import _texts, _words

    described = [describe(*entry) for entry in entries]
    labels = Labels.named([e[0] for e in entries], [e[1] for e in entries], None, described)
    assert _words(_texts(labels.description, DESCRIPTION_BYTES, "description")) == tuple(described)
    assert sum(stop - start for start, stop in labels.segments()) == len(entries)


def test_labels_check_themselves() -> None:
    with pytest.raises(LabelError, match="'flying' is not in the vocabulary: idle"):
        Labels.named(["flying"])
    with pytest.raises(LabelError, match="one entry a frame"):
        Labels(np.zeros(3, np.int64), np.zeros(2, np.int64), ("",) * 3, ("",) * 3)
    with pytest.raises(LabelError, match="from 0 to 8, found 0 to 9"):
        Labels(np.arange(10), np.zeros(10, np.int64), ("",) * 10, ("",) * 10)
    with pytest.raises(LabelError, match="'Red Box' is not as labels keep it: 'red box'"):
        Labels.named(["idle"], None, ["Red Box"])
    with pytest.raises(LabelError, match="has 300 bytes; 256 at most"):
        Labels.named(["idle"], None, None, ["ö" * 150])


def test_names_of_things() -> None:
    assert element_name("  The  Red drawer ") == "red drawer" and element_name("the") == "the"
    for bad in ("", "  ", "drawer; rm", "a b c d e f g h", "ö" * 40, "tab\0"):
        with pytest.raises(LabelError):
            element_name(bad)


def test_what_a_student_is_told() -> None:
    assert describe("approaching") == "approaching"
    assert describe("transporting", element="red cube") == "transporting the red cube"
    assert describe("operating", "pull", "red drawer") == "operating: pull the red drawer"
