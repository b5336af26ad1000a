"""What people ask the results database: scores, counts, failures. And the one order they give: try again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Select,
    TableClause,
    column,
    func,
    literal,
    or_,
    select,
    table,
    text,
    union,
    union_all,
    update,
)
from sqlalchemy.orm import Session

from db.models import (
    CommitmentWanted,
    Delivery,
    Instance,
    Job,
    Process,
    Report,
    ReportImage,
    Score,
    Study,
    Utc,
)
from db.queue import FAILED, READY, Kind, is_postgresql, later

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
_DEARER = 6  # times, to look up an image somewhere than to pass it on the way from the newest
_EVER = datetime(1900, 1, 1, tzinfo=UTC)  # before anything was received
_AT_ONCE = 200  # images of which all is looked up
_COUNTABLE = 100_000  # rows


def _view(name: str, columns: Sequence[str]) -> TableClause:
    known = (*columns, "instance_id")
    return table(name, *(column(one, Utc() if one.endswith("_at") else None) for one in known))


_RESULTS = _view("results", RESULT_COLUMNS)
_LEDGER = _view("ledger", LEDGER_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which rows of the view `results` are wanted; ``None`` asks for any. In texts, ``*`` is anything.

    Attributes
    ----------
    study_dates
        The first and the last one, YYYYMMDD; not in the ledger.
    state
        Of a delivery; in the ledger alone.
    """

    patient: str | None = None
    accession: str | None = None
    study: str | None = None
    study_dates: tuple[str, str] | None = None
    since: datetime | None = None
    until: datetime | None = None
    decision: str | None = None
    min_probability: float | None = None
    state: str | None = None
    limit: int | None = None


def results(session: Session, wanted: Filter) -> list[dict[str, Any]]:
    """Return rows of the view `results`, the newest first."""
    return _newest(session, _RESULTS, wanted, RESULT_COLUMNS, ("sop_instance_uid",))


def ledger(session: Session, wanted: Filter) -> list[dict[str, Any]]:
    """Return rows of the view `ledger`, the newest first: one for each image and each destination."""
    return _newest(session, _LEDGER, wanted, LEDGER_COLUMNS, ("sop_instance_uid", "destination"))


def _newest(
    session: Session, view: TableClause, wanted: Filter, names: Sequence[str], ties: Sequence[str]
) -> list[dict[str, Any]]:
    """Return rows in two steps: first which images, by no more than is needed to tell; then all about these.

    Which way to the images is short cannot be left to planners: SQLite has no statistics, and those of
    PostgreSQL do not tell how often what is rare on the whole is among the newest.
    """
    conditions = [*_conditions(wanted, view.c)]
    order = (view.c.received_at.desc(), *(view.c[name] for name in ties))
    statement = select(*(view.c[name] for name in names)).where(*conditions).order_by(*order)
    if wanted.limit is None:
        return [dict(row) for row in session.execute(statement).mappings()]
    few = _few(session, wanted)
    if few is None:
        # The period tells SQLite that an index has the rows in this order
        on_the_way = [*conditions, view.c.received_at >= _EVER, *_before_all_else(wanted, view.c.instance_id)]
        asked = select(view.c.instance_id).where(*on_the_way).order_by(*order)
        few = session.scalars(asked.limit(wanted.limit)).all()
    found: list[dict[str, Any]] = []
    for at in range(0, len(few), _AT_ONCE):
        left = wanted.limit - len(found)
        some = statement.where(view.c.instance_id.in_(few[at : at + _AT_ONCE])).limit(left)
        found += [dict(row) for row in session.execute(some).mappings()]
        if len(found) >= wanted.limit:
            break
    return found


def _few(session: Session, wanted: Filter) -> Sequence[int] | None:
    """Return the images, newest first, of which one thing that is wanted is or was true, if they are few."""
    most = _worth_looking_up(session, wanted.limit or 1)
    for some in _narrowing(wanted):
        number = select(func.count()).select_from(some.limit(most + 1).subquery())
        if session.execute(number).scalar_one() <= most:
            newest = (Instance.received_at.desc(), Instance.sop_instance_uid)
            asked = select(Instance.id).where(Instance.id.in_(some), *_period(wanted, Instance))
            return session.scalars(asked.order_by(*newest)).all()
    return None


