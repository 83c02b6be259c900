"""π0 and π0.5 from the files of LeRobot and openpi: the numbers that the originals computed, what each
mistake would do to them, and files that will not do."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import Line
from goldens.pi import ROBOT, Variant, actions_of, compare
from pretrained.pi_traps import OTHERS, SPRINGS
from safetensors.torch import load_file, save_file
from torch import Tensor

from armlet.policies.checkpoint import load_policy, policy_fingerprint, save_policy
from armlet.policies.contract import Pass, rebuild
from armlet.policies.pretrained import kinds, pi0, pi05
from armlet.policies.pretrained.files import Header, Tensors, match
from armlet.policies.pretrained.lerobot import Relative
from armlet.policies.pretrained.pi_files import names_of, sizes_of
from armlet.policies.pretrained.pi_network import Pi, boxed
from armlet.policies.pretrained.said import Said
from armlet.policies.routed import Routing
from armlet.training.losses import action_mse
from armlet.types import Batch

HERE = Path(__file__).parent / "golden"
LAYOUTS = ("pi0", "pi05")
KINDS = {"pi0": pi0, "pi05": pi05}
VLM = "model.paligemma_with_expert.paligemma."
EMBEDDED = f"{VLM}model.language_model.embed_tokens.weight"
LM_HEAD = f"{VLM}lm_head.weight"


def variant_of(layout: str) -> Variant:
    return Variant.read(layout, HERE / layout / "A")


@pytest.fixture(params=LAYOUTS)
def variant(request: pytest.FixtureRequest) -> Variant:
    return variant_of(request.param)


def copied(variant: Variant, root: Path) -> Variant:
    """The same in a folder of its own, to be changed."""
    folder = root / "copy"
    shutil.copytree(variant.folder, folder)
    return Variant.read(variant.layout, folder)


def rewritten(variant: Variant, change: dict[str, Tensor | None]) -> None:
    """Other tensors in LeRobot's file; None: without that one."""
    file = variant.folder / "pretrained_model" / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in change.items():
        del tensors[name]
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, file)


def as_openpi(variant: Variant, *, asset: str = "golden/arm") -> Path:
    """LeRobot's folder as openpi would have saved the same network."""
    root = variant.folder / "openpi"
    (root / "assets" / asset).mkdir(parents=True)
    renamed = {}
    for name, tensor in load_file(
        variant.folder / "pretrained_model" / "model.safetensors"
    ).items():
        if name == LM_HEAD:
            continue
        # openpi has no embedding beside the head: one tensor, under that name.
        renamed[(LM_HEAD if name == EMBEDDED else name).removeprefix("model.")] = tensor
    save_file(renamed, root / "model.safetensors")
    config = {
        "action_dim": 32,
        "action_horizon": 10,
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        "precision": "float32",
    }
    (root / "config.json").write_text(json.dumps(config))
    statistics = {}
    files = (variant.folder / "pretrained_model").glob("policy_pre*.safetensors")
    for name, tensor in load_file(next(files)).items():
        key, _, which = name.rpartition(".")
        ours = {"observation.state": "state", "action": "actions"}.get(key)
        if ours and which in ("mean", "std", "q01", "q99"):
            statistics.setdefault(ours, {})[which] = tensor.tolist()
    file = root / "assets" / asset / "norm_stats.json"
    file.write_text(json.dumps({"norm_stats": statistics}))
    return root


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
    with pytest.raises(ValueError, match="6 are relative to the state, which has 6 numbers"):
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
    # Its own way of fitting: the pictures reach the network in its size, as openpi's client does it.
    assert other.prepare([seen]).images["front"].shape == (1, 3, 56, 56)


def test_without_names_lerobot_leaves_out_no_dimension() -> None:
    assert Relative(("gripper",), None).dims(3) == (0, 1, 2)
    assert Relative((), ("gripper",)).dims(2) == (0, 1)
    assert Relative(("Jaw", ""), ("x", "left_jaw")).dims(3) == (0, 2)


# Files and words that will not do


def said_of(folder: Path, variant: Variant, **more: object) -> Said:
    said = variant.said(str(folder))
    return dataclasses.replace(said, options={**said.options, **more})


def test_a_folder_is_told_by_its_files(variant: Variant, tmp_path: Path) -> None:
    variant = copied(variant, tmp_path)
    other = "pi05" if variant.layout == "pi0" else "pi0"
    for folder in (variant.folder / "pretrained_model", as_openpi(variant)):
        assert kinds.find(folder)[1] is KINDS[variant.layout]
        assert not KINDS[other].recognises(folder)
    assert not KINDS[variant.layout].recognises(tmp_path)


