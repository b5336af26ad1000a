"""Tables of those who may look: users, sessions, attempts to sign in, and tokens of programs."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Boolean, CheckConstraint, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from db.models import LABEL, WORD, Base, Key


class User(Base):
    """One person who may look; never removed, for verdicts and audit name them."""

    __tablename__ = "web_user"
    __table_args__ = (CheckConstraint("role IN ('reader', 'admin')", "role"),)

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    name: Mapped[str] = mapped_column(LABEL, unique=True)
    role: Mapped[str] = mapped_column(WORD)
    password_hash: Mapped[str | None] = mapped_column(Text)  # none for those whom a provider knows
    subject: Mapped[str | None] = mapped_column(Text, unique=True)  # issuer and subject of OpenID Connect
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]


class WebSession(Base):
    """One browser that is signed in, until the row is removed or too old."""

    __tablename__ = "web_session"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id), index=True)
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]


class SignIn(Base):
    """One attempt to sign in with a password; those that fail limit the next ones."""

    __tablename__ = "sign_in"
    __table_args__ = (
        Index(None, "name", "at"),
        Index(None, "source", "at"),
        Index(None, "device_hash", "at"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    name: Mapped[str] = mapped_column(LABEL)  # as typed
    source: Mapped[str] = mapped_column(LABEL)  # network address; for IPv6 the network of 64 bits
    device_hash: Mapped[str | None] = mapped_column(String(64))  # of a browser in which somebody signed in
    succeeded: Mapped[bool] = mapped_column(Boolean)


class ApiToken(Base):
    """One token by which a program reads."""

    __tablename__ = "api_token"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    name: Mapped[str] = mapped_column(LABEL, unique=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
