"""The stages: each image ends in one score, each quiet study in one report that states them all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.data import get_charset_files
from pydicom.dataset import Dataset
from pydicom.uid import UID, ComprehensiveSRStorage, CTImageStorage
from sqlalchemy import select, update

from classifier.errors import Reason
from classifier.outcome import Decision, Prediction
from db import queries
from db.models import Delivery, Instance, Job, Report, Score, Study
from db.operations import Failure, counts, failures, retry
from db.queue import MAX_ATTEMPTS, Kind, enqueue
from db.results import Filter, results
from db.rows import NewInstance, NewScore, Received, StoredModel
from db.session import Database
from pacs_node import pipeline
from pacs_node.config import Destination, Settings
from pacs_node.header import identity, read_header
from pacs_node.pipeline import ReportStage, Scorer, ScoreStage
from pacs_node.report import Node, build
from pacs_node.report import Report as BuiltReport
from pacs_node.spool import Spool, digest
from pacs_node.worker import Stage, Worker
from tests.conftest import radiograph, save
from tests.test_report import assert_valid, errors, find

PATIENT_NAME, SPECIFIC_CHARACTER_SET = 0x00100010, 0x00080005
PACS = Destination(ae_title="PACS", host="127.0.0.1", port=104)
ARCHIVE = Destination(ae_title="ARCHIVE", host="127.0.0.1", port=105)
NODE = Node(software_version="0.1.0", station_name="CXRAI01")
A_WHILE = 50.0  # seconds


class Viewer:
    """Scores by looking at the header; it opens each file, and keeps what it was asked."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def predict(self, sources: Sequence[Path]) -> list[Prediction]:
        self.batches.append([source.stem for source in sources])
        return [self._predict(source) for source in sources]

    def _predict(self, source: Path) -> Prediction:
        image: Any = dcmread(BytesIO(source.read_bytes()), stop_before_pixels=True)
        refused = None
        if image.SOPClassUID == CTImageStorage:
            refused = Reason.NOT_RADIOGRAPH
        elif image.ViewPosition not in ("PA", "AP"):
            refused = Reason.NOT_FRONTAL
        if refused:
            return Prediction(None, Decision.NOT_SCORED, refused, f"It is {image.Modality}", None)
        return Prediction(0.8731, Decision.POSITIVE, None, "", image.ViewPosition)


