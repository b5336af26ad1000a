"""Users of the reading list, and the browsers in which they are signed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, exists, func, insert, select, update
from sqlalchemy.orm import Session

from db.accounts import SignIn, User, WebSession

ROLES = ("reader", "admin")
_TOUCH = timedelta(minutes=1)  # a session is not written anew for each request


@dataclass(frozen=True, kw_only=True)
class KnownUser:
    """One user."""

    id: int
    name: str
    role: str
    password_hash: str | None
    subject: str | None
    is_disabled: bool


@dataclass(frozen=True, kw_only=True)
class ListedUser:
    """One user as administrators see them."""

    name: str
    role: str
    is_disabled: bool
    is_of_provider: bool
    signed_in_at: datetime | None
    sessions: int


def any_exist(session: Session) -> bool:
    """Tell whether there ever was a user: one who is disabled counts."""
    return bool(session.scalar(select(exists().select_from(User))))


def named(session: Session, name: str) -> KnownUser | None:
    """Return a user by name."""
    return _known(session.scalars(select(User).where(User.name == name)).one_or_none())


def of_subject(session: Session, subject: str) -> KnownUser | None:
    """Return a user by what a provider calls them."""
    return _known(session.scalars(select(User).where(User.subject == subject)).one_or_none())


def _known(row: User | None) -> KnownUser | None:
    if row is None:
        return None
    return KnownUser(
        id=row.id,
        name=row.name,
        role=row.role,
        password_hash=row.password_hash,
        subject=row.subject,
        is_disabled=row.disabled_at is not None,
    )


def add(
    session: Session,
    name: str,
    role: str,
    at: datetime,
    *,
    password_hash: str | None = None,
    subject: str | None = None,
) -> None:
    """Add a user, who has a password or is known to a provider."""
    values = {"name": name, "role": role, "password_hash": password_hash, "subject": subject}
    session.execute(insert(User).values({**values, "created_at": at}))


def set_password(session: Session, user_id: int, password_hash: str) -> None:
    """Set a new password and end all sessions."""
    session.execute(update(User).where(User.id == user_id).values(password_hash=password_hash))
    end_sessions(session, user_id)


def set_role(session: Session, user_id: int, role: str) -> None:
    """Change what a user may do; it counts from the next request."""
    session.execute(update(User).where(User.id == user_id).values(role=role))


def disable(session: Session, user_id: int, at: datetime) -> None:
    """Let a user sign in no more, and end all sessions."""
    session.execute(update(User).where(User.id == user_id).values(disabled_at=at))
    end_sessions(session, user_id)


def enable(session: Session, user_id: int) -> None:
    """Let a user sign in again."""
    session.execute(update(User).where(User.id == user_id).values(disabled_at=None))


def listed(session: Session) -> list[ListedUser]:
    """Return all users by name."""
    last = select(func.max(SignIn.at)).where(SignIn.name == User.name, SignIn.succeeded).scalar_subquery()
    open_ = select(func.count()).where(WebSession.user_id == User.id).scalar_subquery()
    return [
        ListedUser(
            name=row.name,
            role=row.role,
            is_disabled=row.disabled_at is not None,
            is_of_provider=row.subject is not None,
            signed_in_at=signed_in_at,
            sessions=sessions,
        )
        for row, signed_in_at, sessions in session.execute(select(User, last, open_).order_by(User.name))
    ]


@dataclass(frozen=True)
class SessionLimits:
    """How long a session lasts without a request, and at all."""

    idle: timedelta
    whole: timedelta


def begin_session(
    session: Session, user_id: int, token_hash: str, now: datetime, limits: SessionLimits
) -> None:
    """Sign a browser in; forget the sessions that are over."""
    is_over = (WebSession.started_at <= now - limits.whole) | (WebSession.seen_at <= now - limits.idle)
    session.execute(delete(WebSession).where(is_over))
    values = {"user_id": user_id, "token_hash": token_hash, "started_at": now, "seen_at": now}
    session.execute(insert(WebSession).values(values))


def of_session(
    session: Session, token_hash: str, now: datetime, limits: SessionLimits
) -> tuple[KnownUser, bool] | None:
    """Return whose session it is and whether `touch` is due; ``None`` where it is over or unknown."""
    asked = select(User, WebSession.seen_at).join(WebSession, WebSession.user_id == User.id)
    is_valid = (WebSession.started_at > now - limits.whole) & (WebSession.seen_at > now - limits.idle)
    found = session.execute(
        asked.where(WebSession.token_hash == token_hash, is_valid, User.disabled_at.is_(None))
    ).one_or_none()
    if found is None:
        return None
    user = _known(found[0])
    return None if user is None else (user, now - found[1] >= min(_TOUCH, limits.idle / 4))


def touch(session: Session, token_hash: str, now: datetime) -> None:
    """Record that a session is used."""
    session.execute(update(WebSession).where(WebSession.token_hash == token_hash).values(seen_at=now))


def end_session(session: Session, token_hash: str) -> None:
    """Sign a browser out."""
    session.execute(delete(WebSession).where(WebSession.token_hash == token_hash))


def end_sessions(session: Session, user_id: int) -> Sequence[int]:
    """Sign a user out everywhere; return the sessions that ended."""
    ended = delete(WebSession).where(WebSession.user_id == user_id).returning(WebSession.id)
    return session.scalars(ended).all()
