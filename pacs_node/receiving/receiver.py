"""The DICOM side that listens: Verification and Storage SCP (PS3.4 Annexes A and B).

An object is answered with Success only after its file is fsynced and its rows are committed. Whatever goes
wrong before is answered with a failure status, an Error Comment that says why, and a line in the log.
"""

from __future__ import annotations

import math
import socket
from concurrent.futures import ThreadPoolExecutor, wait
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
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import

from classifier.config import PROJECTION_RADIOGRAPHS
from classifier.decoding.quiet import silence_warnings
from db.errors import DatabaseError
from db.session import Database
from pacs_node import log
from pacs_node.commitment.scp import Provider
from pacs_node.config import Settings
from pacs_node.dicom.header import Identity, identity, read_header, scan
from pacs_node.errors import Refused, UnreadableHeader
from pacs_node.network.association import application_entity, let_end
from pacs_node.network.bounds import bounded
from pacs_node.network.server import Server, listen
from pacs_node.receiving.c_store import UNABLE_TO_PROCESS, StoreProvider, StoreRequest, StoreResponse
from pacs_node.storage.arriving import Arriving
from pacs_node.storage.intake import OUT_OF_RESOURCES, described, record
from pacs_node.storage.spool import Spool

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
    listening
        A socket that listens already, which other receivers may share.
    """

    def __init__(
        self, settings: Settings, database: Database, spool: Spool, listening: socket.socket | None = None
    ) -> None:
        self._listening = listening
        self._settings = settings
        self._database = database
        self._spool = spool
        self._provider = Provider(settings, database, spool)
        receivers = 1 if listening is None else settings.receive.process_count
        self._flushing = ThreadPoolExecutor(settings.receive.max_associations, "flush")
        self._ae = _application_entity(settings, receivers)
        self._provider.support(self._ae)
        self._server: Server

    def start(self) -> int:
        """Listen, and return the port.

        Raises
        ------
        PortInUse
            When another program listens there, or the address is not one of this machine.
        """
        node = self._settings.node
        listening = self._listening or listen(node.host, node.port)
        self._server = Server(self._ae, listening, self._handlers(), self._storing)
        return self._server.port

    def stop(self) -> None:
        """Accept no more associations, let those that are open end, and abort what is left after 10 s."""
        self._server.stop()
        let_end(self._ae, _DRAIN_SECONDS)
        for association in self._ae.active_associations:
            association.abort()

    def storage_handlers(self) -> list[Any]:
        """Return the handlers of an association over which objects come to be kept, as after C-GET.

        From now on, what this process receives goes into the spool.
        """
        # The encoded data set goes straight to a file, which `Spool.keep` can rename into its place.
        _config.STORE_RECV_CHUNKED_DATASET = True
        dimse_messages.NamedTemporaryFile = lambda **_: self._spool.arriving()  # type: ignore  # not exported
        silence_warnings()
        return [(evt.EVT_C_STORE, self._on_c_store), (evt.EVT_ABORTED, _on_aborted)]

    def _handlers(self) -> list[Any]:
        handlers = [bounded(), *self.storage_handlers(), *self._provider.handlers()]
        return [*handlers, (evt.EVT_ACCEPTED, _on_accepted), (evt.EVT_REJECTED, _on_rejected)]

    def _storing(self, association: Association) -> StoreProvider:
        return StoreProvider(association, self._spool, self._answer, self._provider.traffic.count)

    def _on_c_store(self, event: evt.Event) -> Dataset:
        """Answer C-STORE over an association that this node opened."""
        wanted = cast(C_STORE, event.request)
        request = StoreRequest(
            message_id=wanted.MessageID or 0,
            sop_class_uid=str(wanted.AffectedSOPClassUID),
            sop_instance_uid=str(wanted.AffectedSOPInstanceUID),
            transfer_syntax_uid=str(event.context.transfer_syntax),
            calling_ae_title=str(event.assoc.acceptor.ae_title),  # it was called
        )
        arriving: Any = wanted._dataset_file
        if isinstance(arriving, Arriving):
            arriving.close()
            found = self._answer(request, arriving)
            arriving.discard()
        else:
            found = StoreResponse(CANNOT_UNDERSTAND, "The request has no data set")
        answer = Dataset()
        answer.Status = found.status
        if found.comment:
            answer.ErrorComment = found.comment
        return answer

    def _answer(self, request: StoreRequest, arriving: Arriving) -> StoreResponse:
        """Keep an object that came, and say what to answer."""
        calling = _printable(request.calling_ae_title.strip())
        who = {"sop_instance_uid": _printable(request.sop_instance_uid), "calling_ae": calling}
        try:
            self._store(request, arriving, who)
        except Refused as refused:
            return _failure(refused.status, refused.comment, who)
        except OSError as error:
            return _failure(OUT_OF_RESOURCES, f"Cannot write the spool: {error.strerror}", who)
        except DatabaseError as error:
            return _failure(OUT_OF_RESOURCES, "The database is not available", who, cause=str(error))
        except Exception as error:  # noqa: BLE001 - whatever goes wrong, the sender has to be told
            # Without its message, which may hold patient data
            _log.error("instance not stored", cause=type(error).__name__, **who)
            return StoreResponse(UNABLE_TO_PROCESS)
        return StoreResponse(SUCCESS)

    def _store(self, request: StoreRequest, arriving: Arriving, who: dict[str, str]) -> None:
        if arriving.error is not None:
            raise arriving.error
        self._require_space()
        found = _identified(request, arriving)
        content = arriving.digest()
        size = arriving.path.stat().st_size
        # Flushing waits for the disk; meanwhile the statements are run, all but the commit
        keeping = self._flushing.submit(self._spool.keep, arriving.path, content)
        new = described(
            found,
            transfer_syntax_uid=request.transfer_syntax_uid,
            digest=content,
            size=size,
            calling_ae_title=who["calling_ae"],
        )
        try:
            quiet_seconds = self._settings.study.quiet_seconds
            outcome = record(self._database, self._spool, new, quiet_seconds, keeping.result)
        finally:
            wait([keeping])  # who called removes what is not kept
        _log.info("instance stored", outcome=outcome.value, study=found.study_instance_uid, bytes=size, **who)

    def _require_space(self) -> None:
        floor = self._settings.receive.min_free_mebibytes * 2**20
        free = self._spool.free_bytes()
        if free < floor:
            raise Refused(OUT_OF_RESOURCES, f"Spool almost full: {free // 2**20} MiB free")


def _application_entity(settings: Settings, receivers: int) -> AE:
    ae = application_entity(settings.node.ae_title)
    receive = settings.receive
    ae.maximum_associations = math.ceil(receive.max_associations / receivers)
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


def _identified(request: StoreRequest, arriving: Arriving) -> Identity:
    """Return what identifies the object, which must be what the C-STORE request announced (PS3.7 9.1.1.1)."""
    try:
        found = scan(bytes(arriving.head), request.transfer_syntax_uid)
        found = found or identity(read_header(arriving.path))
    except UnreadableHeader as error:
        raise Refused(CANNOT_UNDERSTAND, str(error)) from error
    if found.sop_class_uid != request.sop_class_uid:
        raise Refused(DOES_NOT_MATCH, "SOP Class UID is another than that of the request")
    if found.sop_instance_uid != request.sop_instance_uid:
        raise Refused(DOES_NOT_MATCH, "SOP Instance UID is another than that of the request")
    return found


def _failure(status: int, comment: str, who: dict[str, str], **details: str) -> StoreResponse:
    _log.warning("instance refused", status=f"0x{status:04X}", comment=comment, **details, **who)
    return StoreResponse(status, comment[:64])


def _on_accepted(event: evt.Event) -> None:
    _log.info("association accepted", **_peer(event))
    for context in event.assoc.rejected_contexts:
        syntaxes = [_printable(str(syntax)) for syntax in context.transfer_syntax]
        _log.warning(
            "presentation context rejected",
            abstract_syntax=_printable(str(context.abstract_syntax)),
            transfer_syntaxes=syntaxes,
            **_peer(event),
        )


def _on_rejected(event: evt.Event) -> None:
    _log.warning("association rejected", **_peer(event))


def _on_aborted(event: evt.Event) -> None:
    _log.warning("association aborted", **_peer(event))
    half_received = event.assoc.dimse.message
    arriving: Any = half_received and half_received._data_set_file
    if isinstance(arriving, Arriving):
        arriving.discard()


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
