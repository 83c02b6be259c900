"""A step of the training loop against arithmetic done by hand: a linear policy whose gradient,
optimiser, schedule and average
have closed forms; and what it is shown at each step."""

import contextlib
import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from tiny import make_frames, make_policy
from torch import Tensor, nn

from armlet.data.augment import Augment
from armlet.data.frames import BatchMaker, draw
from armlet.data.lines import read_lines
from armlet.data.transforms import DrawBudget, Explore, GripperNoise
from armlet.layers.ema import SelfTeacher
from armlet.recipe import Objective, Stage
from armlet.training.learner import Learner, watch
from armlet.training.own_average import SelfAnswers
from armlet.training.trainer import Trainer, make_batches
from armlet.types import Batch, Trace

POLICY = make_policy()


@dataclasses.dataclass(frozen=True)
class Toward(Objective):
    """Two terms: the squared distance to the first action, and half of the squared answer."""

    wants: ClassVar[frozenset[str]] = frozenset({"answer"})
    every: int = 3

    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        actions, _ = batch.targets()
        gap = (student["answer"] - actions[:, 0]).square().sum(1).mean()
        return {"gap": gap, "size": 0.5 * student["answer"].square().sum(1).mean()}


class Linear(nn.Module):
    """answer = state Wᵀ + Vᵀ·bright + b; remembers what it was shown. W is a matrix of the
    backbone, V another's."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        layers = nn.ModuleList([nn.Linear(4, 4, bias=False)])
        self.policy = nn.ModuleDict(
            {"layers": layers, "eyes": nn.Linear(1, 4, bias=False), "head": nn.Linear(1, 4)}
        )
        for parameter in self.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=g))
        self.policy.body, self.policy.device, self.policy.blocks = (
            POLICY.body,
            torch.device("cpu"),
            [],
        )
        self.shown: list[SimpleNamespace] = []

    def autocast(self, precision: str) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def forward(
        self, batch: Batch, want: Collection[str], *, exploration: float = -1.0, every: int = -1
    ) -> Trace:
        noise = float(torch.rand(1))
        self.shown.append(
            SimpleNamespace(batch=batch, exploration=exploration, every=every, noise=noise)
        )
        return {
            "answer": batch.state @ self.policy["layers"][0].weight.T + self.policy["head"].bias
        }


STAGE = Stage(
    Toward(),
    steps=7,
    batch_size=8,
    learning_rate=0.05,
    optimiser="adamw",
    weight_decay=0.3,
    warmup=3,
    clip=0.8,
    ema=0.4,
    transforms=(),
    log_every=1,
    checkpoint_every=100,
    train=("policy.layers.*", "policy.head.bias"),
)


def batches() -> BatchMaker:
    return make_batches(POLICY, make_frames())


def train(
    folder: Path, stage: Stage = STAGE, *, seed: int = 5, **options
) -> tuple[Linear, Trainer]:
    learner = Linear()
    trainer = Trainer(
        learner, stage, batches(), folder=folder, seed=seed, title="by hand", **options
    )
    trainer.run()
    return learner, trainer


def by_hand(
    stage: Stage, seed: int, rows: np.ndarray
) -> tuple[list[dict[str, float]], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The same in double precision, from the papers: clipping, warm-up and half a cosine, AdamW
    (Loshchilov & Hutter 2019,
    algorithm 2), and an average whose decay grows from 1/10 on. Returns log, weights and
    average."""
    start = Linear()
    weights = {
        "w": start.policy["layers"][0].weight.detach().double().numpy(),
        "b": start.policy["head"].bias.detach().double().numpy(),
    }
    average = {name: value.copy() for name, value in weights.items()}
    first = {name: np.zeros_like(value) for name, value in weights.items()}
    second = {name: np.zeros_like(value) for name, value in weights.items()}
    made, log = batches(), []
    for step in range(stage.steps):
        batch = made.batch(rows[draw(len(rows), stage.batch_size, step, seed)])
        x, target = batch.state.double().numpy(), batch.actions[:, 0].double().numpy()
        answer = x @ weights["w"].T + weights["b"]
        gap, size = ((answer - target) ** 2).sum(1).mean(), 0.5 * (answer**2).sum(1).mean()
        pull = (2 * (answer - target) + answer) / len(x)
        gradient = {"w": pull.T @ x, "b": pull.sum(0)}
        norm = float(np.sqrt(sum((value**2).sum() for value in gradient.values())))
        warm = min(1, (step + 1) / stage.warmup)
        rate = (
            stage.learning_rate * warm * max(0.02, 0.5 * (1 + np.cos(np.pi * step / stage.steps)))
        )
        log.append(
            {
                "step": step + 1,
                "loss": gap + size,
                "gap": gap,
                "size": size,
                "grad_norm": norm,
                "learning_rate": rate,
            }
        )
        decay = min(stage.ema or 0, (2 + step) / (11 + step))
        for name, value in weights.items():
            g = gradient[name] * min(1, stage.clip / norm)
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.95 * second[name] + 0.05 * g**2
            value *= 1 - rate * stage.weight_decay
            value -= (
                rate
                * (first[name] / (1 - 0.9 ** (step + 1)))
                / (np.sqrt(second[name] / (1 - 0.95 ** (step + 1))) + 1e-8)
            )
            average[name] = decay * average[name] + (1 - decay) * value
    return log, weights, average


