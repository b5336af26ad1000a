"""What the node records about its work, and what it reads to continue.

All SQL of the node is in this package: here and in `queue`, `stock`, `commitments` and `inventory`. What
people ask for is in `results` and `status`. Nothing in these modules commits or reads the clock of the
machine.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Dialect, Float, bindparam, delete, func, insert, select, update
from sqlalchemy.orm import Session, aliased

from db.deliveries import deliver
from db.models import (
    Instance,
    Job,
    Model,
    Process,
    Report,
    ReportImage,
    Score,
    Study,
    StudyProblem,
)
from db.prepared import Prepared
from db.queue import Kind, clock, enqueue, insert_for, insert_or, later, revive, wake
from db.rows import (
    NewInstance,
    NewReport,
    NewScore,
    Received,
    ReportToDraw,
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
    copies = statements.known.run(connection, uid=new.sop_instance_uid)
    known = {digest: instance_id for digest, instance_id, *_ in copies}
    if new.digest in known:
        again = update(Instance).where(Instance.id == known[new.digest])
        session.execute(again.values(removed_at=None))  # its file is here again
        revive(session, Kind.SCORE, known[new.digest])
        _take_turn(session, known[new.digest], copies, quiet_seconds)
        return Received.AGAIN
    turn = max((turn for _, _, turn, _ in copies), default=-1) + 1
    values = {f"of_{name}": value for name, value in vars(new).items()}
    study = {name: values[name] for name in statements.study_values}
    ((study_id,),) = statements.study.run(connection, quiet_seconds=quiet_seconds, **study)
    instance = {name: values[name] for name in statements.instance_values}
    place = {"of_study_id": study_id, "of_copy": len(known), "of_turn": turn}
    ((instance_id,),) = statements.instance.run(connection, **place, **instance)
    enqueue(session, Kind.SCORE, instance_id)
    enqueue(session, Kind.REPORT, study_id, wait_seconds=quiet_seconds)
    return Received.COPY if known else Received.NEW


def _take_turn(session: Session, instance_id: int, copies: Sequence[Any], quiet_seconds: float) -> None:
    """Let a copy that came again count as the newest one, and its study be looked at anew."""
    turns = {id_: turn for _, id_, turn, _ in copies}
    newest = max(turns.values())
    if turns[instance_id] == newest:
        return
    session.execute(update(Instance).where(Instance.id == instance_id).values(turn=newest + 1))
    (study_id,) = (study for _, id_, _, study in copies if id_ == instance_id)
    enqueue(session, Kind.REPORT, study_id, wait_seconds=quiet_seconds)


@dataclass(frozen=True)
class _Receiving:
    """Return the statements of `add_instance`, which runs for each object."""

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
    asked = (instances.c.digest, instances.c.id, instances.c.turn, instances.c.study_id)
    known = select(*asked).where(instances.c.sop_instance_uid == bindparam("uid"))
    # Whether it was inserted or not, the row of the study is locked until the commit
    study = insert_for(is_postgresql, studies).values(
        {name: bindparam(f"of_{name}") for name in _STUDY_COLUMNS}
        | {"first_received_at": bindparam("of_received_at")}
        | moments
    )
    study = study.on_conflict_do_update(index_elements=[studies.c.study_instance_uid], set_=moments)
    instance: Any = {
        name: bindparam(f"of_{name}") for name in (*_INSTANCE_COLUMNS, "study_id", "copy", "turn")
    }
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
    """Record that a checkpoint is now in use; return its id."""
    statement = insert_or(session, Model).values(**model, last_started_at=started_at)
    statement = statement.on_conflict_do_update(
        index_elements=[Model.sha256], set_={"last_started_at": started_at}
    ).returning(Model.id)
    return int(session.execute(statement).scalar_one())


def newest_model(session: Session) -> StoredModel | None:
    """Return the checkpoint that came into use last."""
    row = session.scalars(
        select(Model).order_by(Model.last_started_at.desc(), Model.id.desc()).limit(1)
    ).first()
    return None if row is None else _model(row)


def instances(session: Session, ids: Sequence[int]) -> list[StoredInstance]:
    """Return instances in the order of `ids`."""
    found = {one.id: one for one in _stored(session, Instance.id.in_(ids))}
    return [found[id_] for id_ in ids]


def add_score(session: Session, score: NewScore) -> None:
    """Record a score and schedule the report of its study, or a new revision of it."""
    session.execute(insert(Score).values(**asdict(score)))
    wake_report(session, score.instance_id)


def wake_report(session: Session, instance_id: int) -> None:
    """Schedule the report of an instance's study, or a new revision of it, for when the study is quiet."""
    study = select(Instance.study_id).where(Instance.id == instance_id)
    quiet_at = select(Study.quiet_at).where(Study.id == Job.ref).scalar_subquery()
    wake(session, Kind.REPORT, study, quiet_at)


def earlier_copies(session: Session, instance: StoredInstance) -> list[StoredInstance]:
    """Return what came before under the SOP Instance UID of an object, the first one first."""
    return _stored(
        session, (Instance.sop_instance_uid == instance.sop_instance_uid) & (Instance.copy < instance.copy)
    )


