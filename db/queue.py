"""The work queue: rows of `Job`, claimed for a time, finished by whoever still holds them.

Time is the clock of the database server, so that leases mean the same on every machine.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Float, case, cast, extract, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from db.models import Job

MAX_ATTEMPTS = 5
LONGEST_WAIT_SECONDS = 3000.0
"""No job may be put off for longer, by whatever machine and for whatever reason."""

_DIED = f"The worker died {MAX_ATTEMPTS} times at this"
_SUSPECT = 2  # attempts from which on a job is claimed alone, so that it cannot take others with it


class Kind(StrEnum):
    """What is to be done, and of what `Job.ref` is the id."""

    SCORE = "score"  # an instance
    REPORT = "report"  # a study
    DELIVER = "deliver"  # a delivery
    COMMIT = "commit"  # a delivery: the destination is to promise that it keeps the report
    CONFIRM = "confirm"  # a wanted commitment: a modality is to be told what is kept here


@dataclass(frozen=True)
class Claimed:
    """One claimed job."""

    id: int
    ref: int
    attempts: int


@dataclass(frozen=True)
class Claim:
    """Jobs that are this worker's until the lease ends, and those given up because workers died of them."""

    token: str
    jobs: Sequence[Claimed]
    given_up: Sequence[Claimed]


def enqueue(
    session: Session, kind: Kind, ref: int, *, lane: str = "", visible_at: ColumnElement[float] | None = None
) -> None:
    """Add a job, or make an existing one ready anew; whoever is at work on it can no longer finish it."""
    fresh = {
        "lane": lane,
        "state": "ready",
        "visible_at": later(session, 0) if visible_at is None else visible_at,
        "attempts": 0,
        "token": None,
        "error": None,
    }
    statement = insert_or(session, Job).values(kind=kind, ref=ref, **fresh)
    session.execute(statement.on_conflict_do_update(index_elements=[Job.kind, Job.ref], set_=fresh))


def revive(session: Session, kind: Kind, ref: int) -> None:
    """Make a job that was given up ready anew; the sender came back with what it needs."""
    session.execute(
        update(Job)
        .where(Job.kind == kind, Job.ref == ref, Job.state == "failed")
        .values(state="ready", visible_at=later(session, 0), attempts=0, token=None, error=None)
        .execution_options(synchronize_session=False)
    )


def wake(session: Session, kind: Kind, refs: Any, visible_at: Any) -> None:
    """Make jobs ready from `visible_at` on; whoever is at work on them can no longer finish them."""
    session.execute(
        update(Job)
        .where(Job.kind == kind, Job.ref.in_(refs))
        .values(state="ready", visible_at=visible_at, attempts=0, token=None)
        .execution_options(synchronize_session=False)
    )


def claim(session: Session, kind: Kind, lane: str, *, limit: int, lease_seconds: float) -> Claim:
    """Take the jobs that have waited longest.

    Parameters
    ----------
    limit
        At most so many; a job that outlived several workers comes alone.
    lease_seconds
        After this time another worker may take them.
    """
    token = uuid.uuid4().hex
    # A job that seems to be put off for longer than any is was put off before the clock jumped back.
    is_due = (Job.visible_at <= _now(session)) | (Job.visible_at > later(session, LONGEST_WAIT_SECONDS))
    due = select(Job.id).where(Job.kind == kind, Job.lane == lane, Job.state == "ready", is_due)
    due = due.order_by(Job.visible_at, Job.id).with_for_update(skip_locked=True)
    is_suspect = Job.attempts >= _SUSPECT
    # Suspects first: with steady work they would never have their turn, and each has few turns left
    for picked in (due.where(is_suspect).limit(1), due.where(~is_suspect).limit(limit)):
        rows = _take(session, picked, token, later(session, lease_seconds))
        if rows:
            mine = [Claimed(row.id, row.ref, row.attempts) for row in rows if row.state == "ready"]
            dead = [Claimed(row.id, row.ref, row.attempts) for row in rows if row.state == "failed"]
            return Claim(token, mine, dead)
    return Claim(token, [], [])


