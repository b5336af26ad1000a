"""One labelled image, and the names that classes and splits have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from classifier.decoding.ages import Age, told_by
from classifier.decoding.tags import plain

Split = Literal["train", "val", "test", ""]
Rule = Literal["manifest", "DICOM", "folder", "known name", "file name"]
Classes = Mapping[str, int]

CLASSES: Classes = {
    **dict.fromkeys(("normal", "negative", "0", "clear"), 0),
    **dict.fromkeys(("pneumonia", "positive", "1", "opacity"), 1),
}
"""Names of class folders and labels of a manifest, in lower case."""

SPLITS: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "": "",
}


@dataclass(frozen=True)
class Example:
    """One image with its label.

    Attributes
    ----------
    label
        1 for pneumonia, else 0.
    split
        Empty if it is not fixed.
    rule
        How the patient was found.
    columns
        What else is known, by name: ``age``, ``sex``, ``view`` and ``machine`` from the tags of DICOM, and
        all further columns of a manifest.
    weight
        How much the image counts in training, beside others.
    """

    path: Path
    label: int
    patient: str
    split: Split = ""
    rule: Rule = field(default="manifest", compare=False)
    columns: Mapping[str, str] = field(default_factory=dict, compare=False, hash=False)
    weight: float = field(default=1.0, compare=False)

    @property
    def age(self) -> Age:
        """The age in its columns: ``3``, ``003Y`` or ``18M``."""
        stated = plain(self.columns.get("age", ""))
        return told_by(lambda keyword: [stated] if stated and keyword == "PatientAge" else [])
