"""Reads the PDUs of one association, each within the limits of its kind (PS3.8 9.3)."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Iterator
from typing import Any

from pynetdicom.association import Association

from pacs_node.errors import ProtocolError
from pacs_node.network import associate_pdu, tls
from pacs_node.network.bounds import receive_into
from pacs_node.network.dimse import Messages
from pacs_node.network.ends import note_cause, note_end, note_tls_failure
from pacs_node.network.primitives import acceptance
from pacs_node.network.pynetdicom_internals import Ready

LARGEST_DATA = 2**26
"""Bytes of a P-DATA-TF PDU, up to which a peer that goes beyond what was agreed on is borne with."""

_RQ, _AC, _RJ, _P_DATA_TF, _RELEASE_RQ, _RELEASE_RP, _ABORT = range(1, 8)
_LARGEST_OTHER = 4096  # bytes; all that are left have 4
_LARGEST_PIECE = 2**18  # of a fragment that is larger than the buffer
_AWAITING_ANSWER, _DATA_TRANSFER = "Sta5", ("Sta6", "Sta7")  # PS3.8 9.2.1
_ACCEPTED, _CLOSED, _INVALID_PDU = "Evt3", "Evt17", "Evt19"  # PS3.8 9.2.2
_PROVIDER = 2  # source of an A-ABORT, with these reasons (PS3.8 9.3.8)
_UNRECOGNIZED_PDU, _UNEXPECTED_PDU, _INVALID_PARAMETER = 1, 2, 6
_HEADER, _ITEM = struct.Struct(">BxL"), struct.Struct(">LB")
_LAST = 0x02  # bit of the message control header, PS3.8 E.2


class _ConnectionEnded(Exception):
    """The rest of a PDU does not come."""


class Reader:
    """What reads PDUs, and lets what is in them be done."""

    def __init__(self, association: Association, messages: Messages) -> None:
        self._association = association
        self._messages = messages
        self._head = bytearray(_HEADER.size)
        self._view = memoryview(bytearray())

    def read(self) -> bool:
        """Read a PDU; then others that are here, while an object comes; tell whether something came."""
        dul = self._association.dul
        connection: Any = dul.socket and dul.socket.socket
        try:
            header = connection and self._header(connection)
            if not header:
                return False
            while header:
                is_data = self._read_pdu(connection, *header)
                is_alone = dul.event_queue.empty() and dul.to_provider_queue.empty() and not dul._kill_thread
                if not (is_data and is_alone and self._messages.is_storing):
                    return True
                dul._idle_timer.restart()
                header = self._header(connection)
        except ProtocolError as error:
            note_cause(self._association, error)
            dul.event_queue.put(_INVALID_PDU)
        except _ConnectionEnded:
            note_end(self._association, "the peer closed the connection")
            dul.event_queue.put(_CLOSED)
        return True

    def _header(self, connection: socket.socket) -> tuple[int, int] | None:
        """Return kind and length of the PDU that comes; ``None`` where none is here."""
        head = memoryview(self._head)
        try:
            came = connection.recv_into(head, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:  # over TLS, not the whole of a record may have come, or nothing for us in it
            return None
        except OSError as error:
            if isinstance(error, ssl.SSLError):
                note_tls_failure(self._association, tls.failure(error))
            raise _ConnectionEnded from error
        if not came:
            raise _ConnectionEnded
        if came < len(head):
            self._receive(connection, head[came:])
        kind, length = _HEADER.unpack(head)
        return kind, length

    def _read_pdu(self, connection: socket.socket, kind: int, length: int) -> bool:
        """Read a PDU and let it be done; tell whether it held data."""
        state = self._association.dul.state_machine.current_state
        if kind == _P_DATA_TF and state in _DATA_TRANSFER:
            self._read_data(connection, length)
            return True
        if not _RQ <= kind <= _ABORT:
            raise ProtocolError(f"a PDU of an unknown type came, {kind}", _PROVIDER, _UNRECOGNIZED_PDU)
        is_answer = kind in (_AC, _RJ) and state == _AWAITING_ANSWER
        if kind < _RELEASE_RQ and not is_answer:
            raise ProtocolError(f"a PDU of type {kind} came at the wrong time", _PROVIDER, _UNEXPECTED_PDU)
        if length > (associate_pdu.LARGEST if kind == _AC else _LARGEST_OTHER):
            raise ProtocolError(f"a PDU of type {kind} has {length} bytes", _PROVIDER, _INVALID_PARAMETER)
        body = memoryview(bytearray(length))
        self._receive(connection, body)
        self._indicate(kind, bytes(body))
        return False

    def _indicate(self, kind: int, body: bytes) -> None:
        dul: Any = self._association.dul
        if kind == _AC:
            pdu, event = Ready(acceptance(self._association, body)), _ACCEPTED
        else:
            try:
                pdu, event = dul._decode_pdu(bytearray(self._head) + body)
                pdu.to_primitive()  # which the state machine does, and fails for the same reasons
            except Exception as error:  # pynetdicom raises nearly anything for values that it does not expect
                if kind == _ABORT:
                    raise _ConnectionEnded from error
                why = f"a PDU of type {kind} does not parse"
                raise ProtocolError(why, _PROVIDER, _INVALID_PARAMETER) from error
        if kind == _ABORT:
            note_end(self._association, "the peer aborted it")
        dul._recv_pdu.put(pdu)
        dul.event_queue.put(event)

    def _read_data(self, connection: socket.socket, length: int) -> None:
        if length > LARGEST_DATA:
            raise ProtocolError(f"a P-DATA-TF PDU has {length} bytes", _PROVIDER, _INVALID_PARAMETER)
        agreed = max(self._agreed(), _LARGEST_PIECE)
        if length > agreed:
            self._read_in_pieces(connection, length)
            return
        pdu = self._buffer(length)
        self._receive(connection, pdu)
        for context_id, value in list(_fragments(pdu)):
            self._messages.take(context_id, value)

    def _read_in_pieces(self, connection: socket.socket, left: int) -> None:
        """Read a PDU that is larger than its buffer, each fragment as several smaller ones."""
        buffer = self._buffer(_LARGEST_PIECE)
        while left:
            if left < _ITEM.size + 1:
                raise _wrong_length()
            self._receive(connection, buffer[: _ITEM.size + 1])
            length, context_id = _ITEM.unpack_from(buffer)
            control = buffer[_ITEM.size]
            left -= 4 + length
            length -= 2
            if left < 0 or length < 0:
                raise _wrong_length()
            while True:
                piece = buffer[: 1 + min(length, _LARGEST_PIECE - 1)]
                length -= len(piece) - 1
                self._receive(connection, piece[1:])
                piece[0] = control if length == 0 else control & ~_LAST
                self._messages.take(context_id, piece)
                if length == 0:
                    break

    def _agreed(self) -> int:
        here = self._association
        return (here.requestor if here.is_requestor else here.acceptor).maximum_length or 0

    def _buffer(self, length: int) -> memoryview:
        if len(self._view) < length:
            self._view = memoryview(bytearray(length))
        return self._view[:length]

    def _receive(self, connection: socket.socket, view: memoryview) -> None:
        seconds = self._association.network_timeout
        deadline = time.monotonic() + (float("inf") if seconds is None else seconds)
        if receive_into(connection, view, deadline) < len(view):
            raise _ConnectionEnded


def _fragments(pdu: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield presentation context ID and value of each item of a P-DATA-TF PDU, uncopied (PS3.8 9.3.5.1).

    Raises
    ------
    ProtocolError
        When lengths do not add up, or a value has no message control header.
    """
    at = 0
    while at < len(pdu):
        if len(pdu) < at + _ITEM.size:
            raise _wrong_length()
        length, context_id = _ITEM.unpack_from(pdu, at)
        end = at + 4 + length
        if length < 2 or end > len(pdu):
            raise _wrong_length()
        yield context_id, pdu[at + _ITEM.size : end]
        at = end


def _wrong_length() -> ProtocolError:
    return ProtocolError("the items of a P-DATA-TF PDU do not add up", _PROVIDER, _INVALID_PARAMETER)