def record_same_image(session: Session, instance_id: int, image_id: int) -> None:
    """Record that an object is a copy of an earlier one, the first of that image."""
    is_either = Instance.id.in_((image_id, instance_id)) & Instance.image_id.is_(None)
    session.execute(
        update(Instance)
        .where(is_either)
        .values(image_id=image_id)
        .execution_options(synchronize_session=False)
    )


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
        study_id=row.study_id,
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        series_instance_uid=row.series_instance_uid,
        copy=row.copy,
        turn=row.turn,
        image_id=row.image_id,
        digest=row.digest,
        patient_id=row.patient_id,
        issuer_of_patient_id=row.issuer_of_patient_id,
        patient_name=row.patient_name,
        patient_birth_date=row.patient_birth_date,
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
        heat_map=row.heat_map,
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
    """Return the received objects of a study, in the order of arrival."""
    return _stored(session, Instance.study_id == study_id)


def last_report(session: Session, study_id: int) -> StoredReport | None:
    """Return the newest revision of a study's report."""
    uids = (Report.sop_class_uid, Report.sop_instance_uid, Report.series_instance_uid)
    asked = select(Report.id, Report.revision, *uids).where(Report.study_id == study_id)
    revisions = session.execute(asked.order_by(Report.revision.desc())).all()
    if not revisions:
        return None
    row = revisions[0]
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
        earlier_uids=frozenset(revision.sop_instance_uid for revision in revisions),
    )


def report_content(session: Session, report_id: int) -> bytes:
    """Return the bytes of a report."""
    return session.scalars(select(Report.content).where(Report.id == report_id)).one()


def report_to_draw(session: Session, report_id: int) -> ReportToDraw:
    """Return a report with the images and the scores that it states, which may no longer be the newest."""
    report, uid = session.execute(
        select(Report, Study.study_instance_uid)
        .join(Study, Study.id == Report.study_id)
        .where(Report.id == report_id)
    ).one()
    images = session.execute(
        select(Instance, Score, Model)
        .join(ReportImage, ReportImage.instance_id == Instance.id)
        .outerjoin(Score, Score.id == ReportImage.score_id)
        .outerjoin(Model, Model.id == Score.model_id)
        .where(ReportImage.report_id == report_id)
        .order_by(Instance.id)
    )
    return ReportToDraw(
        content=report.content,
        revision=report.revision,
        decision=report.decision or "",
        study_instance_uid=uid,
        images=[_instance(*row, None) for row in images],
    )


def restate_report(session: Session, report_id: int, images: Collection[tuple[int, int | None]]) -> None:
    """Record that a report states these images: copies came that change nothing of what it says."""
    for instance_id, score_id in images:
        statement = insert_or(session, ReportImage).values(
            report_id=report_id, instance_id=instance_id, score_id=score_id
        )
        keys = [ReportImage.report_id, ReportImage.instance_id]
        session.execute(statement.on_conflict_do_update(index_elements=keys, set_={"score_id": score_id}))


def record_study_problem(session: Session, study_id: int, problem: str, found_at: datetime) -> None:
    """Record why a study gets no report, until `clear_study_problem`."""
    statement = insert_or(session, StudyProblem).values(study_id=study_id, problem=problem, found_at=found_at)
    again = {"problem": problem, "dismissed_at": None}
    session.execute(statement.on_conflict_do_update(index_elements=[StudyProblem.study_id], set_=again))


def clear_study_problem(session: Session, study_id: int) -> None:
    """Record that nothing prevents the report of a study, or prevents it any more."""
    session.execute(delete(StudyProblem).where(StudyProblem.study_id == study_id))


def add_report(session: Session, new: NewReport) -> None:
    """Record a report, a delivery with its job for each destination, and jobs for what is made beside it."""
    values = {f.name: getattr(new, f.name) for f in fields(new) if f.name in _REPORT_COLUMNS}
    report_id = session.execute(insert(Report).values(**values).returning(Report.id)).scalar_one()
    session.execute(
        insert(ReportImage),
        [{"report_id": report_id, "instance_id": i, "score_id": s} for i, s in sorted(new.images, key=str)],
    )
    deliver(session, report_id, new.destinations, give_up_at=new.give_up_at, at=new.made_at)
    for kind in new.beside:
        enqueue(session, Kind(kind), report_id)


# Heartbeats


def record_heartbeat(session: Session, role: str, host: str, started_at: datetime) -> None:
    """Record that a process is now at work."""
    values = {"started_at": started_at, "seen_at": later(session, 0)}
    statement = insert_or(session, Process).values(role=role, host=host, **values)
    session.execute(statement.on_conflict_do_update(index_elements=[Process.role, Process.host], set_=values))


def forget_heartbeat(session: Session, role: str, host: str) -> None:
    """Record that a process ended in good order."""
    session.execute(delete(Process).where(Process.role == role, Process.host == host))
