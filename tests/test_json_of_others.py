"""JSON that says a name twice is refused by its file and name, wherever that of others is read: Python
would keep the last and say nothing."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import make_policy

from armlet.data.episodes import EpisodeDataset
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.robot.exported import read_description
from armlet.robot.tables import TwiceError, read_once

sys.path.append(str(Path(__file__).parent / "pretrained"))
from every_kind import MAKE


def doubled(path: Path, name: str) -> None:
    """The same file with a field said twice, the second time as before."""
    text = path.read_text()
    value = json.dumps(json.loads(text)[name])
    path.write_text("{" + f'"{name}": {value}, ' + text.lstrip()[1:])


def own(place: Path) -> Callable[[], object]:
    save_policy(make_policy(), place / "policy")
    doubled(place / "policy" / "config.json", "policy")
    return lambda: load_policy(place / "policy")


def checkpoint(kind: str, name: str) -> Callable[[Path], Callable[[], object]]:
    def make(place: Path) -> Callable[[], object]:
        said = MAKE[kind](place)
        (config,) = [path for path in place.rglob("config.json") if "vlm" not in path.parts]
        doubled(config, name)
        return lambda: load_policy(said)

    return make


def episodes(place: Path) -> Callable[[], object]:
    (place / "meta").mkdir()
    (place / "meta" / "info.json").write_text(
        '{"codebase_version": "v2.1", "fps": 10, "features": {}, "fps": 20}'
    )
    return lambda: EpisodeDataset(place)


def exported(place: Path) -> Callable[[], object]:
    (place / "exported.json").write_text('{"version": 1, "version": 1}')
    return lambda: read_description(place)


@pytest.mark.parametrize(
    ("make", "file", "name"),
    [
        (own, "config.json", "policy"),
        (checkpoint("act", "chunk_size"), "config.json", "chunk_size"),
        (episodes, "info.json", "fps"),
        (exported, "exported.json", "version"),
    ],
    ids=["a policy of armlet's", "a policy of LeRobot's", "episodes", "an exported policy"],
)
def test_a_name_twice_is_refused(
    make: Callable[[Path], Callable[[], object]], file: str, name: str, tmp_path: Path
) -> None:
    read = make(tmp_path)
    with pytest.raises(ValueError, match=rf"{file}.*'{name}' stands there twice; keep the one"):
        read()


def test_what_says_each_name_once_is_read_as_ever() -> None:
    text = '{"a": {"x": 1}, "b": [{"x": 1}, {"x": 2}], "c": {"a": null}}'
    assert read_once(text) == json.loads(text)
    for wrong in ('{"b": [{"x": 1, "y": {"z": 1, "z": 2}}]}', '{"a": 1, "\\u0061": 1}'):
        with pytest.raises(TwiceError):
            read_once(wrong)
