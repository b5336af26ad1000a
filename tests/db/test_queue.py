"""The work queue: no job is lost, done twice, or done by a worker that others took for dead."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import Row, literal, select, update
from sqlalchemy.orm import Session

from db import queue
from db.models import Job
from db.queue import MAX_ATTEMPTS, Claim, Kind
from db.session import Database
from tests.helpers.databases import only_postgresql, opened

LEASE, HORIZON = 60.0, queue.LONGEST_WAIT_SECONDS
CLOCKS = 0.05  # seconds, between that of the database and ours
HANDS: dict[str, Callable[[Session, str, Sequence[int]], Any]] = {
    "finish": queue.finish,
    "fail": lambda session, token, ids: queue.fail(session, token, ids, "Broken"),
    "postpone": lambda session, token, ids: queue.postpone(session, token, ids, 30, "Not yet"),
    "renew": lambda session, token, _ids: queue.renew(session, token, LEASE),
}


def put(database: Database, *refs: int, kind: Kind = Kind.SCORE, lane: str = "") -> None:
    """Enqueue jobs, the first one first."""
    with database.write() as session:
        for ref in refs:
            queue.enqueue(session, kind, ref, lane=lane)
        moments = {ref: time.time() - 1000 + position for position, ref in enumerate(refs)}
        for ref, moment in moments.items():
            session.execute(update(Job).where(Job.kind == kind, Job.ref == ref).values(visible_at=moment))


def take(
    database: Database, limit: int = 10, lease: float = LEASE, kind: Kind = Kind.SCORE, lane: str = ""
) -> Claim:
    with database.write() as session:
        return queue.claim(session, kind, lane, limit=limit, lease_seconds=lease)


def hand(database: Database, what: str, claim: Claim) -> Any:
    """Do something with all jobs of a claim, as its holder would."""
    with database.write() as session:
        return HANDS[what](session, claim.token, [job.id for job in claim.jobs])


def refs(claim: Claim) -> list[int]:
    return [job.ref for job in claim.jobs]


def row(database: Database, ref: int, kind: Kind = Kind.SCORE) -> Row[Any]:
    with database.read() as session:
        statement = select(*Job.__table__.columns).where(Job.kind == kind, Job.ref == ref)
        return session.execute(statement).one()


def change(database: Database, *refs: int, **values: Any) -> None:
    with database.write() as session:
        session.execute(update(Job).where(Job.ref.in_(refs)).values(**values))


def let_expire(database: Database, claim: Claim) -> None:
    """Let the lease of a claim end, as if its worker had died long ago."""
    change(database, *refs(claim), visible_at=time.time() - 1)


def pass_by(database: Database, seconds: float) -> None:
    """Let so much time go by for all jobs."""
    with database.write() as session:
        session.execute(update(Job).values(visible_at=Job.visible_at - seconds))


def die(database: Database, ref: int, times: int) -> None:
    """Let so many workers die of a job."""
    for _ in range(times):
        claim = take(database)
        assert refs(claim) == [ref]
        let_expire(database, claim)


def test_the_job_that_waited_longest_comes_first(database: Database) -> None:
    put(database, 1, 2, 3)
    change(database, 2, visible_at=time.time() - 5000)
    assert [refs(take(database, limit=1)) for _ in range(4)] == [[2], [1], [3], []]


def test_a_claim_takes_no_more_than_its_limit(database: Database) -> None:
    put(database, *range(7))
    assert [len(take(database, limit=3).jobs) for _ in range(4)] == [3, 3, 1, 0]


def test_a_new_job_can_be_claimed_at_once_and_one_for_later_cannot(database: Database) -> None:
    with database.write() as session:
        queue.enqueue(session, Kind.SCORE, 1)
        queue.enqueue(session, Kind.SCORE, 2, wait_seconds=2 * LEASE)
    assert refs(take(database, lease=9 * LEASE)) == [1]
    pass_by(database, LEASE)
    assert refs(take(database)) == []
    pass_by(database, LEASE)
    assert refs(take(database)) == [2]


def test_workers_at_the_same_time_never_share_a_job(database: Database, database_url: str) -> None:
    put(database, *range(120))
    start = Barrier(4, timeout=120)

    def claim_all(_: int) -> list[int]:
        with opened(database_url) as own:
            own.require_current()  # connects
            start.wait()
            claims = list(iter(lambda: refs(take(own, limit=3)), []))
        return [ref for claim in claims for ref in claim]

    with ThreadPoolExecutor(4) as pool:
        claimed = [ref for refs in pool.map(claim_all, range(4)) for ref in refs]
    assert sorted(claimed) == list(range(120))


@only_postgresql
def test_what_another_worker_is_just_claiming_is_skipped_without_waiting(database: Database) -> None:
    put(database, 1, 2)
    with database.write() as session:
        queue.claim(session, Kind.SCORE, "", limit=1, lease_seconds=LEASE)
        started = time.monotonic()
        assert refs(take(database)) == [2]
        assert time.monotonic() - started < 30


def test_a_job_is_claimable_again_when_the_lease_of_a_dead_worker_ends(database: Database) -> None:
    put(database, 1)
    dead = take(database, lease=2 * LEASE)
    assert refs(take(database)) == []
    pass_by(database, LEASE)
    assert refs(take(database)) == []
    pass_by(database, LEASE)
    heir = take(database)
    assert refs(heir) == refs(dead) == [1]
    assert heir.token != dead.token


def test_a_lease_counts_from_the_claim_and_not_from_the_begin_of_its_transaction(database: Database) -> None:
    put(database, 1)
    with database.write() as session:
        session.execute(select(literal(1)))
        time.sleep(0.5)
        claimed_at = time.time()
        queue.claim(session, Kind.SCORE, "", limit=1, lease_seconds=5)
        claimed_until = time.time()
    assert claimed_at + 5 - CLOCKS <= row(database, 1).visible_at <= claimed_until + 5 + CLOCKS


@pytest.mark.parametrize("what", HANDS)
def test_a_worker_whose_job_another_one_took_over_changes_nothing(database: Database, what: str) -> None:
    put(database, 1)
    stopped = take(database)
    let_expire(database, stopped)
    heir = take(database)
    before = row(database, 1)
    assert not hand(database, what, stopped)
    assert row(database, 1) == before
    assert len(hand(database, "finish", heir)) == 1


@pytest.mark.parametrize("what", HANDS)
def test_a_slow_worker_keeps_its_job_as_long_as_no_other_one_took_it(database: Database, what: str) -> None:
    put(database, 1)
    slow = take(database)
    let_expire(database, slow)
    assert hand(database, what, slow)


def test_of_several_jobs_only_those_not_taken_over_are_still_the_holders(database: Database) -> None:
    put(database, 1, 2, 3)
    claim = take(database)
    change(database, 2, visible_at=0)
    assert refs(take(database)) == [2]
    assert hand(database, "finish", claim) == {job.id for job in claim.jobs if job.ref != 2}
    assert [row(database, ref).state for ref in (1, 2, 3)] == ["done", "ready", "done"]


def test_the_jobs_of_a_claim_can_come_to_different_ends(database: Database) -> None:
    put(database, 1, 2, 3)
    claim = take(database)
    one, two, three = (job.id for job in claim.jobs)
    with database.write() as session:
        assert queue.finish(session, claim.token, [one]) == {one}
        assert queue.fail(session, claim.token, [two], "Broken") == {two}
        assert queue.postpone(session, claim.token, [three], 30, None) == {three}
    assert [row(database, ref).state for ref in (1, 2, 3)] == ["done", "failed", "ready"]


def test_a_job_is_finished_once(database: Database) -> None:
    put(database, 1)
    claim = take(database)
    assert hand(database, "finish", claim) == {claim.jobs[0].id}
    for what in HANDS:
        assert not hand(database, what, claim)
    change(database, 1, visible_at=0)
    assert refs(take(database)) == []
    assert (row(database, 1).state, row(database, 1).error) == ("done", None)


def test_a_job_given_up_says_why_and_is_not_claimed_again(database: Database) -> None:
    put(database, 1)
    claim = take(database)
    assert hand(database, "fail", claim) == {claim.jobs[0].id}
    change(database, 1, visible_at=0)
    assert refs(take(database)) == []
    assert (row(database, 1).state, row(database, 1).error) == ("failed", "Broken")


def test_a_job_put_off_comes_back_after_the_time_and_says_why_it_waits(database: Database) -> None:
    put(database, 1)
    claim = take(database)
    assert hand(database, "postpone", claim) == {claim.jobs[0].id}
    for what in HANDS:
        assert not hand(database, what, claim)
    assert row(database, 1).visible_at == pytest.approx(time.time() + 30, abs=5)
    assert row(database, 1).error == "Not yet"
    assert refs(take(database)) == []
    change(database, 1, visible_at=time.time() - 1)
    assert hand(database, "finish", take(database)) == {claim.jobs[0].id}
    assert row(database, 1).error is None


def test_a_job_put_off_in_good_order_again_and_again_never_fails(database: Database) -> None:
    put(database, 1)
    for _ in range(3 * MAX_ATTEMPTS):
        claim = take(database)
        assert [job.attempts for job in claim.jobs] == [1]
        hand(database, "postpone", claim)
        change(database, 1, visible_at=0)


def test_a_job_put_off_for_a_fault_of_its_own_fails_in_the_end_with_the_reason(database: Database) -> None:
    put(database, 1)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        claim = take(database)
        assert [job.attempts for job in claim.jobs] == [attempt]
        ids = [job.id for job in claim.jobs]
        with database.write() as session:
            queue.postpone(session, claim.token, ids, 0, "The file cannot be read", is_attempt=True)
    assert [job.ref for job in take(database).given_up] == [1]
    assert (row(database, 1).state, row(database, 1).error) == ("failed", "The file cannot be read")


def test_a_job_that_kills_every_worker_fails_with_an_error(database: Database) -> None:
    put(database, 1)
    die(database, 1, MAX_ATTEMPTS)
    last = take(database)
    assert refs(last) == []
    assert [job.ref for job in last.given_up] == [1]
    assert row(database, 1).state == "failed"
    assert "died 5 times" in row(database, 1).error
    change(database, 1, visible_at=0)
    assert take(database).given_up == []


def test_a_job_that_kills_every_worker_takes_no_other_job_along(database: Database) -> None:
    put(database, 1, 2, 3, 4)
    for _ in range(4 * MAX_ATTEMPTS):
        claim = take(database)
        if 2 in refs(claim):
            let_expire(database, claim)
        else:
            hand(database, "finish", claim)
    assert [row(database, ref).state for ref in (1, 2, 3, 4)] == ["done", "failed", "done", "done"]


def test_jobs_that_outlived_two_workers_are_claimed_alone(database: Database) -> None:
    put(database, 1, 2, 3, 4)
    change(database, 1, 3, attempts=2)
    assert [refs(take(database)) for _ in range(4)] == [[1], [3], [2, 4], []]


def test_a_job_that_outlived_one_worker_is_still_claimed_with_others(database: Database) -> None:
    put(database, 1, 2)
    change(database, 1, attempts=1)
    assert refs(take(database)) == [1, 2]


def test_workers_of_one_kind_and_lane_see_no_other_jobs(database: Database) -> None:
    put(database, 1)
    put(database, 1, kind=Kind.REPORT)
    put(database, 1, kind=Kind.DELIVER, lane="PACS")
    put(database, 2, kind=Kind.DELIVER, lane="ARCHIVE")
    assert refs(take(database, kind=Kind.DELIVER)) == []
    assert refs(take(database, kind=Kind.DELIVER, lane="ARCHIVE")) == [2]
    assert refs(take(database, kind=Kind.DELIVER, lane="PACS")) == [1]
    assert refs(take(database, kind=Kind.REPORT)) == [1]
    assert refs(take(database)) == [1]


def test_a_job_put_off_before_the_clock_jumped_back_does_not_wait_for_years(database: Database) -> None:
    put(database, 1, 2)
    change(database, 1, visible_at=time.time() + HORIZON + 60)
    change(database, 2, visible_at=time.time() + HORIZON - 60)
    assert refs(take(database)) == [1]


def test_a_job_enqueued_anew_is_taken_from_whoever_is_at_work_on_it(database: Database) -> None:
    put(database, 1)
    die(database, 1, 3)
    claim = take(database)
    with database.write() as session:
        queue.enqueue(session, Kind.SCORE, 1)
    for what in HANDS:
        assert not hand(database, what, claim)
    assert [job.attempts for job in take(database).jobs] == [1]


@pytest.mark.parametrize("what", ["finish", "fail"])
def test_a_job_enqueued_anew_is_ready_whatever_became_of_it(database: Database, what: str) -> None:
    put(database, 1, kind=Kind.DELIVER, lane="PACS")
    hand(database, what, take(database, kind=Kind.DELIVER, lane="PACS"))
    with database.write() as session:
        queue.enqueue(session, Kind.DELIVER, 1, lane="ARCHIVE")
    assert row(database, 1, Kind.DELIVER).error is None
    assert refs(take(database, kind=Kind.DELIVER, lane="ARCHIVE")) == [1]


@pytest.mark.parametrize("what", ["finish", "fail", "postpone", "renew"])
def test_waking_makes_the_named_jobs_ready_and_takes_them_from_their_holders(
    database: Database, what: str
) -> None:
    put(database, 1, 2)
    put(database, 1, kind=Kind.REPORT)
    claim = take(database)
    report = take(database, kind=Kind.REPORT)
    hand(database, what, claim)
    with database.write() as session:
        queue.wake(session, Kind.SCORE, [1], queue.later(session, 0))
    assert not {claim.jobs[0].id} & set(hand(database, "finish", claim))
    assert [(job.ref, job.attempts) for job in take(database).jobs] == [(1, 1)]
    assert hand(database, "renew", report) == 1


def test_a_job_woken_for_later_waits_until_then(database: Database) -> None:
    put(database, 1)
    with database.write() as session:
        queue.wake(session, Kind.SCORE, [1], queue.later(session, 2 * LEASE))
    assert refs(take(database)) == []
    pass_by(database, LEASE)
    assert refs(take(database)) == []
    pass_by(database, LEASE)
    assert refs(take(database)) == [1]


def test_a_lease_that_is_renewed_does_not_end(database: Database) -> None:
    put(database, 1, 2)
    claim = take(database, lease=2 * LEASE)
    pass_by(database, 1.5 * LEASE)
    assert hand(database, "renew", claim) == 2
    pass_by(database, 0.5 * LEASE)
    assert refs(take(database)) == []


def test_a_finish_whose_transaction_fails_leaves_the_job_to_its_holder(database: Database) -> None:
    def finish_without_result() -> None:
        with database.write() as session:
            assert queue.finish(session, claim.token, [job.id for job in claim.jobs])
            raise RuntimeError("the score cannot be written")

    put(database, 1)
    claim = take(database)
    with pytest.raises(RuntimeError):
        finish_without_result()
    assert row(database, 1).state == "ready"
    assert hand(database, "finish", claim)
