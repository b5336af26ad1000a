"""What the node records of its work, and reads to go on with it.

All SQL of the node is in this package: here, in `queue`, `stock`, `commitments` and `inventory`, and, for
what people ask, in `results` and `status`. Nothing in them commits or reads the clock of the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Dialect, Float, bindparam, case, delete, func, insert, select, update
from sqlalchemy.orm import Session, aliased

from db.models import Delivery, Instance, Job, Model, Process, Report, ReportImage, Score, Study
from db.prepared import Prepared
from db.queue import Kind, clock, enqueue, insert_for, insert_or, later, revive, wake
from db.rows import (
    NewInstance,
    NewReport,
    NewScore,
    PendingDelivery,
    Received,
    StoredInstance,
    StoredModel,
    StoredReport,
    StoredScore,
)

_INSTANCE_COLUMNS = {column.key for column in Instance.__table__.columns} & {
    f.name for f in fields(NewInstance)
}
_STUDY_COLUMNS = {column.key for column in Study.__table__.columns} & {f.name for f in fields(NewInstance)}
_REPORT_COLUMNS = {column.key for column in Report.__table__.columns}

# Receiving


def add_instance(session: Session, new: NewInstance, quiet_seconds: float) -> Received:
    """Record a received object with its study, its score job and the study's report job.

    Raises
    ------
    sqlalchemy.exc.IntegrityError
        When the same object is being recorded elsewhere; run the transaction again.
    """
    connection = session.connection()
    statements = _receiving(connection.dialect)
    known = dict(statements.known.run(connection, uid=new.sop_instance_uid))
    if new.digest in known:
        again = update(Instance).where(Instance.id == known[new.digest])
        session.execute(again.values(removed_at=None))  # its file is here once more
        revive(session, Kind.SCORE, known[new.digest])
        return Received.AGAIN
    values = {f"of_{name}": value for name, value in vars(new).items()}
    study = {name: values[name] for name in statements.study_values}
    ((study_id,),) = statements.study.run(connection, quiet_seconds=quiet_seconds, **study)
    instance = {name: values[name] for name in statements.instance_values}
    place = {"of_study_id": study_id, "of_copy": len(known)}
    ((instance_id,),) = statements.instance.run(connection, **place, **instance)
    enqueue(session, Kind.SCORE, instance_id)
    enqueue(session, Kind.REPORT, study_id, wait_seconds=quiet_seconds)
    return Received.CONFLICT if known else Received.NEW


@dataclass(frozen=True)
class _Receiving:
    """The statements of `add_instance`, which runs for each object."""

    known: Prepared
    study: Prepared
    study_values: Sequence[str]
    instance: Prepared
    instance_values: Sequence[str]


@lru_cache(maxsize=8)
def _receiving(dialect: Dialect) -> _Receiving:
    is_postgresql = dialect.name == "postgresql"
    studies: Any = Study.__table__
    instances: Any = Instance.__table__
    moments = {
        "last_received_at": bindparam("of_received_at"),
        "quiet_at": clock(is_postgresql) + bindparam("quiet_seconds", type_=Float()),
    }
    known = select(instances.c.digest, instances.c.id).where(instances.c.sop_instance_uid == bindparam("uid"))
    # Inserted or not, the row of the study is locked until the commit
    study = insert_for(is_postgresql, studies).values(
        {name: bindparam(f"of_{name}") for name in _STUDY_COLUMNS}
        | {"first_received_at": bindparam("of_received_at")}
        | moments
    )
    study = study.on_conflict_do_update(index_elements=[studies.c.study_instance_uid], set_=moments)
    instance: Any = {name: bindparam(f"of_{name}") for name in (*_INSTANCE_COLUMNS, "study_id", "copy")}
    return _Receiving(
        known=Prepared(known, dialect),
        study=Prepared(study.returning(studies.c.id), dialect),
        study_values=[f"of_{name}" for name in (*_STUDY_COLUMNS, "received_at")],
        instance=Prepared(insert(instances).values(instance).returning(instances.c.id), dialect),
        instance_values=[f"of_{name}" for name in _INSTANCE_COLUMNS],
    )


def has_instances(session: Session) -> bool:
    """Tell whether anything was ever received."""
    return session.execute(select(Instance.id).limit(1)).first() is not None


# Scoring


def register_model(session: Session, model: Mapping[str, Any], started_at: datetime) -> int:
    """Record that a checkpoint is in use now; return its id."""
    statement = insert_or(session, Model).values(**model, last_started_at=started_at)
    statement = statement.on_conflict_do_update(
        index_elements=[Model.sha256], set_={"last_started_at": started_at}
    ).returning(Model.id)
    return int(session.execute(statement).scalar_one())


def newest_model(session: Session) -> StoredModel | None:
    """Return the checkpoint that was put to use last."""
    row = session.scalars(
        select(Model).order_by(Model.last_started_at.desc(), Model.id.desc()).limit(1)
    ).first()
    return None if row is None else _model(row)


def instances(session: Session, ids: Sequence[int]) -> list[StoredInstance]:
    """Return instances in the order of `ids`."""
    found = {one.id: one for one in _stored(session, Instance.id.in_(ids))}
    return [found[id_] for id_ in ids]


def add_score(session: Session, score: NewScore) -> None:
    """Record a score, and let the report of its study be made, or made anew."""
    session.execute(insert(Score).values(**asdict(score)))
    wake_report(session, score.instance_id)


def wake_report(session: Session, instance_id: int) -> None:
    """Let the report of an instance's study be made, or made anew, when the study is quiet."""
    study = select(Instance.study_id).where(Instance.id == instance_id)
    quiet_at = select(Study.quiet_at).where(Study.id == Job.ref).scalar_subquery()
    wake(session, Kind.REPORT, study, quiet_at)


