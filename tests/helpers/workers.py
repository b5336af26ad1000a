"""Stages that do what a test says, and waiting for what other threads do."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import pytest
from sqlalchemy import Connection, select
from sqlalchemy.orm import Session

from db.errors import DatabaseDown
from db.models import Job
from db.queue import Claimed, Kind
from db.session import Database
from pacs_node.worker import Outcome, Settled, Worker

IsMine = Callable[[], bool]


Work = Callable[[Claimed, IsMine], Outcome]


class Stage:
    """A stage without images: it does with each job what a function says."""

    kind = Kind.SCORE
    lane = ""

    def __init__(self, work: Work, batch_size: int = 8) -> None:
        self.batch_size = batch_size
        self.claims: list[list[int]] = []
        self.given_up: list[int] = []
        self._work = work

    def run(self, jobs: Sequence[Claimed], may_go_on: IsMine) -> Iterator[Settled]:
        self.claims.append([job.ref for job in jobs])
        yield [(job, self._work(job, may_go_on)) for job in jobs]

    def give_up(self, session: Session, ref: int) -> None:  # noqa: ARG002
        self.given_up.append(ref)


class Line:
    """A second way to a database, which can be cut, and which `fails` as often as asked, from now on."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.database = copy.copy(database)
        self.is_cut = threading.Event()
        self.fails = 0
        self._write, self._ask = database.write, database.ask
        monkeypatch.setattr(self.database, "write", self.write)
        monkeypatch.setattr(self.database, "ask", self.ask)

    def write(self) -> AbstractContextManager[Session]:
        self.fails -= 1
        if self.is_cut.is_set() or self.fails >= 0:
            raise DatabaseDown("The database is away.")
        return self._write()

    def ask(self) -> AbstractContextManager[Connection]:
        if self.is_cut.is_set():
            raise DatabaseDown("The database is away.")
        return self._ask()


def worker(database: Database, stage: Stage, lease_seconds: float = 60) -> Worker:
    return Worker(database, stage, poll_seconds=0.01, lease_seconds=lease_seconds)


def job(database: Database, ref: int = 1) -> Job:
    with database.read() as session:
        return session.scalars(select(Job).where(Job.ref == ref)).one()


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)


@contextmanager
def running(at_work: Worker) -> Iterator[None]:
    """Let a worker run in a thread of its own, and stop it at the end."""
    thread = threading.Thread(target=at_work.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        at_work.stop()
        thread.join(20)
    assert not thread.is_alive()
