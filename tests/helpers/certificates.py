"""Certificates of a hospital that exists in tests alone: an authority, and whom it vouches for."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pacs_node.config_access import TlsSettings
from pacs_node.demo.peers import free_port

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

_DAY = timedelta(days=1)


@cache
def rsa_key(number: int = 0, bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return one of some keys; to make one takes long."""
    return rsa.generate_private_key(65537, bits)


@dataclass(frozen=True)
class Identity:
    """A certificate and its key, in files."""

    certificate: Path
    key: Path


class Authority:
    """Issues certificates; its own stands in the file `path`."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        builder = _builder(self._name, self._name, self._key, days=(-_DAY, 100 * _DAY))
        self._certificate = builder.add_extension(constraints, critical=True).sign(self._key, hashes.SHA256())
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(_pem(self._certificate))

    def issue(
        self,
        name: str,
        *,
        days: float = 90,
        age: float = 1,
        host: str = "127.0.0.1",
        key: Key | None = None,
        purpose: x509.ObjectIdentifier | None = None,
    ) -> Identity:
        """Issue a certificate.

        Parameters
        ----------
        days, age
            For how many days from now, and since how many days, it is valid.
        host
            An address, or a name.
        purpose
            Its extended key usage; both servers and clients by default.
        """
        key = key or rsa_key()
        builder = _builder(_named(name), self._name, key, days=(-age * _DAY, days * _DAY))
        names: x509.GeneralName
        try:
            names = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            names = x509.DNSName(host)
        purposes = (
            [purpose] if purpose else [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        )
        builder = builder.add_extension(x509.SubjectAlternativeName([names]), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        made = Identity(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        made.certificate.write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))
        made.key.write_bytes(unprotected(key))
        return made


@dataclass(frozen=True)
class Site:
    """Two authorities, of which the node trusts one, and the certificate of the node."""

    folder: Path
    trusted: Authority
    stranger: Authority
    node: Identity

    def settings(self, **changes: object) -> TlsSettings:
        """Return settings with these files and a free port."""
        values: dict[str, object] = {
            "port": free_port(),
            "certificate": self.node.certificate,
            "key": self.node.key,
            "authorities": self.trusted.path,
        }
        return TlsSettings.model_validate(values | changes)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """The hospital."""
    folder = tmp_path / "certificates"
    folder.mkdir()
    trusted = Authority(folder)
    return Site(folder, trusted, Authority(folder, "stranger"), trusted.issue("node"))


def unprotected(key: Key) -> bytes:
    """Return a key as PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def protected(key: Key) -> bytes:
    """Return a key as PEM with a password."""
    encryption = serialization.BestAvailableEncryption(b"secret")
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Key, *, days: tuple[timedelta, timedelta]
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    return builder.not_valid_before(now + days[0]).not_valid_after(now + days[1])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
