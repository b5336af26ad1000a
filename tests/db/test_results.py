"""What people ask the results database: each image has one row that says what is known of it, and why."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta, timezone
from typing import Any

import psycopg
import pytest
from sqlalchemy import update

from db import deliveries, queue, results, status
from db.models import Delivery, Job
from db.queue import Kind
from db.results import RESULT_COLUMNS, Filter
from db.session import Database, sqlite
from db.status import Counts, Failure, Waiting
from tests.conftest import uid
from tests.helpers.rows import (
    NOW,
    finish,
    instance_id,
    jobs,
    new,
    pending,
    receive,
    register,
    report,
    rows,
    score,
)

HOUR = timedelta(hours=1)


def ask(database: Database, **wanted: Any) -> list[dict[str, Any]]:
    with database.read() as session:
        return results.results(session, Filter(**wanted))


def only(database: Database) -> dict[str, Any]:
    [row] = ask(database)
    return row


def give_up(database: Database, kind: Kind, *refs: int, error: str = "Broken", lane: str = "") -> None:
    """Give jobs up, as a worker does when trying again cannot help."""
    with database.write() as session:
        session.execute(update(Job).where(Job.kind == kind).values(visible_at=0))
        claim = queue.claim(session, kind, lane, limit=99, lease_seconds=60)
        mine = [job.id for job in claim.jobs if job.ref in refs]
        assert len(queue.fail(session, claim.token, mine, error)) == len(refs)
        queue.postpone(session, claim.token, [job.id for job in claim.jobs], 0, None)


def settle(database: Database, position: int, state: str) -> None:
    """End the delivery at a position as its worker does; with success, all jobs of its destination end."""
    delivery = pending(database)[position]
    if state == "failed":
        give_up(database, Kind.DELIVER, delivery.id, lane=delivery.destination)
    else:
        finish(database, Kind.DELIVER, lane=delivery.destination)
    with database.write() as session:
        deliveries.record_delivery(session, delivery.id, state=state)


def failures(database: Database, limit: int = 20) -> list[Failure]:
    with database.read() as session:
        return status.failures(session, limit)


def retry(database: Database, study: str | None = None) -> int:
    with database.write() as session:
        return status.retry(session, study and uid(study, "study"), NOW + 100 * HOUR)


def found(database: Database, **wanted: Any) -> str:
    """Return which of the images of `several` match, by the study's name."""
    names = {uid(study, "study"): study for study in STUDIES}
    return "".join(sorted(names[row["study_instance_uid"]] for row in ask(database, **wanted)))


STUDIES: dict[str, dict[str, Any]] = {
    "a": {"patient_id": "100%", "patient_name": "Meyer^Eva", "accession_number": "A_1"},
    "b": {"patient_id": "1000", "patient_name": "Meier^Eva", "accession_number": "AB1"},
    "c": {"patient_id": "1\\0", "patient_name": "Müller^100%", "accession_number": ""},
    "d": {"patient_id": "*", "patient_name": "", "accession_number": "a_12"},
}


@pytest.fixture
def several(database: Database) -> Database:
    """A database with one image of each of the `STUDIES`, an hour apart: 90 %, 50 %, not scored, waiting."""
    for position, (study, values) in enumerate(STUDIES.items()):
        receive(database, new(study=study, received_at=NOW + position * HOUR, **values))
    score(database, study="a", probability=0.9)
    score(database, study="b", probability=0.5, decision="negative")
    score(database, study="c", probability=None, decision="not_scored", reason="NOT_FRONTAL")
    return database


def test_an_image_without_score_is_waiting(database: Database) -> None:
    one = new(view_position="")
    receive(database, one)
    row = only(database)
    assert tuple(row) == RESULT_COLUMNS
    known = {name: getattr(one, name) for name in RESULT_COLUMNS if hasattr(one, name)}
    assert row == {**dict.fromkeys(RESULT_COLUMNS), **known, "decision": "waiting"}


