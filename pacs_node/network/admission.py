"""Who may associate: the rules, and the places that there are (PS3.8 9.3.4)."""

from __future__ import annotations

import math
import struct
import threading
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from pacs_node.config_types import Network
from pacs_node.errors import ProtocolError
from pacs_node.network.associate_pdu import APPLICATION_CONTEXT, AssociationRequest

_PERMANENT, _TRANSIENT = 1, 2  # results
_BY_USER, _BY_ACSE, _BY_PRESENTATION = 1, 2, 3  # sources


@dataclass(frozen=True)
class Refusal:
    """Why a peer gets no association: what it is sent, and what the log says.

    Attributes
    ----------
    pdu
        An A-ASSOCIATE-RJ or A-ABORT PDU.
    rule
        A half sentence that names the rule, and the key that changes it where one does.
    """

    pdu: bytes
    rule: str

    @classmethod
    def rejected(cls, result: int, source: int, reason: int, rule: str) -> Refusal:
        """Return one with an A-ASSOCIATE-RJ PDU."""
        return cls(struct.pack(">BxLxBBB", 3, 4, result, source, reason), rule)

    @classmethod
    def aborted(cls, error: ProtocolError) -> Refusal:
        """Return one with an A-ABORT PDU."""
        return cls(struct.pack(">BxLxxBB", 7, 4, error.source, error.reason), str(error))


@dataclass(frozen=True)
class Rules:
    """What a request for an association must comply with.

    Attributes
    ----------
    ae_title
        The node's own, which counts if `require_called_ae_title`.
    addresses
        The networks from which peers may call; empty for any.
    calling_ae_titles
        Those that may call, each with the networks from which it may, empty for any; empty for any title.
    most_associations, most_per_address
        At once, in this process.
    request_seconds
        From a connection to the end of its request.
    """

    ae_title: str
    require_called_ae_title: bool
    addresses: tuple[Network, ...]
    calling_ae_titles: Mapping[str, tuple[Network, ...]]
    most_associations: int
    most_per_address: int
    request_seconds: float

    def refusal(self, request: AssociationRequest, address: str) -> Refusal | None:
        """Return why a request from an address is rejected; ``None`` where it may have an association."""
        if not request.protocol_version & 1:
            return Refusal.rejected(
                _PERMANENT, _BY_ACSE, 2, f"protocol version {request.protocol_version} is not supported"
            )
        if request.application_context != APPLICATION_CONTEXT:
            rule = "its Application Context Name is not that of DICOM"
            return Refusal.rejected(_PERMANENT, _BY_USER, 2, rule)
        stranger = self._stranger(request, address)
        if stranger is not None:
            reason, rule = stranger
            return Refusal.rejected(_PERMANENT, _BY_USER, reason, rule)
        if not request.contexts:
            return Refusal.rejected(_PERMANENT, _BY_USER, 1, "it proposes no presentation context")
        return None

    def _stranger(self, request: AssociationRequest, address: str) -> tuple[int, str] | None:
        """Return the reason and the rule by which nobody calls so from there; ``None`` for who may."""
        if self.require_called_ae_title and request.called_ae_title != self.ae_title:
            return 7, "it calls another AE title ([node] ae_title, [receive] require_called_ae_title)"
        if not _is_in(address, self.addresses):
            return 1, "its address is not listed ([receive] addresses)"
        if self.calling_ae_titles and request.calling_ae_title not in self.calling_ae_titles:
            return 3, "its AE title is not listed ([receive] calling_ae_titles)"
        if not _is_in(address, self.calling_ae_titles.get(request.calling_ae_title, ())):
            return 3, "its AE title has another address ([receive] calling_ae_titles)"
        return None


class Places:
    """The associations that are open in this process, by the address of the peer."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        """How many there are."""
        return self._taken.total()

    def take(self, address: str) -> Refusal | None:
        """Take a place; return why there is none."""
        rules = self._rules
        with self._lock:
            if self._taken.total() >= rules.most_associations:
                rule = "too many associations ([receive] max_associations)"
            elif self._taken[address] >= rules.most_per_address:
                rule = "too many associations of this address ([receive] address_share)"
            else:
                self._taken[address] += 1
                return None
        return Refusal.rejected(_TRANSIENT, _BY_PRESENTATION, 2, rule)  # local limit exceeded

    def free(self, address: str) -> None:
        """Give a place back."""
        with self._lock:
            self._taken[address] -= 1
            if self._taken[address] <= 0:
                del self._taken[address]


def _is_in(address: str, networks: Collection[Network]) -> bool:
    """Tell whether an address is in one of some networks; where there are none, it is."""
    if not networks:
        return True
    one: Any = ip_address(address.partition("%")[0])
    plain = getattr(one, "ipv4_mapped", None) or one  # IPv4 that came to a socket of IPv6
    return any(plain in each for each in networks)


def share(places: int, part: float) -> int:
    """Return how many of some places a part of them is, at least one."""
    return max(1, math.ceil(places * part - 1e-9))
