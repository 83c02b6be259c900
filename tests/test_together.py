"""Verbs whose work several processes share: what comes out is what one process makes."""

import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import av
import pytest
from outside import reaching
from test_evaluate import dots_policy
from tiny import make_frames, make_policy, tiny_recipe

from armlet import calibrate, collect, evaluate, probe, teach
from armlet.annotators.controls import ConstantWords
from armlet.annotators.store import Labelling
from armlet.data import files
from armlet.data.claims import ShardError
from armlet.data.episodes import EpisodeDataset
from armlet.data.traces import StoreIdentity
from armlet.evaluation import episodes, planning
from armlet.measuring import Calibration
from armlet.options import override
from armlet.policies.checkpoint import save_policy
from armlet.policies.pretrained.said import Said
from armlet.recipe import Collection, Evaluation, Recipe
from armlet.rollout import recording
from armlet.rollout import together as together_module
from armlet.rollout.together import SharedWork, Together, sharded
from armlet.shards import Shards
from armlet.training import sharing, supervision
from armlet.training.learner import Learner
from armlet.training.sharing import Elsewhere, Probing, Watched
from armlet.training.trainer import make_batches

LEASE = 20.0  # seconds; nobody dies here


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("policies")
    for seed in (0, 1):
        save_policy(dots_policy(seed), folder / f"policy-{seed}")
    return folder / "policy-0", folder / "policy-1"


def all_at_once(*works: Callable[[], object]) -> None:
    """Each in a thread of its own; raises what any of them did."""
    raised = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # of whatever kind: the test says so
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


def evaluating(policies: tuple[Path, Path], out: Path, at: Path | None) -> Recipe:
    shards = Shards()
    if at is not None:
        shards = Shards(on="processes", at=str(at), size=2, lease=LEASE)
    setting = Evaluation(
        episodes=6, workers=1, latency_calls=2, videos=0, purpose="report", slower=(2.0,)
    )
    return dataclasses.replace(
        reaching(),
        teacher=policies[0],
        policies=policies[1:],
        out=out,
        evaluation=setting,
        shards=shards,
    )


def said(out: Path) -> dict:
    return json.loads((out / "evaluation" / "report.json").read_text())


def test_two_that_share_an_evaluation_report_what_one_does(policies, tmp_path, monkeypatch) -> None:
    """Two machines that share no disk but the place where they meet. Times, which are measured, are
    said to be the same here: by them it is decided how late somebody acts."""
    times = dict.fromkeys(("p50", "p95", "p99"), 150.0)

    def latency(policies, observations, *, calls):
        return dict.fromkeys(policies, times)

    monkeypatch.setattr(evaluate.measure, "latency", latency)
    # It is measured in a process of its own, which takes seconds to start.
    monkeypatch.setattr(evaluate, "_peak_memory", lambda *_: 1.0)
    alone, one, other = (tmp_path / name for name in ("alone", "one", "other"))
    evaluate.main(evaluating(policies, alone, None))
    meeting = tmp_path / "meeting"
    all_at_once(
        lambda: evaluate.main(evaluating(policies, one, meeting)),
        lambda: evaluate.main(evaluating(policies, other, meeting)),
    )
    for out in (one, other):
        for name in ("outcomes.json.gz", "table.md"):
            found = out / "evaluation" / name
            assert found.read_bytes() == (alone / "evaluation" / name).read_bytes(), name
        log = sorted((out / "evaluation" / "episodes.jsonl").read_text().splitlines())
        assert log == sorted((alone / "evaluation" / "episodes.jsonl").read_text().splitlines())
        for name in ("policies", "pairs", "delayed", "verdicts"):
            assert said(out)[name] == said(alone)[name], name
    assert said(one) == said(other)
    assert said(one)["delayed"] and said(one)["plan"]
    jobs = {path.name.rpartition("-")[0] for path in meeting.iterdir()}
    assert jobs == {"plan", "episodes", "times", "report"}
    made = [len(list(path.glob("results/*"))) for path in meeting.glob("episodes-*")]
    # 3 blocks of 2 episodes, of 2 policies; the late ones by one rule.
    assert sorted(made) == [6, 6]


