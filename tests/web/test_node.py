"""An administrator at work: what waits, what failed, and the orders that mend it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import httpx
import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import text

from db.models import Audit, Delivery, Job
from db.queue import Kind
from pacs_node.web import wording
from pacs_node.web.node_page import coverage
from tests.helpers import rows
from tests.web.conftest import Site
from tests.web.test_reader import shot


def _now() -> datetime:
    return datetime.now(UTC)


def _dead_archive(site: Site) -> None:
    """Make a report that PACS has, that ARCHIVE refused for good, and that waits for a PACS that is gone."""
    image = site.add(received_at=_now())
    rows.report(
        site.database, {image: site.scored(scored_at=_now())}, destinations=["PACS", "ARCHIVE", "OLD"]
    )
    with site.database.write() as session:
        for change in (
            "delivery SET state = 'delivered', delivered_at = updated_at WHERE destination = 'PACS'",
            "delivery SET state = 'failed', tries = 9 WHERE destination = 'ARCHIVE'",
            "delivery SET tries = 4, error = 'No route to host' WHERE destination = 'OLD'",
            "job SET state = 'done' WHERE kind = 'deliver' AND lane = 'PACS'",
            "job SET state = 'failed', error = 'Connection refused' WHERE lane = 'ARCHIVE'",
        ):
            session.execute(text(f"UPDATE {change}"))


def _state(site: Site, destination: str) -> str:
    return str(
        next(row.state for row in rows.rows(site.database, Delivery) if row.destination == destination)
    )


def test_an_administrator_sees_a_dead_destination_and_retries(site: Site, reader: Page) -> None:
    _dead_archive(site)
    reader.goto("/")
    reader.get_by_role("link", name="Node", exact=True).click()
    destinations = reader.get_by_role("region", name="Destinations")
    expect(destinations).to_contain_text("PACS up")
    expect(destinations).to_contain_text("ARCHIVE down")
    expect(destinations).to_contain_text("No route to host")
    failures = reader.get_by_role("region", name="Failures")
    expect(failures).to_contain_text("Connection refused")
    shot(reader, "node")
    failures.get_by_role("button", name="Retry", exact=True).click()
    expect(reader.get_by_role("status")).to_contain_text("1 piece")
    assert _state(site, "ARCHIVE") == "pending"
    assert "failed" not in {row.state for row in rows.rows(site.database, Job)}
    reader.get_by_role("button", name="Give up its reports").click()
    expect(reader.get_by_role("status")).to_contain_text("1 piece")
    assert _state(site, "OLD") == "abandoned"
    assert {row.action for row in rows.rows(site.database, Audit)} >= {"retry ordered", "abandon ordered"}


@pytest.mark.parametrize(
    ("path", "values", "said"),
    [
        ("retry", {"study": "1.2.3"}, "There is no study 1.2.3"),
        ("abandon", {"destination": "PACS"}, "PACS is still in [[destinations]]"),
        ("dismiss", {"study": "1.2.3"}, "Nothing prevents a report"),
    ],
)
def test_orders_that_make_no_sense_are_refused_in_words(
    site: Site, client: httpx.Client, path: str, values: dict[str, str], said: str
) -> None:
    _dead_archive(site)
    token = client.get("/node").text.partition('name="token" value="')[2].partition('"')[0]
    own = {"Origin": site.address}
    answer = client.post(f"/node/{path}", data={"token": token, **values}, headers=own)
    assert answer.status_code == 422
    assert said in answer.text
    for headers, sent in (({}, token), ({"Origin": "http://evil.example"}, token), (own, "guessed")):
        assert (
            client.post(f"/node/{path}", data={"token": sent, **values}, headers=headers).status_code == 403
        )
    assert _state(site, "ARCHIVE") == "failed"


def test_the_page_says_how_much_came_and_when_there_is_no_space(site: Site, client: httpx.Client) -> None:
    for number in range(1, 4):
        rows.receive(
            site.database, rows.new(number, received_at=_now() - timedelta(hours=number), size=2**40)
        )
    page = client.get("/node").text
    assert "Images in the last 24 hours: 3" in page
    assert "TB come in a day: full in about" in page
    assert [state for _, state in rows.jobs(site.database, Kind.SCORE)] == ["ready"] * 3


def test_an_empty_node_has_a_page(client: httpx.Client) -> None:
    page = client.get("/node").text
    assert "No receive process is running" in page
    assert "Nothing came." in page


def test_coverage_tells_what_a_sender_leaves_out(site: Site) -> None:
    (one, other) = coverage(
        {
            ("CR2", "not_scored", "NO_VIEW"): 31,
            ("CR2", "positive", ""): 60,
            ("CR2", "waiting", ""): 9,
            ("CR2", "not_scored", "OWN_RESULT"): 50,
            ("CR1", "undetermined", "OTHER_AGE"): 1,
        }
    )
    assert (one.sender, one.images, one.analysed, one.refused) == ("CR2", 100, 60, [(0.31, "NO_VIEW")])
    assert (other.sender, other.analysed, other.refused) == ("CR1", 1, [])


@pytest.mark.parametrize(
    ("share", "said"), [(0, "0 %"), (0.001, "< 1 %"), (0.31, "31 %"), (0.999, "> 99 %"), (1, "100 %")]
)
def test_a_share_is_never_rounded_to_all_or_none(share: float, said: str) -> None:
    assert wording.percent(share) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (200_000, "2 d")]
)
def test_ages_have_the_unit_that_fits(seconds: float, said: str) -> None:
    assert wording.seconds(seconds) == said
