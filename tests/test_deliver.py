"""Delivery: what peers of all tempers get, how often, and what the database says of it afterwards."""

from __future__ import annotations

import errno
import gc
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import
from sqlalchemy import update

from db.models import Delivery, Job
from db.queue import Claimed, Kind, max_attempts
from db.session import Database
from pacs_node.association import application_entity, associate
from pacs_node.config import DeliverSettings, Destination, Settings
from pacs_node.deliver import Sent, open_link
from pacs_node.demo_peers import free_port, shut_down
from pacs_node.dispatch import DeliverStage
from pacs_node.errors import DestinationBusy, DestinationDown, DestinationRefused, NotAssociated, Retryable
from pacs_node.report import COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR, ENHANCED_SR, REPORT_CLASSES, as_class
from pacs_node.upper_layer import hasten
from pacs_node.worker import Done, Later, Worker
from tests.conftest import radiograph
from tests.peers import Orthanc, orthanc, program
from tests.test_pipeline import Bench, named, only
from tests.test_report import errors, report, scored
from tests.test_worker import Line, running, until

# pynetdicom leaves the socket of a connection that was refused to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

BOTH = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
QUICK = DeliverSettings(connect_seconds=5, answer_seconds=20)
IMPATIENT = DeliverSettings(connect_seconds=0.3, answer_seconds=0.3)
BACK_OFF = DeliverSettings(retry_seconds=5, max_retry_seconds=12)
REPORT = report(scored(radiograph())).content
PATIENT_NAME = 0x00100010

Answer = Callable[[evt.Event], int]


