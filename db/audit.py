"""Who did what, when, and from where; rows are only ever added."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import insert
from sqlalchemy.orm import Session

from db.models import Audit

_LONGEST = 2000  # characters of a detail


def record(
    session: Session,
    action: str,
    *,
    person: str,
    address: str,
    at: datetime,
    study_id: int | None = None,
    detail: str = "",
) -> None:
    """Record that a person did something.

    Parameters
    ----------
    address
        Network address, or ``console`` for commands.
    detail
        What was asked for, or to whom it was done.
    """
    values = {"action": action, "person": person, "address": address[:64], "study_id": study_id, "at": at}
    session.execute(insert(Audit).values({**values, "detail": detail.replace("\0", "")[:_LONGEST]}))
