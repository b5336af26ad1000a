"""The modules of the report that come from the source: Patient, Study, Specific Character Set, request.

Patient and Study attributes are those of PS3.3 C.7.1.1, C.7.2.1 and C.7.2.2 by which a PACS files and matches
a document. Text keeps its bytes; a type 2 attribute that the source lacks, or that its VR forbids, is empty.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from pacs_node.errors import InvalidReport
from pacs_node.reporting.encoding import put
from pacs_node.reporting.input import is_offset
from pacs_node.reporting.source_header import Source, legal_text, resolve_charset

_TYPE_2 = (
    *("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientID"),
    *("PatientBirthDate", "PatientSex", "StudyID"),
)
_TYPE_3 = ("StudyDescription", "IssuerOfPatientID", "PatientAge", "PatientSize", "PatientWeight")
_REQUEST_TYPE_2 = (
    *("RequestedProcedureDescription", "RequestedProcedureID"),
    *("PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest"),
)

# HL7v2 Hierarchic Designator macro
_LOCAL, _UNIVERSAL, _UNIVERSAL_TYPE = "LocalNamespaceEntityID", "UniversalEntityID", "UniversalEntityIDType"
_ISSUER = (_LOCAL, _UNIVERSAL, _UNIVERSAL_TYPE)
# Sequences of Patient and Study -> the attributes of an item, and those without which it is nothing
_SEQUENCES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "IssuerOfAccessionNumberSequence": (_ISSUER, ()),
    "IssuerOfPatientIDQualifiersSequence": (
        (_UNIVERSAL, _UNIVERSAL_TYPE),
        (_UNIVERSAL, _UNIVERSAL_TYPE),
    ),
    "OtherPatientIDsSequence": (
        ("PatientID", "IssuerOfPatientID", "TypeOfPatientID"),
        ("PatientID", "TypeOfPatientID"),
    ),
}
_ENUMERATED = {
    "TypeOfPatientID": (b"TEXT", b"RFID", b"BARCODE"),
    "PatientSex": (b"M", b"F", b"O"),
    _UNIVERSAL_TYPE: (b"DNS", b"EUI64", b"ISO", b"URI", b"UUID", b"X400", b"X500"),
}
_CODE_NEEDED = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
_CODE = (*_CODE_NEEDED, "CodingSchemeVersion")


def open_header(header: Dataset) -> Source:
    """Return `header` for reading, with the character set that the report declares."""
    return resolve_charset(Source(header), (*_TYPE_2, *_TYPE_3))


def uid_of(source: Source, keyword: str) -> str:
    """Return a UID exactly as the source has it, leading zeros included: it is the key of the PACS.

    Raises
    ------
    InvalidReport
        When there is none, or when it has characters that no UID has.
    """
    value = source.text(keyword)
    if not value:
        raise InvalidReport(f"the source has no legal {keyword}")
    return value.decode()


def timezone_of(source: Source) -> str | None:
    """Return Timezone Offset From UTC, where the source has a legal one."""
    offset = source.ascii("TimezoneOffsetFromUTC")
    return offset if is_offset(offset) else None


def patient_and_study(source: Source) -> Dataset:
    """Return the Patient, General Study and Patient Study modules and Specific Character Set."""
    made = Dataset()
    if source.declared:
        put(made, "SpecificCharacterSet", source.declared)
    _copy(source, made, _TYPE_2, keep_empty=True)
    _copy(source, made, _TYPE_3)
    put(made, "StudyInstanceUID", uid_of(source, "StudyInstanceUID").encode())
    for keyword in _SEQUENCES:
        _add_items(made, keyword, _items(source, keyword))
    _add_items(made, "ProcedureCodeSequence", _codes(source, "ProcedureCodeSequence", source))
    return made


def copied_patient_and_study(report: Dataset) -> Dataset:
    """Return the same modules of a report, with their bytes, for another object of its study."""
    keywords = ("SpecificCharacterSet", "StudyInstanceUID", "ProcedureCodeSequence")
    made = Dataset()
    for keyword in (*keywords, *_TYPE_2, *_TYPE_3, *_SEQUENCES):
        if keyword in report:
            made[keyword] = report.get_item(keyword)
    return made


def procedure_codes(source: Source) -> list[Dataset]:
    """Return the codes of the imaging procedure, as performed or else as requested; maybe none."""
    codes = _codes(source, "ProcedureCodeSequence", source)
    for keyword in ("ReferencedRequestSequence", "RequestAttributesSequence"):
        for request in source.items(keyword):
            codes = codes or _codes(request, "RequestedProcedureCodeSequence", source)
    return codes


def requests(source: Source) -> list[Dataset]:
    """Return the items of Referenced Request Sequence: the orders that the source names (PS3.3 C.17.2)."""
    named = [*source.items("ReferencedRequestSequence")] or [*source.items("RequestAttributesSequence")]
    made = [_request(source, item) for item in named]
    return [
        item
        for item in made
        if _is_filled(item, "AccessionNumber") or _is_filled(item, "RequestedProcedureID")
    ]


def _is_filled(item: Dataset, keyword: str) -> bool:
    element = item.get_item(keyword)
    return element is not None and bool(element.value)


def _request(source: Source, item: Source) -> Dataset:
    made = _new_item(item, source)
    accession = item.text("AccessionNumber")
    if not accession and source.value("AccessionNumber").isascii():
        # Bytes beyond ASCII may mean something else under the item's own character set
        accession = legal_text(source.text("AccessionNumber"), "SH", item.terms)
    put(made, "AccessionNumber", accession)
    put(made, "StudyInstanceUID", uid_of(source, "StudyInstanceUID").encode())
    _copy(item, made, _REQUEST_TYPE_2, keep_empty=True)
    made.ReferencedStudySequence = []
    made.RequestedProcedureCodeSequence = _codes(item, "RequestedProcedureCodeSequence", item)
    issuer = _items(item, "IssuerOfAccessionNumberSequence") or _items(
        source, "IssuerOfAccessionNumberSequence"
    )
    _add_items(made, "IssuerOfAccessionNumberSequence", issuer)
    return made


def _codes(source: Source, keyword: str, around: Source) -> list[Dataset]:
    """Return the codes of a code sequence that are whole (PS3.3 8.8); a broken code says nothing."""
    made = [_copied_item(item, _CODE, around) for item in source.items(keyword)]
    return [item for item in made if all(needed in item for needed in _CODE_NEEDED)]


def _items(source: Source, keyword: str) -> list[Dataset]:
    copied, needed = _SEQUENCES[keyword]
    made = [_copied_item(item, copied, source) for item in source.items(keyword)]
    return [item for item in made if all(each in item for each in needed) and _is_designated(item)]


def _is_designated(item: Dataset) -> bool:
    # Universal Entity ID and its type come together or not at all, and nothing names no issuer
    is_whole = (_UNIVERSAL in item) == (_UNIVERSAL_TYPE in item)
    return is_whole and any(keyword in item for keyword in (*_ISSUER, "PatientID"))


def _copied_item(source: Source, keywords: Iterable[str], around: Source) -> Dataset:
    made = _new_item(source, around)
    _copy(source, made, keywords)
    return made


def _new_item(source: Source, around: Source) -> Dataset:
    """Return an item to go into `around`, which declares its own character set where that differs."""
    made = Dataset()
    if source.terms != around.terms and source.is_declared_legally:
        put(made, "SpecificCharacterSet", "\\".join(source.terms).encode())
    return made


def _copy(source: Source, made: Dataset, keywords: Iterable[str], *, keep_empty: bool = False) -> None:
    for keyword in keywords:
        value = source.text(keyword)
        if value not in _ENUMERATED.get(keyword, (value,)):
            value = b""
        if value or keep_empty:
            put(made, keyword, value)


def _add_items(made: Dataset, keyword: str, items: list[Dataset]) -> None:
    if items:
        setattr(made, keyword, Sequence(items))
