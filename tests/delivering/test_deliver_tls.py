"""Delivering, asking and sending over TLS: to whom the node connects, and what it says of the others."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from db.session import Database
from pacs_node.config import DatabaseSettings, DeliverSettings, Destination, Settings
from pacs_node.config_access import TlsSettings
from pacs_node.delivering.stage import DeliverStage
from pacs_node.demo.peers import free_port
from pacs_node.errors import PeerError
from pacs_node.network import scu
from pacs_node.network.peer import Peer
from pacs_node.reconciling import query
from pacs_node.running.status import snapshot
from tests.conftest import radiograph, save
from tests.helpers import certificates, delivering
from tests.helpers.certificates import Identity, Site
from tests.helpers.delivering import data_set
from tests.helpers.peers import orthanc, program
from tests.helpers.workbench import Bench, only

# Fixtures: pytest finds them by the names that they have here.
site, whole_data_sets = certificates.site, delivering.whole_data_sets

one_database = pytest.mark.parametrize("backend", ["sqlite"])


@contextmanager
def storescp(site: Site, who: Identity, folder: Path, *options: str) -> Iterator[int]:
    """Run DCMTK's storage SCP over TLS; yield its port."""
    folder.mkdir()
    port = free_port()
    tls = ["+tls", str(who.key), str(who.certificate), "+cf", str(site.trusted.path)]
    command = [program("storescp"), "-od", str(folder), *tls, *options, str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait(port, process)
            yield port
        finally:
            process.terminate()


@contextmanager
def old_server(who: Identity, *options: str) -> Iterator[int]:
    """Run OpenSSL's server; yield its port."""
    port = free_port()
    files = ["-cert", str(who.certificate), "-key", str(who.key)]
    command = [program("openssl"), "s_server", "-accept", str(port), *files, *options, "-quiet"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            _wait(port, process)
            yield port
        finally:
            process.terminate()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=60).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError("it ended")


def to(port: int, **changes: object) -> Destination:
    values = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": port, "tls": True}
    return Destination.model_validate(values | changes)


def deliver(database: Database, folder: Path, destination: Destination, tls: TlsSettings) -> Bench:
    """Make a report, and try once to send it."""
    bench = Bench(database, folder, settings=Settings(destinations=(destination,), tls=tls))
    bench.receive(radiograph())
    bench.score()
    bench.report()
    bench.work(DeliverStage(bench.database, destination, "PACS_NODE", DeliverSettings(), tls))
    return bench


def error(site: Site, port: int, host: str = "127.0.0.1", **changes: object) -> str:
    """Return what is said of a peer that the node does not talk to."""
    settings = site.settings(port=0, **changes)
    with pytest.raises(PeerError) as caught:
        scu.echo(Peer("ANY", host, port, settings), "PACS_NODE")
    return str(caught.value)


@one_database
def test_a_report_arrives_in_orthanc_over_tls(site: Site, database: Database, tmp_path: Path) -> None:
    pacs = site.trusted.issue("pacs")
    keys: dict[str, Any] = {
        "DicomTlsEnabled": True,
        "DicomTlsPrivateKey": str(pacs.key),
        "DicomTlsCertificate": str(pacs.certificate),
        "DicomTlsTrustedCertificates": str(site.trusted.path),
        "DicomTlsRemoteCertificateRequired": True,
    }
    with orthanc(tmp_path / "orthanc", **keys) as peer:
        bench = deliver(database, tmp_path, to(peer.port), site.settings(port=0))
        assert [one.state for one in bench.deliveries()] == ["delivered"]
        assert [*map(data_set, peer.files())] == [data_set(only(bench.reports()).content)]
        over_tls = Peer("ORTHANC", "127.0.0.1", peer.port, site.settings(port=0))
        file = save(radiograph(number=2), tmp_path / "2.dcm")
        assert [one.is_stored for one in scu.send(scu.files_in([file]), over_tls, "PACS_NODE")] == [True]
        with query.open_finder(over_tls, "PACS_NODE"):
            pass
        said = error(site, peer.port, certificate="", key="")
        assert "over TLS" in said


@one_database
def test_a_destination_that_is_none_of_ours_waits_and_says_why(
    site: Site, database: Database, tmp_path: Path
) -> None:
    with storescp(site, site.stranger.issue("pacs"), tmp_path / "pacs") as port:
        bench = deliver(database, tmp_path, to(port), site.settings(port=0))
    waiting = only(bench.deliveries())
    assert (waiting.state, waiting.tries) == ("pending", 1)
    assert waiting.error is not None
    assert "issued by an authority that is not listed in [tls] authorities" in waiting.error
    assert [*(tmp_path / "pacs").iterdir()] == []


@one_database
def test_files_that_are_gone_put_the_report_off(site: Site, database: Database, tmp_path: Path) -> None:
    settings = site.settings(port=0)
    site.node.key.unlink()
    bench = deliver(database, tmp_path, to(1), settings)
    waiting = only(bench.deliveries())
    assert (waiting.state, waiting.tries) == ("pending", 1)
    assert waiting.error is not None
    assert "Cannot read [tls] key" in waiting.error


def test_each_way_to_be_wrong_has_a_sentence(site: Site, tmp_path: Path) -> None:
    known = site.trusted.issue("known")
    for name, who, options, said in (
        ("expired", site.trusted.issue("expired", age=10, days=-1), (), "has expired; renew it there"),
        ("other", site.trusted.issue("other", host="pacs.example"), (), "another host than 127.0.0.1"),
        (
            "client",
            site.trusted.issue("client", purpose=ExtendedKeyUsageOID.CLIENT_AUTH),
            (),
            "not made for TLS servers",
        ),
    ):
        with storescp(site, who, tmp_path / name, *options) as port:
            found = error(site, port)
            assert "cannot be reached over TLS: " in found, name
            assert said in found, (name, found)
    with storescp(site, known, tmp_path / "strict") as port:
        assert "cannot be reached over TLS" in error(site, port, certificate="", key="")
    for old in ("-tls1_1", "-tls1_2 -cipher AES128-SHA256:@SECLEVEL=0"):
        with old_server(known, *old.split()) as port:
            assert "cannot be reached over TLS" in error(site, port)


def test_a_peer_without_tls_is_told_from_one_that_is_not_there(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        listening.setblocking(True)
        from threading import Thread

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(64)
                connection.sendall(b"\x07\0\0\0\0\x04\0\0\0\0")  # A-ABORT, as a node without TLS does

        thread = Thread(target=answer)
        thread.start()
        assert "it does not speak TLS" in error(site, port)
        thread.join()
    found = error(site, free_port())
    assert "TLS" not in found
    assert "cannot be reached" in found


def test_tls_without_authorities_is_refused() -> None:
    with pytest.raises(ValueError, match="names no certificates to check its own with"):
        Settings(destinations=(to(104),))


@one_database
def test_status_names_certificates_that_end_soon(site: Site, database: Database, database_url: str) -> None:
    now = datetime.now(UTC)
    soon = site.trusted.issue("soon", days=20)
    gone = site.trusted.issue("gone", age=10, days=-1)
    for who, said in ((soon, "ends on"), (gone, "ended on")):
        tls = site.settings(certificate=who.certificate, key=who.key)
        settings = Settings(database=DatabaseSettings(url=database_url), tls=tls)
        told = [one for one in snapshot(settings, database, now).problems if "certificate" in one]
        assert len(told) == 1
        assert said in told[0]
        assert str(who.certificate) in told[0]
    later = site.settings()
    settings = Settings(database=DatabaseSettings(url=database_url), tls=later)
    assert snapshot(settings, database, now).expiring == []
    assert len(snapshot(settings, database, now + timedelta(days=75)).expiring) == 2
