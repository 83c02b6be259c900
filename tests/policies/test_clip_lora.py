"""VLA-AD's student against references: transformers' own CLIP, the masked path without any
description, the towers without LoRA."""

import dataclasses
import fnmatch
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TEXTS, identity, make_frames
from torch import nn
from transformers import CLIPModel

from armlet import recipes
from armlet.data.text import train_tokenizer
from armlet.layers.heads import to_bins
from armlet.layers.pretrained import pixels
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.policies.clip_lora import TRAINED, ClipLora, ClipLoraNetwork, published, small
from armlet.policies.contract import Body
from armlet.policies.routed import Routing
from armlet.recipe import Objective, Recipe, Stage
from armlet.robot.reading.own import encode
from armlet.robot.spec import ActionSpec
from armlet.training import losses
from armlet.training.learner import Learner
from armlet.training.trainer import Trainer, make_batches
from armlet.types import Batch

SHIPPED = Path(__file__).parents[2] / "checkpoints/tabletop-teacher"
CAMERAS = {"scene": 24, "wrist": 16}
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
TINY = ClipLoraNetwork(
    image=24,
    patch=8,
    width=32,
    depth=3,
    heads=2,
    text_width=16,
    text_depth=2,
    text_heads=2,
    text_tokens=32,
    mlp=2,
    embed=16,
    chunk=3,
    execute=3,
    head_options={"hidden": 24},
    strides={"scene": 8, "wrist": 8},
    channels=4,
    use_state=True,
)
FUSIONS = ("late", "early")


def body() -> Body:
    return Body(SPEC, identity(4), identity(4), train_tokenizer(TEXTS))


def make(cameras: dict[str, int] | None = None, **changes) -> ClipLora:
    torch.manual_seed(0)
    return dataclasses.replace(TINY, **changes).build(body(), cameras or CAMERAS).eval()


def shaken(policy: ClipLora) -> ClipLora:
    """LoRA starts at zero; here it has learned something."""
    torch.manual_seed(1)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return policy


def ids(policy: ClipLora, *texts: str) -> torch.Tensor:
    rows = [
        torch.tensor(encode(policy.body.tokenizer, text, longest=64) if text else [0])
        for text in texts
    ]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def frames(policy: ClipLora, rows: int = 6, **changes) -> Batch:
    batch = make_batches(policy, make_frames()).batch(np.arange(rows) * 3)
    return dataclasses.replace(batch, **changes)


def take(batch: Batch, row: int) -> Batch:
    """One sample of a batch, its words without padding."""
    text = batch.text[row : row + 1]
    text = text[:, : int((text != 0).sum())]
    one = slice(row, row + 1)
    images = {name: image[one] for name, image in batch.images.items()}
    return Batch(images, text, text != 0, batch.state[one], batch.previous_action[one])


def trained(policy: ClipLora) -> dict[str, nn.Parameter]:
    return {
        n: p
        for n, p in Learner(policy).named_parameters()
        if any(fnmatch.fnmatch(n, pattern) for pattern in TRAINED)
    }


