"""The response that a request waits for: nothing else counts (PS3.7 9.3 and 10.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pacs_node.network import command_set
from pacs_node.network.command_set import CommandSet

_PENDING = (0xFF00, 0xFF01)  # PS3.4 C.4.1.1.4: more responses follow


@dataclass(frozen=True)
class ExpectedResponse:
    """What tells the response to a request from any other message."""

    context_id: int
    command_field: int
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str

    @classmethod
    def to(cls, primitive: Any, context_id: int, command_field: int) -> ExpectedResponse:
        """Return what is expected after a request, given as a primitive of pynetdicom."""

        def uid(*names: str) -> str:
            found = (getattr(primitive, name, None) for name in names)
            return next((str(one) for one in found if one), "")

        return cls(
            context_id,
            command_field | command_set.RESPONSE,
            primitive.MessageID,
            uid("AffectedSOPClassUID", "RequestedSOPClassUID"),
            uid("AffectedSOPInstanceUID", "RequestedSOPInstanceUID"),
        )

    def difference(self, context_id: int, found: CommandSet) -> str:
        """Return what in a response is not that of the request; empty where it is its response."""
        if context_id != self.context_id:
            return f"came on presentation context {context_id}, not {self.context_id}"
        exact = {
            "Command Field": (command_set.COMMAND_FIELD, self.command_field),
            "Message ID Being Responded To": (command_set.RESPONDED_TO, self.message_id),
        }
        # These may be left out, as in PS3.7 9.3.1.2
        optional = {
            "Affected SOP Class UID": (command_set.CLASS_UID, self.sop_class_uid),
            "Affected SOP Instance UID": (command_set.INSTANCE_UID, self.sop_instance_uid),
        }
        for name, (element, wanted) in exact.items():
            if found.get(element) != wanted:
                return f"has another {name}"
        for name, (element, uid) in optional.items():
            if uid and found.get(element, uid) != uid:
                return f"has another {name}"
        return ""


def is_final(found: CommandSet) -> bool:
    """Tell whether no more responses follow this one."""
    return found.get(command_set.STATUS) not in _PENDING
