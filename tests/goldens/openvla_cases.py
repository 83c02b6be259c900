"""What both layouts of OpenVLA compare: from a picture and an instruction to an action in the
robot's numbers, through every quantity that the original computed on the way.

Bounds are those that the fixtures' README suggests for single precision; a picture in pixels, words
and bins are equal.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden import Golden, Line, equal, near
from PIL import Image
from tokenizers import Tokenizer, models
from torch import Tensor

from armlet.data.batching import batch_of
from armlet.policies.pretrained import kinds
from armlet.policies.pretrained.openvla import OpenVLA
from armlet.policies.pretrained.openvla_folders import HuggingFaceFolder, RunFolder
from armlet.robot.observation import Observation
from armlet.robot.reading.llama import PROMPT
from armlet.types import Batch

PIXELS = 1e-6
HIDDEN = 1e-4
ACTION = 1e-6  # in units of the largest action, where that is more than 1
# What no checkpoint says of its robot, and no number here hangs on.
ROBOT = 'mode = "delta"\nrotation = "none"\ngrippers = []\ncontrol_hz = 5\n'


@dataclass
class Variant:
    """A fixture's folder: its arrays, its cases, and the checkpoint as a user would name it."""

    folder: Path
    checkpoint: Path
    kind: str
    tokenizer: Path | None = None
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        self.said = json.loads((self.folder / "golden.json").read_text())
        with np.load(self.folder / "golden.npz") as arrays:
            self.golden = Golden(dict(arrays))

    @property
    def cases(self) -> list[dict[str, Any]]:
        return self.said["cases"]

    def load(self, key: str | None) -> OpenVLA:
        """The policy for the data set `key`, or the only one, through a `policy.toml`."""
        with tempfile.TemporaryDirectory() as place:
            words = self.tokenizer
            if words is None and not (self.checkpoint / "tokenizer.json").is_file():
                words = Path(place)
                stand_in(self.said["sizes"]).save(str(words / "tokenizer.json"))
            lines = [f"checkpoint = {json.dumps(str(self.checkpoint.resolve()))}"]
            lines.append(f'kind = "{self.kind}"')
            if words is not None:
                lines.append(f"tokenizer = {json.dumps(str(words.resolve()))}")
            lines.append("[options]")
            chosen = {} if key is None else {"unnorm_key": key}
            for name, value in {**chosen, **(self.options or {})}.items():
                lines.append(f"{name} = {json.dumps(value)}")
            toml = Path(place) / "policy.toml"
            toml.write_text("\n".join([*lines, "[robot]", ROBOT]))
            policy = kinds.load(toml)
        assert isinstance(policy, OpenVLA)
        return policy


def stand_in(sizes: Mapping[str, Any]) -> Tokenizer:
    """For a fixture without a tokenizer: as many words, its special ones where they belong. Nothing
    is read with it: ids come from the fixture."""
    tokens = sizes["tokens"]
    words = {f"word {number}": number for number in range(sizes["llm"]["tokenizer_vocab"])}
    for name, known in (("<s>", "bos"), ("</s>", "eos"), ("▁", "empty")):
        del words[f"word {tokens[known]}"]
        words[name] = tokens[known]
    return Tokenizer(models.WordLevel(words, unk_token="<s>"))


@dataclass(frozen=True)
class Given:
    """A reader that gives the ids of the fixture."""

    ids: np.ndarray

    def __call__(self, texts: Any, *, any_length: bool = False) -> tuple[np.ndarray, np.ndarray]:
        return self.ids, np.ones(self.ids.shape, bool)


def lines(variant: Variant) -> Iterator[Line]:
    """Every quantity of every case."""
    golden = variant.golden
    yield from keys(variant)
    load = lru_cache(maxsize=None)(variant.load)
    for case in variant.cases:
        yield from _case(variant, load(case.get("unnorm_key")), case)
    bf16 = [name for name in golden if "__bf16_" in name]
    golden.leave_out(bf16, "bf16 on a CPU, which the README calls information, not a reference")
    yield golden.rest()


def keys(variant: Variant) -> Iterable[Line]:
    """Which tensors there are: as `keys.json` lists them."""
    path = variant.folder / "keys.json"
    if not path.is_file():
        return []
    said = json.loads(path.read_text())
    listed = {}
    for name, entry in said.items():
        if isinstance(entry, dict):  # a module of a run folder
            listed.update({f"{name}.{key}": value for key, value in entry.items()})
        else:
            listed[name] = entry
    if variant.kind == "openvla_hf":
        tensors = HuggingFaceFolder.read(variant.checkpoint).tensors
    else:
        weights = (variant.options or {}).get("weights")
        tensors = RunFolder.read(variant.checkpoint, weights).tensors
    found = []
    for name, header in sorted(tensors.items()):
        found.append(f"{name} {list(header.shape)} {str(header.dtype).removeprefix('torch.')}")
    theirs = [f"{name} {entry[0]} {entry[1]}" for name, entry in sorted(listed.items())]
    return [equal("tensors: names, shapes, types", found, theirs)]


