"""VITA-VLA's student against references: transformers' own language models, the expert whose
decoder it reuses, each stage's names."""

import dataclasses
import fnmatch

import numpy as np
import pytest
import torch
from tiny import TEXTS, identity, make_frames, make_policy
from transformers import AutoConfig, AutoModel

from armlet.benchmarks.tabletop import Tabletop
from armlet.data.text import train_tokenizer
from armlet.policies.action_query import (
    ALIGN,
    FINETUNE,
    SCRATCH,
    ActionQuery,
    ActionQueryNetwork,
    ReuseDecoder,
    StateToken,
    llama,
    published,
)
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.policies.contract import Body
from armlet.policies.routed import Routing
from armlet.policies.vla import VLA, VLANetwork
from armlet.recipe import Objective, Stage
from armlet.robot.spec import ActionSpec
from armlet.training import losses
from armlet.training.learner import Learner, watch
from armlet.training.trainer import Trainer, make_batches
from armlet.types import Batch

CAMERAS = {"scene": 24, "wrist": 16}
STRIDES = {"scene": 8, "wrist": 8}
SMALL = llama(width=32, depth=3, heads=2)
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
SIGLIP = {**CLIP, "model_type": "siglip_vision_model"}


def body() -> Body:
    return Body(Tabletop().action_spec, identity(4), identity(4), train_tokenizer(TEXTS))


def expert() -> VLA:
    torch.manual_seed(0)
    network = VLANetwork(
        width=16,
        depth=2,
        heads=2,
        chunk=3,
        execute=2,
        vision_channels=4,
        strides=STRIDES,
        head="arm_gripper",
    )
    return network.build(body(), CAMERAS).eval()


def make(**changes) -> ActionQuery:
    torch.manual_seed(0)
    network = ActionQueryNetwork(language=SMALL, expert_width=16, channels=4, strides=STRIDES)
    return dataclasses.replace(network, **changes).build(body(), CAMERAS).eval()


def frames(policy: ActionQuery | VLA, rows: int = 6) -> Batch:
    return make_batches(policy, make_frames()).batch(np.arange(rows) * 3)


def matched(policy: ActionQuery, patterns: tuple[str, ...]) -> dict[str, torch.nn.Parameter]:
    found = Learner(policy).named_parameters()
    return {
        name.removeprefix("policy."): p
        for name, p in found
        if any(fnmatch.fnmatch(name, each) for each in patterns)
    }


def changed(policy: ActionQuery, before: dict[str, torch.Tensor]) -> set[str]:
    return {
        name
        for name, tensor in policy.state_dict().items()
        if not torch.equal(tensor, before[name])
    }


