"""What goes to each destination, and what became of it.

A destination gets the report, and what is made beside it for each revision: objects of other result classes,
which are rows of `ResultObject`. Each object has a delivery of its own for each destination.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import case, insert, select, update
from sqlalchemy.orm import Session

from db.models import Delivery, Job, Report, ResultObject, Study
from db.queue import BESIDE_REPORT, Kind, enqueue
from db.rows import NewResult, PendingDelivery

REPORT = "report"
"""The result class that is no `ResultObject`: the structured report itself."""


def deliver(
    session: Session,
    report_id: int,
    destinations: Sequence[str],
    *,
    result: str = REPORT,
    number: int = 0,
    give_up_at: datetime,
    at: datetime,
) -> None:
    """Record that destinations get an object, each with a delivery and its job."""
    for destination in destinations:
        delivery_id = session.execute(
            insert(Delivery)
            .values(
                report_id=report_id,
                result=result,
                number=number,
                destination=destination,
                state="pending",
                tries=0,
                give_up_at=give_up_at,
                updated_at=at,
            )
            .returning(Delivery.id)
        ).scalar_one()
        enqueue(session, Kind.DELIVER, delivery_id, lane=destination)


def add_results(
    session: Session,
    results: Sequence[NewResult],
    destinations: Sequence[str],
    give_up_at: datetime,
    at: datetime,
) -> None:
    """Record objects that were made beside a report, and that destinations get them."""
    for one in results:
        session.execute(insert(ResultObject).values(**vars(one), made_at=at))
        deliver(
            session,
            one.report_id,
            destinations,
            result=one.result,
            number=one.number,
            give_up_at=give_up_at,
            at=at,
        )


def withdraw_reports(session: Session, study_id: int, before_revision: int, at: datetime, why: str) -> None:
    """Give up, for good, what no destination has yet of a study's earlier reports.

    A report that is being sent at this very moment goes out.
    """
    mine = select(Report.id).where(Report.study_id == study_id, Report.revision < before_revision)
    # First what is still to be made, or was given up: afterwards no delivery can be added
    session.execute(
        update(Job)
        .where(Job.kind.in_(BESIDE_REPORT), Job.ref.in_(mine), Job.state != "done")
        .values(state="done", token=None, error=None)
        .execution_options(synchronize_session=False)
    )
    theirs = (
        select(Delivery.id)
        .join(Report, Report.id == Delivery.report_id)
        .where(Report.study_id == study_id, Report.revision < before_revision)
        .where(Delivery.state.in_(("pending", "failed")))
    )
    closed = session.scalars(
        update(Job)
        .where(Job.kind == Kind.DELIVER, Job.ref.in_(theirs), Job.token.is_(None), Job.state != "done")
        .values(state="done", error=None)
        .returning(Job.ref)
        .execution_options(synchronize_session=False)
    ).all()
    for delivery_id in closed:
        record_delivery(session, delivery_id, state="abandoned", error=why, updated_at=at)


def pending(session: Session, ids: Sequence[int]) -> list[PendingDelivery]:
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
    # A delivery whose workers died stays pending, but its job has ended: nothing waits for it.
    earlier = (
        select(Delivery.id)
        .join(Report, Report.id == Delivery.report_id)
        .join(Job, (Job.kind == Kind.DELIVER) & (Job.ref == Delivery.id))
        .where(Report.study_id == report.study_id, Report.revision < report.revision)
        .where(Delivery.destination == row.destination, Delivery.result == row.result)
        .where(Delivery.state == "pending", Job.state == "ready")
    )
    return PendingDelivery(
        id=row.id,
        destination=row.destination,
        tries=row.tries,
        give_up_at=row.give_up_at,
        revision=report.revision,
        study_instance_uid=study_instance_uid,
        result=row.result,
        content=report.content if row.result == REPORT else _content(session, row),
        waits_for_earlier=session.execute(earlier.limit(1)).first() is not None,
    )


def _content(session: Session, row: Delivery) -> bytes:
    named = {"report_id": row.report_id, "result": row.result, "number": row.number}
    return session.scalars(select(ResultObject.content).filter_by(**named)).one()


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
    """Record that a destination accepted a report; if it offers storage commitment, schedule the request.

    Parameters
    ----------
    give_up_at
        When to stop asking, and sending the report again if it is missing; counted from the first delivery.
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
    """Record a failed try."""
    record_delivery(session, delivery_id, tries=Delivery.tries + 1, **values)
