"""Connections before their association: what they cost others, and which requests are understood."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import ExitStack

import pytest

from tests.helpers import receiving, wire
from tests.helpers.receiving import Listen, Node, logged, wait_until

# Fixtures: pytest finds them by the names that they have here.
listen, node = receiving.listen, receiving.node


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def trickle(connection: socket.socket, stop: threading.Event) -> None:
    for byte in wire.request():
        if stop.wait(0.05):
            return
        try:
            connection.send(bytes([byte]))
        except OSError:
            return


@pytest.mark.parametrize("spread", [False, True], ids=["one address", "many addresses"])
@pytest.mark.parametrize("kind", ["closed", "silent", "slow"])
def test_a_sender_is_served_beside_200_connections_that_ask_for_nothing(
    kind: str, spread: bool, listen: Listen
) -> None:
    node, stop = listen(max_associations=4), threading.Event()
    with ExitStack() as stack:
        for number in range(200):
            connection = wire.connect(node.port, f"127.0.0.{2 + number % 200 if spread else 1}")
            stack.callback(connection.close)
            if kind == "closed":
                connection.close()
            elif kind == "slow":
                threading.Thread(target=trickle, args=(connection, stop), daemon=True).start()
        stack.callback(stop.set)
        with wire.associated(node.port) as honest:
            assert wire.store(honest) == 0x0000
    assert [one.sop_instance_uid for one in node.instances()] == ["1.2.3.4.5"]


def test_a_connection_that_asks_for_nothing_is_closed_and_said(listen: Listen) -> None:
    with logged() as lines:
        node = listen(request_seconds=0.3)
        with wire.connect(node.port) as silent, wire.connect(node.port) as slow:
            slow.sendall(wire.request()[:40])
            assert is_closed(silent)
            assert is_closed(slow)
        wait_until(lambda: "connections closed" in lines())
    assert "[receive] request_seconds" in lines()


def test_checks_of_the_port_are_no_events(node: Node) -> None:
    with logged() as lines:
        for _ in range(50):
            wire.connect(node.port).close()
        with wire.associated(node.port) as connection:
            wire.release(connection)
        wait_until(lambda: "association accepted" in lines())
    assert lines().count("\n") == 1


def test_one_address_leaves_places_to_others(listen: Listen) -> None:
    node = listen(max_associations=4, address_share=0.5)
    with ExitStack() as stack, logged() as lines:
        for _ in range(2):
            stack.enter_context(wire.associated(node.port, "127.0.0.2"))
        with wire.connect(node.port, "127.0.0.2") as one_more:
            one_more.sendall(wire.request())
            assert wire.read_pdu(one_more) == (3, b"\0\x02\x03\x02")  # transient, local limit exceeded
        with wire.associated(node.port, "127.0.0.3") as other:
            assert wire.store(other) == 0x0000
    assert "[receive] address_share" in lines()


CONTEXT = wire.proposed(3, wire.VERIFICATION.encode(), [wire.IMPLICIT.encode()])
ACCEPTED = {
    "NUL behind the called AE title": wire.request(called=b"PACS_NODE" + bytes(7)),
    "NUL behind the calling AE title": wire.request(calling=b"CR1" + bytes(13)),
    "blank AE titles": wire.request(called=b"", calling=b""),
    "AE title beyond ASCII": wire.request(calling="Röntgen".encode("latin-1")),
    "AE title with control characters": wire.request(calling=b"A\x1b[31m\n\\B"),
    "padded UIDs": wire.request(
        wire.proposed(3, wire.VERIFICATION.encode() + b"\0", [wire.IMPLICIT.encode() + b" "]),
        application=wire.APPLICATION + b"\0",
    ),
    "a context twice": wire.request(CONTEXT + CONTEXT),
    "unknown items": wire.request(more=wire.item(0x99, b"abc") + wire.item(0x98, b"")),
    "empty user items": wire.request(
        user=b"".join(wire.item(kind, b"") for kind in (0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x99))
    ),
    "no user information": wire.request(user=b""),
    "an odd version name": wire.request(
        user=wire.user_items(more=wire.item(0x55, b"\xe4\0lower case name x 40"))
    ),
    "a tiny maximum length": wire.request(user=wire.user_items(1)),
    "no maximum length": wire.request(user=wire.user_items(0)),
    "a later protocol version": wire.request(version=3),
    "a UID that is none": wire.request(CONTEXT + wire.proposed(5, b"abc\n", [b"x"])),
}


@pytest.mark.parametrize("oddity", ACCEPTED)
def test_harmless_oddities_are_accepted(oddity: str, node: Node) -> None:
    with wire.associated(node.port, asked=ACCEPTED[oddity]) as connection:
        connection.sendall(wire.data(wire.value(3, 3, wire.echo_command())))
        assert wire.status_of(wire.read_pdu(connection)) == 0x0000
        wire.release(connection)


TURNED_AWAY = {
    "an even context ID": (wire.request(CONTEXT[:4] + b"\2" + CONTEXT[5:]), (7, b"\0\0\2\6"), "odd number"),
    "context ID 0": (wire.request(CONTEXT[:4] + b"\0" + CONTEXT[5:]), (7, b"\0\0\2\6"), "odd number"),
    "no context": (wire.request(b""), (3, b"\0\1\1\1"), "no presentation context"),
    "another application": (wire.request(application=b"1.2.3"), (3, b"\0\1\1\2"), "Application Context"),
    "no application": (wire.request(application=None), (3, b"\0\1\1\2"), "Application Context"),
    "another protocol": (wire.request(version=2), (3, b"\0\1\2\2"), "protocol version 2"),
    "an item beyond its end": (wire.request(more=b"\x20\0\xff\xff"), (7, b"\0\0\2\6"), "longer than"),
    "half an item": (wire.request(more=b"\x20\0"), (7, b"\0\0\2\6"), "left over"),
    "too short": (wire.pdu(1, b"\0\1\0\0"), (7, b"\0\0\2\6"), "too short"),
    "4 GiB": (wire.pdu(1, b"", 2**32 - 1), (7, b"\0\0\2\6"), "4294967295 bytes"),
    "65,000 items": (wire.request(more=wire.item(0x99, b"") * 65_000), (7, b"\0\0\2\6"), "1024 items"),
    "2,000 syntaxes": (
        wire.request(wire.proposed(1, b"1.2", [b"1.2.%d" % n for n in range(2000)])),
        (7, b"\0\0\2\6"),
        "items",
    ),
    "200 contexts": (
        wire.request(b"".join(wire.proposed(n % 256 | 1, b"1.2", [b"1"]) for n in range(1100))),
        (7, b"\0\0\2\6"),
        "items",
    ),
    "HTTP": (b"GET / HTTP/1.1\r\n\r\n", (7, b"\0\0\2\1"), "does not speak DICOM"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", (7, b"\0\0\2\1"), "TLS"),
    "a release first": (wire.RELEASE, (7, b"\0\0\2\2"), "did not ask for an association"),
    "data first": (wire.data(), (7, b"\0\0\2\2"), "did not ask for an association"),
}


@pytest.mark.parametrize("oddity", TURNED_AWAY)
def test_what_is_not_accepted_is_answered_at_once_and_has_a_line_that_says_why(
    oddity: str, node: Node
) -> None:
    asked, answer, why = TURNED_AWAY[oddity]
    with logged() as lines, wire.connect(node.port) as connection:
        connection.sendall(asked)
        kind, content = wire.read_pdu(connection)
        assert (kind, content) == answer
        wait_until(lambda: "association rejected" in lines())
    assert why in lines()


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"calling_ae_titles": ["CR1"]}, "[receive] calling_ae_titles"),
        ({"addresses": ["10.0.0.0/8"]}, "[receive] addresses"),
        ({"require_called_ae_title": True}, "[receive] require_called_ae_title"),
        ({"max_associations": 1}, "[receive] max_associations"),
    ],
)
def test_a_rejection_names_its_rule_and_the_key(section: dict[str, object], key: str, listen: Listen) -> None:
    node = listen(**section)
    with logged() as lines, ExitStack() as stack:
        if "max_associations" in section:
            stack.enter_context(wire.associated(node.port))
        connection = stack.enter_context(wire.connect(node.port))
        connection.sendall(wire.request(called=b"OTHER", calling=b"CR2"))
        assert wire.read_pdu(connection)[0] == 3
        wait_until(lambda: "association rejected" in lines())
    assert key in lines()
    assert "calling_ae=CR2" in lines()


def test_places_are_given_back_however_associations_end(listen: Listen) -> None:
    node = listen(max_associations=2)
    for number in range(12):
        connection = wire.associated(node.port)
        if number % 3 == 0:
            connection.sendall(wire.ABORT)
            connection.close()
        elif number % 3 == 1:
            wire.reset(connection)
        else:
            connection.sendall(struct.pack(">BxL", 99, 4) + b"abcd")
            connection.close()
        wait_until(lambda: node.receiver._server._places.taken == 0)
    with wire.associated(node.port) as last:
        assert wire.store(last) == 0x0000
