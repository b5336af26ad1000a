"""Messages from their fragments: what is bounded, what was negotiated, and what is left behind."""

from __future__ import annotations

import gc
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association

from db.session import Database
from pacs_node.config import NodeSettings, ReceiveSettings, Settings
from pacs_node.demo.peers import free_port
from pacs_node.network.association import application_entity, associate
from pacs_node.receiving.receiver import Receiver
from pacs_node.storage.spool import Spool
from tests.fuzz.peers import Target, talk_to
from tests.helpers import receiving, wire
from tests.helpers.receiving import Listen, Node, logged, wait_until

# Fixtures: pytest finds them by the names that they have here.
listen, node = receiving.listen, receiving.node

STUDY_GET = "1.2.840.10008.5.1.4.1.2.2.3"


# Bounds


def test_a_command_without_end_is_aborted_soon(node: Node) -> None:
    with logged() as lines, wire.associated(node.port) as connection:
        sent = 0
        with suppress(OSError):  # it is closed at some time
            while sent < 200_000_000:
                connection.sendall(wire.data(wire.value(1, 1, bytes(60_000))))
                sent += 60_000
        assert sent < 100_000_000
        wait_until(lambda: "65536 bytes" in lines())


def test_an_abort_of_the_user_says_so(node: Node) -> None:
    with wire.associated(node.port) as connection:
        connection.sendall(wire.data(wire.value(1, 1, bytes(40_000))) * 2)
        assert wire.read_pdu(connection) == (7, b"\0\0\0\0")


def commit(node: Node, content: bytes, syntax: str = wire.IMPLICIT) -> int:
    asked = wire.request(wire.proposed(7, wire.COMMITMENT.encode(), [syntax.encode()]))
    with wire.associated(node.port, asked=asked, timeout=60) as connection:
        connection.sendall(wire.data(wire.value(7, 3, wire.action_command())))
        step = 200_000
        for at in range(0, len(content), step):
            last = 2 if at + step >= len(content) else 0
            connection.sendall(wire.data(wire.value(7, last, content[at : at + step])))
        return wire.status_of(wire.read_pdu(connection))


def test_20_000_references_are_answered(node: Node) -> None:
    assert commit(node, wire.references(20_000)) == 0x0000


@pytest.mark.parametrize(
    ("content", "syntax", "status"),
    [
        (wire.implicit(0x00081195, b"1.2 ") * 3_000_000, wire.IMPLICIT, 0x0213),
        (bytes(4_000_000), wire.IMPLICIT, 0x0115),
        (zlib.compress(bytes(100_000_000), 9)[2:-4], wire.DEFLATED, 0x0213),
    ],
    ids=["36 MB", "4 MB of zeros", "deflated"],
)
def test_a_data_set_that_is_too_large_is_refused_with_a_status(
    content: bytes, syntax: str, status: int, node: Node
) -> None:
    assert commit(node, content, syntax) == status


# What is stored is what was negotiated


@pytest.mark.parametrize(
    ("context_id", "sop_class", "status"),
    [
        (1, "1.2.840.10008.5.1.4.1.1.2", 0x0122),  # CT on a context of CR
        (3, wire.CR, 0x0122),  # on that of Verification
        (3, wire.VERIFICATION, 0x0211),
        (7, wire.COMMITMENT, 0x0211),
    ],
)
def test_an_object_of_another_class_than_its_context_is_refused(
    context_id: int, sop_class: str, status: int, node: Node
) -> None:
    with wire.associated(node.port) as connection:
        command, content = wire.store_command(sop_class=sop_class), wire.radiograph(sop_class=sop_class)
        connection.sendall(wire.data(wire.value(context_id, 3, command), wire.value(context_id, 2, content)))
        assert wire.status_of(wire.read_pdu(connection)) == status
        assert wire.store(connection, "1.2.3.6") == 0x0000  # the association goes on
    assert [one.sop_instance_uid for one in node.instances()] == ["1.2.3.6"]


def test_a_context_that_was_not_accepted_ends_the_association(node: Node) -> None:
    with wire.associated(node.port) as connection:
        connection.sendall(wire.data(wire.value(99, 3, wire.store_command())))
        assert wire.read_pdu(connection)[0] == 7


# What is left behind

COMMAND, DATA = wire.store_command(), wire.radiograph()
HALF = wire.data(wire.value(1, 3, COMMAND)) + wire.data(wire.value(1, 0, DATA[:50]))
IN_TWO = wire.data(wire.value(1, 1, COMMAND[:20])) + wire.data(wire.value(1, 3, COMMAND[20:]))
ENDS: dict[str, bytes] = {
    "half": HALF,
    "half, released": HALF + wire.RELEASE,
    "half, aborted": HALF + wire.ABORT,
    "half, nonsense": HALF + wire.pdu(0x55, b"abcd"),
    "half, a second command": HALF + wire.data(wire.value(1, 3, COMMAND)),
    "a command in two": IN_TWO + wire.data(wire.value(1, 0, DATA[:50])) + wire.RELEASE,
    "another context": HALF + wire.data(wire.value(5, 2, DATA[50:])),
    "no Message ID": wire.data(
        wire.value(1, 3, wire.command(e0002=wire.uid(wire.CR), e0100=wire.number(1), e0800=wire.number(1)))
    )
    + wire.data(wire.value(1, 0, DATA)),
}


