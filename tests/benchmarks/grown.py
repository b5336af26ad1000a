"""A results database as after five years: raw SQL fills it, on both engines, in a minute for each million."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from string import Template

import psycopg

from db.session import sqlite

WAITING = 300  # images that came last, and are not scored yet
FAILED = 50  # deliveries that were given up
YEARS = 5.0
_SPAN = YEARS * 365.25 * 86400
_CONTENT = 300  # bytes of a report; 10,000 are usual, but no statement here reads those of more than a few

# Digests and patients are scattered over their indexes, as in life: no page is near the last one
_DIALECTS = {
    "sqlite": {
        "n": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $most)",
        "moment": "strftime('%Y-%m-%d %H:%M:%f000', $at, 'unixepoch')",
        "day": "strftime('%Y%m%d', $at, 'unixepoch')",
        "digest": "printf('%08x%056d', i * 2654435761 % 4294967296, 0)",
        "content": f"zeroblob({_CONTENT})",
    },
    "postgresql": {
        "n": "WITH n AS (SELECT i FROM generate_series(1::bigint, $most) AS i)",
        "moment": "to_timestamp($at)",
        "day": "to_char(to_timestamp($at) AT TIME ZONE 'UTC', 'YYYYMMDD')",
        "digest": "lpad(to_hex(i * 2654435761 % 4294967296), 8, '0') || repeat('0', 56)",
        "content": f"decode(repeat('00', {_CONTENT}), 'hex')",
    },
}
# As eight modalities make them: a root, the device, the second and a number
_UID = "'1.2.826.0.1.3680043.8.498.' || (i % 8 + 1) || '.' || CAST($at AS bigint) || '.' || i"
# Studies have one image and two by turns: image i belongs to study (2i + 2) / 3
_STUDY = """
INSERT INTO study (id, study_instance_uid, patient_id, patient_name, accession_number, study_date,
                   first_received_at, last_received_at, quiet_at)
$n
SELECT i, $uid || '.1', 'P' || (i * 2654435761 % 4294967296 % ($studies / 3 + 1)),
       'DOE^' || (i * 2654435761 % 4294967296 % ($studies / 3 + 1)), 'A' || (1000000000 + i), $day,
       $moment, $moment, $at
FROM n
"""
_INSTANCE = """
INSERT INTO instance (id, study_id, sop_instance_uid, copy, sop_class_uid, series_instance_uid,
                      transfer_syntax_uid, modality, view_position, digest, size, calling_ae_title,
                      received_at)
$n
SELECT i, (2 * i + 2) / 3, $uid, 0, '1.2.840.10008.5.1.4.1.1.1.1', $uid || '.2', '1.2.840.10008.1.2.1', 'DX',
       CASE i % 3 WHEN 0 THEN 'LL' ELSE 'PA' END, $digest, 8000000, 'MODALITY', $moment
FROM n
"""
# Of a schema that keeps patient and order of each image; one that does not has the study's alone
_IDENTITY = """
UPDATE instance SET (patient_id, patient_name, accession_number, study_date, issuer_of_patient_id,
                     patient_birth_date)
    = (SELECT patient_id, patient_name, accession_number, study_date, '', ''
       FROM study WHERE study.id = instance.study_id)
"""
_MODEL = """
INSERT INTO model (id, sha256, name, version, threshold, preprocessing, card, last_started_at)
$n SELECT i, $digest, 'DenseNet121', '1', 0.5, '', '{}', $moment FROM n
"""
# Of the frontal images 8 % have a probability of at least 0.5, 1.3 % of 0.9, 0.13 % of 0.99
_SCORE = """
INSERT INTO score (id, instance_id, model_id, probability, threshold, decision, reason, detail, view, novelty,
                   age, scored_at)
$n
SELECT i, i, 1, CASE WHEN i % 3 > 0 THEN p END, 0.5,
       CASE WHEN i % 3 = 0 THEN 'not_scored' WHEN p >= 0.5 THEN 'positive' ELSE 'negative' END,
       CASE i % 3 WHEN 0 THEN 'NOT_FRONTAL' END, '', CASE i % 3 WHEN 0 THEN 'LL' ELSE 'PA' END, 0.5, 40.0,
       $moment
FROM (SELECT i, u * u * u * u * u * u * u * u AS p
      FROM (SELECT i, CAST(i * 2654435761 % 4294967296 AS double precision) / 4294967296 AS u FROM n) AS even
     ) AS skewed
"""
_REPORT = """
INSERT INTO report (id, study_id, revision, sop_class_uid, sop_instance_uid, series_instance_uid, content,
                    made_at)
$n
SELECT i, i, 1, '1.2.840.10008.5.1.4.1.1.88.34', $uid || '.3', $uid || '.4', $content, $moment FROM n
"""
_REPORT_IMAGE = """
INSERT INTO report_image (report_id, instance_id, score_id) $n SELECT (2 * i + 2) / 3, i, i FROM n
"""
_DELIVERY = """
INSERT INTO delivery (id, report_id, destination, state, tries, give_up_at, sop_class_uid, sop_instance_uid,
                      status, updated_at, delivered_at)
