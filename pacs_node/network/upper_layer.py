"""pynetdicom's upper layer (PS3.8) without its pauses and, where objects come, without its copies.

Its two threads per association look for news once a millisecond, which delays each PDU and wears the
processor out while nothing comes: here they wait for news. It copies what comes half a dozen times, in pieces
that the system has to find memory for each time: here P-DATA-TF PDUs are read into one buffer, and their
fragments written from it. All else is left to it, and so is a PDU larger than was agreed on, up to a limit.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from queue import Queue
from typing import Any, Protocol

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import P_DATA

from pacs_node.errors import OutOfOrder
from pacs_node.network.bounds import LARGEST_PDU, receive_into

_PART_SECONDS = 0.005  # between looks for the rest of a header
_PAUSE_SECONDS = 0.001  # between looks whether a thread without a connection may end
_POLL_SECONDS = 0.1  # for what comes without a call: timers, the end of a thread
_DATA_TRANSFER, _CLOSING = "Sta6", "Sta13"  # PS3.8 9.2.1
_CLOSED, _INVALID_PDU = "Evt17", "Evt19"  # PS3.8 9.2.2
_P_DATA_TF = 0x04  # PS3.8 9.3.5
_HEADER, _ITEM = struct.Struct(">BxL"), struct.Struct(">LB")


class StoreRequests(Protocol):
    """What takes the C-STORE requests of one association; `receiving.c_store.Storing` does."""

    @property
    def is_coming(self) -> bool:
        """Whether a data set has begun and not ended."""
        ...

    def take(self, context_id: int, value: memoryview) -> bool:
        """Take a presentation data value that belongs to a C-STORE request; tell whether it does."""
        ...

    def discard(self) -> None:
        """Remove what came of a data set that will not come to its end."""
        ...


def wait_for_news(association: Association) -> Callable[[], None]:
    """Let an association over which nothing came yet wait for news, and not look for it.

    Returns
    -------
    callable
        What frees the means for that, once the connection is closed.
    """
    bell = _Bell()
    # What the peer sent, for the thread of the association
    news, dul = threading.Event(), association.dul
    dimse: Any = association.dimse
    dimse.msg_queue, dul.to_user_queue = _Heard(news.set), _Heard(news.set)
    association._reactor_checkpoint = checkpoint = _Checkpoint(news.set)
    dimse.get_msg = partial(_message, news, checkpoint, dimse, dimse.get_msg)
    # What is to be sent, and what comes, for the thread of the upper layer
    dul.to_provider_queue = _Heard(bell.ring)
    dul._run_loop_delay = 0
    upper_layer: Any = dul
    upper_layer._is_transport_event = partial(_transport_event, dul, bell, dul._is_transport_event)
    return bell.close


def tune_acceptor(association: Association, storing: StoreRequests) -> None:
    """Do the same for an acceptor that has not started yet, and let it copy nothing that it need not.

    Parameters
    ----------
    storing
        What takes the C-STORE requests.
    """
    dul: Any = association.dul
    dul.run = partial(_run, dul.run, storing, wait_for_news(association))
    dul._read_pdu_data = _Reader(association, storing, dul._read_pdu_data).read


def tuned_requestor() -> Any:
    """Return the handler that does it for an association that is requested."""
    return evt.EVT_CONN_OPEN, _tune_requestor


def _tune_requestor(event: evt.Event) -> None:
    free = wait_for_news(event.assoc)
    event.assoc.bind(evt.EVT_CONN_CLOSE, lambda _event: free())


class _Reader:
    """Reads PDUs: those with data itself, others as pynetdicom does.

    Parameters
    ----------
    storing
        What takes the C-STORE requests.
    others
        What reads a PDU of any kind.
    """

    def __init__(self, association: Association, storing: StoreRequests, others: Callable[[], None]) -> None:
        self._association = association
        self._storing = storing
        self._others = others
        self._view = memoryview(bytearray())

    def read(self) -> None:
        """Read a PDU, and let what is in it be done; then others that are here, while an object comes."""
        dul = self._association.dul
        connection: Any = dul.socket and dul.socket.socket
        if connection is None or dul.state_machine.current_state != _DATA_TRANSFER:
            self._others()
            return
        length = self._length(connection)
        if length is None:
            self._others()
        while length is not None:
            is_read = self._read_data(connection, length)
            is_alone = dul.event_queue.empty() and dul.to_provider_queue.empty() and not dul._kill_thread
            if not (is_read and is_alone and self._storing.is_coming):
                return
            dul._idle_timer.restart()
            length = self._length(connection, may_wait=False)

    def _length(self, connection: socket.socket, *, may_wait: bool = True) -> int | None:
        """Return the length of the PDU that comes; ``None`` where it is not for this reader, or not here."""
        deadline = self._deadline()
        flags = socket.MSG_PEEK | (0 if may_wait else socket.MSG_DONTWAIT)
        while True:
            try:
                header = connection.recv(_HEADER.size, flags)
            except OSError:
                return None
            if not header or header[0] != _P_DATA_TF or (len(header) < _HEADER.size and not may_wait):
                return None
            if len(header) == _HEADER.size:
                break
            if time.monotonic() > deadline:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                return None
            time.sleep(_PART_SECONDS)
        length = _HEADER.size + int(_HEADER.unpack(header)[1])
        # What goes on with an object is read here, even far beyond the agreed size: others lack its beginning
        most = self._association.acceptor.maximum_length or 0
        return length if self._storing.is_coming or length <= _HEADER.size + most else None

    def _read_data(self, connection: socket.socket, length: int) -> bool:
        """Read a P-DATA-TF PDU and let it be done; tell whether that went well."""
        dul = self._association.dul
        if length - _HEADER.size > LARGEST_PDU:
            dul.event_queue.put(_INVALID_PDU)
            return False
        pdu = self._buffer(length)
        if receive_into(connection, pdu, self._deadline()) < length:
            dul.event_queue.put(_CLOSED)
            return False
        try:
            others = [one for one in list(_fragments(pdu)) if not self._storing.take(*one)]
        except (ValueError, OutOfOrder):
            dul.event_queue.put(_INVALID_PDU)
            return False
        if others:
            indication = P_DATA()
            indication.presentation_data_value_list = []
            indication.presentation_data_value_list.extend(others)  # type: ignore[arg-type]
            # Action DT-2 (PS3.8 9.2.2), after which the state is the same
            self._association.dimse.receive_primitive(indication)
        return True

    def _buffer(self, length: int) -> memoryview:
        if len(self._view) < length:
            self._view = memoryview(bytearray(length))
        return self._view[:length]

    def _deadline(self) -> float:
        seconds = self._association.network_timeout
        return time.monotonic() + (float("inf") if seconds is None else seconds)


def _fragments(pdu: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield presentation context ID and value of each item of a P-DATA-TF PDU, uncopied (PS3.8 9.3.5.1).

    Raises
    ------
    ValueError
        When lengths do not add up, or a value has no message control header.
    """
    at = _HEADER.size
    while at < len(pdu):
        if len(pdu) < at + _ITEM.size:
            raise ValueError("The PDU ends in the header of an item")
        length, context_id = _ITEM.unpack_from(pdu, at)
        end = at + 4 + length
        if length < 2 or end > len(pdu):
            raise ValueError("The length of an item is not possible")
        yield context_id, pdu[at + _ITEM.size : end]
        at = end


