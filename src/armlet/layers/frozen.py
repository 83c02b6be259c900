"""What it means for a part of a network to be frozen: its weights stay, and so does all else by which
its answers would change while the rest is trained. Knows no network."""

from typing import Self

from torch import nn


class RestsWhenFrozen(nn.Module):
    """In training mode only where some weight of it is trained. Otherwise it runs as it acts: without
    dropout, and with the statistics that its normalisations have; in training mode these would be
    overwritten by those of the batches that pass through."""

    def train(self, mode: bool = True) -> Self:
        is_trained = any(parameter.requires_grad for parameter in self.parameters())
        return super().train(mode and is_trained)
