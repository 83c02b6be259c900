"""What the real lerobot wrote is read as lerobot itself reads it: columns and pictures bit for bit,
statistics to 1e-5.

Eight small sets stand beside this file; where the project's collection of 45 is at hand, all of
them are compared.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from armlet.data.episodes import EpisodeDataset
from armlet.data.layout import Columns

HERE = Path(__file__).parent / "golden"
MORE = Path(__file__).parents[2] / ".." / "shared" / "golden" / "datasets"
SETS = sorted(HERE.glob("d*")) + (sorted(MORE.glob("d*")) if MORE.is_dir() else [])


def opened(source: Path, root: Path) -> tuple[EpisodeDataset, dict]:
    """A copy, because reading writes a cache."""
    shutil.copytree(source, root, copy_function=shutil.copyfile)
    root.chmod(0o755)
    features = json.loads((root / "meta/info.json").read_text())["features"]
    state = [name for name in ("observation.state", "state") if name in features]
    action = [name for name in ("action", "actions") if name in features]
    return EpisodeDataset(root, Columns(state[0] if state else None, action[0])), features


@pytest.mark.parametrize("source", SETS, ids=lambda path: f"{path.parent.parent.name}-{path.name}")
def test_it_is_read_as_lerobot_reads_it(source: Path, tmp_path) -> None:
    data, features = opened(source, tmp_path / "copy")
    wanted = dict(np.load(source / "expected.npz"))
    said = json.loads((source / "expected.json").read_text())
    pictures = {
        name for name, feature in features.items() if feature["dtype"] in ("video", "image")
    }

    assert np.array_equal(np.array(data.tasks)[data.asked], wanted.pop("task"))
    for name, values in wanted.items():
        if name not in pictures:
            found = data.column(name).astype(
                values.dtype
            )  # lerobot makes float64 to float32, and int32 to int64
            np.testing.assert_array_equal(found, values, err_msg=name)
    state, action = (data.roles.state, data.roles.action)
    columns = data.columns()
    rows = len(data)
    assert state is None or np.array_equal(
        columns["observation.state"], wanted[state].reshape(rows, -1)
    )
    assert np.array_equal(columns["action"], wanted[action].reshape(rows, -1))

    assert {*data.cameras, *data.depth_cameras} == {
        name.removeprefix("observation.images.") for name in pictures
    }
    for camera in (*data.cameras, *data.depth_cameras):
        read = data.read_depth if camera in data.depth_cameras else data.read_pictures
        name = camera if camera in pictures else f"observation.images.{camera}"
        hashes = [
            hashlib.sha256(picture.tobytes()).hexdigest()[:16] for picture in read(camera, 0, rows)
        ]
        assert hashes == said["columns"][name]["sha256_of_each_frame_hwc"], camera

    assert [episode.length for episode in data.episodes] == said[
        "episode_lengths"
    ] and data.fps == said["fps"]
    assert [set(episode.tasks) for episode in data.episodes] == [
        set(tasks) for tasks in said["episode_tasks_in_meta"]
    ]
    for name, kinds in said["stats"].items():
        for kind, values in kinds.items():
            np.testing.assert_allclose(
                data.stats[name][kind], values, rtol=1e-5, atol=1e-5, err_msg=f"{name} {kind}"
            )


def test_the_kinds_of_cameras(tmp_path) -> None:
    depth, _ = opened(HERE / "d13_depth", tmp_path / "depth")
    assert depth.cameras == {"front": (64, 64)} and depth.depth_cameras == {"depth": (64, 64)}
    dotted, _ = opened(HERE / "d22_image_key", tmp_path / "dotted")
    assert list(dotted.cameras) == ["observation.image", "arm.left"]
