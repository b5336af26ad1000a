"""What came of the images of the last minutes, for monitoring; the cost does not grow with the database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from db.models import Delivery, Instance, Job, Report, ReportImage, Score
from db.queue import Kind

_MOST_ROWS = 10_000


@dataclass(frozen=True, kw_only=True)
class Recent:
    """What happened since a moment.

    Attributes
    ----------
    images
        How many came, by sender, decision (``"waiting"`` before there is one) and reason (or ``""``).
    scoring_seconds
        From the reception of an image to its score.
    reporting_seconds
        From the last image that a report states to the report, whose time is in whole seconds.
    delivering_seconds
        From a report to the Success of a destination, by its name.
    """

    images: Mapping[tuple[str, str, str], int]
    scoring_seconds: Sequence[float]
    reporting_seconds: Sequence[float]
    delivering_seconds: Mapping[str, Sequence[float]]


def recent(session: Session, since: datetime) -> Recent:
    """Return what happened since a moment; of more than 10,000 images or reports, the newest ones."""
    any_score = aliased(Score)
    newest = select(func.max(any_score.id)).where(any_score.instance_id == Instance.id).scalar_subquery()
    rows = session.execute(
        select(
            Instance.calling_ae_title,
            Score.decision,
            Score.reason,
            Instance.received_at,
            Score.scored_at,
            Job.state,
        )
        .select_from(Instance)
        .outerjoin(Score, Score.id == newest)
        .outerjoin(Job, (Job.kind == Kind.SCORE) & (Job.ref == Instance.id))
        .where(Instance.received_at >= since)
        .order_by(Instance.received_at.desc())
        .limit(_MOST_ROWS)
    ).all()
    images: Counter[tuple[str, str, str]] = Counter()
    scoring = []
    for sender, decision, reason, received_at, scored_at, state in rows:
        missing = ("not_scored", "SCORING_FAILED") if state == "failed" else ("waiting", "")
        images[sender, *((decision, reason or "") if decision else missing)] += 1
        if scored_at is not None:
            scoring.append(_seconds(received_at, scored_at))
    return Recent(
        images=images,
        scoring_seconds=scoring,
        reporting_seconds=_reporting(session, since),
        delivering_seconds=_delivering(session, since),
    )


def _reporting(session: Session, since: datetime) -> list[float]:
    last = (
        select(func.max(Instance.received_at))
        .join(ReportImage, ReportImage.instance_id == Instance.id)
        .where(ReportImage.report_id == Report.id)
        .scalar_subquery()
    )
    studies = select(Instance.study_id).where(Instance.received_at >= since)
    rows = session.execute(
        select(last, Report.made_at).where(Report.study_id.in_(studies), Report.made_at >= since)
    )
    return [_seconds(came, made_at) for came, made_at in rows if came is not None]


def _delivering(session: Session, since: datetime) -> dict[str, list[float]]:
    studies = select(Instance.study_id).where(Instance.received_at >= since)
    rows = session.execute(
        select(Delivery.destination, Report.made_at, Delivery.delivered_at)
        .join(Report, Report.id == Delivery.report_id)
        .where(Report.study_id.in_(studies), Delivery.delivered_at >= since)
    )
    found: dict[str, list[float]] = {}
    for destination, made_at, delivered_at in rows:
        if delivered_at is not None:
            found.setdefault(destination, []).append(_seconds(made_at, delivered_at))
    return found


def _seconds(first: datetime, last: datetime) -> float:
    return max(0.0, (last - first).total_seconds())
