"""How runs stand, seen from outside: processes that are really killed and really stopped, clocks that
jump, disks that are full; and what `armlet status` says of them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from test_report_browser import LOOK, browser, shown

from armlet import status
from armlet.data import files
from armlet.logs import beats, standing
from armlet.logs.beats import beating
from armlet.logs.standing import Beat, End, Eye, Phase, Process, Standing, Status, Steps, duration
from armlet.progress import Progress

assert browser  # a fixture of the pages' own tests
HERE = standing.this_process()
ELSEWHERE = Process(pid=HERE.pid, host="another", started=1, machine="another boot")
RUNNING = Status(
    kind=standing.KIND,
    version=standing.VERSION,
    verb="distil",
    recipe="bc_tabletop",
    command="armlet distil bc_tabletop --seed 1",
    folder="/some where",
    log="out/train.log",
    started_unix=1e9,
    seconds=120.0,
    phase=Phase("distil bc_tabletop 1/2", "step", 250, 1000, 2.5, 300.0, {"loss": 0.125}),
    phases=(),
    beat=Beat(12, 10.0, 1e9 + 120, 5000.0),
    steps=Steps(250, 1.0, 2.0),
    process=HERE,
    rank=None,
    gpus=(),
    free_disk=10**10,
    ended=None,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Both clocks as they were at RUNNING's last beat; calling it moves them on, each by so much."""
    at = {"monotonic": 5000.0, "time": 1e9 + 120}
    monkeypatch.setattr(standing.time, "monotonic", lambda: at["monotonic"])
    monkeypatch.setattr(standing.time, "time", lambda: at["time"])

    def move(seconds: float, *, set_by: float = 0.0) -> None:
        at["monotonic"] += seconds
        at["time"] += seconds + set_by

    return move


def _json(said: Status) -> bytes:
    return json.dumps(asdict(said)).encode()


def stands(said: Status, eye: Eye | None = None) -> Standing:
    return (eye or Eye()).standing(Path("a.json"), said)


def test_a_run_stands_by_its_beats_and_by_its_steps(clock: Callable[..., None]) -> None:
    assert stands(RUNNING) == Standing("running", 0.0, 1.0)
    clock(59)
    assert stands(RUNNING).state == "running"
    clock(2)
    found = stands(RUNNING)
    assert found.state == "silent" and "no beat for 61 s" in found.why
    # It beats: then it is a question of its steps, the longest of which took 2 s; 300 are the least.
    idle = replace(RUNNING, beat=replace(RUNNING.beat, monotonic=5061.0))
    for ago, state in ((299.0, "running"), (301.0, "stalled")):
        assert stands(replace(idle, steps=Steps(250, ago, 2.0))).state == state
    # Ten times 60 s, where steps take as long as that; and long before there is anything to compare.
    for longest, ago, state in (
        (60.0, 599.0, "running"),
        (60.0, 601.0, "stalled"),
        (None, 1799.0, "running"),
        (None, 1801.0, "stalled"),
    ):
        assert stands(replace(idle, steps=Steps(250, ago, longest))).state == state
    # Asked for: five seconds, still not less than ten of the longest steps.
    late = replace(idle, steps=Steps(250, 6.0, 0.5))
    assert stands(late, Eye(5.0)).state == "stalled"
    assert stands(replace(late, steps=Steps(250, 6.0, 1.0)), Eye(5.0)).state == "running"


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_clock_that_is_set_changes_nothing_on_the_same_machine(
    clock: Callable[..., None], jump: float
) -> None:
    clock(5, set_by=jump)
    assert stands(RUNNING) == Standing("running", 5.0, 6.0)
    clock(60, set_by=-2 * jump)
    assert stands(RUNNING).state == "silent"


