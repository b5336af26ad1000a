"""What the page of one study says."""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest
from sqlalchemy import text

from db import reading_list
from db.reading_list import ListedStudy
from pacs_node.config_web import WebSettings
from pacs_node.web import timeline, viewers, wording
from tests.conftest import uid
from tests.helpers import rows
from tests.web.conftest import Site


def _study(site: Site) -> tuple[ListedStudy, timeline.Revisions]:
    with site.database.read() as session:
        study = reading_list.study(session, uid("1", "study"))
        assert study is not None
        return study, reading_list.revisions(session, study.id)


def _sent(site: Site) -> None:
    """Receive, score and report an image twice; the second report waits for one destination."""
    image = site.add()
    score = site.scored(scored_at=rows.NOW + timedelta(seconds=2))
    rows.report(site.database, {image: score})
    rows.report(site.database, {image: score}, revision=2)
    later = {
        name: rows.NOW + timedelta(seconds=n) for n, name in enumerate(("made", "came", "kept", "tried"), 5)
    }
    moments = {name: f"{moment:%Y-%m-%d %H:%M:%S}+00:00" for name, moment in later.items()}
    if site.database.is_sqlite:
        moments = {name: moment.removesuffix("+00:00") + ".000000" for name, moment in moments.items()}
    with site.database.write() as session:
        session.execute(text("UPDATE report SET made_at = :made"), {"made": moments["made"]})
        done = "UPDATE delivery SET state = 'committed', status = 0, tries = 2, delivered_at = :came, "
        session.execute(
            text(f"{done} committed_at = :kept WHERE destination = 'PACS'"),
            {name: moments[name] for name in ("came", "kept")},
        )
        waits = (
            "UPDATE delivery SET status = 42752, tries = 3, error = 'The disk is full', updated_at = :tried"
        )
        session.execute(text(f"{waits} WHERE destination = 'ARCHIVE'"), {"tried": moments["tried"]})


def test_the_timeline_tells_all_revisions_in_the_order_of_time(site: Site) -> None:
    _sent(site)
    study, revisions = _study(site)
    told = [(event.what, event.detail, event.state) for event in timeline.events(study, revisions)]
    assert told == [
        ("image 1 received", "from MODALITY", ""),
        ("image 1 scored", "0.9000", ""),
        ("report 1 made", "positive", ""),
        ("report 2 made", "positive", ""),
        ("PACS: report 1 delivered", "0x0000 success · after 2 failed tries", ""),
        ("PACS: report 2 delivered", "0x0000 success · after 2 failed tries", ""),
        ("PACS: report 1 committed", "the destination promised to keep it", ""),
        ("PACS: report 2 committed", "the destination promised to keep it", ""),
        ("ARCHIVE: report 1 waits", "0xA700 out of resources · The disk is full · 3 failed tries", "pending"),
        ("ARCHIVE: report 2 waits", "0xA700 out of resources · The disk is full · 3 failed tries", "pending"),
    ]


def test_a_timeline_without_answers_has_none(site: Site) -> None:
    _sent(site)
    study, revisions = _study(site)
    told = [f"{event.what} {event.detail}" for event in timeline.events(study, revisions, with_answers=False)]
    assert not any("positive" in one or "0.9" in one for one in told)


def test_the_numbers_stand_in_words(site: Site, client: httpx.Client) -> None:
    site.add()
    site.scored(probability=0.90456, threshold=0.0815, novelty=1.7, age=3.25)
    page = client.get(f"/studies/{uid('1', 'study')}").text
    for said in (
        "90.46 % that it shows pneumonia, by the model; positive from 8.15 %",
        "unlike the training images: its distance from them is 1.70 of the limit",
        "3.2 years at the study",
        "DenseNet121 2025.06",
    ):
        assert said in page


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "0x0000 success"),
        (0xA7FF, "0xA7FF out of resources"),
        (0xC123, "0xC123 cannot understand"),
        (0x1234, "0x1234"),
    ],
)
def test_a_status_is_said_in_words(status: int, words: str) -> None:
    assert wording.dimse(status) == words


def test_a_link_to_a_viewer_cannot_be_broken_out_of(site: Site) -> None:
    site.add(patient_id='A&b="c', accession_number="x/../{study}")
    study, _ = _study(site)
    link = viewers.address("https://v/?s={study}&p={patient}&a={accession}", study)
    assert link == f"https://v/?s={uid('1', 'study')}&p=A%26b%3D%22c&a=x%2F..%2F%7Bstudy%7D"
    assert viewers.address("", study) == ""


@pytest.mark.parametrize(
    "wrong", ["javascript:alert(1)", "//host/{study}", "https://v/{uid}", "file:///{study}"]
)
def test_a_template_that_opens_no_study_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="http"):
        WebSettings(viewer_url=wrong)
