"""Scores for comparison, the view `deliveries`, and no threshold where there is no probability."""

from importlib import import_module

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

_KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Add the table, and make the views anew that show its rows."""
    op.create_table(
        "rescore",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("instance_id", _KEY, nullable=False),
        sa.Column("model_id", _KEY, nullable=False),
        sa.Column("probability", sa.Float),
        sa.Column("threshold", sa.Float, nullable=False),
        sa.Column("decision", sa.String(32), nullable=False),
        sa.Column("reason", sa.String(32)),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("view", sa.String(16)),
        sa.Column("novelty", sa.Float),
        sa.Column("age", sa.Float),
        sa.Column("scored_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_rescore"),
        sa.ForeignKeyConstraint(["instance_id"], ["instance.id"], name="fk_rescore_instance_id"),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name="fk_rescore_model_id"),
        sa.UniqueConstraint("instance_id", "model_id", name="uq_rescore_instance_id_model_id"),
        sa.CheckConstraint("(probability IS NULL) = (decision = 'not_scored')", name="scored"),
        sa.CheckConstraint("probability BETWEEN 0 AND 1", name="probability"),
        sa.CheckConstraint(
            "decision IN ('positive', 'negative', 'undetermined', 'not_scored')", name="decision"
        ),
    )
    op.execute("DROP VIEW scores")
    op.execute("DROP VIEW results")
    op.execute(_SCORES)
    op.execute(_results(op.get_bind().dialect.name))
    op.execute(_DELIVERIES)


# A threshold means nothing without a probability
_THRESHOLD = "CASE WHEN score.probability IS NOT NULL THEN score.threshold END AS threshold"


def _results(dialect: str) -> str:
    before: str = import_module("db.migrations.versions.0008_result_objects")._results(dialect)
    if "    score.threshold,\n" not in before:
        raise ValueError("the view of an earlier version has no threshold")
    return before.replace("    score.threshold,\n", f"    {_THRESHOLD},\n")


_IS_NEWEST = """CASE WHEN score.id = (SELECT MAX(s.id) FROM score s WHERE s.instance_id = score.instance_id)
        THEN 1 ELSE 0 END"""
_SCORES_OF = """
SELECT
    instance.patient_id,
    instance.accession_number,
    study.study_instance_uid,
    instance.sop_instance_uid,
    score.scored_at,
    score.probability,
    {threshold},
    score.decision,
    score.reason,
    NULLIF(score.detail, '') AS detail,
    score.view,
    score.novelty,
    score.age,
    model.name AS model_name,
    model.version AS model_version,
    model.sha256 AS model_sha256,
    {is_newest} AS is_newest,
    CASE WHEN EXISTS (
        SELECT 1 FROM instance newer WHERE newer.image_id = instance.image_id AND newer.turn > instance.turn
    ) THEN 1 ELSE 0 END AS is_replaced,
    score.instance_id,
    {is_rescore} AS is_rescore,
    instance.received_at,
    instance.patient_name
FROM {table} score
LEFT JOIN instance ON instance.id = score.instance_id
LEFT JOIN study ON study.id = instance.study_id
LEFT JOIN model ON model.id = score.model_id
"""
# One row for each score that any model ever gave. Columns are added at its end, never renamed or removed.
_SCORES = (
    "CREATE VIEW scores AS"
    + _SCORES_OF.format(table="score", is_newest=_IS_NEWEST, is_rescore=0, threshold=_THRESHOLD)
    + "UNION ALL"
    + _SCORES_OF.format(table="rescore", is_newest=0, is_rescore=1, threshold=_THRESHOLD)
)

# One row for each report, or object beside it, and destination. Columns are added at its end.
_DELIVERIES = """
CREATE VIEW deliveries AS
SELECT
    study.study_instance_uid,
    report.sop_instance_uid AS report_uid,
    report.revision AS report_revision,
    report.made_at AS reported_at,
    CASE WHEN report.id = (SELECT MAX(r.id) FROM report r WHERE r.study_id = report.study_id)
        THEN 1 ELSE 0 END AS is_newest,
    delivery.destination,
    delivery.result,
    delivery.state,
    delivery.tries,
    delivery.status,
    delivery.sop_instance_uid AS sent_uid,
    delivery.delivered_at,
    delivery.committed_at,
    delivery.give_up_at,
    delivery.error
FROM delivery
LEFT JOIN report ON report.id = delivery.report_id
LEFT JOIN study ON study.id = report.study_id
"""
