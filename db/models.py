"""Tables of the results database and the constraints that guard them.

Times are UTC. `Job.visible_at` and `Study.quiet_at` are numbers: seconds since the epoch by the clock of the
database server, so that several machines agree on leases.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

UID = String(64)  # VR UI
AE_TITLE = String(16)  # VR AE
LABEL = String(64)
WORD = String(32)
Key = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers only INTEGER keys


class Utc(TypeDecorator[datetime]):
    """A moment in UTC; aware in Python on both databases, although SQLite stores text without a zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a moment without a time zone: nobody could tell later which moment it was."""
        if value is None:
            return None
        if value.utcoffset() is None:
            raise ValueError("a moment needs a time zone")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return the moment in UTC, whatever zone the connection has."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """All tables; constraint names are fixed so that migrations can name them on both databases."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: Utc(), bytes: LargeBinary(), dict[str, Any]: Text()}  # noqa: RUF012


class Study(Base):
    """One study, with the identifiers of the first object received for it; each instance has its own."""

    __tablename__ = "study"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(UID, unique=True)
    patient_id: Mapped[str] = mapped_column(LABEL)
    patient_name: Mapped[str] = mapped_column(Text)
    accession_number: Mapped[str] = mapped_column(LABEL)
    study_date: Mapped[str] = mapped_column(String(8))  # VR DA as received; empty where unknown
    first_received_at: Mapped[datetime]
    last_received_at: Mapped[datetime]
    # by the database clock; the study may be reported from then on
    quiet_at: Mapped[float] = mapped_column(Float)


