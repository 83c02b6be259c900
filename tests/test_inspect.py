"""`armlet inspect`: what it says of a data set and of a policy, and what it leaves alone."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import make_policy

from armlet import inspect
from armlet.__main__ import main as command
from armlet.data import sheet
from armlet.data.description import suggest
from armlet.data.door import robot_of
from armlet.data.episodes import EpisodeDataset, EpisodeFrames, Features
from armlet.data.writer import EpisodeWriter
from armlet.policies.checkpoint import save_policy
from armlet.robot.bounds import Bounds
from armlet.robot.description import (
    FILE,
    Described,
    RobotOptions,
    UnknownRobotError,
    completed,
)

NAMES = ("base.pos", "lift.pos", "gripper.pos")


def frames(number: int, *, length: int = 45) -> EpisodeFrames:
    """An arm that is told places, and reaches them a frame later."""
    rng = np.random.default_rng(number)
    places = np.cumsum(rng.normal(size=(length + 1, 3)), 0) + [20.0, 50.0, 0.0]
    places[:, 2] = np.where(np.arange(length + 1) < 20, 100.0, 0.0)
    shade = np.arange(length, dtype=np.uint8)[:, None, None, None]
    front = np.broadcast_to(shade, (length, 32, 48, 3)) + rng.integers(0, 99, (32, 48, 3), np.uint8)
    images = {"front": front, "off": np.zeros((length, 16, 16, 3), np.uint8)}
    return EpisodeFrames(images, places[:-1], places[1:], {}, "lift it")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inspected") / "set"
    features = Features(NAMES, NAMES, {"front": (32, 48), "off": (16, 16)})
    writer = EpisodeWriter(root, features, fps=20, robot="somebody's", metadata={})
    for number in range(4):
        writer.add(frames(number))
    writer.finalise()
    return root


def test_a_stranger_reads_what_the_data_are(written: Path, tmp_path: Path) -> None:
    page = inspect.main(str(written), out=tmp_path)
    assert "4 episodes of somebody's, 180 frames at 20 Hz (9.0 s)" in page
    assert re.search(r"0 base\.pos .* degrees\?", page)
    assert re.search(r"mode +absolute +sure", page)
    assert re.search(r"grippers +2 \(gripper\.pos\) sure", page)
    assert re.search(r"gripper open +100 +likely", page)
    assert "camera off: one flat colour" in page
    following = page.splitlines()[-1]
    assert following.endswith(
        f"armlet teach actdistill --episodes {written} --robot.file {tmp_path / FILE}"
    )


def test_guesses_are_no_facts_until_somebody_says_so(written: Path, tmp_path: Path) -> None:
    inspect.main(str(written), out=tmp_path, pictures=False)
    path = tmp_path / FILE
    said = Described.read(path)
    assert said == Described(mode="absolute", rotation="none", grippers=(2,))
    data = EpisodeDataset(written)
    facts = Described(names=NAMES, low=(0.0,) * 3, high=(1.0,) * 3, control_hz=20)
    with pytest.raises(UnknownRobotError) as raised:
        completed(said.over(facts), suggestions=suggest(data).asking)
    assert raised.value.missing == ("gripper_open", "gripper_closed")
    path.write_text(path.read_text().replace("#? ", ""))
    spec = completed(Described.read(path).over(facts))
    assert (spec.gripper_open, spec.gripper_closed) == (100, 0)
    # What the data say themselves, taken as it stands there, is what they say.
    text = re.sub(
        r"^# (?=(?:low|high|names|control_hz|state_names) = )", "", path.read_text(), flags=re.M
    )
    path.write_text(text)
    measured = data.measured("action")
    said = Described.read(path)
    assert (said.low, said.high) == (tuple(measured["min"]), tuple(measured["max"]))
    assert said.names == NAMES == said.state_names and said.control_hz == 20


def test_a_file_that_was_corrected_is_left_as_it_is(written: Path, tmp_path: Path) -> None:
    path = tmp_path / FILE
    inspect.main(str(written), out=tmp_path, pictures=False)
    first = path.read_bytes()
    inspect.main(str(written), out=tmp_path, pictures=False)
    assert path.read_bytes() == first
    corrected = first.replace(b"#? gripper_open", b"gripper_open")
    path.write_bytes(corrected)
    assert "left as it is" in inspect.main(str(written), out=tmp_path, pictures=False)
    assert path.read_bytes() == corrected
    path.write_text('mode = "delta"\n')  # as it came with the episodes
    inspect.main(str(written), out=tmp_path, pictures=False)
    assert path.read_text() == 'mode = "delta"\n'
    outdated = first.replace(b"absolute", b"delta")
    path.write_bytes(outdated)
    inspect.main(str(written), out=tmp_path, pictures=False)
    assert path.read_bytes() == outdated, "the mark is of what stands below it"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('names = ["a", "a", "b"]', "names must name each number once"),
        ('rotation = "quaternion"', "a quaternion has 4 numbers and an action 3"),
        ("grippers = []\ngripper_open = 1.0", "that there is none"),
        ("control_hz = 50.0", "50 (control_hz)"),
        ('mode = "absolute"\nrotation = "none"\ngrippers = ["jaw"]\ngripper_open = 1.0\n'
         "gripper_closed = 0.0", "there is no dimension 'jaw'"),
        ("mode = ?", "is not TOML"),
        ('mode = "absolute"', ""),
        ("", ""),
    ],
)  # fmt: skip
def test_a_file_that_will_not_do_is_spoken_of(
    text: str, said: str, written: Path, tmp_path: Path
) -> None:
    (tmp_path / FILE).write_text(text)
    page = " ".join(inspect.main(str(written), out=tmp_path, pictures=False).split())
    assert said in page if said else "look at these" not in page
    assert (tmp_path / FILE).read_text() == text


def test_the_sheet_shows_the_first_middle_and_last_frame(written: Path, tmp_path: Path) -> None:
    inspect.main(str(written), out=tmp_path)
    seen = sheet.look(EpisodeDataset(written))
    assert seen.rows.tolist() == [0, 22, 44, 90, 112, 134, 135, 157, 179]
    assert seen.labels[3] == "episode 2, frame 0"
    picture = np.asarray(Image.open(tmp_path / inspect.SHEET))
    column = sheet.SIDE + sheet.MARGIN
    assert picture.shape[1] == sheet.MARGIN + 9 * column
    top = 2 * sheet.LINE
    for number in (0, 4, 8):
        left = sheet.MARGIN + number * column
        shown = picture[top : top + 106, left : left + sheet.SIDE]
        assert shown.mean() == pytest.approx(seen.pictures["front"][number].mean(), abs=2)


def test_cameras_that_never_change_or_show_the_same_are_named() -> None:
    rng = np.random.default_rng(0)
    still = np.repeat(rng.integers(0, 255, (1, 8, 8, 3), np.uint8), 3, 0)
    moving = rng.integers(0, 255, (3, 8, 8, 3), np.uint8)
    flat = np.full((3, 8, 8, 3), 7, np.uint8)
    pictures = {"a": moving, "still": still, "flat": flat, "copy": moving}
    said = sheet.warnings(sheet.Look(np.arange(3), ("", "", ""), pictures))
    assert [line.split(":")[0] for line in said] == ["camera still", "camera flat", "camera copy"]
    assert "same as a" in said[2]


def test_a_policy_says_what_robot_it_is_for(tmp_path: Path) -> None:
    policy = make_policy()
    save_policy(policy, tmp_path)
    page = inspect.main(str(tmp_path))
    assert f"{sum(each.numel() for each in policy.parameters()) / 1e6:.2f} M parameters" in page
    assert "decides 3 actions at a time" in page and "mode delta" in page
    assert re.search(r"scene +24 × 24, fit exact", page) and re.search(
        r"3 gripper .* gripper", page
    )


def test_the_command_line_takes_columns(
    written: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    arguments = ["armlet", "inspect", str(written), "--out", str(tmp_path), "--no-pictures"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--columns.state", "None"])
    command()
    said = capsys.readouterr().out
    assert "state: none" in said and "--columns.state None" in said


def test_limits_for_a_guard_are_made_from_the_episodes(written: Path, tmp_path: Path) -> None:
    inspect.main(str(written), out=tmp_path, pictures=False)
    # Guesses are nobody's word: the robot is asked for.
    with pytest.raises(ValueError, match="what its actions mean is said nowhere"):
        inspect.main(str(written), out=tmp_path, pictures=False, guard=True)
    path = tmp_path / FILE
    path.write_text(path.read_text().replace("#? ", ""))
    page = inspect.main(str(written), out=tmp_path, pictures=False, guard=True)
    assert f"{tmp_path / 'guard.toml'}: limits for a guard" in page
    data = EpisodeDataset(written)
    spec = robot_of(data, RobotOptions(file=path)).action
    bounds = Bounds.read(tmp_path / "guard.toml", spec, data.state_names)
    actions = data.columns()["action"]
    inner = np.ones(len(actions) - 1, bool)
    inner[data.starts[1:-1] - 1] = False  # from one episode to the next is no motion
    fastest = np.quantile(np.abs(np.diff(actions, axis=0))[inner], 0.999, axis=0) * 20
    assert bounds.velocity[:2] == pytest.approx(1.5 * fastest[:2], rel=1e-3)
    with pytest.raises(ValueError, match="--guard would have no effect"):
        inspect.main(str(tmp_path), guard=True)


def test_a_folder_that_is_nothing_known_says_what_is_in_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such folder"):
        inspect.main(str(tmp_path / "nowhere"))
    save_policy(make_policy(), tmp_path / "run" / "student")
    says = r"run is no data set.*no policy.*there is student\. Is it a folder in it that is meant"
    with pytest.raises(FileNotFoundError, match=says):
        inspect.main(str(tmp_path / "run"))
    (tmp_path / "broken" / "meta").mkdir(parents=True)
    (tmp_path / "broken" / "meta" / "info.json").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match="it is a link to"):
        inspect.main(str(tmp_path / "broken"))
