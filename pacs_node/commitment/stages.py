"""Work of storage commitment: ask destinations whether they keep reports, and answer modalities."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.association import Association
from sqlalchemy.orm import Session

from db import commitments
from db.commitments import ModalityRequest, Uncommitted
from db.queue import Claimed, Kind
from db.session import Database
from pacs_node import log
from pacs_node.commitment import records
from pacs_node.commitment.messages import (
    PROCESSING_FAILURE,
    CommitmentRequest,
    ask,
    new_request,
    open_for_commitment,
    tell,
)
from pacs_node.config import Modality, Settings
from pacs_node.errors import NotAssociated
from pacs_node.lanes import DestinationStage
from pacs_node.storage.spool import Spool
from pacs_node.worker import Done, GivenUp, Later, Outcome, Settled

_LINGER_SECONDS = 3.0  # on the association of the request, for destinations that answer over it

_log = log.get(__name__)


_LOOK_SECONDS = 0.1


class CommitStage(DestinationStage):
    """Ask one destination to promise that it keeps the reports that it took (PS3.4 Annex J).

    The answer comes when it comes, to the receiver or over the association of the request. Until then the
    jobs wait, and the question is put again.
    """

    kind = Kind.COMMIT
    batch_size = 256

    def run(self, jobs: Sequence[Claimed], may_go_on: Callable[[], bool]) -> Iterator[Settled]:
        """Ask for all reports of the jobs at once."""
        asked = {one.id: one for one in self._uncommitted(jobs)}
        yield [(job, Done(_nothing)) for job in jobs if job.ref not in asked]
        if not asked:
            return
        why = self._ask(list(asked.values())) if may_go_on() else "Another worker may have taken over"
        left = {one.id for one in self._uncommitted(jobs)}
        yield [(job, self._later(asked[job.ref], why)) for job in jobs if job.ref in left]

    def _uncommitted(self, jobs: Sequence[Claimed]) -> list[Uncommitted]:
        with self._database.read() as session:
            return commitments.uncommitted(session, [job.ref for job in jobs])

    def _ask(self, reports: Sequence[Uncommitted]) -> str:
        """Ask, and wait a moment; return why the answer is not here yet."""
        request = new_request([(one.sop_class_uid, one.sop_instance_uid) for one in reports])
        with self._database.write() as session:
            commitments.add_asked(session, request.transaction_uid, self.lane, datetime.now(UTC))
        peer, settings = self._destination, self._settings
        try:
            with open_for_commitment(
                peer.host,
                peer.port,
                peer.ae_title,
                self._ae_title,
                connect_seconds=settings.connect_seconds,
                answer_seconds=settings.answer_seconds,
                on_answer=self._on_answer,
                tls=self._tls,
            ) as association:
                status = ask(association, request)
                if status == 0:
                    self._linger(reports)
        except NotAssociated as error:
            return f"{self.lane} {error}"
        if status is None:
            return f"{self.lane} gave no answer to the request for storage commitment"
        if status != 0:
            return f"{self.lane} refused the request for storage commitment with status 0x{status:04X}"
        return f"{self.lane} has not said yet whether it keeps the report"

    def _linger(self, reports: Sequence[Uncommitted]) -> None:
        deadline = time.monotonic() + _LINGER_SECONDS
        while time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
            with self._database.read() as session:
                if not commitments.uncommitted(session, [one.id for one in reports]):
                    return

    def _on_answer(self, event: evt.Event) -> tuple[int | Dataset, None]:
        return records.take_answer(event, self._database, self._settings), None

    def _later(self, report: Uncommitted, why: str) -> Outcome:
        if datetime.now(UTC) >= report.give_up_at:
            _log.warning("commitment given up", destination=self.lane, cause=why)
            return GivenUp(why)
        return Later(self._settings.commit_seconds, why)


class ConfirmStage:
    """Tell modalities what is kept of what they asked for, on an association of its own (PS3.4 J.3.3)."""

    kind = Kind.CONFIRM
    lane = ""
    batch_size = 4

    def __init__(self, database: Database, spool: Spool, settings: Settings) -> None:
        self._database = database
        self._spool = spool
        self._ae_title = settings.node.ae_title
        self._settings = settings.deliver
        self._tls = settings.tls
        self._modalities = {modality.ae_title: modality for modality in settings.modalities}

    def run(self, jobs: Sequence[Claimed], may_go_on: Callable[[], bool]) -> Iterator[Settled]:  # noqa: ARG002
        """Answer the requests of the jobs."""
        with self._database.read() as session:
            wanted = commitments.wanted(session, [job.ref for job in jobs])
        for job, one in zip(jobs, wanted, strict=True):
            yield [(job, self._tell(one))]

    def give_up(self, session: Session, ref: int) -> None:
        """Nothing more to record: the job says it all."""

    def _tell(self, wanted: ModalityRequest) -> Outcome:
        modality = self._modalities.get(wanted.calling_ae_title)
        if modality is None:
            return GivenUp(
                f"{wanted.calling_ae_title} asked for storage commitment and closed its association before "
                "the answer; add it to the [[modalities]] with host and port"
            )
        answer = records.answer(
            self._database, self._spool, CommitmentRequest(wanted.transaction_uid, wanted.references)
        )
        try:
            with self._association(modality) as association:
                status = tell(association, answer)
        except NotAssociated as error:
            return self._retry(wanted, f"{wanted.calling_ae_title} {error}")
        if status is None:
            return self._retry(wanted, f"{wanted.calling_ae_title} gave no answer to N-EVENT-REPORT")
        if status != 0:
            why = f"{wanted.calling_ae_title} answered N-EVENT-REPORT with status 0x{status:04X}"
            return self._retry(wanted, why) if status == PROCESSING_FAILURE else GivenUp(why)
        return Done(records.record_told(wanted.id, wanted.calling_ae_title, answer))

    def _association(self, modality: Modality) -> AbstractContextManager[Association]:
        return open_for_commitment(
            modality.host,
            modality.port,
            modality.ae_title,
            self._ae_title,
            connect_seconds=self._settings.connect_seconds,
            answer_seconds=self._settings.answer_seconds,
            as_provider=True,
            tls=self._tls if modality.tls else None,
        )

    def _retry(self, wanted: ModalityRequest, why: str) -> Outcome:
        _log.warning("commitment not told", modality=wanted.calling_ae_title, cause=why)
        if datetime.now(UTC) >= wanted.give_up_at:
            return GivenUp(why)
        return Later(self._settings.max_retry_seconds, why)


def _nothing(_session: Session) -> None:
    """Write nothing: the report is committed, or on its way again."""
