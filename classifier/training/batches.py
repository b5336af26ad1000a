"""The training images of a run in batches: shuffled, changed at random, mixed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from classifier.errors import TrainingError
from classifier.training.augment import Augment, Augmentation, Published
from classifier.training.decoded_set import DecodedSet, with_margin
from classifier.training.distributed import Group
from classifier.training.recipes import Recipe


@dataclass(frozen=True)
class Batch:
    """This process's part of a batch.

    Attributes
    ----------
    images
        (B, 1, S, S) float32 in 0..1, changed at random.
    targets
        (B,) float32 in 0..1.
    weights
        (B,) float32, how much each image counts.
    size
        Size of the whole batch.
    """

    images: Tensor
    targets: Tensor
    weights: Tensor
    size: int


class Batches:
    """The training images in batches, drawn again for each epoch.

    Parameters
    ----------
    weights
        (N,) float32, how much each image counts.

    Attributes
    ----------
    steps, images
        Number of batches and of images in an epoch.

    Raises
    ------
    TrainingError
        If a batch has too few images for the processes.
    """

    def __init__(self, recipe: Recipe, images: DecodedSet, weights: Tensor, group: Group, seed: int) -> None:
        self._recipe, self._group, self._seed = recipe, group, seed
        self._cached, self._labels, self._weights = images.train, images.labels[0], weights
        self.images = len(images.train)
        self.steps = math.ceil(self.images / recipe.batch_size)
        smallest = self.images // self.steps
        if smallest < max(2, group.size):  # normalisation needs two images, and each process one
            raise TrainingError(
                f"A batch of {smallest} images is too small; give more images or a larger --batch-size."
            )

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, the first being 1."""
        # Seeded again for each epoch: a resumed run sees the same batches as an uninterrupted one
        seed = self._seed * 100_003 + number
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed * self._group.size + self._group.rank)  # dropout, torchvision's transforms
        order = torch.randperm(self.images, generator=generator)
        side = self._recipe.size_at(number)
        augment = self._augmentation(side)
        for whole in order.tensor_split(self.steps):
            part = self._group.part(len(whole))
            mine = whole[part]
            images = self._cached[mine].to(self._group.device).float() / 255
            images = augment(_shrunk(images, with_margin(side)), generator, len(whole), part)
            targets = self._labels[mine].to(self._group.device)
            targets = targets * (1 - 2 * self._recipe.smoothing) + self._recipe.smoothing
            weights = self._weights[mine].to(self._group.device)
            if self._recipe.mixup:
                images, targets, weights = _mixed((images, targets, weights), self._recipe.mixup, generator)
            yield Batch(images, targets, weights, len(whole))

    def _augmentation(self, side: int) -> Augmentation:
        strength = self._recipe.augment
        return Published(side) if strength is None else Augment(side, strength)


def _shrunk(images: Tensor, side: int) -> Tensor:
    if images.shape[-1] == side:
        return images
    return interpolate(images, (side, side), mode="bilinear", antialias=True)


def _mixed(parts: Sequence[Tensor], alpha: float, generator: torch.Generator) -> list[Tensor]:
    """Blend each image, its target and its weight with those of its neighbour in the shuffled batch (Zhang et
    al. 2018).
    """
    # Beta(alpha, alpha) from two gamma variates, which accept no generator: a number drawn from it is the
    # seed
    seed = int(torch.randint(2**31, (1,), generator=generator))
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    # Pairs, so that no image needs an image of another process
    number = len(parts[0])
    other = (torch.arange(number) ^ 1).clamp_max(number - 1).to(parts[0].device)
    return [share * part + (1 - share) * part[other] for part in parts]
