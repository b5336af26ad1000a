"""The blind sample: all positives and a share of negatives, and nothing that tells which is which."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import text

from db import model_use
from db.models import Verdict
from db.reading_list import Wanted, page
from db.session import Database
from db.verdicts import digest_below, fits
from tests.conftest import uid
from tests.helpers import rows
from tests.web.conftest import Site
from tests.web.test_reader import heat_map, shot

BLIND = f"/studies/{uid('1', 'study')}?blind=1"
TELLS = re.compile(
    r"0\.9|90\.|[Pp]ositive|Pneumonia: suspected|Agree|logit\b.{0,20}calibration|threshold|delivered"
)


def _drawn(database: Database, negatives: float, person: str = "local") -> set[str]:
    with database.read() as session:
        found = page(session, Wanted(unjudged_by=person, negatives=negatives, limit=500)).studies
    return {study.accession_number for study in found}


def _filled(database: Database, negatives: int) -> None:
    for number in range(negatives):
        rows.receive(database, rows.new(study=f"n{number}"))
        rows.score(database, study=f"n{number}", probability=0.01, decision="negative")
    for name, decision, probability in (("p", "positive", 0.9), ("u", "undetermined", 0.5)):
        rows.receive(database, rows.new(study=name))
        rows.score(database, study=name, probability=probability, decision=decision)


def test_the_sample_has_all_positives_and_a_random_share_of_negatives_always_the_same(
    database: Database,
) -> None:
    _filled(database, 60)
    some, more = _drawn(database, 0.1), _drawn(database, 0.5)
    assert "ACC-p" in some
    assert "ACC-u" not in more
    assert 1 <= len(some - {"ACC-p"}) <= 20
    assert 15 <= len(more - {"ACC-p"}) <= 45
    assert some < more
    assert _drawn(database, 0.1) == some
    assert len(_drawn(database, 1)) == 61


@pytest.mark.parametrize(("share", "digest"), [(0, "00000000"), (0.5, "80000000"), (1, "g")])
def test_a_share_of_the_digests_lies_below(share: float, digest: str) -> None:
    assert digest_below(share) == digest


def test_what_somebody_judged_leaves_their_sample_only(site: Site, client: httpx.Client) -> None:
    site.add()
    site.scored()
    assert _drawn(site.database, 0.05) == {"ACC-1"}
    _judge(site, client, blind="1")
    assert _drawn(site.database, 0.05) == set()
    assert _drawn(site.database, 0.05, person="somebody else") == {"ACC-1"}


def _judge(site: Site, client: httpx.Client, **values: str) -> None:
    form = {
        name: re.search(f'name="{name}" value="([^"]+)"', client.get(BLIND).text)
        for name in ("token", "image")
    }
    sent = {name: found[1] for name, found in form.items() if found} | {"label": "pneumonia", **values}
    answer = client.post(
        f"/studies/{uid('1', 'study')}/verdicts", data=sent, headers={"Origin": site.address}
    )
    assert answer.status_code == 303


@pytest.mark.parametrize(
    ("before", "blind", "visible"),
    [([], "1", False), (["/studies/{}"], "1", True), (["/studies/{}/report"], "1", True), ([], "", True)],
)
def test_the_row_tells_whether_the_score_was_seen(
    site: Site, client: httpx.Client, before: list[str], blind: str, visible: bool
) -> None:
    image = site.add()
    rows.report(site.database, {image: site.scored()})
    with site.database.write() as session:
        session.execute(text("UPDATE report SET content = :none"), {"none": b""})
    for address in before:
        client.get(address.format(uid("1", "study")))
    _judge(site, client, **({"blind": blind} if blind else {}))
    assert [row.score_was_visible for row in rows.rows(site.database, Verdict)] == [visible]


def test_a_blind_reader_sees_nothing_of_the_answer_until_the_verdict(site: Site, reader: Page) -> None:
    image = site.add(patient_id="PID", patient_name="Moon^Ada")
    rows.report(site.database, {image: site.scored(heat_map=heat_map({(1, 1): 8.0}), novelty=0.4)})
    site.add("old", patient_id="PID", patient_name="Moon^Ada")
    site.scored("old")
    reader.goto("/")
    reader.get_by_role("link", name="Blind sample").click()
    assert not TELLS.search(reader.locator("tbody").inner_text())
    shot(reader, "blind-list")
    reader.locator(f"a[href*='{uid('1', 'study')}']").click()
    reader.locator("#viewer[data-shown]").wait_for()
    assert not TELLS.search(reader.locator("main").inner_html())
    expect(reader.locator("#map-tools")).to_be_hidden()
    shot(reader, "blind")
    reader.keyboard.press("p")
    expect(reader.get_by_text("Pneumonia: suspected")).to_be_visible()
    expect(reader.locator(".given")).to_contain_text("pneumonia")
    reader.get_by_role("link", name="Blind sample").click()
    expect(reader.locator("tbody tr")).to_have_count(1)


def test_negatives_that_nobody_drew_do_not_count_as_blind(site: Site, client: httpx.Client) -> None:
    site.add()
    site.scored(probability=0.01, decision="negative")
    _judge(site, client, blind="1")
    model = rows.register(site.database)
    with site.database.read() as session:
        counted = [sum(one.images for one in model_use.judged(session, model, share)) for share in (1e-9, 1)]
    assert counted == [0, 1]


@pytest.mark.parametrize(
    ("label", "decision", "fit"),
    [
        ("agree", "negative", True),
        ("agree", "undetermined", False),
        ("pneumonia", "waiting", True),
        ("x", "positive", False),
    ],
)
def test_nobody_agrees_where_there_is_no_answer(label: str, decision: str, fit: bool) -> None:
    assert fits(label, decision) is fit
