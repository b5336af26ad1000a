"""Heartbeats: each process tells its supervisor and the database that it is at work.

They are given only while every work loop of the process gets on. An interpreter that stands still gives none,
nor does a loop that is stuck while other threads run.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from db import queries
from db.errors import DatabaseError
from db.session import Database
from pacs_node import log
from pacs_node.config import Settings
from pacs_node.progress import Progress

READY, BEAT = b"R", b"H"
"""What goes to the supervisor."""

STARTING = "(starting)"
"""Ends the name of a role in the database until its process is at work."""

_log = log.get(__name__)

_RECORD_SECONDS = 10.0  # between those for `status`
_BEAT_SECONDS = 1.0
_ALONE = 3  # times as long a process may be silent that no supervisor ends, until the kernel does


@contextmanager
def heartbeats(
    settings: Settings,
    role: str,
    number: int,
    loops: Sequence[Progress],
    control: socket.socket | None,
) -> Iterator[None]:
    """Give heartbeats as long as all loops get on.

    Parameters
    ----------
    number
        Which of several processes with this role it is.
    loops
        Those that do its work.
    control
        The socket to the supervisor, if there is one.
    """
    role = _numbered(role, number)
    database, host = Database(settings.database.url), socket.gethostname()
    started_at, ended = datetime.now(UTC), threading.Event()

    def beat() -> None:
        # There is no handler, so that the kernel ends the process, even if the interpreter stands still
        signal.setitimer(signal.ITIMER_REAL, _ALONE * settings.work.silent_seconds)
        if control is not None:
            with suppress(OSError):  # a supervisor that does not listen is as none
                control.send(BEAT, socket.MSG_DONTWAIT)

    def record() -> None:
        with suppress(DatabaseError), database.write() as session:
            queries.record_heartbeat(session, role, host, started_at)

    told = [(beat, _BEAT_SECONDS), (record, _RECORD_SECONDS)]
    threads = [threading.Thread(target=_repeat, args=(*one, loops, ended), daemon=True) for one in told]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        signal.setitimer(signal.ITIMER_REAL, 0)
        with suppress(DatabaseError), database.write() as session:
            queries.forget_heartbeat(session, role, host)


@contextmanager
def starting(settings: Settings, role: str, number: int) -> Iterator[None]:
    """Tell the database that a process gets ready, which takes long where it loads a model."""
    name = f"{_numbered(role, number)} {STARTING}"
    database, host = Database(settings.database.url), socket.gethostname()
    started_at, ended = datetime.now(UTC), threading.Event()

    def record() -> None:
        with suppress(DatabaseError), database.write() as session:
            queries.record_heartbeat(session, name, host, started_at)

    thread = threading.Thread(target=_repeat, args=(record, _RECORD_SECONDS, (), ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(DatabaseError), database.write() as session:
            queries.forget_heartbeat(session, name, host)
        database.close()


def _numbered(role: str, number: int) -> str:
    return f"{role} {number + 1}" if number else role


def _repeat(
    tell: Callable[[], None], seconds: float, loops: Sequence[Progress], ended: threading.Event
) -> None:
    was_stuck = False
    while not ended.is_set():
        is_stuck = any(loop.is_stuck for loop in loops)
        if is_stuck and not was_stuck:
            _log.critical("work hangs")
        if not is_stuck:
            tell()
        was_stuck = is_stuck
        ended.wait(seconds)
