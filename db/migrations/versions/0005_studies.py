"""The answer of each report, the views `studies` and `scores`, and why in the view `ledger`."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the column, which the node fills for earlier reports from their bytes, and both views."""
    op.add_column("report", sa.Column("decision", sa.String(32)))
    where = sa.text("decision IS NULL")
    op.create_index("ix_report_unread", "report", ["id"], postgresql_where=where, sqlite_where=where)
    op.execute(_studies(op.get_bind().dialect.name))
    op.execute(_SCORES)
    op.execute("DROP VIEW ledger")
    op.execute(_LEDGER)


def _studies(dialect: str) -> str:
    words = _BY_DIALECT[dialect]
    values = {"images": _IMAGES, "reason": _REASON, "whose": _WHOSE}
    values |= {f"{name}_at": _WHEN_ALL.replace("{what}", f"{name}_at") for name in ("delivered", "committed")}
    for part in ("deliveries", "reasons"):
        values[part] = words[part].format(**values)
    later, earlier = values["delivered_at"], "study.last_received_at"
    values["seconds"] = words["seconds"].format(later=later, earlier=earlier)
    return _STUDIES.format(**values)


_BY_DIALECT = {
    # GROUP_CONCAT takes no ORDER BY before SQLite 3.44.
    "sqlite": {
        "reasons": "SELECT GROUP_CONCAT(said, ', ') FROM"
        " (SELECT DISTINCT {reason} AS said FROM {images} AND {reason} IS NOT NULL ORDER BY said)",
        "deliveries": "SELECT GROUP_CONCAT(said, ', ') FROM"
        " (SELECT delivery.destination || ': ' || delivery.state AS said FROM delivery"
        " WHERE delivery.report_id = report.id ORDER BY delivery.id)",
        "seconds": "ROUND((JULIANDAY({later}) - JULIANDAY({earlier})) * 86400, 3)",
    },
    "postgresql": {
        "reasons": "SELECT STRING_AGG(said, ', ' ORDER BY said) FROM"
        " (SELECT DISTINCT {reason} AS said FROM {images} AND {reason} IS NOT NULL) AS each",
        "deliveries": "SELECT STRING_AGG(delivery.destination || ': ' || delivery.state, ', '"
        " ORDER BY delivery.id) FROM delivery WHERE delivery.report_id = report.id",
        "seconds": "CAST(ROUND(CAST(EXTRACT(EPOCH FROM {later} - {earlier}) AS NUMERIC), 3)"
        " AS DOUBLE PRECISION)",
    },
}

_REASON = "COALESCE(score.reason, CASE job.state WHEN 'failed' THEN 'SCORING_FAILED' END)"
# The images of a study: objects that can be a radiograph, of copies of one image the newest alone, and no
# results of programs
_IMAGES = """instance
        LEFT JOIN job ON job.kind = 'score' AND job.ref = instance.id
        LEFT JOIN score ON score.id = (SELECT MAX(s.id) FROM score s WHERE s.instance_id = instance.id)
        WHERE instance.study_id = study.id
        AND instance.sop_class_uid IN (
            '1.2.840.10008.5.1.4.1.1.1',
            '1.2.840.10008.5.1.4.1.1.1.1',
            '1.2.840.10008.5.1.4.1.1.1.1.1',
            '1.2.840.10008.5.1.4.1.1.7',
            '1.2.840.10008.5.1.4.1.1.7.1',
            '1.2.840.10008.5.1.4.1.1.7.2',
            '1.2.840.10008.5.1.4.1.1.7.3',
            '1.2.840.10008.5.1.4.1.1.7.4'
        )
        AND COALESCE(score.reason, '') NOT IN ('OWN_RESULT', 'DERIVED_RESULT')
        AND NOT EXISTS (
            SELECT 1 FROM instance newer
            WHERE newer.image_id = instance.image_id AND newer.turn > instance.turn
        )"""
