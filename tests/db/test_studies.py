"""The views `studies` and `scores`: one row for each study, and every score that any model gave."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import CTImageStorage
from sqlalchemy import text, update

from db.models import Delivery, Report, Score, Study
from db.results import SCORE_COLUMNS, STUDY_COLUMNS
from db.session import Database
from pacs_node.config import Settings
from pacs_node.reporting.earlier_decisions import DecisionReader
from pacs_node.reporting.report import COMPREHENSIVE_SR, as_class
from tests.conftest import radiograph
from tests.helpers.workbench import ARCHIVE, PACS, Bench, other


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Bench:
    return Bench(database, tmp_path, settings=Settings(destinations=(PACS, ARCHIVE)))


def rows(bench: Bench, view: str) -> list[dict[str, Any]]:
    with bench.database.read() as session:
        found = session.execute(text(f"SELECT * FROM {view}")).mappings()
        return [dict(row) for row in found]


def settle(bench: Bench) -> None:
    bench.score()
    bench.hurry()
    bench.report()


def test_a_study_has_one_row_with_what_its_report_says(bench: Bench) -> None:
    bench.receive(radiograph(number=1))
    bench.receive(radiograph(number=2, view="LL"))
    bench.receive(other(CTImageStorage, "CT", 3))
    (row,) = rows(bench, "studies")
    assert list(row) == [*STUDY_COLUMNS, "study_id"]
    assert (row["decision"], row["images_waiting"], row["report_uid"]) == (None, 2, None)
    settle(bench)
    (row,) = rows(bench, "studies")
    assert (row["decision"], row["reasons"]) == ("positive", "NOT_FRONTAL")
    counted = [row[f"images_{what}"] for what in ("scored", "not_scored", "waiting")]
    assert (counted, row["highest_probability"]) == ([1, 1, 0], 0.8731)
    (report,) = bench.reports()
    assert (row["report_uid"], row["report_revision"]) == (report.sop_instance_uid, 1)
    assert row["patient_id"] == radiograph().PatientID
    assert row["deliveries"] == "PACS: pending, ARCHIVE: pending"
    assert (row["delivered_at"], row["seconds_to_delivery"]) == (None, None)


def test_a_study_is_delivered_when_all_destinations_have_it(bench: Bench) -> None:
    bench.receive(radiograph())
    settle(bench)
    came = datetime(2026, 11, 1, 12, tzinfo=UTC)
    first, second = bench.deliveries()

    def arrived(delivery: Delivery, seconds: float) -> None:
        with bench.database.write() as session:
            session.execute(update(Study).values(last_received_at=came))
            at = came + timedelta(seconds=seconds)
            session.execute(update(Delivery).where(Delivery.id == delivery.id).values(delivered_at=at))

    arrived(first, 10.5)
    assert rows(bench, "studies")[0]["seconds_to_delivery"] is None
    arrived(second, 12.25)
    assert rows(bench, "studies")[0]["seconds_to_delivery"] == pytest.approx(12.25, abs=0.002)
    arrived(second, -1)  # an image came after the report
    arrived(first, -1)
    assert rows(bench, "studies")[0]["seconds_to_delivery"] is None
    with bench.database.write() as session:
        later = came + timedelta(seconds=3)
        session.execute(update(Delivery).where(Delivery.id == first.id).values(delivered_at=later))
        gone = {"state": "abandoned", "delivered_at": None}
        session.execute(update(Delivery).where(Delivery.id == second.id).values(**gone))
    assert rows(bench, "studies")[0]["seconds_to_delivery"] == pytest.approx(3, abs=0.002)


def test_the_patient_of_a_study_is_that_of_the_image_that_was_corrected_last(bench: Bench) -> None:
    for number in (1, 2):
        bench.receive(radiograph(number=number))
    settle(bench)
    bench.receive(radiograph(number=2, PatientName="Doe^Corrected"))
    settle(bench)
    (row,) = rows(bench, "studies")
    assert (row["patient_name"], row["report_revision"]) == ("Doe^Corrected", 2)
    assert row["images_scored"] == 2


def test_results_of_programs_are_no_images_of_a_study(bench: Bench) -> None:
    bench.receive(radiograph())
    settle(bench)
    with bench.database.write() as session:
        session.execute(
            text("UPDATE score SET reason = 'OWN_RESULT', decision = 'not_scored', probability = NULL")
        )
    (row,) = rows(bench, "studies")
    assert [row[f"images_{what}"] for what in ("scored", "not_scored", "waiting")] == [0, 0, 0]
    assert (row["reasons"], row["patient_id"]) == (None, radiograph().PatientID)


def test_every_score_of_every_model_has_a_row(bench: Bench) -> None:
    bench.receive(radiograph())
    bench.score()
    (one,) = rows(bench, "scores")
    assert set(one) == {*SCORE_COLUMNS, "instance_id"}
    assert (one["model_sha256"], one["is_newest"], one["is_replaced"]) == ("5e" * 32, 1, 0)
    other_model = bench.register("6f" * 32)
    with bench.database.write() as session:
        again = {"model_id": other_model.id, "probability": 0.1, "decision": "negative"}
        (instance,) = bench.instances()
        at = datetime.now(UTC)
        session.add(Score(instance_id=instance.id, threshold=0.5, detail="", scored_at=at, **again))
    assert [(row["probability"], row["is_newest"]) for row in rows(bench, "scores")] == [
        (0.8731, 0),
        (0.1, 1),
    ]


def test_decisions_of_earlier_reports_are_read_from_their_bytes(bench: Bench) -> None:
    bench.receive(radiograph(study="1"))
    bench.receive(radiograph(study="2", view="LL"))
    settle(bench)
    known = [report.decision for report in bench.reports()]
    assert known == ["positive", "undetermined"]
    with bench.database.write() as session:
        older = as_class(bench.reports()[0].content, COMPREHENSIVE_SR)
        session.execute(update(Report).where(Report.id == 1).values(content=older.content))
        session.execute(update(Report).values(decision=None))
        broken = {"study_id": 1, "revision": 2, "sop_class_uid": "1.2", "series_instance_uid": "1.2"}
        at = datetime.now(UTC)
        session.add(Report(**broken, sop_instance_uid="1.2", content=b"no report", made_at=at))
    assert [row["decision"] for row in rows(bench, "studies")] == [None, None]
    reader = DecisionReader(bench.database)
    assert reader.read_all() == 3
    assert [report.decision for report in bench.reports()] == [*known, None]
    assert reader.read_all() == 1  # what cannot be read is no reason to go on for ever