def test_beats_of_another_machine_are_counted(clock: Callable[..., None]) -> None:
    far = replace(RUNNING, process=ELSEWHERE)
    clock(5)
    assert stands(far).state == "running"
    # Its clock is an hour behind ours: at a first look there is nothing better to go by …
    clock(0, set_by=3600)
    eye = Eye()
    found = stands(far, eye)
    assert found.state == "silent" and "clock of another" in found.why
    # … and at a second it has beaten, whatever the time.
    clock(10)
    beaten = replace(far, beat=replace(far.beat, count=13))
    assert stands(beaten, eye) == Standing("running", 0.0, 1.0)
    clock(61)
    found = stands(beaten, eye)
    assert found.state == "silent" and "clock" not in found.why
    # Ahead of ours, it would look alive for ever.
    eye = Eye()
    clock(0, set_by=-7200)
    assert stands(far, eye).state == "running"
    clock(61)
    assert stands(far, eye).state == "silent"


def test_who_has_the_number_of_a_process_is_not_that_process() -> None:
    assert HERE.started is not None
    other = replace(HERE, started=HERE.started - 1)
    now = replace(RUNNING, beat=replace(RUNNING.beat, monotonic=time.monotonic()))
    assert stands(now).state == "running"
    found = stands(replace(now, process=other))
    assert found.state == "killed" and f"process {HERE.pid}" in found.why
    # On another machine the number says nothing.
    beat = replace(RUNNING.beat, unix=time.time())
    assert stands(replace(now, process=ELSEWHERE, beat=beat)).state == "running"


def test_how_a_run_ended_is_what_it_said(clock: Callable[..., None]) -> None:
    clock(1e6)
    for how in ("finished", "stopped", "failed"):
        found = stands(replace(RUNNING, ended=End(how, 1e9, "KeyError: 'x'")))
        assert found.state == how
        assert found.alarming == (how == "failed")
        assert found.why == ("KeyError: 'x'" if how == "failed" else "")


# What a run writes


def one(out: Path) -> tuple[Path, Status]:
    (path,) = (out / "status").glob("*.json")
    return path, standing.read(path)


def until(holds: Callable[[], Any], seconds: float = 20.0) -> None:
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() - begun < seconds
        time.sleep(0.01)


def test_a_run_says_how_far_it_is_and_how_it_ended(tmp_path: Path) -> None:
    with beating(tmp_path, "distil", "bc", every=0.01):
        before = time.monotonic()
        outer = Progress("outer", total=10, start=4, unit="step")
        begun = time.monotonic()
        outer.advance(2, loss=0.5, worst=float("nan"))
        inner = Progress("inner", total=3, unit="frame")
        until(lambda: list(tmp_path.glob("status/*.json")) and one(tmp_path)[1].phase)
        until(lambda: one(tmp_path)[1].phase.title == "inner")  # the innermost is what goes on
        inner.close()
        seventh = time.monotonic()
        outer.advance(loss=0.25)
        until(lambda: one(tmp_path)[1].phase.done == 7)
        _, said = one(tmp_path)
        now = time.monotonic()
        assert (said.phase.title, said.phase.total, said.phase.values) == (
            "outer",
            10,
            {"loss": 0.25},
        )
        # The four of an earlier run took none of this one's time.
        for steps in (said.phase.rate, 3 / said.phase.left_s):
            assert 3 / (now - before) <= steps <= 3 / (seventh - begun)
        assert [each.title for each in said.phases] == ["inner"]
        assert said.ended is None and said.steps.count == 2
        outer.close()
        outer.close()
    _, said = one(tmp_path)
    assert said.ended.how == "finished" and said.phase is None
    assert [each.title for each in said.phases] == ["inner", "outer"]
    assert said.free_disk > 0 and said.process == HERE
    Progress("after", total=1).advance()  # nobody is told
    assert one(tmp_path)[1] == said


@pytest.mark.parametrize(
    ("error", "how", "why"),
    [
        (KeyboardInterrupt(), "stopped", ""),
        (ValueError("no such camera"), "failed", "ValueError: no such camera"),
        (SystemExit(3), "failed", "SystemExit: 3"),
    ],
    ids=repr,
)
def test_an_end_of_another_kind(tmp_path: Path, error: BaseException, how: str, why: str) -> None:
    def work() -> None:
        with beating(tmp_path, "teach", "bc"):
            Progress("steps", total=2).advance()
            raise error

    with pytest.raises(type(error)):
        work()
    _, said = one(tmp_path)
    assert (said.ended.how, said.ended.why) == (how, why)
    assert said.phase.title == "steps"


