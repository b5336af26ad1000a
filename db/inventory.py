"""What the node has of given images and studies, for comparing it with what a PACS lists."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from db.models import Delivery, Instance, Job, Report, ReportImage, Score, Study
from db.queue import Kind

_MOST_IN = 500  # values of one IN; SQLite allows 32,766 in a statement


@dataclass(frozen=True, kw_only=True)
class Known:
    """One received image: the first object that came under its SOP Instance UID.

    Attributes
    ----------
    is_removed
        Whether retention let its file go.
    job_state, job_error
        Of its scoring: ready, done or failed, and what went wrong last; ``None`` without job.
    """

    digest: str
    is_removed: bool
    is_scored: bool
    job_state: str | None
    job_error: str | None


@dataclass(frozen=True, kw_only=True)
class SentReport:
    """How one destination stands to a report, and the UID under which it got it where it got it."""

    destination: str
    state: str
    sop_instance_uid: str | None
    error: str | None


@dataclass(frozen=True, kw_only=True)
class Reported:
    """What became of a study of which images were received.

    Attributes
    ----------
    unscored
        Images whose scoring is still to come; those of which it was given up are not among them.
    unreported
        Images that the newest report does not state, which are all where there is no report.
    report_uid
        SOP Instance UID of the newest report; ``None`` where there is none.
    sent
        Its deliveries.
    job_state, job_error
        Of its reporting: ready, done or failed, and what went wrong last; ``None`` without job.
    """

    unscored: int
    unreported: int
    report_uid: str | None
    sent: Sequence[SentReport]
    job_state: str | None
    job_error: str | None


def known(session: Session, sop_instance_uids: Collection[str]) -> dict[str, Known]:
    """Return what was received of these images, by SOP Instance UID."""
    scored = exists().where(Score.instance_id == Instance.id).label("is_scored")
    asked = (
        select(Instance.sop_instance_uid, Instance.digest, Instance.removed_at, scored, Job.state, Job.error)
        .outerjoin(Job, (Job.kind == Kind.SCORE) & (Job.ref == Instance.id))
        .where(Instance.copy == 0)
    )
    return {
        uid: Known(
            digest=digest,
            is_removed=removed_at is not None,
            is_scored=bool(is_scored),
            job_state=state,
            job_error=error,
        )
        for some in _batches(sop_instance_uids)
        for uid, digest, removed_at, is_scored, state, error in session.execute(
            asked.where(Instance.sop_instance_uid.in_(some))
        )
    }


def reported(
    session: Session,
    study_instance_uid: str,
    sop_classes: Collection[str],
    uncounted: Collection[str] = (),
) -> Reported | None:
    """Return what became of a study; ``None`` where none of its images was received.

    Parameters
    ----------
    sop_classes
        Of the images for which a report is made; others do not count.
    uncounted
        Reasons of objects that do not count either, such as the heat maps of other programs.
    """
    study_id = session.scalars(
        select(Study.id).where(Study.study_instance_uid == study_instance_uid)
    ).one_or_none()
    mine = (Instance.study_id == study_id) & Instance.sop_class_uid.in_(sop_classes)
    if uncounted:
        mine &= ~exists().where(Score.instance_id == Instance.id, Score.reason.in_(uncounted))
    images = set(session.scalars(select(Instance.id).where(mine)))
    if study_id is None or not images:
        return None
    waiting = (
        select(func.count())
        .select_from(Instance)
        .join(Job, (Job.kind == Kind.SCORE) & (Job.ref == Instance.id))
        .where(mine, Job.state == "ready", ~exists().where(Score.instance_id == Instance.id))
    )
    newest = session.execute(
        select(Report.id, Report.sop_instance_uid)
        .where(Report.study_id == study_id)
        .order_by(Report.revision.desc())
        .limit(1)
    ).one_or_none()
    job = session.execute(
        select(Job.state, Job.error).where(Job.kind == Kind.REPORT, Job.ref == study_id)
    ).one_or_none()
    return Reported(
        unscored=session.execute(waiting).scalar_one(),
        unreported=len(images - (_stated(session, newest.id) if newest else set())),
        report_uid=newest.sop_instance_uid if newest else None,
        sent=_sent(session, newest.id) if newest else (),
        job_state=job.state if job else None,
        job_error=job.error if job else None,
    )


def _stated(session: Session, report_id: int) -> set[int]:
    return set(session.scalars(select(ReportImage.instance_id).where(ReportImage.report_id == report_id)))


def _sent(session: Session, report_id: int) -> list[SentReport]:
    rows = session.scalars(select(Delivery).where(Delivery.report_id == report_id).order_by(Delivery.id))
    return [
        SentReport(
            destination=row.destination,
            state=row.state,
            sop_instance_uid=row.sop_instance_uid,
            error=row.error,
        )
        for row in rows
    ]


def _batches(values: Collection[str]) -> Iterator[list[str]]:
    ordered = sorted(values)
    for start in range(0, len(ordered), _MOST_IN):
        yield ordered[start : start + _MOST_IN]
