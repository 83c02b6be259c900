"""A student with a lighter head: one step is what the teacher's own velocity says at its noise, all but
the head stays the teacher's, and what would have no effect is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TEXTS, identity

from armlet.benchmarks.tabletop import Tabletop
from armlet.data.text import train_tokenizer
from armlet.layers.heads import FlowHead, RegressionHead
from armlet.lineage import is_finished
from armlet.policies.checkpoint import (
    load_policy,
    policy_fingerprint,
    read_provenance,
    save_policy,
)
from armlet.policies.contract import Backbone, Body, Student
from armlet.policies.layer_search import LayerSearch
from armlet.policies.lighter import LighterHead
from armlet.policies.routed import Routing
from armlet.policies.students import FirstK, OtherNetwork
from armlet.policies.vla import VLA, VLANetwork
from armlet.recipes.flagship import MatchEndpoint
from armlet.shorten import main as shorten
from armlet.types import Batch

SIDES = {"scene": 16, "wrist": 16}
HEADS: dict[str, dict[str, Any]] = {
    "flow": {"steps": 10, "hidden": 64, "blocks": 2},
    "diffusion": {"hidden": 32, "depth": 1},
    "regression": {},
}


def teacher(head: str = "flow") -> VLA:
    torch.manual_seed(0)
    network = VLANetwork(
        width=16,
        depth=3,
        heads=2,
        chunk=3,
        vision_channels=4,
        strides=dict.fromkeys(SIDES, 8),
        head=head,
        head_options=HEADS[head],
    )
    body = Body(Tabletop().action_spec, identity(4), identity(4), train_tokenizer(TEXTS))
    policy = network.build(body, SIDES).eval()
    for name, parameter in policy.head.named_parameters():
        if "modulation" in name:  # which begins at nothing
            torch.nn.init.normal_(parameter, std=0.2)
    return policy


def moments(policy: VLA, count: int = 5) -> Batch:
    draw = torch.Generator().manual_seed(1)
    text = torch.full((count, policy.text_tokens), 5)
    return Batch(
        images={
            name: torch.rand(count, 3, side, side, generator=draw) for name, side in SIDES.items()
        },
        text=text,
        text_mask=torch.ones_like(text, dtype=torch.bool),
        state=torch.randn(count, 4, generator=draw),
        previous_action=torch.zeros(count, 4),
        actions=torch.rand(count, 3, 4, generator=draw),
        actions_valid=torch.ones(count, 3, dtype=torch.bool),
    )


def one_step_by_hand(policy: VLA, head: FlowHead, batch: Batch) -> torch.Tensor:
    """Euler's method in one step: the noise, and the velocity there at time 0, by what the policy's
    layers say."""
    condition = policy._condition(policy.run_layers(policy.embed(batch), batch))
    noise = head.noise.expand(len(batch), -1, -1)
    return noise + head.velocity(noise, torch.zeros(len(batch)), condition)


@torch.no_grad()
def test_one_step_is_the_teachers_velocity_at_its_own_noise(tmp_path) -> None:
    whole = teacher()
    batch = moments(whole)
    before = whole(batch)
    student = LighterHead(FirstK(2)).build(whole)
    assert isinstance(student, VLA) and student.loop is not None and student.loop.times == 1
    by_hand = one_step_by_hand(student, whole.head, batch)
    assert torch.equal(student(batch), by_hand)
    theirs = whole.keep_layers((0, 1)).state_dict()
    assert all(torch.equal(theirs[name], each) for name, each in student.state_dict().items())
    assert torch.equal(whole(batch), before) and whole.loop.times == 10, "the teacher stays"
    save_policy(student, tmp_path / "student")
    assert torch.equal(load_policy(tmp_path / "student")(batch), by_hand)


@torch.no_grad()
def test_other_heads_begin_as_they_can_and_all_else_is_the_teachers() -> None:
    whole = teacher()
    batch = moments(whole)
    narrow = LighterHead(FirstK(3), hidden=32, blocks=1).build(whole)
    assert isinstance(narrow.head, FlowHead) and len(narrow.head.blocks) == 1
    assert narrow.head.enter.out_features == 32 and narrow(batch).shape == (5, 3, 4)
    outright = LighterHead(FirstK(3), steps=None, head="regression").build(whole)
    assert isinstance(outright.head, RegressionHead) and outright.loop is None
    for student in (narrow, outright):
        for name, tensor in whole.state_dict().items():
            if not name.startswith("head."):
                assert torch.equal(student.state_dict()[name], tensor), name
    routed = LighterHead(Routing(budget=0.5), shortcut=True, steps=2).build(whole)
    assert routed.inner.head.steps == 2 and routed.inner.head.span is not None
    # Guided as CogACT's, its network is asked twice a step; unguided once.
    diffusing = LighterHead(FirstK(3), guidance=1.0).build(teacher("diffusion"))
    assert diffusing.loop.times == 1 and diffusing.head.guidance == 1
    asked = []
    diffusing.head.net.register_forward_hook(lambda *_: asked.append(1))
    assert diffusing(batch).shape == (5, 3, 4) and len(asked) == 1


@pytest.mark.parametrize("head", ["flow", "diffusion"])
def test_its_end_is_taught_through_the_steps_that_it_has(head: str) -> None:
    """One step from the noise learns where ten arrive; no loss of the head itself is asked."""
    whole = teacher(head)
    batch = moments(whole)
    with torch.no_grad():
        ends = whole(batch)
    student = LighterHead(FirstK(3), guidance=1.0 if head == "diffusion" else None).build(whole)
    objective = MatchEndpoint(expert=0, condition=0)
    trained = student.head.parameters()
    optimiser = torch.optim.AdamW(trained, lr=3e-3)
    errors = []
    for _ in range(60):
        terms = objective({"actions": student(batch)}, {"actions": ends}, batch)
        errors.append(float(terms["teacher"].detach()))
        optimiser.zero_grad()
        sum(terms.values()).backward()
        optimiser.step()
    assert errors[-1] < errors[0] / 4


def test_layers_are_searched_with_the_teachers_own_head() -> None:
    whole = teacher()
    student = LighterHead(LayerSearch(2))
    assert student.reads == {"actions"} and student.looks_at == LayerSearch(2).looks_at
    chosen, found = student.choose(whole, moments(whole))
    by_itself, alone = LayerSearch(2).choose(whole, moments(whole))
    assert chosen == LighterHead(by_itself) and found == alone
    assert len(chosen.build(whole).layers) == 2


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"steps": None}, "changes nothing of the head"),
        ({"hidden": 40}, "hidden is 40, expected a multiple of 32"),
        ({"head": "regression"}, "names the actions outright, and takes no steps"),
        ({"student": OtherNetwork(VLANetwork())}, "around OtherNetwork has no effect"),
        ({"steps": 0}, "steps"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], why: str) -> None:
    told: dict[str, Any] = {"student": FirstK(2), **options}
    with pytest.raises(ValueError, match=why):
        LighterHead(**told)


@pytest.mark.parametrize(
    ("head", "student", "why"),
    [
        ("regression", LighterHead(FirstK(2)), "'regression' has no steps: its options are hidden"),
        ("diffusion", LighterHead(FirstK(2), hidden=64), "DiffusionHead cannot be made narrower"),
        ("flow", LighterHead(FirstK(2), guidance=1.0), "'flow' has no guidance"),
        ("flow", LighterHead(FirstK(2), steps=10), "the teacher's head has steps 10 already"),
        ("flow", LighterHead(FirstK(2), steps=3, shortcut=True), "steps is 3, and a head with"),
    ],
)
def test_what_the_teacher_does_not_have_is_said(head: str, student: Student, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        student.build(teacher(head))
    routed = Routing(budget=0.5).build(teacher())
    with pytest.raises(ValueError, match="has no action head that could be made lighter"):
        student.build(routed)


def test_an_end_that_is_the_teachers_costs_nothing_and_one_beside_it_its_distance() -> None:
    batch = moments(teacher())
    expert, _ = batch.targets()
    ends = {"actions": expert, "condition": torch.ones(5, 16)}
    beside = {"actions": expert + 0.5, "condition": torch.ones(5, 16)}
    objective = MatchEndpoint(teacher=2.0)
    same = objective(ends, ends, batch)
    assert same.keys() == {"expert", "teacher", "condition"}
    assert sum(same.values()) == pytest.approx(0, abs=1e-6)
    found = objective(ends, beside, dataclasses.replace(batch, actions=expert + 0.25))
    assert float(found["teacher"]) == pytest.approx(1.0)
    assert float(found["expert"]) == pytest.approx(0.25)


def test_a_teacher_whose_ends_weigh_nothing_is_not_asked_for_them() -> None:
    batch = moments(teacher())
    deaf = MatchEndpoint(teacher=0.0)
    assert (deaf.needs, deaf.wants) == ({"condition"}, {"actions", "condition"})
    read = deaf(
        {"actions": batch.actions, "condition": torch.ones(5, 16)},
        {"condition": torch.ones(5, 16)},
        batch,
    )
    assert read.keys() == {"expert", "condition"}
    alone = MatchEndpoint(teacher=0.0, condition=0.0)
    assert (alone.needs, alone.wants) == (frozenset(), {"actions"})
    assert alone({"actions": batch.actions}, {}, batch).keys() == {"expert"}


# --- untrained: fewer steps, and looking again later
# -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_one_step_is_what_the_velocity_says_at_the_noise(tmp_path) -> None:
    policy = teacher()
    save_policy(policy, tmp_path / "teacher")
    printed = shorten(str(tmp_path / "teacher"), out=tmp_path / "one", steps=1)
    assert printed == str(tmp_path / "one")
    batch = moments(policy)
    found = load_policy(tmp_path / "one")(batch)
    torch.testing.assert_close(
        found, one_step_by_hand(policy, policy.head, batch), rtol=1e-5, atol=1e-5
    )


def test_a_shortened_policy_says_of_which_it_was_made(tmp_path) -> None:
    question = {"data": "d", "seed": 1}
    save_policy(teacher(), tmp_path / "teacher", provenance={"question": question})
    shorten(str(tmp_path / "teacher"), out=tmp_path / "one", steps=1)
    shorten(str(tmp_path / "one"), out=tmp_path / "student", execute=3)
    told = read_provenance(tmp_path / "student")
    first, second = (
        {"policy": str(tmp_path / name), "fingerprint": policy_fingerprint(tmp_path / name)}
        for name in ("teacher", "one")
    )
    assert told == {
        "question": question,
        "shortened": [{**first, "steps": 1}, {**second, "execute": 3}],
    }
    with pytest.raises(ValueError, match="`armlet shorten` changed since it was trained"):
        is_finished(tmp_path / "student", question, fixes="give another --out")


def test_in_fp16_it_is_half_as_large_and_decides_nearly_the_same(tmp_path) -> None:
    policy = teacher()
    save_policy(policy, tmp_path / "teacher")
    for weights in ("fp32", "fp16"):
        shorten(str(tmp_path / "teacher"), out=tmp_path / weights, execute=3, weights=weights)
    sizes = [(tmp_path / each / "model.safetensors").stat().st_size for each in ("fp16", "fp32")]
    assert sizes[0] < 0.6 * sizes[1]
    batch = moments(policy)
    half, whole = (load_policy(tmp_path / each) for each in ("fp16", "fp32"))
    with torch.no_grad():
        torch.testing.assert_close(half(batch), whole(batch), rtol=0, atol=5e-3)
        assert not torch.equal(half(batch), whole(batch))
    assert read_provenance(tmp_path / "fp16")["shortened"][0]["weights"] == "fp16"


@pytest.mark.parametrize("routed", [False, True])
def test_another_execute_changes_nothing_that_is_decided(tmp_path, routed) -> None:
    policy: Backbone = teacher()
    if routed:
        policy = Routing(budget=0.5).build(policy).eval()
    save_policy(policy, tmp_path / "teacher")
    shorten(str(tmp_path / "teacher"), out=tmp_path / "later", execute=3)
    later = load_policy(tmp_path / "later")
    assert (policy.execute, later.execute) == (2, 3)
    batch = moments(teacher())
    with torch.no_grad():
        assert torch.equal(later(batch), policy(batch))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "nothing to change: give --steps"),
        ({"steps": 0}, "--steps is 0, expected 1 or more"),
        ({"execute": -1}, "--execute is -1, expected 1 or more"),
        ({"steps": 10}, "it decides in 10 denoising steps already"),
        ({"steps": 11}, "it decides in 10 denoising steps already, and 11 were asked for"),
        ({"execute": 2}, "it looks again after 2 actions already"),
        ({"execute": 4}, "execute is 4, and the policy decides 3 actions at a time"),
    ],
)
def test_a_policy_that_cannot_be_shortened_so_is_left_alone(tmp_path, asked, said) -> None:
    save_policy(teacher(), tmp_path / "teacher")
    with pytest.raises(ValueError, match=said):
        shorten(str(tmp_path / "teacher"), out=tmp_path / "made", **asked)
    assert not (tmp_path / "made").exists()


def test_a_head_without_steps_takes_no_fewer(tmp_path) -> None:
    save_policy(teacher("regression"), tmp_path / "teacher")
    with pytest.raises(ValueError, match="takes no denoising steps; only policies that denoise"):
        shorten(str(tmp_path / "teacher"), out=tmp_path / "made", steps=1)


def test_what_is_there_already_is_not_shortened_over(tmp_path) -> None:
    save_policy(teacher(), tmp_path / "teacher")
    shorten(str(tmp_path / "teacher"), out=tmp_path / "made", steps=1)
    before = (tmp_path / "made/config.json").read_bytes()
    with pytest.raises(FileExistsError):
        shorten(str(tmp_path / "teacher"), out=tmp_path / "made", steps=2)
    assert (tmp_path / "made/config.json").read_bytes() == before


def test_the_same_command_again_finds_it_done(tmp_path, capsys) -> None:
    save_policy(teacher(), tmp_path / "teacher")
    asked = {"out": tmp_path / "made", "steps": 1}
    shorten(str(tmp_path / "teacher"), **asked)
    before = (tmp_path / "made" / "config.json").stat().st_mtime_ns
    assert shorten(tmp_path / "teacher", **asked) == str(
        tmp_path / "made"
    )  # a path is a place, too
    assert (tmp_path / "made" / "config.json").stat().st_mtime_ns == before
    assert capsys.readouterr().err.endswith("made was shortened exactly so already\n")
    # Of another policy it is not the same.
    other = teacher()
    torch.nn.init.zeros_(other.words.weight)
    save_policy(other, tmp_path / "teacher")
    with pytest.raises(FileExistsError):
        shorten(str(tmp_path / "teacher"), **asked)
    # Nor is one that is damaged.
    shorten(str(tmp_path / "teacher"), out=tmp_path / "new", steps=1)
    weights = tmp_path / "new" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        shorten(str(tmp_path / "teacher"), out=tmp_path / "new", steps=1)


def test_killed_or_failing_it_leaves_nothing_and_can_be_asked_again(tmp_path, monkeypatch) -> None:
    save_policy(teacher(), tmp_path / "teacher")

    def full(*asked, **told) -> None:
        (Path(asked[1]) / "half").touch()
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("armlet.shorten.save_policy", full)
        with pytest.raises(OSError, match="no space"):
            shorten(str(tmp_path / "teacher"), out=tmp_path / "made", steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]
    shorten(str(tmp_path / "teacher"), out=tmp_path / "made", steps=1)


def test_weights_are_kept_as_they_are(tmp_path) -> None:
    for weights in ("fp16", "fp32"):
        save_policy(teacher(), tmp_path / weights, weights=weights)
        shorten(tmp_path / weights, out=tmp_path / f"{weights}_later", execute=3)
        sizes = [
            (tmp_path / name / "model.safetensors").stat().st_size
            for name in (weights, f"{weights}_later")
        ]
        assert sizes[0] == sizes[1]
        assert "weights" not in read_provenance(tmp_path / f"{weights}_later")["shortened"][0]


@torch.no_grad()
def test_a_router_around_it_stays(tmp_path) -> None:
    """One that runs every layer: the answers are those of the network without it."""
    policy = Routing(budget=1.0).build(teacher()).eval()
    save_policy(policy, tmp_path / "routed")
    save_policy(teacher(), tmp_path / "teacher")
    for name in ("routed", "teacher"):
        shorten(tmp_path / name, out=tmp_path / f"{name}_one", steps=1)
    routed = load_policy(tmp_path / "routed_one")
    batch = moments(teacher())
    everywhere = routed.along("1" * 3)
    torch.testing.assert_close(everywhere(batch), load_policy(tmp_path / "teacher_one")(batch))
    assert routed.loop.times == 1


@pytest.mark.parametrize(
    ("provenance", "said"),
    [
        (None, "config.json: provenance is null, expected an object"),
        (5, "config.json: provenance is 5, expected an object"),
        ({"shortened": "abc"}, 'provenance.shortened of config.json is "abc", expected a list'),
        ({"shortened": [5]}, "provenance.shortened of config.json is .5., expected a list"),
    ],
)
def test_a_damaged_provenance_is_named(tmp_path, provenance, said) -> None:
    save_policy(teacher(), tmp_path / "teacher")
    file = tmp_path / "teacher" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "provenance": provenance}))
    with pytest.raises(ValueError, match=said):
        shorten(tmp_path / "teacher", out=tmp_path / "made", steps=1)


def test_from_python_a_number_of_steps_is_a_whole_one(tmp_path) -> None:
    save_policy(teacher(), tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"--steps is 2\.0, expected 1 or more, a whole number"):
        shorten(tmp_path / "teacher", out=tmp_path / "made", steps=2.0)


def test_weights_that_are_no_numbers_are_not_called_too_large(tmp_path) -> None:
    policy = teacher()
    torch.nn.init.constant_(policy.words.weight, float("nan"))
    with pytest.raises(ValueError, match=r"words\.weight has weights that are NaN or infinite"):
        save_policy(policy, tmp_path / "teacher", weights="fp16")
