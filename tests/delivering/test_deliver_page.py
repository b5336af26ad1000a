"""Pages and heat maps on their way: beside the report, never instead of it, and never before it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.uid import EncapsulatedPDFStorage, ImplicitVRLittleEndian
from sqlalchemy import select

from db.models import ResultObject
from db.session import Database
from db.status import resend
from pacs_node.config import DeliverSettings, Destination, Settings
from pacs_node.delivering.stage import DeliverStage
from pacs_node.reporting.report import REPORT_CLASSES
from tests.conftest import radiograph
from tests.helpers import delivering
from tests.helpers.delivering import data_set, peer
from tests.helpers.peers import orthanc
from tests.helpers.workbench import Bench, only

# Fixtures: pytest finds them by the names that they have here.
whole_data_sets = delivering.whole_data_sets

BOTH_CLASSES = (*REPORT_CLASSES, EncapsulatedPDFStorage)
one_database = pytest.mark.parametrize("backend", ["sqlite"])


def wants_both(to: Destination) -> Destination:
    return to.model_copy(update={"send": ("report", "pdf")})


def bench_for(database: Database, folder: Path, to: Destination) -> Bench:
    """Return a node with one report and its page on their way."""
    bench = Bench(database, folder, settings=Settings(destinations=(to,)))
    bench.receive(radiograph())
    bench.score()
    bench.report()
    bench.draw_pages()
    bench.draw_heat_maps()
    return bench


def deliver(bench: Bench, to: Destination) -> None:
    bench.work(DeliverStage(bench.database, to, "PACS_NODE", DeliverSettings()))


def states(bench: Bench) -> list[tuple[str, str]]:
    return [(one.result, one.state) for one in bench.deliveries()]


def page_of(bench: Bench) -> bytes:
    with bench.database.read() as session:
        return session.scalars(select(ResultObject.content)).one()


def test_both_arrive_once_as_they_are_stored(database: Database, tmp_path: Path) -> None:
    with peer(sop_classes=BOTH_CLASSES) as other:
        to = wants_both(other.destination)
        bench = bench_for(database, tmp_path, to)
        for _ in range(2):
            deliver(bench, to)
            bench.hurry()
    stored = [only(bench.reports()).content, page_of(bench)]
    assert [*map(data_set, other.received)] == [*map(data_set, stored)]
    assert states(bench) == [("report", "delivered"), ("pdf", "delivered")]


@one_database
def test_a_pacs_without_pdf_gets_the_report_and_says_what_it_lacks(
    database: Database, tmp_path: Path
) -> None:
    with peer() as other:
        to = wants_both(other.destination)
        bench = bench_for(database, tmp_path, to)
        deliver(bench, to)
    assert states(bench) == [("report", "delivered"), ("pdf", "failed")]
    assert bench.deliveries()[1].error == "PACS accepts no Encapsulated PDF; enable it there."


@one_database
def test_implicit_vr_carries_the_same_page(database: Database, tmp_path: Path) -> None:
    with peer(sop_classes=BOTH_CLASSES, syntaxes=[ImplicitVRLittleEndian]) as other:
        to = wants_both(other.destination)
        bench = bench_for(database, tmp_path, to)
        deliver(bench, to)
    page = other.read()[1]
    assert page.EncapsulatedDocument[: page.EncapsulatedDocumentLength].startswith(b"%PDF-")
    assert states(bench) == [("report", "delivered"), ("pdf", "delivered")]


@one_database
def test_the_report_alone_or_both_are_sent_again(database: Database, tmp_path: Path) -> None:
    with peer(sop_classes=BOTH_CLASSES) as other:
        to = wants_both(other.destination)
        bench = bench_for(database, tmp_path, to)
        deliver(bench, to)
        for results, number in ((["report"], 1), (None, 2)):
            other.received.clear()
            now = datetime.now(UTC)
            study = radiograph().StudyInstanceUID
            with bench.database.write() as session:
                assert resend(session, study, now + timedelta(hours=1), now, results=results) == number
            deliver(bench, to)
            assert len(other.received) == number


@one_database
def test_orthanc_keeps_both_in_the_study_unchanged(database: Database, tmp_path: Path) -> None:
    with orthanc(tmp_path / "orthanc") as pacs:
        to = Destination(ae_title="ORTHANC", host="127.0.0.1", port=pacs.port, send=("report", "pdf"))
        bench = bench_for(database, tmp_path, to)
        deliver(bench, to)
        (study,) = pacs.json("/studies")
        assert len(pacs.json(f"/studies/{study}/instances")) == 2
        for content in (only(bench.reports()).content, page_of(bench)):
            assert data_set(content) in [data_set(file) for file in pacs.files()]
        pdf = [
            pacs.get(f"/instances/{name}/pdf")
            for name in pacs.instances()
            if pacs.json(f"/instances/{name}/simplified-tags")["Modality"] == "DOC"
        ]
        assert only(pdf).startswith(b"%PDF-")
    assert states(bench)[1] in (("pdf", "delivered"), ("pdf", "committed"))


@one_database
def test_a_heat_map_arrives_in_orthanc_which_shows_it(database: Database, tmp_path: Path) -> None:
    with orthanc(tmp_path / "orthanc") as pacs:
        to = Destination(ae_title="ORTHANC", host="127.0.0.1", port=pacs.port, send=("report", "heatmap"))
        bench = bench_for(database, tmp_path, to)
        deliver(bench, to)
        with bench.database.read() as session:
            stored = session.scalars(select(ResultObject).where(ResultObject.result == "heatmap")).one()
        assert data_set(stored.content) in [data_set(file) for file in pacs.files()]
        shown = [
            np.asarray(Image.open(BytesIO(pacs.get(f"/instances/{name}/preview"))))
            for name in pacs.instances()
            if pacs.json(f"/instances/{name}/simplified-tags")["Modality"] == "OT"
        ]
        assert (only(shown) == dcmread(BytesIO(stored.content)).pixel_array).all()
    assert [result for result, _ in states(bench)] == ["report", "heatmap"]


@one_database
def test_a_pacs_that_takes_no_heat_map_says_so(database: Database, tmp_path: Path) -> None:
    with peer() as other:
        to = other.destination.model_copy(update={"send": ("report", "heatmap")})
        bench = bench_for(database, tmp_path, to)
        deliver(bench, to)
    assert states(bench) == [("report", "delivered"), ("heatmap", "failed")]
    assert bench.deliveries()[1].error == "PACS accepts no Secondary Capture Image; enable it there."
