"""Heat maps beside reports: what is drawn, that each reference has its object, and that it is valid."""

from __future__ import annotations

import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage
from sqlalchemy import select

from classifier.heat_map import HeatMap
from db.models import ResultObject
from db.queue import Kind
from db.session import Database
from pacs_node.config import Destination, Settings
from pacs_node.reporting.heat_map_picture import captioned, overlaid
from tests.conftest import radiograph
from tests.helpers.reports import validator
from tests.helpers.workbench import ARCHIVE, Bench, only

MAPS = Destination(ae_title="PACS", host="127.0.0.1", port=104, send=("report", "heatmap"))
one_database = pytest.mark.parametrize("backend", ["sqlite"])


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Bench:
    return Bench(database, tmp_path, settings=Settings(destinations=(MAPS, ARCHIVE)))


def reported(bench: Bench, *images: Dataset) -> None:
    for image in images:
        bench.receive(image)
    bench.score()
    bench.report()


def maps(bench: Bench) -> list[ResultObject]:
    with bench.database.read() as session:
        return list(session.scalars(select(ResultObject).order_by(ResultObject.id)))


def groups(report: Any) -> list[Any]:
    measured = next(
        one for one in report.ContentSequence if one.ConceptNameCodeSequence[0].CodeValue == "126010"
    )
    return list(measured.ContentSequence)


def explained(report: Any) -> list[tuple[str, str]]:
    """Return the image and the heat map of each measurement group that has one."""
    found = []
    for group in groups(report):
        named: dict[str, Any] = {
            item.ConceptNameCodeSequence[0].CodeValue: item for item in group.ContentSequence
        }
        if "130401" in named:
            images = (named[code].ReferencedSOPSequence[0] for code in ("121112", "130401"))
            found.append(tuple(image.ReferencedSOPInstanceUID for image in images))
    return found


def test_each_reference_of_the_report_has_its_object_and_negatives_have_none(bench: Bench) -> None:
    images = [radiograph(number=number, view="LL" if number == 2 else "PA") for number in (1, 2, 3)]
    reported(bench, *images)
    bench.draw_heat_maps()
    report: Any = dcmread(BytesIO(only(bench.reports()).content))
    made = [dcmread(BytesIO(one.content)) for one in maps(bench)]
    shown = [images[0].SOPInstanceUID, images[2].SOPInstanceUID]
    assert explained(report) == [*zip(shown, [one.SOPInstanceUID for one in made], strict=True)]
    assert [one.SourceImageSequence[0].ReferencedSOPInstanceUID for one in made] == shown
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    named = {series.SeriesInstanceUID: series.ReferencedSOPSequence for series in evidence}
    of_series = named[made[0].SeriesInstanceUID]
    assert [(one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID) for one in of_series] == [
        (SecondaryCaptureImageStorage, one.SOPInstanceUID) for one in made
    ]
    assert [(one.destination, one.result, one.number) for one in bench.deliveries()] == [
        *(("PACS", "report", 0), ("ARCHIVE", "report", 0)),
        *(("PACS", "heatmap", 0), ("PACS", "heatmap", 1)),
    ]


@one_database
def test_nobody_refers_to_a_heat_map_that_nobody_gets(database: Database, tmp_path: Path) -> None:
    bench = Bench(database, tmp_path, settings=Settings(destinations=(ARCHIVE,)))
    reported(bench, radiograph())
    assert explained(dcmread(BytesIO(only(bench.reports()).content))) == []
    assert bench.jobs(Kind.HEAT_MAP) == []


@one_database
def test_a_study_without_anything_to_show_has_no_job(bench: Bench) -> None:
    reported(bench, radiograph(view="LL"))
    assert bench.jobs(Kind.HEAT_MAP) == []


