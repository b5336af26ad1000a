"""What becomes of a study's answer beside an image that is not scored: it is negative only if it can be."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage

from classifier.config import Eligibility
from classifier.decoding.eligibility import check
from classifier.errors import NotScorable
from classifier.outcome import Decision, Prediction, StillDecoding
from db import inventory
from db.models import Report
from db.session import Database
from tests.conftest import radiograph
from tests.helpers.eligibility import COLOUR, made, reference
from tests.helpers.workbench import Bench, Viewer, images_in, only, other, parsed, reasons_in

SECONDARY = ["DERIVED", "SECONDARY"]
HEAT_MAP: dict[str, Any] = {
    **COLOUR,
    "ConversionType": "WSD",
    "SeriesDescription": "AI CXR HEATMAP",
    "SourceImageSequence": [reference()],
}


class Normal(Viewer):
    """Decides by the tags which images are scored, and finds each of them normal."""

    def attempt(self, sources: Sequence[Path]) -> list[Prediction | OSError | StillDecoding]:
        return [self._predict(source) for source in sources]

    def _predict(self, source: Path) -> Prediction:
        header = dcmread(BytesIO(source.read_bytes()), stop_before_pixels=True)
        try:
            view = check(header, Eligibility())
        except NotScorable as refused:
            return Prediction(None, Decision.NOT_SCORED, refused.reason, refused.detail, None)
        return Prediction(0.0312, Decision.NEGATIVE, None, "", view)


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Bench:
    return Bench(database, tmp_path, Normal())


def reported(bench: Bench, *images: Dataset) -> Report:
    for image in images:
        bench.receive(image)
    bench.score()
    bench.report()
    report: Report = only(bench.reports())
    return report


def answer(report: Report) -> str:
    container = parsed(report).ContentSequence[-1]
    assert container.ConceptNameCodeSequence[0].CodeMeaning == "Qualitative Evaluations"
    return str(container.ContentSequence[0].ConceptCodeSequence[0].CodeMeaning)


def beside(kind: str = "CR", **tags: Any) -> Dataset:
    return made(kind, number=2, **tags)


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize(
    ("tags", "reason", "expected"),
    [
        ({"view": "LL"}, "NOT_FRONTAL", "Absent"),
        ({"BodyPartExamined": "HAND"}, "NOT_CHEST", "Absent"),
        ({"Modality": "US"}, "NOT_RADIOGRAPH", "Absent"),
        ({"SeriesDescription": "Chest PA bone suppressed"}, "NOT_ORIGINAL", "Absent"),
        ({"ImageType": SECONDARY}, "MAYBE_DERIVED", "Undetermined"),
        ({"ImageType": SECONDARY, "view": "LL"}, "NOT_FRONTAL", "Absent"),
        ({"BodyPartExamined": "TORSO"}, "NO_BODY_PART", "Undetermined"),
        ({"BodyPartExamined": "CHESTABDOMEN"}, "NO_BODY_PART", "Undetermined"),
        ({"BodyPartExamined": "XYZZY"}, "NO_BODY_PART", "Undetermined"),
        ({"ViewPosition": "XYZZY"}, "NO_VIEW", "Undetermined"),
        ({"ViewPosition": "PA", "SeriesDescription": "THORAX LAT"}, "NO_VIEW", "Undetermined"),
        ({"NumberOfFrames": 2}, "MULTI_FRAME", "Undetermined"),
        ({"Modality": "DR"}, "NO_MODALITY", "Undetermined"),
    ],
)
def test_only_what_certainly_is_no_frontal_chest_radiograph_leaves_the_answer_alone(
    bench: Bench, tags: dict[str, Any], reason: str, expected: str
) -> None:
    report = reported(bench, radiograph(), beside(**tags))
    assert (reasons_in(report), answer(report)) == ([reason], expected)
    told = bench.rows()[1]["detail"]
    value = tags.get("BodyPartExamined") or tags.get("ViewPosition")
    assert value is None or f'"{value}"' in told


def test_understood_images_are_scored_whatever_the_language(bench: Bench) -> None:
    report = reported(
        bench, radiograph(), beside(BodyPartExamined="TORAKS"), made(number=3, BodyPartExamined="THORAX FACE")
    )
    assert (reasons_in(report), answer(report)) == ([], "Absent")


def test_results_of_programs_count_as_no_image(bench: Bench, database: Database) -> None:
    report = reported(bench, radiograph(), beside("SC", **HEAT_MAP))
    assert images_in(report) == [radiograph().SOPInstanceUID]
    assert (reasons_in(report), answer(report)) == ([], "Absent")
    assert b"1 of 1 image scored" in report.content
    assert [row["reason"] for row in bench.rows()] == [None, "DERIVED_RESULT"]
    classes = [radiograph().SOPClassUID, beside("SC").SOPClassUID]
    with database.read() as session:
        whole = inventory.reported(session, radiograph().StudyInstanceUID, classes)
        counted = inventory.reported(session, radiograph().StudyInstanceUID, classes, ["DERIVED_RESULT"])
    assert whole
    assert counted
    assert (whole.unreported, counted.unreported) == (1, 0)


def test_a_study_of_results_alone_gets_no_report(bench: Bench) -> None:
    bench.receive(beside("SC", **HEAT_MAP))
    bench.score()
    bench.report()
    assert bench.reports() == []


def test_the_report_of_the_node_that_a_pacs_sends_back_is_named_and_changes_nothing(bench: Bench) -> None:
    report = reported(bench, radiograph())
    returned = other(Comprehensive3DSRStorage, "SR", 2)
    sent = parsed(report)
    returned.Manufacturer, returned.ManufacturerModelName = sent.Manufacturer, sent.ManufacturerModelName
    bench.receive(returned)
    bench.score()
    bench.report()
    assert len(bench.reports()) == 1
    assert [row["reason"] for row in bench.rows()] == [None, "OWN_RESULT"]


# Raw images


def raw(**tags: Any) -> Dataset:
    return radiograph("DX_PROCESSING", number=2, AcquisitionTime="112233", **tags)


def test_a_raw_image_without_its_processed_one_leaves_the_study_open(bench: Bench) -> None:
    report = reported(bench, radiograph(), raw())
    assert (reasons_in(report), answer(report)) == (["FOR_PROCESSING"], "Undetermined")


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize("by", ["source", "event", "time"])
def test_a_raw_image_whose_processed_one_is_scored_leaves_nothing_open(bench: Bench, by: str) -> None:
    source = reference()
    source.ReferencedSOPInstanceUID = raw().SOPInstanceUID
    tags: dict[str, dict[str, Any]] = {
        "source": {"SourceImageSequence": [source]},
        "event": {"IrradiationEventUID": "1.2.3"},
        "time": {"AcquisitionTime": "112233"},
    }
    shared = tags[by] if by == "event" else {}
    report = reported(bench, radiograph(**tags[by]), raw(**shared))
    assert (reasons_in(report), answer(report)) == (["FOR_PROCESSING"], "Absent")


def test_a_lateral_raw_image_leaves_nothing_open(bench: Bench) -> None:
    report = reported(bench, radiograph(), raw(view="LL"))
    assert (reasons_in(report), answer(report)) == (["NOT_FRONTAL"], "Absent")
