"""Scores for comparison: what is to be scored once more, by which model, and what came of it.

A job waits in the lane of its model, so that a process that has another model loaded leaves it alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, literal, select, update
from sqlalchemy.orm import Session, aliased

from db.models import WORD, Instance, Job, Model, Rescore, Score, Study
from db.queue import READY, Kind, clock, insert_or, is_postgresql
from db.rows import NewScore

_AT_ONCE = 5000  # images ordered in one transaction: receivers wait for it
_RESULTS_OF_PROGRAMS = ("OWN_RESULT", "DERIVED_RESULT")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which images to score once more; ``None`` matches all."""

    study: str | None = None
    since: datetime | None = None


@dataclass(frozen=True)
class Ordered:
    """How many images will be scored, have a score of the model already, and have no file any more."""

    images: int = 0
    already: int = 0
    removed: int = 0

    def __add__(self, other: Ordered) -> Ordered:
        return Ordered(self.images + other.images, self.already + other.already, self.removed + other.removed)


def lane(sha256: str) -> str:
    """Return the lane of jobs for a model."""
    return sha256[: WORD.length]


def batches(session: Session) -> Iterator[tuple[int, int]]:
    """Yield ranges of images that one transaction may order."""
    most = session.execute(select(func.max(Instance.id))).scalar_one() or 0
    for first in range(1, most + 1, _AT_ONCE):
        yield first, min(most, first + _AT_ONCE - 1)


def order(session: Session, wanted: Wanted, sha256: str, batch: tuple[int, int]) -> Ordered:
    """Let images of a range be scored once more; what waits already is left as it is.

    Only images count that have a score: of these, of copies the newest alone, and no results of programs.
    """
    mine = and_(*_conditions(wanted), Instance.id.between(*batch))
    is_here, is_known = Instance.removed_at.is_(None), _has_score_of(sha256)
    already, removed = (
        session.execute(select(func.count()).select_from(Instance).where(mine, condition)).scalar_one()
        for condition in (is_known, ~is_known & ~is_here)
    )
    fresh: dict[str, Any] = {
        "lane": lane(sha256),
        "state": "ready",
        "visible_at": clock(is_postgresql(session)),
        "attempts": 0,
    }
    chosen = select(literal(Kind.RESCORE.value), Instance.id, *map(_expression, fresh.values()))
    names = ["kind", "ref", *fresh]
    added = insert_or(session, Job).from_select(names, chosen.where(mine, is_here, ~is_known))
    waits = and_(Job.state == "ready", Job.lane == lane(sha256))
    added = added.on_conflict_do_update(
        index_elements=[Job.kind, Job.ref], set_={**fresh, "token": None, "error": None}, where=~waits
    )
    return Ordered(len(session.execute(added.returning(Job.id)).all()), already, removed)


def _expression(value: Any) -> Any:
    return value if isinstance(value, ColumnElement) else literal(value)


def _conditions(wanted: Wanted) -> Iterator[Any]:
    newer = aliased(Instance)
    yield exists().where(
        Score.instance_id == Instance.id, func.coalesce(Score.reason, "").not_in(_RESULTS_OF_PROGRAMS)
    )
    yield ~exists().where(newer.image_id == Instance.image_id, newer.turn > Instance.turn)
    if wanted.study is not None:
        yield Instance.study_id.in_(select(Study.id).where(Study.study_instance_uid == wanted.study))
    if wanted.since is not None:
        yield Instance.received_at >= wanted.since


def _has_score_of(sha256: str) -> Any:
    its = select(Model.id).where(Model.sha256 == sha256).scalar_subquery()
    return exists().where(Score.instance_id == Instance.id, Score.model_id == its) | exists().where(
        Rescore.instance_id == Instance.id, Rescore.model_id == its
    )


def cancel(session: Session) -> int:
    """Score nothing more of what was ordered; return how many images that are."""
    ended = session.execute(
        update(Job)
        .where(Job.kind == Kind.RESCORE, READY)
        .values(state="done", token=None, error=None)
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )
    return len(ended.all())


def add(session: Session, score: NewScore) -> None:
    """Record a score for comparison. There is one for each image and model."""
    values = {name: value for name, value in asdict(score).items() if name in Rescore.__table__.columns}
    session.execute(insert_or(session, Rescore).values(**values).on_conflict_do_nothing())
