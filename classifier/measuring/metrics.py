"""Measures of a binary classifier, with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

Numbers = NDArray[np.float64]

BINS = 10
_RESAMPLES = 1000
_Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True)
class Measures:
    """What `classifier evaluate` writes into metrics.json, without the list of files.

    A measure whose denominator is empty, such as the precision when nothing was called positive, is ``None``.
    """

    n: int
    n_positive: int
    threshold: float
    accuracy: float
    balanced_accuracy: float
    sensitivity: float | None
    specificity: float | None
    precision: float | None
    npv: float | None
    f1: float | None
    auroc: float
    auroc_ci95: tuple[float, float]
    average_precision: float
    brier: float
    ece: float
    confusion_matrix: tuple[tuple[int, int], tuple[int, int]]

    def as_dict(self) -> dict[str, Any]:
        """Return the measures by name, in the order of metrics.json."""
        return asdict(self)


def measure(
    labels: Numbers, probability: Numbers, patients: Sequence[str], threshold: float, seed: int = 0
) -> Measures:
    """Measure predictions.

    Parameters
    ----------
    labels, probability
        (N,) each; labels 0 or 1, both present.
    patients
        The patient of each image; intervals come from a bootstrap of patients (Efron 1979), not of images.
    threshold
        The decision is ``probability >= threshold``.
    seed
        Seed of the bootstrap.
    """
    positive = probability >= threshold
    tp, fn = int(np.sum(positive & (labels == 1))), int(np.sum(~positive & (labels == 1)))
    fp, tn = int(np.sum(positive & (labels == 0))), int(np.sum(~positive & (labels == 0)))
    sensitivity, specificity = _share(tp, tp + fn), _share(tn, tn + fp)
    return Measures(
        n=len(labels),
        n_positive=tp + fn,
        threshold=threshold,
        accuracy=(tp + tn) / len(labels),
        balanced_accuracy=((sensitivity or 0) + (specificity or 0)) / 2,
        sensitivity=sensitivity,
        specificity=specificity,
        precision=_share(tp, tp + fp),
        npv=_share(tn, tn + fn),
        f1=_share(2 * tp, 2 * tp + fp + fn),
        auroc=auroc(labels, probability),
        auroc_ci95=interval(labels, probability, patients, auroc, seed),
        average_precision=float(average_precision_score(labels, probability)),
        brier=float(np.mean((probability - labels) ** 2)),
        ece=calibration_error(labels, probability),
        confusion_matrix=((tn, fp), (fn, tp)),
    )


def auroc(labels: Numbers, scores: Numbers) -> float:
    """Return the area under the ROC curve: the share of pairs in the right order (Mann and Whitney 1947).

    The same result as scikit-learn's, without its checks, which took most of the time of a bootstrap.

    Parameters
    ----------
    labels, scores
        (N,) each; labels 0 or 1, both present. A pair with equal scores counts half.
    """
    positive = labels == 1
    sick, well = int(positive.sum()), int((~positive).sum())
    return float((rankdata(scores)[positive].sum() - sick * (sick + 1) / 2) / (sick * well))


def interval(
    labels: Numbers,
    probability: Numbers,
    patients: Sequence[str],
    score: Callable[[Numbers, Numbers], float],
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95 % interval of a score over 1000 resamples of the patients."""
    rng = np.random.default_rng(seed)
    names, owner = np.unique(np.asarray(patients), return_inverse=True)
    images = [np.flatnonzero(owner == number) for number in range(len(names))]
    found = []
    for _ in range(_RESAMPLES):
        drawn = np.concatenate([images[number] for number in rng.integers(len(names), size=len(names))])
        if 0 < labels[drawn].sum() < len(drawn):  # both classes
            found.append(float(score(labels[drawn], probability[drawn])))
    low, high = np.percentile(found, [2.5, 97.5]) if found else (float("nan"), float("nan"))
    return float(low), float(high)


def share_interval(share: float, number: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `number` independent ones (Wilson 1927); 0 to 1 for none."""
    if number == 0:
        return 0.0, 1.0
    spread = _Z**2 / number
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def needed(share: float, half_width: float) -> int:
    """Return how many are needed to know a share to within `half_width`: 73 for 0.95 +- 0.05."""
    return math.ceil(_Z**2 * share * (1 - share) / half_width**2)


def calibration_error(labels: Numbers, probability: Numbers) -> float:
    """Return the expected calibration error over ten equally wide bins (Naeini et al. 2015)."""
    return float(
        sum(
            len(inside) / len(labels) * abs(labels[inside].mean() - probability[inside].mean())
            for inside in bins(probability)
            if len(inside)
        )
    )


def bins(probability: Numbers) -> list[NDArray[np.intp]]:
    """Return, for each of ten equally wide bins from 0 to 1, the indices of the probabilities in it."""
    number = np.minimum((probability * BINS).astype(int), BINS - 1)
    return [np.flatnonzero(number == b) for b in range(BINS)]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
