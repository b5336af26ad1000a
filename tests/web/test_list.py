"""What the list shows, page by page."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import text

from db import queries
from db.reading_list import Wanted, page
from db.session import Database
from pacs_node.web.wording import answer
from tests.helpers import rows


def _names(database: Database, **asked: object) -> list[str]:
    """Return the accession numbers of all pages, one study a page."""
    found: list[str] = []
    wanted = Wanted(**asked, limit=1)  # type: ignore[arg-type]
    while True:
        with database.read() as session:
            one = page(session, wanted)
        found += [study.accession_number for study in one.studies]
        if one.next is None:
            return found
        wanted = Wanted(**asked, limit=1, after=one.next)  # type: ignore[arg-type]


def _filled(database: Database) -> None:
    for name, probability in (("a", 0.2), ("b", 0.9), ("c", 0.9), ("d", None)):
        sender = "CR2" if name == "b" else "CR1"
        rows.receive(database, rows.new(study=name, patient_name=f"Moon^{name}", calling_ae_title=sender))
        decision = "not_scored" if probability is None else "positive" if probability > 0.5 else "negative"
        reason = "NO_VIEW" if probability is None else None
        rows.score(database, 1, name, probability=probability, decision=decision, reason=reason)
    rows.receive(database, rows.new(2, study="a"))
    score = rows.score(database, 2, "a", probability=0.1, decision="negative")
    rows.receive(database, rows.new(study="e"))
    rows.report(database, {rows.instance_id(database, 2, "a"): score}, "a")


def test_each_study_stands_once_newest_or_most_suspicious_first(database: Database) -> None:
    _filled(database)
    assert _names(database) == [f"ACC-{name}" for name in "edcba"]
    assert _names(database, suspicious=True) == ["ACC-c", "ACC-b", "ACC-a"]


def test_filters_find_what_they_say(database: Database) -> None:
    _filled(database)
    for asked, names in (
        ({"text": "ACC-b"}, "b"),
        ({"text": "moon^"}, ""),
        ({"text": "Moon^c"}, "c"),
        ({"text": "pid-"}, "edcba"),
        ({"sender": "CR2"}, "b"),
        ({"decision": "negative"}, "a"),
        ({"decision": "waiting"}, "e"),
        ({"reason": "NO_VIEW"}, "d"),
        ({"delivery": "pending"}, "a"),
        ({"study_dates": ("20250611", "20250612")}, ""),
        ({"decision": "positive", "sender": "CR2", "suspicious": True}, "b"),
    ):
        assert _names(database, **asked) == [f"ACC-{name}" for name in names], asked


def test_a_newer_score_replaces_the_older_one(database: Database) -> None:
    _filled(database)
    rows.score(database, 1, "c", model="newer", probability=0.1, decision="negative")
    assert _names(database, suspicious=True) == ["ACC-b", "ACC-a", "ACC-c"]
    assert _names(database, decision="positive") == ["ACC-b"]


def test_the_answer_is_that_of_the_report_as_long_as_it_states_all(database: Database) -> None:
    rows.receive(database, rows.new())
    score = rows.score(database, probability=0.1, decision="negative")
    rows.report(database, {rows.instance_id(database): score})
    with database.write() as session:
        session.execute(text("UPDATE report SET decision = 'undetermined'"))
    with database.read() as session:
        assert answer(page(session, Wanted()).studies[0]) == "undetermined"
    rows.receive(database, rows.new(2, received_at=rows.NOW + timedelta(hours=1)))
    rows.score(database, 2, probability=0.9)
    with database.read() as session:
        assert answer(page(session, Wanted()).studies[0]) == "positive"


def test_a_study_of_two_patients_is_said_to_be_one(database: Database) -> None:
    rows.receive(database, rows.new())
    study_id = rows.study_id(database)
    with database.write() as session:
        queries.record_study_problem(session, study_id, "PATIENTS_DIFFER", rows.NOW)
    with database.read() as session:
        assert page(session, Wanted()).studies[0].problem == "PATIENTS_DIFFER"
