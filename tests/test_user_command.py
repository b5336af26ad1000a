"""`pacs-node user`, as an administrator uses it."""

from __future__ import annotations

import os
import subprocess
from contextlib import chdir
from pathlib import Path
from unittest.mock import patch

from db import users
from db.models import Audit
from db.session import Database
from pacs_node.cli import main
from pacs_node.web import passwords
from tests.helpers import rows
from tests.helpers.commands import in_this_process


def _run(folder: Path, url: str, *arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    with chdir(folder), patch.dict(os.environ, {"PACS_NODE_DATABASE__URL": url}):
        return in_this_process(main, "pacs-node", "user", *arguments, typed=said)


def test_users_are_added_listed_and_disabled(database: Database, database_url: str, tmp_path: Path) -> None:
    def run(*arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
        return _run(tmp_path, database_url, *arguments, said=said)

    assert "no users" in run("list").stdout
    done = run("add", "Ada", "--role", "admin", said="a few words do\n")
    assert done.returncode == 0, done.stderr
    for arguments, said, why in (
        (("add", "ada"), "a few words do\n", "already"),
        (("add", "grace"), "too short\n", "12 characters"),
        (("add", "grace"), "", "12 characters"),
        (("add", "two words"), "a few words do\n", "without spaces"),
        (("add", "local"), "a few words do\n", "choose another"),
        (("password", "nobody"), "a few words do\n", "no user"),
        (("disable", "nobody"), "", "no user"),
    ):
        refused = run(*arguments, said=said)
        assert refused.returncode == 2, arguments
        assert why in refused.stderr, refused.stderr
    with database.read() as session:
        ada = users.named(session, "ada")
    assert ada is not None
    assert ada.role == "admin"
    assert ada.password_hash
    assert ada.password_hash.startswith("$argon2id$")
    assert passwords.is_right("a few words do", ada.password_hash)
    assert run("password", "ADA", said="other words this time\n").returncode == 0
    assert run("disable", "ada").returncode == 0
    with database.read() as session:
        changed = users.named(session, "ada")
    assert changed is not None
    assert changed.is_disabled
    assert passwords.is_right("other words this time", changed.password_hash)
    assert "no more" in run("list").stdout
    assert run("enable", "ada").returncode == 0
    did = [(row.action, row.address, row.detail) for row in rows.rows(database, Audit)]
    assert did == [
        ("user added", "console", "ada, admin"),
        ("password set", "console", "ada"),
        ("user disabled", "console", "ada"),
        ("user enabled", "console", "ada"),
    ]


def test_letters_that_look_the_same_are_the_same_password_and_a_stranger_takes_as_long() -> None:
    composed, apart = "caf\u00e9 caf\u00e9 caf\u00e9", "cafe\u0301 cafe\u0301 cafe\u0301"
    assert passwords.is_right(apart, passwords.hashed(composed))
    assert not passwords.is_right("nobody has this password", None)
    assert not passwords.is_right("x", "no hash")
