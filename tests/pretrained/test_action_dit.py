"""CogACT's action model against what the original's own code answered with the same weights, each of
its traps by the size of its error, and the formulas of diffusion by other ways to the same numbers."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from armlet.layers import action_dit
from armlet.layers.action_dit import DiffusionHead, betas, kept_signal, spaced, visited

GOLDEN = Path(__file__).parent / "golden" / "cogact"
SIZES = {"hidden": 48, "depth": 3, "heads": 12}
BOUND = 5e-5  # of actions, as the fixture's README has it


def golden_head(**options: object) -> DiffusionHead:
    """The head with the original's weights."""
    head = DiffusionHead(64, 16, 7, **SIZES, **options)  # type: ignore[arg-type]
    weights = np.load(GOLDEN / "weights.npz")
    named = {}
    for name in weights.files:
        if name.startswith("action_model."):
            named[name.removeprefix("action_model.")] = torch.from_numpy(weights[name])
    head.load_state_dict(named)
    return head.eval()


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "arrays.npz") as file:
        return dict(file)


def said(golden: dict[str, np.ndarray], name: str, case: int = 0) -> Tensor:
    return torch.from_numpy(golden[f"case{case}__{name}"])


@torch.no_grad()
def sampled(head: DiffusionHead, golden: dict[str, np.ndarray], case: int = 0) -> Tensor:
    head.noise[0] = said(golden, "noise", case)[0]
    return head(said(golden, "cognition", case)[None])[0]


def furthest(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())


