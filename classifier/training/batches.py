"""From the images of a run to its batches: shuffled, changed at random, mixed, in the form of the network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from classifier.data import examples as data
from classifier.data.examples import Example
from classifier.data.images import decode_all, require_none
from classifier.errors import TrainingError
from classifier.model.transforms import Chain, tail
from classifier.training.augment import Augment, Augmentation, Published
from classifier.training.distributed import Group
from classifier.training.options import Options, Watcher, counted
from classifier.training.recipes import Recipe

_CACHE_MARGIN = 7 / 6  # images are kept this much larger than the network sees them, for turns and zooms


def with_margin(side: int) -> int:
    """Return the side of an image before it is changed at random, from the one that the network sees."""
    return round(side * _CACHE_MARGIN)


@dataclass(frozen=True)
class Images:
    """What is trained and validated on, decoded.

    Attributes
    ----------
    examples
        All, those of training first.
    train
        (N, 1, S, S) uint8, larger than the network sees them.
    val
        (M, 1, S, S) uint8, as the network sees them.
    skipped
        Images that were left out, and why.
    """

    examples: Sequence[Example]
    train: Tensor
    val: Tensor
    skipped: Mapping[Path, str] = field(default_factory=dict)

    @classmethod
    def decoded(cls, source: Path, recipe: Recipe, options: Options, watcher: Watcher) -> Images:
        """Split the images by patient, and decode them.

        Raises
        ------
        DataError
        """
        found = data.split(data.load(source), options.val_share, options.seed)
        examples = [example for example in found if example.split != "test"]
        decode = partial(
            decode_all,
            workers=options.workers,
            skip_bad=True,
            progress=counted(watcher.decoded, len(examples)),
        )
        parts = [[e for e in examples if e.split == name] for name in ("train", "val")]
        train = decode(parts[0], with_margin(recipe.image_size))
        val = decode(parts[1], recipe.image_size)
        bad = train.bad | val.bad
        if not options.skip_bad:
            require_none(bad)
        whole = [*train.examples, *val.examples]
        data.require_both_classes(whole)  # --skip-bad may have left one out
        return cls(whole, train.images, val.images, bad)

    @property
    def labels(self) -> tuple[Tensor, Tensor]:
        """Of the training images (N,) and the validation images (M,): 0 or 1, float32."""
        labels = torch.tensor([float(example.label) for example in self.examples])
        return labels[: len(self.train)], labels[len(self.train) :]


class Feed:
    """Brings images into the form that the network takes, on its device."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self._post = Chain(tail(recipe.preprocessing).transforms[1:])  # what follows Resize
        self._size = 2 * recipe.batch_size  # without gradients, twice as many fit
        self._device = device

    def __call__(self, images: Tensor) -> Tensor:
        """Prepare images of the right size: (B, 1, S, S) float32 in 0..1 to (B, 3, S, S)."""
        prepared: Tensor = torch.vmap(self._post)(images)
        return prepared.contiguous(memory_format=torch.channels_last)

    def pieces(self, images: Tensor) -> Iterator[Tensor]:
        """Yield images (N, 1, S, S) uint8 some at a time: (B, 1, S, S) float32 in 0..1, on the device."""
        for at in range(0, len(images), self._size):
            yield images[at : at + self._size].to(self._device).float() / 255


@dataclass(frozen=True)
class Batch:
    """This process's part of a batch.

    Attributes
    ----------
    images
        (B, 1, S, S) float32 in 0..1, changed at random.
    targets
        (B,) float32 in 0..1.
    size
        Of the whole batch.
    """

    images: Tensor
    targets: Tensor
    size: int


class Batches:
    """The training images in batches, anew for each epoch.

    Attributes
    ----------
    steps, images
        Number of batches and of images in an epoch.

    Raises
    ------
    TrainingError
        When a batch has too few images for the processes.
    """

    def __init__(self, recipe: Recipe, images: Images, group: Group, seed: int) -> None:
        self._recipe, self._group, self._seed = recipe, group, seed
        self._cached, self._labels = images.train, images.labels[0]
        self.images = len(images.train)
        self.steps = math.ceil(self.images / recipe.batch_size)
        smallest = self.images // self.steps
        if smallest < max(2, group.size):  # normalisation needs two images, each process one
            raise TrainingError(
                f"A batch of {smallest} images is too small; give more images or a larger --batch-size."
            )

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, the first being 1."""
        # Seeded anew for each epoch: a run that was resumed sees the same batches as one that was not
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
            if self._recipe.mixup:
                images, targets = _mixed(images, targets, self._recipe.mixup, generator)
            yield Batch(images, targets, len(whole))

    def _augmentation(self, side: int) -> Augmentation:
        strength = self._recipe.augment
        return Published(side) if strength is None else Augment(side, strength)


def _shrunk(images: Tensor, side: int) -> Tensor:
    if images.shape[-1] == side:
        return images
    return interpolate(images, (side, side), mode="bilinear", antialias=True)


def _mixed(
    images: Tensor, targets: Tensor, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Blend each image, and its target, with its neighbour in the shuffled batch (Zhang et al. 2018)."""
    # Beta(alpha, alpha) from two gamma variates, which take no generator: seeded by one that is drawn from it
    seed = int(torch.randint(2**31, (1,), generator=generator))
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    # Pairs, so that no image needs one of another process
    other = (torch.arange(len(images)) ^ 1).clamp_max(len(images) - 1).to(images.device)
    return share * images + (1 - share) * images[other], share * targets + (1 - share) * targets[other]
