"""Attempts to sign in, as rows: too many failures make the next ones wait, over restarts and processes.

Failures count per name, per network address, and per browser. A browser in which a user signed in before has
a cookie that tells it from strangers (OWASP, "device cookie"). Failures of strangers never make it wait:
nobody can lock out others, not even from an address that they share.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, exists, func, insert, select, text, update
from sqlalchemy.orm import Session

from db.accounts import SignIn
from db.queue import is_postgresql

PAUSE = timedelta(minutes=15)
"""How long a failure counts."""

DEVICE_LIFE = timedelta(days=90)
"""How long a browser is known after its user signed in."""

MOST_OF_NAME = 10
MOST_OF_SOURCE = 30
MOST_OF_DEVICE = 10
_LOCK = 0x7061_6374  # any number; the same in every process


def begin(session: Session, name: str, source: str, device_hash: str | None, now: datetime) -> int | None:
    """Record an attempt as failed, before the password is checked; ``None`` if it must wait."""
    if is_postgresql(session):  # else attempts beside each other would not see each other
        session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    session.execute(delete(SignIn).where(SignIn.at <= now - DEVICE_LIFE))
    is_known = device_hash is not None and _is_known(session, name, device_hash, now)
    if is_known and device_hash is not None:
        must_wait = _failures(session, now, SignIn.device_hash == device_hash) >= MOST_OF_DEVICE
    else:
        must_wait = _strangers_wait(session, name, source, now)
    if must_wait:
        return None
    values = {"at": now, "name": name, "source": source, "succeeded": False}
    device = device_hash if is_known else None
    made = insert(SignIn).values({**values, "device_hash": device}).returning(SignIn.id)
    return session.scalars(made).one()


def succeed(session: Session, attempt: int, device_hash: str) -> None:
    """Record that the password was right, and in which browser."""
    changes = {"succeeded": True, "device_hash": device_hash}
    session.execute(update(SignIn).where(SignIn.id == attempt).values(changes))


def forget_failures(session: Session, name: str) -> None:
    """Let a user try again at once."""
    session.execute(delete(SignIn).where(SignIn.name == name, ~SignIn.succeeded))


def _strangers_wait(session: Session, name: str, source: str, now: datetime) -> bool:
    of_name, of_source = SignIn.name == name, SignIn.source == source
    return (
        _failures(session, now, of_name, SignIn.device_hash.is_(None)) >= MOST_OF_NAME
        or _failures(session, now, of_source, SignIn.device_hash.is_(None)) >= MOST_OF_SOURCE
    )


def _is_known(session: Session, name: str, device_hash: str, now: datetime) -> bool:
    of_device = (SignIn.device_hash == device_hash) & (SignIn.at > now - DEVICE_LIFE)
    return bool(session.scalar(select(exists().where(of_device, SignIn.name == name, SignIn.succeeded))))


def _failures(session: Session, now: datetime, *conditions: Any) -> int:
    recent = (SignIn.at > now - PAUSE, ~SignIn.succeeded)
    return session.scalar(select(func.count()).select_from(SignIn).where(*recent, *conditions)) or 0