def test_a_policy_toml_says_what_the_files_do_not(variant: Variant, tmp_path: Path) -> None:
    variant = copied(variant, tmp_path)
    root = variant.folder / "pretrained_model"
    toml = tmp_path / "policy.toml"
    toml.write_text(
        'checkpoint = "copy/pretrained_model"\ntokenizer = "copy/tokenizer"\nexecute = 3\n'
        '[cameras]\nfront = "top"\n[options]\nvision_heads = 2\nsteps = 4\n'
        '[robot]\nmode = "absolute"\nrotation = "none"\ngrippers = []\ncontrol_hz = 20\n'
    )
    policy = load_policy(toml)
    assert isinstance(policy, Pi)
    assert (policy.execute, policy.network.steps) == (3, 4)
    assert list(policy.view.cameras.items()) == [("top", (72, 96)), ("wrist", (64, 64))]
    assert policy.robot.action.control_hz == 20
    before = policy_fingerprint(toml)
    words = variant.folder / "tokenizer" / "tokenizer.json"
    words.write_text(words.read_text() + "\n")
    assert policy_fingerprint(toml) != before
    assert (root / "config.json").is_file()


def test_a_card_is_made_without_a_weight(variant: Variant, tmp_path: Path) -> None:
    variant = copied(variant, tmp_path)
    for folder in (variant.folder / "pretrained_model", as_openpi(variant)):
        kind = KINDS[variant.layout]
        card = kind.describe(Said(folder, folder))  # vision_heads need not be known for that
        assert (card.layers, card.chunk, card.state_dims, card.action_dims) == (3, 10, 6, 7)
        assert card.parameters == sum(each.numel() for each in variant.load().state_dict().values())
        assert any("vision_heads" in each for each in card.remarks)
        assert {each.option for each in card.choices} & {"padding", "relative"}
        with pytest.raises(
            ValueError, match=r"no file says how many attention heads.*vision_heads"
        ):
            kind.load(
                Said(folder, folder, tokenizer=str(variant.folder / "tokenizer"), robot=ROBOT), None
            )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"vision_heads": 5}, "vision_heads is 5, expected a divisor of the eyes' width, 24"),
        ({"padding": -2.0}, "padding is -2.0, expected -1 or -3"),
        ({"steps": 0}, "steps is 0, expected a number from 1 on"),
        (
            {"missing": ("left",)},
            "missing names left, and the checkpoint looks through front, wrist",
        ),
        ({"missing": ("front", "wrist")}, "no camera is left to look through"),
        ({"norm_stats": "x"}, "norm_stats has no effect here: LeRobot's folder says it"),
        ({"relative": (0,)}, "relative has no effect here"),
        ({"unheard": 1}, "has unheard, which has no effect here"),
        ({"too_long": "drop"}, "too_long is 'drop', expected 'refuse' or 'cut'"),
    ],
)
def test_options_that_will_not_do(options: dict, said: str) -> None:
    variant = variant_of("pi0")
    with pytest.raises(ValueError, match=re.escape(said)):
        pi0.load(said_of(variant.folder / "pretrained_model", variant, **options), None)


def test_configs_that_will_not_do(variant: Variant, tmp_path: Path) -> None:
    variant = copied(variant, tmp_path)
    root = variant.folder / "pretrained_model"
    whole = json.loads((root / "config.json").read_text())
    for change, said in (
        ({"use_peft": True}, "a LoRA beside another model's"),
        ({"image_resolution": [56, 70]}, "image_resolution is 56×70, expected a square"),
        ({"image_resolution": [70, 70]}, "the weights have places for pictures of 56"),
        ({"max_action_dim": 16}, "32 numbers of state and 16 of actions"),
    ):
        (root / "config.json").write_text(json.dumps({**whole, **change}))
        with pytest.raises(ValueError, match=said):
            variant.load()
    del whole["image_resolution"]
    (root / "config.json").write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=r"of LeRobot before 0\.4"):
        variant.load()


def test_tensors_that_will_not_do(variant: Variant, tmp_path: Path) -> None:
    variant = copied(variant, tmp_path)
    name = "model.action_in_proj.bias"
    rewritten(variant, {name: torch.full((24,), float("nan"))})
    with pytest.raises(ValueError, match=r"action_in_proj\.bias holds NaN"):
        variant.load()
    rewritten(variant, {name: torch.zeros(23)})
    with pytest.raises(
        ValueError, match=r"action_in_proj.bias has shape \(23,\), expected \(24,\)"
    ):
        variant.load()
    rewritten(variant, {name: None})
    with pytest.raises(ValueError, match=r"missing action_in_proj\.bias"):
        variant.load()
    rewritten(variant, {LM_HEAD: None, EMBEDDED: None})
    with pytest.raises(ValueError, match=r"has no tensor for words\.weight"):
        variant.load()


