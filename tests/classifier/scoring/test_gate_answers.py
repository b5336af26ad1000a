"""What the predictor answers where the gate takes an image for a stranger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from classifier.config import SHIPPED_MODEL, Eligibility, UnknownAge
from classifier.errors import CheckpointError, Reason
from classifier.model.card import GateCard, Kind, parse_card
from classifier.model.checkpoint import Checkpoint, load, save
from classifier.model.gate import Gate, judge, shrunk, split_gate
from classifier.outcome import Decision, Prediction
from classifier.scoring.predict import Predictor
from tests.conftest import radiograph
from tests.conftest import save as save_dicom
from tests.helpers.predictors import ready

KINDS: tuple[Kind, ...] = ("known", "adult", "turned", "inverted", "other")


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    return load(SHIPPED_MODEL)


def gate_that_says(kind: Kind, odds: float = 9.0) -> Gate:
    """Return a gate that takes every image for one kind."""
    gate = Gate(len(KINDS)).eval().requires_grad_(False)
    gate.head.weight.zero_()
    gate.head.bias.zero_()
    gate.head.bias[KINDS.index(kind)] = odds
    return gate


def with_gate(
    shipped: Checkpoint,
    gate: Gate,
    *,
    limit: float = 0.0,
    cautious: bool = True,
    unknown_age: UnknownAge = "undetermined",
    **card: Any,
) -> Predictor:
    """Return the shipped network with the gate alone, without the measure of distance."""
    described = GateCard(kinds=KINDS, limit=limit, source="A test.")
    update = {"novelty_limit": None, "gate": described, "ages": (1, 5)} | card
    checkpoint = Checkpoint(shipped.model, shipped.card.model_copy(update=update), None, gate)
    return ready(checkpoint, Eligibility(), cautious=cautious, unknown_age=unknown_age)


def one(predictor: Predictor, folder: Path, **tags: Any) -> Prediction:
    return predictor.predict([save_dicom(radiograph(**tags), folder / "image.dcm")])[0]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("adult", "an adult"),
        ("turned", "upside down"),
        ("inverted", "inverted"),
        ("other", "does not look like an upright"),
    ],
)
def test_a_stranger_is_undetermined_and_the_detail_says_what_it_looks_like(
    kind: Kind, words: str, shipped: Checkpoint, tmp_path: Path
) -> None:
    found = one(with_gate(shipped, gate_that_says(kind)), tmp_path, PatientAge="")
    assert (found.decision, found.reason) == (Decision.UNDETERMINED, Reason.UNLIKE_TRAINING)
    assert words in found.detail
    assert found.probability is not None
    assert found.novelty is not None
    assert found.novelty > 1


def test_an_image_that_the_gate_knows_is_decided(shipped: Checkpoint, tmp_path: Path) -> None:
    found = one(with_gate(shipped, gate_that_says("known")), tmp_path, PatientAge="004Y")
    assert found.reason is None
    assert found.novelty is not None
    assert found.novelty < 1


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        ("004Y", Reason.TAGS_DISAGREE),
        ("062Y", Reason.OTHER_AGE),  # both say the same
        ("", Reason.UNLIKE_TRAINING),
    ],
)
def test_an_adult_in_the_image_is_compared_with_the_age_in_the_tags(
    stated: str, reason: Reason, shipped: Checkpoint, tmp_path: Path
) -> None:
    found = one(with_gate(shipped, gate_that_says("adult")), tmp_path, PatientAge=stated)
    assert (found.decision, found.reason) == (Decision.UNDETERMINED, reason)


@pytest.mark.parametrize(
    ("rule", "kind", "reason"),
    [
        ("undetermined", "known", Reason.UNKNOWN_AGE),
        ("look", "known", None),
        ("look", "adult", Reason.UNLIKE_TRAINING),
        ("decide", "known", None),
        ("decide", "adult", Reason.UNLIKE_TRAINING),
    ],
)
def test_where_the_tags_tell_no_age_the_gate_may_look(
    rule: UnknownAge, kind: Kind, reason: Reason | None, shipped: Checkpoint, tmp_path: Path
) -> None:
    predictor = with_gate(shipped, gate_that_says(kind), unknown_age=rule)
    assert one(predictor, tmp_path, PatientAge="").reason == reason


@pytest.mark.parametrize("kinds", [None, ("known", "turned")])
def test_without_a_gate_that_knows_adults_nobody_looks(
    kinds: tuple[Kind, ...] | None, shipped: Checkpoint, tmp_path: Path
) -> None:
    described = None if kinds is None else GateCard(kinds=kinds, limit=99, source="A test.")
    card = shipped.card.model_copy(update={"gate": described, "ages": (1, 5), "novelty_limit": None})
    gate = None if kinds is None else Gate(len(kinds)).eval()
    predictor = ready(Checkpoint(shipped.model, card, None, gate), Eligibility(), unknown_age="look")
    assert one(predictor, tmp_path, PatientAge="").reason == Reason.UNKNOWN_AGE


def test_who_is_not_cautious_decides_about_an_adult_too(shipped: Checkpoint, tmp_path: Path) -> None:
    predictor = with_gate(shipped, gate_that_says("adult"), cautious=False)
    found = one(predictor, tmp_path, PatientAge="004Y")
    assert found.decision in (Decision.POSITIVE, Decision.NEGATIVE)
    assert found.reason is None


def test_a_model_without_known_ages_calls_an_adult_unlike_its_images(
    shipped: Checkpoint, tmp_path: Path
) -> None:
    predictor = with_gate(shipped, gate_that_says("adult"), ages=None)
    assert one(predictor, tmp_path, PatientAge="062Y").reason == Reason.UNLIKE_TRAINING


def test_the_novelty_is_that_of_the_stricter_of_gate_and_distance(tmp_path: Path) -> None:
    whole = load(SHIPPED_MODEL)
    described = GateCard(kinds=KINDS, limit=0, source="A test.")
    for odds, is_far in ((9.0, True), (-9.0, False)):
        card = whole.card.model_copy(update={"gate": described, "novelty_limit": 1e6})
        gate = gate_that_says("adult", odds)
        predictor = ready(Checkpoint(whole.model, card, whole.novelty, gate), Eligibility())
        found = one(predictor, tmp_path)
        assert found.novelty is not None
        assert (found.novelty > 1) == is_far
    strict = whole.card.model_copy(update={"gate": described, "novelty_limit": 1e-6})
    checkpoint = Checkpoint(whole.model, strict, whole.novelty, gate_that_says("known"))
    found = one(ready(checkpoint, Eligibility()), tmp_path)
    assert "times the limit" in found.detail


def test_the_limit_is_where_the_novelty_is_one() -> None:
    logits = torch.tensor([[0.0, 2.0, -50.0], [0.0, -50.0, 2.1], [0.0, 1.9, -50.0], [300.0, -300.0, -300.0]])
    found = judge(logits, 2.0)
    torch.testing.assert_close(found.novelties[0], torch.tensor(1.0))
    assert [value > 1 for value in found.novelties[1:].tolist()] == [True, False, False]
    assert found.strangers.tolist()[:3] == [1, 2, 1]
    assert torch.isfinite(found.novelties).all()


# --- the checkpoint


def test_a_checkpoint_brings_the_gate_back(shipped: Checkpoint, tmp_path: Path) -> None:
    gate = Gate(len(KINDS)).eval()
    card = shipped.card.model_copy(update={"gate": GateCard(kinds=KINDS, limit=1.5, source="A test.")})
    save(tmp_path / "m.safetensors", shipped.model.state_dict(), card, shipped.novelty, gate)
    back = load(tmp_path / "m.safetensors")
    assert back.card.gate == card.gate
    assert back.gate is not None
    images = torch.rand(2, 3, 160, 160)
    torch.testing.assert_close(back.gate(images), gate(images))


@pytest.mark.parametrize("described", [True, False])
def test_a_gate_and_its_description_come_together(
    described: bool, shipped: Checkpoint, tmp_path: Path
) -> None:
    card = shipped.card.model_copy(
        update={"gate": GateCard(kinds=KINDS[:4], limit=1.5, source="A test.") if described else None}
    )
    with pytest.raises(CheckpointError, match="a gate and its description"):
        save(tmp_path / "m.safetensors", shipped.model.state_dict(), card, shipped.novelty, Gate(len(KINDS)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate.head.bias": torch.zeros(7)}, "of other shapes"),
        ({"gate.layers.0.bias": torch.full((12,), torch.nan)}, "not finite"),
        ({"gate.more": torch.zeros(1)}, "not whole"),
    ],
)
def test_a_damaged_gate_is_refused(change: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_gate(Gate(5).tensors() | change)


def test_a_gate_in_part_is_refused_and_none_is_none() -> None:
    tensors = Gate(5).tensors()
    del tensors["gate.head.bias"]
    with pytest.raises(ValueError, match="not whole"):
        split_gate(tensors)
    others, gate = split_gate({"features.x": torch.zeros(1)})
    assert (list(others), gate) == (["features.x"], None)


@pytest.mark.parametrize(
    "kinds", [["adult", "known"], ["known"], ["known", "adult", "adult"], ["known", "cat"]]
)
def test_a_card_with_kinds_that_make_no_sense_is_refused(kinds: list[str], shipped: Checkpoint) -> None:
    content = shipped.card.model_dump(mode="json")
    content["gate"] = {"kinds": kinds, "limit": 1.0, "source": "A test."}
    import json

    with pytest.raises(CheckpointError, match=r"Correct 'gate\.kinds"):
        parse_card(json.dumps(content))


@pytest.mark.parametrize("side", [80, 96, 160, 224])
def test_the_gate_looks_at_80_pixels_whatever_the_network_takes(side: int) -> None:
    images = torch.rand(2, 3, side, side)
    assert shrunk(images).shape == (2, 1, 80, 80)
    assert Gate(5)(images).shape == (2, 5)