@torch.inference_mode()
def _case(variant: Variant, policy: OpenVLA, case: Mapping[str, Any]) -> Iterator[Line]:
    golden = variant.golden
    name = f"case{case['case']}__"
    picture = np.asarray(Image.open(variant.folder / case["image"]).convert("RGB"))
    seen = Observation(
        {"image": picture},
        np.zeros(0, np.float32),
        case["instruction"],
        np.zeros(policy.dims, np.float32),
    )
    yield equal(f"{name}prompt", PROMPT.format(case["instruction"].lower()), case["prompt"])
    inputs = policy.inputs
    reads = policy.body.tokenizer.token_to_id("word 3") is None
    if reads:
        yield from _words(golden, policy, case, name)
    else:
        inputs = replace(inputs, words=Given(golden[f"{name}input_ids"]))
    batch = batch_of(inputs.arrays([seen]), device=torch.device("cpu"))
    yield from _vision(golden, policy, batch, name)
    run = policy.run_layers(policy.embed(batch), batch, watch=True)
    hidden = [run.start.hidden, *(state.hidden for state in run.states)]
    hidden[-1] = policy.norm(hidden[-1])  # the last of theirs is after the final norm
    if f"{name}hidden_states" in golden:
        yield near(
            f"{name}hidden_states", torch.cat(hidden), golden[f"{name}hidden_states"], HIDDEN
        )
    last = torch.stack([each[0, -1] for each in hidden])
    yield near(f"{name}hidden_last_token", last, golden[f"{name}hidden_last_token"], HIDDEN)
    normalised = policy.decode(run, batch)
    yield from _written(golden, policy, run.extras, normalised, name)
    expected = golden[f"{name}action"]
    action = policy.denormalise(normalised.numpy())[0, 0]
    size = max(1.0, float(np.abs(expected).max()))
    yield near(f"{name}action", action, expected, ACTION * size)
    if reads:  # the whole way, as a robot is answered
        yield equal(f"{name}action, from the observation", policy.infer(seen)[0], action)


def _words(golden: Golden, policy: OpenVLA, case: Mapping[str, Any], name: str) -> Iterator[Line]:
    ids, real = policy.inputs.words([case["instruction"]])
    yield equal(f"{name}input_ids", ids, golden[f"{name}input_ids"])
    # The processor's own: before the empty token was appended.
    if f"{name}processor_input_ids" in golden:
        theirs = golden[f"{name}processor_input_ids"]
        yield equal(f"{name}processor_input_ids", ids[:, : theirs.shape[1]], theirs)
        mask = golden[f"{name}processor_attention_mask"]
        yield equal(f"{name}processor_attention_mask", real[:, : mask.shape[1]], mask.astype(bool))


def _vision(golden: Golden, policy: OpenVLA, batch: Batch, name: str) -> Iterator[Line]:
    image = batch.images["image"]
    dino, siglip = policy.vision.pixels(image)
    found: dict[str, tuple[Tensor, float]] = {
        "resized_uint8": ((image[0] * 255).permute(1, 2, 0).round(), 0.0),
        "pixel_values": (torch.cat([dino, siglip], 1), PIXELS),
        "featurizer_patches": (policy.vision.dino(dino)[0], HIDDEN),
        "fused_featurizer_patches": (policy.vision.siglip(siglip)[0], HIDDEN),
        "projector_features": (policy.see(image)[0], HIDDEN),
    }
    for what, (value, bound) in found.items():
        if f"{name}{what}" in golden:
            yield near(f"{name}{what}", value, golden[f"{name}{what}"], bound)


def _written(
    golden: Golden, policy: OpenVLA, said: Mapping[str, Tensor], normalised: Tensor, name: str
) -> Iterator[Line]:
    logits = said["step_logits"][0]  # (a, rows)
    words = said["tokens"][0]
    if f"{name}step_logits" in golden:
        theirs = golden[f"{name}step_logits"]  # fewer than an action has dimensions, if it stopped
        yield near(f"{name}step_logits", logits[: len(theirs)], theirs, HIDDEN)
    if f"{name}top2_ids" in golden:
        top = logits.topk(2)
        yield equal(f"{name}top2_ids", top.indices, golden[f"{name}top2_ids"])
        yield near(f"{name}top2_logits", top.values, golden[f"{name}top2_logits"], HIDDEN)
    if f"{name}logits_action_rows" in golden:
        theirs = golden[f"{name}logits_action_rows"]
        first = policy.sizes.llama.vocabulary - policy.bins
        rows = logits[: len(theirs), first : first + theirs.shape[1]]
        yield near(f"{name}logits_action_rows", rows, theirs, HIDDEN)
    yield equal(f"{name}generated_ids", words, golden[f"{name}generated_ids"])
    if f"{name}bins" in golden:
        yield equal(f"{name}bins", policy.intervals(words), golden[f"{name}bins"])
    theirs = golden[f"{name}normalized_action"]
    yield near(f"{name}normalized_action", normalised[0, 0], theirs, ACTION)