def claim_one(session: Session, kind: Kind, ref: int, lease_seconds: float) -> Claim:
    """Take one certain job, if it is ready, even before its time: it has just become possible."""
    token = uuid.uuid4().hex
    picked = select(Job.id).where(Job.kind == kind, Job.ref == ref, Job.state == "ready", Job.token.is_(None))
    if _is_postgresql(session):
        picked = picked.with_for_update(skip_locked=True)
    rows = _take(session, picked, token, later(session, lease_seconds))
    return Claim(token, [Claimed(row.id, row.ref, row.attempts) for row in rows], [])


def _take(session: Session, picked: Any, token: str, until: ColumnElement[float]) -> Sequence[Any]:
    # A CTE and not a subquery of IN: PostgreSQL may run that one more than once and exceed the limit.
    due = picked.cte("due")
    is_hopeless = Job.attempts >= MAX_ATTEMPTS
    statement = (
        update(Job)
        .where(Job.id.in_(select(due.c.id)))
        .values(
            visible_at=until,
            attempts=Job.attempts + 1,
            token=token,
            state=case((is_hopeless, "failed"), else_="ready"),
            error=case((is_hopeless, func.coalesce(Job.error, _DIED)), else_=Job.error),
        )
        .returning(Job.id, Job.ref, Job.attempts, Job.state)
        .execution_options(synchronize_session=False)
    )
    return sorted(session.execute(statement).all(), key=lambda row: int(row.id))


def finish(session: Session, token: str, job_ids: Sequence[int]) -> set[int]:
    """Mark jobs done; return those that were still the holder's, for which alone results may be written."""
    return _settle(session, token, job_ids, state="done", error=None)


def fail(session: Session, token: str, job_ids: Sequence[int], error: str) -> set[int]:
    """Give jobs up, visibly; return those that were still the holder's."""
    return _settle(session, token, job_ids, state="failed", error=error)


def close(session: Session, kind: Kind, refs: Sequence[int], error: str | None = None) -> None:
    """End jobs by what came from outside, done or given up; whoever is at work on them can finish no more."""
    session.execute(
        update(Job)
        .where(Job.kind == kind, Job.ref.in_(refs), Job.state == "ready")
        .values(state="done" if error is None else "failed", token=None, error=error)
        .execution_options(synchronize_session=False)
    )


def postpone(
    session: Session,
    token: str,
    job_ids: Sequence[int],
    seconds: float,
    error: str | None,
    *,
    is_attempt: bool = False,
) -> set[int]:
    """Put jobs off; return those that were still the holder's.

    Unless it `is_attempt`, that was in good order and does not count towards `MAX_ATTEMPTS`.
    """
    attempts = Job.attempts if is_attempt else Job.attempts - 1
    return _settle(
        session, token, job_ids, visible_at=later(session, seconds), attempts=attempts, error=error
    )


def renew(session: Session, token: str, lease_seconds: float) -> int:
    """Prolong the lease of all jobs held under a token; return how many there are."""
    rows = session.execute(
        update(Job)
        .where(Job.token == token, Job.state == "ready")
        .values(visible_at=later(session, lease_seconds))
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )
    return len(rows.all())


def _settle(session: Session, token: str, job_ids: Sequence[int], **values: Any) -> set[int]:
    rows = session.scalars(
        update(Job)
        .where(Job.id.in_(job_ids), Job.token == token, Job.state == "ready")
        .values(**values, token=None)
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )
    return set(rows)


def later(session: Session, seconds: float) -> ColumnElement[float]:
    """Return the moment that many seconds from now, in seconds since the epoch, by the database's clock."""
    return _now(session) + seconds


def insert_or(session: Session, entity: Any) -> Any:
    """Return an INSERT that knows ON CONFLICT, which SQLAlchemy has for each dialect apart."""
    dialect = postgresql if _is_postgresql(session) else sqlite
    return dialect.insert(entity)


def _now(session: Session) -> ColumnElement[float]:
    if _is_postgresql(session):
        # Not now(), which stands still in a transaction
        return cast(extract("epoch", func.clock_timestamp()), Float)
    return (func.julianday("now", type_=Float()) - 2440587.5) * 86400.0


def _is_postgresql(session: Session) -> bool:
    return session.get_bind().dialect.name == "postgresql"
