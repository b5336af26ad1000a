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
_ONE_SCAN = {*_LOSSY, _LOSSLESS, _JPEG_LS_SOF}  # of one sample per pixel
_NO_LENGTH = {0x01, *range(0xD0, 0xDA)}  # TEM, RSTn, SOI, EOI: markers without a segment
_MOST_SEGMENTS = 1000
_MOST_SCANS = 64  # each of a progressive or coloured JPEG goes over the whole image
_IGNORED = {*range(0xE0, 0xF0), 0xFE}  # APPn, COM
_STRAY_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


class Codestream(NamedTuple):
    """What the header of a compressed frame says of itself.

    Attributes
    ----------
    least_bytes
        Length that no frame of so many pixels is below; 0 where a few bytes can stand for any number.
    """

    rows: int
    columns: int
    samples: int
    precision: int
    least_bytes: int = 0


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
    starts = [s for s in _segments(frame) if s.marker in _SOF]
    if len(starts) != 1 or len(starts[0].body) < 6:
        return None
    marker = starts[0].marker
    precision, rows, columns, samples = _numbers(starts[0].body, 1, 2, 2, 1)
    if (samples > 1 or marker not in _ONE_SCAN) and frame.count(bytes((0xFF, _SOS))) > _MOST_SCANS:
        return None
    return Codestream(rows, columns, samples, precision, _least_bytes(marker, rows * columns))


def _least_bytes(marker: int, pixels: int) -> int:
    """Huffman codes have a bit at least: one for each pixel, or for each block of 8 x 8."""
    if marker == _JPEG_LS_SOF:
        return 0
    return pixels // 8 if marker == _LOSSLESS else pixels // (8 * 64)


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
        if position + 4 > len(frame) or frame[position] != 0xFF or len(found) > _MOST_SEGMENTS:
            return []
        if frame[position + 1] in _NO_LENGTH:  # a decoder would go on behind the marker, not behind a segment
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
