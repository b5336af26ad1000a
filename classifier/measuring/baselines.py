"""What tells the classes apart without a lung: the border of the image, or its grey values alone.

A model that gains little over these may have learnt the machine, the position or the exposure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from classifier.data.example import Example
from classifier.data.images import decode_all
from classifier.measuring.metrics import auroc, interval

Numbers = NDArray[np.float64]

_SIDE, _CELLS, _RING = 64, 16, 2  # pixels; cells along a side; cells of the border at each side
_BINS = 16
_FOLDS = 5
_FEWEST = 10  # patients of each class


def baselines(examples: Sequence[Example]) -> dict[str, dict[str, object]]:
    """Return the AUROC of two simple classifiers, each measured on patients that it has not seen.

    Returns
    -------
    dict
        ``ring``: the outer eighth at each side, 16 x 16 cells; ``histogram``: shares of 16 grey ranges. Empty
        for fewer than 10 patients of a class, and what cannot be decoded is left out.
    """
    kept, images, _ = decode_all(examples, _SIDE, skip_bad=True)
    labels = np.array([example.label for example in kept], np.float64)
    patients = [example.patient for example in kept]
    if any(len({p for p, v in zip(patients, labels, strict=True) if v == c}) < _FEWEST for c in (0, 1)):
        return {}
    planes = images[:, 0].numpy().astype(np.float64) / 255  # (N, S, S)
    found = {"ring": _ring(planes), "histogram": _histograms(planes)}
    return {name: _judged(values, labels, patients) for name, values in found.items()}


def _judged(values: Numbers, labels: Numbers, patients: Sequence[str]) -> dict[str, object]:
    scores = np.zeros(len(labels))
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0)
    for train, held_out in folds.split(values, labels, patients):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        model.fit(values[train], labels[train])
        scores[held_out] = model.predict_proba(values[held_out])[:, 1]
    return {"auroc": auroc(labels, scores), "auroc_ci95": interval(labels, scores, patients, auroc)}


def _ring(planes: Numbers) -> Numbers:
    """Return the cells at the border, (N, 112)."""
    width = _SIDE // _CELLS
    cells = planes.reshape(len(planes), _CELLS, width, _CELLS, width).mean((2, 4))
    inside = slice(_RING, _CELLS - _RING)
    border = np.ones((_CELLS, _CELLS), bool)
    border[inside, inside] = False
    ring: Numbers = cells[:, border]
    return ring


def _histograms(planes: Numbers) -> Numbers:
    """Return the share of each grey range, (N, 16)."""
    edges = np.linspace(0, 1, _BINS + 1)
    return np.stack([np.histogram(plane, edges)[0] / plane.size for plane in planes])
