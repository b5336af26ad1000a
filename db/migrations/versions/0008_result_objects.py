"""Objects that are made beside a report, such as its page; they are delivered like reports."""

from importlib import import_module

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_VIEWS = ("results", "studies", "ledger")


def upgrade() -> None:
    """Add the table and say of each delivery what it delivers: so far, a report."""
    op.create_table(
        "result_object",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("report_id", _KEY, nullable=False),
        sa.Column("result", sa.String(32), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("sop_class_uid", sa.String(64), nullable=False),
        sa.Column("sop_instance_uid", sa.String(64), nullable=False),
        sa.Column("series_instance_uid", sa.String(64), nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_result_object"),
        sa.ForeignKeyConstraint(["report_id"], ["report.id"], name="fk_result_object_report_id"),
        sa.UniqueConstraint("report_id", "result", "number", name="uq_result_object_report_id_result_number"),
        sa.UniqueConstraint("sop_instance_uid", name="uq_result_object_sop_instance_uid"),
    )
    for view in _VIEWS:  # they would hinder SQLite from making the table anew
        op.execute(f"DROP VIEW {view}")
    _change_delivery()
    dialect = op.get_bind().dialect.name
    for view in (_results(dialect), _studies(dialect), _ledger()):
        op.execute(view)


def _change_delivery() -> None:
    with op.batch_alter_table("delivery") as batch:
        batch.add_column(sa.Column("result", sa.String(32), nullable=False, server_default="report"))
        batch.add_column(sa.Column("number", sa.Integer, nullable=False, server_default="0"))
        batch.drop_constraint(op.f("uq_delivery_report_id_destination"), type_="unique")
        batch.create_unique_constraint(
            op.f("uq_delivery_report_id_destination_result_number"),
            ["report_id", "destination", "result", "number"],
        )


# The views say of other results than reports which they are. Moments are those of reports, as before; only
# `ledger` has rows for all, and says at its end what was delivered.
_SAID = "delivery.destination || ': ' || delivery.state"
_SAID_OF_ALL = (
    "delivery.destination || CASE delivery.result WHEN 'report' THEN '' ELSE ' ' || delivery.result END"
    " || ': ' || delivery.state"
)


def _results(dialect: str) -> str:
    before = import_module("db.migrations.versions.0006_acquisition")
    said = _changed(before._DELIVERIES[dialect], _SAID, _SAID_OF_ALL)
    return _changed(before._RESULTS, "{deliveries}", said)


def _studies(dialect: str) -> str:
    before = import_module("db.migrations.versions.0005_studies")
    made = _changed(before._studies(dialect), _SAID, _SAID_OF_ALL)
    is_not_abandoned = "AND delivery.state <> 'abandoned'"
    return _changed(made, is_not_abandoned, f"{is_not_abandoned} AND delivery.result = 'report'")


def _ledger() -> str:
    before = import_module("db.migrations.versions.0005_studies")
    return _changed(before._LEDGER, " AS detail\nFROM", " AS detail,\n    delivery.result\nFROM")


def _changed(text: str, old: str, new: str) -> str:
    if old not in text:
        raise ValueError(f"a view of an earlier version has no {old!r}")
    return text.replace(old, new)
