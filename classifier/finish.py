"""From trained weights to a model to use: temperature, threshold, novelty limit, measurements, card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from classifier import data
from classifier.calibrate import choose_threshold, fit_temperature, probabilities
from classifier.data import Example
from classifier.metrics import calibration_error, interval
from classifier.model import Metric, ModelCard
from classifier.optim import ARCHITECTURE
from classifier.recipes import Recipe

Numbers = NDArray[np.float64]

_DECIMALS = 4
LIMITS = (
    "Research use only: not a medical device, not for diagnosis.",
    "Known from its training population only; other sites, scanners and ages are untested.",
)


_UNFINISHED = "Training was not finished: it has no measure of what is unlike its training images."


@dataclass(frozen=True)
class About:
    """What the card says that no computation can tell.

    Attributes
    ----------
    ages
        Youngest and oldest of the training population in completed years, where that is known.
    """

    name: str = "densenet121"
    version: str = "1"
    population: str = "Not stated."
    licence: str = "Not stated."
    description: str = ""
    ages: tuple[int, int] | None = None


@dataclass(frozen=True)
class Wanted:
    """How the model is to be operated.

    Attributes
    ----------
    sensitivity
        What the threshold must reach on the validation images.
    band
        Probabilities nearer to the threshold than this are undetermined.
    unlike_share
        Share of the validation images that may lie beyond the novelty limit.
    """

    sensitivity: float = 0.99
    band: float = 0.0
    unlike_share: float = 0.005


def card(  # noqa: PLR0917 - each is of another type
    recipe: Recipe,
    examples: Sequence[Example],
    logits: Numbers,
    distances: Numbers | None,
    wanted: Wanted,
    about: About,
) -> ModelCard:
    """Calibrate and measure on validation images, and write the card.

    Parameters
    ----------
    examples
        Of training and validation.
    logits
        (N,) of the validation images, in the order of `examples`.
    distances
        (N,) of the same images from the training images; ``None`` for a model in the making, which has
        neither that measure nor intervals yet.
    """
    held_out = [example for example in examples if example.split == "val"]
    patients = len({example.patient for example in held_out})
    labels = np.array([example.label for example in held_out], np.float64)
    where = f"{len(held_out)} validation images of {patients} patients"
    temperature = fit_temperature(logits, labels)
    probability = probabilities(logits, temperature)
    threshold = choose_threshold(probability, labels, wanted.sensitivity)
    limit, beyond = _limit(distances, wanted.unlike_share)
    seen = len(examples) - len(held_out)
    return ModelCard(
        name=about.name,
        version=about.version,
        architecture=ARCHITECTURE,
        preprocessing=tuple(recipe.preprocessing),
        recipe=recipe.text,
        threshold=threshold,
        threshold_source=f"The largest with sensitivity {wanted.sensitivity:g} on {where}.",
        temperature=temperature,
        temperature_source=f"Smallest log loss on {where}.",
        band=wanted.band,
        ages=about.ages,
        novelty_limit=limit,
        novelty_source=""
        if limit is None
        else f"Mahalanobis distance of the penultimate features from the training images, per feature;"
        f" {beyond} of {where} lie beyond.",
        data=f"{about.description} {seen} training images;"
        f" digest of data and split {data.digest(examples)[:16]}.".strip(),
        population=about.population,
        licence=about.licence,
        metrics=tuple(
            _measured(labels, probability, held_out, threshold, with_intervals=distances is not None)
        ),
        limits=LIMITS if distances is not None else (*LIMITS, _UNFINISHED),
    )


def _limit(distances: Numbers | None, unlike_share: float) -> tuple[float | None, int]:
    """Return the limit, and how many lie beyond it: no more than the share wanted."""
    if distances is None:
        return None, 0
    chosen = float(np.quantile(distances, 1 - unlike_share, method="higher"))
    limit = float(np.ceil(chosen * 10**_DECIMALS) / 10**_DECIMALS)
    return limit, int((distances > limit).sum())


def _measured(
    labels: Numbers,
    probability: Numbers,
    held_out: Sequence[Example],
    threshold: float,
    *,
    with_intervals: bool,
) -> Iterator[Metric]:
    patients = [example.patient for example in held_out]
    for name, score in _measures(threshold).items():
        low, high = interval(labels, probability, patients, score) if with_intervals else (None, None)
        yield Metric(
            name=name,
            value=round(score(labels, probability), _DECIMALS),
            low=None if low is None else round(low, _DECIMALS),
            high=None if high is None else round(high, _DECIMALS),
            images=len(held_out),
            patients=len(set(patients)),
            data="validation: patients held out, on whom epoch, threshold, temperature and limit were chosen",
            measured_by="classifier train",
        )


def _measures(threshold: float) -> dict[str, Callable[[Numbers, Numbers], float]]:
    def accuracy(labels: Numbers, probability: Numbers) -> float:
        return float(((probability >= threshold) == labels).mean())

    def sensitivity(labels: Numbers, probability: Numbers) -> float:
        return float((probability[labels == 1] >= threshold).mean())

    def specificity(labels: Numbers, probability: Numbers) -> float:
        return float((probability[labels == 0] < threshold).mean())

    return {
        "AUROC": lambda labels, probability: float(roc_auc_score(labels, probability)),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "accuracy": accuracy,
        "expected calibration error": calibration_error,
    }
