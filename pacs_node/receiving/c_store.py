"""C-STORE as SCP, from the fragments of a request to its response (PS3.7 9.1.1 and 9.3.1).

pynetdicom does the same for every DIMSE service, with objects that are checked, copied and handed from thread
to thread, which takes most of the time of a small object. What is not a plain C-STORE request is left to it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pynetdicom.association import Association
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class

from pacs_node.dicom.part10 import file_meta, padded
from pacs_node.errors import OutOfOrder
from pacs_node.storage.arriving import Arriving
from pacs_node.storage.spool import Spool

UNABLE_TO_PROCESS = 0xC211  # what pynetdicom answers when a handler fails

_COMMAND, _LAST = 0x01, 0x02  # bits of the message control header, PS3.8 E.2
_C_STORE_RQ, _C_STORE_RSP, _NO_DATA_SET = 0x0001, 0x8001, 0x0101
_P_DATA_TF = 0x04
# Elements of the command set, PS3.7 E.1
_GROUP_LENGTH, _CLASS_UID, _COMMAND_FIELD, _MESSAGE_ID = 0x0000, 0x0002, 0x0100, 0x0110
_RESPONDED_TO, _DATA_SET_TYPE, _STATUS, _COMMENT, _INSTANCE_UID = 0x0120, 0x0800, 0x0900, 0x0902, 0x1000
_ELEMENT = struct.Struct("<HHL")


@dataclass(frozen=True)
class StoreRequest:
    """A C-STORE request whose data set came.

    Attributes
    ----------
    calling_ae_title
        Of the peer, as it wrote it.
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


StoreHandler = Callable[[StoreRequest, Arriving], StoreResponse]
"""Keeps an object whose file is written but not flushed; no exception may come out of it."""


class StoreProvider:
    """The C-STORE requests of one association.

    Parameters
    ----------
    association
        The acceptor.
    spool
        Where data sets arrive.
    answering
        What keeps them, and says what is answered.
    count
        Told of each message that came, 1, and was sent, -1.
    """

    def __init__(
        self,
        association: Association,
        spool: Spool,
        answering: StoreHandler,
        count: Callable[[Association, int], None],
    ) -> None:
        self._association = association
        self._spool = spool
        self._answering = answering
        self._count = count
        self._coming: tuple[int, StoreRequest, Arriving] | None = None

    @property
    def is_coming(self) -> bool:
        """Whether a data set has begun and not ended."""
        return self._coming is not None

    def take(self, context_id: int, value: memoryview) -> bool:
        """Take a presentation data value that belongs to a C-STORE request; tell whether it does.

        Raises
        ------
        OutOfOrder
            When a command, or a fragment of another context, comes in the middle of a data set.
        """
        control, content = value[0], value[1:]
        if self._coming is None:
            is_whole_command = control & (_COMMAND | _LAST) == _COMMAND | _LAST
            if not is_whole_command or self._association.dimse.message is not None:
                return False
            self._coming = self._begun(context_id, bytes(content))
            return self._coming is not None
        expected_id, request, arriving = self._coming
        if control & _COMMAND or context_id != expected_id:
            raise OutOfOrder
        arriving.write(content)
        if control & _LAST:
            self._coming = None
            self._finish(context_id, request, arriving)
        return True

    def discard(self) -> None:
        """Remove what came of a data set that will not come to its end."""
        if self._coming is not None:
            self._coming[2].discard()
            self._coming = None

    def _begun(self, context_id: int, command: bytes) -> tuple[int, StoreRequest, Arriving] | None:
        """Return the context, request and file of a C-STORE request; ``None`` for any other command."""
        context = self._association._accepted_cx.get(context_id)
        found = read_command(command)
        if context is None or found is None or found.get(_COMMAND_FIELD) != _C_STORE_RQ:
            return None
        class_uid, instance_uid = found.get(_CLASS_UID), found.get(_INSTANCE_UID)
        message_id, data_set = found.get(_MESSAGE_ID), found.get(_DATA_SET_TYPE)
        if not (isinstance(class_uid, str) and isinstance(instance_uid, str) and isinstance(message_id, int)):
            return None
        if data_set in (None, _NO_DATA_SET) or uid_to_service_class(class_uid) is not StorageServiceClass:
            return None
        self._count(self._association, 1)
        syntax = str(context.transfer_syntax[0])
        calling = str(self._association.requestor.ae_title)
        arriving = self._spool.arriving()
        arriving.begin(file_meta(class_uid, instance_uid, syntax), syntax)
        return context_id, StoreRequest(message_id, class_uid, instance_uid, syntax, calling), arriving

    def _finish(self, context_id: int, request: StoreRequest, arriving: Arriving) -> None:
        timer = self._association.dul._idle_timer
        timer.stop()  # the peer does not idle, it waits
        try:
            arriving.close()
            answer = self._answering(request, arriving)
        finally:
            arriving.discard()
            timer.start()
        response = b"\x03" + encode_response(request, answer)
        header = struct.pack(">BxLLB", _P_DATA_TF, len(response) + 5, len(response) + 1, context_id)
        connection = self._association.dul.socket
        if connection is not None:
            connection.send(header + response)
        self._count(self._association, -1)


def read_command(command: bytes) -> Mapping[int, int | str] | None:
    """Return the elements of a command set by their element numbers; ``None`` where it is not plain.

    Parameters
    ----------
    command
        In Implicit VR Little Endian (PS3.7 6.3.1).
    """
    found: dict[int, int | str] = {}
    at, last = 0, -1
    while at < len(command):
        if len(command) < at + _ELEMENT.size:
            return None
        group, element, length = _ELEMENT.unpack_from(command, at)
        at += _ELEMENT.size
        value = command[at : at + length]
        if group != 0 or element <= last or len(value) < length:
            return None
        if element in (_CLASS_UID, _INSTANCE_UID):
            text = value.rstrip(b"\0 ")
            if not text.isascii() or not 0 < len(text) <= 64:
                return None
            found[element] = text.decode("ascii")
        elif length == 2:
            found[element] = int.from_bytes(value, "little")
        last, at = element, at + length
    return found


def encode_response(request: StoreRequest, answer: StoreResponse) -> bytes:
    """Return the command set of a C-STORE response (PS3.7 9.3.1.2)."""
    elements = [
        (_CLASS_UID, padded(request.sop_class_uid, "\0")),
        (_COMMAND_FIELD, _number(_C_STORE_RSP)),
        (_RESPONDED_TO, _number(request.message_id)),
        (_DATA_SET_TYPE, _number(_NO_DATA_SET)),
        (_STATUS, _number(answer.status)),
        (_COMMENT, padded(answer.comment[:64], " ")),  # VR LO
        (_INSTANCE_UID, padded(request.sop_instance_uid, "\0")),
    ]
    content = b"".join(_ELEMENT.pack(0, e, len(v)) + v for e, v in elements if v or e != _COMMENT)
    return _ELEMENT.pack(0, _GROUP_LENGTH, 4) + struct.pack("<L", len(content)) + content


def _number(value: int) -> bytes:
    return value.to_bytes(2, "little")
