"""The stock of files: what the spool should hold is there, and what was removed was needed by nobody."""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from db import status
from db import stock as stock_rows
from db.models import Delivery, Instance, Job, Study
from db.queue import Kind, enqueue
from db.session import Database
from pacs_node.config import Destination, RetentionSettings, Settings, SpoolSettings
from pacs_node.dicom.header import identity, read_header
from pacs_node.errors import Refused
from pacs_node.running.status import snapshot
from pacs_node.storage.arriving import digest
from pacs_node.storage.housekeeper import Housekeeper
from pacs_node.storage.intake import described, record
from pacs_node.storage.stock import take_stock
from tests.conftest import radiograph, save, uid
from tests.helpers.workbench import Bench, only

PACS = Destination(ae_title="PACS", host="127.0.0.1", port=104)
HOUR = 3600.0


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Bench:
    settings = Settings(
        destinations=(PACS,),
        spool=SpoolSettings(path=tmp_path / "spool", orphan_minutes=10),
        retention=RetentionSettings(days=7),
    )
    return Bench(database, tmp_path, settings=settings)


def keep_house(bench: Bench) -> None:
    Housekeeper(bench.settings, bench.database, bench.spool).work_once()


def put(bench: Bench, age_seconds: float = HOUR, study: str = "1", number: int = 1) -> str:
    """Leave a file as a receiver does that dies before it writes the row; return its digest."""
    image = radiograph(study=study, number=number)
    received = save(image, bench.spool.incoming / "received")
    name = digest(received, str(image.file_meta.TransferSyntaxUID))
    place = bench.spool.keep(received, name)
    then = time.time() - age_seconds
    os.utime(place, (then, then))
    return name


def files(bench: Bench) -> set[str]:
    return set(bench.spool.stored())


def through(bench: Bench, study: str = "1", images: int = 1) -> list[str]:
    """Let a study go through everything, its report delivered, and be ten days old; return its digests."""
    names = [bench.receive(radiograph(study=study, number=n + 1)) for n in range(images)]
    bench.score()
    bench.report()
    with bench.database.write() as session:
        session.execute(update(Delivery).values(state="delivered"))
        session.execute(update(Job).where(Job.kind == Kind.DELIVER).values(state="done"))
        before = datetime.now(UTC) - timedelta(days=10)
        session.execute(update(Study).values(last_received_at=before))
        session.execute(update(Instance).values(received_at=before))
    return names


# Stock


def test_all_is_well_where_each_row_has_its_file(bench: Bench) -> None:
    for number in range(5):
        bench.receive(radiograph(number=number))
    stock = take_stock(bench.database, bench.spool, 0)
    assert (stock.orphans, stock.missing, stock.leftovers) == ([], [], [])


def test_a_file_without_row_is_taken_in_and_scored(bench: Bench) -> None:
    name = put(bench)
    assert take_stock(bench.database, bench.spool, 600).orphans == [name]
    keep_house(bench)
    bench.score()
    assert only(bench.rows())["decision"] == "positive"
    assert only(bench.instances()).calling_ae_title == ""
    assert take_stock(bench.database, bench.spool, 0).orphans == []


def test_a_file_that_may_be_on_its_way_is_left_alone(bench: Bench) -> None:
    put(bench, age_seconds=5)
    keep_house(bench)
    assert bench.rows() == []


def test_a_damaged_file_without_row_is_neither_taken_in_nor_removed(bench: Bench) -> None:
    name = put(bench)
    with bench.spool.path(name).open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"xxx")
    then = time.time() - HOUR
    os.utime(bench.spool.path(name), (then, then))
    keep_house(bench)
    assert (bench.rows(), files(bench)) == ([], {name})
    assert take_stock(bench.database, bench.spool, 600).orphans == [name]


def test_a_row_without_file_is_found_by_status_and_comes_back_with_its_file(bench: Bench) -> None:
    name = bench.receive(radiograph())
    content = bench.spool.path(name).read_bytes()
    bench.spool.remove(name)
    (missing,) = take_stock(bench.database, bench.spool, 600).missing
    assert (missing.digest, missing.sop_instance_uid) == (name, uid("1", 1))
    found = snapshot(bench.settings, bench.database, datetime.now(UTC), with_files=True)
    assert any("1 object is missing from the spool" in problem for problem in found.problems)
    keep_house(bench)
    assert len(bench.rows()) == 1
    bench.spool.path(name).write_bytes(content)
    assert take_stock(bench.database, bench.spool, 600).missing == []


def test_status_names_files_without_row(bench: Bench) -> None:
    put(bench, number=1)
    put(bench, number=2)
    found = snapshot(bench.settings, bench.database, datetime.now(UTC), with_files=True)
    assert any("2 objects are in the spool without a row" in problem for problem in found.problems)


# Retention


def test_the_files_of_a_study_that_is_through_are_removed_and_its_rows_stay(bench: Bench) -> None:
    through(bench, images=3)
    before = bench.rows()
    keep_house(bench)
    assert files(bench) == set()
    assert bench.rows() == before
    assert all(one.removed_at is not None for one in bench.instances())
    assert take_stock(bench.database, bench.spool, 0).missing == []


