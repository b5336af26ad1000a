"""What people ask the results database: scores, counts, failures. And the one order they give: try again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, TableClause, column, func, literal, or_, select, table, update
from sqlalchemy.orm import Session

from db.models import CommitmentWanted, Delivery, Instance, Job, Process, Report, Score, Study, Utc
from db.queue import Kind, later

RESULT_COLUMNS = (
    *("patient_id", "patient_name", "accession_number", "study_instance_uid", "series_instance_uid"),
    *("sop_instance_uid", "sop_class_uid", "modality", "view", "study_date", "received_at", "scored_at"),
    *(
        "probability",
        "threshold",
        "decision",
        "reason",
        "detail",
        "model_name",
        "model_version",
        "model_sha256",
    ),
    *("report_uid", "report_revision", "deliveries", "novelty", "age"),
)
LEDGER_COLUMNS = (
    *("study_instance_uid", "accession_number", "patient_id", "sop_instance_uid", "calling_ae_title"),
    *("received_at", "removed_at", "decision", "probability", "scored_at"),
    *("report_uid", "report_revision", "reported_at"),
    *("destination", "state", "tries", "sent_uid", "status", "delivered_at", "committed_at"),
    *("give_up_at", "error"),
)


def _view(name: str, columns: Sequence[str]) -> TableClause:
    return table(name, *(column(one, Utc() if one.endswith("_at") else None) for one in columns))


_RESULTS = _view("results", RESULT_COLUMNS)
_LEDGER = _view("ledger", LEDGER_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which rows of the view `results` are wanted; ``None`` asks for any. In texts, ``*`` is anything."""

    patient: str | None = None
    accession: str | None = None
    study: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    decision: str | None = None
    min_probability: float | None = None
    state: str | None = None  # of a delivery; in the ledger alone
    limit: int | None = None


def results(session: Session, wanted: Filter) -> list[dict[str, Any]]:
    """Return rows of the view `results`, the newest first."""
    statement: Select[Any] = select(_RESULTS).order_by(
        _RESULTS.c.received_at.desc(), _RESULTS.c.sop_instance_uid
    )
    for condition in _conditions(wanted, _RESULTS.c):
        statement = statement.where(condition)
    return [dict(row) for row in session.execute(statement.limit(wanted.limit)).mappings()]


def _conditions(wanted: Filter, columns: Any) -> Iterable[Any]:
    if wanted.patient is not None:
        named = [columns[name] for name in ("patient_id", "patient_name") if name in columns]
        yield or_(*(_matches(one, wanted.patient) for one in named))
    if wanted.accession is not None:
        yield _matches(columns.accession_number, wanted.accession)
    if wanted.study is not None:
        yield _matches(columns.study_instance_uid, wanted.study)
    if wanted.since is not None:
        yield columns.received_at >= wanted.since
    if wanted.until is not None:
        yield columns.received_at < wanted.until
    if wanted.decision is not None:
        yield columns.decision == wanted.decision
    if wanted.min_probability is not None:
        yield columns.probability >= wanted.min_probability
    if wanted.state is not None:
        yield columns.state == wanted.state


def _matches(where: Any, pattern: str) -> Any:
    if "*" not in pattern:
        return where == pattern
    escaped = pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%")
    return where.ilike(escaped, escape="\\")


