"""The configuration of nginx in docs/reading-list.md, at work."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from db.models import Audit
from db.session import Database
from pacs_node.demo.peers import free_port
from tests.helpers import rows
from tests.helpers.commands import wait_for
from tests.web.conftest import serving
from tests.web.people import add_user, sign_in
from tests.web.test_ways_in import certificate  # noqa: F401 - a fixture

NGINX = shutil.which("nginx")
DOCUMENTED = Path(__file__).parents[2] / "docs" / "reading-list.md"

pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx")


@contextmanager
def _nginx(folder: Path, node: int, cert: Path, key: Path) -> Iterator[int]:
    """Run nginx as documented, for other ports, names and files; yield its port."""
    port = free_port()
    found = re.search(r"```nginx\n(.*?)```", DOCUMENTED.read_text(), re.DOTALL)
    assert found
    server = found[1]
    for documented, here in (
        ("listen 443", f"listen 127.0.0.1:{port}"),
        ("reading.hospital.example", "localhost"),
        ("/etc/nginx/reading.pem", str(cert)),
        ("/etc/nginx/reading.key", str(key)),
        ("127.0.0.1:8080", f"127.0.0.1:{node}"),
    ):
        assert documented in server
        server = server.replace(documented, here)
    # The documented port is the one that Host leaves out
    server = server.replace("Host $host;", "Host $http_host;")
    paths = "".join(
        f"{one}_temp_path {folder}/{one};" for one in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr;"
        f"events {{}} http {{ access_log off; {paths} {server} }}"
    )
    assert NGINX is not None
    with subprocess.Popen([NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")]) as running:
        try:
            wait_for((folder / "pid").exists, "nginx")
            yield port
        finally:
            running.terminate()


def test_a_reader_signs_in_through_nginx_and_the_audit_has_their_address(
    database: Database,
    database_url: str,
    tmp_path: Path,
    certificate: tuple[Path, Path],  # noqa: F811
) -> None:
    add_user(database)
    trusted = ssl.create_default_context(cafile=str(certificate[0]))
    (tmp_path / "nginx").mkdir()
    with (
        serving(database, database_url, tmp_path, proxies=["127.0.0.1"]) as site,
        _nginx(tmp_path / "nginx", site.port, *certificate) as port,
        httpx.Client(base_url=f"https://localhost:{port}", verify=trusted, timeout=120) as client,
    ):
        answer = sign_in(client)
        assert answer.status_code == 303, answer.text
        assert all(one.startswith("__Host-") for one in answer.headers.get_list("set-cookie"))
        page = client.get("/", headers={"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "http"})
        assert page.status_code == 200
        assert "max-age" in page.headers["strict-transport-security"]
        assert client.get("/static/style.css").status_code == 200
    # nginx connects from 127.0.0.1 and so does the client: a proxy that is believed in all
    assert {row.address for row in rows.rows(database, Audit)} <= {"127.0.0.1", "6.6.6.6"}
