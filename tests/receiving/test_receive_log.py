"""The log of the receiver: it tells what happened and never of whom."""

from __future__ import annotations

import socket
import struct
import threading
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydicom.filereader import read_partial
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import select, text

from db.models import Study
from pacs_node.dicom import header
from tests.conftest import radiograph, save, uid
from tests.helpers import receiving
from tests.helpers.part10 import raw
from tests.helpers.receiving import (
    PRIVATE_SOP_CLASS,
    STUDY_INSTANCE_UID,
    Node,
    associated,
    broken,
    context_of,
    logged,
    send,
    send_half,
    wait_until,
)

# Fixtures: pytest finds them by the names that they have here.
listen, node, image = receiving.listen, receiving.node, receiving.image


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
        ("info", "instance stored", "outcome=copy"),
        ("warning", "instance refused", "0xC000", "StudyInstanceUID is missing"),
        ("warning", "presentation context rejected", PRIVATE_SOP_CLASS),
        ("warning", "association aborted", "calling_ae=MODALITY"),
        ("warning", "instance refused", "0xA700", "no such table", uid("1", 3)),
    ):
        assert any(all(word in line for word in words) for line in lines().splitlines()), words
    assert_names_nobody(lines())


def test_what_a_peer_writes_into_its_request_cannot_command_a_terminal(node: Node) -> None:
    evil = b"\x1b[2J\x1b[31mFAKE"
    with logged() as lines, socket.create_connection(("127.0.0.1", node.port)) as peer:
        peer.sendall(associate_request(evil, evil))
        peer.recv(4096)
        wait_until(lambda: "presentation context rejected" in lines())
    assert "\x1b" not in lines()
    assert "FAKE" in lines()


def associate_request(abstract_syntax: bytes, transfer_syntax: bytes) -> bytes:
    """Return an A-ASSOCIATE-RQ with one context of any two names (PS3.8 9.3.2)."""

    def item(kind: int, content: bytes) -> bytes:
        return struct.pack(">BxH", kind, len(content)) + content

    context = struct.pack(">BxBx", 1, 0) + item(0x30, abstract_syntax) + item(0x40, transfer_syntax)
    user = item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3")
    items = item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, context) + item(0x50, user)
    body = struct.pack(">Hxx16s16s32x", 1, b"PACS_NODE".ljust(16), b"EVIL".ljust(16)) + items
    return struct.pack(">BxL", 1, len(body)) + body


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

    def _read_partial(*arguments: Any, **options: Any) -> Any:
        number = len(inside)
        inside.append(number)
        may_go_on[number].wait(120)
        return read_partial(*arguments, **options)

    monkeypatch.setattr(header, "read_partial", _read_partial)
    with logged("DEBUG") as lines, ThreadPoolExecutor(2) as senders:
        answers: list[Future[Any]] = []
        for path in paths:
            answers.append(senders.submit(send, node, path))
            wait_until(lambda: len(inside) == len(answers))
        for event, answer in zip(may_go_on, answers, strict=True):
            event.set()  # the second reads on when the first has left `catch_warnings`
            assert answer.result().Status == 0x0000
    with node.database.read() as session:
        assert session.scalars(select(Study.patient_id)).one() == ("PID-1 " * 20)[:63] + "…"
    assert "instance stored" in lines()
    assert_names_nobody(lines())
