"""What is made of each report after it, for destinations that want more than the report.

The report is made and sent without waiting for it: what cannot be made fails alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

from sqlalchemy.orm import Session

from classifier.config import DecodeLimits
from classifier.decoding.decode import Radiograph
from classifier.decoding.decoders import Decoders, Request
from classifier.decoding.resample import Grey
from db import deliveries, queries
from db.queue import Claimed, Kind
from db.rows import NewResult, ReportToDraw, StoredInstance, StoredModel
from db.session import Database
from pacs_node import log
from pacs_node.config import Settings
from pacs_node.errors import InvalidReport
from pacs_node.reporting.report import EncodedReport
from pacs_node.storage.spool import Spool
from pacs_node.worker import Done, GivenUp, Outcome, Settled

_log = log.get(__name__)


class BesideStage(ABC):
    """Make the objects of one result class.

    Attributes
    ----------
    kind
        Of the jobs, each of which names a report.
    result
        The result class, as `[[destinations]] send` names it.
    called
        In words, of one object.
    """

    kind: Kind
    result: str
    called: str
    lane = ""
    batch_size = 1

    def __init__(self, database: Database, spool: Spool, settings: Settings) -> None:
        self._database = database
        self._spool = spool
        self._destinations = [one.name for one in settings.destinations if self.result in one.send]
        self._give_up_after = timedelta(hours=settings.deliver.give_up_hours)
        wanted = settings.classifier
        self._decoders = Decoders.shared(1)
        self._limits = DecodeLimits(wanted.decode_seconds, wanted.decode_mebibytes)

    def run(self, jobs: Sequence[Claimed], may_go_on: Callable[[], bool]) -> Iterator[Settled]:  # noqa: ARG002
        """Make what the reports of the jobs want."""
        for job in jobs:
            yield [(job, self._outcome(job.ref))]

    def give_up(self, session: Session, ref: int) -> None:  # noqa: B027
        """Nothing more to record: the job says it all."""

    @abstractmethod
    def make(self, report: ReportToDraw, newest: StoredModel | None) -> Sequence[EncodedReport]:
        """Return the objects of one report, in the order of their numbers.

        Parameters
        ----------
        newest
            The model in use.

        Raises
        ------
        InvalidReport
            When they cannot be made.
        """

    def decoded(self, images: Sequence[StoredInstance]) -> list[Grey | None]:
        """Return each image upright, (rows, columns) in 0..1; ``None`` if its file is gone or undecodable."""
        if not images:
            return []
        requests = [Request(self._spool.path(one.digest), limits=self._limits) for one in images]
        found = self._decoders.decode(requests)
        return [one.pixels[0] if isinstance(one, Radiograph) else None for one in found]

    def _outcome(self, report_id: int) -> Outcome:
        with self._database.read() as session:
            report = queries.report_to_draw(session, report_id)
            model = queries.newest_model(session)
        try:
            made = self.make(report, model)
        except InvalidReport as error:
            _log.error(f"{self.called} failed", study=report.study_instance_uid, cause=str(error))
            return GivenUp(f"No {self.called} can be made: {error}")
        _log.info(f"{self.called} made", study=report.study_instance_uid, revision=report.revision)
        now = datetime.now(UTC)
        return Done(
            partial(
                deliveries.add_results,
                results=[self._row(report_id, at, one) for at, one in enumerate(made)],
                destinations=self._destinations,
                give_up_at=now + self._give_up_after,
                at=now,
            )
        )

    def _row(self, report_id: int, number: int, made: EncodedReport) -> NewResult:
        return NewResult(
            report_id=report_id,
            result=self.result,
            number=number,
            sop_class_uid=made.sop_class_uid,
            sop_instance_uid=made.sop_instance_uid,
            series_instance_uid=made.series_instance_uid,
            content=made.content,
        )
