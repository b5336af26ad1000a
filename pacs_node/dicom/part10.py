"""Preamble, File Meta Information and offsets of a DICOM file (PS3.10 7.1): the one place that knows them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_file_meta_info

from pacs_node.errors import UnreadableHeader

PREAMBLE = b"\0" * 128 + b"DICM"
IMPLEMENTATION_CLASS_UID = "2.25.262286975665040561812135322555843614967"
IMPLEMENTATION_VERSION_NAME = "PACS_NODE"
LARGEST_META = 2**16
"""Bytes; File Meta Information is far smaller."""

_GROUP_LENGTH_VALUE = 140  # where the value of (0002,0000) stands: the length of what follows it
_AFTER_GROUP_LENGTH = 144


@dataclass(frozen=True)
class FileMeta:
    """What File Meta Information says of the object that follows it."""

    sop_class_uid: str
    transfer_syntax_uid: str


def file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Return all that comes before the data set of a file that this node writes."""
    version = b"\x02\x00\x01\x00OB\0\0\x02\0\0\0\0\x01"
    content = version + _element(0x02, "UI", sop_class_uid) + _element(0x03, "UI", sop_instance_uid)
    content += _element(0x10, "UI", transfer_syntax_uid) + _implementation()
    length = struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(content))
    return PREAMBLE + length + content


def read_file_meta(path: Path) -> FileMeta:
    """Return what the File Meta Information of a file says.

    Raises
    ------
    UnreadableHeader
        When the file is not a DICOM file.
    OSError
        When it cannot be read.
    """
    meta: Any
    try:
        meta = read_file_meta_info(path)
        return FileMeta(str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID))
    except (InvalidDicomError, AttributeError, EOFError, ValueError) as error:
        raise UnreadableHeader("It is not a DICOM file (PS3.10)") from error


def data_set_offset(path: Path) -> tuple[str, int]:
    """Return the transfer syntax UID of a file, and where its data set starts."""
    meta = read_file_meta_info(path)
    return str(meta.TransferSyntaxUID), _AFTER_GROUP_LENGTH + int(meta.FileMetaInformationGroupLength)


def split_meta(head: bytes | bytearray) -> tuple[str, int] | None:
    """Return what `data_set_offset` does, of the beginning of a file; ``None`` while too little is there."""
    length = bytes(head[_GROUP_LENGTH_VALUE:_AFTER_GROUP_LENGTH])
    start = _AFTER_GROUP_LENGTH + int.from_bytes(length, "little")
    if not len(head) >= start > _AFTER_GROUP_LENGTH:
        return None
    meta = read_dataset(BytesIO(head[_AFTER_GROUP_LENGTH:start]), False, True)
    return str(meta.TransferSyntaxUID), start


def seek_data_set(file: BinaryIO) -> None:
    """Go to the data set of an open file."""
    file.seek(_GROUP_LENGTH_VALUE)
    file.seek(int.from_bytes(file.read(4), "little"), 1)


def padded(text: str, padding: str) -> bytes:
    """Return ASCII text of even length (PS3.5 6.2)."""
    return (text + padding * (len(text) % 2)).encode("ascii", "replace")


def first_group(file: BinaryIO) -> bytes:
    """Return the first two bytes of the data set of an open file; none where its group length is missing."""
    head = file.read(_AFTER_GROUP_LENGTH)
    if head[len(PREAMBLE) :].startswith(b"\x02\0\0\0UL"):
        seek_data_set(file)
        return file.read(2)
    return b""


@lru_cache(maxsize=1)
def _implementation() -> bytes:
    return _element(0x12, "UI", IMPLEMENTATION_CLASS_UID) + _element(0x13, "SH", IMPLEMENTATION_VERSION_NAME)


def _element(number: int, vr: str, text: str) -> bytes:
    value = padded(text, "\0" if vr == "UI" else " ")
    return struct.pack("<HH2sH", 2, number, vr.encode(), len(value)) + value
