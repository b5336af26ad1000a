"""From rows of the database to the input of a report."""

from __future__ import annotations

from pydicom.dataset import Dataset

from classifier import errors as classifier_errors
from classifier.outcome import Decision
from db.rows import StoredInstance, StoredModel
from pacs_node.errors import InvalidReport
from pacs_node.reporting.report import Algorithm, ImageResult, NotScoredReason

DUPLICATE = NotScoredReason(
    "DUPLICATE_UID", "Another object came under the same UID before", failed=False, leaves_open=True
)

LOSSY = NotScoredReason(
    "LOSSY_COPY", "Same UID, other pixels; one of the two is lossy", failed=False, leaves_open=True
)

_COPIES = {reason.code: reason for reason in (DUPLICATE, LOSSY)}

_FAILED = NotScoredReason(
    "SCORING_FAILED", "Scoring failed, see the log of the node", failed=True, leaves_open=True
)


_FAILURES = {classifier_errors.Reason.UNREADABLE, classifier_errors.Reason.NO_FINITE_SCORE}


_OPEN = _FAILURES | {
    classifier_errors.Reason.TOO_LARGE,
    classifier_errors.Reason.CONSTANT_IMAGE,
    classifier_errors.Reason.NO_VIEW,
    classifier_errors.Reason.NO_BODY_PART,
}


_STUDY_LEVEL = (
    *("SpecificCharacterSet", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
    *("StudyDescription", "StudyInstanceUID", "StudyID", "TimezoneOffsetFromUTC"),
)


def algorithm(model: StoredModel, threshold: float | None = None) -> Algorithm:
    """Return the model as it appears in reports.

    Raises
    ------
    InvalidReport
        When its name, version or preprocessing cannot stand in a report.
    """
    threshold = model.threshold if threshold is None else threshold
    return Algorithm(model.name, model.version, model.sha256, threshold, model.preprocessing)


def image_result(image: StoredInstance, header: Dataset, newest: StoredModel | None) -> ImageResult:
    score = image.score
    if score is not None:
        reason = None if score.reason is None else _reason(score.reason)
        by = algorithm(score.model, score.threshold)
        return ImageResult(header, score.decision, score.probability, reason, by)
    if newest is None:
        raise InvalidReport("no model was ever in use here")
    return ImageResult(header, Decision.NOT_SCORED.value, None, _FAILED, algorithm(newest))


def stand_in_header(image: StoredInstance, patient: Dataset) -> Dataset:
    """Return the header of an image whose file was lost: its UIDs, and another one's patient and study."""
    header = Dataset()
    for element in patient.group_dataset(0x0010):
        header[element.tag] = patient.get_item(element.tag)
    for keyword in _STUDY_LEVEL:
        if keyword in patient:
            header[keyword] = patient.get_item(keyword)
    header.SOPClassUID, header.SOPInstanceUID = image.sop_class_uid, image.sop_instance_uid
    header.SeriesInstanceUID = image.series_instance_uid
    return header


def _reason(code: str) -> NotScoredReason:
    if code in _COPIES:
        return _COPIES[code]
    known = classifier_errors.Reason(code)
    return NotScoredReason(known.value, known.meaning, failed=known in _FAILURES, leaves_open=known in _OPEN)
