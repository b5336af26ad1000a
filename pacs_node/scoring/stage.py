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
from pacs_node.scoring.copies import CopyResult, Fingerprinter, judge
from pacs_node.storage.spool import Spool
from pacs_node.worker import Done, GivenUp, Later, Outcome, Settled, Write, retry_unreadable

_log = log.get(__name__)

_AGAIN_SECONDS = 1.0  # after which an image is asked for again whose decoding takes long

Answer = Prediction | OSError | StillDecoding


class Scorer(Fingerprinter, Protocol):
    """What scores files; `classifier.scoring.predict.Predictor` does."""

    def attempt(self, sources: Sequence[Path]) -> list[Prediction | OSError | StillDecoding]:
        """Return for each file its prediction, why it cannot be read, or that it is to be asked for again."""
        ...


_ORIGINAL = CopyResult(None, None)


class ScoreStage:
    """Score images in batches; one whose decoding takes long is put off, and holds up no other."""

    kind = Kind.SCORE
    lane = ""
    logged = "instance scored"

    def __init__(
        self,
        database: Database,
        spool: Spool,
        scorer: Scorer,
        model: StoredModel,
        batch_size: int,
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
            earlier = {one.id: queries.earlier_copies(session, one) for one in instances if one.copy}
        copies = [self._judge(one, earlier.get(one.id, [])) for one in instances]
        scored = zip(jobs, instances, copies, self._predict(instances, copies), strict=True)
        yield [(job, self._outcome(job, one, copy, found)) for job, one, copy, found in scored]

    def give_up(self, session: Session, ref: int) -> None:
        """Let the report say that scoring failed."""
        queries.wake_report(session, ref)

    def _recording(self, score: NewScore, copy: CopyResult) -> Write:
        """Return what records a score."""
        return partial(_record, score=score, image_id=copy.image_id)

    def _judge(
        self, instance: StoredInstance, earlier: Sequence[StoredInstance]
    ) -> CopyResult | OSError | StillDecoding:
        return judge(instance, earlier, self._spool, self._scorer) if earlier else _ORIGINAL

    def _predict(
        self, instances: Sequence[StoredInstance], copies: Sequence[CopyResult | OSError | StillDecoding]
    ) -> list[Answer]:
        known = list(map(_without_scoring, copies))
        wanted = [one for one, answer in zip(instances, known, strict=True) if answer is None]
        scored = iter(self._scorer.attempt([self._spool.path(one.digest) for one in wanted]))
        return [next(scored) if answer is None else answer for answer in known]

    def _outcome(
        self,
        job: Claimed,
        instance: StoredInstance,
        copy: CopyResult | OSError | StillDecoding,
        prediction: Answer,
    ) -> Outcome:
        uid = instance.sop_instance_uid
        if isinstance(prediction, FileNotFoundError) and self._spool.is_there:
            _log.error("file missing from spool", sop_instance_uid=uid, digest=instance.digest)
            why = f"The file {instance.digest}.dcm is missing from the spool"
            return GivenUp(why, partial(self.give_up, ref=instance.id))
        if isinstance(prediction, OSError):
            _log.warning("file not read", sop_instance_uid=uid, cause=str(prediction.strerror))
            return retry_unreadable(job, prediction)
        if isinstance(prediction, StillDecoding) or not isinstance(copy, CopyResult):
            return Later(_AGAIN_SECONDS, "Its decoding takes long")
        score = self._score(instance, copy, prediction)
        _log.info(
            self.logged,
            sop_instance_uid=uid,
            decision=prediction.decision.value,
            probability=prediction.probability,
            reason=score.reason,
            novelty=prediction.novelty,
            copy=instance.copy,
        )
        return Done(self._recording(score, copy))

    def _score(self, instance: StoredInstance, copy: CopyResult, prediction: Prediction) -> NewScore:
        reason = prediction.reason if copy.reason is None else copy.reason.code
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
            heat_map=None if prediction.heat_map is None else prediction.heat_map.to_bytes(),
        )


def _record(session: Session, score: NewScore, image_id: int | None) -> None:
    if image_id is not None:
        queries.record_same_image(session, score.instance_id, image_id)
    queries.add_score(session, score)


def _without_scoring(copy: CopyResult | OSError | StillDecoding) -> Answer | None:
    """Return the answer for an object that the model need not see; ``None`` for one that it must."""
    if not isinstance(copy, CopyResult):
        return copy
    if copy.reason is None:
        return None
    return Prediction(None, Decision.NOT_SCORED, None, copy.detail, None)
