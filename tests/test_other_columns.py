"""Episodes whose columns have other names, without a state, and with a camera called
`observation.image`: taught from and distilled."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from outside import reaching

from armlet import distil, probe, teach
from armlet.data.episodes import EpisodeFrames, Features
from armlet.data.layout import Columns
from armlet.data.manifest import MANIFEST
from armlet.data.writer import EpisodeWriter
from armlet.options import override
from armlet.policies.checkpoint import load_policy
from armlet.robot.observation import Observation

NAMES = {"observation.images.eye": "observation.image", "action": "actions"}


@pytest.fixture
def episodes(tmp_path) -> Path:
    root = tmp_path / "episodes"
    writer = EpisodeWriter(
        root, Features(("x",), ("dx",), {"eye": (32, 32)}, {}), fps=5, robot="dots", metadata={}
    )
    for number in range(4):
        values = np.linspace(-1, 1, 6, dtype=np.float32)[:, None]
        pictures = np.full((6, 32, 32, 3), 40 * number, np.uint8)
        writer.add(EpisodeFrames({"eye": pictures}, values, values, {}, "go to the red dot", {}))
    writer.finalise()
    (root / MANIFEST).unlink()  # as other programs write
    for path in [*root.glob("data/*/*.parquet"), *root.glob("meta/episodes/*/*.parquet")]:
        table = pq.read_table(path)
        table = table.drop_columns(
            [name for name in table.column_names if name == "observation.state"]
        )
        names = [
            name.replace("observation.images.eye", NAMES["observation.images.eye"])
            for name in table.column_names
        ]
        pq.write_table(table.rename_columns([NAMES.get(name, name) for name in names]), path)
    folder = root / "videos/observation.images.eye"
    folder.rename(folder.with_name(NAMES["observation.images.eye"]))
    info = json.loads((root / "meta/info.json").read_text())
    del info["features"]["observation.state"]
    info["features"] = {
        NAMES.get(name, name): feature for name, feature in info["features"].items()
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def test_the_command_line_says_which_columns(episodes: Path, tmp_path) -> None:
    places = [
        "--episodes",
        str(episodes),
        "--teacher",
        str(tmp_path / "teacher"),
        "--out",
        str(tmp_path / "out"),
    ]
    plain = override(reaching(), places, "armlet")
    with pytest.raises(
        ValueError,
        match=r"no feature 'observation\.state' for the state.*or None where there is no state",
    ):
        teach.main(plain)
    recipe = override(
        reaching(), [*places, "--columns.state", "None", "--columns.action", "actions"], "armlet"
    )
    assert recipe.columns == Columns(None, "actions") and recipe.own_columns == Columns(
        None, "action"
    )
    teacher = load_policy(teach.main(recipe))
    seen = Observation(
        {"observation.image": np.zeros((32, 32, 3), np.uint8)},
        np.array([0.5], np.float32),
        "go",
        np.zeros(1, np.float32),
    )
    blind = Observation(seen.images, np.zeros(0, np.float32), "go", seen.previous_action)
    np.testing.assert_array_equal(
        teacher.infer(seen), teacher.infer(blind), err_msg="it was taught without a state"
    )
    probe.main(recipe)
    student = load_policy(distil.main(recipe))
    assert np.isfinite(student.infer(blind)).all()


def test_a_state_of_no_numbers_is_no_state(tmp_path) -> None:
    """As armlet writes a robot without one: nobody needs to say so."""
    writer = EpisodeWriter(
        tmp_path / "blind",
        Features((), ("dx",), {"eye": (32, 32)}, {}),
        fps=5,
        robot="dots",
        metadata={},
    )
    values = np.linspace(-1, 1, 6, dtype=np.float32)[:, None]
    pictures = np.full((6, 32, 32, 3), 40, np.uint8)
    for _ in range(3):
        writer.add(EpisodeFrames({"eye": pictures}, values[:, :0], values, {}, "go", {}))
    data = writer.finalise()
    assert data.state_names == ()
    columns = data.columns()
    assert columns["observation.state"].shape == (18, 0)
    assert np.array_equal(columns["action"], np.concatenate([values] * 3))
