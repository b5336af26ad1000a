"""Reads the header of a received object, trusting nothing: everything but Pixel Data, of bounded size."""

from __future__ import annotations

import re
import unicodedata
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.multival import MultiValue
from pydicom.uid import DeflatedExplicitVRLittleEndian

_MOST_INFLATED = 64 * 2**20  # bytes; a header is far smaller
_MOST_VALUE = 2**20  # bytes; what is longer stays in the file until it is asked for
_PIXEL_DATA = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_UID = re.compile(r"[0-9.]{1,64}")


class UnreadableHeader(ValueError):
    """The object does not parse; the message says where, without patient data."""


@dataclass(frozen=True)
class Identity:
    """What the node needs to know of an object to keep it; texts are clean and bounded, UIDs are checked."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    patient_id: str
    patient_name: str
    accession_number: str
    study_date: str
    modality: str
    view_position: str


def read_header(path: Path) -> Dataset:
    """Read a Part 10 file up to its Pixel Data.

    Raises
    ------
    UnreadableHeader
        When it does not parse.
    OSError
        When the file cannot be read.
    """
    try:
        with warnings.catch_warnings():
            # pydicom warns of values that break the Standard; such objects are the PACS's to judge
            warnings.simplefilter("ignore", UserWarning)
            syntax, start = _data_set_offset(path)
            if syntax == DeflatedExplicitVRLittleEndian:
                return _read_deflated(path, start)
            return dcmread(path, stop_before_pixels=True, defer_size=_MOST_VALUE)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk; pydicom raises bare ones for bad bytes
        # Parsing hostile bytes raises nearly anything: struct.error, KeyError, RecursionError, ...
        raise UnreadableHeader(f"The data set does not parse ({type(error).__name__})") from error


def identity(header: Dataset) -> Identity:
    """Return what identifies an object.

    Raises
    ------
    UnreadableHeader
        When one of the four UIDs is missing or holds other characters than digits and dots.
    """
    return Identity(
        sop_class_uid=_uid(header, "SOPClassUID"),
        sop_instance_uid=_uid(header, "SOPInstanceUID"),
        series_instance_uid=_uid(header, "SeriesInstanceUID"),
        study_instance_uid=_uid(header, "StudyInstanceUID"),
        patient_id=text(header, "PatientID", 64),
        patient_name=text(header, "PatientName", 324),
        accession_number=text(header, "AccessionNumber", 64),
        study_date=text(header, "StudyDate", 8),
        modality=text(header, "Modality", 16),
        view_position=text(header, "ViewPosition", 16),
    )


def text(header: Dataset, keyword: str, most: int) -> str:
    """Return a value as text for people and SQL: no control characters, bounded, empty where unreadable."""
    value = _value(header, keyword)
    if value is None:
        return ""
    joined = "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)
    readable = "".join(c for c in joined if unicodedata.category(c) not in ("Cc", "Cs"))
    return readable.strip()[:most]


def _uid(header: Dataset, keyword: str) -> str:
    value = _value(header, keyword)
    if value is None or value == "":
        raise UnreadableHeader(f"{keyword} is missing")
    if not isinstance(value, str) or not _UID.fullmatch(value):
        raise UnreadableHeader(f"{keyword} is no UID")
    return str(value)


def _value(header: Dataset, keyword: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return header.get(keyword)
    except Exception:  # noqa: BLE001 - pydicom parses the element here, and raises nearly anything
        return None


def _read_deflated(path: Path, start: int) -> Dataset:
    """Inflate no more than a header can need: a few bytes can inflate to more than the memory."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    with path.open("rb") as file:
        file.seek(start)
        inflated = inflater.decompress(file.read(_MOST_INFLATED), _MOST_INFLATED)
    return read_dataset(
        BytesIO(inflated), False, True, stop_when=lambda tag, _vr, _length: tag in _PIXEL_DATA
    )


def _data_set_offset(path: Path) -> tuple[str, int]:
    """Return the transfer syntax UID and where the data set starts (PS3.10 7.1)."""
    meta = read_file_meta_info(path)
    return str(meta.TransferSyntaxUID), 144 + int(meta.FileMetaInformationGroupLength)
