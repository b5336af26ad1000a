"""The first schema: tables, the queue's index, and the view `results` for people."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create everything."""
    _create_received()
    _create_scored()
    _create_reported()
    _create_job()
    op.execute(_VIEW.replace("{deliveries}", _DELIVERIES[op.get_bind().dialect.name]))


def _create_received() -> None:
    op.create_table(
        "study",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("study_instance_uid", sa.String(64), nullable=False),
        sa.Column("patient_id", sa.String(64), nullable=False),
        sa.Column("patient_name", sa.Text, nullable=False),
        sa.Column("accession_number", sa.String(64), nullable=False),
        sa.Column("study_date", sa.String(8), nullable=False),
        sa.Column("first_received_at", _MOMENT, nullable=False),
        sa.Column("last_received_at", _MOMENT, nullable=False),
        sa.Column("quiet_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_study"),
        sa.UniqueConstraint("study_instance_uid", name="uq_study_study_instance_uid"),
    )
    op.create_index("ix_study_patient_id", "study", ["patient_id"])
    op.create_index("ix_study_accession_number", "study", ["accession_number"])
    op.create_table(
        "instance",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("study_id", _KEY, nullable=False),
        sa.Column("sop_instance_uid", sa.String(64), nullable=False),
        sa.Column("copy", sa.Integer, nullable=False),
        sa.Column("sop_class_uid", sa.String(64), nullable=False),
        sa.Column("series_instance_uid", sa.String(64), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(64), nullable=False),
        sa.Column("modality", sa.String(16), nullable=False),
        sa.Column("view_position", sa.String(16), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("calling_ae_title", sa.String(16), nullable=False),
        sa.Column("received_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_instance"),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name="fk_instance_study_id"),
        sa.UniqueConstraint("sop_instance_uid", "digest", name="uq_instance_sop_instance_uid_digest"),
        sa.UniqueConstraint("sop_instance_uid", "copy", name="uq_instance_sop_instance_uid_copy"),
    )
    op.create_index("ix_instance_study_id", "instance", ["study_id"])


def _create_scored() -> None:
    op.create_table(
        "model",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("threshold", sa.Float, nullable=False),
        sa.Column("preprocessing", sa.Text, nullable=False),
        sa.Column("card", sa.Text, nullable=False),
        sa.Column("last_started_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_model"),
        sa.UniqueConstraint("sha256", name="uq_model_sha256"),
    )
    op.create_table(
        "score",
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
        sa.Column("scored_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_score"),
        sa.ForeignKeyConstraint(["instance_id"], ["instance.id"], name="fk_score_instance_id"),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name="fk_score_model_id"),
        sa.UniqueConstraint("instance_id", "model_id", name="uq_score_instance_id_model_id"),
        sa.CheckConstraint("(probability IS NULL) = (decision = 'not_scored')", name=op.f("ck_score_scored")),
        sa.CheckConstraint("probability BETWEEN 0 AND 1", name=op.f("ck_score_probability")),
        sa.CheckConstraint(
            "decision IN ('positive', 'negative', 'undetermined', 'not_scored')",
            name=op.f("ck_score_decision"),
        ),
    )


def _create_reported() -> None:
    op.create_table(
        "report",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("study_id", _KEY, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("sop_class_uid", sa.String(64), nullable=False),
        sa.Column("sop_instance_uid", sa.String(64), nullable=False),
        sa.Column("series_instance_uid", sa.String(64), nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("made_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_report"),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name="fk_report_study_id"),
        sa.UniqueConstraint("study_id", "revision", name="uq_report_study_id_revision"),
        sa.UniqueConstraint("sop_instance_uid", name="uq_report_sop_instance_uid"),
    )
    op.create_table(
        "report_image",
        sa.Column("report_id", _KEY, nullable=False),
        sa.Column("instance_id", _KEY, nullable=False),
        sa.Column("score_id", _KEY),
        sa.PrimaryKeyConstraint("report_id", "instance_id", name="pk_report_image"),
        sa.ForeignKeyConstraint(["report_id"], ["report.id"], name="fk_report_image_report_id"),
        sa.ForeignKeyConstraint(["instance_id"], ["instance.id"], name="fk_report_image_instance_id"),
        sa.ForeignKeyConstraint(["score_id"], ["score.id"], name="fk_report_image_score_id"),
    )
    op.create_index("ix_report_image_instance_id", "report_image", ["instance_id"])
    op.create_table(
        "delivery",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("report_id", _KEY, nullable=False),
        sa.Column("destination", sa.String(32), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("give_up_at", _MOMENT, nullable=False),
        sa.Column("sop_class_uid", sa.String(64)),
        sa.Column("sop_instance_uid", sa.String(64)),
        sa.Column("status", sa.Integer),
        sa.Column("error", sa.Text),
        sa.Column("updated_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_delivery"),
        sa.ForeignKeyConstraint(["report_id"], ["report.id"], name="fk_delivery_report_id"),
        sa.UniqueConstraint("report_id", "destination", name="uq_delivery_report_id_destination"),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'failed')", name=op.f("ck_delivery_state")),
    )


def _create_job() -> None:
    op.create_table(
        "process",
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("started_at", _MOMENT, nullable=False),
        sa.Column("seen_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("role", "host", name="pk_process"),
    )
    op.create_table(
        "job",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("lane", sa.String(32), nullable=False),
        sa.Column("ref", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("visible_at", sa.Float, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("token", sa.String(32)),
        sa.Column("error", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_job"),
        sa.UniqueConstraint("kind", "ref", name="uq_job_kind_ref"),
        sa.CheckConstraint("state IN ('ready', 'done', 'failed')", name=op.f("ck_job_state")),
    )
    ready = sa.text("state = 'ready'")
    op.create_index(
        "ix_job_ready", "job", ["kind", "lane", "visible_at"], postgresql_where=ready, sqlite_where=ready
    )


# One row for each received image, with its newest score and the newest report that states it. This is
# what people query: columns are added at its end, never renamed or removed.
_VIEW = """
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
    score.age
FROM instance
JOIN study ON study.id = instance.study_id
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
