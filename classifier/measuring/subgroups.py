"""Measures by age, sex, view, machine and whatever else a manifest tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.data.example import Example
from classifier.data.groups import columns_of, group_of
from classifier.measuring.metrics import auroc, interval, share_interval

Numbers = NDArray[np.float64]


def subgroups(
    examples: Sequence[Example], probability: Numbers, decided: Sequence[bool], threshold: float
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return measures of each group of each column that has two to twenty.

    Parameters
    ----------
    probability
        (N,).
    decided
        Whether the node would decide, for each image.
    """
    return {
        column: {
            group: _measured(examples, probability, decided, threshold, members)
            for group, members in _members(examples, column)
        }
        for column in columns_of(examples)
    }


def _members(examples: Sequence[Example], column: str) -> list[tuple[str, NDArray[np.intp]]]:
    groups = np.array([group_of(example, column) for example in examples])
    return [(str(name), np.flatnonzero(groups == name)) for name in np.unique(groups)]


def _measured(
    examples: Sequence[Example],
    probability: Numbers,
    decided: Sequence[bool],
    threshold: float,
    members: NDArray[np.intp],
) -> dict[str, Any]:
    inside = [examples[at] for at in members.tolist()]
    labels = np.array([example.label for example in inside], np.float64)
    scores, patients = probability[members], [example.patient for example in inside]
    found: dict[str, Any] = {
        "n": len(inside),
        "n_positive": int(labels.sum()),
        "patients": len(set(patients)),
        "decided_as_node": int(np.asarray(decided)[members].sum()),
        "auroc": None,
        "auroc_ci95": None,
    }
    if 0 < labels.sum() < len(labels):
        found["auroc"] = auroc(labels, scores)
        found["auroc_ci95"] = interval(labels, scores, patients, auroc)
    for label, name in ((1, "sensitivity"), (0, "specificity")):
        found[name] = found[f"{name}_ci95"] = None
        if (labels == label).any():
            share = float(((scores[labels == label] >= threshold) == label).mean())
            people = {p for p, true in zip(patients, labels.tolist(), strict=True) if true == label}
            found |= {name: share, f"{name}_ci95": share_interval(share, len(people))}
    return found
