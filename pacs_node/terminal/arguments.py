"""Arguments of the commands: choices, dates and ages."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pacs_node.errors import UserError


class OutputFormat(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


class RowFormat(StrEnum):
    """How rows of a view are printed or written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


class StudyDecision(StrEnum):
    """The decision on a study, as reported."""

    POSITIVE = "positive"
    NEGATIVE = "negative"
    UNDETERMINED = "undetermined"
    WAITING = "waiting"


class DecisionFilter(StrEnum):
    """The decision on an image."""

    POSITIVE = "positive"
    NEGATIVE = "negative"
    UNDETERMINED = "undetermined"
    NOT_SCORED = "not_scored"
    WAITING = "waiting"


class Fetching(StrEnum):
    """How images are fetched from a PACS."""

    MOVE = "move"
    GET = "get"


class DeliveryState(StrEnum):
    """What became of a report at a destination."""

    PENDING = "pending"
    DELIVERED = "delivered"
    COMMITTED = "committed"
    FAILED = "failed"
    ABANDONED = "abandoned"


class StatusFormat(StrEnum):
    """How the status is printed."""

    TABLE = "table"
    JSON = "json"


ConfigOption = Annotated[
    Path | None,
    typer.Option(help="Settings file; by default config.toml in the current folder, if it exists."),
]
EverythingOption = Annotated[
    bool,
    typer.Option("--all", help="Also results of programs, such as the node's own reports and heat maps."),
]
BomOption = Annotated[
    bool, typer.Option("--bom", help="Begin CSV with a byte order mark, by which Excel knows UTF-8.")
]
LimitOption = Annotated[
    int | None,
    typer.Option(min=1, help="Most rows; by default 100 in a table for people, else all."),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Write a file, which is whole or not there.")
]
DeidentifyOption = Annotated[
    bool,
    typer.Option(
        "--deidentify", help="Without what tells who the patients are: pseudonyms, shifted dates, no names."
    ),
]
KeyOption = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="Secret key of --deidentify, by which pseudonyms stay the same; made where there is none.",
    ),
]
TlsOption = Annotated[
    bool,
    typer.Option("--tls", help="Connect over TLS, with the files that section tls of the settings names."),
]
CallingOption = Annotated[str, typer.Option("--from", metavar="AE", help="Own AE title.")]


def study_dates(text: str) -> tuple[str, str]:
    """Read one or two dates."""
    first, _, last = text.partition("/")
    try:
        days = (date.fromisoformat(first), date.fromisoformat(last or first))
    except ValueError as error:
        raise UserError(f"{text!r} is not a date; write 2025-06-10, or 2025-06-10/2025-06-12.") from error
    return f"{days[0]:%Y%m%d}", f"{days[1]:%Y%m%d}"


def moment(text: str, now: datetime) -> datetime:
    """Read a date, a time, or an age; without a zone, the time zone of this machine counts."""
    age = re.fullmatch(r"(\d+)([mhd])", text)
    try:
        if age is not None:
            unit = {"m": "minutes", "h": "hours", "d": "days"}[age[2]]
            return now - timedelta(**{unit: int(age[1])})
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:  # the latter: before the year 1
        raise UserError(f"{text!r} is not a time; write 2025-06-10, 2025-06-10T08:30 or 2h.") from error
