"""What stands beside the measures: the node's answers, groups, simple classifiers, another model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from classifier.config import SHIPPED_MODEL
from classifier.data.example import Example
from classifier.measuring.as_node import Answer, answer, measure_answers
from classifier.measuring.baselines import baselines
from classifier.measuring.comparison import compare
from classifier.measuring.fragility import CHANGES, fragility
from classifier.measuring.metrics import needed, share_interval
from classifier.measuring.subgroups import subgroups
from classifier.model.checkpoint import load
from classifier.outcome import Decision, Prediction
from classifier.reasons import Reason
from tests.conftest import radiograph, save
from tests.helpers.datasets import picture
from tests.helpers.predictors import ready

Numbers = NDArray[np.float64]


def example(label: int = 0, patient: str = "P", path: str = "a.png", **columns: str) -> Example:
    return Example(Path(path), label, patient, columns=columns)


def prediction(probability: float | None, reason: Reason | None = None) -> Prediction:
    decision = Decision.POSITIVE if (probability or 0) >= 0.5 else Decision.NEGATIVE
    return Prediction(probability, Decision.UNDETERMINED if reason else decision, reason, "", None)


# --- shares


def test_the_interval_of_a_share_is_wilson_s() -> None:
    assert share_interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert share_interval(1.0, 6) == pytest.approx((0.6097, 1.0), abs=1e-4)
    assert share_interval(0.0, 0) == (0, 1)
    assert needed(0.95, 0.05) == 73


# --- two models


def naive(labels: Numbers, one: Numbers, other: Numbers) -> tuple[float, float]:
    """Return the difference of AUROC and its variance, from all pairs (DeLong et al. 1988)."""
    wins = []
    for scores in (one, other):
        sick, well = scores[labels == 1][:, None], scores[labels == 0][None]
        wins.append((sick > well) + 0.5 * (sick == well))
    difference = wins[0] - wins[1]
    by_sick, by_well = difference.mean(1), difference.mean(0)
    variance = by_sick.var(ddof=1) / len(by_sick) + by_well.var(ddof=1) / len(by_well)
    return float(difference.mean()), float(variance)


def scores(number: int = 80, seed: int = 0) -> tuple[Numbers, Numbers, Numbers]:
    random = np.random.default_rng(seed)
    labels = (np.arange(number) % 3 == 0).astype(np.float64)
    common = labels + random.normal(0, 1, number)
    return labels, (common + random.normal(0, 0.3, number)).round(1), common + random.normal(0, 1, number)


def test_the_comparison_is_delong_s_where_each_image_is_a_patient_s() -> None:
    labels, one, other = scores()
    found = compare(labels, one, other, [str(number) for number in range(len(labels))])
    difference, variance = naive(labels, one, other)
    assert found.difference == pytest.approx(difference)
    half = (found.difference_ci95[1] - found.difference_ci95[0]) / 2
    assert half == pytest.approx(1.959964 * variance**0.5)
    assert 0 < found.p < 1


def test_images_that_are_copies_of_a_patient_s_tell_no_more() -> None:
    labels, one, other = scores()
    patients = [str(number) for number in range(len(labels))]
    once = compare(labels, one, other, patients)
    twice = compare(np.tile(labels, 2), np.tile(one, 2), np.tile(other, 2), patients * 2)
    assert twice.difference_ci95 == pytest.approx(once.difference_ci95)
    same = compare(labels, one, one, patients)
    assert (same.difference, same.p) == (0, 1)


# --- as the node would answer


def test_an_age_in_a_manifest_counts_as_that_of_the_tags() -> None:
    card = load(SHIPPED_MODEL).card.model_copy(update={"threshold": 0.5, "band": 0.1, "ages": (1, 5)})
    unknown = Reason.UNKNOWN_AGE
    assert answer(example(age="3"), prediction(0.9, unknown), card) == (Decision.POSITIVE, None)
    assert answer(example(age="3"), prediction(0.1, unknown), card) == (Decision.NEGATIVE, None)
    near = answer(example(age="3"), prediction(0.55, unknown), card)
    assert near == (Decision.UNDETERMINED, Reason.NEAR_THRESHOLD)
    assert answer(example(age="40"), prediction(0.9, unknown), card).reason is Reason.OTHER_AGE
    assert answer(example(), prediction(0.9, unknown), card).reason is unknown
    assert (
        answer(example(age="40"), prediction(0.9), card).reason is Reason.OTHER_AGE
    )  # "decide" was asked for
    assert (
        answer(example(age="40"), replace(prediction(0.9), age=3.0), card).reason is None
    )  # tags come first
    unlike = Reason.UNLIKE_TRAINING
    assert answer(example(age="3"), prediction(0.9, unlike), card) == (Decision.UNDETERMINED, unlike)


def test_images_that_the_node_would_refuse_are_no_answers(tmp_path: Path) -> None:
    card = load(SHIPPED_MODEL).card
    lateral = save(radiograph(view="LL"), tmp_path / "a.dcm")
    found = answer(example(path=str(lateral)), prediction(0.9), card)
    assert found == (Decision.NOT_SCORED, Reason.NOT_FRONTAL)
    frontal = save(radiograph(), tmp_path / "b.dcm")
    assert answer(example(path=str(frontal)), prediction(0.9), card) == (Decision.POSITIVE, None)


def test_undetermined_images_count_apart() -> None:
    labels = [1, 1, 1, 1, 0, 0, 0, 0]
    examples = [example(label, str(number)) for number, label in enumerate(labels)]
    yes, no = Answer(Decision.POSITIVE, None), Answer(Decision.NEGATIVE, None)
    old = Answer(Decision.UNDETERMINED, Reason.OTHER_AGE)
    side = Answer(Decision.NOT_SCORED, Reason.NOT_FRONTAL)
    found = measure_answers(examples, [yes, yes, no, old, no, yes, side, old])
    assert (found["positive"], found["negative"], found["undetermined"], found["not_scored"]) == (3, 2, 2, 1)
    assert found["reasons"] == {"OTHER_AGE": 2, "NOT_FRONTAL": 1}
    assert (found["decided"], found["decided_positive"], found["positives_called_negative"]) == (5, 3, 1)
    assert (found["sensitivity"], found["specificity"]) == (pytest.approx(2 / 3), 0.5)
    nothing = measure_answers(examples, [old] * 8)
    assert (nothing["sensitivity"], nothing["specificity_ci95"]) == (None, None)


# --- groups and simple classifiers


def test_each_group_of_each_column_is_measured() -> None:
    images = [
        example(number % 2, str(number), sex="FM"[number // 20], age=str(2 if number < 30 else 70))
        for number in range(40)
    ]
    probability = np.array([0.9 if image.label else 0.1 for image in images])
    probability[20:22] = 0.5, 0.4
    found = subgroups(images, probability, [number < 10 for number in range(40)], 0.5)
    assert set(found) == {"age", "sex"}
    assert set(found["age"]) == {"1 to 5 years", "65 years and older"}
    assert found["sex"]["F"]["auroc"] == 1
    assert found["sex"]["M"]["sensitivity"] == 0.9
    assert found["sex"]["M"]["specificity"] == 0.9
    assert (found["sex"]["F"]["decided_as_node"], found["sex"]["M"]["decided_as_node"]) == (10, 0)
    one_class = subgroups([replace(image, label=1) for image in images], probability, [True] * 40, 0.5)
    assert one_class["sex"]["F"]["auroc"] is one_class["sex"]["F"]["specificity"] is None


def test_a_border_that_tells_the_class_is_found(tmp_path: Path) -> None:
    brighter = [
        Example(picture(tmp_path / f"{n}.png", 140 if n % 2 else 60, n), n % 2, str(n)) for n in range(30)
    ]
    found = baselines(brighter)
    assert found["ring"]["auroc"] == found["histogram"]["auroc"] == 1
    same = [Example(picture(tmp_path / f"{n}.png", 100, n), n % 2, str(n)) for n in range(30)]
    assert 0.1 < float(str(baselines(same)["ring"]["auroc"])) < 0.9
    assert baselines(same[:10]) == {}


# --- changes without a meaning


@pytest.fixture
def smooth(tmp_path: Path) -> list[Example]:
    """Smooth pictures, in which a change by one pixel is small."""
    made = []
    for number in range(4):
        coarse = np.random.default_rng(number).integers(0, 255, (7, 7), np.uint8)
        path = tmp_path / f"{number}.png"
        Image.fromarray(coarse).resize((300, 260), Image.Resampling.BICUBIC).save(path)
        made.append(Example(path, number % 2, str(number)))
    return made


def test_each_change_is_small_and_is_one() -> None:
    grid = torch.linspace(0, 6, 320)
    plane = (0.5 + 0.3 * torch.sin(grid)[:, None] * torch.cos(grid)[None])[None]
    for name, change in CHANGES.items():
        changed = change(plane)
        assert changed.shape == plane.shape, name
        difference = float((changed - plane).abs().mean())
        assert 0 < difference < 0.08, name
    assert torch.equal(CHANGES["shifted by one pixel"](plane)[:, 2:, 2:], plane[:, :-2, :-2])


def test_decisions_that_turn_are_counted_beyond_the_band(smooth: list[Example]) -> None:
    checkpoint = load(SHIPPED_MODEL)
    predictor = ready(checkpoint, None)
    stated = [p.probability or 0.0 for p in predictor.predict([e.path for e in smooth])]
    found = fragility(predictor, smooth)
    assert set(found) == set(CHANGES)
    assert all(values["n"] == 4 for values in found.values())
    # A threshold between an image and the same image in another gamma: its decision turns
    moved = found["gamma 1.25"]["moved"]
    assert moved > 0
    name, turned = "gamma 1.25", 0
    for threshold in np.linspace(min(stated) / 2, max(stated), 40):
        card = checkpoint.card.model_copy(update={"threshold": float(np.clip(threshold, 0.001, 0.999))})
        turned = max(
            turned, fragility(ready(checkpoint._replace(card=card), None), smooth[:1])[name]["flipped"]
        )
        if turned:
            break
    assert turned == 1
    wide = card.model_copy(update={"band": 0.9})
    undecided = fragility(ready(checkpoint._replace(card=wide), None), smooth[:1])[name]
    assert (undecided["n"], undecided["flipped"], undecided["share"]) == (0, 0, None)
