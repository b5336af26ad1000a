"""Associations with the receiver: what is offered, who is rejected, and what is left where one ends early."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import (
    MPEG2MPML,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)
from pynetdicom import ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import

from classifier.config import PROJECTION_RADIOGRAPHS
from pacs_node.config import NodeSettings, Settings
from pacs_node.demo.peers import free_port
from pacs_node.errors import PortInUse
from pacs_node.receiving import receiver
from pacs_node.receiving.receiver import READABLE_SYNTAXES, Receiver
from tests.conftest import radiograph, save, uid
from tests.helpers import receiving
from tests.helpers.receiving import (
    PRIVATE_SOP_CLASS,
    Context,
    Listen,
    Node,
    answered,
    assert_refused,
    associated,
    context_of,
    data_set,
    halves,
    paused,
    send,
    send_half,
    wait_until,
)

# Fixtures: pytest finds them by the names that they have here.
listen, node, image = receiving.listen, receiving.node, receiving.image


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


def test_only_listed_addresses_may_call_and_titles_from_theirs(listen: Listen) -> None:
    strict = listen(addresses=["10.0.0.0/8", "127.0.0.2"])
    with associated(strict) as stranger:
        assert rejection(stranger) == (1, 1, 1)  # permanent, no reason given
    strict.stop()
    titles = [
        "HERE@127.0.0.0/8",
        "THERE@10.0.0.0/8",
        "BOTH@10.0.0.0/8",
        "BOTH@127.0.0.1",
        "A@B",
        "ANY@::1",
        "ANY",
    ]
    node = listen(calling_ae_titles=titles, addresses=["127.0.0.0/8"])
    for title in ("HERE", "BOTH", "A@B", "ANY"):
        with associated(node, calling=title) as known:
            assert known.is_established, title
    with receiving.logged() as lines, associated(node, calling="THERE") as elsewhere:
        assert rejection(elsewhere) == (1, 1, 3)
        wait_until(lambda: "has another address ([receive] calling_ae_titles)" in lines())


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
    stop.join(120)
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
    monkeypatch.setattr(receiver, "_DRAIN_SECONDS", 0.3)
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
