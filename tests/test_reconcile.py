"""What a PACS has and the node has not: found by C-FIND, fetched by C-MOVE and C-GET, whatever the PACS."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import socketserver
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
)
from pynetdicom import AE, _config, dimse_messages, evt
from pynetdicom.dimse_primitives import C_FIND
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import
from pynetdicom.transport import AssociationServer
from sqlalchemy import update

from classifier.config import PROJECTION_RADIOGRAPHS
from db import inventory
from db.inventory import Known, Reported, Sent
from db.models import Delivery, Instance, Job
from db.queue import Kind
from db.session import Database
from pacs_node import query, reconcile, scu
from pacs_node.cli import main
from pacs_node.config import NodeSettings, ReceiveSettings, Settings
from pacs_node.demo_peers import shut_down
from pacs_node.errors import PeerError, SpoolUnusable, UserError
from pacs_node.query import CutShort, Series, Study, Wanted
from pacs_node.receive import Receiver
from pacs_node.reconcile import Listed, Missing, Reconciliation
from pacs_node.report import ENHANCED_SR, as_class
from pacs_node.scu import Peer
from pacs_node.spool import Spool
from tests import test_queries
from tests.conftest import radiograph, save, uid
from tests.peers import Orthanc, orthanc
from tests.test_node import command
from tests.test_pipeline import Bench, other
from tests.test_receive import free_port, logged, object_in, wait_until

# pynetdicom leaves the socket of a connection that was refused to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

on_sqlite = pytest.mark.parametrize("backend", ["sqlite"])
NODE_PORT = free_port()
FIND, MOVE = (f"1.2.840.10008.5.1.4.1.2.2.{number}" for number in (1, 2))
DAYS = date(2025, 6, 1), date(2025, 6, 8)

_T = TypeVar("_T")


def no_bar(sequence: Iterable[_T], description: str, total: float) -> Iterable[_T]:
    return sequence


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give back what is switched for the whole process, and wait half a second less for servers to stop."""
    for name in ("STORE_SEND_CHUNKED_DATASET", "STORE_RECV_CHUNKED_DATASET", "LOG_REQUEST_IDENTIFIERS"):
        monkeypatch.setattr(_config, name, getattr(_config, name))
    monkeypatch.setattr(_config, "LOG_RESPONSE_IDENTIFIERS", _config.LOG_RESPONSE_IDENTIFIERS)
    monkeypatch.setattr(dimse_messages, "NamedTemporaryFile", tempfile.NamedTemporaryFile)
    monkeypatch.setattr(
        AssociationServer, "serve_forever", lambda self: socketserver.TCPServer.serve_forever(self, 0.05)
    )


# With Orthanc


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
    assert (found["exit"], found["fetched"], found["never_received"]) == (1, 0, 1)
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


# With PACS of all tempers

Answer = tuple[int | Dataset, Dataset | bytes | None]
Find = Callable[[Dataset, evt.Event], Iterator[Answer]]


def study(name: str = "s", **tags: Any) -> Dataset:
    """Return what a PACS answers at the STUDY level."""
    return identifier(StudyInstanceUID=uid(name), StudyDate="20250603", PatientID=name, **tags)


def series(name: str = "s", **tags: Any) -> Dataset:
    """Return what a PACS answers at the SERIES level."""
    return identifier(SeriesInstanceUID=uid(name, "series"), **{"Modality": "DX", **tags})


def image(number: int = 1, name: str = "s", **tags: Any) -> Dataset:
    """Return what a PACS answers at the IMAGE level."""
    return identifier(SOPInstanceUID=uid(name, number), **tags)


