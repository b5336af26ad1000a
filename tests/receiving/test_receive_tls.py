"""Receiving over TLS: who is let in, what the others are told, and what the handshake costs the rest."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from db.session import Database
from pacs_node.config import NodeSettings, Settings
from pacs_node.demo.peers import free_port
from pacs_node.receiving.receiver import Receiver
from pacs_node.storage.spool import Spool
from tests.conftest import radiograph, save
from tests.helpers import certificates, receiving, wire
from tests.helpers.certificates import Identity, Site, rsa_key
from tests.helpers.peers import program, storescu
from tests.helpers.receiving import Listen, Node, logged, wait_until

# Fixtures: pytest finds them by the names that they have here.
listen, site, image = receiving.listen, certificates.site, receiving.image


def dcmtk(site: Site, who: Identity, authority: Path | None = None) -> tuple[str, ...]:
    """Return the options of DCMTK's tools for a client with a certificate."""
    trusted = authority or site.trusted.path
    return ("+tls", str(who.key), str(who.certificate), "+cf", str(trusted))


def openssl(port: int, *options: object) -> str:
    """Connect with OpenSSL's client; return what it says."""
    command = [program("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", *map(str, options)]
    done = subprocess.run(command, input="", capture_output=True, text=True, check=False, timeout=120)
    return done.stdout + done.stderr


@contextmanager
def connected(node: Node, site: Site, **changes: Any) -> Iterator[ssl.SSLSocket]:
    """Connect as a client that checks nothing, with a certificate of the site."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    who = site.trusted.issue("modality")
    context.load_cert_chain(who.certificate, who.key)
    for name, value in changes.items():
        setattr(context, name, value)
    with wire.connect(node.tls_port, timeout=60) as plain, context.wrap_socket(plain) as connection:
        yield connection


def echo(connection: socket.socket) -> int:
    """Associate and ask for an echo; return the status."""
    connection.sendall(wire.request())
    assert wire.read_pdu(connection)[0] == 2
    connection.sendall(wire.data(wire.value(3, 3, wire.echo_command())))
    return wire.status_of(wire.read_pdu(connection))


def test_objects_come_over_tls_and_without_side_by_side(site: Site, listen: Listen, tmp_path: Path) -> None:
    node = listen(site.settings())
    files = [save(radiograph("CR", number=n, study=str(n)), tmp_path / f"{n}.dcm") for n in range(20)]
    options = dcmtk(site, site.trusted.issue("modality"))
    done = storescu(*files[:10], port=node.tls_port, options=options)
    assert done.returncode == 0, done.stderr
    done = storescu(*files[10:], port=node.port)
    assert done.returncode == 0, done.stderr
    assert set(node.data_sets().values()) == {receiving.data_set(file) for file in files}


@pytest.mark.parametrize("kind", ["rsa", "ec"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions_and_suites_are_those_of_bcp_195(
    site: Site, listen: Listen, version: ssl.TLSVersion, kind: str
) -> None:
    own = site.trusted.issue(
        "own", key=rsa_key() if kind == "rsa" else ec.generate_private_key(ec.SECP384R1())
    )
    node = listen(site.settings(certificate=own.certificate, key=own.key))
    with connected(node, site, maximum_version=version) as connection:
        assert echo(connection) == 0
        cipher = connection.cipher()
        assert cipher is not None
        assert "GCM" in cipher[0]
        assert cipher[0].startswith("TLS_AES_256" if version is ssl.TLSVersion.TLSv1_3 else "ECDHE-")


REFUSED: dict[str, tuple[Any, str]] = {
    "no certificate": ((), "it shows no certificate ([tls] client_certificates)"),
    "another authority": (("stranger", {}), "authority that is not listed in [tls] authorities"),
    "expired": (("trusted", {"age": 10, "days": -1}), "its certificate has expired"),
    "not valid yet": (("trusted", {"age": -2}), "not valid yet; compare the clocks"),
    "for servers alone": (
        ("trusted", {"purpose": ExtendedKeyUsageOID.SERVER_AUTH}),
        "not made for TLS clients",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_client_that_is_not_let_in_has_one_line_with_the_reason(
    kind: str, site: Site, listen: Listen, image: Path
) -> None:
    who, why = REFUSED[kind]
    options: tuple[str, ...] = ("+tla", "-ic")
    if who:
        issuer: Any = getattr(site, who[0])
        options = dcmtk(site, issuer.issue("modality", **who[1]))
    with logged() as lines:
        node = listen(site.settings())
        assert storescu(image, port=node.tls_port, options=options).returncode != 0
        wait_until(lambda: "association rejected" in lines())
        assert why in lines()
        assert lines().count("association rejected") == 1
        assert "address=127.0.0.1" in lines()
    node.assert_holds_nothing()


OLD = {
    "TLS 1.1": ("-tls1_1", "-cipher", "ALL@SECLEVEL=0"),
    "CBC": ("-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA256"),
    "without forward secrecy": ("-tls1_2", "-cipher", "AES128-GCM-SHA256"),
}


@pytest.mark.parametrize("kind", OLD)
def test_what_is_older_than_the_profile_is_refused(kind: str, site: Site, listen: Listen) -> None:
    why = "no TLS version from 1.2 on" if kind == "TLS 1.1" else "none of the cipher suites of BCP 195"
    with logged() as lines:
        node = listen(site.settings(client_certificates="none"))
        assert "Cipher is (NONE)" in openssl(node.tls_port, *OLD[kind])
        wait_until(lambda: why in lines())


def test_the_node_renegotiates_nothing_and_keeps_no_sessions(site: Site, listen: Listen) -> None:
    node = listen(site.settings(client_certificates="none"))
    said = openssl(node.tls_port, "-tls1_2", "-reconnect")
    assert "New, " in said
    assert "Secure Renegotiation IS supported" in said
    assert "Session-ID-ctx" in said
    assert "TLS session ticket:" not in said


def test_certificates_of_clients_can_be_optional(site: Site, listen: Listen, image: Path) -> None:
    node = listen(site.settings(client_certificates="optional"))
    anonymous = ("+tla", "+cf", str(site.trusted.path))
    assert storescu(image, port=node.tls_port, options=anonymous).returncode == 0
    wrong = dcmtk(site, site.stranger.issue("other"))
    assert storescu(image, port=node.tls_port, options=wrong).returncode != 0


def test_a_client_that_does_not_trust_the_node_has_a_line_that_says_so(
    site: Site, listen: Listen, image: Path
) -> None:
    with logged() as lines:
        node = listen(site.settings())
        options = dcmtk(site, site.trusted.issue("modality"), site.stranger.path)
        assert storescu(image, port=node.tls_port, options=options).returncode != 0
        wait_until(lambda: "does not accept the node's certificate" in lines())


def test_who_takes_the_wrong_port_is_told_which_is_right(site: Site, listen: Listen) -> None:
    with logged() as lines:
        node = listen(site.settings())
        with wire.connect(node.tls_port) as plain:
            plain.sendall(wire.request())
            assert wire.read_pdu(plain) == (7, b"\0\0\2\1")
            assert wire.read_pdu(plain)[0] == 0
        wait_until(lambda: "without TLS on the port for TLS" in lines())
        openssl(node.port)
        wait_until(lambda: "it speaks TLS, which has another port ([tls] port)" in lines())
        with wire.connect(node.tls_port) as other:
            other.sendall(b"GET / HTTP/1.1\r\n\r\n")
            wait_until(lambda: "it does not speak TLS" in lines())


def test_checks_of_the_port_are_no_events(site: Site, listen: Listen) -> None:
    with logged() as lines:
        node = listen(site.settings())
        for _ in range(20):
            wire.connect(node.tls_port).close()
        with connected(node, site) as connection:
            assert echo(connection) == 0
        wait_until(lambda: "association aborted" in lines() or lines().count("\n") > 1)
    assert "rejected" not in lines()
    assert "connections closed" not in lines()


def hello(site: Site) -> bytes:
    """Return the first bytes of a TLS client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="node").do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("kind", ["silent", "half a hello", "no answer", "slow"])
