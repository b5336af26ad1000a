"""The data sets of storage commitment: a Transaction UID and references (PS3.4 Tables J.3-1 and J.3-2).

They are read and written here because pydicom takes 10 s for 20,000 references, in which nothing else runs.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from pacs_node.dicom.part10 import padded

_CLASS_UID, _INSTANCE_UID, _TRANSACTION_UID = 0x00081150, 0x00081155, 0x00081195
_FAILURE_REASON, _FAILED, _REFERENCED = 0x00081197, 0x00081198, 0x00081199
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())  # PS3.5 7.1.2
_SEQUENCE_VRS = (b"SQ", b"UN", b"")
_MOST_ELEMENTS, _MOST_DEPTH = 450_000, 8

Reference = tuple[str, str]
"""SOP Class UID and SOP Instance UID."""


class TooLarge(ValueError):
    """A data set inflates to more than it may have."""


@dataclass(frozen=True)
class References:
    """What a data set says; texts are as they came, without padding."""

    transaction_uid: str
    referenced: Sequence[Reference] = ()
    failed: Sequence[tuple[Reference, int | None]] = ()


def read(data: bytes, transfer_syntax_uid: str, most_bytes: int) -> References:
    """Read a data set.

    Raises
    ------
    TooLarge
        When it inflates to more than `most_bytes`.
    ValueError
        When it does not parse.
    """
    if transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        data = _inflated(data, most_bytes)
    return _Parser(data, transfer_syntax_uid).read()


def write(references: References, transfer_syntax_uid: str) -> bytes:
    """Write a data set; sequences without items are left out."""
    element = _writer(transfer_syntax_uid)
    content = element(_TRANSACTION_UID, b"UI", padded(references.transaction_uid, "\0"))
    failed = [_item(element, reference, reason) for reference, reason in references.failed]
    if failed:
        content += element(_FAILED, b"SQ", b"".join(failed))
    kept = [_item(element, reference, None) for reference in references.referenced]
    if kept:
        content += element(_REFERENCED, b"SQ", b"".join(kept))
    if transfer_syntax_uid != DeflatedExplicitVRLittleEndian:
        return content
    deflating = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = deflating.compress(content) + deflating.flush()
    return deflated + b"\0" * (len(deflated) % 2)  # PS3.5 A.5


def _inflated(data: bytes, most_bytes: int) -> bytes:
    try:
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, most_bytes + 1)
    except zlib.error as error:
        raise ValueError("It does not inflate") from error
    if len(inflated) > most_bytes:
        raise TooLarge
    return inflated


_Write = Callable[[int, bytes, bytes], bytes]


def _writer(transfer_syntax_uid: str) -> _Write:
    order = ">" if transfer_syntax_uid == ExplicitVRBigEndian else "<"
    tag_and_length, tag_only = struct.Struct(order + "HHL"), struct.Struct(order + "HH")
    short, long = struct.Struct(order + "H"), struct.Struct(order + "xxL")

    def element(tag: int, vr: bytes, value: bytes) -> bytes:
        if vr == b"US":
            value = short.pack(int.from_bytes(value, "big"))
        if not vr or transfer_syntax_uid == ImplicitVRLittleEndian:
            return tag_and_length.pack(tag >> 16, tag & 0xFFFF, len(value)) + value
        length = long.pack(len(value)) if vr in _LONG_VRS else short.pack(len(value))
        return tag_only.pack(tag >> 16, tag & 0xFFFF) + vr + length + value

    return element


def _item(element: _Write, reference: Reference, reason: int | None) -> bytes:
    content = element(_CLASS_UID, b"UI", padded(reference[0], "\0"))
    content += element(_INSTANCE_UID, b"UI", padded(reference[1], "\0"))
    if reason is not None:
        content += element(_FAILURE_REASON, b"US", reason.to_bytes(2, "big"))
    return element(_ITEM, b"", content)


class _Parser:
    """Reads what is wanted of an encoded data set; what is left out is only skipped."""

    def __init__(self, data: bytes, transfer_syntax_uid: str) -> None:
        self._data = data
        self._is_explicit = transfer_syntax_uid != ImplicitVRLittleEndian
        self._order = ">" if transfer_syntax_uid == ExplicitVRBigEndian else "<"
        self._implicit = struct.Struct(self._order + "HHL")
        self._explicit = struct.Struct(self._order + "HH2sH")
        self._length = struct.Struct(self._order + "L")
        self._values: dict[int, bytes] = {}
        self._found: dict[int, list[dict[int, bytes]]] = {_FAILED: [], _REFERENCED: []}
        self._elements = 0

    def read(self) -> References:
        try:
            self._data_set(0, len(self._data), self._values, self._is_explicit, 0)
        except struct.error as error:
            raise ValueError("It ends amid an element") from error
        return References(
            _text(self._values, _TRANSACTION_UID),
            [_reference(item) for item in self._found[_REFERENCED]],
            [(_reference(item), self._reason(item)) for item in self._found[_FAILED]],
        )

    def _reason(self, item: dict[int, bytes]) -> int | None:
        value = item.get(_FAILURE_REASON, b"")
        return int(struct.unpack(self._order + "H", value)[0]) if len(value) == 2 else None

    def _data_set(
        self, at: int, end: int | None, values: dict[int, bytes], is_explicit: bool, depth: int
    ) -> int:
        """Read elements up to an end, or to the delimitation of an item; return what follows them."""
        while end is None or at < end:
            tag, vr, length, at = self._header(at, is_explicit)
            if tag == _ITEM_END and end is None:
                return at
            if length == _UNDEFINED or (tag in self._found and vr in _SEQUENCE_VRS):
                # Of unknown VR, it is implicit inside (PS3.5 6.2.2 note 2)
                at = self._sequence(tag, at, length, is_explicit and vr != b"UN", depth)
                continue
            if at + length > len(self._data):
                raise ValueError("An element is longer than the data set")
            values[tag] = self._data[at : at + length]
            at += length
        if end is not None and at != end:
            raise ValueError("An element is longer than what holds it")
        return at

    def _header(self, at: int, is_explicit: bool) -> tuple[int, bytes, int, int]:
        """Return tag, VR, length, and where the value starts."""
        self._elements += 1
        if self._elements > _MOST_ELEMENTS:
            raise ValueError("It has too many elements")
        group, element, length = self._implicit.unpack_from(self._data, at)
        tag, vr = group << 16 | element, b""
        if is_explicit and group != 0xFFFE:
            _, _, vr, length = self._explicit.unpack_from(self._data, at)
            if vr in _LONG_VRS:
                return tag, vr, self._length.unpack_from(self._data, at + 8)[0], at + 12
        return tag, vr, length, at + 8

    def _sequence(self, tag: int, at: int, length: int, is_explicit: bool, depth: int) -> int:
        """Read the items of a sequence; return what follows it."""
        if depth > _MOST_DEPTH:
            raise ValueError("It is nested too deeply")
        end = None if length == _UNDEFINED else at + length
        items = self._found[tag] if depth == 0 and tag in self._found else []
        while end is None or at < end:
            kind, _, item_length, at = self._header(at, is_explicit)
            if kind == _SEQUENCE_END and end is None:
                return at
            if kind != _ITEM:
                raise ValueError("A sequence holds something else than items")
            item: dict[int, bytes] = {}
            stop = None if item_length == _UNDEFINED else at + item_length
            at = self._data_set(at, stop, item, is_explicit, depth + 1)
            items.append(item)
        if end is not None and at != end:
            raise ValueError("An item is longer than what holds it")
        return at


def _reference(item: dict[int, bytes]) -> Reference:
    return _text(item, _CLASS_UID), _text(item, _INSTANCE_UID)


def _text(values: dict[int, bytes], tag: int) -> str:
    return values.get(tag, b"").strip(b"\0 ").decode("latin-1")
