"""The page of a report as a DICOM object: Encapsulated PDF (PS3.3 A.45.1)."""

from __future__ import annotations

from collections.abc import Collection

from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage

from pacs_node.errors import InvalidReport
from pacs_node.reporting import codes
from pacs_node.reporting.encoding import parse, part10, put
from pacs_node.reporting.input import uid
from pacs_node.reporting.patient_study import copied_patient_and_study
from pacs_node.reporting.report import EncodedReport, parsed

ENCAPSULATED_PDF = str(EncapsulatedPDFStorage)

_SERIES_NUMBER = 9110
_COPIED = (
    *("TimezoneOffsetFromUTC", "ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime"),
    *("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions", "InstanceNumber"),
    *("SeriesDescription", "VerificationFlag", "ContributingEquipmentSequence"),
)
"""Of the report, whose page says the same, was made by the same device and at the same time."""


def encapsulate(report_content: bytes, pdf: bytes, images: Collection[tuple[str, str]]) -> EncodedReport:
    """Return the object that has a page, in the study of its report.

    Its UIDs follow from those of the report.

    Parameters
    ----------
    report_content
        The file of the report.
    pdf
        The page.
    images
        SOP Class and Instance UID of each image that it is about.

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
    made.SOPClassUID = ENCAPSULATED_PDF
    made.SOPInstanceUID = uid("page", report.SOPInstanceUID)
    made.SeriesInstanceUID = uid("page series", report.SeriesInstanceUID)
    made.Modality, made.SeriesNumber, made.ConversionType = "DOC", _SERIES_NUMBER, "WSD"
    made.AcquisitionDateTime = ""
    made.BurnedInAnnotation, made.RecognizableVisualFeatures = "YES", "NO"
    made.DocumentTitle = "AI chest X-ray result"
    made.ConceptNameCodeSequence = [codes.MEASUREMENT_REPORT]
    report_itself = (str(report.SOPClassUID), str(report.SOPInstanceUID))
    made.SourceInstanceSequence = [_reference(*one) for one in dict.fromkeys([*images, report_itself])]
    made.MIMETypeOfEncapsulatedDocument = "application/pdf"
    made.EncapsulatedDocumentLength = len(pdf)
    put(made, "EncapsulatedDocument", pdf)
    return EncodedReport(
        ENCAPSULATED_PDF, str(made.SOPInstanceUID), str(made.SeriesInstanceUID), part10(made)
    )


def as_stored(content: bytes) -> EncodedReport:
    """Return an object that this node made, as it is.

    Raises
    ------
    InvalidReport
        When it is none.
    """
    try:
        made = parse(content)
    except ValueError as error:
        raise InvalidReport(f"not an object of this node: {error}") from error
    return EncodedReport(
        str(made.SOPClassUID), str(made.SOPInstanceUID), str(made.SeriesInstanceUID), content
    )


def _reference(sop_class: str, instance: str) -> Dataset:
    item = Dataset()
    put(item, "ReferencedSOPClassUID", sop_class.encode())
    put(item, "ReferencedSOPInstanceUID", instance.encode())
    return item
