"""What takes minutes: a whole recipe under torchrun, restarts, shards that are read by other numbers of
processes, weights in half precision, low-rank additions (make test-distributed)."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import STAGE, together, train

from armlet import collect, distil, probe, teach
from armlet.recipe import LoRA
from armlet.training.trainer import Trainer

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1800)]

# A recipe of one's own, as torchrun's processes find it: a file in the folder where they start.
OURS = '''
"""A tiny recipe in single precision."""
import dataclasses
import sys
from pathlib import Path

sys.path.append({tests!r})
from tiny import tiny_recipe


def exact(stage):
    return dataclasses.replace(
        stage, precision="fp32", optimiser="adamw", parallel={parallel!r}, batch_size=16, steps=4
    )


def mine():
    """ActDistill, small."""
    made = tiny_recipe(Path({out!r}))
    probe = dataclasses.replace(made.probe, stage=exact(made.probe.stage))
    return dataclasses.replace(
        made,
        teach=exact(made.teach),
        probe=probe,
        stages=tuple(map(exact, made.stages)),
    )
'''
LOW = LoRA(4, targets=("policy.inner.layers.*",), whole=("policy.router.*",))
TESTS = Path(__file__).parent.parent


def losses(log: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in log.read_text().splitlines()]


def recipe_of(folder: Path, parallel: str):
    """A module of a recipe in `folder`, and the recipe."""
    said = OURS.format(tests=str(TESTS), out=str(folder), parallel=parallel)
    (folder / f"ours_{parallel}.py").write_text(said)
    scope: dict = {}
    exec(said, scope)
    return scope["mine"]()


def torchrun(folder: Path, *words: str, restarts: int = 0) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    return subprocess.run(
        [*command, "--max-restarts", str(restarts), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_whole_recipe_is_one_processs(tmp_path) -> None:
    """teach, probe and both stages of distil as copies, and distil in shards: every loss on the way
    is that of one process to a thousandth."""
    one = recipe_of(tmp_path, "ddp")
    for verb in (collect, teach, probe, distil):
        verb.main(one)
    for parallel, verbs in (("ddp", ("teach", "probe", "distil")), ("fsdp", ("distil",))):
        folder = tmp_path / parallel
        folder.mkdir()
        recipe_of(folder, parallel)
        given = ["episodes"] if "teach" in verbs else ["episodes", "teacher", "probe", "traces"]
        for name in given:
            (folder / name).symlink_to(tmp_path / name)
        for verb in verbs:
            done = torchrun(folder, "-m", "armlet", verb, f"ours_{parallel}:mine")
            assert done.returncode == 0, done.stderr
            assert len(done.stdout.strip().splitlines()) == 1  # one result, whoever speaks
        stages = ["distil-0", "distil-1"]
        if "teach" in verbs:
            stages += ["teach", "probe"]
        for stage in stages:
            found = losses(folder / stage / "metrics.jsonl")
            assert found == pytest.approx(losses(tmp_path / stage / "metrics.jsonl"), rel=1e-3)
        assert (folder / "student" / "config.json").is_file()


def test_torchrun_restarts_to_the_same_weights(tmp_path) -> None:
    (tmp_path / "run.py").write_text(f"""
import os, sys
from pathlib import Path
sys.path += [{str(TESTS)!r}, {str(TESTS / "together")!r}]
from processes import STAGE, train
import torch
from armlet.training.distributed import joined
from armlet.training.trainer import Trainer

folder = Path(sys.argv[1])
update = Trainer._update

def dies(trainer):
    once = folder / "died"
    if trainer.step == 2 and trainer.world.rank == 1 and len(sys.argv) > 2 and not once.exists():
        once.write_text("")
        os._exit(9)
    return update(trainer)

Trainer._update = dies
with joined() as world:
    _, weights = train(folder / "stage", STAGE)
    if world.first:
        torch.save(weights, folder / "weights.pt")
""")
    for name, words in (("whole", ()), ("parts", ("die",))):
        (tmp_path / name).mkdir()
        done = torchrun(tmp_path, "run.py", name, *words, restarts=1)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "parts" / "died").exists()
    whole = torch.load(tmp_path / "whole" / "weights.pt")
    parts = torch.load(tmp_path / "parts" / "weights.pt")
    for name, tensor in whole.items():
        assert torch.equal(parts[name], tensor), name


def steps(stage_steps: int, **changed):
    return dataclasses.replace(STAGE, steps=stage_steps, schedule="constant", **changed)


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_shards_are_read_by_any_number_of_processes(tmp_path, optimiser: str) -> None:
    """2 → 1 → 4 → a process alone, each a few steps; noise of rounding apart it is one process's
    run."""
    kinds = {"optimiser": optimiser, "transforms": STAGE.transforms[:2]}
    train(tmp_path / "one", steps(8, **kinds))
    for size, until in ((2, 2), (1, 4), (4, 6)):
        stage = steps(until, parallel="fsdp", **kinds)
        if size == 1:
            stage = dataclasses.replace(stage, parallel="ddp")
        found = together(size, lambda rank, s=stage: train(tmp_path / "many", s) and None, tmp_path)
        assert not any(found), found
    train(tmp_path / "many", steps(8, **kinds))
    found = losses(tmp_path / "many" / "metrics.jsonl")
    # Muon's iteration is in bfloat16 where a processor has it.
    close = 1e-4 if optimiser == "adamw" else 2e-2
    assert found == pytest.approx(losses(tmp_path / "one" / "metrics.jsonl"), rel=close)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("size", [2, 3])
def test_an_epoch_whose_last_batch_leaves_some_without_a_sample(
    tmp_path, parallel: str, size: int
) -> None:
    stage = steps(7)
    train(tmp_path / "one", stage)
    stage = dataclasses.replace(stage, parallel=parallel, accumulate=1 if size == 3 else 2)
    found = together(size, lambda rank: train(tmp_path / "many", stage) and None, tmp_path)
    assert not any(found), found
    expected = losses(tmp_path / "one" / "metrics.jsonl")
    assert losses(tmp_path / "many" / "metrics.jsonl") == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("parallel", "changed"),
    [
        ("ddp", {"weights_precision": "bf16", "precision": "bf16"}),
        ("ddp", {"lora": LOW}),
        ("fsdp", {"lora": LOW}),
        ("fsdp", {"recompute": True, "accumulate": 2}),
    ],
)
def test_halves_low_rank_additions_and_recomputed_layers(
    tmp_path, parallel: str, changed: dict
) -> None:
    stage = steps(3, **changed)
    halved = stage.precision == "bf16"
    expected = train(tmp_path / "one", dataclasses.replace(stage, accumulate=1))[1]
    many = dataclasses.replace(stage, parallel=parallel)
    found = together(2, lambda rank: train(tmp_path / "many", many)[1], tmp_path)
    close = 2e-2 if halved else 1e-4
    log = losses(tmp_path / "many" / "metrics.jsonl")
    assert log == pytest.approx(losses(tmp_path / "one" / "metrics.jsonl"), rel=close)
    assert found[0].keys() == expected.keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in expected)


def test_a_process_that_stalls_is_named(tmp_path) -> None:
    update = Trainer._update

    def stalls(trainer: Trainer) -> dict[str, float]:
        if trainer.step == 1 and trainer.world.rank == 1:
            time.sleep(60)
        return update(trainer)

    def work(rank: int) -> object:
        Trainer._update = stalls
        return train(tmp_path / "stage")

    first, _ = together(2, work, tmp_path, patience=0.25)
    assert re.search(r"rank 0 of 2, step 1: .* rank 0 1, rank 1 0", str(first)), first