def test_handshakes_that_do_not_end_take_no_place_and_no_time(kind: str, site: Site, listen: Listen) -> None:
    first, stop = hello(site), threading.Event()

    def trickle(connection: socket.socket) -> None:
        for byte in first * 1000:
            if stop.wait(0.05):
                return
            try:
                connection.send(bytes([byte]))
            except OSError:
                return

    with logged() as lines, ExitStack() as stack:
        node = listen(site.settings(), max_associations=2, request_seconds=1.5)
        stack.callback(stop.set)
        for number in range(100):
            connection = stack.enter_context(wire.connect(node.tls_port, f"127.0.0.{number + 2}", timeout=60))
            if kind == "half a hello":
                connection.sendall(first[: len(first) // 2])
            elif kind == "no answer":
                connection.sendall(first)
            elif kind == "slow":
                threading.Thread(target=trickle, args=(connection,), daemon=True).start()
        with connected(node, site) as honest:
            assert echo(honest) == 0
        wait_until(lambda: not node.receiver._server._awaiting._visitors)
        assert "[receive] request_seconds" in lines()


def test_a_request_in_small_records_beside_data_that_is_decrypted_already(site: Site, listen: Listen) -> None:
    node = listen(site.settings())
    asked = wire.data(wire.value(3, 3, wire.echo_command()))
    with connected(node, site) as connection:
        request = wire.request()
        for at in range(0, len(request), 7):
            connection.sendall(request[at : at + 7])
        assert wire.read_pdu(connection)[0] == 2
        connection.sendall(asked + asked + asked)  # in one record
        assert [wire.status_of(wire.read_pdu(connection)) for _ in range(3)] == [0, 0, 0]
        connection.sendall(wire.RELEASE)
        assert wire.read_pdu(connection)[0] == 6


def test_request_and_what_follows_in_one_record(site: Site, listen: Listen) -> None:
    node = listen(site.settings())
    with connected(node, site) as connection:
        connection.sendall(wire.request() + wire.data(wire.value(3, 3, wire.echo_command())))
        assert wire.read_pdu(connection)[0] == 2
        assert wire.status_of(wire.read_pdu(connection)) == 0


def test_an_object_that_breaks_off_over_tls_leaves_nothing(site: Site, listen: Listen) -> None:
    node = listen(site.settings())
    with connected(node, site) as connection:
        connection.sendall(wire.request())
        assert wire.read_pdu(connection)[0] == 2
        half = wire.data(wire.value(1, 3, wire.store_command())) + wire.data(wire.value(1, 0, bytes(100_000)))
        connection.sendall(half + half[:5000])
        wait_until(lambda: bool(node.arriving()))
    node.assert_holds_nothing()


def test_half_a_record_does_not_keep_an_association(site: Site, listen: Listen) -> None:
    """A record that never ends is silence: bytes of it are none of the upper layer."""
    node = listen(site.settings(), idle_seconds=1)
    with connected(node, site) as connection, logged() as lines:
        assert echo(connection) == 0
        stop = threading.Event()
        below = socket.socket(fileno=connection.fileno())

        def trickle() -> None:
            record = b"\x17\x03\x03\x40\x00" + bytes(0x4000)
            for byte in record:
                if stop.wait(0.1):
                    return
                try:
                    below.send(bytes([byte]))
                except OSError:
                    return

        thread = threading.Thread(target=trickle, daemon=True)
        thread.start()
        wait_until(lambda: "nothing came for 1 s" in lines())
        stop.set()
        thread.join()
        below.detach()


def test_certificates_are_replaced_without_a_restart(site: Site, listen: Listen) -> None:
    new = site.trusted.issue("new", days=50)
    with logged() as lines:
        node = listen(site.settings())
        with connected(node, site) as old:
            old.sendall(wire.request())
            assert wire.read_pdu(old)[0] == 2
            before = old.getpeercert(binary_form=True)
            shutil.copy(new.certificate, site.node.certificate)
            site.node.key.write_text("half of")
            wait_until(lambda: served(node, site) == before and "new certificates not used" in lines())
            assert "has no private key in PEM" in lines()
            shutil.copy(new.key, site.node.key)
            wait_until(lambda: served(node, site) != before)
            assert "new certificates in use" in lines()
            old.sendall(wire.data(wire.value(3, 3, wire.echo_command())))
            assert wire.status_of(wire.read_pdu(old)) == 0  # what was open goes on


def served(node: Node, site: Site) -> bytes | None:
    with connected(node, site) as connection:
        return connection.getpeercert(binary_form=True)


def test_the_port_without_tls_can_be_closed(site: Site, tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/results.sqlite")
    database.upgrade()
    spool = Spool(tmp_path / "spool")
    spool.prepare()
    settings = Settings(node=NodeSettings(host="127.0.0.1", port=0), tls=site.settings(port=free_port()))
    receiver = Receiver(settings, database, spool)
    port = receiver.start()
    try:
        assert port == settings.tls.port
        with connected(Node(receiver, database, spool, 0, port), site) as connection:
            assert echo(connection) == 0
    finally:
        receiver.stop()
        database.close()
