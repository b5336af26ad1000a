"""Associations that the node requests: how they are opened, how one object is sent, and why either failed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation

from pacs_node.dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pacs_node.errors import NotAssociated, TakesNothing, UserError
from pacs_node.network.bounds import bounded
from pacs_node.network.upper_layer import tuned_requestor

_LOOK_SECONDS = 0.05
_REJECTED_TRANSIENT = 2
_REJECTED = (1, _REJECTED_TRANSIENT)  # results of A-ASSOCIATE (PS3.8 9.3.4)


def application_entity(ae_title: str) -> AE:
    """Return an application entity that names this implementation (PS3.7 D.3.3.2).

    Raises
    ------
    UserError
        When the AE title is none.
    """
    try:
        ae = AE(ae_title)
    except ValueError as error:
        raise UserError(f"{ae_title!r} is no AE title; it has 1 to 16 characters.") from error
    ae.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    return ae


def associate(
    ae: AE,
    host: str,
    port: int,
    called_ae_title: str,
    *,
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Sequence[Any] = (),
) -> Association:
    """Open an association with the contexts and timeouts of `ae`.

    Parameters
    ----------
    roles
        For contexts in which the requestor is not only SCU (PS3.7 D.3.3.4).
    handlers
        For what the peer asks meanwhile, as pynetdicom takes them.

    Raises
    ------
    TakesNothing
        When the peer accepts none of the presentation contexts.
    NotAssociated
        When there is no connection, or the peer rejects the association.
    """
    try:
        association = ae.associate(
            host,
            port,
            ae_title=called_ae_title,
            ext_neg=list(roles),
            evt_handlers=[bounded(), tuned_requestor(), *handlers],
        )
    except (OSError, UnicodeError) as error:  # what looking up the host's name raises
        raise NotAssociated(f"cannot be reached: {error}") from error
    if association.is_established:
        return association
    # pynetdicom does not look at an answer after which the connection was closed before it could
    answer: Any = association.acceptor.primitive or association.dul.peek_next_pdu()
    if getattr(answer, "result", None) in _REJECTED:
        raise NotAssociated(f"rejected the association: {_rejection(answer, association.requestor.ae_title)}")
    if association.rejected_contexts and not association.accepted_contexts:
        raise TakesNothing("accepts none of the presentation contexts")
    raise NotAssociated("cannot be reached; check host, port and that it is running")


def let_end(ae: AE, seconds: float) -> None:
    """Wait until the associations of `ae` have ended, for so long at most.

    pynetdicom aborts what is open when it shuts down, and fails where the connection is about to be closed.
    """
    deadline = time.monotonic() + seconds
    while ae.active_associations and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)


def store(association: Association, path: Path) -> Dataset:
    """Send one file by C-STORE; return the answer, empty where the association broke or none came in time.

    Raises
    ------
    NotAssociated
        When the association has ended before.
    """
    try:
        return association.send_c_store(path)
    except RuntimeError as error:  # pynetdicom's
        raise NotAssociated("ended the association") from error


def _rejection(answer: Any, ae_title: str) -> str:
    """Return why a peer rejected an association, and what to do about it (PS3.8 9.3.4)."""
    source, reason = getattr(answer, "result_source", None), getattr(answer, "diagnostic", None)
    if (source, reason) == (1, 7):
        return "it has another AE title; correct the one that is called"
    if (source, reason) == (1, 3):
        return f"it does not know the AE title {ae_title}; add it there"
    if answer.result == _REJECTED_TRANSIENT:
        return "it is busy for now"
    return str(getattr(answer, "reason_str", "it gave no reason")).lower()
