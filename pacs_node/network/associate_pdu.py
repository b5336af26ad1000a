"""A-ASSOCIATE-RQ and -AC, read within bounds (PS3.8 9.3.2 and 9.3.3, PS3.7 Annex D.3.3).

Harmless oddities of real devices are borne with, as DCMTK does: NUL or blank AE titles, padded UIDs, unknown
or empty items, a version name of any length. What cannot be read is a `ProtocolError`.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from pacs_node.errors import ProtocolError

LARGEST = 2**19
"""Bytes of a PDU; 128 presentation contexts with every standard transfer syntax have 210,000."""

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
NO_AE_TITLE = "(none)"
"""What stands for a blank AE title, in logs and in the database."""

_MOST_ITEMS = 1024
_MOST_CONTEXTS, _MOST_SYNTAXES = 128, 256  # odd numbers from 1 to 255; far more than there are
_MOST_PDU_BY_DEFAULT, _LEAST_PDU = 16_384, 1024
_FIXED, _ITEM = 68, struct.Struct(">BxH")
_APPLICATION, _CONTEXT_RQ, _CONTEXT_AC, _USER = 0x10, 0x20, 0x21, 0x50
_ABSTRACT, _TRANSFER = 0x30, 0x40
_MOST_LENGTH, _CLASS_UID, _ROLE, _VERSION_NAME = 0x51, 0x52, 0x54, 0x55
_INVALID_PARAMETER = (2, 6)  # source and reason, PS3.8 9.3.8


@dataclass(frozen=True)
class ProposedContext:
    """A presentation context of a request."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True)
class UserInformation:
    """What either side says of itself (PS3.7 D.3.3); roles are SCU and SCP by SOP Class UID."""

    largest_pdu: int = _MOST_PDU_BY_DEFAULT
    implementation_class_uid: str = ""
    implementation_version_name: str = ""
    roles: Mapping[str, tuple[bool, bool]] = field(default_factory=dict)


@dataclass(frozen=True)
class AssociationRequest:
    """What an A-ASSOCIATE-RQ asks for; AE titles are printable ASCII and never empty."""

    protocol_version: int
    called_ae_title: str
    calling_ae_title: str
    application_context: str
    contexts: tuple[ProposedContext, ...]
    user: UserInformation


@dataclass(frozen=True)
class ContextResult:
    """What became of a presentation context (PS3.8 9.3.3.2)."""

    context_id: int
    result: int
    transfer_syntax: str


@dataclass(frozen=True)
class AssociationAcceptance:
    """What an A-ASSOCIATE-AC grants."""

    contexts: tuple[ContextResult, ...]
    user: UserInformation


def read_request(body: bytes) -> AssociationRequest:
    """Read an A-ASSOCIATE-RQ PDU without its header of 6 bytes.

    Raises
    ------
    ProtocolError
    """
    items = _variable_items(body)
    contexts: dict[int, ProposedContext] = {}
    for value in (value for kind, value in items if kind == _CONTEXT_RQ):
        context = _proposed(value)
        contexts.setdefault(context.context_id, context)  # of two with one number, the first one counts
    if len(contexts) > _MOST_CONTEXTS:
        raise _invalid(f"more than {_MOST_CONTEXTS} presentation contexts")
    return AssociationRequest(
        protocol_version=int.from_bytes(body[:2], "big"),
        called_ae_title=_ae_title(body[4:20]),
        calling_ae_title=_ae_title(body[20:36]),
        application_context=next((_uid(value) for kind, value in items if kind == _APPLICATION), ""),
        contexts=tuple(contexts.values()),
        user=_user_information(items),
    )


def read_acceptance(body: bytes, proposed: Mapping[int, Collection[str]]) -> AssociationAcceptance:
    """Read an A-ASSOCIATE-AC PDU without its header of 6 bytes.

    Parameters
    ----------
    proposed
        Transfer syntax UIDs that were proposed, by presentation context ID.

    Raises
    ------
    ProtocolError
        Also when it answers what was not proposed. A context that it leaves out counts as rejected.
    """
    items = _variable_items(body)
    contexts = [_result(value) for kind, value in items if kind == _CONTEXT_AC]
    numbers = [one.context_id for one in contexts]
    if len(set(numbers)) < len(numbers) or not set(numbers) <= set(proposed):
        raise _invalid("the A-ASSOCIATE-AC answers other presentation contexts than were proposed")
    for one in contexts:
        if one.result == 0 and one.transfer_syntax not in proposed[one.context_id]:
            raise _invalid("the A-ASSOCIATE-AC accepts a transfer syntax that was not proposed")
    return AssociationAcceptance(tuple(contexts), _user_information(items))