# --- the towers
# ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_towers_are_transformers_clip(tmp_path) -> None:
    """Weights by name, here that of a folder; each camera's embedding and each text's are CLIP's
    own."""
    network = dataclasses.replace(TINY, fusion="late", lora_rank=2)
    torch.manual_seed(5)
    tokenizer = body().tokenizer
    text = network.text_tower(tokenizer.get_vocab_size()).to_dict() | {
        "eos_token_id": 7,
        "max_position_embeddings": 32,
    }
    clip = CLIPModel(
        CLIPModel.config_class(
            text_config=text, vision_config=network.tower().to_dict(), projection_dim=16
        )
    ).eval()
    clip.save_pretrained(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    policy = (
        dataclasses.replace(network, pretrained=str(tmp_path)).build(body(), {"scene": 24}).eval()
    )
    batch = frames(policy)
    tokens = policy.embed(batch)
    seen = policy.condition(policy.run_layers(tokens, batch).state)[:, :16]
    wanted = clip.get_image_features(
        pixels(batch.images["scene"], 24, "clip_vision_model")
    ).pooler_output
    torch.testing.assert_close(seen, wanted, atol=1e-5, rtol=1e-5)
    words = torch.tensor([[5, 9, 30, 7, 0, 0], [80, 81, 82, 83, 84, 7]])  # 7 ends a text there
    _, said = policy.read(words, words != 0)
    torch.testing.assert_close(
        said, clip.get_text_features(words).pooler_output, atol=1e-5, rtol=1e-5
    )


def test_weights_that_do_not_fit_or_cannot_be_had_are_named(tmp_path, monkeypatch) -> None:
    def unreachable(name: str) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(CLIPModel, "from_pretrained", unreachable)
    body().tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(
        OSError,
        match=r"the weights of .* are not in the cache .*no route to host.*save the model to a folder",
    ):
        dataclasses.replace(TINY, pretrained=str(tmp_path)).build(body(), CAMERAS)
    monkeypatch.undo()
    clip = CLIPModel.config_class(
        vision_config=TINY.tower().to_dict(), text_config=TINY.text_tower(500).to_dict()
    )
    CLIPModel(clip).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has shape \(.*\), and the network\s+wants"):
        dataclasses.replace(TINY, pretrained=str(tmp_path)).build(body(), CAMERAS)
    with pytest.raises(ValueError, match="eyes of its own"):
        dataclasses.replace(TINY, pretrained=str(tmp_path), fusion="early").build(body(), CAMERAS)
    with pytest.raises(ValueError, match="raise it, or leave it None"):
        make(vocabulary=100)


def test_the_published_sizes() -> None:
    spec = ActionSpec(
        tuple("xyzabcg"), "delta", "euler", (-1.0,) * 7, (1.0,) * 7, (6,), -1.0, 1.0, 10.0, 0.05
    )
    with torch.device("meta"):
        policy = published().build(
            Body(spec, identity(8), identity(7), train_tokenizer(TEXTS)), {"scene": 224}
        )
    learns = trained(policy)
    assert {id(p) for p in learns.values()} == {
        id(p) for p in policy.parameters() if p.requires_grad
    }
    assert sum(p.numel() for p in learns.values()) == 8_562_688
    assert sum(p.numel() for name, p in learns.items() if "lora_" in name) == 491_520
    assert sum(p.numel() for p in policy.parameters()) == 158_270_976
    assert (
        158_270_976 - 8_562_688 == 149_708_288
    )  # LongCLIP-B/16 but for its temperature, which no embedding needs
    assert (
        sum(p.numel() for p in small().build(body(), {"scene": 72, "wrist": 48}).parameters())
        < 1_050_000
    )


@pytest.mark.parametrize(
    "recipe",
    [recipes.make("vla_ad_large"), recipes.make("vla_ad_tiny")],
    ids=lambda recipe: recipe.name,
)
def test_a_student_44_times_smaller_than_its_teacher(recipe: Recipe) -> None:
    words = Body(SPEC, identity(5), identity(4), load_policy(SHIPPED).body.tokenizer)
    large, least = (
        network.build(words, recipe.benchmark.cameras)
        for network in (recipe.network, recipe.student.network)
    )
    assert 44 * sum(p.numel() for p in least.parameters()) <= sum(
        p.numel() for p in large.parameters()
    )


# --- one batch, many ways
# ------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSIONS)
def test_each_sample_is_answered_as_if_alone_and_padding_changes_nothing(fusion: str) -> None:
    policy = make(fusion=fusion)
    batch = frames(policy)
    tokens = policy.embed(batch)
    together = policy.condition(policy.run_layers(tokens, batch).state)
    assert (
        together.shape == (6, policy.condition_width)
        and tokens.vision.sum(1).eq(policy.vision_tokens).all()
    )
    for row in range(len(batch)):
        one = take(batch, row)
        tokens = policy.embed(one)
        alone = policy.condition(policy.run_layers(tokens, one).state)
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSIONS)
def test_cameras_and_words_meet_early_or_not_at_all(fusion: str) -> None:
    policy = make(fusion=fusion)
    batch = frames(policy)
    before = policy.run_layers(policy.embed(batch), batch).state.hidden[:, : policy.grids["scene"]]
    other_wrist = dataclasses.replace(
        batch, images={**batch.images, "wrist": 1 - batch.images["wrist"]}
    )
    other_words = dataclasses.replace(
        batch, text=batch.text.roll(1, 0), text_mask=batch.text_mask.roll(1, 0)
    )
    for other in (other_wrist, other_words):
        after = policy.run_layers(policy.embed(other), other).state.hidden[
            :, : policy.grids["scene"]
        ]
        assert torch.equal(before, after) == (fusion == "late")


