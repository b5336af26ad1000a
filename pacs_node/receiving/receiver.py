"""The DICOM side that listens: Verification and Storage SCP (PS3.4 Annexes A and B).

An object is answered with Success only after its file is fsynced and its rows are committed. Whatever goes
wrong before is answered with a failure status, an Error Comment that says why, and a line in the log.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from ipaddress import ip_network
from typing import Any

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
    evt,
)
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import

from classifier.config import PROJECTION_RADIOGRAPHS
from classifier.decoding.quiet import silence_warnings
from db.errors import DatabaseError
from db.session import Database
from pacs_node import log
from pacs_node.commitment.scp import Provider
from pacs_node.config import Settings
from pacs_node.config_types import Network, caller
from pacs_node.dicom.header import Identity, identity, read_header, scan
from pacs_node.errors import Refused, UnreadableHeader
from pacs_node.network.admission import Rules, share
from pacs_node.network.association import application_entity, let_end
from pacs_node.network.command_set import C_ECHO_RQ
from pacs_node.network.dimse import Services, StoreRequest, StoreResponse
from pacs_node.network.ends import why_aborted
from pacs_node.network.server import Listening, Observer, Server
from pacs_node.network.tls import TlsContext, server_context
from pacs_node.progress import Progress
from pacs_node.receiving.c_store import UNABLE_TO_PROCESS, StoreProvider
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
_ABORT_SECONDS = 3


class Receiver:
    """The application entity that listens.

    Parameters
    ----------
    settings
        Sections ``node``, ``receive`` and ``study`` count.
    database, spool
        Where objects are recorded and kept; both ready for use.
    listening
        Sockets that listen already, which other receivers may share.
    """

    def __init__(
        self, settings: Settings, database: Database, spool: Spool, listening: Listening | None = None
    ) -> None:
        self._listening = listening
        self._settings = settings
        self._database = database
        self._spool = spool
        self._provider = Provider(settings, database, spool)
        self._receivers = 1 if listening is None else settings.receive.process_count
        self._flushing = ThreadPoolExecutor(settings.receive.max_associations, "flush")
        self._ae = _application_entity(settings)
        self._provider.support(self._ae)
        self._server: Server

    def start(self) -> int:
        """Listen, and return the port; that for TLS where there is no other.

        Raises
        ------
        PortInUse
            When another program listens there, or the address is not one of this machine.
        TlsUnusable
            When the files of section ``tls`` are missing or wrong.
        """
        node, tls = self._settings.node, self._settings.tls
        context = TlsContext(server_context, tls, _on_certificates) if tls.port else None
        listening = self._listening or Listening.on(node.host, node.port, tls.port)
        services = Services(
            requests={str(Verification): frozenset({C_ECHO_RQ}), **self._provider.requests},
            storing=self._storing,
            count=self._provider.traffic.count,
            on_refused=_on_refused,
        )
        observer = Observer(_on_rejected, _on_silent, _on_crash)
        rules = _rules(self._settings, self._receivers)
        self._server = Server(
            self._ae,
            listening,
            self._handlers(),
            tls=context,
            rules=rules,
            services=services,
            observer=observer,
        )
        return self._server.port

    @property
    def progress(self) -> Progress:
        """Whether it goes on to accept associations."""
        return self._server.progress

    def stop(self) -> None:
        """Accept no more associations, let those that are open end, and abort what is left after 10 s."""
        self._server.stop()
        let_end(self._ae, _DRAIN_SECONDS)
        for association in self._ae.active_associations:
            association.abort(block=False)  # each may take a moment to close its connection
        let_end(self._ae, _ABORT_SECONDS)

    def storage_services(self) -> Services:
        """Return what takes the objects that come over associations of this node, as after C-GET."""
        silence_warnings()
        return Services(storing=self._storing, on_refused=_on_refused)

    def _handlers(self) -> list[Any]:
        silence_warnings()
        handlers = self._provider.handlers()
        return [*handlers, (evt.EVT_ACCEPTED, _on_accepted), (evt.EVT_ABORTED, _on_aborted)]

    def _storing(self, _association: Association) -> StoreProvider:
        least_free = self._settings.receive.min_free_mebibytes * 2**20
        return StoreProvider(self._spool, self._answer, least_free)

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


def _rules(settings: Settings, receivers: int) -> Rules:
    """Return who may associate with one of so many receivers."""
    receive = settings.receive
    most = math.ceil(receive.max_associations / receivers)
    return Rules(
        ae_title=settings.node.ae_title,
        require_called_ae_title=receive.require_called_ae_title,
        addresses=tuple(map(ip_network, receive.addresses)),
        calling_ae_titles=_callers(receive.calling_ae_titles),
        most_associations=most,
        most_per_address=share(most, receive.address_share),
        request_seconds=receive.request_seconds,
    )


def _callers(listed: Sequence[str]) -> dict[str, tuple[Network, ...]]:
    """Return who may call by AE title, with the networks of each; a title without one may from anywhere."""
    found: dict[str, list[Network | None]] = {}
    for title, where in map(caller, listed):
        found.setdefault(title, []).append(where)
    return {
        title: () if None in places else tuple(place for place in places if place is not None)
        for title, places in found.items()
    }


def _application_entity(settings: Settings) -> AE:
    ae = application_entity(settings.node.ae_title)
    receive = settings.receive
    ae.maximum_pdu_size = receive.max_pdu_bytes
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = receive.idle_seconds
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
        syntaxes = [_printable(syntax) for syntax in context.transfer_syntax]
        _log.warning(
            "presentation context rejected",
            abstract_syntax=_printable(str(context.abstract_syntax)),
            transfer_syntaxes=syntaxes,
            **_peer(event),
        )


def _on_rejected(address: str, calling_ae_title: str, called_ae_title: str, rule: str) -> None:
    titles = {"calling_ae": calling_ae_title, "called_ae": called_ae_title} if calling_ae_title else {}
    _log.warning("association rejected", **titles, address=address, cause=rule)


def _on_silent(address: str, connections: int) -> None:
    cause = "asked for no association in time ([receive] request_seconds)"
    _log.info("connections closed", address=address, connections=connections, cause=cause)


def _on_certificates(why: str) -> None:
    if why:
        _log.error("new certificates not used", cause=why)
    else:
        _log.info("new certificates in use")


def _on_refused(association: Association, status: int, comment: str) -> None:
    _log.warning("request refused", status=f"0x{status:04X}", comment=comment, **_peer_of(association))


def _on_crash(association: Association, exception: str) -> None:
    _log.error("association failed", exception=exception, **_peer_of(association))


def _on_aborted(event: evt.Event) -> None:
    _log.warning("association aborted", **_peer(event), cause=why_aborted(event.assoc))


def _peer(event: evt.Event) -> dict[str, Any]:
    return _peer_of(event.assoc)


def _peer_of(association: Association) -> dict[str, Any]:
    requestor, acceptor = association.requestor, association.acceptor
    called = requestor.primitive.called_ae_title if requestor.primitive else acceptor.ae_title
    calling = acceptor if association.is_requestor else requestor  # it was called, where this node asks
    return {
        "calling_ae": _printable(str(calling.ae_title).strip()),
        "called_ae": _printable(str(called).strip()),
        "address": requestor.address,
    }


def _printable(text: str) -> str:
    """Return what a peer sent, fit for a log."""
    return "".join(character for character in text[:64] if character.isprintable())
