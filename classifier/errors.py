"""Every error of the classifier.

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

from classifier.reasons import Reason


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
