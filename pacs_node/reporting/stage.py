"""Make the report of each study that is quiet; `delivering` sends it.

It reads what it needs, works without a transaction, and returns what is to be written. When, how often and
for whom is the business of `worker`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from io import BytesIO

from pydicom import dcmread
from pydicom.dataset import Dataset
from sqlalchemy.orm import Session

from db import deliveries, queries
from db.queue import Claimed, Kind
from db.rows import NewReport, StoredInstance
from db.session import Database
from pacs_node import log
from pacs_node.config import Settings
from pacs_node.dicom.header import Identity, identity, read_header
from pacs_node.dicom.patient import Patient, is_same
from pacs_node.errors import InvalidReport, UnreadableHeader
from pacs_node.reporting.conclusion import study_decision
from pacs_node.reporting.from_rows import image_result, settle_raw_images, stand_in_header
from pacs_node.reporting.report import ImageResult, ObserverDevice, build, says_the_same
from pacs_node.reporting.study_state import StudyState, newest_header
from pacs_node.storage.spool import Spool
from pacs_node.worker import Done, GivenUp, Later, Outcome, Settled, retry_unreadable

_log = log.get(__name__)

PATIENTS_DIFFER = "PATIENTS_DIFFER"
"""The images of a study name different patients, so that no report may go out under either name."""

_BESIDE = {"pdf": Kind.PAGE, "heatmap": Kind.HEAT_MAP}  # by result class

_LONGEST_PATIENCE = 60.0  # a report that waits for scores is woken by them; this is for when that went wrong


class ReportStage:
    """Make the report of a study that is quiet, or the revision that supersedes the last one."""

    kind = Kind.REPORT
    lane = ""
    batch_size = 4

    def __init__(
        self,
        database: Database,
        spool: Spool,
        node: ObserverDevice,
        settings: Settings,
    ) -> None:
        self._database = database
        self._spool = spool
        self._node = node
        self._destinations = [d.name for d in settings.destinations if "report" in d.send]
        wanted = {result for d in settings.destinations for result in d.send}
        self._beside = [kind for result, kind in _BESIDE.items() if result in wanted]
        self._names_answer = settings.report.answer_in_series_description
        self._give_up_after = timedelta(hours=settings.deliver.give_up_hours)

    def run(self, jobs: Sequence[Claimed], may_go_on: Callable[[], bool]) -> Iterator[Settled]:  # noqa: ARG002
        """Report the studies of the jobs."""
        for job in jobs:
            yield [(job, self._report(job))]

    def give_up(self, session: Session, ref: int) -> None:
        """Nothing more to record: the job says it all."""

    def _report(self, job: Claimed) -> Outcome:
        with self._database.read() as session:
            study = StudyState(
                id=job.ref,
                uid=queries.study_uid(session, job.ref),
                objects=queries.study_instances(session, job.ref),
                last=queries.last_report(session, job.ref),
                model=queries.newest_model(session),
            )
        if study.waits_for_scores:
            return Later(_LONGEST_PATIENCE, "Waits for scores")
        try:
            return self._judged(study) if study.images else Done(_nothing)
        except (InvalidReport, UnreadableHeader) as error:
            _log.error("report failed", study=study.uid, cause=str(error))
            return GivenUp(f"No report can be made: {error}")
        except OSError as error:
            return retry_unreadable(job, error)

    def _judged(self, study: StudyState) -> Outcome:
        if study.names_different_patients(self._patient_of):
            return self._refused(study)
        if study.is_stated:
            return Done(partial(queries.clear_study_problem, study_id=study.id))
        return self._made(study, self._build(study))

    def _patient_of(self, one: StoredInstance) -> Patient:
        """Return whom an object names; from its file where an earlier version did not keep all of it."""
        if one.issuer_of_patient_id is None or one.patient_birth_date is None:
            with suppress(FileNotFoundError):
                return patient(identity(read_header(self._spool.path(one.digest))))
        return patient(one)

    def _refused(self, study: StudyState) -> GivenUp:
        _log.error("patients differ", study=study.uid, objects=len(study.objects), revision=study.revision)
        now = datetime.now(UTC)

        def write(session: Session) -> None:
            queries.record_study_problem(session, study.id, PATIENTS_DIFFER, now)
            why = "Not sent: the images of its study name different patients"
            deliveries.withdraw_reports(session, study.id, study.revision, now, why)

        return GivenUp("No report is made: the images of the study name different patients", write)

    def _made(self, study: StudyState, new: NewReport) -> Done:
        """Record a report, unless the last one says the same, as after copies that differ in nothing."""
        last = study.last
        if last is not None:
            with self._database.read() as session:
                content = queries.report_content(session, last.id)
            if says_the_same(new.content, content):
                return Done(partial(_restate, study_id=study.id, report_id=last.id, images=study.stated))
            if not is_same(patient_in(content), patient_in(new.content)):
                _log.warning("patient corrected", study=study.uid, revision=new.revision)
                return Done(partial(_replace, new=new))
        _log.info(
            "report made", study=study.uid, revision=new.revision, sop_instance_uid=new.sop_instance_uid
        )
        return Done(partial(_add, new=new))

    def _build(self, study: StudyState) -> NewReport:
        made_at = datetime.now(UTC).replace(microsecond=0)
        found = self._found(study.images)
        newest = newest_header(study.images, [*found])
        patient_and_study = found[study.images[newest].id]
        headers = (found.get(one.id) or stand_in_header(one, patient_and_study) for one in study.images)
        shows = Kind.HEAT_MAP in self._beside
        images = [
            image_result(image, header, study.model, shows_heat_map=shows)
            for image, header in zip(study.images, headers, strict=True)
        ]
        taken = study.last.earlier_uids if study.last else ()
        settled = settle_raw_images(images)
        report = build(
            settled,
            self._node,
            made_at,
            study.revision,
            study.predecessor,
            newest=newest,
            taken=taken,
            names_answer=self._names_answer,
        )
        return NewReport(
            study_id=study.id,
            revision=study.revision,
            sop_class_uid=report.sop_class_uid,
            sop_instance_uid=report.sop_instance_uid,
            series_instance_uid=report.series_instance_uid,
            content=report.content,
            made_at=made_at,
            decision=study_decision(settled),
            images=study.stated,
            destinations=self._destinations,
            give_up_at=made_at + self._give_up_after,
            beside=_needed(self._beside, settled),
        )

    def _found(self, images: Sequence[StoredInstance]) -> dict[int, Dataset]:
        """Read the headers of a study, all but those of files that were lost."""
        found: dict[int, Dataset] = {}
        for image in images:
            with suppress(FileNotFoundError):
                found[image.id] = read_header(self._spool.path(image.digest))
        if not found:
            raise InvalidReport("all files of the study are missing from the spool")
        return found


def _needed(wanted: Sequence[Kind], images: Sequence[ImageResult]) -> list[Kind]:
    """Return what is to be made beside a report: no heat maps where it refers to none."""
    has_any = any(image.has_heat_map for image in images)
    return [kind for kind in wanted if kind is not Kind.HEAT_MAP or has_any]


def patient(named: StoredInstance | Identity) -> Patient:
    """Return whom a row or a header names."""
    return Patient(
        named.patient_id,
        named.issuer_of_patient_id or "",
        named.patient_name,
        named.patient_birth_date or "",
    )


def patient_in(content: bytes) -> Patient:
    """Return whom a report names."""
    return patient(identity(dcmread(BytesIO(content))))


def _add(session: Session, new: NewReport) -> None:
    queries.add_report(session, new)
    queries.clear_study_problem(session, new.study_id)


def _replace(session: Session, new: NewReport) -> None:
    """Record a report under another identity: under the earlier one nothing more may go out."""
    why = "Not sent: the patient was corrected"
    deliveries.withdraw_reports(session, new.study_id, new.revision, new.made_at, why)
    _add(session, new)


def _restate(
    session: Session, study_id: int, report_id: int, images: Collection[tuple[int, int | None]]
) -> None:
    queries.restate_report(session, report_id, images)
    queries.clear_study_problem(session, study_id)


def _nothing(_session: Session) -> None:
    """Write nothing: no report is needed."""
