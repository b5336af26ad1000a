"""DICOM files, written so that copied values keep their bytes (PS3.5 7.1, PS3.10 7.1).

pydicom decodes and encodes text on its way from one data set to another; under ISO 2022 the bytes that come
out may differ from the bytes that went in. Here a value copied from a source travels as `RawDataElement` and
is written as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

from pacs_node.dicom.attributes import attribute
from pacs_node.dicom.part10 import IMPLEMENTATION_CLASS_UID, PREAMBLE, file_meta

_LONG_VRS = {str(vr).encode() for vr in EXPLICIT_VR_LENGTH_32}


def raw(tag: int, vr: str, value: bytes) -> RawDataElement:
    """Return an element that holds exactly `value`, padded to even length (PS3.5 6.2)."""
    if len(value) % 2:
        value += b"\0" if vr in ("UI", "OB") else b" "
    return RawDataElement(Tag(tag), vr, len(value), value, 0, False, True)


def put(item: Dataset, keyword: str, value: bytes) -> None:
    """Set one attribute of `item` to exactly `value`."""
    tag, vr = attribute(keyword)
    item[tag] = raw(tag, vr, value)


def encode(item: Dataset) -> bytes:
    """Encode a data set in Explicit VR Little Endian; new text in it is ASCII, copied text is raw."""
    return b"".join(_encode_element(item.get_item(tag)) for tag in sorted(item.keys()))


def implicit(content: bytes) -> bytes:
    """Return what `part10` wrote as a file in Implicit VR Little Endian, which every peer takes (PS3.5 10.1).

    The values keep their bytes; only their headers change.
    """
    report = parse(content)
    encoded = b"".join(_framed_implicit(*e) for e in _elements(content, len(PREAMBLE)) if e[0] >> 16 != 2)
    return file_meta(report.SOPClassUID, report.SOPInstanceUID, ImplicitVRLittleEndian) + encoded


def _framed_implicit(tag: int, vr: str, value: bytes) -> bytes:
    if vr == "SQ":
        value = b"".join(map(_framed_item, map(_implicit, _items(value))))
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value


def _implicit(item: bytes) -> bytes:
    return b"".join(_framed_implicit(*element) for element in _elements(item, 0))


def _items(value: bytes) -> Iterator[bytes]:
    """Yield the encoded items of a sequence, which all have their length."""
    at = 0
    while at < len(value):
        (length,) = struct.unpack_from("<4xL", value, at)
        yield value[at + 8 : at + 8 + length]
        at += 8 + length


def _encode_element(element: DataElement | RawDataElement) -> bytes:
    if isinstance(element, RawDataElement):
        return _framed(element.tag, str(element.VR), element.value or b"")
    if element.VR == VR.SQ:
        return _framed(element.tag, "SQ", b"".join(map(_encode_item, element.value)))
    if isinstance(element.value, str) and element.value.isascii():  # most of a report: spare pydicom's ways
        padding = b"\0" if element.VR == VR.UI else b" "
        value = element.value.encode("ascii")
        return _framed(element.tag, str(element.VR), value + padding * (len(value) % 2))
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, False
    write_data_element(stream, element, ["ascii"])
    return stream.getvalue()


def _encode_item(item: Dataset) -> bytes:
    return _framed_item(encode(item))


def _framed_item(value: bytes) -> bytes:
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(value)) + value


def _framed(tag: int, vr: str, value: bytes) -> bytes:
    code = vr.encode()
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, code)
    length = struct.pack("<2xL" if code in _LONG_VRS else "<H", len(value))
    return head + length + value


def part10(dataset: Dataset) -> bytes:
    """Return the whole file for `dataset`, with File Meta Information of fixed content."""
    meta = file_meta(dataset.SOPClassUID, dataset.SOPInstanceUID, ExplicitVRLittleEndian)
    return meta + encode(dataset)


def parse(content: bytes) -> Dataset:
    """Read back what `part10` wrote, without the File Meta Information; sequences stay raw too.

    Raises
    ------
    ValueError
        When `content` is something else.
    """
    if not content.startswith(PREAMBLE):
        raise ValueError("not a DICOM file of this node")
    meta, dataset = Dataset(), Dataset()
    try:
        for tag, vr, value in _elements(content, len(PREAMBLE)):
            (meta if tag >> 16 == 2 else dataset)[tag] = raw(tag, vr, value)
    except struct.error as error:
        raise ValueError("the DICOM file ends within an element") from error
    if meta.get("ImplementationClassUID") != IMPLEMENTATION_CLASS_UID:
        raise ValueError("not a DICOM file of this node")
    return dataset


def _elements(encoded: bytes, at: int) -> Iterator[tuple[int, str, bytes]]:
    """Yield tag, VR and value of each element from position `at` on."""
    while at < len(encoded):
        group, number, vr = struct.unpack_from("<HH2s", encoded, at)
        long = vr in _LONG_VRS
        (length,) = struct.unpack_from("<2xL" if long else "<H", encoded, at + 6)
        start = at + (12 if long else 8)
        at = start + length
        if at > len(encoded):
            raise ValueError("the DICOM file ends within an element")
        yield group << 16 | number, vr.decode("latin-1"), encoded[start:at]
