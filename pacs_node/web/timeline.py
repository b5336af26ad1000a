"""What happened to a study, in the order of time: received, scored, reported, delivered, committed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from db.reading_list import ListedDelivery, ListedReport, ListedStudy
from pacs_node.web import wording

Revisions = Sequence[tuple[ListedReport, Sequence[ListedDelivery]]]


@dataclass(frozen=True)
class Event:
    """Something that happened; `state` is that of a delivery that has not arrived."""

    at: datetime
    what: str
    detail: str = ""
    state: str = ""


def events(study: ListedStudy, revisions: Revisions, *, with_answers: bool = True) -> list[Event]:
    """Return what happened, the first first.

    Parameters
    ----------
    revisions
        All reports of the study with their deliveries.
    with_answers
        Whether answers are told, and not only that there are some.
    """
    found = [*_images(study, with_answers=with_answers)]
    for report, deliveries in revisions:
        answer = wording.ANSWERS.get(report.decision or "", "").lower() if with_answers else ""
        found.append(Event(report.made_at, f"report {report.revision} made", answer))
        for delivery in deliveries:
            found += _delivery(report, delivery)
    return sorted(found, key=lambda event: event.at)


def _images(study: ListedStudy, *, with_answers: bool) -> Iterator[Event]:
    for number, image in enumerate(study.images, 1):
        yield Event(image.received_at, f"image {number} received", f"from {wording.plain(image.sender)}")
        if image.scored_at is not None:
            said = wording.why(image.reason) if image.probability is None else f"{image.probability:.4f}"
            done = "not analysed" if image.probability is None and with_answers else "scored"
            yield Event(image.scored_at, f"image {number} {done}", said if with_answers else "")


def _delivery(report: ListedReport, one: ListedDelivery) -> Iterator[Event]:
    what = "" if one.result == "report" else f", {wording.RESULTS.get(one.result, one.result)}"
    to = f"{wording.plain(one.destination)}: report {report.revision}{what}"
    tries = f"{one.tries} failed {'try' if one.tries == 1 else 'tries'}" if one.tries else ""
    status = "" if one.status is None else wording.dimse(one.status)
    if one.delivered_at is not None:
        after = f"after {tries}" if tries else ""
        yield Event(one.delivered_at, f"{to} delivered", _joined(status, after))
    if one.committed_at is not None:
        yield Event(one.committed_at, f"{to} committed", "the destination promised to keep it")
    if one.delivered_at is None or one.state in ("failed", "abandoned"):
        error = wording.plain(one.error or "")
        yield Event(
            one.updated_at,
            f"{to} {wording.DELIVERIES[one.state]}",
            _joined(status, error, tries),
            one.state,
        )


def _joined(*parts: str) -> str:
    return " \u00b7 ".join(part for part in parts if part)
