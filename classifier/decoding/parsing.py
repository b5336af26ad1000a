"""From the bytes of a DICOM file (PS3.10) to a data set, at a cost that the file cannot choose.

A few bytes can inflate to gigabytes, and a few megabytes of empty sequence items take a parser minutes. Both
are bounded here: what is inflated by what the header declares, what is parsed by the number of reads.
"""

from __future__ import annotations

import zlib
from io import BytesIO
from typing import Final

from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.filereader import read_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from classifier.decoding.refusal import too_large, translated, unreadable

HEADER_BYTES: Final = 64 * 2**20
"""Most bytes of a data set beside Pixel Data, such as overlays and private elements."""

_PREAMBLE = 128
_MOST_READS = 100_000  # about three for each element, of which real radiographs have some hundred
_PIECE = 2**20
_ELEMENT_BYTES = 12  # of tag, value representation and length
_FIRST_PIECES = 8 * 2**20  # of an inflated data set: where its header ends in practice
_LONG_VRS = {b"OB", b"OW", b"UN", b"UT", b"UC", b"UR", b"OD", b"OF", b"OL", b"OV", b"SV", b"UV"}
_DEFLATED = DeflatedExplicitVRLittleEndian.encode()
_INFLATED = ExplicitVRLittleEndian.encode().ljust(len(_DEFLATED), b"\0")


def is_dicom(data: bytes) -> bool:
    """Tell whether there is a DICOM prefix (PS3.10 7.1)."""
    return data[_PREAMBLE : _PREAMBLE + 4] == b"DICM"


class Part10:
    """A DICOM file in memory.

    Parameters
    ----------
    data
        The whole file. A deflated data set is inflated, and then is one of Explicit VR Little Endian.

    Raises
    ------
    NotScorable
        ``UNREADABLE`` when the file meta information is malformed, ``TOO_LARGE`` when there is too much of
        anything.
    """

    def __init__(self, data: bytes) -> None:
        start = _end_of_meta(data)
        self._rest: _Inflating | None = None
        self._data = data
        if _DEFLATED in data[:start]:
            self._rest = _Inflating(data[start:])
            meta = data[:start].replace(_DEFLATED, _INFLATED)
            self._data = meta + self._rest.up_to(_FIRST_PIECES)

    def header(self) -> FileDataset:
        """Return all that comes before Pixel Data."""
        header = self._parsed_header()
        if self._rest is None or self._rest.is_over or self._file.tell() < len(self._data) - _ELEMENT_BYTES:
            return header
        self._data += self._rest.up_to(HEADER_BYTES)
        return self._parsed_header()

    def _parsed_header(self) -> FileDataset:
        self._file = _Counted(self._data)
        with translated("Reading the data set"):
            header = dcmread(self._file, stop_before_pixels=True)
        self._encoding = header.original_encoding
        return header

    def pixels(self, declared: int) -> Dataset:
        """Return what comes after the header, Pixel Data first, of which `declared` bytes are declared."""
        position, most = self._file.tell(), 2 * declared + HEADER_BYTES
        if self._rest is not None and not self._rest.is_over:
            self._data += self._rest.up_to(most - len(self._data))
            self._file = _Counted(self._data)
            self._file.seek(position)
            if not self._rest.is_over:
                raise too_large(f"The deflated data set has more than {most} bytes")
        elif len(self._data) > most:
            raise too_large(f"The data set has more than {most} bytes")
        with translated("Reading the pixel data"):
            is_implicit, is_little_endian = self._encoding
            return read_dataset(self._file, bool(is_implicit), is_little_endian is not False)


class _Inflating:
    """Inflates piece by piece, as far as it is asked to."""

    def __init__(self, deflated: bytes) -> None:
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._left = deflated
        self.is_over = False

    def up_to(self, most: int) -> bytes:
        """Return the next bytes, `most` and a piece of them at most."""
        pieces, size = [], 0
        with translated("Inflating the data set"):
            while size <= most and not self.is_over:
                piece = self._inflater.decompress(self._left, _PIECE)
                self._left = self._inflater.unconsumed_tail
                pieces.append(piece)
                size += len(piece)
                self.is_over = self._inflater.eof or not (piece or self._left)
        return b"".join(pieces)


class _Counted(BytesIO):
    """Counts reads: a parser makes some for each element and item, however small they are."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = _MOST_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise too_large("The data set has more elements and items than any radiograph")
        return super().read(size)


def _end_of_meta(data: bytes) -> int:
    """Return where the File Meta Information ends: always Explicit VR Little Endian, all of group 0002."""
    position = _PREAMBLE + 4
    while data[position : position + 2] == b"\x02\x00":
        vr = data[position + 4 : position + 6]
        if not vr.isalpha() or not vr.isupper() or vr == b"SQ":
            raise unreadable("The file meta information is malformed")
        head = 12 if vr in _LONG_VRS else 8
        size = data[position + 8 : position + 12] if head == 12 else data[position + 6 : position + 8]
        position += head + int.from_bytes(size, "little")
    if position > len(data):
        raise unreadable("The file ends within its file meta information")
    return position
