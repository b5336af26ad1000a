"""Reads the header of a received object, trusting nothing: everything but Pixel Data, of bounded size."""

from __future__ import annotations

import re
import struct
import unicodedata
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import data_element_generator, read_dataset, read_partial
from pydicom.multival import MultiValue
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from classifier.decoding.dates import exact
from classifier.decoding.quiet import silence_warnings
from pacs_node.dicom import acquisition, character_sets
from pacs_node.dicom.acquisition import Acquisition, NotPlain
from pacs_node.dicom.part10 import LARGEST_META, data_set_offset, first_group
from pacs_node.errors import UnreadableHeader

IDENTIFYING = (0x00080050, 0x00100010, 0x00100020)
"""The texts of an object's row, which decide how text is read where no character set is declared."""

_MOST_INFLATED = 64 * 2**20  # bytes; a header is far smaller
_MOST_READS = 150_000  # two or three for each element; 1,000 frames with all their attributes need fewer
_MOST_VALUE = 2**20  # bytes; what is longer stays in the file until it is asked for
_PIXEL_DATA = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
_UID = re.compile(r"[0-9.]{1,64}")
_MOST_LENGTHS = {
    "patient_id": 64,
    "issuer_of_patient_id": 64,
    "patient_name": 324,
    "patient_birth_date": 64,
    "accession_number": 64,
    "study_date": 64,
    "modality": 16,
    "view_position": 16,
}
_SCANNED = {
    0x00080016: "sop_class_uid",
    0x00080018: "sop_instance_uid",
    0x00080020: "study_date",
    0x00080050: "accession_number",
    0x00080060: "modality",
    0x00100010: "patient_name",
    0x00100020: "patient_id",
    0x00100021: "issuer_of_patient_id",
    0x00100030: "patient_birth_date",
    0x00185101: "view_position",
    0x0020000D: "study_instance_uid",
    0x0020000E: "series_instance_uid",
}
_CHARACTER_SET = 0x00080005
_DATES = ("study_date", "patient_birth_date")
_C1 = re.compile(r"[\x80-\x9f]")
_DATE_LENGTH = 8  # YYYYMMDD, and the column of the database
_FIRST_GROUP = 0x0008  # of a data set; what is below belongs to commands, file meta information and DICOMDIR
_ASCII_INSIDE = {b"", b"ISO_IR 6", b"ISO_IR 100", b"ISO_IR 192"}  # character sets
_UNDEFINED = 0xFFFFFFFF
_SHORT_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()
)  # with a length of 16 bits in Explicit VR (PS3.5 7.1.2)
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_EXPLICIT, _IMPLICIT = struct.Struct("<HH2sH"), struct.Struct("<HHL")
_LENGTH = struct.Struct("<L")