def test_what_fails_at_once_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bad"), beating(tmp_path, "teach", "bc"):
        raise ValueError("bad")
    assert not list(tmp_path.iterdir())


def test_the_longest_step_is_of_this_phase_and_not_its_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(beats.time, "monotonic", lambda: now[0])
    run = beats._Run(tmp_path, "teach", "bc", 10.0)

    def steps(*seconds: float) -> Steps:
        progress = Progress("phase", total=9)
        run.begun(progress)
        for each in seconds:
            now[0] += each
            run.advanced(progress, {})
        now[0] += 3
        found = run._status(None).steps
        run.ended(progress)
        return found

    assert steps() == Steps(0, 3.0, None)
    assert steps(50) == Steps(1, 3.0, None)  # what is loaded and compiled first is no usual step
    assert steps(50, 2, 7, 1) == Steps(5, 3.0, 7.0)
    assert steps(1, 2) == Steps(7, 3.0, 2.0)


def test_a_disk_that_is_full_is_said_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = []

    def full(path: Path, content: bytes) -> None:
        tries.append(path)
        if len(tries) < 5:
            raise files.FullDiskError(28, f"{path} could not be written: the disk is full")
        files.write_atomically(path, content)

    monkeypatch.setattr(beats, "write_atomically", full)
    with beating(tmp_path, "teach", "bc", every=0.01):
        progress = Progress("steps", total=3)
        progress.advance()
        until(lambda: len(tries) > 6)
    said = capsys.readouterr().err
    assert said.count("cannot be written") == 1 and "the disk is full" in said
    assert one(tmp_path)[1].ended.how == "finished"  # room was made meanwhile


def test_a_beat_that_the_disk_held_up_does_not_hide_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(path: Path, content: bytes) -> None:
        time.sleep(0.2)
        files.write_atomically(path, content)

    monkeypatch.setattr(beats, "write_atomically", slow)
    with beating(tmp_path, "teach", "bc", every=0.01):
        Progress("steps", total=3).advance()
        time.sleep(0.1)  # the first beat is under way
    assert one(tmp_path)[1].ended.how == "finished"
    time.sleep(0.3)
    assert one(tmp_path)[1].ended.how == "finished"


def test_a_run_takes_the_place_of_those_it_goes_on_from(tmp_path: Path) -> None:
    folder = tmp_path / "status"
    folder.mkdir()
    gone = replace(HERE, started=1)
    old = replace(RUNNING.beat, unix=0.0)
    fresh = Beat(12, 10.0, time.time(), time.monotonic())
    made = {
        "killed": replace(RUNNING, process=gone),
        "far-dead": replace(RUNNING, process=ELSEWHERE, beat=old),
        "far-alive": replace(RUNNING, process=ELSEWHERE, beat=fresh),
        "finished": replace(RUNNING, ended=End("finished", 0.0)),
        "other": replace(RUNNING, process=gone, recipe="another"),
    }
    for name, said in made.items():
        (folder / f"distil-{name}.json").write_bytes(_json(said))
    (folder / "distil-broken.json").write_text("{")
    (folder / "teach-killed.json").write_bytes(_json(replace(RUNNING, process=gone, verb="teach")))
    with beating(tmp_path, "distil", "bc_tabletop"):
        Progress("steps", total=1).advance()
    left = {path.stem for path in folder.iterdir()}
    kept = {"distil-far-alive", "distil-other", "distil-broken", "teach-killed"}
    assert left == kept | {f"distil-{HERE.host}-{files.pid_namespace()}-{HERE.pid}"}