def test_schedule(golden: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(betas(), golden["diffusion__betas"], rtol=0, atol=1e-15)
    np.testing.assert_array_equal(kept_signal(), golden["diffusion__alphas_cumprod"])
    np.testing.assert_array_equal(spaced(10), golden["diffusion__ddim10_timestep_map"])
    np.testing.assert_allclose(
        kept_signal()[list(spaced(10))], golden["diffusion__ddim10_alphas_cumprod"], atol=1e-15
    )
    np.testing.assert_array_equal(spaced(5)[::-1], golden["case0__ddim5_timesteps"])


@pytest.mark.parametrize("case", [0, 1])
def test_noise_that_is_seen_and_where_it_leads(golden: dict[str, np.ndarray], case: int) -> None:
    head = golden_head()
    told = said(golden, "cognition", case)[None]
    for index, step in enumerate(said(golden, "ddim_timesteps", case).tolist()):
        noisy = said(golden, "ddim_x", case)[index : index + 1]
        with torch.no_grad():
            with_feature, without = head.epsilon(noisy, step, told)
        assert without is not None
        assert furthest(with_feature[0], said(golden, "ddim_eps_cond", case)[index]) < BOUND
        assert furthest(without[0], said(golden, "ddim_eps_uncond", case)[index]) < BOUND
    assert furthest(sampled(head, golden, case), said(golden, "raw_sample", case)) < BOUND


def test_without_guidance(golden: dict[str, np.ndarray]) -> None:
    found = sampled(golden_head(guidance=1.0), golden)
    clipped = said(golden, "normalized_action_cfg1")
    assert furthest(found.clamp(-1, 1)[:, :6], clipped[:, :6]) < BOUND


def test_a_batch_answers_as_each_alone(golden: dict[str, np.ndarray]) -> None:
    head = golden_head()
    told = torch.stack([said(golden, "cognition", 0), said(golden, "cognition", 1)])
    with torch.no_grad():
        both = head(told)
        for index in range(2):
            assert furthest(both[index], head(told[index : index + 1])[0]) < 1e-5


# --- traps: what goes wrong, and by how much (the fixture's README)


def _swapped(head: DiffusionHead, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = head.epsilon
    monkeypatch.setattr(head, "epsilon", lambda *given: tuple(reversed(seen(*given))))


def _respaced(head: DiffusionHead, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = head.guided
    numbers = {step: index for index, step in enumerate(head.visited)}
    monkeypatch.setattr(head, "guided", lambda x, step, told: seen(x, numbers[step], told))


def _linear(head: DiffusionHead, monkeypatch: pytest.MonkeyPatch) -> None:
    added = np.linspace(1000 / 100 * 1e-4, 1000 / 100 * 0.02, 100)
    head.table = np.cumprod(1 - added).tolist()


def _erf(head: DiffusionHead, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = F.gelu
    monkeypatch.setattr(action_dit.F, "gelu", lambda x, approximate: exact(x))


def _norm(head: DiffusionHead, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in head.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5


def _sines_first(head: DiffusionHead, monkeypatch: pytest.MonkeyPatch) -> None:
    first = head.net.t_embedder.mlp[0].weight
    half = first.shape[1] // 2
    with torch.no_grad():
        first.copy_(torch.cat([first[:, half:], first[:, :half]], 1))


def _straight(head: DiffusionHead, monkeypatch: pytest.MonkeyPatch) -> None:
    """`uncondition` past the linear map: as if it were zero ahead of it."""
    head.net.z_embedder.uncondition.data.zero_()


@pytest.mark.parametrize(
    ("spring", "size"),
    [
        (_swapped, 2.8e-1),
        (_respaced, 1.1),
        (_linear, 9.8),
        (_erf, 2.7e-3),
        (_norm, 4.4e-5),
        (_sines_first, 9.3e-1),
        (_straight, None),
    ],
)
def test_traps(
    golden: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    spring: Callable[[DiffusionHead, pytest.MonkeyPatch], None],
    size: float | None,
) -> None:
    head = golden_head()
    spring(head, monkeypatch)
    error = furthest(sampled(head, golden), said(golden, "raw_sample"))
    if size is None:  # of this one the README gives no size
        assert error > 100 * BOUND
    else:
        assert error == pytest.approx(size, rel=0.06)


def test_traps_that_are_options(golden: dict[str, np.ndarray]) -> None:
    raw = said(golden, "raw_sample")
    assert furthest(sampled(golden_head(guidance=1.0), golden), raw) == pytest.approx(
        0.14, rel=0.06
    )
    assert furthest(sampled(golden_head(steps=5), golden), raw) == pytest.approx(0.26, rel=0.06)


# --- any number of steps


def test_steps_that_are_visited() -> None:
    assert spaced(1) == (50,)
    assert spaced(2) == (0, 50)
    assert spaced(100) == tuple(range(100))
    for count in range(1, 101):
        found = spaced(count)
        assert len(found) == count and sorted(set(found)) == list(found) and found[-1] < 100
        strides = {later - earlier for earlier, later in itertools.pairwise(found)}
        assert max(strides, default=0) - min(strides, default=0) <= 1
    assert visited("ddpm", None) == tuple(range(100)) and len(visited("ddim", None)) == 10
    for count in (0, 101):
        with pytest.raises(ValueError, match="denoising steps: expected 1 to 100"):
            spaced(count)
    with pytest.raises(ValueError, match="ddpm takes all 100"):
        visited("ddpm", 10)
    with pytest.raises(ValueError, match="expected ddim or ddpm"):
        visited("dpm", None)  # type: ignore[arg-type]


# --- denoising by a network that knows the data


def knowing(head: DiffusionHead, mean: float, deviation: float) -> DiffusionHead:
    """The head with the ε that is right for data N(mean, deviation²), whatever is told."""
    table = kept_signal()

    def right(noisy: Tensor, step: int, condition: Tensor) -> Tensor:
        kept = float(table[step])
        whole = kept * deviation**2 + 1 - kept  # the variance of what is seen
        return (noisy - kept**0.5 * mean) * (1 - kept) ** 0.5 / whole

    head.guided = right  # type: ignore[method-assign]
    return head


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 7), ("ddim", 100), ("ddpm", None)])
def test_denoising_arrives_at_the_one_chunk_that_there_is(
    sampler: action_dit.Sampler, steps: int | None
) -> None:
    head = DiffusionHead(8, 16, 7, hidden=8, depth=1, heads=2, sampler=sampler, steps=steps)
    found = knowing(head, 0.3, 0.0)(torch.zeros(2, 8))
    torch.testing.assert_close(found, torch.full((2, 16, 7), 0.3), atol=2e-4, rtol=0)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_denoising_gives_the_spread_of_the_data(sampler: action_dit.Sampler) -> None:
    head = DiffusionHead(8, 200, 50, hidden=8, depth=1, heads=2, sampler=sampler, steps=None)
    if sampler == "ddim":
        head.visited = spaced(100)
    found = knowing(head, -0.4, 0.5)(torch.zeros(1, 8))
    assert float(found.mean()) == pytest.approx(-0.4, abs=0.02)
    assert float(found.std()) == pytest.approx(0.5, abs=0.02)


def test_a_step_of_ddpm_is_what_bayes_says() -> None:
    """q(x before | x here, x₀) from its prior and likelihood, not from the formula that is used."""
    head = DiffusionHead(8, 1, 1, hidden=8, depth=1, heads=2, sampler="ddpm")
    table = kept_signal()
    for index in (1, 30, 99):
        here, before = float(table[index]), float(table[index - 1])
        clean, noisy = 0.7, -0.2
        # x before | x₀ has mean √ᾱ x₀; x here | x before has mean √(ᾱ here / ᾱ before) x before.
        gain = math.sqrt(here / before)
        precision = 1 / (1 - before) + gain**2 / (1 - here / before)
        mean = math.sqrt(before) * clean / (1 - before) + gain * noisy / (1 - here / before)
        mean /= precision
        head.noise[index] = 0.0
        still = head._posterior(
            torch.tensor([[[clean]]]), torch.tensor([[[noisy]]]), here, before, index
        )
        assert float(still) == pytest.approx(mean, rel=1e-4)
        head.noise[index] = 1.0
        moved = head._posterior(
            torch.tensor([[[clean]]]), torch.tensor([[[noisy]]]), here, before, index
        )
        assert float(moved - still) == pytest.approx(precision**-0.5, rel=1e-4)


# --- the loss


def published_loss(head: DiffusionHead, told: Tensor, actions: Tensor) -> Tensor:
    """Of one batch, all of it valid, as the paper has it: drawn in the same order."""
    clean = torch.cat([actions] * head.repeated)
    noise = torch.randn_like(clean)
    steps = torch.randint(0, 100, (len(clean),))
    drawn = (
        torch.rand(len(clean)) < head.dropout if head.training else torch.zeros(len(clean)).bool()
    )
    table = torch.from_numpy(kept_signal()).float()[steps]
    total = torch.zeros(())
    for row in range(len(clean)):
        who = head.net.z_embedder.uncondition[0] if drawn[row] else told[row % len(told)]
        noisy = table[row].sqrt() * clean[row] + (1 - table[row]).sqrt() * noise[row]
        seen = head.net(noisy[None], steps[row : row + 1], who[None])
        total = total + (seen - noise[row]).square().mean()
    return total / len(clean)


@pytest.mark.parametrize("training", [True, False])
def test_loss_is_the_published_one(golden: dict[str, np.ndarray], training: bool) -> None:
    head = golden_head(repeated=3, dropout=0.4).train(training)
    told = 5 * torch.randn(2, 64)  # far apart: who is told what must matter
    actions = torch.stack([said(golden, "raw_sample", 0), said(golden, "raw_sample", 1)])
    torch.manual_seed(5)
    expected = published_loss(head, told, actions)
    torch.manual_seed(5)
    found = head.loss(told, actions, torch.ones(2, 16))
    assert found.shape == (2,)
    torch.testing.assert_close(found.mean(), expected)


def test_dropout_tells_nothing_and_only_while_training() -> None:
    head = DiffusionHead(8, 4, 3, hidden=8, depth=1, heads=2, dropout=1.0)
    actions = torch.randn(2, 4, 3)

    def loss(told: Tensor) -> Tensor:
        torch.manual_seed(0)
        return head.loss(told, actions, torch.ones(2, 4))

    assert torch.equal(loss(torch.zeros(2, 8)), loss(torch.ones(2, 8)))
    head.eval()
    assert not torch.equal(loss(torch.zeros(2, 8)), loss(torch.ones(2, 8)))


def test_padding_counts_for_nothing_and_is_seen_by_nobody() -> None:
    head = DiffusionHead(8, 4, 3, hidden=8, depth=2, heads=2, repeated=2)
    valid = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0]])

    def loss(past: float) -> Tensor:
        torch.manual_seed(0)
        actions = torch.full((2, 4, 3), 0.2)
        actions[:, 2:] = past
        return head.loss(torch.ones(2, 8), actions, valid)

    assert torch.equal(loss(0.0), loss(9.0))
    assert loss(0.0)[1] == 0 and loss(0.0)[0] > 0
    loss(0.0).sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_answers_are_repeatable_and_by_the_seed() -> None:
    head = DiffusionHead(8, 4, 3, hidden=8, depth=1, heads=2, seed=3)
    torch.randn(5)
    again = DiffusionHead(8, 4, 3, hidden=8, depth=1, heads=2, seed=3)
    other = DiffusionHead(8, 4, 3, hidden=8, depth=1, heads=2, seed=4)
    assert torch.equal(head.noise, again.noise) and not torch.equal(head.noise, other.noise)
    assert "noise" not in head.state_dict()
