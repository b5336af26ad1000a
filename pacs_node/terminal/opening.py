"""What commands need first: settings, database, and the period that is meant."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pacs_node.terminal.arguments import moment

if TYPE_CHECKING:
    from db.session import Database
    from pacs_node.config import Settings


def configured(config: Path | None) -> Settings:
    """Read the settings and begin to log as they say."""
    from pacs_node import log  # noqa: PLC0415
    from pacs_node.config import load  # noqa: PLC0415

    settings = load(config)
    log.configure(settings.log)
    return settings


def opened(settings: Settings) -> Database:
    """Return the database, which must be of this version."""
    from db.session import Database  # noqa: PLC0415

    database = Database(settings.database.url)
    database.require_current()
    return database


def moments(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    """Return begin and end of a period, both relative to the same moment."""
    now = datetime.now(UTC)
    first, last = (None if text is None else moment(text, now) for text in (since, until))
    return first, last
