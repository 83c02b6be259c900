"""Episodes are added to a data set whole or not at all, and to nobody's but armlet's own: what is
there is never overwritten."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kills import killed_everywhere

from armlet.data.episodes import EpisodeDataset, EpisodeError, EpisodeFrames, Features
from armlet.data.language import remark, write_persistent
from armlet.data.manifest import MANIFEST
from armlet.data.writer import EpisodeWriter

FEATURES = Features(("x",), ("a", "b"), {"eye": (32, 32)}, {"executed": 2})
LENGTH = 5
EYE = "videos/observation.images.eye"


def episode(number: int) -> EpisodeFrames:
    """Every picture and number says which episode and step it is of."""
    steps = np.arange(LENGTH)
    grey = (20 + 25 * number + 4 * steps).astype(np.uint8)
    images = np.broadcast_to(grey[:, None, None, None], (LENGTH, 32, 32, 3)).copy()
    state = (10 * number + steps).astype(np.float32)[:, None]
    action = np.concatenate([state, np.full_like(state, number / 3)], 1)
    return EpisodeFrames(
        {"eye": images},
        state,
        action,
        {"executed": -action},
        f"task {number % 2}",
        {"number": number},
    )


def writer(
    root: Path,
    features: Features = FEATURES,
    *,
    fps: int = 10,
    robot: str = "test",
    metadata: dict | None = None,
) -> EpisodeWriter:
    return EpisodeWriter(
        root,
        features,
        fps=fps,
        robot=robot,
        metadata={"made": "here"} if metadata is None else metadata,
    )


def add(root: Path, *numbers: int) -> EpisodeDataset:
    adding = writer(root)
    for number in numbers:
        adding.add(episode(number))
    return adding.finalise()


def check(root: Path, count: int) -> None:
    """The data set has episodes 0 to `count`, each with its own rows, pictures and words, and exact
    statistics."""
    data = EpisodeDataset(root)
    assert len(data.episodes) == count
    columns = data.columns()
    for number in range(count):
        wanted, rows = episode(number), slice(data.starts[number], data.starts[number + 1])
        np.testing.assert_array_equal(columns["observation.state"][rows], wanted.state)
        np.testing.assert_array_equal(columns["executed"][rows], wanted.extra["executed"])
        assert np.abs(data.images(number)["eye"].astype(int) - wanted.images["eye"]).max() <= 3
        assert (
            data.episodes[number].task == wanted.task and data.episodes[number].info == wanted.info
        )
    for name in ("action", "observation.state"):
        for share, kind in ((0.01, "q01"), (0.5, "q50"), (0.99, "q99")):
            assert data.stats[name][kind] == pytest.approx(
                np.quantile(columns[name].astype(np.float64), share, axis=0)
            ), (
                name,
                kind,
            )
        assert data.stats[name]["std"] == pytest.approx(columns[name].std(0), abs=1e-5)


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("writer") / "three"
    add(root, 0, 1, 2)
    return root


def test_what_is_added_stands_behind_what_was_there_and_nothing_of_that_changes(
    three: Path, tmp_path
) -> None:
    root = tmp_path / "set"
    shutil.copytree(three, root)
    before = contents(root)
    check(root, 3)
    add(root, 3, 4)
    check(root, 5)
    after = contents(root)
    kept = {name for name in before if name.startswith(("data/", "videos/", "meta/episodes/"))}
    assert len(kept) == 3 and all(after[name] == before[name] for name in kept)


def test_an_append_that_dies_anywhere_is_finished_to_the_same_bits(three: Path, tmp_path) -> None:
    """At every moment the data set reads as before or as after it; the same command then ends as an
    undisturbed one does."""
    whole, root = tmp_path / "whole", tmp_path / "set"
    shutil.copytree(three, whole)
    add(whole, 3)
    wanted = {
        name: content for name, content in contents(whole).items() if not name.startswith(".")
    }
    staged = tmp_path / "staged"
    shutil.copytree(three, staged)
    writer(staged).add(episode(3))

    def prepare() -> None:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(staged, root)

    for _ in killed_everywhere(prepare, lambda: writer(root).finalise()):
        found = EpisodeDataset(root)
        assert len(found.episodes) in (3, 4)
        assert found.columns()["observation.state"][:, 0].tolist() == [
            10 * number + step for number in range(len(found.episodes)) for step in range(LENGTH)
        ]
        again = writer(root)
        if (
            again.start + len(again.staged()) == 3
        ):  # nothing is staged any more only where it was laid out
            again.add(episode(3))
        again.finalise()
        assert {
            name: content for name, content in contents(root).items() if not name.startswith(".")
        } == wanted


REFUSED = {
    "fps is 10 there and 20 here": {"fps": 20},
    "robot_type is 'test' there and 'other' here": {"robot": "other"},
    "'action' is float32 .2. .'a', 'b'. there and float32 .2. .'b', 'a'. here": {
        "features": Features(("x",), ("b", "a"), {"eye": (32, 32)}, {"executed": 2})
    },
    "eye' is video .32, 32, 3.* there and video .64, 64, 3.": {
        "features": Features(("x",), ("a", "b"), {"eye": (64, 64)}, {"executed": 2})
    },
    "these episodes have 'observation.images.wrist', the data set does not": {
        "features": Features(
            ("x",), ("a", "b"), {"eye": (32, 32), "wrist": (32, 32)}, {"executed": 2}
        )
    },
    "the data set has 'executed', these episodes do not": {
        "features": Features(("x",), ("a", "b"), {"eye": (32, 32)}, {})
    },
    "made otherwise .*made": {"metadata": {"made": "elsewhere"}},
}


@pytest.mark.parametrize("said", REFUSED)
def test_episodes_of_another_kind_are_refused_before_anything_is_touched(
    three: Path, said: str
) -> None:
    before = contents(three)
    with pytest.raises(EpisodeError, match=said):
        writer(three, **REFUSED[said])
    assert contents(three) == before


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda root: (root / "meta/armlet.json").unlink(),
            "another program laid this data set out",
        ),
        (lambda root: change(root, codebase_version="v2.1"), "codebase_version is 'v2.1'"),
        (lambda root: change(root, codebase_version="v3.1"), "codebase_version is 'v3.1'"),
        (lambda root: change(root, total_episodes=2, splits={"train": "0:2"}), "lists 3 episodes"),
        (lambda root: change(root, splits={"train": "0:2", "test": "2:3"}), "splits is"),
        (lambda root: (root / "meta/info.json").write_text("{"), "info.json"),
        (
            lambda root: change(root, chunks_size="1000"),
            r"info\.json: .*chunks_size is '1000', expected a whole number",
        ),
        (
            lambda root: change(root, total_frames=None),
            r"info\.json: .*total_frames is None, expected a whole number",
        ),
        (lambda root: change(root, features=5), r"info\.json: features is int"),
        (lambda root: change(root, data_path=5), r"info\.json: data_path is 5"),
        (
            lambda root: cut(root / "data/chunk-000/file-000.parquet"),
            r"data/chunk-000/file-000\.parquet cannot be read as parquet",
        ),
        (
            lambda root: cut(root / LISTED),
            r"meta/episodes/chunk-000/file-000\.parquet cannot be read as parquet",
        ),
        (
            lambda root: without(root / LISTED, "length"),
            r"meta/episodes/chunk-000/file-000\.parquet lacks column 'length'",
        ),
        (
            lambda root: cut(root / "meta/tasks.parquet"),
            r"meta/tasks\.parquet cannot be read as parquet",
        ),
        (
            lambda root: without(root / "meta/tasks.parquet", "task_index"),
            r"meta/tasks\.parquet has columns",
        ),
    ],
)
def test_a_data_set_that_is_not_armlets_own_or_not_whole_is_left_as_it_is(
    three: Path, tmp_path, damage, said: str
) -> None:
    root = tmp_path / "set"
    shutil.copytree(three, root)
    (root / MANIFEST).unlink()  # which would say that the file is another, and no more
    damage(root)
    before = contents(root)
    with pytest.raises(ValueError, match=said):
        add(root, 3)
    after = contents(root)
    assert {name: after[name] for name in before} == before


LISTED = "meta/episodes/chunk-000/file-000.parquet"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def without(path: Path, column: str) -> None:
    pq.write_table(pq.read_table(path).drop_columns([column]), path)


def change(root: Path, **fields) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_new_files_take_numbers_that_no_file_has(three: Path, tmp_path) -> None:
    """Videos are numbered apart from data; what nobody refers to is left alone as well."""
    root = tmp_path / "set"
    shutil.copytree(three, root)
    stray = root / EYE / "chunk-000/file-001.mp4"
    stray.write_bytes(b"somebody's film")
    add(root, 3)
    check(root, 4)
    assert stray.read_bytes() == b"somebody's film"
    row = pq.read_table(root / "meta/episodes/chunk-000/file-001.parquet").to_pylist()[0]
    assert (row[f"{EYE}/file_index"], row["data/file_index"]) == (2, 1)


def test_data_with_other_columns_than_armlet_writes_are_not_added_to(three: Path, tmp_path) -> None:
    root = tmp_path / "set"
    shutil.copytree(three, root)
    (root / MANIFEST).unlink()
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("reward", pa.array([0.0] * len(table))), path)
    before = path.read_bytes()
    with pytest.raises(EpisodeError, match=r"other columns than armlet writes \(reward\)"):
        add(root, 3)
    assert path.read_bytes() == before


def test_a_copy_with_language_of_a_folder_of_links_holds_the_files_themselves(
    three: Path, tmp_path
) -> None:
    """As the hub keeps a data set: every file a relative link to a blob."""
    snapshot, blobs = tmp_path / "hub/snapshots/abc", tmp_path / "hub/blobs"
    blobs.mkdir(parents=True)
    for number, (name, content) in enumerate(contents(three).items()):
        (blobs / str(number)).write_bytes(content)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(
            Path(*[".."] * (len(link.relative_to(tmp_path / "hub").parts) - 1))
            / "blobs"
            / str(number)
        )
    made = write_persistent(
        EpisodeDataset(snapshot), tmp_path / "far/away/copy", [[remark("subtask", "go", 0.0)]] * 3
    )
    assert not any(path.is_symlink() for path in made.root.rglob("*"))
    check(made.root, 3)
    before = contents(snapshot)
    with pytest.raises(EpisodeError, match="exists already"):
        write_persistent(EpisodeDataset(snapshot), made.root, [[remark("subtask", "go", 0.0)]] * 3)
    assert contents(snapshot) == before
