"""What results say of how an image was made: also of images of an earlier version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from db import stock
from db.models import Instance
from db.results import Filter, results
from db.session import Database
from pacs_node.storage.housekeeper import Housekeeper
from pacs_node.storage.rereading import reread
from tests.conftest import radiograph
from tests.helpers.commands import command, configure
from tests.helpers.workbench import Bench

UNREAD = dict.fromkeys(
    (
        *("patient_sex", "patient_age", "study_time", "station_name", "institution_name", "manufacturer"),
        *("manufacturer_model_name", "device_serial_number", "software_versions"),
        *("presentation_intent_type", "image_rows", "image_columns", "bits_stored"),
    )
)


def asked(database: Database) -> list[dict[str, Any]]:
    with database.read() as session:
        return results(session, Filter(limit=10))


def test_an_image_without_a_score_has_its_age_and_its_device_in_the_results(
    database: Database, tmp_path: Path
) -> None:
    bench = Bench(database, tmp_path)
    bench.receive(radiograph(view="LL"))
    (row,) = asked(database)
    assert (row["decision"], row["age"], row["patient_sex"]) == ("waiting", 4.0, "F")
    assert (row["manufacturer"], row["manufacturer_model_name"]) == ("ACME X-ray", "RX-1")
    assert (row["calling_ae_title"], row["bits_stored"]) == ("MODALITY", radiograph().BitsStored)
    bench.score()
    (row,) = asked(database)
    assert (row["probability"], row["age"]) == (None, 4.0)


def test_what_an_earlier_version_did_not_record_is_read_from_the_file_once(
    database: Database, tmp_path: Path
) -> None:
    bench = Bench(database, tmp_path)
    bench.receive(radiograph())
    before = asked(database)
    with database.write() as session:
        session.execute(update(Instance).values(**UNREAD))
    assert asked(database)[0]["manufacturer"] is None
    Housekeeper(bench.settings, database, bench.spool).work_once()
    assert asked(database) == before
    with database.read() as session:
        assert stock.unread(session, None, 10) == []


def test_the_command_upgrade_reads_them_all_and_says_what_it_could_not_read(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    configure(tmp_path, database_url, 104, spool=f'[spool]\npath = "{tmp_path / "spool"}"')
    bench = Bench(database, tmp_path)
    for number in range(60):  # more than one batch
        content = bench.receive(radiograph(number=number))
    before = asked(database)
    bench.spool.path(content).unlink()
    with database.write() as session:
        session.execute(update(Instance).values(**UNREAD))
    done = command("upgrade", "--config", tmp_path / "config.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "The database is of this version. 0 decisions were read from reports, 59 objects from their files.",
        "1 could not be read; `pacs-node status` says which files are missing.",
    ]
    lost = before[0]["sop_instance_uid"]
    now = {row["sop_instance_uid"]: row for row in asked(database)}
    assert now.pop(lost)["manufacturer"] is None
    assert list(now.values()) == before[1:]


def test_what_was_read_stays_when_the_reading_is_interrupted(database: Database, tmp_path: Path) -> None:
    bench = Bench(database, tmp_path)
    for number in range(120):
        bench.receive(radiograph(number=number))
    with database.write() as session:
        session.execute(update(Instance).values(**UNREAD))

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reread(database, bench.spool, step=interrupt)
    steps: list[int] = []
    assert reread(database, bench.spool, step=steps.append) == 70
    assert steps == [50, 20]
    with database.read() as session:
        assert stock.how_many_unread(session) == 0
