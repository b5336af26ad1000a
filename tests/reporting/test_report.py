"""The structured report: what a PACS, a validator and a radiologist's viewer find in it."""

from __future__ import annotations

import re
import subprocess
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import pytest
from pydicom.dataset import Dataset

from pacs_node.reporting.report import (
    REPORT_CLASSES,
    EncodedReport,
    ImageResult,
    NotScoredReason,
    ObserverDevice,
    as_class,
    build,
)
from tests.conftest import radiograph
from tests.helpers.reports import (
    ALGORITHM,
    NEWER,
    PRODUCT,
    UNREADABLE,
    assert_valid,
    dcmread_bytes,
    find,
    not_scored,
    report,
    scored,
    tree,
    validator,
)

DUPLICATE = NotScoredReason(
    "DUPLICATE_UID", "Another object came under the same UID", failed=False, leaves_open=True
)


PRESENT = "Pneumonia: PRESENT. AI scored 1 of 1 image and found pneumonia in 1."
UNDETERMINED = (
    "Pneumonia: UNDETERMINED. AI scored none of 1 image, which leaves the answer open: "
    "not a frontal chest X-ray."
)
GOLDEN_ROOT = """\
CONTAINER Imaging Measurement Report
  CODE Language of Content Item and Descendants = en-US RFC5646 English (United States)
  CODE Observer Type = 121007 DCM Device
  UIDREF Device Observer UID
  TEXT Device Observer Name = CXRAI01
  TEXT Device Observer Manufacturer = PACS Node
  TEXT Device Observer Model Name = PACS Node
  TEXT Device Observer Serial Number = 5e5e5e5e5e5e5e5e
  CODE Procedure reported = 399208008 SCT Plain chest X-ray
  TEXT Conclusion = {conclusion} RESEARCH USE ONLY - NOT FOR DIAGNOSTIC USE.
  CONTAINER Image Library
    CONTAINER Image Library Group
      IMAGE Source = {image}
        CODE Modality = DX DCM Digital Radiography
        CODE Target Region = 816094009 SCT Chest
        CODE Image View = 272479007 SCT postero-anterior
        DATE Study Date = 20250610
        DATE Acquisition Date = 20250610
        TIME Study Time = 101500
        TIME Acquisition Time = 101730
        NUM Pixel Data Rows = 256 {{pixels}}
        NUM Pixel Data Columns = 256 {{pixels}}
        TEXT Patient Orientation Row = L
        TEXT Patient Orientation Column = F
        NUM Vertical Pixel Spacing = 1.39 mm
        NUM Horizontal Pixel Spacing = 1.39 mm
  CONTAINER Imaging Measurements
    CONTAINER Measurement Group
      TEXT Tracking Identifier = Pneumonia image 1 of 1
      UIDREF Tracking Unique Identifier
"""
GOLDEN_ALGORITHM = f"""\
      CODE Finding Site = 39607008 SCT Lung
      TEXT Algorithm Name = DenseNet121-CXR
      TEXT Algorithm Version = 2025.06
      TEXT Algorithm Manufacturer = PACS Node
      TEXT Algorithm Parameters = checkpoint sha256 = {"5e" * 32}
      TEXT Algorithm Parameters = decision threshold = 0.5 (Present from this probability on)
      TEXT Algorithm Parameters = preprocessing = resize 224x224, histogram norm v1
      TEXT Algorithm Parameters = schema = pacs-node-report/2
      CODE Algorithm Family = 123110 DCM Artificial Intelligence
"""
GOLDEN_POSITIVE = (
    GOLDEN_ROOT
    + "      CODE Finding = 233604007 SCT Pneumonia\n"
    + GOLDEN_ALGORITHM
    + """\
      NUM Certainty of Finding = 87.31 %
        CODE Finding = 233604007 SCT Pneumonia
      NUM Threshold Value = 50.00 %
      CODE Pneumonia = 52101004 SCT Present
      CODE Summary of Detections = 111222 DCM Succeeded
      IMAGE Source of Measurement = {image}
  CONTAINER Qualitative Evaluations
    CODE Pneumonia = 52101004 SCT Present
    TEXT Comment = Automated AI output, not verified by a physician. \
RESEARCH USE ONLY - NOT FOR DIAGNOSTIC USE. \
Highest pneumonia score 87.31 %, positive from 50.00 %. 1 of 1 image scored.
"""
)
GOLDEN_NOT_SCORED = (
    GOLDEN_ROOT
    + GOLDEN_ALGORITHM
    + """\
      CODE Pneumonia = 373068000 SCT Undetermined
      CODE Summary of Detections = 111225 DCM Not Attempted
      CODE Reason image was not scored = NOT_FRONTAL 99CXRAI Not a frontal chest X-ray
      IMAGE Source of Measurement = {image}
  CONTAINER Qualitative Evaluations
    CODE Pneumonia = 373068000 SCT Undetermined
    TEXT Comment = Automated AI output, not verified by a physician. \
RESEARCH USE ONLY - NOT FOR DIAGNOSTIC USE. 0 of 1 image scored; not scored: 1 NOT_FRONTAL.
"""
)


