"""Associations that the node requests: how they are opened, how one object is sent, and why either failed."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, cast

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation

from pacs_node.config_access import TlsSettings
from pacs_node.dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pacs_node.errors import NotAssociated, TakesNothing, UserError
from pacs_node.network.bounds import bounded
from pacs_node.network.dimse import Services
from pacs_node.network.ends import noted_cause, noted_tls_failure
from pacs_node.network.pynetdicom_internals import (
    ApplicationEntity,
    paused,
    send_files_as_they_are,
    silence_details,
)
from pacs_node.network.tls import Connecting
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
        ae = ApplicationEntity(ae_title)
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
    services: Services | None = None,
    tls: TlsSettings | None = None,
) -> Association:
    """Open an association with the contexts and timeouts of `ae`.

    Parameters
    ----------
    roles
        For contexts in which the requestor is not only SCU (PS3.7 D.3.3.4).
    handlers
        For what the peer asks meanwhile, as pynetdicom takes them.
    services
        What may be asked meanwhile; nothing by default.
    tls
        With what to connect over TLS; ``None`` for a connection without.

    Raises
    ------
    TakesNothing
        When the peer rejects each of the presentation contexts.
    NotAssociated
        When there is no connection, the peer rejects the association, or its answer cannot be read.
    TlsUnusable
        When the files for TLS are missing or wrong.
    """
    silence_details()
    connecting = None if tls is None else Connecting(tls, host)
    try:
        association = ae.associate(
            host,
            port,
            ae_title=called_ae_title,
            ext_neg=list(roles),
            tls_args=None if connecting is None else cast(Any, (connecting, host)),
            evt_handlers=[bounded(), tuned_requestor(services or Services()), *handlers],
        )
    except (OSError, UnicodeError) as error:  # what looking up the host's name raises
        raise NotAssociated(f"cannot be reached: {error}") from error
    if association.is_established:
        return association
    unsafe = (connecting and connecting.failure) or noted_tls_failure(association)
    if unsafe:
        raise NotAssociated(f"cannot be reached over TLS: {unsafe}")
    # pynetdicom does not look at an answer after which the connection was closed before it could
    answer: Any = association.acceptor.primitive or association.dul.peek_next_pdu()
    if getattr(answer, "result", None) in _REJECTED:
        raise NotAssociated(f"rejected the association: {_rejection(answer, association.requestor.ae_title)}")
    broken = noted_cause(association)
    if broken is not None:
        raise NotAssociated(f"answered the request for an association wrongly: {broken}")
    if _rejects_all(association, answer):
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
        When the association has ended before, or what came is not the answer to this request.
    """
    send_files_as_they_are()
    try:
        answer = association.send_c_store(path, msg_id=next_message_id(association))
    except RuntimeError as error:  # pynetdicom's
        raise NotAssociated("ended the association") from error
    require_proper_end(association, answer)
    return answer


def require_proper_end(association: Association, answer: Dataset) -> None:
    """Check that no answer came for no other reason than that the peer is silent or gone.

    Raises
    ------
    NotAssociated
        When it sent something that is not the answer.
    """
    broken = noted_cause(association)
    if "Status" not in answer and broken is not None:
        raise NotAssociated(f"did not answer the request: {broken}")


def send_normalized(
    association: Association,
    request: Any,
    keyword: str,
    encode: Callable[[str], bytes],
    *,
    as_provider: bool = False,
) -> int | None:
    """Send a DIMSE-N request; return the status, or none where the association broke or none came in time.

    Parameters
    ----------
    request
        A primitive of pynetdicom, without Message ID.
    keyword, encode
        Where its data set goes, and what returns that in a transfer syntax.
    as_provider
        In the role of the SCP.

    Raises
    ------
    NotAssociated
        When the association has ended before, offers no context for it, or what came is not the answer.
    """
    sop_class = getattr(request, "RequestedSOPClassUID", None) or request.AffectedSOPClassUID
    context = next(
        (
            one
            for one in association.accepted_contexts
            if one.abstract_syntax == sop_class and (one.as_scp if as_provider else one.as_scu)
        ),
        None,
    )
    if context is None:
        raise NotAssociated("accepts no presentation context for the request")
    request.MessageID = next_message_id(association)
    setattr(request, keyword, BytesIO(encode(str(context.transfer_syntax[0]))))
    with paused(association):
        association.dimse.send_msg(request, context.context_id or 0)
        response: Any = association.dimse.get_msg(block=True)[1]
    if response is not None and response.is_valid_response:
        return int(response.Status)
    if association.is_established:
        association.abort()
    require_proper_end(association, Dataset())
    return None


_last_message_ids: weakref.WeakKeyDictionary[Association, int] = weakref.WeakKeyDictionary()


def next_message_id(association: Association) -> int:
    """Return a Message ID that no request over an association had, or none for long (PS3.7 9.1.1.1.1)."""
    _last_message_ids[association] = number = _last_message_ids.get(association, 0) % 65_535 + 1
    return number


def _rejects_all(association: Association, answer: Any) -> bool:
    """Tell whether a peer rejected each presentation context, and left none without an answer."""
    answered = {one.context_id for one in getattr(answer, "presentation_context_definition_results_list", ())}
    proposed = {one.context_id for one in association.requestor.requested_contexts}
    return answered == proposed and not association.accepted_contexts


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
