"""What a PACS has and the node has not: listed beside Orthanc, and fetched from it by C-MOVE and C-GET."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, JPEG2000Lossless
from sqlalchemy import update

from db.models import Delivery, Instance
from db.queue import Kind
from db.session import Database
from pacs_node.cli import main
from pacs_node.config import Destination, NodeSettings, ReceiveSettings, Settings
from pacs_node.delivering.stage import DeliverStage
from pacs_node.demo.peers import free_port
from pacs_node.network import scu
from pacs_node.network.peer import Peer
from pacs_node.receiving.receiver import Receiver
from pacs_node.reconciling.findings import Missing
from pacs_node.reporting.report import ENHANCED_SR, as_class
from pacs_node.storage.spool import Spool
from tests.conftest import radiograph, save
from tests.helpers import querying
from tests.helpers.commands import command
from tests.helpers.peers import Orthanc, orthanc
from tests.helpers.querying import on_sqlite
from tests.helpers.receiving import logged, object_in
from tests.helpers.workbench import Bench, other

# A fixture: pytest finds it by the name that it has here.
as_it_was = querying.as_it_was

NODE_PORT = free_port()


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An Orthanc that knows the node; each test has studies of other days in it."""
    known = {"PACS_NODE": NODE_PORT, "VISITOR": 9}
    with orthanc(tmp_path_factory.mktemp("pacs"), known) as running:
        yield running


_days = itertools.count()


@dataclass(frozen=True)
class Done:
    """How the command ended, and what it wrote."""

    exit_code: int
    stdout: str
    stderr: str


@dataclass
class Site:
    """A node that the command finds by a config.toml, beside a PACS, with a day of its own."""

    bench: Bench
    pacs: Orthanc
    folder: Path
    day: date
    _numbers: Iterator[int]

    def image(self, study: str, number: int = 1, **tags: Any) -> Any:
        """Make a radiograph of this day."""
        ds = radiograph(study=f"{self.day:%m%d}{study}", number=number, **tags)
        ds.StudyDate = f"{self.day:%Y%m%d}"
        return ds

    def archive(self, *objects: Any) -> None:
        """Send objects to the PACS."""
        paths = [save(ds, self.folder / f"{next(self._numbers)}.dcm") for ds in objects]
        self.archive_files(*paths)

    def archive_files(self, *paths: Path) -> None:
        sent = scu.send(paths, Peer(self.pacs.ae_title, "127.0.0.1", self.pacs.port), "MODALITY")
        assert all(answer.is_stored for answer in sent)

    def settle(self) -> None:
        """Score and report what was received."""
        self.bench.score()
        self.bench.hurry()
        self.bench.report()

    def options(self, *options: str) -> list[str]:
        against = f"{self.pacs.ae_title}@127.0.0.1:{self.pacs.port}"
        since = ("--since", str(self.day), "--until", str(self.day + timedelta(days=1)))
        config = ("--config", str(self.folder / "config.toml"))
        return ["reconcile", "--against", against, *since, *config, *options]

    def run(self, *options: str) -> Done:
        """Run the command in this process."""
        printed = io.StringIO()
        arguments = ["pacs-node", *self.options(*options)]
        with mock.patch.object(sys, "argv", arguments), redirect_stdout(printed), logged() as said:
            with mock.patch.dict(os.environ, COLUMNS="160"), pytest.raises(SystemExit) as ended:
                main()
            return Done(int(str(ended.value.code)), printed.getvalue(), said())

    def found(self, *options: str) -> dict[str, Any]:
        """Run the command; return its JSON, and its exit code under "exit"."""
        done = self.run("--format", "json", *options)
        assert done.stdout, done.stderr
        values: dict[str, Any] = json.loads(done.stdout)
        return values | {"exit": done.exit_code, "said": done.stderr}

    def stored(self) -> dict[str, tuple[Dataset, Instance]]:
        """Return the data sets in the spool with their rows, by SOP Instance UID."""
        with self.bench.database.read() as session:
            rows = list(session.query(Instance))
        return {r.sop_instance_uid: (dcmread(self.bench.spool.path(r.digest)), r) for r in rows}