class Bench:
    """One node without its network: what it received goes through its stages by hand.

    Parameters
    ----------
    scorer
        What scores; a `Viewer` unless it matters.
    settings
        The destinations count, which are PACS alone when nothing is said.
    """

    def __init__(
        self, database: Database, folder: Path, scorer: Scorer | None = None, settings: Settings | None = None
    ) -> None:
        self.database = database
        self.spool = Spool(folder / "spool")
        self.spool.prepare()
        self.viewer = Viewer()
        self.scorer = scorer or self.viewer
        self.settings = settings or Settings(destinations=(PACS,))
        self.model = self.register("5e" * 32)

    def register(self, sha256: str, threshold: float = 0.5) -> StoredModel:
        """Put a model to use."""
        named = {"sha256": sha256, "name": "DenseNet121-CXR", "version": "2025.06"}
        row = {**named, "threshold": threshold, "preprocessing": "resize 224x224", "card": "{}"}
        with self.database.write() as session:
            queries.register_model(session, row, datetime.now(UTC))
        with self.database.read() as session:
            model = queries.newest_model(session)
        assert model is not None
        return model

    def receive(self, image: Dataset, quiet_seconds: float = 0) -> str:
        """Keep and record an object as the receiver does; return its digest."""
        received = save(image, self.spool.incoming / "received")
        syntax = str(image.file_meta.TransferSyntaxUID)
        content = digest(received, syntax)
        size = received.stat().st_size
        new = NewInstance(
            **vars(identity(read_header(received))),
            transfer_syntax_uid=syntax,
            digest=content,
            size=size,
            calling_ae_title="MODALITY",
            received_at=datetime.now(UTC),
        )
        self.spool.keep(received, content)
        with self.database.write() as session:
            queries.add_instance(session, new, quiet_seconds)
        return content

    def receive_again(self, image: Dataset) -> Received:
        """Tell what the database takes the very same object for."""
        before = self.counts().instances
        self.receive(image, A_WHILE)
        return Received.AGAIN if self.counts().instances == before else Received.NEW

    def work(self, stage: Stage) -> None:
        """Do all jobs of a stage that are due."""
        worker = Worker(self.database, stage, poll_seconds=0.01, lease_seconds=60)
        while worker.work_once():
            pass

    def score(self, batch_size: int = 16) -> None:
        self.work(ScoreStage(self.database, self.spool, self.scorer, self.model, batch_size))

    def report(self) -> None:
        self.work(self.report_stage())

    def report_stage(self) -> ReportStage:
        return ReportStage(self.database, self.spool, NODE, self.settings)

    def hurry(self) -> None:
        """Let all pauses be over."""
        with self.database.write() as session:
            session.execute(update(Job).values(visible_at=0))
            session.execute(update(Study).values(quiet_at=0))

    def retry(self) -> int:
        with self.database.write() as session:
            return retry(session, None, datetime.now(UTC) + timedelta(hours=1))

    def reports(self) -> list[Report]:
        """Return all reports in the order in which they were made."""
        with self.database.read() as session:
            return list(session.scalars(select(Report).order_by(Report.id)))

    def instances(self) -> list[Instance]:
        with self.database.read() as session:
            return list(session.scalars(select(Instance).order_by(Instance.id)))

    def deliveries(self) -> list[Delivery]:
        with self.database.read() as session:
            return list(session.scalars(select(Delivery).order_by(Delivery.id)))

    def jobs(self, kind: Kind) -> list[Job]:
        with self.database.read() as session:
            return list(session.scalars(select(Job).where(Job.kind == kind).order_by(Job.ref)))

    def states(self, kind: Kind) -> list[str]:
        return [job.state for job in self.jobs(kind)]

    def rows(self) -> list[dict[str, Any]]:
        """Return what people see, in the order in which it came."""
        with self.database.read() as session:
            return sorted(results(session, Filter()), key=lambda row: str(row["received_at"]))

    def scores(self) -> list[tuple[str, str | None]]:
        """Return decision and reason of each score, in the order of the images."""
        with self.database.read() as session:
            rows = session.scalars(select(Score).order_by(Score.instance_id, Score.id))
            return [(row.decision, row.reason) for row in rows]

    def failures(self) -> list[Failure]:
        with self.database.read() as session:
            return failures(session, 10)

    def counts(self) -> Any:
        with self.database.read() as session:
            return counts(session)


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Bench:
    return Bench(database, tmp_path)


def parsed(report: Report) -> Any:
    return dcmread(BytesIO(report.content))


def images_in(report: Report) -> list[str]:
    """Return the SOP Instance UIDs that a report gives as evidence."""
    return [
        reference.ReferencedSOPInstanceUID
        for study in parsed(report).CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for reference in series.ReferencedSOPSequence
    ]


def reasons_in(report: Report) -> list[str]:
    values = find(report.content, "Reason image was not scored")
    return [value.split(" ", maxsplit=1)[0] for value in values]


def other(sop_class: str, modality: str, number: int, study: str = "1") -> Dataset:
    """Return an object that is no radiograph."""
    made = radiograph(number=number, study=study, SOPClassUID=sop_class, Modality=modality)
    made.file_meta.MediaStorageSOPClassUID = UID(sop_class)
    return made


def only(values: Sequence[Any]) -> Any:
    (value,) = values
    return value


# Scoring


def test_every_received_image_ends_in_one_score(bench: Bench) -> None:
    for number, view in enumerate(["PA", "LL", "AP"], start=1):
        bench.receive(radiograph(number=number, view=view))
    bench.receive(other(CTImageStorage, "CT", 4))
    bench.receive(radiograph(study="2"))
    bench.score(batch_size=2)
    assert bench.scores() == [
        ("positive", None),
        ("not_scored", "NOT_FRONTAL"),
        ("positive", None),
        ("not_scored", "NOT_RADIOGRAPH"),
        ("positive", None),
    ]
    assert bench.states(Kind.SCORE) == ["done"] * 5
    assert [len(batch) for batch in bench.viewer.batches] == [2, 2, 1]
    scored = [row for row in bench.rows() if row["decision"] == "positive"]
    assert [(row["probability"], row["threshold"], row["view"]) for row in scored] == [
        (0.8731, 0.5, "PA"),
        (0.8731, 0.5, "AP"),
        (0.8731, 0.5, "PA"),
    ]
    assert {row["model_sha256"] for row in bench.rows()} == {"5e" * 32}


