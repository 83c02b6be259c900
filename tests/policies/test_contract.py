"""Strangers' networks on the contract: what is done to ours is done to them, and the layers are
theirs.

References: layers run by hand, a decoder without a cache, the network cut to the layers that a
router runs, each sample alone.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from strangers import Cached, Expert, Stranger, Writer, make
from tiny import make_frames
from torch import Tensor

from armlet.data.lines import read_lines
from armlet.evaluation.measure import latency
from armlet.layers.graph import ProbeHeads
from armlet.layers.heads import to_bins
from armlet.policies.building import rebuild
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.policies.contract import Backbone, Policy, State
from armlet.policies.routed import Routed, Routing
from armlet.policies.students import FirstK, LayerDrop, influence
from armlet.recipe import Stage
from armlet.recipes.actdistill import ActDistill
from armlet.recipes.bases import FitHeads, MatchOutput
from armlet.robot.observation import Observation
from armlet.robot.spec import RobotSpec
from armlet.training.learner import Learner, watch
from armlet.training.trainer import Trainer, make_batches
from armlet.types import Batch, Trace

BOTH = pytest.mark.parametrize("kind", [Expert, Writer])
FRAMES = make_frames()
LAYERS = ["semantics", "layer_actions"]


def batch_of(policy: Backbone, rows: int = 8) -> Batch:
    return make_batches(policy, FRAMES).batch(np.arange(rows) * 3)


def alone(batch: Batch, row: int) -> Batch:
    """One sample of a batch, its words as long as the batch's longest."""
    own = slice(row, row + 1)
    return Batch(
        images={name: image[own] for name, image in batch.images.items()},
        text=batch.text[own],
        text_mask=batch.text_mask[own],
        state=batch.state[own],
        previous_action=batch.previous_action[own],
    )


def probed(policy: Backbone) -> Learner:
    torch.manual_seed(1)
    sizes = {"graph_width": 8, "semantic_width": 8, "hidden": 16, "neighbours": 4}
    heads = ProbeHeads(len(policy.layers), policy.width, chunk=policy.chunk, dims=4, **sizes)
    return Learner(policy, probe=heads)


def routed(kind: type[Stranger]) -> Routed:
    """One whose router really decides, by what it sees."""
    policy = Routing(budget=0.5).build(make(kind))
    assert isinstance(policy, Routed)
    torch.manual_seed(2)
    torch.nn.init.normal_(policy.router.leave.weight, std=2.0)
    torch.nn.init.zeros_(policy.router.leave.bias)
    return policy.eval()


def decided(policy: Backbone, batch: Batch) -> Tensor:
    return policy.decode(policy.run_layers(policy.embed(batch), batch), batch)


@BOTH
@torch.no_grad()
def test_watched(kind: type[Stranger]) -> None:
    learner = probed(make(kind)).eval()
    policy, batch = learner.policy, batch_of(learner.policy)
    state = policy.embed(batch)
    states = []
    for index in range(4):
        state = policy.run_layer(index, state)
        states.append(state)
    found = watch(learner, batch, ["actions", "hidden.0", "hidden.3", "gates", "costs", *LAYERS])
    assert torch.equal(found["hidden.0"], states[0].hidden)
    assert torch.equal(found["hidden.3"], states[3].hidden)
    assert torch.equal(found["actions"], policy(batch)) and len(state.keys) == 4
    semantics, _ = learner.probe([each.hidden for each in states], states[0].mask)
    assert torch.equal(found["semantics"], semantics)
    assert found["layer_actions"].shape == (8, 4, 3, 4) and (found["gates"] == 1).all()
    assert [int(cost) for cost in found["costs"]] == [
        sum(p.numel() for p in layer.parameters()) for layer in policy.layers
    ]


@torch.no_grad()
def test_a_condition_is_a_signal_of_those_that_have_one() -> None:
    writer, expert = Learner(make(Writer)).eval(), Learner(make(Expert)).eval()
    batch = batch_of(writer.policy)
    last = writer.policy.run_layers(writer.policy.embed(batch), batch).state.hidden[:, -1]
    assert torch.equal(watch(writer, batch, ["condition"])["condition"], last)
    with pytest.raises(KeyError, match=r"type 'strangers:Expert' has no signal \['condition'\]"):
        watch(expert, batch_of(expert.policy), ["condition"])


