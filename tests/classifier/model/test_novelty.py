"""Knowing what the model does not know: the measure, and what the predictor makes of it and of ages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom import dcmread
from sklearn.datasets import load_sample_images

from classifier.config import Eligibility, UnknownAge
from classifier.decoding.tags import quiet
from classifier.errors import CheckpointError
from classifier.model.checkpoint import Checkpoint, load, save
from classifier.model.novelty import Novelty, fit, split_tensors
from classifier.outcome import Decision, Prediction
from classifier.reasons import Reason
from classifier.scoring.predict import Predictor
from tests.conftest import radiograph
from tests.conftest import save as save_dicom
from tests.helpers.predictors import ready

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shipped() -> Predictor:
    """The model that ships."""
    return Predictor.load(device="cpu")


def normal(number: int, seed: int, features: int = 6) -> torch.Tensor:
    """Return correlated normal features, (number, features)."""
    mixing = torch.randn(features, features, generator=torch.Generator().manual_seed(99))
    drawn = torch.randn(number, features, generator=torch.Generator().manual_seed(seed))
    return drawn @ mixing + torch.arange(features)


# --- the measure


def test_it_is_the_mahalanobis_distance_per_feature() -> None:
    features = normal(20_000, 1)
    measure = fit(features)
    centred = (normal(5, 2) - features.mean(0)).double().numpy()
    inverse = np.linalg.inv(np.cov(features.numpy(), rowvar=False))
    expected = np.sqrt(np.einsum("bi,ij,bj->b", centred, inverse, centred) / 6)
    np.testing.assert_allclose(measure(normal(5, 2)), expected, rtol=0.02)
    assert float(measure(normal(5_000, 3)).square().mean()) == pytest.approx(1, abs=0.05)


def test_what_breaks_the_correlation_is_far_although_each_feature_is_ordinary() -> None:
    line = torch.linspace(-2, 2, 500)[:, None]
    features = torch.cat([line, line], 1) + 0.01 * normal(500, 4, 2)
    measure = fit(features)
    on_the_line, off_it = measure(torch.tensor([[1.0, 1.0], [1.0, -1.0]])).tolist()
    assert on_the_line < 2
    assert off_it > 10


def test_fewer_images_than_features_and_features_that_never_vary_are_no_trouble() -> None:
    features = normal(20, 5, 64)
    features[:, 7] = 0
    measure = fit(features)
    assert torch.isfinite(measure(features)).all()
    assert float(measure(features + 100).min()) > 5 * float(measure(features).max())


def test_a_checkpoint_brings_it_back(tmp_path: Path, shipped: Predictor) -> None:
    measure = fit(normal(50, 6, 1024))
    card = shipped.card.model_copy(update={"novelty_limit": 1.5, "novelty_source": "A test.", "gate": None})
    save(tmp_path / "m.safetensors", shipped.model.state_dict(), card, measure)
    _, loaded, back, _ = load(tmp_path / "m.safetensors")
    assert loaded.novelty_limit == 1.5
    assert back is not None
    torch.testing.assert_close(back(normal(3, 7, 1024)), measure(normal(3, 7, 1024)))


@pytest.mark.parametrize("limit", [None, 1.5])
def test_a_limit_without_measure_or_a_measure_without_limit_is_refused(
    limit: float | None, tmp_path: Path, shipped: Predictor
) -> None:
    measure = fit(normal(50, 6, 1024)) if limit is None else None
    card = shipped.card.model_copy(update={"novelty_limit": limit, "gate": None})
    with pytest.raises(CheckpointError, match="needs both a novelty measure and its limit"):
        save(tmp_path / "m.safetensors", shipped.model.state_dict(), card, measure)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"novelty.mean": torch.zeros(2)}, "not whole"),
        ({"novelty.mean": torch.zeros(2), "novelty.whitening": torch.zeros(2, 3)}, "do not fit"),
        ({"novelty.mean": torch.zeros(2), "novelty.whitening": torch.full((2, 2), torch.nan)}, "not finite"),
    ],
)
def test_a_damaged_measure_is_refused(tensors: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_tensors(tensors)


# --- what the predictor makes of it


def with_limit(
    shipped: Predictor,
    limit: float,
    *,
    cautious: bool = True,
    unknown_age: UnknownAge = "undetermined",
    **card: Any,
) -> Predictor:
    """Return the shipped network with a measure that puts ordinary features at distance 1."""
    measure = Novelty(torch.zeros(1024), torch.eye(1024) * 10)
    values = {"novelty_limit": limit, "novelty_source": "A test.", "ages": (1, 5)} | card
    checkpoint = Checkpoint(shipped.model, shipped.card.model_copy(update=values), measure)
    return ready(checkpoint, Eligibility(), shipped.engines, cautious=cautious, unknown_age=unknown_age)


def one(predictor: Predictor, folder: Path, **tags: Any) -> Prediction:
    with quiet():  # pydicom's remarks on values that are none
        return predictor.predict([save_dicom(radiograph(**tags), folder / "image.dcm")])[0]


def test_an_image_beyond_the_limit_is_undetermined_and_keeps_its_score(
    shipped: Predictor, tmp_path: Path
) -> None:
    near = one(with_limit(shipped, 1e6), tmp_path)
    far = one(with_limit(shipped, 1e-6), tmp_path)
    assert (near.reason, far.reason) == (None, Reason.UNLIKE_TRAINING)
    assert (far.decision, far.probability) == (Decision.UNDETERMINED, near.probability)
    assert near.novelty is not None
    assert far.novelty is not None
    assert near.novelty <= 1 < far.novelty
    assert "times the limit" in far.detail


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        *((age, None) for age in ("001Y", "005Y", "012M", "071M", "300W")),
        *((age, Reason.OTHER_AGE) for age in ("006Y", "062Y", "011M", "072M", "364D", "000D")),
    ],
)
def test_a_patient_of_another_age_is_undetermined(
    stated: str, reason: Reason | None, shipped: Predictor, tmp_path: Path
) -> None:
    found = one(with_limit(shipped, 1e6), tmp_path, PatientAge=stated, PatientBirthDate="")
    assert found.reason == reason
    assert (found.decision is Decision.UNDETERMINED) == (reason is not None)
    assert found.probability is not None


def test_who_is_not_cautious_decides_all_the_same_and_records_both(
    shipped: Predictor, tmp_path: Path
) -> None:
    found = one(with_limit(shipped, 1e-6, cautious=False), tmp_path, PatientAge="062Y")
    assert found.decision in (Decision.POSITIVE, Decision.NEGATIVE)
    assert found.reason is None
    assert found.novelty is not None
    assert found.novelty > 1
    assert found.age == 62


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"PatientAge": "45Y"}, Reason.OTHER_AGE),
        ({"PatientAge": "45"}, Reason.OTHER_AGE),
        ({"PatientBirthDate": "1950", "StudyDate": ""}, Reason.OTHER_AGE),
        ({"PatientBirthDate": "2022"}, None),
        ({"PatientBirthDate": "2019"}, Reason.UNKNOWN_AGE),  # five years, or six
        ({}, Reason.UNKNOWN_AGE),
        ({"PatientAge": "CHILD"}, Reason.UNKNOWN_AGE),
        ({"PatientAge": "004Y", "PatientBirthDate": "19800101"}, Reason.DOUBTFUL_AGE),
        ({"PatientAge": "045Y", "PatientBirthDate": "20210101"}, Reason.DOUBTFUL_AGE),
        ({"PatientAge": "999Y", "PatientBirthDate": "20210101"}, Reason.DOUBTFUL_AGE),
        ({"PatientBirthDate": "20300101"}, Reason.DOUBTFUL_AGE),
    ],
)
def test_an_age_that_is_not_told_or_contradicts_itself_decides_nothing(
    tags: dict[str, str], reason: Reason | None, shipped: Predictor, tmp_path: Path
) -> None:
    found = one(with_limit(shipped, 1e6), tmp_path, **{"PatientAge": "", "PatientBirthDate": ""} | tags)
    assert found.reason == reason
    assert (found.decision is Decision.UNDETERMINED) == (reason is not None)
    assert found.probability is not None


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"PatientAge": ""}, None),
        ({"PatientAge": "", "PatientBirthDate": "2019"}, None),
        ({"PatientAge": "062Y"}, Reason.OTHER_AGE),
        ({"PatientAge": "004Y", "PatientBirthDate": "19800101"}, Reason.DOUBTFUL_AGE),
    ],
)
def test_an_unknown_age_may_be_decided_and_another_one_may_not(
    tags: dict[str, str], reason: Reason | None, shipped: Predictor, tmp_path: Path
) -> None:
    predictor = with_limit(shipped, 1e6, unknown_age="decide")
    assert one(predictor, tmp_path, **{"PatientBirthDate": ""} | tags).reason == reason


def test_a_model_for_all_ages_need_not_know_the_age(shipped: Predictor, tmp_path: Path) -> None:
    predictor = with_limit(shipped, 1e6, ages=None)
    assert one(predictor, tmp_path, PatientAge="", PatientBirthDate="").reason is None


def test_a_picture_has_no_age(shipped: Predictor, tmp_path: Path) -> None:
    picture = tmp_path / "chest.png"
    Image.fromarray(radiograph("SC").pixel_array.astype(np.uint8)).save(picture)
    assert with_limit(shipped, 1e6).predict([picture])[0].reason is Reason.UNKNOWN_AGE
    assert with_limit(shipped, 1e6, unknown_age="decide").predict([picture])[0].reason is None


def test_a_band_around_the_threshold_is_undetermined(shipped: Predictor, tmp_path: Path) -> None:
    probability = one(with_limit(shipped, 1e6), tmp_path).probability
    assert probability is not None
    for distance, reason in ((0.04, Reason.NEAR_THRESHOLD), (0.06, None)):
        for threshold in (probability - distance, probability + distance):
            predictor = with_limit(shipped, 1e6, threshold=threshold, band=0.05)
            assert one(predictor, tmp_path).reason == reason


# --- the model that ships, on real images


def test_the_shipped_model_finds_photographs_and_noise_unlike_its_training_images(
    shipped: Predictor, tmp_path: Path
) -> None:
    files = []
    for number, photograph in enumerate(load_sample_images().images):
        files.append(tmp_path / f"photograph{number}.png")
        Image.fromarray(photograph).save(files[-1])
    generator = np.random.default_rng(0)
    for number in range(3):
        files.append(tmp_path / f"noise{number}.png")
        Image.fromarray(generator.integers(0, 256, (300, 300), np.uint8)).save(files[-1])
    assert {p.reason for p in shipped.predict(files)} == {Reason.UNLIKE_TRAINING}


def test_the_shipped_model_knows_children_and_is_careful_with_adults_and_hands(
    shipped: Predictor, shared: Path, tmp_path: Path
) -> None:
    children = sorted((shared / "data" / "kermany" / "val").rglob("*.jpeg"))
    reasons = [prediction.reason for prediction in shipped.predict(children)]  # pictures tell no age
    assert reasons.count(Reason.UNKNOWN_AGE) >= len(children) - 1
    unchecked = Predictor.load(device="cpu", rules=None)
    for name in ("RG1_J2KI.dcm", "RG3_J2KR.dcm"):  # an adult and a hand
        plain = dcmread(shared / "data" / "dicom" / name)
        # They are years apart, which is a doubt of its own
        for keyword in ("SeriesDate", "AcquisitionDate", "ContentDate"):
            plain.pop(keyword, None)
        plain.save_as(tmp_path / name)
        assert unchecked.predict([tmp_path / name])[0].reason in (Reason.OTHER_AGE, Reason.UNLIKE_TRAINING)