@one_database
def test_it_is_a_valid_object_of_its_study_and_the_report_stays_valid(bench: Bench, tmp_path: Path) -> None:
    reported(bench, radiograph(AccessionNumber="A-7"))
    bench.draw_heat_maps()
    report, made = only(bench.reports()), only(maps(bench))
    of_report: Any = dcmread(BytesIO(report.content))
    read: Any = dcmread(BytesIO(made.content))
    for keyword in ("StudyInstanceUID", "PatientName", "PatientID", "AccessionNumber", "Manufacturer"):
        assert read[keyword].value == of_report[keyword].value, keyword
    assert (read.Modality, read.ImageType[:2]) == ("OT", ["DERIVED", "SECONDARY"])
    for content, kind in ((made.content, "SCImage"), (report.content, "Comprehensive3DSR")):
        (tmp_path / "one.dcm").write_bytes(content)
        run = subprocess.run([validator("dciodvfy"), tmp_path / "one.dcm"], capture_output=True, check=False)
        found = (run.stdout + run.stderr).decode().splitlines()
        assert kind in found
        assert [line for line in found if line.startswith("Error")] == []


@one_database
def test_an_image_whose_file_is_gone_still_has_its_map(bench: Bench) -> None:
    place = bench.spool.path(bench.receive(radiograph()))
    bench.score()
    bench.report()
    place.unlink()
    bench.draw_heat_maps()
    read: Any = dcmread(BytesIO(only(maps(bench)).content))
    assert read.pixel_array.any()
    assert explained(dcmread(BytesIO(only(bench.reports()).content)))[0][1] == read.SOPInstanceUID


@one_database
def test_a_later_image_makes_a_revision_with_objects_of_its_own(bench: Bench) -> None:
    reported(bench, radiograph())
    bench.draw_heat_maps()
    bench.hurry()
    reported(bench, radiograph(number=2))
    bench.draw_heat_maps()
    uids = [one.sop_instance_uid for one in maps(bench)]
    assert len(set(uids)) == len(uids) == 3
    last: Any = dcmread(BytesIO(bench.reports()[-1].content))
    assert [one for _, one in explained(last)] == uids[1:]


@one_database
def test_the_map_of_a_patient_who_was_corrected_is_not_made(bench: Bench) -> None:
    reported(bench, radiograph(PatientID="WRONG"))
    bench.hurry()
    reported(bench, radiograph(PatientID="RIGHT"))
    bench.draw_heat_maps()
    assert [str(dcmread(BytesIO(one.content)).PatientID) for one in maps(bench)] == ["RIGHT"]


# --- the picture


def test_colours_stand_where_the_cells_say_and_nothing_where_they_say_nothing() -> None:
    cells = np.zeros((5, 5), np.float32)
    cells[0, 4], cells[4, 0] = 6, -6
    seen = np.asarray(overlaid(np.full((500, 400), 0.5, np.float32), HeatMap(cells, 0.0), 250)).astype(int)
    assert seen.shape == (250, 200, 3)
    assert abs(seen[125, 100] - 128).max() <= 1
    red, blue = seen[10, 190], seen[240, 10]
    assert red[0] > 150 > red[2] + 50
    assert blue[2] > 150 > blue[0] + 50


def test_a_weak_map_looks_weak() -> None:
    strong, weak = (
        np.asarray(
            overlaid(np.zeros((64, 64), np.float32), HeatMap(np.full((5, 5), value, np.float32), 0), 64)
        )
        for value in (5.0, 0.5)
    )
    assert weak.max() * 5 < strong.max()


def test_what_is_written_stands_below_the_image_and_inside_the_picture() -> None:
    picture = Image.new("RGB", (90, 300), (0, 200, 0))
    made = captioned(picture, 5.0, "RESEARCH USE ONLY - NOT FOR DIAGNOSTIC USE.", ["x" * 90])
    seen = np.asarray(made)
    assert (seen[:300, 115:205] == (0, 200, 0)).all()
    assert seen[300:].any()
    assert not seen[300:, [0, -1]].any()
