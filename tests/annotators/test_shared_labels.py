"""An annotator's labels as several processes share them: each episode is asked about once, what failed
is another round, and nothing is spent that was not agreed to."""

import json
import shutil
from pathlib import Path

import pytest
from motions import PICK_AND_PLACE, PULL_A_DRAWER, data_of
from test_store import Says
from test_together import LEASE, all_at_once, nobody

from armlet.annotators import LabelError, NotConfirmedError
from armlet.annotators.store import FAILED, Labelling, load_labels, store_labels
from armlet.data.episodes import EpisodeDataset
from armlet.data.traces import StoreIdentity
from armlet.rollout.together import Together
from armlet.training.sharing import Asked, Elsewhere, Probing, Watched


class Labelled:
    """What processes that share a probe do with an annotator, over a store of traces without
    rows."""

    def __init__(self, data: EpisodeDataset, folder: Path, annotator: Says) -> None:
        self.folder = folder
        columns = {"x": ((1,), "float16")}
        watched = Watched([], nobody, columns)  # type: ignore[arg-type]  # no batch is asked for
        self.probing = Probing(
            Together(str(folder / "meeting"), 1, LEASE),
            folder / "traces",
            StoreIdentity("data", "teacher", "nothing"),
            watched,
            "cpu",
            beside=lambda: None,
            asked=Asked(annotator, data, folder / "labels"),
        )

    def run(self) -> None:
        self.probing.run(Elsewhere(nobody, nobody), title="traces")


@pytest.fixture(scope="module")
def motions(tmp_path_factory) -> EpisodeDataset:
    drawers = [PULL_A_DRAWER] * 5
    return data_of(tmp_path_factory.mktemp("motions") / "d", PICK_AND_PLACE, *drawers)


def test_two_that_share_an_annotator_ask_once_and_store_what_one_does(motions, tmp_path) -> None:
    says = Says()
    store_labels(tmp_path / "alone", Says(), motions)
    labelled = Labelled(motions, tmp_path, says)
    all_at_once(labelled.run, labelled.run, labelled.run)
    for name in ("rows-000.bin", "keys.bin", "header.json"):
        found = (tmp_path / "labels" / name).read_bytes()
        assert found == (tmp_path / "alone" / name).read_bytes(), name
    assert sorted(says.asked) == list(range(6))
    labelled.run()
    assert len(says.asked) == 6, "whoever comes later finds it done"
    assert not list((tmp_path / "meeting").glob("labels-*/results/*"))


def test_episodes_without_labels_are_another_round_of_those_that_share_an_annotator(
    motions, tmp_path
) -> None:
    with pytest.raises(LabelError, match=r"2 of 6 episodes have no labels.*\n.*episode 1"):
        Labelled(motions, tmp_path, Says(fails=frozenset({1, 4}))).run()
    listed = json.loads((tmp_path / "labels" / FAILED).read_text())
    assert [each["episode"] for each in listed] == [1, 4]
    worse = Says(fails=frozenset({4}))
    with pytest.raises(LabelError, match=r"1 of 6 episodes have no labels"):
        Labelled(motions, tmp_path, worse).run()
    assert sorted(worse.asked) == [1, 4]
    # Another machine lays the last round out, on its own disk, and all before it.
    shutil.rmtree(tmp_path / "labels")
    again = Says()
    Labelled(motions, tmp_path, again).run()
    assert again.asked == [4] and not (tmp_path / "labels" / FAILED).exists()
    store_labels(tmp_path / "alone", Says(), motions)
    found = load_labels(tmp_path / "labels", motions, Says())
    assert found.description == load_labels(tmp_path / "alone", motions).description


def test_those_that_share_an_annotator_spend_what_was_agreed_to_beforehand(
    motions, tmp_path
) -> None:
    says = Says(price=7.0)
    with pytest.raises(NotConfirmedError, match=r"\$7\.00.*agree beforehand \(--annotator\.yes"):
        Labelled(motions, tmp_path, says).run()
    assert says.asked == [] and not (tmp_path / "traces").exists()


def test_a_worker_for_whom_no_episode_works_leaves_them_to_others(motions, monkeypatch) -> None:
    monkeypatch.setattr("armlet.annotators.store.GIVE_UP", 4)
    labelling = Labelling(Says(fails=frozenset(range(6))), motions)
    labelling([0])
    labelling([1, 2])
    with pytest.raises(LabelError, match=r"4 episodes failed one after the other.*episode 3"):
        labelling([3])
