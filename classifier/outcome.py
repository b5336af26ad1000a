"""What the classifier says about one image; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from classifier.heat_map import HeatMap
from classifier.reasons import Reason


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
        Why the image was not scored, or why its answer is undetermined; ``None`` and an empty string
        otherwise.
    view
        ``"PA"``, ``"AP"``, ``"frontal"`` or ``"unknown"``; ``None`` when the image was not scored and for
        files that carry no tags.
    novelty
        How unlike the training images it is, 1 being the limit of the model: the larger of the distance of
        its features and of what the gate says. ``None`` when the image was not scored or the model has no
        such measure.
    age
        Age of the patient in years as the tags tell it, else ``None``.
    heat_map
        What each place of the image adds to the logit. ``None`` when the image was not scored.
    """

    probability: float | None
    decision: Decision
    reason: Reason | None
    detail: str
    view: str | None
    novelty: float | None = None
    age: float | None = None
    heat_map: HeatMap | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class StillDecoding:
    """There is no prediction yet: decoding takes long, and goes on. The image is to be asked for again."""