@pytest.mark.parametrize("fusion", FUSIONS)
def test_it_can_be_routed_cut_and_saved(tmp_path, fusion: str) -> None:
    policy = shaken(make(fusion=fusion, lora_rank=2))
    batch = frames(policy)
    routed = Routing(always=(0, 1, 2)).build(policy).eval()
    assert routed.condition_width == policy.condition_width
    with torch.no_grad():
        assert torch.equal(routed(batch), policy(batch))
        assert torch.equal(
            Learner(routed)(batch, ["logits"])["logits"],
            Learner(policy)(batch, ["logits"])["logits"],
        )
        cut = policy.keep_layers((0, 2))
        assert cut.layer_numbers == (0, 2) and policy.layer_numbers == (0, 1, 2)
        last = policy.run_layer(2, policy.run_layer(0, policy.embed(batch)))
        assert torch.equal(cut(batch), policy.head(policy.condition(last)))
    for number, saved in enumerate((policy, cut, routed)):
        save_policy(saved, tmp_path / str(number))
        again = load_policy(tmp_path / str(number))
        assert all(
            torch.equal(tensor, again.state_dict()[name])
            for name, tensor in saved.state_dict().items()
        )
        with torch.no_grad():
            assert torch.equal(again(batch), saved(batch))


# --- LoRA
# ----------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("fusion", FUSIONS)
def test_merged_is_unmerged(tmp_path, fusion: str) -> None:
    policy = make(fusion=fusion, lora_rank=4, aux_heads=True)
    batch = frames(policy)
    want = ["condition", "logits"]
    fresh = Learner(policy)(batch, want)
    torch.testing.assert_close(Learner(policy.deployed())(batch, want), fresh, atol=1e-6, rtol=0)
    shaken(policy)
    learned = Learner(policy)(batch, want)
    assert (learned["condition"] - fresh["condition"]).abs().max() > 0.01
    merged = policy.deployed()
    torch.testing.assert_close(Learner(merged)(batch, want), learned, atol=1e-5, rtol=1e-5)
    assert not any(
        "lora" in name or name.startswith(("phase", "direction")) for name in merged.state_dict()
    )
    save_policy(merged, tmp_path)
    assert torch.equal(load_policy(tmp_path)(batch), merged(batch))


@dataclasses.dataclass(frozen=True)
class Privileged(Objective):
    """VLA-AD's loss and its auxiliary heads, as a recipe would write them."""

    wants = frozenset({"logits", "logits.told", "phase", "direction", "direction.text"})

    def __call__(self, student, teacher, batch):
        actions, valid = batch.targets()
        bins, weights = to_bins(actions), torch.tensor([1.0, 1.0, 1.0, 2.0])
        paths = {
            name: losses.action_cross_entropy(student[name], bins, valid, weights).mean()
            for name in ("logits", "logits.told")
        }
        label = batch.labels["direction"]
        return {
            **paths,
            "phase": losses.label_cross_entropy(student["phase"], batch.labels["phase"]).mean(),
            "direction": losses.text_cosine(
                student["direction"], student["direction.text"], label
            ).mean(),
        }


class Described:
    """Batches with what an annotator said of them."""

    frames = make_frames()  # what a stage says it was trained on

    def __init__(self, policy: ClipLora) -> None:
        self.inner, self.policy = make_batches(policy, make_frames()), policy

    def __len__(self) -> int:
        return len(self.inner)

    def batch(self, rows: np.ndarray, **options) -> Batch:
        return described(self.policy, self.inner.batch(rows, **options))

    def expect(self, rows: np.ndarray) -> None:
        self.inner.expect(rows)


def described(policy: ClipLora, batch: Batch) -> Batch:
    texts = [
        ("", "the gripper closes on the cube", "it pulls the drawer")[row % 3]
        for row in range(len(batch))
    ]
    label = torch.arange(len(batch))
    words = ids(policy, *texts)
    return dataclasses.replace(
        batch,
        description=words,
        description_mask=words != 0,
        labels={"phase": label % 9, "direction": label % 3 - 1},
    )


