"""OpenVLA-OFT: everything from raw pictures, words and state to actions in the robot's units, of a
variant with its checkpoint (A, B, F …) or of one that has side files beside another's (R), once
with its head and once as a discrete policy.

What no checkpoint says (chunk, bounds, which pictures) is told from `golden.json`; where it can be
told by numbers and names, that must be the same. Bounds are the README's.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden import Golden, Line, equal, near
from PIL import Image
from torch import Tensor

from armlet.policies.contract import Pass
from armlet.policies.pretrained import kinds
from armlet.policies.pretrained.files import open_pickled, open_safetensors, open_sharded
from armlet.policies.pretrained.oft_files import Parts, has_model
from armlet.policies.pretrained.oft_network import OpenVLAOFT
from armlet.policies.pretrained.said import Said
from armlet.robot import oft_pictures
from armlet.robot.observation import Observation
from armlet.robot.reading.llama import EMPTY
from armlet.types import Batch
from goldens.openvla_cases import stand_in

PIXELS = 1e-6
HIDDEN = 1e-4
ACTION = 5e-5
# No robot is known, and none of this reaches a number that is compared.
ROBOT = 'mode = "delta"\nrotation = "none"\ngrippers = []\ncontrol_hz = 10\n'


def compare(folder: Path) -> Iterator[Line]:
    with np.load(folder / "golden.npz") as arrays:
        golden = Golden({name: arrays[name] for name in arrays})
    said = json.loads((folder / "golden.json").read_text())
    bf16 = [name for name in golden if "bf16" in name]
    golden.leave_out(bf16, "information alone, and another between versions of torch")
    if (folder / "checkpoint").is_dir():
        yield from _whole(folder, golden, said)
    else:
        yield from _side_files(folder, golden, said)
    yield golden.rest()


def keys(folder: Path, names: dict[str, Path]) -> Iterator[Line]:
    """Which tensors there are: as `keys.json` lists them. `names`: what it calls a part → where
    that is."""
    for part, entries in json.loads((folder / "keys.json").read_text()).items():
        place = names.get(part, folder / "checkpoint" / part)
        if place.is_dir():
            tensors = open_sharded(place)
        elif place.suffix == ".pt":
            tensors = open_pickled(place)
        else:
            tensors = open_safetensors(place)
        found = []
        for name, header in sorted(tensors.items()):
            found.append(f"{name} {list(header.shape)} {str(header.dtype).removeprefix('torch.')}")
        theirs = [f"{name} {entry[0]} {entry[1]}" for name, entry in sorted(entries.items())]
        yield equal(f"tensors of {part}", found, theirs)


def options(said: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """What a `policy.toml` would say of a variant."""
    sizes = said["sizes"]["oft"]
    bounds = "q01_q99" if "q99" in sizes["normalisation"] else "min_max"
    return {
        "chunk": sizes["chunk"],
        "bounds": bounds,
        "views": [f"view {number}" for number in range(sizes["images"])],
        "unnorm_key": case["unnorm_key"],
        "vision_heads": said["sizes"]["dino"]["num_heads"],
    }


def _loaded(place: Path, told: dict[str, Any], tokenizer: Path | None = None) -> OpenVLAOFT:
    """As a user would load it, through a `policy.toml`."""
    lines = [f"checkpoint = {json.dumps(str(place.resolve()))}", 'kind = "openvla_oft"']
    if tokenizer is not None:
        lines.append(f"tokenizer = {json.dumps(str(tokenizer.resolve()))}")
    lines.append("[options]")
    for name, value in told.items():
        lines.append(f"{name} = {json.dumps(value)}")
    with tempfile.TemporaryDirectory() as scratch:
        toml = Path(scratch) / "policy.toml"
        toml.write_text("\n".join([*lines, "[robot]", ROBOT]))
        policy = kinds.load(toml)
    assert isinstance(policy, OpenVLAOFT)
    return policy


@dataclass(frozen=True)
class Case:
    """One observation, its batch, and what the network made of it."""

    number: int
    policy: OpenVLAOFT
    pictures: list[np.ndarray]
    batch: Batch
    run: Pass[Any]
    actions: Tensor  # (k, a)

    def named(self, what: str) -> str:
        return f"case{self.number}__{what}"


@torch.no_grad()
def asked(
    policy: OpenVLAOFT,
    number: int,
    pictures: list[np.ndarray],
    words: str,
    state: np.ndarray,
    ids: np.ndarray | None = None,
) -> Case:
    """`ids` (t,) stand for the words where there is no tokenizer."""
    images = dict(zip(policy.cameras, pictures, strict=True))
    seen = Observation(images, state, words, np.zeros(policy.dims, np.float32))
    batch = policy.prepare([seen])
    if ids is not None:
        text = torch.from_numpy(ids)[None]
        batch = replace(batch, text=text, text_mask=torch.ones_like(text, dtype=torch.bool))
    run = policy.run_layers(policy.embed(batch), batch, watch=True)
    return Case(number, policy, pictures, batch, run, policy.decode(run, batch)[0])


def pictures_of(folder: Path, entry: dict[str, Any]) -> list[np.ndarray]:
    """A case's, in the order in which they are seen."""
    found = []
    for name in entry.get("images") or [entry["image"]]:
        found.append(np.asarray(Image.open(folder / name).convert("RGB")))
    return found


