"""What the node knows of given images and studies, for comparison with what a PACS lists."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from db.models import Delivery, Instance, Job, Report, ReportImage, Score, Study
from db.queue import Kind

_MOST_IN = 500  # values in one IN list; SQLite allows 32,766 in a statement


@dataclass(frozen=True, kw_only=True)
class Known:
    """One received image: the first object with its SOP Instance UID.

    Attributes
    ----------
    is_removed
        Whether retention removed its file.
    job_state, job_error
        State of the scoring job (ready, done or failed) and its last error; ``None`` without a job.
    """

    digest: str
    is_removed: bool
    is_scored: bool
    job_state: str | None
    job_error: str | None


@dataclass(frozen=True, kw_only=True)
class SentReport:
    """State of a report at one destination, and the UID under which it was sent there, if it was."""

    destination: str
    state: str
    sop_instance_uid: str | None
    error: str | None


@dataclass(frozen=True, kw_only=True)
class Reported:
    """What became of a study from which images were received.

    Attributes
    ----------
    unscored
        Images that are still to be scored; images whose scoring was given up do not count.
    unreported
        Images that the newest report does not state: all images where there is no report.
    report_uid
        SOP Instance UID of the newest report; ``None`` if there is none.
    sent
        The deliveries of the newest report.
    job_state, job_error
        State of the report job (ready, done or failed) and its last error; ``None`` without a job.
    """

    unscored: int
    unreported: int
    report_uid: str | None
    sent: Sequence[SentReport]
    job_state: str | None
    job_error: str | None


def known(session: Session, sop_instance_uids: Collection[str]) -> dict[str, Known]:
    """Return which of these images were received, by SOP Instance UID."""
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
    """Return what became of a study; ``None`` if none of its images was received.

    Parameters
    ----------
    sop_classes
        SOP classes of images that are reported; other objects do not count.
    uncounted
        Reasons for which an object does not count either, such as a heat map from another program.
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
    mine = (Delivery.report_id == report_id) & (Delivery.result == "report")
    rows = session.scalars(select(Delivery).where(mine).order_by(Delivery.id))
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
