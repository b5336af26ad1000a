"""Storage commitment both ways, over real sockets: what is promised is kept, and nothing else is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation
from pynetdicom import AE, _config, build_role, evt
from pynetdicom.association import Association
from pynetdicom.pdu import P_DATA_TF
from sqlalchemy import select, update

from db.models import CommitmentWanted, Delivery
from db.queue import Kind
from db.results import Filter, ledger
from db.session import Database
from db.status import failures
from pacs_node.commitment.messages import COMMITMENT
from pacs_node.commitment.stages import CommitStage, ConfirmStage
from pacs_node.config import DeliverSettings, Destination, Modality, NodeSettings, ReceiveSettings, Settings
from pacs_node.delivering.stage import DeliverStage
from pacs_node.demo.peers import free_port, shut_down
from pacs_node.receiving.receiver import Receiver
from pacs_node.reporting.report import REPORT_CLASSES
from tests.conftest import radiograph, uid
from tests.helpers.peers import orthanc
from tests.helpers.workbench import Bench, only
from tests.helpers.workers import until

DX = str(DigitalXRayImageStorageForPresentation)
CR = str(ComputedRadiographyImageStorage)
INSTANCE = "1.2.840.10008.1.20.1.1"
QUICK = DeliverSettings(connect_seconds=60, answer_seconds=60, retry_seconds=0.1, max_retry_seconds=0.1)
IMPATIENT = QUICK.model_copy(update={"answer_seconds": 3})
one_database = pytest.mark.parametrize("backend", ["sqlite"])


@pytest.fixture(autouse=True)
def _whole_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give back what a receiver or a sender switches on for the whole process."""
    for name in ("STORE_SEND_CHUNKED_DATASET", "STORE_RECV_CHUNKED_DATASET"):
        monkeypatch.setattr(_config, name, False)
    monkeypatch.setattr("pynetdicom.dimse_messages.NamedTemporaryFile", None)


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Bench:
    return Bench(database, tmp_path)


# What the node is promised


def said(event: evt.Event, failed: int | None) -> tuple[int, Dataset]:
    """Return event type and information that answer a request: all kept, or all failed."""
    asked = event.action_information
    answer = Dataset()
    answer.TransactionUID = asked.TransactionUID
    items = asked.ReferencedSOPSequence
    if failed is None:
        answer.ReferencedSOPSequence = items
        return 1, answer
    for item in items:
        item.FailureReason = failed
    answer.FailedSOPSequence = items
    return 2, answer


class Committer:
    """A PACS that takes reports and, over the same association, answers whether it keeps them.

    Parameters
    ----------
    failed
        The Failure Reason of everything; ``None`` keeps everything.
    """

    def __init__(self, failed: int | None = None, status: int = 0, *, is_silent: bool = False) -> None:
        self.failed = failed
        self.status = status
        self.is_silent = is_silent
        self.received: list[bytes] = []
        self.requests: list[Dataset] = []
        self.told: list[int] = []
        self._ae = AE("PACS")
        for sop_class in (*REPORT_CLASSES, COMMITMENT):
            self._ae.add_supported_context(sop_class)
        handlers: list[Any] = [(evt.EVT_C_STORE, self._on_store), (evt.EVT_N_ACTION, self._on_action)]
        server: Any = self._ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.destination = Destination(
            name="PACS", ae_title="PACS", host="127.0.0.1", port=server.server_address[1]
        )

    def _on_store(self, event: evt.Event) -> int:
        self.received.append(event.encoded_dataset())
        return 0x0000

    def _on_action(self, event: evt.Event) -> tuple[int, None]:
        self.requests.append(event.action_information)
        if not self.is_silent and not self.status:
            threading.Thread(target=self._tell, args=(event.assoc, *said(event, self.failed))).start()
        return self.status, None

    def _tell(self, association: Association, event_type: int, answer: Dataset) -> None:
        time.sleep(0.2)
        status, _ = association.send_n_event_report(answer, event_type, COMMITMENT, INSTANCE)
        self.told.append(status.Status)

    def close(self) -> None:
        shut_down(self._ae)


@contextmanager
def committer(*arguments: Any, **named: Any) -> Iterator[Committer]:
    made = Committer(*arguments, **named)
    try:
        yield made
    finally:
        made.close()


def reported(bench: Bench) -> None:
    bench.receive(radiograph())
    bench.score()
    bench.report()


def deliver(bench: Bench, to: Destination, settings: DeliverSettings = QUICK) -> None:
    bench.work(DeliverStage(bench.database, to, "PACS_NODE", settings))


