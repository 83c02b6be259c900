"""What types of numbers are called."""

import torch
from torch import nn

from armlet.policies.precisions import NAMES, SHORT, most_of


def test_a_network_is_of_the_type_that_most_of_its_weights_have() -> None:
    # The first parameter is a norm in single precision, as in checkpoints in bfloat16.
    network = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 8).bfloat16(), nn.LayerNorm(8))
    assert next(network.parameters()).dtype == torch.float32
    assert NAMES[most_of(network)] == "bf16"
    assert {NAMES[dtype]: dtype for dtype in NAMES} == SHORT
