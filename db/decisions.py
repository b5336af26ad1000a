"""Decisions on studies that reports of an earlier version state, and the database did not record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import literal_column, select, update
from sqlalchemy.orm import Session

from db.models import Report

# In the words of the partial index
_UNREAD = Report.decision.is_(literal_column("NULL"))


def unread(session: Session, after: int, limit: int) -> Sequence[tuple[int, bytes]]:
    """Return id and bytes of reports whose decision is not recorded, in the order of their ids."""
    asked = select(Report.id, Report.content).where(_UNREAD, Report.id > after)
    rows = session.execute(asked.order_by(Report.id).limit(limit))
    return [(report_id, content) for report_id, content in rows]


def record(session: Session, decisions: Mapping[int, str]) -> None:
    """Record what reports decide, by their ids."""
    for report_id, decision in decisions.items():
        session.execute(update(Report).where(Report.id == report_id).values(decision=decision))
