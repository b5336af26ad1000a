"""Dates as they come from the world: of DICOM, of ACR-NEMA, of ISO 8601, and of people.

What is not certain stays uncertain here: a date that can be read in two ways is a span, or none at all.
"""

from __future__ import annotations

import re
from datetime import date

_TIME = (
    r"(?:[T ]?\d{2}(?::?\d{2}(?::?\d{2}(?:\.\d{1,6})?)?)?(?:[+-]\d{4})?)?"  # where a sender wrote DT for DA
)
_PLAIN = re.compile(rf"(\d{{4}})(\d{{2}})(\d{{2}}){_TIME}")
_PARTED = re.compile(rf"(\d{{4}})([.\-/])(\d{{1,2}})\2(\d{{1,2}}){_TIME}")  # 1993.08.22 in ACR-NEMA 2.0
_YEAR_LAST = re.compile(r"(\d{1,2})([.\-/])(\d{1,2})\2(\d{4})")
_FOUR_DIGITS = re.compile(r"(?<!\d)\d{4}(?!\d)")
_YEARS = range(1850, 2200)  # in which a patient is born or examined

Span = tuple[date, date]
"""The first and the last day that a text can mean; the same one where it is exact."""


def exact(text: str) -> date | None:
    """Return the day that a text means for certain.

    That is YYYYMMDD (PS3.5 6.2, VR DA), or year, month and day with dots between them, which PS3.5 asks to
    be read as well, or with hyphens or slashes. A time behind it is left out.
    """
    value = text.strip()
    if plain := _PLAIN.fullmatch(value):
        return _day(*plain.groups())
    parted = _PARTED.fullmatch(value)
    return _day(parted[1], parted[3], parted[4]) if parted else None


def span(text: str) -> Span | None:
    """Return the days that a text can mean, or ``None`` where it is not understood.

    01.02.1950 is the 1st of February, as dots are written; 01/02/1950 may be the 2nd of January as well; and
    "1950", "195001", "19500000" and "JAN 1950" are a year.
    """
    value = text.strip()
    if certain := exact(value):
        return certain, certain
    if named := _YEAR_LAST.fullmatch(value):
        day, separator, month, year = named.groups()
        orders = [(day, month)] if separator == "." else [(day, month), (month, day)]
        days = sorted(found for d, m in orders if (found := _day(year, m, d)))
        if days:
            return days[0], days[-1]
    years = {year for year in _years(value) if year in _YEARS}
    return (date(min(years), 1, 1), date(min(years), 12, 31)) if len(years) == 1 else None


def _years(value: str) -> set[int]:
    """Return what may be the year of a text, right or not."""
    if not value.isdecimal():
        return {int(found) for found in _FOUR_DIGITS.findall(value)}
    if len(value) == 8:
        return {int(value[:4]), int(value[4:])}
    # Of six digits, YYYYMM may be YYMMDD as well
    is_short = len(value) == 6 and _day("20" + value[:2], value[2:4], value[4:]) is not None
    return {int(value[:4])} if len(value) in (4, 6) and not is_short else set()


def _day(year: str, month: str, day: str) -> date | None:
    try:
        return date(int(year), int(month), int(day))
    except ValueError:
        return None
