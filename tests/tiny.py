"""A small world for tests: a few frames, a small policy, a recipe over them that runs in
seconds."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from armlet import recipes
from armlet.benchmarks.tabletop import Tabletop
from armlet.data.frames import Frames
from armlet.data.text import train_tokenizer
from armlet.policies.contract import Body
from armlet.policies.vla import VLA, VLANetwork
from armlet.recipe import Collection, Evaluation, Recipe
from armlet.robot.normalise import Normaliser

TEXTS = ("touch the red cube", "put the blue cylinder into the white box", "open the green drawer")


def identity(dims: int) -> Normaliser:
    return Normaliser(np.zeros(dims, np.float32), np.ones(dims, np.float32))


def make_policy(*, depth: int = 4) -> VLA:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS)
    network = VLANetwork(
        strides={"scene": 8, "wrist": 8},
        width=32,
        depth=depth,
        heads=2,
        chunk=3,
        execute=3,
        vision_channels=8,
    )
    body = Body(Tabletop().action_spec, identity(4), identity(4), tokenizer)
    return network.build(body, {"scene": 24, "wrist": 16}).eval()


def make_frames(*, episodes: int = 7, seed: int = 0) -> Frames:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 9, episodes)
    total = int(lengths.sum())
    actions = rng.uniform(-1, 1, (total, 4)).astype(np.float32)
    return Frames(
        images={
            name: rng.integers(0, 256, (total, s, s, 3), dtype=np.uint8)
            for name, s in (("scene", 24), ("wrist", 16))
        },
        state=rng.normal(size=(total, 4)).astype(np.float32),
        actions=actions,
        executed=actions,
        privileged={
            name: rng.normal(size=(total, 3)).astype(np.float32) for name in ("subject", "target")
        },
        texts=TEXTS,
        asked=np.repeat(np.arange(episodes) % 3, lengths),
        starts=np.array([0, *np.cumsum(lengths)]),
    )


def tiny_recipe(out: Path) -> Recipe:
    """ActDistill end to end on a handful of tabletop episodes."""
    base = recipes.make("actdistill_tabletop")
    short = {"batch_size": 8, "warmup": 2, "log_every": 1, "checkpoint_every": 4, "compile": False}
    return dataclasses.replace(
        base,
        name="tiny",
        benchmark=Tabletop(scene_pixels=64, wrist_pixels=64, step_limit=40),
        episodes=out / "episodes",
        teacher=out / "teacher",
        out=out,
        shared=None,
        collection=Collection(episodes=7, workers=1),
        network=VLANetwork(width=32, depth=4, heads=2, chunk=3, vision_channels=8),
        teach=dataclasses.replace(base.teach, steps=6, **short),
        probe=dataclasses.replace(
            base.probe, stage=dataclasses.replace(base.probe.stage, steps=6, **short)
        ),
        stages=tuple(dataclasses.replace(stage, steps=6, **short) for stage in base.stages),
        evaluation=Evaluation(episodes=7, workers=1, latency_calls=8),
    )
