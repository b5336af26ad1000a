"""Prediction: what the shipped model says about drawn and real images, and what never gets a score."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from classifier.config import SHIPPED_MODEL, Eligibility
from classifier.device import choose_device
from classifier.errors import CheckpointError, DeviceError
from classifier.model.card import ModelCard
from classifier.model.checkpoint import Checkpoint
from classifier.outcome import Decision, Prediction
from classifier.reasons import Reason
from classifier.scoring.predict import Predictor
from pacs_node.demo.samples import Sample
from tests.conftest import radiograph, save
from tests.helpers.predictors import ready

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
REPEAT = {"name": "RepeatChannel", "count": 3}


@pytest.fixture(scope="module")
def shipped() -> Predictor:
    """The model that ships."""
    return Predictor.load(device="cpu", unknown_age="decide")  # pictures tell no age


@pytest.fixture(scope="module")
def answers(shipped: Predictor, drawn_studies: list[Sample]) -> list[Prediction]:
    """What the shipped model says about the drawn images in one batch, those that it refuses among them."""
    return shipped.predict([sample.path for sample in drawn_studies])


@pytest.fixture
def chest(tmp_path: Path) -> Path:
    """A frontal chest radiograph on disk."""
    return save(radiograph(), tmp_path / "chest.dcm")


class Network(nn.Module):
    """A network that gives each image the logit that a function tells."""

    def __init__(self, logit: Callable[[torch.Tensor], float]) -> None:
        super().__init__()
        self.logit = logit
        self.was_recording = True
        self.head = nn.Linear(1, 1, bias=False)
        self.head.weight = nn.Parameter(torch.ones(1, 1))
        self.classifier = nn.Identity()

    def maps(self, batch: torch.Tensor) -> torch.Tensor:
        self.was_recording = torch.is_grad_enabled()
        return torch.tensor([self.logit(image) for image in batch])[:, None, None, None]


def predictor(shipped: Predictor, logit: float | Callable[[torch.Tensor], float], **card: Any) -> Predictor:
    """Return a predictor with a network of the test's own, and the shipped card but for these values."""
    network = Network(logit if callable(logit) else lambda _: logit)
    steps = ({"name": "Resize", "size": 32}, {"name": "Normalise", "mean": 0.5, "std": 0.25}, REPEAT)
    plain = {"threshold": 0.5, "temperature": 1.0, "offset": 0.0, "preprocessing": steps}
    return made_of(network, shipped.card.model_copy(update=plain | card))


def made_of(network: Network, card: ModelCard) -> Predictor:
    """Return a predictor with a network of the test's own, which has no novelty measure."""
    return Predictor(Checkpoint(network, card, None), CPU, Eligibility())  # type: ignore[arg-type]


def with_rules(shipped: Predictor, rules: Eligibility) -> Predictor:
    checkpoint = Checkpoint(shipped.model, shipped.card, shipped.novelty)
    return ready(checkpoint, rules, shipped.engines, cautious=False)


