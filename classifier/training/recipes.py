"""Recipes: all settings of a training run that do not concern the data or the machine."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from classifier.training.augment import Strength

_GROWING = 0.6  # of the epochs
Schedule = Literal["one-cycle", "plateau"]


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes
    ----------
    image_size
        Side of the square that the network sees, in pixels.
    growth
        Share of the side with which training begins; it grows over the first 60 % of the epochs, which costs
        less and disturbs less at first (progressive learning, Tan and Le 2021). 1 for one size throughout.
    learning_rate
        Largest rate of the one-cycle schedule, or the first one of the plateau schedule.
    patience
        Epochs without a better validation loss before training ends; 0 = no limit.
    frozen
        Train only denseblock3, denseblock4, the layers after them, and the head.
    balanced
        Both classes weigh the same in the loss, whatever their share.
    smoothing
        Labels are moved this far towards each other.
    mixup
        Parameter of the Beta distribution of Zhang et al. 2018; 0 for none.
    average
        Decay per step of the exponential moving average of the weights; 0 for none.
    augment
        Strength of the default augmentation, or none for torchvision's transforms of the published pipeline.
    stretch
        Percentiles that the preprocessing maps to 0 and 1, or none.
    mean, std
        Mean and deviation of the normalisation: one number, or one for each of the three channels.
    """

    name: str
    image_size: int
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    schedule: Schedule
    patience: int
    weights: str
    frozen: bool
    balanced: bool
    smoothing: float
    mixup: float
    average: float
    growth: float
    augment: Strength | None
    stretch: tuple[float, float] | None
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]

    def size_at(self, epoch: int) -> int:
        """Return the side of the training images in an epoch; the first epoch is 1."""
        grown = min(1.0, (epoch - 1) / max(1.0, _GROWING * self.epochs))
        side = self.image_size * (self.growth + (1 - self.growth) * grown)
        return min(self.image_size, 16 * math.ceil(side / 16))

    @property
    def preprocessing(self) -> list[dict[str, Any]]:
        """The tail of the transform chain."""
        steps: list[dict[str, Any]] = [{"name": "Resize", "size": self.image_size}]
        if self.stretch is not None:
            steps.append({"name": "StretchContrast", "low": self.stretch[0], "high": self.stretch[1]})
        if isinstance(self.mean, tuple) or isinstance(self.std, tuple):
            whole = ({"name": "RepeatChannel", "count": 3}, self._normalise)
        else:  # cheaper on one plane
            whole = (self._normalise, {"name": "RepeatChannel", "count": 3})
        return [*steps, *whole]

    @property
    def _normalise(self) -> dict[str, Any]:
        mean, std = (list(n) if isinstance(n, tuple) else n for n in (self.mean, self.std))
        return {"name": "Normalise", "mean": mean, "std": std}

    @property
    def text(self) -> str:
        """The recipe in one line, for the model card; a file of weights by its name, without its folder."""
        told = asdict(self) | {"weights": Path(self.weights).name}
        return ", ".join(f"{key}={value}" for key, value in told.items() if key != "augment")


PUBLISHED = Recipe(
    name="published",
    image_size=224,
    epochs=12,
    batch_size=32,
    learning_rate=1e-4,
    weight_decay=0,
    schedule="plateau",
    patience=5,
    weights="imagenet",
    frozen=True,
    balanced=False,
    smoothing=0,
    mixup=0,
    average=0,
    growth=1,
    augment=None,
    stretch=None,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)

DEFAULT = Recipe(
    name="default",
    image_size=160,
    epochs=24,
    batch_size=32,
    learning_rate=1.5e-3,
    weight_decay=0.05,
    schedule="one-cycle",
    patience=0,
    weights="none",
    frozen=False,
    balanced=True,
    smoothing=0.02,
    mixup=0.2,
    average=0.998,
    growth=0.6,
    augment=Strength(),
    stretch=(1, 99),
    mean=0.449,  # ImageNet's, averaged over its channels
    std=0.226,
)

RECIPES = {recipe.name: recipe for recipe in (DEFAULT, PUBLISHED)}


def changed(recipe: Recipe, **settings: Any) -> Recipe:
    """Return a recipe with the settings that are not ``None``."""
    return replace(recipe, **{name: value for name, value in settings.items() if value is not None})
