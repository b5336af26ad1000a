"""From where the reading list is answered: HTTPS, reverse proxies, and when it refuses to start."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from db.models import Audit
from db.session import Database
from pacs_node.config import Settings
from pacs_node.config_web import WebSettings
from pacs_node.errors import ConfigError
from pacs_node.storage.spool import Spool
from pacs_node.web.node_page import NodeState
from pacs_node.web.serving import serve
from tests.helpers import rows
from tests.web.conftest import serving
from tests.web.people import add_user, sign_in

PUBLIC = "https://reading.hospital.example"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for this machine and its key."""
    folder, key = tmp_path_factory.mktemp("tls"), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(pem))
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return folder / "cert.pem", folder / "key.pem"


def test_https_by_certificate_files(
    database: Database, database_url: str, tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    add_user(database)
    keys = {"host": "localhost", "certificate": cert, "key": key}
    trusted = ssl.create_default_context(cafile=str(cert))
    with (
        serving(database, database_url, tmp_path, **keys) as site,
        httpx.Client(base_url=site.address, verify=trusted, timeout=120) as client,
    ):
        assert site.address.startswith("https://")
        answer = sign_in(client)
        assert answer.status_code == 303
        for cookie in answer.headers.get_list("set-cookie"):
            assert cookie.startswith("__Host-")
            assert "secure" in cookie.lower()
        page = client.get("/", headers={"X-Forwarded-For": "10.9.9.9"})
        assert page.status_code == 200
        assert "max-age" in page.headers["strict-transport-security"]
    assert {row.address for row in rows.rows(database, Audit)} == {"127.0.0.1"}


class _Proxy(httpx.HTTPTransport):
    """Passes requests on as nginx does by the configuration in docs/reading-list.md."""

    def __init__(self, port: int, **headers: str) -> None:
        super().__init__()
        self._port = port
        self._headers = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "10.0.0.9", **headers}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url.copy_with(scheme="http", host="127.0.0.1", port=self._port)
        headers = {**request.headers, **{name.lower(): value for name, value in self._headers.items()}}
        passed = httpx.Request(request.method, url, headers=headers, stream=request.stream)
        return super().handle_request(passed)


def _through(port: int, **headers: str) -> httpx.Client:
    return httpx.Client(base_url=PUBLIC, timeout=120, transport=_Proxy(port, **headers))


def test_a_proxy_that_is_named_is_believed_who_asks(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    add_user(database)
    with serving(database, database_url, tmp_path, proxies=["127.0.0.1"]) as site:
        with _through(site.port, **{"X-Forwarded-For": "6.6.6.6, 10.0.0.9"}) as client:
            page = client.get("/sign-in")
            assert page.status_code == 200
            answer = sign_in(client)
            assert answer.status_code == 303
            assert all("secure" in one.lower() for one in answer.headers.get_list("set-cookie"))
        for headers in ({"X-Forwarded-Proto": "http"}, {"X-Forwarded-For": ""}):
            with _through(site.port, **headers) as client:
                assert client.get("/sign-in").status_code == 403
        assert httpx.get(f"{site.address}/sign-in").status_code == 403
    assert {row.address for row in rows.rows(database, Audit)} == {"10.0.0.9"}


def test_headers_of_others_are_not_believed(database: Database, database_url: str, tmp_path: Path) -> None:
    add_user(database)
    with (
        serving(database, database_url, tmp_path, proxies=["10.0.0.1", "192.168.0.0/16"]) as site,
        _through(site.port) as client,
    ):
        answer = client.get("/sign-in")
        assert answer.status_code == 403
        assert "HTTPS" in answer.text
    with (
        serving(database, database_url, tmp_path) as site,
        _through(site.port, Host="127.0.0.1") as client,
    ):
        answer = client.get("/sign-in")
        assert answer.status_code == 403
        assert "proxies" in answer.text


def test_an_address_that_is_set_is_the_only_one(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    add_user(database)
    with serving(database, database_url, tmp_path, proxies=["127.0.0.1"], address=PUBLIC) as site:
        assert site.address == PUBLIC
        with _through(site.port) as client:
            assert client.get("/sign-in").status_code == 200
            assert sign_in(client, origin="https://evil.example").status_code == 403
            assert sign_in(client).status_code == 303
        with _through(site.port, Host="evil.example") as client:
            answer = client.get("/sign-in")
            assert answer.status_code == 421
            assert PUBLIC in answer.text


def _start(database: Database, folder: Path, **web: Any) -> None:
    settings = Settings(web=WebSettings(**web))
    serve(settings, database, Spool(folder), threading.Event(), lambda: None, look=_unseen)


def _unseen() -> NodeState:
    raise AssertionError("nobody asked for the page of the node")


def test_it_does_not_start_for_other_machines_without_users_or_without_https(
    database: Database, tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    for host in ("0.0.0.0", "::", "10.0.0.5", "node.hospital.example"):
        with pytest.raises(ConfigError, match="unencrypted"):
            _start(database, tmp_path, host=host)
        with pytest.raises(ConfigError, match="no users"):
            _start(database, tmp_path, host=host, certificate=cert, key=key)
        with pytest.raises(ConfigError, match="no users"):
            _start(database, tmp_path, host=host, proxies=["10.0.0.1"])
    add_user(database)
    with pytest.raises(ConfigError, match="unencrypted"):
        _start(database, tmp_path, host="0.0.0.0")


def test_a_certificate_that_cannot_be_used_is_said_at_start(
    database: Database, tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    for files in (
        (wrong, certificate[1]),
        (certificate[0], wrong),
        (certificate[0], tmp_path / "absent.pem"),
    ):
        with pytest.raises(ConfigError, match="certificate or key"):
            _start(database, tmp_path, certificate=files[0], key=files[1])


def test_users_on_this_machine_need_no_https_and_other_names_are_refused(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    add_user(database)
    with serving(database, database_url, tmp_path) as site, httpx.Client(base_url=site.address) as client:
        assert sign_in(client).status_code == 303
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 403


def test_it_listens_for_others_once_there_is_a_user_and_https(
    database: Database, database_url: str, tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    add_user(database)
    with serving(
        database, database_url, tmp_path, host="0.0.0.0", certificate=certificate[0], key=certificate[1]
    ) as site:
        trusted = ssl.create_default_context(cafile=str(certificate[0]))
        with (
            socket.create_connection(("127.0.0.1", site.port)) as plain,
            trusted.wrap_socket(plain, server_hostname="localhost") as tls,
        ):
            tls.sendall(b"GET / HTTP/1.1\r\nHost: node\r\nAccept: text/html\r\nConnection: close\r\n\r\n")
            assert b" 303 " in tls.recv(4096).split(b"\r\n")[0]