$n
SELECT i, i, 'PACS',
       CASE WHEN i > $most - $failed THEN 'failed' WHEN i > $most / 2 THEN 'delivered' ELSE 'committed' END,
       0, $moment,
       '1.2.840.10008.5.1.4.1.1.88.34', $uid || '.3', 0, $moment, $moment
FROM n
"""
_JOB = """
INSERT INTO job (kind, lane, ref, state, visible_at, attempts, error)
$n
SELECT '$kind', '$lane', i, CASE WHEN i > $most - $open THEN '$state' ELSE 'done' END, $at, 0,
       CASE WHEN i > $most - $open THEN 'Broken' END
FROM n
"""

_UNIQUE = """
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE contype = 'u' AND connamespace = 'public'::regnamespace
"""
_INDEXES = """
SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index
WHERE NOT indisprimary
  AND indrelid::regclass::text IN (SELECT tablename FROM pg_tables WHERE schemaname = 'public')
"""
_NUMBERED = """
SELECT table_name FROM information_schema.columns
WHERE column_name = 'id' AND column_default LIKE 'nextval%' AND table_schema = 'public'
"""
_KEEPS_IDENTITY = """
SELECT 1 FROM information_schema.columns
WHERE table_name = 'instance' AND column_name = 'image_id' AND table_schema = 'public'
"""


def fill(url: str, rows: int) -> None:
    """Fill an upgraded, empty database with so many images, nearly all scored, reported and delivered."""
    is_sqlite = url.startswith("sqlite")
    statements = [*_statements("sqlite" if is_sqlite else "postgresql", rows)]
    if is_sqlite:
        _fill_sqlite(Path(url.removeprefix("sqlite:///")), statements)
    else:
        _fill_postgresql(url.replace("+psycopg", ""), statements)


def _statements(dialect: str, rows: int) -> Iterator[str]:
    start = time.time() - _SPAN
    images, studies = rows - WAITING, (2 * (rows - WAITING) + 2) // 3
    every, reported = rows, studies - 1
    of_studies, of_images = _SPAN / ((2 * every + 2) // 3), _SPAN / every

    def filled(template: str, most: int, step: float, **values: object) -> str:
        at = f"(CAST({start:.3f} AS double precision) + i * CAST({step:.9f} AS double precision))"
        known = {"at": at, "most": most, "studies": studies} | values
        words = {name: Template(word).substitute(known) for name, word in _DIALECTS[dialect].items()}
        return Template(template).substitute(known, **words, uid=Template(_UID).substitute(known))

    yield filled(_MODEL, 1, 1.0)
    yield filled(_STUDY, (2 * every + 2) // 3, of_studies)
    yield filled(_INSTANCE, every, of_images)
    yield filled(_SCORE, images, of_images)
    yield filled(_REPORT, reported, of_studies)
    yield filled(_REPORT_IMAGE, (3 * reported) // 2, of_images)
    yield filled(_DELIVERY, reported, of_studies, failed=FAILED)
    for kind, lane, most, of, number, state in (
        ("score", "", every, of_images, WAITING, "ready"),
        ("report", "", (2 * every + 2) // 3, of_studies, (2 * WAITING) // 3, "ready"),
        ("page", "", reported, of_studies, 0, ""),
        ("deliver", "PACS", reported, of_studies, FAILED, "failed"),
        ("commit", "PACS", reported // 2, of_studies, 0, ""),
    ):
        yield filled(_JOB, most, of, kind=kind, lane=lane, open=number, state=state)


def _fill_sqlite(file: Path, statements: list[str]) -> None:
    with closing(sqlite.connect(file, isolation_level=None)) as connection:
        for pragma in ("synchronous=OFF", "journal_mode=OFF", "foreign_keys=OFF", "cache_size=-4000000"):
            connection.execute(f"PRAGMA {pragma}")
        known = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        indexes = connection.execute(known).fetchall()
        for name, _ in indexes:
            connection.execute(f"DROP INDEX {name}")
        for statement in statements:
            connection.execute(statement)
        if "image_id" in {row[1] for row in connection.execute("PRAGMA table_info(instance)")}:
            connection.execute(_IDENTITY)
        for _, statement in indexes:
            connection.execute(statement)
    with file.open("rb") as written:
        os.fsync(written.fileno())  # or the first commit measured would wait for all this


def _fill_postgresql(url: str, statements: list[str]) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        run = connection.execute
        run("SET session_replication_role = replica")  # no foreign key is looked up
        run("SET maintenance_work_mem = '1GB'")
        run("SET synchronous_commit = off")
        unique = run(_UNIQUE).fetchall()
        for table, name, _ in unique:
            run(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
        indexes = run(_INDEXES).fetchall()
        for name, _ in indexes:
            run(f"DROP INDEX {name}")
        for statement in statements:
            run(statement)
        if run(_KEEPS_IDENTITY).fetchone():
            run(_IDENTITY)
        for table, name, definition in unique:
            run(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")
        for _, definition in indexes:
            run(definition)
        for (table,) in run(_NUMBERED).fetchall():
            run(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT MAX(id) FROM {table}))")
        run("VACUUM (ANALYZE)")
        run("CHECKPOINT")
