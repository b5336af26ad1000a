"""JPEG 2000: its header, judged before a decoder is trusted with it, and images at a lower resolution.

The header alone decides how much memory and time a decoder takes: what a codestream of so many bytes cannot
hold is refused. And it says how many tiles there are: decoders fill those that are missing, in silence.

The wavelets of JPEG 2000 keep an image at full, half, quarter and so on of its size. A codestream in order of
resolution begins with the packets of the smallest, so that a header that tells of fewer levels makes it the
codestream of a smaller image; no decoder reads beyond the last packet that it expects.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from classifier.decoding.codestream import Codestream
from classifier.decoding.refusal import unreadable
from classifier.decoding.resample import WHOLE, Sampling

_SOC, _EOC = b"\xff\x4f", b"\xff\xd9"
_COC = 0x53
_SIZ, _COD, _QCD, _SOT, _SOD, _PLT, _COM = 0x51, 0x52, 0x5C, 0x90, 0x93, 0x58, 0x64
_NEEDED = {_SIZ, _COD, _QCD}
_UNCHANGED = {0x50, 0x55, 0x57, 0x59, 0x63, _COM}  # CAP, TLM, PLM, CPF, CRG
_LRCP, _RLCP, _RPCL = 0, 1, 2  # progression orders: by layer, resolution, component, position
_MOST_SEGMENTS = 1000
_MOST_TILE_PARTS = 70_000
_MOST_BLOCKS = 2**20  # code-blocks; 100 megapixels in those of 16 x 16 are a third of it
_MOST_EMPTY = 1000  # packets that need not be there
_LARGEST_PRECINCT = 15
_ONE_COMPONENT = 39  # bytes of SIZ
# The low-pass filter of 9 taps makes of w radians a pixel about 1 - 0.2302 w^2, that of 5 taps 1 + 0.25 w^2
_GAINS = {0: -0.2302, 1: 0.25}
_BYTES_PER_BAND = {0: 1, 1: 0, 2: 2}  # of QCD: reversible, derived, each on its own


class _Segment(NamedTuple):
    """One marker segment (ISO/IEC 15444-1 A.1.3); `end` is where the next one starts."""

    marker: int
    body: bytes
    end: int

    @property
    def encoded(self) -> bytes:
        return struct.pack(">BBH", 0xFF, self.marker, len(self.body) + 2) + self.body


class _Grid(NamedTuple):
    """The tiles of an image: their number, and the sides of the largest."""

    tiles: int
    columns: int
    rows: int


def bare_codestream(frame: bytes) -> bytes:
    """Return the codestream, out of the boxes of a JP2 file (ISO/IEC 15444-1 I.4) where it is in one."""
    position = 0
    for _ in range(0 if frame.startswith(_SOC) else _MOST_SEGMENTS):
        length, kind = (
            int.from_bytes(frame[position : position + 4], "big"),
            frame[position + 4 : position + 8],
        )
        head = 16 if length == 1 else 8
        if length == 1:
            length = int.from_bytes(frame[position + 8 : position + 16], "big")
        end = position + length if length else len(frame)
        if kind == b"jp2c":
            return frame[position + head : end]
        if length < head or end >= len(frame):
            break
        position = end
    return frame


def j2k_header(frame: bytes) -> Codestream | None:
    """Parse the SIZ marker segment of a codestream (ISO/IEC 15444-1 A.5.1)."""
    first = next(_segments(frame, len(_SOC)), None)
    if (
        not frame.startswith(_SOC)
        or first is None
        or first.marker != _SIZ
        or len(first.body) < _ONE_COMPONENT
    ):
        return None
    columns, rows, left, top = struct.unpack_from(">4I", first.body, 2)
    samples = int.from_bytes(first.body[34:36], "big")
    return Codestream(rows - top, columns - left, samples, (first.body[36] & 0x7F) + 1)


def require_whole_j2k(frame: bytes) -> None:
    """Refuse a codestream that lacks tiles, or whose header asks for more than its length can hold.

    Raises
    ------
    NotScorable
        ``UNREADABLE``.
    """
    segments = [*islice(_segments(frame, len(_SOC)), _MOST_SEGMENTS)]
    grid = _grid(segments[0].body)
    if grid is None:
        raise unreadable("The JPEG 2000 codestream has tiles that make no sense, or components that differ")
    of_tiles = _segments_of_tiles(frame, segments[-1].end, grid.tiles)
    if of_tiles is None:
        raise unreadable(f"The JPEG 2000 codestream lacks some of its {grid.tiles} tiles")
    samples = int.from_bytes(segments[0].body[34:36], "big")
    codings = [_coding(s) for s in (*segments, *of_tiles) if s.marker in (_COD, _COC)]
    if not codings or not all(_is_held(coding, grid, samples, len(frame)) for coding in codings):
        raise unreadable("The JPEG 2000 codestream asks for more than its length can hold")


def _grid(size: bytes) -> _Grid | None:
    """Return the tiles that SIZ tells of; None when it makes no sense, or components differ."""
    if len(size) < _ONE_COMPONENT:
        return None
    columns, rows, left, top, tile_columns, tile_rows, tile_left, tile_top = struct.unpack_from(
        ">8I", size, 2
    )
    samples = int.from_bytes(size[34:36], "big")
    if size[36:] != size[36:37] + b"\1\1" + (samples - 1) * (size[36:37] + b"\1\1"):
        return None
    if not (tile_left <= left < columns and tile_top <= top < rows and tile_columns and tile_rows):
        return None
    across, along = -(-(columns - tile_left) // tile_columns), -(-(rows - tile_top) // tile_rows)
    return _Grid(across * along, min(tile_columns, columns - left), min(tile_rows, rows - top))


def _segments_of_tiles(frame: bytes, position: int, tiles: int) -> list[_Segment] | None:
    """Return the marker segments of all tile-parts (A.4.2); None when they are not those of all tiles."""
    found: list[_Segment] = []
    seen: set[int] = set()
    for _ in range(_MOST_TILE_PARTS):
        if frame[position : position + 2] != bytes((0xFF, _SOT)) or position + 12 > len(frame):
            break
        tile, length = struct.unpack_from(">HI", frame, position + 4)
        seen.add(tile)
        found += islice(_segments(frame, position + 12), _MOST_SEGMENTS)
        if 0 < length < 12 or len(found) > _MOST_TILE_PARTS:
            return None
        position = position + length if length else len(frame)
    return found if len(seen) == tiles else None


def _coding(segment: _Segment) -> bytes:
    """Return SGcod and SPcod of COD (A.6.1) or, with one layer, of COC (A.6.2)."""
    return segment.body[1:] if segment.marker == _COD else b"\0\0\1\0" + segment.body[2:]


def _is_held(coding: bytes, grid: _Grid, samples: int, length: int) -> bool:
    """Tell whether a codestream of `length` bytes can hold so many packets, each of a byte at least."""
    if len(coding) < 9 or coding[4] > 32 or max(coding[5:7]) > 8 or coding[5] + coding[6] > 8:
        return False
    layers, levels, precincts = int.from_bytes(coding[1:3], "big"), coding[4], coding[9:]
    block = 16 << coding[5] + coding[6]
    blocks = grid.tiles * samples * (-(-grid.columns * grid.rows // block) + 3 * levels + 1)
    packets = 0
    for resolution in range(levels + 1):
        exponents = precincts[resolution] if resolution < len(precincts) else 0x11 * _LARGEST_PRECINCT
        across, along = (_shifted(side, levels - resolution) for side in (grid.columns, grid.rows))
        packets += _shifted(across, exponents & 15) * _shifted(along, exponents >> 4)
    packets *= grid.tiles * samples * layers
    return blocks <= _MOST_BLOCKS and 0 < packets <= 4 * length + _MOST_EMPTY


def _shifted(length: int, bits: int) -> int:
    """Divide by a power of two, upwards."""
    return -(-length >> bits)


def reduced(frame: bytes, smallest: int) -> tuple[bytes, Sampling]:
    """Return the codestream of the same image with fewer resolution levels.

    Parameters
    ----------
    frame
        A JPEG 2000 codestream.
    smallest
        How many rows and columns must be left at least.

    Returns
    -------
    codestream
        The smaller image. The same one where that is too small, or where the codestream is not of the common
        kind: whole, of one component and one tile, in order of resolution or of one layer, and coded alike
        throughout.
    sampling
        How its pixels lie in the whole one.
    """
    segments = [*_segments(frame, len(_SOC))]
    start = segments[-1].end if segments else len(_SOC)
    header = {segment.marker: segment for segment in segments}
    if not frame.startswith(_SOC) or not _NEEDED <= {*header} <= _NEEDED | _UNCHANGED:
        return frame, WHOLE
    levels = _superfluous(header[_SIZ].body, header[_COD].body, smallest)
    if levels < 1 or not _is_one_tile(frame, start):
        return frame, WHOLE
    changed = {
        _SIZ: _smaller(header[_SIZ].body, levels),
        _COD: _shallower(header[_COD].body, levels),
        _QCD: _fewer_bands(header[_QCD].body, levels),
    }
    kept = (segment._replace(body=changed.get(segment.marker, segment.body)) for segment in segments)
    return _SOC + b"".join(segment.encoded for segment in kept) + frame[start:], _sampling(
        header[_COD].body, levels
    )


def _segments(frame: bytes, position: int) -> Iterator[_Segment]:
    """Yield marker segments up to SOT, SOD, or what is none."""
    while position + 4 <= len(frame):
        prefix, marker, length = struct.unpack_from(">BBH", frame, position)
        if prefix != 0xFF or marker in (_SOT, _SOD) or length < 2:
            return
        yield _Segment(marker, frame[position + 4 : position + 2 + length], position + 2 + length)
        position += 2 + length


def _superfluous(size: bytes, coding: bytes, smallest: int) -> int:
    """Return how many resolution levels can be left out (A.5.1, A.6.1)."""
    if len(size) != _ONE_COMPONENT or len(coding) < 10 or size[37:] != b"\1\1" or coding[9] not in _GAINS:
        return 0
    columns, rows, left, top, tile_columns, tile_rows, *tile_offset = struct.unpack_from(">8I", size, 2)
    order, layers, levels = coding[1], int.from_bytes(coding[2:4], "big"), coding[5]
    is_by_resolution = order in (_RLCP, _RPCL) or (order == _LRCP and layers == 1)
    is_at_origin = not any((left, top, *tile_offset))
    if not is_by_resolution or not is_at_origin or tile_columns < columns or tile_rows < rows:
        return 0
    halvings: int = (min(rows, columns) // smallest).bit_length() - 1
    return min(levels, halvings)


def _is_one_tile(frame: bytes, position: int) -> bool:
    """Tell whether the parts of the first tile, coded as the main header says, fill the frame (A.4.2)."""
    while frame[position : position + 2] == bytes((0xFF, _SOT)) and position + 12 <= len(frame):
        tile, length = struct.unpack_from(">HI", frame, position + 4)
        own = {segment.marker for segment in _segments(frame, position + 12)}
        if tile or length < 14 or not own <= {_PLT, _COM}:
            return False
        position += length
    return frame[position:].rstrip(b"\0\xff") == _EOC


def _sampling(coding: bytes, levels: int) -> Sampling:
    """Each halving keeps the first of two pixels, filtered; in radians a new pixel, its w counts for half."""
    gain = _GAINS[coding[9]] * sum(4.0**-n for n in range(1, levels + 1))
    return Sampling(2**levels, 0.5, gain)


def _smaller(size: bytes, levels: int) -> bytes:
    columns, rows = (_shifted(length, levels) for length in struct.unpack_from(">2I", size, 2))
    return size[:2] + struct.pack(">8I", columns, rows, 0, 0, columns, rows, 0, 0) + size[34:]


def _shallower(coding: bytes, levels: int) -> bytes:
    precincts = coding[10:]  # of each resolution, the smallest first, or none
    return coding[:5] + bytes((coding[5] - levels,)) + coding[6:10] + precincts[: len(precincts) - levels]


def _fewer_bands(quantisation: bytes, levels: int) -> bytes:
    """Leave out the step sizes of the three bands of each level; they come last (A.6.4)."""
    of_bands = 3 * levels * _BYTES_PER_BAND.get(quantisation[0] & 0x1F, 0)
    return quantisation[: len(quantisation) - of_bands]
