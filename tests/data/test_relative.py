"""Actions that a policy knows as what they are beyond the state: subtracted before normalising, of a
whole chunk the state at its beginning, and added again; and prompts that hold the state."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny import make_policy

from armlet.data.batching import batch_of
from armlet.data.frames import BatchMaker, Frames
from armlet.data.text import train_tokenizer
from armlet.policies.contract import Body
from armlet.robot.fit import View
from armlet.robot.inputs import Inputs, beyond
from armlet.robot.normalise import Normaliser
from armlet.robot.observation import Observation
from armlet.robot.reading.own import Words

TEXTS = ("red", "put it on the blue plate")
STATE = Normaliser(np.array([1.0, 2.0, 3.0], np.float32), np.array([2.0, 4.0, 8.0], np.float32))
ACTION = Normaliser(np.array([0.5, -0.5], np.float32), np.array([4.0, 0.25], np.float32))


def frames() -> Frames:
    """Two episodes, of 5 and 4 rows."""
    rng = np.random.default_rng(0)
    return Frames(
        images={},
        state=rng.normal(size=(9, 3)).astype(np.float32),
        actions=rng.normal(size=(9, 2)).astype(np.float32),
        executed=rng.normal(size=(9, 2)).astype(np.float32),
        privileged={},
        texts=TEXTS,
        asked=np.array([0] * 5 + [1] * 4),
        starts=np.array([0, 5, 9]),
    )


def reads(texts: list[str], states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids that are the length of a text, and its state in hundredths."""
    ids = np.zeros((len(texts), 4), np.int64)
    for row, text in enumerate(texts):
        ids[row] = [len(text), *np.round(states[row] * 100)]
    return ids, np.ones_like(ids, bool)


def inputs_of(**more: object) -> Inputs:
    words = Words(train_tokenizer(TEXTS), 16)
    return Inputs(View({}), words, STATE, ACTION, 3, **more)  # type: ignore[arg-type]


def test_a_chunk_is_relative_to_the_state_at_its_beginning() -> None:
    data = frames()
    batches = BatchMaker(data, inputs_of(relative=(1,)), device=torch.device("cpu"))
    rows = np.array([1, 3, 5])
    actions, valid = batches.batch(rows).targets()
    for row, start in enumerate(rows):
        end = 5 if start < 5 else 9
        for ahead in range(3):
            if start + ahead >= end:
                assert not valid[row, ahead] and not actions[row, ahead].any()
                continue
            raw = data.actions[start + ahead].astype(np.float64)
            raw[1] -= data.state[start, 1]
            wanted = (raw - [0.5, -0.5]) / [4.0, 0.25]
            assert actions[row, ahead].numpy() == pytest.approx(wanted, rel=1e-5)


def test_what_was_done_before_is_relative_to_where_it_stands_now() -> None:
    data = frames()
    batches = BatchMaker(data, inputs_of(relative=(0,)), device=torch.device("cpu"))
    before = batches.batch(np.array([0, 2, 5])).previous_action.numpy()
    for row, (start, done) in enumerate(((0, [0, 0]), (2, data.executed[1]), (5, [0, 0]))):
        raw = np.array(done, np.float64)
        raw[0] -= data.state[start, 0]
        assert before[row] == pytest.approx((raw - [0.5, -0.5]) / [4.0, 0.25], rel=1e-5)


def test_a_robot_is_told_what_the_data_say_to_the_bit() -> None:
    data = frames()
    inputs = inputs_of(relative=(0, 1), prompt=reads)
    batch = BatchMaker(data, inputs, device=torch.device("cpu")).batch(np.array([2, 6]))
    seen = []
    for row in (2, 6):
        text = TEXTS[data.asked[row]]
        seen.append(Observation({}, data.state[row], text, data.executed[row - 1]))
    told = batch_of(inputs.arrays(seen), device=torch.device("cpu"))
    for name in ("text", "text_mask", "state", "previous_action"):
        assert torch.equal(getattr(batch, name), getattr(told, name)), name
    assert batch.text[0, 0] == 3 and batch.text[0, 1] == round(float(batch.state[0, 0]) * 100)


def test_denormalising_adds_the_state_of_each_sample() -> None:
    policy = make_policy()
    policy.body = dataclasses.replace(policy.body, relative=(0, 2))
    chunk = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32) * 0.01
    state = np.array([[0.1, 9, 0.2, 9], [0.3, 9, 0.4, 9]], np.float32)
    plain = policy.body.actions.invert(chunk)
    found = policy.denormalise(chunk, state)
    assert found[..., 1] == pytest.approx(plain[..., 1])
    for row in range(2):
        for dim in (0, 2):
            assert found[row, :, dim] == pytest.approx(plain[row, :, dim] + state[row, dim])
    assert policy.denormalise(chunk[0], state[0]) == pytest.approx(found[0])
    with pytest.raises(ValueError, match="its actions are relative to the state; give one"):
        policy.denormalise(chunk)


def test_there_and_back_is_where_it_was() -> None:
    data = frames()
    relative = beyond(data.actions, data.state, (0, 1))
    assert relative + data.state[:, :2] == pytest.approx(data.actions)
    assert beyond(data.actions, data.state, ()) is data.actions


def test_a_policy_keeps_which_of_its_actions_are_relative() -> None:
    body = dataclasses.replace(make_policy().body, relative=(0, 2))
    assert Body.from_json(body.to_json(), body.tokenizer).relative == (0, 2)
    assert (
        "relative" not in make_policy().body.to_json()
    )  # what was saved before still hashes alike


def test_actions_are_not_relative_to_a_state_that_nobody_looks_at() -> None:
    body = make_policy().body
    nothing = Normaliser(np.zeros(0, np.float32), np.ones(0, np.float32))
    with pytest.raises(ValueError, match=r"relative names 1: .* the state has 0 .* no state\?"):
        dataclasses.replace(body, state=nothing, relative=(1,))
    with pytest.raises(ValueError, match="relative names 4"):
        dataclasses.replace(body, relative=(0, 4))