@dataclass(frozen=True)
class Identity:
    """What the node needs to know of an object to keep it; texts are clean and bounded, UIDs are checked."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    patient_id: str
    issuer_of_patient_id: str
    patient_name: str
    patient_birth_date: str
    accession_number: str
    study_date: str
    modality: str
    view_position: str
    acquisition: Acquisition


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
        silence_warnings()  # of values that break the Standard; such objects are the PACS's to judge
        with path.open("rb") as file:
            _require_plain_beginning(file)
            header = _read(path, file)
        _require_no_other_groups(header)
        return header
    except UnreadableHeader:
        raise
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
    described = readable(header, acquisition.DESCRIBING)  # these texts say nothing of how names are written
    header = readable(header, IDENTIFYING)
    return Identity(
        sop_class_uid=_uid(header, "SOPClassUID"),
        sop_instance_uid=_uid(header, "SOPInstanceUID"),
        series_instance_uid=_uid(header, "SeriesInstanceUID"),
        study_instance_uid=_uid(header, "StudyInstanceUID"),
        patient_id=text(header, "PatientID", _MOST_LENGTHS["patient_id"]),
        issuer_of_patient_id=text(header, "IssuerOfPatientID", _MOST_LENGTHS["issuer_of_patient_id"]),
        patient_name=text(header, "PatientName", _MOST_LENGTHS["patient_name"]),
        patient_birth_date=date_text(text(header, "PatientBirthDate", _MOST_LENGTHS["patient_birth_date"])),
        accession_number=text(header, "AccessionNumber", _MOST_LENGTHS["accession_number"]),
        study_date=date_text(text(header, "StudyDate", _MOST_LENGTHS["study_date"])),
        modality=text(header, "Modality", _MOST_LENGTHS["modality"]),
        view_position=text(header, "ViewPosition", _MOST_LENGTHS["view_position"]),
        acquisition=acquisition.parsed(described, partial(text, described)),
    )


def scan(data_set: bytes, transfer_syntax_uid: str) -> Identity | None:
    """Return what `identity` would, ten times as fast, of a data set that is as plain as nearly all are.

    Parameters
    ----------
    data_set
        The beginning of an encoded data set.
    transfer_syntax_uid
        How it is encoded.

    Returns
    -------
    Identity or None
        None where it takes a full parser: the header is not whole in `data_set`, not plain Little Endian with
        defined lengths and ascending tags, begins with another group than a data set can, or has a text
        beyond ASCII, or a UID that is missing.
    """
    if transfer_syntax_uid in (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian):
        return None
    if transfer_syntax_uid == ImplicitVRLittleEndian and data_set[4:6].isalpha():
        return None  # it may be explicit, as the parser will see
    found: dict[str, bytes] = {}
    made: dict[int, tuple[bytes, bytes]] = {}
    character_set = b""
    last = 0
    for tag, vr, value in _elements(data_set, is_explicit=transfer_syntax_uid != ImplicitVRLittleEndian):
        if tag in _PIXEL_DATA:
            return _scanned(found, made, character_set)
        if value is None or tag <= last or tag >> 16 < _FIRST_GROUP:
            return None
        last = tag
        if tag in _SCANNED:
            found[_SCANNED[tag]] = value
        elif tag == _CHARACTER_SET:
            character_set = value.strip()
            if character_set not in _ASCII_INSIDE:
                return None
        if tag in acquisition.SCANNED:
            made[tag] = vr, value
    return None


def _elements(data: bytes, *, is_explicit: bool) -> Iterator[tuple[int, bytes, bytes | None]]:
    """Yield tags, VRs (empty in Implicit VR) and values.

    A value that is not whole is ``None``, and nothing comes after it.
    """
    at = 0
    while at + 12 <= len(data):
        if is_explicit:
            group, element, vr, length = _EXPLICIT.unpack_from(data, at)
            start = at + 8
            if vr in _LONG_VRS:
                length, start = _LENGTH.unpack_from(data, start)[0], at + 12
            elif vr not in _SHORT_VRS:
                length = _UNDEFINED
        else:
            group, element, length = _IMPLICIT.unpack_from(data, at)
            vr = b""
            start = at + 8
        at = start + length
        is_whole = length != _UNDEFINED and at <= len(data)
        yield group << 16 | element, vr, data[start:at] if is_whole else None


def _scanned(
    found: Mapping[str, bytes], made: Mapping[int, tuple[bytes, bytes]], character_set: bytes
) -> Identity | None:
    values: dict[str, str] = {}
    for name in _SCANNED.values():
        value = found.get(name, b"")
        if not value.isascii() or b"\x1b" in value:
            return None
        plain = value.decode("ascii")
        if name in _MOST_LENGTHS:
            values[name] = _bounded("".join(filter(str.isprintable, plain)).strip(), _MOST_LENGTHS[name])
        else:
            values[name] = plain.rstrip("\0 ")
            if not _UID.fullmatch(values[name]):
                return None
    dates = {name: date_text(values[name]) for name in _DATES}
    try:
        return Identity(**values | dates, acquisition=acquisition.scanned(made, character_set, _bounded))
    except NotPlain:
        return None


def text(header: Dataset, keyword: str, most: int) -> str:
    """Return a value as text for people and SQL: no control characters, bounded, empty where unreadable.

    What is longer than `most` characters ends in an ellipsis: cut in silence, it might be another ID.
    """
    value = _value(header, keyword)
    if value is None:
        return ""
    joined = "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)
    readable = "".join(c for c in joined if unicodedata.category(c) not in ("Cc", "Cs"))
    return _bounded(readable.strip(), most)


def _bounded(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def date_text(value: str) -> str:
    """Return a date as YYYYMMDD; what is none as it came, and nothing where it does not fit the column.

    A date is never cut: "2026.11.01" is the 1st of November, "2026.11." would be nothing.
    """
    day = exact(value)
    if day is not None:
        return day.isoformat().replace("-", "")
    return value if len(value) <= _DATE_LENGTH else ""


def readable(header: Dataset, tags: Collection[int]) -> Dataset:
    """Return a data set whose texts can be read: with the character set that its sender meant.

    A misspelt Specific Character Set is put right. Text beyond ASCII is read as UTF-8 where it is that and no
    known character set is declared; as ISO_IR 100 where none at all is declared; elsewhere each byte that
    nobody can read is shown as U+FFFD.

    Parameters
    ----------
    header
        As pydicom read it.
    tags
        The attributes of VR SH, LO and PN that will be asked for.
    """
    texts = {tag: value for tag in tags if (value := _raw(header, tag))}
    together = b"".join(texts.values())
    if together.isascii() and b"\x1b" not in together:
        return header
    declared = character_sets.parsed(_raw(header, _CHARACTER_SET) or b"")
    terms = character_sets.mended(declared)
    if len(terms) == 2 and terms[0] in ("", "ISO 2022 IR 6") and b"\x1b" not in together:
        terms = terms[1:]  # 8-bit text without its escape sequences
    if not (character_sets.are_known(terms) and character_sets.can_hold_8_bits(terms)):
        terms = ("ISO_IR 192",) if character_sets.is_utf8(together) else ()
    if terms and terms == declared:
        return header
    changed = Dataset(header)
    if terms:
        changed[_CHARACTER_SET] = DataElement(_CHARACTER_SET, "CS", list(terms))
        return changed
    for tag, value in texts.items():
        legible = _legible(value.rstrip(b" \0"), is_declared=bool(declared))
        changed[tag] = DataElement(tag, dictionary_VR(tag), legible)
    return changed


def _legible(value: bytes, *, is_declared: bool) -> str:
    if is_declared:
        return value.decode("ascii", "replace")
    return _C1.sub("\N{REPLACEMENT CHARACTER}", value.decode("latin-1"))


def _raw(header: Dataset, tag: int) -> bytes | None:
    """Return the bytes of a value, or ``None`` where there is none, or it is decoded already."""
    if tag not in header:
        return None
    element: DataElement | RawDataElement = header.get_item(tag, keep_deferred=True)
    if isinstance(element, RawDataElement):
        return element.value or b""
    if tag == _CHARACTER_SET and element.value:
        values = [element.value] if isinstance(element.value, str) else element.value
        return "\\".join(map(str, values)).encode("latin-1", "replace")
    return None


def _uid(header: Dataset, keyword: str) -> str:
    value = _value(header, keyword)
    if value is None or value == "":
        raise UnreadableHeader(f"{keyword} is missing")
    if not isinstance(value, str) or not _UID.fullmatch(value):
        raise UnreadableHeader(f"{keyword} is no UID")
    return str(value)


def _value(header: Dataset, keyword: str) -> Any:
    try:
        silence_warnings()
        return header.get(keyword)
    except Exception:  # noqa: BLE001 - pydicom parses the element here, and raises nearly anything
        return None


class _Order:
    """Tells pydicom where Pixel Data begins, and notes whether a tag came twice."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self.came_twice = False

    def __call__(self, tag: int, _vr: str | None, length: int) -> bool:
        if tag in _PIXEL_DATA:
            return True
        self.came_twice |= tag in self._seen and bool(tag & 0xFFFF)  # but for group lengths
        if self._seen or length:  # pydicom may ask for the first one twice, with a length of 0 before
            self._seen.add(tag)
        return False


