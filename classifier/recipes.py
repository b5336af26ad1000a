"""Recipes: everything about a training run that is not about the data or the machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from classifier.augment import Strength

Schedule = Literal["one-cycle", "plateau"]


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes
    ----------
    image_size
        Side of the square that the network sees, in pixels.
    learning_rate
        Largest rate of the one-cycle schedule, or the first one of the plateau schedule.
    patience
        Epochs without a better validation loss after which training ends; 0 never ends early.
    frozen
        Only denseblock3, denseblock4, what follows them and the head are trained.
    balanced
        Both classes weigh the same in the loss, whatever their share.
    smoothing
        Labels are moved this far towards each other.
    mixup
        Parameter of the Beta distribution of Zhang et al. 2018; 0 for none.
    average
        Decay per step of the exponential moving average of the weights; 0 for none.
    stretch
        Percentiles that the preprocessing maps to 0 and 1, or none.
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
    augment: Strength
    stretch: tuple[float, float] | None

    @property
    def preprocessing(self) -> list[dict[str, Any]]:
        """The tail of the transform chain; ImageNet's mean and deviation, averaged over its channels."""
        steps: list[dict[str, Any]] = [{"name": "Resize", "size": self.image_size}]
        if self.stretch is not None:
            steps.append({"name": "StretchContrast", "low": self.stretch[0], "high": self.stretch[1]})
        steps.append({"name": "Normalise", "mean": 0.449, "std": 0.226})
        steps.append({"name": "RepeatChannel", "count": 3})
        return steps

    @property
    def text(self) -> str:
        """The recipe in one line, for the model card."""
        return ", ".join(f"{key}={value}" for key, value in asdict(self).items() if key != "augment")


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
    # Random resized crops of 80 to 100 %, flips, 20 degrees, colour jitter of 0.2
    augment=Strength(
        rotation=20,
        shear=0,
        zoom=1.12,
        stretch=1.15,
        shift=0.05,
        gamma=1,
        contrast=1.2,
        brightness=0.1,
        curve=0,
        blur=0,
        sharpen=0,
        noise=0,
        border=0,
        patches=0,
    ),
    stretch=None,
)

DEFAULT = Recipe(
    name="default",
    image_size=192,
    epochs=20,
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
    augment=Strength(),
    stretch=(1, 99),
)

RECIPES = {recipe.name: recipe for recipe in (DEFAULT, PUBLISHED)}


def changed(recipe: Recipe, **settings: Any) -> Recipe:
    """Return a recipe with those settings that are not ``None``."""
    return replace(recipe, **{name: value for name, value in settings.items() if value is not None})
