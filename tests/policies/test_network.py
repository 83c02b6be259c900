"""What enters our VLA and what leaves it, part by part: pictures, words and state where they
belong, actions in the robot's numbers."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny import TEXTS, make_frames, make_policy

from armlet.layers.vision import ConvEncoder, ordered_mean
from armlet.policies.vla import VLA
from armlet.robot.normalise import Normaliser
from armlet.robot.observation import Observation
from armlet.training.trainer import make_batches

STATE = Normaliser(np.array([1, 2, 3, 4], np.float32), np.array([2, 4, 5, 0.5], np.float32))
ACTIONS = Normaliser(
    np.array([0.1, -0.2, 0.3, 0], np.float32), np.array([0.5, 0.25, 2, 1], np.float32)
)


def observed(seed: int, text: str) -> Observation:
    rng = np.random.default_rng(seed)
    images = {
        name: rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        for name, side in (("scene", 24), ("wrist", 16))
    }
    return Observation(
        images,
        rng.normal(size=4).astype(np.float32),
        text,
        rng.uniform(-1, 1, 4).astype(np.float32),
    )


def robot() -> VLA:
    policy = make_policy()
    policy.body = dataclasses.replace(policy.body, state=STATE, actions=ACTIONS)
    return policy


def test_an_observation_becomes_the_batch_written_by_hand() -> None:
    policy, seen = robot(), [observed(0, TEXTS[1].upper()), observed(1, TEXTS[0])]
    batch = policy.prepare(seen)
    for row, each in enumerate(seen):
        for name, image in each.images.items():
            np.testing.assert_allclose(
                batch.images[name][row].numpy(), image.transpose(2, 0, 1) / 255, atol=1e-6
            )
        np.testing.assert_allclose(
            batch.state[row], (each.state - STATE.offset) / STATE.scale, rtol=1e-5
        )
        np.testing.assert_allclose(
            batch.previous_action[row],
            (each.previous_action - ACTIONS.offset) / ACTIONS.scale,
            rtol=1e-5,
        )
        ids = policy.body.tokenizer.encode(each.instruction.lower()).ids
        assert (
            batch.text[row, : len(ids)].tolist() == ids and batch.text[row, len(ids) :].sum() == 0
        )
        assert batch.text_mask[row].tolist() == [True] * len(ids) + [False] * (
            batch.text.shape[1] - len(ids)
        )
    assert batch.text_mask[1].sum() < batch.text_mask[0].sum()


@torch.no_grad()
def test_what_is_decided_is_in_the_robots_numbers_and_within_its_range() -> None:
    policy, seen = robot(), observed(2, TEXTS[2])
    policy.head.net[-1].bias.data.copy_(torch.linspace(-3, 3, policy.head.net[-1].bias.numel()))
    normalised = policy(policy.prepare([seen]))[0].numpy()
    spec = policy.body.action_spec
    expected = normalised * ACTIONS.scale + ACTIONS.offset
    assert (np.abs(expected) > 1).any() and (np.abs(expected) < 1).any()
    decision = policy.decide(seen)
    np.testing.assert_allclose(
        decision.actions, np.clip(expected, spec.low, spec.high), rtol=1e-4, atol=1e-5
    )
    assert decision.actions.dtype == np.float32 and decision.gates == (1,) * 4


@torch.no_grad()
def test_tokens_stand_in_the_order_that_is_said() -> None:
    """[cameras, words, state, query], each made of its own part of the batch; masks say which are
    which."""
    policy = make_policy()
    batch = make_batches(policy, make_frames()).batch(np.array([0, 9, 20]))
    tokens, words = policy.embed(batch), policy.words(batch.text)
    asked = policy.asked(ordered_mean(words, batch.text_mask, policy.order))
    eyes = [policy.vision[name](batch.images[name], asked) for name in ("scene", "wrist")]
    scene, wrist, length = eyes[0].shape[1], eyes[1].shape[1], words.shape[1]
    assert (scene, wrist) == (9, 4) and tokens.hidden.shape[1] == scene + wrist + length + 2
    torch.testing.assert_close(tokens.hidden[:, :scene], eyes[0])
    torch.testing.assert_close(tokens.hidden[:, scene : scene + wrist], eyes[1])
    torch.testing.assert_close(tokens.hidden[:, scene + wrist : -2], words)
    torch.testing.assert_close(tokens.hidden[:, -2], policy.state(batch.state))
    torch.testing.assert_close(tokens.hidden[:, -1], policy.query.expand(3, -1))
    yes, no = torch.ones(3, scene + wrist, dtype=torch.bool), torch.zeros(3, 2, dtype=torch.bool)
    assert torch.equal(tokens.vision, torch.cat([yes, torch.zeros_like(batch.text_mask), no], 1))
    assert torch.equal(tokens.text, torch.cat([~yes, batch.text_mask, no], 1))
    assert torch.equal(tokens.mask, torch.cat([yes, batch.text_mask, ~no], 1))


@torch.no_grad()
def test_every_token_hears_every_other_and_the_head_the_last() -> None:
    policy = make_policy()
    batch = make_batches(policy, make_frames()).batch(np.array([0, 9, 20]))
    tokens = policy.embed(batch)

    def after(hidden: torch.Tensor) -> torch.Tensor:
        return policy.run_layer(0, dataclasses.replace(tokens, hidden=hidden)).hidden

    def told(hidden: torch.Tensor) -> torch.Tensor:
        return policy.condition(dataclasses.replace(tokens, hidden=hidden))

    before = after(tokens.hidden)
    spoken = torch.randn(tokens.hidden.shape[-1], generator=torch.Generator().manual_seed(0))
    for place in (0, tokens.hidden.shape[1] - 1):
        said = tokens.hidden.clone()
        said[:, place] += spoken
        heard = (after(said) - before).abs().sum(-1) > 1e-6
        assert heard.all(), "the first hear the last, too"
    padded = tokens.hidden.clone()
    padded[~tokens.mask] += 5
    torch.testing.assert_close(after(padded)[tokens.mask], before[tokens.mask])
    moved = before.clone()
    moved[:, :-1] += 1
    assert torch.equal(told(moved), told(before))
    moved[:, -1] += spoken
    assert not torch.allclose(told(moved), told(before))


def test_a_layers_cost_is_its_parameters() -> None:
    policy = make_policy(depth=2)
    one = sum(parameter.numel() for parameter in policy.layers[0].parameters())
    policy.layers[1].extra = torch.nn.Parameter(torch.zeros(7))
    assert policy.layer_costs().tolist() == [one, one + 7]


@torch.no_grad()
def test_patches_stand_row_by_row_and_words_scale_what_is_seen() -> None:
    torch.manual_seed(0)
    eyes = ConvEncoder(48, 16, stride=8, channels=8)  # 6 × 6 tokens
    dark, words = torch.zeros(1, 3, 48, 48), torch.randn(1, 16)
    bright = dark.clone()
    bright[:, :, 4:5, 44:45] = 1  # row 0, the last column
    changed = (eyes(bright, words) - eyes(dark, words)).abs().sum(-1)[0]
    assert changed[5] > 0 and set(changed.nonzero().flatten().tolist()) <= {4, 5, 10, 11}
    same = eyes(dark, words)[0]
    inner = [7, 8, 13, 14]  # what they see is the same, so only their places tell them apart
    assert (same[inner] - eyes.position[inner]).std(0).max() < 1e-4 < (same[inner]).std(0).min()
    torch.nn.init.normal_(eyes.film.weight)
    assert not torch.allclose(eyes(dark, words), eyes(dark, -words), atol=1e-3)


def test_a_picture_of_another_size_is_named() -> None:
    policy, seen = robot(), observed(0, TEXTS[0])
    seen.images["scene"] = seen.images["scene"][:20]
    with pytest.raises(ValueError, match=r"camera 'scene': found \(20, 24, 3\)"):
        policy.infer(seen)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"instruction": b"go"}, r"instruction: found a bytes, expected a text"),
        ({"instruction": None}, r"instruction: found a NoneType"),
        ({"images": None}, r"images: found a NoneType, expected a dictionary"),
        ({"images": {}}, r"lacks camera\(s\) \['scene', 'wrist'\]"),
        ({"state": [[1, 2], [3]]}, r"state: found .*, expected 4 numbers"),
        ({"state": ["a", "b", "c", "d"]}, r"state: found .*, expected 4 numbers"),
        (
            {"previous_action": torch.tensor([0, 0, float("nan"), 0])},
            r"previous_action: NaN or infinite at \[2\]",
        ),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_told_wrongly_is_named_wherever_it_stands(
    change: dict, said: str, place: int
) -> None:
    seen = [observed(0, TEXTS[0]), observed(1, TEXTS[1])]
    seen[place] = dataclasses.replace(seen[place], **change)
    with pytest.raises(ValueError, match=said):
        robot().prepare(seen)


def test_nothing_told_is_named_and_numbers_of_every_kind_are_taken() -> None:
    with pytest.raises(ValueError, match="found no observation"):
        robot().prepare([])
    plain = observed(0, TEXTS[0])
    numbers = np.array([0.5, -0.25, 1, 0], np.float32)  # which bfloat16 can hold
    wanted = robot().infer(dataclasses.replace(plain, state=numbers))
    for kind in (
        numbers.tolist(),
        numbers.astype(np.float64),
        torch.tensor(numbers).bfloat16(),
        torch.tensor(numbers, requires_grad=True),
    ):
        np.testing.assert_array_equal(robot().infer(dataclasses.replace(plain, state=kind)), wanted)