def test_two_containers_of_one_hostname_have_a_file_each(tmp_path: Path, monkeypatch) -> None:
    paths = set()
    for namespace in ("1", "2"):
        monkeypatch.setattr(beats, "pid_namespace", lambda namespace=namespace: namespace)
        paths.add(beats._Run(tmp_path, "teach", "bc", 10.0).path.name)
    assert paths == {f"teach-{HERE.host}-{namespace}-{HERE.pid}.json" for namespace in "12"}


def test_what_seemed_to_beat_is_superseded_once_it_is_silent(tmp_path: Path, monkeypatch) -> None:
    """A container that was killed, and started again at once."""
    monkeypatch.setattr(standing, "SILENT", 1.0)
    before = tmp_path / "status/distil-before.json"
    before.parent.mkdir()
    fresh = Beat(12, 0.01, time.time(), time.monotonic())
    before.write_bytes(_json(replace(RUNNING, process=ELSEWHERE, beat=fresh)))
    with beating(tmp_path, "distil", "bc_tabletop", every=0.05):
        until(lambda: len(list(before.parent.glob("*.json"))) == 2)
        until(lambda: not before.exists())


def test_what_was_finished_before_keeps_what_it_said(tmp_path: Path) -> None:
    folder = tmp_path / "status"
    folder.mkdir()
    path = folder / "distil-before.json"
    path.write_bytes(_json(replace(RUNNING, ended=End("finished", 0.0))))
    with beating(tmp_path, "distil", "bc_tabletop"):
        pass  # "was distilled exactly so already"
    assert [each.name for each in folder.iterdir()] == [path.name]
    # Where it had been killed, this is how one learns that all is well.
    path.write_bytes(_json(replace(RUNNING, process=replace(HERE, started=1))))
    with beating(tmp_path, "distil", "bc_tabletop"):
        pass
    assert one(tmp_path)[1].ended.how == "finished"


# Real processes

WORK = """
import sys, time
from pathlib import Path
from armlet.logs.beats import beating
from armlet.progress import Progress
with beating(Path(sys.argv[1]), "teach", "slow", every=0.02):
    progress = Progress("teach slow", total=100000)
    while True:
        time.sleep(0.01)
        progress.advance(loss=0.5)
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen]:
    (tmp_path / "work.py").write_text(WORK)
    with (tmp_path / "train.log").open("wb") as log:
        found = subprocess.Popen(
            [sys.executable, tmp_path / "work.py", tmp_path / "out"], stderr=log
        )
    yield found
    found.kill()
    found.wait()


def test_a_process_that_is_stopped_and_one_that_is_killed(
    process: subprocess.Popen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A beat in two seconds is seldom late, and a test should not take a minute.
    monkeypatch.setattr(standing, "SILENT", 2.0)
    out = tmp_path / "out"
    until(lambda: list(out.glob("status/*.json")) and one(out)[1].steps.count > 5)
    path, said = one(out)
    assert stands(said).state == "running"
    assert Path(said.log) == tmp_path / "train.log"
    assert said.command.startswith(sys.executable) and said.command.endswith(str(out))
    process.send_signal(signal.SIGSTOP)
    until(lambda: Eye().standing(path, standing.read(path)).state == "silent")
    assert "hangs" in Eye().standing(path, standing.read(path)).why
    process.send_signal(signal.SIGCONT)
    until(lambda: Eye().standing(path, standing.read(path)).state == "running")
    process.kill()
    until(lambda: Eye().standing(path, standing.read(path)).state == "killed")  # a zombie still
    process.wait()
    assert Eye().standing(path, standing.read(path)).state == "killed"


# What is shown


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Runs of every kind, in folders of folders."""
    now = Beat(12, 10.0, time.time(), time.monotonic())
    live = replace(RUNNING, beat=now)
    idle = Steps(9, 4000.0, 3.0)
    gpu = standing.Gpu(0, "NVIDIA H200", 40 * 10**9, 38 * 10**9, 139 * 10**9)
    made = {
        "a/status/distil-1": replace(live, gpus=(gpu,), rank=(0, 2)),
        "a/status/teach-1": replace(live, verb="teach", phase=None, ended=End("finished", 1e9)),
        "b/c/status/teach-2": replace(live, verb="teach", recipe="<b>own", steps=idle, log=None),
        "b/status/probe-3": replace(live, verb="probe", process=replace(HERE, started=1)),
        "d/status/evaluate-1": replace(
            live, verb="evaluate", ended=End("failed", 1e9, "FullDiskError: the disk is full")
        ),
        ".hidden/status/teach-9": live,
    }
    for name, said in made.items():
        path = tmp_path / "out" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_json(said))
    (tmp_path / "out/a/status/teach-1.json.x.part").write_text("half")
    return tmp_path / "out"


