"""What is done with a study: score each image, report the study. `dispatch` sends what comes out.

Each stage reads what it needs, works without a transaction, and returns what is to be written. When, how
often and in whose name is the business of `worker`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Protocol

from pydicom.dataset import Dataset
from sqlalchemy.orm import Session

from classifier import errors as classifier_errors
from classifier.config import PROJECTION_RADIOGRAPHS
from classifier.outcome import Decision, Prediction
from db import queries
from db.queue import Claimed, Kind
from db.rows import NewReport, NewScore, StoredInstance, StoredModel, StoredReport
from db.session import Database
from pacs_node import log
from pacs_node.config import Settings
from pacs_node.header import UnreadableHeader, read_header
from pacs_node.report import Algorithm, ImageResult, InvalidReport, Node, Predecessor, Reason, build
from pacs_node.spool import Spool
from pacs_node.worker import Done, GivenUp, Later, Outcome, Settled

_log = log.get(__name__)

_DUPLICATE = Reason(
    "DUPLICATE_UID", "Another object came under the same UID before", failed=False, leaves_open=True
)
_FAILED = Reason("SCORING_FAILED", "Scoring failed, see the log of the node", failed=True, leaves_open=True)
_FAILURES = {classifier_errors.Reason.UNREADABLE, classifier_errors.Reason.NO_FINITE_SCORE}
_OPEN = _FAILURES | {
    classifier_errors.Reason.TOO_LARGE,
    classifier_errors.Reason.CONSTANT_IMAGE,
    classifier_errors.Reason.NO_VIEW,
    classifier_errors.Reason.NO_BODY_PART,
    classifier_errors.Reason.NO_ORIENTATION,
    classifier_errors.Reason.CONTRADICTION,
}
_RETRY_SECONDS = 30.0  # after a fault of the machine, such as a file system that is away; doubles each time
_LONGEST_RETRY = 480.0
_STUDY_LEVEL = (
    *("SpecificCharacterSet", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
    *("StudyDescription", "StudyInstanceUID", "StudyID", "TimezoneOffsetFromUTC"),
)
_LONGEST_PATIENCE = 60.0  # a report that waits for scores is woken by them; this is for when that went wrong


class Scorer(Protocol):
    """What scores files; `classifier.predict.Predictor` does."""

    def predict(self, sources: Sequence[Path]) -> list[Prediction]:
        """Return one prediction for each file; OSError when one cannot be read."""
        ...


class ScoreStage:
    """Score images in batches."""

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

    def _predict(self, instances: Sequence[StoredInstance]) -> list[Prediction | OSError]:
        originals = [instance for instance in instances if not instance.copy]
        scored = iter(self._predict_files([self._spool.path(instance.digest) for instance in originals]))
        return [_not_scored(_DUPLICATE) if instance.copy else next(scored) for instance in instances]

    def _predict_files(self, paths: Sequence[Path]) -> list[Prediction | OSError]:
        """Score files together, and one by one where one of them cannot be read."""
        try:
            return [*self._scorer.predict(paths)]
        except OSError as error:
            if len(paths) == 1:
                return [error]
        return [outcome for path in paths for outcome in self._predict_files([path])]

    def _outcome(self, job: Claimed, instance: StoredInstance, prediction: Prediction | OSError) -> Outcome:
        uid = instance.sop_instance_uid
        if isinstance(prediction, FileNotFoundError) and self._spool.is_there:
            _log.error("file missing from spool", sop_instance_uid=uid, digest=instance.digest)
            why = f"The file {instance.digest}.dcm is missing from the spool"
            return GivenUp(why, partial(queries.wake_report, instance_id=instance.id))
        if isinstance(prediction, OSError):
            _log.warning("file not read", sop_instance_uid=uid, cause=str(prediction.strerror))
            return _unreadable(job, prediction)
        _log.info(
            "instance scored",
            sop_instance_uid=uid,
            decision=prediction.decision.value,
            probability=prediction.probability,
            reason=_DUPLICATE.code if instance.copy else prediction.reason,
            novelty=prediction.novelty,
        )
        return Done(partial(queries.add_score, score=self._score(instance, prediction)))

    def _score(self, instance: StoredInstance, prediction: Prediction) -> NewScore:
        reason = _DUPLICATE.code if instance.copy else prediction.reason
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


class ReportStage:
    """Make the report of a study that is quiet, or the revision that supersedes the last one."""

    kind = Kind.REPORT
    lane = ""
    batch_size = 4

    def __init__(
        self,
        database: Database,
        spool: Spool,
        node: Node,
        settings: Settings,
    ) -> None:
        self._database = database
        self._spool = spool
        self._node = node
        self._destinations = [d.name for d in settings.destinations if "report" in d.send]
        self._give_up_after = timedelta(hours=settings.deliver.give_up_hours)

    def run(self, jobs: Sequence[Claimed], may_go_on: Callable[[], bool]) -> Iterator[Settled]:  # noqa: ARG002
        """Report the studies of the jobs."""
        for job in jobs:
            yield [(job, self._report(job))]

    def give_up(self, session: Session, ref: int) -> None:
        """Nothing more to record: the job says it all."""

    def _report(self, job: Claimed) -> Outcome:
        with self._database.read() as session:
            study = _Study(
                id=job.ref,
                uid=queries.study_uid(session, job.ref),
                images=_reportable(queries.study_instances(session, job.ref)),
                last=queries.last_report(session, job.ref),
                model=queries.newest_model(session),
            )
        if study.waits_for_scores:
            return Later(_LONGEST_PATIENCE, "Waits for scores")
        if not study.images or (study.last is not None and study.last.images == study.stated):
            return Done(_nothing)
        try:
            new = self._build(study)
        except (InvalidReport, UnreadableHeader) as error:
            _log.error("report failed", study=study.uid, cause=str(error))
            return GivenUp(f"No report can be made: {error}")
        except OSError as error:
            return _unreadable(job, error)
        _log.info(
            "report made", study=study.uid, revision=new.revision, sop_instance_uid=new.sop_instance_uid
        )
        return Done(partial(queries.add_report, new=new))

    def _build(self, study: _Study) -> NewReport:
        made_at = datetime.now(UTC).replace(microsecond=0)
        headers = self._headers(study.images)
        images = [_result(image, headers[image.id], study.model) for image in study.images]
        report = build(images, self._node, made_at, study.revision, study.predecessor)
        return NewReport(
            study_id=study.id,
            revision=study.revision,
            sop_class_uid=report.sop_class_uid,
            sop_instance_uid=report.sop_instance_uid,
            series_instance_uid=report.series_instance_uid,
            content=report.content,
            made_at=made_at,
            images=study.stated,
            destinations=self._destinations,
            give_up_at=made_at + self._give_up_after,
        )

    def _headers(self, images: Sequence[StoredInstance]) -> dict[int, Dataset]:
        """Read the headers of a study; for a file that was lost, take what the database knows of it."""
        found: dict[int, Dataset] = {}
        for image in images:
            with suppress(FileNotFoundError):
                found[image.id] = read_header(self._spool.path(image.digest))
        if not found:
            raise InvalidReport("all files of the study are missing from the spool")
        patient = found[min(found)]
        return {image.id: found.get(image.id) or _stand_in(image, patient) for image in images}


@dataclass(frozen=True)
class _Study:
    """A study as the database has it at one moment."""

    id: int
    uid: str
    images: Sequence[StoredInstance]
    last: StoredReport | None
    model: StoredModel | None

    @property
    def waits_for_scores(self) -> bool:
        return any(image.score is None and image.job_state == "ready" for image in self.images)

    @property
    def stated(self) -> frozenset[tuple[int, int | None]]:
        """What a report made now states; no score where its job was given up."""
        return frozenset((image.id, image.score.id if image.score else None) for image in self.images)

    @property
    def revision(self) -> int:
        return self.last.revision + 1 if self.last else 1

    @property
    def predecessor(self) -> Predecessor | None:
        last = self.last
        if last is None:
            return None
        return Predecessor(last.sop_class_uid, last.sop_instance_uid, last.series_instance_uid, self.uid)


def algorithm(model: StoredModel, threshold: float | None = None) -> Algorithm:
    """Return the model as it appears in reports.

    Raises
    ------
    InvalidReport
        When its name, version or preprocessing cannot stand in a report.
    """
    threshold = model.threshold if threshold is None else threshold
    return Algorithm(model.name, model.version, model.sha256, threshold, model.preprocessing)


def _result(image: StoredInstance, header: Dataset, newest: StoredModel | None) -> ImageResult:
    score = image.score
    if score is not None:
        reason = None if score.reason is None else _reason(score.reason)
        by = algorithm(score.model, score.threshold)
        return ImageResult(header, score.decision, score.probability, reason, by)
    if newest is None:
        raise InvalidReport("no model was ever in use here")
    return ImageResult(header, Decision.NOT_SCORED.value, None, _FAILED, algorithm(newest))


def _stand_in(image: StoredInstance, patient: Dataset) -> Dataset:
    """Return the header of an image whose file was lost: its UIDs, and another one's patient and study."""
    header = Dataset()
    for element in patient.group_dataset(0x0010):
        header[element.tag] = patient.get_item(element.tag)
    for keyword in _STUDY_LEVEL:
        if keyword in patient:
            header[keyword] = patient.get_item(keyword)
    header.SOPClassUID, header.SOPInstanceUID = image.sop_class_uid, image.sop_instance_uid
    header.SeriesInstanceUID = image.series_instance_uid
    return header


def _unreadable(job: Claimed, error: OSError) -> Later:
    """Try a file again, ever later; one that stays unreadable must not hold up its study for ever."""
    pause = min(_LONGEST_RETRY, _RETRY_SECONDS * 2 ** (job.attempts - 1))
    return Later(pause, f"The file cannot be read: {error.strerror}", is_attempt=True)


def _reportable(instances: Sequence[StoredInstance]) -> list[StoredInstance]:
    """Leave out what no one expects an answer for: CT slices, presentation states, the reports of others."""
    return [instance for instance in instances if instance.sop_class_uid in PROJECTION_RADIOGRAPHS]


def _reason(code: str) -> Reason:
    if code == _DUPLICATE.code:
        return _DUPLICATE
    known = classifier_errors.Reason(code)
    return Reason(known.value, known.meaning, failed=known in _FAILURES, leaves_open=known in _OPEN)


def _not_scored(reason: Reason) -> Prediction:
    return Prediction(None, Decision.NOT_SCORED, None, reason.meaning, None)


def _nothing(_session: Session) -> None:
    """Write nothing: no report is needed, or the last one states it all."""