def ledger(session: Session, wanted: Filter) -> list[dict[str, Any]]:
    """Return rows of the view `ledger`, the newest first: one for each image and each destination."""
    columns = _LEDGER.c
    statement: Select[Any] = select(_LEDGER).order_by(
        columns.received_at.desc(), columns.sop_instance_uid, columns.destination
    )
    for condition in _conditions(wanted, columns):
        statement = statement.where(condition)
    return [dict(row) for row in session.execute(statement.limit(wanted.limit)).mappings()]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How much there is of everything, jobs by kind and state, deliveries by destination and state."""

    studies: int
    instances: int
    scores: int
    reports: int
    jobs: Mapping[tuple[str, str], int]
    deliveries: Mapping[tuple[str, str], int]


def counts(session: Session) -> Counts:
    """Return counts by state."""
    return Counts(
        studies=_count(session, Study),
        instances=_count(session, Instance),
        scores=_count(session, Score),
        reports=_count(session, Report),
        jobs=_grouped(session, Job.kind, Job.state),
        deliveries=_grouped(session, Delivery.destination, Delivery.state),
    )


def _count(session: Session, entity: Any) -> int:
    return int(session.execute(select(func.count()).select_from(entity)).scalar_one())


def _grouped(session: Session, *columns: Any) -> dict[tuple[str, str], int]:
    rows = session.execute(select(*columns, func.count()).group_by(*columns).order_by(*columns)).all()
    return {(row[0], row[1]): row[2] for row in rows}


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """The study whose images have waited longest for their score."""

    study_instance_uid: str
    received_at: datetime


def oldest_waiting(session: Session) -> Waiting | None:
    """Return the oldest image without score whose job is not given up."""
    statement = (
        select(Study.study_instance_uid, Instance.received_at)
        .join(Instance, Instance.study_id == Study.id)
        .join(Job, (Job.kind == Kind.SCORE) & (Job.ref == Instance.id))
        .where(Job.state == "ready")
        .order_by(Instance.received_at)
        .limit(1)
    )
    row = session.execute(statement).first()
    return None if row is None else Waiting(study_instance_uid=row[0], received_at=row[1])


@dataclass(frozen=True, kw_only=True)
class Undelivered:
    """Reports that one destination has yet to get, and what it said to the last one that was tried."""

    destination: str
    reports: int
    tries: int  # the most for one report
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
    """One job that was given up; `lane` is the other side where there is one."""

    kind: str
    lane: str
    study_instance_uid: str
    error: str


def failures(session: Session, limit: int) -> list[Failure]:
    """Return the newest jobs that were given up."""
    asked = select(Job.kind, Job.lane, Study.study_instance_uid, Job.error, Job.id).select_from(Job)
    scored = asked.join(Instance, Instance.id == Job.ref).join(Study, Study.id == Instance.study_id)
    reported = asked.join(Study, Study.id == Job.ref)
    delivered = asked.join(Delivery, Delivery.id == Job.ref).join(Report, Report.id == Delivery.report_id)
    delivered = delivered.join(Study, Study.id == Report.study_id)
    confirmed = select(Job.kind, CommitmentWanted.calling_ae_title, literal(""), Job.error, Job.id).join(
        CommitmentWanted, CommitmentWanted.id == Job.ref
    )
    found: list[Any] = []
    for kind, statement in (
        (Kind.SCORE, scored),
        (Kind.REPORT, reported),
        (Kind.DELIVER, delivered),
        (Kind.COMMIT, delivered),
        (Kind.CONFIRM, confirmed),
    ):
        failed = statement.where(Job.kind == kind, Job.state == "failed")
        found += session.execute(failed.order_by(Job.id.desc()).limit(limit))
    found.sort(key=lambda row: -int(row.id))
    return [
        Failure(kind=kind, lane=lane, study_instance_uid=uid, error=error or "")
        for kind, lane, uid, error, _ in found[:limit]
    ]


def retry(session: Session, study_instance_uid: str | None, give_up_at: datetime) -> int:
    """Make failed jobs ready again, all or those of one study; return how many."""
    conditions = [Job.state == "failed"]
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


def abandon(session: Session, destination: str, at: datetime) -> int:
    """Give up, for good, what a destination that is no more has yet to get; return how many reports."""
    is_its = Delivery.destination == destination
    is_open = Delivery.state.in_(("pending", "failed"))
    for kind, refs in (
        (Kind.DELIVER, select(Delivery.id).where(is_its, is_open)),
        (Kind.COMMIT, select(Delivery.id).where(is_its)),
    ):
        session.execute(
            update(Job)
            .where(Job.kind == kind, Job.ref.in_(refs), Job.state != "done")
            .values(state="done", token=None, error=None)
            .execution_options(synchronize_session=False)
        )
    rows = session.execute(
        update(Delivery)
        .where(is_its, is_open)
        .values(state="abandoned", updated_at=at)
        .returning(Delivery.id)
        .execution_options(synchronize_session=False)
    )
    return len(rows.all())


def _belongs_to(study_instance_uid: str) -> Any:
    study = select(Study.id).where(Study.study_instance_uid == study_instance_uid)
    reports = select(Report.id).where(Report.study_id.in_(study))
    return or_(
        (Job.kind == Kind.SCORE) & Job.ref.in_(select(Instance.id).where(Instance.study_id.in_(study))),
        (Job.kind == Kind.REPORT) & Job.ref.in_(study),
        Job.kind.in_((Kind.DELIVER, Kind.COMMIT))
        & Job.ref.in_(select(Delivery.id).where(Delivery.report_id.in_(reports))),
    )


def study_exists(session: Session, study_instance_uid: str) -> bool:
    """Tell whether anything came of a study."""
    return (
        session.scalars(select(Study.id).where(Study.study_instance_uid == study_instance_uid)).first()
        is not None
    )


@dataclass(frozen=True, kw_only=True)
class Sign:
    """The last sign of life of one process."""

    role: str
    host: str
    started_at: datetime
    age_seconds: float


def signs(session: Session) -> list[Sign]:
    """Return the last sign of each process that ever ran, by role and host."""
    age = (later(session, 0) - Process.seen_at).label("age")
    statement = select(Process.role, Process.host, Process.started_at, age).order_by(
        Process.role, Process.host
    )
    return [
        Sign(role=role, host=host, started_at=started_at, age_seconds=max(0.0, float(seconds)))
        for role, host, started_at, seconds in session.execute(statement)
    ]
