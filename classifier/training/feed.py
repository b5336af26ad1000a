"""From decoded images to the input of the network."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from classifier.model.transforms import Chain, tail
from classifier.training.recipes import Recipe


class Feed:
    """Brings images into the input form of the network, on its device."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self._post = Chain(tail(recipe.preprocessing).transforms[1:])  # what follows Resize
        self._size = 2 * recipe.batch_size  # without gradients, twice as many images fit
        self._device = device

    def __call__(self, images: Tensor) -> Tensor:
        """Prepare images of the right size: (B, 1, S, S) float32 in 0..1 to (B, 3, S, S)."""
        prepared: Tensor = torch.vmap(self._post)(images)
        return prepared.contiguous(memory_format=torch.channels_last)

    def pieces(self, images: Tensor) -> Iterator[Tensor]:
        """Yield images (N, 1, S, S) uint8 in groups: (B, 1, S, S) float32 in 0..1, on the device."""
        for at in range(0, len(images), self._size):
            yield images[at : at + self._size].to(self._device).float() / 255
