"""Why no decision can rest on a score."""

from __future__ import annotations

from dataclasses import dataclass

from classifier.config import UnknownAge
from classifier.decoding.ages import Age
from classifier.model.card import Kind, ModelCard
from classifier.reasons import Reason

Doubt = tuple[Reason, str]

_LOOKS: dict[Kind, str] = {
    "adult": "It looks like the chest of an adult",
    "turned": "It looks turned or upside down",
    "inverted": "Its grey values look inverted",
    "other": "It does not look like an upright frontal chest radiograph",
}


@dataclass(frozen=True)
class Doubts:
    """What makes an answer undetermined.

    Attributes
    ----------
    card
        Of the model.
    cautious
        Whether an image unlike the training images, or of a patient of another age, is undetermined.
    unknown_age
        What becomes of an image whose tags do not tell the age.
    """

    card: ModelCard
    cautious: bool
    unknown_age: UnknownAge

    def __call__(
        self, probability: float, novelty: float | None, looks_like: Kind | None, age: Age
    ) -> Doubt | None:
        """Return the reason and what was found, or nothing.

        Parameters
        ----------
        probability
            Calibrated.
        novelty
            1 is the limit.
        looks_like
            The kind of stranger, where the gate says that the image is one.
        age
            As the tags tell it.
        """
        if self.cautious:
            found = self._unlike(novelty, looks_like, age) or self._of_age(age)
            if found is not None:
                return found
        card = self.card
        if abs(probability - card.threshold) < card.band:
            return Reason.NEAR_THRESHOLD, f"Nearer than {card.band:g} to the threshold {card.threshold:g}"
        return None

    def _unlike(self, novelty: float | None, looks_like: Kind | None, age: Age) -> Doubt | None:
        if novelty is None or novelty <= 1:
            return None
        if looks_like is None:
            return (
                Reason.UNLIKE_TRAINING,
                f"Its distance from the training images is {novelty:g} times the limit",
            )
        if looks_like == "adult" and self.card.ages is not None:
            told = age_doubt(age, self.card.ages)
            if told is Reason.OTHER_AGE:
                return self._of_age(age)
            if told is None:
                return Reason.TAGS_DISAGREE, f"{_LOOKS['adult']}, but the tags tell a child's age"
        return Reason.UNLIKE_TRAINING, _LOOKS[looks_like]

    def _of_age(self, age: Age) -> Doubt | None:
        trained = self.card.ages
        reason = None if trained is None else age_doubt(age, trained)
        if trained is None or reason is None or (reason is Reason.UNKNOWN_AGE and self._may_be_unknown):
            return None
        detail = f"The model was trained on patients of {trained[0]} to {trained[1]} years"
        return reason, f"{age.doubt}. {detail}" if reason is Reason.DOUBTFUL_AGE else detail

    @property
    def _may_be_unknown(self) -> bool:
        return self.unknown_age == "decide" or (self.unknown_age == "look" and self._knows_adults)

    @property
    def _knows_adults(self) -> bool:
        return self.card.gate is not None and "adult" in self.card.gate.kinds


def age_doubt(age: Age, trained: tuple[int, int]) -> Reason | None:
    """Return what stands against an age, or nothing.

    Parameters
    ----------
    trained
        Youngest and oldest patient of the training images, in completed years.
    """
    youngest, oldest = trained
    if age.doubt:
        return Reason.DOUBTFUL_AGE
    completed = age.completed()
    if completed is not None and (completed[1] < youngest or completed[0] > oldest):
        return Reason.OTHER_AGE
    is_known = completed is not None and youngest <= completed[0] and completed[1] <= oldest
    return None if is_known else Reason.UNKNOWN_AGE
