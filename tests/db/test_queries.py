"""What the node records of its work: each object once, each score once, each report with all that follows."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier, Thread
from typing import Any

import pytest
from sqlalchemy import select, update

from db import deliveries, queries, queue
from db.errors import DatabaseError, WriteConflict
from db.models import Delivery, Instance, Job, Model, Report, ReportImage, Score, Study
from db.queue import Kind
from db.rows import Received
from db.session import Database
from tests.conftest import uid
from tests.helpers.rows import (
    NOW,
    QUIET,
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
    study_id,
)


def report_job(database: Database) -> Any:
    [row] = [row for row in rows(database, Job) if row.kind == Kind.REPORT]
    return row


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Call functions at the same moment, each in its thread, and return what they return."""
    start = Barrier(len(calls), timeout=120)

    def call(one: Callable[[], Any]) -> Any:
        start.wait()
        return one()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


def test_a_new_object_is_recorded_with_its_study_and_one_job_each(database: Database) -> None:
    one = new()
    assert receive(database, one) is Received.NEW
    [study], [instance] = rows(database, Study), rows(database, Instance)
    for row in (study, instance):
        stored = {name: value for name, value in row._mapping.items() if hasattr(one, name)}
        assert stored == {name: getattr(one, name) for name in stored}
    assert (study.first_received_at, study.last_received_at, instance.copy) == (NOW, NOW, 0)
    assert jobs(database, Kind.SCORE) == [(instance.id, "ready")]
    assert jobs(database, Kind.REPORT) == [(study.id, "ready")]


def test_an_image_can_be_scored_at_once_and_reported_when_its_study_is_quiet(database: Database) -> None:
    receive(database, new())
    [scoring] = [row for row in rows(database, Job) if row.kind == Kind.SCORE]
    assert scoring.visible_at == pytest.approx(time.time(), abs=5)
    assert report_job(database).visible_at == pytest.approx(time.time() + QUIET, abs=5)
    assert rows(database, Study)[0].quiet_at == pytest.approx(time.time() + QUIET, abs=5)


def test_the_same_object_again_changes_nothing(database: Database) -> None:
    receive(database, new(), quiet=0)
    finish(database, Kind.SCORE)
    before = [rows(database, entity) for entity in (Study, Instance, Job)]
    again = new(received_at=NOW + timedelta(hours=1), calling_ae_title="OTHER")
    assert receive(database, again) is Received.AGAIN
    assert [rows(database, entity) for entity in (Study, Instance, Job)] == before


def test_the_same_object_again_revives_the_scoring_that_was_given_up(database: Database) -> None:
    receive(database, new(), quiet=0)
    with database.write() as session:
        session.execute(update(Job).where(Job.kind == Kind.SCORE).values(state="failed", attempts=6))
    assert receive(database, new()) is Received.AGAIN
    [scoring] = [row for row in rows(database, Job) if row.kind == Kind.SCORE]
    assert (scoring.state, scoring.attempts) == ("ready", 0)


def test_another_object_under_the_same_uid_is_kept_beside_the_first(database: Database) -> None:
    came = [receive(database, new(content=content)) for content in "abacb"]
    assert came == ["new", "copy", "again", "copy", "again"]
    stored = rows(database, Instance)
    assert [row.copy for row in stored] == [0, 1, 2]
    assert jobs(database, Kind.SCORE) == [(row.id, "ready") for row in stored]
    assert jobs(database, Kind.REPORT) == [(study_id(database), "ready")]


def test_a_new_image_moves_the_quiet_time_of_its_study_and_of_no_other(database: Database) -> None:
    for study in "12":
        receive(database, new(study=study), quiet=10)
    later = NOW + timedelta(seconds=5)
    receive(database, new(2, received_at=later, patient_name="Other^Name"), quiet=60)
    first, second = rows(database, Study)
    assert first.quiet_at == pytest.approx(time.time() + 60, abs=5)
    assert second.quiet_at == pytest.approx(time.time() + 10, abs=5)
    assert (first.first_received_at, first.last_received_at) == (NOW, later)
    assert first.patient_name == "Test^Alice"


