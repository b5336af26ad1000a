"""What a PACS answers to queries: taken whole, whatever its temper, or said in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, DigitalXRayImageStorageForPresentation
from pynetdicom import evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import

from classifier.config import PROJECTION_RADIOGRAPHS
from pacs_node.errors import CutShort, PeerError, SpoolUnusable
from pacs_node.network.dimse import Services
from pacs_node.reconciling import query, reconcile
from pacs_node.reconciling.findings import Missing, Reconciliation
from pacs_node.reconciling.query import RetrieveKeys
from pacs_node.storage.spool import Spool
from tests.conftest import radiograph, uid
from tests.helpers import querying, workbench
from tests.helpers.querying import (
    DAYS,
    Answer,
    Scripted,
    image,
    no_bar,
    on_sqlite,
    pending,
    scripted,
    series,
    study,
    usual,
)
from tests.helpers.receiving import wait_until
from tests.helpers.workbench import Bench

# Fixtures: pytest finds them by the names that they have here.
as_it_was, bench = querying.as_it_was, workbench.bench


def compare(other: Scripted, bench: Bench, days: tuple[date, date] = DAYS) -> Reconciliation:
    with query.open_finder(other.peer, "PACS_NODE") as finder:
        return reconcile.compare(finder, bench.database, bench.spool, days, no_bar)


def uids(found: Reconciliation) -> list[str]:
    return [finding.sop_instance_uid for finding in found.findings]


@on_sqlite
def test_a_study_that_several_queries_answer_counts_once(bench: Bench) -> None:
    with scripted() as other:  # which matches no Modalities in Study, and returns none
        found = compare(other, bench)
    assert (found.studies, found.images, uids(found)) == (1, 1, [uid("s", 1)])
    levels = [(r.QueryRetrieveLevel, r.get("ModalitiesInStudy")) for r in other.asked]
    wanted = [("STUDY", modality) for modality in reconcile.MODALITIES]
    assert levels == [*wanted, ("SERIES", None), ("IMAGE", None)]
    assert {r.StudyDate for r in other.asked[:4]} == {"20250601-20250608"}


@on_sqlite
def test_where_no_modality_matches_all_studies_are_looked_at(bench: Bench) -> None:
    def find(request: Dataset, event: evt.Event) -> Iterator[Answer]:
        if not request.get("ModalitiesInStudy"):
            yield from usual(study("a"), study("b", ModalitiesInStudy=["CT", "SR"]))(request, event)

    with scripted(find) as other:
        found = compare(other, bench)
    assert (found.studies, found.is_complete) == (1, True)
    assert [r.QueryRetrieveLevel for r in other.asked] == [*["STUDY"] * 5, "SERIES", "IMAGE"]


@on_sqlite
def test_a_pacs_without_a_match_has_nothing_that_is_missing(bench: Bench) -> None:
    with scripted(lambda _request, _event: iter(())) as other:
        found = compare(other, bench)
    assert (found.studies, found.images, found.findings, found.is_clean) == (0, 0, [], True)


@on_sqlite
def test_two_thousand_images_of_one_study_are_all_listed(bench: Bench) -> None:
    listed = [image(number, SOPClassUID=DigitalXRayImageStorageForPresentation) for number in range(2000)]
    with scripted(usual(images=listed)) as other:
        found = compare(other, bench)
    assert (found.studies, found.images) == (1, 2000)
    assert set(uids(found)) == {ds.SOPInstanceUID for ds in listed}


@on_sqlite
def test_images_of_other_classes_are_none_of_ours(bench: Bench) -> None:
    listed = [image(1, SOPClassUID=CTImageStorage), image(2, SOPClassUID=""), image(3)]
    listed += [image(4, SOPClassUID=min(PROJECTION_RADIOGRAPHS)), image(3)]
    with scripted(usual(images=listed)) as other:
        found = compare(other, bench)
    assert uids(found) == [uid("s", number) for number in (2, 3, 4)]


@on_sqlite
@pytest.mark.parametrize("status", [0xFF00, 0xFF01])
def test_both_pending_statuses_bring_an_answer(bench: Bench, status: int) -> None:
    by_level = {"STUDY": study(), "SERIES": series(), "IMAGE": image()}
    with scripted(lambda request, _: pending(by_level[request.QueryRetrieveLevel], status=status)) as other:
        assert uids(compare(other, bench)) == [uid("s", 1)]


@on_sqlite
@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 192", "Ärztin^Żółć"),
        ("ISO_IR 144", "Люкceмбypг"),
        (["", "ISO 2022 IR 87"], "Yamada^Taro=山田^太郎"),
    ],
)
def test_names_come_in_the_character_set_of_the_answer(bench: Bench, charset: Any, name: str) -> None:
    told = study(SpecificCharacterSet=charset, PatientName=name)
    with scripted(usual(told)) as other:
        found = compare(other, bench)
    assert [finding.patient_name for finding in found.findings] == [name]


def explicit(tag: str, vr: bytes, value: bytes) -> bytes:
    """Encode one element, Explicit VR Little Endian, which is all that a scripted PACS takes."""
    group, element = tag[:4], tag[4:]
    head = bytes.fromhex(group)[::-1] + bytes.fromhex(element)[::-1]
    return head + vr + len(value).to_bytes(2, "little") + value


@on_sqlite
@pytest.mark.parametrize("padded", [b"%s\0", b"%s ", b"%s\0\0", b"%s \0", b" %s", b"\0%s "])
def test_a_uid_is_the_same_however_it_is_padded(bench: Bench, padded: bytes) -> None:
    ds = radiograph(study="padded")
    bench.receive(ds)
    raw = explicit("00080018", b"UI", padded % str(ds.SOPInstanceUID).encode())
    with scripted(usual(images=[raw])) as other:
        found = compare(other, bench)
    assert [(f.missing, f.sop_instance_uid) for f in found.findings] == [
        (Missing.NEVER_SCORED, ds.SOPInstanceUID)
    ]


HOSTILE = {
    "random": bytes(range(256)),
    "empty": b"",
    "cut": explicit("00080018", b"UI", b"1.2.3")[:7],
    "no UID": explicit("00080018", b"UI", b"../../etc/passwd"),
    "SQL": explicit("00080018", b"UI", b"1' OR '1'='1"),
    "too long": explicit("00080018", b"UI", b"1." * 40),
    "two": explicit("00080018", b"UI", b"1.2\\1.3"),
    "NUL inside": explicit("00080018", b"UI", b"1.2\0.3"),
    "another VR": explicit("00080018", b"FD", bytes(8)),
    "endless sequence": bytes.fromhex("080018005351")
    + b"\0\0"
    + b"\xff" * 4
    + b"\xfe\xff\x00\xe0\xff\xff\xff\xff" * 500,
    "no charset": explicit("00080005", b"CS", b"NO SUCH SET") + explicit("00080018", b"LO", b"\xff\xfe"),
}


@on_sqlite
@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_an_answer_that_cannot_be_read_is_said_and_harms_no_other(bench: Bench, content: bytes) -> None:
    with scripted(usual(images=[image(1), content, image(2)])) as other:
        found = compare(other, bench)
    assert uids(found) == [uid("s", 1), uid("s", 2)]
    assert (found.is_complete, found.is_clean) == (False, False)


@on_sqlite
def test_texts_of_a_hostile_pacs_are_bounded_and_printable(bench: Bench) -> None:
    head = explicit("00080005", b"CS", b"NO SUCH SET") + explicit("00080020", b"DA", b"\x1b[31m\xff" * 9)
    odd = explicit("00080061", b"CS", b"DX\\\x1b[2J") + explicit("00081030", b"LO", b"[red]" * 900)
    name = explicit("00100010", b"PN", b"\xff\x00\x1b" + b"=" * 900) + explicit("00100020", b"FD", b"12")
    raw = head + odd + name + explicit("0020000D", b"UI", b"1.2.3")
    with scripted(usual(raw)) as other:
        found = compare(other, bench)
    [finding] = found.findings
    assert finding.study_instance_uid == "1.2.3"
    said = "".join(str(value) for value in vars(finding).values())
    assert said.isprintable()
    assert len(said) < 1000


@on_sqlite
def test_days_are_halved_until_the_pacs_answers_in_full(bench: Bench) -> None:
    def find(request: Dataset, event: evt.Event) -> Iterator[Answer]:
        if request.QueryRetrieveLevel != "STUDY":
            yield from pending(
                series(request.StudyInstanceUID)
                if "SERIES" in request.QueryRetrieveLevel
                else image(name=request.StudyInstanceUID)
            )
            return
        first, last = request.StudyDate.split("-")
        held = [day for day in ("20250602", "20250605", "20250608") if first <= day <= last]
        yield from pending(*(study(day) for day in held[:1]))
        if len(held) > 1:
            yield (0xFE00, None) if first < "20250602" else (0xA700, None)

    with scripted(find) as other:
        found = compare(other, bench)
    assert sorted(f.study_instance_uid for f in found.findings) == sorted(
        uid(day) for day in ("20250602", "20250605", "20250608")
    )


@on_sqlite
def test_a_day_with_more_studies_than_the_pacs_answers_is_said(bench: Bench) -> None:
    with (
        scripted(lambda _request, _event: iter([(0xFE00, None)])) as other,
        pytest.raises(CutShort) as caught,
    ):
        compare(other, bench)
    assert "ended its answers to C-FIND early (status 0xFE00); raise its limit." in str(caught.value)


@on_sqlite
def test_a_pacs_that_never_stops_is_stopped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "MOST_ANSWERS", 50)

    def find(_request: Dataset, event: evt.Event) -> Iterator[Answer]:
        while event.assoc.is_established:
            yield 0xFF00, study()

    with scripted(find) as other, pytest.raises(PeerError, match="gives over 50 answers; ask for fewer days"):
        compare(other, bench)


def _dies(_request: Dataset, event: evt.Event) -> Iterator[Answer]:
    yield 0xFF00, study()
    event.assoc.abort()


@on_sqlite
@pytest.mark.parametrize("level", ["STUDY", "SERIES", "IMAGE"])
def test_a_pacs_that_dies_amid_its_answers_is_said(bench: Bench, level: str) -> None:
    def find(request: Dataset, event: evt.Event) -> Iterator[Answer]:
        yield from (_dies if request.QueryRetrieveLevel == level else usual())(request, event)

    with scripted(find) as other, pytest.raises(PeerError, match=r"broke off, or gave no answer to C-FIND"):
        compare(other, bench)


@on_sqlite
def test_a_pacs_that_goes_away_between_two_queries_is_said(bench: Bench) -> None:
    with scripted() as other, query.open_finder(other.peer, "PACS_NODE") as finder:
        assert finder.series("1.2") != []
        other.close()
        wait_until(lambda: not finder.is_open)
        with pytest.raises(PeerError, match=r"^PACS@127\.0\.0\.1:\d+ ended the association\.$"):
            finder.series("1.2")


@on_sqlite
def test_a_failure_of_the_pacs_is_told_with_its_status(bench: Bench) -> None:
    refused = Dataset()
    refused.Status, refused.ErrorComment = 0xA900, "No such key"
    said = r"answered C-FIND with status 0xA900, No such key; see its log\."
    with (
        scripted(lambda _request, _event: iter([(refused, None)])) as other,
        pytest.raises(PeerError, match=said),
    ):
        compare(other, bench)


def test_a_pacs_that_does_not_offer_a_service_is_said() -> None:
    with scripted(offers=[str(Verification), DigitalXRayImageStorageForPresentation]) as other:
        with pytest.raises(PeerError, match="does not offer C-FIND"), query.open_finder(other.peer, "X"):
            pass
        with pytest.raises(PeerError, match=r"does not offer C-MOVE .*use --by get\."):
            list(query.move(other.peer, "X", "PACS_NODE", [wanted()]))
        with pytest.raises(PeerError, match=r"does not offer C-GET .*use --by move\."):
            list(query.get(other.peer, "X", Services(), [wanted()]))
    with pytest.raises(PeerError, match="cannot be reached"), query.open_finder(other.peer, "X"):
        pass


def wanted() -> RetrieveKeys:
    return RetrieveKeys(
        study_instance_uid="1.2", series_instance_uid="1.2.3", sop_instance_uids=["1.2.3.4", "1.2.3.5"]
    )


def test_a_pacs_that_does_not_know_the_node_is_told_apart_from_one_that_cannot_send() -> None:
    with scripted(moved=0xA801) as other, pytest.raises(PeerError) as caught:
        list(query.move(other.peer, "X", "PACS_NODE", [wanted()]))
    assert str(caught.value).endswith(" does not know the AE title PACS_NODE; add it there, or use --by get.")
    [asked] = other.asked
    assert (asked.QueryRetrieveLevel, asked.SOPInstanceUID) == ("IMAGE", ["1.2.3.4", "1.2.3.5"])
    assert (asked.StudyInstanceUID, asked.SeriesInstanceUID) == ("1.2", "1.2.3")


@on_sqlite
def test_a_spool_that_is_not_mounted_is_no_list_of_missing_files(bench: Bench) -> None:
    ds = radiograph(study="s")
    bench.receive(ds)
    away = Spool(bench.spool.root.parent / "not-mounted")
    with (
        scripted() as other,
        query.open_finder(other.peer, "X") as finder,
        pytest.raises(SpoolUnusable, match="disk mounted"),
    ):
        reconcile.compare(finder, bench.database, away, DAYS, no_bar)
