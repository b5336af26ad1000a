"""Two models on the same images: is one better, or was it luck?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from classifier.measuring.metrics import auroc

Numbers = NDArray[np.float64]

_Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True)
class Comparison:
    """The AUROC of two models, and what is known of their difference.

    Attributes
    ----------
    auroc, other_auroc
        On the same images.
    difference, difference_ci95
        The first less the second.
    p
        Two-sided, for no difference.
    """

    auroc: float
    other_auroc: float
    difference: float
    difference_ci95: tuple[float, float]
    p: float

    @property
    def text(self) -> str:
        """The difference in one line."""
        low, high = self.difference_ci95
        return (
            f"AUROC {self.auroc:.4f} and {self.other_auroc:.4f}, difference {self.difference:+.4f}"
            f" (95 % interval {low:+.4f} to {high:+.4f}, p = {self.p:.2g}, DeLong, by patient)"
        )


def compare(labels: Numbers, scores: Numbers, others: Numbers, patients: Sequence[str]) -> Comparison:
    """Compare the AUROC of two models (DeLong et al. 1988), with images of one patient as one cluster.

    Obuchowski 1997 gives the variance for clusters; with one image for each patient it is DeLong's.

    Parameters
    ----------
    labels, scores, others
        (N,) each; labels 0 or 1, both present.
    patients
        The patient of each image.
    """
    first, second = auroc(labels, scores), auroc(labels, others)
    parts = [one - other for one, other in zip(_parts(labels, scores), _parts(labels, others), strict=True)]
    error = math.sqrt(max(0.0, _variance(labels, parts, patients)))
    difference = first - second
    p = 1.0 if error == 0 else float(2 * norm.sf(abs(difference) / error))
    return Comparison(first, second, difference, (difference - _Z * error, difference + _Z * error), p)


def _parts(labels: Numbers, scores: Numbers) -> tuple[Numbers, Numbers]:
    """Return for each positive the share of negatives that it beats, and for each negative the share of
    positives that beat it; a draw counts half. The mean of either is the AUROC.
    """
    positive = labels == 1
    sick, well = scores[positive], scores[~positive]
    ranks = rankdata(np.concatenate([sick, well]))
    beaten = (ranks[: len(sick)] - rankdata(sick)) / len(well)
    beating = 1 - (ranks[len(sick) :] - rankdata(well)) / len(sick)
    return beaten, beating


def _variance(labels: Numbers, parts: Sequence[Numbers], patients: Sequence[str]) -> float:
    """Return the variance of the mean of both parts (Obuchowski 1997)."""
    _, owner = np.unique(np.asarray(patients), return_inverse=True)
    clusters = int(owner.max()) + 1
    sums = []
    for label, values in zip((1, 0), parts, strict=True):
        own = owner[labels == label]
        centred = np.bincount(own, values - values.mean(), clusters)
        present = len(np.unique(own))
        sums.append((centred, present, len(values)))
    (sick, with_sick, m), (well, with_well, n) = sums
    own_variance = sum(
        float(part @ part) * number / max(1, number - 1) / size**2
        for part, number, size in ((sick, with_sick, m), (well, with_well, n))
    )
    return own_variance + 2 * float(sick @ well) * clusters / max(1, clusters - 1) / (m * n)
