"""What types of numbers are called: by torch, in options and saved networks, and in the header of a
safetensors file. Knows no network."""

from collections import Counter

import torch
from torch import nn

# In options, and in a network's own description.
SHORT = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
IN_HEADERS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def long_name(dtype: torch.dtype) -> str:
    """Torch's own name: float32."""
    return str(dtype).removeprefix("torch.")


def most_of(network: nn.Module) -> torch.dtype:
    """The type that most of a network's weights have: norms may be in single precision where the
    rest is not."""
    counts: Counter[torch.dtype] = Counter()
    for each in network.parameters():
        counts[each.dtype] += each.numel()
    ((dtype, _),) = counts.most_common(1)
    return dtype


LONG = {long_name(dtype): dtype for dtype in SHORT.values()}
NAMES = {dtype: name for name, dtype in SHORT.items()}