def commit(bench: Bench, to: Destination, settings: DeliverSettings = QUICK) -> None:
    bench.work(CommitStage(bench.database, to, "PACS_NODE", settings))


def state(bench: Bench) -> str:
    return str(only(bench.deliveries()).state)


def test_a_report_is_committed_only_when_the_destination_says_so(bench: Bench) -> None:
    reported(bench)
    with committer() as pacs:
        deliver(bench, pacs.destination)
        assert (state(bench), bench.states(Kind.COMMIT)) == ("delivered", ["ready"])
        commit(bench, pacs.destination)
        until(lambda: pacs.told == [0x0000])
    delivery = only(bench.deliveries())
    assert (delivery.state, bench.states(Kind.COMMIT)) == ("committed", ["done"])
    assert delivery.delivered_at <= delivery.committed_at
    (asked,) = only(pacs.requests).ReferencedSOPSequence
    assert (asked.ReferencedSOPClassUID, asked.ReferencedSOPInstanceUID) == (
        delivery.sop_class_uid,
        delivery.sop_instance_uid,
    )
    with bench.database.read() as session:
        (row,) = ledger(session, Filter(state="committed"))
    assert (row["destination"], row["status"], row["tries"]) == ("PACS", 0, 0)
    assert row["committed_at"] == delivery.committed_at


@one_database
def test_a_silent_destination_is_asked_again_until_it_is_given_up_and_retried(bench: Bench) -> None:
    reported(bench)
    with committer(is_silent=True) as pacs:
        deliver(bench, pacs.destination)
        for _ in range(2):
            commit(bench, pacs.destination, IMPATIENT)
            assert (state(bench), bench.states(Kind.COMMIT)) == ("delivered", ["ready"])
            bench.hurry()
        assert len({request.TransactionUID for request in pacs.requests}) == 2
        with bench.database.write() as session:
            session.execute(update(Delivery).values(give_up_at=datetime.now(UTC)))
        commit(bench, pacs.destination, IMPATIENT)
        assert (state(bench), bench.states(Kind.COMMIT)) == ("delivered", ["failed"])
        with bench.database.read() as session:
            (failure,) = failures(session, 10)
        assert "has not said yet whether it keeps the report" in failure.error
        pacs.is_silent = False
        assert bench.retry() == 1
        commit(bench, pacs.destination)
    assert state(bench) == "committed"
    assert len(pacs.received) == 1


@one_database
@pytest.mark.parametrize("reason", [0x0112, 0x0119])
def test_what_the_destination_lost_is_sent_again_with_the_same_bytes(bench: Bench, reason: int) -> None:
    reported(bench)
    with committer(reason) as pacs:
        deliver(bench, pacs.destination)
        commit(bench, pacs.destination)
        assert (state(bench), bench.states(Kind.COMMIT)) == ("pending", ["done"])
        pacs.failed = None
        bench.hurry()
        deliver(bench, pacs.destination)
        commit(bench, pacs.destination)
    assert state(bench) == "committed"
    assert len(pacs.received) == 2
    assert pacs.received[0] == pacs.received[1]


@one_database
def test_a_destination_that_loses_everything_is_given_up_visibly(bench: Bench) -> None:
    reported(bench)
    with committer(0x0112) as pacs:
        for hours in (1, 0):
            deliver(bench, pacs.destination)
            with bench.database.write() as session:
                session.execute(
                    update(Delivery).values(give_up_at=datetime.now(UTC) + timedelta(hours=hours))
                )
            commit(bench, pacs.destination)
            bench.hurry()
    assert (state(bench), bench.states(Kind.DELIVER)) == ("failed", ["failed"])
    assert "0x0112" in str(only(bench.deliveries()).error)


@one_database
def test_a_destination_that_will_not_commit_the_class_has_the_report_all_the_same(bench: Bench) -> None:
    reported(bench)
    with committer(0x0122) as pacs:
        deliver(bench, pacs.destination)
        commit(bench, pacs.destination)
    assert (state(bench), bench.states(Kind.COMMIT)) == ("delivered", ["failed"])
    assert len(pacs.received) == 1


@one_database
@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"status": 0x0110}, "refused the request for storage commitment with status 0x0110"),
        ({"is_silent": True}, "has not said yet"),
    ],
)
def test_why_there_is_no_promise_stands_at_the_job(bench: Bench, said: dict[str, Any], named: str) -> None:
    reported(bench)
    with committer(**said) as pacs:
        deliver(bench, pacs.destination)
        commit(bench, pacs.destination, IMPATIENT)
    assert named in str(only(bench.jobs(Kind.COMMIT)).error)


