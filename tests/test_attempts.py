"""Attempts at episodes, where some give nothing to keep: which are made, and which are not again."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from armlet.benchmarks.tabletop import Tabletop
from armlet.data.episodes import EpisodeDataset, EpisodeFrames
from armlet.data.writer import STAGING, EpisodeWriter
from armlet.rollout import recording
from armlet.rollout.recording import features_of, record
from armlet.rollout.together import Together

WORLD = Tabletop()


@dataclass(frozen=True)
class EverySecond:
    """Succeeds at even attempts, and leaves a line for every attempt that is made."""

    log: Path

    def __call__(self, attempt: int) -> EpisodeFrames | None:
        with self.log.open("a") as file:
            file.write(f"{attempt}\n")
        if attempt % 2:
            return None
        features = features_of(WORLD)
        images = {}
        for name, (height, width) in WORLD.camera_sizes.items():
            images[name] = np.full((3, height, width, 3), attempt, np.uint8)
        extra = {name: np.zeros((3, size), np.float32) for name, size in features.extra.items()}
        state = np.zeros((3, len(features.state)), np.float32)
        action = np.zeros((3, len(features.action)), np.float32)
        return EpisodeFrames(images, state, action, extra, "go", {"attempt": attempt})


def made(root: Path, episodes: int, **metadata: str) -> list[int]:
    """The attempts that collecting so many makes."""
    log = root.with_name("log")
    log.write_text("")
    said = {"metadata": metadata, "title": "attempts"}
    record(root, WORLD, EverySecond(log), episodes=episodes, workers=1, **said)
    return sorted(int(line) for line in log.read_text().splitlines())


def test_a_failed_attempt_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    root = tmp_path / "episodes"
    assert made(root, 4) == [0, 1, 2, 3]
    before = EpisodeDataset(root).fingerprint
    assert made(root, 4) == []
    assert made(root, 2) == []
    assert EpisodeDataset(root).fingerprint == before
    assert made(root, 7) == [4, 5, 6]
    assert len(EpisodeDataset(root).episodes) == 4
    # Nor by a newer armlet: those that were kept are not made anew either.
    monkeypatch.setattr(recording.source, "identity", lambda: {"files": "others"})
    capsys.readouterr()
    assert made(root, 7) == []
    said = capsys.readouterr().err
    marks = root / ".cache" / "failed"
    assert said == (
        "attempts: 3 of 7 attempts gave nothing to keep when they were made, and are not made again; "
        f"delete {marks} to have them made by what is here now\n"
    )
    shutil.rmtree(marks)
    assert made(root, 7) == [1, 3, 5]


def test_marks_of_each_state_of_the_code_are_known(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = tmp_path / "episodes"
    made(root, 4)
    older = root / ".cache" / "failed-0123456789abcdef"
    (root / ".cache" / "failed").rename(older)
    (root / ".cache" / "failed.bak").mkdir()
    (root / ".cache" / "failed.bak" / "0").touch()  # not ours
    assert made(root, 4) == []
    assert f"delete {root}/.cache/failed and {older} to have" in capsys.readouterr().err
    shutil.rmtree(older)
    assert made(root, 4) == [1, 3]


def shared(root: Path, episodes: int, meeting: Path) -> list[int]:
    """The same by processes that share the work."""
    log = root.with_name("log")
    log.write_text("")
    together = Together(str(meeting), 2, 30.0)
    said = {"metadata": {}, "title": "attempts", "together": together}
    record(root, WORLD, EverySecond(log), episodes=episodes, workers=1, **said)
    return sorted(int(line) for line in log.read_text().splitlines())


def test_who_shared_the_work_and_who_did_not_know_the_same_failures(
    tmp_path: Path, own_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = tmp_path / "alone"
    assert made(alone, 4) == [0, 1, 2, 3]
    assert shared(alone, 4, tmp_path / "first") == []
    root = tmp_path / "shared"
    assert shared(root, 4, tmp_path / "second") == [0, 1, 2, 3]
    assert EpisodeDataset(root).fingerprint == EpisodeDataset(alone).fingerprint
    assert made(root, 4) == []
    monkeypatch.setattr(recording.source, "identity", lambda: {"files": "others"})
    assert shared(root, 6, tmp_path / "second") == [4, 5]


def test_episodes_that_are_there_are_not_laid_out_again(tmp_path: Path) -> None:
    """A worker of a machine that has nothing makes all of them."""
    features = features_of(WORLD)
    acts = EverySecond(tmp_path / "log")
    content = recording._Packed(acts, features, 10, frozenset())([0, 1, 2, 3])
    for name, have, staged in (("empty", set(), [0, 2]), ("has", {0, 2}, [])):
        writer = EpisodeWriter(tmp_path / name, features, fps=10, robot="arm", metadata={})
        assert recording._stage(writer, content, have) == {1, 3}
        found = (
            (tmp_path / name / STAGING).glob("*") if (tmp_path / name / STAGING).exists() else []
        )
        assert sorted(int(path.name) for path in found if path.name.isdecimal()) == staged


@dataclass(frozen=True)
class Never(EverySecond):
    """Always fails."""

    def __call__(self, attempt: int) -> EpisodeFrames | None:
        return None


def test_where_nothing_was_kept_it_is_said_and_nothing_is_left_half(tmp_path: Path) -> None:
    root = tmp_path / "episodes"
    said = {"metadata": {}, "title": "attempts"}
    for _ in range(2):
        with pytest.raises(ValueError, match="none of 3 attempts gave anything to keep"):
            record(root, WORLD, Never(tmp_path / "log"), episodes=3, workers=1, **said)
    # One that has others stays, whatever is asked of it.
    assert made(tmp_path / "others", 4) == [0, 1, 2, 3]
    record(tmp_path / "others", WORLD, Never(tmp_path / "log"), episodes=0, workers=1, **said)


def test_a_killed_run_goes_on_with_what_it_has_not_tried(tmp_path: Path) -> None:
    root = tmp_path / "episodes"
    made(root, 4)
    killed = tmp_path / "killed"
    (killed / ".cache").mkdir(parents=True)
    marks = killed / ".cache" / "failed"
    marks.mkdir()
    (marks / "1").touch()
    (marks / ".DS_Store").touch()  # not ours
    assert made(killed, 4) == [0, 2, 3]
    assert EpisodeDataset(killed).fingerprint == EpisodeDataset(root).fingerprint


def test_a_file_in_the_place_of_the_marks_is_said_before_anything_is_made(tmp_path: Path) -> None:
    root = tmp_path / "episodes"
    (root / ".cache").mkdir(parents=True)
    (root / ".cache" / "failed").touch()
    with pytest.raises(ValueError, match=r"failed is a file, and the attempts that give nothing"):
        made(root, 4)
    assert not root.with_name("log").read_text()
