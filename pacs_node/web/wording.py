"""The words of the pages: answers, reasons, times; and text of strangers made harmless to look at."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from datetime import datetime

from classifier.reasons import Bearing, Reason
from db.reading_list import ListedDelivery, ListedImage, ListedReport, ListedStudy

ANSWERS = {
    "positive": "Positive",
    "undetermined": "Undetermined",
    "negative": "Negative",
    "not_scored": "Not analysed",
    "waiting": "Waiting",
}
DELIVERIES = {
    "pending": "waits",
    "delivered": "delivered",
    "committed": "committed",
    "failed": "failed",
    "abandoned": "abandoned",
}
_OTHER_REASONS = {
    "SCORING_FAILED": "Scoring failed",
    "DUPLICATE_UID": "Another image came under the same UID before",
    "LOSSY_COPY": "A copy of an earlier image, perhaps compressed with loss",
}
_TO_DO = {
    "NO_MODALITY": "Set Modality at the device.",
    "NO_BODY_PART": "Set Body Part Examined at the device.",
    "NO_VIEW": "Set View Position at the device.",
    "NO_ORIENTATION": "Set Patient Orientation at the device.",
    "FOR_PROCESSING": "Let the device send the image for presentation.",
    "UNREADABLE": "Look at the image in the PACS; send it again.",
    "CONTRADICTION": "The device writes contradictory attributes: tell its vendor.",
    "TOO_LARGE": "See [classifier] max_pixels in config.toml.",
    "UNKNOWN_AGE": "Let the worklist give the birth date.",
    "DOUBTFUL_AGE": "Correct age, birth date or dates at the source.",
    "SCORING_FAILED": "See the Node's log, then `pacs-node retry`.",
    "DUPLICATE_UID": "Two images have one UID: tell the vendor of the device.",
}
_LONGEST = 200  # characters of one value on a page
_REORDERING = {"Cf", "Cc", "Co", "Cs"}  # categories: direction marks and other invisible characters


def plain(text: object) -> str:
    """Return text of strangers without what reorders or hides its neighbours, and not too long."""
    shown = str(text)[: _LONGEST + 1]
    clean = "".join(c if unicodedata.category(c) not in _REORDERING else "\ufffd" for c in shown)
    return clean if len(clean) <= _LONGEST else clean[:_LONGEST] + "…"


def person(name: str) -> str:
    """Return a PN in the order in which people write it in lists."""
    parts = [part.strip() for part in name.partition("=")[0].split("^")]
    family, given = parts[0], " ".join(part for part in parts[1:3] if part)
    return plain(", ".join(part for part in (family, given) if part)) or "no name"


def why(reason: str | None) -> str:
    """Return a reason in words."""
    if reason is None:
        return ""
    return Reason(reason).meaning if reason in set(Reason) else _OTHER_REASONS.get(reason, plain(reason))


def to_do(reason: str | None) -> str:
    """Return what a person can do about a reason; nothing where nothing is wrong."""
    return _TO_DO.get(reason or "", "")


def day(text: str) -> str:
    """Return a VR DA as ISO 8601."""
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 and text.isdigit() else plain(text)


def clock(moment: datetime | None) -> str:
    """Return a moment in the time zone of the machine."""
    return "" if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def answer(study: ListedStudy) -> str:
    """Return the answer of a study: that of its report, or by the same rule if more came since."""
    images = [image for image in study.images if _bearing(image) is not Bearing.NO_IMAGE]
    decisions = {image.decision for image in images}
    if "positive" in decisions:
        return "positive"
    if "waiting" in decisions:
        return "waiting"
    if not decisions or decisions == {"not_scored"}:
        return "not_scored"
    if study.report and study.report.decision and _states_all(study, study.report):
        return study.report.decision
    is_open = any(image.reason and _bearing(image) is Bearing.OPEN for image in images)
    is_negative = "negative" in decisions and "undetermined" not in decisions and not is_open
    return "negative" if is_negative else "undetermined"


def _states_all(study: ListedStudy, report: ListedReport) -> bool:
    times = [moment for image in study.images for moment in (image.received_at, image.scored_at) if moment]
    return all(moment <= report.made_at for moment in times)


def _bearing(image: ListedImage) -> Bearing | None:
    if image.reason is None:
        return None
    return Reason(image.reason).bearing if image.reason in set(Reason) else Bearing.OPEN


def telling(images: Sequence[ListedImage]) -> ListedImage | None:
    """Return the image whose score stands for the study: the highest that was decided, else any."""
    scored = [image for image in images if image.probability is not None]
    order = {"positive": 2, "negative": 1}
    return max(scored, key=lambda i: (order.get(i.decision, 0), i.probability or 0), default=None)


def reasons(images: Sequence[ListedImage]) -> list[str]:
    """Return the reasons of the images, each once."""
    return [*dict.fromkeys(image.reason for image in images if image.reason)]


def trouble(delivery: ListedDelivery) -> str:
    """Return what the destination answered last, where the report did not arrive."""
    if delivery.state not in ("pending", "failed"):
        return ""
    status = f"0x{delivery.status:04X} " if delivery.status else ""
    return plain(f"{status}{delivery.error or ''}".strip())
