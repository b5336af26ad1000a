"""Delivery over one association: what peers of all tempers get, and what the node makes of their answers."""

from __future__ import annotations

import errno
import gc
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import

from pacs_node.config import DeliverSettings, Destination
from pacs_node.delivering.link import DeliveryResult, open_link
from pacs_node.demo.peers import free_port
from pacs_node.errors import DestinationBusy, DestinationDown, DestinationRefused, NotAssociated, Retryable
from pacs_node.network.association import application_entity, associate
from pacs_node.network.dimse import Services
from pacs_node.network.upper_layer import tune
from pacs_node.reporting.report import COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR, REPORT_CLASSES, as_class
from tests.conftest import radiograph
from tests.helpers import delivering
from tests.helpers.delivering import abort, data_set, destination, peer
from tests.helpers.peers import Orthanc, orthanc, program
from tests.helpers.reports import errors, report, scored
from tests.helpers.workbench import named, only
from tests.helpers.workers import until

# Fixtures: pytest finds them by the names that they have here.
whole_data_sets = delivering.whole_data_sets

QUICK = DeliverSettings(connect_seconds=60, answer_seconds=120)
NO_ASSOCIATION = DeliverSettings(connect_seconds=0.3, answer_seconds=120)
NO_ANSWER = DeliverSettings(connect_seconds=120, answer_seconds=1)
REPORT = report(scored(radiograph())).content
PATIENT_NAME = 0x00100010


def send(to: Destination, content: bytes = REPORT, settings: DeliverSettings = QUICK) -> DeliveryResult:
    with open_link(to, "PACS_NODE", settings) as link:
        return link.send(content)


def test_dcmtk_gets_the_data_set_that_is_stored(tmp_path: Path) -> None:
    port = free_port()
    command = [program("storescp"), "+B", "-aet", "PACS", "-od", str(tmp_path), str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: is_open(port))
        sent = send(destination(port))
        process.terminate()
    assert sent == DeliveryResult(COMPREHENSIVE_3D_SR, dcmread(BytesIO(REPORT)).SOPInstanceUID, 0)
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
    assert sent == DeliveryResult(sop_class, expected.sop_instance_uid, 0)
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
    assert "accepts no class of structured report; enable one there." in str(caught.value)
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
    with peer(lambda _: 0x0122) as other, pytest.raises(DestinationRefused, match="accepts no class"):
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
    free = tune(association, Services(), lambda _association, _exception: None)
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

    monkeypatch.setattr("pacs_node.delivering.link.tempfile.NamedTemporaryFile", full)
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
        f"PACS answered C-STORE with status 0x{status:04X}: it says that the report is wrong; see its log."
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
            send(destination(silent.getsockname()[1]), settings=NO_ASSOCIATION)
    assert time.monotonic() - start < 60


def test_a_peer_that_never_answers_c_store_is_down() -> None:
    done = threading.Event()

    def wait(_event: evt.Event) -> int:
        done.wait(120)
        return 0x0000

    with peer(wait) as other:
        start = time.monotonic()
        with pytest.raises(DestinationDown, match="broke off, or gave no answer"):
            send(other.destination, settings=NO_ANSWER)
        assert time.monotonic() - start < 60
        done.set()


def test_a_peer_that_aborts_in_the_middle_is_down() -> None:
    with peer(abort) as other, pytest.raises(DestinationDown, match="broke off"):
        send(other.destination)
    assert len(other.received) == 1
