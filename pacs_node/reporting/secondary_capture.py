"""The heat map of one image as a DICOM object: Secondary Capture (PS3.3 A.8.1), in colour.

Every viewer shows it. A Parametric Map would need a geometry that radiographs do not have; a Segmentation
would call a region what is none.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from pacs_node.reporting import codes
from pacs_node.reporting.encoding import part10, put, raw
from pacs_node.reporting.patient_study import copied_patient_and_study
from pacs_node.reporting.report import EncodedReport, parsed

SECONDARY_CAPTURE = str(SecondaryCaptureImageStorage)

_SERIES_NUMBER = 9120
_PIXEL_DATA = 0x7FE00010
_COPIED = (
    *("TimezoneOffsetFromUTC", "ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime"),
    *("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions"),
    *("ContentQualification", "ContributingEquipmentSequence"),
)
"""Of the report, which was made by the same device and at the same time."""


class Source(NamedTuple):
    """The image that the map is of."""

    sop_class_uid: str
    sop_instance_uid: str


def capture(
    report_content: bytes, picture: Image.Image, source: Source, number: int, uids: tuple[str, str]
) -> EncodedReport:
    """Return the object that has a picture, in the study of its report, which refers to it.

    Parameters
    ----------
    report_content
        The file of the report.
    picture
        In RGB, with all that is written on it.
    source
        The image it is made of.
    number
        Instance Number (0020,0013).
    uids
        Series and SOP Instance UID, those of `heat_map_uids`.

    Raises
    ------
    InvalidReport
        When `report_content` is no report of this node.
    """
    report = parsed(report_content)
    made = copied_patient_and_study(report)
    for keyword in _COPIED:
        if keyword in report:
            made[keyword] = report.get_item(keyword)
    made.SOPClassUID = SECONDARY_CAPTURE
    made.SeriesInstanceUID, made.SOPInstanceUID = uids
    made.Modality, made.SeriesNumber, made.InstanceNumber = "OT", _SERIES_NUMBER, number
    warning = " - NOT FOR DIAGNOSIS" if report.ContentQualification == "RESEARCH" else ""
    made.SeriesDescription = f"AI heat map{warning}"
    made.BodyPartExamined = "CHEST"  # of no side: without it, Laterality would be needed
    made.ConversionType, made.ImageType = "WSD", ["DERIVED", "SECONDARY", "OTHER"]
    made.DerivationDescription = "Class activation map over a reduced copy of the source image"
    made.PatientOrientation = ""
    # What is written says nothing of the patient
    made.BurnedInAnnotation, made.RecognizableVisualFeatures = "NO", "NO"
    made.SourceImageSequence = [_reference(source)]
    _add_pixels(made, picture)
    return EncodedReport(SECONDARY_CAPTURE, uids[1], uids[0], part10(made))


def _reference(source: Source) -> Dataset:
    item = Dataset()
    put(item, "ReferencedSOPClassUID", source.sop_class_uid.encode())
    put(item, "ReferencedSOPInstanceUID", source.sop_instance_uid.encode())
    item.SpatialLocationsPreserved = "NO"
    item.PurposeOfReferenceCodeSequence = [codes.SOURCE_OF_PROCESSING]
    return item


def _add_pixels(made: Dataset, picture: Image.Image) -> None:
    pixels = np.asarray(picture.convert("RGB"))
    made.Rows, made.Columns = pixels.shape[:2]
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    made[_PIXEL_DATA] = raw(_PIXEL_DATA, "OB", pixels.tobytes())
