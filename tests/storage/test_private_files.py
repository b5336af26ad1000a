"""Files and folders with patient data are the node's alone, whatever the umask; passwords are not told."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from db.errors import DatabaseDown, DatabaseError
from db.session import Database
from pacs_node.config import load
from pacs_node.dicom.part10 import file_meta
from pacs_node.errors import ConfigError
from pacs_node.storage.arriving import digest
from pacs_node.storage.spool import Spool

IMPLICIT = "1.2.840.10008.1.2"


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def assert_private(root: Path) -> None:
    for path in (root, *root.rglob("*")):
        assert rights(path) == (0o700 if path.is_dir() else 0o600), path


def test_the_spool_and_what_arrives_in_it_are_private(umask: int, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "deep" / "spool")
    spool.prepare()
    arriving = spool.arriving()
    arriving.begin(file_meta("1.2", "1.2.3", IMPLICIT), IMPLICIT)
    arriving.write(b"data")
    assert_private(spool.root)
    arriving.close()
    kept = spool.keep(arriving.path, arriving.digest())
    assert kept.stem == digest(kept, IMPLICIT)
    assert_private(spool.root)


def test_a_spool_of_an_older_version_becomes_private(tmp_path: Path) -> None:
    root = tmp_path / "spool"
    (root / "objects" / "ab").mkdir(parents=True)
    for folder in (root, root / "objects", root / "objects" / "ab"):
        folder.chmod(0o755)
    Spool(root).prepare()
    assert_private(root)


def test_an_sqlite_database_and_what_lies_beside_it_are_private(umask: int, tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'results.sqlite'}")
    database.upgrade()
    with database.write() as session:
        session.execute(text("CREATE TABLE extra (x INTEGER)"))
        found = sorted(tmp_path.iterdir())
        assert [oct(rights(path)) for path in found] == [oct(0o600)] * len(found)
    database.close()
    assert rights(tmp_path / "results.sqlite") == 0o600


def test_a_database_that_was_open_to_all_is_closed_by_the_next_start(tmp_path: Path) -> None:
    file = tmp_path / "results.sqlite"
    for mode in (0o644, 0o666):
        database = Database(f"sqlite:///{file}")
        database.upgrade()
        database.close()
        file.chmod(mode)
    database = Database(f"sqlite:///{file}")
    database.upgrade()
    assert rights(file) == 0o600
    database.close()


# Passwords

URLS = {
    "p@ss": "postgresql://user:p@ss@127.0.0.1:1/results",
    "p%40ss": "postgresql://user:p%40ss@127.0.0.1:1/results",
    "a@b@c": "postgresql+psycopg://user:a@b@c@127.0.0.1:1/results",
    "xq/zz@kk": "postgresql://user:xq/zz@kk@127.0.0.1:1/results",
    "s@cr/et": "postgresql://user:s@cr/et@127.0.0.1:1/results",
    "s@c?ret": "postgresql://user:s@c?ret@127.0.0.1:1/results",
    "secr#et": "postgresql://user:secr#et@127.0.0.1:1/results",
    "se:cret": "postgresql://user:se:cret@127.0.0.1:1/results?connect_timeout=1",
    "sec ret": "postgresql://user:sec ret@127.0.0.1:1/results",
    "100%se": "postgresql://user:100%25se@127.0.0.1:1/results",
    "hush": "postgresql://127.0.0.1:1/results?user=me&password=hush",
    "hush2": "postgresql://127.0.0.1:1/results?user=me&sslpassword=hush2",
    "pässwörd": "postgresql://user:pässwörd@127.0.0.1:1/results",
}


@pytest.mark.parametrize("password", URLS)
def test_no_message_names_a_password(password: str) -> None:
    database = Database(URLS[password])
    with pytest.raises(DatabaseError) as failed:
        database.require_current()
    written = URLS[password].partition("user:")[2].partition("@127.0.0.1")[0] or password
    for said in (database.name, str(failed.value)):
        assert "127.0.0.1" in said
        for part in {password, written, *filter(None, password.replace("/", "@").split("@"))}:
            assert len(part) < 2 or part not in said.replace("results", "").replace("postgresql", ""), said
    assert isinstance(failed.value, DatabaseDown)


@pytest.mark.parametrize(
    "url",
    ["postgresql://user:hu@sh@host:port/db", "mysql://u:hu@sh@h/d", "postgres//u:hu@sh@x", "user:hu@sh@host"],
)
def test_a_url_that_is_none_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(DatabaseError) as refused:
        Database(url)
    assert "hu" not in str(refused.value).replace("user", "")
    assert "sh@" not in str(refused.value)


@pytest.mark.parametrize(
    "value", ['"postgresql://u:hush@h/d"', '{"url": ["postgresql://u:hush@h/d"]}', "hush"]
)
def test_a_setting_that_makes_no_sense_is_named_and_its_password_is_not(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACS_NODE_DATABASE", value)
    with pytest.raises(ConfigError) as refused:
        load(None)
    assert "hush" not in str(refused.value)
