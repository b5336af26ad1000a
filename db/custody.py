"""What files the spool should hold: for taking stock of it, and for letting go what nobody needs any more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, exists, select, update
from sqlalchemy.orm import Session

from db.models import Delivery, Instance, Job, Report, Study
from db.queue import Kind


@dataclass(frozen=True, kw_only=True)
class Held:
    """One object that the database knows."""

    digest: str
    sop_instance_uid: str
    study_instance_uid: str
    is_removed: bool


def held(session: Session, first: str, last: str) -> dict[str, Held]:
    """Return the objects with ``first <= digest < last``, by digest."""
    rows = session.execute(
        select(Instance.digest, Instance.sop_instance_uid, Study.study_instance_uid, Instance.removed_at)
        .join(Study, Study.id == Instance.study_id)
        .where(Instance.digest >= first, Instance.digest < last)
    )
    return {
        digest: Held(
            digest=digest, sop_instance_uid=uid, study_instance_uid=study, is_removed=removed is not None
        )
        for digest, uid, study, removed in rows
    }


def spent(session: Session, before: datetime, limit: int) -> list[int]:
    """Return the ids of studies that nothing came of since `before` and of which nothing is left to be done.

    Each image is scored, the report made, and each delivery of each of its revisions final: delivered, and
    committed where the destination was asked to. What failed is not final: a person has yet to look.
    """
    has_files = exists().where(Instance.study_id == Study.id, Instance.removed_at.is_(None))
    statement = select(Study.id).where(has_files, *_is_spent(before)).order_by(Study.id).limit(limit)
    return list(session.scalars(statement))


def release(session: Session, study_id: int, before: datetime, at: datetime) -> list[str]:
    """Let go of the files of a study, unless something came or began meanwhile; return their digests.

    Only after the commit may they be removed, each while `lock_released` holds it.
    """
    # Receiving an object of the study waits for this, and what it committed before is seen below
    session.execute(update(Study).where(Study.id == study_id).values(quiet_at=Study.quiet_at))
    is_still = select(Study.id).where(Study.id == study_id, *_is_spent(before))
    if session.execute(is_still).first() is None:
        return []
    statement = (
        update(Instance)
        .where(Instance.study_id == study_id, Instance.removed_at.is_(None))
        .values(removed_at=at)
        .returning(Instance.digest)
        .execution_options(synchronize_session=False)
    )
    return list(session.scalars(statement))


def lock_released(session: Session, digests: Sequence[str]) -> set[str]:
    """Return which of the files nobody needs, even now, and keep it so until the end of the transaction."""
    statement = (
        update(Instance)
        .where(Instance.digest.in_(digests), Instance.removed_at.is_not(None))
        .values(removed_at=Instance.removed_at)
        .returning(Instance.digest)
        .execution_options(synchronize_session=False)
    )
    return set(session.scalars(statement))


def _is_spent(before: datetime) -> Iterator[ColumnElement[bool]]:
    scoring = exists().where(
        Instance.study_id == Study.id, Job.kind == Kind.SCORE, Job.ref == Instance.id, Job.state != "done"
    )
    reporting = exists().where(Job.kind == Kind.REPORT, Job.ref == Study.id, Job.state != "done")
    is_mine = and_(Delivery.report_id == Report.id, Report.study_id == Study.id)
    delivering = exists().where(is_mine, Delivery.state.in_(("pending", "failed")))
    committing = exists().where(is_mine, Job.kind == Kind.COMMIT, Job.ref == Delivery.id, Job.state != "done")
    yield Study.last_received_at < before
    yield from (~unfinished for unfinished in (scoring, reporting, delivering, committing))


def should_be_there(session: Session, digest: str) -> bool:
    """Tell whether an object should have a file now."""
    statement = select(Instance.id).where(Instance.digest == digest, Instance.removed_at.is_(None))
    return session.execute(statement).first() is not None


def is_known(session: Session, digest: str) -> bool:
    """Tell whether an object is recorded now."""
    return session.execute(select(Instance.id).where(Instance.digest == digest)).first() is not None
