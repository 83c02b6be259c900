"""The real LeRobot plays, fine-tunes and saves our students (make test-lerobot): the same episodes,
to the bit, as armlet's own loop in the same environment."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from armlet.deploy.lerobot import write_lerobot
from armlet.policies.checkpoint import (
    load_policy,
    policy_fingerprint,
    read_provenance,
    save_policy,
)

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TEACHER = ROOT / "checkpoints/tabletop-teacher"
# LeRobot 0.4.4 on Python 3.11, and 0.6.1 on 3.12.
ENVIRONMENTS = (".venv-lerobot", ".venv-lerobot06")
SEED = 70_000_000  # of worlds that nobody was trained on
pytestmark = pytest.mark.lerobot


@pytest.fixture(params=ENVIRONMENTS)
def python(request) -> Path:
    found = ROOT / request.param / "bin/python"
    if not found.exists():
        pytest.skip(f"no environment {request.param}; make test-lerobot makes it")
    return found


def side(python: Path, *arguments: object, scratch: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(HERE)]),
        "HF_HOME": str(scratch / "home"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [str(python), str(HERE / "policy_side.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=scratch,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def lines(path: Path) -> dict[int, dict]:
    """Episodes by seed; LeRobot plays on in environments that have finished, under other seeds."""
    found: dict[int, dict] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["seed"], row)
    return found


def evaluated(
    python: Path, folder: Path, scratch: Path, *, episodes: int, batch: int = 1, more: tuple = ()
) -> tuple[dict[int, dict], list[bool]]:
    """The episodes of `lerobot-eval`, by seed, and the successes that it reports itself."""
    out = scratch / f"eval-{batch}"
    log = scratch / f"episodes-{batch}.jsonl"
    side(
        python,
        "eval",
        f"--policy.path={folder}",
        "--env.type=armlet",
        f"--env.first_seed={SEED}",
        f"--env.log={log}",
        f"--seed={SEED}",
        f"--eval.n_episodes={episodes}",
        f"--eval.batch_size={batch}",
        f"--output_dir={out}",
        *more,
        scratch=scratch,
    )
    info = json.loads((out / "eval_info.json").read_text())
    return lines(log), info["per_task"][0]["metrics"]["successes"]


@pytest.mark.timeout(3600)
def test_the_outcomes_of_lerobot_eval_are_armlets(python: Path, tmp_path) -> None:
    """50 of 50, steps and actions too."""
    folder = write_lerobot(TEACHER, tmp_path / "teacher")
    side(python, "play", TEACHER, SEED, 50, tmp_path / "ours.jsonl", scratch=tmp_path)
    ours = lines(tmp_path / "ours.jsonl")
    theirs, successes = evaluated(python, folder, tmp_path, episodes=50)
    assert len(ours) == 50
    assert {seed: theirs[seed] for seed in ours} == ours
    assert successes == [ours[seed]["success"] for seed in sorted(ours)]


@pytest.mark.timeout(3600)
def test_side_by_side_each_is_as_if_alone(python: Path, tmp_path) -> None:
    """Three environments at once, and a student that often fails."""
    student = tmp_path / "student"
    save_policy(load_policy(TEACHER).keep_layers((0, 1, 2, 4, 6, 7)), student)
    folder = write_lerobot(student, tmp_path / "folder")
    side(python, "play", student, SEED, 9, tmp_path / "ours.jsonl", scratch=tmp_path)
    ours = lines(tmp_path / "ours.jsonl")
    theirs, successes = evaluated(python, folder, tmp_path, episodes=9, batch=3)
    assert {seed: theirs[seed] for seed in ours} == ours
    assert successes == [ours[seed]["success"] for seed in sorted(ours)]


@pytest.mark.timeout(3600)
def test_lerobot_train_fine_tunes_and_armlet_reads_it(python: Path, tmp_path) -> None:
    import dataclasses

    from armlet import recipes
    from armlet.collect import main as collect
    from armlet.recipe import Collection

    recipe = dataclasses.replace(
        recipes.make("actdistill_tabletop"),
        episodes=tmp_path / "episodes",
        out=tmp_path / "out",
        collection=Collection(episodes=6, workers=1),
    )
    collect(recipe)
    folder = write_lerobot(TEACHER, tmp_path / "teacher")
    side(
        python,
        "train",
        f"--policy.path={folder}",
        "--policy.push_to_hub=false",
        "--policy.optimizer_lr=1e-5",
        "--dataset.repo_id=local/episodes",
        f"--dataset.root={tmp_path / 'episodes'}",
        "--dataset.video_backend=pyav",
        "--batch_size=8",
        "--steps=2",
        "--save_freq=2",
        "--log_freq=1",
        "--num_workers=0",
        "--wandb.enable=false",
        f"--output_dir={tmp_path / 'trained'}",
        scratch=tmp_path,
    )
    tuned = tmp_path / "trained/checkpoints/000002/pretrained_model"
    assert policy_fingerprint(tuned) != policy_fingerprint(TEACHER)
    assert read_provenance(tuned)["fine_tuned_from"] == policy_fingerprint(TEACHER)
    before = load_policy(TEACHER).state_dict()
    after = load_policy(tuned).state_dict()
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    # Two steps of AdamW at 1e-5: every weight moved by about that, and none further.
    assert 1e-6 < moved < 1e-4
    # And LeRobot plays what it saved.
    shutil.rmtree(tmp_path / "teacher")
    evaluated(python, tuned, tmp_path, episodes=1)
