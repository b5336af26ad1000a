"""Why associations ended: for the log, and for the A-ABORT that tells the peer."""

from __future__ import annotations

import threading
import weakref

from pynetdicom.association import Association

from pacs_node.errors import ProtocolError

_lock = threading.Lock()
_ends: weakref.WeakKeyDictionary[Association, str] = weakref.WeakKeyDictionary()
_tls_failures: weakref.WeakKeyDictionary[Association, str] = weakref.WeakKeyDictionary()
_causes: weakref.WeakKeyDictionary[Association, ProtocolError] = weakref.WeakKeyDictionary()


def note_cause(association: Association, cause: ProtocolError) -> None:
    """Note why an association is about to end; the first cause counts."""
    # Without its traceback, whose frames would keep the association for ever
    bare = ProtocolError(str(cause), cause.source, cause.reason)
    with _lock:
        _causes.setdefault(association, bare)


def noted_cause(association: Association) -> ProtocolError | None:
    """Return what was noted."""
    with _lock:
        return _causes.get(association)


def note_end(association: Association, how: str) -> None:
    """Note that the peer ended an association, where that was no fault of it."""
    with _lock:
        _ends.setdefault(association, how)


def note_tls_failure(association: Association, why: str) -> None:
    """Note why there is no connection over TLS, or none any more; half a sentence, of the peer."""
    with _lock:
        _tls_failures.setdefault(association, why)


def noted_tls_failure(association: Association) -> str:
    """Return what was noted; empty where nothing was."""
    with _lock:
        return _tls_failures.get(association, "")


def why_aborted(association: Association) -> str:
    """Return a half sentence that says why an association was aborted."""
    cause = noted_cause(association)
    if cause is not None:
        return str(cause)
    with _lock:
        how = _tls_failures.get(association) or _ends.get(association)
    if association.dul.idle_timer_expired():
        return f"nothing came for {association.network_timeout:g} s ([receive] idle_seconds)"
    return how or "the connection broke, or the node stops"
