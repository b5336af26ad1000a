"""A structured report as an indented tree for people (PS3.3 C.17.3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

from pydicom import dcmread
from pydicom.dataset import Dataset


@dataclass(frozen=True)
class Line:
    """One content item: its depth, its concept name and its value."""

    depth: int
    name: str
    value: str


def lines(content: bytes) -> list[Line]:
    """Return the content tree of a report."""
    return [*_lines(dcmread(BytesIO(content), force=True), 0)]


def _lines(item: Dataset, depth: int) -> Iterator[Line]:
    name = _meaning(item, "ConceptNameCodeSequence")
    value = _value(item)
    if name or value:
        yield Line(depth, name, value)
    for child in item.get("ContentSequence", ()):
        yield from _lines(child, depth + 1)


def _value(item: Dataset) -> str:
    for keyword in ("TextValue", "UID", "PersonName", "DateTime", "Date", "Time"):
        if item.get(keyword):
            return str(item.get(keyword))
    for measured in item.get("MeasuredValueSequence", ()):
        return f"{measured.get('NumericValue', '')} {_meaning(measured, 'MeasurementUnitsCodeSequence')}"
    for referenced in item.get("ReferencedSOPSequence", ()):
        return str(referenced.get("ReferencedSOPInstanceUID", ""))
    return _meaning(item, "ConceptCodeSequence")


def _meaning(item: Dataset, keyword: str) -> str:
    return next((str(code.get("CodeMeaning", "")) for code in item.get(keyword, ())), "")
