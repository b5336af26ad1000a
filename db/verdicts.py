"""What people say of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from db.models import Audit, Instance, Score, Verdict

LABELS = ("agree", "pneumonia", "no_pneumonia", "unreadable")


@dataclass(frozen=True, kw_only=True)
class GivenVerdict:
    """One verdict."""

    instance_id: int
    label: str
    comment: str
    person: str
    given_at: datetime


def give(
    session: Session,
    instance_id: int,
    label: str,
    comment: str,
    *,
    person: str,
    at: datetime,
    score_was_visible: bool = True,
) -> None:
    """Record a verdict beside the newest score of an image."""
    newest = session.scalars(select(func.max(Score.id)).where(Score.instance_id == instance_id)).one()
    values = {"instance_id": instance_id, "score_id": newest, "label": label, "comment": comment}
    values |= {"person": person, "score_was_visible": score_was_visible, "given_at": at}
    session.execute(insert(Verdict).values(values))


def fits(label: str, decision: str) -> bool:
    """Tell whether a label is known, and says something: nobody can agree where there is no answer."""
    return label in LABELS and (label != "agree" or decision in ("positive", "negative"))


def digest_below(share: float) -> str:
    """Return the text below which the digests of a share of all images are.

    A digest is a hash: which images belong to the share is random, and it is the same ones each time.
    """
    return f"{int(share * 16**8):08x}" if share < 1 else "g"


def has_seen(session: Session, study_id: int, person: str) -> bool:
    """Tell whether a person saw the score of a study on a page of it."""
    seen = ("study viewed", "report viewed", "report taken")
    asked = select(Audit.id).where(Audit.study_id == study_id, Audit.person == person, Audit.action.in_(seen))
    return session.scalars(asked.limit(1)).first() is not None


def of_studies(session: Session, study_ids: Sequence[int]) -> dict[int, list[GivenVerdict]]:
    """Return the verdicts of studies by study, the newest first."""
    asked = select(Instance.study_id, Verdict).join(Instance, Instance.id == Verdict.instance_id)
    found: dict[int, list[GivenVerdict]] = {}
    for study_id, row in session.execute(
        asked.where(Instance.study_id.in_(study_ids)).order_by(Verdict.id.desc())
    ):
        one = GivenVerdict(
            instance_id=row.instance_id,
            label=row.label,
            comment=row.comment,
            person=row.person,
            given_at=row.given_at,
        )
        found.setdefault(study_id, []).append(one)
    return found