@pytest.mark.parametrize(
    ("image", "golden", "conclusion"),
    [
        (scored(radiograph()), GOLDEN_POSITIVE, PRESENT),
        (not_scored(radiograph()), GOLDEN_NOT_SCORED, UNDETERMINED),
    ],
    ids=["positive", "not scored"],
)
def test_the_content_tree_reads_as_specified(image: ImageResult, golden: str, conclusion: str) -> None:
    expected = golden.format(image=image.header.SOPInstanceUID[-4:], conclusion=conclusion)
    assert "\n".join(tree(report(image).content)) + "\n" == expected


BARE = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


def bare(header: Dataset) -> Dataset:
    """Return a header of nothing but its UIDs."""
    made = Dataset()
    for keyword in BARE:
        setattr(made, keyword, header[keyword].value)
    return made


STUDIES = {
    "DX": [scored(radiograph())],
    "DX for processing, negative": [scored(radiograph("DX_PROCESSING"), 0.0)],
    "CR in Japanese": [
        scored(
            radiograph(
                "CR",
                SpecificCharacterSet=["", "ISO 2022 IR 87"],
                PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう",
                StudyDescription="胸部単純X線",
            )
        )
    ],
    "nothing but UIDs": [scored(bare(radiograph()))],
    "empty accession number": [scored(radiograph(AccessionNumber="", RequestAttributesSequence=[]), 1.0)],
    "secondary capture": [scored(radiograph("SC"))],
    "two images, one lateral": [
        scored(radiograph(), 0.0312),
        not_scored(radiograph(view="LL", number=2)),
    ],
    "unreadable": [not_scored(radiograph(), UNREADABLE)],
    "duplicate": [scored(radiograph()), not_scored(radiograph(), DUPLICATE)],
    "undetermined": [ImageResult(radiograph(), "undetermined", 0.4912, None, ALGORITHM)],
    "undetermined with reason": [
        ImageResult(
            radiograph(), "undetermined", 0.5, NotScoredReason("IN_BAND", "Too near", failed=False), ALGORITHM
        )
    ],
    "two models": [scored(radiograph()), scored(radiograph(number=2), 0.4, NEWER)],
}


@pytest.mark.parametrize("sop_class", REPORT_CLASSES)
@pytest.mark.parametrize("study", STUDIES)
def test_every_report_is_a_valid_object(study: str, sop_class: str, tmp_path: Path) -> None:
    made = as_class(report(*STUDIES[study]).content, sop_class)
    read = dcmread_bytes(made.content)
    assert (read.SOPClassUID, read.SOPInstanceUID) == (sop_class, made.sop_instance_uid)
    assert read.file_meta.MediaStorageSOPInstanceUID == made.sop_instance_uid
    assert_valid(made.content, tmp_path)


