"""What of a study is missing: told from what a PACS lists and what the node keeps, and fetched."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydicom.uid import CTImageStorage, DigitalXRayImageStorageForPresentation
from sqlalchemy import update

from db import inventory
from db.inventory import Known, Reported, SentReport
from db.models import Job
from db.queue import Kind
from db.session import Database
from pacs_node.errors import PeerError, UserError
from pacs_node.reconciling import reconcile
from pacs_node.reconciling.findings import Finding, Listed, Reconciliation, missing_images, missing_report
from pacs_node.reconciling.query import ListedSeries, ListedStudy, RetrieveKeys
from pacs_node.storage.spool import Spool
from tests.conftest import radiograph, uid
from tests.helpers import workbench
from tests.helpers.querying import no_bar, on_sqlite
from tests.helpers.rows import instance_id, new, receive, report, score
from tests.helpers.workbench import Bench

# A fixture: pytest finds it by the name that it has here.
bench = workbench.bench


def listed(*numbers: int) -> Listed:
    told = ListedStudy(
        study_instance_uid="1.2",
        study_date="20250603",
        patient_id="P",
        patient_name="",
        accession_number="A",
        modalities=("DX",),
        description="",
    )
    return Listed(told, {f"1.2.{number}": "1.2.0" for number in numbers}, ["1.2.9"])


def known(**values: Any) -> Known:
    usual = {"digest": "ab", "is_removed": False, "is_scored": True, "job_state": "done", "job_error": None}
    return Known(**{**usual, **values})


@pytest.mark.parametrize(
    ("image", "is_there", "said"),
    [
        (None, True, ("never_received", "")),
        (known(), True, None),
        (known(), False, ("file_missing", "ab.dcm is not in the spool")),
        (known(is_removed=True), False, None),
        (known(is_scored=False, job_state="ready"), True, ("never_scored", "waiting")),
        (
            known(is_scored=False, job_state="failed", job_error="The worker died"),
            True,
            ("never_scored", "failed: The worker died"),
        ),
        (known(is_scored=False, job_state="failed"), False, ("file_missing", "ab.dcm is not in the spool")),
    ],
)
def test_of_an_image_what_was_lost_first_is_missing(
    image: Known | None, is_there: bool, said: tuple[str, str] | None
) -> None:
    received = {} if image is None else {"1.2.1": image}
    found = [*missing_images(listed(1), received, lambda _: is_there)]
    assert [(f.missing, f.detail) for f in found] == ([] if said is None else [said])


def reported(**values: Any) -> Reported:
    usual = {
        "unscored": 0,
        "unreported": 0,
        "report_uid": "1.9",
        "sent": (),
        "job_state": "done",
        "job_error": None,
    }
    return Reported(**{**usual, **values})


SENT = SentReport(destination="PACS", state="delivered", sop_instance_uid="1.10", error=None)
DOWN = SentReport(destination="ARCHIVE", state="pending", sop_instance_uid=None, error="It is down.")


@pytest.mark.parametrize(
    ("report", "held", "said"),
    [
        (None, "", None),
        (reported(unscored=1), "", None),
        (reported(), "1.9", None),
        (reported(sent=[SENT]), "1.10", None),
        (
            reported(sent=[SENT, DOWN]),
            "",
            ("report_missing", "PACS: delivered; ARCHIVE: pending, It is down."),
        ),
        (
            reported(),
            "1.10",
            ("report_missing", "it has no destination; add the PACS to [[destinations]]"),
        ),
        (reported(report_uid=None, unreported=2, job_state="ready"), "", ("no_report", "2 images: waiting")),
        (
            reported(unreported=1, job_state="failed", job_error="No report can be made"),
            "1.9",
            ("no_report", "1 images: failed: No report can be made"),
        ),
    ],
)
def test_of_a_report_is_missing_what_the_pacs_does_not_hold(
    report: Reported | None, held: str, said: tuple[str, str] | None
) -> None:
    found = [*missing_report(listed(1), report, lambda asked: held in asked)]
    assert [(f.missing, f.detail) for f in found] == ([] if said is None else [said])


@pytest.mark.parametrize(
    ("tags", "may_be"),
    [
        ({}, True),
        ({"modality": "CR"}, True),
        ({"modality": "RG"}, True),
        ({"modality": "OT"}, True),
        ({"modality": ""}, True),
        ({"modality": "CT"}, False),
        ({"modality": "SR"}, False),
        ({"modality": "MG"}, False),
        ({"body_part": "CHEST"}, True),
        ({"body_part": "THORAX"}, True),
        ({"body_part": "HAND"}, False),
        ({"body_part": "HAND\\\x1b"}, False),
        ({"description": "Hand PA"}, False),
        ({"description": "Chest lateral"}, True),
        ({"description": "Bone suppressed"}, True),
        ({"description": "AI heat map"}, False),
        ({"body_part": "XYZZY"}, True),
        ({"body_part": "CHEST", "description": "Hand"}, True),
        ({"body_part": "UNKNOWN"}, True),
    ],
)
def test_a_series_is_left_out_only_where_the_pacs_tells_that_it_is_no_chest(
    tags: dict[str, str], may_be: bool
) -> None:
    told = ListedSeries(
        **{"series_instance_uid": "1.2", "modality": "DX", "body_part": "", "description": "", **tags}
    )
    assert reconcile.may_be_chest_radiograph(listed().study, told) is may_be


def test_the_description_of_the_study_counts_where_nothing_else_tells() -> None:
    told = ListedSeries(series_instance_uid="1.2", modality="DX", body_part="", description="")
    hand, both = (replace(listed().study, description=text) for text in ("Hand left", "Chest and hand"))
    assert not reconcile.may_be_chest_radiograph(hand, told)
    assert reconcile.may_be_chest_radiograph(both, told)


NOW = datetime(2025, 6, 10, 12).astimezone()


@pytest.mark.parametrize(
    ("since", "until", "days"),
    [
        (None, None, ("2025-06-03", "2025-06-11")),
        ("2025-06-09T23:00", None, ("2025-06-09", "2025-06-11")),
        ("2025-06-01", "2025-06-08", ("2025-06-01", "2025-06-07")),
        ("2025-06-01", "2025-06-08T10:00", ("2025-06-01", "2025-06-08")),
    ],
)
def test_a_period_is_of_whole_days(since: str | None, until: str | None, days: tuple[str, str]) -> None:
    first, end = (datetime.fromisoformat(one).astimezone(UTC) if one else None for one in (since, until))
    assert tuple(map(str, reconcile.period(first, end, NOW))) == days


def test_a_period_without_a_day_is_an_error_of_the_user() -> None:
    with pytest.raises(UserError, match="--since must be before --until"):
        reconcile.period(NOW, NOW - timedelta(days=1), NOW)


@on_sqlite
def test_images_are_fetched_with_requests_of_bounded_size_and_looked_for_afterwards(bench: Bench) -> None:
    images = [radiograph(study="many", number=number) for number in range(2)]
    findings = [
        Finding(
            **{
                **vars(finding),
                "series_instance_uid": f"1.2.{number // 1500}",
                "sop_instance_uid": uid("many", number),
            }
        )
        for number in range(2000)
        for finding in missing_images(listed(number), {}, bool)
    ]
    before = Reconciliation(studies=1, images=2000, findings=findings, is_complete=True)
    asked: list[RetrieveKeys] = []

    def retrieve(requests: Sequence[RetrieveKeys]) -> Iterator[str]:
        for request in requests:
            asked.append(request)
            if len(asked) == 1:
                bench.receive(images[0])
            if len(asked) == 3:
                raise PeerError("PACS broke off.")
            yield "PACS is slow." if len(asked) == 2 else ""

    after = reconcile.fetch(before, retrieve, bench.database, bench.spool, no_bar)
    assert {len(one.sop_instance_uids) for one in asked} == {50}
    assert [f.sop_instance_uid for f in after.findings if f.is_fetched] == [images[0].SOPInstanceUID]
    assert (after.troubles, str(after.failure)) == (["PACS is slow."], "PACS broke off.")
    assert after.summary.endswith("; 1 of 2000 fetched.")
    assert not after.is_clean


@on_sqlite
def test_images_that_come_after_the_answer_are_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = radiograph(study="late")
    [finding] = missing_images(listed(1), {}, bool)
    finding = replace(finding, sop_instance_uid=str(ds.SOPInstanceUID))
    before = Reconciliation(studies=1, images=1, findings=[finding], is_complete=True)
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            bench.receive(ds)

    monkeypatch.setattr("pacs_node.reconciling.reconcile.time.sleep", sleep)
    after = reconcile.fetch(before, lambda _: iter([""]), bench.database, bench.spool, no_bar)
    assert after.is_clean
    assert len(naps) == 3


@on_sqlite
def test_what_a_killed_fetch_left_is_removed_but_not_what_arrives_right_now(bench: Bench) -> None:
    spool = Spool(bench.spool.root)
    reconcile.prepare(spool, bench.database)
    old, fresh = spool.incoming / "old.dcm", spool.incoming / "fresh.dcm"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    reconcile.prepare(spool, bench.database)
    assert spool.leftovers() == [fresh]
    assert spool.incoming != Spool(bench.spool.root, 11112).incoming


# What the database tells


def test_more_images_than_fit_one_statement_are_found(database: Database) -> None:
    for number in range(3):
        receive(database, new(number))
    receive(database, new(1, content="b"))  # under a UID that is known
    score(database, 0)
    with database.write() as session:
        session.execute(
            update(Job)
            .where(Job.kind == Kind.SCORE, Job.ref == instance_id(database, 2))
            .values(state="failed", error="Broken")
        )
    asked = [uid("1", number) for number in range(1200)]
    with database.read() as session:
        found = inventory.known(session, asked)
    said = {one: (k.digest, k.is_scored, k.job_state, k.job_error, k.is_removed) for one, k in found.items()}
    digests = [new(number).digest for number in range(3)]
    assert said == {
        uid("1", 0): (digests[0], True, "ready", None, False),
        uid("1", 1): (digests[1], False, "ready", None, False),
        uid("1", 2): (digests[2], False, "failed", "Broken", False),
    }


def test_a_study_is_reported_once_the_newest_report_states_all_its_radiographs(database: Database) -> None:
    dx, ct = DigitalXRayImageStorageForPresentation, CTImageStorage
    study_uid = uid("1", "study")

    def ask() -> Reported | None:
        with database.read() as session:
            return inventory.reported(session, study_uid, [dx])

    assert ask() is None
    receive(database, new(1, sop_class_uid=ct))
    assert ask() is None
    receive(database, new(2))
    assert ask() == Reported(
        unscored=1, unreported=1, report_uid=None, sent=(), job_state="ready", job_error=None
    )
    first = score(database, 2)
    image_id = instance_id(database, 2)
    report(database, {image_id: first})
    newest = report(database, {image_id: first}, revision=2, destinations=["PACS"])
    sent = [SentReport(destination="PACS", state="pending", sop_instance_uid=None, error=None)]
    assert ask() == reported(report_uid=newest, sent=sent, job_state="ready")
    receive(database, new(3))
    assert ask() == reported(report_uid=newest, sent=sent, job_state="ready", unscored=1, unreported=1)
