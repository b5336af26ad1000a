"""Delivery through the database: how often peers get each report, and what is said of it afterwards."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pynetdicom import evt
from sqlalchemy import update

from db.models import Delivery, Job
from db.queue import Claimed, Kind, max_attempts
from db.session import Database
from db.status import resend
from pacs_node.config import DeliverSettings, Destination, Settings
from pacs_node.delivering.stage import DeliverStage
from pacs_node.demo.peers import free_port
from pacs_node.reporting.report import COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR, ENHANCED_SR, as_class
from pacs_node.worker import Done, Later, Worker
from tests.conftest import radiograph
from tests.helpers import delivering, workbench
from tests.helpers.delivering import Answer, abort, data_set, destination, peer, yes
from tests.helpers.workbench import Bench, named, only
from tests.helpers.workers import Line, running, until

# Fixtures: pytest finds them by the names that they have here.
whole_data_sets = delivering.whole_data_sets
bench = workbench.bench

BACK_OFF = DeliverSettings(retry_seconds=5, max_retry_seconds=12)
one_database = pytest.mark.parametrize("backend", ["sqlite"])


def reported(bench: Bench, *studies: str, number: int = 1) -> None:
    """Receive an image for each study, and make the reports."""
    for study in studies:
        bench.receive(radiograph(study=study, number=number))
    bench.score()
    bench.report()


def stage(bench: Bench, to: Destination, settings: DeliverSettings = BACK_OFF) -> DeliverStage:
    return DeliverStage(bench.database, to, "PACS_NODE", settings)


def deliver(bench: Bench, to: Destination, settings: DeliverSettings = BACK_OFF) -> None:
    """Send all that is due."""
    bench.work(stage(bench, to, settings))


def states(bench: Bench) -> list[tuple[str, int]]:
    """Return state and number of tries of each delivery."""
    return [(delivery.state, delivery.tries) for delivery in bench.deliveries()]


def first(status: int) -> Answer:
    """Return what answers so to the first object, and Success to all that follow."""
    answers = iter([status])
    return lambda _event: next(answers, 0x0000)


def test_a_report_is_delivered_once_as_it_is_stored(bench: Bench) -> None:
    source, _ = named("chrH32")
    bench.receive(source)
    reported(bench, "1")
    with peer() as other:
        for _ in range(3):
            deliver(bench, other.destination)
            bench.hurry()
    stored = bench.reports()
    assert [data_set(file) for file in other.received] == [data_set(report.content) for report in stored]
    assert states(bench) == [("delivered", 0)] * 2
    assert bench.states(Kind.DELIVER) == ["done"] * 2
    for delivery, sent in zip(bench.deliveries(), stored, strict=True):
        assert (delivery.sop_class_uid, delivery.status) == (COMPREHENSIVE_3D_SR, 0)
        assert delivery.sop_instance_uid == sent.sop_instance_uid


def test_a_report_is_sent_again_unchanged_where_it_is_asked_for_and_nowhere_else(bench: Bench) -> None:
    def again(*names: str) -> int:
        now = datetime.now(UTC)
        with bench.database.write() as session:
            return resend(
                session,
                str(radiograph(study="1").StudyInstanceUID),
                now + timedelta(hours=1),
                now,
                destinations=names or None,
            )

    reported(bench, "1", "2")
    assert again() == 0  # it still waits
    with peer() as other:
        deliver(bench, other.destination)
        assert again("ELSEWHERE") == 0
        assert again("PACS") == 1
        assert (states(bench), bench.deliveries()[0].delivered_at) == (
            [("pending", 0), ("delivered", 0)],
            None,
        )
        deliver(bench, other.destination)
    assert other.received[2] == other.received[0]
    assert states(bench) == [("delivered", 0)] * 2
    bench.receive(radiograph(study="1", number=2))
    bench.score()
    bench.report()
    with peer() as other:
        deliver(bench, other.destination)
        assert again() == 1
        deliver(bench, other.destination)
    assert [data_set(file) for file in other.received] == [data_set(bench.reports()[-1].content)] * 2


@one_database
@pytest.mark.parametrize("sop_class", [COMPREHENSIVE_SR, ENHANCED_SR])
def test_the_object_is_recorded_as_it_was_sent(bench: Bench, sop_class: str) -> None:
    reported(bench, "1")
    with peer(sop_classes=[sop_class]) as other:
        deliver(bench, other.destination)
    expected = as_class(only(bench.reports()).content, sop_class)
    delivery = only(bench.deliveries())
    assert (delivery.state, delivery.sop_class_uid) == ("delivered", sop_class)
    assert delivery.sop_instance_uid == expected.sop_instance_uid == only(other.read()).SOPInstanceUID


@one_database
@pytest.mark.parametrize("status", [0xB000, 0x0111])
def test_a_warning_is_recorded_and_the_report_not_sent_again(bench: Bench, status: int) -> None:
    reported(bench, "1")
    with peer(lambda _: status) as other:
        deliver(bench, other.destination)
        bench.hurry()
        deliver(bench, other.destination)
    assert len(other.received) == 1
    delivery = only(bench.deliveries())
    assert (delivery.state, delivery.status, delivery.error) == ("delivered", status, None)


def test_a_busy_peer_is_tried_again_after_pauses_that_double_up_to_a_limit(bench: Bench) -> None:
    reported(bench, "1")
    with peer(lambda _: 0xA700) as other:
        for tries, seconds in enumerate([5, 10, 12, 12], start=1):
            start = time.time()
            deliver(bench, other.destination)
            job = only(bench.jobs(Kind.DELIVER))
            assert (job.state, job.attempts) == ("ready", 0)
            assert start + seconds - 0.1 < job.visible_at < time.time() + seconds + 0.1
            assert states(bench) == [("pending", tries)]
            bench.hurry()
        assert only(bench.deliveries()).status == 0xA700
        assert only(bench.deliveries()).error == "PACS answered C-STORE with status 0xA700."
        other.answer = yes
        deliver(bench, other.destination)
    assert states(bench) == [("delivered", 4)]
    assert only(bench.deliveries()).error is None
    assert len(set(other.received)) == 1


@one_database
def test_a_peer_that_is_down_gets_all_that_waited_once_it_is_back(bench: Bench) -> None:
    reported(bench, "1", "2", "3")
    to = destination(free_port())
    deliver(bench, to)
    assert states(bench) == [("pending", 1)] * 3
    assert {delivery.error for delivery in bench.deliveries()} == {
        f"PACS (PACS@127.0.0.1:{to.port}) cannot be reached; check host, port and that it is running."
    }
    bench.hurry()
    with peer() as other:
        deliver(bench, other.destination)
    assert states(bench) == [("delivered", 1)] * 3
    assert other.studies() == ["PID-1", "PID-2", "PID-3"]


@one_database
@pytest.mark.parametrize("status", [0xC000, 0xA900])
def test_a_report_that_is_called_wrong_fails_and_the_next_is_sent(bench: Bench, status: int) -> None:
    reported(bench, "1", "2")
    with peer(first(status)) as other:
        deliver(bench, other.destination)
        bench.hurry()
        deliver(bench, other.destination)
    assert states(bench) == [("failed", 1), ("delivered", 0)]
    assert bench.deliveries()[0].status == status
    assert "it says that the report is wrong" in only(bench.failures()).error
    assert other.studies() == ["PID-1", "PID-2"]


@one_database
def test_a_peer_that_takes_no_report_fails_them_with_a_sentence(bench: Bench) -> None:
    reported(bench, "1", "2")
    with peer(sop_classes=[]) as other:
        deliver(bench, other.destination)
    assert states(bench) == [("failed", 1)] * 2
    for failure in bench.failures():
        assert (failure.kind, failure.lane) == ("deliver", "PACS")
        assert failure.error.endswith("accepts no class of structured report; enable one there.")


def test_after_its_time_a_delivery_fails_and_one_order_revives_it(bench: Bench) -> None:
    reported(bench, "1")
    with peer(lambda _: 0xA700) as other:
        deliver(bench, other.destination)
        with bench.database.write() as session:
            session.execute(update(Delivery).values(give_up_at=datetime.now(UTC) - timedelta(seconds=1)))
        bench.hurry()
        deliver(bench, other.destination)
        assert states(bench) == [("failed", 2)]
        assert only(bench.failures()).error == "PACS answered C-STORE with status 0xA700."
        assert bench.retry() == 1
        assert states(bench) == [("pending", 0)]
        deliver(bench, other.destination)
        assert states(bench) == [("pending", 1)]
        bench.hurry()
        other.answer = yes
        deliver(bench, other.destination)
    assert states(bench) == [("delivered", 1)]
    assert bench.failures() == []


@one_database
def test_a_late_success_counts_although_the_time_is_over(bench: Bench) -> None:
    reported(bench, "1")
    with bench.database.write() as session:
        session.execute(update(Delivery).values(give_up_at=datetime.now(UTC) - timedelta(hours=1)))
    with peer() as other:
        deliver(bench, other.destination)
    assert states(bench) == [("delivered", 0)]


def of_study(event: evt.Event, study: str) -> bool:
    return bool(event.dataset.PatientID == f"PID-{study}")


@one_database
def test_a_report_that_always_fails_does_not_hold_up_others(bench: Bench) -> None:
    reported(bench, "1", "2", "3")
    with peer(lambda event: 0xA700 if of_study(event, "1") else 0x0000) as other:
        deliver(bench, other.destination)
    assert states(bench) == [("pending", 1), ("delivered", 0), ("delivered", 0)]


@one_database
def test_a_report_that_always_breaks_the_association_does_not_hold_up_others(bench: Bench) -> None:
    def abort_one(event: evt.Event) -> int:
        return abort(event) if of_study(event, "2") else 0x0000

    soon = DeliverSettings(retry_seconds=0.2, max_retry_seconds=60)
    reported(bench, "1", "2", "3", "4")
    with peer(abort_one) as other:

        def others_are_sent() -> bool:
            deliver(bench, other.destination, soon)
            return [state for state, _ in states(bench)].count("delivered") == 3

        until(others_are_sent)
    assert states(bench)[1][0] == "pending"
    assert sorted(set(other.studies())) == ["PID-1", "PID-2", "PID-3", "PID-4"]
    assert [other.studies().count(f"PID-{study}") for study in "134"] == [1, 1, 1]


@one_database
def test_a_destination_that_hangs_does_not_delay_another(database: Database, tmp_path: Path) -> None:
    may_answer = threading.Event()

    def hang(_event: evt.Event) -> int:
        assert may_answer.wait(20)
        return 0x0000

    with peer(hang, name="SLOW") as slow, peer(name="QUICK") as quick:
        destinations = (slow.destination, quick.destination)
        bench = Bench(database, tmp_path, settings=Settings(destinations=destinations))
        reported(bench, "1", "2")
        workers = [Worker(database, stage(bench, to), 0.01, 60) for to in destinations]
        with running(workers[0]), running(workers[1]):
            until(lambda: len(slow.received) == 1 and len(quick.received) == 2)
            until(lambda: bench.counts().deliveries == {("SLOW", "pending"): 2})
            may_answer.set()
            until(lambda: bench.counts().deliveries.get(("SLOW", "pending"), 0) < 2)


def revised(bench: Bench) -> None:
    """Make a report with two revisions."""
    for number in (1, 2, 3):
        reported(bench, "1", number=number)


def test_revisions_arrive_in_their_order(bench: Bench) -> None:
    revised(bench)
    with peer(lambda _: 0xA700) as other:
        deliver(bench, other.destination)
        assert [read.InstanceNumber for read in other.read()] == [1]
        other.answer = yes
        for _ in range(3):
            bench.hurry()
            deliver(bench, other.destination)
    assert [read.InstanceNumber for read in other.read()] == [1, 1, 2, 3]
    assert states(bench) == [("delivered", 1), ("delivered", 0), ("delivered", 0)]


@one_database
def test_a_revision_does_not_wait_for_one_that_was_refused(bench: Bench) -> None:
    revised(bench)
    with peer(first(0xC000)) as other:
        for _ in range(3):
            deliver(bench, other.destination)
            bench.hurry()
    assert [read.InstanceNumber for read in other.read()] == [1, 2, 3]
    assert states(bench) == [("failed", 1), ("delivered", 0), ("delivered", 0)]


@one_database
def test_a_revision_does_not_wait_for_one_that_killed_its_workers(bench: Bench) -> None:
    revised(bench)
    first = bench.jobs(Kind.DELIVER)[0].id
    with bench.database.write() as session:
        session.execute(update(Job).where(Job.id == first).values(attempts=max_attempts(Kind.DELIVER)))
    with peer() as other:
        for _ in range(3):
            deliver(bench, other.destination)
            bench.hurry()
    assert [read.InstanceNumber for read in other.read()] == [2, 3]
    assert only(bench.failures()).error == "The worker died 50 times at this"
    assert [state for state, _ in states(bench)] == ["failed", "delivered", "delivered"]


@one_database
def test_a_report_is_sent_once_although_the_database_goes_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(bench.database, monkeypatch)

    def cut(_event: evt.Event) -> int:
        line.is_cut.set()
        threading.Timer(0.3, line.is_cut.clear).start()
        other.answer = yes
        return 0x0000

    reported(bench, "1", "2", "3")
    bench.database = line.database
    with peer(cut) as other:
        deliver(bench, other.destination)
        assert states(bench)[0] == ("delivered", 0)
        bench.hurry()
        deliver(bench, other.destination)
    assert states(bench) == [("delivered", 0)] * 3
    assert other.studies() == ["PID-1", "PID-2", "PID-3"]


@one_database
def test_nothing_is_sent_for_another_worker(bench: Bench) -> None:
    reported(bench, "1", "2")
    jobs = [Claimed(job.id, job.ref, 1) for job in bench.jobs(Kind.DELIVER)]
    with peer() as other:
        held = iter([True, False])
        settled = list(stage(bench, other.destination).run(jobs, lambda: next(held)))
    assert other.studies() == ["PID-1"]
    assert [type(outcome) for group in settled for _, outcome in group] == [Done, Later]


@one_database
def test_each_report_is_recorded_when_it_was_sent_and_not_when_all_are(bench: Bench) -> None:
    seen: list[list[tuple[str, int]]] = []

    def watch(_event: evt.Event) -> int:
        seen.append(states(bench))
        return 0x0000

    reported(bench, "1", "2", "3")
    with peer(watch) as other:
        deliver(bench, other.destination)
    assert [[state for state, _ in found].count("delivered") for found in seen] == [0, 1, 2]


@one_database
def test_a_worker_that_lost_its_lease_sends_nothing_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(bench.database, monkeypatch)
    reported(bench, "1", "2")
    with peer() as other, peer() as same:

        def freeze(_event: evt.Event) -> int:
            line.is_cut.set()
            until(Worker(bench.database, stage(bench, same.destination), 0.01, 60).work_once)
            line.is_cut.clear()
            return 0x0000

        other.answer = freeze
        assert Worker(line.database, stage(bench, other.destination), 0.01, lease_seconds=2).work_once()
    assert other.studies() == ["PID-1"]
    assert same.studies() == ["PID-1", "PID-2"]
    assert states(bench) == [("delivered", 0)] * 2
