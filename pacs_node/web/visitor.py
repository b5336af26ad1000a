"""Who asks: kept with each request by the guard."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv6Address, ip_address, ip_network

from fastapi import HTTPException, Request
from sqlalchemy.orm import Session

from db import audit

FOLLOWS = "x-live"
"""Header of requests that pages make by themselves; none means that somebody is there."""


@dataclass(frozen=True)
class Visitor:
    """One who may look.

    Attributes
    ----------
    is_local
        Whoever is at this machine; there are no users.
    """

    name: str
    role: str
    is_local: bool = False

    @property
    def is_admin(self) -> bool:
        """Whether they may also change what the node does."""
        return self.role == "admin"


LOCAL = Visitor("local", "admin", is_local=True)
"""There are no users: whoever is at this machine could run the commands as well."""


def visitor(request: Request) -> Visitor:
    """Return who asks; the guard lets nobody else through."""
    who = request.state.visitor
    if not isinstance(who, Visitor):
        raise HTTPException(401, "Sign in first.")
    return who


def require_admin(request: Request) -> None:
    """Refuse those who may only read."""
    if not visitor(request).is_admin:
        raise HTTPException(403, "Only administrators may do this.")


def address(request: Request) -> str:
    """Return the network address from which somebody asks."""
    return request.client.host[:64] if request.client else ""


def source(request: Request) -> str:
    """Return the address, or for IPv6 its network: one attacker has all addresses of one."""
    try:
        one = ip_address(address(request).partition("%")[0])
    except ValueError:
        return address(request)
    return str(ip_network((one, 64), strict=False) if isinstance(one, IPv6Address) else one)


def record(
    session: Session, request: Request, action: str, *, study_id: int | None = None, detail: str = ""
) -> None:
    """Record what a visitor does."""
    audit.record(
        session,
        action,
        person=visitor(request).name,
        address=address(request),
        at=datetime.now(UTC),
        study_id=study_id,
        detail=detail,
    )


def secret_hash(token: str) -> str:
    """Return what is kept of a random token: who reads the database cannot use it."""
    return hashlib.sha256(token.encode()).hexdigest()


def form_token(secret: str) -> str:
    """Return the token of all forms of one browser; another site can neither read nor guess it."""
    return hmac.new(secret.encode(), b"form", hashlib.sha256).hexdigest()
