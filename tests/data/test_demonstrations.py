"""Demonstrations in HDF5, LIBERO's and robomimic's: each observation joined to the action that
answered it, pictures turned once, and files that are not what they should be refused by name."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import demonstration_files as made
import numpy as np
import pytest

from armlet import inspect
from armlet.benchmarks.libero import Libero
from armlet.data import demonstrations, hdf5
from armlet.data.door import robot_of
from armlet.data.episodes import ACTION, STATE, EpisodeDataset, EpisodeError
from armlet.data.frames import load_frames
from armlet.data.language import write_persistent
from armlet.data.layout import Columns
from armlet.robot.description import RobotOptions, UnknownRobotError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("h5py") is None,
    reason="h5py is not installed: pip install -e '.[hdf5]'",
)


def changed(path: Path, change: Callable[[Any], None]) -> Path:
    import h5py

    with h5py.File(path, "r+") as file:
        change(file["data"])
    return path


def test_an_observation_of_liberos_is_joined_to_the_action_that_followed_it(tmp_path: Path) -> None:
    made.libero(tmp_path / "a_demo.hdf5", (5, 4))
    data = EpisodeDataset(tmp_path)
    # The first action was answered to nothing that was kept, and nothing answered the last sight.
    assert [episode.length for episode in data.episodes] == [4, 3]
    columns = data.columns()
    row = 0
    for demo, length in ((0, 5), (1, 4)):
        shown = data.images(demo)["agentview_rgb"]
        for step in range(1, length):
            assert columns[ACTION][row] == pytest.approx(made.action(demo, step), abs=1e-6)
            assert columns[STATE][row][:6] == pytest.approx(np.arange(6) + made.number(demo, step))
            # Upright, and mirrored, as LIBERO's policies know it.
            assert np.array_equal(shown[step - 1], made.picture(demo, step)[:, ::-1])
            row += 1
    assert row == len(data)
    states = data.column("states")
    assert states[0] == pytest.approx(made.state(0, 1))
    assert data.fps == 20 and data.timestamps[1] == pytest.approx(0.05)
    assert data.tasks == (made.WORDS,)
    assert data.state_names == Libero().state_names


def test_robomimics_own_are_taken_as_they_stand(tmp_path: Path) -> None:
    made.robomimic(tmp_path / "image.hdf5", (3, 12))
    data = EpisodeDataset(tmp_path)
    assert [episode.length for episode in data.episodes] == [3, 12]
    assert list(data.cameras) == ["agentview_image"]  # distances are no colours
    shown = data.images(1)["agentview_image"]
    for step in range(12):
        row = 3 + step
        assert data.columns()[ACTION][row] == pytest.approx(made.action(1, step), abs=1e-6)
        assert data.columns()[STATE][row][:3] == pytest.approx(np.arange(3) + made.number(1, step))
        assert np.array_equal(shown[step], made.picture(1, step))
    assert data.column("states")[0] == pytest.approx(made.state(0, 0))
    other = EpisodeDataset(tmp_path, Columns(state="obs/robot0_joint_pos"))
    assert other.columns()[STATE].shape == (15, 7)


def test_files_are_one_data_set_in_order_and_demonstrations_by_number(tmp_path: Path) -> None:
    made.libero(tmp_path / "b_demo.hdf5", (3,) * 11, words="open the drawer", first=20)
    made.libero(tmp_path / "a_demo.hdf5", (4,))
    (tmp_path / "notes.txt").write_text("no data")
    data = EpisodeDataset(tmp_path)
    assert data.tasks == (made.WORDS, "open the drawer")
    assert data.asked.tolist() == [0] * 3 + [1] * 22
    assert [episode.info["demo"] for episode in data.episodes[-2:]] == ["demo_9", "demo_10"]
    last = data.columns()[ACTION][-1]
    assert last == pytest.approx(made.action(30, 2), abs=1e-6)
    rows = np.array([24, 0, 23])
    found = list(data.pictures_of("eye_in_hand_rgb", rows))
    for row, expected in zip(found, [(30, 2), (0, 1), (30, 1)], strict=True):
        assert np.array_equal(row, made.picture(*expected)[:, ::-1])
    assert data.fingerprint == EpisodeDataset(tmp_path).fingerprint
    frames = load_frames(data)
    assert len(frames.actions) == len(data)


def test_what_the_files_say_of_the_robot_is_known_and_the_rest_is_asked_for(tmp_path: Path) -> None:
    made.libero(tmp_path / "set/a_demo.hdf5")
    data = EpisodeDataset(tmp_path / "set")
    ours = Libero().action_spec
    found = robot_of(data, RobotOptions()).action
    assert found == ours
    page = inspect.main(str(tmp_path / "set"), out=tmp_path)
    assert "the files say which controller it is" in page
    text = (tmp_path / "robot.toml").read_text()
    assert 'mode = "delta"' in text and "gripper_open = -1.0" in text and "\n#? " not in text

    def joints(data: Any) -> None:
        kwargs = made.KWARGS | {"controller_configs": {"type": "JOINT_VELOCITY"}}
        data.attrs["env_args"] = json.dumps({"env_kwargs": kwargs})

    changed(tmp_path / "set/a_demo.hdf5", joints)
    with pytest.raises(UnknownRobotError, match="mode"):
        robot_of(EpisodeDataset(tmp_path / "set"), RobotOptions())


def test_without_states_the_writers_own_order_is_taken_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def forget(data: Any) -> None:
        del data["demo_0/states"], data["demo_1/states"]

    changed(made.libero(tmp_path / "l/a.hdf5"), forget)
    changed(made.robomimic(tmp_path / "r/a.hdf5"), forget)
    assert len(EpisodeDataset(tmp_path / "l")) == 7
    assert "as LIBERO writes it, after" in capsys.readouterr().err
    assert len(EpisodeDataset(tmp_path / "r")) == 9
    assert "as robomimic writes it, before" in capsys.readouterr().err


def test_a_file_of_liberos_that_was_replayed_in_order_is_taken_in_order(tmp_path: Path) -> None:
    def seen_before(data: Any) -> None:
        for name in ("demo_0", "demo_1"):
            joints = data[f"{name}/obs/joint_states"]
            joints[:] = data[f"{name}/states"][:, 1:8]

    changed(made.libero(tmp_path / "a.hdf5"), seen_before)
    data = EpisodeDataset(tmp_path)
    assert [episode.length for episode in data.episodes] == [5, 4]
    assert data.columns()[ACTION][0] == pytest.approx(made.action(0, 0), abs=1e-6)


def test_pictures_that_are_upright_already_are_only_mirrored(tmp_path: Path) -> None:
    def upright(data: Any) -> None:
        data.attrs["macros_image_convention"] = "opencv"
        shown = data["demo_0/obs/agentview_rgb"]
        shown[...] = shown[...][:, ::-1]

    changed(made.libero(tmp_path / "a.hdf5"), upright)
    first = EpisodeDataset(tmp_path).images(0)["agentview_rgb"][0]
    assert np.array_equal(first, made.picture(0, 1)[:, ::-1])


def _drop(name: str) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        del data[name]

    return change


def _put(name: str, values: Any, **more: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        if name in data:
            del data[name]
        data.create_dataset(name, data=values, **more)

    return change


def _say(name: str, value: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        data.attrs[name] = value

    return change


def _say_of_demo(data: Any) -> None:
    data["demo_1"].attrs["num_samples"] = 9


def _declare_only(data: Any) -> None:
    del data["demo_0/actions"]
    data["demo_0"].create_dataset("actions", shape=(10**9, 7), dtype="f8", chunks=(1024, 7))


def _link_elsewhere(data: Any) -> None:
    import h5py

    del data["demo_0/actions"]
    data["demo_0/actions"] = h5py.ExternalLink("other.hdf5", "/secret")


def _keep_elsewhere(data: Any) -> None:
    del data["demo_0/actions"]
    data["demo_0"].create_dataset(
        "actions", shape=(5, 7), dtype="f8", external=[("/etc/hostname", 0, 280)]
    )


def _empty(data: Any) -> None:
    for name in list(data):
        del data[name]


DAMAGED = {
    "no actions": (_drop("demo_1/actions"), "demo_1 has no 'actions'; it has dones, obs, states"),
    "no observations": (_drop("demo_0/obs"), "no observations.*dataset_states_to_obs"),
    "no demonstration": (_empty, "/data has no demonstration"),
    "actions of text": (
        _put("demo_0/actions", np.full((5, 7), b"x")),
        r"demo_0/actions is \(5, 7\) \|S1, expected \(steps, numbers\) of floats",
    ),
    "actions in a row": (_put("demo_0/actions", np.zeros(5)), r"expected \(steps, numbers\)"),
    "a group for actions": (
        lambda data: (_drop("demo_0/actions")(data), data.create_group("demo_0/actions")),
        "demo_0/actions is a group, expected numbers",
    ),
    "pictures of floats": (
        _put("demo_1/obs/agentview_rgb", np.zeros((4, 6, 6, 3))),
        "agentview_rgb is .* float64, expected pictures of uint8",
    ),
    "fewer pictures": (
        _put("demo_0/obs/agentview_rgb", np.zeros((4, 6, 6, 3), np.uint8)),
        r"agentview_rgb is \(4, 6, 6, 3\) and .*actions \(5, 7\); expected as many rows",
    ),
    "a state of texts": (
        _put("demo_0/obs/ee_states", np.full((5, 6), b"x")),
        r"ee_states is .*expected \(steps, numbers\)",
    ),
    "other pictures": (
        _put("demo_1/obs/agentview_rgb", np.zeros((4, 8, 8, 3), np.uint8)),
        r"agentview_rgb is \(8, 8, 3\) a row, and \(6, 6, 3\) a row in demo_0",
    ),
    "a camera less": (_drop("demo_1/obs/agentview_rgb"), "agentview_rgb is none, and"),
    "another count": (_say_of_demo, "demo_1 has 4 actions, and num_samples says 9"),
    "no words": (_say("problem_info", "{}"), "does not say what the robot was told"),
    "broken words": (_say("problem_info", "{"), "attribute 'problem_info' of /data is no JSON"),
    "numbers for words": (_say("problem_info", 3), "problem_info.* expected a text"),
    "no rate": (_say("env_args", "{}"), "control_freq .* is None, expected actions a second"),
    "which way up": (_say("macros_image_convention", "vulkan"), "'vulkan', expected opengl"),
    "declared only": (_declare_only, r"\(1000000000, 7\), and none of it was written"),
    "a link": (_link_elsewhere, "demo_0/actions is a link, which is not followed"),
    "another file": (_keep_elsewhere, "actions lies in another file, which is not followed"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_what_is_not_as_it_should_be_is_refused_by_name(tmp_path: Path, what: str) -> None:
    change, said = DAMAGED[what]
    changed(made.libero(tmp_path / "a_demo.hdf5"), change)
    with pytest.raises(EpisodeError, match=said) as error:
        EpisodeDataset(tmp_path)
    assert "a_demo.hdf5" in str(error.value)


def test_numbers_that_are_none_and_files_of_another_robot_are_refused(tmp_path: Path) -> None:
    def not_a_number(data: Any) -> None:
        data["demo_1/actions"][2, 3] = np.nan

    changed(made.libero(tmp_path / "a.hdf5"), not_a_number)
    with pytest.raises(EpisodeError, match="action is NaN or infinite in episode 1, frame 1"):
        EpisodeDataset(tmp_path).columns()
    kwargs = json.dumps({"env_kwargs": made.KWARGS | {"control_freq": 10}})
    changed(made.libero(tmp_path / "b.hdf5"), _say("env_args", kwargs))
    with pytest.raises(EpisodeError, match=r"b\.hdf5 was recorded with another robot .*hz: 10"):
        EpisodeDataset(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    path = made.libero(tmp_path / "a_demo.hdf5")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(EpisodeError, match=r"a_demo\.hdf5"):
        EpisodeDataset(tmp_path)


def test_bytes_that_were_overwritten_are_refused_or_read_but_never_a_traceback(
    tmp_path: Path,
) -> None:
    path = made.libero(tmp_path / "a_demo.hdf5")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = []
    # The HDF5 library itself never returns from the 49th of these, in an attribute.
    for _ in range(40):
        damaged = bytearray(whole)
        for place in rng.integers(8, len(whole), 40):
            damaged[place] = int(rng.integers(256))
        path.write_bytes(bytes(damaged))
        try:
            data = EpisodeDataset(tmp_path)
            data.columns()
            data.images(0)
        except EpisodeError as error:
            refused.append(str(error))
    assert len(refused) > 10
    assert all(str(tmp_path) in each for each in refused)


def test_a_picture_is_read_alone_and_no_column_of_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.libero(tmp_path / "a_demo.hdf5", (30,))
    read = []
    plain = hdf5.read

    def counted(found: Any, rows: Any, path: Path) -> np.ndarray:
        values = plain(found, rows, path)
        read.append((found.name, values.size))
        return values

    monkeypatch.setattr(hdf5, "read", counted)
    data = EpisodeDataset(tmp_path)
    data.columns()
    assert len(list(data.read_pictures("agentview_rgb", 3, 9))) == 6
    shown = [size for name, size in read if "rgb" in name]
    assert shown == [made.SIDE**2 * 3] * 6


def test_numbers_larger_than_any_demonstration_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5, "MOST_BYTES", 100)
    made.robomimic(tmp_path / "a.hdf5")
    with pytest.raises(EpisodeError, match="expected the numbers of one demonstration"):
        EpisodeDataset(tmp_path).columns()


def test_what_cannot_be_done_with_these_files_is_said(tmp_path: Path) -> None:
    path = made.libero(tmp_path / "set/a_demo.hdf5")
    with pytest.raises(EpisodeError, match="give the folder that it lies in"):
        EpisodeDataset(path)
    with pytest.raises(EpisodeError, match="convert it with lerobot"):
        write_persistent(EpisodeDataset(tmp_path / "set"), tmp_path / "copy", [])
    (tmp_path / "set/other.hdf5").write_text("no HDF5 at all, but long enough")
    with pytest.raises(EpisodeError, match=r"other\.hdf5 is no HDF5 file"):
        EpisodeDataset(tmp_path / "set")
    made.libero(tmp_path / "one/a_demo.hdf5", (1,))
    with pytest.raises(EpisodeError, match="demo_0 has 1 action, and nothing was seen before it"):
        EpisodeDataset(tmp_path / "one")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.libero(tmp_path / "a_demo.hdf5")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[hdf5\]'"):
        demonstrations.open_demonstrations(tmp_path)
