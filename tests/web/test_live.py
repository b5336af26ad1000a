"""The list follows what happens, and does not move under the reader's hand."""

from __future__ import annotations

import threading

import httpx
from playwright.sync_api import Locator, Page, expect
from sqlalchemy import text

from db import changes
from db.session import Database
from tests.helpers import rows
from tests.web.conftest import Site


def _many(site: Site, number: int) -> None:
    for one in range(number):
        site.add(f"s{one}", patient_name=f"Moon^{one}")


def _top(where: Locator) -> float:
    box = where.bounding_box()
    assert box is not None
    return box["y"]


def test_rows_change_in_place_and_new_studies_wait_for_a_button(site: Site, reader: Page) -> None:
    _many(site, 20)
    reader.goto("/")
    reader.wait_for_load_state()
    reader.keyboard.press("ArrowDown")
    for _ in range(10):
        reader.keyboard.press("ArrowDown")
    focused = reader.locator("a.open:focus")
    name, place = focused.inner_text(), _top(focused)
    image = rows.instance_id(site.database, study="s19")
    rows.report(
        site.database,
        {image: site.scored("s19", reason="NO_VIEW", probability=None, decision="not_scored")},
        "s19",
    )
    site.add("late", patient_name="Late^Larry")
    expect(reader.get_by_role("button", name="1 new study")).to_be_visible()
    expect(reader.locator("tbody tr").first).to_contain_text("Not analysed")
    assert reader.locator("tbody tr").count() == 20
    assert focused.inner_text() == name
    assert abs(_top(focused) - place) <= 1
    reader.keyboard.press("r")
    expect(reader.locator("tbody tr").first).to_contain_text("Late, Larry")


def test_columns_are_chosen_and_remembered(site: Site, reader: Page) -> None:
    site.add()
    site.scored(age=3.5)
    reader.goto("/")
    age = reader.locator("td[data-column=age]")
    expect(age).to_be_hidden()
    reader.get_by_text("Columns").click()
    reader.get_by_role("checkbox", name="Age").check()
    reader.get_by_role("checkbox", name="Why").uncheck()
    expect(age).to_have_text("3.5 y")
    expect(reader.locator("td[data-column=why]")).to_be_hidden()
    reader.reload()
    expect(age).to_be_visible()
    expect(reader.locator("td[data-column=why]")).to_be_hidden()


def test_what_changed_between_page_and_connection_is_told_at_once(site: Site, client: httpx.Client) -> None:
    with site.database.read() as session:
        before = changes.mark(session)
    site.add()
    with client.stream("GET", "/events", params={"since": before}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = next(line for line in answer.iter_lines() if line.startswith("event:"))
    assert told == "event: change"


def test_each_change_has_a_mark_of_its_own(database: Database) -> None:
    def mark() -> str:
        with database.read() as session:
            return changes.mark(session)

    marks = [mark()]
    rows.receive(database, rows.new())
    marks.append(mark())
    score = rows.score(database)
    marks.append(mark())
    rows.report(database, {rows.instance_id(database): score})
    marks.append(mark())
    with database.write() as session:
        session.execute(text("UPDATE job SET state = 'failed' WHERE kind = 'deliver' AND lane = 'PACS'"))
    marks.append(mark())
    assert len(set(marks)) == len(marks)


def test_an_open_connection_does_not_keep_the_page_from_stopping(site: Site, client: httpx.Client) -> None:
    """The fixture ends only when the server has stopped; this leaves a stream open until then."""
    opened = threading.Event()

    def hold() -> None:
        try:
            with (
                httpx.Client(base_url=site.address, timeout=60) as own,
                own.stream("GET", "/events") as answer,
            ):
                opened.set()
                for _ in answer.iter_lines():
                    pass
        except httpx.HTTPError:
            pass

    threading.Thread(target=hold, daemon=True).start()
    assert opened.wait(60)