def test_the_table_names_who_needs_somebody_and_what_helps(
    many: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        status.main(many)
    assert left.value.code == 3
    said = capsys.readouterr().out
    lines = said.splitlines()
    first = [line.split()[0] for line in lines[1:] if not line.startswith(" ")]
    assert sorted(first[:3]) == ["FAILED", "KILLED", "STALLED"]
    assert first[3:] == ["running", "finished"]
    running = next(line for line in lines if line.startswith("running"))
    for each in ("distil 0/2", "250/1,000 steps 25%", "2.5/s", "5 min", "0.125", "10 GB", "40/139"):
        assert each in running
    assert "no step for 67 min (the longest before: 3 s)" in said
    assert "cd '/some where' && armlet distil bc_tabletop --seed 1" in said
    assert "out/train.log" in said and "FullDiskError: the disk is full" in said
    assert ".hidden" not in said
    # What is well needs no more than its line.
    assert said.count("resume") == 3


def test_where_all_is_well_it_leaves_with_nothing(many: Path) -> None:
    said = status.main(many / "a", json=True)
    found = json.loads(said)
    assert {each["state"] for each in found} == {"running", "finished"}
    assert all(not each["alarming"] for each in found)
    assert found[0]["status"]["phase"]["values"]["loss"] == 0.125
    with pytest.raises(FileNotFoundError, match="is no folder"):
        status.main(many / "x")
    (many / "e").mkdir()
    with pytest.raises(FileNotFoundError, match="has kept a status"):
        status.main(many / "e")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"{}", b"[" * 100_000, b'{"kind": "armlet status", "version": 2}',
        b'{"kind": "armlet status", "version": 1}', b"\0" * 300,
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_said(
    many: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = many / "a/status/torn.json"
    path.write_bytes(content)
    with pytest.raises(SystemExit):
        status.main(many / "a")
    said = capsys.readouterr().out
    assert said.splitlines()[1].startswith("UNREADABLE") and str(path) in said
    assert "delete it" in said


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beat", {"count": "x", "every_s": 1.0, "unix": 0.0, "monotonic": 0.0}),
        ("beat", None),
        ("steps", {"count": 1}),
        ("phases", [3]),
        ("rank", 7),
        ("ended", {"how": "exploded", "unix": 0.0}),
        ("seconds", None),
        ("more", 1),
    ],
)
def test_a_field_of_another_type_is_named(tmp_path: Path, field: str, value: Any) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(json.loads(_json(RUNNING)) | {field: value}))
    with pytest.raises(ValueError, match=r"a\.json: .*; delete it"):
        standing.read(path)
    path.write_bytes(_json(RUNNING))
    assert standing.read(path) == RUNNING


PHASE = asdict(RUNNING)["phase"]


