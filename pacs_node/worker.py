"""When work is done: claim, lease, retry, stop. The stages of each wing decide what is done.

A worker holds the jobs of one claim under a token and a lease that it keeps renewing. If it dies, the lease
ends and another worker takes over. If it only seemed dead, its token is no longer valid and it writes
nothing.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy.orm import Session

from db import queue
from db.errors import DatabaseDown, DatabaseError
from db.queue import Claimed, Kind
from db.session import Database
from pacs_node import log
from pacs_node.progress import Progress

_log = log.get(__name__)

_MOST_BACK_OFF = 10.0  # seconds, while the database is away
_HUNG_SECONDS = 900.0  # longer than any stage may take for one group of outcomes
_SETTLE_TRIES, _SETTLE_PAUSE = 5, 2.0  # seconds; after `stop`

Write = Callable[[Session], None]


@dataclass(frozen=True)
class Done:
    """The work is done; `write` records it in the transaction that finishes the job."""

    write: Write


@dataclass(frozen=True)
class Later:
    """The work could not be done yet; `write` records the try.

    A job may be put off any number of times. With `is_attempt`, the try counts like the death of a worker.
    """

    seconds: float
    why: str
    write: Write | None = None
    is_attempt: bool = False


@dataclass(frozen=True)
class GivenUp:
    """Trying again cannot help; `write` records that."""

    why: str
    write: Write | None = None


Outcome = Done | Later | GivenUp
Settled = Sequence[tuple[Claimed, Outcome]]


class Stage(Protocol):
    """What a worker does with the jobs that it claimed.

    Attributes
    ----------
    kind, lane
        Which jobs it does.
    batch_size
        The largest number of jobs to claim at once.
    """

    kind: Kind
    lane: str
    batch_size: int

    def run(self, jobs: Sequence[Claimed], may_go_on: Callable[[], bool]) -> Iterator[Settled]:
        """Do the work, outside of any transaction; yield jobs with their outcomes, each job once.

        Outcomes that are yielded together are recorded together, before the work continues. Call `may_go_on`
        before something that cannot be undone: it asks the database whether the lease is still valid. The
        answer is no if the database is unavailable or the worker was told to stop.
        """
        ...

    def give_up(self, session: Session, ref: int) -> None:
        """Record that a job was given up after too many attempts, in the transaction that gives it up."""
        ...


class Worker:
    """Does the jobs of one stage until it is told to stop.

    Parameters
    ----------
    database
        The database with the queue.
    stage
        What to do with the jobs.
    poll_seconds
        How often to look for work when there is none.
    lease_seconds
        How long other workers wait before they consider this worker dead.
    idle_stage
        What to do as long as `stage` has nothing to do.
    hung_seconds
        A time without progress after which the worker is considered hung; longer than any group of outcomes
        may take.

    Attributes
    ----------
    progress
        Tells whether the worker makes progress.
    """

    def __init__(
        self,
        database: Database,
        stage: Stage,
        poll_seconds: float,
        lease_seconds: float,
        hung_seconds: float = _HUNG_SECONDS,
        *,
        idle_stage: Stage | None = None,
    ) -> None:
        self.progress = Progress(hung_seconds)
        self._database = database
        self._stages = (stage,) if idle_stage is None else (stage, idle_stage)
        self._stage = stage  # the one at work
        self._poll = poll_seconds
        self._lease = lease_seconds
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Finish the current jobs, then let `run` return."""
        self._stopped.set()

    def run(self) -> None:
        """Work until `stop`."""
        failures = 0
        while not self._stopped.is_set():
            self.progress.step()
            try:
                worked = self.work_once()
                failures = 0
            except DatabaseError as error:
                failures += 1
                self._back_off(failures, error)
            else:
                if not worked:
                    self._stopped.wait(self._poll)

    def _back_off(self, failures: int, error: DatabaseError) -> None:
        self.progress.step()
        _log.error("database failed", kind=self._stage.kind.value, lane=self._stage.lane, cause=str(error))
        self._stopped.wait(min(_MOST_BACK_OFF, 0.1 * 2**failures) * random.uniform(0.5, 1))

    def work_once(self) -> bool:
        """Claim and do jobs once, of the first stage that has any; tell whether there were any.

        Raises
        ------
        DatabaseError
            If the database is unavailable; the jobs can be claimed again when their lease ends.
        """
        return any(map(self._work_once, self._stages))

    def _work_once(self, stage: Stage) -> bool:
        self._stage = stage
        with self._database.ask() as connection:
            if not queue.is_any_due(connection, stage.kind, stage.lane):  # nearly always
                return False
        with self._database.write() as session:
            claim = queue.claim(
                session,
                stage.kind,
                stage.lane,
                limit=stage.batch_size,
                lease_seconds=self._lease,
            )
            for job in claim.given_up:
                stage.give_up(session, job.ref)
        for job in claim.given_up:
            _log.error("job given up", kind=stage.kind.value, ref=job.ref, cause="too many attempts")
        if claim.jobs:
            self._work(claim.token, claim.jobs)
        return bool(claim.jobs or claim.given_up)

    def _work(self, token: str, jobs: Sequence[Claimed]) -> None:
        left = {job.id for job in jobs}
        with _Lease(self._database, token, self._lease):
            for settled in self._stage.run(jobs, lambda: self._may_go_on(token, len(left))):
                if settled:
                    self._settle(token, settled)
                    self.progress.step()
                    left.difference_update(job.id for job, _ in settled)

    def _may_go_on(self, token: str, number: int) -> bool:
        if self._stopped.is_set():
            return False
        # An error here would lose the outcome of the current work
        try:
            with self._database.write() as session:
                return queue.renew(session, token, self._lease) == number
        except DatabaseError as error:
            _log.warning("lease not renewed", cause=str(error))
            return False

    def _settle(self, token: str, settled: Settled) -> None:
        """Record the outcomes; keep them while the database is away, so that nothing is sent twice."""
        failures, last_tries = 0, _SETTLE_TRIES
        while True:
            try:
                return self._write(token, settled)
            except DatabaseDown as error:
                failures += 1
                if self._stopped.is_set():
                    last_tries -= 1
                    if not last_tries:
                        raise
                    time.sleep(_SETTLE_PAUSE)
                self._back_off(failures, error)

    def _write(self, token: str, settled: Settled) -> None:
        """Write everything in one transaction, only for jobs that this worker still holds."""
        lost = []
        with self._database.write() as session:
            for job, outcome in settled:
                if not _finish(session, token, job, outcome):
                    lost.append(job.ref)
                elif outcome.write is not None:
                    outcome.write(session)
        for ref in lost:
            _log.warning("job taken over", kind=self._stage.kind.value, ref=ref)


