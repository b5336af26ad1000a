"""Builds the structured report of one study revision, as the bytes of a DICOM file.

A report is a Comprehensive 3D SR (PS3.3 A.35.13) by TID 1500 with one TID 1501 measurement group for each
image: what IHE AI Results asks for. `as_class` turns the file into one of the older classes for a PACS that
does not take it; the content tree fits all three.

The same input gives the same bytes and the same UIDs on every machine: nothing here reads a clock, a random
generator, a locale or a configuration.

- The *series* is named by study, device (program and model), purpose and SOP class; and by the answer if its
  description says that.
- The *instance* is named by its series, the images, the thresholds and the kind of each outcome, never by a
  score: one that another processor rounds otherwise does not make a second report for the same images.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone

from pydicom.dataset import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    SecondaryCaptureImageStorage,
)

from pacs_node.errors import InvalidReport
from pacs_node.reporting import codes
from pacs_node.reporting.conclusion import WORDS, study_decision
from pacs_node.reporting.content_tree import content as content_tree
from pacs_node.reporting.content_tree import uses_private_codes
from pacs_node.reporting.encoding import encode, parse, part10, put
from pacs_node.reporting.input import (
    SCHEMA,
    Algorithm,
    ImageResult,
    NotScoredReason,
    ObserverDevice,
    Predecessor,
    heat_map_uids,
    uid,
)
from pacs_node.reporting.patient_study import (
    open_header,
    patient_and_study,
    requests,
    timezone_of,
    uid_of,
)
from pacs_node.reporting.source_header import Source

__all__ = [
    "COMPREHENSIVE_3D_SR",
    "COMPREHENSIVE_SR",
    "ENHANCED_SR",
    "REPORT_CLASSES",
    "Algorithm",
    "EncodedReport",
    "ImageResult",
    "InvalidReport",
    "NotScoredReason",
    "ObserverDevice",
    "Predecessor",
    "as_class",
    "build",
    "says_the_same",
]

COMPREHENSIVE_3D_SR = str(Comprehensive3DSRStorage)
COMPREHENSIVE_SR = str(ComprehensiveSRStorage)
ENHANCED_SR = str(EnhancedSRStorage)
REPORT_CLASSES = (COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR, ENHANCED_SR)
"""The classes a report can have, the preferred one first."""

_OF_THE_REVISION = (
    *("SOPInstanceUID", "InstanceNumber", "ContentDate", "ContentTime"),
    *("InstanceCreationDate", "InstanceCreationTime", "PredecessorDocumentsSequence"),
)
_SERIES_NUMBER = {COMPREHENSIVE_3D_SR: 9100, COMPREHENSIVE_SR: 9101, ENHANCED_SR: 9102}


@dataclass(frozen=True)
class EncodedReport:
    """A finished report; `content` is the whole DICOM file (PS3.10), Explicit VR Little Endian."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    content: bytes