def test_a_negative_never_says_finding_pneumonia() -> None:
    negative, positive = report(scored(radiograph(), 0.4999)), report(scored(radiograph(), 0.5))
    groups = hd_groups(negative)
    assert groups[0].finding_type is None
    assert hd_groups(positive)[0].finding_type.value == "233604007"
    assert find(negative.content, "Certainty of Finding") == ["49.99 %"]
    assert find(negative.content, "Pneumonia") == ["272519000 SCT Absent"] * 2


def hd_groups(made: EncodedReport) -> Any:
    return hd.sr.srread(BytesIO(made.content)).content.get_image_measurement_groups()


@pytest.mark.parametrize(
    ("decisions", "answer"),
    [
        ("positive not_scored", "Present"),
        ("positive undetermined negative", "Present"),
        ("negative undetermined", "Undetermined"),
        ("negative not_scored", "Absent"),
        ("not_scored not_scored", "Undetermined"),
        ("negative unreadable", "Undetermined"),
        ("positive unreadable", "Present"),
    ],
)
def test_the_answer_for_the_study(decisions: str, answer: str) -> None:
    made = {
        "positive": scored(radiograph(number=1), 0.9),
        "negative": scored(radiograph(number=2), 0.1),
        "undetermined": ImageResult(radiograph(number=3), "undetermined", 0.5, None, ALGORITHM),
        "not_scored": not_scored(radiograph(number=4)),
        "unreadable": not_scored(radiograph(number=5), UNREADABLE),
    }
    images = [made[name] for name in decisions.split()]
    assert find(report(*images).content, "Pneumonia")[-1].endswith(answer)


def test_the_comment_counts_what_was_scored_and_why_others_were_not() -> None:
    images = [scored(radiograph(), 0.25), not_scored(radiograph(view="LL", number=2))]
    images += [not_scored(radiograph(number=n), UNREADABLE) for n in (3, 4)]
    (comment,) = find(report(*images).content, "Comment")
    assert comment.endswith("1 of 4 images scored; not scored: 1 NOT_FRONTAL, 2 UNREADABLE.")
    assert "RESEARCH USE ONLY - NOT FOR DIAGNOSTIC USE" in comment


def test_a_product_has_no_research_warning() -> None:
    content = report(scored(radiograph()), node=PRODUCT).content
    assert dcmread_bytes(content).ContentQualification == "PRODUCT"
    assert b"RESEARCH" not in content
    assert b"NOT FOR DIAG" not in content


@pytest.mark.parametrize(
    ("study", "said"),
    [
        ("two images, one lateral", "ABSENT. AI scored 1 of 2 images and found no pneumonia."),
        ("two models", "PRESENT. AI scored 2 of 2 images and found pneumonia in 2."),
        ("unreadable", "AI scored none of 1 image, which leaves the answer open: pixel data could not be"),
        ("undetermined", "AI scored 1 of 1 image, which leaves the answer open: the score is too near"),
        ("undetermined with reason", "AI scored 1 of 1 image, which leaves the answer open: too near."),
    ],
)
def test_the_answer_and_how_it_came_about_are_read_first(study: str, said: str) -> None:
    content = report(*STUDIES[study]).content
    at = [item.ValueType for item in dcmread_bytes(content).ContentSequence].index("CONTAINER")
    first = dcmread_bytes(content).ContentSequence[at - 1]
    assert first.ConceptNameCodeSequence[0].CodeMeaning == "Conclusion"
    assert said in first.TextValue
    assert find(content, "Pneumonia")[-1].split()[-1].upper() == first.TextValue.split(". ")[0].split()[-1]


def test_dcmtk_shows_the_answer_on_its_first_screen(tmp_path: Path) -> None:
    (tmp_path / "report.dcm").write_bytes(report(*STUDIES["two images, one lateral"]).content)
    page = subprocess.run(
        [validator("dsr2html"), tmp_path / "report.dcm"], capture_output=True, text=True, check=True
    ).stdout
    lines = [line for line in re.sub("<[^>]*>", "", page.partition("<body>")[2]).splitlines() if line.strip()]
    assert any("Pneumonia: ABSENT" in line for line in lines[:30])