def test_a_stage_trains_lora_and_what_stands_on_the_towers_and_nothing_else(tmp_path) -> None:
    policy = make(fusion="late", lora_rank=2, aux_heads=True, directions=("pull", "push"))
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    stage = Stage(
        Privileged(), steps=3, batch_size=8, optimiser="adamw", warmup=1, log_every=1, train=TRAINED
    )
    Trainer(Learner(policy), stage, Described(policy), folder=tmp_path, seed=0, title="test").run()
    changed = {
        name
        for name, tensor in policy.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == {name.removeprefix("policy.") for name in trained(policy)}
    assert {"masked", "phase.weight", "head.net.0.weight"} < changed
    assert any(name.startswith("text.") for name in changed) and any(
        name.startswith("layers.") for name in changed
    )


# --- what only training knows
# --------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_is_deployed_does_not_depend_on_descriptions_to_the_bit(fusion: str) -> None:
    policy = make(fusion=fusion, lora_rank=2, aux_heads=True)
    plain = frames(policy)
    told = described(policy, plain)
    want = ["actions", "condition", "logits", "phase"]
    answers = [Learner(policy)(batch, want) for batch in (plain, told)]
    assert all(torch.equal(answers[0][name], answers[1][name]) for name in want)
    assert torch.equal(policy(plain), policy(told))
    gradients = []
    for batch in (plain, told):
        policy.zero_grad()
        Learner(policy)(batch, ["logits", "logits.told"])["logits"].square().mean().backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in policy.parameters()])
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@torch.no_grad()
def test_a_description_is_heard_where_there_is_one() -> None:
    policy = make(fusion="early")
    batch = described(policy, frames(policy))
    trace = Learner(policy)(batch, ["logits", "logits.told"])
    assert trace["logits"].shape == (6, 3, 4, 256)
    heard = (trace["logits"] != trace["logits.told"]).flatten(1).any(1)
    assert heard.tolist() == [False, True, True] * 2, "a description of pads only is none"
    silent = dataclasses.replace(batch, description=None)
    trace = Learner(policy)(silent, ["logits", "logits.told"])
    assert torch.equal(trace["logits"], trace["logits.told"])


@torch.no_grad()
def test_a_text_is_read_once_and_depends_on_nothing_but_itself() -> None:
    policy = make()
    texts = ids(policy, TEXTS[0], TEXTS[1], TEXTS[0])
    seen = []
    policy.text.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    _, embedding = policy.read(texts, texts != 0)
    assert seen == [2] and torch.equal(embedding[0], embedding[2])
    assert not torch.equal(embedding[0], embedding[1])
    states, _ = policy.read(texts, texts != 0)
    for row in range(3):
        last = int((texts[row] != 0).sum()) - 1
        torch.testing.assert_close(embedding[row], policy.say(states[row, last]))
    text = ids(policy, TEXTS[0])
    _, alone = policy.read(text, text != 0)
    torch.testing.assert_close(alone[0], embedding[0], atol=1e-6, rtol=1e-5)
    text = torch.ones(6, 40, dtype=torch.long)
    batch = frames(policy, description=text, description_mask=text != 0)
    with pytest.raises(ValueError, match="texts of 40 tokens, and the text tower takes 32"):
        policy.described(batch)


def test_auxiliary_heads_are_asked_while_training_only() -> None:
    policy = make(fusion="early", aux_heads=True, directions=("pull the drawer", "push the cube"))
    batch = described(policy, frames(policy))
    want = ["phase", "direction", "direction.text"]
    trace = Learner(policy)(batch, want)
    assert [tuple(trace[name].shape) for name in want] == [(6, 9), (6, 16), (6, 16)]
    words = ids(policy, *policy.network.directions)
    _, texts = policy.read(words, words != 0)
    label = batch.labels["direction"]
    torch.testing.assert_close(trace["direction.text"][label >= 0], texts[label[label >= 0]])
    assert (
        not trace["direction.text"].requires_grad and not trace["direction.text"][label < 0].any()
    )
    for head in (policy.phase, policy.direction):
        head.register_forward_hook(lambda *_: pytest.fail("a head of training ran"))
    policy(batch)
    with pytest.raises(KeyError, match="has no signal"):
        Learner(make(fusion="early"))(batch, ["phase"])
    with pytest.raises(KeyError, match="needs `directions` in the network"):
        Learner(make(fusion="early", aux_heads=True))(batch, ["direction.text"])