@pytest.fixture(autouse=True)
def _whole_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sending in chunks is switched on for the whole process: give back what was, and receive in memory."""
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", False)
    monkeypatch.setattr(_config, "STORE_RECV_CHUNKED_DATASET", False)


_closing: list[threading.Thread] = []


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_left() -> Iterator[None]:
    yield
    for thread in _closing:
        thread.join()
    gc.collect()


def yes(_event: evt.Event) -> int:
    return 0x0000


def first(status: int) -> Answer:
    """Return what answers so to the first object, and Success to all that follow."""
    answers = iter([status])
    return lambda _event: next(answers, 0x0000)


class Peer:
    """A storage SCP that takes and answers what a test chooses.

    Attributes
    ----------
    received
        The files it was sent, whatever it answered.
    """

    def __init__(
        self,
        answer: Answer = yes,
        sop_classes: Sequence[str] = REPORT_CLASSES,
        syntaxes: Sequence[str] = BOTH,
        name: str = "PACS",
    ) -> None:
        self.answer = answer
        self.received: list[bytes] = []
        self._ae = AE(name)
        self._ae.require_called_aet = True
        for sop_class in sop_classes:
            self._ae.add_supported_context(sop_class, list(syntaxes))
        self._ae.add_supported_context(Verification)
        handlers: list[Any] = [(evt.EVT_C_STORE, self._on_c_store)]
        server = self._ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        assert server is not None
        self.destination = destination(int(server.server_address[1]), name)

    def _on_c_store(self, event: evt.Event) -> int:
        self.received.append(event.encoded_dataset())
        return self.answer(event)

    def read(self) -> list[Any]:
        """Return what it was sent, decoded."""
        return [dcmread(BytesIO(file)) for file in self.received]

    def classes(self) -> list[str]:
        return [read.SOPClassUID for read in self.read()]

    def studies(self) -> list[str]:
        """Return the Patient IDs of what it was sent, which name the studies."""
        return [read.PatientID for read in self.read()]

    def abort(self) -> None:
        """Break off all associations."""
        for association in self._ae.active_associations:
            association.abort()

    def close(self) -> None:
        shut_down(self._ae)


@contextmanager
def peer(*arguments: Any, **named: Any) -> Iterator[Peer]:
    made = Peer(*arguments, **named)
    try:
        yield made
    finally:
        _closing.append(threading.Thread(target=made.close))  # which takes half a second
        _closing[-1].start()


def destination(port: int, name: str = "PACS") -> Destination:
    return Destination(name=name, ae_title=name, host="127.0.0.1", port=port)


def data_set(content: bytes) -> bytes:
    """Return what follows the File Meta Information of a file."""
    return content[144 + int.from_bytes(content[140:144], "little") :]


def send(to: Destination, content: bytes = REPORT, settings: DeliverSettings = QUICK) -> Sent:
    with open_link(to, "PACS_NODE", settings) as link:
        return link.send(content)


# One association, one report


def test_dcmtk_gets_the_data_set_that_is_stored(tmp_path: Path) -> None:
    port = free_port()
    command = [program("storescp"), "+B", "-aet", "PACS", "-od", str(tmp_path), str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: is_open(port))
        sent = send(destination(port))
        process.terminate()
    assert sent == Sent(COMPREHENSIVE_3D_SR, dcmread(BytesIO(REPORT)).SOPInstanceUID, 0)
    file = only([*tmp_path.iterdir()])
    assert data_set(file.read_bytes()) == data_set(REPORT)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("pacs")) as running_pacs:
        yield running_pacs


@pytest.mark.parametrize("name", ["chrGreek", "chrH31", "chrI2", "chrX1", "chrX2"])
def test_orthanc_gives_back_the_data_set_that_is_stored(pacs: Orthanc, name: str) -> None:
    source, value = named(name)
    content = report(scored(source)).content
    before = set(pacs.instances())
    send(destination(pacs.port, pacs.ae_title), content)
    held = only([*set(pacs.instances()) - before])
    file = pacs.get(f"/instances/{held}/file")
    assert data_set(file) == data_set(content)
    assert dcmread(BytesIO(file)).get_item(PATIENT_NAME).value == value
    tags = json.loads(pacs.get(f"/instances/{held}/simplified-tags"))
    assert tags["CompletionFlag"] == "COMPLETE"
    assert tags["PatientName"].rstrip(" =") == str(source.PatientName).rstrip(" =")


@pytest.mark.parametrize("sop_class", REPORT_CLASSES)
def test_a_peer_gets_the_class_that_it_takes(sop_class: str) -> None:
    expected = as_class(REPORT, sop_class)
    with peer(sop_classes=[sop_class]) as other:
        sent = send(other.destination)
    assert sent == Sent(sop_class, expected.sop_instance_uid, 0)
    assert data_set(only(other.received)) == data_set(expected.content)
    assert other.classes() == [sop_class]


@pytest.mark.parametrize("sop_class", REPORT_CLASSES)
@pytest.mark.parametrize("name", ["chrH32", "chrI2", "chrX1", "chrGreek"])
def test_a_peer_that_takes_implicit_vr_alone_gets_the_same_values(
    name: str, sop_class: str, tmp_path: Path
) -> None:
    source, value = named(name)
    content = report(scored(source)).content
    with peer(sop_classes=[sop_class], syntaxes=[ImplicitVRLittleEndian]) as other:
        send(other.destination, content)
    got = only(other.read())
    assert got.get_item(PATIENT_NAME).value == value
    assert got.to_json() == dcmread(BytesIO(as_class(content, sop_class).content)).to_json()
    assert got.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert errors(only(other.received), tmp_path) == []


@pytest.mark.parametrize("sop_classes", [[], ["1.2.840.10008.5.1.4.1.1.1"]], ids=["nothing", "images"])
def test_a_peer_that_takes_no_report_is_named(sop_classes: list[str]) -> None:
    with peer(sop_classes=sop_classes) as other, pytest.raises(DestinationRefused) as caught:
        send(other.destination)
    assert "takes no class of structured report; enable one there." in str(caught.value)
    assert str(caught.value).startswith("PACS (PACS@127.0.0.1:")


def test_a_class_that_is_accepted_but_then_refused_is_followed_by_the_next() -> None:
    def not_the_first(event: evt.Event) -> int:
        request: Any = event.request
        return 0x0122 if request.AffectedSOPClassUID == COMPREHENSIVE_3D_SR else 0x0000

    with peer(not_the_first) as other:
        sent = send(other.destination)
    assert other.classes() == [COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR]
    assert sent.sop_class_uid == COMPREHENSIVE_SR


def test_a_peer_that_refuses_all_classes_one_by_one_is_named() -> None:
    with peer(lambda _: 0x0122) as other, pytest.raises(DestinationRefused, match="takes no class"):
        send(other.destination)
    assert other.classes() == list(REPORT_CLASSES)


def test_a_peer_that_goes_away_before_the_report_is_sent_is_down() -> None:
    with peer() as other, open_link(other.destination, "PACS_NODE", QUICK) as link:
        other.close()
        until(lambda: not link.is_open)
        with pytest.raises(DestinationDown, match=r"^PACS ended the association\.$"):
            link.send(REPORT)


def test_a_message_of_two_parts_does_not_wait_for_an_acknowledgement() -> None:
    with peer() as other, open_link(other.destination, "PACS_NODE", QUICK) as link:
        connection: Any = link._association.dul.socket
        assert connection.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_answer_is_left_to_whoever_sent_the_request() -> None:
    association = Association(AE("A"), "requestor")
    free = hasten(association)
    answer: Any = (1, "an answer")
    association.dimse.msg_queue.put(answer)
    # As sending does; the thread of the association may have passed it just now
    association._reactor_checkpoint.clear()
    assert association.dimse.get_msg(block=False) == (None, None)
    assert association.dimse.get_msg(block=True) == answer
    free()


def test_associations_leave_no_descriptor_and_no_thread_behind() -> None:
    def left() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    with peer() as other:
        gc.collect()
        gc.disable()  # it would tidy up in the end
        try:
            before = left()
            for _ in range(10):
                send(other.destination)
            until(lambda: all(now <= then for now, then in zip(left(), before, strict=True)))
        finally:
            gc.enable()


def test_a_link_that_nobody_uses_notices_that_its_peer_aborts() -> None:
    with peer() as other, open_link(other.destination, "PACS_NODE", QUICK) as link:
        link.send(REPORT)
        other.abort()
        until(lambda: not link.is_open)


def test_without_space_for_temporary_files_the_report_is_sent_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pacs_node.deliver.tempfile.NamedTemporaryFile", full)
    with peer() as other, pytest.raises(Retryable, match="No space left on device"):
        send(other.destination)


@pytest.mark.parametrize("status", [0x0000, 0x0001, 0x0111, 0xB000, 0xB007])
def test_success_warnings_and_duplicates_count_as_delivered(status: int) -> None:
    with peer(lambda _: status) as other:
        assert send(other.destination).status == status


@pytest.mark.parametrize("status", [0xA900, 0xA9FF, 0xC000, 0xC123])
def test_a_report_that_is_called_wrong_is_refused(status: int) -> None:
    with peer(lambda _: status) as other, pytest.raises(DestinationRefused) as caught:
        send(other.destination)
    assert caught.value.status == status
    assert str(caught.value) == (
        f"PACS answered C-STORE with status 0x{status:04X}: it finds the report wrong; see its log."
    )


@pytest.mark.parametrize("status", [0xA700, 0x0110, 0x0124, 0x0210])
def test_a_failure_that_may_pass_is_busy(status: int) -> None:
    with peer(lambda _: status) as other, pytest.raises(DestinationBusy, match=f"0x{status:04X}") as caught:
        send(other.destination)
    assert caught.value.status == status


def test_a_peer_that_is_not_there_is_down() -> None:
    with pytest.raises(
        DestinationDown,
        match=r"^PACS \(PACS@127\.0\.0\.1:\d+\) cannot be reached; check host, port and that it is running\.",
    ):
        send(destination(free_port()))


def test_a_peer_whose_name_is_not_known_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(DestinationDown, match=r"cannot be reached: .*Name or service not known"):
        send(Destination(ae_title="PACS", host="pacs.hospital", port=104))


def test_a_peer_whose_name_can_be_none_is_down() -> None:
    with pytest.raises(DestinationDown, match="cannot be reached"):
        send(Destination(ae_title="PACS", host="a" * 70, port=104))


def test_a_peer_that_rejects_the_association_is_down_and_the_reason_is_named() -> None:
    with peer(name="ELSEWHERE") as other, pytest.raises(DestinationDown, match="it has another AE title"):
        send(destination(other.destination.port))
    assert other.received == []


def test_a_rejection_is_named_although_the_connection_ended_before_anybody_looked() -> None:
    ae = application_entity("PACS_NODE")
    ae.add_requested_context(Verification)
    slow: list[Any] = [(evt.EVT_REQUESTED, lambda _event: time.sleep(0.3))]
    with peer(name="ELSEWHERE") as other, pytest.raises(NotAssociated, match="it has another AE title"):
        associate(ae, "127.0.0.1", other.destination.port, "PACS", handlers=slow)


def test_a_peer_that_never_answers_the_association_is_down() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(DestinationDown, match="cannot be reached"):
            send(destination(silent.getsockname()[1]), settings=IMPATIENT)
    assert time.monotonic() - start < 5


def test_a_peer_that_never_answers_c_store_is_down() -> None:
    done = threading.Event()

    def wait(_event: evt.Event) -> int:
        done.wait(20)
        return 0x0000

    with peer(wait) as other:
        start = time.monotonic()
        with pytest.raises(DestinationDown, match="broke off, or gave no answer"):
            send(other.destination, settings=IMPATIENT)
        assert time.monotonic() - start < 5
        done.set()


def abort(event: evt.Event) -> int:
    event.assoc.abort()
    return 0x0000


def test_a_peer_that_aborts_in_the_middle_is_down() -> None:
    with peer(abort) as other, pytest.raises(DestinationDown, match="broke off"):
        send(other.destination)
    assert len(other.received) == 1


# Through the database


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Bench:
    return Bench(database, tmp_path)


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
    assert "it finds the report wrong" in only(bench.failures()).error
    assert other.studies() == ["PID-1", "PID-2"]


@one_database
def test_a_peer_that_takes_no_report_fails_them_with_a_sentence(bench: Bench) -> None:
    reported(bench, "1", "2")
    with peer(sop_classes=[]) as other:
        deliver(bench, other.destination)
    assert states(bench) == [("failed", 1)] * 2
    for failure in bench.failures():
        assert (failure.kind, failure.lane) == ("deliver", "PACS")
        assert failure.error.endswith("takes no class of structured report; enable one there.")


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
        assert Worker(line.database, stage(bench, other.destination), 0.01, lease_seconds=0.4).work_once()
    assert other.studies() == ["PID-1"]
    assert same.studies() == ["PID-1", "PID-2"]
    assert states(bench) == [("delivered", 0)] * 2
