"""Attributes that decide what a pixel looks like, read strictly.

In `tags` a value that cannot be read counts as missing. Here it is a refusal that quotes it: a window, a
slope or a lookup table that is there and not understood would otherwise change the picture in silence. Every
number is bounded before anything is computed from it.
"""

from __future__ import annotations

import math
from typing import Any

from pydicom.datadict import dictionary_description
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from classifier.decoding.refusal import unreadable
from classifier.decoding.tags import parsed, plain, quote

MOST = 1e9  # beyond any grey value that a radiograph has


def name(keyword: str) -> str:
    """Return the name of an attribute as the Standard writes it: Rescale Slope."""
    return dictionary_description(keyword)


def stated(ds: Dataset, keyword: str) -> list[Any]:
    """Return the values of an attribute; an empty list when it is missing or empty.

    Raises
    ------
    NotScorable
        ``UNREADABLE`` when the bytes of the attribute make no value.
    """
    try:
        value = parsed(ds, keyword)
    except Exception as error:
        raise unreadable(f"{name(keyword)} cannot be read") from error
    if isinstance(value, MultiValue | list | tuple):
        return list(value)
    return [] if _is_blank(value) else [value]


def integers(ds: Dataset, keyword: str, low: int, high: int) -> list[int]:
    """Return whole numbers; refuse those outside `low` to `high`, and what is no whole number."""
    return [_integer(value, keyword, low, high) for value in stated(ds, keyword)]


def integer_of(ds: Dataset, keyword: str, low: int, high: int) -> int | None:
    """Return the first of `integers`, or ``None``."""
    return next(iter(integers(ds, keyword, low, high)), None)


def decimal_of(ds: Dataset, keyword: str, most: float = MOST) -> float | None:
    """Return the first value as a finite number, or ``None``; refuse one beyond `most`."""
    found = stated(ds, keyword)
    if not found or all(map(_is_blank, found)):
        return None
    number = _float(found[0])
    if not abs(number) <= most:  # also what is no number
        raise unreadable(f"{name(keyword)} is {quote(found[0])}")
    return number


def items_of(ds: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; refuse what is no sequence."""
    found = stated(ds, keyword)
    if any(not isinstance(value, Sequence) for value in found):
        raise unreadable(f"{name(keyword)} is no sequence")
    return [item for sequence in found for item in sequence]


def _integer(value: Any, keyword: str, low: int, high: int) -> int:
    number = _float(value)
    if not low <= number <= high or not number.is_integer():
        raise unreadable(f"{name(keyword)} is {quote(value)}, which is no whole number from {low} to {high}")
    return int(number)


def _float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str | bytes) and not plain(value))
