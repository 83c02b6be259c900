"""A row of a data set as an observation is what training makes of it."""

import numpy as np
import torch

from armlet.data.batching import batch_of
from armlet.data.frames import BatchMaker, Frames
from armlet.data.observing import keys_of, observations
from armlet.data.text import train_tokenizer
from armlet.robot.fit import View
from armlet.robot.inputs import Inputs
from armlet.robot.normalise import Normaliser
from armlet.robot.reading.own import Words


def test_observations_are_what_a_batch_is_made_of() -> None:
    """Two episodes, and a gap in the second: after it, too, nothing has been done before."""
    rng = np.random.default_rng(0)
    rows = 12
    texts = ("go left", "go right")
    frames = Frames(
        images={"eye": rng.integers(0, 256, (rows, 8, 8, 3), np.uint8)},
        state=rng.normal(size=(rows, 2)).astype(np.float32),
        actions=rng.normal(size=(rows, 3)).astype(np.float32),
        executed=rng.normal(size=(rows, 3)).astype(np.float32),
        privileged={},
        texts=texts,
        asked=np.arange(rows) % 2,
        starts=np.array([0, 5, rows]),
        runs=np.array([0, 5, 9]),
    )
    ours = Normaliser(np.array([0.5, -1, 2], np.float32), np.array([2.0, 3, 0.1], np.float32))
    state = Normaliser(np.zeros(2, np.float32), np.full(2, 4.0, np.float32))
    words = Words(train_tokenizer(texts), 8)
    inputs = Inputs(View({"eye": (8, 8)}), words, state, ours, 2)
    every = np.arange(rows)
    made = BatchMaker(frames, inputs, device=torch.device("cpu"))
    trained = made.batch(every)
    asked = batch_of(inputs.arrays(observations(frames, every)), device=torch.device("cpu"))
    for name in ("text", "state", "previous_action"):
        assert torch.equal(getattr(trained, name), getattr(asked, name)), name
    assert torch.equal(trained.images["eye"], asked.images["eye"])
    some = np.array([10, 3, 5])  # in any order
    for row, seen in zip(some, observations(frames, some), strict=True):
        np.testing.assert_array_equal(seen.state, frames.state[row])
    np.testing.assert_array_equal(keys_of(frames, every), made.keys(every))
