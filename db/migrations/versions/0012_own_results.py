"""Reports of the node that a PACS sent back, and that earlier versions took for images of other kinds."""

from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Give them the reason by which they count as no images; the node knows them by its own UIDs."""
    op.execute(_UPDATE)


_UPDATE = """
UPDATE score SET reason = 'OWN_RESULT', detail = 'It is a report of this node'
WHERE reason = 'NOT_RADIOGRAPH' AND instance_id IN (
    SELECT instance.id FROM instance WHERE instance.sop_instance_uid IN (SELECT sop_instance_uid FROM report)
    UNION ALL
    SELECT instance.id FROM instance WHERE instance.sop_instance_uid IN (
        SELECT sop_instance_uid FROM delivery WHERE sop_instance_uid IS NOT NULL))
"""