def _whole(folder: Path, golden: Golden, said: dict[str, Any]) -> Iterator[Line]:
    place = folder / "checkpoint"
    yield from keys(folder, {"model": place})
    more: dict[str, Any] = {}
    if has_model(place):
        yield from _adapter(place, options(said, said["cases"][0]))
    else:
        more = {"base": str(base_of(place, place))}
    yield _found_out(place, {**options(said, said["cases"][0]), **more})
    for number, entry in enumerate(said["cases"]):
        policy = _loaded(place, {**options(said, entry), **more})
        pictures = pictures_of(folder, entry)
        state = golden[f"case{number}__proprio"]
        case = asked(policy, number, pictures, entry["instruction"], state)
        yield from _words(case, golden)
        yield from _pictures(case, golden)
        yield from _inside(case, golden)
        yield from _decided(case, golden)


def _found_out(place: Path, told: dict[str, Any]) -> Line:
    """Chunk and bounds without being told: the same, or asked for."""
    name = "chunk and bounds, found out or asked for"
    base = {"base": told["base"]} if "base" in told else {}
    parts = Parts.read(Said(place, place, options=base))
    key, statistics = parts.statistics.chosen(told["unnorm_key"])
    found = parts.told(key, parts.dims(statistics))
    if "chunk" in found.missing:
        return Line(name, 0.0, 0.0, f"asked for: {found.why}")
    wrong = (found.chunk, found.bounds) != (told["chunk"], told["bounds"])
    return Line(name, float(wrong), 0.0, f"{found.chunk}, {found.bounds}: {found.why}")


def _adapter(place: Path, told: dict[str, Any]) -> Iterator[Line]:
    """The adapter and the base that it was trained beside, where that is among the golden files:
    loaded as a folder that was never merged, against the one that was."""
    if not (place / "lora_adapter").is_dir():
        return
    with tempfile.TemporaryDirectory() as scratch:
        bare = without_model(place, Path(scratch))
        base = base_of(bare, place)
        if base is None:
            return
        merged = _loaded(bare, {**told, "base": str(base)}, place).state_dict()
        whole = _loaded(place, told).state_dict()
        wrong = sum(not torch.equal(whole[name], merged[name]) for name in whole)
        said = f"{len(whole)} tensors, equal to the bit; base {base.parent.name}"
        yield Line("adapter merged into its base", float(wrong), 0.0, said)


def without_model(place: Path, bare: Path) -> Path:
    """The side files and the adapter of a checkpoint, as it is where nobody merged them."""
    for path in place.iterdir():
        if path.suffix == ".pt" or path.name == "dataset_statistics.json":
            shutil.copyfile(path, bare / path.name)
    shutil.copytree(place / "lora_adapter", bare / "lora_adapter")
    return bare


def base_of(bare: Path, near: Path) -> Path | None:
    """The one among the golden files, about the folder `near`, beside which an adapter was
    trained."""
    for root in near.parents:
        for base in sorted(root.glob("openvla_hf/*/checkpoint")):
            try:
                parts = Parts.read(Said(bare, bare, options={"base": str(base.resolve())}))
                assert parts.adapter is not None
                parts.adapter.check_copies(parts.tensors)
            except (FileNotFoundError, ValueError):
                continue  # another variant's
            return base.resolve()
    return None


def _words(case: Case, golden: Golden) -> Iterator[Line]:
    name = case.named("processor_input_ids")
    ids = golden[name][0]
    # The processor's own, before the network's code adds the empty token.
    yield equal(name, case.batch.text[0, : len(ids)], ids)
    real = golden[case.named("processor_attention_mask")][0]
    yield equal(case.named("processor_attention_mask"), case.batch.text_mask[0, : len(ids)], real)
    left = case.batch.text[0, len(ids) :].tolist()
    empty = case.policy.body.tokenizer.token_to_id(EMPTY)
    yield equal(case.named("empty token"), left, [] if ids[-1] == empty else [empty])
    mask = golden[case.named("lm_attention_mask")][0]
    yield equal(case.named("lm_attention_mask"), case.run.start.mask[0].long(), mask)


