"""What the pages refuse, and what they say when something is missing."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page
from sqlalchemy import text

from db.models import Audit
from db.session import Database
from tests.conftest import uid
from tests.helpers import rows
from tests.helpers.receiving import logged
from tests.web.conftest import Site

STUDY = f"/studies/{uid('1', 'study')}"
HOSTILE = [
    "<script>document.title = 'x'</script>",
    '"><img src=x onerror="document.title=\'x\'">',
    "'; DROP TABLE study; --",
    "{{ 7 * 7 }}",
    "\u202egpj.exe\u202c\u200f",
]


def _form(client: httpx.Client, **values: Any) -> dict[str, Any]:
    page = client.get(STUDY).text
    found = re.search('name="token" value="([^"]+)"', page)
    image = re.search('name="image" value="([0-9]+)"', page)
    assert found
    assert image
    return {"token": found[1], "image": image[1], "label": "pneumonia", **values}


def test_only_names_of_this_machine_are_answered(client: httpx.Client) -> None:
    assert client.get("/").status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "", "[", "127.0.0.1@evil.example:80"):
        assert client.get("/", headers={"Host": host}).status_code in (400, 403), host


def test_a_proxy_is_refused_while_there_are_no_users(client: httpx.Client) -> None:
    answer = client.get("/", headers={"X-Forwarded-For": "10.0.0.9"})
    assert answer.status_code == 403
    assert "proxy" in answer.text


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://127.0.0.1:1"])
def test_a_verdict_from_another_site_is_refused(site: Site, client: httpx.Client, origin: str | None) -> None:
    site.add()
    headers = {} if origin is None else {"Origin": origin}
    answer = client.post(f"{STUDY}/verdicts", data=_form(client), headers=headers)
    assert answer.status_code == 403
    assert site.verdicts_of() == []


def test_a_verdict_needs_the_token_of_the_page_and_an_answer_to_agree_with(
    site: Site, client: httpx.Client
) -> None:
    site.add()
    own = {"Origin": site.address}
    for values, status in (
        ({"token": "guessed"}, 403),
        ({"label": "agree"}, 422),
        ({"label": "maybe"}, 422),
        ({"image": "99"}, 404),
        ({}, 303),
    ):
        answer = client.post(f"{STUDY}/verdicts", data=_form(client, **values), headers=own)
        assert answer.status_code == status, values
    assert [one.label for one in site.verdicts_of()] == ["pneumonia"]


def test_looks_and_verdicts_are_recorded_and_all_verdicts_stay(site: Site, client: httpx.Client) -> None:
    site.add()
    for label in ("pneumonia", "unreadable"):
        client.post(f"{STUDY}/verdicts", data=_form(client, label=label), headers={"Origin": site.address})
    did = [(row.action, row.address) for row in rows.rows(site.database, Audit)]
    assert did == [("study viewed", "127.0.0.1"), ("verdict given", "127.0.0.1")] * 2
    with site.database.read() as session:
        said = session.execute(text("SELECT label, counts FROM verdicts ORDER BY given_at")).all()
    assert [tuple(row) for row in said] == [("pneumonia", 0), ("unreadable", 1)]


def test_an_unknown_study_is_said_in_words(client: httpx.Client) -> None:
    answer = client.get("/studies/1.2.3")
    assert answer.status_code == 404
    assert "no study with this UID" in answer.text


@pytest.mark.parametrize(
    "query",
    ["after=x", "after=1,9e9", "after=nan,1", "first=2025", "text=%00", "after=1," + "9" * 99],
)
def test_a_wrong_address_is_no_failure_of_the_server(client: httpx.Client, query: str) -> None:
    assert client.get(f"/?{query}").status_code in (200, 422)


def test_a_database_that_is_away_is_said_and_the_page_recovers(
    site: Site, client: httpx.Client, database: Database
) -> None:
    if database.file is None:
        pytest.skip("the file of SQLite is moved away")
    away = database.file.with_suffix(".away")
    database.file.rename(away)
    answer = client.get("/")
    assert answer.status_code == 503
    assert "does not answer" in answer.text
    assert 'http-equiv="refresh"' in answer.text
    away.rename(database.file)
    assert client.get("/").status_code == 200


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_is_text(site: Site, reader: Page, hostile: str) -> None:
    short = hostile[:16]
    site.add(
        patient_name=hostile + "A" * 65536,
        patient_id=hostile[:64],
        accession_number=hostile[:64],
        calling_ae_title=short,
        study_date=hostile[:8],
        view_position=short,
        modality=short,
    )
    site.scored(probability=None, decision="not_scored", reason="NO_VIEW", view=short, detail=hostile * 900)
    for page in ("/", STUDY):
        reader.goto(page)
        assert reader.title() != "x"
        assert reader.locator("img, main script").count() == 0
        assert "\u202e" not in (reader.locator("body").text_content() or "")
        assert "49" not in reader.locator("h1").first.inner_text()
        assert len(reader.content()) < 40_000
        wide = reader.evaluate("document.documentElement.scrollWidth")
        assert wide <= 1280


def test_a_page_that_fails_says_so_and_the_log_has_no_message_of_the_error(
    site: Site, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = "Moon^Ada"

    def fail(*_: object) -> None:
        raise RuntimeError(patient)

    monkeypatch.setattr("db.reading_list.page", fail)
    with logged() as said_by_node:
        answer = client.get("/")
    assert answer.status_code == 500
    assert "The log of the node says why" in answer.text
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    said = said_by_node()
    assert "reading_list.page" in said
    assert "RuntimeError" in said
    assert "Moon" not in said
