"""Mend what stored files and database rows do not agree on, and remove files by retention.

A crash can leave a file without a row, before its sender was answered: that file is taken in. A row without a
file is a loss, and a person must hear of it. Only files that retention released are removed, and only after
their rows say so.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from db import stock as stock_rows
from db.errors import DatabaseError
from db.session import Database
from pacs_node import log
from pacs_node.config import Settings
from pacs_node.dicom.header import identity, read_header
from pacs_node.dicom.part10 import read_file_meta
from pacs_node.errors import Refused, UnreadableHeader
from pacs_node.progress import Progress
from pacs_node.storage.arriving import digest
from pacs_node.storage.intake import described, record
from pacs_node.storage.rereading import reread
from pacs_node.storage.spool import Spool
from pacs_node.storage.stock import take_stock

_log = log.get(__name__)

_EVERY_SECONDS = 3600.0
_HUNG_SECONDS = 3600.0  # longer than taking stock of all there is may take
_STUDIES_AT_ONCE = 100
_READ_AT_MOST = 10_000  # files, each time


class Housekeeper:
    """Takes stock at start, and every hour; takes in orphans, and lets go of what retention says."""

    def __init__(self, settings: Settings, database: Database, spool: Spool) -> None:
        self._settings = settings
        self._database = database
        self._spool = spool
        self._stopped = threading.Event()
        self.progress = Progress(_HUNG_SECONDS)

    def stop(self) -> None:
        """Let `run` return, after the file at hand."""
        self._stopped.set()

    def run(self) -> None:
        """Work until `stop`."""
        young = self._settings.spool.orphan_minutes * 60
        for pause in self._pauses(young):
            try:
                self.work_once()
            except (DatabaseError, OSError) as error:
                _log.error("housekeeping failed", cause=str(error))
            self.progress.rest()
            if self._stopped.wait(pause):
                return
            self.progress.step()

    def _pauses(self, young: float) -> Iterator[float]:
        yield min(_EVERY_SECONDS, young + 1)  # what a crash left just before this start is old enough then
        while True:
            yield _EVERY_SECONDS

    def work_once(self) -> None:
        """Take stock and act on it.

        Raises
        ------
        OSError, db.errors.DatabaseError
        """
        stock = take_stock(self._database, self._spool, self._settings.spool.orphan_minutes * 60)
        for lost in stock.missing:
            _log.error(
                "file missing from spool",
                study=lost.study_instance_uid,
                sop_instance_uid=lost.sop_instance_uid,
                digest=lost.digest,
            )
        for name in stock.orphans:
            if self._stopped.is_set():
                return
            self._adopt(name)
            self.progress.step()
        self._remove(stock.leftovers)
        self._reread()
        self._retain()

    def _adopt(self, name: str) -> None:
        """Record a file that was received whole, but whose row was never written."""
        path = self._spool.path(name)
        try:
            syntax = read_file_meta(path).transfer_syntax_uid
            if digest(path, syntax) != name:
                raise UnreadableHeader("its content is not what its name says")
            new = described(
                identity(read_header(path)),
                transfer_syntax_uid=syntax,
                digest=name,
                size=path.stat().st_size,
                calling_ae_title="",
            )
            outcome = record(self._database, self._spool, new, self._settings.study.quiet_seconds)
        except (UnreadableHeader, Refused) as error:
            _log.error("orphan not taken in", digest=name, cause=str(error))
        else:
            uid = new.sop_instance_uid
            _log.warning("orphan taken in", digest=name, sop_instance_uid=uid, outcome=outcome.value)

    def _reread(self) -> None:
        """Read from their files what an earlier version did not record of objects."""
        number = reread(
            self._database,
            self._spool,
            most=_READ_AT_MOST,
            step=lambda _: self.progress.step(),
            is_stopped=self._stopped.is_set,
        )
        if number:
            with self._database.read() as session:
                left = stock_rows.how_many_unread(session)
            _log.info("files of an earlier version read", files=number, left=left)

    def _retain(self) -> None:
        days = self._settings.retention.days
        if not days:
            return
        now = datetime.now(UTC)
        before = now - timedelta(days=days)
        while not self._stopped.is_set():
            with self._database.read() as session:
                studies = stock_rows.spent(session, before, _STUDIES_AT_ONCE)
            for study_id in studies:
                with self._database.write() as session:
                    names = stock_rows.release(session, study_id, before, now)
                self._remove(names)
                self.progress.step()
            if len(studies) < _STUDIES_AT_ONCE:
                return

    def _remove(self, names: list[str]) -> None:
        """Remove files that were let go of, each while nobody can need it anew."""
        if not names:
            return
        with self._database.write() as session:
            released = stock_rows.lock_released(session, names)
            for name in sorted(released):
                self._spool.remove(name)
        _log.info("files removed", files=len(released))
