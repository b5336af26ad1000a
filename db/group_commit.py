"""Group commit: threads that wait to write share one transaction, and the one flush that its commit takes.

It is for SQLite, which has one writer at a time. Where rows are locked, two transactions that each write for
several would wait for each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue
from typing import Any

from sqlalchemy.orm import Session

from db.errors import DatabaseDown

Statements = Callable[[Session], Any]
BeforeCommit = Callable[[Any], object]


class _Part(Future[Any]):
    """What one thread wants to write; done when that is committed."""

    def __init__(self, statements: Statements, before_commit: BeforeCommit) -> None:
        super().__init__()
        self.statements = statements
        self.before_commit = before_commit


class GroupCommit:
    """Writes for all threads that wait when one of them has its turn.

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
        self._waiting: SimpleQueue[_Part] = SimpleQueue()
        self._turn = threading.Lock()

    def run(self, statements: Statements, before_commit: BeforeCommit) -> Any:
        """Return what `statements` returned, once it is committed.

        Parameters
        ----------
        statements
            May be run again, after a rollback.
        before_commit
            Is given what `statements` returned; may wait, while those of others are done.

        Raises
        ------
        Exception
            What either raised, which is nobody else's concern; of `write`, what it raises.
        """
        part = _Part(statements, before_commit)
        self._waiting.put(part)
        if not self._turn.acquire(timeout=self._seconds):
            part.cancel()
            raise DatabaseDown("The database does not work: it is locked for long.")
        try:
            if not part.done():  # else one that had its turn before has done it
                self._run(self._taken())
        finally:
            self._turn.release()
        return part.result()

    def _taken(self) -> list[_Part]:
        taken: list[_Part] = []
        while True:
            try:
                part = self._waiting.get_nowait()
            except Empty:
                return taken
            if part.set_running_or_notify_cancel():
                taken.append(part)

    def _run(self, parts: Sequence[_Part]) -> None:
        try:
            with self._write() as session:
                values = [part.statements(session) for part in parts]
                for part, value in zip(parts, values, strict=True):
                    part.before_commit(value)
        except DatabaseDown as error:
            for part in parts:
                part.set_exception(DatabaseDown(*error.args))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it must reach who is waiting
            if len(parts) == 1:
                parts[0].set_exception(error)
                return
            for part in parts:  # who is the cause has it alone
                self._run([part])
        else:
            for part, value in zip(parts, values, strict=True):
                part.set_result(value)