def identifier(**tags: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    return ds


def pending(*identifiers: Dataset | bytes, status: int = 0xFF00) -> Iterator[Answer]:
    for one in identifiers:
        yield status, one


def usual(
    *studies: Dataset | bytes, listed: Sequence[Dataset | bytes] = (), images: Sequence[Any] = ()
) -> Find:
    """Return what answers with these studies, each with these series, each with these images."""
    by_level = {
        "STUDY": studies or (study(),),
        "SERIES": listed or (series(),),
        "IMAGE": images or (image(),),
    }
    return lambda request, _: pending(*by_level[request.QueryRetrieveLevel])


class Scripted:
    """A PACS that answers as a test says.

    Attributes
    ----------
    asked
        The identifiers of all requests.
    """

    def __init__(self, find: Find, moved: int = 0x0000, offers: Sequence[str] = (FIND, MOVE)) -> None:
        self.asked: list[Dataset] = []
        self._find, self._moved = find, moved
        self._ae = AE("PACS")
        for sop_class in offers:
            self._ae.add_supported_context(sop_class, ExplicitVRLittleEndian)
        handlers: list[Any] = [(evt.EVT_C_FIND, self._on_find), (evt.EVT_C_MOVE, self._on_move)]
        server = self._ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        assert server is not None
        self.peer = Peer("PACS", "127.0.0.1", int(server.server_address[1]))

    def _on_find(self, event: evt.Event) -> Iterator[tuple[int | Dataset, Dataset | None]]:
        self.asked.append(event.identifier)
        for status, answer in self._find(event.identifier, event):
            if isinstance(answer, bytes):
                send_raw(event, answer)
            else:
                yield status, answer

    def _on_move(self, event: evt.Event) -> Iterator[Any]:
        self.asked.append(event.identifier)
        if self._moved == 0xA801:
            yield None, None
            return
        yield "127.0.0.1", 9
        yield 0
        if self._moved:
            yield self._moved, None

    def close(self) -> None:
        shut_down(self._ae)


def send_raw(event: evt.Event, content: bytes) -> None:
    """Answer C-FIND with bytes that no library would write."""
    answer, request = C_FIND(), event.request
    answer.MessageIDBeingRespondedTo = request.MessageID
    answer.AffectedSOPClassUID = FIND
    answer.Status = 0xFF00
    answer.Identifier = BytesIO(content) if content else None
    event.assoc.dimse.send_msg(answer, event.context.context_id)


@contextmanager
def scripted(find: Find | None = None, **named: Any) -> Iterator[Scripted]:
    made = Scripted(find or usual(), **named)
    try:
        yield made
    finally:
        made.close()


def compare(other: Scripted, bench: Bench, days: tuple[date, date] = DAYS) -> Reconciliation:
    with query.open_finder(other.peer, "PACS_NODE") as finder:
        return reconcile.compare(finder, bench.database, bench.spool, days, no_bar)


def uids(found: Reconciliation) -> list[str]:
    return [finding.sop_instance_uid for finding in found.findings]


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Bench:
    return Bench(database, tmp_path)


@on_sqlite
def test_a_study_that_several_queries_answer_counts_once(bench: Bench) -> None:
    with scripted() as other:  # which matches no Modalities in Study, and returns none
        found = compare(other, bench)
    assert (found.studies, found.images, uids(found)) == (1, 1, [uid("s", 1)])
    levels = [(r.QueryRetrieveLevel, r.get("ModalitiesInStudy")) for r in other.asked]
    wanted = [("STUDY", modality) for modality in reconcile.MODALITIES]
    assert levels == [*wanted, ("SERIES", None), ("IMAGE", None)]
    assert {r.StudyDate for r in other.asked[:4]} == {"20250601-20250608"}


@on_sqlite
def test_where_no_modality_matches_all_studies_are_looked_at(bench: Bench) -> None:
    def find(request: Dataset, event: evt.Event) -> Iterator[Answer]:
        if not request.get("ModalitiesInStudy"):
            yield from usual(study("a"), study("b", ModalitiesInStudy=["CT", "SR"]))(request, event)

    with scripted(find) as other:
        found = compare(other, bench)
    assert (found.studies, found.is_complete) == (1, True)
    assert [r.QueryRetrieveLevel for r in other.asked] == [*["STUDY"] * 5, "SERIES", "IMAGE"]


@on_sqlite
def test_a_pacs_without_a_match_has_nothing_that_is_missing(bench: Bench) -> None:
    with scripted(lambda _request, _event: iter(())) as other:
        found = compare(other, bench)
    assert (found.studies, found.images, found.findings, found.is_clean) == (0, 0, [], True)


@on_sqlite
def test_two_thousand_images_of_one_study_are_all_listed(bench: Bench) -> None:
    listed = [image(number, SOPClassUID=DigitalXRayImageStorageForPresentation) for number in range(2000)]
    with scripted(usual(images=listed)) as other:
        found = compare(other, bench)
    assert (found.studies, found.images) == (1, 2000)
    assert set(uids(found)) == {ds.SOPInstanceUID for ds in listed}


@on_sqlite
def test_images_of_other_classes_are_none_of_ours(bench: Bench) -> None:
    listed = [image(1, SOPClassUID=CTImageStorage), image(2, SOPClassUID=""), image(3)]
    listed += [image(4, SOPClassUID=min(PROJECTION_RADIOGRAPHS)), image(3)]
    with scripted(usual(images=listed)) as other:
        found = compare(other, bench)
    assert uids(found) == [uid("s", number) for number in (2, 3, 4)]


@on_sqlite
@pytest.mark.parametrize("status", [0xFF00, 0xFF01])
def test_both_pending_statuses_bring_an_answer(bench: Bench, status: int) -> None:
    by_level = {"STUDY": study(), "SERIES": series(), "IMAGE": image()}
    with scripted(lambda request, _: pending(by_level[request.QueryRetrieveLevel], status=status)) as other:
        assert uids(compare(other, bench)) == [uid("s", 1)]


@on_sqlite
@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 192", "Ärztin^Żółć"),
        ("ISO_IR 144", "Люкceмбypг"),
        (["", "ISO 2022 IR 87"], "Yamada^Taro=山田^太郎"),
    ],
)
def test_names_come_in_the_character_set_of_the_answer(bench: Bench, charset: Any, name: str) -> None:
    told = study(SpecificCharacterSet=charset, PatientName=name)
    with scripted(usual(told)) as other:
        found = compare(other, bench)
    assert [finding.patient_name for finding in found.findings] == [name]


