"""How unlike the training images an image is: how far its features lie from those the network knows.

A classifier answers for a hand or a photograph as readily as for a chest. The penultimate features tell them
apart: their Mahalanobis distance from the training images (Lee et al. 2018) needs no second network, no
images of the other kind and no change to training. One Gaussian is fitted to all classes together: for two
classes of one organ, that separates better than one for each. The covariance of 1024 features from a few
thousand images is ill-conditioned, so it is shrunk (Ledoit and Wolf 2004).
The energy of the logits (Liu et al. 2020) was the alternative; with one logit it is the confidence, and a
hand gets a confident one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_PREFIX = "novelty."
_MEAN, _WHITENING = f"{_PREFIX}mean", f"{_PREFIX}whitening"


@dataclass(frozen=True)
class Novelty:
    """A Gaussian over the features of the training images.

    Attributes
    ----------
    mean
        (F,) float32.
    whitening
        (F, F) float32; multiplied with it, centred features have unit covariance.
    """

    mean: Tensor
    whitening: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return the Mahalanobis distance of each image per feature: about 1 for the training images.

        Parameters
        ----------
        features
            (B, F), of any floating type.

        Returns
        -------
        Tensor
            (B,) float32, 0 or more.
        """
        centred = features.float() - self.mean
        return (centred @ self.whitening).square().mean(1).sqrt()

    def to(self, device: torch.device | str) -> Self:
        """Return it on another device."""
        return type(self)(self.mean.to(device), self.whitening.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps of it."""
        return {_MEAN: self.mean, _WHITENING: self.whitening}


def fit(features: Tensor) -> Novelty:
    """Fit to the features of training images, (N, F)."""
    from sklearn.covariance import LedoitWolf  # noqa: PLC0415 - heavy, and not needed to use the measure

    fitted = LedoitWolf().fit(features.double().cpu().numpy())
    covariance = torch.from_numpy(fitted.covariance_)
    # The inverse of the Cholesky factor of the covariance, transposed, whitens: |L^-1 x|^2 = x^T C^-1 x
    factor = torch.linalg.cholesky(covariance)
    whitening = torch.linalg.solve_triangular(factor, torch.eye(len(factor), dtype=factor.dtype), upper=False)
    return Novelty(torch.from_numpy(fitted.location_).float(), whitening.T.float().contiguous())


def split_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Novelty | None]:
    """Split the tensors of a checkpoint into the network's and, where it has one, the measure.

    Raises
    ------
    ValueError
        When the measure is there in part, or its shapes do not fit each other.
    """
    network = {name: tensor for name, tensor in tensors.items() if not name.startswith(_PREFIX)}
    kept = {name: tensor.float() for name, tensor in tensors.items() if name.startswith(_PREFIX)}
    if not kept:
        return network, None
    if set(kept) != {_MEAN, _WHITENING}:
        raise ValueError("the novelty measure is not whole")
    mean, whitening = kept[_MEAN], kept[_WHITENING]
    if mean.ndim != 1 or whitening.shape != (len(mean), len(mean)):
        raise ValueError("the novelty measure has shapes that do not fit each other")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in kept.values()):
        raise ValueError("the novelty measure is not finite")
    return network, Novelty(mean, whitening)
