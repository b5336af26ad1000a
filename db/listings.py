"""Rows of a view, image by image or study by study: few at a time, however many there are.

First the images or studies are found with as little as possible, then their rows are read in batches.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from sqlalchemy import ScalarResult, TableClause, func, select, true
from sqlalchemy.orm import Session

from db.models import Instance, Score, Study
from db.results import (
    LEDGER_COLUMNS,
    RESULT_COLUMNS,
    SCORE_COLUMNS,
    STUDY_COLUMNS,
    Filter,
    conditions,
    narrowing,
    view,
)

_AT_ONCE = 200  # images or studies


@dataclass(frozen=True)
class Listing:
    """One view, and how its rows are found."""

    name: str
    columns: Sequence[str]
    ties: Sequence[str]  # the order of rows of one image

    @property
    def key(self) -> str:
        return "study_id" if self.name == "studies" else "instance_id"


STUDIES = Listing("studies", STUDY_COLUMNS, ())
SCORES = Listing("scores", SCORE_COLUMNS, ("scored_at",))
RESULTS = Listing("results", RESULT_COLUMNS, ())
LEDGER = Listing("ledger", LEDGER_COLUMNS, ("destination", "result"))


def rows(
    session: Session, of: Listing, wanted: Filter, *, is_shuffled: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield rows, those of what came last first.

    Parameters
    ----------
    is_shuffled
        Whether the order shall tell nothing: the rows of `wanted.limit` images or studies, in random order.
    """
    with closing(_keys(session, of, wanted)) as newest:
        found = islice(_rows(session, of, wanted, newest), wanted.limit)
        if not is_shuffled:
            yield from (row for _, row in found)
            return
        keys = list(dict.fromkeys(key for key, _ in found))  # these alone are kept in memory
    random.SystemRandom().shuffle(keys)
    yield from islice((row for _, row in _rows(session, of, wanted, keys)), wanted.limit)


def how_many(session: Session, of: Listing, wanted: Filter, most: int) -> int:
    """Count the rows that match, up to `most`."""
    seen = view(of.name, of.columns, of.key)
    some = select(seen.c[of.key]).where(*_where(of, wanted, seen)).limit(most)
    return session.execute(select(func.count()).select_from(some.subquery())).scalar_one()


def _keys(session: Session, of: Listing, wanted: Filter) -> ScalarResult[int]:
    """Return the images or studies that may match, newest first."""
    images = _narrow(of, wanted)
    if of is STUDIES:
        found = select(Study.id).where(*_between(wanted, Study.last_received_at))
        for some in images:
            found = found.where(Study.id.in_(select(Instance.study_id).where(Instance.id.in_(some))))
        found = found.order_by(Study.last_received_at.desc(), Study.id.desc())
    else:
        found = select(Instance.id).where(*_between(wanted, Instance.received_at))
        for some in images:
            found = found.where(Instance.id.in_(some))
        if of is SCORES:
            found = found.where(select(Score.id).where(Score.instance_id == Instance.id).exists())
        found = found.order_by(Instance.received_at.desc(), Instance.sop_instance_uid)
    return session.scalars(found.execution_options(yield_per=_AT_ONCE))


def _narrow(of: Listing, wanted: Filter) -> Iterator[Any]:
    """Yield sets of images to which what matches is confined, where an index has them."""
    if of in (STUDIES, SCORES):  # their decisions and probabilities are not those of images
        wanted = replace(wanted, decision=None, min_probability=None, state=None)
    return narrowing(wanted)


def _between(wanted: Filter, moment: Any) -> Iterator[Any]:
    yield moment >= wanted.since if wanted.since is not None else true()
    if wanted.until is not None:
        yield moment < wanted.until


def _rows(
    session: Session, of: Listing, wanted: Filter, keys: Iterable[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    seen = view(of.name, of.columns, of.key)
    key = seen.c[of.key]
    asked = select(key.label("_key"), *(seen.c[name] for name in of.columns))
    asked = asked.where(*_where(of, wanted, seen)).order_by(*(seen.c[name] for name in of.ties))
    left = iter(keys)
    while some := list(islice(left, _AT_ONCE)):
        place = {one: position for position, one in enumerate(some)}
        found = [dict(row) for row in session.execute(asked.where(key.in_(some))).mappings()]
        found.sort(key=lambda row: place[row["_key"]])
        for row in found:
            yield row.pop("_key"), row


def _where(of: Listing, wanted: Filter, seen: TableClause) -> Iterable[Any]:
    if of is not STUDIES:
        return conditions(wanted, seen.c)
    return _of_studies(wanted, seen.c)


def _of_studies(wanted: Filter, columns: Any) -> Iterator[Any]:
    plain = replace(
        wanted, since=None, until=None, decision=None, min_probability=None, with_results=True, state=None
    )
    yield from conditions(plain, columns)
    yield from _between(wanted, columns.last_received_at)
    if wanted.decision is not None:
        is_open = wanted.decision == "waiting"
        yield columns.decision.is_(None) if is_open else columns.decision == wanted.decision
    if wanted.min_probability is not None:
        yield columns.highest_probability >= wanted.min_probability
    if not wanted.with_results:
        yield columns.images_scored + columns.images_not_scored + columns.images_waiting > 0
