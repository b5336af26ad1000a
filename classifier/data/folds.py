"""Folds: each patient is held out once (k-fold cross-validation)."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from classifier.data.example import Example
from classifier.data.examples import require_both_classes
from classifier.errors import DataError


def fold(examples: Sequence[Example], number: int, seed: int) -> list[list[Example]]:
    """Return the examples once for each fold, with the patients of that fold held out for validation.

    Images of the split ``test`` stay where they are; other splits are made anew.

    Raises
    ------
    DataError
        If there are fewer patients of a class than folds.
    """
    if number < 2:
        raise DataError(f"{number} folds are too few; take 2 or more.")
    part = _parts(examples, number, seed)
    made = [
        [
            example
            if example.split == "test"
            else replace(example, split="val" if part[example.patient] == held_out else "train")
            for example in examples
        ]
        for held_out in range(number)
    ]
    for some in made:
        require_both_classes(some)
    return made


def _parts(examples: Sequence[Example], number: int, seed: int) -> dict[str, int]:
    """Return the fold of each patient; each gets about as many images of each class."""
    images: dict[str, list[int]] = defaultdict(list)
    for example in examples:
        if example.split != "test":
            images[example.patient].append(example.label)
    part: dict[str, int] = {}
    for label in (0, 1):
        patients = sorted(patient for patient, labels in images.items() if max(labels) == label)
        random.Random(f"{seed}/{label}").shuffle(patients)
        sizes = [0] * number
        for patient in patients:
            smallest = sizes.index(min(sizes))
            part[patient] = smallest
            sizes[smallest] += len(images[patient])
    return part