@one_database
def test_a_destination_that_is_not_to_be_asked_is_not(bench: Bench) -> None:
    reported(bench)
    with committer() as pacs:
        deliver(bench, pacs.destination.model_copy(update={"commitment": "off"}))
    assert (state(bench), bench.states(Kind.COMMIT)) == ("delivered", [])


# What the node promises


class Node:
    """A receiver that listens, on the database and the spool of a bench."""

    def __init__(self, bench: Bench, *modalities: Modality) -> None:
        node = NodeSettings(host="127.0.0.1", port=free_port())
        receive = ReceiveSettings(min_free_mebibytes=0)
        self.settings = Settings(node=node, receive=receive, modalities=modalities, deliver=QUICK)
        self.bench = bench
        self._receiver = Receiver(self.settings, bench.database, bench.spool)
        self.port = self._receiver.start()

    def confirm(self) -> None:
        """Answer all requests that are due."""
        self.bench.work(ConfirmStage(self.bench.database, self.bench.spool, self.settings))

    def wanted(self) -> list[CommitmentWanted]:
        with self.bench.database.read() as session:
            return list(session.scalars(select(CommitmentWanted)))

    def close(self) -> None:
        self._receiver.stop()


Listen = Callable[..., Node]


@pytest.fixture
def listen(bench: Bench) -> Iterator[Listen]:
    started: list[Node] = []

    def start(*modalities: Modality) -> Node:
        started.append(Node(bench, *modalities))
        return started[-1]

    yield start
    for node in started:
        node.close()


class Asker:
    """A modality that asks over an association, and hears the answer there or where it listens."""

    def __init__(self, node: Node, *, listens: bool = False) -> None:
        self.heard: list[tuple[int, Dataset]] = []
        self._ae = AE("CR1")
        self._ae.add_requested_context(COMMITMENT)
        self._answered = 0
        self._handlers: list[Any] = [
            (evt.EVT_N_EVENT_REPORT, self._on_event),
            (evt.EVT_PDU_SENT, self._on_sent),
        ]
        if listens:
            self._ae.add_supported_context(COMMITMENT, scu_role=False, scp_role=True)
            server: Any = self._ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=self._handlers)
            self.port = int(server.server_address[1])
        self._node = node

    def _on_event(self, event: evt.Event) -> tuple[int, None]:
        self.heard.append((int(event.event_type or 0), event.event_information))
        return 0x0000, None

    def _on_sent(self, event: evt.Event) -> None:
        self._answered += bool(self.heard) and isinstance(event.pdu, P_DATA_TF)

    @contextmanager
    def association(self) -> Iterator[Association]:
        made = self._ae.associate("127.0.0.1", self._node.port, evt_handlers=self._handlers)
        assert made.is_established
        try:
            yield made
        finally:
            # pynetdicom would release in the middle of an answer
            until(lambda: self._answered >= len(self.heard) or not made.is_established)
            made.release()

    def close(self) -> None:
        shut_down(self._ae)


def ask(association: Association, *references: tuple[str, str], transaction: str = "2.25.1") -> int:
    information = Dataset()
    information.TransactionUID = transaction
    items = []
    for sop_class, instance in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
        items.append(item)
    information.ReferencedSOPSequence = items
    status, _ = association.send_n_action(information, 1, COMMITMENT, INSTANCE)
    return int(status.Status)


def uids(answer: Dataset, keyword: str) -> list[str]:
    return [item.ReferencedSOPInstanceUID for item in answer.get(keyword, [])]


def test_what_is_kept_is_promised_over_the_same_association(bench: Bench, listen: Listen) -> None:
    bench.receive(radiograph(number=1))
    gone = bench.receive(radiograph(number=2))
    bench.receive(radiograph(number=3))
    bench.spool.remove(gone)
    node = listen()
    asker = Asker(node)
    with asker.association() as association:
        wanted = [(DX, uid("1", 1)), (DX, uid("1", 2)), (CR, uid("1", 3)), (DX, uid("1", 4))]
        assert ask(association, *wanted) == 0x0000
        until(lambda: bool(asker.heard))
        assert association.is_established
    ((event_type, answer),) = asker.heard
    assert (event_type, answer.TransactionUID) == (2, "2.25.1")
    assert uids(answer, "ReferencedSOPSequence") == [uid("1", 1)]
    failed = {item.ReferencedSOPInstanceUID: item.FailureReason for item in answer.FailedSOPSequence}
    assert failed == {uid("1", 2): 0x0112, uid("1", 3): 0x0119, uid("1", 4): 0x0112}
    until(lambda: bench.states(Kind.CONFIRM) == ["done"])
    assert [(one.committed, one.refused) for one in node.wanted()] == [(1, 3)]


