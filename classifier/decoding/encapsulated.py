"""The first frame of encapsulated Pixel Data (PS3.5 A.4), found at a bounded cost."""

from __future__ import annotations

from classifier.decoding.refusal import too_large, unreadable

_ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_MOST_FRAGMENTS = 10_000


def first_frame(data: bytes) -> bytes:
    """Return the fragments of the first frame as one.

    Parameters
    ----------
    data
        The value of Pixel Data. The Basic Offset Table may be empty; then all fragments are one frame.

    Raises
    ------
    NotScorable
        ``UNREADABLE`` when the items are malformed, ``TOO_LARGE`` when there are too many.
    """
    items = _items(data)
    if len(items) < 2:
        raise unreadable("Pixel Data has no fragment")
    table, fragments = data[items[0]], items[1:]
    if len(table) >= 8:
        end = fragments[0].start - 8 + int.from_bytes(table[4:8], "little")
        fragments = [fragment for fragment in fragments if fragment.start - 8 < end] or fragments[:1]
    return data[fragments[0]] if len(fragments) == 1 else b"".join(data[fragment] for fragment in fragments)


def _items(data: bytes) -> list[slice]:
    """Return where the values of the items lie, the offset table first."""
    found: list[slice] = []
    position = 0
    while data[position : position + 4] == _ITEM:
        if len(found) > _MOST_FRAGMENTS:
            raise too_large(f"Pixel Data has more than {_MOST_FRAGMENTS} fragments")
        start = position + 8
        position = start + int.from_bytes(data[position + 4 : start], "little")
        found.append(slice(start, position))
    if position > len(data) or data[position : position + 4] not in (b"", _DELIMITER):
        raise unreadable("Pixel Data is truncated within a fragment, or has something between fragments")
    return found