@pytest.mark.parametrize("ema", [0.9, 0.3, None])
def test_steps_are_those_done_by_hand(tmp_path: Path, ema: float | None) -> None:
    """Loss, gradient, clipping, rate, weight decay and optimiser at every step; and which weights
    are left: the averaged ones."""
    rows = np.arange(3, 25)
    stage = dataclasses.replace(STAGE, ema=ema)
    learner, _ = train(tmp_path, stage, rows=rows)
    log, weights, average = by_hand(stage, 5, rows)
    assert sum(row["grad_norm"] > stage.clip for row in log) >= 3, "it must have been clipped"
    assert not ema or np.abs(weights["w"] - average["w"]).max() > 0.003, "the two must differ"
    found = list(map(json.loads, read_lines(tmp_path / "metrics.jsonl")))
    for ours, theirs in zip(log, found, strict=True):
        assert {name: theirs[name] for name in ours} == pytest.approx(ours, rel=1e-4, abs=1e-6)
    left = average if ema else weights
    np.testing.assert_allclose(
        learner.policy["layers"][0].weight.detach(), left["w"], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        learner.policy["head"].bias.detach(), left["b"], rtol=1e-4, atol=1e-5
    )
    assert not learner.training


def test_what_is_frozen_or_not_asked_to_stays(tmp_path: Path) -> None:
    start = Linear()
    learner, _ = train(
        tmp_path / "a", dataclasses.replace(STAGE, freeze=("policy.head.*",), weight_decay=1.0)
    )
    assert torch.equal(learner.policy["head"].bias, start.policy["head"].bias)
    assert torch.equal(learner.policy["eyes"].weight, start.policy["eyes"].weight), (
        "not among `train`"
    )
    assert not torch.equal(learner.policy["layers"][0].weight, start.policy["layers"][0].weight)


@dataclasses.dataclass(frozen=True)
class Both(Objective):
    """Pulls on every parameter: both matrices and the bias."""

    def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
        return {"sum": student["sum"]}

    wants: ClassVar[frozenset[str]] = frozenset({"sum"})


class Sum(Linear):
    """A linear function of all parameters, whose gradients are G, and 1."""

    gradient = torch.tensor([[3.0, 0.1, 0, 0], [0, 2, 0.5, 0], [0, 0, -1, 0.2], [0.3, 0, 0, 0.7]])

    def forward(
        self, batch: Batch, want: Collection[str], *, exploration: float = 0, every: int = 1
    ) -> Trace:
        weight = self.policy["layers"][0].weight
        return {
            "sum": (self.gradient * weight).sum()
            + self.policy["eyes"].weight.sum()
            - self.policy["head"].bias.sum()
        }


