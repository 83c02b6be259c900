"""Weights and words by name, from the Hugging Face hub or a folder. Knows no policy; nothing is
fetched unless a name is given."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from tokenizers import Tokenizer
from torch import Tensor

PIXELS = {  # mean and deviation of the images on which a kind of tower was trained
    "clip_vision_model": (
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
    "siglip_vision_model": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def pixels(images: Tensor, size: int, kind: str) -> Tensor:
    """Images (b, 3, h, w) in [0, 1] → (b, 3, size, size) as a tower of this kind (its `model_type`)
    was trained to see them.

    Raises ValueError naming the kinds that are known.
    """
    if kind not in PIXELS:
        raise ValueError(
            f"how an image tower of type {kind!r} sees pixels is not known here; known are "
            f"{', '.join(PIXELS)}"
        )
    if images.shape[-2:] != (size, size):
        images = F.interpolate(
            images, (size, size), mode="bicubic", align_corners=False, antialias=True
        ).clamp(0, 1)  # bicubic overshoots at edges
    mean, deviation = images.new_tensor(PIXELS[kind])[..., None, None]  # (3, 1, 1) each
    return (images - mean) / deviation


def fetch(kind: Any, name: str) -> Any:
    """A transformers model of class `kind` by its name on the hub, or the folder in which it was
    saved.

    Raises OSError saying what to do where it is neither here nor to be fetched.
    """
    return _fetched(lambda: kind.from_pretrained(name), name, "weights")


def fetch_tokenizer(name: str) -> Tokenizer:
    """The tokenizer that belongs to a model of that name. Raises OSError as `fetch` does."""
    return Tokenizer.from_file(str(fetch_tokenizer_file(name)))


def fetch_tokenizer_file(name: str) -> Path:
    """The file of the same. Raises OSError as `fetch` does."""
    file = Path(name) / "tokenizer.json"
    if not file.is_file():
        file = Path(_fetched(lambda: hf_hub_download(name, "tokenizer.json"), name, "words"))
    return file


def stretch(positions: Tensor, length: int, kept: int = 20) -> Tensor:
    """A CLIP's text positions (t, d) → (length, d), as LongCLIP does it (arXiv 2403.15378, §3.2, and
    its code): the first `kept` as they are, then 20, 20.25, 20.5 … of 77 positions for 248. Those
    behind the last go on as straight as the last two stand.

    Raises ValueError where there are too few positions to be stretched.
    """
    found = len(positions)
    if found < kept + 2:
        raise ValueError(
            f"{found} text positions cannot be stretched: the first {kept} stay as they are, and two "
            "more are needed to go on from; give a CLIP with more, or a smaller `text_tokens`"
        )
    # CLIP's training texts are short, so only its first positions are well trained.
    share = (found - kept) / (length - kept)  # 57 / 228 = 1 / 4: exact
    places = kept + share * torch.arange(length - kept, device=positions.device)
    before = places.long().clamp(max=found - 2)
    beyond = (places - before)[:, None].to(positions.dtype)  # more than 1 behind the last
    stretched = (1 - beyond) * positions[before] + beyond * positions[before + 1]
    return torch.cat([positions[:kept], stretched])


def _fetched(get: Any, name: str, what: str) -> Any:
    try:
        return get()
    except OSError as error:
        raise OSError(
            f"the {what} of {name!r} are not in the cache of this machine and the hub did not give "
            f"them ({error}); check the name and the network, or save the model to a folder and "
            "give that folder as `pretrained`"
        ) from error
