"""Rows of the views one after the other: all that match, in their order or in none, few in memory."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from db import listings, results
from db.listings import LEDGER, RESULTS, SCORES, STUDIES, Listing
from db.models import Study
from db.results import Filter
from db.session import Database
from tests.conftest import uid
from tests.helpers.rows import NOW, instance_id, new, receive, report, score

HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (listings, results):
        monkeypatch.setattr(module, "_AT_ONCE", 2)


@pytest.fixture
def several(database: Database) -> Database:
    """A database with the studies a to e, an hour apart: positive, negative, refused, waiting, own result."""
    for position, study in enumerate("abcde"):
        receive(database, new(study=study, received_at=NOW + position * HOUR, patient_name=f"{study}^X"))
    made = {
        "a": score(database, study="a"),
        "b": score(database, study="b", probability=0.1, decision="negative"),
    }
    refused: dict[str, Any] = {"probability": None, "decision": "not_scored"}
    made["c"] = score(database, study="c", **refused, reason="NOT_FRONTAL")
    score(database, study="e", **refused, reason="OWN_RESULT")
    score(database, study="a", model="Another", probability=0.2, decision="negative")
    for study in "ab":
        report(database, {instance_id(database, study=study): made[study]}, study=study)
    return database


def found(database: Database, of: Listing, **wanted: Any) -> str:
    """Return which rows match, by the names of their studies."""
    names = {uid(study, "study"): study for study in "abcde"}
    with database.read() as session:
        return "".join(
            names[row["study_instance_uid"]] for row in listings.rows(session, of, Filter(**wanted))
        )


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, "edcba"),
        ({"with_results": False}, "dcba"),
        ({"limit": 3}, "edc"),
        ({"patient": "PID-b"}, "b"),
        ({"patient": "B^*"}, "b"),
        ({"accession": "ACC-c"}, "c"),
        ({"study": uid("a", "study")}, "a"),
        ({"study_dates": ("20250610", "20250610")}, "edcba"),
        ({"study_dates": ("20250611", "20250612")}, ""),
        ({"since": NOW + HOUR, "until": NOW + 3 * HOUR}, "cb"),
        ({"decision": "waiting"}, "edc"),
        ({"decision": "positive", "limit": 1}, "b"),
        ({"min_probability": 0.15}, "a"),
        ({"decision": "negative"}, ""),
    ],
)
def test_studies_are_found_as_images_are(several: Database, wanted: Any, expected: str) -> None:
    assert found(several, STUDIES, **wanted) == expected


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, "ecbaa"),
        ({"decision": "negative"}, "ba"),
        ({"min_probability": 0.15}, "aa"),
        ({"patient": "a^x*"}, "aa"),
        ({"since": NOW + 2 * HOUR, "with_results": False}, "c"),
        ({"limit": 4}, "ecba"),
    ],
)
def test_scores_are_found_whatever_model_gave_them(several: Database, wanted: Any, expected: str) -> None:
    assert found(several, SCORES, **wanted) == expected


def test_the_last_image_counts_for_the_order_of_studies(several: Database) -> None:
    with several.write() as session:
        session.execute(
            update(Study)
            .where(Study.study_instance_uid == uid("b", "study"))
            .values(last_received_at=NOW + 9 * HOUR)
        )
    assert found(several, STUDIES, limit=2) == "be"


@pytest.mark.parametrize("of", [RESULTS, STUDIES, SCORES, LEDGER], ids=lambda of: of.name)
def test_in_random_order_there_are_the_same_rows(
    several: Database, of: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Backwards:
        def shuffle(self, keys: list[int]) -> None:
            keys.reverse()

    monkeypatch.setattr("random.SystemRandom", Backwards)
    for wanted in (Filter(), Filter(limit=3), Filter(min_probability=0.05)):
        with several.read() as session:
            straight = list(listings.rows(session, of, wanted))
            shuffled = list(listings.rows(session, of, wanted, is_shuffled=True))
        assert len(straight) == len(shuffled) > 0
        assert tuple(straight[0]) == tuple(of.columns)
        if wanted.limit is None:
            assert sorted(map(repr, straight)) == sorted(map(repr, shuffled))
            first: Iterator[datetime] = (row[_moment(of)] for row in shuffled)
            assert next(first) < next(reversed([row[_moment(of)] for row in shuffled]))


def _moment(of: Listing) -> str:
    return "last_received_at" if of is STUDIES else "received_at"


def test_the_number_of_rows_is_counted_up_to_a_limit(several: Database) -> None:
    with several.read() as session:
        assert listings.how_many(session, STUDIES, Filter(with_results=False), 100) == 4
        assert listings.how_many(session, SCORES, Filter(), 2) == 2


@pytest.mark.parametrize("limit", [3, 5, 7])
def test_the_newest_rows_of_the_ledger_come_once_each(several: Database, limit: int) -> None:
    with several.read() as session:
        rows = results.ledger(session, Filter(limit=limit))
    keys = [(row["sop_instance_uid"], row["destination"]) for row in rows]
    assert len(keys) == len(set(keys)) == limit
