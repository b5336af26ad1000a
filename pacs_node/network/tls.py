"""TLS below the upper layer (PS3.15 B.12): who is trusted, and connections that are used like plain ones.

The profile is that of BCP 195 (RFC 8996, RFC 9325): TLS 1.3, or 1.2 with four cipher suites; nothing older.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pacs_node.config_access import TlsSettings
from pacs_node.errors import TlsUnusable

# RFC 9325 4.2. Level 2 wants RSA keys of 2048 bits, and signatures better than SHA-1.
_SUITES = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:"
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:@SECLEVEL=2"
)
_VERIFY = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}
_LOOK_SECONDS = 1.0  # between looks at the files
_CERTIFICATE, _KEY = b"-----BEGIN CERTIFICATE-----", b"PRIVATE KEY-----"


class TlsSocket(ssl.SSLSocket):
    """A connection over TLS, with those flags and errors of plain sockets that the upper layer uses."""

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Receive; where nothing can be read without waiting, and that is not allowed, as a socket does."""
        with self._as_asked(flags):
            return super().recv(buflen)

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """Receive what one record holds, at most; who wants all of something asks again."""
        with self._as_asked(flags):
            return super().recv_into(buffer, nbytes)

    def send(self, data: Any, flags: int = 0) -> int:
        """Send."""
        try:
            with self._as_asked(flags):
                return super().send(data)
        except BlockingIOError:
            raise
        except OSError:
            self._hear_why()
            raise

    def _hear_why(self) -> None:
        """Keep the alert with which a peer closed, if it is here: by TLS 1.3 it may follow the handshake."""
        try:
            self.recv(1, socket.MSG_DONTWAIT)
        except ssl.SSLError as error:
            self.failure = self.failure or error
        except OSError:
            return

    def shutdown(self, how: int) -> None:
        """Say that nothing more is sent, without waiting for an answer, and end the connection below."""
        if how != socket.SHUT_RD:
            with suppress(OSError, ValueError), self._as_asked(socket.MSG_DONTWAIT):
                self.unwrap()
        super().shutdown(how)

    @contextmanager
    def _as_asked(self, flags: int) -> Iterator[None]:
        seconds = self.gettimeout()
        may_wait = not flags & socket.MSG_DONTWAIT
        if not may_wait:
            self.settimeout(0)
        try:
            yield
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            raise BlockingIOError from error
        finally:
            if not may_wait and self.fileno() >= 0:
                self.settimeout(seconds)

    failure: OSError | None = None  # why the handshake of a client failed

    def connect(self, addr: Any) -> None:
        """Connect, and make the handshake; `failure` tells which of the two failed."""
        super().connect(addr)
        try:
            self.do_handshake()
        except OSError as error:
            self.failure = error
            raise


class Connecting:
    """What pynetdicom makes one connection with, in place of a context; it keeps why that failed.

    Raises
    ------
    TlsUnusable
    """

    def __init__(self, settings: TlsSettings, host: str) -> None:
        self._context, self._host = client_context(settings), host
        self._connection: TlsSocket | None = None

    @property
    def failure(self) -> str:
        """Half a sentence that says why the handshake failed; empty where it did not."""
        error = self._connection.failure if self._connection else None
        return failure(error, self._host) if error else ""

    def wrap_socket(self, plain: socket.socket, *, server_side: bool, server_hostname: str) -> TlsSocket:
        """Return a connection that is not yet made."""
        assert not server_side
        made = self._context.wrap_socket(
            plain, server_hostname=server_hostname, do_handshake_on_connect=False
        )
        assert isinstance(made, TlsSocket)
        self._connection = made
        return made


def is_decrypted(connection: socket.socket) -> bool:
    """Tell whether something was received that the system does not know of any more."""
    return isinstance(connection, TlsSocket) and connection.pending() > 0


class TlsContext:
    """What new connections over TLS are made with; it follows its files, without a restart.

    Parameters
    ----------
    build
        Makes it from the files as they are.
    settings
        With the files.
    on_change
        Told of each change of the files: nothing where new connections use them, else why they cannot be used
        and the earlier ones still are.

    Raises
    ------
    TlsUnusable
    """

    def __init__(
        self,
        build: Callable[[TlsSettings], ssl.SSLContext],
        settings: TlsSettings,
        on_change: Callable[[str], None] = lambda _why: None,
    ) -> None:
        self._build = build
        self._settings = settings
        self._on_change = on_change
        self._lock = threading.Lock()
        self._state = self._seen()
        self._context = build(settings)
        self._looked_at = time.monotonic()

    def current(self) -> ssl.SSLContext:
        """Return it, of the files as they were within this second."""
        with self._lock:
            if time.monotonic() - self._looked_at >= _LOOK_SECONDS:
                self._look()
                self._looked_at = time.monotonic()
            return self._context

    def _look(self) -> None:
        state = self._seen()
        if state == self._state:
            return
        self._state = state
        try:
            self._context = self._build(self._settings)
        except TlsUnusable as error:  # perhaps one of two files that are replaced
            self._on_change(str(error))
        else:
            self._on_change("")

    def _seen(self) -> list[tuple[int, ...]]:
        return [_identity(path) for path in self._settings.files.values()]


