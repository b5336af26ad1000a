"""Limits of time for what a peer sends: no connection waits for ever."""

from __future__ import annotations

import math
import socket
import ssl
import struct
import time
from contextlib import suppress
from typing import Any

from pynetdicom import evt


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
        except OSError:  # silence too long, or a connection that broke
            number = 0
        came += number
        if not number or (came < len(view) and time.monotonic() > deadline):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            break
    return came


def limit_silence(connection: socket.socket, seconds: float) -> None:
    """Let the system end what waits for longer; Python would ask it before each call how things are."""
    if isinstance(connection, ssl.SSLSocket):  # which would wait on
        connection.settimeout(seconds)
        return
    connection.settimeout(None)
    limit = struct.pack("ll", math.ceil(seconds), 0)  # struct timeval
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, limit)


def bounded() -> Any:
    """Return the handler with which no association waits for the rest of a PDU beyond its network timeout.

    A peer that fell silent amid a PDU, or sends a byte now and then, would keep the association for ever.
    """
    return evt.EVT_CONN_OPEN, _bound


def _bound(event: evt.Event) -> None:
    connection: Any = event.assoc.dul.socket
    # Else the second part of a message waits for the peer to acknowledge the first one
    connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if event.assoc.network_timeout is not None:
        limit_silence(connection.socket, event.assoc.network_timeout)
