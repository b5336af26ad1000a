"""Every error of the classifier, and the reasons for which one image has no answer.

::

    ClassifierError
    ├── CheckpointError   the model file is missing, damaged or not understood
    ├── DeviceError       the device asked for is not there
    ├── DataError         the labelled images cannot be used for training or evaluation
    ├── TrainingError     training cannot start or go on
    └── NotScorable       this one image is refused, for a named reason

`NotScorable` is about one image and stops no run; the others do.
"""

from __future__ import annotations

from enum import StrEnum


class ClassifierError(Exception):
    """Root of the tree; the message is one sentence that says what to do."""


class CheckpointError(ClassifierError):
    """The model file is missing, damaged, of another architecture, or its card is not understood."""


class DeviceError(ClassifierError):
    """The compute device asked for does not exist on this machine."""


class DataError(ClassifierError):
    """The labelled images are none, of one class, damaged, or a patient is on both sides of a split."""


class TrainingError(ClassifierError):
    """Training cannot start or go on: no weights, no memory, no finite loss, nothing to resume."""


class Reason(StrEnum):
    """Why an image is not scored, or its answer undetermined; it goes to the database and the report."""

    NOT_RADIOGRAPH = "NOT_RADIOGRAPH"
    NOT_CHEST = "NOT_CHEST"
    NOT_FRONTAL = "NOT_FRONTAL"
    NO_BODY_PART = "NO_BODY_PART"
    NO_VIEW = "NO_VIEW"
    FOR_PROCESSING = "FOR_PROCESSING"
    MULTI_FRAME = "MULTI_FRAME"
    NOT_ORIGINAL = "NOT_ORIGINAL"
    UNREADABLE = "UNREADABLE"
    CONSTANT_IMAGE = "CONSTANT_IMAGE"
    TOO_LARGE = "TOO_LARGE"
    NO_FINITE_SCORE = "NO_FINITE_SCORE"
    UNLIKE_TRAINING = "UNLIKE_TRAINING"
    OTHER_AGE = "OTHER_AGE"
    TAGS_AND_IMAGE_DISAGREE = "TAGS_AND_IMAGE_DISAGREE"
    NEAR_THRESHOLD = "NEAR_THRESHOLD"

    @property
    def meaning(self) -> str:
        """Short English phrase for people, at most 64 characters (VR LO of a code meaning)."""
        return _MEANINGS[self]


_MEANINGS = {
    Reason.NOT_RADIOGRAPH: "Not a projection radiograph",
    Reason.NOT_CHEST: "Body part is not the chest",
    Reason.NOT_FRONTAL: "View is not frontal",
    Reason.NO_BODY_PART: "Body part is unknown",
    Reason.NO_VIEW: "View is unknown",
    Reason.FOR_PROCESSING: "Raw image, for processing",
    Reason.MULTI_FRAME: "More than one frame",
    Reason.NOT_ORIGINAL: "Localizer, or derived image such as an energy subtraction",
    Reason.UNREADABLE: "Image cannot be read",
    Reason.CONSTANT_IMAGE: "Image has one grey value only",
    Reason.TOO_LARGE: "Image is larger than allowed",
    Reason.NO_FINITE_SCORE: "Network gave no finite score",
    Reason.UNLIKE_TRAINING: "Image is unlike the training data",
    Reason.OTHER_AGE: "Age is outside the training population",
    Reason.TAGS_AND_IMAGE_DISAGREE: "Tags and image contradict each other",
    Reason.NEAR_THRESHOLD: "Score is too near to the threshold",
}


class NotScorable(ClassifierError):
    """One image is refused.

    Parameters
    ----------
    reason
        The named reason.
    detail
        What was found in this image, one sentence without patient data.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason.meaning}: {self.detail}."
