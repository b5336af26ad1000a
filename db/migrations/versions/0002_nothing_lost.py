"""Storage commitment, retention, and the view `ledger`: what became of each image at each destination."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add what is new; rows that are there keep all they say."""
    op.add_column("instance", sa.Column("removed_at", _MOMENT))
    op.create_index("ix_instance_digest", "instance", ["digest"])
    _change_delivery()
    _create_commitment()
    op.execute(_LEDGER)


def _change_delivery() -> None:
    if op.get_bind().dialect.name == "sqlite":
        # SQLite cannot change a constraint: the table is made anew, under the view that reads it
        op.execute("PRAGMA legacy_alter_table = ON")
    with op.batch_alter_table("delivery") as batch:
        batch.drop_constraint(op.f("ck_delivery_state"), type_="check")
        batch.create_check_constraint(
            op.f("ck_delivery_state"), "state IN ('pending', 'delivered', 'committed', 'failed', 'abandoned')"
        )
        batch.add_column(sa.Column("delivered_at", _MOMENT))
        batch.add_column(sa.Column("committed_at", _MOMENT))
    if op.get_bind().dialect.name == "sqlite":
        op.execute("PRAGMA legacy_alter_table = OFF")
    op.execute("UPDATE delivery SET delivered_at = updated_at WHERE state = 'delivered'")


def _create_commitment() -> None:
    op.create_table(
        "commitment_asked",
        sa.Column("transaction_uid", sa.String(64), nullable=False),
        sa.Column("destination", sa.String(32), nullable=False),
        sa.Column("asked_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("transaction_uid", name="pk_commitment_asked"),
    )
    op.create_table(
        "commitment_wanted",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("calling_ae_title", sa.String(16), nullable=False),
        sa.Column("transaction_uid", sa.String(64), nullable=False),
        sa.Column("sop_references", sa.Text, nullable=False),
        sa.Column("asked_at", _MOMENT, nullable=False),
        sa.Column("give_up_at", _MOMENT, nullable=False),
        sa.Column("answered_at", _MOMENT),
        sa.Column("committed", sa.Integer),
        sa.Column("refused", sa.Integer),
        sa.PrimaryKeyConstraint("id", name="pk_commitment_wanted"),
        sa.UniqueConstraint(
            "calling_ae_title",
            "transaction_uid",
            name="uq_commitment_wanted_calling_ae_title_transaction_uid",
        ),
    )


# One row for each received image and each destination of the newest report that states it; one row without
# destination where there is no report, or it goes nowhere. Columns are added at its end, never renamed.
_LEDGER = """
CREATE VIEW ledger AS
SELECT
    study.study_instance_uid,
    study.accession_number,
    study.patient_id,
    instance.sop_instance_uid,
    instance.calling_ae_title,
    instance.received_at,
    instance.removed_at,
    COALESCE(score.decision, CASE job.state WHEN 'failed' THEN 'not_scored' ELSE 'waiting' END) AS decision,
    score.probability,
    score.scored_at,
    report.sop_instance_uid AS report_uid,
    report.revision AS report_revision,
    report.made_at AS reported_at,
    delivery.destination,
    delivery.state,
    delivery.tries,
    delivery.sop_instance_uid AS sent_uid,
    delivery.status,
    delivery.delivered_at,
    delivery.committed_at,
    delivery.give_up_at,
    delivery.error
FROM instance
JOIN study ON study.id = instance.study_id
LEFT JOIN job ON job.kind = 'score' AND job.ref = instance.id
LEFT JOIN score ON score.id = (SELECT MAX(s.id) FROM score s WHERE s.instance_id = instance.id)
LEFT JOIN report ON report.id = (
    SELECT MAX(i.report_id) FROM report_image i WHERE i.instance_id = instance.id
)
LEFT JOIN delivery ON delivery.report_id = report.id
"""
