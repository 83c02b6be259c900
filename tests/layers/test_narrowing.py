"""A narrower flow head begins with what is largest in the wider one."""

import pytest
import torch

from armlet.layers.heads import FlowHead, RegressionHead
from armlet.layers.narrowing import narrowed

WIDTH, CHUNK, DIMS = 8, 3, 2


def head(hidden: int, blocks: int, **options) -> FlowHead:
    flow = FlowHead(WIDTH, CHUNK, DIMS, hidden=hidden, blocks=blocks, **options).eval()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter)
    return flow


def widened(slim: FlowHead, wide: FlowHead, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """The weights of `slim` in some places of those of `wide`, and 0 in all others."""
    places = torch.Generator().manual_seed(seed)

    def some(of: int, count: int) -> torch.Tensor:
        return torch.randperm(of, generator=places)[:count].sort().values

    tokens, condition, units = some(96, 32), some(96, 32), some(96, 32)
    everything: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]] = {
        "enter": (tokens, None),
        "leave": (None, tokens),
        "condition": (condition, None),
        "time.0": (units, None),
        "time.2": (condition, units),
        "span": (condition, None),
    }
    for index in range(len(slim.blocks)):
        first = int(torch.randint(0, 3, (1,), generator=places))
        inside = first * 32 + torch.arange(32)
        mlp = some(384, 128)
        everything |= {
            f"blocks.{index}.qkv": (torch.cat([inside, 96 + inside, 192 + inside]), tokens),
            f"blocks.{index}.out": (tokens, inside),
            f"blocks.{index}.mlp.0": (mlp, tokens),
            f"blocks.{index}.mlp.2": (tokens, mlp),
            f"blocks.{index}.modulation": (
                torch.cat([96 * part + tokens for part in range(6)]),
                condition,
            ),
        }
    theirs = slim.state_dict()
    found = {name: torch.zeros_like(tensor) for name, tensor in wide.state_dict().items()}
    found["position"][:, tokens] = theirs["position"]
    found["noise"] = theirs["noise"]
    for name, (rows, columns) in everything.items():
        if f"{name}.weight" not in theirs:
            continue
        weight, bias = found[f"{name}.weight"], found[f"{name}.bias"]
        rows = torch.arange(len(weight)) if rows is None else rows
        columns = torch.arange(weight.shape[1]) if columns is None else columns
        weight[rows[:, None], columns] = theirs[f"{name}.weight"]
        bias[rows] = theirs[f"{name}.bias"]
    return found


@pytest.mark.parametrize("shortcut", [False, True])
def test_what_is_in_some_places_of_a_wide_head_is_found_there(shortcut: bool) -> None:
    torch.manual_seed(0)
    slim = head(32, 2, shortcut=shortcut)
    found = narrowed(widened(slim, head(96, 2, shortcut=shortcut)), 32, 2)
    assert found.keys() == slim.state_dict().keys()
    for name, tensor in slim.state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_at_full_width_nothing_changes_and_of_blocks_the_first_stay() -> None:
    torch.manual_seed(0)
    wide = head(64, 3)
    again = wide.weights_for(wide)
    assert all(torch.equal(again[name], tensor) for name, tensor in wide.state_dict().items())
    shorter = head(64, 1)
    shorter.load_state_dict(wide.weights_for(shorter))
    assert torch.equal(shorter.blocks[0].qkv.weight, wide.blocks[0].qkv.weight)
    for hidden, blocks in ((96, 1), (64, 4)):
        with pytest.raises(
            ValueError, match=f"hidden {hidden} and {blocks} blocks cannot be taken"
        ):
            wide.weights_for(head(hidden, blocks))
    small, large = RegressionHead(WIDTH, CHUNK, DIMS, hidden=8), RegressionHead(WIDTH, CHUNK, DIMS)
    with pytest.raises(ValueError, match="a RegressionHead cannot be made narrower"):
        large.weights_for(small)
    assert large.weights_for(large).keys() == large.state_dict().keys()