def explicit(tag: str, vr: bytes, value: bytes) -> bytes:
    """Encode one element, Explicit VR Little Endian, which is all that a scripted PACS takes."""
    group, element = tag[:4], tag[4:]
    head = bytes.fromhex(group)[::-1] + bytes.fromhex(element)[::-1]
    return head + vr + len(value).to_bytes(2, "little") + value


@on_sqlite
@pytest.mark.parametrize("padded", [b"%s\0", b"%s ", b"%s\0\0", b"%s \0", b" %s", b"\0%s "])
def test_a_uid_is_the_same_however_it_is_padded(bench: Bench, padded: bytes) -> None:
    ds = radiograph(study="padded")
    bench.receive(ds)
    raw = explicit("00080018", b"UI", padded % str(ds.SOPInstanceUID).encode())
    with scripted(usual(images=[raw])) as other:
        found = compare(other, bench)
    assert [(f.missing, f.sop_instance_uid) for f in found.findings] == [
        (Missing.NEVER_SCORED, ds.SOPInstanceUID)
    ]


HOSTILE = {
    "random": bytes(range(256)),
    "empty": b"",
    "cut": explicit("00080018", b"UI", b"1.2.3")[:7],
    "no UID": explicit("00080018", b"UI", b"../../etc/passwd"),
    "SQL": explicit("00080018", b"UI", b"1' OR '1'='1"),
    "too long": explicit("00080018", b"UI", b"1." * 40),
    "two": explicit("00080018", b"UI", b"1.2\\1.3"),
    "NUL inside": explicit("00080018", b"UI", b"1.2\0.3"),
    "another VR": explicit("00080018", b"FD", bytes(8)),
    "endless sequence": bytes.fromhex("080018005351")
    + b"\0\0"
    + b"\xff" * 4
    + b"\xfe\xff\x00\xe0\xff\xff\xff\xff" * 500,
    "no charset": explicit("00080005", b"CS", b"NO SUCH SET") + explicit("00080018", b"LO", b"\xff\xfe"),
}


@on_sqlite
@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_an_answer_that_cannot_be_read_is_said_and_harms_no_other(bench: Bench, content: bytes) -> None:
    with scripted(usual(images=[image(1), content, image(2)])) as other:
        found = compare(other, bench)
    assert uids(found) == [uid("s", 1), uid("s", 2)]
    assert (found.is_complete, found.is_clean) == (False, False)


