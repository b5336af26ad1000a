"""File meta information and the offsets of a DICOM file (PS3.10 7.1): the one place that knows them."""

from __future__ import annotations

import struct
from functools import lru_cache
from pathlib import Path

from pydicom.filereader import read_file_meta_info


def file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Return preamble, prefix and file meta information of a Part 10 file (PS3.10 7.1)."""
    version = b"\x02\x00\x01\x00OB\0\0\x02\0\0\0\0\x01"
    content = version + _meta(0x02, "UI", sop_class_uid) + _meta(0x03, "UI", sop_instance_uid)
    content += _meta(0x10, "UI", transfer_syntax_uid) + _implementation()
    length = struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(content))
    return b"\0" * 128 + b"DICM" + length + content


@lru_cache(maxsize=1)
def _implementation() -> bytes:
    return _meta(0x12, "UI", IMPLEMENTATION_CLASS_UID) + _meta(0x13, "SH", IMPLEMENTATION_VERSION_NAME)


def _meta(element: int, vr: str, text: str) -> bytes:
    value = _padded(text, "\0" if vr == "UI" else " ")
    return struct.pack("<HH2sH", 2, element, vr.encode(), len(value)) + value


def _padded(text: str, with_: str) -> bytes:
    return (text + with_ * (len(text) % 2)).encode("ascii", "replace")


PREAMBLE = b"\0" * 128 + b"DICM"


IMPLEMENTATION_CLASS_UID = "2.25.262286975665040561812135322555843614967"


IMPLEMENTATION_VERSION_NAME = "PACS_NODE"


def _data_set_offset(path: Path) -> tuple[str, int]:
    """Return the transfer syntax UID and where the data set starts (PS3.10 7.1)."""
    meta = read_file_meta_info(path)
    return str(meta.TransferSyntaxUID), 144 + int(meta.FileMetaInformationGroupLength)


_GROUP_LENGTH_VALUE, _META = 140, 144  # PS3.10 7.1
