"""The receiver, over real sockets: what arrives is stored as it came and once; what is wrong is refused."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from sqlalchemy import select

from db import queries
from db.errors import WriteConflict
from db.models import Study
from pacs_node.receiving.receiver import READABLE_SYNTAXES
from tests.conftest import radiograph, save, uid
from tests.helpers import receiving
from tests.helpers.part10 import explicit_element, part10
from tests.helpers.peers import program
from tests.helpers.receiving import (
    CR,
    DX,
    SC,
    SERIES_INSTANCE_UID,
    SOP_CLASS_UID,
    SOP_INSTANCE_UID,
    STUDY_INSTANCE_UID,
    Listen,
    Node,
    answered,
    assert_refused,
    associated,
    broken,
    context_of,
    data_set,
    halves,
    object_in,
    paused,
    send,
    wait_until,
)

# Fixtures: pytest finds them by the names that they have here.
listen, node, image = receiving.listen, receiving.node, receiving.image


def dcmtk(name: str, node: Node, *arguments: str | Path) -> None:
    """Run a DCMTK sender against the node; it must be content."""
    command = [program(name), "-v", "-aet", "DCMTK", "-aec", "PACS_NODE", "127.0.0.1", str(node.port)]
    run = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


# What arrives


def test_c_echo_is_answered(node: Node) -> None:
    dcmtk("echoscu", node)
    with associated(node) as association:
        assert association.send_c_echo().Status == 0x0000


def test_the_configured_pdu_size_is_offered(listen: Listen) -> None:
    with associated(listen(max_pdu_bytes=65_536)) as association:
        assert association.acceptor.maximum_length == 65_536


SYNTAX_OPTIONS = {
    "-xe": ExplicitVRLittleEndian,
    "-xi": ImplicitVRLittleEndian,
    "-xb": ExplicitVRBigEndian,
    "-xd": DeflatedExplicitVRLittleEndian,
    "-xr": RLELossless,
    "-xs": JPEGLosslessSV1,
    "-xy": JPEGBaseline8Bit,
    "-xt": JPEGLSLossless,
    "-xv": JPEG2000Lossless,
}


def test_what_storescu_sends_is_stored_byte_for_byte(node: Node, tmp_path: Path) -> None:
    sent: dict[str, bytes] = {}
    for number, (option, syntax) in enumerate(SYNTAX_OPTIONS.items()):
        path = object_in(syntax, tmp_path, (DX, CR, SC)[number % 3], number)
        dcmtk("storescu", node, option, path)
        sent[uid("1", number)] = data_set(path)
    assert node.data_sets() == sent
    stored = {one.sop_instance_uid: one.transfer_syntax_uid for one in node.instances()}
    assert stored == {uid("1", number): syntax for number, syntax in enumerate(SYNTAX_OPTIONS.values())}


def test_a_folder_that_dcmsend_sends_is_stored_byte_for_byte(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    sent: dict[str, bytes] = {}
    for number, syntax in enumerate((ExplicitVRLittleEndian, JPEGLosslessSV1, JPEG2000Lossless, RLELossless)):
        for kind in (DX, CR, SC):
            path = object_in(syntax, folder, kind, number * 3 + len(sent) % 3)
            sent[str(dcmread(path).SOPInstanceUID)] = data_set(path)
    dcmtk("dcmsend", node, "--decompress-never", "+sd", folder)
    assert len(sent) == 12
    assert node.data_sets() == sent


def test_every_readable_transfer_syntax_is_stored_byte_for_byte(node: Node, tmp_path: Path) -> None:
    paths = [
        object_in(syntax, tmp_path, (DX, CR, SC)[number % 3], number)
        for number, syntax in enumerate(READABLE_SYNTAXES)
    ]
    with associated(node, *map(context_of, paths)) as association:
        assert {association.send_c_store(path).Status for path in paths} == {0x0000}
    assert node.data_sets() == {uid("1", number): data_set(path) for number, path in enumerate(paths)}


def test_an_object_is_recorded_with_its_study_and_its_jobs(node: Node, image: Path) -> None:
    assert send(node, image).Status == 0x0000
    (one,) = node.instances()
    assert (one.sop_instance_uid, one.series_instance_uid, one.copy) == (uid("1", 1), uid("1", "series"), 0)
    assert one.sop_class_uid == DigitalXRayImageStorageForPresentation
    assert (one.transfer_syntax_uid, one.modality) == (ExplicitVRLittleEndian, "DX")
    assert (one.view_position, one.calling_ae_title) == ("PA", "MODALITY")
    assert one.size == node.spool.path(one.digest).stat().st_size
    assert abs(one.received_at.timestamp() - time.time()) < 60
    with node.database.read() as session:
        study = session.scalars(select(Study)).one()
    assert (study.study_instance_uid, study.accession_number) == (uid("1", "study"), "ACC-1")
    assert (study.patient_name, study.patient_id, study.study_date) == ("Test^Alice", "PID-1", "20250610")
    assert sorted(node.jobs()) == [("report", study.id, "ready"), ("score", one.id, "ready")]
    wait_until(lambda: not node.arriving())


def test_the_images_of_a_study_share_its_row_and_its_report(node: Node, tmp_path: Path) -> None:
    paths = [save(radiograph(number=number), tmp_path / f"{number}.dcm") for number in range(5)]
    assert send(node, *paths).Status == 0x0000
    assert [one.study_id for one in node.instances()] == [1] * 5
    assert sorted(kind for kind, _, _ in node.jobs()) == ["report"] + ["score"] * 5


def test_what_is_stored_is_a_valid_file_of_its_transfer_syntax(node: Node, tmp_path: Path) -> None:
    send(node, object_in(DeflatedExplicitVRLittleEndian, tmp_path))
    (one,) = node.instances()
    stored = dcmread(node.spool.path(one.digest))
    assert stored.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
    assert (stored.pixel_array == radiograph().pixel_array).all()


# Objects that are wrong


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_a_uid_that_is_none_is_refused(keyword: str, node: Node, image: Path, tmp_path: Path) -> None:
    tag = STUDY_INSTANCE_UID if keyword == "StudyInstanceUID" else SERIES_INSTANCE_UID
    values: dict[bytes | None, str] = {None: "is missing", b"": "is missing"}
    no_uids = (b"../../../../etc/passwd", b"1.2.3/../4", b"1.2.ABC", b"1." + b"2" * 63)
    values |= dict.fromkeys(no_uids, "is no UID")
    with associated(node, context_of(image)) as association:
        for value, what in values.items():
            answer = association.send_c_store(broken(tmp_path, tag, value))
            assert (answer.Status, answer.ErrorComment) == (0xC000, f"{keyword} {what}")
    node.assert_holds_nothing()


@pytest.mark.parametrize("syntax", [b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2.1\0"])
def test_file_meta_information_in_the_data_set_is_refused(
    syntax: bytes, node: Node, image: Path, tmp_path: Path
) -> None:
    stray = explicit_element(0x00020010, b"UI", syntax)
    path = part10(stray + data_set(image), ExplicitVRLittleEndian, tmp_path / "stray.dcm")
    with associated(node, context_of(image)) as association, paused(association):
        for parts in halves(association, path):
            for part in parts:
                association.dul.send_pdu(part)
        answer = answered(association)
    comment = "The data set begins with group 0002, which is no part of one"
    assert (answer.Status, answer.ErrorComment) == (0xC000, comment)
    node.assert_holds_nothing()


def test_an_id_that_is_there_twice_and_differs_is_refused(node: Node, image: Path, tmp_path: Path) -> None:
    whole = data_set(image)
    twice = explicit_element(0x00100020, b"LO", b"OTHER ")
    pixels = whole.index(b"\xe0\x7f\x10\x00OW")
    path = part10(whole[:pixels] + twice + whole[pixels:], ExplicitVRLittleEndian, tmp_path / "twice.dcm")
    answer = send(node, path)
    assert_refused(node, answer, 0xC000, "(0010,0020) is there twice, and differs")


def test_bytes_that_are_no_data_set_are_refused(node: Node, image: Path, tmp_path: Path) -> None:
    with associated(node, context_of(image)) as association:
        for content in (b"", b"\0" * 8, bytes(range(256)) * 8, b"\xff" * 1000):
            path = part10(content, ExplicitVRLittleEndian, tmp_path / "junk.dcm")
            answer = association.send_c_store(path)
            assert answer.Status == 0xC000
            assert answer.ErrorComment
    node.assert_holds_nothing()


@pytest.mark.parametrize(
    ("tag", "value", "what"),
    [(SOP_CLASS_UID, CTImageStorage, "SOP Class UID"), (SOP_INSTANCE_UID, "1.2.3", "SOP Instance UID")],
)
def test_an_object_that_is_another_than_announced_is_refused(
    tag: int, value: str, what: str, node: Node, tmp_path: Path
) -> None:
    answer = send(node, broken(tmp_path, tag, value.encode()))
    assert_refused(node, answer, 0xA900, f"{what} is another than that of the request")


def test_images_that_cannot_be_decoded_are_stored_and_judged_later(node: Node, tmp_path: Path) -> None:
    odd: list[dict[str, Any]] = [
        {"Rows": 0, "Columns": 0},
        {"Rows": 60_000, "Columns": 60_000},
        {"Rows": None},
        {"PixelData": None},
    ]
    paths = [
        save(radiograph(number=number, **tags), tmp_path / f"{number}.dcm") for number, tags in enumerate(odd)
    ]
    assert send(node, *paths).Status == 0x0000
    assert node.data_sets() == {uid("1", number): data_set(path) for number, path in enumerate(paths)}


def test_an_image_whose_pixels_were_cut_off_is_stored_and_judged_later(node: Node, image: Path) -> None:
    image.write_bytes(image.read_bytes()[:-100_001])
    assert send(node, image).Status == 0x0000
    assert node.data_sets() == {uid("1", 1): data_set(image)}


def test_one_wrong_object_does_not_stop_the_others(node: Node, image: Path, tmp_path: Path) -> None:
    second = save(radiograph(number=2), tmp_path / "second.dcm")
    wrong = broken(tmp_path, STUDY_INSTANCE_UID, None)
    with associated(node, context_of(image)) as association:
        answers = [association.send_c_store(path).Status for path in (image, wrong, second)]
    assert answers == [0x0000, 0xC000, 0x0000]
    assert [one.sop_instance_uid for one in node.instances()] == [uid("1", 1), uid("1", 2)]


# The same object again


def test_the_same_object_again_is_success_and_changes_nothing(node: Node, image: Path) -> None:
    for _ in range(3):
        assert send(node, image, image).Status == 0x0000
    assert len(node.instances()) == 1
    assert len(list(node.spool.stored())) == 1
    assert len(node.jobs()) == 2


def test_another_object_under_the_same_uid_is_kept_beside_the_first_and_flagged(
    node: Node, image: Path, tmp_path: Path
) -> None:
    other = save(radiograph(PatientComments="other"), tmp_path / "other.dcm")
    for path in (image, other, image, other):
        assert send(node, path).Status == 0x0000
    first, second = node.instances()
    assert (first.sop_instance_uid, first.copy) == (second.sop_instance_uid, 0)
    assert second.copy == 1
    assert data_set(node.spool.path(first.digest)) == data_set(image)
    assert data_set(node.spool.path(second.digest)) == data_set(other)
    assert sorted(node.jobs()) == [("report", 1, "ready"), ("score", 1, "ready"), ("score", 2, "ready")]


def test_the_same_object_over_many_associations_at_once_is_one_object(node: Node, image: Path) -> None:
    with ThreadPoolExecutor(8) as senders:
        answers = list(senders.map(lambda _: send(node, image), range(8)))
    assert [answer.Status for answer in answers] == [0x0000] * 8
    assert len(node.instances()) == len(list(node.spool.stored())) == 1


def test_many_objects_over_many_associations_at_once_all_arrive(node: Node, tmp_path: Path) -> None:
    paths = [save(radiograph(study=str(n % 3), number=n), tmp_path / f"{n}.dcm") for n in range(12)]
    with ThreadPoolExecutor(4) as senders:
        answers = list(senders.map(lambda path: send(node, path), paths))
    assert {answer.Status for answer in answers} == {0x0000}
    expected = {uid(str(n % 3), n): data_set(path) for n, path in enumerate(paths)}
    assert node.data_sets() == expected


@pytest.mark.parametrize(("conflicts", "status"), [(4, 0x0000), (5, 0xA700)])
def test_a_lost_race_for_a_row_is_run_again(
    conflicts: int, status: int, node: Node, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, tries = queries.add_instance, []

    def _add(*arguments: Any) -> Any:
        tries.append(arguments)
        if len(tries) <= conflicts:
            raise WriteConflict("Another transaction came first.")
        return add(*arguments)

    monkeypatch.setattr(queries, "add_instance", _add)
    assert send(node, image).Status == status
    assert len(node.instances()) == (status == 0x0000)