@torch.no_grad()
def test_facts_are_guessed_from_the_last_tokens_where_there_is_no_condition() -> None:
    learner = Learner(make(Expert), privileged={"subject": 3}).eval()
    batch = batch_of(learner.policy)
    found = watch(learner, batch, ["privileged.subject", "pointed.subject"])
    state = learner.policy.run_layers(learner.policy.embed(batch), batch).state
    means = [hidden[real].mean(0) for hidden, real in zip(state.hidden, state.mask, strict=True)]
    wanted = learner.privileged["subject"](torch.stack(means))
    torch.testing.assert_close(found["privileged.subject"], wanted)
    assert found["pointed.subject"].shape == (8, 3)


def train(learner: Learner, stage: Stage, folder, *, teacher=None) -> list[dict[str, float]]:
    batches = make_batches(learner.policy, FRAMES)
    Trainer(learner, stage, batches, folder=folder, seed=0, title="t", teacher=teacher).run()
    return list(map(json.loads, read_lines(folder / "metrics.jsonl")))


SHORT = {"batch_size": 16, "warmup": 1, "log_every": 1, "checkpoint_every": 100}


@BOTH
def test_probed(kind: type[Stranger], tmp_path) -> None:
    """The heads of every layer learn; the network itself stands still."""
    learner = probed(make(kind))
    before = {name: tensor.clone() for name, tensor in learner.policy.state_dict().items()}
    stage = Stage(
        FitHeads(), steps=40, optimiser="adamw", learning_rate=1e-2, train=("probe.*",), **SHORT
    )
    log = train(learner, stage, tmp_path)
    assert np.mean([row["loss"] for row in log[-5:]]) < 0.9 * log[0]["loss"]
    for name, tensor in learner.policy.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@BOTH
def test_routed_training_is_deployment_to_the_bit(kind: type[Stranger]) -> None:
    policy = routed(kind)
    batch = batch_of(policy, 12)
    routes = set()
    for row in range(12):
        one = alone(batch, row)
        trained = policy.run_layers(policy.embed(one), one)
        assert trained.gates.requires_grad and not trained.plan
        with torch.no_grad():
            deployed = policy.run_layers(policy.embed(one), one)
            assert torch.equal(trained.gates, deployed.gates)
            for mine, theirs in zip(_tensors(trained.state), _tensors(deployed.state), strict=True):
                assert torch.equal(mine, theirs)
            assert torch.equal(policy.decode(trained, one), policy.decode(deployed, one))
        routes.add(deployed.plan)
    assert len(routes) > 2, "it really decides"


def _tensors(state: Cached) -> list[Tensor]:
    return [state.hidden, *state.keys, *state.values]


@BOTH
@torch.no_grad()
def test_a_batch_of_mixed_routes_is_each_sample_alone(kind: type[Stranger]) -> None:
    policy = routed(kind)
    batch = batch_of(policy, 12)
    run = policy.run_layers(policy.embed(batch), batch)
    assert len(run.gates.unique(dim=0)) > 2
    together = policy.decode(run, batch)
    for row in range(12):
        torch.testing.assert_close(together[row], decided(policy, alone(batch, row))[0])


@BOTH
@torch.no_grad()
def test_a_skipped_layer_does_not_run_whatever_it_would_say(kind: type[Stranger]) -> None:
    policy = routed(kind)
    batch = batch_of(policy, 12)
    gates = policy.run_layers(policy.embed(batch), batch).gates
    row = next(row for row in range(12) if 0 < gates[row].sum() < 4)
    one = alone(batch, row)
    wanted = decided(policy, one)
    skipped = int((gates[row] == 0).nonzero()[0])
    for parameter in policy.layers[skipped].parameters():
        parameter.fill_(torch.nan)
    assert torch.equal(decided(policy, one), wanted)


