"""What goes into a structured report: the images with their answers, the algorithm and the node."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydicom.dataset import Dataset

from classifier.config import OWN_EQUIPMENT
from pacs_node.errors import InvalidReport

SCHEMA = "pacs-node-report/2"  # a change of the content tree changes this, and with it every UID
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_OID, "pacs-node")
_PRINTABLE = re.compile(r"[ -\[\]-~]+")  # ASCII without the backslash, which separates values (PS3.5 6.1.3)
_OFFSET = re.compile(r"[+-](0[0-9]|1[0-4])[0-5][0-9]")


def uid(*parts: object) -> str:
    """Return the name-based UID of `parts`: 2.25.<UUIDv5> (PS3.5 B.2); the same parts, the same UID."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, repr(tuple(map(str, parts)))).int}"


def heat_map_uids(series: str, report: str, images: Sequence[ImageResult]) -> dict[int, tuple[str, str]]:
    """Return the UIDs of the heat maps that a report refers to.

    Parameters
    ----------
    series, report
        Series and SOP Instance UID of the report, in its preferred class.

    Returns
    -------
    dict
        By position in `images`: Series and SOP Instance UID.
    """
    shown = (at for at, image in enumerate(images) if image.has_heat_map)
    return {at: (uid("heat map series", series), uid("heat map", report, at + 1)) for at in shown}


def _check(name: str, value: str, most: int) -> None:
    if not _PRINTABLE.fullmatch(value) or len(value) > most:
        raise InvalidReport(f"{name} needs 1 to {most} printable ASCII characters, no backslash: {value!r}")


@dataclass(frozen=True)
class Algorithm:
    """One model that scores images (TID 4019 Algorithm Identification).

    Parameters
    ----------
    name, version
        At most 64 ASCII characters each.
    sha256
        Digest of the checkpoint file, 64 hexadecimal digits.
    threshold
        Probability, 0..1, from which on an image is positive.
    preprocessing
        What was done to the pixels, in one ASCII line.

    Raises
    ------
    InvalidReport
        When a value cannot stand in a report.
    """

    name: str
    version: str
    sha256: str
    threshold: float
    preprocessing: str

    def __post_init__(self) -> None:
        _check("algorithm name", self.name, 64)
        _check("algorithm version", self.version, 64)
        _check("preprocessing", self.preprocessing, 1024)
        if not re.fullmatch("[0-9a-fA-F]{64}", self.sha256):
            raise InvalidReport(f"sha256 needs 64 hexadecimal digits: {self.sha256!r}")
        if not 0 <= self.threshold <= 1:
            raise InvalidReport(f"threshold needs 0 to 1: {self.threshold!r}")

    @property
    def threshold_text(self) -> str:
        """The threshold as the shortest decimal number that is it."""
        return repr(float(self.threshold))

    @property
    def threshold_percent(self) -> str:
        """The smallest score, in percent with two decimals, that is positive.

        Scores have four decimals. A threshold between two of them, rounded to the nearest, could print as
        equal to a score that is below it.
        """
        step = round(self.threshold * 10_000)
        if step / 10_000 < self.threshold:
            step += 1
        return f"{step / 100:.2f}"


@dataclass(frozen=True, kw_only=True)
class ObserverDevice:
    """The device that makes the report.

    Parameters
    ----------
    software_version, station_name, manufacturer, model_name
        At most 64 ASCII characters each.
    purpose
        Content Qualification (0018,9004); RESEARCH adds a warning to the text.
    timezone
        Of the site: an offset from UTC such as ``+0100``, or a name such as ``Europe/Berlin``, whose offset
        is that of the moment. For a source without TimezoneOffsetFromUTC.

    Raises
    ------
    InvalidReport
        When a value cannot stand in a report.
    """

    manufacturer: str = OWN_EQUIPMENT[0]
    model_name: str = OWN_EQUIPMENT[1]
    software_version: str
    station_name: str
    purpose: Literal["RESEARCH", "PRODUCT"] = "RESEARCH"
    timezone: str | None = None

    def __post_init__(self) -> None:
        for name in ("manufacturer", "model_name", "software_version", "station_name"):
            _check(name, getattr(self, name), 64)
        if self.purpose not in ("RESEARCH", "PRODUCT"):
            raise InvalidReport(f"purpose needs RESEARCH or PRODUCT: {self.purpose!r}")
        if self.timezone is not None and not _is_zone(self.timezone):
            raise InvalidReport(f"timezone needs an offset or a name of a zone: {self.timezone!r}")

    def offset_at(self, moment: datetime) -> str | None:
        """Return the site's offset from UTC at a moment, such as ``+0200``; ``None`` where none is known."""
        if self.timezone is None or is_offset(self.timezone):
            return self.timezone
        return f"{moment.astimezone(ZoneInfo(self.timezone)):%z}"[:5]  # a zone of 1880 has seconds

    def device_uid(self, algorithm: Algorithm) -> str:
        """Return the Device UID: a change of the program or of the model makes another device."""
        # Neither the station nor the threshold: another host, or another operating point, is the same series.
        return uid(
            "device",
            *(self.manufacturer, self.model_name, self.software_version),
            *(algorithm.name, algorithm.version, algorithm.sha256.lower(), algorithm.preprocessing),
        )


