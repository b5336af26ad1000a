"""A reading list that serves, and a browser that reads it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from db import verdicts
from db.models import Score
from db.session import Database
from pacs_node.config import DatabaseSettings, Destination, Settings, SpoolSettings
from pacs_node.config_web import WebSettings
from pacs_node.demo.peers import free_port
from pacs_node.running.status import Snapshot, snapshot
from pacs_node.storage.spool import Spool
from pacs_node.web.serving import address_of, serve
from tests.conftest import radiograph, save
from tests.helpers import rows

CHROMIUM = Path("/usr/bin/chromium")


@dataclass
class Site:
    """A reading list at work."""

    database: Database
    spool: Spool
    folder: Path
    address: str
    port: int
    settings: Settings

    def add(self, study: str = "1", number: int = 1, **values: Any) -> int:
        """Take in a radiograph and return its id."""
        path = save(radiograph(study=study, number=number), self.folder / f"{study}-{number}.dcm")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        kept = self.spool.path(digest)
        kept.parent.mkdir(parents=True, exist_ok=True)
        path.rename(kept)
        rows.receive(self.database, rows.new(number, study, digest=digest, **values))
        return rows.instance_id(self.database, number, study)

    def scored(self, study: str = "1", number: int = 1, **values: Any) -> int:
        """Score an image that was taken in."""
        return rows.score(self.database, number, study, **values)

    def score_of(self, score_id: int) -> Any:
        return next(row for row in rows.rows(self.database, Score) if row.id == score_id)

    def verdicts_of(self, study: str = "1") -> list[verdicts.GivenVerdict]:
        study_id = rows.study_id(self.database, study)
        with self.database.read() as session:
            return verdicts.of_studies(session, [study_id]).get(study_id, [])


@pytest.fixture
def site(database: Database, database_url: str, tmp_path: Path) -> Iterator[Site]:
    with serving(database, database_url, tmp_path) as one:
        yield one


@contextmanager
def serving(database: Database, url: str, folder: Path, **web: Any) -> Iterator[Site]:
    """Serve the reading list with other keys of [web]."""
    stopped, ready = threading.Event(), threading.Event()
    settings = Settings(
        database=DatabaseSettings(url=url),
        spool=SpoolSettings(path=folder / "spool"),
        web=WebSettings(**{"port": free_port(), **web}),
        destinations=tuple(
            Destination(ae_title=name, host="127.0.0.1", port=1) for name in ("PACS", "ARCHIVE")
        ),
    )
    spool = Spool(settings.spool.path)
    spool.prepare()
    site = Site(database, spool, folder, address_of(settings.web).rstrip("/"), settings.web.port, settings)

    def look() -> Snapshot:
        return snapshot(settings, database, datetime.now(UTC))

    thread = threading.Thread(
        target=serve, args=(settings, database, spool, stopped, ready.set), kwargs={"look": look}
    )
    thread.start()
    assert ready.wait(60)
    try:
        yield site
    finally:
        stopped.set()
        thread.join()


@pytest.fixture
def client(site: Site) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=site.address, timeout=120) as one:
        yield one


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip("needs Chromium")
    expect.set_options(timeout=120_000)  # of what is waited for; by default 5 s
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield one
        one.close()


@pytest.fixture
def reader(browser: Browser, site: Site) -> Iterator[Page]:
    """Return a page of 1280 x 800 pixels; what breaks the policy or fails in a script fails the test."""
    context = browser.new_context(base_url=site.address, viewport={"width": 1280, "height": 800})
    context.set_default_timeout(120_000)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
    yield page
    context.close()
    assert wrong == []
