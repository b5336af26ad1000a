"""Rows for research: nothing in them tells who a patient is, and what belongs together still does."""

from __future__ import annotations

import csv
import io
import json
import stat
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import UID
from sqlalchemy import update

from db import listings
from db.listings import LEDGER, RESULTS, SCORES, STUDIES
from db.models import Delivery, Instance, Study
from db.results import DELIVERY_COLUMNS, Filter
from db.session import Database
from pacs_node.errors import UserError
from pacs_node.terminal.deidentify import Deidentifier, key_of
from tests.conftest import radiograph
from tests.helpers.commands import command, configure
from tests.helpers.databases import only_sqlite
from tests.helpers.workbench import Bench

KEY = b"k" * 32
SECRETS = (
    "DOE",
    "JANE",
    "SECRET-ID",
    "ORDER-77",
    "SENDER-AE",
    "ROOM-4",
    "SN-123",
    "St. Elsewhere",
    "ARCHIVE-X",
)
VIEWS = (RESULTS, STUDIES, SCORES, LEDGER)


def receive(bench: Bench, number: int, **tags: Any) -> None:
    named = {"PatientName": "DOE^JANE", "PatientID": "SECRET-ID", "AccessionNumber": "ORDER-77"}
    made = {"StationName": "ROOM-4", "DeviceSerialNumber": "SN-123", "InstitutionName": "St. Elsewhere"}
    bench.receive(radiograph(number=number, **{**named, **made, "StudyTime": "101530", **tags}))


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Bench:
    bench = Bench(database, tmp_path)
    receive(bench, 1)
    receive(bench, 2, view="LL")
    bench.score()
    bench.hurry()
    bench.report()
    with database.write() as session:
        session.execute(update(Instance).values(calling_ae_title="SENDER-AE"))
        said = {"error": "ARCHIVE-X at 10.0.0.5 refused", "sop_instance_uid": "1.2.3.4"}
        session.execute(update(Delivery).values(destination="ARCHIVE-X", **said))
    return bench


def rows(bench: Bench, of: listings.Listing) -> list[dict[str, Any]]:
    with bench.database.read() as session:
        return list(listings.rows(session, of, Filter()))


def hidden(bench: Bench, of: listings.Listing, key: bytes = KEY) -> list[dict[str, Any]]:
    return list(Deidentifier(key).rows(rows(bench, of)))


@pytest.mark.parametrize("of", VIEWS, ids=lambda of: of.name)
def test_nothing_tells_who_the_patient_is(bench: Bench, of: listings.Listing) -> None:
    plain, without = rows(bench, of), hidden(bench, of)
    assert any(secret in repr(plain) for secret in SECRETS)
    said = repr(without)
    own = [
        value
        for row in plain
        for name, value in row.items()
        if name.endswith("_uid") and "sop_cl" not in name
    ]
    uids = [uid for uid in own if uid and not uid.startswith("1.2.840.10008.")]
    assert uids
    assert not [one for one in (*SECRETS, *uids, "10.0.0.5") if one in said]
    for before, after in zip(plain, without, strict=True):
        assert list(before) == list(after) == list(of.columns)
        for name, value in after.items():
            if name.endswith("_at") and value is not None:
                assert timedelta(days=1) <= before[name] - value <= timedelta(days=3651)


def test_every_column_of_every_view_has_a_rule(bench: Bench) -> None:
    for columns in (*(of.columns for of in VIEWS), DELIVERY_COLUMNS):
        row = {**dict.fromkeys(columns), "study_instance_uid": "1.2"}
        Deidentifier(KEY).row(row)
    with pytest.raises(KeyError):
        Deidentifier(KEY).row({"study_instance_uid": "1.2", "a_new_column": "DOE^JANE"})


def test_what_belongs_together_still_does(bench: Bench) -> None:
    images, (study,), scores, ledger = (hidden(bench, of) for of in VIEWS)
    for name in ("patient_id", "study_instance_uid", "accession_number"):
        assert {row[name] for row in (*images, *scores, *ledger)} == {study[name]}
    assert {row["sop_instance_uid"] for row in images} == {row["sop_instance_uid"] for row in scores}
    assert {row["report_uid"] for row in (*images, *ledger)} == {study["report_uid"]}
    assert {row["study_date"] for row in images} == {study["study_date"]}
    assert all(UID(row["sop_instance_uid"]).is_valid for row in images)
    plain = rows(bench, RESULTS)
    kept = ("probability", "decision", "reason", "age", "manufacturer", "view", "model_sha256", "patient_sex")
    assert [[row[name] for name in kept] for row in images] == [[row[name] for name in kept] for row in plain]
    shifts = [a["received_at"] - b["received_at"] for a, b in zip(plain, images, strict=True)]
    assert len(set(shifts)) == 1  # of one patient, so that intervals stay


