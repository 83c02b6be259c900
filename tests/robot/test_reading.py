"""How policies read words, and what they are told, written down and read again: the same ids, the
same arrays, the bits that torch has."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TEXTS, make_policy
from tokenizers import Tokenizer, models, pre_tokenizers

from armlet.data.batching import batch_of
from armlet.data.text import train_tokenizer
from armlet.robot import reading
from armlet.robot.ensemble import Adaptive, Ensemble, Exponential, ensemble_from_json
from armlet.robot.fit import View
from armlet.robot.inputs import Inputs
from armlet.robot.normalise import Normaliser
from armlet.robot.observation import Observation
from armlet.robot.outputs import Outputs
from armlet.robot.reading.llama import LlamaPrompt
from armlet.robot.reading.own import NoWords, Words
from armlet.robot.reading.paligemma import PiWords, Prompts
from armlet.robot.reading.smolvla import SmolPrompt

STATE = Normaliser(np.float32([1, 2]), np.float32([3, 4]))
ACTION = Normaliser(np.zeros(3, np.float32), np.float32([1, 2, 4]), np.float32([0, 1, 0]))


def letters(*special: str) -> Tokenizer:
    """A tokenizer of single letters, with these tokens besides."""
    known = {name: index for index, name in enumerate(("<pad>", *special))}
    for code in [*range(32, 127), 10]:
        known.setdefault(chr(code), len(known))
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return tokenizer


LLAMA = letters("<s>", "</s>", "▁")
PALIGEMMA = letters("<bos>")
READERS: dict[str, Any] = {
    "own": Words(train_tokenizer(TEXTS), 12),
    "none": NoWords(),
    "llama": LlamaPrompt(LLAMA, longest=90),
    "llama, always": LlamaPrompt(LLAMA, longest=90, ending=("▁", "</s>"), always=True),
    "paligemma": PiWords(Prompts("cleaned", 64), PALIGEMMA),
    "paligemma, state": PiWords(Prompts("state", 80, "cut", slots=4), PALIGEMMA),
    "smolvla": SmolPrompt(letters(), 48, pad=2, padded=True, new_line=True),
    "smolvla, as it is": SmolPrompt(letters(), 20, pad=0, padded=False, new_line=False),
}


@pytest.mark.parametrize("name", READERS)
def test_a_way_of_reading_is_read_again(name: str) -> None:
    words = READERS[name]
    said = json.loads(json.dumps(reading.to_json(words)))
    tokenizer = None if name == "none" else Tokenizer.from_str(words_of(words).to_str())
    again = reading.from_json(said, tokenizer)
    assert type(again) is type(words)
    for mine, theirs in zip(words(TEXTS), again(TEXTS), strict=True):
        assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs)
    if name == "paligemma, state":
        states = np.float32([[0.1, -2], [0.5, 0.9], [3, 0]])
        for mine, theirs in zip(
            words.with_state(TEXTS, states), reading.with_state(again)(TEXTS, states), strict=True
        ):
            assert np.array_equal(mine, theirs)


def words_of(words: Any) -> Tokenizer:
    return words.tokenizer


def test_what_cannot_be_written_or_read() -> None:
    class Other:
        kind = "own"

    with pytest.raises(TypeError, match=r"a Other reads .* cannot be written"):
        reading.to_json(Other())
    with pytest.raises(ValueError, match="read as 'morse', expected own, none, llama"):
        reading.from_json({"kind": "morse"}, None)
    with pytest.raises(ValueError, match=r"there is no tokenizer\.json"):
        reading.from_json({"kind": "own", "longest": 3}, None)
    with pytest.raises(ValueError, match="no place for the state"):
        reading.with_state(READERS["own"])


def seen(number: int, past: tuple[Observation, ...] = ()) -> Observation:
    rng = np.random.default_rng(number)
    images = {"eye": rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)}
    return Observation(images, rng.normal(size=2), "lift it", rng.normal(size=3), past)


@pytest.mark.parametrize("history", [1, 3])
def test_inputs_are_read_again_and_torch_has_the_same_bits(history: int) -> None:
    words = READERS["paligemma, state"]
    inputs = Inputs(
        View({"eye": (6, 6)}, "letterbox"), words, STATE, ACTION, 5, (1,), words.with_state, history
    )
    again = Inputs.from_json(json.loads(json.dumps(inputs.to_json())), words.tokenizer)
    assert again.view == inputs.view
    assert (again.chunk, again.relative, again.history) == (5, (1,), history)
    observations = [seen(0), seen(1, (seen(2), seen(3)))]
    mine = inputs.arrays(observations)
    theirs = again.arrays(observations)
    batch = batch_of(mine, device=torch.device("cpu"))
    assert batch.images["eye"].shape == ((2, 3, 6, 6) if history == 1 else (2, 3, 3, 6, 6))
    assert np.array_equal(mine.images()["eye"], batch.images["eye"].numpy())
    for name in ("text", "text_mask", "state", "previous_action"):
        assert np.array_equal(getattr(mine, name), getattr(theirs, name)), name
        assert np.array_equal(getattr(mine, name), getattr(batch, name).numpy()), name


def test_outputs_are_read_again() -> None:
    spec = make_policy(depth=1).robot.action
    actions = Normaliser(np.zeros(4, np.float32), np.float32([1, 2, 3, 1]))
    outputs = Outputs(spec, actions, relative=(0,), gripper=3)
    again = Outputs.from_json(json.loads(json.dumps(outputs.to_json())))
    said = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    state = np.float32([[0.5, 0], [0.1, 0]])
    found = again.denormalise(said, state)
    assert np.array_equal(found, outputs.denormalise(said, state))
    plain = replace(outputs, relative=()).denormalise(said)
    np.testing.assert_allclose(
        found[..., 0], np.clip(np.clip(said[..., 0], -1, 1) + state[:, None, 0], -1, 1), atol=1e-6
    )
    assert np.array_equal(found[..., 1:], plain[..., 1:])
    assert set(np.unique(found[..., 3])) == {0, 1}


@pytest.mark.parametrize("ensemble", [Exponential(0.2), Adaptive(3, 0.4, "decided")])
def test_ensembles_are_read_again(ensemble: Ensemble) -> None:
    assert ensemble_from_json(json.loads(json.dumps(ensemble.to_json()))) == ensemble
    with pytest.raises(ValueError, match="'Median', expected Exponential or Adaptive"):
        ensemble_from_json({"kind": "Median"})
