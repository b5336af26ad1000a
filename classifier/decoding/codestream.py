"""Headers of compressed frames, read before a decoder is trusted with them.

A decoder can end the whole process on marker segments that it does not expect, as GDCM does. It is
given nothing but the segments that it needs, and those only when they are well-formed.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_DHT, _DQT, _DRI, _SOS, _JPEG_LS_SOF = 0xC4, 0xDB, 0xDD, 0xDA, 0xF7
_SOF = {*range(0xC0, 0xD0)} - {_DHT, 0xC8, 0xCC} | {_JPEG_LS_SOF}
_LOSSY, _LOSSLESS = {0xC0, 0xC1}, 0xC3
_IGNORED = {*range(0xE0, 0xF0), 0xFE}  # APPn, COM
_STRAY_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


class Codestream(NamedTuple):
    """What the header of a compressed frame says of itself."""

    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool = False


class _Segment(NamedTuple):
    """One marker segment (ISO/IEC 10918-1 B.1.1.4)."""

    marker: int
    body: bytes
    end: int


def has_end(frame: bytes) -> bool:
    """Tell whether the frame ends with EOI or EOC, the same two bytes; PS3.5 A.4 lets padding follow."""
    return frame.rstrip(b"\x00\xff").endswith(_EOI)


def jpeg_header(frame: bytes) -> Codestream | None:
    """Parse the frame header of JPEG (ISO/IEC 10918-1 B.2.2) or JPEG-LS (ISO/IEC 14495-1 C.2.2)."""
    for segment in _segments(frame):
        if segment.marker in _SOF and len(segment.body) >= 6:
            precision, rows, columns, samples = _numbers(segment.body, 1, 2, 2, 1)
            return Codestream(rows, columns, samples, precision)
    return None


def j2k_header(frame: bytes) -> Codestream | None:
    """Parse the SIZ marker segment of JPEG 2000 (ISO/IEC 15444-1 A.5.1), bare or in a JP2 file."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    segment = frame[start + 8 : start + 43]
    if start < 0 or len(segment) < 35:
        return None
    columns, rows, left, top = _numbers(segment, 4, 4, 4, 4)
    samples, precision = _numbers(segment[32:], 2, 1)
    return Codestream(rows - top, columns - left, samples, (precision & 0x7F) + 1, precision > 0x7F)


def jpeg_essence(frame: bytes) -> bytes | None:
    """Return a one-scan JPEG reduced to what its decoding needs; None when it is not well-formed.

    Parameters
    ----------
    frame
        A sequential or lossless JPEG with Huffman coding.

    Returns
    -------
    bytes or None
        The frame without application data, comments and padding.
    """
    segments = _segments(frame)
    kept = [segment for segment in segments if segment.marker not in _IGNORED]
    if _DHT not in {segment.marker for segment in kept}:
        return None
    entropy_coded = frame[segments[-1].end :].rstrip(b"\x00\xff").removesuffix(_EOI)
    if not all(map(_is_well_formed, kept)) or _STRAY_MARKER.search(entropy_coded):
        return None
    header = b"".join(bytes((0xFF, s.marker)) + (len(s.body) + 2).to_bytes(2, "big") + s.body for s in kept)
    return _SOI + header + entropy_coded + _EOI


def _segments(frame: bytes) -> list[_Segment]:
    """Return the marker segments up to the start of the first scan; an empty list when one is malformed."""
    found: list[_Segment] = []
    position = len(_SOI)
    while frame.startswith(_SOI) and (not found or found[-1].marker != _SOS):
        while frame[position : position + 2] == b"\xff\xff":  # fill bytes
            position += 1
        if position + 4 > len(frame) or frame[position] != 0xFF:
            return []
        end = position + 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
        found.append(_Segment(frame[position + 1], frame[position + 4 : end], end))
        if end < position + 4 or end > len(frame):
            return []
        position = end
    return found


def _is_well_formed(segment: _Segment) -> bool:
    """Check the lengths and numbers that a decoder would otherwise trust (ISO/IEC 10918-1 B.2.2 to B.2.4)."""
    marker, body = segment.marker, segment.body
    if marker == _DHT:
        return _are_huffman_tables(body)
    if marker == _DQT:
        return len(body) % 65 == 0 or len(body) % 129 == 0
    if marker == _DRI:
        return len(body) == 2
    if marker == _SOS:
        return len(body) == 4 + 2 * sum(body[:1])
    return marker in {*_LOSSY, _LOSSLESS} and len(body) == 6 + 3 * sum(body[5:6])


def _are_huffman_tables(body: bytes) -> bool:
    while body:
        count = sum(body[1:17])
        if len(body) < 17 + count or not 0 < count <= 256:
            return False
        body = body[17 + count :]
    return True


def _numbers(data: bytes, *sizes: int) -> list[int]:
    """Read unsigned big-endian numbers of these sizes in bytes, one after the other."""
    found, position = [], 0
    for size in sizes:
        found.append(int.from_bytes(data[position : position + size], "big"))
        position += size
    return found
