"""The whole node as its users have it: `pacs-node serve`, DCMTK that sends, Orthanc that gets the reports."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import RLELossless

from db.results import Filter, results
from db.session import Database
from db.status import Counts, counts
from pacs_node.demo.peers import NodeProcess, free_port
from pacs_node.demo.samples import Sample
from tests.conftest import radiograph, save
from tests.helpers.commands import command, configure, wait_for
from tests.helpers.peers import Orthanc, orthanc, storescu
from tests.helpers.reports import errors, find


@dataclass
class Site:
    """A node with its database, and the PACS beside it."""

    folder: Path
    port: int
    database: Database
    pacs: Orthanc

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    def rows(self, **wanted: Any) -> list[dict[str, Any]]:
        with self.database.read() as session:
            return results(session, Filter(**wanted))

    def counts(self) -> Counts:
        with self.database.read() as session:
            return counts(session)

    def settle(self, images: int) -> None:
        """Wait until so many images are received, and nothing is left to do."""

        def is_settled() -> bool:
            now = self.counts()
            ready = sum(number for (_, state), number in now.jobs.items() if state == "ready")
            return now.instances >= images and not ready

        wait_for(is_settled, "all jobs to be done")

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "node.log").read_text().splitlines()]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A running node on each database, with Orthanc as its destination."""
    folder = tmp_path_factory.mktemp("site")
    url = f"sqlite:///{folder / 'results.sqlite'}"
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_server")
        url = server.url(server.create())
    port = free_port()
    with orthanc(folder / "orthanc", {"PACS_NODE": port}) as pacs:
        configure(folder, url, pacs.port, port)
        with NodeProcess(folder / "config.toml", folder / "node.log") as node:
            node.wait_until_ready()
            database = Database(url)
            yield Site(folder, port, database, pacs)
            database.close()
    assert node.exit_code == 0


@pytest.fixture(scope="module")
def sent(site: Site, drawn_studies: list[Sample]) -> list[Sample]:
    """The drawn studies, sent with DCMTK and through with."""
    for sample in drawn_studies:  # one association each, with the transfer syntax of the file
        options = ("-xv",) if "JPEG 2000" in sample.truth else ()
        done = storescu(sample.path, port=site.port, options=options)
        assert done.returncode == 0, done.stdout + done.stderr
    site.settle(len(drawn_studies))
    return drawn_studies


def test_every_image_that_dcmtk_sends_is_answered_in_the_view_results(site: Site, sent: list[Sample]) -> None:
    for sample in sent:
        (row,) = [
            r
            for r in site.rows(study=sample.study_instance_uid)
            if r["sop_instance_uid"] == sample.sop_instance_uid
        ]
        came_out = row["reason"] or row["decision"]
        assert (came_out, row["patient_id"]) == (sample.expected, sample.patient)
        assert (row["probability"] is None) == (row["decision"] == "not_scored")
        assert row["deliveries"] == "PACS: committed"
        assert row["model_name"] == "densenet121-kermany"
        assert row["received_at"] <= row["scored_at"]


def test_orthanc_holds_one_valid_report_for_each_study_that_says_what_the_database_says(
    site: Site, sent: list[Sample], tmp_path: Path
) -> None:
    studies = {sample.study_instance_uid for sample in sent}
    files = {str(dcmread(BytesIO(file)).StudyInstanceUID): file for file in site.pacs.files()}
    assert len([uid for uid in files if uid in studies]) == len(studies)
    for study in studies:
        rows = site.rows(study=study)
        report = dcmread(BytesIO(files[study]))
        assert errors(files[study], tmp_path) == []
        assert {report.SOPInstanceUID} == {row["report_uid"] for row in rows}
        assert {report.PatientID} == {row["patient_id"] for row in rows}
        scores = {f"{row['probability'] * 100:.2f} %" for row in rows if row["probability"] is not None}
        assert set(find(files[study], "Certainty of Finding")) == scores
        reasons = {row["reason"] for row in rows if row["reason"]}
        names = ("Reason image was not scored", "Reason answer is undetermined")
        assert {text.split()[0] for name in names for text in find(files[study], name)} == reasons


