"""Score images in batches: from claimed jobs to score rows. What computes the scores is handed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

from sqlalchemy.orm import Session

from classifier.outcome import Decision, Prediction, StillDecoding
from db import queries
from db.queue import Claimed, Kind
from db.rows import NewScore, StoredInstance, StoredModel
from db.session import Database
from pacs_node import log
from pacs_node.reporting.from_rows import DUPLICATE
from pacs_node.reporting.report import NotScoredReason
from pacs_node.storage.spool import Spool
from pacs_node.worker import Done, GivenUp, Later, Outcome, Settled, retry_unreadable

_log = log.get(__name__)

_AGAIN_SECONDS = 1.0  # after which an image is asked for again whose decoding takes long

Answer = Prediction | OSError | StillDecoding


class Scorer(Protocol):
    """What scores files; `classifier.scoring.predict.Predictor` does."""

    def attempt(self, sources: Sequence[Path]) -> list[Prediction | OSError | StillDecoding]:
        """Return for each file its prediction, why it cannot be read, or that it is to be asked for again."""
        ...


class ScoreStage:
    """Score images in batches; one whose decoding takes long is put off, and holds up no other."""

    kind = Kind.SCORE
    lane = ""

    def __init__(
        self, database: Database, spool: Spool, scorer: Scorer, model: StoredModel, batch_size: int
    ) -> None:
        self.batch_size = batch_size
        self._database = database
        self._spool = spool
        self._scorer = scorer
        self._model = model

    def run(self, jobs: Sequence[Claimed], may_go_on: Callable[[], bool]) -> Iterator[Settled]:  # noqa: ARG002
        """Score the instances of the jobs."""
        with self._database.read() as session:
            instances = queries.instances(session, [job.ref for job in jobs])
        scored = zip(jobs, instances, self._predict(instances), strict=True)
        yield [(job, self._outcome(job, instance, prediction)) for job, instance, prediction in scored]

    def give_up(self, session: Session, ref: int) -> None:
        """Let the report say that scoring failed."""
        queries.wake_report(session, ref)

    def _predict(self, instances: Sequence[StoredInstance]) -> list[Answer]:
        originals = [instance for instance in instances if not instance.copy]
        scored = iter(self._scorer.attempt([self._spool.path(instance.digest) for instance in originals]))
        return [_not_scored(DUPLICATE) if instance.copy else next(scored) for instance in instances]

    def _outcome(self, job: Claimed, instance: StoredInstance, prediction: Answer) -> Outcome:
        uid = instance.sop_instance_uid
        if isinstance(prediction, FileNotFoundError) and self._spool.is_there:
            _log.error("file missing from spool", sop_instance_uid=uid, digest=instance.digest)
            why = f"The file {instance.digest}.dcm is missing from the spool"
            return GivenUp(why, partial(queries.wake_report, instance_id=instance.id))
        if isinstance(prediction, OSError):
            _log.warning("file not read", sop_instance_uid=uid, cause=str(prediction.strerror))
            return retry_unreadable(job, prediction)
        if isinstance(prediction, StillDecoding):
            return Later(_AGAIN_SECONDS, "Its decoding takes long")
        _log.info(
            "instance scored",
            sop_instance_uid=uid,
            decision=prediction.decision.value,
            probability=prediction.probability,
            reason=DUPLICATE.code if instance.copy else prediction.reason,
            novelty=prediction.novelty,
        )
        return Done(partial(queries.add_score, score=self._score(instance, prediction)))

    def _score(self, instance: StoredInstance, prediction: Prediction) -> NewScore:
        reason = DUPLICATE.code if instance.copy else prediction.reason
        return NewScore(
            instance_id=instance.id,
            model_id=self._model.id,
            probability=prediction.probability,
            threshold=self._model.threshold,
            decision=prediction.decision.value,
            reason=None if reason is None else str(reason),
            detail=prediction.detail,
            view=prediction.view,
            novelty=prediction.novelty,
            age=prediction.age,
            scored_at=datetime.now(UTC),
        )


def _not_scored(reason: NotScoredReason) -> Prediction:
    return Prediction(None, Decision.NOT_SCORED, None, reason.meaning, None)
