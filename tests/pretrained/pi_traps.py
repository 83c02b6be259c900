"""The mistakes that a loader of π0 or π0.5 could make: each, by the name that `mistakes.json` has
for it, as a change of a policy that is right."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armlet.layers.gemma import AdaRMSNorm, hide
from armlet.policies.pretrained.pi_network import Pi, PiState, Suffix
from armlet.robot.reading.paligemma import PiWords
from armlet.types import Batch

Spring = Callable[[Pi, object], None]  # a policy, and pytest's monkeypatch


def prepared(change: Callable[[Batch], Batch]) -> Spring:
    """Another batch."""

    def spring(policy: Pi, monkeypatch: object) -> None:
        right = policy.prepare
        policy.prepare = lambda seen: change(right(seen))  # type: ignore[method-assign]

    return spring


def seen(change: Callable[[list[Tensor]], list[Tensor]]) -> Spring:
    """Other pictures, as the eyes see them."""

    def spring(policy: Pi, monkeypatch: object) -> None:
        right = policy.pictures
        policy.pictures = lambda batch: change(right(batch))  # type: ignore[method-assign]

    return spring


def embedded(change: Callable[[Pi, PiState], PiState]) -> Spring:
    """Another prefix."""

    def spring(policy: Pi, monkeypatch: object) -> None:
        right = policy.embed
        policy.embed = lambda batch: change(policy, right(batch))  # type: ignore[method-assign]

    return spring


def among_actions(change: Callable[[Pi, PiState, Suffix], Suffix]) -> Spring:
    """Other masks or positions of the expert."""

    def spring(policy: Pi, monkeypatch: object) -> None:
        right = policy.suffix
        policy.suffix = lambda state: change(policy, state, right(state))  # type: ignore[method-assign]

    return spring


def at_times(change: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> Spring:
    """Another embedding of the time."""

    def spring(policy: Pi, monkeypatch: object) -> None:
        right = policy.embed_time
        policy.embed_time = lambda time: change(right, time)  # type: ignore[method-assign]

    return spring


def scaled(words: float = 1.0, pictures: float = 1.0) -> Spring:
    """Embeddings times a power of √width."""

    def change(policy: Pi, state: PiState) -> PiState:
        root = math.sqrt(policy.width)
        factor = torch.where(state.vision, root**pictures, root**words)
        return replace(state, hidden=state.hidden * factor[..., None])

    return embedded(change)


def last_token_left_out(batch: Batch) -> Batch:
    last = batch.text_mask.sum(1) - 1
    rows = torch.arange(len(batch))
    text = batch.text.clone()
    real = batch.text_mask.clone()
    text[rows, last] = 0
    real[rows, last] = False
    return replace(batch, text=text, text_mask=real)


def first_token_left_out(batch: Batch) -> Batch:
    text = F.pad(batch.text[:, 1:], (0, 1))
    return replace(batch, text=text, text_mask=F.pad(batch.text_mask[:, 1:], (0, 1)))


def stretched(policy: Pi, monkeypatch: object) -> None:
    side = policy.network.sizes.image

    def pictures(batch: Batch) -> list[Tensor]:
        found = []
        for name in policy.network.cameras:
            squeezed = F.interpolate(batch.images[name], (side, side), mode="bilinear")
            found.append(squeezed * 2 - 1)
        return found

    policy.pictures = pictures  # type: ignore[method-assign]


def boxed_at(right: bool) -> Spring:
    """Padding on one side only: the picture in the other corner."""

    def spring(policy: Pi, monkeypatch: object) -> None:
        side = policy.network.sizes.image

        def pictures(batch: Batch) -> list[Tensor]:
            found = []
            for name in policy.network.cameras:
                image = batch.images[name]
                height, width = image.shape[-2:]
                ratio = max(width / side, height / side)
                inner = int(height / ratio), int(width / ratio)
                image = F.interpolate(image, inner, mode="bilinear").clamp(0, 1)
                down = side - inner[0]
                over = side - inner[1]
                around = (0, over, 0, down) if right else (over, 0, down, 0)
                found.append(F.pad(image, around) * 2 - 1)
            return found

        policy.pictures = pictures  # type: ignore[method-assign]

    return spring


def antialiased(policy: Pi, monkeypatch: object) -> None:
    right = F.interpolate

    def blurred(*given: object, **options: object) -> Tensor:
        return right(*given, **{**options, "antialias": True})  # type: ignore[arg-type]

    monkeypatch.setattr(F, "interpolate", blurred)  # type: ignore[attr-defined]


def padding_seen(batch: Batch) -> Batch:
    return replace(batch, text_mask=torch.ones_like(batch.text_mask))


def state_as_it_is(policy: Pi, monkeypatch: object) -> None:
    right = policy.prepare

    def raw(seen: list) -> Batch:
        states = torch.stack([torch.from_numpy(each.state) for each in seen])
        return replace(right(seen), state=states)

    policy.prepare = raw  # type: ignore[method-assign, assignment]


def in_steps(steps: int) -> Spring:
    def spring(policy: Pi, monkeypatch: object) -> None:
        policy.steps_instead = steps  # type: ignore[assignment]

    return spring


def padded_with(value: float) -> Spring:
    def spring(policy: Pi, monkeypatch: object) -> None:
        policy.network = dataclasses.replace(policy.network, padding=value)

    return spring


def causal_prefix(policy: Pi, state: PiState) -> PiState:
    count = state.mask.shape[1]
    ahead = torch.ones(count, count, dtype=torch.bool).tril()
    return replace(state, attention=hide((state.attention == 0) & ahead))


def causal_actions(policy: Pi, state: PiState, right: Suffix) -> Suffix:
    return other_block(right, lambda own: own & torch.ones_like(own).tril())


def all_seen(policy: Pi, state: PiState, right: Suffix) -> Suffix:
    return other_block(right, torch.ones_like)


def other_block(right: Suffix, change: Callable[[Tensor], Tensor]) -> Suffix:
    """The expert's own tokens see one another otherwise."""
    seen = right.attention == 0
    count = seen.shape[2]
    own = change(seen[..., -count:])
    return replace(right, attention=hide(torch.cat([seen[..., :-count], own], -1)))


