"""From logits on validation data to calibrated probabilities, and to the operating threshold.

Probabilities are right where the classes are as frequent as their weights: for a balanced recipe, where half
of the patients are sick.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Numbers = NDArray[np.float64]

_TEMPERATURES = (0.05, 20.0)
_OFFSETS = (-20.0, 20.0)
_DECIMALS = 4  # decimals of every stated probability


class Calibration(NamedTuple):
    """From logit to probability: the sigmoid of ``(logit + offset) / temperature`` (Platt 1999)."""

    temperature: float
    offset: float


def probabilities(logits: Numbers, calibration: Calibration) -> Numbers:
    """Return probabilities, (N,), rounded as predictions are."""
    scaled = (logits + calibration.offset) / calibration.temperature
    return np.round(1 / (1 + np.exp(-np.clip(scaled, -60, 60))), _DECIMALS)


def fit(logits: Numbers, labels: Numbers, weights: Numbers) -> Calibration:
    """Return the temperature, 0.05 to 20, and the offset with the smallest weighted log loss.

    A temperature alone (Guo et al. 2017) cannot correct a network that prefers one class.

    Parameters
    ----------
    logits, labels, weights
        (N,) each; labels 0 or 1.
    """

    def loss(parameters: Numbers) -> float:
        scaled = (logits + parameters[1]) / np.exp(parameters[0])
        return float(np.mean(weights * (np.logaddexp(0, scaled) - labels * scaled)))

    bounds = [tuple(np.log(_TEMPERATURES)), _OFFSETS]
    found = minimize(loss, [0.0, 0.0], bounds=bounds, method="L-BFGS-B").x
    temperature, offset = float(np.exp(found[0])), float(found[1])
    return Calibration(round(temperature, _DECIMALS), round(offset, _DECIMALS))


def choose_threshold(probability: Numbers, labels: Numbers, sensitivity: float) -> float:
    """Return the largest threshold that finds at least this share of the positives.

    The decision is ``probability >= threshold``. Of all thresholds with the wanted sensitivity, the largest
    has the highest specificity.
    """
    positives = np.sort(probability[labels == 1])[::-1]
    needed = int(np.ceil(sensitivity * len(positives) - 1e-9))
    lowest_found = positives[max(needed, 1) - 1]
    return float(np.clip(lowest_found, 10.0**-_DECIMALS, 1 - 10.0**-_DECIMALS))
