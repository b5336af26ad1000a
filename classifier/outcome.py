"""What the classifier says about one image; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from classifier.errors import Reason


class Decision(StrEnum):
    """The answer for one image."""

    POSITIVE = "positive"
    NEGATIVE = "negative"
    UNDETERMINED = "undetermined"
    NOT_SCORED = "not_scored"


@dataclass(frozen=True)
class Prediction:
    """Score and decision of one image, or the reason why it has none.

    Attributes
    ----------
    probability
        Probability of pneumonia, 0 to 1, rounded to four decimals; ``None`` when the image was not scored.
    decision
        Positive when `probability` is at least the threshold of the model.
    reason, detail
        Why the image was not scored; ``None`` and an empty string otherwise.
    view
        ``"PA"``, ``"AP"``, ``"frontal"`` or ``"unknown"``; ``None`` when the image was not scored and for
        files that carry no tags.
    """

    probability: float | None
    decision: Decision
    reason: Reason | None
    detail: str
    view: str | None