@BOTH
def test_the_budget_and_the_answer_both_teach_the_router(kind: type[Stranger]) -> None:
    """Also through the layers that run again while it decodes: the loss is read there."""
    policy = routed(kind).train()
    batch = batch_of(policy)
    run = policy.run_layers(policy.embed(batch), batch)
    torch.manual_seed(0)
    policy.loss(run, batch).mean().backward()
    assert policy.router.leave.weight.grad.abs().sum() > 0
    again = run.gated(1, torch.zeros(8, 3, 2), torch.ones(8, 3, 2))
    (slope,) = torch.autograd.grad(again.sum(), run.extras["soft_gates"])
    assert slope[:, 1].tolist() == [6.0] * 8 and slope[:, 0].tolist() == [0.0] * 8


@BOTH
@torch.no_grad()
def test_cut(kind: type[Stranger]) -> None:
    """A network of some layers is the one whose router always runs these and no others."""
    teacher = make(kind)
    batch = batch_of(teacher)
    always = Routing(always=(0, 2), initial_keep=0.01).build(teacher).eval()
    for policy in (teacher.keep_layers((0, 2)), always.keep_layers((0, 2))):
        assert torch.equal(decided(policy, batch), decided(always, batch))
        assert policy.layer_numbers == (0, 2)
    first = FirstK(2).build(teacher)
    assert torch.equal(decided(first, batch), decided(teacher.keep_layers((0, 1)), batch))
    dropped = LayerDrop(2).build(teacher, batch)
    strongest = sorted(influence(teacher, batch).topk(2).indices.tolist())
    assert list(dropped.layer_numbers) == strongest
    assert not torch.allclose(decided(first, batch), decided(teacher, batch))


@BOTH
def test_distilled(kind: type[Stranger], tmp_path) -> None:
    """A routed student learns from what its own teacher answers, layer by layer."""
    teacher = probed(make(kind)).eval()
    batches = make_batches(teacher.policy, FRAMES)
    # `Expert` has no condition; `Writer` chooses what it writes, which no gradient goes through.
    output = MatchOutput(condition=0.5 if kind is Writer else 0)
    objective = ActDistill(output=output, every=2)

    def answers(keys: Tensor) -> Trace:
        rows = FRAMES.starts[keys[:, 0].numpy()] + keys[:, 1].numpy()
        return watch(teacher, batches.batch(rows), objective.needs)

    learner = Learner(Routing(budget=0.5, initial_keep=0.5).build(teacher.policy))
    learner.probe = probed(make(kind)).probe
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    stage = Stage(objective, steps=12, learning_rate=1e-3, **SHORT)
    log = train(learner, stage, tmp_path, teacher=answers)
    assert {"imitation", "action", "semantic", "layer_action", "budget"} <= log[0].keys()
    moved = {n for n, tensor in learner.state_dict().items() if not torch.equal(tensor, before[n])}
    assert "policy.router.leave.weight" in moved
    assert {n.split(".")[3] for n in moved if n.startswith("policy.inner.layers.")} == set("0123")
    student = learner.policy
    assert isinstance(student, Routed)
    student.calibrate(batch_of(student, 12))
    unseen = batch_of(student, 12)
    with torch.no_grad():
        gates = student.run_layers(student.embed(unseen), unseen).gates
    assert float(gates.mean()) <= 0.5 and len(student.measured.calibration) == 8


@BOTH
def test_saved_and_loaded(kind: type[Stranger], tmp_path) -> None:
    seen = Observation(
        {"scene": np.full((24, 24, 3), 9, np.uint8), "wrist": np.full((16, 16, 3), 200, np.uint8)},
        np.arange(4, dtype=np.float32),
        "Touch the red cube",
        np.zeros(4, np.float32),
    )
    for number, policy in enumerate((make(kind).keep_layers((1, 3)), routed(kind))):
        save_policy(policy, tmp_path / str(number))
        again = load_policy(tmp_path / str(number))
        assert np.array_equal(again.infer(seen), policy.infer(seen))
        assert again.layer_numbers == policy.layer_numbers and again.robot == policy.robot