def _variable_items(body: bytes) -> list[tuple[int, bytes]]:
    if len(body) < _FIXED:
        raise _invalid("an A-ASSOCIATE PDU is too short")
    return list(_items(body[_FIXED:]))


def _items(content: bytes) -> Iterator[tuple[int, bytes]]:
    at = number = 0
    while at + _ITEM.size <= len(content):
        kind, length = _ITEM.unpack_from(content, at)
        at += _ITEM.size + length
        number += 1
        if at > len(content):
            raise _invalid("an item is longer than what holds it")
        if number > _MOST_ITEMS:
            raise _invalid(f"more than {_MOST_ITEMS} items")
        yield kind, content[at - length : at]
    if content[at:].strip(b"\0"):
        raise _invalid("bytes are left over after the last item")


def _proposed(value: bytes) -> ProposedContext:
    context_id, inside = _context_id(value), list(_items(value[4:]))
    abstract = next((_uid(content) for kind, content in inside if kind == _ABSTRACT), "")
    syntaxes = dict.fromkeys(_uid(content) for kind, content in inside if kind == _TRANSFER)
    if len(syntaxes) > _MOST_SYNTAXES:
        raise _invalid(f"more than {_MOST_SYNTAXES} transfer syntaxes in a presentation context")
    return ProposedContext(context_id, abstract or "?", tuple(filter(None, syntaxes)) or ("?",))


def _result(value: bytes) -> ContextResult:
    context_id = _context_id(value)
    result = value[2]
    if result > 4:
        raise _invalid("the result of a presentation context is not known")
    if result:  # its transfer syntax means nothing, and need not be there
        return ContextResult(context_id, result, "")
    syntaxes = [_uid(content) for kind, content in _items(value[4:]) if kind == _TRANSFER]
    if len(syntaxes) != 1:
        raise _invalid("an accepted presentation context has not one transfer syntax")
    return ContextResult(context_id, result, syntaxes[0])


def _context_id(value: bytes) -> int:
    if len(value) < 4:
        raise _invalid("a presentation context is too short")
    if value[0] % 2 == 0:
        raise _invalid(f"presentation context ID {value[0]} is no odd number (PS3.8 9.3.2.2)")
    return value[0]


def _user_information(items: Collection[tuple[int, bytes]]) -> UserInformation:
    largest, class_uid, version_name = _MOST_PDU_BY_DEFAULT, "", ""
    roles: dict[str, tuple[bool, bool]] = {}
    for kind, value in (one for outer, content in items if outer == _USER for one in _items(content)):
        if kind == _MOST_LENGTH and len(value) >= 4:
            largest = int.from_bytes(value[:4], "big")
        elif kind == _CLASS_UID:
            class_uid = _uid(value)
        elif kind == _VERSION_NAME:
            version_name = _printable(value)[:16]
        elif kind == _ROLE and len(value) == 4 + int.from_bytes(value[:2], "big"):
            roles[_uid(value[2:-2])] = (value[-2] == 1, value[-1] == 1)
    roles.pop("", None)
    # 0 means any size; less than a command needs is nothing that could be served
    return UserInformation(max(largest, _LEAST_PDU) if largest else 0, class_uid, version_name, roles)


def _ae_title(value: bytes) -> str:
    return _printable(value) or NO_AE_TITLE


def _uid(value: bytes) -> str:
    """Return a UID without its padding; of what is none, something printable."""
    return _printable(value)[:64]


def _printable(value: bytes) -> str:
    text = value.strip(b"\0 ").decode("ascii", "replace")
    return "".join(c if " " <= c <= "~" and c != "\\" else "?" for c in text)


def _invalid(why: str) -> ProtocolError:
    return ProtocolError(why, *_INVALID_PARAMETER)
