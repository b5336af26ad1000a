"""Labelled images: their files, their patients, and the split that each belongs to.

Each patient is in only one split; otherwise a model would be measured on people that it has seen.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from classifier.data.example import CLASSES, SPLITS, Classes, Example, Rule, Split
from classifier.data.files import PICTURES, candidates, is_dicom, printable
from classifier.data.manifest import read_manifest, write_manifest
from classifier.data.patients import known_of, patient_of
from classifier.errors import DataError

__all__ = ["CLASSES", "Classes", "Example", "Split", "patient_of", "write_manifest"]

_RULES: dict[Rule, str] = {
    "manifest": "by the manifest",
    "DICOM": "by Patient ID in DICOM",
    "folder": "by a folder for each patient",
    "known name": "by file names of a public set, such as person12_virus_3",
    "file name": "each file name a patient of its own",
}
_DEEPEST = 3  # folders below a wrong one, among which the right one is looked for
_MOST_FOLDERS = 1000


def load(data: Path, classes: Classes = CLASSES) -> list[Example]:
    """List labelled images.

    Parameters
    ----------
    data
        A folder of two class folders, such as ``NORMAL`` and ``PNEUMONIA``, possibly below ``train``, ``val``
        and ``test``; or a CSV manifest with the columns path, label and, if known, patient, split and others.
        Its paths are relative to its folder. A folder below a class folder belongs to one patient, whatever
        the names of its files.
    classes
        Names of the classes in lower case, 1 for pneumonia.

    Raises
    ------
    DataError
        If there is no image, a class is missing or unknown, a patient is in two splits, or a file occurs more
        than once with different labels, patients or splits.
    """
    return load_all([data], classes=classes)


def load_all(
    sources: Sequence[Path], weights: Sequence[float] = (), classes: Classes = CLASSES
) -> list[Example]:
    """List the images of several sets as one; see `load`.

    Parameters
    ----------
    weights
        How much each image of a set counts, one number for each set; none for 1.
    """
    named = " and ".join(map(str, sources))
    if weights and len(weights) != len(sources):
        raise DataError(f"There are {len(weights)} weights for {len(sources)} sets; give one for each set.")
    examples = [
        replace(example, weight=example.weight * weight)
        for source, weight in zip(sources, weights or [1.0] * len(sources), strict=True)
        for example in _listed(source, classes)
    ]
    _require_names(examples)
    _require_classes(examples, named, sources)
    _require_distinct(examples)
    _require_disjoint(examples, named)
    return sorted(examples, key=lambda example: example.path.absolute().as_posix())


def class_names(text: str) -> Classes:
    """Return the names of classes with two more, written as ``healthy,sick``: the class without comes first.

    Raises
    ------
    DataError
        If it is not two names.
    """
    names = [name.strip().lower() for name in text.split(",")]
    if len(set(names)) != 2 or not all(names):
        raise DataError(
            f"The classes {text!r} are not two names; write the one without pneumonia first, such as"
            " healthy,sick."
        )
    return {**CLASSES, names[0]: 0, names[1]: 1}


def _listed(data: Path, classes: Classes) -> list[Example]:
    if data.is_dir():
        return list(_from_folder(data, classes))
    if data.is_file():
        return read_manifest(data, classes)
    raise DataError(f"There is no folder or manifest {data}; check the path.")


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
    for line in sorted(map(_line, examples)):
        sha.update(line.encode())
    return sha.hexdigest()


def _line(e: Example) -> str:
    weight = "" if e.weight == 1 else f"\t{e.weight}"
    return f"{e.path.name}\t{e.label}\t{e.patient}\t{e.split}{weight}\n"


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


def _from_folder(data: Path, classes: Classes) -> Iterator[Example]:
    folders = _folders(data)
    if folders and all(folder.name.lower() in SPLITS for folder in folders):
        for folder in folders:
            # Only a test set is kept apart; the rest is split again, by patient
            fixed: Split = "test" if SPLITS[folder.name.lower()] == "test" else ""
            for example in _from_folder(folder, classes):
                # A folder "test" is trusted: its patients differ from patients with the same names elsewhere
                patient = f"test/{example.patient}" if fixed else example.patient
                yield replace(example, split=fixed, patient=patient)
        return
    for folder in folders:
        label = classes.get(folder.name.lower())
        if label is None:
            raise DataError(f"The folder {folder} is not a class; {_advice(data, folders, classes)}.")
        for path in candidates(folder):
            if path.suffix.lower() in PICTURES or is_dicom(path):
                known = known_of(path, folder)
                yield Example(path, label, known.patient, rule=known.rule, columns=known.columns)


def _folders(data: Path) -> list[Path]:
    try:
        return sorted(path for path in data.iterdir() if path.is_dir() and not path.name.startswith("."))
    except PermissionError:
        return []


def _advice(data: Path, folders: Sequence[Path], classes: Classes) -> str:
    """Say what to do about a folder whose subfolders are no classes."""
    right = next(islice(_below(data, classes), 1), None)
    if right is not None:
        return f"name {right}, which holds both classes"
    if len(folders) == 2:
        names = ",".join(folder.name for folder in folders)
        return f"name the classes NORMAL and PNEUMONIA, or add --classes {names} (without pneumonia first)"
    return "name the classes NORMAL and PNEUMONIA"


def _below(data: Path, classes: Classes) -> Iterator[Path]:
    """Yield the folders at or below one that hold both classes, or hold such under the names of splits."""
    level, seen = [data], 0
    for _ in range(_DEEPEST + 1):
        for folder in level:
            inside = _folders(folder)
            names = [path.name.lower() for path in inside]
            if {classes[name] for name in names if name in classes} == {0, 1}:
                yield folder.parent if folder.name.lower() in SPLITS and folder != data else folder
        level = [path for folder in level for path in _folders(folder)]
        seen += len(level)
        if seen > _MOST_FOLDERS:
            return


def _require_names(examples: Sequence[Example]) -> None:
    """Refuse names that cannot be written in UTF-8, because manifests and pages name each image."""
    for example in examples:
        name = printable(example.path)
        if name != str(example.path):
            raise DataError(f"The name of {name} is not in UTF-8; rename the file or folder.")


def _require_classes(examples: Sequence[Example], named: str, sources: Sequence[Path]) -> None:
    if not examples:
        raise DataError(f"There is no JPEG, PNG or DICOM file in {named}; name {_other_folder(sources)}.")
    counts = Counter(example.label for example in examples)
    if len(counts) < 2:
        have = "PNEUMONIA" if 1 in counts else "NORMAL"
        raise DataError(f"{named} holds {have} only; training and evaluation need both classes.")


def _other_folder(sources: Sequence[Path]) -> str:
    """Return the folder above or below that holds both classes, if there is one."""
    for source in sources:
        if source.is_dir():
            resolved = source.resolve()
            for place in (resolved.parent, resolved):
                right = next(islice(_below(place, CLASSES), 1), None)
                if right is not None and place in {resolved, right}:
                    return f"{right}, which holds both classes"
    return "another folder"


def _require_distinct(examples: Sequence[Example]) -> None:
    """Refuse a file that occurs again with other values, whatever its path."""
    seen: dict[str, Example] = {}
    for example in examples:
        first = seen.setdefault(os.path.realpath(example.path), example)
        for what in ("label", "patient", "split"):
            if getattr(first, what) != getattr(example, what):
                raise DataError(f"{example.path} occurs twice, with a different {what}; keep one of them.")


def _require_disjoint(examples: Sequence[Example], named: str) -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        if example.split:
            splits[example.patient].add(example.split)
    for patient, found in sorted(splits.items()):
        if len(found) > 1:
            names = " and ".join(sorted(found))
            raise DataError(f"Patient {patient} is in the splits {names} of {named}; keep one of them.")
