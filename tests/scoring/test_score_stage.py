"""Scoring: every image ends in one score, or in a failure that its report states."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import CTImageStorage
from sqlalchemy import select

from classifier.heat_map import HeatMap
from classifier.outcome import Prediction, StillDecoding
from db.models import Score
from db.queue import MAX_ATTEMPTS, Kind
from db.session import Database
from tests.conftest import radiograph
from tests.helpers import workbench
from tests.helpers.reports import assert_valid, find
from tests.helpers.workbench import Bench, Viewer, images_in, only, other, parsed, reasons_in

# A fixture: pytest finds it by the name that it has here.
bench = workbench.bench


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


def test_a_score_and_its_heat_map_are_one_row(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    one = HeatMap.of(np.arange(-12, 13, dtype=np.float32).reshape(5, 5), 0.5)
    attempt = bench.viewer.attempt

    def attempt_with_map(sources: Sequence[Path]) -> list[Prediction | OSError | StillDecoding]:
        found = attempt(sources)
        return [replace(p, heat_map=one) if isinstance(p, Prediction) else p for p in found]

    monkeypatch.setattr(bench.viewer, "attempt", attempt_with_map)
    bench.receive(radiograph(number=1))
    bench.score()
    with bench.database.read() as session:
        (content,) = session.scalars(select(Score.heat_map)).all()
    assert content is not None
    np.testing.assert_array_equal(HeatMap.from_bytes(content).cells, one.cells)


@pytest.mark.parametrize("backend", ["sqlite"])
def test_the_model_that_ships_scores_and_what_it_cannot_score_has_a_reason(
    database: Database, tmp_path: Path
) -> None:
    from classifier.scoring.predict import Predictor

    bench = Bench(database, tmp_path, Predictor.load(device="cpu"))
    bench.receive(radiograph(number=1))
    bench.receive(radiograph(number=2, view="LL"))
    bench.receive(radiograph(number=3, PixelData=b"\0" * 100))
    bench.receive(other(CTImageStorage, "CT", 4))
    bench.score()
    bench.report()
    # The first one is noise in the frame of a child's chest radiograph: to the gate, no child at least
    refused = ["NOT_FRONTAL", "UNREADABLE", "NOT_RADIOGRAPH"]
    assert [reason for _, reason in bench.scores()] == ["TAGS_DISAGREE", *refused]
    row = bench.rows()[0]
    assert 0 <= row["probability"] <= 1 < row["novelty"]
    assert (row["decision"], round(row["age"], 3)) == ("undetermined", 4)
    report = only(bench.reports())
    assert reasons_in(report) == ["NOT_FRONTAL", "UNREADABLE"]
    percent = f"{bench.rows()[0]['probability'] * 100:.2f} %"
    assert find(report.content, "Certainty of Finding") == [percent]
    assert [text.split()[0] for text in find(report.content, "Reason answer is undetermined")] == [
        "TAGS_DISAGREE"
    ]
    assert_valid(report.content, tmp_path)


def test_another_image_under_one_uid_is_not_scored_and_says_so(bench: Bench, tmp_path: Path) -> None:
    first = bench.receive(radiograph())
    bench.receive(radiograph(PixelData=radiograph(study="2").PixelData))
    bench.score()
    bench.report()
    assert bench.scores() == [("positive", None), ("not_scored", "DUPLICATE_UID")]
    assert bench.viewer.batches == [[first]]
    report = only(bench.reports())
    assert reasons_in(report) == ["DUPLICATE_UID"]
    assert find(report.content, "Certainty of Finding") == ["87.31 %"]
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
        def attempt(self, sources: Sequence[Path]) -> list[Prediction | OSError | StillDecoding]:
            if deadly in [source.stem for source in sources]:
                raise Crash
            return super().attempt(sources)

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
