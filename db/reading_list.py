"""What the reading list shows: one row for each study, and all about one of them.

Pages are found by keyset: each begins behind the last row of the one before, so that the last page costs what
the first does. `newest` walks the primary key of studies, `suspicious` the index of probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import and_, exists, func, or_, select, tuple_, union
from sqlalchemy.orm import Session, aliased

from db.models import Delivery, Instance, Job, Model, Report, Score, Study, StudyProblem, Verdict
from db.queue import READY, Kind, is_postgresql
from db.verdicts import digest_below

SAMPLED = 5000
"""Studies of which the blind sample is drawn; the work for it does not grow with the database."""

_LAST = "\U0010ffff"  # sorts behind all that begins alike


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which studies are wanted, in which order; ``None`` matches all.

    Attributes
    ----------
    text
        Beginning of a Patient ID, of a Patient's Name or of an Accession Number; or a Study Instance UID.
    study_dates
        First and last Study Date, YYYYMMDD.
    decision, reason
        Of one of the images.
    delivery
        State of one delivery of the newest report.
    suspicious
        Whether the highest probability comes first, and not the study that came last.
    unjudged_by
        A person, who gave no verdict on any image of the study.
    negatives
        Asks for the blind sample: images that are positive, and this share of the negative ones, drawn at
        random; of the newest `SAMPLED` studies.
    after
        Keys of the last row of the page before.
    """

    text: str | None = None
    study_dates: tuple[str, str] | None = None
    sender: str | None = None
    decision: str | None = None
    reason: str | None = None
    delivery: str | None = None
    suspicious: bool = False
    unjudged_by: str | None = None
    negatives: float | None = None
    after: tuple[float, int] | None = None
    limit: int = 50


@dataclass(frozen=True, kw_only=True)
class ListedImage:
    """One image, the newest of its copies, with its newest score."""

    id: int
    sop_instance_uid: str
    modality: str
    view: str
    sender: str
    received_at: datetime
    scored_at: datetime | None
    digest: str
    is_removed: bool
    probability: float | None
    threshold: float | None
    decision: str
    reason: str | None
    detail: str
    novelty: float | None
    age: float | None
    model: str
    heat_map: bytes | None


@dataclass(frozen=True, kw_only=True)
class ListedDelivery:
    """One delivery of a report, or of an object that was made beside it."""

    destination: str
    result: str
    state: str
    tries: int
    status: int | None
    error: str | None
    delivered_at: datetime | None
    committed_at: datetime | None
    updated_at: datetime


@dataclass(frozen=True, kw_only=True)
class ListedReport:
    """The newest report of a study, and what it decides; ``None`` where that is not recorded."""

    id: int
    decision: str | None
    revision: int
    sop_instance_uid: str
    made_at: datetime


@dataclass(frozen=True, kw_only=True)
class ListedStudy:
    """One row of the list."""

    id: int
    study_instance_uid: str
    patient_id: str
    patient_name: str
    accession_number: str
    study_date: str
    received_at: datetime
    images: Sequence[ListedImage]
    report: ListedReport | None
    deliveries: Sequence[ListedDelivery]
    problem: str | None  # why it gets no report


@dataclass(frozen=True)
class Page:
    """Some studies, and the keys behind which the next page begins; ``None`` on the last."""

    studies: Sequence[ListedStudy]
    next: tuple[float, int] | None


def page(session: Session, wanted: Wanted) -> Page:
    """Return one page of the list."""
    rows = session.execute(_keys(session, wanted).limit(wanted.limit + 1)).all()
    found = studies(session, [row.study_id for row in rows[: wanted.limit]])
    more = rows[wanted.limit - 1] if len(rows) > wanted.limit else None
    return Page(found, None if more is None else (float(more.key), int(more.tie)))


def study(session: Session, study_instance_uid: str) -> ListedStudy | None:
    """Return all about one study; ``None`` if there is none."""
    ids = session.scalars(select(Study.id).where(Study.study_instance_uid == study_instance_uid)).all()
    return next(iter(studies(session, ids)), None)


def priors(session: Session, one: ListedStudy, limit: int = 8) -> list[ListedStudy]:
    """Return other studies of the same patient: same Patient ID, and same name."""
    if not one.patient_id:
        return []
    same = (Instance.patient_id == one.patient_id) & (Instance.patient_name == one.patient_name)
    ids = select(Instance.study_id).where(same, Instance.study_id != one.id).distinct()
    return studies(session, session.scalars(ids.order_by(Instance.study_id.desc()).limit(limit)).all())


def senders(session: Session, limit: int = 50) -> list[str]:
    """Return the senders of the newest studies."""
    newest = select(Instance.calling_ae_title).order_by(Instance.id.desc()).limit(2000).subquery()
    return sorted(session.scalars(select(newest.c[0]).distinct().limit(limit)))


def report_content(session: Session, report_id: int) -> bytes:
    """Return the bytes of a report."""
    return session.scalars(select(Report.content).where(Report.id == report_id)).one()


