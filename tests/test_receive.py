"""The receiver, over real sockets: what is answered with Success is safe, and whatever is not says why."""

from __future__ import annotations

import errno
import logging
import os
import resource
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, NoReturn

import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    MPEG2MPML,
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, _config, dimse_messages
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import
from pynetdicom.transport import AssociationServer
from sqlalchemy import select, text
from sqlalchemy.engine.default import DefaultDialect

from classifier.config import PROJECTION_RADIOGRAPHS
from db import queries
from db.errors import DatabaseDown, WriteConflict
from db.models import Instance, Job, Study
from db.session import Database, sqlite
from pacs_node import header, log, receive
from pacs_node.config import LogSettings, NodeSettings, ReceiveSettings, Settings
from pacs_node.errors import PortInUse
from pacs_node.receive import READABLE_SYNTAXES, Receiver
from pacs_node.spool import Arriving, Spool
from tests.conftest import radiograph, save, uid
from tests.test_header import encoded, part10, raw

DX, CR, SC = "DX", "CR", "SC"
PRIVATE_SOP_CLASS = "1.2.826.0.1.3680043.10.543.1"
SOP_CLASS_UID, SOP_INSTANCE_UID = 0x00080016, 0x00080018
STUDY_INSTANCE_UID, SERIES_INSTANCE_UID = 0x0020000D, 0x0020000E


@dataclass
class Node:
    """A receiver that listens, with what it writes to."""

    receiver: Receiver
    database: Database
    spool: Spool
    port: int
    is_stopped: bool = False

    def stop(self) -> None:
        if not self.is_stopped:
            self.is_stopped = True
            self.receiver.stop()

    def instances(self) -> list[Instance]:
        with self.database.read() as session:
            return list(session.scalars(select(Instance).order_by(Instance.id)))

    def jobs(self) -> list[tuple[str, int, str]]:
        with self.database.read() as session:
            return [(job.kind, job.ref, job.state) for job in session.scalars(select(Job))]

    def data_sets(self) -> dict[str, bytes]:
        """Return what is stored: the encoded data set of each recorded object."""
        return {one.sop_instance_uid: data_set(self.spool.path(one.digest)) for one in self.instances()}

    def arriving(self) -> list[Path]:
        """Return the files that are being received."""
        return list(self.spool.incoming.iterdir()) if self.spool.incoming.is_dir() else []

    def assert_holds_nothing(self) -> None:
        """Nothing was recorded or kept, and nothing is left of what was being received."""
        assert (self.instances(), self.jobs(), list(self.spool.stored())) == ([], [], [])
        wait_until(lambda: not self.arriving())


Listen = Callable[..., Node]


@pytest.fixture
def listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listen]:
    """Return a function that starts a receiver with settings of section ``receive``."""
    monkeypatch.setattr(_config, "STORE_RECV_CHUNKED_DATASET", _config.STORE_RECV_CHUNKED_DATASET)
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)  # files are sent as they are
    monkeypatch.setattr(dimse_messages, "NamedTemporaryFile", tempfile.NamedTemporaryFile)
    # The default lets every test wait half a second for its receiver to stop
    monkeypatch.setattr(
        AssociationServer, "serve_forever", lambda self: socketserver.TCPServer.serve_forever(self, 0.05)
    )
    started: list[Node] = []

    def _listen(**section: Any) -> Node:
        section = {"min_free_mebibytes": 0} | section
        settings = Settings(
            node=NodeSettings(host="127.0.0.1", port=free_port()), receive=ReceiveSettings(**section)
        )
        database = Database(f"sqlite:///{tmp_path}/results.sqlite")
        database.upgrade()
        spool = Spool(tmp_path / "spool")
        spool.prepare()
        receiver = Receiver(settings, database, spool)
        node = Node(receiver, database, spool, receiver.start())
        started.append(node)
        return node

    yield _listen
    for node in started:
        node.stop()
        node.database.close()


@contextmanager
def logged(level: Any = "INFO") -> Iterator[Callable[[], str]]:
    """Log as the program does; give a function that returns what stands on standard error so far."""
    root, said = logging.getLogger(), StringIO()
    handlers, level_before, hooks = root.handlers, root.level, (sys.excepthook, threading.excepthook)
    with redirect_stderr(said):
        log.configure(LogSettings(level=level))
        yield said.getvalue
    root.handlers = handlers
    root.setLevel(level_before)
    sys.excepthook, threading.excepthook = hooks


@pytest.fixture
def node(listen: Listen) -> Node:
    """A receiver that takes everything."""
    return listen()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def data_set(path: Path) -> bytes:
    """Return the encoded data set of a Part 10 file."""
    whole = path.read_bytes()
    return whole[144 + int.from_bytes(whole[140:144], "little") :]


