"""Score images once more, by the model that is loaded now and for comparison alone."""

from __future__ import annotations

from functools import partial

from sqlalchemy.orm import Session

from db import rescores
from db.queue import Kind
from db.rows import NewScore, StoredModel
from db.session import Database
from pacs_node.scoring.copies import CopyResult
from pacs_node.scoring.stage import Scorer, ScoreStage
from pacs_node.storage.spool import Spool
from pacs_node.worker import Write

_AT_ONCE = 8  # images; one that comes meanwhile waits for no more


class RescoreStage(ScoreStage):
    """Does what `pacs-node rescore` ordered for this model. Reports and their decisions stay as they are."""

    kind = Kind.RESCORE
    logged = "instance scored again"

    def __init__(
        self, database: Database, spool: Spool, scorer: Scorer, model: StoredModel, batch_size: int
    ) -> None:
        super().__init__(database, spool, scorer, model, min(batch_size, _AT_ONCE))
        self.lane = rescores.lane(model.sha256)

    def give_up(self, session: Session, ref: int) -> None:
        """Leave the report as it is: no score of it is missing."""

    def _recording(self, score: NewScore, copy: CopyResult) -> Write:  # noqa: ARG002 - known since the first score
        return partial(rescores.add, score=score)
