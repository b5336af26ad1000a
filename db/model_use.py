"""What a model answered in the last weeks, and how people judged that.

Scores come from the newest images, so that the cost does not grow with the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session, aliased

from db.models import Instance, Model, Score, Verdict
from db.verdicts import digest_below


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model that scored here, with its card as JSON."""

    id: int
    sha256: str
    card: str
    last_started_at: datetime


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One image that the model scored."""

    received_at: datetime
    sender: str
    probability: float
    decision: str
    novelty: float | None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """How many images with a decision got a verdict, the last of each image."""

    decision: str
    label: str
    score_was_visible: bool
    images: int


def models(session: Session, limit: int = 10) -> list[KnownModel]:
    """Return the models that scored here, the one that started last first."""
    rows = session.scalars(select(Model).order_by(Model.last_started_at.desc(), Model.id.desc()).limit(limit))
    return [
        KnownModel(id=row.id, sha256=row.sha256, card=row.card, last_started_at=row.last_started_at)
        for row in rows
    ]


def answered(session: Session, model_id: int, limit: int) -> Sequence[Answered]:
    """Return what a model said of the newest images; those without a probability are left out."""
    newest = select(Instance.id, Instance.received_at, Instance.calling_ae_title)
    newest = newest.order_by(Instance.received_at.desc()).limit(limit)
    image = newest.subquery()
    rows = session.execute(
        select(
            image.c.received_at, image.c.calling_ae_title, Score.probability, Score.decision, Score.novelty
        ).join(Score, (Score.instance_id == image.c.id) & (Score.model_id == model_id))
    )
    return [
        Answered(received_at=at, sender=sender, probability=probability, decision=decision, novelty=novelty)
        for at, sender, probability, decision, novelty in rows
        if probability is not None
    ]


def judged(session: Session, model_id: int, negatives: float) -> list[Judged]:
    """Return how people judged what a model decided.

    Parameters
    ----------
    negatives
        The share of negative images in the blind sample. Verdicts that were given blind on others are left
        out: somebody chose these.
    """
    is_drawn = or_(
        Verdict.score_was_visible, Score.decision != "negative", Instance.digest < digest_below(negatives)
    )
    later = aliased(Verdict)
    is_last = (
        ~select(later.id).where(later.instance_id == Verdict.instance_id, later.id > Verdict.id).exists()
    )
    keys = (Score.decision, Verdict.label, Verdict.score_was_visible)
    rows = session.execute(
        select(*keys, func.count())
        .join(Score, Score.id == Verdict.score_id)
        .join(Instance, Instance.id == Verdict.instance_id)
        .where(Score.model_id == model_id, is_last, is_drawn)
        .group_by(*keys)
    )
    return [
        Judged(decision=decision, label=label, score_was_visible=visible, images=images)
        for decision, label, visible, images in rows
    ]
