"""Coded concepts of the structured report (PS3.16), and the tables that lead from a source's tags to them."""

from __future__ import annotations

from typing import Any

from highdicom.sr import CodedConcept
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
)

PRIVATE_SCHEME = "99CXRAI"
PRIVATE_SCHEME_NAME = "PACS Node chest X-ray codes"


def _dcm(value: str, meaning: str) -> Any:
    return CodedConcept(value, "DCM", meaning)


def _sct(value: str, meaning: str) -> Any:
    return CodedConcept(value, "SCT", meaning)


def _ucum(value: str, meaning: str) -> Any:
    return CodedConcept(value, "UCUM", meaning)


def private(value: str, meaning: str) -> Any:
    """Return a concept of the node's own coding scheme; `value` has at most 16 characters (SH)."""
    return CodedConcept(value, PRIVATE_SCHEME, meaning)


ENGLISH = CodedConcept("en-US", "RFC5646", "English (United States)")
PERCENT = _ucum("%", "Percent")
MILLIMETRE = _ucum("mm", "mm")
PIXELS = _ucum("{pixels}", "Pixels")

# Observation context: TID 1002 and TID 1004
DEVICE = _dcm("121007", "Device")
CHEST_X_RAY = _sct("399208008", "Plain chest X-ray")

MEASUREMENT_REPORT = _dcm("126000", "Imaging Measurement Report")
CONCLUSION = _dcm("121077", "Conclusion")  # beyond the rows of TID 1500

# Image library: TID 1600 to TID 1603
IMAGE_LIBRARY = _dcm("111028", "Image Library")
IMAGE_LIBRARY_GROUP = _dcm("126200", "Image Library Group")
SOURCE = _sct("260753009", "Source")
MODALITY = _dcm("121139", "Modality")
TARGET_REGION = _dcm("123014", "Target Region")
CHEST = _sct("816094009", "Chest")
IMAGE_LATERALITY = _dcm("111027", "Image Laterality")
IMAGE_VIEW = _dcm("111031", "Image View")
STUDY_DATE = _dcm("111060", "Study Date")
STUDY_TIME = _dcm("111061", "Study Time")
ACQUISITION_DATE = _dcm("126201", "Acquisition Date")
ACQUISITION_TIME = _dcm("126202", "Acquisition Time")
PIXEL_DATA_ROWS = _dcm("110910", "Pixel Data Rows")
PIXEL_DATA_COLUMNS = _dcm("110911", "Pixel Data Columns")
ORIENTATION_ROW = _dcm("111044", "Patient Orientation Row")
ORIENTATION_COLUMN = _dcm("111043", "Patient Orientation Column")
HORIZONTAL_SPACING = _dcm("111026", "Horizontal Pixel Spacing")
VERTICAL_SPACING = _dcm("111066", "Vertical Pixel Spacing")

# Measurement group: TID 1501 and TID 4019
FINDING = _dcm("121071", "Finding")
PNEUMONIA = _sct("233604007", "Pneumonia")
VISUAL_EXPLANATION = _dcm("130401", "Visual explanation")
SOURCE_OF_PROCESSING = _dcm("121322", "Source of Image Processing Operation")
LUNG = _sct("39607008", "Lung")
ARTIFICIAL_INTELLIGENCE = _dcm("123110", "Artificial Intelligence")
CERTAINTY = _dcm("111012", "Certainty of Finding")
THRESHOLD = _dcm("122411", "Threshold Value")
SUMMARY_OF_DETECTIONS = _dcm("111064", "Summary of Detections")
SUCCEEDED = _dcm("111222", "Succeeded")  # this and the next two: CID 6042
FAILED = _dcm("111224", "Failed")
NOT_ATTEMPTED = _dcm("111225", "Not Attempted")
WHY_NOT_SCORED = private("WHY_NOT_SCORED", "Reason image was not scored")
WHY_UNDETERMINED = private("WHY_UNDETERMINED", "Reason answer is undetermined")

# The study's answer: TID 1500 rows 12 to 14
QUALITATIVE_EVALUATIONS = CodedConcept("C0034375", "UMLS", "Qualitative Evaluations")
COMMENT = _dcm("121106", "Comment")
PROCESSING_EQUIPMENT = _dcm("109102", "Processing Equipment")  # CID 7005 has no purpose for an algorithm

# CID 240
ANSWERS = {
    "positive": _sct("52101004", "Present"),
    "negative": _sct("272519000", "Absent"),
    "undetermined": _sct("373068000", "Undetermined"),
    "not_scored": _sct("373068000", "Undetermined"),
}

# Modality (0008,0060), or the SOP class where it leaves no choice -> CID 33
_COMPUTED = _dcm("CR", "Computed Radiography")
_DIGITAL = _dcm("DX", "Digital Radiography")
OTHER_MODALITY = _dcm("OT", "Other")
MODALITY_OF_CLASS: dict[str, Any] = {
    ComputedRadiographyImageStorage: _COMPUTED,
    DigitalXRayImageStorageForPresentation: _DIGITAL,
    DigitalXRayImageStorageForProcessing: _DIGITAL,
}
MODALITIES = {"CR": _COMPUTED, "DX": _DIGITAL, "RG": _dcm("RG", "Radiographic imaging")}

# Laterality (0020,0060) and Image Laterality (0020,0062) -> CID 244
LATERALITIES = {
    "R": _sct("24028007", "Right"),
    "L": _sct("7771000", "Left"),
    "B": _sct("51440002", "Bilateral"),
}

# View Position (0018,5101), or the value in View Code Sequence (SNOMED CT or SNOMED RT) -> CID 4010
_PA = _sct("272479007", "postero-anterior")
_AP = _sct("399348003", "antero-posterior")
_LEFT = _sct("399173006", "left lateral")
_RIGHT = _sct("399198007", "right lateral")
_LATERAL = _sct("399067008", "lateral")
VIEWS = {"PA": _PA, "AP": _AP, "LL": _LEFT, "RL": _RIGHT, "LATERAL": _LATERAL}
VIEW_CODES = {
    ("SCT", "272479007"): _PA,
    ("SCT", "399348003"): _AP,
    ("SCT", "399173006"): _LEFT,
    ("SCT", "399198007"): _RIGHT,
    ("SCT", "399067008"): _LATERAL,
    ("SRT", "R-10214"): _PA,
    ("SRT", "R-10206"): _AP,
    ("SRT", "R-10236"): _LEFT,
    ("SRT", "R-10232"): _RIGHT,
    ("SRT", "R-10228"): _LATERAL,
}
