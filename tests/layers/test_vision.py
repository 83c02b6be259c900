"""The eyes: what words do to tokens, and that a thing named can be pointed at by colour, and by its
place in a sentence."""

import pytest
import torch
from torch import Tensor, nn

from armlet.layers.vision import ConvEncoder, Pointer

SIZE, WIDTH = 36, 32
COLOURS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.2, 0.9], [0.1, 0.8, 0.2]])


def scenes(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures of three squares, one of each colour; the colour meant; where its square is, in
    units of the picture."""
    torch.manual_seed(seed)
    images, places = torch.full((count, 3, SIZE, SIZE), 0.5), torch.zeros(count, 3, 2)
    for index in range(count):
        cells = torch.randperm(9)[:3]
        for colour, cell in enumerate(cells):
            row, column = divmod(int(cell), 3)
            images[index, :, row * 12 + 3 : row * 12 + 9, column * 12 + 3 : column * 12 + 9] = (
                COLOURS[colour][:, None, None]
            )
            places[index, colour] = torch.tensor([row, column]) - 1.0
    meant = torch.randint(3, (count,))
    return images, meant, places[torch.arange(count), meant]


def test_a_pointer_finds_what_the_words_name_though_it_does_not_read_them() -> None:
    torch.manual_seed(0)
    encoder, pointer, words = (
        ConvEncoder(SIZE, WIDTH, stride=12, channels=8),
        Pointer(WIDTH, 9, 2),
        nn.Embedding(3, WIDTH),
    )
    trained = [*encoder.parameters(), *pointer.parameters(), *words.parameters()]
    optimiser = torch.optim.AdamW(trained, 3e-3)
    images, meant, places = scenes(256, seed=1)
    for _ in range(150):
        loss = (pointer(encoder(images, words(meant))) - places).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    images, meant, places = scenes(100, seed=2)
    with torch.no_grad():
        right = (pointer(encoder(images, words(meant))) - places).norm(dim=1) < 0.3
        wrong = (pointer(encoder(images, words((meant + 1) % 3))) - places).norm(dim=1) < 0.3
    assert right.float().mean() > 0.9 and wrong.float().mean() < 0.1


def test_at_first_words_change_nothing() -> None:
    """FiLM begins as the identity, so an encoder trained without words is one trained with them."""
    encoder = ConvEncoder(SIZE, WIDTH, stride=12)
    images = torch.rand(2, 3, SIZE, SIZE)
    assert torch.equal(
        encoder(images, torch.zeros(2, WIDTH)), encoder(images, torch.randn(2, WIDTH))
    )


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="expected patches of 8, 12 or 16 that divide the side"):
        ConvEncoder(40, WIDTH, stride=12)