@pytest.mark.parametrize("backend", ["sqlite"])
def test_the_model_that_ships_scores_and_what_it_cannot_score_has_a_reason(
    database: Database, tmp_path: Path
) -> None:
    from classifier.predict import Predictor

    bench = Bench(database, tmp_path, Predictor.load(device="cpu"))
    bench.receive(radiograph(number=1))
    bench.receive(radiograph(number=2, view="LL"))
    bench.receive(radiograph(number=3, PixelData=b"\0" * 100))
    bench.receive(other(CTImageStorage, "CT", 4))
    bench.score()
    bench.report()
    # The first one is noise in the frame of a chest radiograph, and the model says so
    refused = ["NOT_FRONTAL", "UNREADABLE", "NOT_RADIOGRAPH"]
    assert [reason for _, reason in bench.scores()] == ["UNLIKE_TRAINING", *refused]
    row = bench.rows()[0]
    assert 0 <= row["probability"] <= 1 < row["novelty"]
    assert (row["decision"], round(row["age"], 3)) == ("undetermined", 4)
    report = only(bench.reports())
    assert reasons_in(report) == ["NOT_FRONTAL", "UNREADABLE"]
    percent = f"{bench.rows()[0]['probability'] * 100:.2f} %"
    assert find(report.content, "Certainty of Finding") == [percent]
    assert [text.split()[0] for text in find(report.content, "Reason answer is undetermined")] == [
        "UNLIKE_TRAINING"
    ]
    assert_valid(report.content, tmp_path)


def test_the_second_object_under_one_uid_is_not_scored_and_says_so(bench: Bench, tmp_path: Path) -> None:
    first = bench.receive(radiograph())
    bench.receive(radiograph(PatientName="Somebody^Else"))
    bench.score()
    bench.report()
    assert bench.scores() == [("positive", None), ("not_scored", "DUPLICATE_UID")]
    assert bench.viewer.batches == [[first]]
    report = only(bench.reports())
    assert reasons_in(report) == ["DUPLICATE_UID"]
    assert find(report.content, "Certainty of Finding") == ["87.31 %"]
    assert parsed(report).PatientName == "Test^Alice"
    assert_valid(report.content, tmp_path)


def test_a_missing_file_fails_its_job_and_the_report_says_that_scoring_failed(
    bench: Bench, tmp_path: Path
) -> None:
    lost = bench.spool.path(bench.receive(radiograph()))
    bench.receive(radiograph(number=2))
    shutil.move(lost, tmp_path / "elsewhere")
    bench.score()
    assert bench.states(Kind.SCORE) == ["failed", "done"]
    assert only(bench.failures()).error == f"The file {lost.name} is missing from the spool"
    bench.report()
    report = only(bench.reports())
    assert reasons_in(report) == ["SCORING_FAILED"]
    assert find(report.content, "Summary of Detections") == ["111224 DCM Failed", "111222 DCM Succeeded"]
    assert len(images_in(report)) == 2
    assert_valid(report.content, tmp_path)


def test_an_image_that_is_scored_after_a_retry_makes_a_revision_that_states_its_score(
    bench: Bench, tmp_path: Path
) -> None:
    lost = bench.spool.path(bench.receive(radiograph()))
    shutil.move(lost, tmp_path / "elsewhere")
    bench.score()
    shutil.move(tmp_path / "elsewhere", lost)
    bench.report()
    assert bench.retry() == 1
    bench.score()
    bench.report()
    failed, mended = bench.reports()
    assert (reasons_in(failed), reasons_in(mended)) == (["SCORING_FAILED"], [])
    assert find(mended.content, "Certainty of Finding") == ["87.31 %"]
    assert mended.sop_instance_uid != failed.sop_instance_uid


def test_a_file_that_cannot_be_read_is_tried_later_and_costs_the_others_nothing(bench: Bench) -> None:
    digests = [bench.receive(radiograph(number=number)) for number in (1, 2, 3)]
    place = bench.spool.path(digests[1])
    content = place.read_bytes()
    place.unlink()
    place.mkdir()
    bench.score()
    assert bench.states(Kind.SCORE) == ["done", "ready", "done"]
    waiting = bench.jobs(Kind.SCORE)[1]
    assert (waiting.attempts, waiting.error) == (1, "The file cannot be read: Is a directory")
    assert bench.scores() == [("positive", None)] * 2
    bench.report()
    assert bench.reports() == []
    place.rmdir()
    place.write_bytes(content)
    bench.hurry()
    bench.score()
    assert bench.scores() == [("positive", None)] * 3
    bench.report()
    assert len(images_in(only(bench.reports()))) == 3


