"""The content tree of the report: TID 1500 with one TID 1501 measurement group for each image (PS3.16).

Making a content item takes a third of a millisecond. Those that say the same in nearly every report are made
once and stand in many trees; nothing may change them after that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    ContainerContentItem,
    ContentSequence,
    DateContentItem,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    ImageContentItem,
    LanguageOfContentItemAndDescendants,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    NumContentItem,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TimeContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import SecondaryCaptureImageStorage

from pacs_node.reporting import codes
from pacs_node.reporting.conclusion import comment, conclusion, study_decision
from pacs_node.reporting.encoding import put
from pacs_node.reporting.input import SCHEMA, Algorithm, ImageResult, ObserverDevice, uid
from pacs_node.reporting.patient_study import (
    procedure_codes,
    uid_of,
)
from pacs_node.reporting.source_header import Source

_CONTAINS = RelationshipTypeValues.CONTAINS
_ACQUIRED = RelationshipTypeValues.HAS_ACQ_CONTEXT
_LUNG = FindingSite(codes.LUNG)
_STAND_IN = "1.2.3"  # highdicom validates UIDs; `_refer` then puts the source's own, which may not pass


def content(
    images: Sequence[ImageResult],
    sources: Sequence[Source],
    node: ObserverDevice,
    about: Source,
    heat_maps: Mapping[int, str],
) -> Dataset:
    """Return the root content item.

    Parameters
    ----------
    images
        The images with their answers, in the order of the report.
    sources
        The header of each of `images`, opened.
    node
        The device observer.
    about
        That of `sources` which says what procedure it was.
    heat_maps
        SOP Instance UID of the heat map, by position in `images`, of those that have one.
    """
    distinct = list({uid_of(source, "SOPInstanceUID"): source for source in reversed(sources)}.values())[::-1]
    report = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=_observer(node, images[-1].algorithm)),
        procedure_reported=codes.CHEST_X_RAY,
        imaging_measurements=_groups(images, sources, node, heat_maps),
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(codes.ENGLISH),
    )
    root: Dataset = report[0]
    _report_procedures(root, procedure_codes(about))
    tree = root.ContentSequence
    # What people read comes first; TID 1500 is extensible, and its own rows stay in order
    tree.insert(len(tree) - 1, TextContentItem(codes.CONCLUSION, conclusion(images, node.purpose), _CONTAINS))
    tree.insert(len(tree) - 1, _image_library(distinct))
    root.ContentSequence.append(_answer(images, node))
    return root


def uses_private_codes(images: Sequence[ImageResult]) -> bool:
    """Tell whether the tree has codes of 99CXRAI."""
    return any(image.reason for image in images)


@lru_cache(maxsize=8)
def _observer(node: ObserverDevice, algorithm: Algorithm) -> Any:
    attributes = DeviceObserverIdentifyingAttributes(
        uid=node.device_uid(algorithm),
        name=node.station_name,
        manufacturer_name=node.manufacturer,
        model_name=node.model_name,
        serial_number=algorithm.sha256[:16],
    )
    return ObserverContext(codes.DEVICE, attributes)


def _report_procedures(root: Dataset, procedures: list[Dataset]) -> None:
    """Replace the one Procedure Reported by those of the source, with the bytes of their meanings."""
    if not procedures:
        return
    tree = root.ContentSequence
    at = next(i for i, item in enumerate(tree) if item.name.value == "121058")
    name, relation = tree[at].name, RelationshipTypeValues.HAS_CONCEPT_MOD
    del tree[at]
    for procedure in reversed(procedures):
        item = CodeContentItem(name, codes.CHEST_X_RAY, relation)
        item.ConceptCodeSequence = Items([procedure])
        tree.insert(at, item)


def _refer(item: Dataset, source: Source) -> Dataset:
    reference = Dataset()
    put(reference, "ReferencedSOPClassUID", uid_of(source, "SOPClassUID").encode())
    put(reference, "ReferencedSOPInstanceUID", uid_of(source, "SOPInstanceUID").encode())
    item.ReferencedSOPSequence = Items([reference])
    return item


# Image library, TID 1600


def _image_library(sources: Sequence[Source]) -> Any:
    group = _container(codes.IMAGE_LIBRARY_GROUP, [_library_entry(source) for source in sources])
    return _container(codes.IMAGE_LIBRARY, [group])


def _container(name: Any, items: Sequence[Any]) -> Any:
    container = ContainerContentItem(name, relationship_type=_CONTAINS)
    container.ContentSequence = ContentSequence(items)
    return container


def _library_entry(source: Source) -> Any:
    """TID 1601, with the descriptors of TID 1602 and 1603 that the source has."""
    item = ImageContentItem(codes.SOURCE, _STAND_IN, _STAND_IN, relationship_type=_CONTAINS)
    item.ContentSequence = ContentSequence(
        [*_coded_descriptors(source), *_dates(source), *_sizes(source), *_orientation(source)]
    )
    return _refer(item, source)


def _coded_descriptors(source: Source) -> list[Any]:
    by_class = codes.MODALITY_OF_CLASS.get(uid_of(source, "SOPClassUID"))
    modality = by_class or codes.MODALITIES.get(source.ascii("Modality"), codes.OTHER_MODALITY)
    region = codes.CHEST if source.ascii("BodyPartExamined").upper() in ("CHEST", "THORAX") else None
    laterality = codes.LATERALITIES.get(source.ascii("ImageLaterality") or source.ascii("Laterality"))
    descriptors = (
        (codes.MODALITY, modality),
        (codes.TARGET_REGION, region),
        (codes.IMAGE_LATERALITY, laterality),
        (codes.IMAGE_VIEW, _view(source)),
    )
    return [_descriptor(name, value) for name, value in descriptors if value is not None]


@lru_cache(maxsize=64)
def _descriptor(name: Any, value: Any) -> Any:
    return CodeContentItem(name, value, _ACQUIRED)


def _view(source: Source) -> Any:
    coded = (
        (item.ascii("CodingSchemeDesignator"), item.ascii("CodeValue"))
        for item in source.items("ViewCodeSequence")
    )
    known = (codes.VIEW_CODES[code] for code in coded if code in codes.VIEW_CODES)
    return codes.VIEWS.get(source.ascii("ViewPosition").upper()) or next(known, None)


def _dates(source: Source) -> list[Any]:
    made = []
    for name, keyword in ((codes.STUDY_DATE, "StudyDate"), (codes.ACQUISITION_DATE, "AcquisitionDate")):
        if value := source.text(keyword):
            made.append(DateContentItem(name, "20000101", _ACQUIRED))
            put(made[-1], "Date", value)
    for name, keyword in ((codes.STUDY_TIME, "StudyTime"), (codes.ACQUISITION_TIME, "AcquisitionTime")):
        if value := source.text(keyword):
            made.append(TimeContentItem(name, "000000", _ACQUIRED))
            put(made[-1], "Time", value)
    return made


def _sizes(source: Source) -> list[Any]:
    sizes = ((codes.PIXEL_DATA_ROWS, "Rows"), (codes.PIXEL_DATA_COLUMNS, "Columns"))
    return [
        _number(name, str(source.integer(keyword)), codes.PIXELS)
        for name, keyword in sizes
        if source.integer(keyword)
    ]


def _orientation(source: Source) -> list[Any]:
    """Patient Orientation and Imager Pixel Spacing; nothing where they are broken."""
    orientation = source.values("PatientOrientation")
    items = [
        TextContentItem(name, value, _ACQUIRED)
        for name, value in zip((codes.ORIENTATION_ROW, codes.ORIENTATION_COLUMN), orientation, strict=False)
        if len(orientation) == 2
    ]
    spacing = source.values("ImagerPixelSpacing")
    if len(spacing) == 2 and all(0 < float(value) < 100 for value in spacing):
        for name, value in zip((codes.VERTICAL_SPACING, codes.HORIZONTAL_SPACING), spacing, strict=True):
            items.append(_number(name, value, codes.MILLIMETRE))
    return items


def _number(name: Any, value: str, unit: Any) -> Any:
    return _exactly(NumContentItem(name, 1, unit, relationship_type=_ACQUIRED), value)


def _exactly(item: Any, value: str) -> Any:
    # The decimal string itself: from a float, highdicom writes the nearest double beside it
    item.MeasuredValueSequence[0].NumericValue = value
    return item


# Measurement groups, TID 1501


def _groups(
    images: Sequence[ImageResult],
    sources: Sequence[Source],
    node: ObserverDevice,
    heat_maps: Mapping[int, str],
) -> list[Any]:
    uids = [uid_of(source, "SOPInstanceUID") for source in sources]
    groups = []
    for i, image in enumerate(images):
        earlier = uids.index(uids[i])
        label = f"Pneumonia image {i + 1} of {len(images)}"
        if earlier < i:
            label += f", another object received under the SOP Instance UID of image {earlier + 1}"
        tracking = uid("tracking", uids[i], uids[:i].count(uids[i]), image.algorithm.name)
        groups.append(_group(image, sources[earlier], TrackingIdentifier(tracking, label), node))
        if i in heat_maps:
            groups[-1][0].ContentSequence.append(_explanation(heat_maps[i]))
    return groups


def _group(image: ImageResult, source: Source, tracking: Any, node: ObserverDevice) -> Any:
    positive = image.decision == "positive"
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=tracking,
        # Viewers print "Finding: Pneumonia" without its evaluation, so a negative must not have the item
        finding_type=codes.PNEUMONIA if positive else None,
        finding_sites=[_LUNG],
        algorithm_id=_algorithm(image.algorithm, node),
        measurements=_measurements(image),
        qualitative_evaluations=_evaluations(image),
        source_images=[_refer(SourceImageForMeasurementGroup(_STAND_IN, _STAND_IN), source)],
    )


def _explanation(heat_map: str) -> Any:
    """TID 1501 row 9d."""
    return ImageContentItem(
        codes.VISUAL_EXPLANATION, SecondaryCaptureImageStorage, heat_map, relationship_type=_CONTAINS
    )


@lru_cache(maxsize=8)
def _algorithm(algorithm: Algorithm, node: ObserverDevice) -> Any:
    """TID 4019."""
    return AlgorithmIdentification(
        name=algorithm.name,
        version=algorithm.version,
        family=codes.ARTIFICIAL_INTELLIGENCE,
        manufacturer=node.manufacturer,
        parameters=[
            f"checkpoint sha256 = {algorithm.sha256}",
            f"decision threshold = {algorithm.threshold_text} (Present from this probability on)",
            f"preprocessing = {algorithm.preprocessing}",
            f"schema = {SCHEMA}",
        ],
    )


def _measurements(image: ImageResult) -> list[Any]:
    """Certainty and threshold; none when not scored, since highdicom cannot read a NUM without value back."""
    if image.percent is None:
        return []
    certainty = Measurement(codes.CERTAINTY, 1, codes.PERCENT)
    # The number says what it is the certainty of, even out of its group
    of = CodeContentItem(codes.FINDING, codes.PNEUMONIA, RelationshipTypeValues.HAS_CONCEPT_MOD)
    certainty[0].ContentSequence = ContentSequence([of])
    threshold = Measurement(codes.THRESHOLD, 1, codes.PERCENT)
    _exactly(certainty[0], image.percent)
    _exactly(threshold[0], image.algorithm.threshold_percent)
    return [certainty, threshold]


def _evaluations(image: ImageResult) -> list[Any]:
    failed = image.reason is not None and image.reason.failed
    summary = codes.FAILED if failed else codes.NOT_ATTEMPTED
    why = codes.WHY_NOT_SCORED
    if image.probability is not None:
        summary, why = codes.SUCCEEDED, codes.WHY_UNDETERMINED
    evaluations = [
        _evaluation(codes.PNEUMONIA, codes.ANSWERS[image.decision]),
        _evaluation(codes.SUMMARY_OF_DETECTIONS, summary),
    ]
    if image.reason is not None:
        # Made anew: codes are equal whatever their meanings
        reason = codes.private(image.reason.code, image.reason.meaning)
        evaluations.append(QualitativeEvaluation(why, reason))
    return evaluations


@lru_cache(maxsize=64)
def _evaluation(name: Any, value: Any) -> Any:
    return QualitativeEvaluation(name, value)


# The study's answer, TID 1500 rows 12 to 14


def _answer(images: Sequence[ImageResult], node: ObserverDevice) -> Any:
    answer = CodeContentItem(codes.PNEUMONIA, codes.ANSWERS[study_decision(images)], _CONTAINS)
    said = TextContentItem(codes.COMMENT, comment(images, node.purpose), _CONTAINS)
    return _container(codes.QUALITATIVE_EVALUATIONS, [answer, said])
