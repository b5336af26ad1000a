"""The page of a report: what it says, whose it is, and that it never holds up the report or outlives it."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pypdfium2
import pytest
from pydicom import dcmread
from pydicom.uid import EncapsulatedPDFStorage
from sqlalchemy import select, update

from db.models import Delivery, ResultObject
from db.queue import Kind
from db.results import Filter, each_of_ledger
from db.session import Database
from db.stock import spent
from pacs_node.config import Destination, Settings
from pacs_node.reporting.page import Page, PageImage, draw, drawable
from tests.conftest import radiograph
from tests.helpers.reports import validator
from tests.helpers.workbench import ARCHIVE, Bench, only

BOTH = Destination(ae_title="PACS", host="127.0.0.1", port=104, send=("report", "pdf"))
one_database = pytest.mark.parametrize("backend", ["sqlite"])


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Bench:
    return Bench(database, tmp_path, settings=Settings(destinations=(BOTH, ARCHIVE)))


def pages(bench: Bench) -> list[ResultObject]:
    with bench.database.read() as session:
        return list(session.scalars(select(ResultObject).order_by(ResultObject.id)))


def reported(bench: Bench, *images: Any) -> None:
    for image in images:
        bench.receive(image)
    bench.score()
    bench.report()


def read(page: ResultObject) -> Any:
    return dcmread(BytesIO(page.content))


def words(pdf: bytes) -> str:
    """Return all that stands on the one page."""
    document = pypdfium2.PdfDocument(pdf)
    try:
        assert len(document) == 1
        return " ".join(str(document[0].get_textpage().get_text_range()).split())
    finally:
        document.close()


def said(page: ResultObject) -> str:
    return words(read(page).EncapsulatedDocument[: read(page).EncapsulatedDocumentLength])


def states(bench: Bench) -> list[tuple[str, str, str]]:
    return [(one.destination, one.result, one.state) for one in bench.deliveries()]


def test_a_page_is_made_once_and_goes_to_those_who_want_it(bench: Bench) -> None:
    reported(bench, radiograph())
    assert states(bench) == [("PACS", "report", "pending"), ("ARCHIVE", "report", "pending")]
    for _ in range(2):
        bench.draw_pages()
        bench.hurry()
    assert states(bench)[2:] == [("PACS", "pdf", "pending")]
    page, report = only(pages(bench)), only(bench.reports())
    assert (page.report_id, page.result, page.number) == (report.id, "pdf", 0)
    assert bench.states(Kind.PAGE) == ["done"]
    with bench.database.read() as session:
        ledger = [(row["destination"], row["result"]) for row in each_of_ledger(session, Filter())]
    assert sorted(ledger) == [("ARCHIVE", "report"), ("PACS", "pdf"), ("PACS", "report")]
    assert bench.rows()[0]["deliveries"] == "PACS: pending, ARCHIVE: pending, PACS pdf: pending"


@one_database
def test_nobody_makes_a_page_that_nobody_wants(database: Database, tmp_path: Path) -> None:
    bench = Bench(database, tmp_path, settings=Settings(destinations=(ARCHIVE,)))
    reported(bench, radiograph())
    assert bench.jobs(Kind.PAGE) == []


@one_database
def test_it_says_what_the_report_says(bench: Bench) -> None:
    reported(bench, radiograph(), radiograph(view="LL", number=2))
    bench.draw_pages()
    text = said(only(pages(bench)))
    for part in (
        "Pneumonia: PRESENT",
        "AI scored 1 of 2 images and found pneumonia in 1.",
        "RESEARCH USE ONLY - NOT FOR DIAGNOSTIC USE",
        "Test Alice",
        "PID-1",
        "2021-02-14",
        "Image 1: positive",
        "Score 87.31 %, positive from 50.00 %",
        "what the model used, not where disease is",
        "Image 2: not analysed",
        "view is not frontal",
        only(bench.reports()).sop_instance_uid,
    ):
        assert part in text, part


@one_database
def test_it_is_a_valid_object_of_its_study(bench: Bench, tmp_path: Path) -> None:
    images = [radiograph(number=number, AccessionNumber="A-7") for number in (1, 2)]
    reported(bench, *images)
    bench.draw_pages()
    page, report = only(pages(bench)), only(bench.reports())
    made = read(page)
    assert (made.SOPClassUID, made.Modality) == (EncapsulatedPDFStorage, "DOC")
    of_report: Any = dcmread(BytesIO(report.content))
    for keyword in ("StudyInstanceUID", "PatientName", "PatientID", "AccessionNumber", "Manufacturer"):
        assert made[keyword].value == of_report[keyword].value, keyword
    assert made.SeriesInstanceUID != of_report.SeriesInstanceUID
    named = [one.ReferencedSOPInstanceUID for one in made.SourceInstanceSequence]
    assert named == [*(image.SOPInstanceUID for image in images), report.sop_instance_uid]
    (tmp_path / "page.dcm").write_bytes(page.content)
    run = subprocess.run([validator("dciodvfy"), tmp_path / "page.dcm"], capture_output=True, check=False)
    found = (run.stdout + run.stderr).decode().splitlines()
    assert "EncapsulatedPDF" in found
    assert [line for line in found if line.startswith("Error")] == []


@one_database
def test_text_keeps_its_bytes_and_a_name_is_written_in_letters_that_the_page_has(bench: Bench) -> None:
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    image = radiograph("CR", SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=name)
    reported(bench, image)
    bench.draw_pages()
    page = only(pages(bench))
    assert str(read(page).PatientName) == name
    assert "Yamada Tarou" in said(page)


def test_what_the_font_lacks_is_left_to_the_attributes() -> None:
    assert drawable("Жуков Иван") == "Жуков Иван"
    assert drawable("山田", "Yamada") == "Yamada"
    assert drawable("山田", "") is None
    assert drawable("אברהם") is None


@one_database
def test_an_image_that_cannot_be_shown_is_named_all_the_same(bench: Bench) -> None:
    place = bench.spool.path(bench.receive(radiograph()))
    bench.receive(radiograph(number=2))
    bench.score()
    bench.report()
    place.unlink()
    bench.draw_pages()
    text = said(only(pages(bench)))
    assert text.count("cannot be shown") == 1
    assert "Image 1: positive" in text


def test_a_page_of_many_images_with_long_words_stays_one_page() -> None:
    image = PageImage("Image: undetermined", "because " * 60)
    facts = [("Patient", "X" * 300)] * 8
    page = Page("Pneumonia: UNDETERMINED", "undetermined", "open " * 200, "WARNING", facts, [image] * 9)
    text = words(draw(page))
    assert text.count("WARNING") == 2
    assert "3 more images are in the structured report." in text
    assert draw(page) == draw(page)


def test_the_page_of_a_patient_who_was_corrected_is_not_made(bench: Bench) -> None:
    reported(bench, radiograph(PatientID="WRONG"))
    bench.hurry()
    reported(bench, radiograph(PatientID="RIGHT"))
    assert [report.revision for report in bench.reports()] == [1, 2]
    bench.draw_pages()
    assert [str(read(page).PatientID) for page in pages(bench)] == ["RIGHT"]
    assert ("PACS", "report", "abandoned") in states(bench)


@one_database
def test_a_page_given_up_comes_back_by_retry_but_not_for_the_wrong_patient(bench: Bench) -> None:
    reported(bench, radiograph(PatientID="WRONG"))
    with bench.database.write() as session:
        session.execute(update(Delivery).values(state="delivered"))
        session.connection().exec_driver_sql("UPDATE job SET state = 'failed' WHERE kind = 'page'")
    assert bench.retry() == 1
    with bench.database.write() as session:
        session.connection().exec_driver_sql("UPDATE job SET state = 'failed' WHERE kind = 'page'")
    bench.hurry()
    reported(bench, radiograph(PatientID="RIGHT"))
    assert bench.retry() == 0
    bench.draw_pages()
    assert [str(read(page).PatientID) for page in pages(bench)] == ["RIGHT"]


@one_database
def test_files_are_kept_until_the_page_is_made(bench: Bench) -> None:
    reported(bench, radiograph())
    bench.deliver_all()
    later = datetime.now(UTC) + timedelta(days=1)
    with bench.database.read() as session:
        assert list(spent(session, later, 10)) == []
    bench.draw_pages()
    bench.deliver_all()
    with bench.database.read() as session:
        assert len(list(spent(session, later, 10))) == 1
