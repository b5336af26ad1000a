"""The modules of the report that come from the source: Patient, Study, Specific Character Set, request.

Patient and Study attributes are those of PS3.3 C.7.1.1, C.7.2.1 and C.7.2.2 by which a PACS files and matches
a document. Text keeps its bytes; a type 2 attribute that the source lacks, or that its VR forbids, is empty.
"""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from pacs_node.errors import InvalidReport
from pacs_node.reporting.encoding import put
from pacs_node.reporting.input import is_offset
from pacs_node.reporting.source_header import SPECIFIC_CHARACTER_SET, Source, legal_text, resolve_charset

SOP_CLASS_UID = 0x00080016
SOP_INSTANCE_UID = 0x00080018
STUDY_INSTANCE_UID = 0x0020000D
SERIES_INSTANCE_UID = 0x0020000E
STUDY_DATE, STUDY_TIME = 0x00080020, 0x00080030
ACCESSION_NUMBER = 0x00080050
TIMEZONE_OFFSET = 0x00080201
PROCEDURE_CODES = 0x00081032
REQUESTED_PROCEDURE_CODES = 0x00321064
REQUEST_ATTRIBUTES = 0x00400275
REFERENCED_REQUESTS = 0x0040A370
_PROCEDURE_ID = 0x00401001  # Requested Procedure ID

_TYPE_2 = {
    STUDY_DATE: "DA",
    STUDY_TIME: "TM",
    ACCESSION_NUMBER: "SH",
    0x00080090: "PN",  # Referring Physician's Name
    0x00100010: "PN",  # Patient's Name
    0x00100020: "LO",  # Patient ID
    0x00100030: "DA",  # Patient's Birth Date
    0x00100040: "CS",  # Patient's Sex
    0x00200010: "SH",  # Study ID
}
_TYPE_3 = {
    0x00081030: "LO",  # Study Description
    0x00100021: "LO",  # Issuer of Patient ID
    0x00101010: "AS",  # Patient's Age
    0x00101020: "DS",  # Patient's Size
    0x00101030: "DS",  # Patient's Weight
}
_REQUEST_TYPE_2 = {
    0x00321060: "LO",  # Requested Procedure Description
    _PROCEDURE_ID: "SH",
    0x00402016: "LO",  # Placer Order Number / Imaging Service Request
    0x00402017: "LO",  # Filler Order Number / Imaging Service Request
}

# Sequences of Patient and Study -> the attributes of an item, and those without which it is nothing
_ISSUER = {0x00400031: "UT", 0x00400032: "UT", 0x00400033: "CS"}  # HL7v2 Hierarchic Designator macro
_SEQUENCES: dict[int, tuple[dict[int, str], frozenset[int]]] = {
    0x00080051: (_ISSUER, frozenset()),  # Issuer of Accession Number
    0x00100024: ({0x00400032: "UT", 0x00400033: "CS"}, frozenset({0x00400032, 0x00400033})),
    0x00101002: (  # Other Patient IDs
        {0x00100020: "LO", 0x00100021: "LO", 0x00100022: "CS"},
        frozenset({0x00100020, 0x00100022}),
    ),
}
_ISSUER_OF_ACCESSION_NUMBER = 0x00080051
_ENUMERATED = {
    0x00100022: (b"TEXT", b"RFID", b"BARCODE"),  # Type of Patient ID
    0x00100040: (b"M", b"F", b"O"),
    0x00400033: (b"DNS", b"EUI64", b"ISO", b"URI", b"UUID", b"X400", b"X500"),  # Universal Entity ID Type
}
_CODE_VALUE, _CODE_SCHEME, _CODE_MEANING = 0x00080100, 0x00080102, 0x00080104
_CODE = {_CODE_VALUE: "SH", _CODE_SCHEME: "SH", 0x00080103: "SH", _CODE_MEANING: "LO"}


def open_header(header: Dataset) -> Source:
    """Return `header` for reading, with the character set that the report declares."""
    return resolve_charset(Source(header), {**_TYPE_2, **_TYPE_3})


def uid_of(source: Source, tag: int) -> str:
    """Return a UID exactly as the source has it, leading zeros included: it is the key of the PACS.

    Raises
    ------
    InvalidReport
        When there is none, or when it has characters that no UID has.
    """
    value = source.text(tag, "UI")
    if not value:
        raise InvalidReport(f"the source has no legal UID in ({tag >> 16:04X},{tag & 0xFFFF:04X})")
    return value.decode()


def timezone_of(source: Source) -> str | None:
    """Return Timezone Offset From UTC, where the source has a legal one."""
    offset = source.ascii(TIMEZONE_OFFSET)
    return offset if is_offset(offset) else None