def test_an_image_that_is_put_off_says_why_it_waits(database: Database) -> None:
    receive(database, new())
    with database.write() as session:
        claim = queue.claim(session, Kind.SCORE, "", limit=1, lease_seconds=60)
        queue.postpone(session, claim.token, [claim.jobs[0].id], 30, "The file cannot be read")
    row = only(database)
    assert (row["decision"], row["reason"], row["detail"]) == ("waiting", None, "The file cannot be read")


def test_an_image_whose_scoring_was_given_up_says_so_and_never_reads_as_negative(database: Database) -> None:
    receive(database, new())
    give_up(database, Kind.SCORE, instance_id(database), error="The file is missing")
    row = only(database)
    assert (row["decision"], row["reason"]) == ("not_scored", "SCORING_FAILED")
    assert (row["detail"], row["probability"]) == ("The file is missing", None)


def test_a_scored_image_has_the_score_and_the_model_that_gave_it(database: Database) -> None:
    receive(database, new(view_position="AP"))
    assert only(database)["view"] == "AP"
    score(database, probability=0.8125, view="PA", detail="fine", novelty=0.7, age=4.25, scored_at=NOW + HOUR)
    finish(database, Kind.SCORE)
    row = only(database)
    assert (row["probability"], row["threshold"], row["decision"]) == (0.8125, 0.5, "positive")
    assert (row["view"], row["detail"], row["scored_at"]) == ("PA", "fine", NOW + HOUR)
    assert (row["novelty"], row["age"]) == (0.7, 4.25)
    assert (row["model_name"], row["model_version"], len(row["model_sha256"])) == (
        "DenseNet121",
        "2025.06",
        64,
    )


def test_an_image_that_cannot_be_scored_says_why(several: Database) -> None:
    [row] = ask(several, decision="not_scored")
    assert (row["probability"], row["reason"], row["scored_at"]) == (None, "NOT_FRONTAL", NOW)


def test_there_is_one_row_for_each_image_with_its_newest_score(database: Database) -> None:
    for number in (1, 2):
        receive(database, new(number))
    receive(database, new(2, content="other"))
    for model, probability in (("old", 0.9), ("new", 0.2)):
        for number in (1, 2):
            one = instance_id(database, number)
            score(database, model=model, instance_id=one, probability=probability)
    shown = {(row["sop_instance_uid"], row["probability"], row["model_name"]) for row in ask(database)}
    assert len(ask(database)) == 3
    assert shown == {(uid("1", 1), 0.2, "new"), (uid("1", 2), 0.2, "new"), (uid("1", 2), None, None)}


def test_an_image_has_the_newest_report_that_states_it(database: Database) -> None:
    for number in (1, 2):
        receive(database, new(number))
    one, two = instance_id(database, 1), instance_id(database, 2)
    first = report(database, {one: score(database, 1)})
    second = report(database, {one: None, two: None}, revision=2, destinations=[])
    third = report(database, {two: None}, revision=3)
    shown = {row["sop_instance_uid"]: (row["report_uid"], row["report_revision"]) for row in ask(database)}
    assert shown == {uid("1", 1): (second, 2), uid("1", 2): (third, 3)}
    assert first not in {report_uid for report_uid, _ in shown.values()}


def test_the_deliveries_of_the_report_are_told_in_the_order_of_the_destinations(database: Database) -> None:
    receive(database, new())
    report(database, {instance_id(database): None}, destinations=["PACS", "ARCHIVE", "VNA"])
    assert only(database)["deliveries"] == "PACS: pending, ARCHIVE: pending, VNA: pending"
    settle(database, 0, "delivered")
    settle(database, 1, "failed")
    assert only(database)["deliveries"] == "PACS: delivered, ARCHIVE: failed, VNA: pending"
    report(database, {instance_id(database): None}, revision=2, destinations=["PACS"])
    assert only(database)["deliveries"] == "PACS: pending"
    report(database, {instance_id(database): None}, revision=3, destinations=[])
    assert only(database)["deliveries"] is None