def test_another_key_gives_other_pseudonyms_and_another_patient_another_shift(bench: Bench) -> None:
    (mine,), (yours,) = hidden(bench, STUDIES), hidden(bench, STUDIES, b"x" * 32)
    for name in ("patient_id", "study_instance_uid", "report_uid", "last_received_at", "accession_number"):
        assert mine[name] != yours[name]
    by = Deidentifier(KEY)
    at = datetime(2026, 11, 1, tzinfo=UTC)
    row = {"study_instance_uid": "1.2", "patient_id": "", "received_at": at}
    shifted = [
        by.row(one)["received_at"] for one in (row, {**row, "patient_id": "A"}, {**row, "patient_id": "B"})
    ]
    assert len(set(shifted)) == 3
    assert by.row({**row, "accession_number": ""})["accession_number"] == ""
    assert by.pseudonym("PATIENT", "1") != by.pseudonym("ORDER", "1").replace("ORDER", "PATIENT")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("age", 89.9, 89.9),
        ("age", 90.5, 90.0),
        ("age", 104.0, 90.0),
        ("patient_sex", "F", "F"),
        ("patient_sex", "JANE DOE", None),
        ("study_date", "unknown", None),
        ("study_date", "", None),
        ("study_date", "00010101", None),  # there is no date so long before
        ("study_time", "101530", None),
        ("detail", "It is JANE", None),
    ],
)
def test_single_values(name: str, value: Any, expected: Any) -> None:
    row = {"study_instance_uid": "1.2", "patient_id": "A", name: value}
    assert Deidentifier(KEY).row(row)[name] == expected


def test_a_key_file_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "study.key"
    key = key_of(path)
    assert len(key) == 32
    assert key_of(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for content in ("", "abc", "zz" * 32):
        path.write_text(content)
        with pytest.raises(UserError, match="holds no key"):
            key_of(path)
    with pytest.raises(UserError, match="Cannot use the key file"):
        key_of(tmp_path / "nowhere" / "study.key")


@pytest.fixture
def options(bench: Bench, database_url: str, tmp_path: Path) -> Sequence[object]:
    configure(tmp_path, database_url, 104)
    return ("--config", tmp_path / "config.toml")


@only_sqlite
def test_the_commands_write_each_form(bench: Bench, options: Sequence[object], tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    key = ("--deidentify", "--key", tmp_path / "study.key")
    for name in ("results", "studies", "scores", "ledger"):
        table = command(name, *options)
        assert table.returncode == 0, table.stderr
        assert "SECRET-ID" in table.stdout
        assert "SECRET-ID" not in command(name, *key, *options).stdout
        written = [
            command(name, *key, "--format", form, *target, *options)
            for form, target in (
                ("csv", ()),
                ("json", ()),
                ("parquet", ("--out", tmp_path / f"{name}.parquet")),
            )
        ]
        assert [(done.returncode, done.stderr) for done in written] == [(0, "")] * 3
        from_csv = list(csv.DictReader(io.StringIO(written[0].stdout)))
        from_json = json.loads(written[1].stdout)
        frame = pq.read_table(tmp_path / f"{name}.parquet").to_pylist()
        assert not [one for one in SECRETS if one in written[0].stdout + written[1].stdout + repr(frame)]

        def uids(rows: list[dict[str, Any]]) -> list[str]:
            return sorted(row["study_instance_uid"] for row in rows)

        assert uids(from_csv) == uids(from_json) == uids(frame) != []
    assert "--key FILE keeps them" in command("results", "--deidentify", *options).stderr


@only_sqlite
def test_a_file_is_whole_or_not_there(
    bench: Bench, options: Sequence[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    out = tmp_path / "all.parquet"
    done = command("results", "--format", "parquet", "--out", out, *options)
    assert done.returncode == 0, done.stderr
    table = pq.read_table(out)
    types = {field.name: str(field.type) for field in table.schema}
    assert (types["probability"], types["received_at"]) == ("double", "timestamp[us, tz=UTC]")
    (row,) = [row for row in table.to_pylist() if row["probability"] is not None]
    assert row == next(row for row in rows(bench, RESULTS) if row["probability"] is not None)
    for form in ("csv", "json"):
        file = tmp_path / f"all.{form}"
        assert command("results", "--format", form, "--out", file, *options).returncode == 0
        assert file.read_text() == command("results", "--format", form, *options).stdout
    nowhere = command("results", "--format", "csv", "--out", tmp_path / "no" / "x.csv", *options)
    assert (nowhere.returncode, "Cannot write" in nowhere.stderr) == (2, True)
    for wrong, said in (
        (("--format", "parquet"), "say where it goes"),
        (("--out", out), "Say in which form"),
        (("--key", out), "with --deidentify alone"),
    ):
        refused = command("results", *wrong, *options)
        assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr
    assert sorted(path.name for path in tmp_path.glob(".all*")) == []


def test_a_broken_run_leaves_the_file_before_it(tmp_path: Path) -> None:
    from pacs_node.terminal.files import written_whole

    path = tmp_path / "rows.csv"
    path.write_text("before")

    def break_off() -> None:
        with written_whole(path) as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert path.read_text() == "before"
    assert [*tmp_path.iterdir()] == [path]


@only_sqlite
def test_people_see_how_many_studies_there_are(bench: Bench, options: Sequence[object]) -> None:
    with bench.database.write() as session:
        moment = datetime.now(UTC)
        more = {"patient_id": "", "patient_name": "", "accession_number": "", "study_date": "", "quiet_at": 0}
        times = {"first_received_at": moment, "last_received_at": moment}
        session.add_all(Study(study_instance_uid=f"1.2.{n}", **more, **times) for n in range(120))
    shown = command("studies", "--all", *options, COLUMNS="200")
    assert "100 of 121 studies" in shown.stderr
    assert len(json.loads(command("studies", "--all", "--format", "json", *options).stdout)) == 121
    one = command("studies", *options, COLUMNS="200")
    assert "1 of 2 scored" in one.stdout
    assert "positive" in one.stdout
