"""The DICOM side that listens: Verification and Storage SCP (PS3.4 Annexes A and B).

An object is answered with Success only after its file is fsynced and its rows are committed. Whatever goes
wrong before is answered with a failure status, an Error Comment that says why, and a line in the log.
"""

from __future__ import annotations

import errno
import time
import warnings
from pathlib import Path
from typing import Any, cast

from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
    RLELossless,
)
from pynetdicom import (
    AE,
    ALL_TRANSFER_SYNTAXES,
    AllStoragePresentationContexts,
    _config,
    dimse_messages,
    evt,
)
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import

from classifier.config import PROJECTION_RADIOGRAPHS
from db.errors import DatabaseError
from db.rows import Received
from db.session import Database
from pacs_node import log
from pacs_node.association import application_entity, bounded
from pacs_node.config import Settings
from pacs_node.errors import PortInUse, Refused
from pacs_node.header import Identity, UnreadableHeader, identity, read_header
from pacs_node.intake import OUT_OF_RESOURCES, described, record
from pacs_node.provider import Provider
from pacs_node.spool import Arriving, Spool, digest

_log = log.get(__name__)

SUCCESS, DOES_NOT_MATCH, CANNOT_UNDERSTAND = 0x0000, 0xA900, 0xC000  # PS3.4 B.2.3

READABLE_SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    *JPEGLSTransferSyntaxes,
    *JPEG2000TransferSyntaxes,
)
"""What the decoders of the classifier read; a radiograph in another syntax is not accepted, so that its
sender can offer it in one of these."""

_DRAIN_SECONDS = 10


