"""Passwords, kept as Argon2id hashes (RFC 9106)."""

from __future__ import annotations

import threading
import unicodedata
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from pacs_node.errors import UserError

SHORTEST, LONGEST = 12, 1024  # characters

_AT_ONCE = 2  # each takes 64 MiB: many attempts must not take all memory
_hasher = PasswordHasher()
_turn = threading.BoundedSemaphore(_AT_ONCE)


def hashed(password: str) -> str:
    """Return the hash to keep.

    Raises
    ------
    UserError
        If the password is too short or too long; there is no other rule (NIST SP 800-63B).
    """
    if not SHORTEST <= len(_normal(password)) <= LONGEST:
        raise UserError(f"A password has at least {SHORTEST} characters; a few words do well.")
    with _turn:
        return _hasher.hash(_normal(password))


def is_right(password: str, kept: str | None) -> bool:
    """Tell whether a password is right; takes as long for a user that does not exist."""
    if len(password) > LONGEST:
        return False
    try:
        with _turn:
            _hasher.verify(kept or _nobodys(), _normal(password))
    except (VerificationError, InvalidHashError):
        return False
    return kept is not None


@cache
def _nobodys() -> str:
    return _hasher.hash("nobody has this password")


def _normal(password: str) -> str:
    """Return the same text for the same password, whichever keyboard composed its letters."""
    return unicodedata.normalize("NFKC", password)
