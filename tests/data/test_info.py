"""meta/info.json as other programs, and people, write it: taken where one thing can be meant, else
refused by the field's name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made import EYE, SIDE, Made, grey, number

from armlet.data.episodes import EpisodeDataset, EpisodeError
from armlet.data.info import read_info

ACTION = "features", "action"
CAMERA = "features", EYE


def saved(root: Path, place: tuple[str, ...], value: Any, *, remove: bool = False) -> Path:
    """The data set with one field of meta/info.json changed."""
    made = Made()
    inner = made.info
    for name in place[:-1]:
        inner = inner.setdefault(name, {})
    if remove:
        inner.pop(place[-1], None)
    else:
        inner[place[-1]] = value
    return made.save(root)


def assert_right(data: EpisodeDataset) -> None:
    rows = Made().rows
    assert data.columns()["action"].tolist() == [[number(row)] for row in rows]
    assert data.column("action").tolist() == [number(row) for row in rows]
    assert data.cameras == {"eye": (SIDE, SIDE)}
    means = [picture.mean() for picture in data.read_pictures("eye", 0, len(data))]
    assert (
        np.abs(
            np.subtract(means, [grey(row["episode_index"], row["frame_index"]) for row in rows])
        ).max()
        <= 1
    )


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ((*ACTION, "shape"), 1),
        ((*ACTION, "shape"), "1"),
        ((*ACTION, "shape"), [1.0]),
        ((*ACTION, "shape"), ["1"]),
        ((*ACTION, "shape"), [None]),
        ((*ACTION, "shape"), None),
        ((*ACTION, "shape"), []),
        ((*ACTION, "shape"), [1, 1]),
        ((*ACTION, "dtype"), None),
        ((*CAMERA, "shape"), ["h", "w", "c"]),
        ((*CAMERA, "shape"), [None, None, 3]),
        ((*CAMERA, "shape"), ["32", 32.0, 3]),
        ((*CAMERA, "shape"), [3 * SIDE * SIDE]),
        ((*CAMERA, "info"), "none"),
        (("total_episodes",), "3"),
        (("total_episodes",), 3.0),
        (("chunks_size",), 0),
        (("chunks_size",), "1000"),
        (("data_path",), "data/chunk-000/file-000.parquet"),
    ],
)
def test_one_right_reading_is_taken(tmp_path, place, value) -> None:
    assert_right(EpisodeDataset(saved(tmp_path / "d", place, value)))


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (
            (*ACTION, "shape"),
            [-1],
            r"features\['action'\]: shape is \[-1\], expected a list of whole numbers",
        ),
        ((*ACTION, "shape"), [1.5], r"features\['action'\]: shape is \[1\.5\]"),
        ((*ACTION, "shape"), [[1]], r"features\['action'\]: shape is \[\[1\]\]"),
        ((*ACTION, "shape"), [True], r"features\['action'\]: shape is \[True\]"),
        ((*ACTION, "shape"), {"x": 1}, r"features\['action'\]: shape is \{'x': 1\}"),
        ((*ACTION, "shape"), "one", r"features\['action'\]: shape is 'one'"),
        ((*ACTION, "shape"), [0], "feature 'action' has no numbers"),
        ((*ACTION, "dtype"), 5, r"features\['action'\]: dtype is 5, expected a text"),
        (
            (*CAMERA, "dtype"),
            None,
            rf"features\['{EYE}'\] has no dtype, expected 'video' or 'image'",
        ),
        ((*CAMERA, "dtype"), ["video"], rf"features\['{EYE}'\]: dtype is \['video'\]"),
        (
            (*CAMERA, "info"),
            {"video.height": "tall"},
            r"info: video\.height is 'tall', expected a whole number",
        ),
        (
            (*CAMERA, "info"),
            {"is_depth_map": "no"},
            r"info: is_depth_map is 'no', expected true or false",
        ),
        (
            (*CAMERA, "video_info"),
            {"video.depth_min": "near"},
            r"video_info: video\.depth_min is 'near', expected metres",
        ),
        (("data_path",), 5, r"data_path is 5, expected the name of a file with \{chunk_index\}"),
        (
            ("data_path",),
            "data/{foo}.parquet",
            r"data_path is 'data/\{foo\}\.parquet', expected \{chunk_index\}",
        ),
        (
            ("data_path",),
            "data/{}.parquet",
            r"data_path is 'data/\{\}\.parquet', expected \{chunk_index\}",
        ),
        (("video_path",), ["a"], r"video_path is \['a'\], expected the name"),
        (("video_path",), "{video_key:03d}.mp4", r"video_path is '\{video_key:03d\}\.mp4'"),
        (("chunks_size",), "many", "chunks_size is 'many', expected a whole number"),
        (("total_episodes",), "all", "total_episodes is 'all', expected a whole number"),
        (
            ("codebase_version",),
            ["v3.0"],
            r"codebase_version is \['v3\.0'\], expected one of v2\.0",
        ),
        (("features",), [], "features is list, expected an object"),
    ],
)
def test_all_else_is_refused_by_its_name(tmp_path, place, value, says: str) -> None:
    with pytest.raises(EpisodeError, match=says) as caught:
        EpisodeDataset(saved(tmp_path / "d", place, value))
    assert "info.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_camera_without_a_dtype_whose_film_is_described_is_a_film(tmp_path) -> None:
    made = Made()
    camera = made.info["features"][EYE]
    del camera["dtype"]
    camera["info"] = {"video.fps": 5, "video.codec": "h264"}
    assert_right(EpisodeDataset(made.save(tmp_path / "d")))
    made.info["features"]["front"] = {"shape": [8, 8, 3], "names": ["height", "width", "channel"]}
    made.write_info(tmp_path / "d")
    with pytest.raises(
        EpisodeError, match=r"features\['front'\] has no dtype, expected 'video' or 'image'"
    ):
        EpisodeDataset(tmp_path / "d")


def test_a_camera_of_another_dtype_is_not_left_out_silently(tmp_path, capsys) -> None:
    made = Made()
    made.info["features"]["observation.images.raw"] = {
        "dtype": "uint8",
        "shape": [8, 8, 3],
        "names": None,
    }
    made.info["features"]["observation.images.eye.seconds"] = {
        "dtype": "float32",
        "shape": [1],
        "names": None,
    }
    assert_right(EpisodeDataset(made.save(tmp_path / "d")))
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1
        and "observation.images.raw is uint8 in meta/info.json" in said
        and "it is left out" in said
    )


def test_each_version_has_its_own_names_of_files(tmp_path) -> None:
    """What an older version called its films stays in info.json where there are none."""
    made = Made()
    root = made.save_v21(tmp_path / "d")
    made.info["data_path"] = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    made.write_info(root)
    with pytest.raises(
        EpisodeError, match=r"data_path is .*, expected \{episode_chunk\}, \{episode_index\}"
    ):
        EpisodeDataset(root)
    made.info |= {"data_path": None, "video_path": "videos/{video_key}/{file_index}.mp4"}
    made.write_info(root)
    with pytest.raises(EpisodeError, match=r"video_path is .*, expected \{episode_chunk\}"):
        EpisodeDataset(root)
    del made.info["features"][EYE]
    made.write_info(root)
    assert EpisodeDataset(root).cameras == {}


def test_what_is_read_is_as_it_was_written(tmp_path) -> None:
    """Nothing else is changed."""
    made = Made()
    made.info["robot_type"] = "arm"
    made.write_info(tmp_path)
    found = read_info(tmp_path)
    for name, feature in json.loads((tmp_path / "meta/info.json").read_text())["features"].items():
        assert found["features"][name] == feature
    assert found["robot_type"] == "arm" and found["fps"] == 5