def test_the_answer_stands_in_the_series_description_where_the_site_wants_it(tmp_path: Path) -> None:
    positive, negative = [scored(radiograph())], [scored(radiograph(), 0.1)]
    made = {name: report(*study, names_answer=True) for name, study in (("+", positive), ("-", negative))}
    described = [str(dcmread_bytes(one.content).SeriesDescription) for one in made.values()]
    assert described == [f"AI pneumonia {word} - NOT FOR DIAGNOSIS" for word in ("PRESENT", "ABSENT")]
    # One series has one description (PS3.3 C.7.3.1)
    assert len({one.series_instance_uid for one in (*made.values(), report(*positive))}) == 3
    assert report(*negative).series_instance_uid == report(*positive).series_instance_uid
    assert_valid(made["+"].content, tmp_path)
    revised = report(*negative, names_answer=True, revision=2, after=made["+"])
    assert_valid(revised.content, tmp_path)


def test_two_objects_under_one_uid_are_told_apart() -> None:
    again = not_scored(radiograph(SeriesInstanceUID="1.2.3"), DUPLICATE)
    made = report(scored(radiograph()), scored(radiograph(number=2)), again)
    groups = hd_groups(made)
    assert len(groups) == len({group.tracking_uid for group in groups}) == 3
    assert "SOP Instance UID of image 1" in groups[2].tracking_identifier
    assert len(find(made.content, "Source")) == 2
    (evidence,) = dcmread_bytes(made.content).CurrentRequestedProcedureEvidenceSequence
    (series,) = evidence.ReferencedSeriesSequence
    assert len(series.ReferencedSOPSequence) == 2


def test_each_model_is_listed_and_the_last_one_observes() -> None:
    images = [
        scored(radiograph()),
        scored(radiograph(number=2), 0.6, NEWER),
        not_scored(radiograph(number=3)),
    ]
    mixed = dcmread_bytes(report(*images[:2]).content)
    equipment = mixed.ContributingEquipmentSequence
    assert [item.SoftwareVersions[0] for item in equipment] == ["2025.06", "2025.07"]
    assert mixed.DeviceSerialNumber == "7a" * 8
    assert len(dcmread_bytes(report(*images).content).ContributingEquipmentSequence) == 2
    assert mixed.SeriesInstanceUID != report(images[0]).series_instance_uid


def test_times_are_written_in_the_zone_of_the_source_then_the_site() -> None:
    site = ObserverDevice(software_version="0.1.0", station_name="CXRAI01", timezone="-0330")
    cases = [("+0900", "+0900", "103000"), ("+9900", "-0330", "220000"), (None, "-0330", "220000")]
    for source, offset, time in cases:
        read = dcmread_bytes(report(scored(radiograph(TimezoneOffsetFromUTC=source)), node=site).content)
        assert (read.TimezoneOffsetFromUTC, read.ContentTime) == (offset, time)
        assert read.ContributingEquipmentSequence[0].ContributionDateTime.endswith(offset)
    read = dcmread_bytes(report(scored(radiograph(TimezoneOffsetFromUTC=None))).content)
    assert "TimezoneOffsetFromUTC" not in read
    assert read.ContentTime == "013000"


def test_a_site_with_a_named_zone_has_the_offset_of_the_moment() -> None:
    site = ObserverDevice(software_version="0.1.0", station_name="CXRAI01", timezone="Europe/Berlin")
    image = scored(radiograph(TimezoneOffsetFromUTC=None))
    for month, offset, hour in ((7, "+0200", "14"), (12, "+0100", "13")):
        made_at = datetime(2026, month, 1, 12, tzinfo=UTC)
        read = dcmread_bytes(build([image], site, made_at, 1, None).content)
        assert (read.TimezoneOffsetFromUTC, read.ContentTime[:2]) == (offset, hour)


def test_images_that_disagree_on_the_patient_take_the_first() -> None:
    made = report(scored(radiograph(PatientID="A")), scored(radiograph(number=2, PatientID="B")))
    assert dcmread_bytes(made.content).PatientID == "A"
