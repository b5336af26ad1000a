"""The words of the pages: answers, reasons, times; and text of strangers made harmless to look at."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from datetime import datetime, timedelta

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
RESULTS = {"pdf": "page", "heatmap": "heat map"}
_STATUSES = (  # PS3.4 B.2.3 and PS3.7 C: first and last status, and what they mean
    (0x0000, 0x0000, "success"),
    (0x0110, 0x0110, "processing failure"),
    (0x0111, 0x0111, "duplicate SOP instance"),
    (0x0117, 0x0117, "invalid SOP instance"),
    (0x0122, 0x0122, "SOP class not supported"),
    (0x0124, 0x0124, "not authorized"),
    (0xA700, 0xA7FF, "out of resources"),
    (0xA900, 0xA9FF, "data set does not match SOP class"),
    (0xB000, 0xB000, "stored, elements changed"),
    (0xB006, 0xB006, "stored, elements discarded"),
    (0xB007, 0xB007, "stored, data set does not match SOP class"),
    (0xC000, 0xCFFF, "cannot understand"),
)
_OTHER_REASONS = {  # given by the stages around the classifier: what they mean, and what to do
    "SCORING_FAILED": ("Scoring failed", "See the page Node, then retry."),
    "DUPLICATE_UID": (
        "Another image came under the same UID before",
        "Two images have one UID: tell the vendor of the device.",
    ),
    "LOSSY_COPY": (
        "A copy of an earlier image, perhaps compressed with loss",
        "Let one sender alone send, or both without loss.",
    ),
}
_LONGEST = 200  # characters of one value on a page
_REORDERING = {"Cf", "Cc", "Co", "Cs"}  # categories: direction marks and other invisible characters


def plain(text: object, longest: int = _LONGEST) -> str:
    """Return text of strangers without what reorders or hides its neighbours, and not too long."""
    shown = str(text)[: longest + 1]
    clean = "".join(c if unicodedata.category(c) not in _REORDERING else "\ufffd" for c in shown)
    return clean if len(clean) <= longest else clean[:longest] + "…"


def person(name: str) -> str:
    """Return a PN in the order in which people write it in lists."""
    parts = [part.strip() for part in name.partition("=")[0].split("^")]
    family, given = parts[0], " ".join(part for part in parts[1:3] if part)
    return plain(", ".join(part for part in (family, given) if part)) or "no name"


def why(reason: str | None) -> str:
    """Return a reason in words."""
    if reason is None:
        return ""
    return (
        Reason(reason).meaning if reason in set(Reason) else _OTHER_REASONS.get(reason, (plain(reason),))[0]
    )


def to_do(reason: str | None) -> str:
    """Return what a person can do about a reason; nothing where nothing is wrong."""
    if reason is None:
        return ""
    return Reason(reason).to_do if reason in set(Reason) else _OTHER_REASONS.get(reason, ("", ""))[1]


def day(text: str) -> str:
    """Return a VR DA as ISO 8601."""
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 and text.isdigit() else plain(text)


def clock(moment: datetime | None) -> str:
    """Return a moment in the time zone of the machine."""
    return "" if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def seconds(number: float) -> str:
    """Return a time in the unit that fits."""
    return span(timedelta(seconds=number))


def span(time: timedelta) -> str:
    """Return a length of time in the unit that fits."""
    number = max(0.0, time.total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if number >= 2 * length:
            return f"{number / length:.0f} {unit}"
    return f"{number:.0f} s"


def size(number: float) -> str:
    """Return a number of bytes in the unit that fits."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= length:
            return f"{number / length:.1f} {unit}"
    return f"{number / 1e3:.0f} kB"


def percent(share: float) -> str:
    """Return a share in whole percent; what is not all and not none never looks like it."""
    number = round(100 * share)
    if number == 100 and share < 1:
        return "> 99 %"
    return "< 1 %" if number == 0 and share > 0 else f"{number} %"


def dimse(status: int) -> str:
    """Return a DIMSE status with what it means."""
    meaning = next((words for first, last, words in _STATUSES if first <= status <= last), "")
    return f"0x{status:04X} {meaning}".rstrip()


def likeness(novelty: float) -> str:
    """Return the distance from the training images in words."""
    like = "like" if novelty <= 1 else "unlike"
    return f"{like} the training images: its distance from them is {novelty:.2f} of the limit"


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
    status = f"{dimse(delivery.status)}. " if delivery.status else ""
    return plain(f"{status}{delivery.error or ''}".strip())
