"""Which associations wait for a message: only these may be sent one unasked."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pynetdicom import evt
from pynetdicom.association import Association

_QUIET_SECONDS = 0.3  # without a message, an association is idle


class Traffic:
    """Which associations wait for a message: only these may be sent one unasked.

    pynetdicom lets both sides talk at once, and would take the peer's next request for the answer to ours.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open_requests: weakref.WeakKeyDictionary[Association, int] = weakref.WeakKeyDictionary()
        self._last: weakref.WeakKeyDictionary[Association, float] = weakref.WeakKeyDictionary()

    def handlers(self) -> list[Any]:
        """Return what a server has to be bound to."""
        return [(evt.EVT_DIMSE_RECV, self._on_received), (evt.EVT_DIMSE_SENT, self._on_sent)]

    @contextmanager
    def held(self, association: Association, patience_seconds: float) -> Iterator[bool]:
        """Wait until an association is idle and keep its messages waiting; tell whether it came to that."""
        checkpoint = association._reactor_checkpoint
        deadline = time.monotonic() + patience_seconds
        is_held = False
        try:
            while association.is_established and time.monotonic() < deadline and not is_held:
                time.sleep(_QUIET_SECONDS / 3)
                if not self._is_idle(association):
                    continue
                checkpoint.clear()
                # Its thread may have ended just now, and would never come to the checkpoint
                while not association._is_paused and association.is_alive():
                    time.sleep(0.001)
                is_held = association.is_alive() and self._is_idle(association)
                if not is_held:
                    checkpoint.set()
            yield is_held and association.is_established
        finally:
            checkpoint.set()

    def _is_idle(self, association: Association) -> bool:
        with self._lock:
            is_answered = self._open_requests.get(association, 0) <= 0
            return is_answered and time.monotonic() - self._last.get(association, 0.0) > _QUIET_SECONDS

    def _on_received(self, event: evt.Event) -> None:
        self.count(event.assoc, 1)

    def _on_sent(self, event: evt.Event) -> None:
        self.count(event.assoc, -1)

    def count(self, association: Association, change: int) -> None:
        """Note a message that came, 1, or was sent, -1."""
        with self._lock:
            self._open_requests[association] = self._open_requests.get(association, 0) + change
            self._last[association] = time.monotonic()
