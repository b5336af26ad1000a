"""Who promised to keep what: the node to modalities, and destinations to the node.

The messages are in `commitment`; what they say is recorded here, and read from the database and the spool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

from pydicom.dataset import Dataset
from pynetdicom import evt
from sqlalchemy.orm import Session

from db import commitments
from db.errors import DatabaseError
from db.session import Database
from pacs_node import log
from pacs_node.commitment.messages import (
    CLASS_CONFLICT,
    CLASS_NOT_SUPPORTED,
    INVALID_ARGUMENT,
    NO_SUCH_INSTANCE,
    PROCESSING_FAILURE,
    CommitmentRequest,
    CommitmentResult,
    failure,
    read_answer,
)
from pacs_node.commitment.references import Reference
from pacs_node.config import DeliverSettings
from pacs_node.errors import Refused
from pacs_node.storage.spool import Spool

_log = log.get(__name__)


def record_request(
    database: Database,
    calling_ae_title: str,
    request: CommitmentRequest,
    settings: DeliverSettings,
    wait_seconds: float,
) -> int:
    """Record what a modality asks for, before it is told that it will be answered; return the record's id.

    Parameters
    ----------
    wait_seconds
        Before the answer is due on an association of its own.

    Raises
    ------
    db.errors.DatabaseError
    """
    now = datetime.now(UTC)
    with database.write() as session:
        return commitments.add_wanted(
            session,
            calling_ae_title,
            request.transaction_uid,
            request.references,
            asked_at=now,
            give_up_at=now + timedelta(hours=settings.give_up_hours),
            wait_seconds=wait_seconds,
        )


def answer(database: Database, spool: Spool, request: CommitmentRequest) -> CommitmentResult:
    """Say what is durably kept: recorded, and its file whole in its place.

    Raises
    ------
    db.errors.DatabaseError
    """
    with database.read() as session:
        found = commitments.kept(session, [uid for _, uid in request.references])
    kept: list[Reference] = []
    refused: list[tuple[Reference, int]] = []
    for reference in request.references:
        sop_class, uid = reference
        copies = [copy for copy in found.get(uid, []) if _is_whole(spool, copy[1], copy[2])]
        if not copies:
            refused.append((reference, NO_SUCH_INSTANCE))
        elif sop_class not in {copy[0] for copy in copies}:
            refused.append((reference, CLASS_CONFLICT))
        else:
            kept.append(reference)
    return CommitmentResult(request.transaction_uid, kept, refused)


def _is_whole(spool: Spool, digest: str, size: int) -> bool:
    """Tell whether a file is there; it was flushed before its row was written, and is never changed."""
    try:
        return spool.path(digest).stat().st_size == size
    except FileNotFoundError:
        return False


def record_told(wanted_id: int, calling_ae_title: str, said: CommitmentResult) -> Callable[[Session], None]:
    """Return what records that a modality was told."""
    _log.info("commitment told", modality=calling_ae_title, kept=len(said.kept), refused=len(said.refused))
    return partial(
        commitments.record_answered,
        wanted_id=wanted_id,
        committed=len(said.kept),
        refused=len(said.refused),
        at=datetime.now(UTC),
    )


def take_answer(event: evt.Event, database: Database, settings: DeliverSettings) -> int | Dataset:
    """Answer N-EVENT-REPORT: what a destination says is recorded before it hears Success."""
    try:
        note_answer(database, read_answer(event), settings)
    except Refused as refused:
        status, comment = refused.status, refused.comment
    except DatabaseError as error:
        status, comment = PROCESSING_FAILURE, "The database is not available"
        _log.error("commitment not recorded", cause=str(error))
    else:
        return 0x0000
    _log.warning("commitment refused", status=f"0x{status:04X}", comment=comment)
    return failure(status, comment)


def note_answer(database: Database, said: CommitmentResult, settings: DeliverSettings) -> None:
    """Record what a destination says it keeps; what it says it does not have is sent again.

    Raises
    ------
    Refused
        When nobody was asked under that Transaction UID.
    db.errors.DatabaseError
    """
    now = datetime.now(UTC)
    with database.write() as session:
        destination = commitments.destination_asked(session, said.transaction_uid)
        if destination is None:
            raise Refused(INVALID_ARGUMENT, "This Transaction UID is not known")
        kept = [uid for _, uid in said.kept]
        news = commitments.record_committed(session, destination, kept, now)
        for why, uids in _refused(said, {NO_SUCH_INSTANCE, CLASS_CONFLICT}):
            pause = settings.max_retry_seconds
            commitments.record_lost(session, destination, uids, why, pause_seconds=pause, at=now)
        for why, uids in _refused(said, {CLASS_NOT_SUPPORTED}):
            commitments.record_uncommittable(session, destination, uids, why, now)
    # Of what is refused for any other reason, it is asked again
    write = _log.warning if said.refused else _log.info
    write("destination committed", destination=destination, reports=news, refused=len(said.refused))


def _refused(said: CommitmentResult, reasons: set[int]) -> Iterator[tuple[str, list[str]]]:
    """Yield a sentence and the SOP Instance UIDs for each of these Failure Reasons."""
    for reason in sorted(reasons):
        uids = [uid for (_, uid), why in said.refused if why == reason]
        if uids:
            yield f"It does not keep the report: storage commitment failed with 0x{reason:04X}", uids
