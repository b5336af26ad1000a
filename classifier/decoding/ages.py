"""How old the patient was when the image was made, in whatever form the tags tell it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import partial
from itertools import combinations
from typing import NamedTuple

from pydicom.dataset import Dataset

from classifier.decoding.dates import Span, span
from classifier.decoding.tags import texts

_YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}
_WORDS = {
    "D": "D DAY DAYS T TAG TAGE JOURS DIAS GIORNI",
    "W": "W WK WKS WEEK WEEKS WOCHE WOCHEN",
    "M": "M MO MOS MON MTH MTHS MONTH MONTHS MONAT MONATE MOIS MESES MESI",
    "Y": "Y YO YR YRS YEAR YEARS J JAHR JAHRE JAAR A AN ANS ANO ANOS ANNI LAT",
}
_UNITS = {word: unit for unit, words in _WORDS.items() for word in words.split()}
_UNITS[""] = "Y"  # "45": some systems leave the unit out, and mean years
_STATED = re.compile(r"([+-]?)((?:\d{1,4}(?:[.,]\d+)? ?[A-Z]*\.? ?)+)")
_PART = re.compile(r"(\d{1,4}(?:[.,]\d+)?) ?([A-Z]*)")
_OLDEST = 130  # years; what is beyond is a mistake in the tags
_TOLERANCE = 1.0  # years between what two attributes tell
_EXAMINED = (
    *("StudyDate", "SeriesDate", "AcquisitionDate", "AcquisitionDateTime", "ContentDate"),
    "PerformedProcedureStepStartDate",
)


class Age(NamedTuple):
    """An age at the time of the image.

    Attributes
    ----------
    years
        The age, or the middle of what it can be; ``None`` where nothing tells it.
    spread
        By how many years it can be more or less: half a year or so where only the year of birth is known.
    doubt
        What is wrong where the tags contradict each other or tell an impossible age, without patient data.
    """

    years: float | None = None
    spread: float = 0.0
    doubt: str = ""

    def completed(self) -> tuple[int, int] | None:
        """Return the smallest and the largest number of completed years that it can be."""
        if self.years is None:
            return None
        return max(0, int(self.years - self.spread)), int(self.years + self.spread)


UNKNOWN = Age()


class _Clue(NamedTuple):
    """What one attribute tells: the age in years lies between these."""

    low: float
    high: float


def told(ds: Dataset) -> Age:
    """Return the age that the tags tell.

    Patient's Age (0010,1010) comes first, then the time from Patient's Birth Date to the date of study,
    series, acquisition or content. Where both are there and more than a year apart, that is a doubt.
    """
    return told_by(partial(texts, ds))


def told_by(read: Callable[[str], Sequence[str]]) -> Age:
    """Return the age that attributes tell, of which `read` returns the values as `tags.texts` does."""
    stated = [clue for value in read("PatientAge") if (clue := _stated(value))]
    computed = list(_computed(read))
    clues = stated + computed
    if any(clue.high < 0 or clue.low > _OLDEST for clue in clues):
        doubt = "The tags tell an age below 0 or above 130 years"
    elif any(_gap(*pair) > _TOLERANCE for pair in combinations(clues, 2)):
        doubt = "Patient's Age, Patient's Birth Date and the dates of the image are more than a year apart"
    else:
        doubt = ""
    return _best(stated, computed)._replace(doubt=doubt)


def _best(stated: Sequence[_Clue], computed: Sequence[_Clue]) -> Age:
    possible = [clue for clue in stated if 0 <= clue.low <= _OLDEST]
    if possible:
        return Age(possible[0].low)  # "045Y" means 45 completed years
    possible = [clue for clue in computed if clue.high >= 0 and clue.low <= _OLDEST]
    if not possible:
        return Age()
    low, high = min(possible, key=lambda clue: clue.high - clue.low)
    return Age((low + high) / 2, (high - low) / 2)


def _gap(one: _Clue, other: _Clue) -> float:
    return max(one.low - other.high, other.low - one.high)


def _stated(value: str) -> _Clue | None:
    """Return what a value of Patient's Age tells: "045Y" (VR AS), "45", "45 YRS", "3Y 2M", "-1Y"."""
    match = _STATED.fullmatch(value)
    if match is None:
        return None
    total, width = 0.0, 1.0
    for number, unit in _PART.findall(match[2]):
        if unit not in _UNITS:
            return None
        width = _YEARS[_UNITS[unit]]
        total += float(number.replace(",", ".")) * width
    return _Clue(-total, -total) if match[1] == "-" and total else _Clue(total, total + width)


def _computed(read: Callable[[str], Sequence[str]]) -> Iterator[_Clue]:
    """Yield the ages from each birth date to each date of the image, the first that are exact if any are."""
    born = [found for value in read("PatientBirthDate") if (found := span(value))]
    examined = [found for keyword in _EXAMINED for value in read(keyword) if (found := span(value))]
    exact = [found for found in examined if found[0] == found[1]]
    for birth in born:
        for image in exact or examined:
            yield _between(birth, image)


def _between(birth: Span, image: Span) -> _Clue:
    return _Clue(_years(birth[1], image[0]), _years(birth[0], image[1]))


def _years(born: date, at: date) -> float:
    """Return completed years and a part of the next; negative before the birth."""
    had_birthday = (at.month, at.day) >= (born.month, born.day)
    whole = at.year - born.year - (not had_birthday)
    since = (at - born).days - whole * 365.25  # days since the last birthday, but for leap years
    return whole + min(max(since / 365.25, 0), 0.99)
