"""Whose image a file is, and what else its tags tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydicom.dataset import Dataset

from classifier.data.example import Rule
from classifier.data.files import PICTURES
from classifier.decoding.ages import told
from classifier.decoding.parsing import Part10, is_dicom
from classifier.decoding.tags import quiet, text
from classifier.errors import NotScorable

# Kermany et al. name files person<ID>_<bacteria|virus>_<n> and [NORMAL2-]IM-<ID>-<n>; Wang et al. (NIH
# ChestX-ray14) <ID>_<n>, both with leading zeros.
_PATIENT = re.compile(r"^(person\d+|(?:NORMAL2-)?IM-\d+|\d{8}(?=_\d{3}\.))[_-]")
_HEADER_BYTES = 4 * 2**20


class Known(NamedTuple):
    """What is known of a file.

    Attributes
    ----------
    patient, rule
        The patient, and how it was found.
    columns
        What the tags tell: age in years, sex, view, machine.
    """

    patient: str
    rule: Rule
    columns: Mapping[str, str]


def known_of(path: Path, class_folder: Path | None = None) -> Known:
    """Return what is known of a file.

    The patient is its Patient ID in DICOM, else its folder below the class folder, else the patient in its
    name in the known public sets, else its name.
    """
    header = None if path.suffix.lower() in PICTURES else _header(path)
    columns = {} if header is None else _columns(header)
    if header is not None and (patient := text(header, "PatientID")):
        return Known(patient, "DICOM", columns)
    below = () if class_folder is None else path.relative_to(class_folder).parts[:-1]
    if below:
        return Known(below[0], "folder", columns)
    # IM-<n> is a patient in one public set, and a series in the exports of OsiriX and Horos
    named = _PATIENT.match(path.name)
    if named:
        return Known(named[1].removeprefix("NORMAL2-"), "known name", columns)
    return Known(path.stem, "file name", columns)


def patient_of(path: Path, class_folder: Path | None = None) -> str:
    """Return the patient of a file; see `known_of`."""
    return known_of(path, class_folder).patient


def _header(path: Path) -> Dataset | None:
    """Return the header of a DICOM file, read within the bounds that hold for the files of strangers."""
    try:
        with path.open("rb") as file, quiet():
            content = file.read(_HEADER_BYTES)
            return Part10(content).header() if is_dicom(content) else None
    except (NotScorable, OSError):
        return None


def _columns(header: Dataset) -> dict[str, str]:
    age = told(header)
    machine = f"{text(header, 'Manufacturer')} {text(header, 'ManufacturerModelName')}".strip()
    found = {
        "age": "" if age.years is None or age.doubt else f"{age.years:.2f}",
        "sex": text(header, "PatientSex"),
        "view": text(header, "ViewPosition"),
        "machine": machine,
    }
    return {name: value for name, value in found.items() if value}