def _keys(session: Session, wanted: Wanted) -> Any:
    if wanted.suspicious:
        return _suspicious(session, wanted)
    key = Study.id.label("key")
    asked = select(Study.id.label("study_id"), key, Study.id.label("tie")).order_by(Study.id.desc())
    if wanted.after is not None:
        asked = asked.where(Study.id < wanted.after[1])
    return asked.where(*_conditions(session, wanted, Study.id))


def _suspicious(session: Session, wanted: Wanted) -> Any:
    key = Score.probability.label("key")
    asked = select(Instance.study_id.label("study_id"), key, Score.instance_id.label("tie"))
    asked = asked.join(Instance, Instance.id == Score.instance_id)
    asked = asked.where(Score.probability.is_not(None), _is_newest(Score, Instance), _is_highest())
    if wanted.after is not None:
        asked = asked.where(tuple_(Score.probability, Score.instance_id) < wanted.after)
    asked = asked.order_by(Score.probability.desc(), Score.instance_id.desc())
    return asked.where(*_conditions(session, wanted, Instance.study_id))


def _is_highest() -> Any:
    """Say that no image of the same study has a higher probability."""
    score, image = aliased(Score), aliased(Instance)
    higher = or_(
        score.probability > Score.probability,
        and_(score.probability == Score.probability, score.instance_id > Score.instance_id),
    )
    of_study = select(score.id).join(image, image.id == score.instance_id)
    return ~exists(of_study.where(image.study_id == Instance.study_id, higher, _is_newest(score, image)))


def _is_newest(score: Any, image: Any) -> Any:
    """Say that a score is the newest of its image, and the image the newest of its copies."""
    later, copy = aliased(Score), aliased(Instance)
    is_replaced = exists().where(copy.image_id == image.image_id, copy.turn > image.turn)
    return ~exists().where(later.instance_id == score.instance_id, later.id > score.id) & ~is_replaced


def _conditions(session: Session, wanted: Wanted, study_id: Any) -> Iterator[Any]:
    if wanted.text:
        yield study_id.in_(_named(session, wanted.text))
    image = aliased(Instance)
    of_study = image.study_id == study_id
    if wanted.study_dates is not None:
        yield exists().where(of_study, image.study_date.between(*wanted.study_dates))
    if wanted.sender is not None:
        yield exists().where(of_study, image.calling_ae_title == wanted.sender)
    if wanted.decision == "waiting":
        job = (Job.kind == Kind.SCORE) & (Job.ref == image.id)
        known = aliased(Score)
        has_score = exists().where(known.instance_id == image.id)
        yield exists(select(image.id).join(Job, job).where(of_study, READY, ~has_score))
    elif wanted.decision is not None or wanted.reason is not None:
        score = aliased(Score)
        asked = [score.decision == wanted.decision] if wanted.decision else []
        asked += [score.reason == wanted.reason] if wanted.reason else []
        # Nested, not joined: SQLite would begin each lookup with all scores of this decision
        is_scored = exists().where(score.instance_id == image.id, *asked, _is_newest(score, image))
        yield exists().where(of_study, is_scored)
    if wanted.unjudged_by is not None:
        mine = select(Verdict.id).where(Verdict.instance_id == image.id, Verdict.person == wanted.unjudged_by)
        yield ~exists().where(of_study, mine.exists())
    if wanted.negatives is not None:
        yield study_id > select(func.max(Study.id) - SAMPLED).scalar_subquery()
        score = aliased(Score)
        is_drawn = (score.decision == "negative") & (image.digest < digest_below(wanted.negatives))
        is_asked = (score.decision == "positive") | is_drawn
        yield exists().where(
            of_study, exists().where(score.instance_id == image.id, is_asked, _is_newest(score, image))
        )
    if wanted.delivery is not None:
        newer = aliased(Report)
        is_newest = ~exists().where(newer.study_id == Report.study_id, newer.revision > Report.revision)
        sent = select(Delivery.id).join(Report, Report.id == Delivery.report_id)
        yield exists(sent.where(Report.study_id == study_id, is_newest, Delivery.state == wanted.delivery))


def _named(session: Session, text: str) -> Any:
    columns = (Instance.patient_id, Instance.patient_name, Instance.accession_number)
    texts = dict.fromkeys((text, text.upper()))
    found = [
        select(Instance.study_id).where(_begins(session, column, one)) for column in columns for one in texts
    ]
    return union(*found, select(Study.id).where(Study.study_instance_uid == text))


def _begins(session: Session, column: Any, text: str) -> Any:
    """Compare so that the index serves: SQLite's LIKE knows no case, and the order of PostgreSQL no bytes."""
    if is_postgresql(session):
        return column.startswith(text, autoescape=True)
    return column.between(text, text + _LAST)