def _is_zone(text: str) -> bool:
    if is_offset(text):
        return True
    try:
        return bool(ZoneInfo(text).key) and text[0] not in "+-"
    except (ValueError, OSError, ZoneInfoNotFoundError):
        return False


def is_offset(text: str) -> bool:
    """Tell whether `text` is a legal Timezone Offset From UTC, -1200 to +1400 (PS3.3 C.12.1.1.8)."""
    return bool(_OFFSET.fullmatch(text)) and -1200 <= int(text) <= 1400 and text != "-0000"


@dataclass(frozen=True)
class NotScoredReason:
    """Why an image was not scored, or why its answer is undetermined.

    Parameters
    ----------
    code
        Value of a 99CXRAI code, at most 16 characters (SH).
    meaning
        At most 64 ASCII characters (LO).
    failed
        Summary of Detections is Failed when true, Not Attempted when false (CID 6042).
    leaves_open
        The image may be a frontal chest radiograph all the same, so that a study without a positive is not
        negative because of it.

    Raises
    ------
    InvalidReport
        When a value cannot stand in a code.
    """

    code: str
    meaning: str
    failed: bool
    leaves_open: bool = False

    def __post_init__(self) -> None:
        _check("reason code", self.code, 16)
        _check("reason meaning", self.meaning, 64)


@dataclass(frozen=True)
class ImageResult:
    """One image with its answer.

    Parameters
    ----------
    header
        The source's data set without pixel data, as received. Text that pydicom has not decoded yet is
        copied byte for byte; text decoded or set since is encoded again.
    decision
        ``positive``, ``negative``, ``undetermined`` or ``not_scored``.
    probability
        0..1, rounded to four decimals before the decision; None exactly when not scored.
    reason
        Needed for an image that was not scored, possible for one that is undetermined.
    algorithm
        The model that answered, or that would have.
    has_heat_map
        Whether the report refers to a picture of its heat map, which is made after the report.

    Raises
    ------
    InvalidReport
        When decision, probability, reason and threshold contradict each other.
    """

    header: Dataset
    decision: str
    probability: float | None
    reason: NotScoredReason | None
    algorithm: Algorithm
    has_heat_map: bool = False

    def __post_init__(self) -> None:
        if self.decision not in ("positive", "negative", "undetermined", "not_scored"):
            raise InvalidReport(f"unknown decision {self.decision!r}")
        if (self.probability is None) != (self.decision == "not_scored"):
            raise InvalidReport(f"decision {self.decision} with probability {self.probability}")
        if (self.reason is None) and self.decision == "not_scored":
            raise InvalidReport("an image that was not scored needs a reason")
        if self.reason is not None and self.decision in ("positive", "negative"):
            raise InvalidReport(f"a {self.decision} image needs no reason, got {self.reason.code}")
        if self.probability is not None:
            self._check_probability(self.probability)

    def _check_probability(self, probability: float) -> None:
        if not 0 <= probability <= 1 or round(probability, 4) != probability:
            raise InvalidReport(f"probability needs 0 to 1 with four decimals: {probability!r}")
        above = probability >= self.algorithm.threshold
        if (self.decision == "positive" and not above) or (self.decision == "negative" and above):
            raise InvalidReport(
                f"{self.decision} with probability {probability}, threshold {self.algorithm.threshold}"
            )

    @property
    def percent(self) -> str | None:
        """The probability in percent with two decimals, which is all it has."""
        return None if self.probability is None else f"{self.probability * 100:.2f}"


@dataclass(frozen=True)
class Predecessor:
    """The report that this one supersedes (PS3.3 C.17.2, Predecessor Documents Sequence).

    Raises
    ------
    InvalidReport
        When a UID is none.
    """

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str

    def __post_init__(self) -> None:
        for value in (
            *(self.sop_class_uid, self.sop_instance_uid),
            *(self.series_instance_uid, self.study_instance_uid),
        ):
            if not re.fullmatch(r"[0-9.]{1,64}", value):
                raise InvalidReport(f"the predecessor's UID is none: {value!r}")
