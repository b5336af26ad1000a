"""Own reports that came back, in a database of an earlier version."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text

from db.models import Score
from db.results import Filter, results
from db.session import Database
from tests.helpers import rows


def test_an_upgrade_knows_own_reports_that_were_taken_for_images(database: Database) -> None:
    rows.receive(database, rows.new(1))
    sent = rows.report(database, {rows.instance_id(database): rows.score(database)})
    for number, uid in ((2, sent), (3, None)):  # the report, as a PACS sent it back; and an object of others
        named = {} if uid is None else {"sop_instance_uid": uid}
        rows.receive(database, rows.new(number, sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34", **named))
    refused: dict[str, Any] = {"probability": None, "decision": "not_scored", "view": None}
    refused |= {"reason": "NOT_RADIOGRAPH", "detail": "It is SR"}
    with database.read() as session:
        ids = [*session.execute(text("SELECT id FROM instance ORDER BY id")).scalars()]
    for instance in ids[1:]:
        rows.score(database, instance_id=instance, **refused)
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0011'"))
    database.upgrade()
    reasons = [(row.instance_id, row.reason, row.detail) for row in rows.rows(database, Score)]
    assert reasons == [
        (ids[0], None, ""),
        (ids[1], "OWN_RESULT", "It is a report of this node"),
        (ids[2], "NOT_RADIOGRAPH", "It is SR"),
    ]
    with database.read() as session:
        shown = {row["reason"] for row in results(session, Filter(with_results=False))}
    assert shown == {None, "NOT_RADIOGRAPH"}