def test_an_image_that_comes_while_a_report_is_made_takes_the_job_from_its_worker(database: Database) -> None:
    receive(database, new(), quiet=0)
    with database.write() as session:
        claim = queue.claim(session, Kind.REPORT, "", limit=1, lease_seconds=60)
    receive(database, new(2), quiet=60)
    with database.write() as session:
        assert not queue.finish(session, claim.token, [claim.jobs[0].id])
    assert report_job(database).visible_at == pytest.approx(time.time() + 60, abs=5)


def test_an_image_that_comes_after_the_report_has_it_made_anew(database: Database) -> None:
    receive(database, new())
    finish(database, Kind.REPORT)
    receive(database, new(2))
    assert jobs(database, Kind.REPORT) == [(study_id(database), "ready")]


def test_the_same_object_over_several_associations_at_once_is_recorded_once(database: Database) -> None:
    for number in range(6):
        came = at_once(*[lambda number=number: receive(database, new(number))] * 3)
        assert sorted(came) == ["again", "again", "new"]
    assert len(rows(database, Instance)) == 6
    assert len(jobs(database, Kind.SCORE)) == 6
    assert len(jobs(database, Kind.REPORT)) == len(rows(database, Study)) == 1


def test_an_object_whose_like_is_being_recorded_waits_for_it(database: Database) -> None:
    came: list[Received] = []
    second = Thread(target=lambda: came.append(receive(database, new())))
    with database.write() as session:
        assert queries.add_instance(session, new(), QUIET) is Received.NEW
        second.start()
        second.join(0.3)
        assert came == []
    second.join()
    assert came == [Received.AGAIN]


def test_different_objects_at_once_are_all_recorded(database: Database) -> None:
    same_uid = [lambda content=content: receive(database, new(content=content)) for content in "abc"]
    assert sorted(at_once(*same_uid)) == ["copy", "copy", "new"]
    assert [row.copy for row in rows(database, Instance)] == [0, 1, 2]
    same_study = [lambda number=number: receive(database, new(number, "2")) for number in range(4)]
    assert at_once(*same_study) == ["new"] * 4
    assert len(rows(database, Study)) == 2


def test_a_checkpoint_put_to_use_again_keeps_its_id_and_becomes_the_newest(database: Database) -> None:
    with database.read() as session:
        assert queries.newest_model(session) is None
    first = register(database, "first", NOW)
    second = register(database, "second", NOW + timedelta(hours=1))
    for started_at, newest in ((NOW, second), (NOW + timedelta(hours=2), first)):
        assert register(database, "first", started_at) == first
        with database.read() as session:
            model = queries.newest_model(session)
        assert model is not None
        assert model.id == newest
    assert len(rows(database, Model)) == 2


def test_a_score_has_the_report_of_its_study_made_when_the_study_is_quiet(database: Database) -> None:
    receive(database, new())
    receive(database, new(study="2"))
    finish(database, Kind.REPORT)
    score(database)
    [(first, state), (second, other)] = jobs(database, Kind.REPORT)
    assert (first, state) == (study_id(database), "ready")
    assert (second, other) == (study_id(database, "2"), "done")
    with database.read() as session:
        job, study = session.execute(
            select(Job, Study)
            .join(Study, Job.ref == Study.id)
            .where(Job.kind == Kind.REPORT, Study.id == first)
        ).one()
        assert (job.visible_at, job.attempts, job.token) == (study.quiet_at, 0, None)


def test_a_score_revives_the_report_that_was_given_up(database: Database) -> None:
    receive(database, new(), quiet=0)
    with database.write() as session:
        claim = queue.claim(session, Kind.REPORT, "", limit=1, lease_seconds=60)
        queue.fail(session, claim.token, [claim.jobs[0].id], "Broken")
    score(database)
    assert jobs(database, Kind.REPORT) == [(study_id(database), "ready")]


