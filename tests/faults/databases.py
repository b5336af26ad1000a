"""A database that stops, cuts its connections, or is locked by others."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from threading import Thread

import psycopg
from sqlalchemy import make_url

from db.session import sqlite
from tests.faults.judge import judge
from tests.faults.pacs import Pacs
from tests.faults.scenario import Outcome, Scenario
from tests.faults.senders import Modality, flat, studies
from tests.faults.world import World, wait_for
from tests.helpers.postgres import OwnServer, own_folder

_LONG = 33.0  # seconds; longer than any transaction of the node waits for a lock
_PATIENT = 25.0  # a transaction waits that long, and its sender is answered with Success in the end
_OUT_OF_RESOURCES = 0xA700


@contextmanager
def _sending(modality: Modality, files: list[list[Path]], associations: int = 3) -> Iterator[None]:
    """Send beside what the block does, and be through when it ends."""
    failed: list[BaseException] = []

    def send() -> None:
        try:
            modality.send_all(files, associations)
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    thread = Thread(target=send)
    thread.start()
    yield
    thread.join()
    if failed:
        raise failed[0]


def _require_honesty(modality: Modality) -> None:
    others = set(modality.statuses) - {0, _OUT_OF_RESOURCES, None}
    assert not others, f"answered with {others}"


def _database(url: str) -> psycopg.Connection[tuple[object, ...]]:
    """Return a connection of another program."""
    at = make_url(url)
    return psycopg.connect(host=at.host, port=at.port, user=at.username, dbname=at.database)


# PostgreSQL


def _stopped(folder: Path, url: str) -> Outcome:
    """The server is stopped as by a crash, and in good order, and started again after some seconds."""
    ways = (signal.SIGQUIT, signal.SIGINT, signal.SIGQUIT)
    with own_folder() as place, ExitStack() as stack:
        server = stack.enter_context(OwnServer(place))
        pacs = stack.enter_context(Pacs())
        world = stack.enter_context(World(folder, server.create(), {"PACS": pacs.port}))
        world.start()
        files = studies(folder / "sent", 90)
        modality = Modality(world.port)
        with _sending(modality, files):
            for number, way in enumerate(ways):
                wait_for(lambda n=number: len(modality.acknowledged) > 20 * n + 10, "images")  # type: ignore[misc]
                server.stop(way)
                time.sleep(3)
                server.start()
                ended = time.monotonic()
        _require_honesty(modality)
        assert modality.statuses[_OUT_OF_RESOURCES], "nobody noticed"
        verdict = judge(world, modality.acknowledged, pacs.reports, files=flat(files))
        return Outcome(len(ways), verdict, time.monotonic() - ended)


def _cut(folder: Path, url: str, times: int = 25) -> Outcome:
    """All connections to the database are cut, every now and then, while images come."""
    with Pacs() as pacs, World(folder, url, {"PACS": pacs.port}) as world:
        world.start()
        files = studies(folder / "sent", 2 * times + 10)
        modality = Modality(world.port)
        with _sending(modality, files), closing(_database(url)) as other:
            other.autocommit = True
            injected = 0
            for _ in range(times):
                time.sleep(0.3)
                done = other.execute(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                injected += int(str((done.fetchone() or (0,))[0]))
        ended = time.monotonic()
        _require_honesty(modality)
        verdict = judge(world, modality.acknowledged, pacs.reports, files=flat(files))
        assert injected >= 2 * times, f"only {injected} connections were cut"
        return Outcome(injected, verdict, time.monotonic() - ended)


def _table_locked(folder: Path, url: str) -> Outcome:
    """Another program locks the queue for longer than anybody waits, while images come."""
    with Pacs() as pacs, World(folder, url, {"PACS": pacs.port}) as world:
        world.start()
        files = studies(folder / "sent", 20)
        modality = Modality(world.port)
        modality.send_all(files[:4], 2)
        with closing(_database(url)) as other, _sending(modality, files[4:]):
            other.execute("LOCK TABLE job IN ACCESS EXCLUSIVE MODE")
            before = len(modality.acknowledged)
            time.sleep(_LONG)
            stored = len(modality.acknowledged) - before
            other.rollback()
            ended = time.monotonic()
        assert stored <= 3, f"{stored} images were stored beside the lock"
        _require_honesty(modality)
        verdict = judge(world, modality.acknowledged, pacs.reports, files=flat(files))
        seconds = time.monotonic() - ended
        refused = len(files) and modality.statuses[_OUT_OF_RESOURCES] + modality.statuses[None]
        assert refused, "nobody noticed"
        return Outcome(refused, verdict, seconds)


def _row_locked(folder: Path, url: str) -> Outcome:
    """Another program changes the row of a study and commits late: others go on, and its image waits."""
    with Pacs() as pacs, World(folder, url, {"PACS": pacs.port}) as world:
        world.start()
        locked = studies(folder / "locked", 1, 3)
        files = studies(folder / "sent", 8)
        modality, others = Modality(world.port), Modality(world.port)
        modality.send_once(locked[0][:1])
        with closing(_database(url)) as other, _sending(modality, [locked[0][1:]], 1):
            other.execute("UPDATE study SET patient_name = patient_name")
            started = time.monotonic()
            others.send_all(files, 2)
            wait_for(lambda: len(pacs.held) >= len(files), "the reports of others", 8)
            served = time.monotonic() - started
            time.sleep(max(0.0, 10 - served))
            assert len(modality.acknowledged) <= 2, "the lock held nobody up"
            other.rollback()
            ended = time.monotonic()
        assert others.statuses == {0: len(files)}, dict(others.statuses)
        assert set(modality.statuses) == {0}, dict(modality.statuses)
        both = modality.acknowledged | others.acknowledged
        verdict = judge(world, both, pacs.reports, files=flat([*files, *locked]))
        return Outcome(1, verdict, time.monotonic() - ended)


# SQLite


def _file_locked(folder: Path, url: str) -> Outcome:
    """Another program locks the file: for some time, in which all wait, and then for longer than that."""
    with Pacs() as pacs, World(folder, url, {"PACS": pacs.port}) as world:
        world.start()
        files = studies(folder / "sent", 18)
        modality = Modality(world.port)
        modality.send_all(files[:4], 2)
        assert world.database.file is not None
        with closing(sqlite.connect(world.database.file, timeout=60)) as other:
            for seconds, mine in ((5.0, files[4:10]), (_LONG, files[10:])):
                other.execute("BEGIN EXCLUSIVE")
                before = len(modality.acknowledged)
                with _sending(modality, mine):
                    time.sleep(seconds)
                    assert len(modality.acknowledged) == before, "stored beside the lock"
                    other.execute("ROLLBACK")
                    ended = time.monotonic()
                if seconds < _PATIENT:
                    assert set(modality.statuses) == {0}, f"a short lock: {dict(modality.statuses)}"
        _require_honesty(modality)
        verdict = judge(world, modality.acknowledged, pacs.reports, files=flat(files))
        seconds = time.monotonic() - ended
        refused = modality.statuses[_OUT_OF_RESOURCES] + modality.statuses[None]
        assert refused, "nobody noticed"
        return Outcome(refused, verdict, seconds)


SCENARIOS = [
    Scenario("database: PostgreSQL stopped and started", _stopped, ("postgresql",)),
    Scenario("database: connections cut", _cut, ("postgresql",), partial(_cut, times=6)),
    Scenario("database: the queue locked for 33 s", _table_locked, ("postgresql",)),
    Scenario("database: a study locked for 10 s", _row_locked, ("postgresql",)),
    Scenario("database: the file locked for 33 s", _file_locked, ("sqlite",)),
]
