"""What people ask the results database: the score of each image, and what became of its report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Select,
    TableClause,
    column,
    func,
    or_,
    select,
    table,
    union,
    union_all,
)
from sqlalchemy.orm import Session

from db.models import (
    Delivery,
    Instance,
    Job,
    ReportImage,
    Score,
    Study,
    Utc,
)
from db.queue import FAILED, READY, Kind

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
    *("issuer_of_patient_id", "patient_birth_date", "study_problem"),
    *("patient_sex", "calling_ae_title", "station_name", "manufacturer", "manufacturer_model_name"),
    *("device_serial_number", "software_versions", "institution_name", "study_time"),
    *("presentation_intent_type", "image_rows", "image_columns", "bits_stored", "transfer_syntax_uid"),
)
LEDGER_COLUMNS = (
    *("study_instance_uid", "accession_number", "patient_id", "sop_instance_uid", "calling_ae_title"),
    *("received_at", "removed_at", "decision", "probability", "scored_at"),
    *("report_uid", "report_revision", "reported_at"),
    *("destination", "state", "tries", "sent_uid", "status", "delivered_at", "committed_at"),
    *("give_up_at", "error"),
    *("patient_name", "issuer_of_patient_id", "patient_birth_date", "study_problem", "is_replaced"),
    *("reason", "detail", "result"),
)
STUDY_COLUMNS = (
    *("patient_id", "patient_name", "issuer_of_patient_id", "patient_birth_date", "accession_number"),
    *("study_instance_uid", "study_date", "decision", "highest_probability"),
    *("images_scored", "images_not_scored", "images_waiting", "reasons", "report_uid", "report_revision"),
    *("first_received_at", "last_received_at", "reported_at", "delivered_at", "committed_at"),
    *("seconds_to_delivery", "deliveries", "study_problem"),
)
SCORE_COLUMNS = (
    *("patient_id", "accession_number", "study_instance_uid", "sop_instance_uid", "scored_at"),
    *("probability", "threshold", "decision", "reason", "detail", "view", "novelty", "age"),
    *("model_name", "model_version", "model_sha256", "is_newest", "is_replaced"),
    *("is_rescore", "received_at", "patient_name"),
)
DELIVERY_COLUMNS = (
    *("study_instance_uid", "report_uid", "report_revision", "reported_at", "is_newest"),
    *("destination", "result", "state", "tries", "status", "sent_uid"),
    *("delivered_at", "committed_at", "give_up_at", "error"),
)
_RESULTS_OF_PROGRAMS = ("OWN_RESULT", "DERIVED_RESULT")
_DEARER = 6  # times, to look up an image somewhere than to pass it on the way from the newest
_EVER = datetime(1900, 1, 1, tzinfo=UTC)  # before anything was received
_AT_ONCE = 200  # images that are looked up in full at once


def view(name: str, columns: Sequence[str], key: str = "instance_id") -> TableClause:
    """Return a view, with the column by which its images or studies are numbered."""
    known = (*columns, key)
    return table(name, *(column(one, Utc() if one.endswith("_at") else None) for one in known))


_RESULTS = view("results", RESULT_COLUMNS)
_LEDGER = view("ledger", LEDGER_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which rows of the view `results` are wanted; ``None`` matches all. In texts, ``*`` matches anything.

    Attributes
    ----------
    study_dates
        The first and the last date, YYYYMMDD; not for the ledger.
    state
        State of a delivery; for the ledger only.
    with_results
        Whether results of programs that a PACS sent, such as the node's own reports, are rows too.
    after
        Time of reception, SOP Instance UID and `instance_id` of the last row of the page before.
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
    with_results: bool = True
    limit: int | None = None
    after: tuple[datetime, str, int] | None = None


def results(session: Session, wanted: Filter) -> list[dict[str, Any]]:
    """Return rows of the view `results`, the newest first."""
    return _newest(session, _RESULTS, wanted, RESULT_COLUMNS, ("sop_instance_uid",))


def ledger(session: Session, wanted: Filter) -> list[dict[str, Any]]:
    """Return rows of the view `ledger`, the newest first: one for each image and destination."""
    return _newest(session, _LEDGER, wanted, LEDGER_COLUMNS, ("sop_instance_uid", "destination"))


def each_result(session: Session, wanted: Filter) -> Iterator[dict[str, Any]]:
    """Yield all rows of the view `results` that match, the newest first, without holding them all."""
    return _each(session, _RESULTS, wanted, RESULT_COLUMNS, ("sop_instance_uid",))


def each_of_ledger(session: Session, wanted: Filter) -> Iterator[dict[str, Any]]:
    """Yield all rows of the view `ledger` that match, the newest first, without holding them all."""
    return _each(session, _LEDGER, wanted, LEDGER_COLUMNS, ("sop_instance_uid", "destination"))


def result_rows(session: Session, wanted: Filter) -> list[dict[str, Any]]:
    """Return rows of the view `results`, the newest first, with `instance_id`: in one order for all."""
    names = (*RESULT_COLUMNS, "instance_id")
    return _newest(session, _RESULTS, wanted, names, ("sop_instance_uid", "instance_id"))


def how_many_results(session: Session, wanted: Filter, most: int) -> int:
    """Count the images that match, up to `most`."""
    some = select(_RESULTS.c.instance_id).where(*conditions(wanted, _RESULTS.c)).limit(most)
    return session.execute(select(func.count()).select_from(some.subquery())).scalar_one()


def _each(
    session: Session, seen: TableClause, wanted: Filter, names: Sequence[str], ties: Sequence[str]
) -> Iterator[dict[str, Any]]:
    if wanted.limit is not None:
        yield from _newest(session, seen, wanted, names, ties)
        return
    order = (seen.c.received_at.desc(), *(seen.c[name] for name in ties))
    # The period makes SQLite use the index that has the rows in this order
    met = [*conditions(wanted, seen.c), seen.c.received_at >= _EVER]
    statement = select(*(seen.c[name] for name in names)).where(*met).order_by(*order)
    rows = session.execute(statement.execution_options(yield_per=_AT_ONCE))
    for row in rows.mappings():
        yield dict(row)


def _newest(
    session: Session, seen: TableClause, wanted: Filter, names: Sequence[str], ties: Sequence[str]
) -> list[dict[str, Any]]:
    """Return rows in two steps: first find the images with as little as possible, then read all about them.

    Planners cannot choose the short way to the images: SQLite has no statistics, and those of PostgreSQL do
    not tell whether a value that is rare overall is frequent among the newest images.
    """
    met = [*conditions(wanted, seen.c)]
    order = (seen.c.received_at.desc(), *(seen.c[name] for name in ties))
    statement = select(*(seen.c[name] for name in names)).where(*met).order_by(*order)
    if wanted.limit is None:
        return [dict(row) for row in session.execute(statement).mappings()]
    few = _few(session, wanted)
    if few is None:
        # The period makes SQLite use the index that has the rows in this order
        on_the_way = [*met, seen.c.received_at >= _EVER, *_before_all_else(wanted, seen.c.instance_id)]
        asked = select(seen.c.instance_id).where(*on_the_way).order_by(*order)
        few = list(dict.fromkeys(session.scalars(asked.limit(wanted.limit))))  # each has several rows
    found: list[dict[str, Any]] = []
    for at in range(0, len(few), _AT_ONCE):
        left = wanted.limit - len(found)
        some = statement.where(seen.c.instance_id.in_(few[at : at + _AT_ONCE])).limit(left)
        found += [dict(row) for row in session.execute(some).mappings()]
        if len(found) >= wanted.limit:
            break
    return found


def _few(session: Session, wanted: Filter) -> Sequence[int] | None:
    """Return the images that meet, or once met, one of the conditions, newest first, if they are few."""
    most = _worth_looking_up(session, wanted.limit or 1)
    for some in narrowing(wanted):
        number = select(func.count()).select_from(some.limit(most + 1).subquery())
        if session.execute(number).scalar_one() <= most:
            newest = (Instance.received_at.desc(), Instance.sop_instance_uid)
            asked = select(Instance.id).where(Instance.id.in_(some), *_period(wanted, Instance))
            return session.scalars(asked.order_by(*newest)).all()
    return None


def _worth_looking_up(session: Session, limit: int) -> int:
    """Return the number of images up to which looking up each is faster than a walk from the newest.

    If `number` images match, a walk passes ``limit * all / number`` images before it has enough.
    """
    everything = session.execute(select(func.max(Instance.id))).scalar_one() or 0
    return math.isqrt(limit * everything // _DEARER)


def _before_all_else(wanted: Filter, instance_id: Any) -> Iterator[Any]:
    """Yield conditions that exclude most images on the walk by one index lookup each."""
    if wanted.min_probability is not None:
        any_score = select(func.max(Score.probability)).where(Score.instance_id == instance_id)
        yield any_score.scalar_subquery() >= wanted.min_probability


def narrowing(wanted: Filter) -> Iterator[Select[Any]]:
    """Yield the images that meet, or once met, one of the conditions each."""
    any_image = select(Instance.id)
    if wanted.study is not None and "*" not in wanted.study:
        of_study = any_image.join(Study, Study.id == Instance.study_id)
        yield of_study.where(Study.study_instance_uid == wanted.study)
    if wanted.accession is not None and "*" not in wanted.accession:
        yield any_image.where(Instance.accession_number == wanted.accession)
    if wanted.patient is not None and "*" not in wanted.patient:
        named = (Instance.patient_id, Instance.patient_name)
        either = (any_image.where(one == wanted.patient) for one in named)
        yield select(union(*either).subquery().c.id)
    if wanted.study_dates is not None:
        yield any_image.where(Instance.study_date.between(*wanted.study_dates))
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


def conditions(wanted: Filter, columns: Any) -> Iterable[Any]:
    """Yield the conditions on the columns of a view that has a row for each image."""
    if wanted.patient is not None:
        yield named(columns, wanted.patient)
    if wanted.accession is not None:
        yield matches(columns.accession_number, wanted.accession)
    if wanted.study is not None:
        yield matches(columns.study_instance_uid, wanted.study)
    if wanted.study_dates is not None:
        yield columns.study_date.between(*wanted.study_dates)
    yield from _period(wanted, columns)
    if wanted.decision is not None:
        yield columns.decision == wanted.decision
    if wanted.min_probability is not None:
        yield func.coalesce(columns.probability, -1) >= wanted.min_probability  # no result yet
    if wanted.state is not None:
        yield columns.state == wanted.state
    if wanted.after is not None:
        yield from _behind(wanted.after, columns)
    if not wanted.with_results:
        yield func.coalesce(columns.reason, "").not_in(_RESULTS_OF_PROGRAMS)


def _period(wanted: Filter, columns: Any) -> Iterator[Any]:
    if wanted.since is not None:
        yield columns.received_at >= wanted.since
    if wanted.until is not None:
        yield columns.received_at < wanted.until


def _behind(after: tuple[datetime, str, int], columns: Any) -> Iterator[Any]:
    moment, uid, instance_id = after
    yield columns.received_at <= moment  # an index serves this alone
    is_next = (columns.sop_instance_uid == uid) & (columns.instance_id > instance_id)
    yield or_(columns.received_at < moment, columns.sop_instance_uid > uid, is_next)


def named(columns: Any, pattern: str) -> Any:
    """Compare Patient ID and Patient's Name with a text, in which ``*`` matches anything."""
    return or_(matches(columns.patient_id, pattern), matches(columns.patient_name, pattern))


def matches(where: Any, pattern: str) -> Any:
    """Compare a column with a text, in which ``*`` matches anything."""
    if "*" not in pattern:
        return where == pattern
    escaped = pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_").replace("*", "%")
    return where.ilike(escaped, escape="\\")
