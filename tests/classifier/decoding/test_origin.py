"""Originals, what was derived of them, and results of programs, the node's own among them."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import Comprehensive3DSRStorage

from classifier.config import OWN_EQUIPMENT
from classifier.reasons import Bearing, Reason
from pacs_node.reporting.report import ObserverDevice
from tests.conftest import code, radiograph
from tests.helpers.eligibility import COLOUR, made, outcome, reference

SECONDARY = ["DERIVED", "SECONDARY"]


def equipment(maker: str, model: str, purpose: str = "109102") -> Dataset:
    item = Dataset()
    item.Manufacturer, item.ManufacturerModelName = maker, model
    item.PurposeOfReferenceCodeSequence = [code(purpose, "DCM", "")]
    return item


@pytest.mark.parametrize(
    ("kind", "image_type", "expected"),
    [
        ("CR", ["ORIGINAL", "PRIMARY"], "PA"),
        ("CR", ["DERIVED", "PRIMARY"], "PA"),
        ("DX", ["ORIGINAL", "PRIMARY", "", "STANDARD"], "PA"),
        ("CR", [], "PA"),
        ("SC", SECONDARY, "PA"),
        ("CR", SECONDARY, "MAYBE_DERIVED"),
        ("DX", ["derived", "secondary "], "MAYBE_DERIVED"),
        ("DX", ["ORIGINAL", "PRIMARY", "LOCALIZER"], "NOT_ORIGINAL"),
        ("SC", [*SECONDARY, "LOCALIZER"], "NOT_ORIGINAL"),
        ("DX", ["DERIVED", "PRIMARY", "", "SOFT_TISSUE"], "NOT_ORIGINAL"),
        ("DX", ["DERIVED", "PRIMARY", "ENERGY_SUBTRACTION"], "NOT_ORIGINAL"),
        ("DX", ["DERIVED", "PRIMARY", "BONE"], "NOT_ORIGINAL"),
        ("DX", ["DERIVED", "PRIMARY", "BONE_SUPPRESSED"], "NOT_ORIGINAL"),
        ("DX", ["DERIVED", "PRIMARY", "", "HEATMAP"], "DERIVED_RESULT"),
    ],
)
def test_image_type(kind: str, image_type: list[str], expected: str) -> None:
    assert outcome(made(kind, ImageType=image_type)) == expected


def test_subtraction_told_elsewhere() -> None:
    subtraction = codes.DCM.PixelByPixelSubtraction
    derived = [code(subtraction.value, "DCM", subtraction.meaning)]
    assert outcome(radiograph(DerivationCodeSequence=derived)) == "NOT_ORIGINAL"
    assert outcome(radiograph(SeriesDescription="Chest PA bone suppression")) == "NOT_ORIGINAL"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("113040", "PA"), ("113086", "PA"), ("113076", "MAYBE_DERIVED"), ("X1", "MAYBE_DERIVED")],
)
def test_derivation_codes(value: str, expected: str) -> None:
    assert outcome(radiograph(DerivationCodeSequence=[code(value, "DCM", "")])) == expected


@pytest.mark.parametrize("kind", ["CR", "DX", "SC"])
@pytest.mark.parametrize(
    "words",
    [
        *("AI CXR HEATMAP", "Heat map", "Grad-CAM", "saliency map", "Chest PA annotated", "CAD overlay"),
        *(
            "Wärmebild",
            "carte de chaleur",
            "Mapa de calor",
            "热图",
            "ヒートマップ",
            "히트맵",
            "Lunit INSIGHT CXR",
        ),
    ],
)
@pytest.mark.parametrize("keyword", ["SeriesDescription", "DerivationDescription", "ImageComments"])
def test_results_by_name(kind: str, words: str, keyword: str) -> None:
    assert outcome(made(kind, SpecificCharacterSet="ISO_IR 192", **{keyword: words})) == "DERIVED_RESULT"


@pytest.mark.parametrize(
    "tags",
    [
        {"SeriesDescription": "CAD"},
        {"SeriesDescription": "Chest AI"},
        {"SourceImageSequence": [reference()]},
        {"ReferencedImageSequence": [reference()]},
        {"DerivationCodeSequence": [code("113076", "DCM", "Segmentation")]},
        {"ConversionType": "SYN"},
        {"ConversionType": "DRW"},
        {"ConversionType": "WSD", **COLOUR},
        {"ContributingEquipmentSequence": [equipment("Other", "Program")]},
        {"SecondaryCaptureDeviceManufacturer": "Lunit"},
    ],
    ids=str,
)
def test_secondary_captures_made_by_programs(tags: dict[str, Any]) -> None:
    assert outcome(made("SC", **tags)) == "DERIVED_RESULT"


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"ConversionType": "DF"}, "PA"),
        ({"ConversionType": "DF", "BurnedInAnnotation": "YES"}, "PA"),
        ({"ConversionType": "WSD"}, "PA"),
        ({"ConversionType": "DI", "SeriesDescription": "Chest PA film"}, "PA"),
        ({"ConversionType": "WSD", "BurnedInAnnotation": "YES"}, "MAYBE_DERIVED"),
        ({"ConversionType": "SD"}, "MAYBE_DERIVED"),
        ({"ConversionType": "DF", **COLOUR}, "MAYBE_DERIVED"),
    ],
)
def test_secondary_captures_of_films(tags: dict[str, Any], expected: str) -> None:
    assert outcome(made("SC", **tags)) == expected


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"SourceImageSequence": [reference()]}, "PA"),
        ({"AcquisitionDeviceProcessingDescription": "AI noise reduction"}, "PA"),
        ({"ContributingEquipmentSequence": [equipment("Other", "Console")]}, "PA"),
        ({"StudyDescription": "CHEST, h/o CAD"}, "PA"),
        ({"SeriesDescription": "Chest PA AI"}, "MAYBE_DERIVED"),
        ({"SeriesDescription": "Chest PA AI", "ImageType": SECONDARY}, "DERIVED_RESULT"),
        ({"ImageType": SECONDARY, **COLOUR}, "DERIVED_RESULT"),
        (COLOUR, "MAYBE_DERIVED"),
    ],
)
@pytest.mark.parametrize("kind", ["CR", "DX"])
def test_radiographs_that_tell_of_processing(kind: str, tags: dict[str, Any], expected: str) -> None:
    assert outcome(made(kind, **tags)) == expected


@pytest.mark.parametrize(
    "tags",
    [
        dict(zip(("Manufacturer", "ManufacturerModelName"), OWN_EQUIPMENT, strict=True)),
        {
            "SecondaryCaptureDeviceManufacturer": OWN_EQUIPMENT[0].upper(),
            "SecondaryCaptureDeviceManufacturerModelName": OWN_EQUIPMENT[1],
        },
        {"ContributingEquipmentSequence": [equipment(*OWN_EQUIPMENT)]},
    ],
    ids=["manufacturer", "capture device", "contributing equipment"],
)
@pytest.mark.parametrize("kind", ["SC", "DX"])
def test_results_of_the_node_itself(kind: str, tags: dict[str, Any]) -> None:
    assert outcome(made(kind, **tags)) == "OWN_RESULT"
    assert outcome(made(kind, **tags, BodyPartExamined="HAND")) == "OWN_RESULT"


def test_reports_of_the_node_are_named_and_those_of_others_are_not() -> None:
    node = ObserverDevice(software_version="1", station_name="X")
    own = {"Manufacturer": node.manufacturer, "ManufacturerModelName": node.model_name}
    report: dict[str, Any] = {"SOPClassUID": Comprehensive3DSRStorage, "Modality": "SR"}
    assert outcome(made(**report)) == "NOT_RADIOGRAPH"
    assert outcome(made(**report, **own)) == "OWN_RESULT"


def test_only_what_is_certain_leaves_the_study_alone() -> None:
    settled = {reason for reason in Reason if reason.bearing is Bearing.SETTLED}
    assert settled == {Reason.NOT_RADIOGRAPH, Reason.NOT_CHEST, Reason.NOT_FRONTAL, Reason.NOT_ORIGINAL}
    results = {reason for reason in Reason if reason.bearing is Bearing.NO_IMAGE}
    assert results == {Reason.OWN_RESULT, Reason.DERIVED_RESULT}
