"""Single sign-on: a browser goes to a provider and comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc.jwk import OctKey, RSAKey
from playwright.sync_api import Browser, expect

from db import users
from db.accounts import User, WebSession
from db.models import Audit
from db.session import Database
from pacs_node.config_web import ProviderSettings
from tests.conftest import uid
from tests.helpers import rows
from tests.helpers.provider import CLIENT, SECRET, Provider, running_provider
from tests.web.conftest import Site, serving
from tests.web.people import add_user

STUDY = f"/studies/{uid('1', 'study')}"


@pytest.fixture(scope="module")
def running() -> Iterator[Provider]:
    with running_provider() as one:
        yield one


@pytest.fixture
def provider(running: Provider) -> Provider:
    """The provider, which says what is right until a test lets it lie."""
    fresh = Provider(running.issuer, key=running.key)
    running.__dict__.update(fresh.__dict__)
    return running


@pytest.fixture
def site(database: Database, database_url: str, tmp_path: Path, provider: Provider) -> Iterator[Site]:
    settings = ProviderSettings(
        issuer=provider.issuer,
        client_id=CLIENT,
        client_secret=SECRET,
        name="the hospital",
        readers=("readers",),
        admins=("chiefs",),
    )
    with serving(database, database_url, tmp_path, provider=settings) as one:
        yield one


def _sign_in(client: httpx.Client, next_: str = "/") -> httpx.Response:
    """Go to the provider and come back."""
    there = client.get("/sign-in/provider", params={"next": next_})
    if there.status_code != 303:
        return there
    back = httpx.get(there.headers["location"], headers={"Accept": "*/*"})
    return client.get(back.headers["location"])


def test_a_reader_comes_back_signed_in_to_the_page_that_was_asked_for(
    site: Site, browser: Browser, provider: Provider
) -> None:
    site.add(patient_name="Moon^Ada")
    context = browser.new_context(base_url=site.address)
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.goto(STUDY)
    page.get_by_role("link", name="Sign in with the hospital").click()
    page.get_by_role("link", name="I am Ada").click()
    expect(page.locator("h1")).to_contain_text("Moon, Ada")
    expect(page.get_by_role("button", name="Sign out")).to_be_visible()
    context.close()
    did = [(row.person, row.action) for row in rows.rows(site.database, Audit)][:2]
    assert did == [("ada", "signed in"), ("ada", "study viewed")]
    assert len(provider.asked[0]["code_challenge"]) == 43


def test_the_role_is_that_of_the_last_sign_in(site: Site, client: httpx.Client, provider: Provider) -> None:
    for groups, role in ((["readers"], "reader"), (["readers", "chiefs"], "admin"), ("readers", "reader")):
        provider.person["groups"] = groups
        assert _sign_in(client).status_code == 200
        (row,) = rows.rows(site.database, User)
        assert (row.name, row.role) == ("ada", role)
    assert client.get("/").status_code == 200
    others: list[Any] = [[], ["other"], None, {"readers": 1}, 7]
    for provider.person["groups"] in others:
        assert _sign_in(client).status_code == 403
    assert client.get("/").status_code == 401, "who may look no more is signed out"


def test_who_is_disabled_here_stays_out_whatever_the_provider_says(site: Site, client: httpx.Client) -> None:
    _sign_in(client)
    with site.database.write() as session:
        user = users.named(session, "ada")
        assert user is not None
        users.disable(session, user.id, rows.NOW)
    answer = _sign_in(client)
    assert answer.status_code == 403
    assert "disabled" in answer.text
    assert client.get("/").status_code == 401


def test_a_person_is_the_subject_and_never_gets_the_name_of_another(
    site: Site, client: httpx.Client, provider: Provider
) -> None:
    add_user(site.database, "ada")
    answer = _sign_in(client)
    assert answer.status_code == 403
    assert "another user" in answer.text
    provider.person["preferred_username"] = "ada.l"
    assert _sign_in(client).status_code == 200
    provider.person["preferred_username"] = "renamed"
    assert _sign_in(client).status_code == 200
    provider.person["sub"], provider.person["preferred_username"] = "4712", "ada.l"
    assert _sign_in(client).status_code == 403
    assert sorted(row.name for row in rows.rows(site.database, User)) == ["ada", "ada.l"]


WRONG: list[dict[str, Any]] = [
    {"claims": {"iss": "http://127.0.0.1:1"}},
    {"claims": {"aud": "another client"}},
    {"claims": {"aud": [CLIENT, "another"], "azp": "another"}},
    {"claims": {"nonce": "of another"}},
    {"claims": {"nonce": None}},
    {"claims": {"exp": int(time.time()) - 3600}},
    {"claims": {"exp": None}},
    {"claims": {"sub": None}},
    {"claims": {"sub": 7}},
    {"claims": {"preferred_username": None}},
    {"claims": {"preferred_username": "<script>x</script>"}},
    {"claims": {"preferred_username": "local"}},
    {"claims": {"preferred_username": ["ada"]}},
    {"signed_by": RSAKey.generate_key(2048, {"kid": "1"})},
    {"header": {"alg": "HS256", "kid": "1"}, "signed_by": OctKey.import_key(SECRET)},
    {"is_refusing": True},
]


@pytest.mark.parametrize("lie", WRONG, ids=range(len(WRONG)))
def test_an_answer_that_is_not_valid_signs_nobody_in(
    site: Site, client: httpx.Client, provider: Provider, lie: dict[str, Any]
) -> None:
    for name, value in lie.items():
        setattr(provider, name, value)
    answer = _sign_in(client)
    assert answer.status_code == 403
    assert 'role="alert"' in answer.text
    assert "<script>x" not in answer.text
    assert rows.rows(site.database, WebSession) == []
    assert rows.rows(site.database, User) == []
    assert [row.action for row in rows.rows(site.database, Audit)] == ["sign-in failed"]


def test_what_began_in_another_browser_signs_nobody_in(site: Site, client: httpx.Client) -> None:
    with httpx.Client(base_url=site.address, timeout=120) as attacker:
        there = attacker.get("/sign-in/provider")
        back = httpx.get(there.headers["location"], headers={"Accept": "*/*"}).headers["location"]
    assert client.get(back).status_code == 403  # no flow began here
    client.get("/sign-in/provider")
    assert client.get(back).status_code == 403  # another flow did
    client.get("/sign-in/provider")
    for query in ("", "?code=x", "?code=x&state=", "?state=x&code=x&iss=http://evil.example"):
        assert client.get(f"/sign-in/provider/back{query}").status_code == 403
        client.get("/sign-in/provider")
    assert rows.rows(site.database, WebSession) == []


def test_a_code_is_of_use_once(site: Site, client: httpx.Client) -> None:
    there = client.get("/sign-in/provider")
    flow = client.cookies["pacs_node_flow"]
    back = httpx.get(there.headers["location"], headers={"Accept": "*/*"}).headers["location"]
    assert client.get(back).status_code == 200
    client.cookies.set("pacs_node_flow", flow, domain="127.0.0.1")
    assert client.get(back).status_code == 403


@pytest.mark.parametrize("next_", ["//evil.example", "https://evil.example/", '/"><script>x</script>'])
def test_nobody_is_sent_to_another_site_on_the_way_back(site: Site, client: httpx.Client, next_: str) -> None:
    answer = _sign_in(client, next_)
    assert answer.status_code == 200
    assert "evil.example" not in answer.text
    assert "<script>" not in answer.text


def test_nobody_looks_without_signing_in_although_there_are_no_users(
    site: Site, client: httpx.Client
) -> None:
    assert client.get("/").status_code == 401


def test_a_provider_that_is_away_is_said_in_words(
    database: Database, database_url: str, tmp_path: Path, provider: Provider
) -> None:
    for issuer, said in (
        ("http://127.0.0.1:1", "does not answer"),
        (f"{provider.issuer}/", "calls itself"),
        (f"{provider.issuer}/keys", "does not answer"),
    ):
        settings = ProviderSettings(issuer=issuer, client_id=CLIENT, readers=("readers",))
        with (
            serving(database, database_url, tmp_path, provider=settings) as site,
            httpx.Client(base_url=site.address, timeout=120) as client,
        ):
            answer = client.get("/sign-in/provider")
            assert answer.status_code == 403
            assert said in answer.text