def test_a_file_that_stays_unreadable_does_not_hold_up_its_study_for_ever(bench: Bench) -> None:
    place = bench.spool.path(bench.receive(radiograph(number=1)))
    bench.receive(radiograph(number=2))
    content = place.read_bytes()
    place.unlink()
    place.mkdir()
    for _ in range(MAX_ATTEMPTS + 1):
        bench.score()
        bench.hurry()
    assert bench.states(Kind.SCORE) == ["failed", "done"]
    assert only(bench.failures()).error == "The file cannot be read: Is a directory"
    place.rmdir()
    place.write_bytes(content)
    bench.report()
    assert reasons_in(only(bench.reports())) == ["SCORING_FAILED"]


def test_a_study_whose_file_was_lost_after_scoring_is_reported_whole(bench: Bench, tmp_path: Path) -> None:
    places = [bench.spool.path(bench.receive(radiograph(number=number))) for number in (1, 2)]
    bench.score()
    places[0].unlink()
    bench.report()
    report = only(bench.reports())
    assert find(report.content, "Certainty of Finding") == ["87.31 %"] * 2
    assert len(images_in(report)) == 2
    assert parsed(report).PatientName == "Test^Alice"
    assert_valid(report.content, tmp_path)


class Crash(Exception):
    """Stands for the death of a process."""


def test_an_image_that_kills_the_scoring_process_is_given_up_and_the_report_says_so(
    database: Database, tmp_path: Path
) -> None:
    class Mortal(Viewer):
        def predict(self, sources: Sequence[Path]) -> list[Prediction]:
            if deadly in [source.stem for source in sources]:
                raise Crash
            return super().predict(sources)

    bench = Bench(database, tmp_path, Mortal())
    bench.receive(radiograph(number=1))
    deadly = bench.receive(radiograph(number=2))
    bench.receive(radiograph(number=3))
    while "ready" in bench.states(Kind.SCORE):
        with suppress(Crash):
            bench.score()
        bench.hurry()
    assert bench.states(Kind.SCORE) == ["done", "failed", "done"]
    bench.report()  # at once, and not when its patience ends
    report = only(bench.reports())
    assert reasons_in(report) == ["SCORING_FAILED"]
    assert find(report.content, "Certainty of Finding") == ["87.31 %"] * 2


# Reporting


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

    def build_slowly(*arguments: Any) -> BuiltReport:
        monkeypatch.setattr(pipeline, "build", build)
        made = build(*arguments)
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
    monkeypatch.setattr(pipeline, "build", build_slowly)
    worker = Worker(bench.database, bench.report_stage(), 0.01, 60)
    assert worker.work_once()
    assert (bench.reports(), bench.deliveries()) == ([], [])
    assert worker.work_once()
    report = only(bench.reports())
    assert (report.revision, find(report.content, "Certainty of Finding")) == (1, ["3.12 %"])


def test_an_image_that_comes_while_the_report_is_made_is_in_the_report(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_slowly(*arguments: Any) -> BuiltReport:
        monkeypatch.setattr(pipeline, "build", build)
        bench.receive(radiograph(number=2))
        return build(*arguments)

    bench.receive(radiograph())
    bench.score()
    monkeypatch.setattr(pipeline, "build", build_slowly)
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

CHARSET_FILES = {
    Path(file).stem: file
    for file in map(str, get_charset_files("*.dcm"))
    if PATIENT_NAME in dcmread(file, stop_before_pixels=True, specific_tags=[PATIENT_NAME])
}
OF_THE_IMAGE = (0x0008, 0x0018, 0x0020, 0x0028, 0x7FE0)


def named(name: str) -> tuple[Dataset, bytes]:
    """Return a chest radiograph with the patient of one of pydicom's files, and the bytes of the name."""
    source = dcmread(CHARSET_FILES[name], stop_before_pixels=True)
    value = bytes(source.get_item(PATIENT_NAME).value)
    image = radiograph(study=str([*CHARSET_FILES].index(name)))
    for element in image:
        if element.tag.group in OF_THE_IMAGE:
            source[element.tag] = element
    source.file_meta = image.file_meta
    return source, value


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
