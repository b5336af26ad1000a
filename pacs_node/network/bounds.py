"""Limits of time and size for what a peer sends: no connection waits for ever, no PDU fills memory."""

from __future__ import annotations

import math
import socket
import struct
import time
from contextlib import suppress
from functools import partial
from typing import Any

from pynetdicom import evt

LARGEST_PDU = 2**26


"""Bytes of a PDU, up to which a peer that goes beyond what was agreed on is borne with."""


def receive_into(connection: socket.socket, view: memoryview, deadline: float) -> int:
    """Fill a view from a connection; return how many bytes came before it ended.

    Parameters
    ----------
    deadline
        In monotonic seconds: then the connection is ended. For silence it has a limit of its own.
    """
    came = 0
    while came < len(view):
        try:
            number = connection.recv_into(view[came:], 0, socket.MSG_WAITALL)
        except (TimeoutError, BlockingIOError):
            number = 0
        came += number
        if not number or (came < len(view) and time.monotonic() > deadline):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            break
    return came


def limit_silence(connection: socket.socket, seconds: float) -> None:
    """Let the system end what waits for longer; Python would ask it before each call how things are."""
    connection.settimeout(None)
    limit = struct.pack("ll", math.ceil(seconds), 0)  # struct timeval
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, limit)


_PIECE = 2**16  # bytes


def bounded() -> Any:
    """Return the handler with which no association waits for the rest of a PDU beyond its network timeout.

    pynetdicom reads a PDU that began to come for as long as that takes, and could not even abort meanwhile: a
    peer that fell silent then, or sends a byte now and then, would keep the association for ever.
    """
    return evt.EVT_CONN_OPEN, _bound


def _bound(event: evt.Event) -> None:
    connection: Any = event.assoc.dul.socket
    # Else the second part of a message waits for the peer to acknowledge the first one
    connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    seconds = event.assoc.network_timeout
    if seconds is not None:
        limit_silence(connection.socket, seconds)
        connection.recv = partial(_receive, connection.socket, seconds)


def _receive(connection: socket.socket, seconds: float, number: int) -> bytearray:
    """Read so many bytes; fewer where the connection ended, or was ended: for the time, or for too many."""
    content = bytearray()
    if number > LARGEST_PDU:
        connection.shutdown(socket.SHUT_RDWR)
        return content
    deadline = time.monotonic() + seconds
    while len(content) < number:  # piece by piece: the length may be one that never comes
        piece = memoryview(bytearray(min(number - len(content), _PIECE)))
        came = receive_into(connection, piece, deadline)
        content += piece[:came]
        if came < len(piece):
            break
    return content