def test_any_program_that_speaks_sql_can_read_the_results(several: Database, database_url: str) -> None:
    query = "SELECT patient_id, probability, decision, reason FROM results ORDER BY received_at"
    expected = [
        ("100%", 0.9, "positive", None),
        ("1000", 0.5, "negative", None),
        ("1\\0", None, "not_scored", "NOT_FRONTAL"),
        ("*", None, "waiting", None),
    ]
    columns, in_view = "SELECT * FROM results", (*RESULT_COLUMNS[:25], "instance_id", *RESULT_COLUMNS[25:])
    if several.file:
        with closing(sqlite.connect(several.file)) as file:
            assert file.execute(query).fetchall() == expected
            assert tuple(column[0] for column in file.execute(columns).description) == in_view
    else:
        with psycopg.connect(database_url.replace("+psycopg", "")) as server:
            assert server.execute(query).fetchall() == expected
            described = server.execute(columns).description or []
            assert tuple(column.name for column in described) == in_view


def test_the_newest_image_comes_first_and_a_limit_cuts_the_oldest(several: Database) -> None:
    assert [row["patient_id"] for row in ask(several)] == ["*", "1\\0", "1000", "100%"]
    assert [row["patient_id"] for row in ask(several, limit=1)] == ["*"]
    assert ask(several, limit=0) == []


def test_a_patient_is_found_by_id_or_name(several: Database) -> None:
    assert found(several, patient="1000") == "b"
    assert found(several, patient="Meyer^Eva") == "a"
    assert found(several, patient="meyer^eva") == ""
    assert found(several, patient="Meyer") == ""
    assert found(several, patient="'; DROP TABLE study; --") == ""


def test_a_star_stands_for_anything_and_lets_case_be(several: Database) -> None:
    assert found(several, patient="*") == "abcd"
    assert found(several, patient="me*^eva") == "ab"
    assert found(several, patient="100*") == "ab"
    assert found(several, accession="a*1*") == "abd"
    assert found(several, study=uid("b", "study")[:-3] + "*") == "b"


def test_the_wildcards_of_sql_are_letters_like_any_other(several: Database) -> None:
    assert found(several, patient="10%") == ""
    assert found(several, patient="100%") == "a"
    assert found(several, patient="*100%") == "ac"
    assert found(several, patient="*%*") == "ac"
    assert found(several, patient="1\\0") == "c"
    assert found(several, patient="1\\*") == "c"
    assert found(several, accession="A_1") == "a"
    assert found(several, accession="*_1*") == "ad"


def test_a_study_is_found_by_accession_number_and_uid(several: Database) -> None:
    assert found(several, accession="AB1") == "b"
    assert found(several, accession="") == "c"
    assert found(several, study=uid("b", "study")) == "b"
    assert found(several, study=uid("e", "study")) == ""


def test_images_are_found_from_a_moment_on_and_before_another(several: Database) -> None:
    assert found(several, since=NOW + HOUR) == "bcd"
    assert found(several, until=NOW + HOUR) == "a"
    assert found(several, since=NOW + HOUR, until=NOW + 3 * HOUR) == "bc"
    tokyo = timezone(timedelta(hours=9))
    assert found(several, since=(NOW + HOUR).astimezone(tokyo)) == "bcd"


def test_images_are_found_by_study_date(database: Database) -> None:
    for study, day in (("a", "20250609"), ("b", "20250610"), ("c", "20250611"), ("d", "")):
        receive(database, new(study=study, study_date=day))
    assert found(database, study_dates=("20250610", "20250610")) == "b"
    assert found(database, study_dates=("20250610", "20250630")) == "bc"
    assert found(database, study_dates=("20250101", "20250610"), limit=9) == "ab"


