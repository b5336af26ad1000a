"""Recording an object whose file is in its place, or will be at the commit: the last step before Success."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from db import queries
from db.errors import WriteConflict
from db.rows import NewInstance, Received
from db.session import Database
from pacs_node.dicom.header import Identity
from pacs_node.errors import Refused
from pacs_node.storage.spool import Spool

OUT_OF_RESOURCES = 0xA700  # PS3.4 B.2.3

_TRIES = 5  # of a transaction that lost a race


def described(
    found: Identity, *, transfer_syntax_uid: str, digest: str, size: int, calling_ae_title: str
) -> NewInstance:
    """Return an object that was received now, as it goes into the database."""
    values = {**vars(found)}
    return NewInstance(
        **vars(values.pop("acquisition")),
        **values,
        transfer_syntax_uid=transfer_syntax_uid,
        digest=digest,
        size=size,
        calling_ae_title=calling_ae_title[:16],
        received_at=datetime.now(UTC),
    )


def record(
    database: Database,
    spool: Spool,
    new: NewInstance,
    quiet_seconds: float,
    kept: Callable[[], object] = lambda: None,
) -> Received:
    """Record an object; where another association records the same one right now, look what it left.

    Parameters
    ----------
    kept
        Waits until its file is in its place, and raises what prevents that; nothing is committed before.

    Raises
    ------
    Refused
        When its file was let go by retention in this very moment.
    db.errors.DatabaseError
    """

    def check(outcome: Received) -> None:
        kept()
        # Its row is locked now, so that whoever lets go of files has done so before, or never will
        if outcome is Received.AGAIN and not spool.path(new.digest).is_file():
            raise Refused(OUT_OF_RESOURCES, "Its file was just removed; send it again")

    for attempt in range(1, _TRIES + 1):
        try:
            return database.write_together(
                lambda session: queries.add_instance(session, new, quiet_seconds), check
            )
        except WriteConflict:
            if attempt == _TRIES:
                raise
    raise AssertionError("not reached")
