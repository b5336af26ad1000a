"""The node as SCU: only the response to its request counts, and what cannot be read is tried again."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian
from pynetdicom.dsutils import encode

from pacs_node.commitment import references
from pacs_node.commitment.references import References
from pacs_node.dicom.header import read_header
from pacs_node.dicom.part10 import file_meta
from pacs_node.errors import NotAssociated, TakesNothing, UnreadableHeader
from pacs_node.network.association import application_entity, associate, store
from tests.helpers import wire

INSTANCE = "1.2.3.4.5"
RIGHT = {
    "e0002": wire.uid(wire.CR),
    "e0100": wire.number(0x8001),
    "e0120": wire.number(1),
    "e0800": wire.number(0x101),
    "e0900": wire.number(0),
    "e1000": wire.uid(INSTANCE),
}


def acceptance(*results: bytes) -> bytes:
    """Return an A-ASSOCIATE-AC PDU."""
    head = b"\0\1\0\0" + b" " * 32 + bytes(32) + wire.item(0x10, wire.APPLICATION)
    return wire.pdu(2, head + b"".join(results) + wire.item(0x50, wire.user_items()))


def result(context_id: int, reason: int = 0, syntax: str = wire.IMPLICIT) -> bytes:
    return wire.item(0x21, bytes([context_id, 0, reason, 0]) + wire.item(0x40, syntax.encode()))


@contextmanager
def scp(answer: bytes, response: bytes = b"") -> Iterator[int]:
    """Run a peer that answers a request for an association, and then C-STORE, with these PDUs."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            wire.read_pdu(connection)
            connection.sendall(answer)
            while (pdu := wire.read_pdu(connection))[0]:
                if pdu[0] == 5:
                    connection.sendall(wire.pdu(6, bytes(4)))
                elif pdu[0] == 4 and pdu[1][5] == 2:
                    connection.sendall(response)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listening.getsockname()[1]
    thread.join(20)
    listening.close()


def send(port: int, folder: Path) -> int:
    ae = application_entity("PACS_NODE")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = 20
    ae.add_requested_context(wire.CR, wire.IMPLICIT)
    path = folder / "sent.dcm"
    path.write_bytes(file_meta(wire.CR, INSTANCE, wire.IMPLICIT) + wire.radiograph(INSTANCE))
    association = associate(ae, "127.0.0.1", port, "PEER")
    try:
        return int(store(association, path).Status)
    finally:
        if association.is_established:
            association.release()


def responding(context_id: int = 1, without: tuple[str, ...] = (), **changed: bytes) -> bytes:
    elements = {name: value for name, value in {**RIGHT, **changed}.items() if name not in without}
    return wire.data(wire.value(context_id, 3, wire.command(**elements)))


@pytest.mark.parametrize("left_out", [(), ("e0002",), ("e1000",), ("e0002", "e1000")])
def test_the_response_to_the_request_counts(left_out: tuple[str, ...], tmp_path: Path) -> None:
    with scp(acceptance(result(1)), responding(without=left_out)) as port:
        assert send(port, tmp_path) == 0x0000


@pytest.mark.parametrize(
    ("response", "why"),
    [
        (responding(e0120=wire.number(4711)), "Message ID Being Responded To"),
        (responding(without=("e0120",)), "Message ID Being Responded To"),
        (responding(e0100=wire.number(0x8030)), "Command Field"),
        (responding(e1000=wire.uid("1.2.9")), "Affected SOP Instance UID"),
        (responding(e0002=wire.uid("1.2.840.10008.5.1.4.1.1.2")), "Affected SOP Class UID"),
        (responding(3), "was not accepted"),
        (wire.data(wire.value(1, 1, bytes(70_000))), "65536 bytes"),
        (wire.pdu(99, b""), "unknown type"),
    ],
)
def test_anything_else_is_no_response(response: bytes, why: str, tmp_path: Path) -> None:
    with scp(acceptance(result(1)), response) as port, pytest.raises(NotAssociated, match=why):
        send(port, tmp_path)


@pytest.mark.parametrize(
    "answer",
    [
        wire.pdu(2, b"nonsense"),
        wire.pdu(2, b"", 2**32 - 1),
        acceptance(),
        acceptance(result(3)),
        acceptance(result(1), result(1)),
        acceptance(result(1), result(5, 3)),
        acceptance(result(1, 0, wire.EXPLICIT)),
        acceptance(result(1, 9)),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_an_answer_that_cannot_be_read_is_not_given_up(answer: bytes, tmp_path: Path) -> None:
    with scp(answer) as port, pytest.raises(NotAssociated) as raised:
        send(port, tmp_path)
    assert not isinstance(raised.value, TakesNothing)


def test_a_peer_that_rejects_each_context_takes_nothing(tmp_path: Path) -> None:
    with scp(acceptance(result(1, 3))) as port, pytest.raises(TakesNothing):
        send(port, tmp_path)


# What is parsed


SYNTAXES = [wire.IMPLICIT, wire.EXPLICIT, str(ExplicitVRBigEndian), str(DeflatedExplicitVRLittleEndian)]
CONTENT = References("1.2.3", [("1.2", "1.2.30"), ("1.2", "1.2.4")], [(("1.2", "1.5"), 0x0112)])


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("is_undefined", [False, True])
def test_references_are_read_as_others_write_them(syntax: str, is_undefined: bool) -> None:
    def item(reference: tuple[str, str], reason: int | None = None) -> Dataset:
        one = Dataset()
        one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID = reference
        one.is_undefined_length_sequence_item = is_undefined
        if reason is not None:
            one.FailureReason = reason
        return one

    ds = Dataset()
    ds.TransactionUID = CONTENT.transaction_uid
    ds.ReferencedSOPSequence = [item(one) for one in CONTENT.referenced]
    ds.FailedSOPSequence = [item(one, reason) for one, reason in CONTENT.failed]
    ds["ReferencedSOPSequence"].is_undefined_length = is_undefined
    big, deflated = syntax == ExplicitVRBigEndian, syntax == DeflatedExplicitVRLittleEndian
    encoded = encode(ds, syntax == wire.IMPLICIT, not big, deflated)
    assert encoded is not None
    assert references.read(encoded, syntax, 10_000) == CONTENT
    assert references.read(references.write(CONTENT, syntax), syntax, 10_000) == CONTENT
    assert is_undefined or deflated or references.write(CONTENT, syntax) == encoded


@settings(max_examples=300, deadline=None, derandomize=True)
@given(damage=st.binary(max_size=12), where=st.floats(0, 1), syntax=st.sampled_from(SYNTAXES))
def test_damaged_references_are_read_or_refused(damage: bytes, where: float, syntax: str) -> None:
    content = bytearray(references.write(CONTENT, syntax))
    at = int(where * len(content))
    content[at : at + len(damage)] = damage
    with suppress(ValueError):
        references.read(bytes(content), syntax, 10_000)


def test_a_header_of_endless_elements_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "endless.dcm"
    elements = b"".join(wire.implicit(0x00090000 + n, b"") for n in range(60_000)) * 3
    path.write_bytes(file_meta(wire.CR, INSTANCE, wire.IMPLICIT) + elements)
    with pytest.raises(UnreadableHeader, match="too many elements"):
        read_header(path)