# --- what early fusion is for
# --------------------------------------------------------------------------------


def squares(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures of three squares, red, blue and green; which is meant; where that one is, in −1 …
    1."""
    colours = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.2, 0.9], [0.1, 0.8, 0.2]])
    images, meant, place = (
        torch.full((count, 3, 36, 36), 0.5),
        torch.randint(3, (count,)),
        torch.zeros(count, 2),
    )
    for index in range(count):
        for colour, cell in enumerate(torch.randperm(9)[:3].tolist()):
            row, column = divmod(cell, 3)
            images[index, :, row * 12 + 3 : row * 12 + 9, column * 12 + 3 : column * 12 + 9] = (
                colours[colour][:, None, None]
            )
            if colour == meant[index]:
                place[index] = torch.tensor([row, column]) - 1.0
    return images, meant, place


@pytest.mark.slow
@pytest.mark.parametrize("fusion", FUSIONS)
def test_only_early_fusion_learns_at_once_which_thing_is_meant(fusion: str) -> None:
    """Late fusion learns where the three squares are and not which is named: it stays at the
    entropy of three guesses."""
    spec = dataclasses.replace(
        SPEC, names=("dx", "dy"), low=(-1.0,) * 2, high=(1.0,) * 2, grippers=()
    )
    names = [f"touch the {colour} cube" for colour in ("red", "blue", "green")]
    network = dataclasses.replace(
        TINY,
        fusion=fusion,
        image=36,
        patch=12,
        strides={"scene": 12},
        depth=2,
        text_width=32,
        text_depth=1,
        embed=32,
        channels=8,
    )
    network = dataclasses.replace(
        network, chunk=2, execute=2, head_options={"hidden": 48, "bins": 64}
    )
    torch.manual_seed(0)
    policy = network.build(
        Body(spec, identity(2), identity(2), train_tokenizer(names)), {"scene": 36}
    )
    images, meant, place = squares(1000)
    text, target = ids(policy, *names)[meant], 0.7 * place[:, None].expand(-1, 2, -1)
    optimiser = torch.optim.AdamW(policy.parameters(), lr=5e-3)
    found = []
    for _ in range(350):
        rows = torch.randint(len(images), (64,))
        nothing = torch.zeros(64, 2)
        batch = Batch({"scene": images[rows]}, text[rows], text[rows] != 0, nothing, nothing)
        tokens = policy.embed(batch)
        condition = policy.condition(policy.run_layers(tokens, batch).state)
        loss = policy.head.loss(condition, target[rows], torch.ones(64, 2)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(loss.detach())
    last = torch.stack(found[-20:]).mean()
    assert last < 0.7 * math.log(3) if fusion == "early" else last > 0.9 * math.log(3)


@pytest.mark.slow
def test_the_published_size_learns_a_step() -> None:
    """Memory of some gigabytes: two frames forward and backward at full size, and what stood still
    has no gradient."""
    spec = ActionSpec(
        tuple("xyzabcg"), "delta", "euler", (-1.0,) * 7, (1.0,) * 7, (6,), -1.0, 1.0, 10.0, 0.05
    )
    policy = published().build(
        Body(spec, identity(8), identity(7), train_tokenizer(TEXTS)), {"scene": 224}
    )
    text = ids(policy, *TEXTS[:2])
    batch = Batch(
        {"scene": torch.rand(2, 3, 224, 224)},
        text,
        text != 0,
        torch.zeros(2, 8),
        torch.zeros(2, 7),
        description=text,
        description_mask=text != 0,
    )
    optimiser = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-3)
    bins, found = torch.randint(0, 256, (2, 5, 7)), []
    for _ in range(3):
        trace = Learner(policy)(batch, ["logits", "logits.told"])
        loss = sum(losses.action_cross_entropy(trace[name], bins).mean() for name in trace)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(float(loss.detach()))
    assert found[-1] < found[0]
    frozen = {name for name, p in policy.named_parameters() if p.grad is None}
    assert frozen == {
        name.removeprefix("policy.") for name, _ in Learner(policy).named_parameters()
    } - {name.removeprefix("policy.") for name in trained(policy)}
