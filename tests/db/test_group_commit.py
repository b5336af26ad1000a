"""Threads that write together: one commit for those that wait, and each with an outcome of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, select
from sqlalchemy.orm import Session

from db.errors import DatabaseDown, WriteConflict
from db.group_commit import _Part
from db.models import Model
from db.session import Database, sqlite
from tests.helpers.databases import add, how_many, model, only_sqlite
from tests.helpers.workers import until

_MANY = 8


def nothing(_: object) -> None:
    """Check nothing before the commit."""


def writing(name: str) -> Callable[[Session], str]:
    def statements(session: Session) -> str:
        session.execute(model(name))
        return name

    return statements


@contextmanager
def commits(database: Database) -> Iterator[list[int]]:
    """Return a list that gets longer with each commit of a transaction that writes."""
    seen: list[int] = []

    def on_commit(connection: Connection) -> None:
        if connection.get_execution_options().get("pacs_node_writes"):
            seen.append(1)

    event.listen(database._engine, "commit", on_commit)
    yield seen
    event.remove(database._engine, "commit", on_commit)


@contextmanager
def others_waiting(
    database: Database, works: dict[str, Callable[[], object]]
) -> Iterator[dict[str, Future[object]]]:
    """Let a first writer hold on in its transaction until others have come to wait, each in a thread."""
    is_in, may_end = threading.Event(), threading.Event()

    def hold_on(_: object) -> None:
        is_in.set()
        assert may_end.wait(120)

    with ThreadPoolExecutor(len(works) + 1) as pool:
        first = pool.submit(database.write_together, writing("first"), hold_on)
        assert is_in.wait(120)
        others = {name: pool.submit(work) for name, work in works.items()}
        until(lambda: len(database._group._waiting) + sum(map(Future.done, others.values())) == len(works))
        time.sleep(0.3)  # who has little patience loses it
        may_end.set()
        assert first.result(120) == "first"
        yield others


def together(
    database: Database, name: str, check: Callable[[object], object] = nothing
) -> Callable[[], object]:
    return lambda: database.write_together(writing(name), check)


def test_each_thread_gets_what_its_own_statements_returned(database: Database) -> None:
    works = {str(number): together(database, str(number)) for number in range(_MANY)}
    with others_waiting(database, works) as others:
        assert {name: one.result(120) for name, one in others.items()} == {name: name for name in works}
    assert how_many(database) == _MANY + 1


@only_sqlite
def test_those_that_wait_share_a_commit(database: Database) -> None:
    works = {str(number): together(database, str(number)) for number in range(_MANY)}
    with commits(database) as seen, others_waiting(database, works) as others:
        for one in others.values():
            one.result(120)
        assert len(seen) == 2  # the first one's, and the others'
    assert how_many(database) == _MANY + 1


def test_what_prevents_one_is_nobody_elses_concern(database: Database) -> None:
    add(database, "there already")

    def refuse(_: object) -> None:
        raise OSError("The disk is full")

    works = {
        "a": together(database, "a"),
        "twice": together(database, "there already"),
        "refused": together(database, "refused", refuse),
        "b": together(database, "b"),
    }
    with others_waiting(database, works) as others:
        assert others["a"].result(120) == "a"
        assert others["b"].result(120) == "b"
        assert isinstance(others["twice"].exception(120), WriteConflict)
        assert isinstance(others["refused"].exception(120), OSError)
    with database.read() as session:
        assert set(session.scalars(select(Model.sha256))) == {"there already", "first", "a", "b"}


def test_nothing_is_committed_before_the_last_check(database: Database) -> None:
    def check(_: object) -> None:
        time.sleep(0.1)
        assert how_many(database) == 0

    database.write_together(writing("a"), check)
    assert how_many(database) == 1


def test_all_that_wait_hear_that_another_program_holds_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("db.session._BUSY_SECONDS", 0.5)
    database = Database(f"sqlite:///{tmp_path}/results.sqlite")
    database.upgrade()
    with closing(sqlite.connect(tmp_path / "results.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        with ThreadPoolExecutor(_MANY) as pool:
            works = [pool.submit(together(database, str(number))) for number in range(_MANY)]
            assert all(isinstance(work.exception(120), DatabaseDown) for work in works)
        assert time.monotonic() - started < 0.5 * (_MANY - 1)  # not one after the other
        other.execute("COMMIT")
    assert together(database, "a")() == "a"
    assert how_many(database) == 1
    database.close()


@only_sqlite
def test_who_waits_too_long_for_a_turn_is_told_so_and_has_written_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database._group, "_seconds", 0.1)
    with others_waiting(database, {"late": together(database, "late")}) as others:
        assert isinstance(others["late"].exception(120), DatabaseDown)
    add(database, "after")
    assert how_many(database) == 2  # first, after


@only_sqlite
def test_who_is_being_written_waits_for_the_outcome_however_long_it_takes(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database._group, "_seconds", 1.0)

    def take_long(_: object) -> None:
        time.sleep(1.5)

    works = {"slow": together(database, "slow", take_long), "with it": together(database, "with it")}
    with others_waiting(database, works) as others:
        assert others["slow"].result(120) == "slow"
        assert others["with it"].result(120) == "with it"
    assert how_many(database) == 3


@only_sqlite
def test_a_leader_that_dies_leaves_nobody_waiting(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all, calls = database._group._write_all, count()

    def die_at_the_second(parts: Sequence[_Part]) -> None:
        if next(calls):
            raise MemoryError
        write_all(parts)

    works = {str(number): together(database, str(number)) for number in range(3)}
    with monkeypatch.context() as patched:
        patched.setattr(database._group, "_write_all", die_at_the_second)
        with others_waiting(database, works) as others:
            ended = [one.exception(120) for one in others.values()]
    assert all(isinstance(one, MemoryError | DatabaseDown) for one in ended)
    assert together(database, "a")() == "a"
