"""Make the report of each study that is quiet; `delivering` sends it.

It reads what it needs, works without a transaction, and returns what is to be written. When, how often and
for whom is the business of `worker`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from pydicom.dataset import Dataset
from sqlalchemy.orm import Session

from db import queries
from db.queue import Claimed, Kind
from db.rows import NewReport, StoredInstance, StoredModel, StoredReport
from db.session import Database
from pacs_node import log
from pacs_node.config import Settings
from pacs_node.dicom.header import read_header
from pacs_node.errors import InvalidReport, UnreadableHeader
from pacs_node.reporting.from_rows import image_result, is_reportable, settle_raw_images, stand_in_header
from pacs_node.reporting.report import ObserverDevice, Predecessor, build
from pacs_node.storage.spool import Spool
from pacs_node.worker import Done, GivenUp, Later, Outcome, Settled, retry_unreadable

_log = log.get(__name__)

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
        self._give_up_after = timedelta(hours=settings.deliver.give_up_hours)

    def run(self, jobs: Sequence[Claimed], may_go_on: Callable[[], bool]) -> Iterator[Settled]:  # noqa: ARG002
        """Report the studies of the jobs."""
        for job in jobs:
            yield [(job, self._report(job))]

    def give_up(self, session: Session, ref: int) -> None:
        """Nothing more to record: the job says it all."""

    def _report(self, job: Claimed) -> Outcome:
        with self._database.read() as session:
            study = _StudyState(
                id=job.ref,
                uid=queries.study_uid(session, job.ref),
                images=[*filter(is_reportable, queries.study_instances(session, job.ref))],
                last=queries.last_report(session, job.ref),
                model=queries.newest_model(session),
            )
        if study.waits_for_scores:
            return Later(_LONGEST_PATIENCE, "Waits for scores")
        if not study.images or (study.last is not None and study.last.images == study.stated):
            return Done(_nothing)
        try:
            new = self._build(study)
        except (InvalidReport, UnreadableHeader) as error:
            _log.error("report failed", study=study.uid, cause=str(error))
            return GivenUp(f"No report can be made: {error}")
        except OSError as error:
            return retry_unreadable(job, error)
        _log.info(
            "report made", study=study.uid, revision=new.revision, sop_instance_uid=new.sop_instance_uid
        )
        return Done(partial(queries.add_report, new=new))

    def _build(self, study: _StudyState) -> NewReport:
        made_at = datetime.now(UTC).replace(microsecond=0)
        headers = self._headers(study.images)
        images = [image_result(image, headers[image.id], study.model) for image in study.images]
        report = build(settle_raw_images(images), self._node, made_at, study.revision, study.predecessor)
        return NewReport(
            study_id=study.id,
            revision=study.revision,
            sop_class_uid=report.sop_class_uid,
            sop_instance_uid=report.sop_instance_uid,
            series_instance_uid=report.series_instance_uid,
            content=report.content,
            made_at=made_at,
            images=study.stated,
            destinations=self._destinations,
            give_up_at=made_at + self._give_up_after,
        )

    def _headers(self, images: Sequence[StoredInstance]) -> dict[int, Dataset]:
        """Read the headers of a study; for a file that was lost, take what the database knows of it."""
        found: dict[int, Dataset] = {}
        for image in images:
            with suppress(FileNotFoundError):
                found[image.id] = read_header(self._spool.path(image.digest))
        if not found:
            raise InvalidReport("all files of the study are missing from the spool")
        patient = found[min(found)]
        return {image.id: found.get(image.id) or stand_in_header(image, patient) for image in images}


@dataclass(frozen=True)
class _StudyState:
    """A study as the database has it at one moment."""

    id: int
    uid: str
    images: Sequence[StoredInstance]
    last: StoredReport | None
    model: StoredModel | None

    @property
    def waits_for_scores(self) -> bool:
        return any(image.score is None and image.job_state == "ready" for image in self.images)

    @property
    def stated(self) -> frozenset[tuple[int, int | None]]:
        """What a report made now states; no score where its job was given up."""
        return frozenset((image.id, image.score.id if image.score else None) for image in self.images)

    @property
    def revision(self) -> int:
        return self.last.revision + 1 if self.last else 1

    @property
    def predecessor(self) -> Predecessor | None:
        last = self.last
        if last is None:
            return None
        return Predecessor(last.sop_class_uid, last.sop_instance_uid, last.series_instance_uid, self.uid)


def _nothing(_session: Session) -> None:
    """Write nothing: no report is needed, or the last one states it all."""
