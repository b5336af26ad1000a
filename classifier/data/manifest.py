"""Manifests: CSV with the columns path and label and, where known, patient, split, weight and any others.

Spreadsheets write commas, semicolons or tabs, with or without a byte order mark; all of these are read.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from io import StringIO
from pathlib import Path

from classifier.data.example import SPLITS, Classes, Example
from classifier.data.patients import known_of
from classifier.errors import DataError
from classifier.untrusted import cell, unquoted

_COLUMNS = ("path", "label", "patient", "split")
_WEIGHT = "weight"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_manifest(path: Path, classes: Classes) -> list[Example]:
    """List the images of a manifest; paths are relative to its folder.

    Raises
    ------
    DataError
        If it is not CSV, lacks a column, or a line names what is not known.
    """
    try:
        text = _text(path)
        reader = csv.DictReader(StringIO(text, newline=""), delimiter=_delimiter(text))
        names = [name.strip().lower() for name in reader.fieldnames or ()]
        missing = {"path", "label"} - set(names)
        if missing:
            raise DataError(f"{path} has no column {min(missing)!r}; it needs path and label.")
        reader.fieldnames = names
        return [_row(row, path, number, classes) for number, row in enumerate(reader, 2)]
    except (UnicodeError, csv.Error) as error:
        raise DataError(f"{path} is not CSV in UTF-8; save it as that.") from error


def write_manifest(path: Path, examples: Iterable[Example]) -> None:
    """Write a manifest that `read_manifest` reads, with absolute paths and all further columns."""
    listed = list(examples)
    further = sorted({name for example in listed for name in example.columns} - {*_COLUMNS, _WEIGHT})
    weighted = [_WEIGHT] if any(example.weight != 1 for example in listed) else []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_COLUMNS, *weighted, *map(cell, further)])
        for e in listed:
            weight = [e.weight] if weighted else []
            others = [cell(e.columns.get(name, "")) for name in further]
            writer.writerow([e.path.absolute(), e.label, cell(e.patient), e.split, *weight, *others])


def _text(path: Path) -> str:
    content = path.read_bytes()
    return content.decode("utf-16" if content.startswith(_UTF16) else "utf-8-sig")


def _delimiter(text: str) -> str:
    """Return what separates the names in the first line."""
    first = text.split("\n", 1)[0]
    return max(",;\t", key=first.count)


def _row(row: Mapping[str, str | None], manifest: Path, number: int, classes: Classes) -> Example:
    values = {name: (value or "").strip() for name, value in row.items() if isinstance(name, str)}
    where = f"Line {number} of {manifest}"
    place = manifest.parent / values["path"]
    label = classes.get(values["label"].lower())
    fixed = SPLITS.get(values.get("split", "").lower())
    if label is None:
        raise DataError(
            f"{where} has the label {values['label']!r}, which is not known; write NORMAL or PNEUMONIA, or"
            " name both classes with --classes."
        )
    if fixed is None:
        raise DataError(
            f"{where} has the split {values['split']!r}, which is not known; write train, val or test."
        )
    if not place.is_file():
        raise DataError(f"{where} has the path {values['path']!r}, where there is no file; correct it.")
    known = known_of(place)
    patient = unquoted(values.get("patient", ""))
    told = {name: unquoted(value) for name, value in _further(values) if value}
    return Example(
        *(place, label, patient or known.patient, fixed),
        "manifest" if patient else known.rule,
        {**known.columns, **told},
        _weight(values.get(_WEIGHT, ""), where),
    )


def _further(values: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return ((name, value) for name, value in values.items() if name not in (*_COLUMNS, _WEIGHT))


def _weight(text: str, where: str) -> float:
    if not text:
        return 1.0
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise DataError(f"{where} has the weight {text!r}; write a number above 0.")
    return weight