# The image that was corrected last, else the first; of a study without images, the first object
_CORRECTED_LAST = """CASE WHEN instance.turn > 0 THEN 0 ELSE 1 END,
        CASE WHEN instance.turn > 0 THEN -instance.id ELSE instance.id END"""
_WHOSE = f"""COALESCE(
        (SELECT instance.id FROM {_IMAGES} ORDER BY {_CORRECTED_LAST} LIMIT 1),
        (SELECT MIN(instance.id) FROM instance WHERE instance.study_id = study.id)
    )"""
_WHEN_ALL = """(
        SELECT CASE WHEN COUNT(delivery.{what}) = COUNT(*) THEN MAX(delivery.{what}) END FROM delivery
        WHERE delivery.report_id = report.id AND delivery.state <> 'abandoned'
    )"""

# One row for each study. What it says of the patient is what the newest report says. Columns are added at its
# end, never renamed or removed.
_STUDIES = """
CREATE VIEW studies AS
SELECT
    whose.patient_id,
    whose.patient_name,
    whose.issuer_of_patient_id,
    whose.patient_birth_date,
    whose.accession_number,
    study.study_instance_uid,
    whose.study_date,
    report.decision,
    (SELECT MAX(score.probability) FROM {images}) AS highest_probability,
    (SELECT COUNT(*) FROM {images} AND score.probability IS NOT NULL) AS images_scored,
    (SELECT COUNT(*) FROM {images} AND score.probability IS NULL
        AND (score.id IS NOT NULL OR job.state = 'failed')) AS images_not_scored,
    (SELECT COUNT(*) FROM {images} AND score.id IS NULL AND job.state = 'ready') AS images_waiting,
    ({reasons}) AS reasons,
    report.sop_instance_uid AS report_uid,
    report.revision AS report_revision,
    study.first_received_at,
    study.last_received_at,
    report.made_at AS reported_at,
    {delivered_at} AS delivered_at,
    {committed_at} AS committed_at,
    CASE WHEN {delivered_at} >= study.last_received_at THEN {seconds} END AS seconds_to_delivery,
    ({deliveries}) AS deliveries,
    study_problem.problem AS study_problem,
    study.id AS study_id
FROM study
LEFT JOIN study_problem ON study_problem.study_id = study.id
LEFT JOIN instance whose ON whose.id = {whose}
LEFT JOIN report ON report.id = (SELECT MAX(r.id) FROM report r WHERE r.study_id = study.id)
"""

# One row for each score that any model ever gave. Columns are added at its end, never renamed or removed.
_SCORES = """
CREATE VIEW scores AS
SELECT
    instance.patient_id,
    instance.accession_number,
    study.study_instance_uid,
    instance.sop_instance_uid,
    score.scored_at,
    score.probability,
    score.threshold,
    score.decision,
    score.reason,
    NULLIF(score.detail, '') AS detail,
    score.view,
    score.novelty,
    score.age,
    model.name AS model_name,
    model.version AS model_version,
    model.sha256 AS model_sha256,
    CASE WHEN score.id = (SELECT MAX(s.id) FROM score s WHERE s.instance_id = score.instance_id)
        THEN 1 ELSE 0 END AS is_newest,
    CASE WHEN EXISTS (
        SELECT 1 FROM instance newer WHERE newer.image_id = instance.image_id AND newer.turn > instance.turn
    ) THEN 1 ELSE 0 END AS is_replaced,
    instance.id AS instance_id
FROM score
LEFT JOIN instance ON instance.id = score.instance_id
LEFT JOIN study ON study.id = instance.study_id
LEFT JOIN model ON model.id = score.model_id
"""

# As before, with reason and detail at its end
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
    ) THEN 1 ELSE 0 END AS is_replaced,
    COALESCE(score.reason, CASE job.state WHEN 'failed' THEN 'SCORING_FAILED' END) AS reason,
    COALESCE(NULLIF(score.detail, ''), job.error) AS detail
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
