"""Every private name of pynetdicom that the node uses; one test looks for each of them.

Only this folder may touch them.

What could be proposed upstream, so that this list gets shorter:

- Threads that wait for news and do not look for it each millisecond: `_is_transport_event`,
  `_run_loop_delay`, and an event beside `_reactor_checkpoint`.
- A hook for what reads a PDU (`_read_pdu_data`, `_recv_pdu`, `_decode_pdu`) and one for what takes P-DATA,
  with limits of size: then a command set or a data set without end need not fill the memory.
- Source and reason of an A-ABORT as arguments (`_send`), as PS3.8 9.3.8 has them.
- A request with a data set that is encoded already, whose response is checked against it (`_is_paused`).
- An acceptor that starts with an A-ASSOCIATE-RQ that was read before (`_create_association`).
- Settings of an association in the place of globals (`_config`).
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty
from typing import Any

from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AssociationSocket

from pacs_node.errors import NotAssociated

PRIVATE_NAMES = {
    "ApplicationEntity": ("_create_socket",),
    "AssociationSocket": ("_shutdown_socket",),
    "Association": ("_accepted_cx", "_is_paused", "_kill", "_reactor_checkpoint", "_serve_request"),
    "DULServiceProvider": (
        "_decode_pdu",
        "_idle_timer",
        "_is_transport_event",
        "_kill_thread",
        "_read_pdu_data",
        "_recv_pdu",
        "_run_loop_delay",
        "_send",
    ),
    "RequestHandler": ("_create_association",),
    "pynetdicom": ("_config",),
}
"""By the class, or the module, that has them."""

_LOOK_SECONDS = 0.001
_INDICATED = "Sta3"  # PS3.8 9.2.1: the request is here, the answer is awaited


class ApplicationEntity(AE):
    """pynetdicom's, whose sockets are closed also where they were never connected."""

    def _create_socket(self, *arguments: Any) -> AssociationSocket:
        made = super()._create_socket(*arguments)
        plain: Any = made.socket

        def close() -> None:
            connection: Any = made.socket or plain  # over TLS it is another one than at the beginning
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

        made._shutdown_socket = close  # type: ignore[method-assign]
        return made


def accepted_context(association: Association, context_id: int) -> PresentationContext | None:
    """Return the accepted presentation context of a number."""
    return association._accepted_cx.get(context_id)


def is_killed(association: Association) -> bool:
    """Tell whether an association has no thread that would take what comes, or soon has none."""
    return association._kill or association.dul._kill_thread


@contextmanager
def awaited(association: Association) -> Iterator[None]:
    """Let the peer wait meanwhile: it does not idle."""
    timer = association.dul._idle_timer
    timer.stop()
    try:
        yield
    finally:
        timer.start()


@contextmanager
def paused(association: Association) -> Iterator[None]:
    """Keep the thread of an established association from taking messages meanwhile.

    Raises
    ------
    NotAssociated
        When it has ended.
    """
    checkpoint = association._reactor_checkpoint
    checkpoint.clear()
    try:
        # Its thread may have ended just now, and would never come to the checkpoint
        while not association._is_paused and association.is_alive():
            time.sleep(_LOOK_SECONDS)
        if not association.is_established:
            raise NotAssociated("ended the association")
        yield
    finally:
        checkpoint.set()


def begin_with_request(association: Association, request: A_ASSOCIATE) -> None:
    """Let an acceptor that has not started yet begin with a request that is here already."""
    dul = association.dul
    with suppress(Empty):
        dul.event_queue.get_nowait()  # that the connection is open
    dul.state_machine.current_state = _INDICATED
    dul.to_user_queue.put(request)


def send_files_as_they_are() -> None:
    """Let C-STORE send the encoded data set of a file, which is not parsed before."""
    _config.STORE_SEND_CHUNKED_DATASET = True


def log_no_identifiers() -> None:
    """Keep identifiers out of pynetdicom's log: they hold names, and logging one parses all of it."""
    _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False


def silence_details() -> None:
    """Let pynetdicom not describe each message and PDU for a log that nobody reads."""
    _config.LOG_HANDLER_LEVEL = "none"


class Ready:
    """Something that came and was read, in the place of a PDU from which pynetdicom makes a primitive."""

    def __init__(self, primitive: Any) -> None:
        self._primitive = primitive

    def to_primitive(self) -> Any:
        """Return the primitive."""
        return self._primitive
