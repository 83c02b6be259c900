"""Files of π0 and π0.5 that will not do, and what is to be said of those that do."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens.pi import ROBOT, Variant
from pretrained.pi_copies import (
    EMBEDDED,
    KINDS,
    LAYOUTS,
    LM_HEAD,
    as_openpi,
    copied,
    rewritten,
    said_of,
    variant_of,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from armlet.policies.checkpoint import load_policy, policy_fingerprint
from armlet.policies.pretrained import kinds, pi0, pi05
from armlet.policies.pretrained.pi_network import Pi
from armlet.policies.pretrained.said import Said


@pytest.fixture(params=LAYOUTS)
def variant(request: pytest.FixtureRequest) -> Variant:
    return variant_of(request.param)


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
    with pytest.raises(ValueError, match="has no 'image_resolution'"):
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


def with_statistics(variant: Variant, change: dict[str, Tensor | None]) -> None:
    """Other statistics, on both sides of the network; None: without."""
    for file in (variant.folder / "pretrained_model").glob("*processor*.safetensors"):
        tensors = {**load_file(file), **change}
        save_file({name: each for name, each in tensors.items() if each is not None}, file)


def test_quantiles_that_are_not_there_are_asked_for(tmp_path: Path) -> None:
    variant = copied(variant_of("pi05"), tmp_path)
    with_statistics(variant, {"action.q01": None, "action.q99": None})
    with pytest.raises(ValueError, match=r"'action' lack q01, q99.*LeRobot has a script"):
        variant.load()


def test_a_state_that_never_moved_is_in_the_middle_bin_no_longer_where_it_moves(
    tmp_path: Path,
) -> None:
    """Its last digit decides: divided by 1e-8, it is in the first bin where it stood, and beyond
    all of them a hair away, on either side. As in LeRobot."""
    variant = copied(variant_of("pi05"), tmp_path)
    low = torch.tensor([0.5, -1, -1, -1, -1, -1])
    high = torch.tensor([0.5, 1, 1, 1, 1, 1])
    with_statistics(variant, {"observation.state.q01": low, "observation.state.q99": high})
    policy = variant.load()
    reader = policy.network.prompts.reader(policy.body.tokenizer)
    for value, number in ((0.5, 0), (0.5001, 255), (0.4999, -1)):
        state = policy.body.state.apply(np.array([[value, 0, 0, 0, 0, 0]], np.float32))
        ids, real = reader.with_state(["go"], state)
        wanted = f"Task: go, State: {number} 128 128 128 128 128;\nAction: "
        assert ids[0][real[0]].tolist() == policy.body.tokenizer.encode(wanted).ids


def test_openpis_prompts_and_small_number_are_its_own(variant: Variant, tmp_path: Path) -> None:
    variant = copied(variant, tmp_path)
    kind = KINDS[variant.layout]
    said = said_of(as_openpi(variant), variant, missing=("right_wrist_0_rgb",))
    cameras = {"base_0_rgb": "front", "left_wrist_0_rgb": "wrist"}
    openpi = kind.load(dataclasses.replace(said, cameras=cameras), None)
    lerobot = variant.load()
    ratio = openpi.body.actions.back / lerobot.body.actions.back
    assert (ratio > 1).all() and ratio == pytest.approx(np.ones(7), abs=2e-4)
    text = "open_the drawer"  # cleaned by one, and by the other for π0.5 alone
    read = []
    for policy in (openpi, lerobot):
        ids, real = policy.network.prompts.reader(policy.body.tokenizer)([text])
        read.append(ids[0][real[0]].tolist())
    assert (read[0] == read[1]) == (variant.layout == "pi05")


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
