"""Why associations ended: for the log, and for the A-ABORT that tells the peer."""

from __future__ import annotations

import threading
import weakref

from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ABORT

from pacs_node.errors import ProtocolError

_lock = threading.Lock()
_causes: weakref.WeakKeyDictionary[Association, ProtocolError] = weakref.WeakKeyDictionary()


def note_cause(association: Association, cause: ProtocolError) -> None:
    """Note why an association is about to end; the first cause counts."""
    with _lock:
        _causes.setdefault(association, cause)


def noted_cause(association: Association) -> ProtocolError | None:
    """Return what was noted."""
    with _lock:
        return _causes.get(association)


def why_aborted(association: Association) -> str:
    """Return a half sentence that says why an association was aborted."""
    cause = noted_cause(association)
    if cause is not None:
        return str(cause)
    if association.dul.idle_timer_expired():
        return f"nothing came for {association.network_timeout:g} s ([receive] idle_seconds)"
    last: object = association.dul.peek_next_pdu()
    if isinstance(last, A_ABORT):
        return "the peer aborted it"
    return "the node aborted it" if last is None else "the peer closed the connection"