def test_files_that_are_cut_short_or_not_there(variant: Variant, tmp_path: Path) -> None:
    variant = copied(variant, tmp_path)
    root = variant.folder / "pretrained_model"
    file = root / "model.safetensors"
    whole = file.read_bytes()
    for content, said in (
        (whole[:-5], "it was cut short"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "LFS"),
        ((2**40).to_bytes(8, "little") + b"{}", "no whole safetensors file"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            variant.load()
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        variant.load()
    file.write_bytes(whole)
    steps = root / "policy_preprocessor.json"
    text = steps.read_text()
    steps.write_text(text.replace("to_batch_processor", "run_my_code_processor"))
    with pytest.raises(ValueError, match=r"step 1 \(run_my_code_processor\) is not known here"):
        variant.load()
    steps.unlink()
    with pytest.raises(FileNotFoundError, match=r"policy_preprocessor\.json is missing"):
        variant.load()


def test_the_order_of_steps_is_looked_at(tmp_path: Path) -> None:
    variant = copied(variant_of("pi05"), tmp_path)
    file = variant.folder / "pretrained_model" / "policy_preprocessor.json"
    said = json.loads(file.read_text())
    said["steps"].insert(2, said["steps"].pop(4))  # the prompt ahead of normalising
    file.write_text(json.dumps(said))
    with pytest.raises(ValueError, match="the prompt is made before the state is normalised"):
        variant.load()


def test_a_prompt_without_the_state_is_openpis_alone(tmp_path: Path) -> None:
    variant = copied(variant_of("pi05"), tmp_path)
    openpi = as_openpi(variant)
    policy = pi05.load(said_of(openpi, variant, state_in_prompt=False), None)
    assert isinstance(policy, Pi) and policy.inputs.prompt is None
    ids, real = policy.inputs.words([" open_the drawer\n"])
    words = policy.body.tokenizer
    line = words.encode("\n", add_special_tokens=False).ids
    assert ids[0][real[0]].tolist() == words.encode("open the drawer").ids + line
    with pytest.raises(ValueError, match="state_in_prompt = false is for checkpoints of openpi's"):
        pi05.load(
            said_of(variant.folder / "pretrained_model", variant, state_in_prompt=False), None
        )


def test_another_networks_tokenizer_is_refused(variant: Variant, tmp_path: Path) -> None:
    variant = copied(variant, tmp_path)
    file = variant.folder / "tokenizer" / "tokenizer.json"
    words = json.loads(file.read_text())
    words["model"]["vocab"]["beyond"] = 620
    file.write_text(json.dumps(words))
    with pytest.raises(ValueError, match=r"has 621 words and .* 620: it is another network's"):
        variant.load()
    file.write_text(file.read_text().replace("<bos>", "<go>"))
    with pytest.raises(ValueError, match=r"has no token '<bos>'.*it is not PaliGemma's"):
        variant.load()
    file.unlink()
    with pytest.raises(ValueError, match=r"cannot be had here.*give `tokenizer` in policy\.toml"):
        variant.load()


def test_a_prompt_that_is_too_long_is_refused_or_cut(variant: Variant) -> None:
    seen = variant.observations(variant.load())[0]
    seen = dataclasses.replace(seen, instruction="go " * 200)
    with pytest.raises(ValueError, match=r"tokens and the policy reads .*its end would be lost"):
        variant.load().prepare([seen])
    batch = variant.load(too_long="cut").prepare([seen])
    assert batch.text_mask.all() and batch.text.shape[1] == variant.load().text_tokens
    with pytest.raises(ValueError, match="the instruction is empty"):
        variant.load().prepare([dataclasses.replace(seen, instruction=" \n")])


def test_openpis_statistics_are_chosen_or_refused(variant: Variant, tmp_path: Path) -> None:
    variant = copied(variant, tmp_path)
    root = as_openpi(variant)
    kind = KINDS[variant.layout]
    other = root / "assets" / "trossen"
    shutil.copytree(root / "assets" / "golden" / "arm", other)
    with pytest.raises(ValueError, match="holds statistics of golden/arm, trossen; say whose"):
        kind.load(said_of(root, variant), None)
    with pytest.raises(ValueError, match="has no statistics 'arm'; it has golden/arm, trossen"):
        kind.load(said_of(root, variant, norm_stats="arm"), None)
    chosen = kind.load(said_of(root, variant, norm_stats="trossen"), None)
    assert other / "norm_stats.json" in kind.files(said_of(root, variant, norm_stats="trossen"))
    assert isinstance(chosen, Pi) and next(iter(chosen.view.cameras)) == "base_0_rgb"
    with pytest.raises(
        ValueError, match="padding -3 and padded_state are for checkpoints of LeRobot"
    ):
        kind.load(said_of(root, variant, norm_stats="trossen", padding=-3.0), None)
    shutil.rmtree(root / "assets")
    with pytest.raises(FileNotFoundError, match=r"assets holds no norm_stats\.json"):
        kind.load(said_of(root, variant), None)


def test_openpis_statistics_of_more_numbers_are_cut_to_the_robots(
    variant: Variant, tmp_path: Path
) -> None:
    variant = copied(variant, tmp_path)
    root = as_openpi(variant)
    file = root / "assets" / "golden" / "arm" / "norm_stats.json"
    said = json.loads(file.read_text())
    for name in ("state", "actions"):
        for which, values in said["norm_stats"][name].items():
            said["norm_stats"][name][which] = values + [0.0] * (32 - len(values))
    file.write_text(json.dumps(said))
    kind = KINDS[variant.layout]
    robot = variant.load().robot
    policy = kind.load(said_of(root, variant), robot)
    assert isinstance(policy, Pi)
    assert (len(policy.body.state.offset), policy.dims) == (6, 7)
    filled = kind.load(said_of(root, variant), None)
    assert isinstance(filled, Pi) and filled.dims == 32


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
