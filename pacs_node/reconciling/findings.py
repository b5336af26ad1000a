"""What a PACS has that the node does not have, and the reverse."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from db.inventory import Known, Reported
from pacs_node.errors import PeerError
from pacs_node.reconciling.query import ListedStudy


class Missing(StrEnum):
    """What is missing of an image or a report."""

    NEVER_RECEIVED = "never_received"
    FILE_MISSING = "file_missing"  # of a received image, not removed by retention
    NEVER_SCORED = "never_scored"
    NO_REPORT = "no_report"  # all images are scored, but no report states them all
    REPORT_MISSING = "report_missing"  # the PACS does not hold the newest report


FETCHABLE = (Missing.NEVER_RECEIVED, Missing.FILE_MISSING)


IMAGE_LEVEL = (*FETCHABLE, Missing.NEVER_SCORED)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is missing; its UIDs are those of an image, or of a report if there is one."""

    missing: Missing
    detail: str
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    study_date: str
    patient_id: str
    patient_name: str
    accession_number: str
    is_fetched: bool = False
    is_sent_again: bool = False


@dataclass(frozen=True)
class Listed:
    """One study as the PACS lists it.

    Attributes
    ----------
    images
        Series Instance UID of each image that may be a chest radiograph, by SOP Instance UID.
    documents
        Series Instance UIDs of structured reports.
    """

    study: ListedStudy
    images: Mapping[str, str]
    documents: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Reconciliation:
    """The result of a comparison.

    Attributes
    ----------
    studies, images
        Number of studies and of chest radiographs that the PACS lists.
    is_complete
        Whether all answers of the PACS could be read.
    was_fetched
        Whether the fetchable images were requested; each finding tells whether its image came.
    troubles
        What went wrong while fetching; one sentence each.
    failure
        Why fetching ended early, if it did.
    """

    studies: int
    images: int
    findings: Sequence[Finding]
    is_complete: bool
    was_fetched: bool = False
    troubles: Sequence[str] = ()
    failure: PeerError | None = None

    @property
    def is_clean(self) -> bool:
        """Whether nothing is missing, or no longer."""
        return self.is_complete and all(finding.is_fetched for finding in self.findings)

    @property
    def summary(self) -> str:
        """One sentence with the counts."""
        parts = [
            f"{self.count(Missing.NEVER_RECEIVED)} never received",
            f"{self.count(Missing.FILE_MISSING)} files missing",
            f"{self.count(Missing.NEVER_SCORED)} never scored",
            f"{self.count(Missing.NO_REPORT)} without report",
            f"{self.count(Missing.REPORT_MISSING)} reports missing",
        ]
        wanted = sum(finding.missing in FETCHABLE for finding in self.findings)
        tail = f"; {self.fetched} of {wanted} fetched" if self.was_fetched else ""
        again = sum(finding.is_sent_again for finding in self.findings)
        tail += f"; {again} {'report' if again == 1 else 'reports'} will be sent again" if again else ""
        return f"{self.studies} studies, {self.images} images at PACS; {', '.join(parts)}{tail}."

    @property
    def fetched(self) -> int:
        """Number of missing images that came."""
        return sum(finding.is_fetched for finding in self.findings)

    def count(self, missing: Missing) -> int:
        """Return how many things of this kind are missing, or were before fetching."""
        return sum(finding.missing is missing for finding in self.findings)


def missing_images(
    listed: Listed, known: Mapping[str, Known], is_there: Callable[[str], bool]
) -> Iterator[Finding]:
    """Yield what is missing of each image, one finding per image: the first step that did not happen.

    Parameters
    ----------
    known
        The received images, by SOP Instance UID.
    is_there
        Tells whether the file with a digest is in the spool.
    """
    for uid, series in listed.images.items():
        image = known.get(uid)
        if image is None:
            yield _finding(listed, Missing.NEVER_RECEIVED, "", series, uid)
        elif not image.is_removed and not is_there(image.digest):
            detail = f"{image.digest}.dcm is not in the spool"
            yield _finding(listed, Missing.FILE_MISSING, detail, series, uid)
        elif not image.is_scored:
            detail = _state(image.job_state, image.job_error)
            yield _finding(listed, Missing.NEVER_SCORED, detail, series, uid)


def missing_report(
    listed: Listed, reported: Reported | None, holds: Callable[[Collection[str]], bool]
) -> Iterator[Finding]:
    """Yield what is missing of a study's report, once its images are scored or given up.

    Parameters
    ----------
    holds
        Tells whether the PACS has a report with one of these SOP Instance UIDs.
    """
    if reported is None or reported.unscored:
        return
    if reported.report_uid is None or reported.unreported:
        detail = f"{reported.unreported} images: {_state(reported.job_state, reported.job_error)}"
        yield _finding(listed, Missing.NO_REPORT, detail)
        return
    # A destination that accepts only older classes has the report under the UID of that class
    uids = [reported.report_uid, *(sent.sop_instance_uid for sent in reported.sent if sent.sop_instance_uid)]
    if not holds(uids):
        sent = [
            f"{one.destination}: {one.state}" + (f", {one.error}" if one.error else "")
            for one in reported.sent
        ]
        detail = "; ".join(sent) or "it has no destination; add the PACS to [[destinations]]"
        yield _finding(listed, Missing.REPORT_MISSING, detail, uid=reported.report_uid)


def _state(state: str | None, error: str | None) -> str:
    """Return the state of a job in words, with its last error."""
    said = {"ready": "waiting", None: "nobody was told to"}.get(state, state or "")
    return f"{said}: {error}" if error else said


def _finding(listed: Listed, missing: Missing, detail: str, series: str = "", uid: str = "") -> Finding:
    study = listed.study
    return Finding(
        missing=missing,
        detail=detail,
        study_instance_uid=study.study_instance_uid,
        series_instance_uid=series,
        sop_instance_uid=uid,
        study_date=study.study_date,
        patient_id=study.patient_id,
        patient_name=study.patient_name,
        accession_number=study.accession_number,
    )
