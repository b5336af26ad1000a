"""A PostgreSQL server of its own for one test session, on a free port of the loopback interface."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

_USER = "postgres"  # of the database, and of the system where the tests run as root
_START_SECONDS = 30
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "timezone": "Asia/Tokyo",  # that of no test: a moment in UTC must not lean on it
    **dict.fromkeys(("fsync", "synchronous_commit", "full_page_writes", "autovacuum"), "off"),
}


class Server:
    """A running server.

    Parameters
    ----------
    port
        On 127.0.0.1; every user is trusted.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._admin = self._connect()

    def create(self, template: str | None = None) -> str:
        """Create a database, empty or the copy of another one, and return its name."""
        name = f"test_{uuid.uuid4().hex}"
        of = sql.Identifier(template or "template1")
        self._admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), of))
        return name

    def drop(self, name: str) -> None:
        """Remove a database, whoever is still connected."""
        self._admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def url(self, name: str) -> str:
        """Return the URL of a database, as `db.session.Database` takes it."""
        return f"postgresql+psycopg://{_USER}@127.0.0.1:{self._port}/{name}"

    def disconnect(self, name: str) -> None:
        """End all connections to a database, as a restart of the server does."""
        self._admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [name]
        )

    def close(self) -> None:
        """Close the connection that creates and removes databases."""
        self._admin.close()

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(host="127.0.0.1", port=self._port, user=_USER, dbname=_USER, autocommit=True)


@contextmanager
def running_server() -> Iterator[Server]:
    """Return a context in which a server runs; where there is none to run, the tests are skipped.

    Where CI=true they fail: what nobody sees skipped would rot.
    """
    binaries = _binaries()
    as_user = _unprivileged()
    with tempfile.TemporaryDirectory(prefix="pacs-node-", dir=_room(), ignore_cleanup_errors=True) as folder:
        if as_user:
            shutil.chown(folder, as_user["user"], as_user["group"])
        port = _free_port()
        log = Path(folder, "log")
        with log.open("wb") as output:
            options: dict[str, Any] = {"cwd": folder, "stdout": output, "stderr": output, **as_user}
            subprocess.run(_initdb(binaries), check=True, **options)
            process = subprocess.Popen(_postgres(binaries, port), **options)
        try:
            with closing(_wait(process, port, log)) as server:
                yield server
        finally:
            process.send_signal(signal.SIGINT)  # closes all connections, then ends in good order
            process.wait(_START_SECONDS)


def _binaries() -> Path:
    on_path = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    folders += [Path(on_path).resolve().parent] if on_path else []
    found = [folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()]
    return (
        found[-1] if found else _missing("PostgreSQL is not installed here (Debian: apt install postgresql).")
    )


def _unprivileged() -> dict[str, Any]:
    """Return how to run as another user: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    try:
        entry = pwd.getpwnam(_USER)
    except KeyError:
        _missing(f"PostgreSQL does not run as root, and there is no user {_USER} here.")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _room() -> str:
    """Return where there is room: in memory if possible, for each database is some three hundred files."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > 2**30 else "/tmp"


def _missing(why: str) -> Any:
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _initdb(binaries: Path) -> list[str]:
    options = ["--auth=trust", f"--username={_USER}", "--encoding=UTF8", "--locale=C", "--no-sync"]
    return [str(binaries / "initdb"), "--pgdata=data", *options]


def _postgres(binaries: Path, port: int) -> list[str]:
    settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
    return [str(binaries / "postgres"), "-D", "data", "-p", str(port), *settings]


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> Server:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return Server(port)
        except psycopg.OperationalError:
            time.sleep(0.05)
    raise AssertionError(f"PostgreSQL did not start:\n{log.read_text()}")
