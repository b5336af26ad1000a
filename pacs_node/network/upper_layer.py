"""pynetdicom's upper layer (PS3.8) without its pauses, its copies, and its trust in what comes.

Its two threads per association look for news once a millisecond, which delays each PDU and wears the
processor out while nothing comes: here they wait for news. It copies what comes half a dozen times, and reads
whatever length a PDU says it has: here PDUs are read into one buffer, with limits. A thread that fails closes
its connection. The state machine, and what is sent, is left to pynetdicom.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, Queue
from typing import Any

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.fsm import TRANSITION_TABLE
from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.pdu_primitives import A_P_ABORT

from pacs_node.errors import ProtocolError
from pacs_node.network.dimse import Messages, Services
from pacs_node.network.ends import note_cause, noted_cause
from pacs_node.network.reader import Reader
from pacs_node.network.tls import is_decrypted

_PAUSE_SECONDS = 0.001  # between looks whether a thread without a connection may end
_POLL_SECONDS = 0.1  # for what comes without a call: timers, the end of a thread
_CLOSING_SECONDS = 1.0  # for the peer to close a connection over which nothing more is to be said
_MOST_DISCARDED = 2**24  # bytes, meanwhile
_CLOSING = "Sta13"  # PS3.8 9.2.1
_OF_USER = ("Evt7", "Evt8", "Evt9", "Evt11", "Evt14", "Evt15")  # events with a primitive (PS3.8 9.2.2)
_ABORT = struct.pack(">BxLxxBB", 7, 4, 2, 0)  # by the provider, no reason given (PS3.8 9.3.8)


def tune(
    association: Association, services: Services, on_crash: Callable[[Association, str], None]
) -> Callable[[], None]:
    """Do all that for an association over which nothing came yet; return what frees the means for it.

    Parameters
    ----------
    services
        What is served over it.
    on_crash
        Told the name of an exception that ended a thread of it; the connection is closed by then.
    """
    messages = Messages(association, services)
    messages.install()
    bell = _Bell()
    # What the peer sent, for the thread of the association
    news, dul = threading.Event(), association.dul
    dimse: Any = association.dimse
    dimse.msg_queue, dul.to_user_queue = _Heard(news.set), _Heard(news.set)
    association._reactor_checkpoint = checkpoint = _Checkpoint(news.set)
    blocking = partial(_awaited_message, association, messages, dimse.get_msg)
    dimse.get_msg = partial(_message, news, checkpoint, dimse, dimse.get_msg, blocking=blocking)
    # What is to be sent, and what comes, for the thread of the upper layer
    dul.to_provider_queue = _Heard(bell.ring)
    dul._run_loop_delay = 0
    upper_layer: Any = dul
    read = Reader(association, messages).read
    crashed = partial(_crash, association, on_crash)
    upper_layer._read_pdu_data = read
    upper_layer._is_transport_event = partial(_transport_event, dul, bell, read, crashed)
    upper_layer._send = partial(_send, association, dul._send)
    upper_layer.state_machine.do_action = partial(_act, dul, dul.state_machine.do_action, crashed)
    return partial(_end, association, messages, bell)


def tune_acceptor(
    association: Association, services: Services, on_crash: Callable[[Association, str], None]
) -> None:
    """Do it for an acceptor that has not started yet."""
    upper_layer: Any = association.dul
    upper_layer.run = partial(_run, upper_layer.run, tune(association, services, on_crash))


def tuned_requestor(services: Services) -> Any:
    """Return the handler that does it for an association that is requested."""
    return evt.EVT_CONN_OPEN, partial(_tune_requestor, services)


def _tune_requestor(services: Services, event: evt.Event) -> None:
    end = tune(event.assoc, services, _unsaid)
    event.assoc.bind(evt.EVT_CONN_CLOSE, lambda _event: end())


def _unsaid(_association: Association, _exception: str) -> None:
    """Say nothing: who requested the association says that it broke."""


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
    *,
    blocking: Callable[[], Any],
) -> Any:
    if block:
        return blocking()
    news.wait(_POLL_SECONDS)
    news.clear()  # before looking: what comes from now on is heard
    with checkpoint.lock:
        found = look(False) if checkpoint.is_set() else (None, None)
    if not dimse.msg_queue.empty():
        news.set()
    return found


def _awaited_message(association: Association, messages: Messages, look: Callable[[bool], Any]) -> Any:
    """Wait for a message; what is stored meanwhile, as after C-GET, prolongs the time for it."""
    seconds = association.dimse_timeout
    while True:
        since = time.monotonic()
        found = look(True)
        is_late = found == (None, None) and seconds is not None and time.monotonic() - since >= seconds
        if not is_late or not (messages.is_storing or messages.quiet_seconds < (seconds or 0)):
            return found


def _transport_event(
    dul: Any, bell: _Bell, read: Callable[[], bool], crashed: Callable[[Exception], None]
) -> bool:
    """Wait for what comes or is to be sent, and read PDUs as long as more of them are there."""
    try:
        return _waited(dul, bell, read)
    except Exception as error:  # noqa: BLE001 - whatever it is, the connection is closed
        crashed(error)
        return False


def _waited(dul: Any, bell: _Bell, read: Callable[[], bool]) -> bool:
    is_read = False
    while True:
        connection = dul.socket and dul.socket.socket
        is_idle = dul.event_queue.empty() and dul.to_provider_queue.empty() and not dul._kill_thread
        if connection is None or not is_idle:
            if connection is None and is_idle:
                time.sleep(_PAUSE_SECONDS)
            return is_read
        if dul.state_machine.current_state == _CLOSING:
            _close(dul, connection)
            return True
        poll = select.poll()
        for waited_for in (connection, bell.heard):
            poll.register(waited_for, select.POLLIN)
        has_more = is_decrypted(connection)
        ready = dict(poll.poll(0 if is_read or has_more else 1000 * _POLL_SECONDS))
        bell.drain()
        if not (has_more or connection.fileno() in ready) or not read():
            return is_read
        is_read = True
        dul._idle_timer.restart()


def _close(dul: Any, connection: socket.socket) -> None:
    """Let the peer read what was said last, and close: what it still sends is discarded."""
    deadline, discarded = time.monotonic() + _CLOSING_SECONDS, 0
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while discarded < _MOST_DISCARDED and (left := deadline - time.monotonic()) > 0:
            content = connection.recv(2**16) if poll.poll(1000 * left) else b""
            if not content:
                break
            discarded += len(content)
    dul.socket.close()
    connection.close()  # which the line before leaves undone where the peer was faster


def _send(association: Association, send: Callable[[Any], None], pdu: Any) -> None:
    """Send a PDU; an A-ABORT with the source and the reason that were noted."""
    cause = noted_cause(association)
    if isinstance(pdu, A_ABORT_RQ) and cause is not None:
        pdu.source, pdu.reason_diagnostic = cause.source, cause.reason
    send(pdu)
    if isinstance(pdu, A_ABORT_RQ):
        association.dimse.msg_queue.put((None, None))  # who waits for a response need not any more


def _act(dul: Any, act: Callable[[str], None], crashed: Callable[[Exception], None], event: str) -> None:
    """Do what an event asks for; one that came too late for its state asks for nothing."""
    if (event, dul.state_machine.current_state) not in TRANSITION_TABLE:
        if event in _OF_USER:
            with suppress(Empty):
                dul.to_provider_queue.get_nowait()
        return
    try:
        act(event)
    except Exception as error:  # noqa: BLE001 - whatever it is, the connection is closed
        crashed(error)


def _crash(association: Association, on_crash: Callable[[Association, str], None], error: Exception) -> None:
    """Close the connection of an association whose upper layer failed, and let its thread know."""
    note_cause(association, ProtocolError("a fault of the node, see the line before", 2, 0))
    dul = association.dul
    connection: Any = dul.socket and dul.socket.socket
    if connection is not None:
        with suppress(OSError):
            connection.send(_ABORT, socket.MSG_DONTWAIT)
            connection.shutdown(socket.SHUT_RDWR)
    on_crash(association, type(error).__name__)
    dul.to_user_queue.put(A_P_ABORT())
    association.dimse.msg_queue.put((None, None))
    dul.kill_dul()


def _end(association: Association, messages: Messages, bell: _Bell) -> None:
    """Leave nothing behind: no half object, no connection, no descriptor."""
    messages.discard()
    bell.close()
    connection: Any = association.dul.socket and association.dul.socket.socket
    if connection is not None:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


def _run(run: Callable[[], None], end: Callable[[], None]) -> None:
    try:
        run()
    finally:
        end()
