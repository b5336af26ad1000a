"""PDUs, commands and data sets as bytes, right ones and wrong ones, for peers that say what they like."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence

VERIFICATION, COMMITMENT = "1.2.840.10008.1.1", "1.2.840.10008.1.20.1"
CR = "1.2.840.10008.5.1.4.1.1.1"
IMPLICIT, EXPLICIT, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
APPLICATION = b"1.2.840.10008.3.1.1.1"
RELEASE = struct.pack(">BxLL", 5, 4, 0)
ABORT = struct.pack(">BxLL", 7, 4, 0)

Context = tuple[int, str, Sequence[str]]
CONTEXTS: tuple[Context, ...] = (
    (1, CR, [IMPLICIT]),
    (3, VERIFICATION, [IMPLICIT]),
    (5, CR, [EXPLICIT]),
    (7, COMMITMENT, [IMPLICIT]),
)


def item(kind: int, content: bytes, length: int | None = None) -> bytes:
    """Return an item of an A-ASSOCIATE PDU."""
    return struct.pack(">BxH", kind, len(content) if length is None else length) + content


def pdu(kind: int, content: bytes, length: int | None = None) -> bytes:
    """Return a PDU."""
    return struct.pack(">BxL", kind, len(content) if length is None else length) + content


def proposed(context_id: int, abstract: bytes, syntaxes: Iterable[bytes]) -> bytes:
    """Return the item of a presentation context."""
    inside = item(0x30, abstract) + b"".join(item(0x40, syntax) for syntax in syntaxes)
    return item(0x20, bytes([context_id, 0, 0, 0]) + inside)


def user_items(largest: int = 16_384, more: bytes = b"") -> bytes:
    """Return the user information that every request has, and more."""
    return item(0x51, struct.pack(">L", largest)) + item(0x52, b"1.2.3.4") + more


def request(
    contexts: bytes | None = None,
    *,
    called: bytes = b"PACS_NODE",
    calling: bytes = b"WIRE",
    application: bytes | None = APPLICATION,
    version: int = 1,
    user: bytes | None = None,
    more: bytes = b"",
) -> bytes:
    """Return an A-ASSOCIATE-RQ PDU; by default, a proper one."""
    if contexts is None:
        contexts = b"".join(proposed(n, a.encode(), [s.encode() for s in ss]) for n, a, ss in CONTEXTS)
    body = struct.pack(">HH", version, 0) + called.ljust(16)[:16] + calling.ljust(16)[:16] + bytes(32)
    body += b"" if application is None else item(0x10, application)
    return pdu(1, body + contexts + item(0x50, user_items() if user is None else user) + more)


def value(context_id: int, control: int, content: bytes, length: int | None = None) -> bytes:
    """Return a presentation data value item."""
    return struct.pack(">LBB", len(content) + 2 if length is None else length, context_id, control) + content


def data(*values: bytes) -> bytes:
    """Return a P-DATA-TF PDU."""
    return pdu(4, b"".join(values))


def uid(text: str) -> bytes:
    return text.encode() + b"\0" * (len(text) % 2)


def number(value: int) -> bytes:
    return struct.pack("<H", value)


def command(**elements: bytes) -> bytes:
    """Return a command set; elements are named e0100 and so on."""
    pairs = sorted((int(name[1:], 16), content) for name, content in elements.items())
    content = b"".join(struct.pack("<HHL", 0, element, len(v)) + v for element, v in pairs)
    return struct.pack("<HHLL", 0, 0, 4, len(content)) + content


def store_command(instance: str = "1.2.3.4.5", sop_class: str = CR, message_id: int = 1) -> bytes:
    """Return a C-STORE request."""
    return command(
        e0002=uid(sop_class), e0100=number(1), e0110=number(message_id), e0700=number(0), e0800=number(1),
        e1000=uid(instance),
    )  # fmt: skip


def echo_command(message_id: int = 1) -> bytes:
    """Return a C-ECHO request."""
    return command(e0002=uid(VERIFICATION), e0100=number(0x30), e0110=number(message_id), e0800=number(0x101))


def action_command() -> bytes:
    """Return an N-ACTION request for storage commitment."""
    return command(
        e0003=uid(COMMITMENT), e0100=number(0x130), e0110=number(1), e0800=number(1),
        e1001=uid("1.2.840.10008.1.20.1.1"), e1008=number(1),
    )  # fmt: skip


def implicit(tag: int, content: bytes, length: int | None = None) -> bytes:
    """Return an element in Implicit VR Little Endian."""
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(content) if length is None else length) + content


def references(count: int) -> bytes:
    """Return the data set of a request to commit to so many objects."""
    items = b"".join(
        implicit(0xFFFEE000, implicit(0x00081150, uid(CR)) + implicit(0x00081155, uid(f"1.2.3.{n}")))
        for n in range(count)
    )
    return implicit(0x00081195, uid("1.2.3.4.5")) + implicit(0x00081199, items)


def radiograph(instance: str = "1.2.3.4.5", sop_class: str = CR, more: bytes = b"") -> bytes:
    """Return a small data set in Implicit VR Little Endian."""
    identity = implicit(0x00080016, uid(sop_class)) + implicit(0x00080018, uid(instance))
    identity += implicit(0x00080060, b"CR") + implicit(0x00100010, b"WIRE^PATIENT")
    identity += implicit(0x0020000D, uid("1.2.3.9")) + implicit(0x0020000E, uid("1.2.3.10"))
    return identity + more + implicit(0x7FE00010, b"\0\1" * 500)


def connect(port: int, source: str = "", timeout: float = 10) -> socket.socket:
    """Connect to this machine, from one of its addresses."""
    address = (source, 0) if source else None
    return socket.create_connection(("127.0.0.1", port), timeout=timeout, source_address=address)


def read_pdu(connection: socket.socket) -> tuple[int, bytes]:
    """Return type and content of the PDU that comes next; type 0 where the connection ends."""
    header = _exactly(connection, 6)
    if len(header) < 6:
        return 0, b""
    return header[0], _exactly(connection, int.from_bytes(header[2:], "big"))


def _exactly(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        piece = connection.recv(size - len(content))
        if not piece:
            break
        content += piece
    return content


def associated(port: int, source: str = "", asked: bytes | None = None, timeout: float = 10) -> socket.socket:
    """Return a connection with an association over it."""
    connection = connect(port, source, timeout)
    connection.sendall(asked or request())
    kind, _ = read_pdu(connection)
    if kind != 2:
        connection.close()
        raise AssertionError(f"answered with a PDU of type {kind}")
    return connection


def status_of(response: tuple[int, bytes]) -> int:
    """Return the status in a P-DATA-TF PDU that holds a response."""
    kind, content = response
    assert kind == 4, f"PDU of type {kind}"
    at = content.index(struct.pack("<HHL", 0, 0x0900, 2)) + 8
    return int(struct.unpack_from("<H", content, at)[0])


def store(connection: socket.socket, instance: str = "1.2.3.4.5") -> int:
    """Store an object; return the status."""
    connection.sendall(data(value(1, 3, store_command(instance))) + data(value(1, 2, radiograph(instance))))
    return status_of(read_pdu(connection))


def release(connection: socket.socket) -> None:
    """Release, and close."""
    connection.sendall(RELEASE)
    read_pdu(connection)
    connection.close()


def reset(connection: socket.socket) -> None:
    """Close without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