def studies(session: Session, ids: Sequence[int]) -> list[ListedStudy]:
    """Return studies by id, in the order of `ids`."""
    rows = {row.id: row for row in session.scalars(select(Study).where(Study.id.in_(ids)))}
    images = _images(session, ids)
    reports = _reports(session, ids)
    deliveries = _deliveries(session, [report.id for report in reports.values()])
    asked = select(StudyProblem.study_id, StudyProblem.problem).where(StudyProblem.study_id.in_(ids))
    problems = {row.study_id: row.problem for row in session.execute(asked)}
    return [
        _listed(rows[one], images.get(one, []), reports.get(one), deliveries, problems.get(one))
        for one in ids
        if one in rows
    ]


def _listed(
    row: Study,
    images: Sequence[tuple[Instance, ListedImage]],
    report: ListedReport | None,
    deliveries: dict[int, list[ListedDelivery]],
    problem: str | None,
) -> ListedStudy:
    named: Any = images[-1][0] if images else row  # a correction came last
    return ListedStudy(
        id=row.id,
        study_instance_uid=row.study_instance_uid,
        patient_id=named.patient_id,
        patient_name=named.patient_name,
        accession_number=named.accession_number,
        study_date=named.study_date,
        received_at=row.first_received_at,
        images=[image for _, image in images],
        report=report,
        deliveries=deliveries.get(report.id, []) if report else [],
        problem=problem,
    )


def _images(session: Session, ids: Sequence[int]) -> dict[int, list[tuple[Instance, ListedImage]]]:
    score, copy = aliased(Score), aliased(Instance)
    newest = select(func.max(score.id)).where(score.instance_id == Instance.id).scalar_subquery()
    statement = (
        select(Instance, Score, Model, Job.state, Job.error)
        .select_from(Instance)
        .outerjoin(Score, Score.id == newest)
        .outerjoin(Model, Model.id == Score.model_id)
        .outerjoin(Job, (Job.kind == Kind.SCORE) & (Job.ref == Instance.id))
        .where(Instance.study_id.in_(ids))
        .where(~exists().where(copy.image_id == Instance.image_id, copy.turn > Instance.turn))
        .order_by(Instance.id)
    )
    found: dict[int, list[tuple[Instance, ListedImage]]] = {}
    for row, scored, model, state, error in session.execute(statement):
        image = _image(row, scored, model, failed=state == "failed", error=error)
        found.setdefault(row.study_id, []).append((row, image))
    return found


def _image(
    row: Instance, score: Score | None, model: Model | None, *, failed: bool, error: str | None
) -> ListedImage:
    undecided, why = ("not_scored", "SCORING_FAILED") if failed else ("waiting", None)
    return ListedImage(
        id=row.id,
        sop_instance_uid=row.sop_instance_uid,
        modality=row.modality,
        view=(score.view if score else None) or row.view_position,
        sender=row.calling_ae_title,
        received_at=row.received_at,
        scored_at=score.scored_at if score else None,
        digest=row.digest,
        is_removed=row.removed_at is not None,
        probability=score.probability if score else None,
        threshold=score.threshold if score else None,
        decision=score.decision if score else undecided,
        reason=score.reason if score else why,
        detail=(score.detail if score else error) or "",
        novelty=score.novelty if score else None,
        age=score.age if score else None,
        model=f"{model.name} {model.version}" if model else "",
        heat_map=score.heat_map if score else None,
    )


def revisions(session: Session, study_id: int) -> list[tuple[ListedReport, Sequence[ListedDelivery]]]:
    """Return all reports of a study, the oldest first, with what became of each."""
    reports = [report for _, report in _all_reports(session, [study_id])]
    deliveries = _deliveries(session, [report.id for report in reports])
    return [(report, deliveries.get(report.id, [])) for report in reports]


def _reports(session: Session, ids: Sequence[int]) -> dict[int, ListedReport]:
    return dict(_all_reports(session, ids))  # the newest comes last


def _all_reports(session: Session, ids: Sequence[int]) -> list[tuple[int, ListedReport]]:
    columns = (
        Report.study_id,
        Report.id,
        Report.revision,
        Report.sop_instance_uid,
        Report.made_at,
        Report.decision,
    )
    rows = session.execute(select(*columns).where(Report.study_id.in_(ids)).order_by(Report.revision))
    return [
        (
            study_id,
            ListedReport(id=id_, revision=revision, sop_instance_uid=uid, made_at=made_at, decision=decision),
        )
        for study_id, id_, revision, uid, made_at, decision in rows
    ]


def _deliveries(session: Session, reports: Sequence[int]) -> dict[int, list[ListedDelivery]]:
    found: dict[int, list[ListedDelivery]] = {}
    asked = select(Delivery).where(Delivery.report_id.in_(reports)).order_by(Delivery.id)
    for row in session.scalars(asked):
        one = ListedDelivery(
            destination=row.destination,
            result=row.result,
            state=row.state,
            tries=row.tries,
            status=row.status,
            error=row.error,
            delivered_at=row.delivered_at,
            committed_at=row.committed_at,
            updated_at=row.updated_at,
        )
        found.setdefault(row.report_id, []).append(one)
    return found
