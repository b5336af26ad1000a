"""Connections that have not asked for an association yet; one thread waits for all of them.

Such a connection costs a descriptor and some bytes. It takes no place of an association, is closed at once
when its peer has gone, and in any case after `Rules.request_seconds`. Over TLS, that includes the handshake.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

from pacs_node.errors import ProtocolError
from pacs_node.network import associate_pdu, tls
from pacs_node.network.admission import Refusal
from pacs_node.progress import Progress

_MOST_WAITING = 400  # then the oldest one of the address with most goes
_LINGER_SECONDS = 1.0  # for a peer to read why it was refused
_MOST_DISCARDED = 2**24  # bytes, meanwhile
_PIECE = 2**16
_NO_DESCRIPTOR_SECONDS = 0.05
_TURN_SECONDS = 5.0  # at most, so that the process can tell that it goes on to accept
_HUNG_SECONDS = 60.0  # that no turn ever takes
_COURTESY_SECONDS = 0.002  # for each association that a process has already, that another one takes the next
_MOST_COURTESY, _FLOOD = 10, 16
_RQ, _ABORT = 1, 7  # PDU types
_HEADER = struct.Struct(">BxL")
_PROVIDER, _UNRECOGNIZED, _UNEXPECTED, _INVALID_PARAMETER = 2, 1, 2, 6  # of an A-ABORT (PS3.8 9.3.8)


@dataclass(eq=False)
class Visitor:
    """A connection that awaits its request.

    Attributes
    ----------
    leaves_at
        In monotonic seconds.
    handshake
        What the TLS handshake is made with, as long as that is not done; nothing where the port has none.
    is_refused
        Whether it was told why it gets no association, and only has to read that.
    """

    connection: socket.socket
    address: tuple[str, int]
    leaves_at: float
    handshake: tls.TlsContext | None = None
    came: bytearray = field(default_factory=bytearray)
    is_refused: bool = False
    discarded: int = 0

    @property
    def missing(self) -> int:
        """How many bytes of the header, or of the request, are still to come; one more is never read."""
        if len(self.came) < _HEADER.size:
            return _HEADER.size - len(self.came)
        return _HEADER.size + int(_HEADER.unpack_from(self.came)[1]) - len(self.came)

    def require_request(self) -> None:
        """Check the header of what comes.

        Raises
        ------
        ProtocolError
            When it is no request for an association.
        """
        kind, length = _HEADER.unpack_from(self.came)
        if kind == 0x16:
            raise ProtocolError(
                "it speaks TLS, which has another port ([tls] port)", _PROVIDER, _UNRECOGNIZED
            )
        if not _RQ <= kind <= _ABORT:
            raise ProtocolError("it does not speak DICOM", _PROVIDER, _UNRECOGNIZED)
        if kind != _RQ:
            raise ProtocolError("it did not ask for an association first", _PROVIDER, _UNEXPECTED)
        if length > associate_pdu.LARGEST:
            why = f"its request has {length} bytes, more than {associate_pdu.LARGEST}"
            raise ProtocolError(why, _PROVIDER, _INVALID_PARAMETER)


class AwaitingRequest:
    """Accepts connections and reads their requests, until `stop`.

    Parameters
    ----------
    listening
        The sockets, and for those of TLS what handshakes are made with; other processes may accept from them.
    admit
        Takes a connection and the body of its A-ASSOCIATE-RQ PDU, or says why not.
    associations
        Returns how many there are in this process.
    request_seconds
        From a connection to the end of its request.
    on_refused
        Told the address and the rule.
    on_silent
        Told an address, and how many of its connections were closed for they asked for nothing in time.

    Attributes
    ----------
    progress
        Whether it goes on to accept.
    """

    def __init__(
        self,
        listening: Mapping[socket.socket, tls.TlsContext | None],
        admit: Callable[[socket.socket, tuple[str, int], bytes], Refusal | None],
        associations: Callable[[], int],
        *,
        request_seconds: float,
        on_refused: Callable[[str, str], None],
        on_silent: Callable[[str, int], None],
    ) -> None:
        # Of several processes that were woken, all but one find nothing to accept
        for one in listening:
            one.setblocking(False)
        self._listening = listening
        self._admit = admit
        self._associations = associations
        self._request_seconds = request_seconds
        self._on_refused = on_refused
        self._on_silent = on_silent
        self._visitors: set[Visitor] = set()
        self._selector = selectors.DefaultSelector()
        self._stop, self._stopped = socket.socketpair()
        self.progress = Progress(_HUNG_SECONDS)
        self._thread = threading.Thread(target=self._run, name="awaiting-request", daemon=True)

    def start(self) -> None:
        """Begin to accept."""
        self._thread.start()

    def stop(self) -> None:
        """Accept no more, and close what has not asked yet."""
        with suppress(OSError):
            self._stop.send(b"\0")
        self._thread.join()

    def _run(self) -> None:
        for one in self._listening:
            self._selector.register(one, selectors.EVENT_READ)
        self._selector.register(self._stopped, selectors.EVENT_READ)
        try:
            while self._turn():
                pass
        finally:
            for visitor in list(self._visitors):
                self._close(visitor)
            self._selector.close()
            for one in (*self._listening, self._stop, self._stopped):
                one.close()

    def _turn(self) -> bool:
        """Wait for news and do what they ask for; tell whether to go on."""
        for key, _ in self._selector.select(self._patience()):
            if key.fileobj is self._stopped:
                return False
            if key.data is None:
                self._accept(cast(socket.socket, key.fileobj))
            elif key.data in self._visitors:  # it may have been closed just now
                self._hear(key.data)
        self._send_away_late_ones()
        self.progress.step()
        return True

    def _patience(self) -> float:
        now = time.monotonic()
        first = min((one.leaves_at for one in self._visitors), default=now + _TURN_SECONDS)
        return min(_TURN_SECONDS, max(0.0, first - now))

    def _accept(self, listening: socket.socket) -> None:
        if len(self._visitors) < _FLOOD:
            time.sleep(_COURTESY_SECONDS * min(self._associations(), _MOST_COURTESY))
        try:
            connection, address = listening.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError:  # no descriptor is left
            self._make_room()
            time.sleep(_NO_DESCRIPTOR_SECONDS)
            return
        if len(self._visitors) >= _MOST_WAITING:
            self._make_room()
        connection.setblocking(False)
        leaves_at = time.monotonic() + self._request_seconds
        handshake = self._listening[listening]
        visitor = Visitor(connection, (str(address[0]), int(address[1])), leaves_at, handshake)
        self._visitors.add(visitor)
        self._selector.register(connection, selectors.EVENT_READ, visitor)

    def _make_room(self) -> None:
        if self._visitors:
            most = Counter(one.address[0] for one in self._visitors).most_common(1)[0][0]
            of_most = [one for one in self._visitors if one.address[0] == most]
            self._close(min(of_most, key=lambda one: one.leaves_at))

    def _hear(self, visitor: Visitor) -> None:
        if visitor.handshake is not None and not visitor.is_refused:
            self._shake_hands(visitor, visitor.handshake)
            return
        self._read(visitor)
        while visitor in self._visitors and tls.is_decrypted(
            visitor.connection
        ):  # the selector does not know
            self._read(visitor)

    def _shake_hands(self, visitor: Visitor, handshake: tls.TlsContext) -> None:
        """Go on with a TLS handshake."""
        try:
            if not isinstance(visitor.connection, tls.TlsSocket) and not self._is_begun(visitor, handshake):
                return
            cast(tls.TlsSocket, visitor.connection).do_handshake()
        except (ssl.SSLWantReadError, BlockingIOError):
            self._await(visitor, selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            self._await(visitor, selectors.EVENT_WRITE)
        except OSError as error:
            self._await(visitor, selectors.EVENT_READ)
            self._refuse(visitor, Refusal(b"", tls.failure(error)))
        else:
            visitor.handshake = None
            self._await(visitor, selectors.EVENT_READ)

    def _await(self, visitor: Visitor, event: int) -> None:
        self._selector.modify(visitor.connection, event, visitor)

    def _is_begun(self, visitor: Visitor, handshake: tls.TlsContext) -> bool:
        """Begin with TLS if the peer does; refuse one that sends a PDU, so that it can read why."""
        first = visitor.connection.recv(1, socket.MSG_PEEK)
        if not first:
            self._close(visitor)
            return False
        if _RQ <= first[0] <= _ABORT:
            why = "it speaks DICOM without TLS on the port for TLS ([node] port is the other one)"
            self._refuse(visitor, Refusal.aborted(ProtocolError(why, _PROVIDER, _UNRECOGNIZED)))
            return False
        context = handshake.current()
        self._selector.unregister(visitor.connection)
        # The number of the descriptor stays the same, but the object is another one from now on
        visitor.connection = context.wrap_socket(
            visitor.connection, server_side=True, do_handshake_on_connect=False
        )
        self._selector.register(visitor.connection, selectors.EVENT_READ, visitor)
        return True

    def _read(self, visitor: Visitor) -> None:
        try:
            content = visitor.connection.recv(_PIECE if visitor.is_refused else min(visitor.missing, _PIECE))
        except BlockingIOError:
            return
        except OSError:
            content = b""
        if not content:
            self._leave(visitor)
        elif visitor.is_refused:
            visitor.discarded += len(content)
            if visitor.discarded > _MOST_DISCARDED:
                self._close(visitor)
        else:
            self._take(visitor, content)

    def _leave(self, visitor: Visitor) -> None:
        """Let a peer go that went: a check whether the port is open is no event."""
        if visitor.came and not visitor.is_refused:
            self._on_refused(visitor.address[0], "it went amid its request")
        self._close(visitor)

    def _take(self, visitor: Visitor, content: bytes) -> None:
        visitor.came += content
        if len(visitor.came) < _HEADER.size:
            return
        if visitor.came[0] == _ABORT:
            self._close(visitor)
            return
        try:
            visitor.require_request()
        except ProtocolError as error:
            self._refuse(visitor, Refusal.aborted(error))
            return
        if not visitor.missing:
            self._decide(visitor)

    def _decide(self, visitor: Visitor) -> None:
        self._selector.unregister(visitor.connection)
        try:
            refusal = self._admit(visitor.connection, visitor.address, bytes(visitor.came[_HEADER.size :]))
        except Exception as error:  # noqa: BLE001 - whatever it is, all others wait in this thread
            why = f"a fault of the node ({type(error).__name__})"
            refusal = Refusal.aborted(ProtocolError(why, _PROVIDER, 0))
        if refusal is None:
            self._visitors.discard(visitor)
            return
        self._selector.register(visitor.connection, selectors.EVENT_READ, visitor)
        self._refuse(visitor, refusal)

    def _refuse(self, visitor: Visitor, refusal: Refusal) -> None:
        if refusal.rule:  # else it is told already
            self._on_refused(visitor.address[0], refusal.rule)
        visitor.is_refused = True
        visitor.came.clear()
        visitor.leaves_at = time.monotonic() + _LINGER_SECONDS
        with suppress(OSError):
            if refusal.pdu:
                visitor.connection.send(refusal.pdu)
            visitor.connection.shutdown(socket.SHUT_WR)

    def _send_away_late_ones(self) -> None:
        now = time.monotonic()
        late = [one for one in self._visitors if one.leaves_at <= now]
        silent = Counter(one.address[0] for one in late if not one.is_refused)
        for visitor in late:
            self._close(visitor)
        for address, number in silent.items():
            self._on_silent(address, number)

    def _close(self, visitor: Visitor) -> None:
        self._visitors.discard(visitor)
        with suppress(KeyError, ValueError):
            self._selector.unregister(visitor.connection)
        visitor.connection.close()