def after_all_places(policy: Pi, state: PiState, right: Suffix) -> Suffix:
    count = right.attention.shape[2]
    places = state.mask.shape[1] + torch.arange(count).expand(len(state.mask), -1)
    return replace(right, rotary=policy.rotary(state.hidden, places))


def both(*springs: Spring) -> Spring:
    def spring(policy: Pi, monkeypatch: object) -> None:
        for each in springs:
            each(policy, monkeypatch)

    return spring


def cosines_first(right: Callable[[Tensor], Tensor], time: Tensor) -> Tensor:
    sines, cosines = right(time).chunk(2, -1)
    return torch.cat([cosines, sines], -1)


def plain_norms(policy: Pi, monkeypatch: object) -> None:
    """A weight is what it says, and not what is added to 1."""
    for name, parameter in policy.named_parameters():
        if "vision" not in name and name.endswith("norm.weight"):
            parameter.data = parameter.data - 1


def modulation(change: Callable[[Tensor, int], Tensor]) -> Spring:
    """Other parts of what modulates the norms."""

    def spring(policy: Pi, monkeypatch: object) -> None:
        for module in policy.modules():
            if isinstance(module, AdaRMSNorm):
                width = module.dense.out_features // 3
                module.dense = nn.Sequential(module.dense, _Changed(change, width))
                module.dense.weight = module.dense[0].weight  # its type is asked for

    return spring


class _Changed(nn.Module):
    def __init__(self, change: Callable[[Tensor, int], Tensor], width: int) -> None:
        super().__init__()
        self.change = change
        self.width = width

    def forward(self, said: Tensor) -> Tensor:
        return self.change(said, self.width)


