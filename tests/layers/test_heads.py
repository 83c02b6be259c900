"""Action heads: bins and primitives against the codec, offsets that stay where they may, and what a
trace says of logits."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_policy

from armlet.data.codec import Bins, Codebook
from armlet.layers.heads import HEADS, BinHead, CodebookHead, RegressionHead
from armlet.policies.vla import VLA, from_json
from armlet.robot.observation import Observation
from armlet.robot.spec import ActionSpec
from armlet.training.learner import Learner

SPEC = ActionSpec(
    ("dx", "dy", "dz", "gripper"),
    "delta",
    "none",
    (-1.0,) * 4,
    (1.0,) * 4,
    (3,),
    -1.0,
    1.0,
    10,
    0.05,
)
BOOK = Codebook.axes(SPEC)
OPTIONS = {"primitives": BOOK.array.tolist(), "gripper": 3}
WIDTH, CHUNK = 8, 3


def make(**options) -> CodebookHead:
    torch.manual_seed(0)
    head = CodebookHead(WIDTH, CHUNK, 4, **OPTIONS, **options)
    if head.offset is not None:
        torch.nn.init.normal_(head.offset.weight, std=2.0)
    return head


def policy(head: str, options: dict | None = None) -> VLA:
    base = make_policy()
    network = dataclasses.replace(base.network, head=head, head_options=options or {})
    return VLA(network, base.cameras, base.body).eval()


# --- every head
# -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_regression_is_the_absolute_error() -> None:
    head = RegressionHead(WIDTH, CHUNK, 4)
    condition, actions, valid = (
        torch.randn(2, WIDTH),
        torch.randn(2, CHUNK, 4),
        torch.tensor([[1.0, 1, 1], [1, 0, 0]]),
    )
    error = (head(condition) - actions).abs().mean(-1)
    torch.testing.assert_close(
        head.loss(condition, actions, valid), torch.stack([error[0].mean(), error[1, 0]])
    )


@pytest.mark.parametrize("name", HEADS)
def test_a_heads_loss_is_the_mean_over_the_steps_that_there_are(name: str) -> None:
    """The same as that of a chunk of these steps alone, whatever stands in the others; nothing
    where there are none."""
    options = {"codebook": {**OPTIONS, "refine": True}, "arm_gripper": {"gripper_weight": 0.5}}.get(
        name, {}
    )
    torch.manual_seed(0)
    head = HEADS[name](32, CHUNK, 4, **options)
    condition, actions = torch.randn(3, 32 * head.vectors), torch.rand(3, CHUNK, 4) * 2 - 1
    valid = torch.tensor([[1.0, 1, 1], [1, 1, 0], [0, 0, 0]])

    def loss(said: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)  # a flow's noise
        return head.loss(condition, said, counted)

    single = torch.stack(
        [
            loss(actions, F.one_hot(torch.tensor([step] * 3), CHUNK).float())
            for step in range(CHUNK)
        ],
        1,
    )
    spoiled = torch.where(valid[..., None] > 0, actions, 0.9)
    heard = loss(actions, valid)
    if name != "flow":  # whose steps see one another
        torch.testing.assert_close(loss(spoiled, valid), heard)
    if name == "diffusion":  # a step alone is answered otherwise than beside others
        assert float(heard[2].detach()) == 0
        return
    torch.testing.assert_close(
        heard, torch.stack([single[0].mean(), single[1, :2].mean(), torch.zeros(())])
    )


def test_a_gripper_that_is_refined_opens_by_a_number_and_stays_on_its_side() -> None:
    torch.manual_seed(0)
    head = CodebookHead(32, CHUNK, 4, **{**OPTIONS, "refine": True, "refine_gripper": True})
    (gripper,) = head.grippers
    condition = torch.randn(64, 32)
    open_and_closed = head.primitives[:, gripper].unique()
    middle = open_and_closed.mean()
    assert torch.equal(head(condition)[..., gripper].unique(), open_and_closed), (
        "offsets begin at 0"
    )
    torch.nn.init.normal_(head.offset.weight, std=5.0)
    chosen = head.logits(condition).argmax(-1)
    found, whole = head(condition)[..., gripper], head.primitives[chosen][..., gripper]
    assert len(found.unique()) > 20, "a number, and not one of two"
    assert bool(((found - middle) * (whole - middle) >= 0).all()), "as open or closed as chosen"
    half = (open_and_closed[1] - open_and_closed[0]) / 2
    torch.testing.assert_close((found - whole).abs().max(), half, rtol=1e-2, atol=0)
    # The loss hears how far the fingers are open, and only where they are refined.
    actions = head.primitives[chosen].clone()
    other = actions.clone()
    other[..., gripper] = middle + 0.6 * (other[..., gripper] - middle)
    valid = torch.ones(64, CHUNK)
    assert not torch.allclose(
        head.loss(condition, actions, valid), head.loss(condition, other, valid)
    )
    with pytest.raises(ValueError, match="refine_gripper has no effect without refine"):
        CodebookHead(32, CHUNK, 4, **{**OPTIONS, "refine_gripper": True})


# --- bins
# ---------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), bins=st.sampled_from([2, 8, 256]))
def test_the_bin_head_and_the_codec_count_the_same_bins(seed, bins) -> None:
    torch.manual_seed(seed)
    head, codec = BinHead(WIDTH, CHUNK, 4, bins=bins), Bins.from_spec(SPEC, bins=bins)
    condition, actions = torch.randn(5, WIDTH), torch.rand(5, CHUNK, 4) * 2.4 - 1.2
    logits, valid = head.logits(condition), torch.ones(5, CHUNK)
    assert torch.allclose(
        head(condition), torch.from_numpy(codec.decode(logits.argmax(-1).numpy()))
    )
    target = torch.from_numpy(codec.encode(actions.numpy(), clip=True))
    wanted = (
        F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none")
        .view(5, -1)
        .mean(1)
    )
    assert torch.allclose(head.loss(condition, actions, valid), wanted, atol=1e-5)


# --- codebook
# -----------------------------------------------------------------------------------------------


def test_the_codebook_head_decides_on_primitives_and_learns_the_nearest() -> None:
    head = make()
    condition, actions = torch.randn(5, WIDTH), torch.rand(5, CHUNK, 4) * 2 - 1
    logits = head.logits(condition)
    assert logits.shape == (5, CHUNK, 24)
    assert np.array_equal(head(condition).detach().numpy(), BOOK.decode(logits.argmax(-1).numpy()))
    target = torch.from_numpy(BOOK.encode(actions.numpy()))
    each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(5, CHUNK)
    assert torch.allclose(head.loss(condition, actions, torch.ones(5, CHUNK)), each.mean(1))
    valid = torch.tensor([[1.0, 0, 0]] * 5)
    assert torch.allclose(head.loss(condition, actions, valid), each[:, 0])


def test_at_first_refining_changes_nothing() -> None:
    torch.manual_seed(0)
    head = CodebookHead(WIDTH, CHUNK, 4, **OPTIONS, refine=True)
    condition = torch.randn(5, WIDTH)
    assert np.array_equal(
        head(condition).detach().numpy(), BOOK.decode(head.logits(condition).argmax(-1).numpy())
    )


@given(reach=st.floats(0.01, 2), seed=st.integers(0, 10**6))
def test_offsets_stay_within_reach_and_off_the_gripper(reach, seed) -> None:
    head = make(refine=True, reach=reach)
    torch.manual_seed(seed)
    condition = 3 * torch.randn(6, WIDTH)
    offsets = head(condition) - head.primitives[head.logits(condition).argmax(-1)]
    assert offsets.abs().max() <= reach * (1 + 1e-5) + 1e-6 and offsets[..., :3].abs().min() > 0
    assert (offsets[..., 3] == 0).all()


def test_the_offset_is_the_chosen_primitive_s_own() -> None:
    head = make(refine=True)
    condition = torch.randn(1, WIDTH)
    made = []
    for chosen in (0, 7):
        with torch.no_grad():
            head.choose.weight.zero_()
            head.choose.bias.copy_(F.one_hot(torch.tensor(chosen), 24).float().repeat(CHUNK))
        made.append(head(condition) - head.primitives[chosen])
    assert not torch.allclose(made[0], made[1])


def test_refinement_learns_what_primitives_leave_over() -> None:
    """Constant actions between the primitives: chosen alone they cannot be named, refined they
    can."""
    torch.manual_seed(1)
    condition, actions = (
        torch.ones(4, WIDTH),
        torch.tensor([0.6, -0.3, 0.1, 1.0]).expand(4, CHUNK, 4),
    )
    valid, left = torch.ones(4, CHUNK), {}
    for refine in (False, True):
        head = CodebookHead(WIDTH, CHUNK, 4, **OPTIONS, refine=refine)
        optimiser = torch.optim.Adam(head.parameters(), 1e-3)
        for _ in range(200):
            loss = head.loss(condition, actions, valid).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        left[refine] = float((head(condition) - actions).abs().max().detach())
    assert left[False] > 0.3 and left[True] < 0.05


def test_the_loss_asks_for_a_primitive_on_the_gripper_s_side_though_another_is_nearer() -> None:
    head = CodebookHead(WIDTH, CHUNK, 4, primitives=[[1.0, 0, 0, -1], [-1.0, 0, 0, 1]], gripper=3)
    actions = torch.tensor([0.9, 0.0, 0.0, 0.1]).expand(1, CHUNK, 4)
    head.loss(torch.zeros(1, WIDTH), actions, torch.ones(1, CHUNK)).backward()
    assert (head.choose.bias.grad.view(CHUNK, 2).sign() == torch.tensor([1, -1])).all()


def test_refinement_is_judged_on_the_nearest_primitive_whatever_is_chosen() -> None:
    """A fresh head has offsets of 0, so what is added to the cross-entropy is what the codec leaves
    over."""
    torch.manual_seed(0)
    plain, refined = (
        CodebookHead(WIDTH, CHUNK, 4, **OPTIONS),
        CodebookHead(WIDTH, CHUNK, 4, **OPTIONS, refine=True),
    )
    refined.load_state_dict(
        plain.state_dict()
        | {name: value for name, value in refined.state_dict().items() if "offset" in name}
    )
    condition, actions, valid = (
        torch.randn(5, WIDTH),
        torch.rand(5, CHUNK, 4) * 2 - 1,
        torch.ones(5, CHUNK),
    )
    left = np.abs(BOOK.decode(BOOK.encode(actions.numpy())) - actions.numpy())[..., :3].sum(
        (1, 2)
    ) / (4 * CHUNK)
    added = refined.loss(condition, actions, valid) - plain.loss(condition, actions, valid)
    assert np.allclose(added.detach(), left, atol=1e-5)


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(24, 4\), expected \(n, 5\)"):
        CodebookHead(WIDTH, CHUNK, 5, **OPTIONS)
    with pytest.raises(ValueError, match="is gripper the right dimension"):
        CodebookHead(WIDTH, CHUNK, 4, **(OPTIONS | {"gripper": 0}))


# --- in a policy
# --------------------------------------------------------------------------------------------


def observation() -> Observation:
    images = {"scene": np.zeros((24, 24, 3), np.uint8), "wrist": np.zeros((16, 16, 3), np.uint8)}
    return Observation(
        images, np.zeros(4, np.float32), "touch the red cube", np.zeros(4, np.float32)
    )


@pytest.mark.parametrize(
    ("head", "options", "shape"),
    [("bins", {"bins": 16}, (1, 3, 4, 16)), ("codebook", OPTIONS, (1, 3, 24))],
)
def test_a_trace_has_the_logits_of_a_head_that_chooses(head, options, shape) -> None:
    made = policy(head, options)
    trace = Learner(made).eval()(made.prepare([observation()]), ["logits", "condition"])
    assert trace["logits"].shape == shape
    assert torch.equal(trace["logits"], made.head.logits(trace["condition"]))


@pytest.mark.parametrize("head", sorted(set(HEADS) - {"bins", "codebook"}))
def test_logits_of_a_head_that_names_numbers_are_an_error_naming_it(head) -> None:
    made = policy(head)
    with pytest.raises(KeyError, match=rf"{type(made.head).__name__} has no signal \['logits'\]"):
        Learner(made).eval()(made.prepare([observation()]), ["logits"])


def test_primitives_come_back_with_the_description_alone() -> None:
    made = policy("codebook", OPTIONS | {"refine": True})
    again = from_json(json.loads(json.dumps(made.to_json())), made.body.tokenizer)
    assert (
        torch.equal(again.head.primitives, made.head.primitives) and again.head.offset is not None
    )
    again.load_state_dict(made.state_dict())
    assert np.array_equal(again.eval().infer(observation()), made.infer(observation()))


@pytest.mark.parametrize("kind", list(HEADS))
def test_padding_reaches_neither_the_loss_nor_a_gradient(kind: str) -> None:
    """Past the end of an episode stands anything: another chunk there changes nothing, forward and
    backward."""
    options = {"codebook": OPTIONS, "arm_gripper": {"gripper": 3}}
    torch.manual_seed(0)
    head = HEADS[kind](32, 5, 4, **options.get(kind, {}))
    for parameter in head.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    condition, actions = torch.randn(4, 32 * head.vectors), torch.rand(4, 5, 4) * 2 - 1
    valid = torch.ones(4, 5)
    valid[:, 3:] = 0
    found = []
    for padding in (0.0, 1.0):
        actions[:, 3:] = padding
        torch.manual_seed(1)
        read = condition.clone().requires_grad_()
        loss = head.loss(read, actions, valid)
        (gradient,) = torch.autograd.grad(loss.sum(), read)
        found.append((loss.detach(), gradient))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)
    nothing = head.loss(condition, actions, torch.zeros(4, 5))
    assert nothing.isfinite().all()
