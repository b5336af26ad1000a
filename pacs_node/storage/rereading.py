"""Read from stored files what an earlier version did not record of their objects."""

from __future__ import annotations

from collections.abc import Callable

from db import stock as stock_rows
from db.session import Database
from pacs_node.dicom.header import Identity, identity, read_header
from pacs_node.errors import UnreadableHeader
from pacs_node.storage.spool import Spool

_AT_ONCE = 50  # files of one transaction
_READ = (
    *("patient_id", "issuer_of_patient_id", "patient_name", "patient_birth_date"),
    *("accession_number", "study_date"),
)


def reread(
    database: Database,
    spool: Spool,
    *,
    most: int | None = None,
    step: Callable[[int], object],
    is_stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Read files and record what they say, the newest first; return how many were read.

    What was recorded stays, whatever ends this: the next call goes on from there.

    Parameters
    ----------
    most
        The largest number of files to look at.
    step
        Told after each batch how many files were looked at.
    """
    last, read, seen = None, 0, 0
    while (most is None or seen < most) and not is_stopped():
        with database.read() as session:
            some = stock_rows.unread(session, last, _AT_ONCE)
        known = [(one, _identity(spool, one.digest)) for one in some if not is_stopped()]
        with database.write() as session:
            for one, found in known:
                if found is not None:
                    values = {name: getattr(found, name) for name in _READ}
                    stock_rows.record_read(session, one, **values, **vars(found.acquisition))
                    read += 1
        step(len(some))
        if len(some) < _AT_ONCE:
            break
        last, seen = some[-1].id, seen + len(some)
    return read


def _identity(spool: Spool, digest: str) -> Identity | None:
    try:
        return identity(read_header(spool.path(digest)))
    except (UnreadableHeader, OSError):
        return None  # taking stock says what is missing
