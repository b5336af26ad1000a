"""The network: DenseNet121 with one logit, and the architectures that a card can name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, relu

from classifier.errors import CheckpointError
from classifier.light_imports import light_imports

with light_imports():
    from torchvision.models import DenseNet


class Network(DenseNet):  # type: ignore[misc]  # torchvision has no types
    """DenseNet121 (Huang et al. 2017) with one logit, which also returns its penultimate features.

    The names of its weights are torchvision's, except for those of the head.
    """

    def __init__(self) -> None:
        super().__init__(growth_rate=32, block_config=(6, 12, 24, 16), num_init_features=64)
        self.classifier = nn.Sequential(nn.Dropout(0.3), nn.Linear(1024, 1))

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features that the head sees: (B, 3, H, W) to (B, 1024)."""
        maps = relu(self.features(images), inplace=True)
        return adaptive_avg_pool2d(maps, (1, 1)).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits: (B, 3, H, W) to (B, 1)."""
        logits: torch.Tensor = self.classifier(self.embed(x))
        return logits


def build(architecture: str) -> Network:
    """Make a network with untrained weights.

    Parameters
    ----------
    architecture
        ``"densenet121"``: torchvision's DenseNet121 (Huang et al. 2017) with one logit.

    Raises
    ------
    CheckpointError
        If the architecture is not known.
    """
    try:
        return _ARCHITECTURES[architecture]()
    except KeyError:
        raise CheckpointError(
            f"The architecture {architecture!r} is not known; use one of {', '.join(_ARCHITECTURES)}."
        ) from None


_ARCHITECTURES: dict[str, Callable[[], Network]] = {"densenet121": Network}
