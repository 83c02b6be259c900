"""The memory of a large student, on paper, against what a small one really holds."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_big import STAGE, train
from tiny import make_policy

from armlet.recipe import LoRA
from armlet.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("bench_memory", ROOT / "bench" / "memory.py")
memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory)

SMALL = memory.Model(
    trunk=("layers.*",), eyes=("vision.*",), unread=(), blocks=(), sight=()
)  # of a VLA of ours
REPORT = json.loads((ROOT / "docs" / "machinery" / "memory.json").read_text())


def rows() -> list:
    """The shapes of a small policy: of linear layers, and of what is none."""
    policy = make_policy()
    linear = {
        f"{name}.weight" for name, part in policy.named_modules() if type(part) is torch.nn.Linear
    }
    found = []
    for name, each in policy.named_parameters():
        known = name if name in linear or each.ndim != 2 else f"{name}.embed"
        found.append((known, list(each.shape), 1))
    return found


@pytest.mark.parametrize("trains", ["everything", "layers"])
def test_weights_gradients_and_optimiser_are_what_a_stage_holds(
    tmp_path, monkeypatch, trains: str
) -> None:
    freeze = ("policy.vision.*",) if trains == "layers" else ()
    stage = replace(STAGE, weights_precision="bf16", freeze=freeze, ema=None, steps=2)
    held = {}
    update = Trainer._update

    def counting(trainer: Trainer) -> dict[str, float]:
        found = update(trainer)
        parameters = list(trainer.learner.policy.parameters())
        own = {id(each) for each in parameters}
        masters = [each for each in trainer.parameters.values() if id(each) not in own]
        held["weights"] = sum(each.nbytes for each in [*parameters, *masters])
        held["gradients"] = sum(4 * each.numel() for each in trainer.parameters.values())
        states = [each for o in trainer.optimisers for each in o.state.values()]
        tensors = [each for state in states for each in state.values() if torch.is_tensor(each)]
        held["optimiser"] = sum(each.nbytes for each in tensors if each.ndim)
        return found

    monkeypatch.setattr(Trainer, "_update", counting)
    train(tmp_path, stage)
    said = memory.fixed_bytes(rows(), SMALL, memory.Plan(trains))
    assert {name: said[name] for name in held} == pytest.approx(held, rel=1e-9)


def test_low_rank_additions_are_what_a_stage_holds(tmp_path) -> None:
    lora = LoRA(rank=memory.RANK, targets=("policy.layers.*",))
    _, trainer = train(tmp_path, replace(STAGE, lora=lora, ema=None, steps=1))
    said = memory.fixed_bytes(rows(), SMALL, memory.Plan("lora"))
    assert said["trained"] == sum(each.numel() for each in trainer.parameters.values())


@pytest.mark.parametrize("lora", [False, True])
def test_what_autograd_keeps_grows_with_the_width_as_said(lora: bool) -> None:
    block = memory.Block("llama", 1, 1, 1024, 4096, 4, 2, 256)
    said = memory.token_bytes(block, lora=lora)
    assert said == pytest.approx(memory.kept_bytes(block, 1, lora=lora), rel=0.01)


def test_the_report_is_of_these_shapes() -> None:
    shapes = json.loads(memory.SHAPES.read_text())
    # As many numbers as the checkpoints have.
    counts = {name: sum(memory.math.prod(s) * n for _, s, n in r) for name, r in shapes.items()}
    assert counts == {
        "OpenVLA": 7_541_237_184,
        "pi0": 4_028_019_472,
        "pi05": 4_143_404_816,
        "SmolVLA": 450_046_176,
    }
    for name, model in memory.MODELS.items():
        for plan, wanted in memory.PLANS.items():
            found = memory.fixed_bytes(shapes[name], model, wanted)
            written = REPORT["models"][name][plan]
            for part in ("weights", "gradients", "optimiser"):
                assert written[part] == pytest.approx(found[part] / memory.GB, abs=1e-3)
    openvla = REPORT["models"]["OpenVLA"]
    assert openvla["half"]["total"] < 80 < openvla["layers"]["total"]
    assert openvla["lora"]["total"] < 24