@pytest.fixture
def site(database: Database, database_url: str, pacs: Orthanc, tmp_path: Path) -> Site:
    (tmp_path / "config.toml").write_text(
        f"""
[node]
host = "127.0.0.1"
port = {NODE_PORT}
[receive]
min_free_mebibytes = 0
[database]
url = "{database_url}"
"""
    )
    day = date(2020, 1, 1) + timedelta(days=next(_days))
    return Site(Bench(database, tmp_path), pacs, tmp_path, day, itertools.count())


@contextmanager
def listening(site: Site) -> Iterator[None]:
    """Let the node listen."""
    settings = Settings(
        node=NodeSettings(host="127.0.0.1", port=NODE_PORT), receive=ReceiveSettings(min_free_mebibytes=0)
    )
    receiver = Receiver(settings, site.bench.database, site.bench.spool)
    receiver.start()
    yield
    receiver.stop()


def by_image(found: Mapping[str, Any]) -> dict[str, str]:
    return {finding["sop_instance_uid"]: finding["missing"] for finding in found["findings"]}


@on_sqlite
def test_the_command_lists_what_is_missing_of_each_study_and_nothing_else(site: Site) -> None:
    never = [site.image("never", number) for number in (1, 2)]
    lost, released, reported = site.image("lost"), site.image("released"), site.image("reported")
    for ds in (lost, released, reported):
        site.bench.receive(ds)
    site.settle()
    waiting = site.image("waiting")
    site.bench.receive(waiting)
    spool = site.bench.spool
    with site.bench.database.write() as session:
        for row in session.query(Instance):
            if row.sop_instance_uid in (lost.SOPInstanceUID, released.SOPInstanceUID):
                spool.path(row.digest).unlink()
            if row.sop_instance_uid == released.SOPInstanceUID:
                row.removed_at = datetime.now(UTC)
    delivered = [r for r in site.bench.reports() if r.study_id != 3]
    hand = site.image("hand", BodyPartExamined="HAND", AnatomicRegionSequence=None)
    ct = other(CTImageStorage, "CT", 1, study="ct")
    ct.StudyDate = f"{site.day:%Y%m%d}"
    site.archive(*never, lost, released, reported, waiting, hand, ct)
    site.archive_files(*[_written(r.content, site.folder / f"report{r.id}.dcm") for r in delivered])

    found = site.found()
    assert found["exit"] == 1
    assert by_image(found) == {
        **{str(ds.SOPInstanceUID): "never_received" for ds in never},
        str(lost.SOPInstanceUID): "file_missing",
        str(waiting.SOPInstanceUID): "never_scored",
        site.bench.reports()[2].sop_instance_uid: "report_missing",
    }
    counted = [found[name] for name in ("studies", "images", *Missing)]
    assert counted == [5, 6, 2, 1, 1, 0, 1]
    said = {finding["missing"]: finding["detail"] for finding in found["findings"]}
    assert (said["never_scored"], said["report_missing"]) == ("waiting", "PACS: pending")
    one = next(f for f in found["findings"] if f["missing"] == "file_missing")
    assert one["patient_id"] == lost.PatientID
    assert (one["accession_number"], one["study_date"]) == (lost.AccessionNumber, lost.StudyDate)
    assert (one["study_instance_uid"], one["series_instance_uid"]) == (
        lost.StudyInstanceUID,
        lost.SeriesInstanceUID,
    )


def _written(content: bytes, path: Path) -> Path:
    path.write_bytes(content)
    return path


@on_sqlite
def test_the_table_has_one_line_for_alike_images_and_the_sheet_one_for_each(site: Site) -> None:
    site.archive(*(site.image("never", number) for number in (1, 2, 3)))
    table = site.run()
    [line] = [line for line in table.stdout.splitlines() if "never received" in line and "PID-" in line]
    assert " 3 " in line
    assert "1 studies, 3 images at PACS; 3 never received, 0 files missing, 0 never scored" in table.stdout
    sheet = site.run("--format", "csv")
    assert [row["missing"] for row in csv.DictReader(io.StringIO(sheet.stdout))] == ["never_received"] * 3
    assert "3 never received" in sheet.stderr


