"""What makes a large student fit, on the real networks: low-rank additions, weights in half
precision with masters in single, layers computed twice. Each kind learns with each, and keeps what
it should; and of every kind there is a stand-in without weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from every_kind import MAKE
from torch import Tensor

from armlet.data.frames import Frames
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.policies.contract import Backbone
from armlet.policies.facts import TeacherFacts
from armlet.policies.students import FirstK, Fresh
from armlet.recipe import LoRA, Stage
from armlet.recipes.bases import Imitate
from armlet.training.learner import Learner
from armlet.training.trainer import Trainer, make_batches

LLAMA = "policy.layers.*.self_attn.[qv]_proj"
PAIR = "policy.layers.*.{}.self_attn.[qv]_proj"
# A kind of each family → which layers are given additions.
TARGETS = {
    "openvla_hf": (LLAMA,),
    "openvla_oft": (LLAMA,),
    "cogact": (LLAMA, "policy.head.net.blocks.*.mlp.fc?"),
    "pi0": (PAIR.format("prefix"), PAIR.format("expert")),
    "pi05": (PAIR.format("expert"),),
    "smolvla": (PAIR.format("prefix"), PAIR.format("expert")),
    "act": ("policy.layers.*.linear?",),
    "diffusion": ("policy.layers.*.cond_encoder.1",),
}
STAGE = Stage(
    Imitate(facts=()),
    steps=5,
    batch_size=3,
    warmup=0,
    schedule="constant",
    learning_rate=3e-3,
    log_every=1,
    checkpoint_every=100,
    ema=None,
    precision="fp32",
)
OPTIONS = {
    "recompute": replace(STAGE, recompute=True),
    "masters": replace(STAGE, weights_precision="bf16", precision="bf16"),
}


def lora(kind: str) -> Stage:
    return replace(STAGE, lora=LoRA(rank=2, alpha=8, targets=TARGETS[kind]), learning_rate=0.02)


@pytest.fixture(params=list(TARGETS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def frames_for(policy: Backbone, rows: int = 6) -> Frames:
    """One episode in the robot's own numbers, as far out as the statistics of the checkpoint."""
    rng = np.random.default_rng(0)
    images = {}
    for name, size in policy.view.cameras.items():
        images[name] = rng.integers(0, 256, (rows, *size, 3), dtype=np.uint8)
    body = policy.body
    state = body.state.invert(rng.uniform(-0.8, 0.8, (rows, len(body.state.offset))))
    actions = body.actions.invert(rng.uniform(-0.8, 0.8, (rows, policy.dims)))
    return Frames(
        images=images,
        state=state.astype(np.float32),
        actions=actions.astype(np.float32),
        executed=actions.astype(np.float32),
        privileged={},
        texts=("pick up the block",),
        asked=np.zeros(rows, np.int64),
        starts=np.array([0, rows]),
    )


@torch.no_grad()
def loss_of(policy: Backbone, frames: Frames) -> float:
    """The same noise and times whenever it is asked."""
    batch = make_batches(policy.eval(), frames).batch(np.arange(len(frames)))
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        run = policy.run_layers(policy.embed(batch), batch)
        found.append(float(policy.loss(run, batch).mean()))
    return float(np.mean(found))


def train(policy: Backbone, frames: Frames, stage: Stage, folder: Path) -> Trainer:
    torch.manual_seed(3)
    learner = Learner(policy)
    batches = make_batches(policy, frames)
    trainer = Trainer(learner, stage, batches, folder=folder, seed=1, title="test")
    trainer.run()
    return trainer


@pytest.mark.parametrize("option", OPTIONS)
def test_it_learns(kind: str, option: str, tmp_path: Path) -> None:
    policy = load_policy(MAKE[kind](tmp_path))
    frames = frames_for(policy)
    before = loss_of(policy, frames)
    kinds_of = {name: each.dtype for name, each in policy.named_parameters()}
    train(policy, frames, OPTIONS[option], tmp_path / "stage")
    assert loss_of(policy, frames) < before
    assert {name: each.dtype for name, each in policy.named_parameters()} == kinds_of
    assert not policy.recompute


def test_low_rank_additions_train_their_layers_alone_and_are_saved_within(
    kind: str, tmp_path: Path
) -> None:
    policy = load_policy(MAKE[kind](tmp_path))
    frames = frames_for(policy)
    start = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    before = loss_of(policy, frames)
    trainer = train(policy, frames, lora(kind), tmp_path / "stage")
    assert trainer.parameters and all("lora_" in name for name in trainer.parameters)
    layers = {name.partition(".lora_")[0].removeprefix("policy.") for name in trainer.parameters}
    found = policy.state_dict()
    assert list(found) == list(start)
    moved = {name for name, tensor in start.items() if not torch.equal(tensor, found[name])}
    taught = {f"{layer}.weight" for layer in layers}
    if kind in ("pi0", "smolvla"):  # the expert reads the last prefix's keys and values, no more
        taught.remove(f"layers.{len(policy.layers) - 1}.prefix.self_attn.q_proj.weight")
    assert moved == taught
    assert loss_of(policy, frames) < before
    save_policy(policy, tmp_path / "student")
    again = load_policy(tmp_path / "student")
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, found[name]), name
    assert loss_of(again, frames) == loss_of(policy, frames)


def test_layers_computed_twice_have_the_same_gradients(kind: str, tmp_path: Path) -> None:
    policy = load_policy(MAKE[kind](tmp_path)).train()
    batch = make_batches(policy, frames_for(policy)).batch(np.arange(4))
    gradients: list[dict[str, Tensor]] = []
    losses = []
    for again in (False, True):
        policy.recompute = again
        policy.zero_grad()
        torch.manual_seed(7)  # of the noise, and of what drops out
        run = policy.run_layers(policy.embed(batch), batch)
        loss = policy.loss(run, batch).mean()
        loss.backward()
        losses.append(float(loss.detach()))
        found = {}
        for name, parameter in policy.named_parameters():
            if parameter.grad is not None:
                found[name] = parameter.grad.clone()
        gradients.append(found)
    assert losses[0] == losses[1]
    assert set(gradients[0]) == set(gradients[1])
    assert any(name.startswith("layers.") for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-7, rtol=1e-5, msg=name)


def test_additions_where_attention_would_never_call_them_are_refused(tmp_path: Path) -> None:
    policy = load_policy(MAKE["act"](tmp_path))
    targets = ("policy.layers.*.self_attn.out_proj",)
    stage = replace(STAGE, lora=LoRA(rank=2, alpha=8, targets=targets))
    with pytest.raises(ValueError, match=r"self_attn.out_proj' matches no linear layer"):
        train(policy, frames_for(policy), stage, tmp_path / "stage")


def test_a_stand_in_has_no_weights_and_its_student_has(kind: str, tmp_path: Path) -> None:
    policy = load_policy(MAKE[kind](tmp_path))
    facts = TeacherFacts.of(policy, "0123")
    stand_in = facts.stand_in()
    assert all(parameter.is_meta for parameter in stand_in.parameters())
    torch.manual_seed(0)
    student = Fresh(FirstK(1)).build(stand_in)
    assert not any(parameter.is_meta for parameter in student.parameters())
    expected = policy.keep_layers((0,)).state_dict()
    found = student.state_dict()
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    frames = frames_for(policy)
    batch = make_batches(stand_in, frames, torch.device("cpu")).batch(np.arange(2))
    with torch.no_grad():
        assert student.eval()(batch).isfinite().all()
