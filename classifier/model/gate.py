"""A small network that tells images like the training images from strangers, and what kind of stranger.

The distance of features (`classifier.model.novelty`) finds hands, photographs and noise, but takes most
adults for children: to a network that was trained to find pneumonia, one chest is like another. This one was
shown strangers (outlier exposure, Hendrycks et al. 2019), and finds those that differ in what the large
network ignores. It looks at the same input, at 80 x 80 pixels: the proportions of a body are still seen at
that size, while resolution, sharpness and compression, which differ between hospitals, are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

SIDE = 80
_PREFIX = "gate."
_STRIDES = (2, 2, 1, 2, 1, 2)
_WIDTHS = (12, 24, 24, 48, 48, 96)
_KERNELS = (5, 3, 3, 3, 3, 3)


class Gate(nn.Module):
    """Convolutions, the mean over the image, and one logit for each kind of image.

    Parameters
    ----------
    kinds
        How many kinds there are; the first one is what the model knows.
    """

    def __init__(self, kinds: int) -> None:
        super().__init__()
        sizes = zip((1, *_WIDTHS), _WIDTHS, _KERNELS, _STRIDES, strict=False)
        self.layers = nn.ModuleList(nn.Conv2d(i, o, k, s, k // 2) for i, o, k, s in sizes)
        self.head = nn.Linear(_WIDTHS[-1], kinds)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits.

        Parameters
        ----------
        images
            (B, C, S, S) float32, what the large network takes; only the first plane is looked at.

        Returns
        -------
        Tensor
            (B, K), one for each kind.
        """
        maps = shrunk(images)
        for layer in self.layers:
            maps = torch.relu(layer(maps))
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps of it."""
        return {
            f"{_PREFIX}{name}": tensor.detach().cpu().contiguous()
            for name, tensor in self.state_dict().items()
        }


class Judgement(NamedTuple):
    """What the gate says of images.

    Attributes
    ----------
    novelties
        (B,) float32, 0 to 2; beyond 1 the image is a stranger.
    strangers
        (B,) int64, of the kinds other than the first the likeliest.
    """

    novelties: Tensor
    strangers: Tensor


def judge(logits: Tensor, limit: float) -> Judgement:
    """Return novelty and kind from the logits (B, K) of the gate.

    Parameters
    ----------
    limit
        Log odds of a stranger from which on the image is one.
    """
    odds = strangeness(logits)
    return Judgement(2 * torch.sigmoid(odds - limit), 1 + logits[:, 1:].argmax(1))


def strangeness(logits: Tensor) -> Tensor:
    """Return the log odds (B,) of a stranger, of whatever kind, from logits (B, K)."""
    return logits[:, 1:].logsumexp(1) - logits[:, 0]


def shrunk(images: Tensor) -> Tensor:
    """Return the first plane at the size at which the gate looks at it: (B, C, S, S) to (B, 1, 80, 80)."""
    return interpolate(images[:, :1], (SIDE, SIDE), mode="bilinear", antialias=True)


def split_gate(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Gate | None]:
    """Split the tensors of a checkpoint into those of others and, where it has one, the gate.

    Raises
    ------
    ValueError
        When the gate is there in part, is of other shapes, or holds values that are not finite.
    """
    others = {name: tensor for name, tensor in tensors.items() if not name.startswith(_PREFIX)}
    own = {
        name.removeprefix(_PREFIX): tensor.float()
        for name, tensor in tensors.items()
        if name.startswith(_PREFIX)
    }
    if not own:
        return others, None
    if not all(bool(torch.isfinite(tensor).all()) for tensor in own.values()):
        raise ValueError("the gate is not finite")
    gate = Gate(len(own.get("head.bias", (0, 0))))
    try:
        gate.load_state_dict(own, strict=True)
    except RuntimeError as error:
        raise ValueError("the gate is not whole, or of other shapes") from error
    return others, gate.eval().requires_grad_(False)
