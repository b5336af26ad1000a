"""What operators of the node ask: how much there is, what waits, what failed, which processes run.

Also what they order: try again, give up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, literal, or_, select, text, update
from sqlalchemy.orm import Session

from db.models import (
    CommitmentWanted,
    Delivery,
    Instance,
    Job,
    Process,
    Report,
    Score,
    Study,
    StudyProblem,
    Utc,
)
from db.queue import BESIDE_REPORT, FAILED, READY, Kind, close, enqueue, is_postgresql, later

_COUNTABLE = 100_000  # rows


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Number of rows of each kind, and of jobs by state; counted as fast in a large database.

    Attributes
    ----------
    jobs
        Jobs by kind and state. Finished jobs of storage commitment are not counted.
    deliveries
        Reports not delivered, by destination and state: pending or failed.
    is_estimate
        Whether totals and counts of finished work are estimates, as for PostgreSQL above 100,000 rows.
    """

    studies: int
    instances: int
    scores: int
    reports: int
    jobs: Mapping[tuple[str, str], int]
    deliveries: Mapping[tuple[str, str], int]
    is_estimate: bool = False


def counts(session: Session) -> Counts:
    """Return counts by state."""
    total = {entity: _total(session, entity) for entity in (Study, Instance, Score, Report, Delivery)}
    jobs = {(kind, "ready"): number for kind, number in _grouped(session, Job.kind, READY)}
    jobs |= {(kind, "failed"): number for kind, number in _grouped(session, Job.kind, FAILED)}
    for kind, entity in ((Kind.SCORE, Instance), (Kind.REPORT, Study), (Kind.DELIVER, Delivery)):
        open_ = jobs.get((kind, "ready"), 0) + jobs.get((kind, "failed"), 0)
        if done := max(0, total[entity].rows - open_):  # each has one job
            jobs[kind, "done"] = done
    return Counts(
        studies=total[Study].rows,
        instances=total[Instance].rows,
        scores=total[Score].rows,
        reports=total[Report].rows,
        jobs=jobs,
        deliveries={
            (destination, state): number
            for state in ("failed", "pending")
            for destination, number in _grouped(session, Delivery.destination, Delivery.state == state)
        },
        is_estimate=any(one.is_estimate for one in total.values()),
    )


@dataclass(frozen=True)
class _Total:
    rows: int
    is_estimate: bool


def _total(session: Session, entity: Any) -> _Total:
    """Return the number of rows of a table from which none is ever removed, without reading them all."""
    if not is_postgresql(session):
        return _Total(session.execute(select(func.max(entity.id))).scalar_one() or 0, False)
    # Estimated as the planner does; ids have gaps here
    known = text(
        "SELECT reltuples / GREATEST(relpages, 1) * pg_relation_size(oid)"
        " / CAST(current_setting('block_size') AS integer)"
        " FROM pg_class WHERE oid = CAST(:name AS regclass)"
    )
    estimate = round(session.execute(known, {"name": entity.__tablename__}).scalar_one())
    if estimate > _COUNTABLE:
        return _Total(estimate, True)
    return _Total(session.execute(select(func.count()).select_from(entity)).scalar_one(), False)


def _grouped(session: Session, key: Any, condition: Any) -> list[tuple[str, int]]:
    rows = session.execute(select(key, func.count()).where(condition).group_by(key).order_by(key))
    return [(row[0], row[1]) for row in rows]


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """The study whose images have waited longest for a score."""

    study_instance_uid: str
    received_at: datetime


def oldest_waiting(session: Session) -> Waiting | None:
    """Return the oldest image without a score whose job is not given up."""
    statement = (
        select(Study.study_instance_uid, Instance.received_at)
        .join(Instance, Instance.study_id == Study.id)
        .join(Job, (Job.kind == Kind.SCORE) & (Job.ref == Instance.id))
        .where(READY)
        .order_by(Instance.received_at)
        .limit(1)
    )
    row = session.execute(statement).first()
    return None if row is None else Waiting(study_instance_uid=row[0], received_at=row[1])


@dataclass(frozen=True, kw_only=True)
class Undelivered:
    """Reports that one destination has not yet got, and its answer to the last try."""

    destination: str
    reports: int
    tries: int  # the largest number for one report
    since: datetime  # when the oldest of them was made
    error: str | None