def build(
    images: Sequence[ImageResult],
    node: ObserverDevice,
    made_at: datetime,
    revision: int,
    predecessor: Predecessor | None,
    *,
    newest: int = 0,
    taken: Collection[str] = (),
    names_answer: bool = False,
) -> EncodedReport:
    """Build the report of one study revision as Comprehensive 3D SR.

    Parameters
    ----------
    images
        All images of the study so far, in the order they were received. Two images with the same SOP
        Instance UID get a measurement group each and one entry in the image library. The model of the last
        one is the observer; each model that took part is in Contributing Equipment Sequence.
    node
        The device that makes the report.
    made_at
        Content date and time, with a time zone; whole seconds. Written in the zone of the source, else of the
        node, else as UTC without naming a zone, because the source's times have none either.
    revision
        Instance Number (0020,0013), from 1.
    predecessor
        The report that this one supersedes.
    newest
        Which of `images` has the Patient and Study attributes that count; others may contradict it.
    taken
        SOP Instance UIDs of earlier revisions.
    names_answer
        Whether Series Description says the answer. Then revisions with another answer have another series.

    Raises
    ------
    InvalidReport
        When there are no images or they belong to two studies, a UID is missing or is not one, `made_at` has
        no time zone, `revision` is not positive, or `predecessor` is no report of this study.
    """
    _check(images, made_at, revision)
    sources = [open_header(image.header) for image in images]
    study = _study_of(sources)
    device = node.device_uid(images[-1].algorithm)
    answer = [WORDS[study_decision(images)]] if names_answer else []
    series = uid("series", SCHEMA, study, device, node.purpose, COMPREHENSIVE_3D_SR, *answer)
    about = sources[newest]
    report = patient_and_study(about)
    report.SOPClassUID = COMPREHENSIVE_3D_SR
    instance = _instance_uid(series, images, sources, node)
    report.SOPInstanceUID = _corrected(instance, revision, predecessor, taken)
    report.SeriesInstanceUID = series
    zone = timezone_of(about) or node.offset_at(made_at)
    if zone:
        report.TimezoneOffsetFromUTC = zone
    when = made_at.astimezone(_zone(zone))
    report.SeriesDescription = " ".join(["AI pneumonia", *answer, *_not_for_diagnosis(node)])
    _add_series_and_equipment(report, images, node, when)
    _add_document(report, when, revision)
    report.ContentQualification = node.purpose
    heat_maps = heat_map_uids(series, report.SOPInstanceUID, images)
    report.CurrentRequestedProcedureEvidenceSequence = [_evidence(study, sources, heat_maps.values())]
    if requested := requests(about):
        report.ReferencedRequestSequence = requested
    if predecessor is not None:
        report.PredecessorDocumentsSequence = [_predecessor_item(predecessor, study)]
    if uses_private_codes(images):
        report.CodingSchemeIdentificationSequence = [_private_scheme(node)]
    report.update(content_tree(images, sources, node, about, {at: one for at, (_, one) in heat_maps.items()}))
    return _finished(report)


def says_the_same(one: bytes, other: bytes) -> bool:
    """Tell whether two revisions differ in nothing but their numbers, times and predecessors.

    Raises
    ------
    InvalidReport
        When either is no report of this node.
    """
    return _without_revision(one) == _without_revision(other)


def _without_revision(content: bytes) -> bytes:
    report = parsed(content)
    for keyword in _OF_THE_REVISION:
        report.pop(keyword, None)
    for item in report.get("ContributingEquipmentSequence", []):
        item.pop("ContributionDateTime", None)
    return encode(report)


def as_class(content: bytes, sop_class_uid: str) -> EncodedReport:
    """Return the report as an object of another class, for a destination that refuses the preferred one.

    It is the same document with the UIDs, series and predecessor of its class; these follow from those of the
    preferred class alone, so the chain of revisions is whole in each class. A file that already has the class
    comes back unchanged.

    Parameters
    ----------
    content
        What `build` returned, or what this function returned for the same class.
    sop_class_uid
        One of `REPORT_CLASSES`.

    Raises
    ------
    InvalidReport
        When `content` is no report of this node, or has neither the preferred class nor the one asked for.
    """
    report = parsed(content)
    if sop_class_uid not in REPORT_CLASSES:
        raise InvalidReport(f"{sop_class_uid} is no class of a report")
    if report.SOPClassUID == sop_class_uid:
        return EncodedReport(
            sop_class_uid, str(report.SOPInstanceUID), str(report.SeriesInstanceUID), content
        )
    if report.SOPClassUID != COMPREHENSIVE_3D_SR:
        raise InvalidReport("only a Comprehensive 3D SR can become a report of another class")
    report.SOPClassUID = sop_class_uid
    report.SOPInstanceUID = _uid_in(sop_class_uid, report.SOPInstanceUID)
    report.SeriesInstanceUID = _uid_in(sop_class_uid, report.SeriesInstanceUID)
    report.SeriesNumber = _SERIES_NUMBER[sop_class_uid]
    _convert_predecessor(report, sop_class_uid)
    return _finished(report)


