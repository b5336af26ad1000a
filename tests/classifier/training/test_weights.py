"""What each image counts, and which ages a model is for."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from classifier.data.example import Example
from classifier.errors import DataError
from classifier.training.ages import told_ages
from classifier.training.weights import image_weights, one_sided


def example(label: int = 0, weight: float = 1.0, **columns: str) -> Example:
    return Example(Path("a.png"), label, "P", columns=columns, weight=weight)


def test_images_count_as_their_sets_do() -> None:
    assert image_weights([example(), example()]).tolist() == [1, 1]
    assert image_weights([example(weight=3), example(weight=1)]).tolist() == [1.5, 0.5]


def test_a_column_that_tells_the_class_does_not_once_images_are_weighted() -> None:
    machines = {("A", 0): 90, ("A", 1): 10, ("B", 0): 20, ("B", 1): 80}
    images = [
        example(label, machine=name) for (name, label), number in machines.items() for _ in range(number)
    ]
    weights = image_weights(images, ["machine"])
    assert float(weights.mean()) == pytest.approx(1)
    sums: dict[tuple[str, int], float] = defaultdict(float)
    for image, weight in zip(images, weights.tolist(), strict=True):
        sums[image.columns["machine"], image.label] += weight
    shares = [sums[name, 1] / (sums[name, 0] + sums[name, 1]) for name in "AB"]
    assert shares == pytest.approx([0.45, 0.45])


def test_a_group_of_one_class_and_a_column_that_is_not_there_are_named() -> None:
    images = [example(0, view="PA"), example(1, view="PA"), example(1, view="AP", age="3")]
    assert one_sided(images, ["view"]) == ["AP"]
    with pytest.raises(DataError, match="No image has the column 'machine'; the columns are age, view"):
        image_weights(images, ["machine"])


def test_ages_are_those_of_nearly_all_images() -> None:
    children = [example(age=f"{1 + number % 5}") for number in range(400)]
    found = told_ages([*children, example(age="107"), *(example() for _ in range(99))])
    assert found is not None
    assert found.ages == (1, 5)
    assert found.source == "These ages were told by tags or manifest, for 401 of 500 images."
    assert told_ages([example(age="3"), example(), example()]) is None
    assert told_ages([]) is None
