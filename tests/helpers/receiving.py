"""A receiver that listens in the process of the test, what sends to it, and the objects that are sent."""

from __future__ import annotations

import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import
from sqlalchemy import select

from db.models import Instance, Job
from db.session import Database
from pacs_node import log
from pacs_node.config import LogSettings, NodeSettings, ReceiveSettings, Settings
from pacs_node.config_access import TlsSettings
from pacs_node.demo.peers import free_port
from pacs_node.receiving.receiver import Receiver
from pacs_node.storage.spool import Spool
from tests.conftest import radiograph, save
from tests.helpers.part10 import encoded, part10, raw

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
    tls_port: int = 0
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
    """Return a function that starts a receiver with settings of sections ``tls`` and ``receive``."""
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)  # files are sent as they are
    started: list[Node] = []

    def _listen(tls: TlsSettings | None = None, **section: Any) -> Node:
        section = {"min_free_mebibytes": 0} | section
        settings = Settings(
            node=NodeSettings(host="127.0.0.1", port=free_port()),
            tls=tls or TlsSettings(),
            receive=ReceiveSettings(**section),
        )
        database = Database(f"sqlite:///{tmp_path}/results.sqlite")
        database.upgrade()
        spool = Spool(tmp_path / "spool")
        spool.prepare()
        receiver = Receiver(settings, database, spool)
        node = Node(receiver, database, spool, receiver.start(), settings.tls.port)
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


def data_set(path: Path) -> bytes:
    """Return the encoded data set of a Part 10 file."""
    whole = path.read_bytes()
    return whole[144 + int.from_bytes(whole[140:144], "little") :]


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
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
