"""The socket that receivers share, and the server that accepts associations from it.

Several receiver processes accept from one listening socket, which `pacs-node serve` holds: what connects
while one of them starts anew waits for it.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable
from socketserver import BaseServer
from typing import Any

from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from pacs_node.errors import PortInUse
from pacs_node.network.upper_layer import StoreRequests, tune_acceptor

_BACKLOG = 128
_COURTESY_SECONDS = 0.002  # for each association that a process has already, that another one takes the next
_MOST_COURTESY = 10


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens, to be given to receivers.

    Raises
    ------
    PortInUse
        When another program listens there, or the address is not one of this machine.
    """
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
        raise PortInUse(f"Port {port} on {host} {what}; set [node] host and port.") from error
    return listening


class Server:
    """Accepts associations from a listening socket, until `stop`.

    Parameters
    ----------
    ae
        With the contexts and limits that count.
    listening
        The socket; other processes may accept from it too.
    handlers
        Event handlers, as pynetdicom takes them.
    storing
        What takes the C-STORE requests of an association.
    """

    def __init__(
        self,
        ae: AE,
        listening: socket.socket,
        handlers: list[Any],
        storing: Callable[[Association], StoreRequests],
    ) -> None:
        # Of several processes that were woken, all but one find nothing to accept
        listening.settimeout(0)
        self._server = ae.make_server(
            listening.getsockname(),
            contexts=_NeverCopied(ae.supported_contexts),
            evt_handlers=handlers,
            server_class=_Server,
            request_handler=_Handler,
            listening=listening,
            storing=storing,
        )
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Accept no more associations; those that are open go on."""
        self._server.shutdown()


class _NeverCopied(list[PresentationContext]):
    """Presentation contexts that every association reads and none changes; to copy them takes 0.15 s."""

    def __deepcopy__(self, _memo: object) -> _NeverCopied:
        return self


class _Server(ThreadedAssociationServer):
    """pynetdicom's server on a socket that is there already."""

    def __init__(
        self,
        *arguments: Any,
        listening: socket.socket,
        storing: Callable[[Association], StoreRequests],
        **named: Any,
    ) -> None:
        self._listening = listening
        self.storing = storing
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

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept, and let a process with fewer associations be the first."""
        time.sleep(_COURTESY_SECONDS * min(len(self.active_associations), _MOST_COURTESY))
        return super().get_request()

    def shutdown(self) -> None:
        """Accept no more."""
        BaseServer.shutdown(self)
        self.server_close()


class _Handler(RequestHandler):
    """Makes associations that lose no time."""

    def _create_association(self) -> Association:
        association = super()._create_association()
        server: Any = self.server
        tune_acceptor(association, server.storing(association))
        return association
