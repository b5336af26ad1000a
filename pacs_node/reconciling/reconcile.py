"""Compares what a PACS lists with what the node has: chest radiographs received, scored, and reported back.

Comparing writes nothing; fetched objects are received like any other object, and reports that the PACS lacks
are sent again by the node, from the queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Protocol, TypeVar

from pydicom.dataset import Dataset
from pydicom.uid import ComputedRadiographyImageStorage

from classifier.config import PROJECTION_RADIOGRAPHS, Eligibility
from classifier.decoding import eligibility
from classifier.decoding.quiet import silence_warnings
from classifier.errors import NotScorable
from classifier.reasons import RESULTS, Reason
from db import inventory, queries, status
from db.session import Database
from pacs_node.errors import CutShort, PeerError, SpoolUnusable, UserError
from pacs_node.reconciling.findings import (
    FETCHABLE,
    Finding,
    Listed,
    Missing,
    Reconciliation,
    missing_images,
    missing_report,
)
from pacs_node.reconciling.query import Finder, ListedSeries, ListedStudy, RetrieveKeys
from pacs_node.storage.spool import Spool

MODALITIES = ("CR", "DX", "RG", "XR")
"""Requested values of Modalities in Study; XR is not a Defined Term of PS3.3 C.7.3.1.1.1, but some send
it.
"""

DEFAULT_DAYS = 7

_IMAGES_PER_REQUEST = 50
_SETTLE_SECONDS = 10.0  # some PACS answer C-MOVE before they have sent everything
_LOOK_SECONDS = 0.2
_LEFT_SECONDS = 3600.0  # no file takes this long to arrive: older ones were left by a fetch that was killed
_ANY = Eligibility(unknown_body_part="score", unknown_view="score")

_UNCOUNTED = [reason.value for reason in RESULTS]

_T = TypeVar("_T")
Retrieve = Callable[[Sequence[RetrieveKeys]], Iterator[str]]
"""A function that fetches and yields the error of each request, or "": `query.move` or `query.get`."""


class Track(Protocol):
    """Shows the progress of work, like `rich.progress.track`."""

    def __call__(self, sequence: Iterable[_T], description: str, total: float) -> Iterable[_T]:
        """Yield the items of `sequence`."""
        ...


def period(since: datetime | None, until: datetime | None, now: datetime) -> tuple[date, date]:
    """Return the first and the last study date to ask for, in the time zone of this machine.

    Parameters
    ----------
    since
        The whole day counts; default: 7 days ago.
    until
        This day counts only if the time is not midnight; default: tomorrow, because clocks of modalities
        differ.

    Raises
    ------
    UserError
        If the period has no day.
    """
    first = (since or now - timedelta(days=DEFAULT_DAYS)).astimezone().date()
    end = until.astimezone() - timedelta(microseconds=1) if until else now.astimezone() + timedelta(days=1)
    if end.date() < first:
        raise UserError("This period has no day; --since must be before --until.")
    return first, end.date()


def compare(
    finder: Finder, database: Database, spool: Spool, days: tuple[date, date], track: Track
) -> Reconciliation:
    """Ask a PACS for its studies of these days, and look for them here.

    Raises
    ------
    PeerError
        If the PACS does not answer as it should.
    SpoolUnusable
        If files should be here, but the spool is missing.
    db.errors.DatabaseError
    """
    findings: list[Finding] = []
    studies = images = 0
    asked = _studies(finder, *days)
    for study in track(asked, "Comparing", len(asked)):
        listed = _listed(finder, study)
        if not listed.images:
            continue
        studies += 1
        images += len(listed.images)
        with database.read() as session:
            known = inventory.known(session, listed.images)
            uid = study.study_instance_uid
            reported = inventory.reported(session, uid, PROJECTION_RADIOGRAPHS, _UNCOUNTED)
        findings += missing_images(listed, known, _looks_into(spool))
        findings += missing_report(listed, reported, _asks_for(finder, listed))
    return Reconciliation(
        studies=studies, images=images, findings=findings, is_complete=not finder.unreadable
    )


def may_be_chest_radiograph(study: ListedStudy, series: ListedSeries) -> bool:
    """Tell whether the images of a series may be chest radiographs, by the rules of the classifier.

    They may, unless modality or body part rule it out, or, without these, a description.
    """
    header = Dataset()
    silence_warnings()
    header.SOPClassUID, header.Modality = ComputedRadiographyImageStorage, series.modality
    header.BodyPartExamined = series.body_part
    header.SeriesDescription, header.StudyDescription = series.description, study.description
    try:
        eligibility.check(header, _ANY)
    except NotScorable as refused:
        return refused.reason not in (Reason.NOT_RADIOGRAPH, Reason.NOT_CHEST, *RESULTS)
    return True


def fetch(
    found: Reconciliation, retrieve: Retrieve, database: Database, spool: Spool, track: Track
) -> Reconciliation:
    """Fetch the images that were never received or whose files are missing, and check which of them came.

    Raises
    ------
    SpoolUnusable, db.errors.DatabaseError
    """
    wanted = list(_wanted(found.findings))
    troubles: dict[str, None] = {}
    failure = None
    try:
        for said in track(retrieve(wanted), "Fetching", len(wanted)):
            if said:
                troubles[said] = None
    except PeerError as error:
        failure = error
    patience = 0.0 if troubles or failure else _SETTLE_SECONDS
    here = _settled(
        [f.sop_instance_uid for f in found.findings if f.missing in FETCHABLE], database, spool, patience
    )
    findings = [
        replace(f, is_fetched=f.missing in FETCHABLE and f.sop_instance_uid in here) for f in found.findings
    ]
    return replace(found, findings=findings, was_fetched=True, troubles=[*troubles], failure=failure)


def resend(
    found: Reconciliation, database: Database, destinations: Collection[str], give_up_at: datetime
) -> Reconciliation:
    """Let the node send the reports again that the PACS does not hold, with the same bytes.

    Parameters
    ----------
    destinations
        Names of this PACS in the configuration.

    Raises
    ------
    db.errors.DatabaseError
    """
    now = datetime.now(UTC)
    findings = []
    for finding in found.findings:
        number = 0
        if finding.missing is Missing.REPORT_MISSING:
            with database.write() as session:
                study = finding.study_instance_uid
                # The report alone: some PACS delete an object that comes once more
                to = {"destinations": destinations, "results": ["report"]}
                number = status.resend(session, study, give_up_at, now, **to)
        findings.append(replace(finding, is_sent_again=number > 0))
    return replace(found, findings=findings)


def prepare(spool: Spool, database: Database) -> None:
    """Make the spool ready for objects that come by C-GET, in a folder that no starting receiver clears.

    Raises
    ------
    SpoolUnusable, db.errors.DatabaseError
    """
    with database.read() as session:
        is_empty = not queries.has_instances(session)
    spool.prepare(may_be_new=is_empty)
    for path in spool.leftovers():
        with suppress(FileNotFoundError):  # another fetch may be running here now
            if time.time() - path.stat().st_mtime > _LEFT_SECONDS:
                path.unlink()


def _studies(finder: Finder, first: date, last: date) -> list[ListedStudy]:
    """Return the studies that may hold radiographs, each once.

    One modality is asked for at a time, because few PACS match a list. If nothing matches, the PACS may not
    know the key Modalities in Study, so all studies are looked at.
    """
    found: dict[str, ListedStudy] = {}
    for modality in (*MODALITIES, ""):
        if modality or not found:
            for study in _of_days(finder, first, last, modality):
                found.setdefault(study.study_instance_uid, study)
    return [s for s in found.values() if not s.modalities or not set(MODALITIES).isdisjoint(s.modalities)]


def _of_days(finder: Finder, first: date, last: date, modality: str) -> list[ListedStudy]:
    """Ask for half of the days at a time if the PACS has more studies than it returns."""
    try:
        return finder.studies(first, last, modality)
    except CutShort:
        if first == last:
            raise
    middle = first + (last - first) // 2
    early = _of_days(finder, first, middle, modality)
    return early + _of_days(finder, middle + timedelta(days=1), last, modality)


def _listed(finder: Finder, study: ListedStudy) -> Listed:
    images: dict[str, str] = {}
    series = finder.series(study.study_instance_uid)
    for one in series:
        if may_be_chest_radiograph(study, one):
            for image in finder.images(study.study_instance_uid, one.series_instance_uid):
                if not image.sop_class_uid or image.sop_class_uid in PROJECTION_RADIOGRAPHS:
                    images.setdefault(image.sop_instance_uid, one.series_instance_uid)
    return Listed(study, images, [one.series_instance_uid for one in series if one.modality == "SR"])


def _asks_for(finder: Finder, listed: Listed) -> Callable[[Collection[str]], bool]:
    study = listed.study.study_instance_uid
    return lambda uids: any(finder.images(study, series, [*uids]) for series in listed.documents)


def _looks_into(spool: Spool) -> Callable[[str], bool]:
    def is_there(digest: str) -> bool:
        try:
            if spool.path(digest).exists():
                return True
        except OSError as error:
            raise SpoolUnusable(
                f"Cannot look into the spool {spool.root}: {error.strerror}; run as the user of the node."
            ) from error
        if not spool.is_there:
            raise SpoolUnusable(
                f"{spool.root} is not a spool, but the database knows objects in one; is its disk mounted?"
            )
        return False

    return is_there


def _wanted(findings: Iterable[Finding]) -> Iterator[RetrieveKeys]:
    """Yield requests for images of one series each, as C-MOVE and C-GET require (PS3.4 C.4.2.1.4)."""
    by_series: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        if finding.missing in FETCHABLE:
            key = finding.study_instance_uid, finding.series_instance_uid
            by_series.setdefault(key, []).append(finding.sop_instance_uid)
    for (study, series), images in by_series.items():
        for start in range(0, len(images), _IMAGES_PER_REQUEST):
            some = images[start : start + _IMAGES_PER_REQUEST]
            yield RetrieveKeys(study_instance_uid=study, series_instance_uid=series, sop_instance_uids=some)


def _settled(uids: Collection[str], database: Database, spool: Spool, patience: float) -> set[str]:
    """Return which images are here, as soon as all are, or when none came for `patience` seconds."""
    is_there, here = _looks_into(spool), set[str]()
    deadline = time.monotonic() + patience
    while True:
        with database.read() as session:
            known = inventory.known(session, uids)
        now = {uid for uid, image in known.items() if is_there(image.digest)}
        if len(now) > len(here):
            deadline = time.monotonic() + patience
        here = now
        if len(here) == len(uids) or time.monotonic() >= deadline:
            return here
        time.sleep(_LOOK_SECONDS)