def patient_and_study(source: Source) -> Dataset:
    """Return the Patient, General Study and Patient Study modules and Specific Character Set."""
    made = Dataset()
    if source.declared:
        put(made, SPECIFIC_CHARACTER_SET, "CS", source.declared)
    _copy(source, made, _TYPE_2, keep_empty=True)
    _copy(source, made, _TYPE_3)
    put(made, STUDY_INSTANCE_UID, "UI", uid_of(source, STUDY_INSTANCE_UID).encode())
    for tag in _SEQUENCES:
        _add_items(made, tag, _items(source, tag))
    _add_items(made, PROCEDURE_CODES, _codes(source, PROCEDURE_CODES, source))
    return made


def procedure_codes(source: Source) -> list[Dataset]:
    """Return the codes of the imaging procedure, as performed or else as requested; maybe none."""
    codes = _codes(source, PROCEDURE_CODES, source)
    for tag in (REFERENCED_REQUESTS, REQUEST_ATTRIBUTES):
        for request in source.items(tag):
            codes = codes or _codes(request, REQUESTED_PROCEDURE_CODES, source)
    return codes


def requests(source: Source) -> list[Dataset]:
    """Return the items of Referenced Request Sequence: the orders that the source names (PS3.3 C.17.2)."""
    named = [*source.items(REFERENCED_REQUESTS)] or [*source.items(REQUEST_ATTRIBUTES)]
    made = [_request(source, item) for item in named]
    return [item for item in made if _is_filled(item, ACCESSION_NUMBER) or _is_filled(item, _PROCEDURE_ID)]


def _is_filled(item: Dataset, tag: int) -> bool:
    element = item.get_item(tag)
    return element is not None and bool(element.value)


def _request(source: Source, item: Source) -> Dataset:
    made = _new_item(item, source)
    accession = item.text(ACCESSION_NUMBER, "SH")
    if not accession and source.value(ACCESSION_NUMBER).isascii():
        # Bytes beyond ASCII may mean something else under the item's own character set
        accession = legal_text(source.text(ACCESSION_NUMBER, "SH"), "SH", item.terms)
    put(made, ACCESSION_NUMBER, "SH", accession)
    put(made, STUDY_INSTANCE_UID, "UI", uid_of(source, STUDY_INSTANCE_UID).encode())
    _copy(item, made, _REQUEST_TYPE_2, keep_empty=True)
    made.ReferencedStudySequence = []
    made.RequestedProcedureCodeSequence = _codes(item, REQUESTED_PROCEDURE_CODES, item)
    issuer = _items(item, _ISSUER_OF_ACCESSION_NUMBER) or _items(source, _ISSUER_OF_ACCESSION_NUMBER)
    _add_items(made, _ISSUER_OF_ACCESSION_NUMBER, issuer)
    return made


def _codes(source: Source, tag: int, around: Source) -> list[Dataset]:
    """Return the codes of a code sequence that are whole (PS3.3 8.8); a broken code says nothing."""
    made = [_copied_item(item, _CODE, around) for item in source.items(tag)]
    return [item for item in made if {_CODE_VALUE, _CODE_SCHEME, _CODE_MEANING} <= set(item.keys())]


def _items(source: Source, tag: int) -> list[Dataset]:
    vrs, needed = _SEQUENCES[tag]
    made = [_copied_item(item, vrs, source) for item in source.items(tag)]
    return [item for item in made if needed <= set(item.keys()) and _is_designated(item)]


def _is_designated(item: Dataset) -> bool:
    # Universal Entity ID and its type come together or not at all, and nothing names no issuer
    return (0x00400032 in item) == (0x00400033 in item) and any(tag in item for tag in (*_ISSUER, 0x00100020))


def _copied_item(source: Source, vrs: dict[int, str], around: Source) -> Dataset:
    made = _new_item(source, around)
    _copy(source, made, vrs)
    return made


def _new_item(source: Source, around: Source) -> Dataset:
    """Return an item to go into `around`, which declares its own character set where that differs."""
    made = Dataset()
    if source.terms != around.terms and source.is_declared_legally:
        put(made, SPECIFIC_CHARACTER_SET, "CS", "\\".join(source.terms).encode())
    return made


def _copy(source: Source, made: Dataset, vrs: dict[int, str], *, keep_empty: bool = False) -> None:
    for tag, vr in vrs.items():
        value = source.text(tag, vr)
        if value not in _ENUMERATED.get(tag, (value,)):
            value = b""
        if value or keep_empty:
            put(made, tag, vr, value)


def _add_items(made: Dataset, tag: int, items: list[Dataset]) -> None:
    if items:
        made.add_new(tag, "SQ", Sequence(items))