def test_muon_takes_the_backbones_matrices_and_adamw_the_rest(tmp_path: Path) -> None:
    """One step from nothing: AdamW moves every number by the rate against its sign. Muon moves a
    matrix by the nearest orthogonal
    one, scaled as AdamW's steps are: 0.2 √(largest side) (Liu et al. 2025, arXiv 2502.16982)."""
    stage = dataclasses.replace(
        STAGE,
        objective=Both(),
        optimiser="muon",
        steps=1,
        warmup=1,
        ema=None,
        clip=1e9,
        train=("*",),
    )
    before, learner = Sum(), Sum()
    Trainer(learner, stage, batches(), folder=tmp_path, seed=0, title="muon").run()
    rate, kept = stage.learning_rate, 1 - stage.learning_rate * stage.weight_decay

    def moved(name: str) -> Tensor:
        old, new = before.get_parameter(name).detach(), learner.get_parameter(name).detach()
        return (old * kept - new) / rate

    torch.testing.assert_close(moved("policy.eyes.weight"), torch.ones(4, 1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(moved("policy.head.bias"), -torch.ones(4), rtol=1e-3, atol=1e-3)
    step = moved("policy.layers.0.weight") / (0.2 * 2)
    left, _, right = torch.linalg.svd(Sum.gradient)
    sizes = torch.diagonal(left.T @ step @ right.T)
    assert ((sizes > 0.6) & (sizes < 1.3)).all(), (
        "singular values near 1, along the gradient's own directions"
    )
    assert (left.T @ step @ right.T - torch.diag(sizes)).abs().max() < 0.1


def test_every_step_has_frames_of_its_own_and_an_epoch_has_all(tmp_path: Path) -> None:
    rows = np.arange(5, 29)
    learner, trainer = train(tmp_path / "a", dataclasses.replace(STAGE, steps=6), rows=rows)
    starts = trainer.batches.frames.starts
    shown = [
        starts[each.batch.keys[:, 0].numpy()] + each.batch.keys[:, 1].numpy()
        for each in learner.shown
    ]
    assert sorted(np.concatenate(shown[:3])) == sorted(np.concatenate(shown[3:])) == rows.tolist()
    assert len({tuple(each) for each in shown}) == 6
    other, _ = train(tmp_path / "b", dataclasses.replace(STAGE, steps=6), seed=6, rows=rows)
    assert any(
        not torch.equal(a.batch.keys, b.batch.keys)
        for a, b in zip(learner.shown, other.shown, strict=True)
    )


def test_pictures_are_changed_anew_at_every_step_and_alike_in_all_cameras(tmp_path: Path) -> None:
    stage = dataclasses.replace(
        STAGE, steps=6, batch_size=64, transforms=(Augment(brightness=0.3),)
    )
    learner, trainer = train(tmp_path / "a", stage)
    gains = []
    for each in learner.shown:
        keys = each.batch.keys.numpy()
        plain = trainer.batches.batch(trainer.batches.frames.starts[keys[:, 0]] + keys[:, 1]).images
        found = {}
        for name, pixels in each.batch.images.items():
            dark = (plain[name] > 0) & (plain[name] < 0.7)  # what no gain makes white
            ratio = torch.where(dark, pixels / plain[name].clamp(min=1e-6), torch.nan).flatten(1)
            found[name] = ratio.nanmean(1)
            assert torch.allclose(
                ratio.nan_to_num(0) - found[name][:, None] * dark.flatten(1),
                torch.zeros(()),
                atol=1e-5,
            )
        torch.testing.assert_close(found["scene"], found["wrist"])
        gains.append(found["scene"])
    spread = torch.stack([gain.std() for gain in gains])
    assert (
        (torch.stack(gains) > 0.69).all()
        and (torch.stack(gains) < 1.31).all()
        and (spread > 0.1).all()
    )
    assert len({round(float(gain[0]), 5) for gain in gains}) == 6, "another light at every step"
    other, _ = train(tmp_path / "b", stage, seed=6)
    assert not torch.equal(
        other.shown[0].batch.images["scene"].mean(), learner.shown[0].batch.images["scene"].mean()
    )


def test_exploration_goes_from_first_to_last_and_layers_are_read_as_often_as_asked(
    tmp_path: Path,
) -> None:
    learner, _ = train(
        tmp_path, dataclasses.replace(STAGE, steps=5, transforms=(Explore(1.0, 0.5),))
    )
    assert [each.exploration for each in learner.shown] == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6])
    assert {each.every for each in learner.shown} == {3}


def test_budgets_are_drawn_over_the_whole_range(tmp_path: Path) -> None:
    learner, _ = train(
        tmp_path / "a",
        dataclasses.replace(
            STAGE, steps=200, transforms=(DrawBudget(0.2, 0.8),), checkpoint_every=1000
        ),
    )
    drawn = np.array([each.batch.budget for each in learner.shown])
    assert drawn.min() >= 0.2 and drawn.max() <= 0.8
    assert np.quantile(drawn, [0.1, 0.5, 0.9]) == pytest.approx([0.26, 0.5, 0.74], abs=0.06)
    assert np.abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.25
    plain, _ = train(tmp_path / "b")
    assert {each.batch.budget for each in plain.shown} == {None}


def test_noise_belongs_to_seed_and_step(tmp_path: Path) -> None:
    noise = []
    for name, seed in (("a", 5), ("again", 5), ("other", 6)):
        torch.rand(len(name))  # whatever was drawn before
        learner, _ = train(tmp_path / name, seed=seed)
        noise.append([each.noise for each in learner.shown])
    assert noise[0] == noise[1] and len(set(noise[0] + noise[2])) == 14


