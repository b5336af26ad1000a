"""Labelled images: their files, their patients, and the split that each belongs to.

Each patient is in only one split; otherwise a model would be measured on people that it has seen.
"""

from __future__ import annotations

import csv
import hashlib
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from classifier.data.files import PICTURES, candidates, is_dicom, printable
from classifier.decoding.tags import quiet, text
from classifier.errors import DataError
from classifier.untrusted import cell, unquoted

Split = Literal["train", "val", "test", ""]

CLASSES = {
    **dict.fromkeys(("normal", "negative", "0", "clear"), 0),
    **dict.fromkeys(("pneumonia", "positive", "1", "opacity"), 1),
}
"""Names of class folders and labels of a manifest, in lower case."""

Rule = Literal["manifest", "DICOM", "folder", "known name", "file name"]

_RULES: dict[Rule, str] = {
    "manifest": "by the manifest",
    "DICOM": "by Patient ID in DICOM",
    "folder": "by a folder for each patient",
    "known name": "by file names of a public set, such as person12_virus_3",
    "file name": "each file name a patient of its own",
}
_SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "": "",
}
# Kermany et al. name files person<ID>_<bacteria|virus>_<n> and [NORMAL2-]IM-<ID>-<n>; Wang et al. (NIH
# ChestX-ray14) <ID>_<n>, both with leading zeros.
_PATIENT = re.compile(r"^(person\d+|(?:NORMAL2-)?IM-\d+|\d{8}(?=_\d{3}\.))[_-]")
_IN_MANIFEST: Rule = "manifest"
_COLUMNS = ("path", "label", "patient", "split")


@dataclass(frozen=True)
class Example:
    """One image with its label, 1 for pneumonia; `split` is empty if it is not fixed. `rule` tells how its
    patient was found.
    """

    path: Path
    label: int
    patient: str
    split: Split = ""
    rule: Rule = field(default="manifest", compare=False)


def load(data: Path) -> list[Example]:
    """List labelled images.

    Parameters
    ----------
    data
        A folder of two class folders, such as ``NORMAL`` and ``PNEUMONIA``, possibly below ``train``, ``val``
        and ``test``; or a CSV manifest with the columns path, label and, if known, patient and split. Its
        paths are relative to its folder. A folder below a class folder belongs to one patient, whatever the
        names of its files.

    Raises
    ------
    DataError
        If there is no image, a class is missing or unknown, a patient is in two splits, or a file occurs more
        than once with different labels, patients or splits.
    """
    if data.is_dir():
        examples = list(_from_folder(data))
    elif data.is_file():
        examples = _from_manifest(data)
    else:
        raise DataError(f"There is no folder or manifest {data}; check the path.")
    _require_names(examples)
    _require_classes(examples, data)
    _require_distinct(examples)
    _require_disjoint(examples, data)
    return sorted(examples, key=lambda example: example.path.as_posix())