def test_images_are_found_by_decision_and_probability(several: Database) -> None:
    decisions = ("positive", "negative", "not_scored", "waiting", "undetermined")
    assert [found(several, decision=decision) for decision in decisions] == ["a", "b", "c", "d", ""]
    assert found(several, min_probability=0.0) == "ab"
    assert found(several, min_probability=0.5) == "ab"
    assert found(several, min_probability=0.51) == "a"


def test_conditions_hold_together(several: Database) -> None:
    assert found(several, patient="me*", decision="negative", min_probability=0.1, limit=5) == "b"
    assert found(several, patient="me*", decision="waiting") == ""
    assert found(several) == "abcd"


def test_everything_is_counted_by_its_state(several: Database) -> None:
    finish(several, Kind.SCORE)
    give_up(several, Kind.REPORT, *[ref for ref, _ in jobs(several, Kind.REPORT)][:1])
    for study in "ab":
        report(several, {instance_id(several, study=study): None}, study)
    settle(several, 0, "failed")
    with several.read() as session:
        assert status.counts(session) == Counts(
            studies=4,
            instances=4,
            scores=3,
            reports=2,
            jobs={
                ("score", "done"): 4,
                ("report", "ready"): 3,
                ("report", "failed"): 1,
                ("deliver", "ready"): 3,
                ("deliver", "failed"): 1,
            },
            deliveries={("PACS", "failed"): 1, ("PACS", "pending"): 1, ("ARCHIVE", "pending"): 2},
        )


def test_an_empty_database_has_nothing_to_tell(database: Database) -> None:
    with database.read() as session:
        assert status.counts(session) == Counts(
            studies=0, instances=0, scores=0, reports=0, jobs={}, deliveries={}
        )
        assert status.oldest_waiting(session) is None
        assert status.retry(session, None, NOW) == 0
    assert ask(database) == []
    assert failures(database) == []


def test_the_image_that_waited_longest_is_neither_scored_nor_given_up(database: Database) -> None:
    for number in (2, 1, 3):
        receive(database, new(study=str(number), received_at=NOW + number * HOUR))
    for number, expected in ((1, 1), (2, 2), (3, 3)):
        with database.read() as session:
            assert status.oldest_waiting(session) == Waiting(
                study_instance_uid=uid(expected, "study"), received_at=NOW + expected * HOUR
            )
        give_up(database, Kind.SCORE, instance_id(database, study=str(number)))
    with database.read() as session:
        assert status.oldest_waiting(session) is None


def test_a_study_and_the_digests_of_all_objects_are_known(database: Database) -> None:
    came = [new(1), new(2), new(2, content="other")]
    for one in came:
        receive(database, one)
    with database.read() as session:
        assert status.study_exists(session, uid("1", "study"))
        assert not status.study_exists(session, uid("2", "study"))


def fail_much(database: Database) -> None:
    """Give up the scores of two studies of two images and one, their reports, and one delivery of each."""
    for study, images in (("1", 2), ("2", 1)):
        for number in range(images):
            receive(database, new(number, study))
        first = instance_id(database, 0, study)
        report(database, {first: None}, study, destinations=["PACS", "ARCHIVE"])
    give_up(database, Kind.SCORE, *[ref for ref, _ in jobs(database, Kind.SCORE)], error="Not scored")
    give_up(database, Kind.REPORT, *[ref for ref, _ in jobs(database, Kind.REPORT)], error="Not reported")
    for position, state in enumerate(["failed", "delivered"] * 2):
        settle(database, position, state)


def test_failures_tell_what_failed_of_which_study_and_why_the_newest_first(database: Database) -> None:
    fail_much(database)
    one, two = uid("1", "study"), uid("2", "study")
    told = [(f.kind, f.lane, f.study_instance_uid, f.error) for f in failures(database)]
    assert told == [
        ("deliver", "PACS", two, "Broken"),
        ("report", "", two, "Not reported"),
        ("score", "", two, "Not scored"),
        ("deliver", "PACS", one, "Broken"),
        ("score", "", one, "Not scored"),
        ("report", "", one, "Not reported"),
        ("score", "", one, "Not scored"),
    ]
    assert failures(database, limit=2) == failures(database)[:2]


