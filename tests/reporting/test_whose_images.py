"""Whose images they are: no report under another name, and the newest values after a correction."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ComprehensiveSRStorage, CTImageStorage, JPEGLSLossless, RLELossless
from sqlalchemy import text, update

from db import status
from db.models import Instance
from db.queue import Kind
from db.results import Filter, ledger, results
from db.session import Database
from pacs_node.config import Settings
from pacs_node.running.status import snapshot
from pacs_node.storage.housekeeper import Housekeeper
from tests.conftest import radiograph, uid
from tests.helpers import workbench
from tests.helpers.reports import assert_valid, find
from tests.helpers.workbench import Bench, images_in, only, other, parsed, reasons_in

# A fixture: pytest finds it by the name that it has here.
bench = workbench.bench

ONE = {"PatientID": "P-ONE", "PatientName": "One^Patient", "AccessionNumber": "ACC1"}
TWO = {"PatientID": "P-TWO", "PatientName": "Two^Patient", "AccessionNumber": "ACC2"}


def come(bench: Bench, *images: Dataset) -> None:
    """Let objects come, and do all that follows."""
    for image in images:
        bench.receive(image)
    bench.score()
    bench.report()


def image(number: int, patient: Mapping[str, Any], **tags: Any) -> Dataset:
    return radiograph(number=number, **{**patient, **tags})


def encoded(made: Dataset, syntax: str) -> Dataset:
    made.compress(syntax, generate_instance_uid=False)
    return made


def found(bench: Bench, patient: str) -> list[str]:
    with bench.database.read() as session:
        return [row["sop_instance_uid"] for row in results(session, Filter(patient=patient, limit=10))]


def problems(bench: Bench) -> list[str]:
    seen = snapshot(bench.settings, bench.database, datetime.now(UTC))
    return [problem for problem in seen.problems if "PATIENTS_DIFFER" in problem]


def of_the_study(bench: Bench) -> set[str | None]:
    return {row["study_problem"] for row in bench.rows()}


def assert_held(bench: Bench) -> None:
    """Check that no report is made, and that everyone can see why."""
    (said,) = problems(bench)
    assert uid("1", "study") in said
    assert of_the_study(bench) == {"PATIENTS_DIFFER"}
    assert bench.states(Kind.REPORT) == ["failed"]
    assert "different patients" in only(bench.failures()).error


def assert_well(bench: Bench) -> None:
    assert (problems(bench), of_the_study(bench), bench.states(Kind.REPORT)) == ([], {None}, ["done"])


def test_each_image_is_found_under_its_own_patient_and_order(bench: Bench) -> None:
    come(bench, image(1, ONE), image(2, TWO, IssuerOfPatientID="HOSPITAL-B", PatientBirthDate="20220214"))
    assert (found(bench, "P-ONE"), found(bench, "Two^Patient")) == ([uid("1", 1)], [uid("1", 2)])
    first, second = bench.rows()
    assert (first["accession_number"], second["accession_number"]) == ("ACC1", "ACC2")
    assert (second["issuer_of_patient_id"], second["patient_birth_date"]) == ("HOSPITAL-B", "20220214")
    with bench.database.read() as session:
        (row,) = ledger(session, Filter(patient="P-TWO", limit=10))
        assert (row["accession_number"], row["patient_name"]) == ("ACC2", "Two^Patient")
        assert [r["patient_id"] for r in results(session, Filter(accession="ACC2"))] == ["P-TWO"]


@pytest.mark.parametrize(
    "second",
    [
        TWO,
        {**ONE, "IssuerOfPatientID": "HOSPITAL-B"},
        {**ONE, "PatientID": "p-one"},
        {**ONE, "IssuerOfPatientID": None, "PatientName": "Two^Patient"},
        {**ONE, "PatientID": "", "PatientBirthDate": "20220214"},
    ],
    ids=["another", "issuer", "case", "no issuer, other name", "no ID, other birth date"],
)
def test_a_study_of_two_patients_gets_no_report_until_all_its_images_are_of_one(
    bench: Bench, second: dict[str, Any], tmp_path: Path
) -> None:
    come(bench, image(1, ONE), image(2, second))
    assert bench.reports() == []
    assert_held(bench)
    come(bench, image(2, ONE, PatientComments="corrected"))
    report = only(bench.reports())
    assert (parsed(report).PatientID, len(images_in(report))) == ("P-ONE", 2)
    assert_well(bench)
    assert len(found(bench, "P-ONE")) == 2
    assert_valid(report.content, tmp_path)


@pytest.mark.parametrize(
    "second",
    [
        {**ONE, "IssuerOfPatientID": None},
        {**ONE, "PatientID": None, "PatientName": "ONE^PATIENT^^"},
        {**ONE, "PatientName": "One^Patient=一^患者", "SpecificCharacterSet": "ISO_IR 192"},
        {**ONE, "PatientName": "Won^Patient"},
        {**ONE, "PatientID": "P-ONE "},
    ],
    ids=["no issuer", "no ID", "groups", "spelling", "padding"],
)
def test_the_same_patient_written_in_another_way_is_one(bench: Bench, second: dict[str, Any]) -> None:
    come(bench, image(1, ONE), image(2, second))
    assert len(images_in(only(bench.reports()))) == 2
    assert_well(bench)


def test_three_patients_are_corrected_one_by_one(bench: Bench) -> None:
    come(bench, image(1, ONE), image(2, TWO), image(3, {**ONE, "PatientID": "P-THREE"}))
    assert_held(bench)
    come(bench, image(2, ONE, PatientComments="corrected"))
    assert bench.reports() == []
    assert_held(bench)
    come(bench, image(3, ONE, PatientComments="corrected"))
    assert len(images_in(only(bench.reports()))) == 3
    assert_well(bench)


def test_a_second_patient_after_the_report_makes_no_revision_under_either_name(bench: Bench) -> None:
    come(bench, image(1, ONE))
    bench.deliver_all()
    come(bench, image(2, TWO))
    assert len(bench.reports()) == 1
    assert [delivery.state for delivery in bench.deliveries()] == ["delivered"]
    assert_held(bench)
    come(bench, image(1, TWO))
    first, second = bench.reports()
    assert (parsed(first).PatientID, parsed(second).PatientID) == ("P-ONE", "P-TWO")
    assert parsed(second).AccessionNumber == "ACC2"
    (before,) = parsed(second).PredecessorDocumentsSequence
    assert before.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == (
        first.sop_instance_uid
    )
    assert_well(bench)
    assert found(bench, "P-ONE") == []


def test_a_report_that_was_not_sent_yet_is_withdrawn(bench: Bench) -> None:
    come(bench, image(1, ONE), image(2, TWO, StudyInstanceUID=uid("2", "study")))
    come(bench, image(3, TWO))
    states = {row["report_uid"]: row["deliveries"] for row in bench.rows()}
    assert states[bench.reports()[0].sop_instance_uid] == "PACS: abandoned"
    assert states[bench.reports()[1].sop_instance_uid] == "PACS: pending"
    assert bench.retry() == 1  # the report job alone
    bench.report()
    assert [delivery.state for delivery in bench.deliveries()] == ["abandoned", "pending"]


def test_a_report_under_a_corrected_identity_replaces_the_one_that_was_not_sent(bench: Bench) -> None:
    come(bench, image(1, ONE))
    come(bench, image(1, TWO))
    assert [parsed(report).PatientID for report in bench.reports()] == ["P-ONE", "P-TWO"]
    assert [delivery.state for delivery in bench.deliveries()] == ["abandoned", "pending"]
    assert_well(bench)


@pytest.mark.parametrize(
    "correction",
    [
        {"PatientName": "Won^Patient"},
        {"AccessionNumber": "ACC9"},
        {"StudyDescription": "THORAX"},
        {"ReferringPhysicianName": "Else^Doctor"},
    ],
    ids=lambda tags: next(iter(tags)),
)
def test_a_correction_of_one_image_of_two_makes_a_revision_with_the_newest_values(
    bench: Bench, correction: dict[str, str], tmp_path: Path
) -> None:
    come(bench, image(1, ONE), image(2, ONE))
    come(bench, image(2, ONE, **correction))
    first, second = bench.reports()
    ((keyword, value),) = correction.items()
    assert (parsed(first)[keyword].value, parsed(second)[keyword].value) == (
        image(1, ONE)[keyword].value,
        value,
    )
    assert (second.revision, len(images_in(second)), reasons_in(second)) == (2, 2, [])
    assert find(second.content, "Certainty of Finding") == ["87.31 %"] * 2
    assert [delivery.state for delivery in bench.deliveries()] == ["pending", "pending"]
    assert len(bench.rows()) == 2
    assert_valid(second.content, tmp_path)


def test_a_correction_that_is_taken_back_counts_as_the_newest(bench: Bench) -> None:
    for patient in (ONE, TWO, ONE, TWO):
        come(bench, image(1, patient))
    reports = bench.reports()
    assert [parsed(report).PatientID for report in reports] == ["P-ONE", "P-TWO", "P-ONE", "P-TWO"]
    assert len({report.sop_instance_uid for report in reports}) == 4
    assert [row["patient_id"] for row in bench.rows()] == ["P-TWO"]
    assert bench.counts().instances == 2


def test_the_same_image_in_another_encoding_is_one_image_and_makes_no_revision(bench: Bench) -> None:
    come(bench, image(1, ONE))
    come(bench, encoded(image(1, ONE), RLELossless))
    come(bench, encoded(image(1, ONE), JPEGLSLossless))
    report = only(bench.reports())
    assert bench.scores() == [("positive", None)] * 3
    assert [row["report_uid"] for row in bench.rows()] == [report.sop_instance_uid]
    with bench.database.read() as session:
        copies = ledger(session, Filter())
    assert {row["report_uid"] for row in copies} == {report.sop_instance_uid}
    assert sorted(row["is_replaced"] for row in copies) == [0, 1, 1]
    assert_well(bench)


def test_two_encodings_that_come_together_are_one_image_of_the_report(bench: Bench) -> None:
    come(bench, image(1, ONE), encoded(image(1, ONE), RLELossless))
    report = only(bench.reports())
    assert (len(images_in(report)), reasons_in(report)) == (1, [])
    assert find(report.content, "Certainty of Finding") == ["87.31 %"]


def test_other_pixels_under_one_uid_are_flagged_and_their_copies_too(bench: Bench, tmp_path: Path) -> None:
    others = radiograph(study="2").PixelData
    come(bench, image(1, ONE), image(1, ONE, PixelData=others))
    come(bench, image(1, ONE, PixelData=others, StudyDescription="THORAX"))
    duplicate = ("not_scored", "DUPLICATE_UID")
    assert bench.scores() == [("positive", None), duplicate, duplicate]
    first, second = bench.reports()
    assert (reasons_in(first), reasons_in(second)) == (["DUPLICATE_UID"], ["DUPLICATE_UID"])
    assert parsed(second).StudyDescription == "THORAX"
    assert len(bench.rows()) == 2
    assert_valid(second.content, tmp_path)


def test_other_pixels_of_another_patient_under_one_uid_get_no_report(bench: Bench) -> None:
    come(bench, image(1, ONE), image(1, TWO, PixelData=radiograph(study="2").PixelData))
    assert bench.reports() == []
    assert_held(bench)


def test_the_same_uid_in_another_study_is_another_object(bench: Bench) -> None:
    come(bench, image(1, ONE))
    come(bench, image(1, ONE, StudyInstanceUID=uid("2", "study")))
    assert bench.scores()[1] == ("not_scored", "DUPLICATE_UID")


def test_a_lossy_copy_is_a_doubt_of_its_own(bench: Bench) -> None:
    lossy = image(1, ONE, LossyImageCompression="01", PixelData=radiograph(study="2").PixelData)
    come(bench, image(1, ONE), lossy)
    assert bench.scores()[1] == ("not_scored", "LOSSY_COPY")
    assert reasons_in(only(bench.reports())) == ["LOSSY_COPY"]


def test_a_copy_whose_first_file_is_gone_is_flagged(bench: Bench) -> None:
    bench.spool.path(bench.receive(image(1, ONE))).unlink()
    come(bench, image(1, ONE, PatientComments="other"))
    assert bench.scores()[-1] == ("not_scored", "DUPLICATE_UID")
    assert "gone" in bench.rows()[-1]["detail"]


def test_a_copy_that_failed_to_be_scored_leaves_no_report_without_a_uid_of_its_own(bench: Bench) -> None:
    come(bench, image(1, ONE))
    place = bench.spool.path(bench.receive(image(1, ONE, StudyDescription="THORAX")))
    content = place.read_bytes()
    place.unlink()
    bench.score()
    bench.report()
    place.write_bytes(content)
    bench.retry()
    bench.score()
    bench.report()
    reports = bench.reports()
    assert [reasons_in(report) for report in reports] == [[], ["SCORING_FAILED"], []]
    assert len({report.sop_instance_uid for report in reports}) == 3


@pytest.mark.parametrize(("sop_class", "is_held"), [(CTImageStorage, True), (ComprehensiveSRStorage, False)])
def test_other_objects_count_but_for_documents(bench: Bench, sop_class: str, is_held: bool) -> None:
    foreign = other(sop_class, "OT", 2)
    foreign.PatientID = "P-TWO"
    come(bench, image(1, ONE), foreign)
    assert len(bench.reports()) == (not is_held)
    assert len(problems(bench)) == is_held


def test_a_study_can_be_dismissed_until_something_comes_of_it(bench: Bench) -> None:
    come(bench, image(1, ONE), image(2, TWO))
    with bench.database.write() as session:
        assert status.dismiss(session, uid("1", "study"), datetime.now(UTC))
        assert not status.dismiss(session, uid("1", "study"), datetime.now(UTC))
    assert (problems(bench), bench.states(Kind.REPORT)) == ([], ["done"])
    assert of_the_study(bench) == {"PATIENTS_DIFFER"}
    come(bench, image(3, ONE))
    assert_held(bench)


def test_retention_keeps_what_a_person_has_yet_to_correct(bench: Bench) -> None:
    bench.settings = Settings.model_validate({"retention": {"days": 1}})
    come(bench, image(1, ONE), image(2, TWO))
    with bench.database.write() as session:
        session.execute(text("UPDATE study SET last_received_at = '2020-01-01 00:00:00'"))
        session.execute(text("UPDATE instance SET received_at = '2020-01-01 00:00:00'"))
    Housekeeper(bench.settings, bench.database, bench.spool).work_once()
    assert len([*bench.spool.stored()]) == 2
    with bench.database.write() as session:
        status.dismiss(session, uid("1", "study"), datetime.now(UTC))
    Housekeeper(bench.settings, bench.database, bench.spool).work_once()
    assert [*bench.spool.stored()] == []


def test_an_orphan_of_another_patient_is_taken_in_as_such(bench: Bench, tmp_path: Path) -> None:
    come(bench, image(1, ONE))
    bench.leave_orphan(image(2, TWO))
    bench.settings = Settings.model_validate({"spool": {"orphan_minutes": 1}, "study": {"quiet_seconds": 1}})
    Housekeeper(bench.settings, bench.database, bench.spool).work_once()
    bench.score()
    bench.hurry()
    bench.report()
    assert found(bench, "P-TWO") == [uid("1", 2)]
    assert_held(bench)


def test_what_an_earlier_version_recorded_is_read_from_the_files(bench: Bench) -> None:
    come(bench, image(1, ONE))
    bench.receive(image(2, TWO))
    bench.score()
    with bench.database.write() as session:
        session.execute(text("UPDATE job SET state = 'done'"))
        of_study = {"patient_id": "P-ONE", "patient_name": "One^Patient", "accession_number": "ACC1"}
        unread = {"issuer_of_patient_id": None, "patient_birth_date": None, "patient_sex": None}
        session.execute(update(Instance).values(**of_study, **unread))
    assert len(found(bench, "P-ONE")) == 2
    Housekeeper(bench.settings, bench.database, bench.spool).work_once()
    assert (found(bench, "P-ONE"), found(bench, "P-TWO")) == ([uid("1", 1)], [uid("1", 2)])
    bench.report()
    assert_held(bench)


def test_what_was_not_read_yet_is_read_for_the_report(database: Database, tmp_path: Path) -> None:
    bench = Bench(database, tmp_path)
    for number, patient in ((1, ONE), (2, TWO)):
        bench.receive(image(number, patient))
    with database.write() as session:
        session.execute(update(Instance).values(patient_id="P-ONE", issuer_of_patient_id=None))
    bench.score()
    bench.report()
    assert_held(bench)
