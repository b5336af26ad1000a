"""Group commit: threads that wait to write share one transaction, and so one flush to disk.

It is for SQLite, which has one writer at a time. On a database with row locks, two transactions that each
write for several threads could wait for each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy.orm import Session

from db.errors import DatabaseDown

Statements = Callable[[Session], Any]
BeforeCommit = Callable[[Any], object]


class _Part:
    """What one thread wants to write.

    Attributes
    ----------
    leads
        Whether its thread must write for all waiting threads instead of waiting itself.
    news
        Set when it leads or is done.
    value, error
        The result; exactly one of the two counts.
    """

    def __init__(self, statements: Statements, before_commit: BeforeCommit) -> None:
        self.statements = statements
        self.before_commit = before_commit
        self.leads = self.is_done = False
        self.news = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None

    def end(self, value: Any = None, error: BaseException | None = None) -> None:
        self.value, self.error, self.is_done = value, error, True


class GroupCommit:
    """Lets the thread whose turn it is write for all waiting threads.

    Parameters
    ----------
    write
        Returns the context of a transaction.
    seconds
        The longest time to wait for a turn.
    """

    def __init__(self, write: Callable[[], AbstractContextManager[Session]], seconds: float) -> None:
        self._write = write
        self._seconds = seconds
        self._guard = threading.Lock()
        self._waiting: list[_Part] = []
        self._is_led = False

    def run(self, statements: Statements, before_commit: BeforeCommit) -> Any:
        """Return what `statements` returned, once it is committed.

        Parameters
        ----------
        statements
            May be run again, after a rollback.
        before_commit
            Is given what `statements` returned. It may wait; meanwhile the statements of other threads run.

        Raises
        ------
        Exception
            What `statements` or `before_commit` raised, for this thread alone; also what `write` raises.
        """
        part = _Part(statements, before_commit)
        with self._guard:
            self._waiting.append(part)
            if not self._is_led:
                self._is_led = part.leads = True
        if not part.leads and not part.news.wait(self._seconds):
            with self._guard:
                if part in self._waiting and not part.leads:
                    self._waiting.remove(part)
                    raise DatabaseDown("The database does not work: it has been locked for too long.")
            part.news.wait()  # another thread is writing it now and will report the outcome
        if part.leads:
            self._lead()
        if part.error is not None:
            raise part.error
        return part.value

    def _lead(self) -> None:
        """Write for all threads that wait now, then pass the lead to one that came meanwhile."""
        with self._guard:
            parts, self._waiting = self._waiting, []
        try:
            self._write_all(parts)
        finally:
            for part in parts:
                if not part.is_done:
                    part.end(error=DatabaseDown("The database does not work: nothing was written."))
                part.news.set()
            with self._guard:
                self._is_led = bool(self._waiting)
                if self._is_led:
                    self._waiting[0].leads = True
                    self._waiting[0].news.set()

    def _write_all(self, parts: Sequence[_Part]) -> None:
        try:
            with self._write() as session:
                values = [part.statements(session) for part in parts]
                for part, value in zip(parts, values, strict=True):
                    part.before_commit(value)
        except DatabaseDown as error:
            for part in parts:
                part.end(error=DatabaseDown(*error.args))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it must reach who is waiting
            if len(parts) == 1:
                parts[0].end(error=error)
            else:
                self._write_each(parts)
        else:
            for part, value in zip(parts, values, strict=True):
                part.end(value)

    def _write_each(self, parts: Sequence[_Part]) -> None:
        """Write one by one, so that only the thread that caused the error gets it."""
        down: DatabaseDown | None = None
        for part in parts:
            if down is None:
                self._write_all([part])
                down = part.error if isinstance(part.error, DatabaseDown) else None
            else:  # finding out took long
                part.end(error=DatabaseDown(*down.args))