def test_a_retry_makes_everything_that_failed_ready_again(database: Database) -> None:
    fail_much(database)
    failed = [row.id for row in rows(database, Job) if row.state == "failed"]
    assert retry(database) == len(failed) == 7
    assert failures(database) == []
    revived = [row for row in rows(database, Job) if row.id in failed]
    assert {(row.state, row.attempts, row.token, row.error) for row in revived} == {("ready", 0, None, None)}
    assert [state for _, state in jobs(database, Kind.DELIVER)] == ["ready", "done"] * 2
    assert [row.state for row in rows(database, Delivery)] == ["pending", "delivered"] * 2
    assert retry(database) == 0


@pytest.mark.parametrize(("study", "revived", "other"), [("1", 4, "2"), ("2", 3, "1")])
def test_a_retry_of_one_study_leaves_the_others_alone(
    database: Database, study: str, revived: int, other: str
) -> None:
    fail_much(database)
    assert retry(database, "3") == 0
    assert retry(database, study) == revived
    left = [failure.study_instance_uid for failure in failures(database)]
    assert left == [uid(other, "study")] * (7 - revived)


def test_a_retry_gives_a_delivery_its_full_time_again(database: Database) -> None:
    receive(database, new())
    report(database, {instance_id(database): None}, destinations=["PACS", "ARCHIVE"])
    for position in range(2):
        with database.write() as session:
            deliveries.record_try(session, pending(database)[position].id, error="Down")
    settle(database, 0, "failed")
    assert retry(database) == 1
    revived, other = rows(database, Delivery)
    assert (revived.state, revived.tries, revived.give_up_at) == ("pending", 0, NOW + 100 * HOUR)
    assert (other.state, other.tries, other.give_up_at) == ("pending", 1, NOW + 72 * HOUR)


def test_an_image_that_failed_waits_again_after_a_retry(database: Database) -> None:
    receive(database, new())
    register(database)
    give_up(database, Kind.SCORE, instance_id(database))
    retry(database, "1")
    row = only(database)
    assert (row["decision"], row["reason"], row["detail"]) == ("waiting", None, None)


def test_all_rows_are_written_one_by_one_and_a_table_shows_some_of_them(database: Database) -> None:
    for number in range(450):
        receive(database, new(number))
    with database.read() as session:
        walked = list(results.each_result(session, Filter()))
        assert [row["sop_instance_uid"] for row in walked] == [r["sop_instance_uid"] for r in ask(database)]
        assert len(walked) == 450
        assert len(list(results.each_result(session, Filter(limit=7)))) == 7
        assert len(list(results.each_of_ledger(session, Filter()))) == 450
        assert results.how_many_results(session, Filter(), 1000) == 450
        assert results.how_many_results(session, Filter(), 100) == 100
        assert results.how_many_results(session, Filter(decision="positive"), 1000) == 0


def test_results_of_programs_are_hidden_where_nobody_asks_for_them(database: Database) -> None:
    register(database)
    for number, reason in ((1, None), (2, "OWN_RESULT"), (3, "DERIVED_RESULT"), (4, "NOT_FRONTAL")):
        receive(database, new(number))
        probability: dict[str, Any] = (
            {} if reason is None else {"probability": None, "decision": "not_scored"}
        )
        score(database, number, reason=reason, **probability)
    receive(database, new(5))
    assert len(ask(database)) == 5
    images = ask(database, with_results=False)
    assert {row["reason"] for row in images} == {None, "NOT_FRONTAL"}
    assert len(ask(database, with_results=False, limit=9)) == len(images) == 3
    with database.read() as session:
        assert len(results.ledger(session, Filter(with_results=False))) == 3
        assert results.how_many_results(session, Filter(with_results=False), 99) == 3
