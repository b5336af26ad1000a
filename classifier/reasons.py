"""Why an image has no score, or no decision, and how sure each reason is."""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import NamedTuple


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
        return _FACTS[self].meaning

    @property
    def bearing(self) -> Bearing:
        """How sure the reason is."""
        return _FACTS[self].bearing

    @property
    def to_do(self) -> str:
        """What a person can do about it; empty where nothing is wrong with the image."""
        return _FACTS[self].to_do

    @property
    def is_failure(self) -> bool:
        """Whether scoring was attempted and failed."""
        return self in (Reason.UNREADABLE, Reason.NO_FINITE_SCORE)


class _Facts(NamedTuple):
    meaning: str
    bearing: Bearing
    to_do: str = ""


_FACTS = {
    Reason.NOT_RADIOGRAPH: _Facts("Not a projection radiograph", Bearing.SETTLED),
    Reason.NOT_CHEST: _Facts("Body part is not the chest", Bearing.SETTLED),
    Reason.NOT_FRONTAL: _Facts("View is not frontal", Bearing.SETTLED),
    # Its original is another object
    Reason.NOT_ORIGINAL: _Facts("Localizer, or derived image such as an energy subtraction", Bearing.SETTLED),
    Reason.OWN_RESULT: _Facts("Result of this node", Bearing.NO_IMAGE),
    Reason.DERIVED_RESULT: _Facts("Result of another program, such as a heat map", Bearing.NO_IMAGE),
    Reason.NO_MODALITY: _Facts("Modality is not understood", Bearing.OPEN, "Set Modality at the device."),
    Reason.NO_BODY_PART: _Facts(
        "Body part is unknown", Bearing.OPEN, "Set Body Part Examined at the device."
    ),
    Reason.NO_VIEW: _Facts("View is unknown", Bearing.OPEN, "Set View Position at the device."),
    Reason.MAYBE_DERIVED: _Facts(
        "Image may be derived, not an original",
        Bearing.OPEN,
        "Send the original; or let the program that made this image say what it is.",
    ),
    Reason.FOR_PROCESSING: _Facts(
        "Raw image, for processing", Bearing.OPEN, "Let the device send the image for presentation."
    ),
    Reason.MULTI_FRAME: _Facts("More than one frame", Bearing.OPEN, "Send single images."),
    Reason.NO_ORIENTATION: _Facts(
        "Tags do not tell which way up the image is", Bearing.OPEN, "Set Patient Orientation at the device."
    ),
    Reason.UNREADABLE: _Facts(
        "Image cannot be read", Bearing.OPEN, "Look at the image in the PACS; send it again."
    ),
    Reason.CONTRADICTION: _Facts(
        "Pixel attributes contradict each other",
        Bearing.OPEN,
        "The device writes contradictory attributes: tell its vendor.",
    ),
    Reason.CONSTANT_IMAGE: _Facts(
        "Image has one grey value only",
        Bearing.OPEN,
        "Look at the image in the PACS; if it is blank there too, take it again.",
    ),
    Reason.TOO_LARGE: _Facts(
        "Image is larger than allowed", Bearing.OPEN, "See [classifier] max_pixels in config.toml."
    ),
    Reason.NO_FINITE_SCORE: _Facts(
        "Network gave no finite score",
        Bearing.OPEN,
        "Look at the image in the PACS; if it is sound, report this to the makers of the node.",
    ),
    Reason.UNLIKE_TRAINING: _Facts("Image is unlike the training data", Bearing.OPEN),
    Reason.OTHER_AGE: _Facts("Age is outside the training population", Bearing.OPEN),
    Reason.TAGS_DISAGREE: _Facts(
        "Tags and image contradict each other",
        Bearing.OPEN,
        "Check whose image it is, and the patient's age.",
    ),
    Reason.UNKNOWN_AGE: _Facts(
        "Age is unknown, and the model is for some ages only",
        Bearing.OPEN,
        "Let the worklist give the birth date.",
    ),
    Reason.DOUBTFUL_AGE: _Facts(
        "Age in the tags is contradictory or impossible",
        Bearing.OPEN,
        "Correct age, birth date or dates at the source.",
    ),
    Reason.NEAR_THRESHOLD: _Facts("Score is too near to the threshold", Bearing.OPEN),
}


RESULTS = frozenset(reason for reason in Reason if reason.bearing is Bearing.NO_IMAGE)
"""Reasons of objects that are results of programs and no images of a study."""
