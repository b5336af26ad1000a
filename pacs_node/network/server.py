"""The sockets that receivers share, and the server that accepts associations from them.

Several receiver processes accept from one listening socket, or from two, one of which is for TLS. `pacs-node
serve` holds them: what connects while a receiver starts anew waits for it.
"""

from __future__ import annotations

import errno
import gc
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from pacs_node.errors import PortInUse, ProtocolError
from pacs_node.network.admission import Places, Refusal, Rules
from pacs_node.network.associate_pdu import AssociationRequest, read_request
from pacs_node.network.awaiting_request import AwaitingRequest
from pacs_node.network.bounds import bounded
from pacs_node.network.dimse import Services
from pacs_node.network.primitives import indication
from pacs_node.network.pynetdicom_internals import begin_with_request, silence_details
from pacs_node.network.tls import TlsContext
from pacs_node.network.upper_layer import tune_acceptor

_BACKLOG = 128
_COLLECT_AFTER = 60  # associations: they are cycles of objects, with buffers


@dataclass(frozen=True)
class Listening:
    """Sockets that listen, to be given to receivers: one without TLS, one with TLS, or both."""

    plain: socket.socket | None = None
    tls: socket.socket | None = None

    @classmethod
    def on(cls, host: str, port: int, tls_port: int) -> Listening:
        """Listen on an address; on no port where it is 0.

        Raises
        ------
        PortInUse
            When another program listens there, or the address is not one of this machine.
        """
        plain = _listen(host, port, "[node] host and port") if port else None
        try:
            return cls(plain, _listen(host, tls_port, "[node] host and [tls] port") if tls_port else None)
        except PortInUse:
            if plain is not None:
                plain.close()
            raise

    @property
    def sockets(self) -> list[socket.socket]:
        """Those that there are, the one without TLS first."""
        return [one for one in (self.plain, self.tls) if one is not None]

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, *_exception: object) -> None:
        for one in self.sockets:
            one.close()


def _listen(host: str, port: int, keys: str) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        what = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be listened on ({error.strerror})"
        raise PortInUse(f"Port {port} on {host} {what}; set {keys}.") from error
    return listening


@dataclass(frozen=True)
class Observer:
    """Who is told what a server did not grant, or could not go on with.

    Attributes
    ----------
    on_rejected
        Told address, calling and called AE title (empty where they did not come) and the rule.
    on_silent
        Told an address, and how many of its connections were closed for they asked for nothing in time.
    on_crash
        Told the name of an exception that ended an association.
    """

    on_rejected: Callable[[str, str, str, str], None]
    on_silent: Callable[[str, int], None]
    on_crash: Callable[[Association, str], None]


class Server:
    """Accepts associations from a listening socket, until `stop`.

    Parameters
    ----------
    ae
        With the contexts and timeouts that count.
    listening
        The sockets; other processes may accept from them too.
    tls
        What connections over TLS are made with, where one of the sockets is for it.
    handlers
        Event handlers, as pynetdicom takes them.
    rules, services, observer
        Who may associate, what is served, and who is told.
    """

    def __init__(
        self,
        ae: AE,
        listening: Listening,
        handlers: list[Any],
        *,
        tls: TlsContext | None = None,
        rules: Rules,
        services: Services,
        observer: Observer,
    ) -> None:
        silence_details()
        self._rules = rules
        self._services = services
        self._observer = observer
        self._places = Places(rules)
        self._admitted = 0
        self._ae = ae
        ae.maximum_associations = 2**31  # these places count, not pynetdicom's
        first, *_ = listening.sockets
        self.port = int(first.getsockname()[1])
        self._server = ae.make_server(
            first.getsockname(),
            contexts=_NeverCopied(ae.supported_contexts),
            evt_handlers=[bounded(), *handlers],
            server_class=_Server,
            listening=first,
        )
        self._awaiting = AwaitingRequest(
            {one: tls if one is listening.tls else None for one in listening.sockets},
            self._admit,
            lambda: self._places.taken,
            request_seconds=rules.request_seconds,
            on_refused=lambda address, rule: observer.on_rejected(address, "", "", rule),
            on_silent=observer.on_silent,
        )
        self.progress = self._awaiting.progress
        self._awaiting.start()

    def stop(self) -> None:
        """Accept no more associations; those that are open go on."""
        self._awaiting.stop()

    def _admit(self, connection: socket.socket, address: tuple[str, int], body: bytes) -> Refusal | None:
        """Open the association that was asked for, or say why not."""
        try:
            request = read_request(body)
        except ProtocolError as error:
            return Refusal.aborted(error)
        refusal = self._rules.refusal(request, address[0]) or self._places.take(address[0])
        if refusal is not None:
            self._observer.on_rejected(
                address[0], request.calling_ae_title, request.called_ae_title, refusal.rule
            )
            return Refusal(refusal.pdu, "")
        try:
            self._open(connection, address, request)
        except BaseException:
            self._places.free(address[0])
            raise
        self._admitted += 1
        if self._admitted % _COLLECT_AFTER == 0:
            gc.collect()
        return None

    def _open(self, connection: socket.socket, address: tuple[str, int], request: AssociationRequest) -> None:
        connection.setblocking(True)
        handler = _Handler(connection, address, self._server)
        association = handler.association
        tune_acceptor(association, self._services, self._observer.on_crash)
        begin_with_request(association, indication(request))
        thread: Any = association
        thread.run = partial(self._run, association, thread.run, address[0])
        evt.trigger(association, evt.EVT_CONN_OPEN, {"address": address})
        association.start()

    def _run(self, association: Association, run: Callable[[], None], address: str) -> None:
        """Run an association; whatever ends it, its connection is closed and its place is free."""
        try:
            run()
        except Exception as error:  # noqa: BLE001 - whatever it is, one line says so
            self._observer.on_crash(association, type(error).__name__)
        finally:
            association.dul.kill_dul()  # which closes the connection
            self._places.free(address)


class _NeverCopied(list[PresentationContext]):
    """Presentation contexts that every association reads and none changes; to copy them takes 0.15 s."""

    def __deepcopy__(self, _memo: object) -> _NeverCopied:
        return self


class _Server(ThreadedAssociationServer):
    """What pynetdicom's associations ask of their server; nothing is accepted by it."""

    def __init__(self, *arguments: Any, listening: socket.socket, **named: Any) -> None:
        self._listening = listening
        super().__init__(*arguments, **named)

    def server_bind(self) -> None:
        """Take the socket that is bound, in the place of the one that was made."""
        self.server_close()
        self.socket = self._listening
        self.server_address = self.socket.getsockname()

    def server_activate(self) -> None:
        """Do nothing: it listens."""

    def server_close(self) -> None:
        """Close it for this process alone, where pynetdicom would shut it down for all."""
        if self.socket is not None:
            self.socket.close()


class _Handler(RequestHandler):
    """Makes an association, and does not start it."""

    association: Association

    def handle(self) -> None:
        """Make it."""
        self.association = self._create_association()
