"""Engine, transactions and schema of the results database, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from db.errors import DatabaseDown, DatabaseError, SchemaMismatch, WriteConflict
from db.group_commit import GroupCommit

try:
    # It brings SQLite itself, in a release in which WAL is safe, whatever the operating system has
    from pysqlite3 import dbapi2 as _driver
except ImportError:  # a machine for which there is no build
    from sqlite3 import dbapi2 as _driver

sqlite: Any = _driver
"""The SQLite driver: a module like `sqlite3`."""

T = TypeVar("T")

_MIGRATIONS = Path(__file__).parent / "migrations"
_DRIVERS = {
    **dict.fromkeys(("sqlite", "sqlite+pysqlite"), "sqlite"),
    **dict.fromkeys(("postgresql", "postgresql+psycopg"), "postgresql+psycopg"),
}
_BUSY_SECONDS = 30
_LOOK_SECONDS = 0.0005  # between looks whether another process still writes
_UPGRADE_LOCK = 0x7061_6373  # any number; the same in every process
# Dead peers are noticed, and nobody waits longer for a lock than a sender waits for its answer. A machine
# that was cut off in a transaction does not keep its locks; without this, it would keep them for two hours.
_POSTGRESQL: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "tcp_user_timeout": 20_000,
    "options": f"-c lock_timeout={_BUSY_SECONDS}s -c timezone=UTC "
    f"-c idle_in_transaction_session_timeout={_BUSY_SECONDS}s "
    # No statement here reads much: compiling it and starting parallel workers takes longer than running it.
    # Scattered reads come from memory or from a solid-state disk.
    "-c jit=off -c max_parallel_workers_per_gather=0 -c random_page_cost=1.1",
}


class Database:
    """The results database.

    Parameters
    ----------
    url
        In the form of SQLAlchemy: ``sqlite:///file.sqlite`` or
        ``postgresql+psycopg://user:password@host/name``.

    Raises
    ------
    DatabaseError
        If the text is not a database URL, or names a database that the program does not support.
    """

    def __init__(self, url: str) -> None:
        self._url = _parsed(url)
        self._turn = threading.Lock()
        self._group = GroupCommit(self.write, _BUSY_SECONDS)
        public = self._url.difference_update_query(["password", "sslpassword"])
        self.name = public.render_as_string(hide_password=True)
        if self.is_sqlite:
            self._engine = create_engine(self._url, module=sqlite, connect_args={"timeout": _BUSY_SECONDS})
            event.listen(self._engine, "do_connect", self._make_file)
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
            self._reader = self._engine
        else:
            self._engine = create_engine(
                self._url, connect_args=_POSTGRESQL, pool_pre_ping=True, max_overflow=100
            )
            # By default each statement of a transaction would see a state of its own.
            self._reader = self._engine.execution_options(isolation_level="REPEATABLE READ")
        # SQLite has no row locks: a transaction that will write takes the only lock at its beginning.
        self._writer = self._engine.execution_options(pacs_node_writes=True)

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is SQLite (for one machine) or PostgreSQL."""
        return self._url.get_backend_name() == "sqlite"

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database."""
        return Path(self._url.database) if self.is_sqlite and self._url.database else None

    def write(self) -> AbstractContextManager[Session]:
        """Return a context with a `Session`; at its end the transaction is committed whole or not at all.

        Raises
        ------
        DatabaseDown, WriteConflict
        """
        self._require_file()
        return self._in_turn() if self.is_sqlite else _transaction(self._writer, self.name)

    @contextmanager
    def ask(self) -> Iterator[Connection]:
        """Return a context with a connection for single-statement queries, which cost the least.

        Raises
        ------
        DatabaseDown
        """
        self._require_file()
        with _translated(self.name, self._url), self._engine.connect() as connection:
            yield connection

    def _make_file(self, *_dialect: object) -> None:
        """Create the file of an SQLite database before SQLite does, readable only by this user.

        SQLite gives the files beside it, the write-ahead log and its index, the same permissions.
        """
        if self.file is not None and self.file.parent.is_dir():
            with suppress(FileExistsError):
                os.close(os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))

    def _keep_private(self) -> None:
        """Remove the permissions of other users from files that an older version created."""
        for end in ("", "-wal", "-shm", "-journal"):
            with suppress(FileNotFoundError, PermissionError):
                Path(f"{self.file}{end}").chmod(0o600)

    def _require_file(self) -> None:
        if self.file is not None and not self.file.exists():
            # An open connection would continue with a file that nobody can find any more
            raise DatabaseDown(f"The database {self.file} was removed; put it back.")

    def write_together(self, statements: Callable[[Session], T], before_commit: Callable[[T], object]) -> T:
        """Write, possibly in one transaction with other threads; return what `statements` returned.

        Parameters
        ----------
        statements
            May be run again after a rollback that another thread caused.
        before_commit
            Is given what `statements` returned; an error that it raises rolls the transaction back.

        Raises
        ------
        Exception
            What `statements` or `before_commit` raised.
        DatabaseDown, WriteConflict
        """
        if self.is_sqlite:
            value: T = self._group.run(statements, before_commit)
            return value
        with self.write() as session:
            value = statements(session)
            before_commit(value)
            return value

    @contextmanager
    def _in_turn(self) -> Iterator[Session]:
        # A waiter for SQLite's own lock sleeps longer and longer; here the next thread wakes at once
        if not self._turn.acquire(timeout=_BUSY_SECONDS):
            raise DatabaseDown(f"The database {self.name} does not work: it has been locked for too long.")
        try:
            with _transaction(self._writer, self.name) as session:
                yield session
        finally:
            self._turn.release()

    def read(self) -> AbstractContextManager[Session]:
        """Return a context with a `Session` that reads one consistent state of the database.

        Raises
        ------
        DatabaseDown
        """
        self._require_file()  # else a connection would make an empty file in its place
        return _transaction(self._reader, self.name)

    def upgrade(self) -> None:
        """Upgrade the schema to the version of this program; an empty database gets all tables.

        Raises
        ------
        DatabaseDown, SchemaMismatch
        """
        with _translated(self.name, self._url), self._writer.begin() as connection:
            if not self.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _UPGRADE_LOCK})
            current = _revision(connection)
            _require_known(current, self.name)
            if current is None and "study" in inspect(connection).get_table_names():
                raise SchemaMismatch(f"{self.name} holds tables of another program; choose another database.")
            command.upgrade(_alembic(connection), "head")
        if self.is_sqlite:
            self._keep_private()

    def require_current(self) -> None:
        """Check that the schema is that of this program; change nothing.

        Raises
        ------
        DatabaseDown, SchemaMismatch
        """
        if self.file is not None and not self.file.exists():
            raise DatabaseDown(f"There is no database at {self.file}; `pacs-node serve` makes it.")
        with _translated(self.name, self._url), self._engine.connect() as connection:
            current = _revision(connection)
        _require_known(current, self.name)
        if current is None:
            raise SchemaMismatch(f"{self.name} has no tables yet; `pacs-node serve` makes them.")
        if current != _scripts().get_current_head():
            raise SchemaMismatch(f"{self.name} has an older schema; `pacs-node serve` brings it up to date.")

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(_encoded(url))
    except (ArgumentError, ValueError) as error:  # ValueError: the port is not a number
        raise DatabaseError("The database URL is wrong; write it like sqlite:///pacs_node.sqlite.") from error
    if parsed.drivername not in _DRIVERS:
        raise DatabaseError(f"The database {parsed.drivername!r} is not supported; use sqlite or postgresql.")
    return parsed.set(drivername=_DRIVERS[parsed.drivername])


def _encoded(url: str) -> str:
    """Return a URL whose user and password end at the first @, with each other @ of the password escaped."""
    scheme, separator, rest = url.partition("://")
    user, at, host = rest.partition("?")[0].rpartition("@")
    if at and "/" in host:
        host += rest[len(user) + 1 + len(host) :]  # the query, in which an @ does not belong to the password
    else:
        user, at, host = rest.rpartition("@")
    if not at or scheme.startswith("sqlite"):
        return url
    return f"{scheme}{separator}{user.replace('@', '%40')}@{host}"


def _secrets(url: URL) -> list[str]:
    """Return each password in the URL, plain and in each escaped form, the longest form first."""
    values = [url.password, *(url.query.get(key) for key in ("password", "sslpassword"))]
    plain = {one for value in values if value for one in ((value,) if isinstance(value, str) else value)}
    forms = {form(one) for one in plain for form in (str, quote, quote_plus, partial(quote, safe=""))}
    return sorted(forms, key=len, reverse=True)


def _hidden(text: str, url: URL) -> str:
    """Return a driver message without passwords."""
    for secret in _secrets(url):
        text = text.replace(secret, "***")
    return text


@contextmanager
def _transaction(engine: Engine, name: str) -> Iterator[Session]:
    with _translated(name, engine.url), Session(engine, expire_on_commit=False) as session, session.begin():
        yield session


@contextmanager
def _translated(name: str, url: URL) -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise WriteConflict(f"Another transaction on {name} came first.") from error
    except (OperationalError, InterfaceError, InternalError, PoolTimeout) as error:
        cause = _hidden(_cause(error), url)
        raise DatabaseDown(f"The database {name} does not work: {cause}.") from error
    except DBAPIError as error:
        cause = _hidden(_cause(error), url)
        raise DatabaseError(f"The database {name} refused a statement: {cause}.") from error


def _cause(error: SQLAlchemyError) -> str:
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # `_begin_sqlite` begins transactions
    for pragma in (
        f"journal_mode={journal_mode(sqlite.sqlite_version_info)}",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def journal_mode(version: tuple[int, ...]) -> str:
    """Return the fastest journal mode in which this version of SQLite loses no committed write.

    Versions 3.7.0 to 3.51.2, except the fixed 3.44.6 and 3.50.7, can lose a write in WAL mode with two or
    more connections (sqlite.org, "WAL-reset bug").
    """
    is_mended = version >= (3, 51, 3) or any(
        good <= version < (*good[:2], 99) for good in ((3, 44, 6), (3, 50, 7))
    )
    return "WAL" if is_mended else "TRUNCATE"


def _begin_sqlite(connection: Connection) -> None:
    if not connection.get_execution_options().get("pacs_node_writes"):
        connection.exec_driver_sql("BEGIN")
        return
    # SQLite itself would check the lock at ever longer intervals, up to a tenth of a second
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA busy_timeout=0")
    try:
        if not _began(driver):
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # to get the error that SQLAlchemy makes of it
    finally:
        driver.execute(f"PRAGMA busy_timeout={int(1000 * _BUSY_SECONDS)}")


def _began(driver: Any) -> bool:
    """Begin to write as soon as another process releases the lock; tell whether it did in time."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while time.monotonic() < deadline:
        try:
            driver.execute("BEGIN IMMEDIATE")
        except sqlite.Error as error:
            if "locked" not in str(error):
                return False
        else:
            return True
        time.sleep(_LOOK_SECONDS)
    return False


def _alembic(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_alembic())


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _require_known(revision: str | None, name: str) -> None:
    if revision is not None and revision not in {script.revision for script in _scripts().walk_revisions()}:
        raise SchemaMismatch(f"{name} was written by a newer version; update the program.")
