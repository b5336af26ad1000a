"""What the node would answer for labelled images: undetermined ones are no answers, and count apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from classifier.config import Eligibility
from classifier.data.example import Example
from classifier.data.files import PICTURES
from classifier.decoding.ages import UNKNOWN
from classifier.decoding.eligibility import check
from classifier.decoding.parsing import Part10, is_dicom
from classifier.decoding.tags import quiet
from classifier.errors import NotScorable
from classifier.measuring.metrics import share_interval
from classifier.model.card import ModelCard
from classifier.outcome import Decision, Prediction
from classifier.reasons import Reason
from classifier.scoring.doubt import age_doubt

_HEADER_BYTES = 4 * 2**20
_RULES = Eligibility()
_AFTER_AGE = (None, Reason.UNKNOWN_AGE, Reason.NEAR_THRESHOLD)  # what is found where no other doubt is


class Answer(NamedTuple):
    """What the node would answer for one image, and why it would not decide."""

    decision: Decision
    reason: Reason | None


def answer(example: Example, prediction: Prediction, card: ModelCard) -> Answer:
    """Return what the node would answer.

    Parameters
    ----------
    example
        Where its file tells no age, that of the manifest counts as that of the tags.
    prediction
        By a cautious predictor, of the image whatever its tags say.
    """
    refused = _refused(example.path)
    if refused is not None:
        return Answer(Decision.NOT_SCORED, refused)
    told = example.age
    is_asked = prediction.reason in _AFTER_AGE and prediction.age is None  # by tags
    if card.ages is None or prediction.probability is None or not is_asked or told == UNKNOWN:
        return Answer(prediction.decision, prediction.reason)
    doubt = age_doubt(told, card.ages)
    if doubt is Reason.UNKNOWN_AGE:  # such as an age of 5 or 6 years
        return Answer(prediction.decision, prediction.reason)
    return _decided(prediction.probability, card) if doubt is None else Answer(Decision.UNDETERMINED, doubt)


def _decided(probability: float, card: ModelCard) -> Answer:
    if abs(probability - card.threshold) < card.band:
        return Answer(Decision.UNDETERMINED, Reason.NEAR_THRESHOLD)
    return Answer(Decision.POSITIVE if probability >= card.threshold else Decision.NEGATIVE, None)


def _refused(path: Path) -> Reason | None:
    """Return why the tags of a file keep it from being scored."""
    if path.suffix.lower() in PICTURES:
        return None
    try:
        with path.open("rb") as file, quiet():
            content = file.read(_HEADER_BYTES)
            if is_dicom(content):
                check(Part10(content).header(), _RULES)
    except NotScorable as refusal:
        return refusal.reason
    return None


def measure_answers(examples: Sequence[Example], answers: Sequence[Answer]) -> dict[str, Any]:
    """Return what metrics.json says under ``as_node``.

    Returns
    -------
    dict
        Numbers of answers; the reasons of those without a decision; sensitivity and specificity of the
        decisions, with intervals by patient; how many of all positives were called negative.
    """
    pairs = list(zip(examples, answers, strict=True))
    counts = Counter(found.decision for _, found in pairs)
    reasons = Counter(found.reason.value for _, found in pairs if found.reason is not None)
    decided = [(e, a) for e, a in pairs if a.decision in (Decision.POSITIVE, Decision.NEGATIVE)]
    missed = sum(e.label == 1 and a.decision is Decision.NEGATIVE for e, a in pairs)
    return {
        "n": len(pairs),
        **{decision.value: counts[decision] for decision in Decision},
        "reasons": dict(reasons.most_common()),
        "decided": len(decided),
        "decided_positive": sum(e.label for e, _ in decided),
        **_share("sensitivity", [(e, a) for e, a in decided if e.label == 1], Decision.POSITIVE),
        **_share("specificity", [(e, a) for e, a in decided if e.label == 0], Decision.NEGATIVE),
        "positives_called_negative": missed,
    }


def _share(name: str, pairs: Sequence[tuple[Example, Answer]], right: Decision) -> dict[str, Any]:
    if not pairs:
        return {name: None, f"{name}_ci95": None}
    share = sum(found.decision is right for _, found in pairs) / len(pairs)
    return {name: share, f"{name}_ci95": share_interval(share, len({e.patient for e, _ in pairs}))}
