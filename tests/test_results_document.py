"""docs/results-database.md: its dictionary has every column, its questions are answered on both databases."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from db import rescores
from db.models import Delivery, Verdict
from db.rows import NewScore
from db.session import Database
from tests.helpers.commands import command, configure
from tests.helpers.databases import only_sqlite
from tests.helpers.rows import NOW, instance_id, new, receive, register, report, score

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "results-database.md").read_text()
VIEWS = ("studies", "results", "scores", "ledger", "deliveries", "verdicts")


def blocks(language: str, page: str = PAGE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)```", page, re.DOTALL | re.MULTILINE)


def questions() -> dict[int, str]:
    """Return the query of each question, by its number."""
    section = PAGE.split("## Ten questions")[1].split("\n## ")[0]
    _, *parts = re.split(r"^### (\d+)\. .*$", section, flags=re.MULTILINE)
    asked = {int(number): blocks("sql", part) for number, part in zip(parts[::2], parts[1::2], strict=True)}
    assert all(len(queries) == 1 for queries in asked.values())
    return {number: query for number, (query,) in asked.items()}


@pytest.fixture
def filled(database: Database) -> Database:
    """A database with ten studies a day apart, scored by two models, reported and on their way."""
    for day in range(10):
        add_study(database, day)
    with database.write() as session:
        for delivery in session.query(Delivery):
            came = NOW + timedelta(days=delivery.report_id - 1)
            delivery.state, delivery.status = "delivered", 0
            delivery.delivered_at = came + timedelta(seconds=delivery.report_id)
        last = session.query(Delivery).order_by(Delivery.id.desc()).first()
        assert last is not None
        last.state, last.tries, last.error, last.delivered_at = "failed", 3, "The PACS refused it", None
        given: dict[str, Any] = {"comment": "", "person": "reader", "given_at": NOW}
        for label in ("no_pneumonia", "agree"):  # who changes his mind gives another verdict
            session.add(Verdict(instance_id=1, score_id=1, label=label, score_was_visible=False, **given))
    return database


def add_study(database: Database, day: int) -> None:
    """Add a frontal image, positive on each other day, and a lateral one that was refused."""
    at, study = NOW + timedelta(days=day), str(day)
    made: dict[str, Any] = {"study_date": f"{at:%Y%m%d}", "received_at": at, "manufacturer": "ACME"}
    made |= {"modality": "DX", "station_name": f"ROOM-{day % 2}", "study": study}
    receive(database, new(patient_age=float(3 * day), **made))
    receive(database, new(2, view_position="LL", **made))
    answer: dict[str, Any] = {"probability": 0.1, "decision": "negative"}
    if day % 2 == 0:
        answer = {"probability": 0.9, "decision": "positive"}
    refused: dict[str, Any] = {
        "probability": None,
        "decision": "not_scored",
        "reason": "NOT_FRONTAL",
        "view": "LL",
    }
    first = score(database, study=study, novelty=0.5, **answer)
    second = score(database, 2, study, detail="It is LL", **refused)
    one, other = (instance_id(database, number, study) for number in (1, 2))
    again: dict[str, Any] = {"probability": 0.8, "threshold": 0.5, "decision": "positive", "reason": None}
    again |= {"instance_id": one, "model_id": register(database, "Another"), "detail": "", "view": "PA"}
    with database.write() as session:
        rescores.add(session, NewScore(scored_at=NOW + timedelta(days=99), **again))
    report(database, {one: first, other: second}, study=study)


def answers(database: Database, query: str) -> list[tuple[Any, ...]]:
    with database.read() as session:
        return [tuple(row) for row in session.execute(text(query.strip().rstrip(";")))]


def test_the_dictionary_has_each_column_of_each_view_and_no_other(database: Database) -> None:
    for view in VIEWS:
        section = PAGE.split(f"\n## `{view}`\n")[1].split("\n## ")[0]
        named = [
            name
            for line in re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
            for name in re.findall(r"`(\w+)`", line)
        ]
        with database.read() as session:
            columns = list(session.execute(text(f"SELECT * FROM {view}")).keys())
        assert sorted(named) == sorted(columns), view
        assert len(named) == len(set(named))


def test_ten_questions_are_answered(filled: Database) -> None:
    found = {number: answers(filled, query) for number, query in questions().items()}
    assert sorted(found) == list(range(1, 11))
    assert found[1][0] == ("20250619", "positive", 1)
    assert len(found[1]) == 10
    assert [tuple(row) for row in found[2][:2]] == [("2025-06-10", 2, 1, 1), ("2025-06-11", 2, 1, 0)]
    by_room = {row[2]: (row[3], row[4], float(row[5]), row[6]) for row in found[3]}
    assert by_room["ROOM-0"] == (10, 5, 1.0, 0.5)
    assert by_room["ROOM-1"] == (10, 5, 0.0, 0.5)
    ages = {(row[0], row[1]): row[2] for row in found[4]}
    assert ages["0", "positive"] == 1
    assert ages["1-5", "negative"] == 1
    assert ages["unknown", "not_scored"] == 10
    agreement = {(row[0], row[3]): (row[4], round(row[5], 6)) for row in found[5]}
    assert agreement == {("positive", "positive"): (5, 0.1), ("negative", "positive"): (5, 0.7)}
    studies, half, nine, longest = found[6][0]
    assert (studies, round(half), round(longest)) == (9, 5, 9)
    assert nine == longest
    assert found[7] == [("NOT_FRONTAL", "LL", 10, "It is LL")]
    assert [row[2:] for row in found[8]] == [("ARCHIVE", "failed", 3, "The PACS refused it")]
    assert found[9] == [("ARCHIVE", "report", 10, 9, 0, 1, 3), ("PACS", "report", 10, 10, 0, 0, 0)]
    assert [row[:2] + row[3:] for row in found[10]] == [("positive", "agree", 1)]


def test_the_other_queries_are_answered_too(filled: Database) -> None:
    more = blocks("sql", PAGE.split("\n## More\n")[1])
    kind = "sqlite" if filled.is_sqlite else "postgresql"
    for query in [one for block in more for one in block.split(";") if one.strip()] + blocks(kind):
        found = answers(filled, query)
        assert found or "2026-11-23" in query, query


@pytest.fixture
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("in_berlin")
def test_a_local_day_begins_at_local_midnight(database: Database) -> None:
    came = datetime(2026, 11, 30, 23, 30, tzinfo=UTC)
    receive(database, new(received_at=came, study_date="20261201"))
    (query,) = blocks("sqlite" if database.is_sqlite else "postgresql")
    ((day, images),) = answers(database, query)
    assert (str(day), images) == ("2026-12-01", 1)


def test_an_empty_database_answers_with_no_rows(database: Database) -> None:
    for query in questions().values():
        assert answers(database, query) in ([], [(0, None, None, None)])


@only_sqlite
def test_the_script_reads_what_the_commands_write(
    filled: Database, database_url: str, tmp_path: Path
) -> None:
    configure(tmp_path, database_url, 104)
    for name in ("results", "studies", "scores"):
        form = ("--format", "parquet", "--out", tmp_path / f"{name}.parquet")
        key = ("--deidentify", "--key", tmp_path / "study.key", "--config", tmp_path / "config.toml")
        done = command(name, *form, *key)
        assert done.returncode == 0, done.stderr
    script = [sys.executable, str(ROOT / "docs" / "results.py"), str(tmp_path)]
    ran = subprocess.run(script, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    months, ages, models = ran.stdout.strip().split("\n\n")
    assert sum(int(line.split()[-2]) for line in months.splitlines()[1:]) == 10
    assert re.search(r"^unknown +10 +0 +0$", ages, re.MULTILINE)
    assert re.search(r"^positive +5$", models, re.MULTILINE)
    assert re.search(r"^negative +5$", models, re.MULTILINE)