def shift_first(said: Tensor, width: int) -> Tensor:
    scale, shift, gate = said.split(width, -1)
    return torch.cat([shift, scale, gate], -1)


def no_gates(said: Tensor, width: int) -> Tensor:
    return torch.cat([said[..., : 2 * width], torch.ones_like(said[..., :width])], -1)


def not_cleaned(policy: Pi, monkeypatch: object) -> None:
    def as_it_is(self: PiWords, text: str, numbers: list[int] | None) -> str:
        assert numbers is not None
        return f"Task: {text}, State: {' '.join(map(str, numbers))};\nAction: "

    monkeypatch.setattr(PiWords, "prompt", as_it_is)  # type: ignore[attr-defined]


def padded_state(policy: Pi, monkeypatch: object) -> None:
    prompts = dataclasses.replace(policy.network.prompts, slots=policy.network.sizes.state_slots)
    policy.network = dataclasses.replace(policy.network, prompts=prompts)


BOTH: dict[str, Spring] = {
    "the last token (newline) left out": prepared(last_token_left_out),
    "padding tokens not masked": prepared(padding_seen),
    "<bos> left out": prepared(first_token_left_out),
    "pictures left in 0..1": seen(lambda each: [(image + 1) / 2 for image in each]),
    "red and blue exchanged": seen(lambda each: [image.flip(1) for image in each]),
    "cameras exchanged": seen(lambda each: each[::-1]),
    "stretched to the square, not padded": stretched,
    "padded topleft (centre is right)": boxed_at(right=False),
    "padded bottomright (centre is right)": boxed_at(right=True),
    "padded with -3 instead of -1 (lerobot 0.4.x pi0, pi0.5)": padded_with(-3.0),
    "resized with antialiasing (PIL, torchvision)": antialiased,
    "1 step instead of 10": in_steps(1),
    "9 steps instead of 10": in_steps(9),
    "time reversed in the embedding": at_times(lambda right, time: right(1 - time)),
    "time embedding cos before sin": at_times(cosines_first),
    "everything causal": both(embedded(causal_prefix), among_actions(causal_actions)),
    "actions causal (they all see one another in pi0, pi0.5)": among_actions(causal_actions),
    "words not multiplied by sqrt(width)": scaled(words=-1, pictures=0),
    "words multiplied twice": scaled(words=1, pictures=0),
    "pictures divided by sqrt(width), as old transformers' PaliGemma does": scaled(
        words=0, pictures=-1
    ),
    "pictures multiplied by sqrt(width), as in SmolVLA": scaled(words=0, pictures=1),
    "RMSNorm weight used as it is (Gemma's is an offset from 1)": plain_norms,
    "action positions start after the padded prefix, not after its valid tokens": among_actions(
        after_all_places
    ),
}
ONE: dict[str, Spring] = {
    "state not normalised": state_as_it_is,
    "state left out (zeros)": prepared(
        lambda batch: replace(batch, state=torch.zeros_like(batch.state))
    ),
    "everything sees everything (no block mask)": among_actions(all_seen),
}
OTHER: dict[str, Spring] = {
    "adaRMS: shift before scale": modulation(shift_first),
    "adaRMS: gates left out (1)": modulation(no_gates),
    "state padded to max_state_dim in the prompt (lerobot 0.4.x)": padded_state,
    "task text not cleaned (second row has _ and a newline)": not_cleaned,
}
SPRINGS = {"pi0": {**BOTH, **ONE}, "pi05": {**BOTH, **OTHER}}
# Of `mistakes.json`: no mistakes, or none that a policy can make.
OTHERS = {
    "nothing wrong (noise floor)",
    "nothing wrong again (all mistakes were undone)",
    "noise drawn anew",
    "time embedding in single instead of double precision",  # 2e-5: near rounding
    "lm_head taken for embed_tokens (equal only where tied)",  # of the files: see test_pi0.py
}
