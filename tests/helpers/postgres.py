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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.harness.workers import room

_USER = "postgres"  # of the database, and of the system where the tests run as root
_START_SECONDS = 240
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
    with tempfile.TemporaryDirectory(prefix="pacs-node-", dir=room(), ignore_cleanup_errors=True) as folder:
        if as_user:
            shutil.chown(folder, as_user["user"], as_user["group"])
        port = _free_port()
        log = Path(folder, "log")
        with log.open("wb") as output:
            options: dict[str, Any] = {"cwd": folder, "stdout": output, "stderr": output, **as_user}
            subprocess.run(_initdb(binaries), check=True, **options)
            process = subprocess.Popen(_postgres(binaries, port, _SETTINGS), **options)
        try:
            with closing(_wait(process, port, log)) as server:
                yield server
        finally:
            process.send_signal(signal.SIGINT)  # closes all connections, then ends in good order
            process.wait(_START_SECONDS)


class OwnServer:
    """A server that flushes what it commits, and can be stopped and started again.

    Parameters
    ----------
    folder
        Where its data and its log are to lie; it must be empty.
    settings
        What is to differ from the server of the tests.
    initdb
        Further options of initdb.
    address
        Where it listens besides 127.0.0.1, and takes connections from the 255 addresses around it.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        initdb: Sequence[str] = (),
        address: str = "127.0.0.1",
    ) -> None:
        self.port = _free_port()
        self._address = address
        self._folder = folder
        self._binaries = _binaries()
        durable = dict.fromkeys(("fsync", "synchronous_commit", "full_page_writes", "autovacuum"), "on")
        listens = {"listen_addresses": ",".join(dict.fromkeys(("127.0.0.1", address)))}
        self._settings = _SETTINGS | durable | listens | dict(settings or {})
        as_user = _unprivileged()
        if as_user:
            shutil.chown(folder, as_user["user"], as_user["group"])
        self._log = folder / "log"
        self._options: dict[str, Any] = {"cwd": folder, **as_user}
        self._process: subprocess.Popen[bytes] | None = None
        with self._log.open("ab") as log:
            command = [*_initdb(self._binaries), *initdb]
            subprocess.run(command, check=True, stdout=log, stderr=log, **self._options)
        if address != "127.0.0.1":
            with (folder / "data" / "pg_hba.conf").open("a") as rules:
                rules.write(f"host all all {address}/24 trust\n")

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        with self._log.open("ab") as log:
            command = _postgres(self._binaries, self.port, self._settings)
            self._process = subprocess.Popen(command, stdout=log, stderr=log, **self._options)
        _wait(self._process, self.port, self._log).close()

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT in good order, SIGQUIT at once as a crash would."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(_START_SECONDS)
            self._process = None

    @property
    def has_ended(self) -> bool:
        """Whether it ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def said(self, what: str) -> bool:
        """Whether its log holds a word."""
        return what in self._log.read_text(errors="replace")

    def admin(self, database: str = _USER) -> psycopg.Connection[Any]:
        """Return a connection of the one who may do everything."""
        return psycopg.connect(host="127.0.0.1", port=self.port, user=_USER, dbname=database, autocommit=True)

    def create(self, options: str = "") -> str:
        """Create a database with options of CREATE DATABASE, and return its URL."""
        name = f"test_{uuid.uuid4().hex}"
        with closing(self.admin()) as admin:
            admin.execute(f"CREATE DATABASE {name} {options}".encode())
        return f"postgresql+psycopg://{_USER}@{self._address}:{self.port}/{name}"

    def __enter__(self) -> OwnServer:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()


@contextmanager
def own_folder() -> Iterator[Path]:
    """Return a context with a folder on the disk, which a server of one's own can get into."""
    with tempfile.TemporaryDirectory(prefix="pacs-node-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


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


def _postgres(binaries: Path, port: int, settings: Mapping[str, str]) -> list[str]:
    options = [f"--{name}={value}" for name, value in settings.items()]
    return [str(binaries / "postgres"), "-D", "data", "-p", str(port), *options]


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> Server:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return Server(port)
        except psycopg.OperationalError:
            time.sleep(0.05)
    raise AssertionError(f"PostgreSQL did not start:\n{log.read_text()}")
