"""The client of a vision-language model, against a real server that is slow, failing, and talks
nonsense."""

import dataclasses
import io
import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from chat_server import Reply, pictures, serve, words
from motions import DESCEND_AND_PUSH, OPEN, PICK_AND_PLACE, PULL_A_DRAWER, WIDE, data_of

from armlet.annotators import DIRECTIONS, PHASES, Cost, LabelError, NotConfirmedError
from armlet.annotators.store import load_labels, store_labels
from armlet.annotators.vlm import ServerError, Vlm, confirm_on_terminal
from armlet.data.episodes import EpisodeFrames

LET_GO_AND_RISE = ("approaching", 1, (0, 0, 1), OPEN, WIDE)
PULL_AND_PUSH = (*PULL_A_DRAWER, LET_GO_AND_RISE, *DESCEND_AND_PUSH)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five episodes with no, one, one, two and one operating segment, of 4 or 5 steps."""
    root = tmp_path_factory.mktemp("data") / "d"
    return data_of(
        root, PICK_AND_PLACE, PULL_A_DRAWER, DESCEND_AND_PUSH, PULL_AND_PUSH, PULL_A_DRAWER
    )


def vlm(url: str, root: Path, **fields) -> Vlm:
    return Vlm(
        "tiny-vl",
        url,
        root / "cache",
        # Key frames of the segment alone, but where a test says otherwise.
        **{"retries": 3, "timeout": 5.0, "concurrency": 2, "span": 0.0, **fields},
    )


def yes(_) -> bool:
    return True


def test_what_the_model_says_holds_for_the_segment(data, tmp_path) -> None:
    with serve() as chat:
        labels = load_labels(
            store_labels(tmp_path / "s", vlm(chat.url, tmp_path), data, confirm=yes), data
        )
    operating = labels.phase == PHASES.index("operating")
    assert len(chat.requests) == 5 and operating.sum() == 22
    assert {labels.element[row] for row in np.flatnonzero(operating)} == {"red drawer"}
    assert {labels.description[row] for row in np.flatnonzero(operating)} == {
        "operating: pull the red drawer"
    }
    assert (labels.direction[operating] == DIRECTIONS.index("pull")).all()
    assert not labels.direction[~operating].any() and {
        labels.element[row] for row in np.flatnonzero(~operating)
    } == {""}
    assert chat.keys == ["Bearer none"] * 5


def test_the_right_frames_arrive_as_pictures(data, tmp_path) -> None:
    with serve() as chat:
        store_labels(
            tmp_path / "s",
            vlm(chat.url, tmp_path, frames=3, enlarge=2, concurrency=1),
            data,
            confirm=yes,
        )
    drawer = next(each for each in chat.requests if len(pictures(each)) == 3)
    shown, kept = pictures(drawer), data.images(1)["scene"]
    for picture, step in zip(shown, (4, 6, 7), strict=True):  # operating from step 4 to 7
        assert picture.shape == (64, 64, 3) and np.array_equal(picture[::2, ::2], kept[step])
    asked = words(drawer)
    assert (
        "Phase: operating" in asked
        and '"open the red drawer"' in asked
        and "0.4 s" in asked
        and "pull, left" in asked
    )
    assert drawer["model"] == "tiny-vl" and drawer["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(
    ("span", "shown", "over"),
    [
        (0.4, (4, 6, 7), "over it."),
        # As much before as behind: episode 3 goes on behind its first segment.
        (0.8, (2, 6, 9), "over 0.8 s, of which it is the part from 0.2 to 0.6 s."),
        # More than there is behind is taken from before, and no more than the episode has.
        (9.0, (0, 8, 16), "over 1.7 s, of which it is the part from 0.4 to 0.8 s."),
    ],
)
def test_a_short_segment_is_shown_with_what_is_around_it(
    data, tmp_path, span: float, shown: tuple[int, ...], over: str
) -> None:
    columns = data.columns()
    one = slice(data.starts[3], data.starts[4])
    state, action = columns["observation.state"][one], columns["action"][one]
    episode = EpisodeFrames(data.images(3), state, action, {}, "open the red drawer", {})
    annotator = vlm("http://127.0.0.1:9/v1", tmp_path, span=span, frames=3)
    (start, stop), *_ = annotator._segments(annotator.rules.annotate(episode, 10), episode)
    assert (start, stop) == (4, 8)
    (_, asked) = annotator._messages(episode, start, stop, 10)
    text, *frames = asked["content"]
    assert over in text["text"]
    kept = [f"{step}" for step in shown]
    assert len(frames) == 3 and annotator._shown(episode, start, stop, 10) == list(map(int, kept))
    halves = ("one thing",) * 4 + ("another",) * (len(state) - 4)
    cut = dataclasses.replace(episode, asked=halves)
    assert min(annotator._shown(cut, start, stop, 10)) == 4, "nothing of another instruction"


def test_agreed_to_beforehand_nobody_is_asked_up_to_a_bound(data, tmp_path, capsys) -> None:
    """As in a job without a terminal; a server that refuses the key ends it in words."""
    with serve() as chat:
        dear = {"price_in": 2.0, "price_out": 10.0, "yes": True}
        annotator = vlm(chat.url, tmp_path, most=0.001, **dear)
        with pytest.raises(NotConfirmedError, match=r"more than the \$0\.00 that were agreed to"):
            store_labels(tmp_path / "s", annotator, data, confirm=confirm_on_terminal)
        assert chat.requests == []
        annotator = vlm(chat.url, tmp_path, **dear)
        store_labels(tmp_path / "s", annotator, data, confirm=confirm_on_terminal)
        assert len(chat.requests) == 5
        assert "about $0.0" in capsys.readouterr().err, "what it costs is said all the same"


def test_a_question_has_the_words_of_its_frames(data, tmp_path) -> None:
    """Episode 1 operates from step 4 to 7; told something else from step 6 on, it is asked about
    twice."""
    columns = data.columns()
    one = slice(data.starts[1], data.starts[2])
    length = one.stop - one.start
    asked = ("open it",) * 6 + ("close it",) * (length - 6)
    state, action = columns["observation.state"][one], columns["action"][one]
    episode = EpisodeFrames(data.images(1), state, action, {}, "open it", {}, asked)
    with serve() as chat:
        vlm(chat.url, tmp_path).confirmed().annotate(episode, 10)
    assert [("open it" in words(each), "close it" in words(each)) for each in chat.requests] == [
        (True, False),
        (False, True),
    ]
    assert [len(pictures(each)) for each in chat.requests] == [2, 2]


def test_no_call_before_somebody_agreed(data, tmp_path) -> None:
    with serve() as chat:
        annotator = vlm(chat.url, tmp_path, price_in=2.0, price_out=10.0)
        with pytest.raises(NotConfirmedError, match=r"5 questions with 22 pictures"):
            store_labels(tmp_path / "s", annotator, data)
        with pytest.raises(NotConfirmedError):
            store_labels(
                tmp_path / "s", annotator, data, confirm=confirm_on_terminal
            )  # there is no terminal here
        columns = data.columns()
        one = slice(data.starts[1], data.starts[2])
        episode = EpisodeFrames(
            data.images(1), columns["observation.state"][one], columns["action"][one], {}, "x", {}
        )
        with pytest.raises(NotConfirmedError, match="nobody confirmed"):
            annotator.annotate(episode, 10)
        assert chat.requests == []
        costs = []
        store_labels(
            tmp_path / "s", annotator, data, confirm=lambda cost: costs.append(cost) or True
        )
    cost = costs[0]
    assert cost.frames == 4 + 5 + 4 + 5 + 4 and cost.tokens_out == 5 * 200
    assert cost.tokens_in > 22 * (4 + 2) and cost.price == pytest.approx(
        (cost.tokens_in * 2 + cost.tokens_out * 10) / 1e6
    )


@pytest.mark.parametrize(
    "fault",
    [Reply(status=500), Reply(status=429), Reply(reset=True), Reply(delay=0.6), Reply(status=503)],
)
def test_what_passes_is_tried_again(data, tmp_path, fault: Reply) -> None:
    with serve(lambda number, _: fault if number in (0, 3) else Reply()) as chat:
        store_labels(
            tmp_path / "s", vlm(chat.url, tmp_path, timeout=0.3, concurrency=1), data, confirm=yes
        )
    assert len(chat.requests) == 7 and len(load_labels(tmp_path / "s", data)) == len(data)


def test_a_server_that_stays_down_loses_nothing(data, tmp_path) -> None:
    def answer(number, request):
        return Reply(status=500) if "5 frames" in words(request) else Reply()

    with serve(answer) as chat:
        annotator = vlm(chat.url, tmp_path, retries=1)
        with pytest.raises(
            LabelError,
            match=r"2 of 5 episodes(.|\n)*episode 2, steps 3 to 7: after 2 tries.*answered 500",
        ):
            store_labels(tmp_path / "s", annotator, data, confirm=yes)
        assert [
            each["episode"] for each in json.loads((tmp_path / "s/failed.json").read_text())
        ] == [2, 3]
        asked = len(chat.requests)
        chat.answer = lambda *_: Reply()
        store_labels(tmp_path / "s", annotator, data, confirm=yes)
        assert len(chat.requests) == asked + 2, (
            "of the episode with two segments only one was still missing"
        )


@pytest.mark.parametrize(
    "nonsense",
    [
        "The robot opens the drawer.",
        '{"element": "red drawer", "direction": "sideways"}',
        '{"element": "red drawer", "direction": "none"}',
        '{"element": "red drawer"}',
        '{"element": ["red"], "direction": "pull"}',
        '{"element": "; drop table", "direction": "pull"}',
        "[]",
        "",
    ],
)
def test_an_answer_outside_the_vocabulary_is_told_so(data, tmp_path, nonsense: str) -> None:
    with serve(
        lambda number, request: Reply(nonsense) if len(request["messages"]) == 2 else Reply()
    ) as chat:
        labels = load_labels(
            store_labels(tmp_path / "s", vlm(chat.url, tmp_path), data, confirm=yes), data
        )
    assert "red drawer" in labels.element and len(chat.requests) == 10
    told = next(each for each in chat.requests if len(each["messages"]) == 4)["messages"]
    assert told[2] == {"role": "assistant", "content": nonsense} and told[3]["content"].startswith(
        "That will not do: "
    )


@pytest.mark.parametrize(
    "body", [b'{"choices": []}', b"{}", b"<html>gone</html>", b'{"choices": null}']
)
def test_no_answer_at_all_becomes_an_error_and_is_asked_again(data, tmp_path, body: bytes) -> None:
    with serve(lambda *_: Reply(body=body)) as chat:
        annotator = vlm(chat.url, tmp_path, repeats=1, retries=0)
        with pytest.raises(
            LabelError, match=r"4 of 5 episodes have no labels(.|\n)*episode [134], steps 4 to 7: "
        ):
            store_labels(tmp_path / "s", annotator, data, confirm=yes)
        assert len(chat.requests) in (5, 10) and not list(tmp_path.glob("cache/*"))
        chat.answer = lambda *_: Reply()
        store_labels(tmp_path / "s", annotator, data, confirm=yes)


def test_what_will_never_work_stops_at_once(data, tmp_path) -> None:
    with serve(lambda *_: Reply(status=401)) as chat:
        with pytest.raises(
            ServerError,
            match=r"answered 401.*check the server, the model's name \('tiny-vl'\) and the key",
        ):
            store_labels(tmp_path / "s", vlm(chat.url, tmp_path, concurrency=1), data, confirm=yes)
        assert len(chat.requests) < 4


def test_answers_are_asked_for_together_and_kept(data, tmp_path) -> None:
    with serve(lambda *_: Reply(delay=0.2)) as chat:
        store_labels(tmp_path / "a", vlm(chat.url, tmp_path, concurrency=4), data, confirm=yes)
        assert chat.most_busy == 4 and len(chat.requests) == 5
        labels = store_labels(
            tmp_path / "b", vlm(chat.url, tmp_path), data, confirm=yes
        )  # another store, the same cache
        assert len(chat.requests) == 5
        next((tmp_path / "cache").iterdir()).write_text('{"answ')
        store_labels(tmp_path / "c", vlm(chat.url, tmp_path), data, confirm=yes)
        assert len(chat.requests) == 6, "a damaged answer costs asking again"
        store_labels(tmp_path / "d", vlm(chat.url, tmp_path, frames=4), data, confirm=yes)
        assert len(chat.requests) == 8, (
            "other pictures are another question, where a segment is long enough to have others"
        )
        store_labels(
            tmp_path / "e",
            dataclasses.replace(vlm(chat.url, tmp_path), model="other"),
            data,
            confirm=yes,
        )
        assert len(chat.requests) == 13
    assert load_labels(labels, data).element == load_labels(tmp_path / "a", data).element
    assert not list(tmp_path.glob("cache/*.part"))


def test_the_model_may_use_its_own_words(data, tmp_path) -> None:
    said = {
        "element": "the blue handle",
        "direction": "Pull",
        "description": "The gripper  draws the handle back — slowly.",
    }
    with serve(lambda *_: Reply(f"```json\n{json.dumps(said)}\n```")) as chat:
        annotator = vlm(chat.url, tmp_path, own_words=True)
        labels = load_labels(store_labels(tmp_path / "s", annotator, data, confirm=yes), data)
    assert (
        "blue handle" in labels.element
        and "The gripper draws the handle back — slowly." in labels.description
    )
    assert '"description"' in words(chat.requests[0])
    long = json.dumps(said | {"description": "long " * 80})
    with serve(lambda *_: Reply(long)) as chat, pytest.raises(LabelError, match="256 at most"):
        store_labels(
            tmp_path / "t", vlm(chat.url, tmp_path / "t", own_words=True), data, confirm=yes
        )


def test_the_key_comes_from_a_file(data, tmp_path) -> None:
    (tmp_path / "key").write_text("sesame\n")
    with serve() as chat:
        store_labels(
            tmp_path / "s", vlm(chat.url, tmp_path, key_file=tmp_path / "key"), data, confirm=yes
        )
    assert set(chat.keys) == {"Bearer sesame"}


KILLED = """
from pathlib import Path
from armlet.annotators.store import store_labels
from armlet.annotators.vlm import Vlm
from armlet.data.episodes import EpisodeDataset
store_labels({store!r}, Vlm("tiny-vl", {url!r}, Path({cache!r}), concurrency=1, span=0.0), EpisodeDataset({data!r}), confirm=lambda _: True)
"""


def test_a_killed_run_asks_only_what_is_missing(data, tmp_path) -> None:
    with serve(lambda *_: Reply(delay=0.3)) as chat:
        where = {
            "store": str(tmp_path / "s"),
            "url": chat.url,
            "cache": str(tmp_path / "cache"),
            "data": str(data.root),
        }
        run = subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED.format(**where))])
        while len(chat.requests) < 3:
            assert run.poll() is None
            time.sleep(0.02)
        run.kill()
        run.wait()
        chat.answer = lambda *_: Reply()
        store_labels(tmp_path / "s", vlm(chat.url, tmp_path), data, confirm=yes)
    assert len(chat.requests) == 6 and len(set(chat.questions())) == 5, (
        "only the question under way was asked twice"
    )
    assert load_labels(tmp_path / "s", data).element.count("red drawer") == 22


def test_without_the_library_it_says_what_to_install(data, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[vlm\]'"):
        store_labels(tmp_path / "s", vlm("http://127.0.0.1:9/v1", tmp_path), data, confirm=yes)


@pytest.mark.parametrize(
    ("typed", "agreed"),
    [("y\n", True), ("yes\n", True), ("\n", False), ("no\n", False), ("", False)],
)
def test_a_person_is_shown_the_price_and_asked(
    monkeypatch, capsys, typed: str, agreed: bool
) -> None:
    terminal = io.StringIO(typed)
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    assert confirm_on_terminal(Cost(81_000, 405_000, 60_000_000, 4_000_000, 7.0)) is agreed
    assert "81000 questions with 405000 pictures" in capsys.readouterr().err


def test_fields_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="frames is 0; expected 1 or more"):
        Vlm("m", "u", Path("c"), frames=0)