class Instance(Base):
    """One object that was answered with Success; its file is named by `digest`.

    `copy` numbers objects with different content and the same SOP Instance UID, from 0. Copies that are
    the same image have the same `image_id`; of these, the one with the largest `turn` counts.
    """

    __tablename__ = "instance"
    __table_args__ = (
        UniqueConstraint("sop_instance_uid", "digest"),
        UniqueConstraint("sop_instance_uid", "copy"),
        Index(None, "digest", "removed_at"),  # all columns that taking stock of the spool reads
        Index(None, "patient_id"),
        Index(None, "patient_name"),
        Index(None, "accession_number"),
        Index(None, "study_date"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey(Study.id), index=True)
    sop_instance_uid: Mapped[str] = mapped_column(UID)
    copy: Mapped[int] = mapped_column(Integer)
    sop_class_uid: Mapped[str] = mapped_column(UID)
    series_instance_uid: Mapped[str] = mapped_column(UID)
    transfer_syntax_uid: Mapped[str] = mapped_column(UID)
    modality: Mapped[str] = mapped_column(String(16))
    view_position: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(LABEL)
    size: Mapped[int] = mapped_column(BigInteger)  # bytes
    calling_ae_title: Mapped[str] = mapped_column(AE_TITLE)
    received_at: Mapped[datetime] = mapped_column(index=True)
    removed_at: Mapped[datetime | None]  # when retention removed its file; the row stays
    patient_id: Mapped[str] = mapped_column(LABEL, server_default=text("''"))
    patient_name: Mapped[str] = mapped_column(Text, server_default=text("''"))
    accession_number: Mapped[str] = mapped_column(LABEL, server_default=text("''"))
    study_date: Mapped[str] = mapped_column(String(8), server_default=text("''"))
    # NULL in a row of an earlier version, whose four columns above are those of its study
    issuer_of_patient_id: Mapped[str | None] = mapped_column(LABEL)
    patient_birth_date: Mapped[str | None] = mapped_column(String(8))
    turn: Mapped[int] = mapped_column(Integer, server_default="0")  # order in which copies came last
    image_id: Mapped[int | None] = mapped_column(
        BigInteger
    )  # the first of these copies; NULL while there is only one
    # How it was made. NULL in a row of an earlier version until its file is read
    patient_sex: Mapped[str | None] = mapped_column(String(16))
    patient_age: Mapped[float | None] = mapped_column(Float)  # years
    study_time: Mapped[str | None] = mapped_column(String(16))  # VR TM as received
    station_name: Mapped[str | None] = mapped_column(LABEL)
    institution_name: Mapped[str | None] = mapped_column(LABEL)
    manufacturer: Mapped[str | None] = mapped_column(LABEL)
    manufacturer_model_name: Mapped[str | None] = mapped_column(LABEL)
    device_serial_number: Mapped[str | None] = mapped_column(LABEL)
    software_versions: Mapped[str | None] = mapped_column(Text)
    presentation_intent_type: Mapped[str | None] = mapped_column(String(16))
    image_rows: Mapped[int | None] = mapped_column(Integer)
    image_columns: Mapped[int | None] = mapped_column(Integer)
    bits_stored: Mapped[int | None] = mapped_column(Integer)


class StudyProblem(Base):
    """Why a study gets no report until a person has done something about it."""

    __tablename__ = "study_problem"

    study_id: Mapped[int] = mapped_column(ForeignKey(Study.id), primary_key=True, autoincrement=False)
    problem: Mapped[str] = mapped_column(WORD)
    found_at: Mapped[datetime]
    dismissed_at: Mapped[datetime | None]  # when a person said that nothing more will be done


class Model(Base):
    """One checkpoint that scored here."""

    __tablename__ = "model"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    sha256: Mapped[str] = mapped_column(LABEL, unique=True)
    name: Mapped[str] = mapped_column(LABEL)
    version: Mapped[str] = mapped_column(LABEL)
    threshold: Mapped[float] = mapped_column(Float)
    preprocessing: Mapped[str] = mapped_column(Text)
    card: Mapped[str] = mapped_column(Text)  # JSON
    last_started_at: Mapped[datetime]


class Score(Base):
    """The score of one instance by one model: a probability, or the reason why there is none."""

    __tablename__ = "score"
    __table_args__ = (
        UniqueConstraint("instance_id", "model_id"),
        Index(None, "decision", "instance_id"),
        CheckConstraint("(probability IS NULL) = (decision = 'not_scored')", "scored"),
        CheckConstraint("probability BETWEEN 0 AND 1", "probability"),
        CheckConstraint("decision IN ('positive', 'negative', 'undetermined', 'not_scored')", "decision"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    instance_id: Mapped[int] = mapped_column(ForeignKey(Instance.id))
    model_id: Mapped[int] = mapped_column(ForeignKey(Model.id))
    probability: Mapped[float | None] = mapped_column(Float)
    threshold: Mapped[float] = mapped_column(Float)
    decision: Mapped[str] = mapped_column(WORD)
    reason: Mapped[str | None] = mapped_column(WORD)
    detail: Mapped[str] = mapped_column(Text)
    view: Mapped[str | None] = mapped_column(String(16))
    novelty: Mapped[float | None] = mapped_column(Float)  # distance from the training images; 1 is the limit
    age: Mapped[float | None] = mapped_column(Float)  # of the patient, years
    scored_at: Mapped[datetime]
    # what each place adds to the logit: `classifier.heat_map.HeatMap.to_bytes`; NULL without a score
    heat_map: Mapped[bytes | None]


class Rescore(Base):
    """One more score of an instance, by another model and for comparison alone: no report states it.

    It has a table of its own, so that what asks for the newest score of an image cannot find it.
    """

    __tablename__ = "rescore"
    __table_args__ = (
        UniqueConstraint("instance_id", "model_id"),
        CheckConstraint("(probability IS NULL) = (decision = 'not_scored')", "scored"),
        CheckConstraint("probability BETWEEN 0 AND 1", "probability"),
        CheckConstraint("decision IN ('positive', 'negative', 'undetermined', 'not_scored')", "decision"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    instance_id: Mapped[int] = mapped_column(ForeignKey(Instance.id))
    model_id: Mapped[int] = mapped_column(ForeignKey(Model.id))
    probability: Mapped[float | None] = mapped_column(Float)
    threshold: Mapped[float] = mapped_column(Float)
    decision: Mapped[str] = mapped_column(WORD)
    reason: Mapped[str | None] = mapped_column(WORD)
    detail: Mapped[str] = mapped_column(Text)
    view: Mapped[str | None] = mapped_column(String(16))
    novelty: Mapped[float | None] = mapped_column(Float)
    age: Mapped[float | None] = mapped_column(Float)
    scored_at: Mapped[datetime]


class Report(Base):
    """One revision of a study's report; `content` holds the exact bytes that are sent."""

    __tablename__ = "report"
    __table_args__ = (UniqueConstraint("study_id", "revision"),)

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey(Study.id))
    revision: Mapped[int] = mapped_column(Integer)
    sop_class_uid: Mapped[str] = mapped_column(UID)
    sop_instance_uid: Mapped[str] = mapped_column(UID, unique=True)
    series_instance_uid: Mapped[str] = mapped_column(UID)
    content: Mapped[bytes]
    made_at: Mapped[datetime]
    decision: Mapped[str | None] = mapped_column(WORD)  # on the study; NULL until it is read from `content`


class ReportImage(Base):
    """Which score of which instance a report states; no score where scoring failed."""

    __tablename__ = "report_image"

    report_id: Mapped[int] = mapped_column(ForeignKey(Report.id), primary_key=True)
    instance_id: Mapped[int] = mapped_column(ForeignKey(Instance.id), primary_key=True, index=True)
    score_id: Mapped[int | None] = mapped_column(ForeignKey(Score.id))


class ResultObject(Base):
    """One object that is made beside a report, such as its page; `content` holds the exact bytes.

    `result` is its class as `[[destinations]] send` names it, and `number` counts objects of one class.
    """

    __tablename__ = "result_object"
    __table_args__ = (UniqueConstraint("report_id", "result", "number"),)

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    report_id: Mapped[int] = mapped_column(ForeignKey(Report.id))
    result: Mapped[str] = mapped_column(WORD)
    number: Mapped[int] = mapped_column(Integer)
    sop_class_uid: Mapped[str] = mapped_column(UID)
    sop_instance_uid: Mapped[str] = mapped_column(UID, unique=True)
    series_instance_uid: Mapped[str] = mapped_column(UID)
    content: Mapped[bytes]
    made_at: Mapped[datetime]


class Delivery(Base):
    """One report, or one object made beside it, on its way to one destination, and the last answer.

    `delivered` means that C-STORE was answered with Success, `committed` that the destination promised to
    keep the object (Storage Commitment, PS3.4 Annex J), `abandoned` that the destination no longer exists.
    """

    __tablename__ = "delivery"
    __table_args__ = (
        UniqueConstraint("report_id", "destination", "result", "number"),
        Index(None, "state", "destination"),
        CheckConstraint("state IN ('pending', 'delivered', 'committed', 'failed', 'abandoned')", "state"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    report_id: Mapped[int] = mapped_column(ForeignKey(Report.id))
    destination: Mapped[str] = mapped_column(WORD)
    state: Mapped[str] = mapped_column(WORD)
    tries: Mapped[int] = mapped_column(Integer)  # failed associations and sends
    give_up_at: Mapped[datetime]
    sop_class_uid: Mapped[str | None] = mapped_column(
        UID
    )  # as sent; the destination may refuse the original one
    sop_instance_uid: Mapped[str | None] = mapped_column(UID)
    status: Mapped[int | None] = mapped_column(Integer)  # DIMSE status of the last answer
    error: Mapped[str | None] = mapped_column(Text)
    updated_at: Mapped[datetime]
    delivered_at: Mapped[datetime | None]
    committed_at: Mapped[datetime | None]
    result: Mapped[str] = mapped_column(WORD, server_default=text("'report'"))  # or that of a `ResultObject`
    number: Mapped[int] = mapped_column(Integer, server_default="0")


class CommitmentAsked(Base):
    """One storage commitment request to a destination; the answer refers to it by `transaction_uid`."""

    __tablename__ = "commitment_asked"

    transaction_uid: Mapped[str] = mapped_column(UID, primary_key=True)
    destination: Mapped[str] = mapped_column(WORD)
    asked_at: Mapped[datetime]


class CommitmentWanted(Base):
    """One storage commitment request from a modality, and how it was answered."""

    __tablename__ = "commitment_wanted"
    __table_args__ = (UniqueConstraint("calling_ae_title", "transaction_uid"),)

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    calling_ae_title: Mapped[str] = mapped_column(AE_TITLE)
    transaction_uid: Mapped[str] = mapped_column(UID)
    references: Mapped[str] = mapped_column("sop_references", Text)  # JSON: [[class, instance], ...]
    asked_at: Mapped[datetime]
    give_up_at: Mapped[datetime]
    answered_at: Mapped[datetime | None]
    committed: Mapped[int | None] = mapped_column(Integer)  # objects
    refused: Mapped[int | None] = mapped_column(Integer)


class Process(Base):
    """One role on one host, and its last heartbeat."""

    __tablename__ = "process"

    role: Mapped[str] = mapped_column(WORD, primary_key=True)
    host: Mapped[str] = mapped_column(String(255), primary_key=True)
    started_at: Mapped[datetime]
    seen_at: Mapped[float] = mapped_column(Float)  # database clock


class Job(Base):
    """One piece of work; this table is the queue.

    `visible_at` serves as lease, back-off and quiet timer of a study: a job can be claimed after that time.
    """

    __tablename__ = "job"
    __table_args__ = (
        UniqueConstraint("kind", "ref"),
        CheckConstraint("state IN ('ready', 'done', 'failed')", "state"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    kind: Mapped[str] = mapped_column(WORD)  # a `db.queue.Kind`
    lane: Mapped[str] = mapped_column(WORD)  # the destination of a delivery; no lane waits for another
    ref: Mapped[int] = mapped_column(BigInteger)  # id of the row that the job is about
    state: Mapped[str] = mapped_column(WORD)
    visible_at: Mapped[float] = mapped_column(Float)
    attempts: Mapped[int] = mapped_column(Integer)  # claims that did not end in good order
    token: Mapped[str | None] = mapped_column(WORD)  # of the worker that may finish the job
    error: Mapped[str | None] = mapped_column(Text)


class Verdict(Base):
    """What a person said of one image; never changed. The last one of an image counts."""

    __tablename__ = "verdict"
    __table_args__ = (
        CheckConstraint("label IN ('agree', 'pneumonia', 'no_pneumonia', 'unreadable')", "label"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    instance_id: Mapped[int] = mapped_column(ForeignKey(Instance.id), index=True)
    score_id: Mapped[int | None] = mapped_column(ForeignKey(Score.id))  # that was there, shown or not
    label: Mapped[str] = mapped_column(WORD)
    comment: Mapped[str] = mapped_column(Text)
    person: Mapped[str] = mapped_column(LABEL)
    score_was_visible: Mapped[bool] = mapped_column(Boolean)
    given_at: Mapped[datetime]


class Audit(Base):
    """Who looked at which study, or said something of it, and from which address."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    at: Mapped[datetime]
    person: Mapped[str] = mapped_column(LABEL)
    address: Mapped[str] = mapped_column(LABEL)
    action: Mapped[str] = mapped_column(WORD)
    study_id: Mapped[int | None] = mapped_column(ForeignKey(Study.id), index=True)
    detail: Mapped[str | None] = mapped_column(Text)  # what was asked for, or to whom it was done


def _partial(name: str, condition: str, *columns: Any) -> Index:
    """Index the few rows that are asked for; both planners use it only for the same words in the query."""
    return Index(name, *columns, postgresql_where=text(condition), sqlite_where=text(condition))


_partial("ix_instance_held", "removed_at IS NULL", Instance.received_at)
_partial("ix_instance_image", "image_id IS NOT NULL", Instance.image_id, Instance.turn)
_partial("ix_instance_unread", "patient_sex IS NULL", Instance.id)
_partial("ix_report_unread", "decision IS NULL", Report.id)
_partial("ix_score_probability", "probability IS NOT NULL", Score.probability, Score.instance_id)
_partial("ix_delivery_sent", "sop_instance_uid IS NOT NULL", Delivery.sop_instance_uid)
_partial("ix_job_ready", "state = 'ready'", Job.kind, Job.lane, Job.visible_at)
_partial("ix_job_suspect", "state = 'ready' AND attempts >= 2", Job.kind, Job.lane, Job.visible_at)
_partial("ix_job_failed", "state = 'failed'", Job.kind, Job.id)
_partial("ix_job_held", "token IS NOT NULL", Job.token)
