"""Rows of results, studies and verdicts, page by page for programs.

Pages are found by keyset: each begins behind the last row of the one before. So no row is missed or comes
twice while others are added, and the last page costs what the first does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Select, case, column, exists, select, table
from sqlalchemy.orm import Session, aliased

from db.models import Instance, Score, Study, Utc, Verdict
from db.results import STUDY_COLUMNS, Filter, matches, named, result_rows

VERDICT_COLUMNS = (
    *("patient_id", "patient_name", "accession_number", "study_instance_uid", "sop_instance_uid"),
    *("label", "comment", "person", "given_at", "score_was_visible", "decision", "probability", "counts"),
)
_STUDIES = table(
    "studies",
    *(column(one, Utc() if one.endswith("_at") else None) for one in (*STUDY_COLUMNS, "study_id")),
)

Row = dict[str, Any]


@dataclass(frozen=True)
class RowPage:
    """Some rows, the newest first, and the key behind which the next page begins; ``None`` on the last."""

    rows: Sequence[Row]
    next: tuple[Any, ...] | None


def results(session: Session, wanted: Filter, limit: int) -> RowPage:
    """Return a page of the view `results`; its key is that of `Filter.after`."""
    found = result_rows(session, replace(wanted, limit=limit + 1))
    return _page(found, limit, ("received_at", "sop_instance_uid", "instance_id"))


def studies(session: Session, wanted: Filter, limit: int, after: int | None = None) -> RowPage:
    """Return a page of the view `studies`; its key is the id of a study, of which later ones are larger.

    The period is that in which the first image came, the decision that of the report.
    """
    asked = select(*_STUDIES.c).where(*_of_studies(wanted, _STUDIES.c))
    if after is not None:
        asked = asked.where(_STUDIES.c.study_id < after)
    rows = session.execute(asked.order_by(_STUDIES.c.study_id.desc()).limit(limit + 1)).mappings()
    return _page([dict(row) for row in rows], limit, ("study_id",))


def verdicts(session: Session, wanted: Filter, limit: int, after: int | None = None) -> RowPage:
    """Return a page of verdicts; its key is the id of a verdict, of which later ones are larger.

    The period is that in which they were given, decision and probability those that were there.
    """
    asked = _verdicts().where(*_of_verdicts(wanted))
    if after is not None:
        asked = asked.where(Verdict.id < after)
    rows = session.execute(asked.order_by(Verdict.id.desc()).limit(limit + 1)).mappings()
    return _page([dict(row) for row in rows], limit, ("verdict_id",))


def _page(found: Sequence[Row], limit: int, keys: Sequence[str]) -> RowPage:
    last = found[limit - 1] if len(found) > limit else None
    hidden = [name for name in keys if name.endswith("_id")]
    following = None if last is None else tuple(last[name] for name in keys)
    rows = [{name: row[name] for name in row if name not in hidden} for row in found[:limit]]
    return RowPage(rows, following)


def _of_studies(wanted: Filter, columns: Any) -> Iterator[Any]:
    image = aliased(Instance)
    of_study = image.study_id == columns.study_id
    for value, conditions in (
        (wanted.patient, named(image, wanted.patient or "")),
        (wanted.accession, matches(image.accession_number, wanted.accession or "")),
        (wanted.study_dates, image.study_date.between(*(wanted.study_dates or ("", "")))),
    ):
        if value is not None:  # of one of its images; looked up by their indexes
            yield columns.study_id.in_(select(image.study_id).where(conditions))
    if wanted.study is not None:
        yield matches(columns.study_instance_uid, wanted.study)
    if wanted.since is not None:
        yield columns.first_received_at >= wanted.since
    if wanted.until is not None:
        yield columns.first_received_at < wanted.until
    if wanted.decision is not None:
        yield columns.decision == wanted.decision
    if wanted.min_probability is not None:
        scored = select(Score.id).join(image, image.id == Score.instance_id)
        yield exists(scored.where(of_study, Score.probability >= wanted.min_probability))
        yield columns.highest_probability >= wanted.min_probability


def _verdicts() -> Select[Any]:
    newer = aliased(Verdict)
    is_replaced = exists().where(newer.instance_id == Verdict.instance_id, newer.id > Verdict.id)
    known = {
        "patient_id": Instance.patient_id,
        "patient_name": Instance.patient_name,
        "accession_number": Instance.accession_number,
        "study_instance_uid": Study.study_instance_uid,
        "sop_instance_uid": Instance.sop_instance_uid,
        "decision": Score.decision,
        "probability": Score.probability,
        "counts": case((is_replaced, 0), else_=1),
    }
    columns = [known[n].label(n) if n in known else getattr(Verdict, n).label(n) for n in VERDICT_COLUMNS]
    asked = select(*columns, Verdict.id.label("verdict_id"))
    asked = asked.join(Instance, Instance.id == Verdict.instance_id)
    asked = asked.join(Study, Study.id == Instance.study_id)
    return asked.outerjoin(Score, Score.id == Verdict.score_id)


def _of_verdicts(wanted: Filter) -> Iterator[Any]:
    if wanted.patient is not None:
        yield named(Instance, wanted.patient)
    if wanted.accession is not None:
        yield matches(Instance.accession_number, wanted.accession)
    if wanted.study is not None:
        yield matches(Study.study_instance_uid, wanted.study)
    if wanted.study_dates is not None:
        yield Instance.study_date.between(*wanted.study_dates)
    if wanted.since is not None:
        yield Verdict.given_at >= wanted.since
    if wanted.until is not None:
        yield Verdict.given_at < wanted.until
    if wanted.decision is not None:
        yield Score.decision == wanted.decision
    if wanted.min_probability is not None:
        yield Score.probability >= wanted.min_probability
