"""DIMSE messages of one association, from their fragments to who takes them (PS3.7 Annex E, PS3.8 Annex E).

It stands in the place of pynetdicom's, which keeps whatever comes, however much that is, takes any message
for the response that is waited for, and writes C-STORE data sets to one place for the whole process.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext

from pacs_node.errors import ProtocolError
from pacs_node.network import command_set
from pacs_node.network.command_set import CommandSet, encode_response, read_command
from pacs_node.network.expected import ExpectedResponse, is_final
from pacs_node.network.pynetdicom_internals import accepted_context, awaited, is_killed

LARGEST_DATA_SET = 2**24
"""Bytes of a data set of any message but C-STORE; what is larger is not kept, and refused."""

_COMMAND, _LAST = 0x01, 0x02  # bits of the message control header, PS3.8 E.2
_P_DATA_TF = 0x04
_MOST_WAITING, _MOST_DEFERRED = 2, 8  # messages that came and were not taken yet
_LOOK_SECONDS = 0.005
# Statuses, PS3.7 Annex C
_NO_SUCH_CLASS, _CLASS_NOT_SUPPORTED = 0x0118, 0x0122  # of DIMSE-N and of DIMSE-C
_UNRECOGNIZED_OPERATION, _MISTYPED_ARGUMENT, _RESOURCE_LIMITATION = 0x0211, 0x0212, 0x0213
_CANNOT_UNDERSTAND = 0xC000


@dataclass(frozen=True)
class StoreRequest:
    """A C-STORE request on a presentation context that was accepted for its SOP class.

    Attributes
    ----------
    calling_ae_title
        Of the peer: the one that called, or the one that was called where this node asked by C-GET.
    """

    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str


@dataclass(frozen=True)
class StoreResponse:
    """Status and Error Comment of the response."""

    status: int
    comment: str = ""


class StoreRequests(Protocol):
    """What takes the data sets of the C-STORE requests of one association; `receiving.c_store` does."""

    def begin(self, request: StoreRequest) -> None:
        """Begin with the data set of a request."""
        ...

    def write(self, content: memoryview) -> None:
        """Take a fragment of it."""
        ...

    def finish(self) -> StoreResponse:
        """End with it, and say what is answered."""
        ...

    def discard(self) -> None:
        """Remove what came of a data set that will not come to its end; may be repeated."""
        ...


def _uncounted(_association: Association, _change: int) -> None:
    """Count nothing."""


def _unsaid(_association: Association, _status: int, _comment: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Services:
    """What is served over associations of one kind.

    Attributes
    ----------
    requests
        Command Fields of the requests that are served, by abstract syntax.
    storing
        Makes what takes the C-STORE requests of an association, on all other presentation contexts.
    count
        Told of each C-STORE request that came, 1, and each response that was sent, -1.
    on_refused
        Told status and comment of each request that is refused before anybody takes it.
    """

    requests: Mapping[str, frozenset[int]] = field(default_factory=dict)
    storing: Callable[[Association], StoreRequests] | None = None
    count: Callable[[Association, int], None] = _uncounted
    on_refused: Callable[[Association, int, str], None] = _unsaid


@dataclass
class _Incoming:
    """A message whose command set came."""

    context: PresentationContext
    command: bytes
    found: CommandSet
    refusal: tuple[int, str] | None = None

    @property
    def command_field(self) -> int:
        return int(self.found[command_set.COMMAND_FIELD])

    @property
    def is_request(self) -> bool:
        return not self.command_field & command_set.RESPONSE and self.command_field != command_set.C_CANCEL_RQ

    @property
    def has_data_set(self) -> bool:
        kind = self.found.get(command_set.DATA_SET_TYPE, command_set.NO_DATA_SET)
        return kind != command_set.NO_DATA_SET

    @property
    def class_uid(self) -> str:
        found = self.found.get(command_set.CLASS_UID) or self.found.get(command_set.REQUESTED_CLASS_UID)
        return str(found or "")


class Messages:
    """The DIMSE messages that come over one association."""

    def __init__(self, association: Association, services: Services) -> None:
        self._association = association
        self._services = services
        self._storing = services.storing(association) if services.storing else None
        self._expected: ExpectedResponse | None = None
        self._deferred: list[tuple[int, Any]] = []
        self._reporting: threading.Thread | None = None
        self._answered_at = time.monotonic()
        self._context_id = 0
        self._command = bytearray()
        self._data = bytearray()
        self._incoming: _Incoming | None = None
        self.is_storing = False
        """Whether a C-STORE data set has begun and not ended."""

    def install(self) -> None:
        """Take the place of pynetdicom's reading of messages, and see what is asked."""
        dimse: Any = self._association.dimse
        dimse.receive_primitive = self._receive
        dimse.send_msg = partial(self._send, dimse.send_msg)

    @property
    def quiet_seconds(self) -> float:
        """How long no C-STORE request was answered."""
        return time.monotonic() - self._answered_at

    def discard(self) -> None:
        """Remove what will not come to its end."""
        self.is_storing = False
        if self._storing is not None:
            self._storing.discard()

    def take(self, context_id: int, value: memoryview) -> None:
        """Take a presentation data value, with its message control header.

        Raises
        ------
        ProtocolError
        """
        control, content = value[0], value[1:]
        is_command, is_last = control & _COMMAND, control & _LAST
        begun = self._incoming is not None or self._command
        if begun and context_id != self._context_id:
            raise ProtocolError("a fragment of another presentation context came amid a message")
        if is_command and self._incoming is not None:
            raise ProtocolError("a command came amid a data set")
        if not is_command and self._incoming is None:
            raise ProtocolError("a data set came without a command")
        self._context_id = context_id
        if is_command:
            self._take_command(content, is_last=bool(is_last))
        elif self.is_storing:
            self._store(content, is_last=bool(is_last))
        else:
            self._take_data(content, is_last=bool(is_last))

    def _take_command(self, content: memoryview, *, is_last: bool) -> None:
        if len(self._command) + len(content) > command_set.LARGEST:
            raise ProtocolError(f"a command set has more than {command_set.LARGEST} bytes")
        self._command += content
        if is_last:
            command = bytes(self._command)
            self._command.clear()
            self._begin(command)

    def _begin(self, command: bytes) -> None:
        found = read_command(command)
        context = accepted_context(self._association, self._context_id)
        if context is None:
            raise ProtocolError(f"presentation context {self._context_id} was not accepted")
        if found is None or not isinstance(found.get(command_set.COMMAND_FIELD), int):
            raise ProtocolError("a command set does not parse")
        incoming = self._incoming = _Incoming(context, command, found)
        if incoming.is_request:
            incoming.refusal = self._refusal(incoming)
        elif incoming.command_field & command_set.RESPONSE:
            self._require_expected(found)
        if incoming.is_request and incoming.command_field == command_set.C_STORE_RQ and not incoming.refusal:
            self._begin_storing(incoming)
        elif not incoming.has_data_set:
            self._complete(incoming)

    def _refusal(self, incoming: _Incoming) -> tuple[int, str] | None:
        """Return status and comment for a request that nobody serves: what is served was negotiated."""
        found, syntax = incoming.found, str(incoming.context.abstract_syntax)
        if not isinstance(found.get(command_set.MESSAGE_ID), int):
            raise ProtocolError("a request has no Message ID")
        is_normalized = 0x0100 <= incoming.command_field <= 0x0150
        if incoming.class_uid != syntax:
            status = _NO_SUCH_CLASS if is_normalized else _CLASS_NOT_SUPPORTED
            return status, "SOP Class UID is another than that of the context"
        served = self._services.requests.get(syntax)
        if served is None and self._storing is not None and incoming.context.as_scp:
            served = frozenset({command_set.C_STORE_RQ})
        if incoming.command_field not in (served or ()):
            return _UNRECOGNIZED_OPERATION, "The operation is not offered for this SOP class"
        if incoming.command_field == command_set.C_STORE_RQ:
            if command_set.INSTANCE_UID not in found:
                return _CANNOT_UNDERSTAND, "The request has no SOP Instance UID"
            if not incoming.has_data_set:
                return _CANNOT_UNDERSTAND, "The request has no data set"
        return None

    def _require_expected(self, found: CommandSet) -> None:
        if self._expected is None:
            raise ProtocolError("a response came to no request")
        difference = self._expected.difference(self._context_id, found)
        if difference:
            raise ProtocolError(f"its response {difference}")

    def _begin_storing(self, incoming: _Incoming) -> None:
        assert self._storing is not None
        self._services.count(self._association, 1)
        peer = self._association.acceptor if self._association.is_requestor else self._association.requestor
        self._storing.begin(
            StoreRequest(
                message_id=int(incoming.found[command_set.MESSAGE_ID]),
                sop_class_uid=incoming.class_uid,
                sop_instance_uid=str(incoming.found[command_set.INSTANCE_UID]),
                transfer_syntax_uid=str(incoming.context.transfer_syntax[0]),
                calling_ae_title=str(peer.ae_title),
            )
        )
        self.is_storing = True

    def _store(self, content: memoryview, *, is_last: bool) -> None:
        assert self._storing is not None
        self._storing.write(content)
        if not is_last:
            return
        incoming, self._incoming, self.is_storing = self._incoming, None, False
        assert incoming is not None
        with awaited(self._association):
            response = self._storing.finish()
        self._respond(incoming, response.status, response.comment)
        self._answered_at = time.monotonic()
        self._services.count(self._association, -1)

    def _take_data(self, content: memoryview, *, is_last: bool) -> None:
        incoming = self._incoming
        assert incoming is not None
        if incoming.refusal is None and len(self._data) + len(content) > LARGEST_DATA_SET:
            if not incoming.is_request:
                raise ProtocolError(f"the data set of a response has more than {LARGEST_DATA_SET} bytes")
            incoming.refusal = _RESOURCE_LIMITATION, f"The data set has more than {LARGEST_DATA_SET} bytes"
            self._data = bytearray()
        if incoming.refusal is None:
            self._data += content
        if is_last:
            self._complete(incoming)

    def _complete(self, incoming: _Incoming) -> None:
        data, self._data, self._incoming = bytes(self._data), bytearray(), None
        if incoming.refusal is not None:
            self._refuse(incoming, *incoming.refusal)
        elif incoming.command_field != command_set.C_CANCEL_RQ:  # of nothing that is served here
            if not incoming.is_request and is_final(incoming.found):
                self._expected = None
            self._hand_over(incoming, data)

    def _refuse(self, incoming: _Incoming, status: int, comment: str) -> None:
        self._services.on_refused(self._association, status, comment)
        self._respond(incoming, status, comment)

    def _respond(self, incoming: _Incoming, status: int, comment: str) -> None:
        response = b"\x03" + encode_response(incoming.found, status, comment)
        header = struct.pack(">BxLLB", _P_DATA_TF, len(response) + 5, len(response) + 1, self._context_id)
        connection = self._association.dul.socket
        if connection is not None:
            connection.send(header + response)

    def _hand_over(self, incoming: _Incoming, data: bytes) -> None:
        """Give a message to who waits for it, as pynetdicom does."""
        message = DIMSEMessage()
        try:
            message.decode_msg(_as_primitive(self._context_id, incoming, data), self._association)
            primitive: Any = message.message_to_primitive()
            is_valid = primitive.is_valid_request if incoming.is_request else primitive.is_valid_response
        except Exception as error:  # pynetdicom raises nearly anything for values that it does not expect
            raise ProtocolError("a command set does not parse") from error
        if incoming.is_request and not is_valid:
            self._refuse(incoming, _MISTYPED_ARGUMENT, "The request lacks what it must have")
            return
        evt.trigger(self._association, evt.EVT_DIMSE_RECV, {"message": message})
        if incoming.command_field == command_set.N_EVENT_REPORT_RQ:
            self._report(primitive)
        elif incoming.is_request and self._expected is not None:
            self._defer(primitive)
        else:
            self._wait_for(lambda: self._association.dimse.msg_queue.qsize() < _MOST_WAITING)
            self._put(primitive)

    def _put(self, primitive: Any) -> None:
        put: Callable[[Any], None] = self._association.dimse.msg_queue.put
        put((self._context_id, primitive))
        if self._expected is None:
            for deferred in self._deferred:
                put(deferred)
            self._deferred.clear()

    def _defer(self, primitive: Any) -> None:
        """Keep a request until the response came that is waited for: it would be taken for that."""
        if len(self._deferred) >= _MOST_DEFERRED:
            raise ProtocolError("too many requests came while a response was waited for")
        self._deferred.append((self._context_id, primitive))

    def _report(self, primitive: Any) -> None:
        """Serve N-EVENT-REPORT in a thread of its own, for it may come while a response is waited for."""
        before = self._reporting
        self._wait_for(lambda: before is None or not before.is_alive())
        serve, context_id = self._association._serve_request, self._context_id
        self._reporting = threading.Thread(target=serve, args=(primitive, context_id), daemon=True)
        self._reporting.start()

    def _wait_for(self, has_room: Callable[[], bool]) -> None:
        """Let a peer wait that sends more than is taken, unless something is to be sent meanwhile."""
        while not has_room() and not is_killed(self._association):
            if not self._association.dul.to_provider_queue.empty():
                return
            time.sleep(_LOOK_SECONDS)

    def _receive(self, primitive: P_DATA) -> None:
        """Take what pynetdicom read itself."""
        for context_id, value in primitive.presentation_data_value_list:
            self.take(context_id, memoryview(value))

    def _send(self, send: Callable[[Any, int], None], primitive: Any, context_id: int) -> None:
        """Send a message, and note which response is expected to a request."""
        field_of = _COMMAND_FIELDS.get(type(primitive).__name__)
        if primitive.MessageIDBeingRespondedTo is None and field_of is not None:
            self._expected = ExpectedResponse.to(primitive, context_id, field_of)
        send(primitive, context_id)


_COMMAND_FIELDS = {
    "C_STORE": 0x0001,
    "C_GET": 0x0010,
    "C_FIND": 0x0020,
    "C_MOVE": 0x0021,
    "C_ECHO": 0x0030,
    "N_EVENT_REPORT": 0x0100,
    "N_ACTION": 0x0130,
}
"""Of requests that this node makes, by the names of pynetdicom's primitives."""


def _as_primitive(context_id: int, incoming: _Incoming, data: bytes) -> P_DATA:
    values = [(context_id, b"\x03" + incoming.command)]
    if incoming.has_data_set:
        values.append((context_id, b"\x02" + data))
    primitive = P_DATA()
    primitive.presentation_data_value_list = []
    primitive.presentation_data_value_list.extend(values)
    return primitive
