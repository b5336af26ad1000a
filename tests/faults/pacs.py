"""A PACS that takes reports, and misbehaves as it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Self

from pynetdicom import AE, evt

from pacs_node.commitment.messages import COMMITMENT
from pacs_node.demo.peers import free_port
from pacs_node.reporting.report import REPORT_CLASSES

Behaviour = Callable[[evt.Event], int]


def takes(_event: evt.Event) -> int:
    """Take everything."""
    return 0x0000


class Pacs:
    """A storage SCP on 127.0.0.1.

    Parameters
    ----------
    behaviour
        Answers each C-STORE with a status; may sleep or abort. It can be changed while it runs.
    commits
        Whether it offers storage commitment; its answers are not the business of this class.
    port, host
        Where it listens, if that matters.

    Attributes
    ----------
    held
        The reports that were answered with Success or a warning, in their order.
    """

    def __init__(
        self,
        name: str = "PACS",
        behaviour: Behaviour = takes,
        *,
        commits: bool = False,
        port: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        self.name = name
        self.behaviour = behaviour
        self.port = port or free_port()
        self.host = host
        self.held: list[bytes] = []
        self.asked = 0
        self._lock = threading.Lock()
        self._ae = AE(name)
        for sop_class in REPORT_CLASSES:
            self._ae.add_supported_context(sop_class)
        if commits:
            self._ae.add_supported_context(COMMITMENT)
        self._server: Any = None

    def start(self) -> None:
        """Listen; after `stop`, on the same port again."""
        address = (self.host, self.port)
        self._server = self._ae.start_server(address, block=False, evt_handlers=self._handlers())

    def _handlers(self) -> list[Any]:
        return [(evt.EVT_C_STORE, self._on_c_store)]

    def stop(self) -> None:
        """Listen no more, and break what is open."""
        if self._server is not None:
            self._server.shutdown()
            self._server = None
        for association in self._ae.active_associations:
            association.abort()

    def reports(self) -> list[bytes]:
        """Return what it holds."""
        with self._lock:
            return list(self.held)

    def _on_c_store(self, event: evt.Event) -> int:
        content = event.encoded_dataset()
        with self._lock:
            self.asked += 1
        status = self.behaviour(event)
        if status == 0 or 0xB000 <= status <= 0xBFFF:
            with self._lock:
                self.held.append(content)
        return status

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()