class _Budgeted:
    """A file of which only so much is read: to parse a few megabytes of empty elements takes minutes."""

    def __init__(self, file: BinaryIO | BytesIO) -> None:
        self._file = file
        self._left = _MOST_READS
        self.seek, self.tell = file.seek, file.tell  # asked for at each element

    def read(self, size: int = -1) -> bytes:
        """Read, as long as that is not done too often."""
        self._left -= 1
        if self._left < 0:
            raise UnreadableHeader("The header has too many elements")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _read(path: Path, opened: BinaryIO) -> Dataset:
    order = _Order()
    file: Any = _Budgeted(opened)
    if _may_be_deflated(path):
        syntax, start = data_set_offset(path)
        if syntax == DeflatedExplicitVRLittleEndian:
            inflated: Any = _Budgeted(_inflated(path, start))
            header = read_dataset(inflated, False, True, stop_when=order)
            _require_no_contradiction(order, inflated, 0, (False, True))
            return header
    file.seek(0)
    found = read_partial(file, stop_when=order, defer_size=_MOST_VALUE)
    found.file_meta.TransferSyntaxUID  # noqa: B018 - raises where it is missing
    start = data_set_offset(path)[1] if order.came_twice else 0
    _require_no_contradiction(order, file, start, found.original_encoding)
    return found


def _require_plain_beginning(file: BinaryIO) -> None:
    """Refuse a data set that begins with group 0000 or 0002.

    File meta information is this node's own (PS3.10 7.1). A parser of the file would take such elements for
    a part of it, and believe another transfer syntax than that of the association.
    """
    group = first_group(file)
    if group in (b"\0\0", b"\x02\0", b"\0\x02"):  # the last one in Big Endian
        raise UnreadableHeader(f"The data set begins with group 000{max(group)}, which is no part of one")


def _require_no_other_groups(header: Dataset) -> None:
    for tag in header.keys():  # noqa: SIM118 - iterating a data set decodes its elements
        if tag >> 16 in (0x0000, 0x0002):
            raise UnreadableHeader(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is no part of a data set")


def _require_no_contradiction(
    order: _Order, data: BinaryIO | BytesIO, start: int, encoding: tuple[bool | None, bool | None]
) -> None:
    """Refuse an attribute that is there twice with different values: some parsers take the first of them."""
    if not order.came_twice:
        return
    data.seek(start)
    found: dict[int, object] = {}
    is_implicit, is_little = bool(encoding[0]), encoding[1] is not False
    for element in data_element_generator(
        data, is_implicit, is_little, stop_when=lambda tag, _vr, _length: tag in _PIXEL_DATA
    ):
        tag, value = int(element.tag), element.value
        if found.setdefault(tag, value) != value:
            raise UnreadableHeader(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) is there twice, and differs")


def _inflated(path: Path, start: int) -> BytesIO:
    """Inflate no more than a header can need: a few bytes can inflate to more than the memory."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    with path.open("rb") as file:
        file.seek(start)
        return BytesIO(inflater.decompress(file.read(_MOST_INFLATED), _MOST_INFLATED))


def _may_be_deflated(path: Path) -> bool:
    """Look for the UID before parsing anything: nearly nothing is deflated."""
    with path.open("rb") as file:
        return DeflatedExplicitVRLittleEndian.encode() in file.read(LARGEST_META)
