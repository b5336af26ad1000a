"""The work queue: rows of `Job` that are claimed for a time and finished by whoever still holds them.

Time is the clock of the database server, so that leases mean the same on every machine.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Dialect,
    Float,
    Integer,
    bindparam,
    case,
    cast,
    extract,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from db.models import Job
from db.prepared import Prepared

MAX_ATTEMPTS = 5
_MAX_ATTEMPTS_AT_SENDING = 50  # no report can kill a process; repeated deaths have another cause
LONGEST_WAIT_SECONDS = 3000.0
"""No machine may put off a job for longer, for whatever reason."""

# Literal, in the words of the partial indexes: planners do not look into bound parameters
READY: ColumnElement[bool] = Job.state == literal_column("'ready'")
FAILED: ColumnElement[bool] = Job.state == literal_column("'failed'")
# After this many attempts a job is claimed alone, so that other jobs cannot fail with it
_SUSPECT: ColumnElement[int] = literal_column("2")


class Kind(StrEnum):
    """What is to be done, and what `Job.ref` is the id of."""

    SCORE = "score"  # an instance
    RESCORE = "rescore"  # an instance: score it once more, for comparison; its lane names the model
    REPORT = "report"  # a study
    PAGE = "page"  # a report: show it on a page
    HEAT_MAP = "heatmap"  # a report: draw the heat maps that it refers to
    DELIVER = "deliver"  # a delivery
    COMMIT = "commit"  # a delivery: ask the destination to promise that it keeps the report
    CONFIRM = "confirm"  # a storage commitment request: tell the modality what is kept here


BESIDE_REPORT = (Kind.PAGE, Kind.HEAT_MAP)
"""What is made of a report after it, for destinations that want more."""

_MAY_KILL = (Kind.SCORE, Kind.RESCORE, Kind.REPORT, *BESIDE_REPORT)


@dataclass(frozen=True)
class Claimed:
    """One claimed job."""

    id: int
    ref: int
    attempts: int


@dataclass(frozen=True)
class Claim:
    """Jobs that this worker holds until the lease ends, and jobs given up because workers died of them."""

    token: str
    jobs: Sequence[Claimed]
    given_up: Sequence[Claimed]


def enqueue(session: Session, kind: Kind, ref: int, *, lane: str = "", wait_seconds: float = 0.0) -> None:
    """Add a job, or make an existing one ready again; a worker that holds it can no longer finish it."""
    values = {"of_kind": kind, "of_ref": ref, "in_lane": lane, "wait_seconds": wait_seconds}
    connection = session.connection()
    _enqueue(connection.dialect).run(connection, **values)


@lru_cache(maxsize=8)
def _enqueue(dialect: Dialect) -> Prepared:
    is_postgresql = dialect.name == "postgresql"
    fresh = {
        "lane": bindparam("in_lane"),
        "state": "ready",
        "visible_at": clock(is_postgresql) + bindparam("wait_seconds", type_=Float()),
        "attempts": 0,
        "token": None,
        "error": None,
    }
    table: Any = Job.__table__
    statement = insert_for(is_postgresql, table).values(
        kind=bindparam("of_kind"), ref=bindparam("of_ref"), **fresh
    )
    return Prepared(
        statement.on_conflict_do_update(index_elements=[table.c.kind, table.c.ref], set_=fresh), dialect
    )


def revive(session: Session, kind: Kind, ref: int) -> None:
    """Make a job that was given up ready again: its object was received once more."""
    session.execute(
        update(Job)
        .where(Job.kind == kind, Job.ref == ref, Job.state == "failed")
        .values(state="ready", visible_at=later(session, 0), attempts=0, token=None, error=None)
        .execution_options(synchronize_session=False)
    )


def wake(session: Session, kind: Kind, refs: Any, visible_at: Any) -> None:
    """Make jobs ready from `visible_at` on; workers that hold them can no longer finish them."""
    session.execute(
        update(Job)
        .where(Job.kind == kind, Job.ref.in_(refs))
        .values(state="ready", visible_at=visible_at, attempts=0, token=None)
        .execution_options(synchronize_session=False)
    )


def is_any_due(connection: Connection, kind: Kind, lane: str) -> bool:
    """Tell whether `claim` would find something; idle workers ask this many times a second."""
    return any(_is_any(connection, kind, lane))


def _is_any(connection: Connection, kind: Kind, lane: str) -> tuple[bool, bool]:
    """Tell whether any job is due, and whether any went astray (see `_due`)."""
    ((due, stray),) = _asking(connection.dialect).run(connection, of_kind=kind, in_lane=lane)
    return bool(due), bool(stray)


def claim(session: Session, kind: Kind, lane: str, *, limit: int, lease_seconds: float) -> Claim:
    """Claim the jobs that have waited longest.

    Parameters
    ----------
    limit
        The largest number of jobs; a job that outlived several workers comes alone.
    lease_seconds
        After this time another worker may take them.
    """
    connection = session.connection()
    statements = _claiming(is_postgresql(session))
    where = {"of_kind": kind, "in_lane": lane}
    due, stray = _is_any(connection, kind, lane)
    if stray:
        connection.execute(statements.call_back, where)
    elif not due:
        return Claim("", [], [])
    token = uuid.uuid4().hex
    values = {**where, **_limits(kind), "by_token": token, "lease_seconds": lease_seconds}
    # Suspects first: under steady load they would never get a turn, and each has few turns left
    for statement, most in ((statements.take_suspects, 1), (statements.take_others, limit)):
        rows = connection.execute(statement, {**values, "most": most}).all()
        if rows:
            return _claim(token, rows)
    return Claim(token, [], [])


def claim_one(session: Session, kind: Kind, ref: int, lease_seconds: float) -> Claim:
    """Claim one given job if it is ready, even before its time, because it can now be done."""
    token = uuid.uuid4().hex
    statement = _claiming(is_postgresql(session)).take_one
    where = {"of_kind": kind, "of_ref": ref}
    values = {**where, **_limits(kind), "by_token": token, "lease_seconds": lease_seconds}
    return _claim(token, session.connection().execute(statement, values).all())


def max_attempts(kind: Kind) -> int:
    """Return how many workers may die of a job before the node gives it up."""
    return MAX_ATTEMPTS if kind in _MAY_KILL else _MAX_ATTEMPTS_AT_SENDING


def _limits(kind: Kind) -> dict[str, Any]:
    most = max_attempts(kind)
    return {"most_attempts": most, "died": f"The worker died {most} times at this"}


def _claim(token: str, rows: Sequence[Any]) -> Claim:
    rows = sorted(rows, key=lambda row: int(row.id))
    mine = [Claimed(row.id, row.ref, row.attempts) for row in rows if row.state == "ready"]
    dead = [Claimed(row.id, row.ref, row.attempts) for row in rows if row.state == "failed"]
    return Claim(token, mine, dead)


@dataclass(frozen=True)
class _Claiming:
    """The statements of `claim`, built once."""

    call_back: Any
    take_suspects: Any
    take_others: Any
    take_one: Any


@lru_cache(maxsize=8)
def _asking(dialect: Dialect) -> Prepared:
    due, stray = _waiting(dialect.name == "postgresql")
    return Prepared(select(due.exists(), stray.exists()), dialect)


def _waiting(is_postgresql: bool) -> tuple[Any, Any]:
    """Return the jobs of a kind and lane that are due, and the jobs that went astray.

    A job went astray if it is put off for longer than any job may be: the clock has jumped back since.
    """
    job: Any = Job.__table__.c
    # As a subquery it is one value for the whole statement, which PostgreSQL can look up in an index
    now = select(clock(is_postgresql)).scalar_subquery()
    is_ready = (job.kind == bindparam("of_kind")) & READY
    waiting = select(job.id).where(is_ready, job.lane == bindparam("in_lane"))
    return waiting.where(job.visible_at <= now), waiting.where(job.visible_at > now + LONGEST_WAIT_SECONDS)


@cache
def _claiming(is_postgresql: bool) -> _Claiming:
    job: Any = Job.__table__.c
    is_ready = (job.kind == bindparam("of_kind")) & READY
    due, stray = _waiting(is_postgresql)
    picked = due.order_by(job.visible_at, job.id).limit(bindparam("most", type_=Integer()))
    is_suspect = job.attempts >= _SUSPECT
    one = select(job.id).where(is_ready, job.ref == bindparam("of_ref"), job.token.is_(None))
    return _Claiming(
        call_back=_change(stray, is_postgresql).values(visible_at=clock(is_postgresql)),
        take_suspects=_take(picked.where(is_suspect), is_postgresql),
        take_others=_take(picked.where(~is_suspect), is_postgresql),
        take_one=_take(one, is_postgresql),
    )


def _change(picked: Any, is_postgresql: bool) -> Any:
    """Return an UPDATE of the picked jobs that no other worker takes at this moment."""
    if is_postgresql:  # SQLite has one writer at a time
        picked = picked.with_for_update(skip_locked=True)
    # A CTE and not a subquery of IN: PostgreSQL may run that one more than once and exceed the limit.
    due = picked.cte("due")
    table: Any = Job.__table__
    return update(table).where(table.c.id.in_(select(due.c.id)))


def _take(picked: Any, is_postgresql: bool) -> Any:
    """Return the statement that claims the picked jobs and gives up those that killed too many workers."""
    table: Any = Job.__table__
    is_hopeless = table.c.attempts >= bindparam("most_attempts", type_=Integer())
    died = func.coalesce(table.c.error, bindparam("died"))
    return (
        _change(picked, is_postgresql)
        .values(
            visible_at=clock(is_postgresql) + bindparam("lease_seconds", type_=Float()),
            attempts=table.c.attempts + 1,
            token=bindparam("by_token"),
            state=case((is_hopeless, "failed"), else_="ready"),
            error=case((is_hopeless, died), else_=table.c.error),
        )
        .returning(table.c.id, table.c.ref, table.c.attempts, table.c.state)
    )


def finish(session: Session, token: str, job_ids: Sequence[int]) -> set[int]:
    """Mark jobs done; return those that were still held. Only for these may results be written."""
    return _settle(session, token, job_ids, state="done", error=None)


def fail(session: Session, token: str, job_ids: Sequence[int], error: str) -> set[int]:
    """Give up jobs with a visible error; return those that were still held."""
    return _settle(session, token, job_ids, state="failed", error=error)


def close(session: Session, kind: Kind, refs: Sequence[int], error: str | None = None) -> None:
    """End jobs, as done or given up, by a cause from outside; workers that hold them can no longer finish
    them.
    """
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
    """Put jobs off; return those that were still held.

    Without `is_attempt`, the postponement is in good order and does not count towards `max_attempts`.
    """
    attempts = Job.attempts if is_attempt else Job.attempts - 1
    return _settle(
        session, token, job_ids, visible_at=later(session, seconds), attempts=attempts, error=error
    )


def renew(session: Session, token: str, lease_seconds: float) -> int:
    """Extend the lease of all jobs held under a token; return how many there are."""
    rows = session.execute(
        update(Job)
        .where(Job.token == token, READY)
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
    """Return the moment `seconds` from now, in seconds since the epoch by the database's clock."""
    return clock(is_postgresql(session)) + seconds


def insert_or(session: Session, entity: Any) -> Any:
    """Return an INSERT that supports ON CONFLICT, which SQLAlchemy has separately for each dialect."""
    return insert_for(is_postgresql(session), entity)


def insert_for(is_postgresql: bool, entity: Any) -> Any:
    """Return such an INSERT for a statement that is built once."""
    return (postgresql if is_postgresql else sqlite).insert(entity)


def clock(is_postgresql: bool) -> ColumnElement[float]:
    """Return the time of the database's clock, in seconds since the epoch."""
    if is_postgresql:
        # Not now(): it does not advance during a transaction
        return cast(extract("epoch", func.clock_timestamp()), Float)
    return (func.julianday("now", type_=Float()) - 2440587.5) * 86400.0


def is_postgresql(session: Session) -> bool:
    return session.get_bind().dialect.name == "postgresql"
