"""Verdicts of people, and who looked at what."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Add what people say and do at the reading list."""
    op.create_table(
        "verdict",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("instance_id", _KEY, nullable=False),
        sa.Column("score_id", _KEY),
        sa.Column("label", sa.String(32), nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("person", sa.String(64), nullable=False),
        sa.Column("score_was_visible", sa.Boolean, nullable=False),
        sa.Column("given_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_verdict"),
        sa.ForeignKeyConstraint(["instance_id"], ["instance.id"], name="fk_verdict_instance_id"),
        sa.ForeignKeyConstraint(["score_id"], ["score.id"], name="fk_verdict_score_id"),
        sa.CheckConstraint("label IN ('agree', 'pneumonia', 'no_pneumonia', 'unreadable')", name="label"),
    )
    op.create_index("ix_verdict_instance_id", "verdict", ["instance_id"])
    op.create_table(
        "audit",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("person", sa.String(64), nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("study_id", _KEY),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name="fk_audit_study_id"),
    )
    op.create_index("ix_audit_study_id", "audit", ["study_id"])
    op.execute(_VERDICTS)


# One row for each verdict; all stay, and the last one of an image counts. Columns are added at its end.
_VERDICTS = """
CREATE VIEW verdicts AS
SELECT
    study.study_instance_uid,
    instance.sop_instance_uid,
    verdict.label,
    verdict.comment,
    verdict.person,
    verdict.given_at,
    verdict.score_was_visible,
    score.decision,
    score.probability,
    CASE WHEN EXISTS (
        SELECT 1 FROM verdict newer WHERE newer.instance_id = verdict.instance_id AND newer.id > verdict.id
    ) THEN 0 ELSE 1 END AS counts
FROM verdict
LEFT JOIN instance ON instance.id = verdict.instance_id
LEFT JOIN study ON study.id = instance.study_id
LEFT JOIN score ON score.id = verdict.score_id
"""