def _check(images: Sequence[ImageResult], made_at: datetime, revision: int) -> None:
    if not images:
        raise InvalidReport("a report needs at least one image")
    if made_at.utcoffset() is None:
        raise InvalidReport("made_at needs a time zone")
    if revision < 1:
        raise InvalidReport(f"revision needs 1 or more: {revision}")


def _study_of(sources: Sequence[Source]) -> str:
    studies = {uid_of(source, "StudyInstanceUID") for source in sources}
    if len(studies) > 1:
        raise InvalidReport(f"one report, one study; got {', '.join(sorted(studies))}")
    return studies.pop()


def _instance_uid(
    series: str, images: Sequence[ImageResult], sources: Sequence[Source], node: ObserverDevice
) -> str:
    outcomes = sorted(
        (
            uid_of(source, "SOPInstanceUID"),
            node.device_uid(image.algorithm),
            image.algorithm.threshold_text,
            str(image.probability is not None),
            repr((image.reason.code, image.reason.failed) if image.reason else None),
        )
        for image, source in zip(images, sources, strict=True)
    )
    return uid("report", series, outcomes)


def _corrected(
    instance: str, revision: int, predecessor: Predecessor | None, earlier: Collection[str]
) -> str:
    """Return another UID where only a score, a name or an order changed since an earlier revision.

    A PACS drops new content under a UID that it has.
    """
    if instance in earlier:
        return uid("correction", instance, revision)
    taken = {instance, *(uid("correction", instance, earlier) for earlier in range(1, revision))}
    if predecessor is not None and predecessor.sop_instance_uid in taken:
        return uid("correction", instance, revision)
    return instance


def _zone(offset: str | None) -> timezone:
    if offset is None:
        return UTC
    minutes = int(offset[1:3]) * 60 + int(offset[3:])
    return timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes))


def _not_for_diagnosis(node: ObserverDevice) -> list[str]:
    return ["- NOT FOR DIAGNOSIS"] if node.purpose == "RESEARCH" else []


def _add_series_and_equipment(
    report: Dataset, images: Sequence[ImageResult], node: ObserverDevice, when: datetime
) -> None:
    """SR Document Series and General Equipment modules (PS3.3 C.17.1, C.7.5.1).

    All revisions share the series, so it has no date or time: these would differ.
    """
    newest = images[-1].algorithm
    report.Modality = "SR"
    report.SeriesNumber = _SERIES_NUMBER[COMPREHENSIVE_3D_SR]
    report.ReferencedPerformedProcedureStepSequence = []
    report.Manufacturer, report.ManufacturerModelName = node.manufacturer, node.model_name
    report.DeviceSerialNumber = newest.sha256[:16]
    report.SoftwareVersions = [node.software_version, f"{newest.name} {newest.version}"[:64].rstrip()]
    algorithms = {node.device_uid(image.algorithm): image.algorithm for image in images}
    report.ContributingEquipmentSequence = [_equipment(node, a, when) for a in algorithms.values()]


def _equipment(node: ObserverDevice, algorithm: Algorithm, when: datetime) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [codes.PROCESSING_EQUIPMENT]
    item.Manufacturer, item.ManufacturerModelName = node.manufacturer, algorithm.name
    item.SoftwareVersions = [algorithm.version, algorithm.sha256]
    item.DeviceUID = node.device_uid(algorithm)
    item.ContributionDateTime = when.strftime("%Y%m%d%H%M%S%z")
    item.ContributionDescription = "Pneumonia classification"
    return item


def _add_document(report: Dataset, when: datetime, revision: int) -> None:
    """SR Document General module (PS3.3 C.17.2)."""
    report.InstanceNumber = revision
    report.ContentDate, report.ContentTime = _date_and_time(when)
    report.InstanceCreationDate, report.InstanceCreationTime = _date_and_time(when)
    report.CompletionFlag, report.VerificationFlag = "COMPLETE", "UNVERIFIED"
    report.PreliminaryFlag = "PRELIMINARY"
    report.PerformedProcedureCodeSequence = []