class _Heard(Queue[Any]):
    """A queue that says so when something is put into it."""

    def __init__(self, tell: Callable[[], object]) -> None:
        super().__init__()
        self._tell = tell

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put, and say so."""
        super().put(item, block, timeout)
        self._tell()


class _Checkpoint(threading.Event):
    """Where the thread of an association stops for one that sends; it is told so, wherever it waits.

    It may have passed before, without pynetdicom noticing. So it also asks, under `lock`, before it takes a
    message: that may be the answer which the other one waits for.
    """

    def __init__(self, tell: Callable[[], object]) -> None:
        super().__init__()
        self.set()  # as at the beginning of an association
        self.lock = threading.Lock()
        self._tell = tell

    def clear(self) -> None:
        """Let the thread stop, and tell it."""
        with self.lock:
            super().clear()
        self._tell()


class _Bell:
    """Wakes a thread that waits for a connection as well."""

    def __init__(self) -> None:
        self._rung, self.heard = socket.socketpair()
        self._rung.setblocking(False)
        self.heard.setblocking(False)
        self._lock = threading.Lock()

    def ring(self) -> None:
        """Let `heard` have something to read."""
        # Full, it is rung already; closed, nobody hears it. The lock: its descriptor may soon be another's.
        with self._lock, suppress(OSError):
            self._rung.send(b"\0")

    def drain(self) -> None:
        """Read what `heard` has."""
        with suppress(BlockingIOError):
            self.heard.recv(4096)

    def close(self) -> None:
        """Free what it takes."""
        with self._lock:
            self._rung.close()
            self.heard.close()


def _message(
    news: threading.Event,
    checkpoint: _Checkpoint,
    dimse: Any,
    look: Callable[[bool], Any],
    block: bool = False,
) -> Any:
    if block:
        return look(True)
    news.wait(_POLL_SECONDS)
    news.clear()  # before looking: what comes from now on is heard
    with checkpoint.lock:
        found = look(False) if checkpoint.is_set() else (None, None)
    if not dimse.msg_queue.empty():
        news.set()
    return found


def _transport_event(dul: Any, bell: _Bell, look: Callable[[], bool]) -> bool:
    """Wait for what comes or is to be sent, and read PDUs as long as more of them are there."""
    is_read = False
    while True:
        connection = dul.socket and dul.socket.socket
        is_idle = dul.event_queue.empty() and dul.to_provider_queue.empty() and not dul._kill_thread
        if connection is None or not is_idle or dul.state_machine.current_state == _CLOSING:
            if connection is None and is_idle:
                time.sleep(_PAUSE_SECONDS)
            return is_read or look()
        poll = select.poll()
        for waited_for in (connection, bell.heard):
            poll.register(waited_for, select.POLLIN)
        poll.poll(0 if is_read else 1000 * _POLL_SECONDS)
        bell.drain()
        if not look():
            return is_read
        is_read = True
        dul._idle_timer.restart()


def _run(run: Callable[[], None], storing: StoreRequests, free: Callable[[], None]) -> None:
    try:
        run()
    finally:
        storing.discard()
        free()
