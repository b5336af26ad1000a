"""Why an image has no score, or no decision, and how sure each reason is."""

from __future__ import annotations

from enum import Enum, StrEnum


class Bearing(Enum):
    """How sure a reason is: what an image without an answer leaves of its study's answer."""

    OPEN = "it may be a frontal chest radiograph: the study is not negative"
    SETTLED = "it certainly is none: the answer of the study is that of its other images"
    NO_IMAGE = "it is a result of a program, and no image of the study: it is not counted"


class Reason(StrEnum):
    """Why an image is not scored, or its answer undetermined; it goes to the database and the report.

    What begins with NOT is certain, what begins with NO or MAYBE is a doubt.
    """

    NOT_RADIOGRAPH = "NOT_RADIOGRAPH"
    NOT_CHEST = "NOT_CHEST"
    NOT_FRONTAL = "NOT_FRONTAL"
    NOT_ORIGINAL = "NOT_ORIGINAL"
    OWN_RESULT = "OWN_RESULT"
    DERIVED_RESULT = "DERIVED_RESULT"
    NO_MODALITY = "NO_MODALITY"
    NO_BODY_PART = "NO_BODY_PART"
    NO_VIEW = "NO_VIEW"
    MAYBE_DERIVED = "MAYBE_DERIVED"
    FOR_PROCESSING = "FOR_PROCESSING"
    MULTI_FRAME = "MULTI_FRAME"
    NO_ORIENTATION = "NO_ORIENTATION"
    UNREADABLE = "UNREADABLE"
    CONTRADICTION = "CONTRADICTION"
    CONSTANT_IMAGE = "CONSTANT_IMAGE"
    TOO_LARGE = "TOO_LARGE"
    NO_FINITE_SCORE = "NO_FINITE_SCORE"
    UNLIKE_TRAINING = "UNLIKE_TRAINING"
    OTHER_AGE = "OTHER_AGE"
    TAGS_DISAGREE = "TAGS_DISAGREE"
    UNKNOWN_AGE = "UNKNOWN_AGE"
    DOUBTFUL_AGE = "DOUBTFUL_AGE"
    NEAR_THRESHOLD = "NEAR_THRESHOLD"

    @property
    def meaning(self) -> str:
        """Short English phrase for people, at most 64 characters (VR LO of a code meaning)."""
        return _FACTS[self][0]

    @property
    def bearing(self) -> Bearing:
        """How sure the reason is."""
        return _FACTS[self][1]

    @property
    def is_failure(self) -> bool:
        """Whether scoring was attempted and failed."""
        return self in (Reason.UNREADABLE, Reason.NO_FINITE_SCORE)


_FACTS = {
    Reason.NOT_RADIOGRAPH: ("Not a projection radiograph", Bearing.SETTLED),
    Reason.NOT_CHEST: ("Body part is not the chest", Bearing.SETTLED),
    Reason.NOT_FRONTAL: ("View is not frontal", Bearing.SETTLED),
    # Its original is another object
    Reason.NOT_ORIGINAL: ("Localizer, or derived image such as an energy subtraction", Bearing.SETTLED),
    Reason.OWN_RESULT: ("Result of this node", Bearing.NO_IMAGE),
    Reason.DERIVED_RESULT: ("Result of another program, such as a heat map", Bearing.NO_IMAGE),
    Reason.NO_MODALITY: ("Modality is not understood", Bearing.OPEN),
    Reason.NO_BODY_PART: ("Body part is unknown", Bearing.OPEN),
    Reason.NO_VIEW: ("View is unknown", Bearing.OPEN),
    Reason.MAYBE_DERIVED: ("Image may be derived, not an original", Bearing.OPEN),
    Reason.FOR_PROCESSING: ("Raw image, for processing", Bearing.OPEN),
    Reason.MULTI_FRAME: ("More than one frame", Bearing.OPEN),
    Reason.NO_ORIENTATION: ("Tags do not tell which way up the image is", Bearing.OPEN),
    Reason.UNREADABLE: ("Image cannot be read", Bearing.OPEN),
    Reason.CONTRADICTION: ("Pixel attributes contradict each other", Bearing.OPEN),
    Reason.CONSTANT_IMAGE: ("Image has one grey value only", Bearing.OPEN),
    Reason.TOO_LARGE: ("Image is larger than allowed", Bearing.OPEN),
    Reason.NO_FINITE_SCORE: ("Network gave no finite score", Bearing.OPEN),
    Reason.UNLIKE_TRAINING: ("Image is unlike the training data", Bearing.OPEN),
    Reason.OTHER_AGE: ("Age is outside the training population", Bearing.OPEN),
    Reason.TAGS_DISAGREE: ("Tags and image contradict each other", Bearing.OPEN),
    Reason.UNKNOWN_AGE: ("Age is unknown, and the model is for some ages only", Bearing.OPEN),
    Reason.DOUBTFUL_AGE: ("Age in the tags is contradictory or impossible", Bearing.OPEN),
    Reason.NEAR_THRESHOLD: ("Score is too near to the threshold", Bearing.OPEN),
}


RESULTS = frozenset(reason for reason in Reason if reason.bearing is Bearing.NO_IMAGE)
"""Reasons of objects that are results of programs and no images of a study."""
