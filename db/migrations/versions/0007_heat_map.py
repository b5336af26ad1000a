"""The heat map of each score: a few cells, in units of the logit."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Scores of earlier versions have none."""
    op.add_column("score", sa.Column("heat_map", sa.LargeBinary))