def _worth_looking_up(session: Session, limit: int) -> int:
    """Return of how many images it is faster to look up each than to go from the newest until enough are met.

    If there are `number`, ``limit * all / number`` images are passed on the way to the last one wanted.
    """
    everything = session.execute(select(func.max(Instance.id))).scalar_one() or 0
    return math.isqrt(limit * everything // _DEARER)


def _before_all_else(wanted: Filter, instance_id: Any) -> Iterator[Any]:
    """Yield what tells of most images on the way that they are not wanted, by the look at one index."""
    if wanted.min_probability is not None:
        any_score = select(func.max(Score.probability)).where(Score.instance_id == instance_id)
        yield any_score.scalar_subquery() >= wanted.min_probability


def _narrowing(wanted: Filter) -> Iterator[Select[Any]]:
    of_study = select(Instance.id).join(Study, Study.id == Instance.study_id)
    if wanted.study is not None and "*" not in wanted.study:
        yield of_study.where(Study.study_instance_uid == wanted.study)
    if wanted.accession is not None and "*" not in wanted.accession:
        yield of_study.where(Study.accession_number == wanted.accession)
    if wanted.patient is not None and "*" not in wanted.patient:
        either = (of_study.where(one == wanted.patient) for one in (Study.patient_id, Study.patient_name))
        yield select(union(*either).subquery().c.id)
    if wanted.study_dates is not None:
        yield of_study.where(Study.study_date.between(*wanted.study_dates))
    if wanted.state is not None:
        is_its = Delivery.report_id == ReportImage.report_id
        yield select(ReportImage.instance_id).join(Delivery, is_its).where(Delivery.state == wanted.state)
    if wanted.decision is not None:
        decided = select(Score.instance_id.label("id")).where(Score.decision == wanted.decision)
        is_open = READY if wanted.decision == "waiting" else FAILED
        undecided = select(Job.ref.label("id")).where(Job.kind == Kind.SCORE, is_open)
        yield select(union_all(decided, undecided).subquery().c.id)
    if wanted.min_probability is not None:
        yield select(Score.instance_id).where(Score.probability >= wanted.min_probability)


def _conditions(wanted: Filter, columns: Any) -> Iterable[Any]:
    if wanted.patient is not None:
        named = [columns[name] for name in ("patient_id", "patient_name") if name in columns]
        yield or_(*(_matches(one, wanted.patient) for one in named))
    if wanted.accession is not None:
        yield _matches(columns.accession_number, wanted.accession)
    if wanted.study is not None:
        yield _matches(columns.study_instance_uid, wanted.study)
    if wanted.study_dates is not None:
        yield columns.study_date.between(*wanted.study_dates)
    yield from _period(wanted, columns)
    if wanted.decision is not None:
        yield columns.decision == wanted.decision
    if wanted.min_probability is not None:
        yield func.coalesce(columns.probability, -1) >= wanted.min_probability  # nothing to begin with
    if wanted.state is not None:
        yield columns.state == wanted.state


def _period(wanted: Filter, columns: Any) -> Iterator[Any]:
    if wanted.since is not None:
        yield columns.received_at >= wanted.since
    if wanted.until is not None:
        yield columns.received_at < wanted.until


def _matches(where: Any, pattern: str) -> Any:
    if "*" not in pattern:
        return where == pattern
    escaped = pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%")
    return where.ilike(escaped, escape="\\")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How much there is of everything, and of work by its state; as fast in a large database.

    Attributes
    ----------
    jobs
        By kind and state. Of asking to commit and committing, what is done is not counted.
    deliveries
        What is not delivered, by destination and state: pending or failed.
    is_estimate
        Whether the totals, and what is done, are estimates; those of PostgreSQL are, above 100,000 rows.
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
    """Return how many rows there are of which none is ever removed, without reading them all."""
    if not is_postgresql(session):
        return _Total(session.execute(select(func.max(entity.id))).scalar_one() or 0, False)
    # As the planner does; ids have gaps here
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
    """The study whose images have waited longest for their score."""

    study_instance_uid: str
    received_at: datetime


def oldest_waiting(session: Session) -> Waiting | None:
    """Return the oldest image without score whose job is not given up."""
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
        failed = statement.where(Job.kind == kind, FAILED)
        found += session.execute(failed.order_by(Job.id.desc()).limit(limit))
    found.sort(key=lambda row: -int(row.id))
    return [
        Failure(kind=kind, lane=lane, study_instance_uid=uid, error=error or "")
        for kind, lane, uid, error, _ in found[:limit]
    ]


def retry(session: Session, study_instance_uid: str | None, give_up_at: datetime) -> int:
    """Make failed jobs ready again, all or those of one study; return how many."""
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


def abandon(session: Session, destination: str, at: datetime) -> int:
    """Give up, for good, what a destination that is no more has yet to get; return how many reports."""
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
