"""Storage commitment where the node listens: modalities ask it, and destinations answer it (PS3.4 Annex J).

A request is recorded before it is answered with Success. What is kept is told over an association of its own
if the settings say where the modality listens; else over the one on which it asked, as long as that is open.
"""

from __future__ import annotations

import threading
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association

from db import queue
from db.errors import DatabaseError
from db.queue import Kind
from db.session import Database
from pacs_node import log
from pacs_node.commitment import records
from pacs_node.commitment.messages import (
    COMMITMENT,
    PROCESSING_FAILURE,
    CommitmentRequest,
    failure,
    read_request,
    tell,
)
from pacs_node.config import Settings
from pacs_node.errors import NotAssociated, Refused
from pacs_node.network.command_set import N_ACTION_RQ, N_EVENT_REPORT_RQ
from pacs_node.network.traffic import Traffic
from pacs_node.storage.spool import Spool

_log = log.get(__name__)

_PATIENCE_SECONDS = 60.0  # for an association to become idle


class Provider:
    """Answers N-ACTION and N-EVENT-REPORT."""

    def __init__(self, settings: Settings, database: Database, spool: Spool) -> None:
        self._settings = settings
        self._database = database
        self._spool = spool
        self._addresses = {modality.ae_title for modality in settings.modalities}
        self.traffic = Traffic()

    @property
    def requests(self) -> dict[str, frozenset[int]]:
        """The Command Fields of what is served, by abstract syntax."""
        return {COMMITMENT: frozenset({N_ACTION_RQ, N_EVENT_REPORT_RQ})}

    def support(self, ae: AE) -> None:
        """Let an application entity accept storage commitment, with either side in the role of the SCU."""
        ae.add_supported_context(COMMITMENT, scu_role=True, scp_role=True)

    def handlers(self) -> list[Any]:
        """Return what the server has to be bound to."""
        return [
            (evt.EVT_N_ACTION, self._on_request),
            (evt.EVT_N_EVENT_REPORT, self._on_answer),
            *self.traffic.handlers(),
        ]

    def _on_answer(self, event: evt.Event) -> tuple[int | Dataset, None]:
        return records.take_answer(event, self._database, self._settings.deliver), None

    def _on_request(self, event: evt.Event) -> tuple[int | Dataset, None]:
        calling = str(event.assoc.requestor.ae_title).strip()
        try:
            request = read_request(event)
            is_addressed = calling in self._addresses
            wait = 0.0 if is_addressed else 2 * _PATIENCE_SECONDS
            wanted_id = records.record_request(
                self._database, calling, request, self._settings.deliver, wait_seconds=wait
            )
        except Refused as refused:
            _log.warning("commitment refused", status=f"0x{refused.status:04X}", comment=refused.comment)
            return failure(refused.status, refused.comment), None
        except DatabaseError as error:
            _log.error("commitment not recorded", cause=str(error))
            return failure(PROCESSING_FAILURE, "The database is not available"), None
        _log.info("commitment wanted", modality=calling, objects=len(request.references))
        if not is_addressed:
            here = (event.assoc, calling, request, wanted_id)
            threading.Thread(target=self._tell_here, args=here, daemon=True).start()
        return 0x0000, None

    def _tell_here(
        self, association: Association, calling: str, request: CommitmentRequest, wanted_id: int
    ) -> None:
        """Answer over the association of the request; what fails is left to the job, which says so."""
        try:
            with self.traffic.held(association, _PATIENCE_SECONDS) as is_held:
                if is_held:
                    self._tell(association, calling, request, wanted_id)
        except (DatabaseError, NotAssociated) as error:
            _log.warning("commitment not told", modality=calling, cause=str(error))

    def _tell(
        self, association: Association, calling: str, request: CommitmentRequest, wanted_id: int
    ) -> None:
        with self._database.write() as session:
            claim = queue.claim_one(session, Kind.CONFIRM, wanted_id, self._settings.work.lease_seconds)
        if not claim.jobs:
            return
        answer = records.answer(self._database, self._spool, request)
        if tell(association, answer) != 0:
            raise NotAssociated("did not answer N-EVENT-REPORT with Success")
        note = records.record_told(wanted_id, calling, answer)
        with self._database.write() as session:
            if queue.finish(session, claim.token, [job.id for job in claim.jobs]):
                note(session)
