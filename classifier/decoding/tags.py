"""Attributes as they come from the world: missing, empty, padded, lower case, multi-valued, malformed.

Nothing here raises for the content of a data set; what cannot be read counts as missing.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any, NamedTuple

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag

from classifier.decoding.quiet import silence_warnings

_SHORT = 64  # characters of a text that is kept to be looked up
_PIXEL_DATA = 0x7FE00010
_LONG, _LONGEST = 2**14, 2**21  # bytes of a value; a lookup table has 2**17
_MOST_ITEMS = 1000


class Code(NamedTuple):
    """A coded concept (PS3.3 8.8), upper case."""

    value: str
    scheme: str
    meaning: str


@contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom's remarks on non-conformant values: this package judges the values itself."""
    silence_warnings()
    yield


def values(ds: Dataset, keyword: str) -> list[Any]:
    """Return the values of an attribute; an empty list when it is missing, empty or malformed."""
    value = _parsed(ds, keyword)
    if value is None or isinstance(value, Sequence):
        return []
    return list(value) if isinstance(value, MultiValue | list | tuple) else [value]


def texts(ds: Dataset, keyword: str) -> list[str]:
    """Return the non-empty values of an attribute in upper case, without padding and accents."""
    return [text for value in values(ds, keyword) if (text := plain(value))]


def text(ds: Dataset, keyword: str) -> str:
    """Return the first non-empty value as `texts` does, or an empty string."""
    return next(iter(texts(ds, keyword)), "")


def plain(value: object) -> str:
    """Return a value as upper-case text without padding, control characters and accents."""
    raw = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return _plain(raw) if len(raw) <= _SHORT else _plain.__wrapped__(raw)


@lru_cache(maxsize=4096)  # the images of a site say the same words again and again
def _plain(raw: str) -> str:
    if raw.isascii() and raw.isprintable():
        return " ".join(raw.upper().split())
    decomposed = unicodedata.normalize("NFKD", raw)
    kept = "".join(c if c.isprintable() else " " for c in decomposed if not unicodedata.combining(c))
    return " ".join(unicodedata.normalize("NFC", kept).upper().split())


def number_or_text(value: object) -> float | str:
    """Return a value as a number where it is one, else as `plain` does."""
    try:
        return float(str(value))
    except ValueError:
        return plain(value)


def numbers(ds: Dataset, keyword: str) -> list[float]:
    """Return the values of an attribute that are numbers."""
    found = []
    for value in values(ds, keyword):
        try:
            found.append(float(value))
        except (ValueError, TypeError):
            continue
    return found


def integer(ds: Dataset, keyword: str) -> int | None:
    """Return the first value of an attribute when it is an integer of at most 32 bits, else ``None``."""
    number = next(iter(numbers(ds, keyword)), None)
    return int(number) if number is not None and number.is_integer() and abs(number) < 2**32 else None


def items(ds: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; an empty list when it is missing or malformed."""
    value = _parsed(ds, keyword)
    return list(value) if isinstance(value, Sequence) else []


def codes(ds: Dataset, keyword: str) -> list[Code]:
    """Return the coded concepts of a code sequence."""
    return [
        Code(
            text(item, "CodeValue") or text(item, "LongCodeValue") or text(item, "URNCodeValue"),
            text(item, "CodingSchemeDesignator"),
            text(item, "CodeMeaning"),
        )
        for item in items(ds, keyword)
    ]


def quote(value: object) -> str:
    """Return a value fit for a message: printable, in quotes, 40 characters at most."""
    return f'"{plain(value)[:40]}"'


@cache
def _tag(keyword: str) -> BaseTag:
    return Tag(keyword)


def parsed(ds: Dataset, keyword: str) -> Any:
    """Return the value of an attribute as pydicom parses it, ``None`` when it is missing.

    Raises
    ------
    ValueError
        When it is longer than any that this package asks for; parsing it could take minutes.
    Exception
        Of nearly any kind, for bytes that make no value.
    """
    tag = _tag(keyword)
    if tag not in ds:
        return None
    if tag != _PIXEL_DATA:
        _bound(ds.get_item(tag))
    return ds[tag].value


def _bound(element: Any) -> None:
    raw = element.value if isinstance(element, RawDataElement) else None
    if raw is not None and len(raw) > _LONG and (len(raw) > _LONGEST or _count_items(raw) > _MOST_ITEMS):
        raise ValueError(f"{len(raw)} bytes")


def _count_items(raw: bytes) -> int:
    """Count what looks like an item tag (FFFE,E000), in either byte order."""
    return raw.count(b"\xfe\xff\x00\xe0") + raw.count(b"\xff\xfe\xe0\x00")


def _parsed(ds: Dataset, keyword: str) -> Any:
    try:
        return parsed(ds, keyword)
    except Exception:  # noqa: BLE001 - pydicom parses an element here, and raises nearly anything for bad bytes
        return None
