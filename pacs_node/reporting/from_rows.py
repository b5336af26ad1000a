"""From rows of the database to the input of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydicom.dataset import Dataset

from classifier.config import PROJECTION_RADIOGRAPHS
from classifier.decoding.tags import items, text
from classifier.outcome import Decision
from classifier.reasons import RESULTS, Bearing, Reason
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


_SHOWN = (Decision.POSITIVE, Decision.UNDETERMINED)

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


def is_reportable(image: StoredInstance) -> bool:
    """Tell whether an object counts as an image of its study.

    No one expects an answer for CT slices, presentation states and the results of programs.
    """
    reason = image.score.reason if image.score else None
    return image.sop_class_uid in PROJECTION_RADIOGRAPHS and reason not in RESULTS


def has_heat_map(image: StoredInstance) -> bool:
    """Tell whether a heat map may be shown: of a negative image it would draw the eye to nothing."""
    score = image.score
    return score is not None and bool(score.heat_map) and score.decision in _SHOWN


def image_result(
    image: StoredInstance, header: Dataset, newest: StoredModel | None, *, shows_heat_map: bool = False
) -> ImageResult:
    """Return an image with its answer.

    Parameters
    ----------
    newest
        The model in use, which would have scored it.
    shows_heat_map
        Whether reports refer to heat maps.

    Raises
    ------
    InvalidReport
        When something of it cannot stand in a report.
    """
    score = image.score
    if score is not None:
        reason = None if score.reason is None else _reason(score.reason)
        by = algorithm(score.model, score.threshold)
        shown = shows_heat_map and has_heat_map(image)
        return ImageResult(header, score.decision, score.probability, reason, by, shown)
    if newest is None:
        raise InvalidReport("no model was ever in use here")
    return ImageResult(header, Decision.NOT_SCORED.value, None, _FAILED, algorithm(newest))


def settle_raw_images(images: Sequence[ImageResult]) -> list[ImageResult]:
    """Let raw images leave nothing open where what was made of them for presentation is scored.

    Devices that send both say so by Source Image Sequence, by Irradiation Event UID, or by one and the same
    time of acquisition.
    """
    raw = Reason.FOR_PROCESSING.value
    scored = [image.header for image in images if image.probability is not None]
    known = {uid for header in scored for uid in _exposures(header, _sources(header))}
    settled = []
    for image in images:
        mine = _exposures(image.header, [text(image.header, "SOPInstanceUID")])
        if image.reason and image.reason.code == raw and known & set(mine):
            image = replace(image, reason=replace(image.reason, leaves_open=False))  # noqa: PLW2901
        settled.append(image)
    return settled


def _exposures(header: Dataset, raw_uids: Sequence[str]) -> list[str]:
    """Return what two images of one exposure have in common."""
    day, time = text(header, "AcquisitionDate"), text(header, "AcquisitionTime")
    moment = text(header, "AcquisitionDateTime") or f"{day}{time}"
    is_exact = len(moment) >= len("20261101101112")
    return [one for one in (*raw_uids, text(header, "IrradiationEventUID"), moment * is_exact) if one]


def _sources(header: Dataset) -> list[str]:
    return [text(item, "ReferencedSOPInstanceUID") for item in items(header, "SourceImageSequence")]


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
    known = Reason(code)
    leaves_open = known.bearing is Bearing.OPEN
    return NotScoredReason(known.value, known.meaning, failed=known.is_failure, leaves_open=leaves_open)
