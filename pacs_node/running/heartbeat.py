"""Heartbeats: each process tells the database that it is at work."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from db import queries
from db.errors import DatabaseError
from db.session import Database
from pacs_node.config import Settings

HEARTBEAT_SECONDS = 10.0


@contextmanager
def heartbeats(settings: Settings, role: str, number: int = 0) -> Iterator[None]:
    """Tell the database every few seconds that this process is at work, for `status` to see."""
    role = f"{role} {number + 1}" if number else role
    database, host = Database(settings.database.url), socket.gethostname()
    started_at, ended = datetime.now(UTC), threading.Event()

    def give() -> None:
        while True:
            with suppress(DatabaseError), database.write() as session:
                queries.record_heartbeat(session, role, host, started_at)
            if ended.wait(HEARTBEAT_SECONDS):
                return

    thread = threading.Thread(target=give, daemon=True)
    thread.start()
    yield
    ended.set()
    thread.join()
    with suppress(DatabaseError), database.write() as session:
        queries.forget_heartbeat(session, role, host)
