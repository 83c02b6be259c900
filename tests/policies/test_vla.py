"""Our VLA and its router against references: transformers' own model, the unrouted network, the
batch without padding."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.llama.modeling_llama import LlamaModel

from armlet.data.text import train_tokenizer
from armlet.layers.action_dit import DiffusionHead
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.policies.contract import Backbone, Body, Loop
from armlet.policies.routed import Routed, Routing
from armlet.policies.students import FirstK, Kept
from armlet.policies.vla import VLA, VLANetwork
from armlet.robot.normalise import Normaliser
from armlet.robot.observation import Observation
from armlet.robot.spec import ActionSpec
from armlet.training.learner import Learner, watch

SPEC = ActionSpec(
    ("dx", "dy", "dz", "gripper"),
    "delta",
    "none",
    (-1.0,) * 4,
    (1.0,) * 4,
    (3,),
    -1.0,
    1.0,
    control_hz=10,
    translation_scale=0.05,
)
TEXTS = ("touch the red cube", "put the blue cylinder into the white box", "open the green drawer")


def identity(dims: int) -> Normaliser:
    return Normaliser(np.zeros(dims, np.float32), np.ones(dims, np.float32))


def make(head: str = "regression", **changes) -> VLA:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS)
    network = VLANetwork(
        strides={"scene": 12, "wrist": 16},
        width=64,
        depth=6,
        heads=2,
        chunk=5,
        execute=3,
        head=head,
    )
    network = dataclasses.replace(network, **changes)
    body = Body(SPEC, identity(4), identity(4), tokenizer)
    return network.build(body, {"scene": 48, "wrist": 32}).eval()


def observe(text: str, seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    images = {
        name: rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        for name, size in (("scene", 48), ("wrist", 32))
    }
    return Observation(images, rng.normal(size=4).astype(np.float32), text, np.zeros(4, np.float32))


def shaken(policy: Backbone) -> Routed:
    """A routed policy whose router really decides: about half of the layers, by what it sees."""
    routed = Routing().build(policy)
    torch.manual_seed(1)
    torch.nn.init.normal_(routed.router.leave.weight, std=2.0)
    torch.nn.init.zeros_(routed.router.leave.bias)
    return routed.eval()


@torch.no_grad()
def test_the_backbone_is_transformers_llama() -> None:
    policy = make()
    reference = LlamaModel(policy.network.llama(policy.words.num_embeddings))
    for own, other in zip(policy.layers, reference.layers, strict=True):
        other.load_state_dict(own.state_dict())
    reference.norm.load_state_dict(policy.norm.state_dict())
    batch = policy.prepare([observe(TEXTS[0])])
    tokens = policy.embed(batch)
    length = tokens.hidden.shape[1]
    everything = torch.zeros(1, 1, length, length)
    wanted = reference(inputs_embeds=tokens.hidden, attention_mask=everything).last_hidden_state
    hidden = policy.norm(policy.run_layers(tokens, batch).state.hidden)
    torch.testing.assert_close(hidden, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    policy = shaken(make())
    long, short = observe(TEXTS[1], 1), observe(TEXTS[0], 2)
    alone, together = policy.prepare([short]), policy.prepare([long, short])
    tokens = policy.embed(together)
    logits = policy.route(tokens, together)[1]
    torch.testing.assert_close(
        policy.route(policy.embed(alone), alone)[0], logits, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(policy(alone)[0], policy(together)[1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_is_asked_depends_on_the_order_of_the_words_and_not_on_padding() -> None:
    policy = make()
    ids = torch.tensor([[5, 6, 7, 0, 0], [7, 6, 5, 0, 0]])
    asked = policy.ask(policy.words(ids), ids != 0)
    assert (asked[0] - asked[1]).norm() > 0.1 * asked[0].norm(), "'a on b' is not 'b on a'"
    assert torch.allclose(
        asked[:1], policy.ask(policy.words(ids[:1, :3]), ids[:1, :3] != 0), atol=1e-6
    )


def test_gates_of_one_are_the_unrouted_network_to_the_bit() -> None:
    policy = make()
    routed = Routing(always=tuple(range(6))).build(policy).eval()
    batch = policy.prepare([observe(text) for text in TEXTS])
    with torch.no_grad():
        assert torch.equal(policy(batch), routed(batch))
    with torch.enable_grad():
        assert torch.equal(policy(batch), routed(batch))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_is_deployment_to_the_bit(precision: str) -> None:
    routed = shaken(make())
    routes = set()
    for seed in range(12):
        batch = routed.prepare([observe(TEXTS[seed % 3], seed)])
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            with torch.enable_grad():
                masked = routed(batch)
            with torch.no_grad():
                skipping = routed(batch)
        assert torch.equal(masked, skipping)
        routes.add(routed.decide(observe(TEXTS[seed % 3], seed)).gates)
    assert len(routes) > 1, "the test should meet several routes"


@torch.no_grad()
def test_a_batch_in_which_some_skip_equals_each_alone() -> None:
    routed = shaken(make())
    observations = [observe(TEXTS[seed % 3], seed) for seed in range(7)]
    together = routed(routed.prepare(observations))
    alone = torch.cat([routed(routed.prepare([one])) for one in observations])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_skipped_layers_do_not_run() -> None:
    policy = make()
    none = Routing(initial_keep=0.01).build(policy).eval()
    batch = policy.prepare([observe(TEXTS[0])])
    with torch.inference_mode():
        tokens = none.embed(batch)
        with FlopCounterMode(display=False) as counter:
            none.run_layers(tokens, batch)
        routing = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            policy.run_layers(tokens, batch)
    assert none.decide(observe(TEXTS[0])).gates == (0,) * 6
    assert routing < 0.05 * counter.get_total_flops()


def test_the_gradient_reaches_the_router() -> None:
    routed = shaken(make())
    routed(routed.prepare([observe(text) for text in TEXTS])).square().sum().backward()
    assert routed.router.leave.weight.grad.abs().sum() > 0
    assert all(torch.isfinite(p.grad).all() for p in routed.parameters() if p.grad is not None)


def test_a_frozen_router_trains_only_the_layers_it_chose() -> None:
    """Skipping while training gives the gradients that computing everything and masking gives."""
    routed = shaken(make())
    batch = routed.prepare([observe(TEXTS[seed % 3], seed) for seed in range(5)])

    def gradients() -> dict[str, torch.Tensor | None]:
        routed.zero_grad(set_to_none=True)
        routed(batch).square().sum().backward()
        return {
            name: p.grad for name, p in routed.named_parameters() if not name.startswith("router.")
        }

    masked = gradients()
    routed.router.requires_grad_(False)
    skipping = gradients()
    with torch.no_grad():
        ran = routed.run_layers(routed.embed(batch), batch).gates.sum(0)
    assert 0 in ran and len(set(ran.tolist())) > 2, (
        "the test should meet layers that none, some and all samples run"
    )
    for name, gradient in skipping.items():
        if gradient is None:
            assert masked[name] is None or not masked[name].any()
        else:
            torch.testing.assert_close(gradient, masked[name], atol=1e-5, rtol=1e-4)
    idle = [
        p
        for index, layer in enumerate(routed.layers)
        if ran[index] == 0
        for p in layer.parameters()
    ]
    assert idle and all(p.grad is None for p in idle)


def test_exploration_draws_routes_and_less_of_it_draws_fewer() -> None:
    routed = shaken(make())
    batch = routed.prepare([observe(TEXTS[0])] * 64)
    tokens = routed.embed(batch)

    def differing(exploration: float) -> float:
        torch.manual_seed(0)
        gates = routed.run_layers(tokens, batch, exploration=exploration).gates
        return float((gates != routed.run_layers(tokens, batch).gates).float().mean())

    assert differing(1.0) > differing(0.3) > differing(0.0) == 0


@pytest.mark.parametrize(
    "head", ["regression", "bins", "flow", pytest.param("diffusion", marks=pytest.mark.slow)]
)
def test_every_head_learns_one_batch(head: str) -> None:
    options = {"flow": {"steps": 8}, "diffusion": {"hidden": 64}}
    depth = 6 if head == "flow" else 2  # where the moments are told apart late, a flow needs longer
    policy = make(head, depth=depth, head_options=options.get(head, {})).train()
    batch = policy.prepare([observe(text, seed) for seed, text in enumerate(TEXTS)])
    target = torch.rand(3, 5, 4) * 1.6 - 0.8
    batch = dataclasses.replace(
        batch, actions=target, actions_valid=torch.ones(3, 5, dtype=torch.bool)
    )
    optimiser = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range({"flow": 350, "diffusion": 400}.get(head, 150)):
        loss = Learner(policy)(batch, ["imitation"])["imitation"].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        error = (policy(batch) - target).abs().mean()
    assert error < 0.2, "an untrained head is 0.4 off"


def test_a_diffusion_head_is_cogacts_and_is_told_what_the_query_found() -> None:
    """The head whose layers and sampling tests/pretrained/test_action_dit.py holds to the original's
    numbers; here, that our network has it as it has any other."""
    policy = make("diffusion", head_options={"hidden": 32, "depth": 1, "guidance": 1.5})
    assert type(policy.head) is DiffusionHead
    assert policy.loop == Loop("denoising step", 10)
    asked = []

    def asking(net, inputs) -> None:
        asked.append((inputs[1].unique().tolist(), len(inputs[0])))

    policy.head.net.register_forward_pre_hook(asking)
    batch = policy.prepare([observe(text, seed) for seed, text in enumerate(TEXTS)])
    with torch.no_grad():
        run = policy.run_layers(policy.embed(batch), batch)
        answered = policy.decode(run, batch)
        (condition,) = policy.signals(["condition"], batch, run).values()
        assert torch.equal(policy.head(condition), answered), "and nothing else"
        assert not torch.allclose(policy.head(condition.flip(0)), answered)
    steps = [step for (step,), _ in asked[:10]]
    assert steps == list(range(90, -1, -10)), "numbers of training steps, the noisiest first"
    assert {rows for _, rows in asked[:10]} == {2 * len(TEXTS)}, "told and untold side by side"
    told = policy.head.net.z_embedder.uncondition
    policy.head.train().loss(condition, answered, torch.ones(3, 5)).sum().backward()
    assert told.grad is not None and float(told.grad.abs().max()) > 0, "some are told nothing"


def test_first_k_and_kept_layers_are_the_teachers_own() -> None:
    teacher = make()
    student = FirstK(3).build(teacher)
    assert len(student.layers) == 3
    for kept, cut in (((0, 1, 2), student), ((0, 2, 5), Kept((0, 2, 5)).build(teacher))):
        for number, layer in zip(kept, cut.layers, strict=True):
            wanted = teacher.layers[number].state_dict()
            assert all(
                torch.equal(tensor, wanted[name]) for name, tensor in layer.state_dict().items()
            )
        assert cut.layer_numbers == kept
    with pytest.raises(ValueError, match="expected some of 0 to 5, in order"):
        Kept((0, 6)).build(teacher)


@pytest.mark.parametrize("kind", ["vla", "routed", "first_k"])
def test_a_saved_policy_answers_the_same(tmp_path, kind: str) -> None:
    policy = {
        "vla": make,
        "routed": lambda: shaken(make()),
        "first_k": lambda: FirstK(2).build(make()),
    }[kind]().eval()
    save_policy(policy, tmp_path)
    again = load_policy(tmp_path)
    assert np.array_equal(policy.infer(observe(TEXTS[1])), again.infer(observe(TEXTS[1])))


def test_a_watched_policy_repeats_itself() -> None:
    policy = make()
    batch = policy.prepare([observe(text) for text in TEXTS])
    learner = Learner(policy)
    with pytest.raises(RuntimeError, match="eval mode"):
        watch(learner.train(), batch, ["condition"])
    learner.eval()
    assert torch.equal(*(watch(learner, batch, ["condition"])["condition"] for _ in range(2)))
    with pytest.raises(KeyError, match="probe heads"):
        watch(learner, batch, ["semantics"])


def test_bad_input_is_named() -> None:
    policy = make()
    with pytest.raises(ValueError, match="takes 32 at most"):
        policy.infer(observe("push " * 60))
    with pytest.raises(ValueError, match="empty"):
        policy.infer(observe(""))
    blind = observe(TEXTS[0])
    del blind.images["wrist"]
    with pytest.raises(ValueError, match="lacks camera"):
        policy.infer(blind)
    wrong = observe(TEXTS[0])
    wrong.images["scene"] = wrong.images["scene"][:40]
    with pytest.raises(ValueError, match=r"expected \(48, 48, 3\)"):
        policy.infer(wrong)


def test_a_damaged_checkpoint_is_named(tmp_path) -> None:
    save_policy(make(), tmp_path)
    save_policy(make(depth=5), tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing layers\.5"):
        load_policy(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        load_policy(tmp_path)