def copied(policy: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


# --- the language model
# --------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
def test_the_backbone_is_transformers_own_and_causal(kind: str) -> None:
    policy = make(language={**SMALL, "model_type": kind, "head_dim": 16})
    fixed = {
        "vocab_size": policy.words.num_embeddings,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    config = AutoConfig.for_model(**{**fixed, **policy.network.language})
    reference = AutoModel.from_config(config).eval()
    parts = {"embed_tokens": policy.words, "layers": policy.layers, "norm": policy.norm}
    for name, part in parts.items():
        getattr(reference, name).load_state_dict(part.state_dict())
    batch = frames(policy)
    tokens = policy.embed(batch)
    assert not tokens.mask.all(), "some words are padding"
    found = policy.norm(policy.run_layers(tokens, batch).state.hidden)
    positions = tokens.mask.long().cumsum(1) - 1
    wanted = reference(
        inputs_embeds=tokens.hidden, attention_mask=tokens.mask.long(), position_ids=positions
    ).last_hidden_state
    torch.testing.assert_close(found[tokens.mask], wanted[tokens.mask], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_queries_come_last_and_nobody_looks_ahead() -> None:
    policy = make()
    batch = frames(policy)
    tokens = policy.embed(batch)
    last = policy.run_layers(tokens, batch).state
    hidden = last.hidden
    moved = dataclasses.replace(batch, state=batch.state + 1)
    after = policy.run_layers(policy.embed(moved), moved).state.hidden
    assert (
        torch.equal(after[:, :-4], hidden[:, :-4])
        and (after[:, -4:] != hidden[:, -4:]).any(-1).all()
    )
    torch.testing.assert_close(tokens.hidden[:, -3:], policy.query.expand(6, 3, -1))
    assert policy.condition(last).shape == (6, policy.condition_width) == (6, 3 * 16)
    assert (hidden[:, -1] - hidden[:, -2]).abs().max() > 1e-4, "one query, told apart by its place"
    condition = policy.mapper(policy.norm(hidden[:, -3:])).flatten(1)
    torch.testing.assert_close(policy.condition(last), condition)


@torch.no_grad()
@pytest.mark.parametrize("vision", [None, CLIP, SIGLIP], ids=["own", "clip", "siglip"])
def test_each_sample_is_answered_as_if_alone_and_padding_changes_nothing(
    vision: dict | None,
) -> None:
    policy = make(vision=vision)
    batch = frames(policy)
    tokens = policy.embed(batch)
    assert int(tokens.vision[0].sum()) == policy.vision_tokens == (32 if vision else 13)
    together = policy.condition(policy.run_layers(tokens, batch).state)
    for row in range(len(batch)):
        one = slice(row, row + 1)
        text = batch.text[one, : int(batch.text_mask[row].sum())]
        images = {name: image[one] for name, image in batch.images.items()}
        alone = Batch(images, text, text != 0, batch.state[one], batch.previous_action[one])
        tokens = policy.embed(alone)
        found = policy.condition(policy.run_layers(tokens, alone).state)
        torch.testing.assert_close(found[0], together[row], atol=1e-5, rtol=1e-4)


def test_the_state_is_one_token_of_arm_and_gripper() -> None:
    token, state = StateToken(4, (-1, 1), 8), torch.randn(5, 4)
    arm, gripper = token.arm(state[:, [0, 2]]), token.gripper(state[:, [1, 3]])
    torch.testing.assert_close(token(state), token.join(torch.cat([arm, gripper], 1)))
    without = StateToken(4, (), 8)
    torch.testing.assert_close(without(state), without.join(without.arm(state)))
    for wrong in ((4,), (0, 1, 2, 3)):
        with pytest.raises(ValueError, match="the state has 4 dimensions"):
            StateToken(4, wrong, 8)


@pytest.mark.parametrize("vision", [None, SIGLIP], ids=["own", "siglip"])
def test_it_can_be_routed_cut_and_saved(tmp_path, vision: dict | None) -> None:
    policy = make(vision=vision, language={**SMALL, "model_type": "qwen2"})
    batch = frames(policy)
    routed = Routing(always=(0, 1, 2)).build(policy).eval()
    with torch.no_grad():
        assert torch.equal(routed(batch), policy(batch))
        cut = policy.keep_layers((0, 2))
        assert cut.layer_numbers == (0, 2) and policy.layer_numbers == (0, 1, 2)
        tokens = policy.embed(batch)
        last = policy.run_layer(2, policy.run_layer(0, tokens))
        assert torch.equal(cut(batch), policy.head(policy.condition(last)))
        for number, saved in enumerate((policy, cut, routed)):
            save_policy(saved, tmp_path / str(number))
            again = load_policy(tmp_path / str(number))
            want = ["condition", "actions"]
            found, kept = (
                watch(Learner(again).eval(), batch, want),
                watch(Learner(saved).eval(), batch, want),
            )
            assert all(torch.equal(found[name], kept[name]) for name in want)


@torch.no_grad()
@pytest.mark.parametrize("vision", [CLIP, SIGLIP], ids=["clip", "siglip"])
def test_pretrained_parts_come_by_name(tmp_path, vision: dict) -> None:
    """Here the names are folders. What is loaded is used as it is, and the policy that was saved is
    the same to the bit."""
    torch.manual_seed(3)
    language = AutoModel.from_config(
        AutoConfig.for_model(**{**SMALL, "model_type": "qwen2", "vocab_size": 400})
    )
    tower = AutoModel.from_config(AutoConfig.for_model(**vision))
    language.save_pretrained(tmp_path / "language")
    train_tokenizer(TEXTS, vocabulary=300).save(str(tmp_path / "language" / "tokenizer.json"))
    tower.save_pretrained(tmp_path / "tower")
    policy = make(pretrained=str(tmp_path / "language"), pretrained_vision=str(tmp_path / "tower"))
    assert policy.body.tokenizer.get_vocab_size() == 300 and policy.words.num_embeddings == 400
    for own, other in (
        (policy.vision.tower, tower),
        (policy.layers, language.layers),
        (policy.words, language.embed_tokens),
    ):
        assert all(
            torch.equal(tensor, other.state_dict()[name])
            for name, tensor in own.state_dict().items()
        )
    save_policy(policy, tmp_path / "policy")
    batch = frames(policy)
    assert torch.equal(load_policy(tmp_path / "policy")(batch), policy(batch))


def test_models_that_do_not_fit_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"type 'gpt2' has no .*embed_tokens.*one with rotary positions"
    ):
        make(language={"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2})
    with pytest.raises(ValueError, match="belong to different models"):
        make(language={**SMALL, "vocab_size": 50})
    policy = make(vision={**CLIP, "model_type": "dinov2"})
    with pytest.raises(
        ValueError, match="'dinov2' sees pixels is not known here; known are clip_vision_model"
    ):
        policy(frames(policy))


def test_the_published_sizes() -> None:
    spec = ActionSpec(
        tuple("xyzabcg"), "delta", "euler", (-1.0,) * 7, (1.0,) * 7, (6,), -1.0, 1.0, 10.0, 0.05
    )
    with torch.device("meta"):
        policy = published().build(
            Body(spec, identity(8), identity(7), train_tokenizer(TEXTS)), {"scene": 224}
        )
    assert sum(p.numel() for p in matched(policy, ALIGN).values()) == 29_372_288, (
        "the paper says about 30 M"
    )
    assert sum(p.numel() for p in policy.parameters()) == 7_529_527_095
    assert policy.vision_tokens == 256


# --- the expert and its decoder
# ------------------------------------------------------------------------------


def test_an_expert_has_a_vector_for_each_step(tmp_path) -> None:
    policy = expert()
    assert policy.head.options == {
        "gripper": [3],
        "gripper_open": -1.0,
        "gripper_closed": 1.0,
        "gripper_weight": 0.01,
    }
    batch = frames(policy)
    trace = watch(Learner(policy).eval(), batch, ["condition", "actions", "imitation"])
    assert trace["condition"].shape == (6, policy.condition_width) == (6, 48) and trace[
        "imitation"
    ].shape == (6,)
    assert trace["actions"].shape == (6, 3, 4) and trace["actions"][..., 3].abs().eq(1).all()
    save_policy(policy, tmp_path)
    assert torch.equal(load_policy(tmp_path)(batch), policy(batch))
    assert Routing().build(policy).condition_width == 48


def test_the_decoder_starts_as_the_experts_to_the_bit() -> None:
    teacher = expert()
    before, batch = copied(teacher), frames(teacher)
    student = ReuseDecoder(ActionQueryNetwork(language=SMALL, channels=4, strides=STRIDES)).build(
        teacher, batch
    )
    own = student.head.state_dict()
    assert own.keys() == teacher.head.state_dict().keys()
    assert all(torch.equal(tensor, teacher.head.state_dict()[name]) for name, tensor in own.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not {p.data_ptr() for p in student.parameters()} & {
        p.data_ptr() for p in teacher.parameters()
    }
    assert (
        student.cameras == CAMERAS
        and student.execute == teacher.execute
        and student.body.action_spec == Tabletop().action_spec
    )
    condition = torch.randn(4, teacher.condition_width)
    assert torch.equal(student.head(condition), teacher.head(condition)), (
        "what says the same to it does the same"
    )
    with pytest.raises(ValueError, match=r'RegressionHead.*head="arm_gripper"'):
        ReuseDecoder().build(make_policy(), batch)
    with pytest.raises(ValueError, match="pass build\\(\\) a sample batch"):
        ReuseDecoder().build(teacher)


@dataclasses.dataclass(frozen=True)
class Align(Objective):
    """Stage 1, as a recipe would write it."""

    needs = frozenset({"condition"})
    wants = frozenset({"condition"})

    def __call__(self, student, teacher, batch):
        return {"align": losses.condition_mse(student["condition"], teacher["condition"]).mean()}


@dataclasses.dataclass(frozen=True)
class Act(Objective):
    """Stage 2: the decoder's own loss."""

    wants = frozenset({"imitation"})

    def __call__(self, student, teacher, batch):
        return {"imitation": student["imitation"].mean()}


def test_the_two_stages_train_what_they_say_and_nothing_else(tmp_path) -> None:
    teacher = expert()
    data = make_frames()
    batches = make_batches(teacher, data)
    answers = watch(Learner(teacher).eval(), batches.batch(np.arange(len(data))), ["condition"])[
        "condition"
    ]
    student = ReuseDecoder(ActionQueryNetwork(language=SMALL, vision=SIGLIP)).build(
        teacher, frames(teacher)
    )
    learner = Learner(student)

    def by_key(keys: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"condition": answers[torch.from_numpy(data.starts)[keys[:, 0]] + keys[:, 1]]}

    def gap() -> float:
        found = watch(learner.eval(), batches.batch(np.arange(len(data))), ["condition"])[
            "condition"
        ]
        return float(losses.condition_mse(found, answers).mean())

    before, far = copied(student), gap()
    short = {
        "steps": 20,
        "batch_size": 16,
        "optimiser": "adamw",
        "warmup": 1,
        "learning_rate": 3e-3,
    }
    align = Stage(Align(), train=ALIGN, **short)
    Trainer(
        learner, align, batches, folder=tmp_path / "1", seed=0, title="align", teacher=by_key
    ).run()
    assert changed(student, before) == set(matched(student, ALIGN))
    assert all(
        torch.equal(tensor, teacher.head.state_dict()[name])
        for name, tensor in student.head.state_dict().items()
    )
    assert gap() < 0.8 * far
    before = copied(student)
    act = Stage(Act(), freeze=FINETUNE, **{**short, "steps": 2})
    Trainer(learner, act, batches, folder=tmp_path / "2", seed=0, title="fine-tune").run()
    still = set(before) - changed(student, before)
    assert still == {name for name in before if name.startswith("vision.")}


def test_from_nothing_stage_one_may_train_all_but_the_decoder() -> None:
    policy = make()
    everything = {name for name, _ in policy.named_parameters()}
    assert set(matched(policy, (*ALIGN, *SCRATCH))) == {
        name for name in everything if not name.startswith("head.")
    }
    assert not set(matched(policy, ALIGN)) & set(matched(policy, SCRATCH))
