"""How and of whom an image was made: what people ask the results by, and no part of any decision."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset

from classifier.decoding import ages, tags

TEXTS = {
    0x00080030: ("study_time", 16),
    0x00080068: ("presentation_intent_type", 16),
    0x00080070: ("manufacturer", 64),
    0x00080080: ("institution_name", 64),
    0x00081010: ("station_name", 64),
    0x00081090: ("manufacturer_model_name", 64),
    0x00100040: ("patient_sex", 16),
    0x00181000: ("device_serial_number", 64),
    0x00181020: ("software_versions", 256),
}
"""By tag: the column, and the most characters that it keeps."""

DESCRIBING = (0x00080070, 0x00080080, 0x00081010, 0x00081090, 0x00181000, 0x00181020)
"""Those of VR LO and SH, whose text depends on the character set."""

NUMBERS = {0x00280010: "image_rows", 0x00280011: "image_columns", 0x00280101: "bits_stored"}
_AGE = {
    0x00080020: "StudyDate",
    0x00080021: "SeriesDate",
    0x00080022: "AcquisitionDate",
    0x00080023: "ContentDate",
    0x0008002A: "AcquisitionDateTime",
    0x00100030: "PatientBirthDate",
    0x00101010: "PatientAge",
    0x00400244: "PerformedProcedureStepStartDate",
}
SCANNED = frozenset((*TEXTS, *NUMBERS, *_AGE))
"""The tags that `scanned` wants."""

_PLAIN_VRS = frozenset((b"AS", b"CS", b"DA", b"DT", b"LO", b"SH", b"TM"))
_PADDED_INSIDE = re.compile(rb"[\s\0]\\|\\[\s\0]")
_NOT_PLAIN = re.compile(r"[\x80-\xa0\xad]")
_LARGEST = 2**16 - 1  # of VR US
_US = struct.Struct("<H")
_CODECS = {b"ISO_IR 100": "latin-1", b"ISO_IR 192": "utf-8"}


@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """Texts are clean and bounded, empty where absent; numbers are ``None`` where absent or malformed.

    Attributes
    ----------
    patient_age
        In years, when the image was made; see `classifier.decoding.ages`.
    """

    patient_sex: str
    patient_age: float | None
    study_time: str
    station_name: str
    institution_name: str
    manufacturer: str
    manufacturer_model_name: str
    device_serial_number: str
    software_versions: str
    presentation_intent_type: str
    image_rows: int | None
    image_columns: int | None
    bits_stored: int | None


class NotPlain(ValueError):
    """It takes a full parser."""


def parsed(header: Dataset, text: Callable[[str, int], str]) -> Acquisition:
    """Return what a parsed header says.

    Parameters
    ----------
    text
        Returns the clean text of a keyword, of at most so many characters.
    """
    texts: dict[str, Any] = {name: text(keyword_for_tag(tag), most) for tag, (name, most) in TEXTS.items()}
    numbers: dict[str, Any] = {
        name: _bounded(tags.integer(header, keyword_for_tag(tag))) for tag, name in NUMBERS.items()
    }
    return Acquisition(**texts, **numbers, patient_age=ages.told(header).years)


def scanned(
    found: Mapping[int, tuple[bytes, bytes]], character_set: bytes, bounded: Callable[[str, int], str]
) -> Acquisition:
    """Return what `parsed` would, from VRs and encoded values by tag; no VR in Implicit VR.

    Raises
    ------
    NotPlain
    """
    texts: dict[str, Any] = {
        name: bounded(_text(*found[tag], character_set, is_described=tag in DESCRIBING), most)
        if tag in found
        else ""
        for tag, (name, most) in TEXTS.items()
    }
    numbers: dict[str, Any] = {
        name: _number(*found[tag]) if tag in found else None for tag, name in NUMBERS.items()
    }
    clues = {keyword: _clue(*found[tag]) for tag, keyword in _AGE.items() if tag in found}
    age = ages.told_by(partial(_looked_up, clues))
    return Acquisition(**texts, **numbers, patient_age=age.years)


def _looked_up(clues: Mapping[str, Sequence[str]], keyword: str) -> Sequence[str]:
    return clues.get(keyword, ())


def _text(vr: bytes, value: bytes, character_set: bytes, *, is_described: bool) -> str:
    if (vr and vr not in _PLAIN_VRS) or b"\x1b" in value or _PADDED_INSIDE.search(value):
        raise NotPlain
    if value.isascii():
        return "".join(filter(str.isprintable, value.decode("ascii"))).strip()
    codec = _CODECS.get(character_set)
    if codec is None or not is_described or (vr and vr not in (b"LO", b"SH")):
        raise NotPlain
    try:
        text = value.decode(codec).rstrip("\0 ")
    except UnicodeDecodeError as error:
        raise NotPlain from error
    if not text.isprintable() or _NOT_PLAIN.search(text):
        raise NotPlain
    return text.strip()


def _clue(vr: bytes, value: bytes) -> list[str]:
    if (vr and vr not in _PLAIN_VRS) or not value.isascii() or _PADDED_INSIDE.search(value):
        raise NotPlain
    parts = map(tags.plain, value.decode("ascii").rstrip("\0 ").split("\\"))
    return [part for part in parts if part]


def _number(vr: bytes, value: bytes) -> int | None:
    if vr not in (b"", b"US") or len(value) not in (0, _US.size):
        raise NotPlain
    return int(_US.unpack(value)[0]) if value else None


def _bounded(number: int | None) -> int | None:
    return number if number is not None and 0 <= number <= _LARGEST else None