def test_an_evaluation_goes_on_from_what_one_process_left_and_leaves_it_to_one(
    policies, tmp_path, monkeypatch
) -> None:
    """Episodes in the log are not run again by whoever shares, nor afterwards by one alone."""
    recipe = evaluating(policies, tmp_path, tmp_path / "meeting")
    setting = dataclasses.replace(recipe.evaluation, purpose="tuning", slower=(), latency_calls=1)
    recipe = dataclasses.replace(recipe, evaluation=setting, policies=())
    ran = []
    run_task = evaluate.Contender.run

    def counted(self, policy, benchmark, task, seed):
        ran.append(seed)
        return run_task(self, policy, benchmark, task, seed)

    monkeypatch.setattr(evaluate.Contender, "run", counted)
    monkeypatch.setattr(evaluate, "_peak_memory", lambda *_: 1.0)
    few = dataclasses.replace(setting, episodes=2)
    alone = dataclasses.replace(recipe, evaluation=few, shards=Shards())
    evaluate.main(alone)
    evaluate.main(recipe)
    evaluate.main(dataclasses.replace(recipe, shards=Shards()))
    # Each once, whichever of the processes ran it; shards are taken in no order.
    assert sorted(ran) == [500_000_000 + number for number in range(6)]


def test_runtimes_are_not_shared(policies, tmp_path) -> None:
    recipe = evaluating(policies, tmp_path, tmp_path / "meeting")
    setting = dataclasses.replace(recipe.evaluation, runtimes=("eager", "onnx"))
    with pytest.raises(ValueError, match=r"runtimes exports .* run it without --shards\.on"):
        evaluate.main(dataclasses.replace(recipe, evaluation=setting))


def test_one_of_all_writes_the_plan_and_all_have_it(policies, tmp_path) -> None:
    together = Together(str(tmp_path / "meeting"), 2, LEASE)
    recipe = evaluating(policies, tmp_path, None)
    plans = []
    outs = [tmp_path / name for name in ("a", "b", "c")]
    works = []
    for out in outs:
        works.append(
            lambda out=out: plans.append(planning.commit_together(recipe, {}, out, together))
        )
    all_at_once(*works)
    assert plans[0] == plans[1] == plans[2]
    assert [(out / "plan.json").is_file() for out in outs].count(True) == 1


def collecting(out: Path, at: Path | None, *, episodes: int = 7) -> Recipe:
    shards = Shards()
    if at is not None:
        shards = Shards(on="processes", at=str(at), size=2, lease=LEASE)
    return dataclasses.replace(
        reaching(),
        out=out,
        episodes=out / "episodes",
        collection=Collection(episodes=episodes, workers=1),
        shards=shards,
    )


@pytest.fixture
def here(monkeypatch) -> None:
    """Workers as threads: a process of their own takes seconds to start."""
    run = recording.SharedWork.run

    def in_this_process(self, work, *, workers, title, here=True):
        run(self, work, workers=workers, title=title)

    monkeypatch.setattr(recording.SharedWork, "run", in_this_process)
    work_through = recording.work_through

    def through(work, jobs, *, workers, here):
        return work_through(work, jobs, workers=workers)

    monkeypatch.setattr(recording, "work_through", through)