def _finish(session: Session, token: str, job: Claimed, outcome: Outcome) -> bool:
    if isinstance(outcome, Done):
        return bool(queue.finish(session, token, [job.id]))
    if isinstance(outcome, GivenUp):
        return bool(queue.fail(session, token, [job.id], outcome.why))
    return bool(
        queue.postpone(session, token, [job.id], outcome.seconds, outcome.why, is_attempt=outcome.is_attempt)
    )


class _Lease:
    """Renews a lease while a stage is at work; it stops when the process dies, so that the lease ends.

    A stage that hangs would keep its jobs for ever. So a process whose work makes no progress sends no
    heartbeat, and its supervisor ends it and starts it again. The jobs then have one attempt fewer.
    """

    def __init__(self, database: Database, token: str, lease_seconds: float) -> None:
        self._database = database
        self._token = token
        self._lease = lease_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> _Lease:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _renew(self) -> None:
        while not self._ended.wait(self._lease / 3):
            try:
                with self._database.write() as session:
                    if not queue.renew(session, self._token, self._lease):
                        return
            except DatabaseError as error:
                _log.warning("lease not renewed", cause=str(error))


_RETRY_SECONDS = 30.0  # after a fault of the machine, such as an unavailable file system; doubles each time


_LONGEST_RETRY = 480.0


def retry_unreadable(job: Claimed, error: OSError) -> Later:
    """Try a file again after a growing pause; a file that stays unreadable must not block its study for
    ever.
    """
    pause = min(_LONGEST_RETRY, _RETRY_SECONDS * 2 ** (job.attempts - 1))
    return Later(pause, f"The file cannot be read: {error.strerror}", is_attempt=True)
