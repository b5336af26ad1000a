"""Storage commitment, both ways: promises of destinations to the node, requests of modalities to it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import case, insert, select, update
from sqlalchemy.orm import Session

from db.models import CommitmentAsked, CommitmentWanted, Delivery, Instance
from db.queue import Kind, close, enqueue, insert_or

_MOST_IN = 500  # values in one IN list

Reference = tuple[str, str]
"""SOP Class UID and SOP Instance UID."""


@dataclass(frozen=True, kw_only=True)
class Uncommitted:
    """One report that a destination accepted but has not yet promised to keep."""

    id: int
    sop_class_uid: str
    sop_instance_uid: str
    give_up_at: datetime


@dataclass(frozen=True, kw_only=True)
class ModalityRequest:
    """One request from a modality."""

    id: int
    calling_ae_title: str
    transaction_uid: str
    references: Sequence[Reference]
    give_up_at: datetime


# What the node asks destinations


def uncommitted(session: Session, ids: Sequence[int]) -> list[Uncommitted]:
    """Return the deliveries among `ids` that are delivered but not committed."""
    statement = select(Delivery).where(Delivery.id.in_(ids), Delivery.state == "delivered")
    return [
        Uncommitted(
            id=row.id,
            sop_class_uid=row.sop_class_uid or "",
            sop_instance_uid=row.sop_instance_uid or "",
            give_up_at=row.give_up_at,
        )
        for row in session.scalars(statement.order_by(Delivery.id))
    ]


def add_asked(session: Session, transaction_uid: str, destination: str, asked_at: datetime) -> None:
    """Record a request before it is sent, because another process may get the answer at once."""
    session.execute(
        insert(CommitmentAsked).values(
            transaction_uid=transaction_uid, destination=destination, asked_at=asked_at
        )
    )


def destination_asked(session: Session, transaction_uid: str) -> str | None:
    """Return the destination that was asked under a Transaction UID."""
    return session.scalars(
        select(CommitmentAsked.destination).where(CommitmentAsked.transaction_uid == transaction_uid)
    ).first()


def record_committed(session: Session, destination: str, uids: Iterable[str], at: datetime) -> int:
    """Record that a destination keeps these objects; return how many reports are newly committed."""
    ids = _delivered(session, destination, uids)
    session.execute(
        update(Delivery)
        .where(Delivery.id.in_(ids))
        .values(state="committed", committed_at=at, updated_at=at, error=None)
    )
    close(session, Kind.COMMIT, ids)
    return len(ids)


def record_lost(
    session: Session, destination: str, uids: Iterable[str], why: str, *, pause_seconds: float, at: datetime
) -> int:
    """Record that a destination does not have these objects after all: send them again, or give up."""
    ids = _delivered(session, destination, uids)
    is_late = Delivery.give_up_at <= at
    late = list(session.scalars(select(Delivery.id).where(Delivery.id.in_(ids), is_late)))
    state = case((is_late, "failed"), else_="pending")
    session.execute(
        update(Delivery)
        .where(Delivery.id.in_(ids))
        .values(state=state, tries=Delivery.tries + 1, error=why, updated_at=at)
        .execution_options(synchronize_session=False)
    )
    close(session, Kind.COMMIT, ids)
    for id_ in ids:
        enqueue(session, Kind.DELIVER, id_, lane=destination, wait_seconds=pause_seconds)
    close(session, Kind.DELIVER, late, why)
    return len(ids)


def record_uncommittable(
    session: Session, destination: str, uids: Iterable[str], why: str, at: datetime
) -> int:
    """Record that a destination will not promise to keep these objects, although it accepted them."""
    ids = _delivered(session, destination, uids)
    session.execute(update(Delivery).where(Delivery.id.in_(ids)).values(error=why, updated_at=at))
    close(session, Kind.COMMIT, ids, why)
    return len(ids)


def _delivered(session: Session, destination: str, uids: Iterable[str]) -> list[int]:
    wanted = list(dict.fromkeys(uids))
    found: list[int] = []
    for at in range(0, len(wanted), _MOST_IN):
        found += session.scalars(
            select(Delivery.id).where(
                Delivery.destination == destination,
                Delivery.state == "delivered",
                Delivery.sop_instance_uid.in_(wanted[at : at + _MOST_IN]),
            )
        )
    return found


# What modalities ask of the node


def add_wanted(
    session: Session,
    calling_ae_title: str,
    transaction_uid: str,
    references: Sequence[Reference],
    *,
    asked_at: datetime,
    give_up_at: datetime,
    wait_seconds: float,
) -> int:
    """Record a request and the job that answers it a moment later; return the id of the request."""
    keys = {"calling_ae_title": calling_ae_title, "transaction_uid": transaction_uid}
    columns = {
        "sop_references": json.dumps(references),
        "asked_at": asked_at,
        "give_up_at": give_up_at,
        "answered_at": None,
    }
    table = CommitmentWanted.__table__
    statement = insert_or(session, table).values(**keys, **columns)
    statement = statement.on_conflict_do_update(
        index_elements=["calling_ae_title", "transaction_uid"], set_=columns
    ).returning(table.c.id)
    id_ = int(session.execute(statement).scalar_one())
    enqueue(session, Kind.CONFIRM, id_, wait_seconds=wait_seconds)
    return id_


def wanted(session: Session, ids: Sequence[int]) -> list[ModalityRequest]:
    """Return requests in the order of `ids`."""
    rows = session.scalars(select(CommitmentWanted).where(CommitmentWanted.id.in_(ids)))
    found = {row.id: row for row in rows}
    return [
        ModalityRequest(
            id=id_,
            calling_ae_title=found[id_].calling_ae_title,
            transaction_uid=found[id_].transaction_uid,
            references=[(pair[0], pair[1]) for pair in json.loads(found[id_].references)],
            give_up_at=found[id_].give_up_at,
        )
        for id_ in ids
    ]


def record_answered(session: Session, wanted_id: int, committed: int, refused: int, at: datetime) -> None:
    """Record that a modality was told what is kept here."""
    session.execute(
        update(CommitmentWanted)
        .where(CommitmentWanted.id == wanted_id)
        .values(answered_at=at, committed=committed, refused=refused)
    )


def kept(session: Session, uids: Iterable[str]) -> dict[str, list[tuple[str, str, int]]]:
    """Return SOP Class UID, digest and size of the objects kept here, by SOP Instance UID."""
    asked = list(dict.fromkeys(uids))
    found: dict[str, list[tuple[str, str, int]]] = {}
    for at in range(0, len(asked), _MOST_IN):
        rows = session.execute(
            select(Instance.sop_instance_uid, Instance.sop_class_uid, Instance.digest, Instance.size).where(
                Instance.sop_instance_uid.in_(asked[at : at + _MOST_IN]), Instance.removed_at.is_(None)
            )
        )
        for uid, sop_class, digest, size in rows:
            found.setdefault(uid, []).append((sop_class, digest, size))
    return found
