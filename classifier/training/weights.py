"""How much each image counts in the loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from classifier.data.example import Example
from classifier.data.groups import group_of, require_columns

_MOST = 10.0  # times the mean: few images of a rare kind shall not decide all


def image_weights(examples: Sequence[Example], columns: Sequence[str] = ()) -> Tensor:
    """Return the weight of each image, (N,) float32 with the mean 1.

    With columns, each group of images (the same age range, view, machine, ...) has the same share of the
    sick, so that the group does not tell the class: images weigh P(group) P(class) / P(group, class)
    (reweighing, Kamiran and Calders 2012).

    Raises
    ------
    DataError
        If no image has one of the columns.
    """
    require_columns(examples, columns)
    own = torch.tensor([example.weight for example in examples], dtype=torch.float64)
    if columns:
        own = own * _reweighed(examples, columns, own)
    return (own / own.mean()).float()


def one_sided(examples: Sequence[Example], columns: Sequence[str]) -> list[str]:
    """Return the groups that hold one class only: no weight can balance them."""
    classes: dict[tuple[str, ...], set[int]] = {}
    for example in examples:
        classes.setdefault(_group(example, columns), set()).add(example.label)
    return sorted(", ".join(group) for group, labels in classes.items() if len(labels) == 1)


def _group(example: Example, columns: Sequence[str]) -> tuple[str, ...]:
    return tuple(group_of(example, column) for column in columns)


def _reweighed(examples: Sequence[Example], columns: Sequence[str], own: Tensor) -> Tensor:
    groups, classes, cells = Counter[tuple[str, ...]](), Counter[int](), Counter[object]()
    keys = [(_group(example, columns), example.label) for example in examples]
    for (group, label), weight in zip(keys, own.tolist(), strict=True):
        groups[group] += weight
        classes[label] += weight
        cells[group, label] += weight
    total = float(own.sum())
    found = [groups[g] * classes[label] / (total * cells[g, label]) for g, label in keys]
    return torch.tensor(found, dtype=torch.float64).clamp_max(_MOST)
