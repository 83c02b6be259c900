"""Some processes that train together, forked from the test: they need no second to start. And a stage
whose loss couples the samples of a batch, and whose network draws."""

import dataclasses
import datetime
import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from tiny import make_frames, make_policy
from torch import Tensor

from armlet.data.augment import Augment
from armlet.data.transforms import Explore, ShuffledTeacher
from armlet.layers.graph import ProbeHeads
from armlet.policies.routed import Routing
from armlet.recipe import Stage
from armlet.recipes.actdistill import ActDistill
from armlet.training import trainer as training
from armlet.training.learner import Learner
from armlet.training.spread import whole
from armlet.training.trainer import Trainer, make_batches

# 42 frames in batches of 8 leave one of 2, of which two processes have one sample each, or, as layers
# are read of every second sample, one has both and the other none.
STAGE = Stage(
    ActDistill(semantic=1.0, layer_action=1.0, eta=2.0, every=2),
    steps=3,
    batch_size=8,
    warmup=2,
    log_every=1,
    checkpoint_every=2,
    ema=0.9,
    optimiser="adamw",
    precision="fp32",
    transforms=(Augment(crop=2, contrast=0.2), ShuffledTeacher(), Explore(1.0, 1.0)),
)


def together(size: int, work: Callable[[int], object], folder: Path, *, patience: float = 1.0):
    """What `work(rank)` returned in each process, or the error that it raised; None of one that
    died."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    children = []
    for rank in range(size):
        child = context.Process(target=_run, args=(rank, size, work, folder, patience))
        child.start()
        children.append(child)
    found = []
    for rank, child in enumerate(children):
        child.join(240)
        assert child.exitcode is not None, f"rank {rank} hangs"
        path = folder / f"said-{rank}"
        found.append(pickle.loads(path.read_bytes()) if path.exists() else None)
        path.unlink(missing_ok=True)
    (folder / "store").unlink(missing_ok=True)
    return found


def _run(rank: int, size: int, work: Callable[[int], object], folder: Path, patience: float):
    torch.set_num_threads(1)
    try:
        store = dist.FileStore(str(folder / "store"), size)
        timeout = datetime.timedelta(minutes=patience)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timeout)
        said: object = work(rank)
    except BaseException as error:
        traceback.print_exc()
        said = RuntimeError(f"{type(error).__name__}: {error}")
    (folder / f"said-{rank}").write_bytes(pickle.dumps(said))
    os._exit(0)  # without what a fork would do for its parent


def answers(keys: Tensor) -> dict[str, Tensor]:
    """A teacher of numbers that hang on the key alone."""
    seeds = (keys[:, 0] * 31 + keys[:, 1]).float()

    def numbers(*shape: int) -> Tensor:
        count = torch.arange(torch.Size(shape).numel()).float()
        return torch.sin(seeds[:, None] * 1.7 + count * 0.9).view(-1, *shape)

    return {
        "actions": numbers(3, 4),
        "condition": numbers(32),
        "semantics": numbers(4, 8),
        "layer_actions": numbers(4, 3, 4),
    }


def train(folder: Path, stage: Stage = STAGE, **changed):
    """One stage trained: the gradients of each step by name, and the weights that it leaves."""
    torch.manual_seed(3)
    policy = Routing(initial_keep=0.6).build(make_policy())
    heads = ProbeHeads(4, policy.width, chunk=3, dims=4, semantic_width=8)
    learner = Learner(policy, probe=heads)
    trainer = Trainer(
        learner,
        dataclasses.replace(stage, **changed),
        make_batches(policy, make_frames()),
        folder=folder,
        seed=1,
        title="test",
        teacher=answers,
    )
    gradients: list[dict[str, Tensor]] = []
    clip = torch.nn.utils.clip_grad_norm_

    def noted(parameters, most):
        step = {}
        for name, parameter in trainer.parameters.items():
            if parameter.grad is not None:
                step[name] = whole(parameter.grad).clone()
        gradients.append(step)
        return clip(parameters, most)

    training.nn.utils.clip_grad_norm_ = noted
    try:
        trainer.run()
    finally:
        training.nn.utils.clip_grad_norm_ = clip
    weights = {name: each.detach().clone() for name, each in learner.state_dict().items()}
    return gradients, weights


def assert_same_gradients(found, expected, *, steps: int = 1) -> None:
    """To single precision's rounding of sums in another order, of the largest entry of each
    gradient; a gradient that is 0 but for rounding has none."""
    largest = max(float(each.abs().max()) for each in expected[0].values())
    for mine, theirs in zip(found[:steps], expected[:steps], strict=True):
        assert mine.keys() == theirs.keys()
        for name, gradient in theirs.items():
            scale = max(float(gradient.abs().max()), 1e-3 * largest)
            torch.testing.assert_close(
                mine[name],
                gradient,
                rtol=0,
                atol=1e-5 * scale,
                msg=lambda said, n=name: f"{n}: {said}",
            )