def undelivered(session: Session) -> list[Undelivered]:
    """Return what waits for each destination."""
    pending = Delivery.state == "pending"
    statement = (
        select(
            Delivery.destination,
            func.count(),
            func.max(Delivery.tries),
            func.min(Report.made_at, type_=Utc()),
        )
        .join(Report, Report.id == Delivery.report_id)
        .where(pending)
        .group_by(Delivery.destination)
        .order_by(Delivery.destination)
    )
    found = []
    for name, number, tries, since in session.execute(statement).all():
        last = select(Delivery.error).where(pending, Delivery.destination == name, Delivery.tries > 0)
        error = session.scalars(last.order_by(Delivery.updated_at.desc()).limit(1)).first()
        found.append(Undelivered(destination=name, reports=number, tries=tries, since=since, error=error))
    return found


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One job that was given up; `lane` names the destination or modality, if there is one."""

    kind: str
    lane: str
    study_instance_uid: str
    error: str


def failures(session: Session, limit: int) -> list[Failure]:
    """Return the newest jobs that were given up."""
    asked = select(Job.kind, Job.lane, Study.study_instance_uid, Job.error, Job.id).select_from(Job)
    scored = asked.join(Instance, Instance.id == Job.ref).join(Study, Study.id == Instance.study_id)
    compared = select(Job.kind, literal(""), Study.study_instance_uid, Job.error, Job.id).select_from(Job)
    compared = compared.join(Instance, Instance.id == Job.ref).join(Study, Study.id == Instance.study_id)
    reported = asked.join(Study, Study.id == Job.ref)
    drawn = asked.join(Report, Report.id == Job.ref).join(Study, Study.id == Report.study_id)
    delivered = asked.join(Delivery, Delivery.id == Job.ref).join(Report, Report.id == Delivery.report_id)
    delivered = delivered.join(Study, Study.id == Report.study_id)
    confirmed = select(Job.kind, CommitmentWanted.calling_ae_title, literal(""), Job.error, Job.id).join(
        CommitmentWanted, CommitmentWanted.id == Job.ref
    )
    found: list[Any] = []
    for kind, statement in (
        (Kind.SCORE, scored),
        (Kind.RESCORE, compared),
        (Kind.REPORT, reported),
        *((kind, drawn) for kind in BESIDE_REPORT),
        (Kind.DELIVER, delivered),
        (Kind.COMMIT, delivered),
        (Kind.CONFIRM, confirmed),
    ):
        failed = statement.where(Job.kind == kind, FAILED)
        found += session.execute(failed.order_by(Job.id.desc()).limit(limit))
    found.sort(key=lambda row: -int(row.id))
    return [
        Failure(kind=kind, lane=lane, study_instance_uid=uid, error=error or "")
        for kind, lane, uid, error, _ in found[:limit]
    ]


@dataclass(frozen=True, kw_only=True)
class ProblemStudies:
    """How many studies get no report before a person has done something, and which was found first."""

    problem: str
    studies: int
    study_instance_uid: str


def problem_studies(session: Session) -> list[ProblemStudies]:
    """Return studies that get no report, by what prevents it; not those that a person dismissed."""
    is_open = StudyProblem.dismissed_at.is_(None)
    numbers = session.execute(
        select(StudyProblem.problem, func.count()).where(is_open).group_by(StudyProblem.problem)
    ).all()
    oldest = (
        select(Study.study_instance_uid)
        .join(StudyProblem, StudyProblem.study_id == Study.id)
        .order_by(StudyProblem.found_at, Study.id)
        .limit(1)
    )
    return [
        ProblemStudies(
            problem=problem,
            studies=number,
            study_instance_uid=session.scalars(oldest.where(is_open, StudyProblem.problem == problem)).one(),
        )
        for problem, number in sorted((row[0], row[1]) for row in numbers)
    ]


def dismiss(session: Session, study_instance_uid: str, at: datetime) -> bool:
    """Let a study be without report, until something comes of it; tell whether anything prevented one."""
    study = select(Study.id).where(Study.study_instance_uid == study_instance_uid)
    dismissed = session.scalars(
        update(StudyProblem)
        .where(StudyProblem.study_id.in_(study), StudyProblem.dismissed_at.is_(None))
        .values(dismissed_at=at)
        .returning(StudyProblem.study_id)
        .execution_options(synchronize_session=False)
    ).all()
    session.execute(
        update(Job)
        .where(Job.kind == Kind.REPORT, Job.ref.in_(dismissed), FAILED)
        .values(state="done", error=None)
        .execution_options(synchronize_session=False)
    )
    return bool(dismissed)


def retry(session: Session, study_instance_uid: str | None, give_up_at: datetime) -> int:
    """Make failed jobs ready again, all of them or those of one study; return how many."""
    conditions = [FAILED]
    if study_instance_uid is not None:
        conditions.append(_belongs_to(study_instance_uid))
    revived = session.execute(
        update(Job)
        .where(*conditions)
        .values(state="ready", visible_at=later(session, 0), attempts=0, token=None, error=None)
        .returning(Job.kind, Job.ref)
        .execution_options(synchronize_session=False)
    ).all()
    refs = {kind: [ref for of, ref in revived if of == kind] for kind in Kind}
    for where, entity, values in (
        (Delivery.id.in_(refs[Kind.DELIVER]), Delivery, {"state": "pending", "tries": 0}),
        (Delivery.id.in_(refs[Kind.COMMIT]), Delivery, {}),
        (CommitmentWanted.id.in_(refs[Kind.CONFIRM]), CommitmentWanted, {}),
    ):
        session.execute(update(entity).where(where).values(**values, give_up_at=give_up_at))
    return len(revived)


def resend(
    session: Session,
    study_instance_uid: str,
    give_up_at: datetime,
    at: datetime,
    *,
    destinations: Collection[str] | None = None,
    results: Collection[str] | None = None,
) -> int:
    """Send the newest report of a study once more, with the same bytes; return how many objects will be sent.

    What still waits is left as it is, and so is what was abandoned.

    Parameters
    ----------
    destinations
        Their names; ``None`` means all that have, had or refused the report.
    results
        Result classes, such as the report alone; ``None`` means the report and all that is beside it.
    """
    newest = (
        select(Report.id)
        .join(Study, Study.id == Report.study_id)
        .where(Study.study_instance_uid == study_instance_uid)
        .order_by(Report.revision.desc())
        .limit(1)
        .scalar_subquery()
    )
    is_wanted = (Delivery.report_id == newest) & Delivery.state.in_(("delivered", "committed", "failed"))
    if destinations is not None:
        is_wanted &= Delivery.destination.in_(destinations)
    if results is not None:
        is_wanted &= Delivery.result.in_(results)
    fresh = {"state": "pending", "tries": 0, "status": None, "error": None}
    again = session.execute(
        update(Delivery)
        .where(is_wanted)
        .values(**fresh, delivered_at=None, committed_at=None, give_up_at=give_up_at, updated_at=at)
        .returning(Delivery.id, Delivery.destination)
        .execution_options(synchronize_session=False)
    ).all()
    close(session, Kind.COMMIT, [delivery_id for delivery_id, _ in again])
    for delivery_id, destination in again:
        enqueue(session, Kind.DELIVER, delivery_id, lane=destination)
    return len(again)


def abandon(session: Session, destination: str, at: datetime) -> int:
    """Give up for good the reports not yet sent to a destination that no longer exists; return how many."""
    for state in (READY, FAILED):
        session.execute(
            update(Job)
            .where(Job.kind.in_((Kind.DELIVER, Kind.COMMIT)), Job.lane == destination, state)
            .values(state="done", token=None, error=None)
            .execution_options(synchronize_session=False)
        )
    rows = session.execute(
        update(Delivery)
        .where(Delivery.destination == destination, Delivery.state.in_(("pending", "failed")))
        .values(state="abandoned", updated_at=at)
        .returning(Delivery.id)
        .execution_options(synchronize_session=False)
    )
    return len(rows.all())


def _belongs_to(study_instance_uid: str) -> Any:
    study = select(Study.id).where(Study.study_instance_uid == study_instance_uid)
    reports = select(Report.id).where(Report.study_id.in_(study))
    return or_(
        Job.kind.in_((Kind.SCORE, Kind.RESCORE))
        & Job.ref.in_(select(Instance.id).where(Instance.study_id.in_(study))),
        (Job.kind == Kind.REPORT) & Job.ref.in_(study),
        Job.kind.in_(BESIDE_REPORT) & Job.ref.in_(reports),
        Job.kind.in_((Kind.DELIVER, Kind.COMMIT))
        & Job.ref.in_(select(Delivery.id).where(Delivery.report_id.in_(reports))),
    )


def study_exists(session: Session, study_instance_uid: str) -> bool:
    """Tell whether any object of a study was received."""
    return (
        session.scalars(select(Study.id).where(Study.study_instance_uid == study_instance_uid)).first()
        is not None
    )


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """The last heartbeat of one process."""

    role: str
    host: str
    started_at: datetime
    age_seconds: float


def heartbeats(session: Session) -> list[Heartbeat]:
    """Return the last heartbeat of each process that ever ran, by role and host."""
    age = (later(session, 0) - Process.seen_at).label("age")
    statement = select(Process.role, Process.host, Process.started_at, age).order_by(
        Process.role, Process.host
    )
    return [
        Heartbeat(role=role, host=host, started_at=started_at, age_seconds=max(0.0, float(seconds)))
        for role, host, started_at, seconds in session.execute(statement)
    ]
