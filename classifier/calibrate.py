"""From logits on validation data to calibrated probabilities, and to the operating threshold.

Probabilities mean what they say where the classes are as frequent as the loss weighed them: of a balanced
recipe, where half of the patients are sick.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Numbers = NDArray[np.float64]

_TEMPERATURES = (0.05, 20.0)
_DECIMALS = 4  # of a probability, wherever one is stated


def probabilities(logits: Numbers, temperature: float) -> Numbers:
    """Return the sigmoid of ``logits / temperature``, (N,), rounded as predictions are."""
    return np.round(1 / (1 + np.exp(-np.clip(logits / temperature, -60, 60))), _DECIMALS)


def fit_temperature(logits: Numbers, labels: Numbers) -> float:
    """Return the temperature with the smallest log loss (Guo et al. 2017), 0.05 to 20.

    Parameters
    ----------
    logits, labels
        (N,) each; labels 0 or 1.
    """

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0, scaled) - labels * scaled))

    low, high = np.log(_TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded")
    return float(np.round(np.exp(found.x), _DECIMALS))


def choose_threshold(probability: Numbers, labels: Numbers, sensitivity: float) -> float:
    """Return the largest threshold at which at least that share of the positives is found.

    The decision is ``probability >= threshold``. Of all thresholds with the wanted sensitivity, the largest
    has the highest specificity.
    """
    positives = np.sort(probability[labels == 1])[::-1]
    needed = int(np.ceil(sensitivity * len(positives) - 1e-9))
    lowest_found = positives[max(needed, 1) - 1]
    return float(np.clip(lowest_found, 10.0**-_DECIMALS, 1 - 10.0**-_DECIMALS))