def test_a_model_scores_an_instance_once_and_another_model_may_score_it_too(database: Database) -> None:
    receive(database, new())
    score(database)
    with pytest.raises(WriteConflict):
        score(database, probability=0.1, decision="negative")
    newer = score(database, model="newer", probability=0.1, decision="negative")
    with database.read() as session:
        [stored] = queries.study_instances(session, study_id(database))
    assert stored.score is not None
    assert (stored.score.id, stored.score.probability, stored.score.model.name) == (newer, 0.1, "newer")


@pytest.mark.parametrize(
    "values",
    [
        {"probability": 1.5},
        {"probability": -0.1},
        {"probability": None},
        {"decision": "not_scored"},
        {"decision": "maybe"},
    ],
)
def test_a_score_that_contradicts_itself_is_refused(database: Database, values: dict[str, Any]) -> None:
    receive(database, new())
    with pytest.raises(DatabaseError):
        score(database, **values)
    assert rows(database, Score) == []


def test_instances_come_in_the_order_asked_for_and_those_of_a_study_as_they_came(database: Database) -> None:
    for number in (3, 1, 2):
        receive(database, new(number))
        receive(database, new(number, "2"))
    score(database, 1)
    finish(database, Kind.SCORE)
    receive(database, new(4))
    ids = [instance_id(database, 2), instance_id(database, 4, "1"), instance_id(database, 3, "2")]
    with database.read() as session:
        assert [one.id for one in queries.instances(session, ids)] == ids
        assert queries.study_uid(session, study_id(database)) == uid("1", "study")
        stored = queries.study_instances(session, study_id(database))
    assert [one.sop_instance_uid for one in stored] == [uid("1", number) for number in (3, 1, 2, 4)]
    assert [one.job_state for one in stored] == ["done", "done", "done", "ready"]
    assert [one.score is not None for one in stored] == [False, True, False, False]


def test_a_report_is_recorded_with_its_images_deliveries_and_jobs_in_one_go(database: Database) -> None:
    receive(database, new(1))
    receive(database, new(2))
    images = {instance_id(database, 1): score(database, 1), instance_id(database, 2): None}
    report_uid = report(database, images)
    with database.read() as session:
        last = queries.last_report(session, study_id(database))
    assert last is not None
    assert (last.revision, last.sop_instance_uid, dict(last.images)) == (1, report_uid, images)
    sent = pending(database)
    assert [(one.destination, one.tries, one.revision) for one in sent] == [("PACS", 0, 1), ("ARCHIVE", 0, 1)]
    assert {one.content for one in sent} == {bytes(range(256))}
    assert {one.study_instance_uid for one in sent} == {uid("1", "study")}
    assert {one.give_up_at for one in sent} == {NOW + timedelta(hours=72)}
    assert {(row.ref, row.lane, row.state) for row in rows(database, Job) if row.kind == Kind.DELIVER} == {
        (one.id, one.destination, "ready") for one in sent
    }


def test_a_report_that_fails_half_way_leaves_nothing(database: Database) -> None:
    receive(database, new())
    with pytest.raises(WriteConflict):
        report(database, {instance_id(database): None}, destinations=["PACS", "PACS"])
    for entity in (Report, ReportImage, Delivery):
        assert rows(database, entity) == []
    assert jobs(database, Kind.DELIVER) == []


def test_a_report_may_go_nowhere(database: Database) -> None:
    receive(database, new())
    report(database, {instance_id(database): None}, destinations=[])
    assert pending(database) == []


