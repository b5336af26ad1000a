"""Rows as a receiver and workers would write them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select, text

from db import deliveries, queries, queue
from db.errors import WriteConflict
from db.models import Base, Delivery, Instance, Job, Score, Study
from db.queue import Kind
from db.rows import NewInstance, NewReport, NewScore, PendingDelivery, Received
from db.session import Database
from tests.conftest import uid

NOW = datetime(2025, 6, 10, 1, 30, tzinfo=UTC)


QUIET = 60.0


def new(number: int = 1, study: str = "1", content: str = "a", **values: Any) -> NewInstance:
    """Return a received object; the same names and content give the same identifiers and digest."""
    sop_instance_uid = uid(study, number)
    defaults = {
        "study_instance_uid": uid(study, "study"),
        "patient_id": f"PID-{study}",
        "issuer_of_patient_id": "HOSPITAL-A",
        "patient_name": "Test^Alice",
        "patient_birth_date": "20210214",
        "accession_number": f"ACC-{study}",
        "study_date": "20250610",
        "sop_instance_uid": sop_instance_uid,
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.1.1",
        "series_instance_uid": uid(study, "series"),
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "modality": "DX",
        "view_position": "PA",
        "digest": hashlib.sha256(f"{sop_instance_uid}{content}".encode()).hexdigest(),
        "size": 2**33,
        "calling_ae_title": "MODALITY",
        "received_at": NOW,
    }
    return NewInstance(**{**defaults, **values})


def receive(database: Database, one: NewInstance, quiet: float = QUIET) -> Received:
    """Record an object as the receiver does, which looks again where another association came first."""
    for _ in range(5):
        try:
            with database.write() as session:
                return queries.add_instance(session, one, quiet)
        except WriteConflict:
            continue
    raise AssertionError("five times another one came first")


def instance_id(database: Database, number: int = 1, study: str = "1", copy: int = 0) -> int:
    statement = select(Instance.id).where(Instance.sop_instance_uid == uid(study, number))
    with database.read() as session:
        return session.scalars(statement.where(Instance.copy == copy)).one()


def study_id(database: Database, study: str = "1") -> int:
    with database.read() as session:
        return session.scalars(select(Study.id).where(Study.study_instance_uid == uid(study, "study"))).one()


def register(database: Database, name: str = "DenseNet121", started_at: datetime = NOW) -> int:
    row = {"sha256": hashlib.sha256(name.encode()).hexdigest(), "name": name, "version": "2025.06"}
    with database.write() as session:
        rest = {"threshold": 0.5, "preprocessing": "resize 224x224", "card": "{}"}
        return queries.register_model(session, {**row, **rest}, started_at)


def score(
    database: Database, number: int = 1, study: str = "1", model: str = "DenseNet121", **values: Any
) -> int:
    """Record a score, 0.9 if none is given, and return its id."""
    defaults = {
        "instance_id": instance_id(database, number, study),
        "model_id": register(database, model),
        "probability": 0.9,
        "threshold": 0.5,
        "decision": "positive",
        "reason": None,
        "detail": "",
        "view": "PA",
        "scored_at": NOW,
    }
    one = NewScore(**{**defaults, **values})
    with database.write() as session:
        queries.add_score(session, one)
        return session.scalars(select(func.max(Score.id))).one()


def report(
    database: Database,
    images: dict[int, int | None],
    study: str = "1",
    revision: int = 1,
    destinations: Sequence[str] = ("PACS", "ARCHIVE"),
) -> str:
    """Record a report of images, by id, with the ids of their scores; return its UID."""
    made = NewReport(
        study_id=study_id(database, study),
        revision=revision,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
        sop_instance_uid=uid(study, "report", revision),
        series_instance_uid=uid(study, "report series"),
        content=bytes(range(256)) * revision,
        made_at=NOW,
        decision="positive",
        images=frozenset(images.items()),
        destinations=destinations,
        give_up_at=NOW + timedelta(hours=72),
    )
    with database.write() as session:
        queries.add_report(session, made)
    return made.sop_instance_uid


def pending(database: Database) -> list[PendingDelivery]:
    """Return all deliveries, as the stage that sends them gets them."""
    with database.read() as session:
        return deliveries.pending(session, session.scalars(select(Delivery.id).order_by(Delivery.id)).all())


def rows(database: Database, entity: type[Base]) -> list[Any]:
    with database.read() as session:
        return list(session.execute(select(*entity.__table__.columns).order_by(text("1"))))


def jobs(database: Database, kind: Kind) -> list[tuple[int, str]]:
    """Return what jobs of a kind refer to, with their states."""
    return sorted((row.ref, row.state) for row in rows(database, Job) if row.kind == kind)


def finish(database: Database, kind: Kind, lane: str = "") -> None:
    """Finish all jobs of a kind, due or not."""
    with database.write() as session:
        session.execute(text("UPDATE job SET visible_at = 0 WHERE kind = :kind"), {"kind": kind})
        claim = queue.claim(session, kind, lane, limit=99, lease_seconds=60)
        queue.finish(session, claim.token, [job.id for job in claim.jobs])