def _identity(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def server_context(settings: TlsSettings) -> ssl.SSLContext:
    """Return what is needed to take connections.

    Raises
    ------
    TlsUnusable
        When a file is missing, cannot be read, or is not what its key says.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, settings)
    context.verify_mode = _VERIFY[settings.client_certificates]
    context.num_tickets = 0  # each connection is checked anew, whichever process takes it
    context.options |= ssl.OP_NO_TICKET | ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


def client_context(settings: TlsSettings) -> ssl.SSLContext:
    """Return what is needed to connect: peers must show a certificate for the host that is connected to.

    Raises
    ------
    TlsUnusable
        Also when no authorities are named.
    """
    if settings.authorities is None:
        raise TlsUnusable(
            "TLS needs [tls] authorities: the certificates that those of peers are checked with."
        )
    return _context(ssl.PROTOCOL_TLS_CLIENT, settings)


def _context(kind: int, settings: TlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(kind)
    context.sslsocket_class = TlsSocket
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_SUITES)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a peer's own certificate may be listed
    if settings.certificate is not None and settings.key is not None:
        _load_own(context, settings.certificate, settings.key)
    if settings.authorities is not None:
        _load_authorities(context, settings.authorities)
    return context


def _load_own(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    _require("certificate", certificate, _CERTIFICATE, "x509")
    _require("key", key, _KEY, "pkey")

    def password() -> str:
        raise TlsUnusable(
            f"[tls] key {key} has a password; write it without one: openssl pkey -in {key} -out NEW_FILE."
        )

    try:
        context.load_cert_chain(certificate, key, password)
    except ssl.SSLError as error:
        reason = error.reason or "it cannot be read"
        if reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            said = f"[tls] key {key} does not belong to the first certificate in {certificate}"
        elif reason in ("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"):
            said = f"[tls] certificate {certificate} is too weak: make it with RSA of 2048 bits, and SHA-256"
        else:
            said = f"[tls] certificate {certificate} and key {key} cannot be used ({reason})"
        raise TlsUnusable(f"{said}.") from error


def _load_authorities(context: ssl.SSLContext, authorities: Path) -> None:
    _require("authorities", authorities, _CERTIFICATE, "x509")
    try:
        context.load_verify_locations(authorities)
    except ssl.SSLError as error:
        raise TlsUnusable(f"[tls] authorities {authorities} cannot be used ({error.reason}).") from error


def _require(name: str, path: Path, mark: bytes, tool: str) -> None:
    """Check that a file can be read and has what its key says."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TlsUnusable(f"Cannot read [tls] {name} {path}: {error.strerror}.") from error
    if mark not in content:
        what = "private key" if mark == _KEY else "certificate"
        convert = f"openssl {tool} -inform DER -in {path} -out NEW_FILE"
        raise TlsUnusable(f"[tls] {name} {path} has no {what} in PEM; of a DER file, make one: {convert}.")


def failure(error: OSError, host: str = "") -> str:
    """Return a half sentence that says why no connection over TLS came about, or why it ended.

    Parameters
    ----------
    host
        Whose certificate was checked, where this side is the client.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return _distrusted(error, host)
    reason = getattr(error, "reason", None) or ""
    for words, reasons in _REASONS.items():
        if any(reason.endswith(one) for one in reasons):
            return words
    if isinstance(error, TimeoutError):
        return "it did not finish the TLS handshake in time"
    if isinstance(error, ConnectionError | ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "it closed the connection amid the TLS handshake; see its log"
    return f"TLS failed ({reason.lower().replace('_', ' ') or error.strerror or type(error).__name__})"


def _distrusted(error: ssl.SSLCertVerificationError, host: str) -> str:
    said = {
        9: "is not valid yet; compare the clocks",
        10: "has expired; renew it there",
        18: "is not listed in [tls] authorities",
        19: "was issued by an authority that is not listed in [tls] authorities",
        20: "was issued by an authority that is not listed in [tls] authorities",
        21: "was issued by an authority that is not listed in [tls] authorities",
        26: f"is not made for TLS {'servers' if host else 'clients'} (extended key usage)",
        62: f"is for another host than {host}; write as host what stands in it",
        64: f"is for another host than {host}; write as host what stands in it",
    }.get(error.verify_code)
    return f"its certificate {said or f'is not accepted ({error.verify_message})'}"


_REASONS = {
    "it offers no TLS version from 1.2 on": (
        "UNSUPPORTED_PROTOCOL",
        "VERSION_TOO_LOW",
        "WRONG_SSL_VERSION",
        "ALERT_PROTOCOL_VERSION",
    ),
    "it offers none of the cipher suites of BCP 195": ("NO_SHARED_CIPHER", "NO_CIPHERS_AVAILABLE"),
    "it shows no certificate ([tls] client_certificates)": ("PEER_DID_NOT_RETURN_A_CERTIFICATE",),
    "it asks for a certificate of the node ([tls] certificate, key)": ("ALERT_CERTIFICATE_REQUIRED",),
    "it does not accept the node's certificate: let it trust the authority that issued it": (
        "ALERT_UNKNOWN_CA",
        "ALERT_BAD_CERTIFICATE",
        "ALERT_CERTIFICATE_UNKNOWN",
        "ALERT_UNSUPPORTED_CERTIFICATE",
        "ALERT_DECRYPT_ERROR",
    ),
    "it says that the node's certificate has expired ([tls] certificate)": ("ALERT_CERTIFICATE_EXPIRED",),
    "it does not accept the node's certificate, or has no cipher suite of BCP 195": (
        "ALERT_HANDSHAKE_FAILURE",
        "ALERT_INSUFFICIENT_SECURITY",
    ),
    "it does not speak TLS": (
        "WRONG_VERSION_NUMBER",
        "HTTP_REQUEST",
        "HTTPS_PROXY_REQUEST",
        "BAD_RECORD_TYPE",
    ),
}
"""By the end of OpenSSL's reason."""
