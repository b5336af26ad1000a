"""The worker: what is written when a job ends, is put off, is taken over, or kills whoever works on it."""

from __future__ import annotations

import copy
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial

import pytest
from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from db.errors import DatabaseDown
from db.models import Job, Model
from db.queue import Claimed, Kind, enqueue
from db.session import Database
from pacs_node import worker as worker_module
from pacs_node.worker import Done, GivenUp, Later, Outcome, Worker, Write
from tests.helpers.workers import IsMine, Line, Stage, job, running, until, worker


def put_in(database: Database, *refs: int) -> None:
    """Enqueue jobs."""
    with database.write() as session:
        for ref in refs:
            enqueue(session, Kind.SCORE, ref)


def result(ref: int, by: str = "worker") -> Write:
    """Return a write that leaves a row; twice, it leaves two."""
    return partial(_insert, version=str(ref), name=by)


def _insert(session: Session, **names: str) -> None:
    row = {"threshold": 0.5, "preprocessing": "", "card": "{}", "last_started_at": datetime.now(UTC)}
    session.execute(insert(Model).values(sha256=uuid.uuid4().hex, **names, **row))


def written(database: Database) -> list[tuple[int, str]]:
    """Return (job, worker) for each result."""
    with database.read() as session:
        return sorted((int(row.version), row.name) for row in session.scalars(select(Model)))


def done(claimed: Claimed, _is_mine: IsMine) -> Outcome:
    return Done(result(claimed.ref))


def test_a_job_is_done_and_its_result_written(database: Database) -> None:
    put_in(database, 1, 2)
    stage = Stage(done)
    assert worker(database, stage).work_once()
    assert stage.claims == [[1, 2]]
    assert written(database) == [(1, "worker"), (2, "worker")]
    assert [job(database, ref).state for ref in (1, 2)] == ["done", "done"]
    assert not worker(database, stage).work_once()


def test_a_result_that_cannot_be_written_leaves_its_job_and_its_neighbours_unfinished(
    database: Database,
) -> None:
    def fail(session: Session) -> None:
        raise ValueError("no such result")

    put_in(database, 1, 2)
    stage = Stage(lambda claimed, _: Done(result(1) if claimed.ref == 1 else fail))
    with pytest.raises(ValueError, match="no such result"):
        worker(database, stage).work_once()
    assert written(database) == []
    assert [(job(database, ref).state, job(database, ref).attempts) for ref in (1, 2)] == [("ready", 1)] * 2


def test_work_that_is_put_off_records_the_try_and_counts_no_attempt(database: Database) -> None:
    put_in(database, 1)
    stage = Stage(lambda claimed, _: Later(30, "The PACS is down", result(claimed.ref, "try")))
    start = time.time()
    assert worker(database, stage).work_once()
    put_off = job(database)
    assert (put_off.state, put_off.attempts, put_off.error) == ("ready", 0, "The PACS is down")
    assert start + 29.9 < put_off.visible_at < time.time() + 30.1
    assert written(database) == [(1, "try")]
    assert not worker(database, stage).work_once()


def test_work_may_be_put_off_as_often_as_needed(database: Database) -> None:
    put_in(database, 1)
    tries = 0

    def at_last(claimed: Claimed, _is_mine: IsMine) -> Outcome:
        nonlocal tries
        tries += 1
        return Done(result(1)) if tries == 8 else Later(0, "Not yet")

    at_work = worker(database, Stage(at_last))
    until(lambda: not at_work.work_once())
    assert (job(database).state, job(database).error) == ("done", None)
    assert written(database) == [(1, "worker")]


def test_work_that_is_given_up_fails_with_its_error_and_its_neighbour_is_done(database: Database) -> None:
    def work(claimed: Claimed, _is_mine: IsMine) -> Outcome:
        return Done(result(2)) if claimed.ref == 2 else GivenUp("The PACS refused it", result(1, "refusal"))

    put_in(database, 1, 2)
    assert worker(database, Stage(work)).work_once()
    assert (job(database, 1).state, job(database, 1).error) == ("failed", "The PACS refused it")
    assert (job(database, 2).state, job(database, 2).error) == ("done", None)
    assert written(database) == [(1, "refusal"), (2, "worker")]


def name_of(outcome: Outcome) -> str:
    return type(outcome).__name__


TOO_LATE = result(1, "too late")


