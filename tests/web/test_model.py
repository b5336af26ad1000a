"""What the page of the model says, and that it says nothing of too few."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from playwright.sync_api import Page, expect
from scipy.stats import binomtest
from sqlalchemy import text

from db import verdicts
from db.model_use import Judged
from pacs_node.web.agreement import FEWEST, shares, wilson
from tests.helpers import rows
from tests.web.conftest import Site
from tests.web.test_reader import shot

CARD = {
    "name": "densenet121-test",
    "version": "1.0",
    "threshold": 0.0815,
    "ages": [1, 5],
    "population": "Children of one hospital",
    "limits": ["Research use only: not a medical device."],
    "metrics": [
        {"name": "AUROC", "value": 0.9906, "low": 0.9862, "high": 0.9942, "images": 524, "data": "held out"}
    ],
}


@pytest.mark.parametrize(("hits", "images"), [(0, 1), (1, 1), (3, 40), (40, 40), (999, 1000)])
def test_the_interval_is_that_of_wilson(hits: int, images: int) -> None:
    expected = binomtest(hits, images).proportion_ci(method="wilson")
    assert wilson(hits, images) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert wilson(0, 0) == (0, 1)


def test_verdicts_given_blind_and_beside_the_score_are_counted_apart() -> None:
    def judged(decision: str, label: str, visible: bool, images: int) -> Judged:
        return Judged(decision=decision, label=label, score_was_visible=visible, images=images)

    given = [
        judged("positive", "agree", True, 40),
        judged("positive", "no_pneumonia", True, 10),
        judged("positive", "unreadable", True, 7),
        judged("positive", "pneumonia", False, 3),
        judged("negative", "no_pneumonia", False, 28),
        judged("negative", "pneumonia", False, 2),
        judged("undetermined", "pneumonia", False, 99),
    ]
    positive, negative = shares(given, blind=False)
    assert (positive.hits, positive.images, positive.is_enough) == (40, 50, True)
    assert (negative.images, negative.is_enough) == (0, False)
    positive, negative = shares(given, blind=True)
    assert (positive.hits, positive.images, positive.is_enough) == (3, 3, False)
    assert (negative.hits, negative.images, negative.is_enough) == (28, 30, True)


def _used(site: Site, images: int) -> None:
    now = datetime.now(UTC)
    for number in range(1, images + 1):
        rows.receive(
            site.database,
            rows.new(
                number, received_at=now - timedelta(days=number % 30), calling_ae_title=f"CR{number % 2}"
            ),
        )
        is_positive = number % 4 == 0
        decision = "positive" if is_positive else "negative"
        rows.score(
            site.database, number, probability=0.9 if is_positive else 0.02, decision=decision, novelty=0.5
        )
    with site.database.write() as session:
        session.execute(text("UPDATE model SET card = :card"), {"card": json.dumps(CARD)})


def test_the_page_has_the_card_and_says_nothing_of_too_few(site: Site, reader: Page) -> None:
    _used(site, 2 * FEWEST + 2)
    with site.database.write() as session:
        for number in range(4, 41, 4):
            one = rows.instance_id(site.database, number)
            verdicts.give(session, one, "agree", "", person="local", at=rows.NOW)
    reader.goto("/model")
    expect(reader.get_by_role("heading", level=1)).to_contain_text("densenet121-test")
    expect(reader.get_by_role("region", name="Measurements")).to_contain_text("0.986 to 0.994")
    said = reader.get_by_role("region", name="Verdicts")
    expect(said).to_contain_text("too few to say")
    expect(said).to_contain_text("10 of 10")
    expect(reader.get_by_role("region", name="Senders")).to_contain_text("CR0")
    expect(reader.get_by_role("region", name="Weeks").locator("svg")).to_have_count(2)
    shot(reader, "model")


def test_a_model_without_a_card_or_a_score_has_a_page(site: Site, client: httpx.Client) -> None:
    assert "No model has started yet" in client.get("/model").text
    rows.register(site.database)
    page = client.get("/model")
    assert page.status_code == 200
    assert "It has scored nothing yet" in page.text
