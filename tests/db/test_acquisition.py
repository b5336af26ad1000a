"""What results say of how an image was made: also of images of an earlier version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import update

from db import stock
from db.models import Instance
from db.results import Filter, results
from db.session import Database
from pacs_node.storage.housekeeper import Housekeeper
from tests.conftest import radiograph
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