def wait_until(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


# Senders

Context = tuple[str, str | Sequence[str]]


@contextmanager
def associated(
    node: Node, *contexts: Context, calling: str = "MODALITY", called: str = "PACS_NODE"
) -> Iterator[Association]:
    """Request an association; release it at the end if it is still there."""
    ae = AE(calling)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 30
    for sop_class, syntaxes in contexts or [(Verification, ImplicitVRLittleEndian)]:
        ae.add_requested_context(sop_class, [syntaxes] if isinstance(syntaxes, str) else list(syntaxes))
    association = ae.associate("127.0.0.1", node.port, ae_title=called)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def context_of(path: Path) -> tuple[str, str]:
    meta: Any = read_file_meta_info(path)
    return str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)


def send(node: Node, *paths: Path) -> Any:
    """Send files byte for byte over one association; return the answer, which is the same to each."""
    with associated(node, *{context_of(path) for path in paths}) as association:
        answers = [association.send_c_store(path) for path in paths]
    assert len({answer.Status for answer in answers}) == 1
    return answers[-1]


def assert_refused(node: Node, answer: Any, status: int, comment: str) -> None:
    """The sender knows that the object is not here, and why; and it is not."""
    assert (f"0x{answer.Status:04X}", answer.ErrorComment) == (f"0x{status:04X}", comment)
    node.assert_holds_nothing()


def program(name: str) -> str:
    """Return the path of a DCMTK program; its absence skips a developer's test and fails CI's."""
    path = shutil.which(name)
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} of DCMTK is not installed")
        pytest.skip(f"{name} of DCMTK is not installed")
    return path


def dcmtk(name: str, node: Node, *arguments: str | Path) -> None:
    """Run a DCMTK sender against the node; it must be content."""
    command = [program(name), "-v", "-aet", "DCMTK", "-aec", "PACS_NODE", "127.0.0.1", str(node.port)]
    run = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=30, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


# Objects


def object_in(syntax: str, folder: Path, kind: str = DX, number: int = 1) -> Path:
    """Write a radiograph in any transfer syntax; where that one compresses, its frame is made up."""
    ds = radiograph(kind, number=number)
    path = folder / f"{kind}-{syntax}-{number}.dcm"
    if not UID(syntax).is_encapsulated:
        return encoded(ds, syntax, path)
    ds.PixelData = encapsulate([bytes(range(256)) * 64])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return encoded(ds, syntax, path)


