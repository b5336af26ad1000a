"""What the predictor answers where the gate takes an image for a stranger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from classifier.config import SHIPPED_MODEL, Eligibility, UnknownAge
from classifier.decoding.ages import Age
from classifier.errors import CheckpointError
from classifier.model.card import GateCard, Kind, parse_card
from classifier.model.checkpoint import Checkpoint, load, save
from classifier.model.gate import Gate, judge, shrunk, split_gate
from classifier.outcome import Decision, Prediction
from classifier.reasons import Reason
from classifier.scoring.doubt import Doubts
from classifier.scoring.predict import Predictor
from tests.conftest import radiograph
from tests.conftest import save as save_dicom
from tests.helpers.predictors import ready

AGED_FOUR = Age(4.2)
KINDS: tuple[Kind, ...] = ("known", "adult", "turned", "inverted", "other")


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    return load(SHIPPED_MODEL)


def gate_that_says(kind: Kind) -> Gate:
    """Return a gate that takes every image for one kind."""
    gate = Gate(len(KINDS)).eval().requires_grad_(False)
    gate.head.weight.zero_()
    gate.head.bias.zero_()
    gate.head.bias[KINDS.index(kind)] = 9
    return gate


def with_gate(shipped: Checkpoint, gate: Gate, **card: Any) -> Predictor:
    """Return the shipped network with the gate alone, without the measure of distance."""
    described = GateCard(kinds=KINDS, limit=0, source="A test.")
    update = {"novelty_limit": None, "gate": described, "ages": (1, 5)} | card
    return ready(Checkpoint(shipped.model, shipped.card.model_copy(update=update), None, gate), Eligibility())


def one(predictor: Predictor, folder: Path, **tags: Any) -> Prediction:
    return predictor.predict([save_dicom(radiograph(**tags), folder / "image.dcm")])[0]


def doubt(
    shipped: Checkpoint,
    looks_like: Kind | None,
    age: Age = AGED_FOUR,
    *,
    unknown_age: UnknownAge = "undetermined",
    cautious: bool = True,
    **card: Any,
) -> Reason | None:
    """Return the reason for which an image is undetermined that looks like something, or like a known one."""
    described = GateCard(kinds=KINDS, limit=0, source="A test.")
    update = {"gate": described, "ages": (1, 5), "band": 0.0} | card
    doubts = Doubts(shipped.card.model_copy(update=update), cautious, unknown_age)
    found = doubts(0.9, 0.2 if looks_like is None else 1.5, looks_like, age)
    return None if found is None else found[0]


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
    predictor = with_gate(shipped, gate_that_says(kind), ages=None)
    found = one(predictor, tmp_path)
    assert (found.decision, found.reason) == (Decision.UNDETERMINED, Reason.UNLIKE_TRAINING)
    assert words in found.detail
    assert found.probability is not None
    assert found.novelty is not None
    assert found.novelty > 1


def test_an_image_that_the_gate_knows_is_decided(shipped: Checkpoint, tmp_path: Path) -> None:
    found = one(with_gate(shipped, gate_that_says("known")), tmp_path)
    assert found.reason is None
    assert found.novelty is not None
    assert found.novelty < 1


def test_an_adult_whose_tags_tell_a_childs_age_is_undetermined(shipped: Checkpoint, tmp_path: Path) -> None:
    found = one(with_gate(shipped, gate_that_says("adult")), tmp_path)
    assert (found.decision, found.reason) == (Decision.UNDETERMINED, Reason.TAGS_DISAGREE)
    assert "child" in found.detail


@pytest.mark.parametrize(
    ("age", "reason"),
    [
        (AGED_FOUR, Reason.TAGS_DISAGREE),
        (Age(62.0), Reason.OTHER_AGE),  # both say the same
        (Age(), Reason.UNLIKE_TRAINING),
        (Age(5.7, 0.5), Reason.UNLIKE_TRAINING),  # five years, or six
        (Age(4.0, doubt="They differ"), Reason.UNLIKE_TRAINING),
    ],
)
@pytest.mark.parametrize("rule", ["undetermined", "look", "decide"])
def test_an_adult_in_the_image_is_compared_with_the_age_in_the_tags(
    age: Age, reason: Reason, rule: UnknownAge, shipped: Checkpoint
) -> None:
    assert doubt(shipped, "adult", age, unknown_age=rule) == reason


@pytest.mark.parametrize("kind", ["turned", "inverted", "other"])
@pytest.mark.parametrize("age", [AGED_FOUR, Age(), Age(62.0)])
def test_other_strangers_have_nothing_to_do_with_the_age(kind: Kind, age: Age, shipped: Checkpoint) -> None:
    assert doubt(shipped, kind, age) == Reason.UNLIKE_TRAINING


@pytest.mark.parametrize(
    ("rule", "reason"), [("undetermined", Reason.UNKNOWN_AGE), ("look", None), ("decide", None)]
)
def test_where_the_tags_tell_no_age_the_gate_may_look(
    rule: UnknownAge, reason: Reason | None, shipped: Checkpoint
) -> None:
    assert doubt(shipped, None, Age(), unknown_age=rule) == reason
    assert doubt(shipped, None, Age(62.0), unknown_age=rule) == Reason.OTHER_AGE


@pytest.mark.parametrize("kinds", [None, ("known", "turned")])
def test_without_a_gate_that_knows_adults_nobody_looks(
    kinds: tuple[Kind, ...] | None, shipped: Checkpoint
) -> None:
    gate = None if kinds is None else GateCard(kinds=kinds, limit=0, source="A test.")
    assert doubt(shipped, None, Age(), unknown_age="look", gate=gate) == Reason.UNKNOWN_AGE


def test_who_is_not_cautious_decides_about_an_adult_too(shipped: Checkpoint) -> None:
    assert doubt(shipped, "adult", cautious=False) is None


def test_a_model_without_known_ages_calls_an_adult_unlike_its_images(shipped: Checkpoint) -> None:
    assert doubt(shipped, "adult", Age(62.0), ages=None) == Reason.UNLIKE_TRAINING


def test_the_novelty_is_that_of_the_stricter_of_gate_and_distance(tmp_path: Path) -> None:
    whole = load(SHIPPED_MODEL)
    described = GateCard(kinds=KINDS, limit=0, source="A test.")
    cases: tuple[tuple[Kind, bool], ...] = (("adult", True), ("known", False))
    for kind, is_far in cases:
        card = whole.card.model_copy(update={"gate": described, "novelty_limit": 1e6})
        gate = gate_that_says(kind)
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
    with pytest.raises(CheckpointError, match=r"Correct 'gate\.kinds"):
        parse_card(json.dumps(content))


@pytest.mark.parametrize("side", [80, 96, 160, 224])
def test_the_gate_looks_at_80_pixels_whatever_the_network_takes(side: int) -> None:
    images = torch.rand(2, 3, side, side)
    assert shrunk(images).shape == (2, 1, 80, 80)
    assert Gate(5)(images).shape == (2, 5)
