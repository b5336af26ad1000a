"""Data sets and files with elements that pydicom would not write."""

from __future__ import annotations

import struct
from pathlib import Path

from pydicom import dcmwrite
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.tag import Tag
from pydicom.uid import UID

from tests.conftest import radiograph

TEMPLATE = radiograph(PixelData=None)


def raw(header: Dataset, tag: int, vr: str, value: bytes) -> Dataset:
    """Set an element to bytes, as reading a file would leave it."""
    header[tag] = RawDataElement(Tag(tag), vr, len(value), value, 0, False, True)
    return header


def encoded(ds: FileDataset, syntax: str, path: Path) -> Path:
    """Write a data set in an uncompressed or deflated transfer syntax."""
    plain = Dataset(ds)  # without the encoding that a FileDataset remembers
    plain.file_meta = ds.file_meta
    plain.file_meta.TransferSyntaxUID = UID(syntax)
    dcmwrite(path, plain, enforce_file_format=True)
    return path


def part10(data_set: bytes, syntax: str, path: Path) -> Path:
    """Write bytes as the data set of a Part 10 file."""
    whole = encoded(TEMPLATE, syntax, path).read_bytes()
    length = int.from_bytes(whole[140:144], "little")
    path.write_bytes(whole[: 144 + length] + data_set)
    return path


def explicit_element(tag: int, vr: bytes, value: bytes, order: str = "<") -> bytes:
    """Return an element in Explicit VR with a length of 16 bits."""
    return struct.pack(f"{order}HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value