@on_sqlite
def test_a_day_on_which_nothing_is_missing_ends_with_exit_code_0(site: Site) -> None:
    assert site.found()["exit"] == 0
    ds = site.image("all")
    site.bench.receive(ds)
    site.settle()
    site.archive(ds)
    site.archive_files(_written(site.bench.reports()[0].content, site.folder / "report.dcm"))
    found = site.found("--fetch")
    assert (found["exit"], found["images"], found["findings"]) == (0, 1, [])


@on_sqlite
def test_a_report_of_an_older_class_is_found_under_the_uid_under_which_it_was_delivered(site: Site) -> None:
    ds = site.image("older")
    site.bench.receive(ds)
    site.settle()
    site.archive(ds)
    older = as_class(site.bench.reports()[0].content, ENHANCED_SR)
    site.archive_files(_written(older.content, site.folder / "report.dcm"))
    assert site.found()["report_missing"] == 1
    with site.bench.database.write() as session:
        session.execute(update(Delivery).values(state="delivered", sop_instance_uid=older.sop_instance_uid))
    found = site.found()
    assert (found["exit"], found["report_missing"]) == (0, 0)


@on_sqlite
def test_a_report_that_was_deleted_in_the_pacs_is_sent_again_unchanged(site: Site) -> None:
    to = Destination(ae_title=site.pacs.ae_title, host="127.0.0.1", port=site.pacs.port, commitment="off")
    site.bench.settings = Settings(destinations=(to,))
    deliver = DeliverStage(site.bench.database, to, "PACS_NODE", site.bench.settings.deliver)
    with (site.folder / "config.toml").open("a") as file:
        file.write(f'[[destinations]]\nae_title = "{to.ae_title}"\nhost = "{to.host}"\nport = {to.port}\n')
    images = [site.image("deleted"), site.image("kept")]
    site.archive(*images)
    for image in images:
        site.bench.receive(image)
    site.settle()
    site.bench.work(deliver)
    assert site.found("--resend")["exit"] == 0
    (held,) = _found_in(site.pacs, images[0])
    before = site.pacs.get(f"/instances/{held}/file")
    site.pacs.delete(f"/instances/{held}")

    found = site.found("--resend")
    assert (found["exit"], found["report_missing"], found["sent_again"]) == (1, 1, 1), found["said"]
    assert sorted(one.state for one in site.bench.deliveries()) == ["delivered", "pending"]
    assert site.found("--resend")["sent_again"] == 0  # it is on its way
    site.bench.work(deliver)
    (held,) = _found_in(site.pacs, images[0])
    assert site.pacs.get(f"/instances/{held}/file") == before
    assert (site.found()["exit"], len(site.bench.reports())) == (0, 2)


def _found_in(pacs: Orthanc, image: Dataset) -> list[str]:
    """Return Orthanc's names of the reports of an image's study."""
    query = {"StudyInstanceUID": str(image.StudyInstanceUID), "Modality": "SR"}
    found: list[str] = pacs.post("/tools/find", {"Level": "Instance", "Query": query})
    return found


@on_sqlite
def test_reports_are_sent_again_to_a_destination_alone(site: Site) -> None:
    done = site.run("--resend")
    assert done.exit_code == 2
    assert f"No destination has the AE title {site.pacs.ae_title}; add it to [[destinations]]" in done.stderr


