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

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """Return the maps whose means are the features: (B, 3, H, W) to (B, 1024, H / 32, W / 32)."""
        return relu(self.features(images), inplace=True)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features that the head sees: (B, 3, H, W) to (B, 1024)."""
        return pooled(self.maps(images))

    @property
    def head(self) -> nn.Linear:
        """The one linear layer from features to the logit."""
        linear = self.classifier[-1]
        assert isinstance(linear, nn.Linear)
        return linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits: (B, 3, H, W) to (B, 1)."""
        logits: torch.Tensor = self.classifier(self.embed(x))
        return logits


def pooled(maps: torch.Tensor) -> torch.Tensor:
    """Return the features, which are the means of the maps: (B, 1024, h, w) to (B, 1024)."""
    return adaptive_avg_pool2d(maps, (1, 1)).flatten(1)


def activation(maps: torch.Tensor, head: nn.Linear) -> torch.Tensor:
    """Return what each place adds to the logit (class activation map, Zhou et al. 2016).

    After the last maps there is nothing but a mean and one linear layer, so the map is exact: its mean and
    the bias of the head are the logit. Grad-CAM and HiResCAM (Draelos and Carin 2020) are the same map here,
    but for a positive factor.

    Parameters
    ----------
    maps
        (B, 1024, h, w), the last ones.
    head
        From 1024 features to one logit.

    Returns
    -------
    Tensor
        (B, h, w) float32, in units of the logit.
    """
    return torch.einsum("bchw,c->bhw", maps.float(), head.weight[0].float())


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
