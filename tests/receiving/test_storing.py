"""C-STORE from its fragments to its response, and receivers that share a port."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import decode

from db.session import Database, sqlite
from pacs_node.config import NodeSettings, ReceiveSettings, Settings
from pacs_node.demo.peers import NodeProcess, free_port
from pacs_node.dicom.part10 import file_meta
from pacs_node.network import scu
from pacs_node.network.awaiting_request import AwaitingRequest
from pacs_node.network.command_set import encode_response, read_command
from pacs_node.network.peer import Peer
from pacs_node.receiving.receiver import Receiver
from pacs_node.storage.arriving import digest
from pacs_node.storage.spool import Spool
from tests.conftest import radiograph, save
from tests.helpers.receiving import wait_until

DX, EXPLICIT = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.1.2.1"


def command(instance_uid: str = "1.2.3", **change: int) -> bytes:
    """Return a C-STORE request as pynetdicom encodes it."""
    request = C_STORE()
    request.MessageID, request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = 7, DX, instance_uid
    request.Priority, request.DataSet = 0, BytesIO(b"\0\0")
    for keyword, value in change.items():
        setattr(request, keyword, value)
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    (first, *_) = message.encode_msg(1, 16_382)
    return bytes(first.presentation_data_value_list[0][1][1:])


def test_a_command_is_read_as_it_was_encoded() -> None:
    found = read_command(command("1.2.3.4"))
    assert found is not None
    assert (found[0x0002], found[0x1000]) == (DX, "1.2.3.4")
    assert (found[0x0100], found[0x0110], found[0x0800] != 0x0101) == (1, 7, True)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(damage=st.binary(max_size=12), where=st.floats(0, 1), end=st.floats(0, 1))
def test_a_damaged_command_is_read_or_left_to_others(damage: bytes, where: float, end: float) -> None:
    content = bytearray(command())
    at = int(where * len(content))
    content[at : at + len(damage)] = damage
    found = read_command(bytes(content[: int(end * len(content))]))
    assert found is None or all(isinstance(value, int | str) for value in found.values())


@pytest.mark.parametrize("comment", ["", "Spool almost full", "x" * 70])
def test_a_response_is_read_by_others(comment: str) -> None:
    request: dict[int, int | str] = {0x0002: DX, 0x0100: 0x0001, 0x0110: 65_535, 0x1000: "1.2.3"}
    found = decode(BytesIO(encode_response(request, 0xA700, comment)), True, True)
    assert (found.CommandField, found.MessageIDBeingRespondedTo, found.Status) == (0x8001, 65_535, 0xA700)
    assert (found.AffectedSOPClassUID, found.AffectedSOPInstanceUID) == (DX, "1.2.3")
    assert (found.CommandDataSetType, found.get("ErrorComment", "")) == (0x0101, comment[:64])
    assert found.CommandGroupLength == len(encode_response(request, 0xA700, comment)) - 12


def test_file_meta_information_is_read_by_others() -> None:
    meta = dcmread(BytesIO(file_meta(DX, "1.2.345", EXPLICIT))).file_meta
    assert (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID) == (DX, "1.2.345")
    assert (meta.TransferSyntaxUID, meta.FileMetaInformationVersion) == (EXPLICIT, b"\0\1")


# On the wire


class Wire:
    """A sender that says what it likes.

    Attributes
    ----------
    files
        Where its receiver keeps objects.
    """

    def __init__(self, connection: socket.socket, spool: Spool) -> None:
        self._connection = connection
        self.spool = spool

    def send(self, *values: tuple[int, bytes], context_id: int = 1) -> None:
        """Send one P-DATA-TF PDU of these presentation data values, each with its control header."""
        items = [
            struct.pack(">LBB", len(value) + 2, context_id, control) + value for control, value in values
        ]
        self.send_bytes(b"".join(items))

    def send_bytes(self, content: bytes) -> None:
        """Send them as a P-DATA-TF PDU."""
        self.send_raw(struct.pack(">BxL", 4, len(content)) + content)

    def send_raw(self, content: bytes) -> None:
        """Send them as they are."""
        self._connection.sendall(content)

    def status(self) -> int:
        """Return the status of the response."""
        kind, content = self.receive()
        assert kind == 4, f"PDU of type {kind}"
        return int(decode(BytesIO(content[6:]), True, True).Status)

    def receive(self) -> tuple[int, bytes]:
        """Return type and content of the PDU that comes next; type 0 where the connection ends."""
        header = self._exactly(6)
        if not header:
            return 0, b""
        kind, length = struct.unpack(">BxL", header)
        return kind, self._exactly(length)

    def _exactly(self, number: int) -> bytes:
        content = b""
        while len(content) < number and (piece := self._connection.recv(number - len(content))):
            content += piece
        return content

    def assert_is_aborted(self) -> None:
        """The receiver ended the association, and nothing is left of what came."""
        assert self.receive()[0] in (0, 7)
        wait_until(lambda: not list(self.spool.incoming.iterdir()))
        assert list(self.spool.stored()) == []


@pytest.fixture
def wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """Open an association for DX in Explicit VR Little Endian with a receiver."""
    database = Database(f"sqlite:///{tmp_path}/results.sqlite")
    database.upgrade()
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    node = NodeSettings(host="127.0.0.1", port=free_port())
    receiver = Receiver(Settings(node=node, receive=ReceiveSettings(min_free_mebibytes=0)), database, spool)
    receiver.start()
    with socket.create_connection(("127.0.0.1", node.port), timeout=120) as connection:
        opened = Wire(connection, spool)
        connection.sendall(association_request())
        assert opened.receive()[0] == 2
        yield opened
    receiver.stop()
    database.close()


def association_request() -> bytes:
    """Return an A-ASSOCIATE-RQ for DX (PS3.8 9.3.2)."""

    def item(kind: int, content: bytes) -> bytes:
        return struct.pack(">BxH", kind, len(content)) + content

    context = item(0x20, b"\x01\0\0\0" + item(0x30, DX.encode()) + item(0x40, EXPLICIT.encode()))
    user = item(0x50, item(0x51, struct.pack(">L", 16_384)) + item(0x52, b"1.2.3"))
    content = b"\0\1\0\0" + b"PACS_NODE".ljust(16) + b"WIRE".ljust(16) + bytes(32)
    content += item(0x10, b"1.2.840.10008.3.1.1.1") + context + user
    return struct.pack(">BxL", 1, len(content)) + content


def an_object(tmp_path: Path) -> tuple[bytes, bytes, Path]:
    """Return command, data set and file of a radiograph."""
    ds = radiograph("DX")
    path = save(ds, tmp_path / "sent.dcm")
    whole = path.read_bytes()
    return command(ds.SOPInstanceUID), whole[144 + int.from_bytes(whole[140:144], "little") :], path


def pieces(content: bytes, size: int) -> list[tuple[int, bytes]]:
    """Return a data set as fragments with their control headers."""
    cut = [content[at : at + size] for at in range(0, len(content), size)]
    return [(0x02 if number == len(cut) else 0x00, piece) for number, piece in enumerate(cut, 1)]


def test_fragments_in_one_pdu_or_in_many_are_one_object(wire: Wire, tmp_path: Path) -> None:
    request, data_set, path = an_object(tmp_path)
    wire.send((0x03, request), *pieces(data_set, 10_000))
    assert wire.status() == 0x0000
    wire.send((0x03, request))
    for piece in pieces(data_set, 1001):
        wire.send(piece)
    assert wire.status() == 0x0000
    assert list(wire.spool.stored()) == [digest(path, EXPLICIT)]


def test_a_command_in_two_fragments_is_understood_as_well(wire: Wire, tmp_path: Path) -> None:
    request, data_set, path = an_object(tmp_path)
    wire.send((0x01, request[:50]))
    wire.send((0x03, request[50:]), *pieces(data_set, 10_000))
    assert wire.status() == 0x0000
    assert list(wire.spool.stored()) == [digest(path, EXPLICIT)]


def test_a_pdu_larger_than_agreed_is_taken_all_the_same(wire: Wire, tmp_path: Path) -> None:
    request, data_set, path = an_object(tmp_path)
    wire.send((0x03, request))
    wire.send(*pieces(data_set, 1000))
    assert wire.status() == 0x0000
    large = radiograph("DX", number=2)
    large.Rows, large.Columns, large.PixelData = 1000, 1000, bytes(2_000_000)
    whole = save(large, tmp_path / "large.dcm").read_bytes()
    content = whole[144 + int.from_bytes(whole[140:144], "little") :]
    wire.send((0x03, command(large.SOPInstanceUID)), (0x02, content))
    assert wire.status() == 0x0000
    kept = {digest(path, EXPLICIT), digest(tmp_path / "large.dcm", EXPLICIT)}
    assert set(wire.spool.stored()) == kept


def test_a_pdu_larger_than_agreed_may_go_on_with_an_object(wire: Wire, tmp_path: Path) -> None:
    large = radiograph("DX", number=2)
    large.Rows, large.Columns, large.PixelData = 1000, 1000, bytes(2_000_000)
    whole = save(large, tmp_path / "large.dcm").read_bytes()
    content = whole[144 + int.from_bytes(whole[140:144], "little") :]
    wire.send((0x03, command(large.SOPInstanceUID)))
    wire.send((0x00, content[:1000]))
    wire.send((0x02, content[1000:]))
    assert wire.status() == 0x0000
    assert list(wire.spool.stored()) == [digest(tmp_path / "large.dcm", EXPLICIT)]


@pytest.mark.parametrize("first", [1, 3, 5, 6, 7, 11, 12, 13])
def test_a_pdu_may_come_in_two_parts(first: int, wire: Wire, tmp_path: Path) -> None:
    request, data_set, path = an_object(tmp_path)
    wire.send((0x03, request))
    for control, piece in pieces(data_set, 20_000):
        item = struct.pack(">LBB", len(piece) + 2, 1, control) + piece
        pdu = struct.pack(">BxL", 4, len(item)) + item
        wire.send_raw(pdu[:first])
        time.sleep(0.02)
        wire.send_raw(pdu[first:])
    assert wire.status() == 0x0000
    assert list(wire.spool.stored()) == [digest(path, EXPLICIT)]


@pytest.mark.parametrize(
    "then",
    [
        pytest.param([(0x03, command())], id="a command"),
        pytest.param([(0x01, b"\0\0")], id="a piece of a command"),
    ],
)
def test_a_command_in_the_middle_of_a_data_set_ends_the_association(
    then: Sequence[tuple[int, bytes]], wire: Wire, tmp_path: Path
) -> None:
    request, data_set, _ = an_object(tmp_path)
    wire.send((0x03, request), (0x00, data_set[:1000]))
    wire.send(*then)
    wire.assert_is_aborted()


def test_a_fragment_of_another_context_ends_the_association(wire: Wire, tmp_path: Path) -> None:
    request, data_set, _ = an_object(tmp_path)
    wire.send((0x03, request), (0x00, data_set[:1000]))
    wire.send((0x00, data_set[1000:2000]), context_id=3)
    wire.assert_is_aborted()


@pytest.mark.parametrize(
    "content",
    [b"\0\0\0\x01\x01", b"\0\0\0\0", b"\0\0\x01\0\x01\x00abc", b"\xff\xff\xff\xff\x01\0", b"\0\0"],
    ids=["no control header", "no context", "longer than its PDU", "very long", "half a header"],
)
def test_items_that_do_not_add_up_end_the_association(content: bytes, wire: Wire, tmp_path: Path) -> None:
    request, data_set, _ = an_object(tmp_path)
    wire.send((0x03, request), (0x00, data_set[:1000]))
    wire.send_bytes(content)
    wire.assert_is_aborted()


# Several receivers


@contextmanager
def sharing(folder: Path, receivers: int) -> Iterator[tuple[NodeProcess, int]]:
    """Run receivers that share a port; give the node and the port."""
    port, config = free_port(), folder / "config.toml"
    config.write_text(
        f'[node]\nhost = "127.0.0.1"\nport = {port}\n[log]\nformat = "json"\n'
        f"[receive]\nprocesses = {receivers}\nmin_free_mebibytes = 0\n"
    )
    with NodeProcess(config, folder / "node.log", "receive") as node:
        node.wait_until_ready()
        yield node, port


def receivers_of(node: NodeProcess) -> list[int]:
    """Return the processes that receive."""
    children = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
    return [int(child) for child in children]


def test_receivers_share_a_port_and_outlive_each_other(tmp_path: Path) -> None:
    paths = [save(radiograph("DX", study=str(n)), tmp_path / f"{n}.dcm") for n in range(20)]
    with sharing(tmp_path, 2) as (node, port):
        peer = Peer("PACS_NODE", "127.0.0.1", port)
        first, second = receivers_of(node)
        os.kill(first, signal.SIGKILL)
        for path in paths[:10]:  # each over an association of its own, while one receiver starts anew
            assert all(answer.is_stored for answer in scu.send([path], peer, "TEST"))
        wait_until(lambda: first not in receivers_of(node) and len(receivers_of(node)) == 2)
        os.kill(second, signal.SIGKILL)
        for path in paths[10:]:
            assert all(answer.is_stored for answer in scu.send([path], peer, "TEST"))
    with closing(sqlite.connect(tmp_path / "pacs_node.sqlite")) as database:
        assert database.execute("SELECT COUNT(*) FROM instance").fetchone() == (20,)


def test_connections_wait_while_the_only_receiver_starts_anew(tmp_path: Path) -> None:
    path = save(radiograph("DX"), tmp_path / "image.dcm")
    with sharing(tmp_path, 1) as (node, port):
        (receiver,) = receivers_of(node)
        os.kill(receiver, signal.SIGKILL)
        answers = list(scu.send([path], Peer("PACS_NODE", "127.0.0.1", port), "TEST"))
        assert [answer.status for answer in answers] == [0x0000]


def test_what_receivers_left_that_are_no_more_is_removed(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 11112)
    names = [f"{socket.gethostname()}-11112{number}" for number in ("", "-0", "-1", "-2")]
    for name in (*names, "other-11112-0"):
        folder = spool.incoming.parent / name
        folder.mkdir(parents=True)
        (folder / "half.dcm").write_bytes(b"half")
    of_all = {path.parent.name for path in spool.leftovers(2)}
    assert of_all == {names[0], names[1], names[3]}  # the second one is at work
    assert {path.parent.name for path in Spool(tmp_path, 11112, 1).leftovers()} == {names[2]}


def test_an_idle_association_costs_no_processor_time(tmp_path: Path) -> None:
    with sharing(tmp_path, 1) as (node, port):
        (receiver,) = receivers_of(node)
        connections: list[Any] = []
        for _ in range(40):
            connection = socket.create_connection(("127.0.0.1", port), timeout=120)
            connection.sendall(association_request())
            assert connection.recv(1) == b"\x02"
            connections.append(connection)
        before, since = ticks(receiver), time.monotonic()
        time.sleep(2)
        share = (ticks(receiver) - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - since)
        for connection in connections:
            connection.close()
    assert share < 0.15  # with a look around every millisecond, it is half a processor or more


def ticks(pid: int) -> int:
    """Return the processor time of a process, in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_process_with_fewer_associations_is_the_first_to_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("pacs_node.network.awaiting_request.time.sleep", waited.append)
    for associations in (0, 1, 50):
        listening = socket.create_server(("127.0.0.1", 0))
        accepting = AwaitingRequest(
            {listening: None},
            lambda _connection, _address, _body: None,
            partial(int, associations),
            request_seconds=10,
            on_refused=lambda _address, _rule: None,
            on_silent=lambda _address, _number: None,
        )
        accepting._accept(listening)  # nothing has connected
        accepting.start()
        accepting.stop()
    assert waited == sorted(waited)
    assert (waited[0], waited[1] < waited[2] < 0.1) == (0, True)