@on_sqlite
def test_texts_of_a_hostile_pacs_are_bounded_and_printable(bench: Bench) -> None:
    head = explicit("00080005", b"CS", b"NO SUCH SET") + explicit("00080020", b"DA", b"\x1b[31m\xff" * 9)
    odd = explicit("00080061", b"CS", b"DX\\\x1b[2J") + explicit("00081030", b"LO", b"[red]" * 900)
    name = explicit("00100010", b"PN", b"\xff\x00\x1b" + b"=" * 900) + explicit("00100020", b"FD", b"12")
    raw = head + odd + name + explicit("0020000D", b"UI", b"1.2.3")
    with scripted(usual(raw)) as other:
        found = compare(other, bench)
    [finding] = found.findings
    assert finding.study_instance_uid == "1.2.3"
    said = "".join(str(value) for value in vars(finding).values())
    assert said.isprintable()
    assert len(said) < 1000


@on_sqlite
def test_days_are_halved_until_the_pacs_answers_in_full(bench: Bench) -> None:
    def find(request: Dataset, event: evt.Event) -> Iterator[Answer]:
        if request.QueryRetrieveLevel != "STUDY":
            yield from pending(
                series(request.StudyInstanceUID)
                if "SERIES" in request.QueryRetrieveLevel
                else image(name=request.StudyInstanceUID)
            )
            return
        first, last = request.StudyDate.split("-")
        held = [day for day in ("20250602", "20250605", "20250608") if first <= day <= last]
        yield from pending(*(study(day) for day in held[:1]))
        if len(held) > 1:
            yield (0xFE00, None) if first < "20250602" else (0xA700, None)

    with scripted(find) as other:
        found = compare(other, bench)
    assert sorted(f.study_instance_uid for f in found.findings) == sorted(
        uid(day) for day in ("20250602", "20250605", "20250608")
    )


@on_sqlite
def test_a_day_with_more_studies_than_the_pacs_answers_is_said(bench: Bench) -> None:
    with (
        scripted(lambda _request, _event: iter([(0xFE00, None)])) as other,
        pytest.raises(CutShort) as caught,
    ):
        compare(other, bench)
    assert "cuts its answers to C-FIND short (status 0xFE00); raise its limit there." in str(caught.value)


@on_sqlite
def test_a_pacs_that_never_stops_is_stopped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "MOST_ANSWERS", 50)

    def find(_request: Dataset, event: evt.Event) -> Iterator[Answer]:
        while event.assoc.is_established:
            yield 0xFF00, study()

    with scripted(find) as other, pytest.raises(PeerError, match="gives over 50 answers; ask for fewer days"):
        compare(other, bench)


def _dies(_request: Dataset, event: evt.Event) -> Iterator[Answer]:
    yield 0xFF00, study()
    event.assoc.abort()


@on_sqlite
@pytest.mark.parametrize("level", ["STUDY", "SERIES", "IMAGE"])
def test_a_pacs_that_dies_amid_its_answers_is_said(bench: Bench, level: str) -> None:
    def find(request: Dataset, event: evt.Event) -> Iterator[Answer]:
        yield from (_dies if request.QueryRetrieveLevel == level else usual())(request, event)

    with scripted(find) as other, pytest.raises(PeerError, match=r"broke off, or gave no answer to C-FIND"):
        compare(other, bench)


@on_sqlite
def test_a_pacs_that_goes_away_between_two_queries_is_said(bench: Bench) -> None:
    with scripted() as other, query.open_finder(other.peer, "PACS_NODE") as finder:
        assert finder.series("1.2") != []
        other.close()
        wait_until(lambda: not finder.is_open)
        with pytest.raises(PeerError, match=r"^PACS@127\.0\.0\.1:\d+ ended the association\.$"):
            finder.series("1.2")


@on_sqlite
def test_a_failure_of_the_pacs_is_told_with_its_status(bench: Bench) -> None:
    refused = Dataset()
    refused.Status, refused.ErrorComment = 0xA900, "No such key"
    said = r"answered C-FIND with status 0xA900, No such key; see its log\."
    with (
        scripted(lambda _request, _event: iter([(refused, None)])) as other,
        pytest.raises(PeerError, match=said),
    ):
        compare(other, bench)