def test_the_same_study_again_changes_nothing(site: Site, sent: list[Sample]) -> None:
    before, held = site.counts(), site.pacs.instances()
    assert storescu(sent[0].path, port=site.port).returncode == 0
    site.settle(before.instances)
    time.sleep(1)
    assert site.counts() == before
    assert sorted(site.pacs.instances()) == sorted(held)


def test_a_late_image_brings_a_revision_that_names_the_report_before(
    site: Site, sent: list[Sample], tmp_path: Path
) -> None:
    first = save(radiograph("CR", study="late", number=1), tmp_path / "1.dcm")
    second = save(radiograph("CR", study="late", number=2), tmp_path / "2.dcm")
    seen = site.counts().instances
    for number, path in enumerate((first, second), 1):
        assert storescu(path, port=site.port).returncode == 0
        site.settle(seen + number)
    study = str(dcmread(first).StudyInstanceUID)
    found = [dcmread(BytesIO(file)) for file in site.pacs.files()]
    one, two = sorted((r for r in found if r.StudyInstanceUID == study), key=lambda r: int(r.InstanceNumber))
    assert (one.InstanceNumber, two.InstanceNumber) == (1, 2)
    series = two.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == one.SOPInstanceUID
    assert {row["report_uid"] for row in site.rows(study=study)} == {two.SOPInstanceUID}


def test_two_patients_in_one_study_get_no_report_until_they_are_one(
    site: Site, sent: list[Sample], tmp_path: Path
) -> None:
    seen, reports = site.counts().instances, len(site.pacs.files())
    study = str(radiograph(study="mixed").StudyInstanceUID)
    for number, patient in enumerate(("P-ONE", "P-TWO"), 1):
        image = radiograph("CR", study="mixed", number=number, PatientID=patient, PatientName=f"{patient}^X")
        assert storescu(save(image, tmp_path / f"{number}.dcm"), port=site.port).returncode == 0
        site.settle(seen + number)
    asked = command("results", "--patient", "P-TWO", "--format", "json", "--config", site.config)
    (row,) = json.loads(asked.stdout)
    assert (row["sop_instance_uid"], row["study_problem"]) == (image.SOPInstanceUID, "PATIENTS_DIFFER")
    status = command("status", "--config", site.config, COLUMNS="500")
    assert status.returncode == 1
    assert f"PATIENTS_DIFFER: the images of study {study} name different patients" in status.stdout
    assert [e["study"] for e in site.events() if e["event"] == "patients differ"] == [study]
    sent_before = site.pacs.files()
    assert len(sent_before) == reports + 1  # of the first one's image, before the second one's came
    image.PatientID, image.PatientName = "P-ONE", "P-ONE^X"
    image.compress(RLELossless, generate_instance_uid=False)
    corrected = save(image, tmp_path / "corrected.dcm")
    assert storescu(corrected, port=site.port, options=("-xr",)).returncode == 0
    site.settle(seen + 3)
    after = [dcmread(BytesIO(file)) for file in site.pacs.files() if file not in sent_before]
    assert [(str(r.StudyInstanceUID), r.PatientID, r.InstanceNumber) for r in after] == [(study, "P-ONE", 2)]
    assert {row["patient_id"] for row in site.rows(study=study)} == {"P-ONE"}
    assert command("status", "--config", site.config).returncode == 0


def test_real_radiographs_have_a_score_or_a_reason(
    site: Site, sent: list[Sample], shared: Path, tmp_path: Path
) -> None:
    seen = site.counts().instances
    files = [shared / "data" / "dicom" / name for name in ("RG1_J2KI.dcm", "RG3_J2KR.dcm")]
    done = command("send", *files, "--to", f"PACS_NODE@127.0.0.1:{site.port}")
    assert done.returncode == 0, done.stderr
    site.settle(seen + 2)
    chest, hand = (site.rows(study=str(dcmread(file).StudyInstanceUID))[0] for file in files)
    assert 0 <= chest["probability"] <= 1
    assert (hand["decision"], hand["reason"]) == ("not_scored", "NOT_CHEST")
    for file in site.pacs.files():
        assert errors(file, tmp_path) == []


