"""Databases of one kind, and rows to count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import func, insert, select

from db.models import Model
from db.session import Database

NOW = datetime(2025, 6, 10, 1, 30, 0, 123456, tzinfo=UTC)


only_sqlite = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


only_postgresql = pytest.mark.parametrize("backend", ["postgresql"], indirect=True)


def model(sha256: str = "5e" * 32, started_at: datetime = NOW) -> Any:
    """Return a statement that adds a row which needs no other."""
    values = {"sha256": sha256, "name": "m", "version": "1", "threshold": 0.5, "preprocessing": "p"}
    return insert(Model).values(**values, card="{}", last_started_at=started_at)


def add(database: Database, *models: str) -> None:
    with database.write() as session:
        for sha256 in models:
            session.execute(model(sha256))


def how_many(database: Database, entity: Any = Model) -> int:
    with database.read() as session:
        return int(session.execute(select(func.count()).select_from(entity)).scalar_one())


@contextmanager
def opened(url: str) -> Iterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        database.close()