def test_a_pacs_that_does_not_offer_a_service_is_said() -> None:
    with scripted(offers=[str(Verification), DigitalXRayImageStorageForPresentation]) as other:
        with pytest.raises(PeerError, match="does not offer C-FIND"), query.open_finder(other.peer, "X"):
            pass
        with pytest.raises(PeerError, match=r"does not offer C-MOVE .*use --by get\."):
            list(query.move(other.peer, "X", "PACS_NODE", [wanted()]))
        with pytest.raises(PeerError, match=r"does not offer C-GET .*use --by move\."):
            list(query.get(other.peer, "X", [(evt.EVT_C_STORE, lambda _: 0x0000)], [wanted()]))
    with pytest.raises(PeerError, match="cannot be reached"), query.open_finder(other.peer, "X"):
        pass


def wanted() -> Wanted:
    return Wanted(
        study_instance_uid="1.2", series_instance_uid="1.2.3", sop_instance_uids=["1.2.3.4", "1.2.3.5"]
    )


def test_a_pacs_that_does_not_know_the_node_is_told_apart_from_one_that_cannot_send() -> None:
    with scripted(moved=0xA801) as other, pytest.raises(PeerError) as caught:
        list(query.move(other.peer, "X", "PACS_NODE", [wanted()]))
    assert str(caught.value).endswith(" does not know the AE title PACS_NODE; add it there, or use --by get.")
    [asked] = other.asked
    assert (asked.QueryRetrieveLevel, asked.SOPInstanceUID) == ("IMAGE", ["1.2.3.4", "1.2.3.5"])
    assert (asked.StudyInstanceUID, asked.SeriesInstanceUID) == ("1.2", "1.2.3")


# What is kept of it all


def listed(*numbers: int) -> Listed:
    told = Study(
        study_instance_uid="1.2",
        study_date="20250603",
        patient_id="P",
        patient_name="",
        accession_number="A",
        modalities=("DX",),
        description="",
    )
    return Listed(told, {f"1.2.{number}": "1.2.0" for number in numbers}, ["1.2.9"])


def known(**values: Any) -> Known:
    usual = {"digest": "ab", "is_removed": False, "is_scored": True, "job_state": "done", "job_error": None}
    return Known(**{**usual, **values})


@pytest.mark.parametrize(
    ("image", "is_there", "said"),
    [
        (None, True, ("never_received", "")),
        (known(), True, None),
        (known(), False, ("file_missing", "ab.dcm is not in the spool")),
        (known(is_removed=True), False, None),
        (known(is_scored=False, job_state="ready"), True, ("never_scored", "waiting")),
        (
            known(is_scored=False, job_state="failed", job_error="The worker died"),
            True,
            ("never_scored", "failed: The worker died"),
        ),
        (known(is_scored=False, job_state="failed"), False, ("file_missing", "ab.dcm is not in the spool")),
    ],
)
def test_of_an_image_what_was_lost_first_is_missing(
    image: Known | None, is_there: bool, said: tuple[str, str] | None
) -> None:
    received = {} if image is None else {"1.2.1": image}
    found = [*reconcile.missing_images(listed(1), received, lambda _: is_there)]
    assert [(f.missing, f.detail) for f in found] == ([] if said is None else [said])


def reported(**values: Any) -> Reported:
    usual = {
        "unscored": 0,
        "unreported": 0,
        "report_uid": "1.9",
        "sent": (),
        "job_state": "done",
        "job_error": None,
    }
    return Reported(**{**usual, **values})


SENT = Sent(destination="PACS", state="delivered", sop_instance_uid="1.10", error=None)
DOWN = Sent(destination="ARCHIVE", state="pending", sop_instance_uid=None, error="It is down.")


@pytest.mark.parametrize(
    ("report", "held", "said"),
    [
        (None, "", None),
        (reported(unscored=1), "", None),
        (reported(), "1.9", None),
        (reported(sent=[SENT]), "1.10", None),
        (
            reported(sent=[SENT, DOWN]),
            "",
            ("report_missing", "PACS: delivered; ARCHIVE: pending, It is down."),
        ),
        (
            reported(),
            "1.10",
            ("report_missing", "it has no destination; add the PACS to the [[destinations]]"),
        ),
        (reported(report_uid=None, unreported=2, job_state="ready"), "", ("no_report", "2 images: waiting")),
        (
            reported(unreported=1, job_state="failed", job_error="No report can be made"),
            "1.9",
            ("no_report", "1 images: failed: No report can be made"),
        ),
    ],
)
def test_of_a_report_is_missing_what_the_pacs_does_not_hold(
    report: Reported | None, held: str, said: tuple[str, str] | None
) -> None:
    found = [*reconcile.missing_report(listed(1), report, lambda asked: held in asked)]
    assert [(f.missing, f.detail) for f in found] == ([] if said is None else [said])


