"""Whether stored files and database rows match; nothing is changed here."""

from __future__ import annotations

from dataclasses import dataclass, field

from db import stock as stock_rows
from db.session import Database
from db.stock import Held
from pacs_node.storage.spool import Spool

_HEX = [f"{number:02x}" for number in range(256)]


@dataclass
class Stock:
    """What does not agree.

    Attributes
    ----------
    orphans
        Digests of whole files without row, older than a receiver needs to write it.
    missing
        Objects whose file should be there and is not.
    leftovers
        Digests of files that retention let go of, but which are still there.
    """

    orphans: list[str] = field(default_factory=list)
    missing: list[Held] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)


def take_stock(database: Database, spool: Spool, orphan_seconds: float) -> Stock:
    """Compare database and spool, and change nothing.

    Raises
    ------
    OSError, db.errors.DatabaseError
    """
    stock = Stock()
    for first, last in zip(_HEX, [*_HEX[1:], "g"], strict=True):
        # The rows first: a row is written after its file, so that one without file is no newcomer
        with database.read() as session:
            rows = stock_rows.held(session, first, last)
        files = set(spool.stored(first))
        for name in sorted(rows.keys() - files):
            if not rows[name]:
                stock.missing += _missing(database, spool, name)
        stock.leftovers += [d for d in sorted(rows.keys() & files) if rows[d]]
        stock.orphans += [
            d for d in sorted(files - rows.keys()) if _is_orphan(database, spool, d, orphan_seconds)
        ]
    return stock


def _missing(database: Database, spool: Spool, name: str) -> list[Held]:
    """Look again: it may have been let go, or have come back, since."""
    if spool.path(name).is_file():
        return []
    with database.read() as session:
        missed = stock_rows.missed(session, name)
    return [missed] if missed else []


def _is_orphan(database: Database, spool: Spool, name: str, orphan_seconds: float) -> bool:
    age = spool.age_seconds(name)
    if age is None or age < orphan_seconds:
        return False
    with database.read() as session:
        return not stock_rows.is_known(session, name)