@pytest.mark.parametrize("page", [False, True])
@pytest.mark.parametrize(
    "odd",
    [
        {"free_disk": 10**400},
        {"seconds": 10**400},
        {"seconds": float("inf")},
        {"started_unix": 1e20},
        {"started_unix": -1e18},
        {"started_unix": float("inf")},
        {"ended": {"how": "finished", "unix": 1e30}},
        {"phase": PHASE | {"values": {"loss": 10**400}}},
        {"phases": [PHASE | {"done": 10**400}]},
        {"gpus": [{"index": 0, "name": "a", "held": 1, "most": 1, "total": 10**400}]},
    ],
    ids=lambda odd: next(iter(odd)),
)
def test_numbers_that_cannot_be_shown_are_said_and_hide_no_other_run(
    many: Path, odd: dict, page: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = many / "a/status/odd.json"
    path.write_text(json.dumps(asdict(RUNNING) | odd))
    with pytest.raises(SystemExit) as left:
        status.main(many / "a", page=tmp_path / "page.html" if page else None)
    assert left.value.code == 3
    said = capsys.readouterr().out
    assert said.splitlines()[1].startswith("UNREADABLE") and str(path) in said
    assert "delete it" in said and "distil 0/2" in said and "250/1,000" in said


def test_numbers_at_their_bounds_are_shown(many: Path, tmp_path: Path) -> None:
    far = {
        "started_unix": standing.LATEST,
        "seconds": standing.LARGEST,
        "free_disk": int(standing.LARGEST),
        "phase": PHASE | {"values": {"loss": sys.float_info.max}, "total": int(standing.LARGEST)},
        "ended": {"how": "finished", "unix": 0},
    }
    (many / "a/status/far.json").write_text(json.dumps(asdict(RUNNING) | far))
    page = tmp_path / "page.html"
    assert "1.798e+308" in status.main(many / "a", page=page)
    assert "1.798e+308" in page.read_text()


def test_no_text_of_a_file_reaches_the_terminal_as_a_command(
    many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "a\x1b[2Jb\rc\n\x9bd\u202ee\ud800"
    odd = asdict(RUNNING) | {"recipe": evil, "verb": evil, "command": evil, "log": evil}
    odd |= {"phase": PHASE | {"title": evil}, "ended": {"how": "failed", "unix": 1.0, "why": evil}}
    (many / "a/status/odd.json").write_text(json.dumps(odd))
    with pytest.raises(SystemExit) as left:
        status.main(many / "a", page=tmp_path / "page.html")
    assert left.value.code == 3
    said = capsys.readouterr().out
    assert said.count("a [2Jb c  d e ") == 6
    assert all(each.isprintable() for each in said.rstrip("\n").split("\n"))
    assert "a [2Jb c  d e" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"after": 0.0}, "--after 0"), ({"twice": 5.0}, "--twice 5"), ({"twice": 90.0, "watch": True}, "has no effect")],
)  # fmt: skip
def test_options_that_mean_nothing(many: Path, options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        status.main(many, **options)


def test_the_page_escapes_names_and_asks_for_nothing(many: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    with pytest.raises(SystemExit):
        status.main(many, page=page)
    said = page.read_text()
    assert "&lt;b&gt;own" in said and "<b>own" not in said
    assert "http:" not in said and "https:" not in said and "<script" not in said
    assert "3 need somebody" in said.replace("<b>", "") and 'http-equiv="refresh"' not in said
    again = status.render(many, status.look(many, Eye()), again=5.0)
    assert '<meta http-equiv="refresh" content="5">' in again


def test_durations() -> None:
    said = [duration(each) for each in (0, 119.4, 120, 7199, 7200, 172_799, 172_800)]
    assert said == ["0 s", "119 s", "2 min", "120 min", "2.0 h", "48.0 h", "2.0 days"]


@pytest.mark.page
def test_the_page_fits_and_can_be_read(browser, many: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    (many / "a/status/torn.json").write_text("{")
    with pytest.raises(SystemExit):
        status.main(many, page=page)
    errors: list[str] = []
    for width in (390, 1280):
        for scheme in ("light", "dark"):
            opened = shown(browser, page, width, scheme, errors)
            look = opened.evaluate(LOOK)
            assert look["wide"] <= width
            assert look["texts"] > 40 and not look["pale"], (scheme, look["pale"][:5])
            assert not look["jumps"]
            opened.context.close()
    assert not errors


def test_the_verb_from_a_shell(many: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "armlet", "status", str(many / "a"), "--json"],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    assert len(json.loads(ran.stdout)) == 2