def _stored(session: Session, condition: Any) -> list[StoredInstance]:
    any_score = aliased(Score)
    newest = select(func.max(any_score.id)).where(any_score.instance_id == Instance.id).scalar_subquery()
    statement = (
        select(Instance, Score, Model, Job.state)
        .select_from(Instance)
        .outerjoin(Score, Score.id == newest)
        .outerjoin(Model, Model.id == Score.model_id)
        .outerjoin(Job, (Job.kind == Kind.SCORE) & (Job.ref == Instance.id))
        .where(condition)
        .order_by(Instance.id)
    )
    return [_instance(*row) for row in session.execute(statement)]


def _instance(row: Instance, score: Score | None, model: Model | None, state: str | None) -> StoredInstance:
    return StoredInstance(
        id=row.id,
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        series_instance_uid=row.series_instance_uid,
        copy=row.copy,
        digest=row.digest,
        job_state=state,
        score=None if score is None or model is None else _score(score, model),
    )


def _score(row: Score, model: Model) -> StoredScore:
    return StoredScore(
        id=row.id,
        model=_model(model),
        probability=row.probability,
        threshold=row.threshold,
        decision=row.decision,
        reason=row.reason,
        detail=row.detail,
    )


def _model(row: Model) -> StoredModel:
    return StoredModel(
        id=row.id,
        sha256=row.sha256,
        name=row.name,
        version=row.version,
        threshold=row.threshold,
        preprocessing=row.preprocessing,
    )


# Reporting


def study_uid(session: Session, study_id: int) -> str:
    """Return the Study Instance UID."""
    return session.scalars(select(Study.study_instance_uid).where(Study.id == study_id)).one()


def study_instances(session: Session, study_id: int) -> list[StoredInstance]:
    """Return what came of a study, in the order in which it came."""
    return _stored(session, Instance.study_id == study_id)


def last_report(session: Session, study_id: int) -> StoredReport | None:
    """Return the newest revision of a study's report."""
    uids = (Report.sop_class_uid, Report.sop_instance_uid, Report.series_instance_uid)
    asked = select(Report.id, Report.revision, *uids).where(Report.study_id == study_id)
    row = session.execute(asked.order_by(Report.revision.desc()).limit(1)).first()
    if row is None:
        return None
    images = session.execute(
        select(ReportImage.instance_id, ReportImage.score_id).where(ReportImage.report_id == row.id)
    )
    return StoredReport(
        id=row.id,
        revision=row.revision,
        sop_class_uid=row.sop_class_uid,
        sop_instance_uid=row.sop_instance_uid,
        series_instance_uid=row.series_instance_uid,
        images=frozenset((instance, score) for instance, score in images),
    )


