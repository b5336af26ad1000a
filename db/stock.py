"""Which files the spool should hold: to take stock of it, and to remove files that nobody needs any more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, or_, select, update
from sqlalchemy.orm import Session

from db.models import Delivery, Instance, Job, Report, Study
from db.queue import BESIDE_REPORT, Kind, close, enqueue

_AT_ONCE = 500  # images examined at once


@dataclass(frozen=True, kw_only=True)
class Held:
    """One object that the database knows."""

    digest: str
    sop_instance_uid: str
    study_instance_uid: str


def held(session: Session, first: str, last: str) -> dict[str, bool]:
    """Return, by digest, whether the file of each object with ``first <= digest < last`` was removed."""
    rows = session.execute(
        select(Instance.digest, Instance.removed_at.is_not(None)).where(
            Instance.digest >= first, Instance.digest < last
        )
    )
    return {digest: bool(is_removed) for digest, is_removed in rows}


def missed(session: Session, digest: str) -> Held | None:
    """Return an object that should have a file; ``None`` if there is none, or its file was removed."""
    row = session.execute(
        select(Instance.sop_instance_uid, Study.study_instance_uid)
        .join(Study, Study.id == Instance.study_id)
        .where(Instance.digest == digest, Instance.removed_at.is_(None))
    ).first()
    return row and Held(digest=digest, sop_instance_uid=row[0], study_instance_uid=row[1])


def spent(session: Session, before: datetime, limit: int) -> list[int]:
    """Return the ids of studies that got no object since `before` and have no work left.

    Each image is scored, the report is made, and each delivery of each of its revisions is final: delivered,
    and committed where storage commitment was requested. Failed work is not final: a person has yet to look
    at it.
    """
    found: dict[int, None] = {}
    for studies in _old(session, before):
        is_spent = select(Study.id).where(Study.id.in_(studies), *_is_spent(before))
        found |= dict.fromkeys(session.scalars(is_spent.order_by(Study.id)))
        if len(found) >= limit:
            break
    return list(found)[:limit]


def _old(session: Session, before: datetime) -> Iterator[set[int]]:
    """Yield studies with files here that were received before a moment, those with the oldest files first."""
    moment, last = datetime.min.replace(tzinfo=UTC), 0
    while True:
        came_later = or_(Instance.received_at > moment, Instance.id > last)
        files = session.execute(
            select(Instance.study_id, Instance.received_at, Instance.id)
            .where(Instance.removed_at.is_(None), Instance.received_at < before)
            .where(Instance.received_at >= moment, came_later)
            .order_by(Instance.received_at, Instance.id)
            .limit(_AT_ONCE)
        ).all()
        if not files:
            return
        yield {file.study_id for file in files}
        _, moment, last = files[-1]


def release(session: Session, study_id: int, before: datetime, at: datetime) -> list[str]:
    """Mark the files of a study as removed, unless something came or began meanwhile; return their digests.

    The files may be removed only after the commit, each while `lock_released` holds it.
    """
    # Receiving an object of the study waits for this lock; what it committed before is seen below
    session.execute(update(Study).where(Study.id == study_id).values(quiet_at=Study.quiet_at))
    is_still = select(Study.id).where(Study.id == study_id, *_is_spent(before))
    if session.execute(is_still).first() is None:
        return []
    statement = (
        update(Instance)
        .where(Instance.study_id == study_id, Instance.removed_at.is_(None))
        .values(removed_at=at)
        .returning(Instance.id, Instance.digest)
        .execution_options(synchronize_session=False)
    )
    released = session.execute(statement).all()
    close(session, Kind.RESCORE, [row.id for row in released])  # a comparison keeps no file
    return [row.digest for row in released]


def lock_released(session: Session, digests: Sequence[str]) -> set[str]:
    """Return the files that still nobody needs, and keep it so until the end of the transaction."""
    statement = (
        update(Instance)
        .where(Instance.digest.in_(digests), Instance.removed_at.is_not(None))
        .values(removed_at=Instance.removed_at)
        .returning(Instance.digest)
        .execution_options(synchronize_session=False)
    )
    return set(session.scalars(statement))


def _is_spent(before: datetime) -> Iterator[ColumnElement[bool]]:
    is_mine = and_(Delivery.report_id == Report.id, Report.study_id == Study.id)
    yield Study.last_received_at < before
    yield _is_none(Instance.study_id == Study.id, _is_unfinished(Instance.id, Kind.SCORE))
    yield ~_is_unfinished(Study.id, Kind.REPORT)
    yield _is_none(Report.study_id == Study.id, _is_unfinished(Report.id, *BESIDE_REPORT))
    yield _is_none(is_mine, Delivery.state.in_(("pending", "failed")))
    yield _is_none(is_mine, _is_unfinished(Delivery.id, Kind.COMMIT))


def _is_none(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Count the work of a study: if asked only whether there is any, planners may begin with all jobs."""
    return select(func.count()).where(*conditions).correlate(Study).scalar_subquery() == 0


def _is_unfinished(ref: Any, *kinds: Kind) -> ColumnElement[bool]:
    return exists().where(Job.kind.in_(kinds), Job.ref == ref, Job.state != "done")


@dataclass(frozen=True, kw_only=True)
class Unread:
    """One object that an earlier version recorded, without all that is kept of an object today."""

    id: int
    study_id: int
    digest: str
    patient_id: str
    patient_name: str


def unread(session: Session, before_id: int | None, limit: int) -> list[Unread]:
    """Return objects whose file is here and was not read since the upgrade, the newest first."""
    asked = select(
        Instance.id, Instance.study_id, Instance.digest, Instance.patient_id, Instance.patient_name
    )
    asked = asked.where(Instance.patient_sex.is_(None), Instance.removed_at.is_(None))
    if before_id is not None:
        asked = asked.where(Instance.id < before_id)
    rows = session.execute(asked.order_by(Instance.id.desc()).limit(limit))
    return [Unread(**row) for row in rows.mappings()]


def how_many_unread(session: Session) -> int:
    """Count the objects whose file is here and was not read since the upgrade."""
    is_unread = Instance.patient_sex.is_(None), Instance.removed_at.is_(None)
    return session.execute(select(func.count()).select_from(Instance).where(*is_unread)).scalar_one()


def record_read(session: Session, one: Unread, **values: Any) -> None:
    """Record what the file of an object says; where it is another patient, look at its study anew."""
    session.execute(update(Instance).where(Instance.id == one.id).values(**values))
    if (values["patient_id"], values["patient_name"]) != (one.patient_id, one.patient_name):
        enqueue(session, Kind.REPORT, one.study_id)


def is_known(session: Session, digest: str) -> bool:
    """Tell whether an object is now recorded."""
    return session.execute(select(Instance.id).where(Instance.digest == digest)).first() is not None