@pytest.mark.parametrize("end", [wire.reset, lambda c: c.close()], ids=["reset", "closed"])
@pytest.mark.parametrize("sent", ENDS)
def test_nothing_is_left_however_an_association_ends(
    sent: str, end: Callable[[Any], None], node: Node
) -> None:
    connection = wire.associated(node.port)
    connection.sendall(ENDS[sent])
    wait_until(lambda: True)
    end(connection)
    wait_until(lambda: node.receiver._server._places.taken == 0)
    node.assert_holds_nothing()


def test_peers_that_talk_nonsense_do_no_harm(node: Node) -> None:
    with logged() as lines:
        findings = talk_to(Target(node.port, node.spool.incoming, lines), 300, 7)
    assert findings == []


def test_associations_that_were_aborted_are_forgotten(node: Node) -> None:
    def open_ones() -> int:
        gc.collect()
        return sum(isinstance(one, Association) for one in gc.get_objects())

    before = open_ones()
    for _ in range(5):
        with wire.associated(node.port) as connection:
            connection.sendall(wire.data(wire.value(99, 3, wire.store_command())))
            assert wire.read_pdu(connection)[0] == 7
    wait_until(lambda: open_ones() <= before)


# Two receivers in one process


def receiver_in(folder: Path) -> tuple[Receiver, Database, Spool]:
    folder.mkdir()
    database = Database(f"sqlite:///{folder}/results.sqlite")
    database.upgrade()
    spool = Spool(folder / "spool")
    spool.prepare()
    settings = Settings(
        node=NodeSettings(host="127.0.0.1", port=free_port()), receive=ReceiveSettings(min_free_mebibytes=0)
    )
    return Receiver(settings, database, spool), database, spool


def test_each_of_two_receivers_keeps_what_comes_to_it(tmp_path: Path) -> None:
    """By C-STORE, also with a command in fragments, and by C-GET over associations of their own."""
    both = [receiver_in(tmp_path / name) for name in ("one", "two")]
    ports = [receiver.start() for receiver, _, _ in both]
    for number, port in enumerate(ports):
        with wire.associated(port) as connection:
            instance = f"1.2.3.{number}"
            command = wire.store_command(instance)
            for control, part in ((1, command[:30]), (3, command[30:]), (2, wire.radiograph(instance))):
                connection.sendall(wire.data(wire.value(1, control, part)))
            assert wire.status_of(wire.read_pdu(connection)) == 0x0000
    for number, (receiver, _, _) in enumerate(both):
        got_by(receiver, f"1.2.4.{number}", tmp_path)
    for number, (receiver, database, spool) in enumerate(both):
        receiver.stop()
        kept = {path.stem for path in (spool.root / "objects").rglob("*.dcm")}
        texts = b"".join(spool.path(digest).read_bytes() for digest in kept)
        assert len(kept) == 2
        assert f"1.2.3.{number}".encode() in texts
        assert f"1.2.4.{number}".encode() in texts
        assert not [path for path in spool.incoming.rglob("*") if path.is_file()]
        database.close()


def got_by(receiver: Receiver, instance: str, folder: Path) -> None:
    """Let a PACS send an object to an association of this receiver that asks by C-GET."""
    from pydicom import dcmread
    from pydicom.dataset import Dataset

    from pacs_node.dicom.part10 import file_meta

    path = folder / f"{instance}.dcm"
    path.write_bytes(file_meta(wire.CR, instance, wire.IMPLICIT) + wire.radiograph(instance))

    def on_get(_event: evt.Event) -> Any:
        yield 1
        yield 0xFF00, dcmread(path)

    pacs = AE("PACS")
    pacs.add_supported_context(STUDY_GET)
    pacs.add_supported_context(wire.CR, wire.IMPLICIT, scu_role=True, scp_role=True)
    server: Any = pacs.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_GET, on_get)])
    ae = application_entity("PACS_NODE")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    ae.add_requested_context(STUDY_GET)
    ae.add_requested_context(wire.CR, wire.IMPLICIT)
    role = build_role(wire.CR, scp_role=True)
    association = associate(
        ae, "127.0.0.1", server.socket.getsockname()[1], "PACS", roles=[role],
        services=receiver.storage_services(),
    )  # fmt: skip
    keys = Dataset()
    keys.QueryRetrieveLevel, keys.StudyInstanceUID = "STUDY", "1.2.3.9"
    statuses = [status.Status for status, _ in association.send_c_get(keys, STUDY_GET)]
    association.release()
    server.shutdown()
    assert statuses[-1] == 0x0000


def test_a_receiver_changes_nothing_of_pynetdicom_that_another_one_uses(listen: Listen) -> None:
    from pynetdicom import _config, dimse_messages

    before = _config.STORE_RECV_CHUNKED_DATASET, dimse_messages.NamedTemporaryFile  # type: ignore[attr-defined]
    listen().receiver.storage_services()
    assert (_config.STORE_RECV_CHUNKED_DATASET, dimse_messages.NamedTemporaryFile) == before  # type: ignore[attr-defined]