@pytest.mark.parametrize(
    "unfinished",
    [
        update(Job).where(Job.kind == Kind.SCORE).values(state="ready"),
        update(Job).where(Job.kind == Kind.SCORE).values(state="failed"),
        update(Job).where(Job.kind == Kind.REPORT).values(state="ready"),
        update(Delivery).values(state="pending"),
        update(Delivery).values(state="failed"),
        update(Study).values(last_received_at=datetime.now(UTC) - timedelta(days=6)),
    ],
    ids=["to be scored", "score failed", "to be reported", "to be delivered", "delivery failed", "too young"],
)
def test_nothing_is_removed_before(bench: Bench, unfinished: object) -> None:
    names = through(bench)
    with bench.database.write() as session:
        session.execute(unfinished)  # type: ignore[call-overload]
    keep_house(bench)
    assert files(bench) == set(names)


def test_nothing_is_removed_while_a_destination_has_yet_to_commit(bench: Bench) -> None:
    names = through(bench)
    with bench.database.write() as session:
        enqueue(session, Kind.COMMIT, session.scalars(select(Delivery.id)).one(), lane="PACS")
    keep_house(bench)
    assert files(bench) == set(names)


def test_what_a_destination_that_is_no_more_has_yet_to_get_can_be_abandoned(bench: Bench) -> None:
    names = through(bench)
    with bench.database.write() as session:
        session.execute(update(Delivery).values(state="pending"))
        session.execute(update(Job).where(Job.kind == Kind.DELIVER).values(state="ready"))
    keep_house(bench)
    assert files(bench) == set(names)
    with bench.database.write() as session:
        assert status.abandon(session, "OTHER", datetime.now(UTC)) == 0
        assert status.abandon(session, "PACS", datetime.now(UTC)) == 1
    assert (only(bench.deliveries()).state, bench.states(Kind.DELIVER)) == ("abandoned", ["done"])
    assert bench.retry() == 0
    keep_house(bench)
    assert files(bench) == set()


def test_nothing_is_removed_unless_asked_for(bench: Bench) -> None:
    names = through(bench)
    bench.settings = bench.settings.model_copy(update={"retention": RetentionSettings()})
    keep_house(bench)
    assert files(bench) == set(names)


def test_what_a_crash_left_of_a_removal_is_removed(bench: Bench) -> None:
    names = through(bench, images=2)
    now = datetime.now(UTC)
    with bench.database.write() as session:
        study = session.scalars(select(Study.id)).one()
        assert sorted(stock_rows.release(session, study, now, now)) == sorted(names)
    assert files(bench) == set(names)  # the crash
    keep_house(bench)
    assert files(bench) == set()


def test_an_image_that_comes_to_a_study_that_is_being_released_keeps_its_file(bench: Bench) -> None:
    through(bench)
    before = datetime.now(UTC) - timedelta(days=7)
    with bench.database.read() as session:
        (study,) = stock_rows.spent(session, before, 10)
    late = bench.receive(radiograph(number=2))
    with bench.database.write() as session:
        assert stock_rows.release(session, study, before, datetime.now(UTC)) == []
    assert late in files(bench)


def test_an_object_that_comes_again_while_its_file_is_removed_is_kept_or_refused(bench: Bench) -> None:
    (name,) = through(bench)
    now = datetime.now(UTC)
    with bench.database.write() as session:
        stock_rows.release(session, session.scalars(select(Study.id)).one(), now, now)
    image = radiograph()
    received = save(image, bench.spool.incoming / "received")
    new = described(
        identity(read_header(received)),
        transfer_syntax_uid=str(image.file_meta.TransferSyntaxUID),
        digest=name,
        size=received.stat().st_size,
        calling_ae_title="CR1",
    )
    # Its file is in its place, and is removed before its row is written: no Success
    bench.spool.keep(received, name)
    bench.spool.remove(name)
    with pytest.raises(Refused):
        record(bench.database, bench.spool, new, 0)
    assert only(bench.instances()).removed_at is not None
    # Its row is written first: the file stays
    bench.spool.keep(save(image, bench.spool.incoming / "received"), name)
    record(bench.database, bench.spool, new, 0)
    keeper = Housekeeper(bench.settings, bench.database, bench.spool)
    keeper._remove([name])
    assert files(bench) == {name}
    assert only(bench.instances()).removed_at is None


def test_a_removed_image_can_still_be_part_of_a_later_report(bench: Bench) -> None:
    through(bench)
    keep_house(bench)
    bench.receive(radiograph(number=2))
    bench.score()
    bench.report()
    assert len(bench.reports()) == 2


def test_housekeeping_ends_when_told_to(bench: Bench) -> None:
    keeper = Housekeeper(bench.settings, bench.database, bench.spool)
    put(bench)
    thread = threading.Thread(target=keeper.run)
    thread.start()
    keeper.stop()
    thread.join(20)
    assert not thread.is_alive()


def test_a_later_object_brings_its_instance_back(bench: Bench) -> None:
    (name,) = through(bench)
    keep_house(bench)
    assert bench.receive(radiograph()) == name
    with bench.database.read() as session:
        assert session.scalars(select(Instance.removed_at)).one() is None
