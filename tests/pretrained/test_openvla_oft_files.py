"""What an OpenVLA-OFT checkpoint does not say, and all that its files may be."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import openvla_oft_tiny as tiny
import openvla_tiny
import pytest
import torch
from torch import Tensor

from armlet.policies.building import rebuild
from armlet.policies.checkpoint import policy_fingerprint
from armlet.policies.pretrained import kinds, openvla_hf
from armlet.policies.pretrained.files import match
from armlet.policies.pretrained.lora import Adapter
from armlet.policies.pretrained.oft_files import FILM
from armlet.policies.pretrained.oft_network import OpenVLAOFT
from armlet.policies.pretrained.openvla_files import LlamaFacts
from armlet.robot.spec import CameraSpec


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> OpenVLAOFT:
    return tiny.load(tmp_path_factory.mktemp("policy"))


# What a checkpoint does not say


def test_the_platform_is_found_or_asked_for(tmp_path: Path) -> None:
    folder = tiny.copied(tmp_path / "c")
    path = folder / "dataset_statistics.json"
    own = json.loads(path.read_text())["libero_spatial_no_noops"]
    policy = tiny.load(tmp_path, folder)
    assert (policy.chunk, policy.execute) == (8, 8) and list(policy.cameras) == list(tiny.VIEWS)
    # The name of somebody else's data says nothing; the numbers still fit one platform alone.
    path.write_text(json.dumps({"my_kitchen": own}))
    assert tiny.load(tmp_path, folder).chunk == 8
    # One that says another platform than the numbers do.
    path.write_text(json.dumps({"bridge_mine": own}))
    with pytest.raises(ValueError, match=r"'bridge_mine' fit libero.*chunk and bounds and views"):
        tiny.load(tmp_path, folder)
    told = tiny.load(
        tmp_path, folder, chunk=3, bounds="min_max", views=["a", "b"], platform="libero"
    )
    assert told.chunk == 3 and list(told.cameras) == ["a", "b"]
    with pytest.raises(ValueError, match="platform 'aloha' has actions of 14 numbers"):
        tiny.load(tmp_path, folder, platform="aloha")


def test_a_discrete_policy_is_of_any_platform_of_seven_numbers(tmp_path: Path) -> None:
    kind = 'kind = "openvla_oft"'
    found = tiny.load(tmp_path, tiny.BASE, more=kind, unnorm_key="bridge_orig")
    assert (found.chunk, found.bins, found.proprio) == (5, 256, None)
    with pytest.raises(ValueError, match=r"'fractal20220817_data' fit libero, bridge"):
        tiny.load(tmp_path, tiny.BASE, more=kind, unnorm_key="fractal20220817_data")
    with pytest.raises(ValueError, match="2 data sets"):
        tiny.load(tmp_path, tiny.BASE, more=kind)
    # Nobody who does not say so means one.
    assert kinds.find(tiny.toml(tmp_path, tiny.BASE))[1] is openvla_hf


def test_cameras_are_the_robots_in_the_order_of_the_views(tmp_path: Path) -> None:
    place = tiny.toml(tmp_path, base=str(tiny.BASE))
    place.write_text(place.read_text() + '[cameras]\nfull_image = "image"\nwrist_image = "hand"\n')
    assert list(kinds.load(place).cameras) == ["image", "hand"]
    place.write_text(
        tiny.toml(tmp_path, base=str(tiny.BASE)).read_text() + '[cameras]\nfull_image = "image"\n'
    )
    # Who names one looks through one.
    assert list(kinds.load(place).cameras) == ["image"]
    place = tiny.toml(tmp_path, base=str(tiny.BASE), views=["full_image"])
    place.write_text(place.read_text() + '[cameras]\nwrist = "hand"\n')
    with pytest.raises(ValueError, match=r"\[cameras\] names wrist, and the checkpoint looks"):
        kinds.load(place)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"platform": "widow"}, "platform is 'widow', expected libero, aloha, bridge"),
        ({"bounds": "std"}, "bounds is 'std', expected q01_q99 or min_max"),
        ({"chunk": 0}, "chunk is 0, expected 1 or more"),
        ({"views": ["a", "a"]}, "expected a list of different names"),
        ({"preparation": "crop"}, "expected center_crop, no_crop, processor"),
        ({"unnorm_key": "libero"}, "no statistics of it"),
        ({"crop": True}, "has crop, which has no effect"),
        ({"base": 3}, "base is 3, expected a text"),
        ({"base": "nowhere"}, "nowhere"),
    ],
)
def test_options_that_are_not_understood(tmp_path: Path, options: dict, said: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        tiny.load(tmp_path, **options)


def test_pictures_are_prepared_as_said(policy: OpenVLAOFT, tmp_path: Path) -> None:
    seen, _ = tiny.case(0)
    found = {policy.body.fit: policy.prepare([seen]).images["full_image"]}
    for name in ("no_crop", "processor"):
        other = tiny.load(tmp_path / name, preparation=name)
        found[other.body.fit] = other.prepare([seen]).images["full_image"]
    assert list(found) == ["oft", "oft_whole", "bicubic"]
    pictures: list[Tensor] = list(found.values())
    assert not torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[1], pictures[2])


# What is on disk


def test_the_card(policy: OpenVLAOFT, tmp_path: Path) -> None:
    said, kind = kinds.find(tiny.toml(tmp_path, base=str(tiny.BASE)))
    card = kind.describe(said)
    assert (card.kind, card.layers, card.chunk, card.execute) == ("openvla_oft", 2, 8, 8)
    assert (card.state_dims, card.action_dims) == (8, 7)
    assert {choice.option: choice.usual for choice in card.choices}["chunk"] == 8
    assert any("a checkpoint does not say" in line for line in card.remarks)
    assert any("merged into" in line for line in card.remarks)
    assert any("180°" in line for line in card.remarks)
    assert "language_model.lm_head.weight" in card.unused
    assert card.parameters == sum(parameter.numel() for parameter in policy.parameters())
    several = kinds.find(tiny.toml(tmp_path / "d", tiny.BASE, more='kind = "openvla_oft"'))
    undecided = kind.describe(several[0])
    assert (undecided.chunk, undecided.action, undecided.state_dims) == (0, None, 0)
    waiting = [choice.option for choice in undecided.choices if choice.usual is None]
    assert waiting == ["unnorm_key", "chunk", "bounds", "views"]
    first = policy_fingerprint(said.source)
    assert first != policy_fingerprint(tiny.toml(tmp_path, base=str(tiny.BASE), chunk=4))


def test_a_merged_folder_needs_no_base_and_takes_none(policy: OpenVLAOFT, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"its adapter names 'openvla/openvla-7b'.*`base`"):
        kinds.load(tiny.toml(tmp_path))
    folder = tiny.copied(tmp_path / "c")
    for path in tiny.BASE.iterdir():
        if path.name != "dataset_statistics.json":
            shutil.copy(path, folder)
    # The base's own weights: an adapter beside a whole model was merged already, or is not wanted.
    whole = tiny.load(tmp_path, folder)
    plain = openvla_tiny.load(tmp_path / "plain")
    assert torch.equal(whole.layers[0].mlp.up_proj.weight, plain.layers[0].mlp.up_proj.weight)
    assert whole.body.actions.to_json() == policy.body.actions.to_json()
    with pytest.raises(ValueError, match=r"holds a whole model.*no effect"):
        tiny.load(tmp_path, folder, base=str(tiny.BASE))


def test_one_file_a_part(tmp_path: Path) -> None:
    folder = tiny.copied(tmp_path / "c")
    (folder / tiny.HEAD).rename(folder / "action_head--latest_checkpoint.pt")
    assert tiny.load(tmp_path, folder).head is not None
    shutil.copy(tiny.CHECKPOINT / tiny.HEAD, folder)
    with pytest.raises(ValueError, match=r"2 files of action_head: .*latest.*expected one"):
        tiny.load(tmp_path, folder)


def test_parts_without_the_beginning_of_several_processes(
    policy: OpenVLAOFT, tmp_path: Path
) -> None:
    folder = tiny.copied(tmp_path / "c")
    for name in (tiny.HEAD, tiny.PROPRIO):
        said = torch.load(folder / name, weights_only=True)
        torch.save(
            {key.removeprefix("module."): value for key, value in said.items()}, folder / name
        )
    assert tiny.moved(tiny.load(tmp_path, folder)) < 1e-5


def test_heads_that_are_not_read(tmp_path: Path) -> None:
    folder = tiny.copied(tmp_path / "c")
    said = torch.load(folder / tiny.HEAD, weights_only=True)
    other = {
        key.replace("model.", "noise_predictor.mlp_resnet."): value for key, value in said.items()
    }
    torch.save(other, folder / tiny.HEAD)
    with pytest.raises(ValueError, match="is a diffusion head"):
        tiny.load(tmp_path, folder)
    shutil.copy(tiny.CHECKPOINT / tiny.HEAD, folder)
    torch.save({}, folder / "noisy_action_projector--150000_checkpoint.pt")
    with pytest.raises(ValueError, match="a policy of diffusion"):
        tiny.load(tmp_path, folder)


class Evil:
    def __reduce__(self) -> tuple:
        return (print, ("run",))


def test_side_files_that_are_damaged_or_of_another_robot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.copied(tmp_path / "c")
    head = folder / tiny.HEAD
    content = head.read_bytes()
    head.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"no whole file of torch\.save"):
        tiny.load(tmp_path, folder)
    torch.save({"module.model.fc2.weight": Evil()}, head)
    with pytest.raises(ValueError, match="is not run"):
        tiny.load(tmp_path, folder)
    assert "run" not in capsys.readouterr().out
    said = torch.load(tiny.CHECKPOINT / tiny.HEAD, weights_only=True)
    said["module.model.fc2.weight"] = torch.zeros(6, 64)
    torch.save(said, head)
    with pytest.raises(ValueError, match=r"decides 6 numbers, and .* has statistics of 7"):
        tiny.load(tmp_path, folder)
    del said["module.model.fc1.bias"]
    said["module.model.fc2.weight"] = torch.zeros(7, 64)
    torch.save(said, head)
    with pytest.raises(ValueError, match=r"missing head.fc1.bias"):
        tiny.load(tmp_path, folder)
    head.write_bytes(content)
    proprio = torch.load(folder / tiny.PROPRIO, weights_only=True)
    proprio["module.fc1.weight"] = torch.zeros(64, 9)
    torch.save(proprio, folder / tiny.PROPRIO)
    told = {"chunk": 8, "bounds": "q01_q99", "views": list(tiny.VIEWS)}
    with pytest.raises(ValueError, match=r"a state of 9 numbers, and .* statistics of 8"):
        tiny.load(tmp_path, folder, **told)


def test_statistics_without_a_state(tmp_path: Path) -> None:
    folder = tiny.copied(tmp_path / "c")
    path = folder / "dataset_statistics.json"
    said = json.loads(path.read_text())
    del said["libero_spatial_no_noops"]["proprio"]
    path.write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"`proprio` of .*libero_spatial_no_noops has no q01"):
        tiny.load(tmp_path, folder)
    # Not told its state, the policy is another: what it says is the checkpoint's business.
    (folder / tiny.PROPRIO).unlink()
    assert tiny.load(tmp_path, folder).proprio is None


def test_every_name_and_shape_of_the_real_checkpoint(policy: OpenVLAOFT) -> None:
    """On `meta`: the merged model with a head, a state and FiLM, and the adapter of rank 32."""
    model = openvla_tiny.real_size(openvla_tiny.FIXTURE.parent / "full_keys.txt")
    adapter = Adapter.of(tiny.real_size("lora_adapter"), 0.5, ".weight", "base_model.model.")
    low = list(adapter.pairs.values())
    count = sum(adapter.tensors[pair.a].numel + adapter.tensors[pair.b].numel for pair in low)
    assert count == 110_828_288
    shapes = replace(adapter, frozen={})  # there are no numbers to compare
    shapes.check(model)
    towers = tiny.real_size("vision_backbone")
    tensors = model.without("vision_backbone.").and_those(towers)
    tensors = tensors.and_those(tiny.real_size("action_head").under("action_head."))
    tensors = tensors.and_those(tiny.real_size("proprio_projector").under("proprio_projector."))
    facts = LlamaFacts(heads=32, kv_heads=32, eps=1e-6, vocabulary=32000)
    sizes = FILM.sizes(tensors, facts)
    said = policy.to_json()
    said["network"] = {**said["network"], "sizes": sizes.to_json(), "film": True}
    empty = rebuild(said, policy.body.tokenizer, empty=True)
    own = {name: tuple(each.shape) for name, each in empty.state_dict().items()}
    names = FILM.names(tensors)
    unused = (*names.unused, "vision_backbone.*.lora_[AB].*", "language_model.lm_head.*")
    found = match(own, tensors, replace(names, unused=unused))
    assert len(found.matched) == len(own)
    assert len(found.matched) + len(found.unused) == len(tensors)
    merged = {names.ours(name) for name in Adapter.of(towers, 0.5, ".default.weight").pairs}
    assert {name for name in own if name in merged} == {
        name
        for name in own
        if name.startswith("vision.")
        and name.endswith(
            (
                "qkv.weight",
                "attn.proj.weight",
                "fc1.weight",
                "fc2.weight",
                "patch_embed.proj.weight",
            )
        )
    }


def test_a_robot_without_its_cameras(policy: OpenVLAOFT, tmp_path: Path) -> None:
    place = tiny.toml(tmp_path, base=str(tiny.BASE))
    spec = policy.robot
    assert list(kinds.load(place, lambda: spec).cameras) == list(tiny.VIEWS)
    cameras = {"full_image": CameraSpec(48, 64), "hand": CameraSpec(48, 64)}
    other = replace(spec, observation=replace(spec.observation, cameras=cameras))
    with pytest.raises(
        ValueError, match=r"has full_image, hand: say .* wrist_image in \[cameras\]"
    ):
        kinds.load(place, lambda: other)
    place.write_text(
        place.read_text() + '[cameras]\nfull_image = "full_image"\nwrist_image = "hand"\n'
    )
    assert list(kinds.load(place, lambda: other).cameras) == ["full_image", "hand"]
    alone = replace(spec.observation, cameras={"front": CameraSpec(48, 64)})
    place = tiny.toml(tmp_path, base=str(tiny.BASE), views=["full_image"])
    # One view, one camera: no doubt which is meant.
    assert list(kinds.load(place, lambda: replace(spec, observation=alone)).cameras) == ["front"]
