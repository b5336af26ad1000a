"""How much work there is, for people who look: per hour, per day, how long it waits, what arrived last.

The cost does not grow with the database: each question is answered from an index, or from the newest rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.models import CommitmentWanted, Delivery, Instance, Job, Report, Study, Utc
from db.queue import READY, Kind

_WEEK = timedelta(days=7)
_SAMPLE = 1000  # newest images, for their size
_SINCE: Mapping[Kind, Any] = {
    Kind.SCORE: Instance.received_at,
    Kind.RESCORE: Instance.received_at,
    Kind.REPORT: Study.last_received_at,
    Kind.PAGE: Report.made_at,
    Kind.HEAT_MAP: Report.made_at,
    Kind.DELIVER: Report.made_at,
    Kind.COMMIT: Delivery.delivered_at,
    Kind.CONFIRM: CommitmentWanted.asked_at,
}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """How much there is to do.

    Attributes
    ----------
    hours
        Images that came in each of the last 24 hours: when it began, and how many.
    daily_bytes
        What comes to the spool in a day, by the last week; ``None`` before anything came.
    oldest
        Since when the oldest ready job of a kind waits.
    delivered
        When each destination last accepted an object.
    """

    hours: Sequence[tuple[datetime, int]]
    daily_bytes: float | None
    oldest: Mapping[str, datetime]
    delivered: Mapping[str, datetime]


def workload(session: Session, destinations: Sequence[str], at: datetime) -> Workload:
    """Return how much there is to do."""
    this_hour = at.replace(minute=0, second=0, microsecond=0)
    starts = [this_hour - timedelta(hours=back) for back in range(23, -1, -1)]
    oldest = {kind: _oldest(session, kind) for kind in Kind}
    delivered = {name: _last_delivered(session, name) for name in destinations}
    return Workload(
        hours=[(start, _received(session, start, start + timedelta(hours=1))) for start in starts],
        daily_bytes=_daily_bytes(session, at),
        oldest={kind: moment for kind, moment in oldest.items() if moment},
        delivered={name: moment for name, moment in delivered.items() if moment},
    )


def _received(session: Session, first: datetime, until: datetime) -> int:
    counted = select(func.count()).where(Instance.received_at >= first, Instance.received_at < until)
    return int(session.execute(counted).scalar_one())


def _daily_bytes(session: Session, at: datetime) -> float | None:
    newest = select(Instance.size).order_by(Instance.received_at.desc()).limit(_SAMPLE).subquery()
    size = session.execute(select(func.avg(newest.c.size))).scalar_one()
    first = session.execute(select(func.min(Instance.received_at, type_=Utc()))).scalar_one()
    if size is None or first is None:
        return None
    days = min(_WEEK, max(at - first, timedelta(hours=1))) / timedelta(days=1)
    return float(size) * _received(session, at - _WEEK, at) / days


def _oldest(session: Session, kind: Kind) -> datetime | None:
    """Return since when the oldest job waits; of a long queue, of the jobs that came first."""
    since = _SINCE[kind]
    refs = select(Job.ref).where(Job.kind == kind, READY).order_by(Job.id).limit(_SAMPLE).scalar_subquery()
    asked = select(func.min(since, type_=Utc()))
    if kind is Kind.DELIVER:
        asked = asked.join(Delivery, Delivery.report_id == Report.id).where(Delivery.id.in_(refs))
    else:
        asked = asked.where(since.class_.id.in_(refs))
    found: datetime | None = session.execute(asked).scalar_one()
    return found


def _last_delivered(session: Session, destination: str) -> datetime | None:
    arrived = (Delivery.destination == destination) & Delivery.state.in_(("delivered", "committed"))
    return session.scalars(
        select(Delivery.delivered_at).where(arrived).order_by(Delivery.id.desc()).limit(1)
    ).first()