def write_manifest(path: Path, examples: Iterable[Example]) -> None:
    """Write a manifest that `load` reads, with absolute paths."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows((e.path.absolute(), e.label, cell(e.patient), e.split) for e in examples)


def told_apart(examples: Iterable[Example]) -> str:
    """Say how patients are told apart, with the number of images for each rule if there are several."""
    counts = Counter(example.rule for example in examples)
    if len(counts) == 1:
        return _RULES[next(iter(counts))]
    return "; ".join(f"{_RULES[rule]} ({number} images)" for rule, number in counts.most_common())


def split(examples: Sequence[Example], share: float, seed: int) -> list[Example]:
    """Assign each patient without a split to ``train`` or ``val``, and all images of another to its split.

    Parameters
    ----------
    share
        Wanted share of the images in ``val``, 0 to 1, the same in each class.
    seed
        The same seed and patients give the same split, whatever the order of `examples`.

    Raises
    ------
    DataError
        If a class has too few patients for both splits.
    """
    fixed = {example.patient: example.split for example in examples if example.split}
    known = [replace(example, split=fixed.get(example.patient, "")) for example in examples]
    open_patients: dict[str, list[Example]] = defaultdict(list)
    for example in known:
        if not example.split:
            open_patients[example.patient].append(example)
    chosen = _choose(open_patients, share, seed) if open_patients else set()
    made = [
        example if example.split else replace(example, split="val" if example.patient in chosen else "train")
        for example in known
    ]
    require_both_classes(made)
    return made


def require_both_classes(examples: Sequence[Example]) -> None:
    """Raise `DataError` if the training or the validation images lack a class."""
    for name in ("train", "val"):
        if len({example.label for example in examples if example.split == name}) < 2:
            raise DataError(
                f"The split {name!r} lacks a class; give more patients or another share, and let a manifest"
                " name both splits or none."
            )


def digest(examples: Iterable[Example]) -> str:
    """Return the SHA-256 of names, labels, patients and splits, to identify the data that a model has
    seen.
    """
    sha = hashlib.sha256()
    for line in sorted(f"{e.path.name}\t{e.label}\t{e.patient}\t{e.split}\n" for e in examples):
        sha.update(line.encode())
    return sha.hexdigest()


def _choose(patients: dict[str, list[Example]], share: float, seed: int) -> set[str]:
    """Choose patients for validation, class by class, until they have the wanted share of the images."""
    chosen: set[str] = set()
    for label in (0, 1):
        # A patient with images of both classes counts as sick.
        group = sorted(p for p, images in patients.items() if max(i.label for i in images) == label)
        random.Random(f"{seed}/{label}").shuffle(group)
        wanted = share * sum(len(patients[patient]) for patient in group)
        taken = 0
        for patient in group:
            if taken >= wanted:
                break
            chosen.add(patient)
            taken += len(patients[patient])
    return chosen


def _from_folder(data: Path) -> Iterator[Example]:
    folders = sorted(path for path in data.iterdir() if path.is_dir() and not path.name.startswith("."))
    if folders and all(folder.name.lower() in _SPLITS for folder in folders):
        for folder in folders:
            # Only a test set is kept apart; the rest is split again, by patient
            fixed: Split = "test" if _SPLITS[folder.name.lower()] == "test" else ""
            for example in _from_folder(folder):
                # A folder "test" is trusted: its patients differ from patients with the same names elsewhere
                patient = f"test/{example.patient}" if fixed else example.patient
                yield replace(example, split=fixed, patient=patient)
        return
    for folder in folders:
        label = CLASSES.get(folder.name.lower())
        if label is None:
            raise DataError(f"The folder {folder} is not a class; name the classes NORMAL and PNEUMONIA.")
        for path in candidates(folder):
            if path.suffix.lower() in PICTURES or is_dicom(path):
                patient, rule = _told(path, folder)
                yield Example(path, label, patient, rule=rule)


def _from_manifest(path: Path) -> list[Example]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = {"path", "label"} - set(reader.fieldnames or ())
            if missing:
                raise DataError(f"{path} has no column {min(missing)!r}; it needs path and label.")
            return [_row(row, path, number) for number, row in enumerate(reader, 2)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not CSV in UTF-8; save it as that.") from error


def _row(row: dict[str, str | None], manifest: Path, number: int) -> Example:
    place = manifest.parent / (row["path"] or "")
    label = CLASSES.get((row["label"] or "").strip().lower())
    fixed = _SPLITS.get((row.get("split") or "").strip().lower())
    if label is None or fixed is None or not place.is_file():
        what = "label" if label is None else "split" if fixed is None else "path"
        raise DataError(
            f"Line {number} of {manifest} has the {what} {row[what]!r}, which is none; correct it."
        )
    named = unquoted((row.get("patient") or "").strip())
    patient, rule = (named, _IN_MANIFEST) if named else _told(place)
    return Example(place, label, patient, fixed, rule)


def patient_of(path: Path, class_folder: Path | None = None) -> str:
    """Return the patient of a file.

    This is its Patient ID in DICOM, else its folder below the class folder, else the patient in its name in
    the known public sets, else its name.
    """
    return _told(path, class_folder)[0]


def _told(path: Path, class_folder: Path | None = None) -> tuple[str, Rule]:
    """Return the patient of a file, and the rule that found it."""
    if path.suffix.lower() not in PICTURES and (known := _patient_id(path)):
        return known, "DICOM"
    below = () if class_folder is None else path.relative_to(class_folder).parts[:-1]
    if below:
        return below[0], "folder"
    # IM-<n> is a patient in one public set, and a series in the exports of OsiriX and Horos
    named = _PATIENT.match(path.name)
    return (named[1].removeprefix("NORMAL2-"), "known name") if named else (path.stem, "file name")


def _patient_id(path: Path) -> str | None:
    try:
        with quiet():
            header = dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
        return text(header, "PatientID")
    except (InvalidDicomError, OSError, ValueError, KeyError, EOFError):
        return None


def _require_names(examples: Sequence[Example]) -> None:
    """Refuse names that cannot be written in UTF-8, because manifests and pages name each image."""
    for example in examples:
        name = printable(example.path)
        if name != str(example.path):
            raise DataError(f"The name of {name} is not in UTF-8; rename the file or folder.")


def _require_classes(examples: Sequence[Example], data: Path) -> None:
    if not examples:
        raise DataError(f"There is no JPEG, PNG or DICOM file in {data}; name another folder.")
    counts = Counter(example.label for example in examples)
    if len(counts) < 2:
        have = "PNEUMONIA" if 1 in counts else "NORMAL"
        raise DataError(f"{data} holds {have} only; training and evaluation need both classes.")


def _require_distinct(examples: Sequence[Example]) -> None:
    """Refuse a file that occurs again with other values, whatever its path."""
    seen: dict[str, Example] = {}
    for example in examples:
        first = seen.setdefault(os.path.realpath(example.path), example)
        for what in ("label", "patient", "split"):
            if getattr(first, what) != getattr(example, what):
                raise DataError(f"{example.path} occurs twice, with a different {what}; keep one of them.")


def _require_disjoint(examples: Sequence[Example], data: Path) -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        if example.split:
            splits[example.patient].add(example.split)
    for patient, found in sorted(splits.items()):
        if len(found) > 1:
            names = " and ".join(sorted(found))
            raise DataError(f"Patient {patient} is in the splits {names} of {data}; keep one of them.")
