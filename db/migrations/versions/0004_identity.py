"""Patient and order of each object, copies of one image, and studies that get no report."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_COLUMNS = {
    "patient_id": sa.String(64),
    "patient_name": sa.Text(),
    "accession_number": sa.String(64),
    "study_date": sa.String(8),
}


def upgrade() -> None:
    """Fill what is new from the study, which has it of its first object; the node reads the files later."""
    for name, kind in _COLUMNS.items():
        op.add_column("instance", sa.Column(name, kind, nullable=False, server_default=""))
    op.add_column("instance", sa.Column("issuer_of_patient_id", sa.String(64)))
    op.add_column("instance", sa.Column("patient_birth_date", sa.String(8)))
    op.add_column("instance", sa.Column("turn", sa.Integer, nullable=False, server_default="0"))
    op.add_column("instance", sa.Column("image_id", sa.BigInteger))
    _fill()
    for name in _COLUMNS:
        op.drop_index(f"ix_study_{name}", "study")
        op.create_index(f"ix_instance_{name}", "instance", [name])
    for name, columns, condition in (
        ("ix_instance_image", ["image_id", "turn"], "image_id IS NOT NULL"),
        ("ix_instance_unread", ["id"], "issuer_of_patient_id IS NULL"),
    ):
        where = sa.text(condition)
        op.create_index(name, "instance", columns, postgresql_where=where, sqlite_where=where)
    op.create_table(
        "study_problem",
        sa.Column("study_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sa.Column("problem", sa.String(32), nullable=False),
        sa.Column("found_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("dismissed_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("study_id", name="pk_study_problem"),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name="fk_study_problem_study_id"),
    )
    op.execute("DROP VIEW results")
    op.execute("DROP VIEW ledger")
    op.execute(_RESULTS.replace("{deliveries}", _DELIVERIES[op.get_bind().dialect.name]))
    op.execute(_LEDGER)


def _fill() -> None:
    value, source = _OF_THE_STUDY[op.get_bind().dialect.name]
    values = ", ".join(f"{name} = {value.format(name)}" for name in _COLUMNS)
    op.execute(f"UPDATE instance SET {values}, turn = copy {source}")
    # What retention removed cannot be read any more
    op.execute(
        "UPDATE instance SET issuer_of_patient_id = '', patient_birth_date = '' WHERE removed_at IS NOT NULL"
    )


_OF_THE_STUDY = {
    "postgresql": ("study.{}", "FROM study WHERE study.id = instance.study_id"),
    "sqlite": ("(SELECT study.{} FROM study WHERE study.id = instance.study_id)", ""),
}

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
    COALESCE(score.detail, job.error) AS detail,
    model.name AS model_name,
    model.version AS model_version,
    model.sha256 AS model_sha256,
    report.sop_instance_uid AS report_uid,
    report.revision AS report_revision,
    ({deliveries}) AS deliveries,
    score.novelty,
    score.age,
    instance.id AS instance_id,
    instance.issuer_of_patient_id,
    instance.patient_birth_date,
    study_problem.problem AS study_problem
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

# One row for each received object, copies too, and each destination of the newest report that states it; one
# row without destination where there is no report, or it goes nowhere. Columns are added at its end, never
# renamed.
_LEDGER = """
CREATE VIEW ledger AS
SELECT
    study.study_instance_uid,
    instance.accession_number,
    instance.patient_id,
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
    instance.id AS instance_id,
    instance.patient_name,
    instance.issuer_of_patient_id,
    instance.patient_birth_date,
    study_problem.problem AS study_problem,
    CASE WHEN EXISTS (
        SELECT 1 FROM instance newer WHERE newer.image_id = instance.image_id AND newer.turn > instance.turn
    ) THEN 1 ELSE 0 END AS is_replaced
FROM instance
LEFT JOIN study ON study.id = instance.study_id
LEFT JOIN study_problem ON study_problem.study_id = instance.study_id
LEFT JOIN job ON job.kind = 'score' AND job.ref = instance.id
LEFT JOIN score ON score.id = (SELECT MAX(s.id) FROM score s WHERE s.instance_id = instance.id)
LEFT JOIN report ON report.id = (
    SELECT MAX(i.report_id) FROM report_image i WHERE i.instance_id = instance.id
)
LEFT JOIN delivery ON delivery.report_id = report.id
"""