class Receiver:
    """The application entity that listens.

    Parameters
    ----------
    settings
        Sections ``node``, ``receive`` and ``study`` count.
    database, spool
        Where objects are recorded and kept; both ready for use.
    """

    def __init__(self, settings: Settings, database: Database, spool: Spool) -> None:
        self._settings = settings
        self._database = database
        self._spool = spool
        self._provider = Provider(settings, database, spool)
        self._ae = _application_entity(settings)
        self._provider.support(self._ae)
        self._server: Any = None

    def start(self) -> int:
        """Listen, and return the port.

        Raises
        ------
        PortInUse
            When another program listens there, or the address is not one of this machine.
        """
        node = self._settings.node
        try:
            self._server = self._ae.start_server(
                (node.host, node.port), block=False, evt_handlers=self._handlers()
            )
        except OSError as error:
            what = (
                "is in use"
                if error.errno == errno.EADDRINUSE
                else f"cannot be listened on ({error.strerror})"
            )
            raise PortInUse(f"Port {node.port} on {node.host} {what}; set [node] host and port.") from error
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Accept no more associations, let those that are open end, and abort what is left after 10 s."""
        self._server.shutdown()
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self._ae.active_associations and time.monotonic() < deadline:
            time.sleep(0.05)
        for association in self._ae.active_associations:
            association.abort()

    def keeping(self) -> list[Any]:
        """Return the handlers of an association over which objects come to be kept, as after C-GET.

        From now on, what this process receives goes into the spool.
        """
        # The encoded data set goes straight to a file, which `Spool.keep` can rename into its place.
        _config.STORE_RECV_CHUNKED_DATASET = True
        dimse_messages.NamedTemporaryFile = lambda **_: self._spool.arriving()  # type: ignore  # not exported
        # pydicom warns of what breaks the Standard, with the value. `catch_warnings` is not for threads.
        warnings.simplefilter("ignore", UserWarning)
        return [(evt.EVT_C_STORE, self._on_c_store), (evt.EVT_ABORTED, _on_aborted)]

    def _handlers(self) -> list[Any]:
        handlers = [bounded(), *self.keeping(), *self._provider.handlers()]
        return [*handlers, (evt.EVT_ACCEPTED, _on_accepted), (evt.EVT_REJECTED, _on_rejected)]

    def _on_c_store(self, event: evt.Event) -> Dataset:
        """Answer C-STORE; an exception that is not expected here becomes 0xC211 in pynetdicom."""
        request = {
            "sop_instance_uid": _printable(str(_request(event).AffectedSOPInstanceUID)),
            "calling_ae": _calling_ae(event),
        }
        try:
            self._store(event, request)
        except Refused as refused:
            return _failure(refused.status, refused.comment, request)
        except OSError as error:
            return _failure(OUT_OF_RESOURCES, f"Cannot write the spool: {error.strerror}", request)
        except DatabaseError as error:
            return _failure(OUT_OF_RESOURCES, "The database is not available", request, cause=str(error))
        except Exception as error:
            # Without its message, which may hold patient data
            _log.error("instance not stored", cause=type(error).__name__, **request)
            raise
        finally:
            _discard(_request(event)._dataset_file)
        answer = Dataset()
        answer.Status = SUCCESS
        return answer

    def _store(self, event: evt.Event, request: dict[str, str]) -> None:
        self._require_space()
        received, syntax = _received(event), str(event.context.transfer_syntax)
        found = _identified(received, event)
        content = digest(received, syntax)
        size = received.stat().st_size
        self._spool.keep(received, content)
        new = described(
            found, transfer_syntax_uid=syntax, digest=content, size=size, calling_ae_title=_calling_ae(event)
        )
        outcome = record(self._database, self._spool, new, self._settings.study.quiet_seconds)
        write = _log.warning if outcome is Received.CONFLICT else _log.info
        write("instance stored", outcome=outcome.value, study=found.study_instance_uid, bytes=size, **request)

    def _require_space(self) -> None:
        floor = self._settings.receive.min_free_mebibytes * 2**20
        free = self._spool.free_bytes()
        if free < floor:
            raise Refused(OUT_OF_RESOURCES, f"Spool almost full: {free // 2**20} MiB free")


def _application_entity(settings: Settings) -> AE:
    ae = application_entity(settings.node.ae_title)
    receive = settings.receive
    ae.maximum_associations = receive.max_associations
    ae.maximum_pdu_size = receive.max_pdu_bytes
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = receive.idle_seconds
    ae.require_calling_aet = list(receive.calling_ae_titles)
    ae.require_called_aet = receive.require_called_ae_title
    ae.add_supported_context(Verification)
    for sop_class in sorted(PROJECTION_RADIOGRAPHS):
        ae.add_supported_context(sop_class, list(READABLE_SYNTAXES))
    if receive.other_sop_classes == "store":
        for context in AllStoragePresentationContexts:
            if context.abstract_syntax not in PROJECTION_RADIOGRAPHS:
                ae.add_supported_context(str(context.abstract_syntax), ALL_TRANSFER_SYNTAXES)
    return ae


def _received(event: evt.Event) -> Path:
    """Return the file that was received, whole."""
    arriving: Any = _request(event)._dataset_file
    if not isinstance(arriving, Arriving):
        raise Refused(CANNOT_UNDERSTAND, "The request has no data set")
    arriving.close()
    if arriving.error is not None:
        raise arriving.error
    return arriving.path


def _discard(arriving: object) -> None:
    if isinstance(arriving, Arriving):
        arriving.discard()


def _identified(received: Path, event: evt.Event) -> Identity:
    """Return what identifies the object, which must be what the C-STORE request announced (PS3.7 9.1.1.1)."""
    try:
        found = identity(read_header(received))
    except UnreadableHeader as error:
        raise Refused(CANNOT_UNDERSTAND, str(error)) from error
    if found.sop_class_uid != _request(event).AffectedSOPClassUID:
        raise Refused(DOES_NOT_MATCH, "SOP Class UID is another than that of the request")
    if found.sop_instance_uid != _request(event).AffectedSOPInstanceUID:
        raise Refused(DOES_NOT_MATCH, "SOP Instance UID is another than that of the request")
    return found


def _request(event: evt.Event) -> C_STORE:
    return cast(C_STORE, event.request)


def _failure(status: int, comment: str, request: dict[str, str], **details: str) -> Dataset:
    _log.warning("instance refused", status=f"0x{status:04X}", comment=comment, **details, **request)
    answer = Dataset()
    answer.Status = status
    answer.ErrorComment = comment[:64]  # VR LO
    return answer


def _on_accepted(event: evt.Event) -> None:
    _log.info("association accepted", **_peer(event))
    for context in event.assoc.rejected_contexts:
        syntaxes = [str(syntax) for syntax in context.transfer_syntax]
        _log.warning(
            "presentation context rejected",
            abstract_syntax=str(context.abstract_syntax),
            transfer_syntaxes=syntaxes,
            **_peer(event),
        )


def _on_rejected(event: evt.Event) -> None:
    _log.warning("association rejected", **_peer(event))


def _on_aborted(event: evt.Event) -> None:
    _log.warning("association aborted", **_peer(event))
    half_received = event.assoc.dimse.message
    if half_received is not None:
        _discard(half_received._data_set_file)


def _peer(event: evt.Event) -> dict[str, Any]:
    requestor, acceptor = event.assoc.requestor, event.assoc.acceptor
    called = requestor.primitive.called_ae_title if requestor.primitive else acceptor.ae_title
    return {
        "calling_ae": _calling_ae(event),
        "called_ae": _printable(str(called).strip()),
        "address": requestor.address,
    }


def _calling_ae(event: evt.Event) -> str:
    """Return the AE title of the other side: the one that was called where this node asked by C-GET."""
    peer = event.assoc.acceptor if event.assoc.is_requestor else event.assoc.requestor
    return _printable(str(peer.ae_title).strip())


def _printable(text: str) -> str:
    """Return what a peer sent, fit for a log."""
    return "".join(character for character in text[:64] if character.isprintable())
