"""From trained weights to a usable model: temperature, threshold, novelty limit, measurements, card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classifier.data import examples as data
from classifier.data.examples import Example
from classifier.measuring.metrics import auroc, calibration_error, interval, needed, share_interval
from classifier.model.card import Metric, ModelCard
from classifier.training.calibrate import Calibration, choose_threshold, fit, probabilities
from classifier.training.optim import ARCHITECTURE
from classifier.training.recipes import Recipe

Numbers = NDArray[np.float64]

_DECIMALS = 4
_CLASS_OF = {"sensitivity": 1, "specificity": 0}
_ADULT = 18  # years
FEW_PATIENTS = "The threshold was chosen on few patients"
_WELL_KNOWN, _WITHIN = 0.95, 0.05  # a share, and how well it should be known
LIMITS = (
    "Research use only: not a medical device, not for diagnosis.",
    "Known from its training population only; other sites, scanners and ages are untested.",
)


_VALIDATION = "validation: patients held out, on whom epoch, calibration, threshold and limit were chosen"
_UNFINISHED = "Training was not finished: it has no measure of what is unlike its training images."


@dataclass(frozen=True)
class About:
    """The contents of the card that cannot be computed.

    Attributes
    ----------
    ages
        Youngest and oldest age of the training population in completed years, if known.
    ages_source
        How they are known.
    """

    name: str = "densenet121"
    version: str = "1"
    population: str = "Not stated."
    licence: str = "Not stated."
    description: str = ""
    ages: tuple[int, int] | None = None
    ages_source: str = ""


@dataclass(frozen=True)
class OperatingTarget:
    """How to operate the model.

    Attributes
    ----------
    sensitivity
        Sensitivity that the threshold must reach on the validation images.
    band
        Probabilities nearer to the threshold than this are undetermined.
    unlike_share
        Share of the validation images that may lie beyond the novelty limit.
    """

    sensitivity: float = 0.99
    band: float = 0.0
    unlike_share: float = 0.005


@dataclass(frozen=True)
class Validation:
    """Outputs of a network for the validation images, in the order of the examples.

    Attributes
    ----------
    logits
        (N,).
    changed
        (K, N), for the same images changed at random as in training: other machines, settings and positions.
        The model is calibrated on these, because it is more certain on images like its training images than
        on others. ``None`` if the recipe has no such changes.
    distances
        (N,) from the training images; ``None`` for an unfinished model, which has no intervals yet either.
    """

    logits: Numbers
    changed: Numbers | None = None
    distances: Numbers | None = None


def card(
    recipe: Recipe, examples: Sequence[Example], found: Validation, wanted: OperatingTarget, about: About
) -> ModelCard:
    """Calibrate and measure on validation images, and write the card; `examples` are all examples of the
    run.
    """
    held_out = [example for example in examples if example.split == "val"]
    people = len({example.patient for example in held_out})
    labels = np.array([example.label for example in held_out], np.float64)
    logits = found.logits if found.changed is None else found.changed.ravel()
    truth = np.tile(labels, len(logits) // len(labels))
    where = f"{len(held_out)} validation images of {people} patients"
    if found.changed is not None:
        where += f", each changed at random as in training {len(found.changed)} times"
    calibration = fit(logits, truth, _weights(truth, balanced=recipe.balanced))
    threshold = choose_threshold(probabilities(logits, calibration), truth, wanted.sensitivity)
    limit, beyond = _limit(found.distances, wanted.unlike_share)
    operating = Operating.of(found.logits, calibration, held_out, threshold)
    seen = len(examples) - len(held_out)
    weighing = ", both classes weighing the same" if recipe.balanced else ""
    return ModelCard(
        name=about.name,
        version=about.version,
        architecture=ARCHITECTURE,
        preprocessing=tuple(recipe.preprocessing),
        recipe=recipe.text,
        threshold=threshold,
        threshold_source=f"The largest with sensitivity {wanted.sensitivity:g} on {where}."
        f" On these, unchanged: {operating.shares}.",
        temperature=calibration.temperature,
        offset=calibration.offset,
        temperature_source=f"Smallest log loss{weighing}, on {where}.",
        band=wanted.band,
        ages=about.ages,
        novelty_limit=limit,
        novelty_source=""
        if limit is None
        else f"Mahalanobis distance of the penultimate features from the training images, per feature;"
        f" {beyond} of {len(held_out)} validation images lie beyond.",
        data=f"{about.description} {seen} training images;"
        f" digest of data and split {data.digest(examples)[:16]}.".strip(),
        population=about.population,
        licence=about.licence,
        metrics=tuple(_measured(found, calibration, held_out, threshold)),
        limits=tuple(_limits(about, operating, is_finished=found.distances is not None)),
    )


@dataclass(frozen=True)
class Operating:
    """How well a threshold works on the images that it was chosen on, and how sure that is.

    Attributes
    ----------
    sensitivity, specificity
        Shares; images of one patient are not independent, so the intervals count patients.
    images, patients
        Numbers without and with pneumonia.
    """

    sensitivity: float
    specificity: float
    images: tuple[int, int]
    patients: tuple[int, int]

    @classmethod
    def of(
        cls, logits: Numbers, calibration: Calibration, examples: Sequence[Example], threshold: float
    ) -> Operating:
        """Measure a threshold on the logits (N,) of examples."""
        positive = probabilities(logits, calibration) >= threshold
        labels = np.array([example.label for example in examples])
        classes = [[e for e in examples if e.label == label] for label in (0, 1)]
        return cls(
            float(positive[labels == 1].mean()),
            float((~positive[labels == 0]).mean()),
            (len(classes[0]), len(classes[1])),
            (len({e.patient for e in classes[0]}), len({e.patient for e in classes[1]})),
        )

    @property
    def shares(self) -> str:
        """Both shares with their intervals and numbers."""
        return ", ".join(
            f"{what} {share:.4f} (95 % interval {low:.2f} to {high:.2f}; {number})"
            for what, share, (low, high), number in self._told()
        )

    @property
    def warning(self) -> str:
        """What to know if the threshold was chosen on few patients, else an empty text."""
        enough = needed(_WELL_KNOWN, _WITHIN)
        if min(self.patients) >= enough:
            return ""
        known = " and ".join(
            f"{what} of {low:.2f} to {high:.2f} ({number})" for what, _, (low, high), number in self._told()
        )
        return (
            f"{FEW_PATIENTS}, and may have a {known}. To know"
            f" {_WELL_KNOWN:g} to within {_WITHIN:g} takes {enough} patients of each class."
        )

    def _told(self) -> Iterator[tuple[str, float, tuple[float, float], str]]:
        named = (("specificity", self.specificity), ("sensitivity", self.sensitivity))
        for label in (1, 0):
            what, share = named[label]
            number = f"{self.images[label]} images of {self.patients[label]} patients"
            yield what, share, share_interval(share, self.patients[label]), number


def _limits(about: About, operating: Operating, *, is_finished: bool) -> Iterator[str]:
    yield from LIMITS
    if operating.warning:
        yield operating.warning
    if about.ages is not None:
        youngest, oldest = about.ages
        above_all = ", above all not for adults" if oldest < _ADULT else ""
        source = f" {about.ages_source}" if about.ages_source else ""
        yield f"Trained on patients of {youngest} to {oldest} years: not for others{above_all}.{source}"
    if not is_finished:
        yield _UNFINISHED


def _weights(labels: Numbers, *, balanced: bool) -> Numbers:
    share = labels.mean()
    return np.where(labels == 1, 0.5 / share, 0.5 / (1 - share)) if balanced else np.ones_like(labels)


def _limit(distances: Numbers | None, unlike_share: float) -> tuple[float | None, int]:
    """Return the limit and the number of images beyond it, at most the wanted share."""
    if distances is None:
        return None, 0
    chosen = float(np.quantile(distances, 1 - unlike_share, method="higher"))
    limit = float(np.ceil(chosen * 10**_DECIMALS) / 10**_DECIMALS)
    return limit, int((distances > limit).sum())


def _measured(
    found: Validation, calibration: Calibration, held_out: Sequence[Example], threshold: float
) -> Iterator[Metric]:
    labels = np.array([example.label for example in held_out], np.float64)
    patients = [example.patient for example in held_out]
    sets = {_VALIDATION: found.logits}
    if found.changed is not None:
        sets[f"{_VALIDATION}; each changed at random as in training, {len(found.changed)} times"] = (
            found.changed
        )
    for what, logits in sets.items():
        probability = probabilities(logits.ravel(), calibration)
        times = len(probability) // len(labels)
        truth, people = np.tile(labels, times), patients * times
        for name, score in _measures(threshold).items():
            value = score(truth, probability)
            low, high = None, None
            if found.distances is not None:
                low, high = _patients_interval(name, value, truth, people) or interval(
                    truth, probability, people, score
                )
            yield Metric(
                name=name,
                value=round(value, _DECIMALS),
                low=None if low is None else round(low, _DECIMALS),
                high=None if high is None else round(high, _DECIMALS),
                images=len(held_out),
                patients=len(set(patients)),
                data=what,
                measured_by="classifier train",
            )


def _patients_interval(
    name: str, value: float, truth: Numbers, people: Sequence[str]
) -> tuple[float, float] | None:
    """Return the 95 % interval of a share of one class; resamples of a share of 1 would all be 1."""
    label = _CLASS_OF.get(name)
    if label is None:
        return None
    of_class = {person for person, true in zip(people, truth.tolist(), strict=True) if true == label}
    return share_interval(value, len(of_class))


def _measures(threshold: float) -> dict[str, Callable[[Numbers, Numbers], float]]:
    def accuracy(labels: Numbers, probability: Numbers) -> float:
        return float(((probability >= threshold) == labels).mean())

    def sensitivity(labels: Numbers, probability: Numbers) -> float:
        return float((probability[labels == 1] >= threshold).mean())

    def specificity(labels: Numbers, probability: Numbers) -> float:
        return float((probability[labels == 0] < threshold).mean())

    return {
        "AUROC": auroc,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "accuracy": accuracy,
        "expected calibration error": calibration_error,
    }
