"""π0 in LeRobot's folders from before 0.4: no processors, statistics among the weights, names as
transformers then had them, pictures in the corner of their box."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from goldens.pi import Variant
from pretrained.pi_copies import EMBEDDED, copied, variant_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from armlet.policies.checkpoint import load_policy, save_policy
from armlet.policies.pretrained import kinds, pi0, pi05
from armlet.policies.pretrained.pi_network import Pi, boxed

VLM = "model.paligemma_with_expert.paligemma."
# What a folder holds of `inputs` and `outputs`, by LeRobot 0.3.3's policies/normalize.py.
ROOMS = {
    "normalize_inputs.buffer_observation_state.": "observation.state.",
    "normalize_targets.buffer_action.": "action.",
    "unnormalize_outputs.buffer_action.": "action.",
}


def before_04(variant: Variant, **said: object) -> Path:
    """LeRobot's folder as 0.3.3 would have written the same network. The two tables of words were
    one then."""
    root = variant.folder / "pretrained_model"
    statistics = load_file(next(root.glob("policy_preprocessor_*.safetensors")))
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(root / "model.safetensors").items():
        if name.endswith("paligemma.lm_head.weight"):
            continue
        tensors[as_then(name)] = tensor
    for room, key in ROOMS.items():
        for statistic in ("mean", "std"):
            tensors[room + statistic] = statistics[key + statistic].clone()
    now = json.loads((root / "config.json").read_text())
    config = {
        "type": "pi0",
        "n_obs_steps": 1,
        "resize_imgs_with_padding": now["image_resolution"],
        "tokenizer_max_length": 48,
        "num_steps": 10,
        "adapt_to_pi_aloha": False,
        "use_delta_joint_actions_aloha": False,
        "attention_implementation": "eager",
    }
    for name in (
        *("input_features", "output_features", "normalization_mapping", "empty_cameras"),
        *("chunk_size", "n_action_steps", "max_state_dim", "max_action_dim"),
    ):
        config[name] = now[name]
    for path in root.iterdir():
        path.unlink()
    save_file(tensors, root / "model.safetensors")
    (root / "config.json").write_text(json.dumps(config | said))
    return root


def as_then(name: str) -> str:
    """As transformers 4.48 to 4.51 called PaliGemma's parts."""
    if name == EMBEDDED:  # tied: the head is what is saved
        return f"{VLM}language_model.lm_head.weight"
    name = name.replace(f"{VLM}model.language_model.", f"{VLM}language_model.model.")
    name = name.replace(f"{VLM}model.vision_tower.", f"{VLM}vision_tower.")
    return name.replace(f"{VLM}model.multi_modal_projector.", f"{VLM}multi_modal_projector.")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Pi, Pi, Variant]:
    """A checkpoint as it is written today, and as it was before 0.4."""
    variant = copied(variant_of("pi0"), tmp_path)
    new = variant.load()
    before_04(variant)
    return new, variant.load(), variant


def test_it_is_the_same_network(pair: tuple[Pi, Pi, Variant]) -> None:
    new, old, _ = pair
    found = old.state_dict()
    for name, tensor in new.state_dict().items():
        assert torch.equal(found.pop(name), tensor), name
    assert not found
    assert (old.network.box, new.network.box) == ("corner", "middle")
    assert old.body.to_json() == new.body.to_json()
    assert old.network.prompts == new.network.prompts
    assert old.network.steps == 10 and old.chunk == new.chunk and old.execute == new.execute


def test_a_picture_lies_in_the_corner_and_those_that_fill_it_change_nothing(
    pair: tuple[Pi, Pi, Variant],
) -> None:
    new, old, variant = pair
    side = new.network.sizes.image
    seen = variant.observations(new)
    batch = new.prepare(seen)
    tall = batch.images["front"]
    height, width = tall.shape[-2:]
    assert height < width
    # By LeRobot 0.3.3's `resize_with_pad`: padding at the left and the top, black.
    scale = width / side
    inner = F.interpolate(tall, (int(height / scale), side), mode="bilinear", align_corners=False)
    expected = torch.zeros(len(tall), 3, side, side)
    expected[:, :, side - inner.shape[-2] :] = inner
    found = old.pictures(batch)[list(old.network.cameras).index("front")]
    torch.testing.assert_close(found, expected * 2 - 1, atol=1e-6, rtol=0)
    beside = boxed(tall.transpose(-1, -2), side, -1.0, "corner")
    torch.testing.assert_close(beside, found.transpose(-1, -2), atol=1e-6, rtol=0)
    assert np.abs(old.infer(seen[0]) - new.infer(seen[0])).max() > 1e-3, "it is looked at"
    # Pictures of its own size have no box: then both answer what LeRobot 0.6 did, to the bit.
    for each in seen:
        for name, picture in each.images.items():
            each.images[name] = np.ascontiguousarray(picture[:side, :side])
        assert np.array_equal(old.infer(each), new.infer(each))


def test_it_is_described_found_and_saved_again(
    pair: tuple[Pi, Pi, Variant], tmp_path: Path
) -> None:
    _, old, variant = pair
    root = variant.folder / "pretrained_model"
    said, kind = kinds.find(root)
    assert kind is pi0 and not pi05.recognises(root)
    card = kind.describe(said)
    assert card.sizes["layout"] == "LeRobot before 0.4" and card.steps == 10
    assert any("right and the bottom" in each for each in card.remarks)
    assert card.parameters == sum(each.numel() for each in old.state_dict().values())
    assert not any("normalize" in name for name in card.unused)
    assert set(card.files) == {root / "config.json", root / "model.safetensors"}
    student = old.keep_layers((0, 2)).eval()
    save_policy(student, tmp_path / "saved")
    again = load_policy(tmp_path / "saved")
    seen = variant.observations(old)[0]
    assert np.array_equal(again.infer(seen), student.infer(seen))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"adapt_to_pi_aloha": True}, "adapt_to_pi_aloha is True, expected false"),
        ({"use_delta_joint_actions_aloha": True}, "use_delta_joint_actions_aloha is True"),
        ({"resize_imgs_with_padding": None}, "resize_imgs_with_padding is None, expected a list"),
        ({"resize_imgs_with_padding": [56, 70]}, "is 56×70, expected a square"),
        ({"image_resolution": [56, 56]}, "is of LeRobot 0.4 or later, and has no policy_prep"),
        ({"type": "pi05"}, "is of LeRobot 0.4 or later, and has no policy_preprocessor.json"),
    ],
)
def test_what_is_not_done_is_refused(said: dict, expected: str, tmp_path: Path) -> None:
    variant = copied(variant_of("pi0"), tmp_path)
    before_04(variant, **said)
    if "type" in said:
        variant.layout = str(said["type"])
    with pytest.raises(ValueError, match=re.escape(expected)):
        variant.load()


def test_padding_of_another_version_has_no_effect(tmp_path: Path) -> None:
    variant = copied(variant_of("pi0"), tmp_path)
    before_04(variant)
    with pytest.raises(ValueError, match=r"padding -3 is for checkpoints of LeRobot 0\.4"):
        variant.load(padding=-3.0)