def test_a_revision_is_made_once_and_the_last_one_of_its_study_counts(database: Database) -> None:
    for study in "12":
        receive(database, new(study=study))
    images: dict[int, int | None] = {instance_id(database): None}
    with database.read() as session:
        assert queries.last_report(session, study_id(database)) is None
    report(database, {instance_id(database, study="2"): None}, "2", revision=3)
    report(database, images, revision=1)
    newest = report(database, {instance_id(database): score(database)}, revision=2)
    with pytest.raises(WriteConflict):
        report(database, images, revision=2)
    with database.read() as session:
        last = queries.last_report(session, study_id(database))
    assert last is not None
    assert (last.revision, last.sop_instance_uid) == (2, newest)
    assert dict(last.images) == {instance_id(database): rows(database, Score)[0].id}


def test_deliveries_come_in_the_order_asked_for(database: Database) -> None:
    receive(database, new())
    report(database, {instance_id(database): None}, destinations=["A", "B", "C"])
    with database.read() as session:
        ids = [one.id for one in pending(database)][::-1]
        assert [one.destination for one in deliveries.pending(session, ids)] == ["C", "B", "A"]


def waits(database: Database) -> dict[tuple[str, int, str], bool]:
    """Return which reports wait for an earlier revision, by study, revision and destination."""
    return {
        (one.study_instance_uid, one.revision, one.destination): one.waits_for_earlier
        for one in pending(database)
    }


@pytest.mark.parametrize("end", ["delivered", "failed"])
def test_a_revision_waits_until_the_earlier_one_arrived_there_or_failed(database: Database, end: str) -> None:
    for study in "12":
        receive(database, new(study=study))
        for revision in (1, 2) if study == "1" else (1,):
            report(database, {instance_id(database, study=study): None}, study, revision)
    one, two = uid("1", "study"), uid("2", "study")
    assert {key for key, waiting in waits(database).items() if waiting} == {
        (one, 2, "PACS"),
        (one, 2, "ARCHIVE"),
    }
    assert (two, 1, "PACS") in waits(database)
    with database.write() as session:
        deliveries.record_delivery(session, pending(database)[0].id, state=end)
    assert {key for key, waiting in waits(database).items() if waiting} == {(one, 2, "ARCHIVE")}


def test_a_revision_does_not_wait_for_one_whose_job_was_given_up(database: Database) -> None:
    receive(database, new())
    for revision in (1, 2):
        report(database, {instance_id(database): None}, revision=revision, destinations=["PACS"])
    first, _ = pending(database)
    with database.write() as session:
        earlier = (Job.kind == Kind.DELIVER) & (Job.ref == first.id)
        session.execute(update(Job).where(earlier).values(attempts=queue.max_attempts(Kind.DELIVER)))
    for _ in range(2):
        with database.write() as session:
            queue.claim(session, Kind.DELIVER, "PACS", limit=1, lease_seconds=60)
    assert [state for _, state in jobs(database, Kind.DELIVER)] == ["failed", "ready"]
    assert not any(waits(database).values())


def test_tries_are_counted_and_the_last_answer_of_the_destination_is_kept(database: Database) -> None:
    receive(database, new())
    report(database, {instance_id(database): None}, destinations=["PACS", "ARCHIVE"])
    first, _ = pending(database)
    later = NOW + timedelta(minutes=5)
    for status in (0xA700, 0xA701):
        with database.write() as session:
            deliveries.record_try(
                session, first.id, state="pending", error="Full", status=status, updated_at=later
            )
    tried, other = rows(database, Delivery)
    assert (tried.tries, tried.status, tried.error, tried.updated_at) == (2, 0xA701, "Full", later)
    assert (other.tries, other.status, other.error, other.updated_at) == (0, None, None, NOW)
    with database.write() as session:
        deliveries.record_delivery(session, first.id, state="delivered", status=0, error=None)
    delivered, other = rows(database, Delivery)
    assert (delivered.state, delivered.tries, delivered.status, delivered.error) == ("delivered", 2, 0, None)
    assert other.state == "pending"
