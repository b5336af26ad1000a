"""What people order, by commands or in the reading list: try again, give up, do without."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from db import status
from db.session import Database
from pacs_node.config import Settings
from pacs_node.errors import UserError


def retry(settings: Settings, database: Database, study_uid: str | None, *, resend: bool = False) -> int:
    """Try again what was given up; return how many jobs that are.

    Parameters
    ----------
    study_uid
        Only work of this study; ``None`` means everything.
    resend
        Whether the newest report of the study is sent again, unchanged, to the destinations that have it.

    Raises
    ------
    UserError
        If there is no such study.
    """
    now = datetime.now(UTC)
    give_up_at = now + timedelta(hours=settings.deliver.give_up_hours)
    with database.write() as session:
        if study_uid is not None and not status.study_exists(session, study_uid):
            raise UserError(f"There is no study {study_uid}; `pacs-node results --format csv` lists studies.")
        number = status.retry(session, study_uid, give_up_at)
        if resend and study_uid is not None:
            names = [one.name for one in settings.destinations]
            number += status.resend(session, study_uid, give_up_at, now, destinations=names)
    return number


def abandon(settings: Settings, database: Database, destination: str) -> int:
    """Give up reports for a destination that no longer exists; return how many.

    Raises
    ------
    UserError
        If it still is among the destinations.
    """
    if destination in {one.name for one in settings.destinations}:
        raise UserError(f"{destination} is still in [[destinations]]; remove it and restart the node.")
    with database.write() as session:
        return status.abandon(session, destination, datetime.now(UTC))


def dismiss(database: Database, study_uid: str) -> None:
    """Let a study be without report.

    Raises
    ------
    UserError
        If nothing prevents its report.
    """
    with database.write() as session:
        if not status.dismiss(session, study_uid, datetime.now(UTC)):
            raise UserError(f"Nothing prevents a report of study {study_uid}; see `pacs-node status`.")