@one_database
def test_a_file_of_another_size_is_not_promised(bench: Bench, listen: Listen) -> None:
    damaged = bench.receive(radiograph())
    with bench.spool.path(damaged).open("ab") as file:
        file.write(b"x")
    asker = Asker(listen())
    with asker.association() as association:
        ask(association, (DX, uid("1", 1)))
        until(lambda: bool(asker.heard))
    assert uids(asker.heard[0][1], "FailedSOPSequence") == [uid("1", 1)]


@one_database
def test_a_modality_with_an_address_is_told_there_whatever_becomes_of_its_association(
    bench: Bench, listen: Listen
) -> None:
    bench.receive(radiograph())
    port = free_port()
    node = listen(Modality(ae_title="CR1", host="127.0.0.1", port=port))
    asker = Asker(node)
    with asker.association() as association:
        assert ask(association, (DX, uid("1", 1))) == 0x0000
    node.confirm()
    assert bench.states(Kind.CONFIRM) == ["ready"]  # it does not listen yet
    heard: list[Dataset] = []

    def on_event(event: evt.Event) -> tuple[int, None]:
        heard.append(event.event_information)
        return 0x0000, None

    ae = AE("CR1")
    ae.add_supported_context(COMMITMENT, scu_role=False, scp_role=True)
    handlers: list[Any] = [(evt.EVT_N_EVENT_REPORT, on_event)]
    ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    bench.hurry()
    node.confirm()
    shut_down(ae)
    assert uids(only(heard), "ReferencedSOPSequence") == [uid("1", 1)]
    assert bench.states(Kind.CONFIRM) == ["done"]


@one_database
def test_a_modality_that_cannot_be_told_is_a_failure_that_says_what_to_do(
    bench: Bench, listen: Listen
) -> None:
    node = listen()
    with Asker(node).association() as association:
        ask(association, (DX, uid("1", 1)))
    bench.hurry()
    node.confirm()
    with bench.database.read() as session:
        (failure,) = failures(session, 10)
    assert (failure.kind, failure.lane) == ("confirm", "CR1")
    assert "[[modalities]]" in failure.error


@one_database
def test_a_request_that_makes_no_sense_is_refused_and_not_recorded(bench: Bench, listen: Listen) -> None:
    node = listen()
    with Asker(node).association() as association:
        assert ask(association) == 0x0115
        assert ask(association, (DX, "not a UID")) == 0x0115
        information = Dataset()
        information.TransactionUID = "2.25.1"
        status, _ = association.send_n_action(information, 2, COMMITMENT, INSTANCE)
        assert status.Status == 0x0123
        status, _ = association.send_n_action(information, 1, COMMITMENT, "1.2.3")
        assert status.Status == 0x0112
    assert node.wanted() == []


@one_database
def test_a_promise_that_nobody_asked_for_is_refused(bench: Bench, listen: Listen) -> None:
    node = listen()
    ae = AE("PACS")
    ae.add_requested_context(COMMITMENT)
    roles: list[Any] = [build_role(COMMITMENT, scp_role=True)]
    association = ae.associate("127.0.0.1", node.port, ext_neg=roles)
    answer = Dataset()
    answer.TransactionUID = "2.25.99"
    answer.ReferencedSOPSequence = []
    status, _ = association.send_n_event_report(answer, 1, COMMITMENT, INSTANCE)
    assert status.Status == 0x0115
    status, _ = association.send_n_event_report(answer, 7, COMMITMENT, INSTANCE)
    assert status.Status == 0x0113
    association.release()


def test_orthanc_hears_of_what_it_asked(bench: Bench, listen: Listen, tmp_path: Path) -> None:
    bench.receive(radiograph())
    port = free_port()
    with orthanc(tmp_path / "orthanc") as probe:
        port = probe.port
    node = listen(Modality(ae_title="ORTHANC", host="127.0.0.1", port=port))
    with orthanc(tmp_path / "orthanc", {"PACS_NODE": node.port}, port=port) as pacs:
        wanted = {"DicomInstances": [[DX, uid("1", 1)], [DX, uid("1", 2)]]}
        started = pacs.post("/modalities/PACS_NODE/storage-commitment", wanted)
        node.confirm()
        report = pacs.json(started["Path"])
    assert report["Status"] == "Failure"
    assert [one["SOPInstanceUID"] for one in report["Success"]] == [uid("1", 1)]
    assert [one["SOPInstanceUID"] for one in report["Failures"]] == [uid("1", 2)]
