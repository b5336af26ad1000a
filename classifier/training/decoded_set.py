"""The images of a run: split by patient, decoded once, kept in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from classifier.data import examples as data
from classifier.data.examples import Example
from classifier.data.images import decode_all, require_none
from classifier.training.options import Options, Source, Watcher, counted
from classifier.training.recipes import Recipe

_CACHE_MARGIN = 7 / 6  # images are kept this much larger than the network sees them, for turns and zooms


def with_margin(side: int) -> int:
    """Return the side of an image before random changes, from the side that the network sees."""
    return round(side * _CACHE_MARGIN)


@dataclass(frozen=True)
class DecodedSet:
    """The decoded images for training and validation.

    Attributes
    ----------
    examples
        All examples, those for training first.
    train
        (N, 1, S, S) uint8, larger than the network sees them.
    val
        (M, 1, S, S) uint8, as the network sees them.
    skipped
        Images that were left out, with the reason.
    """

    examples: Sequence[Example]
    train: Tensor
    val: Tensor
    skipped: Mapping[Path, str] = field(default_factory=dict)

    @classmethod
    def decoded(cls, source: Source, recipe: Recipe, options: Options, watcher: Watcher) -> DecodedSet:
        """Split the images by patient, and decode them.

        Raises
        ------
        DataError
        """
        listed = data.load(source) if isinstance(source, Path) else source
        found = data.split(listed, options.val_share, options.seed)
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
        """Labels of the training images (N,) and the validation images (M,): 0 or 1, float32."""
        labels = torch.tensor([float(example.label) for example in self.examples])
        return labels[: len(self.train)], labels[len(self.train) :]