@on_sqlite
def test_c_move_brings_to_the_running_node_what_it_has_not(site: Site) -> None:
    images = [site.image(study, number) for study in "ab" for number in (1, 2)]
    site.archive(*images)
    site.bench.receive(images[0])
    with listening(site):
        found = site.found("--fetch")
    assert (found["never_received"], found["fetched"]) == (3, 3), found["said"]
    assert "3 of 3 fetched" in found["said"]
    stored = site.stored()
    assert stored.keys() == {ds.SOPInstanceUID for ds in images}
    for ds in images[1:]:
        read, row = stored[ds.SOPInstanceUID]
        assert (read.PixelData, row.calling_ae_title) == (ds.PixelData, "ORTHANC")
    assert site.bench.states(Kind.SCORE) == ["ready"] * 4
    assert by_image(site.found()) == {str(ds.SOPInstanceUID): "never_scored" for ds in images}


@on_sqlite
def test_c_get_keeps_what_arrives_as_the_receiver_does(site: Site) -> None:
    images = [site.image("a", number) for number in (1, 2)]
    site.archive(*images)
    compressed = object_in(JPEG2000Lossless, site.folder, number=77)  # of another day
    read = dcmread(compressed)
    read.StudyDate = f"{site.day:%Y%m%d}"
    read.save_as(compressed)
    site.archive_files(compressed)
    done = command(*site.options("--fetch", "--by", "get", "--format", "json"))  # in a process of its own
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["never_received"], found["fetched"]) == (3, 3)
    stored = site.stored()
    assert {uid: row.calling_ae_title for uid, (_, row) in stored.items()} == dict.fromkeys(
        [*(ds.SOPInstanceUID for ds in images), read.SOPInstanceUID], "ORTHANC"
    )
    for ds in (*images, read):
        got, row = stored[ds.SOPInstanceUID]
        assert (got.PixelData, got.file_meta.TransferSyntaxUID) == (
            ds.PixelData,
            ds.file_meta.TransferSyntaxUID,
        )
        assert row.transfer_syntax_uid == ds.file_meta.TransferSyntaxUID
    assert site.bench.states(Kind.SCORE) == ["ready"] * 3
    assert list(Spool(site.bench.spool.root).leftovers()) == []
    assert "Alice" not in done.stderr
    assert "instance stored" in done.stderr


@on_sqlite
def test_a_file_that_was_lost_comes_back_and_its_job_is_tried_again(site: Site) -> None:
    ds = site.image("lost")
    site.archive(ds)
    assert site.found("--fetch", "--by", "get")["fetched"] == 1
    [(_, row)] = site.stored().values()
    place = site.bench.spool.path(row.digest)
    place.unlink()
    site.bench.score()
    assert site.bench.states(Kind.SCORE) == ["failed"]
    found = site.found("--fetch", "--by", "get")
    assert (found["exit"], by_image(found)) == (1, {ds.SOPInstanceUID: "file_missing", "": "no_report"})
    assert found["fetched"] == 1
    assert dcmread(place).PixelData == ds.PixelData
    assert site.bench.states(Kind.SCORE) == ["ready"]


@on_sqlite
def test_what_comes_by_c_get_is_refused_where_there_is_no_space_and_is_missing_still(site: Site) -> None:
    site.archive(site.image("a"))
    config = site.folder / "config.toml"
    config.write_text(config.read_text().replace("min_free_mebibytes = 0", "min_free_mebibytes = 99999999"))
    found = site.found("--fetch", "--by", "get")
    assert (found["exit"], found["fetched"], found["never_received"]) == (1, 0, 1), found["said"]
    assert "answered C-GET with status 0x" in found["said"]
    assert "0 of 1 fetched" in found["said"]
    assert site.stored() == {}


@on_sqlite
def test_without_a_running_node_c_move_says_what_to_look_at(site: Site) -> None:
    site.archive(site.image("a"))
    found = site.found("--fetch")
    assert (found["exit"], found["fetched"]) == (1, 0)
    assert "knows the AE title PACS_NODE" in found["said"]
    assert "--by get" in found["said"]


@on_sqlite
def test_a_pacs_that_does_not_know_the_caller_is_named_in_one_sentence(site: Site) -> None:
    done = site.run("--from", "STRANGER")
    assert done.exit_code == 2
    assert "whether it lets STRANGER ask." in done.stderr
    assert done.stderr.count("\n") == 1
    assert site.run("--from", "VISITOR").exit_code == 0
