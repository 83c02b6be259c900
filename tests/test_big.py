"""What makes a large student fit: low-rank additions, weights in half precision, layers computed
twice. Each against the plain thing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from strangers import Expert, Writer
from strangers import make as make_stranger
from test_training import Killed
from tiny import make_frames, make_policy
from torch import nn

from armlet import recipes
from armlet.options import override
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.policies.contract import Backbone
from armlet.policies.routed import Routing
from armlet.recipe import LoRA, OwnAverage, Stage, settings
from armlet.recipes.actdistill import Budgeted
from armlet.recipes.bases import Imitate, MatchOutput
from armlet.training.learner import Learner
from armlet.training.lora import add_lora, merge_lora
from armlet.training.masters import Masters
from armlet.training.trainer import Trainer, make_batches

STAGE = Stage(
    Imitate(facts=()), steps=6, batch_size=5, warmup=2, log_every=1, checkpoint_every=2, ema=0.9
)
ADDED = LoRA(rank=2, alpha=8, targets=("policy.layers.*.self_attn.[qv]_proj",))
LOW = replace(STAGE, lora=ADDED, learning_rate=0.02)


def train(folder: Path, stage: Stage, policy: Backbone | None = None) -> tuple[Learner, Trainer]:
    torch.manual_seed(3)
    policy = policy or make_policy()
    learner = Learner(policy)
    batches = make_batches(policy, make_frames())
    trainer = Trainer(learner, stage, batches, folder=folder, seed=1, title="test")
    trainer.run()
    return learner, trainer


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def moved(before: dict[str, torch.Tensor], module: nn.Module) -> set[str]:
    now = module.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor, now[name])}


def test_merged_equals_unmerged_and_leaves_no_trace(tmp_path) -> None:
    learner = Learner(make_policy())
    names = set(learner.state_dict())
    torch.manual_seed(0)
    factors = add_lora(learner, ADDED)
    assert len(factors) == 4 * 2 * 2
    for name in factors:
        nn.init.normal_(learner.get_parameter(name), std=0.3)
    batch = make_batches(learner.policy, make_frames()).batch(torch.arange(9).numpy())
    with torch.no_grad():
        before = learner.policy(batch)
        merge_lora(learner)
        after = learner.policy(batch)
        plain = make_policy()(batch)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
    assert (after - plain).abs().max() > 1e-2
    assert set(learner.state_dict()) == names and not any("lora" in name for name in names)
    save_policy(learner.policy, tmp_path / "student")
    again = load_policy(tmp_path / "student")
    assert torch.equal(again(batch), after)
    assert not any("peft" in type(part).__module__ for part in again.modules())


def test_only_the_additions_train_and_move_their_layers(tmp_path) -> None:
    before = weights(make_policy())
    learner, trainer = train(tmp_path, LOW)
    assert all("lora_" in name for name in trainer.parameters)
    counted = {id(each) for group in trainer.optimisers for each in _of(group)}
    assert counted == {id(each) for each in trainer.parameters.values()}
    expected = {f"layers.{i}.self_attn.{x}_proj.weight" for i in range(4) for x in "qv"}
    assert moved(before, learner.policy) == expected
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    parameters = {name for name, _ in learner.named_parameters()}
    assert not parameters & set(state["learner"]), "what stands still is not saved"


def _of(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [each for group in optimiser.param_groups for each in group["params"]]


def test_the_rank_is_that_of_what_was_learnt(tmp_path) -> None:
    before = weights(make_policy())
    learner, _ = train(tmp_path, replace(LOW, precision="fp32"))
    name = "layers.1.self_attn.q_proj.weight"
    change = learner.policy.get_parameter(name).detach() - before[name]
    sizes = torch.linalg.svdvals(change)
    assert sizes[1] > 1e-6 and float(sizes[2]) < 1e-3 * float(sizes[0])


@pytest.mark.parametrize(
    "stage",
    [LOW, replace(STAGE, weights_precision="bf16"), replace(STAGE, recompute=True)],
    ids=["lora", "masters", "recompute"],
)
def test_a_killed_run_resumes_to_the_same_weights(tmp_path, monkeypatch, stage: Stage) -> None:
    whole, _ = train(tmp_path / "whole", stage)
    update = Trainer._update

    def dies(trainer: Trainer) -> dict[str, float]:
        if trainer.step == 3:
            raise Killed
        return update(trainer)

    monkeypatch.setattr(Trainer, "_update", dies)
    with pytest.raises(Killed):
        train(tmp_path / "parts", stage)
    monkeypatch.setattr(Trainer, "_update", update)
    resumed, _ = train(tmp_path / "parts", stage)
    assert not moved(weights(whole), resumed)


def test_whole_names_what_trains_beside_the_additions(tmp_path) -> None:
    before = weights(make_policy())
    lora = replace(ADDED, whole=("policy.head.*",))
    learner, _ = train(tmp_path, replace(LOW, lora=lora))
    also = {name for name in moved(before, learner.policy) if "self_attn" not in name}
    assert also and all(name.startswith("head.") for name in also)


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        (replace(ADDED, targets=("policy.layer.*",)), r"'policy.layer.\*' matches no linear layer"),
        (replace(ADDED, whole=("policy.haed.*",)), r"lora.whole=.*'policy.haed.\*' matches no"),
    ],
)
def test_patterns_that_match_nothing_are_errors(tmp_path, lora: LoRA, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        train(tmp_path, replace(LOW, lora=lora))
    with pytest.raises(ValueError, match="names no layer"):
        LoRA(rank=2, targets=())


def test_options_of_the_command_line_reach_a_stage() -> None:
    line = "--stages.0.lora.rank 4 --stages.0.lora.targets policy.*.q_proj policy.*.o_proj "
    line += "--stages.0.weights-precision bf16 --stages.0.recompute --stages.0.ema None"
    recipe = override(recipes.make("first_k_tabletop"), line.split(), "armlet distil")
    (stage,) = recipe.stages
    assert stage.lora == LoRA(rank=4, targets=("policy.*.q_proj", "policy.*.o_proj"))
    assert (stage.weights_precision, stage.recompute, stage.ema) == ("bf16", True, None)
    with pytest.raises(ValueError, match="own average"):
        replace(stage, teacher=OwnAverage())


def test_additions_are_moved_by_adamw(tmp_path) -> None:
    _, trainer = train(tmp_path, replace(LOW, steps=1))
    assert [type(each).__name__ for each in trainer.optimisers] == ["AdamW"]


def test_nothing_is_said_of_what_is_not_asked_for() -> None:
    said = settings(STAGE)
    new = {"lora", "weights_precision", "recompute", "freeze_pretrained"}
    assert not new & set(said) and new & set(settings(LOW)) == {"lora"}


# --- weights in half precision


def test_steps_too_small_for_half_precision_add_up() -> None:
    layer = nn.Linear(3, 2, bias=False)
    start = layer.weight.detach().clone()
    parameters = dict(layer.named_parameters())
    masters = Masters(layer, parameters, halve=True)
    assert layer.weight.dtype == torch.bfloat16
    optimiser = torch.optim.SGD(masters.weights.values(), lr=1e-5)
    for _ in range(100):
        layer(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
        assert layer.weight.grad is None
        optimiser.step()
        optimiser.zero_grad()
        masters.show()
    masters.restore()
    torch.testing.assert_close(
        layer.weight.detach(), start - 1e-3, atol=1e-5, rtol=0
    )  # rounding of 100 sums


def test_what_stands_still_is_as_it_was_to_the_bit(tmp_path) -> None:
    before = weights(make_policy())
    stage = replace(STAGE, weights_precision="bf16", freeze=("policy.layers.[01].*",))
    seen = {}
    update = Trainer._update

    class Watching(Trainer):
        def _update(self) -> dict[str, float]:
            for name, each in self.learner.named_parameters():
                seen[name] = each.dtype
            found = update(self)
            shown = dict(self.learner.named_parameters())
            for name, master in self.masters.weights.items():
                assert torch.equal(shown[name], master.to(shown[name].dtype)), name
            return found

    torch.manual_seed(3)
    learner = Learner(make_policy())
    batches = make_batches(learner.policy, make_frames())
    Watching(learner, stage, batches, folder=tmp_path, seed=1, title="test").run()
    assert seen["policy.layers.0.mlp.up_proj.weight"] == torch.bfloat16
    assert seen["policy.layers.3.mlp.up_proj.weight"] == torch.bfloat16
    assert seen["policy.layers.3.input_layernorm.weight"] == torch.float32
    assert {each.dtype for each in learner.parameters()} == {torch.float32}
    still = moved(before, learner.policy)
    assert not any(name.startswith(("layers.0.", "layers.1.")) for name in still)
    assert "layers.3.mlp.up_proj.weight" in still


def test_half_precision_learns_what_single_precision_does(tmp_path) -> None:
    plain, _ = train(tmp_path / "a", STAGE)
    halved, _ = train(tmp_path / "b", replace(STAGE, weights_precision="bf16"))
    start = weights(make_policy())
    name = "layers.2.mlp.down_proj.weight"
    change = plain.policy.get_parameter(name).detach() - start[name]
    other = halved.policy.get_parameter(name).detach() - start[name]
    likeness = torch.cosine_similarity(change.flatten(), other.flatten(), dim=0)
    assert float(likeness) > 0.9
    with pytest.raises(ValueError, match="weights_precision is bf16 and precision fp32"):
        replace(STAGE, weights_precision="bf16", precision="fp32")


@pytest.mark.parametrize("chooser", ["learned", "published", "random"])
def test_a_router_stays_in_single_precision_and_its_student_trains(tmp_path, chooser: str) -> None:
    """By the loss of single precision's products within the rounding of half precision; and what was
    trained so is deployed as it trains."""
    own = {"use_state": False, "use_previous_action": False} if chooser == "published" else {}
    objective = Budgeted(MatchOutput(action=0.0, condition=0.0))
    logs = {}
    for precision in ("fp32", "bf16"):
        stage = replace(STAGE, objective=objective, precision=precision)
        if precision == "bf16":
            stage = replace(stage, weights_precision="bf16")
        torch.manual_seed(0)
        policy = Routing(chooser=chooser, initial_keep=0.6, **own).build(make_policy())
        before = weights(policy)
        learner, _ = train(tmp_path / precision, stage, policy)
        lines = (tmp_path / precision / "metrics.jsonl").read_text().splitlines()
        logs[precision] = [json.loads(line)["loss"] for line in lines]
    assert logs["bf16"] == pytest.approx(logs["fp32"], rel=2e-2)
    assert logs["bf16"] != logs["fp32"]
    assert {each.dtype for each in learner.parameters()} == {torch.float32}
    state = torch.load(tmp_path / "bf16" / "state.pt", weights_only=True)
    halved = {name for name, each in state["learner"].items() if each.dtype == torch.bfloat16}
    assert "policy.inner.layers.0.mlp.up_proj.weight" in halved
    assert not any("router" in name for name in halved)
    assert any("router" in name for name in moved(before, policy)) == (chooser != "random")
    batch = make_batches(policy, make_frames()).batch(np.arange(1))
    with torch.enable_grad():
        masked = policy(batch)
    with torch.no_grad():
        assert torch.equal(policy(batch), masked)


# --- layers computed twice


@pytest.mark.parametrize("kind", ["vla", "routed", "expert", "writer"])
def test_layers_computed_twice_have_the_same_gradients(kind: str) -> None:
    made = {
        "vla": make_policy,
        "routed": lambda: Routing().build(make_policy()),
        "expert": lambda: make_stranger(Expert),
        "writer": lambda: make_stranger(Writer),
    }
    torch.manual_seed(0)
    policy = made[kind]().train()
    learner = Learner(policy)
    batch = make_batches(policy, make_frames()).batch(torch.arange(6).numpy())
    runs = []
    for again in (False, True):
        policy.recompute = again
        policy.zero_grad()
        torch.manual_seed(7)
        trace = learner(batch, ["imitation", "gates", "hidden.1"])
        loss = trace["imitation"].mean() + trace["gates"].mean() + trace["hidden.1"].mean()
        (loss if loss.requires_grad else trace["imitation"].mean()).backward()
        found = {}
        for name, each in policy.named_parameters():
            found[name] = None if each.grad is None else each.grad.clone()
        runs.append(found)
    for name, grad in runs[0].items():
        other = runs[1][name]
        assert (grad is None) == (other is None), name
        if grad is not None:
            torch.testing.assert_close(other, grad, atol=1e-6, rtol=1e-6, msg=name)


def test_layers_computed_twice_keep_only_what_goes_in() -> None:
    policy = make_policy(depth=6).train()
    batch = make_batches(policy, make_frames()).batch(torch.arange(20).numpy())
    kept = []
    for again in (False, True):
        policy.recompute = again
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        state = policy.embed(batch)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            policy.run_layers(state, batch)
        kept.append(sum(sizes.values()))
    assert kept[1] < kept[0] / 10


def test_recompute_ends_with_its_stage(tmp_path) -> None:
    learner, _ = train(tmp_path / "a", replace(STAGE, recompute=True, precision="fp32"))
    plain, _ = train(tmp_path / "b", replace(STAGE, precision="fp32"))
    assert not learner.policy.recompute
    for (name, a), b in zip(learner.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)