def broken(folder: Path, tag: int, value: bytes | None) -> Path:
    """Write a radiograph with a UID of any bytes, or none; it is announced under its proper UIDs."""
    ds = radiograph()
    del ds[tag]
    if value is not None:
        raw(ds, tag, "UI", value)
    path = folder / "broken.dcm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pydicom warns of it
        changed = data_set(encoded(ds, ExplicitVRLittleEndian, path))
    return part10(changed, ExplicitVRLittleEndian, path)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A radiograph of the patient Test^Alice."""
    return save(radiograph(), tmp_path / "image.dcm")


# What arrives


def test_c_echo_is_answered(node: Node) -> None:
    dcmtk("echoscu", node)
    with associated(node) as association:
        assert association.send_c_echo().Status == 0x0000


def test_the_configured_pdu_size_is_offered(listen: Listen) -> None:
    with associated(listen(max_pdu_bytes=65_536)) as association:
        assert association.acceptor.maximum_length == 65_536


SYNTAX_OPTIONS = {
    "-xe": ExplicitVRLittleEndian,
    "-xi": ImplicitVRLittleEndian,
    "-xb": ExplicitVRBigEndian,
    "-xd": DeflatedExplicitVRLittleEndian,
    "-xr": RLELossless,
    "-xs": JPEGLosslessSV1,
    "-xy": JPEGBaseline8Bit,
    "-xt": JPEGLSLossless,
    "-xv": JPEG2000Lossless,
}


def test_what_storescu_sends_is_stored_byte_for_byte(node: Node, tmp_path: Path) -> None:
    sent: dict[str, bytes] = {}
    for number, (option, syntax) in enumerate(SYNTAX_OPTIONS.items()):
        path = object_in(syntax, tmp_path, (DX, CR, SC)[number % 3], number)
        dcmtk("storescu", node, option, path)
        sent[uid("1", number)] = data_set(path)
    assert node.data_sets() == sent
    stored = {one.sop_instance_uid: one.transfer_syntax_uid for one in node.instances()}
    assert stored == {uid("1", number): syntax for number, syntax in enumerate(SYNTAX_OPTIONS.values())}


def test_a_folder_that_dcmsend_sends_is_stored_byte_for_byte(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    sent: dict[str, bytes] = {}
    for number, syntax in enumerate((ExplicitVRLittleEndian, JPEGLosslessSV1, JPEG2000Lossless, RLELossless)):
        for kind in (DX, CR, SC):
            path = object_in(syntax, folder, kind, number * 3 + len(sent) % 3)
            sent[str(dcmread(path).SOPInstanceUID)] = data_set(path)
    dcmtk("dcmsend", node, "--decompress-never", "+sd", folder)
    assert len(sent) == 12
    assert node.data_sets() == sent


def test_every_readable_transfer_syntax_is_stored_byte_for_byte(node: Node, tmp_path: Path) -> None:
    paths = [
        object_in(syntax, tmp_path, (DX, CR, SC)[number % 3], number)
        for number, syntax in enumerate(READABLE_SYNTAXES)
    ]
    with associated(node, *map(context_of, paths)) as association:
        assert {association.send_c_store(path).Status for path in paths} == {0x0000}
    assert node.data_sets() == {uid("1", number): data_set(path) for number, path in enumerate(paths)}


def test_an_object_is_recorded_with_its_study_and_its_jobs(node: Node, image: Path) -> None:
    assert send(node, image).Status == 0x0000
    (one,) = node.instances()
    assert (one.sop_instance_uid, one.series_instance_uid, one.copy) == (uid("1", 1), uid("1", "series"), 0)
    assert one.sop_class_uid == DigitalXRayImageStorageForPresentation
    assert (one.transfer_syntax_uid, one.modality) == (ExplicitVRLittleEndian, "DX")
    assert (one.view_position, one.calling_ae_title) == ("PA", "MODALITY")
    assert one.size == node.spool.path(one.digest).stat().st_size
    assert abs(one.received_at.timestamp() - time.time()) < 60
    with node.database.read() as session:
        study = session.scalars(select(Study)).one()
    assert (study.study_instance_uid, study.accession_number) == (uid("1", "study"), "ACC-1")
    assert (study.patient_name, study.patient_id, study.study_date) == ("Test^Alice", "PID-1", "20250610")
    assert sorted(node.jobs()) == [("report", study.id, "ready"), ("score", one.id, "ready")]
    wait_until(lambda: not node.arriving())


def test_the_images_of_a_study_share_its_row_and_its_report(node: Node, tmp_path: Path) -> None:
    paths = [save(radiograph(number=number), tmp_path / f"{number}.dcm") for number in range(5)]
    assert send(node, *paths).Status == 0x0000
    assert [one.study_id for one in node.instances()] == [1] * 5
    assert sorted(kind for kind, _, _ in node.jobs()) == ["report"] + ["score"] * 5


def test_what_is_stored_is_a_valid_file_of_its_transfer_syntax(node: Node, tmp_path: Path) -> None:
    send(node, object_in(DeflatedExplicitVRLittleEndian, tmp_path))
    (one,) = node.instances()
    stored = dcmread(node.spool.path(one.digest))
    assert stored.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
    assert (stored.pixel_array == radiograph().pixel_array).all()


# What is offered


def test_every_sop_class_is_accepted(node: Node) -> None:
    sop_classes = [str(context.abstract_syntax) for context in AllStoragePresentationContexts]
    assert len(sop_classes) > 150
    assert set(sop_classes) > PROJECTION_RADIOGRAPHS
    for start in range(0, len(sop_classes), 128):
        offered = sop_classes[start : start + 128]
        with associated(node, *((one, ImplicitVRLittleEndian) for one in offered)) as association:
            assert [context.abstract_syntax for context in association.accepted_contexts] == offered


@pytest.mark.parametrize(
    ("sop_classes", "syntaxes"),
    [(sorted(PROJECTION_RADIOGRAPHS), READABLE_SYNTAXES), ([CTImageStorage], ALL_TRANSFER_SYNTAXES)],
    ids=["radiographs", "CT"],
)
def test_every_transfer_syntax_is_accepted(
    sop_classes: list[str], syntaxes: Sequence[str], node: Node
) -> None:
    pairs = [(sop_class, syntax) for sop_class in sop_classes for syntax in syntaxes]
    for start in range(0, len(pairs), 128):
        offered = pairs[start : start + 128]
        with associated(node, *offered) as association:
            accepted = association.accepted_contexts
        assert [(one.abstract_syntax, one.transfer_syntax[0]) for one in accepted] == offered


def test_a_radiograph_is_not_accepted_in_a_syntax_that_nobody_can_decode(node: Node) -> None:
    unreadable = sorted(set(ALL_TRANSFER_SYNTAXES) - set(READABLE_SYNTAXES))
    assert MPEG2MPML in unreadable
    offers: list[Context] = [(ComputedRadiographyImageStorage, syntax) for syntax in unreadable]
    with associated(node, *offers, (ComputedRadiographyImageStorage, ExplicitVRLittleEndian)) as association:
        accepted, rejected = association.accepted_contexts, association.rejected_contexts
    assert [context.transfer_syntax for context in accepted] == [[ExplicitVRLittleEndian]]
    assert {context.result for context in rejected} == {0x04}  # transfer syntaxes not supported


def test_a_sender_that_offers_several_syntaxes_gets_one_that_can_be_decoded(node: Node) -> None:
    offer = (ComputedRadiographyImageStorage, [MPEG2MPML, JPEG2000Lossless])
    with associated(node, offer) as association:
        (context,) = association.accepted_contexts
    assert context.transfer_syntax == [JPEG2000Lossless]


def ct(folder: Path) -> Path:
    ds = radiograph(SOPClassUID=CTImageStorage, Modality="CT")
    ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    return save(ds, folder / "ct.dcm")


def test_objects_that_cannot_hold_a_chest_radiograph_are_stored(node: Node, tmp_path: Path) -> None:
    assert send(node, ct(tmp_path)).Status == 0x0000
    assert [one.modality for one in node.instances()] == ["CT"]


def test_objects_that_cannot_hold_a_chest_radiograph_can_be_refused(listen: Listen, image: Path) -> None:
    node = listen(other_sop_classes="refuse")
    offers = [(CTImageStorage, ExplicitVRLittleEndian), context_of(image)]
    with associated(node, *offers) as association:
        assert [context.abstract_syntax for context in association.rejected_contexts] == [CTImageStorage]
        assert association.send_c_store(image).Status == 0x0000
    assert [one.modality for one in node.instances()] == ["DX"]


def test_an_unknown_sop_class_is_not_accepted(node: Node) -> None:
    offers = [(PRIVATE_SOP_CLASS, ExplicitVRLittleEndian), (Verification, ImplicitVRLittleEndian)]
    with associated(node, *offers) as association:
        (context,) = association.rejected_contexts
    assert (context.abstract_syntax, context.result) == (PRIVATE_SOP_CLASS, 0x03)


# Objects that are wrong


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_a_uid_that_is_none_is_refused(keyword: str, node: Node, image: Path, tmp_path: Path) -> None:
    tag = STUDY_INSTANCE_UID if keyword == "StudyInstanceUID" else SERIES_INSTANCE_UID
    values: dict[bytes | None, str] = {None: "is missing", b"": "is missing"}
    no_uids = (b"../../../../etc/passwd", b"1.2.3/../4", b"1.2.ABC", b"1." + b"2" * 63)
    values |= dict.fromkeys(no_uids, "is no UID")
    with associated(node, context_of(image)) as association:
        for value, what in values.items():
            answer = association.send_c_store(broken(tmp_path, tag, value))
            assert (answer.Status, answer.ErrorComment) == (0xC000, f"{keyword} {what}")
    node.assert_holds_nothing()


def test_bytes_that_are_no_data_set_are_refused(node: Node, image: Path, tmp_path: Path) -> None:
    with associated(node, context_of(image)) as association:
        for content in (b"", b"\0" * 8, bytes(range(256)) * 8, b"\xff" * 1000):
            path = part10(content, ExplicitVRLittleEndian, tmp_path / "junk.dcm")
            answer = association.send_c_store(path)
            assert answer.Status == 0xC000
            assert answer.ErrorComment
    node.assert_holds_nothing()


@pytest.mark.parametrize(
    ("tag", "value", "what"),
    [(SOP_CLASS_UID, CTImageStorage, "SOP Class UID"), (SOP_INSTANCE_UID, "1.2.3", "SOP Instance UID")],
)
def test_an_object_that_is_another_than_announced_is_refused(
    tag: int, value: str, what: str, node: Node, tmp_path: Path
) -> None:
    answer = send(node, broken(tmp_path, tag, value.encode()))
    assert_refused(node, answer, 0xA900, f"{what} is another than that of the request")


def test_images_that_cannot_be_decoded_are_stored_and_judged_later(node: Node, tmp_path: Path) -> None:
    odd: list[dict[str, Any]] = [
        {"Rows": 0, "Columns": 0},
        {"Rows": 60_000, "Columns": 60_000},
        {"Rows": None},
        {"PixelData": None},
    ]
    paths = [
        save(radiograph(number=number, **tags), tmp_path / f"{number}.dcm") for number, tags in enumerate(odd)
    ]
    assert send(node, *paths).Status == 0x0000
    assert node.data_sets() == {uid("1", number): data_set(path) for number, path in enumerate(paths)}


def test_an_image_whose_pixels_were_cut_off_is_stored_and_judged_later(node: Node, image: Path) -> None:
    image.write_bytes(image.read_bytes()[:-100_001])
    assert send(node, image).Status == 0x0000
    assert node.data_sets() == {uid("1", 1): data_set(image)}


def test_one_wrong_object_does_not_stop_the_others(node: Node, image: Path, tmp_path: Path) -> None:
    second = save(radiograph(number=2), tmp_path / "second.dcm")
    wrong = broken(tmp_path, STUDY_INSTANCE_UID, None)
    with associated(node, context_of(image)) as association:
        answers = [association.send_c_store(path).Status for path in (image, wrong, second)]
    assert answers == [0x0000, 0xC000, 0x0000]
    assert [one.sop_instance_uid for one in node.instances()] == [uid("1", 1), uid("1", 2)]


# The same object again


def test_the_same_object_again_is_success_and_changes_nothing(node: Node, image: Path) -> None:
    for _ in range(3):
        assert send(node, image, image).Status == 0x0000
    assert len(node.instances()) == 1
    assert len(list(node.spool.stored())) == 1
    assert len(node.jobs()) == 2


def test_another_object_under_the_same_uid_is_kept_beside_the_first_and_flagged(
    node: Node, image: Path, tmp_path: Path
) -> None:
    other = save(radiograph(PatientComments="other"), tmp_path / "other.dcm")
    for path in (image, other, image, other):
        assert send(node, path).Status == 0x0000
    first, second = node.instances()
    assert (first.sop_instance_uid, first.copy) == (second.sop_instance_uid, 0)
    assert second.copy == 1
    assert data_set(node.spool.path(first.digest)) == data_set(image)
    assert data_set(node.spool.path(second.digest)) == data_set(other)
    assert sorted(node.jobs()) == [("report", 1, "ready"), ("score", 1, "ready"), ("score", 2, "ready")]


def test_the_same_object_over_many_associations_at_once_is_one_object(node: Node, image: Path) -> None:
    with ThreadPoolExecutor(8) as senders:
        answers = list(senders.map(lambda _: send(node, image), range(8)))
    assert [answer.Status for answer in answers] == [0x0000] * 8
    assert len(node.instances()) == len(list(node.spool.stored())) == 1


def test_many_objects_over_many_associations_at_once_all_arrive(node: Node, tmp_path: Path) -> None:
    paths = [save(radiograph(study=str(n % 3), number=n), tmp_path / f"{n}.dcm") for n in range(12)]
    with ThreadPoolExecutor(4) as senders:
        answers = list(senders.map(lambda path: send(node, path), paths))
    assert {answer.Status for answer in answers} == {0x0000}
    expected = {uid(str(n % 3), n): data_set(path) for n, path in enumerate(paths)}
    assert node.data_sets() == expected


@pytest.mark.parametrize(("conflicts", "status"), [(4, 0x0000), (5, 0xA700)])
def test_a_lost_race_for_a_row_is_run_again(
    conflicts: int, status: int, node: Node, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, tries = queries.add_instance, []

    def _add(*arguments: Any) -> Any:
        tries.append(arguments)
        if len(tries) <= conflicts:
            raise WriteConflict("Another transaction came first.")
        return add(*arguments)

    monkeypatch.setattr(queries, "add_instance", _add)
    assert send(node, image).Status == status
    assert len(node.instances()) == (status == 0x0000)


# Nothing but Success means stored


def no_space(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_below_its_floor_refuses(listen: Listen, image: Path) -> None:
    node = listen(min_free_mebibytes=2**40)
    answer = send(node, image)
    free = node.spool.free_bytes() // 2**20
    assert answer.ErrorComment.startswith("Spool almost full: ")
    assert abs(int(answer.ErrorComment.split()[3]) - free) < 1024
    assert answer.Status == 0xA700
    node.assert_holds_nothing()


def test_a_disk_that_is_full_refuses(node: Node, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", no_space)
    assert_refused(node, send(node, image), 0xA700, "Cannot write the spool: No space left on device")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the operating system refuse to write more to any one file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_cannot_be_written_to_its_end_refuses(node: Node, image: Path, tmp_path: Path) -> None:
    large = save(radiograph(PixelData=bytes(4 * 2**20)), tmp_path / "large.dcm")
    with associated(node, context_of(image)) as association:
        with largest_file(2 * 2**20):
            answer = association.send_c_store(large)
        assert_refused(node, answer, 0xA700, "Cannot write the spool: File too large")
        assert association.send_c_store(image).Status == 0x0000  # it can go on


def test_a_spool_that_vanished_refuses(node: Node, image: Path) -> None:
    shutil.rmtree(node.spool.root)
    answer = send(node, image)
    assert (answer.Status, answer.ErrorComment) == (
        0xA700,
        "Cannot write the spool: No such file or directory",
    )
    assert (node.instances(), node.jobs()) == ([], [])
    assert not node.spool.root.exists()  # it may be a mount point
    node.spool.prepare()
    assert send(node, image).Status == 0x0000


def test_a_database_that_raises_refuses(node: Node, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def _down(*_: object) -> NoReturn:
        raise DatabaseDown("The database does not work: it is on holiday.")

    monkeypatch.setattr(queries, "add_instance", _down)
    answer = send(node, image)
    assert (answer.Status, answer.ErrorComment) == (0xA700, "The database is not available")
    assert (node.instances(), node.jobs()) == ([], [])


def test_a_database_without_its_table_refuses_until_it_is_back(node: Node, image: Path) -> None:
    rename = "ALTER TABLE {} RENAME TO {}"
    with node.database.write() as session:
        session.execute(text(rename.format("job", "away")))
    answer = send(node, image)
    assert (answer.Status, answer.ErrorComment) == (0xA700, "The database is not available")
    assert node.instances() == []
    with node.database.write() as session:
        session.execute(text(rename.format("away", "job")))
    assert send(node, image).Status == 0x0000
    assert (len(node.instances()), len(node.jobs())) == (1, 2)


def test_a_database_file_that_cannot_be_opened_refuses(node: Node, image: Path) -> None:
    node.database.close()
    file = node.database.file
    assert file is not None
    shutil.move(file, file.with_suffix(".away"))
    file.mkdir()
    assert send(node, image).Status == 0xA700
    file.rmdir()
    shutil.move(file.with_suffix(".away"), file)
    assert node.instances() == []
    assert send(node, image).Status == 0x0000
    assert len(node.instances()) == 1


def test_a_commit_that_fails_is_no_success(node: Node, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def _broken(*_: object) -> NoReturn:
        raise sqlite.OperationalError("disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr(DefaultDialect, "do_commit", _broken)
        answer = send(node, image)
    assert (answer.Status, answer.ErrorComment) == (0xA700, "The database is not available")
    assert (node.instances(), node.jobs()) == ([], [])


def test_success_waits_for_the_commit(node: Node, image: Path) -> None:
    with ThreadPoolExecutor(1) as sender:
        with node.database.write() as session:
            session.execute(text("SELECT 1"))  # nobody else can write now
            answer = sender.submit(send, node, image)
            wait_until(lambda: bool(list(node.spool.stored())))
            time.sleep(0.3)
            assert not answer.done()
        assert answer.result().Status == 0x0000
    assert len(node.instances()) == 1


def test_an_object_is_on_the_disk_before_its_row_is_committed(
    node: Node, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit: Any = DefaultDialect.do_commit
    fsync = os.fsync
    synced: list[int] = []
    seen: list[bool] = []

    def _fsync(descriptor: int) -> None:
        time.sleep(0.2)  # a slow disk: all else is done long before
        fsync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    def _commit(dialect: Any, connection: Any) -> None:
        (file,) = [node.spool.path(digest) for digest in node.spool.stored()]
        seen.append(file.stat().st_ino in synced and file.parent.stat().st_ino in synced)
        commit(dialect, connection)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", _fsync)
        patched.setattr(DefaultDialect, "do_commit", _commit)
        assert send(node, image).Status == 0x0000
    assert seen == [True]


def test_a_file_that_cannot_be_kept_leaves_no_row(
    node: Node, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def _broken(_: int) -> NoReturn:
        time.sleep(0.2)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", _broken)
        answer = send(node, image)
    assert answer.Status == 0xA700
    assert "Cannot write the spool" in answer.ErrorComment
    node.assert_holds_nothing()


def test_an_unexpected_error_is_no_success_and_is_logged(
    node: Node, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def _bug(*_: object) -> NoReturn:
        raise ValueError("Test^Alice")

    monkeypatch.setattr(Arriving, "digest", _bug)
    with logged() as lines:
        assert send(node, image).Status == 0xC211
    node.assert_holds_nothing()
    assert "instance not stored" in lines()
    assert "ValueError" in lines()
    assert "Alice" not in lines()


# Associations


def rejection(association: Association) -> tuple[int, int, int]:
    """Return result, source and diagnostic of an A-ASSOCIATE-RJ (PS3.8 9.3.4)."""
    assert association.is_rejected
    primitive: Any = association.acceptor.primitive
    return primitive.result, primitive.result_source, primitive.diagnostic


def test_only_listed_ae_titles_may_call(listen: Listen) -> None:
    node = listen(calling_ae_titles=["MODALITY1", "MODALITY2"])
    with associated(node, calling="MODALITY2") as allowed:
        assert allowed.is_established
    with associated(node, calling="MODALITY3") as stranger:
        assert rejection(stranger) == (1, 1, 3)  # permanent, calling AE title not recognized


def test_another_called_ae_title_is_rejected_where_the_right_one_is_required(listen: Listen) -> None:
    node = listen(require_called_ae_title=True)
    with associated(node, called="PACS_NODE") as right:
        assert right.is_established
    with associated(node, called="OTHER") as wrong:
        assert rejection(wrong) == (1, 1, 7)  # permanent, called AE title not recognized


def test_one_association_too_many_is_rejected_for_now(listen: Listen) -> None:
    node = listen(max_associations=2)
    with associated(node) as first, associated(node) as second:
        assert first.is_established
        assert second.is_established
        with associated(node) as third:
            assert rejection(third) == (2, 3, 2)  # transient, local limit exceeded
    wait_until(lambda: not node.receiver._ae.active_associations)
    with associated(node) as fourth:
        assert fourth.is_established


def halves(association: Association, path: Path, **command: Any) -> tuple[list[P_DATA], list[P_DATA]]:
    """Return the C-STORE request of a file in two halves, with any values in its command set."""
    ds = dcmread(path, stop_before_pixels=True)
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    request.DataSet = BytesIO(data_set(path))
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    (context,) = association.accepted_contexts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pydicom warns of UIDs that are none
        for keyword, value in command.items():
            setattr(message.command_set, keyword, value)
        parts = list(message.encode_msg(context.context_id or 0, 16_384))
    return parts[: len(parts) // 2], parts[len(parts) // 2 :]


@contextmanager
def paused(association: Association) -> Iterator[None]:
    """Keep the association from taking the answers itself."""
    association._reactor_checkpoint.clear()
    wait_until(lambda: association._is_paused)
    yield
    association._reactor_checkpoint.set()


def answered(association: Association) -> Any:
    """Return the answer to what was sent."""
    return association.dimse.get_msg(block=True)[1]


def send_half(node: Node, association: Association, path: Path) -> list[P_DATA]:
    """Send the first half of a C-STORE request; return the second."""
    first, second = halves(association, path)
    for part in first:
        association.dul.send_pdu(part)
    wait_until(lambda: any(file.stat().st_size > 10_000 for file in node.arriving()))
    return second


def lose_connection(association: Association) -> None:
    connection: Any = association.dul.socket
    connection.close()


def send_nonsense(association: Association) -> None:
    connection: Any = association.dul.socket
    connection.send(b"\x04\0" + (6).to_bytes(4, "big") + b"\xff\xff\xff\xff\x01\0")  # PDV longer than its PDU
    wait_until(lambda: association.is_aborted)


def send_endless(association: Association) -> None:
    connection: Any = association.dul.socket
    connection.send(b"\x04\0\xff\xff\xff\xff")  # a PDU of 4 GiB
    wait_until(lambda: association.is_aborted)


@pytest.mark.parametrize("end", [Association.abort, lose_connection, send_nonsense, send_endless])
def test_a_sender_that_breaks_off_in_the_middle_leaves_nothing(
    end: Callable[[Association], None], node: Node, image: Path
) -> None:
    with associated(node, context_of(image)) as association:
        send_half(node, association, image)
        end(association)
    node.assert_holds_nothing()
    assert send(node, image).Status == 0x0000


@pytest.mark.parametrize("kind", [1, 4, 5])
def test_a_pdu_of_four_gibibytes_ends_the_association_at_once(kind: int, node: Node, image: Path) -> None:
    with associated(node, context_of(image)) as association:
        connection: Any = association.dul.socket
        connection.send(bytes([kind]) + b"\0\xff\xff\xff\xff")
        wait_until(lambda: association.is_aborted)
    assert send(node, image).Status == 0x0000


def test_a_sender_that_falls_silent_in_the_middle_is_aborted_and_leaves_nothing(
    listen: Listen, image: Path
) -> None:
    node = listen(idle_seconds=0.5)
    with associated(node, context_of(image)) as association:
        send_half(node, association, image)
        wait_until(lambda: association.is_aborted)
    node.assert_holds_nothing()


@pytest.mark.parametrize("value", ["../../../etc/passwd", "1.2.abc", "1.2.3\n.4"])
def test_a_request_for_a_uid_that_is_none_is_refused(value: str, node: Node, image: Path) -> None:
    with associated(node, context_of(image)) as association, paused(association):
        for half in halves(association, image, AffectedSOPInstanceUID=value):
            for part in half:
                association.dul.send_pdu(part)
        answer = answered(association)
    assert_refused(node, answer, 0xA900, "SOP Instance UID is another than that of the request")


def test_a_request_for_a_uid_that_is_too_long_is_aborted_and_leaves_nothing(node: Node, image: Path) -> None:
    with associated(node, context_of(image)) as association:
        for half in halves(association, image, AffectedSOPInstanceUID="1." + "2" * 63):
            for part in half:
                association.dul.send_pdu(part)
        wait_until(lambda: association.is_aborted)
    node.assert_holds_nothing()


def test_a_request_without_data_set_is_refused(node: Node, image: Path) -> None:
    with associated(node, context_of(image)) as association, paused(association):
        (request,) = halves(association, image, CommandDataSetType=0x0101)[0][:1]
        association.dul.send_pdu(request)
        answer = answered(association)
    assert_refused(node, answer, 0xC000, "The request has no data set")


# Stopping


@contextmanager
def stopping(node: Node) -> Iterator[None]:
    """Stop the node meanwhile; wait for it at the end."""
    stop = threading.Thread(target=node.stop)
    stop.start()
    yield
    stop.join(5)
    assert not stop.is_alive()


def test_an_object_that_is_arriving_when_the_node_stops_is_stored(node: Node, image: Path) -> None:
    with associated(node, context_of(image)) as association, paused(association):
        rest = send_half(node, association, image)
        with stopping(node):
            wait_until(lambda: not is_listening(node.port))
            for part in rest:
                association.dul.send_pdu(part)
            assert answered(association).Status == 0x0000
            association._reactor_checkpoint.set()
            association.release()
    assert node.data_sets() == {uid("1", 1): data_set(image)}


def test_an_association_that_does_not_end_is_aborted_when_the_node_stops(
    node: Node, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receive, "_DRAIN_SECONDS", 0.3)
    with associated(node, context_of(image)) as association:
        send_half(node, association, image)
        with stopping(node):
            wait_until(lambda: association.is_aborted)
    node.assert_holds_nothing()


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False


def test_a_port_that_is_in_use_is_named_in_a_sentence(node: Node) -> None:
    settings = Settings(node=NodeSettings(host="127.0.0.1", port=node.port))
    with pytest.raises(PortInUse) as refused:
        Receiver(settings, node.database, node.spool).start()
    assert str(refused.value) == (f"Port {node.port} on 127.0.0.1 is in use; set [node] host and port.")


def test_an_address_of_another_machine_is_named_in_a_sentence(node: Node) -> None:
    settings = Settings(node=NodeSettings(host="192.0.2.1", port=free_port()))
    with pytest.raises(PortInUse, match=r"on 192\.0\.2\.1 cannot be listened on \(Cannot assign"):
        Receiver(settings, node.database, node.spool).start()


def test_a_stopped_node_can_start_again_on_its_port(node: Node) -> None:
    port = node.port
    node.stop()
    settings = Settings(node=NodeSettings(host="127.0.0.1", port=port))
    again = Receiver(settings, node.database, node.spool)
    assert again.start() == port
    again.stop()


# The log


def test_the_log_tells_what_happened_and_never_of_whom(node: Node, image: Path, tmp_path: Path) -> None:
    other = save(radiograph(PatientComments="other"), tmp_path / "other.dcm")
    third = save(radiograph(number=3), tmp_path / "third.dcm")
    with logged() as lines:
        for path in (image, image, other, broken(tmp_path, STUDY_INSTANCE_UID, None)):
            send(node, path)
        with associated(node, context_of(image), (PRIVATE_SOP_CLASS, ExplicitVRLittleEndian)) as association:
            send_half(node, association, image)
            association.abort()
        wait_until(lambda: "association aborted" in lines())
        with node.database.write() as session:
            session.execute(text("ALTER TABLE job RENAME TO away"))
        send(node, third)
    for words in (
        ("association accepted", "calling_ae=MODALITY", "called_ae=PACS_NODE", "address=127.0.0.1"),
        ("info", "instance stored", "outcome=new", uid("1", 1), uid("1", "study"), "calling_ae=MODALITY"),
        ("info", "instance stored", "outcome=again"),
        ("warning", "instance stored", "outcome=conflict"),
        ("warning", "instance refused", "0xC000", "StudyInstanceUID is missing"),
        ("warning", "presentation context rejected", PRIVATE_SOP_CLASS),
        ("warning", "association aborted", "calling_ae=MODALITY"),
        ("warning", "instance refused", "0xA700", "no such table", uid("1", 3)),
    ):
        assert any(all(word in line for word in words) for line in lines().splitlines()), words
    assert_names_nobody(lines())


def assert_names_nobody(lines: str) -> None:
    for secret in ("Alice", "PID-1", "20210214", "ACC-1"):
        assert secret not in lines


def with_values_that_break_the_standard(number: int, folder: Path) -> Path:
    """Write a radiograph of whose patient pydicom has much to say in warnings."""
    ds = radiograph(number=number)
    raw(ds, 0x00100010, "PN", b"Alice^" * 20)
    raw(ds, 0x00100020, "LO", b"PID-1 " * 20)
    raw(ds, 0x00100030, "DA", b"19600229 Alice")
    raw(ds, 0x00080005, "CS", b"ISO-IR 999")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return save(ds, folder / f"{number}.dcm")


def test_no_warning_of_a_library_names_the_patient(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [with_values_that_break_the_standard(number, tmp_path) for number in range(2)]
    inside: list[int] = []
    may_go_on = [threading.Event(), threading.Event()]

    def _dcmread(*arguments: Any, **options: Any) -> Any:
        number = len(inside)
        inside.append(number)
        may_go_on[number].wait(5)
        return dcmread(*arguments, **options)

    monkeypatch.setattr(header, "dcmread", _dcmread)
    with logged("DEBUG") as lines, ThreadPoolExecutor(2) as senders:
        answers: list[Future[Any]] = []
        for path in paths:
            answers.append(senders.submit(send, node, path))
            wait_until(lambda: len(inside) == len(answers))
        for event, answer in zip(may_go_on, answers, strict=True):
            event.set()  # the second reads on when the first has left `catch_warnings`
            assert answer.result().Status == 0x0000
    with node.database.read() as session:
        assert session.scalars(select(Study.patient_id)).one() == ("PID-1 " * 20)[:64]
    assert "instance stored" in lines()
    assert_names_nobody(lines())
