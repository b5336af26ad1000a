"""Measures, threshold and temperature agree with their definitions where that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from classifier.measuring.metrics import auroc, calibration_error, interval, measure
from classifier.training import card
from classifier.training.calibrate import choose_threshold, fit, probabilities

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float64)
PROBABILITY = np.array([0.1, 0.2, 0.6, 0.3, 0.4, 0.7, 0.8, 0.9])
PATIENTS = list("aabbccdd")


def test_the_measures_are_those_of_the_confusion_matrix() -> None:
    found = measure(LABELS, PROBABILITY, PATIENTS, 0.5)
    assert found.confusion_matrix == ((3, 1), (1, 3))
    assert (found.n, found.n_positive) == (8, 4)
    assert (found.sensitivity, found.specificity, found.precision, found.npv) == (0.75, 0.75, 0.75, 0.75)
    assert (found.accuracy, found.balanced_accuracy, found.f1) == (0.75, 0.75, 0.75)
    assert found.auroc == pytest.approx(15 / 16)
    assert found.brier == pytest.approx(float(np.mean((PROBABILITY - LABELS) ** 2)))


def test_a_measure_without_denominator_is_none() -> None:
    assert measure(LABELS, PROBABILITY, PATIENTS, 0.95).precision is None


def test_a_probability_at_the_threshold_is_positive() -> None:
    assert measure(LABELS, PROBABILITY, PATIENTS, 0.9).confusion_matrix == ((4, 0), (3, 1))


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0])), min_size=2, max_size=40)
)
def test_the_area_under_the_curve_is_that_of_scikit_learn(pairs: list[tuple[bool, float]]) -> None:
    labels = np.array([1.0, 0.0, *(float(label) for label, _ in pairs)])
    scores = np.array([0.5, 0.5, *(score for _, score in pairs)])
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_the_calibration_error_weighs_bins_by_their_images() -> None:
    labels = np.array([0, 0, 1, 1, 1], np.float64)
    assert calibration_error(labels, np.array([0.05, 0.05, 0.95, 0.95, 0.95])) == pytest.approx(0.05)
    assert calibration_error(labels, np.array([0.95, 0.95, 0.05, 0.05, 0.05])) == pytest.approx(0.95)


def test_the_interval_is_wider_when_images_come_in_patients() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 2, 40), 10).astype(np.float64)
    scores = np.repeat(rng.normal(0, 1, 40), 10) + labels
    probability = 1 / (1 + np.exp(-scores))

    def mean(_labels: np.ndarray, values: np.ndarray) -> float:
        return float(values.mean())

    alone = interval(labels, probability, [str(n) for n in range(400)], mean)
    grouped = interval(labels, probability, [str(n // 10) for n in range(400)], mean)
    assert grouped[1] - grouped[0] > 2 * (alone[1] - alone[0])


def test_the_threshold_is_the_largest_with_the_wanted_sensitivity() -> None:
    assert choose_threshold(PROBABILITY, LABELS, 1.0) == 0.4
    assert choose_threshold(PROBABILITY, LABELS, 0.75) == 0.7
    assert choose_threshold(PROBABILITY, LABELS, 0.76) == 0.4
    assert choose_threshold(np.array([0.0, 1.0]), np.array([0.0, 1.0]), 1.0) == 0.9999


def test_calibration_undoes_confidence_that_is_not_earned_and_a_leaning_to_one_class() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, 5000)
    labels = (rng.random(5000) < 1 / (1 + np.exp(-true))).astype(np.float64)
    calibration = fit(true * 3 - 4, labels, np.ones(5000))
    assert calibration.temperature == pytest.approx(3, rel=0.1)
    assert calibration.offset == pytest.approx(4, abs=0.3)
    assert calibration_error(labels, probabilities(true * 3 - 4, calibration)) < 0.03


@pytest.mark.parametrize(("share", "most"), [(0.005, 0), (0.1, 1), (0.25, 4)])
def test_no_more_than_the_wanted_share_lies_beyond_the_limit(share: float, most: int) -> None:
    distances = np.arange(1, 17, dtype=np.float64) / 7
    limit, beyond = card._limit(distances, share)
    assert limit is not None
    assert beyond == int((distances > limit).sum()) <= most
    assert beyond >= most - 1


def test_weights_say_how_frequent_the_classes_are_meant_to_be() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(20_000) < 0.9).astype(np.float64)
    logits = np.where(labels == 1, 1.0, -1.0) + rng.normal(0, 1, 20_000)  # each class as sure as the other
    weights = np.where(labels == 1, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
    assert fit(logits, labels, weights).offset == pytest.approx(0, abs=0.1)
    assert fit(logits, labels, np.ones(20_000)).offset > 0.5
