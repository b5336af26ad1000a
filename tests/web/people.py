"""Users in tests, and how they sign in."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import cache

import httpx

from db import users
from db.session import Database
from pacs_node.web import passwords

PASSWORD = "correct horse battery"


@cache
def _hashed(password: str) -> str:
    return passwords.hashed(password)


def add_user(database: Database, name: str = "ada", role: str = "reader", password: str = PASSWORD) -> None:
    """Add a user as the command does."""
    with database.write() as session:
        users.add(session, name, role, datetime.now(UTC), password_hash=_hashed(password))


def form_token(page: str) -> str:
    """Return the token of the forms of a page."""
    found = re.search('name="token" value="([^"]+)"', page)
    assert found, page
    return found[1]


def sign_in(
    client: httpx.Client, name: str = "ada", password: str = PASSWORD, next_: str = "/", origin: str = ""
) -> httpx.Response:
    """Fill in the form as a browser does."""
    page = client.get("/sign-in", params={"next": next_}).text
    values = {"token": form_token(page), "name": name, "password": password, "next": next_}
    headers = {"Origin": origin or str(client.base_url).rstrip("/")}
    return client.post("/sign-in", data=values, headers=headers)