def _date_and_time(when: datetime) -> tuple[str, str]:
    return when.strftime("%Y%m%d"), when.strftime("%H%M%S")


def _evidence(study: str, sources: Sequence[Source], heat_maps: Iterable[tuple[str, str]]) -> Dataset:
    """Return the hierarchical references to each image and each heat map, once (PS3.3 C.17.2.1)."""
    series: dict[str, dict[str, str]] = {}
    seen: set[str] = set()
    for source in sources:
        instance = uid_of(source, "SOPInstanceUID")
        if instance not in seen:
            seen.add(instance)
            instances = series.setdefault(uid_of(source, "SeriesInstanceUID"), {})
            instances[instance] = uid_of(source, "SOPClassUID")
    for of_series, instance in heat_maps:
        series.setdefault(of_series, {})[instance] = SecondaryCaptureImageStorage
    return _references(study, series)


def _references(study: str, series: dict[str, dict[str, str]]) -> Dataset:
    """Return one item of the Hierarchical SOP Instance Reference macro: series -> instance -> class."""
    item = Dataset()
    put(item, "StudyInstanceUID", study.encode())
    item.ReferencedSeriesSequence = []
    for series_uid, instances in series.items():
        series_item = Dataset()
        put(series_item, "SeriesInstanceUID", series_uid.encode())
        series_item.ReferencedSOPSequence = []
        for instance, sop_class in instances.items():
            reference = Dataset()
            put(reference, "ReferencedSOPClassUID", sop_class.encode())
            put(reference, "ReferencedSOPInstanceUID", instance.encode())
            series_item.ReferencedSOPSequence.append(reference)
        item.ReferencedSeriesSequence.append(series_item)
    return item


def _predecessor_item(predecessor: Predecessor, study: str) -> Dataset:
    if predecessor.study_instance_uid != study or predecessor.sop_class_uid not in REPORT_CLASSES:
        raise InvalidReport(f"{predecessor.sop_instance_uid} is no earlier report of study {study}")
    instance = {predecessor.sop_instance_uid: predecessor.sop_class_uid}
    return _references(study, {predecessor.series_instance_uid: instance})


def _private_scheme(node: ObserverDevice) -> Dataset:
    item = Dataset()
    item.CodingSchemeDesignator = codes.PRIVATE_SCHEME
    item.CodingSchemeName = codes.PRIVATE_SCHEME_NAME
    item.CodingSchemeVersion = "1"
    item.CodingSchemeResponsibleOrganization = node.manufacturer
    return item


def _finished(report: Dataset) -> EncodedReport:
    return EncodedReport(
        str(report.SOPClassUID), str(report.SOPInstanceUID), str(report.SeriesInstanceUID), part10(report)
    )


def parsed(content: bytes) -> Dataset:
    """Return the data set of a report of this node, of whatever class.

    Raises
    ------
    InvalidReport
        When it is none.
    """
    try:
        report = parse(content)
    except ValueError as error:
        raise InvalidReport(f"not a report of this node: {error}") from error
    if report.get("SOPClassUID") not in REPORT_CLASSES:
        raise InvalidReport(f"not a report of this node: SOP class {report.get('SOPClassUID')}")
    return report


def _uid_in(sop_class_uid: str, preferred: str) -> str:
    return uid("as class", sop_class_uid, preferred)


def _convert_predecessor(report: Dataset, sop_class_uid: str) -> None:
    for study in report.get("PredecessorDocumentsSequence", []):
        for series in study.ReferencedSeriesSequence:
            for reference in series.ReferencedSOPSequence:
                if reference.ReferencedSOPClassUID == COMPREHENSIVE_3D_SR:
                    series.SeriesInstanceUID = _uid_in(sop_class_uid, series.SeriesInstanceUID)
                    reference.ReferencedSOPClassUID = sop_class_uid
                    reference.ReferencedSOPInstanceUID = _uid_in(
                        sop_class_uid, reference.ReferencedSOPInstanceUID
                    )