def files_of(root: Path) -> dict[str, bytes]:
    """Of a data set, without what is no part of it."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not name.startswith((".cache", ".staging")):
            found[name] = path.read_bytes()
    return found


def packets(film: bytes) -> list[bytes]:
    """What the encoder made of each picture, without the container around it."""
    with av.open(io.BytesIO(film)) as container:
        return [bytes(packet) for packet in container.demux(video=0)]


def assert_same_files(found: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    """To the byte; where a film differs, which of its pictures do, as encoded: of one that is not
    repeatable this says whether pictures, encoder or container are to blame."""
    assert found.keys() == wanted.keys()
    for name, content in wanted.items():
        if found[name] == content or not name.endswith(".mp4"):
            assert found[name] == content, name
            continue
        pairs = list(zip(packets(found[name]), packets(content), strict=True))
        differing = [number for number, (one, other) in enumerate(pairs) if one != other]
        pytest.fail(f"{name}: pictures {differing} of {len(pairs)} were encoded otherwise")


@pytest.mark.usefixtures("here")
def test_two_that_share_a_collection_make_the_data_set_that_one_makes(tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    collect.main(collecting(alone, None))
    shared = tmp_path / "shared"
    recipe = collecting(shared, tmp_path / "meeting")
    all_at_once(lambda: collect.main(recipe), lambda: collect.main(recipe))
    assert_same_files(files_of(shared / "episodes"), files_of(alone / "episodes"))
    assert len(EpisodeDataset(shared / "episodes").episodes) > 0
    # Whoever comes later finds it done, and what was packed is gone.
    before = files_of(shared / "episodes")
    collect.main(recipe)
    assert files_of(shared / "episodes") == before
    assert not list((tmp_path / "meeting").glob("attempts-*/results/*"))
    # More of the same go behind, as when one process adds them.
    for out in (alone, shared):
        at = tmp_path / "meeting" if out == shared else None
        collect.main(collecting(out, at, episodes=11))
    assert_same_files(files_of(shared / "episodes"), files_of(alone / "episodes"))


def test_jobs_are_cut_in_order() -> None:
    assert sharded(range(7), 3) == ((0, 1, 2), (3, 4, 5), (6,))
    assert sharded([], 3) == ()


def test_workers_end_when_their_command_is_killed(tmp_path: Path, monkeypatch) -> None:
    # Forked: to start anew, each would import torch for seconds.
    forking = multiprocessing.get_context("fork")
    monkeypatch.setattr(together_module.multiprocessing, "get_context", lambda kind: forking)
    monkeypatch.setattr(together_module.torch, "set_num_threads", lambda number: None)

    def slowly(jobs) -> bytes:
        time.sleep(0.02)
        return b"made"

    def command() -> None:
        shards = tuple((number,) for number in range(3000))
        work = SharedWork(Together(str(tmp_path), 1, LEASE), "work", {}, shards)
        work.run(slowly, workers=1, title="work", here=False)

    def told() -> dict:
        found = list(tmp_path.glob("work-*/workers/*.json"))
        return json.loads(found[0].read_text()) if found else {}

    process = forking.Process(target=command)
    process.start()
    try:
        while not list(tmp_path.glob("work-*/results/*")):
            time.sleep(0.01)
        process.kill()
        process.join()
        patience = time.monotonic() + 20
        while not told().get("left"):
            assert time.monotonic() < patience, "it works on"
            time.sleep(0.01)
        assert told()["why"] == ""
    finally:
        process.kill()
        worker = told()
        if worker and not worker.get("left"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker["process"], signal.SIGKILL)


def test_options_of_shards_say_what_has_no_effect(capsys) -> None:
    recipe = reaching()
    made = override(recipe, ["--shards.on", "processes", "--shards.size", "3"], "x", "evaluate")
    assert made.shards == Shards(on="processes", size=3)
    with pytest.raises(SystemExit, match=r"--shards\.size .* give --shards\.on processes as well"):
        override(recipe, ["--shards.size", "3"], "x", "evaluate")
    with pytest.raises(SystemExit, match=r"the work of distil is not done in shards"):
        override(recipe, ["--shards.on", "processes", "--episodes", "e"], "x", "distil")
    for wrong in ({"size": 0}, {"lease": 0.0}, {"lease": float("nan")}):
        with pytest.raises(ValueError, match=r"Shards\.\w+ is .*, expected"):
            Shards(on="processes", **wrong)
    for wrong in ({"tasks": 2}, {"gpus": 0.5}):
        with pytest.raises(ValueError, match=r"is about tasks of Ray"):
            Shards(on="processes", **wrong)
        Shards(on="ray", **wrong)
    on_gpus = ["--shards.on", "ray", "--acting-device", "cuda"]
    with pytest.raises(SystemExit, match=r"a task of Ray sees no GPU .* give --shards\.gpus"):
        override(recipe, on_gpus, "x", "evaluate")
    made = override(recipe, [*on_gpus, "--shards.gpus", "0.5"], "x", "evaluate")
    assert made.shards == Shards(on="ray", gpus=0.5)
    for wrong in ({"tasks": 0}, {"gpus": -1.0}, {"gpus": 1.5}):
        with pytest.raises(ValueError, match=r"\w+ is -?[\d.]+, expected"):
            Shards(on="ray", **wrong)


def test_two_that_share_traces_store_what_one_does(tmp_path: Path, monkeypatch) -> None:
    """To the bit: batches are the same, whoever asks. And a store that was begun is gone on with."""
    monkeypatch.setattr(supervision, "ROWS", 4)
    monkeypatch.setattr(sharing, "ROWS", 4)
    policy = make_policy()
    batches = make_batches(policy, make_frames())
    identity = StoreIdentity("data", "teacher", "nothing")

    traced = ("actions", "condition")
    supervision.store_traces(
        tmp_path / "alone",
        identity,
        Learner(policy),
        batches,
        traced=traced,
        precision="fp32",
        title="traces",
    )

    def store(root: Path, together: Together) -> None:
        answers, columns = supervision.watching(
            Learner(policy), batches, traced=traced, precision="fp32"
        )
        watched = Watched(batches, answers, columns)
        beside = (root / "teacher.json").touch
        probing = Probing(together, root, identity, watched, "cpu", beside, asked=None)
        probing.run(Elsewhere(nobody, nobody), title="traces")

    together = Together(str(tmp_path / "meeting"), 2, LEASE)
    all_at_once(*[lambda: store(tmp_path / "shared", together)] * 3)
    assert (tmp_path / "shared/teacher.json").exists()
    for name in ("rows-000.bin", "keys.bin", "header.json"):
        found = (tmp_path / "shared" / name).read_bytes()
        assert found == (tmp_path / "alone" / name).read_bytes(), name
    # The first rows are there, as a process that was killed has left them.
    begun = tmp_path / "begun"
    begun.mkdir()
    for name, size in (("keys.bin", 20 * 5), ("rows-000.bin", None), ("header.json", None)):
        content = (tmp_path / "alone" / name).read_bytes()
        (begun / name).write_bytes(content[:size])
    store(begun, Together(str(tmp_path / "later"), 2, LEASE))
    for name in ("rows-000.bin", "keys.bin"):
        assert (begun / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name


def nobody(jobs: object) -> bytes:
    raise AssertionError("plain processes make what they have loaded themselves")


@pytest.mark.usefixtures("here")
def test_two_that_share_a_calibration_find_what_one_does(policies, tmp_path, monkeypatch) -> None:
    def calibrating(out: Path, at: Path | None) -> Recipe:
        calibration = Calibration(episodes=6, workers=1, execute=(3,))
        recipe = dataclasses.replace(evaluating(policies, out, at), calibration=calibration)
        return dataclasses.replace(recipe, policies=())

    calibrate.main(calibrating(tmp_path / "alone", None))
    # Into one folder, as two that are started with the same command: one waits for the other's lock.
    waits = []

    def hold(lock: Path, doing: str, *, wait: bool = False) -> object:
        waits.append(wait)
        return files.hold(lock, doing, wait=wait)

    monkeypatch.setattr(episodes, "hold", hold)
    recipe = calibrating(tmp_path / "shared", tmp_path / "meeting")
    all_at_once(lambda: calibrate.main(recipe), lambda: calibrate.main(recipe))
    found = json.loads((tmp_path / "shared" / "calibration.json").read_text())
    wanted = json.loads((tmp_path / "alone" / "calibration.json").read_text())
    assert found["policies"] == wanted["policies"]
    assert waits and all(waits)
    log = sorted((tmp_path / "shared/calibration/episodes.jsonl").read_text().splitlines())
    assert log == sorted((tmp_path / "alone/calibration/episodes.jsonl").read_text().splitlines())
    assert len(log) == 12


@pytest.mark.usefixtures("here")
def test_who_is_sent_a_probe_loads_the_same_or_says_what_is_another(policies, tmp_path) -> None:
    """As a task of Ray does, in a process that has loaded nothing."""
    recipe = dataclasses.replace(collecting(tmp_path, None), teacher=policies[0])
    collect.main(recipe)
    probe.main(recipe)
    loaded = probe.load(recipe)
    supervision.load_heads(loaded.learner.probe, recipe.heads_file)
    together = Together(str(tmp_path / "meeting"), 1, LEASE, "ray", tasks=1)
    there = probe.TracesElsewhere(recipe, together, loaded.store, "cpu")
    assert there([0]) == loaded.watched()([0])
    assert there([0]) == there([0])
    another = dataclasses.replace(recipe, teacher=policies[1])
    with pytest.raises(ShardError, match=r"the teacher of a worker: .* must reach the same"):
        dataclasses.replace(there, recipe=another)([0])
    with pytest.raises(ShardError, match=r"the device of a worker: 'cpu', and 'cuda' .*gpus"):
        dataclasses.replace(there, device="cuda")([0])
    labels = probe.LabelsElsewhere(recipe, ConstantWords(), loaded.data.fingerprint)
    assert labels([0, 1]) == Labelling(ConstantWords(), loaded.data)([0, 1])
    with pytest.raises(ShardError, match=r"the episodes of a worker: .* and 'others'"):
        dataclasses.replace(labels, episodes="others")([0])


@pytest.mark.slow
def test_heads_are_fitted_once_for_all_that_share_a_probe(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "first")
    collect.main(recipe)
    teach.main(recipe)
    probe.main(recipe)
    shards = Shards(on="processes", at=str(tmp_path / "meeting"), size=1)
    for name in ("one", "other"):
        shared = dataclasses.replace(recipe, shared=tmp_path / name, shards=shards)
        probe.main(shared)
        assert shared.heads_file.read_bytes() == recipe.heads_file.read_bytes()
    for name in ("rows-000.bin", "keys.bin", "header.json"):
        assert (tmp_path / "one/traces" / name).read_bytes() == (
            recipe.traces / name
        ).read_bytes(), name


def test_a_probe_that_cannot_be_shared_says_so(tmp_path: Path) -> None:
    recipe = dataclasses.replace(tiny_recipe(tmp_path), shards=Shards(on="ray"))
    with pytest.raises(ValueError, match=r"probe has no workers .* give --shards\.tasks"):
        probe.check_shared(recipe, None)
    recipe = dataclasses.replace(recipe, shards=Shards(on="processes"))
    with pytest.raises(ValueError, match="a teacher behind a socket is asked by one process"):
        probe.check_shared(recipe, Said(tmp_path, tmp_path))