def test_the_teacher_is_asked_of_the_frames_that_the_student_sees(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Asks(Toward):
        needs: ClassVar[frozenset[str]] = frozenset({"number"})

        def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
            asked.append((batch.keys, teacher["number"]))
            return super().__call__(student, teacher, batch)

    asked: list[tuple[Tensor, Tensor]] = []
    train(
        tmp_path,
        dataclasses.replace(STAGE, objective=Asks()),
        teacher=lambda keys: {"number": 1000 * keys[:, 0] + keys[:, 1]},
    )
    assert len(asked) == STAGE.steps
    assert all(torch.equal(1000 * keys[:, 0] + keys[:, 1], answer) for keys, answer in asked)


@torch.no_grad()
def test_a_student_that_is_its_own_teacher_is_answered_by_its_average_on_plain_pictures() -> None:
    """By hand: each call first moves the average a tenth of the way towards the student; what it
    answers is of the very frames."""
    student, start = make_policy(), make_policy()
    for parameter in student.parameters():
        parameter.add_(
            0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        )
    answers = SelfAnswers(
        SelfTeacher(student, decay=0.9, start=start), batches(), frozenset({"actions"})
    )
    made, rows = batches(), np.array([20, 3, 11])
    keys = torch.from_numpy(made.keys(rows))
    reference = make_policy()
    for call in range(1, 4):
        found = answers(keys)["actions"]
        for name, parameter in reference.named_parameters():
            old, new = start.get_parameter(name), student.get_parameter(name)
            parameter.copy_(0.9**call * old + (1 - 0.9**call) * new)
        expected = watch(Learner(reference).eval(), made.batch(rows), {"actions"})["actions"]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not any(torch.equal(a, b) for a, b in zip(found, found.roll(1, 0), strict=True))


@pytest.mark.parametrize("opened", [-1.0, 0.0])
def test_grippers_are_flipped_about_their_middle_in_what_both_say(
    tmp_path: Path, opened: float
) -> None:
    """Also for a gripper that is open at 0: what is told wrong is its other end, 1, and not 0
    again."""
    spec = dataclasses.replace(POLICY.body.action_spec, gripper_open=opened)
    frames = make_frames()
    frames.actions[:, 3] = np.where(frames.actions[:, 3] > 0, spec.gripper_closed, opened)
    made = make_batches(POLICY, frames)
    heard: list[tuple[Batch, Tensor]] = []

    @dataclasses.dataclass(frozen=True)
    class Listens(Toward):
        needs: ClassVar[frozenset[str]] = frozenset({"actions"})

        def __call__(self, student: Trace, teacher: Trace, batch: Batch) -> dict[str, Tensor]:
            heard.append((batch, teacher["actions"]))
            return super().__call__(student, teacher, batch)

    def plain(keys: Tensor) -> Batch:
        return made.batch(frames.starts[keys[:, 0].numpy()] + keys[:, 1].numpy())

    learner = Linear()
    learner.policy.body = dataclasses.replace(POLICY.body, action_spec=spec)
    stage = dataclasses.replace(STAGE, objective=Listens(), transforms=(GripperNoise(0.5),))
    options = {
        "folder": tmp_path,
        "seed": 1,
        "title": "noise",
        "teacher": lambda keys: {"actions": plain(keys).actions},
    }
    Trainer(learner, stage, made, **options).run()
    flips = []
    for batch, teacher in heard:
        true, valid = plain(batch.keys).targets()
        assert torch.equal(batch.actions, teacher), "expert and teacher are told wrong alike"
        assert torch.equal(batch.actions[..., :3], true[..., :3]), "only the gripper is"
        wrong = (batch.actions[..., 3] != true[..., 3])[valid]
        other = opened + spec.gripper_closed - true[..., 3][valid]
        torch.testing.assert_close(batch.actions[..., 3][valid][wrong], other[wrong])
        flips.append(wrong.float())
    assert 0.3 < float(torch.cat(flips).mean()) < 0.7


def test_a_robot_without_a_gripper_cannot_be_told_wrong(tmp_path: Path) -> None:
    learner = Linear()
    learner.policy.body = dataclasses.replace(
        POLICY.body, action_spec=dataclasses.replace(POLICY.body.action_spec, grippers=())
    )
    trainer = Trainer(
        learner,
        dataclasses.replace(STAGE, transforms=(GripperNoise(0.3),)),
        batches(),
        folder=tmp_path,
        seed=1,
        title="noise",
    )
    with pytest.raises(
        ValueError, match=r"GripperNoise\(share=0\.3\): this robot's actions have no gripper"
    ):
        trainer.run()
