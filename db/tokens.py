"""Tokens by which programs read; only their hashes are kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from db.accounts import ApiToken


@dataclass(frozen=True)
class ListedToken:
    """One token as administrators see it."""

    name: str
    created_at: datetime
    revoked_at: datetime | None


def add(session: Session, name: str, token_hash: str, at: datetime) -> None:
    """Add a token."""
    session.execute(insert(ApiToken).values(name=name, token_hash=token_hash, created_at=at))


def exists(session: Session, name: str) -> bool:
    """Tell whether a name was ever used: the audit names tokens."""
    return session.scalar(select(ApiToken.id).where(ApiToken.name == name)) is not None


def holder(session: Session, token_hash: str) -> str | None:
    """Return the name of a token; ``None`` if it is unknown or revoked."""
    is_valid = (ApiToken.token_hash == token_hash) & ApiToken.revoked_at.is_(None)
    return session.scalar(select(ApiToken.name).where(is_valid))


def revoke(session: Session, name: str, at: datetime) -> bool:
    """Let a token be of no use any more; tell whether there is one of this name."""
    first = update(ApiToken).where(ApiToken.name == name, ApiToken.revoked_at.is_(None))
    session.execute(first.values(revoked_at=at))
    return exists(session, name)


def listed(session: Session) -> list[ListedToken]:
    """Return all tokens by name."""
    rows = session.execute(select(ApiToken.name, ApiToken.created_at, ApiToken.revoked_at).order_by("name"))
    return [ListedToken(*row) for row in rows]
