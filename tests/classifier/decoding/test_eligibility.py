"""Eligibility: which images are scored, and for which named reason the others are not."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    CTImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
)

from classifier.decoding.decode import PROJECTION_RADIOGRAPHS, Eligibility, check
from classifier.errors import NotScorable
from classifier.reasons import Reason
from tests.conftest import code, radiograph
from tests.helpers.eligibility import LENIENT, STRICT, made, outcome

CHEST = code("816094009", "SCT", "Chest")
# What the factory says about body part and view beside Body Part Examined and View Position
SILENT_PART: dict[str, Any] = dict.fromkeys(
    ("BodyPartExamined", "AnatomicRegionSequence", "StudyDescription", "ProcedureCodeSequence")
) | {"RequestAttributesSequence": None}
SILENT_VIEW: dict[str, Any] = dict.fromkeys(("ViewPosition", "ViewCodeSequence", "PatientOrientation"))


# --- kind of object


@pytest.mark.parametrize("kind", ["CR", "DX", "SC"])
@pytest.mark.parametrize("view", ["PA", "AP"])
def test_frontal_chest_is_scored(kind: str, view: str) -> None:
    view_code = {"PA": "272479007", "AP": "399348003"}[view]
    assert outcome(radiograph(kind, view=view, ViewCodeSequence=[code(view_code, "SCT", "")])) == view


@pytest.mark.parametrize(
    "sop_class", [CTImageStorage, DigitalMammographyXRayImageStorageForPresentation, None, ""]
)
def test_other_objects(sop_class: str | None) -> None:
    ds = radiograph()
    ds.SOPClassUID = sop_class
    assert outcome(ds) == "NOT_RADIOGRAPH"


def test_projection_radiographs_are_the_storage_classes_of_them() -> None:
    assert len(PROJECTION_RADIOGRAPHS) == 8
    assert {UID(uid).name.split(" ")[0] for uid in PROJECTION_RADIOGRAPHS} == {
        "Computed",
        "Digital",
        "Secondary",
        "Multi-frame",
    }


@pytest.mark.parametrize(
    ("kind", "modality", "expected"),
    [
        ("CR", "CR", "PA"),
        ("CR", "RG", "PA"),
        ("CR", "cr ", "PA"),
        ("CR", None, "PA"),
        ("CR", "CT", "NOT_RADIOGRAPH"),
        ("DX", "MG", "NOT_RADIOGRAPH"),
        ("SC", "DX", "PA"),
        ("SC", "US", "NOT_RADIOGRAPH"),
        ("CR", "DR", "NO_MODALITY"),
        ("DX", "RF", "NO_MODALITY"),
        ("SC", "XYZ", "NO_MODALITY"),
        ("SC", "OT", "PA"),
        ("SC", None, "PA"),
    ],
)
def test_modality(kind: str, modality: str | None, expected: str) -> None:
    assert outcome(made(kind, Modality=modality)) == expected


def test_secondary_capture_of_unknown_modality_needs_coded_tags() -> None:
    nothing: dict[str, Any] = SILENT_PART | SILENT_VIEW
    assert outcome(made("SC", **(nothing | {"Modality": "OT"}))) == "NOT_RADIOGRAPH"
    assert outcome(made("SC", Modality="OT", BodyPartExamined="HAND")) == "NOT_RADIOGRAPH"


def test_a_secondary_capture_of_unknown_modality_that_may_be_a_chest_film_is_a_doubt() -> None:
    nothing: dict[str, Any] = SILENT_PART | SILENT_VIEW
    film = nothing | {"Modality": "OT", "ConversionType": "DF"}
    assert outcome(made("SC", **film)) == "NO_BODY_PART"
    assert outcome(made("SC", **(nothing | {"Modality": "OT", "BodyPartExamined": "CHEST"}))) == "NO_VIEW"
    assert outcome(made("SC", **(nothing | {"Modality": "OT", "ViewPosition": "PA"}))) == "NO_BODY_PART"


def test_raw_images() -> None:
    assert outcome(radiograph("DX_PROCESSING")) == "FOR_PROCESSING"
    assert outcome(made("DX", PresentationIntentType="for processing")) == "FOR_PROCESSING"


@pytest.mark.parametrize(("frames", "expected"), [(None, "PA"), (0, "PA"), (1, "PA"), (2, "MULTI_FRAME")])
def test_number_of_frames(frames: int | None, expected: str) -> None:
    assert outcome(radiograph(NumberOfFrames=frames)) == expected
    capture = radiograph("SC", NumberOfFrames=frames)
    capture.SOPClassUID = MultiFrameGrayscaleByteSecondaryCaptureImageStorage
    assert outcome(capture) == expected


# --- body part


@pytest.mark.parametrize(
    "part", ["CHEST", "chest", " Chest ", "THORAX", "Torax", "LUNG", "LUNGS", "CHEST PA", "CXR", "PORTCHEST"]
)
@pytest.mark.parametrize("kind", ["CR", "SC"])
def test_chest_terms(kind: str, part: str) -> None:
    assert outcome(made(kind, **(SILENT_PART | {"BodyPartExamined": part}))) == "PA"


@pytest.mark.parametrize(
    "part",
    [
        "HAND",
        "EXTREMITY",
        "ABDOMEN",
        "TSPINE",
        "T-SPINE",
        "RIB",
        "BREAST",
        "FACE",
        "Handgelenk",
        "GENOU",
        "RODILLA",
        "KOLANO",
        "膝",
    ],
)
def test_other_parts_win_over_a_description_of_the_chest(part: str) -> None:
    assert outcome(made(BodyPartExamined=part, StudyDescription="CHEST PA")) == "NOT_CHEST"
    assert outcome(made(BodyPartExamined=part), LENIENT) == "NOT_CHEST"


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (code("51185008", "SCT", "Thoracic structure"), "PA"),
        (code("816094009", "SCT", ""), "PA"),
        (code("T-D3000", "SRT", "Chest"), "PA"),
        (code("T-D3000", "SNM3", "Thorax"), "PA"),
        (code("39607008", "SCT", "Lung"), "PA"),
        (code("C1", "99ACME", "Entire chest"), "PA"),
        (code("C1", "99ACME", ""), "NO_BODY_PART"),
        (code("113197003", "SCT", "Rib"), "NOT_CHEST"),
        (code("416550000", "SCT", "Chest and Abdomen"), "NO_BODY_PART"),
        (code("416550000", "SCT", ""), "NO_BODY_PART"),
        (code("1234567", "SCT", ""), "NO_BODY_PART"),
        (code("T-D8700", "SRT", ""), "NOT_CHEST"),
        (code("85562004", "SCT", ""), "NOT_CHEST"),
        (code("816094009", "99ACME", "Left hand"), "NOT_CHEST"),
        (Dataset(), "NO_BODY_PART"),
    ],
)
def test_anatomic_region(item: Dataset, expected: str) -> None:
    assert outcome(made("CR", **(SILENT_PART | {"AnatomicRegionSequence": [item]}))) == expected


def test_contradicting_coded_parts_are_a_doubt() -> None:
    assert outcome(made(BodyPartExamined="HAND", AnatomicRegionSequence=[CHEST])) == "NO_BODY_PART"
    assert outcome(made(BodyPartExamined=["CHEST", "HAND"])) == "NO_BODY_PART"


@pytest.mark.parametrize(
    ("part", "series"), [("CHEST", "Abdomen AP"), ("HAND", "Chest PA"), ("THORAX", "Knie links")]
)
def test_a_series_that_tells_another_body_part_is_a_doubt(part: str, series: str) -> None:
    assert outcome(made(BodyPartExamined=part, SeriesDescription=series)) == "NO_BODY_PART"


@pytest.mark.parametrize(
    "part",
    [
        *("CHESTABDOMEN", "CHEST_ABDOMEN", "TORSO", "TRUNK", "WHOLEBODY", "BABYGRAM", "HEART", "BRUST"),
        *("X", "XYZZY", "CHEST XYZZY", "THORACIC", "LEFT", "PA"),
    ],
)
@pytest.mark.parametrize("rules", [STRICT, LENIENT])
def test_a_part_that_is_not_understood_is_never_filled_by_a_text(part: str, rules: Eligibility) -> None:
    ds = made(BodyPartExamined=part, StudyDescription="CHEST PA", SeriesDescription="CHEST PA")
    with pytest.raises(NotScorable, match=re.escape(f'Body Part Examined is "{part}"')) as caught:
        check(ds, rules)
    assert caught.value.reason is Reason.NO_BODY_PART


@pytest.mark.parametrize("part", [None, "", "UNKNOWN", "Unspecified", "OTHER"])
@pytest.mark.parametrize(
    ("keyword", "description", "expected"),
    [
        ("StudyDescription", "XR Chest PA", "PA"),
        ("StudyDescription", "thorax p.a.", "PA"),
        ("StudyDescription", "胸部正面", "PA"),
        ("SeriesDescription", "PORTABLE_CHEST_AP", "PA"),
        ("ProtocolName", "CXR", "PA"),
        ("PerformedProcedureStepDescription", "Lungs", "PA"),
        ("StudyDescription", "Hand left", "NOT_CHEST"),
        ("StudyDescription", "Thoracic spine", "NOT_CHEST"),
        ("StudyDescription", "Chest and abdomen", "NO_BODY_PART"),
        ("StudyDescription", "Orchestra", "NO_BODY_PART"),
        ("StudyDescription", "", "NO_BODY_PART"),
    ],
)
def test_descriptions_speak_where_tags_are_silent(
    part: str | None, keyword: str, description: str, expected: str
) -> None:
    tags = SILENT_PART | {"BodyPartExamined": part, "SpecificCharacterSet": "ISO_IR 192"}
    tags[keyword] = description
    assert outcome(made(**tags)) == expected


def test_the_series_is_asked_before_the_study() -> None:
    tags = SILENT_PART | {"StudyDescription": "Trauma: chest", "SeriesDescription": "Pelvis"}
    assert outcome(made(**tags)) == "NOT_CHEST"


def test_procedure_code_of_the_chest() -> None:
    tags = SILENT_PART | {"ProcedureCodeSequence": [code("399208008", "SCT", "Plain chest X-ray")]}
    assert outcome(made(**tags)) == "PA"


def test_unknown_body_part_can_be_scored() -> None:
    ds = made(**SILENT_PART)
    assert outcome(ds) == "NO_BODY_PART"
    assert outcome(ds, Eligibility(unknown_body_part="score")) == "PA"


# --- view


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("PA", "PA"),
        (" pa", "PA"),
        ("P-A", "PA"),
        ("AP", "AP"),
        ("AP_SUPINE", "AP"),
        ("PA ERECT", "PA"),
        ("FRONTAL", "frontal"),
        (["AP", "PA"], "frontal"),
        ("FACE", "frontal"),
        ("FRENTE", "frontal"),
        ("LL", "NOT_FRONTAL"),
        ("RL", "NOT_FRONTAL"),
        ("LATERAL", "NOT_FRONTAL"),
        ("LAT", "NOT_FRONTAL"),
        ("LLD", "NOT_FRONTAL"),
        ("RLO", "NOT_FRONTAL"),
        ("LAO", "NOT_FRONTAL"),
        ("AP LORDOTIC", "NOT_FRONTAL"),
        ("AP AXIAL", "NOT_FRONTAL"),
        (["AP", "LAT"], "NO_VIEW"),
    ],
)
def test_view_position(position: Any, expected: str) -> None:
    tags = SILENT_VIEW | {"ViewPosition": position, "StudyDescription": "CHEST PA"}
    assert outcome(made(**tags)) == expected


def test_every_view_of_cid_4010() -> None:
    """Exactly antero-posterior, postero-anterior and frontal are frontal; the rest is not."""
    frontal = {"399348003": "AP", "272479007": "PA", "399033003": "frontal"}
    context_group = codes.cid4010
    for name in context_group.dir():
        concept = getattr(context_group, name)
        for meaning in (concept.meaning, ""):
            item = code(concept.value, "SCT", meaning)
            ds = made("DX", **(SILENT_VIEW | {"ViewCodeSequence": [item]}))
            assert outcome(ds) == frontal.get(concept.value, "NOT_FRONTAL"), concept


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (code("R-10206", "SRT", ""), "AP"),
        (code("R-10214", "SRT", ""), "PA"),
        (code("R-10202", "SNM3", ""), "frontal"),
        (code("R-10236", "SRT", ""), "NOT_FRONTAL"),
        (code("V1", "99ACME", "Postero-Anterior"), "PA"),
        (code("V1", "99ACME", "left lateral"), "NOT_FRONTAL"),
        (code("V1", "99ACME", "standard"), "NO_VIEW"),
        (Dataset(), "NO_VIEW"),
    ],
)
def test_view_code(item: Dataset, expected: str) -> None:
    assert outcome(made("DX", **(SILENT_VIEW | {"ViewCodeSequence": [item]}))) == expected


def test_two_frontal_views_leave_it_at_frontal() -> None:
    postero_anterior = code("272479007", "SCT", "postero-anterior")
    assert outcome(made("DX", ViewPosition="AP", ViewCodeSequence=[postero_anterior])) == "frontal"


def test_contradicting_views_are_a_doubt() -> None:
    lateral = code("399173006", "SCT", "left lateral")
    frontal = code("272479007", "SCT", "postero-anterior")
    assert outcome(made("DX", ViewPosition="PA", ViewCodeSequence=[lateral])) == "NO_VIEW"
    assert outcome(made("DX", ViewPosition="LL", ViewCodeSequence=[frontal])) == "NO_VIEW"
    assert outcome(made(ViewPosition="PA", PatientOrientation=["P", "F"])) == "NO_VIEW"
    assert outcome(made(ViewPosition="PA", SeriesDescription="Thorax seitl.")) == "NO_VIEW"
    assert outcome(made(ViewPosition=None, SeriesDescription="THORAX LAT")) == "NO_VIEW"
    wrong = code("272479007", "SCT", "left lateral")
    assert outcome(made("DX", **(SILENT_VIEW | {"ViewCodeSequence": [wrong]}))) == "NO_VIEW"


def test_modified_views_are_not_frontal() -> None:
    lordotic = code("399348003", "SCT", "antero-posterior")
    lordotic.ViewModifierCodeSequence = [code("1", "99ACME", "Lordotic")]
    assert outcome(made("DX", ViewPosition="AP", ViewCodeSequence=[lordotic])) == "NOT_FRONTAL"


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (["L", "F"], "frontal"),
        (["R", "F"], "frontal"),
        (["l", "fr"], "frontal"),
        (["P", "F"], "NOT_FRONTAL"),
        (["A", "F"], "NOT_FRONTAL"),
        (["LP", "F"], "NOT_FRONTAL"),
        (["L", "P"], "NOT_FRONTAL"),
        (["F", "L"], "frontal"),
        (["", ""], "NO_VIEW"),
        ("L", "NO_VIEW"),
        (None, "NO_VIEW"),
    ],
)
def test_patient_orientation_tells_the_plane(orientation: Any, expected: str) -> None:
    assert outcome(made(**(SILENT_VIEW | {"PatientOrientation": orientation}))) == expected


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("Chest PA", "PA"),
        ("CHEST_AP_PORTABLE", "AP"),
        ("chest postero-anterior", "PA"),
        ("CHESTPA", "PA"),
        ("Chest frontal", "frontal"),
        ("胸部正面", "frontal"),
        ("胸部側面", "NOT_FRONTAL"),
        ("Chest LAT", "NOT_FRONTAL"),
        ("Chest left lateral", "NOT_FRONTAL"),
        ("Chest PA and LAT", "NO_VIEW"),
        ("Chest 2 views", "NO_VIEW"),
        ("Chest bilateral", "NO_VIEW"),
    ],
)
def test_view_from_descriptions(description: str, expected: str) -> None:
    tags = SILENT_VIEW | {"SpecificCharacterSet": "ISO_IR 192", "SeriesDescription": description}
    assert outcome(made(**tags)) == expected


def test_unknown_view_can_be_scored() -> None:
    ds = made(**SILENT_VIEW)
    assert outcome(ds) == "NO_VIEW"
    assert outcome(ds, Eligibility(unknown_view="score")) == "unknown"


# --- malformed


KEYWORDS = (
    "SOPClassUID",
    "Modality",
    "ImageType",
    "PresentationIntentType",
    "NumberOfFrames",
    "BodyPartExamined",
    "AnatomicRegionSequence",
    "ViewPosition",
    "ViewCodeSequence",
    "PatientOrientation",
    "StudyDescription",
    "ProcedureCodeSequence",
    "DerivationCodeSequence",
    "SpecificCharacterSet",
    "RequestAttributesSequence",
)


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_malformed_attributes_never_end_in_another_error(keyword: str) -> None:
    tag = Tag(tag_for_keyword(keyword) or 0)
    random = np.random.default_rng(0)
    for vr in ("CS", "SQ", "IS", "UI", "UN", "US", "DS", "LO", "ZZ", "AT"):
        for length in (0, 1, 2, 3, 9, 16):
            ds = radiograph()
            value = random.integers(0, 256, length, "u1").tobytes()
            ds._dict[tag] = RawDataElement(tag, vr, length, value, 0, False, True)
            assert outcome(ds) in {"PA", "frontal", *Reason}


def test_empty_data_set() -> None:
    assert outcome(Dataset(), LENIENT) == "NOT_RADIOGRAPH"


def test_a_sure_reason_counts_before_a_doubt() -> None:
    derived = ["DERIVED", "SECONDARY"]
    assert outcome(made(ImageType=derived, BodyPartExamined="HAND")) == "NOT_CHEST"
    assert outcome(made(ImageType=derived, view="LL")) == "NOT_FRONTAL"
    assert outcome(made(BodyPartExamined="XYZZY", view="LL")) == "NOT_FRONTAL"
    assert outcome(made("DX_PROCESSING", view="LL")) == "NOT_FRONTAL"
    assert outcome(made(BodyPartExamined="HAND", ViewPosition="XYZZY")) == "NOT_CHEST"


def test_reasons_fit_the_database_and_the_report() -> None:
    assert all(re.fullmatch(r"[A-Z_]{1,16}", reason.value) for reason in Reason)
    assert all(0 < len(reason.meaning) <= 64 for reason in Reason)
    assert len({reason.meaning for reason in Reason}) == len(Reason)