def test_a_type_from_elsewhere_is_a_backbone_or_refused() -> None:
    for kind, said in (
        ("nobody:Here", "there is no module 'nobody'"),
        ("strangers:Nobody", "expected a Backbone"),
        ("strangers:Letters", "expected a Backbone"),
        ("vlaa", "there is no armlet/policies/vlaa.py"),
    ):
        with pytest.raises(ValueError, match=said):
            rebuild({"type": kind}, None)


@torch.no_grad()
def test_what_is_written_with_a_cache_is_what_is_written_without() -> None:
    policy = routed(Writer)
    batch = batch_of(policy)
    run = policy.run_layers(policy.embed(batch), batch)
    actions = policy.decode(run, batch)
    bins = to_bins(actions, 16).flatten(1)
    assert torch.equal(policy.inner.written(run, bins).argmax(-1), bins)
    assert len(bins.unique(dim=0)) > 1


def test_a_policy_reads_in_its_own_way() -> None:
    """Its own prompt, case and padding, from episodes and from a robot alike."""
    policy = make(Writer)
    shouted = dataclasses.replace(FRAMES, texts=tuple(text.title() for text in FRAMES.texts))
    batch = make_batches(policy, shouted).batch(np.arange(len(FRAMES)))
    spelled = [8 + ord(letter) % 120 for letter in f"Do: {shouted.texts[FRAMES.asked[0]]}?"]
    assert batch.text[0][batch.text_mask[0]].tolist() == spelled
    longest = max(map(len, FRAMES.texts))
    assert batch.text.shape[1] == longest + len("Do: ?")
    assert not batch.text_mask.all() and (batch.text[~batch.text_mask] == 7).all()
    seen = [
        Observation(
            {"scene": np.zeros((24, 24, 3), np.uint8), "wrist": np.zeros((16, 16, 3), np.uint8)},
            np.zeros(4),
            text,
            np.zeros(4),
        )
        for text in ("Pull", "pull it")
    ]
    told = policy.prepare(seen)
    assert told.text[0, 4:8].tolist() == [8 + ord(letter) % 120 for letter in "Pull"]
    assert told.text_mask.sum(1).tolist() == [4 + 4 + 1, 4 + 7 + 1]
    assert torch.equal(Routing().build(policy).prepare(seen).text, told.text)


class Still(Policy):
    """Holds still: no network, no layers, no words."""

    execute = 1

    @property
    def robot(self) -> RobotSpec:
        return make(Expert).robot

    def infer(self, observation: Observation) -> np.ndarray:
        return np.zeros((1, 4), np.float32)


def test_whatever_acts_is_a_policy() -> None:
    policy = Still()
    decision = policy.decide(None)
    assert decision.actions.shape == (1, 4) and decision.gates == () and policy.reset() is None
    assert policy.deployed() is policy
    with pytest.raises(ValueError, match="a Still has no budget dial"):
        policy.at(0.5)
    assert set(latency({"still": policy}, [None], calls=2)["still"]) == {"p50", "p95", "p99"}


@dataclass(frozen=True)
class Nested(State):
    changing: ClassVar[tuple[str, ...]] = ("moves", "pairs")

    moves: Tensor
    pairs: tuple[tuple[Tensor, Tensor], ...]
    still: Tensor
    none: Tensor | None = None


def test_a_state_is_chosen_put_back_and_blended_tensor_by_tensor() -> None:
    def state(start: float) -> Nested:
        pairs = tuple((torch.full((3,), start + i), torch.full((3, 2), -start - i)) for i in (1, 2))
        return Nested(torch.full((3, 2, 2), start), pairs, torch.arange(3) + start)

    mine, theirs = state(0.0), state(10.0)
    rows = torch.tensor([2, 0])
    part = theirs.select(rows)
    assert part.still.tolist() == [12.0, 10.0] and part.none is None
    put = mine.put(rows, part)
    assert put.moves[:, 0, 0].tolist() == [10.0, 0.0, 10.0]
    assert put.pairs[1][0].tolist() == [12.0, 2.0, 12.0]
    assert put.still.tolist() == [0.0, 1.0, 2.0], "what no layer changes stays"
    blended = mine.blend(theirs, lambda before, after: before + 2 * after)
    assert blended.pairs[0][1][0].tolist() == [-23.0, -23.0] and blended.still is mine.still
