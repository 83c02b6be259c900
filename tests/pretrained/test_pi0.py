"""π0 and π0.5 from the files of LeRobot and openpi: the numbers that the originals computed, what
each mistake would do to them, and files that will not do."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import Line
from goldens.pi import Variant, actions_of, compare
from pretrained.pi_copies import (
    EMBEDDED,
    HERE,
    KINDS,
    LAYOUTS,
    LM_HEAD,
    VLM,
    as_openpi,
    copied,
    rewritten,
    said_of,
    variant_of,
)
from pretrained.pi_traps import OTHERS, SPRINGS
from safetensors.torch import load_file, save_file
from torch import Tensor

from armlet.policies.building import rebuild
from armlet.policies.checkpoint import load_policy, save_policy
from armlet.policies.contract import Pass
from armlet.policies.pretrained.files import Header, Tensors, match
from armlet.policies.pretrained.lerobot import Relative
from armlet.policies.pretrained.pi_files import names_of, sizes_of
from armlet.policies.pretrained.pi_network import Pi, boxed
from armlet.policies.routed import Routing
from armlet.training.losses import action_mse
from armlet.types import Batch


@pytest.fixture(params=LAYOUTS)
def variant(request: pytest.FixtureRequest) -> Variant:
    return variant_of(request.param)


def moved(variant: Variant, policy: Pi, right: Tensor) -> float:
    return float((actions_of(variant, policy, 10) - right).abs().max())


@pytest.fixture(scope="module")
def right() -> dict[str, Tensor]:
    """The actions of each that is right."""
    found = {}
    for layout in LAYOUTS:
        variant = variant_of(layout)
        found[layout] = actions_of(variant, variant.load(), 10)
    return found


def test_all_that_the_originals_computed(variant: Variant, tmp_path: Path) -> None:
    variant = copied(variant, tmp_path)
    as_openpi(variant)
    lines = list(compare(variant.layout, variant.folder))
    assert len(lines) > 40
    wrong = [str(line) for line in lines if not line.holds]
    assert not wrong


def test_a_difference_and_a_quantity_left_out_are_seen(variant: Variant, tmp_path: Path) -> None:
    variant = copied(variant, tmp_path)
    file = variant.folder / "outputs.safetensors"
    outputs = load_file(file)
    outputs["steps10.actions"] += 2e-4
    outputs["unheard_of"] = torch.zeros(1)
    save_file(outputs, file)
    failed: list[Line] = [
        line for line in compare(variant.layout, variant.folder) if not line.holds
    ]
    assert [line.name for line in failed] == ["steps10.actions", "quantities left out"]


CASES = [(layout, name) for layout in LAYOUTS for name in SPRINGS[layout]]


@pytest.mark.parametrize(("layout", "name"), CASES)
def test_each_mistake_moves_the_actions_as_far_as_it_did_in_the_original(
    layout: str, name: str, right: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = variant_of(layout)
    policy = variant.load()
    SPRINGS[layout][name](policy, monkeypatch)
    steps = getattr(policy, "steps_instead", 10)
    found = float((actions_of(variant, policy, steps) - right[layout]).abs().max())
    said = json.loads((variant.folder / "mistakes.json").read_text())["mistakes"][name]["max"]
    # The largest of these mistakes is so large that rounding moves it.
    assert found == pytest.approx(said, rel=0.05 if "RMSNorm" in name else 0.01), name
    assert found > 1e-3  # ten times what is allowed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_mistake_is_forgotten(layout: str) -> None:
    variant = variant_of(layout)
    said = json.loads((variant.folder / "mistakes.json").read_text())["mistakes"]
    without = OTHERS | {"everything sees everything (no block mask)"}  # of π0.5: no difference
    assert set(said) - set(SPRINGS[layout]) <= without


def test_with_both_there_the_embedding_is_read_and_not_the_head(
    variant: Variant, right: dict[str, Tensor], tmp_path: Path
) -> None:
    variant = copied(variant, tmp_path)
    tensors = load_file(variant.folder / "pretrained_model" / "model.safetensors")
    rewritten(variant, {EMBEDDED: None})  # the head alone: what stands for it then
    said = json.loads((variant.folder / "mistakes.json").read_text())["mistakes"]
    expected = said["lm_head taken for embed_tokens (equal only where tied)"]["max"]
    assert moved(variant, variant.load(), right[variant.layout]) == pytest.approx(
        expected, rel=0.01
    )
    rewritten(variant, {LM_HEAD: tensors[EMBEDDED]})  # tied, and saved once
    assert moved(variant, variant.load(), right[variant.layout]) == 0


def test_names_of_older_transformers_and_without_the_experts_head(
    variant: Variant, right: dict[str, Tensor], tmp_path: Path
) -> None:
    variant = copied(variant, tmp_path)
    file = variant.folder / "pretrained_model" / "model.safetensors"
    older = {}
    for name, tensor in load_file(file).items():
        if "gemma_expert.lm_head" in name:
            continue
        name = name.replace(f"{VLM}model.language_model.", f"{VLM}language_model.model.")
        name = name.replace(LM_HEAD, f"{VLM}language_model.lm_head.weight")
        name = name.replace(f"{VLM}model.vision_tower.vision_model.", f"{VLM}vision_tower.")
        older[name.replace(f"{VLM}model.multi", f"{VLM}multi")] = tensor
    save_file(older, file)
    assert moved(variant, variant.load(), right[variant.layout]) == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_real_ones_tensors_all_have_a_place_and_its_type(layout: str) -> None:
    folded = json.loads((HERE / layout / "full_keys.json").read_text())
    headers = {}
    for name, (count, dtype, shape) in folded.items():
        for layer in range(count):
            full = name.replace("#", str(layer))
            headers[full] = Header(tuple(shape), getattr(torch, dtype), Path("x"), full)
    tensors = Tensors(headers)
    sizes = sizes_of(tensors, layout, None, 32)
    assert (sizes["width"], sizes["expert_width"], sizes["depth"]) == (2048, 1024, 18)
    assert (sizes["head_dim"], sizes["vision_heads"], sizes["image"]) == (256, 16, 224)
    small = variant_of(layout).load()
    network = {**small.to_json()["network"], "sizes": sizes, "half": True}
    description = {**small.to_json(), "network": network}
    real = rebuild(description, small.body.tokenizer, empty=True)
    state = real.state_dict()
    own = {name: tuple(each.shape) for name, each in state.items()}
    assert all(each.is_meta for each in state.values())
    found = match(own, tensors, names_of(tensors))
    assert len(found.matched) + len(found.unused) == sum(each[0] for each in folded.values())
    assert len(found.unused) == 2  # the two heads
    for theirs, ours in found.matched:
        assert state[ours].dtype == headers[theirs].dtype, theirs
    # It also runs at that size; and whatever it makes on the way is where it is itself.
    batch = on_meta(with_targets(variant_of(layout), small))
    real = real.to("meta")
    run = real.run_layers(real.embed(batch), batch)
    assert real.decode(run, batch).shape == (2, 10, 7) and real.loss(run, batch).shape == (2,)
    assert run.state.hidden.shape[1:] == (2 * 256 + small.text_tokens, 2048)


def on_meta(batch: Batch) -> Batch:
    """The same without numbers, where a tensor that stands elsewhere is an error."""
    moved: dict[str, object] = {
        "images": {name: each.to("meta") for name, each in batch.images.items()}
    }
    for each in dataclasses.fields(batch):
        value = getattr(batch, each.name)
        if isinstance(value, Tensor):
            moved[each.name] = value.to("meta")
    return dataclasses.replace(batch, **moved)  # type: ignore[arg-type]


def test_saved_and_cut_it_answers_to_the_bit(variant: Variant, tmp_path: Path) -> None:
    policy = variant.load()
    seen = variant.observations(policy)[0]
    save_policy(policy, tmp_path / "whole")
    assert np.array_equal(load_policy(tmp_path / "whole").infer(seen), policy.infer(seen))
    cut = policy.keep_layers((0, 2))
    save_policy(cut, tmp_path / "cut")
    again = load_policy(tmp_path / "cut")
    assert np.array_equal(again.infer(seen), cut.infer(seen)) and again.kept_layers == (0, 2)
    assert not np.array_equal(cut.infer(seen), policy.infer(seen))


@pytest.mark.parametrize("plan", [(1, 0, 1), (0, 0, 1), (0, 0, 0)])
def test_skipped_layers_do_not_run_and_training_gives_the_same_bits(
    variant: Variant, plan: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = variant.load()
    routed = Routing().build(policy).eval()
    batch = routed.prepare(variant.observations(policy))
    logits = torch.tensor([3.0 if each else -3.0 for each in plan])
    monkeypatch.setattr(routed, "route", lambda start, told: logits.expand(len(told), -1))
    ran = []
    for index, pair in enumerate(routed.inner.pairs):
        pair.prefix.register_forward_hook(lambda *_, at=index: ran.append(("prefix", at)))
        pair.expert.register_forward_hook(lambda *_, at=index: ran.append(("expert", at)))
    decision = routed.decide(variant.observations(policy)[0])
    assert decision.gates == plan
    assert {at for _, at in ran} == {index for index, each in enumerate(plan) if each}
    assert len(ran) == sum(plan) * (1 + policy.network.steps)
    if any(plan):
        kept = policy.keep_layers(tuple(np.flatnonzero(plan).tolist()))
        assert np.array_equal(decision.actions, kept.infer(variant.observations(policy)[0]))
    with torch.no_grad():
        skipped = routed.decode(routed.run_layers(routed.embed(batch), batch), batch)
    wanted = logits.expand(len(batch), -1).clone().requires_grad_()
    monkeypatch.setattr(routed, "route", lambda start, told: wanted)
    masked = routed.decode(routed.run_layers(routed.embed(batch), batch), batch)
    assert torch.equal(masked, skipped)
    masked.sum().backward()
    assert (wanted.grad.abs().sum(0) > 0).all()


def test_samples_of_a_batch_take_routes_of_their_own(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = variant.load()
    routed = Routing().build(policy).eval()
    seen = variant.observations(policy)
    logits = torch.tensor([[3.0, -3.0, 3.0], [3.0, -3.0, -3.0]])
    monkeypatch.setattr(routed, "route", lambda start, told: logits[: len(told)])
    batch = routed.prepare(seen)
    with torch.inference_mode():
        run = routed.run_layers(routed.embed(batch), batch)
        together = routed.decode(run, batch)
    assert run.state.keys[1] is None
    for row, kept in enumerate(((0, 2), (0,))):
        alone = policy.keep_layers(kept)
        one = alone.prepare([seen[row]])
        with torch.inference_mode():
            expected = alone(one)[0]
        assert torch.allclose(together[row], expected, atol=1e-5)


def test_the_loss_is_the_papers_counting_valid_steps(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = variant.load()
    batch = with_targets(variant, policy)
    noise = torch.from_numpy(variant.inputs["train.noise"])
    time = torch.from_numpy(variant.inputs["train.time"])
    monkeypatch.setattr(torch, "randn_like", lambda like: noise)
    unscaled = (time - policy.network.time_offset) / policy.network.time_scale
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self, shape: unscaled)
    with torch.inference_mode():
        run = policy.run_layers(policy.embed(batch), batch)
        loss = policy.loss(run, batch)
        actions, valid = batch.targets()
        filled = policy.filled(actions, valid)
        errors = policy.errors(run, filled, noise, time)[..., : policy.dims]
        policy.network = dataclasses.replace(policy.network, count_padding=True)
        counted = policy.loss(run, batch)
    assert torch.allclose(loss[0], errors[0].mean(), rtol=1e-5)  # nothing is padding there
    assert torch.allclose(loss[1], errors[1, valid[1]].mean(), rtol=1e-5)
    assert torch.allclose(counted, errors.mean((1, 2)), rtol=1e-5)
    last = int(valid[1].sum()) - 1
    assert torch.equal(filled[1, last + 1, : policy.dims], actions[1, last])
    # Where nothing is padding it is what the original computed, to its own tolerance.
    expected = variant_outputs(variant)["train.loss_per_sample"]
    assert loss[0].item() == pytest.approx(float(expected[0]), rel=1e-5)


def variant_outputs(variant: Variant) -> dict[str, Tensor]:
    return load_file(variant.folder / "outputs.safetensors")


def with_targets(variant: Variant, policy: Pi) -> Batch:
    batch = policy.prepare(variant.observations(policy))
    state = variant.inputs["observation.state"][:, None]
    actions = torch.from_numpy(policy.inputs.normalised(variant.inputs["action"], state))
    valid = ~torch.from_numpy(variant.inputs["action_is_pad"])
    actions[~valid] = 0  # as `BatchMaker` has it
    return dataclasses.replace(batch, actions=actions, actions_valid=valid)


def test_gradients_reach_everything_that_decides(variant: Variant) -> None:
    policy = variant.load().train()
    batch = with_targets(variant, policy)
    run = policy.run_layers(policy.embed(batch), batch)
    trace = policy.signals(["condition"], batch, run)
    actions, valid = batch.targets()
    gap = action_mse(policy.decode(run, batch), actions, valid).sum()
    (policy.loss(run, batch).sum() + trace["condition"].sum() + gap).backward()
    unread = []
    for name, parameter in policy.named_parameters():
        if parameter.grad is None or not parameter.grad.abs().sum() > 0:
            unread.append(name)
    # After its last keys and values nobody reads the prefix.
    last = len(policy.layers) - 1
    after = rf"layers\.{last}\.prefix\.(self_attn\.[qo]_proj|mlp|post_attention)|norm\.weight"
    # A bias that all keys of a picture share moves no attention.
    same = r"vision\.encoder\.layers\.\d\.self_attn\.k_proj\.bias"
    assert [name for name in unread if not re.match(f"{after}|{same}", name)] == []


def test_a_batch_is_its_samples_one_by_one(variant: Variant) -> None:
    policy = variant.load()
    seen = variant.observations(policy)
    with torch.inference_mode():
        together = policy(policy.prepare(seen))
        for row, each in enumerate(seen):
            assert torch.allclose(policy(policy.prepare([each]))[0], together[row], atol=1e-5)


def test_a_decision_is_the_same_each_time_and_hangs_on_the_seed(variant: Variant) -> None:
    policy = variant.load()
    seen = variant.observations(policy)[0]
    first = policy.infer(seen)
    torch.randn(3)
    assert np.array_equal(variant.load().infer(seen), first)
    assert not np.array_equal(variant.load(seed=1).infer(seen), first)
    run = policy.run_layers(policy.embed(policy.prepare([seen])), policy.prepare([seen]))
    watched = policy.signals(["condition"], policy.prepare([seen]), run)
    assert watched["condition"].shape == (1, policy.condition_width)
    again = policy.decode(run, policy.prepare([seen]))  # its first step is that of the condition
    assert np.array_equal(policy.denormalise(again[0].detach().numpy()), first)


def test_what_is_seen_as_a_masked_camera_is_not_computed(variant: Variant, tmp_path: Path) -> None:
    variant = copied(variant, tmp_path)
    file = variant.folder / "pretrained_model" / "config.json"
    config = json.loads(file.read_text())
    empty = {"type": "VISUAL", "shape": [3, 56, 56]}
    config["input_features"]["observation.images.empty_camera_0"] = empty
    config["empty_cameras"] = 1
    file.write_text(json.dumps(config))
    policy = variant.load()
    assert list(policy.view.cameras) == ["front", "wrist"]
    expected = variant_of(variant.layout).load()
    seen = variant.observations(policy)[0]
    assert np.array_equal(policy.infer(seen), expected.infer(seen))


def test_boxed_pictures_are_in_the_middle_an_odd_pixel_below() -> None:
    picture = boxed(torch.full((1, 3, 4, 9), 0.75), 9, -1.0)  # 4 of 9 rows: 2 above, 3 below
    assert torch.equal(picture[0, 0, :, 0], torch.tensor([-1.0] * 2 + [0.5] * 4 + [-1.0] * 3))
    assert torch.equal(boxed(torch.ones(1, 3, 4, 9), 9, -3.0)[0, 0, 0], torch.full((9,), -3.0))


def test_actions_that_are_relative_to_the_state(variant: Variant, tmp_path: Path) -> None:
    """Of LeRobot's folder as its steps say, of openpi's as an option does."""
    variant = copied(variant, tmp_path)
    root = variant.folder / "pretrained_model"
    plain = variant.load()
    seen = variant.observations(plain)[1]
    absolute = plain.infer(seen)
    names = [*"abcde", "left_GRIPPER", "g"]
    for file, change in (
        ("policy_preprocessor.json", {"enabled": True, "action_names": names}),
        ("policy_postprocessor.json", {"enabled": True}),
    ):
        said = json.loads((root / file).read_text())
        for step in said["steps"]:
            if step["registry_name"] in (
                "relative_actions_processor",
                "absolute_actions_processor",
            ):
                step["config"].update(change)
        (root / file).write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"actions 6 are relative to the state.* has 6"):
        variant.load()  # `g`, the seventh, is not left out, and the state has six
    text = (root / "policy_preprocessor.json").read_text()
    (root / "policy_preprocessor.json").write_text(text.replace('"g"]', '"gripper"]'))
    policy = variant.load()
    assert policy.body.relative == policy.inputs.relative == (0, 1, 2, 3, 4)
    moved_by = policy.infer(seen) - absolute
    assert moved_by[:, :5] == pytest.approx(np.tile(seen.state[:5], (10, 1)), abs=1e-6)
    assert not moved_by[:, 5:].any()
    save_policy(policy, tmp_path / "saved")
    assert np.array_equal(load_policy(tmp_path / "saved").infer(seen), policy.infer(seen))
    kind = KINDS[variant.layout]
    cameras = {"base_0_rgb": "front", "left_wrist_0_rgb": "wrist"}
    openpi = as_openpi(variant)
    said_of_it = said_of(openpi, variant, missing=("right_wrist_0_rgb",), relative=(0, 3))
    other = kind.load(dataclasses.replace(said_of_it, cameras=cameras), None)
    without = said_of(openpi, variant, missing=("right_wrist_0_rgb",))
    usual = kind.load(dataclasses.replace(without, cameras=cameras), None)
    moved_by = other.infer(seen) - usual.infer(seen)
    assert moved_by[0, [0, 3]] == pytest.approx(seen.state[[0, 3]], abs=1e-6)
    assert not moved_by[:, [1, 2, 4, 5, 6]].any()
    # Its own way of fitting: the pictures reach the network in its size, as openpi's client does
    # it.
    assert other.prepare([seen]).images["front"].shape == (1, 3, 56, 56)


def test_without_names_lerobot_leaves_out_no_dimension() -> None:
    assert Relative(("gripper",), None).dims(3) == (0, 1, 2)
    assert Relative((), ("gripper",)).dims(2) == (0, 1)
    assert Relative(("Jaw", ""), ("x", "left_jaw")).dims(3) == (0, 2)


def test_in_half_precision_norms_stay_whole(variant: Variant, tmp_path: Path) -> None:
    policy = variant.load(precision="bf16")
    for name, parameter in policy.named_parameters():
        whole = any(
            part in name for part in ("norm", "vision.", "projector", "action_", "time_", "state_")
        )
        assert parameter.dtype == (torch.float32 if whole else torch.bfloat16), name
    seen = variant.observations(policy)[0]
    save_policy(policy, tmp_path / "half")
    assert np.array_equal(load_policy(tmp_path / "half").infer(seen), policy.infer(seen))


def test_what_a_student_learns_in_half_of_the_precision(variant: Variant) -> None:
    """As `distil` runs it: matrix products in bfloat16, a router in front."""
    routed = Routing().build(variant.load()).train()
    batch = with_targets(variant, variant.load())
    with torch.autocast("cpu", torch.bfloat16):
        run = routed.run_layers(routed.embed(batch), batch)
        made = routed.loss(run, batch).sum() + routed.decode(run, batch).sum()
    made.backward()
    assert made.dtype == torch.float32 and made.isfinite()


def test_plan_is_known_only_where_nobody_routes(variant: Variant) -> None:
    policy = variant.load()
    batch = policy.prepare(variant.observations(policy)[:1])
    run = policy.run_layers(policy.embed(batch), batch)
    assert isinstance(run, Pass) and run.plan == (1, 1, 1)