def logit_of(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def probabilities(predictions: Sequence[Prediction]) -> list[float]:
    return [p.probability for p in predictions if p.probability is not None]


# --- the model that ships


def test_the_drawn_studies_get_the_answers_they_expect(
    drawn_studies: list[Sample], answers: list[Prediction]
) -> None:
    said = {s.truth: str(p.reason or p.decision) for s, p in zip(drawn_studies, answers, strict=True)}
    assert said == {sample.truth: sample.expected for sample in drawn_studies}


def test_the_drawn_studies_tell_their_views(answers: list[Prediction]) -> None:
    assert [p.view for p in answers if p.probability is not None] == ["PA", "PA", "AP", "AP", "PA", "PA"]
    assert {p.view for p in answers if p.probability is None} == {None}


def test_a_prediction_has_a_probability_or_a_reason(answers: list[Prediction]) -> None:
    for prediction in answers:
        if prediction.decision is Decision.NOT_SCORED:
            assert prediction.probability is None
            assert prediction.reason is not None
            assert prediction.detail
        else:
            assert prediction.probability is not None
            is_open = prediction.decision is Decision.UNDETERMINED
            assert (prediction.reason is None, prediction.detail == "") == (not is_open, not is_open)


def test_a_batch_gives_what_single_images_give_in_the_same_order(
    shipped: Predictor, drawn_studies: list[Sample], answers: list[Prediction]
) -> None:
    single = [shipped.predict([sample.path])[0] for sample in drawn_studies]
    for alone, batched in zip(single, answers, strict=True):
        assert (alone.decision, alone.reason, alone.view) == (batched.decision, batched.reason, batched.view)
    assert probabilities(single) == pytest.approx(probabilities(answers), abs=shipped.engines.fast.error)


def test_two_processes_with_one_and_two_threads_give_the_same(
    shipped: Predictor, drawn_studies: list[Sample]
) -> None:
    files = [sample.path for sample in drawn_studies if sample.expected in ("negative", "positive")][:3]
    script = (
        "import json, sys, torch; from pathlib import Path; from classifier.scoring.predict import Predictor;"
        "torch.set_num_threads(1); found = Predictor.load(device='cpu').predict([*map(Path, sys.argv[1:])]);"
        "print(json.dumps([p.probability for p in found]))"
    )
    command = [sys.executable, "-c", script, *map(str, files)]
    there = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    torch.set_num_threads(2)
    try:
        here = probabilities(shipped.predict(files))
    finally:
        torch.set_num_threads(1)
    assert there == pytest.approx(here, abs=shipped.engines.fast.error)


def test_a_real_chest_is_scored_and_a_real_limb_is_not(shared: Path, shipped: Predictor) -> None:
    folder = shared / "data/dicom"
    chest, limb = shipped.predict([folder / "RG1_J2KI.dcm", folder / "RG3_J2KR.dcm"])
    assert chest.view == "PA"
    assert chest.probability is not None
    assert 0 < chest.probability < 1
    assert (limb.decision, limb.reason) == (Decision.NOT_SCORED, Reason.NOT_CHEST)


def test_real_pictures_of_children_are_told_apart(shared: Path, shipped: Predictor) -> None:
    """A smoke test on 16 images: it would show a mirrored, inverted or unscaled input, and no more."""
    files = sorted((shared / "data/kermany/val").rglob("*.jpeg"))
    assert len(files) == 16
    right = [
        prediction.decision == (Decision.POSITIVE if file.parent.name == "PNEUMONIA" else Decision.NEGATIVE)
        for file, prediction in zip(files, shipped.predict(files), strict=True)
    ]
    assert sum(right) >= 12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_gives_what_the_cpu_gives(drawn_studies: list[Sample], answers: list[Prediction]) -> None:
    on_cuda = Predictor.load(device="cuda")
    assert on_cuda.device == "cuda:0"
    found = on_cuda.predict([sample.path for sample in drawn_studies])
    assert [p.decision for p in found] == [p.decision for p in answers]
    assert probabilities(found) == pytest.approx(probabilities(answers), abs=2e-3)  # half precision


# --- probability and decision


@pytest.mark.parametrize(
    ("score", "probability", "decision"),
    [
        (0.5, 0.5, Decision.POSITIVE),
        (0.49996, 0.5, Decision.POSITIVE),  # what is shown is what is compared
        (0.49994, 0.4999, Decision.NEGATIVE),
        (0.123456, 0.1235, Decision.NEGATIVE),
        (0.99999, 1.0, Decision.POSITIVE),
    ],
)
def test_the_decision_follows_the_four_decimals_that_are_shown(
    score: float, probability: float, decision: Decision, shipped: Predictor, chest: Path
) -> None:
    (found,) = predictor(shipped, logit_of(score), threshold=0.5).predict([chest])
    assert (found.probability, found.decision) == (probability, decision)


def test_the_threshold_is_that_of_the_card(shipped: Predictor, chest: Path) -> None:
    (low,) = predictor(shipped, logit_of(0.3), threshold=0.3).predict([chest])
    (high,) = predictor(shipped, logit_of(0.3), threshold=0.3001).predict([chest])
    assert (low.decision, high.decision) == (Decision.POSITIVE, Decision.NEGATIVE)


def test_the_offset_moves_and_the_temperature_divides_the_logit(shipped: Predictor, chest: Path) -> None:
    (found,) = predictor(shipped, 2.5, temperature=2.0, offset=0.5).predict([chest])
    assert found.probability == round(1 / (1 + np.exp(-1.5)), 4)


def test_all_scores_have_four_decimals_at_most(answers: list[Prediction]) -> None:
    found = probabilities(answers)
    assert found == [round(probability, 4) for probability in found]
    assert all(0 <= probability <= 1 for probability in found)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_network_without_finite_score_for_an_image_fails_that_image_only(
    bad: float, shipped: Predictor, tmp_path: Path
) -> None:
    files = [save(radiograph(number=number), tmp_path / f"{number}.dcm") for number in (1, 2)]
    dark = save(radiograph(number=3, WindowCenter=4000), tmp_path / "dark.dcm")

    def logit(image: torch.Tensor) -> float:
        return bad if image.mean() < 0 else 1.0

    first, failed, last = predictor(shipped, logit).predict([files[0], dark, files[1]])
    assert (failed.decision, failed.reason) == (Decision.NOT_SCORED, Reason.NO_FINITE_SCORE)
    assert (failed.probability, failed.view) == (None, "PA")
    assert first.probability == last.probability == 0.7311


def test_the_network_is_in_evaluation_mode_and_records_no_gradient(shipped: Predictor, chest: Path) -> None:
    network = Network(lambda _: 0.0)
    network.layer = nn.Linear(1, 1)
    made = made_of(network.train(), shipped.card)
    made.predict([chest])
    assert not network.training
    assert not network.was_recording
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert shipped.predict([chest]) == shipped.predict([chest])


# --- what goes in


def test_nothing_gives_nothing(shipped: Predictor) -> None:
    assert shipped.predict([]) == []


def test_refused_images_alone_need_no_network(shipped: Predictor, tmp_path: Path) -> None:
    def never(image: torch.Tensor) -> float:
        raise AssertionError

    (tmp_path / "notes.txt").write_text("notes")
    (found,) = predictor(shipped, never).predict([tmp_path / "notes.txt"])
    assert found.reason == Reason.UNREADABLE


def test_a_missing_file_is_no_verdict_on_the_image(shipped: Predictor, chest: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        shipped.predict([chest, tmp_path / "gone.dcm"])
    with pytest.raises(IsADirectoryError):
        shipped.predict([tmp_path])


def test_the_rules_decide_on_images_of_unknown_view_and_body_part(shipped: Predictor, tmp_path: Path) -> None:
    view: dict[str, Any] = dict.fromkeys(("ViewPosition", "ViewCodeSequence", "PatientOrientation"))
    part: dict[str, Any] = dict.fromkeys(("BodyPartExamined", "AnatomicRegionSequence", "StudyDescription"))
    part |= dict.fromkeys(("RequestAttributesSequence", "ProcedureCodeSequence"))
    files = [save(radiograph(**view), tmp_path / "1.dcm"), save(radiograph(**part), tmp_path / "2.dcm")]
    assert [p.reason for p in shipped.predict(files)] == [Reason.NO_VIEW, Reason.NO_BODY_PART]
    lenient = with_rules(shipped, Eligibility("score", "score"))
    assert [(p.view, p.reason) for p in lenient.predict(files)] == [("unknown", None), ("PA", None)]
    by_view = with_rules(shipped, Eligibility(unknown_view="score"))
    assert [p.reason for p in by_view.predict(files)] == [None, Reason.NO_BODY_PART]


# --- model and device


def test_the_model_that_ships_is_the_default(shipped: Predictor) -> None:
    assert Predictor.load(SHIPPED_MODEL, "cpu").card == shipped.card
    with pytest.raises(CheckpointError, match="Cannot read the model"):
        Predictor.load(Path("nowhere.safetensors"), "cpu")


@pytest.mark.parametrize("steps", [
    [],
    [{"name": "Resize", "size": 160}],
    [{"name": "RepeatChannel", "count": 3}],
    [{"name": "Resize", "size": 160}, {"name": "RepeatChannel", "count": 1}],
])  # fmt: skip
def test_preprocessing_that_gives_the_network_no_square_planes_fails_at_the_start(
    steps: list[Any], shipped: Predictor
) -> None:
    with pytest.raises(CheckpointError, match="does not end in three square planes; pack it again"):
        predictor(shipped, 0.0, preprocessing=tuple(steps))


def test_preprocessing_that_is_not_known_fails_at_the_start(shipped: Predictor) -> None:
    with pytest.raises(CheckpointError, match="'CLAHE' is not known"):
        predictor(shipped, 0.0, preprocessing=({"name": "CLAHE"},))


@pytest.mark.parametrize("name", ["gpu", "", "CPU", "cpu:0", "mps", "cuda:", "cuda:x", "cuda:-1", "cuda0"])
def test_an_unknown_device_is_named(name: str) -> None:
    with pytest.raises(DeviceError) as caught:
        Predictor.load(device=name)
    said = f'The device {name!r} is not known; set device to "auto", "cpu", "cuda" or "cuda:N".'
    assert str(caught.value) == said


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match=r"^This machine has no device 'cuda:1'; set device to .+\.$"):
        Predictor.load(device="cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError, match="has no device 'cuda'"):
        Predictor.load(device="cuda")


def test_auto_takes_cuda_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [str(choose_device(name)) for name in ("auto", "cuda", "cuda:1", "cpu")] == [
        "cuda:0",
        "cuda:0",
        "cuda:1",
        "cpu",
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(choose_device("auto")) == "cpu"
