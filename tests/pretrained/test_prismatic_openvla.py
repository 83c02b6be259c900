"""OpenVLA's run folders: the same weights as in Hugging Face's layout, answered as the original's
trainer answers them."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvla_tiny as tiny
import pytest
import torch
from golden import compare

from armlet.policies.building import rebuild
from armlet.policies.checkpoint import policy_fingerprint
from armlet.policies.pretrained import kinds
from armlet.policies.pretrained.dino_siglip import MEANS
from armlet.policies.pretrained.files import match
from armlet.policies.pretrained.openvla import OpenVLA
from armlet.policies.pretrained.openvla_files import RUN_FOLDER, LlamaFacts

SHARED = Path(__file__).parents[3] / "shared" / "golden" / "prismatic_openvla"
REAL = Path(__file__).parent / "golden" / "prismatic_openvla" / "full_keys.txt"


@pytest.mark.parametrize(
    "variant", sorted(SHARED.glob("*/golden.npz")), ids=lambda p: p.parent.name
)
def test_every_number_of_the_original(variant: Path) -> None:
    wrong = [str(line) for line in compare("prismatic_openvla", variant.parent) if not line.holds]
    assert wrong == []


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tiny.as_run(tmp_path / "run")


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    return tiny.llama_hub(tmp_path / "hub")


def load(place: Path, run: Path, *, tokenizer: str | None = "hub", **options: object) -> OpenVLA:
    more = "" if tokenizer is None else f'tokenizer = "{tokenizer}"'
    return tiny.load(place, run, more=more, **options)


def test_the_same_weights_under_llamas_own_eps_and_exact_constants(
    tmp_path: Path, run: Path, hub: Path
) -> None:
    """What differs between the layouts is put into the other, which is compared with the original
    elsewhere: then both answer the same bits."""
    native = load(tmp_path, run)
    assert kinds.find(tmp_path / "policy.toml")[1].KIND == "prismatic_openvla"
    other = tiny.load(tmp_path / "other")
    assert native.sizes.llama.eps == 1e-5 and native.sizes.means == MEANS
    assert other.sizes.llama.eps == 1e-6 and other.sizes.means != MEANS
    sizes = replace(other.sizes, llama=native.sizes.llama, means=MEANS, stds=native.sizes.stds)
    assert native.sizes == sizes
    network = {**other.to_json()["network"], "sizes": sizes.to_json()}
    same = rebuild({**other.to_json(), "network": network}, other.body.tokenizer)
    same.load_state_dict(other.state_dict())
    for number in range(3):
        seen, answers = tiny.case(number)
        batch = native.prepare([seen])
        with torch.inference_mode():
            mine = native.run_layers(native.embed(batch), batch)
            theirs = same.eval().run_layers(same.embed(batch), batch)
            native.decode(mine, batch)
            same.decode(theirs, batch)
        assert torch.equal(mine.extras["step_logits"], theirs.extras["step_logits"])
        # And the two layouts do differ, as the fixture's README says.
        logits = mine.extras["step_logits"][0, 0].numpy()
        assert np.abs(logits - answers["step_logits"][0]).max() > 1e-3


def test_heads_are_said_or_refused(tmp_path: Path, run: Path, hub: Path) -> None:
    expected = load(tmp_path, run)
    (hub / "config.json").unlink()
    with pytest.raises(ValueError, match=r"64 wide, and how many heads .* `llm_heads`"):
        load(tmp_path, run)
    said = load(tmp_path, run, llm_heads=8)
    assert said.sizes == expected.sizes
    assert load(tmp_path, run, llm_heads=8, rms_norm_eps=1e-6).sizes.llama.eps == 1e-6
    with pytest.raises(ValueError, match="cannot have 7 heads"):
        load(tmp_path, run, llm_heads=7)
    with pytest.raises(ValueError, match="vision_heads is 0, expected more than 0"):
        load(tmp_path, run, llm_heads=8, vision_heads=0)
    with pytest.raises(ValueError, match="an image tower of width 32 cannot have 5 heads"):
        load(tmp_path, run, llm_heads=8, vision_heads=5)


def test_the_tokenizer_is_said(tmp_path: Path, run: Path, hub: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run has no tokenizer.json.*meta-llama/Llama-2"):
        load(tmp_path, run, tokenizer=None, llm_heads=8)
    text = json.loads((hub / "tokenizer.json").read_text())
    # Words that would have filled a larger table.
    for number in range(64):
        text["model"]["vocab"][f"more {number}"] = 896 + number
    (hub / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(ValueError, match=r"960 rows, and a tokenizer of 960 words .* 1024"):
        load(tmp_path, run)


def test_a_checkpoint_is_chosen_or_refused(tmp_path: Path, run: Path, hub: Path) -> None:
    folder = run / "checkpoints"
    (only,) = folder.glob("*.pt")
    (folder / "latest-checkpoint.pt").symlink_to(only)  # one under two names is one
    (folder / only.name).with_suffix(".optimizer").write_bytes(b"not looked at")
    first = load(tmp_path, run)
    (folder / "latest-checkpoint.pt").unlink()
    other = folder / "step-300000-epoch-41-loss=0.2100.pt"
    content = torch.load(only, weights_only=True)
    content["model"]["llm_backbone"]["llm.model.norm.weight"] *= 1.5
    torch.save(content, other)
    with pytest.raises(ValueError, match=r"2 checkpoints.*`weights`.*295000.*300000"):
        load(tmp_path, run)
    with pytest.raises(ValueError, match=r"weights is 'step-1.pt'.*there are step-295000"):
        load(tmp_path, run, weights="step-1.pt")
    assert torch.equal(load(tmp_path, run, weights=only.name).norm.weight, first.norm.weight)
    one = policy_fingerprint(tmp_path / "policy.toml")
    chosen = load(tmp_path, run, weights=other.name)
    assert torch.equal(chosen.norm.weight, first.norm.weight * 1.5)
    assert policy_fingerprint(tmp_path / "policy.toml") != one
    said, kind = kinds.find(tiny.toml(tmp_path, run))
    choices = {choice.option: choice.values for choice in kind.describe(said).choices}
    assert choices["weights"] == (only.name, other.name)
    assert choices["llm_heads"] == () and choices["unnorm_key"] == (
        tiny.KEY,
        "fractal20220817_data",
    )


def test_the_card_is_made_without_a_tokenizer(tmp_path: Path, run: Path) -> None:
    place = tiny.toml(tmp_path, run, llm_heads=8)
    said, kind = kinds.find(place)
    card = kind.describe(said)
    assert (card.kind, card.layers, card.dtypes) == ("prismatic_openvla", 2, {"float32": 144})
    assert any("no tokenizer" in line for line in card.remarks)


@pytest.mark.parametrize("base", ["siglip-224px+7b", "prism-dinosiglip+7b", None])
def test_other_vision_language_models_are_refused_by_name(
    tmp_path: Path, run: Path, hub: Path, base: str | None
) -> None:
    tiny.change(run / "config.json", vla={"base_vlm": base})
    with pytest.raises(ValueError, match=rf"vla.base_vlm is '{base}'.*v0.1".replace("+", r"\+")):
        load(tmp_path, run)


def test_files_that_are_not_whole_or_hold_code(tmp_path: Path, run: Path, hub: Path) -> None:
    (path,) = (run / "checkpoints").glob("*.pt")
    content = path.read_bytes()
    path.write_bytes(content[:-1000])
    with pytest.raises(ValueError, match=rf"{path.name[:11]}.* cut short"):
        load(tmp_path, run)

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"model": {"llm_backbone": Evil()}}, path, pickle_module=pickle)
    with pytest.raises(ValueError, match="holds more than tensors and plain values"):
        load(tmp_path, run)
    assert not (tmp_path / "ran").exists()
    torch.save({"model": {"projector": {"projector.0.weight": torch.zeros(2, 2)}}}, path)
    with pytest.raises(ValueError, match=r"has no llm_backbone.llm.model.embed_tokens.weight"):
        load(tmp_path, run)
    torch.save({"weights": {"a": torch.zeros(2)}}, path)
    with pytest.raises(ValueError, match="has no `model` of modules"):
        load(tmp_path, run)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        load(tmp_path, run)


def test_every_name_and_shape_of_the_real_model(tmp_path: Path) -> None:
    tensors = tiny.real_size(REAL)
    assert len(tensors) == 982
    facts = LlamaFacts(heads=32, kv_heads=32, eps=1e-5, vocabulary=32000)
    sizes = RUN_FOLDER.sizes(tensors, facts)
    policy = tiny.load(tmp_path)
    said = policy.to_json()
    said["network"] = {**said["network"], "sizes": sizes.to_json()}
    empty = rebuild(said, policy.body.tokenizer, empty=True)
    own = {name: tuple(each.shape) for name, each in empty.state_dict().items()}
    found = match(own, tensors, RUN_FOLDER.names(tensors))
    assert len(found.matched) == len(own)
    assert len(found.matched) + len(found.unused) == 982
