"""What a film says to the Rerun viewer: of every policy the world at every step, its cameras and
layers where it looked, its actions; in the real library where it is installed (`make test-logs`)."""

import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from armlet.benchmarks.tabletop import Tabletop
from armlet.evaluation import films, rerun_file
from armlet.evaluation.films import make_film
from armlet.policies.checkpoint import load_policy
from armlet.rollout.pool import Contender

TEACHER = Path(__file__).parents[1] / "checkpoints" / "tabletop-teacher"


class Stream:
    """In the stead of the library's: keeps what is logged, by place and step."""

    logged: dict[tuple[str, ...], list[tuple[int, float, object]]] = {}  # noqa: RUF012 - of one test

    def __init__(self, name: str, recording_id: str) -> None:
        self.step = 0
        self.time = 0.0

    def save(self, path: str) -> None:
        Path(path).write_bytes(b"rrd")

    def set_time(self, timeline: str, *, sequence: int = 0, duration: float = 0.0) -> None:
        if timeline == "step":
            self.step = sequence
        else:
            self.time = duration

    def log(self, place: list[str], value: object, *, static: bool = False) -> None:
        Stream.logged.setdefault(tuple(place), []).append((self.step, self.time, value))

    def flush(self) -> None: ...

    def disconnect(self) -> None: ...


class Picture(np.ndarray):
    def compress(self) -> np.ndarray:
        return np.asarray(self)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    Stream.logged = {}
    made_up = types.SimpleNamespace(
        RecordingStream=Stream,
        Image=lambda pixels: np.asarray(pixels).view(Picture),
        Scalars=float,
        BarChart=np.asarray,
        TextDocument=str,
    )
    monkeypatch.setitem(sys.modules, "rerun", made_up)


def film(out: Path, **contenders: Contender) -> films.Film:
    world = Tabletop()
    policies = {name: each.load() for name, each in contenders.items()}
    return make_film(policies, contenders, world, world.tasks()[0], 3, out, rerun=True)


def test_everything_is_where_it_was_at_its_moment(library: None, tmp_path: Path) -> None:
    made = film(tmp_path, teacher=Contender(TEACHER), often=Contender(TEACHER, execute=1))
    assert (tmp_path / made.video).with_suffix(".rrd").is_file()
    logged = Stream.logged
    for told in made.policies:
        name = told["name"]
        steps = told["steps"]
        assert [step for step, _, _ in logged[name, "world"]] == list(range(steps + 1))
        for action in ("dx", "dy", "dz", "gripper"):
            assert [step for step, _, _ in logged[name, "action", action]] == list(range(steps))
        looks = list(range(0, steps, told["execute"]))
        assert [step for step, _, _ in logged[name, "layers"]] == looks
        assert [step for step, _, _ in logged[name, "camera", "scene"]] == looks
        assert all(time == pytest.approx(step / 10) for step, time, _ in logged[name, "world"])
        ran = ["".join(map(str, gates)) for _, _, gates in logged[name, "layers"]]
        assert ran == told["gates"]
    # What it looked at is what the policy was shown: it decides the same of the first picture.
    _, _, seen = logged["teacher", "camera", "wrist"][0]
    assert seen.shape == (48, 48, 3)


def test_a_film_is_the_same_with_and_without(library: None, tmp_path: Path) -> None:
    world = Tabletop()
    field = {"teacher": Contender(TEACHER)}
    policies = {"teacher": load_policy(TEACHER)}
    plain = make_film(policies, field, world, world.tasks()[0], 3, tmp_path / "a")
    told = make_film(policies, field, world, world.tasks()[0], 3, tmp_path / "b", rerun=True)
    assert plain == told and not list((tmp_path / "a").glob("*.rrd"))


def test_a_library_that_is_missing_is_told_before_the_episodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rerun_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'armlet\[rerun\]'"):
        rerun_file.check()


@pytest.mark.logs
def test_the_real_viewer_reads_it(tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    made = film(tmp_path, teacher=Contender(TEACHER))
    file = (tmp_path / made.video).with_suffix(".rrd")
    viewer = [sys.executable, "-m", "rerun", "rrd"]
    verified = subprocess.run(
        [*viewer, "verify", file], capture_output=True, text=True, check=False
    )
    assert verified.returncode == 0, verified.stderr
    shown = subprocess.run(
        [*viewer, "print", "-v", file], capture_output=True, text=True, check=True
    )
    for place in ("world", "camera/scene", "camera/wrist", "action/dx", "layers", "instruction"):
        assert f"/teacher/{place} " in shown.stdout, place
