"""Reports to look into, what goes into them, and the validator."""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from pacs_node.reporting.report import (
    Algorithm,
    EncodedReport,
    ImageResult,
    NotScoredReason,
    ObserverDevice,
    Predecessor,
    build,
)

MADE_AT = datetime(2025, 6, 10, 1, 30, tzinfo=UTC)


ALGORITHM = Algorithm("DenseNet121-CXR", "2025.06", "5e" * 32, 0.5, "resize 224x224, histogram norm v1")


NEWER = Algorithm("DenseNet121-CXR", "2025.07", "7a" * 32, 0.4, "resize 224x224, histogram norm v1")


NODE = ObserverDevice(software_version="0.1.0", station_name="CXRAI01")


PRODUCT = ObserverDevice(software_version="0.1.0", station_name="CXRAI01", purpose="PRODUCT")


LATERAL = NotScoredReason("NOT_FRONTAL", "Not a frontal chest X-ray", failed=False)


UNREADABLE = NotScoredReason("UNREADABLE", "Pixel data could not be read", failed=True, leaves_open=True)


def scored(header: Dataset, probability: float = 0.8731, algorithm: Algorithm = ALGORITHM) -> ImageResult:
    decision = "positive" if probability >= algorithm.threshold else "negative"
    return ImageResult(header, decision, probability, None, algorithm)


def not_scored(header: Dataset, reason: NotScoredReason = LATERAL) -> ImageResult:
    return ImageResult(header, "not_scored", None, reason, ALGORITHM)


def report(
    *images: ImageResult,
    node: ObserverDevice = NODE,
    revision: int = 1,
    after: EncodedReport | None = None,
    names_answer: bool = False,
) -> EncodedReport:
    predecessor = None
    if after is not None:
        study = str(dcmread_bytes(after.content).StudyInstanceUID)
        predecessor = Predecessor(
            after.sop_class_uid, after.sop_instance_uid, after.series_instance_uid, study
        )
    return build(images, node, MADE_AT, revision, predecessor, names_answer=names_answer)


def dcmread_bytes(content: bytes) -> Any:
    return dcmread(BytesIO(content))


def validator(name: str) -> str:
    """Return the path of an external validator; its absence skips a developer's test and fails CI's."""
    path = shutil.which(name)
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    return path


def errors(content: bytes, folder: Path) -> list[str]:
    """Return what dciodvfy calls an error."""
    file = folder / "report.dcm"
    file.write_bytes(content)
    run = subprocess.run([validator("dciodvfy"), file], capture_output=True, check=False)
    said = (run.stdout + run.stderr).decode("utf-8", "replace").splitlines()
    assert any("SR" in line for line in said), said  # it names the IOD that it checked against
    return [line for line in said if line.startswith("Error")]


def assert_valid(content: bytes, folder: Path) -> None:
    """The object is free of errors, DCMTK takes its tree for legal, and highdicom can read it back."""
    assert errors(content, folder) == []
    file = folder / "report.dcm"
    dump = subprocess.run([validator("dsrdump"), file], capture_output=True, check=False)
    assert dump.returncode == 0, dump.stderr
    assert hd.sr.srread(file).content[0].name.value == "126000"


def tree(content: bytes) -> list[str]:
    """Return the content tree, one line for each content item, indented by depth."""
    return _lines(dcmread_bytes(content), 0)


def _lines(item: Dataset, depth: int) -> list[str]:
    name, value = item.ConceptNameCodeSequence[0], ""
    if item.ValueType == "CODE":
        coded = item.ConceptCodeSequence[0]
        value = f" = {coded.CodeValue} {coded.CodingSchemeDesignator} {coded.CodeMeaning}"
    elif item.ValueType == "NUM":
        measured = item.MeasuredValueSequence[0]
        value = f" = {measured.NumericValue} {measured.MeasurementUnitsCodeSequence[0].CodeValue}"
    elif item.ValueType == "IMAGE":
        value = f" = {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID[-4:]}"
    elif item.ValueType in ("TEXT", "DATE", "TIME"):
        value = f" = {item.get('TextValue') or item.get('Date') or item.get('Time')}"
    line = f"{'  ' * depth}{item.ValueType} {name.CodeMeaning}{value}"
    children = item.get("ContentSequence", [])
    return [line, *(line for child in children for line in _lines(child, depth + 1))]


def find(content: bytes, name: str) -> list[str]:
    """Return the values of all content items of a name."""
    lines = (line.strip().split(" ", 1)[1] for line in tree(content))
    return [line.removeprefix(f"{name} = ") for line in lines if line.startswith(f"{name} = ")]
