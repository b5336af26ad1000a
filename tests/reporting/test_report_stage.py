"""Reporting: each quiet study ends in one report that states all its images, and later ones in revisions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import ComprehensiveSRStorage, CTImageStorage

from db import queries
from db.queue import Kind, enqueue
from db.rows import NewScore, Received
from db.session import Database
from pacs_node.config import Destination, Settings
from pacs_node.reporting import stage
from pacs_node.reporting.report import EncodedReport as BuiltReport
from pacs_node.reporting.report import build
from pacs_node.scoring.stage import ScoreStage
from pacs_node.worker import Worker
from tests.conftest import radiograph
from tests.helpers import workbench
from tests.helpers.reports import assert_valid, errors, find
from tests.helpers.workbench import (
    A_WHILE,
    ARCHIVE,
    CHARSET_FILES,
    PACS,
    PATIENT_NAME,
    Bench,
    images_in,
    named,
    only,
    other,
    parsed,
    reasons_in,
)

# A fixture: pytest finds it by the name that it has here.
bench = workbench.bench


def test_a_study_is_reported_only_when_it_is_quiet(bench: Bench) -> None:
    bench.receive(radiograph(number=1))
    bench.receive(radiograph(number=2), quiet_seconds=A_WHILE)
    bench.score()
    bench.report()
    assert bench.reports() == []
    bench.hurry()
    bench.report()
    assert len(images_in(only(bench.reports()))) == 2


@pytest.mark.parametrize("is_lost", [False, True], ids=["scored", "failed"])
def test_a_score_does_not_hasten_the_report_of_a_study_that_is_not_quiet(bench: Bench, is_lost: bool) -> None:
    place = bench.spool.path(bench.receive(radiograph(), quiet_seconds=A_WHILE))
    content = place.read_bytes()
    if is_lost:
        place.unlink()
    bench.score()
    place.write_bytes(content)
    bench.report()
    assert bench.reports() == []
    assert bench.states(Kind.REPORT) == ["ready"]
    bench.hurry()
    bench.report()
    assert reasons_in(only(bench.reports())) == ["SCORING_FAILED"] * is_lost


def test_a_study_is_reported_after_the_last_score_and_at_once(bench: Bench) -> None:
    for number in (1, 2):
        bench.receive(radiograph(number=number))
    stage = ScoreStage(bench.database, bench.spool, bench.scorer, bench.model, 1)
    assert Worker(bench.database, stage, 0.01, 60).work_once()
    bench.report()
    assert bench.reports() == []
    waiting = only(bench.jobs(Kind.REPORT))
    assert (waiting.state, waiting.attempts, waiting.error) == ("ready", 0, "Waits for scores")
    bench.score()
    bench.report()
    assert len(images_in(only(bench.reports()))) == 2
    assert bench.states(Kind.REPORT) == ["done"]


def test_a_report_is_stored_with_its_uids_and_a_delivery_to_each_destination(
    database: Database, tmp_path: Path
) -> None:
    unwanted = Destination(ae_title="NOTHING", host="127.0.0.1", port=106, send=())
    bench = Bench(database, tmp_path, settings=Settings(destinations=(PACS, ARCHIVE, unwanted)))
    bench.receive(radiograph())
    bench.score()
    bench.report()
    report = only(bench.reports())
    read = parsed(report)
    assert (read.SOPClassUID, read.SOPInstanceUID) == (report.sop_class_uid, report.sop_instance_uid)
    assert read.SeriesInstanceUID == report.series_instance_uid
    assert images_in(report) == [radiograph().SOPInstanceUID]
    assert find(report.content, "Certainty of Finding") == ["87.31 %"]
    assert [(d.destination, d.state, d.tries) for d in bench.deliveries()] == [
        ("PACS", "pending", 0),
        ("ARCHIVE", "pending", 0),
    ]
    assert bench.deliveries()[0].give_up_at - report.made_at == timedelta(hours=72)
    assert [job.lane for job in bench.jobs(Kind.DELIVER)] == ["PACS", "ARCHIVE"]
    assert bench.rows()[0]["report_uid"] == report.sop_instance_uid
    assert_valid(report.content, tmp_path)


def test_without_destinations_a_report_is_stored_all_the_same(database: Database, tmp_path: Path) -> None:
    bench = Bench(database, tmp_path, settings=Settings())
    bench.receive(radiograph())
    bench.score()
    bench.report()
    assert len(bench.reports()) == 1
    assert (bench.deliveries(), bench.jobs(Kind.DELIVER)) == ([], [])


def test_a_late_image_makes_a_revision_that_supersedes_the_first(bench: Bench, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        bench.receive(radiograph(number=number))
        bench.score()
        bench.report()
    reports = bench.reports()
    assert [report.revision for report in reports] == [1, 2, 3]
    assert [parsed(report).InstanceNumber for report in reports] == [1, 2, 3]
    assert [len(images_in(report)) for report in reports] == [1, 2, 3]
    assert len({report.series_instance_uid for report in reports}) == 1
    assert "PredecessorDocumentsSequence" not in parsed(reports[0])
    for earlier, later in pairwise(reports):
        predecessor = only(parsed(later).PredecessorDocumentsSequence)
        series = only(predecessor.ReferencedSeriesSequence)
        assert series.SeriesInstanceUID == earlier.series_instance_uid
        reference = only(series.ReferencedSOPSequence)
        assert reference.ReferencedSOPInstanceUID == earlier.sop_instance_uid
        assert_valid(later.content, tmp_path)
    assert len(bench.deliveries()) == 3


def test_a_late_image_scored_by_a_newer_model_leaves_the_earlier_scores_alone(bench: Bench) -> None:
    bench.receive(radiograph(number=1))
    bench.score()
    bench.report()
    bench.model = bench.register("7a" * 32, threshold=0.9)
    bench.receive(radiograph(number=2, view="LL"))
    bench.score()
    bench.report()
    first, second = bench.reports()
    assert find(second.content, "Threshold Value") == ["50.00 %"]
    assert len(parsed(second).ContributingEquipmentSequence) == 2
    assert second.sop_instance_uid != first.sop_instance_uid


def test_where_nothing_is_new_there_is_no_new_revision(bench: Bench) -> None:
    bench.receive(radiograph())
    bench.score()
    bench.report()
    assert bench.receive_again(radiograph()) is Received.AGAIN
    bench.score()
    bench.report()
    study = only(bench.jobs(Kind.REPORT)).ref
    with bench.database.write() as session:
        enqueue(session, Kind.REPORT, study)
    bench.report()
    assert bench.states(Kind.REPORT) == ["done"]
    assert len(bench.reports()) == len(bench.deliveries()) == 1


@pytest.mark.parametrize(
    ("sop_class", "modality"), [(CTImageStorage, "CT"), (ComprehensiveSRStorage, "SR")], ids=["CT", "SR"]
)
def test_a_study_without_radiographs_gets_no_report(bench: Bench, sop_class: str, modality: str) -> None:
    bench.receive(other(sop_class, modality, 1))
    bench.score()
    bench.report()
    assert bench.reports() == []
    assert bench.states(Kind.SCORE) == bench.states(Kind.REPORT) == ["done"]


def test_the_report_of_a_mixed_study_lists_the_radiographs_alone(bench: Bench) -> None:
    bench.receive(other(ComprehensiveSRStorage, "SR", 1))
    bench.receive(radiograph(number=2))
    bench.receive(other(CTImageStorage, "CT", 3))
    bench.score()
    bench.report()
    report = only(bench.reports())
    assert images_in(report) == [radiograph(number=2).SOPInstanceUID]
    assert reasons_in(report) == []
    bench.receive(other(CTImageStorage, "CT", 4))
    bench.score()
    bench.report()
    assert len(bench.reports()) == 1


def test_a_score_that_comes_while_the_report_is_made_is_in_the_report(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = bench.register("7a" * 32)

    def build_slowly(*arguments: Any, **options: Any) -> BuiltReport:
        monkeypatch.setattr(stage, "build", build)
        made = build(*arguments, **options)
        with bench.database.write() as session:
            queries.add_score(session, score)
        return made

    bench.receive(radiograph())
    bench.score()
    score = NewScore(
        instance_id=only(bench.jobs(Kind.SCORE)).ref,
        model_id=newer.id,
        probability=0.0312,
        threshold=0.5,
        decision="negative",
        reason=None,
        detail="",
        view="PA",
        novelty=0.7,
        age=3.0,
        scored_at=datetime.now(UTC),
    )
    monkeypatch.setattr(stage, "build", build_slowly)
    worker = Worker(bench.database, bench.report_stage(), 0.01, 60)
    assert worker.work_once()
    assert (bench.reports(), bench.deliveries()) == ([], [])
    assert worker.work_once()
    report = only(bench.reports())
    assert (report.revision, find(report.content, "Certainty of Finding")) == (1, ["3.12 %"])


def test_an_image_that_comes_while_the_report_is_made_is_in_the_report(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_slowly(*arguments: Any, **options: Any) -> BuiltReport:
        monkeypatch.setattr(stage, "build", build)
        bench.receive(radiograph(number=2))
        return build(*arguments, **options)

    bench.receive(radiograph())
    bench.score()
    monkeypatch.setattr(stage, "build", build_slowly)
    bench.report()
    assert bench.reports() == []
    bench.score()
    bench.report()
    assert len(images_in(only(bench.reports()))) == 2


def remove(place: Path) -> None:
    place.unlink()


def garble(place: Path) -> None:
    place.write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 100)


@pytest.mark.parametrize(
    ("spoil", "why"), [(remove, "all files of the study"), (garble, "The data set does not parse")]
)
def test_without_the_header_of_an_image_the_report_fails_and_says_why(
    bench: Bench, spoil: Callable[[Path], None], why: str
) -> None:
    place = bench.spool.path(bench.receive(radiograph()))
    bench.score()
    content = place.read_bytes()
    spoil(place)
    bench.report()
    assert bench.states(Kind.REPORT) == ["failed"]
    failure = only(bench.failures())
    assert failure.study_instance_uid == radiograph().StudyInstanceUID
    assert failure.error.startswith("No report can be made: ")
    assert why in failure.error
    assert bench.reports() == []
    place.write_bytes(content)
    assert bench.retry() == 1
    bench.report()
    assert images_in(only(bench.reports())) == [radiograph().SOPInstanceUID]


def test_a_header_that_cannot_be_read_now_is_read_later(bench: Bench) -> None:
    place = bench.spool.path(bench.receive(radiograph()))
    bench.score()
    content = place.read_bytes()
    place.unlink()
    place.mkdir()
    bench.report()
    waiting = only(bench.jobs(Kind.REPORT))
    assert (waiting.state, waiting.attempts) == ("ready", 1)
    assert waiting.error == "The file cannot be read: Is a directory"
    place.rmdir()
    place.write_bytes(content)
    bench.hurry()
    bench.report()
    assert len(bench.reports()) == 1


def test_each_study_has_a_report_of_its_own(bench: Bench) -> None:
    for study in ("1", "2", "1"):
        bench.receive(radiograph(study=study, number=len(bench.jobs(Kind.SCORE))))
    bench.score()
    bench.report()
    assert [parsed(report).PatientID for report in bench.reports()] == ["PID-1", "PID-2"]
    assert [len(images_in(report)) for report in bench.reports()] == [2, 1]


# Names in all character sets


@pytest.mark.parametrize("backend", ["sqlite"])
@pytest.mark.parametrize("name", CHARSET_FILES)
def test_names_come_back_byte_for_byte(bench: Bench, name: str, tmp_path: Path) -> None:
    source, value = named(name)
    place = bench.spool.path(bench.receive(source))
    assert value in place.read_bytes()
    bench.score()
    bench.report()
    report = only(bench.reports())
    read = parsed(report)
    assert read.get_item(PATIENT_NAME).value == value
    assert read.SpecificCharacterSet == source.SpecificCharacterSet
    assert read.PatientName == source.PatientName
    assert errors(report.content, tmp_path) == []


def test_reports_of_all_character_sets_are_stored_as_they_are(bench: Bench) -> None:
    values = []
    for name in CHARSET_FILES:
        source, value = named(name)
        values.append(value)
        bench.receive(source)
    bench.score()
    bench.report()
    assert [parsed(report).get_item(PATIENT_NAME).value for report in bench.reports()] == values
    assert [row["patient_name"] for row in bench.rows()] == [
        str(dcmread(file).PatientName).strip() for file in CHARSET_FILES.values()
    ]
