"""Who may look: signing in and out, sessions, and how failures are limited."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import httpx
import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import text

from db import users
from db.accounts import SignIn, WebSession
from db.models import Audit
from tests.conftest import uid
from tests.helpers import rows
from tests.web.conftest import Site
from tests.web.people import PASSWORD, add_user, form_token, sign_in

STUDY = f"/studies/{uid('1', 'study')}"
SESSION = "pacs_node_session"


def _stranger(site: Site) -> httpx.Client:
    return httpx.Client(base_url=site.address, timeout=120)


def test_a_reader_signs_in_looks_and_signs_out(site: Site, reader: Page) -> None:
    site.add(patient_name="Moon^Ada")
    site.scored()
    add_user(site.database, "ada")
    reader.goto(STUDY)
    expect(reader.get_by_role("heading", name="Sign in")).to_be_visible()
    assert "Moon" not in reader.content()
    reader.get_by_label("Name").fill("Ada")
    reader.get_by_label("Password").fill("something else")
    reader.get_by_role("button", name="Sign in").click()
    expect(reader.get_by_role("alert")).to_contain_text("wrong")
    reader.get_by_label("Password").fill(PASSWORD)
    reader.keyboard.press("Enter")
    expect(reader.locator("h1")).to_contain_text("Moon, Ada")
    reader.locator("#viewer[data-shown]").wait_for()
    reader.get_by_role("button", name="Agree").click()
    expect(reader.locator(".given")).to_contain_text("ada")
    (given,) = site.verdicts_of()
    assert given.person == "ada"
    reader.locator("#viewer[data-shown]").wait_for()  # seen again, before signing out
    reader.get_by_role("button", name="Sign out").click()
    expect(reader.get_by_role("heading", name="Sign in")).to_be_visible()
    reader.goto(STUDY)
    expect(reader.get_by_role("heading", name="Sign in")).to_be_visible()
    did = [row.action for row in rows.rows(site.database, Audit)]
    seen = ["study viewed", "image viewed"]
    assert did[:4] == ["sign-in failed", "signed in", *seen]
    assert did[-1] == "signed out"
    assert {row.person for row in rows.rows(site.database, Audit)} == {"ada"}


def test_without_signing_in_nothing_is_shown(site: Site, client: httpx.Client) -> None:
    site.add(patient_name="Moon^Ada")
    add_user(site.database)
    image = rows.instance_id(site.database)
    for path in ("/", STUDY, f"{STUDY}/images/{image}", f"{STUDY}/report", f"{STUDY}/report.dcm", "/nothing"):
        asked = client.get(path, headers={"Accept": "text/html"})
        assert asked.status_code == 303
        assert asked.headers["location"].startswith("/sign-in?next=")
        assert client.get(path, headers={"Accept": "*/*"}).status_code == 401
    page = client.get("/sign-in").text
    headers = {"Origin": site.address}
    values = {"token": form_token(page), "image": image, "label": "pneumonia"}
    assert client.post(f"{STUDY}/verdicts", data=values, headers=headers).status_code == 401
    assert site.verdicts_of() == []


def test_a_session_is_a_row_with_a_hash_and_its_cookie_is_for_no_script_and_no_other_site(
    site: Site, client: httpx.Client
) -> None:
    add_user(site.database)
    answer = sign_in(client)
    assert answer.status_code == 303
    (cookie,) = [one for one in answer.headers.get_list("set-cookie") if one.startswith(SESSION)]
    assert "httponly" in cookie.lower()
    assert "samesite=strict" in cookie.lower()
    (row,) = rows.rows(site.database, WebSession)
    token = client.cookies[SESSION]
    assert row.token_hash == hashlib.sha256(token.encode()).hexdigest()
    assert client.get("/").status_code == 200
    client.cookies.set(SESSION, row.token_hash)
    assert client.get("/").status_code == 401


@pytest.mark.parametrize("column", ["seen_at", "started_at"])
def test_a_session_ends_when_idle_or_old(site: Site, client: httpx.Client, column: str) -> None:
    add_user(site.database)
    sign_in(client)
    (row,) = rows.rows(site.database, WebSession)
    for age, status in ((timedelta(minutes=29), 200), (timedelta(hours=13), 401)):
        with site.database.write() as session:
            session.query(WebSession).update({column: row.seen_at - age})
        assert client.get("/").status_code == status


def test_use_keeps_a_session_alive(site: Site, client: httpx.Client) -> None:
    add_user(site.database)
    sign_in(client)
    (row,) = rows.rows(site.database, WebSession)
    with site.database.write() as session:
        session.query(WebSession).update({"seen_at": row.seen_at - timedelta(minutes=20)})
    assert client.get("/").status_code == 200
    (after,) = rows.rows(site.database, WebSession)
    assert after.seen_at >= row.seen_at


def test_a_user_who_is_disabled_is_out_at_once(site: Site, client: httpx.Client) -> None:
    add_user(site.database)
    sign_in(client)
    with site.database.write() as session:
        user = users.named(session, "ada")
        assert user is not None
        users.disable(session, user.id, rows.NOW)
    assert client.get("/").status_code == 401
    assert sign_in(client).status_code == 403
    with site.database.write() as session:
        users.enable(session, user.id)
    assert client.get("/").status_code == 401  # not by the old cookie
    assert sign_in(client).status_code == 303


def test_signing_in_ends_the_session_before_and_takes_no_token_from_outside(
    site: Site, client: httpx.Client
) -> None:
    add_user(site.database)
    client.cookies.set(SESSION, "chosen by an attacker")
    sign_in(client)
    mine = client.cookies.get(SESSION, domain="127.0.0.1")
    assert mine not in (None, "chosen by an attacker")
    with _stranger(site) as attacker:
        attacker.cookies.set(SESSION, "chosen by an attacker")
        assert attacker.get("/").status_code == 401


@pytest.mark.parametrize(
    "next_", ["//evil.example/", "https://evil.example/", "/\\evil.example", "javascript:x", "", "/a\r\nB: c"]
)
def test_nobody_is_sent_to_another_site(site: Site, client: httpx.Client, next_: str) -> None:
    add_user(site.database)
    assert sign_in(client, next_=next_).headers["location"] == "/"
    with _stranger(site) as other:
        assert sign_in(other, next_="/studies/1.2?a=b").headers["location"] == "/studies/1.2?a=b"


def test_a_form_needs_its_token_and_its_origin(site: Site, client: httpx.Client) -> None:
    add_user(site.database)
    page = client.get("/sign-in").text
    values = {"token": form_token(page), "name": "ada", "password": PASSWORD}
    own = {"Origin": site.address}
    with _stranger(site) as other:
        theirs = form_token(other.get("/sign-in").text)
    for data, headers in (
        (values, {}),
        (values, {"Origin": "null"}),
        (values, {"Origin": site.address.replace("127.0.0.1", "127.0.0.1.evil.example")}),
        ({**values, "token": theirs}, own),
        ({**values, "token": ""}, own),
    ):
        assert client.post("/sign-in", data=data, headers=headers).status_code == 403
    assert client.post("/sign-in", files={"name": b"ada"}, headers=own).status_code == 415
    assert client.post("/sign-in", data={**values, "x": "x" * 70_000}, headers=own).status_code == 413
    assert rows.rows(site.database, SignIn) == []
    assert client.post("/sign-in", data=values, headers=own).status_code == 303
    assert client.post("/sign-out", data={"token": values["token"]}, headers=own).status_code == 403
    assert client.get("/").status_code == 200


def test_failures_make_strangers_wait_and_nobody_else(site: Site, client: httpx.Client) -> None:
    for name in ("ada", "grace"):
        add_user(site.database, name)
    assert sign_in(client).status_code == 303  # this browser is known from now on
    client.cookies.delete(SESSION)
    with _stranger(site) as attacker:
        answers = [sign_in(attacker, password=f"guess {number}").status_code for number in range(12)]
        assert answers == [403] * 10 + [429] * 2
        paused = sign_in(attacker)  # the right password
        assert paused.status_code == 429
        assert int(paused.headers["retry-after"]) == 900
        assert "quarter of an hour" in paused.text
        assert sign_in(attacker, "grace").status_code == 303
    assert sign_in(client).status_code == 303
    assert len(rows.rows(site.database, SignIn)) == 13  # who waits makes no rows


def test_one_address_cannot_try_many_names_and_a_known_browser_there_goes_on(
    site: Site, client: httpx.Client
) -> None:
    add_user(site.database)
    assert sign_in(client).status_code == 303
    client.cookies.delete(SESSION)
    with _stranger(site) as attacker:
        answers = [sign_in(attacker, f"name{number}", "a guess").status_code for number in range(32)]
    assert answers == [403] * 30 + [429] * 2
    assert sign_in(client).status_code == 303


def test_a_known_browser_has_a_limit_too_and_waiting_helps(site: Site, client: httpx.Client) -> None:
    add_user(site.database)
    sign_in(client)
    client.cookies.delete(SESSION)
    assert [sign_in(client, password="guess").status_code for _ in range(11)] == [403] * 10 + [429]
    with site.database.write() as session:
        for row in session.query(SignIn):
            row.at -= timedelta(minutes=16)
    assert sign_in(client).status_code == 303


def test_a_link_from_another_site_finds_those_who_are_signed_in(site: Site, reader: Page) -> None:
    add_user(site.database)
    reader.goto("/sign-in")
    reader.get_by_label("Name").fill("ada")
    reader.get_by_label("Password").fill(PASSWORD)
    reader.keyboard.press("Enter")
    expect(reader.get_by_role("button", name="Sign out")).to_be_visible()
    elsewhere = f'<a href="{site.address}/?text=x">open</a>'
    reader.route("http://ris.example/", lambda route: route.fulfill(body=elsewhere, content_type="text/html"))
    reader.goto("http://ris.example/")
    reader.get_by_role("link", name="open").click()
    expect(reader.get_by_role("searchbox")).to_have_value("x")


def test_what_a_stranger_types_as_name_harms_nobody(site: Site, client: httpx.Client) -> None:
    add_user(site.database)
    for name in ("<script>x</script>", "a" * 5000, "\0", "'; DROP TABLE web_user; --", ""):
        answer = sign_in(client, name, "x" * 3000)
        assert answer.status_code == 403
        assert "<script>x" not in answer.text
    with site.database.read() as session:
        assert session.execute(text("SELECT name FROM web_user")).scalars().all() == ["ada"]