def test_a_killed_scoring_process_comes_back_and_nothing_is_lost(
    site: Site, sent: list[Sample], tmp_path: Path
) -> None:
    seen = site.counts().instances
    victim = _process(site, "role score")
    paths = [save(radiograph("DX", study=f"kill{n}"), tmp_path / f"{n}.dcm") for n in range(4)]
    os.kill(victim, signal.SIGKILL)
    assert storescu(*paths, port=site.port).returncode == 0
    site.settle(seen + len(paths))
    for path in paths:
        (row,) = site.rows(study=str(dcmread(path).StudyInstanceUID))
        assert row["probability"] is not None
        assert row["deliveries"] == "PACS: committed"
    assert _process(site, "role score") != victim


def test_a_spool_that_is_not_mounted_is_not_taken_for_a_new_one(site: Site, sent: list[Sample]) -> None:
    config = site.folder / "elsewhere.toml"
    text = site.config.read_text().replace(f"port = {site.port}", f"port = {free_port()}", 1)
    config.write_text(f'[spool]\npath = "{site.folder / "not-mounted"}"\n{text}')
    done = command("serve", "--config", config)
    assert done.returncode == 2
    assert "is its disk mounted?" in done.stderr


def test_results_status_and_retry_answer_people_and_scripts(site: Site, sent: list[Sample]) -> None:
    patient = sent[0].patient
    table = command("results", "--patient", patient, "--config", site.config, COLUMNS="120")
    assert "NOT_FRONTAL" in table.stdout
    assert "0." in table.stdout
    asked = command("results", "--patient", patient, "--format", "json", "--config", site.config)
    assert {row["sop_instance_uid"] for row in json.loads(asked.stdout)} == {
        s.sop_instance_uid for s in sent[:2]
    }
    sheet = command(
        "results", "--decision", "positive", "--since", "2h", "--format", "csv", "--config", site.config
    )
    assert {row["decision"] for row in csv.DictReader(io.StringIO(sheet.stdout))} == {"positive"}
    for_study = ("ledger", "--study", sent[0].study_instance_uid, "--config", site.config)
    account = json.loads(command(*for_study, "--format", "json").stdout)
    assert {row["sop_instance_uid"] for row in account} == {s.sop_instance_uid for s in sent[:2]}
    assert {(row["destination"], row["state"], row["status"]) for row in account} == {
        ("PACS", "committed", 0)
    }
    assert all(row["delivered_at"] <= row["committed_at"] for row in account)
    shown = command(*for_study, COLUMNS="80").stdout
    assert sent[0].sop_instance_uid in shown
    assert "PACS: committed 0x0000" in shown
    assert command(*for_study, "--state", "failed").stdout.strip() == "No image matches."
    status = command("status", "--format", "json", "--config", site.config)
    assert status.returncode == 0, status.stdout
    assert json.loads(status.stdout)["spool"] == {"orphans": [], "missing": []}
    assert json.loads(status.stdout)["deliveries"] == {}
    assert "All is well" in command("status", "--config", site.config).stdout
    assert "0 jobs" in command("retry", "--failed", "--config", site.config).stdout
    assert command("retry", "1.2.3", "--config", site.config).returncode == 2


def test_no_line_of_the_log_names_a_patient(site: Site, sent: list[Sample]) -> None:
    text = (site.folder / "node.log").read_text()
    for sample in sent:
        header = dcmread(sample.path, stop_before_pixels=True)
        assert str(header.PatientName).split("=")[0] not in text
        assert f'"{sample.patient}"' not in text
    assert {"ready", "instance stored", "instance scored", "report made", "report delivered"} <= {
        event["event"] for event in site.events()
    }


def _process(site: Site, what: str) -> int:
    """Return the id of the process of the site's node whose command line says `what`."""
    found: list[int] = []

    def look() -> bool:
        found.clear()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if what in line and str(site.config) in line:
                found.append(int(folder.name))
        return bool(found)

    wait_for(look, what)
    return found[0]