@pytest.mark.parametrize(
    "outcome", [Done(TOO_LATE), Later(0, "too late", TOO_LATE), GivenUp("too late", TOO_LATE)], ids=name_of
)
def test_a_worker_that_was_taken_for_dead_writes_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch, outcome: Outcome
) -> None:
    line = Line(database, monkeypatch)
    other = worker(database, Stage(lambda _claimed, _: Done(result(1, "other"))))
    held = []

    def freeze(claimed: Claimed, is_mine: IsMine) -> Outcome:
        held.append(is_mine())
        line.is_cut.set()
        until(other.work_once)
        line.is_cut.clear()
        held.append(is_mine())
        return outcome

    put_in(database, 1)
    assert worker(line.database, Stage(freeze), lease_seconds=2).work_once()
    assert held == [True, False]
    assert written(database) == [(1, "other")]
    assert (job(database).state, job(database).error) == ("done", None)


def test_a_job_that_is_made_ready_anew_meanwhile_is_done_anew(database: Database) -> None:
    def work(claimed: Claimed, is_mine: IsMine) -> Outcome:
        if claimed.ref == 1:
            put_in(database, 1)
            assert not is_mine()
        return Done(result(claimed.ref))

    put_in(database, 1, 2)
    assert worker(database, Stage(work)).work_once()
    assert written(database) == [(2, "worker")]
    assert (job(database, 1).state, job(database, 1).attempts) == ("ready", 0)
    assert worker(database, Stage(done)).work_once()
    assert written(database) == [(1, "worker"), (2, "worker")]


def test_a_job_longer_than_its_lease_is_not_taken_over(database: Database) -> None:
    other = Stage(done)

    def long_work(claimed: Claimed, is_mine: IsMine) -> Outcome:
        end = time.monotonic() + 6
        while time.monotonic() < end:
            assert not worker(database, other).work_once()
            time.sleep(0.05)
        return Done(result(1, "slow"))

    put_in(database, 1)
    assert worker(database, Stage(long_work), lease_seconds=4).work_once()
    assert written(database) == [(1, "slow")]
    assert other.claims == []


