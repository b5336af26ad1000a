"""What is asked stays fast however many results there are: indexes, and views that use them."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the indexes, and make the views anew."""
    op.create_index("ix_study_patient_name", "study", ["patient_name"])
    op.create_index("ix_study_study_date", "study", ["study_date"])
    op.create_index("ix_instance_received_at", "instance", ["received_at"])
    op.create_index("ix_instance_digest_removed_at", "instance", ["digest", "removed_at"])
    op.drop_index("ix_instance_digest", "instance")
    op.create_index("ix_score_decision_instance_id", "score", ["decision", "instance_id"])
    op.create_index("ix_delivery_state_destination", "delivery", ["state", "destination"])
    for name, table, columns, condition in (
        ("ix_instance_held", "instance", ["received_at"], "removed_at IS NULL"),
        ("ix_score_probability", "score", ["probability", "instance_id"], "probability IS NOT NULL"),
        ("ix_delivery_sent", "delivery", ["sop_instance_uid"], "sop_instance_uid IS NOT NULL"),
        ("ix_job_suspect", "job", ["kind", "lane", "visible_at"], "state = 'ready' AND attempts >= 2"),
        ("ix_job_failed", "job", ["kind", "id"], "state = 'failed'"),
        ("ix_job_held", "job", ["token"], "token IS NOT NULL"),
    ):
        where = sa.text(condition)
        op.create_index(name, table, columns, postgresql_where=where, sqlite_where=where)
    dialect = op.get_bind().dialect.name
    if dialect == "postgresql":
        _vacuum_often()
    op.execute("DROP VIEW results")
    op.execute("DROP VIEW ledger")
    op.execute(_RESULTS.replace("{deliveries}", _DELIVERIES[dialect]))
    op.execute(_LEDGER)


def _vacuum_often() -> None:
    """Vacuum the queue by what changed, not by its size: dead entries of its index are read by each claim."""
    for table, changes in (("job", 20000), ("delivery", 20000)):
        op.execute(
            f"ALTER TABLE {table} SET (autovacuum_vacuum_scale_factor = 0, "
            f"autovacuum_vacuum_threshold = {changes})"
        )


# One row for each received image, with its newest score and the newest report that states it. This is
# what people query: columns are added at its end, never renamed or removed. Every join is a LEFT JOIN, also
# where there always is a row: what a query does not ask for is then not looked up.
_RESULTS = """
CREATE VIEW results AS
SELECT
    study.patient_id,
    study.patient_name,
    study.accession_number,
    study.study_instance_uid,
    instance.series_instance_uid,
    instance.sop_instance_uid,
    instance.sop_class_uid,
    instance.modality,
    COALESCE(score.view, NULLIF(instance.view_position, '')) AS view,
    study.study_date,
    instance.received_at,
    score.scored_at,
    score.probability,
    score.threshold,
    COALESCE(score.decision, CASE job.state WHEN 'failed' THEN 'not_scored' ELSE 'waiting' END) AS decision,
    COALESCE(score.reason, CASE job.state WHEN 'failed' THEN 'SCORING_FAILED' END) AS reason,
    COALESCE(score.detail, job.error) AS detail,
    model.name AS model_name,
    model.version AS model_version,
    model.sha256 AS model_sha256,
    report.sop_instance_uid AS report_uid,
    report.revision AS report_revision,
    ({deliveries}) AS deliveries,
    score.novelty,
    score.age,
    instance.id AS instance_id
FROM instance
LEFT JOIN study ON study.id = instance.study_id
LEFT JOIN job ON job.kind = 'score' AND job.ref = instance.id
LEFT JOIN score ON score.id = (SELECT MAX(s.id) FROM score s WHERE s.instance_id = instance.id)
LEFT JOIN model ON model.id = score.model_id
LEFT JOIN report ON report.id = (
    SELECT MAX(i.report_id) FROM report_image i WHERE i.instance_id = instance.id
)
"""
_DELIVERIES = {
    # GROUP_CONCAT takes no ORDER BY before SQLite 3.44.
    "sqlite": """
        SELECT GROUP_CONCAT(said, ', ')
        FROM (
            SELECT delivery.destination || ': ' || delivery.state AS said
            FROM delivery
            WHERE delivery.report_id = report.id
            ORDER BY delivery.id
        )
    """,
    "postgresql": """
        SELECT STRING_AGG(delivery.destination || ': ' || delivery.state, ', ' ORDER BY delivery.id)
        FROM delivery
        WHERE delivery.report_id = report.id
    """,
}

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
    delivery.error,
    instance.id AS instance_id
FROM instance
LEFT JOIN study ON study.id = instance.study_id
LEFT JOIN job ON job.kind = 'score' AND job.ref = instance.id
LEFT JOIN score ON score.id = (SELECT MAX(s.id) FROM score s WHERE s.instance_id = instance.id)
LEFT JOIN report ON report.id = (
    SELECT MAX(i.report_id) FROM report_image i WHERE i.instance_id = instance.id
)
LEFT JOIN delivery ON delivery.report_id = report.id
"""