def add_report(session: Session, new: NewReport) -> None:
    """Record a report with a delivery, and its job, for each destination."""
    values = {f.name: getattr(new, f.name) for f in fields(new) if f.name in _REPORT_COLUMNS}
    report_id = session.execute(insert(Report).values(**values).returning(Report.id)).scalar_one()
    session.execute(
        insert(ReportImage),
        [{"report_id": report_id, "instance_id": i, "score_id": s} for i, s in sorted(new.images, key=str)],
    )
    for destination in new.destinations:
        delivery_id = session.execute(
            insert(Delivery)
            .values(
                report_id=report_id,
                destination=destination,
                state="pending",
                tries=0,
                give_up_at=new.give_up_at,
                updated_at=new.made_at,
            )
            .returning(Delivery.id)
        ).scalar_one()
        enqueue(session, Kind.DELIVER, delivery_id, lane=destination)


# Living


def record_heartbeat(session: Session, role: str, host: str, started_at: datetime) -> None:
    """Record that a process is at work now."""
    values = {"started_at": started_at, "seen_at": later(session, 0)}
    statement = insert_or(session, Process).values(role=role, host=host, **values)
    session.execute(statement.on_conflict_do_update(index_elements=[Process.role, Process.host], set_=values))


def forget_heartbeat(session: Session, role: str, host: str) -> None:
    """Record that a process ended in good order."""
    session.execute(delete(Process).where(Process.role == role, Process.host == host))


# Delivering


def deliveries(session: Session, ids: Sequence[int]) -> list[PendingDelivery]:
    """Return deliveries in the order of `ids`."""
    statement = (
        select(Delivery, Report, Study.study_instance_uid)
        .join(Report, Report.id == Delivery.report_id)
        .join(Study, Study.id == Report.study_id)
        .where(Delivery.id.in_(ids))
    )
    found = {row[0].id: _pending(session, *row) for row in session.execute(statement)}
    return [found[id_] for id_ in ids]


def _pending(session: Session, row: Delivery, report: Report, study_instance_uid: str) -> PendingDelivery:
    # A delivery whose workers died stays pending, but its job has ended: nobody waits for it.
    earlier = (
        select(Delivery.id)
        .join(Report, Report.id == Delivery.report_id)
        .join(Job, (Job.kind == Kind.DELIVER) & (Job.ref == Delivery.id))
        .where(Report.study_id == report.study_id, Report.revision < report.revision)
        .where(Delivery.destination == row.destination, Delivery.state == "pending", Job.state == "ready")
    )
    return PendingDelivery(
        id=row.id,
        destination=row.destination,
        tries=row.tries,
        give_up_at=row.give_up_at,
        revision=report.revision,
        study_instance_uid=study_instance_uid,
        content=report.content,
        waits_for_earlier=session.execute(earlier.limit(1)).first() is not None,
    )


def record_delivery(session: Session, delivery_id: int, **values: Any) -> None:
    """Record what became of a delivery; `values` are columns of `Delivery`."""
    session.execute(update(Delivery).where(Delivery.id == delivery_id).values(**values))


def record_delivered(
    session: Session,
    delivery_id: int,
    destination: str,
    *,
    commits: bool,
    at: datetime,
    give_up_at: datetime,
    **values: Any,
) -> None:
    """Record that a destination took a report; where it offers to commit, it is asked to next.

    Parameters
    ----------
    give_up_at
        When asking, and sending again what it turns out not to have, ends; counted from the first delivery.
    **values
        Other columns of `Delivery`.
    """
    is_first = Delivery.delivered_at.is_(None)
    values |= {"state": "delivered", "error": None, "delivered_at": at, "updated_at": at}
    values["give_up_at"] = case((is_first, give_up_at), else_=Delivery.give_up_at)
    record_delivery(session, delivery_id, **values)
    if commits:
        enqueue(session, Kind.COMMIT, delivery_id, lane=destination)


def record_try(session: Session, delivery_id: int, **values: Any) -> None:
    """Record a try that did not end in Success."""
    record_delivery(session, delivery_id, tries=Delivery.tries + 1, **values)