def test_the_lease_is_renewed_again_once_the_database_is_back(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(database, monkeypatch)

    def work(claimed: Claimed, is_mine: IsMine) -> Outcome:
        before = job(database).visible_at
        line.fails = 2
        until(lambda: job(database).visible_at > before)
        return Done(result(1))

    put_in(database, 1)
    assert worker(line.database, Stage(work), lease_seconds=3).work_once()
    assert written(database) == [(1, "worker")]


def test_nothing_is_locked_while_a_stage_works(database: Database) -> None:
    def work(claimed: Claimed, is_mine: IsMine) -> Outcome:
        assert is_mine()
        start = time.monotonic()
        with database.write() as session:
            session.execute(update(Job).values(error="Another writer was here"))
        assert time.monotonic() - start < 60
        return Done(result(1))

    put_in(database, 1)
    assert worker(database, Stage(work)).work_once()
    assert written(database) == [(1, "worker")]


class Crash(Exception):
    """Stands for the death of a process."""


def test_a_job_that_kills_five_workers_fails_and_its_neighbours_are_done(database: Database) -> None:
    def work(claimed: Claimed, is_mine: IsMine) -> Outcome:
        if claimed.ref == 2:
            raise Crash
        return done(claimed, is_mine)

    stage = Stage(work)

    def no_job_is_left() -> bool:
        try:
            worker(database, stage, lease_seconds=0.1).work_once()
        except Crash:
            assert job(database, 2).state == "ready"
        return "ready" not in [job(database, ref).state for ref in (1, 2, 3)]

    put_in(database, 1, 2, 3)
    until(no_job_is_left)
    assert sum(2 in claim for claim in stage.claims) == 5
    assert (job(database, 2).state, job(database, 2).error) == ("failed", "The worker died 5 times at this")
    assert [job(database, ref).state for ref in (1, 3)] == ["done", "done"]
    assert written(database) == [(1, "worker"), (3, "worker")]


def test_the_job_of_a_dead_worker_waits_for_its_lease_and_no_longer(database: Database) -> None:
    def crash(claimed: Claimed, is_mine: IsMine) -> Outcome:
        raise Crash

    put_in(database, 1)
    with pytest.raises(Crash):
        worker(database, Stage(crash), lease_seconds=4).work_once()
    died = time.monotonic()
    other = worker(database, Stage(done))
    assert not other.work_once()
    until(other.work_once)
    assert 1 < time.monotonic() - died < 60
    assert written(database) == [(1, "worker")]


def test_an_outcome_is_kept_while_the_database_is_away(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(database, monkeypatch)

    def send(claimed: Claimed, is_mine: IsMine) -> Outcome:
        line.fails = 3
        return Done(result(1, "sent"))

    stage = Stage(send)
    put_in(database, 1)
    assert worker(line.database, stage).work_once()
    assert stage.claims == [[1]]
    assert line.fails < 0
    assert written(database) == [(1, "sent")]
    assert job(database).state == "done"


def test_an_outcome_whose_commit_went_unanswered_is_written_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = copy.copy(database)
    calls = 0

    @contextmanager
    def write() -> Iterator[Session]:
        nonlocal calls
        calls += 1
        with database.write() as session:
            yield session
        if calls == 2:
            raise DatabaseDown("The database went away before it answered.")

    monkeypatch.setattr(away, "write", write)
    put_in(database, 1)
    assert worker(away, Stage(done)).work_once()
    assert calls == 3
    assert written(database) == [(1, "worker")]
    assert job(database).state == "done"


def test_nothing_is_held_for_certain_while_the_database_is_away(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(database, monkeypatch)

    def work(claimed: Claimed, is_mine: IsMine) -> Outcome:
        if claimed.ref == 1:
            return Done(result(1))
        line.is_cut.set()
        assert not is_mine()
        line.is_cut.clear()
        return Later(0, "Not sure to be the only one")

    put_in(database, 1, 2)
    assert worker(line.database, Stage(work)).work_once()
    assert written(database) == [(1, "worker")]
    assert [job(database, ref).state for ref in (1, 2)] == ["done", "ready"]


def test_a_worker_outlives_a_database_that_was_away(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(database, monkeypatch)
    line.fails = 2
    put_in(database, 1)
    with running(worker(line.database, Stage(done))):
        until(lambda: job(database).state == "done")
    assert line.fails < 0
    assert written(database) == [(1, "worker")]


def test_a_worker_finds_work_that_comes_while_it_has_none(database: Database) -> None:
    with running(worker(database, Stage(done))):
        for ref in (1, 2):
            put_in(database, ref)
            until(lambda ref=ref: job(database, ref).state == "done")  # type: ignore[misc]
    assert written(database) == [(1, "worker"), (2, "worker")]


def test_a_worker_that_is_told_to_stop_finishes_the_job_at_hand_and_takes_no_other(
    database: Database,
) -> None:
    started, may_end = threading.Event(), threading.Event()

    def work(claimed: Claimed, is_mine: IsMine) -> Outcome:
        started.set()
        assert may_end.wait(20)
        return done(claimed, is_mine)

    put_in(database, 1, 2)
    at_work = worker(database, Stage(work, batch_size=1))
    with running(at_work):
        assert started.wait(20)
        at_work.stop()
        may_end.set()
    assert written(database) == [(1, "worker")]
    assert [job(database, ref).state for ref in (1, 2)] == ["done", "ready"]


def test_a_worker_that_is_told_to_stop_still_waits_for_a_database_that_comes_back(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_SETTLE_PAUSE", 0.1)
    line = Line(database, monkeypatch)

    def work(claimed: Claimed, is_mine: IsMine) -> Outcome:
        at_work.stop()
        line.is_cut.set()
        threading.Timer(0.3, line.is_cut.clear).start()
        return done(claimed, is_mine)

    put_in(database, 1)
    at_work = worker(line.database, Stage(work))
    assert at_work.work_once()
    assert written(database) == [(1, "worker")]


def test_a_worker_that_is_told_to_stop_ends_although_the_database_stays_away(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_SETTLE_PAUSE", 0.01)
    line = Line(database, monkeypatch)

    def work(claimed: Claimed, is_mine: IsMine) -> Outcome:
        line.is_cut.set()
        return done(claimed, is_mine)

    put_in(database, 1)
    with running(worker(line.database, Stage(work))):
        until(line.is_cut.is_set)
    assert (job(database).state, job(database).attempts) == ("ready", 1)
    assert written(database) == []


def test_a_worker_whose_stage_hangs_makes_no_progress(database: Database) -> None:
    may_end = threading.Event()

    def hang(claimed: Claimed, may_go_on: IsMine) -> Outcome:
        assert may_end.wait(60)
        return done(claimed, may_go_on)

    at_work = Worker(database, Stage(hang), 0.01, 60, hung_seconds=1)
    with running(at_work):
        time.sleep(1.5)
        until(lambda: not at_work.progress.is_stuck)  # for want of work
        put_in(database, 1)
        until(lambda: at_work.progress.is_stuck)
        may_end.set()
        until(lambda: not at_work.progress.is_stuck)
    assert job(database).state == "done"
