"""The results database as such: its schema, whole transactions, and what it says when it does not work."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, create_engine, func, inspect, select, text
from sqlalchemy.exc import StatementError

from db import accounts  # noqa: F401 - its tables belong to the metadata
from db.errors import DatabaseDown, DatabaseError, SchemaMismatch, WriteConflict
from db.models import Base, Model
from db.session import _POSTGRESQL, Database, journal_mode, sqlite
from tests.helpers.databases import NOW, add, how_many, model, only_postgresql, only_sqlite, opened
from tests.helpers.postgres import Server

UPGRADE = "import sys; from db.session import Database; input(); Database(sys.argv[1]).upgrade()"


@contextmanager
def other_program(url: str) -> Iterator[Engine]:
    """Return a context with plain access to a database."""
    engine = create_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def change(url: str, *statements: str) -> None:
    with other_program(url) as engine, engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def described(engine: Engine) -> dict[str, Any]:
    """Return all that a database knows of its tables, constraints and indexes, as text."""
    inspector = inspect(engine)
    looks = (
        *(inspector.get_columns, inspector.get_foreign_keys, inspector.get_unique_constraints),
        *(inspector.get_check_constraints, inspector.get_indexes),
    )
    return {
        name: [plain(inspector.get_pk_constraint(name)), *(plain(by_name(look(name))) for look in looks)]
        for name in inspector.get_table_names()
        if name != "alembic_version"
    }


def by_name(constraints: Any) -> list[Any]:
    return sorted(constraints, key=lambda constraint: str(constraint["name"]))


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list) else str(value)


def test_an_upgraded_database_needs_no_migration_to_match_the_models(database_url: str) -> None:
    with other_program(database_url) as engine, engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_an_upgraded_database_has_the_very_constraints_and_indexes_of_the_models(
    database_url: str, empty_url: str
) -> None:
    with other_program(database_url) as upgraded, other_program(empty_url) as created:
        Base.metadata.create_all(created)
        assert described(upgraded) == described(created)


def test_upgrading_an_upgraded_database_keeps_what_it_holds(empty_url: str) -> None:
    with opened(empty_url) as database:
        database.upgrade()
        with database.write() as session:
            session.execute(model())
        database.upgrade()
        database.require_current()
        assert how_many(database) == 1


def test_processes_that_upgrade_at_the_same_time_do_not_disturb_each_other(empty_url: str) -> None:
    command = [sys.executable, "-c", UPGRADE, empty_url]
    root = Path(__file__).parents[2]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stderr"), subprocess.PIPE)
    processes = [subprocess.Popen(command, cwd=root, text=True, **pipes) for _ in range(3)]
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(lambda process: process.communicate("go\n")[1], processes))
    assert [process.returncode for process in processes] == [0, 0, 0], said
    with opened(empty_url) as database:
        database.require_current()


def test_a_database_of_a_newer_program_is_refused(database: Database, database_url: str) -> None:
    change(database_url, "UPDATE alembic_version SET version_num = '9999'")
    for look in (database.upgrade, database.require_current):
        with pytest.raises(SchemaMismatch, match="written by a newer version; update the program"):
            look()


def test_a_database_of_another_program_is_refused_and_left_alone(empty_url: str) -> None:
    change(empty_url, "CREATE TABLE study (name TEXT)", "INSERT INTO study VALUES ('of archive X')")
    with opened(empty_url) as database, pytest.raises(SchemaMismatch, match="tables of another program"):
        database.upgrade()
    with other_program(empty_url) as engine, engine.connect() as connection:
        assert connection.scalar(text("SELECT name FROM study")) == "of archive X"
        assert inspect(connection).get_table_names() == ["study"]


def test_an_upgrade_that_fails_half_way_leaves_nothing_behind(empty_url: str) -> None:
    change(empty_url, "CREATE TABLE job (id INTEGER)")  # made last by the first migration
    with opened(empty_url) as database, pytest.raises(DatabaseError):
        database.upgrade()
    with other_program(empty_url) as engine:
        assert inspect(engine).get_table_names() == ["job"]


def test_a_database_without_tables_is_not_taken_for_a_current_one(empty_url: str) -> None:
    with opened(empty_url) as database:
        if database.file is not None:
            database.file.touch()
        with pytest.raises(SchemaMismatch, match="has no tables yet; `pacs-node serve` makes them"):
            database.require_current()


def test_reading_makes_no_file_in_the_place_of_one_that_was_removed(tmp_path: Path) -> None:
    file = tmp_path / "results.sqlite"
    with (
        opened(f"sqlite:///{file}") as database,
        pytest.raises(DatabaseDown, match="put it back"),
        database.read() as session,
    ):
        session.execute(text("SELECT 1"))
    assert not file.exists()


def test_a_missing_file_is_named_and_not_made_by_looking_for_it(tmp_path: Path) -> None:
    file = tmp_path / "results.sqlite"
    with opened(f"sqlite:///{file}") as database, pytest.raises(DatabaseDown, match=f"no database at {file}"):
        database.require_current()
    assert not file.exists()


def test_a_folder_that_is_missing_is_a_database_that_is_down(tmp_path: Path) -> None:
    with (
        opened(f"sqlite:///{tmp_path}/missing/results.sqlite") as database,
        pytest.raises(DatabaseDown, match=r"missing/results\.sqlite does not work: unable to open"),
    ):
        database.upgrade()


def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "results.sqlite").write_bytes(b"DICM" * 1000)
    with (
        opened(f"sqlite:///{tmp_path}/results.sqlite") as database,
        pytest.raises(DatabaseError, match="file is not a database"),
    ):
        database.require_current()


@pytest.mark.parametrize(
    "url", ["postgresql://node:s3cret@{}/x", "postgresql+psycopg://node@{}/x?password=s3cret"]
)
def test_an_unreachable_server_is_reported_at_once_and_without_the_password(url: str) -> None:
    with socket.socket() as bound:  # but not listening
        bound.bind(("127.0.0.1", 0))
        with opened(url.format(f"127.0.0.1:{bound.getsockname()[1]}")) as database:
            started = time.monotonic()
            with pytest.raises(DatabaseDown, match=r"does not work: .*refused") as raised:
                database.upgrade()
            assert time.monotonic() - started < 60
            assert "127.0.0.1" in database.name
            assert "s3cret" not in database.name + str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        *("", "results.sqlite", "mysql://localhost/results", "postgres://localhost/results"),
        *("postgresql+nosuchdriver://localhost/results", "postgresql://localhost:port/results"),
    ],
)
def test_a_url_that_names_no_database_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(DatabaseError, match=r"^The database .*sqlite.*\.$"):
        Database(url)


def test_a_transaction_is_written_whole_or_not_at_all(database: Database) -> None:
    def write(then: str) -> None:
        with database.write() as session:
            session.execute(model("a"))
            session.execute(model("b"))
            int(then)

    with pytest.raises(ValueError, match="the power goes"):
        write("the power goes")
    assert how_many(database) == 0
    write("1")
    assert how_many(database) == 2


def test_a_row_that_exists_already_is_a_conflict_that_takes_its_transaction_back(database: Database) -> None:
    add(database, "a")
    with pytest.raises(WriteConflict):
        add(database, "b", "a")
    assert how_many(database) == 1


def test_a_row_that_refers_to_nothing_is_refused(database: Database) -> None:
    with pytest.raises(WriteConflict), database.write() as session:
        session.execute(text("INSERT INTO report_image (report_id, instance_id) VALUES (7, 7)"))


def test_a_statement_that_makes_no_sense_is_an_error_of_the_database_package(database: Database) -> None:
    with pytest.raises(DatabaseError), database.read() as session:
        session.execute(text("SELECT nothing FROM nowhere"))


def test_a_reader_sees_one_state_whatever_is_written_meanwhile(database: Database) -> None:
    def write() -> None:
        with database.write() as session:
            session.execute(model())

    count = select(func.count()).select_from(Model)
    writer = threading.Thread(target=write)
    with database.read() as session:
        before = session.execute(count).scalar_one()
        writer.start()
        writer.join(0.3)  # SQLite may let it wait until the reader is done
        assert session.execute(count).scalar_one() == before == 0
    writer.join()
    assert how_many(database) == 1


def test_sqlite_says_when_another_program_holds_the_lock_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("db.session._BUSY_SECONDS", 0.2)
    with opened(f"sqlite:///{tmp_path}/results.sqlite") as database:
        database.upgrade()
        with closing(sqlite.connect(tmp_path / "results.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(DatabaseDown, match="does not work: database is locked"):
                add(database, "a")
            other.execute("COMMIT")
        add(database, "a")
        assert how_many(database) == 1


def test_sqlite_says_when_its_file_is_none_any_more(tmp_path: Path) -> None:
    def tell(pragma: str) -> None:
        with database._engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            driver.execute(pragma).fetchall()

    with opened(f"sqlite:///{tmp_path}/results.sqlite") as database:
        database.upgrade()
        add(database, "a")
        tell("PRAGMA wal_checkpoint(TRUNCATE)")
        with (tmp_path / "results.sqlite").open("r+b") as file:
            file.write(b"no database at all" * 1024)
        tell("PRAGMA shrink_memory")
        with pytest.raises(DatabaseError, match=r"results\.sqlite"):
            add(database, "b")


@only_sqlite
def test_sqlite_waits_for_a_short_lock_and_lets_read_then_write_transactions_queue(
    database: Database,
) -> None:
    def count_up(_: int) -> None:
        with database.write() as session:
            known = session.execute(select(func.count()).select_from(Model)).scalar_one()
            time.sleep(0.01)
            session.execute(model(str(known)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count_up, range(12)))
    assert how_many(database) == 12


@only_sqlite
def test_sqlite_answers_only_when_the_data_is_on_the_disk(database: Database) -> None:
    with database.write() as session:
        assert session.scalar(text("PRAGMA synchronous")) == 2  # FULL
        expected = journal_mode(sqlite.sqlite_version_info).lower()
        assert session.scalar(text("PRAGMA journal_mode")) == expected


@pytest.mark.parametrize(
    ("version", "mode"),
    [
        *(((3, 40, 1), "TRUNCATE"), ((3, 44, 5), "TRUNCATE"), ((3, 44, 6), "WAL"), ((3, 45, 0), "TRUNCATE")),
        *(((3, 50, 6), "TRUNCATE"), ((3, 50, 7), "WAL"), ((3, 50, 8), "WAL"), ((3, 51, 0), "TRUNCATE")),
        *(((3, 51, 2), "TRUNCATE"), ((3, 51, 3), "WAL"), ((3, 52, 0), "WAL"), ((4, 0, 0), "WAL")),
    ],
)
def test_wal_is_used_only_where_sqlite_loses_no_write(version: tuple[int, ...], mode: str) -> None:
    assert journal_mode(version) == mode


@only_postgresql
def test_connections_that_the_server_ended_are_replaced(
    database: Database, database_url: str, postgres_server: Server
) -> None:
    add(database, "a")
    postgres_server.disconnect(database_url.rpartition("/")[2])
    add(database, "b")
    assert how_many(database) == 2


@only_postgresql
def test_a_connection_that_breaks_within_a_transaction_loses_it_whole(
    database: Database, database_url: str, postgres_server: Server
) -> None:
    def write() -> None:
        with database.write() as session:
            session.execute(model("a"))
            postgres_server.disconnect(database_url.rpartition("/")[2])
            session.execute(model("b"))

    with pytest.raises(DatabaseDown):
        write()
    assert how_many(database) == 0


@only_postgresql
def test_postgresql_says_when_another_program_holds_a_lock_too_long(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_POSTGRESQL, "options", _POSTGRESQL["options"].replace("=30s", "=200ms"))
    with opened(database_url) as database, other_program(database_url) as engine, engine.begin() as other:
        other.execute(text("LOCK TABLE model"))
        with pytest.raises(DatabaseDown, match="lock timeout"):
            add(database, "a")


@only_postgresql
def test_a_program_that_stands_still_in_a_transaction_does_not_keep_its_locks(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = "idle_in_transaction_session_timeout="
    options = _POSTGRESQL["options"].replace(f"{limit}30s", f"{limit}200ms")
    monkeypatch.setitem(_POSTGRESQL, "options", options)

    def stand_still(other: Database) -> None:
        with other.write() as session:
            session.execute(text("LOCK TABLE model"))
            add(database, "a")
            session.execute(model("b"))

    with opened(database_url) as database, opened(database_url) as other:
        with pytest.raises(DatabaseDown):
            stand_still(other)
        assert how_many(database) == 1


@only_postgresql
def test_a_short_url_of_postgresql_is_understood(database_url: str) -> None:
    with opened(database_url.replace("+psycopg", "")) as database:
        database.require_current()


@pytest.mark.parametrize("hours", [-5, 0, 9])
def test_moments_come_back_in_utc_whatever_zone_they_had(database: Database, hours: int) -> None:
    moment = NOW.astimezone(timezone(timedelta(hours=hours)))
    with database.write() as session:
        session.execute(model(started_at=moment))
    with database.read() as session:
        stored = session.scalars(select(Model.last_started_at)).one()
        assert stored == moment
        assert stored.tzinfo is UTC
        assert session.scalars(select(Model.id).where(Model.last_started_at >= moment)).all()
        assert not session.scalars(select(Model.id).where(Model.last_started_at > moment)).all()


def test_a_moment_without_zone_is_refused(database: Database) -> None:
    with pytest.raises(StatementError, match="a moment needs a time zone"), database.write() as session:
        session.execute(model(started_at=NOW.replace(tzinfo=None)))
    assert how_many(database) == 0
