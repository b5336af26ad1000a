"""Storage Commitment Push Model (PS3.4 Annex J) as messages: what is asked for, and what is answered.

Nothing here knows the database; `records` does.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import build_role, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]  # made at import

from pacs_node.commitment import references
from pacs_node.commitment.references import Reference, References, TooLarge
from pacs_node.config_access import TlsSettings
from pacs_node.errors import NotAssociated, Refused, TlsUnusable
from pacs_node.network.association import application_entity, associate, send_normalized
from pacs_node.network.command_set import N_EVENT_REPORT_RQ
from pacs_node.network.dimse import LARGEST_DATA_SET, Services
from pacs_node.network.traffic import Traffic

COMMITMENT = str(StorageCommitmentPushModel)
_INSTANCE = "1.2.840.10008.1.20.1.1"  # the one well-known SOP Instance, PS3.4 J.3.5

_REQUEST, _ALL_KEPT, _SOME_NOT = 1, 1, 2  # Action Type ID; Event Type IDs (PS3.4 J.3.2, J.3.3)
_MOST_REFERENCES = 100_000
_UID = re.compile(r"[0-9.]{1,64}")

# Failure Reasons, PS3.3 C.14.1.1
PROCESSING_FAILURE, NO_SUCH_INSTANCE, CLASS_CONFLICT = 0x0110, 0x0112, 0x0119
CLASS_NOT_SUPPORTED, DUPLICATE_TRANSACTION, RESOURCE_LIMITATION = 0x0122, 0x0131, 0x0213
# DIMSE-N statuses, PS3.7 C.4 and C.5
NO_SUCH_EVENT, INVALID_ARGUMENT, NO_SUCH_ACTION = 0x0113, 0x0115, 0x0123

_ANSWERING_SECONDS = 1.0  # at most, before a release


@dataclass(frozen=True)
class CommitmentRequest:
    """What somebody wants to be kept."""

    transaction_uid: str
    references: Sequence[Reference]


@dataclass(frozen=True)
class CommitmentResult:
    """What is kept, and what is not, with the Failure Reason of each."""

    transaction_uid: str
    kept: Sequence[Reference]
    refused: Sequence[tuple[Reference, int]]


def new_request(references: Sequence[Reference]) -> CommitmentRequest:
    """Return a request under a new Transaction UID."""
    return CommitmentRequest(f"2.25.{uuid.uuid4().int}", references)


def read_request(event: evt.Event) -> CommitmentRequest:
    """Read an N-ACTION request.

    Raises
    ------
    Refused
        With the status to answer, when it asks for something else or is not understood.
    """
    if event.action_type != _REQUEST:
        raise Refused(NO_SUCH_ACTION, "Only action type 1 is known")
    request: Any = event.request
    if request.RequestedSOPInstanceUID != _INSTANCE:
        raise Refused(NO_SUCH_INSTANCE, "The SOP Instance is another than the well-known one")
    found = _read(event, request.ActionInformation)
    if not found.referenced:
        raise Refused(INVALID_ARGUMENT, "No SOP Instance is referenced")
    if len(found.referenced) > _MOST_REFERENCES:
        raise Refused(RESOURCE_LIMITATION, f"More than {_MOST_REFERENCES} SOP Instances are referenced")
    return CommitmentRequest(found.transaction_uid, found.referenced)


def read_answer(event: evt.Event) -> CommitmentResult:
    """Read an N-EVENT-REPORT request.

    Raises
    ------
    Refused
        With the status to answer, when it says something else or is not understood.
    """
    if event.event_type not in (_ALL_KEPT, _SOME_NOT):
        raise Refused(NO_SUCH_EVENT, "Only event types 1 and 2 are known")
    request: Any = event.request
    found = _read(event, request.EventInformation)
    refused = [
        (reference, PROCESSING_FAILURE if reason is None else reason) for reference, reason in found.failed
    ]
    return CommitmentResult(found.transaction_uid, found.referenced, refused)


def ask(association: Association, request: CommitmentRequest) -> int | None:
    """Send N-ACTION; return the status, or none where the association broke.

    Raises
    ------
    NotAssociated
        When the association has ended before.
    """
    primitive = N_ACTION()
    primitive.ActionTypeID = _REQUEST
    primitive.RequestedSOPClassUID, primitive.RequestedSOPInstanceUID = COMMITMENT, _INSTANCE
    content = References(request.transaction_uid, request.references)
    return send_normalized(association, primitive, "ActionInformation", partial(references.write, content))


def tell(association: Association, answer: CommitmentResult) -> int | None:
    """Send N-EVENT-REPORT; return the status, or none where the association broke.

    Raises
    ------
    NotAssociated
        When the association has ended before.
    """
    primitive = N_EVENT_REPORT()
    primitive.EventTypeID = _SOME_NOT if answer.refused else _ALL_KEPT
    primitive.AffectedSOPClassUID, primitive.AffectedSOPInstanceUID = COMMITMENT, _INSTANCE
    content = References(answer.transaction_uid, answer.kept, answer.refused)
    write = partial(references.write, content)
    return send_normalized(association, primitive, "EventInformation", write, as_provider=True)


def failure(status: int, comment: str) -> Dataset:
    """Return the status of a response, with its Error Comment."""
    answer = Dataset()
    answer.Status, answer.ErrorComment = status, comment[:64]  # VR LO
    return answer


@contextmanager
def open_for_commitment(
    host: str,
    port: int,
    called_ae_title: str,
    calling_ae_title: str,
    *,
    connect_seconds: float,
    answer_seconds: float,
    as_provider: bool = False,
    on_answer: Callable[[evt.Event], Any] | None = None,
    tls: TlsSettings | None = None,
) -> Iterator[Association]:
    """Open an association for storage commitment alone, and release it at the end.

    Parameters
    ----------
    as_provider
        In the role of the SCP, which reports to the SCU (PS3.4 J.3.3, PS3.7 D.3.3.4).
    on_answer
        What takes an N-EVENT-REPORT that comes over the very same association.
    tls
        With what to connect, if over TLS.

    Raises
    ------
    NotAssociated
        Also when the files for TLS cannot be used.
    """
    ae = application_entity(calling_ae_title)
    ae.connection_timeout = ae.acse_timeout = connect_seconds
    ae.dimse_timeout = ae.network_timeout = answer_seconds
    ae.add_requested_context(COMMITMENT)
    roles = [build_role(COMMITMENT, scp_role=True)] if as_provider else []
    handlers: list[Any] = [(evt.EVT_N_EVENT_REPORT, on_answer)] if on_answer is not None else []
    traffic = Traffic()
    handlers += traffic.handlers()
    requests = {COMMITMENT: frozenset({N_EVENT_REPORT_RQ})} if on_answer is not None else {}
    services = Services(requests)
    try:
        association = associate(
            ae, host, port, called_ae_title, roles=roles, handlers=handlers, services=services, tls=tls
        )
    except TlsUnusable as error:
        raise NotAssociated(f"is not connected to: {error}") from error
    try:
        yield association
    finally:
        if association.is_established:
            with traffic.held(association, _ANSWERING_SECONDS):
                pass  # pynetdicom would release in the middle of an answer of ours
            association.release()


def _read(event: evt.Event, information: BytesIO | None) -> References:
    content = b"" if information is None else information.getvalue()
    try:
        found = references.read(content, str(event.context.transfer_syntax), LARGEST_DATA_SET)
    except TooLarge as error:
        raise Refused(RESOURCE_LIMITATION, f"It inflates to over {LARGEST_DATA_SET} bytes") from error
    except ValueError as error:
        raise Refused(INVALID_ARGUMENT, "The data set does not parse") from error
    _require_uid(found.transaction_uid, "TransactionUID")
    for sop_class, instance in (*found.referenced, *(reference for reference, _ in found.failed)):
        _require_uid(sop_class, "ReferencedSOPClassUID")
        _require_uid(instance, "ReferencedSOPInstanceUID")
    return found


def _require_uid(value: str, keyword: str) -> None:
    if not _UID.fullmatch(value):
        raise Refused(INVALID_ARGUMENT, f"{keyword} is missing or no UID")
