"""Whether anything changed that people look at, told by one short text."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.models import Instance, Job, Report, Score, Verdict
from db.queue import FAILED, READY


def mark(session: Session) -> str:
    """Return a text that is another one after each change of images, scores, reports, deliveries or verdicts.

    Rows of the first are only added. A delivery that changes its state ends its job or begins one.
    """
    newest = [
        session.execute(select(func.max(entity.id))).scalar_one() or 0
        for entity in (Instance, Score, Report, Verdict)
    ]
    jobs = []
    for state in (READY, FAILED):
        counted = select(Job.kind, func.count()).where(state).group_by(Job.kind).order_by(Job.kind)
        jobs += [number for _, number in session.execute(counted)] + [0]
    return "-".join(map(str, newest + jobs))