@pytest.mark.parametrize(
    ("tags", "may_be"),
    [
        ({}, True),
        ({"modality": "CR"}, True),
        ({"modality": "RG"}, True),
        ({"modality": "OT"}, True),
        ({"modality": ""}, True),
        ({"modality": "CT"}, False),
        ({"modality": "SR"}, False),
        ({"modality": "MG"}, False),
        ({"body_part": "CHEST"}, True),
        ({"body_part": "THORAX"}, True),
        ({"body_part": "HAND"}, False),
        ({"body_part": "HAND\\\x1b"}, False),
        ({"description": "Hand PA"}, False),
        ({"description": "Chest lateral"}, True),
        ({"description": "Bone suppressed"}, True),
        ({"body_part": "CHEST", "description": "Hand"}, True),
        ({"body_part": "UNKNOWN"}, True),
    ],
)
def test_a_series_is_left_out_only_where_the_pacs_tells_that_it_is_no_chest(
    tags: dict[str, str], may_be: bool
) -> None:
    told = Series(
        **{"series_instance_uid": "1.2", "modality": "DX", "body_part": "", "description": "", **tags}
    )
    assert reconcile.may_be_chest_radiograph(listed().study, told) is may_be


def test_the_description_of_the_study_counts_where_nothing_else_tells() -> None:
    told = Series(series_instance_uid="1.2", modality="DX", body_part="", description="")
    hand, both = (replace(listed().study, description=text) for text in ("Hand left", "Chest and hand"))
    assert not reconcile.may_be_chest_radiograph(hand, told)
    assert reconcile.may_be_chest_radiograph(both, told)


NOW = datetime(2025, 6, 10, 12).astimezone()


@pytest.mark.parametrize(
    ("since", "until", "days"),
    [
        (None, None, ("2025-06-03", "2025-06-11")),
        ("2025-06-09T23:00", None, ("2025-06-09", "2025-06-11")),
        ("2025-06-01", "2025-06-08", ("2025-06-01", "2025-06-07")),
        ("2025-06-01", "2025-06-08T10:00", ("2025-06-01", "2025-06-08")),
    ],
)
def test_a_period_is_of_whole_days(since: str | None, until: str | None, days: tuple[str, str]) -> None:
    first, end = (datetime.fromisoformat(one).astimezone(UTC) if one else None for one in (since, until))
    assert tuple(map(str, reconcile.period(first, end, NOW))) == days


def test_a_period_without_a_day_is_an_error_of_the_user() -> None:
    with pytest.raises(UserError, match="--since comes before --until"):
        reconcile.period(NOW, NOW - timedelta(days=1), NOW)


@on_sqlite
def test_images_are_fetched_with_requests_of_bounded_size_and_looked_for_afterwards(bench: Bench) -> None:
    images = [radiograph(study="many", number=number) for number in range(2)]
    findings = [
        reconcile.Finding(
            **{
                **vars(finding),
                "series_instance_uid": f"1.2.{number // 1500}",
                "sop_instance_uid": uid("many", number),
            }
        )
        for number in range(2000)
        for finding in reconcile.missing_images(listed(number), {}, bool)
    ]
    before = Reconciliation(studies=1, images=2000, findings=findings, is_complete=True)
    asked: list[Wanted] = []

    def retrieve(requests: Sequence[Wanted]) -> Iterator[str]:
        for request in requests:
            asked.append(request)
            if len(asked) == 1:
                bench.receive(images[0])
            if len(asked) == 3:
                raise PeerError("PACS broke off.")
            yield "PACS is slow." if len(asked) == 2 else ""

    after = reconcile.fetch(before, retrieve, bench.database, bench.spool, no_bar)
    assert {len(one.sop_instance_uids) for one in asked} == {50}
    assert [f.sop_instance_uid for f in after.findings if f.is_fetched] == [images[0].SOPInstanceUID]
    assert (after.troubles, str(after.failure)) == (["PACS is slow."], "PACS broke off.")
    assert after.summary.endswith("; 1 of 2000 fetched.")
    assert not after.is_clean


