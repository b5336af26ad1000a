"""Results for programs: /api/v1."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from db import tokens, verdicts
from db.accounts import ApiToken
from db.models import Audit
from db.results import RESULT_COLUMNS, STUDY_COLUMNS, Filter
from db.results import results as all_results
from db.row_pages import VERDICT_COLUMNS
from db.session import Database
from tests.conftest import uid
from tests.helpers import rows
from tests.helpers.commands import command
from tests.web.conftest import Site

TOKEN = "a token of tests"
SCHEMATHESIS = (
    *(sys.executable, "-m", "schemathesis.cli", "run", "--max-examples", "25", "--seed", "1", "--no-color"),
    *("--exclude-checks", "positive_data_acceptance"),  # a cursor that nobody gave is refused
)
KINDS = {"results": RESULT_COLUMNS, "studies": STUDY_COLUMNS, "verdicts": VERDICT_COLUMNS}


@pytest.fixture
def program(site: Site, client: httpx.Client) -> httpx.Client:
    """A client that has a token."""
    with site.database.write() as session:
        tokens.add(session, "tests", hashlib.sha256(TOKEN.encode()).hexdigest(), datetime.now(UTC))
    client.headers["Authorization"] = f"Bearer {TOKEN}"
    client.base_url = f"{site.address}/api/v1/"
    return client


def _filled(database: Database) -> None:
    """Record seven studies; some came at the same moment."""
    for number in range(7):
        name = str(number)
        received = rows.NOW + timedelta(hours=number // 3)
        rows.receive(database, rows.new(study=name, patient_name=f"Moon^{name}", received_at=received))
        if number != 6:
            decision = "positive" if number % 2 else "negative"
            score = rows.score(
                database, 1, name, probability=number / 10, decision=decision, scored_at=received
            )
            image = rows.instance_id(database, 1, name)
            rows.report(database, {image: score}, name)
            with database.write() as session:
                verdicts.give(session, image, "pneumonia", "", person="ada", at=received)


def _pages(client: httpx.Client, kind: str, **asked: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    while True:
        answer = client.get(kind, params={**asked, **after})
        assert answer.status_code == 200, answer.text
        found += answer.json()["rows"]
        if answer.json()["next"] is None:
            return found
        assert len(answer.json()["rows"]) == asked["limit"]
        after = {"after": answer.json()["next"]}


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_pages_have_each_row_once_in_the_order_of_the_command(
    site: Site, program: httpx.Client, limit: int
) -> None:
    _filled(site.database)
    with site.database.read() as session:
        expected = [row["sop_instance_uid"] for row in all_results(session, Filter())]
    assert [row["sop_instance_uid"] for row in _pages(program, "results", limit=limit)] == expected
    studies = [row["accession_number"] for row in _pages(program, "studies", limit=limit)]
    assert studies == [f"ACC-{number}" for number in reversed(range(7))]
    given = [row["accession_number"] for row in _pages(program, "verdicts", limit=limit)]
    assert given == [f"ACC-{number}" for number in reversed(range(6))]


def test_rows_that_come_between_two_pages_neither_repeat_nor_hide_others(
    site: Site, program: httpx.Client
) -> None:
    _filled(site.database)
    first = program.get("results", params={"limit": 3}).json()
    rows.receive(site.database, rows.new(study="new", received_at=rows.NOW + timedelta(days=1)))
    second = program.get("results", params={"limit": 100, "after": first["next"]}).json()
    uids = [row["sop_instance_uid"] for row in first["rows"] + second["rows"]]
    assert sorted(uids) == sorted(uid(number, 1) for number in range(7))


@pytest.mark.parametrize("kind", KINDS)
def test_filters_are_those_of_the_command(site: Site, program: httpx.Client, kind: str) -> None:
    _filled(site.database)
    later = (rows.NOW + timedelta(hours=1)).isoformat()
    for asked, numbers in (
        ({"patient": "Moon^3"}, "3"),
        ({"patient": "moon^*"}, "0123456"),
        ({"patient": "PID-2"}, "2"),
        ({"patient": "%"}, ""),
        ({"accession": "ACC-1"}, "1"),
        ({"study": uid("4", "study")}, "4"),
        ({"since": later}, "3456"),
        ({"until": later}, "012"),
        ({"first_study_date": "2025-06-10", "last_study_date": "2025-06-10"}, "0123456"),
        ({"first_study_date": "2025-06-11"}, ""),
        ({"min_probability": "0.35"}, "45"),
        ({"min_probability": "0.25", "since": later, "patient": "PID-3"}, "3"),
    ):
        found = [row["accession_number"][4:] for row in _pages(program, kind, limit=2, **asked)]
        expected = numbers.replace("6", "") if kind == "verdicts" else numbers
        assert "".join(sorted(found)) == expected, (asked, found)


def test_decisions_are_found(site: Site, program: httpx.Client) -> None:
    _filled(site.database)
    assert {row["accession_number"] for row in _pages(program, "results", limit=2, decision="negative")} == {
        "ACC-0",
        "ACC-2",
        "ACC-4",
    }
    (waiting,) = _pages(program, "results", limit=2, decision="waiting")
    assert waiting["accession_number"] == "ACC-6"
    assert waiting["probability"] is None
    assert len(_pages(program, "verdicts", limit=2, decision="positive")) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_rows_have_the_columns_of_the_views(site: Site, program: httpx.Client, kind: str) -> None:
    _filled(site.database)
    answer = program.get(kind).json()
    assert all(tuple(row) == KINDS[kind] for row in answer["rows"])


def test_only_a_valid_token_is_answered(site: Site, program: httpx.Client) -> None:
    assert program.get("results").status_code == 200
    kept = rows.rows(site.database, ApiToken)[0].token_hash
    for given in ("", "Bearer", "Bearer wrong", f"Bearer {kept}", f"Basic {TOKEN}x", "Bearer \xe9"):
        answer = program.get("results", headers=[(b"Authorization", given.encode("latin-1"))])
        assert answer.status_code == 401, given
        assert answer.headers["www-authenticate"] == "Bearer"
    with site.database.write() as session:
        assert tokens.revoke(session, "tests", rows.NOW)
    assert program.get("results").status_code == 401


def test_guesses_are_limited_and_hinder_no_valid_token(site: Site, program: httpx.Client) -> None:
    wrong = {"Authorization": "Bearer guess"}
    answers = [program.get("results", headers=wrong).status_code for _ in range(12)]
    assert answers == [401] * 10 + [429] * 2
    assert program.get("results").status_code == 200


def test_each_request_is_in_the_audit(site: Site, program: httpx.Client) -> None:
    _filled(site.database)
    program.get("results", params={"patient": "Moon^3"})
    program.get("results", headers={"Authorization": "Bearer guess"})
    did = [(row.person, row.action, row.detail) for row in rows.rows(site.database, Audit)]
    assert did == [
        ("token tests", "results read", "1 rows; patient=Moon%5E3"),
        ("unknown", "token refused", ""),
    ]


def _cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "asked",
    [
        {"limit": "0"},
        {"limit": "1001"},
        {"patient": "\0"},
        {"since": "2025-06-10"},
        {"until": "0.5"},
        {"first_study_date": "20250610"},
        {"since": "0001-01-01T00:00:00+14:00"},
        {"min_probability": "nan"},
        {"decision": "maybe"},
        {"unknown": "1"},
        {"after": "x"},
        {"after": _cursor("[]")},
        {"after": _cursor("[[]]")},
        {"after": _cursor('["2025-06-10T00:00:00Z", "1.2", true]')},
        {"after": _cursor('["2025-06-10T00:00:00Z", "1.2", 99999999999999999999]')},
        {"after": _cursor('["0001-01-01T00:00:00+14:00", "1.2", 1]')},
        {"after": _cursor('["2025-06-10T00:00:00Z", "\\u0000", 1]')},
        {"after": _cursor('["2025-06-10T00:00:00Z", "\\ud800", 1]')},
        {"after": _cursor("[" * 300)},
    ],
)
def test_a_wrong_question_is_refused_in_words(program: httpx.Client, asked: dict[str, str]) -> None:
    answer = program.get("results", params=asked)
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"]


def test_it_changes_nothing_and_knows_no_other_path(program: httpx.Client) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert program.request(method, "results").status_code == 405
    assert program.get("nothing").json() == {"detail": "Not Found"}


def test_what_the_openapi_allows_is_answered_as_it_says(
    site: Site, program: httpx.Client, tmp_path: Path
) -> None:
    _filled(site.database)
    site.add("hostile", patient_name="\u202e\U0001f600'\"<>&\\" + "A" * 1000)
    done = subprocess.run(
        [*SCHEMATHESIS, f"{site.address}/api/v1/openapi.json", "-H", f"Authorization: Bearer {TOKEN}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert len(rows.rows(site.database, Audit)) > 50, "it asked with the token"


def test_tokens_are_made_once_and_revoked(database: Database, database_url: str, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[database]\nurl = "{database_url}"\n')
    made = command("token", "add", "Dashboard", "--config", config)
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    with database.read() as session:
        assert tokens.holder(session, hashlib.sha256(token.encode()).hexdigest()) == "dashboard"
    assert command("token", "add", "dashboard", "--config", config).returncode == 2
    assert "dashboard" in command("token", "list", "--config", config).stdout
    assert command("token", "revoke", "dashboard", "--config", config).returncode == 0
    assert command("token", "revoke", "nothing", "--config", config).returncode == 2
    with database.read() as session:
        assert tokens.holder(session, hashlib.sha256(token.encode()).hexdigest()) is None
