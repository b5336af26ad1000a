"""Command sets: those that come are read within bounds, responses are written (PS3.7 6.3.1 and Annex E)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from pacs_node.dicom.part10 import padded

LARGEST = 2**16
"""Bytes; those that the Standard defines have less than 1,000."""

# Elements
CLASS_UID, REQUESTED_CLASS_UID, COMMAND_FIELD, MESSAGE_ID = 0x0002, 0x0003, 0x0100, 0x0110
RESPONDED_TO, DATA_SET_TYPE, STATUS, COMMENT = 0x0120, 0x0800, 0x0900, 0x0902
INSTANCE_UID, REQUESTED_INSTANCE_UID = 0x1000, 0x1001
_GROUP_LENGTH = 0x0000
_UIDS = (CLASS_UID, REQUESTED_CLASS_UID, INSTANCE_UID, REQUESTED_INSTANCE_UID)
_ELEMENT = struct.Struct("<HHL")

# Values of the Command Field
C_STORE_RQ, C_ECHO_RQ, N_EVENT_REPORT_RQ, N_ACTION_RQ, C_CANCEL_RQ = 0x0001, 0x0030, 0x0100, 0x0130, 0x0FFF
RESPONSE = 0x8000
NO_DATA_SET = 0x0101

CommandSet = Mapping[int, int | str]
"""Elements by number: UIDs, and whatever has 16 bits."""


def read_command(command: bytes) -> CommandSet | None:
    """Return the elements of a command set; ``None`` where it does not parse.

    Parameters
    ----------
    command
        In Implicit VR Little Endian.
    """
    found: dict[int, int | str] = {}
    at = 0
    while at < len(command):
        if len(command) < at + _ELEMENT.size:
            return None
        group, element, length = _ELEMENT.unpack_from(command, at)
        at += _ELEMENT.size
        value = command[at : at + length]
        if group != 0:
            break  # Orthanc lets the identifier of a failed C-GET follow within the command set
        if len(value) < length:
            return None
        if element in _UIDS:
            text = value.strip(b"\0 ")
            if not text.isascii() or len(text) > 64:
                return None
            if text:
                found[element] = text.decode("ascii")
        elif length == 2:
            found[element] = int.from_bytes(value, "little")
        at += length
    return found


def encode_response(request: CommandSet, status: int, comment: str = "") -> bytes:
    """Return the command set of the response to a request, without data set."""
    class_uid = request.get(CLASS_UID) or request.get(REQUESTED_CLASS_UID) or ""
    instance_uid = request.get(INSTANCE_UID) or request.get(REQUESTED_INSTANCE_UID) or ""
    elements = [
        (CLASS_UID, padded(str(class_uid), "\0")),
        (COMMAND_FIELD, _number(int(request[COMMAND_FIELD]) | RESPONSE)),
        (RESPONDED_TO, _number(int(request[MESSAGE_ID]))),
        (DATA_SET_TYPE, _number(NO_DATA_SET)),
        (STATUS, _number(status)),
        (COMMENT, padded(comment[:64], " ")),  # VR LO
        (INSTANCE_UID, padded(str(instance_uid), "\0")),
    ]
    content = b"".join(_ELEMENT.pack(0, e, len(v)) + v for e, v in elements if v)
    return _ELEMENT.pack(0, _GROUP_LENGTH, 4) + struct.pack("<L", len(content)) + content


def _number(value: int) -> bytes:
    return value.to_bytes(2, "little")