def _pictures(case: Case, golden: Golden) -> Iterator[Line]:
    for number, picture in enumerate(case.pictures):
        resized = case.named(f"resized_uint8_{number}")
        if resized in golden:
            mine = oft_pictures.prepared(picture, middle=False)
            yield equal(resized, mine, golden[resized])
        cropped = case.named(f"cropped_uint8_{number}")
        if cropped in golden:
            yield equal(cropped, oft_pictures.prepared(picture), golden[cropped])
    pixels = case.named("pixel_values_every16th")
    if pixels in golden:
        found = []
        for name in case.policy.cameras:
            found += case.policy.vision.pixels(case.batch.images[name])
        every = torch.cat(found, 1)[..., ::16, ::16]
        yield near(pixels, every, golden[pixels], PIXELS)
    patches = case.named("vision_patches")
    if patches in golden:
        seen = [case.policy.vision(case.batch.images[name])[0] for name in case.policy.cameras]
        yield near(patches, torch.cat(seen).detach(), golden[patches], HIDDEN)


def _inside(case: Case, golden: Golden) -> Iterator[Line]:
    run = case.run
    # Before the first layer, after every one but the last, and after the final norm.
    states = [run.start, *run.states[:-1]]
    hidden = [state.hidden[0] for state in states] + [case.policy.norm(run.state.hidden[0])]
    every = torch.stack(hidden).detach()
    for what, mine in (("hidden_states", every), ("hidden_last_position", every[:, -1])):
        name = case.named(what)
        if name in golden:
            yield near(name, mine, golden[name], HIDDEN)


def _decided(case: Case, golden: Golden) -> Iterator[Line]:
    name = case.named("proprio_normalized")
    theirs = golden[name]
    # A robot says its state in single precision; divided by a narrow range, its rounding counts.
    normaliser = case.policy.body.state
    place = np.abs(normaliser.invert(theirs)) + np.abs(normaliser.offset)
    rounding = np.finfo(np.float32).eps * place / normaliser.scale  # (s,)
    off = case.batch.state[0].clamp(-1, 1).numpy() - theirs
    off *= PIXELS / np.maximum(rounding, PIXELS)
    yield near(name, theirs + off, theirs, PIXELS)
    name = case.named("action_hidden_states")
    yield near(name, case.policy.answered(case.run)[0, :-1].detach(), golden[name], HIDDEN)
    name = case.named("normalized_action")
    yield near(name, case.actions.detach(), golden[name], ACTION)
    name = case.named("action")
    yield near(name, case.policy.denormalise(case.actions.numpy()), golden[name], ACTION)


def _side_files(folder: Path, golden: Golden, said: dict[str, Any]) -> Iterator[Line]:
    """Beside another variant's checkpoint, which has no tokenizer: the ids are told."""
    base = folder.parent.parent / said["note"].split(": ")[1]
    parts = {path.name: path for path in (folder / "side_files").iterdir()}
    yield from keys(folder, parts)
    with tempfile.TemporaryDirectory() as scratch:
        words = Path(scratch)
        stand_in(said["sizes"]).save(str(words / "tokenizer.json"))
        for number, entry in enumerate(said["cases"]):
            # The network's own method was asked there, without the evaluation around it.
            told = {**options(said, entry), "preparation": "processor"}
            policy = _loaded(folder / "side_files", {**told, "base": str(base)}, words)
            discrete = _loaded(base, told, words)
            pictures = pictures_of(folder, entry)
            ids = golden[f"case{number}__prompt_ids"][0]
            empty = said["sizes"]["tokens"]["empty"]
            if ids[-1] != empty:  # the network's own code adds it
                ids = np.append(ids, empty)
            state = _in_its_numbers(policy, golden[f"case{number}__proprio_normalized"])
            case = asked(policy, number, pictures, "anything", state, ids)
            yield from _decided(case, golden)
            name = case.named("discrete_action")
            chosen = asked(discrete, number, pictures, "anything", np.zeros(0), ids)
            yield near(name, discrete.denormalise(chosen.actions.numpy()), golden[name], PIXELS)


def _in_its_numbers(policy: OpenVLAOFT, normalised: np.ndarray) -> np.ndarray:
    """A state that is normalised to this one: the fixture holds no other."""
    return policy.body.state.invert(normalised)
