"""Until when the certificates of the settings are valid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from pacs_node.config import Settings

AHEAD = timedelta(days=30)


@dataclass(frozen=True)
class Expiry:
    """A certificate that is not valid for long.

    Attributes
    ----------
    key
        The key of the settings that names its file.
    subject
        Whose it is.
    """

    key: str
    path: Path
    subject: str
    ends_at: datetime

    def told(self, at: datetime) -> str:
        """Return a sentence that says so."""
        said = "ends" if self.ends_at > at else "ended"
        return (
            f"The certificate of {self.subject} in {self.path} ({self.key}) {said} on "
            f"{self.ends_at.astimezone():%Y-%m-%d}; renew it."
        )


def expiring(settings: Settings, at: datetime) -> list[Expiry]:
    """Return what ends within `AHEAD`, or has ended; of authorities, not those that ended long ago.

    A file that cannot be read is left out: whoever uses it says so.
    """
    found = []
    for key, path in _files(settings):
        for one in _certificates(path):
            ends_at = one.not_valid_after_utc
            is_old = key == "[tls] authorities" and ends_at < at - AHEAD
            if ends_at < at + AHEAD and not is_old:
                found.append(Expiry(key, path, one.subject.rfc4514_string() or "nobody", ends_at))
    return found


def _files(settings: Settings) -> Iterator[tuple[str, Path]]:
    named = {
        "[tls] certificate": settings.tls.certificate,
        "[tls] authorities": settings.tls.authorities,
        "[web] certificate": settings.web.certificate,
    }
    yield from ((key, path) for key, path in named.items() if path is not None)


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):
        return []