@on_sqlite
def test_images_that_come_after_the_answer_are_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = radiograph(study="late")
    [finding] = reconcile.missing_images(listed(1), {}, bool)
    finding = replace(finding, sop_instance_uid=str(ds.SOPInstanceUID))
    before = Reconciliation(studies=1, images=1, findings=[finding], is_complete=True)
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            bench.receive(ds)

    monkeypatch.setattr("pacs_node.reconcile.time.sleep", sleep)
    after = reconcile.fetch(before, lambda _: iter([""]), bench.database, bench.spool, no_bar)
    assert after.is_clean
    assert len(naps) == 3


@on_sqlite
def test_a_spool_that_is_not_mounted_is_no_list_of_missing_files(bench: Bench) -> None:
    ds = radiograph(study="s")
    bench.receive(ds)
    away = Spool(bench.spool.root.parent / "not-mounted")
    with (
        scripted() as other,
        query.open_finder(other.peer, "X") as finder,
        pytest.raises(SpoolUnusable, match="disk mounted"),
    ):
        reconcile.compare(finder, bench.database, away, DAYS, no_bar)


@on_sqlite
def test_what_a_killed_fetch_left_is_removed_but_not_what_arrives_right_now(bench: Bench) -> None:
    spool = Spool(bench.spool.root)
    reconcile.prepare(spool, bench.database)
    old, fresh = spool.incoming / "old.dcm", spool.incoming / "fresh.dcm"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    reconcile.prepare(spool, bench.database)
    assert spool.leftovers() == [fresh]
    assert spool.incoming != Spool(bench.spool.root, 11112).incoming


# What the database tells


def test_more_images_than_fit_one_statement_are_found(database: Database) -> None:
    for number in range(3):
        test_queries.receive(database, test_queries.new(number))
    test_queries.receive(database, test_queries.new(1, content="b"))  # under a UID that is known
    test_queries.score(database, 0)
    with database.write() as session:
        session.execute(
            update(Job)
            .where(Job.kind == Kind.SCORE, Job.ref == test_queries.instance_id(database, 2))
            .values(state="failed", error="Broken")
        )
    asked = [uid("1", number) for number in range(1200)]
    with database.read() as session:
        found = inventory.known(session, asked)
    said = {one: (k.digest, k.is_scored, k.job_state, k.job_error, k.is_removed) for one, k in found.items()}
    digests = [test_queries.new(number).digest for number in range(3)]
    assert said == {
        uid("1", 0): (digests[0], True, "ready", None, False),
        uid("1", 1): (digests[1], False, "ready", None, False),
        uid("1", 2): (digests[2], False, "failed", "Broken", False),
    }


def test_a_study_is_reported_once_the_newest_report_states_all_its_radiographs(database: Database) -> None:
    dx, ct = DigitalXRayImageStorageForPresentation, CTImageStorage
    study_uid = uid("1", "study")

    def ask() -> Reported | None:
        with database.read() as session:
            return inventory.reported(session, study_uid, [dx])

    assert ask() is None
    test_queries.receive(database, test_queries.new(1, sop_class_uid=ct))
    assert ask() is None
    test_queries.receive(database, test_queries.new(2))
    assert ask() == Reported(
        unscored=1, unreported=1, report_uid=None, sent=(), job_state="ready", job_error=None
    )
    first = test_queries.score(database, 2)
    image_id = test_queries.instance_id(database, 2)
    test_queries.report(database, {image_id: first})
    newest = test_queries.report(database, {image_id: first}, revision=2, destinations=["PACS"])
    sent = [Sent(destination="PACS", state="pending", sop_instance_uid=None, error=None)]
    assert ask() == reported(report_uid=newest, sent=sent, job_state="ready")
    test_queries.receive(database, test_queries.new(3))
    assert ask() == reported(report_uid=newest, sent=sent, job_state="ready", unscored=1, unreported=1)
