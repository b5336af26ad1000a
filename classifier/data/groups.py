"""Groups of images by a column: the sex, the view, the machine, or the age in ranges of years."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from classifier.data.example import Example
from classifier.errors import DataError

UNKNOWN = "not known"
_AGES = (0, 1, 6, 12, 18, 40, 65)  # years with which a group begins
_MOST_GROUPS = 20


def group_of(example: Example, column: str) -> str:
    """Return the group of an image: ages are put into ranges, other values stay as they are."""
    if column != "age":
        return example.columns.get(column) or UNKNOWN
    age = example.age
    if age.years is None or age.doubt:
        return UNKNOWN
    begin = max(start for start in _AGES if start <= age.years)
    later = [start for start in _AGES if start > begin]
    if not later:
        return f"{begin} years and older"
    return f"{begin} to {later[0] - 1} years" if later[0] - 1 > begin else f"{begin} years"


def columns_of(examples: Iterable[Example]) -> list[str]:
    """Return the columns that divide images into groups: two at least, and not one for nearly each image."""
    listed = list(examples)
    names = sorted({name for example in listed for name in example.columns})
    return [name for name in names if 2 <= len({group_of(e, name) for e in listed}) <= _MOST_GROUPS]


def require_columns(examples: Sequence[Example], wanted: Iterable[str]) -> None:
    """Raise `DataError` if no image has one of the columns wanted."""
    known = sorted({name for example in examples for name in example.columns})
    for name in wanted:
        if name not in known:
            have = f"the columns are {', '.join(known)}" if known else "there are none"
            raise DataError(f"No image has the column {name!r}; {have}.")
