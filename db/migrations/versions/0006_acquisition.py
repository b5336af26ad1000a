"""What is kept of each object at reception: how the image was made, and by what device."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_COLUMNS: dict[str, Any] = {
    "patient_sex": sa.String(16),
    "patient_age": sa.Float(),
    "study_time": sa.String(16),
    "station_name": sa.String(64),
    "institution_name": sa.String(64),
    "manufacturer": sa.String(64),
    "manufacturer_model_name": sa.String(64),
    "device_serial_number": sa.String(64),
    "software_versions": sa.Text(),
    "presentation_intent_type": sa.String(16),
    "image_rows": sa.Integer(),
    "image_columns": sa.Integer(),
    "bits_stored": sa.Integer(),
}


def upgrade() -> None:
    """Add the columns, which the node fills for earlier rows from the files that are still there."""
    for name, kind in _COLUMNS.items():
        op.add_column("instance", sa.Column(name, kind))
    where = sa.text("patient_sex IS NULL")
    op.drop_index("ix_instance_unread", "instance")
    op.create_index("ix_instance_unread", "instance", ["id"], postgresql_where=where, sqlite_where=where)
    op.execute("DROP VIEW results")
    op.execute(_RESULTS.replace("{deliveries}", _DELIVERIES[op.get_bind().dialect.name]))


# One row for each received image, with its newest score and the newest report that states it; of copies of
# one image the newest alone. This is what people query: columns are added at its end, never renamed or
# removed. Every join is a LEFT JOIN, also where there always is a row: what a query does not ask for is then
# not looked up.
_RESULTS = """
CREATE VIEW results AS
SELECT
    instance.patient_id,
    instance.patient_name,
    instance.accession_number,
    study.study_instance_uid,
    instance.series_instance_uid,
    instance.sop_instance_uid,
    instance.sop_class_uid,
    instance.modality,
    COALESCE(score.view, NULLIF(instance.view_position, '')) AS view,
    instance.study_date,
    instance.received_at,
    score.scored_at,
    score.probability,
    score.threshold,
    COALESCE(score.decision, CASE job.state WHEN 'failed' THEN 'not_scored' ELSE 'waiting' END) AS decision,
    COALESCE(score.reason, CASE job.state WHEN 'failed' THEN 'SCORING_FAILED' END) AS reason,
    COALESCE(NULLIF(score.detail, ''), job.error) AS detail,
    model.name AS model_name,
    model.version AS model_version,
    model.sha256 AS model_sha256,
    report.sop_instance_uid AS report_uid,
    report.revision AS report_revision,
    ({deliveries}) AS deliveries,
    score.novelty,
    COALESCE(score.age, instance.patient_age) AS age,
    instance.id AS instance_id,
    instance.issuer_of_patient_id,
    instance.patient_birth_date,
    study_problem.problem AS study_problem,
    instance.patient_sex,
    instance.calling_ae_title,
    instance.station_name,
    instance.manufacturer,
    instance.manufacturer_model_name,
    instance.device_serial_number,
    instance.software_versions,
    instance.institution_name,
    instance.study_time,
    instance.presentation_intent_type,
    instance.image_rows,
    instance.image_columns,
    instance.bits_stored,
    instance.transfer_syntax_uid
FROM instance
LEFT JOIN study ON study.id = instance.study_id
LEFT JOIN study_problem ON study_problem.study_id = instance.study_id
LEFT JOIN job ON job.kind = 'score' AND job.ref = instance.id
LEFT JOIN score ON score.id = (SELECT MAX(s.id) FROM score s WHERE s.instance_id = instance.id)
LEFT JOIN model ON model.id = score.model_id
LEFT JOIN report ON report.id = (
    SELECT MAX(i.report_id) FROM report_image i WHERE i.instance_id = instance.id
)
WHERE NOT EXISTS (
    SELECT 1 FROM instance newer WHERE newer.image_id = instance.image_id AND newer.turn > instance.turn
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
